"""The gate: false alarms as stated at every noise level, what no FID explains is found, nuisance rows do not count."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.gate import FALSE_ALARMS, Gate, calibrate_gate, judge, pooled
from mrsi_gadgets.models.training import Trained, TrainingSettings, train
from mrsi_gadgets.physics.ensemble import Ensemble, noise_sd_at_snr, sample

SETTINGS = TrainingSettings(
    rank=32, latent=24, hidden=64, samples=4000, autoencoder_steps=300, projector_steps=500, batch=512,
    latent_sizes=(24,), latent_steps=1, gate_samples=500,
)  # fmt: skip


@pytest.fixture(scope="module")
def protocol():
    from mrsi_gadgets.phantom.presets import PRESETS

    return PRESETS["csi48"].protocol


@pytest.fixture(scope="module")
def trained(protocol) -> Trained:
    return train(protocol, settings=SETTINGS, seed=3)


@pytest.fixture(scope="module")
def gate(trained) -> Gate:
    return calibrate_gate(trained.manifold, trained.subspace, samples=3000, field_tolerance=1.0, seed=2)


def noisy(fids, sd, seed):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(fids.shape) + 1j * rng.standard_normal(fids.shape)
    return (fids + sd * noise).astype(np.complex64)


def scores(gate, trained, fids, sd, seed=0):
    return judge(gate, trained.manifold, noisy(fids, sd, seed), sd)[0]


def singlets(protocol, n, seed):
    """Lines at any place between 0.5 and 4.2 ppm with T2* of 40 to 120 ms, (n, t)."""
    rng = np.random.default_rng(seed)
    ppm, t2_star = rng.uniform(0.5, 4.2, (n, 1)), rng.uniform(0.04, 0.12, (n, 1))
    return np.exp((2j * np.pi * protocol.hz(ppm) - 1 / t2_star) * protocol.times_s)


def auc(inside, outside):
    return np.mean(np.searchsorted(np.sort(inside), outside)) / len(inside)


@pytest.mark.parametrize("snr", [4.0, 9.0, 20.0, 70.0, 250.0])
def test_false_alarms_are_about_as_many_as_stated_at_every_noise(gate, trained, protocol, snr):
    found = scores(gate, trained, sample(protocol, 2000, 901).metabolites, noise_sd_at_snr(protocol, snr))
    assert found.dtype == np.float32
    assert found.shape == (2000,)
    assert 0.02 < np.mean(gate.outside(found)) < 0.1
    assert 0.05 < np.mean(gate.outside(found, 0.1)) < 0.17
    assert np.mean(gate.outside(found, 0.001)) < 0.006


@pytest.mark.parametrize("snr", [10.0, 20.0, 40.0])
def test_lines_whose_part_outside_of_all_rows_stands_five_times_above_the_noise_are_found(gate, trained, protocol, snr):
    sd = noise_sd_at_snr(protocol, snr)
    fids = sample(protocol, 800, 902).metabolites
    lines = singlets(protocol, 800, 4)
    rows = trained.subspace.basis
    outside = np.linalg.norm(lines - (lines @ rows.conj().T) @ rows, axis=1, keepdims=True)
    inside = scores(gate, trained, fids, sd)
    found = scores(gate, trained, fids + 5 * sd / outside * lines, sd, seed=1)
    assert auc(inside, found) > 0.95
    assert np.mean(gate.outside(found)) > 0.9
    # a line that would stand so high in all, but hides among the rows for the most part, is found less often
    hidden = scores(gate, trained, fids + 5 * sd / np.linalg.norm(lines, axis=1, keepdims=True) * lines, sd, seed=1)
    assert 0.6 < auc(inside, hidden) < 0.95


def test_a_wrong_field_and_wide_lines_are_outside_but_amounts_that_the_ensemble_has_are_inside(gate, trained, protocol):
    sd, times = noise_sd_at_snr(protocol, 40.0), protocol.times_s
    fids = sample(protocol, 500, 903).metabolites
    assert np.mean(gate.outside(scores(gate, trained, fids * np.exp(2j * np.pi * 20 * times), sd))) > 0.98
    wide = sample(protocol, 500, 904, ensemble=Ensemble(broadening_ppm=(0.10, 0.12), lorentzian_hz=(4.0, 6.0)))
    assert np.mean(gate.outside(scores(gate, trained, wide.metabolites, sd))) > 0.8
    found = sample(protocol, 4000, 905)
    much = found.metabolites[found.concentrations_mm[:, found.names.index("Lac")] > 6.0]
    assert len(much) > 100
    assert np.mean(gate.outside(scores(gate, trained, much, sd))) < 0.25


def test_a_field_that_is_somewhat_wider_is_tolerated_and_unseen_lines_are_still_found(gate, trained, protocol):
    tolerant = calibrate_gate(trained.manifold, trained.subspace, samples=3000, seed=2)
    sd = noise_sd_at_snr(protocol, 40.0)
    wider = sample(protocol, 800, 912, ensemble=Ensemble(broadening_ppm=(0.06, 0.08))).metabolites
    strict, eased = (np.mean(g.outside(scores(g, trained, wider, sd))) for g in (gate, tolerant))
    assert eased < 0.7 * strict
    lines = singlets(protocol, 800, 5)
    with_lines = sample(protocol, 800, 913).metabolites + 12 * sd * lines / np.linalg.norm(lines, axis=1, keepdims=True)
    strict, eased = (np.mean(g.outside(scores(g, trained, with_lines, sd))) for g in (gate, tolerant))
    assert eased > strict - 0.07 > 0.7


def test_other_nuclei_have_no_nuisance_rows_and_a_band_of_their_own():
    from mrsi_gadgets.phantom.presets import PRESETS

    protocol = PRESETS["csi16_2h"].protocol
    few = TrainingSettings(
        rank=16, latent=16, hidden=32, samples=2000, autoencoder_steps=100, projector_steps=150, batch=256,
        latent_sizes=(16,), latent_steps=1,
    )  # fmt: skip
    trained = train(protocol, settings=few, seed=1)
    gate = calibrate_gate(trained.manifold, trained.subspace, samples=2000)
    assert gate.nuisance.shape == (0, 256)
    ppm = protocol.reference_ppm + gate.hz / (protocol.transmit_frequency_hz * 1e-6)
    assert -0.5 < ppm.min() < 1.0  # lactate at 1.4 ppm, water at 4.8, and somewhat beyond
    assert 5.2 < ppm.max() < 7.5
    sd = noise_sd_at_snr(protocol, 20.0)
    fids = sample(protocol, 1000, 911).metabolites
    assert 0.02 < np.mean(gate.outside(scores(gate, trained, fids, sd))) < 0.1
    line = np.exp((2j * np.pi * protocol.hz(3.1) - 1 / 0.03) * protocol.times_s)
    found = scores(gate, trained, fids + 9 * sd / np.linalg.norm(line) * line, sd, seed=1)
    assert np.mean(gate.outside(found)) > 0.85


def test_an_fid_with_less_snr_than_any_of_training_is_outside(gate, trained, protocol):
    fids = sample(protocol, 200, 906).metabolites
    low = trained.manifold.snr_range[0]
    assert np.mean(gate.outside(scores(gate, trained, fids, noise_sd_at_snr(protocol, low / 3)))) > 0.9
    silent = scores(gate, trained, np.zeros((5, protocol.n_times)), 1.0)
    assert np.isfinite(silent).all()
    assert gate.outside(silent).all()


def test_scores_follow_scale_and_phase(gate, trained, protocol):
    data = noisy(sample(protocol, 12, 907).metabolites, 5.0, 3).reshape(3, 4, -1)
    factor = np.complex64(3e-6 * np.exp(1.1j))
    plain, projected = judge(gate, trained.manifold, data, 5.0)
    assert plain.shape == (3, 4)
    assert projected.shape == data.shape
    turned, _ = judge(gate, trained.manifold, data * factor, 5.0 * abs(factor))
    np.testing.assert_allclose(turned, plain, atol=5e-3)


def test_water_and_lipids_in_the_nuisance_rows_do_not_count(gate, trained, protocol, rng):
    data = noisy(sample(protocol, 30, 908).metabolites, 5.0, 5)
    _, projected = judge(gate, trained.manifold, data, 5.0)
    plain = gate.score(data, projected, 5.0)
    strong = 1e4 * (rng.standard_normal((30, len(gate.nuisance))) @ gate.nuisance)
    np.testing.assert_allclose(gate.score((data + strong).astype(np.complex64), projected, 5.0), plain, atol=0.02)


def test_every_namespace_and_a_noise_of_each_voxels_own_give_the_same(gate, trained, protocol, xp):
    data = noisy(sample(protocol, 6, 909).metabolites, 4.0, 6).reshape(2, 3, -1)
    sd = np.array([[4.0, 4.0, 4.0], [8.0, 8.0, 8.0]], np.float32)
    expected, projected = judge(gate, trained.manifold, data, sd)
    found = gate.score(xp.asarray(data), xp.asarray(projected), xp.asarray(sd))
    assert type(found) is type(xp.asarray(data))
    np.testing.assert_allclose(to_numpy(found), expected, atol=2e-3)
    alone = gate.score(data[1], projected[1], 8.0)
    np.testing.assert_allclose(alone, expected[1], atol=1e-4)
    assert tuple(gate.score(xp.asarray(data[:0]), xp.asarray(projected[:0]), 1.0).shape) == (0, 3)


def test_neighbours_count_and_keep_the_share_of_false_alarms(xp, rng):
    mask = rng.random((40, 30, 5)) > 0.2
    under_noise = rng.exponential(size=mask.shape) / np.log(10)
    found = to_numpy(pooled(xp.asarray(under_noise), xp.asarray(mask)))
    assert (found[~mask] == 0).all()
    rate = np.mean(found[mask] > -np.log10(FALSE_ALARMS))
    assert 0.6 * FALSE_ALARMS < rate < 1.2 * FALSE_ALARMS
    # a lesion of 3 x 3 x 3 voxels, each with a score of 1: none alone passes, the middle does
    score, whole = np.zeros((7, 6, 5)), np.ones((7, 6, 5), bool)
    score[2:5, 1:4, 1:4] = 1.0
    together = to_numpy(pooled(xp.asarray(score), xp.asarray(whole)))
    assert together[3, 2, 2] > 1.5
    assert together[0, 5, 4] == 0


def test_its_arrays_make_the_same_gate_again(gate, trained, protocol):
    arrays = gate.arrays()
    assert sum(values.nbytes for values in arrays.values()) < 1e6
    again = Gate.of_arrays(protocol, arrays)
    data = noisy(sample(protocol, 4, 910).metabolites, 4.0, 6)
    found, projected = judge(gate, trained.manifold, data, 4.0)
    np.testing.assert_array_equal(again.score(data, projected, 4.0), found)
    with pytest.raises(DataError, match="lack power"):
        Gate.of_arrays(protocol, {name: values for name, values in arrays.items() if name != "power"})


def test_what_does_not_fit_is_refused(gate):
    fids = np.zeros((3, 384), np.complex64)
    with pytest.raises(DataError, match="same shape"):
        gate.score(fids, fids[:2], 1.0)
    with pytest.raises(DataError, match="384 points"):
        gate.score(fids[:, :100], fids[:, :100], 1.0)
    with pytest.raises(DataError, match="positive"):
        gate.score(fids, fids, np.array([1.0, 0.0, 1.0]))
