"""Reconstruction with a learned manifold as a penalty (eq. 8 of science.md): the reference for quality.

    argmin_u ||d - A u||^2 + sum_n lambda_n ||C(rho_n) - rho_n||^2 + R(u)

u are coefficients on the rows of a subspace: those that carry the manifold, and nuisance rows. C is the autoencoder, R
the edge prior with the weights that Stein's risk estimate finds for the linear solution. The work is done on components
(`prior_step.Components`): coefficients in units of their noise, along the principal axes of the scan. Complete data
have A^H A = 1: ||d - A u||^2 is ||z - u||^2 and a constant, z the linear solution without a prior, and no transform is
left inside the iterations. Others use the operator's gram.

The weight of a voxel is the one of the most likely FID. Noise of SD s in the real part of the data and FIDs that
scatter about the manifold with a variance of t_n^2 in each real coordinate make minus the logarithm of the posterior

    ||d - A u||^2 / (2 s^2) + sum_n ||C(rho_n) - rho_n||^2 / (2 t_n^2) + ...,    so    lambda_n = s^2 / t_n^2.

t_n^2 is the manifold's own tube times |c|^2, the mean squared scale of the FIDs (`manifold_penalty.tube_variance`),
plus what the linear solution shows of the voxel: where it lies farther from the manifold than its noise can take it, a
lesion or a line that no model has seen is more likely, and the tube is as wide as that distance. One lambda
for all voxels has no good value: what helps the brain takes the lesions away.

Nuisance coefficients are held to what is expected of water and lipids (`models.separation`), as strongly as that is
known: hardly where there are any, to zero where there are none. What is expected of them in the metabolites' rows is
taken out before C sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, norm, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples
from mrsi_gadgets.operators.encoding import EvolvedBasis
from mrsi_gadgets.reconstruction.fourier import Progress
from mrsi_gadgets.reconstruction.lbfgs import End, Minimum, inner, minimise
from mrsi_gadgets.reconstruction.least_squares import TemporalBasis, rows_at_offsets
from mrsi_gadgets.reconstruction.prior_step import NOISE_POWER, Components, FittedPrior, components_of, fit_prior
from mrsi_gadgets.reconstruction.quadratic import Quadratic, Voxels, hold_nuisance, of_complete_data, of_samples
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

PRIORS = ("edges", "none")
SOLVERS = ("lbfgs", "admm")
_LARGEST_WEIGHT = 12.0
"""A weight leaves 1 / (1 + weight) of the noise beside the manifold: more gains nothing and converges slowly."""
_USUAL = 1.5
"""Squared distances from the manifold up to so many times those of noise are usual: two standard deviations above, of
some twenty components that count."""
_NUMBERS_OUTSIDE = 10
"""Real numbers among which the distance of an unusual FID from the manifold lies: a few lines, not all coordinates."""
_LEAST_SCALE = 5.0
"""FIDs whose scale is not so many SDs of noise have no place on the manifold that could be told."""
_OUTSIDE_SPAN = 0.01
"""Part of a manifold's row that may lie outside of the subspace."""
_INNER_STEPS = 4
"""Quasi-Newton steps towards the manifold in each turn of ADMM."""
_INNER_RTOL = 1e-3
"""Relative residual of the conjugate gradients of each turn."""


