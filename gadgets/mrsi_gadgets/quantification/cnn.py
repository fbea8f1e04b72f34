"""Quantification by networks: `cnn` and `cnn_spectrum`, and lineshapes for `varpro` to start from (eq. 22 and after).

`cnn`: the regressor says phase, shift, Lorentz and Gauss rate of every voxel at once; the physical model is that of
`varpro` (same columns, macromolecules, priors, field within the voxel, nuisance marginalised), and its non-negative
amplitudes follow from one linear solve, so that nothing is searched. The network can be adapted to the scan first: its
loss is the distance between the measured and the resynthesised spectra of this very scan (no truth is needed), with
the amplitudes eliminated by the same solve.

`cnn_spectrum`: the extractor returns the spectrum of the metabolites alone, undistorted; non-negative least squares on
it gives the metabolites. Macromolecules, nuisance and misfit follow from the physical model with these amounts held.

Standard deviations of both are those of the physical model at what the networks found: its Jacobian by amplitudes and
lineshape, the noise as reconstruction left it, and noise raised to the misfit where the model leaves more than noise.
The networks' own errors are what a step of the fit would change: its square is added.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, is_numpy, like, n_threads, namespace, one_blas_thread, to_numpy
from mrsi_gadgets.data import Maps, SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.quantification.assembly import FitResult, assemble_maps
from mrsi_gadgets.quantification.cnn_physics import (
    composite_signal,
    nonnegative_amounts,
    problem_of,
    shape_spread,
    turned,
)
from mrsi_gadgets.quantification.coordinates import band_energy, whitener
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.moving_line import at_place
from mrsi_gadgets.quantification.passes import FirstPass, Voxels, pieces, result_of
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.quality import Evidence
from mrsi_gadgets.quantification.refinement import Fit, Problem, covariance, linear_fit, normal_equations
from mrsi_gadgets.quantification.spectrum_input import Inputs, clean_spectra, inputs_of
from mrsi_gadgets.quantification.unmodelled import UnmodelledLine, find_lines, with_lines
from mrsi_gadgets.quantification.varpro import check_image, field_lineshape, voxels_of

_CHANCE = 1.15
"""Misfit that noise alone may leave."""
_ROUNDS = 4


class _Found(NamedTuple):
    """What the networks say of a list of voxels."""

    shape: Array
    """(voxel, 4) float32."""
    amounts: Array | None
    """(voxel, metabolite) float32 in the unit of the signal; None: they follow from the lineshape."""


def fit_cnn(
    image: SpectralImage,
    model: VarproModel,
    networks: SpectrumNetworks,
    *,
    spectrum: bool = False,
    water: np.ndarray | None = None,
    lineshape: np.ndarray | None = None,
    doubt: np.ndarray | None = None,
    adapt_steps: int = 0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Maps:
    """Quantify every voxel of the image's mask by networks.

    Parameters
    ----------
    image
        The FIDs or their coefficients, on any device.
    model
        What `prepare_varpro` made for this protocol.
    networks
        Trained for it (`train_spectrum_networks`).
    spectrum
        Amounts from the extractor's clean spectra (`cnn_spectrum`) instead of the regressor's lineshapes (`cnn`).
    water
        (x, y, z) amplitude of water at t = 0 in the image's unit; None: no ``NAME_per_water`` maps.
    lineshape
        (voxel, node) complex64 lineshape that the field gives (`varpro.field_lineshape`); None: it is computed.
    doubt
        (voxel, mode, node) complex64 what it may be off by (`varpro.field_doubt`); None: it is computed.
    adapt_steps
        Steps by which the regressor is adapted to this image first; 0: none.
    seed
        Of the adaptation.
    progress
        Called with the fraction that is done.

    Returns
    -------
    Maps
        Names, units, sums and ratios as those of `fit_varpro`, lines that no molecule has included.

    Raises
    ------
    DataError
        As `fit_varpro`; or the networks were made for another number of points.
    """
    tell = progress or (lambda _: None)
    check_image(image, model, water)
    _check_freedom(model)
    with one_blas_thread():
        voxels, inputs, inside = _prepared(image, model, networks, lineshape, doubt)
        if adapt_steps > 0:
            from mrsi_gadgets.quantification.cnn_adaptation import adapted

            networks = adapted(
                networks, inputs, voxels, model, steps=adapt_steps, seed=seed,
                progress=lambda share: tell(0.5 * share),
            )  # fmt: skip
        done = 0.5 if adapt_steps > 0 else 0.0
        found = _found(networks, inputs, voxels, model, spectrum=spectrum)
        result, model, lines, evidence = _solved(
            voxels, found, model, image, lambda share: tell(done + (1 - done) * share)
        )
    method = "cnn_spectrum" if spectrum else "cnn"
    maps = assemble_maps(image, inside, result, model, voxels, water, lines, method=method, evidence=evidence)
    return replace(maps, provenance={**maps.provenance, "adapt_steps": adapt_steps})


def lineshapes_of_cnn(
    image: SpectralImage,
    model: VarproModel,
    networks: SpectrumNetworks,
    *,
    lineshape: np.ndarray | None = None,
    adapt_steps: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Return the regressor's lineshapes (voxel, 4) of the mask's voxels, for `fit_varpro` to start from.

    Parameters as those of `fit_cnn`.
    """
    check_image(image, model, None)
    if adapt_steps > 0:
        _check_freedom(model)
    with one_blas_thread():
        voxels, inputs, _ = _prepared(image, model, networks, lineshape, None)
        if adapt_steps > 0:
            from mrsi_gadgets.quantification.cnn_adaptation import adapted

            networks = adapted(networks, inputs, voxels, model, steps=adapt_steps, seed=seed)
        return to_numpy(_found(networks, inputs, voxels, model, spectrum=False).shape)


