"""Expected water and lipids of noisy coefficients, so that a model of metabolites alone can be applied to the rest.

The coefficients a of a voxel are a ~ N(0, T), T = s^2 [C_m + w E_m C_w + l E_m C_l] + N, as in `models.split`, with
noise N that may differ from coefficient to coefficient. Strengths w, l are chosen per voxel by likelihood; the expected
nuisance is then linear in a:  s^2 E_m [w C_w + l C_l] T^-1 a, and what it does not know is its own variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.models.split import covariances, likelihood_cost, likely_scale, whitener
from mrsi_gadgets.models.subspace import Subspace

_SD = float(np.sqrt(0.5))
"""Of the real part of a coefficient's noise once it is scaled to unit power."""


@dataclass(frozen=True, eq=False)
class NuisanceFilter:
    """The linear filters of one set of voxels."""

    gains: tuple[np.ndarray, ...]
    """(rank, rank) of each state that occurs: a -> expected nuisance, for rows of coefficients on the right."""
    variances: tuple[np.ndarray, ...]
    """(rank,) of each state: what the nuisance may differ by from its expectation, E|.|^2 of each coefficient."""
    state: np.ndarray
    """(voxel,) index into them."""

    def expected(self, a: Array) -> Array:
        """Return the expected nuisance of coefficients (voxel, rank)."""
        xp = namespace(a)
        # voxels of one state lie together, so that each is multiplied once
        order = np.argsort(self.state, kind="stable")
        bounds = np.searchsorted(self.state[order], np.arange(len(self.gains) + 1))
        gathered = xp.take(a, like(order, a), axis=0)
        parts = [
            gathered[start:stop, :] @ like(gain, a, dtype=a.dtype)
            for gain, start, stop in zip(self.gains, bounds[:-1], bounds[1:], strict=True)
        ]
        return xp.take(xp.concat(parts, axis=0), like(np.argsort(order, kind="stable"), a), axis=0)

    @property
    def variance(self) -> np.ndarray:
        """(voxel, rank)."""
        return np.stack(self.variances)[self.state]

    @property
    def share(self) -> float:
        """Share of the voxels that hold any nuisance."""
        return float(np.mean([self.gains[s].any() for s in self.state])) if len(self.state) else 0.0


def fit_nuisance_filter(subspace: Subspace, a: Array, noise_power: np.ndarray) -> NuisanceFilter:
    """Choose the strengths of water and lipids for voxels and return their filters.

    Parameters
    ----------
    subspace : with or without nuisance rows.
    a : (voxel, rank) coefficients on its rows, any namespace.
    noise_power : (rank,) E|noise|^2 of each.
    """
    rank = subspace.rank
    if rank == subspace.metabolite_rank:
        return NuisanceFilter((np.zeros((rank, rank)),), (np.zeros(rank),), np.zeros(int(a.shape[0]), dtype=int))
    flat = 1 / np.sqrt(np.asarray(noise_power, dtype=float))
    scaled = replace(
        subspace,
        metabolite_covariance=_scaled(subspace.metabolite_covariance, flat),
        water_covariance=_scaled(subspace.water_covariance, flat),
        lipid_covariance=_scaled(subspace.lipid_covariance, flat),
    )
    white = a * like(flat, a, dtype=a.dtype)
    scale = likely_scale(scaled, to_numpy(white), _SD)
    models = covariances(scaled)
    whiteners = [whitener(model * scale**2, _SD) for model in models]
    costs = namespace(a).stack([likelihood_cost(white, w) for w in whiteners])
    best, state = np.unique(to_numpy(namespace(a).argmin(costs, axis=0)), return_inverse=True)
    gains, variances = [], []
    for number in best:
        nuisance = scale**2 * (models[number] - models[0])
        inverse = whiteners[number].conj().T @ whiteners[number]
        gain = nuisance @ inverse
        left = np.real(np.diag(nuisance - gain @ nuisance))
        # for coefficients as rows and in their own units
        gains.append((gain / flat[:, None] * flat[None, :]).T)
        variances.append(np.maximum(left, 0.0) / flat**2)
    return NuisanceFilter(tuple(gains), tuple(variances), state.ravel())


def _scaled(covariance: np.ndarray, flat: np.ndarray) -> np.ndarray:
    return np.asarray(flat[:, None] * covariance * flat[None, :])
