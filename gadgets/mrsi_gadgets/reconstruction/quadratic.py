"""The data and the edge prior as one quadratic function of components, for solvers that add a term of their own.

In units of the noise and without its constant: ||d - A u||^2 + sum_l lambda_l ||L z_l||^2, z the components of u
(`prior_step.Components`), L the Laplacian of the edges. Complete data have A^H A = 1 and need no transform. Nuisance
can be held to what is expected of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import KtData
from mrsi_gadgets.models.separation import fit_nuisance_filter
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples
from mrsi_gadgets.operators.encoding import EvolvedBasis, encoding_operator
from mrsi_gadgets.reconstruction.gridding import with_density
from mrsi_gadgets.reconstruction.least_squares import INCOMPLETE_STEPS, held_outside
from mrsi_gadgets.reconstruction.prior_step import NOISE_POWER, Components, FittedPrior, in_full
from mrsi_gadgets.reconstruction.regularisation import WeightChoice, smooth
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient

_FLOOR = 0.01
"""Part of the identity in the preconditioner, more than the error of the polynomial in the rest."""
_LINEAR_RTOL, _LINEAR_ITERATIONS = 1e-3, 60
"""The linear solution of data through the operator is a start: what it leaves of the gradient is not forgotten."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The data and the spatial prior: e^H H e + 2 Re<slope, e> and a constant, e from the linear solution."""

    start: Array
    """Components (x, y, z, component) of the linear solution with the spatial prior."""
    slope: Array
    """What is left of its gradient."""
    hessian: Callable[[Array], Array]
    inverse: Callable[[Array], Array] | None
    """Near the inverse of the Hessian without the manifold."""
    mask: np.ndarray
    """(x, y, z) bool on the grid of the components."""


@dataclass(frozen=True, eq=False)
class Voxels:
    """The voxels of the mask and their places in the grid."""

    inside: Array
    """Places in the flattened grid."""
    back: Array
    """For each place of the grid the voxel, one past the last outside."""
    grid: tuple[int, ...]

    @classmethod
    def of(cls, mask: np.ndarray, reference: Array) -> Voxels:
        """Return those of a mask, on the device of `reference`."""
        places = np.flatnonzero(mask.ravel())
        back = np.full(mask.size, len(places))
        back[places] = np.arange(len(places))
        return cls(like(places, reference), like(back, reference), mask.shape)

    def gather(self, x: Array) -> Array:
        """Return (voxel, any) of an image (x, y, z, any)."""
        xp = namespace(x)
        return xp.take(xp.reshape(x, (-1, x.shape[-1])), self.inside, axis=0)

    def scatter(self, values: Array) -> Array:
        """Return the image of voxels, zero elsewhere: the adjoint of `gather`."""
        xp = namespace(values)
        with_zero = xp.concat([values, xp.zeros_like(values[:1, :])], axis=0)
        return xp.reshape(xp.take(with_zero, self.back, axis=0), (*self.grid, values.shape[-1]))


def of_complete_data(components: Components, z: Array, fitted: FittedPrior | None) -> Quadratic:
    """Return ||x - z||^2 and the edges, inside the box of the mask."""
    data = components.inside(z)
    mask = components.mask_in_box
    if fitted is None:
        return Quadratic(data, namespace(data).zeros_like(data), lambda e: e, None, mask)
    roughness, inverse = _edges(fitted, components, data, whole=False)

    def hessian(e: Array) -> Array:
        return e + roughness(e)

    start = fitted.step(data)
    return Quadratic(start, hessian(start) - data, hessian, inverse, mask)


