"""One HTML page of a result that opens anywhere without network: maps, spectra, uncertainty, how it all came about."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import read_images
from mrsi_gadgets.output.report_checklist import CITATION, UNKNOWN, checklist
from mrsi_gadgets.output.report_data import describe_view
from mrsi_gadgets.output.results import Results, gather

REPORT = "report.html"
"""Name of the page in the folder of a result."""
_SCRIPTS = ("numbers.js", "maps.js", "spectrum.js", "tables.js", "page.js")
"""Parts of the page's program, in the order in which they are joined."""
_PRIVATE = ("input", "mode")
"""Parts of the summary that may name a person (a file's path) and say nothing of the scan."""


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a result folder as one HTML file, and return where it is.

    Parameters
    ----------
    folder
        What `mrsi replay -o` wrote: its ``images.h5`` is read, and ``summary.json`` and ``regions.csv`` where there are
        such files.
    path
        The file to write; None: ``report.html`` in the folder.

    Raises
    ------
    ConfigError
        The folder holds no images, or the place to write to is a folder or lies in none.
    DataError
        The images hold no map, or contradict each other; the disk refuses.
    """
    folder = Path(folder)
    images = folder / "images.h5"
    if not images.is_file():
        raise ConfigError(f"{folder} holds no images.h5; name a folder that `mrsi replay -o` has written")
    path = folder / REPORT if path is None else Path(path)
    if path.is_file() and path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{path} exists and is no HTML file; name one such as {folder / REPORT}")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ConfigError(f"{path} cannot be written as a file; name one such as {folder / REPORT}")
    text = report_html(gather(read_images(images)), _summary(folder), regions=_regions(folder))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise DataError(f"{path} cannot be written ({problem.strerror}); choose another place") from problem
    return path


def report_html(
    results: Results, summary: Mapping[str, Any] | None = None, *, regions: list[list[str]] | None = None
) -> str:
    """Return the page of a result.

    Parameters
    ----------
    results
        Gathered images.
    summary
        What ``summary.json`` says; times, machine and its warnings are shown.
    regions
        A table of regions, its heading first.

    Raises
    ------
    DataError
        There is no map to show, or the spectra's images contradict each other.
    """
    summary = {key: value for key, value in (summary or {}).items() if key not in _PRIVATE}
    # some of the provenance is known only after the images have left
    late = summary.get("provenance", {})
    provenance = {key: value for key, value in late.items() if key != "texts"} | results.provenance
    parts = results.echoes or {"": results}
    if not any(part.maps for part in parts.values()):
        raise DataError("the result holds no quantified map; there is nothing to report")
    content = {
        "version": __version__,
        "heading": _heading(results, provenance),
        "warnings": list(dict.fromkeys([*results.warnings, *map(str, summary.get("warnings", ()))])),
        "views": [describe_view(part, name) for name, part in parts.items() if part.maps],
        "shown": results.shown,
        "provenance": provenance,
        "seconds": summary.get("seconds", {}),
        "machine": summary.get("machine", ""),
        "checklist": [asdict(row) for row in checklist(results, provenance)],
        "unknown": UNKNOWN,
        "citation": CITATION,
        "regions": regions or [],
    }
    program = "\n".join(_asset(name) for name in _SCRIPTS)
    program = f'(() => {{\n"use strict";\n{program}\n}})();\n'
    page = _asset("page.html")
    for mark, text in (
        ("{{HASH}}", base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()),
        ("{{STYLE}}", _asset("page.css")),
        ("{{PROGRAM}}", program),
        # last: nothing that comes from a header is searched for marks
        ("{{CONTENT}}", _embedded(content)),
    ):
        page = page.replace(mark, text, 1)
    return page


def _heading(results: Results, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a few facts for the head of the page."""
    acquired = provenance.get("acquisition", {})
    acquired = acquired if isinstance(acquired, Mapping) else {}
    nucleus = str(acquired.get("nucleus") or results.axis.get("nucleus", ""))
    matrix = " x ".join(str(n) for n in results.matrix if n > 1)
    facts = [nucleus, matrix]
    if acquired.get("field_strength_t"):
        facts.append(f"{acquired['field_strength_t']:.3g} T")
    if acquired.get("encoding"):
        facts.append(str(acquired["encoding"]))
    if acquired.get("repetition_time_s"):
        facts.append(f"TR {acquired['repetition_time_s'] * 1e3:.4g} ms")
    if acquired.get("echo_times_s"):
        facts.append(f"TE {', '.join(f'{t * 1e3:.3g}' for t in acquired['echo_times_s'])} ms")
    if provenance.get("recipe"):
        facts.append(f"recipe {provenance['recipe']}")
    return {"facts": [fact for fact in facts if fact]}


def _embedded(content: Mapping[str, Any]) -> str:
    """Return JSON that no HTML parser takes for anything else: `<`, `>` and `&` are written as escapes."""
    text = json.dumps(_plain(content), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:
    """Bring values to what JSON knows: NaN and infinity become null, unknown things their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DataError(f"{path} cannot be read ({problem}); run `mrsi replay` again, or remove the file") from problem
    return found if isinstance(found, dict) else {}


def _regions(folder: Path) -> list[list[str]]:
    path = folder / "regions.csv"
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path} cannot be read ({problem}); write it again, or remove the file") from problem


def _asset(name: str) -> str:
    return resources.files("mrsi_gadgets.output").joinpath("report_page", name).read_text(encoding="utf-8")
