from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from csi_scans import CsiScan, Warnings, csi_protocol, make_readout, noise_readouts

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.mrd.cartesian import remove_oversampling
from mrsi_gadgets.mrd.header import Limit, parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Flag

WATER = {"set": 1, "flags": (Flag.USER1,)}


def run(readouts, protocol, header=None, **options):
    warnings = Warnings()
    return list(sort_readouts(readouts, protocol, warnings, header, **options)), warnings.said


def header_of(protocol, **options):
    return parse_header(header_xml(protocol, receiver_channels=2, **options))


def test_every_k_space_sample_finds_its_place():
    scan = CsiScan(csi_protocol())
    (kt,), warnings = run(scan.readouts(), scan.protocol)
    assert kt.grid == (3, 4, 5)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)
    assert kt.fully_sampled
    assert kt.samples.dtype == np.complex64
    assert warnings == []


def test_order_of_readouts_does_not_matter(rng):
    scan = CsiScan(csi_protocol())
    readouts = scan.readouts()
    shuffled = [readouts[i] for i in rng.permutation(len(readouts))]
    assert np.array_equal(run(shuffled, scan.protocol)[0][0].samples, run(readouts, scan.protocol)[0][0].samples)


@pytest.mark.parametrize(
    ("kx", "ky", "kz"),
    [
        *itertools.permutations(("segment", "kspace_encode_step_1", "kspace_encode_step_2")),
        ("phase", "slice", "user_0"),
        ("user_7", "set", "user_3"),
        ("kspace_encode_step_1", "kspace_encode_step_2", "phase"),
    ],
)
def test_any_counter_can_drive_any_axis(kx, ky, kz):
    scan = CsiScan(csi_protocol(axes={"kx": kx, "ky": ky, "kz": kz}, water_reference="none"))
    (kt,), _ = run(scan.readouts(), scan.protocol)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)


@pytest.mark.parametrize("missing", ["kx", "ky", "kz"])
def test_an_axis_without_a_counter_has_one_step(missing):
    matrix = tuple(1 if axis == missing else n for axis, n in zip(("kx", "ky", "kz"), (3, 4, 5), strict=True))
    scan = CsiScan(csi_protocol(matrix=matrix, axes={missing: "none"}))
    (kt,), _ = run(scan.readouts(), scan.protocol)
    assert kt.grid == matrix
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)


def test_counters_are_counted_from_the_centre_of_the_limits():
    scan = CsiScan(csi_protocol(k_centre={"kx": 11, "ky": 22, "kz": 33}))
    (kt,), _ = run(scan.readouts(), scan.protocol)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("freq_sign", [1, -1])
@pytest.mark.parametrize("grid_center", ["voxel", "edge"])
def test_signs_of_the_scanner_are_brought_to_ours(signs, freq_sign, grid_center):
    scan = CsiScan(csi_protocol(matrix=(4, 3, 2), kspace_sign=signs, freq_sign=freq_sign, grid_center=grid_center))
    (kt,), _ = run(scan.readouts(), scan.protocol)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)


def test_noise_is_conjugated_with_the_data():
    protocol = csi_protocol(freq_sign=-1)
    noise = noise_readouts()
    items, _ = run([*noise, *CsiScan(protocol).readouts()], protocol)
    assert np.array_equal(items[0].samples[:, 0], noise[0].data.conj())


def test_k_is_in_one_per_metre_and_t_starts_at_the_delay():
    scan = CsiScan(csi_protocol())
    (kt,), _ = run(scan.readouts(), scan.protocol)
    assert kt.k.reshape(3, 4, 5, 3)[0, 0, 4] == pytest.approx([-1 / 0.21, -2 / 0.2, 2 / 0.15])
    assert kt.t[17] == pytest.approx(1.3e-3 + 5e-4 * np.arange(12))


def test_the_geometry_comes_from_the_readouts():
    scan = CsiScan(csi_protocol())
    oblique = {"read_dir": (0.6, 0.8, 0), "phase_dir": (-0.8, 0.6, 0), "position": (1, 2, 3)}
    (kt,), _ = run(scan.readouts(**oblique), scan.protocol)
    geometry = kt.protocol.geometry
    assert geometry.position_mm == pytest.approx((1, 2, 3))
    assert geometry.read_dir == pytest.approx((0.6, 0.8, 0))
    assert geometry.phase_dir == pytest.approx((-0.8, 0.6, 0))


