"""Damped exponentials in one frequency band of many FIDs at once: HSVD in beamspace (eq. 4 of science.md).

The state-space method of Kung et al. (J Opt Soc Am 1983, doi:10.1364/JOSA.73.001799; for MR spectroscopy Barkhuijsen et
al., J Magn Reson 1987, doi:10.1016/0022-2364(87)90023-0) finds the poles of an FID from the singular vectors of its
Hankel matrix. Only a band is wanted here, so each row of the Hankel matrix (a window of the FID) is first projected
onto the discrete prolate spheroidal sequences of that band (Slepian, Bell Syst Tech J 1978,
doi:10.1002/j.1538-7305.1978.tb02104.x). A damped exponential stays one under this projection, what lies outside the
band all but vanishes, and the windows may be taken several samples apart: a Hankel matrix of 256 x 257 shrinks to
about 30 x 40, which an eigenvalue problem of 30 x 30 solves. No sample is lost to a filter's rise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import eigh
from scipy.signal.windows import dpss

from mrsi_gadgets.arrays import (
    Array,
    is_numpy,
    like,
    namespace,
    one_blas_thread,
    over_parts,
    to_numpy,
)  # fmt: skip
from mrsi_gadgets.errors import ConfigError, DataError

ORDER = 16
"""Most components in the band."""
LEAST_POINTS = 32
_BATCH = 64
"""FIDs that one thread does at once on the host; more only need more memory (about 0.3 MB each)."""
_CONCENTRATION = 1e-4
"""Sequences with less than this share of their energy in the band are left out."""
_PROBES = 64


@dataclass(frozen=True, eq=False)
class Exponentials:
    """Sums of damped exponentials: sum_k a_k exp((i 2 pi f_k - d_k) (t - t_0)), t_0 the first sample."""

    frequency_hz: Array
    """(fid, component) float64 [Hz]."""
    damping: Array
    """(fid, component) float64 [1/s], not negative."""
    amplitude: Array
    """(fid, component) complex128 at the first sample; zero where a component is not used."""
    dwell_s: float

    def signal(self, n_times: int) -> Array:
        """Return the sums at the first `n_times` samples, (fid, t) complex64."""
        xp = namespace(self.amplitude)
        pole = _poles(self.frequency_hz, self.damping, self.dwell_s)
        sums = _weighted_powers(pole, self.amplitude, n_times)
        return xp.astype(sums, xp.complex64)


@dataclass(frozen=True, eq=False)
class _Band:
    """Everything that depends on the band and the number of points alone."""

    centre_hz: float
    stride: int
    window: np.ndarray
    """(window, beam) complex128: the sequences of the band, orthonormal."""
    whole: np.ndarray
    """(t, beam) complex128: those of the whole FID."""
    noise_edge: float
    """Largest eigenvalue that noise of unit SD (real part) makes in the Gram matrix of a projected Hankel matrix."""


def hsvd(
    fids: Array,
    dwell_s: float,
    band_hz: tuple[float, float],
    *,
    order: int = ORDER,
    noise_sd: float | np.ndarray | None = None,
) -> Exponentials:
    """Decompose FIDs into damped exponentials within a frequency band.

    Parameters
    ----------
    fids
        (fid, t) complex, any array namespace; computed in double precision on its device (poles on the host).
    dwell_s
        Time between samples [s].
    band_hz
        Lowest and highest frequency [Hz] of the components that are returned.
    order
        Most components that are looked for in and just beside the band.
    noise_sd
        SD of the real part of a sample's noise, a number or one per FID: components that noise could have made are then
        left out. None: always `order` components.

    Returns
    -------
    Exponentials
        Components by FID; those outside the band have amplitude zero.

    Raises
    ------
    DataError
        There are too few points.
    ConfigError
        The band is empty or wider than the spectrum, or the order is not positive.
    """
    if fids.ndim != 2 or int(fids.shape[1]) < LEAST_POINTS:
        raise DataError(
            f"FIDs of shape {tuple(fids.shape)} cannot be decomposed; give (fid, t) with at least {LEAST_POINTS} points"
        )
    low, high = (float(f) for f in band_hz)
    if not 0 < high - low < 1 / dwell_s:
        raise ConfigError(f"the band {low:g} to {high:g} Hz must be wider than 0 and narrower than {1 / dwell_s:g} Hz")
    if order < 1:
        raise ConfigError(f"order is {order}; it must be at least 1")
    band = _band(int(fids.shape[1]), float(dwell_s), low, high)
    count = int(fids.shape[0])
    sd = None if noise_sd is None else np.broadcast_to(np.asarray(noise_sd, dtype=float), (count,))

    def part(rows: slice) -> tuple[Array, Array, Array]:
        return _decompose(fids[rows, :], dwell_s, (low, high), order, None if sd is None else sd[rows], band)

    if not is_numpy(fids):
        return Exponentials(*part(slice(0, count)), dwell_s)
    with one_blas_thread():
        parts = over_parts(part, count, -(-count // _BATCH)) if count else [part(slice(0, 0))]
    frequency, damping, amplitude = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Exponentials(frequency, damping, amplitude, dwell_s)


@lru_cache(maxsize=16)
def _band(n_times: int, dwell_s: float, low: float, high: float) -> _Band:
    centre = 0.5 * (low + high)
    half = 0.5 * (high - low)
    n_window = n_times // 2
    window = _sequences(n_window, dwell_s, centre, half)
    whole = _sequences(n_times, dwell_s, centre, half)
    # what passes the window's sequences ends about two of its resolution elements beyond the band: no folding there
    reach = half + 3 / (n_window * dwell_s)
    stride = max(1, int(0.5 / (dwell_s * reach)))
    # windows enough for the order that is left of a short FID
    stride = max(1, min(stride, (n_times - n_window) // 20))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((_PROBES, n_times)) + 1j * rng.standard_normal((_PROBES, n_times))
    rows = _projected(noise, window, stride)
    largest = np.linalg.eigvalsh(rows @ np.conj(np.swapaxes(rows, 1, 2)))[:, -1]
    return _Band(centre, stride, window, whole, float(largest.max()))


def _sequences(n: int, dwell_s: float, centre: float, half: float) -> np.ndarray:
    """Return discrete prolate spheroidal sequences of a band, (n, beam), orthonormal."""
    product = half * n * dwell_s
    count = min(n, int(2 * product) + 8)
    if product >= n / 2 - 1:
        return np.eye(n, dtype=complex)
    real, share = dpss(n, max(product, 0.5), count, return_ratios=True)
    shift = np.exp(2j * np.pi * centre * dwell_s * np.arange(n))
    return np.asarray((real[share > _CONCENTRATION] * shift).T)


def _projected(fids: Array, window: Array, stride: int) -> Array:
    """Return W^H x[s : s + n] of the windows that start at s = l stride and then at s = l stride + 1.

    (fid, beam, window); the two halves are the same windows, one sample apart.
    """
    xp = namespace(fids)
    n = int(window.shape[0])
    starts = range(0, int(fids.shape[1]) - n, stride)
    hankel = xp.stack([fids[:, s + k : s + k + n] for k in (0, 1) for s in starts], axis=1)
    return xp.matrix_transpose(xp.matmul(hankel, xp.conj(window)))


def _decompose(
    fids: Array, dwell_s: float, band_hz: tuple[float, float], order: int, noise_sd: np.ndarray | None, band: _Band
) -> tuple[Array, Array, Array]:
    """Return frequencies, dampings and amplitudes, each (fid, order)."""
    xp = namespace(fids)
    x = xp.astype(fids, xp.complex128)
    window, whole = like(band.window, x), like(band.whole, x)
    rows = _projected(x, window, band.stride)
    n_windows = int(rows.shape[2]) // 2
    order = min(order, int(window.shape[1]), n_windows - 1)
    # scaled FID by FID: the eigenvalues of very small or large data would leave the range on the way
    energy = xp.sum(xp.real(rows) ** 2 + xp.imag(rows) ** 2, axis=(1, 2), keepdims=True)
    tiny = float(np.finfo(float).tiny)
    rows = rows / xp.sqrt(xp.clip(energy, min=tiny))
    values, vectors = xp.linalg.eigh(xp.matmul(rows, xp.conj(xp.matrix_transpose(rows))))
    values, vectors = xp.flip(values, axis=1)[:, :order], xp.flip(vectors, axis=2)[:, :, :order]
    strength = to_numpy(values)
    # what double precision cannot tell from zero, and what noise makes
    floor = np.full(len(strength), 1e-14)
    if noise_sd is not None:
        floor = np.maximum(floor, band.noise_edge * noise_sd**2 / np.maximum(to_numpy(energy)[:, 0, 0], tiny))
    used = np.sum(strength > floor[:, None], axis=1)
    scale = 1 / xp.sqrt(xp.clip(values, min=1e-300))
    right = xp.matmul(xp.matrix_transpose(rows), xp.conj(vectors)) * xp.astype(scale, x.dtype)[:, None, :]
    here, later = right[:, :n_windows, :], right[:, n_windows:, :]
    # two shifts: a stride tells poles well but modulo its own band, one sample tells which of those it is
    pairs = ((here[:, :-1, :], here[:, 1:, :]), (here, later))
    grams = [to_numpy(xp.matmul(xp.conj(xp.matrix_transpose(a)), b)) for a, c in pairs for b in (a, c)]
    frequency, damping = _poles_of((grams[0], grams[1]), (grams[2], grams[3]), used, dwell_s, band.stride)
    valid = np.arange(order)[None, :] < used[:, None]
    f, d = like(frequency, x), like(damping, x)
    amplitude = _amplitudes(x, f, d, like(valid, x), dwell_s, whole)
    inside = (f >= band_hz[0]) & (f <= band_hz[1]) & like(valid, x)
    return f, d, xp.where(inside, amplitude, xp.zeros_like(amplitude))


def _poles_of(
    by_stride: tuple[np.ndarray, np.ndarray],
    by_sample: tuple[np.ndarray, np.ndarray],
    used: np.ndarray,
    dwell_s: float,
    stride: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return frequency [Hz] and damping [1/s] of the leading `used` components, each (fid, order).

    Both pairs hold B^H B and B^H B', B' = B T diag(pole) T^-1 the basis of the windows a stride or a sample later.
    """
    frequency, damping = np.zeros(used.shape + by_stride[0].shape[1:2]), np.zeros(used.shape + by_stride[0].shape[1:2])
    period = 1 / (dwell_s * stride)
    for k in np.unique(used[used > 0]):
        chosen = used == k
        far, near = (
            np.linalg.solve(gram[chosen, :k, :k], shifted[chosen, :k, :k]) for gram, shifted in (by_stride, by_sample)
        )
        pole, vectors = np.linalg.eig(far)
        turned = np.linalg.solve(vectors + 1e-12 * np.eye(k), near @ vectors)
        coarse = np.angle(np.diagonal(turned, axis1=1, axis2=2)) / (2 * np.pi * dwell_s)
        fine = np.angle(pole) * period / (2 * np.pi)
        frequency[chosen, :k] = fine + period * np.round((coarse - fine) / period)
        damping[chosen, :k] = np.maximum(-np.log(np.maximum(np.abs(pole), 1e-30)) * period, 0.0)
    return frequency, damping


