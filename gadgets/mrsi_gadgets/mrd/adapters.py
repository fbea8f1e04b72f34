"""Vendor adapters: what a sequence description says of an MRD header that was not written for the MRSI profile (2.6.5).

A description for streams is a TOML file with ``input = "mrd"`` in ``config/sequences``. Its ``[detect]`` tells which
headers it knows, its ``[profile]`` where each profile key stands in them. What it derives has the lowest priority:
settings come first, then the header's own ``mrsi_*`` parameters. Headers that follow the profile need none.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.sequence import read_toml, shipped_descriptions
from mrsi_gadgets.mrd.header import Encoding, MrdHeader, Value
from mrsi_gadgets.mrd.keys import PROFILE_KEYS
from mrsi_gadgets.mrd.nuclei import FIELD_TOLERANCE, FREQUENCY_RATIO, PROTON_HZ_PER_T

_SECTIONS = {
    "": {"name", "input", "detect", "profile", "geometry"},
    "detect": {"user_parameters", "counters", "protocol_names", "sequence_types"},
    "geometry": {"matrix"},
}
_SOURCES = ("user_parameter", "counter", "echo_time_ms", "from")
_OPTIONS = {"times", "over", "map", "otherwise", "below"}

Found = tuple[Value, str]
"""A value and the sentence that says where it came from."""


@dataclass(frozen=True)
class Adapter:
    """One description of a vendor's headers."""

    name: str
    user_parameters: tuple[str, ...] = ()
    """All of these (shell patterns) are among the header's user parameters."""
    counters: tuple[str, ...] = ()
    """The limits of all these counters go beyond 0."""
    protocol_names: tuple[str, ...] = ()
    """One of these patterns is the protocol's name; none: any name."""
    sequence_types: tuple[str, ...] = ()
    """One of these is the header's sequence_type; none: any."""
    profile: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Profile key -> the places where it may stand; the first that is there counts."""
    matrix: tuple[tuple[Any, ...], ...] = ()
    """Grid points along x, y and z, where the header's own are something else."""

    def knows(self, header: MrdHeader) -> bool:
        """Tell whether this description fits a header."""
        limits = header.encodings[0].limits if header.encodings else {}
        return (
            all(fnmatch.filter(header.user, pattern) for pattern in self.user_parameters)
            and all(name in limits and limits[name].maximum > 0 for name in self.counters)
            and (not self.protocol_names or any(fnmatch.fnmatch(header.protocol_name, p) for p in self.protocol_names))
            and (not self.sequence_types or header.sequence_type in self.sequence_types)
        )

    def applied(self, header: MrdHeader) -> MrdHeader:
        """Return the header with what this description derives from it, and with its grid put right.

        Raises
        ------
        DataError
            A value in the header cannot be what the description says of it.
        """
        derived: dict[str, Found] = {}
        for key, places in self.profile.items():
            found = self._first(places, header, derived, key)
            if found is not None:
                derived[key] = found
        encodings = header.encodings
        if self.matrix and encodings:
            encodings = (self._with_matrix(encodings[0], header, derived), *encodings[1:])
        return replace(header, adapted=derived, encodings=encodings)

    def _with_matrix(self, encoding: Encoding, header: MrdHeader, derived: Mapping[str, Found]) -> Encoding:
        sizes = []
        for axis, places in enumerate(self.matrix):
            found = self._first(places, header, derived, f"matrix along {'xyz'[axis]}")
            sizes.append(
                encoding.encoded.matrix[axis] if found is None else int(_number(found[0], self.name, "matrix"))
            )
        matrix = (sizes[0], sizes[1], sizes[2])
        return replace(
            encoding, encoded=replace(encoding.encoded, matrix=matrix), recon=replace(encoding.recon, matrix=matrix)
        )

    def _first(
        self, places: tuple[Any, ...], header: MrdHeader, derived: Mapping[str, Found], what: str
    ) -> Found | None:
        for place in places:
            if not isinstance(place, dict):
                return place, f"sequence description {self.name}"
            found = _look_up(place, header)
            if found is not None and "below" in place and _number(found[0], self.name, found[1]) >= place["below"]:
                found = None
            if found is not None:
                return _changed(found, place, derived, f"{self.name} ({what})")
        return None


def adapted(header: MrdHeader, sequence: str | None = None, *, tell: Callable[[str], None] | None = None) -> MrdHeader:
    """Return a header with what a vendor adapter derives from it.

    Parameters
    ----------
    header
        As it came.
    sequence
        Name of a shipped description or path of a .toml file; None: the one that knows the header, or none where the
        header follows the profile already or nobody knows it (what is missing is then named by `read_protocol`).
    tell
        Takes the sentence that says which description was used.

    Raises
    ------
    ConfigError
        The description that was asked for does not exist or cannot be read.
    DataError
        Several descriptions know this header, or a value cannot be what its description says.
    """
    if sequence is not None:
        return _tell(_wanted(sequence), tell).applied(header)
    if "mrsi_profile" in header.user:
        return header
    fitting = [adapter for adapter in shipped_adapters() if adapter.knows(header)]
    if len(fitting) > 1:
        raise DataError(
            f"the sequence descriptions {' and '.join(a.name for a in fitting)} both know this header; choose one with "
            "--sequence"
        )
    return _tell(fitting[0], tell).applied(header) if fitting else header


def shipped_adapters() -> list[Adapter]:
    """Return all descriptions of streams that come with the program."""
    return [read_adapter(path) for path in shipped_descriptions("mrd").values()]


