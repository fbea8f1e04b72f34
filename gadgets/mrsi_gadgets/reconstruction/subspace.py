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

from mrsi_gadgets.arrays import Array, is_numpy, like, namespace, norm, over_pieces, to_numpy, together
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.between_samples import rows_between_samples
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples, continued, offset_nodes
from mrsi_gadgets.operators.encoding import EvolvedBasis, encoding_operator, offset_range, spectral_times
from mrsi_gadgets.reconstruction.basis_adaptation import (
    captured_energy,
    shared_shift,
    time_gram,
    unexplained_rows,
    wiener_gain,
)
from mrsi_gadgets.reconstruction.edge_prior import EdgePrior
from mrsi_gadgets.reconstruction.fourier import (
    Progress,
    check_calibration,
    demodulate,
    how_sampled,
    image_noise_sd,
    matched_image,
)
from mrsi_gadgets.reconstruction.gridding import alias_free, on_grid, with_density
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
from mrsi_gadgets.reconstruction.regularisation import WeightChoice, smooth
from mrsi_gadgets.reconstruction.solvers import Solution, Status, conjugate_gradient
from mrsi_gadgets.reconstruction.uneven_noise import against_own_noise

_FLOOR = 0.01
_INCOMPLETE_STEPS = 3
"""The risk estimate takes noise for white. That of incomplete data is not, nor are their aliases, so that it smooths
too much: by three steps on brains with one in two and one in three points (benchmarks/undersampling.py)."""
_LEAST_OUTSIDE = 0.1
"""Signal power over noise power that a coefficient outside of the mask may have at least."""
_CORRECTION_RTOL, _CORRECTION_NOISE, _CORRECTIONS = 1e-3, 0.1, 8
"""The gridded start is corrected until it changes by less than this part of itself or of its noise, or so often."""
_UNEVEN_NOISE = 0.3
"""The same where the samples themselves follow: correcting on would only gather noise."""
_UNEVEN = 0.05
"""Relative scatter of the points' shares of k-space from which on it counts as unevenly sampled."""
_LARGEST_CORRECTION = 0.5
"""Part of the image; a larger first correction means that model and data do not belong together."""
_INCOMPLETE_RTOL, _INCOMPLETE_ITERATIONS = 1e-3, 60
"""Incomplete data are solved to this relative residual, or for so many iterations."""


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """The least-squares image of complete data and the prior for it, as a refinement takes them."""

    components: Components
    fitted: FittedPrior
    z: Array
    """(x, y, z, component) in the box, zero outside of the mask."""
    fids: Array
    """(voxel, t) of the mask, in units of the noise of their real parts."""
    basis: np.ndarray
    """(coefficient, t) orthonormal rows."""


@dataclass(frozen=True, eq=False)
class Refined:
    """What a refinement makes of complete data."""

    value: Array
    """(x, y, z, component) in the box of the components."""
    errors: np.ndarray
    """The same shape: SD of the errors in units of the noise."""
    rows: np.ndarray
    """(more, t) orthonormal rows for signal that no component holds."""
    more: Array
    """(x, y, z, more) in the box: its coefficients, in units of the noise."""
    outside: np.ndarray | None = None
    """(x, y, z) bool in the box: voxels that the refinement did not touch."""
    score: np.ndarray | None = None
    """(x, y, z) in the box: -log10 of the probability of FIDs as strange as this one."""


class Refinement(Protocol):
    """What a method does with the image of the spatial prior before it becomes the result."""

    @property
    def method(self) -> str:
        """Its name in the provenance."""
        ...

    def complete(self, image: LeastSquares, rng: np.random.Generator, provenance: dict[str, Any]) -> Refined:
        """Return the refined components of complete data."""
        ...

    def incomplete(
        self, components: Components, solve: Callable[[Array, np.ndarray], Array], image: Array, errors: np.ndarray,
        provenance: dict[str, Any],
    ) -> tuple[Array, np.ndarray]:  # fmt: skip
        """Return coefficients and the SD of their errors.

        `solve` returns the image of data and prior that is pulled to another one with a strength for each coefficient;
        `image` is the one without a pull, `errors` (x, y, z, coefficient) its own in units of the noise.
        """
        ...


