"""Priors of coefficient images: each step is the minimum it claims to be, and its weight follows the noise."""

from __future__ import annotations

import itertools

import array_api_strict
import numpy as np
import pytest
import torch

from mrsi_gadgets.arrays import Array, to_numpy
from mrsi_gadgets.errors import NumericalError
from mrsi_gadgets.reconstruction.edge_prior import edge_distances, edge_prior
from mrsi_gadgets.reconstruction.prior_weights import (
    choose_prox_weights,
    left_noise,
    pooled_weights,
    prox_risk,
    regularise,
)
from mrsi_gadgets.reconstruction.spatial_priors import Edges, SpatialPrior, TotalVariation
from mrsi_gadgets.reconstruction.wavelet_prior import wavelet_prior

GRID = (7, 6, 5)
SLAB = (26, 31, 1)
REFERENCE = np.ones(1, dtype=np.float32)


def complex_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of real SD 1."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def ragged_mask(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    mask = rng.random(shape) < 0.7
    mask[1:3, 1:3] = True
    return mask


def ellipse(shape: tuple[int, int, int]) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    return np.broadcast_to((x**2 + y**2 < 0.95)[..., None], shape)


def every_prior(mask: np.ndarray, reference: Array = REFERENCE, rtol: float = 1e-3) -> dict[str, SpatialPrior]:
    edges = edge_prior(mask, reference)
    return {
        "edges": Edges(edges),
        "tv": TotalVariation(edges, rtol=rtol),
        "wavelet": wavelet_prior(mask, reference),
        "wavelet, one shift": wavelet_prior(mask, reference, shift=(1, 2, 0)),
    }


def brain_like(mask: np.ndarray) -> np.ndarray:
    """A step, a blob, nothing, and a slow wave, (x, y, z, 4): complex, zero outside of the mask."""
    x, y = np.meshgrid(np.linspace(-1, 1, mask.shape[0]), np.linspace(-1, 1, mask.shape[1]), indexing="ij")
    parts = [6 + 4 * (x > 0.2), 4 * np.exp(-8 * ((x - 0.2) ** 2 + y**2)), 0 * x, 10 * np.cos(3 * x) * np.cos(2 * y)]
    image = np.stack(parts, axis=-1)[:, :, None, :] * np.exp(0.4j)
    return (image * mask[..., None]).astype(np.complex64)


@pytest.mark.parametrize("shape", [(3, 4, 5), (5, 4, 1), (1, 1, 6)])
def test_the_divergence_is_the_adjoint_of_the_weighed_differences(shape, rng):
    mask = np.ones(shape, dtype=bool)
    edges = edge_prior(mask, REFERENCE, (edge_distances(complex_noise(rng, (*shape, 2))),))
    prior = TotalVariation(edges)
    v = rng.standard_normal((*shape, 2, 3)).astype(np.float32)
    slope = prior.gradient(v)
    p = rng.standard_normal(slope.shape).astype(np.float32)
    assert np.vdot(slope, p) == pytest.approx(np.vdot(v, prior.adjoint(p)), rel=1e-5, abs=1e-4)
    assert len(slope) == sum(n > 1 for n in shape)
    # the same weights as the edge prior: D^T D is its Laplacian
    np.testing.assert_allclose(prior.adjoint(slope)[..., 0, :], edges.laplacian(v[..., 0, :]), atol=1e-5)


def test_two_voxels_move_towards_each_other_by_the_weight_and_meet():
    """prox of w |v1 - v2|: each moves by w along their difference, or both to the mean when 2 w reaches it."""
    prior = TotalVariation(edge_prior(np.ones((2, 1, 1), dtype=bool), REFERENCE), rtol=1e-6)
    u = np.array([1 + 2j, 4 - 2j], dtype=np.complex64)
    weights = np.array([0.0, 1.0, 2.0, 2.5, 40.0])
    found = prior.prox(np.repeat(u[:, None, None, None], 5, axis=-1), weights)[:, 0, 0, :]
    way = (u[1] - u[0]) / 5
    for column, w in zip(found.T, weights, strict=True):
        expected = u + min(w, 2.5) * np.array([way, -way])
        np.testing.assert_allclose(column, expected, atol=2e-3)


