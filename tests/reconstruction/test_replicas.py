"""Noise replicas: what they find of noise and of lost signal, and that the data stay as they were."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import make_measurement

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.replicas import replicate
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace


def known(m):
    return m.coil_maps, m.b0_hz, m.mask, m.noise_sd


def test_replicas_of_a_linear_method_are_its_noise_and_leave_nothing(rng):
    m = make_measurement(rng)
    before = m.kt.samples.copy()

    def method(kt):
        return reconstruct_fourier(kt, *known(m))

    image = method(m.kt)
    found = replicate(m.kt, m.coil_maps, image, method, count=3, seed=5, noise_sd=m.noise_sd)
    assert np.array_equal(m.kt.samples, before)
    assert found.noise.shape == (3, int(m.mask.sum()), m.kt.protocol.n_times)
    stated = image.noise_sd[m.mask]
    measured = np.sqrt(np.mean(np.abs(found.noise) ** 2, axis=(0, 2)) / 2)
    assert abs(np.mean(measured / stated) - 1) < 0.01
    # the replicas are independent of each other
    first, second = found.noise[0].ravel(), found.noise[1].ravel()
    assert abs(np.vdot(first, second)) / np.linalg.norm(first) / np.linalg.norm(second) < 0.02
    assert np.abs(found.left).max() < 1e-5 * np.abs(found.noise).max()
    again = replicate(m.kt, m.coil_maps, image, method, count=3, seed=5, noise_sd=m.noise_sd)
    assert np.array_equal(found.noise, again.noise)


def test_samples_may_be_overwritten_and_the_replicas_are_the_same(rng):
    m = make_measurement(rng)

    def method(kt):
        return reconstruct_low_rank(kt, *known(m))

    image = method(m.kt)
    kept = replicate(m.kt, m.coil_maps, image, method, count=2, seed=1, noise_sd=m.noise_sd)
    lost = replicate(m.kt, m.coil_maps, image, method, count=2, seed=1, noise_sd=m.noise_sd, overwrite=True)
    assert np.allclose(kept.noise, lost.noise, atol=1e-6 * np.abs(kept.noise).max())


def test_replicas_know_the_noise_that_a_basis_made_from_the_data_lets_through(rng):
    """The rows of a low-rank image follow the noise: more of it is left than rank and closed form say."""
    m = make_measurement(rng, noise=0.05)

    def method(kt):
        return reconstruct_low_rank(kt, *known(m), rank=4)

    image = method(m.kt)
    found = replicate(m.kt, m.coil_maps, image, method, count=2, seed=3, noise_sd=m.noise_sd)
    measured = np.mean(np.abs(found.noise) ** 2) / 2
    stated = np.mean(image.noise_sd[m.mask] ** 2) * 4 / m.kt.protocol.n_times
    assert measured > 1.3 * stated
    # n voxels, t times, rank r: r (n + t - r) of n t numbers are free, not r n
    n, t, r = int(m.mask.sum()), m.kt.protocol.n_times, 4
    assert measured / (image.noise_sd[m.mask] ** 2).mean() == pytest.approx(r * (n + t - r) / (n * t), rel=0.25)


def test_what_a_basis_cannot_hold_is_left_beyond_its_noise(rng):
    m = make_measurement(rng, noise=0.02)
    missing = m.model.basis[:2]

    def method(kt):
        model = type(m.model)(missing)
        return reconstruct_subspace(kt, *known(m), model=model, prior="none", adapt=False)

    image = method(m.kt)
    found = replicate(m.kt, m.coil_maps, image, method, count=1, seed=3, noise_sd=m.noise_sd)
    lost = m.rho[m.mask] - to_numpy(m.rho[m.mask] @ missing.conj().T @ missing)
    excess = np.mean(np.abs(found.left) ** 2) - np.mean(np.abs(found.left_noise) ** 2)
    assert excess == pytest.approx(np.mean(np.abs(lost) ** 2), rel=0.05)


def test_no_replica_is_refused(rng):
    m = make_measurement(rng)
    with pytest.raises(ConfigError, match="0 noise replicas"):
        replicate(
            m.kt, m.coil_maps, reconstruct_fourier(m.kt, *known(m)), lambda kt: kt, count=0, seed=0
        )  # fmt: skip
