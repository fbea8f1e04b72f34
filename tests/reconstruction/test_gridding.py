from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import j1

from mrsi_gadgets.arrays import centred_ifftn, to_numpy
from mrsi_gadgets.data import Role
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift
from mrsi_gadgets.reconstruction.gridding import align_times, coil_images, on_grid, with_density
from ring_phantom import F0_HZ, REFERENCE_PPM, RingScan, Source

NAA = Source((9, 3), 2.01)


class Silent:
    def warn(self, sentence: str) -> None:
        """Nothing is expected of warnings here."""


def ring_data(scan: RingScan):
    header = parse_header(scan.header())
    (kt,) = sort_readouts(scan.readouts(), read_protocol(header), Silent(), header=header)
    return kt


def peak_ppm(fid: np.ndarray, dwell_s: float) -> float:
    n = 32 * len(fid)
    frequency = np.fft.fftfreq(n, dwell_s)[np.abs(np.fft.fft(fid, n)).argmax()]
    return REFERENCE_PPM + frequency / (F0_HZ * 1e-6)


def signs(scan):
    return f"k {scan.get('kspace_sign', 1)}, f {scan.get('freq_sign', 1)}, T {scan.get('interleaves', 'mixed')}"


@pytest.mark.parametrize(
    "changes",
    [{}, {"kspace_sign": -1}, {"freq_sign": -1}, {"freq_sign": -1, "kspace_sign": -1}, {"interleaves": (1,) * 6}],
    ids=signs,
)
def test_a_point_source_comes_back_at_its_place_and_chemical_shift(changes):
    scan = RingScan([NAA], **changes)
    gridded = on_grid(ring_data(scan))
    images = centred_ifftn(gridded.dense, (1, 2, 3)) / np.sqrt(120)
    energy = np.sum(np.abs(images[0, :, :, 0]) ** 2, axis=-1)
    assert np.unravel_index(energy.argmax(), energy.shape) == NAA.voxel
    fid = images[0, 9, 3, 0]
    assert peak_ppm(fid, scan.dwell_us * 1e-6) == pytest.approx(2.01, abs=0.005)
    # the voxel's share of its own point spread is the part of the k-space box that the circle covers
    kt = ring_data(scan)
    covered = with_density(kt).density.sum() / 120
    assert abs(fid[5]) / np.exp(-np.pi * 8 * gridded.t[0, 5]) == pytest.approx(covered, rel=0.03)
    assert np.angle(fid[5]) == pytest.approx(
        np.angle(np.exp(2j * np.pi * (2.01 - REFERENCE_PPM) * F0_HZ * 1e-6 * gridded.t[0, 5])), abs=0.05
    )


def test_without_the_phase_along_the_lap_the_source_would_be_smeared_away():
    points = with_density(ring_data(RingScan([NAA])))
    straight = np.abs(coil_images(replace(points, t=points.t))[0, 9, 3, 0])
    corrected = np.abs(coil_images(align_times(points))[0, 9, 3, 0])
    assert np.mean(straight) < 0.5 * np.mean(corrected)


def exact_fids(scan: RingScan, points) -> np.ndarray:
    """Every point's FID at the common times, from the model itself."""
    times = points.protocol.times_s
    k = np.repeat(points.k[:, :2], len(times), axis=0)
    return scan.signal(k, np.tile(times, len(points.k))).reshape(len(points.k), len(times))


def test_moving_fids_to_common_times_costs_little_even_at_their_ends():
    scan = RingScan([NAA, Source((4, 7), 3.21, 0.5), Source((6, 5), 4.68, 3.0)])
    points = ring_data(scan)
    exact = exact_fids(scan, points)
    error = np.abs(align_times(points).samples[0] - exact)
    size = np.sqrt(np.mean(np.abs(exact) ** 2))
    assert np.sqrt(np.mean(error**2)) < 0.01 * size
    assert np.sqrt(np.mean(error[:, 0] ** 2)) < 0.05 * size
    assert np.sqrt(np.mean(error[:, -1] ** 2)) < 0.02 * size


def test_noise_is_not_amplified_by_moving_fids(rng):
    points = ring_data(RingScan([Source((9, 3), 4.6, 3.0)]))
    noise = rng.standard_normal(points.samples.shape) + 1j * rng.standard_normal(points.samples.shape)
    noise = (0.3 * noise).astype(np.complex64)
    moved = align_times(points.with_samples(points.samples + noise)).samples
    added = moved - exact_fids(RingScan([Source((9, 3), 4.6, 3.0)]), points)
    by_time = np.sqrt(np.mean(np.abs(added[0]) ** 2, axis=0)) / (0.3 * np.sqrt(2))
    assert np.sqrt(np.mean(by_time**2)) < 1.05
    assert by_time.max() < 1.6


def test_all_array_libraries_agree(nufft_xp):
    kt = ring_data(RingScan([NAA], n_times=16))
    expected = on_grid(kt)
    result = on_grid(kt.with_samples(nufft_xp.asarray(kt.samples)))
    scale = np.abs(expected.samples).max()
    np.testing.assert_allclose(to_numpy(result.samples), expected.samples, atol=2e-4 * scale)


