"""Quasi-Newton minimisation: known minima, preconditioning, status, every namespace."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import NumericalError
from mrsi_gadgets.reconstruction.lbfgs import End, inner, minimise


def rosenbrock(x):
    a, b = x[:-1], x[1:]
    gradient = np.zeros_like(x)
    gradient[:-1] += -400 * a * (b - a**2) - 2 * (1 - a)
    gradient[1:] += 200 * (b - a**2)
    return float(np.sum(100 * (b - a**2) ** 2 + (1 - a) ** 2)), gradient


def quadratic(xp, matrix, target):
    m, t = xp.asarray(matrix), xp.asarray(target)

    def evaluate(x):
        off = x - t
        return inner(off, m @ off), 2 * (m @ off)

    return evaluate


def hermitian(rng, size, condition):
    vectors = np.linalg.qr(rng.standard_normal((size, size)) + 1j * rng.standard_normal((size, size)))[0]
    return (vectors * np.geomspace(1, condition, size)) @ vectors.conj().T


def test_the_curved_valley_is_followed_to_its_end():
    found = minimise(rosenbrock, np.full(6, -1.2), scale=1.0, rtol=1e-7, max_iterations=300)
    assert found.end is End.CONVERGED
    np.testing.assert_allclose(found.value, np.ones(6), atol=1e-6)
    assert len(found.objective) == len(found.gradient)
    assert np.all(np.diff(found.objective) <= 0)


def test_a_quadratic_of_complex_numbers_has_its_minimum_in_every_namespace(xp, rng):
    matrix = hermitian(rng, 9, 50).astype(np.complex64)
    target = (rng.standard_normal(9) + 1j * rng.standard_normal(9)).astype(np.complex64)
    start = xp.zeros_like(xp.asarray(target))
    found = minimise(quadratic(xp, matrix, target), start, scale=1.0, rtol=1e-3)
    assert found.end is End.CONVERGED
    assert type(found.value) is type(start)
    np.testing.assert_allclose(to_numpy(found.value), target, atol=2e-3)


def test_the_inverse_of_the_curvature_needs_one_or_two_iterations(rng):
    matrix = hermitian(rng, 12, 1e4)
    target = rng.standard_normal(12) + 1j * rng.standard_normal(12)
    evaluate, start = quadratic(np, matrix, target), np.zeros(12, complex)
    plain = minimise(evaluate, start, scale=1.0, rtol=1e-6)
    helped = minimise(evaluate, start, scale=1.0, rtol=1e-6, inverse=lambda r: np.linalg.solve(matrix, r))
    assert len(helped.objective) <= 3 < len(plain.objective)


def test_it_says_how_it_ended():
    start = np.full(6, -1.2)
    assert minimise(rosenbrock, np.ones(6), scale=1.0).end is End.CONVERGED
    assert minimise(rosenbrock, start, scale=1.0, max_iterations=3).end is End.MAX_ITERATIONS
    seen = []
    stopped = minimise(rosenbrock, start, scale=1.0, callback=lambda i, x: seen.append(x.copy()) or i == 2)
    assert stopped.end is End.STOPPED
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[-1], stopped.value)
    # a gradient of the wrong sign: no step brings what it promises
    wrong = minimise(lambda x: (rosenbrock(x)[0], -rosenbrock(x)[1]), start, scale=1.0)
    assert wrong.end is End.ROUNDING
    np.testing.assert_array_equal(wrong.value, start)


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="not finite"):
        minimise(rosenbrock, np.array([np.nan, 1.0]), scale=1.0)
