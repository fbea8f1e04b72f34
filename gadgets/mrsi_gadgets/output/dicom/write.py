"""A result folder's maps and spectra as DICOM files.

::

    FOLDER/
    ├── classic/NAME/0001.dcm …     MR Image Storage: one file for each slice and frame, uint16 with slope and intercept
    ├── parametric/NAME.dcm …       Parametric Map Storage: exact float32 values (NAME_0002.dcm … for further frames)
    └── spectra/metabolites.dcm …   MR Spectroscopy Storage, where the result holds the spectra of its voxels
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import read_images
from mrsi_gadgets.output import console
from mrsi_gadgets.output.dicom.classic import classic_images
from mrsi_gadgets.output.dicom.exam import FIRST_SERIES, Exam, Grid, check_finite_grid, need, read_reference
from mrsi_gadgets.output.dicom.parametric import parametric_map
from mrsi_gadgets.output.dicom.spectroscopy import spectroscopy
from mrsi_gadgets.output.folder import file_name
from mrsi_gadgets.output.meta import from_xml, value_of
from mrsi_gadgets.output.results import Results, gather
from mrsi_gadgets.stream.messages import Image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

KINDS = ("classic", "parametric", "spectra")


@dataclass(frozen=True)
class DicomOptions:
    """What to write, and whom it belongs to."""

    maps: tuple[str, ...] = ()
    """Names of maps, ``all``, or nothing: those that the console showed, and B0."""
    kinds: tuple[str, ...] = KINDS
    reference: Path | None = None
    """A DICOM image of the same exam: its patient, study and frame of reference are those of the new objects."""
    patient_id: str = ""
    patient_name: str = ""


def write_dicom(result: str | Path, folder: str | Path, options: DicomOptions | None = None) -> list[Path]:
    """Write a result as DICOM files into `folder`, which appears complete or not at all.

    Parameters
    ----------
    result
        Folder of `mrsi replay`.
    folder
        New or empty.
    options
        What to write.

    Returns
    -------
    list
        The files.

    Raises
    ------
    ConfigError
        The DICOM packages are not installed, the folder holds something, or an option names what is not there.
    DataError
        The result cannot be read, or its grid cannot be described.
    """
    need("pydicom")
    options = options or DicomOptions()
    if "parametric" in options.kinds:
        need("highdicom")
    target = Path(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"output {folder} is not empty; name a new folder for the DICOM files")
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        names = []
        for path, dataset in objects(result, options):
            place = building / path
            place.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(place, enforce_file_format=True)
            names.append(path)
        if target.exists():
            target.rmdir()
        building.rename(target)
    except OSError as problem:
        raise DataError(
            f"output {folder} cannot be written ({problem.strerror or problem}); choose another place"
        ) from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return [target / name for name in names]


def objects(result: str | Path, options: DicomOptions) -> Iterator[tuple[Path, Dataset]]:
    """Yield the objects of a result with their paths; several echo times lie in folders of their own."""
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"DICOM kind '{unknown[0]}' is not known; use {', '.join(KINDS)}")
    file = Path(result) / "images.h5"
    if not file.is_file():
        raise ConfigError(f"{result} holds no images.h5; name the result folder of `mrsi replay`")
    images = read_images(file)
    results = gather(images)
    if results.affine_ras is None:
        raise DataError(f"{file} holds no map of mrsi-gadgets")
    reference = read_reference(options.reference) if options.reference else None
    exam = Exam(
        _digest(images), Grid.of_ras(results.affine_ras, results.matrix), reference, options.patient_id,
        options.patient_name, tuple(results.warnings), **_constants(images),
    )  # fmt: skip
    check_finite_grid(exam.grid)
    number = FIRST_SERIES
    for echo, part in results.echoes.items() or (("", results),):
        of_echo = replace(exam, seed=exam.seed + echo, echo_time_ms=_echo_ms(echo, exam.echo_time_ms))
        for path, dataset in _of_echo(part, of_echo, options, number):
            yield Path(echo) / path, dataset
            number = int(dataset.SeriesNumber)
        number += 1


def _of_echo(results: Results, exam: Exam, options: DicomOptions, number: int) -> Iterator[tuple[Path, Dataset]]:
    for name, unit, values in _chosen(results, options.maps):
        number += 1
        classic = list(classic_images(exam, name, unit, values, number))
        if "classic" in options.kinds:
            for i, dataset in enumerate(classic):
                yield Path("classic") / file_name(name) / f"{i + 1:04d}.dcm", dataset
        if "parametric" in options.kinds:
            number += 1
            frames = values[..., None] if values.ndim == 3 else values
            for frame in range(frames.shape[3]):
                ending = f"_{frame + 1:04d}" if frames.shape[3] > 1 else ""
                yield (
                    Path("parametric") / f"{file_name(name)}{ending}.dcm",
                    parametric_map(
                        exam, name, unit, frames[..., frame], number, instance=frame + 1,
                        source=classic[frame * exam.grid.matrix[2]],
                    ),
                )  # fmt: skip
    if "spectra" in options.kinds:
        for what, frame, fids in _fids(results, exam.grid):
            number += frame == 0
            axis = results.axis
            told = replace(exam, transmit_frequency_hz=float(axis["transmit_frequency_hz"]), nucleus=axis["nucleus"])
            dataset = spectroscopy(
                told, what, fids, dwell_s=float(axis["dwell_s"]), reference_ppm=float(axis["reference_ppm"]),
                series=number, instance=frame + 1,
            )  # fmt: skip
            ending = f"_{frame + 1:04d}" if len(results.gathered) > 1 else ""
            yield Path("spectra") / f"{what}{ending}.dcm", dataset


def _chosen(results: Results, wanted: Sequence[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, unit and values of the wanted maps, each followed by its standard deviation."""
    names = list(results.maps) if "all" in wanted else list(wanted or results.shown)
    missing = [name for name in names if name not in results.maps and name != "b0"]
    if missing:
        raise ConfigError(f"the result has no map '{missing[0]}'; it has {', '.join(results.maps)}")
    for name in names:
        if name == "b0":
            continue
        item = results.maps[name]
        yield name, item.unit, item.value
        if item.sd is not None:
            yield f"{name}_sd", item.unit, item.sd
    if results.b0 and (not wanted or "b0" in wanted or "all" in wanted):
        b0 = [results.b0[frame] for frame in sorted(results.b0)]
        yield "B0", "Hz", b0[0] if len(b0) == 1 else np.stack(b0, axis=-1)


