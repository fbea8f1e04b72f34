"""What a scan adds to a signal model that was learned before it: a shared shift, missing rows, principal axes."""

from __future__ import annotations

import numpy as np
from scipy.linalg import blas

from mrsi_gadgets.arrays import Array, to_numpy
from mrsi_gadgets.reconstruction.fourier import field_phase

LARGEST_SHIFT_HZ = 15.0
"""The shared shift is searched within this; water's offset from temperature is a few Hz."""
MOST_ROWS = 12
"""At most this many rows are added; more would mean that the model is not for this protocol."""


def shared_shift(
    fids: Array,
    times_s: np.ndarray,
    basis: np.ndarray,
    noise_sd: float,
    gain: np.ndarray | None = None,
    gram: np.ndarray | None = None,
) -> float:
    """Return the frequency [Hz] that, taken out of all FIDs, makes them most likely under the signal model.

    Energy(f) = sum over voxels of a^H K a, a the coefficients of x exp(-i 2 pi f t). With K = C (C + 2 s^2)^-1 this
    is, up to constants, the log-likelihood of Gaussian coefficients of covariance C. It depends on the data through
    their Gram matrix in time only, and on f through its diagonals' sums. A shift is kept only where it gains more than
    noise could.

    Parameters
    ----------
    fids
        (voxel, t) without B0.
    times_s
        (t,) [s].
    basis
        (rank, t) orthonormal rows.
    noise_sd
        SD of the real part of a sample's noise.
    gain
        (rank, rank) K as `wiener_gain` makes it; the identity (captured energy) where None.
    gram
        `time_gram` of the FIDs, where it is known already.
    """
    n_voxels, n_times = int(fids.shape[0]), int(fids.shape[1])
    gram = time_gram(fids) if gram is None else gram
    weighted = basis if gain is None else gain.T @ basis
    # energy(f) = sum_ab G[a, b] P[a, b] exp(-i 2 pi f (t_a - t_b)), G = X^T conj(X), P = V^H K^T V
    product = gram * (basis.conj().T @ weighted)
    lags = _diagonal_sums(product)
    dwell = float(times_s[1] - times_s[0]) if n_times > 1 else 0.0
    shifts = np.linspace(-LARGEST_SHIFT_HZ, LARGEST_SHIFT_HZ, 601)
    phase = field_phase(lags, shifts, -dwell * np.arange(1, n_times))
    energy = lags[0].real + 2 * (phase @ lags[1:]).real
    best = int(np.argmax(energy))
    # the noise's energy has an SD of 2 s^2 sqrt(n tr K); neighbouring shifts share most of it
    degrees = len(basis) if gain is None else float(np.trace(gain).real)
    scatter = 2 * noise_sd**2 * np.sqrt(n_voxels * degrees)
    gained = energy[best] - energy[len(shifts) // 2]
    if not gained > scatter or best in (0, len(shifts) - 1):
        return 0.0
    left, top, right = energy[best - 1 : best + 2]
    offset = 0.5 * (left - right) / (left - 2 * top + right) if left - 2 * top + right < 0 else 0.0
    return float(shifts[best] + offset * (shifts[1] - shifts[0]))


def time_gram(fids: Array) -> np.ndarray:
    """Return X^T conj(X), (t, t), of FIDs X (voxel, t): all that shift and missing rows depend on."""
    few = np.ascontiguousarray(to_numpy(fids))
    # a Hermitian rank-k update computes one triangle only
    update = blas.zherk if few.dtype == np.complex128 else blas.cherk
    lower = update(1.0, few.T, lower=1)
    return np.asarray(np.tril(lower) + np.tril(lower, -1).conj().T)


def _diagonal_sums(square: np.ndarray) -> np.ndarray:
    """Return the sums of the main and the lower diagonals, s_k = sum_a square[a + k, a]."""
    n = len(square)
    # written in rows of 2 n numbers and read in rows of 2 n + 1, diagonals become columns
    numbers = np.zeros(n * (2 * n + 1), dtype=square.dtype)
    numbers[: 2 * n * n].reshape(n, 2 * n)[:, :n] = square.T
    return np.asarray(numbers.reshape(n, 2 * n + 1)[:, :n].sum(axis=0))


def wiener_gain(model: object, coefficients: Array, noise_sd: float) -> np.ndarray | None:
    """Return K = C (C + 2 s^2)^-1, (rank, rank), of a model that knows the covariance of its coefficients, else None.

    The metabolites' covariance is scaled to the energy of the data. Nuisance varies over orders of magnitude, so its
    covariance is taken a hundred times as strong as the metabolites': wherever it may lie, it says nothing about the
    shift.

    Parameters
    ----------
    model
        Signal model; `metabolite_covariance` and `nuisance_covariance` are used where it has them.
    coefficients
        (voxel, rank).
    noise_sd
        SD of the real part of a coefficient's noise.
    """
    wanted, nuisance = getattr(model, "metabolite_covariance", None), getattr(model, "nuisance_covariance", None)
    if wanted is None or nuisance is None:
        return None
    few = to_numpy(coefficients)
    strength, unwanted = float(np.trace(wanted).real), float(np.trace(nuisance).real)
    energy = float(np.sum(np.abs(few) ** 2)) / len(few) - 2 * noise_sd**2 * few.shape[1]
    covariance = (
        max(energy, 0.0) / strength * (wanted + nuisance * (100 * strength / unwanted if unwanted > 0 else 0.0))
    )
    return np.asarray(covariance @ np.linalg.inv(covariance + 2 * noise_sd**2 * np.eye(len(covariance))))


def unexplained_rows(fids: Array, basis: np.ndarray, noise_sd: float, gram: np.ndarray | None = None) -> np.ndarray:
    """Return orthonormal rows (any, t) for signal outside the subspace that stands out of the noise.

    They are right singular vectors of what the basis leaves of the FIDs, with singular values above the largest one of
    a pure noise matrix, s sqrt(2) (sqrt(n) + sqrt(t - rank)), by more than its own scatter (Tracy-Widom scale).

    Parameters
    ----------
    fids
        (voxel, t).
    basis
        (rank, t) orthonormal rows.
    noise_sd
        SD of the real part of a sample's noise.
    """
    n, n_times = int(fids.shape[0]), int(fids.shape[1])
    free = n_times - len(basis)
    if free <= 0:
        return np.empty((0, n_times), dtype=np.complex64)
    edge = np.sqrt(n) + np.sqrt(free)
    scatter = edge ** (1 / 3) * (n * free) ** (-1 / 12)
    limit = 2 * noise_sd**2 * (edge + 3 * scatter) ** 2
    gram = time_gram(fids) if gram is None else gram
    if float(np.trace(gram).real) * np.finfo(np.float32).eps > 0.1 * limit:
        # signal so strong that its rounding would look like signal outside the basis
        gram = time_gram(to_numpy(fids).astype(np.complex128))
    power, rows = _leading_rows(_outside(gram.conj(), basis), min(MOST_ROWS, free, n))
    rows = rows[power > limit]
    rows = rows - (rows @ basis.conj().T) @ basis
    return np.linalg.qr(rows.conj().T)[0].conj().T.astype(np.complex64) if len(rows) else rows.astype(np.complex64)


def _outside(gram: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return Q G Q with Q = I - V^H V: the Gram matrix X^H X of what the basis leaves."""
    v = basis.astype(np.complex128)
    # with A = V G: Q G Q = G - M - M^H, M = V^H (A - (A V^H) V / 2)
    seen = v @ gram
    part = v.conj().T @ (seen - 0.5 * (seen @ v.conj().T) @ v)
    return np.asarray(gram - part - part.conj().T)


def _leading_rows(gram: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues of X^H X and their vectors (rows) by subspace iteration.

    The values are Rayleigh quotients, so they are never above the true ones (Halko, Martinsson, Tropp 2011,
    doi:10.1137/090771806). The start is the strongest columns of the matrix itself: nothing is drawn.
    """
    strongest = np.argsort(np.real(np.diag(gram)))[::-1][: 2 * count]
    span = np.linalg.qr(gram[:, strongest])[0]
    for _ in range(6):
        span = np.linalg.qr(gram @ span)[0]
    values, vectors = np.linalg.eigh(span.conj().T @ gram @ span)
    return values[::-1][:count], (span @ vectors).conj().T[::-1][:count]


def principal_rotation(coefficients: Array) -> tuple[np.ndarray, int]:
    """Return the unitary matrix to the principal axes, strongest first, and how many of them stand out of the noise.

    Parameters
    ----------
    coefficients
        (voxel, component) with white noise of real SD 1.
    """
    few = to_numpy(coefficients).astype(np.complex128)
    n, rank = few.shape
    power, vectors = np.linalg.eigh(few.conj().T @ few / max(n, 1))
    edge = 2 * (1 + np.sqrt(rank / max(n, 1))) ** 2
    return np.ascontiguousarray(vectors[:, ::-1]), max(1, int(np.sum(power > edge)))
