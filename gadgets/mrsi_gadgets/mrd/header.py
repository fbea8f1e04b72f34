"""The ISMRMRD header as we use it: a tolerant reader and a strict writer.

Readers of the schema refuse headers over details that do not matter here (a missing patient position, a misspelt
trajectory, another namespace prefix). This one takes what is there; `profile` says what is missing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mrsi_gadgets.errors import DataError

Value = int | float | str | bytes
T = TypeVar("T")

LIMIT_OF_COUNTER = {
    "kspace_encode_step_1": "kspace_encoding_step_1",
    "kspace_encode_step_2": "kspace_encoding_step_2",
}
"""Counters whose limits have another name in the header."""


@dataclass(frozen=True)
class Limit:
    """Range of a counter."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True)
class Space:
    """Grid of an encoded or reconstructed space."""

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Encoding:
    """One encoding space."""

    encoded: Space
    recon: Space
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """Counter name as in the acquisition header (``kspace_encode_step_1``, ``segment``, ``user_0``, ...) -> range."""
    trajectory: str = ""
    trajectory_id: str = ""
    trajectory_parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class MrdHeader:
    """What we use of an ISMRMRD header. Absent text is empty, absent numbers are None."""

    measurement_id: str = ""
    patient_position: str = ""
    protocol_name: str = ""
    vendor: str = ""
    model: str = ""
    field_strength_t: float | None = None
    receiver_channels: int | None = None
    receiver_noise_bandwidth: float | None = None
    """Part of the noise scan's bandwidth that the receiver's filter passes."""
    coil_labels: Mapping[int, str] = field(default_factory=dict)
    h1_frequency_hz: float | None = None
    encodings: tuple[Encoding, ...] = ()
    repetition_times_ms: tuple[float, ...] = ()
    echo_times_ms: tuple[float, ...] = ()
    inversion_times_ms: tuple[float, ...] = ()
    flip_angles_deg: tuple[float, ...] = ()
    echo_spacings_ms: tuple[float, ...] = ()
    sequence_type: str = ""
    user: Mapping[str, Value] = field(default_factory=dict)
    """User parameters of all four types by name."""
    adapted: Mapping[str, tuple[Value, str]] = field(default_factory=dict)
    """Profile key -> (value, source): what a vendor adapter derived (`mrd.adapters`)."""
    geometry_source: str = ""
    """Where a vendor adapter found the grid, where the header's own is something else."""
    frame_of_reference_uid: str = ""
    series_description: str = ""


def parse_header(xml: str) -> MrdHeader:
    """Read an ISMRMRD header, whatever its namespace prefix.

    Parameters
    ----------
    xml
        The header's text; trailing NULs are ignored.

    Raises
    ------
    DataError
        It is no XML, no ISMRMRD header, or a value in it is not of its type.
    """
    try:
        root = fromstring(xml.rstrip("\0").strip())
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise DataError(f"the ISMRMRD header is not usable XML ({problem}); send a valid header") from problem
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    if root.tag != "ismrmrdHeader":
        raise DataError(f"the header's root element is '{root.tag}'; it must be ismrmrdHeader")
    measurement = "measurementInformation"
    system = "acquisitionSystemInformation"
    sequence = "sequenceParameters"
    return MrdHeader(
        measurement_id=_text(root, f"{measurement}/measurementID"),
        patient_position=_text(root, f"{measurement}/patientPosition"),
        protocol_name=_text(root, f"{measurement}/protocolName"),
        series_description=_text(root, f"{measurement}/seriesDescription"),
        frame_of_reference_uid=_text(root, f"{measurement}/frameOfReferenceUID"),
        vendor=_text(root, f"{system}/systemVendor"),
        model=_text(root, f"{system}/systemModel"),
        field_strength_t=_number(root, f"{system}/systemFieldStrength_T", float),
        receiver_channels=_number(root, f"{system}/receiverChannels", _integer),
        receiver_noise_bandwidth=_number(root, f"{system}/relativeReceiverNoiseBandwidth", float),
        coil_labels=dict(_coil_labels(root)),
        h1_frequency_hz=_number(root, "experimentalConditions/H1resonanceFrequency_Hz", float),
        encodings=tuple(_encoding(element, i) for i, element in enumerate(root.findall("encoding"))),
        repetition_times_ms=_numbers(root, f"{sequence}/TR"),
        echo_times_ms=_numbers(root, f"{sequence}/TE"),
        inversion_times_ms=_numbers(root, f"{sequence}/TI"),
        flip_angles_deg=_numbers(root, f"{sequence}/flipAngle_deg"),
        echo_spacings_ms=_numbers(root, f"{sequence}/echo_spacing"),
        sequence_type=_text(root, f"{sequence}/sequence_type"),
        user=_user_parameters(root.find("userParameters")),
    )


