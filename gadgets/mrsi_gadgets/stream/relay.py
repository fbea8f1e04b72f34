"""Pass a session on to a worker process, and speak for the worker when it dies.

The supervising process holds the client's socket and one end of a socket pair; the worker runs `transport.serve` over
the other end. Bytes pass through unparsed, but message boundaries are followed in both directions: only whole
messages reach the client, and a failure report comes after the client's input has been read to its CLOSE.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from mrsi_gadgets.errors import MrsiError, ProtocolError
from mrsi_gadgets.stream.endpoints import LINGER_S, SocketEndpoint
from mrsi_gadgets.stream.framing import FrameScanner
from mrsi_gadgets.stream.limits import MEBIBYTE, Limits
from mrsi_gadgets.stream.messages import ConfigFile, ConfigText, Query, Text
from mrsi_gadgets.stream.serialisation import encode
from mrsi_gadgets.stream.session import Peer, detect_peer, failure_messages
from mrsi_gadgets.stream.wire import Decoder

LOG = logging.getLogger("mrsi.stream")
CHUNK_BYTES = MEBIBYTE
LOOKED_AT_BYTES = MEBIBYTE
"""A configuration that says who its peer is is shorter than this; longer ones are left to the worker."""
POLL_S = 0.1
"""How soon the thread towards the worker notices that the worker is gone, and how often the worker is looked at."""

Keep = Callable[[memoryview], None]
"""Takes the client's bytes, as far as they can be framed, before anybody processes them; must not raise."""


class PeerWatch:
    """Learn from the first message of passing bytes who the peer is.

    A message longer than `LOOKED_AT_BYTES` tells nothing: this runs in the process that all sessions share.
    """

    def __init__(self, peer: Peer, limits: Limits | None = None) -> None:
        self.peer = peer
        limits = limits or Limits()
        most = min(limits.text_bytes, LOOKED_AT_BYTES)
        looked_at = replace(limits, text_bytes=most, attribute_bytes=most, array_bytes=most)
        self._decoder = Decoder(looked_at) if peer is Peer.AUTO else None

    def look(self, chunk: memoryview) -> None:
        """Take the next bytes of the stream; free once the configuration has come."""
        if self._decoder is None:
            return
        try:
            for message in self._decoder.feed(chunk):
                if isinstance(message, ConfigFile | ConfigText):
                    self.peer = detect_peer(message)
                if not isinstance(message, Query):
                    self._decoder = None
                    return
        except MrsiError:
            self._decoder = None  # whatever is wrong is reported by whoever parses the session


def report_failure(
    sock: socket.socket,
    peer: Peer,
    sentence: str,
    scanner: FrameScanner | None = None,
    limits: Limits | None = None,
    *,
    idle_timeout_s: float | None = None,
    keep: Keep | None = None,
) -> None:
    """Tell a peer that its session has failed, and close its socket.

    A console hears the reason as soon as it is known to be one. The peer's input is read and dropped to its CLOSE (to
    its end, to the idle timeout, or to two seconds of silence where framing is lost), then a Gadgetron gets the reason,
    then CLOSE follows. Our own output must be at a message boundary.

    Parameters
    ----------
    sock
        The peer's socket.
    peer
        Who it is; AUTO is decided by the configuration among the bytes still to be read, if it is there.
    sentence
        What went wrong and what to do.
    scanner
        Where in its input the peer is; by default nothing has been read yet.
    limits
        What a message may announce, for a session that has not begun yet.
    idle_timeout_s
        Give up a peer that sends nothing for so long; None waits for ever.
    keep
        Gets what the peer still sends.
    """
    scanner = scanner or FrameScanner(limits)
    watch = PeerWatch(peer, limits)
    endpoint = SocketEndpoint(sock, float("inf") if idle_timeout_s is None else idle_timeout_s)
    space = memoryview(bytearray(CHUNK_BYTES))
    told = False
    with suppress(OSError):
        while not scanner.closed:
            if not told and watch.peer is Peer.FIRE:
                endpoint.write(encode(failure_messages(watch.peer, sentence)[0]))
                told = True
            patience_s = LINGER_S if scanner.framing_lost else idle_timeout_s
            if patience_s is not None and not endpoint.readable(patience_s):
                break
            count = endpoint.read_into(space)
            if not count:
                break
            take_bytes(scanner, space[:count], keep)
            watch.look(space[:count])
    send_failure(endpoint, watch.peer, sentence, told=told)


