"""The learned manifold: training beats linear models, projection follows scale and phase, every namespace agrees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.gate import calibrate_gate, judge
from mrsi_gadgets.models.signal_model import SignalModel
from mrsi_gadgets.models.training import Trained, TrainingSettings, train
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr, sample

SETTINGS = TrainingSettings(
    rank=24, latent=16, hidden=64, samples=4000, autoencoder_steps=500, projector_steps=700, batch=512,
    latent_sizes=(8,), latent_steps=150, gate_samples=600,
)  # fmt: skip


@pytest.fixture(scope="module")
def protocol():
    from mrsi_gadgets.phantom.presets import PRESETS

    return PRESETS["csi48"].protocol


@pytest.fixture(scope="module")
def trained(protocol) -> Trained:
    return train(protocol, settings=SETTINGS, seed=3)


def test_rows_are_orthonormal_and_span_what_the_subspace_spans(trained):
    rows = trained.manifold.basis.astype(complex)
    np.testing.assert_allclose(rows @ rows.conj().T, np.eye(24), atol=2e-5)
    overlap = rows @ trained.subspace.basis[:24].conj().T
    np.testing.assert_allclose(overlap @ overlap.conj().T, np.eye(24), atol=2e-5)
    assert trained.subspace.rank > 24  # nuisance rows beside them


def test_the_autoencoder_loses_less_than_a_linear_model_of_as_many_numbers(trained):
    by_size = {entry["numbers"]: entry for entry in trained.representation}
    assert set(by_size) == {8, 16}
    assert by_size[16]["nonlinear"] < 0.9 * by_size[16]["linear"] < 0.12
    assert by_size[16]["nonlinear"] < by_size[8]["nonlinear"]


def test_the_projector_beats_the_best_linear_estimate_on_fresh_fids(trained, protocol):
    """Fresh FIDs in time, at peak SNR 10 and 40; the linear estimate knows covariance, noise and scale."""
    manifold = trained.manifold
    clean = sample(protocol, 1000, 77).metabolites
    rng = np.random.default_rng(5)
    covariance = trained.subspace.metabolite_covariance
    for snr, wanted in ((10, 0.93), (40, 0.98)):
        sd = noise_sd_at_snr(protocol, snr)
        noisy = clean + sd * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))
        noisy = noisy.astype(np.complex64)
        gain = covariance @ np.linalg.inv(covariance + 2 * sd**2 * np.eye(len(covariance)))
        linear = (trained.subspace.coefficients(noisy) @ gain.T) @ trained.subspace.basis
        found = manifold.project(noisy, sd)
        errors = [np.linalg.norm(x - clean) / np.linalg.norm(clean) for x in (found, linear)]
        assert errors[0] < wanted * errors[1], (snr, errors)


def test_projection_follows_scale_and_phase(trained, protocol, xp):
    noisy = sample(protocol, 6, 1).metabolites.reshape(2, 3, -1)
    factor = 3e-7 * np.exp(2j)
    turned = (noisy * factor).astype(np.complex64)
    plain = to_numpy(trained.manifold.project(xp.asarray(noisy), 0.4))
    followed = to_numpy(trained.manifold.project(xp.asarray(turned), 0.4 * abs(factor)))
    np.testing.assert_allclose(followed / factor, plain, rtol=0, atol=2e-4 * np.abs(plain).max())


def test_every_namespace_gives_the_same(trained, protocol, xp):
    noisy = sample(protocol, 5, 2).metabolites
    power = np.linspace(0.1, 0.3, 24).astype(np.float32)
    coefficients = trained.manifold.coefficients(noisy)
    expected = trained.manifold.project_coefficients(coefficients, power)
    found = trained.manifold.project_coefficients(xp.asarray(coefficients), xp.asarray(power))
    assert type(found) is type(xp.asarray(coefficients))
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-5 * np.abs(expected).max())
    coded = trained.manifold.autoencode(xp.asarray(coefficients))
    plain = trained.manifold.autoencode(coefficients)
    np.testing.assert_allclose(to_numpy(coded), plain, atol=1e-5 * np.abs(plain).max())


def test_without_noise_the_data_are_kept_and_with_much_the_mean_signal_stays(trained, protocol):
    manifold = trained.manifold
    a = manifold.coefficients(sample(protocol, 50, 4).metabolites)
    kept = manifold.project_coefficients(a, 1e-9)
    assert np.linalg.norm(kept - a) < 1e-3 * np.linalg.norm(a)
    heavy = manifold.project_coefficients(a, 1e6)
    shapes = heavy / manifold.scale(heavy)[:, None]
    assert np.linalg.norm(shapes - manifold.mean) < 0.3 * np.linalg.norm(np.tile(manifold.mean, (50, 1)))


def test_what_lies_on_the_manifold_stays(trained, protocol):
    """Coding once loses what is off the manifold; coding again loses less."""
    assert isinstance(trained.manifold, SignalModel)
    fids = sample(protocol, 200, 6).metabolites
    once = trained.manifold.project(fids)
    twice = trained.manifold.project(once)
    assert once.shape == fids.shape
    assert np.linalg.norm(twice - once) < 0.5 * np.linalg.norm(once - fids)


def test_the_same_seed_trains_the_same_networks_and_leaves_torchs_randomness_alone(protocol):
    few = TrainingSettings(
        rank=12, latent=8, hidden=16, samples=300, autoencoder_steps=20, projector_steps=20, latent_sizes=(8,),
        batch=64, gate_samples=500,
    )  # fmt: skip
    torch.manual_seed(11)
    first = train(protocol, settings=few, seed=1)
    drawn = torch.rand(1)
    second = train(protocol, settings=few, seed=1)
    third = train(protocol, settings=few, seed=2)
    for name, values in first.manifold.weights.items():
        np.testing.assert_array_equal(values, second.manifold.weights[name])
    assert any((values != third.manifold.weights[name]).any() for name, values in first.manifold.weights.items())
    np.testing.assert_array_equal(first.gate.quantiles, second.gate.quantiles)
    torch.manual_seed(11)
    assert torch.rand(1) == drawn


def test_training_ends_with_the_gate_of_its_manifold(trained, protocol):
    told: list[tuple[str, int, int]] = []
    few = replace(SETTINGS, samples=300, autoencoder_steps=2, projector_steps=2, latent_steps=1, gate_samples=520)
    found = train(protocol, settings=few, seed=1, progress=lambda *step: told.append(step[:3]))
    assert told[-1] == ("gate", 13 * 520, 13 * 520)
    assert told[-13][1] == 520
    wanted = calibrate_gate(found.manifold, found.subspace, samples=520, seed=1)
    for name, values in wanted.arrays().items():
        np.testing.assert_array_equal(found.gate.arrays()[name], values)
    sd = noise_sd_at_snr(protocol, 20.0)
    rng = np.random.default_rng(6)
    fids = sample(protocol, 500, 41).metabolites
    noisy = fids + sd * (rng.standard_normal(fids.shape) + 1j * rng.standard_normal(fids.shape))
    scores, _ = judge(trained.gate, trained.manifold, noisy.astype(np.complex64), sd)
    assert 0.005 < np.mean(trained.gate.outside(scores)) < 0.15


def test_other_nuclei_train_alike():
    from mrsi_gadgets.phantom.presets import PRESETS

    few = TrainingSettings(
        rank=16, latent=12, hidden=48, samples=2000, autoencoder_steps=200, projector_steps=300, latent_sizes=(12,),
        gate_samples=500,
    )  # fmt: skip
    trained = train(PRESETS["csi16_31p"].protocol, settings=few, seed=0)
    assert trained.subspace.rank == 16
    middle = trained.errors[3]
    assert middle["projector"] < middle["linear"] < middle["data"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"latents": 3}, "no key 'latents'"),
        ({"latent": 0}, "latent is 0"),
        ({"snr": [30, 3]}, "0 < low < high"),
        ({"snr": [30]}, "two numbers"),
        ({"hidden": "wide"}, "hidden must be a number"),
        ({"latent_sizes": 8}, "must be a list"),
        ({"gate_samples": 499}, "gate_samples is 499.* at least 500"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(table, told):
    with pytest.raises(ConfigError, match=told):
        TrainingSettings.read(table)


def test_settings_come_from_a_table():
    found = TrainingSettings.read({"latent": 20, "snr": [5, 100], "learning_rate": 0.001})
    assert (found.latent, found.snr, found.learning_rate) == (20, (5.0, 100.0), 0.001)


def test_fids_of_another_length_are_refused(trained):
    with pytest.raises(DataError, match="10 points"):
        trained.manifold.project(np.zeros((2, 10), np.complex64), 1.0)


def test_training_and_use_see_the_same_coordinates(trained, protocol):
    """The scale is the match with the mean of the scaled FIDs: what is left along the mean is nothing."""
    manifold = trained.manifold
    a = manifold.coefficients(sample(protocol, 2000, 9).metabolites)
    x = a / manifold.scale(a)[:, None] - manifold.mean
    along = x @ manifold.mean.conj() / np.linalg.norm(manifold.mean)
    assert np.sqrt(np.mean(np.abs(along) ** 2)) < 1e-3 * np.sqrt(manifold.variance[0])
    np.testing.assert_allclose(np.mean(np.abs(x) ** 2, axis=0)[:6], manifold.variance[:6], rtol=0.35)
    assert np.abs(x.mean(axis=0)).max() < 0.1 * np.sqrt(manifold.variance[0])
