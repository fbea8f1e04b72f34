from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import namespace, to_numpy
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.signal_model import SignalModel
from mrsi_gadgets.models.subspace import learn_subspace, representation_error
from mrsi_gadgets.physics.ensemble import Ensemble, noise_sd_at_snr, sample


@pytest.fixture(scope="module")
def module_protocol():
    from mrsi_gadgets.data import Geometry, Protocol

    return Protocol("1H", 123.25e6, 4.65, 1 / 1500, 384, 0.0013, Geometry((3, 4, 5), (60.0, 80.0, 100.0)), "csi")


@pytest.fixture(scope="module")
def learned(module_protocol):
    return learn_subspace(module_protocol)


def test_rows_are_orthonormal_also_between_metabolites_and_nuisance(learned):
    gram = learned.basis.astype(complex) @ learned.basis.conj().T
    np.testing.assert_allclose(gram, np.eye(learned.rank), atol=5e-6)
    assert learned.metabolite_rank < learned.rank < 384


def test_a_subspace_is_a_signal_model(learned):
    assert isinstance(learned, SignalModel)


def test_fresh_metabolite_fids_are_represented_within_two_percent(learned, module_protocol):
    fresh = sample(module_protocol, 300, 99)
    error = representation_error(learned.basis[: learned.metabolite_rank], fresh.metabolites)
    assert error < 0.02
    assert error == pytest.approx(learned.metabolite_error, rel=0.3)
    assert representation_error(learned.basis, fresh.nuisance) < 0.02


def test_chosen_rank_has_the_least_expected_error_at_the_stated_snr(learned, module_protocol):
    fids = sample(module_protocol, 1000, 5).metabolites.astype(complex)
    noise = 2 * noise_sd_at_snr(module_protocol, 100.0) ** 2
    rows = learned.basis[: learned.metabolite_rank].astype(complex)
    left = [
        np.mean(np.sum(np.abs(fids - fids @ rows[:k].conj().T @ rows[:k]) ** 2, axis=1))
        for k in range(1, len(rows) + 1)
    ]
    total = np.array(left) + noise * np.arange(1, len(rows) + 1)
    assert total[-1] < 1.02 * total.min()


def test_fewer_rows_are_best_where_there_is_more_noise(learned, module_protocol):
    ranks = [learned.best_rank(noise_sd_at_snr(module_protocol, snr)) for snr in (10.0, 30.0, 100.0)]
    assert ranks[0] < ranks[1] < ranks[2] == learned.metabolite_rank
    assert learned.best_rank(1e-3 * noise_sd_at_snr(module_protocol, 30.0), scale=1e-3) == ranks[1]


def test_rows_are_ordered_by_energy_and_statistics_belong_to_them(learned, module_protocol):
    energy = learned.metabolite_energy
    assert np.all(np.diff(energy[: learned.metabolite_rank]) <= 0)
    assert energy[learned.metabolite_rank :].sum() < 1e-3 * energy.sum()
    fresh = learned.coefficients(sample(module_protocol, 1000, 7).metabolites)
    np.testing.assert_allclose(np.mean(np.abs(fresh[:, :5]) ** 2, axis=0), energy[:5], rtol=0.25)


def test_projection_is_idempotent_and_keeps_namespace_shape_and_type(learned, module_protocol, xp):
    fids = sample(module_protocol, 12, 3).metabolites.reshape(3, 4, 384)
    x = xp.asarray(fids)
    once = learned.project(x)
    assert namespace(once) is namespace(x)
    assert once.shape == (3, 4, 384)
    assert once.dtype == x.dtype
    np.testing.assert_allclose(to_numpy(learned.project(once)), to_numpy(once), atol=1e-4 * np.abs(fids).max())
    np.testing.assert_allclose(to_numpy(once), fids @ learned.basis.conj().T @ learned.basis, atol=1e-3)


def test_shrinking_projection_follows_the_scale_of_the_data_and_beats_the_plain_one(module_protocol, rng):
    model = learn_subspace(module_protocol, nuisance=False)
    clean = sample(module_protocol, 200, 11).metabolites
    sd = noise_sd_at_snr(module_protocol, 15.0)
    noisy = (clean + sd * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))).astype(
        np.complex64
    )
    shrunk = model.project(noisy, sd)
    plain = model.project(noisy)
    assert np.linalg.norm(shrunk - clean) < 0.9 * np.linalg.norm(plain - clean)
    scaled = model.project(1e-6 * noisy, 1e-6 * sd)
    np.testing.assert_allclose(1e6 * scaled, shrunk, atol=1e-3)
    assert model.scale(3.0 * noisy, 3.0 * sd) == pytest.approx(3.0, rel=0.15)


def test_learning_without_nuisance_gives_the_same_metabolite_rows(learned, module_protocol):
    alone = learn_subspace(module_protocol, nuisance=False)
    assert alone.rank == alone.metabolite_rank == learned.metabolite_rank
    np.testing.assert_array_equal(alone.basis, learned.basis[: alone.rank])
    np.testing.assert_array_equal(learned.metabolites_only().basis, alone.basis)
    assert learned.metabolites_only(7).rank == 7


def test_ranks_that_are_asked_for_are_kept(make_protocol):
    model = learn_subspace(make_protocol(n_times=48), rank=9, nuisance_rank=11, n_samples=200)
    assert (model.metabolite_rank, model.rank) == (9, 20)
    narrow = learn_subspace(make_protocol(n_times=20), rank=18, nuisance_rank=11, n_samples=200)
    assert (narrow.metabolite_rank, narrow.rank) == (18, 20)


def test_an_ensemble_of_two_molecules_needs_fewer_rows(module_protocol, learned):
    few = Ensemble(names=("NAA", "Cr"), molecule_shift_ppm_sd=0.0)
    assert learn_subspace(module_protocol, ensemble=few, nuisance=False).rank < learned.metabolite_rank


def test_bad_arguments_are_refused(make_protocol, learned):
    protocol = make_protocol(n_times=32)
    with pytest.raises(ConfigError, match="rank 33 must lie between 1 and the 32"):
        learn_subspace(protocol, rank=33)
    with pytest.raises(ConfigError, match="nuisance_rank 0"):
        learn_subspace(protocol, nuisance_rank=0)
    with pytest.raises(ConfigError, match="nuisance_error is 1"):
        learn_subspace(protocol, nuisance_error=1.0)
    with pytest.raises(ConfigError, match="SNR of -3"):
        learn_subspace(protocol, snr=-3.0, n_samples=50)
    with pytest.raises(DataError, match="FIDs have 32 points, the subspace was learned for 384"):
        learned.project(np.zeros((2, 32), dtype=np.complex64))
    with pytest.raises(ConfigError, match="rank 400"):
        learned.metabolites_only(400)
