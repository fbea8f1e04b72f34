"""The places bytes come from and go to: sockets, pipes, files. One interface, so that nothing above knows which."""

from __future__ import annotations

import io
import select
import socket
from contextlib import suppress
from typing import Any, Protocol

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 10, 6
LINGER_S = 2.0
STALL_S = 1800
"""A peer that takes no byte for so long is given up for lost, so that it cannot hold a session for ever."""


class Endpoint(Protocol):
    """What a `Connection` needs of its medium."""

    def read_into(self, space: memoryview) -> int:
        """Read at least one byte, waiting for it; 0 at the end of the stream."""

    def readable(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for bytes or the end of the stream; True where waiting is not possible."""

    def write(self, data: bytes) -> None:
        """Write everything, or raise OSError."""

    def end_output(self) -> None:
        """Say that nothing more is written, and give the peer time to take what was."""

    def close(self) -> None:
        """Release the medium; a thread that waits in `read_into` comes back where the medium can do that."""


def _wait_readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * timeout_s))


def discard_until_silent(sock: socket.socket, silence_s: float = LINGER_S) -> None:
    """Read and drop bytes until the end of the stream or `silence_s` without any.

    A socket that is closed with unread bytes sends RST, which destroys what the peer has not read yet.
    """
    scratch = bytearray(1 << 16)
    with suppress(OSError):
        while _wait_readable(sock.fileno(), silence_s) and sock.recv_into(scratch):
            pass


def keep_alive(sock: socket.socket, stall_s: float = float("inf")) -> None:
    """Let the operating system notice a peer that is no longer there, or takes nothing any more (TCP only)."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", max(1, int(min(stall_s, STALL_S) * 1000))),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class SocketEndpoint:
    """A connected stream socket; its peer is given up when it takes no byte for `stall_s`, at most `STALL_S`."""

    def __init__(self, sock: socket.socket, stall_s: float = float("inf")) -> None:
        sock.settimeout(None)
        keep_alive(sock, stall_s)
        self._socket = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def read_into(self, space: memoryview) -> int:
        """Read at least one byte, waiting for it; 0 at the end of the stream."""
        return self._socket.recv_into(space)

    def readable(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for bytes or the end of the stream; True where waiting is not possible."""
        return bool(self._poll.poll(1000 * timeout_s))

    def write(self, data: bytes) -> None:
        """Write everything, or raise OSError."""
        self._socket.sendall(data)

    def end_output(self) -> None:
        """Say that nothing more is written, and give the peer time to take what was."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        discard_until_silent(self._socket)

    def close(self) -> None:
        """Release the medium."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class FileEndpoint:
    """A pair of binary file objects: pipes (nothing read from them yet), or files. Either may be absent."""

    def __init__(self, reader: Any | None, writer: Any | None) -> None:
        self._reader = reader
        self._raw = reader
        if isinstance(reader, io.BufferedReader) and not reader.seekable():
            self._raw = reader.raw  # bytes in Python's own buffer would be invisible to a wait for the pipe
        self._writer = writer

    def read_into(self, space: memoryview) -> int:
        """Read at least one byte, waiting for it; 0 at the end of the stream."""
        if self._raw is None:
            return 0
        # readinto1 of a buffered reader gives what is there instead of waiting until the whole space is full.
        read = getattr(self._raw, "readinto1", self._raw.readinto)
        try:
            return read(space) or 0
        except ValueError as problem:  # what Python says of a closed file
            raise OSError(str(problem)) from problem

    def readable(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for bytes or the end of the stream; True where waiting is not possible."""
        try:
            descriptor = self._reader.fileno() if self._reader is not None else None
        except (AttributeError, io.UnsupportedOperation):
            return True
        return descriptor is None or _wait_readable(descriptor, timeout_s)

    def write(self, data: bytes) -> None:
        """Write everything, or raise OSError."""
        if self._writer is None:
            return
        rest = memoryview(data)
        while len(rest):
            rest = rest[self._writer.write(rest) or 0 :]
        self._writer.flush()

    def end_output(self) -> None:
        """Nothing to wait for: a pipe keeps what was written for its reader."""

    def close(self) -> None:
        """Release the medium."""
        for stream in (self._reader, self._writer):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
