"""A queue bounded by bytes, for one producing and one consuming thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteQueue(Generic[T]):
    """First in, first out; `put` blocks while more than `limit` bytes wait.

    One item larger than the limit passes when the queue is empty, so the bound never stops a session for good.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._waiting = 0
        self._ended = False
        self._discarding = False
        self._changed = threading.Condition()

    @property
    def waiting_bytes(self) -> int:
        """Bytes in the queue now."""
        return self._waiting

    def put(self, item: T, size: int, *, force: bool = False) -> None:
        """Append `item`, waiting for space unless `force`; dropped once the queue is ended or discarding."""
        with self._changed:
            while not force and self._waiting and self._waiting + size > self._limit and not self._discarding:
                self._changed.wait()
            if self._discarding or self._ended:
                return
            self._items.append((item, size))
            self._waiting += size
            self._changed.notify_all()

    def get(self) -> T | None:
        """Remove and return the oldest item, waiting for one; None when the queue has ended and is empty."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            if not self._items:
                return None
            item, size = self._items.popleft()
            self._waiting -= size
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """Say that nothing more is put; what is there can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Drop what is there."""
        with self._changed:
            self._items.clear()
            self._waiting = 0
            self._changed.notify_all()

    def discard(self) -> None:
        """Drop what is there and whatever is put from now on, waking a blocked `put`."""
        with self._changed:
            self._discarding = True
            self._items.clear()
            self._waiting = 0
            self._changed.notify_all()
