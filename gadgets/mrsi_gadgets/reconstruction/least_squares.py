"""The least-squares image on a learned basis, and solves with the general operator: what reconstructions share.

Complete data start from their gridded version; what that approximates is taken out by the exact operator, in which each
sample has its own t. The scan may shift the frequency and add rows to the basis. Incomplete data go through conjugate
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mrsi_gadgets.arrays import Array, is_numpy, like, namespace, norm, over_pieces, to_numpy, together
from mrsi_gadgets.data import KtData
from mrsi_gadgets.models.between_samples import rows_between_samples
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.algebra import LinearOperator
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
from mrsi_gadgets.reconstruction.fourier import Progress, demodulate, image_noise_sd, matched_image
from mrsi_gadgets.reconstruction.gridding import alias_free, on_grid
from mrsi_gadgets.reconstruction.prior_step import voxels_in
from mrsi_gadgets.reconstruction.regularisation import WeightChoice, smooth
from mrsi_gadgets.reconstruction.solvers import Solution, conjugate_gradient

_FLOOR = 0.01
INCOMPLETE_STEPS = 3
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


class TemporalBasis(Protocol):
    """What is needed of a signal model: `models.subspace.Subspace` has it."""

    @property
    def basis(self) -> np.ndarray:
        """(rank, t) orthonormal rows."""
        ...


@dataclass(frozen=True, eq=False)
class Problem:
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
    """(voxel, t) FIDs of the least-squares image in units of their noise, where a refinement wants them and gridding
    has approximated nothing."""

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

    @cached_property
    def operator(self) -> LinearOperator:
        """The encoding with rows of equal noise; its gram is made once."""
        return encoding_operator(self.kt, self.coil_maps, self.b0_hz, self.rows, weights=self.weights)

    @property
    def off_grid(self) -> bool:
        """Whether the gridded data are an approximation."""
        return self.gridded is not self.kt

    def with_rows(self, rows: np.ndarray, times: np.ndarray) -> Problem:
        """Return the problem with more rows in its basis, continued between the spectral times."""
        between = self.between
        if between is not None:
            between = between.with_more(continued(rows, times, between.nodes_s))
        basis = np.concatenate([self.basis, rows]).astype(np.complex64)
        return replace(self, basis=basis, between=between, evolved=None)


def least_squares(
    problem: Problem,
    times: np.ndarray,
    model: TemporalBasis,
    adapt: bool,
    keep_fids: bool,
    provenance: dict[str, Any],
    progress: Progress | None,
) -> tuple[Problem, Array, np.ndarray]:
    """Return the problem (with shift and rows added), coefficients without a prior, and their noise SD (component,)."""
    if not problem.kt.fully_sampled:
        image, noise = solve_without_prior(problem)
        return problem, image, noise
    matched = matched_image(problem.gridded, problem.coil_maps, progress=_first_half(progress))
    rho = demodulate(matched, problem.b0_hz, times, overwrite=True)
    sample_sd = float(np.median(image_noise_sd(problem.gridded, problem.coil_maps, problem.noise_sd)))
    # rho is in the image's unit; the operators are unitary
    scale = float(np.sqrt(problem.mask.size))
    fids: Array | None = None
    keep_fids = keep_fids and not problem.off_grid
    if not adapt:
        image = projected(rho, problem.basis, scale) if problem.direct else None
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
            lambda: projected(rho, problem.basis * turn.conj(), scale) if problem.direct else None,
        )
        if image is not None and len(rows):
            image = namespace(image).concat([image, projected(rho, rows * turn.conj(), scale)], axis=-1)
        evolved = None if problem.evolved is None else problem.evolved.shifted(shift)
        problem = replace(problem, b0_hz=problem.b0_hz + shift, evolved=evolved)
        problem = problem.with_rows(rows, times) if len(rows) else problem
        provenance |= {"shared_shift_hz": shift, "rows_added": len(rows)}
        fids = inside * like((turn / sample_sd).astype(np.complex64), inside, inside.dtype) if keep_fids else None
    if image is None:
        image = solve(problem, None, None).checked()
    elif problem.off_grid:
        image, left = corrected(problem, image, times, sample_sd * scale, provenance)
        rows = problem.basis[:0]
        if adapt:
            rows = unexplained_rows(voxels_in(left, problem.mask), np.ones(len(times)), problem.basis, sample_sd)
            provenance["rows_added"] = len(rows)
        if len(rows):
            problem = problem.with_rows(rows, times)
            image = namespace(image).concat([image, projected(left, rows, scale)], axis=-1)
            image, _ = corrected(problem, image, times, sample_sd * scale, provenance)
    return replace(problem, fids=fids), image, np.full(len(problem.basis), sample_sd * scale)


def unevenly_sampled(kt: KtData) -> bool:
    """Tell whether complete data sample some of k-space more densely than the rest."""
    if kt.grid is not None or kt.density is None:
        return False
    return bool(np.std(kt.density) > _UNEVEN * np.mean(kt.density))


def rows_at_offsets(kt: KtData, model: TemporalBasis, known: RowsBetweenSamples | None) -> RowsBetweenSamples:
    """Return the model's rows at the offsets of the data: from its ensemble, or else continued by their spectrum."""
    low, high = offset_range(kt)
    if known is not None and known.covers(low, high):
        return known
    nodes = offset_nodes(low, high, kt.protocol.dwell_s)
    if isinstance(model, Subspace):
        return rows_between_samples(model, nodes)
    return continued(np.asarray(model.basis), spectral_times(kt), nodes)


