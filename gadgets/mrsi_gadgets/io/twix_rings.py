"""What the readout headers of a twix file say about its rings: laps, interleaves, lengths and the trajectory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.sequence import FromReadout, Rings

PROTON_HZ_PER_T = 42.577478518e6
"""Gyromagnetic ratio of the proton over 2 pi (CODATA 2018)."""
TICK_S = 2.5e-3
"""Unit of the time stamps."""
_FRACTION = 1e-4


@dataclass(frozen=True)
class RingPlan:
    """The rings of a measurement, as their first readouts describe them."""

    samples_per_lap: tuple[int, ...]
    temporal_interleaves: tuple[int, ...]
    first_points: tuple[complex, ...]
    """First point of each ring along read (real) and phase (imaginary) [1/m]."""
    clockwise: bool
    dwell_us: float
    """Spectral dwell."""

    def sample_time_us(self, ring: int) -> float:
        """ADC dwell of a ring [us]."""
        return self.dwell_us * self.temporal_interleaves[ring] / self.samples_per_lap[ring]

    def trajectory(self, ring: int, first_sample: int, n_samples: int) -> np.ndarray:
        """Return (sample, 2) float32 k along read and phase [1/m], of samples counted from the start of the walk."""
        lap = self.samples_per_lap[ring]
        turn = ((first_sample + np.arange(n_samples)) % lap) / lap
        path = self.first_points[ring] * np.exp((-2j if self.clockwise else 2j) * np.pi * turn)
        return np.stack([path.real, path.imag], axis=1).astype(np.float32)

    def spectral_points(self, walks: Mapping[tuple[int, int], int], what: str) -> int:
        """Return the FID length of a role that all rings have.

        Parameters
        ----------
        walks
            (ring, temporal interleaf) -> samples of all its chunks.
        what
            Name of the role, for messages.

        Raises
        ------
        DataError
            An interleaf is missing, or a ring is shorter than one lap.
        """
        lengths = []
        for ring, (lap, interleaves) in enumerate(zip(self.samples_per_lap, self.temporal_interleaves, strict=True)):
            missing = [b for b in range(interleaves) if (ring, b) not in walks]
            if missing:
                raise DataError(
                    f"the {what} lacks temporal interleaf {missing[0]} of ring {ring}; the scan is incomplete, or "
                    "temporal_interleaves of the sequence description is wrong"
                )
            lengths.append(min(walks[ring, b] for b in range(interleaves)) // lap * interleaves)
        # a point more of some rings cannot be used: every point of k-space needs the same FID length
        common = min(lengths)
        step = int(np.lcm.reduce(self.temporal_interleaves))
        common -= common % step
        if common < 1:
            raise DataError(
                f"the {what} is shorter than one lap of ring {int(np.argmin(lengths))}; the scan is incomplete"
            )
        return common


def ring_plan(
    blocks: Iterable[Any], counters: Mapping[str, str], rings: Rings, *, dwell_us: float, nucleus: str
) -> RingPlan:
    """Read the plan from the imaging readouts.

    Parameters
    ----------
    blocks
        Imaging readouts (twixtools Mdb).
    counters
        MRD counter -> twix loop counter.
    rings
        The sequence description's table.
    dwell_us
        Spectral dwell [us].
    nucleus
        Its gyromagnetic ratio turns gradient moments into k.

    Raises
    ------
    DataError
        A ring is missing, or its readouts contradict each other.
    """
    if rings.unit == "mT/m us" and nucleus != "1H":
        raise DataError(f"[rings] unit 'mT/m us' is defined for 1H but the nucleus is {nucleus}; send k in 1/m")
    scale = PROTON_HZ_PER_T * 1e-9 if rings.unit == "mT/m us" else 1.0
    found: dict[int, tuple[int, int, complex]] = {}
    for block in blocks:
        ring = int(getattr(block.mdh.Counter, counters["kspace_encode_step_1"]))
        parameters = np.array(list(block.mdh.IceProgramPara), dtype=np.uint16).view(np.int16)
        point = complex(*(parameters[a] + parameters[b] * _FRACTION for a, b in rings.first_point)) * scale
        entry = (_number(rings.samples_per_lap, parameters), _number(rings.temporal_interleaves, parameters), point)
        if found.setdefault(ring, entry) != entry:
            raise DataError(
                f"readout {block.mdh.ScanCounter} of ring {ring} states {_words(entry)} but an earlier one "
                f"{_words(found[ring])}; the file is damaged, or the ICE parameters of the description are wrong"
            )
    if not found or sorted(found) != list(range(len(found))):
        raise DataError(f"the rings found are {sorted(found)}; rings must be numbered from 0 without gaps")
    for ring, (lap, interleaves, point) in found.items():
        if lap < 2 or interleaves < 1 or abs(point) == 0:
            raise DataError(
                f"ring {ring} states {_words((lap, interleaves, point))}, which is no ring; correct the ICE parameters "
                "of the sequence description"
            )
    laps, interleaved, points = zip(*(found[ring] for ring in sorted(found)), strict=True)
    return RingPlan(laps, interleaved, points, rings.clockwise, dwell_us)


def _number(entry: int | FromReadout, parameters: np.ndarray) -> int:
    return entry.read(parameters.tolist()) if isinstance(entry, FromReadout) else entry


def _words(entry: tuple[int, int, complex]) -> str:
    lap, interleaves, point = entry
    return f"{lap} samples per lap, {interleaves} interleaves and first point ({point.real:.4g}, {point.imag:.4g})/m"


@dataclass(frozen=True)
class Walks:
    """The walks of one role: which readouts, in which order, belong to a ring's temporal interleaf."""

    lengths: dict[tuple[int, int], int]
    """(ring, interleaf) -> samples."""
    first_samples: dict[int, int]
    """Scan counter -> number of the readout's first sample within its walk."""


