"""Bytes to messages and messages to bytes (MRD 1.x streaming), without any I/O.

`Decoder` is fed with bytes in any portions, over a buffer that a socket can receive into directly; `encode` gives the
bytes of one message. Headers and arrays that come out are own, writable memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.errors import DataError, PeerLost
from mrsi_gadgets.stream.framing import (
    ACQUISITION_HEADER_BYTES,
    ID_BYTES,
    IMAGE_HEADER_BYTES,
    LONGEST_PREFIX,
    WAVEFORM_HEADER_BYTES,
    MessageId,
    message_length,
    message_number,
)
from mrsi_gadgets.stream.limits import MEBIBYTE, Limits
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
    Header,
    Image,
    Message,
    Query,
    Response,
    Text,
    Waveform,
)
from mrsi_gadgets.stream.serialisation import encode

__all__ = ["Decoder", "encode"]

BUFFER_BYTES = 4 * MEBIBYTE
"""Large, so that a reader thread that has waited for the interpreter finds much at once."""
DIRECT_BYTES = MEBIBYTE // 4
"""Arrays from this size on are received into their own memory instead of through the buffer."""

_UINT64 = struct.Struct("<Q")
_QUERY = struct.Struct("<QQQ")
_RESPONSE = struct.Struct("<QQ")
_ACQUISITION = struct.Struct("<34xH2xH136xH")  # number_of_samples, active_channels, trajectory_dimensions
_IMAGE = struct.Struct("<2xH12x3H12xH")  # data_type, matrix_size, channels
_WAVEFORM = struct.Struct("<28xHH")  # number_of_samples, channels
_COMPLEX64, _FLOAT32, _UINT32 = np.dtype("<c8"), np.dtype("<f4"), np.dtype("<u4")
_ARRAYS_BEGIN = {
    MessageId.ACQUISITION.value: ID_BYTES + ACQUISITION_HEADER_BYTES,
    MessageId.WAVEFORM.value: ID_BYTES + WAVEFORM_HEADER_BYTES,
}


# --- decoding: one function per message, (buffer, start of body, end of body, arrays) -> message ---------------------


def _strict(data: memoryview, what: str) -> str:
    """Decode UTF-8 without trailing NULs; whatever else comes is damage."""
    try:
        return bytes(data).rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"The {what} is not valid UTF-8 at its byte {problem.start}; the sender has to encode it as UTF-8."
        ) from problem


def _lenient(data: memoryview) -> str:
    """Decode console text, whatever it holds."""
    return bytes(data).rstrip(b"\0").decode("utf-8", "replace")


def _config_file(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    name = bytes(data[start:stop]).partition(b"\0")[0]
    return ConfigFile(_strict(memoryview(name), "name of the configuration"))


def _config_text(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    return ConfigText(_strict(data[start + 4 : stop], "configuration"))


def _header(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    return Header(_strict(data[start + 4 : stop], "ISMRMRD header"))


def _close(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    return Close()


def _text(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    return Text(_lenient(data[start + 4 : stop]))


def _query(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    reserved, correlation, _ = _QUERY.unpack_from(data, start)
    return Query(correlation, _lenient(data[start + 24 : stop]), reserved)


def _response(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    return Response(_RESPONSE.unpack_from(data, start)[0], _lenient(data[start + 16 : stop]))


def _error(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    return ErrorText(_lenient(data[start + 8 : stop]))


def _head(data: memoryview, start: int, kind: np.dtype) -> np.void:
    """Copy a fixed header out of the buffer."""
    # The bytes are copied, then viewed: NumPy's own copy of a nested structure costs ten times as much.
    head: np.void = np.frombuffer(bytearray(data[start : start + kind.itemsize]), kind)[0]
    return head


def _acquisition(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    samples, channels, dimensions = _ACQUISITION.unpack_from(data, start)
    head = _head(data, start, ACQUISITION_HEADER)
    if not dimensions:
        return Acquisition(head, arrays.view(_COMPLEX64).reshape(channels, samples))
    split = 4 * samples * dimensions
    trajectory = arrays[:split].view(_FLOAT32).reshape(samples, dimensions)
    return Acquisition(head, arrays[split:].view(_COMPLEX64).reshape(channels, samples), trajectory)


def _waveform(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    samples, channels = _WAVEFORM.unpack_from(data, start)
    return Waveform(_head(data, start, WAVEFORM_HEADER), arrays.view(_UINT32).reshape(channels, samples))


def _image(data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
    data_type, nx, ny, nz, channels = _IMAGE.unpack_from(data, start)
    begin = start + IMAGE_HEADER_BYTES + 8
    length = _UINT64.unpack_from(data, begin - 8)[0]
    attributes = _strict(data[begin : begin + length], "attribute XML of an image")
    pixels = arrays.view(PIXEL_TYPES[data_type]).reshape(channels, nz, ny, nx)
    return Image(_head(data, start, IMAGE_HEADER), attributes, pixels)


_DECODE: dict[int, Callable[[memoryview, int, int, np.ndarray], Message]] = {
    MessageId.CONFIG_FILE.value: _config_file,
    MessageId.CONFIG_TEXT.value: _config_text,
    MessageId.HEADER.value: _header,
    MessageId.CLOSE.value: _close,
    MessageId.TEXT.value: _text,
    MessageId.QUERY.value: _query,
    MessageId.RESPONSE.value: _response,
    MessageId.ERROR.value: _error,
    MessageId.ACQUISITION.value: _acquisition,
    MessageId.IMAGE.value: _image,
    MessageId.WAVEFORM.value: _waveform,
}
_NO_ARRAYS = np.empty(0, np.uint8)


@dataclass(slots=True)
class _Arriving:
    """A large message whose arrays are received straight into the memory they will keep."""

    number: int
    prefix: bytes
    arrays: np.ndarray
    length: int
    filled: int


class Decoder:
    """Incremental reader of one direction of a session.

    Either ``feed(data)``, or without a copy: receive into ``buffer()``, then ``commit(count)``. The iterator each
    returns has to be exhausted before more bytes come.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._memory = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._memory)
        self._start = self._stop = 0
        self._needed = LONGEST_PREFIX
        self._arriving: _Arriving | None = None
        self._closed = False
        self.offset = 0
        """Bytes of whole messages decoded so far: where the next message begins in the stream."""
        self.count = 0
        """Messages decoded so far."""

    @property
    def closed(self) -> bool:
        """Whether CLOSE has been decoded."""
        return self._closed

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Take the next bytes of the stream and yield the messages they complete.

        Raises
        ------
        ProtocolError
            If a message cannot be framed or exceeds a limit; nothing after it can be read.
        DataError
            If a text that has to be UTF-8 is not; the messages after it can be read.
        """
        rest = memoryview(data).cast("B")
        while len(rest):
            space = self.buffer()
            step = min(len(space), len(rest))
            space[:step] = rest[:step]
            rest = rest[step:]
            yield from self.commit(step)

    def buffer(self) -> memoryview:
        """Return writable memory for the next bytes of the stream, never empty."""
        arriving = self._arriving
        if arriving is not None:
            return arriving.arrays.data[arriving.filled :]
        capacity = len(self._view)
        if self._start == self._stop:
            self._start = self._stop = 0
            if capacity > BUFFER_BYTES:  # a long text made it grow
                self._resize(BUFFER_BYTES)
        elif capacity - self._stop < BUFFER_BYTES // 4 or self._start + self._needed > capacity:
            self._make_room()
        return self._view[self._stop :]

    def _make_room(self) -> None:
        """Move the unread tail to the front and, where the next message needs it, take more memory."""
        tail = self._stop - self._start
        wanted = max(self._needed, tail + BUFFER_BYTES // 4)
        if wanted > len(self._view):
            self._resize(wanted + BUFFER_BYTES)
        elif self._start:
            self._view[:tail] = self._view[self._start : self._stop]
            self._start, self._stop = 0, tail

    def _resize(self, capacity: int) -> None:
        """Replace the buffer, unread bytes first."""
        memory = bytearray(capacity)
        tail = self._stop - self._start
        memory[:tail] = self._view[self._start : self._stop]
        self._memory, self._view = memory, memoryview(memory)
        self._start, self._stop = 0, tail

    def commit(self, count: int) -> Iterator[Message]:
        """Say that `count` bytes were written to the front of ``buffer()``; yield the messages they complete.

        Raises
        ------
        ProtocolError, DataError
            As `feed`.
        """
        if self._arriving is not None:
            self._arriving.filled += count
        else:
            self._stop += count
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        """Yield every whole message in the buffer."""
        arriving = self._arriving
        if arriving is not None:
            if arriving.filled < len(arriving.arrays):
                return
            self._arriving = None
            prefix = memoryview(arriving.prefix)
            yield self._finish(arriving.number, arriving.length, prefix, ID_BYTES, len(prefix), arriving.arrays)
        while True:
            start = self._start
            length = message_length(self._view, start, self._stop, self._limits, self.offset)
            if length is None:
                self._needed = LONGEST_PREFIX
                return
            number = message_number(self._view, start)
            if start + length > self._stop:
                self._await(number, start, length)
                return
            self._start = start + length
            begin = self._arrays_begin(number, start)
            arrays = _NO_ARRAYS
            if begin:
                # One copy takes the arrays out of the buffer, which the next bytes overwrite.
                arrays = np.frombuffer(self._view, np.uint8, self._start - begin, begin).copy()
            yield self._finish(number, length, self._view, start + ID_BYTES, start + length, arrays)

    def _finish(self, number: int, length: int, data: memoryview, start: int, stop: int, arrays: np.ndarray) -> Message:
        """Build a message all of whose bytes are there."""
        self.offset += length
        self.count += 1
        message = _DECODE[number](data, start, stop, arrays)
        if number == MessageId.CLOSE:
            self._closed = True
        return message

    def _arrays_begin(self, number: int, start: int) -> int:
        """Where in the buffer the arrays of the message at `start` begin; 0 for a message without."""
        if number == MessageId.IMAGE:
            prefix = ID_BYTES + IMAGE_HEADER_BYTES + 8
            return start + prefix + int(_UINT64.unpack_from(self._view, start + prefix - 8)[0])
        offset = _ARRAYS_BEGIN.get(number)
        return start + offset if offset else 0

    def _await(self, number: int, start: int, length: int) -> None:
        """Prepare for the missing rest of the message at `start`."""
        begin = self._arrays_begin(number, start)
        array_bytes = start + length - begin if begin else 0
        if array_bytes < DIRECT_BYTES:
            self._needed = length
        elif self._stop < begin:
            self._needed = begin - start
        else:
            arrays = np.empty(array_bytes, np.uint8)
            filled = self._stop - begin
            arrays[:filled] = np.frombuffer(self._view, np.uint8, filled, begin)
            self._arriving = _Arriving(number, bytes(self._view[start:begin]), arrays, length, filled)
            self._start = self._stop = 0

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises
        ------
        PeerLost
            If it ended inside a message or without CLOSE: an aborted scan, never a finished one.
        """
        arriving = self._arriving
        pending = len(arriving.prefix) + arriving.filled if arriving else self._stop - self._start
        if pending:
            raise PeerLost(
                f"The stream ended inside a message, {pending} bytes after its beginning at byte {self.offset}; the "
                "scan was aborted and has no result."
            )
        if not self._closed:
            raise PeerLost(
                f"The stream ended without CLOSE after {self.count} messages; the scan was aborted and has no result."
            )
