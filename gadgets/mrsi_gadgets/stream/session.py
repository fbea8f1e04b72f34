"""The order of a session: which message may come in which state, who the peer is, and how to tell it of a failure.

States: CONFIG -> HEADER -> STREAM -> CLOSED. Everything that decides about order or dialect is in the tables and
functions of this file; nothing here touches bytes, sockets or threads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from enum import Enum

from mrsi_gadgets.errors import ProtocolError
from mrsi_gadgets.stream.messages import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    ErrorText,
    Flag,
    Header,
    Image,
    Message,
    Query,
    Response,
    Text,
    Waveform,
)

LOG = logging.getLogger("mrsi.stream")


class Peer(Enum):
    """Whom we talk to, which decides the words for a failure."""

    AUTO = "auto"
    """Not known yet: decided by the first message."""
    GADGETRON = "gadgetron"
    """A Gadgetron whose external node we are: ERROR then CLOSE, never TEXT."""
    FIRE = "fire"
    """A client (scanner console, FIRE, Gadgetron's own client, `mrsi replay`): TEXT then CLOSE, never ERROR."""


class Side(Enum):
    """Which end of the session we are."""

    SERVER = "server"
    CLIENT = "client"


class State(Enum):
    """What has been received so far."""

    CONFIG = "waiting for CONFIG"
    HEADER = "waiting for HEADER"
    STREAM = "receiving data"
    CLOSED = "closed"


NAMES: dict[type, str] = {
    ConfigFile: "CONFIG_FILE (1)", ConfigText: "CONFIG (2)", Header: "HEADER (3)", Close: "CLOSE (4)",
    Text: "TEXT (5)", Query: "QUERY (6)", Response: "RESPONSE (7)", ErrorText: "ERROR (8)",
    Acquisition: "ACQUISITION (1008)", Image: "IMAGE (1022)", Waveform: "WAVEFORM (1026)",
}  # fmt: skip

_DATA = dict.fromkeys((Acquisition, Waveform, Image, Text), State.STREAM)
_SERVER: dict[State, dict[type, State]] = {
    State.CONFIG: {
        ConfigFile: State.HEADER, ConfigText: State.HEADER, Query: State.CONFIG, Close: State.CLOSED,
    },
    # CONFIG then CLOSE without a header is legal: a client that only wanted an answer to a query.
    State.HEADER: {Header: State.STREAM, Query: State.HEADER, Close: State.CLOSED},
    State.STREAM: {**_DATA, Query: State.STREAM, Close: State.CLOSED},
    State.CLOSED: {},
}  # fmt: skip
"""What a server accepts: state -> message -> next state."""
_CLIENT: dict[State, dict[type, State]] = {
    State.STREAM: {**_DATA, Response: State.STREAM, ErrorText: State.STREAM, Close: State.CLOSED},
    State.CLOSED: {},
}
"""What a client accepts from its server."""

MOST_QUERIES = 1000
"""Queries in one session that are answered."""
_SKIPPED = (("<!--", "-->"), ("<![CDATA[", "]]>"))
"""What is no element, whatever it holds."""
_ELEMENT = re.compile(r"<(?:[\w.-]+:)?([\w.-]+)")
_DECLARATION_ONLY = re.compile(r"\s*<\?xml[^>]*\?>\s*")


def detect_peer(config: ConfigFile | ConfigText) -> Peer:
    """Tell from the configuration who sent it.

    A Gadgetron sends its external node only the node's ``<configuration>`` subtree, which holds our ``<chain>`` and no
    ``<stream>``, or a bare XML declaration where the node has no subtree. A whole stream configuration, a name, or any
    other text comes from a client.
    """
    if isinstance(config, ConfigFile):
        return Peer.FIRE
    if _DECLARATION_ONLY.fullmatch(config.text):
        return Peer.GADGETRON
    root, chain = "", False
    for name in _elements(config.text):
        root = root or name
        if root != "configuration" or name == "stream":
            return Peer.FIRE
        chain = chain or name == "chain"
    return Peer.GADGETRON if chain else Peer.FIRE


def _elements(text: str) -> Iterator[str]:
    """Yield the names of the elements of what may be XML, in one pass: whoever sends it also chooses its length."""
    at = text.find("<")
    while at >= 0:
        found = _ELEMENT.match(text, at)
        if found is not None:
            yield found[1]
        end = next((end for begin, end in _SKIPPED if text.startswith(begin, at)), "")
        at = text.find(end, at + 1) if end else at
        at = text.find("<", at + 1) if at >= 0 else at


def failure_messages(peer: Peer, sentence: str) -> tuple[Message, ...]:
    """Say in the peer's dialect that the session has failed: the reason, then CLOSE."""
    sentence = " ".join(sentence.split())
    if peer is Peer.GADGETRON:
        return ErrorText(sentence), Close()
    return Text(f"ERROR   {sentence}"), Close()


class Session:
    """State of one session, seen from our end.

    Parameters
    ----------
    peer
        Who is at the other end; AUTO until the configuration tells.
    side
        Which end we are.
    state
        Where to begin: STREAM when somebody else has already read CONFIG and HEADER. A client begins there anyway.
    config_optional
        Whether the stream may begin with HEADER, as the input of a pipe does.
    answers
        Query -> answer.
    """

    def __init__(
        self,
        peer: Peer = Peer.AUTO,
        *,
        side: Side = Side.SERVER,
        state: State = State.CONFIG,
        config_optional: bool = False,
        answers: Mapping[str, str] | None = None,
    ) -> None:
        self.peer = peer
        self.side = side
        self._table = {state: dict(row) for state, row in (_SERVER if side is Side.SERVER else _CLIENT).items()}
        if config_optional and side is Side.SERVER:
            self._table[State.CONFIG][Header] = State.STREAM
        self._state = State.STREAM if side is Side.CLIENT else state
        self._row = self._table[self._state]
        self._answers = dict(answers or {})
        self._channels: dict[bool, int] = {}
        self._last_channels = -1
        self._queries = 0

    @property
    def state(self) -> State:
        """What has been received so far."""
        return self._state

    def receive(self, message: Message) -> Response | None:
        """Take note of a message from the peer.

        Returns
        -------
            The answer to send at once, where the message was a query.

        Raises
        ------
        ProtocolError
            If the message must not come in this state. The stream can still be read on.
        """
        kind = type(message)
        after = self._row.get(kind)
        if after is None:
            raise ProtocolError(self._refusal(kind))
        if after is not self._state:
            self._state, self._row = after, self._table[after]
        if kind is Acquisition:
            # Nearly every readout has as many channels as the last one: one comparison is all it costs.
            if message.data.shape[0] != self._last_channels:  # type: ignore[union-attr]
                self._note_channels(message)  # type: ignore[arg-type]
        elif kind is Query:
            return self._answer(message)  # type: ignore[arg-type]
        elif self.peer is Peer.AUTO and kind in (ConfigFile, ConfigText):
            self.peer = detect_peer(message)  # type: ignore[arg-type]
            LOG.info("the peer speaks the dialect of %s", self.peer.value, extra={"peer": self.peer.value})
        return None

    def _refusal(self, kind: type) -> str:
        """Say why a message must not come now."""
        name = NAMES[kind]
        if self._state is State.CLOSED:
            return f"{name} came after CLOSE; the peer must not send anything after its CLOSE."
        if kind in (ConfigFile, ConfigText) and self.side is Side.SERVER:
            return f"A second configuration, {name}, came in one session; open a new connection for another scan."
        if kind is Header and self._state is State.STREAM and self.side is Side.SERVER:
            return "A second HEADER (3) came in one session; open a new connection for another scan."
        expected = ", ".join(NAMES[kind] for kind in self._row)
        return f"{name} came while the session was {self._state.value}; expected was one of {expected}."

    def _answer(self, query: Query) -> Response | None:
        """Answer a query of a client; a Gadgetron would abort at a RESPONSE."""
        self._queries += 1
        if self._queries > MOST_QUERIES:  # answers to a peer that does not read them wait in memory
            raise ProtocolError(f"More than {MOST_QUERIES} queries came in one session; ask each once.")
        if self.peer is Peer.GADGETRON:
            LOG.warning("a query from a Gadgetron is not answered (%d characters)", len(query.text))
            return None
        known = ", ".join(sorted(self._answers)) or "none"
        return Response(query.correlation, self._answers.get(query.text, f"unknown query; known are: {known}"))

    def _note_channels(self, readout: Acquisition) -> None:
        """Warn when the number of channels changes among the noise scans or among the other readouts."""
        channels = self._last_channels = readout.data.shape[0]
        noise = readout.has(Flag.IS_NOISE_MEASUREMENT)
        before = self._channels.setdefault(noise, channels)
        if before != channels:
            self._channels[noise] = channels
            LOG.warning(
                "readout %d has %d channels, those of its kind before it had %d",
                int(readout.head["scan_counter"]), channels, before,
            )  # fmt: skip

    def may_send(self, message: Message) -> bool:
        """Tell whether the peer can take a message; texts for a Gadgetron stay in our log.

        Raises
        ------
        ProtocolError
            If the message is never sent in this direction.
        """
        if self.side is Side.CLIENT:
            if isinstance(message, Response | ErrorText):
                raise ProtocolError(f"{NAMES[type(message)]} is never sent by a client.")
            return True
        if isinstance(message, ConfigFile | ConfigText | Header | Query | Close):
            # CLOSE is the connection's own: it follows when the handler has returned.
            raise ProtocolError(f"{NAMES[type(message)]} is never sent by a server's handler.")
        if self.peer is Peer.GADGETRON:
            if isinstance(message, Text):
                LOG.info("not sent to a Gadgetron, which aborts at TEXT: %s", message.text)
            return not isinstance(message, Text | Response)
        if isinstance(message, ErrorText):
            raise ProtocolError("ERROR (8) is only sent to a Gadgetron; a client gets TEXT.")
        return True
