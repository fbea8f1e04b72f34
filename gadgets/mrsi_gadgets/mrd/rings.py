"""Concentric rings: laps (see `laps`) on circles about the centre of k-space.

Their shares of k-space are left to `operators.density`. Areas between borders half-way from ring to ring would be wrong
in the middle: a ring of radius 1/(2 FOV) stands for 2.75 cells, not for the pi cells that it encloses, and the
excess would lie as a constant over the whole image (13 % of a head that fills half of it).
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.mrd.laps import LapLayout


class RingLayout(LapLayout):
    """Places ring readouts; see `LapLayout`."""

    path_name = "ring"


def ring_points(first: complex, n_samples: int, samples_per_lap: int, *, clockwise: bool) -> np.ndarray:
    """Return (n_samples, 2) points on a circle about 0 through `first` (x + iy), at constant angular speed."""
    turn = np.arange(n_samples) % samples_per_lap / samples_per_lap
    path = first * np.exp((-2j if clockwise else 2j) * np.pi * turn)
    return np.stack([path.real, path.imag], axis=1)
