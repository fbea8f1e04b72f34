"""How well each voxel's spectrum is described, and which voxels are not to be trusted.

Two things tell of a molecule that the model lacks, or of a lineshape that it cannot make: the residual is larger than
that of most voxels (in the voxel, or in it and its neighbours together), and it is not white: some frequency stands out
of it. Both are judged against the other voxels of the scan, because a spatial prior leaves less than the noise of the
samples, and a model that is slightly wrong everywhere a little more. Values at the end of their range tell of a search
that failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mrsi_gadgets.data import Map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrsi_gadgets.quantification.freedom import Freedom
    from mrsi_gadgets.quantification.unmodelled import UnmodelledLine

QUALITY, FLAG = "fit_quality", "fit_flag"
"""Names of the maps."""
_DEVIATIONS = 6.0
"""Robust standard deviations of the squared residual over the voxels that are too much."""
_LARGER = 1.08
"""Least residual over the usual one of a voxel that is flagged for its size."""
_MATTERS = 0.5
"""Least squared residual over the noise of the samples: a spatial prior leaves a tenth, and what stands out of that is
far below what the errors of the maps are made of."""
_WITH_NEIGHBOURS, _BESIDE = 5.0, 1.5
"""The same of the mean over a voxel and its neighbours, and what the voxel itself must have then."""
_FALSE_ALARMS = 0.01
"""How many voxels of a scan pure noise may flag for a frequency that stands out."""
_STANDS_OUT = 5.0
"""Least strength of that frequency over the usual one."""
_AT_END = 0.999


@dataclass(frozen=True, eq=False)
class Evidence:
    """What stands out of the residual of the first pass."""

    strongest: np.ndarray
    """(voxel,) largest likelihood ratio of one line that molecules could not explain; exp(-x / 2) is its chance."""
    tried: int
    """Lines that were tried in each voxel."""


@dataclass(frozen=True, eq=False)
class FitQuality:
    """Judgement of a list of voxels."""

    quality: np.ndarray
    """(voxel,) usual residual over the voxel's own, at most 1."""
    reasons: dict[str, np.ndarray]
    """Reason -> (voxel,) bool."""

    @property
    def flagged(self) -> np.ndarray:
        """(voxel,) bool: for any reason."""
        return np.any(list(self.reasons.values()), axis=0)

    def maps(self, shape: tuple[int, ...], inside: np.ndarray) -> dict[str, Map]:
        """Return the two maps, (x, y, z), of the voxels with the flat indices `inside`."""
        found = {}
        for name, values, unit in (
            (QUALITY, self.quality, "1 (usual residual over the voxel's)"),
            (FLAG, self.flagged, "1 (1: the model does not describe this voxel)"),
        ):
            volume = np.full(int(np.prod(shape)), np.nan, np.float32)
            volume[inside] = values
            found[name] = Map(volume.reshape(shape), unit)
        return found

    def counts(self) -> dict[str, int]:
        """Return how many voxels each reason flags."""
        return {reason: int(np.sum(where)) for reason, where in self.reasons.items()}


def judge(
    misfit: np.ndarray,
    shape: np.ndarray,
    freedom: Freedom,
    mask: np.ndarray,
    lines: Sequence[UnmodelledLine] = (),
    evidence: Evidence | None = None,
) -> FitQuality:
    """Judge the fit of each voxel.

    Parameters
    ----------
    misfit
        (voxel,) root mean square of the whitened residual.
    shape
        (voxel, parameter) of the lineshape.
    freedom
        Its ranges.
    mask
        (x, y, z) bool: where the voxels lie.
    lines
        Lines beyond the model that were fitted; their voxels are flagged: no molecule of the model explains them.
    evidence
        What stood out of the residual; None: not looked for.
    """
    power = misfit.astype(float) ** 2
    usual = float(np.median(power))
    spread = 1.4826 * float(np.median(np.abs(power - usual)))
    deviation = (power - usual) / max(spread, 1e-6 * usual, 1e-30)
    together = _with_neighbours(deviation, mask)
    large = (deviation > _DEVIATIONS) | ((together > _WITH_NEIGHBOURS) & (deviation > _BESIDE))
    large &= power > max(_LARGER**2 * usual, _MATTERS)
    stands_out = np.zeros(len(misfit), bool)
    if evidence is not None:
        alarm = 2 * np.log(max(evidence.tried, 1) * len(misfit) / _FALSE_ALARMS)
        level = float(np.median(evidence.strongest))
        stands_out = (evidence.strongest > alarm) & (evidence.strongest > _STANDS_OUT * level)
    for line in lines:
        stands_out = stands_out | line.voxels
    # only ends that are far from what is usual: a rate of zero is the end of a range too
    at_end = np.abs(shape[:, 1]) > _AT_END * freedom.upper[1]
    for i in (2, 3):
        if freedom.learned[i]:
            at_end |= shape[:, i] > _AT_END * freedom.upper[i]
    quality = np.sqrt(usual / np.maximum(power, max(usual, 1e-30)))
    return FitQuality(
        quality, {"large residual": large, "a line beyond the model": stands_out, "lineshape at its limit": at_end}
    )


def _with_neighbours(deviation: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the sum of a voxel's and its neighbours' values over the root of their number (voxel,)."""
    volume = np.zeros(mask.shape)
    # one voxel alone does not make its neighbours suspect
    volume[mask] = np.clip(deviation, -_DEVIATIONS, _DEVIATIONS)
    size = tuple(3 if n > 1 else 1 for n in mask.shape)
    count = float(np.prod(size))
    total = ndimage.uniform_filter(volume, size, mode="constant") * count
    number = ndimage.uniform_filter(mask.astype(float), size, mode="constant") * count
    return np.asarray((total / np.sqrt(np.maximum(number, 1.0)))[mask])
