"""The gadgets a recipe can name: one line each."""

from __future__ import annotations

from mrsi_gadgets.gadgets.absolute_units import AbsoluteUnits
from mrsi_gadgets.gadgets.combine_coils import CombineCoils
from mrsi_gadgets.gadgets.console_images import ConsoleImages
from mrsi_gadgets.gadgets.correct_drift import CorrectDrift
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.quality_mask import QualityMask
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.remove_nuisance import RemoveNuisance

GADGETS: dict[str, type[Gadget]] = {
    gadget.element: gadget
    for gadget in (
        Prewhiten,
        CorrectDrift,
        EstimateFieldMap,
        CombineCoils,
        RemoveNuisance,
        Reconstruct,
        Quantify,
        AbsoluteUnits,
        QualityMask,
        ConsoleImages,
    )
}
"""XML element -> gadget, in the order of the data."""
