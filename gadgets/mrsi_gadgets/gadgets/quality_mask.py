"""Gadget `quality_mask`: what of the maps is fit to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mrsi_gadgets.data import Maps
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.quantification.display_mask import QUALITY_MASK, Limits, with_quality

MANY_HIDDEN = 0.5
"""Share of the fitted voxels from which on it is told that they are hidden."""


@dataclass(frozen=True)
class QualityMask(Gadget):
    """Hide voxels from pictures by SNR, line width, uncertainty and lipids; maps keep them, map `quality` says why."""

    element: ClassVar[str] = "quality_mask"
    accepts: ClassVar[tuple[type, ...]] = (Maps,)
    produces: ClassVar[tuple[type, ...]] = (Maps,)

    snr: float = 3.0
    """Least SNR of the strongest peak (NAA); 0: no limit."""
    linewidth_ppm: float = 0.15
    """Largest line width, full at half maximum [ppm]; 0: no limit."""
    relative_sd: float = 0.5
    """Largest standard deviation as a share of the map's median, map by map; 0: no limit."""
    lipids: float = 1.0
    """Highest residual lipid peak over the strongest peak; 0: no limit."""
    flagged: bool = False
    """Hide also what the fit (map fit_flag) or a learned model (outside_model) does not describe. A lesion may be such
    a place, so that it is shown unless this is asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("snr", "linewidth_ppm", "relative_sd", "lipids"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} is {value:g}; it must be positive, or 0 for no limit")

    def prepare(self, context: Context) -> None:
        """Tell that there will be a map of the quality."""
        if context.map_names is not None and QUALITY_MASK not in context.map_names:
            context.map_names = (*context.map_names, QUALITY_MASK)

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Add the mask of what is displayed to maps."""
        limits = Limits(self.snr, self.linewidth_ppm, self.relative_sd, self.lipids, self.flagged)
        for item in items:
            if not isinstance(item, Maps):
                yield item
                continue
            maps = with_quality(item, limits, tuple(nucleus_of(item.protocol).sums))
            told = maps.provenance["quality_mask"]
            share = told["hidden_voxels"] / max(int(item.mask.sum()), 1)
            if share > MANY_HIDDEN:
                most = max(told["voxels"], key=lambda reason: told["voxels"][reason])
                context.report.warn(
                    f"the quality mask hides {share:.0%} of the voxels in pictures, most for: {most}; files keep "
                    f"whole maps; its limits are attributes of <{self.element}>"
                )
            context.progress(f"frame {item.frame}: {told['hidden_voxels']} voxels hidden by the quality mask")
            yield maps
