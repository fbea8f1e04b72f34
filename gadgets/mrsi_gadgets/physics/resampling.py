"""Signals between their samples: band-limited interpolation that is as good at the first sample as in the middle.

An FID begins abruptly, so Fourier interpolation rings at its start, where the signal is largest. Here each new value is
the linear combination of the nearest `taps` samples that has the least mean square error over all oscillations with
|f| <= band / step; near the ends those samples lie on one side. Yen, IRE Trans Circuit Theory 1956;3:251-257.
"""

from __future__ import annotations

import numpy as np

_RIDGE = 1e-8
"""Noise power that the weights must not amplify, relative to the signal's: text files have six digits."""


def resample(
    signals: np.ndarray, start_s: float, step_s: float, times_s: np.ndarray, *, band: float = 0.35, taps: int = 32
) -> np.ndarray:
    """Return `signals` (..., n), sampled at start + step (0 ... n - 1), at other times, (..., len(times_s)).

    Parameters
    ----------
    signals : complex or real, (..., n).
    start_s, step_s : time of the first sample and between two samples [s].
    times_s : wanted times [s], within the samples or a fraction of a step outside.
    band : largest frequency |f| of the signals in units of 1 / step. Relative errors (band 0.35, text of six digits):
        1e-5 in the middle, 2e-3 between the first two samples; with a band of 0.25 2e-4 there. What lies beyond the
        band is not reproduced.
    taps : samples that make each value.
    """
    n = signals.shape[-1]
    taps = min(taps, n)
    places = (np.asarray(times_s, float) - start_s) / step_s
    first = np.clip(np.round(places - (taps - 1) / 2).astype(int), 0, n - taps)
    index = np.arange(taps)
    gram = np.sinc(2 * band * (index[:, None] - index[None, :])) + _RIDGE * np.eye(taps)
    wanted = np.sinc(2 * band * (index[:, None] - (places - first)[None, :]))
    weights = np.linalg.solve(gram, wanted)
    on_sample = np.abs(places - np.round(places)) < 1e-9
    exact = np.equal(index[:, None], np.round(places - first)[None, :]).astype(float)
    weights = np.where(on_sample[None, :] & (exact.sum(axis=0) == 1)[None, :], exact, weights)
    matrix = np.zeros((n, len(places)))
    np.put_along_axis(matrix, first[None, :] + index[:, None], weights, axis=0)
    return np.asarray(signals @ matrix.astype(signals.real.dtype))


def delayed(signals: np.ndarray, step_s: float, delays_s: np.ndarray, *, band: float = 0.42) -> np.ndarray:
    """Return each signal (n, t) a little later, at t + delay, with a delay [s] of its own: a first-order phase.

    A parabola in the delay through three shifted copies. At 400 Hz it errs by 1e-3 for delays within 75 us.
    """
    reach = float(np.abs(delays_s).max())
    if reach == 0:
        return signals
    n = signals.shape[-1]
    early, late = (
        resample(signals, 0.0, step_s, step_s * np.arange(n) + shift, band=band) for shift in (-reach, reach)
    )
    x = np.asarray(delays_s / reach, dtype=signals.real.dtype)[:, None]
    return np.asarray(x * (x - 1) / 2 * early + (1 - x**2) * signals + x * (x + 1) / 2 * late)
