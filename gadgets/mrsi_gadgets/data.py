"""The few types everything is built from: header and array together, frozen, checked on construction.

Conventions, fixed once: image axes are (x, y, z, t) with t last and coils first; x runs along the header's read
direction, y along phase, z along slice; positions are patient LPS in mm; an FID evolves as exp(+i 2 pi f t) with
f = (ppm - reference_ppm) * transmit frequency in MHz; k-space and images have their origin at index n // 2.
Every array that comes from a file or a peer is brought to these conventions at the edge (``mrd``, ``io``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.fitted import FitExample, FittedSpectra

LEAST_ECHO_TIME_S = 0.01
"""From this echo time on there is an echo."""
_SAME_TIME_S = 1e-9


class Role(Enum):
    """What a readout is for (profile 2.6.2, first match wins)."""

    NOISE = "noise"
    DUMMY = "dummy"
    NAVIGATOR = "navigator"
    CALIBRATION = "calibration"
    WATER_REFERENCE = "water_reference"
    METABOLITE = "metabolite"


@dataclass(frozen=True)
class Geometry:
    """Where the image grid lies in the patient."""

    matrix: tuple[int, int, int]
    """Voxels along read, phase, slice."""
    fov_mm: tuple[float, float, float]
    """Field of view along read, phase, slice [mm]."""
    position_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the excited volume, LPS [mm]."""
    read_dir: tuple[float, float, float] = (1.0, 0.0, 0.0)
    phase_dir: tuple[float, float, float] = (0.0, 1.0, 0.0)
    slice_dir: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Unit vectors of the image axes in LPS."""
    grid_center: str = "voxel"
    """``voxel``: index n // 2 lies at `position_mm`; ``edge``: index (n - 1) / 2 lies there."""

    def __post_init__(self) -> None:
        if len(self.matrix) != 3 or any(int(n) < 1 for n in self.matrix):
            raise DataError(f"matrix {self.matrix} needs three sizes of at least 1; correct encodedSpace.matrixSize")
        if len(self.fov_mm) != 3 or not all(np.isfinite(f) and f > 0 for f in self.fov_mm):
            raise DataError(f"field of view {self.fov_mm} mm needs three positive lengths; correct fieldOfView_mm")
        if self.grid_center not in ("voxel", "edge"):
            raise DataError(f"mrsi_grid_center is '{self.grid_center}'; it must be voxel or edge")
        axes = np.array([self.read_dir, self.phase_dir, self.slice_dir], dtype=float)
        if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
            raise DataError(
                f"read, phase and slice directions {axes.tolist()} are not orthogonal unit vectors; correct the "
                "readout headers"
            )

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel size [mm]."""
        return tuple(f / n for f, n in zip(self.fov_mm, self.matrix, strict=True))  # type: ignore[return-value]

    @property
    def centre_index(self) -> tuple[float, float, float]:
        """Index (may be half-integer) that lies at `position_mm`."""
        if self.grid_center == "voxel":
            return tuple(float(n // 2) for n in self.matrix)  # type: ignore[return-value]
        return tuple((n - 1) / 2 for n in self.matrix)  # type: ignore[return-value]

    @property
    def box_centre_mm(self) -> tuple[float, float, float]:
        """Centre of the box of voxels, LPS [mm] (what an MRD image header calls position; protocol 3.1)."""
        return tuple((self.affine_lps() @ np.append((np.array(self.matrix) - 1) / 2, 1.0))[:3].tolist())

    def affine_lps(self) -> np.ndarray:
        """Return the 4x4 matrix from voxel index to LPS mm (voxel centres)."""
        axes = np.array([self.read_dir, self.phase_dir, self.slice_dir], dtype=float).T
        affine = np.eye(4)
        affine[:3, :3] = axes * np.array(self.voxel_mm)
        affine[:3, 3] = np.array(self.position_mm) - affine[:3, :3] @ np.array(self.centre_index)
        return affine

    def affine_ras(self) -> np.ndarray:
        """Return the 4x4 matrix from voxel index to RAS mm, as NIfTI wants it."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps()