def test_total_variation_keeps_the_edge_of_a_piecewise_constant_image():
    """The minimum for two halves of a strip is known: each half moves by w over its number of columns."""
    truth = np.zeros((10, 7, 1, 1), dtype=np.complex64)
    truth[4:] = 3 - 4j
    prior = TotalVariation(edge_prior(np.ones((10, 7, 1), dtype=bool), REFERENCE), rtol=1e-7)
    found = prior.prox(truth, np.array([0.8]))
    direction = (3 - 4j) / 5
    np.testing.assert_allclose(found[:4], np.full((4, 7, 1, 1), 0.8 / 4 * direction), atol=2e-3)
    np.testing.assert_allclose(found[4:], np.full((6, 7, 1, 1), 3 - 4j - 0.8 / 6 * direction), atol=2e-3)


@pytest.mark.parametrize("name", ["edges", "tv", "wavelet, one shift"])
@pytest.mark.parametrize("shape", [GRID, (9, 7, 1)])
def test_the_step_is_the_minimum(name, shape, rng):
    """Nothing near the step, along the whole way back to the data or along random ways, has a smaller value."""
    mask = ragged_mask(shape, rng)
    prior = every_prior(mask, rtol=1e-5)[name]
    weights = np.array([0.0, 0.3, 1.0, 4.0])
    u = complex_noise(rng, (*shape, 4)) * mask[..., None]

    def objective(v: np.ndarray) -> np.ndarray:
        return 0.5 * np.sum(np.abs(v - u) ** 2, axis=(0, 1, 2), dtype=float) + weights * prior.value(v)

    v = prior.prox(u, weights)
    least = objective(v)
    ways = [u - v, -v, *(complex_noise(rng, u.shape) * mask[..., None] for _ in range(6))]
    for way, length in itertools.product(ways, (1e-2, 0.1, 0.5)):
        assert np.all(objective(v + length * way) >= least - 1e-4 * np.abs(least) - 1e-5)
    assert objective(u)[-1] > 1.5 * least[-1]


def test_the_duality_gap_bounds_the_distance_to_the_minimum(rng):
    """1/2 ||v - v*||^2 is at most the gap, which is at most rtol times the value (v* from a far smaller gap)."""
    mask = ragged_mask(SLAB, rng)
    edges = edge_prior(mask, REFERENCE)
    u = complex_noise(rng, (*SLAB, 5)) * mask[..., None]
    weights = np.array([0.1, 0.5, 1.0, 2.0, 6.0])
    best = TotalVariation(edges, rtol=1e-6, max_iterations=20000).prox(u, weights)
    for rtol in (0.05, 1e-3):
        prior = TotalVariation(edges, rtol=rtol)
        v = prior.prox(u, weights)
        reached = 0.5 * np.sum(np.abs(v - u) ** 2, axis=(0, 1, 2)) + weights * prior.value(v)
        distance = 0.5 * np.sum(np.abs(v - best) ** 2, axis=(0, 1, 2))
        assert np.all(distance <= (rtol + 1e-5) * reached)
    with pytest.raises(NumericalError, match="duality gap"):
        TotalVariation(edges, rtol=1e-6, max_iterations=10).prox(u, weights)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_the_step_scales_with_data_and_weights_and_turns_with_the_phase(scale, rng):
    mask = ragged_mask(GRID, rng)
    u = complex_noise(rng, (*GRID, 2)) * mask[..., None]
    weights = np.array([0.5, 2.0])
    for name, prior in every_prior(mask).items():
        factor = 1 if name == "edges" else scale
        turned = prior.prox((u * scale * np.exp(0.7j)).astype(np.complex64), weights * factor) / scale
        np.testing.assert_allclose(turned, prior.prox(u, weights) * np.exp(0.7j), atol=3e-3, err_msg=name)


def test_voxels_outside_of_the_mask_stay_and_reach_nothing(rng):
    mask = ragged_mask(GRID, rng)
    u = complex_noise(rng, (*GRID, 2))
    strange = np.where(mask[..., None], u, 1e3 * u)
    for name, prior in every_prior(mask).items():
        one, other = (prior.prox(x, np.array([1.0, 3.0])) for x in (u, strange))
        np.testing.assert_allclose(other[mask], one[mask], atol=1e-2, err_msg=name)
        np.testing.assert_allclose(other[~mask], strange[~mask], rtol=2e-3, err_msg=name)


