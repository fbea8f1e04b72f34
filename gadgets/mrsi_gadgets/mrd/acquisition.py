"""How a scan was acquired, as plain values for the provenance: what a report must say of it and nothing of who it was.

Only what `identity` leaves in an anonymous header is told.
"""

from __future__ import annotations

from typing import Any

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.mrd.header import MrdHeader


def describe_acquisition(header: MrdHeader, protocol: Protocol) -> dict[str, Any]:
    """Return the facts of a scan by name, in SI units; what header and protocol do not say is left out.

    Parameters
    ----------
    header
        The scan's header.
    protocol
        What it means.
    """
    first = header.encodings[0] if header.encodings else None
    limits = {} if first is None else first.limits
    facts: dict[str, Any] = {
        "vendor": header.vendor,
        "model": header.model,
        "field_strength_t": header.field_strength_t or protocol.field_strength_t,
        "nucleus": protocol.nucleus,
        "transmit_frequency_hz": protocol.transmit_frequency_hz,
        "reference_ppm": protocol.reference_ppm,
        "receiver_channels": header.receiver_channels,
        "sequence_type": header.sequence_type,
        "encoding": protocol.encoding,
        "matrix": list(protocol.geometry.matrix),
        "fov_mm": list(protocol.geometry.fov_mm),
        "repetition_time_s": protocol.repetition_time_s,
        "echo_times_s": list(protocol.echo_times_s),
        "inversion_times_s": [time * 1e-3 for time in header.inversion_times_ms],
        "flip_angle_deg": protocol.flip_angle_deg,
        "acquisition_delay_s": protocol.acquisition_delay_s,
        "spectral_width_hz": 1 / protocol.dwell_s,
        "spectral_points": protocol.n_times,
        "kspace_weighting": protocol.kspace_weighting,
        "editing": protocol.editing,
        "water_reference": protocol.water_reference,
        "water_suppressed": protocol.water_suppressed,
        "patient_position": header.patient_position,
    }
    for counter, name in (("average", "averages"), ("repetition", "repetitions")):
        if counter in limits:
            facts[name] = limits[counter].maximum - limits[counter].minimum + 1
    return {name: value for name, value in facts.items() if value not in (None, "", [])}
