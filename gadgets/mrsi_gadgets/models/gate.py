"""The gate: tells FIDs that a learned manifold was trained for from FIDs that lie outside of it.

What the projector leaves of the data, r = y - Proj(y), shows it. For the least-squares denoiser of FIDs in white noise
the residual is the slope of the log-density of noisy FIDs, r = -2 sd^2 d log p(y) / dy* (Tweedie's formula; Robbins
1956, Efron, J Am Stat Assoc 2011;106:1602-1614), so that

    |<line, r>|^2 / E|<line, r>|^2,    E over FIDs of the ensemble with noise of that level,

is the score test (Rao 1948) for a line of any frequency and width that no FID of the ensemble has: what the model
takes for its own is weighed down by itself. Four statistics are made of r, in units of the noise, with residual water
and lipids (the subspace's nuisance rows) taken out first:

* the strongest line of any phase, over all frequencies and a few widths;
* the strongest line that is in phase with the molecules;
* the distance of the data from their projection in the coordinates, each direction in units of its usual size;
* the energy outside of all rows against that of the noise (whiteness).

Each is turned into a p-value by its distribution over ensemble FIDs with noise, learned at several noise levels; the
smallest, each weighed by its share of the false alarms, is calibrated in turn. The score is -log10 p: one FID in ten of
the ensemble has a score above 1. An FID whose SNR is below that of training is outside too: nothing was learned for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product

import numpy as np

from mrsi_gadgets.arrays import Array, batch_size, device, like, namespace
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.ensemble import Ensemble, default_ensemble, sample

FALSE_ALARMS = 0.05
"""Share of the ensemble's FIDs that the working point calls outside. Scans differ from the ensemble, and a share of
0.1 is wanted there."""
FIELD_TOLERANCE = 1.5
"""Near the sinuses the field over a voxel is wider than in the ensemble, and not Gaussian. The projector is as good
there as elsewhere, and to call it outside would be a loss; unseen lines are found almost as often."""
STATISTICS = ("line", "line in phase", "distance", "whiteness")
_WEIGHTS = (0.08, 0.66, 0.24, 0.02)
"""Shares of the false alarms that the statistics may have."""
RATES = (12.0, 36.0, 108.0)
"""Decay of the lines that are looked for [1/s]: 4, 11 and 34 Hz wide, lines between them lose little."""
_PER_CELL = 2.5
"""Frequencies per element of resolution."""
_MARGIN = 0.1
"""Part of the band of the wanted signal by which lines are looked for beyond it, at each end."""
_LATE_RATE, _LEAST_POWER = 50.0, 1e-3
"""The band is where FIDs weighted by t^2 exp(-rate t) [1/s] have this part of their largest power."""
_HELD = 0.5
"""Part of a line's energy from which on it belongs to the nuisance rows."""
_LEVELS = 13
_BELOW, _ABOVE = 2.0, 1.5
"""Calibrated from SNRs so much below the training's to so much above."""
_TOO_NOISY = 0.8
"""SNR, in units of the lowest of training, below which an FID is outside whatever it looks like."""
TAILS = (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.008)
"""Probabilities whose quantiles are kept; beyond the last -log p goes on along a straight line."""
_LEAST_TAIL = 0.05
"""From where on that line is drawn."""
CONSTANTS = (*_WEIGHTS, *RATES, *TAILS, _LEAST_TAIL)
"""What scores are made with besides a gate's arrays: a gate that was calibrated with others is worth nothing."""
_AT_ONCE = 1 << 22
"""Matched filters (voxels times lines) that are kept at once."""


