"""Batched bounded least squares against a reference that solves one problem at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear, nnls

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import DataError, NumericalError
from mrsi_gadgets.quantification.nonnegative import solve_nonnegative


def problems(rng, n=40, m=9):
    columns = rng.standard_normal((n, 3 * m, m))
    columns[:, :, 1] = columns[:, :, 0] + 0.02 * columns[:, :, 1]
    y = rng.standard_normal((n, 3 * m)) + 0.2 * columns.sum(axis=2)
    gram = np.einsum("vij,vik->vjk", columns, columns)
    return columns, y, gram, np.einsum("vij,vi->vj", columns, y)


def test_every_library_finds_the_reference_minimum(rng, xp):
    columns, y, gram, rhs = problems(rng)
    expected = np.array([nnls(a, b)[0] for a, b in zip(columns, y, strict=True)])
    found = solve_nonnegative(xp.asarray(gram), xp.asarray(rhs), xp.ones((9,), dtype=xp.bool))
    np.testing.assert_allclose(to_numpy(found.x), expected, atol=1e-9)
    assert np.array_equal(to_numpy(found.free), expected > 0)


def test_the_conditions_of_the_minimum_hold(rng):
    _, _, gram, rhs = problems(rng)
    found = solve_nonnegative(gram, rhs, np.ones(9, bool))
    slope = np.einsum("vij,vj->vi", gram, found.x) - rhs
    size = np.abs(rhs).max()
    assert found.x.min() >= 0
    assert np.abs(slope[found.free]).max() < 1e-6 * size
    assert slope[~found.free].min() > -1e-6 * size


def test_unknowns_without_a_bound_may_be_negative(rng):
    columns, y, gram, rhs = problems(rng)
    bounded = np.arange(9) % 2 == 0
    found = solve_nonnegative(gram, rhs, bounded)
    lower = np.where(bounded, 0.0, -np.inf)
    for a, b, x in zip(columns, y, found.x, strict=True):
        np.testing.assert_allclose(x, lsq_linear(a, b, (lower, np.inf), tol=1e-12).x, atol=1e-5)
    assert found.x[:, ~bounded].min() < 0


def test_a_wrong_warm_start_does_not_change_the_result(rng):
    _, _, gram, rhs = problems(rng)
    cold = solve_nonnegative(gram, rhs, np.ones(9, bool))
    warm = solve_nonnegative(gram, rhs, np.ones(9, bool), rng.random((40, 9)) > 0.5)
    np.testing.assert_allclose(warm.x, cold.x, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_the_columns_does_not_matter(rng, scale):
    _, _, gram, rhs = problems(rng)
    weights = np.where(np.arange(9) < 4, scale, 1.0)
    plain = solve_nonnegative(gram, rhs, np.ones(9, bool))
    scaled = solve_nonnegative(gram * weights[:, None] * weights, rhs * weights, np.ones(9, bool))
    np.testing.assert_allclose(scaled.x * weights, plain.x, rtol=1e-6, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused(rng):
    _, _, gram, rhs = problems(rng)
    with pytest.raises(DataError, match="differ"):
        solve_nonnegative(gram, rhs[:, 1:], np.ones(9, bool))


def test_a_fit_that_does_not_settle_says_so(rng):
    _, _, gram, rhs = problems(rng)
    with pytest.raises(NumericalError, match="did not settle"):
        solve_nonnegative(gram, rhs, np.ones(9, bool), max_exchanges=1)
