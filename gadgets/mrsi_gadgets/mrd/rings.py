"""Concentric rings: laps (see `laps`) on circles about the centre of k-space, whose areas give the density."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.laps import LapLayout


class RingLayout(LapLayout):
    """Places ring readouts; see `LapLayout`."""

    path_name = "ring"

    def _density(self) -> np.ndarray:
        """Return the share of k-space of each point in cells of the grid, 0 on rings that never came."""
        cells = float(np.prod(np.array(self.protocol.geometry.fov_mm[:2]) * 1e-3))
        density = np.zeros(self.shape[0])
        for partition in range(self.n_partitions):
            points = [self.points_of(partition, ring) for ring in range(self.n_paths)]
            # the neighbours of a ring that never came share its area
            came = [place for place in points if self._placed[place].any()]
            radii = [np.hypot(*self._k[place][self._placed[place], :2].T).mean() for place in came]
            if not came:
                continue
            for place, area in zip(came, ring_areas(np.array(radii)), strict=True):
                density[place] = area * cells / (place.stop - place.start)
        return density


def ring_areas(radii: np.ndarray) -> np.ndarray:
    """Return the area of k-space that belongs to each ring, (ring,), in the square of the unit of `radii`.

    Borders lie half-way between neighbouring rings; the innermost ring reaches to the centre, the outermost as far
    beyond itself as its inner border lies within. Rings of radius r and spacing d get 2 pi r d each.

    Raises
    ------
    DataError
        Two rings have the same radius, so that their share is undefined.
    """
    order = np.argsort(radii)
    r = np.asarray(radii, dtype=float)[order]
    if r.size > 1 and np.min(np.diff(r)) <= 1e-6 * r[-1]:
        raise DataError("two rings have the same radius in k-space; correct the trajectory or the counters")
    inner = np.concatenate([[0.0], (r[1:] + r[:-1]) / 2])
    outer = np.append(inner[1:], 2 * r[-1] - inner[-1])
    areas = np.empty(r.size)
    areas[order] = np.pi * (outer**2 - inner**2)
    return areas


def ring_points(first: complex, n_samples: int, samples_per_lap: int, *, clockwise: bool) -> np.ndarray:
    """Return (n_samples, 2) points on a circle about 0 through `first` (x + iy), at constant angular speed."""
    turn = np.arange(n_samples) % samples_per_lap / samples_per_lap
    path = first * np.exp((-2j if clockwise else 2j) * np.pi * turn)
    return np.stack([path.real, path.imag], axis=1)
