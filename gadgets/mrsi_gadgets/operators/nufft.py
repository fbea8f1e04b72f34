"""Non-uniform Fourier transform (eq. 2 of science.md at points of k-space that lie on no grid).

FINUFFT computes on NumPy (and on CPU tensors, which share their memory), cuFINUFFT on CuPy; each is imported when the
first operator needs it. Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41(5), 2019, doi:10.1137/18M120885X.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import array_api_compat
import numpy as np

from mrsi_gadgets.arrays import Array, like, n_threads, namespace, to_numpy
from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import LinearOperator, Shape
from mrsi_gadgets.operators.cuda_libraries import import_cufinufft
from mrsi_gadgets.operators.fourier import half_voxel_shift

TOLERANCE = {"complex64": 1e-6, "complex128": 1e-12}
"""Relative error asked of the library, just above what the precision allows."""
PARALLEL_FROM = 100_000
"""Samples of a batch from which several threads pay."""


def cycles_per_voxel(k: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return k, (..., 3) [1/m], in cycles per voxel of the image grid (a full grid covers -1/2 to 1/2)."""
    return np.asarray(k, dtype=float) * (np.asarray(geometry.voxel_mm) * 1e-3)


def nufft_for(k: np.ndarray, geometry: Geometry, batch: int = 1) -> Nufft:
    """Return the transform from the image grid of `geometry` to the points `k`, (point, 3) [1/m]."""
    return Nufft(
        points=cycles_per_voxel(k, geometry),
        matrix=tuple(int(n) for n in geometry.matrix),  # type: ignore[arg-type]
        batch=batch,
        shift=half_voxel_shift(geometry),
    )


@dataclass(frozen=True, eq=False)
class Nufft(LinearOperator):
    """d_b(j) = N^(-1/2) sum_r x_b(r) exp(-i 2 pi k_j.r) for a batch of images; r = 0 at index n // 2.

    On the points of a Cartesian grid this is `Fourier`, so both are scaled alike. Axes of length one are left out.
    """

    points: np.ndarray
    """(point, 3) k in cycles per voxel."""
    matrix: tuple[int, int, int]
    """Image grid (x, y, z)."""
    batch: int = 1
    """Images transformed together (coils, times, basis functions)."""
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position of index n // 2 in voxels (1/2 where the origin lies on a voxel's edge)."""
    _plans: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        points = np.asarray(self.points)
        if points.ndim != 2 or points.shape[1] != 3 or points.shape[0] == 0:
            raise DataError(f"k-space points have the shape {points.shape}; give (point, 3) with at least one point")
        if not np.isfinite(points).all():
            raise DataError("the trajectory holds values that are not finite; check the trajectory of the readouts")

    @property
    def domain(self) -> Shape:
        """(batch, x, y, z)."""
        return (self.batch, *self.matrix)

    @property
    def range(self) -> Shape:
        """(batch, point)."""
        return (self.batch, int(self.points.shape[0]))

    def forward(self, x: Array) -> Array:
        """Sample the transform of each image at the points."""
        kind = _library_kind(x)
        images = self._hosted(x, (self.batch, *self._modes()), kind)
        result = self._execute(2, images, kind)
        return self._back(result, self.range, x, conjugate=False, kind=kind)

    def adjoint(self, y: Array) -> Array:
        """Add up each sample's plane wave, exp(+i 2 pi k.r); no density."""
        kind = _library_kind(y)
        samples = self._hosted(y, self.range, kind)
        ramp = self._ramp(samples, kind)
        if ramp is not None:
            samples = samples * ramp.conj()
        result = self._execute(1, samples, kind)
        return self._back(result, self.domain, y, conjugate=True, kind=kind)

    def _axes(self) -> tuple[int, ...]:
        # the library wants at least one axis, also for a single voxel
        return tuple(a for a in range(3) if self.matrix[a] > 1) or (0,)

    def _modes(self) -> tuple[int, ...]:
        return tuple(self.matrix[a] for a in self._axes())

    def _hosted(self, x: Array, shape: Shape, kind: str) -> Array:
        array = x if kind == "cupy" else to_numpy(x)
        if array.dtype not in (np.complex64, np.complex128):
            array = array.astype(np.complex64 if array.dtype == np.float32 else np.complex128)
        array = array.reshape(shape)
        return array if array.flags.c_contiguous else array.copy(order="C")

    def _back(self, result: Array, shape: Shape, reference: Array, *, conjugate: bool, kind: str) -> Array:
        result *= result.dtype.type(1 / np.sqrt(np.prod(self.matrix)))
        if not conjugate:
            ramp = self._ramp(result, kind)
            if ramp is not None:
                result *= ramp
        result = result.reshape(shape)
        return result if kind == "cupy" else like(result, reference, result.dtype.name)

    def _ramp(self, reference: Array, kind: str) -> Array | None:
        """Phase exp(-i 2 pi k.shift) of the points, None without a shift."""
        if not any(self.shift[a] for a in self._axes()):
            return None
        cycles = sum(self.points[:, a] * self.shift[a] for a in self._axes())
        ramp = np.exp(-2j * np.pi * np.asarray(cycles)).astype(reference.dtype)
        return like(ramp, reference) if kind == "cupy" else ramp

    def _execute(self, transform: int, data: Array, kind: str) -> Array:
        """Run type 1 (points to grid, +) or type 2 (grid to points, -) with a plan that is kept."""
        key = (transform, str(data.dtype), kind)
        # a plan owns its work space, so two threads must not run it at once
        with self._lock:
            if key not in self._plans:
                self._plans[key] = self._plan(transform, data, kind)
            result = self._plans[key].execute(data[0] if self.batch == 1 else data)
        return result[None] if self.batch == 1 else result

    def _plan(self, transform: int, data: Array, kind: str) -> Any:
        sign = 1 if transform == 1 else -1
        dtype = np.dtype(data.dtype).name
        options: dict[str, Any] = {"n_trans": self.batch, "eps": TOLERANCE[dtype], "isign": sign, "dtype": dtype}
        if kind != "cupy":
            # threads cost more than they bring for little work; the library's warnings would go past our log
            work = self.batch * self.points.shape[0]
            options |= {"nthreads": n_threads() if work > PARALLEL_FROM else 1, "showwarn": 0}
        plan = _library(kind).Plan(transform, self._modes(), **options)
        real = np.float32 if dtype == "complex64" else np.float64
        wrapped = self.points - np.round(self.points)
        angles = [np.ascontiguousarray(2 * np.pi * wrapped[:, a], dtype=real) for a in self._axes()]
        plan.setpts(*(like(angle, data) if kind == "cupy" else angle for angle in angles))
        return plan


def _library_kind(x: Array) -> str:
    """Return ``cupy`` or ``numpy``: whose library computes on `x`."""
    if array_api_compat.is_cupy_array(x):
        return "cupy"
    place = str(array_api_compat.device(x)).lower()
    if "cpu" not in place:
        raise DataError(
            f"an array of {namespace(x).__name__} on device '{place}' cannot be transformed at non-uniform points; "
            "use NumPy on the host or CuPy on the GPU"
        )
    return "numpy"


def _library(kind: str) -> Any:
    if kind == "numpy":
        # read once, when OpenMP is loaded: threads that spin while they wait take the cores from everything else
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import finufft

        return finufft
    return import_cufinufft()
