"""Everything of the fit that is known before the data: design, coordinates and dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.macromolecules import macromolecule_basis
from mrsi_gadgets.physics.nucleus import field_strength_t, nucleus_of
from mrsi_gadgets.physics.saturation import macromolecule_weight, relaxed
from mrsi_gadgets.quantification.coordinates import Coordinates, fid_coordinates
from mrsi_gadgets.quantification.design import Design, NuisanceBand, build_design, group_weights
from mrsi_gadgets.quantification.freedom import FitOptions, Freedom, delay_scale, make_freedom, time_derivatives
from mrsi_gadgets.quantification.lineshape_search import (
    LineshapeExpansion,
    LineshapeGrid,
    LineshapeRange,
    build_grid,
    expand_lineshapes,
)
from mrsi_gadgets.quantification.moving_line import (
    MovingLine,
    places_hz,
    prepare_moving_line,
    slope_columns,
    with_slope,
)
from mrsi_gadgets.quantification.nucleus_fit import NucleusFit, OwnShift, fit_of
from mrsi_gadgets.quantification.refinement import ShapedDictionary

if TYPE_CHECKING:
    from mrsi_gadgets.physics.basis import BasisSet

WEAK_PRIOR = np.array([[0.0, 0.0, 3.0, 0.0], [np.inf, 8.0, 20.0, 2000.0]])
"""Mean and SD of the lineshape parameters before anything is known."""
SMALLEST_SPREAD = np.array([0.02, 0.2, 0.7, 8.0])
"""SD of phase [rad], shift [Hz], Lorentz rate [1/s] and Gauss rate [1/s^2] that are never assumed smaller."""
SHAPE_TAILS = np.array([0.0, 1 / 3, 1 / 3, 1 / 3])
"""1 / nu of the Student t distribution that the lineshape parameters have over the voxels (0: Gaussian).

Most voxels are alike, but where the shim is bad (above the sinuses) lines are several times broader. A Gaussian prior
that fits the many would pull those to the mean, and their amplitudes with them: by half, in a test. The phase is the
coil combination's and has no such tails."""
_FREE_DRAWS = 300
_WATCHED = 0.2
"""Size of unknown lines relative to the strongest one for which the coordinates are made."""


@dataclass(frozen=True, eq=False)
class VarproModel:
    """Everything of the fit that is known before the data."""

    protocol: Protocol
    design: Design
    coordinates: Coordinates
    dictionary: ShapedDictionary
    grid: LineshapeGrid
    templates: np.ndarray
    """(template, column): amplitudes that make up each composite spectrum of the first search."""
    moving: MovingLine | None = None
    """The molecule that has a shift of its own in every voxel, if there is one."""
    options: FitOptions = field(default_factory=FitOptions)
    """How free the fit is."""
    middle_hz: float = 0.0
    """Frequency whose phase is that of order zero, where a delay is fitted [Hz]."""


