"""What a fit assumes that depends on the nucleus: nuisance bands, ranges of the lineshape, sums and ratios.

Protons lie over residual water, lipids and macromolecules; phosphorus and deuterium over nothing. Where there is no
water reference to divide by, amounts are given relative to a line of the same spectrum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics.nucleus import NUCLEI, nucleus_of
from mrsi_gadgets.physics.phosphorus import PHOSPHATE_PPM, PHOSPHATE_REACH_PPM, SHIFT_PPM_SD
from mrsi_gadgets.quantification.design import FREE_METABOLITES, PROTON_NUISANCE, NuisanceBand
from mrsi_gadgets.quantification.lineshape_search import LineshapeRange


@dataclass(frozen=True)
class OwnShift:
    """A molecule whose line moves from voxel to voxel against all others, and how far."""

    name: str
    ppm: float
    """Where the basis set has it."""
    reach_ppm: float
    """Largest distance to either side [ppm]."""
    sd_ppm: float
    """SD of the Gaussian prior of that distance [ppm]."""


@dataclass(frozen=True)
class NucleusFit:
    """Assumptions of the fit for one nucleus."""

    nuisance: tuple[NuisanceBand, ...]
    lineshapes: LineshapeRange
    ratio_to: tuple[str, ...]
    """Sums or molecules that all others are also given relative to, as NAME_per_WHAT."""
    free: frozenset[str]
    """Molecules whose amounts have no prior; the others lean on their usual ratio."""
    counted: str
    """What amounts of unknown lines count."""
    own_shift: OwnShift | None = None
    watched_ppm: tuple[float, float] | None = None
    """Where lines that no molecule has are looked for although no molecule reaches all of it; elsewhere only beside the
    molecules. (The baseline of protons covers their whole range.)"""


_FITS: Mapping[str, NucleusFit] = {
    "1H": NucleusFit(PROTON_NUISANCE, LineshapeRange(), ("tCr",), FREE_METABOLITES, "protons"),
    # UDPG hides below NAD, which hides below alpha-ATP; a prior on NADH as well would understate the error of tNAD
    "31P": NucleusFit(
        (),
        LineshapeRange(15.0, 5.0, (-6.0, 60.0), (0.0, 1800.0)),
        ("ATP", "PCr"),
        frozenset(NUCLEI["31P"].usual) - {"UDPG"},
        "phosphorus nuclei",
        OwnShift("Pi", PHOSPHATE_PPM, PHOSPHATE_REACH_PPM, SHIFT_PPM_SD["Pi"]),
        (1.5, 8.0),  # membrane phospholipids, phosphoenolpyruvate, diphosphoglycerate of blood, sugar phosphates
    ),
    "2H": NucleusFit(
        (),
        LineshapeRange(8.0, 4.0, (-6.0, 60.0), (0.0, 900.0)),
        ("HDO",),
        frozenset(NUCLEI["2H"].usual),
        "deuterons",
        watched_ppm=(0.5, 6.0),
    ),
}


def fit_of(protocol: Protocol) -> NucleusFit:
    """Return the assumptions for a protocol's nucleus.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    return _FITS[nucleus_of(protocol).name]