@dataclass(frozen=True, eq=False)
class Gate:
    """What is needed to tell FIDs inside a manifold from others; made by `calibrate_gate`. Arrays are small."""

    protocol: Protocol
    rows: np.ndarray
    """complex64 (rank, t), orthonormal: coordinates of the manifold."""
    nuisance: np.ndarray
    """complex64 (any, t), orthonormal and orthogonal to `rows`: residual water and lipids."""
    match: np.ndarray
    """complex64 (t,): the complex scale of an FID is <FID, match>."""
    frequencies: np.ndarray
    """int (line,): places of the frequencies in a Fourier transform of `transform` points."""
    transform: int
    """Points of the transform, FIDs filled with zeros."""
    held: np.ndarray
    """bool (width, line): lines that belong to the nuisance."""
    levels: np.ndarray
    """(level,) noise SD over scale, rising, evenly spaced in the logarithm."""
    power: np.ndarray
    """float32 (level, width, line): usual |<line, r>|^2 in units of sd^2, lines of unit energy."""
    whiteners: np.ndarray
    """complex64 (level, rank, rank): W with W r of unit covariance, r the residual's coordinates in units of sd."""
    quantiles: np.ndarray
    """float32 (level, statistic, tail): of each statistic, then of their combination."""
    too_noisy: float
    """Noise SD over scale from which on FIDs are outside: SNR below that of training."""

    def score(self, fids: Array, projected: Array, noise_sd: Array | float) -> Array:
        """Return -log10 of the probability that FIDs of the ensemble look as strange, float32 (...).

        Parameters
        ----------
        fids : (..., t) complex64 measured FIDs with white noise: of a least-squares image, B0 taken out; not smoothed.
        projected : (..., t) what the manifold makes of each of them at its noise (`Manifold.project_coefficients`
            voxel by voxel). The calibration holds for that alone: a result that a spatial prior has smoothed follows
            the noise less, and leaves more.
        noise_sd : SD of the real part of a sample, (...) or a number; positive.

        Raises
        ------
        DataError
            Shapes do not fit each other or the gate, or the noise level is not positive.
        """
        xp = namespace(fids)
        if tuple(fids.shape) != tuple(projected.shape) or fids.shape[-1] != self.rows.shape[1]:
            raise DataError(
                f"FIDs {tuple(fids.shape)} and projections {tuple(projected.shape)} must have the same shape and the "
                f"{self.rows.shape[1]} points of the gate's model"
            )
        lead = tuple(fids.shape[:-1])
        sd = xp.reshape(xp.broadcast_to(like(noise_sd, fids, "float32"), lead), (-1,))
        if not bool(xp.all(sd > 0)):
            raise DataError("the noise level must be positive in every voxel that is looked at")
        data, model = (xp.reshape(x, (-1, fids.shape[-1])) for x in (fids, projected))
        n = data.shape[0]
        step = max(1, batch_size(_AT_ONCE) // int(self.power[0].size))
        pieces = [slice(start, min(start + step, n)) for start in range(0, n, step)]
        parts = [self._score(data[piece, :], model[piece, :], sd[piece]) for piece in pieces]
        if not parts:
            return xp.zeros(lead, dtype=xp.float32, device=device(fids))
        return xp.reshape(xp.concat(parts), lead)

    def outside(self, score: Array, false_alarms: float = FALSE_ALARMS) -> Array:
        """Return where FIDs are outside, bool (...), at a share of false alarms among FIDs of the ensemble."""
        return score > -math.log10(false_alarms)

    def _score(self, data: Array, model: Array, sd: Array) -> Array:
        xp = namespace(data)
        level, weights, phase = self._level(model, sd)
        unlikely = _minus_log(self._statistics(data, model, sd, weights, phase), weights, self.quantiles[:, :-1])
        best = xp.max(unlikely + like(np.log(_WEIGHTS), unlikely, "float32"), axis=-1)
        found = _minus_log(best[:, None], weights, self.quantiles[:, -1:])[:, 0] / math.log(10)
        least = -math.log10(FALSE_ALARMS) * level / self.too_noisy
        return xp.where((level > self.too_noisy) & (least > found), least, found)

    def _level(self, model: Array, sd: Array) -> tuple[Array, Array, Array]:
        """Return noise over scale (n,), the weights (n, level) of the calibrated levels, and the phase (n,)."""
        xp = namespace(model)
        scale = model @ like(self.match, model, model.dtype)
        size = xp.abs(scale)
        size = xp.where(size > sd * 1e-6, size, sd * 1e-6)
        level = sd / size
        step = math.log(self.levels[-1] / self.levels[0]) / (len(self.levels) - 1)
        place = (xp.log(level) - math.log(self.levels[0])) / step
        last = float(len(self.levels) - 1)
        place = xp.where(place < 0, xp.zeros_like(place), xp.where(place > last, last * xp.ones_like(place), place))
        weights = 1 - xp.abs(place[:, None] - like(np.arange(len(self.levels)), place, "float32"))
        weights = xp.where(weights > 0, weights, xp.zeros_like(weights))
        return level, weights, scale / xp.astype(size, scale.dtype)

    def _statistics(self, data: Array, model: Array, sd: Array, weights: Array, phase: Array) -> Array:
        """Return the statistics, float32 (n, 4)."""
        xp = namespace(data)
        residual = (data - model) / xp.astype(sd, data.dtype)[:, None]
        residual = residual - _onto(residual, self.nuisance)
        inside = residual @ like(self.rows.conj().T, residual, residual.dtype)
        matched = self.matched(residual)
        n = data.shape[0]
        usual = weights @ like(self.power.reshape(len(self.levels), -1), weights)
        usual = xp.reshape(usual, (n, *self.power.shape[1:]))
        free = like(~self.held, weights, "float32")
        strongest = _power(matched) / usual * free
        in_phase = xp.real(matched * xp.conj(phase)[:, None, None])
        in_phase = xp.where(in_phase > 0, in_phase, xp.zeros_like(in_phase)) ** 2 / usual * free
        distance = xp.zeros_like(sd)
        for k, whitener in enumerate(self.whiteners):
            white = inside @ like(whitener.T, inside, inside.dtype)
            distance = distance + weights[:, k] * xp.sum(_power(white), axis=-1)
        rest = residual - inside @ like(self.rows, inside, inside.dtype)
        energy = xp.abs(xp.sum(_power(rest), axis=-1) / (2 * self._free_points) - 1)
        several = [xp.max(xp.reshape(x, (n, -1)), axis=-1) for x in (strongest, in_phase)]
        return xp.stack([*several, distance, energy], axis=-1)

    @property
    def _free_points(self) -> int:
        """Complex dimensions outside of all rows."""
        return max(1, self.rows.shape[1] - len(self.rows) - len(self.nuisance))

    def matched(self, residual: Array) -> Array:
        """Return <line, r> of residuals (n, t) with all lines of unit energy, (n, width, line).

        The lines have the phase that those of the molecules have: zero at the time zero of the excitation.
        """
        xp = namespace(residual)
        times = self.protocol.times_s - self.protocol.times_s[0]
        n, n_times = residual.shape
        filled = xp.zeros((n, self.transform - n_times), dtype=residual.dtype, device=device(residual))
        turn = np.exp(-2j * np.pi * self.hz * self.protocol.acquisition_delay_s)
        places = like(self.frequencies, residual)
        found = []
        for rate in RATES:
            decay = np.exp(-rate * times)
            decayed = residual * like(decay / np.linalg.norm(decay), residual, residual.dtype)
            spectrum = xp.fft.fft(xp.concat([decayed, filled], axis=1), axis=1)
            found.append(xp.take(spectrum, places, axis=1) * like(turn, residual, residual.dtype))
        return xp.stack(found, axis=1)

    @property
    def hz(self) -> np.ndarray:
        """Frequencies of the lines (line,) [Hz]."""
        return np.asarray(np.fft.fftfreq(self.transform, self.protocol.dwell_s)[self.frequencies])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything but the protocol by name, as a model file keeps it."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if f.name != "protocol"}

    @classmethod
    def of_arrays(cls, protocol: Protocol, arrays: Mapping[str, np.ndarray]) -> Gate:
        """Return the gate of `arrays()`.

        Raises
        ------
        DataError
            One is missing, or they do not fit the protocol.
        """
        names = [f.name for f in fields(cls) if f.name != "protocol"]
        missing = [name for name in names if name not in arrays]
        if missing or arrays["rows"].shape[-1] != protocol.n_times:
            raise DataError(
                f"the arrays of this gate lack {', '.join(missing) or 'nothing'} and must have {protocol.n_times} "
                "points; learn the model again"
            )
        whole = {"transform": int(arrays["transform"]), "too_noisy": float(arrays["too_noisy"])}
        return cls(protocol, **{name: np.asarray(arrays[name]) for name in names} | whole)  # type: ignore[arg-type]


def judge(gate: Gate, manifold: Manifold, fids: Array, noise_sd: Array | float) -> tuple[Array, Array]:
    """Return scores (...) of measured FIDs (..., t) and their projections (..., t), each voxel at its own noise."""
    xp = namespace(fids)
    power = 2 * like(noise_sd, fids, "float32") ** 2
    power = power[..., None] if power.ndim else power
    projected = manifold.synthesise(manifold.project_coefficients(manifold.coefficients(fids), power))
    projected = xp.astype(projected, fids.dtype)
    return gate.score(fids, projected, noise_sd), projected


def pooled(score: Array, mask: Array) -> Array:
    """Return scores (x, y, z) that count neighbours: lesions are larger than a voxel.

    The score of a voxel is the larger of its own and that of its sum with the (up to six) voxels that share a face with
    it, less log10 2 for the choice. Under noise alone scores times log 10 are exponential, their sums gamma
    distributed (Fisher). Voxels outside of `mask` count for nobody and get 0.
    """
    xp = namespace(score)
    inside = xp.astype(mask, score.dtype)
    own = score * inside * math.log(10)
    total, count = own, inside
    for axis, step in product(range(3), (-1, 1)):
        if score.shape[axis] > 1:
            total, count = total + _moved(own, axis, step), count + _moved(inside, axis, step)
    series = term = xp.ones_like(total)
    for k in range(1, 7):
        term = term * total / k
        series = series + xp.where(count > k + 0.5, term, xp.zeros_like(term))
    together = total - xp.log(series)
    best = (xp.where(together > own, together, own) - math.log(2)) / math.log(10) * inside
    return xp.where(best > 0, best, xp.zeros_like(best))


def calibrate_gate(
    manifold: Manifold,
    subspace: Subspace,
    *,
    ensemble: Ensemble | None = None,
    basis: BasisSet | None = None,
    samples: int = 4000,
    field_tolerance: float = FIELD_TOLERANCE,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Gate:
    """Learn the gate of a manifold from FIDs of its ensemble with noise of known level.

    Parameters
    ----------
    manifold, subspace : as trained together (`training.Trained`); the subspace's nuisance rows are not looked at.
    ensemble, basis : those of the training.
    samples : FIDs drawn; half of them tell the usual residual, the others how the statistics are distributed.
    field_tolerance : fields over a voxel so many times as wide as any of the ensemble still count as inside.
    seed : of FIDs and noise; not that of the training, whose FIDs the networks know.
    progress : told noisy FIDs done and in all, after each noise level.
    """
    protocol = manifold.protocol
    ensemble = ensemble or default_ensemble(protocol)
    low, high = ensemble.broadening_ppm
    ensemble = replace(ensemble, broadening_ppm=(low, high * field_tolerance))
    fids = sample(protocol, samples, seed + 7919, ensemble=ensemble, basis=basis).metabolites
    scale = manifold.scale(manifold.coefficients(fids))
    fids = (fids / scale[:, None]).astype(np.complex64)
    nuisance = subspace.basis[subspace.metabolite_rank :].astype(np.complex64)
    rank = manifold.rank
    transform = 1 << int(np.ceil(np.log2(_PER_CELL * protocol.n_times)))
    low, high = manifold.snr_range
    levels = manifold.noise_at_snr_1 / np.geomspace(_ABOVE * high, low / _BELOW, _LEVELS)
    match = (manifold.mean.conj() / np.sum(np.abs(manifold.mean) ** 2)) @ manifold.basis.conj()
    frequencies = _band(fids, protocol, transform)
    shape = (len(RATES), len(frequencies))
    gate = Gate(
        protocol, manifold.basis, nuisance, match.astype(np.complex64), frequencies, transform, np.zeros(shape, bool),
        levels, np.ones((_LEVELS, *shape), np.float32), np.zeros((_LEVELS, rank, rank), np.complex64),
        np.zeros((_LEVELS, len(STATISTICS) + 1, len(TAILS)), np.float32),
        float(manifold.noise_at_snr_1 / (_TOO_NOISY * low)),
    )  # fmt: skip
    gate.held[:] = _held(gate)
    rng = np.random.default_rng([seed, 1])
    half = samples // 2
    for k, level in enumerate(levels):
        noise = rng.standard_normal((*fids.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        data = fids + np.float32(level) * noise
        model = manifold.synthesise(manifold.project_coefficients(manifold.coefficients(data), 2 * level**2))
        residual = (data[:half] - model[:half]) / np.float32(level)
        residual -= _onto(residual, nuisance)
        gate.power[k] = np.mean([np.mean(_power(gate.matched(r)), axis=0) for r in np.array_split(residual, 8)], axis=0)
        inside = residual @ manifold.basis.conj().T
        covariance = inside.T @ inside.conj() / len(inside)
        values, vectors = np.linalg.eigh(covariance.astype(np.complex128))
        gate.whiteners[k] = (vectors / np.sqrt(np.maximum(values, 1e-4 * values[-1]))) @ vectors.conj().T
        sd = np.full(samples - half, level, np.float32)
        _, weights, phase = gate._level(model[half:], sd)
        at = np.broadcast_to(np.eye(_LEVELS, dtype=np.float32)[k], weights.shape)
        found = gate._statistics(data[half:], model[half:], sd, at, phase)
        upper = 1 - np.array(TAILS)
        gate.quantiles[k, :-1] = np.quantile(found, upper, axis=0).T
        unlikely = _minus_log(found, at, gate.quantiles[:, :-1])
        gate.quantiles[k, -1] = np.quantile(np.max(unlikely + np.log(_WEIGHTS), axis=1), upper)
        if progress is not None:
            progress((k + 1) * samples, len(levels) * samples)
    return gate


def _minus_log(statistics: Array, weights: Array, quantiles: np.ndarray) -> Array:
    """Return -log p (n, statistic) of statistics, by the quantiles (level, statistic, tail) of the voxel's level."""
    xp = namespace(statistics)
    own = weights @ like(np.ascontiguousarray(quantiles.reshape(len(quantiles), -1)), weights)
    own = xp.reshape(own, (statistics.shape[0], *quantiles.shape[1:]))
    heights = [-math.log(tail) for tail in TAILS]
    found = heights[0] * xp.ones_like(statistics)
    tiny = 1e-6
    for j in range(len(TAILS)):
        start = own[..., j]
        last = j == len(TAILS) - 1
        # the slope of the tail is that of several segments: the last quantiles are uncertain
        first = TAILS.index(_LEAST_TAIL) if last else j
        end = j if last else j + 1
        slope = (heights[end] - heights[first]) / (xp.abs(own[..., end] - own[..., first]) + tiny)
        reached = statistics - start
        if not last:
            whole = own[..., j + 1] - start
            reached = xp.where(reached < whole, reached, whole)
        found = found + slope * xp.where(reached > 0, reached, xp.zeros_like(reached))
    return found


def _band(fids: np.ndarray, protocol: Protocol, transform: int) -> np.ndarray:
    """Return the places of the frequencies that are looked at: where the wanted signal is, and somewhat beyond."""
    times = protocol.times_s - protocol.times_s[0]
    # weighted so that broad lines and the onset of the FID do not reach far
    window = times**2 * np.exp(-_LATE_RATE * times)
    spectra = np.fft.fft(fids[:1000] * window, transform, axis=1)
    power = np.fft.fftshift(np.mean(np.abs(spectra) ** 2, axis=0))
    places = np.flatnonzero(power > _LEAST_POWER * power.max())
    margin = round(_MARGIN * (places[-1] - places[0] + 1))
    chosen = np.arange(max(0, places[0] - margin), min(transform, places[-1] + margin + 1))
    return np.asarray((chosen - transform // 2) % transform)


def _held(gate: Gate) -> np.ndarray:
    """Return which lines the nuisance rows hold for the most part, (width, line)."""
    if not len(gate.nuisance):
        return np.zeros(gate.held.shape, bool)
    return np.asarray(np.sum(_power(gate.matched(gate.nuisance)), axis=0) > _HELD)


def _onto(fids: Array, rows: np.ndarray) -> Array:
    """Return the part of FIDs (n, t) along orthonormal rows (any, t)."""
    return (fids @ like(rows.conj().T, fids, fids.dtype)) @ like(rows, fids, fids.dtype)


def _power(x: Array) -> Array:
    xp = namespace(x)
    return xp.real(x) ** 2 + xp.imag(x) ** 2


def _moved(x: Array, axis: int, step: int) -> Array:
    """Return an array (x, y, z) moved by one voxel, zeros coming in."""
    xp = namespace(x)
    edge = [slice(None)] * 3
    edge[axis] = slice(0, -1) if step > 0 else slice(1, None)
    border = [slice(None)] * 3
    border[axis] = slice(0, 1)
    zeros = xp.zeros_like(x[tuple(border)])
    parts = [zeros, x[tuple(edge)]] if step > 0 else [x[tuple(edge)], zeros]
    return xp.concat(parts, axis=axis)
