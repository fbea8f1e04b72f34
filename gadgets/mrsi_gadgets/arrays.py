"""Array namespaces, devices and Fourier transforms: the one module that names a backend.

The namespace and the device of the input decide where a computation runs: NumPy (pyFFTW), CuPy (cuFFT), torch
(torch.fft) or any other library of the Python array API standard (its own ``fft`` extension). No function of this
package copies between devices unless it is called ``to_device`` or ``to_numpy``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import array_api_compat
import numpy as np
import pyfftw
import threadpoolctl

Array = Any
"""An array of any array-API namespace. Shapes and units are stated where it is used."""

_PLANNED: dict[tuple[Any, ...], Any] = {}
_MAX_PLANS = 32


def namespace(*arrays: Array) -> Any:
    """Return the common array-API namespace of `arrays` (array_api_compat)."""
    return array_api_compat.array_namespace(*arrays)


def is_numpy(x: Array) -> bool:
    """Tell whether `x` is a NumPy array."""
    return bool(array_api_compat.is_numpy_array(x))


def device(x: Array) -> Any:
    """Return the device `x` lives on."""
    return array_api_compat.device(x)


def to_numpy(x: Array) -> np.ndarray:
    """Copy `x` to a NumPy array on the host (no copy where it is one already)."""
    if is_numpy(x):
        return np.asarray(x)
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    if array_api_compat.is_torch_array(x):
        return np.asarray(x.detach().cpu().resolve_conj().numpy())
    return np.asarray(x)


def like(values: Any, reference: Array, dtype: Any = None) -> Array:
    """Return `values` (array or number) as an array of `reference`'s namespace, on its device.

    `dtype` is a dtype of the namespace or one of the names ``"complex64"``, ``"float32"``, ...
    """
    xp = namespace(reference)
    if isinstance(dtype, str):
        dtype = getattr(xp, dtype)
    if not is_numpy(reference) and isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)
    return xp.asarray(values, dtype=dtype, device=device(reference))


def select_device(name: str) -> Any:
    """Return a function-ready device description for ``auto``, ``cpu`` or ``cuda:N``.

    The result is a pair ``(library, device)``: ``("numpy", "cpu")`` or ``("cupy", N)``.

    Raises
    ------
    ConfigError
        The name is unknown, or a CUDA device was asked for and none can be used.
    """
    from mrsi_gadgets.errors import ConfigError

    if name == "cpu":
        return ("numpy", "cpu")
    if name == "auto":
        return ("cupy", 0) if _cuda_devices() > 0 else ("numpy", "cpu")
    if name.startswith("cuda"):
        number = name.partition(":")[2] or "0"
        if not number.isdigit():
            raise ConfigError(f"device '{name}' is not understood; use auto, cpu or cuda:N")
        found = _cuda_devices()
        if int(number) >= found:
            raise ConfigError(
                f"device '{name}' was asked for but {found} CUDA device(s) can be used here; use --device cpu, or "
                "install the extra cuda12 or cuda13 that fits the driver"
            )
        return ("cupy", int(number))
    raise ConfigError(f"device '{name}' is not understood; use auto, cpu or cuda:N")


def _cuda_devices() -> int:
    try:
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # noqa: BLE001  a broken driver raises whatever it likes; it means "no device"
        return 0


def to_device(x: np.ndarray, target: tuple[str, Any]) -> Array:
    """Copy a NumPy array to the device that `select_device` returned."""
    library, number = target
    if library == "numpy":
        return x
    import cupy

    with cupy.cuda.Device(number):
        return cupy.asarray(x)


def n_threads() -> int:
    """Return the number of threads numeric libraries may use (``MRSI_THREADS``, else the processors we may run on)."""
    wanted = os.environ.get("MRSI_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def one_blas_thread() -> Any:
    """Return a context in which BLAS runs single-threaded.

    Threads of ours (preparation beside the readouts, batches of voxels) call BLAS at the same time; its own pool then
    fights with them for the same cores and everything becomes several times slower. Parallel work is split by us.
    """
    return threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def over_columns(function: Callable[[Array], Array], columns: Array) -> Array:
    """Return `function` of `columns`, which treats all indices of the last axis alike, in pieces on our threads.

    Only NumPy arrays are split (element-wise loops there use one core); a device has its own parallelism. The pieces do
    not change the result.
    """
    count = min(n_threads(), int(columns.shape[-1]) // 8)
    if count < 2 or not is_numpy(columns):
        return function(columns)
    bounds = np.linspace(0, columns.shape[-1], count + 1).astype(int)
    pieces = [np.ascontiguousarray(columns[..., a:b]) for a, b in pairwise(bounds)]
    with ThreadPoolExecutor(count) as pool:
        return np.concatenate(list(pool.map(function, pieces)), axis=-1)


def fftn(x: Array, axes: Sequence[int]) -> Array:
    """Unitary discrete Fourier transform along `axes`, kernel exp(-i 2 pi j k / n), without any shift."""
    return _transform(x, tuple(axes), forward=True)


def ifftn(x: Array, axes: Sequence[int]) -> Array:
    """Inverse of `fftn` (unitary, kernel exp(+i 2 pi j k / n))."""
    return _transform(x, tuple(axes), forward=False)


def centred_fftn(x: Array, axes: Sequence[int]) -> Array:
    """Unitary transform image -> k-space with both origins at index n//2 (rho(r) -> sum rho exp(-i 2 pi k r))."""
    fft = namespace(x).fft
    axes = tuple(axes)
    return fft.fftshift(fftn(fft.ifftshift(x, axes=axes), axes), axes=axes)


