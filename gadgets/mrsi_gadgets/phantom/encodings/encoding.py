"""What every encoding of a simulated scan says of itself, and the grid that some share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mrsi_gadgets.phantom.encode import Points

if TYPE_CHECKING:
    from mrsi_gadgets.phantom.presets import Preset


@dataclass(frozen=True, eq=False)
class Readout:
    """One readout of a pass through k-space: which samples it holds and what its header says."""

    index: tuple[Any, ...]
    """Where its samples lie in the array of a pass (point axes, then t), behind the coil axis."""
    counters: Mapping[str, int]
    shot: int
    """Number of its excitation within the pass."""
    sample_time_s: float
    start_s: float = 0.0
    """First sample after the acquisition delay [s]."""
    center_sample: int = 0
    reverse: bool = False
    calibration: bool = False
    trajectory: np.ndarray | None = None
    """(sample, column) float32."""
    lap: int = 0
    """Samples from one lap to the next where the index takes (point, lap), else 0."""


@dataclass(frozen=True)
class Encoding(ABC):
    """What all encodings share."""

    kind: ClassVar[str] = ""

    @abstractmethod
    def points(self, preset: Preset) -> Points:
        """Return where the samples really lie, gradient delays included."""

    @abstractmethod
    def readouts(self, preset: Preset, *, water: bool) -> Iterator[Readout]:
        """Yield the readouts of one pass; those of one shot follow each other."""

    @abstractmethod
    def sample_times_s(self, preset: Preset) -> np.ndarray:
        """ADC dwell of each row of points, (row,) [s]."""

    def row_phase_rad(self, preset: Preset) -> np.ndarray | None:
        """Phase that the receiver adds to each row of points, (row,) [rad], or None."""
        return None

    @abstractmethod
    def scan_facts(self, preset: Preset) -> tuple[int, float]:
        """Return the excitations of one fully sampled pass and the ADC time of its kept samples [s]."""

    def shares(self, preset: Preset) -> np.ndarray:
        """Share of k-space of each row of points, in any unit (row,)."""
        return np.ones(len(self.sample_times_s(preset)))

    def density_factor(self, preset: Preset) -> float:
        """Noise of a fully sampled image over that of even sampling with the same ADC time.

        Each sample must count by its share a of k-space, whatever its ADC time s: sqrt(sum(a^2 / s) sum(s)) / sum(a),
        1 where s is in proportion to a.
        """
        share, time = self.shares(preset), self.sample_times_s(preset)
        return float(np.sqrt(np.sum(share**2 / time) * np.sum(time)) / np.sum(share))

    def protocol_fields(self, preset: Preset) -> dict[str, Any]:
        """Return the fields of the Protocol that differ from csi's."""
        return {}

    def keys(self, preset: Preset) -> dict[str, int | float | str]:
        """Return the profile keys that this encoding adds or changes."""
        return {}

    @abstractmethod
    def limits(self, preset: Preset) -> dict[str, tuple[int, int]]:
        """Return (maximum, centre) of each counter of k-space and time, by the names of encodingLimits."""

    trajectory_name: ClassVar[str] = "other"
    edit_counter: ClassVar[str] = "user_0"
    """Counter of the conditions of metabolite cycling."""


def cartesian_axis(n: int, fov_mm: float) -> np.ndarray:
    """Return k of a Cartesian axis [1/m], 0 at index n // 2."""
    return (np.arange(n) - n // 2) / (fov_mm * 1e-3)


def central(n: int, width: int) -> range:
    """Return the indices of the middle `width` of n points."""
    width = min(width, n)
    return range(n // 2 - width // 2, n // 2 - width // 2 + width)