def reconstruct_dae(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    manifold: Manifold,
    subspace: TemporalBasis,
    between: RowsBetweenSamples | None = None,
    evolved: EvolvedBasis | None = None,
    water: np.ndarray | None = None,
    prior: str = "edges",
    weight: float | None = None,
    solver: str = "lbfgs",
    adapt: bool = True,
    use_operator: bool = False,
    rtol: float = 2e-2,
    max_iterations: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
    callback: Callable[[int, Array], bool | None] | None = None,
) -> SpectralImage:
    """Reconstruct coefficient images whose FIDs lie near a learned manifold.

    Parameters
    ----------
    kt, coil_maps, b0_hz, mask, noise_sd, between, evolved, water, adapt, use_operator, seed
        As for `reconstruct_subspace`.
    manifold
        Its autoencoder makes the penalty, of all voxels inside the mask.
    subspace
        Signal model whose rows span those of the manifold; rows that the scan adds to it are free.
    prior
        ``edges`` or ``none``.
    weight
        lambda of all voxels, with respect to noise of one coefficient of complete data; None: from the noise, for each
        voxel (see the top of this module).
    solver
        ``lbfgs`` (all at once) or ``admm`` (manifold and linear part in turn); they find the same minimum.
    rtol
        Stop when the norm of the gradient of half the objective is below this part of the norm of the noise, in units
        of the noise: as complete data alone have curvature 1, the result is then about as near to the minimum.
    max_iterations
        Upper limit; a solve that ends there is used, and told.
    progress
        Called with the share that is done.
    callback
        Called with the iteration (from 1) and coefficients (x, y, z, component) in unit and basis of the result; True
        stops.

    Returns
    -------
    SpectralImage
        Coefficients on an orthonormal basis. `coefficient_sd` is that of the linear solution with the same spatial
        prior: more than the noise that is left where FIDs are near the manifold, and blind to what C itself gets wrong.
        Objective (in units of the noise power, without its constant) and gradient norms are in the provenance.

    Raises
    ------
    DataError
        Data, calibration and models do not fit each other.
    ConfigError
        Prior or solver is unknown, or the weight is negative.
    NumericalError
        The data are not finite.
    """
    if prior not in PRIORS:
        raise ConfigError(f"prior '{prior}' is not known to method dae; use {' or '.join(PRIORS)}")
    if solver not in SOLVERS:
        raise ConfigError(f"solver '{solver}' is not known; use {' or '.join(SOLVERS)}")
    if weight is not None and not weight >= 0:
        raise ConfigError(f"the weight of the manifold is {weight:g}; it must not be negative")
    inside = np.asarray(mask, dtype=bool)
    if between is None and (kt.grid is None or not kt.common_times):
        between = rows_at_offsets(kt, subspace, None)
    linear = reconstruct_subspace(
        kt, coil_maps, b0_hz, inside, noise_sd, model=subspace, between=between, evolved=evolved, prior="none",
        adapt=adapt, use_operator=use_operator, seed=seed, progress=_half(progress),
    )  # fmt: skip
    told: dict[str, Any] = dict(linear.provenance) | {"method": "dae", "solver": solver, "prior": prior}
    if not inside.any():
        return replace(linear, provenance=told)
    scale = float(np.sqrt(inside.size))
    assert linear.coefficient_sd is not None
    noise = scale * np.median(linear.coefficient_sd[inside], axis=0)
    components = components_of(linear.coefficients * scale, noise, inside)
    z = components.of(linear.coefficients * scale)
    fitted = None
    if prior == "edges":
        fitted = fit_prior(prior, components, components.inside(z), water, np.random.default_rng(seed))
        told |= fitted.provenance
    rows = to_numpy(linear.basis).astype(np.complex64)
    carries = _carries(rows, manifold)
    if kt.fully_sampled and not use_operator:
        quadratic = of_complete_data(components, z, fitted)
        rows = (components.rotation.conj().T @ rows).astype(np.complex64)
        unit = float(noise[0]) / scale

        def image_of(found: Array) -> Array:
            return components.replaced(namespace(z).asarray(z, copy=True), found) * unit
    else:
        quadratic = of_samples(components, z, fitted, kt, coil_maps, linear.b0_hz, noise_sd, rows, between, evolved)
        back = like((components.rotation.conj().T * (noise / scale)).astype(np.complex64), z)

        def image_of(found: Array) -> Array:
            return found @ back

    left = np.ones((int(inside.sum()), len(rows))) if fitted is None else fitted.noise_left[components.mask_in_box]
    objective = _objective(quadratic, components, manifold, subspace, carries, left, weight)
    floor = float(np.sqrt(2 * inside.sum() * len(rows)))
    stop = _Stop(2 * floor, rtol, max_iterations, _watched(image_of, progress, max_iterations, callback))
    found = (_lbfgs if solver == "lbfgs" else _admm)(objective, stop)
    errors = _errors(fitted, components, kt.fully_sampled and not use_operator)
    if progress is not None:
        progress(1.0, "reconstruction with a manifold")
    quarter, middle, most = (float(w) for w in np.percentile(to_numpy(objective.weights), (25, 50, 100)))
    return SpectralImage(
        coefficients=image_of(quadratic.start + found.value),
        basis=like(rows, linear.coefficients),
        protocol=linear.protocol,
        mask=inside,
        b0_hz=linear.b0_hz,
        noise_sd=linear.noise_sd,
        coefficient_sd=(linear.coefficient_sd * errors).astype(np.float32),
        frame=linear.frame,
        provenance=told
        | {
            "manifold_weight": {"lower quarter": quarter, "median": middle, "largest": most},
            "iterations": len(found.objective) - 1,
            "status": found.end.value,
            "objective": list(found.objective),
            "relative_gradient": list(found.gradient),
            "uncertainty": "of the linear solution with the same spatial prior",
        },
    )


def convergence(history: Sequence[tuple[float, float]], within: float = 0.02) -> tuple[float, float]:
    """Return the converged error of a solver and the time after which its error stays within so much of it.

    Parameters
    ----------
    history
        (seconds, error) of each iterate, in time; the last is the converged one.
    within
        Relative to the converged error.
    """
    if not history:
        raise DataError("there is no iterate to find the convergence of; score at least one")
    final = history[-1][1]
    reached = history[-1][0]
    for seconds, error in reversed(history):
        if abs(error - final) > within * final:
            break
        reached = seconds
    return final, reached