def test_a_constant_stays_as_it_is_and_a_heavy_weight_leaves_means(rng):
    mask = ellipse(SLAB)
    constant = np.where(mask[..., None], np.complex64(2 - 1j), 0).astype(np.complex64)
    for name, prior in every_prior(mask).items():
        np.testing.assert_allclose(prior.prox(constant, np.array([5.0])), constant, atol=5e-3, err_msg=name)
        assert prior.value(constant)[0] == pytest.approx(0, abs=1e-2), name
    u = complex_noise(rng, (*SLAB, 1)) * mask[..., None]
    flat = TotalVariation(edge_prior(mask, REFERENCE)).prox(u, np.array([200.0]))
    np.testing.assert_allclose(flat[mask], np.full((mask.sum(), 1), u[mask].mean()), atol=2e-2)


@pytest.mark.parametrize("shape", [GRID, (3, 4, 1), (13, 16, 8), (1, 5, 2)])
@pytest.mark.parametrize("shift", [None, (0, 0, 0), (3, 1, 2)])
def test_wavelets_reconstruct_perfectly_and_keep_the_energy(shape, shift, rng):
    mask = rng.random(shape) < 0.6
    prior = wavelet_prior(mask, REFERENCE, shift=shift)
    u = complex_noise(rng, (*shape, 3)) * mask[..., None]
    details, mean = prior.analyse(u)
    np.testing.assert_allclose(prior.synthesise(details, mean), u, atol=2e-6)
    # in the undecimated transform each block comes once for every shift
    energy, share = 0.0, 1.0
    for level, detail in zip(prior.levels, details, strict=True):
        share /= 2.0 ** len(level) if shift is None else 1.0
        energy += share * np.sum(np.abs(detail) ** 2)
    energy += share * np.sum(np.abs(mean) ** 2)
    assert energy == pytest.approx(np.sum(np.abs(u) ** 2), rel=1e-5)


def test_all_shifts_at_once_are_the_mean_of_each_shift(rng):
    mask = ragged_mask((5, 7, 3), rng)
    u = complex_noise(rng, (5, 7, 3, 2)) * mask[..., None]
    weights = np.array([0.4, 1.5])
    shifts = list(itertools.product(range(4), range(4), range(4)))
    each = [wavelet_prior(mask, REFERENCE, levels=2, shift=shift) for shift in shifts]
    together = wavelet_prior(mask, REFERENCE, levels=2)
    np.testing.assert_allclose(
        together.prox(u, weights), np.mean([prior.prox(u, weights) for prior in each], axis=0), atol=3e-6
    )
    np.testing.assert_allclose(together.value(u), np.mean([prior.value(u) for prior in each], axis=0), rtol=1e-5)


def test_a_detail_of_two_voxels_is_shortened_by_the_weight():
    """Haar of two voxels: (a - b) / sqrt 2 becomes shorter by w, the mean stays."""
    prior = wavelet_prior(np.ones((2, 1, 1), dtype=bool), REFERENCE, levels=1, shift=(0, 0, 0))
    found = prior.prox(np.array([5j, 1j], dtype=np.complex64).reshape(2, 1, 1, 1), np.array([np.sqrt(2.0)]))
    np.testing.assert_allclose(found.ravel(), [4j, 2j], atol=1e-6)


