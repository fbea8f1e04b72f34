"""Spiral readouts, the trajectory store and what laps refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from csi_scans import Warnings, csi_protocol, make_readout, set_counter

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.trajectories import read_trajectory, trajectory_store
from mrsi_gadgets.mrd.header import Limit, parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts

FREQUENCY, DECAY, AMPLITUDE = -140.0, 9.0, 0.8 - 0.3j
PLACE = np.array([0.043, -0.021, 0.03])


@dataclass
class SpiralScan:
    """Arms of different lengths, walked out and back; one line at one place."""

    matrix: tuple[int, int, int] = (10, 8, 2)
    fov_mm: tuple[float, float, float] = (240.0, 200.0, 120.0)
    laps: tuple[int, ...] = (32, 40, 48)
    used: tuple[int, ...] = (22, 30, 36)
    interleaves: tuple[int, ...] = (2, 1, 2)
    n_times: int = 12
    dwell_us: float = 960.0
    delay_us: float = 900.0
    units: str = "1/m"
    sign: int = 1
    identifier: str = ""
    chunk: int = 10_000

    def xml(self, **changes) -> str:
        axes = {"kx": "trajectory", "ky": "trajectory", "kz": "kspace_encode_step_2", "t": "readout"}
        sent = not self.identifier
        protocol = csi_protocol(
            matrix=self.matrix, encoding="spiral", axes=axes, dwell_s=self.dwell_us * 1e-6, n_times=self.n_times,
            acquisition_delay_s=self.delay_us * 1e-6, water_reference="none", samples_per_lap=self.laps,
            samples_used=self.used, temporal_interleaves=self.interleaves, trajectory_id=self.identifier,
            trajectory_units=self.units if sent else "", trajectory_columns=("kx", "ky") if sent else (),
            kspace_sign=(self.sign,) * 3,
        )  # fmt: skip
        protocol = replace(protocol, **changes)
        protocol = replace(protocol, geometry=replace(protocol.geometry, fov_mm=self.fov_mm))
        limits = {
            "kspace_encode_step_1": Limit(0, len(self.laps) - 1, 0),
            "kspace_encode_step_2": Limit(0, self.matrix[2] - 1, self.matrix[2] // 2),
        }
        if self.chunk >= max(self.laps) * self.n_times:
            limits["segment"] = Limit(0, 0, 0)
        return header_xml(protocol, receiver_channels=2, limits=limits)

    def arm(self, index: int) -> np.ndarray:
        """(lap, 2) [1/m]: outwards on the used samples, back on the others."""
        lap, used = self.laps[index], self.used[index]
        out = np.linspace(0, 1, used)
        back = np.linspace(1, 0, lap - used + 1)[1:] if lap > used else np.zeros(0)
        radius = np.concatenate([out, back]) * 20.0
        angle = 2 * np.pi * (2 * np.concatenate([out, 3 - 2 * back]) + index / len(self.laps))
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def own_us(self, index: int) -> float:
        return self.dwell_us * self.interleaves[index] / self.laps[index]

    def signal(self, k: np.ndarray, t_s: np.ndarray, sign: int = 1) -> np.ndarray:
        fid = AMPLITUDE * np.exp((2j * np.pi * FREQUENCY - DECAY) * t_s)
        return fid * np.exp(-2j * np.pi * sign * (k @ PLACE))

    def readouts(self):
        found = []
        for partition, index in np.ndindex(self.matrix[2], len(self.laps)):
            lap, interleaves = self.laps[index], self.interleaves[index]
            length = lap * (self.n_times // interleaves)
            plane = np.tile(self.arm(index), (self.n_times // interleaves, 1))
            kz = np.full(length, (partition - self.matrix[2] // 2) / (self.fov_mm[2] * 1e-3))
            k = np.column_stack([plane, kz])
            for interleaf in range(interleaves):
                t = self.delay_us + interleaf * self.dwell_us + self.own_us(index) * np.arange(length)
                samples = self.signal(k, t * 1e-6, self.sign)
                for chunk, first in enumerate(range(0, length, self.chunk)):
                    part = slice(first, first + self.chunk)
                    both = np.stack([samples[part], 2 * samples[part]])
                    readout = make_readout(both, len(found), sample_time_us=self.own_us(index))
                    for name, value in (("kspace_encode_step_1", index), ("kspace_encode_step_2", partition),
                                        ("user_0", interleaf), ("segment", chunk)):  # fmt: skip
                        set_counter(readout.head, name, value)
                    if not self.identifier:
                        fov = np.array(self.fov_mm[:2]) * 1e-3
                        scale = {"1/m": 1.0, "1/FOV": fov, "half": fov / np.array(self.matrix[:2])}[self.units]
                        readout.trajectory = (plane[part] * scale).astype(np.float32)
                        readout.head["trajectory_dimensions"] = 2
                    found.append(readout)
        return found

    def store(self, folder, name: str = "", **changes) -> None:
        """Write the arms as an entry of the store, padded to the longest."""
        k = np.zeros((len(self.laps), max(self.laps), 2))
        for index, lap in enumerate(self.laps):
            k[index, :lap] = self.arm(index)
        arrays = {"k": k, "units": "1/m", "sample_time_us": [self.own_us(i) for i in range(len(self.laps))]}
        np.savez(folder / f"{name or self.identifier}.npz", **(arrays | changes))


def sort(scan: SpiralScan, readouts=None, *, store=None, xml=None):
    warnings = Warnings()
    header = parse_header(xml or scan.xml())
    protocol = read_protocol(header, warn=warnings.warn)
    data = scan.readouts() if readouts is None else readouts
    lookup = trajectory_store(store)
    return list(sort_readouts(data, protocol, warnings, header, trajectories=lookup)), warnings.said


def check_every_sample(scan: SpiralScan, kt) -> None:
    """k, t and samples against the formulae, arm by arm."""
    assert kt.samples.shape == (2, 2 * sum(scan.used), scan.n_times)
    assert kt.grid is None
    assert kt.density is None
    point = 0
    for partition in range(scan.matrix[2]):
        for index, used in enumerate(scan.used):
            points = slice(point, point + used)
            point += used
            kz = (partition - scan.matrix[2] // 2) / (scan.fov_mm[2] * 1e-3)
            k = np.column_stack([scan.arm(index)[:used], np.full(used, kz)]) * scan.sign
            np.testing.assert_allclose(kt.k[points], k, atol=3e-6)
            t = scan.delay_us + scan.dwell_us * np.arange(scan.n_times) + scan.own_us(index) * np.arange(used)[:, None]
            np.testing.assert_allclose(kt.t[points] * 1e6, t, atol=1e-6)
            np.testing.assert_allclose(kt.samples[0, points], scan.signal(k[:, None], t * 1e-6), atol=2e-6)
            np.testing.assert_allclose(kt.count[points], scan.own_us(index) / 24.0)
    np.testing.assert_allclose(kt.samples[1], 2 * kt.samples[0])
    assert kt.sample_time_s == pytest.approx(24e-6)


@pytest.mark.parametrize("changes", [{}, {"units": "1/FOV"}, {"units": "half"}, {"sign": -1}], ids=str)
def test_samples_that_are_used_are_points_and_their_laps_the_times(changes):
    scan = SpiralScan(**changes)
    (kt,), warnings = sort(scan)
    assert warnings == []
    check_every_sample(scan, kt)


def test_chunks_may_end_within_a_lap_or_on_the_way_back():
    scan = SpiralScan(laps=(40, 40, 40), used=(30, 30, 30), interleaves=(2, 1, 2), chunk=75)
    (kt,), _ = sort(scan)
    np.testing.assert_allclose(kt.samples[0], scan.signal(kt.k[:, None], kt.t), atol=2e-6)
    assert kt.fully_sampled


def test_the_last_way_back_need_not_come():
    scan = SpiralScan()
    readouts = scan.readouts()
    for readout in readouts:
        lap = scan.laps[int(readout.head["idx"]["kspace_encode_step_1"])]
        used = scan.used[int(readout.head["idx"]["kspace_encode_step_1"])]
        readout.data = np.ascontiguousarray(readout.data[:, : used - lap])
        readout.trajectory = readout.trajectory[: used - lap]
        readout.head["number_of_samples"] -= lap - used
    (kt,), _ = sort(scan, readouts)
    check_every_sample(scan, kt)


def test_without_a_number_of_used_samples_whole_laps_are_data():
    scan = SpiralScan(used=(32, 40, 48))
    (kt,), _ = sort(scan, xml=scan.xml(samples_used=()))
    check_every_sample(scan, kt)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_trajectory_is_found_by_its_identifier(tmp_path, sign):
    scan = SpiralScan(identifier="three_arms", sign=sign)
    scan.store(tmp_path)
    (kt,), warnings = sort(scan, store=tmp_path)
    assert warnings == []
    check_every_sample(scan, kt)


def test_units_and_third_column_of_the_store_are_those_of_the_file(tmp_path):
    scan = SpiralScan(identifier="three_arms", matrix=(10, 8, 1), fov_mm=(240.0, 200.0, 120.0))
    fov = np.array([0.24, 0.2])
    k = np.zeros((3, 48, 3))
    for index, lap in enumerate(scan.laps):
        k[index, :lap, :2] = scan.arm(index) * fov
        k[index, :lap, 2] = 0.5
    scan.store(tmp_path, k=k, units="1/FOV")
    (kt,), _ = sort(scan, store=tmp_path)
    np.testing.assert_allclose(kt.k[:22, :2], scan.arm(0)[:22], atol=1e-9)
    np.testing.assert_allclose(kt.k[:, 2], 0.5 / 0.12)


def test_a_trajectory_that_is_sent_comes_before_the_store():
    scan = SpiralScan()
    (kt,), warnings = sort(scan, xml=scan.xml(trajectory_id="other"))
    check_every_sample(scan, kt)
    assert warnings == [
        "the spiral arm readouts bring their trajectory; entry 'other' of the trajectory store was not used"
    ]


STORED = SpiralScan(identifier="arms")
WRONG_ENTRIES = {
    "too short": ({"k": np.ones((3, 35, 2))}, "has 35 samples but a lap of spiral arm 2 has 36"),
    "too few arms": ({"k": np.ones((2, 48, 2)), "sample_time_us": 60.0}, "has 2 readouts but there are 3 spiral arms"),
    "another dwell": ({"sample_time_us": 24.0}, "has sample_time_us 24 for spiral arm 0 but its readouts have 60"),
    "wrong units": ({"units": "half"}, "reaches 833.3/m but 10 x 8 voxels need 20.83/m; correct the units"),
    "unknown units": ({"units": "rad/m"}, r"units of the trajectory arms.npz is 'rad/m'; it must be one of 1/m"),
    "no shape": ({"k": np.ones((48, 2))}, r"is float64 \(48, 2\); it must be \(readout, sample, 2 or 3\)"),
    "not finite": ({"k": np.full((3, 48, 2), np.nan)}, "holds values that are not finite"),
    "wrong dwells": ({"sample_time_us": [1.0, 2.0]}, r"sample_time_us of the trajectory arms.npz is float64 \(2,\)"),
    "zero dwell": ({"sample_time_us": 0.0}, "it must be a positive number"),
}


@pytest.mark.parametrize("case", WRONG_ENTRIES)
def test_an_entry_that_is_not_of_these_readouts_is_refused(case, tmp_path):
    changes, sentence = WRONG_ENTRIES[case]
    STORED.store(tmp_path, **changes)
    with pytest.raises(DataError, match=sentence):
        sort(STORED, store=tmp_path)


def test_a_missing_store_entry_or_array_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="there is none; give its folder with --trajectories"):
        sort(STORED)
    with pytest.raises(DataError, match="has no entry 'arms'; add arms.npz"):
        sort(STORED, store=tmp_path)
    np.savez(tmp_path / "arms.npz", k=np.ones((3, 48, 2)))
    with pytest.raises(DataError, match=r"arms.npz lacks units, sample_time_us"):
        sort(STORED, store=tmp_path)
    (tmp_path / "arms.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read"):
        sort(STORED, store=tmp_path)
    scan = replace(STORED, identifier="../arms")
    with pytest.raises(DataError, match="is no file name"):
        sort(scan, store=tmp_path)
    scan = SpiralScan()
    readouts = scan.readouts()
    for readout in readouts:
        readout.trajectory = None
    with pytest.raises(DataError, match="came without a trajectory.*or name one of the trajectory store"):
        sort(scan, readouts)


def test_one_dwell_serves_all_readouts_of_an_entry(tmp_path):
    np.savez(tmp_path / "a.npz", k=np.ones((3, 5, 2), np.float32), units="1/FOV", sample_time_us=8)
    stored = read_trajectory(tmp_path / "a.npz")
    assert stored.sample_time_us.tolist() == [8.0] * 3
    assert (stored.name, stored.units, stored.k.dtype) == ("a", "1/FOV", np.float64)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples_used": (22, 30, 50)}, "spiral arm 2 uses 50 of 48 samples per lap"),
        ({"samples_used": (22, 30)}, "has 3 values and mrsi_temporal_interleaves 3 and mrsi_samples_used 2"),
        ({"temporal_interleaves": (5,)}, "5 temporal interleaves, which do not make 12"),
    ],
)
def test_a_profile_that_does_not_describe_the_arms_is_refused(changes, sentence):
    with pytest.raises(DataError, match=sentence):
        sort(SpiralScan(), xml=SpiralScan().xml(**changes))


def test_a_sent_trajectory_with_wrong_length_or_units_is_refused():
    scan = SpiralScan()
    readouts = scan.readouts()
    readouts[2].trajectory = readouts[2].trajectory[:-3]
    with pytest.raises(DataError, match="trajectory of readout 2 has 477 entries for 480 samples"):
        sort(scan, readouts)
    with pytest.raises(DataError, match=r"spiral arms reaches 4.8\d*/m but 10 x 8 voxels need 20.83/m"):
        sort(replace(scan, units="1/FOV"), xml=scan.xml(trajectory_units="1/m"))


def test_a_missing_arm_is_told_and_keeps_its_points():
    scan = SpiralScan()
    kept = [r for r in scan.readouts() if r.head["idx"]["kspace_encode_step_1"] != 1]
    (kt,), warnings = sort(scan, kept)
    assert np.flatnonzero(kt.count == 0).tolist() == [*range(22, 52), *range(110, 140)]
    assert warnings == ["2 of 10 k-space samples of metabolite were not acquired and are zero"]
