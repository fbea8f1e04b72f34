"""Standard deviations from noise replicas: what a reconstruction really does to noise, and what it smoothed away.

The fit is linearised at its solution, so a replica's change of the FIDs becomes a change of the amounts by one product.
Pooled over voxels few replicas suffice: the covariance of the amounts is taken to have one shape in all voxels, in
units of the deviations d_v that the closed form states, and a size that varies smoothly,

    C_v = l_v D_v Q D_v,   Q = mean over voxels and replicas of (D^-1 da)(D^-1 da)^T,   l_v = local mean.

Bias: what the reconstruction left of the data (their Fourier image less the result) is carried through the same
linearisation. Its mean square, locally, less that of its own noise (known from the same replicas) is the square of what
is missing in the map. Where that is no more than chance allows it is drawn to the mean of all voxels, as far as the
scatter says (a James-Stein estimate).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.quantification.smoothing import smooth_in_mask

if TYPE_CHECKING:
    from mrsi_gadgets.quantification.assembly import FitResult

FWHM_VOXELS = 5.0
"""Neighbourhood that is pooled."""
_OUTLIER = 9.0
"""Size of a voxel's changes (squared) over the median from which on they are cut down to it."""


def with_replicas(result: FitResult, mask: np.ndarray, n_amounts: int, replicas: int) -> FitResult:
    """Return the result with noise and bias of the replicas in the place of the noise of the closed form.

    Parameters
    ----------
    result
        Of the voxels of `mask`; its `noise` is the closed form's, its `perturbed` holds the answers to the replicas
        and, where that is known, to what is left of the data and to the replicas of its noise.
    mask
        (x, y, z) bool.
    n_amounts
        Leading columns that are amounts of molecules; the size of the noise is judged by them.
    replicas
        How many there are; 0: nothing changes.
    """
    if not replicas:
        return result
    stated = np.sqrt(np.maximum(np.diagonal(result.noise, axis1=1, axis2=2), 0.0))
    free = stated > 0
    inverse = np.divide(1.0, stated, out=np.zeros_like(stated), where=free)
    z = result.perturbed[:, :, :replicas] * inverse[:, :, None]
    judged = free[:, :n_amounts]
    size = np.sum(np.mean(z[:, :n_amounts] ** 2, axis=2) * judged, axis=1) / np.maximum(judged.sum(axis=1), 1)
    # where the fit jumps rather than moves, its linearisation says nothing of its noise: such voxels count as the usual
    z = z * np.sqrt(np.minimum(1.0, _OUTLIER * np.median(size) / np.maximum(size, 1e-30)))[:, None, None]
    pairs = np.maximum(np.einsum("vi,vj->ij", free.astype(float), free.astype(float)), 1.0) * replicas
    shape = np.einsum("vik,vjk->ij", z, z) / pairs
    relative = np.mean(z[:, :n_amounts] ** 2, axis=2) / np.maximum(np.diag(shape), 1e-12)[:n_amounts]
    local = _local(np.sum(relative * judged, axis=1) / np.maximum(judged.sum(axis=1), 1), mask)
    both = stated[:, :, None] * stated[:, None, :]
    more = local[:, None, None] * both * shape - result.noise
    if result.perturbed.shape[2] > replicas:
        more = more + _bias(result.perturbed[:, :, replicas], result.perturbed[:, :, replicas + 1 :], stated, mask)
    own = np.diagonal(more, axis1=1, axis2=2)
    return replace(result, covariance=result.covariance + more, variance=np.maximum(result.variance + own, 0.0))


def _bias(left: np.ndarray, noise: np.ndarray, stated: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return E[bias bias^T] (voxel, unknown, unknown) from answers to what is left and to its noise.

    `left` is (voxel, unknown), `noise` (voxel, unknown, replica).
    """
    inverse = np.divide(1.0, stated, out=np.zeros_like(stated), where=stated > 0)
    z, n = left * inverse, noise * inverse[:, :, None]
    by_noise = np.mean(np.mean(n**2, axis=2), axis=0)
    count = len(z)
    shape = z.T @ z / count - np.einsum("vik,vjk->ij", n, n) / (count * noise.shape[2])
    # only directions in which more is left than noise explains
    power, vectors = np.linalg.eigh((shape + shape.T) / 2)
    shape = (vectors * np.maximum(power, 0.0)) @ vectors.T
    usual = np.diag(shape)
    size = np.sqrt(usual)
    shape = np.divide(shape, size[:, None] * size[None, :], out=np.zeros_like(shape), where=usual[:, None] * usual > 0)
    window = _effective_voxels(mask)
    squared = np.empty_like(z)
    for i in range(z.shape[1]):
        here = _local(z[:, i] ** 2, mask) - by_noise[i]
        chance = 2.0 / window * (by_noise[i] + usual[i]) ** 2
        spread = max(float(np.var(here)) - chance, 0.0)
        trust = spread / (spread + chance) if chance > 0 else 1.0
        squared[:, i] = np.maximum(usual[i] + trust * (here - usual[i]), 0.0)
    size = np.sqrt(squared) * stated
    return size[:, :, None] * shape * size[:, None, :]


def _local(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    volume = np.zeros(mask.shape)
    volume[mask] = values
    return smooth_in_mask(volume, mask, FWHM_VOXELS)[mask]


def _effective_voxels(mask: np.ndarray) -> float:
    """Voxels that a local mean is worth: one over the sum of the squared weights of the pooling, deep in the mask."""
    sigma = FWHM_VOXELS / (8 * np.log(2)) ** 0.5
    axes = sum(n > 1 for n in mask.shape)
    return float(max((2 * np.pi**0.5 * sigma) ** axes, 1.0))