@pytest.mark.parametrize("library", ["torch", "strict"])
def test_every_array_library_gets_the_same(library, rng):
    mask = ragged_mask((6, 5, 4), rng)
    u = (complex_noise(rng, (6, 5, 4, 3)) + 2) * mask[..., None]
    make = torch.from_numpy if library == "torch" else array_api_strict.asarray
    weights = np.array([0.2, 0.0, 1.5])
    theirs = every_prior(mask, make(REFERENCE))
    for name, prior in every_prior(mask).items():
        there = theirs[name]
        ours = prior.prox(u, weights)
        found = there.prox(make(u), weights)
        assert type(found) is type(make(u)), name
        np.testing.assert_allclose(to_numpy(found), ours, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(there.value(make(u)), prior.value(u), rtol=1e-5, err_msg=name)
        for function in (choose_prox_weights, pooled_weights):
            chosen = function(make(u), 2.0, there, mask, np.random.default_rng(3))
            np.testing.assert_array_equal(chosen, function(u, 2.0, prior, mask, np.random.default_rng(3)), err_msg=name)
        one, other = (
            left_noise(x, p, weights, 2.0, mask, np.random.default_rng(4)) for x, p in ((u, prior), (make(u), there))
        )
        np.testing.assert_allclose(one, other, atol=2e-2, err_msg=name)


@pytest.mark.parametrize("name", ["edges", "tv", "wavelet"])
def test_the_risk_chooses_a_weight_near_the_best(name):
    """Peak SNR 4 to 10 in a plane of 590 voxels: within 10 % of the best candidate's true error, over five noises."""
    mask = ellipse(SLAB)
    truth = brain_like(mask)
    prior = every_prior(mask)[name]
    candidates = prior.candidates(1.0)
    chosen, best = np.zeros(4), np.zeros(4)
    for seed in range(5):
        u = truth + complex_noise(np.random.default_rng(seed), truth.shape) * mask[..., None]

        def error(weights: np.ndarray, u: np.ndarray = u) -> np.ndarray:
            return np.mean(np.abs(prior.prox(u, weights) - truth)[mask] ** 2, axis=0)

        chosen += error(choose_prox_weights(u, 2.0, prior, mask, np.random.default_rng(seed)))
        best += np.min([error(np.full(4, w)) for w in candidates], axis=0)
    assert np.all(chosen <= 1.1 * best + 5 * 2.0 * 0.005), chosen / best
    assert np.all(chosen < 0.25 * 5 * 2.0), "less than a quarter of the noise power is left"


@pytest.mark.parametrize("name", ["edges", "tv", "wavelet"])
def test_the_estimated_error_is_right_on_average(name):
    mask = ellipse(SLAB)
    truth = brain_like(mask)
    prior = every_prior(mask)[name]
    weights = np.full(4, 0.7)
    estimated, true = [], []
    for seed in range(12):
        u = truth + complex_noise(np.random.default_rng(seed), truth.shape) * mask[..., None]
        estimated.append(prox_risk(u, 2.0, prior, weights, mask, np.random.default_rng(seed)))
        true.append(np.mean(np.abs(prior.prox(u, weights) - truth)[mask] ** 2, axis=0))
    # the scatter of one estimate is 2 / sqrt(590) of noise power 2 and its probe's; of twelve a third of it
    np.testing.assert_allclose(np.mean(estimated, axis=0), np.mean(true, axis=0), atol=0.08)


@pytest.mark.parametrize("name", ["edges", "tv", "wavelet"])
def test_the_noise_that_is_left_is_what_many_scans_scatter(name):
    mask = ellipse((14, 17, 1))
    truth = brain_like(mask)
    prior = every_prior(mask)[name]
    weights = np.full(4, 0.6)
    scans = [
        truth + complex_noise(np.random.default_rng(seed), truth.shape) * mask[..., None] for seed in range(60)
    ]  # fmt: skip
    found = np.std([prior.prox(u, weights) for u in scans], axis=0)[mask] / np.sqrt(2)
    stated = left_noise(scans[0], prior, weights, 2.0, mask, np.random.default_rng(1))
    assert stated.shape == truth.shape
    assert np.all(stated[~mask] == 1)
    rms = [np.sqrt(np.mean(x**2, axis=0)) for x in (stated[mask], found)]
    np.testing.assert_allclose(rms[0], rms[1], rtol=0.2)
    assert np.all(rms[1] < 0.8)


def test_regularising_lowers_errors_to_what_it_states():
    """Three components of signal and twelve of noise: the error power of the signals is what is stated, within 30 %."""
    mask = ellipse(SLAB)
    truth = np.concatenate([brain_like(mask)[..., [0, 1, 3]], np.zeros((*SLAB, 12))], axis=-1).astype(np.complex64)
    for name, prior in every_prior(mask).items():
        found, stated = np.zeros(15), np.zeros(15)
        for seed in range(3):
            u = truth + complex_noise(np.random.default_rng(seed), truth.shape) * mask[..., None]
            done = regularise(u, 3, 2.0, prior, mask, np.random.default_rng(seed))
            assert len(set(done.weights[3:])) == 1, name
            found += np.mean(np.abs(done.value - truth)[mask] ** 2, axis=0) / 2 / 3
            stated += np.mean(done.errors[mask] ** 2, axis=0) / 3
        assert np.all(found < 0.5), name
        assert found[:3].sum() == pytest.approx(stated[:3].sum(), rel=0.3), name
        # of pure noise a twelfth of its power at most
        assert found[3:].mean() < stated[3:].mean() < 1 / 12, name
