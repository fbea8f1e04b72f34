"""The gadget `quantify` with nuclei other than protons."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Protocol, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr, sample


def context_of(nucleus: str, mhz: float, ppm: float, **fields) -> Context:
    geometry = Geometry((4, 4, 1), (160.0, 160.0, 40.0))
    return Context(Protocol(nucleus, mhz * 1e6, ppm, 1 / 4000, 256, 0.5e-3, geometry, "csi", **fields))


@pytest.mark.parametrize("method", ["varpro", "union_of_subspaces"])
@pytest.mark.parametrize(
    ("nucleus", "mhz", "ppm", "strongest", "ratio"), [("31P", 120.3, 0.0, "PCr", "PME_per_ATP"),
                                                      ("2H", 45.6, 4.8, "HDO", "Glx_per_HDO")]
)  # fmt: skip
def test_maps_are_those_of_the_nucleus_and_water_of_calibration_is_none_of_them(
    nucleus, mhz, ppm, strongest, ratio, method
):
    context = context_of(nucleus, mhz, ppm, repetition_time_s=1.0, flip_angle_deg=50.0)
    quantify = Quantify(method=method)
    prepared: Future[object] = Future()
    prepared.set_result(quantify.prepare(context))
    context.prepared[quantify] = prepared
    assert context.report.provenance["t1_weights"].endswith(f"relative to {strongest}")
    protocol = context.protocol
    sd = noise_sd_at_snr(protocol, 50.0)
    rng = np.random.default_rng(2)
    fids = sample(protocol, 16, 1).metabolites
    fids = (fids + sd * (rng.standard_normal((*fids.shape, 2)) @ np.array([1, 1j]))).astype(np.complex64)
    grid = (4, 4, 1)
    image = SpectralImage(
        fids.reshape(*grid, -1), None, protocol, np.ones(grid, bool), np.zeros(grid, np.float32),
        np.full(grid, sd, np.float32),
    )  # fmt: skip
    # a field map from the strongest line may leave its amplitude here
    context.calibration.water = np.ones(grid, np.float32)
    context.calibration.b0_hz = np.zeros(grid, np.float32)
    (maps,) = quantify.process(iter([image]), context)
    assert {strongest, ratio} <= set(maps.maps) <= set(context.map_names)
    assert "water" not in maps.maps
    assert not any(name.endswith("_per_water") for name in context.map_names)
    assert np.isfinite(maps.maps[strongest].value).all()
    assert not context.report.warnings


def test_a_nucleus_without_known_molecules_is_refused_when_its_fit_is_prepared():
    with pytest.raises(DataError, match="known for 1H, 31P, 2H only, the protocol's nucleus is 23Na"):
        Quantify().prepare(context_of("23Na", 78.6, 0.0))


def test_a_spatial_prior_belongs_to_the_union_of_subspaces():
    with pytest.raises(ConfigError, match="spatial_prior is for method union_of_subspaces"):
        Quantify(spatial_prior="edges")
    assert Quantify(method="union_of_subspaces", spatial_prior="none").spatial_prior == "none"
