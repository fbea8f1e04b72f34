"""Write ISMRMRD headers with the MRSI profile 1.0, in the order of elements that the schema's strict readers want."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import LIMIT_OF_COUNTER, Limit
from mrsi_gadgets.mrd.layout import COUNTER_INDEX
from mrsi_gadgets.mrd.nuclei import FREQUENCY_RATIO, PROTON_HZ_PER_T

_LIMIT_ORDER = (
    "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
    "segment", *(f"user_{i}" for i in range(8)),
)  # fmt: skip
_TRAJECTORY = {"csi": "cartesian", "epsi": "epi", "spiral": "spiral"}

Parameter = int | float | str


def header_xml(
    protocol: Protocol,
    *,
    receiver_channels: int,
    limits: Mapping[str, Limit] | None = None,
    averages: int = 1,
    frames: int = 1,
    water: Protocol | None = None,
    water_limits: Mapping[str, Limit] | None = None,
    user: Mapping[str, Parameter] | None = None,
    lobe: Mapping[str, Parameter] | None = None,
    vendor: str = "",
    model: str = "",
) -> str:
    """Return the header of a measurement; `profile.read_protocol` reads the same protocol back from it.

    Parameters
    ----------
    protocol
        Of the metabolites.
    receiver_channels
        Number of coils.
    limits
        Counter ranges beyond those that the axis map and the matrix give (rings: kspace_encode_step_1).
    averages, frames
        How often each sample comes, and how many dynamic frames there are.
    water
        Protocol of a water reference with its own encoding space; None where it has that of the metabolites.
    water_limits
        As `limits`, for the water's space.
    user
        Further user parameters.
    lobe
        Parameters of trajectoryDescription "ConventionalEPI" (`epsi_lobes.LOBE_PARAMETERS`), of EPSI on ramps.
    vendor, model
        Of the scanner.

    Returns
    -------
        XML that ismrmrd's strict parser accepts.

    Raises
    ------
    DataError
        Nucleus and field leave the proton frequency open, which the schema requires.
    """
    parameters: dict[str, Parameter] = _profile_parameters(protocol)
    spaces = [_encoding(protocol, dict(limits or {}), averages, frames, lobe)]
    if water is not None:
        spaces.append(_encoding(water, dict(water_limits or {}), averages, frames, lobe))
        own = _profile_parameters(water)
        parameters |= {f"{key}_enc1": value for key, value in own.items() if parameters.get(key) != value}
    parameters |= user or {}
    system = _element("systemVendor", vendor) + _element("systemModel", model)
    system += _element("systemFieldStrength_T", protocol.field_strength_t)
    if protocol.receiver_noise_bandwidth != 1.0:
        system += _element("relativeReceiverNoiseBandwidth", protocol.receiver_noise_bandwidth)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        + _wrap(
            "measurementInformation",
            _element("measurementID", protocol.measurement_id)
            + _element("patientPosition", protocol.patient_position)
            + _element("protocolName", protocol.protocol_name),
        )
        + _wrap("acquisitionSystemInformation", system + _element("receiverChannels", receiver_channels))
        + _wrap("experimentalConditions", _element("H1resonanceFrequency_Hz", round(_proton_frequency(protocol))))
        + "".join(spaces)
        + _wrap("sequenceParameters", _sequence(protocol))
        + _wrap("userParameters", _users(parameters))
        + "</ismrmrdHeader>"
    )


def _profile_parameters(protocol: Protocol) -> dict[str, Parameter]:
    """Return every profile key with its value; those of a float are Double, of an int Long, of a text String."""
    keys: dict[str, Parameter] = {
        "mrsi_profile": "1.0",
        "mrsi_nucleus": protocol.nucleus,
        "mrsi_encoding": protocol.encoding,
        "mrsi_transmit_frequency_Hz": float(protocol.transmit_frequency_hz),
        "mrsi_reference_ppm": float(protocol.reference_ppm),
        "mrsi_freq_sign": protocol.freq_sign,
        # alternating lobes of one polarity form one FID; the profile speaks of the lobes themselves
        "mrsi_spectral_points": protocol.n_times * _lobes_per_point(protocol),
        "mrsi_dwell_us": protocol.dwell_s * 1e6 / _lobes_per_point(protocol),
        "mrsi_readout_oversampling": float(protocol.readout_oversampling),
        "mrsi_acq_delay_us": protocol.acquisition_delay_s * 1e6,
        "mrsi_water_ref": protocol.water_reference,
        "mrsi_kspace_weighting": protocol.kspace_weighting,
        "mrsi_grid_center": protocol.geometry.grid_center,
        "mrsi_time_tick_ms": float(protocol.time_tick_ms),
    }
    keys |= {f"mrsi_kspace_sign_{a}": s for a, s in zip("xyz", protocol.kspace_sign, strict=True)}
    keys |= {f"mrsi_axis_{axis}": source for axis, source in protocol.axes.items()}
    if protocol.water_suppressed is not None:
        keys["mrsi_water_suppressed"] = int(protocol.water_suppressed)
    if protocol.editing != "none":
        keys["mrsi_edit"] = protocol.editing
    if protocol.encoding == "epsi":
        keys["mrsi_readout_polarity"] = protocol.readout_polarity
    for name in ("samples_per_lap", "samples_used", "temporal_interleaves"):
        values = getattr(protocol, name)
        if values:
            keys[f"mrsi_{name}"] = values[0] if len(values) == 1 else " ".join(map(str, values))
    for name in ("trajectory_units", "trajectory_id"):
        if getattr(protocol, name):
            keys[f"mrsi_{name}"] = getattr(protocol, name)
    if protocol.trajectory_columns:
        keys["mrsi_trajectory_columns"] = ",".join(protocol.trajectory_columns)
    return keys


def _lobes_per_point(protocol: Protocol) -> int:
    return 2 if protocol.encoding == "epsi" and protocol.readout_polarity == "alternating" else 1


def _proton_frequency(protocol: Protocol) -> float:
    if protocol.nucleus in FREQUENCY_RATIO:
        return protocol.transmit_frequency_hz / FREQUENCY_RATIO[protocol.nucleus]
    if protocol.field_strength_t:
        return protocol.field_strength_t * PROTON_HZ_PER_T
    raise DataError(
        f"the proton frequency beside {protocol.nucleus} is not known; give the protocol's field_strength_t"
    )


def _encoding(
    protocol: Protocol, limits: dict[str, Limit], averages: int, frames: int, lobe: Mapping[str, Parameter] | None
) -> str:
    geometry = protocol.geometry
    for axis, n in zip(("kx", "ky", "kz"), geometry.matrix, strict=True):
        source = protocol.axes.get(axis, "none")
        if source in COUNTER_INDEX and source not in limits:
            centre = protocol.k_centre.get(axis, n // 2)
            limits[source] = Limit(centre - n // 2, centre - n // 2 + n - 1, centre)
    lobes = protocol.n_times * _lobes_per_point(protocol) if protocol.encoding == "epsi" else 0
    conditions = 2 if protocol.editing != "none" else 1
    echoes = len(protocol.echo_times_s)
    sizes = {"cycle": averages, "dynamic": frames, "t": lobes, "edit": conditions, "te": echoes}
    for axis, n in sizes.items():
        source = protocol.axes.get(axis, "none") if n > 1 or axis in ("cycle", "dynamic", "t") else "none"
        if source in COUNTER_INDEX:
            limits.setdefault(source, Limit(0, n - 1, 0))
    counter, _, value = protocol.water_reference.partition(":")
    if counter in COUNTER_INDEX:
        known = limits.get(counter, Limit(0, 0, 0))
        limits[counter] = Limit(known.minimum, max(known.maximum, int(value)), known.center)
    space = _wrap("matrixSize", "".join(_element(a, v) for a, v in zip("xyz", geometry.matrix, strict=True)))
    space += _wrap("fieldOfView_mm", "".join(_element(a, v) for a, v in zip("xyz", geometry.fov_mm, strict=True)))
    ranges = ""
    for name in _LIMIT_ORDER:
        if name in limits:
            limit = limits[name]
            parts = (("minimum", limit.minimum), ("maximum", limit.maximum), ("center", limit.center))
            ranges += _wrap(LIMIT_OF_COUNTER.get(name, name), "".join(_element(*part) for part in parts))
    return _wrap(
        "encoding",
        _wrap("encodedSpace", space)
        + _wrap("reconSpace", space)
        + _wrap("encodingLimits", ranges)
        + _element("trajectory", _TRAJECTORY.get(protocol.encoding, "other"))
        + (_wrap("trajectoryDescription", _element("identifier", "ConventionalEPI") + _users(lobe)) if lobe else ""),
    )


def _sequence(protocol: Protocol) -> str:
    text = ""
    if protocol.repetition_time_s is not None:
        text += _element("TR", protocol.repetition_time_s * 1e3)
    text += "".join(_element("TE", te * 1e3) for te in protocol.echo_times_s)
    return text + _element("flipAngle_deg", protocol.flip_angle_deg) + _element("sequence_type", "ChemicalShiftImaging")


def _users(parameters: Mapping[str, Parameter]) -> str:
    """Write user parameters in the order of the schema: all Long, then Double, then String."""
    text = ""
    for kind, tag in ((int, "Long"), (float, "Double"), (str, "String")):
        for name, value in parameters.items():
            if type(value) is kind:
                text += _wrap(f"userParameter{tag}", _element("name", name) + _element("value", value))
    return text


def _wrap(name: str, inner: str) -> str:
    return f"<{name}>{inner}</{name}>"


def _element(name: str, value: Parameter | None) -> str:
    if value is None or value == "":
        return ""
    # Python floats by repr: 17 digits where needed, so that what is read is what was written
    text = repr(float(value)) if isinstance(value, float) else str(value)
    return _wrap(name, escape(text))
