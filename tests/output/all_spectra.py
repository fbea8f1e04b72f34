"""Spectra of all voxels with made-up fits that obey the definition of their parts."""

from __future__ import annotations

import dataclasses

import numpy as np

from mrsi_gadgets.fitted import FittedSpectra

NAMES = ("NAA", "Cr", "MM", "MM:0.91", "Pi", "Pi:shift")


def build_spectra(maps, *, basis: bool = False, moving: bool = True, seed: int = 8) -> FittedSpectra:
    """Spectra of every voxel of the mask, of random numbers that obey the definition."""
    rng = np.random.default_rng(seed)
    voxels = np.argwhere(maps.mask)
    times = maps.protocol.times_s

    def noise(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    exponents = np.zeros((len(voxels), len(NAMES)), np.complex64)
    exponents[:, 4:] = 2j * np.pi * rng.uniform(-9, 9, (len(voxels), 1)) - 3
    rows = np.linalg.qr(noise(times.size, 5))[0].T.astype(np.complex64) if basis else None
    empty = FittedSpectra(
        voxels, noise(len(voxels), times.size), noise(len(voxels), times.size), noise(len(voxels), times.size), NAMES,
        noise(len(NAMES), times.size), noise(len(voxels), len(NAMES)).real.astype(np.complex64),
        np.exp((2j * np.pi * rng.uniform(-5, 5, (len(voxels), 1)) - 7) * times).astype(np.complex64), times,
        exponents if moving else None, rows,
    )  # fmt: skip
    molecules = sum(empty.component(name) for name in empty.molecules)
    return dataclasses.replace(empty, fit=molecules + empty.nuisance)
