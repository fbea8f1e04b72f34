"""The scanner's side of a session: stream one scan to any MRD server and collect what comes back."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from mrsi_gadgets.errors import ConfigError, DataError, MrsiError, PeerLost, ProtocolError
from mrsi_gadgets.stream.limits import MEBIBYTE, Limits
from mrsi_gadgets.stream.messages import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    ErrorText,
    Header,
    Image,
    Message,
    Text,
)
from mrsi_gadgets.stream.session import Peer, Session, Side
from mrsi_gadgets.stream.transport import Connection

LOG = logging.getLogger("mrsi.stream")
CONNECT_TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 60.0
"""A replay at the pace of the scan waits no longer between two readouts."""
SEND_QUEUE_BYTES = 4 * MEBIBYTE
"""Small, so that progress means bytes the server has taken."""

_ERROR_TEXT = re.compile(r"(?:ERROR|CRITICAL)\s+(?P<fire>.*)|\[[^\]]*\]\s*ERROR:\s*(?P<gadgetron>.*)", re.DOTALL)
"""How a FIRE-like server and a Gadgetron begin the TEXT that reports a failure."""


class ServerError(MrsiError):
    """The server said that it could not finish the scan; the message is its own sentence."""


@dataclass(slots=True)
class ScanResult:
    """What a server returned for one scan."""

    images: list[Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Console texts other than errors, with their level prefix."""
    others: list[Message] = field(default_factory=list)
    """Whatever else came: readouts and waveforms."""
    sent: int = 0
    """Items sent."""
    latency_s: float = float("nan")
    """From the last item handed to the network to the last image received [s]; NaN without an image."""


def send_scan(
    host: str,
    port: int,
    *,
    header_xml: str,
    items: Iterable[Message],
    config_name: str | None = None,
    config_text: str | None = None,
    parameters: Mapping[str, object] | None = None,
    on_message: Callable[[Message], None] | None = None,
    progress: Callable[[int], None] | None = None,
    realtime_tick_s: float | None = None,
    idle_timeout_s: float | None = None,
    limits: Limits | None = None,
) -> ScanResult:
    """Stream a scan to a server and wait until it has sent everything.

    Items are sent by one thread while this one receives, so neither side can block the other.

    Parameters
    ----------
    host, port
        Where the server listens.
    header_xml
        ISMRMRD header.
    items
        Readouts, waveforms and images in the order of the scan; consumed in the sending thread.
    config_name, config_text
        The recipe: by the name the server knows it by, or whole. Exactly one of them.
    parameters
        JSON parameters, sent as TEXT right after the header (FIRE and Open Recon do so).
    on_message
        Called for every message that comes, in this thread.
    progress
        Called in the sending thread with the number of items sent so far.
    realtime_tick_s
        Unit of `acquisition_time_stamp` [s]: readouts are then sent at the pace of the scan. None sends at once.
    idle_timeout_s
        Give the server up for lost after so long without a byte from it; None waits for ever.
    limits
        What a message from the server may announce.

    Raises
    ------
    ConfigError
        If nobody listens there, or not exactly one of the configurations is given.
    ServerError
        If the server reported an error; raised once it has closed the session.
    PeerLost
        If the server went away without CLOSE.
    """
    config = _configuration(config_name, config_text)
    connection = Connection(
        connect(host, port),
        session=Session(Peer.FIRE, side=Side.CLIENT),
        limits=limits,
        name=f"client of {host}:{port}",
        idle_timeout_s=idle_timeout_s,
        queue_bytes=SEND_QUEUE_BYTES,
    )
    opening: list[Message] = [config, Header(header_xml)]
    if parameters is not None:
        opening.append(Text(json.dumps({"version": "1.1.0", "parameters": dict(parameters)})))
    with connection:
        sender = _Sender(connection, opening, items, progress, realtime_tick_s)
        sender.start()
        try:
            result, failure = _receive(connection, sender, on_message)
        finally:
            sender.stop()
        if connection.input_error is None and sender.error is None:
            sender.join()
            connection.finish()
    if sender.error is not None:
        raise sender.error
    if failure is not None:
        raise ServerError(failure)
    if isinstance(connection.input_error, PeerLost):
        raise PeerLost(
            f"The server at {host}:{port} ended the connection without CLOSE; its log says why."
        ) from connection.input_error
    if connection.input_error is not None:
        raise connection.input_error
    return result