def _check_freedom(model: VarproModel) -> None:
    if not model.dictionary.freedom.plain:
        further = ", ".join(model.dictionary.freedom.names[N_SHAPE:]) or "a delay"
        raise DataError(
            f"the networks know phase, shift and two widths, but this fit has further parameters of the lineshape "
            f"({further}); take method varpro, or the usual options"
        )


def _prepared(
    image: SpectralImage,
    model: VarproModel,
    networks: SpectrumNetworks,
    lineshape: np.ndarray | None,
    doubt: np.ndarray | None,
) -> tuple[Voxels, Inputs, np.ndarray]:
    """Return voxels, the networks' inputs, and the flat indices of the voxels."""
    if len(networks.match) != image.protocol.n_times:
        raise DataError(
            f"the networks were trained for FIDs of {len(networks.match)} points; these have {image.protocol.n_times}: "
            "learn a model of this protocol"
        )
    xp = namespace(image.coefficients)
    inside = np.flatnonzero(image.mask.ravel())
    if lineshape is None:
        lineshape = field_lineshape(image.b0_hz, image.mask, model)
    voxels = voxels_of(image, inside, model, lineshape, None, doubt)
    flat = xp.reshape(image.coefficients, (-1, image.coefficients.shape[3]))
    data = xp.astype(xp.take(flat, like(inside, flat), axis=0), xp.complex64)
    basis = None if image.basis is None else to_numpy(image.basis)
    noise = np.asarray(image.noise_sd, np.float32).ravel()[inside]
    return voxels, inputs_of(data, basis, noise, voxels.given, networks, model), inside


def _found(networks: SpectrumNetworks, inputs: Inputs, voxels: Voxels, model: VarproModel, *, spectrum: bool) -> _Found:
    """Run the networks on all voxels."""
    xp = namespace(inputs.spectra)
    turn = xp.atan2(xp.imag(inputs.scale), xp.real(inputs.scale))
    shape = turned(networks.lineshapes(inputs.spectra, inputs.told), turn)
    if not spectrum:
        return _Found(shape, None)
    clean = networks.clean(inputs.spectra, inputs.told)
    members = clean_spectra(model, networks.window_ppm, networks.points) @ networks.axes.T
    return _Found(shape, nonnegative_amounts(clean, members) * xp.abs(inputs.scale)[:, None])


