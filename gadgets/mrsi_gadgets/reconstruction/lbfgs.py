"""Limited-memory quasi-Newton minimisation (L-BFGS) on complex arrays of any namespace, preconditioned.

Nocedal, Math. Comp. 1980, doi:10.1090/S0025-5718-1980-0572855-7; Liu and Nocedal, Math. Program. 1989,
doi:10.1007/BF01589116. SciPy's L-BFGS-B wants float64 vectors on the host and takes no preconditioner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mrsi_gadgets.arrays import Array, namespace, norm
from mrsi_gadgets.errors import NumericalError

_ENOUGH = 1e-4
"""Part of the decrease that the slope promises that a step has to bring (Armijo)."""
_SHORTEST = 1e-6
_CURVED = 1e-8
"""Curvature along a step, relative to step times change of the gradient, below which the pair is not remembered."""


class End(Enum):
    """How a minimisation ended; the values are the sentences shown to the user."""

    CONVERGED = "the gradient fell below the tolerance"
    STOPPED = "the callback asked to stop"
    MAX_ITERATIONS = "the gradient is still above the tolerance after the largest number of iterations; allow more"
    ROUNDING = "no step lowers the objective by more than its rounding"


@dataclass(frozen=True, eq=False)
class Minimum:
    """What a minimisation found."""

    value: Array
    end: End
    objective: tuple[float, ...]
    """At the start and after each iteration."""
    gradient: tuple[float, ...]
    """Norm of the gradient over the scale it is judged by, likewise."""


def minimise(
    evaluate: Callable[[Array], tuple[float, Array]],
    start: Array,
    *,
    scale: float,
    inverse: Callable[[Array], Array] | None = None,
    rtol: float = 1e-2,
    max_iterations: int = 100,
    memory: int = 8,
    callback: Callable[[int, Array], bool | None] | None = None,
) -> Minimum:
    """Minimise a smooth function of a real or complex array.

    Parameters
    ----------
    evaluate
        x -> (f, g) with f(x + d) = f(x) + Re <g, d> + O(d^2).
    start
        Where it begins; any shape.
    scale
        Norm that gradients are compared with.
    inverse
        Symmetric positive map near the inverse of f's Hessian up to a factor; the identity where None.
    rtol
        Stop when ||g|| <= rtol scale.
    max_iterations
        Upper limit.
    memory
        Steps that are remembered.
    callback
        Called with the iteration (from 1) and the iterate; True stops.

    Raises
    ------
    NumericalError
        The function or its gradient is not finite at the start.
    """
    x = start
    value, gradient = evaluate(x)
    sizes, values = [norm(gradient) / scale], [value]
    if not (abs(value) < float("inf") and sizes[0] < float("inf")):
        raise NumericalError("the objective is not finite where the minimisation starts; check the samples")
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=memory)
    end = End.CONVERGED if sizes[0] <= rtol else End.MAX_ITERATIONS
    for iteration in range(1, max_iterations + 1):
        if end is not End.MAX_ITERATIONS:
            break
        direction = -_two_loops(gradient, pairs, inverse)
        slope = inner(gradient, direction)
        if not slope < 0:
            pairs.clear()
            direction = -gradient if inverse is None else -inverse(gradient)
            slope = inner(gradient, direction)
        found = _backtrack(evaluate, x, direction, value, slope)
        if found is None:
            # no step is long enough to be told from rounding
            end = End.ROUNDING
            break
        step, value, new = found
        moved, change = step * direction, new - gradient
        x, gradient = x + moved, new
        curvature = inner(moved, change)
        if curvature > _CURVED * norm(moved) * norm(change):
            pairs.append((moved, change, curvature))
        values.append(value)
        sizes.append(norm(gradient) / scale)
        if sizes[-1] <= rtol:
            end = End.CONVERGED
        if callback is not None and callback(iteration, x) and end is End.MAX_ITERATIONS:
            end = End.STOPPED
    return Minimum(x, end, tuple(values), tuple(sizes))


def inner(a: Array, b: Array) -> float:
    """Return Re <a, b>, summed in double precision."""
    xp = namespace(a)
    if not xp.isdtype(a.dtype, "complex floating"):
        return float(xp.sum(a * b, dtype=xp.float64))
    return float(xp.sum(xp.real(a) * xp.real(b) + xp.imag(a) * xp.imag(b), dtype=xp.float64))


def _two_loops(
    gradient: Array, pairs: deque[tuple[Array, Array, float]], inverse: Callable[[Array], Array] | None
) -> Array:
    """Return the inverse Hessian that the pairs tell of, times the gradient."""
    q = gradient
    used = []
    for moved, change, curvature in reversed(pairs):
        share = inner(moved, q) / curvature
        used.append(share)
        q = q - share * change
    if inverse is not None:
        q = inverse(q)
    if pairs:
        _, change, curvature = pairs[-1]
        q = q * (curvature / inner(change, change if inverse is None else inverse(change)))
    for (moved, change, curvature), share in zip(pairs, reversed(used), strict=True):
        q = q + (share - inner(change, q) / curvature) * moved
    return q


def _backtrack(
    evaluate: Callable[[Array], tuple[float, Array]], x: Array, direction: Array, value: float, slope: float
) -> tuple[float, float, Array] | None:
    """Return step, value and gradient after the first step from 1 downwards that brings enough; None where none does.

    Each shorter step is the minimum of the parabola through what is known, within a tenth and a half of the last.
    """
    step = 1.0
    while step > _SHORTEST:
        reached, gradient = evaluate(x + step * direction)
        if reached <= value + _ENOUGH * step * slope:
            return step, reached, gradient
        bend = 2 * (reached - value - step * slope)
        best = -slope * step**2 / bend if bend < float("inf") else 0.0
        step = min(max(best, 0.1 * step), 0.5 * step)
    return None
