"""The keys of the MRSI profile (protocol 2.6.1) and their values from explicit settings or from the header."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.mrd.header import MrdHeader, Value

ENCODINGS = ("csi", "epsi", "spiral", "rings", "other")
AXIS_SOURCES = (
    "readout", "kspace_encode_step_1", "kspace_encode_step_2", "segment", "phase", "slice", "set", "contrast",
    "repetition", "average", *(f"user_{i}" for i in range(8)), "trajectory", "none",
)  # fmt: skip
DEFAULT_AXES = {
    "csi": {"kx": "segment", "ky": "kspace_encode_step_1", "kz": "kspace_encode_step_2", "t": "readout"},
    "epsi": {"kx": "readout", "ky": "kspace_encode_step_1", "kz": "kspace_encode_step_2", "t": "segment"},
    "spiral": {"kx": "trajectory", "ky": "trajectory", "kz": "kspace_encode_step_2", "t": "readout"},
    "rings": {"kx": "trajectory", "ky": "trajectory", "kz": "kspace_encode_step_2", "t": "readout"},
    "other": {},
}
DEFAULT_LAP_AXES = {"path": "kspace_encode_step_1", "chunk": "segment", "interleaf": "user_0"}
"""Rings and spirals: which ring or arm, which piece of a long walk, which temporal interleaf."""
DEFAULT_OTHER_AXES = {"dynamic": "repetition", "te": "contrast", "edit": "none", "cycle": "average"}
WATER_RULES = ("none", "measurement", "flag:USER1", "flag:IS_PARALLEL_CALIBRATION")
WATER_COUNTERS = ("set", "contrast", "repetition", "phase", "segment", "slice", *(f"user_{i}" for i in range(8)))


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return read


def _long(text: str) -> int:
    value = _double(text)
    if value != int(value):
        raise ValueError("a whole number")
    return int(value)


def _double(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ValueError("a finite number")
    return value


def _not_negative(text: str) -> float:
    value = _double(text)
    if value < 0:
        raise ValueError("a finite number of at least 0")
    return value


def _sign(text: str) -> int:
    value = _long(text)
    if value not in (1, -1):
        raise ValueError("+1 or -1")
    return value


def _flag(text: str) -> int:
    value = _long(text)
    if value not in (0, 1):
        raise ValueError("0 or 1")
    return value


def _longs(text: str) -> tuple[int, ...]:
    values = tuple(_long(part) for part in text.replace(",", " ").split())
    if not values or min(values) < 1:
        raise ValueError("one positive whole number, or a list of them")
    return values


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _version(text: str) -> str:
    if text.partition(".")[0] != "1":
        raise ValueError("1.0, the version of the profile this program knows")
    return text


def _json(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("JSON with centre, dirs and size") from None
    return text


def _water_rule(text: str) -> str:
    kind, _, value = text.partition(":")
    if text in WATER_RULES or (kind in WATER_COUNTERS and value.isdigit()):
        return text
    raise ValueError(f"{', '.join(WATER_RULES)} or a counter with its value, such as set:1")


def _nucleus(text: str) -> str:
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if not digits.isdigit() or digits == text:
        raise ValueError("a NIfTI-MRS name such as 1H, 2H, 31P")
    return text


_axis = _one_of(*AXIS_SOURCES)

PROFILE_KEYS: dict[str, Callable[[str], Any]] = {
    "mrsi_profile": _version,
    "mrsi_nucleus": _nucleus,
    "mrsi_encoding": _one_of(*ENCODINGS),
    "mrsi_transmit_frequency_Hz": _double,
    "mrsi_reference_ppm": _double,
    "mrsi_freq_sign": _sign,
    "mrsi_kspace_sign": _sign,
    "mrsi_kspace_sign_x": _sign,
    "mrsi_kspace_sign_y": _sign,
    "mrsi_kspace_sign_z": _sign,
    "mrsi_spectral_points": _long,
    "mrsi_dwell_us": _double,
    "mrsi_readout_oversampling": _double,
    "mrsi_acq_delay_us": _not_negative,
    "mrsi_axis_kx": _axis,
    "mrsi_axis_ky": _axis,
    "mrsi_axis_kz": _axis,
    "mrsi_axis_t": _axis,
    "mrsi_axis_path": _axis,
    "mrsi_axis_chunk": _axis,
    "mrsi_axis_interleaf": _axis,
    "mrsi_axis_dynamic": _axis,
    "mrsi_axis_te": _axis,
    "mrsi_axis_edit": _axis,
    "mrsi_axis_cycle": _axis,
    "mrsi_water_ref": _water_rule,
    "mrsi_water_suppressed": _flag,
    "mrsi_kspace_weighting": _one_of("none", "acquisition_weighted"),
    "mrsi_grid_center": _one_of("voxel", "edge"),
    "mrsi_edit": _one_of("none", "metabolite_cycling"),
    "mrsi_readout_polarity": _one_of("monopolar", "alternating"),
    "mrsi_samples_per_lap": _longs,
    "mrsi_samples_used": _longs,
    "mrsi_temporal_interleaves": _longs,
    "mrsi_trajectory_units": _one_of("1/m", "1/FOV", "half"),
    "mrsi_trajectory_columns": _words,
    "mrsi_trajectory_id": str,
    "mrsi_time_tick_ms": _double,
    "mrsi_voi": _json,
}
"""Every key of profile 1.0 -> the function that reads its value (its ValueError says what the value must be)."""


@dataclass
class KeyReader:
    """Looks keys up for one encoding space, in the order of priority, and remembers where each value came from.

    The value for this space alone (suffix ``_encN``) comes before the general one; within either, explicit settings
    come before the header's ``mrsi_*`` parameters, and those before what a vendor's table derives from its own fields.
    """

    header: MrdHeader
    settings: Mapping[str, str]
    space: int = 0
    provenance: dict[str, str] = field(default_factory=dict)
    """Protocol field -> source."""
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_settings(self.settings)
        # values that this encoding does not use are refused too: a key that is there should mean something
        for name, given in self.header.user.items():
            if base_key(name) in PROFILE_KEYS:
                self._read(base_key(name), name, given, "header", DataError)

    def find(self, key: str) -> tuple[Any, str] | None:
        """Return a key's value and its source, or None where nobody gives it.

        Raises
        ------
        ConfigError, DataError
            The value in the settings, or in the header, is not what the key takes.
        """
        for name in (f"{key}_enc{self.space}", key):
            if name in self.settings:
                return self._read(key, name, self.settings[name], "setting", ConfigError), f"setting {name}"
            if name in self.header.user:
                return self._read(key, name, self.header.user[name], "header", DataError), f"header {name}"
        if key in self.header.adapted:
            value, source = self.header.adapted[key]
            return self._read(key, key, value, source, DataError), source
        return None

    def get(self, key: str, target: str, default: Any = None, why: str = "default") -> Any:
        """Return a key's value or its default, and note the source of the protocol field `target`."""
        found = self.find(key)
        if found is None:
            self.provenance[target] = f"{why}: {default} ({key} not given)"
            return default
        self.provenance[target] = found[1]
        return found[0]

    def need(self, key: str, target: str, stand_in: Any) -> Any:
        """Return a key's value; where nobody gives it, note it as missing and return `stand_in`."""
        found = self.find(key)
        if found is None:
            self.missing.append(key)
            return stand_in
        self.provenance[target] = found[1]
        return found[0]

    def _read(self, key: str, name: str, value: Value, where: str, error: type[Exception]) -> Any:
        return _read_value(key, name, value, where, error)


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse explicit settings that no scan could use.

    Raises
    ------
    ConfigError
        A setting is no key of the profile, or its value is not what the key takes.
    """
    unknown = [name for name in settings if base_key(name) not in PROFILE_KEYS]
    if unknown:
        near = difflib.get_close_matches(base_key(unknown[0]), PROFILE_KEYS, n=1)
        hint = f"did you mean {near[0]}" if near else f"known keys are {', '.join(PROFILE_KEYS)}"
        raise ConfigError(f"the setting '{unknown[0]}' is no key of the MRSI profile; {hint}")
    for name, value in settings.items():
        _read_value(base_key(name), name, value, "setting", ConfigError)


def _read_value(key: str, name: str, value: Value, where: str, error: type[Exception]) -> Any:
    text = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
    text = value.strip() if isinstance(value, str) else text
    try:
        return PROFILE_KEYS[key](text)
    except ValueError as problem:
        raise error(f"{name} ({where}) is '{text}'; it must be {problem}") from None


def base_key(name: str) -> str:
    """Return a key without its encoding space: mrsi_dwell_us_enc1 -> mrsi_dwell_us."""
    head, separator, space = name.rpartition("_enc")
    return head if separator and space.isdigit() else name


def unknown_keys(header: MrdHeader) -> list[str]:
    """Return the ``mrsi_*`` parameters of a header that the profile does not know."""
    return [name for name in header.user if name.startswith("mrsi_") and base_key(name) not in PROFILE_KEYS]
