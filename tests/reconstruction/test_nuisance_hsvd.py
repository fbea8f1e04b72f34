from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
import torch

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.reconstruction.nuisance.hsvd import hsvd, principal_rows

DWELL = 1 / 1500
TIMES = DWELL * np.arange(512)
BAND = (-60.0, 60.0)
WATER = ((-12.3, 18.0, 80.0), (1.7, 11.0, 100 * np.exp(0.4j)), (14.2, 30.0, 30j))
"""(frequency [Hz], damping [1/s], amplitude)."""
METABOLITES = ((-321.0, 14.0, 3.0), (-200.0, 14.0, 3.0), (-110.0, 20.0, 2.0), (90.0, 25.0, 1.0))


def fid(components, times=TIMES):
    return sum(a * np.exp((2j * np.pi * f - d) * times) for f, d, a in components)


def in_namespace(name, x):
    if name == "torch":
        return torch.from_numpy(x)
    return array_api_strict.asarray(x) if name == "array_api_strict" else x


@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", [np.complex128, np.complex64])
def test_known_exponentials_are_found_exactly_beside_others(name, dtype):
    x = np.stack([fid((*WATER, *METABOLITES)), 1e-7 * fid(WATER), fid(METABOLITES)]).astype(dtype)
    found = hsvd(in_namespace(name, x), DWELL, BAND)
    assert type(found.amplitude) is type(in_namespace(name, x))
    amplitude = to_numpy(found.amplitude)
    for row, scale in ((0, 1.0), (1, 1e-7)):
        used = np.abs(amplitude[row]) > 1e-3 * scale
        order = np.argsort(to_numpy(found.frequency_hz)[row, used])
        f, d, a = (to_numpy(v)[row, used][order] for v in (found.frequency_hz, found.damping, found.amplitude))
        expected = np.array(WATER)
        np.testing.assert_allclose(f, expected[:, 0].real, atol=1e-3)
        np.testing.assert_allclose(d, expected[:, 1].real, atol=1e-2)
        np.testing.assert_allclose(a, expected[:, 2] * scale, rtol=1e-4)
    assert np.abs(amplitude[2]).max() < 1e-3
    signal = to_numpy(found.signal(512))
    np.testing.assert_allclose(signal[0], fid(WATER), atol=2e-3)


@pytest.mark.parametrize("n_times", [96, 256, 384, 1024])
def test_any_length_of_fid_gives_the_band_back(n_times):
    times = DWELL * np.arange(n_times)
    found = hsvd(fid((*WATER, *METABOLITES), times)[None], DWELL, BAND)
    error = np.linalg.norm(to_numpy(found.signal(n_times))[0] - fid(WATER, times))
    assert error < 2e-3 * np.linalg.norm(fid(WATER, times))


def test_noise_alone_has_no_component_and_little_of_it_is_taken_with_water(rng):
    noise = rng.standard_normal((200, 512)) + 1j * rng.standard_normal((200, 512))
    empty = hsvd(noise, DWELL, BAND, noise_sd=1.0)
    assert np.mean(np.any(np.abs(empty.amplitude) > 0, axis=1)) < 0.02
    water = fid(WATER)
    found = hsvd(water + noise, DWELL, BAND, noise_sd=1.0)
    assert np.median(np.sum(np.abs(found.amplitude) > 0, axis=1)) in (2, 3)
    # three components have twelve real parameters, so at most about six of 512 complex samples' noise is taken
    wrong = np.linalg.norm(found.signal(512) - water, axis=1) ** 2 / 2
    assert np.median(wrong) < 12


def test_all_fids_at_once_are_the_same_as_one_by_one(rng):
    x = fid(WATER) * rng.uniform(0.5, 2, (70, 1)) + 0.1 * (rng.standard_normal((70, 512)) + 0j)
    together = hsvd(x, DWELL, BAND, noise_sd=0.1).signal(512)
    alone = np.concatenate([hsvd(row[None], DWELL, BAND, noise_sd=0.1).signal(512) for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_zero_fids_and_no_fids_give_nothing():
    assert not hsvd(np.zeros((3, 128), complex), DWELL, BAND).signal(128).any()
    assert hsvd(np.zeros((0, 128), complex), DWELL, BAND, noise_sd=1.0).signal(128).shape == (0, 128)


def test_what_cannot_be_decomposed_is_refused():
    with pytest.raises(DataError, match="at least 32 points"):
        hsvd(np.zeros((3, 16), complex), DWELL, BAND)
    with pytest.raises(ConfigError, match="band 60 to -60 Hz"):
        hsvd(np.zeros((3, 64), complex), DWELL, (60.0, -60.0))
    with pytest.raises(ConfigError, match="order is 0"):
        hsvd(np.zeros((3, 64), complex), DWELL, BAND, order=0)


def test_principal_rows_are_the_singular_vectors(rng):
    x = rng.standard_normal((40, 24)) + 1j * rng.standard_normal((40, 24))
    power, rows = principal_rows(x, 5)
    singular = np.linalg.svd(x, compute_uv=False)
    np.testing.assert_allclose(power, singular[:5] ** 2, rtol=1e-9)
    np.testing.assert_allclose(rows @ rows.conj().T, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(x @ rows.conj().T, axis=0), singular[:5], rtol=1e-9)
