"""Methods of <quantify> that need networks: with those of the store, and without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrsi_gadgets.data import Maps
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.model_store import save_model, signal_protocol
from mrsi_gadgets.models.training import Trained, train
from mrsi_gadgets.quantification.cnn_training import train_spectrum_networks
from mrsi_gadgets.quantification.preparation import usual_model
from mrsi_gadgets.stream.messages import Acquisition, ConfigText, Header
from small_model import SETTINGS, origin
from small_scan import small_scan


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(small_scan().protocol, settings=SETTINGS, seed=0)


@pytest.fixture(scope="module")
def store(trained, tmp_path_factory) -> Path:
    model = usual_model(signal_protocol(small_scan().protocol))
    networks, _ = train_spectrum_networks(model, samples=500, steps=60, hidden=32, seed=1)
    return save_model(replace(trained, networks=networks), tmp_path_factory.mktemp("models"), "both", origin()).parent


def maps_of(store: Path, attributes: str, *, damped_hz: float = 0.0) -> Maps:
    shipped = (Path(__file__).parents[2] / "config" / "subspace.xml").read_text()
    recipe = ConfigText(shipped.replace('<quantify method="varpro"/>', f"<quantify {attributes}/>"))
    scan = small_scan()
    if damped_hz:
        decay = np.exp(-np.pi * damped_hz * scan.protocol.dwell_s * np.arange(scan.protocol.n_times))
        wanted = {id(readout) for readout in scan.metabolites}
        scan = scan.with_readouts(
            [Acquisition(r.head, (r.data * decay).astype("c8")) if id(r) in wanted else r for r in scan.readouts]
        )
    seen: list[Any] = []
    messages = [recipe, Header(scan.header_xml), *scan.readouts]
    run_scan(iter(messages), lambda message: None, ScanOptions(device="cpu", models=store), observe=seen.append)
    maps, *_ = [item for item in seen if isinstance(item, Maps)]
    return maps


@pytest.mark.parametrize(("method", "steps"), [("cnn", 60), ("cnn_spectrum", 0)])
def test_the_networks_of_the_store_give_amounts_near_those_of_the_fit(store, method, steps, caplog):
    """Lines of this scan are narrower than any of training: the regressor must be adapted."""
    with caplog.at_level("WARNING", logger="mrsi"):
        maps = maps_of(store, f'method="{method}" adapt_steps="{steps}"')
    assert "needs trained networks" not in caplog.text
    assert maps.provenance["quantification"] == method
    fitted = maps_of(store, 'method="varpro"')
    ratio = np.median(maps.maps["tNAA"].value[maps.mask] / fitted.maps["tNAA"].value[maps.mask])
    assert ratio == pytest.approx(1.0, abs=0.25)  # after a few seconds of training
    assert set(maps.maps) == set(fitted.maps)


def test_lines_twice_as_wide_as_trained_are_told(store, caplog):
    """By networks of a few seconds' training, adapted a little so that they know how wide the lines are."""
    told = "this scan is not like those that the networks of model 'both' know: "
    with caplog.at_level("WARNING", logger="mrsi"):
        maps = maps_of(store, 'method="cnn" adapt_steps="60"')
        assert "Hz wide" not in caplog.text
        # this scan is less noisy than any of the small model's training
        assert f"{told}its SNR is" in caplog.text
        assert np.median(maps.maps["linewidth"].value[maps.mask]) < 6
        caplog.clear()
        maps_of(store, 'method="cnn" adapt_steps="60"', damped_hz=22)
    assert f"{told}its lines are 2" in caplog.text
    assert "and training went up to 12.2 Hz; their amounts are not to be trusted; take method varpro" in caplog.text


def test_varpro_can_start_from_adapted_networks_and_says_so(store):
    maps = maps_of(store, 'method="varpro" start="cnn" adapt_steps="2"')
    assert (maps.provenance["quantification"], maps.provenance["start"]) == ("varpro", "cnn")
    assert maps.provenance["adapt_steps"] == 2
    searched = maps_of(store, 'method="varpro"')
    ratio = maps.maps["tNAA"].value[maps.mask] / searched.maps["tNAA"].value[maps.mask]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("attributes", ['method="cnn"', 'method="cnn_spectrum"', 'method="varpro" start="cnn"'])
def test_without_networks_the_result_is_that_of_varpro_and_it_is_said(trained, tmp_path, attributes, caplog):
    with caplog.at_level("WARNING", logger="mrsi"):
        none = maps_of(tmp_path, attributes)
        save_model(trained, tmp_path, "old", origin())
        old = maps_of(tmp_path, attributes)
    assert "needs trained networks and there is no learned model for this scan: the result is that of" in caplog.text
    assert "needs trained networks and the model 'old' was learned without them: the result is that of" in caplog.text
    fitted = maps_of(tmp_path, 'method="varpro"')
    for maps in (none, old):
        assert maps.provenance["quantification"] == "varpro"
        np.testing.assert_array_equal(maps.maps["tNAA"].value, fitted.maps["tNAA"].value)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"method": "cnn", "adapt_steps": -1}, "adapt_steps is -1; it must be at least 0"),
        ({"adapt_steps": 5}, "adapt_steps is for method cnn, or for varpro with start cnn"),
        ({"method": "cnn_spectrum", "adapt_steps": 5}, "adapt_steps is for method cnn"),
        ({"method": "cnn", "start": "cnn"}, "start is for method varpro, not for cnn"),
        ({"method": "ccn"}, "method is 'ccn'"),
    ],
)
def test_attributes_that_do_not_go_together_are_refused(attributes, told):
    with pytest.raises(ConfigError, match=told):
        Quantify(**attributes)
