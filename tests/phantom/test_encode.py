"""k-space of fine points is the Fourier sum it claims to be."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry
from mrsi_gadgets.phantom.anatomy import fine_positions
from mrsi_gadgets.phantom.encode import FineBox, encode, encode_maps, image_from_kspace

MATRIX, SUBVOXELS, N_TIMES = (3, 4, 5), (2, 3, 2), 7


@pytest.fixture
def support(rng):
    shape = tuple(n * f for n, f in zip(MATRIX, SUBVOXELS, strict=True))
    support = np.zeros(shape, bool)
    support[1:5, 2:11, 3:9] = rng.uniform(size=(4, 9, 6)) > 0.3
    return support


def test_kspace_equals_the_dense_fourier_sum_over_positions_in_millimetres(rng, support):
    box = FineBox.around(support, MATRIX, SUBVOXELS)
    assert box.shape == (4, 9, 6)
    rho = (rng.standard_normal((*support.shape, N_TIMES, 2)) @ [1, 1j]).astype(np.complex64) * support[..., None]
    maps = (rng.standard_normal((2, *support.shape, 2)) @ [1, 1j]).astype(np.complex64)
    geometry = Geometry(MATRIX, (33.0, 28.0, 60.0))
    positions = fine_positions(geometry, SUBVOXELS)
    indices = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in MATRIX], indexing="ij"), axis=-1)
    k = indices / np.array(geometry.fov_mm)
    kernel = np.exp(-2j * np.pi * np.einsum("abci,xyzi->abcxyz", k, positions))
    wanted = np.einsum("abcxyz,nxyz,xyzt->nabct", kernel, maps, rho)
    rows = box.cut(rho)
    got = encode(box, lambda t: rows[:, t], box.cut(np.moveaxis(maps, 0, -1)).T.copy(), N_TIMES)
    # complex64 sums over 216 points.
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_chunks_of_time_do_not_change_the_result(rng, support, monkeypatch):
    box = FineBox.around(support, MATRIX, SUBVOXELS)
    rows = (rng.standard_normal((216, N_TIMES, 2)) @ [1, 1j]).astype(np.complex64)
    ones = np.ones((1, 216), np.complex64)
    whole = encode(box, lambda t: rows[:, t], ones, N_TIMES)
    monkeypatch.setattr("mrsi_gadgets.phantom.encode._CHUNK_BYTES", 8 * 216 * 3)
    assert np.allclose(encode(box, lambda t: rows[:, t], ones, N_TIMES), whole, rtol=1e-5)


def test_a_uniform_map_keeps_its_value():
    box = FineBox.around(np.ones((6, 12, 10), bool), MATRIX, SUBVOXELS)
    image = encode_maps(box, np.full((1, 6 * 12 * 10), 2.5, np.float32))[0]
    assert np.allclose(image, 2.5, rtol=1e-5)


def test_a_point_in_the_middle_of_the_centre_voxel_has_flat_kspace():
    support = np.zeros((9, 12, 15), bool)
    support[4, 7, 7] = True  # centre of voxel (1, 2, 2) with three points per voxel
    box = FineBox.around(support, MATRIX, (3, 3, 3))
    k = encode(box, lambda t: np.ones((1, 1), np.complex64), np.ones((1, 1), np.complex64), 1)[0, ..., 0]
    assert np.allclose(k, 1.0, atol=1e-6)
    image = image_from_kspace(k)
    assert np.unravel_index(np.argmax(np.abs(image)), image.shape) == (1, 2, 2)
