"""Named scans of the numerical brain: every number a simulation uses that is not a property of the brain itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from mrsi_gadgets.data import LEAST_ECHO_TIME_S, Geometry, Protocol
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.phantom.encodings import Csi, Encoding, Epsi, Rings, Spirals
from mrsi_gadgets.physics.nucleus import NUCLEI


@dataclass(frozen=True)
class Preset:
    """One simulated measurement: grid, encoding, timing, hardware and the strength of everything unwanted."""

    name: str
    description: str
    encoding: Encoding = field(default_factory=Csi)
    """How the scan walks through (k, t)."""
    averages: float | None = None
    """Excitations that the console has averaged into each readout; it need not be whole, since it only divides the
    variance of the noise and stretches the scan. None: 1 for csi; for the others so many that a fully sampled scan has
    the ADC time of a fully sampled csi scan of the same matrix."""
    matrix: tuple[int, int, int] = (48, 48, 1)
    """Voxels along x, y, z."""
    fov_mm: tuple[float, float, float] = (220.0, 220.0, 10.0)
    subvoxels: tuple[int, int, int] = (4, 4, 1)
    """Points of the fine grid per voxel; the object is made of them, so dephasing within a voxel is physical."""
    isocentre_mni_mm: tuple[float, float, float] = (0.0, -18.0, 20.0)
    """MNI place (RAS) that lies at patient position (0, 0, 0)."""
    nucleus: str = "1H"
    """One that `physics.nucleus` knows; scans of others than 1H have neither water reference nor nuisance signals."""
    transmit_frequency_hz: float = 123.25e6
    field_strength_t: float = 2.8948
    reference_ppm: float = 4.65
    n_times: int = 384
    dwell_s: float = 1.0 / 1500.0
    """Spectral dwell [s]; 1500 Hz holds 4.65 +- 6.1 ppm at 3 T."""
    acquisition_delay_s: float = 1.3e-3
    repetition_time_s: float = 0.3
    flip_angle_deg: float = 35.0
    n_coils: int = 8
    snr: float = 20.0
    """Median NAA peak SNR in the brain mask of a fully sampled csi scan with the noise per second of ADC that this scan
    has; infinity means no noise in the data."""
    noise_readouts: int = 16
    noise_samples: int = 1024
    noise_dwell_s: float = 1.0 / 6000.0
    """ADC dwell of the noise scan [s]; its noise is wider by dwell_s / noise_dwell_s than that of the data."""
    residual_water: float = 5.0
    """Mean |residual water| in normal brain at t = 0 over the NAA CH3 signal there."""
    lipid: float = 10.0
    """Lipid signal of a voxel full of scalp at t = 0 over the NAA CH3 signal of normal brain."""
    b0_sd_hz: float = 10.0
    """Standard deviation of the smooth part of B0 over the brain [Hz]."""
    b0_sinus_hz: float = 60.0
    """B0 of the sharp part at the place in the brain nearest to the frontal sinus [Hz]."""
    water_suppressed: bool = True
    """False: the metabolite scan has the whole water, and `residual_water` says nothing."""
    water_sidebands: float = 0.0
    """Height of each of three pairs of antisymmetric sidebands (63 to 187 Hz) over that of the water line, 90 mm from
    the centre; it grows along a direction of each pair's own, as the phase of a vibrating gradient does."""
    cycling: bool = False
    """Metabolite cycling: each excitation comes twice, the second time with everything but water inverted; there is no
    water suppression and no water reference."""
    echo_times_s: tuple[float, ...] = ()
    """TE of spin echoes [s], each a pass of its own; `acquisition_delay_s` then counts from the echo top. Empty:
    FIDs."""
    navigator_samples: int = 0
    """Samples of a water FID at k = 0, sent as a navigator before each excitation; 0: none."""
    phase_drift_rad_per_minute: float = 0.0
    """Linear drift of the phase, as that of the frequency."""
    drift_hz_per_minute: float = 0.1
    """Linear drift over the measurement, zero in the middle of the water reference; the metabolites follow it."""
    water_offset_hz: float = 0.8
    """Water's own shift against its reference ppm [Hz] (temperature)."""
    eddy_phase_rad: tuple[float, ...] = (0.5, -0.2)
    """Amplitudes of the eddy-current phase, the same for water and metabolite data [rad]."""
    eddy_decay_s: tuple[float, ...] = (0.012, 0.07)
    """Their time constants [s]."""
    transmit_variation: float = 0.1
    """Fall of the flip angle from the centre to the edge of the head, relative."""
    receiver_gain: float = 1e-6
    """Sample value per mM of protons in a voxel: the order of magnitude a console sends."""
    read_dir: tuple[float, float, float] = (1.0, 0.0, 0.0)
    phase_dir: tuple[float, float, float] = (0.0, 1.0, 0.0)
    slice_dir: tuple[float, float, float] = (0.0, 0.0, 1.0)
    position_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise ConfigError(f"snr is {self.snr:g}; give a positive number, or inf for data without noise")
        if self.nucleus not in NUCLEI:
            raise ConfigError(f"preset {self.name}: nucleus {self.nucleus} is not known; choose {', '.join(NUCLEI)}")
        if min(self.residual_water, self.lipid, self.water_sidebands) < 0:
            raise ConfigError(f"preset {self.name}: strengths of water, lipids and sidebands must be at least 0")
        if self.echo_times_s and min(self.echo_times_s) < LEAST_ECHO_TIME_S:
            raise ConfigError(f"preset {self.name}: echo times below {LEAST_ECHO_TIME_S * 1e3:g} ms are no spin echoes")
        if self.cycling and (self.echo_times_s or self.nucleus != "1H"):
            raise ConfigError(f"preset {self.name}: metabolite cycling is simulated for FIDs of 1H only")
        last = max(self.echo_times_s, default=0.0) + self.acquisition_delay_s + self.n_times * self.dwell_s
        if self.repetition_time_s < last:
            raise ConfigError(
                f"preset {self.name}: a repetition time of {self.repetition_time_s:g} s is shorter than the readout; "
                "lengthen repetition_time_s or take fewer points"
            )

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie."""
        return Geometry(self.matrix, self.fov_mm, self.position_mm, self.read_dir, self.phase_dir, self.slice_dir)

    @property
    def protocol(self) -> Protocol:
        """The measurement as profile 1.0 describes it (what a reader of the file will find)."""
        centre = {axis: n // 2 for axis, n in zip(("kx", "ky", "kz"), self.matrix, strict=True)}
        protocol = Protocol(
            nucleus=self.nucleus,
            transmit_frequency_hz=self.transmit_frequency_hz,
            reference_ppm=self.reference_ppm,
            dwell_s=self.dwell_s,
            n_times=self.n_times,
            acquisition_delay_s=self.acquisition_delay_s,
            geometry=self.geometry,
            encoding="csi",
            axes={
                "kx": "segment", "ky": "kspace_encode_step_1", "kz": "kspace_encode_step_2", "t": "readout",
                "dynamic": "repetition", "te": "contrast", "edit": "none", "cycle": "average",
            },
            k_centre=centre,
            water_reference="set:1" if self.has_water_reference else "none",
            water_suppressed=self.water_suppressed and not self.cycling if self.nucleus == "1H" else None,
            editing="metabolite_cycling" if self.cycling else "none",
            echo_times_s=self.echo_times_s or (self.acquisition_delay_s,),
            repetition_time_s=self.repetition_time_s,
            flip_angle_deg=self.flip_angle_deg,
            field_strength_t=self.field_strength_t,
            time_tick_ms=2.5,
            measurement_id=f"simulated_{self.name}",
            protocol_name=f"simulated {self.name}",
            provenance=dict.fromkeys(("nucleus", "dwell_s", "n_times", "geometry"), f"preset {self.name}"),
        )  # fmt: skip
        own = self.encoding.protocol_fields(self)
        axes = {**protocol.axes, **own.pop("axes", {})}
        if self.cycling:
            axes["edit"] = self.encoding.edit_counter
        return replace(protocol, axes=axes, **own)

    def protocol_of(self, echo_time_s: float | None) -> Protocol:
        """Return the protocol of one echo (None: of the FID, or of the first echo)."""
        if echo_time_s is None:
            return self.protocol if len(self.echo_times_s) < 2 else self.protocol_of(self.echo_times_s[0])
        return replace(self.protocol, echo_times_s=(echo_time_s,))

    @property
    def has_water_reference(self) -> bool:
        """Whether a water reference comes before the metabolites."""
        return self.nucleus == "1H" and not self.cycling

    @property
    def averaged(self) -> float:
        """Excitations in each readout: `averages`, or what it stands for."""
        if self.averages is not None:
            return self.averages
        return Csi().scan_facts(self)[1] / self.encoding.scan_facts(self)[1]

    @property
    def drift_between_scans_hz(self) -> float:
        """Mean frequency of the metabolite readouts against that of the water reference [Hz]; 0 where there is none."""
        minutes = _excitations_between(self) * self.averaged * self.repetition_time_s / 60.0
        return self.drift_hz_per_minute * minutes

    @property
    def eddy_phase(self) -> np.ndarray:
        """Eddy-current phase at each spectral point [rad]."""
        return self.eddy_phase_at(self.protocol.times_s)

    def eddy_phase_at(self, times_s: np.ndarray) -> np.ndarray:
        """Eddy-current phase at any times after the excitation [rad], shape of `times_s`."""
        phase = np.zeros_like(times_s)
        for amplitude, decay in zip(self.eddy_phase_rad, self.eddy_decay_s, strict=True):
            phase += amplitude * np.exp(-times_s / decay)
        return phase


@lru_cache(maxsize=16)
def _excitations_between(preset: Preset) -> float:
    """Excitations from the middle of the water reference to that of the metabolites."""
    if not preset.has_water_reference:
        return 0.0
    water = 1 + max(readout.shot for readout in preset.encoding.readouts(preset, water=True))
    own = [readout.shot for readout in preset.encoding.readouts(preset, water=False) if not readout.calibration]
    echoes = max(len(preset.echo_times_s), 1)
    return water + echoes * float(np.mean(own)) + (echoes - 1) / 2 - (water - 1) / 2


_CSI48 = Preset("csi48", "2D 48 x 48 at 3 T, 384 points, 8 coils: the brain the measures are stated for")
_CSI16 = replace(
    _CSI48, name="csi16", description="2D 16 x 16 at 3 T, 256 points, 8 coils: seconds, for tests", matrix=(16, 16, 1),
    subvoxels=(8, 8, 1), n_times=256, snr=40.0,
)  # fmt: skip
_CSI3D = replace(
    _CSI48, name="csi3d", description="3D 32 x 32 x 16 in a slab of 80 mm", matrix=(32, 32, 16),
    fov_mm=(220.0, 220.0, 80.0), subvoxels=(3, 3, 2), n_times=128,
)  # fmt: skip
_X16 = replace(
    _CSI16, fov_mm=(220.0, 220.0, 40.0), subvoxels=(4, 4, 1), field_strength_t=6.9803, n_coils=16, snr=30.0,
    water_offset_hz=0.0, transmit_variation=0.3,
)  # fmt: skip
"""Other nuclei at 7 T in a thicker slice; B0 in Hz shrinks with the frequency."""
_FLYBACK = Epsi()
_BIPOLAR = Epsi(alternating=True, lobe_fraction=0.8, odd_even_phase_rad=0.3, gradient_delay_s=1e-6)
_RAMP = replace(_BIPOLAR, lobe_fraction=1.0, ramp_fraction=0.3)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _CSI16,
        replace(_CSI48, name="csi32", description="2D 32 x 32 at 3 T, 384 points, 8 coils", matrix=(32, 32, 1),
                subvoxels=(5, 5, 1), snr=30.0),
        _CSI48,
        replace(_CSI48, name="csi64", description="2D 64 x 64 at 3 T, 384 points, 8 coils", matrix=(64, 64, 1)),
        replace(_CSI48, name="csi48_7t", description="2D 48 x 48 at 7 T, 512 points, 16 coils", snr=30.0,
                transmit_frequency_hz=297.2e6, field_strength_t=6.9803, n_times=512, dwell_s=1.0 / 3000.0,
                noise_dwell_s=1.0 / 12000.0, n_coils=16, b0_sd_hz=24.0, b0_sinus_hz=145.0, water_offset_hz=1.9,
                transmit_variation=0.3),
        replace(_X16, name="csi16_31p", description="31P 2D 16 x 16 at 7 T, slice of 40 mm", nucleus="31P",
                transmit_frequency_hz=120.3e6, reference_ppm=0.0, n_times=512, dwell_s=1.0 / 5000.0,
                noise_dwell_s=1.0 / 20000.0, b0_sd_hz=9.7, b0_sinus_hz=59.0),
        replace(_X16, name="csi16_2h", description="2H 2D 16 x 16 at 7 T, slice of 40 mm", nucleus="2H",
                transmit_frequency_hz=45.62e6, reference_ppm=4.8, dwell_s=1.0 / 1000.0, noise_dwell_s=1.0 / 4000.0,
                b0_sd_hz=3.7, b0_sinus_hz=22.0),
        replace(_CSI3D, name="csi3d_16", description="3D 16 x 16 x 8 in a slab of 80 mm: seconds, for tests",
                matrix=(16, 16, 8), subvoxels=(4, 4, 2), snr=40.0),
        _CSI3D,
        replace(_CSI3D, name="csi3d_64", description="3D 64 x 64 x 16 in a slab of 80 mm", matrix=(64, 64, 16),
                subvoxels=(2, 2, 2)),
        replace(_CSI16, name="csi16_elliptical", description="csi16 within an ellipse of k-space",
                encoding=Csi(elliptical=True)),
        replace(_CSI16, name="csi16_weighted", description="csi16 with 1 to 4 averages, most in the centre",
                encoding=Csi(averages_at_centre=4)),
        replace(_CSI48, name="csi48_random2", description="csi48 with one in 2 points of k-space",
                encoding=Csi(undersampling=2.0, centre=8)),
        replace(_CSI48, name="csi48_random3", description="csi48 with one in 3 points of k-space",
                encoding=Csi(undersampling=3.0, centre=8)),
        replace(_CSI48, name="csi32_sense", description="csi32 with every second point along x and y, 16 coils",
                matrix=(32, 32, 1), subvoxels=(5, 5, 1), snr=30.0, n_coils=16,
                encoding=Csi(regular=(2, 2, 1), centre=8)),
        replace(_CSI16, name="epsi16", description="csi16 by flyback EPSI", encoding=_FLYBACK),
        replace(_CSI16, name="epsi16_bipolar", description="csi16 by bipolar EPSI", encoding=_BIPOLAR),
        replace(_CSI16, name="epsi16_ramp", description="csi16 by bipolar EPSI, sampled on the ramps", encoding=_RAMP),
        replace(_CSI16, name="epsi16_kt", description="csi16 by flyback EPSI with other lines at each time, one in 2",
                encoding=replace(_FLYBACK, undersampling=2.0, centre=4)),
        replace(_CSI16, name="rings16", description="csi16 by 8 concentric rings", encoding=Rings()),
        replace(_CSI16, name="spiral16", description="csi16 by 6 spirals", encoding=Spirals(arms_per_plane=6)),
        replace(_CSI48, name="epsi48", description="csi48 by flyback EPSI", encoding=_FLYBACK),
        replace(_CSI48, name="epsi48_bipolar", description="csi48 by bipolar EPSI", encoding=_BIPOLAR),
        replace(_CSI48, name="epsi48_kt", description="csi48 by flyback EPSI with other lines at each time, one in 2",
                encoding=replace(_FLYBACK, undersampling=2.0, centre=8)),
        replace(_CSI48, name="rings48", description="csi48 by 24 concentric rings", encoding=Rings()),
        replace(_CSI48, name="spiral48", description="csi48 by 16 spirals in 2 temporal interleaves",
                encoding=Spirals(arms_per_plane=16)),
    )
}  # fmt: skip
"""Name -> preset, as `mrsi simulate PRESET` takes them."""


def find_preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises
    ------
    ConfigError
        There is none; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}'; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def describe_presets() -> str:
    """Return one line of text for each preset."""
    return "\n".join(
        f"{p.name:16s} {p.description}; {p.transmit_frequency_hz / 1e6:g} MHz, {1 / p.dwell_s:.0f} Hz, TR "
        f"{p.repetition_time_s * 1e3:g} ms, NAA peak SNR {p.snr:g}"
        for p in PRESETS.values()
    )
