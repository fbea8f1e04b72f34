"""Constant offsets of receive channels: found where they are, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, KtData, Role
from mrsi_gadgets.reconstruction.offsets import (
    Offset,
    offset_of_noise,
    offset_of_tail,
    shows_offset,
    without_offset,
)

OFFSET = np.array([0.4 - 0.3j, 0.0, -0.2j])


@pytest.fixture
def data(make_protocol):
    def make(offset=0 * OFFSET, *, seed=0, water=0.0, weighting="none", count=None):
        """csi of noise of SD 1 with an offset; `water` decays on resonance in the voxel at the centre."""
        geometry = Geometry((16, 16, 1), (240.0, 240.0, 10.0))
        protocol = make_protocol(n_times=128, geometry=geometry, kspace_weighting=weighting)
        rng = np.random.default_rng(seed)
        shape = (3, 256, 128)
        count = np.ones(256, int) if count is None else count
        # acquisition weighting: 2 of at most 2 readouts have the noise of 2, 1 of 2 that of 4, half the size
        most = np.min(count, where=count > 0, initial=1000)
        readouts = np.where(count > 0, most / np.maximum(count, 1) if weighting != "none" else 1, 0)[None, :, None]
        samples = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        samples = samples + readouts * (offset[:, None, None] + water * np.exp(-protocol.times_s / 0.04))
        k = np.stack(np.meshgrid(*((np.arange(16) - 8) / 0.24,) * 2, [0.0], indexing="ij"), axis=-1).reshape(-1, 3)
        return KtData(
            (samples * (count > 0)[None, :, None]).astype(np.complex64), k,
            np.broadcast_to(protocol.times_s, (256, 128)), count, Role.METABOLITE, protocol, grid=(16, 16, 1),
        )  # fmt: skip

    return make


def test_a_noise_scan_tells_the_offsets_of_its_channels(data):
    found = offset_of_noise(data(OFFSET))
    assert found.source == "noise scan"
    np.testing.assert_allclose(found.values, OFFSET, atol=0.03)
    assert found.values[1] == 0
    assert found.largest == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("seed", range(8))
def test_neither_noise_scan_nor_tails_of_noise_have_any(data, seed):
    assert offset_of_noise(data(seed=seed)) is None
    assert offset_of_tail(data(seed=seed)) is None


def test_tails_tell_the_offset_where_there_is_no_noise_scan(data):
    found = offset_of_tail(data(OFFSET))
    assert found.source == "tail of the FIDs"
    np.testing.assert_allclose(found.values, OFFSET, atol=0.06)


def test_water_on_resonance_in_the_centre_is_no_offset(data):
    assert offset_of_tail(data(water=20.0)) is None


def test_an_offset_of_the_noise_scan_alone_stays_out_of_the_data(data):
    offset = offset_of_noise(data(OFFSET, seed=1))
    assert shows_offset(data(OFFSET), offset)
    assert not shows_offset(data(), offset)
    # metabolite cycling has already taken it out, another gain has changed it
    assert not shows_offset(data(3 * OFFSET), offset)
    assert not shows_offset(data(-OFFSET), offset)


@pytest.mark.parametrize("weighting", ["none", "acquisition_weighted"])
def test_what_is_taken_out_is_what_was_put_in(xp, data, weighting):
    count = np.random.default_rng(1).integers(0, 4, 256)
    given, wanted = (data(o, weighting=weighting, count=count) for o in (OFFSET, 0 * OFFSET))
    offset = Offset(OFFSET, np.ones(3), "noise scan")
    done = without_offset(replace(given, samples=xp.asarray(given.samples)), offset)
    np.testing.assert_allclose(to_numpy(done.samples), wanted.samples, atol=1e-5)
    before = given.samples.copy()
    without_offset(given, offset)
    np.testing.assert_array_equal(given.samples, before)
    assert without_offset(given, offset, overwrite=True).samples is given.samples
    np.testing.assert_allclose(given.samples, wanted.samples, atol=1e-5)
    assert shows_offset(data(OFFSET, weighting=weighting, count=count), offset)
