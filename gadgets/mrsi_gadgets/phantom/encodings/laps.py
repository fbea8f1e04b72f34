"""Concentric rings and spirals: closed paths walked lap after lap while the FID decays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.phantom.encode import PlanePoints
from mrsi_gadgets.phantom.encodings.encoding import Encoding, Readout, cartesian_axis
from mrsi_gadgets.phantom.gradients import GradientLimits, circle_time_s, spiral, straight_time_s, straight_walk

if TYPE_CHECKING:
    from mrsi_gadgets.phantom.presets import Preset


_MOST_SAMPLES = 65_535
"""A readout's number of samples has 16 bits."""
_GOLDEN_TURN = np.pi * (3.0 - np.sqrt(5.0))


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
        kz = cartesian_axis(preset.matrix[2], preset.fov_mm[2])
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
