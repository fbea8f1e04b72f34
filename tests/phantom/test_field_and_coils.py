"""B0 and the receiver obey the physics they are named after."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import Geometry
from mrsi_gadgets.phantom import receive
from mrsi_gadgets.phantom.anatomy import fine_positions
from mrsi_gadgets.phantom.field import b0_field, dipole_field


def test_dipole_field_is_minus_two_to_one_between_axis_and_equator():
    far = 400.0  # the softening of 15 mm changes the ratio by (15 / 400)^2
    axis, equator = dipole_field(np.array([[0.0, 0.0, far], [far, 0.0, 0.0]]))
    assert abs(axis / equator + 2.0) < 0.02


def test_b0_has_the_asked_for_spread_and_no_mean_over_the_brain(rng):
    positions = fine_positions(Geometry((11, 13, 5), (180.0, 200.0, 60.0)), (2, 2, 2))
    brain = (np.linalg.norm(positions, axis=-1) < 70).astype(float)
    smooth = b0_field(positions, brain, smooth_sd_hz=7.0, sinus_hz=0.0, rng=rng)
    inside = brain > 0
    assert abs(smooth[inside].mean()) < 1e-9
    assert abs(smooth[inside].std() - 7.0) < 1e-6
    sharp = b0_field(positions, brain, smooth_sd_hz=0.0, sinus_hz=45.0, rng=rng)
    strongest = positions[inside][np.argmax(np.abs(sharp[inside]))]
    assert strongest[1] < -20.0  # towards the forehead
    assert abs(np.ptp(sharp[inside]) - 45.0) < 20.0


def test_loop_field_on_its_axis_falls_as_the_textbook_says():
    radius = receive._LOOP_RADIUS_MM
    centre, normal = np.array([200.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])
    distances = np.array([50.0, 120.0, 260.0])
    points = np.stack([200.0 - distances, np.zeros(3), np.zeros(3)], axis=1).astype(np.float32)
    field = np.abs(receive._loop_field(points, centre, normal))
    expected = (radius**2 + distances**2) ** -1.5
    assert np.allclose(field / field[0], expected / expected[0], rtol=1e-3)


def test_cubic_polynomial_describes_the_shading_of_eight_coils_in_the_brain():
    geometry = Geometry((24, 24, 1), (220.0, 220.0, 10.0))
    positions = fine_positions(geometry, (1, 1, 1))
    maps = receive.coil_sensitivities(positions, 8)
    shading = np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    x, y = positions[..., 0] / 100, positions[..., 1] / 100
    inside = (x / 0.7) ** 2 + (y / 0.88) ** 2 < 1
    terms = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1)[inside]
    fitted = terms @ np.linalg.lstsq(terms, shading[inside], rcond=None)[0]
    assert np.std(fitted / shading[inside]) < 0.01
    assert shading[inside].max() / shading[inside].min() > 1.3


def test_noise_has_the_covariance_it_was_asked_for(rng):
    covariance = receive.noise_correlation(5, rng)
    assert np.allclose(covariance, covariance.conj().T)
    assert abs(np.trace(covariance).real / 5 - 1.0) < 1e-12
    noise = receive.correlated_noise(covariance, (40, 1000), rng).reshape(5, -1)
    found = noise @ noise.conj().T / noise.shape[1] / 2.0
    # 40,000 samples: 0.5 % standard error of each entry, four of them.
    assert np.max(np.abs(found - covariance)) < 0.02
    assert abs(noise.real.std() / noise.imag.std() - 1.0) < 0.02


def test_neighbouring_coils_share_noise_and_distant_ones_do_not(rng):
    covariance = receive.noise_correlation(8, rng)
    scale = np.sqrt(np.diag(covariance).real)
    correlation = np.abs(covariance / np.outer(scale, scale))
    assert 0.1 < correlation[0, 1] < 0.5
    assert correlation[0, 4] < 0.1
