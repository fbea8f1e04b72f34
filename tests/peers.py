"""Small peers and messages for tests: what a Gadgetron or a raw client does at its end of a session."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mrsi_gadgets.errors import PeerLost
from mrsi_gadgets.stream.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    PIXEL_TYPES,
    WAVEFORM_HEADER,
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
from mrsi_gadgets.stream.wire import Decoder, encode

EXTERNAL_NODE_CONFIG = '<?xml version="1.0"?>\n<configuration>\n\t<chain/>\n</configuration>\n'
HEADER_XML = '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'
TIMEOUT_S = 10.0


def readout(
    channels: int = 3, samples: int = 5, *, dimensions: int = 0, counter: int = 0, stamp: int = 0, noise: bool = False
) -> Acquisition:
    """A readout whose every value is different."""
    head = np.zeros(1, ACQUISITION_HEADER)[0]
    head["version"] = 1
    head["scan_counter"] = counter
    head["acquisition_time_stamp"] = stamp
    head["number_of_samples"] = samples
    head["active_channels"] = head["available_channels"] = channels
    head["trajectory_dimensions"] = dimensions
    head["flags"] = Flag.IS_NOISE_MEASUREMENT.mask if noise else 0
    ramp = np.arange(channels * samples, dtype=np.float32).reshape(channels, samples) + counter
    data = (ramp - 1j * ramp[::-1]).astype(np.complex64)
    trajectory = np.arange(samples * dimensions, dtype=np.float32).reshape(samples, dimensions)
    return Acquisition(head, data, trajectory if dimensions else None)


def image(shape: tuple[int, int, int, int] = (2, 3, 4, 5), *, data_type: int = 5, attributes: str = "<meta/>") -> Image:
    """An image (channel, z, y, x) whose every pixel is different."""
    head = np.zeros(1, IMAGE_HEADER)[0]
    head["version"], head["data_type"], head["image_type"] = 1, data_type, 1
    head["channels"], head["matrix_size"] = shape[0], shape[:0:-1]
    head["attribute_string_len"] = len(attributes.encode())
    return Image(head, attributes, np.arange(np.prod(shape)).reshape(shape).astype(PIXEL_TYPES[data_type]))


def waveform(channels: int = 2, samples: int = 7) -> Waveform:
    head = np.zeros(1, WAVEFORM_HEADER)[0]
    head["version"], head["channels"], head["number_of_samples"], head["sample_time_us"] = 1, channels, samples, 2500
    return Waveform(head, np.arange(channels * samples, dtype=np.uint32).reshape(channels, samples))


def one_of_each() -> list[Message]:
    """Every message the codec knows."""
    return [
        ConfigFile("subspace"), ConfigText(EXTERNAL_NODE_CONFIG), Header(HEADER_XML), Query(7, "ismrmrd::version"),
        Response(7, "1"), Text("INFO    µ"), ErrorText("no µ"), readout(), readout(2, 3, dimensions=3, counter=2),
        readout(0, 0), waveform(), image(), image((1, 1, 3, 4), data_type=8, attributes="<a>µ</a>"), Close(),
    ]  # fmt: skip


def short_session() -> list[Message]:
    """The smallest complete scan."""
    return [ConfigText(EXTERNAL_NODE_CONFIG), Header(HEADER_XML), readout(2, 3, counter=1), waveform(1, 2), Close()]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that cannot block for ever."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    theirs.settimeout(TIMEOUT_S)
    return ours, theirs


def receive_until_end(sock: socket.socket) -> list[Message]:
    """Read messages until CLOSE or the end of the stream; CLOSE is included."""
    decoder = Decoder()
    messages: list[Message] = []
    while not decoder.closed:
        data = sock.recv(1 << 16)
        if not data:
            break
        messages.extend(decoder.feed(data))
    return messages


@dataclass
class GadgetronRecord:
    """What a Gadgetron would have made of its external module."""

    items: list[Message] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    illegal: list[Message] = field(default_factory=list)
    """Messages at which a real Gadgetron aborts with "illegal message id"."""
    closed: bool = False
    """The module answered CLOSE with CLOSE."""


class GadgetronSide(threading.Thread):
    """A Gadgetron whose external node is at the other end of a socket.

    Sends CONFIG (only the node's subtree), HEADER, the items and CLOSE from one thread while this one receives; ends
    the scan early when the module reports an ERROR, as the real one does.
    """

    def __init__(
        self,
        sock: socket.socket,
        items: Iterable[Message],
        *,
        header_xml: str = HEADER_XML,
        config: str = EXTERNAL_NODE_CONFIG,
    ) -> None:
        super().__init__(daemon=True)
        self._socket = sock
        self._messages: list[Message] = [ConfigText(config), Header(header_xml)]
        self._items = items
        self._stopped = threading.Event()
        self.record = GadgetronRecord()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self.start()

    def _send(self) -> None:
        try:
            for message in self._messages:
                self._socket.sendall(encode(message))
            for message in self._items:
                if self._stopped.is_set():
                    break
                self._socket.sendall(encode(message))
            self._socket.sendall(encode(Close()))
        except OSError:
            self._stopped.set()

    def run(self) -> None:
        self._sender.start()
        decoder = Decoder()
        try:
            while not decoder.closed:
                data = self._socket.recv(1 << 16)
                if not data:
                    break
                for message in decoder.feed(data):
                    self._take(message)
        except (OSError, PeerLost):
            pass
        self._sender.join(TIMEOUT_S)
        self._socket.close()

    def _take(self, message: Message) -> None:
        if isinstance(message, Close):
            self.record.closed = True
        elif isinstance(message, ErrorText):
            self.record.errors.append(message.text)
            self._stopped.set()
        elif isinstance(message, Text | Query | Response | ConfigFile | ConfigText | Header):
            self.record.illegal.append(message)
        else:
            self.record.items.append(message)

    def result(self, timeout_s: float = 3 * TIMEOUT_S) -> GadgetronRecord:
        """Wait for the end of the session."""
        self.join(timeout_s)
        assert not self.is_alive(), "the module did not end the session"
        return self.record
