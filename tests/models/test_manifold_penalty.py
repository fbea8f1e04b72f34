"""The distance from a learned manifold: value, gradient by one vector-Jacobian product, every namespace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.manifold_penalty import gradient_by_jacobian, penalty, tube_variance
from mrsi_gadgets.models.networks import MOST_FIDS
from mrsi_gadgets.models.training import TrainingSettings, train
from mrsi_gadgets.physics.ensemble import sample

SETTINGS = TrainingSettings(
    rank=14,
    latent=10,
    hidden=24,
    samples=1500,
    autoencoder_steps=250,
    projector_steps=20,
    batch=256,
    latent_sizes=(10,),
)


@pytest.fixture(scope="module")
def protocol():
    from mrsi_gadgets.phantom.presets import PRESETS

    return replace(PRESETS["csi48"].protocol, n_times=96)


@pytest.fixture(scope="module")
def trained(protocol):
    return train(protocol, settings=SETTINGS, seed=1)


@pytest.fixture(scope="module")
def noisy(trained, protocol):
    """(7, 14) coefficients beside the manifold, complex128."""
    rng = np.random.default_rng(4)
    clean = trained.manifold.coefficients(sample(protocol, 7, 5).metabolites.astype(np.complex128))
    noise = rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape)
    return clean + 0.05 * np.abs(clean).mean() * noise


WEIGHTS = np.linspace(0.5, 2.0, 7)


def test_the_value_is_the_weighted_squared_distance_from_the_autoencoder(trained, noisy):
    coefficients = noisy.astype(np.complex64)
    expected = np.sum(WEIGHTS[:, None] * np.abs(trained.manifold.autoencode(coefficients) - coefficients) ** 2)
    assert penalty(trained.manifold, coefficients, WEIGHTS)[0] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences(trained, noisy):
    rng = np.random.default_rng(6)
    gradient = penalty(trained.manifold, noisy, WEIGHTS)[1]
    assert gradient.dtype == np.complex128
    size = np.linalg.norm(noisy)
    for _ in range(3):
        way = rng.standard_normal(noisy.shape) + 1j * rng.standard_normal(noisy.shape)
        step = 1e-6 * size / np.linalg.norm(way) * way
        up, down = (penalty(trained.manifold, noisy + s * step, WEIGHTS)[0] for s in (1, -1))
        assert (up - down) / 2 == pytest.approx(float(np.vdot(gradient, step).real), rel=1e-5)


def test_the_explicit_jacobian_gives_the_same_gradient(trained, noisy):
    by_jacobian = gradient_by_jacobian(trained.manifold, noisy, WEIGHTS)
    np.testing.assert_allclose(by_jacobian, penalty(trained.manifold, noisy, WEIGHTS)[1], rtol=1e-9)


def test_distance_follows_scale_and_phase(trained, noisy):
    factor = 3e-3 * np.exp(1.1j)
    value, gradient = penalty(trained.manifold, noisy, WEIGHTS)
    turned, along = penalty(trained.manifold, noisy * factor, WEIGHTS)
    assert turned == pytest.approx(abs(factor) ** 2 * value, rel=1e-9)
    np.testing.assert_allclose(along, factor * gradient, rtol=1e-7)


def test_every_namespace_gives_the_same(trained, noisy, xp):
    coefficients = noisy.astype(np.complex64)
    value, gradient = penalty(trained.manifold, xp.asarray(coefficients), xp.asarray(WEIGHTS.astype(np.float32)))
    expected = penalty(trained.manifold, coefficients, WEIGHTS)
    assert type(gradient) is type(xp.asarray(coefficients))
    assert value == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(to_numpy(gradient), expected[1], atol=1e-5 * np.abs(expected[1]).max())


def test_more_fids_than_pass_at_once_are_done_in_parts(trained, noisy):
    count = MOST_FIDS + 5
    many = np.resize(noisy.astype(np.complex64), (count, 14))
    weights = np.ones(count, np.float32)
    value, gradient = penalty(trained.manifold, many, weights)
    first = penalty(trained.manifold, many[:7], weights[:7])
    np.testing.assert_allclose(gradient[7 * 400 : 7 * 401], first[1], atol=1e-4 * np.abs(first[1]).max())
    np.testing.assert_allclose(gradient[-2:], gradient[count % 7 - 2 + 7 : count % 7 + 7], rtol=1e-3, atol=1e-3)
    assert value == pytest.approx(first[0] / 7 * count, rel=0.2)


def test_nothing_has_no_distance_and_no_gradient(trained):
    value, gradient = penalty(trained.manifold, np.zeros((0, 14), np.complex64), np.zeros(0))
    assert value == 0
    assert gradient.shape == (0, 14)
    value, gradient = penalty(trained.manifold, np.zeros((3, 14), np.complex64), np.ones(3))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_the_tube_is_as_wide_as_fresh_fids_scatter_about_the_manifold(trained, protocol):
    a = trained.manifold.coefficients(sample(protocol, 400, 9).metabolites)
    residual = (trained.manifold.autoencode(a) - a) / trained.manifold.scale(a)[:, None]
    scatter = float(np.mean(np.abs(residual) ** 2)) / 2
    assert 0.7 * scatter < tube_variance(trained.manifold) < 4 * scatter


def test_coefficients_of_another_rank_are_refused(trained):
    with pytest.raises(DataError, match="14 rows"):
        penalty(trained.manifold, np.zeros((3, 5), np.complex64), np.ones(3))
