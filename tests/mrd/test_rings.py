from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import Limit, parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.rings import ring_points
from mrsi_gadgets.mrd.sorting import sort_readouts
from ring_phantom import RingScan, Source

SOURCES = [Source((9, 3), 2.01), Source((4, 7), 3.21, 0.5 - 0.2j)]


class Warnings(list):
    def warn(self, sentence: str) -> None:
        self.append(sentence)


def sort(scan: RingScan, readouts=None, warnings=None):
    header = parse_header(scan.header())
    protocol = read_protocol(header, warn=Warnings().warn)
    data = scan.readouts() if readouts is None else readouts
    return list(sort_readouts(data, protocol, Warnings() if warnings is None else warnings, header=header))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kspace_sign": -1},
        {"freq_sign": -1},
        {"freq_sign": -1, "kspace_sign": -1, "units": "half"},
        {"units": "1/FOV", "send_times": True},
        {"chunk": 120},
        {"chunk": 10_000},
        {"laps": (50,) * 6, "interleaves": (1, 2, 1, 4, 2, 1)},
    ],
    ids=str,
)
def test_every_sample_lies_where_the_model_says(changes):
    scan = RingScan(SOURCES, **changes)
    (kt,) = sort(scan)
    assert kt.grid is None
    assert kt.samples.shape == (1, sum(scan.laps), scan.n_times)
    assert kt.fully_sampled
    assert not kt.common_times
    expected = replace(scan, kspace_sign=1, freq_sign=1)
    if scan.freq_sign < 0:
        # a source's amplitude is conjugated with the samples
        expected = replace(expected, sources=[replace(s, amplitude=np.conj(s.amplitude)) for s in scan.sources])
    k = np.broadcast_to(kt.k[:, None, :2], (*kt.t.shape, 2))
    model = expected.signal(k.reshape(-1, 2), kt.t.reshape(-1)).reshape(kt.t.shape)
    np.testing.assert_allclose(kt.samples[0], model, atol=3e-4)


def test_points_are_the_samples_of_a_lap_and_times_its_laps_and_interleaves():
    scan = RingScan(SOURCES)
    (kt,) = sort(scan)
    dwell = scan.dwell_us * 1e-6
    first = np.cumsum([0, *scan.laps])
    for ring, (lap, interleaves) in enumerate(zip(scan.laps, scan.interleaves, strict=True)):
        own = dwell * interleaves / lap
        expected = 1.3e-3 + own * np.arange(lap)[:, None] + dwell * np.arange(scan.n_times)
        points = slice(first[ring], first[ring + 1])
        np.testing.assert_allclose(kt.t[points], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.hypot(*kt.k[points, :2].T), scan.radii[ring], rtol=1e-6)
    assert kt.sample_time_s == pytest.approx(dwell / 40)


def test_samples_of_a_slower_adc_count_as_several():
    (kt,) = sort(RingScan(SOURCES))
    assert kt.count.shape == (280,)
    assert kt.count[:160] == pytest.approx(1.0)
    assert kt.count[160:] == pytest.approx(40 * 2 / 60)


def test_a_ring_is_walked_clockwise_from_its_first_point():
    path = ring_points(2.0 + 0j, 5, 4, clockwise=True)
    np.testing.assert_allclose(path, [[2, 0], [0, -2], [-2, 0], [0, 2], [2, 0]], atol=1e-12)
    np.testing.assert_allclose(ring_points(2.0 + 0j, 2, 4, clockwise=False)[1], [0, 2], atol=1e-12)


def test_averages_are_averaged():
    scan = RingScan(SOURCES)
    second = scan.readouts()
    for readout in second:
        readout.head["idx"]["average"] = 1
        readout.data *= 3
    (once,), (twice,) = sort(scan), sort(scan, [*scan.readouts(), *second])
    np.testing.assert_allclose(twice.samples, 2 * once.samples, rtol=1e-5)
    np.testing.assert_allclose(twice.count, 2 * once.count)


def test_an_average_on_another_path_is_refused():
    scan = RingScan(SOURCES)
    second = scan.readouts()
    for readout in second:
        readout.head["idx"]["average"] = 1
        turned = readout.trajectory.copy()
        turned[:, 0], turned[:, 1] = readout.trajectory[:, 1], -readout.trajectory[:, 0]
        readout.trajectory = turned
    with pytest.raises(DataError, match="differs from that of the readouts of ring"):
        sort(scan, [*scan.readouts(), *second])


def test_a_missing_chunk_leaves_the_times_of_its_laps_at_zero():
    scan = RingScan(SOURCES)
    kept = [
        r for r in scan.readouts() if not (r.head["idx"]["kspace_encode_step_1"] == 2 and r.head["idx"]["segment"] == 1)
    ]
    warnings = Warnings()
    (kt,) = sort(scan, kept, warnings)
    # samples 700 to 1399 of a walk of 40 samples per lap
    number = np.arange(40)[:, None] + 40 * np.arange(64)
    missing = (number >= 700) & (number < 1400)
    assert kt.count.shape == (280, 64)
    np.testing.assert_array_equal(kt.count[80:120] == 0, missing)
    np.testing.assert_array_equal(kt.samples[0, 80:120] == 0, missing)
    assert (kt.count[:80] > 0).all()
    assert (kt.count[120:] > 0).all()
    assert not kt.fully_sampled
    assert warnings == ["1 of 28 k-space samples of metabolite were not acquired and are zero"]


