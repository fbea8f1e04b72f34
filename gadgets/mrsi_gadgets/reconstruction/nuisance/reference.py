"""Unsuppressed water by its own measurement: the water reference, matched to the metabolite data and without its noise.

Where water was not suppressed, the reference shows the very water that lies over the metabolites: the same voxel, line
shape, eddy currents and sidebands. Two things differ. Between the scans frequency, phase and receiver gain drift, by
amounts that change slowly in place:

    w(r, t) = q(r, t) w_ref(r, t),      q = a(r) exp(i 2 pi f(r) (t - t_0)).

And the reference has noise of its own, which subtraction would add. Let C_w = F F^H be the covariance of water FIDs of
unit energy, noise taken out, and g the energy of water in a voxel: its water is F c with c of variance g. It is seen
twice, by the reference beside noise and by the metabolite data beside metabolites and noise. The linear estimate of
least mean-square error from both is, N_ref and M the covariances of what lies beside,

    c^ = (I / g + F^H N_ref^-1 F + F^H M^-1 F)^-1 (F^H N_ref^-1 x_ref + F^H M^-1 x / q).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.reconstruction.nuisance.hsvd import principal_rows
from mrsi_gadgets.reconstruction.nuisance.modulation import places

MOST_ROWS = 120
_ITERATIONS = 5
_OVER_EDGE = 0.8
"""A row counts from this part of the energy of the strongest row of noise on: noise costs less than lost water."""
_LEAST_OF_NOISE = 0.5
"""In voxels of rare shapes a row counts from this part of the noise on."""
_DEVIATIONS = 4.0
"""A voxel has a rare shape where its power beyond the common ones is so many standard deviations above noise."""
_LEAST_ENERGY = 1e-2
"""Voxels with less than this part of the strongest one's energy teach nothing about the shapes of water."""


@dataclass(frozen=True, eq=False)
class Match:
    """How the water of the metabolite data follows from the reference's."""

    gain: np.ndarray
    """(voxel,) complex: a."""
    frequency_hz: np.ndarray
    """(voxel,): f [Hz]."""

    def factor(self, times_s: np.ndarray) -> np.ndarray:
        """Return q, (voxel, t) complex64."""
        turn = np.exp(2j * np.pi * self.frequency_hz[:, None] * (times_s - times_s[0]))
        return (self.gain[:, None] * turn).astype(np.complex64)


def match_of(
    fids: Array, reference: Array, place: np.ndarray, used: np.ndarray, times_s: np.ndarray, metabolites: np.ndarray,
    noise_sd: float,
) -> Match:  # fmt: skip
    """Find gain and frequency between two scans, as polynomials in place, by weighted least squares (Gauss-Newton).

    Residuals are weighted by the inverse covariance of metabolites and noise: metabolites have signal under the water
    line too, and in phase with it.

    Parameters
    ----------
    fids, reference
        (voxel, t), of metabolite data and of the reference.
    place
        (voxel, function): polynomials in place, the first of them constant.
    used
        (voxel,) bool: voxels that the match is learned from.
    times_s
        (t,) [s].
    metabolites
        (t, t): covariance of the metabolites.
    noise_sd
        SD of the real part of a sample's noise.
    """
    xp = namespace(fids)
    chosen = like(np.flatnonzero(used), fids)
    x, ref = xp.take(fids, chosen, axis=0), xp.take(reference, chosen, axis=0)
    since = times_s - times_s[0]
    gain, frequency = _common(x, ref, since)
    columns = place[used].astype(float)
    n = columns.shape[1]
    log_gain, course = np.zeros(n, complex), np.zeros(n)
    log_gain[0], course[0] = np.log(gain), frequency
    covariance = metabolites + 2 * noise_sd**2 * np.eye(len(times_s))
    # whitening of rows: |x W|^2 = x^H covariance^-1 x
    whiten = like(np.linalg.inv(np.linalg.cholesky(covariance)).T.astype(np.complex64), fids, fids.dtype)
    for _ in range(_ITERATIONS):
        now = Match(np.exp(columns @ log_gain), columns @ course)
        water = ref * like(now.factor(times_s), fids, fids.dtype)
        left = (x - water) @ whiten
        by_gain = water @ whiten
        by_frequency = (water * like((2j * np.pi * since).astype(np.complex64), fids, fids.dtype)) @ whiten
        parts = (by_gain, 1j * by_gain, by_frequency)
        normal = np.block([[_moments(columns, a, b) for b in parts] for a in parts])
        right = np.concatenate([columns.T @ _products(a, left) for a in parts])
        step = np.linalg.solve(normal + 1e-12 * np.trace(normal) * np.eye(3 * n), right)
        log_gain = log_gain + step[:n] + 1j * step[n : 2 * n]
        course = course + step[2 * n :]
    return Match(np.exp(place @ log_gain), place @ course)


