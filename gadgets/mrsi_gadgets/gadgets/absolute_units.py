"""Gadget `absolute_units`: concentrations beside the amounts, by the water of the same voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mrsi_gadgets.data import Maps, Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget, choice
from mrsi_gadgets.io.volumes import read_tissue, read_volume
from mrsi_gadgets.quantification.absolute import (
    MOLAR,
    UNITS,
    assumptions,
    concentration_names,
    why_not,
    with_concentrations,
)
from mrsi_gadgets.quantification.tissue import ASSUMED, Tissue, Volume, on_grid_of, tissue_on_grid

_B1_RANGE = (0.1, 3.0)
"""Plausible median of the real flip angle over the nominal one; percent or degrees lie far outside."""


@dataclass(frozen=True)
class Given:
    """What the operator gave beside the scan."""

    tissue: tuple[Volume, Volume, Volume] | None
    b1: Volume | None


@dataclass(frozen=True)
class AbsoluteUnits(Gadget):
    """Concentrations in mM (NAME_mM) by tissue water, with relaxation; none, and the reason, where something lacks."""

    element: ClassVar[str] = "absolute_units"
    accepts: ClassVar[tuple[type, ...]] = (Maps,)
    produces: ClassVar[tuple[type, ...]] = (Maps,)

    files: ClassVar[tuple[str, ...]] = ("tissue", "b1")

    units: tuple[str, ...] = (MOLAR,)
    """mM (per litre of tissue), molal (per kg of its water), or both."""
    tissue: tuple[str, ...] = ()
    """NIfTI maps of the fractions of grey matter, white matter and CSF, in this order, or one folder that holds them;
    none: what `mrsi replay --tissue` gave, else 60 % grey and 40 % white matter everywhere."""
    b1: str = ""
    """NIfTI map of the real flip angle over the nominal one; none: that of `mrsi replay --b1`, else 1 everywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.units:
            raise ConfigError(f"units is empty; choose from {', '.join(UNITS)}")
        for unit in self.units:
            choice("units", unit, UNITS)

    def prepare(self, context: Context) -> Given:
        """Read the files that were given, so that a wrong one is refused before the data are there.

        Raises
        ------
        ConfigError
            A file cannot be read.
        """
        if context.map_names is not None and not why_not(context.protocol):
            context.map_names += concentration_names(context.map_names, self.units)
        tissue, b1 = self.tissue or context.tissue, self.b1 or context.b1
        return Given(read_tissue(tissue) if tissue else None, read_volume(Path(b1)) if b1 else None)

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Add concentrations to the maps of each frame."""
        placed: tuple[Tissue, np.ndarray | None] | None = None
        for item in items:
            if not isinstance(item, Maps):
                yield item
                continue
            calibration = context.calibration
            given = context.prepared[self].result()  # also where it is not used: a wrong file is never passed over
            reason = why_not(item.protocol, has_water=calibration.water is not None)
            if reason or calibration.water is None:
                if context.report.provenance.get("absolute_units") != {"none": reason}:
                    context.report.provenance["absolute_units"] = {"none": reason}
                    context.progress(reason)
                if self.tissue or self.b1 or context.tissue or context.b1:
                    context.report.warn(reason)
                yield item
                continue
            with context.report.timed("absolute_units"):
                if placed is None:
                    placed = _placed(given, item.protocol, item.mask)
                tissue, b1 = placed
                water = calibration.water_protocol or item.protocol
                made = with_concentrations(item, calibration.water, water, tissue=tissue, b1=b1, units=self.units)
            told = assumptions(item.protocol, water, tissue, b1)
            context.report.provenance["absolute_units"] = told
            _tell_uncovered(tissue, item.mask, context)
            yield replace(made, provenance={**item.provenance, "absolute_units": told})


def _placed(given: Given, protocol: Protocol, mask: np.ndarray) -> tuple[Tissue, np.ndarray | None]:
    """Bring what was given onto the grid of the spectra, whose place the readouts have told.

    Raises
    ------
    DataError
        The fractions or the B1 map cannot be what they are said to be.
    """
    tissue = ASSUMED if given.tissue is None else tissue_on_grid(given.tissue, protocol)
    if given.b1 is None:
        return tissue, None
    b1 = on_grid_of(given.b1, protocol, resolve=False)
    inside = b1[mask & (b1 > 0)]
    middle = float(np.median(inside)) if inside.size else 0.0
    if not _B1_RANGE[0] < middle < _B1_RANGE[1]:
        raise DataError(
            f"the B1 map {given.b1.name} has a median of {middle:g} in the brain; give the real flip angle over the "
            "nominal one, which is near 1 (divide percent by 100, degrees by the nominal angle)"
        )
    # where it has no value (skull, noise), the nominal flip angle stands
    return tissue, np.where(b1 > _B1_RANGE[0], b1, 1.0)


_COVERED = 0.5
_MOST_UNCOVERED = 0.2


def _tell_uncovered(tissue: Tissue, mask: np.ndarray, context: Context) -> None:
    """Say where the fractions hold no tissue in many voxels that have spectra: they may be of another scan."""
    if not tissue.known or not mask.any():
        return
    total = tissue.grey + tissue.white + tissue.csf
    share = float(np.mean(total[mask] < _COVERED))
    if share > _MOST_UNCOVERED:
        context.report.warn(
            f"the tissue fractions hold less than half a voxel of brain in {share:.0%} of the voxels with spectra; "
            "check that they belong to this subject and session"
        )
