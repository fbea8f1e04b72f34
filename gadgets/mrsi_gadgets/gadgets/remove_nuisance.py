"""Gadget `remove_nuisance`: metabolite data without water and lipids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.device_memory import here, with_memory
from mrsi_gadgets.gadgets.gadget import Gadget, handed_on
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.reconstruction.nuisance.removal import METHODS, Removal, remove_nuisance
from mrsi_gadgets.reconstruction.nuisance.strength import nuisance_strength

LEAST_POINTS = 64
"""FIDs that are shorter do not tell water, lipids and metabolites apart."""


@dataclass(frozen=True)
class RemoveNuisance(Gadget):
    """Water and scalp lipids out of the metabolite data, by HSVD, a union of subspaces or an L2 penalty; no mask."""

    element: ClassVar[str] = "remove_nuisance"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (KtData,)
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"method": METHODS}
    requires: ClassVar[tuple[str, ...]] = ("coil_maps",)

    method: str = "auto"
    """auto, hsvd (water only), union_of_subspaces (water and lipids) or l2 (lipids by penalty)."""
    always: bool = False
    """Remove them also where they are so weak that the learned basis and the fit take them."""

    def prepare(self, context: Context) -> tuple[Subspace, ...]:
        """Learn the subspace of metabolites (of each echo), which must not be touched, before the data are there."""
        if context.protocol.nucleus != "1H":
            return ()
        return tuple(context.subspace(echo) for echo in range(context.protocol.n_echoes))

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Yield metabolite data without nuisance; everything else passes, as do nuclei without water and lipids."""
        for item in items:
            if not (isinstance(item, KtData) and item.role is Role.METABOLITE) or context.protocol.nucleus != "1H":
                yield item
                continue
            item = here(context, item)
            with context.report.timed("strength of nuisance"):
                strength = nuisance_strength(item, *context.calibration.encoding())
            short = int(item.samples.shape[-1]) < LEAST_POINTS
            if short or (strength.weak and not self.always):
                context.report.provenance["nuisance"] = {
                    "method": "none", "asked": self.method,
                    "reason": "too few points" if short else "weak: the learned basis and the fit take it",
                    "water_over_metabolites": round(strength.water, 2),
                    "lipids_over_metabolites": round(strength.lipids, 2),
                }  # fmt: skip
                ready = [item]
                del item
                yield from handed_on(ready)
                continue
            learned = context.prepared[self].result()[item.echo]
            with context.report.timed("remove nuisance"):
                done = with_memory(context, self.element, item, partial(self._removed, learned, context))
            del item
            context.report.provenance["nuisance"] = done.provenance
            after, before = done.after, done.before
            context.progress(
                f"nuisance removed ({done.method}): water {before.water:.1f} to {after.water:.1f} and lipids "
                f"{before.lipids:.1f} to {after.lipids:.1f} times the noise in the brain"
            )
            ready = [done.kt]
            del done
            yield from handed_on(ready)

    def _removed(self, learned: Subspace, context: Context, item: KtData) -> Removal:
        return remove_nuisance(
            item,
            *context.calibration.encoding(),
            model=learned,
            method=self.method,
            water=context.calibration.water,
            reference=context.calibration.water_image,
        )
