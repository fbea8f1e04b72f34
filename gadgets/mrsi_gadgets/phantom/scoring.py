"""How good are maps and FIDs: the project's measures, on plain arrays and the truth of a simulated scan.

Maps are compared as concentration in the voxel times one receive-shading field: a cubic polynomial g is fitted as
g * truth ~ estimate over tNAA, tCr, tCho, Ins and Glx together and divided out. Estimate and truth are then brought to
one common resolution, a Hamming window over the acquired k-space normalised within the brain mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.phantom.lesions import LESION_KINDS, UNKNOWN_PPM
from mrsi_gadgets.phantom.truth import Truth

_SHARED_HZ = 0.3
"""A frequency that FIDs and truth differ by in all voxels alike may be as large."""
_LESION_CORE, _LESION_FREE = 0.7, 0.02
_CONTRAST_THAT_COUNTS = 0.1
"""A lesion's contrast is scored where it is at least this part of the map's mean in the brain."""


@dataclass(frozen=True)
class MapScore:
    """Errors of one map over the brain mask."""

    nrmse: float
    """||estimate - truth|| / ||truth|| at the common resolution."""
    detail: float
    """||estimate - truth|| / ||truth - atlas||: 1 is no better than knowing the tissue fractions."""
    nrmse_unfiltered: float
    """Against the means over the voxels, without any filter."""
    detail_unfiltered: float
    bias: float
    """Mean of the estimate over mean of the truth, minus 1."""


@dataclass(frozen=True)
class LesionScore:
    """What became of one lesion in one map."""

    recovery: float
    """Contrast of the estimate over that of the truth; NaN where the truth has no contrast worth the name."""
    false_contrast: float
    """(Contrast of the estimate - contrast of the truth) / mean of the truth in the brain."""
    changed: bool
    """Whether the lesion changes a molecule of the map; else its contrast is that of the tissues that lie there."""


@dataclass(frozen=True, eq=False)
class Scores:
    """All measures of one result. What was not given is NaN or empty."""

    maps: Mapping[str, MapScore]
    lesions: Mapping[str, Mapping[str, LesionScore]]
    """Lesion -> map -> score."""
    shading: np.ndarray
    """(x, y, z): the fitted g."""
    unfitted: float
    """Part of the brain mask without a finite value in any of the maps (counted as zeros in the errors)."""
    fid_error: float = float("nan")
    """Relative l2 norm over brain voxels and times."""
    b0_rms_hz: float = float("nan")
    unknown_recovery: float = float("nan")
    """Contrast of the resonance that no model has seen, in the FIDs, over its truth."""
    notes: Mapping[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """Return the errors as lines of text."""
        lines = [f"{'map':6s} {'NRMSE':>7s} {'detail':>7s} {'unfilt.':>8s} {'detail':>7s} {'bias':>7s}"]
        for name, s in self.maps.items():
            lines.append(
                f"{name:6s} {s.nrmse:7.3f} {s.detail:7.3f} {s.nrmse_unfiltered:8.3f} {s.detail_unfiltered:7.3f} "
                f"{s.bias:+7.3f}"
            )
        for lesion, by_map in self.lesions.items():
            values = [f"{n} {s.recovery:.2f}" for n, s in by_map.items() if np.isfinite(s.recovery)]
            if values:
                lines.append(f"lesion {lesion}: recovery " + ", ".join(values))
            else:
                worst = max((abs(s.false_contrast) for s in by_map.values()), default=float("nan"))
                lines.append(f"lesion {lesion}: largest false contrast {worst:.3f} of the mean")
        for label, value in (("FID error", self.fid_error), ("B0 rms [Hz]", self.b0_rms_hz),
                             ("unseen resonance recovery", self.unknown_recovery)):  # fmt: skip
            if np.isfinite(value):
                lines.append(f"{label}: {value:.3f}")
        return "\n".join(lines)


def score(
    maps: Mapping[str, np.ndarray],
    truth: Truth,
    *,
    b0_hz: np.ndarray | None = None,
    fids: np.ndarray | None = None,
    fids_b0_hz: np.ndarray | None = None,
) -> Scores:
    """Compare a result with the truth.

    Parameters
    ----------
    maps : name -> (x, y, z) in any common unit; names the truth does not have are left out, tNAA, tCr, tCho, Ins, Glx
        carry the shading fit (all five are needed; for other nuclei what their reports show). NaN counts as zero.
    truth : of the simulated scan.
    b0_hz : estimated B0 map (x, y, z) [Hz], of the water reference.
    fids : reconstructed metabolite + macromolecule FIDs (x, y, z, t), nuisance removed.
    fids_b0_hz : B0 that was taken out of `fids` (drift since the water reference included); `b0_hz` where it is None.

    Raises
    ------
    DataError
        A map of the five is missing or a shape does not fit.
    """
    reported = tuple(truth.sums)
    missing = [name for name in reported if name not in maps]
    if missing:
        raise DataError(f"the maps {', '.join(missing)} are missing; scoring needs {', '.join(reported)}")
    grid = truth.brain_mask.shape
    for name, values in maps.items():
        if values.shape != grid:
            raise DataError(f"map {name} has shape {values.shape}; the truth has {grid}")
    finite = {name: np.nan_to_num(values, nan=0.0) for name, values in maps.items() if truth.knows(name)}
    mask = truth.brain_mask
    shading = fit_shading({n: finite[n] for n in reported}, {n: truth.content(n) for n in reported}, mask)
    even = {name: np.where(mask, values / shading, 0.0) for name, values in finite.items()}
    unfitted = float(np.mean(~np.all([np.isfinite(maps[n])[mask] for n in reported], axis=0)))
    taken_out = fids_b0_hz if fids_b0_hz is not None else b0_hz
    return Scores(
        maps={name: _score_map(values, truth, name) for name, values in even.items()},
        lesions=_score_lesions(even, truth),
        shading=shading,
        unfitted=unfitted,
        fid_error=fid_error(fids, truth, b0_hz=taken_out) if fids is not None else float("nan"),
        b0_rms_hz=b0_rms(b0_hz, truth) if b0_hz is not None else float("nan"),
        unknown_recovery=unknown_recovery(fids, truth, b0_hz=taken_out) if fids is not None else float("nan"),
    )


def fit_shading(estimates: Mapping[str, np.ndarray], truths: Mapping[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Cubic polynomial g over the grid with g * truth ~ estimate, each map weighted by its truth's norm."""
    terms = _polynomial(mask.shape)
    rows, values = [], []
    for name, truth in truths.items():
        scale = 1.0 / max(float(np.linalg.norm(truth[mask])), 1e-30)
        rows.append(terms[mask] * (truth[mask] * scale)[:, None])
        values.append(estimates[name][mask] * scale)
    solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=None)[0]
    shading = terms @ solution
    # Outside the mask the polynomial may cross zero; only its values in the mask are used.
    floor = 1e-3 * max(float(np.max(np.abs(shading[mask]))), 1e-30)
    return np.where(np.abs(shading) < floor, floor, shading)


