"""What a report's page is made of, as numbers small enough to be embedded: maps, spectra and their fits.

Arrays become base64 of few bits: maps float16 times one scale each, signals integers of 16 bits with a scale per row.
FIDs of many voxels have few independent patterns, so they are stored as weights times patterns where that is smaller.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrsi_gadgets.fitted import FittedSpectra
from mrsi_gadgets.output import panels
from mrsi_gadgets.output.results import ResultMap, Results, Spectrum
from mrsi_gadgets.output.scaling import base_name, display_unit, is_unknown, map_title

Packed = dict[str, Any]
_SIGNED_UNITS = ("Hz", "rad")
_LARGEST_HALF = 60000.0
_PATTERN_ERROR = 1e-3
"""Part of a typical FID's norm that patterns may miss: a tenth of what a line on a screen is wide."""
_WORTH_IT = 0.7
"""Patterns are used where there are fewer of them than this share of the samples."""
_FINE_BYTES = 48 << 20
"""Signals larger than this together, and without patterns, are stored with 8 bits."""
_DIAGNOSTIC = {
    "B0", "water", "residual", "snr", "noise", "lipids", "linewidth", "shift", "phase", "quality", "fit_quality",
    "fit_flag", "outside_model", "model_score",
}  # fmt: skip
"""Maps that tell of quality themselves: a quality mask does not hide them."""
WHOLE = ("water",)
"""Maps that mean something outside of the fitted voxels too."""


def pack(values: np.ndarray) -> Packed:
    """Return an array as JSON can hold it: type, shape, little-endian bytes in base64."""
    values = np.ascontiguousarray(values)
    text = base64.b64encode(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()).decode()
    return {"type": values.dtype.kind + str(values.dtype.itemsize), "shape": list(values.shape), "data": text}


def pack_half(values: np.ndarray) -> Packed:
    """Return real values as float16 and one scale; NaN stays, infinity becomes NaN."""
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    top = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    scale = top / _LARGEST_HALF if top > 0 else 1.0
    return pack((values / scale).astype(np.float16)) | {"scale": scale}


def pack_rows(values: np.ndarray, *, bits: int = 16) -> Packed:
    """Return complex rows (row, n) as integers (row, n, 2), each row with its own scale."""
    parts = np.stack([values.real, values.imag], axis=-1).astype(np.float64)
    most = 2 ** (bits - 1) - 1
    scales = np.max(np.abs(parts), axis=(1, 2), initial=0.0) / most
    scales[scales == 0] = 1.0
    whole = np.rint(parts / scales[:, None, None]).astype(np.int16 if bits == 16 else np.int8)
    return pack(whole) | {"scales": pack(scales.astype(np.float32))}


def pack_signals(values: np.ndarray, *, bits: int = 16) -> Packed:
    """Return FIDs (voxel, t) as rows of so many bits, or as weights times patterns where these are few."""
    norms = np.linalg.norm(values, axis=1)
    some = norms > 0
    if not some.any():
        return {"rows": pack_rows(values, bits=bits)}
    even = (values[some] / norms[some, None]).astype(np.complex128)
    energy, vectors = np.linalg.eigh(even.conj().T @ even)
    missed = np.cumsum(np.maximum(energy, 0.0))
    rank = int(np.count_nonzero(missed > _PATTERN_ERROR**2 * some.sum()))
    if rank >= _WORTH_IT * values.shape[1] or rank >= len(values):
        return {"rows": pack_rows(values, bits=bits)}
    patterns = vectors[:, values.shape[1] - rank :].T.conj()
    weights = values @ patterns.conj().T
    return {"rows": pack_rows(weights), "patterns": pack_rows(patterns)}


