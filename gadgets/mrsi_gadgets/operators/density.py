"""How much of k-space each point of a trajectory stands for: weights that make the adjoint transform an image."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.nufft import Nufft, cycles_per_voxel

ITERATIONS = 30


def sampling_density(k: np.ndarray, geometry: Geometry, *, iterations: int = ITERATIONS) -> np.ndarray:
    """Return the share of k-space of each point in cells of the grid, (point,): 1 everywhere for a full grid.

    The fixed point of Pipe and Menon, Magn Reson Med 1999;41:179-186: w <- w / (w * kernel). The kernel is the squared
    transform of the field of view (a disc), positive everywhere; it is applied by a pair of non-uniform transforms over
    twice the field of view, where it is the disc's autocorrelation.

    Parameters
    ----------
    k
        (point, 3) [1/m].
    geometry
        Of the image.
    iterations
        Of the fixed point.

    Raises
    ------
    DataError
        There are no points.
    """
    if len(k) == 0:
        raise DataError("no point of k-space was acquired; send readouts")
    matrix = tuple(int(n) for n in geometry.matrix)
    axes = tuple(a for a in range(3) if matrix[a] > 1)
    if not axes:
        return np.full(len(k), 1.0 / len(k))
    doubled = tuple(2 * n if n > 1 else 1 for n in matrix)
    window = _autocorrelated_field_of_view(matrix, doubled, axes)
    transform = Nufft(cycles_per_voxel(k, geometry), doubled)  # type: ignore[arg-type]
    scale = np.prod(doubled) / np.prod(matrix)
    weights = np.ones(len(k))
    for _ in range(iterations):
        image = transform.adjoint(weights[None].astype(np.complex128))
        weights = weights / (scale * np.abs(transform.forward(image * window)[0]))
    return weights


def _autocorrelated_field_of_view(
    matrix: tuple[int, ...], doubled: tuple[int, ...], axes: tuple[int, ...]
) -> np.ndarray:
    """Return the autocorrelation of the disc that fits into the field of view, 1 at the origin (index n // 2)."""
    place = np.meshgrid(*[(np.arange(2 * n if n > 1 else 1) - (n if n > 1 else 0)) / n for n in matrix], indexing="ij")
    disc = (np.sum(np.square(place), axis=0) < 0.25).astype(float)
    power = np.abs(np.fft.fftn(disc, axes=axes)) ** 2
    correlation = np.fft.fftshift(np.fft.ifftn(power, axes=axes).real, axes=axes)
    return np.asarray(correlation.reshape(doubled) / correlation.max())
