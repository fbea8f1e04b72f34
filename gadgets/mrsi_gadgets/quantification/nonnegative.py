"""Batched least squares with non-negative unknowns: many small problems that share nothing but their size.

Each problem is min_x 1/2 x^T G x - b^T x with x_i >= 0 for the bounded unknowns and the others free. Block principal
pivoting (Portugal, Judice, Vicente, Math. Comp. 63:625, 1994, DOI 10.1090/S0025-5718-1994-1250776-4; Kim and Park,
SIAM J. Sci. Comput. 33:3261, 2011, DOI 10.1137/110821172) exchanges all infeasible unknowns at once and falls back to
one exchange at a time where that does not make progress, so it ends at the exact active set of a positive definite G.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mrsi_gadgets.arrays import Array, device, namespace
from mrsi_gadgets.errors import DataError, NumericalError

_FULL_EXCHANGES = 3
_TOLERANCE = 1e-9


class NonnegativeSolution(NamedTuple):
    """Solution of a batch of bounded least-squares problems."""

    x: Array
    """(n, m) float64."""
    free: Array
    """(n, m) bool: unknowns that are not held at their bound."""


def solve_nonnegative(
    gram: Array, rhs: Array, bounded: Array, free: Array | None = None, *, max_exchanges: int = 200
) -> NonnegativeSolution:
    """Solve min 1/2 x^T G x - b^T x with x >= 0 where `bounded`, for a batch of problems.

    Parameters
    ----------
    gram
        (n, m, m) real, symmetric positive definite.
    rhs
        (n, m) real.
    bounded
        (m,) bool: which unknowns must not be negative.
    free
        (n, m) bool start of the active sets (a warm start), or None: every unknown starts free.
    max_exchanges
        Limit of exchanges.

    Returns
    -------
    NonnegativeSolution
        The minimisers; the Karush-Kuhn-Tucker conditions hold to 1e-9 of the problem's own scale.

    Raises
    ------
    DataError
        Shapes do not agree.
    NumericalError
        The active sets did not settle, which only a matrix that is not positive definite can cause.
    """
    xp = namespace(gram, rhs)
    n, m = tuple(rhs.shape)
    if tuple(gram.shape) != (n, m, m) or tuple(bounded.shape) != (m,):
        raise DataError(f"gram {tuple(gram.shape)}, rhs {tuple(rhs.shape)} and bounded {tuple(bounded.shape)} differ")
    gram = xp.astype(gram, xp.float64)
    # Unit diagonal: the tolerances below then mean the same for strong and weak columns.
    scale = 1 / xp.sqrt(xp.linalg.diagonal(gram))
    gram = gram * scale[:, :, None] * scale[:, None, :]
    rhs = xp.astype(rhs, xp.float64) * scale
    free = xp.ones((n, m), dtype=xp.bool, device=device(rhs)) if free is None else (free | ~bounded[None, :])
    x, free = _pivot(gram, rhs, bounded, free, max_exchanges)
    return NonnegativeSolution(xp.where(free, x, xp.zeros_like(x)) * scale, free)


def _pivot(gram: Array, rhs: Array, bounded: Array, free: Array, max_exchanges: int) -> tuple[Array, Array]:
    """Exchange infeasible unknowns until none is left; problems that are done leave the batch."""
    xp = namespace(gram)
    n, m = tuple(rhs.shape)
    done: list[tuple[Array, Array, Array]] = []
    todo = xp.arange(n, device=device(rhs))
    fewest = xp.full((n,), m + 1, device=device(rhs))
    credit = xp.full((n,), _FULL_EXCHANGES, device=device(rhs))
    order = xp.arange(m, device=device(rhs))[None, :]
    limit = _TOLERANCE * (1 + xp.max(xp.abs(rhs), axis=1))
    for _ in range(max_exchanges):
        x, dual = _on_free_set(gram, rhs, free)
        wrong = bounded[None, :] & xp.where(free, x < -limit[:, None], dual < -limit[:, None])
        count = xp.sum(xp.astype(wrong, xp.int64), axis=1)
        settled = xp.nonzero(count == 0)[0]
        done.append((xp.take(todo, settled), xp.take(x, settled, axis=0), xp.take(free, settled, axis=0)))
        if settled.shape[0] == todo.shape[0]:
            x_all, free_all = in_order(done)
            return x_all, free_all
        better = count < fewest
        fewest = xp.where(better, count, fewest)
        credit = xp.where(better, xp.full_like(credit, _FULL_EXCHANGES), credit - 1)
        last = xp.max(xp.where(wrong, order, xp.full_like(order, -1)), axis=1)
        exchange = xp.where((credit >= 0)[:, None], wrong, order == last[:, None])
        free = xp.where(exchange, ~free, free)
        if settled.shape[0]:
            keep = xp.nonzero(count > 0)[0]
            gram, rhs, free = (xp.take(a, keep, axis=0) for a in (gram, rhs, free))
            todo, fewest, credit, limit = (xp.take(a, keep, axis=0) for a in (todo, fewest, credit, limit))
    raise NumericalError(
        f"{int(todo.shape[0])} of {n} non-negative fits did not settle in {max_exchanges} exchanges; "
        "the design matrix has dependent columns, remove one or give it a prior"
    )


def in_order(done: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    """Put problems that left a batch at different times back in their order.

    Parameters
    ----------
    done
        One tuple per departure: places in the whole (n,), then arrays whose first axis is n.

    Returns
    -------
    tuple of Array
        The arrays of the whole, without the places.
    """
    xp = namespace(done[0][0])
    order = xp.argsort(xp.concat([piece[0] for piece in done]))
    fields = range(1, len(done[0]))
    return tuple(xp.take(xp.concat([piece[i] for piece in done], axis=0), order, axis=0) for i in fields)


def _on_free_set(gram: Array, rhs: Array, free: Array) -> tuple[Array, Array]:
    """Minimise over the free unknowns with the others at zero; return them and the gradient of the objective."""
    xp = namespace(gram)
    weight = xp.astype(free, gram.dtype)
    masked = gram * weight[:, :, None] * weight[:, None, :]
    eye = xp.eye(rhs.shape[1], dtype=gram.dtype, device=device(rhs))
    masked = masked + eye[None, :, :] * (1 - weight)[:, :, None]
    x = xp.linalg.solve(masked, (rhs * weight)[:, :, None])[:, :, 0]
    dual = xp.matmul(gram, x[:, :, None])[:, :, 0] - rhs
    return x, dual
