"""Samples at points of k-space whose FIDs are sampled at their own times: laps, lobes, masks (eq. 2 of science.md).

`PointSampling` is the part of the encoding behind coils and field: coefficient images of a temporal basis are brought
to the points by a Fourier transform (FFT where the points are the grid, else NUFFT), and from coefficients to samples
by the basis at each point's own times. Points that share their offset from the spectral times share one matrix.

Its gram needs no samples: between the two transforms there is one small matrix per offset, and the transforms of
non-uniform points become one circular convolution on a doubled grid (Toeplitz embedding; Fessler et al., IEEE TSP 2005,
doi:10.1109/TSP.2005.853152). The few distinct small matrices are written on a common basis of matrices, so that the
number of convolution kernels is theirs, not that of the offsets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, centred_fftn, fftn, ifftn, like, namespace, to_numpy
from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import LinearOperator, Shape
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift
from mrsi_gadgets.operators.nufft import Nufft, cycles_per_voxel, nufft_for

KERNEL_TOLERANCE = 1e-5
"""Relative error of the gram by leaving out matrices of the common basis."""


@dataclass(frozen=True, eq=False)
class Offsets:
    """Which points share their offset from the spectral times."""

    values_s: np.ndarray
    """(group,) offsets [s]."""
    members: tuple[np.ndarray, ...]
    """Per group, the indices of its points."""

    @property
    def n_points(self) -> int:
        """Number of points."""
        return int(sum(len(member) for member in self.members))


def offsets_of(t: np.ndarray, times_s: np.ndarray, dwell_s: float) -> Offsets:
    """Return the offsets of points sampled at t (point, t) from the spectral times.

    Raises
    ------
    DataError
        The samples of a point do not follow each other like the spectral times.
    """
    late = np.asarray(t[:, 0], dtype=float) - times_s[0]
    if t.strides[0] != 0 and np.abs(t - late[:, None] - times_s).max() > 1e-3 * dwell_s:
        raise DataError(
            f"samples of one k-space point do not follow each other at the spectral dwell of {dwell_s * 1e6:g} us; "
            "correct mrsi_dwell_us, mrsi_samples_per_lap or mrsi_temporal_interleaves"
        )
    # a millionth of a dwell changes nothing that could be measured
    keys = np.round(late / (1e-6 * dwell_s)).astype(np.int64)
    values, group = np.unique(keys, return_inverse=True)
    order = np.argsort(group, kind="stable")
    borders = np.searchsorted(group[order], np.arange(1, len(values)))
    members = tuple(np.split(order, borders))
    return Offsets(np.array([late[member[0]] for member in members]), members)


@dataclass(frozen=True, eq=False)
class ShiftedGrids:
    """Points that are Cartesian grids in C order, one after another, each shifted by a constant in k.

    Alternating lobes of EPSI are two of them: gradient delays shift them against each other. A shift of k is a slope of
    the image's phase, so that each grid costs one FFT.
    """

    geometry: Geometry
    shifts: np.ndarray
    """(grid, 3) [1/m]."""
    signs: np.ndarray | None = None
    """(point,) +1 or -1, None where all are 1: of points that lie a whole width of k-space beside their place."""

    def to_points(self, image: Array) -> Array:
        """Return N^(-1/2) sum_r x(r) exp(-i 2 pi k.r) at all points, (point, any), of images (x, y, z, any)."""
        xp = namespace(image)
        fourier = self._fourier(image)
        parts = []
        for shift in self.shifts:
            turned = image if not shift.any() else image * self._slope(shift, image)
            parts.append(xp.reshape(fourier.forward(turned), (-1, image.shape[-1])))
        points = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        return points if self.signs is None else points * like(self.signs[:, None], points)

    def from_points(self, values: Array) -> Array:
        """Return the adjoint: images (x, y, z, any) of (point, any)."""
        xp = namespace(values)
        grid = tuple(int(n) for n in self.geometry.matrix)
        if self.signs is not None:
            values = values * like(self.signs[:, None], values)
        stacked = xp.reshape(values, (len(self.shifts), *grid, values.shape[-1]))
        fourier = self._fourier(stacked[0, ...])
        total = None
        for index, shift in enumerate(self.shifts):
            image = fourier.adjoint(stacked[index, ...])
            if shift.any():
                image = image * xp.conj(self._slope(shift, image))
            total = image if total is None else total + image
        return total

    def _fourier(self, image: Array) -> Fourier:
        return Fourier(tuple(int(n) for n in image.shape), first_axis=0, shift=half_voxel_shift(self.geometry))

    def _slope(self, shift: np.ndarray, reference: Array) -> Array:
        """Return exp(-i 2 pi shift.r), (x, y, z, 1)."""
        geometry = self.geometry
        phase = np.zeros(geometry.matrix)
        for axis, (n, centre, size) in enumerate(
            zip(geometry.matrix, geometry.centre_index, geometry.voxel_mm, strict=True)
        ):
            place = (np.arange(n) - centre) * size * 1e-3
            phase = phase + (place * shift[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        return like(np.exp(-2j * np.pi * phase)[..., None], reference, reference.dtype)


def shifted_grids(k: np.ndarray, geometry: Geometry) -> ShiftedGrids | None:
    """Return points (point, 3) [1/m] as Cartesian grids with constant shifts, or None where they are none."""
    n = int(np.prod(geometry.matrix))
    if len(k) % n:
        return None
    axes = [(np.arange(m) - m // 2) / (f * 1e-3) for m, f in zip(geometry.matrix, geometry.fov_mm, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(1, n, 3)
    difference = np.asarray(k, dtype=float).reshape(-1, n, 3) - grid
    cell = 1e3 / np.asarray(geometry.fov_mm)
    # lobes that run back end at +n/2, which is -n/2 of the grid a whole width on
    width = cell * np.asarray(geometry.matrix)
    turns = np.round((difference - np.median(difference, axis=1, keepdims=True)) / width)
    difference = difference - turns * width
    shifts = difference.mean(axis=1)
    # a millionth of a cell changes nothing that could be measured
    if np.any(np.abs(difference - shifts[:, None]) > 1e-6 * cell):
        return None
    # exp(-i 2 pi m width r) at the voxels is 1 where the origin is one of them, (-1)^m where it lies between two
    half = np.array([2 * s % 2 for s in half_voxel_shift(geometry)])
    signs = np.where((turns * half).sum(axis=-1) % 2 == 1, -1.0, 1.0).ravel().astype(np.float32)
    shifts = np.where(np.abs(shifts) > 1e-6 * cell, shifts, 0.0)
    return ShiftedGrids(geometry, shifts, signs if np.any(signs < 0) else None)


@dataclass(frozen=True, eq=False)
class PointSampling(LinearOperator):
    """d_c(p, q) = w(p, q) sum_k e_k(t_q + tau_p) N^(-1/2) sum_r y_ck(r) exp(-i 2 pi k_p.r)."""

    k: np.ndarray
    """(point, 3) [1/m]."""
    geometry: Geometry
    offsets: Offsets
    rows: tuple[Array, ...]
    """Per offset group (k, t): the temporal basis at that group's times."""
    weights: np.ndarray
    """(point,) or (point, t): real factors, zero where nothing was acquired."""
    n_coils: int
    grids: ShiftedGrids | None
    """Set where the points are Cartesian grids (FFT), else None (NUFFT)."""
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Image grid."""
        return tuple(int(n) for n in self.geometry.matrix)  # type: ignore[return-value]

    @property
    def rank(self) -> int:
        """Images per coil."""
        return int(self.rows[0].shape[0])

    @property
    def domain(self) -> Shape:
        """(coil, x, y, z, k)."""
        return (self.n_coils, *self.grid, self.rank)

    @property
    def range(self) -> Shape:
        """(coil, point, t)."""
        return (self.n_coils, int(self.k.shape[0]), int(self.rows[0].shape[1]))

    def forward(self, x: Array) -> Array:
        """Sample."""
        xp = namespace(x)
        parts = []
        for coil in range(self.n_coils):
            at_points = self._to_points(x[coil, ...])
            blocks = [
                xp.take(at_points, like(member, x), axis=0) @ rows
                for member, rows in zip(self.offsets.members, self.rows, strict=True)
            ]
            samples = blocks[0] if len(blocks) == 1 else xp.take(xp.concat(blocks, axis=0), self._back(x), axis=0)
            parts.append(samples * self._weights(x))
        return xp.stack(parts, axis=0)

    def adjoint(self, y: Array) -> Array:
        """Apply the adjoint: project every point's FID on the basis at its own times, then transform back."""
        xp = namespace(y)
        parts = []
        for coil in range(self.n_coils):
            samples = y[coil, ...] * self._weights(y)
            blocks = [
                xp.take(samples, like(member, y), axis=0) @ xp.conj(rows.T)
                for member, rows in zip(self.offsets.members, self.rows, strict=True)
            ]
            at_points = blocks[0] if len(blocks) == 1 else xp.take(xp.concat(blocks, axis=0), self._back(y), axis=0)
            parts.append(self._from_points(at_points))
        return xp.stack(parts, axis=0)

    @property
    def gram(self) -> LinearOperator:
        """A^H A without samples where the mask is the same for all times, else the two applications."""
        if self.weights.ndim != 1:
            return super().gram
        return GridGram(self) if self.grids is not None else toeplitz_gram(self)

    def _weights(self, reference: Array) -> Array:
        if "weights" not in self._kept:
            weights = self.weights if self.weights.ndim == 2 else self.weights[:, None]
            self._kept["weights"] = like(weights.astype(np.float32), reference)
        return self._kept["weights"]

    def _back(self, reference: Array) -> Array:
        """Index that brings points in the order of groups back to their own order."""
        if "back" not in self._kept:
            order = np.concatenate(self.offsets.members)
            self._kept["back"] = like(np.argsort(order), reference)
        return self._kept["back"]

    def _nufft(self) -> Nufft:
        if "nufft" not in self._kept:
            self._kept["nufft"] = nufft_for(self.k, self.geometry, self.rank)
        nufft: Nufft = self._kept["nufft"]
        return nufft

    def _to_points(self, image: Array) -> Array:
        """Return (point, k) of images (x, y, z, k)."""
        xp = namespace(image)
        if self.grids is not None:
            return self.grids.to_points(image)
        return xp.permute_dims(self._nufft().forward(xp.permute_dims(image, (3, 0, 1, 2))), (1, 0))

    def _from_points(self, values: Array) -> Array:
        """Return images (x, y, z, k) of (point, k)."""
        xp = namespace(values)
        if self.grids is not None:
            return self.grids.from_points(values)
        return xp.permute_dims(self._nufft().adjoint(xp.permute_dims(values, (1, 0))), (1, 2, 3, 0))


