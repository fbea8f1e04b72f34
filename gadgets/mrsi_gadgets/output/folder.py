"""The result folder: NIfTI maps, the console's images, a contact sheet and a summary, all from the images alone.

::

    FOLDER/
    ├── maps/NAME.nii.gz, _sd, _crlb      float32, RAS; frames of a dynamic scan along the fourth axis; see `file_name`
    ├── b0.nii.gz, mask.nii.gz
    ├── metab.nii.gz, wref.nii.gz          NIfTI-MRS: spectra and water reference, where those of all voxels came
    ├── regions.csv                        mean, spread and median of every map by region
    ├── images.h5                          every image exactly as the console got it
    ├── contact.png
    └── summary.json                       times, provenance, warnings, medians

Where the scan has several echo times, each has maps, b0, mask and contact sheet in a folder of its own, such as te35ms.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import ImageFile, read_images
from mrsi_gadgets.output.fsl_mrs_tree import FSL_FOLDER, write_fsl_mrs
from mrsi_gadgets.output.nifti import write_nifti
from mrsi_gadgets.output.nifti_mrs import METABOLITES, WATER, write_spectra
from mrsi_gadgets.output.pictures import contact_sheet
from mrsi_gadgets.output.regions import read_labels, region_table
from mrsi_gadgets.output.results import ResultMap, Results, gather, stack_frames
from mrsi_gadgets.stream.messages import Image

_WRITER = "mrsi-gadgets"
_REGIONS = "regions.csv"
_OURS = {
    "maps", "b0.nii.gz", "mask.nii.gz", "images.h5", "contact.png", "summary.json", "report.html", _REGIONS,
    METABOLITES, WATER,
}  # fmt: skip
_ECHO = re.compile(r"te[0-9]+(p[0-9]+)?ms")
"""Folder of one echo time."""
_FSL = re.compile(rf"{FSL_FOLDER}(_frame[0-9]+)?")
_DECIMAL_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")
_SAFE = re.compile(r"[A-Za-z0-9_+-]+")
_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever their ending."""


