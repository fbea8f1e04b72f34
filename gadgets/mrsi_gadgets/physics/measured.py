"""What was measured takes the place of a table: lineshapes of a water reference, amounts of an earlier fit.

Amounts. The logarithms of amounts (and T2*) that a fit found in voxels have a mean and a covariance between molecules;
new voxels are drawn from that multivariate normal distribution, or from the voxels themselves (smoothed bootstrap, for
distributions with several modes). The fit's own noise is no property of brains: its mean variance (SD over amount) is
taken off the diagonal. A name may be a reported sum (tNAA): its members then keep the ratio that they were drawn with.

Lineshapes. Water in a voxel shows the field that all molecules share: h(t) = w(t) / w(0) without its mean frequency and
without water's own decay exp(-t / T2*). Where noise takes over, h is damped: h g with g = s^2 / (1 + s^2), s^2 the
power of w over that of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.nucleus import Nucleus, field_strength_t, nucleus_of

_TAILS = 0.005
"""Share of voxels at either end whose logarithms are drawn in: misfits, not brains."""
_FLOOR = 0.05
"""Smallest amount that counts, over the molecule's median: a non-negative fit returns zeros."""
_LEAST_VOXELS = 30
_SMOOTH = 9
"""Samples over which the power of water is averaged against its noise."""


@dataclass(frozen=True, eq=False)
class MeasuredAmounts:
    """Distribution of amounts [mM] and, where given, of T2* [s] over the voxels of earlier scans."""

    names: tuple[str, ...]
    log_mean: np.ndarray
    """(k,) mean of log(amount) of each name, then of log(T2*) where measured."""
    log_covariance: np.ndarray
    """(k, k)."""
    log_rows: np.ndarray | None = None
    """(voxel, k): the voxels themselves, for the smoothed bootstrap; None for the normal distribution."""

    def __post_init__(self) -> None:
        k = len(self.log_mean)
        if k not in (len(self.names), 2 * len(self.names)) or self.log_covariance.shape != (k, k):
            raise DataError(
                f"measured amounts of {len(self.names)} names have {k} means and {self.log_covariance.shape}"
            )

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return amounts (n, name) [mM] and T2* (n, name) [s] or None."""
        values, vectors = np.linalg.eigh(self.log_covariance)
        spread = rng.standard_normal((n, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        if self.log_rows is not None:
            count, k = self.log_rows.shape
            width = count ** (-1.0 / (k + 4))  # Scott's rule; shrunk so that the variance stays
            chosen = self.log_rows[rng.integers(count, size=n)] - self.log_mean
            spread = (chosen + width * spread) / np.sqrt(1 + width**2)
        drawn = np.exp(self.log_mean + spread)
        k = len(self.names)
        return drawn[:, :k], drawn[:, k:] if drawn.shape[1] > k else None

    def describe(self) -> dict[str, Any]:
        """Return what a model's card says of it: medians [mM, s] and log-normal spreads."""
        k = len(self.names)
        medians, spreads = np.exp(self.log_mean), np.sqrt(np.diag(self.log_covariance))
        found = {"names": list(self.names), "median_mm": medians[:k].tolist(), "log_sd": spreads[:k].tolist()}
        if len(medians) > k:
            found |= {"median_t2_star_s": medians[k:].tolist(), "log_sd_t2_star": spreads[k:].tolist()}
        return found | {"voxels_resampled": 0 if self.log_rows is None else len(self.log_rows)}


