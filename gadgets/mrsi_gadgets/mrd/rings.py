"""Concentric rings: where the samples of ring readouts lie in k-space and time.

A ring is walked around lap after lap while the FID decays. Temporal interleaves b = 0 ... T-1 walk the same ring again,
each one spectral dwell later, so that the points of a ring are sampled T times more often than one walk allows. Long
walks arrive in chunks (counter `segment`). Counters as in the profile: ring = kspace_encode_step_1, partition =
kspace_encode_step_2, interleaf = user_0; how many laps, interleaves and chunks there are may differ from ring to ring.

One shot of the data is one ring of one partition: the interleaves one after another, each in the order of acquisition.
`reconstruction.gridding` brings them to one FID per k-space point.
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import MrdHeader
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, ReadoutHead
from mrsi_gadgets.mrd.sizes import check_size
from mrsi_gadgets.stream.messages import Acquisition

RING, PARTITION, CHUNK, INTERLEAF = "kspace_encode_step_1", "kspace_encode_step_2", "segment", "user_0"
_MOST_RINGS = 1 << 16
"""A counter has 16 bits."""


class RingLayout:
    """Places ring readouts; k comes from the trajectories that are sent with them.

    Parameters
    ----------
    protocol
        Encoding ``rings`` with samples per lap and temporal interleaves, one value or one per ring.
    header
        Its encodingLimits say how many rings there are where the protocol holds no list.
    first
        First readout of the role: its length is that of all chunks but the last of a walk (where encodingLimits.segment
        is 0 to 0 there are no chunks, and walks may differ in length).

    Raises
    ------
    DataError
        A key that rings need is missing or contradicts another, no trajectory came with the readout, or a frame does
        not fit into this machine's memory.
    """

    grid = None
    used_counters = frozenset({RING, PARTITION, CHUNK, INTERLEAF})

    def __init__(self, protocol: Protocol, header: MrdHeader | None, first: Acquisition) -> None:
        self.protocol = protocol
        self.laps_of_ring = _per_ring(protocol, header)
        self.n_rings = len(self.laps_of_ring)
        self.n_partitions = protocol.geometry.matrix[2]
        if first.trajectory is None:
            raise DataError(
                "ring readouts came without a trajectory; send kx,ky with each readout (mrsi_trajectory_columns and "
                "mrsi_trajectory_units say what they are)"
            )
        _check_columns(protocol, int(first.trajectory.shape[1]))
        self._chunk = self._chunk_length(header, first)
        # the same sum as below, before anything is made of it
        slots = self.n_partitions * sum(t * -(-self._walk(lap, t) // self._chunk) for lap, t in self.laps_of_ring)
        samples = max(lap for lap, _ in self.laps_of_ring) * protocol.n_times
        matrix = protocol.geometry.matrix
        check_size(matrix, slots, 1, 1)
        # k (three numbers) and t are kept beside the samples of all coils
        check_size(matrix, self.n_partitions * self.n_rings, samples, first.data.shape[0], beside=4)
        self._slots = [
            (partition, ring, interleaf, chunk)
            for partition in range(self.n_partitions)
            for ring, (lap, interleaves) in enumerate(self.laps_of_ring)
            for interleaf in range(interleaves)
            for chunk in range(-(-self._walk(lap, interleaves) // self._chunk))
        ]
        self._numbers = {slot: number for number, slot in enumerate(self._slots)}
        self.n_slots = len(self._slots)
        self.shape = (self.n_partitions * self.n_rings, max(lap for lap, _ in self.laps_of_ring) * protocol.n_times)
        # the shortest dwell is the reference for the noise; slower rings have less of it, which `t` tells
        self.sample_time_s = min(protocol.dwell_s * t / lap for lap, t in self.laps_of_ring)
        self._k = np.zeros((*self.shape, 3))
        self._t = np.full(self.shape, protocol.acquisition_delay_s)
        self._seen = np.zeros(self.n_slots, dtype=bool)

    def _chunk_length(self, header: MrdHeader | None, first: Acquisition) -> int:
        """Return how many samples a chunk has: those of the first readout, or whole walks where the header says so."""
        space = int(first.head["encoding_space_ref"])
        encodings = header.encodings if header is not None else ()
        limit = encodings[space].limits.get(CHUNK) if space < len(encodings) else None
        if limit is not None and limit.maximum == 0:
            return max(self._walk(lap, interleaves) for lap, interleaves in self.laps_of_ring)
        kept = _kept(first.head)
        if kept.stop <= kept.start:
            raise DataError("the first ring readout has no samples left after discard_pre and discard_post")
        return kept.stop - kept.start

    def _walk(self, lap: int, interleaves: int) -> int:
        """Return the samples of one interleaf's walk that are needed."""
        return lap * (self.protocol.n_times // interleaves)

    def slot(self, head: ReadoutHead) -> int:
        """Return the slot of a readout; see `ReadoutLayout`."""
        counter = {name: head.counters[COUNTER_INDEX[name]] for name in (PARTITION, RING, INTERLEAF, CHUNK)}
        number = self._numbers.get(tuple(counter.values()))  # type: ignore[arg-type]
        if number is not None:
            return number
        ring = counter[RING]
        if ring >= self.n_rings or counter[PARTITION] >= self.n_partitions:
            raise DataError(
                f"readout {head.scan_counter} is of ring {ring}, partition {counter[PARTITION]} but there are "
                f"{self.n_rings} rings and {self.n_partitions} partitions; correct the counters or mrsi_samples_per_lap"
            )
        lap, interleaves = self.laps_of_ring[ring]
        if counter[INTERLEAF] >= interleaves:
            raise DataError(
                f"readout {head.scan_counter} is of temporal interleaf {counter[INTERLEAF]} of ring {ring}, which has "
                f"{interleaves}; correct mrsi_temporal_interleaves or counter user_0"
            )
        raise DataError(
            f"readout {head.scan_counter} is chunk {counter[CHUNK]} of ring {ring}, but {self._walk(lap, interleaves)} "
            f"samples of mrsi_spectral_points {self.protocol.n_times} need fewer chunks of {self._chunk} samples; "
            "correct mrsi_spectral_points or counter segment"
        )

    def target(self, slot: int) -> tuple[int, int, int]:
        """Return (shot, first sample, last sample + 1) of a slot."""
        partition, ring, interleaf, chunk = self._slots[slot]
        walk = self._walk(*self.laps_of_ring[ring])
        first = chunk * self._chunk
        shot = partition * self.n_rings + ring
        return shot, interleaf * walk + first, interleaf * walk + min(first + self._chunk, walk)

    def prepare(self, slot: int, head: ReadoutHead, readout: Acquisition) -> np.ndarray:
        """Return the slot's samples and remember where they lie; see `ReadoutLayout`."""
        _, first, last = self.target(slot)
        kept = _kept(readout.head)
        length = kept.stop - kept.start
        if length < last - first:
            raise DataError(
                f"readout {head.scan_counter} has {length} samples but {last - first} are needed; correct "
                "mrsi_spectral_points or send the whole readout"
            )
        # only a walk's last chunk may be longer than what is needed: the rest of another would be missing in between
        if length > last - first and (slot + 1 < self.n_slots and self._slots[slot + 1][:3] == self._slots[slot][:3]):
            raise DataError(
                f"readout {head.scan_counter} has {length} samples but the first chunk that came has {self._chunk}; "
                "send chunks of one length (or walks in one readout, with encodingLimits.segment 0 to 0)"
            )
        self._check_dwell(slot, head)
        if not self._seen[slot]:
            self._place(slot, head, readout, kept)
            self._seen[slot] = True
        samples = readout.data[:, kept.start : kept.start + last - first]
        return np.conj(samples) if self.protocol.freq_sign < 0 else samples

    def _check_dwell(self, slot: int, head: ReadoutHead) -> None:
        _, ring, _, _ = self._slots[slot]
        lap, interleaves = self.laps_of_ring[ring]
        expected = self.protocol.dwell_s * interleaves / lap * 1e6
        if abs(head.sample_time_us - expected) > 1e-3 * expected:
            raise DataError(
                f"readout {head.scan_counter} of ring {ring} has sample_time_us {head.sample_time_us:g}, but "
                f"{lap} samples per lap and {interleaves} temporal interleaves give {expected:g} us at a spectral "
                f"dwell of {self.protocol.dwell_s * 1e6:g} us; correct mrsi_samples_per_lap, "
                "mrsi_temporal_interleaves or mrsi_dwell_us"
            )

    def _place(self, slot: int, head: ReadoutHead, readout: Acquisition, kept: slice) -> None:
        """Write k and t of a slot's samples from the trajectory that came with the readout."""
        partition, ring, interleaf, _ = self._slots[slot]
        shot, first, last = self.target(slot)
        lap, interleaves = self.laps_of_ring[ring]
        if readout.trajectory is None:
            raise DataError(
                f"readout {head.scan_counter} came without a trajectory although others have one; send kx,ky"
            )
        path = np.asarray(readout.trajectory, dtype=float)[kept.start : kept.start + last - first]
        if not np.isfinite(path).all():
            raise DataError(f"the trajectory of readout {head.scan_counter} holds values that are not finite")
        column = {name: path[:, i] for i, name in enumerate(self.protocol.trajectory_columns)}
        k = np.stack([column["kx"], column["ky"], column.get("kz", np.zeros(len(path)))], axis=1)
        k = k * _trajectory_scale(self.protocol)
        if "kz" not in column and self.n_partitions > 1:
            centre = self.protocol.k_centre.get("kz", self.n_partitions // 2)
            k[:, 2] = (partition - centre) / (self.protocol.geometry.fov_mm[2] * 1e-3)
        # conjugated samples (freq_sign -1) have the opposite sign in space as well
        self._k[shot, first:last] = k * (np.array(self.protocol.kspace_sign) * self.protocol.freq_sign)
        walk = self._walk(lap, interleaves)
        own = (np.arange(first, last) - interleaf * walk) * (self.protocol.dwell_s * interleaves / lap)
        if "t_us" in column:
            own = column["t_us"] * 1e-6
        self._t[shot, first:last] = self.protocol.acquisition_delay_s + interleaf * self.protocol.dwell_s + own

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return k [1/m], t [s] and density of all samples; see `ReadoutLayout`.

        Raises
        ------
        DataError
            The trajectory does not repeat from lap to lap.
        """
        density = np.zeros(self.shape)
        for partition in range(self.n_partitions):
            rows = slice(partition * self.n_rings, (partition + 1) * self.n_rings)
            radii = np.array([self._radius(row) for row in range(rows.start, rows.stop)])
            areas = ring_areas(radii)
            for ring, (lap, _) in enumerate(self.laps_of_ring):
                density[rows.start + ring, : lap * self.protocol.n_times] = areas[ring] / lap
        fov = np.array(self.protocol.geometry.fov_mm[:2]) * 1e-3
        return self._k, self._t, density * float(np.prod(fov))

    def _radius(self, row: int) -> float:
        """Return the mean radius of a ring's first lap [1/m], 0 where it was not acquired."""
        lap, interleaves = self.laps_of_ring[row % self.n_rings]
        if not any(self._seen[n] and self.target(n)[0] == row for n in range(self.n_slots)):
            return 0.0
        laps = self._k[row, : self._walk(lap, interleaves)].reshape(-1, lap, 3)
        size = max(float(np.abs(laps[0, :, :2]).max()), 1e-9)
        if np.abs(laps[: self._chunk // lap] - laps[0]).max() > 1e-3 * size:
            raise DataError(
                f"the trajectory of ring {row % self.n_rings} does not repeat after {lap} samples; correct "
                "mrsi_samples_per_lap or the trajectory"
            )
        return float(np.mean(np.hypot(laps[0, :, 0], laps[0, :, 1])))


def ring_areas(radii: np.ndarray) -> np.ndarray:
    """Return the area of k-space that belongs to each ring, (ring,), in the square of the unit of `radii`.

    Borders lie half-way between neighbouring rings; the innermost ring reaches to the centre, the outermost as far
    beyond itself as its inner border lies within. Rings of radius r and spacing d get 2 pi r d each.

    Raises
    ------
    DataError
        Two rings have the same radius, so that their share is undefined.
    """
    order = np.argsort(radii)
    r = np.asarray(radii, dtype=float)[order]
    if r.size > 1 and np.min(np.diff(r)) <= 1e-6 * r[-1]:
        raise DataError(
            "two rings have the same radius in k-space (or a ring is missing); correct the trajectory or the counters"
        )
    inner = np.concatenate([[0.0], (r[1:] + r[:-1]) / 2])
    outer = np.append(inner[1:], 2 * r[-1] - inner[-1])
    areas = np.empty(r.size)
    areas[order] = np.pi * (outer**2 - inner**2)
    return areas


def ring_points(first: complex, n_samples: int, samples_per_lap: int, *, clockwise: bool) -> np.ndarray:
    """Return (n_samples, 2) points on a circle about 0 through `first` (x + iy), at constant angular speed."""
    turn = np.arange(n_samples) % samples_per_lap / samples_per_lap
    path = first * np.exp((-2j if clockwise else 2j) * np.pi * turn)
    return np.stack([path.real, path.imag], axis=1)


def _per_ring(protocol: Protocol, header: MrdHeader | None) -> list[tuple[int, int]]:
    """Return (samples per lap, temporal interleaves) of each ring."""
    laps, interleaves = protocol.samples_per_lap, protocol.temporal_interleaves or (1,)
    if not laps:
        raise DataError("rings need mrsi_samples_per_lap; give one value or a list with one per ring")
    lists = {len(values) for values in (laps, interleaves) if len(values) > 1}
    if len(lists) > 1:
        raise DataError(
            f"mrsi_samples_per_lap has {len(laps)} values and mrsi_temporal_interleaves {len(interleaves)}; give one "
            "value or one per ring"
        )
    count = lists.pop() if lists else _rings_of_header(header)
    laps = laps * count if len(laps) == 1 else laps
    interleaves = interleaves * count if len(interleaves) == 1 else interleaves
    pairs = list(zip(laps, interleaves, strict=True))
    for ring, (lap, t) in enumerate(pairs):
        if lap < 1 or t < 1 or protocol.n_times % t:
            raise DataError(
                f"ring {ring} has {lap} samples per lap and {t} temporal interleaves, which do not make "
                f"{protocol.n_times} spectral points; correct mrsi_samples_per_lap or mrsi_temporal_interleaves"
            )
    return pairs


def _rings_of_header(header: MrdHeader | None) -> int:
    limits = header.encodings[0].limits.get(RING) if header is not None and header.encodings else None
    if limits is None:
        raise DataError(
            "the number of rings is not known; give encodingLimits of kspace_encoding_step_1, or one value of "
            "mrsi_samples_per_lap per ring"
        )
    if not 0 <= limits.maximum < _MOST_RINGS:
        raise DataError(
            f"encodingLimits.kspace_encoding_step_1 has the maximum {limits.maximum}, but its counter ends at "
            f"{_MOST_RINGS - 1}; correct it"
        )
    return int(limits.maximum) + 1


def _kept(head: np.void) -> slice:
    return slice(int(head["discard_pre"]), int(head["number_of_samples"]) - int(head["discard_post"]))


def _check_columns(protocol: Protocol, dimensions: int) -> None:
    columns = protocol.trajectory_columns
    if len(columns) != dimensions or not {"kx", "ky"} <= set(columns) <= {"kx", "ky", "kz", "t_us"}:
        raise DataError(
            f"mrsi_trajectory_columns is '{','.join(columns)}' but the readouts send {dimensions} columns; name each "
            "of them: kx, ky, and where they are sent kz, t_us"
        )


def _trajectory_scale(protocol: Protocol) -> np.ndarray:
    """Return the factors (x, y, z) that bring the trajectory that was sent to 1/m."""
    fov = np.array(protocol.geometry.fov_mm) * 1e-3
    scales = {"1/m": np.ones(3), "1/FOV": 1 / fov, "half": np.array(protocol.geometry.matrix) / fov}
    if protocol.trajectory_units not in scales:
        raise DataError(
            f"mrsi_trajectory_units is '{protocol.trajectory_units}'; it must be one of {', '.join(scales)}"
        )
    return scales[protocol.trajectory_units]