def test_readouts_without_directions_are_axial_with_a_warning():
    scan = CsiScan(csi_protocol())
    (kt,), warnings = run(scan.readouts(read_dir=0, phase_dir=0, slice_dir=0), scan.protocol)
    assert kt.protocol.geometry.read_dir == (1, 0, 0)
    assert any("no directions" in text for text in warnings)


def test_two_geometries_in_one_scan_are_refused():
    scan = CsiScan(csi_protocol())
    readouts = scan.readouts()
    readouts[7].head["position"][0] += 1
    with pytest.raises(DataError, match=r"readout 7 lies at .* one geometry"):
        run(readouts, scan.protocol)


def test_discarded_samples_and_those_before_t_zero_are_cut():
    scan = CsiScan(csi_protocol())
    for fields in ({"discard_pre": 3, "discard_post": 2}, {"center_sample": 3}, {"discard_pre": 1, "center_sample": 3}):
        readouts = [
            make_readout(
                np.pad(r.data, ((0, 0), (3, 2)), constant_values=99), int(r.head["scan_counter"]), **fields
            )
            for r in scan.readouts()
        ]  # fmt: skip
        for padded, plain in zip(readouts, scan.readouts(), strict=True):
            padded.head["idx"] = plain.head["idx"]
        (kt,), _ = run(readouts, scan.protocol)
        assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)


def test_a_center_sample_beyond_the_readout_is_ignored_with_a_warning():
    scan = CsiScan(csi_protocol())
    (kt,), warnings = run(scan.readouts(center_sample=12), scan.protocol)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)
    assert any("center_sample 12" in text for text in warnings)


@pytest.mark.parametrize(("n_times", "oversampling"), [(64, 2.0), (33, 2.0), (64, 1.5), (50, 3.0)])
def test_removing_oversampling_keeps_amplitude_phase_and_time_zero(n_times, oversampling):
    n = round(n_times * oversampling)
    # frequencies on the grid of the FFT are exact: no wrap-around from the end of the FID to its beginning
    for cycles in (0, 5, -7):
        fine = np.exp(2j * np.pi * cycles * np.arange(n) / n + 0.4j)[None].astype(np.complex64)
        expected = np.exp(2j * np.pi * cycles * np.arange(n_times) / n_times + 0.4j)
        assert np.allclose(remove_oversampling(fine, n_times)[0], expected, atol=1e-5)


def test_removing_oversampling_removes_what_lies_outside_the_band():
    fine = np.exp(2j * np.pi * 50 * np.arange(128) / 128)[None].astype(np.complex64)
    assert np.abs(remove_oversampling(fine, 64)).max() < 1e-5


def test_oversampled_readouts_end_on_the_spectral_dwell():
    protocol = csi_protocol(readout_oversampling=2.0, matrix=(1, 1, 1))
    decay = np.exp(-np.arange(24) * 0.05)[None] * np.ones((2, 1))
    readout = make_readout(decay, sample_time_us=250.0)
    readout.head["idx"]["segment"] = 0
    (kt,), _ = run([readout], protocol)
    assert kt.samples.shape == (2, 1, 12)
    assert kt.sample_time_s == pytest.approx(5e-4)
    assert np.abs(kt.samples[0, 0, 2:9] - decay[0, ::2][2:9]).max() < 0.05


def test_a_dwell_that_contradicts_the_header_is_refused_with_both_names():
    scan = CsiScan(csi_protocol())
    with pytest.raises(DataError, match="readout 0 has sample_time_us 250 but mrsi_dwell_us 500"):
        run(scan.readouts(sample_time_us=250.0), scan.protocol)


def test_a_dwell_of_zero_is_taken_from_the_protocol_with_a_warning():
    scan = CsiScan(csi_protocol())
    _, warnings = run(scan.readouts(sample_time_us=0), scan.protocol)
    assert any("sample_time_us 0" in text for text in warnings)


