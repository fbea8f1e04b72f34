"""Residual and unsuppressed water: a temporal subspace learned from the scan, separated from metabolites by covariance.

Voxel by voxel HSVD leaves about the noise it was fitted to. What all voxels say together is better: their water FIDs
span a small space. With C_w the mean of w w^H over voxels (w the HSVD estimate, unit energy), C_m the learned
covariance of metabolites and s^2 their strength, the linear minimum mean-square estimate of a voxel's water is

    w^ = g C_w (g C_w + s^2 C_m + 2 sd^2 I)^-1 x,      g = energy of water in the voxel.

It takes what water explains better than metabolites and noise do, and costs no noise where the two overlap. That water
and metabolites have temporal subspaces of their own is the idea of Ma, Lam, Johnson, Liang, Magn Reson Med 2016,
doi:10.1002/mrm.25635.
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.reconstruction.nuisance.hsvd import hsvd, principal_rows

HALF_BAND_PPM = 0.5
"""Half width of the band that water is looked for in [ppm]."""
MOST_ROWS = 60
MOST_CLASSES, LEAST_IN_CLASS = 6, 100


def water_by_hsvd(
    fids: Array, dwell_s: float, hz_per_ppm: float, noise_sd: np.ndarray, offset_hz: float = 0.0
) -> Array:
    """Return the water of FIDs (fid, t) by HSVD, complex64.

    Parameters
    ----------
    fids
        B0 taken out: water is at 0 Hz.
    dwell_s, hz_per_ppm
        Of the protocol.
    noise_sd
        (fid,) SD of the real part of a sample's noise.
    """
    half = HALF_BAND_PPM * hz_per_ppm
    found = hsvd(fids, dwell_s, (-half, half), noise_sd=noise_sd)
    return found.signal(int(fids.shape[1]))


def metabolite_strength(fids: Array, model: Subspace, noise_sd: float) -> float:
    """Return s^2, the factor from the ensemble's energy to that of FIDs (fid, t) of brain (median over voxels)."""
    rank = model.metabolite_rank
    coefficients = to_numpy(model.coefficients(fids))[:, :rank].astype(np.complex128)
    energy = np.sum(np.abs(coefficients) ** 2, axis=1) - 2 * rank * noise_sd**2
    strength = float(np.median(energy)) / float(np.sum(model.metabolite_energy[:rank]))
    # below the noise nothing can be said, and nothing depends on it
    return max(strength, 1e-3 * noise_sd**2 / float(np.sum(model.metabolite_energy[:rank])))


def metabolite_covariance(model: Subspace) -> np.ndarray:
    """Return C_m, (t, t) complex128: mean of x x^H of the ensemble's metabolites."""
    rank = model.metabolite_rank
    rows = model.basis[:rank].astype(np.complex128)
    return np.asarray(rows.T @ model.metabolite_covariance[:rank, :rank] @ rows.conj())


def decay_classes(water: Array, times_s: np.ndarray, known: np.ndarray, *, most: int = MOST_CLASSES) -> np.ndarray:
    """Return the class (fid,) of each FID by how fast its water decays, equally many known ones in each.

    Where the field varies within a voxel water decays fast and in many shapes; elsewhere its shape is simple, which is
    worth knowing. The measure is the mean time of |w|^2. There are at most `most` classes, of a hundred FIDs at least.
    """
    power = to_numpy(namespace(water).abs(water)).astype(float) ** 2
    energy = power.sum(axis=1)
    late = power @ (times_s - times_s[0]) / np.maximum(energy, np.finfo(float).tiny)
    count = int(np.clip(known.sum() // LEAST_IN_CLASS, 1, most))
    edges = np.quantile(late[known], np.linspace(0, 1, count + 1)[1:-1]) if known.any() else []
    return np.digitize(late, edges)


def separate_water(fids: Array, estimate: Array, known: np.ndarray, metabolites: np.ndarray, noise_sd: float) -> Array:
    """Return the water of FIDs by the covariances of water, metabolites and noise, (fid, t) complex64.

    Parameters
    ----------
    fids
        (fid, t) complex64.
    estimate
        (fid, t): a first estimate of their water; its energy is taken as the voxel's.
    known
        (fid,) bool: voxels that C_w is learned from.
    metabolites
        (t, t): s^2 C_m.
    noise_sd
        SD of the real part of a sample's noise.
    """
    xp = namespace(fids)
    energy = to_numpy(xp.sum(xp.real(estimate) ** 2 + xp.imag(estimate) ** 2, axis=1)).astype(float)
    known = known & (energy > 0)
    if not known.any():
        return xp.zeros_like(fids)
    scale = np.where(energy > 0, 1 / np.sqrt(np.maximum(energy, np.finfo(float).tiny)), 0.0)
    chosen = xp.take(estimate, like(np.flatnonzero(known), fids), axis=0)
    unit = chosen * like(scale[known, None].astype(np.float32), fids, fids.dtype)
    power, rows = principal_rows(unit, MOST_ROWS)
    power = power / known.sum()
    keep = power > 1e-12 * power[0]
    factor = (np.sqrt(power[keep])[:, None] * rows[keep]).T
    others = metabolites + 2 * noise_sd**2 * np.eye(len(metabolites))
    weighed = np.linalg.solve(others, factor).conj().T
    gain, rotation = np.linalg.eigh(weighed @ factor)
    analysis = (rotation.conj().T @ weighed).T
    size = np.linalg.norm(analysis, axis=0)
    coefficients = fids @ like((analysis / size).astype(np.complex64), fids, fids.dtype)
    # g / (1 + g gain), written so that voxels without water have none
    shrink = energy[:, None] / (1 + energy[:, None] * np.maximum(gain, 0))
    coefficients = coefficients * like((shrink * size).astype(np.float32), fids, fids.dtype)
    rows = (factor @ rotation).T.astype(np.complex64)
    return coefficients @ like(rows, coefficients, coefficients.dtype)
