"""Union-of-subspaces fit: every voxel's FID as a sum of parts, one from each molecule's own subspace (eq. 20, 21).

    rho_n(t) = h_n(t) SUM_m V_m(t) u_nm,    min SUM_n || rho_n - h_n V u_n ||^2 + SUM lambda R(U)

The subspaces V_m are learned before the scan (`molecule_subspaces`). The lineshape h_n of a voxel is found by a search
and a Gauss-Newton step; about it everything is linear (tangent subspaces): amounts, departures within the
subspaces, and small changes of the lineshape have one set of normal equations. From those of all voxels follow the
ratios of this brain's weak molecules and macromolecules (`scan_priors`), and the spatial prior of the molecules' maps
(`map_prior`), whose weights come from the noise. The coefficient of a subspace's mean is the amount: no conversion is
left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mrsi_gadgets.arrays import is_numpy, like, n_threads, one_blas_thread, to_numpy
from mrsi_gadgets.data import Maps, Protocol, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.quantification.assembly import FitResult, assemble_maps
from mrsi_gadgets.quantification.design import Design, NuisanceBand
from mrsi_gadgets.quantification.freedom import FitOptions
from mrsi_gadgets.quantification.map_prior import Estimates, bounded_estimates, smooth_maps
from mrsi_gadgets.quantification.molecule_subspaces import learn_subspaces, with_subspaces
from mrsi_gadgets.quantification.moving_line import SLOPE, at_place
from mrsi_gadgets.quantification.nucleus_fit import fit_of
from mrsi_gadgets.quantification.passes import (
    FirstPass,
    Voxels,
    final_problem,
    first_pass_of_places,
    learn_shape_prior,
    pieces,
    result_of,
    taken,
    with_unmodelled,
)
from mrsi_gadgets.quantification.preparation import VarproModel, prepare_varpro, usual_basis
from mrsi_gadgets.quantification.quality import Evidence
from mrsi_gadgets.quantification.refinement import normal_equations, refine
from mrsi_gadgets.quantification.scan_priors import scan_ratios
from mrsi_gadgets.quantification.unmodelled import UnmodelledLine, find_lines, with_lines
from mrsi_gadgets.quantification.varpro import check_image, field_lineshape, voxels_of

if TYPE_CHECKING:
    from mrsi_gadgets.physics.basis import BasisSet

METHOD = "union_of_subspaces"
SPATIAL = ("auto", "edges", "none")
"""When the spatial prior acts: `auto` leaves coefficients to themselves whose noise a reconstruction has smoothed."""
_FIRST_STEPS = 1
_STEPS = 1
"""Gauss-Newton steps about the lineshape of the first pass."""
_ROWS = 400
"""Voxels that are asked for the ratios of the scan; more would not move them."""
_ENOUGH_VOXELS = 100


@dataclass(frozen=True, eq=False)
class UnionModel(VarproModel):
    """Everything of the fit that is known before the data: subspaces as columns, and how the maps hang together."""

    spatial: str = "auto"
    """One of `SPATIAL`."""
    learn_ratios: bool = False
    """Whether the scan's own ratios of weak molecules replace the usual ones."""


def prepare_union_of_subspaces(
    protocol: Protocol,
    basis: BasisSet,
    macromolecules: BasisSet | None,
    *,
    decay_rates: Mapping[str, float] | None = None,
    typical: Mapping[str, float] | None = None,
    nuisance: Sequence[NuisanceBand] | None = None,
    spatial: str = "auto",
    learn_ratios: bool = False,
    options: FitOptions | None = None,
    seed: int = 0,
) -> UnionModel:
    """Learn the subspaces and make the dictionaries of `fit_union_of_subspaces`.

    Parameters
    ----------
    protocol, basis, macromolecules, typical, nuisance, options
        As for `prepare_varpro`.
    decay_rates
        Metabolite -> 1/T2* [1/s]: these molecules keep one FID of that decay instead of a subspace.
    spatial
        `auto`, `edges` or `none`: the prior of the molecules' maps.
    learn_ratios
        Whether the ratios of weak molecules and macromolecules are those of all voxels of the scan.
    seed
        Of the members that the subspaces are learned from.

    Raises
    ------
    ConfigError
        `spatial` is none of these.
    DataError
        A basis does not fit the protocol, or the molecules of its nucleus are not known.
    """
    if spatial not in SPATIAL:
        raise ConfigError(f"the spatial prior '{spatial}' is not known; choose {', '.join(SPATIAL)}")
    own = fit_of(protocol).own_shift
    kept = {*(decay_rates or {}), *(() if own is None else (own.name,))}

    def extend(design: Design) -> Design:
        rates = {name: float(rate) for name, rate in zip(design.names, design.rates, strict=False) if name not in kept}
        return with_subspaces(design, learn_subspaces(protocol, basis, rates, seed=seed))

    model = prepare_varpro(
        protocol,
        basis,
        macromolecules,
        decay_rates=decay_rates,
        typical=typical,
        nuisance=nuisance,
        options=options,
        extend=extend,
    )
    known = {part.name: getattr(model, part.name) for part in fields(model)}
    return UnionModel(**known, spatial=spatial, learn_ratios=learn_ratios)