def prepare_varpro(
    protocol: Protocol,
    basis: BasisSet,
    macromolecules: BasisSet | None,
    *,
    decay_rates: Mapping[str, float] | None = None,
    typical: Mapping[str, float] | None = None,
    nuisance: Sequence[NuisanceBand] | None = None,
    lineshapes: LineshapeRange | None = None,
    macromolecule_freedom: float = 0.25,
    metabolite_freedom: float = 0.5,
    options: FitOptions | None = None,
    extend: Callable[[Design], Design] | None = None,
) -> VarproModel:
    """Make the dictionaries of `fit_varpro`.

    Parameters
    ----------
    protocol
        Times and frequency of the FIDs.
    basis
        Metabolites, one unit of amplitude each, free of decay.
    macromolecules
        Macromolecule components, or None.
    decay_rates
        Metabolite -> 1/T2* [1/s]; None: mean values of the brain at this field (`physics.brain_values`).
    typical
        Molecule -> amplitude in normal brain, for the first search, the macromolecule profile and the priors; None:
        values of `physics.brain_values`.
    nuisance
        Bands that absorb water, lipids and baseline; None: those of the nucleus (`nucleus_fit`), none but for 1H.
    lineshapes
        Allowed shifts and widths; None: those of the nucleus.
    macromolecule_freedom
        SD of each macromolecule's amplitude about its share of the profile, as a fraction of that share.
    metabolite_freedom
        SD of weak metabolites about their usual ratio to the others (`design.build_design`); inf: no prior.
    options
        Window, lineshape, groups with a shift of their own, first-order phase; None: the defaults.
    extend
        Adds columns of another method's to the design before anything is made of it; None: nothing is added.

    Returns
    -------
    VarproModel
        Ready for any number of images of this protocol.

    Raises
    ------
    DataError
        A basis does not fit the protocol, or the molecules of its nucleus are not known.
    ConfigError
        The options name a molecule that the basis lacks, or the window holds none of the spectrum.
    """
    options = options or FitOptions()
    assumed = fit_of(protocol)
    allowed = lineshapes or assumed.lineshapes
    nuisance = assumed.nuisance if nuisance is None else nuisance
    known_rates, known_amplitudes = brain_defaults(protocol, [*basis.names, *(macromolecules or basis).names])
    design = build_design(
        protocol,
        basis,
        macromolecules,
        decay_rates=known_rates if decay_rates is None else decay_rates,
        typical=known_amplitudes if typical is None else typical,
        macromolecule_freedom=macromolecule_freedom,
        metabolite_freedom=metabolite_freedom,
        free=assumed.free,
    )
    own = assumed.own_shift if assumed.own_shift is not None and assumed.own_shift.name in basis.names else None
    if own is not None:
        design = with_slope(protocol, design, own)
    if extend is not None:
        design = extend(design)
    freedom = make_freedom(
        options, design.names, protocol.times_s, allowed, WEAK_PRIOR, SMALLEST_SPREAD, SHAPE_TAILS
    )  # fmt: skip
    if own is not None and freedom.orders > 1:
        raise ConfigError(
            f"a phase of first order cannot be fitted beside a molecule that moves ({own.name}); leave it out"
        )
    expansion = expand_lineshapes(protocol.times_s, allowed, factors=_free_factors(freedom))
    sizes = np.where(design.typical > 0, design.typical, design.prior_sd)
    derived, middle_hz = time_derivatives(protocol.times_s, design.columns, sizes * np.isfinite(sizes), freedom.orders)
    # axes: time, order of the derivative, function of the expansion, column
    shaped = np.moveaxis(derived, 0, 1)[:, :, None, :] * expansion.functions.T[:, None, :, None]
    scales = [delay_scale(options.delay_ms, order) for order in range(freedom.orders)]
    weight = np.multiply.outer(scales, np.tile(sizes, (expansion.rank, 1))).ravel()
    shaped = shaped.reshape(protocol.n_times, -1)
    reach, reach_weight = _reach(protocol, design, assumed, own, expansion)
    coordinates = fid_coordinates(
        protocol,
        nuisance,
        np.concatenate([shaped, reach], axis=1),
        np.concatenate([weight, reach_weight]),
        window_ppm=options.window_ppm,
    )
    products = coordinates.columns(shaped).reshape(-1, freedom.orders * expansion.rank, len(design.names))
    products = products.transpose(1, 0, 2)
    dictionary = ShapedDictionary(
        expansion,
        allowed,
        np.ascontiguousarray(products, dtype=np.complex64),
        design.bounded,
        coordinates.n_dense,
        freedom,
    )
    templates = _templates(design, protocol.nucleus)
    composites = products[: expansion.rank] @ templates.T
    composites[:, : coordinates.n_skipped] = 0
    energy = np.linalg.norm(composites, axis=(0, 1))
    grid = build_grid(composites, expansion, allowed, energy / energy.sum())
    moving = None if own is None else prepare_moving_line(protocol, design, own, expansion, coordinates)
    return VarproModel(protocol, design, coordinates, dictionary, grid, templates, moving, options, middle_hz)


