"""Siemens raw files (twix): read with twixtools, written as MRD with the MRSI profile 1.0.

What the vendor's counters, flags and header fields mean comes from a sequence description (`io.sequence`), never from
code. Samples are passed on as they are, with one exception: where the receiver did not move the origin to the centre of
the field of view (``origin = "isocentre"``), the phase exp(i 2 pi k.position) does it here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.mrd_file import write_scan
from mrsi_gadgets.io.sequence import SequenceDescription, find_sequence, resolve, scaled
from mrsi_gadgets.io.twix_file import Measurement, read_measurement
from mrsi_gadgets.io.twix_header import EncodingSpace, ScanFacts, header_xml
from mrsi_gadgets.io.twix_rings import RingPlan, Walks, kept_samples, ring_plan, walks_of
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag

NOISE, WATER, IMAGING = "noise scan", "water reference", "imaging scan"
_FLAGS = {
    "NOISEADJSCAN": Flag.IS_NOISE_MEASUREMENT,
    "PATREFSCAN": Flag.IS_PARALLEL_CALIBRATION,
    "PATREFANDIMASCAN": Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING,
    "REFLECT": Flag.IS_REVERSE,
    "RTFEEDBACK": Flag.IS_RTFEEDBACK_DATA,
    "HPFEEDBACK": Flag.IS_HPFEEDBACK_DATA,
    "PHASCOR": Flag.IS_PHASECORR_DATA,
    "RETRO_DUMMYSCAN": Flag.IS_DUMMYSCAN_DATA,
    "LASTMEASUREDLINE": Flag.LAST_IN_REPETITION,
    "LASTSCANINMEAS": Flag.LAST_IN_MEASUREMENT,
}
"""Evaluation bits -> MRD flags (protocol 2.2)."""


def convert_twix(source: Path, destination: Path, *, sequence: str | None = None) -> str:
    """Convert the last measurement of a twix file to MRD.

    Parameters
    ----------
    source
        Twix file (VB, VD or VE).
    destination
        The MRD .h5 file to write; it appears when it is complete.
    sequence
        Name of a shipped sequence description or path of a .toml file; None takes the one that knows the sequence.

    Returns
    -------
        What was written, derived and left out, one line each.

    Raises
    ------
    DataError
        The file is no twix file, is cut off, or contradicts the sequence description.
    ConfigError
        There is no description of this sequence, or it is faulty.
    MissingPackageError
        The package twixtools is not installed.
    """
    measurement = read_measurement(Path(source))
    description = find_sequence(sequence, measurement.sequence_file)
    conversion = Conversion(measurement, description)
    write_scan(destination, conversion.header_xml(), conversion.acquisitions())
    return "\n".join([f"{destination}: {conversion.counts()}", *conversion.notes])


@dataclass
class Conversion:
    """A measurement seen through a sequence description."""

    measurement: Measurement
    description: SequenceDescription
    notes: list[str] = field(default_factory=list)
    roles: dict[str, list[Any]] = field(init=False)
    profile: dict[str, int | float | str] = field(init=False)
    matrix: tuple[int, int, int] = field(init=False)
    fov_mm: tuple[float, float, float] = field(init=False)
    plan: RingPlan | None = field(init=False, default=None)
    walks: dict[str, Walks] = field(init=False, default_factory=dict)
    _shifts: dict[int, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        header = self.measurement.header
        self.notes.append(f"sequence description: {self.description.name} for {self.measurement.sequence_file}")
        self.profile = {"mrsi_profile": "1.0"}
        for key, value in self.description.profile.items():
            self.profile[key] = _typed(key, resolve(value, header))
        self.matrix = tuple(int(resolve(n, header)) for n in self.description.matrix)  # type: ignore[assignment]
        self.fov_mm = tuple(float(resolve(f, header)) for f in self.description.fov_mm)  # type: ignore[assignment]
        self._sort_roles()
        if self.description.rings is not None:
            self._plan_rings()
        self._read_directions()

    def _sort_roles(self) -> None:
        roles: dict[str, list[Any]] = {NOISE: [], WATER: [], IMAGING: []}
        for block in self.measurement.blocks:
            roles[self._role(block)].append(block)
        if not roles[IMAGING]:
            raise DataError("the measurement has no imaging readouts; export the raw data of a finished scan")
        if roles[NOISE] and self.description.noise_sample_time_us is None:
            self.notes.append(
                f"left out: {len(roles[NOISE])} noise readouts, whose dwell is not known; state sample_time_us in "
                "[noise] of the sequence description"
            )
            roles[NOISE] = []
        if self.description.water_flag is not None and not roles[WATER]:
            self.notes.append(f"no readout has the water reference's flag {self.description.water_flag}")
        self.roles = roles

    def _role(self, block: Any) -> str:
        if block.is_flag_set("NOISEADJSCAN"):
            return NOISE
        if self.description.water_flag is not None and block.is_flag_set(self.description.water_flag):
            return WATER
        return IMAGING

    def _plan_rings(self) -> None:
        """Derive laps, interleaves and FID lengths from the readouts, and put them into the profile."""
        rings = self.description.rings
        assert rings is not None
        needed = {"kspace_encode_step_1", "segment", "user_0"} - set(self.description.counters)
        if needed:
            raise DataError(
                f"[counters] of {self.description.name} lacks {', '.join(sorted(needed))}, which rings need; add them"
            )
        counters = self.description.counters
        self.plan = ring_plan(
            self.roles[IMAGING], counters, rings,
            dwell_us=float(self.profile["mrsi_dwell_us"]), nucleus=str(self.profile["mrsi_nucleus"]),
        )  # fmt: skip
        self.profile["mrsi_samples_per_lap"] = " ".join(map(str, self.plan.samples_per_lap))
        self.profile["mrsi_temporal_interleaves"] = " ".join(map(str, self.plan.temporal_interleaves))
        self.profile["mrsi_trajectory_units"] = "1/m"
        self.profile["mrsi_trajectory_columns"] = "kx,ky"
        for role, key in ((IMAGING, "mrsi_spectral_points"), (WATER, "mrsi_spectral_points_enc1")):
            if self.roles[role]:
                self.walks[role] = walks_of(self.roles[role], counters, self.plan, role)
                self.profile[key] = self.plan.spectral_points(self.walks[role].lengths, role)
        radii = ", ".join(f"{abs(p) * self.fov_mm[0] * 1e-3:.2f}" for p in self.plan.first_points)
        self.notes.append(
            f"rings: {len(self.plan.samples_per_lap)} of radius {radii} /FOV; samples per lap "
            f"{self.profile['mrsi_samples_per_lap']}; temporal interleaves {self.profile['mrsi_temporal_interleaves']}"
        )
        keys = {IMAGING: "mrsi_spectral_points", WATER: "mrsi_spectral_points_enc1"}
        lengths = [f"{role} {self.profile[key]}" for role, key in keys.items() if key in self.profile]
        self.notes.append(f"spectral points: {', '.join(lengths)} at a dwell of {self.plan.dwell_us:g} us")

    def _read_directions(self) -> None:
        """Read the geometry of the first imaging readout: the quaternion's columns are phase, read, slice."""
        data = self.roles[IMAGING][0].mdh.SliceData
        self.position = np.array([data.SlicePos.Sag, data.SlicePos.Cor, data.SlicePos.Tra], dtype=float)
        w, x, y, z = (float(q) for q in data.Quaternion)
        norm = np.sqrt(w * w + x * x + y * y + z * z)
        if not 0.99 < norm < 1.01:
            raise DataError(
                f"the orientation of the imaging readouts is no unit quaternion ({w:g}, {x:g}, {y:g}, {z:g})"
            )
        w, x, y, z = w / norm, x / norm, y / norm, z / norm
        self.phase_dir = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)])
        self.read_dir = np.array([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)])
        self.slice_dir = np.array([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)])

    def counts(self) -> str:
        """Say how many readouts of which role there are."""
        parts = [f"{len(blocks)} {role}" for role, blocks in self.roles.items() if blocks]
        return f"{sum(map(len, self.roles.values()))} readouts ({', '.join(parts)})"

    def header_xml(self) -> str:
        """Return the MRD header."""
        value = self.measurement.value
        frequency = float(self.profile.get("mrsi_transmit_frequency_Hz", 0) or 0)
        b0 = value("MeasYaps.sProtConsistencyInfo.flNominalB0")
        proton = frequency if self.profile["mrsi_nucleus"] == "1H" or not b0 else 42.577478518e6 * float(b0)
        facts = ScanFacts(
            measurement_id=f"meas_{int(self.roles[IMAGING][0].mdh.MeasUID)}",
            protocol_name=str(value("MeasYaps.tProtocolName", "")),
            patient_position=str(value("Meas.tPatientPosition", "") or value("Meas.PatientPosition", "HFS")),
            vendor="SIEMENS",
            model=str(value("Dicom.ManufacturersModelName", "")),
            field_strength_t=float(b0) if b0 else None,
            channels=int(self.roles[IMAGING][0].mdh.UsedChannels),
            h1_frequency_hz=proton,
            tr_ms=[float(t) * 1e-3 for t in _numbers(value("MeasYaps.alTR"))[:1]],
            te_ms=[float(t) * 1e-3 for t in _numbers(value("MeasYaps.alTE"))[:1]],
            flip_deg=[float(a) for a in _numbers(value("MeasYaps.adFlipAngleDegree"))[:1]],
            sequence_type="ChemicalShiftImaging",
            noise_bandwidth=self._noise_bandwidth(),
        )
        trajectory = "other" if self.plan is not None else "cartesian"
        spaces = [EncodingSpace(self.matrix, self.fov_mm, self._limits(IMAGING), trajectory)]
        if self.roles[WATER]:
            spaces.append(EncodingSpace(self.matrix, self.fov_mm, self._limits(WATER), trajectory))
        return header_xml(facts, spaces, self.profile)

    def _limits(self, role: str) -> dict[str, tuple[int, int, int]]:
        limits = {}
        centres = self._centres(role)
        for mrd, twix in self.description.counters.items():
            values = [int(getattr(block.mdh.Counter, twix)) for block in self.roles[role]]
            limits[mrd] = (min(values), max(values), centres.get(mrd, 0))
        if role == WATER:
            limits["set"] = (1, 1, 1)
        return limits

    def _centres(self, role: str) -> dict[str, int]:
        """Return the counter values of k = 0 of phase-encoded axes."""
        if self.plan is not None:
            return {}
        first = self.roles[role][0].mdh
        centres = {}
        for mrd, n, stated in (
            ("segment", self.matrix[0], 0), ("kspace_encode_step_1", self.matrix[1], int(first.CenterLin)),
            ("kspace_encode_step_2", self.matrix[2], int(first.CenterPar)),
        ):  # fmt: skip
            centres[mrd] = stated or n // 2
        return centres

    def acquisitions(self) -> Iterator[Acquisition]:
        """Yield the readouts as MRD, in the order of measurement."""
        converted = {id(block): role for role, blocks in self.roles.items() for block in blocks}
        for block in self.measurement.blocks:
            role = converted.get(id(block))
            if role is not None:
                yield self._acquisition(block, role)

    def _acquisition(self, block: Any, role: str) -> Acquisition:
        mdh = block.mdh
        samples = np.array(block.data, dtype=np.complex64)
        head = np.zeros((), dtype=ACQUISITION_HEADER)
        head["version"] = 1
        head["measurement_uid"] = int(mdh.MeasUID) & 0xFFFFFFFF
        head["scan_counter"] = int(mdh.ScanCounter)
        head["acquisition_time_stamp"] = int(mdh.TimeStamp)
        head["physiology_time_stamp"][0] = int(mdh.PMUTimeStamp) & 0xFFFFFFFF
        head["available_channels"] = head["active_channels"] = samples.shape[0]
        head["number_of_samples"] = samples.shape[1]
        head["discard_pre"], head["discard_post"] = int(mdh.CutOff.Pre), int(mdh.CutOff.Post)
        head["center_sample"] = (
            min(int(mdh.CenterCol), samples.shape[1] - 1) if self.plan is None and role != NOISE else 0
        )
        head["position"] = self.position
        head["read_dir"], head["phase_dir"], head["slice_dir"] = self.read_dir, self.phase_dir, self.slice_dir
        head["patient_table_position"] = (int(mdh.PTABPosX), int(mdh.PTABPosY), int(mdh.PTABPosZ))
        parameters = [int(p) for p in mdh.IceProgramPara] + [0] * 16
        head["user_int"] = [*parameters[:7], int(mdh.TimeSinceLastRF) & 0x7FFFFFFF]
        head["user_float"] = parameters[8:16]
        head["flags"] = self._flags(block, role)
        head["sample_time_us"] = self._sample_time_us(block, role)
        trajectory = None
        if role != NOISE:
            for mrd, twix in self.description.counters.items():
                self._count(head, mrd, int(getattr(mdh.Counter, twix)))
            if role == WATER:
                head["idx"]["set"] = 1
                head["encoding_space_ref"] = 1
            if self.plan is not None:
                trajectory = self._trajectory(block, role)
                head["trajectory_dimensions"] = trajectory.shape[1]
                if self.description.origin == "isocentre":
                    samples *= self._origin_phase(trajectory)
        return Acquisition(head[()], samples, trajectory)  # type: ignore[arg-type]

    @staticmethod
    def _count(head: np.ndarray, counter: str, value: int) -> None:
        if counter.startswith("user_"):
            head["idx"]["user"][int(counter[5:])] = value
        else:
            head["idx"][counter] = value

    def _flags(self, block: Any, role: str) -> int:
        bits = 0
        for name, flag in _FLAGS.items():
            if block.is_flag_set(name) and not (role == WATER and name == self.description.water_flag):
                bits |= flag.mask
        return bits | (Flag.USER1.mask if role == WATER else 0)

    def _noise_bandwidth(self) -> float | None:
        given = self.description.noise_bandwidth
        return None if given is None else float(resolve(given, self.measurement.header))

    def _sample_time_us(self, block: Any, role: str) -> float:
        header = self.measurement.header
        if role == NOISE:
            assert self.description.noise_sample_time_us is not None
            return float(resolve(self.description.noise_sample_time_us, header))
        if self.plan is not None:
            return self.plan.sample_time_us(self._ring(block))
        if self.description.sample_time_us is None:
            raise DataError(f"{self.description.name} lacks sample_time_us in [readout]; add the ADC dwell in us")
        return float(resolve(self.description.sample_time_us, header))

    def _ring(self, block: Any) -> int:
        return int(getattr(block.mdh.Counter, self.description.counters["kspace_encode_step_1"]))

    def _trajectory(self, block: Any, role: str) -> np.ndarray:
        assert self.plan is not None
        first = self.walks[role].first_samples[int(block.mdh.ScanCounter)] - int(block.mdh.CutOff.Pre)
        length = kept_samples(block) + int(block.mdh.CutOff.Pre) + int(block.mdh.CutOff.Post)
        return self.plan.trajectory(self._ring(block), first, length)

    def _origin_phase(self, trajectory: np.ndarray) -> np.ndarray:
        """Return exp(+i s 2 pi k.p), which moves the origin from the isocentre to the centre of the field of view."""
        offset = np.array([self.position @ self.read_dir, self.position @ self.phase_dir]) * 1e-3
        sign = int(self.profile.get("mrsi_kspace_sign", 1))
        return np.exp(2j * np.pi * sign * (trajectory.astype(float) @ offset)).astype(np.complex64)


def _numbers(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        values = list(values.values())
    return [v for v in values if v != ""] if isinstance(values, (list, tuple)) else []


def _typed(key: str, value: int | float | str) -> int | float | str:
    """Return a value as the type of its userParameter: physical quantities are Double even where they are whole."""
    if key.endswith(("_Hz", "_us", "_ms", "_ppm", "_oversampling")):
        return scaled(value, 1.0, key)
    return int(value) if isinstance(value, float) and value == int(value) else value
