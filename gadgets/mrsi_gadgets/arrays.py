"""Array namespaces, devices and Fourier transforms: the one module that names a backend.

The namespace and the device of the input decide where a computation runs: NumPy (pyFFTW), CuPy (cuFFT), torch
(torch.fft) or any other library of the Python array API standard (its own ``fft`` extension). No function of this
package copies between devices unless it is called ``to_device`` or ``to_numpy``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import array_api_compat
import numpy as np
import pyfftw
import threadpoolctl

Array = Any
"""An array of any array-API namespace. Shapes and units are stated where it is used."""

_IDLE_PLANS: dict[tuple[Any, ...], list[Any]] = {}
"""FFTW plans that no thread is using. A plan knows the arrays it works on, so each thread takes one for itself."""
_MAX_PLANS = 32
_ONE_THREAD = 1 << 19
"""Transforms of fewer elements than this stay on one thread."""
_PIECE_BYTES = 450_000
"""Work that is cut into pieces takes about so much at once: half of what a core's second cache holds."""


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
    return np.from_dlpack(x, device="cpu")


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


def norm(x: Array) -> float:
    """Return the root of the sum of |x|^2 over all elements."""
    xp = namespace(x)
    return float(xp.sum(xp.real(x) ** 2 + xp.imag(x) ** 2)) ** 0.5


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


def describe_device(target: tuple[str, Any]) -> str:
    """Return what `select_device` returned as a word for the provenance, with a GPU's name."""
    library, number = target
    if library != "cupy":
        return f"{library}:{number}"
    import cupy

    return f"cupy:{number} ({cupy.cuda.runtime.getDeviceProperties(number)['name'].decode()})"


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


def is_device_array(x: Any) -> bool:
    """Tell whether `x` is an array of another library than NumPy."""
    return bool(array_api_compat.is_array_api_obj(x)) and not is_numpy(x)


_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")


def out_of_memory(problem: BaseException) -> bool:
    """Tell whether an error says that a device has too little memory.

    CuPy and torch have an ``OutOfMemoryError`` each; libraries under them (cuFFT, cuBLAS, the runtime) say it in words.
    """
    if isinstance(problem, MemoryError) and type(problem).__module__ == "builtins":
        return False  # that of the processor
    name = type(problem).__name__
    if name == "OutOfMemoryError":
        return True
    said = str(problem)
    return (name.startswith(("CUDA", "CUFFT", "CuFFT", "CUBLAS")) or isinstance(problem, RuntimeError)) and any(
        words in said for words in _OUT_OF_MEMORY
    )


def free_device_memory() -> None:
    """Give back to the device what CuPy and torch keep of it for later; nothing where neither has been used."""
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if cupy is not None and _cuda_devices() > 0:
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()
        cupy.fft.config.get_plan_cache().clear()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


_batch_divisor = 1


@contextmanager
def smaller_batches(divisor: int) -> Iterator[None]:
    """Have what works in batches (`batch_size`) take them smaller by `divisor`, on all threads of this process."""
    global _batch_divisor  # one session runs in a process
    before, _batch_divisor = _batch_divisor, divisor
    try:
        yield
    finally:
        _batch_divisor = before


def batch_size(usual: int) -> int:
    """Return how many items to take at once where `usual` would be right if memory suffices."""
    return max(1, usual // _batch_divisor)


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


def over_pieces(function: Callable[[slice], Array], length: int, item_bytes: int) -> list[Array]:
    """Return `function` of consecutive slices that make up `length` items, on our threads.

    The slices are as long as fits into a core's own cache; they depend on the sizes alone, so that any number of
    threads computes the same.

    Parameters
    ----------
    function
        Takes a slice; called on several threads at once.
    length
        Number of items in all.
    item_bytes
        Bytes of one item.
    """
    return over_parts(function, length, -(-length * item_bytes // _PIECE_BYTES))


def over_parts(function: Callable[[slice], Array], length: int, count: int) -> list[Array]:
    """Return `function` of `count` consecutive slices of about equal length, on our threads."""
    count = max(1, min(length, count))
    bounds = np.linspace(0, length, count + 1).astype(int)
    pieces = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
    if count == 1 or n_threads() == 1:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(min(n_threads(), count)) as pool:
        return list(pool.map(function, pieces))


def together(reference: Array, *functions: Callable[[], Any]) -> list[Any]:
    """Return what the functions return, run at once where `reference` is a NumPy array.

    A device has its own parallelism, and its libraries know the current device of one thread only.
    """
    if not is_numpy(reference) or n_threads() == 1:
        return [function() for function in functions]
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def fftn(x: Array, axes: Sequence[int]) -> Array:
    """Unitary discrete Fourier transform along `axes`, kernel exp(-i 2 pi j k / n), without any shift."""
    return _transform(x, tuple(axes), forward=True)


def ifftn(x: Array, axes: Sequence[int], *, unitary: bool = True, into: np.ndarray | None = None) -> Array:
    """Inverse of `fftn` (unitary, kernel exp(+i 2 pi j k / n)); not `unitary`: the plain sum, sqrt(n) times that.

    `into` takes the result where `x` is a NumPy array; fresh memory for each of many transforms costs as much as they.
    """
    if is_numpy(x):
        return _planned_fft(x, tuple(axes), forward=False, unitary=unitary, into=into)
    return _transform(x, tuple(axes), forward=False, unitary=unitary)


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


def _transform(x: Array, axes: tuple[int, ...], *, forward: bool, unitary: bool = True) -> Array:
    if is_numpy(x):
        return _planned_fft(x, axes, forward=forward)
    xp = namespace(x)
    return (xp.fft.fftn if forward else xp.fft.ifftn)(x, axes=axes, norm="ortho" if unitary else "forward")


def _planned_fft(
    x: np.ndarray, axes: tuple[int, ...], *, forward: bool, unitary: bool = True, into: np.ndarray | None = None
) -> np.ndarray:
    """Transform with a cached multi-threaded FFTW plan (one plan per shape, strides, type and direction)."""
    if x.dtype not in (np.complex64, np.complex128):
        x = x.astype(np.complex64 if x.dtype == np.float32 else np.complex128)
    threads = n_threads() if x.size >= _ONE_THREAD else 1
    key = (x.shape, x.strides, x.dtype.char, axes, forward, threads)
    result = np.empty(x.shape, dtype=x.dtype) if into is None else into
    try:
        plan = _IDLE_PLANS[key].pop()
        plan.update_arrays(x, result)
    except (KeyError, IndexError):
        plan = _new_plan(x, result, axes, forward, threads)
    plan.execute()
    if key not in _IDLE_PLANS and len(_IDLE_PLANS) >= _MAX_PLANS:
        _IDLE_PLANS.pop(next(iter(_IDLE_PLANS)), None)
    _IDLE_PLANS.setdefault(key, []).append(plan)
    if unitary:
        # real times real: half the work of a complex product
        parts = result.view(result.real.dtype)
        parts *= parts.dtype.type(1.0 / np.sqrt(np.prod([x.shape[a] for a in axes])))
    return result


def _new_plan(x: np.ndarray, result: np.ndarray, axes: tuple[int, ...], forward: bool, threads: int) -> Any:
    """Plan by FFTW's rules and not by its clock (ESTIMATE), so that every run computes the same digits.

    Such planning leaves the arrays as they are. A view with gaps (a slice) is transformed from where it lies.
    """
    return pyfftw.FFTW(
        x,
        result,
        axes=axes,
        direction="FFTW_FORWARD" if forward else "FFTW_BACKWARD",
        flags=("FFTW_ESTIMATE", "FFTW_UNALIGNED"),
        threads=threads,
    )
