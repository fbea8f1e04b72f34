"""Fixtures shared by all tests: array libraries, seeded randomness, real data where it is present."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture(params=["numpy", "torch", "array_api_strict"])
def xp(request):
    """An array-API namespace: the numeric suite runs on each of them."""
    import array_api_compat

    if request.param == "numpy":
        import array_api_compat.numpy as module
    elif request.param == "torch":
        import array_api_compat.torch as module
    else:
        module = pytest.importorskip("array_api_strict")
    assert array_api_compat is not None
    return module


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data (never part of the repository)."""
    folder = Path(os.environ.get("MRSI_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data files are not here (set MRSI_SHARED_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def bart() -> str:
    """Path of the BART command, a peer we compare with."""
    return system_command("bart", package="bart")


def system_command(name: str, *, package: str) -> str:
    """Return the path of a command of a system package, or skip with the package's name (fail where CI promised it)."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("MRSI_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(f"command '{name}' is missing although CI installs package '{package}'")
        pytest.skip(f"command '{name}' is not installed (Debian package '{package}')")
    return found


def pytest_collection_modifyitems(items) -> None:
    try:
        import cupy

        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as problem:  # noqa: BLE001  any failure of a driver means that there is no device
        devices, why = 0, type(problem).__name__
    else:
        why = "none found"
    for item in items:
        if item.get_closest_marker("gpu") and devices == 0:
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device ({why})"))
