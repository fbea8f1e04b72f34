"""Gadget `field_map`: what the water reference says about field, coils, phase and anatomy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget, handed_on
from mrsi_gadgets.physics.nucleus import calibration_line, nucleus_of
from mrsi_gadgets.reconstruction.field_map import (
    FieldMap,
    correct_eddy_currents,
    field_map_from_residual_water,
    field_map_from_strongest_line,
    field_map_from_water,
)
from mrsi_gadgets.reconstruction.odd_even import OddEven, correct_odd_even, find_odd_even, is_alternating


@dataclass(frozen=True)
class EstimateFieldMap(Gadget):
    """B0, coil maps, phase, mask and water amplitude from the water reference, else from residual water."""

    element: ClassVar[str] = "field_map"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (KtData,)
    requires: ClassVar[tuple[str, ...]] = ("noise_covariance",)
    provides: ClassVar[tuple[str, ...]] = ("b0_hz", "coil_maps", "mask")

    eddy_currents: bool = True
    """Take the phase course that all voxels of the reference share out of the metabolite data."""

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Consume the water reference, fill the calibration, yield the metabolite data without eddy-current phase."""
        found: FieldMap | None = None
        lobes: OddEven | None = None
        for item in items:
            if isinstance(item, KtData) and is_alternating(item):
                lobes = lobes or self._lobes(item, context)
                item = correct_odd_even(item, lobes)
            if isinstance(item, KtData) and item.role is Role.WATER_REFERENCE:
                with context.report.timed("field_map"):
                    found = field_map_from_water(item, eddy_currents=self.eddy_currents)
                self._keep(found, context)
            elif isinstance(item, KtData) and item.role is Role.METABOLITE:
                if found is None:
                    with context.report.timed("field_map"):
                        found = self._without_reference(item, context)
                    self._keep(found, context)
                ready = [
                    correct_eddy_currents(item, found, overwrite=context.may_overwrite)
                    if found.eddy_phase.any()
                    else item
                ]
                del item
                yield from handed_on(ready)
            else:
                yield item

    @staticmethod
    def _lobes(item: KtData, context: Context) -> OddEven:
        """Learn what differs between odd and even lobes from the first data that have both."""
        lobes = find_odd_even(item)
        cells = lobes.shift_per_m * item.protocol.geometry.fov_mm[0] * 1e-3
        context.report.provenance["odd_even"] = {
            "from": item.role.value, "phase_rad": round(lobes.phase_rad, 4), "shift_cells": round(cells, 4),
            "coherence": round(lobes.coherence, 3),
        }  # fmt: skip
        context.progress(f"reversed lobes: phase {lobes.phase_rad:.2f} rad, shift {cells:.2f} points of k-space")
        return lobes

    @staticmethod
    def _without_reference(item: KtData, context: Context) -> FieldMap:
        """Return the field map of metabolite data: of residual water, or of other nuclei's strongest line."""
        if not nucleus_of(item.protocol).water_is_nuisance:
            ppm, t2_star_s = calibration_line(item.protocol)
            return field_map_from_strongest_line(item, ppm, t2_star_s=t2_star_s)
        found = field_map_from_residual_water(item)
        context.report.warn(
            "no water reference: B0, coil maps and phase come from residual water, and maps are not in units of water"
        )
        return found

    @staticmethod
    def _keep(found: FieldMap, context: Context) -> None:
        calibration = context.calibration
        calibration.b0_hz, calibration.coil_maps = found.b0_hz, found.coil_maps
        calibration.mask, calibration.water = found.mask, found.water
        for name in ("b0_hz", "coil_maps", "mask", "water"):
            calibration.source[name] = found.source
        context.report.provenance["field_map"] = found.source
        if context.on_calibration is not None:
            context.on_calibration()
        context.progress(f"field map from {found.source}: {int(found.mask.sum())} voxels")