def corrected(
    problem: Problem, image: Array, times: np.ndarray, noise_sd: float, provenance: dict[str, Any]
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
        change = projected(rho, problem.basis, scale) * support
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


def projected(rho: Array, rows: np.ndarray, scale: float) -> Array:
    """Return the coefficients of rho on orthonormal rows times `scale`, (x, y, z, component)."""
    analysis = like((scale * rows.conj().T).astype(np.complex64), rho, rho.dtype)
    if not is_numpy(rho):
        return rho @ analysis
    return np.concatenate(over_pieces(lambda x: rho[x] @ analysis, rho.shape[0], rho[0].nbytes), axis=0)


def held_outside(problem: Problem, image: Array, noise: np.ndarray) -> np.ndarray:
    """Return by how much coefficients are held down outside of the mask, (x, y, z): noise over signal power.

    What the least-squares image shows above its noise (scalp lipids) may stay; where it shows nothing there is nothing,
    and missing samples must not be explained by it.
    """
    xp = namespace(image)
    flat = image * like((1 / noise).astype(np.float32), image, image.dtype)
    power = to_numpy(xp.mean(xp.real(flat) ** 2 + xp.imag(flat) ** 2, axis=-1)) / 2
    held = 1 / np.maximum(power - 1, _LEAST_OUTSIDE)
    return np.where(problem.mask, 0.0, held)


def solve(
    problem: Problem, edges: EdgePrior | None, choice: WeightChoice | None, *, penalty: np.ndarray | None = None,
    rotation: np.ndarray | None = None, samples: Array | None = None, max_iterations: int = 600,
    outside: np.ndarray | None = None, pull: np.ndarray | None = None, towards: Array | None = None,
    start: Array | None = None,
) -> Solution:  # fmt: skip
    """Return (A^H A + R + pull)^-1 (A^H d + pull towards) by conjugate gradients in the general operator.

    (1 + R)^-1 preconditions: it is the inverse itself where k-space is complete, and costs no transform.
    """
    kt = problem.kt if samples is None else problem.kt.with_samples(samples)
    operator = problem.operator
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
    return conjugate_gradient(
        normal, rhs, x0=start, rtol=problem.rtol, max_iterations=max_iterations, precondition=precondition
    )


def solve_without_prior(problem: Problem) -> tuple[Array, np.ndarray]:
    """Return a short least-squares solve of undersampled data and the noise SD of its coefficients.

    The iterations are few on purpose: without a prior, going on only amplifies noise. The same solve of pure noise says
    how much noise is in each coefficient.
    """
    count = 12
    image = solve(problem, None, None, max_iterations=count).value
    samples = problem.kt.samples
    noise = problem.rng.standard_normal((*samples.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    counts = problem.kt.counts
    acquired = np.where(counts > 0, np.sqrt(1 / np.maximum(counts, 1e-12)), 0.0)
    noise = noise * (problem.noise_sd * acquired[None]).astype(np.float32)
    empty = solve(problem, None, None, samples=like(noise, samples, samples.dtype), max_iterations=count).value
    inside = problem.mask if problem.mask.any() else np.ones_like(problem.mask)
    return image, np.sqrt(np.mean(np.abs(to_numpy(empty)[inside]) ** 2, axis=0) / 2)


def _first_half(progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda share, words: progress(0.5 * share, words)
