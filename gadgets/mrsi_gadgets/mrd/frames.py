"""The frames of one role while they fill, readout by readout.

Frames are told apart by their dynamic number, by their echo time where the header lists several, and by the condition
of metabolite cycling, whose two conditions leave together as water reference and metabolites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from mrsi_gadgets.data import KtData, Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.clock import ScanClock
from mrsi_gadgets.mrd.cycling import separate
from mrsi_gadgets.mrd.header import LIMIT_OF_COUNTER, Limit
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, COUNTERS, ReadoutHead, ReadoutLayout
from mrsi_gadgets.mrd.noise import Reporter
from mrsi_gadgets.stream.messages import Acquisition, Flag

_LEAST_PART = 0.1
"""Part of a metabolite frame's k-space that must have come; no method of ours works with less."""
_LAST_IN_REPETITION = Flag.LAST_IN_REPETITION.mask
_STANDARD = COUNTERS[:9]
"""Counters that must mean something; user counters may hold what a vendor likes."""


class _Key(NamedTuple):
    """What tells frames apart."""

    number: int
    echo: int
    condition: int


class _Frame:
    """One frame: samples by slot, and how often each slot came."""

    def __init__(self, layout: ReadoutLayout, n_coils: int) -> None:
        self.samples = np.zeros((n_coils, *layout.shape), dtype=np.complex64)
        self.count = [0] * layout.n_slots
        self.seconds = [0.0] * layout.n_slots
        """Sum of the times of acquisition [s] of each slot's readouts."""
        self.n_filled = 0
        self.n_readouts = 0
        self.seen: set[int] = set()
        """slot + n_slots * average of every readout, to tell averages from repetitions."""
        self.averages: set[int] = set()
        self.repeated = 0
        self.closed = False