def _text(parent: Element, path: str) -> str:
    return (parent.findtext(path) or "").strip()


def _convert(text: str, kind: Callable[[str], T], path: str) -> T:
    try:
        return kind(text)
    except ValueError as problem:
        raise DataError(f"{path} in the header is '{text}', which is not a number; correct it") from problem


def _integer(text: str) -> int:
    value = float(text)
    if not value.is_integer():  # nor are NaN and infinity
        raise ValueError(text)
    return int(value)


def _number(parent: Element, path: str, reader: Callable[[str], T]) -> T | None:
    text = _text(parent, path)
    return _convert(text, reader, path) if text else None


def _numbers(parent: Element, path: str) -> tuple[float, ...]:
    return tuple(_convert((e.text or "").strip(), float, path) for e in parent.findall(path))


def _coil_labels(root: Element) -> Iterator[tuple[int, str]]:
    for label in root.findall("acquisitionSystemInformation/coilLabel"):
        number = _text(label, "coilNumber")
        if number:
            yield _convert(number, _integer, "coilLabel/coilNumber"), _text(label, "coilName")


def _encoding(element: Element, index: int) -> Encoding:
    limits = {}
    names = {limit: counter for counter, limit in LIMIT_OF_COUNTER.items()}
    for limit in element.iterfind("encodingLimits/*"):
        values = [_number(limit, part, _integer) for part in ("minimum", "maximum", "center")]
        limits[names.get(limit.tag, limit.tag)] = Limit(*(int(v or 0) for v in values))
    encoded = _space(element, f"encoding[{index}]/encodedSpace")
    if encoded is None:
        raise DataError(f"encoding[{index}] of the header has no encodedSpace (matrixSize, fieldOfView_mm); add it")
    return Encoding(
        encoded=encoded,
        recon=_space(element, f"encoding[{index}]/reconSpace") or encoded,
        limits=limits,
        trajectory=_text(element, "trajectory"),
        trajectory_id=_text(element, "trajectoryDescription/identifier"),
        trajectory_parameters=_user_parameters(element.find("trajectoryDescription")),
    )


def _space(encoding: Element, path: str) -> Space | None:
    element = encoding.find(path.rpartition("/")[2])
    if element is None:
        return None
    matrix = [_number(element, f"matrixSize/{axis}", _integer) for axis in "xyz"]
    fov = [_number(element, f"fieldOfView_mm/{axis}", float) for axis in "xyz"]
    if None in matrix or None in fov:
        raise DataError(f"{path} of the header needs x, y and z in matrixSize and fieldOfView_mm; add what is missing")
    return Space(tuple(int(n or 0) for n in matrix), tuple(float(f or 0) for f in fov))  # type: ignore[arg-type]


def _user_parameters(element: Element | None) -> dict[str, Value]:
    readers: dict[str, Callable[[str], Value]] = {
        "userParameterLong": _integer,
        "userParameterDouble": float,
        "userParameterString": str,
        "userParameterBase64": _decode,
    }
    found: dict[str, Value] = {}
    for parameter in element if element is not None else ():
        reader = readers.get(parameter.tag)
        if reader is None:
            continue
        name = _text(parameter, "name")
        value = _convert(_text(parameter, "value"), reader, f"{parameter.tag} {name}")
        if name.startswith("mrsi_") and found.get(name, value) != value:
            raise DataError(f"{name} is given twice in the header, as {found[name]!r} and {value!r}; remove one")
        found[name] = value
    return found


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as problem:
        raise ValueError(text) from problem
