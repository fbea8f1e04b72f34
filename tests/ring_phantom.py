"""A ring measurement of a few point sources, each sample taken at its own time: the slow truth for the tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mrsi_gadgets.io.twix_header import EncodingSpace, ScanFacts, header_xml
from mrsi_gadgets.mrd.rings import ring_points
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag

F0_HZ = 297.2e6
REFERENCE_PPM = 4.65


@dataclass
class Source:
    """One line at one place."""

    voxel: tuple[float, float]
    ppm: float
    amplitude: complex = 1.0
    decay_hz: float = 8.0


@dataclass
class RingScan:
    """Rings with their own laps and interleaves, written as readouts in chunks."""

    sources: list[Source]
    matrix: tuple[int, int, int] = (12, 10, 1)
    fov_mm: tuple[float, float, float] = (240.0, 200.0, 30.0)
    laps: tuple[int, ...] = (40, 40, 40, 40, 60, 60)
    interleaves: tuple[int, ...] = (1, 1, 1, 1, 2, 2)
    n_times: int = 64
    dwell_us: float = 480.0
    delay_us: float = 1300.0
    chunk: int = 700
    kspace_sign: int = 1
    freq_sign: int = 1
    units: str = "1/m"
    send_times: bool = False
    water: bool = False
    profile: dict = field(default_factory=dict)

    @property
    def radii(self) -> np.ndarray:
        return (np.arange(len(self.laps)) + 0.5) / (max(self.fov_mm[:2]) * 1e-3)

    def header(self) -> str:
        columns = "kx,ky,t_us" if self.send_times else "kx,ky"
        profile = {
            "mrsi_profile": "1.0", "mrsi_nucleus": "1H", "mrsi_encoding": "rings", "mrsi_spectral_points": self.n_times,
            "mrsi_dwell_us": self.dwell_us, "mrsi_acq_delay_us": self.delay_us, "mrsi_reference_ppm": REFERENCE_PPM,
            "mrsi_freq_sign": self.freq_sign, "mrsi_kspace_sign": self.kspace_sign, "mrsi_water_ref": "flag:USER1",
            "mrsi_samples_per_lap": " ".join(map(str, self.laps)),
            "mrsi_temporal_interleaves": " ".join(map(str, self.interleaves)),
            "mrsi_trajectory_units": self.units, "mrsi_trajectory_columns": columns,
        } | self.profile  # fmt: skip
        facts = ScanFacts("m", "rings", "HFS", "us", "", 6.98, 1, F0_HZ, [600.0], [1.3], [40.0], "ChemicalShiftImaging")
        limits = {"kspace_encode_step_1": (0, len(self.laps) - 1, 0)}
        space = EncodingSpace(self.matrix, self.fov_mm, limits, "other")
        if self.chunk >= max(lap * self.n_times // t for lap, t in zip(self.laps, self.interleaves, strict=True)):
            limits["segment"] = (0, 0, 0)
        return header_xml(facts, [space], {k: v for k, v in profile.items() if v is not None})

    def signal(self, k: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Sum over sources at k (sample, 2) [1/m] and t (sample,) [s] after excitation, with the scan's signs."""
        voxel = np.array(self.fov_mm[:2]) / np.array(self.matrix[:2]) * 1e-3
        total = np.zeros(len(t), dtype=complex)
        for source in self.sources:
            place = (np.array(source.voxel) - np.array(self.matrix[:2]) // 2) * voxel
            frequency = (source.ppm - REFERENCE_PPM) * F0_HZ * 1e-6
            fid = np.exp((self.freq_sign * 2j * np.pi * frequency - np.pi * source.decay_hz) * t)
            total += source.amplitude * fid * np.exp(-2j * np.pi * self.kspace_sign * (k @ place))
        return total

    def readouts(self) -> list[Acquisition]:
        """All readouts, outermost ring first, so that nothing depends on their order."""
        out = []
        for ring in reversed(range(len(self.laps))):
            lap, interleaves = self.laps[ring], self.interleaves[ring]
            length = lap * self.n_times // interleaves
            own = self.dwell_us * interleaves / lap
            start = self.radii[ring] * np.exp(0.3j * ring)
            k = ring_points(complex(start), length, lap, clockwise=ring % 2 == 0)
            for interleaf in range(interleaves):
                since_first = interleaf * self.dwell_us + own * np.arange(length)
                samples = self.signal(k, (self.delay_us + since_first) * 1e-6)
                for number, first in enumerate(range(0, length, self.chunk)):
                    part = slice(first, min(first + self.chunk, length))
                    out.append(
                        self._readout(
                            ring, interleaf, number, own, k[part], own * np.arange(length)[part], samples[part]
                        )
                    )
        for number, readout in enumerate(out):
            readout.head["scan_counter"] = number
        return out

    def _readout(self, ring, interleaf, chunk, own, k, times, samples) -> Acquisition:
        head = np.zeros((), dtype=ACQUISITION_HEADER)
        head["version"], head["number_of_samples"] = 1, len(samples)
        head["available_channels"] = head["active_channels"] = 1
        head["sample_time_us"] = own
        head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
        head["idx"]["kspace_encode_step_1"], head["idx"]["segment"] = ring, chunk
        head["idx"]["user"][0] = interleaf
        if self.water:
            head["flags"] = Flag.USER1.mask
        fov = np.array(self.fov_mm[:2]) * 1e-3
        scale = {"1/m": 1.0, "1/FOV": fov, "half": fov / np.array(self.matrix[:2])}[self.units]
        columns = [k * scale, times[:, None]] if self.send_times else [k * scale]
        trajectory = np.concatenate(columns, axis=1).astype(np.float32)
        head["trajectory_dimensions"] = trajectory.shape[1]
        return Acquisition(head[()], samples[None].astype(np.complex64), trajectory)
