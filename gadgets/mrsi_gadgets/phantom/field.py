"""B0 inhomogeneity on the fine grid: a smooth shim residue and the sharp dipole field of an air-filled sinus."""

from __future__ import annotations

from itertools import product

import numpy as np

_SINUS_LPS_MM = np.array([0.0, -84.0, -34.0])
"""Where the equivalent dipole of the frontal and sphenoidal sinus lies against the isocentre."""
_HEAD_RADIUS_MM = 90.0


def b0_field(
    positions_mm: np.ndarray, brain: np.ndarray, *, smooth_sd_hz: float, sinus_hz: float, rng: np.random.Generator
) -> np.ndarray:
    """B0 shift [Hz] at `positions_mm` (..., 3, LPS), zero on average over `brain` (weights, same shape without the 3).

    The smooth part is a random cubic polynomial of standard deviation `smooth_sd_hz` over the brain; the sharp part is
    the field of a dipole along the patient's z axis, (3 cos^2 - 1) / r^3, of `sinus_hz` where it is strongest.
    """
    weights = brain / brain.sum()
    smooth = _random_polynomial(positions_mm / _HEAD_RADIUS_MM, rng)
    smooth = smooth - np.sum(weights * smooth)
    smooth *= smooth_sd_hz / max(float(np.sqrt(np.sum(weights * smooth**2))), 1e-12)
    sharp = dipole_field(positions_mm - _SINUS_LPS_MM - rng.uniform(-4.0, 4.0, 3))
    strongest = float(np.max(np.abs(sharp[brain > 0.5 * brain.max()])))
    sharp = sharp * (sinus_hz / max(strongest, 1e-12))
    return smooth + sharp - np.sum(weights * sharp)


def dipole_field(offsets_mm: np.ndarray) -> np.ndarray:
    """Field (3 cos^2(theta) - 1) / r^3 of a dipole along z at `offsets_mm` (..., 3) from it; softened within 15 mm."""
    squared = np.sum(offsets_mm**2, axis=-1) + 15.0**2
    return np.asarray((3.0 * offsets_mm[..., 2] ** 2 / squared - 1.0) / squared**1.5)


def _random_polynomial(scaled: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random polynomial of degree 1 to 3; higher degrees are weaker, as after a second-order shim."""
    strength = {1: 0.6, 2: 1.0, 3: 0.8}
    result = np.zeros(scaled.shape[:-1])
    for powers in product(range(4), repeat=3):
        degree = sum(powers)
        if 1 <= degree <= 3:
            result += strength[degree] * rng.standard_normal() * np.prod(scaled ** np.array(powers), axis=-1)
    return result
