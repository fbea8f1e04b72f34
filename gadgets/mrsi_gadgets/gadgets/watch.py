"""What a running scan tells whoever looks at it from outside: filling of k-space, first picture, maps, spectra, doubts.

Everything is a small dict that JSON can hold, told at most every half second; nothing in it names a person. A scan that
nobody watches pays nothing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mrsi_gadgets.data import Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.context import Calibration
from mrsi_gadgets.mrd.header import MrdHeader
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, read_head
from mrsi_gadgets.mrd.roles import RoleRule
from mrsi_gadgets.output import console
from mrsi_gadgets.output.meta import from_xml, value_of
from mrsi_gadgets.output.nifti import image_values
from mrsi_gadgets.output.panels import curves_of, direction_letters
from mrsi_gadgets.output.results import Results
from mrsi_gadgets.stream.messages import Acquisition, Image

Tell = Callable[[dict[str, Any]], None]
EVERY_S = 0.5
_MOST_CELLS = 1 << 16
"""A picture of k-space with more cells is not told."""
_MOST_POINTS = 512
_AXES = ("kx", "ky", "kz", "path", "chunk", "interleaf", "t")


class ScanWatch:
    """Turns what happens in a scan into dicts for `tell`.

    Parameters
    ----------
    tell
        Takes them; called from the thread that runs the scan.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._rule: RoleRule | None = None
        self._axes: list[tuple[int, int]] = []
        self._seen: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._said = -EVERY_S
        self._images = 0
        self._warned = 0

    def begins(self, protocol: Protocol, header: MrdHeader, recipe: str) -> None:
        """Tell what is measured."""
        self._rule = RoleRule(protocol)
        limits = header.encodings[0].limits if header.encodings else {}
        sizes = {"t": protocol.n_times, **dict(zip(("kx", "ky", "kz"), protocol.geometry.matrix, strict=True))}
        for axis in _AXES:
            counter = protocol.axes.get(axis, "none")
            size = sizes.get(axis) or (limits[counter].maximum + 1 if counter in limits else 0)
            if counter in COUNTER_INDEX and size > 1:
                self._axes.append((COUNTER_INDEX[counter], size))
        even = len(set(protocol.temporal_interleaves)) <= 1  # else rings have different numbers of readouts
        across, down = protocol.geometry.affine_lps()[:3, :2].T
        self._tell({
            "kind": "begins", "recipe": recipe, "nucleus": protocol.nucleus, "encoding": protocol.encoding,
            "matrix": list(protocol.geometry.matrix), "points": protocol.n_times,
            "expected": int(np.prod([size for _, size in self._axes])) if self._axes and even else 0,
            "sides": [direction_letters(way / np.linalg.norm(way)) for way in (-across, across, -down, down)],
        })  # fmt: skip

    def readout(self, item: Acquisition) -> None:
        """Count a readout."""
        if self._rule is None:
            return
        head = read_head(item.head)
        try:
            role = self._rule.role(head)
        except DataError:  # whoever sorts the readouts refuses it
            return
        self._counts[role.value] = self._counts.get(role.value, 0) + 1
        first, second = (*self._axes, (0, 1), (0, 1))[:2]
        if role in (Role.METABOLITE, Role.WATER_REFERENCE) and 1 < first[1] * second[1] <= _MOST_CELLS:
            place = (head.counters[first[0]], head.counters[second[0]] if len(self._axes) > 1 else 0)
            seen = self._seen.setdefault(role.value, np.zeros((first[1], second[1]), np.uint16))
            if place[0] < seen.shape[0] and place[1] < seen.shape[1] and seen[place] < np.iinfo(np.uint16).max:
                seen[place] += 1
        now = time.monotonic()
        if now - self._said >= EVERY_S:
            self._said = now
            self._progress()

    def ended(self) -> None:
        """Tell the last counts: all readouts have come."""
        self._progress()
        self._tell({"kind": "computing"})

    def calibrated(self, calibration: Calibration) -> None:
        """Tell the water image, or where there is none the mask."""
        picture = calibration.water if calibration.water is not None else calibration.mask
        if picture is not None:
            top = float(np.percentile(picture, 99.5)) or 1.0
            title = "water" if calibration.water is not None else "mask"
            self._tell(_picture("preview", title, np.asarray(picture, float), 0.0, top, "a.u.", 0))

    def image(self, image: Image) -> None:
        """Count an image, and tell a map that the console shows, or the example spectra."""
        self._images += 1
        if image.data.dtype.kind == "f":
            # exact values, hundreds of images: their attributes need not be read to see that they are none
            return
        meta = from_xml(image.attributes)
        kind = value_of(meta, "mrsi_kind")
        if kind == console.DISPLAY:
            centre, width = float(value_of(meta, "WindowCenter")), float(value_of(meta, "WindowWidth"))
            title, unit = value_of(meta, "SeriesDescription"), value_of(meta, "mrsi_unit")
            low, high = centre - width / 2, centre + width / 2
            frame = int(value_of(meta, "mrsi_frame", "0"))
            self._tell(_picture("map", title, image_values(image), low, high, unit, frame))
        elif kind == console.SPECTRA:
            results = Results()
            results.add(image)
            for spectrum in results.spectra[:3]:
                curves = curves_of(spectrum)
                if curves is not None:
                    step = -(-len(curves.ppm) // _MOST_POINTS)
                    self._tell({
                        "kind": "spectrum", "voxel": list(spectrum.voxel), "ppm": _numbers(curves.ppm[::step]),
                        "data": _numbers(curves.data[::step]), "fit": _numbers(curves.fit[::step]),
                    })  # fmt: skip

    def warned(self, warnings: Sequence[str]) -> None:
        """Tell what the scan's processing doubts, where that is more than was told."""
        if len(warnings) > self._warned:
            self._warned = len(warnings)
            self._tell({"kind": "warnings", "warnings": list(warnings)})

    def failed(self, sentence: str) -> None:
        """Tell why there will be no result, as soon as that is known."""
        self._tell({"kind": "failure", "sentence": sentence})

    def finished(self, latency_s: float) -> None:
        """Tell how many images went out, and how long it took from the last readout to the last of them."""
        self._tell({"kind": "latency", "seconds": round(latency_s, 3), "images": self._images})

    def _progress(self) -> None:
        told: dict[str, Any] = {"kind": "progress", "readouts": dict(self._counts)}
        for role, seen in self._seen.items():
            if seen.size <= _MOST_CELLS:
                full = max(int(seen.max()), 1)
                cells = np.ceil(seen.astype(float) * (255.0 / full)).astype(np.uint8)
                told.setdefault("filled", {})[role] = {"shape": list(seen.shape), "cells": _text(cells)}
        self._tell(told)


def _picture(
    kind: str, title: str, values: np.ndarray, low: float, high: float, unit: str, frame: int
) -> dict[str, Any]:
    """Return a volume (x, y, z) as one byte a voxel between two values; 0 is what was not measured."""
    step = (high - low) / 254 or 1.0
    grey = np.where(np.isfinite(values), np.clip(np.rint((values - low) / step), 0, 254) + 1, 0)
    return {
        "kind": kind, "title": title, "unit": unit, "frame": frame, "low": low, "high": high,
        "shape": list(values.shape), "cells": _text(grey.astype(np.uint8)),
    }  # fmt: skip


def _text(cells: np.ndarray) -> str:
    """Return bytes as text; the first axis runs fastest."""
    return base64.b64encode(np.ascontiguousarray(cells.T).tobytes()).decode("ascii")


def _numbers(values: np.ndarray) -> list[float]:
    return [float(f"{v:.5g}") for v in np.asarray(values, float)]