@dataclass(frozen=True)
class Protocol:
    """One MRSI measurement as the profile describes it, in our conventions and SI units.

    `provenance` names for each field where its value came from (``header mrsi_dwell_us``, ``default for 1H``, ...).
    """

    nucleus: str
    transmit_frequency_hz: float
    reference_ppm: float
    """Chemical shift at 0 Hz of the received data."""
    dwell_s: float
    """Spectral dwell after removal of oversampling and interleaving [s]."""
    n_times: int
    """Spectral points after removal of oversampling."""
    acquisition_delay_s: float
    """From excitation centre (FID) or echo top to the first kept sample [s]."""
    geometry: Geometry
    encoding: str
    """csi, epsi, spiral, rings or other."""
    axes: Mapping[str, str] = field(default_factory=dict)
    """kx, ky, kz, t, dynamic, te, edit, cycle -> counter name (profile 2.6.1)."""
    k_centre: Mapping[str, int] = field(default_factory=dict)
    """kx, ky, kz -> counter value at the centre of k-space."""
    freq_sign: int = 1
    kspace_sign: tuple[int, int, int] = (1, 1, 1)
    water_reference: str = "none"
    """Rule: none, flag:USER1, set:1, contrast:1, repetition:0, phase:0 or measurement."""
    water_suppressed: bool | None = None
    kspace_weighting: str = "none"
    readout_oversampling: float = 1.0
    echo_times_s: tuple[float, ...] = ()
    repetition_time_s: float | None = None
    flip_angle_deg: float | None = None
    field_strength_t: float | None = None
    time_tick_ms: float = 2.5
    receiver_noise_bandwidth: float = 1.0
    """Share of the noise scan's bandwidth that the receiver's filter passes: the rest of it has no noise."""
    measurement_id: str = ""
    protocol_name: str = ""
    patient_position: str = "HFS"
    samples_per_lap: tuple[int, ...] = ()
    """Ring and spiral readouts: samples per lap, one value or one per ring."""
    temporal_interleaves: tuple[int, ...] = ()
    samples_used: tuple[int, ...] = ()
    """Spiral readouts: samples of each lap that are data, one value or one per arm; empty: all of them."""
    readout_polarity: str = "monopolar"
    """EPSI: ``monopolar`` (flyback, all lobes run the same way) or ``alternating`` (bipolar, to and fro).

    With alternating lobes those of one polarity form one FID: `dwell_s` is twice the spacing of the lobes and `n_times`
    half their number.
    """
    editing: str = "none"
    """What the two values of axis `edit` are: ``none`` or ``metabolite_cycling`` (0 up, 1 down)."""
    trajectory_units: str = ""
    trajectory_columns: tuple[str, ...] = ()
    trajectory_id: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_times < 1:
            raise DataError(f"mrsi_spectral_points is {self.n_times}; it must be at least 1")
        if not (np.isfinite(self.dwell_s) and self.dwell_s > 0):
            raise DataError(f"mrsi_dwell_us is {self.dwell_s * 1e6:g}; it must be positive")
        if not (np.isfinite(self.transmit_frequency_hz) and self.transmit_frequency_hz > 0):
            raise DataError(f"the transmit frequency is {self.transmit_frequency_hz:g} Hz; it must be positive")
        if self.freq_sign not in (1, -1) or any(s not in (1, -1) for s in self.kspace_sign):
            raise DataError("mrsi_freq_sign and mrsi_kspace_sign must be +1 or -1")

    @property
    def spin_echo_time_s(self) -> float | None:
        """Echo time of the first echo [s] where samples count from an echo top, None for pulse-acquire.

        A pulse-acquire sequence writes its delay of a millisecond or two into TE; no echo comes that early.
        """
        first = self.echo_times_s[0] if self.echo_times_s else 0.0
        return first if first >= LEAST_ECHO_TIME_S else None

    @property
    def n_echoes(self) -> int:
        """How many echo times are measured one beside the other, each as data of its own; 1 for all other scans."""
        counter = self.axes.get("te", "none")
        taken = {self.water_reference.partition(":")[0], "none"}
        taken |= {source for axis, source in self.axes.items() if axis != "te"}
        return len(self.echo_times_s) if len(self.echo_times_s) > 1 and counter not in taken else 1

    def of_echo(self, echo: int) -> Protocol:
        """Return the protocol of one echo time alone: itself where there are not several.

        Raises
        ------
        DataError
            There is no such echo.
        """
        if self.n_echoes == 1:
            return self
        if not 0 <= echo < self.n_echoes:
            raise DataError(f"echo {echo} is none of the {self.n_echoes} echo times of the protocol; correct TE")
        return replace(self, echo_times_s=(self.echo_times_s[echo],))

    @property
    def times_s(self) -> np.ndarray:
        """Time of each spectral point after the excitation centre or echo top, shape (n_times,) [s]."""
        return self.acquisition_delay_s + self.dwell_s * np.arange(self.n_times)

    def hz(self, ppm: Any) -> Any:
        """Frequency [Hz] of a chemical shift [ppm] in the received data."""
        return (np.asarray(ppm) - self.reference_ppm) * self.transmit_frequency_hz * 1e-6

    def ppm_axis(self, n_points: int | None = None) -> np.ndarray:
        """Chemical shift of each point of a centred spectrum of `n_points` (default n_times), ascending."""
        frequency = np.fft.fftshift(np.fft.fftfreq(n_points or self.n_times, self.dwell_s))
        return self.reference_ppm + frequency / (self.transmit_frequency_hz * 1e-6)

    def fingerprint(self) -> str:
        """Short text that is equal for protocols that share one signal model (nucleus, frequency, times)."""
        tes = "-".join(f"{te * 1e3:.2f}" for te in self.echo_times_s)
        return (
            f"{self.nucleus}_{self.transmit_frequency_hz / 1e6:.3f}MHz_{self.n_times}x{self.dwell_s * 1e6:.2f}us_"
            f"delay{self.acquisition_delay_s * 1e6:.0f}us_te{tes}"
        )


