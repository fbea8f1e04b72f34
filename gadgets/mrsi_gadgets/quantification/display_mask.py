"""Quality mask: which voxels of a map are fit to be looked at, and why the others are not.

Nothing is taken from the maps themselves: what is hidden is hidden in pictures only, and the map `quality` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.data import DisplayMask, Map, Maps, Protocol
from mrsi_gadgets.quantification.quality import FLAG
from mrsi_gadgets.quantification.signal_quality import LIPIDS, SNR

QUALITY_MASK = "quality"
"""Name of the map."""
REASONS = {
    "SNR": 1, "line width": 2, "deviations": 4, "lipids": 8, "fit does not describe it": 16, "outside of the model": 32,
}  # fmt: skip
"""Reason -> its number; a voxel's value in the map is their sum, 0 where nothing is wrong."""


@dataclass(frozen=True)
class Limits:
    """What a voxel must keep; 0 turns a limit off."""

    snr: float = 3.0
    """Least SNR of the strongest peak."""
    linewidth_ppm: float = 0.15
    """Largest full width at half maximum."""
    relative_sd: float = 0.5
    """Largest standard deviation of a map, as a share of the map's median."""
    lipids: float = 1.0
    """Highest lipid peak over the strongest peak."""
    flagged: bool = False
    """Whether voxels that the fit or a learned model does not describe are hidden too (they are told either way)."""

    def rule(self, protocol: Protocol) -> str:
        """Return the limits in words."""
        hz = self.linewidth_ppm * protocol.transmit_frequency_hz * 1e-6
        parts = [
            f"SNR at least {self.snr:g}" if self.snr else "",
            f"line width at most {self.linewidth_ppm:g} ppm ({hz:.3g} Hz)" if self.linewidth_ppm else "",
            f"SD at most {self.relative_sd:g} of the map's median" if self.relative_sd else "",
            f"lipids at most {self.lipids:g} of the strongest peak" if self.lipids else "",
            "described by the fit and its model" if self.flagged else "",
        ]
        return ", ".join(part for part in parts if part) or "none"


def with_quality(maps: Maps, limits: Limits, sums: tuple[str, ...]) -> Maps:
    """Return the maps with the map `quality` and the mask of what is displayed.

    Parameters
    ----------
    maps
        With `snr`, `linewidth` and what else the fit gives; a limit whose map is not there does not count.
    limits
        What a voxel must keep.
    sums
        Maps whose deviations judge a voxel: it fails where all of them are too uncertain. Each map is further judged by
        its own deviation when it is displayed.
    """
    mask = maps.mask
    values = {name: np.where(mask, one.value, np.nan) for name, one in maps.maps.items()}
    reasons = {reason: np.zeros(mask.shape, bool) for reason in REASONS}

    def fails(reason: str, name: str, limit: float, *, least: bool = False) -> None:
        if limit and name in values:
            with np.errstate(invalid="ignore"):
                reasons[reason] |= ~((values[name] >= limit) if least else (values[name] <= limit))

    hz_per_ppm = maps.protocol.transmit_frequency_hz * 1e-6
    fails("SNR", SNR, limits.snr, least=True)
    fails("line width", "linewidth", limits.linewidth_ppm * hz_per_ppm)
    fails("lipids", LIPIDS, limits.lipids)
    for name in (FLAG, "outside_model"):
        reason = "fit does not describe it" if name == FLAG else "outside of the model"
        if name in values:
            reasons[reason] |= np.nan_to_num(values[name]) > 0
    judged = [maps.maps[name] for name in sums if name in maps.maps and maps.maps[name].sd is not None]
    plain = DisplayMask(mask, limits.relative_sd, "")
    if judged and limits.relative_sd:
        reasons["deviations"] |= ~np.any([plain.keeps(one) for one in judged], axis=0)
    code = sum(number * (reasons[reason] & mask) for reason, number in REASONS.items())
    told = ("SNR", "line width", "deviations", "lipids", *(REASONS if limits.flagged else ()))
    hidden = np.any([reasons[reason] for reason in dict.fromkeys(told)], axis=0)
    rule = limits.rule(maps.protocol)
    words = ", ".join(f"{number} {reason}" for reason, number in REASONS.items())
    quality = Map(np.where(mask, code, np.nan).astype(np.float32), f"1 (0 good, else the sum of {words})")
    provenance: Mapping[str, object] = {
        **maps.provenance,
        "quality": rule,
        "quality_mask": {
            "relative_sd": limits.relative_sd,
            "hidden_voxels": int(np.sum(hidden & mask)),
            "voxels": {reason: int(np.sum(where & mask)) for reason, where in reasons.items()},
            "codes_that_hide": sum(REASONS[reason] for reason in dict.fromkeys(told)),
        },
    }
    return replace(
        maps,
        maps={**maps.maps, QUALITY_MASK: quality},
        display=DisplayMask(mask & ~hidden, limits.relative_sd, rule),
        provenance=provenance,
    )
