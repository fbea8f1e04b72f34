"""Reconstruction in a learned temporal subspace with an edge-weighted prior (eq. 6 and 7 of science.md).

U^ = argmin || d - Omega{F B (U V)} ||^2 + sum_l lambda_l R(u_l). V comes from the signal model; the scan itself adds

* one frequency shift that all voxels share (what the water reference could not know),
* rows for signals that stand out of the noise and that no model has seen,
* the rotation of the coefficients to their principal axes, so that each has its own signal-to-noise ratio,
* the edges of its own coefficients, and
* each component's lambda, by Stein's unbiased risk estimate from the known noise.

Fully sampled data need no transform inside the iterations: with sum_c |S_c|^2 = 1 and orthonormal V, A^H A is the
identity, and the data enter through the B0-demodulated, projected, matched-filter image alone. Complete data off the
grid or with times of their own (EPSI, rings, spirals) start from their gridded version; what that approximates is taken
out by the exact operator, in which each sample has its own t: the gridded residual corrects the image until it no
longer changes. Where k-space is sampled unevenly (rings, spirals), the samples themselves then stand against the prior
(`uneven_noise`). Incomplete data go through the general operator and conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples
from mrsi_gadgets.operators.encoding import EvolvedBasis, encoding_operator, spectral_times
from mrsi_gadgets.reconstruction.edge_prior import EdgePrior
from mrsi_gadgets.reconstruction.fourier import (
    Progress,
    check_calibration,
    demodulate,
    how_sampled,
    image_noise_sd,
    matched_image,
)
from mrsi_gadgets.reconstruction.gridding import on_grid, with_density
from mrsi_gadgets.reconstruction.least_squares import (
    INCOMPLETE_STEPS,
    Problem,
    TemporalBasis,
    held_outside,
    least_squares,
    rows_at_offsets,
    solve,
    unevenly_sampled,
)
from mrsi_gadgets.reconstruction.prior_step import (
    PRIORS,
    Components,
    FittedPrior,
    bounding_box,
    components_of,
    fit_prior,
    in_full,
    voxels_in,
)
from mrsi_gadgets.reconstruction.regularisation import WeightChoice
from mrsi_gadgets.reconstruction.solvers import Solution, Status
from mrsi_gadgets.reconstruction.uneven_noise import against_own_noise

_INCOMPLETE_RTOL, _INCOMPLETE_ITERATIONS = 1e-3, 60
"""Incomplete data are solved to this relative residual, or for so many iterations."""


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """The least-squares image of complete data and the prior for it, as a refinement takes them."""

    components: Components
    fitted: FittedPrior
    z: Array
    """(x, y, z, component) in the box, zero outside of the mask."""
    smoothed: Array
    """The same with the prior's step taken."""
    best: Array
    """The same as data and prior want it: `smoothed`, or where k-space is sampled unevenly what each sample's own noise
    makes of it."""
    fids: Array
    """(voxel, t) of the mask, in units of the noise of their real parts."""
    basis: np.ndarray
    """(coefficient, t) orthonormal rows."""


@dataclass(frozen=True, eq=False)
class Incomplete:
    """The image of incomplete data with its prior, as a refinement takes it."""

    components: Components
    image: Array
    """(x, y, z, coefficient) on the whole grid."""
    errors: np.ndarray
    """The same shape: SD of its errors in units of the noise of its coefficients (`components.noise`)."""
    basis: np.ndarray
    """(coefficient, t) orthonormal rows."""
    solve: Callable[[Array, np.ndarray, Array], Array]
    """(image to be pulled to, strength of the pull per coefficient, start) -> image of data, prior and pull."""
    measured: Callable[[Array], Array]
    """Image -> FIDs (voxel, t) of the mask: its own and what it leaves of the samples, in units of their noise."""
    unit: float
    """The noise of the real part of a coefficient of these FIDs."""


@dataclass(frozen=True, eq=False)
class Refined:
    """What a refinement makes of the data; complete ones: components in their box, else coefficients of the grid."""

    value: Array
    """(x, y, z, component)."""
    errors: np.ndarray
    """The same shape: SD of the errors in units of the noise."""
    rows: np.ndarray
    """(more, t) orthonormal rows for signal that no component holds."""
    more: Array
    """(x, y, z, more): its coefficients, in units of the noise of the FIDs."""
    outside: np.ndarray | None = None
    """(x, y, z) bool: voxels that the refinement did not touch."""
    score: np.ndarray | None = None
    """(x, y, z): -log10 of the probability of FIDs as strange as this one."""


