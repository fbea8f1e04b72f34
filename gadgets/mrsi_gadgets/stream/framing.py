"""Where one message ends and the next begins: ids, lengths and limits, without any I/O and without parsing.

A message is a little-endian ``uint16`` id and a body whose length only the id's own layout tells. An id that is not
in the table here therefore ends the session: nobody can know where the next message starts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from mrsi_gadgets.errors import ProtocolError
from mrsi_gadgets.stream.limits import Limits
from mrsi_gadgets.stream.messages import PIXEL_TYPES, Flag

ID_BYTES = 2
CONFIG_NAME_BYTES = 1024
ACQUISITION_HEADER_BYTES = 340
IMAGE_HEADER_BYTES = 198
WAVEFORM_HEADER_BYTES = 40


class MessageId(IntEnum):
    """The message numbers this program reads and writes."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


UNSUPPORTED = {
    1012: "DICOM", 1018: "DICOM_WITHNAME", 1019: "DEPENDENCY_QUERY", 1023: "RECONDATA", 1024: "IMAGE_ARRAY",
    1030: "NDARRAY", 1050: "BUCKET", 1051: "BUNDLE",
}  # fmt: skip
"""Numbers that MRD peers know and this program does not read, for a helpful refusal."""

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_QUERY = struct.Struct("<QQQ")
_RESPONSE = struct.Struct("<QQ")
_ACQUISITION = struct.Struct("<2xQ24xH2xH136xH")  # flags, number_of_samples, active_channels, trajectory_dimensions
_IMAGE = struct.Struct("<2xH12x3H12xH")  # data_type, matrix_size, channels
_WAVEFORM = struct.Struct("<28xHH")  # number_of_samples, channels
_COMPRESSED = ((Flag.COMPRESSION4.mask << 1) - 1) & ~(Flag.COMPRESSION1.mask - 1)

Buffer = bytes | bytearray | memoryview


def _check(value: int, limit: int, what: str, offset: int) -> int:
    """Return `value` when it is within `limit`."""
    if value > limit:
        raise ProtocolError(
            f"The message at byte {offset} of the stream announces {value} {what}, more than the limit of {limit}; "
            "either the stream is damaged or the limit of the receiver has to be raised."
        )
    return value


def _name_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    return CONFIG_NAME_BYTES


def _empty_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    return 0


def _text_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    return 4 + _check(_UINT32.unpack_from(body, start)[0], limits.text_bytes, "bytes of text", offset)


def _error_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    return 8 + _check(_UINT64.unpack_from(body, start)[0], limits.text_bytes, "bytes of text", offset)


def _query_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    return 24 + _check(_QUERY.unpack_from(body, start)[2], limits.text_bytes, "bytes of query", offset)


def _response_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    return 16 + _check(_RESPONSE.unpack_from(body, start)[1], limits.text_bytes, "bytes of response", offset)


def _acquisition_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    flags, samples, channels, dimensions = _ACQUISITION.unpack_from(body, start)
    if flags & _COMPRESSED:
        raise ProtocolError(
            f"The readout at byte {offset} of the stream is compressed (flags 53 to 56), which this program does not "
            "read; switch compression off at the sender."
        )
    array_bytes = 4 * samples * dimensions + 8 * samples * channels
    if channels > limits.channels or dimensions > limits.trajectory_dimensions or array_bytes > limits.array_bytes:
        _check(channels, limits.channels, "receive channels", offset)
        _check(dimensions, limits.trajectory_dimensions, "trajectory dimensions", offset)
        _check(array_bytes, limits.array_bytes, "bytes of samples", offset)
    return ACQUISITION_HEADER_BYTES + array_bytes


def _image_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    data_type, nx, ny, nz, channels = _IMAGE.unpack_from(body, start)
    if data_type not in PIXEL_TYPES:
        raise ProtocolError(
            f"The image at byte {offset} of the stream has data_type {data_type}; MRD knows 1 to 8, so the stream is "
            "damaged or not MRD 1.x."
        )
    attributes = _UINT64.unpack_from(body, start + IMAGE_HEADER_BYTES)[0]
    _check(attributes, limits.attribute_bytes, "bytes of image attributes", offset)
    _check(channels, limits.channels, "image channels", offset)
    pixels = nx * ny * nz * channels * PIXEL_TYPES[data_type].itemsize
    return IMAGE_HEADER_BYTES + 8 + attributes + _check(pixels, limits.array_bytes, "bytes of pixels", offset)


def _waveform_length(body: Buffer, start: int, limits: Limits, offset: int) -> int:
    samples, channels = _WAVEFORM.unpack_from(body, start)
    _check(channels, limits.channels, "waveform channels", offset)
    return WAVEFORM_HEADER_BYTES + _check(4 * samples * channels, limits.array_bytes, "bytes of waveform", offset)


