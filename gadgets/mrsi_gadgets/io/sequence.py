"""Sequence descriptions: a small TOML file says what a vendor's counters, flags and header fields mean.

A value is written as it is, or as the place where the raw file has it: ``{ header = "MeasYaps.alTE.0", times = 0.1 }``
in the file's header, ``{ ice_param = 5, times = 2 }`` in each readout. Shipped descriptions are found by name or by the
sequence they match.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import ConfigError, DataError

Value = int | float | str
MRD_COUNTERS = (
    "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
    "segment", *(f"user_{i}" for i in range(8)),
)  # fmt: skip
REQUIRED_KEYS = ("mrsi_nucleus", "mrsi_encoding", "mrsi_dwell_us", "mrsi_acq_delay_us")
_SECTIONS = {
    "": {"name", "input", "matches", "profile", "geometry", "counters", "water_reference", "noise", "readout", "rings"},
    "geometry": {"matrix", "fov_mm", "origin"},
    "water_reference": {"flag"},
    "noise": {"sample_time_us", "bandwidth"},
    "readout": {"sample_time_us"},
    "rings": {"first_point", "unit", "rotation", "samples_per_lap", "temporal_interleaves"},
}


@dataclass(frozen=True)
class FromHeader:
    """A value that stands in the raw file's header."""

    path: str
    """Names and list indices with dots between them."""
    times: float | None = None

    def read(self, header: Mapping[str, Any]) -> Value:
        """Look the value up.

        Raises
        ------
        DataError
            The header has no such field.
        """
        found: Any = header
        for part in self.path.split("."):
            try:
                found = found[int(part)] if isinstance(found, Sequence) else found[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise DataError(
                    f"the raw file's header has no {self.path}; write the value itself into the sequence description"
                ) from None
        if not isinstance(found, (int, float, str)) or found == "":
            raise DataError(f"{self.path} of the raw file's header is no value; write it into the sequence description")
        return found if self.times is None else scaled(found, self.times, self.path)


@dataclass(frozen=True)
class FromReadout:
    """A value that each readout carries in its ICE programme parameters (counted from 0)."""

    ice_param: int
    times: float = 1

    def read(self, parameters: Sequence[int]) -> int:
        """Look the value up; it must be a whole number."""
        return round(int(parameters[self.ice_param]) * self.times)


@dataclass(frozen=True)
class Rings:
    """How ring readouts are walked."""

    first_point: tuple[tuple[int, int], tuple[int, int]]
    """ICE parameters of the first point along read and phase: integer part, fraction in 1/10000."""
    unit: str
    clockwise: bool
    """Seen with read to the right and phase up."""
    samples_per_lap: int | FromReadout
    temporal_interleaves: int | FromReadout


@dataclass(frozen=True)
class SequenceDescription:
    """What one TOML file says."""

    name: str
    matches: tuple[str, ...]
    profile: Mapping[str, Value | FromHeader]
    matrix: tuple[Value | FromHeader, ...]
    fov_mm: tuple[Value | FromHeader, ...]
    origin: str
    """``position``: r = 0 is the centre of the field of view; ``isocentre``: it is the magnet's."""
    counters: Mapping[str, str]
    water_flag: str | None = None
    noise_sample_time_us: Value | FromHeader | None = None
    noise_bandwidth: Value | FromHeader | None = None
    """Share of the noise scan's bandwidth that the receiver's filter passes."""
    sample_time_us: Value | FromHeader | None = None
    rings: Rings | None = None
    source: str = field(default="", compare=False)


def scaled(value: Value, times: float, name: str) -> float:
    """Return a header's number times a factor.

    Raises
    ------
    DataError
        The value is no number.
    """
    try:
        return float(value) * times
    except ValueError:
        raise DataError(f"{name} is '{value}', which is no number") from None


def resolve(value: Value | FromHeader, header: Mapping[str, Any]) -> Value:
    """Return the value itself, wherever it stands."""
    return value.read(header) if isinstance(value, FromHeader) else value


def find_sequence(wanted: str | None, sequence_file: str) -> SequenceDescription:
    """Return a description by name, by path, or (nothing wanted) by the sequence that made the raw file.

    Parameters
    ----------
    wanted
        Name of a shipped description, path of a .toml file, or None.
    sequence_file
        Name of the sequence in the raw file.

    Raises
    ------
    ConfigError
        There is no such description, or none knows this sequence; the keys to supply are named.
    """
    shipped = shipped_descriptions("twix")
    if wanted is not None and wanted in shipped_descriptions("mrd"):
        raise ConfigError(
            f"'{wanted}' describes streams, not raw files; those of raw files are {', '.join(shipped)}, or give "
            "a .toml file"
        )
    if wanted is not None:
        path = shipped.get(wanted, Path(wanted))
        if path.suffix != ".toml":
            raise ConfigError(
                f"there is no sequence description '{wanted}'; shipped are {', '.join(shipped)}, or give a .toml file"
            )
        return read_sequence(path)
    known = [read_sequence(path) for path in shipped.values()]
    fitting = [s for s in known if any(fnmatch.fnmatch(sequence_file, pattern) for pattern in s.matches)]
    if len(fitting) != 1:
        raise ConfigError(
            f"{'no' if not fitting else 'more than one'} shipped sequence description knows '{sequence_file}'; give "
            f"one with --sequence, by name ({', '.join(shipped)}) or as a .toml file that states "
            f"{', '.join(REQUIRED_KEYS)}, the geometry and the counters"
        )
    return fitting[0]


def shipped_descriptions(kind: str) -> dict[str, Path]:
    """Return name -> path of the shipped descriptions of raw files (``twix``) or of streams (``mrd``)."""
    paths = [path for folder in _folders() for path in sorted(folder.glob("*.toml"))]
    return {path.stem: path for path in paths if read_toml(path).get("input", "twix") == kind}


def _folders() -> Iterator[Path]:
    """Find shipped descriptions inside an installed wheel, or beside the sources."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "config" / "sequences", package.parents[1] / "config" / "sequences"):
        if folder.is_dir():
            yield folder
            return


def read_sequence(path: Path) -> SequenceDescription:
    """Read a sequence description.

    Raises
    ------
    ConfigError
        It cannot be read, lacks something, or says something unknown.
    """
    text = read_toml(path)
    if text.get("input", "twix") != "twix":
        raise ConfigError(f"{path.name} describes {text['input']} streams, not raw files; give another description")
    for section, known in _SECTIONS.items():
        table = text if section == "" else text.get(section, {})
        for key in table:
            if key not in known:
                where = f"[{section}] " if section else ""
                raise ConfigError(f"{path.name}: {where}{key} is not known; known are {', '.join(sorted(known))}")
    return _Reader(path, text).description()


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a sequence description.

    Raises
    ------
    ConfigError
        The file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"the sequence description {path} cannot be read ({problem.strerror})") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the sequence description {path} is no valid TOML ({problem})") from problem


class _Reader:
    def __init__(self, path: Path, text: dict[str, Any]) -> None:
        self.path, self.text = path, text

    def description(self) -> SequenceDescription:
        profile = {key: self._value(entry, key) for key, entry in self.text.get("profile", {}).items()}
        missing = [key for key in REQUIRED_KEYS if key not in profile]
        missing += [f"[{name}]" for name in ("geometry", "counters") if name not in self.text]
        if missing:
            raise ConfigError(f"{self.path.name} lacks {', '.join(missing)}; add them")
        rings = self._rings() if "rings" in self.text else None
        if (profile["mrsi_encoding"] == "rings") != (rings is not None):
            raise ConfigError(
                f"{self.path.name}: mrsi_encoding 'rings' and the table [rings] go together; correct one of them"
            )
        return SequenceDescription(
            name=str(self.text.get("name", self.path.stem)),
            matches=tuple(self.text.get("matches", ())),
            profile=profile,
            matrix=self._three("matrix"),
            fov_mm=self._three("fov_mm"),
            origin=self._choice("geometry", "origin", ("position", "isocentre")),
            counters=self._counters(),
            water_flag=self.text.get("water_reference", {}).get("flag"),
            noise_sample_time_us=self._optional("noise", "sample_time_us"),
            noise_bandwidth=self._optional("noise", "bandwidth"),
            sample_time_us=self._optional("readout", "sample_time_us"),
            rings=rings,
            source=str(self.path),
        )

    def _value(self, entry: Any, name: str) -> Value | FromHeader:
        if isinstance(entry, dict) and set(entry) <= {"header", "times"} and isinstance(entry.get("header"), str):
            return FromHeader(entry["header"], entry.get("times"))
        if isinstance(entry, (int, float, str)):
            return entry
        raise ConfigError(f'{self.path.name}: {name} must be a value or {{ header = "...", times = ... }}')

    def _per_readout(self, name: str) -> int | FromReadout:
        entry = self.text["rings"].get(name)
        if isinstance(entry, dict) and set(entry) <= {"ice_param", "times"} and isinstance(entry.get("ice_param"), int):
            return FromReadout(entry["ice_param"], entry.get("times", 1))
        if isinstance(entry, int):
            return entry
        raise ConfigError(
            f"{self.path.name}: [rings] {name} must be a whole number or {{ ice_param = ..., times = ... }}"
        )

    def _optional(self, section: str, name: str) -> Value | FromHeader | None:
        entry = self.text.get(section, {}).get(name)
        return None if entry is None else self._value(entry, f"[{section}] {name}")

    def _three(self, name: str) -> tuple[Value | FromHeader, ...]:
        entries = self.text["geometry"].get(name)
        if not isinstance(entries, list) or len(entries) != 3:
            raise ConfigError(f"{self.path.name}: [geometry] {name} needs three values (read, phase, slice)")
        return tuple(self._value(entry, name) for entry in entries)

    def _choice(self, section: str, name: str, choices: tuple[str, ...]) -> str:
        value = self.text[section].get(name)
        if value not in choices:
            raise ConfigError(f"{self.path.name}: [{section}] {name} is '{value}'; it must be {' or '.join(choices)}")
        return str(value)

    def _counters(self) -> dict[str, str]:
        counters = {str(mrd): str(twix) for mrd, twix in self.text["counters"].items()}
        for mrd in counters:
            if mrd not in MRD_COUNTERS:
                raise ConfigError(
                    f"{self.path.name}: [counters] {mrd} is no MRD counter; known are {', '.join(MRD_COUNTERS)}"
                )
        return counters

    def _rings(self) -> Rings:
        first = self.text["rings"].get("first_point")
        try:
            (a, b), (c, d) = first
            point = ((int(a), int(b)), (int(c), int(d)))
        except (TypeError, ValueError):
            raise ConfigError(
                f"{self.path.name}: [rings] first_point needs two pairs of ICE parameters, such as [[0, 1], [2, 3]]"
            ) from None
        return Rings(
            first_point=point,
            unit=self._choice("rings", "unit", ("mT/m us", "1/m")),
            clockwise=self._choice("rings", "rotation", ("clockwise", "counter-clockwise")) == "clockwise",
            samples_per_lap=self._per_readout("samples_per_lap"),
            temporal_interleaves=self._per_readout("temporal_interleaves"),
        )
