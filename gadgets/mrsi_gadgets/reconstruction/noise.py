"""Noise covariance of the receive channels and the matrix that makes their noise white."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, is_numpy, like, namespace, over_pieces, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import DataError

SAMPLES_PER_CHANNEL = 10
"""A covariance of C channels from n samples has a relative error of about sqrt(C / n): below 1/3 for 10 C."""


def noise_covariance(samples: Array) -> np.ndarray:
    """Return E[n n^H], (coil, coil) complex128, of signal-free samples.

    Parameters
    ----------
    samples
        (coil, ...) complex noise samples.

    Raises
    ------
    DataError
        There are fewer than ten samples per channel, or a sample is not a number.
    """
    noise = to_numpy(samples)
    noise = noise.reshape(noise.shape[0], -1).astype(np.complex128)
    n_coils, n_samples = noise.shape
    if n_samples < SAMPLES_PER_CHANNEL * n_coils:
        raise DataError(
            f"the noise scan has {n_samples} samples for {n_coils} channels; at least {SAMPLES_PER_CHANNEL * n_coils} "
            "are needed to whiten, so record a longer noise scan or leave it out"
        )
    if not np.all(np.isfinite(noise)):
        raise DataError("the noise scan contains samples that are not numbers; leave it out or record it again")
    # receivers may add a constant; it is not noise
    noise = noise - noise.mean(axis=1, keepdims=True)
    return np.asarray(noise @ noise.conj().T / (n_samples - 1))


def covariance_from_noise_scan(noise: KtData, sample_time_s: float) -> np.ndarray:
    """Return the covariance of one metabolite sample from a noise scan that may have had another dwell.

    White receiver noise has a power proportional to the bandwidth, so E[n n^H] scales with the noise scan's dwell over
    that of the data. The noise scan's own bandwidth is narrower than its dwell says by what the receiver's filter cuts
    off (`Protocol.receiver_noise_bandwidth`); the data lie where it passes everything.

    Parameters
    ----------
    noise
        Data of role noise.
    sample_time_s
        ADC dwell of the metabolite readouts [s]; 0 means the same as the noise scan's.

    Raises
    ------
    DataError
        There are too few samples, or one is not a number.
    """
    covariance = noise_covariance(noise.samples)
    if sample_time_s > 0 and noise.sample_time_s > 0:
        covariance = covariance * (noise.sample_time_s / sample_time_s)
    return covariance / noise.protocol.receiver_noise_bandwidth


def noise_covariance_from_data(kt: KtData) -> tuple[np.ndarray, str]:
    """Estimate E[n n^H] from metabolite data when there is no noise scan.

    The last quarter of the FIDs of the outer half of k-space is taken, where least signal is left. Signal left over
    makes the estimate too large, never too small.

    Parameters
    ----------
    kt
        Metabolite data.

    Returns
    -------
    covariance
        (coil, coil), of one sample of one readout (averages are counted back).
    source
        Words for the provenance.

    Raises
    ------
    DataError
        There are too few acquired samples.
    """
    radius = np.sqrt(np.sum(kt.k**2, axis=-1))
    start = kt.samples.shape[2] - max(kt.samples.shape[2] // 4, 1)
    acquired = np.all(kt.counts[:, start:] > 0, axis=1)
    if not acquired.any():
        raise DataError(
            "no readout of this frame was acquired, so its noise cannot be estimated; send metabolite readouts"
        )
    outer = acquired & (radius >= np.median(radius[acquired]))
    tail = to_numpy(kt.samples[:, :, start:])[:, outer]
    # an average of n readouts has 1/n of one readout's noise power
    tail = tail * np.sqrt(kt.counts[outer, start:])[None]
    return noise_covariance(tail), "tail of the FIDs in outer k-space (no noise scan)"


def whitening_matrix(covariance: np.ndarray) -> np.ndarray:
    """Return W, (coil, coil) complex64, with W cov W^H = 2 I: SD 1 in the real and 1 in the imaginary part.

    W is sqrt(2) times the inverse of the lower Cholesky factor.

    Raises
    ------
    DataError
        The covariance is not positive definite: a channel without noise, or two channels that are copies.
    """
    power = np.real(np.diag(covariance))
    silent = np.flatnonzero(~(power > 1e-12 * power.max(initial=0.0)))
    if silent.size or not np.all(np.isfinite(covariance)):
        raise DataError(
            f"receive channel(s) {silent.tolist()} carry no noise in the noise scan; switch them off or omit the scan"
        )
    scale = 1 / np.sqrt(power)
    correlation = covariance * scale[:, None] * scale[None, :]
    lowest = float(np.linalg.eigvalsh(correlation)[0])
    if lowest < 1e-9:
        raise DataError(
            "the noise of two receive channels is identical, so they cannot be whitened; switch one of them off"
        )
    lower = np.linalg.cholesky(correlation)
    return (np.sqrt(2) * np.linalg.solve(lower, np.diag(scale))).astype(np.complex64)


def apply_channel_matrix(matrix: np.ndarray, samples: Array, *, overwrite: bool = False) -> Array:
    """Return the samples (coil, ...) of new channels: matrix (new, coil) times old channels.

    With `overwrite` NumPy samples lose their old values and their memory holds the new ones, where these are not more.
    """
    xp = namespace(samples)
    n_coils = samples.shape[0]
    if matrix.shape[1] != n_coils:
        raise DataError(f"a matrix for {matrix.shape[1]} channels was applied to {n_coils}; the coil count has changed")
    flat = xp.reshape(samples, (n_coils, -1))
    weights = like(matrix, samples, samples.dtype)
    n_new = matrix.shape[0]
    shape = (n_new, *samples.shape[1:])
    if not (overwrite and is_numpy(samples) and n_new <= n_coils and np.shares_memory(flat, samples)):
        return xp.reshape(weights @ flat, shape)

    def replace(part: slice) -> None:
        flat[:n_new, part] = weights @ flat[:, part]

    over_pieces(replace, flat.shape[1], n_coils * flat.itemsize)
    return samples[:n_new]
