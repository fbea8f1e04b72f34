"""Centred unitary Fourier transform of a Cartesian grid (eq. 2 of science.md, the factor exp(-i 2 pi k.r))."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, centred_fftn, centred_ifftn, like
from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import Identity, LinearOperator, Shape


def half_voxel_shift(geometry: Geometry) -> tuple[float, float, float]:
    """Return by how many voxels index n // 2 lies beyond the origin of r, per axis (0, or 1/2 for ``edge``)."""
    x, y, z = (n // 2 - c for n, c in zip(geometry.matrix, geometry.centre_index, strict=True))
    return x, y, z


def shift_phase(sizes: tuple[int, ...], shift: tuple[float, ...]) -> np.ndarray | None:
    """Return exp(-i 2 pi k.shift) on the centred grid of k (cycles per field of view), or None where `shift` is zero.

    Parameters
    ----------
    sizes
        Points along each spatial axis.
    shift
        Position of index n // 2 in voxels.
    """
    if not any(shift):
        return None
    phase = np.zeros(sizes)
    for axis, (n, s) in enumerate(zip(sizes, shift, strict=True)):
        k = (np.arange(n) - n // 2) / n
        phase = phase + (k * s).reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return np.exp(-2j * np.pi * phase).astype(np.complex64)


@dataclass(frozen=True, eq=False)
class Fourier(LinearOperator):
    """d(k) = N^(-1/2) sum_r x(r) exp(-i 2 pi k.r) along three neighbouring spatial axes; unitary.

    Index n // 2 is k = 0, and r = `shift` voxels (0, or 1/2 where the grid's origin lies on a voxel edge).
    """

    shape: Shape
    """Shape of both sides, for example (coil, x, y, z, t)."""
    first_axis: int = 0
    """Which axis is x; y and z follow it."""
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.first_axis < 0 or self.first_axis + 3 > len(self.shape):
            raise DataError(f"axes {self.first_axis} to {self.first_axis + 2} do not exist in the shape {self.shape}")

    @property
    def domain(self) -> Shape:
        """Shape of the image."""
        return self.shape

    @property
    def range(self) -> Shape:
        """Shape of k-space."""
        return self.shape

    @property
    def _axes(self) -> tuple[int, ...]:
        # an axis of length one is its own transform; leaving it out keeps plans small
        return tuple(a for a in range(self.first_axis, self.first_axis + 3) if self.shape[a] > 1)

    def _phase(self, x: Array) -> Array | None:
        phase = shift_phase(self.shape[self.first_axis : self.first_axis + 3], self.shift)
        if phase is None:
            return None
        return like(phase.reshape(phase.shape + (1,) * (len(self.shape) - self.first_axis - 3)), x, x.dtype)

    def forward(self, x: Array) -> Array:
        """Image to k-space."""
        y = centred_fftn(x, self._axes) if self._axes else x
        phase = self._phase(x)
        return y if phase is None else y * phase

    def adjoint(self, y: Array) -> Array:
        """k-space to image."""
        phase = self._phase(y)
        if phase is not None:
            y = y / phase
        return centred_ifftn(y, self._axes) if self._axes else y

    @property
    def gram(self) -> LinearOperator:
        """The identity."""
        return Identity(self.shape)
