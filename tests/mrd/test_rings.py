from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import Limit, parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.rings import ring_areas, ring_points
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
    assert kt.samples.shape == (1, len(scan.laps), max(scan.laps) * scan.n_times)
    expected = replace(scan, kspace_sign=1, freq_sign=1)
    for ring, lap in enumerate(scan.laps):
        used = slice(0, lap * scan.n_times)
        model = expected.signal(kt.k[ring, used, :2], kt.t[ring, used])
        model = np.conj(model_of_conjugate(scan, kt, ring, used)) if scan.freq_sign < 0 else model
        np.testing.assert_allclose(kt.samples[0, ring, used], model, atol=3e-4)
        assert not kt.samples[0, ring, used.stop :].any()


def model_of_conjugate(scan: RingScan, kt, ring: int, used: slice) -> np.ndarray:
    """A source's amplitude is conjugated with the samples: compare with the conjugate amplitude."""
    sources = [replace(s, amplitude=np.conj(s.amplitude)) for s in scan.sources]
    conjugate = replace(scan, sources=sources, kspace_sign=1, freq_sign=1)
    return np.conj(conjugate.signal(kt.k[ring, used, :2], kt.t[ring, used]))


def test_interleaves_start_one_dwell_apart_and_slow_adcs_take_their_time():
    scan = RingScan(SOURCES)
    (kt,) = sort(scan)
    walk = 60 * 64 // 2
    dwell = scan.dwell_us * 1e-6
    assert kt.t[0, 0] == pytest.approx(1.3e-3)
    assert np.diff(kt.t[0, :3]) == pytest.approx(dwell / 40)
    assert np.diff(kt.t[5, :3]) == pytest.approx(2 * dwell / 60)
    assert kt.t[5, walk] - kt.t[5, 0] == pytest.approx(dwell)
    assert kt.sample_time_s == pytest.approx(dwell / 40)


def test_density_is_the_area_of_k_space_in_cells_of_the_grid():
    scan = RingScan(SOURCES)
    (kt,) = sort(scan)
    circle = np.pi * (len(scan.laps) / (max(scan.fov_mm[:2]) * 1e-3)) ** 2 * np.prod(scan.fov_mm[:2]) * 1e-6
    assert kt.density.sum() / scan.n_times == pytest.approx(circle, rel=1e-6)


def test_areas_of_rings_grow_with_their_radius_and_sum_to_the_disc():
    areas = ring_areas(np.array([2.5, 0.5, 1.5]))
    np.testing.assert_allclose(areas, np.pi * np.array([5.0, 1.0, 3.0]))
    np.testing.assert_allclose(ring_areas(np.array([0.0, 1.0])), np.pi * np.array([0.25, 2.0]))
    np.testing.assert_allclose(ring_areas(np.array([0.5])), np.pi)
    with pytest.raises(DataError, match="same radius"):
        ring_areas(np.array([1.0, 1.0]))


def test_a_ring_is_walked_clockwise_from_its_first_point():
    path = ring_points(2.0 + 0j, 5, 4, clockwise=True)
    np.testing.assert_allclose(path, [[2, 0], [0, -2], [-2, 0], [0, 2], [2, 0]], atol=1e-12)
    np.testing.assert_allclose(ring_points(2.0 + 0j, 2, 4, clockwise=False)[1], [0, 2], atol=1e-12)


def test_averages_are_averaged_and_missing_chunks_are_said():
    scan = RingScan(SOURCES)
    readouts = scan.readouts()
    dropped = [
        r for r in readouts if not (r.head["idx"]["kspace_encode_step_1"] == 2 and r.head["idx"]["segment"] == 1)
    ]
    warnings = Warnings()
    (kt,) = sort(scan, dropped, warnings)
    assert kt.count.tolist() == [1, 1, 0, 1, 1, 1]
    assert any("were not acquired" in w for w in warnings)


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
