"""Gadget `correct_drift`: data as if frequency and phase had stood still over the scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from mrsi_gadgets.arrays import namespace
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget, handed_on
from mrsi_gadgets.reconstruction.centre_drift import drift_from_centre
from mrsi_gadgets.reconstruction.drift import (
    Course,
    Traces,
    change_between,
    correct_drift,
    course_through,
    drift_from_navigators,
    reference_time,
    shift_of_residual_water,
    traces_of,
)

SOURCES = ("auto", "navigators", "centre", "water", "data", "none")
LARGE_DRIFT_HZ = 5.0
"""Movement of the frequency over a frame from which on it is told as a warning."""
LEAST_CHANGE_HZ = 0.1
"""Smallest change between repetitions that is corrected: less does nothing to a map."""
LEAST_SHIFT_HZ = 5.0
"""Smallest shift of residual water that is taken for a drift; suppression alone shifts it by up to three Hz."""
LARGEST_SHIFT_HZ = 30.0
"""Largest shift of residual water that is taken for a drift; more is another line, or another frequency was set."""
LEAST_SEPARATION = 0.5
"""Part of a frame's duration that has to lie between data that are compared, since their change is extrapolated."""
_SURE = 5.0
"""Standard deviations by which a change has to stand out of the noise."""

Anchor = tuple[float, float]
"""Time [s] and frequency [Hz]."""


