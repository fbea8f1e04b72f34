"""Basis files of other programmes: LCModel .basis, FSL-MRS folder of JSON, jMRUI text.

All three store FIDs whose frequency falls with the chemical shift (or the spectra of such): higher ppm turns the
negative way. Here they are conjugated once, so that an FID evolves as exp(+i 2 pi f t), f = (ppm - centre) MHz. Facts
about the formats: the LCModel manual (S. Provencher), sections 8 and 10; the documentation of FSL-MRS (Clarke et al.,
Magn Reson Med 2021;85:2950-2964, doi:10.1002/mrm.28630); files written by jMRUI 3 to 7.
`io.basis_import` brings them to a protocol's times and to our unit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.errors import ConfigError

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][-+]?\d+)?")
_ENTRY = re.compile(r"(\w+)\s*=\s*('[^']*'|[^,\s]+)")


@dataclass(frozen=True, eq=False)
class FileBasis:
    """What a file says, in our sign of frequencies and in SI units."""

    path: Path
    kind: str
    """LCModel, FSL-MRS or jMRUI."""
    names: tuple[str, ...]
    """As the file has them."""
    fids: np.ndarray
    """complex128 (molecule, t)."""
    dwell_s: float
    transmit_frequency_hz: float
    first_sample_s: float = 0.0
    """Time of the first sample after the echo top or the excitation's centre [s]."""
    echo_time_s: float | None = None
    linewidth_hz: float | None = None
    """Lorentzian width that the file says its lines have [Hz]."""
    nucleus: str | None = None


def read_basis_file(path: Path | str) -> FileBasis:
    """Read a basis set: an LCModel .basis, a folder of FSL-MRS .json, a jMRUI .txt or a folder of them.

    Raises
    ------
    ConfigError
        There is none, it is encrypted or damaged, or its parts do not fit each other.
    """
    path = Path(path)
    if path.is_dir():
        if found := sorted(path.glob("*.json")):
            return _read_fsl(path, found)
        if found := [file for file in sorted(path.glob("*.txt")) if not file.name.endswith("_output_summary.txt")]:
            return _read_jmrui(path, found)
        raise ConfigError(f"the basis folder {path.name} has neither .json (FSL-MRS) nor .txt (jMRUI) files")
    if path.suffix.lower() == ".basis":
        return _read_lcmodel(path)
    if path.suffix.lower() == ".txt":
        return _read_jmrui(path, [path])
    raise ConfigError(
        f"{path.name} is no basis set this version reads; give an LCModel .basis, a jMRUI .txt, or a folder of FSL-MRS "
        ".json files"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="latin-1")
    except OSError as problem:
        raise ConfigError(f"the basis file {path} cannot be read ({problem.strerror})") from problem


def _numbers(text: str) -> np.ndarray:
    return np.array([float(x.replace("D", "E").replace("d", "e")) for x in _NUMBER.findall(text)])


def _value(table: Mapping[str, str], key: str, path: Path) -> float:
    try:
        return float(table[key].replace("D", "E").replace("d", "e"))
    except KeyError:
        raise ConfigError(f"the basis file {path.name} lacks {key}; it is damaged or of another kind") from None
    except ValueError:
        raise ConfigError(f"{key} of the basis file {path.name} is '{table[key]}', which is no number") from None


def _read_lcmodel(path: Path) -> FileBasis:
    """Read Fortran namelists $NAME ... $END, each $BASIS followed by a spectrum in the order of an FFT.

    The spectra are those of FIDs filled with zeros to twice their length; ISHIFT points of shift are taken back.
    """
    parts = re.split(r"\$END\b", _text(path), flags=re.IGNORECASE)
    common: dict[str, str] = {}
    names: list[str] = []
    fids = []
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        _, _, header = part.rpartition("$")
        entries = {key.upper(): value.strip("'").strip() for key, value in _ENTRY.findall(header)}
        if not re.match(r"BASIS\b", header, flags=re.IGNORECASE):
            common.update(entries)
            continue
        numbers = _numbers(following.partition("$")[0])
        n = int(_value(common, "NDATAB", path))
        name = entries.get("METABO", f"number {len(names) + 1}")
        if len(numbers) != 2 * n:
            raise ConfigError(f"{name} in {path.name} has {len(numbers)} numbers and not 2 x NDATAB = {2 * n}")
        spectrum = np.roll(numbers[::2] + 1j * numbers[1::2], -int(_value({"ISHIFT": "0"} | entries, "ISHIFT", path)))
        names.append(name)
        fids.append(np.conj(np.fft.ifft(spectrum)))
    if not names:
        raise ConfigError(f"{path.name} has no $BASIS entry; it is damaged or of another kind")
    dwell_s = _value(common, "BADELT", path)
    if dwell_s <= 0:
        raise ConfigError(f"{path.name} is encrypted (BADELT is negative); ask for the basis set's raw files")
    echo_ms = _value(common, "ECHOT", path) if "ECHOT" in common else None
    return FileBasis(
        path, "LCModel", tuple(names), _without_filling(np.array(fids)), dwell_s, _value(common, "HZPPPM", path) * 1e6,
        echo_time_s=None if echo_ms is None else echo_ms * 1e-3,
    )  # fmt: skip