def pack_spectra(fitted: FittedSpectra, matrix: Sequence[int]) -> dict[str, Any]:
    """Return the spectra of all voxels with the parts of their fits."""
    bits = 16 if 3 * fitted.data.size * 4 <= _FINE_BYTES else 8
    amplitudes = fitted.amplitudes
    packed = {
        "voxels": pack(flat_index(fitted.voxels, matrix)),
        "data": pack_signals(fitted.data, bits=bits),
        "nuisance": pack_signals(fitted.nuisance, bits=bits),
        "lineshape": pack_signals(fitted.lineshape),
        "names": list(fitted.names),
        "molecules": list(fitted.molecules),
        "columns": pack_rows(fitted.columns),
        "amplitudes": pack(np.stack([amplitudes.real, amplitudes.imag], axis=-1).astype(np.float32)),
    }
    if fitted.exponents is not None:
        exponents = fitted.exponents
        packed["exponents"] = pack(np.stack([exponents.real, exponents.imag], axis=-1).astype(np.float32))
    if fitted.basis is not None:
        packed["basis"] = pack_rows(fitted.basis)
    return packed


def pack_examples(spectra: Sequence[Spectrum], matrix: Sequence[int]) -> dict[str, Any]:
    """Return a few voxels' spectra, of whose fits only sums are known."""
    return {
        "voxels": pack(flat_index(np.array([s.voxel for s in spectra]), matrix)),
        "data": {"rows": pack_rows(np.stack([s.data for s in spectra]))},
        "fit": {"rows": pack_rows(np.stack([s.fit for s in spectra]))},
        "nuisance": {"rows": pack_rows(np.stack([s.nuisance for s in spectra]))},
    }