def test_the_noise_of_a_gridded_image_is_what_its_count_says(rng):
    kt = ring_data(RingScan([NAA]))
    slow = kt.counts
    assert slow.max() / slow.min() == pytest.approx(4 / 3)
    shape = (8, *kt.samples.shape[1:])
    noise = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(slow)
    gridded = on_grid(kt.with_samples(noise.astype(np.complex64)))
    images = centred_ifftn(gridded.dense, (1, 2, 3)) / np.sqrt(120)
    measured = np.std(images[:, :, :, 0, 3:-3].real)
    predicted = np.sqrt(np.sum(1 / gridded.count)) / 120
    assert measured == pytest.approx(predicted, rel=0.04)


def test_gridded_data_describe_a_full_grid_with_one_time_axis():
    kt = ring_data(RingScan([NAA], water=False))
    gridded = on_grid(kt)
    assert gridded.grid == (12, 10, 1)
    assert gridded.fully_sampled
    assert gridded.role is Role.METABOLITE
    np.testing.assert_allclose(gridded.t[0], kt.protocol.times_s)
    np.testing.assert_allclose(gridded.k[0, :2], [-6 / 0.24, -5 / 0.2])
    assert on_grid(gridded) is gridded


def test_where_the_origin_lies_on_a_voxels_edge_the_image_is_half_a_voxel_on():
    scan = RingScan([Source((9.5, 3.5), 2.01)])
    kt = ring_data(scan)
    geometry = replace(kt.protocol.geometry, grid_center="edge")
    gridded = on_grid(replace(kt, protocol=replace(kt.protocol, geometry=geometry)))
    fourier = Fourier(tuple(gridded.dense.shape), first_axis=1, shift=half_voxel_shift(geometry))
    image = np.abs(fourier.H(gridded.dense)[0, :, :, 0, 4]) / np.sqrt(120)
    assert np.unravel_index(image.argmax(), image.shape) == (9, 3)
    assert image.max() / np.exp(-np.pi * 8 * gridded.t[0, 4]) == pytest.approx(
        with_density(kt).density.sum() / 120, rel=0.03
    )


def test_a_missing_ring_is_left_out_and_its_neighbours_stand_for_it():
    scan = RingScan([NAA])
    header = parse_header(scan.header())
    some = [r for r in scan.readouts() if r.head["idx"]["kspace_encode_step_1"] != 3]
    (kt,) = sort_readouts(some, read_protocol(header), Silent(), header=header)
    assert not kt.fully_sampled
    complete, filled = with_density(ring_data(scan)), with_density(kt)
    missing = np.all(kt.counts == 0, axis=1)
    assert missing.sum() == 40
    assert not filled.density[missing].any()
    left = complete.density[~missing].sum()
    assert left + 0.2 * complete.density[missing].sum() < filled.density.sum() < complete.density.sum()
    images = centred_ifftn(on_grid(kt).dense, (1, 2, 3)) / np.sqrt(120)
    energy = np.sum(np.abs(images[0, :, :, 0]) ** 2, axis=-1)
    assert np.unravel_index(energy.argmax(), energy.shape) == NAA.voxel


def test_the_density_of_rings_is_that_of_their_areas_but_for_the_innermost():
    """Integrals over circles at half-integer radii: 2 pi r d each, and pi - pi / 12 in the middle (Euler-Maclaurin)."""
    scan = RingScan([NAA], matrix=(24, 24, 1), fov_mm=(240.0, 240.0, 30.0), laps=(80,) * 12, interleaves=(2,) * 12)
    density = with_density(ring_data(scan)).density.reshape(12, 80).sum(axis=1)
    np.testing.assert_allclose(density[1:-2], 2 * np.pi * (np.arange(1, 10) + 0.5), rtol=0.02)
    assert density[0] == pytest.approx(np.pi * 11 / 12, rel=0.06)


def test_an_object_that_fills_a_disc_has_no_background_when_gridded():
    """With pi cells for the innermost ring the whole image would be raised: 1.12 in the middle, 0.12 outside."""
    scan = RingScan([NAA], matrix=(24, 24, 1), fov_mm=(240.0, 240.0, 30.0), laps=(80,) * 12, interleaves=(2,) * 12)
    kt = ring_data(scan)
    # transform of a disc of 70 mm radius and unit signal per voxel
    x = 2 * np.pi * np.maximum(np.hypot(kt.k[:, 0], kt.k[:, 1]), 1e-9) * 0.07
    disc = 2 * np.pi * 0.07**2 / 0.01**2 * j1(x) / x
    flat = kt.with_samples(np.broadcast_to(disc[None, :, None], kt.samples.shape).astype(np.complex64))
    image = coil_images(with_density(flat))[0, :, :, 0, 5].real
    place = (np.arange(24) - 12) * 10.0
    radius = np.hypot(place[:, None], place)
    assert image[radius < 50].mean() == pytest.approx(1.0, abs=0.02)
    wrong = np.pi * np.diff(np.arange(13) ** 2) / 80
    raised = coil_images(replace(flat, density=np.repeat(wrong, 80)))[0, :, :, 0, 5].real
    assert raised[radius < 50].mean() > 1.06
