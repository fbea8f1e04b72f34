"""Voxels of phosphorus and deuterium with known amounts, lineshapes, shift of phosphate and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.data import Geometry, Protocol, SpectralImage
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.quantification.preparation import brain_defaults


def make_protocol(nucleus: str, matrix: tuple[int, int, int] = (8, 8, 8)) -> Protocol:
    """7 T, as csi16_31p and csi16_2h have it."""
    phosphorus = nucleus == "31P"
    return Protocol(
        nucleus=nucleus,
        transmit_frequency_hz=120.3e6 if phosphorus else 45.6e6,
        reference_ppm=0.0 if phosphorus else 4.8,
        dwell_s=1 / 5000 if phosphorus else 1 / 1000,
        n_times=512 if phosphorus else 256,
        acquisition_delay_s=0.5e-3,
        geometry=Geometry(matrix, tuple(20.0 * n for n in matrix)),
        encoding="csi",
        field_strength_t=7.0,
    )


@dataclass(frozen=True)
class Made:
    image: SpectralImage
    amounts: np.ndarray
    """(voxel, molecule) [mM]."""
    names: tuple[str, ...]
    shape: np.ndarray
    """(voxel, 4) phase, shift, Lorentz, Gauss."""
    phosphate_hz: np.ndarray
    noise_sd: float

    def amount(self, weights: dict[str, float]) -> np.ndarray:
        return sum(w * self.amounts[:, self.names.index(name)] for name, w in weights.items())


def make_image(
    rng: np.random.Generator,
    nucleus: str,
    matrix: tuple[int, int, int] = (8, 8, 2),
    *,
    snr: float = np.inf,
    spread: float = 0.2,
    phosphate_ppm_sd: float = 0.1,
    own_rates: float = 0.0,
) -> Made:
    """Each molecule with its usual T2*, `own_rates` relative spread of it, and one lineshape per voxel."""
    protocol = make_protocol(nucleus, matrix)
    t, n, names = protocol.times_s, int(np.prod(matrix)), NUCLEI[nucleus].usual
    rates, typical = brain_defaults(protocol, names)
    amounts = np.array([typical[name] for name in names]) * np.exp(spread * rng.standard_normal((n, len(names))))
    for pool in NUCLEI[nucleus].pools:
        amounts[:, [names.index(name) for name in pool]] = amounts[:, [names.index(pool[0])]]
    shape = np.stack(
        [rng.uniform(-0.5, 0.5, n), rng.uniform(-4, 4, n), rng.uniform(0, 10, n), rng.uniform(0, 300, n)], axis=1
    )
    moved = np.zeros((n, len(names)))
    if "Pi" in names:
        limit = 0.27
        moved[:, names.index("Pi")] = np.clip(phosphate_ppm_sd * rng.standard_normal(n), -limit, limit) * 120.3
    decay = np.array([rates[name] for name in names]) * np.exp(own_rates * rng.standard_normal((n, len(names))))
    fids = np.zeros((n, len(t)), complex)
    for m, fid in enumerate(metabolite_basis(protocol).fids):
        fids += amounts[:, m, None] * fid * np.exp((2j * np.pi * moved[:, m, None] - decay[:, m, None]) * t)
    phase, shift, lorentz, gauss = (shape[:, i : i + 1] for i in range(4))
    fids *= np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    sd = 0.0 if np.isinf(snr) else noise_sd_at_snr(protocol, snr)
    fids = fids + sd * (rng.standard_normal((*fids.shape, 2)) @ np.array([1, 1j]))
    image = SpectralImage(
        fids.reshape(*matrix, -1).astype(np.complex64), None, protocol, np.ones(matrix, bool),
        np.zeros(matrix, np.float32), np.full(matrix, sd, np.float32),
    )  # fmt: skip
    phosphate = moved[:, names.index("Pi")] if "Pi" in names else np.zeros(n)
    return Made(image, amounts, names, shape, phosphate, sd)