def _fids(results: Results, grid: Grid) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield what was fitted and the fit of each frame, on the whole grid; nothing where only a few examples came."""
    for what, name in (("data", "metabolites"), ("fit", "fit")):
        for place, frame in enumerate(sorted(results.gathered)):
            fitted = results.fitted(frame)
            if fitted is not None:
                fids = np.zeros((*grid.matrix, fitted.data.shape[1]), np.complex64)
                fids[tuple(fitted.voxels.T)] = getattr(fitted, what)
                yield name, place, fids


def _digest(images: Sequence[Image]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.head.tobytes())
        digest.update(image.attributes.encode())
        digest.update(np.ascontiguousarray(image.data).tobytes())
    return digest.hexdigest()


def _constants(images: Sequence[Image]) -> dict[str, Any]:
    """Return what the images' attributes say of the scan."""
    found: dict[str, Any] = {}
    for image in images:
        meta = from_xml(image.attributes)
        if "echo_time_ms" not in found and value_of(meta, "EchoTime"):
            found["echo_time_ms"] = float(value_of(meta, "EchoTime"))
        if value_of(meta, "mrsi_kind") == console.SPECTRA:
            found["transmit_frequency_hz"] = float(value_of(meta, "mrsi_transmit_frequency_hz"))
            found["nucleus"] = value_of(meta, "mrsi_nucleus", "1H")
            break
    return found


def _echo_ms(folder: str, otherwise: float | None) -> float | None:
    """Return the echo time that a folder such as te35ms or te0p5ms is named after [ms]."""
    return float(folder.removeprefix("te").removesuffix("ms").replace("p", ".")) if folder else otherwise