_LAYOUT: dict[int, tuple[int, Callable[[Buffer, int, Limits, int], int]]] = {
    MessageId.CONFIG_FILE.value: (0, _name_length),
    MessageId.CONFIG_TEXT.value: (4, _text_length),
    MessageId.HEADER.value: (4, _text_length),
    MessageId.CLOSE.value: (0, _empty_length),
    MessageId.TEXT.value: (4, _text_length),
    MessageId.QUERY.value: (24, _query_length),
    MessageId.RESPONSE.value: (16, _response_length),
    MessageId.ERROR.value: (8, _error_length),
    MessageId.ACQUISITION.value: (ACQUISITION_HEADER_BYTES, _acquisition_length),
    MessageId.IMAGE.value: (IMAGE_HEADER_BYTES + 8, _image_length),
    MessageId.WAVEFORM.value: (WAVEFORM_HEADER_BYTES, _waveform_length),
}
"""Message number -> bytes of the body that tell its length, and the function that reads it from them."""

LONGEST_PREFIX = ID_BYTES + max(fixed for fixed, _ in _LAYOUT.values())
"""So many bytes of a message always tell its length."""


def message_number(data: Buffer, start: int) -> int:
    """Read the id at `start`."""
    return data[start] | data[start + 1] << 8


def message_length(data: Buffer, start: int, stop: int, limits: Limits, offset: int) -> int | None:
    """Tell how long the message that begins at `start` is, its id included.

    Parameters
    ----------
    data
        Bytes of the stream; those from `start` to `stop` have arrived.
    start, stop
        Range of `data` that may be read.
    limits
        What the message may announce.
    offset
        Position of the message in the stream, for error messages.

    Returns
    -------
        Length in bytes, or None while too little has arrived to know.

    Raises
    ------
    ProtocolError
        If the id is unknown, a limit is exceeded or a readout is compressed: framing is lost.
    """
    available = stop - start
    if available < ID_BYTES:
        return None
    number = data[start] | data[start + 1] << 8
    layout = _LAYOUT.get(number)
    if layout is None:
        raise ProtocolError(_unknown(number, offset))
    fixed, body_length = layout
    if available < ID_BYTES + fixed:
        return None
    return ID_BYTES + body_length(data, start + ID_BYTES, limits, offset)


def _unknown(number: int, offset: int) -> str:
    """Say that a message number cannot be read."""
    if number in UNSUPPORTED:
        return (
            f"Message {number} ({UNSUPPORTED[number]}) at byte {offset} of the stream is not supported; send plain "
            "readouts (1008), waveforms (1026) and images (1022) instead."
        )
    return (
        f"Message number {number} at byte {offset} of the stream is unknown and has no length, so the stream cannot be "
        "read further; check that the peer speaks the MRD 1.x streaming protocol."
    )


class FrameScanner:
    """Follow message boundaries in bytes that merely pass through.

    A supervising process that relays a session uses one per direction: `advance` tells up to where a chunk completes
    whole messages, so that only those are passed on and a failure report never lands inside a message.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._prefix = bytearray()
        self._body_left = 0
        self._number = 0
        self._length = 0
        self.offset = 0
        """Bytes of whole messages seen."""
        self.messages = 0
        """Whole messages seen."""
        self.readouts = 0
        """Whole readouts, and images, among them."""
        self.closed = False
        """CLOSE has been seen."""
        self.framing_lost = False
        """A message that cannot be framed has been met; nothing after it can be followed."""

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes seen so far end with a whole message."""
        return not self._prefix and not self._body_left and not self.framing_lost

    def advance(self, chunk: Buffer) -> int:
        """Take the next bytes of the stream.

        Parameters
        ----------
        chunk
            The bytes, in any portion.

        Returns
        -------
            Length of the part of `chunk` up to which messages are whole; 0 when none ends in it.

        Raises
        ------
        ProtocolError
            If a message cannot be framed; `framing_lost` is set.
        """
        if self.framing_lost:
            raise ProtocolError("The stream cannot be followed after a message that could not be framed.")
        position, boundary, size = 0, 0, len(chunk)
        while position < size:
            if not self._body_left:
                position = self._begin(chunk, position)
                if not self._body_left:
                    break
            step = min(self._body_left, size - position)
            position += step
            self._body_left -= step
            if not self._body_left:
                boundary = position
                self._finish_message()
        return boundary

    def _begin(self, chunk: Buffer, position: int) -> int:
        """Read the length of the message at `position`; return where its remaining body begins."""
        had = len(self._prefix)
        taken = min(LONGEST_PREFIX - had, len(chunk) - position)
        # The common case, a whole prefix in one chunk, is measured in place.
        data: Buffer = chunk
        start, stop = position, position + taken
        if had:
            data = self._prefix + chunk[position : position + taken]
            start, stop = 0, len(data)
        try:
            length = message_length(data, start, stop, self._limits, self.offset)
        except ProtocolError:
            self.framing_lost = True
            raise
        if length is None:
            self._prefix += chunk[position : position + taken]
            return position + taken
        self._number, self._length = message_number(data, start), length
        self._prefix.clear()
        self._body_left = length - had
        return position

    def _finish_message(self) -> None:
        """Count the message that has just ended."""
        self.messages += 1
        self.offset += self._length
        if self._number in (MessageId.ACQUISITION, MessageId.IMAGE):
            self.readouts += 1
        elif self._number == MessageId.CLOSE:
            self.closed = True
