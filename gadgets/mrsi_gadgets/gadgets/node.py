"""Where a chain meets a peer: our own session process, or a Gadgetron's external node."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.stream.messages import ConfigText, Header, Message, Text
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection, serve
from mrsi_gadgets.stream.wire import encode

log = logging.getLogger("mrsi.node")


def run_connection(connection: Connection, options: ScanOptions) -> None:
    """Run one session on `connection`: the scan, its progress texts, and every failure in the peer's own dialect."""

    def handle(messages: Iterator[Message], send: Callable[[Message], None]) -> None:
        def tell(sentence: str) -> None:
            # A Gadgetron aborts the stream on any TEXT from its external node (protocol 1.5).
            if connection.peer is Peer.FIRE:
                send(Text(f"INFO    {sentence}"))

        report = run_scan(messages, send, options, tell=tell)
        if report is not None:
            log.info("session done: %s", {name: round(s, 3) for name, s in report.seconds.items()})

    serve(connection, handle)


class _Released:
    """Stands in for the socket we took, so that gadgetron-python's exit neither writes to nor closes it."""

    def close(self) -> None:
        """Do nothing: the session has closed the stream in the right order already."""


def chain(connection: Any) -> None:
    """Entry of a Gadgetron's ``<execute name="mrsi_gadgets.gadgets" target="chain" type="python"/>``.

    Parameters
    ----------
    connection
        ``gadgetron.external.Connection``. It has read exactly CONFIG and HEADER; from there on its reader and close
        handling would lose data and errors (protocol 1.9, 10), so its socket is driven by our own session.
    """
    raw = connection.socket.socket.dup()
    connection.socket.socket.detach()
    connection.socket = _Released()
    received = [
        ConfigText(_text(connection.raw_bytes.config)),
        Header(_text(connection.raw_bytes.header)),
    ]
    before = b"".join(bytes(part) for message in received for part in encode(message))
    options = ScanOptions(device=os.environ.get("MRSI_DEVICE", "auto"))
    run_connection(Connection(raw, peer=Peer.GADGETRON, received=before), options)


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else bytes(raw).rstrip(b"\0").decode("utf-8")
