"""The receiver: sensitivities of loops around the head by the law of Biot and Savart, and noise between channels."""

from __future__ import annotations

import numpy as np

_LOOP_RADIUS_MM = 80.0
_HELMET_MM = (190.0, 205.0)
"""Half axes of the ellipse the loops sit on, left-right and front-back."""
_SEGMENTS = 24


def coil_sensitivities(positions_mm: np.ndarray, n_coils: int) -> np.ndarray:
    """Complex sensitivity of `n_coils` loops at `positions_mm` (..., 3, LPS), shape (coil, ...), complex64.

    The loops stand upright on an ellipse around the head in one row (two staggered rows from 12 loops on). The
    sensitivity is the transverse field Bx - i By of unit current (principle of reciprocity; Hoult 2000,
    doi:10.1002/1099-0534(2000)12:4<173::AID-CMR1>3.0.CO;2-Q), scaled so that its root sum of squares is 1 at
    the centre.
    """
    flat = positions_mm.reshape(-1, 3).astype(np.float32)
    maps = np.stack([_loop_field(flat, centre, normal) for centre, normal in _loops(n_coils)])
    at_centre = [_loop_field(np.zeros((1, 3), np.float32), c, n)[0] for c, n in _loops(n_coils)]
    maps /= np.float32(np.linalg.norm(at_centre))
    return maps.reshape(n_coils, *positions_mm.shape[:-1]).astype(np.complex64)


def noise_correlation(n_coils: int, rng: np.random.Generator) -> np.ndarray:
    """Covariance between channels, complex (coil, coil), mean variance 1: neighbours correlate by about 0.3."""
    centres = np.array([centre for centre, _ in _loops(n_coils)])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    shared = np.exp(-((distance / (1.7 * _LOOP_RADIUS_MM)) ** 2)) * 0.95 + 0.05 * np.eye(n_coils)
    phases = np.exp(2j * np.pi * rng.uniform(size=n_coils))
    gains = np.exp(0.15 * rng.standard_normal(n_coils)) * phases
    mixed = rng.standard_normal((n_coils, n_coils, 2)) @ np.array([1.0, 1j])
    covariance = shared + 0.02 * (mixed @ mixed.conj().T) / n_coils
    covariance = gains[:, None] * covariance * gains.conj()[None]
    return np.asarray(covariance * (n_coils / np.trace(covariance).real))


def correlated_noise(covariance: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Complex Gaussian noise n (coil, *shape), complex64, with E[n n^H] = 2 `covariance`: that of its real part."""
    root = np.linalg.cholesky(covariance).astype(np.complex64)
    count = int(np.prod(shape))
    white = rng.standard_normal((covariance.shape[0], count, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return np.asarray((root @ white).reshape(covariance.shape[0], *shape))


def _loops(n_coils: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centre [mm] and unit normal of each loop."""
    rows = 2 if n_coils >= 12 else 1
    loops = []
    for i in range(n_coils):
        angle = 2.0 * np.pi * (i + 0.5) / n_coils
        height = 0.0 if rows == 1 else 35.0 * (1 if i % 2 else -1)
        centre = np.array([_HELMET_MM[0] * np.cos(angle), _HELMET_MM[1] * np.sin(angle), height])
        normal = np.array([np.cos(angle), np.sin(angle), 0.0])
        loops.append((centre, normal))
    return loops


def _loop_field(points: np.ndarray, centre: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Transverse field Bx - i By of a circular loop, complex64 (point,), arbitrary unit."""
    along = np.array([-normal[1], normal[0], 0.0])
    up = np.cross(normal, along)
    angles = 2.0 * np.pi * (np.arange(_SEGMENTS) + 0.5) / _SEGMENTS
    field = np.zeros((points.shape[0], 2), np.float32)
    for angle in angles:
        place = centre + _LOOP_RADIUS_MM * (np.cos(angle) * along + np.sin(angle) * up)
        current = (-np.sin(angle) * along + np.cos(angle) * up).astype(np.float32)
        offset = points - place.astype(np.float32)
        weight = np.sum(offset**2, axis=-1) ** np.float32(-1.5)
        field[:, 0] += (current[1] * offset[:, 2] - current[2] * offset[:, 1]) * weight
        field[:, 1] += (current[2] * offset[:, 0] - current[0] * offset[:, 2]) * weight
    return field[:, 0] - np.complex64(1j) * field[:, 1]