@dataclass(frozen=True)
class CorrectDrift(Gadget):
    """Frequency and phase drift over the scan, from navigators, repeated water or the data themselves, taken out."""

    element: ClassVar[str] = "correct_drift"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (KtData,)
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"source": SOURCES}
    requires: ClassVar[tuple[str, ...]] = ("noise_covariance",)

    source: str = "auto"
    """auto (the first of the following that tells), navigators, centre (of k-space, which each arm of a spiral visits),
    water (a reference that comes again), data, none."""

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Consume navigators, yield everything else without drift as far as it is known when it passes."""
        known = _Known(self.source)
        for item in items:
            if not isinstance(item, KtData) or item.role is Role.NOISE:
                yield item
                continue
            if item.role is Role.NAVIGATOR:
                known.add_navigators(item)
                continue
            with context.report.timed("correct_drift"):
                course = known.course_for(item)
                if item.role is Role.METABOLITE:
                    self._tell(known, course, item, context)
                if course is not None:
                    ready = [correct_drift(item, course, overwrite=context.may_overwrite)]
                else:
                    # what is not corrected here is not corrected later
                    ready = [replace(item, acquired_s=None)]
            del item
            yield from handed_on(ready)

    def _tell(self, known: _Known, course: Course | None, item: KtData, context: Context) -> None:
        report = context.report
        if course is None or item.acquired_s is None:
            report.provenance["drift"] = {"source": "none", "why": known.why}
            if self.source not in ("auto", "none"):
                report.warn(f"drift was not corrected (<{self.element} source='{self.source}'>): {known.why}")
            else:
                context.progress(f"drift not corrected: {known.why}")
            return
        moved = course.range_hz(item.acquired_s)
        _, phase = course.at(item.acquired_s)
        drift = report.provenance.setdefault("drift", {})
        drift |= {"source": course.source, "zero_at_s": round(known.zero_s, 2)}
        frames = drift.setdefault("frames", {})
        hz, _ = course.at(item.acquired_s)
        frames[f"{item.frame}" if not item.echo else f"{item.frame} echo {item.echo}"] = {
            "mean_hz": round(float(np.mean(hz)), 3), "moved_hz": round(moved, 3),
            "moved_phase_rad": round(float(np.ptp(phase)), 3),
        }  # fmt: skip
        context.progress(
            f"drift from {course.source}: the frequency moved {moved:.2f} Hz over frame {item.frame} and lay "
            f"{float(np.mean(hz)):+.2f} Hz from where it was calibrated; taken out"
        )
        if moved > LARGE_DRIFT_HZ:
            report.warn(
                f"the frequency moved {moved:.1f} Hz within a frame (from {course.source}); it was taken out, but let "
                "the system cool down or correct the frequency between repetitions"
            )


@dataclass
class _Known:
    """What has been learned of the drift so far."""

    source: str
    navigators: list[KtData] = field(default_factory=list)
    mean_navigator: np.ndarray | None = None
    first: dict[tuple[Role, int], Traces] = field(default_factory=dict)
    """Role and echo -> the first data of this kind."""
    anchors: dict[Role, list[Anchor]] = field(default_factory=dict)
    zero_s: float = 0.0
    """When the course is zero."""
    why: str = ""
    """Why there is no course."""

    def uses(self, source: str) -> bool:
        return self.source in ("auto", source)

    def add_navigators(self, item: KtData) -> None:
        if self.uses("navigators"):
            self.navigators.append(item)

    def course_for(self, item: KtData) -> Course | None:
        """Return the course for water, calibration or metabolites, or None where it is not known (`why`)."""
        if self.source == "none":
            self.why = "it is switched off"
            return None
        if item.acquired_s is None:
            self.why = "the readouts carry no time stamps"
            return None
        course = self._from_navigators(item) if self.navigators else None
        if course is not None:
            return course
        if item.role is Role.CALIBRATION or self.source == "navigators":
            self.why = "no navigators came that show the water's frequency"
            return None
        within = drift_from_centre(item) if self.uses("centre") else None
        between = self._from_data(item) if self.source != "centre" else None
        if within is None:
            if self.source == "centre":
                self.why = "the readouts do not come back to the centre of k-space"
            return between
        if between is None:
            return within
        # where the frame as a whole lies is told by repetitions and residual water
        hz, _ = between.at(np.asarray(reference_time(item)))
        return replace(within, hz=within.hz + float(hz), source=f"{within.source} and {between.source}")

    def _from_navigators(self, item: KtData) -> Course | None:
        if len(self.navigators) > 1:
            self.navigators = [_joined(self.navigators)]
        noise_sd = float(np.sqrt(item.sample_time_s / self.navigators[0].sample_time_s)) if item.sample_time_s else 1.0
        found = drift_from_navigators(self.navigators[0], self.mean_navigator, noise_sd=noise_sd)
        if found is None:
            return None
        if self.mean_navigator is None:
            self.mean_navigator = found[1]
            self.zero_s = reference_time(item)
        return found[0].zero_at(self.zero_s)

    def _from_data(self, item: KtData) -> Course | None:
        """Return the course through what repetitions, or residual water, say up to now."""
        assert item.acquired_s is not None
        metabolites = item.role is Role.METABOLITE
        if not (self.uses("data") if metabolites else self.uses("water") or self.uses("data")):
            return self._through(Role.WATER_REFERENCE, item, "water")
        kind, anchors = (item.role, item.echo), self.anchors.setdefault(item.role, [])
        first = self.first.get(kind)
        if first is None:
            traces = traces_of(item)
            if traces is None:
                self.why = "the data hold no signal to follow"
                return None
            self.first[kind] = traces
            if not item.echo:
                anchors += self._first_anchors(item, traces)
        elif not item.echo and _separate(item, anchors):
            change = change_between(first, item)
            if change is not None:
                hz, sd = change
                start = next(anchor[1] for anchor in anchors if anchor[0] == first.time_s)
                sure = abs(hz) > max(LEAST_CHANGE_HZ, _SURE * sd)
                anchors.append((reference_time(item), start + (hz if sure else 0.0)))
        return self._through(Role.WATER_REFERENCE, item, "water") or self._through(Role.METABOLITE, item, "data")

    def _first_anchors(self, item: KtData, traces: Traces) -> list[Anchor]:
        """Return where the first data of a role stand: zero, or residual water's shift against the reference."""
        role = item.role
        water = self.first.get((Role.WATER_REFERENCE, 0))
        if role is not Role.METABOLITE or water is None:
            if not self.first.get((Role.WATER_REFERENCE, 0)) or role is Role.WATER_REFERENCE:
                self.zero_s = traces.time_s
            return [(traces.time_s, 0.0)]
        shift = None
        if self.uses("data") and _separate(item, [(water.time_s, 0.0)]):
            shift = shift_of_residual_water(water, traces)
        if shift is None or not max(LEAST_SHIFT_HZ, _SURE * shift[1]) < abs(shift[0]) < LARGEST_SHIFT_HZ:
            return [(traces.time_s, 0.0)]
        return [(water.time_s, 0.0), (traces.time_s, shift[0])]

    def _through(self, role: Role, item: KtData, source: str) -> Course | None:
        anchors = self.anchors.get(role, [])
        if not self.uses(source) or len(anchors) < 2 or not any(hz for _, hz in anchors):
            self.why = "no change of the frequency stands out of what the data alone can tell"
            return None
        assert item.acquired_s is not None
        return course_through(anchors, item.acquired_s, source)


def _separate(item: KtData, anchors: list[Anchor]) -> bool:
    """Tell whether data were acquired long enough before or after all anchors."""
    assert item.acquired_s is not None
    duration = float(np.ptp(item.acquired_s))
    return all(abs(reference_time(item) - time) >= LEAST_SEPARATION * duration for time, _ in anchors)


def _joined(parts: list[KtData]) -> KtData:
    samples = namespace(parts[0].samples).concat([part.samples for part in parts], axis=1)
    times = np.concatenate([np.asarray(part.acquired_s) for part in parts])
    count = len(times)
    t = np.broadcast_to(parts[0].t[:1], (count, parts[0].t.shape[1]))
    number = np.ones(count, dtype=np.int64)
    return replace(parts[0], samples=samples, k=np.zeros((count, 3)), t=t, count=number, acquired_s=times)