@dataclass(frozen=True, eq=False)
class KtData:
    """Measured samples of one role, frame and echo, with the place in (k, t) of each of them.

    One form for every encoding: a point is one place in k-space whose FID is sampled. In csi each readout is a point;
    in EPSI each lobe fills one time of the points of its line; on rings and spirals each sample of a lap is a point and
    the laps (and temporal interleaves) are its times.
    """

    samples: Array
    """complex64 (coil, point, t); zero where nothing was acquired."""
    k: np.ndarray
    """(point, 3) [1/m] along x, y, z of the image."""
    t: np.ndarray
    """(point, t) [s] since the excitation centre: each sample's own time; may be a broadcast view."""
    count: np.ndarray
    """How many readouts were averaged, (point,), or (point, t) where it varies along an FID; 0 = never acquired.

    Not always whole: a sample of a slower ADC has less noise and counts as several of `sample_time_s`.
    """
    role: Role
    protocol: Protocol
    grid: tuple[int, int, int] | None = None
    """Where the points are the Cartesian grid in C order (kx, ky, kz), centred at index n // 2, else None.

    On a grid t may still differ from point to point (EPSI).
    """
    frame: int = 0
    sample_time_s: float = 0.0
    """ADC dwell of the readouts [s]; the noise bandwidth."""
    density: np.ndarray | None = None
    """(point,) share of k-space of each point in cells of the grid (1 / FOV along each encoded axis), None if unknown.
    """
    echo: int = 0
    """Index into the protocol's echo times."""
    acquired_s: np.ndarray | None = None
    """When the readouts were acquired, mean of those that were averaged [s since the scan's first readout].

    (point,), or (point, t) where one FID was put together from several excitations (temporal interleaves); None where
    the readouts carry no time stamps, and once the drift over the scan has been taken out.
    """

    def __post_init__(self) -> None:
        if self.samples.ndim != 3:
            raise DataError(f"samples have {self.samples.ndim} axes; expected (coil, point, t)")
        _, points, n_times = self.samples.shape
        if (
            self.k.shape != (points, 3)
            or self.t.shape != (points, n_times)
            or self.count.shape not in ((points,), (points, n_times))
            or (self.density is not None and self.density.shape != (points,))
            or (self.acquired_s is not None and self.acquired_s.shape not in ((points,), (points, n_times)))
        ):
            density = "none" if self.density is None else self.density.shape
            raise DataError(
                f"samples {tuple(self.samples.shape)}, k {self.k.shape}, t {self.t.shape}, count {self.count.shape}, "
                f"density {density} and acquired_s {None if self.acquired_s is None else self.acquired_s.shape} do not "
                "describe the same points"
            )
        if self.grid is not None and int(np.prod(self.grid)) != points:
            raise DataError(f"grid {self.grid} does not hold {points} points")
        if self.echo < 0 or (self.echo and self.echo >= len(self.protocol.echo_times_s)):
            raise DataError(
                f"echo {self.echo} is none of the {len(self.protocol.echo_times_s)} echo times of the protocol; "
                "correct TE in sequenceParameters"
            )

    @property
    def n_coils(self) -> int:
        """Number of receive channels."""
        return int(self.samples.shape[0])

    @property
    def dense(self) -> Array:
        """View (coil, kx, ky, kz, t) of a Cartesian grid.

        Raises
        ------
        DataError
            The data are not on a Cartesian grid.
        """
        if self.grid is None:
            raise DataError("these samples are not on a Cartesian grid; use the general encoding operator")
        return namespace(self.samples).reshape(self.samples, (self.n_coils, *self.grid, self.samples.shape[2]))

    @property
    def counts(self) -> np.ndarray:
        """Return `count` of each sample, (point, t): a view, not to be written to."""
        count = self.count if self.count.ndim == 2 else self.count[:, None]
        return np.broadcast_to(count, self.t.shape)

    @property
    def fully_sampled(self) -> bool:
        """Whether every sample of every point was acquired."""
        return bool(np.all(self.count > 0))

    @property
    def common_times(self) -> bool:
        """Whether all points were sampled at the same times (to a nanosecond)."""
        if self.t.shape[0] < 2 or self.t.strides[0] == 0:
            return True
        return bool(np.abs(self.t - self.t[:1]).max(initial=0.0) < _SAME_TIME_S)

    def with_samples(self, samples: Array) -> KtData:
        """Return the same description with other samples (other coils allowed)."""
        return replace(self, samples=samples)


