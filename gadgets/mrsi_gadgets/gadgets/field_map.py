"""Gadget `field_map`: what the water reference says about field, coils, phase and anatomy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from mrsi_gadgets.data import KtData, Role, SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.device_memory import with_memory
from mrsi_gadgets.gadgets.gadget import Gadget, handed_on
from mrsi_gadgets.physics.nucleus import calibration_line, nucleus_of
from mrsi_gadgets.reconstruction.calibrated_centre import calibrated_centre, centre_size, missing_share
from mrsi_gadgets.reconstruction.field_map import (
    FieldMap,
    correct_eddy_currents,
    field_map_from_residual_water,
    field_map_from_strongest_line,
    field_map_from_water,
)
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.gridding import on_grid
from mrsi_gadgets.reconstruction.odd_even import OddEven, correct_odd_even, find_odd_even, is_alternating

TOLD_MISSING = 0.02
"""Part of a water reference's k-space, within the ellipse, from which on it is told that it is missing."""
ALIASED_MISSING = 0.25
"""Part from which on the image is not trusted and its fully sampled centre is taken alone."""
MOST_MISSING = 0.5
"""Part that may be missing where the centre is not complete either."""


@dataclass(frozen=True)
class EstimateFieldMap(Gadget):
    """B0, coil maps, phase, mask and water amplitude from the water reference, else from residual water.

    Where the data are undersampled and there is no water reference, from the fully sampled centre of k-space:
    calibration readouts, or the metabolites' own.
    """

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
        calibration: KtData | None = None
        for item in items:
            if isinstance(item, KtData) and is_alternating(item):
                lobes = lobes or self._lobes(item, context)
                item = correct_odd_even(item, lobes)
            if isinstance(item, KtData) and item.role is Role.WATER_REFERENCE:
                with context.report.timed("field_map"):
                    trusted = self._trusted(item, context)
                    find = partial(field_map_from_water, eddy_currents=self.eddy_currents)
                    found = with_memory(context, self.element, trusted, find)
                    self._keep_water(item, trusted, found, context)
                context.calibration.water_protocol = item.protocol.of_echo(item.echo)
                del trusted
                self._keep(found, context)
            elif isinstance(item, KtData) and item.role is Role.CALIBRATION:
                # needed only where metabolites come without a water reference
                calibration = item if found is None else None
            elif isinstance(item, KtData) and item.role is Role.METABOLITE:
                if found is None:
                    with context.report.timed("field_map"):
                        found = self._without_reference(item, calibration, context)
                    calibration = None
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
    def _trusted(water: KtData, context: Context) -> KtData:
        """Return what of a water reference shows one head: all of it, or its fully sampled centre.

        Raises
        ------
        DataError
            More than half of it is missing, and its centre has gaps too.
        """
        missing = missing_share(water)
        if missing <= TOLD_MISSING:
            return water
        centre = calibrated_centre(water) if missing > ALIASED_MISSING else None
        if centre is not None:
            context.report.warn(
                f"{missing:.0%} of the water reference's k-space is missing; field, coils and water come from its "
                f"fully sampled centre of {centre_size(water)} points and are coarse"
            )
            return centre
        if missing > MOST_MISSING:
            raise DataError(
                f"{missing:.0%} of the water reference's k-space is missing and its centre has gaps too, so its image "
                "is aliased; acquire all of it, or at least a centre without gaps, or leave it out"
            )
        context.report.warn(
            f"{missing:.0%} of the water reference's k-space is missing; field, coils and water are blurred by it"
        )
        return water

    @staticmethod
    def _without_reference(item: KtData, calibration: KtData | None, context: Context) -> FieldMap:
        """Return the field map of metabolite data: of residual water, or of other nuclei's strongest line.

        Of incomplete data it is that of the fully sampled centre of k-space; residual water is looked for under a Hann
        window in any case.
        """
        taken, where = item, ""
        missing = missing_share(item)
        if missing > TOLD_MISSING:
            source = item if calibration is None else calibration
            centre = calibrated_centre(source)
            if centre is not None:
                name = "calibration readouts" if source is calibration else "centre of k-space"
                taken, where = centre, f" of the {name} ({centre_size(source)} points)"
            else:
                context.report.warn(
                    f"{missing:.0%} of k-space is missing, there is no water reference and no fully sampled centre: "
                    "field and coils come from an image that may be aliased; acquire a water reference or calibration "
                    "readouts"
                )
        if not nucleus_of(item.protocol).water_is_nuisance:
            ppm, t2_star_s = calibration_line(item.protocol)
            found = field_map_from_strongest_line(taken, ppm, t2_star_s=t2_star_s)
            return replace(found, source=found.source + where)
        if taken is item and missing <= TOLD_MISSING:
            # residual water is weak: side lobes of stronger neighbours would pass for it
            taken = calibrated_centre(on_grid(item) if item.grid is None else item) or item
        found = field_map_from_residual_water(taken)
        context.report.warn(
            f"no water reference: B0, coil maps and phase come from residual water{where}, and maps are not in units "
            "of water"
        )
        return replace(found, source=found.source + where)

    @classmethod
    def _keep_water(cls, item: KtData, trusted: KtData, found: FieldMap, context: Context) -> None:
        """Keep the reference's FIDs where water in the metabolite data needs them, or the result is to have them."""
        wanted = trusted is item and context.protocol.water_suppressed is not True
        if wanted or context.keep_water:
            image = cls._water_image(trusted, found, context)
            context.calibration.water_image = image if wanted else None
            context.calibration.water_fids = image if context.keep_water else None

    @staticmethod
    def _water_image(item: KtData, found: FieldMap, context: Context) -> SpectralImage:
        """Return the reference's FIDs: what unsuppressed water in the metabolite data looks like."""
        still = correct_eddy_currents(item, found, overwrite=context.may_overwrite)
        return reconstruct_fourier(still, found.coil_maps, found.b0_hz, found.mask)

    @staticmethod
    def _keep(found: FieldMap, context: Context) -> None:
        calibration = context.calibration
        calibration.b0_hz, calibration.coil_maps = found.b0_hz, found.coil_maps
        calibration.mask, calibration.water = found.mask, found.water
        calibration.water_line = found.line
        for name in ("b0_hz", "coil_maps", "mask", "water"):
            calibration.source[name] = found.source
        context.report.provenance["field_map"] = found.source
        if context.on_calibration is not None:
            context.on_calibration()
        context.progress(f"field map from {found.source}: {int(found.mask.sum())} voxels")