def usual_union_model(protocol: Protocol, options: FitOptions | None = None, spatial: str = "auto") -> UnionModel:
    """Return the model of one echo time with the usual molecules of the nucleus, as `preparation.usual_model`."""
    return prepare_union_of_subspaces(protocol, *usual_basis(protocol), options=options, spatial=spatial)


def fit_union_of_subspaces(
    image: SpectralImage,
    model: UnionModel,
    *,
    water: np.ndarray | None = None,
    lineshape: np.ndarray | None = None,
    doubt: np.ndarray | None = None,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Maps:
    """Fit all voxels of the image's mask together.

    Parameters
    ----------
    image
        The FIDs or their coefficients, on any device.
    model
        What `prepare_union_of_subspaces` made for this protocol.
    water
        (x, y, z) amplitude of water at t = 0 in the image's unit: for ``NAME_per_water`` and the edges of the spatial
        prior; None: neither.
    lineshape, doubt, start
        As for `fit_varpro`.
    seed
        Of the signs of the risk estimate.
    progress
        Called with the fraction that is done.

    Returns
    -------
    Maps
        Names, units, sums, ratios and standard deviations as those of `fit_varpro`.

    Raises
    ------
    DataError
        As for `fit_varpro`.
    """
    check_image(image, model, water)
    told = progress or (lambda _: None)
    inside = np.flatnonzero(image.mask.ravel())
    with one_blas_thread():
        if lineshape is None:
            lineshape = field_lineshape(image.b0_hz, image.mask, model)
        voxels = voxels_of(image, inside, model, lineshape, start, doubt)
        basis = None if image.basis is None else to_numpy(image.basis)
        result, free, fitted, lines, evidence = _fit(voxels, model, image.mask, basis, told)
        facts: dict[str, Any] = {"spatial_prior": "none"}
        if _smooths(model, image):
            edges = None if water is None else np.asarray(water, float)
            smoothed, facts = smooth_maps(
                free, _molecules(fitted), image.mask, edges, np.random.default_rng(seed)
            )  # fmt: skip
            if smoothed is not free:
                result = _with_estimates(result, smoothed, fitted)
        told(1.0)
    maps = assemble_maps(image, inside, result, fitted, voxels, water, lines, method=METHOD, evidence=evidence)
    return replace(maps, provenance={**maps.provenance, **facts})


def _smooths(model: UnionModel, image: SpectralImage) -> bool:
    """Whether the spatial prior acts: where noise is white from voxel to voxel, or where it was asked for."""
    return model.spatial == "edges" or (model.spatial == "auto" and image.coefficient_sd is None)


def _molecules(model: VarproModel) -> np.ndarray:
    """Return the columns that are amounts or belong to them, not the place of a line nor what no molecule explains."""
    count = model.design.n_metabolites
    which = [i for i, name in enumerate(model.design.names) if i < count or name.startswith("MM")]
    return np.array([i for i in which if not model.design.names[i].endswith(SLOPE)])


def _fit(
    voxels: Voxels, model: UnionModel, mask: np.ndarray, basis: np.ndarray | None, progress: Callable[[float], None]
) -> tuple[FitResult, Estimates, VarproModel, list[UnmodelledLine], Evidence]:
    """Fit voxel by voxel: with bounds, and without them but with the whole covariance."""
    batches = [voxels.take(rows) for rows in pieces(voxels)]
    fit: VarproModel = model
    passes: list[FirstPass] = []
    places: list[np.ndarray] = []
    with ThreadPoolExecutor(n_threads() if is_numpy(voxels.data) and len(batches) > 1 else 1) as pool:
        for one, place in pool.map(lambda piece: first_pass_of_places(piece, fit, _FIRST_STEPS), batches):
            passes.append(one)
            places.append(place)
            progress(0.6 * len(passes) / len(batches))
        if model.learn_ratios:
            fit = _with_ratios(fit, passes, batches)
        lines, evidence = find_lines(passes, fit, mask, basis)
        if lines:
            fit = with_lines(fit, lines, basis)
            ends = np.cumsum([len(p.misfit) for p in passes])[:-1]
            allowed = np.split(np.stack([line.voxels for line in lines], axis=1), ends)
            passes = list(pool.map(with_unmodelled, passes, [fit] * len(passes), allowed, places))
        prior = learn_shape_prior(passes, fit)
        known = fit

        def tangent(work: tuple[FirstPass, Voxels, np.ndarray]) -> tuple[FitResult, Estimates]:
            return _tangent(*work, known, prior)

        parts = list(pool.map(tangent, zip(passes, batches, places, strict=True)))
    progress(0.9)
    free = Estimates(np.concatenate([p[1].value for p in parts]), np.concatenate([p[1].covariance for p in parts]))
    return FitResult.concatenate([p[0] for p in parts]), free, fit, lines, evidence


def _with_ratios(model: VarproModel, passes: Sequence[FirstPass], pieces: Sequence[Voxels]) -> VarproModel:
    """Return the model with the scan's own ratios as the means of its priors."""
    design = model.design
    which = np.array(
        [
            i
            for i, name in enumerate(design.names)
            if np.isfinite(design.prior_sd[i])
            and not name.endswith(SLOPE)
            and (design.typical[i] > 0 or name[:2] == "MM")
        ],
        int,
    )
    total = sum(len(piece.noise_sd) for piece in pieces)
    if not len(which) or total < _ENOUGH_VOXELS or model.moving is not None:
        return model
    step = -(-total // _ROWS)
    prior = learn_shape_prior(passes, model)
    normals, sides, scales = [], [], []
    for first, piece in zip(passes, pieces, strict=True):
        rows = np.arange(0, len(first.misfit), step)
        some = taken(first, rows)
        problem, _, more = final_problem(some, piece.take(rows), model, prior)
        start = some.fit.amplitudes * like(1 / more, some.scale, "float32")[:, None]
        normal, rhs = normal_equations(problem, model.dictionary, some.fit.shape, start)
        normals.append(to_numpy(normal))
        sides.append(to_numpy(rhs))
        scales.append(to_numpy(some.scale).astype(float) / more)
    found = scan_ratios(
        np.concatenate(normals),
        np.concatenate(sides),
        np.concatenate(scales),
        which,
        design.prior_sd[which],
        design.typical[which],
    )
    means = design.typical.copy()
    means[which] = np.where(design.bounded[which], np.maximum(found, 0.0), found)
    return replace(model, design=replace(design, scan_mean=means))


def _tangent(
    first: FirstPass, voxels: Voxels, place: np.ndarray, model: VarproModel, shape_prior: np.ndarray
) -> tuple[FitResult, Estimates]:
    """Fit a piece in the tangent subspaces of its own lineshapes; a moving molecule at the place of the first pass."""
    if model.moving is None:
        return _tangent_here(first, voxels, model, shape_prior)
    results, values, spreads, order = [], [], [], []
    for one in np.unique(place):
        rows = np.flatnonzero(place == one)
        part, free = _tangent_here(taken(first, rows), voxels.take(rows), at_place(model, int(one)), shape_prior)
        results.append(replace(part, place=np.full(len(rows), one)))
        values.append(free.value)
        spreads.append(free.covariance)
        order.append(rows)
    back = np.argsort(np.concatenate(order))
    free = Estimates(np.concatenate(values)[back], np.concatenate(spreads)[back])
    return FitResult.concatenate(results).rows(back), free


def _tangent_here(
    first: FirstPass, voxels: Voxels, model: VarproModel, shape_prior: np.ndarray
) -> tuple[FitResult, Estimates]:
    problem, whiten, more = final_problem(first, voxels, model, shape_prior)
    start = first.fit.amplitudes * like(1 / more, voxels.data, "float32")[:, None]
    fit = refine(problem, model.dictionary, first.fit.shape, start, first.fit.free, max_steps=_STEPS)
    result = result_of(fit, problem, whiten, voxels, model, more)
    normal, rhs = normal_equations(problem, model.dictionary, fit.shape, fit.amplitudes)
    spread = np.linalg.inv(to_numpy(normal))
    value = (spread @ to_numpy(rhs)[:, :, None])[:, :, 0]
    unit = np.ones_like(value)
    unit[:, : len(model.design.names)] = (voxels.noise_sd * more)[:, None]
    return result, Estimates(value * unit, spread * unit[:, :, None] * unit[:, None, :])


def _with_estimates(result: FitResult, found: Estimates, model: VarproModel) -> FitResult:
    """Return the result with smoothed estimates in the place of the voxel-wise ones, bounds included."""
    count = len(model.design.names)
    freedom = model.dictionary.freedom
    bounded = np.append(model.design.bounded, np.zeros(freedom.count, bool))
    value, covariance, variance = bounded_estimates(found, bounded)
    return replace(result, amplitudes=value[:, :count], covariance=covariance, variance=variance)
