"""How a simulated scan walks through (k, t): csi, EPSI, concentric rings and spirals, with what their gradients do.

An encoding says where its samples lie (`points`), in which readouts they come (`readouts`) and how a header describes
them (`protocol_fields`, `keys`, `limits`). Everything else (signals, coils, noise, drift) is the same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.phantom.encode import GridPoints, PlanePoints, Points
from mrsi_gadgets.phantom.gradients import (
    GradientLimits,
    circle_time_s,
    spiral,
    straight_time_s,
    straight_walk,
)

if TYPE_CHECKING:
    from mrsi_gadgets.phantom.presets import Preset

_MOST_SAMPLES = 65_535
"""A readout's number of samples has 16 bits."""
_GOLDEN_TURN = np.pi * (3.0 - np.sqrt(5.0))


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


@dataclass(frozen=True)
class Csi(Encoding):
    """Phase encoding along all axes: each readout is the FID of one point of k-space."""

    kind: ClassVar[str] = "csi"
    trajectory_name: ClassVar[str] = "cartesian"
    elliptical: bool = False
    """Only points within the ellipse (ellipsoid) that touches the edges of k-space."""
    averages_at_centre: int = 1
    """Acquisition weighting: averages of a point fall from this number in the centre to 1 at the edge as a Hann window
    does."""
    undersampling: float = 1.0
    """Random mask with one of so many points, dense in the centre, the same for all times."""
    centre: int = 0
    """Points along each axis of a centre that is always sampled (random mask), or sent again for calibration."""
    regular: tuple[int, int, int] = (1, 1, 1)
    """Every so many-th point along x, y, z, counted from the centre; the full `centre` comes before as calibration."""
    water_undersampled: bool = False
    """Whether the water reference has the mask of the metabolites; else it has all points."""
    mask_seed: int = 0

    def __post_init__(self) -> None:
        if self.undersampling < 1 or self.averages_at_centre < 1 or min(self.regular) < 1:
            raise ConfigError("undersampling, averages_at_centre and regular of a csi encoding must be at least 1")

    def points(self, preset: Preset) -> GridPoints:
        """Return the Cartesian grid; all samples lie at the spectral points."""
        kx, ky, kz = (_axis(n, fov) for n, fov in zip(preset.matrix, preset.fov_mm, strict=True))
        return GridPoints(kx, ky, kz, np.zeros(preset.matrix[0]))

    def averages(self, matrix: tuple[int, int, int]) -> np.ndarray:
        """Return how often each point of the grid is acquired (x, y, z); 0 = never."""
        radius = _relative_radius(matrix)
        averages = np.ones(matrix, int)
        if self.averages_at_centre > 1:
            window = 0.5 * (1.0 + np.cos(np.pi * np.minimum(radius, 1.0)))
            averages = np.maximum(np.rint(self.averages_at_centre * window), 1).astype(int)
        if self.elliptical:
            averages[radius > 1.0] = 0
        if self.undersampling > 1:
            averages = averages * random_mask(averages > 0, self.undersampling, self.centre, self.mask_seed)
        for axis, step in enumerate(self.regular):
            index = np.arange(matrix[axis]) - matrix[axis] // 2
            averages = averages * np.moveaxis((index % step == 0)[:, None, None], 0, axis)
        return averages

    def readouts(self, preset: Preset, *, water: bool) -> Iterator[Readout]:
        """Yield points with kx running fastest; averages of a point follow each other."""
        whole = water and not self.water_undersampled
        complete = Csi(self.elliptical, self.averages_at_centre) if whole else self
        averages = complete.averages(preset.matrix)
        nx, ny, nz = preset.matrix
        shot = 0
        if max(complete.regular) > 1 and self.centre > 1:
            ranges = [_central(n, self.centre) for n in preset.matrix]
            for kz, ky, kx in np.ndindex(*(len(r) for r in reversed(ranges))):
                place = (ranges[0][kx], ranges[1][ky], ranges[2][kz])
                yield self._readout(preset, place, 0, shot, calibration=True)
                shot += 1
        # The reversed loop order makes kx the fastest counter.
        for kz, ky, kx in np.ndindex(nz, ny, nx):
            for average in range(int(averages[kx, ky, kz])):
                yield self._readout(preset, (kx, ky, kz), average, shot)
                shot += 1

    @staticmethod
    def _readout(
        preset: Preset, place: tuple[int, int, int], average: int, shot: int, *, calibration: bool = False
    ) -> Readout:
        counters = {
            "segment": place[0], "kspace_encode_step_1": place[1], "kspace_encode_step_2": place[2], "average": average,
        }  # fmt: skip
        return Readout(place, counters, shot, preset.dwell_s, calibration=calibration)

    def sample_times_s(self, preset: Preset) -> np.ndarray:
        """Return the spectral dwell."""
        return np.full(preset.matrix[0], preset.dwell_s)

    def density_factor(self, preset: Preset) -> float:
        """Noise over that of even averages where each point counts once, whatever its averages."""
        averages = Csi(self.elliptical, self.averages_at_centre).averages(preset.matrix)
        averages = averages[averages > 0]
        return float(np.sqrt(np.sum(1.0 / averages) * np.sum(averages)) / len(averages))

    def scan_facts(self, preset: Preset) -> tuple[int, float]:
        """Return one excitation per point of the grid."""
        shots = int(np.prod(preset.matrix))
        return shots, shots * preset.n_times * preset.dwell_s

    def protocol_fields(self, preset: Preset) -> dict[str, Any]:
        """Return the weighting."""
        return {"kspace_weighting": "acquisition_weighted"} if self.averages_at_centre > 1 else {}

    def keys(self, preset: Preset) -> dict[str, int | float | str]:
        """Return the weighting."""
        return {"mrsi_kspace_weighting": "acquisition_weighted"} if self.averages_at_centre > 1 else {}

    def limits(self, preset: Preset) -> dict[str, tuple[int, int]]:
        """Return kx = segment, ky and kz."""
        nx, ny, nz = preset.matrix
        return {
            "kspace_encoding_step_1": (ny - 1, ny // 2), "kspace_encoding_step_2": (nz - 1, nz // 2),
            "average": (self.averages_at_centre - 1, 0), "segment": (nx - 1, nx // 2),
        }  # fmt: skip


@dataclass(frozen=True)
class Epsi(Encoding):
    """Echo-planar spectroscopic imaging: a train of lobes along kx, one spectral point each, phase encoding otherwise.

    Flyback (`alternating` false): lobes of one direction every spectral dwell. Bipolar: lobes to and fro every half
    spectral dwell, so that each direction has the spectral width of the preset.
    """

    kind: ClassVar[str] = "epsi"
    trajectory_name: ClassVar[str] = "epi"
    alternating: bool = False
    oversampling: int = 2
    """Samples per lobe over the points along x."""
    lobe_fraction: float = 0.75
    """Share of the time from lobe to lobe in which the ADC is open."""
    ramp_fraction: float = 0.0
    """Share of that time for each ramp of a trapezoid that is sampled from end to end; 0: only the plateau is."""
    odd_even_phase_rad: float = 0.0
    """Phase of the lobes that run back against the others."""
    gradient_delay_s: float = 0.0
    """Time by which the gradient comes late: k shifts against the direction of each lobe."""
    undersampling: float = 1.0
    """Random (k,t): each lobe of the train carries other ky and kz, of which one in so many is acquired at each
    time."""
    centre: int = 0
    """Lines in the middle of ky (and kz) that are acquired at all times."""
    mask_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lobe_fraction <= 1 or not 0 <= self.ramp_fraction < 0.5 or self.oversampling < 1:
            raise ConfigError("an EPSI lobe needs 0 < lobe_fraction <= 1, 0 <= ramp_fraction < 0.5, oversampling >= 1")

    def lobe_spacing_s(self, preset: Preset) -> float:
        """Time from one lobe to the next [s]."""
        return preset.dwell_s / (2 if self.alternating else 1)

    def lobe_times_s(self, preset: Preset) -> np.ndarray:
        """Return the times of a forward lobe's samples from its centre (sample,) [s]; sample n // 2 is the centre."""
        duration = self.lobe_fraction * self.lobe_spacing_s(preset)
        n = preset.matrix[0] * self.oversampling
        if self.ramp_fraction:
            # an even number of samples, none further from the next than those of a uniform lobe
            n = 2 * int(np.ceil(n / (1.0 - self.ramp_fraction) / 2.0))
        return (np.arange(n) - n // 2) * (duration / n)

    def lobe_k(self, preset: Preset, times_s: np.ndarray) -> np.ndarray:
        """Return k of a forward lobe [1/m] at any times from its centre [s]: the integral of its gradient."""
        duration = self.lobe_fraction * self.lobe_spacing_s(preset)
        ramp = self.ramp_fraction * duration
        plateau = preset.matrix[0] / (preset.fov_mm[0] * 1e-3) / (duration - ramp)
        if not ramp:
            return plateau * times_s
        size = np.minimum(np.abs(times_s), duration / 2.0)
        beyond = np.maximum(size - (duration / 2.0 - ramp), 0.0)
        return np.asarray(np.sign(times_s) * plateau * (size - beyond**2 / (2.0 * ramp)))

    def _rows(self, preset: Preset, delay_s: float) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Return (time, k, sample of k = 0) of the lobes of each direction, in the order of acquisition.

        `delay_s` is how late the gradient comes.
        """
        times = self.lobe_times_s(preset)
        n, spacing = len(times), self.lobe_spacing_s(preset)
        rows = [(times, self.lobe_k(preset, times - delay_s), n // 2)]
        if self.alternating:
            # uniform lobes that run back take the same places the other way round
            back = times if self.ramp_fraction else -times[::-1]
            centre = n // 2 if self.ramp_fraction else n - 1 - n // 2
            rows.append((spacing + back, -self.lobe_k(preset, back - delay_s), centre))
        return rows

    def points(self, preset: Preset) -> GridPoints:
        """Return kx of the forward lobes, then of those that run back, each in the order of acquisition."""
        rows = self._rows(preset, self.gradient_delay_s)
        kx = np.concatenate([k for _, k, _ in rows])
        ky, kz = (_axis(n, fov) for n, fov in zip(preset.matrix[1:], preset.fov_mm[1:], strict=True))
        return GridPoints(kx, ky, kz, np.concatenate([times for times, *_ in rows]))

    def readouts(self, preset: Preset, *, water: bool) -> Iterator[Readout]:
        """Yield lobe after lobe of each train."""
        _, ny, nz = preset.matrix
        rows = self._rows(preset, 0.0)
        per_lobe, spacing = len(rows[0][0]), self.lobe_spacing_s(preset)
        sample_time = float(rows[0][0][1] - rows[0][0][0])
        sent = [k.astype(np.float32)[:, None] if self.ramp_fraction else None for _, k, _ in rows]
        trains = self._trains(preset) if self.undersampling > 1 and not water else None
        shots = ny * nz if trains is None else trains.shape[0]
        for shot in range(shots):
            for lobe in range(preset.n_times * len(rows)):
                direction, t = lobe % len(rows), lobe // len(rows)
                line = shot if trains is None else int(trains[shot, t])
                kz, ky = divmod(line, ny)
                centre = rows[direction][2]
                yield Readout(
                    (slice(direction * per_lobe, (direction + 1) * per_lobe), ky, kz, t),
                    {"kspace_encode_step_1": ky, "kspace_encode_step_2": kz, "segment": lobe},
                    shot, sample_time, lobe * spacing - centre * sample_time, centre, bool(direction),
                    trajectory=sent[direction],
                )  # fmt: skip

    def _trains(self, preset: Preset) -> np.ndarray:
        """Return the line (ky + ny kz) of each excitation at each time, (shot, t); lines of one time differ."""
        _, ny, nz = preset.matrix
        rng = np.random.default_rng(self.mask_seed)
        shots = max(round(ny * nz / self.undersampling), 1)
        middle = [range(n) if n == 1 else _central(n, self.centre) for n in (ny, nz)]
        always = np.array([ky + ny * kz for kz in middle[1] for ky in middle[0]] if self.centre else [], dtype=int)
        if len(always) > shots:
            raise ConfigError(
                f"an EPSI encoding with undersampling {self.undersampling:g} has {shots} lines at a time, fewer than "
                f"the {len(always)} of its full centre; make the centre smaller"
            )
        others = np.setdiff1d(np.arange(ny * nz), always)
        trains = np.empty((shots, preset.n_times), int)
        for t in range(preset.n_times):
            drawn = rng.choice(others, shots - len(always), replace=False)
            trains[:, t] = rng.permutation(np.concatenate([always, drawn]))
        return trains

    def sample_times_s(self, preset: Preset) -> np.ndarray:
        """Return the ADC dwell of the lobes."""
        times = self.lobe_times_s(preset)
        return np.full(len(times) * (2 if self.alternating else 1), times[1] - times[0])

    def shares(self, preset: Preset) -> np.ndarray:
        """Distances between samples along kx."""
        k = self.lobe_k(preset, self.lobe_times_s(preset))
        return np.tile(np.gradient(k), 2 if self.alternating else 1)

    def row_phase_rad(self, preset: Preset) -> np.ndarray | None:
        """Return the phase of the lobes that run back."""
        if not self.alternating or not self.odd_even_phase_rad:
            return None
        return np.repeat([0.0, self.odd_even_phase_rad], len(self.lobe_times_s(preset)))

    def scan_facts(self, preset: Preset) -> tuple[int, float]:
        """Return one excitation per line."""
        shots = preset.matrix[1] * preset.matrix[2]
        return shots, float(np.sum(self.sample_times_s(preset))) * preset.n_times * shots

    def protocol_fields(self, preset: Preset) -> dict[str, Any]:
        """Return the axes; a ramp-sampled lobe sends its kx."""
        fields: dict[str, Any] = {
            "encoding": "epsi",
            "axes": {"kx": "readout", "ky": "kspace_encode_step_1", "kz": "kspace_encode_step_2", "t": "segment"},
            "readout_oversampling": float(self.oversampling),
            "k_centre": {"ky": preset.matrix[1] // 2, "kz": preset.matrix[2] // 2},
            "readout_polarity": "alternating" if self.alternating else "monopolar",
        }
        if self.ramp_fraction:
            fields |= {"trajectory_units": "1/m", "trajectory_columns": ("kx",)}
        return fields

    def keys(self, preset: Preset) -> dict[str, int | float | str]:
        """Return the train of lobes."""
        keys: dict[str, int | float | str] = {
            "mrsi_readout_oversampling": float(self.oversampling),
            "mrsi_spectral_points": preset.n_times * (2 if self.alternating else 1),
            "mrsi_dwell_us": self.lobe_spacing_s(preset) * 1e6,
            "mrsi_readout_polarity": "alternating" if self.alternating else "monopolar",
        }
        if self.ramp_fraction:
            keys |= {"mrsi_trajectory_units": "1/m", "mrsi_trajectory_columns": "kx"}
        return keys

    def limits(self, preset: Preset) -> dict[str, tuple[int, int]]:
        """Return ky, kz and the lobes."""
        _, ny, nz = preset.matrix
        return {
            "kspace_encoding_step_1": (ny - 1, ny // 2), "kspace_encoding_step_2": (nz - 1, nz // 2),
            "segment": (preset.n_times * (2 if self.alternating else 1) - 1, 0),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Arm:
    """One closed walk in the plane that is repeated lap after lap."""

    k: np.ndarray
    """(sample, 2) [1/m] of a whole lap, rewinder included."""
    used: int
    """The first so many samples are data."""
    interleaves: int
    """Spectral dwells that a lap takes; so many temporal interleaves fill the gaps."""


@dataclass(frozen=True)
class _Laps(Encoding):
    """Encodings that walk closed paths again and again while the FID decays."""

    edit_counter: ClassVar[str] = "user_1"  # user_0 is the temporal interleaf

    gradients: GradientLimits = field(default_factory=GradientLimits)
    samples_per_lap: int = 0
    """0: as many as keep the distance between samples below 1 / FOV."""
    chunk_laps: int = 0
    """Laps per readout; 0: the whole walk, or as much of it as a readout can hold."""

    @abstractmethod
    def arms(self, preset: Preset) -> tuple[Arm, ...]:
        """Return the paths, in the order of counter kspace_encode_step_1."""

    def points(self, preset: Preset) -> PlanePoints:
        """Return the used samples of all arms, one after another."""
        arms = self.arms(preset)
        tau = [
            np.arange(arm.used) * (arm.interleaves * preset.dwell_s / len(arm.k)) for arm in arms
        ]  # fmt: skip
        kz = _axis(preset.matrix[2], preset.fov_mm[2])
        return PlanePoints(np.concatenate([arm.k[: arm.used] for arm in arms]), kz, np.concatenate(tau))

    def readouts(self, preset: Preset, *, water: bool) -> Iterator[Readout]:
        """Yield the temporal interleaves of an arm one after another, partition by partition, in chunks of laps."""
        shot = 0
        for kz in range(preset.matrix[2]):
            first = 0
            for number, arm in enumerate(self.arms(preset)):
                lap = len(arm.k)
                own = arm.interleaves * preset.dwell_s / lap
                laps = preset.n_times // arm.interleaves
                per_chunk = min(self.chunk_laps or laps, _MOST_SAMPLES // lap, laps)
                path = np.tile(arm.k.astype(np.float32), (per_chunk, 1))
                for interleaf in range(arm.interleaves):
                    for chunk, start in enumerate(range(0, laps, per_chunk)):
                        stop = min(start + per_chunk, laps)
                        times = slice(
                            interleaf + start * arm.interleaves, interleaf + (stop - 1) * arm.interleaves + 1,
                            arm.interleaves,
                        )  # fmt: skip
                        yield Readout(
                            (slice(first, first + arm.used), kz, times),
                            {
                                "kspace_encode_step_1": number, "kspace_encode_step_2": kz, "segment": chunk,
                                "user_0": interleaf,
                            },
                            shot, own, interleaf * preset.dwell_s + start * lap * own,
                            trajectory=path[: (stop - start) * lap], lap=lap,
                        )  # fmt: skip
                    shot += 1
                first += arm.used

    def sample_times_s(self, preset: Preset) -> np.ndarray:
        """Return the ADC dwell of each arm's samples."""
        return np.concatenate(
            [np.full(arm.used, arm.interleaves * preset.dwell_s / len(arm.k)) for arm in self.arms(preset)]
        )

    def shares(self, preset: Preset) -> np.ndarray:
        """Area between the circles half-way to the samples (of a spiral) or rings before and after."""
        arms = self.arms(preset)
        if self.kind == Rings.kind:
            return np.concatenate([np.full(arm.used, np.hypot(*arm.k[0]) / arm.used) for arm in arms])
        radius = [np.hypot(arm.k[: arm.used, 0], arm.k[: arm.used, 1]) for arm in arms]
        return np.concatenate([r * np.gradient(r) for r in radius])

    def scan_facts(self, preset: Preset) -> tuple[int, float]:
        """Return one excitation per arm, temporal interleaf and partition; rewinders do not count as ADC time."""
        arms, nz = self.arms(preset), preset.matrix[2]
        adc = sum(arm.interleaves * arm.used / len(arm.k) for arm in arms) * preset.n_times * preset.dwell_s
        return nz * sum(arm.interleaves for arm in arms), nz * adc

    def protocol_fields(self, preset: Preset) -> dict[str, Any]:
        """Return laps, interleaves and what is sent of the trajectory."""
        arms = self.arms(preset)
        return {
            "encoding": self.kind,
            "axes": {"kx": "trajectory", "ky": "trajectory", "kz": "kspace_encode_step_2", "t": "readout"},
            "k_centre": {"kz": preset.matrix[2] // 2},
            "samples_per_lap": _alike([len(arm.k) for arm in arms]),
            "temporal_interleaves": _alike([arm.interleaves for arm in arms]),
            "samples_used": _alike([arm.used for arm in arms]) if any(arm.used < len(arm.k) for arm in arms) else (),
            "trajectory_units": "1/m", "trajectory_columns": ("kx", "ky"),
        }  # fmt: skip

    def keys(self, preset: Preset) -> dict[str, int | float | str]:
        """Return laps, interleaves and what is sent of the trajectory."""
        arms = self.arms(preset)
        keys: dict[str, int | float | str] = {"mrsi_trajectory_units": "1/m", "mrsi_trajectory_columns": "kx,ky"}
        keys["mrsi_samples_per_lap"] = _listed([len(arm.k) for arm in arms])
        keys["mrsi_temporal_interleaves"] = _listed([arm.interleaves for arm in arms])
        if any(arm.used < len(arm.k) for arm in arms):
            keys["mrsi_samples_used"] = _listed([arm.used for arm in arms])
        return keys

    def limits(self, preset: Preset) -> dict[str, tuple[int, int]]:
        """Return arms, partitions, chunks and temporal interleaves."""
        arms, nz = self.arms(preset), preset.matrix[2]
        chunks = max(readout.counters["segment"] for readout in self.readouts(preset, water=False))
        return {
            "kspace_encoding_step_1": (len(arms) - 1, 0), "kspace_encoding_step_2": (nz - 1, nz // 2),
            "segment": (chunks, 0), "user_0": (max(arm.interleaves for arm in arms) - 1, 0),
        }  # fmt: skip


@dataclass(frozen=True)
class Rings(_Laps):
    """Concentric rings: circles of radius (i + 1/2) / FOV; half as many as there are voxels across."""

    kind: ClassVar[str] = "rings"

    def arms(self, preset: Preset) -> tuple[Arm, ...]:
        """Return the rings; those too fast for the gradients take several spectral dwells and as many interleaves."""
        fov = _square_fov(preset)
        radii = (np.arange(preset.matrix[0] // 2) + 0.5) / fov
        samples = self.samples_per_lap or 8 * int(np.ceil(2.0 * np.pi * radii[-1] * fov / 8.0))
        rings = []
        for number, radius in enumerate(radii):
            interleaves = _interleaves(circle_time_s(radius, self.gradients), preset, f"ring {number}")
            # each ring begins elsewhere, so that place and time within the lap are not tied to each other
            turn = number * _GOLDEN_TURN + 2.0 * np.pi * np.arange(samples) / samples
            rings.append(Arm(radius * np.stack([np.cos(turn), np.sin(turn)], axis=1), samples, interleaves))
        return tuple(rings)


@dataclass(frozen=True)
class Spirals(_Laps):
    """Interleaved Archimedean spirals from the centre to the edge of k-space, with a straight way back."""

    kind: ClassVar[str] = "spiral"
    trajectory_name: ClassVar[str] = "spiral"
    arms_per_plane: int = 16

    def arms(self, preset: Preset) -> tuple[Arm, ...]:
        """Return the arms, each turned against the last."""
        return _spiral_arms(self, _square_fov(preset), preset.matrix[0], preset.dwell_s, preset.n_times, preset.name)


@lru_cache(maxsize=8)
def _spiral_arms(
    encoding: Spirals, fov: float, matrix: int, dwell_s: float, n_times: int, name: str
) -> tuple[Arm, ...]:
    edge = matrix / (2.0 * fov)
    walk = spiral(edge, encoding.arms_per_plane / fov / (2.0 * np.pi), encoding.gradients)
    back = straight_time_s(edge, encoding.gradients)
    interleaves = 1
    while walk.duration_s + back > interleaves * dwell_s or n_times % interleaves:
        interleaves += 1
        if interleaves > n_times:
            raise ConfigError(
                f"preset {name}: a lap of the spiral is longer than the readout; take more arms_per_plane"
            )
    lap = interleaves * dwell_s
    fastest = np.max(np.linalg.norm(np.diff(walk.k(np.linspace(0, walk.duration_s, 2000)), axis=0), axis=1)) * 1999
    samples = encoding.samples_per_lap or 8 * int(np.ceil(fastest / walk.duration_s * lap * fov / 8.0))
    times = np.arange(samples) * (lap / samples)
    used = int(np.searchsorted(times, walk.duration_s, side="right"))
    end = walk.k(np.array([walk.duration_s]))[0]
    gone = straight_walk(1.0, back, times[used:] - walk.duration_s)
    path = np.concatenate([walk.k(times[:used]), end * (1.0 - gone[:, None])])
    arms = []
    for number in range(encoding.arms_per_plane):
        angle = 2.0 * np.pi * number / encoding.arms_per_plane
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        arms.append(Arm(path @ turn, used, interleaves))
    return tuple(arms)


ENCODINGS: dict[str, type[Encoding]] = {cls.kind: cls for cls in (Csi, Epsi, Rings, Spirals)}
"""Name -> encoding, as the card of a truth keeps them."""


def random_mask(allowed: np.ndarray, undersampling: float, centre: int, seed: int) -> np.ndarray:
    """Choose one in `undersampling` of the allowed points of a grid, (x, y, z) bool.

    The middle `centre` points along each encoded axis are always among them; the others are drawn with a density that
    falls with the square of one minus the distance from the centre (Lustig, Donoho and Pauly 2007,
    doi:10.1002/mrm.21391).

    Raises
    ------
    ConfigError
        The centre alone has more points than the mask may have.
    """
    rng = np.random.default_rng(seed)
    full = np.ones(allowed.shape, bool) if centre else np.zeros(allowed.shape, bool)
    for axis, n in enumerate(allowed.shape):
        if centre and n > 1:
            inside = np.isin(np.arange(n), _central(n, centre))
            full &= np.moveaxis(inside[:, None, None], 0, axis)
    full &= allowed
    wanted = round(int(allowed.sum()) / undersampling)
    rest = wanted - int(full.sum())
    if rest < 0:
        raise ConfigError(
            f"a mask with undersampling {undersampling:g} has {wanted} points, fewer than the {int(full.sum())} of its "
            "full centre; make the centre smaller"
        )
    density = (1.0 - np.minimum(_relative_radius(allowed.shape) / np.sqrt(2.0), 0.95)) ** 2
    # the largest of log(density) + Gumbel noise are a draw without replacement with these weights
    score = np.log(density) + rng.gumbel(size=allowed.shape)
    score[full | ~allowed] = -np.inf
    chosen = full.reshape(-1).copy()
    chosen[np.argsort(score.reshape(-1))[::-1][:rest]] = True
    return chosen.reshape(allowed.shape)


def _relative_radius(matrix: tuple[int, ...]) -> np.ndarray:
    """Distance of each point of a grid from k = 0, in units of the half axes of k-space."""
    squares = np.zeros(matrix)
    for axis, n in enumerate(matrix):
        index = (np.arange(n) - n // 2) / max(n / 2, 1.0)
        squares = squares + np.moveaxis((index**2)[:, None, None], 0, axis)
    return np.asarray(np.sqrt(squares))


def _axis(n: int, fov_mm: float) -> np.ndarray:
    """Return k of a Cartesian axis [1/m], 0 at index n // 2."""
    return (np.arange(n) - n // 2) / (fov_mm * 1e-3)


def _central(n: int, width: int) -> range:
    """Return the indices of the middle `width` of n points."""
    width = min(width, n)
    return range(n // 2 - width // 2, n // 2 - width // 2 + width)


def _square_fov(preset: Preset) -> float:
    """FOV [m] of an encoding that needs a square one."""
    if preset.matrix[0] != preset.matrix[1] or preset.fov_mm[0] != preset.fov_mm[1]:
        raise ConfigError(f"preset {preset.name}: rings and spirals need a square matrix and a square field of view")
    return preset.fov_mm[0] * 1e-3


def _interleaves(lap_s: float, preset: Preset, what: str) -> int:
    """Fewest spectral dwells that hold a lap and divide the spectral points."""
    for count in range(1, preset.n_times + 1):
        if preset.n_times % count == 0 and lap_s <= count * preset.dwell_s:
            return count
    raise ConfigError(f"preset {preset.name}: {what} takes longer than the readout; take fewer voxels")


def _alike(values: list[int]) -> tuple[int, ...]:
    """Return one value where all are the same."""
    return tuple(values[:1] if len(set(values)) == 1 else values)


def _listed(values: list[int]) -> int | str:
    short = _alike(values)
    return short[0] if len(short) == 1 else " ".join(map(str, values))