def _solved(
    voxels: Voxels, found: _Found, model: VarproModel, image: SpectralImage, progress: Callable[[float], None]
) -> tuple[FitResult, VarproModel, list[UnmodelledLine], Evidence | None]:
    """Solve for what is linear in all voxels, in pieces; again where there are lines that no molecule has.

    Those are not looked for beside a molecule with a shift of its own, whose place the first solve must settle.
    """
    n = voxels.data.shape[0]
    prior = shape_spread(to_numpy(found.shape))
    parts = pieces(voxels)
    basis = None if image.basis is None else to_numpy(image.basis)

    with ThreadPoolExecutor(n_threads() if is_numpy(voxels.data) and len(parts) > 1 else 1) as pool:

        def solve(which: VarproModel, allowed: np.ndarray, share: float) -> list[tuple[FitResult, FirstPass | None]]:
            def one(rows: slice) -> tuple[FitResult, FirstPass | None]:
                some = _Found(found.shape[rows, :], None if found.amounts is None else found.amounts[rows, :])
                return _solved_at_places(voxels.take(rows), some, which, prior, allowed[rows])

            results = []
            for result in pool.map(one, parts):
                results.append(result)
                progress(share * len(results) / len(parts))
            return results

        solved = solve(model, np.zeros((n, 0), bool), 0.9)
        passes = [first for _, first in solved if first is not None]
        lines, evidence = find_lines(passes, model, image.mask, basis) if passes else ([], None)
        if lines:
            model = with_lines(model, lines, basis)
            solved = solve(model, np.stack([line.voxels for line in lines], axis=1), 1.0)
    progress(1.0)
    return FitResult.concatenate([result for result, _ in solved]), model, lines, evidence


def _solved_at_places(
    voxels: Voxels, found: _Found, model: VarproModel, prior: np.ndarray, lines: np.ndarray
) -> tuple[FitResult, FirstPass | None]:
    """Solve with a molecule that has a shift of its own at its most likely place; without one, once."""
    moving = model.moving
    if moving is None:
        return _piece(voxels, found, model, prior, lines)
    n = len(voxels.noise_sd)
    lowest, place = np.full(n, np.inf), np.full(n, moving.home)
    for one in moving.coarse:
        first, _ = _linear(voxels, found, at_place(model, int(one)), prior, lines)
        cost = to_numpy(first.fit.cost) + moving.penalty(int(one))
        lowest, place = np.where(cost < lowest, cost, lowest), np.where(cost < lowest, one, place)
    result: FitResult | None = None
    rows = np.arange(n)
    for _ in range(_ROUNDS):
        parts, order = [], []
        for one in np.unique(place[rows]):
            some = rows[place[rows] == one]
            here = at_place(model, int(one))
            part, _ = _piece(voxels.take(some), _taken_found(found, some), here, prior, lines[some])
            parts.append(replace(part, place=np.full(len(some), one)))
            order.append(some)
        new, where = FitResult.concatenate(parts), np.concatenate(order)
        if result is None:
            result = new.rows(np.argsort(where))
        else:
            result.overwrite(where, new)
        place = moving.next_place(result.place, result.amplitudes)
        rows = np.flatnonzero(place != result.place)
        if not len(rows):
            break
    assert result is not None
    return result, None


def _piece(
    voxels: Voxels, found: _Found, model: VarproModel, prior: np.ndarray, lines: np.ndarray
) -> tuple[FitResult, FirstPass]:
    """Solve for amplitudes at the lineshapes found; return the result with its deviations too."""
    first, whiten = _linear(voxels, found, model, prior, lines)
    problem, fit = first.problem, first.fit
    if found.amounts is not None:
        # deviations are those of amounts that are free
        sd = like(voxels.noise_sd, voxels.data, "float32")[:, None]
        problem = problem_of(
            voxels.data / sd, whiten, voxels.given, first.scale, None, model, prior, lines
        )  # fmt: skip
        free = linear_fit(problem, model.dictionary, found.shape)
        fit = fit._replace(normal=free.normal, precision=free.precision, free=_free_where(fit, model))
        first = first._replace(problem=problem, fit=fit)
    more = np.maximum(first.misfit / _CHANCE, 1.0).astype(np.float32)
    return _result(fit, problem, whiten, voxels, model, more, first.misfit), first


