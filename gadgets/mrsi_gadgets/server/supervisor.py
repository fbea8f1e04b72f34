"""The supervisor: accepts peers, gives each a warm session process, and speaks for a process that died.

The supervisor holds every client's socket and relays bytes; it never computes. The session process sits at the other
end of a socket pair. Whatever happens to it (an exception, a crash, the kernel's out-of-memory killer), the peer gets
one sentence in its own dialect.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from mrsi_gadgets.arrays import select_device
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.composition import find_recipe
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.server.worker import READY, options_to_text
from mrsi_gadgets.stream.relay import Relay, report_failure
from mrsi_gadgets.stream.session import Peer

log = logging.getLogger("mrsi.server")

GRACE_S = 20.0
"""How long a session process may take to end after its stream has ended."""
STOP_GRACE_S = 5.0
"""How long running sessions may take to tell their peers that the server stops."""
READY_S = 120.0
"""How long a session process may take to warm up."""
ACCEPT_RETRY_S = 0.5
"""Pause before the next try when the system refuses a connection for lack of descriptors or memory."""


@dataclass(frozen=True)
class ServerOptions:
    """How the server listens and how its session processes run."""

    host: str = "127.0.0.1"
    port: int = 9002
    peer: Peer = Peer.AUTO
    scan: ScanOptions = field(default_factory=ScanOptions)
    warm: int = 1
    """Session processes kept warm for the next scans."""
    log_level: str = "INFO"
    log_format: str = "text"


class SessionProcess:
    """A warm worker and our end of its socket pair."""

    def __init__(self, options: ServerOptions) -> None:
        self.socket, theirs = socket.socketpair()
        self._ready, ready = socket.socketpair()
        with theirs, ready:
            command = [
                sys.executable, "-m", "mrsi_gadgets.server.worker",
                "--socket", str(theirs.fileno()), "--ready", str(ready.fileno()),
                "--peer", options.peer.value, "--options", options_to_text(options.scan),
                "--log-level", options.log_level, "--log-format", options.log_format,
            ]  # fmt: skip
            try:
                # a process group of its own: Ctrl-C in a terminal is for the supervisor, which ends sessions in order
                self.process = subprocess.Popen(
                    command, pass_fds=(theirs.fileno(), ready.fileno()), stdin=subprocess.DEVNULL, process_group=0
                )
            except OSError:
                self.socket.close()
                self._ready.close()
                raise

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the worker has warmed up; False where it died or took longer."""
        self._ready.settimeout(seconds)
        try:
            return self._ready.recv(1) == READY
        except OSError:
            return False

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def cause_of_end(self) -> str:
        """Wait for the process and say how it ended."""
        try:
            code = self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            return "it closed its stream but did not end"
        if code < 0:
            name = signal.Signals(-code).name
            return f"ended by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        return f"exit code {code}"

    def end(self) -> None:
        """Let go of the process: it sees the end of its stream and ends by itself, or is killed after a grace time."""
        self.socket.close()
        self._ready.close()
        try:
            self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            log.error("session process %d did not end and was killed", self.process.pid)
            self.process.kill()
            self.process.wait()


