"""A simulated scan as a console would stream it: noise scan, water reference, metabolite readouts, and the header."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from mrsi_gadgets.data import Protocol, Role
from mrsi_gadgets.phantom.encodings import Readout
from mrsi_gadgets.phantom.presets import Preset
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag

_MEASUREMENT_UID = 20261
_FIRST_TICK = 20_000_000
"""Time of day of the first readout in ticks: somewhere in the afternoon."""
_LIMIT_ORDER = (
    "kspace_encoding_step_1", "kspace_encoding_step_2", "average", "contrast", "repetition", "set", "segment", "user_0",
    "user_1",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pass:
    """One way through k-space: what was received and in which readouts it comes."""

    role: Role
    samples: np.ndarray
    """complex64 (coil, *point axes of the encoding, t)."""
    readouts: tuple[Readout, ...]
    shots: np.ndarray
    """(readout,) number of each readout's excitation within the scan; the first water or metabolite one is 0."""
    counters: Mapping[str, int]
    """Further counters of all its readouts."""

    def data(self, readout: Readout) -> np.ndarray:
        """Return the samples (coil, sample) of a readout in the order of acquisition."""
        taken = self.samples[(slice(None), *readout.index)]
        if not readout.lap:
            return np.ascontiguousarray(taken)
        laps = np.moveaxis(taken, 1, 2)
        # The rewinder is received as well; its samples are nobody's data, here the last one held.
        rewinder = np.repeat(laps[..., -1:], readout.lap - laps.shape[-1], axis=-1)
        return np.concatenate([laps, rewinder], axis=-1).reshape(len(laps), -1)


def header_xml(preset: Preset) -> str:
    """Return the profile-1.0 header (protocol 2.6) of a preset's measurement."""
    protocol, encoding = preset.protocol, preset.encoding
    geometry = protocol.geometry
    space = "".join(
        f"<{name}>" + "".join(f"<{a}>{v:g}</{a}>" for a, v in zip("xyz", values, strict=True)) + f"</{name}>"
        for name, values in (("matrixSize", geometry.matrix), ("fieldOfView_mm", geometry.fov_mm))
    )
    limits = {"repetition": (0, 0), "set": (int(preset.has_water_reference), 0), **encoding.limits(preset)}
    if preset.cycling:
        limits[encoding.edit_counter] = (1, 0)
    if preset.echo_times_s:
        limits["contrast"] = (len(preset.echo_times_s) - 1, 0)
    limit_text = "".join(
        f"<{name}><minimum>0</minimum><maximum>{limits[name][0]}</maximum><center>{limits[name][1]}</center></{name}>"
        for name in _LIMIT_ORDER
        if name in limits
    )
    proton_hz = protocol.transmit_frequency_hz / NUCLEI[preset.nucleus].frequency_ratio
    echoes = "".join(f"<TE>{_ms(te)}</TE>" for te in protocol.echo_times_s)
    keys: dict[str, int | float | str] = {
        "mrsi_spectral_points": protocol.n_times, "mrsi_freq_sign": 1,
        "mrsi_dwell_us": protocol.dwell_s * 1e6, "mrsi_acq_delay_us": protocol.acquisition_delay_s * 1e6,
        "mrsi_reference_ppm": protocol.reference_ppm, "mrsi_transmit_frequency_Hz": protocol.transmit_frequency_hz,
        "mrsi_time_tick_ms": protocol.time_tick_ms, "mrsi_profile": "1.0", "mrsi_nucleus": protocol.nucleus,
        "mrsi_encoding": protocol.encoding, "mrsi_water_ref": protocol.water_reference,
        "mrsi_grid_center": geometry.grid_center, **encoding.keys(preset),
    }  # fmt: skip
    if protocol.water_suppressed is not None:
        keys["mrsi_water_suppressed"] = int(protocol.water_suppressed)
    if preset.cycling:
        keys |= {"mrsi_axis_edit": encoding.edit_counter, "mrsi_edit": protocol.editing}
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<measurementInformation><measurementID>{escape(protocol.measurement_id)}</measurementID>"
        f"<patientPosition>{protocol.patient_position}</patientPosition>"
        f"<protocolName>{escape(protocol.protocol_name)}</protocolName></measurementInformation>"
        "<acquisitionSystemInformation><systemVendor>simulated</systemVendor>"
        f"<systemFieldStrength_T>{protocol.field_strength_t}</systemFieldStrength_T>"
        f"<receiverChannels>{preset.n_coils}</receiverChannels></acquisitionSystemInformation>"
        f"<experimentalConditions><H1resonanceFrequency_Hz>{round(proton_hz)}"
        "</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>"
        f"<encodingLimits>{limit_text}</encodingLimits><trajectory>{encoding.trajectory_name}</trajectory></encoding>"
        f"<sequenceParameters><TR>{_ms(protocol.repetition_time_s)}</TR>{echoes}<flipAngle_deg>{protocol.flip_angle_deg}</flipAngle_deg>"
        "<sequence_type>ChemicalShiftImaging</sequence_type></sequenceParameters>"
        f"<userParameters>{_users(keys)}</userParameters></ismrmrdHeader>"
    )


