"""Expected water and lipids: the best linear estimate at the strengths that the data show."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.models.separation import fit_nuisance_filter
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.physics.ensemble import sample


@pytest.fixture(scope="module")
def subspace():
    from mrsi_gadgets.phantom.presets import PRESETS

    return learn_subspace(PRESETS["csi48"].protocol, rank=24)


def test_expected_water_is_that_which_was_put_in(subspace, xp):
    drawn = sample(subspace.protocol, 300, 5)
    water = drawn.water / np.linalg.norm(drawn.water, axis=1, keepdims=True) * 3000
    sd = 2.0
    rng = np.random.default_rng(2)
    true = subspace.coefficients(water.astype(np.complex64))
    noise = sd * (rng.standard_normal(true.shape) + 1j * rng.standard_normal(true.shape))
    a = subspace.coefficients(drawn.metabolites) + true + noise
    a = a.astype(np.complex64)
    found = fit_nuisance_filter(subspace, xp.asarray(a), np.full(subspace.rank, 2 * sd**2))
    expected = to_numpy(found.expected(xp.asarray(a)))
    assert found.share == 1.0
    assert np.linalg.norm(expected - true) < 0.05 * np.linalg.norm(true)
    # what is not known of it is stated: within a factor of 1.5 in the metabolite rows
    rows = slice(0, subspace.metabolite_rank)
    actual = np.mean(np.abs((expected - true)[:, rows]) ** 2)
    assert np.mean(found.variance[:, rows]) == pytest.approx(actual, rel=0.5)


def test_where_there_is_no_nuisance_none_is_expected(subspace):
    drawn = sample(subspace.protocol, 200, 6)
    rng = np.random.default_rng(3)
    a = subspace.coefficients(drawn.metabolites)
    a = (a + rng.standard_normal(a.shape) + 1j * rng.standard_normal(a.shape)).astype(np.complex64)
    found = fit_nuisance_filter(subspace, a, np.full(subspace.rank, 2.0))
    assert np.linalg.norm(found.expected(a)) < 0.05 * np.linalg.norm(a)


def test_a_subspace_without_nuisance_rows_expects_none(subspace):
    plain = subspace.metabolites_only()
    a = np.ones((4, plain.rank), dtype=np.complex64)
    found = fit_nuisance_filter(plain, a, np.ones(plain.rank))
    assert not found.expected(a).any()
    assert found.variance.shape == (4, plain.rank)
    assert found.share == 0.0


def test_noise_may_differ_from_row_to_row(subspace):
    """A row with much noise says little of the nuisance, whatever it holds."""
    drawn = sample(subspace.protocol, 100, 7)
    a = subspace.coefficients((drawn.metabolites + 20 * drawn.water).astype(np.complex64))
    noise = np.full(subspace.rank, 2.0)
    noise[3] = 1e12
    found = fit_nuisance_filter(subspace, a, noise)
    moved = a.copy()
    moved[:, 3] += 1e4
    before, after = found.expected(a), found.expected(moved)
    assert np.linalg.norm(after - before) < 1e-3 * np.linalg.norm(before)
