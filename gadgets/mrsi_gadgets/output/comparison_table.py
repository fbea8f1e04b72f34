"""Several methods on one data set, and the table of them as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.output.results import Spectrum

COLUMNS = (
    ("reconstruct_s", "recon s", ".2f"), ("fit_s", "fit s", ".2f"), ("rank", "rank", ".4g"),
    ("peak_snr", "peak SNR", ".1f"), ("residual_energy", "residual", ".3f"), ("strongest_line", "line", ".2f"),
    ("outside_model", "outside", ".3f"), ("fid_error", "FID error", ".3f"), ("unknown_recovery", "unseen", ".2f"),
)  # fmt: skip
"""Numbers of every method: key in the CSV, head in the text, form. What no method has is not shown."""
_HELP = {
    "peak_snr": "peak SNR   median over the mask of the strongest line's height over the noise that the method states",
    "residual_energy": "residual   energy of data less result in the metabolites' band over the noise: 1 is white, "
    "less kept noise, more lost signal (Fourier leaves nothing)",
    "strongest_line": "line       largest matched-filter line in that residual, in SD of the noise; white noise has "
    "{white_line:.2f}",
    "outside_model": "outside    share of the voxels that a trained model does not know, left to the result without it",
    "fid_error": "FID error  relative l2 error of the brain's FIDs at the acquired resolution",
    "unknown_recovery": "unseen     contrast of the brain's own resonance that no model has seen, in the FIDs, over "
    "its truth",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class MethodResult:
    """What one method made of the data."""

    title: str
    numbers: Mapping[str, float]
    """Key -> value; keys are those of `COLUMNS`, MAP_nrmse, MAP_detail, MAP_bias, lesion_LESION_MAP and
    self_test_KIND; NaN where there is none."""
    maps: Mapping[str, np.ndarray]
    """Name -> (x, y, z) in the unit of the comparison."""
    fid: np.ndarray
    """complex (t,) of the voxel that is drawn."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several methods on one data set."""

    title: str
    """What was measured."""
    methods: Mapping[str, MethodResult]
    left_out: Mapping[str, str]
    """Method -> why it was not run."""
    notes: Sequence[str]
    units: Mapping[str, str]
    """Map -> unit, in the order of the rows."""
    sums: Sequence[str]
    """Maps that are scored where the truth is known."""
    mask: np.ndarray
    """(x, y, z) bool: voxels that are counted and drawn."""
    affine_ras: np.ndarray
    """Voxel index to RAS mm."""
    example: Spectrum
    """The voxel that is drawn: `data` is its least-squares FID, `fit` that of the truth (zeros: not known)."""
    white_line: float
    """`strongest_line` of white noise."""
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Map -> (x, y, z) in its unit; empty where it is not known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def table(comparison: Comparison) -> str:
    """Return the comparison as aligned text: what all methods have, errors of the maps, lesions, explanations."""
    methods = comparison.methods
    shown = [column for column in COLUMNS if known(methods, column[0])]
    head = ["method", *(label for _, label, _ in shown)]
    rows = [[m.title, *(number_text(m.numbers.get(key), form) for key, _, form in shown)] for m in methods.values()]
    blocks = [comparison.title, _aligned(head, rows)]
    blocks.append("\n".join(_HELP[k].format(white_line=comparison.white_line) for k, _, _ in shown if k in _HELP))
    if comparison.truth:
        rows = [[m.title, *(errors_text(m, name) for name in comparison.sums)] for m in methods.values()]
        told = "NRMSE / detail error of the maps at common resolution (detail 1: no better than a tissue atlas)"
        blocks.append(told + "\n" + _aligned(["method", *comparison.sums], rows))
    for prefix, told in (
        ("lesion_", "contrast recovery of the brain's own lesions in the maps that they change"),
        ("self_test_", "contrast recovery of signals that were put into the data, in the FIDs (0.8 to 1.2 is good)"),
    ):
        keys = [key for key in _all_keys(methods) if key.startswith(prefix) and known(methods, key)]
        if keys:
            names = [key.removeprefix(prefix).replace("_", " ") for key in keys]
            rows = [[m.title, *(number_text(m.numbers.get(key), ".2f") for key in keys)] for m in methods.values()]
            blocks.append(told + "\n" + _aligned(["method", *names], rows))
    lines = [f"{name} was left out: {reason}" for name, reason in comparison.left_out.items()]
    lines += list(comparison.notes)
    if lines:
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with the first column to the left and numbers to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def known(methods: Mapping[str, MethodResult], key: str) -> bool:
    """Tell whether any method has a number."""
    return any(math.isfinite(m.numbers.get(key, math.nan)) for m in methods.values())


def _all_keys(methods: Mapping[str, MethodResult]) -> list[str]:
    return list(dict.fromkeys(key for m in methods.values() for key in m.numbers))


def number_text(value: float | None, form: str) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"


def errors_text(method: MethodResult, name: str) -> str:
    """Return NRMSE and detail error of a map as text."""
    nrmse, detail = (method.numbers.get(f"{name}_{key}", math.nan) for key in ("nrmse", "detail"))
    return f"{number_text(nrmse, '.3f')} / {number_text(detail, '.2f')}"


def as_csv(comparison: Comparison) -> str:
    """Return one row per method with every number; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = _all_keys(comparison.methods)
    writer.writerow(["method", *keys])
    for name, method in comparison.methods.items():
        values = (method.numbers.get(key, math.nan) for key in keys)
        writer.writerow([name, *(f"{v:.6g}" if math.isfinite(v) else "" for v in values)])
    return out.getvalue()


def as_json(comparison: Comparison) -> str:
    """Return every number, what was left out, notes and provenance; null where there is none."""
    content = {
        "written_by": f"mrsi-gadgets {__version__}",
        "title": comparison.title,
        "methods": {
            name: {"title": m.title, "numbers": m.numbers, "provenance": m.provenance}
            for name, m in comparison.methods.items()
        },
        "left_out": comparison.left_out,
        "notes": list(comparison.notes),
        "voxels": int(comparison.mask.sum()),
        "voxel_of_the_spectrum": comparison.example.voxel,
        "strongest_line_of_white_noise": comparison.white_line,
        "units": comparison.units,
        "truth": bool(comparison.truth),
        "provenance": comparison.provenance,
    }
    return json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Bring values to what JSON knows: NaN and infinity become null, unknown things their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
