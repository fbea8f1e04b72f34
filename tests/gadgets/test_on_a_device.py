"""The whole chain on another device than the processor: the same maps.

Where there is no GPU, array-api-strict's second device stands for one: its arrays cannot be read as NumPy arrays, and
mixing them with arrays that lie elsewhere is an error. What CuPy itself does only a GPU tells (marker ``gpu``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import array_api_strict
import numpy as np
import pytest

from mrsi_gadgets.arrays import is_device_array
from mrsi_gadgets.data import Maps, SpectralImage
from mrsi_gadgets.gadgets import prewhiten, reconstruct
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.model_store import save_model, signal_protocol
from mrsi_gadgets.models.training import train
from mrsi_gadgets.quantification.cnn_training import train_spectrum_networks
from mrsi_gadgets.quantification.preparation import usual_model
from mrsi_gadgets.stream.messages import ConfigText, Header
from small_model import SETTINGS, origin
from small_scan import SmallScan, small_scan

CONFIG = Path(__file__).parents[2] / "config"
METHODS = {
    "fourier": ("fourier", {}),
    "low_rank": ("low_rank", {}),
    "subspace": ("subspace", {}),
    "raiise": ("raiise", {}),
    "dae": ("raiise", {'method="raiise"': 'method="dae"'}),
    "tv": ("subspace", {'<reconstruct method="subspace"': '<reconstruct method="subspace" prior="tv"'}),
    "wavelet": ("subspace", {'<reconstruct method="subspace"': '<reconstruct method="subspace" prior="wavelet"'}),
    "union_of_subspaces": ("subspace", {'<quantify method="varpro"': '<quantify method="union_of_subspaces"'}),
    "cnn": ("subspace", {'<quantify method="varpro"': '<quantify method="cnn"'}),
    "cnn_spectrum": ("subspace", {'<quantify method="varpro"': '<quantify method="cnn_spectrum"'}),
}
"""Name -> shipped recipe, and what is replaced in it."""
SAME = 0.02
"""Of the Cramer-Rao bound: iterations that are stopped, and minima that are flat, let rounding grow."""
DEVICES = ["second_device", pytest.param("cuda:0", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Models of the small scan; networks that have seen next to nothing compute as others do."""
    protocol = small_scan().protocol
    model = usual_model(signal_protocol(protocol))
    networks, _ = train_spectrum_networks(model, samples=300, steps=20, hidden=16, seed=1)
    trained = replace(train(protocol, settings=SETTINGS, seed=0), networks=networks)
    return save_model(trained, tmp_path_factory.mktemp("models"), "both", origin()).parent


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Name of the device."""
    return request.param


def items_of(scan: SmallScan, method: str, options: ScanOptions) -> list:
    """What leaves the gadgets, in their order."""
    recipe, replaced = METHODS[method]
    text = (CONFIG / f"{recipe}.xml").read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    seen: list = []
    messages = [ConfigText(text), Header(scan.header_xml), *scan.readouts]
    run_scan(iter(messages), lambda message: None, options, observe=seen.append)
    return seen


def on_device(device: str, scan: SmallScan, method: str, store: Path) -> list:
    """`items_of` on the device."""
    if device != "second_device":
        return items_of(scan, method, ScanOptions(device=device, models=store))
    second = array_api_strict.Device("device1")

    def to_second_device(x, target):
        return array_api_strict.asarray(x, device=second) if isinstance(x, np.ndarray) else x

    with pytest.MonkeyPatch.context() as patch:
        for module in (prewhiten, reconstruct):
            patch.setattr(module, "to_device", to_second_device)
        return items_of(scan, method, ScanOptions(device="cpu", models=store))


@pytest.mark.parametrize("method", METHODS)
def test_a_device_gives_the_maps_of_the_processor(method, device, store):
    scan = small_scan()
    found = on_device(device, scan, method, store)
    images = [item for item in found if isinstance(item, SpectralImage)]
    assert images
    assert all(is_device_array(image.coefficients) for image in images), "the scan stayed on the processor"
    expected = items_of(scan, method, ScanOptions(device="cpu", models=store))
    ours, theirs = ([i for i in items if isinstance(i, Maps)][-1] for items in (found, expected))
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    assert set(ours.maps) == set(theirs.maps)
    for name, wanted in theirs.maps.items():
        same(ours.maps[name].value, wanted.value, wanted.crlb, ours.mask, name)
        if wanted.sd is not None:
            # a molecule at zero in one and just above in the other changes what its sums are free to do
            off = np.abs(ours.maps[name].sd - wanted.sd)[ours.mask] > 0.02 * wanted.sd[ours.mask] + 1e-6
            assert np.mean(off) <= 0.1, f"SD of {name}"


def same(found: np.ndarray, expected: np.ndarray, crlb: np.ndarray | None, mask: np.ndarray, name: str) -> None:
    """Equal to within rounding: a fiftieth of the bound of what noise does where there is one."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
    allowed = 0.01 * np.max(np.nan_to_num(np.abs(expected))) if crlb is None else SAME * np.nan_to_num(crlb[mask])
    assert np.all(np.nan_to_num(np.abs(found - expected)[mask]) <= allowed + 1e-6), name