def _amplitudes(x: Array, frequency: Array, damping: Array, valid: Array, dwell_s: float, whole: Array) -> Array:
    """Fit all amplitudes to the band of the whole FIDs, (fid, component)."""
    xp = namespace(x)
    pole = _poles(frequency, damping, dwell_s)
    columns = xp.matmul(xp.conj(xp.matrix_transpose(whole)), _powers(pole, int(x.shape[1])))
    columns = columns * xp.astype(valid, x.dtype)[:, None, :]
    size = xp.sqrt(xp.sum(xp.real(columns) ** 2 + xp.imag(columns) ** 2, axis=1))
    size = xp.where(size > 0, size, xp.ones_like(size))
    columns = columns / xp.astype(size, x.dtype)[:, None, :]
    adjoint = xp.conj(xp.matrix_transpose(columns))
    # poles on top of each other share their amplitude
    ridge = like(1e-12 * np.eye(int(columns.shape[2])), x, x.dtype)
    unused = xp.astype(~valid, x.dtype)[:, None, :] * like(np.eye(int(columns.shape[2])), x, x.dtype)
    right = xp.matmul(adjoint, xp.matmul(x, xp.conj(whole))[..., None])
    return xp.linalg.solve(xp.matmul(adjoint, columns) + ridge + unused, right)[..., 0] / xp.astype(size, x.dtype)


