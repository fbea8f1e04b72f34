"""Fixtures shared by all tests: array libraries, seeded randomness, real data where it is present."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Protocol

REPOSITORY = Path(__file__).resolve().parents[1]


def cuda_devices() -> tuple[int, str]:
    """Number of GPUs that CuPy can use, and why there is none."""
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount(), "none found"
    except Exception as problem:  # noqa: BLE001  any failure of a driver means that there is no device
        return 0, type(problem).__name__


DEVICES, WHY_NONE = cuda_devices()


def on_a_gpu(library: str) -> list:
    """The library as one more parameter, where there is a GPU."""
    return [pytest.param(library, marks=pytest.mark.gpu)] if DEVICES else []


LIBRARIES = ["numpy", "torch", "array_api_strict", *on_a_gpu("cupy")]


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


class OnDevice:
    """An array namespace whose arrays are made on a device other than the library's default one."""

    def __init__(self, namespace: ModuleType, device: object):
        self._namespace, self._device = namespace, device

    def __getattr__(self, name: str) -> object:
        found = getattr(self._namespace, name)
        return partial(found, device=self._device) if name in ("arange", "asarray", "ones", "zeros") else found


def array_library(name: str) -> ModuleType | OnDevice:
    """The namespace of a name of `LIBRARIES`, ``second_device`` or ``torch_cuda``."""
    if name in ("second_device", "array_api_strict"):
        strict = importlib.import_module("array_api_strict")
        return strict if name == "array_api_strict" else OnDevice(strict, strict.Device("device1"))
    found = importlib.import_module(f"array_api_compat.{name.partition('_')[0]}")
    return OnDevice(found, "cuda") if name == "torch_cuda" else found


@pytest.fixture(params=[*LIBRARIES, "second_device", *on_a_gpu("torch_cuda")])
def xp(request):
    """An array-API namespace: the numeric suite runs on each of them, where there is a GPU also on CuPy and torch.

    ``second_device`` is array-api-strict with arrays that do not lie where new ones are made by default: whatever
    forgets the device of its input, or reads it as a NumPy array unasked, fails there as it would on a GPU.
    """
    return array_library(request.param)


@pytest.fixture(params=LIBRARIES)
def nufft_xp(request):
    """As `xp`, of those whose arrays the libraries of non-uniform transforms can read."""
    return array_library(request.param)


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
    for item in items:
        if item.get_closest_marker("gpu") and not DEVICES:
            item.add_marker(pytest.mark.skip(reason=f"needs a CUDA device ({WHY_NONE})"))


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; pages are loaded one after the other."""
    from browser import headless_browser

    with headless_browser() as found:
        yield found
