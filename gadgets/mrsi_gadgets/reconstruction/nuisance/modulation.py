"""Sidebands of unsuppressed water: a phase modulation of each voxel by a few functions of time that all voxels share.

Vibrating gradient coils modulate the field, by a part common to all places and parts linear in place. A voxel's signal
is then w(t) exp(i phi(r, t)), phi = sum_j p_j(r) m_j(t), which gives every strong line sidebands on both sides of
opposite sign. Metabolites lie on one side of water only. So the modulation is read from the other side: with the phase
of w taken out, the residual's part downfield of water is half of i phi |w|, and phi is real.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mrsi_gadgets.arrays import Array, like, to_numpy

ITERATIONS = 6
_INNER = 3
_RIDGE = 1e-4
LEAST_PPM = 0.4
"""Sidebands closer to water than this are part of its line [ppm]."""


def places(shape: tuple[int, ...]) -> np.ndarray:
    """Return the functions of place, (voxel, 1 to 4): constant and linear along the axes that have voxels."""
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    grids = np.meshgrid(*axes, indexing="ij")
    columns = [np.ones(shape), *(g for g, n in zip(grids, shape, strict=True) if n > 1)]
    return np.stack([c.ravel() for c in columns], axis=-1)


def shared_modulation(
    fids: Array, place: np.ndarray, dwell_s: float, hz_per_ppm: float, water_of: Callable[[Array], Array]
) -> np.ndarray:
    """Return m_j(t) [rad], (function, t), of the phase modulation of water.

    Parameters
    ----------
    fids
        (voxel, t), B0 taken out, water at 0 Hz and metabolites at negative frequencies.
    place
        (voxel, function): p_j(r).
    dwell_s, hz_per_ppm
        Of the protocol.
    water_of
        Returns the water of FIDs without modulation.
    """
    modulation = np.zeros((place.shape[1], int(fids.shape[1])))
    for _ in range(ITERATIONS):
        plain = without_modulation(fids, place, modulation)
        modulation = modulation + _update(
            to_numpy(plain), to_numpy(water_of(plain)), place, dwell_s, LEAST_PPM * hz_per_ppm
        )
    return modulation


def without_modulation(fids: Array, place: np.ndarray, modulation: np.ndarray) -> Array:
    """Return FIDs (voxel, t) times exp(-i phi)."""
    return fids * like(np.exp(-1j * (place @ modulation)).astype(np.complex64), fids, fids.dtype)


def with_modulation(fids: Array, place: np.ndarray, modulation: np.ndarray) -> Array:
    """Return FIDs (voxel, t) times exp(+i phi)."""
    return without_modulation(fids, place, -modulation)


def _update(fids: np.ndarray, water: np.ndarray, place: np.ndarray, dwell_s: float, least_hz: float) -> np.ndarray:
    """Return what is still missing of m_j(t), by least squares over the voxels at each time."""
    n = fids.shape[1]
    frequency = np.fft.fftfreq(2 * n, dwell_s)
    downfield = (frequency > least_hz) & (frequency < 0.9 * frequency.max())
    size = np.abs(water)
    residual = (fids - water) * np.conj(water) / np.maximum(size, np.finfo(np.float32).tiny)
    normal = np.einsum("rt,ri,rj->tij", size**2, place, place, optimize=True)
    # late, when water is gone, nothing is known of the modulation and nothing depends on it
    normal = normal + _RIDGE * np.trace(normal, axis1=1, axis2=2).max() * np.eye(place.shape[1])
    found = np.zeros((place.shape[1], n))
    for _ in range(_INNER):
        left = residual - 1j * (place @ found) * size
        half = np.fft.ifft(np.fft.fft(left, 2 * n, axis=1) * downfield, axis=1)[:, :n]
        right = np.einsum("rt,ri,rt->ti", size, place, 2 * np.imag(half), optimize=True)
        found = found + np.linalg.solve(normal, right[..., None])[..., 0].T
    return found
