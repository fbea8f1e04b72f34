"""Each encoding takes each sample where and when the profile says it was taken."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.roles import classify
from mrsi_gadgets.phantom import signals
from mrsi_gadgets.phantom.encode import TimeInterpolation
from mrsi_gadgets.phantom.encodings import Csi, Epsi, Rings, Spirals, random_mask
from mrsi_gadgets.phantom.gradients import GAMMA_HZ_PER_T, GradientLimits, circle_time_s, peak_demand, spiral
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.simulate import _make_head, simulate
from mrsi_gadgets.phantom.sources import Source
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.stream.messages import Flag

ENCODED = ("epsi16", "epsi16_bipolar", "epsi16_ramp", "epsi16_kt", "rings16", "spiral16")
SLOW_GRADIENTS = GradientLimits(amplitude_t_per_m=0.02, slew_t_per_m_per_s=40.0)


def small(name: str, **changes):
    """A preset with fewer points, so that a scan takes a second."""
    return replace(PRESETS[name], subvoxels=(3, 3, 1), n_coils=2, n_times=32, **changes)


SMALL = {
    **{name: small(name) for name in ENCODED},
    # slow gradients: laps of several spectral dwells, whose interleaves fill the gaps
    "rings of 1 and 2 dwells": small("rings16", encoding=Rings(gradients=SLOW_GRADIENTS, chunk_laps=5)),
    "spirals of 2 dwells": small("spiral16", encoding=Spirals(gradients=SLOW_GRADIENTS, arms_per_plane=6)),
    "stack of rings": small("rings16", matrix=(16, 16, 3), fov_mm=(220.0, 220.0, 36.0)),
    "stack of epsi": small("epsi16_bipolar", matrix=(16, 16, 3), fov_mm=(220.0, 220.0, 36.0)),
    "flyback on the ramps": small("epsi16", encoding=Epsi(ramp_fraction=0.2, gradient_delay_s=2e-6)),
}


@lru_cache
def quiet(name: str):
    return simulate(SMALL[name], seed=3, snr=np.inf)


@lru_cache
def head_of(name: str):
    preset = SMALL[name]
    head = _make_head(preset, np.random.SeedSequence(3))
    places = head.anatomy.positions_mm.reshape(-1, 3) * 1e-3
    maps = head.coil_maps.reshape(preset.n_coils, -1) * preset.receiver_gain
    return head, Source(preset, head), places, maps


def slow_sample(name: str, role: Role, k, t: float, shot: float, receiver_rad: float = 0.0) -> np.ndarray:
    """One sample of all coils by the sum over all fine points at its own place and time, complex128."""
    preset, (head, source, places, maps) = SMALL[name], head_of(name)
    protocol = replace(preset.protocol, acquisition_delay_s=t, n_times=1)
    parts = (source.water if role is Role.WATER_REFERENCE else source.suppressed)(protocol)
    inside = signals.total(parts, replace(head.field, times_s=protocol.times_s), slice(0, 1))[:, 0]
    rho = np.zeros(head.anatomy.brain.shape, np.complex128)
    rho[tuple(slice(s, s + n) for s, n in zip(head.box.start, head.box.shape, strict=True))] = inside.reshape(
        head.box.shape
    )
    received = maps @ (rho.reshape(-1) * np.exp(-2j * np.pi * (places @ np.asarray(k))))
    shots = preset.encoding.scan_facts(preset)[0]
    minutes = (shot - (shots - 1) / 2) * preset.averaged * preset.repetition_time_s / 60
    phase = 2 * np.pi * preset.drift_hz_per_minute * minutes * t + receiver_rad
    phase += sum(a * np.exp(-t / d) for a, d in zip(preset.eddy_phase_rad, preset.eddy_decay_s, strict=True))
    return received * np.exp(1j * phase)


def trapezoid(duration: float, ramp: float, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Times [s] from the centre and k [1/m] of a lobe whose gradient is a trapezoid, by summing it up."""
    times = np.linspace(-duration / 2, duration / 2, 100_001)
    gradient = np.clip((duration / 2 - np.abs(times)) / (ramp * duration), 0.0, 1.0)
    area = np.concatenate([[0.0], np.cumsum((gradient[1:] + gradient[:-1]) / 2)])
    return times, (area / area[-1] - 0.5) * extent


