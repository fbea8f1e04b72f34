"""What a reconstruction leaves of the data, and whether that is noise.

The residual of an image is carried through the same Fourier reconstruction as the data themselves, so that its noise is
known in every voxel, for complete and incomplete data alike. A linear model of few parameters leaves all of the noise
and nothing else; signal that a model does not have stays in the residual as a line, where a matched filter finds it
(North, Proc IEEE 1963;51:1016-1027).
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, batch_size, like, namespace
from mrsi_gadgets.data import KtData, Protocol, SpectralImage
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier

BAND_PPM_1H = (1.85, 4.1)
"""Where molecules lie and neither lipids nor the foot of water; other nuclei have the whole band."""
_RATES = (12.0, 36.0)
"""Decay of the lines that are looked for [1/s]: 4 and 11 Hz wide, as those of molecules in a brain."""
_PIECE = 4096
"""Voxels that are looked at once."""


def residual_image(kt: KtData, coil_maps: Array, image: SpectralImage) -> SpectralImage:
    """Return the least-squares (Fourier) image of what `image` leaves of the data, demodulated by the image's B0.

    Where every sample was acquired that is the Fourier image less `image`; else the samples that `image` predicts are
    taken off first.

    Parameters
    ----------
    kt : whitened data that `image` was reconstructed from.
    coil_maps : (coil, x, y, z), sum over coils of |S|^2 = 1.
    image : the result.

    Returns
    -------
    SpectralImage
        FIDs (x, y, z, t) and the SD of their noise, in the unit of `image`.

    Raises
    ------
    DataError
        Data, coils and image do not fit each other.
    """
    if kt.fully_sampled:
        found = reconstruct_fourier(kt, coil_maps, image.b0_hz, image.mask)
        left = found.coefficients - image.fids()
    else:
        operator = encoding_operator(kt, coil_maps, image.b0_hz, image.basis)
        scale = float(np.sqrt(np.prod(kt.protocol.geometry.matrix)))
        rest = kt.with_samples(kt.samples - operator(image.coefficients * scale))
        found = reconstruct_fourier(rest, coil_maps, image.b0_hz, image.mask)
        left = found.coefficients
    return SpectralImage(
        left, None, image.protocol, image.mask, image.b0_hz, found.noise_sd, frame=image.frame, echo=image.echo
    )


def energy_over_noise(residual: Array, noise_sd: Array, protocol: Protocol) -> Array:
    """Return the energy of residuals (voxel, t) in the metabolites' band over that of white noise, (voxel,).

    Parameters
    ----------
    residual : FIDs.
    noise_sd : (voxel,) SD of the real part of a sample of the data's noise.
    protocol : of the FIDs.

    Returns
    -------
    Array
        1 where noise alone is left, less where noise was kept, more where signal was left.
    """
    xp = namespace(residual)
    n_times = int(residual.shape[-1])
    spectra = xp.take(xp.fft.fft(residual, axis=-1), like(in_band(protocol, n_times), residual), axis=-1)
    power = xp.mean(xp.real(spectra) ** 2 + xp.imag(spectra) ** 2, axis=-1)
    return power / (2 * n_times * noise_sd**2)


def strongest_line(residual: Array, noise_sd: Array, protocol: Protocol) -> Array:
    """Return the largest output of matched filters for lines of any place in the band, (voxel,).

    Parameters
    ----------
    residual : FIDs (voxel, t).
    noise_sd : (voxel,) SD of the real part of a sample of the data's noise.
    protocol : of the FIDs.

    Returns
    -------
    Array
        |<line, residual>| of lines of unit energy, in units of `noise_sd`: matched-filter SNR of what is left. White
        noise has a few, see `line_in_noise`.
    """
    xp = namespace(residual)
    length = 2 * int(residual.shape[-1])
    places = like(in_band(protocol, length), residual)
    times = protocol.times_s - protocol.times_s[0]
    parts = []
    count = int(residual.shape[0])
    most = batch_size(_PIECE)
    for start in range(0, count, most):
        piece = residual[start : min(start + most, count), :]
        best = None
        for rate in _RATES:
            decay = np.exp(-rate * times)
            decayed = piece * like(decay / np.linalg.norm(decay), piece, piece.dtype)
            height = xp.abs(xp.take(xp.fft.fft(decayed, n=length, axis=-1), places, axis=-1))
            height = xp.max(height, axis=-1)
            best = height if best is None else xp.where(height > best, height, best)
        parts.append(best)
    return xp.concat(parts) / noise_sd


def line_in_noise(protocol: Protocol, seed: int = 0) -> float:
    """Return the median of `strongest_line` over FIDs of white noise alone."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, 500, protocol.n_times))
    return float(np.median(strongest_line((noise[0] + 1j * noise[1]).astype(np.complex64), np.ones(500), protocol)))


def in_band(protocol: Protocol, length: int) -> np.ndarray:
    """Return the places of the band in a Fourier transform of `length` points, (place,) int."""
    ppm = protocol.reference_ppm + np.fft.fftfreq(length, protocol.dwell_s) / (protocol.transmit_frequency_hz * 1e-6)
    low, high = BAND_PPM_1H if protocol.nucleus == "1H" else (-np.inf, np.inf)
    return np.flatnonzero((ppm >= low) & (ppm <= high))
