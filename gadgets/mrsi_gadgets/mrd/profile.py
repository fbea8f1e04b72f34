"""From an ISMRMRD header with the MRSI profile 1.0 (protocol 2.6) to a Protocol, or to the names of what is missing.

Nothing is guessed silently: each field of the protocol says in `Protocol.provenance` where it came from, what is
derived or assumed included, and two statements that contradict each other are refused with both names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import LIMIT_OF_COUNTER, Encoding, Limit, MrdHeader
from mrsi_gadgets.mrd.keys import (
    DEFAULT_AXES,
    DEFAULT_LAP_AXES,
    DEFAULT_OTHER_AXES,
    PROFILE_KEYS,
    KeyReader,
    unknown_keys,
)
from mrsi_gadgets.mrd.nuclei import DEFAULT_REFERENCE_PPM, FIELD_TOLERANCE, FREQUENCY_RATIO, PROTON_HZ_PER_T
from mrsi_gadgets.mrd.sizes import check_matrix

__all__ = ["PROFILE_KEYS", "read_protocol", "read_water_protocol"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
_TRAJECTORIES = {
    "csi": {"", "cartesian", "other"},
    "epsi": {"", "cartesian", "epi", "other"},
    "spiral": {"", "spiral", "other"},
    "rings": {"", "other", "spiral", "radial"},
}
_SPIN_ECHO_TE_MS = 10.0
"""Above this echo time there is an echo top, where the delay of the first sample is 0 unless it is given."""

_REFERENCE_TOLERANCE_PPM = 1.0
_WIDE_SPECTRA = {"13C"}
"""Nuclei whose transmitter is set anywhere in a spectrum of many ppm: no reference is unusual."""

Warn = Callable[[str], None]


def read_protocol(
    header: MrdHeader, settings: Mapping[str, str] = _NOTHING, *, space: int = 0, warn: Warn | None = None
) -> Protocol:
    """Read the protocol of one encoding space.

    Parameters
    ----------
    header
        The header.
    settings
        Explicit values by profile key; they come before the header's own.
    space
        Index of the encoding space.
    warn
        Takes sentences about assumptions and unknown keys (default: the log).

    Returns
    -------
        The protocol; the patient geometry is that of the readouts, which `sorting` fills in.

    Raises
    ------
    DataError
        Keys are missing (all of them are named), two statements contradict each other, or the measurement does not fit
        into this machine's memory.
    ConfigError
        A setting is no key of the profile, or its value is not what the key takes.
    """
    warn = warn or logging.getLogger("mrsi").warning
    if space >= len(header.encodings):
        raise DataError(f"the header has {len(header.encodings)} encoding spaces; encoding[{space}] is needed, add it")
    keys = KeyReader(header, settings, space)
    for name in unknown_keys(header):
        warn(f"header parameter {name} is no key of MRSI profile 1.0 and was ignored")
    encoding = header.encodings[space]
    keys.need("mrsi_profile", "profile", "1.0")
    nucleus = keys.need("mrsi_nucleus", "nucleus", "1H")
    kind = keys.need("mrsi_encoding", "encoding", "csi")
    fields: dict[str, Any] = {
        "nucleus": nucleus,
        "encoding": kind,
        "n_times": keys.need("mrsi_spectral_points", "n_times", 1),
        "dwell_s": keys.need("mrsi_dwell_us", "dwell_s", 1.0) * 1e-6,
        "acquisition_delay_s": _delay_us(keys, header, warn) * 1e-6,
        "transmit_frequency_hz": _transmit_frequency(keys, header, nucleus),
        "reference_ppm": _reference_ppm(keys, nucleus, warn),
    }
    axes = _axes(keys, kind)
    fields |= _signs(keys) | _water(keys, nucleus) | _sequence(keys, header) | _trajectory(keys, kind, encoding)
    if kind == "epsi":
        fields |= _lobes(keys, axes, fields, encoding)
    _check_editing(fields["editing"], axes)
    geometry = Geometry(
        encoding.encoded.matrix,
        encoding.encoded.fov_mm,
        grid_center=keys.get("mrsi_grid_center", "grid_center", "voxel"),
    )
    keys.provenance["geometry"] = header.geometry_source or f"header encoding[{space}] encodedSpace"
    if keys.missing:
        raise DataError(
            f"the header lacks {', '.join(keys.missing)} (MRSI profile 1.0); add them as userParameters of the header, "
            "give them as settings, or describe the sequence in a file (--sequence)"
        )
    check_matrix(encoding.encoded.matrix, fields["n_times"], header.receiver_channels or 1)
    _check_axes(axes, fields["water_reference"])
    _check_trajectory(kind, encoding, space)
    centres = _k_centres(keys, axes, encoding, space)
    return Protocol(
        **fields,
        geometry=geometry,
        axes=axes,
        k_centre=centres,
        provenance=keys.provenance,
    )


def read_water_protocol(
    header: MrdHeader, settings: Mapping[str, str] = _NOTHING, *, warn: Warn | None = None
) -> Protocol:
    """Read the protocol of the water reference: encoding[1] where there is one, else that of the metabolites.

    Raises
    ------
    DataError, ConfigError
        As `read_protocol`.
    """
    return read_protocol(header, settings, space=1 if len(header.encodings) > 1 else 0, warn=warn)


def _delay_us(keys: KeyReader, header: MrdHeader, warn: Warn) -> float:
    """Return the delay of the first sample: required for FIDs, 0 at an echo top."""
    te = max(header.echo_times_ms, default=0.0)
    if keys.find("mrsi_acq_delay_us") is None and te >= _SPIN_ECHO_TE_MS:
        warn(f"mrsi_acq_delay_us is not given; with TE {te:g} ms the first sample was taken to be the echo top (0)")
        keys.provenance["acquisition_delay_s"] = f"default 0: echo top of TE {te:g} ms (mrsi_acq_delay_us not given)"
        return 0.0
    return float(keys.need("mrsi_acq_delay_us", "acquisition_delay_s", 0.0))


def _reference_ppm(keys: KeyReader, nucleus: str, warn: Warn) -> float:
    if nucleus in DEFAULT_REFERENCE_PPM:
        default = DEFAULT_REFERENCE_PPM[nucleus]
        value = float(keys.get("mrsi_reference_ppm", "reference_ppm", default, f"default of {nucleus}"))
        if abs(value - default) > _REFERENCE_TOLERANCE_PPM and nucleus not in _WIDE_SPECTRA:
            warn(
                f"mrsi_reference_ppm is {value:g} but 0 Hz of {nucleus} is usually near {default:g} ppm; if it is "
                "wrong, every molecule is looked for in the wrong place"
            )
        return value
    return float(keys.need("mrsi_reference_ppm", "reference_ppm", 0.0))


def _transmit_frequency(keys: KeyReader, header: MrdHeader, nucleus: str) -> float:
    """Return the frequency of the nucleus: given, that of the header for 1H, or derived where only one reading fits."""
    found = keys.find("mrsi_transmit_frequency_Hz")
    ratio = FREQUENCY_RATIO.get(nucleus)
    h1, b0 = header.h1_frequency_hz, header.field_strength_t
    if found is not None:
        keys.provenance["transmit_frequency_hz"] = found[1]
        _check_frequency(float(found[0]), nucleus, h1, b0)
        return float(found[0])
    if nucleus == "1H" and h1:
        if b0 and not _near(h1, PROTON_HZ_PER_T * b0):
            raise DataError(
                f"H1resonanceFrequency_Hz {h1:g} contradicts systemFieldStrength_T {b0:g} for 1H; correct one of them "
                "or give mrsi_transmit_frequency_Hz"
            )
        keys.provenance["transmit_frequency_hz"] = "header H1resonanceFrequency_Hz"
        return h1
    if ratio is not None and h1 and b0:
        is_proton = _near(h1, PROTON_HZ_PER_T * b0)
        if is_proton != _near(h1, ratio * PROTON_HZ_PER_T * b0):
            keys.provenance["transmit_frequency_hz"] = (
                f"derived: H1resonanceFrequency_Hz times {ratio:.8f} ({nucleus})"
                if is_proton
                else f"header H1resonanceFrequency_Hz, which is that of {nucleus} at {b0:g} T"
            )
            return h1 * ratio if is_proton else h1
    keys.missing.append("mrsi_transmit_frequency_Hz")
    return 1.0


def _near(frequency: float, expected: float) -> bool:
    return abs(frequency - expected) <= FIELD_TOLERANCE * expected


def _check_frequency(frequency: float, nucleus: str, h1: float | None, b0: float | None) -> None:
    """Refuse a given frequency that fits neither the field nor the proton frequency of the header."""
    ratio = FREQUENCY_RATIO.get(nucleus)
    if ratio is None:
        return
    if b0 and not _near(frequency, ratio * PROTON_HZ_PER_T * b0):
        raise DataError(
            f"mrsi_transmit_frequency_Hz {frequency:g} contradicts systemFieldStrength_T {b0:g} for {nucleus} "
            f"(expected about {ratio * PROTON_HZ_PER_T * b0:.4g}); correct one of them"
        )
    if h1 and not (_near(frequency, ratio * h1) or _near(frequency, h1)):
        raise DataError(
            f"mrsi_transmit_frequency_Hz {frequency:g} contradicts H1resonanceFrequency_Hz {h1:g} for {nucleus}; "
            "correct one of them"
        )


def _axes(keys: KeyReader, kind: str) -> dict[str, str]:
    axes: dict[str, str] = {}
    for name in ("kx", "ky", "kz", "t"):
        default = DEFAULT_AXES[kind].get(name)
        if default is None:
            axes[name] = keys.need(f"mrsi_axis_{name}", f"axes.{name}", "none")
        else:
            axes[name] = keys.get(f"mrsi_axis_{name}", f"axes.{name}", default, f"default of {kind}")
    for name, default in DEFAULT_LAP_AXES.items() if kind in ("rings", "spiral") else ():
        axes[name] = keys.get(f"mrsi_axis_{name}", f"axes.{name}", default, f"default of {kind}")
    taken = set(axes.values())
    for name, default in DEFAULT_OTHER_AXES.items():
        # a counter that was explicitly given to another axis is no longer this axis' default
        free = default if default not in taken else "none"
        axes[name] = keys.get(f"mrsi_axis_{name}", f"axes.{name}", free)
        taken.add(axes[name])
    return axes


def _lobes(keys: KeyReader, axes: Mapping[str, str], fields: Mapping[str, Any], encoding: Encoding) -> dict[str, Any]:
    """Return what the lobes of EPSI change: with alternating ones, those of one polarity form one FID."""
    if axes["kx"] != "readout" or axes["t"] in ("readout", "trajectory", "none"):
        raise DataError(
            f"mrsi_axis_kx is '{axes['kx']}' and mrsi_axis_t '{axes['t']}'; in epsi kx runs along the readout and t is "
            "the counter of the lobes"
        )
    lobes = fields["n_times"]
    limit = encoding.limits.get(axes["t"])
    if limit is not None and (limit.minimum, limit.maximum + 1) != (0, lobes):
        name = LIMIT_OF_COUNTER.get(axes["t"], axes["t"])
        raise DataError(
            f"encodingLimits.{name} is {limit.minimum} to {limit.maximum}, but mrsi_spectral_points {lobes} counts the "
            f"lobes from 0 to {lobes - 1}; correct one of them"
        )
    polarity = keys.get("mrsi_readout_polarity", "readout_polarity", "monopolar")
    if polarity == "monopolar":
        return {"readout_polarity": polarity}
    if lobes % 2:
        raise DataError(
            f"mrsi_spectral_points is {lobes} with mrsi_readout_polarity 'alternating', which needs as many lobes to "
            "as fro; give an even number of lobes"
        )
    for target, key in (("n_times", "halved"), ("dwell_s", "doubled")):
        source = keys.provenance.get(target, "")
        keys.provenance[target] = f"{source}, {key}: alternating lobes of one polarity form one FID"
    return {"readout_polarity": polarity, "n_times": lobes // 2, "dwell_s": 2 * fields["dwell_s"]}


def _check_editing(editing: str, axes: Mapping[str, str]) -> None:
    if editing != "none" and axes["edit"] == "none":
        raise DataError(
            f"mrsi_edit is '{editing}' but mrsi_axis_edit is none; name the counter of the two conditions, such as "
            "user_0"
        )


def _check_axes(axes: Mapping[str, str], water_rule: str) -> None:
    owners: dict[str, str] = {}
    for axis, source in axes.items():
        if source in ("none", "trajectory"):
            continue
        if source in owners:
            raise DataError(
                f"mrsi_axis_{owners[source]} and mrsi_axis_{axis} both name {source}; give each axis its own counter, "
                "or none"
            )
        owners[source] = axis
    counter = water_rule.partition(":")[0]
    if counter in owners and owners[counter] in ("kx", "ky", "kz", "t", *DEFAULT_LAP_AXES):
        raise DataError(
            f"mrsi_water_ref '{water_rule}' and mrsi_axis_{owners[counter]} '{counter}' use one counter; "
            "change one of them"
        )


def _signs(keys: KeyReader) -> dict[str, Any]:
    common = keys.find("mrsi_kspace_sign")
    signs = []
    for axis in "xyz":
        own = keys.find(f"mrsi_kspace_sign_{axis}") or common
        keys.provenance[f"kspace_sign.{axis}"] = own[1] if own else "default +1 (mrsi_kspace_sign not given)"
        signs.append(int(own[0]) if own else 1)
    return {"freq_sign": keys.get("mrsi_freq_sign", "freq_sign", 1), "kspace_sign": tuple(signs)}


def _water(keys: KeyReader, nucleus: str) -> dict[str, Any]:
    editing = keys.get("mrsi_edit", "editing", "none")
    cycling = editing == "metabolite_cycling"
    default = "flag:USER1" if nucleus == "1H" and not cycling else "none"
    why = "metabolite cycling gives the water itself" if cycling else f"default of {nucleus}"
    rule = keys.get("mrsi_water_ref", "water_reference", default, why)
    if cycling and rule != "none":
        raise DataError(
            f"mrsi_edit 'metabolite_cycling' gives the water itself, but mrsi_water_ref '{rule}' names another water "
            "reference; set mrsi_water_ref to none, or mrsi_edit to none"
        )
    suppressed = keys.find("mrsi_water_suppressed")
    if suppressed:
        keys.provenance["water_suppressed"] = suppressed[1]
    return {
        "editing": editing,
        "water_reference": rule,
        "water_suppressed": bool(suppressed[0]) if suppressed else None,
        "kspace_weighting": keys.get("mrsi_kspace_weighting", "kspace_weighting", "none"),
    }


def _sequence(keys: KeyReader, header: MrdHeader) -> dict[str, Any]:
    for target, values, name in (
        ("echo_times_s", header.echo_times_ms, "TE"),
        ("repetition_time_s", header.repetition_times_ms, "TR"),
        ("flip_angle_deg", header.flip_angles_deg, "flipAngle_deg"),
    ):
        keys.provenance[target] = f"header sequenceParameters/{name}" if values else "not given"
    return _noise_bandwidth(keys, header) | {
        "echo_times_s": tuple(te * 1e-3 for te in header.echo_times_ms),
        "repetition_time_s": header.repetition_times_ms[0] * 1e-3 if header.repetition_times_ms else None,
        "flip_angle_deg": header.flip_angles_deg[0] if header.flip_angles_deg else None,
        "field_strength_t": header.field_strength_t,
        "time_tick_ms": keys.get("mrsi_time_tick_ms", "time_tick_ms", 2.5),
        "measurement_id": header.measurement_id,
        "protocol_name": header.protocol_name,
        "patient_position": header.patient_position or "HFS",
    }


def _noise_bandwidth(keys: KeyReader, header: MrdHeader) -> dict[str, Any]:
    """Return the share of the noise scan's bandwidth that the receiver's filter passes."""
    value = header.receiver_noise_bandwidth
    if value is None:
        keys.provenance["receiver_noise_bandwidth"] = "default 1 (relativeReceiverNoiseBandwidth not given)"
        return {}
    if not 0.1 <= value <= 1.0:
        raise DataError(
            f"relativeReceiverNoiseBandwidth is {value:g}; it must lie between 0.1 and 1 (usually 0.79), correct it"
        )
    keys.provenance["receiver_noise_bandwidth"] = "header relativeReceiverNoiseBandwidth"
    return {"receiver_noise_bandwidth": value}


def _trajectory(keys: KeyReader, kind: str, encoding: Encoding) -> dict[str, Any]:
    oversampling = keys.get("mrsi_readout_oversampling", "readout_oversampling", 1.0)
    if oversampling < 1:
        raise DataError(f"mrsi_readout_oversampling is {oversampling:g}; it must be at least 1")
    fields: dict[str, Any] = {"readout_oversampling": oversampling}
    if kind in ("rings", "spiral"):
        fields["samples_per_lap"] = keys.need("mrsi_samples_per_lap", "samples_per_lap", ())
        fields["temporal_interleaves"] = keys.get("mrsi_temporal_interleaves", "temporal_interleaves", (1,))
    if kind == "spiral":
        fields["samples_used"] = keys.get("mrsi_samples_used", "samples_used", (), "all samples of a lap")
    if encoding.trajectory_id:
        keys.provenance["trajectory_id"] = "header trajectoryDescription/identifier"
        fields["trajectory_id"] = encoding.trajectory_id
    for target in ("trajectory_units", "trajectory_columns", "trajectory_id"):
        found = keys.find(f"mrsi_{target}")
        if found:
            keys.provenance[target], fields[target] = found[1], found[0]
    return fields


def _check_trajectory(kind: str, encoding: Encoding, space: int) -> None:
    allowed = _TRAJECTORIES.get(kind)
    if allowed is not None and encoding.trajectory not in allowed:
        raise DataError(
            f"mrsi_encoding '{kind}' contradicts encoding[{space}].trajectory '{encoding.trajectory}'; correct "
            f"one of them ({kind} goes with {', '.join(sorted(allowed - {''}))})"
        )


def _k_centres(keys: KeyReader, axes: Mapping[str, str], encoding: Encoding, space: int) -> dict[str, int]:
    """Return the counter value of k = 0 per Cartesian axis, checked against the matrix."""
    centres: dict[str, int] = {}
    for axis, n, size in zip(("kx", "ky", "kz"), encoding.encoded.matrix, "xyz", strict=True):
        source = axes[axis]
        if source == "none" and n > 1:
            raise DataError(
                f"mrsi_axis_{axis} is none but encoding[{space}] encodedSpace.matrixSize.{size} is {n}; name the "
                f"counter of {axis} or set the size to 1"
            )
        if source in ("none", "trajectory", "readout"):
            continue
        name = LIMIT_OF_COUNTER.get(source, source)
        limit = encoding.limits.get(source)
        if limit is None:
            centres[axis] = n // 2
            keys.provenance[f"k_centre.{axis}"] = f"default n // 2 (no encodingLimits.{name}, or not used)"
            continue
        _check_limit(limit, n, axis, name, f"encoding[{space}] encodedSpace.matrixSize.{size}")
        centres[axis] = limit.center
        keys.provenance[f"k_centre.{axis}"] = f"header encoding[{space}] encodingLimits.{name}.center"
    return centres


def _check_limit(limit: Limit, n: int, axis: str, name: str, size: str) -> None:
    span = limit.maximum - limit.minimum + 1
    inside = limit.minimum <= limit.center <= max(limit.maximum, limit.minimum)
    # one step beyond n // 2 is allowed: with a negative sign of k the other end of the range is the longer one
    reach = limit.center - limit.minimum <= n // 2 and limit.maximum - limit.center <= n // 2
    if span > n or not inside or not reach or (span == 1 and n > 1):
        raise DataError(
            f"encodingLimits.{name} ({limit.minimum} to {limit.maximum}, centre {limit.center}) contradicts {size} = "
            f"{n} along {axis}; correct one of them, or name another counter in mrsi_axis_{axis}"
        )