@dataclass(frozen=True, eq=False)
class Replicas:
    """What a reconstruction does to noise and to signal, of the voxels of an image's mask, in the image's unit."""

    noise: Array
    """(replica, voxel, t) complex64: draws of the noise that is left in the image."""
    left: Array | None = None
    """(voxel, t): FIDs that the data alone would have (their Fourier image) less those of the image; None: unknown."""
    left_noise: Array | None = None
    """(replica, voxel, t): draws of the noise in `left`."""


@dataclass(frozen=True, eq=False)
class SpectralImage:
    """A reconstructed image function rho(r, t): coefficients on a basis, or one FID per voxel.

    FIDs are free of the voxel's mean B0 shift (`b0_hz` was taken out) and in phase with the water reference where
    there was one. Their unit is that of the samples: the signal of one voxel, so that rho summed over voxels is the
    centre of k-space.
    """

    coefficients: Array
    """(x, y, z, rank) on `basis`, or with `basis` None the FIDs themselves (x, y, z, t)."""
    basis: Array | None
    """(rank, t), orthonormal rows, or None."""
    protocol: Protocol
    mask: np.ndarray
    """(x, y, z) bool: voxels worth quantifying."""
    b0_hz: np.ndarray
    """(x, y, z) [Hz] that was taken out of the FIDs."""
    noise_sd: np.ndarray
    """(x, y, z): SD of the real part of the noise in one FID sample (with a `basis`: in one coefficient)."""
    coefficient_sd: np.ndarray | None = None
    """(x, y, z, rank): SD of the real part of each coefficient's noise, where it differs from `noise_sd`."""
    frame: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    echo: int | None = None
    """Index of its echo time where the scan has several (`protocol` is then that of this echo), else None."""
    outside_model: np.ndarray | None = None
    """(x, y, z) bool: voxels whose FIDs a learned model does not know, left to the linear result; None: no such model.
    """
    model_score: np.ndarray | None = None
    """(x, y, z) float32: -log10 of the share of FIDs the model was learned from that look as strange, or None."""
    replicas: Replicas | None = None
    """Noise and bias found by reconstructing again with more noise, or None: they are known in closed form."""

    def __post_init__(self) -> None:
        grid = tuple(self.coefficients.shape[:3])
        if self.coefficients.ndim != 4 or grid != tuple(self.protocol.geometry.matrix):
            raise DataError(f"coefficients {tuple(self.coefficients.shape)} do not fit the matrix of the protocol")
        if self.basis is not None and self.basis.shape[0] != self.coefficients.shape[-1]:
            raise DataError(f"basis {tuple(self.basis.shape)} does not fit {self.coefficients.shape[-1]} coefficients")
        for name in ("mask", "b0_hz", "noise_sd", "outside_model", "model_score"):
            values = getattr(self, name)
            if values is not None and values.shape != grid:
                raise DataError(f"{name} {values.shape} does not fit the image {grid}")

    def fids(self) -> Array:
        """Return rho, (x, y, z, t), on the device of the coefficients."""
        if self.basis is None:
            return self.coefficients
        return self.coefficients @ like(self.basis, self.coefficients)


