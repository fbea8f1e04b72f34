"""Lines that some voxels have in common are found together, and none are found in noise."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.models.gate import Gate
from mrsi_gadgets.models.strange_lines import strange_lines
from small_model import PROTOCOL, small_model


@pytest.fixture(scope="module")
def gate() -> Gate:
    return small_model().gate


def noisy(rng, n):
    return (rng.standard_normal((n, 97)) + 1j * rng.standard_normal((n, 97))).astype(np.complex64)


def line(ppm, rate):
    shape = np.exp((2j * np.pi * PROTOCOL.hz(ppm) - rate) * PROTOCOL.times_s)
    return shape / np.linalg.norm(shape)


def test_a_line_too_weak_in_each_voxel_is_found_in_all(gate, rng, xp):
    """SNR 2 in each of 25 voxels, where the strongest of all noise lines is above 3."""
    wanted = line(2.87, 20.0)
    residual = noisy(rng, 25) + (2.0 * wanted).astype(np.complex64)
    rows = strange_lines(gate, xp.asarray(residual))
    assert 1 <= len(rows) <= 2
    assert np.linalg.norm(rows.conj() @ wanted) > 0.9
    np.testing.assert_allclose(rows @ rows.conj().T, np.eye(len(rows)), atol=1e-5)


def test_noise_has_no_lines(gate):
    found = [len(strange_lines(gate, noisy(np.random.default_rng(seed), 40))) for seed in range(30)]
    assert sum(found) == 0


def test_two_lines_get_two_rows(gate, rng):
    fids = noisy(rng, 60)
    fids[:30] += (12 * line(2.87, 15.0)).astype(np.complex64)
    fids[30:] += (12 * line(3.6, 15.0)).astype(np.complex64)
    rows = strange_lines(gate, fids)
    for ppm in (2.87, 3.6):
        assert np.linalg.norm(rows.conj() @ line(ppm, 15.0)) > 0.9


def test_no_voxels_no_rows(gate):
    assert strange_lines(gate, np.zeros((0, 97), np.complex64)).shape == (0, 97)