def paced(
    items: Iterable[Message],
    tick_s: float,
    *,
    wait: Callable[[float], object] = time.sleep,
    tell: Callable[[str], None] = LOG.warning,
) -> Iterator[Message]:
    """Yield `items`, each readout when its time stamp says so, counted from the first; late ones at once.

    Stamps may pass 2^32, where they begin again. A pause longer than `LONGEST_PAUSE_S` is cut to that.

    Parameters
    ----------
    items
        Messages in their order.
    tick_s
        Unit of `acquisition_time_stamp` [s].
    wait
        Sleeps.
    tell
        Takes one sentence where a pause was cut.
    """
    start, due_s = 0.0, 0.0
    latest: int | None = None
    told = False
    for item in items:
        if isinstance(item, Acquisition):
            stamp = int(item.head["acquisition_time_stamp"])
            if latest is None:
                start, latest = time.perf_counter(), stamp
            step_s = _signed(stamp - latest) * tick_s
            if step_s > LONGEST_PAUSE_S and not told:
                told = True
                tell(
                    f"the time stamps of the scan hold a pause of {step_s:.0f} s before readout "
                    f"{int(item.head['scan_counter'])}; pauses longer than {LONGEST_PAUSE_S:g} s are cut to that"
                )
            # a stamp that is a little behind is of a late readout; one that is far behind begins a new count
            if step_s > 0 or step_s < -LONGEST_PAUSE_S:
                latest = stamp
            due_s += min(max(step_s, 0.0), LONGEST_PAUSE_S)
            delay = start + due_s - time.perf_counter()
            if delay > 0:
                wait(delay)
        yield item


def _signed(difference: int) -> int:
    """Return a difference of 32-bit stamps as the nearer of what it can mean, before or after."""
    return (difference + (1 << 31)) % (1 << 32) - (1 << 31)


def connect(host: str, port: int, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Open a connection to a server.

    Raises
    ------
    ConfigError
        If the host is unknown, or nobody listens at the port.
    """
    try:
        return socket.create_connection((host, port), timeout_s)
    except socket.gaierror as problem:
        raise ConfigError(f"The host {host!r} is unknown ({problem.strerror}); check its name.") from problem
    except (OSError, OverflowError) as problem:
        raise ConfigError(
            f"No server answers at {host}:{port} ({problem}); start one there with `mrsi serve --port {port}` or "
            "correct the address."
        ) from problem


def _configuration(name: str | None, text: str | None) -> ConfigFile | ConfigText:
    if name is not None and text is None:
        return ConfigFile(name)
    if text is not None and name is None:
        return ConfigText(text)
    raise ConfigError("A scan is sent with either the name of a recipe or its text; give exactly one of them.")


class _Sender(threading.Thread):
    """Sends configuration, header, items and CLOSE, at the pace of the scan where asked to."""

    def __init__(
        self,
        connection: Connection,
        opening: list[Message],
        items: Iterable[Message],
        progress: Callable[[int], None] | None,
        tick_s: float | None,
    ) -> None:
        super().__init__(name="scan sender", daemon=True)
        self._connection = connection
        self._opening = opening
        self._stopped = threading.Event()
        self._items = paced(items, tick_s, wait=self._stopped.wait) if tick_s else items
        self._progress = progress
        self.error: Exception | None = None
        self.count = 0
        self.last_sent = float("nan")

    def run(self) -> None:
        try:
            self._send_all()
        except PeerLost:
            LOG.info("the server takes no more items, %d were sent", self.count)  # the receiving thread learns why
        except Exception as problem:  # noqa: BLE001 - handed to the thread that waits for the result
            self.error = problem
            # Without CLOSE the server knows that the scan was aborted.
            self._connection.close()

    def _send_all(self) -> None:
        for message in self._opening:
            self._connection.send(message)
        for item in self._items:
            if self._stopped.is_set():
                return
            self._connection.send(item)
            self.count += 1
            if self._progress is not None:
                self._progress(self.count)
        self._connection.send(Close())
        self.last_sent = time.perf_counter()

    def stop(self) -> None:
        """Send no more items; a thread that is just reading one ends after it."""
        self._stopped.set()


def _receive(
    connection: Connection, sender: _Sender, on_message: Callable[[Message], None] | None
) -> tuple[ScanResult, str | None]:
    """Collect messages until the server's CLOSE or what ends its stream, and its sentence if it reported a failure."""
    result = ScanResult()
    failure: str | None = None
    last_image = float("nan")
    # What is wrong with the input stays in the connection: a sentence of the server's own says more.
    with suppress(ProtocolError, DataError):
        for message in connection.messages():
            reported = _error_sentence(message)
            if reported is not None:
                failure = failure or reported
            elif isinstance(message, Image):
                last_image = time.perf_counter()
                result.images.append(message)
            elif isinstance(message, Text):
                result.texts.append(message.text)
            else:
                result.others.append(message)
            if on_message is not None:
                on_message(message)
    result.sent = sender.count
    result.latency_s = last_image - sender.last_sent
    return result, failure


def _error_sentence(message: Message) -> str | None:
    """Return the server's sentence if the message reports a failure."""
    if isinstance(message, ErrorText):
        return message.text
    if isinstance(message, Text):
        found = _ERROR_TEXT.fullmatch(message.text.strip())
        if found:
            return (found["fire"] or found["gadgetron"] or "").strip()
    return None