@dataclass(frozen=True, eq=False)
class Map:
    """One quantitative map."""

    value: np.ndarray
    """float32 (x, y, z); NaN where nothing was fitted."""
    unit: str
    sd: np.ndarray | None = None
    """float32 (x, y, z) standard deviation of the value, same unit, or None: all that is known of its error, priors,
    what reconstruction did to the noise, and misfit included."""
    crlb: np.ndarray | None = None
    """float32 (x, y, z) bare Cramer-Rao bound, same unit, or None: the least standard deviation that the noise of the
    voxel's samples allows an unbiased fit of the same model. Neither priors (spatial ones too) nor misfit count."""


@dataclass(frozen=True, eq=False)
class DisplayMask:
    """What of the maps is shown in pictures; the maps themselves stay whole."""

    voxels: np.ndarray
    """(x, y, z) bool: voxels that may be shown."""
    relative_sd: float
    """Largest standard deviation of a map's value, as a share of the median of the map; 0: any."""
    rule: str
    """The limits in words."""

    def keeps(self, one: Map) -> np.ndarray:
        """Return where a map is shown, (x, y, z) bool.

        A value of zero with a small deviation is shown: the deviation is compared with what is usual, not with the
        value itself.
        """
        if not self.relative_sd or one.sd is None:
            return self.voxels
        # a line beyond the model has no deviation where it was not looked for: its zeros there are not what is usual
        there = self.voxels & np.isfinite(one.value) & np.isfinite(one.sd)
        usual = float(np.median(np.abs(one.value[there]))) if there.any() else 0.0
        with np.errstate(invalid="ignore"):
            return self.voxels & (one.sd <= self.relative_sd * usual)


@dataclass(frozen=True, eq=False)
class Maps:
    """Quantification result of one frame: name -> map, all on one grid."""

    maps: Mapping[str, Map]
    """Names are the field's (tNAA, tCr, tCho, Ins, Glx, NAA, ...) plus NAME_per_water and NAME_per_tCr."""
    mask: np.ndarray
    """(x, y, z) bool: voxels that were fitted."""
    b0_hz: np.ndarray
    protocol: Protocol
    examples: tuple[FitExample, ...] = ()
    frame: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    echo: int | None = None
    """Index of its echo time where the scan has several (`protocol` is then that of this echo), else None."""
    spectra: Callable[[], FittedSpectra] | None = field(default=None, repr=False)
    """Computes the spectra of all fitted voxels with their fits; costs time and memory only when it is called."""
    display: DisplayMask | None = None
    """What is shown of the maps, or None: everything."""