def read_adapter(path: Path) -> Adapter:
    """Read a description of a stream.

    Raises
    ------
    ConfigError
        It cannot be read or says something unknown.
    """
    text = read_toml(path)
    if text.get("input") != "mrd":
        raise ConfigError(f'{path.name} describes raw files, not streams; a description of streams says input = "mrd"')
    for section, known in _SECTIONS.items():
        for key in text if section == "" else text.get(section, {}):
            if key not in known:
                where = f"[{section}] " if section else ""
                raise ConfigError(f"{path.name}: {where}{key} is not known; known are {', '.join(sorted(known))}")
    profile = text.get("profile", {})
    for key in profile:
        if key not in PROFILE_KEYS:
            raise ConfigError(f"{path.name}: {key} is no key of the MRSI profile")
    detect = text.get("detect", {})
    matrix = text.get("geometry", {}).get("matrix", [])
    if len(matrix) not in (0, 3):
        raise ConfigError(f"{path.name}: [geometry] matrix needs three entries (x, y, z)")
    return Adapter(
        name=str(text.get("name", path.stem)),
        **{name: tuple(detect.get(name, ())) for name in _SECTIONS["detect"]},
        profile={key: _places(entry, key, path) for key, entry in profile.items()},
        matrix=tuple(_places(entry, "matrix", path) for entry in matrix),
    )


def _wanted(sequence: str) -> Adapter:
    shipped = shipped_descriptions("mrd")
    path = shipped.get(sequence, Path(sequence))
    if path.suffix != ".toml":
        raise ConfigError(
            f"there is no sequence description '{sequence}' for streams; shipped are {', '.join(shipped)}, or give a "
            ".toml file"
        )
    return read_adapter(path)


def _tell(adapter: Adapter, tell: Callable[[str], None] | None) -> Adapter:
    (tell or logging.getLogger("mrsi").info)(f"the header was read with the sequence description {adapter.name}")
    return adapter


def _places(entry: Any, name: str, path: Path) -> tuple[Any, ...]:
    places = tuple(entry) if isinstance(entry, list) else (entry,)
    for place in places:
        if isinstance(place, dict):
            sources = [source for source in _SOURCES if source in place]
            if len(sources) != 1 or not set(place) <= {*sources, *_OPTIONS}:
                raise ConfigError(
                    f"{path.name}: {name} must be a value or a table with one of {', '.join(_SOURCES)} and, if need "
                    f"be, {', '.join(sorted(_OPTIONS))}"
                )
        elif not isinstance(place, (int, float, str)):
            raise ConfigError(f"{path.name}: {name} must be a value, a table or a list of them")
    return places


def _look_up(place: Mapping[str, Any], header: MrdHeader) -> Found | None:
    """Return what the header has at a place, or None."""
    if "user_parameter" in place:
        name = place["user_parameter"]
        if name in header.user:
            return header.user[name], f"header {name}"
        # a text that the vendor leaves out has a meaning too, where the description gives it one
        return (place["otherwise"], f"header without {name}") if "otherwise" in place else None
    if "counter" in place:
        limit = header.encodings[0].limits.get(place["counter"]) if header.encodings else None
        return None if limit is None else (limit.maximum + 1, f"header encodingLimits of {place['counter']}")
    if "echo_time_ms" in place:
        index = int(place["echo_time_ms"])
        return (header.echo_times_ms[index], f"header TE[{index}]") if index < len(header.echo_times_ms) else None
    if place["from"] == "frequency":
        return _nucleus_by_frequency(header)
    raise ConfigError(f"from = '{place['from']}' is not known; it can be 'frequency'")


def _changed(found: Found, place: Mapping[str, Any], derived: Mapping[str, Found], where: str) -> Found:
    """Apply `map`, `times` and `over` to a value."""
    value, source = found
    if "map" in place and source.startswith("header ") and not source.startswith("header without"):
        text = str(value)
        if text not in place["map"] and "otherwise" not in place:
            raise DataError(f"{source} is '{text}', which {where} does not know; give the profile key as a setting")
        value, source = place["map"].get(text, place.get("otherwise")), f"{source} '{text}'"
    factor = place.get("times")
    if isinstance(factor, str):
        if factor not in derived:
            raise DataError(f"{where} needs {factor}, which the header does not give; give it as a setting")
        source = f"{source} times {factor}"
        factor = _number(derived[factor][0], where, factor)
    elif factor is not None:
        source = f"{source} times {factor:g}"
    if factor is not None:
        value = _number(value, where, source) * float(factor)
    if "over" in place:
        divisor = _number(value, where, source)
        if divisor == 0:
            raise DataError(f"{source} is 0, but {where} divides by it; give the profile key as a setting")
        value, source = float(place["over"]) / divisor, f"{place['over']:g} over {source}"
    return value, source


def _number(value: Value, where: str, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{what} is '{value!r}', but {where} needs a number; give the profile key as a setting"
        ) from None


def _nucleus_by_frequency(header: MrdHeader) -> Found | None:
    """Return the one nucleus whose frequency in this field the header states, if there is exactly one.

    Some vendors write the frequency of the observed nucleus into the proton's field.
    """
    frequency, field_t = header.h1_frequency_hz, header.field_strength_t
    if not frequency or not field_t:
        return None
    near = [
        name
        for name, ratio in FREQUENCY_RATIO.items()
        if abs(frequency - ratio * PROTON_HZ_PER_T * field_t) <= FIELD_TOLERANCE * ratio * PROTON_HZ_PER_T * field_t
    ]
    # 19F lies within the tolerance of 1H: the nearer one would be a guess
    if len(near) != 1:
        exact = [n for n in near if abs(frequency / (FREQUENCY_RATIO[n] * PROTON_HZ_PER_T * field_t) - 1) < 0.005]
        near = exact if len(exact) == 1 else []
    return (near[0], f"derived: H1resonanceFrequency_Hz is that of {near[0]} at {field_t:g} T") if near else None
