"""Fixtures shared by all tests: array libraries, seeded randomness, real data where it is present."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Protocol

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def same_logging():
    """A command sets up logging for its process; the tests after one that ran a command have their own."""
    log = logging.getLogger("mrsi")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(autouse=True, scope="session")
def no_models_of_the_user(tmp_path_factory):
    """What somebody has learned on this machine changes no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRSI_MODELS", str(tmp_path_factory.mktemp("models")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_spool_of_the_user(tmp_path_factory):
    """Servers that tests start keep their raw data where nobody looks for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRSI_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture(params=["numpy", "torch", "array_api_strict"])
def xp(request):
    """An array-API namespace: the numeric suite runs on each of them."""
    name = request.param if request.param == "array_api_strict" else f"array_api_compat.{request.param}"
    return importlib.import_module(name)


@pytest.fixture
def make_protocol() -> Callable[..., Protocol]:
    """Return a factory of small 1H protocols; keywords replace fields."""

    def make(**fields) -> Protocol:
        defaults = {
            "nucleus": "1H",
            "transmit_frequency_hz": 123.25e6,
            "reference_ppm": 4.65,
            "dwell_s": 1 / 1500,
            "n_times": 384,
            "acquisition_delay_s": 0.0,
            "geometry": Geometry((3, 4, 5), (60.0, 80.0, 100.0)),
            "encoding": "csi",
        }
        return Protocol(**{**defaults, **fields})

    return make


@pytest.fixture
def protocol(make_protocol) -> Protocol:
    return make_protocol()


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


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; pages are loaded one after the other."""
    from browser import headless_browser

    with headless_browser() as found:
        yield found