def test_averages_give_their_mean():
    scan = CsiScan(csi_protocol())
    first, second = scan.readouts(), scan.readouts(start=60, average=1)
    for readout in second:
        readout.data *= 3
    (kt,), warnings = run([*first, *second], scan.protocol)
    assert np.allclose(kt.dense, 2 * scan.k_space(), atol=1e-4)
    assert set(kt.count) == {2}
    assert warnings == []


def test_acquisition_weighted_averages_weigh_by_their_number_and_count_by_their_noise():
    protocol = csi_protocol(kspace_weighting="acquisition_weighted")
    scan = CsiScan(protocol)
    centre = [r for r in scan.readouts(start=60, average=1) if int(r.head["idx"]["segment"]) == 1]
    (kt,), _ = run([*scan.readouts(), *centre], protocol, header_of(protocol, averages=2))
    expected = scan.k_space()
    expected[:, [0, 2]] /= 2
    assert np.allclose(kt.dense, expected, atol=1e-4)
    # half of one readout has a quarter of its variance; the mean of two has half
    assert kt.count.reshape(3, 4, 5)[:, 0, 0].tolist() == [4, 2, 4]


def test_missing_samples_are_zero_and_counted():
    scan = CsiScan(csi_protocol())
    (kt,), warnings = run(scan.readouts(skip={(0, 0, 0), (2, 3, 4)}), scan.protocol)
    assert not kt.fully_sampled
    assert np.flatnonzero(kt.count == 0).tolist() == [0, 59]
    assert np.all(kt.samples[:, [0, 59]] == 0)
    assert warnings == ["2 of 60 k-space samples of metabolite were not acquired and are zero"]


def test_a_sample_that_comes_twice_is_averaged_with_a_warning():
    scan = CsiScan(csi_protocol())
    again = scan.readouts()[5]
    again.data *= 5
    (kt,), warnings = run([*scan.readouts(), again], scan.protocol)
    expected = scan.k_space().reshape(2, 60, 12)
    expected[:, 5] *= 3
    assert np.allclose(kt.samples, expected, atol=1e-3)
    assert warnings == ["1 readouts of metabolite repeat samples with the same counters; they were averaged"]


def test_frames_are_complete_when_all_samples_came():
    protocol = csi_protocol(water_reference="none")
    scan = CsiScan(protocol)
    readouts = [*scan.readouts(), *scan.readouts(start=60, repetition=1)]
    taken = []

    def spy():
        for readout in readouts:
            taken.append(readout)
            yield readout

    frames = sort_readouts(spy(), protocol, Warnings(), header_of(protocol, frames=2))
    assert next(frames).frame == 0
    assert len(taken) == 60
    assert next(frames).frame == 1
    assert len(taken) == 120
    assert list(frames) == []


def test_last_in_repetition_closes_a_frame_that_lacks_samples():
    protocol = csi_protocol(water_reference="none")
    scan = CsiScan(protocol)
    first, second = scan.readouts(skip={(0, 0, 0)}), scan.readouts(skip={(0, 0, 0)}, start=59, repetition=1)
    first[-1].head["flags"] = Flag.LAST_IN_REPETITION.mask
    taken = []
    frames = sort_readouts((taken.append(r) or r for r in [*first, *second]), protocol, Warnings())
    assert next(frames).frame == 0
    assert len(taken) == 59
    assert [kt.frame for kt in frames] == [1]


def test_interleaved_frames_do_not_mix():
    protocol = csi_protocol(water_reference="none")
    one, two = CsiScan(protocol, seed=1), CsiScan(protocol, seed=2)
    pairs = zip(one.readouts(), two.readouts(repetition=1), strict=True)
    items, _ = run(itertools.chain(*pairs), protocol, header_of(protocol, frames=2))
    assert np.allclose(items[0].dense, one.k_space(), atol=1e-4)
    assert np.allclose(items[1].dense, two.k_space(), atol=1e-4)


def test_noise_comes_first_with_its_own_dwell():
    scan = CsiScan(csi_protocol())
    noise = noise_readouts(n_samples=40, sample_time_us=125.0, discard_pre=4)
    items, _ = run([*noise, *scan.readouts()], scan.protocol)
    assert [kt.role for kt in items] == [Role.NOISE, Role.METABOLITE]
    assert items[0].samples.shape == (2, 2, 36)
    assert items[0].sample_time_s == pytest.approx(125e-6)
    assert np.array_equal(items[0].samples[:, 1], noise[1].data[:, 4:])


