"""Coil sensitivities from a water image, and compression of the receive channels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mrsi_gadgets.arrays import Array, to_numpy
from mrsi_gadgets.errors import DataError


def dominant_channels(images: np.ndarray) -> np.ndarray:
    """Return the unit vector over coils that carries most energy in each voxel, (coil, x, y, z).

    It is the leading eigenvector of sum_t x(t) x(t)^H; its phase is that of the first time point's matched signal, so
    that the combination of the first point is real and positive.

    Parameters
    ----------
    images
        (coil, x, y, z, time) complex.
    """
    stacked = np.moveaxis(images, 0, -2)  # (x, y, z, coil, time)
    correlation = np.matmul(stacked, np.conj(np.swapaxes(stacked, -1, -2)))
    _, vectors = np.linalg.eigh(correlation)
    leading = vectors[..., -1]
    first = np.sum(np.conj(leading) * stacked[..., 0], axis=-1, keepdims=True)
    leading = leading * np.exp(1j * np.angle(first))
    return np.moveaxis(leading, -1, 0).astype(np.complex64)


def coil_maps_from_water(image: Array, mask: np.ndarray | None = None) -> np.ndarray:
    """Return coil maps (coil, x, y, z) complex64 from the water image of each channel at t = 0.

    The maps are the channels over their root sum of squares. Voxels with little water lean on their neighbours, and
    voxels without any are continued smoothly; sum_c |S_c|^2 = 1 everywhere. Their phase is that of the water at t = 0:
    a matched combination with them puts every FID in phase with the water.

    Parameters
    ----------
    image
        (coil, x, y, z) complex: whitened channels at t = 0.
    mask
        (x, y, z) bool: voxels whose water may be trusted; all where None.

    Raises
    ------
    DataError
        The image has no signal.
    """
    channels = to_numpy(image).astype(np.complex64)
    norm = np.sqrt(np.sum(np.abs(channels) ** 2, axis=0))
    trusted = norm > 0 if mask is None else mask & (norm > 0)
    if not trusted.any():
        raise DataError(
            "the water image is empty, so no coil maps can be made; check the water reference rule of the header"
        )
    unit = np.where(trusted, channels / np.where(norm > 0, norm, 1), 0)
    weight = np.where(trusted, np.minimum(norm / np.median(norm[trusted]), 1.0) ** 2, 0)
    smooth = continue_smoothly(unit, weight, width=0.7)
    # at a tenth of the median amplitude a voxel's own phase and its neighbours' count alike
    trust = weight / (weight + 0.01)
    smooth = trust * unit + (1 - trust) * smooth
    length = np.sqrt(np.sum(np.abs(smooth) ** 2, axis=0))
    return (smooth / np.where(length > 0, length, 1)).astype(np.complex64)


def continue_smoothly(values: np.ndarray, weight: np.ndarray, *, width: float) -> np.ndarray:
    """Smooth maps with weights and continue them to where the weights vanish (normalised convolution, doubling widths).

    Parameters
    ----------
    values
        (..., x, y, z) real or complex.
    weight
        (x, y, z) non-negative.
    width
        SD of the narrowest Gaussian [voxels]; each further one is twice as wide and only fills what the narrower left
        open.
    """
    grid = weight.shape
    sizes = [n if n > 1 else 0 for n in grid]
    result: np.ndarray | None = None
    # wide kernels are a prior of negligible weight for the narrow ones: the finest scale with data decides
    widths = [width]
    while widths[-1] < max(grid):
        widths.append(2 * widths[-1])
    for sd in reversed(widths):
        sigma = [sd if n else 0 for n in sizes]
        spread = ndimage.gaussian_filter(weight, sigma, mode="nearest")
        weighted = _filter_maps(values * weight, sigma)
        prior = np.zeros_like(weighted) if result is None else result
        trust = 0.0 if result is None else 1e-3 * float(weight.max())
        result = (weighted + trust * prior) / np.maximum(spread + trust, np.finfo(np.float32).tiny)
    assert result is not None
    return result


def _filter_maps(values: np.ndarray, sigma: list[float]) -> np.ndarray:
    full = [0.0] * (values.ndim - 3) + list(sigma)
    if np.iscomplexobj(values):
        return np.asarray(
            ndimage.gaussian_filter(values.real, full, mode="nearest")
            + 1j * ndimage.gaussian_filter(values.imag, full, mode="nearest")
        )
    return np.asarray(ndimage.gaussian_filter(values, full, mode="nearest"))


def compression_matrix(
    samples: Array, *, lost_energy: float = 1e-3, noise_sd: float = 1.0, max_samples: int = 200_000
) -> np.ndarray:
    """Return the matrix (virtual, coil) complex64 that keeps whitened channels' signal in the fewest virtual ones.

    The rows are the leading left singular vectors of the samples, so white noise stays white. As many are kept as
    needed to lose less than `lost_energy` of the signal's energy (the noise's share is taken off first).

    Parameters
    ----------
    samples
        (coil, ...) whitened samples, best those of the water reference.
    lost_energy
        Share of the signal energy that may be lost.
    noise_sd
        SD of the real part of the samples' noise: 1 for whitened readouts, 0 for maps without noise.
    max_samples
        At most this many samples, evenly spaced, are looked at.

    Raises
    ------
    DataError
        The samples hold no signal above the noise, or `lost_energy` is not between 0 and 1.
    """
    if not 0 <= lost_energy < 1:
        raise DataError(f"the energy that compression may lose is {lost_energy}; it must be at least 0 and below 1")
    n_coils = int(samples.shape[0])
    flat = samples.reshape(n_coils, -1)
    step = max(1, int(flat.shape[1]) // max_samples)
    few = to_numpy(flat[:, ::step]).astype(np.complex128)
    power, vectors = np.linalg.eigh(few @ few.conj().T / few.shape[1])
    power, vectors = power[::-1], vectors[:, ::-1]
    signal = np.maximum(power - 2.0 * noise_sd**2, 0.0)
    if not signal.sum() > 0:
        raise DataError(
            "the samples hold no signal above the noise, so channels cannot be compressed; switch compression off"
        )
    kept = 1 + int(np.searchsorted(np.cumsum(signal), (1 - lost_energy) * signal.sum() * (1 - 1e-12)))
    return np.ascontiguousarray(vectors[:, : min(kept, n_coils)].conj().T).astype(np.complex64)
