"""How much the field differs across the thickness of a voxel, which no map of one slice shows: the line of water tells.

Where the slice is not encoded, the field's slope along it dephases every signal of the voxel alike: a rectangular slice
with the difference s [Hz] from face to face multiplies the FID with sinc(s t). The water reference has the same factor.
Its line is compared with

    w(t) = a h(t) sinc(s t) exp(-R t)

with the lineshape h that the field map gives (`intravoxel`), for a row of s and R; the best pair is taken. Water has
a lineshape of its own beside (Gaussian, several compartments), which looks like a spread that all voxels share: the
median over the voxels is taken off in squares (the factors' first terms in time are squares of the widths), and small
spreads are not believed.
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.quantification.intravoxel import intravoxel_lineshape
from mrsi_gadgets.reconstruction.field_map import WaterLine

_SPREADS_HZ = np.arange(0.0, 80.5, 1.0)
_RATES = np.geomspace(2.0, 80.0, 20)
"""1 / T2* of water [1/s]."""
_STRONG_HZ = 10.0
"""A smaller spread looks like a Gaussian line, within 4 % over 50 ms, and is left to the fit: water's own lineshape is
not known as well as that."""


def slice_spread(line: WaterLine, b0_hz: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the difference of the field across the slice, (x, y, z) [Hz], not negative; 0 where it is small.

    Where every direction is encoded, there is nothing to know: it is 0.

    Parameters
    ----------
    line
        Of the water reference.
    b0_hz, mask
        (x, y, z) field at the voxel centres [Hz], and where there is water.
    """
    spread = np.zeros(mask.shape)
    if min(mask.shape) > 1:
        return spread
    given = intravoxel_lineshape(b0_hz, mask, line.times_s).astype(complex)
    water = line.signal[mask].astype(complex)
    times = line.times_s
    shapes = np.sinc(_SPREADS_HZ[:, None, None] * times) * np.exp(-_RATES[:, None] * times)
    shapes = shapes.reshape(-1, len(times))
    match = np.abs((water * np.conj(given)) @ shapes.T) ** 2
    size = np.abs(given) ** 2 @ (shapes.T**2)
    explained = np.divide(match, size, out=np.zeros_like(match), where=size > 0)
    found = _SPREADS_HZ[np.argmax(explained.reshape(len(water), -1, len(_RATES)).max(axis=2), axis=1)]
    squared = np.maximum(found**2 - np.median(found**2), 0.0)
    spread[mask] = np.where(found > _STRONG_HZ, np.sqrt(squared), 0.0)
    return spread
