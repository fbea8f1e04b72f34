"""Fixed display units: how a value becomes a 12-bit pixel that means the same in every frame and every scan.

A pixel is worth a fixed step of a fixed unit (0.01 mmol/kg, 0.001 of tCr, 0.1 Hz), never a share of the brightest
voxel. A ratio of molecules to water molecules is shown as millimoles per kilogram of water. Only quantities on an
arbitrary scale have no such step: theirs is the power of ten that fits the first frame, shared by all maps of that unit
and kept for the rest of the session in `DisplayScales`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mrsi_gadgets.data import Map

PIXEL_MAX = 4095
"""Largest pixel: consoles store 12 bits unless told otherwise."""

PER_KG_WATER = "mmol/kg water"
WATER_MMOL_PER_KG = 55508.0
"""1 kg of water in mmol (18.0153 g/mol): molecules per water molecule times this are mmol per kg of water."""

_CONCENTRATION_STEP = 0.01
_STEPS = dict.fromkeys(("mM", "mmol/l", "mmol/L", "mmol/kg", PER_KG_WATER), _CONCENTRATION_STEP) | {
    "%": 0.1, "ppm": 0.001, "ms": 0.1, "1/s": 0.1,
}  # fmt: skip
_SIGNED = {"Hz": (0.1, 60.0), "rad": (0.002, 6.4)}
"""Unit of maps of both signs -> step and width of the window around zero."""
_ZERO_PIXEL = 2048
_PER_TCR_STEP = 0.001
_TCR_MM = 8.0

_TOP_MM = {
    "tNAA": 16.0, "NAA": 16.0, "NAAG": 4.0, "tCr": 12.0, "Cr": 10.0, "PCr": 8.0, "tCho": 4.0, "GPC": 3.0, "PCh": 3.0,
    "Ins": 12.0, "sIns": 2.0, "Glx": 20.0, "Glu": 16.0, "Gln": 8.0, "GABA": 4.0, "GSH": 4.0, "Asp": 4.0, "Tau": 4.0,
    "Gly": 4.0, "Ala": 3.0, "Asc": 3.0, "PE": 4.0, "Lac": 6.0, "Glc": 6.0,
}  # fmt: skip
"""Upper end of the window [mM or mmol/kg]: just above normal brain, so that normal tissue is neither black nor white.

Set by hand from the concentrations of the field's reviews; it changes what is seen first, never a value.
"""
_TOP_OTHER_MM = 10.0

CONCENTRATIONS = ("_mM", "_molal")
"""Endings of the names of absolute concentrations."""
_UNKNOWN = "unknown_"
"""How the names of maps begin that no molecule of the model stands for."""


@dataclass(frozen=True)
class Scale:
    """value = slope * pixel + intercept, shown in the window centre ± width / 2 (in units of the value)."""

    slope: float
    intercept: float
    window_centre: float
    window_width: float

    def pixels(self, values: np.ndarray) -> np.ndarray:
        """Return uint16 pixels; what is not finite becomes 0, what is out of range is clipped."""
        values = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(values)
        scaled = np.where(finite, (np.where(finite, values, 0.0) - self.intercept) / self.slope, 0.0)
        return np.clip(np.rint(scaled), 0, PIXEL_MAX).astype(np.uint16)

    def n_clipped(self, values: np.ndarray) -> int:
        """Count the finite values that lie beyond the range of pixels."""
        low, high = self.intercept, self.intercept + self.slope * PIXEL_MAX
        return int(np.count_nonzero((values < low - self.slope / 2) | (values > high + self.slope / 2)))

    def for_sd(self) -> Scale:
        """Return the scale of this quantity's standard deviation: same step, a quarter of the window, from zero."""
        top = self.window_width / 4
        return Scale(self.slope, 0.0, top / 2, top)