def walks_of(blocks: Iterable[Any], counters: Mapping[str, str], plan: RingPlan, what: str) -> Walks:
    """Put the chunks of each walk in order and compare their time stamps with the ADC dwell.

    Raises
    ------
    DataError
        A chunk is missing, came twice, or the time stamps contradict the dwell.
    """
    chunks: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for block in blocks:
        counter = block.mdh.Counter
        ring, interleaf = (int(getattr(counter, counters[name])) for name in ("kspace_encode_step_1", "user_0"))
        chunks[ring, interleaf].append(block)
    lengths, first_samples = {}, {}
    for (ring, interleaf), walk in chunks.items():
        walk.sort(key=lambda block: int(getattr(block.mdh.Counter, counters["segment"])))
        order = [int(getattr(block.mdh.Counter, counters["segment"])) for block in walk]
        if order != list(range(len(walk))):
            raise DataError(
                f"the chunks of ring {ring}, interleaf {interleaf} of the {what} are {order}; "
                "one is missing or came twice"
            )
        start = 0
        for block in walk:
            first_samples[int(block.mdh.ScanCounter)] = start
            start += kept_samples(block)
        lengths[ring, interleaf] = start
        _check_clock(walk, plan, ring, what)
    return Walks(lengths, first_samples)


def kept_samples(block: Any) -> int:
    """Return how many samples a readout keeps after its cut-offs."""
    return int(block.mdh.SamplesInScan) - int(block.mdh.CutOff.Pre) - int(block.mdh.CutOff.Post)


def _check_clock(walk: list[Any], plan: RingPlan, ring: int, what: str) -> None:
    """Compare the time between first and last chunk with the samples between them; stamps are whole ticks."""
    elapsed = (int(walk[-1].mdh.TimeStamp) - int(walk[0].mdh.TimeStamp)) * TICK_S
    expected = sum(kept_samples(block) for block in walk[:-1]) * plan.sample_time_us(ring) * 1e-6
    if abs(elapsed - expected) > 2 * TICK_S + 0.05 * expected:
        raise DataError(
            f"by its time stamps the walk of ring {ring} of the {what} takes {elapsed * 1e3:.1f} ms, but its samples "
            f"at {plan.sample_time_us(ring):g} us take {expected * 1e3:.1f} ms; correct mrsi_dwell_us, "
            "samples_per_lap or temporal_interleaves of the sequence description"
        )
