"""Readouts in, k-t data out: noise, water reference and metabolite frames, each as soon as it is complete.

Calibration readouts and navigators leave before the metabolites that they serve.

Samples go to their place when they arrive; nothing is kept twice. What a frame lacks, what came twice and what was
assumed is said in the report; what contradicts the protocol is refused with the readout's scan_counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from scipy.linalg.blas import sdot

from mrsi_gadgets import data
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.trajectories import TrajectoryLookup, trajectory_store
from mrsi_gadgets.mrd.cartesian import CsiLayout
from mrsi_gadgets.mrd.clock import ScanClock
from mrsi_gadgets.mrd.epsi import EpsiLayout
from mrsi_gadgets.mrd.frames import RoleFrames
from mrsi_gadgets.mrd.header import MrdHeader
from mrsi_gadgets.mrd.layout import LayoutBuilder, ReadoutHead, Surroundings, read_head
from mrsi_gadgets.mrd.navigators import Navigators
from mrsi_gadgets.mrd.noise import NoiseReadouts
from mrsi_gadgets.mrd.profile import read_water_protocol
from mrsi_gadgets.mrd.rings import RingLayout
from mrsi_gadgets.mrd.roles import RoleRule
from mrsi_gadgets.mrd.saturation import Saturation
from mrsi_gadgets.mrd.spirals import SpiralLayout
from mrsi_gadgets.stream.messages import Acquisition, Flag

LAYOUTS: dict[str, LayoutBuilder] = {
    "csi": CsiLayout, "epsi": EpsiLayout, "rings": RingLayout, "spiral": SpiralLayout
}  # fmt: skip
"""Encoding -> what places its readouts."""

_UNUSED = {
    Role.DUMMY: "dummy scans",
    Role.NAVIGATOR: "navigator or feedback readouts",
    Role.CALIBRATION: "calibration readouts",
}
_NOTHING: Mapping[str, str] = MappingProxyType({})
_LARGEST_SAMPLE = 1e15
"""No receiver gives more. Squares (1e30) leave room for sums over all samples of a scan in single precision (3e38)."""
_COMPRESSED = sum(1 << (n - 1) for n in range(Flag.COMPRESSION1, Flag.COMPRESSION4 + 1))


class Reporter(Protocol):
    """Takes the sentences that leave with the result."""

    def warn(self, sentence: str) -> None:
        """Keep a sentence."""


def sort_readouts(
    acquisitions: Iterable[Any],
    protocol: data.Protocol,
    report: Reporter,
    header: MrdHeader | None = None,
    *,
    settings: Mapping[str, str] = _NOTHING,
    water_protocol: data.Protocol | None = None,
    trajectories: TrajectoryLookup | None = None,
) -> Iterator[KtData]:
    """Sort readouts by role and frame into k-t data.

    Noise comes as soon as another readout follows it; the water reference when it is complete; each metabolite frame
    when LAST_IN_REPETITION or all samples have come, else at the end. Metabolites wait for a water reference that can
    still come before them. Repeated averages give their mean (with ``acquisition_weighted`` times their number over the
    largest); a sample that came twice without being an average is averaged too, with a warning. Missing samples are
    zero with count 0. Calibration readouts (flag 20 without 21) come before the first metabolites, placed as these are;
    navigators (flag 23) before each water or metabolite frame, all that came since the last one.

    Parameters
    ----------
    acquisitions
        `Acquisition` messages in their order; other items are passed over.
    protocol
        Of the metabolites (encoding space 0). The `KtData` carry it with the geometry of the readouts.
    report
        Takes warnings.
    header
        Gives counter ranges, and the water reference's encoding space where `water_protocol` is not given.
    settings
        Explicit profile values, used when the water protocol is read from the header.
    water_protocol
        Of the water reference (encoding space 1); without one and without a header that of the metabolites.
    trajectories
        Looks up what mrsi_trajectory_id names (`io.trajectories.trajectory_store`); None: there is no store.

    Yields
    ------
        Noise, navigators, water reference, calibration, metabolite frames.

    Raises
    ------
    DataError
        Readouts contradict the protocol or each other, hold values that are not finite, or there are no metabolites.
    """
    if water_protocol is None and header is not None and len(header.encodings) > 1:
        water_protocol = read_water_protocol(header, settings, warn=report.warn)
    around = Surroundings(header, trajectories or trajectory_store(None), report.warn)
    sorter = _Sorter(protocol, water_protocol or protocol, report, around)
    for item in acquisitions:
        if isinstance(item, Acquisition):
            yield from _handed_on(sorter.take(item))
    yield from _handed_on(sorter.finish())
    sorter.check_metabolites()


def _handed_on(frames: list[KtData]) -> Iterator[KtData]:
    """Yield frames without keeping them: their samples are free as soon as nobody downstream needs them."""
    while frames:
        yield frames.pop(0)


class _Sorter:
    """State of one scan."""

    def __init__(self, protocol: data.Protocol, water: data.Protocol, report: Reporter, around: Surroundings) -> None:
        calibration = replace(protocol, editing="none", kspace_weighting="none")
        self.protocols = {Role.METABOLITE: protocol, Role.WATER_REFERENCE: water, Role.CALIBRATION: calibration}
        self.clock = ScanClock(protocol.time_tick_ms * 1e-3)
        self.report, self.around, self.header = report, around, around.header
        header = around.header
        self.rule = RoleRule(protocol)
        self.noise: NoiseReadouts | None = NoiseReadouts(protocol, report)
        self.water: RoleFrames | None = None
        self.metabolites: RoleFrames | None = None
        self.calibration: RoleFrames | None = None
        self.calibrated: list[KtData] = []
        self.calibration_ended = False
        self.misfit = ""
        """Why calibration readouts cannot be used."""
        self.navigators = Navigators(protocol, report)
        self.saturation = Saturation()
        self.held: list[KtData] = []
        self.unused: dict[Role, int] = {}
        self.parities: dict[Role, int] = {}
        self.geometry: bytes = b""
        self.n_coils = 0
        self.water_sent = False
        self.since_water = 0
        self.water_flagged: bool | None = None
        self.water_space = 0
        limits = header.encodings[0].limits if header is not None and header.encodings else {}
        dynamic = limits.get(protocol.axes.get("dynamic", "none"))
        self.one_frame = dynamic is None or dynamic.maximum == dynamic.minimum

    def take(self, readout: Acquisition) -> list[KtData]:
        """Put one readout in its place; return what became complete."""
        head = read_head(readout.head)
        role = self.rule.role(head)
        if head.flags & _COMPRESSED:
            raise DataError(f"readout {head.scan_counter} is compressed; switch the compression of the data off")
        self.clock.seconds(head.time_stamp)
        if role is not Role.METABOLITE and role is not Role.WATER_REFERENCE:
            self._take_other(role, head, readout)
            return []
        complete: list[KtData] = []
        self._check(head, role, readout)
        if self.noise is not None:
            complete += self.noise.finish()
            self.noise.compare(self.n_coils)
            self.noise = None
        placed = self._take_data(role, head, readout)
        return complete + self._with_helpers(placed) if placed else complete

    def _take_data(self, role: Role, head: ReadoutHead, readout: Acquisition) -> list[KtData]:
        """Put a readout of water or metabolites in its place; return what became complete."""
        if role is Role.WATER_REFERENCE:
            self.water = self.water or self._start(role, head, readout)
            self.since_water = 0
            return self._order(self.water.take(head, readout))
        complete: list[KtData] = []
        self.metabolites = self.metabolites or self._start(role, head, readout)
        if self.water is not None:
            self.since_water += 1
            if not self.water_sent:
                # a water reference that each sample came of is complete once metabolites follow it
                complete += self._order(self.water.followed())
        placed = self.metabolites.take(head, readout)
        return complete + self._order(placed) if placed else complete

    def finish(self) -> list[KtData]:
        """Return what is left at the end of the scan."""
        complete = self.noise.finish() if self.noise is not None else []
        ready: list[KtData] = []
        if self.water is not None:
            ready += [self._water(frame) for frame in self.water.finish()]
        if self.metabolites is not None:
            self.held += self.metabolites.finish()
        ready += sorted(self.held, key=lambda frame: (frame.frame, frame.echo))
        self.held = []
        complete += self._with_helpers(ready)
        if self.navigators.unused:
            self.unused[Role.NAVIGATOR] = self.navigators.unused
        for role, count in self.unused.items():
            why = self.misfit if role is Role.CALIBRATION else ""
            self.report.warn(f"{count} {_UNUSED[role]} were not used{why}")
        return complete

    def _with_helpers(self, frames: list[KtData]) -> list[KtData]:
        """Put before frames that leave the navigators since the last ones, and the calibration that metabolites need.

        Navigators still come while a frame is held; those of its own time are there when it leaves.
        """
        if not frames:
            return frames
        for sentence in self.saturation.sentences():
            self.report.warn(sentence)
        ready = self.navigators.hand_over(self.n_coils, stamped=self.clock.varies)
        for frame in frames:
            if frame.role is Role.METABOLITE and not self.calibration_ended:
                self.calibration_ended = True
                if self.calibration is not None:
                    ready += self.calibrated + self.calibration.finish()
                    self.calibration, self.calibrated = None, []
            ready.append(frame)
        return ready

    def check_metabolites(self) -> None:
        """Refuse a scan without metabolites."""
        if self.metabolites is not None:
            return
        if self.rule.text == "measurement":
            raise DataError(
                "this measurement is a water reference (mrsi_water_ref 'measurement') and holds no metabolite "
                "readouts; send it together with the metabolite measurement"
            )
        counts = {role.value: count for role, count in self.unused.items()}
        if self.water is not None:
            counts[Role.WATER_REFERENCE.value] = self.water.n_readouts
        seen = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none at all"
        raise DataError(
            f"no metabolite readouts came (data readouts: {seen}); check mrsi_water_ref '{self.rule.text}' and whether "
            "the scan was complete"
        )

    def _take_other(self, role: Role, head: ReadoutHead, readout: Acquisition) -> None:
        if role is Role.NAVIGATOR:
            self._check_finite(head, readout)
            self.navigators.take(head, readout, self.clock.seconds(head.time_stamp))
            return
        # those of a water reference would be mixed with those of the metabolites
        if role is Role.CALIBRATION and not self.calibration_ended and not self.rule.is_water(head):
            self._take_calibration(head, readout)
            return
        if role is not Role.NOISE:
            self.unused[role] = self.unused.get(role, 0) + 1
            return
        self._check_finite(head, readout)
        if self.noise is None:
            self.report.warn("noise readouts came after the first data and were not used; send them first")
        else:
            self.noise.take(head, readout)

    def _take_calibration(self, head: ReadoutHead, readout: Acquisition) -> None:
        """Put a calibration readout where a metabolite readout with its counters lies; nothing depends on its fit."""
        self._check(head, Role.CALIBRATION, readout)
        try:
            if head.encoding_space:
                raise DataError(f"readout {head.scan_counter} is of encoding space {head.encoding_space}, not 0")
            self.calibration = self.calibration or self._start(Role.CALIBRATION, head, readout)
            self.calibrated += self.calibration.take(head, readout)
        except DataError as error:
            self.misfit = f", since they do not fit the metabolites' ({error})"
            self.unused[Role.CALIBRATION] = max(1, self.calibration.n_readouts if self.calibration else 1)
            self.calibration, self.calibrated, self.calibration_ended = None, [], True

    def _order(self, frames: list[KtData]) -> list[KtData]:
        """Let water go before metabolites where it can."""
        if self.protocols[Role.METABOLITE].editing == "metabolite_cycling":
            # both come out of the same readouts, water first
            return frames
        ready: list[KtData] = []
        for frame in frames:
            if frame.role is Role.WATER_REFERENCE:
                ready += [self._water(frame), *self.held]
                self.held = []
            elif self._wait_for_water():
                self.held.append(frame)
                if self.water is not None and self.since_water >= self._readouts_of(frame):
                    # no water came during this whole frame, so that the rest of it will not come either
                    ready += self._order(self.water.finish())
            else:
                ready.append(frame)
        return ready

    def _readouts_of(self, frame: KtData) -> int:
        return self.metabolites.readouts_of(frame) if self.metabolites is not None else 0

    def _wait_for_water(self) -> bool:
        if self.water_sent or self.rule.text == "none":
            return False
        return self.water is not None or self.one_frame

    def _water(self, frame: KtData) -> KtData:
        if self.metabolites is not None and self.metabolites.n_sent > len(self.held):
            self.report.warn("the water reference came after metabolite frames, which were reconstructed without it")
        self.water_sent = True
        return frame

    def _start(self, role: Role, head: ReadoutHead, readout: Acquisition) -> RoleFrames:
        protocol = replace(self.protocols[role], geometry=self._placed(self.protocols[role].geometry, head))
        builder = LAYOUTS.get(protocol.encoding)
        if builder is None:
            raise DataError(
                f"mrsi_encoding '{protocol.encoding}' does not say how k-space is walked, so its readouts cannot be "
                f"sorted; give one of {', '.join(sorted(LAYOUTS))}"
            )
        space = head.encoding_space
        limits = self.header.encodings[space].limits if self.header is not None else {}
        layout = builder(protocol, self.around, readout)
        self._check_parity(role, getattr(layout, "reverse_parity", -1))
        return RoleFrames(role, protocol, layout, limits, self.n_coils, self.report, self.clock)

    def _check_parity(self, role: Role, parity: int) -> None:
        """Refuse alternating lobes that run back at odd numbers in one role and at even numbers in another."""
        names = ("even", "odd")
        for other, seen in self.parities.items():
            if seen != parity and min(seen, parity) >= 0:
                raise DataError(
                    f"the reversed lobes (flag IS_REVERSE) of the {role.value} readouts have {names[parity]} numbers, "
                    f"those of the {other.value} readouts {names[seen]} ones; one of them would be mirrored, correct "
                    "the flags"
                )
        self.parities[role] = parity

    def _placed(self, geometry: data.Geometry, head: ReadoutHead) -> data.Geometry:
        """Return the geometry with the readouts' position and directions."""
        position, read, phase, normal = np.frombuffer(head.geometry, dtype="<f4").reshape(4, 3).astype(float)
        if not (read.any() or phase.any() or normal.any()):
            self.report.warn("the readouts carry no directions; read, phase and slice were taken as L, P and S")
            read, phase, normal = np.eye(3)
        return replace(
            geometry,
            position_mm=tuple(position.tolist()),
            read_dir=tuple(read.tolist()),
            phase_dir=tuple(phase.tolist()),
            slice_dir=tuple(normal.tolist()),
        )

    def _check(self, head: ReadoutHead, role: Role, readout: Acquisition) -> None:
        """Refuse what contradicts the readouts before; everything here runs for each readout and has to be quick."""
        if readout.data.shape != (head.n_channels, head.n_samples):
            raise DataError(
                f"readout {head.scan_counter} holds samples {readout.data.shape} but its header announces "
                f"{head.n_channels} channels and {head.n_samples} samples; correct the header"
            )
        if not self.n_coils:
            self.n_coils, self.geometry = head.n_channels, head.geometry
            self._check_channels()
        if head.n_channels != self.n_coils:
            raise DataError(
                f"readout {head.scan_counter} has {head.n_channels} channels but the ones before it have "
                f"{self.n_coils}; all data readouts need the same coils"
            )
        if head.geometry != self.geometry:
            self._check_geometry(head)
        self._check_finite(head, readout)
        self.saturation.look(role, head.scan_counter, readout.data)
        if head.encoding_space and role is Role.METABOLITE:
            raise DataError(
                f"readout {head.scan_counter} is of encoding space {head.encoding_space} but is no water reference by "
                f"mrsi_water_ref '{self.rule.text}'; mark it as water or send metabolites in encoding space 0"
            )
        if role is Role.WATER_REFERENCE:
            self._check_water(head)
        if not head.sample_time_us:
            self.report.warn("readouts have sample_time_us 0; the dwell was taken from mrsi_dwell_us")
        if head.center_sample >= head.n_samples:
            self.report.warn(
                f"center_sample {head.center_sample} lies beyond the {head.n_samples} samples of the readouts and was "
                "ignored"
            )

    def _check_channels(self) -> None:
        announced = self.header.receiver_channels if self.header is not None else None
        if announced and announced != self.n_coils:
            self.report.warn(
                f"the header announces {announced} receiverChannels but the readouts have {self.n_coils}; "
                "those were used"
            )

    def _check_geometry(self, head: ReadoutHead) -> None:
        first = np.frombuffer(self.geometry, dtype="<f4").reshape(4, 3)
        this = np.frombuffer(head.geometry, dtype="<f4").reshape(4, 3)
        if not np.allclose(first, this, rtol=0, atol=1e-3):
            raise DataError(
                f"readout {head.scan_counter} lies at {this[0].tolist()} mm with directions {this[1:].tolist()}, "
                f"the ones before it at {first[0].tolist()} mm with {first[1:].tolist()}; "
                "one measurement needs one geometry"
            )

    def _check_finite(self, head: ReadoutHead, readout: Acquisition) -> None:
        # the sum of squares is the quickest pass that meets every value; where it is odd, look again before refusing
        flat = readout.data.reshape(-1).view(np.float32)
        # straight from BLAS: it does not warn of what is handled here, and numpy.errstate costs as much as the pass
        if not flat.size or sdot(flat, flat) <= _LARGEST_SAMPLE**2:
            return
        if not np.isfinite(readout.data).all():
            channel = int(np.flatnonzero(~np.isfinite(readout.data).all(axis=1))[0])
            raise DataError(
                f"readout {head.scan_counter} holds values that are not finite (NaN or infinite) in channel {channel}; "
                "acquire or convert it again"
            )
        largest = float(np.abs(flat).max())
        if largest > _LARGEST_SAMPLE:
            raise DataError(
                f"readout {head.scan_counter} holds a value of {largest:.3g}, not plausible (sums of its square "
                "leave the range of numbers); acquire or convert it again"
            )

    def _check_water(self, head: ReadoutHead) -> None:
        if head.encoding_space >= 2 or (
            head.encoding_space == 1 and self.header is not None and len(self.header.encodings) < 2
        ):
            raise DataError(
                f"readout {head.scan_counter} is of encoding space {head.encoding_space}, which the header does not "
                "describe; add that encoding"
            )
        flagged = bool(head.flags & Flag.USER1.mask)
        if self.water_flagged is None:
            self.water_flagged, self.water_space = flagged, head.encoding_space
            if not head.encoding_space:
                self.protocols[Role.WATER_REFERENCE] = self.protocols[Role.METABOLITE]
        elif head.encoding_space != self.water_space:
            raise DataError(
                f"water reference readout {head.scan_counter} is of encoding space {head.encoding_space}, the ones "
                f"before it of {self.water_space}; send one water reference"
            )
        elif flagged != self.water_flagged:
            raise DataError(
                f"readout {head.scan_counter} is water by mrsi_water_ref '{self.rule.text}' and "
                f"{'carries' if flagged else 'lacks'} the flag USER1, unlike the ones before it; correct flags or rule"
            )
