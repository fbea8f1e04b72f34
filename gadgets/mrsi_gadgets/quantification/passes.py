"""The two passes of the fit over a batch of voxels, and what the first teaches the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, batch_size, device, is_numpy, like, namespace, to_numpy
from mrsi_gadgets.quantification.assembly import FitResult
from mrsi_gadgets.quantification.coordinates import band_energy, whitener
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.moving_line import at_place
from mrsi_gadgets.quantification.preparation import WEAK_PRIOR as WEAK_PRIOR
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.refinement import Fit, Problem, covariance, model_at, propagated, refine, response_to
from mrsi_gadgets.quantification.uncertainty import doubt_of
from mrsi_gadgets.quantification.unmodelled import FORBIDDEN

_CHANCE = 1.15
"""Misfit that noise alone may leave."""
_FIRST_STEPS, _FINAL_STEPS = 2, 20
_FIRST_SETTLED = 0.5
_FURTHER_ROUNDS = 3
"""How often the nuisance is estimated again in the first pass where the lineshape has further parameters, else once."""
_ROUNDS = 4
"""How often a molecule with a shift of its own may move on; two are enough where it stands out of the noise."""
_ENOUGH_VOXELS = 30
_NO_INFORMATION = 1e-12
_ROWS_FOR_VARIANCE = 256
_ON_HOST, _ON_DEVICE = 400, 4096
"""At most about this many voxels are fitted at once: what stays in a processor's cache and keeps the interpreter out of
the threads' way; what keeps a device busy, at some 0.5 MiB a voxel."""


class Voxels(NamedTuple):
    """A batch of voxels to fit."""

    data: Array
    """(voxel, coordinate) complex64 in the unit of the signal."""
    noise_sd: np.ndarray
    """(voxel,) SD of the real part of the noise in a coordinate."""
    given: Array
    """(voxel, node) complex64: lineshape that the field map gives."""
    spread: np.ndarray | None
    """(voxel, k) SD of the noise along each direction of `directions` over noise_sd; None: white noise."""
    directions: np.ndarray | None
    """(coordinate, k): directions of the noise that matters; None: white noise."""
    start: Array | None = None
    """(voxel, 4) float32: lineshape to begin with; NaN, and None: search it."""
    changes: Array | None = None
    """(voxel, change, coordinate) complex64: what replicas of the noise change (`data.Replicas`); None: none."""
    patterns: Array | None = None
    """(voxel, mode, node) complex64: what the lineshape may be off by (`uncertainty.lineshape_doubt`); None: nothing.
    """

    def take(self, rows: Any) -> Voxels:
        """Return some voxels: a slice, or their indices on the host."""
        xp = namespace(self.data)

        def some(array: Array | None) -> Array | None:
            if array is None:
                return None
            if isinstance(rows, slice):
                return array[rows, ...]
            return xp.take(array, like(rows, array), axis=0)

        spread = None if self.spread is None else self.spread[rows]
        data, given = some(self.data), some(self.given)
        assert data is not None
        assert given is not None
        return Voxels(
            data, self.noise_sd[rows], given, spread, self.directions, some(self.start), some(self.changes),
            some(self.patterns),
        )  # fmt: skip