def measured_amounts(
    protocol: Protocol,
    names: Sequence[str],
    concentrations: np.ndarray,
    t2_star_s: np.ndarray | None = None,
    *,
    sd: np.ndarray | None = None,
    to_mm: float | None = None,
    resample: bool = False,
) -> MeasuredAmounts:
    """Learn a distribution from fitted voxels.

    Parameters
    ----------
    protocol : names the nucleus.
    names : molecules or reported sums, one column each.
    concentrations : (voxel, name) in any unit common to all; voxels with values that are not finite are left out.
    t2_star_s : (voxel, name) [s].
    sd : (voxel, name) standard deviations of the fit, in the unit of `concentrations`.
    to_mm : factor to mM; None: the median total of the names becomes that of the nucleus' table (mean of grey and white
        matter), since maps have a scale of their own.
    resample : draw voxels (smoothed bootstrap) rather than from a normal distribution of logarithms.

    Raises
    ------
    DataError
        A name is not known or counted twice, the arrays do not fit, or there are too few voxels or too many zeros.
    """
    nucleus = nucleus_of(protocol)
    amounts = np.asarray(concentrations, float)
    columns = [amounts] if t2_star_s is None else [amounts, np.asarray(t2_star_s, float)]
    if any(part.shape != (len(amounts), len(names)) for part in columns + ([] if sd is None else [np.asarray(sd)])):
        raise DataError(f"measured amounts must be (voxel, {len(names)}), the same for T2* and deviations")
    _check_names(names, nucleus)
    good = np.all([np.isfinite(part).all(axis=1) for part in columns], axis=0)
    if good.sum() < _LEAST_VOXELS:
        raise DataError(
            f"{good.sum()} voxels with finite amounts are too few to learn from; give {_LEAST_VOXELS} or more"
        )
    logs = []
    for values, what in zip((part[good] for part in columns), ("amount", "T2*"), strict=False):
        for column, name in zip(values.T, names, strict=True):
            if np.mean(column > 0) < 0.5:
                raise DataError(f"the {what} of {name} is zero in most voxels; leave it out of what is measured")
            logs.append(np.log(np.maximum(column, _FLOOR * np.median(column[column > 0]))))
    rows = np.stack(logs, axis=1)
    rows = np.clip(rows, *np.quantile(rows, [_TAILS, 1 - _TAILS], axis=0))
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))
    if sd is not None:
        noise = np.clip((np.asarray(sd, float)[good] / np.exp(rows[:, : len(names)])) ** 2, 0.0, 1.0)
        noise = np.concatenate([np.nanmean(noise, axis=0), np.zeros(len(covariance) - len(names))])
        own = np.diag(covariance)
        less = np.minimum(noise, 0.95 * own)
        covariance = covariance - np.diag(less)
        rows = rows.mean(axis=0) + (rows - rows.mean(axis=0)) * np.sqrt(1 - less / own)
    if to_mm is None:
        typical = sum(_typical_mm(nucleus, name) for name in names)
        to_mm = typical / float(np.median(amounts[good].sum(axis=1)))
    if not to_mm > 0:
        raise DataError(f"the factor from measured amounts to mM is {to_mm:g}; it must be positive")
    rows[:, : len(names)] += np.log(to_mm)
    return MeasuredAmounts(tuple(names), rows.mean(axis=0), covariance, rows if resample else None)


def _check_names(names: Sequence[str], nucleus: Nucleus) -> None:
    members: list[str] = []
    for name in names:
        if name not in nucleus.sums and name not in nucleus.molecules:
            raise DataError(
                f"amounts of '{name}' cannot be used; there are {', '.join([*nucleus.molecules, *nucleus.sums])}"
            )
        members += members_of(nucleus, name)
    twice = sorted({name for name in members if members.count(name) > 1})
    if twice:
        raise DataError(f"{', '.join(twice)} stands in more than one of the measured amounts {', '.join(names)}")


def members_of(nucleus: Nucleus, name: str) -> dict[str, float]:
    """Return the molecules and weights of a reported sum, or the molecule itself."""
    return {name: 1.0} if name in nucleus.molecules else dict(nucleus.sums[name])


def _typical_mm(nucleus: Nucleus, name: str) -> float:
    return sum(
        weight * float(np.mean([nucleus.concentration_mm(member, tissue) for tissue in ("gm", "wm")]))
        for member, weight in members_of(nucleus, name).items()
    )