def _products(a: Array, b: Array) -> np.ndarray:
    """Return Re(a^H b) of each row."""
    xp = namespace(a)
    return to_numpy(xp.sum(xp.real(a) * xp.real(b) + xp.imag(a) * xp.imag(b), axis=1)).astype(float)


def _moments(columns: np.ndarray, a: Array, b: Array) -> np.ndarray:
    return columns.T @ (columns * _products(a, b)[:, None])


def _common(x: Array, reference: Array, since: np.ndarray) -> tuple[complex, float]:
    """Return one gain and frequency for all voxels: the line through the phase of their sum of products."""
    xp = namespace(x)
    course = to_numpy(xp.sum(xp.conj(reference) * x, axis=0)).astype(complex)
    weight = to_numpy(xp.sum(xp.real(reference) ** 2 + xp.imag(reference) ** 2, axis=0)).astype(float)
    phase = np.unwrap(np.angle(course))
    slope, start = np.polyfit(since, phase, 1, w=np.sqrt(weight / weight.max()))
    size = np.sum(np.abs(course)) / np.sum(weight)
    return complex(size * np.exp(1j * start)), float(slope / (2 * np.pi))


def water_by_reference(
    fids: Array, reference: Array, match: Match, inside: np.ndarray, times_s: np.ndarray, metabolites: np.ndarray,
    noise_sd: float, reference_sd: float,
) -> Array:  # fmt: skip
    """Return the water of FIDs by the reference and themselves, (voxel, t) complex64.

    Parameters
    ----------
    fids, reference
        (voxel, t), of metabolite data and of the reference.
    match
        Of the two.
    inside
        (voxel,) bool: brain. Its water and that of all other voxels have covariances of their own: water of the scalp
        has more shapes, which would let more noise through.
    times_s
        (t,) [s].
    metabolites
        (t, t): covariance of the metabolites.
    noise_sd, reference_sd
        SD of the real part of the noise of a sample of either.
    """
    xp = namespace(fids)
    q = like(match.factor(times_s), fids, fids.dtype)
    turned = fids / q
    energy = to_numpy(xp.sum(xp.real(reference) ** 2 + xp.imag(reference) ** 2, axis=1)).astype(float)
    energy = np.maximum(energy - 2 * reference_sd**2 * len(times_s), 0.0)
    groups = [where & (energy > 0) for where in (inside, ~inside)]
    unknown = np.flatnonzero(energy <= 0)
    members, parts = [unknown], [xp.zeros_like(xp.take(fids, like(unknown, fids), axis=0))]
    for group in groups:
        if not group.any():
            continue
        members_of_group = xp.take(reference, like(np.flatnonzero(group), fids), axis=0)
        factor = _factor(members_of_group, energy[group], reference_sd)
        odd = group.copy()
        odd[group] = _beyond(members_of_group, factor, reference_sd)
        for some in (group & ~odd, odd):
            if not some.any():
                continue
            index = like(np.flatnonzero(some), fids)
            seen = xp.take(reference, index, axis=0)
            own = factor if some is not odd else _with_more(seen, factor, energy[some], reference_sd)
            members.append(np.flatnonzero(some))
            parts.append(
                _from_both(seen, xp.take(turned, index, axis=0), energy[some], own, metabolites, noise_sd, reference_sd)
            )
    back = like(np.argsort(np.concatenate(members)), fids)
    return xp.take(xp.concat(parts, axis=0), back, axis=0) * q