def _poles(frequency_hz: Array, damping: Array, dwell_s: float) -> Array:
    xp = namespace(frequency_hz)
    turn = 2 * np.pi * dwell_s * frequency_hz
    size = xp.exp(-dwell_s * damping)
    return xp.astype(size * xp.cos(turn), xp.complex128) + 1j * xp.astype(size * xp.sin(turn), xp.complex128)


def _steps(pole: Array, n: int) -> tuple[Array, Array]:
    """Return pole^(fine a) and pole^b with fine a + b covering 0 .. n - 1, (fid, a or b, component)."""
    xp = namespace(pole)
    fine = int(np.ceil(np.sqrt(n)))

    def run(base: Array, count: int) -> Array:
        terms = [xp.ones_like(base)]
        for _ in range(count - 1):
            terms.append(terms[-1] * base)
        return xp.stack(terms, axis=1)

    quick = run(pole, fine)
    return run(quick[:, -1, :] * pole, -(-n // fine)), quick


def _powers(pole: Array, n: int) -> Array:
    """Return pole^j, j = 0 .. n - 1, (fid, j, component)."""
    slow, quick = _steps(pole, n)
    product = slow[:, :, None, :] * quick[:, None, :, :]
    xp = namespace(pole)
    size = int(slow.shape[1]) * int(quick.shape[1])
    return xp.reshape(product, (int(pole.shape[0]), size, int(pole.shape[1])))[:, :n, :]


def _weighted_powers(pole: Array, weight: Array, n: int) -> Array:
    """Return sum_k weight_k pole_k^j, (fid, j)."""
    xp = namespace(pole)
    slow, quick = _steps(pole, n)
    sums = xp.matmul(slow * weight[:, None, :], xp.matrix_transpose(quick))
    return xp.reshape(sums, (int(pole.shape[0]), int(slow.shape[1]) * int(quick.shape[1])))[:, :n]


def principal_rows(fids: Array, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values squared, falling, and the leading right singular vectors (row, t) of FIDs (n, t).

    By the Gram matrix in time, in double precision on the host: it is small, the FIDs stay where they are.
    """
    xp = namespace(fids)
    wide = xp.astype(fids, xp.complex128)
    gram = to_numpy(xp.matmul(xp.conj(xp.matrix_transpose(wide)), wide))
    n = gram.shape[0]
    values, vectors = eigh(gram, subset_by_index=(max(0, n - most), n - 1))
    return np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1].conj().T)
