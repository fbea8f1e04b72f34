"""Learned temporal subspaces and unions of them (eq. 6): rho(r, t) = SUM_l u_l(r) v_l(t).

The rows of the basis are learned from an ensemble of synthetic FIDs before the scan. The first `metabolite_rank` rows
span the metabolites and macromolecules, the others what residual water and lipids add to that span.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.physics.ensemble import Ensemble, EnsembleSample, sample


@dataclass(frozen=True, eq=False)
class Subspace:
    """A `SignalModel`: orthonormal rows in time, with the statistics of their coefficients in the ensemble."""

    basis: np.ndarray
    """complex64 (rank, t), orthonormal rows: metabolites first, then nuisance."""
    metabolite_rank: int
    """Number of rows that span the metabolites and macromolecules."""
    metabolite_covariance: np.ndarray
    """complex128 (rank, rank): mean of a a^H over the ensemble, a = coefficients of the wanted signal (unit: one proton of
    1 mM). Zero outside the metabolite rows up to the representation error."""
    nuisance_covariance: np.ndarray
    """complex128 (rank, rank): the same of water and lipids, which also reach into the metabolite rows."""
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
        if self.metabolite_covariance.shape != (rank, rank) or self.nuisance_covariance.shape != (rank, rank):
            raise DataError(f"the covariances of a subspace of rank {rank} must be {rank} x {rank}")

    @property
    def rank(self) -> int:
        """Number of rows, nuisance included."""
        return int(self.basis.shape[0])

    @property
    def energy(self) -> np.ndarray:
        """Mean of |a_l|^2 over the ensemble, (rank,): metabolites plus nuisance."""
        return np.real(np.diag(self.metabolite_covariance + self.nuisance_covariance)).copy()

    @property
    def metabolite_energy(self) -> np.ndarray:
        """Mean of |a_l|^2 of the wanted signal alone, (rank,)."""
        return np.real(np.diag(self.metabolite_covariance)).copy()

    def metabolites_only(self) -> Subspace:
        """Return the subspace of the metabolite rows alone."""
        keep = slice(0, self.metabolite_rank)
        return Subspace(
            self.basis[keep],
            self.metabolite_rank,
            self.metabolite_covariance[keep, keep],
            np.zeros((self.metabolite_rank, self.metabolite_rank), dtype=np.complex128),
            self.protocol,
            self.metabolite_error,
            0.0,
            self.seed,
        )

    def coefficients(self, fids: Array) -> Array:
        """Return the coefficients a = fids V^H, (..., rank), of FIDs (..., t)."""
        self._check(fids)
        return fids @ like(np.conj(self.basis.T), fids, dtype=fids.dtype)

    def synthesise(self, coefficients: Array) -> Array:
        """Return the FIDs a V, (..., t), of coefficients (..., rank)."""
        return coefficients @ like(self.basis, coefficients, dtype=coefficients.dtype)

    def project(self, fids: Array, noise_sd: float | None = None) -> Array:
        """Return the orthogonal projection of FIDs (..., t) onto the subspace.

        With `noise_sd` (of the real part of a sample) each coefficient is then shrunk by its ensemble variance over that plus
        the noise variance (Wiener). The scale of the data is estimated from all `fids` together, so the result
        follows theirs.
        """
        coefficients = self.coefficients(fids)
        if noise_sd is not None and noise_sd > 0:
            variance = self.energy * self.scale(fids, noise_sd) ** 2
            weight = variance / (variance + 2 * float(noise_sd) ** 2)
            coefficients = coefficients * like(weight, coefficients, dtype=coefficients.dtype)
        return self.synthesise(coefficients)

    def scale(self, fids: Array, noise_sd: float = 0.0) -> float:
        """Return the factor from the ensemble's unit to that of `fids`, from their mean energy less that of the noise."""
        a = self.coefficients(fids)
        xp = namespace(a)
        n = max(1, int(np.prod(a.shape[:-1])))
        energy = float(xp.sum(xp.real(a) ** 2 + xp.imag(a) ** 2)) / n - 2 * self.rank * float(noise_sd) ** 2
        return float(np.sqrt(max(energy, 0.0) / np.sum(self.energy)))

    def split(
        self, fids: Array, *, noise_sd: float = 0.0, scale: float = 1.0, nuisance_scale: float | None = None
    ) -> tuple[Array, Array]:
        """Split FIDs (..., t) into wanted signal and nuisance by linear minimum mean-square error.

        The wanted part is C_m (C_m + C_n + 2 sd^2)^-1 a: an oblique projection where nuisance is strong and the signal
        above the noise, no more than a projection onto the metabolite rows where there is no nuisance. What lies
        outside the subspace is in neither part.

        Parameters
        ----------
        fids : (..., t), B0 taken out.
        noise_sd : of the real part of a sample, in the unit of `fids`.
        scale : from the ensemble's unit to that of `fids` (see `scale`).
        nuisance_scale : the same for the nuisance, where it is stronger or weaker than the ensemble's; None for `scale`.

        Returns
        -------
        wanted signal and nuisance, each (..., t).
        """
        splitter = self.splitting_matrix(noise_sd=noise_sd, scale=scale, nuisance_scale=nuisance_scale)
        a = self.coefficients(fids)
        wanted = a @ like(splitter.T, a, dtype=a.dtype)
        return self.synthesise(wanted), self.synthesise(a - wanted)

    def splitting_matrix(
        self, *, noise_sd: float = 0.0, scale: float = 1.0, nuisance_scale: float | None = None
    ) -> np.ndarray:
        """Return the (rank, rank) matrix that takes all coefficients to those of the wanted signal (see `split`)."""
        signal = self.metabolite_covariance * scale**2
        nuisance = self.nuisance_covariance * (scale if nuisance_scale is None else nuisance_scale) ** 2
        total = signal + nuisance
        floor = 1e-12 * float(np.real(np.trace(total))) / self.rank  # keeps a noise-free split solvable
        total = total + (2 * noise_sd**2 + floor) * np.eye(self.rank)
        return np.asarray(np.linalg.solve(total.T, signal.T).T)

    def _check(self, fids: Array) -> None:
        if fids.shape[-1] != self.basis.shape[1]:
            raise DataError(
                f"FIDs have {fids.shape[-1]} points, the subspace was learned for {self.basis.shape[1]}; learn one for "
                "this protocol"
            )


