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

from mrsi_gadgets.errors import ConfigError, ProtocolError
from mrsi_gadgets.gadgets.composition import find_recipe
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.server.worker import READY, options_to_text
from mrsi_gadgets.stream.messages import Close
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import report_failure
from mrsi_gadgets.stream.wire import Decoder, detect_peer

log = logging.getLogger("mrsi.server")

RELAY_BYTES = 1 << 20


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

    def cause_of_end(self) -> str | None:
        """Wait for the process and say how it ended; None where it ended well."""
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "it did not end after its session and was killed"
        if code == 0:
            return None
        if code < 0:
            name = signal.Signals(-code).name
            return f"it was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"it ended with exit code {code}"

    def close(self) -> None:
        """Let go of the process: it sees the end of its stream and ends by itself."""
        self.socket.close()
        self._ready.close()


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
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            warm, self._warm = list(self._warm), deque()
        for process in warm:
            process.close()
            process.process.wait(timeout=30)

    def _take(self) -> SessionProcess:
        """Return a warm process and start its successor."""
        with self._lock:
            taken = self._warm.popleft() if self._warm else SessionProcess(self.options)
            if len(self._warm) < self.options.warm and not self._stopped.is_set():
                self._warm.append(SessionProcess(self.options))
        return taken

    def _session(self, client: socket.socket, number: int) -> None:
        worker = self._take()
        try:
            relay = Relay(client, worker.socket, self.options.peer)
            finished = relay.run()
            worker.close()
            cause = worker.cause_of_end()
            if not finished and not relay.client_gone:
                sentence = (
                    f"the reconstruction process of session {number} ended before its result was complete"
                    f"{': ' + cause if cause else ''}; see the server's log, and replay the raw data"
                )
                log.error(sentence)
                report_failure(client, relay.peer, sentence, mid_message=relay.output_cut)
            log.info("session %d: %s", number, "done" if finished else "failed" if not relay.client_gone else "aborted")
        except OSError as error:
            log.error("session %d: the connection failed: %s", number, error)
        finally:
            client.close()
            if worker.process.poll() is None:
                worker.process.kill()
            self._sessions.discard(threading.current_thread())


class Relay:
    """Moves bytes both ways: input as it comes, output only in whole messages."""

    def __init__(self, client: socket.socket, worker: socket.socket, peer: Peer) -> None:
        self.client, self.worker, self.peer = client, worker, peer
        self.client_gone = False
        self.output_cut = False

    def run(self) -> bool:
        """Relay until the worker closes its side; True where it said CLOSE (the session ended in order)."""
        inward = threading.Thread(target=self._inward, daemon=True, name="relay-in")
        inward.start()
        closed = self._outward()
        if closed:
            # The peer may still be sending; what remains was drained by the worker before it closed.
            with contextlib.suppress(OSError):
                self.client.shutdown(socket.SHUT_WR)
        inward.join(timeout=10 if closed else 0)
        return closed

    def _inward(self) -> None:
        buffer = memoryview(bytearray(RELAY_BYTES))
        if self.peer is Peer.AUTO and not self._first_bytes(buffer):
            return
        try:
            while True:
                count = self.client.recv_into(buffer)
                if count == 0:
                    self.worker.shutdown(socket.SHUT_WR)
                    return
                self.worker.sendall(buffer[:count])
        except OSError as error:
            log.debug("relay inward ended: %s", error)

    def _first_bytes(self, buffer: memoryview) -> bool:
        """Relay until the first message tells which dialect the peer speaks; False at the end of the stream."""
        decoder = Decoder()
        try:
            while True:
                count = self.client.recv_into(buffer)
                if count == 0:
                    self.worker.shutdown(socket.SHUT_WR)
                    return False
                self.worker.sendall(buffer[:count])
                for message in decoder.feed(bytes(buffer[:count])):
                    self.peer = detect_peer(message)
                    return True
        except (OSError, ProtocolError) as error:
            log.debug("the first message was not understood: %s", error)
            self.peer = Peer.FIRE
            return not isinstance(error, OSError)

    def _outward(self) -> bool:
        """Forward whole messages; True once CLOSE has been forwarded."""
        decoder = Decoder()
        pending = bytearray()
        closed = False
        buffer = memoryview(bytearray(RELAY_BYTES))
        while True:
            try:
                count = self.worker.recv_into(buffer)
            except OSError:
                count = 0
            if count == 0:
                return closed
            pending += buffer[:count]
            begin = decoder.offset
            for message in decoder.feed(bytes(buffer[:count])):
                closed = closed or isinstance(message, Close)
            whole = decoder.offset - begin
            try:
                self.client.sendall(memoryview(pending)[:whole])
            except OSError:
                self.client_gone = True
            del pending[:whole]


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
