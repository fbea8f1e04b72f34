"""Raw files and results without what tells who was measured, where and when."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import ImageFile, Scan, ScanWriter, read_images, read_scan
from mrsi_gadgets.mrd.clock import day_ticks, unwrapped
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.identity import without_identity
from mrsi_gadgets.stream.messages import Acquisition, Image, Waveform

_RESULT = "images.h5"
_TIMES = ("acquisition_time_stamp", "physiology_time_stamp")
_OURS = re.compile(
    r"(te[0-9p]+ms/)?(maps/[^/]+\.nii\.gz|(b0|mask|metab|wref)\.nii\.gz|regions\.csv|contact\.png|report\.html"
    r"|fsl_mrs/.+\.(nii\.gz|json|txt|csv))"
)
"""What `mrsi replay`, `regions`, `report` and `fsl-mrs` write into a result besides images and summary."""
_TICK_KEY, USUAL_TICK_MS = "mrsi_time_tick_ms", 2.5
_PRIVATE = ("input", "mode")
"""Parts of a summary that name files and machines."""


def anonymise(source: str | Path, target: str | Path, keep: Collection[str] = ()) -> list[str]:
    """Write an anonymous copy of a raw file or of a result folder.

    Of a raw file, readouts and waveforms stay as they are but for the measurement's number and the time of day, which
    begins at zero. Of a result, what this program has written there stays, and nothing else (DICOM files hold a
    patient); the images and the summary lose number, time of day and the name of the file they were made from.

    Parameters
    ----------
    source
        MRD .h5 file, or result folder of `mrsi replay`.
    target
        New file or folder.
    keep
        Texts among the header's user parameters that stay (`mrd.identity`).

    Returns
    -------
    list
        What was taken out.

    Raises
    ------
    ConfigError
        The target exists, or the source is neither.
    DataError
        The source cannot be read, or the target not be written.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise ConfigError(f"{target} exists; name a new file or folder for the anonymous copy")
    if not target.resolve().parent.is_dir():
        raise ConfigError(f"{target} cannot be written because its folder does not exist; make it first")
    if source.is_dir():
        if not (source / _RESULT).is_file():
            raise ConfigError(f"{source} holds no {_RESULT}; name a raw file or the result folder of `mrsi replay`")
        return _result(source, target)
    return _raw_file(source, target, keep)


def _raw_file(source: Path, target: Path, keep: Collection[str]) -> list[str]:
    scan = read_scan(source)
    header, removed = without_identity(scan.header_xml, keep)
    with ScanWriter(target, header) as writer:
        for item in _timeless(scan):
            writer.append(item)
    return [*removed, "measurement_uid", "time of day"]


def _timeless(scan: Scan) -> Iterator[Acquisition | Waveform]:
    """Yield readouts and waveforms without number and time of day; times between them stay, also over midnight."""
    day = day_ticks(_tick_s(scan.header_xml))
    heads, waves = scan.acquisitions.heads, scan.waveforms.heads
    first = int(heads["acquisition_time_stamp"][0]) if len(heads) else 0
    stamps = unwrapped(heads["acquisition_time_stamp"], first, day)
    begin = int(stamps.min(initial=0))
    clocks = [_without_clock(heads["physiology_time_stamp"][:, i], day) for i in range(3)]
    for i, readout in enumerate(scan.acquisitions):
        head = readout.head.copy()
        head["measurement_uid"], head["acquisition_time_stamp"] = 0, stamps[i] - begin
        head["physiology_time_stamp"] = [clock[i] for clock in clocks]
        yield Acquisition(head, readout.data, readout.trajectory)
    of_waves = np.maximum(unwrapped(waves["time_stamp"], first, day) - begin, 0)
    for wave, stamp in zip(scan.waveforms, of_waves, strict=True):
        head = wave.head.copy()
        head["measurement_uid"], head["time_stamp"] = 0, stamp
        yield Waveform(head, wave.data)


def _tick_s(header_xml: str) -> float:
    """Return the unit of the time stamps as the header says it, Siemens' own where it says none."""
    try:
        said = parse_header(header_xml).user.get(_TICK_KEY)
    except DataError:  # whoever reconstructs it minds
        said = None
    return 1e-3 * (said if isinstance(said, int | float) and said > 0 else USUAL_TICK_MS)


def _without_clock(stamps: np.ndarray, day: int) -> np.ndarray:
    """Return stamps from zero on where they are a clock's, which never goes back; those since a trigger as they are."""
    if not len(stamps):
        return stamps
    passed = unwrapped(stamps, int(stamps[0]), day)
    return passed if np.all(np.diff(passed) >= 0) else stamps


def _result(source: Path, target: Path) -> list[str]:
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    left_out: set[str] = set()
    try:
        building.mkdir()
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source)
            if path.is_dir() and not path.is_symlink():
                continue
            if _OURS.fullmatch(name.as_posix()) and path.is_file() and not path.is_symlink():
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, building / name)
            elif name.as_posix() not in (_RESULT, "summary.json"):
                left_out.add(name.as_posix() if name.parts[0] in ("maps", "fsl_mrs") else name.parts[0])
        with ImageFile(building / _RESULT) as file:
            for image in _timeless_images(read_images(source / _RESULT)):
                file.append(image)
        summary = source / "summary.json"
        if summary.is_file():
            content = json.loads(summary.read_text(encoding="utf-8"))
            content |= {key: "anonymised" for key in _PRIVATE if key in content}
            content.get("provenance", {}).pop("texts", None)
            (building / "summary.json").write_text(
                json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        building.rename(target)
    except OSError as problem:
        raise DataError(
            f"{target} cannot be written ({problem.strerror or problem}); choose another place"
        ) from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return ["measurement_uid", "time of day", "name of the raw file", *sorted(left_out)]


def _timeless_images(images: list[Image]) -> Iterator[Image]:
    for image in images:
        head: np.void = image.head.copy()
        head["measurement_uid"] = 0
        for name in _TIMES:
            head[name] = 0
        yield Image(head, image.attributes, image.data)