def send_failure(endpoint: SocketEndpoint, peer: Peer, sentence: str, *, told: bool = False) -> None:
    """Send the reason (unless it has been `told`) and CLOSE in the peer's dialect, let them be read, and close."""
    LOG.error("session failed: %s", sentence, extra={"peer": peer.value})
    try:
        messages = failure_messages(peer, sentence)[int(told) :]
        endpoint.write(b"".join(encode(message) for message in messages))
        endpoint.end_output()
    except OSError as problem:
        LOG.warning("the peer could not be told: %s", problem)
    endpoint.close()


def take_bytes(scanner: FrameScanner, chunk: memoryview, keep: Keep | None) -> None:
    """Have the client's bytes kept and follow their boundaries; behind CLOSE or lost framing they mean nothing."""
    if scanner.framing_lost or scanner.closed:
        return
    if keep is not None:
        keep(chunk)
    with suppress(ProtocolError):  # the worker, which parses, reports it; the scanner remembers it
        scanner.advance(chunk)


class Relay:
    """Both directions between a client and a worker.

    ``run()`` comes back when the worker has ended its output. Then either it sent CLOSE and ``close()`` is due, or it
    died and ``report_failure(sentence)`` tells the client.

    Parameters
    ----------
    client
        Socket of the client.
    worker
        Our end of the socket pair whose other end the worker serves. The worker must hold no other copy of ours.
    peer
        Who the client is; AUTO until the configuration has passed.
    limits
        What a message may announce.
    idle_timeout_s
        Let go of a client that has sent nothing for so long when the worker has ended its output, or that takes no
        byte for so long; None waits for its CLOSE, and `STALL_S` for its reading.
    keep
        Gets the client's bytes before the worker does.
    watch
        Called at least every `POLL_S` while the worker runs and the client takes its output, with the bytes that have
        come from the worker and whether nothing more comes from the client; may end the worker.
    """

    def __init__(
        self,
        client: socket.socket,
        worker: socket.socket,
        *,
        peer: Peer = Peer.AUTO,
        limits: Limits | None = None,
        idle_timeout_s: float | None = None,
        keep: Keep | None = None,
        watch: Callable[[int, bool], None] | None = None,
    ) -> None:
        self._keep = keep
        self._look_at_worker = watch or (lambda passed, scan_ended: None)
        self._passed = 0
        self._notices: deque[str] = deque()
        self._idle_timeout_s = idle_timeout_s if idle_timeout_s is not None else float("inf")
        self._client = SocketEndpoint(client, self._idle_timeout_s)
        self._worker_socket = worker
        self._worker = SocketEndpoint(worker)
        self._watch = PeerWatch(peer, limits)
        self._up = FrameScanner(limits)
        self._down = FrameScanner(limits)
        self._worker_gone = threading.Event()
        self._cut = threading.Event()
        self._held = bytearray()
        self._upward = threading.Thread(target=self._pass_up, name="relay to worker", daemon=True)
        self._client_deaf = False
        self.client_lost = False
        """The client's stream ended without CLOSE, or it takes no more bytes."""

    @property
    def peer(self) -> Peer:
        """Who the client is, as far as is known."""
        return self._watch.peer

    @property
    def received(self) -> int:
        """Whole messages from the client so far."""
        return self._up.messages

    @property
    def readouts(self) -> int:
        """Whole readouts from the client so far."""
        return self._up.readouts

    @property
    def closed_by_client(self) -> bool:
        """Whether the client's CLOSE has come."""
        return self._up.closed

    def tell(self, sentence: str) -> None:
        """Warn the client at the next occasion; a Gadgetron, which aborts at a text, hears nothing."""
        self._notices.append(sentence)

    def cut(self) -> None:
        """Stop waiting for the CLOSE of a client whose worker is gone: the server stops, a scan may go on for long."""
        self._cut.set()

    def run(self) -> bool:
        """Pass bytes until the worker ends its output.

        Returns
        -------
            True when the worker's last message was CLOSE, False when it died or wrote what is no message.
        """
        self._upward.start()
        space = memoryview(bytearray(CHUNK_BYTES))
        try:
            while True:
                if self._worker.readable(POLL_S):
                    count = self._worker.read_into(space)
                    if not count:
                        break
                    self._passed += count
                    self._pass_down(space[:count])
                else:
                    self._pass_notices()
                self._look_at_worker(self._passed, self._up.closed or not self._upward.is_alive())
        except OSError as problem:  # a worker that died with unread input resets the pair
            LOG.warning("the worker's socket failed: %s", problem)
        except ProtocolError as problem:
            LOG.error("the worker wrote what is no message: %s", problem)
        self._worker_gone.set()
        return self._down.closed

    def _pass_down(self, chunk: memoryview) -> None:
        """Send the client the messages that are whole, keep the rest."""
        boundary = self._down.advance(chunk)
        if not boundary:
            self._held += chunk
            return
        whole = bytes(self._held) + bytes(chunk[:boundary])
        self._held = bytearray(chunk[boundary:])
        self._pass_notices()
        self._write(whole)

    def _pass_notices(self) -> None:
        """Send the warnings that wait, once it is known that the client can read them; between whole messages."""
        while self._notices and self.peer is Peer.FIRE:
            self._write(encode(Text(f"WARNING {self._notices.popleft()}")))

    def _write(self, whole: bytes) -> None:
        """Send whole messages to a client that still takes them."""
        if self._client_deaf:
            return
        try:
            self._client.write(whole)
        except OSError as problem:
            LOG.warning("the client takes no more bytes: %s", problem)
            self._client_deaf = self.client_lost = True

    def _pass_up(self) -> None:
        """Body of the thread towards the worker: forward, or only drain once the worker is gone."""
        space = memoryview(bytearray(CHUNK_BYTES))
        quiet_s = 0.0
        with suppress(OSError):
            while not (
                self._worker_gone.is_set() and (self._up.closed or self._cut.is_set() or quiet_s >= self._patience_s)
            ):
                if not self._client.readable(POLL_S):
                    quiet_s += POLL_S
                    continue
                quiet_s = 0.0
                count = self._client.read_into(space)
                if not count:
                    break
                take_bytes(self._up, space[:count], self._keep)
                self._watch.look(space[:count])
                self._forward(space[:count])
        self.client_lost = self.client_lost or not (self._up.closed or self._cut.is_set())
        with suppress(OSError):
            self._worker_socket.shutdown(socket.SHUT_WR)

    @property
    def _patience_s(self) -> float:
        """How long a client may be silent once the worker is gone."""
        return LINGER_S if self._up.framing_lost else self._idle_timeout_s

    def _forward(self, chunk: memoryview) -> None:
        """Give the worker the bytes, unless it is gone."""
        if self._worker_gone.is_set():
            return
        try:
            self._worker_socket.sendall(chunk)
        except OSError:
            self._worker_gone.set()

    def report_failure(self, sentence: str) -> None:
        """Tell the client the reason in its dialect, drain its input to its CLOSE, CLOSE, and close both sockets.

        A console hears the reason at once, while its scan may still run; a Gadgetron would lose an early ERROR.
        """
        self._worker_gone.set()
        self._pass_notices()
        told = self.peer is Peer.FIRE
        if told:
            with suppress(OSError):  # a client that takes no more bytes is told nothing; `send_failure` logs it
                self._client.write(encode(failure_messages(self.peer, sentence)[0]))
        self._upward.join()
        send_failure(self._client, self.peer, sentence, told=told)
        self._worker.close()

    def close(self) -> None:
        """End a session that the worker has finished: let the client read everything, then close both sockets."""
        self._worker_gone.set()
        self._upward.join()
        self._client.end_output()
        self._client.close()
        self._worker.close()
