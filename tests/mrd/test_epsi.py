"""EPSI readouts find the place in (k, t) that the formulae of the profile give them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from csi_scans import Warnings, noise_readouts, set_counter
from epsi_scans import EpsiScan, Line

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.epsi_lobes import conventional_epi
from mrsi_gadgets.mrd.header import Limit
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Flag

LINES = [Line((1, 2, 0), 90.0), Line((3, 0, 1), -210.0, 0.5 - 0.4j)]
STILL = [replace(line, frequency_hz=0.0, decay_hz=0.0) for line in LINES]
RAMP = np.array([-11.5, -10.2, -8.1, -5.1, -1.9, 0.2, 2.4, 5.3, 8.6, 10.9])  # 1/m; 4 voxels of 210 mm need 9.52


def sort(scan: EpsiScan, readouts=None, header=None):
    warnings = Warnings()
    header = header or scan.header()
    protocol = read_protocol(header, warn=warnings.warn)
    data = scan.readouts() if readouts is None else readouts
    return list(sort_readouts(data, protocol, warnings, header)), warnings.said


def expected(scan: EpsiScan, kt) -> np.ndarray:
    """The signal of our convention at the k and t that the data claim."""
    k = np.broadcast_to(kt.k[:, None, :], (*kt.t.shape, 3)).reshape(-1, 3)
    return scan.signal(k, kt.t.reshape(-1)).reshape(kt.t.shape)


def rms(values) -> float:
    return float(np.sqrt(np.mean(np.abs(values) ** 2)))


def grid_k(scan: EpsiScan) -> np.ndarray:
    axes = [(np.arange(n) - n // 2) / (f * 1e-3) for n, f in zip(scan.matrix, scan.fov_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@pytest.mark.parametrize("grid_center", ["voxel", "edge"])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("freq_sign", [1, -1])
@pytest.mark.parametrize("matrix", [(4, 3, 2), (5, 4, 3)])
def test_flyback_lobes_fill_the_grid_at_their_own_times(grid_center, signs, freq_sign, matrix):
    scan = EpsiScan(LINES, matrix=matrix, kspace_sign=signs, freq_sign=freq_sign, grid_center=grid_center)
    (kt,), _ = sort(scan)
    assert kt.grid == matrix
    assert kt.samples.shape == (2, int(np.prod(matrix)), 6)
    assert kt.density is None
    assert kt.count.tolist() == [1] * int(np.prod(matrix))
    np.testing.assert_allclose(kt.k.reshape(*matrix, 3), grid_k(scan), atol=1e-9)
    # each sample is as late as it lies behind the centre of its lobe
    step = np.arange(matrix[0]) - matrix[0] // 2
    sign = signs[0] * freq_sign
    if sign < 0 and matrix[0] % 2 == 0:
        step[0] = matrix[0] // 2  # the sample at +n/2 of k is the grid's point at -n/2
    times = 1300 + 700 * np.arange(6) + sign * 60 * step[:, None]
    shape = (matrix[0], matrix[1] * matrix[2], 6)
    np.testing.assert_allclose(kt.t.reshape(shape) * 1e6, np.broadcast_to(times[:, None], shape), atol=1e-6)
    assert kt.sample_time_s == pytest.approx(60e-6)
    assert not kt.common_times
    np.testing.assert_allclose(kt.samples[0], expected(scan, kt), atol=2e-6)
    np.testing.assert_allclose(kt.samples[1], -2 * expected(scan, kt), atol=4e-6)


@pytest.mark.parametrize("matrix", [(4, 3, 2), (5, 2, 2)])
@pytest.mark.parametrize("factor", [2.0, 3.0])
@pytest.mark.parametrize("grid_center", ["voxel", "edge"])
@pytest.mark.parametrize("polarity", ["monopolar", "alternating"])
def test_oversampling_is_removed_per_lobe(matrix, factor, grid_center, polarity):
    # somewhere in the field of view, not at the centres of voxels
    rng = np.random.default_rng(3)
    first, last = -0.5, np.array(matrix) - 0.5
    lines = [Line(tuple(rng.uniform(first, last)), 0.0, rng.normal() + 1j * rng.normal(), 0.0) for _ in range(60)]
    scan = EpsiScan(
        lines, matrix=matrix, oversampling=factor, sample_time_us=30.0, grid_center=grid_center, polarity=polarity,
    )  # fmt: skip
    (kt,), _ = sort(scan)
    assert kt.samples.shape[1] == int(np.prod(matrix)) * (2 if polarity == "alternating" else 1)
    truth = expected(scan, kt)
    assert rms(kt.samples[0] - truth) < 0.05 * rms(truth)


@pytest.mark.parametrize(
    ("n_x", "factor", "error"), [(16, 1.5, 0.06), (7, 2.0, 0.06), (16, 2.5, 0.06), (15, 1.5, 0.12), (6, 1.25, 0.15)]
)
def test_any_oversampling_is_removed(n_x, factor, error):
    scan = EpsiScan([Line((0.3 * n_x + 0.2, 0, 0), 0.0, decay_hz=0.0)], matrix=(n_x, 1, 1), oversampling=factor)
    scan = replace(scan, sample_time_us=10.0)
    (kt,), _ = sort(scan)
    assert kt.samples.shape[1] == n_x
    assert rms(kt.samples[0] - expected(scan, kt)) < error


def test_what_lies_outside_the_field_of_view_is_suppressed():
    scan = EpsiScan([], matrix=(32, 1, 1), oversampling=2.0, sample_time_us=10.0, n_lobes=2)
    left = {}
    for voxel in (20.0, 34.0, 40.0, 47.0):
        (kt,), _ = sort(replace(scan, lines=[Line((voxel, 0, 0), 0.0, decay_hz=0.0)]))
        left[voxel] = rms(kt.samples[0])
    assert left[20.0] == pytest.approx(1.0, abs=0.03)
    assert left[34.0] < 0.4
    assert left[40.0] < 0.15
    assert left[47.0] < 0.15


@pytest.mark.parametrize("grid_center", ["voxel", "edge"])
def test_a_lobe_that_ends_at_the_other_side_gives_the_same_points(grid_center):
    # with the sign turned, lobes reach from +n/2 down: that sample is the grid's -n/2, half a cell beyond the others
    scan = EpsiScan(
        [Line((5, 2, 0), 0.0, decay_hz=0.0), Line((11, 3, 1), 0.0, 0.4j, 0.0)], matrix=(16, 4, 2), oversampling=2.0,
        sample_time_us=20.0, grid_center=grid_center,
    )  # fmt: skip
    for turned in (replace(scan, kspace_sign=(-1, 1, 1)), replace(scan, freq_sign=-1)):
        (kt,), _ = sort(turned)
        assert rms(kt.dense[0, 0] - expected(scan, kt).reshape(16, 4, 2, -1)[0]) < 0.15


@pytest.mark.parametrize("sign_x", [1, -1])
@pytest.mark.parametrize("polarity", ["monopolar", "alternating"])
def test_the_noise_of_a_cut_lobe_is_that_of_its_sample_time(polarity, sign_x):
    scan = EpsiScan([], matrix=(16, 6, 4), oversampling=2.0, sample_time_us=20.0, n_lobes=40, polarity=polarity)
    scan = replace(scan, kspace_sign=(sign_x, 1, 1))
    readouts = scan.readouts()
    rng = np.random.default_rng(1)
    for readout in readouts:
        shape = (*readout.data.shape, 2)
        readout.data = np.ascontiguousarray(rng.standard_normal(shape).astype(np.float32).view(np.complex64)[..., 0])
    (kt,), _ = sort(scan, readouts)
    # 2 is the variance of a complex sample at 20 us
    assert np.mean(np.abs(kt.samples) ** 2) == pytest.approx(2 * 20e-6 / kt.sample_time_s, rel=0.03)
    assert kt.sample_time_s == pytest.approx(40e-6 / 1.143, rel=2e-3)


def test_evolution_within_an_oversampled_lobe_stays_at_each_samples_own_time():
    scan = EpsiScan([Line((7.2, 2, 0), 250.0)], matrix=(16, 3, 2), oversampling=2.0, sample_time_us=20.0)
    (kt,), _ = sort(scan)
    own = rms(kt.samples[0] - expected(scan, kt))
    at_once = rms(kt.samples[0] - expected(scan, replace(kt, t=np.broadcast_to(kt.protocol.times_s, kt.t.shape))))
    assert own < 0.02
    assert at_once > 0.2


@pytest.mark.parametrize("first_backwards", [False, True])
@pytest.mark.parametrize("centre_backwards", [None, 1])
@pytest.mark.parametrize("sign_x", [1, -1])
@pytest.mark.parametrize("freq_sign", [1, -1])
def test_alternating_lobes_form_two_sets_of_points(first_backwards, centre_backwards, sign_x, freq_sign):
    scan = EpsiScan(
        LINES, polarity="alternating", first_backwards=first_backwards, centre=2, centre_backwards=centre_backwards,
        kspace_sign=(sign_x, 1, 1), freq_sign=freq_sign,
    )  # fmt: skip
    (kt,), warnings = sort(scan)
    assert warnings == []
    assert kt.grid is None
    assert kt.samples.shape == (2, 48, 3)
    assert kt.protocol.dwell_s == pytest.approx(1400e-6)
    assert kt.protocol.n_times == 3
    assert kt.density.tolist() == [0.5] * 48
    np.testing.assert_allclose(kt.samples[0], expected(scan, kt), atol=2e-6)
    # the centre of each lobe lies on the grid of 700 us: forward and backward lobes take turns
    at_centre = np.abs(kt.k[:, 0]) < 1e-9
    for half, late in ((slice(0, 24), first_backwards), (slice(24, 48), not first_backwards)):
        times = kt.t[half][at_centre[half]]
        np.testing.assert_allclose(times * 1e6, np.tile(1300 + 700 * late + 1400 * np.arange(3), (6, 1)), atol=1e-6)
        # in grid order, up to the sample at +n/2 that stands for -n/2
        k = kt.k[half].reshape(4, 3, 2, 3)
        np.testing.assert_allclose(k[1:], grid_k(scan)[1:], atol=1e-9)
        assert abs(k[0, 0, 0, 0]) == pytest.approx(2 / 0.21)
        # k falls with time in the backward lobes: the slope of t over kx
        slope = np.polyfit(kt.k[half][:, 0], kt.t[half][:, 0], 1)[0]
        assert slope == pytest.approx((1 if half.start == 0 else -1) * sign_x * freq_sign * 60e-6 * 0.21)


@pytest.mark.parametrize("polarity", ["monopolar", "alternating"])
@pytest.mark.parametrize("units", ["1/m", "1/FOV", "half"])
@pytest.mark.parametrize("sign_x", [1, -1])
def test_ramp_samples_are_points_of_their_own(polarity, units, sign_x):
    scan = EpsiScan(LINES, ramp=RAMP, polarity=polarity, units=units, kspace_sign=(sign_x, 1, 1), centre=None)
    (kt,), warnings = sort(scan)
    assert any("no center_sample; sample 5 was taken to be the centre" in w for w in warnings)
    both = 2 if polarity == "alternating" else 1
    assert kt.samples.shape == (2, 60 * both, 6 // both)
    assert kt.grid is None
    np.testing.assert_allclose(kt.samples[0], expected(scan, kt), atol=3e-6)
    np.testing.assert_allclose(kt.k[:60, 0].reshape(10, 6), np.tile(sign_x * RAMP[:, None], 6), rtol=1e-6)
    spacing = np.array([1.3, 1.7, 2.55, 3.1, 2.65, 2.15, 2.55, 3.1, 2.8, 2.3])
    np.testing.assert_allclose(kt.density[:60].reshape(10, 6), np.tile(spacing[:, None] * 0.21 / both, 6), rtol=1e-5)
    assert kt.sample_time_s == pytest.approx(60e-6)


def test_the_header_can_describe_a_ramp_sampled_lobe():
    lobe = {"rampUpTime": 100, "rampDownTime": 100, "flatTopTime": 400, "echoSpacing": 700, "numSamples": 10,
            "acqDelayTime": 0, "dwellTime": 60.0}  # fmt: skip
    scan = EpsiScan(LINES, polarity="alternating")
    header = scan.header()
    (space,) = header.encodings
    space = replace(space, trajectory="epi", trajectory_id="ConventionalEPI", trajectory_parameters=lobe)
    header = replace(header, encodings=(space,))
    # in units of the flat top's gradient: end of each dwell, less half of the area 500, scaled to 4 cells of 1 / 0.21 m
    ends = 60.0 * np.arange(1, 11)
    area = np.where(ends < 100, ends**2 / 200, np.where(ends <= 500, ends - 50, 500 - (600 - ends) ** 2 / 200))
    ramp = (area - 250) * 4 / 500 / 0.21
    np.testing.assert_allclose(conventional_epi(lobe, 10, read_protocol(header).geometry), ramp, rtol=1e-12)
    told = replace(scan, ramp=ramp)
    readouts = told.readouts()
    for readout in readouts:
        readout.trajectory = None
    (kt,), _ = sort(scan, readouts, header)
    assert kt.samples.shape == (2, 120, 3)
    np.testing.assert_allclose(kt.samples[0], expected(told, kt), atol=3e-6)
    np.testing.assert_allclose(kt.k[:60, 0].reshape(10, 6)[:, 0], ramp)
    np.testing.assert_allclose(kt.k[60:, 0].reshape(10, 6)[:, 0], -ramp)


def test_lobes_that_never_came_are_counted_at_their_points_and_times():
    skip = [(0, 1, 3), (2, 0, 0), (2, 0, 5)]
    (kt,), warnings = sort(EpsiScan(LINES), EpsiScan(LINES).readouts(skip=skip))
    count = kt.count.reshape(4, 3, 2, 6)
    assert kt.count.shape == (24, 6)
    for y, z, lobe in skip:
        assert (count[:, y, z, lobe] == 0).all()
    assert int((count == 0).sum()) == 4 * len(skip)
    assert not kt.samples[0].reshape(4, 3, 2, 6)[:, 2, 0, 5].any()
    assert "3 of 36 k-space samples of metabolite were not acquired and are zero" in warnings
    (kt,), _ = sort(
        EpsiScan(LINES, polarity="alternating"), EpsiScan(LINES, polarity="alternating").readouts(skip=[(2, 1, 5)])
    )
    assert np.argwhere(kt.count == 0).tolist() == [[24 + 6 * x + 5, 2] for x in range(4)]
    assert kt.counts.shape == (48, 3)


def test_averages_of_lobes_are_averaged():
    scan = EpsiScan(LINES)
    second = scan.readouts(average=1)
    for readout in second[:6]:
        readout.data *= 3
    (kt,), _ = sort(scan, [*scan.readouts(), *second], scan.header(averages=2))
    assert kt.count.tolist() == [2] * 24
    factor = np.where(np.arange(24) % 6 == 0, 2, 1)[:, None]
    np.testing.assert_allclose(kt.samples[0], factor * expected(scan, kt), atol=4e-6)


def test_the_default_centre_is_said():
    (kt,), warnings = sort(EpsiScan(LINES))
    assert warnings == ["epsi readouts have no center_sample; sample 2 was taken to be the centre of k-space"]
    (given,), silent = sort(EpsiScan(LINES, centre=2))
    assert silent == []
    assert np.array_equal(kt.t, given.t)


def test_discarded_samples_are_no_part_of_a_lobe():
    scan = EpsiScan(LINES, centre=2)
    (plain,), _ = sort(scan)
    padded = scan.readouts(center_sample=5, discard_pre=3, discard_post=1)
    for readout in padded:
        readout.data = np.pad(readout.data, ((0, 0), (3, 1)), constant_values=99)
        readout.head["number_of_samples"] += 4
    (kt,), _ = sort(scan, padded)
    assert np.array_equal(kt.samples, plain.samples)
    assert np.array_equal(kt.t, plain.t)


def wrong(readouts, number: int, **fields):
    for name, value in fields.items():
        if name in readouts[number].head.dtype.names:
            readouts[number].head[name] = value
        else:
            set_counter(readouts[number].head, name, value)
    return readouts


REVERSE = Flag.IS_REVERSE.mask
ALTERNATING = EpsiScan(LINES, polarity="alternating")
REFUSED = {
    "a reversed lobe in monopolar": (EpsiScan(LINES), lambda r: wrong(r, 3, flags=REVERSE), "readout 3 carries"),
    "a reversed first lobe in monopolar": (EpsiScan(LINES), lambda r: wrong(r, 0, flags=REVERSE), "readout 0 carries"),
    "no reversed lobes in alternating": (
        ALTERNATING, lambda r: [wrong(r, i, flags=0)[i] for i in range(len(r))],
        r"readout 1 \(lobe 1\) lacks the flag IS_REVERSE, but by the first readout the odd lobes",
    ),
    "reversed lobes of both parities": (
        ALTERNATING, lambda r: wrong(r, 2, flags=REVERSE), r"readout 2 \(lobe 2\) carries the flag IS_REVERSE",
    ),
    "a lobe too many": (EpsiScan(LINES), lambda r: wrong(r, 4, segment=6), "readout 4 is lobe 6 .* counts 6 of them"),
    "a line outside": (EpsiScan(LINES), lambda r: wrong(r, 4, kspace_encode_step_1=3), "outside the matrix"),
    "another dwell": (EpsiScan(LINES), lambda r: wrong(r, 4, sample_time_us=50), "has sample_time_us 50 but"),
    "no dwell": (EpsiScan(LINES), lambda r: wrong(r, 0, sample_time_us=0), "sample_time_us 0, so the times within"),
    "another centre": (EpsiScan(LINES, centre=2), lambda r: wrong(r, 4, center_sample=1), "has center_sample 1 but"),
    "a centre off the middle": (EpsiScan(LINES, centre=3), lambda r: r, "need their centre in the middle"),
    "lobes longer than their spacing": (EpsiScan(LINES, sample_time_us=200), lambda r: r, "longer than the lobe"),
    "another length": (EpsiScan(LINES, oversampling=2), lambda r: EpsiScan(LINES).readouts(), "lobes keep 4 samples"),
    "lobes of two lengths": (
        EpsiScan(LINES), lambda r: [*r[:4], *EpsiScan(LINES, oversampling=2).readouts()[4:]], "keeps 8 samples but the",
    ),
    "a trajectory with wrong units": (
        EpsiScan(LINES, ramp=RAMP / 20), lambda r: r, r"reaches 0.575/m but 4 voxels need 9.524/m; correct mrsi_traj",
    ),
    "a trajectory that runs back": (
        EpsiScan(LINES, ramp=RAMP[[1, 0, *range(2, 10)]]), lambda r: r, "does not run one way along kx",
    ),
    "a trajectory against the flag": (
        EpsiScan(LINES, ramp=-RAMP), lambda r: r, "runs backwards along kx but the readout lacks the flag IS_REVERSE",
    ),
    "a centre that is not that of the trajectory": (
        EpsiScan(LINES, ramp=RAMP, centre=8), lambda r: r, "center_sample 8 but its trajectory passes k = 0 at",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_lobes_that_contradict_the_profile_are_refused(case):
    scan, change, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence):
        sort(scan, change(scan.readouts()))


def test_a_trajectory_of_another_length_or_none_at_all_is_refused():
    scan = EpsiScan(LINES, ramp=RAMP)
    readouts = scan.readouts()
    readouts[0].trajectory = readouts[0].trajectory[:7]
    with pytest.raises(DataError, match="trajectory of readout 0 has 7 entries for 10 samples"):
        sort(scan, readouts)
    readouts = scan.readouts()
    readouts[5].trajectory = None
    with pytest.raises(DataError, match="readout 5 does not have a trajectory like that of the lobes before it"):
        sort(scan, readouts)
    readouts = scan.readouts()
    readouts[5].trajectory = readouts[5].trajectory * np.float32(1.01)
    with pytest.raises(DataError, match="trajectory of readout 5 differs"):
        sort(scan, readouts)


def test_a_profile_that_cannot_be_epsi_is_refused():
    scan = EpsiScan(LINES)
    with pytest.raises(DataError, match="as many lobes to as fro"):
        read_protocol(EpsiScan(LINES, n_lobes=6).header(), {"mrsi_spectral_points": "5",
                      "mrsi_readout_polarity": "alternating", "mrsi_axis_t": "user_3"})  # fmt: skip
    with pytest.raises(DataError, match="in epsi kx runs along the readout"):
        read_protocol(scan.header(), {"mrsi_axis_kx": "segment", "mrsi_axis_t": "readout"})
    with pytest.raises(DataError, match="encodingLimits.segment is 0 to 5, but mrsi_spectral_points 8"):
        read_protocol(scan.header(), {"mrsi_spectral_points": "8"})
    header = scan.header()
    space = replace(header.encodings[0], trajectory_id="ConventionalEPI", trajectory_parameters={"rampUpTime": 3})
    with pytest.raises(DataError, match="ConventionalEPI of the header lacks rampDownTime, flatTopTime"):
        sort(scan, header=replace(header, encodings=(space,)))
    with pytest.raises(DataError, match="trajectory of epsi lobes is 'mine'; it must be ConventionalEPI"):
        sort(scan, header=replace(header, encodings=(replace(space, trajectory_id="mine"),)))


def test_the_sources_of_halved_values_are_said():
    protocol = ALTERNATING.protocol()
    assert (protocol.n_times, protocol.dwell_s) == (3, pytest.approx(1.4e-3))
    assert protocol.provenance["n_times"] == (
        "header mrsi_spectral_points, halved: alternating lobes of one polarity form one FID"
    )
    assert protocol.provenance["dwell_s"].startswith("header mrsi_dwell_us, doubled")
    assert ALTERNATING.header().encodings[0].limits["segment"] == Limit(0, 5, 0)


def test_water_with_another_matrix_in_the_same_encoding_space_is_refused():
    scan = EpsiScan(LINES)
    water = replace(scan, matrix=(4, 4, 2), lines=STILL)
    header = scan.header()
    protocol = read_protocol(header, {"mrsi_water_ref": "contrast:1"}, warn=lambda _: None)
    readouts = [*water.readouts(contrast=1), *scan.readouts()]
    with pytest.raises(DataError, match=r"kspace_encode_step_1 3 .* outside the matrix"):
        list(sort_readouts(readouts, protocol, Warnings(), header))
    water = replace(scan, matrix=(8, 3, 2), lines=STILL, sample_time_us=30.0)
    with pytest.raises(DataError, match="lobes keep 8 samples but matrixSize.x 4"):
        list(sort_readouts([*water.readouts(contrast=1), *scan.readouts()], protocol, Warnings(), header))


def test_the_water_reference_is_sorted_like_the_metabolites():
    scan, water = EpsiScan(LINES), EpsiScan(STILL)
    protocol = replace(scan.protocol(), water_reference="contrast:1")
    data = [*water.readouts(contrast=1), *scan.readouts()]
    found = list(sort_readouts(data, protocol, Warnings(), scan.header()))
    assert [kt.role.value for kt in found] == ["water_reference", "metabolite"]
    for kt, truth in zip(found, (water, scan), strict=True):
        np.testing.assert_allclose(kt.samples[0], expected(truth, kt), atol=2e-6)


def test_a_noise_scan_without_a_dwell_is_refused():
    noise = noise_readouts(sample_time_us=0.0)
    with pytest.raises(DataError, match="the dwell of epsi readouts does not tell theirs"):
        sort(EpsiScan(LINES), [*noise, *EpsiScan(LINES).readouts()])
    (found, _), _ = sort(EpsiScan(LINES), [*noise_readouts(sample_time_us=5.0), *EpsiScan(LINES).readouts()])
    assert found.sample_time_s == pytest.approx(5e-6)


def test_reversed_lobes_of_another_parity_in_the_metabolites_are_refused():
    scan = EpsiScan(LINES, polarity="alternating")
    water = scan.readouts()
    for readout in water:
        set_counter(readout.head, "set", 1)
        readout.head["flags"] = int(readout.head["flags"]) | Flag.USER1.mask
    turned = replace(scan, first_backwards=not scan.first_backwards).readouts()
    header = scan.header()
    protocol = read_protocol(header, {"mrsi_water_ref": "set:1"})
    with pytest.raises(DataError, match="of the metabolite readouts have .* numbers, those of the water_reference"):
        list(sort_readouts([*water, *turned], protocol, Warnings(), header))
