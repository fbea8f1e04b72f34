"""Readouts that walk one path of k-space lap after lap while the FID decays: what rings and spirals share.

A path (a ring, an interleaf of a spiral) is walked again and again; each sample of a lap is a point of k-space, the
laps are its times. Temporal interleaves b = 0 ... T-1 walk the same path again, each one spectral dwell later, so that
its points are sampled T times more often than one walk allows: the FID index of a sample is lap * T + b. Long walks
arrive in chunks. Counters by default: path = kspace_encode_step_1, partition = kspace_encode_step_2, chunk = segment,
temporal interleaf = user_0 (axes path, kz, chunk and interleaf of the profile); laps, interleaves and chunks may differ
from path to path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.trajectories import StoredTrajectory
from mrsi_gadgets.mrd.header import LIMIT_OF_COUNTER, Limit, MrdHeader
from mrsi_gadgets.mrd.keys import DEFAULT_LAP_AXES
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, Place, ReadoutHead, Surroundings, trajectory_scale
from mrsi_gadgets.mrd.sizes import check_size
from mrsi_gadgets.stream.messages import Acquisition

_AXES = ("kz", "path", "interleaf", "chunk")
"""Axes of the profile in the order of a slot's numbers."""
_MOST_PATHS = 1 << 16
"""A counter has 16 bits."""
_SAME_DWELL = 1e-3
_NARROWEST, _WIDEST = 0.4, 2.0
"""What a trajectory may reach in units of the matrix's own n / (2 FOV); beyond, its units are wrong."""
_SAME_PLACE = 1e-3
"""How far apart, relative to the largest k of the path, two laps may pass what is taken for one point."""