@dataclass(frozen=True, eq=False)
class _Objective:
    """The quadratic part and the distance from the manifold, as a function of e."""

    quadratic: Quadratic
    manifold: Manifold
    voxels: Voxels
    onto: Array
    """(component, rank of the manifold): from components to the manifold's coefficients."""
    nuisance: Array
    """(voxel, rank of the manifold): what water and lipids have of them."""
    weights: Array
    """(voxel,)."""

    def linear(self, e: Array) -> Array:
        """Return the manifold's coefficients (voxel, rank) of components."""
        return self.voxels.gather(e) @ self.onto

    def coordinates(self, e: Array) -> Array:
        """Return those of the metabolites at e."""
        return self.linear(self.quadratic.start + e) - self.nuisance

    def spread(self, coefficients: Array) -> Array:
        """Return the adjoint of `linear`."""
        return self.voxels.scatter(coefficients @ namespace(coefficients).conj(self.onto.T))

    def distance(self, coordinates: Array) -> tuple[float, Array]:
        """Return the weighted squared distance of the manifold's coefficients from it, and its gradient."""
        # torch is imported where it is needed, not before
        from mrsi_gadgets.models.manifold_penalty import penalty

        return penalty(self.manifold, coordinates, self.weights)

    def evaluate(self, e: Array) -> tuple[float, Array]:
        """Return value and gradient."""
        bent = self.quadratic.hessian(e)
        distance, pull = self.distance(self.coordinates(e))
        value = inner(e, bent) + 2 * inner(e, self.quadratic.slope) + distance
        return value, 2 * (bent + self.quadratic.slope) + self.spread(pull)


def _objective(
    quadratic: Quadratic, components: Components, manifold: Manifold, subspace: TemporalBasis, carries: np.ndarray,
    left: np.ndarray, weight: float | None,
) -> _Objective:  # fmt: skip
    """Return what is minimised.

    Parameters
    ----------
    quadratic, components, manifold, subspace
        As they are.
    carries
        (row, rank of the manifold).
    left
        (voxel, component) SD of the noise in the linear solution, in units of the noise.
    weight
        Of all voxels; None: from the linear solution.
    """
    start = quadratic.start
    voxels = Voxels.of(quadratic.mask, start)
    back = components.rotation.conj().T * (components.noise / np.mean(components.noise))
    power = NOISE_POWER * left**2 @ np.abs(back) ** 2
    nuisance: Array = 0.0
    if isinstance(subspace, Subspace) and subspace.rank > subspace.metabolite_rank:
        quadratic, expected = hold_nuisance(quadratic, voxels, back, power, subspace, _LARGEST_WEIGHT)
        nuisance = expected @ like(carries[: subspace.metabolite_rank], expected, expected.dtype)
    onto = back @ carries
    made = _Objective(quadratic, manifold, voxels, like(onto.astype(np.complex64), start), nuisance, start)
    if weight is None:
        total = NOISE_POWER * left**2 @ np.sum(np.abs(onto) ** 2, axis=1)
        found = _voxel_weights(manifold, made.coordinates(namespace(start).zeros_like(start)), total)
    else:
        found = np.full(len(left), weight)
    return replace(made, weights=like(found.astype(np.float32), start))


def _voxel_weights(manifold: Manifold, coefficients: Array, noise_power: np.ndarray) -> np.ndarray:
    """Return lambda_n = 1 / t_n^2, (voxel,), from the linear solution in units of the noise.

    `noise_power` (voxel,) is E|noise|^2 that is left in it, summed over the manifold's coefficients.
    """
    from mrsi_gadgets.models.manifold_penalty import tube_variance

    xp = namespace(coefficients)
    residual = manifold.autoencode(coefficients) - coefficients
    distance = to_numpy(xp.sum(xp.real(residual) ** 2 + xp.imag(residual) ** 2, axis=-1)).astype(float)
    numbers = 2 * manifold.rank
    scale = np.abs(to_numpy(manifold.scale(coefficients)))
    tube = tube_variance(manifold) * float(np.mean(scale**2))
    # latent and scale are free along the manifold: noise in them is no distance
    beside = max(1 - (manifold.latent + 2) / numbers, 0.0)
    unusual = np.maximum(distance - _USUAL * beside * noise_power - numbers * tube, 0.0)
    weights = 1 / np.maximum(tube + unusual / _NUMBERS_OUTSIDE, 1 / _LARGEST_WEIGHT)
    # C is taken relative to the scale, which must stand out of the noise itself
    return np.where(scale * np.linalg.norm(manifold.mean) > _LEAST_SCALE, weights, 0.0)


