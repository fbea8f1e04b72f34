"""What is shown of maps: limits, reasons, and that nothing is taken from the maps themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.data import DisplayMask, Map
from mrsi_gadgets.phantom.peak import naa_peak_snr
from mrsi_gadgets.physics.nucleus import PROTON
from mrsi_gadgets.quantification.display_mask import REASONS, Limits, with_quality
from mrsi_gadgets.quantification.varpro import fit_varpro

SUMS = tuple(PROTON.sums)


@pytest.fixture
def maps(rng, make_voxels, models):
    made = make_voxels(rng, (5, 4, 3), snr=40.0)
    return fit_varpro(made.image, models(made.image.protocol))


def changed(maps, name, voxel, value, sd=None):
    one = maps.maps[name]
    values, deviations = one.value.copy(), None if one.sd is None else one.sd.copy()
    values[voxel] = value
    if sd is not None:
        deviations[voxel] = sd
    return replace(maps, maps={**maps.maps, name: Map(values, one.unit, deviations)})


def test_good_voxels_are_shown_and_maps_stay_as_they_are(maps):
    judged = with_quality(maps, Limits(), SUMS)
    assert judged.display.voxels.all()
    assert np.all(judged.maps["quality"].value == 0)
    assert {**judged.maps, "quality": None}.keys() == {**maps.maps, "quality": None}.keys()
    assert all(judged.maps[name] is maps.maps[name] for name in maps.maps)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("snr", 2.0, "SNR"), ("linewidth", 25.0, "line width"), ("lipids", 3.0, "lipids")],
)
def test_a_voxel_beyond_a_limit_is_hidden_and_the_map_says_why(maps, name, value, reason):
    judged = with_quality(changed(maps, name, (1, 2, 1), value), Limits(), SUMS)
    assert judged.maps["quality"].value[1, 2, 1] == REASONS[reason]
    assert not judged.display.voxels[1, 2, 1]
    assert judged.display.voxels.sum() == judged.mask.sum() - 1
    assert judged.provenance["quality_mask"]["voxels"][reason] == 1
    off = with_quality(changed(maps, name, (1, 2, 1), value), replace(Limits(), snr=0, linewidth_ppm=0, lipids=0), SUMS)
    assert off.display.voxels.all()


def test_both_reasons_add_up(maps):
    both = changed(changed(maps, "snr", (0, 0, 0), 1.0), "lipids", (0, 0, 0), 9.0)
    assert with_quality(both, Limits(), SUMS).maps["quality"].value[0, 0, 0] == REASONS["SNR"] + REASONS["lipids"]


def test_an_uncertain_map_is_hidden_alone_and_a_certain_zero_is_shown(maps):
    usual = float(np.median(maps.maps["Glx"].value))
    uncertain = changed(maps, "Glx", (2, 1, 0), usual, 0.8 * usual)
    zero = changed(uncertain, "tNAA", (2, 1, 0), 0.0)
    judged = with_quality(zero, Limits(), SUMS)
    assert not judged.display.keeps(judged.maps["Glx"])[2, 1, 0]
    assert judged.display.keeps(judged.maps["tNAA"])[2, 1, 0]
    assert judged.maps["quality"].value[2, 1, 0] == 0
    for name in SUMS:
        zero = changed(zero, name, (2, 1, 0), usual, 1e3 * usual)
    assert with_quality(zero, Limits(), SUMS).maps["quality"].value[2, 1, 0] == REASONS["deviations"]


def test_voxels_outside_of_the_model_are_told_and_hidden_only_where_that_is_asked_for(maps):
    strange = np.zeros(maps.mask.shape, np.float32)
    strange[3, 3, 2] = 1
    there = replace(maps, maps={**maps.maps, "outside_model": Map(strange, "1")})
    told = with_quality(there, Limits(), SUMS)
    assert told.maps["quality"].value[3, 3, 2] == REASONS["outside of the model"]
    assert told.display.voxels[3, 3, 2]
    assert not with_quality(there, Limits(flagged=True), SUMS).display.voxels[3, 3, 2]


def test_the_snr_map_is_that_of_the_definition(rng, make_voxels, models):
    """Without macromolecules below it the peak's height needs no fit of its own."""
    made = make_voxels(rng, (6, 5, 2), snr=50.0)
    found = fit_varpro(made.image, models(made.image.protocol)).maps["snr"].value.ravel()
    fids = made.image.fids().reshape(60, -1)
    wanted = naa_peak_snr(fids, made.noise_sd, made.image.protocol)
    assert abs(np.median(found / wanted) - 1) < 0.12
    assert np.corrcoef(found, wanted)[0, 1] > 0.9


def test_lipids_are_found_where_they_are(rng, make_voxels, models):
    clean = make_voxels(np.random.default_rng(4), (5, 4, 3), snr=60.0)
    fatty = make_voxels(np.random.default_rng(4), (5, 4, 3), snr=60.0, lipids=3.0)
    model = models(clean.image.protocol)
    without, with_them = (fit_varpro(one.image, model).maps["lipids"].value for one in (clean, fatty))
    assert np.median(without) < 0.15
    assert np.median(with_them) > 3 * np.median(without)
    assert np.median(with_them) > 0.3


def test_a_line_that_few_voxels_have_is_shown_there():
    value = np.zeros((3, 4, 5), np.float32)
    sd = np.full((3, 4, 5), np.nan, np.float32)
    value[1, 1, 1:4], sd[1, 1, 1:4] = (2.0, 2.2, 2.1), (0.1, 0.2, 5.0)
    keeps = DisplayMask(np.ones((3, 4, 5), bool), 0.5, "").keeps(Map(value, "a.u.", sd))
    assert keeps[1, 1].tolist() == [False, True, True, False, False]
    assert keeps.sum() == 2
