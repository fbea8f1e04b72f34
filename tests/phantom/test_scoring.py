"""The measures measure what they are said to measure."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.phantom import scoring
from mrsi_gadgets.physics.brain_values import REPORTED_SUMS


@pytest.fixture(scope="module")
def truth(noisy_scan):
    return noisy_scan.truth


@pytest.fixture
def maps(truth):
    return {name: truth.content(name) for name in REPORTED_SUMS}


def metabolite_b0(truth):
    """What has to be taken out of the metabolite FIDs: they come after the water reference, on a drifting magnet."""
    return truth.b0_hz + truth.preset.drift_between_scans_hz


def atlas_of(values, truth):
    mask = truth.brain_mask
    design = np.stack([scoring.common_resolution(f, mask)[mask] for f in truth.fractions_resolved], axis=1)
    wanted = scoring.common_resolution(values, mask)[mask]
    weights = np.linalg.lstsq(design, wanted, rcond=None)[0]
    # Filtering is linear: the atlas of unfiltered fractions becomes the regression once it is filtered.
    return np.tensordot(weights, truth.fractions_resolved, axes=1)


def test_truth_scores_zero_with_full_contrast(maps, truth):
    result = scoring.score(maps, truth, b0_hz=truth.b0_hz, fids=truth.fids, fids_b0_hz=metabolite_b0(truth))
    for entry in result.maps.values():
        assert entry.nrmse < 1e-5
        assert entry.detail < 1e-4
        assert abs(entry.bias) < 1e-6
    recoveries = [s.recovery for by_map in result.lesions.values() for s in by_map.values()]
    assert np.allclose([r for r in recoveries if np.isfinite(r)], 1.0, atol=1e-4)
    assert np.isfinite(result.lesions["tumour"]["tNAA"].recovery)
    assert {n for n, s in result.lesions["hidden"].items() if s.changed} == {"tNAA", "Ins", "Glx"}
    assert not any(s.changed for s in result.lesions["water_edge"].values())
    assert all(np.isnan(s.recovery) for s in result.lesions["water_edge"].values())
    assert result.fid_error < 1e-5
    assert result.b0_rms_hz == 0.0
    assert result.unknown_recovery == pytest.approx(1.0, abs=1e-5)
    assert result.unfitted == 0.0
    assert "tNAA" in result.table()


def test_atlas_without_any_metabolite_data_has_detail_error_one(maps, truth, monkeypatch):
    monkeypatch.setattr(scoring, "fit_shading", lambda estimates, truths, mask: np.ones(mask.shape))
    result = scoring.score({name: atlas_of(values, truth) for name, values in maps.items()}, truth)
    for entry in result.maps.values():
        assert entry.detail == pytest.approx(1.0, abs=1e-3)
        assert entry.nrmse < 0.5


def test_mirrored_maps_score_badly(maps, truth):
    result = scoring.score({name: values[::-1] for name, values in maps.items()}, truth)
    assert all(entry.detail > 1.0 for entry in result.maps.values())


def test_shading_and_scale_do_not_matter(maps, truth):
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else [0.0] for n in truth.brain_mask.shape], indexing="ij")
    shading = 3e-7 * (1.5 + 0.3 * x - 0.2 * y + 0.4 * x**2 + 0.1 * x * y**2)
    result = scoring.score({name: values * shading for name, values in maps.items()}, truth)
    assert all(entry.nrmse < 1e-4 for entry in result.maps.values())
    assert np.allclose(result.shading[truth.brain_mask], shading[truth.brain_mask], rtol=1e-4)


def test_shading_of_one_map_alone_is_an_error(maps, truth):
    maps["tCho"] = maps["tCho"] * 1.2
    result = scoring.score(maps, truth)
    assert result.maps["tCho"].bias == pytest.approx(0.16, abs=0.03)
    assert result.maps["tCho"].nrmse > 0.1
    assert result.maps["tNAA"].nrmse < 0.06


def test_noise_does_not_shrink_the_maps(maps, truth, rng):
    noisy = {n: v + 0.5 * v[truth.brain_mask].mean() * rng.standard_normal(v.shape) for n, v in maps.items()}
    result = scoring.score(noisy, truth)
    assert abs(np.mean([entry.bias for entry in result.maps.values()])) < 0.06


def test_missing_values_count_as_zeros(maps, truth):
    hole = np.argwhere(truth.brain_mask)[:5]
    for values in maps.values():
        values[tuple(hole.T)] = np.nan
    result = scoring.score(maps, truth)
    assert result.unfitted == pytest.approx(5 / truth.brain_mask.sum())
    assert result.maps["tNAA"].nrmse_unfiltered > 0.1


def test_common_resolution_keeps_constants_and_ignores_what_is_outside(truth, rng):
    mask = truth.brain_mask
    assert np.allclose(scoring.common_resolution(np.full(mask.shape, 2.0), mask)[mask], 2.0)
    inside = rng.standard_normal(mask.shape)
    wild = np.where(mask, inside, 1e6)
    assert np.allclose(scoring.common_resolution(wild, mask), scoring.common_resolution(inside, mask))


def test_half_of_a_lesions_contrast_scores_one_half(maps, truth):
    fraction = truth.lesions["hidden"]
    free = truth.brain_mask & (truth.lesion_total < 0.02)
    wanted = maps["tNAA"]
    filled = wanted + 0.0
    core = fraction > 0.02
    background = wanted[free].mean()
    filled[core] = background + 0.5 * (wanted[core] - background)
    result = scoring.score(maps | {"tNAA": filled}, truth)
    assert result.lesions["hidden"]["tNAA"].recovery == pytest.approx(0.5, abs=0.2)


def test_contrast_that_follows_the_water_is_false_contrast(maps, truth):
    follows = {name: values * (1.0 - 0.3 * truth.lesions["water_edge"]) for name, values in maps.items()}
    result = scoring.score(follows, truth)
    for entry in result.lesions["water_edge"].values():
        assert entry.false_contrast < -0.1


def test_fid_error_forgives_another_b0_correction_but_not_wrong_phases(truth):
    times = truth.protocol.times_s
    other_b0 = metabolite_b0(truth) + 1.5
    turned = truth.fids * np.exp(-2j * np.pi * 1.5 * times)
    assert scoring.fid_error(turned, truth, b0_hz=other_b0) < 1e-5
    assert scoring.fid_error(turned, truth) > 0.1
    slight = truth.fids * np.exp(2j * np.pi * 0.2 * times)  # eddy-current phase and field, divided differently
    assert scoring.fid_error(slight, truth) < 1e-4
    assert scoring.fid_error(truth.fids * np.exp(0.3j), truth) > 0.2
    assert scoring.fid_error(0.2 * truth.fids, truth) < 1e-5


def test_a_model_that_drops_the_unseen_resonance_recovers_nothing_of_it(truth):
    protocol = truth.protocol
    line = np.exp((2j * np.pi * protocol.hz(scoring.UNKNOWN_PPM)) * protocol.times_s)
    probe = np.exp((-2j * np.pi * protocol.hz(scoring.UNKNOWN_PPM) - 20.0) * protocol.times_s)
    projector = line * 0.0 + line / np.sum(line * probe)
    dropped = truth.fids - (truth.fids @ probe)[..., None] * projector
    assert abs(scoring.unknown_recovery(dropped, truth)) < 0.05


def test_b0_rms_is_over_the_brain_alone(truth):
    wrong = truth.b0_hz + np.where(truth.brain_mask, 0.4, 1000.0)
    assert scoring.b0_rms(wrong, truth) == pytest.approx(0.4, rel=1e-4)


def test_missing_maps_and_wrong_shapes_are_named(maps, truth):
    with pytest.raises(DataError, match=r"maps tCho are missing"):
        scoring.score({n: v for n, v in maps.items() if n != "tCho"}, truth)
    with pytest.raises(DataError, match="map tNAA has shape"):
        scoring.score(maps | {"tNAA": np.zeros((3, 4, 5))}, truth)
    with pytest.raises(DataError, match="FIDs have shape"):
        scoring.fid_error(truth.fids[:5], truth)
    with pytest.raises(DataError, match=r"no map of 'Xyz'"):
        truth.content("Xyz")
