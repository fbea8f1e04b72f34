"""What every operator, solver and signal model must satisfy, as functions that any test can call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mrsi_gadgets.arrays import like, to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import LinearOperator

ADJOINT_ERROR = {"complex64": 2e-5, "complex128": 1e-12}
"""Relative: float epsilon times the root of a few thousand summed terms."""


def random_array(xp: Any, shape: tuple[int, ...], rng: np.random.Generator, dtype: str = "complex64") -> Any:
    """Return complex normal values in the namespace `xp`."""
    values = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return xp.asarray(values.astype(dtype))


def check_operator(operator: LinearOperator, xp: Any, rng: np.random.Generator, *, dtype: str = "complex64") -> None:
    """Assert shapes, adjointness, linearity, gram = A^H A, untouched input, and refusal of wrong shapes."""
    limit = ADJOINT_ERROR[dtype]
    u, v = random_array(xp, operator.domain, rng, dtype), random_array(xp, operator.range, rng, dtype)
    before = to_numpy(u).copy()
    forward, backward = operator(u), operator.H(v)
    assert tuple(forward.shape) == operator.range
    assert tuple(backward.shape) == operator.domain
    assert forward.dtype == u.dtype, "the precision of the input decides"
    assert backward.dtype == v.dtype
    np.testing.assert_array_equal(to_numpy(u), before, err_msg="the input was written to")
    left, right = np.vdot(to_numpy(v), to_numpy(forward)), np.vdot(to_numpy(backward), to_numpy(u))
    size = np.linalg.norm(to_numpy(forward)) * np.linalg.norm(to_numpy(v))
    assert abs(left - right) <= limit * max(size, 1e-30)
    _assert_close(operator(u * (2 - 1j)), to_numpy(forward) * (2 - 1j), limit)
    _assert_close(operator.gram(u), to_numpy(operator.H(forward)), limit)
    assert operator.H.H.domain == operator.domain
    _assert_close(operator.H.H(u), to_numpy(forward), limit)
    for wrong in ((*operator.domain, 2), tuple(n + 1 for n in operator.domain), operator.domain[1:]):
        with pytest.raises(DataError, match="takes an array of shape"):
            operator(random_array(xp, wrong, rng, dtype))


def dense_matrix(operator: LinearOperator, reference: Any) -> np.ndarray:
    """Return the matrix of a small operator, column by column."""
    size = int(np.prod(operator.domain))
    columns = []
    for i in range(size):
        unit = np.zeros(size, dtype=np.complex64)
        unit[i] = 1
        columns.append(to_numpy(operator(like(unit.reshape(operator.domain), reference))).ravel())
    return np.stack(columns, axis=1)


def check_solver(solve: Callable[..., Any], xp: Any, rng: np.random.Generator) -> None:
    """Assert the solution of a Hermitian positive definite system, whatever the scale of the data."""
    root = rng.standard_normal((40, 30)) + 1j * rng.standard_normal((40, 30))
    matrix = (root.conj().T @ root + 5 * np.eye(30)).astype(np.complex64)
    truth = rng.standard_normal(30) + 1j * rng.standard_normal(30)
    a, b = xp.asarray(matrix), xp.asarray((matrix @ truth).astype(np.complex64))
    for scale in (1e-6, 1.0, 1e6):
        solution = solve(lambda x: a @ x, b * scale)
        _assert_close(solution.checked() / scale, truth, 1e-4)
        assert solution.residuals[0] == pytest.approx(1.0)
        assert solution.residuals[-1] < 1e-4


def check_model(model: Any, fids: np.ndarray) -> None:
    """Assert that a signal model projects: shape, idempotence, and that noise off the model is taken away."""
    once = to_numpy(model.project(fids))
    assert once.shape == fids.shape
    _assert_close(model.project(once.astype(np.complex64)), once, 1e-2)
    assert 0 < model.rank <= fids.shape[-1]
    assert np.linalg.norm(once) <= np.linalg.norm(fids) * 1.001


def _assert_close(actual: Any, wanted: np.ndarray, relative: float) -> None:
    difference = np.linalg.norm(to_numpy(actual) - wanted)
    assert difference <= relative * max(np.linalg.norm(wanted), 1e-30), (
        f"differs by {difference / np.linalg.norm(wanted):.2g}"
    )
