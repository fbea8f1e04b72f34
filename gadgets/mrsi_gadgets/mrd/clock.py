"""When readouts were acquired: time stamps of the headers in seconds since the scan's first readout."""

from __future__ import annotations

import numpy as np

_DAY_S = 86_400.0


def day_ticks(tick_s: float) -> int:
    """Return how many ticks a day has."""
    return round(_DAY_S / tick_s)


def unwrapped(stamps: np.ndarray, first: int, day: int) -> np.ndarray:
    """Return time stamps (ticks since midnight) as ticks since `first`, int64; they go on over midnight."""
    passed = stamps.astype(np.int64) - first
    return np.where(passed < -day / 2, passed + day, passed)


class ScanClock:
    """Turns time stamps (ticks since midnight) into seconds since the scan's first readout.

    Parameters
    ----------
    tick_s
        Unit of the stamps [s].
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._first: int | None = None
        self.varies = False
        """Whether stamps differ from each other at all; where they do not, they say nothing."""

    def seconds(self, stamp: int) -> float:
        """Return the time of a stamp [s]; a scan that goes on after midnight goes on in time."""
        if self._first is None:
            self._first = stamp
        difference = stamp - self._first
        if difference:
            self.varies = True
        seconds = difference * self._tick_s
        return seconds + _DAY_S if seconds < -_DAY_S / 2 else seconds
