"""Phosphorus and deuterium scans from their readouts to maps, without any water reference."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.physics.nucleus import nucleus_of

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=["csi16_31p", "csi16_2h"])
def scan(request) -> SimulatedScan:
    return simulate(request.param)


@pytest.mark.parametrize("recipe", ["fourier", "low_rank", "subspace"])
def test_every_recipe_gives_the_ratios_of_a_scan_without_water(scan, recipe):
    readouts = list(scan.acquisitions)
    given = replay.Scan(scan.header_xml, readouts, len(readouts), "simulated")
    result = replay.replay_here(given, ScanOptions(recipe=recipe, device="cpu"))
    maps, truth = gather(result.images).maps, scan.truth
    nucleus, mask = nucleus_of(scan.protocol), scan.truth.brain_mask
    strongest = nucleus.strongest
    assert set(nucleus.sums) <= set(maps)
    assert "water" not in maps
    plenty = mask & (truth.content(strongest) > 0.5 * np.median(truth.content(strongest)[mask]))
    worst = {"fourier": 0.25, "low_rank": 0.35, "subspace": 0.17}[recipe]
    for name in ("ATP", "PME", "PDE") if scan.protocol.nucleus == "31P" else ("Glc", "Glx"):
        # the receive field divides out
        found = maps[name].value[plenty] / maps[strongest].value[plenty]
        true = truth.content(name)[plenty] / truth.content(strongest)[plenty]
        assert np.linalg.norm(found - true) < worst * np.linalg.norm(true), name
    if scan.protocol.nucleus == "31P":
        assert np.nanmedian(maps["pH"].value[mask]) == pytest.approx(7.048, abs=0.01)