def _small_grams(sampling: PointSampling) -> np.ndarray:
    """Return e e^H of every offset group, (group, k, k) complex128."""
    rows = [to_numpy(r).astype(np.complex128) for r in sampling.rows]
    return np.stack([r @ r.conj().T for r in rows])


def _common_matrices(grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shares (group, s) and matrices (s, k, k) whose sums are the small grams, to the tolerance."""
    n_groups, rank, _ = grams.shape
    flat = grams.reshape(n_groups, -1) * np.sqrt(counts)[:, None]
    inner = flat @ flat.conj().T
    power, vectors = np.linalg.eigh(inner)
    power, vectors = np.maximum(power[::-1], 0), vectors[:, ::-1]
    left = 1 - np.cumsum(power) / power.sum()
    kept = int(np.argmax(left <= KERNEL_TOLERANCE**2)) + 1 if (left <= KERNEL_TOLERANCE**2).any() else n_groups
    shares = vectors[:, :kept] / np.sqrt(counts)[:, None]
    matrices = (vectors[:, :kept].conj().T @ flat).reshape(kept, rank, rank)
    return shares, matrices


@dataclass(frozen=True, eq=False)
class GridGram(LinearOperator):
    """Gram without samples: transform to the points, one small matrix per offset, transform back."""

    sampling: PointSampling

    @property
    def domain(self) -> Shape:
        """(coil, x, y, z, k)."""
        return self.sampling.domain

    @property
    def range(self) -> Shape:
        """(coil, x, y, z, k)."""
        return self.sampling.domain

    def forward(self, x: Array) -> Array:
        """Apply A^H A."""
        xp = namespace(x)
        s = self.sampling
        kept = s._kept
        if "grams" not in kept:
            kept["grams"] = [like(g, x, x.dtype) for g in _small_grams(s)]
        squared = like((s.weights.astype(np.float32) ** 2)[:, None], x)
        parts = []
        for coil in range(s.n_coils):
            at_points = s._to_points(x[coil, ...]) * squared
            blocks = [
                xp.take(at_points, like(member, x), axis=0) @ gram
                for member, gram in zip(s.offsets.members, kept["grams"], strict=True)
            ]
            mixed = blocks[0] if len(blocks) == 1 else xp.take(xp.concat(blocks, axis=0), s._back(x), axis=0)
            parts.append(s._from_points(mixed))
        return xp.stack(parts, axis=0)

    def adjoint(self, y: Array) -> Array:
        """Apply the operator itself, which is Hermitian."""
        return self.forward(y)


@dataclass(frozen=True, eq=False)
class ToeplitzGram(LinearOperator):
    """Gram of samples at non-uniform points as circular convolutions on a doubled grid."""

    shape: Shape
    """(coil, x, y, z, k)."""
    kernels: np.ndarray
    """(s, 2x, 2y, 2z) complex64: transfer functions (axes of length one are not doubled)."""
    matrices: np.ndarray
    """(s, k, k) complex64: what each kernel does to the coefficients."""
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def domain(self) -> Shape:
        """(coil, x, y, z, k)."""
        return self.shape

    @property
    def range(self) -> Shape:
        """(coil, x, y, z, k)."""
        return self.shape

    def forward(self, x: Array) -> Array:
        """Apply A^H A."""
        xp = namespace(x)
        if "kernels" not in self._kept:
            self._kept["kernels"] = like(self.kernels[..., None], x, x.dtype)
            self._kept["matrices"] = [like(m, x, x.dtype) for m in self.matrices]
        kernels, matrices = self._kept["kernels"], self._kept["matrices"]
        grid, rank = self.shape[1:4], self.shape[4]
        axes = tuple(a for a in range(3) if grid[a] > 1)
        inside = (*(slice(0, n) for n in grid), ...)
        parts = []
        for coil in range(self.shape[0]):
            padded = _padded(x[coil, ...], self.kernels.shape[1:])
            spectrum = fftn(padded, axes) if axes else padded
            total = kernels[0, ...] * (spectrum @ matrices[0])
            for s in range(1, len(matrices)):
                total = total + kernels[s, ...] * (spectrum @ matrices[s])
            image = ifftn(total, axes) if axes else total
            parts.append(xp.asarray(image[inside], copy=True))
        result = xp.stack(parts, axis=0)
        return xp.reshape(result, (self.shape[0], *grid, rank))

    def adjoint(self, y: Array) -> Array:
        """Apply the operator itself, which is Hermitian."""
        return self.forward(y)


def toeplitz_gram(sampling: PointSampling) -> ToeplitzGram:
    """Return A^H A of non-uniform samples whose mask is the same for all times, as convolutions on a doubled grid."""
    if "toeplitz" in sampling._kept:
        kept: ToeplitzGram = sampling._kept["toeplitz"]
        return kept
    members = sampling.offsets.members
    power = sampling.weights.astype(float) ** 2
    counts = np.array([max(float(np.sum(power[m] ** 2)), np.finfo(float).tiny) for m in members])
    shares, matrices = _common_matrices(_small_grams(sampling), counts)
    doubled = tuple(2 * n if n > 1 else 1 for n in sampling.grid)
    axes = tuple(a for a in range(3) if doubled[a] > 1)
    n_voxels = int(np.prod(sampling.grid))
    # the kernel at difference d of two voxels is sum_p w_p^2 exp(+i 2 pi k_p d) / N, d = -n ... n - 1 along each axis
    transform = Nufft(cycles_per_voxel(sampling.k, sampling.geometry), doubled, batch=1)  # type: ignore[arg-type]
    kernels = []
    for share in shares.T:
        values = np.zeros((1, sampling.k.shape[0]), dtype=np.complex128)
        for member, value in zip(members, share, strict=True):
            values[0, member] = power[member] * value
        kernel = transform.adjoint(values)[0] * (np.sqrt(np.prod(doubled)) / n_voxels)
        # centred at index n: to FFT order, so that difference 0 comes first
        spectrum = centred_fftn(kernel, axes) * np.sqrt(np.prod(doubled)) if axes else kernel
        kernels.append(np.fft.ifftshift(spectrum, axes=axes) if axes else spectrum)
    gram = ToeplitzGram(sampling.domain, np.stack(kernels).astype(np.complex64), matrices.astype(np.complex64))
    sampling._kept["toeplitz"] = gram
    return gram


def _padded(image: Array, shape: tuple[int, ...]) -> Array:
    """Return an image (x, y, z, k) with zeros behind it along the axes that `shape` doubles."""
    xp = namespace(image)
    for axis in range(3):
        missing = shape[axis] - int(image.shape[axis])
        if missing:
            size = list(image.shape)
            size[axis] = missing
            image = xp.concat([image, xp.zeros_like(xp.broadcast_to(image[:1, :1, :1, :], tuple(size)))], axis=axis)
    return image