def _free_factors(freedom: Freedom) -> np.ndarray | None:
    """Return lineshapes (t, any) that a free lineshape may have beside shift and rates; None where it is not free."""
    which = [i for i, name in enumerate(freedom.names) if name.startswith("free")]
    if not which:
        return None
    draws = freedom.prior[1, which] * np.random.default_rng(0).standard_normal((_FREE_DRAWS, len(which)))
    return np.asarray(np.exp(draws @ freedom.functions[which]).T)


def usual_model(protocol: Protocol, options: FitOptions | None = None) -> VarproModel:
    """Return the fit's model of one echo time: the usual molecules of the nucleus as this protocol sees them.

    Parameters
    ----------
    protocol
        Of one echo time.
    options
        How free the fit is; None: as `FitOptions` has it.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    return prepare_varpro(protocol, *usual_basis(protocol), options=options)


def usual_basis(protocol: Protocol) -> tuple[BasisSet, BasisSet | None]:
    """Return the usual molecules of the nucleus as this protocol sees them, and its macromolecules, if it has any.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    macromolecules = None
    if nucleus_of(protocol).water_is_nuisance:
        macromolecules = relaxed(macromolecule_basis(protocol), macromolecule_weight(protocol))
    return relaxed(metabolite_basis(protocol)), macromolecules


def _reach(
    protocol: Protocol, design: Design, assumed: NucleusFit, own: OwnShift | None, expansion: LineshapeExpansion
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the coordinates must hold beside the columns of the design, (t, any), and its amplitudes.

    That is a molecule with its own shift at all its places, and lines within what is watched for unknown ones.
    """
    parts, weights = [np.zeros((protocol.n_times, 0), complex)], [np.zeros(0)]
    if own is not None:
        index = design.names.index(own.name)
        columns = slope_columns(protocol, design.columns[:, index], places_hz(protocol, own)[::4])[:, :, 0]
        parts.append((expansion.functions[:, None, :] * columns).reshape(-1, protocol.n_times).T)
        weights.append(np.full(parts[-1].shape[1], max(float(design.typical[index]), 1e-3)))
    if assumed.watched_ppm is not None:
        low, high = protocol.hz(np.array(assumed.watched_ppm))
        step = 0.5 / (protocol.n_times * protocol.dwell_s)
        exponents = 2j * np.pi * np.arange(low, high, step) - float(np.median(design.rates))
        parts.append(np.exp(protocol.times_s[:, None] * exponents))
        weights.append(np.full(len(exponents), _WATCHED * nucleus_of(protocol).strongest_signal))
    return np.concatenate(parts, axis=1), np.concatenate(weights)


def brain_defaults(protocol: Protocol, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return 1/T2* [1/s] and typical amplitude [mM] of molecules in a mixture of grey and white matter.

    Names without an entry in the table of the nucleus are left out.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    nucleus, field_t = nucleus_of(protocol), field_strength_t(protocol)
    rates, typical = {}, {}
    for name in names:
        if name in nucleus.values:
            rates[name] = float(np.mean([1 / nucleus.t2_star_s(name, tissue, field_t) for tissue in ("gm", "wm")]))
            typical[name] = float(np.mean([nucleus.concentration_mm(name, tissue) for tissue in ("gm", "wm")]))
        elif nucleus.water_is_nuisance and name in brain_values.MACROMOLECULE_MM:
            typical[name] = float(np.mean(brain_values.MACROMOLECULE_MM[name]))
    return rates, typical


def _templates(design: Design, nucleus: str) -> np.ndarray:
    """Composite spectra of the first search: the reported sums, all other metabolites, the macromolecules."""
    rows = []
    rest = np.arange(len(design.names)) < design.n_metabolites
    for weights in group_weights(design.names, nucleus).values():
        row = (weights > 0) & rest
        rows.append(row * design.typical)
        rest = rest & ~row
    rows.append(rest * design.typical)
    rows.append((np.arange(len(design.names)) >= design.n_metabolites) * design.typical)
    return np.array([row for row in rows if row.any()])
