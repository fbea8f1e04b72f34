from __future__ import annotations

import numpy as np
import pytest
import torch

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.reconstruction.nuisance.reference import Match, match_of, quadratics, water_by_reference

SHAPE = (16, 16, 1)
TIMES = 0.0013 + np.arange(192) / 1500
GAIN, PHASE_RAD, SHIFT_HZ = 0.97, 0.03, 0.6


class Water:
    """Voxels of water of several shapes with sidebands, twice measured, and lines of metabolites beside it."""

    def __init__(self, rng, *, metabolites_in_reference: bool = False) -> None:
        n = int(np.prod(SHAPE))
        place = quadratics(SHAPE)
        since = TIMES - TIMES[0]
        spread = rng.uniform(2, 8, (n, 1))
        decay = np.exp(-18 * since - (spread * since) ** 2 * 20)
        shake = 0.005 * place[:, 1:2] * np.sin(2 * np.pi * 120 * since)
        self.water = rng.uniform(2500, 3500, (n, 1)) * decay * np.exp(1j * shake)
        self.gain = GAIN * np.exp(1j * PHASE_RAD) * (1 + 0.01 * place[:, 2])
        self.frequency = SHIFT_HZ + 0.05 * place[:, 1]
        turn = self.gain[:, None] * np.exp(2j * np.pi * self.frequency[:, None] * since)
        lines = np.exp((2j * np.pi * np.array([-200.0, -320.0])[:, None] - 14) * since)
        size = rng.uniform(0.5, 1.5, (n, 2)) * [3.0, 5.0]
        self.metabolites = size @ lines
        self.covariance = lines.T @ (size.T @ size / n) @ lines.conj()
        noise = rng.standard_normal((2, n, len(since), 2)) @ np.array([1, 1j])
        self.fids = (self.water * turn + self.metabolites + noise[0]).astype(np.complex64)
        seen = self.water + (self.metabolites if metabolites_in_reference else 0)
        self.reference = (seen + noise[1]).astype(np.complex64)
        self.wanted = self.water * turn
        self.place = place


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_water_is_the_reference_times_gain_and_frequency_with_little_of_its_noise(rng, library):
    made = Water(rng)
    everywhere = np.ones(len(made.fids), bool)
    fids, reference = made.fids, made.reference
    if library == "torch":
        fids, reference = torch.from_numpy(fids), torch.from_numpy(reference)
    match = match_of(fids, reference, made.place, everywhere, TIMES, made.covariance, 1.0)
    # noise of the match alone: far below the noise over the amplitude of water, since all voxels share it
    np.testing.assert_allclose(match.gain, made.gain, atol=1e-4)
    np.testing.assert_allclose(match.frequency_hz, made.frequency, atol=2e-3)
    inside = np.arange(len(made.fids)) < 200
    found = water_by_reference(fids, reference, match, inside, TIMES, made.covariance, 1.0, 1.0)
    assert type(found) is type(fids)

    def error(estimate):
        return np.sqrt(np.mean(np.abs(to_numpy(estimate) - made.wanted)[inside] ** 2) / 2)

    plain = made.reference * match.factor(TIMES)
    assert error(plain) == pytest.approx(1, abs=0.05)
    assert error(found) < 0.45
    # the water's sidebands, 15 times the noise at the edge, are gone with it
    sidebands = made.wanted - np.abs(made.water) * made.gain[:, None]
    assert np.abs(sidebands).max() > 10
    # and metabolites stay, in place and size
    left = (made.fids - to_numpy(found))[inside]
    kept = np.sum(left * made.metabolites.conj()[inside]).real / np.sum(np.abs(made.metabolites[inside]) ** 2)
    assert kept == pytest.approx(1, abs=0.02)


def test_the_estimate_is_the_linear_one_of_least_error(rng):
    """Against the formula with matrices written out, for two rows in one group."""
    made = Water(rng)
    rows = np.stack([np.exp(-15 * (TIMES - TIMES[0])), np.exp((-40 + 60j) * (TIMES - TIMES[0]))])
    weights = rng.uniform(0.8, 1.2, (256, 2)) * np.exp(2j * np.pi * rng.uniform(size=(256, 2))) * [800, 90]
    clean = weights @ rows
    noise = rng.standard_normal((2, *clean.shape, 2)) @ np.array([1, 1j])
    reference = (clean + 2 * noise[0]).astype(np.complex64)
    x = (clean + made.metabolites + noise[1]).astype(np.complex64)
    match = Match(np.ones(256), np.zeros(256))
    found = water_by_reference(x, reference, match, np.ones(256, bool), TIMES, made.covariance, 1.0, 2.0)
    energy = np.sum(np.abs(clean) ** 2, axis=1)
    unit = clean / np.sqrt(energy)[:, None]
    covariance = unit.T @ unit.conj() / 256
    n = len(TIMES)
    beside = made.covariance + 2 * np.eye(n)
    voxels = range(0, 256, 16)
    best = []
    for voxel in voxels:
        prior = energy[voxel] * covariance
        total = np.block([[prior + 8 * np.eye(n), prior], [prior, prior + beside]])
        both = np.concatenate([reference[voxel], x[voxel]]).astype(complex)
        best.append(np.concatenate([prior, prior], axis=1) @ np.linalg.solve(total, both))
    error_of_best = np.linalg.norm(np.array(best) - clean[voxels])
    # the covariance is learned from noisy FIDs, which lets a part of their noise through: far less than all of it
    noise_of_reference = np.linalg.norm(reference[voxels] - clean[voxels])
    assert error_of_best < 0.1 * noise_of_reference
    assert np.linalg.norm(found[voxels] - clean[voxels]) < 0.35 * noise_of_reference


def test_polynomials_in_place_leave_out_axes_without_voxels():
    assert quadratics((4, 4, 1)).shape == (16, 6)
    assert quadratics((4, 4, 4)).shape == (64, 10)
    assert quadratics((1, 1, 1)).shape == (1, 1)