def _factor(reference: Array, energy: np.ndarray, reference_sd: float) -> np.ndarray:
    """Return F, (t, row): the mean of w w^H / |w|^2 is F F^H. Rows that noise alone could have made are left out."""
    chosen = energy > _LEAST_ENERGY * energy.max()
    scale = 1 / np.sqrt(energy[chosen])
    some = namespace(reference).take(reference, like(np.flatnonzero(chosen), reference), axis=0)
    power, rows = principal_rows(some * like(scale[:, None].astype(np.float32), reference, reference.dtype), MOST_ROWS)
    noise = 2 * reference_sd**2 * float(np.mean(scale**2))
    power = power / chosen.sum() - noise
    # the largest eigenvalue of white noise (Marchenko and Pastur 1967)
    edge = noise * (_OVER_EDGE * (1 + np.sqrt(reference.shape[1] / chosen.sum())) ** 2 - 1)
    keep = power > max(edge, 1e-12 * power[0])
    keep[0] = True
    return (np.sqrt(np.maximum(power[keep], 0))[:, None] * rows[keep]).T


def _outside(reference: Array, factor: np.ndarray) -> Array:
    """Return the part of FIDs that the columns of F do not span."""
    columns = np.linalg.qr(factor)[0]
    analysis = like(columns.conj().astype(np.complex64), reference, reference.dtype)
    return reference - (reference @ analysis) @ like(columns.T.astype(np.complex64), reference, reference.dtype)


def _beyond(reference: Array, factor: np.ndarray, reference_sd: float) -> np.ndarray:
    """Return in which voxels, (voxel,) bool, the reference shows more than F and noise explain."""
    xp = namespace(reference)
    left = _outside(reference, factor)
    power = to_numpy(xp.sum(xp.real(left) ** 2 + xp.imag(left) ** 2, axis=1)).astype(float)
    freedom = reference.shape[1] - factor.shape[1]
    return power > 2 * reference_sd**2 * freedom * (1 + _DEVIATIONS / np.sqrt(freedom))


def _with_more(reference: Array, factor: np.ndarray, energy: np.ndarray, reference_sd: float) -> np.ndarray:
    """Return F with more columns, for voxels of rare shapes: those of what F leaves there."""
    scale = 1 / np.sqrt(energy)
    left = _outside(reference, factor)
    rows_left = left * like(scale[:, None].astype(np.float32), left, left.dtype)
    power, rows = principal_rows(rows_left, min(MOST_ROWS, len(energy)))
    noise = 2 * reference_sd**2 * float(np.mean(scale**2))
    power = power / len(energy) - noise
    keep = power > _LEAST_OF_NOISE * noise
    return np.concatenate([factor, (np.sqrt(np.maximum(power[keep], 0))[:, None] * rows[keep]).T], axis=1)


def _from_both(
    reference: Array, turned: Array, energy: np.ndarray, factor: np.ndarray, metabolites: np.ndarray, noise_sd: float,
    reference_sd: float,
) -> Array:  # fmt: skip
    beside = metabolites + 2 * noise_sd**2 * np.eye(len(metabolites))
    by_reference = factor.conj().T / (2 * reference_sd**2)
    by_data = np.linalg.solve(beside, factor).conj().T
    gain, rotation = eigh((by_reference + by_data) @ factor)
    turn = rotation.conj().T
    of_reference, of_data = (turn @ by_reference).T, (turn @ by_data).T
    # scaled, so that single precision holds what is large
    size = np.linalg.norm(of_reference, axis=0) + np.linalg.norm(of_data, axis=0)
    a, b = ((m / size).astype(np.complex64) for m in (of_reference, of_data))
    coefficients = reference @ like(a, reference, reference.dtype) + turned @ like(b, turned, turned.dtype)
    shrink = energy[:, None] / (1 + energy[:, None] * np.maximum(gain, 0))
    coefficients = coefficients * like((shrink * size).astype(np.float32), coefficients, coefficients.dtype)
    return coefficients @ like((factor @ rotation).T.astype(np.complex64), coefficients, coefficients.dtype)


def quadratics(shape: tuple[int, ...]) -> np.ndarray:
    """Return the polynomials in place up to second order, (voxel, function), along the axes that have voxels."""
    lines = places(shape).T[1:]
    squares = [lines[i] * lines[j] for i in range(len(lines)) for j in range(i, len(lines))]
    return np.stack([np.ones(int(np.prod(shape))), *lines, *squares], axis=-1)