@dataclass(frozen=True)
class _Stop:
    """When a solver ends, and who watches."""

    scale: float
    rtol: float
    max_iterations: int
    callback: Callable[[int, Callable[[], Array]], bool | None]
    """Told the iteration and how to get the components."""


def _lbfgs(objective: _Objective, stop: _Stop) -> Minimum:
    quadratic = objective.quadratic
    return minimise(
        objective.evaluate, namespace(quadratic.start).zeros_like(quadratic.start), scale=stop.scale,
        inverse=quadratic.inverse, rtol=stop.rtol, max_iterations=stop.max_iterations,
        callback=lambda i, e: stop.callback(i, lambda: quadratic.start + e),
    )  # fmt: skip


def _admm(objective: _Objective, stop: _Stop) -> Minimum:
    """Minimise by turns: v near the manifold and near the image; the image near v, by conjugate gradients.

    Alternating direction method of multipliers in scaled form (Boyd et al. 2011, doi:10.1561/2200000016) for
    v = coordinates(u).
    """
    quadratic, start = objective.quadratic, objective.quadratic.start
    stiff = max(1.0, float(np.sqrt(np.median(to_numpy(objective.weights)))))
    e = namespace(start).zeros_like(start)
    seen = origin = objective.coordinates(e)
    v, y = seen, namespace(seen).zeros_like(seen)
    value, gradient = objective.evaluate(e)
    values, sizes = [value], [norm(gradient) / stop.scale]
    end = End.CONVERGED if sizes[0] <= stop.rtol else End.MAX_ITERATIONS

    def coupled(x: Array) -> Array:
        return quadratic.hessian(x) + stiff * objective.spread(objective.linear(x))

    for iteration in range(1, stop.max_iterations + 1):
        if end is not End.MAX_ITERATIONS:
            break
        near = seen + y

        def both(x: Array, near: Array = near) -> tuple[float, Array]:
            pulled, pull = objective.distance(x)
            off = x - near
            return pulled + stiff * inner(off, off), pull + 2 * stiff * off

        v = minimise(both, v, scale=stop.scale, rtol=0.1 * stop.rtol, max_iterations=_INNER_STEPS).value
        rhs = stiff * objective.spread(v - y - origin) - quadratic.slope
        e = conjugate_gradient(coupled, rhs, x0=e, precondition=quadratic.inverse, rtol=_INNER_RTOL).value
        seen = objective.coordinates(e)
        y = y + seen - v
        value, gradient = objective.evaluate(e)
        values.append(value)
        sizes.append(norm(gradient) / stop.scale)
        if sizes[-1] <= stop.rtol:
            end = End.CONVERGED
        if stop.callback(iteration, lambda x=e: start + x) and end is End.MAX_ITERATIONS:  # type: ignore[misc]
            end = End.STOPPED
    return Minimum(e, end, tuple(values), tuple(sizes))


def _carries(rows: np.ndarray, manifold: Manifold) -> np.ndarray:
    """Return the matrix (row, rank) from coefficients on rows to those of the manifold."""
    if rows.shape[1] != manifold.basis.shape[1]:
        raise DataError(
            f"the manifold has {manifold.basis.shape[1]} points and the data {rows.shape[1]}; learn one for this "
            "protocol"
        )
    onto = rows @ manifold.basis.conj().T
    least = float(np.min(np.sum(np.abs(onto) ** 2, axis=0)))
    if least < 1 - _OUTSIDE_SPAN:
        raise DataError(
            f"the subspace holds only {least:.2f} of a row of the manifold; use the subspace that was learned with it"
        )
    return np.asarray(onto)


def _errors(fitted: FittedPrior | None, components: Components, rotated: bool) -> np.ndarray:
    """Return the errors of the linear solution in units of the noise, (x, y, z, coefficient)."""
    errors = np.ones((*components.mask.shape, len(components.noise)), dtype=np.float32)
    if fitted is not None:
        errors[components.box] = fitted.errors
    return errors if rotated else np.sqrt(errors**2 @ np.abs(components.rotation.T) ** 2)


def _half(progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda share, words: progress(0.5 * share, words)


def _watched(
    image_of: Callable[[Array], Array], progress: Progress | None, most: int,
    callback: Callable[[int, Array], bool | None] | None,
) -> Callable[[int, Callable[[], Array]], bool | None]:  # fmt: skip
    """Return what a solver tells of its iterations."""

    def watch(iteration: int, components: Callable[[], Array]) -> bool | None:
        if progress is not None:
            progress(0.5 + 0.5 * iteration / most, "reconstruction with a manifold")
        return None if callback is None else callback(iteration, image_of(components()))

    return watch
