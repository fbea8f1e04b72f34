"""The raw log of one session: what came from the peer, byte for byte, in records that survive a crash.

HDF5 files that are being written when their process dies are often lost as a whole. A log only grows, and each of its
records carries its length and a checksum, so whatever was written before a crash is read afterwards. Form: `MAGIC`,
then records of kind (u8), length (u32), CRC-32 of kind, length and payload (u32), payload; all little-endian. The first
is BEGIN (JSON: who, when, with which options), then BYTES as they came, and for a session that has ended END (JSON,
padded to a fixed length, so that it is found without reading the log).
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import DataError

MAGIC = b"MRSI raw log 1\n"
END_BYTES = 2048
"""Payload of the END record."""
_RECORD = struct.Struct("<BII")
_SUMMED = struct.Struct("<BI")
_LONGEST = 1 << 30
_LONGEST_CAUSE = 700
"""Characters of a cause that are kept; each may take two bytes and an escape."""


class Kind(IntEnum):
    """What a record holds."""

    BEGIN = 1
    BYTES = 2
    END = 3


class State(Enum):
    """How a session stands."""

    RUNNING = "running"
    FINISHED = "finished"
    """The peer has got its results and CLOSE."""
    FAILED = "failed"
    """The peer was told why there are no results."""
    ABORTED = "aborted"
    """The peer went away before its CLOSE, or before it had taken its results."""
    INTERRUPTED = "interrupted"
    """The server itself was killed or lost its power."""


@dataclass(frozen=True)
class End:
    """How a session has ended."""

    state: State
    cause: str = ""
    """One sentence, or nothing after a finished session."""
    readouts: int = 0
    closed: bool = False
    """The peer's CLOSE came: the scan is complete."""
    complete: bool = True
    """Everything that came was kept."""
    ended: str = ""
    """When, UTC, ISO 8601."""


class LogWriter:
    """Append to a new log; every call is on its way to the disk when it returns (see `sync`).

    Parameters
    ----------
    path
        The file to make; it must not be there.
    begin
        What BEGIN says.

    Raises
    ------
    OSError
        The file is there already, or cannot be written.
    """

    def __init__(self, path: Path, begin: dict[str, Any]) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o600)
        self.size = 0
        """Bytes of whole records."""
        try:
            self._write([MAGIC, *_record(Kind.BEGIN, json.dumps(begin).encode())])
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def append(self, chunk: bytes | memoryview) -> None:
        """Append bytes of the session. Raises OSError; the log then ends with its last whole record."""
        self._write(_record(Kind.BYTES, chunk))

    def end(self, end: End) -> None:
        """Append how the session has ended. Raises OSError."""
        self._write(_record(Kind.END, _end_payload(end)))

    def sync(self) -> None:
        """Have the disk itself keep what was appended: until then a loss of power loses it, a killed process not."""
        os.fdatasync(self.descriptor)

    @property
    def gone(self) -> bool:
        """Whether somebody has removed the file; what is appended then reaches nobody."""
        return os.fstat(self.descriptor).st_nlink == 0

    def close(self) -> None:
        """Let go of the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _write(self, parts: list[bytes | memoryview]) -> None:
        wanted = sum(len(part) for part in parts)
        try:
            written = os.writev(self.descriptor, parts)
            if written != wanted:  # the disk is nearly full, or a signal came: a second call tells
                rest = memoryview(b"".join(parts))[written:]
                while len(rest):
                    rest = rest[os.write(self.descriptor, rest) :]
        except OSError:
            os.ftruncate(self.descriptor, self.size)
            raise
        self.size += wanted


def _record(kind: Kind, payload: bytes | memoryview) -> list[bytes | memoryview]:
    length = len(payload)
    return [_RECORD.pack(kind, length, zlib.crc32(payload, zlib.crc32(_SUMMED.pack(kind, length)))), payload]


def _end_payload(end: End) -> bytes:
    fields = asdict(end) | {"state": end.state.value, "cause": end.cause[:_LONGEST_CAUSE]}
    text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
    if len(text) > END_BYTES:
        text = json.dumps(fields | {"cause": end.cause[: _LONGEST_CAUSE // 4]}, ensure_ascii=False).encode()
    return text.ljust(END_BYTES)


def _end_of(payload: bytes) -> End:
    fields = json.loads(payload)
    return End(**fields | {"state": State(fields["state"])})


class LogReader:
    """Read a log as far as it is whole.

    Parameters
    ----------
    path
        The log.

    Raises
    ------
    DataError
        It is not there, cannot be read, or is no such log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end: End | None = read_end(path)
        self.whole = True
        """False once reading has met a record that is cut off or damaged; nothing behind it is read."""
        kind, payload = next(self._records(), (None, b""))
        if kind is not Kind.BEGIN:
            raise DataError(f"{path} is no raw log of a session; give one that `mrsi recover` lists")
        self.begin: dict[str, Any] = json.loads(payload)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the session, in the portions in which they came."""
        for kind, payload in self._records():
            if kind is Kind.BYTES:
                yield payload

    def _records(self) -> Iterator[tuple[Kind, bytes]]:
        try:
            with self.path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    return
                while head := file.read(_RECORD.size):
                    if len(head) < _RECORD.size:
                        self.whole = False
                        return
                    kind, length, checksum = _RECORD.unpack(head)
                    payload = file.read(length) if length <= _LONGEST else b""
                    summed = zlib.crc32(payload, zlib.crc32(_SUMMED.pack(kind, length)))
                    if len(payload) != length or summed != checksum or kind > max(Kind):
                        self.whole = False
                        return
                    yield Kind(kind), payload
        except OSError as problem:
            raise DataError(f"{self.path} cannot be read ({problem.strerror}); check its folder") from problem


def read_end(path: Path) -> End | None:
    """Read how a session has ended from the last bytes of its log; None where it has not.

    Raises
    ------
    DataError
        The file is not there or cannot be read.
    """
    size = _RECORD.size + END_BYTES
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            tail = file.read(size)
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror}); check its folder") from problem
    if len(tail) < size:
        return None
    kind, length, checksum = _RECORD.unpack_from(tail)
    payload = tail[_RECORD.size :]
    if kind != Kind.END or length != END_BYTES:
        return None
    if zlib.crc32(payload, zlib.crc32(_SUMMED.pack(kind, length))) != checksum:
        return None
    return _end_of(payload)
