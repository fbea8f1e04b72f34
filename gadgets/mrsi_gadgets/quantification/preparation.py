"""Everything of the fit that is known before the data: design, coordinates and dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.quantification.coordinates import Coordinates, fid_coordinates
from mrsi_gadgets.quantification.design import GROUPS, PROTON_NUISANCE, Design, NuisanceBand, build_design
from mrsi_gadgets.quantification.lineshape_search import (
    LineshapeGrid,
    LineshapeRange,
    build_grid,
    expand_lineshapes,
)
from mrsi_gadgets.quantification.refinement import ShapedDictionary

if TYPE_CHECKING:
    from mrsi_gadgets.physics.basis import BasisSet

_PROTON_MHZ_PER_T = 42.577


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


def prepare_varpro(
    protocol: Protocol,
    basis: BasisSet,
    macromolecules: BasisSet | None,
    *,
    decay_rates: Mapping[str, float] | None = None,
    typical: Mapping[str, float] | None = None,
    nuisance: Sequence[NuisanceBand] = PROTON_NUISANCE,
    lineshapes: LineshapeRange | None = None,
    macromolecule_freedom: float = 0.25,
    metabolite_freedom: float = 0.5,
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
        Bands that absorb water, lipids and baseline.
    lineshapes
        Allowed shifts and widths.
    macromolecule_freedom
        SD of each macromolecule's amplitude about its share of the profile, as a fraction of that share.
    metabolite_freedom
        SD of weak metabolites about their usual ratio to the others (`design.build_design`); inf: no prior.

    Returns
    -------
    VarproModel
        Ready for any number of images of this protocol.

    Raises
    ------
    DataError
        A basis does not fit the protocol.
    """
    allowed = lineshapes or LineshapeRange()
    known_rates, known_amplitudes = brain_defaults(protocol, [*basis.names, *(macromolecules or basis).names])
    design = build_design(
        protocol,
        basis,
        macromolecules,
        decay_rates=known_rates if decay_rates is None else decay_rates,
        typical=known_amplitudes if typical is None else typical,
        macromolecule_freedom=macromolecule_freedom,
        metabolite_freedom=metabolite_freedom,
    )
    expansion = expand_lineshapes(protocol.times_s, allowed)
    shaped = (expansion.functions.T[:, :, None] * design.columns[:, None, :]).reshape(protocol.n_times, -1)
    weight = np.tile(np.where(design.typical > 0, design.typical, design.prior_sd), expansion.rank)
    coordinates = fid_coordinates(protocol, nuisance, shaped, weight)
    products = coordinates.columns(shaped).reshape(-1, expansion.rank, len(design.names)).transpose(1, 0, 2)
    dictionary = ShapedDictionary(
        expansion, allowed, np.ascontiguousarray(products, dtype=np.complex64), design.bounded, coordinates.n_dense
    )
    templates = _templates(design)
    composites = products @ templates.T
    composites[:, : coordinates.n_skipped] = 0
    energy = np.linalg.norm(composites, axis=(0, 1))
    grid = build_grid(composites, expansion, allowed, energy / energy.sum())
    return VarproModel(protocol, design, coordinates, dictionary, grid, templates)


def brain_defaults(protocol: Protocol, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return 1/T2* [1/s] and typical amplitude [mM] of molecules in a mixture of grey and white matter.

    Names without an entry in the table are left out; for other nuclei than 1H there are no entries.
    """
    if protocol.nucleus != "1H":
        return {}, {}
    field_t = protocol.field_strength_t or protocol.transmit_frequency_hz * 1e-6 / _PROTON_MHZ_PER_T
    rates, typical = {}, {}
    for name in names:
        if name in brain_values.BRAIN:
            rates[name] = float(np.mean([1 / brain_values.t2_star_s(name, tissue, field_t) for tissue in ("gm", "wm")]))
            typical[name] = float(np.mean([brain_values.concentration_mm(name, tissue) for tissue in ("gm", "wm")]))
        elif name in brain_values.MACROMOLECULE_MM:
            typical[name] = float(np.mean(brain_values.MACROMOLECULE_MM[name]))
    return rates, typical


def _templates(design: Design) -> np.ndarray:
    """Composite spectra of the first search: the sums of `GROUPS`, all other metabolites, the macromolecules."""
    names = np.array(design.names)
    rows = []
    rest = np.arange(len(names)) < design.n_metabolites
    for members in GROUPS.values():
        row = np.isin(names, members) & rest
        rows.append(row * design.typical)
        rest = rest & ~row
    rows.append(rest * design.typical)
    rows.append((np.arange(len(names)) >= design.n_metabolites) * design.typical)
    return np.array([row for row in rows if row.any()])