def learn_subspace(
    protocol: Protocol,
    *,
    ensemble: Ensemble | None = None,
    rank: int | None = None,
    nuisance: bool = True,
    nuisance_rank: int | None = None,
    relative_error: float = 0.01,
    n_samples: int = 2000,
    seed: int = 0,
) -> Subspace:
    """Learn the temporal basis of a protocol from an ensemble of synthetic FIDs (eq. 5, 6).

    Parameters
    ----------
    protocol : where FIDs are sampled.
    ensemble : the distributions; None for the defaults.
    rank : number of metabolite rows; None for the smallest with which the ensemble is represented to `relative_error`.
    nuisance : also learn rows for residual water and lipids, orthogonal to the metabolite rows.
    nuisance_rank : number of these rows; None for the smallest that meets `relative_error`.
    relative_error : root mean square residual over that of the signal. 0.01 is below the noise that a subspace of rank 16 lets
        through at a NAA peak SNR of 100 (about 0.02).
    n_samples : drawn FIDs.
    seed : of the draw. Errors are reported on other draws.

    Raises
    ------
    ConfigError
        A rank is not between 1 and the number of points, or the error is not between 0 and 1.
    """
    if not 0 < relative_error < 1:
        raise ConfigError(f"relative_error is {relative_error:g}; it must lie between 0 and 1")
    for name, value in (("rank", rank), ("nuisance_rank", nuisance_rank)):
        if value is not None and not 1 <= value <= protocol.n_times:
            raise ConfigError(f"{name} {value} must lie between 1 and the {protocol.n_times} spectral points")
    drawn = sample(protocol, n_samples, seed, ensemble=ensemble)
    basis = _principal_rows(drawn.metabolites, rank, relative_error)
    metabolite_rank = len(basis)
    if nuisance and metabolite_rank < protocol.n_times:
        basis = _append_nuisance_rows(basis, drawn, nuisance_rank, relative_error)
    fresh = sample(protocol, max(64, n_samples // 10), seed + 1, ensemble=ensemble)
    return Subspace(
        basis.astype(np.complex64),
        metabolite_rank,
        _covariance(drawn.metabolites, basis),
        _covariance(drawn.nuisance, basis) if nuisance else np.zeros((len(basis),) * 2, dtype=np.complex128),
        protocol,
        representation_error(basis[:metabolite_rank], fresh.metabolites),
        representation_error(basis, fresh.nuisance) if nuisance else 0.0,
        seed,
    )


def representation_error(basis: np.ndarray, fids: np.ndarray) -> float:
    """Return ||x - x V^H V|| / ||x|| over all FIDs `fids` (n, t) for orthonormal rows `basis` (rank, t)."""
    residual = fids - (fids @ np.conj(basis.T)) @ basis
    return float(np.linalg.norm(residual) / np.linalg.norm(fids))


def _append_nuisance_rows(
    basis: np.ndarray, drawn: EnsembleSample, rank: int | None, relative_error: float
) -> np.ndarray:
    """Return `basis` with the principal rows of what is left of water and of lipids, each at equal strength, outside it.

    Drawn strengths spread over orders of magnitude; without normalisation a few strong voxels would choose the rows.
    """
    unit = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in (drawn.water, drawn.lipids)])
    residual = unit - (unit @ np.conj(basis.T)) @ basis
    left = np.linalg.norm(residual) / np.linalg.norm(unit)
    limit = protocol_room = basis.shape[1] - len(basis)
    rows = _principal_rows(residual, rank, min(relative_error / max(left, relative_error), 1.0), limit)
    del protocol_room
    # the residual is orthogonal to `basis` only to single precision of its own size: once more, in double
    rows = rows - (rows @ np.conj(basis.T)) @ basis
    rows = np.linalg.qr(rows.conj().T)[0].conj().T
    return np.concatenate([basis, rows])


def _principal_rows(fids: np.ndarray, rank: int | None, relative_error: float, limit: int | None = None) -> np.ndarray:
    """Return the leading right singular vectors (rank, t), complex128, by the eigenvectors of the Gram matrix in time."""
    wide = fids.astype(np.complex128)
    values, vectors = np.linalg.eigh(wide.conj().T @ wide)
    values, vectors = values[::-1], vectors[:, ::-1]
    if rank is None:
        left = 1.0 - np.cumsum(values) / np.sum(values)
        rank = int(np.argmax(left <= relative_error**2)) + 1
    return np.ascontiguousarray(vectors[:, : min(rank, limit or len(values))].conj().T)


def _covariance(fids: np.ndarray, basis: np.ndarray) -> np.ndarray:
    a = fids.astype(np.complex128) @ np.conj(basis.T)
    return np.asarray(a.T @ np.conj(a) / len(a))
