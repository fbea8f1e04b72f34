"""The ISMRMRD header, with the keys of MRSI profile 1.0, of a converted twix measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_LIMITS = ("kspace_encoding_step_1", "kspace_encoding_step_2", "average", "slice", "contrast", "phase", "repetition",
           "set", "segment", *(f"user_{i}" for i in range(8)))  # fmt: skip
_ORDER = {int: "userParameterLong", float: "userParameterDouble", str: "userParameterString"}


@dataclass(frozen=True)
class EncodingSpace:
    """One encoding space."""

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    limits: Mapping[str, tuple[int, int, int]]
    """Acquisition counter -> (minimum, maximum, centre)."""
    trajectory: str


@dataclass(frozen=True)
class ScanFacts:
    """What the header says beside the encoding; None leaves the element out."""

    measurement_id: str
    protocol_name: str
    patient_position: str
    vendor: str
    model: str
    field_strength_t: float | None
    channels: int
    h1_frequency_hz: float
    tr_ms: Sequence[float]
    te_ms: Sequence[float]
    flip_deg: Sequence[float]
    sequence_type: str
    noise_bandwidth: float | None = None


def header_xml(facts: ScanFacts, spaces: Sequence[EncodingSpace], profile: Mapping[str, int | float | str]) -> str:
    """Return the header as XML that the ISMRMRD schema accepts (elements in its order).

    Parameters
    ----------
    facts
        Measurement, system and sequence.
    spaces
        Encoding spaces; a second one is the water reference's.
    profile
        Keys of the profile with their values; the type of the value chooses the kind of userParameter.
    """
    root = Element("ismrmrdHeader", {"xmlns": NAMESPACE})
    measurement = _section(root, "measurementInformation")
    _leaf(measurement, "measurementID", facts.measurement_id)
    _leaf(measurement, "patientPosition", facts.patient_position)
    _leaf(measurement, "protocolName", facts.protocol_name)
    system = _section(root, "acquisitionSystemInformation")
    _leaf(system, "systemVendor", facts.vendor)
    _leaf(system, "systemModel", facts.model)
    _leaf(system, "systemFieldStrength_T", facts.field_strength_t)
    _leaf(system, "relativeReceiverNoiseBandwidth", facts.noise_bandwidth)
    _leaf(system, "receiverChannels", facts.channels)
    conditions = _section(root, "experimentalConditions")
    _leaf(conditions, "H1resonanceFrequency_Hz", round(facts.h1_frequency_hz))
    for space in spaces:
        _encoding(_section(root, "encoding"), space)
    sequence = _section(root, "sequenceParameters")
    for name, values in (("TR", facts.tr_ms), ("TE", facts.te_ms), ("flipAngle_deg", facts.flip_deg)):
        for number in values:
            _leaf(sequence, name, number)
    _leaf(sequence, "sequence_type", facts.sequence_type)
    parameters = _section(root, "userParameters")
    for kind, tag in _ORDER.items():
        for name, value in profile.items():
            if type(value) is kind:
                element = _section(parameters, tag)
                _leaf(element, "name", name)
                _leaf(element, "value", value)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode")


def _section(parent: Element, name: str) -> Element:
    return SubElement(parent, name)


def _leaf(parent: Element, name: str, value: Any) -> None:
    if value is None or value == "":
        return
    SubElement(parent, name).text = repr(value) if isinstance(value, float) else str(value)


def _encoding(element: Element, space: EncodingSpace) -> None:
    for name in ("encodedSpace", "reconSpace"):
        part = _section(element, name)
        matrix, fov = _section(part, "matrixSize"), _section(part, "fieldOfView_mm")
        for axis, n, length in zip("xyz", space.matrix, space.fov_mm, strict=True):
            _leaf(matrix, axis, int(n))
            _leaf(fov, axis, float(length))
    limits = _section(element, "encodingLimits")
    for name in _LIMITS:
        counter = name.replace("encoding", "encode")
        if counter in space.limits:
            part = _section(limits, name)
            for field, value in zip(("minimum", "maximum", "center"), space.limits[counter], strict=True):
                _leaf(part, field, int(value))
    _leaf(element, "trajectory", space.trajectory)
