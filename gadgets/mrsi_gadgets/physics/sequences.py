"""Pulse sequences with ideal pulses: what happens to the spins before the first sample.

Every sequence begins with a 90 degree pulse. All pulses are instantaneous and act on all observed spins alike, so the
chemical-shift displacement and the duration of real pulses are not in it. Gradients are so strong that they leave only
the wanted coherences.

    pulse_acquire   90 - FID
    spin_echo       90 - TE/2 - 180 - TE/2 - echo
    press           90 - TE1/2 - 180 - (TE1 + TE2)/2 - 180 - TE2/2 - echo      (Bottomley, Ann NY Acad Sci 1987;508:333)
    steam           90 - TE/2 - 90 - TM - 90 - TE/2 - echo                     (Frahm et al., J Magn Reson 1987;72:502)
    semi_laser      90 - d1 - 180 - d2 - 180 - d3 - 180 - d4 - 180 - d5 - echo (Scheenen et al., Magn Reson Med
                    2008;59:1-6, doi:10.1002/mrm.21302), d1 + d3 + d5 = d2 + d4 = TE/2

Which intervals a scanner's sequence uses is a matter of its programme: take them from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.errors import ConfigError

KINDS: tuple[str, ...] = ("pulse_acquire", "spin_echo", "press", "steam", "semi_laser")
_INTERVALS = {"pulse_acquire": 0, "spin_echo": 2, "press": 3, "steam": 2, "semi_laser": 5}


@dataclass(frozen=True)
class PulseSequence:
    """Kind and intervals of a sequence; `spin_echo`, `press`, ... of this module make them."""

    kind: str
    intervals_s: tuple[float, ...] = ()
    """Free evolution of transverse magnetisation after each pulse, the last one up to the echo top [s]."""
    mixing_time_s: float = 0.0
    """TM of STEAM [s]."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"the pulse sequence '{self.kind}' is not known; choose {', '.join(KINDS)}")
        if len(self.intervals_s) != _INTERVALS[self.kind]:
            raise ConfigError(f"{self.kind} has {_INTERVALS[self.kind]} intervals, got {len(self.intervals_s)}")
        if not all(np.isfinite(t) and t >= 0 for t in (*self.intervals_s, self.mixing_time_s)):
            raise ConfigError(f"{self}: an interval or the mixing time is negative; correct the timing")
        if self.mixing_time_s and self.kind != "steam":
            raise ConfigError(f"{self.kind} has no mixing time; leave it out")
        first = sum(self.intervals_s[::2])
        if abs(first - self.echo_time_s / 2) > 1e-7 and self.kind != "pulse_acquire":
            raise ConfigError(
                f"{self}: intervals 1, 3, 5 add up to {first * 1e3:g} ms and not to half the echo time, so chemical "
                "shifts have no echo there; correct the intervals"
            )

    @property
    def echo_time_s(self) -> float:
        """TE [s]; 0 for pulse-acquire."""
        return float(sum(self.intervals_s))

    def __str__(self) -> str:
        if self.kind == "pulse_acquire":
            return "pulse-acquire"
        text = f"{self.kind} {' - '.join(f'{t * 1e3:g}' for t in self.intervals_s)} ms"
        return f"{text}, TM {self.mixing_time_s * 1e3:g} ms" if self.kind == "steam" else text


def pulse_acquire() -> PulseSequence:
    """Return 90 - FID; times count from the centre of the pulse."""
    return PulseSequence("pulse_acquire")


def spin_echo(te_s: float) -> PulseSequence:
    """Return 90 - TE/2 - 180 - TE/2; times count from the echo top, as for all sequences below."""
    return PulseSequence("spin_echo", (te_s / 2, te_s / 2))


def press(te_s: float, te1_s: float | None = None) -> PulseSequence:
    """Return PRESS of echo time TE1 + TE2 = `te_s`; `te1_s` None for TE1 = TE2.

    Raises
    ------
    ConfigError
        TE1 is longer than TE.
    """
    te1_s = te_s / 2 if te1_s is None else te1_s
    return PulseSequence("press", (te1_s / 2, te_s / 2, (te_s - te1_s) / 2))


def steam(te_s: float, tm_s: float) -> PulseSequence:
    """Return STEAM: the stimulated echo, half of the magnetisation."""
    return PulseSequence("steam", (te_s / 2, te_s / 2), tm_s)


def semi_laser(te_s: float, intervals_s: Sequence[float] | None = None) -> PulseSequence:
    """Return semi-LASER; `intervals_s` None for TE/8, TE/4, TE/4, TE/4, TE/8, the same between all refocusing pulses.

    Raises
    ------
    ConfigError
        There are not five intervals, they do not add up to `te_s`, or they refocus no chemical shifts at its end.
    """
    if intervals_s is None:
        intervals_s = tuple(te_s * share for share in (1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8))
    sequence = PulseSequence("semi_laser", tuple(intervals_s))
    if abs(sequence.echo_time_s - te_s) > 1e-6:
        raise ConfigError(
            f"{sequence}: the intervals add up to {sequence.echo_time_s * 1e3:g} ms, TE is {te_s * 1e3:g}"
        )
    return sequence