def test_noise_readouts_of_different_length_are_joined():
    scan = CsiScan(csi_protocol())
    noise = noise_readouts(n_samples=10, count=1) + noise_readouts(n_samples=20, count=1)
    items, _ = run([*noise, *scan.readouts()], scan.protocol)
    assert items[0].samples.shape == (2, 1, 30)


def test_noise_with_two_dwells_is_refused():
    noise = noise_readouts(count=1) + noise_readouts(count=1, sample_time_us=100.0)
    with pytest.raises(DataError, match="sample_time_us 100, the first one 2 and 500"):
        run([*noise, *CsiScan(csi_protocol()).readouts()], csi_protocol())


def test_noise_may_have_other_coils_but_it_is_said():
    scan = CsiScan(csi_protocol())
    items, warnings = run([*noise_readouts(n_coils=4), *scan.readouts()], scan.protocol)
    assert items[0].n_coils == 4
    assert any("4 channels but the data 2" in text for text in warnings)


def test_water_goes_before_metabolites_wherever_it_was_acquired():
    protocol = csi_protocol(water_reference="set:1")
    water, metabolites = CsiScan(protocol, seed=3).readouts(**WATER), CsiScan(protocol).readouts()
    interleaved = list(itertools.chain(*zip(water, metabolites, strict=True)))
    for readouts in (water + metabolites, metabolites + water, interleaved):
        for header in (None, header_of(protocol)):
            items, warnings = run([*noise_readouts(), *readouts], protocol, header)
            assert [kt.role for kt in items] == [Role.NOISE, Role.WATER_REFERENCE, Role.METABOLITE]
            assert np.allclose(items[1].dense, CsiScan(protocol, seed=3).k_space(), atol=1e-4)
            assert np.allclose(items[2].dense, CsiScan(protocol).k_space(), atol=1e-4)
            assert warnings == []


def test_water_leaves_as_soon_as_it_is_complete():
    protocol = csi_protocol(water_reference="set:1")
    taken = []
    readouts = CsiScan(protocol).readouts(**WATER) + CsiScan(protocol).readouts(start=60)
    frames = sort_readouts((taken.append(r) or r for r in readouts), protocol, Warnings(), header_of(protocol))
    assert next(frames).role is Role.WATER_REFERENCE
    assert len(taken) == 60


def test_an_incomplete_water_reference_does_not_hold_up_a_dynamic_scan():
    protocol = csi_protocol(water_reference="set:1")
    scan = CsiScan(protocol)
    readouts = scan.readouts(skip={(0, 0, 0)}, **WATER) + scan.readouts() + scan.readouts(repetition=1)
    taken = []
    header = header_of(protocol, frames=2)
    frames = sort_readouts((taken.append(r) or r for r in readouts), protocol, Warnings(), header)
    assert next(frames).role is Role.WATER_REFERENCE
    assert next(frames).frame == 0
    assert len(taken) == 119
    assert next(frames).frame == 1


def test_water_has_its_own_matrix_in_encoding_space_one():
    protocol = csi_protocol(water_reference="set:1")
    coarse = csi_protocol(water_reference="set:1", matrix=(2, 3, 1), n_times=6)
    water = CsiScan(coarse)
    readouts = water.readouts(encoding_space_ref=1, **WATER) + CsiScan(protocol).readouts()
    header = header_of(protocol, water=coarse)
    items, _ = run(readouts, read_protocol(header), header)
    assert items[0].grid == (2, 3, 1)
    assert np.allclose(items[0].dense, water.k_space(), atol=1e-4)
    assert items[1].grid == (3, 4, 5)


def test_calibration_navigators_and_dummies_are_left_out_and_counted():
    scan = CsiScan(csi_protocol())
    others = [
        make_readout(np.ones((2, 7)), flags=(flag,))
        for flag in (Flag.IS_DUMMYSCAN_DATA, Flag.IS_NAVIGATION_DATA, Flag.IS_PARALLEL_CALIBRATION)
    ]
    (kt,), warnings = run(others + scan.readouts(), scan.protocol)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)
    assert len(warnings) == 3