class RoleFrames:
    """Fills the frames of one role.

    Parameters
    ----------
    role
        Water reference, metabolite or calibration.
    protocol
        Of this role, with the readouts' geometry.
    layout
        Where readouts go.
    limits
        Counter ranges of the header's encoding space; may be empty.
    n_coils
        Channels of each readout.
    report
        Takes warnings.
    clock
        Of the scan.
    """

    def __init__(
        self, role: Role, protocol: Protocol, layout: ReadoutLayout, limits: Mapping[str, Limit], n_coils: int,
        report: Reporter, clock: ScanClock,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.role, self.protocol, self.layout, self.report, self.n_coils = role, protocol, layout, report, n_coils
        self.n_readouts = self.n_sent = self.n_pairs = 0
        self._told_late = False
        self._frames: dict[_Key, _Frame] = {}
        self._waiting: dict[tuple[int, int], tuple[int, KtData]] = {}
        """(frame, echo) -> the condition of metabolite cycling that came first, and its data."""
        self._dynamic = _counter(protocol, "dynamic")
        self._average = _counter(protocol, "cycle")
        self._frame_limit, self._average_limit = (
            limits.get(protocol.axes.get(axis, "none")) for axis in ("dynamic", "cycle")
        )
        water_counter = protocol.water_reference.partition(":")[0]
        several = len(protocol.echo_times_s) > 1 and protocol.axes.get("te") not in {
            water_counter,
            *layout.used_counters,
        }
        self._echo = _counter(protocol, "te") if several else -1
        self._condition = _counter(protocol, "edit") if protocol.editing == "metabolite_cycling" else -1
        named = {protocol.axes.get(axis, "none") for axis in ("dynamic", "cycle")}
        named |= {COUNTERS[index] for index in (self._echo, self._condition) if index >= 0}
        constant = [name for name in _STANDARD if name not in layout.used_counters | named]
        constant += [
            name
            for axis in ("te", "edit")
            if (name := protocol.axes.get(axis, "none")).startswith("user_")
            and name not in layout.used_counters | named
        ]
        self._constant_names = constant
        self._constant = itemgetter(*(COUNTER_INDEX[name] for name in [*constant, constant[-1]]))
        self._expected: Any = None

    def take(self, head: ReadoutHead, readout: Acquisition) -> list[KtData]:
        """Put a readout in its place; return the frames that it completed.

        Raises
        ------
        DataError
            A counter is out of range or varies without meaning, or the readout does not fit the protocol.
        """
        self.n_readouts += 1
        key = self._key(head)
        self._check_constant(head)
        frame = self._frames.get(key)
        complete: list[KtData] = []
        if frame is None:
            # another frame has begun; other echoes and conditions of this one may still fill
            others = [other for other in self._open() if other.number != key.number]
            frame = self._frames[key] = _Frame(self.layout, self.n_coils)
            complete = [done for other in others for done in self._if_filled(other)]
        if not self._place(frame, head, readout):
            return complete
        if head.flags & _LAST_IN_REPETITION:
            complete += self._end_repetition(key)
        elif self._all_came(frame):
            complete += self._close(key)
        return complete

    def _end_repetition(self, key: _Key) -> list[KtData]:
        """Close a frame and those of its echoes and conditions of which as many readouts came."""
        came = self._frames[key].n_readouts
        ended = [k for k in self._open() if k.number == key.number and self._frames[k].n_readouts >= came]
        return [done for k in ended for done in self._close(k)]

    def followed(self) -> list[KtData]:
        """Return the frames whose samples all came at least once, when readouts of another role follow."""
        return [done for key in self._open() for done in self._if_filled(key)]

    def finish(self) -> list[KtData]:
        """Return the frames that are not complete at the end of the scan.

        Raises
        ------
        DataError
            Metabolite cycling of which no frame has both conditions.
        """
        found = [done for key in self._open() for done in self._close(key)]
        for (number, _), (condition, _) in self._waiting.items():
            sentence = f"of {self._name(_Key(number, 0, 0))} only condition {condition} of metabolite cycling came"
            if not found and not self.n_pairs:
                raise DataError(
                    f"{sentence} ({self.protocol.axes['edit']} 0 is up, 1 is down); send both, or set mrsi_edit to none"
                )
            self.report.warn(f"{sentence}; it was not used")
        return found

    def readouts_of(self, kt: KtData) -> int:
        """Return how many readouts a frame was made of."""
        return sum(
            frame.n_readouts for key, frame in self._frames.items() if (key.number, key.echo) == (kt.frame, kt.echo)
        )

    def _open(self) -> list[_Key]:
        return sorted(key for key, frame in self._frames.items() if not frame.closed)

    def _if_filled(self, key: _Key) -> list[KtData]:
        """Close a frame whose samples all came, where the header does not promise more averages."""
        frame = self._frames[key]
        if not frame.closed and frame.n_filled == self.layout.n_slots and self._average_limit is None:
            return self._close(key)
        return []

    def _all_came(self, frame: _Frame) -> bool:
        """Tell whether every average of every sample came, where the header says how many there are."""
        if self._average_limit is None or frame.n_filled < self.layout.n_slots:
            return False
        if self.protocol.kspace_weighting == "acquisition_weighted":
            return False
        averages = self._average_limit.maximum - self._average_limit.minimum + 1
        return frame.n_readouts - frame.repeated >= averages * self.layout.n_slots

    def _key(self, head: ReadoutHead) -> _Key:
        number = echo = condition = 0
        if self._dynamic >= 0:
            number = head.counters[self._dynamic]
            self._check_limit(head, self._dynamic, number, self._frame_limit)
        if self._echo >= 0:
            echo = head.counters[self._echo]
            if echo >= len(self.protocol.echo_times_s):
                raise DataError(
                    f"readout {head.scan_counter} has {COUNTERS[self._echo]} {echo} but TE of the header lists "
                    f"{len(self.protocol.echo_times_s)} echo times; list them all, or correct the counter"
                )
        if self._condition >= 0:
            condition = head.counters[self._condition]
            if condition > 1:
                raise DataError(
                    f"readout {head.scan_counter} has {COUNTERS[self._condition]} {condition} but metabolite cycling "
                    "has the conditions 0 (up) and 1 (down); correct the counter or mrsi_axis_edit"
                )
        return _Key(number, echo, condition)

    def _check_limit(self, head: ReadoutHead, counter: int, value: int, limit: Limit | None) -> None:
        if limit is not None and not limit.minimum <= value <= limit.maximum:
            name = COUNTERS[counter]
            raise DataError(
                f"readout {head.scan_counter} has {name} {value} but encodingLimits.{LIMIT_OF_COUNTER.get(name, name)} "
                f"says {limit.minimum} to {limit.maximum}; correct one of them"
            )

    def _check_constant(self, head: ReadoutHead) -> None:
        values = self._constant(head.counters)
        if self._expected is None:
            self._expected = values
        elif values != self._expected:
            name, was, now = next(
                (name, a, b) for name, a, b in zip(self._constant_names, self._expected, values, strict=False) if a != b
            )
            raise DataError(
                f"readout {head.scan_counter} has {name} {now} where the {self.role.value} readouts before it have "
                f"{was}, and {self._meaning(name)}"
            )

    def _meaning(self, name: str) -> str:
        if name == self.protocol.axes.get("te"):
            return (
                f"the header lists {'one echo time' if self.protocol.echo_times_s else 'no echo time'} (TE); list one "
                "for each value, or name the water's in mrsi_water_ref"
            )
        if name == self.protocol.axes.get("edit"):
            return "mrsi_edit does not say what these conditions are; set it, or send one condition"
        water = (
            f"if one of its values is the water reference, set mrsi_water_ref={name}:VALUE; else "
            if name in ("set", "contrast", "repetition", "phase") and self.role is Role.METABOLITE
            else ""
        )
        return (
            f"no axis uses that counter; {water}name it in mrsi_axis_kx, _ky, _kz, _dynamic or _cycle, or keep {name} "
            "constant"
        )

    def _place(self, frame: _Frame, head: ReadoutHead, readout: Acquisition) -> bool:
        """Write or add a readout; return False where it repeats a sample of a frame that has left already."""
        layout = self.layout
        slot = layout.slot(head)
        average = 0
        if self._average >= 0:
            average = head.counters[self._average]
            self._check_limit(head, self._average, average, self._average_limit)
        key = slot + layout.n_slots * average
        repeated = key in frame.seen
        if frame.closed:
            self._late(head, average in frame.averages)
            return False
        frame.seen.add(key)
        frame.averages.add(average)
        frame.repeated += repeated
        points, times = layout.target(slot)
        samples = layout.prepare(slot, head, readout)
        if frame.count[slot]:
            frame.samples[:, points, times] += samples
        else:
            frame.samples[:, points, times] = samples
            frame.n_filled += 1
        frame.count[slot] += 1
        frame.seconds[slot] += self.clock.seconds(head.time_stamp)
        frame.n_readouts += 1
        return True

    def _late(self, head: ReadoutHead, known: bool) -> None:
        if not known:
            raise DataError(
                f"readout {head.scan_counter} is a further average of a {self.role.value} frame that was already "
                "complete; say in encodingLimits how many averages there are"
            )
        if not self._told_late:  # once for all of them
            self._told_late = True
            self.report.warn(
                f"{self.role.value} readouts (first: {head.scan_counter}) came after their frame was complete and "
                "were not used"
            )

    def _close(self, key: _Key) -> list[KtData]:
        """Finish a frame: divide averages, say what is missing, hand its samples over (with those of its pair)."""
        frame = self._frames[key]
        slots = np.array(frame.count, dtype=np.int64)
        self._check_enough(key, slots)
        self._say_what_happened(key, frame, slots)
        # coordinates first: a layout that takes k from the readouts may refuse what it saw
        k, t, density = self.layout.coordinates()
        count = self.layout.counts(slots)
        if count.ndim == 2 and (count == count[:, :1]).all():
            count = np.ascontiguousarray(count[:, 0])
        acquired_s = self._acquired(slots, np.array(frame.seconds)) if self.clock.varies else None
        samples = frame.samples
        weighted = self.protocol.kspace_weighting == "acquisition_weighted"
        if slots.max(initial=0) > 1:
            samples /= _column(np.maximum(count, 1).astype(np.float32))
        if weighted and self._condition < 0:
            count = _weigh(samples, count)
        if self.layout.shares is not None:
            count = count * (self.layout.shares if count.ndim == 1 else self.layout.shares[:, None])
        # a copy: an empty view would keep the memory of the whole frame
        frame.samples, frame.closed = samples[:, :0].copy(), True
        self.n_sent += 1
        kt = KtData(
            samples=samples,
            k=k,
            t=t,
            count=count,
            role=self.role,
            protocol=self.protocol,
            grid=self.layout.grid,
            frame=key.number,
            sample_time_s=self.layout.sample_time_s,
            density=density,
            echo=key.echo,
            acquired_s=acquired_s,
        )
        return [kt] if self._condition < 0 else self._paired(key, kt, weighted)

    def _acquired(self, slots: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Return the mean time of acquisition, (point,) or (point, t) [s]; of what never came, that of the others.

        Readouts of one excitation (lobes, chunks of laps) belong together: their mean is the FID's time.
        """
        count = self.layout.counts(slots)
        total = np.asarray(self.layout.counts(seconds), dtype=float)
        if total.ndim != count.ndim:
            total, count = (_column(a) + np.zeros((1, self.layout.shape[1])) for a in (total, count))
        came = count > 0
        mean = np.divide(total, count, out=np.zeros_like(total), where=came)
        everything = float(np.mean(mean[came])) if came.any() else 0.0
        if mean.ndim == 1:
            return np.where(came, mean, everything)
        per_point = np.sum(mean, axis=1) / np.maximum(np.sum(came, axis=1), 1)
        per_point = np.where(came.any(axis=1), per_point, everything)
        filled = np.where(came, mean, per_point[:, None])
        one_excitation = self.protocol.n_times * self.protocol.dwell_s + 2e-3 * self.protocol.time_tick_ms
        if float(np.max(np.ptp(filled, axis=1), initial=0.0)) <= one_excitation:
            return per_point
        return filled.astype(np.float32)

    def _paired(self, key: _Key, kt: KtData, weighted: bool) -> list[KtData]:
        """Return water and metabolites once both conditions of metabolite cycling have come."""
        other = self._waiting.pop((key.number, key.echo), None)
        if other is None:
            self._waiting[key.number, key.echo] = key.condition, kt
            return []
        self.n_pairs += 1
        pair = separate(*((other[1], kt) if key.condition else (kt, other[1])))
        if weighted:
            shares = np.ones(1) if self.layout.shares is None else self.layout.shares
            shares = shares if pair[0].count.ndim == 1 else shares[:, None]
            return [replace(part, count=_weigh(part.samples, part.count / shares) * shares) for part in pair]
        return list(pair)

    def _check_enough(self, key: _Key, count: np.ndarray) -> None:
        """Refuse metabolites of which nearly nothing came: their maps would show nothing but the prior."""
        came = int(np.count_nonzero(count))
        if self.role is Role.METABOLITE and came < _LEAST_PART * count.size:
            raise DataError(
                f"only {came} of {count.size} k-space samples of {self.role.value} frame {key.number} came, too few to "
                "reconstruct; send the whole scan, or correct matrixSize or LAST_IN_REPETITION"
            )

    def _name(self, key: _Key) -> str:
        """Return what a frame is called in messages."""
        name = self.role.value
        if self._dynamic >= 0 and len({k.number for k in self._frames}) > 1:
            name += f" frame {key.number}"
        return f"{name} echo {key.echo}" if self._echo >= 0 else name

    def _say_what_happened(self, key: _Key, frame: _Frame, count: np.ndarray) -> None:
        name = self._name(key)
        missing = int(np.count_nonzero(count == 0))
        if missing and self.role is not Role.CALIBRATION:
            self.report.warn(f"{missing} of {count.size} k-space samples of {name} were not acquired and are zero")
        if frame.repeated:
            self.report.warn(
                f"{frame.repeated} readouts of {name} repeat samples with the same counters; they were averaged"
                if self.protocol.kspace_weighting != "acquisition_weighted"
                else f"{frame.repeated} readouts of {name} repeat samples with the same counters; they were added"
            )


def _weigh(samples: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Weigh means by how often they came, in place, and return the readouts of one's noise that each is worth then.

    These are the sums that acquisition weighting wants, over the largest number c of readouts of one sample: so the
    centre keeps its size, and a uniform object that of a water reference without weighting. The mean of n readouts has
    the variance 1 / n, and n / c times it n / c^2: as much as c^2 / n readouts.
    """
    most = float(np.max(count, initial=0))
    if most <= 0:
        return np.asarray(count, dtype=float)
    samples *= _column((count / most).astype(np.float32))
    return np.where(count > 0, most**2 / np.maximum(count, 1e-12), 0.0)


def _column(values: np.ndarray) -> np.ndarray:
    """Return (point,) or (point, t) so that it multiplies samples (coil, point, t)."""
    return values if values.ndim == 2 else values[:, None]


def _counter(protocol: Protocol, axis: str) -> int:
    return COUNTER_INDEX.get(protocol.axes.get(axis, "none"), -1)
