"""Small EPSI scans for tests: a few lines at known places, each sample taken at its own k and time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from csi_scans import csi_protocol, make_readout, set_counter

from mrsi_gadgets.mrd.header import Limit, MrdHeader, parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.stream.messages import Acquisition, Flag

F0 = 123.25e6


@dataclass
class Line:
    """One resonance in one voxel."""

    voxel: tuple[float, float, float]
    frequency_hz: float
    amplitude: complex = 1.0
    decay_hz: float = 12.0


@dataclass
class EpsiScan:
    """A train of lobes as a scanner sends it; `header` and `readouts` are all that it shows."""

    lines: list[Line]
    matrix: tuple[int, int, int] = (4, 3, 2)
    fov_mm: tuple[float, float, float] = (210.0, 200.0, 150.0)
    n_lobes: int = 6
    spacing_us: float = 700.0
    delay_us: float = 1300.0
    sample_time_us: float = 60.0
    oversampling: float = 1.0
    polarity: str = "monopolar"
    first_backwards: bool = False
    """Alternating: lobe 0 runs backwards."""
    centre: int | None = None
    """Sample at the centre of k-space of forward lobes (order of acquisition); None: n // 2, and it is not sent."""
    centre_backwards: int | None = None
    kspace_sign: tuple[int, int, int] = (1, 1, 1)
    freq_sign: int = 1
    grid_center: str = "voxel"
    ramp: np.ndarray | None = None
    """k of a forward lobe [1/m], sent as trajectory."""
    units: str = "1/m"
    user: dict = field(default_factory=dict)

    def xml(self, *, averages: int = 1, **changes) -> str:
        """The header: that of a csi protocol of the same grid, with what EPSI needs."""
        matrix = self.matrix
        axes = {"kx": "readout", "ky": "kspace_encode_step_1", "kz": "kspace_encode_step_2", "t": "segment"}
        alternating = self.polarity == "alternating"
        protocol = csi_protocol(
            matrix=matrix, axes=axes, encoding="epsi", grid_center=self.grid_center, readout_polarity=self.polarity,
            dwell_s=self.spacing_us * (2e-6 if alternating else 1e-6), freq_sign=self.freq_sign,
            n_times=self.n_lobes // (2 if alternating else 1), acquisition_delay_s=self.delay_us * 1e-6,
            readout_oversampling=self.oversampling, kspace_sign=self.kspace_sign, water_reference="none",
            trajectory_units=self.units if self.ramp is not None else "",
            trajectory_columns=("kx",) if self.ramp is not None else (), **changes,
        )  # fmt: skip
        centre = {"ky": matrix[1] // 2, "kz": matrix[2] // 2}
        limits = {
            "kspace_encode_step_1": Limit(0, matrix[1] - 1, centre["ky"]),
            "kspace_encode_step_2": Limit(0, matrix[2] - 1, centre["kz"]),
        }
        return header_xml(protocol, receiver_channels=2, limits=limits, averages=averages, user=self.user)

    def header(self, **changes) -> MrdHeader:
        return parse_header(self.xml(**changes))

    def protocol(self, warn=None):
        return read_protocol(self.header(), warn=warn or (lambda _: None))

    @property
    def n_samples(self) -> int:
        return round(self.matrix[0] * self.oversampling) if self.ramp is None else len(self.ramp)

    def backwards(self, lobe: int) -> bool:
        return self.polarity == "alternating" and (lobe % 2 == 0) == self.first_backwards

    def signal(self, k: np.ndarray, t: np.ndarray, *, ours: bool = True) -> np.ndarray:
        """(sample,) at k (sample, 3) [1/m] of the image and t [s]; with `ours` False as this scanner signs it."""
        centre = np.array([n // 2 if self.grid_center == "voxel" else (n - 1) / 2 for n in self.matrix])
        voxel_m = np.array(self.fov_mm) / np.array(self.matrix) * 1e-3
        total = np.zeros(t.shape, dtype=complex)
        for line in self.lines:
            r = (np.array(line.voxel) - centre) * voxel_m
            fid = line.amplitude * np.exp((2j * np.pi * line.frequency_hz - line.decay_hz) * t)
            if not ours and self.freq_sign < 0:
                fid = fid.conj()
            signs = np.ones(3) if ours else np.array(self.kspace_sign)
            total += fid * np.exp(-2j * np.pi * ((k * signs) @ r))
        return total

    def lobe(self, lobe: int) -> tuple[np.ndarray, np.ndarray]:
        """kx as the gradients make it and t of each sample, in the order of acquisition."""
        n, back = self.n_samples, self.backwards(lobe)
        centre = self.centre_backwards if back and self.centre_backwards is not None else self.centre
        if self.ramp is not None:
            kx = -self.ramp if back else self.ramp
            centre = int(np.argmin(np.abs(kx))) if centre is None else centre
        else:
            centre = n // 2 if centre is None else centre
            kx = (np.arange(n) - centre) * (-1 if back else 1) / (self.oversampling * self.fov_mm[0] * 1e-3)
        late = (np.arange(n) - centre) * self.sample_time_us
        return kx, (self.delay_us + lobe * self.spacing_us + late) * 1e-6

    def readouts(self, *, skip=(), **fields) -> list[Acquisition]:
        """All lobes, line by line; (y, z, lobe) in `skip` are left out."""
        found = []
        for y, z, lobe in np.ndindex(*self.matrix[1:], self.n_lobes):
            if (y, z, lobe) in skip:
                continue
            kx, t = self.lobe(lobe)
            ky, kz = (
                (i - n // 2) / (f * 1e-3) for i, n, f in zip((y, z), self.matrix[1:], self.fov_mm[1:], strict=True)
            )
            k = np.stack([kx, np.full_like(kx, ky), np.full_like(kx, kz)], axis=1)
            samples = self.signal(k, t, ours=False)
            centre = (
                self.centre_backwards if self.backwards(lobe) and self.centre_backwards is not None else self.centre
            )
            flags = (Flag.IS_REVERSE,) if self.backwards(lobe) else ()
            values = {"sample_time_us": self.sample_time_us, "center_sample": centre or 0, "flags": flags} | fields
            readout = make_readout(np.stack([samples, -2 * samples]), len(found), **values)
            set_counter(readout.head, "kspace_encode_step_1", y)
            set_counter(readout.head, "kspace_encode_step_2", z)
            set_counter(readout.head, "segment", lobe)
            if self.ramp is not None:
                fov, n = self.fov_mm[0] * 1e-3, self.matrix[0]
                scale = {"1/m": 1.0, "1/FOV": fov, "half": fov / n}[self.units]
                readout.trajectory = (kx * scale)[:, None].astype(np.float32)
                readout.head["trajectory_dimensions"] = 1
            found.append(readout)
        return found