@dataclass(frozen=True, eq=False)
class MeasuredLineshapes:
    """Lineshapes h(t) of voxels, at one protocol's times."""

    shapes: np.ndarray
    """complex64 (voxel, t), about 1 at the first time."""
    acquisition_delay_s: float
    dwell_s: float

    def draw(self, rng: np.random.Generator, protocol: Protocol, n: int) -> np.ndarray:
        """Return lineshapes of `n` voxels drawn from all, (n, t).

        Raises
        ------
        DataError
            They were measured at other times.
        """
        ours = (protocol.acquisition_delay_s, protocol.dwell_s)
        same = np.allclose(ours, (self.acquisition_delay_s, self.dwell_s), rtol=1e-6, atol=1e-9)
        if not same or self.shapes.shape[1] < protocol.n_times:
            raise DataError(
                f"the measured lineshapes have {self.shapes.shape[1]} points of {self.dwell_s * 1e6:g} us after "
                f"{self.acquisition_delay_s * 1e6:g} us, the protocol has {protocol.n_times} of "
                f"{protocol.dwell_s * 1e6:g} us after {protocol.acquisition_delay_s * 1e6:g} us; measure them with it"
            )
        return np.asarray(self.shapes[rng.integers(len(self.shapes), size=n), : protocol.n_times])

    def describe(self) -> dict[str, Any]:
        """Return what a model's card says of it: how many, and how fast they decay (median |h| of the last time)."""
        return {"voxels": len(self.shapes), "median_at_end": float(np.median(np.abs(self.shapes[:, -1])))}


def water_lineshapes(
    protocol: Protocol, water_fids: np.ndarray, *, noise_sd: float = 0.0, t2_star_s: float | None = None
) -> MeasuredLineshapes:
    """Return the lineshapes that a water reference shows.

    Parameters
    ----------
    protocol : at whose times the water was sampled.
    water_fids : complex (voxel, t): unsuppressed water, one voxel a row, any scale and phase.
    noise_sd : standard deviation of the real part of the noise.
    t2_star_s : water's own T2* without the field over the voxel [s]; None: the mean of grey and white matter.

    Raises
    ------
    DataError
        The array does not fit the protocol, or no voxel has signal above the noise.
    """
    fids = np.asarray(water_fids)
    if fids.ndim != 2 or fids.shape[1] != protocol.n_times:
        raise DataError(f"water FIDs {fids.shape} must be (voxel, {protocol.n_times}), the protocol's points")
    fids = fids[np.isfinite(fids).all(axis=1)]
    fids = fids[np.abs(fids[:, 0]) > max(10 * noise_sd, 0.0)].astype(np.complex128)
    if not len(fids):
        raise DataError("no voxel of the water reference has signal above its noise; give unsuppressed water")
    if t2_star_s is None:
        field_t = field_strength_t(protocol)
        rates = [1 / brain_values.water_s("t2_star", tissue, field_t) for tissue in ("gm", "wm")]
        t2_star_s = float(1 / np.mean(rates))
    since = protocol.times_s - protocol.acquisition_delay_s
    step = np.sum(fids[:, 1:] * np.conj(fids[:, :-1]), axis=1)
    hz = np.angle(step) / (2 * np.pi * protocol.dwell_s)  # the mean frequency, weighted by the signal's energy
    trust = np.ones(fids.shape)
    if noise_sd > 0:
        kernel = np.ones(_SMOOTH) / _SMOOTH
        power = np.array([np.convolve(np.abs(fid) ** 2, kernel, mode="same") for fid in fids])
        signal = np.maximum(power - 2 * noise_sd**2, 0.0)
        trust = signal / (signal + 2 * noise_sd**2)
        trust[:, : _SMOOTH // 2] = 1.0  # where the mean reaches beyond the first sample, which is the strongest
    shapes = fids / fids[:, :1] * np.exp(-2j * np.pi * hz[:, None] * since) * np.exp(since / t2_star_s) * trust
    return MeasuredLineshapes(shapes.astype(np.complex64), protocol.acquisition_delay_s, protocol.dwell_s)
