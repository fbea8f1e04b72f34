"""Learning protocols: a small TOML file says what a signal model is learned for and from (`mrsi learn PROTOCOL.toml`).

Tables: ``[protocol]`` the scan, ``[ensemble]`` what differs from the nucleus' distributions, ``[measured]`` maps and
water that take their place, ``[basis]`` pulse sequence or basis file, ``[training]`` passed on to the trainer as it is,
``[sources]`` citations. Every key is explained in docs/reference/learning-protocol.md. Unknown keys are refused: a
misspelt one would change nothing, silently.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrsi_gadgets.data import LEAST_ECHO_TIME_S, Geometry, Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.basis_import import import_basis
from mrsi_gadgets.io.measured import read_amounts, read_lineshapes
from mrsi_gadgets.physics import sequences
from mrsi_gadgets.physics.basis import BasisSet, metabolite_basis
from mrsi_gadgets.physics.ensemble import Ensemble, default_ensemble
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.physics.sequences import PulseSequence

_TABLES = ("protocol", "ensemble", "measured", "basis", "training", "sources")
_MEASURED_KEYS = ("maps", "names", "resample", "water", "water_noise_sd")
_PROTOCOL_UNITS = {
    "transmit_frequency_hz": 1.0, "field_strength_t": 1.0, "reference_ppm": 1.0, "spectral_width_hz": 1.0,
    "dwell_us": 1e-6, "n_times": 1.0, "acquisition_delay_us": 1e-6, "echo_times_ms": 1e-3, "repetition_time_ms": 1e-3,
    "flip_angle_deg": 1.0,
}  # fmt: skip
_SEQUENCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "pulse_acquire": (), "spin_echo": (), "press": ("te1_ms",), "steam": ("tm_ms",), "semi_laser": ("intervals_ms",),
}  # fmt: skip
_FILE_KEYS = ("file", "centre_ppm", "conjugate", "linewidth_hz", "first_sample_ms", "rename")


@dataclass(frozen=True, eq=False)
class LearningProtocol:
    """What one TOML file says."""

    name: str
    protocol: Protocol
    """The scan. Its geometry is one voxel: a signal model has none."""
    protocols: tuple[Protocol, ...]
    """One per echo time, each with that echo time alone; `protocol` itself where there is only one."""
    ensemble: Ensemble
    bases: tuple[BasisSet | None, ...]
    """Signals of the molecules for each of `protocols`; None where the file has no table [basis]: then an FID or ideal
    spin echo is simulated as the echo time says (`metabolite_basis`)."""
    training: Mapping[str, Any]
    """The table [training] as it stands; the trainer checks it."""
    sources: Mapping[str, str]
    """Citations."""
    path: Path

    @property
    def basis(self) -> BasisSet | None:
        """The signals of the first echo time."""
        return self.bases[0]


def shipped_learning_protocols() -> dict[str, Path]:
    """Return name -> path of the files that come with the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "config" / "protocols", package.parents[1] / "config" / "protocols"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find_learning_protocol(wanted: str) -> Path:
    """Return the path of a shipped file by name, or `wanted` itself as a path.

    Raises
    ------
    ConfigError
        There is neither.
    """
    shipped = shipped_learning_protocols()
    path = shipped.get(wanted, Path(wanted))
    if not path.is_file():
        raise ConfigError(f"there is no learning protocol '{wanted}'; shipped are {', '.join(shipped)}, or give a file")
    return path


def read_learning_protocol(path: Path | str) -> LearningProtocol:
    """Read a learning protocol.

    Raises
    ------
    ConfigError
        It cannot be read, lacks something, says something unknown or impossible, or its basis file does not fit.
    """
    path = Path(path)
    text = _tables(path)
    try:
        protocol = _protocol(text.get("protocol", {}))
        protocols = tuple(protocol.of_echo(echo) for echo in range(protocol.n_echoes))
        ensemble = _ensemble(text.get("ensemble", {}), protocol)
        if "measured" in text:
            ensemble = _with_measured(text["measured"], ensemble, protocol, path.parent)
        bases = _bases(text["basis"], protocols, ensemble, path.parent) if "basis" in text else (None,) * len(protocols)
        for key, value in text.get("sources", {}).items():
            if not isinstance(value, str):
                raise ConfigError(f"[sources] {key} must be text")
    except (ConfigError, DataError) as problem:
        raise ConfigError(f"{path.name}: {problem}") from problem
    return LearningProtocol(
        name=str(text.get("name", path.stem)),
        protocol=protocol,
        protocols=protocols,
        ensemble=ensemble,
        bases=bases,
        training=dict(text.get("training", {})),
        sources=dict(text.get("sources", {})),
        path=path,
    )


def _tables(path: Path) -> dict[str, Any]:
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"the learning protocol {path} cannot be read ({problem.strerror})") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"the learning protocol {path} is no valid TOML ({problem})") from problem
    for key, value in text.items():
        if key != "name" and not (key in _TABLES and isinstance(value, dict)):
            raise ConfigError(f"{path.name}: {key} is not known; there are name, [{'], ['.join(_TABLES)}]")
    return text