def common_resolution(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Hamming window over the k-space of `values` (x, y, z), normalised within `mask`; 0 outside."""
    weight = _hamming(np.where(mask, 1.0, 0.0))
    return np.where(mask, _hamming(np.where(mask, values, 0.0)) / np.where(mask, weight, 1.0), 0.0)


def fid_error(fids: np.ndarray, truth: Truth, *, b0_hz: np.ndarray | None = None) -> float:
    """Relative l2 error of FIDs over brain voxels and times, after one cubic receive shading.

    `b0_hz` is the B0 that was taken out of `fids` where it is not the true one; the truth is brought to the same, up to
    one frequency that all voxels share (a slope of the eddy-current phase is as well called a field).
    """
    estimate, wanted = _comparable_fids(fids, truth, b0_hz)
    return float(np.linalg.norm(estimate - wanted) / np.linalg.norm(wanted))


def b0_rms(b0_hz: np.ndarray, truth: Truth) -> float:
    """Root mean square error of a B0 map over the brain mask [Hz]; missing values count as zero."""
    difference = np.nan_to_num(b0_hz, nan=0.0) - truth.b0_hz
    return float(np.sqrt(np.mean(difference[truth.brain_mask] ** 2)))


def unknown_recovery(fids: np.ndarray, truth: Truth, *, b0_hz: np.ndarray | None = None) -> float:
    """Contrast of the unseen resonance in FIDs over its truth; NaN where no voxel is filled by the lesion.

    Only 1H has it. The contrast is the mean FID of the lesion minus that of lesion-free brain, at the frequency of the
    resonance under a 20 s^-1 filter.
    """
    estimate, wanted = _comparable_fids(fids, truth, b0_hz)
    core, free = (region[truth.brain_mask] for region in _regions(truth, "unseen"))
    if not core.any() or not free.any() or truth.preset.nucleus != "1H":
        return float("nan")
    protocol = truth.protocol
    probe = np.exp((-2j * np.pi * protocol.hz(UNKNOWN_PPM) - 20.0) * protocol.times_s)
    contrasts = [np.sum((f[core].mean(axis=0) - f[free].mean(axis=0)) * probe) for f in (estimate, wanted)]
    return float((contrasts[0] * np.conj(contrasts[1])).real / np.abs(contrasts[1]) ** 2)


def _comparable_fids(fids: np.ndarray, truth: Truth, b0_hz: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """FIDs of the brain voxels (voxel, t): estimate without shading, and truth under the same B0 correction."""
    if fids.shape != truth.fids.shape:
        raise DataError(f"the FIDs have shape {fids.shape}; the truth has {truth.fids.shape}")
    mask = truth.brain_mask
    wanted = truth.fids[mask].astype(np.complex128)
    if b0_hz is not None:
        times = truth.protocol.times_s
        left = truth.b0_hz + truth.preset.drift_between_scans_hz - np.nan_to_num(b0_hz)
        wanted = wanted * np.exp(2j * np.pi * np.outer(left[mask], times))
    estimate = np.nan_to_num(fids[mask]).astype(np.complex128)
    terms = _polynomial(mask.shape)[mask]
    # The polynomial is real: phase errors count. Each voxel's products are summed over time first.
    energy = np.sum(np.abs(wanted) ** 2, axis=1)
    wanted = wanted * np.exp(
        2j * np.pi * _shared_shift(estimate, wanted, truth.protocol.times_s) * truth.protocol.times_s
    )
    match = np.sum((estimate * np.conj(wanted)).real, axis=1)
    solution = np.linalg.solve(terms.T @ (terms * energy[:, None]), terms.T @ match)
    return estimate / (terms @ solution)[:, None], wanted


def _shared_shift(estimate: np.ndarray, wanted: np.ndarray, times_s: np.ndarray) -> float:
    """Return the frequency [Hz] that lies between FIDs (voxel, t) and the truth in all voxels alike."""
    product = np.sum(estimate * np.conj(wanted), axis=0)
    shifts = np.linspace(-_SHARED_HZ, _SHARED_HZ, 61)
    real = (np.exp(-2j * np.pi * np.outer(shifts, times_s)) @ product).real
    return float(shifts[np.argmax(real)])


def _score_map(even: np.ndarray, truth: Truth, name: str) -> MapScore:
    mask = truth.brain_mask
    resolved, voxel = truth.content(name), truth.content(name, voxel_mean=True)
    wanted = common_resolution(resolved, mask)
    tissues = [common_resolution(f, mask) for f in truth.fractions_resolved]
    error = (common_resolution(even, mask) - wanted)[mask]
    plain = (even - voxel)[mask]
    return MapScore(
        nrmse=_ratio(error, wanted[mask]),
        detail=_ratio(error, _off_atlas(wanted, tissues, mask)),
        nrmse_unfiltered=_ratio(plain, voxel[mask]),
        detail_unfiltered=_ratio(plain, _off_atlas(voxel, list(truth.fractions[:3]), mask)),
        bias=float(even[mask].sum() / max(float(resolved[mask].sum()), 1e-30) - 1.0),
    )


def _score_lesions(even: Mapping[str, np.ndarray], truth: Truth) -> dict[str, dict[str, LesionScore]]:
    mask = truth.brain_mask
    result: dict[str, dict[str, LesionScore]] = {}
    for lesion in truth.lesions:
        core, free = _regions(truth, lesion)
        if not core.any() or not free.any() or truth.preset.nucleus != "1H":
            continue
        result[lesion] = {}
        for name, values in even.items():
            wanted = common_resolution(truth.content(name), mask)
            seen = common_resolution(values, mask)
            true_contrast = float(wanted[core].mean() - wanted[free].mean())
            contrast = float(seen[core].mean() - seen[free].mean())
            mean = max(float(wanted[mask].mean()), 1e-30)
            counts = abs(true_contrast) > _CONTRAST_THAT_COUNTS * mean and not _untouched(truth, lesion)
            result[lesion][name] = LesionScore(
                recovery=contrast / true_contrast if counts else float("nan"),
                false_contrast=(contrast - true_contrast) / mean,
                changed=_changes(truth, lesion, name),
            )
    return result


def _changes(truth: Truth, lesion: str, name: str) -> bool:
    """Whether a lesion changes any of the molecules of a map."""
    members = truth.sums.get(name, (name,))
    return any(m in {**kind.factors, **kind.added_mm} for kind in LESION_KINDS if kind.name == lesion for m in members)


def _untouched(truth: Truth, lesion: str) -> bool:
    """Whether a lesion changes no molecule: what contrast there is then comes from tissue."""
    return any(kind.name == lesion and not kind.factors and not kind.added_mm for kind in LESION_KINDS)


def _regions(truth: Truth, lesion: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels filled by a lesion, and voxels of the brain free of any."""
    core = truth.brain_mask & (truth.lesions[lesion] > _LESION_CORE)
    return core, truth.brain_mask & (truth.lesion_total < _LESION_FREE)


def _off_atlas(wanted: np.ndarray, tissues: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return what a regression on the tissue fractions cannot explain of `wanted`, within the mask."""
    design = np.stack([tissue[mask] for tissue in tissues], axis=1)
    return np.asarray(wanted[mask] - design @ np.linalg.lstsq(design, wanted[mask], rcond=None)[0])


def _ratio(error: np.ndarray, reference: np.ndarray) -> float:
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(error)) / norm if norm > 0 else float("nan")


def _hamming(values: np.ndarray) -> np.ndarray:
    """Multiply the k-space of a real map by 0.54 + 0.46 cos(2 pi k / n) along each axis longer than 1."""
    k = np.fft.fftn(values)
    for axis, n in enumerate(values.shape):
        if n > 1:
            window = 0.54 + 0.46 * np.cos(2.0 * np.pi * np.fft.fftfreq(n))
            k = k * window.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(np.fft.ifftn(k).real)


def _polynomial(grid: tuple[int, ...]) -> np.ndarray:
    """Monomials of degree 0 to 3 along the axes longer than 1, (x, y, z, term), coordinates from -1 to 1."""
    axes = [np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1) for n in grid]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    powers = [p for p in product(range(4), repeat=3) if sum(p) <= 3 and all(p[a] == 0 or grid[a] > 1 for a in range(3))]
    return np.stack([np.prod(x ** np.array(p), axis=-1) for p in powers], axis=-1)
