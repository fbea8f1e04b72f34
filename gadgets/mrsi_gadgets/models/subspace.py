"""Learned temporal subspaces and unions of them (eq. 6): rho(r, t) = SUM_l u_l(r) v_l(t).

The rows of the basis are learned from an ensemble of synthetic FIDs before the scan. The first `metabolite_rank` rows
span the metabolites and macromolecules, the others what residual water and lipids add to that span.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.ensemble import Ensemble, EnsembleSample, noise_sd_at_snr, sample
from mrsi_gadgets.physics.nucleus import nucleus_of

_MOST_ROWS = 160
"""Rows that are looked at where their number is not given; brains need less than 100 with water and lipids."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """A `SignalModel`: orthonormal rows in time, with the statistics of their coefficients in the ensemble.

    The unit of the statistics is the ensemble's: one proton of 1 mM has amplitude 1. `scale` finds the factor to the
    unit of measured FIDs.
    """

    basis: np.ndarray
    """complex64 (rank, t), orthonormal rows: metabolites by falling energy, then nuisance."""
    metabolite_rank: int
    """Number of rows that span the metabolites and macromolecules."""
    metabolite_covariance: np.ndarray
    """complex128 (rank, rank): mean of a a^H over the ensemble, a = coefficients of the wanted signal."""
    water_covariance: np.ndarray
    """complex128 (rank, rank): the same of residual water scaled to unit energy; zero without nuisance rows. Its part
    in the metabolite rows is what water would fake there."""
    lipid_covariance: np.ndarray
    """complex128 (rank, rank): the same of lipids scaled to unit energy."""
    nuisance_energy: tuple[float, float]
    """Mean energy |x|^2 of water and of lipids in the ensemble."""
    protocol: Protocol
    metabolite_error: float
    """Relative l2 error with which the metabolite rows represent fresh metabolite FIDs of the ensemble."""
    nuisance_error: float
    """Relative l2 error with which all rows represent fresh nuisance FIDs; 0 without nuisance rows."""
    seed: int = 0

    def __post_init__(self) -> None:
        rank, n_times = self.basis.shape
        if n_times != self.protocol.n_times or not 0 < self.metabolite_rank <= rank <= n_times:
            raise DataError(
                f"a basis {self.basis.shape} with {self.metabolite_rank} metabolite rows does not fit "
                f"{self.protocol.n_times} points"
            )
        for name in ("metabolite_covariance", "water_covariance", "lipid_covariance"):
            if getattr(self, name).shape != (rank, rank):
                raise DataError(f"{name} {getattr(self, name).shape} does not fit a subspace of rank {rank}")

    @property
    def rank(self) -> int:
        """Number of rows, nuisance included."""
        return int(self.basis.shape[0])

    @property
    def nuisance_covariance(self) -> np.ndarray:
        """Mean of a a^H of water plus lipids at the ensemble's mean energies, (rank, rank)."""
        water, lipids = self.nuisance_energy
        return self.water_covariance * water + self.lipid_covariance * lipids

    @property
    def metabolite_energy(self) -> np.ndarray:
        """Mean of |a_l|^2 of the wanted signal, (rank,): the prior variance of each coefficient."""
        return np.real(np.diag(self.metabolite_covariance)).copy()

    @property
    def energy(self) -> np.ndarray:
        """Mean of |a_l|^2 of wanted signal plus nuisance, (rank,)."""
        return np.real(np.diag(self.metabolite_covariance + self.nuisance_covariance)).copy()

    def metabolites_only(self, rank: int | None = None) -> Subspace:
        """Return the subspace of the first `rank` metabolite rows (None: all of them), without nuisance rows."""
        rank = self.metabolite_rank if rank is None else rank
        if not 1 <= rank <= self.metabolite_rank:
            raise ConfigError(f"rank {rank} must lie between 1 and the {self.metabolite_rank} learned metabolite rows")
        zeros = np.zeros((rank, rank), dtype=np.complex128)
        return replace(
            self,
            basis=self.basis[:rank],
            metabolite_rank=rank,
            metabolite_covariance=self.metabolite_covariance[:rank, :rank],
            water_covariance=zeros,
            lipid_covariance=zeros,
            nuisance_energy=(0.0, 0.0),
            nuisance_error=0.0,
        )

    def best_rank(self, noise_sd: float, scale: float = 1.0) -> int:
        """Return the number of metabolite rows with the least expected squared error of an unshrunk projection.

        A row is worth its noise while its mean energy is above the noise energy 2 sd^2 of a coefficient.

        Parameters
        ----------
        noise_sd : of the real part of one sample, in the unit of the data.
        scale : from the ensemble's unit to that of the data.
        """
        energy = self.metabolite_energy[: self.metabolite_rank] * scale**2
        return max(1, int(np.count_nonzero(energy > 2 * noise_sd**2)))

    def coefficients(self, fids: Array) -> Array:
        """Return the coefficients a = fids V^H, (..., rank), of FIDs (..., t)."""
        if fids.shape[-1] != self.basis.shape[1]:
            raise DataError(
                f"FIDs have {fids.shape[-1]} points, the subspace was learned for {self.basis.shape[1]}; learn one for "
                "this protocol"
            )
        return fids @ like(np.conj(self.basis.T), fids, dtype=fids.dtype)

    def synthesise(self, coefficients: Array) -> Array:
        """Return the FIDs a V, (..., t), of coefficients (..., rank)."""
        return coefficients @ like(self.basis, coefficients, dtype=coefficients.dtype)

    def project(self, fids: Array, noise_sd: float | None = None) -> Array:
        """Return the orthogonal projection of FIDs (..., t) onto the subspace.

        With `noise_sd` (of the real part of a sample) each coefficient is then shrunk by its variance over that plus
        the noise variance (Wiener). The scale of the data is estimated from all `fids` together, so that the result
        follows theirs.
        """
        coefficients = self.coefficients(fids)
        if noise_sd is not None and noise_sd > 0:
            variance = self.energy * self.scale(fids, noise_sd) ** 2
            weight = variance / (variance + 2 * float(noise_sd) ** 2)
            coefficients = coefficients * like(weight, coefficients, dtype=coefficients.dtype)
        return self.synthesise(coefficients)

    def scale(self, fids: Array, noise_sd: float = 0.0) -> float:
        """Return the factor from the ensemble's unit to that of `fids`, from their mean energy less that of the noise.

        Nuisance counts as the ensemble has it; where it is much stronger or weaker, use `split.split_nuisance`, which
        estimates the strengths separately.
        """
        a = self.coefficients(fids)
        xp = namespace(a)
        n = max(1, int(np.prod(a.shape[:-1])))
        energy = float(xp.sum(xp.real(a) ** 2 + xp.imag(a) ** 2)) / n - 2 * self.rank * float(noise_sd) ** 2
        return float(np.sqrt(max(energy, 0.0) / np.sum(self.energy)))