def check_target(folder: str | Path) -> None:
    """Make sure that a result may be written to `folder`: it is new, empty, or an earlier result of ours.

    Raises
    ------
    ConfigError
        It is a file, lies in no folder, or holds anything that is not ours.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; name a folder")
    if not folder.resolve().parent.is_dir():
        raise ConfigError(f"output {folder} cannot be made because {folder.resolve().parent} is not a folder")
    if not folder.is_dir():
        return
    foreign = _foreign(folder)
    for echo in (entry for entry in sorted(folder.iterdir()) if _ECHO.fullmatch(entry.name) and entry.is_dir()):
        foreign += [f"{echo.name}/{name}" for name in _foreign(echo)]
    if any(folder.iterdir()) and (foreign or not _is_result(folder)):
        what = f"'{foreign[0]}'" if foreign else "files of another program"
        raise ConfigError(f"output {folder} holds {what}, which would be lost; name a new or an empty folder")


def _foreign(folder: Path) -> list[str]:
    """Return what a folder of maps holds that is not ours."""
    names = (e.name for e in folder.iterdir())
    found = sorted(n for n in names if n not in _OURS and not _ECHO.fullmatch(n) and not _FSL.fullmatch(n))
    maps = folder / "maps"
    if maps.is_dir():
        found += sorted(f"maps/{entry.name}" for entry in maps.iterdir() if not entry.name.endswith(".nii.gz"))
    return found


def write_results(
    folder: str | Path, images: Iterable[Image], *, summary: Mapping[str, Any], regions: Path | None = None
) -> Results:
    """Write everything that `images` say into `folder`, which appears complete or not at all.

    Parameters
    ----------
    folder
        New, empty, or an earlier result, which is replaced at the end.
    images
        May be a running stream; each image is stored as it comes.
    summary
        Added to ``summary.json`` (times, file names); its ``warnings`` and ``provenance`` join those of the images.
    regions
        NIfTI volume of labels whose regions join the table (`output.regions`).

    Raises
    ------
    ConfigError
        The folder is a file or holds something else (see `check_target`), or `regions` cannot be read.
    DataError
        No image came, the images contradict each other, or the disk refuses.
    """
    check_target(folder)
    target = Path(folder).resolve()
    building = _beside(target, "part")
    try:
        with _writing(target):
            building.mkdir()
        results = _receive(building / "images.h5", images)
        with _writing(target):
            for name, part in results.echoes.items() or (("", results),):
                (building / name).mkdir(exist_ok=True)
                _write_maps(building / name, part)
                if part.maps:
                    contact_sheet(part, building / name / "contact.png")
            _write_regions(building / _REGIONS, results, regions)
            write_spectra(building, results)
            _write_summary(building / "summary.json", results, summary)
            _replace(target, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return results


def _write_regions(path: Path, results: Results, regions: Path | None) -> None:
    """Write the table; labels that do not fit are told and left out, since the scan has been computed."""
    if results.affine_ras is None:
        return
    labels = None
    if regions is not None:
        try:
            labels = read_labels(regions, results.affine_ras, results.matrix)
        except (ConfigError, DataError) as problem:
            results.warnings.append(f"{_REGIONS} has no regions of its own: {problem}")
    path.write_text(region_table(results, labels), encoding="utf-8")


def read_results(folder: str | Path) -> Results:
    """Return what the images of a result folder say.

    Raises
    ------
    ConfigError
        It is no result folder.
    """
    folder = Path(folder)
    if not (folder / "images.h5").is_file():
        raise ConfigError(f"{folder} is no result folder (it has no images.h5); name the folder of a `mrsi replay`")
    return gather(read_images(folder / "images.h5"))


def rewrite_regions(folder: str | Path, labels: Path | None) -> Path:
    """Write the table of a result folder anew, with the regions of a volume; return its path.

    Raises
    ------
    ConfigError, DataError
        The folder or the labels cannot be read, or do not fit.
    """
    results, path = read_results(folder), Path(folder) / _REGIONS
    if results.affine_ras is None:
        raise DataError(f"the result {folder} holds no maps, so there is nothing to tabulate")
    found = None if labels is None else read_labels(labels, results.affine_ras, results.matrix)
    with _writing(path):
        path.write_text(region_table(results, found), encoding="utf-8")
    return path


def add_fsl_mrs(folder: str | Path) -> list[Path]:
    """Write the folder that FSL-MRS and FSLeyes read into a result folder, in the place of an earlier one.

    Several frames and echo times have one each (``fsl_mrs_frame2``, ``te35ms/fsl_mrs``).

    Raises
    ------
    ConfigError, DataError
        The folder cannot be read or written, or does not hold the spectra of all voxels.
    """
    results, written = read_results(folder), []
    for echo, part in results.echoes.items() or (("", results),):
        frames = sorted(part.gathered) or [0]
        for frame in frames:
            name = FSL_FOLDER if len(frames) == 1 else f"{FSL_FOLDER}_frame{frame + 1}"
            target = Path(folder).resolve() / echo / name
            building = _beside(target, "part")
            try:
                with _writing(target):
                    write_fsl_mrs(building, part, frame=frame)
                    _replace(target, building)
            finally:
                shutil.rmtree(building, ignore_errors=True)
            written.append(Path(folder) / echo / name)
    return written


def _receive(path: Path, images: Iterable[Image]) -> Results:
    results = Results()
    with ImageFile(path) as file:
        for image in images:
            file.append(image)
            results.add(image)
        if results.n_images == 0:
            raise DataError("no image came back, so there is no result to write; see the messages of the server")
    if results.n_foreign:
        results.warnings.append(
            f"{results.n_foreign} of {results.n_images} images are not of mrsi-gadgets; they are kept in images.h5 only"
        )
    return results.finish()


def _write_maps(folder: Path, results: Results) -> None:
    (folder / "maps").mkdir()
    affine = results.affine_ras
    if affine is None:
        return
    files = _file_names(results.maps)
    for name, item in results.maps.items():
        file = files[name]
        if item.frames:
            write_nifti(folder / "maps" / f"{file}.nii.gz", item.value, affine, description=f"{name} [{item.unit}]")
        if item.sd is not None:
            title = f"{name} standard deviation [{item.unit}]"
            write_nifti(folder / "maps" / f"{file}_sd.nii.gz", item.sd, affine, description=title)
        if item.crlb is not None:
            title = f"{name} Cramer-Rao bound [{item.unit}]"
            write_nifti(folder / "maps" / f"{file}_crlb.nii.gz", item.crlb, affine, description=title)
    if results.b0:
        write_nifti(folder / "b0.nii.gz", stack_frames(results.b0), affine, description="B0 [Hz]")
    if results.mask:
        write_nifti(folder / "mask.nii.gz", stack_frames(results.mask), affine, description="1 where fitted")


def _write_summary(path: Path, results: Results, summary: Mapping[str, Any]) -> None:
    warnings = list(dict.fromkeys([*results.warnings, *summary.get("warnings", ())]))
    content = {
        "written_by": f"{_WRITER} {__version__}",
        "warnings": warnings,
        "images": results.n_images,
        "maps": {name: _describe(item) for name, item in results.maps.items()},
        "provenance": results.provenance | dict(summary.get("provenance", {})),
    }
    if results.echoes:
        content["echo_times"] = {
            echo: {name: _describe(item) for name, item in part.maps.items()} for echo, part in results.echoes.items()
        }
    content |= {key: value for key, value in summary.items() if key not in ("warnings", "provenance")}
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe(item: ResultMap) -> dict[str, Any]:
    described: dict[str, Any] = {"unit": item.unit, "frames": len(item.frames), "exact": item.exact}
    if item.frames:
        described["median"] = _median(item.value)
    if item.sd is not None:
        described["median_sd"] = _median(item.sd)
    if item.crlb is not None:
        described["median_crlb"] = _median(item.crlb)
    return described


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


def _plain(value: Any) -> Any:
    """Bring values to what JSON knows: NaN and infinity become null, unknown things their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def file_name(name: str) -> str:
    """Return the name of a map's file without its ending: the map's own, with decimal points as in ``2p87``.

    A point in the middle of a name is read as the beginning of the ending by many programs (``unknown_2.87ppm`` would
    open as ``unknown_2``).

    Raises
    ------
    DataError
        The name holds anything else than letters and digits without accents, '_', '-', '+' and decimal points (images
        may come from another program), or an operating system keeps it for a device.
    """
    safe = _DECIMAL_POINT.sub("p", name)
    if not _SAFE.fullmatch(safe) or _DEVICE.fullmatch(safe):
        raise DataError(f"map name '{name}' cannot be a file name; use letters, digits, '_', '-' and '+'")
    return safe


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """Map name -> file name.

    Raises
    ------
    DataError
        Two maps would share a file where upper and lower case count as equal.
    """
    files: dict[str, str] = {}
    for name in names:
        file = file_name(name)
        twin = next((other for other, used in files.items() if used.casefold() == file.casefold()), None)
        if twin is not None:
            raise DataError(f"maps '{twin}' and '{name}' would share one file on some systems; rename one of them")
        files[name] = file
    return files


def _is_result(folder: Path) -> bool:
    try:
        text = (folder / "summary.json").read_text(encoding="utf-8")
        return str(json.loads(text).get("written_by", "")).startswith(_WRITER)
    except (OSError, ValueError, AttributeError):
        return False


def _replace(target: Path, building: Path) -> None:
    """Put `building` in the place of `target`; a failure leaves the old result where it was."""
    if not target.exists():
        building.rename(target)
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        building.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{ending}")


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise DataError(f"output {target} cannot be written ({reason}); choose another place") from problem
