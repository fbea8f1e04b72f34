"""Lineshape that the known field gives to each voxel: dephasing within it, and what leaks in from its neighbours.

The image of a signal that is everywhere the same and evolves with the field b0 is, after the voxel's own mean frequency
has been taken out,

    h(r, t) = exp(-i 2 pi b0(r) t) SUM_r' p(r - r') w(r') exp(i 2 pi b0(r') t) / SUM_r' p(r - r') w(r')

with the point spread p of the acquired k-space and the extent w of the object (eq. 2). The field between voxel centres
is interpolated.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_FINE = 3
_LARGEST = 2.0
"""|h| above this comes from division by next to nothing at the rim of the mask."""


def intravoxel_lineshape(b0_hz: np.ndarray, mask: np.ndarray, times_s: np.ndarray, *, fine: int = _FINE) -> np.ndarray:
    """Return the lineshape of each voxel of the mask, (voxel, time) complex64, 1 at t = 0.

    Parameters
    ----------
    b0_hz
        (x, y, z) field at the voxel centres [Hz]; beyond the mask it must continue smoothly.
    mask
        (x, y, z) bool: extent of the object.
    times_s
        (time,) since the excitation [s].
    fine
        Points between voxel centres along each axis that is encoded.
    """
    axes = tuple(axis for axis, n in enumerate(mask.shape) if n > 1)
    factors = [fine if axis in axes else 1 for axis in range(3)]
    field = _upsample(np.asarray(b0_hz, np.float32), factors, order=3)
    extent = np.clip(_upsample(mask.astype(np.float32), factors, order=1), 0.0, 1.0)
    inside = mask.ravel()
    weight = _image(extent.astype(np.complex64), mask.shape, axes).real.ravel()[inside]
    weight = np.where(np.abs(weight) > 0.2, weight, np.inf)
    result = np.empty((int(inside.sum()), len(times_s)), np.complex64)
    centre = np.asarray(b0_hz, float).ravel()[inside]
    for i, time in enumerate(times_s):
        angle = (2 * np.pi * time) * field
        signal = np.empty(field.shape, np.complex64)
        np.cos(angle, out=signal.real)
        np.sin(angle, out=signal.imag)
        signal *= extent
        image = _image(signal, mask.shape, axes).ravel()[inside]
        result[:, i] = image / weight * np.exp(-2j * np.pi * centre * time)
    size = np.abs(result)
    result *= np.minimum(1.0, _LARGEST / np.maximum(size, 1e-6))
    # where the rim left nothing to divide by, the lineshape is not known: none is assumed
    result[~np.isfinite(weight)] = 1.0
    return result


def _upsample(values: np.ndarray, factors: list[int], *, order: int) -> np.ndarray:
    """Interpolate between voxel centres; voxel i is covered by fine points f i ... f i + f - 1."""
    positions = [(np.arange(n * f) + 0.5) / f - 0.5 for n, f in zip(values.shape, factors, strict=True)]
    places = np.meshgrid(*positions, indexing="ij")
    return np.asarray(ndimage.map_coordinates(values, places, output=np.float32, order=order, mode="nearest"))


def _image(fine: np.ndarray, matrix: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Return the image (matrix) of an object on the fine grid as k-space of the size of `matrix` shows it."""
    for axis in axes:
        n, size = matrix[axis], fine.shape[axis]
        k = np.arange(n) - n // 2
        fine_place = (np.arange(size) + 0.5) * n / size - 0.5
        kernel = np.exp(2j * np.pi * np.outer(np.arange(n), k) / n) @ np.exp(-2j * np.pi * np.outer(k, fine_place) / n)
        fine = np.moveaxis(np.tensordot((kernel / size).astype(np.complex64), fine, (1, axis)), 0, axis)
    return fine
