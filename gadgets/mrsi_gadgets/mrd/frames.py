"""The frames of one role while they fill, readout by readout."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from mrsi_gadgets.data import KtData, Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import LIMIT_OF_COUNTER, Limit
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, COUNTERS, ReadoutHead, ReadoutLayout
from mrsi_gadgets.mrd.noise import Reporter
from mrsi_gadgets.stream.messages import Acquisition, Flag

_LEAST_PART = 0.1
"""Part of a metabolite frame's k-space that must have come; no method of ours works with less."""
_LAST_IN_REPETITION = Flag.LAST_IN_REPETITION.mask
_STANDARD = COUNTERS[:9]
"""Counters that must mean something; user counters may hold what a vendor likes."""


class _Frame:
    """One frame: samples by slot, and how often each slot came."""

    def __init__(self, layout: ReadoutLayout, n_coils: int) -> None:
        self.samples = np.zeros((n_coils, *layout.shape), dtype=np.complex64)
        self.count = [0] * layout.n_slots
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
        Water reference or metabolite.
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
    """

    def __init__(
        self, role: Role, protocol: Protocol, layout: ReadoutLayout, limits: Mapping[str, Limit], n_coils: int,
        report: Reporter,
    ) -> None:  # fmt: skip
        self.role, self.protocol, self.layout, self.report, self.n_coils = role, protocol, layout, report, n_coils
        self.n_readouts = self.n_sent = 0
        self._frames: dict[int, _Frame] = {}
        self._dynamic = _counter(protocol, "dynamic")
        self._average = _counter(protocol, "cycle")
        self._frame_limit, self._average_limit = (
            limits.get(protocol.axes.get(axis, "none")) for axis in ("dynamic", "cycle")
        )
        named = {protocol.axes.get(axis, "none") for axis in ("dynamic", "cycle")}
        constant = [name for name in _STANDARD if name not in layout.used_counters | named]
        constant += [
            name
            for axis in ("te", "edit")
            if (name := protocol.axes.get(axis, "none")).startswith("user_") and name not in layout.used_counters
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
        number = self._frame_number(head)
        self._check_constant(head)
        frame = self._frames.get(number)
        complete: list[KtData] = []
        if frame is None:
            frame = self._frames[number] = _Frame(self.layout, self.n_coils)
            complete = [done for other in self._open(number) if (done := self._if_filled(other)) is not None]
        if not self._place(frame, head, readout):
            return complete
        if head.flags & _LAST_IN_REPETITION or self._all_came(frame):
            complete.append(self._close(number))
        return complete

    def followed(self) -> list[KtData]:
        """Return the frames whose samples all came at least once, when readouts of another role follow."""
        return [done for number in self._open() if (done := self._if_filled(number)) is not None]

    def finish(self) -> list[KtData]:
        """Return the frames that are not complete at the end of the scan."""
        return [self._close(number) for number in self._open()]

    def readouts_of(self, number: int) -> int:
        """Return how many readouts a frame was made of."""
        return self._frames[number].n_readouts

    def _open(self, but: int | None = None) -> list[int]:
        return sorted(number for number, frame in self._frames.items() if not frame.closed and number != but)

    def _if_filled(self, number: int) -> KtData | None:
        """Close a frame whose samples all came, where the header does not promise more averages."""
        frame = self._frames[number]
        if frame.n_filled == self.layout.n_slots and self._average_limit is None:
            return self._close(number)
        return None

    def _all_came(self, frame: _Frame) -> bool:
        """Tell whether every average of every sample came, where the header says how many there are."""
        if self._average_limit is None or frame.n_filled < self.layout.n_slots:
            return False
        if self.protocol.kspace_weighting == "acquisition_weighted":
            return False
        averages = self._average_limit.maximum - self._average_limit.minimum + 1
        return frame.n_readouts - frame.repeated >= averages * self.layout.n_slots

    def _frame_number(self, head: ReadoutHead) -> int:
        if self._dynamic < 0:
            return 0
        number = head.counters[self._dynamic]
        self._check_limit(head, self._dynamic, number, self._frame_limit)
        return number

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
        if name in (self.protocol.axes.get("te"), self.protocol.axes.get("edit")):
            return (
                "this reconstruction takes one echo time and one editing condition; send one, or name the water's in "
                "mrsi_water_ref"
            )
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
        frame.n_readouts += 1
        return True

    def _late(self, head: ReadoutHead, known: bool) -> None:
        if not known:
            raise DataError(
                f"readout {head.scan_counter} is a further average of a {self.role.value} frame that was already "
                "complete; say in encodingLimits how many averages there are"
            )
        self.report.warn(
            f"{self.role.value} readouts (first: {head.scan_counter}) came after their frame was complete and were "
            "not used"
        )

    def _close(self, number: int) -> KtData:
        """Finish a frame: divide averages, say what is missing, hand its samples over."""
        frame = self._frames[number]
        slots = np.array(frame.count, dtype=np.int64)
        self._check_enough(number, slots)
        self._say_what_happened(number, frame, slots)
        # coordinates first: a layout that takes k from the readouts may refuse what it saw
        k, t, density = self.layout.coordinates()
        count = self.layout.counts(slots)
        if count.ndim == 2 and (count == count[:, :1]).all():
            count = np.ascontiguousarray(count[:, 0])
        samples = frame.samples
        if self.protocol.kspace_weighting != "acquisition_weighted" and slots.max(initial=0) > 1:
            divisor = np.maximum(count, 1).astype(np.float32)
            samples /= divisor if count.ndim == 2 else divisor[:, None]
        if self.layout.shares is not None:
            count = count * (self.layout.shares if count.ndim == 1 else self.layout.shares[:, None])
        # a copy: an empty view would keep the memory of the whole frame
        frame.samples, frame.closed = samples[:, :0].copy(), True
        self.n_sent += 1
        return KtData(
            samples=samples,
            k=k,
            t=t,
            count=count,
            role=self.role,
            protocol=self.protocol,
            grid=self.layout.grid,
            frame=number,
            sample_time_s=self.layout.sample_time_s,
            density=density,
        )

    def _check_enough(self, number: int, count: np.ndarray) -> None:
        """Refuse metabolites of which nearly nothing came: their maps would show nothing but the prior."""
        came = int(np.count_nonzero(count))
        if self.role is Role.METABOLITE and came < _LEAST_PART * count.size:
            raise DataError(
                f"only {came} of {count.size} k-space samples of {self.role.value} frame {number} came, too few to "
                "reconstruct; send the whole scan, or correct matrixSize or LAST_IN_REPETITION"
            )

    def _say_what_happened(self, number: int, frame: _Frame, count: np.ndarray) -> None:
        name = f"{self.role.value} frame {number}" if self._dynamic >= 0 and len(self._frames) > 1 else self.role.value
        missing = int(np.count_nonzero(count == 0))
        if missing:
            self.report.warn(f"{missing} of {count.size} k-space samples of {name} were not acquired and are zero")
        if frame.repeated:
            self.report.warn(
                f"{frame.repeated} readouts of {name} repeat samples with the same counters; they were averaged"
                if self.protocol.kspace_weighting != "acquisition_weighted"
                else f"{frame.repeated} readouts of {name} repeat samples with the same counters; they were added"
            )


def _counter(protocol: Protocol, axis: str) -> int:
    return COUNTER_INDEX.get(protocol.axes.get(axis, "none"), -1)
