"""A session process as its supervisor sees it: started, warm, told its number, asked how it ended, let go."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.spool import SpoolOptions
from mrsi_gadgets.server.watchdog import ProcessLimits
from mrsi_gadgets.server.worker import READY, options_to_text
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
    max_sessions: int = 8
    """Sessions at once; a further one is refused."""
    idle_timeout_s: float | None = None
    """Give a peer up for lost after so long without a byte; None waits for ever, since a scan may pause."""
    max_message_mib: int | None = None
    """Upper bound of one message; None admits whatever MRD 1.x can express."""
    log_level: str = "INFO"
    log_format: str = "text"
    allowed: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks whose peers may speak to the server, besides this machine; none: everybody who reaches the port."""
    web_port: int | None = None
    """Port of this machine for page, /health and /metrics; 0: any free one; None: none of these."""
    spool: SpoolOptions | None = None
    """Where the raw data of every session are kept before they are processed; None: nowhere."""
    limits: ProcessLimits = field(default_factory=ProcessLimits)
    """When a session process is ended."""


class SessionProcess:
    """A warm worker and our end of its socket pair."""

    module = "mrsi_gadgets.server.worker"
    """What runs in the process."""

    def __init__(self, options: ServerOptions) -> None:
        self.socket, theirs = socket.socketpair()
        self._ready, ready = socket.socketpair()
        self._listener: threading.Thread | None = None
        self._failure: str | None = None
        with theirs, ready:
            command = [
                sys.executable, "-m", self.module,
                "--socket", str(theirs.fileno()), "--ready", str(ready.fileno()),
                "--peer", options.peer.value, "--options", options_to_text(options.scan),
                "--log-level", options.log_level, "--log-format", options.log_format,
            ]  # fmt: skip
            if options.idle_timeout_s is not None:
                command += ["--idle-timeout", str(options.idle_timeout_s)]
            if options.web_port is not None:
                command.append("--watched")
            if options.max_message_mib is not None:
                command += ["--max-message-mib", str(options.max_message_mib)]
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

    def begin(self, number: int, told: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Tell the process which session it runs, before the session's first byte, and listen to what it says.

        `told` takes what a page may show of the scan.
        """
        with contextlib.suppress(OSError):  # a process that has died is met when its stream ends
            self._ready.settimeout(None)
            self._ready.sendall(str(number).encode("ascii"))
        self._listener = threading.Thread(target=self._listen, args=(told,), name=f"session {number}", daemon=True)
        self._listener.start()

    def _listen(self, told: Callable[[dict[str, Any]], None] | None) -> None:
        """Body of the thread that hears the process: lines of JSON to the end of its stream."""
        rest = b""
        with contextlib.suppress(OSError):
            while part := self._ready.recv(1 << 16):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError, AttributeError):
                        what = json.loads(line.removeprefix(READY))
                        if what.get("kind") == "failure":
                            self._failure = str(what.get("sentence"))
                        if told is not None:
                            told(what)

    def failure(self) -> str | None:
        """Return the sentence of a session that has ended with an error, None of one that has not."""
        if self._listener is not None:
            self._listener.join(GRACE_S)
        return self._failure

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
        with contextlib.suppress(OSError):
            self._ready.shutdown(socket.SHUT_RDWR)  # who listens comes back
        if self._listener is not None:
            self._listener.join(GRACE_S)
        self._ready.close()
        try:
            self.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            log.error("session process %d did not end and was killed", self.process.pid)
            self.process.kill()
            self.process.wait()
