"""A device with too little memory: smaller batches, then the processor, and the result says so.

There is no device here: torch on the processor stands for one, and errors are those that CuPy and torch raise.
"""

from __future__ import annotations

from dataclasses import dataclass

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch

from mrsi_gadgets import replay
from mrsi_gadgets.arrays import batch_size, is_numpy, out_of_memory, smaller_batches
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.device_memory import on_host, with_memory
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from small_scan import small_scan


def cupy_error() -> Exception:
    """As `cupy.cuda.memory.OutOfMemoryError`, which needs no device to be raised."""
    from cupy.cuda.memory import OutOfMemoryError

    return OutOfMemoryError(1 << 30, 1 << 20)


def fft_error() -> Exception:
    """As CuPy's FFT says it."""
    kind = type("CuFFTError", (RuntimeError,), {})
    return kind("CUFFT_ALLOC_FAILED")


ERRORS = [lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), cupy_error, fft_error]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_a_devices_memory_are_told_from_others(error):
    assert out_of_memory(error())
    for other in (MemoryError(), RuntimeError("shapes do not fit"), ValueError("out of memory"), KeyError("x")):
        assert not out_of_memory(other)


@dataclass(frozen=True)
class Item:
    samples: object
    name: str = "item"


@pytest.fixture
def context(protocol) -> Context:
    made = Context(protocol, device=("cupy", 0))
    made.report.provenance["device"] = "cupy:0"
    made.calibration.coil_maps = xp.ones((2, 3), dtype=xp.complex64)
    return made


def test_batches_become_smaller_until_the_work_fits(context):
    tried = []

    def work(item: Item) -> int:
        tried.append(batch_size(1000))
        if batch_size(1000) > 100:
            raise ERRORS[0]()
        assert not is_numpy(item.samples)
        return 7

    assert with_memory(context, "quantify", Item(xp.zeros(3)), work) == 7
    assert tried == [1000, 250, 62]
    assert batch_size(1000) == 1000
    assert not context.left_device
    (warning,) = context.report.warnings
    assert "<quantify/>, which went on in batches of 1/16" in warning


@pytest.mark.parametrize("error", ERRORS)
def test_the_processor_takes_over_with_everything_that_lay_on_the_device(context, error):
    context.calibrated["gadget"] = None

    def work(item: Item) -> np.ndarray:
        if not is_numpy(item.samples):
            raise error()
        assert is_numpy(context.calibration.coil_maps)
        return item.samples * 2

    result = with_memory(context, "reconstruct", Item(xp.arange(3)), work)
    np.testing.assert_array_equal(result, [0, 2, 4])
    assert context.device == ("numpy", "cpu")
    assert not context.calibrated
    assert context.report.provenance["device"] == "cupy:0, numpy:cpu from <reconstruct/> on"
    assert "the processor computed from there on" in context.report.warnings[0]
    # later items are moved first, and nothing is said again
    with_memory(context, "quantify", Item(xp.arange(3)), work)
    assert len(context.report.warnings) == 1


def test_other_errors_and_those_of_the_processor_pass(context):
    def work(item: Item) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        with_memory(context, "reconstruct", Item(xp.zeros(2)), work)
    assert not context.left_device
    assert context.report.warnings == []


def test_nested_values_are_copied_and_the_rest_is_kept():
    inner = Item(np.zeros(2))
    moved = on_host((Item(xp.ones(2)), inner, "text"))
    assert is_numpy(moved[0].samples)
    assert moved[1] is inner
    with smaller_batches(10**9):
        assert batch_size(5) == 1


def test_a_scan_whose_reconstruction_does_not_fit_gives_the_maps_of_the_processor(monkeypatch):
    from mrsi_gadgets.gadgets import prewhiten, reconstruct

    scan = small_scan()
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    expected = replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu"))
    real = reconstruct.reconstruct_fourier

    def too_large(kt, *known, **options):
        if not is_numpy(kt.samples):
            raise ERRORS[0]()
        return real(kt, *known, **options)

    monkeypatch.setattr(prewhiten, "to_device", lambda x, device: torch.asarray(x) if isinstance(x, np.ndarray) else x)
    monkeypatch.setattr(reconstruct, "reconstruct_fourier", too_large)
    result = replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu"))
    (warning,) = result.summary["warnings"]
    assert "too little memory for <reconstruct/>, so that the processor computed from there on" in warning
    assert "numpy:cpu from <reconstruct/> on" in result.images[0].attributes.replace("&lt;", "<").replace("&gt;", ">")
    found, wanted = gather(result.images), gather(expected.images)
    mask = wanted.mask[0]
    for name in ("tNAA", "tCr"):
        np.testing.assert_allclose(found.maps[name].frames[0][mask], wanted.maps[name].frames[0][mask], rtol=0.02)
