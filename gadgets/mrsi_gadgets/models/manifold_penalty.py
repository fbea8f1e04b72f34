"""The distance of FIDs from a learned manifold as a penalty (eq. 8), and its gradient without any Jacobian.

p(a) = sum_n w_n ||C(a_n) - a_n||^2, C = D(E(.)) the autoencoder of a `Manifold` on coefficients, scale taken out and
put back: y = c (mean + x). With r = C(a) - a the gradient is 2 w (J^H r - r), J the Jacobian of C as a real map of real
and imaginary parts. J^H r of all voxels is one vector-Jacobian product: one pass forward and one backward.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch

from mrsi_gadgets.arrays import Array
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.networks import MOST_FIDS, ManifoldNetworks, as_torch, from_torch


def penalty(manifold: Manifold, coefficients: Array, weights: Array) -> tuple[float, Array]:
    """Return p(a) and its gradient g, p(a + d) = p(a) + Re <g, d> + O(d^2).

    Parameters
    ----------
    manifold
        Its `basis` carries the coefficients.
    coefficients
        (n, rank) complex64 or complex128, any namespace; the networks work in this precision.
    weights
        (n,) real.

    Raises
    ------
    DataError
        The coefficients are not those of the manifold.
    """
    a, w, networks, mean = _given(manifold, coefficients, weights)
    gradient = torch.empty_like(a)
    total = 0.0
    for part in _parts(len(a)):
        with torch.enable_grad():
            x = a[part].detach().requires_grad_(True)
            residual = _autoencoded(networks, mean, x) - x
            value = (w[part] * (residual.real.square() + residual.imag.square()).sum(-1)).sum(dtype=torch.float64)
            (gradient[part],) = torch.autograd.grad(value, x)
        total += float(value.detach())
    return total, from_torch(gradient, coefficients)


def gradient_by_jacobian(manifold: Manifold, coefficients: Array, weights: Array) -> Array:
    """Return the gradient of `penalty` from the explicit (2 rank, 2 rank) Jacobian of every voxel.

    It is what a method without vector-Jacobian products has to do, and serves to time the difference.
    """
    a, w, networks, mean = _given(manifold, coefficients, weights)

    def residual(parts: torch.Tensor) -> torch.Tensor:
        x = torch.complex(*parts.chunk(2))
        r = _autoencoded(networks, mean, x) - x
        return torch.cat([r.real, r.imag])

    real = torch.cat([a.real, a.imag], dim=-1)
    # a Jacobian takes as much memory as 2 rank FIDs
    step = max(1, MOST_FIDS // real.shape[-1])
    found = []
    for start in range(0, len(real), step):
        part = real[start : start + step]
        jacobian = torch.func.vmap(torch.func.jacrev(residual))(part)
        r = torch.func.vmap(residual)(part)
        found.append(2 * w[start : start + step, None] * torch.einsum("nij,ni->nj", jacobian, r))
    gradient = torch.cat(found) if found else real
    return from_torch(torch.complex(*gradient.chunk(2, dim=-1)), coefficients)


def tube_variance(manifold: Manifold) -> float:
    """Return the variance, per real number, of FIDs of scale 1 about the manifold: at most its tube.

    It is what the principal axes of as many numbers as the latent leave of the ensemble, which the networks start from
    and better (two to three times, 1H); known to every manifold without its ensemble.
    """
    left = float(np.sum(manifold.variance) - np.sum(np.asarray(manifold.weights["spread"], dtype=float) ** 2))
    # a latent of all numbers leaves rounding
    return max(left, 1e-6 * float(np.sum(manifold.variance))) / (2 * manifold.rank)


def _given(
    manifold: Manifold, coefficients: Array, weights: Array
) -> tuple[torch.Tensor, torch.Tensor, ManifoldNetworks, torch.Tensor]:
    if coefficients.ndim != 2 or coefficients.shape[-1] != manifold.rank:
        raise DataError(
            f"coefficients {tuple(coefficients.shape)} do not fit a manifold of {manifold.rank} rows; give (n, rank)"
        )
    a = as_torch(coefficients)
    networks = manifold.networks(coefficients)
    if a.dtype == torch.complex128:
        networks = deepcopy(networks).double()
    mean = torch.as_tensor(manifold.mean.copy(), dtype=a.dtype, device=a.device)
    return a, as_torch(weights).to(a.real.dtype), networks, mean


def _autoencoded(networks: ManifoldNetworks, mean: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return C(a) of coefficients (..., rank) as `Manifold.autoencode` does, but differentiable."""
    c = ((a @ mean.conj()) / (mean.real.square() + mean.imag.square()).sum())[..., None]
    c = torch.where(c == 0, torch.ones_like(c), c)
    return (networks.decode(networks.encode(a / c - mean)) + mean) * c


def _parts(count: int) -> list[slice]:
    return [slice(start, start + MOST_FIDS) for start in range(0, count, MOST_FIDS)]
