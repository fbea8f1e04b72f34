"""The fully sampled centre of k-space, found among gaps, and what it is worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, KtData, Role
from mrsi_gadgets.reconstruction.calibrated_centre import calibrated_centre, centre_box, centre_size, missing_share
from mrsi_gadgets.reconstruction.fourier import image_noise_sd, matched_image


@pytest.fixture
def data(make_protocol):
    def make(matrix=(16, 12, 1), came=None, *, samples=None, n_times=4):
        geometry = Geometry(matrix, tuple(20.0 * n for n in matrix))
        protocol = make_protocol(n_times=n_times, geometry=geometry)
        axes = [(np.arange(n) - n // 2) / (0.02 * n) for n in matrix]
        k = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        points = len(k)
        count = np.ones(points, int) if came is None else came.reshape(-1).astype(int)
        if samples is None:
            samples = np.ones((2, points, n_times), np.complex64)
        return KtData(
            samples * (count > 0)[None, :, None], k, np.broadcast_to(protocol.times_s, (points, n_times)), count,
            Role.CALIBRATION, protocol, grid=matrix,
        )  # fmt: skip

    return make


def grid(matrix):
    return np.meshgrid(*(np.arange(n) - n // 2 for n in matrix), indexing="ij")


def test_the_box_without_gaps_is_found(data):
    x, y, _ = grid((16, 12, 1))
    came = ((x % 2 == 0) & (y % 2 == 0)) | ((np.abs(x + 0.5) < 4) & (np.abs(y + 0.5) < 3))
    kt = data(came=came)
    assert centre_box(kt) == (slice(4, 12), slice(3, 9), slice(0, 1))
    assert centre_size(kt) == "8 x 6"
    assert missing_share(kt) == pytest.approx(1 - np.mean(came[(x / 8) ** 2 + (y / 6) ** 2 <= 1]))


def test_a_gap_in_the_middle_or_a_narrow_centre_is_none(data):
    x, y, _ = grid((16, 12, 1))
    assert centre_box(data(came=(x != 0) | (y != 0))) is None
    assert centre_box(data(came=(x % 2 == 0) & (y % 2 == 0))) is None
    assert centre_box(data(came=np.abs(x + 0.5) < 1)) is None
    assert calibrated_centre(replace(data(), grid=None)) is None
    assert centre_size(data(came=(x != 0) | (y != 0))) == "none"


def test_an_axis_of_few_points_needs_no_more_than_it_has(data):
    assert centre_box(data((16, 12, 2))) == (slice(0, 16), slice(0, 12), slice(0, 2))


def test_what_lies_outside_of_the_ellipse_is_not_missing(data):
    x, y, _ = grid((16, 12, 1))
    assert missing_share(data(came=(x / 8) ** 2 + (y / 6) ** 2 <= 1)) == 0.0
    assert missing_share(data((1, 1, 1))) == 0.0


def test_samples_missing_at_some_times_are_missing_in_part(data):
    kt = data()
    count = np.ones((192, 4), int)
    count[:, ::2] = 0
    assert missing_share(replace(kt, count=count)) == pytest.approx(0.5)
    assert centre_box(replace(kt, count=count)) is None


def test_the_window_keeps_the_size_of_an_even_object_and_tells_its_noise(xp, data):
    x, y, _ = grid((16, 12, 1))
    inside = (np.abs(x + 0.5) < 4) & (np.abs(y + 0.5) < 3)
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((2, 192, 400)) + 1j * rng.standard_normal((2, 192, 400))
    kt = data(came=inside, samples=noise.astype(np.complex64), n_times=400)
    centre = calibrated_centre(replace(kt, samples=xp.asarray(kt.samples)))
    maps = np.full((2, 16, 12, 1), np.sqrt(0.5), np.complex64)
    image = to_numpy(matched_image(centre, maps))
    told = image_noise_sd(centre, maps, 1.0)
    assert np.std(image.real) == pytest.approx(told[0, 0, 0], rel=0.03)
    # k = 0 alone is an even object
    even = np.zeros((2, 192, 4), np.complex64)
    even[:, 8 * 12 + 6] = 192.0
    seen = to_numpy(matched_image(calibrated_centre(data(came=inside, samples=even)), maps))
    np.testing.assert_allclose(seen, np.sqrt(2), rtol=1e-5)