@dataclass(frozen=True)
class Path:
    """How one path is walked."""

    lap: int
    """Samples from one start of the path to the next."""
    used: int
    """Samples of each lap that are data; the rest is the way back."""
    interleaves: int
    """Temporal interleaves."""

    def walk(self, n_times: int) -> int:
        """Return the samples of one interleaf's walk that are needed for an FID of `n_times` points."""
        return self.lap * (n_times // self.interleaves - 1) + self.used


class LapLayout:
    """Places readouts of laps (see `ReadoutLayout`).

    k comes from the trajectories that are sent with the readouts, else from the trajectory store.

    Parameters
    ----------
    protocol
        Samples per lap and temporal interleaves, one value or one per path.
    around
        The header's encodingLimits say how many paths there are where the protocol holds no list; the trajectory store
        knows k where the readouts do not.
    first
        First readout of the role: its length is that of all chunks but the last of a walk (where encodingLimits.segment
        is 0 to 0 there are no chunks, and walks may differ in length).

    Raises
    ------
    DataError
        A key that laps need is missing or contradicts another, there is no trajectory or not the one of these readouts,
        or a frame does not fit into this machine's memory.
    """

    grid = None
    path_name = "path"
    """What a path of this encoding is called in messages."""

    def __init__(self, protocol: Protocol, around: Surroundings, first: Acquisition) -> None:
        self.protocol = protocol
        self._sources = [_source(protocol, axis) for axis in _AXES]
        # a counter that is not there is always 0, as one that never counts
        self._counters = [COUNTER_INDEX.get(source, -1) for source in self._sources]
        self.used_counters = frozenset(self._sources) - {"none"}
        self._space = int(first.head["encoding_space_ref"])
        self.paths = _paths(protocol, self._limits(around.header), self.path_name)
        self.n_paths = len(self.paths)
        self.n_partitions = protocol.geometry.matrix[2]
        self._stored: np.ndarray | None = None
        if first.trajectory is not None:
            _check_columns(protocol, int(first.trajectory.shape[1]))
            if protocol.trajectory_id:
                around.warn(
                    f"the {self.path_name} readouts bring their trajectory; entry '{protocol.trajectory_id}' of the "
                    "trajectory store was not used"
                )
        elif protocol.trajectory_id:
            self._stored = self._from_store(around.trajectories(protocol.trajectory_id))
        else:
            raise DataError(
                f"{self.path_name} readouts came without a trajectory; send kx,ky with each readout "
                "(mrsi_trajectory_columns and mrsi_trajectory_units say what they are), or name one of the trajectory "
                "store in mrsi_trajectory_id"
            )
        self._chunk = self._chunk_length(self._limits(around.header), first)
        self._first_point = np.cumsum([0, *(path.used for path in self.paths)])
        n_points = self.n_partitions * int(self._first_point[-1])
        # sizes are compared with the machine before anything is made of them
        slots = self.n_partitions * sum(path.interleaves * self._n_chunks(path) for path in self.paths)
        matrix = protocol.geometry.matrix
        check_size(matrix, slots, 1, 1)
        # t is kept beside the samples of all coils
        check_size(matrix, n_points, protocol.n_times, first.data.shape[0], beside=1)
        self._slots = [
            (partition, path, interleaf, chunk)
            for partition in range(self.n_partitions)
            for path, walked in enumerate(self.paths)
            for interleaf in range(walked.interleaves)
            for chunk in range(self._n_chunks(walked))
        ]
        self._numbers = {slot: number for number, slot in enumerate(self._slots)}
        self.n_slots = len(self._slots)
        self.shape = (n_points, protocol.n_times)
        # the shortest dwell is the reference for the noise; slower paths have less of it, which `shares` tells
        self.sample_time_s = min(self._own_dwell(path) for path in self.paths)
        ratios = [np.full(path.used, self._own_dwell(path) / self.sample_time_s) for path in self.paths]
        self.shares = np.tile(np.concatenate(ratios), self.n_partitions)
        self._k = np.zeros((n_points, 3))
        self._t = self._plan_of_times()
        self._seen = np.zeros(self.n_slots, dtype=bool)
        self._placed = np.zeros(n_points, dtype=bool)
        self._kz_sent = self._stored.shape[2] == 3 if self._stored is not None else "kz" in protocol.trajectory_columns

    def _from_store(self, stored: StoredTrajectory) -> np.ndarray:
        """Return k (path, sample, 2 or 3) [1/m] of an entry of the store that fits these paths."""
        paths, samples, _ = stored.k.shape
        if paths != self.n_paths:
            raise DataError(
                f"the trajectory {stored.name} has {paths} readouts but there are {self.n_paths} {self.path_name}s; "
                "correct mrsi_trajectory_id, mrsi_samples_per_lap or encodingLimits"
            )
        for number, path in enumerate(self.paths):
            expected = self._own_dwell(path) * 1e6
            if samples < path.used:
                raise DataError(
                    f"the trajectory {stored.name} has {samples} samples but a lap of {self.path_name} {number} has "
                    f"{path.used}; correct mrsi_trajectory_id or mrsi_samples_per_lap"
                )
            if abs(stored.sample_time_us[number] - expected) > _SAME_DWELL * expected:
                raise DataError(
                    f"the trajectory {stored.name} has sample_time_us {stored.sample_time_us[number]:g} for "
                    f"{self.path_name} {number} but its readouts have {expected:g}; correct mrsi_trajectory_id, "
                    "mrsi_samples_per_lap or mrsi_dwell_us"
                )
        columns = stored.k.shape[2]
        return np.asarray(stored.k * trajectory_scale(self.protocol.geometry, stored.units)[:columns])

    def _plan_of_times(self) -> np.ndarray:
        """Return t (point, t) [s] of walks at the ADC's constant dwell."""
        late = [self._own_dwell(path) * np.arange(path.used) for path in self.paths]
        return np.tile(np.concatenate(late), self.n_partitions)[:, None] + self.protocol.times_s

    def _own_dwell(self, path: Path) -> float:
        """Return the ADC dwell of a path [s]."""
        return self.protocol.dwell_s * path.interleaves / path.lap

    def _n_chunks(self, path: Path) -> int:
        return -(-path.walk(self.protocol.n_times) // self._chunk)

    def _limits(self, header: MrdHeader | None) -> Mapping[str, Limit]:
        """Return the ranges of counters in this role's encoding space."""
        encodings = header.encodings if header is not None else ()
        return encodings[self._space].limits if self._space < len(encodings) else {}

    def _chunk_length(self, limits: Mapping[str, Limit], first: Acquisition) -> int:
        """Return how many samples a chunk has: those of the first readout, or whole walks where the header says so."""
        limit = limits.get(self._sources[3])
        if self._sources[3] == "none" or (limit is not None and limit.maximum == 0):
            return max(path.walk(self.protocol.n_times) for path in self.paths)
        kept = _kept(first.head)
        if kept.stop <= kept.start:
            raise DataError(
                f"the first {self.path_name} readout has no samples left after discard_pre and discard_post"
            )
        return kept.stop - kept.start

    def slot(self, head: ReadoutHead) -> int:
        """Return the slot of a readout; see `ReadoutLayout`."""
        place = tuple(head.counters[index] if index >= 0 else 0 for index in self._counters)
        number = self._numbers.get(place)  # type: ignore[arg-type]
        if number is not None:
            return number
        partition, index, interleaf, chunk = place
        name = self.path_name
        if index >= self.n_paths or partition >= self.n_partitions:
            raise DataError(
                f"readout {head.scan_counter} is of {name} {index}, partition {partition} but there are "
                f"{self.n_paths} {name}s and {self.n_partitions} partitions; correct the counters or "
                "mrsi_samples_per_lap"
            )
        path = self.paths[index]
        if interleaf >= path.interleaves:
            raise DataError(
                f"readout {head.scan_counter} is of temporal interleaf {interleaf} of {name} {index}, which has "
                f"{path.interleaves}; correct mrsi_temporal_interleaves or counter {self._sources[2]}"
            )
        raise DataError(
            f"readout {head.scan_counter} is chunk {chunk} of {name} {index}, but "
            f"{path.walk(self.protocol.n_times)} samples of mrsi_spectral_points {self.protocol.n_times} need fewer "
            f"chunks of {self._chunk} samples; correct mrsi_spectral_points or counter {self._sources[3]}"
        )

    def target(self, slot: int) -> tuple[Place, Place]:
        """Return (points, times) of a slot's samples, without the ways back."""
        partition, index, interleaf, _ = self._slots[slot]
        laps = self._whole_laps(slot)
        if laps is None:
            return self._indices(slot)
        path = self.paths[index]
        times = slice(laps.start * path.interleaves + interleaf, laps.stop * path.interleaves, path.interleaves)
        return self.points_of(partition, index), times

    def _whole_laps(self, slot: int) -> slice | None:
        """Return the laps of a slot that begins and ends with a lap, None for others."""
        _, index, _, chunk = self._slots[slot]
        path, start = self.paths[index], chunk * self._chunk
        end = start + self._range(slot).size
        # a last lap without its way back ends with its data
        whole = start % path.lap == 0 and end % path.lap in (0, path.used)
        return slice(start // path.lap, -(-end // path.lap)) if whole else None

    def _indices(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (points, times) of each of a slot's samples, in the order of acquisition."""
        partition, index, interleaf, _ = self._slots[slot]
        path = self.paths[index]
        lap, place = np.divmod(self._range(slot), path.lap)
        data = place < path.used
        return self.points_of(partition, index).start + place[data], lap[data] * path.interleaves + interleaf

    def _range(self, slot: int) -> np.ndarray:
        """Return the numbers of a slot's samples, counted from the start of its walk."""
        _, index, _, chunk = self._slots[slot]
        walk = self.paths[index].walk(self.protocol.n_times)
        return np.arange(chunk * self._chunk, min((chunk + 1) * self._chunk, walk))

    def prepare(self, slot: int, head: ReadoutHead, readout: Acquisition) -> np.ndarray:
        """Return the slot's samples and remember where they lie; see `ReadoutLayout`."""
        numbers = self._range(slot)
        kept = _kept(readout.head, first=self._slots[slot][3] == 0)
        length = kept.stop - kept.start
        if length < numbers.size:
            raise DataError(
                f"readout {head.scan_counter} has {max(length, 0)} samples but {numbers.size} are needed; correct "
                "mrsi_spectral_points or send the whole readout"
            )
        # only a walk's last chunk may be longer than what is needed: the rest of another would be missing in between
        if length > numbers.size and (slot + 1 < self.n_slots and self._slots[slot + 1][:3] == self._slots[slot][:3]):
            raise DataError(
                f"readout {head.scan_counter} has {length} samples but the first chunk that came has {self._chunk}; "
                "send chunks of one length (or walks in one readout, with encodingLimits.segment 0 to 0)"
            )
        self._check_dwell(slot, head)
        path = self.paths[self._slots[slot][1]]
        used = numbers % path.lap < path.used
        if not self._seen[slot]:
            self._place(slot, head, readout, kept, used)
            self._seen[slot] = True
        elif self._stored is None:
            self._compare(slot, head, readout, kept, used)
        samples = readout.data[:, kept.start : kept.start + numbers.size]
        if path.used < path.lap:
            samples = samples[:, used]
        if self._whole_laps(slot) is not None:
            samples = np.swapaxes(samples.reshape(samples.shape[0], -1, path.used), 1, 2)
        return np.conj(samples) if self.protocol.freq_sign < 0 else samples

    def _check_dwell(self, slot: int, head: ReadoutHead) -> None:
        _, index, _, _ = self._slots[slot]
        path = self.paths[index]
        expected = self._own_dwell(path) * 1e6
        if head.sample_time_us and abs(head.sample_time_us - expected) > _SAME_DWELL * expected:
            raise DataError(
                f"readout {head.scan_counter} of {self.path_name} {index} has sample_time_us "
                f"{head.sample_time_us:g}, but {path.lap} samples per lap and {path.interleaves} temporal interleaves "
                f"give {expected:g} us at a spectral dwell of {self.protocol.dwell_s * 1e6:g} us; correct "
                "mrsi_samples_per_lap, mrsi_temporal_interleaves or mrsi_dwell_us"
            )

    def _k_of(
        self, slot: int, head: ReadoutHead, readout: Acquisition, kept: slice, used: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return k (sample, 3) [1/m] along the image's axes and, where it is sent, t (sample,) [s] of the walk."""
        partition, index, _, _ = self._slots[slot]
        if self._stored is not None:
            place = self._range(slot)[used] % self.paths[index].lap
            k, own = self._stored[index, place], None
            if not self._kz_sent:
                k = np.concatenate([k, np.zeros((len(k), 1))], axis=1)
        else:
            k, own = self._sent(head, readout, kept, used)
        if not self._kz_sent and self.n_partitions > 1:
            centre = self.protocol.k_centre.get("kz", self.n_partitions // 2)
            k[:, 2] = (partition - centre) / (self.protocol.geometry.fov_mm[2] * 1e-3)
        # conjugated samples (freq_sign -1) have the opposite sign in space as well
        return k * (np.array(self.protocol.kspace_sign) * self.protocol.freq_sign), own

    def _compare(self, slot: int, head: ReadoutHead, readout: Acquisition, kept: slice, used: np.ndarray) -> None:
        """Refuse a readout that walks elsewhere than the one before it in the same place (another average or frame)."""
        k, _ = self._k_of(slot, head, readout, kept, used)
        points, _ = self._indices(slot)
        size = max(float(np.abs(k[:, :2]).max(initial=0.0)), 1e-9)
        if np.abs(self._k[points] - k).max(initial=0.0) > _SAME_PLACE * size:
            raise DataError(
                f"the trajectory of readout {head.scan_counter} differs from that of the readouts of {self.path_name} "
                f"{self._slots[slot][1]} before it; give each path a counter of its own, or correct it"
            )

    def _place(self, slot: int, head: ReadoutHead, readout: Acquisition, kept: slice, used: np.ndarray) -> None:
        """Write k (and t, where it is sent) of a slot's samples."""
        _, index, interleaf, _ = self._slots[slot]
        points, times = self._indices(slot)
        k, own = self._k_of(slot, head, readout, kept, used)
        new = ~self._placed[points]
        self._k[points[new]] = k[new]
        self._placed[points] = True
        size = max(float(np.abs(k[:, :2]).max(initial=0.0)), 1e-9)
        if np.abs(self._k[points] - k).max(initial=0.0) > _SAME_PLACE * size:
            raise DataError(
                f"the trajectory of {self.path_name} {index} does not repeat after {self.paths[index].lap} samples "
                f"(readout {head.scan_counter}); correct mrsi_samples_per_lap or the trajectory"
            )
        if own is not None:
            self._t[points, times] = self.protocol.acquisition_delay_s + interleaf * self.protocol.dwell_s + own

    def _sent(
        self, head: ReadoutHead, readout: Acquisition, kept: slice, used: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return k (sample, 3) [1/m] and, where it is sent, t (sample,) [s] since the start of the walk."""
        if readout.trajectory is None:
            raise DataError(
                f"readout {head.scan_counter} came without a trajectory although others have one; send kx,ky"
            )
        if len(readout.trajectory) != head.n_samples:
            raise DataError(
                f"the trajectory of readout {head.scan_counter} has {len(readout.trajectory)} entries for "
                f"{head.n_samples} samples; send one for each sample"
            )
        sent = np.asarray(readout.trajectory, dtype=float)[kept.start : kept.start + used.size][used]
        if not np.isfinite(sent).all():
            raise DataError(f"the trajectory of readout {head.scan_counter} holds values that are not finite")
        column = {name: sent[:, i] for i, name in enumerate(self.protocol.trajectory_columns)}
        k = np.stack([column["kx"], column["ky"], column.get("kz", np.zeros(len(sent)))], axis=1)
        k = k * trajectory_scale(self.protocol.geometry, self.protocol.trajectory_units)
        return k, column["t_us"] * 1e-6 if "t_us" in column else None

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return k [1/m] (0 where a path never came), t [s] and density of all points; see `ReadoutLayout`.

        Raises
        ------
        DataError
            k is far from what the matrix needs, so that its units must be wrong.
        """
        self._check_extent()
        return self._k, self._t, None

    def _check_extent(self) -> None:
        """Compare the largest k in the plane with that of the matrix."""
        matrix, fov = self.protocol.geometry.matrix[:2], self.protocol.geometry.fov_mm[:2]
        nominal = max(n / (2e-3 * f) for n, f in zip(matrix, fov, strict=True))
        reached = float(np.hypot(self._k[:, 0], self._k[:, 1]).max(initial=0.0))
        if not self._placed.all() and reached < _NARROWEST * nominal:
            return
        if not _NARROWEST * nominal <= reached <= _WIDEST * nominal:
            raise DataError(
                f"the trajectory of the {self.path_name}s reaches {reached:.4g}/m but {matrix[0]} x {matrix[1]} voxels "
                f"need {nominal:.4g}/m; correct the units of the trajectory (mrsi_trajectory_units), or matrixSize and "
                "fieldOfView_mm"
            )

    def counts(self, slots: np.ndarray) -> np.ndarray:
        """Return how often each sample came, (point, t)."""
        count = np.zeros(self.shape, dtype=slots.dtype)
        for slot in np.flatnonzero(slots).tolist():
            points, times = self.target(slot)
            count[points, times] = slots[slot]
        return count

    def points_of(self, partition: int, path: int) -> slice:
        """Return the points of one path of one partition."""
        first = partition * int(self._first_point[-1])
        return slice(first + int(self._first_point[path]), first + int(self._first_point[path + 1]))


def _paths(protocol: Protocol, limits: Mapping[str, Limit], name: str) -> list[Path]:
    """Return how each path is walked."""
    laps, interleaves, used = protocol.samples_per_lap, protocol.temporal_interleaves or (1,), protocol.samples_used
    if not laps:
        raise DataError(f"{name}s need mrsi_samples_per_lap; give one value or a list with one per {name}")
    lists = {len(values) for values in (laps, interleaves, used) if len(values) > 1}
    if len(lists) > 1:
        given = f" and mrsi_samples_used {len(used)}" if used else ""
        raise DataError(
            f"mrsi_samples_per_lap has {len(laps)} values and mrsi_temporal_interleaves {len(interleaves)}{given}; "
            f"give one value or one per {name}"
        )
    count = lists.pop() if lists else _number_of_paths(limits, name, _source(protocol, "path"))
    laps, interleaves = (values * count if len(values) == 1 else values for values in (laps, interleaves))
    used = used * count if len(used) == 1 else used or laps
    paths = [Path(*numbers) for numbers in zip(laps, used, interleaves, strict=True)]
    for number, path in enumerate(paths):
        if path.lap < 1 or path.interleaves < 1 or protocol.n_times % path.interleaves:
            raise DataError(
                f"{name} {number} has {path.lap} samples per lap and {path.interleaves} temporal interleaves, which do "
                f"not make {protocol.n_times} spectral points; correct mrsi_samples_per_lap or "
                "mrsi_temporal_interleaves"
            )
        if not 1 <= path.used <= path.lap:
            raise DataError(
                f"{name} {number} uses {path.used} of {path.lap} samples per lap; correct mrsi_samples_used or "
                "mrsi_samples_per_lap"
            )
    return paths


def _number_of_paths(limits: Mapping[str, Limit], name: str, source: str) -> int:
    limit, limit_name = limits.get(source), LIMIT_OF_COUNTER.get(source, source)
    if limit is None:
        raise DataError(
            f"the number of {name}s is not known; give encodingLimits of {limit_name}, or one value of "
            f"mrsi_samples_per_lap per {name}"
        )
    if not 0 <= limit.maximum < _MOST_PATHS:
        raise DataError(
            f"encodingLimits.{limit_name} has the maximum {limit.maximum}, but its counter ends at "
            f"{_MOST_PATHS - 1}; correct it"
        )
    return int(limit.maximum) + 1


def _source(protocol: Protocol, axis: str) -> str:
    """Return the counter of an axis of laps, or ``none``."""
    source = protocol.axes.get(axis, DEFAULT_LAP_AXES.get(axis, "none"))
    if source not in COUNTER_INDEX and source != "none":
        raise DataError(f"mrsi_axis_{axis} is '{source}'; in {protocol.encoding} it must be a counter or none")
    return source


def _kept(head: np.void, *, first: bool = True) -> slice:
    """Return the samples of a readout that count; the first chunk of a walk begins at t = 0 (center_sample)."""
    start, end = int(head["discard_pre"]), int(head["number_of_samples"])
    if first and start < int(head["center_sample"]) < end:
        start = int(head["center_sample"])
    return slice(start, end - int(head["discard_post"]))


def _check_columns(protocol: Protocol, dimensions: int) -> None:
    columns = protocol.trajectory_columns
    if len(columns) != dimensions or not {"kx", "ky"} <= set(columns) <= {"kx", "ky", "kz", "t_us"}:
        raise DataError(
            f"mrsi_trajectory_columns is '{','.join(columns)}' but the readouts send {dimensions} columns; name each "
            "of them: kx, ky, and where they are sent kz, t_us"
        )
