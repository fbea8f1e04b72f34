from __future__ import annotations

import numpy as np
import pytest
import torch

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.reconstruction.nuisance.measured_water import line_rows, measured_water, shared_phases
from mrsi_gadgets.reconstruction.nuisance.reference import match_of, quadratics

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


def spectrum_level(fids, low_hz, high_hz):
    """Root mean square of the unitary spectrum in a band, over that of complex noise of unit SD."""
    spectrum = np.fft.fft(fids, axis=-1) / np.sqrt(2 * fids.shape[-1])
    frequency = np.fft.fftfreq(fids.shape[-1], 1 / 1500)
    return np.sqrt(np.mean(np.abs(spectrum[:, (frequency > low_hz) & (frequency < high_hz)]) ** 2))


def none(n=192):
    return np.zeros((n, n))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_gain_phase_and_frequency_between_the_scans_are_found(rng, library):
    made = Water(rng)
    fids, reference = made.fids, made.reference
    if library == "torch":
        fids, reference = torch.from_numpy(fids), torch.from_numpy(reference)
    match = match_of(fids, reference, made.place, np.ones(len(made.fids), bool), TIMES, made.covariance, 1.0)
    # noise of the match alone: far below the noise over the amplitude of water, since all voxels share it
    np.testing.assert_allclose(match.gain, made.gain, atol=1e-4)
    np.testing.assert_allclose(match.frequency_hz, made.frequency, atol=2e-3)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_water_of_a_reference_keeps_its_sidebands_and_loses_its_noise(rng, library):
    made = Water(rng)
    reference = torch.from_numpy(made.reference) if library == "torch" else made.reference
    brain = np.arange(len(made.reference)) % 16 < 13
    sd = np.ones(len(made.reference))
    found = measured_water(reference, SHAPE, brain, TIMES, 80.0, sd, none(), 2 * np.eye(192))
    assert type(found) is type(reference)
    error = to_numpy(found) - made.water
    # the sidebands at 120 Hz are 15 times the noise at the edge
    assert spectrum_level(made.water - np.abs(made.water), -130, -110) > 3
    assert spectrum_level(error, -130, -110) < 0.5
    # elsewhere all of the noise was in the reference, and little of it is left
    assert spectrum_level(made.reference - made.water, -400, -180) == pytest.approx(1, abs=0.05)
    assert spectrum_level(error, -400, -180) < 0.3
    # in the band of the line the voxel's own shape decides, which no other voxel has
    assert spectrum_level(error, -60, 60) < 1.05


def test_voxels_of_more_noise_are_weighed_by_it_and_those_without_noise_are_empty(rng):
    made = Water(rng)
    sd = 1 + 0.5 * made.place[:, 1]
    reference = (made.water + sd[:, None] * (made.reference - made.water)).astype(np.complex64)
    sd[::16] = 0.0
    found = measured_water(reference, SHAPE, sd > 0, TIMES, 80.0, sd, none(), 2 * np.eye(192))
    assert not found[::16].any()
    error = (found - made.water)[sd > 0] / sd[sd > 0, None]
    assert spectrum_level(error, -400, -180) < 0.3


def test_phases_that_all_voxels_share_take_sidebands_out_and_leave_metabolites(rng):
    made = Water(rng, metabolites_in_reference=True)
    place = quadratics(SHAPE)[:, :3]
    rows = line_rows(TIMES, 80.0)

    def sidebands(fids):
        return fids - fids @ rows.conj().T @ rows

    def left(beside):
        phases = shared_phases(made.reference, place, rows, beside)
        return sidebands(made.water * np.exp(-1j * place @ phases))

    noise = 2 * np.eye(192)
    assert spectrum_level(sidebands(made.water), -140, -100) > 2.5
    kept = left(noise + 100 * made.covariance)
    assert spectrum_level(kept, -140, -100) < 0.15
    assert spectrum_level(kept, -400, -180) < 0.1
    # their mean over the brain would be a phase that is common to all
    assert spectrum_level(left(noise), -400, -180) > 5 * spectrum_level(kept, -400, -180)


def test_rows_of_a_line_hold_every_damped_line_of_the_band_and_none_beyond():
    rows = line_rows(TIMES, 60.0)
    np.testing.assert_allclose(rows @ rows.conj().T, np.eye(len(rows)), atol=1e-10)
    since = TIMES - TIMES[0]

    def left(frequency, damping):
        line = np.exp((2j * np.pi * frequency - damping) * since)
        return np.linalg.norm(line - line @ rows.conj().T @ rows) / np.linalg.norm(line)

    assert max(left(f, d) for f in (-55, -17.3, 0.4, 41) for d in (5, 33, 100)) < 1e-4
    assert min(left(f, d) for f in (-160, 130) for d in (5, 33)) > 0.6


def test_polynomials_in_place_leave_out_axes_without_voxels():
    assert quadratics((4, 4, 1)).shape == (16, 6)
    assert quadratics((4, 4, 4)).shape == (64, 10)
    assert quadratics((1, 1, 1)).shape == (1, 1)