BAD = {
    "readout 9 has segment 7": lambda r: r[9].head["idx"].__setitem__("segment", 7),
    "readout 9 has 1 channels but the ones before it have 2": lambda r: cut(r, 9, slice(0, 1), slice(None)),
    "readout 9 keeps 11 of its 11 samples .* mrsi_spectral_points 12": lambda r: cut(r, 9, slice(None), slice(0, 11)),
    "readout 9 holds values that are not finite .* channel 1": lambda r: r[9].data.__setitem__((1, 3), np.nan),
    "readout 9 has contrast 1 .* one echo time": lambda r: r[9].head["idx"].__setitem__("contrast", 1),
    "readout 9 has slice 1 .* no axis uses that counter": lambda r: r[9].head["idx"].__setitem__("slice", 1),
    "readout 9 has set 1 .* if one of its values is the water reference, set mrsi_water_ref=set:VALUE": (
        lambda r: r[9].head["idx"].__setitem__("set", 1)
    ),
    "readout 9 is of encoding space 1": lambda r: r[9].head.__setitem__("encoding_space_ref", 1),
    "readout 9 is compressed": lambda r: r[9].head.__setitem__("flags", Flag.COMPRESSION1.mask),
    "readout 9 has repetition 3 but encodingLimits": lambda r: r[9].head["idx"].__setitem__("repetition", 3),
    "readout 9 has average 2 but encodingLimits": lambda r: r[9].head["idx"].__setitem__("average", 2),
}


def cut(readouts, i, channels, samples) -> None:
    readouts[i].data = readouts[i].data[channels, samples].copy()
    readouts[i].head["active_channels"], readouts[i].head["number_of_samples"] = readouts[i].data.shape


@pytest.mark.parametrize("message", BAD)
def test_a_readout_that_contradicts_the_rest_is_named(message):
    scan = CsiScan(csi_protocol())
    readouts = scan.readouts()
    BAD[message](readouts)
    with pytest.raises(DataError, match=message):
        run(readouts, scan.protocol, header_of(scan.protocol))


@pytest.mark.parametrize("noise", [True, False])
def test_samples_whose_squares_leave_the_range_of_numbers_are_refused(noise):
    scan = CsiScan(csi_protocol())
    readouts = [*noise_readouts(), *scan.readouts()]
    (readouts[0] if noise else readouts[5]).data[1, 2] *= np.float32(1e20)
    with pytest.raises(DataError, match=r"readout \d+ holds a value of [0-9.]+e\+\d\d, not plausible"):
        run(readouts, scan.protocol)


def test_samples_of_any_gain_that_a_receiver_can_have_are_accepted():
    scan = CsiScan(csi_protocol())
    for gain in (1e-20, 1e12):
        readouts = scan.readouts()
        for readout in readouts:
            readout.data *= np.float32(gain)
        assert len(run(readouts, scan.protocol)[0]) == 1


def test_a_signalling_nan_is_refused_without_a_warning_beside_the_sentence():
    scan = CsiScan(csi_protocol())
    readouts = scan.readouts()
    readouts[4].data.view(np.uint32)[1, 3] = 0x7FA00000
    with pytest.raises(DataError, match=r"readout 4 holds values that are not finite .* in channel 1"):
        run(readouts, scan.protocol)


def test_metabolites_of_which_nearly_nothing_came_are_refused():
    scan = CsiScan(csi_protocol())
    readouts = scan.readouts()
    with pytest.raises(
        DataError, match=r"only 5 of 60 k-space samples of metabolite frame 0 came, .*send the whole scan"
    ):
        run(readouts[:5], scan.protocol)
    assert len(run(readouts[:6], scan.protocol)[0]) == 1


def test_a_scan_without_metabolites_is_refused():
    protocol = csi_protocol(water_reference="set:1")
    with pytest.raises(DataError, match=r"no metabolite readouts came .*60 water_reference.*mrsi_water_ref 'set:1'"):
        run(CsiScan(protocol).readouts(**WATER), protocol)
    with pytest.raises(DataError, match=r"no metabolite readouts came .*none at all"):
        run(noise_readouts(), protocol)


