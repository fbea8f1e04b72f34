"""The supervisor: accepts peers, gives each a warm session process, and speaks for a process that died.

The supervisor holds every client's socket and relays bytes; it never computes. The session process sits at the other
end of a socket pair. Whatever happens to it (an exception, a crash, the kernel's out-of-memory killer), the peer gets
one sentence in its own dialect.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from mrsi_gadgets.arrays import select_device
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.composition import find_recipe
from mrsi_gadgets.io.spool import SessionSpool, Spool
from mrsi_gadgets.io.spool_log import State
from mrsi_gadgets.server.monitor import Monitor
from mrsi_gadgets.server.process import ServerOptions, SessionProcess
from mrsi_gadgets.server.watchdog import Watchdog
from mrsi_gadgets.server.web import WebServer
from mrsi_gadgets.server.worker import limits_of, options_to_text
from mrsi_gadgets.stream.endpoints import keep_alive
from mrsi_gadgets.stream.framing import FrameScanner
from mrsi_gadgets.stream.relay import Relay, report_failure

log = logging.getLogger("mrsi.server")

STOP_GRACE_S = 5.0
"""How long running sessions may take to tell their peers that the server stops."""
READY_S = 120.0
"""How long a session process may take to warm up."""
PLACE_S, PLACE_POLL_S = 5.0, 0.05
"""How long a session waits for a place before it is refused, and how often it looks."""
ACCEPT_POLL_S = 0.5
"""How soon a server without visitors notices that it was asked to stop."""
ACCEPT_RETRY_S = 0.5
"""Pause before the next try when the system refuses a connection for lack of descriptors or memory."""


class Server:
    """Accepts peers on one port until `stop`."""

    most_idle = 64
    """Connections without a process: silent ones, and refused ones that still send."""

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
        self._limits = limits_of(options.max_message_mib)
        self._spool = Spool(options.spool) if options.spool is not None else None
        self._monitor = Monitor() if options.web_port is not None else None
        self._web = None if self._monitor is None else WebServer(self._monitor, options.web_port or 0)
        self._sessions: dict[threading.Thread, SessionProcess | None] = {}
        self._relays: dict[threading.Thread, Relay] = {}
        self._idle: dict[threading.Thread, socket.socket] = {}
        """Clients without a process, oldest first: they have not sent a byte yet, or were refused."""

    def start(self) -> None:
        """Warm the first session process(es); returns when they are ready.

        Raises
        ------
        ConfigError
            A session process cannot start.
        """
        if self.options.host not in ("127.0.0.1", "::1", "localhost") and not self.options.allowed:
            log.warning("listening on %s: anyone who reaches this port can run a reconstruction", self.options.host)
        if self._spool is not None:
            self._spool.start()
        if self._web is not None:
            self._web.start()
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
            except TimeoutError:
                continue
            except OSError as error:
                if self._stopped.is_set():
                    break
                # one refused connection (too many open files, no memory) must not end the server
                log.error("a connection could not be accepted: %s", error)
                self._stopped.wait(ACCEPT_RETRY_S)
                continue
            peer = f"{address[0]}:{address[1]}"
            if not is_allowed(address[0], self.options.allowed):
                log.warning("%s may not speak to this server and was sent away; --allow lists who may", peer)
                client.close()
                continue
            log.debug("connection from %s", peer)
            thread = threading.Thread(target=self._connection, args=(client, peer), name=f"peer {peer}", daemon=True)
            with self._lock:
                self._sessions[thread] = None
            try:
                thread.start()
            except RuntimeError as error:  # the system allows no further thread; the sessions there are go on
                log.error("a session with %s could not be started: %s", peer, error)
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
            running, idle = dict(self._sessions), list(self._idle.values())
        for client in idle:
            _wake(client)
        for process in [*running.values(), *warm]:
            if process is not None:
                process.process.terminate()
        began = time.monotonic()
        for share in (0.5, 1.0):
            for thread, process in running.items():
                thread.join(max(0.0, began + share * STOP_GRACE_S - time.monotonic()))
                if thread.is_alive() and process is not None:
                    process.process.kill()  # it ignores SIGTERM, or is stopped; its peer must be told before we go
                    with self._lock:
                        relay = self._relays.get(thread)
                    if relay is not None:
                        relay.cut()
        for process in warm:
            process.end()
        if self._web is not None:
            self._web.stop()
        if self._spool is not None:
            self._spool.stop()

    @property
    def web_port(self) -> int | None:
        """Port of page, /health and /metrics, or None."""
        return None if self._web is None else self._web.port

    def _take_in_time(self) -> SessionProcess | None:
        """As `_take`, but where no place is free, see whether one becomes so.

        A scanner that has its last image may send the next scan while the process of the one before still ends.
        """
        deadline = time.monotonic() + PLACE_S
        while True:
            taken = self._take()
            if taken is not None or time.monotonic() > deadline or self._stopped.wait(PLACE_POLL_S):
                return taken
            if threading.current_thread() not in self._idle:  # it had to go for another
                return None

    def _take(self) -> SessionProcess | None:
        """Return a warm process and start its successor; None where as many sessions run as may.

        Raises
        ------
        OSError
            No process is warm and the system refuses to start one.
        """
        with self._lock:
            if (
                sum(process is not None and process.alive for process in self._sessions.values())
                >= self.options.max_sessions
            ):
                return None
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

    def _connection(self, client: socket.socket, peer: str) -> None:
        """Body of the thread of one client: a session begins with its first byte, not with the connection.

        Whoever only looks whether the port is open (a health check, a port scan) costs no process.
        """
        try:
            if self._says_something(client):
                self._numbered_session(client, peer)
            else:
                log.debug("%s went away without a byte", peer)
        finally:
            client.close()
            with self._lock:
                self._sessions.pop(threading.current_thread(), None)

    def _says_something(self, client: socket.socket) -> bool:
        """Wait for the client's first byte, which stays where it is; False where it goes away or never speaks."""
        try:
            keep_alive(client)
            client.settimeout(self.options.idle_timeout_s)
            with self._idling(client):
                return not self._stopped.is_set() and bool(client.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    @contextlib.contextmanager
    def _idling(self, client: socket.socket) -> Iterator[None]:
        """Count a client among those without a process; where they are too many, the oldest has to go.

        Each holds a descriptor and a thread, and who opens connections for nothing must not keep a scanner out.
        """
        thread = threading.current_thread()
        with self._lock:
            self._idle[thread] = client
            too_many = [self._idle.pop(one) for one in list(self._idle)[: -self.most_idle]]
        for oldest in too_many:
            _wake(oldest)
        try:
            yield
        finally:
            with self._lock:
                self._idle.pop(thread, None)

    def _numbered_session(self, client: socket.socket, peer: str) -> None:
        """Give a session its number and, where there is a spool, a place for its raw data; note how it ended."""
        kept: SessionSpool | None = None
        if self._spool is not None:
            kept = self._spool.open({"scan": json.loads(options_to_text(self.options.scan))})
        number = next(self._numbers) if kept is None else kept.number
        ending = _Ending(State.FAILED, "an internal error of the server ended the session")
        if self._monitor is not None:
            self._monitor.begins(number, peer)
        try:
            ending = self._session(client, peer, number, kept)
        finally:
            if self._monitor is not None:
                self._monitor.ends(number, failure=ending.cause, cause=ending.kind)
            if kept is not None:
                kept.end(ending.state, ending.cause, readouts=ending.readouts, closed=ending.closed)

    def _session(self, client: socket.socket, peer: str, number: int, kept: SessionSpool | None) -> _Ending:
        """Run one session in a process, or tell the peer why there is none."""
        worker: SessionProcess | None = None
        known = {"session": str(number)}
        log.info("session %d: peer %s", number, peer, extra=known)
        try:
            with self._idling(client):
                worker, sentence = self._place()
                if worker is None:
                    return self._refuse(client, number, kept, sentence)
            worker.begin(number, partial(self._monitor.told, number) if self._monitor is not None else None)
            log.info("session %d: process %d", number, worker.process.pid, extra=known)
            return self._relay(client, worker, number, kept)
        except OSError as error:
            log.error("session %d failed: %s", number, error, extra=known)
            return _Ending(State.FAILED, f"the session could not be served ({error.strerror})")
        finally:
            if worker is not None:
                worker.end()

    def _place(self) -> tuple[SessionProcess | None, str]:
        """Return a process for a session, or None and why there is none."""
        try:
            worker = self._take_in_time()
        except OSError as error:
            return None, (
                f"no session process could be started ({error.strerror}); free memory or processes on the server's "
                "machine and send the scan again"
            )
        return worker, (
            f"the server runs as many sessions as it may ({self.options.max_sessions}); send the scan again when "
            "one of them has ended, or start the server with a larger --max-sessions"
        )

    def _refuse(self, client: socket.socket, number: int, kept: SessionSpool | None, sentence: str) -> _Ending:
        """Tell a peer why its session has no process; its scan is kept all the same."""
        log.error(
            "session %d: refused: %s", number, sentence, extra={"session": str(number), "failure": sentence}
        )  # fmt: skip
        scanner = FrameScanner(self._limits)
        report_failure(
            client, self.options.peer, sentence, scanner, self._limits, idle_timeout_s=self.options.idle_timeout_s,
            keep=kept.keep if kept is not None else None,
        )  # fmt: skip
        return _Ending(State.FAILED, sentence, scanner.readouts, scanner.closed, "refused")

    def _relay(self, client: socket.socket, worker: SessionProcess, number: int, kept: SessionSpool | None) -> _Ending:
        """Pass one session through; where its process dies, tell the peer."""
        watchdog = Watchdog(worker.process, worker.socket, self.options.limits)
        relay = Relay(
            client, worker.socket, peer=self.options.peer, limits=self._limits,
            idle_timeout_s=self.options.idle_timeout_s, keep=kept.keep if kept is not None else None,
            watch=watchdog.look,
        )  # fmt: skip
        if kept is not None:
            _tell_of_problems(kept, relay, number)
        with self._lock:
            self._relays[threading.current_thread()] = relay
        try:
            return self._relayed(relay, watchdog, worker, number, kept)
        finally:
            with self._lock:
                del self._relays[threading.current_thread()]

    def _relayed(
        self, relay: Relay, watchdog: Watchdog, worker: SessionProcess, number: int, kept: SessionSpool | None
    ) -> _Ending:
        """Pass one session through to its end, however it ends."""
        in_order = relay.run()
        if in_order or relay.client_lost:
            relay.close()
            return self._say_how_it_ended(relay, worker.failure(), number, kept)
        kind = "died"
        if self._stopped.is_set():
            kind = "stopped"
            sentence = f"the server was stopped before the result was complete; {_remedy(kept)}"
        else:
            sentence = (
                f"the reconstruction process of session {number} died before its result was complete "
                f"({watchdog.reason or worker.cause_of_end()}); {_remedy(kept)}"
            )
        # the peer may send the rest of its scan for half an hour before its session is over
        log.error("session %d: %s", number, sentence, extra={"session": str(number)})
        if self._monitor is not None:
            self._monitor.told(number, {"kind": "failure", "sentence": sentence})
        relay.report_failure(sentence)
        return self._say_how_it_ended(relay, sentence, number, kept, kind)

    @staticmethod
    def _say_how_it_ended(
        relay: Relay, failure: str | None, number: int, kept: SessionSpool | None, kind: str = "error"
    ) -> _Ending:
        """Write the one line by which a session's end is found in the log."""
        known = {"session": str(number), "peer": relay.peer.value, "received": relay.received, "failure": failure}
        state, cause = State.FINISHED, ""
        if relay.client_lost:
            state, cause = State.ABORTED, failure or "the peer went away before its scan was complete"
            kind = "peer lost"
            log.warning("session %d: the peer went away before its scan was complete", number, extra=known)
        elif failure is not None:
            state, cause = State.FAILED, failure
            log.warning("session %d: ended with an error: %s", number, failure, extra=known)
        else:
            log.info("session %d: closed in order", number, extra=known)
        if state is not State.FINISHED and kept is not None and kept.kept and relay.readouts:
            log.warning(
                "session %d: %d readouts are kept in %s", number, relay.readouts, kept.folder,
                extra={"session": str(number)},
            )  # fmt: skip
        return _Ending(state, cause, relay.readouts, relay.closed_by_client, kind)


@dataclass(frozen=True)
class _Ending:
    """How a session has ended, for spool and page."""

    state: State
    cause: str = ""
    readouts: int = 0
    closed: bool = False
    kind: str = "error"
    """One of `monitor.CAUSES`, where it has failed."""


def is_allowed(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Tell whether a peer's address may speak to the server: this machine's own always, others if a network has them.

    Without networks everybody may.
    """
    own = ip_address(address.partition("%")[0])
    if isinstance(own, IPv6Address) and own.ipv4_mapped is not None:
        own = own.ipv4_mapped
    return not networks or own.is_loopback or any(own in network for network in networks)


def _wake(client: socket.socket) -> None:
    """End what a client's thread waits for."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _remedy(kept: SessionSpool | None) -> str:
    """Say what to do about a session that has failed on our side."""
    if kept is None or not kept.whole:
        return "send the scan again, or replay it from the scanner's own raw data"
    return f"its raw data are kept on the server, where `mrsi recover {kept.number} -o RESULT` reconstructs them"


def _tell_of_problems(kept: SessionSpool, relay: Relay, number: int) -> None:
    """Have console and log told once where raw data are not kept."""

    def told(sentence: str) -> None:
        log.error("%s", sentence, extra={"session": str(number)})
        relay.tell(sentence)

    kept.on_problem = told
    if kept.problem:  # from the start: the log has it already
        relay.tell(kept.problem)


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
    # a signal just before the call, or to another thread, does not wake `accept`: it has to come back by itself
    listener.settimeout(ACCEPT_POLL_S)
    listener.listen(16)
    return listener
