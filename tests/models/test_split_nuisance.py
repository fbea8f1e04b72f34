from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.split import split_nuisance
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.physics.ensemble import NAA_CH3_SIGNAL, noise_sd_at_snr, sample

PROTOCOL = Protocol("1H", 123.25e6, 4.65, 1 / 1500, 384, 0.0013, Geometry((3, 4, 5), (60.0, 80.0, 100.0)), "csi")


@pytest.fixture(scope="module")
def learned():
    return learn_subspace(PROTOCOL)


def voxels(n, water, lipids, snr, seed=21):
    """Fresh wanted signals, the same with nuisance of the given strengths and noise, and the noise level."""
    drawn = sample(PROTOCOL, n, seed)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) * 9.0 * NAA_CH3_SIGNAL for x in (drawn.water, drawn.lipids)]
    sd = noise_sd_at_snr(PROTOCOL, snr)
    rng = np.random.default_rng(seed)
    noise = sd * (rng.standard_normal(unit[0].shape) + 1j * rng.standard_normal(unit[0].shape))
    return drawn.metabolites, (drawn.metabolites + water * unit[0] + lipids * unit[1] + noise).astype(np.complex64), sd


def relative(x, truth):
    return np.linalg.norm(to_numpy(x) - truth) / np.linalg.norm(truth)


def test_nothing_is_lost_where_there_is_no_nuisance(learned):
    truth, measured, sd = voxels(100, 0.0, 0.0, 1000.0)
    split = split_nuisance(learned, measured, sd)
    assert relative(split.wanted, truth) < 0.03
    assert np.linalg.norm(split.nuisance) < 0.03 * np.linalg.norm(truth)


@pytest.mark.parametrize(("water", "lipids", "limit"), [(5, 0.0, 0.08), (100, 0.0, 0.12), (5, 3.0, 0.20)])
def test_nuisance_far_above_the_metabolites_is_taken_out(learned, water, lipids, limit):
    truth, measured, sd = voxels(200, water, lipids, 100.0)
    split = split_nuisance(learned, measured, sd)
    assert relative(learned.metabolites_only().project(measured), truth) > 5 * limit
    assert relative(split.wanted, truth) < limit
    assert relative(split.wanted + split.nuisance, to_numpy(learned.project(measured))) < 1e-5


def test_strengths_are_found_voxel_by_voxel(learned):
    truth, strong, sd = voxels(60, 30.0, 0.0, 50.0)
    _, weak, _ = voxels(60, 0.0, 0.0, 50.0)
    split = split_nuisance(learned, np.stack([strong, weak]), sd)
    assert split.water_strength.shape == (2, 60)
    assert np.median(split.water_strength[0]) > 10
    assert np.median(split.water_strength[1]) < 0.1
    assert relative(split.wanted[0], truth) < 0.15


def test_result_follows_the_scale_of_the_data(learned):
    _, measured, sd = voxels(64, 5.0, 0.5, 50.0)
    split = split_nuisance(learned, measured, sd)
    scaled = split_nuisance(learned, 1e-5 * measured, 1e-5 * sd)
    assert split.scale == pytest.approx(1.0, rel=0.25)
    assert scaled.scale == pytest.approx(1e-5 * split.scale, rel=1e-3)
    assert relative(1e5 * scaled.wanted, split.wanted) < 1e-3


def test_result_does_not_depend_on_phase_or_array_library(learned, xp):
    _, measured, sd = voxels(12, 5.0, 0.5, 50.0)
    expected = split_nuisance(learned, measured, sd, scale=1.0).wanted
    x = xp.asarray(np.reshape(1j * measured, (3, 4, 384)))
    split = split_nuisance(learned, x, sd, scale=1.0)
    assert split.wanted.shape == (3, 4, 384)
    assert relative(split.wanted, 1j * expected.reshape(3, 4, 384)) < 1e-4


def test_missing_nuisance_rows_and_noise_are_refused(learned):
    fids = np.ones((2, 384), dtype=np.complex64)
    with pytest.raises(DataError, match="nuisance=True"):
        split_nuisance(learned.metabolites_only(), fids, 1.0)
    with pytest.raises(DataError, match="noise level is 0"):
        split_nuisance(learned, fids, 0.0)
