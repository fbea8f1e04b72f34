"""What a scan adds to a signal model that was learned before it: a shared shift, missing rows, principal axes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.linalg import lapack

from mrsi_gadgets.arrays import Array, over_parts, to_numpy

LARGEST_SHIFT_HZ = 15.0
"""The shared shift is searched within this; water's offset from temperature is a few Hz."""
SHIFT_STEP_HZ = 0.05
"""Largest step of that search; a parabola finds the rest."""
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
    weighted = basis if gain is None else (gain.T @ basis).astype(basis.dtype)
    # energy(f) = sum_ab G[a, b] P[a, b] exp(-i 2 pi f (t_a - t_b)), G = X^T conj(X), P = V^H K^T V
    product = gram * (basis.conj().T @ weighted)
    lags = _diagonal_sums(product.astype(np.complex128))
    if n_times < 2:
        return 0.0
    dwell = float(times_s[1] - times_s[0])
    # sum over lags of exp(-i 2 pi f k dwell): a long transform samples it finely
    length = 1 << int(np.ceil(np.log2(1 / (dwell * SHIFT_STEP_HZ))))
    near = np.arange(-int(LARGEST_SHIFT_HZ * length * dwell), int(LARGEST_SHIFT_HZ * length * dwell) + 1)
    shifts = near / (length * dwell)
    energy = 2 * np.real(np.fft.fft(lags, length)[near]) - np.real(lags[0])
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
    # a Hermitian matrix: the blocks of one triangle are enough
    other = few.conj()
    count = few.shape[1]
    gram = np.zeros((count, count), dtype=few.dtype)
    bounds = np.linspace(0, count, min(count, 3) + 1).astype(int)
    parts = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
    places = [(parts[i], parts[j]) for i in range(len(parts)) for j in range(i + 1)]

    def fill(which: slice) -> None:
        for row, column in places[which]:
            gram[row, column] = few[:, row].T @ other[:, column]
            if row != column:
                gram[column, row] = gram[row, column].conj().T

    over_parts(fill, len(places), len(places))
    return gram


def _diagonal_sums(square: np.ndarray) -> np.ndarray:
    """Return the sums of the main and the lower diagonals, s_k = sum_a square[a + k, a]."""
    n = len(square)
    # written in rows of 2 n numbers and read in rows of 2 n + 1, diagonals become columns
    numbers = np.zeros(n * (2 * n + 1), dtype=square.dtype)
    numbers[: 2 * n * n].reshape(n, 2 * n)[:, :n] = square.T
    return np.asarray(numbers.reshape(n, 2 * n + 1)[:, :n].sum(axis=0))


def captured_energy(gram: np.ndarray, basis: np.ndarray) -> float:
    """Return the sum of |x V^H|^2 over all FIDs x, from their Gram matrix X^T conj(X) and the rows V."""
    return float(np.sum(basis * (basis.conj() @ gram)).real)


def wiener_gain(model: object, energy: float, noise_sd: float) -> np.ndarray | None:
    """Return K = C (C + 2 s^2)^-1, (rank, rank), of a model that knows the covariance of its coefficients, else None.

    The metabolites' covariance is scaled to the energy of the data. Nuisance varies over orders of magnitude, so its
    covariance is taken a hundred times as strong as the metabolites': wherever it may lie, it says nothing about the
    shift.

    Parameters
    ----------
    model
        Signal model; `metabolite_covariance` and `nuisance_covariance` are used where it has them.
    energy
        Mean over the voxels of the sum of |coefficient|^2.
    noise_sd
        SD of the real part of a coefficient's noise.
    """
    wanted, nuisance = getattr(model, "metabolite_covariance", None), getattr(model, "nuisance_covariance", None)
    if wanted is None or nuisance is None:
        return None
    strength, unwanted = float(np.trace(wanted).real), float(np.trace(nuisance).real)
    signal = max(energy - 2 * noise_sd**2 * len(wanted), 0.0)
    covariance = signal / strength * (wanted + nuisance * (100 * strength / unwanted if unwanted > 0 else 0.0))
    return np.asarray(covariance @ np.linalg.inv(covariance + 2 * noise_sd**2 * np.eye(len(covariance))))


def unexplained_rows(
    fids: Array, turn: np.ndarray, basis: np.ndarray, noise_sd: float, gram: np.ndarray | None = None
) -> np.ndarray:
    """Return orthonormal rows (any, t) for signal outside the subspace that stands out of the noise.

    They are right singular vectors of what the basis leaves of the FIDs, with singular values above the largest one of
    a pure noise matrix, s sqrt(2) (sqrt(n) + sqrt(t - rank)), by more than its own scatter (Tracy-Widom scale).

    Parameters
    ----------
    fids
        (voxel, t).
    turn
        (t,) factors of unit length that all FIDs are multiplied with first.
    basis
        (rank, t) orthonormal rows.
    noise_sd
        SD of the real part of a sample's noise.
    gram
        `time_gram` of the turned FIDs, where it is known already.
    """
    n, n_times = int(fids.shape[0]), int(fids.shape[1])
    free = n_times - len(basis)
    if free <= 0:
        return np.empty((0, n_times), dtype=np.complex64)
    edge = np.sqrt(n) + np.sqrt(free)
    scatter = edge ** (1 / 3) * (n * free) ** (-1 / 12)
    limit = 2 * noise_sd**2 * (edge + 3 * scatter) ** 2
    gram = time_gram(to_numpy(fids) * turn) if gram is None else gram
    if float(np.trace(gram).real) * np.finfo(np.float32).eps > 0.1 * limit:
        # signal so strong that its rounding would look like signal outside the basis
        gram = time_gram(to_numpy(fids) * turn.astype(np.complex128))
    outside = _outside(gram.conj(), basis.astype(gram.dtype))
    if _all_below(outside, limit):
        return np.empty((0, n_times), dtype=np.complex64)
    power, rows = _leading_rows(outside.astype(np.complex128), min(MOST_ROWS, free, n))
    rows = rows[power > limit]
    rows = rows - (rows @ basis.conj().T) @ basis
    return np.linalg.qr(rows.conj().T)[0].conj().T.astype(np.complex64) if len(rows) else rows.astype(np.complex64)


def _outside(gram: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return Q G Q with Q = I - V^H V: the Gram matrix X^H X of what the basis leaves."""
    # with A = V G: Q G Q = G - M - M^H, M = V^H (A - (A V^H) V / 2)
    seen = basis @ gram
    part = basis.conj().T @ (seen - 0.5 * (seen @ basis.conj().T) @ basis)
    return np.asarray(gram - part - part.conj().T)


def _all_below(hermitian: np.ndarray, limit: float) -> bool:
    """Tell whether no eigenvalue exceeds `limit`: limit - H then has a Cholesky factor, cheaper than eigenvalues."""
    factor = lapack.zpotrf if hermitian.dtype == np.complex128 else lapack.cpotrf
    return int(factor(limit * np.eye(len(hermitian), dtype=hermitian.dtype) - hermitian, lower=1)[1]) == 0


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
