"""Lineshapes in the time domain, batched, for any array namespace.

Every function takes `times_s` of shape (t,) and a parameter of any shape (...) and returns (..., t). Multiply the
results to combine them. Widths are full widths at half maximum of the line in the spectrum.
"""

from __future__ import annotations

import math

from mrsi_gadgets.arrays import Array, like, namespace


def exponential_decay(times_s: Array, t2_s: Array) -> Array:
    """Return exp(-t / T2), a Lorentzian line of width 1 / (pi T2); `t2_s` [s] must be positive."""
    return namespace(times_s, t2_s).exp(-times_s / t2_s[..., None])


def lorentzian_decay(times_s: Array, fwhm_hz: Array) -> Array:
    """Return exp(-pi fwhm t), the decay of a Lorentzian line of the given width [Hz]."""
    return namespace(times_s, fwhm_hz).exp(-math.pi * fwhm_hz[..., None] * times_s)


def gaussian_decay(times_s: Array, fwhm_hz: Array) -> Array:
    """Return exp(-(pi fwhm t)^2 / (4 ln 2)), the decay of a Gaussian line of the given width [Hz]."""
    width = (math.pi / (2 * math.sqrt(math.log(2)))) * fwhm_hz
    return namespace(times_s, fwhm_hz).exp(-((width[..., None] * times_s) ** 2))


def frequency_shift(times_s: Array, hz: Array) -> Array:
    """Return exp(i 2 pi f t), complex; a shift of the line by `hz`."""
    xp = namespace(times_s, hz)
    angle = (2 * math.pi) * hz[..., None] * times_s
    return xp.cos(angle) + 1j * xp.sin(angle)


def decaying_shift(start_s: float, step_s: float, n: int, t2_s: Array, hz: Array) -> Array:
    """Return exp(-t / T2 + i 2 pi f t) on the regular grid t = start + step (0 ... n - 1), complex.

    The exponential of a sum is a product: about 2 sqrt(n) exponentials and n products per line, which is ten times
    faster than n exponentials. Same meaning as `exponential_decay` times `frequency_shift`.
    """
    xp = namespace(t2_s, hz)
    m = max(1, math.ceil(math.sqrt(n)))
    index = like(range(m), t2_s, dtype=t2_s.dtype)
    fine = _exponential(xp, t2_s, hz, index * step_s)
    coarse = _exponential(xp, t2_s, hz, start_s + index[: -(-n // m)] * (m * step_s))
    grid = coarse[..., :, None] * fine[..., None, :]
    return xp.reshape(grid, (*grid.shape[:-2], grid.shape[-2] * m))[..., :n]


def _exponential(xp: Array, t2_s: Array, hz: Array, times: Array) -> Array:
    decay = xp.exp(-times / t2_s[..., None])
    angle = (2 * math.pi) * hz[..., None] * times
    return decay * xp.cos(angle) + 1j * (decay * xp.sin(angle))
