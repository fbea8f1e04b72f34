"""k-space of an object made of points on a fine grid: discrete Fourier sums at any place and any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import finufft
import numpy as np

_CHUNK_BYTES = 64 * 2**20
_FINE_TIMES_BYTES = 512 * 2**20
"""Samples at the finer times that are kept at once."""
_TAPS, _KAISER = 10, 15.7
"""Half width of the interpolation kernel in time [points of the finer grid] and shape of its Kaiser window."""


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
        n = self.matrix[axis]
        k = np.arange(n) - n // 2
        return np.exp(-2j * np.pi * np.outer(k, self.positions(axis)) / n).astype(np.complex64)

    def kernel_at(self, axis: int, k: np.ndarray, voxel_mm: float) -> np.ndarray:
        """Fourier kernel exp(-i 2 pi k r) of one axis at any `k` [1/m], complex128 (k, point)."""
        return np.asarray(np.exp(-2j * np.pi * 1e-3 * voxel_mm * np.outer(k, self.positions(axis))))

    def positions(self, axis: int) -> np.ndarray:
        """Places of the box's points along one axis in voxels from the centre (index n // 2)."""
        index = np.arange(self.start[axis], self.start[axis] + self.shape[axis])
        return np.asarray((index + 0.5) / self.subvoxels[axis] - 0.5 - self.matrix[axis] // 2)

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


@dataclass(frozen=True, eq=False)
class GridPoints:
    """Places in k-space that are a product of three axes; those of one kx share one time after each spectral point."""

    kx: np.ndarray
    """(a,) [1/m]."""
    ky: np.ndarray
    """(b,) [1/m]."""
    kz: np.ndarray
    """(c,) [1/m]."""
    tau_s: np.ndarray
    """(a,) time of each kx's samples after the spectral points `protocol.times_s` [s]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(a, b, c)."""
        return len(self.kx), len(self.ky), len(self.kz)


@dataclass(frozen=True, eq=False)
class PlanePoints:
    """Places in k-space that are anywhere in the plane, times partitions along kz."""

    k: np.ndarray
    """(p, 2) [1/m] along x and y."""
    kz: np.ndarray
    """(c,) [1/m]."""
    tau_s: np.ndarray
    """(p,) time of each place's samples after the spectral points `protocol.times_s` [s]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(p, c)."""
        return len(self.k), len(self.kz)


Points = GridPoints | PlanePoints


Signal = Callable[[float, float, int], Callable[[slice], np.ndarray]]
"""Takes time of the first point after the first spectral point [s], step [s] and number of points; gives the function
that returns the signal of all points of the object for a range of those times, complex64 (point, t)."""


@dataclass(frozen=True, eq=False)
class TimeInterpolation:
    """From evenly spaced times, two per spectral dwell, to the samples' own times, within 1e-6.

    The kernel is a sinc under a Kaiser window. Signals within the spectral width leave half of the band of the finer
    grid free, so that 20 points are enough (Kaiser's formula: 152 dB).
    """

    start_s: float
    """First time of the finer grid after the first spectral point [s]."""
    step_s: float
    count: int
    first: np.ndarray
    """(row,) fine index where the kernel of each row's first sample begins."""
    weights: np.ndarray
    """(row, tap) float32."""

    @classmethod
    def to(cls, tau_s: np.ndarray, dwell_s: float, n_times: int) -> TimeInterpolation:
        """Prepare the way to times `tau_s` (row,) after each of `n_times` spectral points."""
        step = dwell_s / 2.0
        start = np.floor(np.min(tau_s) / step) - _TAPS + 1.0
        place = tau_s / step - start
        first = np.floor(place).astype(int) - _TAPS + 1
        x = place[:, None] - first[:, None] - np.arange(2 * _TAPS)
        window = np.i0(_KAISER * np.sqrt(np.maximum(1.0 - (x / _TAPS) ** 2, 0.0))) / np.i0(_KAISER)
        count = int(first.max()) + 2 * (n_times - 1) + 2 * _TAPS
        return cls(float(start * step), step, count, first, (np.sinc(x) * window).astype(np.float32))

    def apply(self, fine: np.ndarray, result: np.ndarray) -> None:
        """Write samples (coil, row, ..., t) made from `fine` (coil, row, ..., fine time) into `result`."""
        n_times = result.shape[-1]
        for row, (first, weights) in enumerate(zip(self.first, self.weights, strict=True)):
            total = np.zeros(result[:, row].shape, np.complex64)
            for tap, weight in enumerate(weights):
                total += weight * fine[:, row, ..., first + tap : first + tap + 2 * n_times - 1 : 2]
            result[:, row] = total


def encode_points(
    box: FineBox,
    voxel_mm: tuple[float, float, float],
    signal: Signal,
    coil_maps: np.ndarray,
    points: Points,
    dwell_s: float,
    n_times: int,
) -> np.ndarray:
    """Return samples at any places of k-space, each at its own time, complex64 (coil, *points.shape, t).

    d_c(k, t + tau) = sum_r S_c(r) rho(r, t + tau) exp(-i 2 pi k r): exact sums along the axes of `GridPoints`, a
    non-uniform fast Fourier transform (relative 1e-6) in the plane of `PlanePoints`. The sums are made at two times per
    spectral dwell, and what lies between them is interpolated (`TimeInterpolation`).

    Parameters
    ----------
    box : where the points of the object are.
    voxel_mm : voxel size [mm].
    signal : gives rho; its frequencies lie within the spectral width.
    coil_maps : (coil, point) complex64.
    points : where in k-space.
    dwell_s : spectral dwell [s].
    n_times : number of spectral points.
    """
    between = TimeInterpolation.to(points.tau_s, dwell_s, n_times)
    transform = (
        _product_transform(box, voxel_mm, points)
        if isinstance(points, GridPoints)
        else _plane_transform(box, voxel_mm, points)
    )
    step = max(1, min(between.count, _CHUNK_BYTES // (8 * int(np.prod(box.shape)))))
    result = np.empty((len(coil_maps), *points.shape, n_times), np.complex64)
    size = 8 * int(np.prod(points.shape)) * between.count
    together = max(1, _FINE_TIMES_BYTES // size)
    for coils in (slice(i, i + together) for i in range(0, len(coil_maps), together)):
        at = signal(between.start_s, between.step_s, between.count)
        fine = np.empty((*result[coils].shape[:-1], between.count), np.complex64)
        for start in range(0, between.count, step):
            times = slice(start, min(start + step, between.count))
            rho = at(times)
            for coil, sensitivity in enumerate(coil_maps[coils]):
                fine[coil, ..., times] = transform(sensitivity[:, None] * rho)
        between.apply(fine, result[coils])
    return result


def _product_transform(
    box: FineBox, voxel_mm: tuple[float, float, float], points: GridPoints
) -> Callable[[np.ndarray], np.ndarray]:
    axes = enumerate((points.kx, points.ky, points.kz))
    kernels = [box.kernel_at(axis, k, voxel_mm[axis]).astype(np.complex64) for axis, k in axes]
    return lambda values: _transform(values, box, kernels)


def _plane_transform(
    box: FineBox, voxel_mm: tuple[float, float, float], points: PlanePoints
) -> Callable[[np.ndarray], np.ndarray]:
    bx, by, bz = box.shape
    along_z = np.ascontiguousarray(box.kernel_at(2, points.kz, voxel_mm[2]).T.astype(np.complex64))
    step_m = [1e-3 * voxel_mm[axis] / box.subvoxels[axis] for axis in range(2)]
    # finufft counts the points of the box from -(n // 2); where its zero lies is a phase of each k
    zero = [box.positions(axis)[box.shape[axis] // 2] * 1e-3 * voxel_mm[axis] for axis in range(2)]
    phase = np.exp(-2j * np.pi * (points.k @ np.array(zero))).astype(np.complex64)
    angles = [np.ascontiguousarray(2.0 * np.pi * points.k[:, axis] * step_m[axis], np.float32) for axis in range(2)]
    plans: dict[int, finufft.Plan] = {}

    def transform(values: np.ndarray) -> np.ndarray:
        count = values.shape[1]
        partitions = (values.T.reshape(-1, bz) @ along_z).reshape(count, bx, by, len(points.kz))
        planes = np.ascontiguousarray(np.moveaxis(partitions, 3, 1)).reshape(-1, bx, by)
        if len(planes) not in plans:
            plan = finufft.Plan(2, (bx, by), n_trans=len(planes), eps=1e-6, isign=-1, dtype="complex64")
            plan.setpts(*angles)
            plans[len(planes)] = plan
        found = plans[len(planes)].execute(planes).reshape(count, len(points.kz), -1)
        return np.asarray(np.moveaxis(found * phase, 0, 2).swapaxes(0, 1))

    return transform


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
    nx, ny, nz = (len(kernel) for kernel in kernels)
    bx, by, bz = box.shape
    t = values.shape[1]
    k = kernels[0] @ values.reshape(bx, by * bz * t)
    k = np.matmul(kernels[1], k.reshape(nx, by, bz * t))
    return np.matmul(kernels[2], k.reshape(nx * ny, bz, t)).reshape(nx, ny, nz, t)
