"""Constant offsets of the receive channels (DC): found in the noise scan or in the tails of the FIDs, and taken out.

A receiver may add one complex number to every sample of a channel. In the images that is a line at 0 Hz that never
decays, in the voxel at the centre of the coordinates (a constant over all of k-space). Offsets are taken out where they
stand out of the noise, and only where the data themselves have them: an offset that the noise scan alone has would be
put in by taking it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import is_numpy, like, to_numpy
from mrsi_gadgets.data import KtData

FALSE_ALARM = 1e-4
"""Probability that noise alone passes for an offset of any channel."""
_MOST_POINTS = 4096
_SURE = 4.0
"""Standard deviations by which the data must show an offset, and may miss its size."""
_LEAST_AGREEMENT = 0.3
"""Relative difference that is allowed in any case."""


@dataclass(frozen=True, eq=False)
class Offset:
    """What a receiver adds to each sample."""

    values: np.ndarray
    """(coil,) complex128; zero for channels where none stands out."""
    noise_sd: np.ndarray
    """(coil,) SD of the real part of one sample that it was found in."""
    source: str
    """``noise scan`` or ``tail of the FIDs``."""

    @property
    def largest(self) -> float:
        """Size of the largest offset over the noise of one sample of its channel."""
        return float(np.max(np.abs(self.values) / self.noise_sd))


def offset_of_noise(noise: KtData) -> Offset | None:
    """Return the offset of a noise scan, (coil, ...) samples, or None where none stands out."""
    samples = to_numpy(noise.samples).reshape(noise.n_coils, -1).astype(np.complex128)
    mean = samples.mean(axis=1)
    sd = np.sqrt(np.mean(np.abs(samples - mean[:, None]) ** 2, axis=1) / 2)
    return _significant(mean, sd / np.sqrt(samples.shape[1]), sd, "noise scan")


def offset_of_tail(kt: KtData) -> Offset | None:
    """Return the offset of metabolite data, from the last quarter of the FIDs of outer k-space, or None.

    What is left of signals there decays: only what is the same in both halves of the tail is an offset.
    """
    tails = _tails(kt)
    if tails is None or tails.shape[1] < 16 or tails.shape[2] < 4:
        return None
    half = tails.shape[2] // 2
    of_points = tails.mean(axis=2)
    mean = of_points.mean(axis=1)
    mean_sd = np.sqrt(np.mean(np.abs(of_points - mean[:, None]) ** 2, axis=1) / (2 * (tails.shape[1] - 1)))
    sd = np.sqrt(np.mean(np.abs(tails - of_points[:, :, None]) ** 2, axis=(1, 2)) / 2)
    found = _significant(mean, mean_sd, sd, "tail of the FIDs")
    if found is None:
        return None
    early, late = (part.mean(axis=(1, 2)) for part in (tails[:, :, :half], tails[:, :, half:]))
    change = float(np.linalg.norm((late - early) * (found.values != 0)))
    allowed = _SURE * 2 * float(np.linalg.norm(mean_sd)) + 0.1 * float(np.linalg.norm(found.values))
    return found if change < allowed else None


def shows_offset(kt: KtData, offset: Offset) -> bool:
    """Tell whether metabolite data hold an offset of that size, judged by the tails of the FIDs of outer k-space."""
    tails = _tails(kt)
    if tails is None or tails.shape[0] != len(offset.values) or tails.shape[1] < 16:
        return False
    weights = np.conj(offset.values) / offset.noise_sd**2
    size = float(np.sum(np.abs(offset.values) ** 2 / offset.noise_sd**2))
    shares = np.real(np.tensordot(weights, tails.mean(axis=2), axes=1)) / size
    share, sd = float(np.mean(shares)), float(np.std(shares, ddof=1)) / np.sqrt(len(shares))
    return share > _SURE * sd and abs(share - 1) < max(_LEAST_AGREEMENT, _SURE * sd)


def without_offset(kt: KtData, offset: Offset, *, overwrite: bool = False) -> KtData:
    """Return the data without the offset, where anything was acquired; sums of averages have as many of it.

    With `overwrite` NumPy samples are changed in place.
    """
    times = _readouts_per_sample(kt)
    if overwrite and is_numpy(kt.samples):
        for channel, value in zip(kt.samples, offset.values, strict=True):
            if value:
                channel -= (times * value).astype(channel.dtype)
        return kt
    taken = like(offset.values[:, None, None] * times[None], kt.samples, kt.samples.dtype)
    return kt.with_samples(kt.samples - taken)


def _significant(mean: np.ndarray, mean_sd: np.ndarray, sd: np.ndarray, source: str) -> Offset | None:
    """Return the offsets that noise hardly makes: |mean|^2 / SD^2 of noise is chi-squared with two degrees."""
    limit = np.sqrt(2 * np.log(len(mean) / FALSE_ALARM))
    seen = np.abs(mean) > limit * mean_sd
    if not seen.any():
        return None
    return Offset(np.where(seen, mean, 0), np.maximum(sd, np.finfo(float).tiny), source)


def _readouts_per_sample(kt: KtData) -> np.ndarray:
    """Return how many readouts' offset each sample holds, (point, t or 1)."""
    count = np.asarray(kt.count if kt.count.ndim == 2 else kt.count[:, None], dtype=float)
    if kt.protocol.kspace_weighting == "acquisition_weighted":
        # c^2 / n readouts of noise where n of at most c came (`mrd.frames`), so that c / (c^2 / n) is its weight n / c
        came = count > 0
        most = float(np.min(count, where=came, initial=np.inf))
        return np.divide(most, count, out=np.zeros(count.shape), where=came)
    return (count > 0).astype(float)


def _tails(kt: KtData) -> np.ndarray | None:
    """Return the last quarter of the FIDs of the outer half of k-space, (coil, point, t), one readout's worth."""
    start = kt.samples.shape[2] - max(kt.samples.shape[2] // 4, 1)
    radius = np.sqrt(np.sum(kt.k**2, axis=-1))
    acquired = np.all(kt.counts[:, start:] > 0, axis=1)
    if not acquired.any():
        return None
    points = np.flatnonzero(acquired & (radius >= np.median(radius[acquired])))
    points = points[:: max(1, -(-len(points) // _MOST_POINTS))]
    times = _readouts_per_sample(kt)
    times = np.broadcast_to(times, (times.shape[0], kt.samples.shape[2]))[points, start:]
    return np.asarray(to_numpy(kt.samples[:, :, start:])[:, points].astype(np.complex128) / times)
