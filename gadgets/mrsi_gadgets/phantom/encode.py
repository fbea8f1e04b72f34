"""Exact k-space of an object made of points on a fine grid: discrete Fourier sums, axis by axis, no interpolation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FineBox:
    """The part of a fine grid that holds the object, and how it divides the voxels of the measurement."""

    matrix: tuple[int, int, int]
    """Voxels along x, y, z."""
    subvoxels: tuple[int, int, int]
    start: tuple[int, int, int]
    """First fine index of the box along each axis."""
    shape: tuple[int, int, int]

    @classmethod
    def around(cls, support: np.ndarray, matrix: tuple[int, int, int], subvoxels: tuple[int, int, int]) -> FineBox:
        """Return the smallest box around the points where `support` (x, y, z) is true."""
        ranges = []
        for axis in range(3):
            used = np.flatnonzero(support.any(axis=tuple(a for a in range(3) if a != axis)))
            ranges.append((int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1))
        start = tuple(low for low, _ in ranges)
        return cls(matrix, subvoxels, start, tuple(high - low for low, high in ranges))  # type: ignore[arg-type]

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Values of a fine map (x, y, z, ...) in the box, one row per point."""
        box = tuple(slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return values[box].reshape(-1, *values.shape[3:])

    def kernel(self, axis: int) -> np.ndarray:
        """Fourier kernel exp(-i 2 pi k r) of one axis, complex64 (k, point); k = 0 and r = 0 at index n // 2."""
        n, f = self.matrix[axis], self.subvoxels[axis]
        index = np.arange(self.start[axis], self.start[axis] + self.shape[axis])
        voxel = (index + 0.5) / f - 0.5 - n // 2
        k = np.arange(n) - n // 2
        return np.exp(-2j * np.pi * np.outer(k, voxel) / n).astype(np.complex64)

    @property
    def points_per_voxel(self) -> int:
        """Points of the fine grid in one voxel."""
        return int(np.prod(self.subvoxels))


def encode(box: FineBox, signal: Callable[[slice], np.ndarray], coil_maps: np.ndarray, n_times: int) -> np.ndarray:
    """Return the k-space of an object, complex64 (coil, kx, ky, kz, t).

    d_c(k, t) = sum_r S_c(r) rho(r, t) exp(-i 2 pi k r) over the points r of the fine grid (eq. 2).

    Parameters
    ----------
    box : where the points are.
    signal : gives rho of the box's points for a range of time points, complex64 (point, t).
    coil_maps : (coil, point) complex64.
    n_times : number of time points.
    """
    kernels = [box.kernel(axis) for axis in range(3)]
    points = int(np.prod(box.shape))
    step = max(1, min(n_times, _CHUNK_BYTES // (8 * points)))
    result = np.empty((coil_maps.shape[0], *box.matrix, n_times), np.complex64)
    for start in range(0, n_times, step):
        times = slice(start, min(start + step, n_times))
        rho = signal(times)
        for coil, sensitivity in enumerate(coil_maps):
            result[coil, ..., times] = _transform(sensitivity[:, None] * rho, box, kernels)
    return result


def encode_maps(box: FineBox, maps: np.ndarray) -> np.ndarray:
    """Return images (map, x, y, z) of fine maps (map, point) as a fully sampled measurement shows them.

    The point spread is that of the acquired k-space; values are means over voxels, so a uniform map keeps its value.
    """
    kernels = [box.kernel(axis) for axis in range(3)]
    k = _transform(np.ascontiguousarray(maps.T).astype(np.complex64), box, kernels)
    return np.moveaxis(image_from_kspace(k), -1, 0).real / box.points_per_voxel


def image_from_kspace(k: np.ndarray) -> np.ndarray:
    """Return rho = (1/N) sum_k d exp(+i 2 pi k r) along the first three axes (origins at n // 2)."""
    axes = (0, 1, 2)
    return np.asarray(np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(k, axes=axes), axes=axes), axes=axes))


def _transform(values: np.ndarray, box: FineBox, kernels: list[np.ndarray]) -> np.ndarray:
    """k-space (kx, ky, kz, t) of values (point, t)."""
    nx, ny, nz = box.matrix
    bx, by, bz = box.shape
    t = values.shape[1]
    k = kernels[0] @ values.reshape(bx, by * bz * t)
    k = np.matmul(kernels[1], k.reshape(nx, by, bz * t))
    return np.matmul(kernels[2], k.reshape(nx * ny, bz, t)).reshape(nx, ny, nz, t)
