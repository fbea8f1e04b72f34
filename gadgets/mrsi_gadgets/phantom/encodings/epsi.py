"""EPSI: a line of k-space every dwell, flyback or bipolar, with ramps and gradient delays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.phantom.encode import GridPoints
from mrsi_gadgets.phantom.encodings.encoding import Encoding, Readout, cartesian_axis, central

if TYPE_CHECKING:
    from mrsi_gadgets.phantom.presets import Preset


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
        ky, kz = (cartesian_axis(n, fov) for n, fov in zip(preset.matrix[1:], preset.fov_mm[1:], strict=True))
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
        middle = [range(n) if n == 1 else central(n, self.centre) for n in (ny, nz)]
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