def _refuse_unknown(table: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"[{table}] {key} is not known; known are {', '.join(sorted(known))}")


def _number(table: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"[{table}] {key} is {value!r}; it must be a number")
    return float(value)


def _numbers(table: str, key: str, value: Any, count: int | None = None) -> tuple[float, ...]:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise ConfigError(f"[{table}] {key} is {value!r}; it must be a list of {count or 'some'} numbers")
    return tuple(_number(table, key, entry) for entry in value)


def _protocol(table: Mapping[str, Any]) -> Protocol:
    _refuse_unknown("protocol", table, ["nucleus", *_PROTOCOL_UNITS])
    missing = [k for k in ("nucleus", "transmit_frequency_hz", "n_times", "acquisition_delay_us") if k not in table]
    if missing:
        raise ConfigError(f"[protocol] lacks {', '.join(missing)}; add them")
    if ("dwell_us" in table) == ("spectral_width_hz" in table):
        raise ConfigError("[protocol] needs one of dwell_us and spectral_width_hz")
    nucleus = table["nucleus"]
    if nucleus not in NUCLEI:
        raise ConfigError(f"[protocol] nucleus is {nucleus!r}; molecules are known for {', '.join(NUCLEI)}")
    values = {
        key: _number("protocol", key, value) * _PROTOCOL_UNITS[key]
        for key, value in table.items()
        if key not in ("nucleus", "echo_times_ms")
    }
    for key, value in values.items():
        if not (value > 0 or (value == 0 and key == "acquisition_delay_us") or key == "reference_ppm"):
            raise ConfigError(f"[protocol] {key} is {table[key]}; it must be positive")
    if values["n_times"] % 1:
        raise ConfigError(f"[protocol] n_times is {table['n_times']}; it must be a whole number")
    delay_s = values["acquisition_delay_us"]
    echoes = tuple(te * 1e-3 for te in _numbers("protocol", "echo_times_ms", table.get("echo_times_ms", [])))
    if echoes and (min(echoes) < LEAST_ECHO_TIME_S) and echoes != (delay_s,):
        raise ConfigError(
            f"[protocol] echo_times_ms {table['echo_times_ms']} has one below {LEAST_ECHO_TIME_S * 1e3:g} ms, which is "
            "no echo; leave echo_times_ms out for FIDs"
        )
    if len(set(echoes)) != len(echoes):
        raise ConfigError(f"[protocol] echo_times_ms {table['echo_times_ms']} has one twice; correct it")
    return Protocol(
        nucleus=nucleus,
        transmit_frequency_hz=values["transmit_frequency_hz"],
        reference_ppm=values.get("reference_ppm", NUCLEI[nucleus].calibration_ppm),
        dwell_s=values["dwell_us"] if "dwell_us" in values else 1.0 / values["spectral_width_hz"],
        n_times=int(values["n_times"]),
        acquisition_delay_s=delay_s,
        geometry=Geometry((1, 1, 1), (10.0, 10.0, 10.0)),
        encoding="csi",
        axes={"te": "contrast"},
        echo_times_s=echoes or (delay_s,),
        repetition_time_s=values.get("repetition_time_ms"),
        flip_angle_deg=values.get("flip_angle_deg"),
        field_strength_t=values.get("field_strength_t"),
    )


def _ensemble(table: Mapping[str, Any], protocol: Protocol) -> Ensemble:
    base = default_ensemble(protocol)
    fields = [field.name for field in dataclasses.fields(base) if field.name not in ("amounts", "lineshapes")]
    _refuse_unknown("ensemble", table, fields)
    values: dict[str, Any] = {}
    for key, value in table.items():
        default = getattr(base, key)
        if key == "names":
            values[key] = _names(value, protocol.nucleus)
        elif isinstance(default, tuple):
            values[key] = _numbers("ensemble", key, value, 2)
        else:
            number = _number("ensemble", key, value)
            if number < 0 or (isinstance(default, int) and number % 1):
                what = "a whole number of at least 0" if isinstance(default, int) else "at least 0"
                raise ConfigError(f"[ensemble] {key} is {value}; it must be {what}")
            values[key] = int(number) if isinstance(default, int) else number
    return dataclasses.replace(base, **values)


def _with_measured(table: Mapping[str, Any], ensemble: Ensemble, protocol: Protocol, folder: Path) -> Ensemble:
    _refuse_unknown("measured", table, _MEASURED_KEYS)
    if "maps" in table:
        folders = table["maps"] if isinstance(table["maps"], list) else [table["maps"]]
        names, again = table.get("names", []), table.get("resample", False)
        if not all(isinstance(entry, str) for entry in folders) or not isinstance(names, list):
            raise ConfigError("[measured] maps must be one or more result folders, and names a list")
        if not isinstance(again, bool):
            raise ConfigError(f"[measured] resample is {again!r}; it must be true or false")
        amounts = read_amounts([folder / entry for entry in folders], protocol, names=names, resample=again)
        ensemble = dataclasses.replace(ensemble, amounts=amounts)
    if "water" in table:
        noise_sd = _number("measured", "water_noise_sd", table.get("water_noise_sd", 0.0))
        lineshapes = read_lineshapes(folder / str(table["water"]), protocol, noise_sd=noise_sd)
        ensemble = dataclasses.replace(ensemble, lineshapes=lineshapes)
    return ensemble