class Server:
    """Accepts peers on one port until `stop`."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        if options.scan.recipe is not None:
            find_recipe(options.scan.recipe, site=options.scan.site, allow_path=True)
        if options.scan.device not in ("auto", "cpu"):
            select_device(options.scan.device)
        self._listener = _listen(options)
        self.port = int(self._listener.getsockname()[1])
        self._warm: deque[SessionProcess] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._numbers = itertools.count(1)
        self._sessions: dict[threading.Thread, SessionProcess | None] = {}

    def start(self) -> None:
        """Warm the first session process(es); returns when they are ready.

        Raises
        ------
        ConfigError
            A session process cannot start.
        """
        if self.options.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("listening on %s: anyone who reaches this port can run a reconstruction", self.options.host)
        for _ in range(self.options.warm):
            self._warm.append(SessionProcess(self.options))
        for process in self._warm:
            if not process.wait_ready(READY_S) and not self._stopped.is_set():
                raise ConfigError("a session process did not start; what it wrote above says why")
        log.info("listening on %s:%d", self.options.host, self.port)

    def serve_forever(self) -> None:
        """Accept until `stop`; each session runs in a thread that relays and a process that computes."""
        while not self._stopped.is_set():
            try:
                client, address = self._listener.accept()
            except OSError as error:
                if self._stopped.is_set():
                    break
                # one refused connection (too many open files, no memory) must not end the server
                log.error("a connection could not be accepted: %s", error)
                self._stopped.wait(ACCEPT_RETRY_S)
                continue
            number = next(self._numbers)
            log.info("session %d: peer %s:%s", number, address[0], address[1])
            thread = threading.Thread(
                target=self._session, args=(client, number), name=f"session-{number}", daemon=True
            )
            with self._lock:
                self._sessions[thread] = None
            try:
                thread.start()
            except RuntimeError as error:  # the system allows no further thread; the sessions there are go on
                log.error("session %d could not be started: %s", number, error)
                client.close()
                with self._lock:
                    self._sessions.pop(thread)

    def request_stop(self) -> None:
        """Let `serve_forever` return; safe in a signal handler. `stop` has to follow."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Stop accepting, tell the peers of running sessions, and end every session process."""
        self.request_stop()
        self._listener.close()
        with self._lock:
            warm, self._warm = list(self._warm), deque()
            running = dict(self._sessions)
        for process in [*running.values(), *warm]:
            if process is not None:
                process.process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))
        for process in warm:
            process.end()

    def _take(self) -> SessionProcess:
        """Return a warm process and start its successor.

        Raises
        ------
        OSError
            No process is warm and the system refuses to start one.
        """
        with self._lock:
            taken = self._first_warm() or SessionProcess(self.options)
            self._sessions[threading.current_thread()] = taken
            if self._stopped.is_set():
                taken.process.terminate()
                return taken
            try:
                while len(self._warm) < self.options.warm:
                    self._warm.append(SessionProcess(self.options))
            except OSError as error:
                log.error("no further session process could be started: %s", error)
        return taken

    def _first_warm(self) -> SessionProcess | None:
        """Take the longest-waiting process that still lives."""
        while self._warm:
            process = self._warm.popleft()
            if process.alive:
                return process
            log.warning("a waiting session process had ended by itself (exit code %s)", process.process.returncode)
            process.end()
        return None

    def _session(self, client: socket.socket, number: int) -> None:
        worker: SessionProcess | None = None
        try:
            worker = self._take()
            self._relay(client, worker, number)
        except OSError as error:
            log.error("session %d failed: %s", number, error)
            if worker is None:
                sentence = (
                    f"no session process could be started ({error.strerror}); free memory or processes on the server's "
                    "machine and send the scan again"
                )
                report_failure(client, self.options.peer, sentence)
        finally:
            client.close()
            if worker is not None:
                worker.end()
            with self._lock:
                self._sessions.pop(threading.current_thread(), None)

    def _relay(self, client: socket.socket, worker: SessionProcess, number: int) -> None:
        """Pass one session through; where its process dies, tell the peer."""
        relay = Relay(client, worker.socket, peer=self.options.peer)
        in_order = relay.run()
        if in_order or relay.client_lost:
            relay.close()
            if relay.client_lost:
                log.warning("session %d: the peer went away before its scan was complete", number)
            else:
                log.info("session %d: closed in order", number)
            return
        if self._stopped.is_set():
            relay.report_failure("the server was stopped before the result was complete; send the scan again")
            return
        relay.report_failure(
            f"the reconstruction process of session {number} died before its result was complete "
            f"({worker.cause_of_end()}); "
            "see the server's log and replay the raw data"
        )


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        busy = getattr(error, "errno", None) == errno.EADDRINUSE
        remedy = "another program uses the port: choose another with --port, or stop that program"
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port} ({reason}); "
            + (remedy if busy else "correct --host or --port")
        ) from None
    listener.listen(16)
    return listener