def _linear(
    voxels: Voxels, found: _Found, model: VarproModel, prior: np.ndarray, lines: np.ndarray
) -> tuple[FirstPass, Array]:
    """Solve for amplitudes at the lineshapes found, with the lines (voxel, line) that no molecule has where allowed.

    Returns the whitening (voxel, n_dense, n_dense) too.
    """
    xp = namespace(voxels.data)
    sd = like(voxels.noise_sd, voxels.data, "float32")
    data = voxels.data / sd[:, None]
    coordinates = model.coordinates
    composites, scale = composite_signal(data, found.shape, voxels.given, model)
    whiten = whitener(band_energy(data - composites, coordinates), coordinates)
    held = None if found.amounts is None else found.amounts / sd[:, None]
    problem = problem_of(data, whiten, voxels.given, scale, held, model, prior, lines)
    fit = linear_fit(problem, model.dictionary, found.shape)
    # the prior of the lineshape holds what is not sought here, so it is no part of the misfit
    away = problem.mean[:, -N_SHAPE:] - xp.astype(fit.shape, xp.float64)
    pull = xp.sum(problem.precision[:, -N_SHAPE:] * away**2, axis=1)
    fit = fit._replace(cost=xp.maximum(fit.cost - xp.astype(pull, fit.cost.dtype), xp.zeros_like(fit.cost)))
    degrees = problem.data.shape[1] - np.sum(to_numpy(fit.free), axis=1)
    misfit = np.sqrt(to_numpy(fit.cost) / np.maximum(degrees, 1))
    return FirstPass(problem, scale, fit, misfit, lines), whiten


def _free_where(fit: Fit, model: VarproModel) -> Array:
    """Return which unknowns count as free: amounts that are zero lie at their bound."""
    xp = namespace(fit.amplitudes)
    n, m = model.design.n_metabolites, fit.amplitudes.shape[1]
    return xp.concat([fit.amplitudes[:, :n] > 0, fit.free[:, n : m + N_SHAPE]], axis=1)


def _result(
    fit: Fit, problem: Problem, whiten: Array, voxels: Voxels, model: VarproModel, more: np.ndarray, misfit: np.ndarray
) -> FitResult:
    """Bring a fit to the host; noise is taken to be as large as the misfit, which scales the deviations."""
    ones = np.ones(len(more), np.float32)
    result = result_of(fit, problem, whiten, voxels, model, ones)
    step = _step_to_optimum(fit, problem, model)
    step[:, : len(model.design.names)] *= voxels.noise_sd[:, None]
    return replace(
        result,
        covariance=result.covariance * more[:, None, None] ** 2 + step[:, :, None] * step[:, None, :],
        variance=result.variance * more[:, None] ** 2 + step**2,
        misfit=misfit,
    )


def _step_to_optimum(fit: Fit, problem: Problem, model: VarproModel) -> np.ndarray:
    """Return how far the physical model's optimum lies from what the networks found, (voxel, unknown), to first order.

    It is an estimate of the networks' own errors, which no linearisation about their result knows.
    """
    xp = namespace(fit.shape)
    normal, right = normal_equations(problem, model.dictionary, fit.shape, fit.amplitudes)
    unknowns = xp.concat([xp.astype(fit.amplitudes, xp.float64), xp.astype(fit.shape, xp.float64)], axis=1)[:, :, None]
    inverse, _ = covariance(fit.normal, fit.free)
    return to_numpy(xp.matmul(inverse, right[:, :, None] - xp.matmul(normal, unknowns))[:, :, 0])


def _taken_found(found: _Found, rows: np.ndarray) -> _Found:
    xp = namespace(found.shape)
    index = like(rows, found.shape, "int64")
    return _Found(*(None if x is None else xp.take(x, index, axis=0) for x in found))