class TemporalBasis(Protocol):
    """What is needed of a signal model: `models.subspace.Subspace` has it."""

    @property
    def basis(self) -> np.ndarray:
        """(rank, t) orthonormal rows."""
        ...


@dataclass(frozen=True, eq=False)
class _Problem:
    """One reconstruction: what is given, in the unit of the unitary operators (sqrt(N) rho)."""

    kt: KtData
    """As measured."""
    gridded: KtData
    """On a grid at common times: `kt` itself where it is so."""
    coil_maps: Array
    b0_hz: np.ndarray
    mask: np.ndarray
    noise_sd: float
    basis: np.ndarray
    """(rank, t) complex64."""
    between: RowsBetweenSamples | None
    """The same rows between the spectral times, None where no sample lies there."""
    evolved: EvolvedBasis | None
    """The same rows evolving in the field, where that was made before the data came."""
    direct: bool
    """Whether the gridded image stands for the data (complete ones); else the general operator."""
    rng: np.random.Generator
    rtol: float
    own_noise: bool = False
    """Whether the samples themselves stand against the prior in the end (unevenly sampled k-space)."""
    fids: Array | None = None
    """(voxel, t) FIDs of the least-squares image in units of their noise, where a refinement wants them."""

    @property
    def weights(self) -> np.ndarray:
        """(point,) or (point, t) roots of the averages: rows of equal noise."""
        return np.sqrt(self.kt.count.astype(float))

    @property
    def rows(self) -> np.ndarray | RowsBetweenSamples | EvolvedBasis:
        """The temporal basis as the operator takes it."""
        if self.between is None:
            return self.basis
        return self.between if self.evolved is None else self.evolved

    @property
    def off_grid(self) -> bool:
        """Whether the gridded data are an approximation."""
        return self.gridded is not self.kt

    def with_rows(self, rows: np.ndarray, times: np.ndarray) -> _Problem:
        """Return the problem with more rows in its basis, continued between the spectral times."""
        between = self.between
        if between is not None:
            between = between.with_more(continued(rows, times, between.nodes_s))
        basis = np.concatenate([self.basis, rows]).astype(np.complex64)
        return replace(self, basis=basis, between=between, evolved=None)


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
    given, between = between, None if kt.grid is not None and kt.common_times else _between(kt, model, between)
    problem = _Problem(
        kt, on_grid(kt) if kt.fully_sampled else kt, coil_maps, np.asarray(b0_hz, dtype=float), inside, noise_sd,
        np.asarray(model.basis), between, evolved if between is not None and between is given else None, direct,
        np.random.default_rng(seed), rtol, direct and prior == "edges" and refinement is None and _uneven(kt),
    )  # fmt: skip
    provenance: dict[str, Any] = {
        "method": "subspace" if refinement is None else refinement.method,
        "solver": "per voxel" if direct else "conjugate gradients",
        "prior": prior,
    } | how_sampled(kt)
    problem, image, noise = _least_squares(
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
    relative = np.ones((1, len(problem.basis))) if kt.fully_sampled else (noise / np.mean(noise))[None]
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


def _uneven(kt: KtData) -> bool:
    """Tell whether complete data sample some of k-space more densely than the rest."""
    if kt.grid is not None or kt.density is None:
        return False
    return bool(np.std(kt.density) > _UNEVEN * np.mean(kt.density))


def _in_grid(values: np.ndarray | None, mask: np.ndarray) -> np.ndarray | None:
    """Return values of the mask's box on the whole grid, zero outside."""
    if values is None:
        return None
    full = np.zeros(mask.shape, dtype=values.dtype)
    full[bounding_box(mask)] = values
    return full


def _least_squares(
    problem: _Problem,
    times: np.ndarray,
    model: TemporalBasis,
    adapt: bool,
    keep_fids: bool,
    provenance: dict[str, Any],
    progress: Progress | None,
) -> tuple[_Problem, Array, np.ndarray]:
    """Return the problem (with shift and rows added), coefficients without a prior, and their noise SD (component,)."""
    if not problem.kt.fully_sampled:
        image, noise = _solve_without_prior(problem)
        return problem, image, noise
    matched = matched_image(problem.gridded, problem.coil_maps, progress=_first_half(progress))
    rho = demodulate(matched, problem.b0_hz, times, overwrite=True)
    sample_sd = float(np.median(image_noise_sd(problem.gridded, problem.coil_maps, problem.noise_sd)))
    # rho is in the image's unit; the operators are unitary
    scale = float(np.sqrt(problem.mask.size))
    fids: Array | None = None
    if not adapt:
        image = _projected(rho, problem.basis, scale) if problem.direct else None
        fids = voxels_in(rho, problem.mask) / sample_sd if keep_fids else None
    else:
        inside = voxels_in(rho, problem.mask)
        gram = time_gram(inside)
        gain = wiener_gain(model, captured_energy(gram, problem.basis) / int(inside.shape[0]), sample_sd)
        shift = shared_shift(inside, times, problem.basis, sample_sd, gain, gram)
        turn = np.exp(-2j * np.pi * shift * times)
        turned = gram * np.outer(turn, turn.conj()).astype(gram.dtype)
        # what the model has not seen is looked for on one core while the other projects; off the grid it waits, since
        # what gridding has only approximated would look like it
        waits = problem.direct and problem.off_grid
        rows, image = together(
            rho,
            lambda: problem.basis[:0] if waits else unexplained_rows(inside, turn, problem.basis, sample_sd, turned),
            lambda: _projected(rho, problem.basis * turn.conj(), scale) if problem.direct else None,
        )
        if image is not None and len(rows):
            image = namespace(image).concat([image, _projected(rho, rows * turn.conj(), scale)], axis=-1)
        evolved = None if problem.evolved is None else problem.evolved.shifted(shift)
        problem = replace(problem, b0_hz=problem.b0_hz + shift, evolved=evolved)
        problem = problem.with_rows(rows, times) if len(rows) else problem
        provenance |= {"shared_shift_hz": shift, "rows_added": len(rows)}
        fids = inside * like((turn / sample_sd).astype(np.complex64), inside, inside.dtype) if keep_fids else None
    if image is None:
        image = _solve(problem, None, None).checked()
    elif problem.off_grid:
        image, left = _corrected(problem, image, times, sample_sd * scale, provenance)
        rows = problem.basis[:0]
        if adapt:
            rows = unexplained_rows(voxels_in(left, problem.mask), np.ones(len(times)), problem.basis, sample_sd)
            provenance["rows_added"] = len(rows)
        if len(rows):
            problem = problem.with_rows(rows, times)
            image = namespace(image).concat([image, _projected(left, rows, scale)], axis=-1)
            image, _ = _corrected(problem, image, times, sample_sd * scale, provenance)
    return replace(problem, fids=fids), image, np.full(len(problem.basis), sample_sd * scale)


def _between(kt: KtData, model: TemporalBasis, known: RowsBetweenSamples | None) -> RowsBetweenSamples:
    """Return the model's rows at the offsets of the data: from its ensemble, or else continued by their spectrum."""
    low, high = offset_range(kt)
    if known is not None and known.covers(low, high):
        return known
    nodes = offset_nodes(low, high, kt.protocol.dwell_s)
    if isinstance(model, Subspace):
        return rows_between_samples(model, nodes)
    return continued(np.asarray(model.basis), spectral_times(kt), nodes)


def _corrected(
    problem: _Problem, image: Array, times: np.ndarray, noise_sd: float, provenance: dict[str, Any]
) -> tuple[Array, Array]:
    """Return the image with what gridding had approximated taken out, and FIDs of what is left of the samples.

    x <- x + P(gridded(d - A x)), P the projection; the FIDs (x, y, z, t) are gridded(d - A x), B0 taken out, as the
    last correction found it.

    The gridded, projected image is an approximate inverse of A, so that the iteration contracts quickly; where the
    points say nothing about an image (corners of k-space) nothing changes. Nothing lies where aliases would: outside of
    the disc that rings and spirals resolve. `noise_sd` is that of the real part of one coefficient.
    """
    operator = encoding_operator(problem.kt, problem.coil_maps, problem.b0_hz, problem.rows)
    scale = float(np.sqrt(problem.mask.size))
    inside = like(problem.mask[..., None].astype(np.float32), image)
    support = like(alias_free(problem.kt)[..., None].astype(np.float32), image)
    image = image * support
    noise = noise_sd * float(np.sqrt(2 * problem.mask.sum() * len(problem.basis)))
    settled = _UNEVEN_NOISE if problem.own_noise else _CORRECTION_NOISE
    changes: list[float] = []
    enough = _CORRECTION_RTOL
    while len(changes) < _CORRECTIONS and (not changes or changes[-1] > enough):
        residual = problem.kt.with_samples(problem.kt.samples - operator(image))
        rho = demodulate(matched_image(on_grid(residual), problem.coil_maps), problem.b0_hz, times, overwrite=True)
        change = _projected(rho, problem.basis, scale) * support
        size, whole = norm(change * inside), norm(image * inside)
        enough = max(_CORRECTION_RTOL, settled * noise / whole if whole else 0.0)
        if size > (changes[-1] if changes else _LARGEST_CORRECTION) * whole:
            # it does not contract (any more): what is left is noise that no image explains
            break
        image = image + change
        changes.append(size / whole if whole else 0.0)
    provenance["corrections"] = [round(change, 6) for change in changes]
    provenance["corrections_settled"] = bool(changes and changes[-1] <= enough)
    return image, rho


def _projected(rho: Array, rows: np.ndarray, scale: float) -> Array:
    """Return the coefficients of rho on orthonormal rows times `scale`, (x, y, z, component)."""
    analysis = like((scale * rows.conj().T).astype(np.complex64), rho, rho.dtype)
    if not is_numpy(rho):
        return rho @ analysis
    return np.concatenate(over_pieces(lambda x: rho[x] @ analysis, rho.shape[0], rho[0].nbytes), axis=0)


def _regularise(
    problem: _Problem,
    prior: str,
    refinement: Refinement | None,
    image: Array,
    noise: np.ndarray,
    water: np.ndarray | None,
    provenance: dict[str, Any],
) -> tuple[_Problem, Array, np.ndarray, Refined | None]:
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
        if refinement is None:
            turned = replace(problem, basis=rows, between=None)
            z = components.replaced(z, fitted.step(inside))
            if problem.own_noise:
                z = _against_own_noise(problem, components, z, fitted, provenance)
            return turned, z * float(noise[0]), errors, None
        assert problem.fids is not None
        found = LeastSquares(components, fitted, inside, problem.fids, problem.basis)
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
    general = _regularise_in_general(problem, components, full, fitted.choice, errors, image, refinement, provenance)
    return *general, None


def _against_own_noise(
    problem: _Problem, components: Components, z: Array, fitted: FittedPrior, provenance: dict[str, Any]
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


def _regularise_in_general(
    problem: _Problem,
    components: Components,
    edges: EdgePrior,
    choice: WeightChoice,
    errors: np.ndarray,
    unregularised: Array,
    refinement: Refinement | None,
    provenance: dict[str, Any],
) -> tuple[_Problem, Array, np.ndarray]:
    """Solve with the general operator: the prior is diagonal only in the whitened, rotated coefficients.

    Its errors are those of the smoothers in the whitened coefficients, carried back.
    """
    # with D = sd_data / sd_coefficient and z = u D rotation the penalty ||L z||^2 has the gradient
    # L^2 u (D rotation) diag(lambda) (D rotation)^H
    rotation, noise = components.rotation, components.noise
    incomplete = not problem.kt.fully_sampled
    if incomplete:
        choice = choice.weaker(_INCOMPLETE_STEPS)
    mixing = (problem.noise_sd / noise)[:, None] * rotation
    penalty = (mixing * choice.weights) @ mixing.conj().T
    # where neither samples nor the prior say anything, going on would only raise noise
    rough = replace(problem, rtol=max(problem.rtol, _INCOMPLETE_RTOL)) if incomplete else problem
    outside = _outside(problem, unregularised, noise) if incomplete else None

    def solve(pull: np.ndarray | None = None, towards: Array | None = None) -> Solution:
        return _solve(
            rough, edges, choice, penalty=penalty, rotation=rotation, outside=outside, pull=pull, towards=towards,
            max_iterations=_INCOMPLETE_ITERATIONS if incomplete else 600,
        )  # fmt: skip

    solution = solve()
    if not incomplete:
        solution.checked()
    provenance |= {"iterations": len(solution.residuals) - 1, "relative_residual": solution.residuals[-1]}
    image = solution.value
    carried = np.sqrt(errors**2 @ np.abs(rotation.T) ** 2)
    if refinement is not None:
        image, carried = refinement.incomplete(
            components, lambda towards, pull: solve(pull, towards).value, image, carried, provenance
        )
    return problem, image, carried


def _outside(problem: _Problem, image: Array, noise: np.ndarray) -> np.ndarray:
    """Return by how much coefficients are held down outside of the mask, (x, y, z): noise over signal power.

    What the least-squares image shows above its noise (scalp lipids) may stay; where it shows nothing there is nothing,
    and missing samples must not be explained by it.
    """
    xp = namespace(image)
    flat = image * like((1 / noise).astype(np.float32), image, image.dtype)
    power = to_numpy(xp.mean(xp.real(flat) ** 2 + xp.imag(flat) ** 2, axis=-1)) / 2
    held = 1 / np.maximum(power - 1, _LEAST_OUTSIDE)
    return np.where(problem.mask, 0.0, held)


def _solve(
    problem: _Problem, edges: EdgePrior | None, choice: WeightChoice | None, *, penalty: np.ndarray | None = None,
    rotation: np.ndarray | None = None, samples: Array | None = None, max_iterations: int = 600,
    outside: np.ndarray | None = None, pull: np.ndarray | None = None, towards: Array | None = None,
) -> Solution:  # fmt: skip
    """Return (A^H A + R + pull)^-1 (A^H d + pull towards) by conjugate gradients in the general operator.

    (1 + R)^-1 preconditions: it is the inverse itself where k-space is complete, and costs no transform.
    """
    kt = problem.kt if samples is None else problem.kt.with_samples(samples)
    operator = encoding_operator(kt, problem.coil_maps, problem.b0_hz, problem.rows, weights=problem.weights)
    spread = problem.weights[None, :, None] if problem.weights.ndim == 1 else problem.weights[None]
    weights = like(spread.astype(np.float32), kt.samples)
    rhs = operator.H(kt.samples * weights)
    pulled = None if pull is None else like(pull.astype(np.float32), rhs, rhs.dtype)
    if pulled is not None and towards is not None:
        rhs = rhs + pulled * towards
    gram = operator.gram
    lambdas = None if choice is None else like(choice.weights.astype(np.float32), rhs, rhs.dtype)
    matrix = None if penalty is None else like(penalty.astype(np.complex64), rhs, rhs.dtype)

    held = None if outside is None else like(outside[..., None].astype(np.float32), rhs)

    def normal(u: Array) -> Array:
        image = gram(u)
        if held is not None:
            image = image + held * u
        if pulled is not None:
            image = image + pulled * u
        if edges is None or lambdas is None:
            return image
        curved = edges.laplacian(edges.laplacian(u))
        return image + (curved * lambdas if matrix is None else curved @ matrix)

    def smoothed(u: Array) -> Array:
        assert edges is not None
        assert choice is not None
        z = u if rotation is None else u @ like(rotation, u, u.dtype)
        # the smoother's polynomial errs by less than what is added, so that the map stays positive
        z = (1 - _FLOOR) * smooth(z, edges, choice) + _FLOOR * z
        if held is not None:
            z = z / (1 + held)
        return z if rotation is None else z @ like(rotation.conj().T, u, u.dtype)

    precondition = None if edges is None or choice is None else smoothed
    return conjugate_gradient(normal, rhs, rtol=problem.rtol, max_iterations=max_iterations, precondition=precondition)


def _solve_without_prior(problem: _Problem) -> tuple[Array, np.ndarray]:
    """Return a short least-squares solve of undersampled data and the noise SD of its coefficients.

    The iterations are few on purpose: without a prior, going on only amplifies noise. The same solve of pure noise says
    how much noise is in each coefficient.
    """
    count = 12
    image = _solve(problem, None, None, max_iterations=count).value
    samples = problem.kt.samples
    noise = problem.rng.standard_normal((*samples.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    counts = problem.kt.counts
    acquired = np.where(counts > 0, np.sqrt(1 / np.maximum(counts, 1e-12)), 0.0)
    noise = noise * (problem.noise_sd * acquired[None]).astype(np.float32)
    empty = _solve(problem, None, None, samples=like(noise, samples, samples.dtype), max_iterations=count).value
    inside = problem.mask if problem.mask.any() else np.ones_like(problem.mask)
    return image, np.sqrt(np.mean(np.abs(to_numpy(empty)[inside]) ** 2, axis=0) / 2)


def _first_half(progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda share, words: progress(0.5 * share, words)