def _ms(seconds: float | None) -> str:
    return repr(round((seconds or 0.0) * 1e3, 9))


def _users(keys: Mapping[str, int | float | str]) -> str:
    """User parameters in the order of the schema: all Long, then Double, then String."""
    return "".join(
        f"<userParameter{name}><name>{key}</name><value>{value}</value></userParameter{name}>"
        for kind, name in ((int, "Long"), (float, "Double"), (str, "String"))
        for key, value in keys.items()
        if type(value) is kind
    )


def stream(preset: Preset, noise: np.ndarray, groups: Sequence[Sequence[Pass]]) -> Iterator[Acquisition]:
    """Yield the scan readout by readout in the order a console sends them.

    Parameters
    ----------
    preset : of the scan.
    noise : (coil, readout, sample) complex64, which comes first.
    groups : passes one after another; those of one group take turns shot by shot.
    """
    clock = _Clock(preset.protocol, noise.shape[0])
    tr_s = preset.repetition_time_s
    for i in range(noise.shape[1]):
        head = clock.head(i * tr_s, noise.shape[2], preset.noise_dwell_s)
        head["flags"] = Flag.IS_NOISE_MEASUREMENT.mask
        yield Acquisition(head[()], np.ascontiguousarray(noise[:, i]))
    first_s, shot_s = noise.shape[1] * tr_s, preset.averaged * tr_s
    metabolites = [p for group in groups for p in group if p.role is Role.METABOLITE]
    begin = min(int(p.shots[0]) for p in metabolites)
    last = max(metabolites, key=lambda p: int(p.shots[-1]))
    for group in groups:
        for shot, number, i in heapq.merge(
            *([(int(shot), number, i) for i, shot in enumerate(p.shots)] for number, p in enumerate(group))
        ):
            of, readout = group[number], group[number].readouts[i]
            data = of.data(readout)
            head = clock.head(first_s + shot * shot_s + max(readout.start_s, 0.0), data.shape[1], readout.sample_time_s)
            index = head["idx"]
            for name, value in {**readout.counters, **of.counters}.items():
                if name.startswith("user_"):
                    index["user"][int(name[5:])] = value
                else:
                    index[name] = value
            head["center_sample"] = readout.center_sample
            head["flags"] = _flags(of, readout)
            if of.role is Role.METABOLITE and shot == begin and i == 0:
                head["flags"] |= Flag.FIRST_IN_REPETITION.mask
            if of is last and i == len(of.readouts) - 1:
                head["flags"] |= Flag.LAST_IN_REPETITION.mask | Flag.LAST_IN_MEASUREMENT.mask
            if readout.trajectory is not None:
                head["trajectory_dimensions"] = readout.trajectory.shape[1]
            yield Acquisition(head[()], data, readout.trajectory)


def _flags(of: Pass, readout: Readout) -> int:
    flags = 0
    if of.role is Role.WATER_REFERENCE:
        flags |= Flag.USER1.mask
    if of.role is Role.NAVIGATOR:
        flags |= Flag.IS_NAVIGATION_DATA.mask
    if of.role is Role.CALIBRATION:
        flags |= Flag.IS_PARALLEL_CALIBRATION.mask
    if readout.reverse:
        flags |= Flag.IS_REVERSE.mask
    return flags


class _Clock:
    """Headers with running counter and time stamp."""

    def __init__(self, protocol: Protocol, n_coils: int) -> None:
        self._count = 0
        self._tick_s = protocol.time_tick_ms * 1e-3
        head = np.zeros((), ACQUISITION_HEADER)
        geometry = protocol.geometry
        head["version"], head["measurement_uid"] = 1, _MEASUREMENT_UID
        head["available_channels"] = head["active_channels"] = n_coils
        for channel in range(n_coils):
            head["channel_mask"][channel // 64] |= np.uint64(1 << (channel % 64))
        head["position"] = geometry.position_mm
        head["read_dir"], head["phase_dir"], head["slice_dir"] = (
            geometry.read_dir, geometry.phase_dir, geometry.slice_dir,
        )  # fmt: skip
        self._template = head

    def head(self, time_s: float, n_samples: int, dwell_s: float) -> Any:
        """Return the next header, a 0-d array to fill; `time_s` counts from the first readout of the scan."""
        head = self._template.copy()
        head["scan_counter"] = self._count
        head["acquisition_time_stamp"] = _FIRST_TICK + round(time_s / self._tick_s)
        head["number_of_samples"] = n_samples
        head["sample_time_us"] = dwell_s * 1e6
        self._count += 1
        return head
