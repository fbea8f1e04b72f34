"""The checklist MRSinMRS of what a spectroscopy report must say, filled in as far as a result knows.

Lin A, Andronesi O, Bogner W, et al. Minimum Reporting Standards for in vivo Magnetic Resonance Spectroscopy (MRSinMRS):
Experts' consensus recommendations. NMR Biomed 2021;34:e4484, doi:10.1002/nbm.4484.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.output.panels import direction_letters
from mrsi_gadgets.output.results import Results
from mrsi_gadgets.output.scaling import display_unit

UNKNOWN = "not in the header"
CITATION = "Lin et al., NMR in Biomedicine 2021, doi:10.1002/nbm.4484"


@dataclass(frozen=True)
class Row:
    """One line of the checklist."""

    group: str
    item: str
    value: str | None
    """None: neither header nor result say."""


def checklist(results: Results, provenance: Mapping[str, Any]) -> list[Row]:
    """Return the lines of the checklist; what nobody knows has no value.

    Parameters
    ----------
    results
        Gathered images.
    provenance
        What is known of how they came about: the header's facts are under ``acquisition``.
    """
    acquired = _mapping(provenance.get("acquisition"))
    return [
        *(Row("Hardware", item, value) for item, value in _hardware(acquired)),
        *(Row("Acquisition", item, value) for item, value in _acquisition(acquired, provenance, results)),
        *(Row("Analysis", item, value) for item, value in _analysis(provenance, results)),
        *(Row("Quality", item, value) for item, value in _quality(provenance, results)),
    ]


def _hardware(acquired: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    field, channels, nucleus = (acquired.get(n) for n in ("field_strength_t", "receiver_channels", "nucleus"))
    frequency = acquired.get("transmit_frequency_hz")
    at = f" ({nucleus} at {frequency * 1e-6:.4g} MHz)" if nucleus and frequency else ""
    return [
        ("Field strength", f"{field:.3g} T{at}" if field else (at.strip(" ()") or None)),
        ("Manufacturer", acquired.get("vendor")),
        ("Model, software version", acquired.get("model")),
        (
            "RF coils: nuclei, channels, type, body part",
            f"{channels} receive channels, {nucleus}" if channels else None,
        ),
        ("Additional hardware", None),
    ]


def _acquisition(
    acquired: Mapping[str, Any], provenance: Mapping[str, Any], results: Results
) -> list[tuple[str, str | None]]:
    encoding = acquired.get("encoding")
    echo = str(provenance.get("echo", ""))
    kind = "" if not echo else ("pulse-acquire" if echo.startswith("none") else echo)
    sequence = _joined([acquired.get("sequence_type"), kind, f"{encoding} encoding" if encoding else None])
    readouts, averages = provenance.get("readouts"), acquired.get("averages")
    count = _joined([f"{readouts} readouts of all kinds" if readouts else None, _number("averages", averages)])
    points, width = acquired.get("spectral_points"), acquired.get("spectral_width_hz")
    more = _joined([
        f"spectral width {width:.5g} Hz" if width else None,
        f"{points} points" if points else None,
        f"0 Hz at {acquired['reference_ppm']:g} ppm" if "reference_ppm" in acquired else None,
        f"flip angle {acquired['flip_angle_deg']:g} degrees" if "flip_angle_deg" in acquired else None,
        f"first sample {acquired['acquisition_delay_s'] * 1e3:.3g} ms after excitation or echo"
        if "acquisition_delay_s" in acquired else None,
        f"editing {acquired['editing']}" if acquired.get("editing", "none") != "none" else None,
    ])  # fmt: skip
    suppressed = {True: "suppressed", False: "not suppressed"}.get(acquired.get("water_suppressed"))  # type: ignore[arg-type]
    drift = _mapping(provenance.get("drift")).get("source")
    frames = len(results.mask)
    return [
        ("Pulse sequence", sequence),
        ("Location of the volume", _location(results)),
        ("Nominal voxel size", _voxel(results)),
        ("TR, TE", _times(acquired)),
        ("Excitations per spectrum", count),
        ("Time series", f"{frames} frames" if frames > 1 else "none: one frame"),
        ("Spectral width, points, offsets", more),
        ("MRSI: dimensions, field of view, matrix, acceleration, sampling", _sampling(acquired, provenance, results)),
        ("Water suppression", f"water {suppressed}; method {UNKNOWN}" if suppressed else None),
        ("Shimming", _shim(results)),
        ("Triggering, motion correction", None if drift in (None, "none") else f"frequency drift corrected ({drift})"),
    ]


def _analysis(provenance: Mapping[str, Any], results: Results) -> list[tuple[str, str | None]]:
    version, recipe = provenance.get("version"), provenance.get("recipe")
    chain = provenance.get("chain")
    units = {display_unit(name, results.maps[name].unit)[1] for name in results.shown if name in results.maps}
    nuisance = provenance.get("columns")
    molecules = [str(n) for n in nuisance if ":" not in str(n)] if isinstance(nuisance, Sequence) else []
    assumed = _joined([
        f"fit {provenance['quantification']}" if "quantification" in provenance else None,
        f"T1 weights: {provenance['t1_weights']}" if "t1_weights" in provenance else None,
        f"echo: {provenance['echo']}" if "echo" in provenance else None,
        f"basis: {', '.join(molecules)}" if molecules else None,
    ], "; ")  # fmt: skip
    return [
        ("Software", f"mrsi-gadgets {version}, recipe {recipe}" if version else None),
        ("Processing steps", " → ".join(str(step) for step in chain) if isinstance(chain, list) else None),
        ("Output measure", ", ".join(sorted(units)) or None),
        ("Quantification references and assumptions", assumed),
    ]


def _quality(provenance: Mapping[str, Any], results: Results) -> list[tuple[str, str | None]]:
    width, snr = _median(results, "linewidth"), _median(results, "snr")
    reported = _joined([
        f"median SNR {snr:.3g}" if snr is not None else None,
        f"median line width {width:.3g} Hz (strongest molecule)" if width is not None else None,
    ])  # fmt: skip
    fitted = sum(int(mask.sum()) for mask in results.mask.values()) // max(1, len(results.mask))
    misfit = _median(results, "residual")
    relative = [
        f"{name} {100 * spread:.1f} %" for name in results.shown if (spread := _relative_sd(results, name)) is not None
    ]
    measures = _joined([
        f"median residual over noise {misfit:.3g}" if misfit is not None else None,
        f"median relative SD: {', '.join(relative)}" if relative else None,
    ], "; ")  # fmt: skip
    flagged = _mapping(provenance.get("flagged_voxels")).get("any")
    excluded = _joined([
        f"{fitted} voxels of the mask were fitted" if fitted else None,
        f"{flagged} of them are flagged because the model does not describe them" if flagged is not None else None,
        f"quality mask: {provenance['quality']}" if provenance.get("quality") else None,
    ], "; ")  # fmt: skip
    spectra = "this page: click a voxel" if results.gathered or results.spectra else None
    return [
        ("SNR, line width", reported),
        ("Exclusion criteria", excluded),
        ("Quality of the fit", measures),
        ("Sample spectrum", spectra),
    ]


def _location(results: Results) -> str | None:
    if results.affine_ras is None:
        return None
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(results.affine_ras, float)
    centre = (lps @ np.append((np.array(results.matrix) - 1) / 2, 1.0))[:3] + 0.0
    normal = lps[:3, 2] / np.linalg.norm(lps[:3, 2])
    place = ", ".join(f"{c:.1f}" for c in centre)
    return f"centre of the grid at LPS ({place}) mm, slice direction {direction_letters(normal)}"


def _voxel(results: Results) -> str | None:
    if results.affine_ras is None:
        return None
    size = np.linalg.norm(np.asarray(results.affine_ras, float)[:3, :3], axis=0)
    return f"{size[0]:.3g} x {size[1]:.3g} x {size[2]:.3g} mm ({np.prod(size) * 1e-3:.3g} ml)"


def _times(acquired: Mapping[str, Any]) -> str | None:
    tr, te = acquired.get("repetition_time_s"), acquired.get("echo_times_s")
    parts = [f"TR {tr * 1e3:.5g} ms" if tr else f"TR {UNKNOWN}"]
    parts.append(f"TE {', '.join(f'{t * 1e3:.4g}' for t in te)} ms" if te else f"TE {UNKNOWN}")
    return ", ".join(parts) if tr or te else None


def _sampling(acquired: Mapping[str, Any], provenance: Mapping[str, Any], results: Results) -> str | None:
    matrix = acquired.get("matrix") or list(results.matrix)
    if len(matrix) != 3:
        return None
    fov = acquired.get("fov_mm")
    missing = provenance.get("readouts_missing")
    return _joined([
        "3D" if matrix[2] > 1 else "2D",
        f"matrix {' x '.join(str(n) for n in matrix)}",
        f"field of view {' x '.join(f'{f:.4g}' for f in fov)} mm" if fov else None,
        {None: None, 0: "fully sampled"}.get(missing, f"{missing} readouts of the grid not acquired"),
        f"k-space weighting {acquired['kspace_weighting']}" if acquired.get("kspace_weighting", "none") != "none"
        else None,
        f"{acquired['encoding']}" if "encoding" in acquired else None,
    ])  # fmt: skip


def _shim(results: Results) -> str | None:
    inside = [b0[results.mask[f]] for f, b0 in results.b0.items() if f in results.mask and results.mask[f].any()]
    if not inside:
        return None
    spread = float(np.nanstd(np.concatenate(inside)))
    return f"method {UNKNOWN}; the field over the fitted voxels has an SD of {spread:.3g} Hz"


def _relative_sd(results: Results, name: str) -> float | None:
    item = results.maps.get(name)
    if item is None or not item.sd_frames or not item.frames:
        return None
    frame = min(set(item.frames) & set(item.sd_frames), default=None)
    if frame is None:
        return None
    value, sd = item.frames[frame], item.sd_frames[frame]
    good = np.isfinite(value) & np.isfinite(sd) & (value > 0)
    return float(np.median(sd[good] / value[good])) if good.any() else None


def _median(results: Results, name: str) -> float | None:
    item = results.maps.get(name)
    if item is None or not item.frames:
        return None
    values = np.concatenate([np.ravel(frame) for frame in item.frames.values()])
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(what: str, value: Any) -> str | None:
    return None if value is None else f"{value} {what}"


def _joined(parts: Sequence[str | None], between: str = ", ") -> str | None:
    return between.join(part for part in parts if part) or None
