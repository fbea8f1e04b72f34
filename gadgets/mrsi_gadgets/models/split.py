"""Splitting FIDs into wanted signal and nuisance with a learned union of subspaces.

In the coefficients a of a `Subspace` the model of a voxel is a scale mixture of Gaussians

    a ~ N(0, T),    T(w, l) = s^2 [C_m + w E_m C_w + l E_m C_l] + 2 sd^2 I,

with the learned covariances of metabolites, water and lipids (the latter two of unit energy; E_m = mean energy of the
metabolites), one scale s for all voxels, and strengths w, l of water and lipids that differ from voxel to voxel. The
strengths are chosen per voxel by likelihood from a logarithmic grid; the wanted signal is then the linear minimum
mean-square estimate s^2 C_m T^-1 a. Where nuisance is strong this is an oblique projection along the nuisance, where
there is none it costs nothing, and no threshold is set by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.subspace import Subspace

_STRENGTHS = (0.0, *np.geomspace(1e-3, 1e5, 9).tolist())
"""Energies of water or lipids over the mean energy of the metabolites: decades; 1e5 is water of 1,000 times NAA CH3."""
_SCALE_VOXELS = 256
_SCALE_ITERATIONS = 12
_SCALE_TOLERANCE = 0.02
"""Relative change of the variance at which the search ends; the split hardly depends on the scale."""


@dataclass(frozen=True, eq=False)
class Split:
    """Two parts of FIDs; what lies outside the subspace is in neither."""

    wanted: Array
    """(..., t): metabolites and macromolecules."""
    nuisance: Array
    """(..., t): water and lipids."""
    scale: float
    """Factor from the ensemble's unit to that of the FIDs."""
    water_strength: np.ndarray
    """(...): energy of water over the mean energy of the metabolites, to the nearest decade."""
    lipid_strength: np.ndarray
    """(...): the same of lipids."""


def split_nuisance(subspace: Subspace, fids: Array, noise_sd: float, *, scale: float | None = None) -> Split:
    """Split FIDs into wanted signal and nuisance.

    Parameters
    ----------
    subspace : learned with nuisance rows for the protocol of the FIDs.
    fids : (..., t) complex, B0 taken out, any array namespace. Their common phase does not matter.
    noise_sd : standard deviation of the noise in the real part of a sample, positive, in the unit of `fids`.
    scale : from the ensemble's unit to that of `fids`; None to estimate it (maximum likelihood) from `fids`, which
        should then be voxels of brain.

    Raises
    ------
    DataError
        The subspace has no nuisance rows, the noise level is not positive, or the number of points differs.
    """
    if subspace.rank == subspace.metabolite_rank:
        raise DataError("this subspace has no nuisance rows; learn it with nuisance=True to split signals")
    if not noise_sd > 0:
        raise DataError(f"the noise level is {noise_sd:g}; it must be positive to weigh signal against nuisance")
    xp = namespace(fids)
    a = subspace.coefficients(fids)
    flat = xp.reshape(a, (-1, subspace.rank))
    if scale is None:
        scale = likely_scale(subspace, to_numpy(flat), noise_sd)
    models = covariances(subspace)
    whiteners = [whitener(c * scale**2, noise_sd) for c in models]
    costs = xp.stack([likelihood_cost(flat, whitener) for whitener in whiteners])
    best = to_numpy(xp.argmin(costs, axis=0))
    wanted = xp.zeros_like(flat)
    for state in np.unique(best):
        gain = scale**2 * subspace.metabolite_covariance @ whiteners[state].conj().T @ whiteners[state]
        chosen = like((best == state)[:, None], flat, dtype=flat.dtype)
        wanted = wanted + chosen * (flat @ like(gain.T, flat, dtype=flat.dtype))
    wanted = xp.reshape(wanted, a.shape)
    water, lipids = np.divmod(best.reshape(a.shape[:-1]), len(_STRENGTHS))
    grid = np.asarray(_STRENGTHS)
    return Split(subspace.synthesise(wanted), subspace.synthesise(a - wanted), scale, grid[water], grid[lipids])


def covariances(subspace: Subspace, step: int = 1) -> list[np.ndarray]:
    """Return C_m + w E_m C_w + l E_m C_l for every pair of every `step`-th strength, lipids fastest."""
    energy = float(np.sum(subspace.metabolite_energy))
    return [
        subspace.metabolite_covariance + energy * (w * subspace.water_covariance + l * subspace.lipid_covariance)
        for w in _STRENGTHS[::step]
        for l in _STRENGTHS[::step]  # noqa: E741
    ]


def whitener(covariance: np.ndarray, noise_sd: float) -> np.ndarray:
    """Return W with W T W^H = I for T = covariance + 2 sd^2 I."""
    total = covariance + 2 * noise_sd**2 * np.eye(len(covariance))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(total)))


def likelihood_cost(a: Array, whitener: np.ndarray) -> Array:
    """Return -log likelihood of coefficients (n, rank) up to a constant: a^H T^-1 a + log det T."""
    xp = namespace(a)
    white = a @ like(whitener.T, a, dtype=a.dtype)
    log_det = -2 * float(np.sum(np.log(np.abs(np.diag(whitener)))))
    return xp.sum(xp.real(white) ** 2 + xp.imag(white) ** 2, axis=-1) + log_det


def likely_scale(subspace: Subspace, a: np.ndarray, noise_sd: float) -> float:
    """Return the scale of maximum likelihood by multiplicative updates over strided voxels.

    s^2 <- s^2 sqrt( sum z^H C_m z / sum tr(T^-1 C_m) ), z = T^-1 a: the minorise-maximise step for the variance of the
    metabolites at given nuisance, which stays positive; the nuisance strengths are then chosen anew.
    """
    a = a[:: -(-len(a) // _SCALE_VOXELS)].astype(np.complex128)
    models = covariances(subspace, step=2)
    signal = subspace.metabolite_covariance
    rows = subspace.metabolite_rank
    variance = float(np.mean(np.abs(a[:, :rows]) ** 2)) * rows / float(np.sum(subspace.metabolite_energy))
    for _ in range(_SCALE_ITERATIONS):
        whiteners = [whitener(c * variance, noise_sd) for c in models]
        best = np.argmin(np.stack([likelihood_cost(a, whitener) for whitener in whiteners]), axis=0)
        explained = expected = 0.0
        for state in np.unique(best):
            inverse = whiteners[state].conj().T @ whiteners[state]
            z = a[best == state] @ inverse.T
            explained += float(np.real(np.sum(np.conj(z) * (z @ signal.T))))
            expected += len(z) * float(np.real(np.trace(inverse @ signal)))
        change = float(np.sqrt(explained / expected))
        variance *= change
        if abs(change - 1) < _SCALE_TOLERANCE:
            break
    return float(np.sqrt(variance))
