"""The supervisor: accepts peers, gives each a warm session process, and speaks for a process that died.

The supervisor holds every client's socket and relays bytes; it never computes. The session process sits at the other end
of a socket pair. Whatever happens to it (an exception, a crash, the kernel's out-of-memory killer), the peer gets one
sentence in its own dialect.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.composition import find_recipe
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.server.worker import READY, options_to_text
from mrsi_gadgets.stream.relay import Relay
from mrsi_gadgets.stream.session import Peer

log = logging.getLogger("mrsi.server")

GRACE_S = 20.0
"""How long a session process may take to end after its stream has ended."""


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
            self.process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(), ready.fileno()), stdin=subprocess.DEVNULL
            )

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the worker has warmed up; False where it died or took longer."""
        self._ready.settimeout(seconds)
        try:
            return self._ready.recv(1) == READY
        except OSError:
            return False

    def cause_of_end(self, *, client_lost: bool) -> str:
        """Wait for the process and say how it ended."""
        try:
            code = self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            return "it closed its stream but did not end"
        if code < 0:
            name = signal.Signals(-code).name
            return f"ended by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        return "the peer had gone" if client_lost else f"exit code {code}"

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
        self._listener = _listen(options)
        self.port = int(self._listener.getsockname()[1])
        self._warm: deque[SessionProcess] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._numbers = itertools.count(1)
        self._sessions: set[threading.Thread] = set()

    def start(self) -> None:
        """Warm the first session process(es); returns when they are ready."""
        if self.options.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("listening on %s: anyone who reaches this port can run a reconstruction", self.options.host)
        for _ in range(self.options.warm):
            self._warm.append(SessionProcess(self.options))
        for process in self._warm:
            if not process.wait_ready(120):
                raise ConfigError("a session process did not start; run with --log-level DEBUG to see why")
        log.info("listening on %s:%d", self.options.host, self.port)

    def serve_forever(self) -> None:
        """Accept until `stop`; each session runs in a thread that relays and a process that computes."""
        while not self._stopped.is_set():
            try:
                client, address = self._listener.accept()
            except OSError:
                break
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            number = next(self._numbers)
            log.info("session %d: peer %s:%s", number, address[0], address[1])
            thread = threading.Thread(target=self._session, args=(client, number), name=f"session-{number}")
            thread.daemon = True
            self._sessions.add(thread)
            thread.start()

    def stop(self) -> None:
        """Stop accepting and let warm processes go; running sessions are given up with the process."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            warm, self._warm = list(self._warm), deque()
        for process in warm:
            process.end()

    def _take(self) -> SessionProcess:
        """Return a warm process and start its successor."""
        with self._lock:
            taken = self._warm.popleft() if self._warm else SessionProcess(self.options)
            if len(self._warm) < self.options.warm and not self._stopped.is_set():
                self._warm.append(SessionProcess(self.options))
        return taken

    def _session(self, client: socket.socket, number: int) -> None:
        worker = self._take()
        relay = Relay(client, worker.socket, peer=self.options.peer)
        try:
            if relay.run():
                relay.close()
                log.info("session %d: closed in order", number)
                return
            cause = worker.cause_of_end(client_lost=relay.client_lost)
            if relay.client_lost:
                log.warning("session %d: the peer went away before the scan was complete; nothing was sent", number)
                relay.close()
                return
            sentence = (
                f"the reconstruction process of session {number} died before its result was complete ({cause}); "
                "see the server's log and replay the raw data"
            )
            relay.report_failure(sentence)
        except OSError as error:
            log.error("session %d: the connection failed: %s", number, error)
        finally:
            client.close()
            worker.end()
            self._sessions.discard(threading.current_thread())


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port} ({os.strerror(error.errno or 0)}); another program may use "
            "the port: choose another with --port, or stop that program"
        ) from None
    listener.listen(16)
    return listener
