"""How strong water and scalp lipids are, before anything is removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import KtData
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.nuisance.lipids import band_amplitude

_BANDS_PPM = ((4.3, 5.0), (0.8, 1.7), (1.9, 3.4))
"""Bands of water, lipids and the metabolites they are compared with."""
_WEAK_WATER, _WEAK_LIPIDS = 12.0, 0.8


@dataclass(frozen=True)
class NuisanceStrength:
    """How strong water and lipids are against the metabolites: medians over the mask of ratios of band amplitudes."""

    water: float
    lipids: float

    @property
    def weak(self) -> bool:
        """Whether the learned basis and the fit take them as they are.

        On numerical brains maps lose nothing by residual water up to 20 times and scalp lipids up to 30 times the NAA
        CH3 signal (ratios up to 9 and 0.75); at 100 and 100 (16 and 0.85) they do (docs/explanation/nuisance.md).
        """
        return self.water < _WEAK_WATER and self.lipids < _WEAK_LIPIDS


def nuisance_strength(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, mask: np.ndarray, noise_sd: float = 1.0
) -> NuisanceStrength:
    """Return the strength of water and lipids in metabolite data of any encoding, by one Fourier image of them."""
    if not np.any(mask):
        return NuisanceStrength(0.0, 0.0)
    image = reconstruct_fourier(kt, coil_maps, b0_hz, mask, noise_sd).coefficients
    n = int(image.shape[-1])
    ppm = kt.protocol.ppm_axis(n)
    # without a window the tails of water would be everywhere
    window = like((0.5 * (1 + np.cos(np.pi * np.arange(n) / n))).astype(np.float32), image)
    xp = namespace(image)
    inside = like(np.flatnonzero(np.asarray(mask).ravel()), image)
    fids = xp.take(xp.reshape(image, (-1, n)), inside, axis=0) * window
    water, lipids, others = (band_amplitude(fids, ppm, band) for band in _BANDS_PPM)
    others = np.maximum(others, np.finfo(np.float32).tiny)
    return NuisanceStrength(float(np.median(water / others)), float(np.median(lipids / others)))
