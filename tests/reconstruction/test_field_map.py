from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.reconstruction.field_map import (
    correct_eddy_currents,
    field_map_from_residual_water,
    field_map_from_water,
)
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier

MATRIX = (16, 13, 1)


def make_water(rng, *, noise_sd=0.0, eddy_rad=0.0, offset_hz=0.0, n_times=128):
    """Water with a skewed frequency distribution inside each voxel, a receive phase, and an eddy-current phase."""
    protocol = synthetic.make_protocol(MATRIX, n_times)
    times = protocol.times_s
    x, y, _ = synthetic.coordinates(MATRIX)
    mask = x**2 + y**2 < 0.8
    within = np.linspace(-1, 1, 21)
    frequencies = (10 * x + 8 * y**2 + offset_hz)[..., None] + 3 * x[..., None] * within + 2 * within**2
    fids = np.exp(2j * np.pi * frequencies[..., None] * times).mean(axis=-2) * np.exp(-times / 0.04)
    amplitude = mask * (1 + 0.3 * np.cos(4 * x))
    eddy = eddy_rad * np.exp(-times / 0.02)
    rho = amplitude[..., None] * fids * np.exp(1j * eddy)
    maps = synthetic.make_coil_maps(MATRIX)
    zero = np.zeros(MATRIX)
    kt = synthetic.measure(rho, maps, zero, protocol, noise_sd=noise_sd, rng=rng, role=Role.WATER_REFERENCE)
    return kt, maps, mask, frequencies.mean(axis=-1), amplitude, eddy


def test_b0_is_the_mean_frequency_of_a_skewed_distribution_to_a_tenth_of_a_hertz(rng):
    kt, _, mask, b0, _, _ = make_water(rng)
    found = field_map_from_water(kt)
    error = (found.b0_hz - b0)[mask]
    assert np.sqrt(np.mean(error**2)) < 0.15


def test_b0_stays_within_half_a_hertz_at_a_voxel_snr_of_a_hundred(rng):
    kt, _, mask, b0, _, _ = make_water(rng, noise_sd=0.01 * np.sqrt(np.prod(MATRIX)), eddy_rad=0.8)
    found = field_map_from_water(kt)
    assert np.sqrt(np.mean((found.b0_hz - b0)[mask] ** 2)) < 0.5


def test_a_common_offset_of_water_is_part_of_b0(rng):
    kt, _, mask, b0, _, _ = make_water(rng, offset_hz=3.0)
    assert np.mean((field_map_from_water(kt).b0_hz - b0)[mask]) == pytest.approx(0, abs=0.15)


def test_coil_maps_and_water_amplitude_are_those_at_time_zero(rng):
    kt, maps, mask, _, amplitude, _ = make_water(rng)
    found = field_map_from_water(kt)
    assert found.source == "water reference"
    np.testing.assert_array_equal(found.mask[mask], True)
    np.testing.assert_allclose(np.sum(np.abs(found.coil_maps) ** 2, axis=0), 1, atol=1e-4)
    # smoothing over 0.7 voxels moves strongly curved maps by a few per cent
    np.testing.assert_allclose(found.coil_maps[:, mask], maps[:, mask], atol=0.1)
    np.testing.assert_allclose(found.water[mask], amplitude[mask], rtol=0.03)


def test_the_eddy_current_phase_is_found_and_taken_out(rng):
    kt, _, mask, _, _, eddy = make_water(rng, eddy_rad=0.8)
    found = field_map_from_water(kt)
    np.testing.assert_allclose(found.eddy_phase, eddy, atol=0.1)
    image = reconstruct_fourier(correct_eddy_currents(kt, found), found.coil_maps, found.b0_hz, found.mask)
    phase = np.angle(np.asarray(image.fids())[mask][:, :12])
    assert np.abs(phase).max() < 0.15


def test_without_eddy_currents_none_are_invented(rng):
    kt, *_ = make_water(rng)
    assert np.abs(field_map_from_water(kt).eddy_phase).max() < 0.1
    assert not field_map_from_water(kt, eddy_currents=False).eddy_phase.any()


