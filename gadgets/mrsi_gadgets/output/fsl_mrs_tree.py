"""The result as the folder that `fsl_mrsi` writes and FSLeyes' MRS plugin loads ("Load MRSI fit").

Names and units are those that FSL-MRS's own script writes (``fsl_mrs/scripts/fsl_mrsi.py`` and
``fsl_mrs/utils/results.py`` in https://github.com/wtclarke/fsl_mrs) and the plugin's file tree asks for
(fsleyes-plugin-mrs 0.1.13, ``default_mrsi.tree``)::

    fsl_mrs/
    ├── concs/raw, internal, molarity, molality/METAB.nii.gz
    ├── uncertainties/METAB_sd.nii.gz      percent of the value, at most 999
    ├── qc/METAB_snr.nii.gz, METAB_fwhm.nii.gz
    ├── nuisance/p0, p1, shift_group0, combined_lw_group0.nii.gz
    ├── fit/fit, baseline, residual.nii.gz NIfTI-MRS
    ├── misc/metabolite_groups.json, mrs_fit_parameters.json
    └── options.txt

As there, voxels outside of the mask are zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.fitted import FittedSpectra
from mrsi_gadgets.output.nifti import write_nifti
from mrsi_gadgets.output.nifti_mrs import acquisition_of, on_grid, write_nifti_mrs
from mrsi_gadgets.output.results import ResultMap, Results
from mrsi_gadgets.quantification.absolute import TISSUE_WATER
from mrsi_gadgets.quantification.assembly import AMOUNT

FSL_FOLDER = "fsl_mrs"
"""Name of the folder within a result."""
_MOST_PERCENT = 999.0


def write_fsl_mrs(folder: Path, results: Results, *, frame: int = 0) -> int:
    """Write the tree of one frame into `folder`, which must not exist; return how many metabolites it has.

    Raises
    ------
    DataError
        The spectra of all voxels did not come with the maps, or the frame has none.
    """
    fitted, acquisition, affine = results.fitted(frame), acquisition_of(results), results.affine_ras
    if fitted is None or acquisition is None or affine is None:
        raise DataError(
            f"this result has no spectra of all voxels of frame {frame}, which FSL-MRS's folder holds; run the scan "
            "again with --spectra all"
        )
    names = _metabolites(results, frame)
    if not names:
        raise DataError(f"this result has no map of an amount in frame {frame}; run the scan again")
    folder.mkdir()
    writer = _Writer(folder, affine, results, frame)
    for name in names:
        writer.map(f"concs/raw/{name}", results.maps[name])
        writer.map(f"concs/internal/{name}", results.maps.get(f"{name}_per_tCr"), one=name == "tCr")
        writer.map(f"concs/molarity/{name}", results.maps.get(f"{name}_mM"))
        writer.values(f"concs/molality/{name}", _molality(results, name, frame), "mmol/kg")
        writer.values(f"uncertainties/{name}_sd", _percent(results.maps[name], frame), "percent")
    _write_quality(writer, fitted, names, results.axis, results, frame)
    radians, hertz = results.maps.get("phase"), results.maps.get("shift")
    if radians is not None and frame in radians.frames:
        writer.map("nuisance/p0", radians)
        writer.values("nuisance/p1", np.zeros(results.matrix), "s")
    if hertz is not None and frame in hertz.frames:
        shift = hertz.frames[frame] / (acquisition.transmit_frequency_hz * 1e-6)
        writer.values("nuisance/shift_group0", shift, "ppm")
    writer.map("nuisance/combined_lw_group0", results.maps.get("linewidth"))
    (folder / "fit").mkdir()
    parts = {"fit": fitted.fit, "baseline": fitted.nuisance, "residual": fitted.data - fitted.fit}
    for name, fids in parts.items():
        on_disk = on_grid(results.matrix, fitted.voxels, fids)
        write_nifti_mrs(folder / "fit" / f"{name}.nii.gz", on_disk, affine, acquisition)
    _write_misc(folder, names, results.provenance)
    return len(names)


class _Writer:
    """Writes maps of one frame with zeros outside of the mask."""

    def __init__(self, folder: Path, affine: np.ndarray, results: Results, frame: int) -> None:
        self._folder, self._affine, self._frame = folder, affine, frame
        self._mask = results.mask.get(frame, np.ones(results.matrix, bool))

    def map(self, path: str, item: ResultMap | None, *, one: bool = False) -> None:
        """Write a map where it is there; `one`: ones where it is not (a reference relative to itself)."""
        if item is not None and self._frame in item.frames:
            self.values(path, item.frames[self._frame], item.unit)
        elif one:
            self.values(path, np.ones(self._mask.shape), "1")

    def values(self, path: str, values: np.ndarray | None, unit: str) -> None:
        if values is None:
            return
        target = self._folder / f"{path}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shown = np.where(self._mask & np.isfinite(values), values, 0.0)
        write_nifti(target, shown, self._affine, description=f"{path} [{unit}]")


def _metabolites(results: Results, frame: int) -> list[str]:
    """Return the maps of amounts, sums first, that have a deviation."""
    return [
        name for name, item in results.maps.items()
        if item.unit == AMOUNT and frame in item.frames and frame in item.sd_frames
    ]  # fmt: skip


def _molality(results: Results, name: str, frame: int) -> np.ndarray | None:
    """Return mmol per kg of tissue water: as it came, or from mM and the water of tissue."""
    given, molar = results.maps.get(f"{name}_molal"), results.maps.get(f"{name}_mM")
    if given is not None and frame in given.frames:
        return given.frames[frame]
    water = results.maps.get(TISSUE_WATER)
    if molar is None or water is None or frame not in molar.frames or frame not in water.frames:
        return None
    litre = water.frames[frame]
    return np.divide(molar.frames[frame], litre, out=np.full(litre.shape, np.nan, np.float32), where=litre > 0)


def _percent(item: ResultMap, frame: int) -> np.ndarray:
    value, sd = item.frames[frame].astype(float), item.sd_frames[frame].astype(float)
    share = np.divide(100.0 * sd, value, out=np.full(value.shape, _MOST_PERCENT), where=value > 0)
    return np.where(np.isfinite(value), np.minimum(np.nan_to_num(share, nan=_MOST_PERCENT), _MOST_PERCENT), np.nan)


def _write_quality(
    writer: _Writer, fitted: FittedSpectra, names: list[str], axis: Mapping[str, Any], results: Results, frame: int
) -> None:
    """Write each amount over its deviation, and the width of each molecule's highest line.

    The residual of a denoised spectrum is no measure of noise, so the SNR is not that of a peak over it. The width is
    that at half the height of the fitted line, its neighbours of the same molecule included.
    """
    for name in names:
        item = results.maps[name]
        value, sd = item.frames[frame], item.sd_frames[frame]
        snr = np.divide(value, sd, out=np.zeros_like(value), where=np.nan_to_num(sd) > 0)
        writer.values(f"qc/{name}_snr", snr, "value over SD")
        if name in fitted.molecules:
            grid = np.zeros(results.matrix)
            grid[tuple(fitted.voxels.T)] = _widths(fitted.component(name), axis["dwell_s"], axis["acquisition_delay_s"])
            writer.values(f"qc/{name}_fwhm", grid, "Hz")


def _widths(fids: np.ndarray, dwell_s: float, delay_s: float) -> np.ndarray:
    """Full width at half maximum of the highest line of spectra (voxel, f) [Hz]; 0 where there is none.

    What the lines turned before the first sample is taken back, so that they are in phase.
    """
    points = 8 * fids.shape[1]
    back = np.exp(-2j * np.pi * np.fft.fftfreq(points, dwell_s) * delay_s)
    spectra = (np.fft.fft(fids, points, axis=1) * back).real
    step, found = 1.0 / (points * dwell_s), np.zeros(len(fids))
    for i, spectrum in enumerate(spectra):
        top = int(np.argmax(spectrum))
        if spectrum[top] <= 0:
            continue
        around = np.roll(spectrum, points // 2 - top) / spectrum[top]
        below = np.flatnonzero(around < 0.5)
        right, left = below[below > points // 2], below[below < points // 2]
        if right.size and left.size:
            first, last = int(right[0]), int(left[-1])
            upper = first - (0.5 - around[first]) / (around[first - 1] - around[first])
            lower = last + (0.5 - around[last]) / (around[last + 1] - around[last])
            found[i] = (upper - lower) * step
    return found


def _write_misc(folder: Path, names: list[str], provenance: Mapping[str, Any]) -> None:
    (folder / "misc").mkdir()
    parameters = {
        "parameters": [*names, "shift", "linewidth", "phase"],
        "parameters_inc_comb": [*names, "shift", "linewidth", "phase"],
        "metabolites": names,
        "metabolites_inc_comb": names,
    }
    for name, content in {"metabolite_groups": {"0": names}, "mrs_fit_parameters": parameters}.items():
        (folder / "misc" / f"{name}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    chain = "\n".join(str(step) for step in provenance.get("chain", ()))
    (folder / "options.txt").write_text(f"mrsi-gadgets {__version__}, not fsl_mrsi\n{chain}\n", encoding="utf-8")
