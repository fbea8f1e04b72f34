"""cuFINUFFT, with the libraries of CUDA 12 that its wheels are linked to, wherever they are installed.

pip puts CUDA's libraries (packages nvidia-cufft-cu12 and nvidia-cuda-runtime-cu12) where the system's loader does not
look. CuPy finds what it needs itself, and may be built for another CUDA than cuFINUFFT; both work on the same device.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from mrsi_gadgets.errors import MissingPackageError

NEEDED = ("libcudart.so.12", "libcufft.so.11")


def import_cufinufft() -> ModuleType:
    """Return the package cufinufft, loaded with its CUDA libraries.

    Raises
    ------
    MissingPackageError
        The package or a library is not installed.
    """
    missing = [name for name in NEEDED if not _loaded(name)]
    try:
        import cufinufft
    except ImportError as error:
        lacks = f" and the libraries {', '.join(missing)} of CUDA 12" if missing else ""
        raise MissingPackageError(
            f"non-uniform Fourier transforms on a GPU need the package cufinufft{lacks}; install the extra cuda12 or "
            "cuda13, or use --device cpu"
        ) from error
    return cufinufft


def _loaded(name: str) -> bool:
    """Load a library, from where the system looks or else from pip's packages; whether it is there."""
    for place in (name, *map(str, installed(name, _pip_folders()))):
        with contextlib.suppress(OSError):
            ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def installed(name: str, folders: Iterable[Path]) -> list[Path]:
    """Return the files of this name that NVIDIA's packages below the folders hold."""
    return sorted(file for folder in folders for file in folder.glob(f"*/lib/{name}"))


def _pip_folders() -> list[Path]:
    """Return where pip puts NVIDIA's packages, which share one namespace."""
    found = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in found.submodule_search_locations or ()] if found else []
