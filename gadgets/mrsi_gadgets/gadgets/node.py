"""Where a chain meets a peer: our own session process, or a Gadgetron's external node."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain as chain_iterators
from typing import Any

from mrsi_gadgets.errors import DataError, MrsiError
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.gadgets.watch import ScanWatch
from mrsi_gadgets.io.spool import Spool, SpoolOptions, default_folder
from mrsi_gadgets.io.spool_log import State as SpoolState
from mrsi_gadgets.stream.framing import FrameScanner, MessageId
from mrsi_gadgets.stream.messages import ConfigText, Header, Message, Text
from mrsi_gadgets.stream.relay import take_bytes
from mrsi_gadgets.stream.session import Peer, Session, State
from mrsi_gadgets.stream.transport import Connection, Outcome, serve

log = logging.getLogger("mrsi.node")


def run_connection(
    connection: Connection, options: ScanOptions, received: Iterable[Message] = (), watch: ScanWatch | None = None
) -> Outcome:
    """Run one session on `connection`: the scan, its progress texts, and every failure in the peer's own dialect.

    `received` are messages that somebody else has already read from the peer; what it raises is told to the peer too.
    `watch` is told what happens in the scan.
    """

    def handle(messages: Iterator[Message], send: Callable[[Message], None]) -> None:
        def tell(sentence: str) -> None:
            # A Gadgetron aborts the stream on any TEXT from its external node (protocol 1.5).
            if connection.peer is Peer.FIRE:
                send(Text(f"INFO    {sentence}"))

        try:
            report = run_scan(chain_iterators(received, messages), send, options, tell=tell, watch=watch)
        except MrsiError as problem:
            if watch is not None:
                watch.failed(str(problem))
            raise
        if report is not None:
            for warning in report.warnings if connection.peer is Peer.FIRE else ():
                send(Text(f"WARNING {warning}"))
            log.info("session done: %s", {name: round(s, 3) for name, s in report.seconds.items()})

    return serve(connection, handle)


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
    options = ScanOptions(device=os.environ.get("MRSI_DEVICE", "auto"))
    session = Session(Peer.GADGETRON, state=State.STREAM)
    with _kept(connection.raw_bytes) as (keep, ended):
        outcome = run_connection(
            Connection(raw, session=session, keep=keep), options, received=_received(connection.raw_bytes)
        )
        ended(outcome)


@contextmanager
def _kept(raw: Any) -> Iterator[tuple[Callable[[memoryview], None] | None, Callable[[Outcome], None]]]:
    """Keep the raw data of a session that this process holds the socket of; gives who takes bytes and who the outcome.

    A process that dies here leaves an interrupted session, which `mrsi recover` finds as those of a server.
    """
    folder = default_folder()
    if folder is None:
        yield None, lambda outcome: None
        return
    spool = Spool(SpoolOptions(folder))
    spool.start(tidy=False)
    session = spool.open({"scan": {}})
    scanner = FrameScanner()
    for number, text in ((MessageId.CONFIG_TEXT, raw.config), (MessageId.HEADER, raw.header)):
        body = text.encode() if isinstance(text, str) else bytes(text)
        take_bytes(scanner, memoryview(struct.pack("<HI", number, len(body)) + body), session.keep)
    told: list[Outcome] = []
    try:
        yield lambda chunk: take_bytes(scanner, chunk, session.keep), told.append
    finally:
        failure = told[0].failure if told else "an internal error ended the session"
        lost = bool(told) and told[0].lost
        state = SpoolState.ABORTED if lost else SpoolState.FINISHED if failure is None else SpoolState.FAILED
        session.end(state, failure or "", readouts=scanner.readouts, closed=scanner.closed)
        spool.stop()


def _received(raw: Any) -> Iterator[Message]:
    """Yield what gadgetron-python has read, decoded inside the session: what is wrong with it is told to the peer."""
    yield ConfigText(_text(raw.config, "configuration"))
    yield Header(_text(raw.header, "ISMRMRD header"))


def _text(raw: bytes | str, what: str) -> str:
    try:
        return raw if isinstance(raw, str) else bytes(raw).rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"the {what} is not valid UTF-8 at its byte {problem.start}; the sender has to encode it as UTF-8"
        ) from problem
