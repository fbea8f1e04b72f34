"""Voxels made of the same basis as the fit, with known amounts, lineshapes, nuisance and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.data import Geometry, Protocol, SpectralImage
from mrsi_gadgets.physics.basis import BasisSet, metabolite_basis
from mrsi_gadgets.physics.macromolecules import macromolecule_basis
from mrsi_gadgets.quantification.preparation import brain_defaults

NAMES = ("NAA", "NAAG", "Cr", "PCr", "GPC", "PCh", "Ins", "Glu", "Gln", "GABA", "Lac", "Tau")
SUMS = {
    "tNAA": ("NAA", "NAAG"),
    "tCr": ("Cr", "PCr"),
    "tCho": ("GPC", "PCh"),
    "Ins": ("Ins",),
    "Glx": ("Glu", "Gln"),
}


def make_protocol(matrix: tuple[int, int, int], n_times: int = 256) -> Protocol:
    return Protocol(
        nucleus="1H",
        transmit_frequency_hz=123.25e6,
        reference_ppm=4.65,
        dwell_s=1 / 1500,
        n_times=n_times,
        acquisition_delay_s=1.3e-3,
        geometry=Geometry(matrix, tuple(8.0 * n for n in matrix)),
        encoding="csi",
        field_strength_t=2.8948,
    )


@dataclass(frozen=True)
class Made:
    """An image and what it was made of."""

    image: SpectralImage
    amounts: dict[str, np.ndarray]
    shape: np.ndarray
    noise_sd: float

    def total(self, group: str) -> np.ndarray:
        return np.sum([self.amounts[name] for name in SUMS[group]], axis=0)


def molecules(protocol: Protocol) -> tuple[BasisSet, BasisSet]:
    return metabolite_basis(protocol, NAMES), macromolecule_basis(protocol)


def make_image(
    rng: np.random.Generator,
    matrix: tuple[int, int, int] = (5, 4, 3),
    *,
    snr: float = np.inf,
    water: float = 0.0,
    lipids: float = 0.0,
    spread: float = 0.3,
    scale: float = 1.0,
    lorentz: np.ndarray | None = None,
) -> Made:
    protocol = make_protocol(matrix)
    t, n = protocol.times_s, int(np.prod(matrix))
    basis, macromolecules = molecules(protocol)
    rates, typical = brain_defaults(protocol, [*basis.names, *macromolecules.names])
    amounts = {name: typical[name] * np.exp(spread * rng.standard_normal(n)) for name in basis.names}
    shape = np.stack(
        [
            np.deg2rad(rng.uniform(-30, 30, n)),
            rng.uniform(-5, 5, n),
            rng.uniform(0, 12, n),
            (np.pi * rng.uniform(0, 8, n)) ** 2 / (4 * np.log(2)),
        ],
        axis=1,
    )
    if lorentz is not None:
        shape[:, 2:] = np.stack([lorentz, 0 * lorentz], axis=1)
    phase, shift, lorentz, gauss = (shape[:, i : i + 1] for i in range(4))
    fids = sum(
        amounts[name][:, None] * fid * np.exp(-t * rates[name])
        for name, fid in zip(basis.names, basis.fids, strict=True)
    )
    profile = np.array([typical[name] for name in macromolecules.names]) @ macromolecules.fids
    fids = fids + np.exp(0.2 * rng.standard_normal((n, 1))) * profile
    fids = fids * np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    for strength, ppm, rate in ((water, 4.65, 30.0), (0.7 * lipids, 1.3, 50.0), (0.1 * lipids, 0.9, 50.0)):
        amplitude = strength * 27 * np.exp(2j * np.pi * rng.random((n, 1)))
        offset = protocol.hz(ppm) + 4 * rng.standard_normal((n, 1))
        fids = fids + amplitude * np.exp((2j * np.pi * offset - rate) * t)
    sd = 0.0 if np.isinf(snr) else noise_sd_for(snr, t, rates["NAA"])
    noise = rng.standard_normal((*fids.shape, 2)) @ np.array([1, 1j])
    fids = scale * (fids + sd * noise)
    image = SpectralImage(
        fids.reshape(*matrix, -1).astype(np.complex64),
        None,
        protocol,
        np.ones(matrix, bool),
        np.zeros(matrix, np.float32),
        np.full(matrix, sd * scale, np.float32),
    )
    return Made(image, {name: scale * value for name, value in amounts.items()}, shape, sd * scale)


def noise_sd_for(snr: float, times: np.ndarray, rate: float) -> float:
    """Noise that gives normal NAA the peak SNR under a 3 s^-1 filter."""
    weight = np.exp(-3 * times)
    peak = 3 * 8.5 * np.sum(weight * np.exp(-(rate + 2) * times - 60 * times**2))
    return float(peak / snr / np.sqrt(np.sum(weight**2)))
