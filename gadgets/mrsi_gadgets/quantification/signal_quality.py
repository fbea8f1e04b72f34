"""Maps of what a spectrum is worth before any molecule is named: SNR of its strongest peak, lipids beside it, noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Map
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.quantification.design import group_weights

if TYPE_CHECKING:
    from mrsi_gadgets.data import Protocol
    from mrsi_gadgets.quantification.resynthesis import Resynthesis

SNR, LIPIDS, NOISE = "snr", "lipids", "noise"
"""Names of the maps."""
FILTER_RATE = 3.0
"""Exponential filter of the spectrum that SNR is defined for [1/s]."""
_LIPID_PPM = (0.75, 1.85)
_LIPID_BAND = "lipids"
_STEPS = 48
_FINE = 4


def signal_maps(whole: Resynthesis) -> dict[str, Map]:
    """Return maps of SNR, residual lipids (where the model knows any) and noise.

    SNR is the fitted height of the strongest peak (1H: the CH3 peak of NAA, NAAG included) in the phased spectrum with
    a 3 s^-1 exponential filter and without zero filling, over the standard deviation of that spectrum's real part as
    the noise of the samples makes it: that of the data, whatever a reconstruction has smoothed. Lipids are the highest
    peak of the expected nuisance between 0.75 and 1.85 ppm in the same spectrum, over the height of the strongest peak.

    Parameters
    ----------
    whole
        The fit.
    """
    image, model = whole.image, whole.model
    protocol = image.protocol
    damping = np.exp(-FILTER_RATE * protocol.dwell_s * np.arange(protocol.n_times))
    heights = _heights(whole, damping)
    noise = np.asarray(image.noise_sd, float).ravel()[whole.inside]
    spectral = noise * float(np.sqrt(np.sum(damping**2)))
    found = {
        SNR: (np.divide(heights, spectral, out=np.full(len(heights), np.inf), where=spectral > 0), "1 (peak over SD)"),
        NOISE: (noise, "a.u. (SD of the real part of a sample of the FID)"),
    }
    if _LIPID_BAND in model.coordinates.bands:
        n = model.coordinates.n_dense
        spectra = model.coordinates.expand[:n] @ _transform(protocol, damping, np.linspace(*_LIPID_PPM, _STEPS))
        peaks = np.max(np.abs(whole.nuisance @ spectra), axis=1)
        # a voxel without the strongest molecule is judged by the usual one
        usual = max(float(np.median(heights)), 1e-30)
        found[LIPIDS] = (peaks / np.maximum(heights, 0.1 * usual), "1 (lipid peak over the strongest peak)")
    maps = {}
    for name, (values, unit) in found.items():
        volume = np.full(image.mask.size, np.nan, np.float32)
        volume[whole.inside] = values
        maps[name] = Map(volume.reshape(image.mask.shape), unit)
    return maps


def _heights(whole: Resynthesis, damping: np.ndarray) -> np.ndarray:
    """Return the height of each voxel's strongest peak, (voxel,)."""
    model, protocol = whole.model, whole.image.protocol
    names = model.design.names[: model.design.n_metabolites]
    strongest = nucleus_of(protocol).strongest
    which = np.array([name == strongest for name in names])
    for weights in group_weights(names, protocol.nucleus).values():
        if np.any((weights == 1.0) & which) and set(np.unique(weights)) <= {0.0, 1.0}:
            which = weights > 0
    members = np.flatnonzero(which) if which.any() else np.array([int(np.argmax(model.design.typical[: len(names)]))])
    columns = model.design.columns[:, members]
    # where the peak lies does not depend on the voxel: shift and phase are taken out
    grid = protocol.ppm_axis(_FINE * protocol.n_times)
    usual = columns @ model.design.typical[members]
    spectrum = np.fft.fftshift(np.fft.fft(usual * damping, _FINE * protocol.n_times))
    peak = float(grid[int(np.argmax(np.abs(spectrum)))])
    expansion = model.dictionary.expansion
    given = ((to_numpy(whole.given) @ expansion.from_nodes) @ expansion.functions).astype(np.complex64)
    shape = whole.shape.astype(float).copy()
    shape[:, :2] = 0.0
    lines = (given * model.dictionary.freedom.common(shape)).astype(np.complex64)
    at_peak = columns.T * (damping * _transform(protocol, np.ones(1), np.array([peak]))[:, 0])
    return np.abs(np.sum((lines @ at_peak.T) * whole.amplitudes[:, members], axis=1))


def _transform(protocol: Protocol, damping: np.ndarray, ppm: np.ndarray) -> np.ndarray:
    """Return the damped Fourier kernel (t, ppm)."""
    times = protocol.times_s[:, None]
    return np.asarray(damping[:, None] * np.exp(-2j * np.pi * protocol.hz(ppm)[None, :] * times))