@dataclass
class DisplayScales:
    """The scales of one session: fixed ones by rule, arbitrary ones as the first frame set them."""

    steps: dict[str, float] = field(default_factory=dict)
    """Family of maps (see `family`) -> step found on the first frame."""
    tops: dict[str, float] = field(default_factory=dict)
    """Name of a map on an arbitrary scale -> upper end of its window."""
    lines: list[str] = field(default_factory=list)
    """Maps of lines that no molecule has, in the order in which frames brought them: it numbers their series."""

    def learn(self, maps: Mapping[str, Map]) -> None:
        """Fix the steps and windows that no rule gives, from the first frame that holds them."""
        largest: dict[str, float] = {}
        for name, item in maps.items():
            factor, unit = display_unit(name, item.unit)
            if fixed_step(name, unit) is not None:
                continue
            # a line that most voxels lack has its window and step from the voxels that have it
            values = item.value[item.value != 0] if is_unknown(name) else item.value
            typical = factor * _quantile(values, 0.99)
            if typical > 0:
                self.tops.setdefault(name, _round_up(1.1 * typical))
            key = family(name, item.unit)
            largest[key] = max(largest.get(key, 0.0), factor * _quantile(values, 0.999))
        for key, value in largest.items():
            if value > 0:
                self.steps.setdefault(key, float(10.0 ** np.ceil(np.log10(2 * value / PIXEL_MAX))))

    def place_of_line(self, name: str) -> int:
        """Return the place of a line's series among those of all lines of the session, the same in every frame."""
        if name not in self.lines:
            self.lines.append(name)
        return self.lines.index(name)

    def of(self, name: str, unit: str) -> Scale:
        """Return the scale of a map in its display unit (a map of zeros teaches `learn` nothing and counts in ones)."""
        whole_unit, unit = unit, display_unit(name, unit)[1]
        if unit in _SIGNED:
            return signed_scale(unit)
        step = fixed_step(name, unit)
        if step is None:
            step, top = self.steps.get(family(name, whole_unit), 1.0), self.tops.get(name, 1.0)
        elif name.endswith("_per_tCr"):
            top = _TOP_MM.get(name.removesuffix("_per_tCr"), _TOP_OTHER_MM) / _TCR_MM
        elif step == _CONCENTRATION_STEP:
            top = _TOP_MM.get(base_name(name), _TOP_OTHER_MM)
        else:
            top = step * 1000
        return Scale(step, 0.0, top / 2, top)


def signed_scale(unit: str) -> Scale:
    """Return the scale of a map of both signs in Hz or rad: pixel 2048 is zero."""
    step, width = _SIGNED[unit]
    return Scale(step, -step * _ZERO_PIXEL, 0.0, width)


def mask_scale() -> Scale:
    """Return the scale of the mask: pixels are 0 and 1.

    DICOM's linear window (PS3.3 C.11.2.1.2) of centre 1 and width 1 has its step at 0.5, and both are whole numbers: a
    reader that wants integers makes a centre of 0.5 to 0, which shows 0 and 1 alike.
    """
    return Scale(1.0, 0.0, 1.0, 1.0)


def is_unknown(name: str) -> bool:
    """Whether a map is of a line that no molecule of the model has."""
    return name.startswith(_UNKNOWN)


def base_name(name: str) -> str:
    """Return the molecule or sum of a map in any unit: ``tNAA`` of ``tNAA_per_water``, ``tNAA_mM`` and ``tNAA``."""
    base = name.partition("_per_")[0]
    return next((base.removesuffix(ending) for ending in CONCENTRATIONS if base.endswith(ending)), base)


def map_title(name: str) -> str:
    """Return what a console calls a map: its name, and of ``unknown_2.87ppm`` ``unknown line 2.87 ppm``."""
    return f"unknown line {name.removeprefix(_UNKNOWN).removesuffix('ppm')} ppm" if is_unknown(name) else name


def display_unit(name: str, unit: str) -> tuple[float, str]:
    """Return the factor and the short unit in which a map of `unit` is shown (remarks in brackets are left out)."""
    short = unit.partition(" (")[0]
    if name.endswith("_per_water") and short == "1":
        return WATER_MMOL_PER_KG, PER_KG_WATER
    return 1.0, short


def fixed_step(name: str, unit: str) -> float | None:
    """Return what one pixel is worth by rule, or None for a quantity on an arbitrary scale."""
    if unit in _SIGNED:
        return _SIGNED[unit][0]
    if name.endswith("_per_tCr"):
        return _PER_TCR_STEP
    return _STEPS.get(unit)


def family(name: str, unit: str) -> str:
    """Name the maps that share one arbitrary step: same unit, with what it is of, and same denominator.

    A signal of water and an amount are both in arbitrary units, and a step that suits one shows the other black.
    """
    return f"{unit} per {name.partition('_per_')[2]}"


def _quantile(values: np.ndarray, q: float) -> float:
    """Quantile of the finite values (a single wild voxel does not set the scale of a session)."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, q)) if finite.size else 0.0


def _round_up(value: float) -> float:
    """Round up to the next of 1, 2, 5 times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9)))
