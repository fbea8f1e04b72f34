"""A session over a medium: a reader and a writer thread with bounded queues, and the rules for its end.

Neither thread waits for the computation or for the other: the reader stops only when more unprocessed bytes wait than
its bound (then the peer's own send blocks), the writer gets whole messages that were serialised before they were
queued. `serve` runs a handler over a connection and sees to it that every failure reaches the peer in its dialect.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mrsi_gadgets.errors import DataError, MrsiError, PeerLost, ProtocolError, visible
from mrsi_gadgets.stream.endpoints import LINGER_S, Endpoint, FileEndpoint, SocketEndpoint
from mrsi_gadgets.stream.limits import MEBIBYTE, Limits
from mrsi_gadgets.stream.messages import Close, Message, Query
from mrsi_gadgets.stream.queues import ByteQueue
from mrsi_gadgets.stream.serialisation import encode
from mrsi_gadgets.stream.session import Peer, Session, failure_messages
from mrsi_gadgets.stream.wire import Decoder

LOG = logging.getLogger("mrsi.stream")
QUEUE_BYTES = 256 * MEBIBYTE
HEARTBEAT_S = 60.0

Medium = socket.socket | tuple[Any, Any] | Endpoint
Handler = Callable[[Iterator[Message], Callable[[Message], None]], None]


def _endpoint(medium: Medium) -> Endpoint:
    """Wrap whatever the bytes come from."""
    if isinstance(medium, socket.socket):
        return SocketEndpoint(medium)
    if isinstance(medium, tuple):
        return FileEndpoint(*medium)
    return medium


class Connection:
    """Messages to and from one peer.

    Parameters
    ----------
    medium
        A connected socket, a pair of binary file objects (reader, writer; None for an absent one), or an `Endpoint`.
    peer
        Who is at the other end; ignored when `session` is given.
    limits
        What a message may announce.
    session
        State machine to use; a fresh one of a server by default.
    name
        Shown in the log with every line of this session.
    idle_timeout_s
        Give the peer up for lost after so long without a byte; None waits for ever, since a scan may pause.
    queue_bytes
        Bound of each of the two queues [bytes].
    heartbeat_s
        Log that the session is alive after so long without a byte [s].
    keep
        Gets the peer's bytes before they are decoded; must not raise.
    """

    def __init__(
        self,
        medium: Medium,
        *,
        peer: Peer = Peer.AUTO,
        limits: Limits | None = None,
        session: Session | None = None,
        name: str = "session",
        idle_timeout_s: float | None = None,
        queue_bytes: int = QUEUE_BYTES,
        heartbeat_s: float = HEARTBEAT_S,
        keep: Callable[[memoryview], None] | None = None,
    ) -> None:
        self.session = session or Session(peer)
        self.name = name
        self._endpoint = _endpoint(medium)
        self._decoder = Decoder(limits)
        self._idle_timeout_s = idle_timeout_s
        self._heartbeat_s = heartbeat_s
        self._keep = keep
        self._incoming: ByteQueue[list[Message]] = ByteQueue(queue_bytes)
        self._outgoing: ByteQueue[bytes] = ByteQueue(queue_bytes)
        self._input_error: MrsiError | None = None
        self._output_error: OSError | None = None
        self._input_done = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"{name} reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"{name} writer", daemon=True)
        self._starting = threading.Lock()
        self._closing = False
        self._close_sent = False
        self.received = 0
        """Messages received."""
        self.sent = 0
        """Messages handed over for sending."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def peer(self) -> Peer:
        """Who is at the other end, as far as is known."""
        return self.session.peer

    @property
    def input_error(self) -> MrsiError | None:
        """What was wrong with the input so far."""
        return self._input_error

    @property
    def lost(self) -> bool:
        """Whether the peer has gone: its stream ended without CLOSE, or it takes no more bytes."""
        return isinstance(self._input_error, PeerLost) or self._output_error is not None

    @property
    def input_done(self) -> bool:
        """Whether nothing more will be received: CLOSE has come, or the input has failed for good."""
        return self._input_done.is_set()

    # --- input -------------------------------------------------------------------------------------------------------

    def messages(self) -> Iterator[Message]:
        """Start receiving; yield what the peer sends, up to and without its CLOSE. Queries are answered on the way.

        Raises
        ------
        PeerLost
            When the stream ends without CLOSE, after everything that came before has been yielded.
        ProtocolError, DataError
            When the peer breaks the rules of the wire, likewise.
        """
        self._start(self._reader)
        return self._received()

    def _received(self) -> Iterator[Message]:
        while (batch := self._incoming.get()) is not None:
            yield from batch
        if self._input_error is not None:
            raise self._input_error

    def drain(self) -> None:
        """Read and drop the rest of the input, until the peer's CLOSE or what stands for it.

        That is the end of the stream, the idle timeout, or two seconds of silence once framing is lost.
        """
        self._incoming.discard()
        self._start(self._reader)
        self._input_done.wait()

    def _read(self) -> None:
        """Body of the reader thread."""
        try:
            if not self._receive_until_close():
                self._discard_input()
        except PeerLost as problem:
            self._fail_input(problem)
        except OSError as problem:
            self._fail_input(PeerLost(f"The connection to the peer was lost ({problem}); the scan was aborted."))
        finally:
            if not self._decoder.closed:  # whatever stopped us: input that did not end with CLOSE is never complete
                self._fail_input(PeerLost("Receiving stopped before CLOSE came; the scan was aborted."), quiet=True)
            self._incoming.end()
            self._input_done.set()

    def _receive_until_close(self) -> bool:
        """Queue messages until CLOSE; False when framing is lost."""
        batch: list[Message] = []
        waiting = 0
        while not self._decoder.closed:
            self._await_bytes()
            space = self._decoder.buffer()
            count = self._endpoint.read_into(space)
            if not count:
                self._decoder.finish()
            elif self._keep is not None:
                self._keep(space[:count])
            framed = self._take(count, batch)
            waiting += count
            if batch:
                self.received += len(batch)
                self._incoming.put(batch, waiting)
                batch, waiting = [], 0
            if self._input_error is not None:
                self._incoming.end()
            if not framed:
                return False
        return True

    def _take(self, count: int, batch: list[Message]) -> bool:
        """Decode `count` new bytes and append what is for the handler; False when framing is lost."""
        while True:
            try:
                for message in self._decoder.commit(count):
                    if not self._accept(message, batch):
                        return True
            except DataError as problem:  # the message was damaged, its length was not: read on
                self._fail_input(problem)
                count = 0
                continue
            except ProtocolError as problem:
                self._fail_input(problem)
                return False
            return True

    def _accept(self, message: Message, batch: list[Message]) -> bool:
        """Pass a message through the state machine; False at CLOSE."""
        try:
            reply = self.session.receive(message)
        except ProtocolError as problem:
            self._fail_input(problem)
            return not isinstance(message, Close)
        if reply is not None:
            # The reader never waits for the writer: an answer is small, so it may exceed the bound.
            self._enqueue(reply, force=True)
        if isinstance(message, Close):
            return False
        if self._input_error is None and not isinstance(message, Query):
            batch.append(message)
        return True

    def _await_bytes(self) -> None:
        """Wait for bytes; say in the log that we do, and give up after the idle timeout."""
        waited = 0.0
        idle = self._idle_timeout_s if self._idle_timeout_s is not None else float("inf")
        while not self._endpoint.readable(min(self._heartbeat_s, idle - waited)):
            waited += min(self._heartbeat_s, idle - waited)
            if waited >= idle:
                raise PeerLost(
                    f"The peer sent nothing for {waited:g} s (idle timeout) and no CLOSE; the scan counts as aborted."
                )
            LOG.info(
                "waiting for %g s, %d messages so far", waited, self.received,
                extra={"session": self.name, "received": self.received},
            )  # fmt: skip

    def _discard_input(self) -> None:
        """Drop bytes that cannot be framed until the peer has ended or is silent."""
        self._incoming.end()
        scratch = memoryview(bytearray(1 << 16))
        while self._endpoint.readable(LINGER_S) and self._endpoint.read_into(scratch):
            pass

    def _fail_input(self, problem: MrsiError, *, quiet: bool = False) -> None:
        """Keep the first thing that was wrong with the input."""
        if not quiet and not self._closing:
            LOG.error("%s", problem, extra={"session": self.name, "peer": self.peer.value})
        if self._input_error is None:
            self._input_error = problem

    # --- output ------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Serialise a message and queue it, waiting while too many bytes are queued.

        Once the peer is lost nothing is sent any more. While its input is still being processed this is silent (the end
        of `messages` tells, and what has come can still be kept); afterwards it raises, so that no work is done for
        nobody.

        Raises
        ------
        DataError
            If the message contradicts itself; nothing of it is sent.
        PeerLost
            If the peer takes no more bytes and all its input has been received.
        """
        if self._output_error is not None and self._input_done.is_set():
            raise PeerLost(f"The peer no longer takes results ({self._output_error}); they are not delivered.")
        if self.session.may_send(message) and not self.lost:
            self._enqueue(message)

    def _enqueue(self, message: Message, *, force: bool = False) -> None:
        """Give the writer the bytes of one whole message; CLOSE only once."""
        if isinstance(message, Close):
            if self._close_sent:
                return
            self._close_sent = True
        data = encode(message)
        self._start(self._writer)
        self._outgoing.put(data, len(data), force=force)
        self.sent += 1

    def _write(self) -> None:
        """Body of the writer thread."""
        while (data := self._outgoing.get()) is not None:
            try:
                self._endpoint.write(data)
            except OSError as problem:
                if not self._closing:
                    LOG.warning("the peer takes no more bytes: %s", problem, extra={"session": self.name})
                self._output_error = problem
                self._outgoing.discard()

    def finish(self) -> None:
        """Send what is queued and CLOSE (if it has not been sent), wait for the peer's CLOSE or end, and close."""
        if not self.lost:
            self._enqueue(Close())
        self._end_output()

    def fail(self, sentence: str) -> None:
        """Tell the peer that the session has failed, drain its input, and close.

        A console hears the reason at once, while the scan may still run; a Gadgetron loses an early ERROR (protocol 10)
        and gets it after its CLOSE. CLOSE always follows the drained input: a socket closed with unread bytes would
        destroy what the peer has not read yet. After the peer was lost, results that wait to be sent are dropped.
        """
        *reasons, close = failure_messages(self.peer, sentence)
        if self.peer is not Peer.GADGETRON and not self.lost:
            for message in reasons:
                self._enqueue(message, force=True)
            reasons = []
        self.drain()
        if self.lost:
            self._outgoing.clear()
        for message in (*reasons, close):
            self._enqueue(message, force=True)
        self._end_output()

    def _end_output(self) -> None:
        """Write what is queued, then wait for the input to end, and close."""
        self._outgoing.end()
        self._start(self._writer)
        while self._writer.is_alive():
            waiting = self._outgoing.waiting_bytes
            self._writer.join(self._idle_timeout_s)
            if self._writer.is_alive() and self._outgoing.waiting_bytes == waiting:
                self._output_error = TimeoutError(f"nothing was taken for {self._idle_timeout_s:g} s")
                break
        if self._output_error is None:
            self.drain()
            self._closing = True
            self._endpoint.end_output()
        self.close()

    def close(self) -> None:
        """Close the medium at once, without a word to the peer."""
        self._closing = True
        self._incoming.discard()
        self._outgoing.discard()
        self._outgoing.end()
        self._endpoint.close()

    def _start(self, thread: threading.Thread) -> None:
        """Start a thread unless it runs or has run."""
        with self._starting:
            if thread.ident is None:
                thread.start()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended."""

    peer: Peer
    failure: str | None
    """The sentence the peer was told, or None after a finished session."""
    lost: bool
    """The peer went away: whatever was computed is not a finished result."""
    received: int
    sent: int


def serve(connection: Connection, handler: Handler) -> Outcome:
    """Run a handler over a connection and end the session as its peer needs it.

    The handler gets the peer's messages and a function to send with. When it returns, CLOSE is sent; when it raises,
    the input is drained to CLOSE, the peer is told the reason in its dialect, then CLOSE. After a stream that ended
    without CLOSE nothing is sent that looks like a finished result.

    Returns
    -------
        How it ended. Errors do not come out of here: this is one of the two places where everything is caught.
    """
    log = {"session": connection.name}
    failure: str | None = None
    try:
        handler(connection.messages(), connection.send)
    except MrsiError as problem:
        failure = str(problem)
    except Exception as problem:  # outermost handler: a sentence for the peer, the traceback for the log
        LOG.exception("the handler failed", extra=log)
        failure = _unexpected(problem)
    if failure is None and (connection.peer is Peer.GADGETRON or connection.input_error is not None):
        # A Gadgetron may lose output whose module closes while input is unread; a client may wait for our CLOSE.
        connection.drain()
    if failure is None and connection.input_error is not None:
        failure = str(connection.input_error)
    try:
        if failure is None:
            connection.finish()
        else:
            LOG.error("session failed: %s", failure, extra=log)
            connection.fail(failure)
    finally:
        connection.close()
    LOG.info(
        "session ended, %d messages received, %d sent", connection.received, connection.sent,
        extra={**log, "peer": connection.peer.value, "failure": failure},
    )  # fmt: skip
    return Outcome(connection.peer, failure, connection.lost, connection.received, connection.sent)


def _unexpected(problem: Exception) -> str:
    """Turn an error nobody foresaw into one sentence."""
    if isinstance(problem, MemoryError):
        return "The reconstruction ran out of memory; use fewer coils, a smaller matrix or a machine with more memory."
    return (
        f"The reconstruction failed with an internal error ({type(problem).__name__}: {visible(str(problem), 500)}); "
        "the server's log has the details."
    )