def of_samples(
    components: Components, z: Array, fitted: FittedPrior | None, kt: KtData, coil_maps: Array, b0_hz: np.ndarray,
    noise_sd: float, rows: np.ndarray, between: RowsBetweenSamples | None, evolved: EvolvedBasis | None,
) -> Quadratic:  # fmt: skip
    """Return ||d - A u||^2 over the noise power and the edges, on the whole grid."""
    basis: np.ndarray | RowsBetweenSamples | EvolvedBasis = rows
    if kt.grid is None and kt.fully_sampled:
        kt = with_density(kt)
    if between is not None and between.values.shape[1] == len(rows):
        # the field of complete data may have been shifted
        basis = between if evolved is None or kt.fully_sampled else evolved
    roots = np.sqrt(kt.count.astype(float))
    operator = encoding_operator(kt, coil_maps, b0_hz, basis, weights=roots)
    spread = like((roots[None, :, None] if roots.ndim == 1 else roots[None]).astype(np.float32), kt.samples)
    noise = components.noise / noise_sd
    back = like((components.rotation.conj().T * noise).astype(np.complex64), z)
    there = like((noise[:, None] * components.rotation).astype(np.complex64), z)
    gram = operator.gram
    data = (operator.H(kt.samples * spread) @ there) / float(noise_sd)
    held: Array = 0.0
    if not kt.fully_sampled:
        # as the linear solution of such data: see `subspace`
        fitted = None if fitted is None or fitted.choice is None else _weaker(fitted, fitted.choice)
        held = like(held_outside(cast("Any", components), z, np.ones(len(rows)))[..., None].astype(np.float32), z)
    roughness, smoothed = (None, None) if fitted is None else _edges(fitted, components, z, whole=True)

    def hessian(e: Array) -> Array:
        u = e @ back
        image = (gram(u) + held * u) @ there
        return image if roughness is None else image + roughness(e)

    def inverse(r: Array) -> Array:
        return (r if smoothed is None else smoothed(r)) / (1 + held)

    solved = conjugate_gradient(
        hessian, data, x0=z if fitted is None else None, precondition=inverse, rtol=_LINEAR_RTOL,
        max_iterations=_LINEAR_ITERATIONS,
    )  # fmt: skip
    start = solved.value
    return Quadratic(start, hessian(start) - data, hessian, inverse, components.mask)


def hold_nuisance(
    quadratic: Quadratic, voxels: Voxels, back: np.ndarray, power: np.ndarray, subspace: Subspace, most: float
) -> tuple[Quadratic, Array]:
    """Return the quadratic with water and lipids held to what is expected of them, and that in the metabolite rows.

    Parameters
    ----------
    quadratic, voxels, subspace
        As they are.
    back
        (component, row): from components to coefficients.
    power
        (voxel, row) E|noise|^2 of the coefficients in the linear solution.
    most
        Largest weight with which a nuisance coefficient is held.
    """
    rank, wanted = subspace.rank, subspace.metabolite_rank
    start = quadratic.start
    a = voxels.gather(start) @ like(back[:, :rank].astype(np.complex64), start)
    found = fit_nuisance_filter(subspace, a, power[:, :rank].mean(axis=0))
    known = np.maximum(found.variance[:, wanted:], np.finfo(np.float32).tiny)
    # `variance` is what is left to know once the data were seen: without their share it is what the ensemble knows
    held = np.clip(NOISE_POWER * (1 / known - 1 / power[:, wanted:rank]), 0.0, most)
    weights = like(held.astype(np.float32), start)
    into = like(back[:, wanted:rank].astype(np.complex64), start)

    expected = found.expected(a)

    def holding(nuisance: Array) -> Array:
        return voxels.scatter((nuisance * weights) @ namespace(nuisance).conj(into.T))

    with_held = replace(
        quadratic,
        slope=quadratic.slope + holding(a[:, wanted:] - expected[:, wanted:]),
        hessian=lambda e: quadratic.hessian(e) + holding(voxels.gather(e) @ into),
    )
    return with_held, expected[:, :wanted]


def _weaker(fitted: FittedPrior, choice: WeightChoice) -> FittedPrior:
    return replace(fitted, choice=choice.weaker(INCOMPLETE_STEPS))


def _edges(
    fitted: FittedPrior, components: Components, reference: Array, *, whole: bool
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return u -> lambda L^2 u and nearly (1 + lambda L^2)^-1, in the box or on the whole grid."""
    assert fitted.edges is not None
    assert fitted.choice is not None
    edges = in_full(fitted.edges, components) if whole else fitted.edges
    choice = fitted.choice
    lambdas = like(choice.weights.astype(np.float32), reference)
    return (
        lambda u: edges.laplacian(edges.laplacian(u)) * lambdas,
        lambda u: (1 - _FLOOR) * smooth(u, edges, choice) + _FLOOR * u,
    )