def test_the_field_continues_smoothly_where_there_is_no_water(rng):
    kt, _, mask, b0, _, _ = make_water(rng)
    found = field_map_from_water(kt)
    assert np.all(np.isfinite(found.b0_hz))
    assert found.b0_hz[~mask].min() >= b0[mask].min() - 1
    assert found.b0_hz[~mask].max() <= b0[mask].max() + 1


def test_the_field_map_does_not_depend_on_the_scale_of_the_data(rng):
    kt, *_ = make_water(rng)
    one = field_map_from_water(kt)
    for scale in (1e-6, 1e6):
        scaled = kt.with_samples((kt.samples * scale).astype(np.complex64))
        other = field_map_from_water(scaled, noise_sd=scale)
        np.testing.assert_allclose(other.b0_hz, one.b0_hz, atol=0.02)
        np.testing.assert_allclose(other.water, one.water * scale, rtol=1e-3, atol=1e-3 * one.water.max() * scale)
        np.testing.assert_array_equal(other.mask, one.mask)


def test_residual_water_serves_where_there_is_no_reference_and_says_so(rng):
    measurement = synthetic.make_measurement(rng, noise=0.0, n_times=256)
    times = measurement.kt.protocol.times_s
    rho = measurement.rho + (20 * measurement.mask)[..., None] * np.exp(-times / 0.05)
    kt = synthetic.measure(rho, measurement.coil_maps, measurement.b0_hz, measurement.kt.protocol)
    found = field_map_from_residual_water(kt)
    assert found.source == "residual water"
    assert found.water is None
    error = (found.b0_hz - measurement.b0_hz)[measurement.mask]
    assert np.sqrt(np.mean(error**2)) < 1.0
    overlap = np.abs(np.sum(np.conj(found.coil_maps) * measurement.coil_maps, axis=0))[measurement.mask]
    assert overlap.min() > 0.99


def test_a_reference_of_elliptical_k_space_serves(rng):
    kt, _, mask, b0, _, _ = make_water(rng, noise_sd=0.01 * np.sqrt(np.prod(MATRIX)))
    x, y, _ = synthetic.coordinates(MATRIX)
    acquired = (x**2 + y**2 < 1.1).ravel()
    assert 0.7 < acquired.mean() < 0.95
    found = field_map_from_water(
        replace(kt, count=acquired.astype(int), samples=kt.samples * acquired[None, :, None].astype(np.float32))
    )
    assert np.sqrt(np.mean((found.b0_hz - b0)[mask] ** 2)) < 1.0


def test_what_is_no_water_does_not_serve_as_residual_water(rng):
    measurement = synthetic.make_measurement(rng, noise=0.0, n_times=256)
    with pytest.raises(DataError, match="no residual water stands out"):
        field_map_from_residual_water(measurement.kt, noise_sd=1e-6)


def test_rings_leave_a_disc_without_aliases(rng):
    kt, *_ = make_water(rng)
    whole = np.ones(MATRIX)[..., None] * np.exp(-kt.protocol.times_s / 0.04)
    kt = synthetic.measure(whole, synthetic.make_coil_maps(MATRIX), np.zeros(MATRIX), kt.protocol)
    assert field_map_from_water(kt).mask.all()
    mask = field_map_from_water(replace(kt, protocol=replace(kt.protocol, encoding="rings"))).mask
    assert mask[MATRIX[0] // 2].all()
    assert not mask[0, 0]
    assert not mask[-1, -1]
    assert mask.mean() == pytest.approx(np.pi / 4, abs=0.06)


def test_a_reference_without_its_centre_or_empty_is_refused(rng):
    kt, *_ = make_water(rng)
    missing = kt.count.copy()
    missing[np.ravel_multi_index(tuple(n // 2 for n in MATRIX), MATRIX)] = 0
    with pytest.raises(DataError, match="lacks the centre of k-space"):
        field_map_from_water(replace(kt, count=missing))
    with pytest.raises(DataError, match="no water signal"):
        field_map_from_water(kt.with_samples(np.zeros_like(kt.samples)))
