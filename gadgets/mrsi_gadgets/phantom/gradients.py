"""Gradient waveforms of the lap trajectories: what a gradient system can walk, and how fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GAMMA_HZ_PER_T = 42.577478518e6
"""Proton gyromagnetic ratio over 2 pi [Hz/T] (CODATA 2018)."""
_FINE = 4000
_MARGIN = 0.95
"""Share of the slew rate that a spiral is planned with: between the fine points it needs a little more."""


@dataclass(frozen=True)
class GradientLimits:
    """What the gradient system can do along any direction."""

    amplitude_t_per_m: float = 0.040
    slew_t_per_m_per_s: float = 180.0

    @property
    def speed(self) -> float:
        """Fastest walk through k-space [1/m/s]."""
        return GAMMA_HZ_PER_T * self.amplitude_t_per_m

    @property
    def acceleration(self) -> float:
        """Its fastest change [1/m/s^2]."""
        return GAMMA_HZ_PER_T * self.slew_t_per_m_per_s


def circle_time_s(radius: float, limits: GradientLimits) -> float:
    """Shortest time of one turn on a circle of `radius` [1/m]: speed 2 pi r / T, acceleration r (2 pi / T)^2."""
    return max(2.0 * np.pi * radius / limits.speed, 2.0 * np.pi * float(np.sqrt(radius / limits.acceleration)))


def straight_time_s(length: float, limits: GradientLimits) -> float:
    """Shortest time [s] of a straight walk of `length` [1/m] that begins and ends at rest."""
    to_full = limits.speed / limits.acceleration
    if length <= limits.speed * to_full:
        return 2.0 * float(np.sqrt(length / limits.acceleration))
    return length / limits.speed + to_full


def straight_walk(length: float, duration_s: float, times_s: np.ndarray) -> np.ndarray:
    """Way [1/m] along a straight walk with constant acceleration to its middle and back to rest, (time,)."""
    x = np.clip(times_s / duration_s, 0.0, 1.0)
    return np.asarray(length * np.where(x < 0.5, 2.0 * x**2, 1.0 - 2.0 * (1.0 - x) ** 2))


@dataclass(frozen=True, eq=False)
class Spiral:
    """One arm k = pitch theta exp(i theta), walked from rest to rest as fast as the limits allow."""

    pitch: float
    """[1/m] per radian."""
    times_s: np.ndarray
    """(fine,) time at which `angle` is reached [s]."""
    angle: np.ndarray
    """(fine,) theta [rad]."""

    @property
    def duration_s(self) -> float:
        """Time of the walk [s]."""
        return float(self.times_s[-1])

    def k(self, times_s: np.ndarray) -> np.ndarray:
        """Place (time, 2) [1/m]."""
        theta = np.interp(times_s, self.times_s, self.angle)
        return self.pitch * theta[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1)


def spiral(k_max: float, pitch: float, limits: GradientLimits) -> Spiral:
    """Walk an Archimedean arm of radius up to `k_max` [1/m] in the shortest time.

    The speed along the path is bound by the amplitude and by the slew rate that its curvature takes; what is left of
    the slew rate accelerates forwards from the start and backwards from the end, and the slower of the two counts
    (the phase-plane solution of Lustig, Kim and Pauly 2008, doi:10.1109/TMI.2008.922699).
    """
    # both ends are walked slowly: steps that shrink towards them keep the time steps alike
    x = np.linspace(0.0, 1.0, _FINE)
    theta = (k_max / pitch) * x**2 * (3.0 - 2.0 * x)
    curvature = (2.0 + theta**2) / (pitch * (1.0 + theta**2) ** 1.5)
    steps = pitch * np.diff(theta) * np.sqrt(1.0 + ((theta[1:] + theta[:-1]) / 2.0) ** 2)
    acceleration = _MARGIN * limits.acceleration
    bound = np.minimum(limits.speed, np.sqrt(acceleration / curvature))
    forwards = _accelerated(bound, curvature, steps, acceleration)
    backwards = _accelerated(bound[::-1], curvature[::-1], steps[::-1], acceleration)[::-1]
    speed = np.minimum(forwards, backwards)
    duration = steps / ((speed[1:] + speed[:-1]) / 2.0)
    return Spiral(pitch, np.concatenate([[0.0], np.cumsum(duration)]), theta)


def _accelerated(bound: np.ndarray, curvature: np.ndarray, steps: np.ndarray, acceleration: float) -> np.ndarray:
    """Speed along a path that starts at rest and never exceeds `bound`."""
    speed = np.zeros(len(bound))
    for i, step in enumerate(steps):
        left = np.sqrt(max(acceleration**2 - (curvature[i] * speed[i] ** 2) ** 2, 0.0))
        speed[i + 1] = min(float(np.sqrt(speed[i] ** 2 + 2.0 * left * step)), float(bound[i + 1]))
    return speed


def peak_demand(k: np.ndarray, step_s: float) -> tuple[float, float]:
    """Largest gradient [T/m] and slew rate [T/m/s] of a walk `k` (time, 2) [1/m] sampled every `step_s`."""
    speed = np.diff(k, axis=0) / step_s
    change = np.diff(speed, axis=0) / step_s
    return (
        float(np.max(np.linalg.norm(speed, axis=1))) / GAMMA_HZ_PER_T,
        float(np.max(np.linalg.norm(change, axis=1))) / GAMMA_HZ_PER_T,
    )