def flat_index(voxels: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Return the place of voxels (voxel, 3) in C order, int32."""
    return np.ravel_multi_index(np.asarray(voxels).T, tuple(matrix)).astype(np.int32)


def describe_view(results: Results, name: str = "") -> dict[str, Any]:
    """Return everything of one echo time (or of a scan that has one).

    Parameters
    ----------
    results
        Gathered images with at least one map.
    name
        Name of the echo time, such as ``te35ms``; empty where there is one.
    """
    matrix = tuple(int(n) for n in results.matrix)
    frames = sorted(set(results.mask).union(*(item.frames for item in results.maps.values())))
    mask = np.zeros(matrix, dtype=bool)
    for frame in frames:
        known = results.mask.get(frame)
        mask |= known if known is not None else _anywhere(results, frame)
    inside = np.flatnonzero(mask)
    view: dict[str, Any] = {
        "name": name,
        "matrix": list(matrix),
        "frames": frames,
        "voxels": pack(inside.astype(np.int32)),
        "screen": _screen(results.affine_ras, matrix),
        "affine": np.asarray(results.affine_ras, float).tolist(),
        "maps": [_describe_map(item, frames, inside, mask) for item in _ordered(results)],
        "axis": dict(results.axis),
        "spectra": {},
        "quality": _quality(results),
        "slice": panels.busiest_slice(mask),
        "first": _first_voxel(mask),
    }
    if results.b0:
        b0 = ResultMap("B0", "Hz", {frame: results.b0[frame] for frame in frames if frame in results.b0})
        view["maps"].append(_describe_map(b0, frames, inside, mask))
    for frame in frames:
        fitted = results.fitted(frame)
        if fitted is not None:
            view["spectra"][str(frame)] = pack_spectra(fitted, matrix)
    if not view["spectra"] and results.spectra:
        view["examples"] = pack_examples(results.spectra, matrix)
        view["first"] = int(flat_index(np.array([results.spectra[0].voxel]), matrix)[0])
        view["slice"] = int(results.spectra[0].voxel[2])
    if view["axis"]:
        view["axis"]["shown_ppm"] = list(panels._PPM_RANGE_1H) if view["axis"]["nucleus"] == "1H" else None
        view["axis"]["height_ppm"] = list(panels._METABOLITES_1H) if view["axis"]["nucleus"] == "1H" else None
    return view


def _quality(results: Results) -> dict[str, Any] | None:
    """Return what of the codes of the map `quality` hides a voxel, and the limit of a map's own deviations."""
    told = results.provenance.get("quality_mask")
    if not isinstance(told, Mapping) or "quality" not in results.maps:
        return None
    rule = str(results.provenance.get("quality", ""))
    return {"codes": int(told["codes_that_hide"]), "relative_sd": float(told["relative_sd"]), "rule": rule}


def _anywhere(results: Results, frame: int) -> np.ndarray:
    found = [np.isfinite(item.frames[frame]) for name, item in results.maps.items()
             if frame in item.frames and name not in WHOLE]  # fmt: skip
    return np.any(found, axis=0) if found else np.zeros(results.matrix, dtype=bool)


def _first_voxel(mask: np.ndarray) -> int:
    """Return the voxel of the busiest slice that is nearest to its centre."""
    index = panels.busiest_slice(mask)
    inside = np.argwhere(mask[:, :, index])
    if not len(inside):
        return 0
    x, y = inside[np.argmin(np.sum((inside - inside.mean(axis=0)) ** 2, axis=1))]
    return int(np.ravel_multi_index((x, y, index), mask.shape))


def _screen(affine_ras: np.ndarray | None, matrix: tuple[int, ...]) -> dict[str, Any]:
    """Return which voxel each pixel of the first slice shows, as a radiologist looks at it, and the edges' letters.

    Slice k shows the voxels whose place is greater by k.
    """
    places = np.arange(int(np.prod(matrix)), dtype=np.int32).reshape(matrix)
    picture = panels.radiological_slice(places, np.eye(4) if affine_ras is None else affine_ras, 0)
    letters = [picture.left, picture.right, picture.top, picture.bottom]
    return {"index": pack(np.ascontiguousarray(picture.values)), "aspect": picture.aspect, "letters": letters}


def _ordered(results: Results) -> list[ResultMap]:
    """Return the maps, those that the console shows first."""
    shown = [name for name in results.shown if name in results.maps]
    return [results.maps[name] for name in (*shown, *(n for n in results.maps if n not in shown))]


def _describe_map(item: ResultMap, frames: Sequence[int], inside: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    factor, unit = display_unit(item.name, item.unit)
    base = base_name(item.name)
    per = item.name.removeprefix(base).removeprefix("_per").removeprefix("_")
    whole = item.name in WHOLE or item.name == "B0"

    def values(of: Mapping[int, np.ndarray]) -> np.ndarray:
        every = np.full((len(frames), mask.size), np.nan)
        for i, frame in enumerate(frames):
            if frame in of:
                every[i] = np.asarray(of[frame], float).ravel() * factor
        return every if whole else every[:, inside]

    value = values(item.frames)
    fitted = value[:, inside] if whole else value
    return {
        "name": item.name,
        "title": map_title(base),
        "base": base,
        "per": per,
        "unit": unit,
        "note": item.unit.partition(" (")[2].removesuffix(")"),
        "whole": whole,
        "judged": base not in _DIAGNOSTIC,
        "exact": item.exact,
        "unknown": is_unknown(item.name),
        "value": pack_half(value),
        "window": _window(fitted, unit),
        "sd": pack_half(values(item.sd_frames)) if item.sd_frames else None,
        "crlb": pack_half(values(item.crlb_frames)) if item.crlb_frames else None,
    }


def _window(values: np.ndarray, unit: str) -> list[float]:
    """Return the ends of the colours: from zero, or about zero for quantities of both signs."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [0.0, 1.0]
    if unit in _SIGNED_UNITS and float(finite.min()) < 0:
        top = panels.nice_top(np.abs(finite), 0.98)
        return [-top, top]
    if float(finite.min()) > 0.5 * float(finite.max()):  # such as pH: far from zero
        low, high = (float(q) for q in np.quantile(finite, [0.02, 0.98]))
        return [low, high] if high > low else [low - 0.5, low + 0.5]
    return [0.0, panels.nice_top(finite, 0.99)]