def _names(value: Any, nucleus: str) -> tuple[str, ...]:
    known = NUCLEI[nucleus].values
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"[ensemble] names is {value!r}; it must be a list of molecules")
    for name in value:
        if name not in known:
            raise ConfigError(f"[ensemble] names has '{name}'; for {nucleus} there are {', '.join(known)}")
    if len(set(value)) != len(value):
        raise ConfigError("[ensemble] names has a molecule twice; correct it")
    return tuple(value)


def _bases(
    table: Mapping[str, Any], protocols: tuple[Protocol, ...], ensemble: Ensemble, folder: Path
) -> tuple[BasisSet, ...]:
    if "file" in table:
        return _imported(table, protocols, ensemble, folder)
    kind = str(table.get("sequence"))
    if kind not in _SEQUENCE_KEYS:
        raise ConfigError(f"[basis] sequence is '{kind}'; choose {', '.join(_SEQUENCE_KEYS)}, or give file")
    _refuse_unknown("basis", table, ["sequence", *_SEQUENCE_KEYS[kind]])
    return tuple(
        metabolite_basis(protocol, ensemble.names, sequence=_sequence(table, kind, protocol, echo, len(protocols)))
        for echo, protocol in enumerate(protocols)
    )


def _imported(
    table: Mapping[str, Any], protocols: tuple[Protocol, ...], ensemble: Ensemble, folder: Path
) -> tuple[BasisSet, ...]:
    """Return the basis set of each echo time; paths are relative to the learning protocol's folder."""
    _refuse_unknown("basis", table, _FILE_KEYS)
    files = table["file"] if isinstance(table["file"], list) else [table["file"]]
    if len(files) != len(protocols) or not all(isinstance(file, str) for file in files):
        raise ConfigError(f"[basis] file is {table['file']!r}; give the path of one file for each echo time")
    rename, conjugate = table.get("rename", {}), table.get("conjugate", False)
    if not isinstance(rename, dict) or not all(isinstance(name, str) for name in rename.values()):
        raise ConfigError('[basis] rename must be a table such as { MyName = "Ins" }')
    if not isinstance(conjugate, bool):
        raise ConfigError(f"[basis] conjugate is {conjugate!r}; it must be true or false")
    numbers = {
        k: _number("basis", k, table[k]) for k in ("centre_ppm", "linewidth_hz", "first_sample_ms") if k in table
    }
    bases = []
    for file, protocol in zip(files, protocols, strict=True):
        basis = import_basis(
            folder / file, protocol, rename=rename, conjugate=conjugate, centre_ppm=numbers.get("centre_ppm"),
            linewidth_hz=numbers.get("linewidth_hz"),
            first_sample_s=numbers["first_sample_ms"] * 1e-3 if "first_sample_ms" in numbers else None,
        )  # fmt: skip
        lacking = [name for name in ensemble.names if name not in basis.names]
        if lacking:
            raise ConfigError(
                f"the basis set {file} lacks {', '.join(lacking)} (it has {', '.join(basis.names)}); list the "
                "molecules in [ensemble] names, or say with rename which is which"
            )
        bases.append(basis)
    return tuple(bases)


def _sequence(table: Mapping[str, Any], kind: str, protocol: Protocol, echo: int, n_echoes: int) -> PulseSequence:
    """Return the sequence of one echo time."""
    te_s = protocol.spin_echo_time_s
    if (kind == "pulse_acquire") != (te_s is None):
        raise ConfigError(
            f"[basis] sequence {kind} does not fit "
            + ("a protocol without echo_times_ms" if te_s is None else f"echo_times_ms {te_s * 1e3:g}")
            + "; correct one of them"
        )
    if te_s is None:
        return sequences.pulse_acquire()
    if kind == "press":
        return sequences.press(te_s, _number("basis", "te1_ms", table["te1_ms"]) * 1e-3 if "te1_ms" in table else None)
    if kind == "steam":
        if "tm_ms" not in table:
            raise ConfigError("[basis] sequence steam needs tm_ms, the mixing time")
        return sequences.steam(te_s, _number("basis", "tm_ms", table["tm_ms"]) * 1e-3)
    if kind == "semi_laser":
        given = table.get("intervals_ms")
        if given is None:
            return sequences.semi_laser(te_s)
        rows = given if given and isinstance(given, list) and isinstance(given[0], list) else [given]
        if len(rows) != n_echoes:
            raise ConfigError(f"[basis] intervals_ms has {len(rows)} lists for {n_echoes} echo times; give one each")
        return sequences.semi_laser(te_s, [t * 1e-3 for t in _numbers("basis", "intervals_ms", rows[echo], 5)])
    return sequences.spin_echo(te_s)
