"""The course of frequency and phase over a scan, against a course that was put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, KtData, Role
from mrsi_gadgets.reconstruction.drift import (
    Course,
    change_between,
    correct_drift,
    course_through,
    drift_from_navigators,
    reference_time,
    shift_of_residual_water,
    smoothed_course,
    traces_of,
)

COILS = np.array([1.0, 0.5j, -0.7])


def fid(times, rate=25.0):
    return np.exp(-rate * times)


@pytest.fixture
def navigators(make_protocol):
    def make(hz, phase, snr=np.inf, seed=0, interval_s=0.3):
        """Water FIDs with a known course; `snr` is that of the first sample of the first coil."""
        protocol = make_protocol(acquisition_delay_s=1.3e-3)
        count, n_times = len(hz), 64
        times = protocol.times_s[:n_times]
        turn = np.exp(1j * (2 * np.pi * np.asarray(hz)[:, None] * times + np.asarray(phase)[:, None]))
        samples = (1e6 if np.isinf(snr) else snr) * COILS[:, None, None] * fid(times) * turn
        rng = np.random.default_rng(seed)
        samples = samples + rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape)
        return KtData(
            samples.astype(np.complex64), np.zeros((count, 3)), np.broadcast_to(times, (count, n_times)),
            np.ones(count, int), Role.NAVIGATOR, protocol, acquired_s=interval_s * np.arange(count),
            sample_time_s=protocol.dwell_s,
        )  # fmt: skip

    return make


@pytest.fixture
def scan(make_protocol):
    def make(
        shift_hz=0.0, *, role=Role.METABOLITE, start_s=0.0, noise=0.0, seed=0, lines=(0.0,), n_times=256, scale=1.0
    ):
        """A 12 x 12 csi scan of a round object with a field of its own, every point a second after the last."""
        geometry = Geometry((12, 12, 1), (240.0, 240.0, 10.0))
        protocol = make_protocol(acquisition_delay_s=1.3e-3, n_times=n_times, geometry=geometry)
        place = np.stack(np.meshgrid(*((np.arange(12) - 6) / 12,) * 2, indexing="ij"), axis=-1)[..., None, :]
        inside = np.sum(place**2, axis=-1) < 0.15
        own = 8 * place[..., 0] - 5 * place[..., 1] + shift_hz
        times = protocol.times_s
        rho = sum(np.exp(2j * np.pi * line * times) for line in lines) * fid(times) * inside[..., None]
        rho = rho * np.exp(2j * np.pi * own[..., None] * times)
        if role is Role.METABOLITE:
            # suppression leaves another phase in every place
            rho = rho * np.exp(2j * place[..., 0] - 1j * place[..., 1])[..., None]
        maps = COILS[:, None, None, None] * (1 + place[None, ..., 0])
        axes = (1, 2)
        k_space = np.fft.fftshift(
            np.fft.fftn(np.fft.ifftshift(maps[..., None] * rho, axes=axes), axes=axes), axes=axes
        )  # fmt: skip
        k = np.stack(np.meshgrid(*((np.arange(12) - 6) / 0.24,) * 2, [0.0], indexing="ij"), axis=-1).reshape(-1, 3)
        samples = scale * k_space.reshape(3, 144, -1)
        rng = np.random.default_rng(seed)
        samples = samples + noise * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
        return KtData(
            samples.astype(np.complex64), k, np.broadcast_to(times, (144, n_times)), np.ones(144, int), role, protocol,
            grid=(12, 12, 1), acquired_s=start_s + np.arange(144.0), sample_time_s=protocol.dwell_s,
        )  # fmt: skip

    return make


# --- navigators -----------------------------------------------------------------------------------------------------


def test_navigators_tell_frequency_and_phase(navigators):
    hz = np.linspace(-4, 6, 200) + np.sin(np.arange(200) / 20)
    phase = np.linspace(0, 9, 200)
    course, _ = drift_from_navigators(navigators(hz, phase))
    course = course.zero_at(0.0)
    np.testing.assert_allclose(course.hz, hz - hz[0], atol=2e-3)
    np.testing.assert_allclose(course.phase_rad, phase - phase[0], atol=2e-3)
    assert course.source == "navigators"


def test_the_course_is_smoothed_as_far_as_noise_demands_and_no_further(navigators):
    slow = np.linspace(0, 1, 300)
    noisy, _ = drift_from_navigators(navigators(slow, 0 * slow, snr=20))
    # one navigator's own error
    assert noisy.hz_sd > 0.05
    error = noisy.zero_at(45.0).hz - (slow - slow[150])
    assert np.sqrt(np.mean(error**2)) < 0.25 * noisy.hz_sd
    # breathing is no noise: it stays where navigators see it
    breathing = np.sin(2 * np.pi * np.arange(300) * 0.3 / 4.0)
    seen, _ = drift_from_navigators(navigators(breathing, 0 * breathing, snr=2000))
    np.testing.assert_allclose(seen.hz - seen.hz.mean(), breathing - breathing.mean(), atol=0.02)


def test_where_nothing_drifts_nothing_is_invented(navigators):
    course, _ = drift_from_navigators(navigators(np.zeros(300), np.zeros(300), snr=20))
    assert np.ptp(course.hz) < 0.05
    assert np.ptp(course.phase_rad) < 0.02


def test_noise_of_another_dwell_is_taken_for_what_it_is(navigators):
    given = navigators(np.zeros(300), np.zeros(300), snr=20)
    wider = given.with_samples(given.samples * np.complex64(3))
    course, _ = drift_from_navigators(given)
    scaled, _ = drift_from_navigators(wider, noise_sd=3.0)
    np.testing.assert_allclose(scaled.hz, course.hz, atol=1e-6)
    assert scaled.hz_sd == pytest.approx(course.hz_sd)


def test_a_navigator_of_something_else_is_left_out(navigators):
    given = navigators(np.linspace(0, 2, 100), np.zeros(100), snr=1000)
    samples = given.samples.copy()
    samples[:, 40] = np.random.default_rng(1).standard_normal(samples[:, 40].shape) * 500
    course, _ = drift_from_navigators(given.with_samples(samples))
    assert len(course.times_s) == 99
    np.testing.assert_allclose(course.zero_at(0.0).hz, course.times_s / 0.3 / 99 * 2, atol=0.02)


def test_navigators_without_signal_tell_nothing(navigators):
    assert drift_from_navigators(navigators(np.zeros(50), np.zeros(50), snr=0.0)) is None
    assert drift_from_navigators(navigators([0.0], [0.0])) is None


def test_later_navigators_keep_the_zero_of_the_first(navigators):
    everything = navigators(np.linspace(0, 5, 100), np.linspace(0, 1, 100), snr=5000)
    half = replace(
        everything, samples=everything.samples[:, :50], k=everything.k[:50], t=everything.t[:50],
        count=everything.count[:50], acquired_s=everything.acquired_s[:50],
    )  # fmt: skip
    first, mean = drift_from_navigators(half)
    both, _ = drift_from_navigators(everything, mean)
    np.testing.assert_allclose(both.hz[:50], first.hz, atol=0.02)
    np.testing.assert_allclose(both.phase_rad[:50], first.phase_rad, atol=0.02)


@pytest.mark.parametrize("n", [2, 3, 4, 50])
def test_smoothing_leaves_a_line_alone(n):
    times = np.cumsum(np.linspace(1, 2, n))
    np.testing.assert_allclose(smoothed_course(times, 3 + 0.5 * times, 1e-6), 3 + 0.5 * times, atol=1e-2)


# --- repetitions and residual water ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [-7.0, 0.0, 0.4])
def test_a_repetition_tells_its_change_of_frequency(scan, hz):
    first = traces_of(scan(noise=1.0, role=Role.WATER_REFERENCE))
    found, sd = change_between(first, scan(hz, noise=1.0, seed=1, role=Role.WATER_REFERENCE))
    assert 0 < sd < 0.1
    assert abs(found - hz) < 4 * sd


def test_the_error_that_is_told_is_the_error_there_is(scan):
    first = scan(noise=1.0, scale=0.3)
    found = [change_between(traces_of(first), scan(noise=1.0, scale=0.3, seed=seed)) for seed in range(1, 25)]
    # the first repetition's noise is common to all of them
    spread = np.std([hz for hz, _ in found], ddof=1) * np.sqrt(2)
    assert spread == pytest.approx(np.mean([sd for _, sd in found]), rel=0.5)


def test_repetitions_of_noise_alone_tell_nothing(scan):
    quiet = scan(noise=1.0)
    empty = quiet.with_samples(quiet.samples * np.complex64(1e-6))
    rng = np.random.default_rng(3)

    def noise():
        values = rng.standard_normal((2, *quiet.samples.shape))
        return empty.with_samples((values[0] + 1j * values[1]).astype(np.complex64))

    assert change_between(traces_of(noise()), noise()) is None


@pytest.mark.parametrize("hz", [10.0, -10.0])
def test_residual_water_tells_its_shift_against_the_reference_beside_other_lines(scan, hz):
    water = traces_of(scan(role=Role.WATER_REFERENCE, noise=1.0, scale=2.0))
    # NAA and creatine are 330 and 200 Hz away
    metabolites = scan(hz, noise=1.0, scale=2.0, seed=2, lines=(0.0, -330.0, -200.0))
    found = shift_of_residual_water(water, traces_of(metabolites))
    assert found[0] == pytest.approx(hz, abs=0.3)
    assert found[1] < 0.2


def test_data_of_another_kind_or_without_time_are_not_compared(scan):
    first = traces_of(scan())
    assert change_between(first, scan(n_times=128)) is None
    other = scan()
    assert change_between(first, other.with_samples(other.samples[:2])) is None
    assert traces_of(replace(scan(), acquired_s=None)) is None
    few = replace(scan(), count=np.zeros(144, int))
    assert traces_of(few) is None


def test_a_course_goes_on_straight_beyond_its_anchors():
    course = course_through([(100.0, 2.0), (50.0, 0.0)], np.array([80.0, 130.0]), "data")
    hz, phase = course.at(np.array([50.0, 75.0, 130.0]))
    np.testing.assert_allclose(hz, [0.0, 1.0, 3.2])
    assert not phase.any()
    assert course.range_hz(np.array([80.0, 130.0])) == pytest.approx(2.0)


# --- taking it out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
def test_each_sample_is_turned_by_its_own_time(xp, scan, per_sample):
    kt = scan()
    # its own t: points of a lap are later
    t = kt.t + 1e-4 * np.arange(144)[:, None]
    acquired = kt.acquired_s[:, None] + 0.1 * np.arange(256) if per_sample else kt.acquired_s
    course = Course(np.array([0.0, 200.0]), np.array([0.0, 20.0]), np.array([0.5, 2.5]), "navigators")
    when = acquired if per_sample else acquired[:, None]
    drifted = kt.samples * np.exp(1j * (2 * np.pi * 0.1 * when * t + 0.5 + 0.01 * when))
    item = replace(kt, samples=xp.asarray(drifted.astype(np.complex64)), t=t, acquired_s=acquired)
    done = correct_drift(item, course)
    np.testing.assert_allclose(to_numpy(done.samples), kt.samples, atol=2e-3)
    assert done.samples.dtype == xp.complex64
    assert done.acquired_s is None
    # never twice
    assert correct_drift(done, course) is done


def test_samples_are_overwritten_only_where_that_is_allowed(scan):
    kt = scan(shift_hz=3.0)
    before = kt.samples.copy()
    course = Course(np.array([0.0, 200.0]), np.array([0.0, 20.0]), np.zeros(2), "navigators")
    kept = correct_drift(kt, course)
    np.testing.assert_array_equal(kt.samples, before)
    done = correct_drift(kt, course, overwrite=True)
    assert done.samples is kt.samples
    np.testing.assert_array_equal(done.samples, kept.samples)


def test_the_reference_time_is_that_of_the_signal(scan):
    kt = scan(start_s=100.0)
    centre = 6 * 12 + 6
    assert reference_time(kt) == pytest.approx(100 + centre, abs=5)
    assert reference_time(replace(kt, acquired_s=None)) == 0.0
