"""Messages to bytes: one function per message, each giving the whole message or an error, never a part of one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.stream.framing import CONFIG_NAME_BYTES, MessageId
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

_ID = struct.Struct("<H")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_QUERY = struct.Struct("<QQQ")
_RESPONSE = struct.Struct("<QQ")
_COMPLEX64, _FLOAT32, _UINT32_ARRAY = np.dtype("<c8"), np.dtype("<f4"), np.dtype("<u4")


def _xml(text: str, what: str) -> bytes:
    """Encode text that has to arrive unchanged."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise DataError(f"The {what} has a character at position {problem.start} that UTF-8 cannot carry.") from problem


def _config_file(message: ConfigFile) -> bytes:
    name = _xml(message.name, "name of the configuration")
    if len(name) >= CONFIG_NAME_BYTES or b"\0" in name:
        raise ConfigError(
            f"The configuration name has {len(name)} bytes; CONFIG_FILE carries at most {CONFIG_NAME_BYTES - 1} "
            "without NUL, so send the configuration as text instead."
        )
    return name.ljust(CONFIG_NAME_BYTES, b"\0")


def _config_text(message: ConfigText) -> bytes:
    text = _xml(message.text, "configuration")
    return _UINT32.pack(len(text)) + text


def _header(message: Header) -> bytes:
    text = _xml(message.xml, "ISMRMRD header")
    return _UINT32.pack(len(text)) + text


def _close(message: Close) -> bytes:
    return b""


def _text(message: Text) -> bytes:
    # FIRE consoles expect the NUL and count it; the other readers strip it.
    text = message.text.encode("utf-8", "replace") + b"\0"
    return _UINT32.pack(len(text)) + text


def _query(message: Query) -> bytes:
    text = message.text.encode("utf-8", "replace")
    return _QUERY.pack(message.reserved, message.correlation, len(text)) + text


def _response(message: Response) -> bytes:
    text = message.text.encode("utf-8", "replace")
    return _RESPONSE.pack(message.correlation, len(text)) + text


def _error(message: ErrorText) -> bytes:
    text = message.text.encode("utf-8", "replace")
    return _UINT64.pack(len(text)) + text


def _require(array: np.ndarray, kind: np.dtype, shape: tuple[int, ...], what: str) -> memoryview:
    """Return the bytes of `array` if it is what the header says."""
    if array.dtype != kind or array.shape != shape:
        raise DataError(
            f"The {what} are {array.dtype} {array.shape}, but the message's header says {kind} {shape}; make both "
            "agree before sending."
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _head(head: np.void, kind: np.dtype, what: str) -> bytes:
    """Return the bytes of a fixed header."""
    if head.dtype != kind:
        raise DataError(f"The header of the {what} has another layout than MRD 1.x; build it with `messages`.")
    return head.tobytes()


def _acquisition(message: Acquisition) -> bytes:
    head = message.head
    fixed = _head(head, ACQUISITION_HEADER, "readout")
    samples, dimensions = int(head["number_of_samples"]), int(head["trajectory_dimensions"])
    data = _require(message.data, _COMPLEX64, (int(head["active_channels"]), samples), "samples of the readout")
    if message.trajectory is None:
        if dimensions * samples:
            raise DataError(f"The readout's header announces {dimensions} trajectory dimensions, but there is none.")
        return b"".join((fixed, data))
    trajectory = _require(message.trajectory, _FLOAT32, (samples, dimensions), "trajectory values of the readout")
    return b"".join((fixed, trajectory, data))


def _waveform(message: Waveform) -> bytes:
    head = message.head
    fixed = _head(head, WAVEFORM_HEADER, "waveform")
    shape = (int(head["channels"]), int(head["number_of_samples"]))
    return b"".join((fixed, _require(message.data, _UINT32_ARRAY, shape, "values of the waveform")))


def _image(message: Image) -> bytes:
    head = message.head.copy()
    kind = PIXEL_TYPES.get(int(head["data_type"])) if head.dtype == IMAGE_HEADER else None
    if kind is None:
        raise DataError("The image's header has another layout or data_type than MRD 1.x; build it with `messages`.")
    nx, ny, nz = (int(n) for n in head["matrix_size"])
    pixels = _require(message.data, kind, (int(head["channels"]), nz, ny, nx), "pixels of the image")
    attributes = _xml(message.attributes, "attribute XML of the image")
    head["attribute_string_len"] = len(attributes)
    return b"".join((head.tobytes(), _UINT64.pack(len(attributes)), attributes, pixels))


_ENCODE: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    kind: (_ID.pack(number), body)
    for kind, number, body in (
        (ConfigFile, MessageId.CONFIG_FILE, _config_file),
        (ConfigText, MessageId.CONFIG_TEXT, _config_text),
        (Header, MessageId.HEADER, _header),
        (Close, MessageId.CLOSE, _close),
        (Text, MessageId.TEXT, _text),
        (Query, MessageId.QUERY, _query),
        (Response, MessageId.RESPONSE, _response),
        (ErrorText, MessageId.ERROR, _error),
        (Acquisition, MessageId.ACQUISITION, _acquisition),
        (Image, MessageId.IMAGE, _image),
        (Waveform, MessageId.WAVEFORM, _waveform),
    )
}


def encode(message: Message) -> bytes:
    """Give the bytes of one whole message, its id first.

    ``attribute_string_len`` of an image is set from its attributes; every other header field is sent as it is.
    Texts that are only shown (TEXT, QUERY, RESPONSE, ERROR) have what UTF-8 cannot carry replaced.

    Raises
    ------
    DataError
        If a header and its arrays disagree in type or shape, or XML cannot be encoded.
    ConfigError
        If the name of a configuration is too long.
    """
    number, body = _ENCODE[type(message)]
    return number + body(message)
