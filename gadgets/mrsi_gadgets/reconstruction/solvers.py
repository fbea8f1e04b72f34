"""Iterative solvers. They take callables, stop on RELATIVE tolerances and say how they ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mrsi_gadgets.arrays import Array, namespace
from mrsi_gadgets.errors import NumericalError


class Status(Enum):
    """How a solver ended; the values are the sentences shown to the user."""

    CONVERGED = "the residual fell below the tolerance"
    STOPPED = "the callback asked to stop"
    MAX_ITERATIONS = (
        "the residual is still above the tolerance after the largest number of iterations; allow more of them"
    )
    BREAKDOWN = "the operator is not positive definite, so conjugate gradients cannot go on; check operator and weights"


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found."""

    value: Any
    """The solution, shaped like the right-hand side."""
    status: Status
    residuals: tuple[float, ...]
    """Norm of the residual over that of the right-hand side: at the start and after each iteration."""

    def checked(self) -> Array:
        """Return the value of a converged or stopped solve.

        Raises
        ------
        NumericalError
            The solver broke down or ran out of iterations.
        """
        if self.status not in (Status.CONVERGED, Status.STOPPED):
            raise NumericalError(f"{self.status.value} (relative residual {self.residuals[-1]:.2g})")
        return self.value


def conjugate_gradient(
    normal: Callable[[Array], Array],
    rhs: Array,
    *,
    x0: Array | None = None,
    precondition: Callable[[Array], Array] | None = None,
    max_iterations: int = 100,
    rtol: float = 1e-5,
    callback: Callable[[int, float], bool | None] | None = None,
) -> Solution:
    """Solve normal(x) = rhs for a Hermitian positive (semi)definite map.

    Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 1952, doi:10.6028/jres.049.044.

    Every quantity that is compared is relative to the right-hand side, so results do not depend on the scale of the
    data. Directions of zero curvature end the iteration: with them the right-hand side was outside the map's range.

    Parameters
    ----------
    normal
        The map x -> A^H A x + R x.
    rhs
        Right-hand side, any shape, real or complex.
    x0
        Start; zero where None.
    precondition
        Hermitian positive definite map near the inverse of `normal`; the identity where None.
    max_iterations
        Upper limit.
    rtol
        Stop when ||rhs - normal(x)|| <= rtol ||rhs||.
    callback
        Called with the iteration (from 1) and the relative residual; True stops the solve.
    """
    scale = _norm(rhs)
    if scale == 0.0:
        return Solution(namespace(rhs).zeros_like(rhs), Status.CONVERGED, (0.0,))
    # the iteration runs on rhs / ||rhs||: squares of very small or very large float32 data would leave the range
    target = rhs / scale
    x = namespace(rhs).zeros_like(rhs) if x0 is None else x0 / scale
    residual = target if x0 is None else target - normal(x)
    improved = residual if precondition is None else precondition(residual)
    direction = improved
    power = _inner(residual, improved)
    residuals = [_norm(residual)]
    status = Status.CONVERGED if residuals[0] <= rtol else Status.MAX_ITERATIONS
    for iteration in range(1, max_iterations + 1):
        if status is Status.CONVERGED:
            break
        image = normal(direction)
        curvature = _inner(direction, image)
        if not curvature > 1e-30 * abs(power):
            status = Status.BREAKDOWN
            break
        step = power / curvature
        x = x + step * direction
        residual = residual - step * image
        improved = residual if precondition is None else precondition(residual)
        previous, power = power, _inner(residual, improved)
        direction = improved + (power / previous) * direction
        residuals.append(_norm(residual))
        if residuals[-1] <= rtol:
            status = Status.CONVERGED
        if callback is not None and callback(iteration, residuals[-1]) and status is not Status.CONVERGED:
            status = Status.STOPPED
            break
    return Solution(x * scale, status, tuple(residuals))


def _inner(a: Array, b: Array) -> float:
    """Real part of the inner product, summed in the arrays' own precision."""
    xp = namespace(a)
    if xp.isdtype(a.dtype, "complex floating"):
        return float(xp.sum(xp.real(a) * xp.real(b) + xp.imag(a) * xp.imag(b)))
    return float(xp.sum(a * b))


def _norm(a: Array) -> float:
    xp = namespace(a)
    largest = float(xp.max(xp.abs(a))) if a.size else 0.0
    if largest == 0.0:
        return 0.0
    if not largest < float("inf"):
        raise NumericalError("the data or the operator's result contain values that are not finite; check the samples")
    part = a / largest
    return largest * _inner(part, part) ** 0.5