def test_a_missing_interleaf_leaves_every_other_time_at_zero():
    scan = RingScan(SOURCES)
    kept = [r for r in scan.readouts() if not (r.head["idx"]["kspace_encode_step_1"] == 5 and r.head["idx"]["user"][0])]
    (kt,) = sort(scan, kept)
    assert (kt.count[220:, 1::2] == 0).all()
    assert (kt.count[220:, ::2] > 0).all()


def test_a_missing_ring_is_told():
    scan = RingScan(SOURCES)
    warnings = Warnings()
    (kt,) = sort(scan, [r for r in scan.readouts() if r.head["idx"]["kspace_encode_step_1"] != 2], warnings)
    assert np.flatnonzero(kt.count == 0).tolist() == list(range(80, 120))
    assert not kt.samples[0, 80:120].any()
    assert kt.density is None
    assert warnings == ["4 of 28 k-space samples of metabolite were not acquired and are zero"]


def changed(readouts, **counters):
    for readout in readouts[:1]:
        for name, value in counters.items():
            if name == "user_0":
                readout.head["idx"]["user"][0] = value
            elif name in readout.head.dtype.names:
                readout.head[name] = value
            else:
                readout.head["idx"][name] = value
    return readouts


@pytest.mark.parametrize(
    ("counters", "message"),
    [
        ({"kspace_encode_step_1": 6}, "is of ring 6"),
        ({"user_0": 2}, "temporal interleaf 2 of ring 5, which has 2"),
        ({"segment": 9}, "chunk 9 of ring 5"),
        ({"sample_time_us": 8.0}, "sample_time_us 8, but 60 samples per lap and 2 temporal interleaves give 16"),
    ],
    ids=["ring", "interleaf", "chunk", "dwell"],
)
def test_a_readout_that_contradicts_the_profile_is_refused(counters, message):
    scan = RingScan(SOURCES)
    with pytest.raises(DataError, match=message):
        sort(scan, changed(scan.readouts(), **counters))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mrsi_samples_per_lap": "40 40 40 60"}, "has 4 values and mrsi_temporal_interleaves 6"),
        ({"mrsi_temporal_interleaves": "1 1 1 1 3 3"}, "do not make 64 spectral points"),
        ({"mrsi_trajectory_columns": "kx"}, "name each of them"),
        ({"mrsi_trajectory_units": None}, "mrsi_trajectory_units is ''"),
        ({"mrsi_samples_per_lap": "40", "mrsi_temporal_interleaves": "2"}, "sample_time_us"),
    ],
)
def test_a_profile_that_does_not_describe_the_rings_is_refused(changes, message):
    scan = RingScan(SOURCES, profile=changes)
    with pytest.raises(DataError, match=message):
        sort(scan)


def test_readouts_without_a_trajectory_are_refused():
    scan = RingScan(SOURCES)
    readouts = scan.readouts()
    for readout in readouts:
        readout.trajectory = None
    with pytest.raises(DataError, match="without a trajectory"):
        sort(scan, readouts)


def test_chunks_of_different_lengths_are_refused_instead_of_misplaced():
    scan = RingScan(SOURCES, laps=(40, 40, 40, 40, 20, 20), chunk=700)
    with pytest.raises(DataError, match="send chunks of one length"):
        sort(scan)


def test_a_trajectory_that_is_no_ring_of_that_many_samples_is_refused():
    scan = RingScan(SOURCES)
    readouts = scan.readouts()
    for readout in readouts:
        readout.trajectory[:, 0] *= np.linspace(1, 2, len(readout.trajectory), dtype=np.float32)
    with pytest.raises(DataError, match="does not repeat after"):
        sort(scan, readouts)


def test_more_rings_than_a_counter_can_number_are_refused():
    scan = RingScan(SOURCES)
    header = parse_header(scan.header())
    (encoding,) = header.encodings
    limits = {**encoding.limits, "kspace_encode_step_1": Limit(0, 10**12, 0)}
    header = replace(header, encodings=(replace(encoding, limits=limits),))
    protocol = replace(read_protocol(header), samples_per_lap=(40,), temporal_interleaves=(1,))
    with pytest.raises(DataError, match="maximum 1000000000000, but its counter ends at 65535"):
        list(sort_readouts(scan.readouts(), protocol, Warnings(), header=header))


@pytest.mark.parametrize(
    ("memory", "partitions", "sentence"),
    [
        (1 << 16, 1, "matrixSize .* GB, more than this machine's memory"),
        (1 << 60, 10**9, "more than 16777216 readouts"),
    ],
)
def test_rings_that_do_not_fit_into_memory_are_refused_before_anything_is_allocated(
    monkeypatch, memory, partitions, sentence
):
    scan = RingScan(SOURCES)
    header = parse_header(scan.header())
    protocol = read_protocol(header)
    matrix = (*protocol.geometry.matrix[:2], partitions)
    protocol = replace(protocol, geometry=replace(protocol.geometry, matrix=matrix))
    monkeypatch.setattr("mrsi_gadgets.mrd.sizes.physical_memory", lambda: memory)
    with pytest.raises(DataError, match=sentence):
        list(sort_readouts(scan.readouts(), protocol, Warnings(), header=header))
