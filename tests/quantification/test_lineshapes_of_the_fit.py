"""Lineshape expansion, first search, and the lineshape that the field map gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.quantification.intravoxel import intravoxel_lineshape
from mrsi_gadgets.quantification.lineshape_search import LineshapeRange, expand_lineshapes
from mrsi_gadgets.quantification.varpro import fit_varpro

TIMES = 1.3e-3 + np.arange(300) / 1500


@pytest.fixture(scope="module")
def expansion():
    return expand_lineshapes(TIMES, LineshapeRange())


def exact(shape):
    phase, shift, lorentz, gauss = shape.T[:, :, None]
    return np.exp(1j * phase + (2j * np.pi * shift - lorentz) * TIMES - gauss * TIMES**2)


def test_a_few_functions_hold_every_allowed_lineshape(rng, expansion, xp):
    shape = np.column_stack(
        [rng.uniform(-3, 3, 50), rng.uniform(-10, 10, 50), rng.uniform(-6, 40, 50), rng.uniform(0, 900, 50)]
    ).astype(np.float32)
    ones = np.ones((1, len(expansion.node_times_s)), np.complex64)
    coefficients = to_numpy(expansion.coefficients(xp.asarray(shape), xp.asarray(ones)))
    assert expansion.rank < 25
    difference = coefficients[:, 0] @ expansion.functions - exact(shape)
    assert np.abs(difference).max() < 3e-3


def test_derivatives_are_those_of_the_lineshape(rng, expansion):
    shape = np.column_stack(
        [rng.uniform(-3, 3, 9), rng.uniform(-8, 8, 9), rng.uniform(0, 30, 9), rng.uniform(50, 600, 9)]
    )
    ones = np.ones((1, len(expansion.node_times_s)), np.complex64)
    found = expansion.coefficients(shape.astype(np.float32), ones) @ expansion.functions
    for i, step in enumerate((1e-5, 1e-5, 1e-4, 1e-3)):
        change = np.eye(4)[i] * step
        numeric = (exact(shape + change) - exact(shape - change)) / (2 * step)
        assert np.abs(found[:, i + 1] - numeric).max() < 0.01 * np.abs(numeric).max()


def test_first_search_lands_next_to_shift_and_phase(rng, make_voxels, models):
    made = make_voxels(rng, (7, 5, 3), snr=30.0)
    model = models(made.image.protocol)
    data = made.image.coefficients.reshape(105, -1) @ model.coordinates.project.astype(np.complex64)
    data[:, : model.coordinates.n_skipped] = 0
    first = model.grid.search(data)
    assert np.abs(first.shape[:, 1] - made.shape[:, 1]).max() < 2.5
    assert np.abs(np.angle(np.exp(1j * (first.shape[:, 0] - made.shape[:, 0])))).max() < 0.7
    assert (first.amplitudes[:, 0] > 0).all()


def test_a_uniform_field_leaves_no_lineshape():
    mask = np.ones((5, 4, 3), bool)
    shape = intravoxel_lineshape(np.full((5, 4, 3), 17.0), mask, TIMES[::40])
    np.testing.assert_allclose(shape, 1.0, atol=1e-4)


def test_lineshape_of_a_field_gradient_is_the_sum_over_the_point_spread():
    n, fine, slope = 9, 3, 6.0
    centres = np.arange(n) - n // 2
    mask = np.zeros((n, 1, 1), bool)
    mask[2:8] = True
    shape = intravoxel_lineshape(slope * centres[:, None, None], mask, TIMES[::60], fine=fine)
    place = (np.arange(n * fine) + 0.5) / fine - 0.5 - n // 2
    inside = np.interp(place, centres, mask[:, 0, 0].astype(float))
    field = slope * np.clip(place, -(n // 2), n // 2)
    k = np.arange(n) - n // 2
    voxel = 4
    spread = np.exp(2j * np.pi * np.outer(centres[voxel] - place, k) / n).sum(axis=1)
    for i, t in enumerate(TIMES[::60]):
        signal = np.sum(spread * inside * np.exp(2j * np.pi * field * t)) / np.sum(spread * inside)
        expected = signal * np.exp(-2j * np.pi * slope * centres[voxel] * t)
        assert abs(shape[voxel - 2, i] - expected) < 2e-2


def test_a_field_that_changes_within_voxels_is_allowed_for(rng, make_voxels, models):
    made = make_voxels(rng, (6, 7, 1))
    protocol = made.image.protocol
    x, y = np.meshgrid(np.arange(6.0), np.arange(7.0), indexing="ij")
    field = (5.0 * x + 1.5 * (y - 3) ** 2)[..., None].astype(np.float32)
    shape = intravoxel_lineshape(field, made.image.mask, protocol.times_s)
    fids = made.image.coefficients * shape.reshape(6, 7, 1, -1)
    image = replace(made.image, coefficients=fids, b0_hz=field)
    errors = {}
    for known in (True, False):
        maps = fit_varpro(image, models(protocol), intravoxel=known)
        errors[known] = np.std(maps.maps["tNAA"].value.ravel() / made.total("tNAA"))
    assert errors[True] < 0.03
    assert errors[True] < 0.5 * errors[False]
