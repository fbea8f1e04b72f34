"""Gadget `grid`: non-Cartesian samples become a Cartesian grid, on which the rest of the chain works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget, handed_on
from mrsi_gadgets.reconstruction.gridding import on_grid


@dataclass(frozen=True)
class Grid(Gadget):
    """Bring rings to a Cartesian grid (in-lap phase, density, adjoint NUFFT); Cartesian data pass as they are."""

    element: ClassVar[str] = "grid"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (KtData,)

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Yield water reference and metabolites on a grid, everything else untouched."""
        for item in items:
            if isinstance(item, KtData) and item.role is not Role.NOISE and item.grid is None:
                with context.report.timed("grid"):
                    gridded = on_grid(item)
                context.report.provenance["gridding"] = "in-lap linear phase, ring density, adjoint NUFFT"
                context.progress(f"{item.role.value.replace('_', ' ')}: {item.protocol.encoding} gridded")
                ready = [gridded]
                del gridded
            else:
                ready = [item]
            del item
            yield from handed_on(ready)