def centred_ifftn(x: Array, axes: Sequence[int]) -> Array:
    """Unitary transform k-space -> image with both origins at index n//2; adjoint and inverse of `centred_fftn`."""
    fft = namespace(x).fft
    axes = tuple(axes)
    return fft.fftshift(ifftn(fft.ifftshift(x, axes=axes), axes), axes=axes)


def _transform(x: Array, axes: tuple[int, ...], *, forward: bool) -> Array:
    if is_numpy(x):
        return _planned_fft(x, axes, forward=forward)
    xp = namespace(x)
    return (xp.fft.fftn if forward else xp.fft.ifftn)(x, axes=axes, norm="ortho")


def _planned_fft(x: np.ndarray, axes: tuple[int, ...], *, forward: bool) -> np.ndarray:
    """Transform with a cached multi-threaded FFTW plan (one plan per shape, strides, type and direction)."""
    if x.dtype not in (np.complex64, np.complex128):
        x = x.astype(np.complex64 if x.dtype == np.float32 else np.complex128)
    if np.empty_like(x).strides != x.strides:
        # a view with gaps (a slice): no fresh array has its strides, which a plan needs
        x = np.ascontiguousarray(x)
    key = (x.shape, x.strides, x.dtype.char, axes, forward, n_threads())
    plan = _PLANNED.get(key)
    if plan is None:
        if len(_PLANNED) >= _MAX_PLANS:
            _PLANNED.pop(next(iter(_PLANNED)))
        example = pyfftw.empty_aligned(x.shape, dtype=x.dtype)
        if example.strides != x.strides:
            example = np.empty_like(x)
        result = pyfftw.empty_aligned(x.shape, dtype=x.dtype)
        plan = pyfftw.FFTW(
            example,
            result,
            axes=axes,
            direction="FFTW_FORWARD" if forward else "FFTW_BACKWARD",
            flags=("FFTW_ESTIMATE", "FFTW_UNALIGNED"),
            threads=n_threads(),
        )
        _PLANNED[key] = plan
    result = np.empty(x.shape, dtype=x.dtype)
    plan.update_arrays(x, result)
    plan.execute()
    scale = 1.0 / np.sqrt(np.prod([x.shape[a] for a in axes]))
    result *= x.dtype.type(scale)
    return result
