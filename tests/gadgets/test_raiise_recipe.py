"""Recipe raiise in the whole chain: with the model of the store, and without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrsi_gadgets.data import Maps
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.model_store import save_model
from mrsi_gadgets.models.training import train
from mrsi_gadgets.stream.messages import ConfigFile, ConfigText, Header
from small_model import SETTINGS, origin
from small_scan import small_scan


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    settings = replace(
        SETTINGS, rank=20, latent=16, hidden=32, samples=1500, autoencoder_steps=150, projector_steps=200
    )
    trained = train(small_scan().protocol, settings=settings, seed=0)
    return save_model(trained, tmp_path_factory.mktemp("models"), "small", origin()).parent


def maps_of(store: Path, recipe: str = "raiise") -> Maps:
    scan = small_scan()
    seen: list[Any] = []
    messages = [ConfigFile(recipe), Header(scan.header_xml), *scan.readouts]
    run_scan(iter(messages), lambda message: None, ScanOptions(device="cpu", models=store), observe=seen.append)
    # quantify's, and the same in absolute units
    return [item for item in seen if isinstance(item, Maps)][-1]


def test_the_recipe_takes_the_model_of_the_store_and_says_where_it_does_not_fit(store):
    maps = maps_of(store)
    inside = maps.mask
    outside = maps.maps["outside_model"].value
    assert set(np.unique(outside[inside])) <= {0.0, 1.0}
    assert np.isnan(outside[~inside]).all()
    score = maps.maps["model_score"].value[inside]
    assert np.isfinite(score).all()
    assert score[outside[inside] == 1].min(initial=np.inf) > score[outside[inside] == 0].max(initial=-np.inf)
    # the amounts are those of the linear result to within the noise
    plain = maps_of(store, "subspace")
    ratio = maps.maps["tNAA"].value[inside].mean() / plain.maps["tNAA"].value[inside].mean()
    assert ratio == pytest.approx(1.0, abs=0.05)
    assert "outside_model" not in plain.maps


def test_the_same_scan_gives_the_same_maps(store):
    first, second = maps_of(store), maps_of(store)
    for name, values in first.maps.items():
        np.testing.assert_array_equal(values.value, second.maps[name].value)


def test_without_a_model_it_does_what_subspace_does_and_says_so(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="mrsi"):
        maps = maps_of(tmp_path)
    assert "no trained model fits this scan, so method raiise did what subspace does" in caplog.text
    plain = maps_of(tmp_path, "subspace")
    np.testing.assert_array_equal(maps.maps["tNAA"].value, plain.maps["tNAA"].value)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"method": "raiise", "rank": 8}, "method raiise has the rank of its trained model"),
        ({"method": "dae", "rank": 8}, "method dae has the rank of its trained model"),
        ({"method": "raiise", "prior": "none"}, "projects the image of a spatial prior"),
        ({"method": "dae", "prior": "tv"}, "dae cannot take prior tv"),
    ],
)
def test_attributes_that_trained_methods_cannot_have_are_refused(attributes, told):
    with pytest.raises(ConfigError, match=told):
        Reconstruct(**attributes)


def test_method_dae_goes_through_the_chain(store):
    shipped = (Path(__file__).parents[2] / "config" / "raiise.xml").read_text()
    scan = small_scan()
    seen: list[Any] = []
    recipe = ConfigText(shipped.replace('method="raiise"', 'method="dae"'))
    messages = [recipe, Header(scan.header_xml), *scan.readouts]
    run_scan(iter(messages), lambda message: None, ScanOptions(device="cpu", models=store), observe=seen.append)
    maps = [item for item in seen if isinstance(item, Maps)][-1]
    plain = maps_of(store, "subspace")
    ratio = maps.maps["tNAA"].value[maps.mask].mean() / plain.maps["tNAA"].value[maps.mask].mean()
    assert ratio == pytest.approx(1.0, abs=0.05)
