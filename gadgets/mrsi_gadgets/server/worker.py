"""A session process: started and warmed up before its scan comes, runs one chain, and ends.

Started by the supervisor as ``python -m mrsi_gadgets.server.worker OPTIONS`` with one end of a socket pair. It waits
there for the relayed bytes of one session; an end of the stream before any byte means that it was not needed. A second
socket pair is between worker and supervisor alone: READY up, the session's number down, then lines of JSON up: what a
page shows of the scan, where there is one, and at the end the sentence of a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from mrsi_gadgets.gadgets.node import run_connection
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.gadgets.watch import ScanWatch
from mrsi_gadgets.logs import set_up_logging
from mrsi_gadgets.server.rehearsal import rehearse
from mrsi_gadgets.stream.limits import MEBIBYTE, Limits
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection

READY = b"\x06"
"""No line begins with it."""
_NUMBER_BYTES = 32
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 8 << 20


def options_to_text(options: ScanOptions) -> str:
    """Return the options as JSON, for the command line of a worker."""
    return json.dumps(
        {
            "recipe": options.recipe,
            "site": str(options.site) if options.site else None,
            "device": options.device,
            "settings": dict(options.settings),
            "seed": options.seed,
            "sequence": options.sequence,
            "trajectories": str(options.trajectories) if options.trajectories else None,
            "models": str(options.models) if options.models else None,
        }
    )


def options_from_text(text: str) -> ScanOptions:
    """Read what `options_to_text` wrote."""
    values = json.loads(text)
    for name in ("site", "trajectories", "models"):
        values[name] = Path(values[name]) if values[name] else None
    return ScanOptions(**values)


def limits_of(max_message_mib: int | None) -> Limits:
    """Return the limits of one message; None leaves them as they are."""
    usual = Limits()
    if max_message_mib is None:
        return usual
    size = max_message_mib * MEBIBYTE
    return Limits(
        text_bytes=min(usual.text_bytes, size), attribute_bytes=min(usual.attribute_bytes, size), array_bytes=size
    )


def return_large_blocks() -> None:
    """Have the C library return large freed arrays to the system at once, for as long as the process lives.

    glibc raises the size from which it does so with every large array that is freed (up to 32 MiB), and a session then
    keeps a third more memory than it uses. Other C libraries have no such setting; there nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def end_before_others() -> None:
    """Have the system end this process, not the server, when memory runs out (Linux; elsewhere nothing happens)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def main(arguments: list[str] | None = None) -> int:
    """Serve one session on the inherited socket; the process ends with it."""
    parser = argparse.ArgumentParser(prog="python -m mrsi_gadgets.server.worker")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--ready", type=int, required=True)
    parser.add_argument("--peer", default="auto")
    parser.add_argument("--options", required=True)
    parser.add_argument("--idle-timeout", type=float)
    parser.add_argument("--max-message-mib", type=int)
    parser.add_argument("--watched", action="store_true")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-format", default="text")
    given = parser.parse_args(arguments)
    set_up_logging("ERROR", given.log_format)
    return_large_blocks()
    end_before_others()
    options = options_from_text(given.options)
    rehearse(options.device)
    set_up_logging(given.log_level, given.log_format)
    with socket.socket(fileno=given.ready) as supervisor:
        with contextlib.suppress(BrokenPipeError):
            # the server may have stopped in the meantime; the end of the session socket tells
            supervisor.sendall(READY)
        session = socket.socket(fileno=given.socket)
        if not session.recv(1, socket.MSG_PEEK):
            return 0
        # the number comes before the session's first byte
        number = supervisor.recv(_NUMBER_BYTES).decode("ascii")
        os.environ["MRSI_SESSION"] = number
        log = logging.getLogger("mrsi.worker")
        log.info("session %s begins", number)
        connection = Connection(
            session, peer=Peer(given.peer), name=number, idle_timeout_s=given.idle_timeout,
            limits=limits_of(given.max_message_mib),
        )  # fmt: skip

        def tell(what: dict[str, Any]) -> None:
            with contextlib.suppress(OSError):  # a supervisor that is gone hears nothing
                supervisor.sendall(json.dumps(what).encode() + b"\n")

        outcome = run_connection(connection, options, watch=ScanWatch(tell) if given.watched else None)
        if outcome.failure is not None:
            # so that the supervisor's last line tells a failed session from a finished one
            tell({"kind": "failure", "sentence": outcome.failure})
    return 0


if __name__ == "__main__":
    sys.exit(main())