def place_of(name: str, readout, sample: int) -> tuple[np.ndarray, float, float]:
    """k [1/m], time [s] and receiver phase [rad] of a sample by the rules of the profile."""
    preset = SMALL[name]
    fov, index, head = np.array(preset.fov_mm) * 1e-3, readout.head["idx"], readout.head
    own = float(head["sample_time_us"]) * 1e-6
    first = int(index["kspace_encode_step_1"])
    kz = (int(index["kspace_encode_step_2"]) - preset.matrix[2] // 2) / fov[2]
    if isinstance(preset.encoding, Epsi):
        encoding, reverse = preset.encoding, readout.has(Flag.IS_REVERSE)
        spacing = preset.dwell_s / (2 if encoding.alternating else 1)
        offset = sample - int(head["center_sample"])
        late = encoding.gradient_delay_s
        if readout.trajectory is None:
            kx = (offset - late / own) / (encoding.oversampling * fov[0])
        else:
            times, k = trapezoid(encoding.lobe_fraction * spacing, encoding.ramp_fraction, preset.matrix[0] / fov[0])
            kx = np.interp(offset * own - late, times, k)
            sent = np.interp(offset * own, times, k) * (-1 if reverse else 1)
            assert readout.trajectory[sample, 0] == pytest.approx(sent, abs=1e-3)
        kx = -kx if reverse else kx
        t = preset.acquisition_delay_s + int(index["segment"]) * spacing + offset * own
        ky = (first - preset.matrix[1] // 2) / fov[1]
        return np.array([kx, ky, kz]), t, encoding.odd_even_phase_rad if reverse else 0.0
    arm = preset.encoding.arms(preset)[first]
    chunk = min(preset.encoding.chunk_laps or 10**6, preset.n_times // arm.interleaves) * len(arm.k)
    t = preset.acquisition_delay_s + int(index["user"][0]) * preset.dwell_s
    t += (int(index["segment"]) * chunk + sample) * own
    return np.array([*readout.trajectory[sample], kz]), t, 0.0


@pytest.mark.parametrize("name", SMALL)
def test_samples_equal_the_sum_over_the_fine_grid_at_their_own_place_and_time(name):
    preset, scan = SMALL[name], quiet(name)
    shots = {id(p): p for group in scan.groups for p in group}.values()
    numbers = [int(shot) for p in shots for shot in p.shots]
    readouts = [r for r in scan.acquisitions if not r.has(Flag.IS_NOISE_MEASUREMENT)]
    size = {role: np.abs(scan.of(role).samples).max() for role in (Role.WATER_REFERENCE, Role.METABOLITE)}
    rng = np.random.default_rng(1)
    for number in rng.choice(len(readouts), 12, replace=False):
        readout = readouts[number]
        role = classify(readout.head, preset.protocol)
        used = readout.data.shape[1]
        if isinstance(preset.encoding, Spirals):
            arm = preset.encoding.arms(preset)[0]
            sample = int(rng.integers(arm.used)) + len(arm.k) * int(rng.integers(used // len(arm.k)))
        else:
            sample = int(rng.integers(1, used - 1))
        k, t, receiver = place_of(name, readout, sample)
        wanted = slow_sample(name, role, k, t, numbers[number], receiver)
        # relative to the largest sample of the scan: single precision, a NUFFT of 1e-6, times interpolated to 1e-7
        assert np.abs(readout.data[:, sample] - wanted).max() < 1e-5 * size[role], (number, sample)


def test_order_of_shots_is_that_of_the_stream():
    scan = quiet("rings of 1 and 2 dwells")
    for group in scan.groups:
        for of in group:
            assert np.all(np.diff(of.shots) >= 0)
            assert len(of.shots) == len(of.readouts)
    stamps = np.array([int(r.head["acquisition_time_stamp"]) for r in scan.acquisitions])
    assert np.all(np.diff(stamps) >= 0)


@pytest.mark.parametrize("name", SMALL)
def test_header_reads_back_as_the_presets_protocol(name):
    scan = quiet(name)
    found, wanted = read_protocol(parse_header(scan.header_xml)), SMALL[name].protocol
    assert found.dwell_s == pytest.approx(wanted.dwell_s, rel=1e-9)
    for field in (
        "encoding", "n_times", "samples_per_lap", "temporal_interleaves", "samples_used", "readout_polarity",
        "trajectory_units", "trajectory_columns", "readout_oversampling", "k_centre",
    ):  # fmt: skip
        assert getattr(found, field) == getattr(wanted, field), field
    assert {axis: found.axes[axis] for axis in ("kx", "ky", "kz", "t")} == {
        axis: wanted.axes[axis] for axis in ("kx", "ky", "kz", "t")
    }


@pytest.mark.parametrize("name", ["epsi16", "epsi16_bipolar", "epsi16_ramp", "rings16", "spiral16"])
def test_naa_lies_at_2_01_ppm_in_every_encoding(name):
    scan = simulate(replace(PRESETS[name], subvoxels=(3, 3, 1)), seed=3, snr=np.inf, nuisance=False, b0=False)
    preset, protocol = scan.truth.preset, scan.protocol
    points = preset.encoding.points(preset)
    if isinstance(preset.encoding, Epsi):
        row = int(np.argmin(np.abs(points.kx)))
        fid = scan.metabolites[0, row, preset.matrix[1] // 2, 0]
    else:
        row = int(np.argmin(np.linalg.norm(points.k, axis=1)))
        fid = scan.metabolites[0, row, 0]
    times = protocol.times_s + points.tau_s[row]
    ppm = np.linspace(1.9, 2.1, 401)
    spectrum = np.exp(-2j * np.pi * np.outer(protocol.hz(ppm), times)) @ (fid * np.exp(-3 * times))
    assert ppm[np.argmax(np.abs(spectrum))] == pytest.approx(2.01, abs=0.01)


@pytest.mark.parametrize("name", ["epsi16", "epsi16_bipolar", "rings of 1 and 2 dwells", "spirals of 2 dwells"])
def test_noise_of_a_sample_is_that_of_its_dwell_and_averages(name):
    preset = SMALL[name]
    scan, clean = simulate(preset, seed=3, noise_seed=8), quiet(name)
    noise = scan.metabolites - clean.metabolites
    sample_times = preset.encoding.sample_times_s(preset)
    for own in np.unique(sample_times):
        rows = noise[:, sample_times == own].reshape(preset.n_coils, -1)
        found = rows @ rows.conj().T / rows.shape[1]
        wanted = scan.truth.noise_covariance * preset.dwell_s / (own * preset.averaged)
        assert np.linalg.norm(found - wanted) < 4 * np.linalg.norm(wanted) / np.sqrt(rows.shape[1])
    # the noise scan tells the same by the ratio of the dwells
    flat = scan.noise.reshape(preset.n_coils, -1)
    told = flat @ flat.conj().T / flat.shape[1] * (preset.noise_dwell_s / own)
    assert np.linalg.norm(told - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", [*ENCODED[:3], "rings16", "spiral16", "epsi48", "rings48", "spiral48"])
def test_encodings_have_the_adc_time_of_csi(name):
    preset = PRESETS[name]
    csi = PRESETS["csi48" if "48" in name else "csi16"]
    excitations, adc_s = preset.encoding.scan_facts(preset)
    assert adc_s * preset.averaged == pytest.approx(Csi().scan_facts(csi)[1])
    if name in SMALL:
        card = quiet(name).truth.card["metabolite"]
        few = SMALL[name]
        assert card["adc_s"] == pytest.approx(Csi().scan_facts(few)[1])
        assert card["duration_s"] == pytest.approx(excitations * few.averaged * few.repetition_time_s)


def test_equal_seeds_give_one_brain_to_all_encodings():
    csi = simulate(small("csi16"), seed=3, snr=np.inf)
    for name in ("epsi16", "rings16"):
        for field in ("contents", "fids", "b0_hz", "coil_maps", "noise_covariance"):
            assert np.array_equal(getattr(quiet(name).truth, field), getattr(csi.truth, field)), field


def test_truth_of_every_encoding_is_read_back(tmp_path):
    for name in ("rings of 1 and 2 dwells", "epsi16_kt"):
        quiet(name).truth.save(tmp_path / "a.h5")
        assert Truth.load(tmp_path / "a.h5").preset == replace(SMALL[name], snr=np.inf)


def test_interpolation_between_times_is_exact_to_a_millionth_up_to_the_edge_of_the_spectrum():
    tau, dwell = np.linspace(-3e-4, 9e-4, 57), 1 / 1500
    between = TimeInterpolation.to(tau, dwell, 11)
    fine = between.start_s + between.step_s * np.arange(between.count)
    wanted = tau[:, None] + dwell * np.arange(11)
    for frequency, decay in ((-740.0, 0.0), (130.0, 50.0), (749.0, 10.0)):
        rate = 2j * np.pi * frequency - decay
        result = np.empty((1, 57, 11), np.complex64)
        between.apply(np.broadcast_to(np.exp(rate * fine), (1, 57, between.count)).astype(np.complex64), result)
        assert np.abs(result[0] - np.exp(rate * wanted)).max() < 2e-6
    assert between.count < 2 * 11 + 2 * 12


def test_paths_keep_within_the_gradients():
    for name in ("rings48", "spiral48", "rings16", "spiral16"):
        preset = PRESETS[name]
        limits = preset.encoding.gradients
        for arm in preset.encoding.arms(preset):
            if isinstance(preset.encoding, Rings):
                radius = np.hypot(*arm.k[0])
                assert circle_time_s(radius, limits) <= arm.interleaves * preset.dwell_s
                turn = 2 * np.pi / (arm.interleaves * preset.dwell_s)
                assert radius * turn / GAMMA_HZ_PER_T <= limits.amplitude_t_per_m * (1 + 1e-9)
                assert radius * turn**2 / GAMMA_HZ_PER_T <= limits.slew_t_per_m_per_s * (1 + 1e-9)
            else:
                # as a console with a raster of 10 us plays it, over two laps with the way back between them
                own = arm.interleaves * preset.dwell_s / len(arm.k)
                assert np.hypot(*arm.k[-1]) < 0.02 * np.hypot(*arm.k[arm.used - 1])
                every = max(round(10e-6 / own), 1)
                amplitude, slew = peak_demand(np.tile(arm.k, (2, 1))[::every], own * every)
                assert amplitude <= limits.amplitude_t_per_m
                assert slew <= limits.slew_t_per_m_per_s * (1 + 1e-9)
    # distance from sample to sample, and between turns, is at most one step of k
    preset = PRESETS["spiral48"]
    arm = preset.encoding.arms(preset)[0]
    assert np.max(np.linalg.norm(np.diff(arm.k[: arm.used], axis=0), axis=1)) <= 1 / 0.22
    assert np.hypot(*arm.k[arm.used - 1]) == pytest.approx(24 / 0.22, rel=0.02)


def test_a_spiral_is_walked_as_fast_as_the_slew_rate_allows():
    limits = GradientLimits()
    walk = spiral(24 / 0.22, 16 / 0.22 / (2 * np.pi), limits)
    times = np.arange(0.0, walk.duration_s, 10e-6)
    amplitude, slew = peak_demand(walk.k(times), 10e-6)
    assert amplitude < limits.amplitude_t_per_m
    assert 0.9 * limits.slew_t_per_m_per_s < slew <= limits.slew_t_per_m_per_s
    # a circle at the edge with the whole slew rate bounds the time of the outermost turn
    assert walk.duration_s > circle_time_s(24 / 0.22, limits)


def test_a_sampled_ramp_is_the_integral_of_a_trapezoid():
    preset = PRESETS["epsi16_ramp"]
    times = preset.encoding.lobe_times_s(preset)
    k = preset.encoding.lobe_k(preset, times)
    assert np.allclose(k, np.interp(times, *trapezoid(preset.dwell_s / 2, 0.3, 16 / 0.22)), atol=1e-4)
    assert np.max(np.diff(k)) <= 1 / (2 * 0.22) * (1 + 1e-9)
    assert k[len(k) // 2] == 0.0


def test_a_random_mask_has_its_number_of_points_and_its_centre():
    mask = random_mask(np.ones((48, 48, 1), bool), 3.0, 8, 0)
    assert mask.sum() == 768
    assert mask[20:28, 20:28].all()
    radius = np.hypot(*np.meshgrid(*[(np.arange(48) - 24) / 24] * 2, indexing="ij"))
    assert mask[radius < 0.5].mean() > 1.5 * mask[radius > 0.8].mean() > 0
    assert not np.array_equal(mask, random_mask(np.ones((48, 48, 1), bool), 3.0, 8, 1))
    with pytest.raises(ConfigError, match="make the centre smaller"):
        random_mask(np.ones((16, 16, 1), bool), 8.0, 8, 0)


def test_undersampled_csi_leaves_out_metabolite_points_and_has_the_whole_water():
    preset = small("csi16", encoding=Csi(undersampling=2.0, centre=6))
    scan = simulate(preset, seed=3)
    counts = {role: len(scan.of(role).readouts) for role in (Role.WATER_REFERENCE, Role.METABOLITE)}
    assert counts == {Role.WATER_REFERENCE: 256, Role.METABOLITE: 128}
    full = simulate(small("csi16"), seed=3, snr=np.inf)
    acquired = np.any(scan.metabolites != 0, axis=(0, -1))
    assert acquired.sum() == 128
    places = [(int(r.head["idx"]["segment"]), int(r.head["idx"]["kspace_encode_step_1"])) for r in scan.acquisitions]
    assert sorted(places[-128:]) == sorted(zip(*np.nonzero(acquired[..., 0]), strict=True))
    error = (scan.metabolites - full.metabolites)[:, acquired]
    assert np.std(error) == pytest.approx(np.sqrt(np.trace(scan.truth.noise_covariance).real / 2), rel=0.05)


def test_regular_undersampling_sends_its_centre_for_calibration_first():
    preset = small("csi16", encoding=Csi(regular=(2, 2, 1), centre=6))
    scan = simulate(preset, seed=3)
    roles = [classify(r.head, scan.protocol) for r in scan.acquisitions]
    assert roles == [Role.NOISE] * 16 + [Role.WATER_REFERENCE] * 256 + [Role.CALIBRATION] * 36 + [Role.METABOLITE] * 64
    acquired = np.any(scan.metabolites != 0, axis=(0, -1))[..., 0]
    assert np.array_equal(acquired, (np.add.outer(np.arange(16) % 2, np.arange(16) % 2) == 0))
    centre = np.any(scan.of(Role.CALIBRATION).samples != 0, axis=(0, -1))[..., 0]
    assert np.array_equal(np.flatnonzero(centre.any(axis=0)), np.arange(5, 11))


def test_acquisition_weighting_sends_the_centre_more_often():
    preset = small("csi16", encoding=Csi(elliptical=True, averages_at_centre=4))
    scan = simulate(preset, seed=3)
    times = np.zeros((16, 16), int)
    for readout in scan.acquisitions:
        if classify(readout.head, scan.protocol) is Role.METABOLITE:
            index = readout.head["idx"]
            times[int(index["segment"]), int(index["kspace_encode_step_1"])] += 1
    radius = np.hypot(*np.meshgrid(*[(np.arange(16) - 8) / 8] * 2, indexing="ij"))
    assert np.array_equal(times[radius > 1], np.zeros((radius > 1).sum()))
    assert times[8, 8] == 4
    assert np.array_equal(times[radius <= 1], np.maximum(np.rint(2 + 2 * np.cos(np.pi * radius[radius <= 1])), 1))
    averages = [p for group in scan.groups for p in group if p.role is Role.METABOLITE]
    first, second = averages[0].samples[:, 8, 8, 0], averages[1].samples[:, 8, 8, 0]
    sd = np.sqrt(2 * np.trace(scan.truth.noise_covariance).real / 2)
    assert np.std(first - second) == pytest.approx(sd, rel=0.3)


def test_random_lines_at_each_time_differ_and_keep_the_centre():
    preset = SMALL["epsi16_kt"]
    acquired = np.any(quiet("epsi16_kt").metabolites != 0, axis=(0, 1))[:, 0]
    assert np.array_equal(acquired.sum(axis=0), np.full(preset.n_times, 8))
    assert acquired[6:10].all()
    assert len({tuple(column) for column in acquired.T}) > 20
    assert np.any(quiet("epsi16_kt").water != 0, axis=(0, 1)).all()


def test_bipolar_lobes_alternate_and_say_so():
    lobes = [r for r in quiet("epsi16_bipolar").acquisitions if not r.has(Flag.IS_NOISE_MEASUREMENT)]
    assert all(r.has(Flag.IS_REVERSE) == bool(int(r.head["idx"]["segment"]) % 2) for r in lobes)
    assert {int(r.head["center_sample"]) for r in lobes} == {15, 16}
    assert len(lobes) == 2 * 16 * 64


@pytest.mark.parametrize(
    ("preset", "sentence"),
    [
        (small("rings16", matrix=(16, 12, 1)), "square matrix"),
        (small("spiral16", encoding=Spirals(arms_per_plane=1, gradients=GradientLimits(0.001, 1.0))), "arms_per_plane"),
        (small("rings16", encoding=Rings(gradients=GradientLimits(1e-4, 0.1))), "longer than the readout"),
    ],
)
def test_walks_that_do_not_fit_are_refused(preset, sentence):
    with pytest.raises(ConfigError, match=sentence):
        simulate(preset)


def test_encodings_refuse_numbers_that_make_no_sense():
    with pytest.raises(ConfigError, match="at least 1"):
        Csi(undersampling=0.5)
    with pytest.raises(ConfigError, match="lobe_fraction"):
        Epsi(lobe_fraction=1.5)
    with pytest.raises(ConfigError, match="smaller"):
        simulate(small("epsi16", encoding=Epsi(undersampling=8.0, centre=8)))


def test_uneven_sampling_costs_what_its_density_says():
    for name in ("csi16", "epsi16", "epsi16_bipolar"):
        assert PRESETS[name].encoding.density_factor(PRESETS[name]) == pytest.approx(1.0, abs=1e-6)
    assert PRESETS["csi16_weighted"].encoding.density_factor(PRESETS["csi16_weighted"]) == pytest.approx(1.15, abs=0.06)
    rings = PRESETS["rings16"]
    # rings of one lap time each: shares grow as the radius, mean 4, mean square 4^2 + 63/12
    assert rings.encoding.density_factor(rings) == pytest.approx(np.sqrt(16 + 63 / 12) / 4)
    spirals = PRESETS["spiral48"]
    factor = spirals.encoding.density_factor(spirals)
    # noise weighted with the shares, drawn and added up
    share, time = spirals.encoding.shares(spirals), spirals.encoding.sample_times_s(spirals)
    draws = np.random.default_rng(2).standard_normal((2000, len(share))) / np.sqrt(time)
    even = 1 / np.sqrt(np.sum(time))
    assert np.std(draws @ share / share.sum()) / even == pytest.approx(factor, rel=0.06)
    # the shares of all arms cover the disc
    assert 2 * np.pi * share.sum() / 16 == pytest.approx(np.pi * (24 / 0.22) ** 2 / 1, rel=0.03)
