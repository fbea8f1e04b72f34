"""A learned manifold of FIDs: autoencoder D(E(.)) and projector D(P(.)) in the coordinates of a subspace (eq. 8 to 10).

An FID is its coefficients on orthonormal rows, its own complex scale c (the match with the ensemble's mean signal)
taken out: y = c (mean + x). The networks see x. So autoencoder and projector follow scale and phase exactly:
project(a y, |a| s) = a project(y, s).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError

if TYPE_CHECKING:
    from mrsi_gadgets.models.networks import ManifoldNetworks

_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Manifold:
    """A `SignalModel`: rows, the ensemble's statistics on them, and the weights of the networks."""

    basis: np.ndarray
    """complex64 (rank, t), orthonormal rows along the principal axes of the coordinates."""
    mean: np.ndarray
    """complex64 (rank,): mean signal of the ensemble, each FID divided by its scale."""
    latent: int
    """Real numbers in the latent."""
    hidden: int
    """Width of the hidden layers."""
    weights: Mapping[str, np.ndarray]
    """Name -> parameters and buffers of `networks.ManifoldNetworks`, float32."""
    protocol: Protocol
    snr_range: tuple[float, float]
    """Peak SNR of the FIDs that the projector was trained on."""
    noise_at_snr_1: float
    """Standard deviation of the real part of a sample's noise at peak SNR 1 for an FID of scale 1."""

    def __post_init__(self) -> None:
        rank, n_times = self.basis.shape
        if n_times != self.protocol.n_times or self.mean.shape != (rank,):
            raise DataError(
                f"rows {self.basis.shape} and mean {self.mean.shape} do not fit a protocol of {self.protocol.n_times} "
                "points"
            )
        if not 0 < self.latent <= 2 * rank:
            raise DataError(f"a latent of {self.latent} numbers does not fit {rank} complex coordinates")

    @property
    def rank(self) -> int:
        """Number of rows."""
        return int(self.basis.shape[0])

    @property
    def variance(self) -> np.ndarray:
        """(rank,) variance of the ensemble about its mean, in units of the squared scale."""
        return np.asarray(self.weights["variance"])

    @cached_property
    def _networks(self) -> dict[str, ManifoldNetworks]:
        """Networks by device; empty until they are used."""
        return {}

    def networks(self, reference: Array) -> ManifoldNetworks:
        """Return the networks where torch works on `reference` (torch is imported here, and not before)."""
        from mrsi_gadgets.models.networks import as_torch, build

        where = as_torch(reference[:0, ...]).device
        if str(where) not in self._networks:
            self._networks[str(where)] = build(self.rank, self.latent, self.hidden, self.weights).to(where)
        return self._networks[str(where)]

    def coefficients(self, fids: Array) -> Array:
        """Return the coefficients fids V^H, (..., rank), of FIDs (..., t)."""
        if fids.shape[-1] != self.basis.shape[1]:
            raise DataError(
                f"FIDs have {fids.shape[-1]} points, the manifold was learned for {self.basis.shape[1]}; learn one for "
                "this protocol"
            )
        return fids @ like(np.conj(self.basis.T), fids, dtype=fids.dtype)

    def synthesise(self, coefficients: Array) -> Array:
        """Return the FIDs a V, (..., t), of coefficients (..., rank)."""
        return coefficients @ like(self.basis, coefficients, dtype=coefficients.dtype)

    def scale(self, coefficients: Array) -> Array:
        """Return the complex scale c, (...), of coefficients (..., rank): <a, mean> / <mean, mean>."""
        match = self.mean.conj() / float(np.sum(np.abs(self.mean) ** 2))
        return coefficients @ like(match, coefficients, dtype=coefficients.dtype)

    def project(self, fids: Array, noise_sd: float | None = None) -> Array:
        """Return the likely clean FIDs of noisy ones, (..., t); see `SignalModel`.

        Without `noise_sd` it is the autoencoder's nearest FID, D(E(x)).
        """
        coefficients = self.coefficients(fids)
        if noise_sd is None or not noise_sd > 0:
            return self.synthesise(self.autoencode(coefficients))
        return self.synthesise(self.project_coefficients(coefficients, 2.0 * float(noise_sd) ** 2))

    def project_coefficients(self, coefficients: Array, noise_power: Array | float) -> Array:
        """Return the likely clean coefficients of noisy ones.

        Parameters
        ----------
        coefficients : (..., rank) complex64 on `basis`, any namespace.
        noise_power : E|noise|^2 of each coefficient, (..., rank) or what broadcasts to it; positive.
        """
        from mrsi_gadgets.models.networks import in_batches

        xp = namespace(coefficients)
        flat = xp.reshape(coefficients, (-1, self.rank))
        power = xp.reshape(xp.broadcast_to(like(noise_power, flat, "float32"), coefficients.shape), flat.shape)
        c = self.scale(flat)[:, None]
        c = xp.where(xp.abs(c) > 0, c, like(np.ones(1), flat, flat.dtype))
        mean = like(self.mean, flat, flat.dtype)
        noise = power / (xp.real(c) ** 2 + xp.imag(c) ** 2)
        noise = xp.where(noise > _LEAST_VARIANCE, noise, like(_LEAST_VARIANCE, noise, "float32"))
        networks = self.networks(flat)
        clean = in_batches(lambda y, v: networks.project(y, v)[0], flat / c - mean, noise)
        return xp.reshape((clean + mean) * c, coefficients.shape)

    def autoencode(self, coefficients: Array) -> Array:
        """Return D(E(.)) of coefficients (..., rank): the FIDs of the manifold that belong to clean ones."""
        from mrsi_gadgets.models.networks import in_batches

        xp = namespace(coefficients)
        flat = xp.reshape(coefficients, (-1, self.rank))
        c = self.scale(flat)[:, None]
        c = xp.where(xp.abs(c) > 0, c, like(np.ones(1), flat, flat.dtype))
        mean = like(self.mean, flat, flat.dtype)
        networks = self.networks(flat)
        coded = in_batches(lambda x: networks.decode(networks.encode(x)), flat / c - mean)
        return xp.reshape((coded + mean) * c, coefficients.shape)