def _without_filling(fids: np.ndarray) -> np.ndarray:
    """Return the first half of FIDs whose second half is zeros."""
    half = fids.shape[1] // 2
    filled = np.abs(fids[:, half:]).max() < 1e-4 * np.abs(fids[:, :half]).max()
    return fids[:, :half] if filled else fids


def _read_fsl(folder: Path, files: list[Path]) -> FileBasis:
    """Read a molecule from each file: ``basis`` with basis_re, basis_im, _dwell [s], _centre [MHz], _width [Hz]."""
    names, fids, facts = [], [], []
    for file in files:
        try:
            content: Any = json.loads(_text(file))
            table = content["basis"]
            fid = np.conj(np.array(table["basis_re"], float) + 1j * np.array(table["basis_im"], float))
            names.append(str(table.get("basis_name", file.stem)))
            fact = (float(table["basis_dwell"]), float(table["basis_centre"]) * 1e6, float(table["basis_width"] or 0.0))
            nucleus = table.get("basis_nucleus")
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ConfigError(f"{file.name} in {folder.name} is no FSL-MRS basis file ({problem})") from problem
        fids.append(fid)
        facts.append((*fact, nucleus, fid.shape))
    if any(fact != facts[0] for fact in facts):
        odd = names[next(i for i, fact in enumerate(facts) if fact != facts[0])]
        raise ConfigError(f"{odd} in {folder.name} has another dwell, frequency, width or length than {names[0]}")
    dwell_s, hz, width, nucleus, _ = facts[0]
    return FileBasis(
        folder, "FSL-MRS", tuple(names), np.array(fids), dwell_s, hz, linewidth_hz=width or None, nucleus=nucleus
    )


def _read_jmrui(path: Path, files: list[Path]) -> FileBasis:
    """Read ``Key: value`` lines, then for each ``Signal n out of m in file`` rows of real and imaginary part."""
    names: list[str] = []
    fids: list[np.ndarray] = []
    facts = []
    for file in files:
        header, *signals = re.split(r"^Signal (?:number: )?\d+ out of \d+ in file.*$", _text(file), flags=re.MULTILINE)
        table = {key: value.strip() for key, value in re.findall(r"^(\w+):[ \t]*(.*)$", header, flags=re.MULTILINE)}
        if not signals:
            raise ConfigError(f"{file.name} has no 'Signal 1 out of ...' block; it is no jMRUI text file")
        n = int(_value(table, "PointsInDataset", file))
        facts.append(
            (
                _value(table, "SamplingInterval", file) * 1e-3,
                _value(table, "TransmitterFrequency", file),
                _value({"BeginTime": "0", **table}, "BeginTime", file) * 1e-3,
                n,
            )
        )
        own = [name.strip() for name in table.get("SignalNames", "").split(";") if name.strip()]
        if len(own) != len(signals):
            own = [file.stem] if len(signals) == 1 else [f"{file.stem}_{i + 1}" for i in range(len(signals))]
        names += [Path(name).stem if name.lower().endswith((".txt", ".mrui")) else name for name in own]
        for signal in signals:
            rows = [row for row in (_numbers(line) for line in signal.splitlines()) if len(row)]
            if len(rows) != n or any(len(row) < 2 for row in rows):
                raise ConfigError(f"a signal in {file.name} has {len(rows)} rows and not PointsInDataset = {n}")
            fids.append(np.array([row[0] - 1j * row[1] for row in rows]))
    if any(fact != facts[0] for fact in facts):
        raise ConfigError(
            f"the jMRUI files in {path.name} differ in sampling, frequency or length; give them one by one"
        )
    dwell_s, hz, first_s, _ = facts[0]
    return FileBasis(path, "jMRUI", tuple(names), np.array(fids), dwell_s, hz, first_sample_s=first_s)
