"""A simulated scan as a console would stream it: noise scan, water reference, metabolite readouts, and the header."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag

_MEASUREMENT_UID = 20261
_FIRST_TICK = 20_000_000
"""Time of day of the first readout in ticks: somewhere in the afternoon."""


def header_xml(protocol: Protocol, n_coils: int) -> str:
    """Return the profile-1.0 header (protocol 2.6) of a csi measurement with a water reference marked by set 1."""
    geometry = protocol.geometry
    space = "".join(
        f"<{name}>" + "".join(f"<{a}>{v:g}</{a}>" for a, v in zip("xyz", values, strict=True)) + f"</{name}>"
        for name, values in (("matrixSize", geometry.matrix), ("fieldOfView_mm", geometry.fov_mm))
    )
    nx, ny, nz = geometry.matrix
    limits = {
        "kspace_encoding_step_1": (ny - 1, ny // 2), "kspace_encoding_step_2": (nz - 1, nz // 2), "repetition": (0, 0),
        "set": (1, 0), "segment": (nx - 1, nx // 2),
    }  # fmt: skip
    limit_text = "".join(
        f"<{name}><minimum>0</minimum><maximum>{top}</maximum><center>{centre}</center></{name}>"
        for name, (top, centre) in limits.items()
    )
    echoes = "".join(f"<TE>{_ms(te)}</TE>" for te in protocol.echo_times_s)
    users = _users("Long", {"mrsi_spectral_points": protocol.n_times, "mrsi_water_suppressed": 1, "mrsi_freq_sign": 1})
    users += _users("Double", {
        "mrsi_dwell_us": protocol.dwell_s * 1e6, "mrsi_acq_delay_us": protocol.acquisition_delay_s * 1e6,
        "mrsi_reference_ppm": protocol.reference_ppm, "mrsi_transmit_frequency_Hz": protocol.transmit_frequency_hz,
        "mrsi_time_tick_ms": protocol.time_tick_ms,
    })  # fmt: skip
    users += _users("String", {
        "mrsi_profile": "1.0", "mrsi_nucleus": protocol.nucleus, "mrsi_encoding": "csi", "mrsi_water_ref": "set:1",
        "mrsi_grid_center": geometry.grid_center,
    })  # fmt: skip
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<measurementInformation><measurementID>{escape(protocol.measurement_id)}</measurementID>"
        f"<patientPosition>{protocol.patient_position}</patientPosition>"
        f"<protocolName>{escape(protocol.protocol_name)}</protocolName></measurementInformation>"
        "<acquisitionSystemInformation><systemVendor>simulated</systemVendor>"
        f"<systemFieldStrength_T>{protocol.field_strength_t}</systemFieldStrength_T>"
        f"<receiverChannels>{n_coils}</receiverChannels></acquisitionSystemInformation>"
        f"<experimentalConditions><H1resonanceFrequency_Hz>{round(protocol.transmit_frequency_hz)}"
        "</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>"
        f"<encodingLimits>{limit_text}</encodingLimits><trajectory>cartesian</trajectory></encoding>"
        f"<sequenceParameters><TR>{_ms(protocol.repetition_time_s)}</TR>{echoes}<flipAngle_deg>{protocol.flip_angle_deg}</flipAngle_deg>"
        "<sequence_type>ChemicalShiftImaging</sequence_type></sequenceParameters>"
        f"<userParameters>{users}</userParameters></ismrmrdHeader>"
    )


def _ms(seconds: float | None) -> str:
    return repr(round((seconds or 0.0) * 1e3, 9))


def _users(kind: str, values: dict[str, object]) -> str:
    return "".join(
        f"<userParameter{kind}><name>{name}</name><value>{value}</value></userParameter{kind}>"
        for name, value in values.items()
    )


def readouts(
    protocol: Protocol,
    *,
    noise: np.ndarray,
    noise_dwell_s: float,
    water: np.ndarray | None,
    metabolites: np.ndarray,
) -> Iterator[Acquisition]:
    """Yield the scan readout by readout: noise (coil, readout, sample), then k-space (coil, kx, ky, kz, t) twice.

    Counters follow the default axis map of csi: kx = segment, ky = kspace_encode_step_1, kz = kspace_encode_step_2;
    kx runs fastest, one readout per repetition time.
    """
    clock = _Clock(protocol, noise.shape[0])
    for i in range(noise.shape[1]):
        head = clock.head(noise.shape[2], noise_dwell_s)
        head["flags"] = Flag.IS_NOISE_MEASUREMENT.mask
        yield Acquisition(head[()], np.ascontiguousarray(noise[:, i]))
    for is_water, samples in ((True, water), (False, metabolites)):
        if samples is None:
            continue
        nx, ny, nz, n_times = samples.shape[1:]
        # The reversed loop order makes kx the fastest counter.
        for shot, (kz, ky, kx) in enumerate(np.ndindex(nz, ny, nx)):
            head = clock.head(n_times, protocol.dwell_s)
            index = head["idx"]
            index["segment"], index["kspace_encode_step_1"], index["kspace_encode_step_2"] = kx, ky, kz
            index["set"] = int(is_water)
            last = shot == nx * ny * nz - 1
            head["flags"] = (
                (Flag.USER1.mask if is_water else 0)
                | (Flag.FIRST_IN_REPETITION.mask if shot == 0 and not is_water else 0)
                | (Flag.LAST_IN_REPETITION.mask | Flag.LAST_IN_MEASUREMENT.mask if last and not is_water else 0)
            )
            yield Acquisition(head[()], np.ascontiguousarray(samples[:, kx, ky, kz]))


class _Clock:
    """Headers with running counter and time stamp."""

    def __init__(self, protocol: Protocol, n_coils: int) -> None:
        self._count = 0
        self._ticks_per_shot = (protocol.repetition_time_s or 0.0) * 1e3 / protocol.time_tick_ms
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

    def head(self, n_samples: int, dwell_s: float) -> Any:
        """Return the next header, a 0-d array to fill."""
        head = self._template.copy()
        head["scan_counter"] = self._count
        head["acquisition_time_stamp"] = _FIRST_TICK + round(self._count * self._ticks_per_shot)
        head["number_of_samples"] = n_samples
        head["sample_time_us"] = dwell_s * 1e6
        self._count += 1
        return head
