"""Vendor adapters: what a sequence description says of an MRD header that was not written for the MRSI profile (2.6.5).

A description for streams is a TOML file with ``input = "mrd"`` in ``config/sequences``. Its ``[detect]`` tells which
headers it knows, its ``[profile]`` where each profile key stands in them. What it derives has the lowest priority:
settings come first, then the header's own ``mrsi_*`` parameters. Headers that follow the profile need none.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.sequence import read_toml, shipped_descriptions
from mrsi_gadgets.mrd.header import Encoding, MrdHeader, Space, Value
from mrsi_gadgets.mrd.keys import PROFILE_KEYS
from mrsi_gadgets.mrd.layout import COUNTER_INDEX
from mrsi_gadgets.mrd.nuclei import FIELD_TOLERANCE, FREQUENCY_RATIO, PROTON_HZ_PER_T

_SECTIONS = {
    "": {"name", "input", "detect", "profile", "geometry"},
    "detect": {
        "user_parameters", "counters", "protocol_names", "sequence_types", "trajectories", "vendors",
        "without_user_parameters", "without_protocol_names",
    },
    "geometry": {"matrix", "fov_mm", "ignore_limits"},
}  # fmt: skip
_SOURCES = (
    "user_parameter", "trajectory_parameter", "counter", "echo_time_ms", "echo_spacing_ms", "recon_matrix",
    "recon_fov_mm", "from",
)  # fmt: skip
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
    trajectories: tuple[str, ...] = ()
    """One of these is the trajectory of the first encoding; none: any."""
    vendors: tuple[str, ...] = ()
    """One of these patterns is the scanner's vendor, whatever its case; none: any."""
    without_user_parameters: tuple[str, ...] = ()
    """None of these patterns is among the user parameters."""
    without_protocol_names: tuple[str, ...] = ()
    """None of these patterns is the protocol's name."""
    profile: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Profile key -> the places where it may stand; the first that is there counts."""
    matrix: tuple[tuple[Any, ...], ...] = ()
    """Grid points along x, y and z, where the header's own are something else."""
    fov_mm: tuple[tuple[Any, ...], ...] = ()
    """Field of view of that grid [mm]."""
    ignore_limits: tuple[str, ...] = ()
    """Counters that run from 0 over the whole matrix with their centre at n // 2, whatever encodingLimits say."""

    def knows(self, header: MrdHeader) -> bool:
        """Tell whether this description fits a header; one that names no condition fits none by itself."""
        limits = header.encodings[0].limits if header.encodings else {}
        trajectory = header.encodings[0].trajectory if header.encodings else ""
        conditions = (
            self.user_parameters, self.counters, self.protocol_names, self.sequence_types, self.trajectories,
            self.vendors,
        )  # fmt: skip
        return (
            any(conditions)
            and not any(fnmatch.filter(header.user, pattern) for pattern in self.without_user_parameters)
            and not any(fnmatch.fnmatch(header.protocol_name, pattern) for pattern in self.without_protocol_names)
            and (not self.trajectories or trajectory in self.trajectories)
            and (not self.vendors or any(fnmatch.fnmatch(header.vendor.lower(), v.lower()) for v in self.vendors))
            and all(fnmatch.filter(header.user, pattern) for pattern in self.user_parameters)
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
        if not (self.matrix or self.fov_mm or self.ignore_limits):
            return replace(header, adapted=derived)
        sources: list[str] = []
        encodings = tuple(self._with_grid(space, header, derived, sources) for space in range(len(header.encodings)))
        named = ", ".join(dict.fromkeys(sources))
        return replace(
            header, adapted=derived, encodings=encodings, geometry_source=f"{self.name}: {named}" if named else ""
        )

    def _with_grid(self, space: int, header: MrdHeader, derived: Mapping[str, Found], sources: list[str]) -> Encoding:
        """Return an encoding space with the grid that the description makes of it."""
        encoding = header.encodings[space]
        numbers = {"matrix": [*map(float, encoding.encoded.matrix)], "fov_mm": [*encoding.encoded.fov_mm]}
        for what, places in (("matrix", self.matrix), ("fov_mm", self.fov_mm)):
            for axis, alternatives in enumerate(places):
                found = self._first(alternatives, header, derived, f"{what} along {'xyz'[axis]}", space)
                if found is not None:
                    numbers[what][axis] = _number(found[0], self.name, what)
                    sources.append(found[1])
        nx, ny, nz = (int(n) for n in numbers["matrix"])
        x, y, z = numbers["fov_mm"]
        grid = Space((nx, ny, nz), (x, y, z))
        limits = {name: limit for name, limit in encoding.limits.items() if name not in self.ignore_limits}
        return replace(encoding, encoded=grid, recon=grid, limits=limits)

    def _first(
        self, places: tuple[Any, ...], header: MrdHeader, derived: Mapping[str, Found], what: str, space: int = 0
    ) -> Found | None:
        for place in places:
            if not isinstance(place, dict):
                return place, f"sequence description {self.name}"
            found = _look_up(place, header, space)
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
    if text.get("input", "twix") not in ("mrd", "twix"):
        raise ConfigError(
            f'{path.name}: input is {text["input"]!r}; it must be "mrd" (a stream) or "twix" (a raw file)'
        )
    if text.get("input") != "mrd":
        raise ConfigError(f'{path.name} describes raw files, not streams; a description of streams says input = "mrd"')
    for section in ("detect", "profile", "geometry"):
        if not isinstance(text.get(section, {}), dict):
            raise ConfigError(f"{path.name}: {section} must be a table; write [{section}] on a line of its own")
    for section, known in _SECTIONS.items():
        for key in text if section == "" else text.get(section, {}):
            if key not in known:
                where = f"[{section}] " if section else ""
                raise ConfigError(f"{path.name}: {where}{key} is not known; known are {', '.join(sorted(known))}")
    profile = text.get("profile", {})
    for key in profile:
        if key not in PROFILE_KEYS:
            near = difflib.get_close_matches(key, PROFILE_KEYS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path.name}: {key} is no key of the MRSI profile{hint}")
    detect, geometry = text.get("detect", {}), text.get("geometry", {})
    for where, entries in (*detect.items(), ("ignore_limits", geometry.get("ignore_limits", []))):
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ConfigError(f'{path.name}: {where} must be a list of texts, such as ["a", "b"]')
    ignored = tuple(geometry.get("ignore_limits", ()))
    for where, counters in (("[detect] counters", detect.get("counters", ())), ("[geometry] ignore_limits", ignored)):
        for name in counters:
            _known_counter(name, f"{path.name}: {where}")
    grid = {name: geometry.get(name, []) for name in ("matrix", "fov_mm")}
    for name, entries in grid.items():
        if not isinstance(entries, list) or len(entries) not in (0, 3):
            raise ConfigError(f"{path.name}: [geometry] {name} needs three entries (x, y, z)")
    return Adapter(
        name=str(text.get("name", path.stem)),
        **{name: tuple(detect.get(name, ())) for name in sorted(_SECTIONS["detect"])},
        profile={key: _places(entry, key, path) for key, entry in profile.items()},
        matrix=tuple(_places(entry, "matrix", path) for entry in grid["matrix"]),
        ignore_limits=ignored,
        fov_mm=tuple(_places(entry, "fov_mm", path) for entry in grid["fov_mm"]),
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


def _known_counter(name: Any, where: str) -> None:
    if not isinstance(name, str) or name not in COUNTER_INDEX:
        raise ConfigError(f"{where} names {name}, which is no counter of MRD; they are {', '.join(COUNTER_INDEX)}")


def _check_place(place: Mapping[str, Any], where: str) -> None:
    """Refuse what would be looked up and never be there, or fail only when a scan comes."""
    if "counter" in place:
        _known_counter(place["counter"], where)
    if place.get("from", "frequency") != "frequency":
        raise ConfigError(f"{where}: from = {place['from']!r} is not known; it can be 'frequency'")
    for name in ("echo_time_ms", "echo_spacing_ms"):
        if not isinstance(place.get(name, 0), int):
            raise ConfigError(f"{where}: {name} must be the place in the header's list, from 0")
    for name in ("over", "below"):
        if not isinstance(place.get(name, 0.0), int | float):
            raise ConfigError(f"{where}: {name} must be a number")
    factor = place.get("times", 1.0)
    if not isinstance(factor, int | float) and not (isinstance(factor, str) and factor in PROFILE_KEYS):
        raise ConfigError(f"{where}: times must be a number or a key of the MRSI profile that stands before this one")
    if not isinstance(place.get("map", {}), dict):
        raise ConfigError(f"{where}: map must be a table {{ TEXT = value }}")


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
            if any(place.get(source, "x") not in ("x", "y", "z") for source in ("recon_matrix", "recon_fov_mm")):
                raise ConfigError(f"{path.name}: {name} needs x, y or z in recon_matrix and recon_fov_mm")
            _check_place(place, f"{path.name}: {name}")
        elif not isinstance(place, (int, float, str)):
            raise ConfigError(f"{path.name}: {name} must be a value, a table or a list of them")
    return places


def _look_up(place: Mapping[str, Any], header: MrdHeader, space: int) -> Found | None:
    """Return what the header has at a place, or None."""
    encoding = header.encodings[space] if space < len(header.encodings) else None
    for kind, values, where in (
        ("user_parameter", header.user, "header"),
        ("trajectory_parameter", encoding.trajectory_parameters if encoding else {}, "header trajectoryDescription"),
    ):
        if kind in place:
            name = place[kind]
            if name in values:
                return values[name], f"{where} {name}"
            # a text that the vendor leaves out has a meaning too, where the description gives it one
            return (place["otherwise"], f"header without {name}") if "otherwise" in place else None
    if "counter" in place:
        limit = encoding.limits.get(place["counter"]) if encoding else None
        return None if limit is None else (limit.maximum + 1, f"header encodingLimits of {place['counter']}")
    if "recon_matrix" in place or "recon_fov_mm" in place:
        axis = "xyz".index(place.get("recon_matrix") or place["recon_fov_mm"])
        if encoding is None:
            return None
        if "recon_matrix" in place:
            return encoding.recon.matrix[axis], "header reconSpace matrixSize"
        return encoding.recon.fov_mm[axis], "header reconSpace fieldOfView_mm"
    if "echo_spacing_ms" in place:
        index = int(place["echo_spacing_ms"])
        spacings = header.echo_spacings_ms
        return (spacings[index], f"header echo_spacing[{index}]") if index < len(spacings) else None
    if "echo_time_ms" in place:
        index = int(place["echo_time_ms"])
        return (header.echo_times_ms[index], f"header TE[{index}]") if index < len(header.echo_times_ms) else None
    return _nucleus_by_frequency(header)


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