def test_a_measurement_that_is_a_water_reference_says_so():
    protocol = csi_protocol(water_reference="measurement")
    with pytest.raises(DataError, match="this measurement is a water reference"):
        run(CsiScan(protocol).readouts(), protocol)


def test_an_undeclared_average_after_a_complete_frame_is_refused_and_a_repetition_is_not_used():
    protocol = csi_protocol(water_reference="none")
    scan = CsiScan(protocol)
    late = scan.readouts()[0]
    late.head["scan_counter"] = 99
    late.head["idx"]["repetition"] = 0
    frames = scan.readouts() + scan.readouts(start=60, repetition=1)
    header = header_of(protocol, frames=2)
    items, warnings = run([*frames[:60], late, *frames[60:]], protocol, header)
    assert len(items) == 2
    assert any("first: 99) came after their frame was complete" in text for text in warnings)
    late.head["idx"]["average"] = 1
    limits = {k: v for k, v in header.encodings[0].limits.items() if k != "average"}
    header = replace(header, encodings=(replace(header.encodings[0], limits=limits),))
    with pytest.raises(DataError, match="readout 99 is a further average"):
        run([*frames, late], protocol, header)


def test_water_flags_must_agree_with_each_other():
    protocol = csi_protocol(water_reference="set:1")
    water = CsiScan(protocol).readouts(**WATER)
    water[4].head["flags"] = 0
    with pytest.raises(DataError, match="readout 4 is water by mrsi_water_ref 'set:1' and lacks the flag USER1"):
        run(water + CsiScan(protocol).readouts(), protocol)


def test_a_channel_count_unlike_the_header_is_said():
    scan = CsiScan(csi_protocol())
    header = replace(header_of(scan.protocol), receiver_channels=32)
    _, warnings = run(scan.readouts(), scan.protocol, header)
    assert any("32 receiverChannels but the readouts have 2" in text for text in warnings)


def test_an_encoding_nobody_sorts_is_refused_by_name():
    protocol = csi_protocol(encoding="other")
    with pytest.raises(DataError, match="mrsi_encoding 'other' does not say how .* give one of csi, epsi, rings, spir"):
        run(CsiScan(csi_protocol()).readouts(), protocol)


def test_limits_with_another_centre_are_read_from_the_header():
    protocol = csi_protocol(k_centre={"kx": 5, "ky": 2, "kz": 2})
    header = header_of(protocol, limits={"segment": Limit(4, 6, 5)})
    scan = CsiScan(protocol)
    (kt,), _ = run(scan.readouts(), read_protocol(header), header)
    assert np.allclose(kt.dense, scan.k_space(), atol=1e-4)


def test_the_shared_scan_sorts_to_the_numbers_in_its_file(shared_data):
    scan = read_scan(shared_data / "csi_8x8.h5")
    header = parse_header(scan.header_xml)
    noise, water, metabolites = run(scan.acquisitions, read_protocol(header), header)[0]
    readouts = list(scan.acquisitions)
    assert noise.samples.shape == (3, 2, 128)
    assert np.array_equal(noise.samples[:, 1], readouts[1].data)
    for role, kt in ((1, water), (0, metabolites)):
        assert kt.grid == (8, 8, 1)
        assert kt.fully_sampled
        for readout in readouts[2:]:
            idx = readout.head["idx"]
            if idx["set"] == role:
                assert np.array_equal(kt.dense[:, idx["segment"], idx["kspace_encode_step_1"], 0], readout.data)
    assert metabolites.protocol.geometry.position_mm == pytest.approx((4.0, -7.0, 20.0))


def test_coils_that_make_a_frame_larger_than_the_memory_are_refused_before_it_is_allocated(monkeypatch):
    scan = CsiScan(csi_protocol(), n_coils=3)
    monkeypatch.setattr("mrsi_gadgets.mrd.sizes.physical_memory", lambda: 3 * 60 * 12 * 8 - 1)
    with pytest.raises(DataError, match="matrixSize 3 x 4 x 5 has 60 readouts of 12 samples in 3 channels"):
        list(sort_readouts(scan.readouts(), scan.protocol, Warnings()))
