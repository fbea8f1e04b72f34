"""What every operator, solver, signal model and gadget must satisfy, as functions that any test can call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from mrsi_gadgets.arrays import like, one_blas_thread, to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget
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


def check_gadget(gadget: Gadget, scene: Callable[[], tuple[list[Any], Context]]) -> None:
    """Assert that parameters are frozen and survive XML, strangers pass, outputs are of `produces`, and runs repeat.

    `scene` returns what reaches the gadget in a chain and the context as the gadgets before have left it, afresh.
    """
    assert type(gadget).from_attributes(attributes_of(gadget)) == gadget
    assert hash(type(gadget).from_attributes(attributes_of(gadget))) == hash(gadget)
    assert {name for name, _, _ in gadget.describe()} == {f.name for f in fields(gadget)}
    for f in fields(gadget):
        with pytest.raises(FrozenInstanceError):
            setattr(gadget, f.name, getattr(gadget, f.name))
    first, second, stranger = object(), object(), "a text"
    items, context = scene()
    assert items, "the scene shows the gadget nothing"
    assert any(isinstance(item, gadget.accepts) for item in items)
    before = [_arrays_of(item) for item in items]
    left = run_gadget(gadget, [first, *items, second, stranger], context)
    assert [item for item in left if item is first or item is second or item is stranger] == [first, second, stranger]
    made = [item for item in left if item is not first and item is not second and item is not stranger]
    assert any(isinstance(item, gadget.produces) for item in made)
    for item in made:
        assert isinstance(item, gadget.produces) or any(item is given for given in items), type(item)
    for item, arrays in zip(items, before, strict=True):
        _assert_equal(_arrays_of(item), arrays, "the gadget wrote to its input")
    for name in gadget.provides:
        assert getattr(context.calibration, name) is not None, f"{name} is promised but was not filled"
    items, context = scene()
    again = run_gadget(gadget, items, context)
    _assert_equal([_arrays_of(i) for i in again], [_arrays_of(i) for i in made], "two runs differ")


def run_gadget(gadget: Gadget, items: list[Any], context: Context) -> list[Any]:
    """Prepare a gadget and let it process items, as a session would but outside of any chain."""
    with one_blas_thread():
        done: Future[Any] = Future()
        done.set_result(gadget.prepare(context))
        context.prepared[gadget] = done
        return list(gadget.process(iter(items), context))


def attributes_of(gadget: Gadget) -> dict[str, str]:
    """Return the XML attributes that say what the gadget's parameters say."""
    texts = {}
    for f in fields(gadget):
        value = getattr(gadget, f.name)
        if isinstance(value, bool):
            texts[f.name] = "true" if value else "false"
        elif isinstance(value, tuple):
            texts[f.name] = " ".join(value)
        else:
            texts[f.name] = "auto" if value is None else str(value)
    return texts


def _arrays_of(value: Any) -> Any:
    """Copy everything comparable out of an item: arrays, numbers, texts, and what holds them."""
    if isinstance(value, np.ndarray | np.void):
        return np.array(value, copy=True)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _arrays_of(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _arrays_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_arrays_of(item) for item in value]
    # what is computed only where somebody asks: spectra
    return _arrays_of(value()) if callable(value) and not isinstance(value, type) else value


def _assert_equal(found: Any, expected: Any, message: str) -> None:
    for (path, ours), (where, theirs) in zip(_leaves(found), _leaves(expected), strict=True):
        assert path == where
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{message} in {path}")
        else:
            assert ours == theirs or ours != ours, f"{message} in {path}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def _assert_close(actual: Any, wanted: np.ndarray, relative: float) -> None:
    difference = np.linalg.norm(to_numpy(actual) - wanted)
    assert difference <= relative * max(np.linalg.norm(wanted), 1e-30), (
        f"differs by {difference / np.linalg.norm(wanted):.2g}"
    )
