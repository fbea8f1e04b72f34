"""NAA peak SNR: the fitted height of the NAA CH3 peak over the noise of the spectrum's real part (design measure)."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics.nucleus import nucleus_of

NAA_PPM = 2.008
FILTER_HZ = 3.0
"""Rate of the exponential filter [1/s]."""
_WINDOW_PPM = (1.84, 2.18)
_SHIFTS_PPM = np.linspace(-0.07, 0.07, 29)
_OTHER_WINDOW_HZ = 21.0
"""Half the window of other nuclei's lines [Hz], that of 1H at 3 T."""
_RATES_HZ = np.geomspace(3.0, 120.0, 24)
"""Decay rates of the fitted line [1/s], before the filter."""


def peak_heights(fids: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Height of the NAA CH3 peak of each FID (..., t), real (...), in the unit of an unnormalised discrete spectrum.

    For other nuclei than 1H it is that of the line they are calibrated on (PCr, HDO).

    The spectrum (3 s^-1 exponential filter, no zero filling) is fitted between 1.84 and 2.18 ppm with one Lorentzian
    line of free amplitude, phase, shift and width on a complex linear baseline; the height is that of the phased line.
    """
    flat = np.asarray(fids).reshape(-1, fids.shape[-1])
    damping = np.exp(-FILTER_HZ * protocol.dwell_s * np.arange(protocol.n_times))
    ppm = protocol.ppm_axis()
    centre, shifts, (low, high) = NAA_PPM, _SHIFTS_PPM, _WINDOW_PPM
    if protocol.nucleus != "1H":
        centre, half = nucleus_of(protocol).calibration_ppm, _OTHER_WINDOW_HZ * 1e6 / protocol.transmit_frequency_hz
        shifts, (low, high) = _SHIFTS_PPM / _SHIFTS_PPM[-1] * 0.4 * half, (centre - half, centre + half)
    window = (ppm > low) & (ppm < high)
    spectra = np.fft.fftshift(np.fft.fft(flat * damping, axis=-1), axes=-1)[:, window].T
    baseline = np.stack([np.ones(window.sum()), ppm[window] - ppm[window].mean()], axis=1)
    best = np.full(flat.shape[0], np.inf)
    heights = np.zeros(flat.shape[0])
    times = protocol.dwell_s * np.arange(protocol.n_times)
    for rate in _RATES_HZ:
        for shift in shifts:
            line = np.exp((2j * np.pi * protocol.hz(centre + shift) - rate) * times) * damping
            shape = np.fft.fftshift(np.fft.fft(line))[window]
            design = np.concatenate([shape[:, None], baseline], axis=1)
            solution = np.linalg.pinv(design) @ spectra
            error = np.sum(np.abs(spectra - design @ solution) ** 2, axis=0)
            better = error < best
            best = np.where(better, error, best)
            heights = np.where(better, np.abs(solution[0]) * float(np.sum(np.abs(line))), heights)
    return heights.reshape(fids.shape[:-1])


def spectrum_noise(fid_noise_sd: np.ndarray | float, protocol: Protocol) -> np.ndarray:
    """SD of the real part of that spectrum for white FID noise of SD `fid_noise_sd` (real part), same shape."""
    damping = np.exp(-FILTER_HZ * protocol.dwell_s * np.arange(protocol.n_times))
    return np.asarray(fid_noise_sd) * float(np.sqrt(np.sum(damping**2)))


def naa_peak_snr(fids: np.ndarray, noise_sd: np.ndarray | float, protocol: Protocol) -> np.ndarray:
    """NAA peak SNR of FIDs (..., t) from a Fourier reconstruction with matched coil combination.

    Parameters
    ----------
    fids : B0-corrected FIDs.
    noise_sd : SD of the real part of one sample of each FID (...), propagated from the noise scan.
    protocol : of the measurement.
    """
    return np.asarray(peak_heights(fids, protocol) / spectrum_noise(noise_sd, protocol))