def pieces(voxels: Voxels) -> list[slice]:
    """Return the voxels that are fitted at once, as slices of about equal length.

    They depend on the number of voxels alone, so that the same data give the same maps on any number of cores; they
    are smaller where memory has run out (`arrays.smaller_batches`).
    """
    n = len(voxels.noise_sd)
    here = is_numpy(voxels.data)
    most = batch_size(_ON_HOST if here else _ON_DEVICE)
    # on the host an even number, for threads
    count = 2 * -(-n // (2 * most)) if here else -(-n // most)
    size = -(-n // max(count, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


class FirstPass(NamedTuple):
    """A batch of voxels after the first pass, on its device."""

    problem: Problem
    scale: Array
    fit: Fit
    misfit: np.ndarray
    """(voxel,) root mean square of the whitened residual."""
    lines: np.ndarray
    """(voxel, line) bool: which lines that no molecule has are allowed; they are the model's last columns."""


def first_pass(voxels: Voxels, model: VarproModel, steps: int = _FIRST_STEPS) -> FirstPass:
    """Search the lineshape, estimate the nuisance, refine with weak priors by a few Gauss-Newton steps."""
    xp = namespace(voxels.data)
    coordinates, dictionary = model.coordinates, model.dictionary
    data = voxels.data / like(voxels.noise_sd, voxels.data, "float32")[:, None]
    n = coordinates.n_skipped
    clear = xp.concat([xp.zeros_like(data[:, :n]), data[:, n:]], axis=1)
    shape, amounts = _start(voxels, model, clear)
    shape = dictionary.freedom.padded(shape)
    positive = xp.where(amounts > 0, amounts, xp.zeros_like(amounts))
    strength = positive @ like(model.grid.positive, data, "float32")
    # an empty voxel still needs a scale for its priors: the noise
    scale = xp.where(strength > 1e-3, strength, xp.full_like(strength, 1e-3))
    start = positive @ like(model.templates, data, "float32")
    residual = data - model_at(dictionary, shape, start, voxels.given)
    whiten = whitener(band_energy(residual, coordinates), coordinates)
    lines = np.zeros((data.shape[0], 0), bool)
    problem = Problem.of(data, whiten, voxels.given, *priors_of(model, scale, weak_prior(model), lines))
    fit = refine(problem, dictionary, shape, max_steps=steps, settled_at=_FIRST_SETTLED)
    for _ in range(1 if dictionary.freedom.plain else _FURTHER_ROUNDS):
        # what the molecules explain now was taken for nuisance at first
        whiten = whitener(band_energy(fit.residual, coordinates), coordinates)
        problem = Problem.of(data, whiten, voxels.given, problem.mean, problem.precision)
        fit = refine(
            problem, dictionary, fit.shape, fit.amplitudes, fit.free, max_steps=steps, settled_at=_FIRST_SETTLED
        )
    return FirstPass(problem, scale, fit, _misfit(problem, fit), lines)


def _start(voxels: Voxels, model: VarproModel, clear: Array) -> tuple[Array, Array]:
    """Return lineshapes (voxel, 4) and amplitudes (voxel, template) to begin with, found or given.

    `clear` are the data (voxel, coordinate) where nuisance does not dominate.
    """
    xp = namespace(clear)
    if voxels.start is None:
        found = model.grid.search(clear)
        return found.shape, found.amplitudes
    freedom = model.dictionary.freedom
    known = xp.all(xp.isfinite(voxels.start), axis=1)[:, None]
    start = xp.where(known, voxels.start, xp.zeros_like(voxels.start))
    start = xp.minimum(start, like(freedom.upper[:N_SHAPE], start, "float32")[None, :])
    start = xp.maximum(start, like(freedom.lower[:N_SHAPE], start, "float32")[None, :])
    amplitudes = model.grid.at(start, clear, voxels.given)
    if bool(xp.all(known)):
        return start, amplitudes
    found = model.grid.search(clear)
    return xp.where(known, start, found.shape), xp.where(known, amplitudes, found.amplitudes)


def first_pass_of_places(voxels: Voxels, model: VarproModel, steps: int = _FIRST_STEPS) -> tuple[FirstPass, np.ndarray]:
    """Return the first pass with a moving molecule at its most likely place in each voxel, and that place (voxel,).

    Without such a molecule it is `first_pass`.
    """
    moving = model.moving
    if moving is None:
        return first_pass(voxels, model, steps), np.zeros(len(voxels.noise_sd), int)
    best: FirstPass | None = None
    lowest = np.full(len(voxels.noise_sd), np.inf)
    place = np.full(len(voxels.noise_sd), moving.home)
    for one in moving.coarse:
        here = first_pass(voxels, at_place(model, int(one)), steps)
        cost = to_numpy(here.fit.cost) + moving.penalty(int(one))
        better = cost < lowest
        lowest, place = np.where(better, cost, lowest), np.where(better, one, place)
        best = here if best is None else _chosen(better, here, best)
    assert best is not None
    return best, moving.next_place(place, to_numpy(best.fit.amplitudes))


def _chosen(first: np.ndarray, a: FirstPass, b: FirstPass) -> FirstPass:
    """Return the voxels of `a` where `first` (voxel,) says so, else those of `b`."""

    def pick(x: Array, y: Array) -> Array:
        which = first.reshape(-1, *[1] * (x.ndim - 1))
        return namespace(x).where(like(which, x, "bool"), x, y)

    return FirstPass(
        Problem(*map(pick, a.problem, b.problem)),
        pick(a.scale, b.scale),
        Fit(*map(pick, a.fit, b.fit)),
        np.where(first, a.misfit, b.misfit),
        a.lines,
    )


def taken(first: FirstPass, rows: np.ndarray) -> FirstPass:
    """Return some voxels of a pass."""
    xp = namespace(first.scale)
    index = like(rows, first.scale, "int64")
    return FirstPass(
        first.problem.take(index),
        xp.take(first.scale, index, axis=0),
        Fit(*(xp.take(array, index, axis=0) for array in first.fit)),
        first.misfit[rows],
        first.lines[rows],
    )


def final_pass_of_places(
    first: FirstPass, voxels: Voxels, place: np.ndarray, model: VarproModel, shape_prior: np.ndarray
) -> FitResult:
    """Return the final pass with a moving molecule at its place (voxel,), fitted once more where it has moved on.

    Without such a molecule it is `final_pass`.
    """
    moving = model.moving
    if moving is None:
        return final_pass(first, voxels, model, shape_prior)
    result: FitResult | None = None
    rows = np.arange(len(place))
    for _ in range(_ROUNDS):
        if not len(rows):
            break
        parts, order = [], []
        for one in np.unique(place[rows]):
            some = rows[place[rows] == one]
            part = final_pass(taken(first, some), voxels.take(some), at_place(model, int(one)), shape_prior)
            parts.append(replace(part, place=np.full(len(some), one)))
            order.append(some)
        found = FitResult.concatenate(parts)
        where = np.concatenate(order)
        if result is None:
            result = found.rows(np.argsort(where))
        else:
            result.overwrite(where, found)
        place = moving.next_place(result.place, result.amplitudes)
        rows = np.flatnonzero(place != result.place)
    assert result is not None
    return result


def with_unmodelled(
    first: FirstPass, model: VarproModel, lines: np.ndarray, place: np.ndarray | None = None
) -> FirstPass:
    """Refine the first pass with a model that has further lines, where a voxel may have them.

    Parameters
    ----------
    first
        Of the model without them.
    model
        `unmodelled.with_lines`.
    lines
        (voxel, line) bool.
    place
        (voxel,) place of the molecule that has a shift of its own, where there is one.
    """
    if model.moving is not None and place is not None:
        groups = [np.flatnonzero(place == one) for one in np.unique(place)]
        parts = [_refined(taken(first, rows), at_place(model, int(place[rows[0]])), lines[rows]) for rows in groups]
        return _joined(parts, np.argsort(np.concatenate(groups)))
    return _refined(first, model, lines)


def _joined(parts: Sequence[FirstPass], order: np.ndarray) -> FirstPass:
    """Return parts of a batch one after the other, then its voxels in `order`."""
    xp = namespace(parts[0].scale)

    def join(arrays: Sequence[Array]) -> Array:
        return xp.concat(list(arrays), axis=0)

    whole = FirstPass(
        Problem(*(join(arrays) for arrays in zip(*(part.problem for part in parts), strict=True))),
        join([part.scale for part in parts]),
        Fit(*(join(arrays) for arrays in zip(*(part.fit for part in parts), strict=True))),
        np.concatenate([part.misfit for part in parts]),
        np.concatenate([part.lines for part in parts]),
    )
    return taken(whole, order)


def _refined(first: FirstPass, model: VarproModel, lines: np.ndarray) -> FirstPass:
    """Refine a first pass with the further lines of a model."""
    xp = namespace(first.scale)
    mean, precision = priors_of(model, first.scale, weak_prior(model), lines)
    problem = first.problem._replace(mean=mean, precision=precision, tails=xp.zeros_like(precision))
    count = 2 * lines.shape[1]
    n, m = first.fit.amplitudes.shape
    new = xp.zeros((n, count), dtype=xp.float32, device=device(first.scale))
    amplitudes = xp.concat([first.fit.amplitudes, new], axis=1)
    free = xp.concat([first.fit.free[:, :m], new == 0, first.fit.free[:, m:]], axis=1)
    fit = refine(
        problem, model.dictionary, first.fit.shape, amplitudes, free, max_steps=_FIRST_STEPS, settled_at=_FIRST_SETTLED
    )
    return FirstPass(problem, first.scale, fit, _misfit(problem, fit), lines)


def _misfit(problem: Problem, fit: Fit) -> np.ndarray:
    degrees = problem.data.shape[1] - np.sum(to_numpy(fit.free), axis=1)
    return np.asarray(np.sqrt(to_numpy(fit.cost) / np.maximum(degrees, 1)))


def final_problem(
    first: FirstPass, voxels: Voxels, model: VarproModel, shape_prior: np.ndarray
) -> tuple[Problem, Array, np.ndarray]:
    """Estimate the nuisance again, and set up the final fit of some voxels.

    Where the first pass left more than noise, the model is wrong there (lineshape, an unknown molecule), and noise is
    taken to be as large as what was left: the priors then count for more, and the standard deviations tell.

    Returns
    -------
    problem
        In units of the noise times `more`.
    whiten
        (voxel, n_dense, n_dense) complex64: its whitening of the leading coordinates.
    more
        (voxel,) float32: by how much the noise was raised to the misfit.
    """
    xp = namespace(voxels.data)
    coordinates = model.coordinates
    more = np.maximum(first.misfit / _CHANCE, 1.0).astype(np.float32)
    inverse = like(1 / more, voxels.data, "float32")
    residual = first.fit.residual * inverse[:, None]
    whiten = whitener(band_energy(residual, coordinates), coordinates)
    scale = first.scale * inverse
    data = voxels.data * (like(1 / (voxels.noise_sd * more), voxels.data, "float32"))[:, None]
    mean, precision = priors_of(model, scale, shape_prior, first.lines)
    tails = xp.zeros_like(precision)
    freedom = model.dictionary.freedom
    if not np.array_equal(shape_prior, weak_prior(model)):
        tails[:, -freedom.count :] = like(freedom.tails, precision, "float64")[None, :]
    problem = Problem.of(data, whiten, first.problem.given, mean, precision, tails)
    return problem, whiten, more


def final_pass(first: FirstPass, voxels: Voxels, model: VarproModel, shape_prior: np.ndarray) -> FitResult:
    """Refine to the end, and bring everything to the host in the signal's unit."""
    problem, whiten, more = final_problem(first, voxels, model, shape_prior)
    start = first.fit.amplitudes * like(1 / more, voxels.data, "float32")[:, None]
    fit = refine(problem, model.dictionary, first.fit.shape, start, first.fit.free, max_steps=_FINAL_STEPS)
    return result_of(fit, problem, whiten, voxels, model, more)


def result_of(
    fit: Fit, problem: Problem, whiten: Array, voxels: Voxels, model: VarproModel, more: np.ndarray
) -> FitResult:
    """Bring a fit to the host in the signal's unit, with deviations under the noise as reconstruction left it.

    Parameters
    ----------
    fit, problem
        In units of the noise times `more`.
    whiten
        (voxel, n_dense, n_dense) complex64 of the problem.
    voxels
        What was fitted.
    model
        The model.
    more
        (voxel,) by how much the noise was raised to the misfit.
    """
    xp = namespace(fit.shape)
    coordinates, dictionary = model.coordinates, model.dictionary
    inverse, variance = covariance(fit.normal, fit.free)
    cov, noise, perturbed = inverse, np.zeros((len(more), 0, 0)), np.zeros((*fit.normal.shape[:2], 0))
    directions = spread = None
    if voxels.spread is not None and voxels.directions is not None:
        directions = like(voxels.directions, fit.residual, "complex64")
        spread = like(voxels.spread / more[:, None], fit.shape, "float32")
    if spread is not None or voxels.changes is not None:
        actual, of_noise = propagated(problem, dictionary, fit.shape, fit.amplitudes, fit.normal, directions, spread)
        cov = xp.matmul(inverse, xp.matmul(actual, inverse))
        own = xp.linalg.diagonal(cov)
        variance = xp.where(own > 0, own, variance)
    if voxels.changes is not None:
        noise = to_numpy(xp.matmul(inverse, xp.matmul(of_noise, inverse)))
        unit_of_noise = like(1 / (voxels.noise_sd * more), fit.shape, "float32")
        changes = voxels.changes * unit_of_noise[:, None, None]
        perturbed = to_numpy(response_to(problem, dictionary, fit, inverse, changes))
    doubt, evidence = _doubt(fit, problem, voxels, model, inverse, more, directions, spread)
    head = fit.residual[:, : coordinates.n_dense, None]
    # expectation of the nuisance, (C - 2 I) C^-1 r in white noise, with C^-1 = W^H W / 2
    nuisance = head - xp.matmul(xp.matrix_transpose(xp.conj(whiten)), xp.matmul(whiten, head))
    sd = voxels.noise_sd * more
    columns = len(model.design.names)
    unit = np.concatenate(
        [np.repeat(sd[:, None], columns, axis=1), np.ones((len(sd), dictionary.freedom.count))], axis=1
    )
    # the bound knows the noise of the samples only, not what the model leaves beyond it
    bare = unit / more[:, None]
    return FitResult(
        to_numpy(fit.amplitudes) * sd[:, None],
        to_numpy(cov) * unit[:, :, None] * unit[:, None, :],
        to_numpy(variance) * unit**2,
        to_numpy(bare_bound(fit, model)) * bare[:, :, None] * bare[:, None, :],
        to_numpy(fit.shape),
        more * _misfit(problem, fit),
        to_numpy(nuisance[:, :, 0]) * sd[:, None],
        np.full(len(sd), 0 if model.moving is None else model.moving.home),
        doubt * unit[:, :, None],
        evidence,
        noise * unit[:, : noise.shape[1], None] * unit[:, None, : noise.shape[2]],
        perturbed * unit[:, :, None],
    )


def _doubt(
    fit: Fit, problem: Problem, voxels: Voxels, model: VarproModel, inverse: Array, more: np.ndarray,
    directions: Array | None, spread: Array | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return what a doubtful lineshape adds to the unknowns (voxel, unknown, mode), and what the residual says of it.

    The latter is (voxel, 3), as in `uncertainty.Doubt`.
    """
    if voxels.patterns is None:
        return np.zeros((*fit.normal.shape[:2], 0)), np.zeros((len(more), 3))
    found = doubt_of(
        problem, model.dictionary, fit, inverse, voxels.patterns, like(1 / more, fit.shape, "float32"), directions,
        spread,
    )  # fmt: skip
    return to_numpy(found.response).astype(float), to_numpy(found.evidence)


def bare_bound(fit: Fit, model: VarproModel) -> Array:
    """Return the inverse (voxel, unknown, unknown) of the Fisher information that the data alone have.

    All unknowns are free and have no prior (Cavassila et al. 2001, DOI 10.1002/nbm.701), but for those that mean
    nothing without: deviations of macromolecules from their profile, lines that a voxel may not have, a molecule's own
    shift, parameters of the lineshape beyond phase, shift and rates. Nuisance is marginalised with the energy that was
    estimated.
    """
    xp = namespace(fit.normal)
    freedom = model.dictionary.freedom
    known = np.arange(freedom.count) < N_SHAPE
    free = np.concatenate([model.design.typical != 0, known & freedom.learned])
    # an empty voxel knows nothing of its lineshape: its bound is large, not infinite
    less = fit.precision * like(free, fit.precision, "float64")[None, :] - _NO_INFORMATION
    eye = xp.eye(len(free), dtype=xp.float64, device=device(less))[None, :, :]
    bound, _ = covariance(fit.normal - less[:, :, None] * eye, xp.ones_like(fit.free))
    return bound


def weak_prior(model: VarproModel) -> np.ndarray:
    """Return mean and SD (2, parameter) of the lineshape parameters before anything is known."""
    return model.dictionary.freedom.prior


def learn_shape_prior(passes: Sequence[FirstPass], model: VarproModel) -> np.ndarray:
    """Return median and spread beyond the fit's own errors (2, parameter) of the lineshape parameters over the voxels.

    Few voxels teach nothing: then the weak prior stays.
    """
    shapes = np.concatenate([to_numpy(one.fit.shape) for one in passes]).astype(float)
    if len(shapes) < _ENOUGH_VOXELS:
        return weak_prior(model)
    freedom, count = model.dictionary.freedom, shapes.shape[1]
    xp = namespace(passes[0].scale)
    step = -(-len(shapes) // _ROWS_FOR_VARIANCE)
    variances = []
    for one in passes:
        rows = xp.arange(0, one.scale.shape[0], step, device=device(one.scale))
        _, variance = covariance(xp.take(one.fit.normal, rows, axis=0), xp.take(one.fit.free, rows, axis=0))
        variances.append(to_numpy(variance[:, -count:]))
    phase = np.angle(np.mean(np.exp(1j * shapes[:, 0])))
    shapes[:, 0] = phase + np.angle(np.exp(1j * (shapes[:, 0] - phase)))
    centre = np.median(shapes, axis=0)
    total = 1.4826 * np.median(np.abs(shapes - centre), axis=0)
    own = np.median(np.concatenate(variances), axis=0)
    spread = np.sqrt(np.maximum(total**2 - own, freedom.least**2))
    found = np.stack([centre, np.maximum(1.25 * spread, freedom.least)])
    # what is more than the prior before anything was known would free parameters that only the prior holds
    further = np.arange(count) >= N_SHAPE
    found[1] = np.where(further, np.minimum(found[1], freedom.prior[1]), found[1])
    return np.where(freedom.learned, found, freedom.prior)


def priors_of(model: VarproModel, scale: Array, shape_prior: np.ndarray, lines: np.ndarray) -> tuple[Array, Array]:
    """Mean and precision of the priors of amplitudes (in proportion to the voxel's scale) and of the lineshape.

    Lines that a voxel may not have are held at zero.
    """
    xp = namespace(scale)
    design = model.design
    scale = xp.astype(scale, xp.float64)[:, None]
    ones = xp.ones_like(scale)
    mean = like(np.where(np.isfinite(design.prior_sd), design.prior_mean, 0.0), scale, "float64")[None, :] * scale
    freedom = np.repeat(design.prior_sd[None, :], len(lines) if lines.shape[1] else 1, axis=0)
    if lines.shape[1]:
        freedom[:, -2 * lines.shape[1] :][~np.repeat(lines, 2, axis=1)] = FORBIDDEN
    precision = like(freedom**-2.0, scale, "float64") / scale**2
    shape_mean = like(shape_prior[0], scale, "float64")[None, :] * ones
    shape_precision = like(shape_prior[1] ** -2.0, scale, "float64")[None, :] * ones
    return xp.concat([mean, shape_mean], axis=1), xp.concat([precision, shape_precision], axis=1)