def learn_subspace(
    protocol: Protocol,
    *,
    ensemble: Ensemble | None = None,
    rank: int | None = None,
    nuisance: bool = True,
    nuisance_rank: int | None = None,
    snr: float = 100.0,
    nuisance_error: float = 0.01,
    n_samples: int = 2000,
    seed: int = 0,
    basis: BasisSet | None = None,
) -> Subspace:
    """Learn the temporal basis of a protocol from an ensemble of synthetic FIDs (eq. 5, 6).

    Parameters
    ----------
    protocol : where FIDs are sampled.
    ensemble : the distributions; None for the defaults of the protocol's nucleus.
    rank : number of metabolite rows; None for the one with the least expected squared error, left-out signal plus
        noise let through, at `snr` (see `Subspace.best_rank`).
    nuisance : also learn rows for residual water and lipids, orthogonal to the metabolite rows. Other nuclei than 1H
        have no such signals, and so no such rows.
    nuisance_rank : number of these rows; None for the smallest that leaves `nuisance_error` of them outside.
    snr : peak SNR of the strongest line (NAA CH3 of 1H) for which `rank` is chosen, the best that is expected.
    nuisance_error : root mean square of what is left of nuisance signals of unit energy.
    n_samples : drawn FIDs.
    seed : of the draw. The reported errors are those of another draw.
    basis : signals of the molecules; None for those that are simulated for the protocol.

    Raises
    ------
    ConfigError
        A rank is not between 1 and the number of points, or a level is out of range.
    DataError
        The molecules of the nucleus are not known.
    """
    for name, value in (("rank", rank), ("nuisance_rank", nuisance_rank)):
        if value is not None and not 1 <= value <= protocol.n_times:
            raise ConfigError(f"{name} {value} must lie between 1 and the {protocol.n_times} spectral points")
    if not 0 < nuisance_error < 1:
        raise ConfigError(f"nuisance_error is {nuisance_error:g}; it must lie between 0 and 1")
    nuisance = nuisance and nucleus_of(protocol).water_is_nuisance
    drawn = sample(protocol, n_samples, seed, ensemble=ensemble, basis=basis)
    energies, rows = _principal_rows(drawn.metabolites, max(_MOST_ROWS, rank or 0))
    if rank is None:
        rank = max(1, int(np.count_nonzero(energies > 2 * noise_sd_at_snr(protocol, snr) ** 2)))
    rows = rows[:rank]
    if nuisance and rank < protocol.n_times:
        rows = np.concatenate([rows, _nuisance_rows(rows, drawn, nuisance_rank, nuisance_error)])
    fresh = sample(protocol, max(64, n_samples // 10), seed + 1, ensemble=ensemble, basis=basis)
    return _with_statistics(rows.astype(np.complex64), rank, nuisance, protocol, drawn, fresh, seed)


def representation_error(basis: np.ndarray, fids: np.ndarray) -> float:
    """Return ||x - x V^H V|| / ||x|| over all FIDs `fids` (n, t) for orthonormal rows `basis` (rank, t)."""
    residual = fids - (fids @ np.conj(basis.T)) @ basis
    return float(np.linalg.norm(residual) / np.linalg.norm(fids))


def _with_statistics(
    basis: np.ndarray,
    metabolite_rank: int,
    nuisance: bool,
    protocol: Protocol,
    drawn: EnsembleSample,
    fresh: EnsembleSample,
    seed: int,
) -> Subspace:
    without = np.zeros((len(basis), len(basis)), dtype=np.complex128)
    return Subspace(
        basis,
        metabolite_rank,
        _covariance(drawn.metabolites, basis),
        _covariance(_unit_energy(drawn.water), basis) if nuisance else without,
        _covariance(_unit_energy(drawn.lipids), basis) if nuisance else without,
        (_mean_energy(drawn.water), _mean_energy(drawn.lipids)) if nuisance else (0.0, 0.0),
        protocol,
        representation_error(basis[:metabolite_rank], fresh.metabolites),
        representation_error(basis, fresh.nuisance) if nuisance else 0.0,
        seed,
    )


def _nuisance_rows(basis: np.ndarray, drawn: EnsembleSample, rank: int | None, error: float) -> np.ndarray:
    """Return the principal rows of what is outside `basis` of water and of lipids.

    Every drawn FID counts alike: strengths spread over orders of magnitude, and without normalisation a few strong
    voxels would choose the rows.
    """
    unit = np.concatenate([_unit_energy(drawn.water), _unit_energy(drawn.lipids)])
    outside = unit - (unit @ np.conj(basis.T)) @ basis
    energies, rows = _principal_rows(outside, max(_MOST_ROWS, rank or 0))
    if rank is None:
        left = _mean_energy(outside) - np.cumsum(energies)
        rank = int(np.argmax(left <= error**2)) + 1
    rows = rows[: min(rank, basis.shape[1] - len(basis))]
    # orthogonal to `basis` only to the precision of the small residual: once more
    rows = rows - (rows @ np.conj(basis.T)) @ basis
    return np.asarray(np.linalg.qr(rows.conj().T)[0].conj().T)


def _principal_rows(fids: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean energies, falling, and principal rows (`most`, t), complex128: the SVD by the Gram matrix in time.

    The Gram matrix is 5 times faster than the SVD of the tall matrix. It loses what is below 1e-8 of the largest
    singular value, far below single precision.
    """
    wide = fids.astype(np.complex128)
    n = wide.shape[1]
    values, vectors = eigh(wide.conj().T @ wide, subset_by_index=(max(0, n - most), n - 1), overwrite_a=True)
    return values[::-1] / len(fids), np.ascontiguousarray(vectors[:, ::-1].conj().T)


def _covariance(fids: np.ndarray, basis: np.ndarray) -> np.ndarray:
    a = fids.astype(np.complex128) @ np.conj(basis.T)
    return np.asarray(a.T @ np.conj(a) / len(a))


def _unit_energy(fids: np.ndarray) -> np.ndarray:
    return np.asarray(fids / np.linalg.norm(fids, axis=1, keepdims=True))


def _mean_energy(fids: np.ndarray) -> float:
    return float(np.linalg.norm(fids) ** 2 / len(fids))
