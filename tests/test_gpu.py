"""What only a GPU can tell: CuPy's arrays and libraries, its memory, a session of the server. Skips without one.

Where there is a GPU the numeric suite runs on CuPy and on torch's CUDA arrays as well (fixture `xp`), and so do the
chains of `gadgets/test_on_a_device.py`; ``python -m pytest -m gpu tests`` runs all of it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from mrsi_gadgets import replay
from mrsi_gadgets.arrays import free_device_memory, select_device
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.stream.client import send_scan
from served import serving
from small_model import small_model
from small_scan import small_scan

log = logging.getLogger(__name__)
pytestmark = pytest.mark.gpu
PRESETS = ["csi16", "csi16_elliptical", "epsi16_ramp", "epsi16_kt", "rings16", "spiral16", "csi16_31p", "csi16_2h"]


def replayed(scan: replay.Scan, recipe: str, device: str):
    """Results of a chain in this process, and its summary."""
    result = replay.replay_here(scan, ScanOptions(recipe=recipe, device=device))
    return gather(result.images), result.summary


def assert_same(found, expected) -> None:
    """Maps that agree much better than any of them is known."""
    mask = expected.mask[0]
    np.testing.assert_array_equal(found.mask[0], mask)
    names = [name for name in expected.maps if "water" not in name][:6]
    assert names
    for name in names:
        ours, theirs = (np.nan_to_num(one.maps[name].frames[0][mask]) for one in (found, expected))
        assert np.linalg.norm(ours - theirs) <= 5e-3 * np.linalg.norm(theirs), name


def test_a_device_is_found_without_being_asked_for():
    assert select_device("auto") == ("cupy", 0)


@pytest.fixture(scope="module", params=PRESETS)
def path(request, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("scans") / f"{request.param}.h5"
    write_simulation(request.param, file)
    return file


@pytest.mark.parametrize("recipe", ["fourier", "low_rank", "subspace"])
def test_every_encoding_and_nucleus_gives_the_maps_of_the_processor(path, recipe):
    expected, _ = replayed(replay.open_scan(str(path)), recipe, "cpu")
    found, summary = replayed(replay.open_scan(str(path)), recipe, "cuda:0")
    assert summary["provenance"]["device"].startswith("cupy:0 (")
    assert_same(found, expected)


@pytest.fixture
def memory():
    """CuPy's memory, empty, and without a limit afterwards."""
    import cupy

    free_device_memory()
    pool = cupy.get_default_memory_pool()
    yield pool
    pool.set_limit(size=0)
    free_device_memory()


@pytest.mark.parametrize("recipe", ["fourier", "subspace"])
@pytest.mark.parametrize(("share", "on_the_processor"), [(0.9, None), (0.5, None), (0.02, True)])
def test_a_device_that_is_too_small_gives_the_same_maps_and_says_so(recipe, share, on_the_processor, memory):
    scan = small_scan((24, 20, 1), n_times=256)
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    expected, _ = replayed(given, recipe, "cpu")
    whole, summary = replayed(given, recipe, "cuda:0")
    assert not [w for w in summary["warnings"] if "memory" in w]
    assert_same(whole, expected)
    most = memory.total_bytes()
    free_device_memory()
    memory.set_limit(size=int(share * most))
    found, summary = replayed(given, recipe, "cuda:0")
    told = [w for w in summary["warnings"] if "the device had too little memory" in w]
    log.info("%s in %.2f of %.1f MiB: %s, %s", recipe, share, most / 2**20, told, summary["provenance"]["device"])
    if on_the_processor:
        assert told
        assert "numpy:cpu from <" in summary["provenance"]["device"]
    assert_same(found, expected)


def test_networks_of_a_torch_without_the_device_give_what_those_on_it_give(rng, monkeypatch):
    import cupy

    manifold = small_model().manifold
    shape = (50, manifold.rank)
    a = cupy.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64))
    on_device = manifold.project_coefficients(a, 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_host = manifold.project_coefficients(a, 1.0)
    assert isinstance(on_host, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(on_host), cupy.asnumpy(on_device), rtol=1e-3, atol=1e-4)


def test_a_session_of_the_server_computes_on_the_device():
    scan = small_scan()
    with serving(scan=ScanOptions(device="cuda:0")) as server:
        results = [
            send_scan("127.0.0.1", server.port, header_xml=scan.header_xml, items=scan.readouts, config_name="subspace")
            for _ in range(2)
        ]
    for result in results:
        assert "cupy:0" in result.images[0].attributes
        assert gather(result.images).mask[0].sum() > 10
