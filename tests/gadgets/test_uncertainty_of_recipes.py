"""Deviations, bound, reasons and replicas as they leave with the images of a recipe."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.quality_mask import QualityMask
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from small_scan import small_scan


@pytest.mark.parametrize(("recipe", "replicas"), [("low_rank", 1), ("subspace", 0), ("fourier", 0)])
def test_a_recipe_states_deviations_bounds_and_reasons(recipe, replicas):
    scan = small_scan()
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    results = gather(replay.replay_here(given, ScanOptions(recipe=recipe, device="cpu")).images)
    assert results.provenance["noise_replicas"] == replicas
    assert "SNR at least 3" in results.provenance["quality"]
    inside = results.mask[0]
    for name in ("tNAA", "tCr", "tCho", "Ins", "Glx"):
        one = results.maps[name]
        assert np.all(one.sd[inside] > 0)
        assert np.all(one.crlb[inside] > 0)
        # what is hidden in pictures is whole here
        assert np.all(np.isfinite(one.value[inside]))
    assert np.all(results.maps["snr"].value[inside] > 0)
    codes = results.maps["quality"].value[inside]
    assert np.array_equal(codes, np.round(codes))
    hidden = results.provenance["quality_mask"]["hidden_voxels"]
    assert hidden == np.sum((codes.astype(int) & results.provenance["quality_mask"]["codes_that_hide"]) > 0)


def test_bad_attributes_are_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="replicas is -1"):
        Reconstruct(replicas=-1)
    with pytest.raises(ConfigError, match="linewidth_ppm is -0.1"):
        QualityMask(linewidth_ppm=-0.1)