class Refinement(Protocol):
    """What a method does with the image of the spatial prior before it becomes the result."""

    @property
    def method(self) -> str:
        """Its name in the provenance."""
        ...

    def complete(self, image: LeastSquares, rng: np.random.Generator, provenance: dict[str, Any]) -> Refined:
        """Return the refined components of complete data."""
        ...

    def incomplete(self, image: Incomplete, provenance: dict[str, Any]) -> Refined:
        """Return the refined coefficients of incomplete data."""
        ...


def reconstruct_subspace(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    model: TemporalBasis,
    between: RowsBetweenSamples | None = None,
    evolved: EvolvedBasis | None = None,
    water: np.ndarray | None = None,
    prior: str = "edges",
    refinement: Refinement | None = None,
    adapt: bool = True,
    use_operator: bool = False,
    rtol: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpectralImage:
    """Reconstruct coefficient images on a learned temporal basis.

    Parameters
    ----------
    kt, coil_maps, b0_hz, mask, noise_sd
        As for `reconstruct_fourier`; readouts may be missing here.
    model
        Signal model with an orthonormal `basis`.
    between
        The model's rows between the spectral times, where they are known already; None: made here where samples lie
        between them.
    evolved
        The rows of `between` evolving in `b0_hz`, where that was made already (`operators.encoding.evolved_basis`).
    water
        (x, y, z) water image, whose edges are trusted where that lowers the risk estimate; None for the scan's own
        edges alone.
    prior
        ``edges`` (quadratic), ``tv`` (total variation weighed by the same edges) or ``wavelet`` (Haar details), or
        ``none`` (least squares on the basis). ``tv`` and ``wavelet`` need complete data.
    refinement
        What is done after the prior (`raiise.ManifoldProjection`); needs a prior.
    adapt
        Whether the scan may shift the frequency and add rows to the basis (complete data only).
    use_operator
        Solve with the general operator although the data are complete (a check; the result is the same).
    rtol
        Relative tolerance of the conjugate gradients.
    seed
        Of the random probes of the risk estimate.
    progress
        Called with the share that is done.

    Returns
    -------
    SpectralImage
        Coefficients on an orthonormal basis (rotated to the scan's principal axes, which makes their errors
        independent). `coefficient_sd` is the noise that is left in each after smoothing, in quadrature with the signal
        that the risk estimate says was smoothed away; `noise_sd` is that without a prior.

    Raises
    ------
    DataError
        Data, calibration and model do not fit each other.
    ConfigError
        The prior is unknown, or needs complete data and gets others.
    NumericalError
        The general solve did not converge.
    """
    if kt.grid is None and kt.fully_sampled:
        # once, not for each correction
        kt = with_density(kt)
    if prior not in PRIORS:
        raise ConfigError(f"prior '{prior}' is not known; use {' or '.join(PRIORS)}")
    if prior in ("tv", "wavelet") and (use_operator or not kt.fully_sampled):
        raise ConfigError(f"prior '{prior}' is one step from complete data; use edges for data with missing readouts")
    check_calibration(kt, coil_maps, b0_hz, mask, noise_sd)
    times = spectral_times(kt)
    if model.basis.shape[1] != len(times):
        raise DataError(
            f"the signal model has {model.basis.shape[1]} points and the data {len(times)}; learn one for this protocol"
        )
    direct = kt.fully_sampled and not use_operator
    inside = np.asarray(mask, dtype=bool)
    given, between = between, None if kt.grid is not None and kt.common_times else rows_at_offsets(kt, model, between)
    problem = Problem(
        kt, on_grid(kt) if kt.fully_sampled else kt, coil_maps, np.asarray(b0_hz, dtype=float), inside, noise_sd,
        np.asarray(model.basis), between, evolved if between is not None and between is given else None, direct,
        np.random.default_rng(seed), rtol, direct and prior == "edges" and unevenly_sampled(kt),
    )  # fmt: skip
    provenance: dict[str, Any] = {
        "method": "subspace" if refinement is None else refinement.method,
        "solver": "per voxel" if direct else "conjugate gradients",
        "prior": prior,
    } | how_sampled(kt)
    problem, image, noise = least_squares(
        problem, times, model, adapt and bool(inside.any()), refinement is not None, provenance, progress
    )
    errors: np.ndarray | None = None
    refined: Refined | None = None
    if prior != "none" and inside.any():
        problem, image, errors, refined = _regularise(problem, prior, refinement, image, noise, water, provenance)
    scale = float(1 / np.sqrt(inside.size))
    sd = (
        image_noise_sd(problem.gridded, coil_maps, noise_sd)
        if kt.fully_sampled
        else np.full(inside.shape, np.mean(noise) * scale)
    )
    relative = np.ones((1, len(problem.basis)))
    if not kt.fully_sampled:
        relative[0, : len(noise)] = noise / np.mean(noise)
    coefficient_sd = sd[..., None] * relative * (1.0 if errors is None else errors)
    if progress is not None:
        progress(1.0, "subspace reconstruction")
    provenance["rank"] = len(problem.basis)
    return SpectralImage(
        coefficients=image * scale,
        basis=like(problem.basis.astype(np.complex64), image, image.dtype),
        protocol=kt.protocol,
        mask=inside,
        b0_hz=problem.b0_hz.astype(np.float32),
        noise_sd=sd.astype(np.float32),
        coefficient_sd=coefficient_sd.astype(np.float32),
        frame=kt.frame,
        provenance=provenance,
        outside_model=None if refined is None else _in_grid(refined.outside, inside),
        model_score=None if refined is None else _in_grid(refined.score, inside),
    )


def _in_grid(values: np.ndarray | None, mask: np.ndarray) -> np.ndarray | None:
    """Return values of the mask's box on the whole grid, zero outside; those of the whole grid as they are."""
    if values is None or values.shape == mask.shape:
        return values
    full = np.zeros(mask.shape, dtype=values.dtype)
    full[bounding_box(mask)] = values
    return full


def _regularise(
    problem: Problem,
    prior: str,
    refinement: Refinement | None,
    image: Array,
    noise: np.ndarray,
    water: np.ndarray | None,
    provenance: dict[str, Any],
) -> tuple[Problem, Array, np.ndarray, Refined | None]:
    """Return the problem in rotated coefficients, the regularised image, its errors relative to the noise, and more."""
    components = components_of(image, noise, problem.mask)
    z = components.of(image)
    inside = components.inside(z)
    fitted = fit_prior(prior, components, inside, water, problem.rng)
    provenance |= fitted.provenance
    errors = np.ones((*problem.mask.shape, len(noise)), dtype=np.float32)
    errors[components.box] = fitted.errors
    if problem.direct:
        # u = z R^H times the noise, so the rows of the basis turn the other way; equal noise keeps them orthonormal
        rows = (components.rotation.conj().T @ problem.basis).astype(np.complex64)
        smoothed = fitted.step(inside)
        z = components.replaced(z, smoothed)
        if problem.own_noise:
            z = _against_own_noise(problem, components, z, fitted, provenance)
        if refinement is None:
            return replace(problem, basis=rows, between=None), z * float(noise[0]), errors, None
        best = components.inside(z) if problem.own_noise else smoothed
        fids = problem.fids
        if fids is None:
            back = like(components.rotation.conj().T * components.noise, z, z.dtype)
            fids = _as_measured(problem, z @ back, float(noise[0]))
        found = LeastSquares(components, fitted, inside, smoothed, best, fids, problem.basis)
        refined = refinement.complete(found, problem.rng, provenance)
        errors[components.box] = refined.errors
        image = components.replaced(z, refined.value)
        if len(refined.rows):
            image, more_errors = components.with_more(image, refined.more)
            errors = np.concatenate([errors, more_errors], axis=-1)
        turned = replace(problem, basis=np.concatenate([rows, refined.rows]).astype(np.complex64), between=None)
        return turned, image * float(noise[0]), errors, refined
    assert fitted.edges is not None
    assert fitted.choice is not None
    full = in_full(fitted.edges, components)
    return _regularise_in_general(problem, components, full, fitted.choice, errors, image, refinement, provenance)


def _against_own_noise(
    problem: Problem, components: Components, z: Array, fitted: FittedPrior, provenance: dict[str, Any]
) -> Array:
    """Return smoothed components as the samples themselves and the prior want them."""
    assert problem.between is not None
    assert fitted.edges is not None
    assert fitted.choice is not None
    back = like(components.rotation.conj().T * components.noise, z, z.dtype)
    operator = encoding_operator(problem.kt, problem.coil_maps, problem.b0_hz, problem.rows)
    left = problem.kt.samples - operator(z @ back)
    z, solution = against_own_noise(
        problem.kt, problem.coil_maps, problem.b0_hz, problem.between, z, left=left, components=components,
        edges=fitted.edges, choice=fitted.choice, noise_sd=problem.noise_sd,
    )  # fmt: skip
    provenance["against_own_noise"] = {
        "iterations": len(solution.residuals) - 1, "settled": solution.status is Status.CONVERGED,
    }  # fmt: skip
    return z


def _as_measured(problem: Problem, image: Array, unit: float) -> Array:
    """Return FIDs (voxel, t) of coefficients plus what they leave of the samples, gridded, in units of their noise.

    Their noise is that of a gridded image, as much of it in each coefficient as elsewhere; what gridding approximates,
    and what missing samples turn into aliases, is wrong for the small rest alone. FIDs of gridded samples themselves
    look strange to a gate (a third of a brain on rings), and those of least squares have more noise on the model's rows
    than besides. Of incomplete data the rest counts by the share of the samples that came, so that a signal that no row
    holds has its whole height.

    Parameters
    ----------
    problem
        The data.
    image
        (x, y, z, coefficient).
    unit
        As `_unit_of` returns it.
    """
    operator = encoding_operator(problem.kt, problem.coil_maps, problem.b0_hz, problem.rows)
    left = problem.kt.with_samples(problem.kt.samples - operator(image))
    rho = demodulate(
        matched_image(on_grid(left), problem.coil_maps), problem.b0_hz, spectral_times(problem.kt), overwrite=True
    )
    whole = float(np.sqrt(problem.mask.size)) / acquired_share(problem.kt)
    known = voxels_in(image, problem.mask) @ like(problem.basis / unit, image, image.dtype)
    return known + voxels_in(rho, problem.mask) * like(np.float32(whole / unit), image, image.dtype)


def _unit_of(problem: Problem) -> float:
    """Return the SD of the real part of a coefficient of FIDs as `_as_measured` makes them."""
    sd = np.median(image_noise_sd(on_grid(problem.kt), problem.coil_maps, problem.noise_sd))
    return float(sd * np.sqrt(problem.mask.size) / acquired_share(problem.kt))


def acquired_share(kt: KtData) -> float:
    """Return the share of the samples that came."""
    return float(np.mean(kt.counts > 0))


def _regularise_in_general(
    problem: Problem,
    components: Components,
    edges: EdgePrior,
    choice: WeightChoice,
    errors: np.ndarray,
    unregularised: Array,
    refinement: Refinement | None,
    provenance: dict[str, Any],
) -> tuple[Problem, Array, np.ndarray, Refined | None]:
    """Solve with the general operator: the prior is diagonal only in the whitened, rotated coefficients.

    Its errors are those of the smoothers in the whitened coefficients, carried back.
    """
    # with D = sd_data / sd_coefficient and z = u D rotation the penalty ||L z||^2 has the gradient
    # L^2 u (D rotation) diag(lambda) (D rotation)^H
    rotation, noise = components.rotation, components.noise
    incomplete = not problem.kt.fully_sampled
    if incomplete:
        choice = choice.weaker(INCOMPLETE_STEPS)
    mixing = (problem.noise_sd / noise)[:, None] * rotation
    penalty = (mixing * choice.weights) @ mixing.conj().T
    # where neither samples nor the prior say anything, going on would only raise noise
    rough = replace(problem, rtol=max(problem.rtol, _INCOMPLETE_RTOL)) if incomplete else problem
    outside = held_outside(problem, unregularised, noise) if incomplete else None

    def pulled(pull: np.ndarray | None = None, towards: Array | None = None, start: Array | None = None) -> Solution:
        return solve(
            rough, edges, choice, penalty=penalty, rotation=rotation, outside=outside, pull=pull, towards=towards,
            start=start, max_iterations=_INCOMPLETE_ITERATIONS if incomplete else 600,
        )  # fmt: skip

    solution = pulled()
    if not incomplete:
        solution.checked()
    provenance |= {"iterations": len(solution.residuals) - 1, "relative_residual": solution.residuals[-1]}
    image = solution.value
    carried = np.sqrt(errors**2 @ np.abs(rotation.T) ** 2)
    if refinement is None:
        return problem, image, carried, None
    unit = _unit_of(problem)
    found = Incomplete(
        components, image, carried, problem.basis, lambda towards, pull, start: pulled(pull, towards, start).value,
        lambda u: _as_measured(problem, u, unit), unit,
    )  # fmt: skip
    refined = refinement.incomplete(found, provenance)
    image, carried = refined.value, refined.errors
    if len(refined.rows):
        image = namespace(image).concat([image, refined.more * unit], axis=-1)
        more = (to_numpy(refined.more) != 0) * (unit / float(np.mean(noise)))
        carried = np.concatenate([carried, more], axis=-1)
        problem = replace(
            problem, basis=np.concatenate([problem.basis, refined.rows]).astype(np.complex64), between=None
        )  # fmt: skip
    return problem, image, carried, refined
