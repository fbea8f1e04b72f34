"""How water differs between its reference and the metabolite data: gain, phase and frequency that drift.

Frequency, phase and receiver gain change between the scans by amounts that change slowly in place:

    w(r, t) = q(r, t) w_ref(r, t),      q = a(r) exp(i 2 pi f(r) (t - t_0)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy

_ITERATIONS = 5


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


def places(shape: tuple[int, ...]) -> np.ndarray:
    """Return the functions of place, (voxel, 1 to 4): constant and linear along the axes that have voxels."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    grids = np.meshgrid(*axes, indexing="ij")
    columns = [np.ones(shape), *(g for g, n in zip(grids, shape, strict=True) if n > 1)]
    return np.stack([c.ravel() for c in columns], axis=-1)


def quadratics(shape: tuple[int, ...]) -> np.ndarray:
    """Return the polynomials in place up to second order, (voxel, function), along the axes that have voxels."""
    lines = places(shape).T[1:]
    squares = [lines[i] * lines[j] for i in range(len(lines)) for j in range(i, len(lines))]
    return np.stack([np.ones(int(np.prod(shape))), *lines, *squares], axis=-1)
