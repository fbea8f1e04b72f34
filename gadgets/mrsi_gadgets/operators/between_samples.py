"""Temporal functions between the spectral times: what a sample at t + tau sees of a basis that is known at t.

Samples of one lap (of a ring, a spiral, an EPSI lobe) are taken one after another, each at its own time. A temporal
basis is therefore needed at times_s + tau for every offset tau of a lap, within about one dwell. Functions of a
bandwidth 1/dwell are smooth over so short a time: a few Chebyshev nodes in tau carry them to six digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np

from mrsi_gadgets.errors import DataError

_NODE_TOLERANCE = 1e-6
_BAND_FLOOR = 1e-4
"""Power that `continued` allows outside the rows' own band, relative to the largest within."""
_BAND_MARGIN_HZ = 80.0
"""By how much the field widens the rows' band."""
_RIDGE = 1e-4
"""Against the power of one sample: without it rows that look like noise grow beyond their ends."""


@dataclass(frozen=True, eq=False)
class RowsBetweenSamples:
    """Rows of a temporal basis at the spectral times plus each of some offsets (Chebyshev nodes)."""

    nodes_s: np.ndarray
    """(node,) offsets [s]."""
    values: np.ndarray
    """(node, row, t) complex: the rows at times_s + nodes_s[node]."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.nodes_s.shape != (self.values.shape[0],):
            raise DataError(
                f"rows {self.values.shape} at offsets {self.nodes_s.shape} do not fit; give (node, row, t) and (node,)"
            )

    def at(self, offsets_s: np.ndarray) -> np.ndarray:
        """Return the rows at times_s + offset, (offset, row, t), by interpolation in the offset."""
        weights = _lagrange(self.nodes_s, np.asarray(offsets_s, dtype=float))
        return np.tensordot(weights, self.values, axes=1)

    def covers(self, low_s: float, high_s: float) -> bool:
        """Tell whether the nodes stand for all offsets between two."""
        first, last = float(self.nodes_s.min()), float(self.nodes_s.max())
        # Chebyshev nodes lie within their interval
        margin = 0.5 * (last - first) * (1 / np.cos(0.5 * np.pi / len(self.nodes_s)) - 1) + 1e-9
        return first - margin <= low_s and high_s <= last + margin

    def mixed(self, matrix: np.ndarray) -> RowsBetweenSamples:
        """Return new rows matrix (new, row) times the old ones."""
        return RowsBetweenSamples(self.nodes_s, matrix @ self.values)

    def shifted(self, frequency_hz: float, times_s: np.ndarray) -> RowsBetweenSamples:
        """Return the rows times exp(i 2 pi f t), each at its own time."""
        phase = np.exp(2j * np.pi * frequency_hz * (times_s + self.nodes_s[:, None]))
        return RowsBetweenSamples(self.nodes_s, self.values * phase[:, None, :])

    def with_more(self, other: RowsBetweenSamples) -> RowsBetweenSamples:
        """Return these rows followed by those of another set at the same nodes."""
        return RowsBetweenSamples(self.nodes_s, np.concatenate([self.values, other.values], axis=1))


def offset_nodes(low_s: float, high_s: float, dwell_s: float) -> np.ndarray:
    """Return the offsets (node,) [s] from which functions of bandwidth 1/dwell are known over [low, high].

    Chebyshev interpolation of exp(i 2 pi f tau), |f| <= 1/(2 dwell), over an interval of half-width h has an error of
    about 2 (a/2)^n / n! with a = pi h / dwell.
    """
    half, middle = 0.5 * (high_s - low_s), 0.5 * (high_s + low_s)
    if half <= 1e-12:
        return np.array([middle])
    a = np.pi * half / dwell_s
    n = 2
    while 2 * (a / 2) ** n / factorial(n) > _NODE_TOLERANCE:
        n += 1
    return middle + half * np.cos(np.pi * (np.arange(n) + 0.5) / n)


def continued(rows: np.ndarray, times_s: np.ndarray, nodes_s: np.ndarray) -> RowsBetweenSamples:
    """Return rows between their samples from the samples alone: the estimate of least error for their spectrum.

    The rows count as stationary with the power spectrum they have themselves (widened by the field, with a floor).
    Between samples that is exact for what the band holds; beyond the first and the last sample it is a prediction and
    errs by some per cent. A basis learned from an ensemble is known there: `models.between_samples` uses that.

    Parameters
    ----------
    rows
        (row, t).
    times_s
        (t,) [s], uniform.
    nodes_s
        (node,) [s].
    """
    n_times = rows.shape[1]
    if n_times < 2:
        return RowsBetweenSamples(nodes_s, np.repeat(rows[None], len(nodes_s), axis=0))
    dwell = float(times_s[1] - times_s[0])
    frequency, power = _band(rows, dwell)
    lags = np.arange(1 - n_times, n_times)
    place = np.arange(n_times)[:, None] - np.arange(n_times)[None, :] + n_times - 1
    covariance = (np.exp(2j * np.pi * np.outer(lags * dwell, frequency)) @ power)[place]
    known = np.linalg.solve(covariance + _RIDGE * np.eye(n_times), rows.astype(np.complex128).T)
    values = [
        ((np.exp(2j * np.pi * np.outer(lags * dwell + tau, frequency)) @ power)[place] @ known).T for tau in nodes_s
    ]
    return RowsBetweenSamples(np.asarray(nodes_s, dtype=float), np.stack(values))


def _band(rows: np.ndarray, dwell_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies and the power spectrum of rows, widened and with a floor, of unit sum."""
    n = 4 * rows.shape[1]
    power = np.sum(np.abs(np.fft.fft(rows, n, axis=1)) ** 2, axis=0)
    reach = max(1, round(_BAND_MARGIN_HZ * n * dwell_s))
    box = np.zeros(n)
    box[np.arange(-reach, reach + 1) % n] = 1.0
    wide = np.maximum(np.fft.ifft(np.fft.fft(power) * np.fft.fft(box)).real, 0.0)
    wide = wide / max(float(wide.max()), np.finfo(float).tiny) + _BAND_FLOOR
    return np.fft.fftfreq(n, dwell_s), wide / wide.sum()


def _lagrange(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the weights (x, node) of polynomial interpolation from Chebyshev nodes (barycentric formula)."""
    n = len(nodes)
    if n == 1:
        return np.ones((len(x), 1))
    order = np.arange(n)
    weight = (-1.0) ** order * np.sin(np.pi * (order + 0.5) / n)
    difference = x[:, None] - nodes[None, :]
    exact = np.abs(difference) < 1e-15
    terms = weight / np.where(exact, 1.0, difference)
    terms = np.where(exact.any(axis=1, keepdims=True), exact.astype(float), terms)
    return terms / terms.sum(axis=1, keepdims=True)
