"""Raw files and results without what tells who was measured, where and when."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import ImageFile, ScanWriter, read_images, read_scan
from mrsi_gadgets.mrd.identity import without_identity
from mrsi_gadgets.stream.messages import Acquisition, Image, Waveform

_RESULT = "images.h5"
_TIMES = ("acquisition_time_stamp",)


def anonymise(source: str | Path, target: str | Path, keep: Collection[str] = ()) -> list[str]:
    """Write an anonymous copy of a raw file or of a result folder.

    Of a raw file, readouts and waveforms stay as they are but for the measurement's number and the time of day, which
    begins at zero. Of a result, every file stays; the images and the summary lose number, time of day and the name of
    the file they were made from.

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
    first = int(scan.acquisitions[0].head["acquisition_time_stamp"]) if len(scan.acquisitions) else 0
    with ScanWriter(target, header) as writer:
        for item in scan.acquisitions:
            writer.append(_timeless(item, first))
        for wave in scan.waveforms:
            writer.append(_timeless(wave, first))
    return [*removed, "measurement_uid", "time of day"]


def _timeless(item: Acquisition | Waveform, first: int) -> Acquisition | Waveform:
    head = item.head.copy()
    head["measurement_uid"] = 0
    stamp = "acquisition_time_stamp" if isinstance(item, Acquisition) else "time_stamp"
    head[stamp] = max(int(head[stamp]) - first, 0)
    if isinstance(item, Acquisition):
        return Acquisition(head, item.data, item.trajectory)
    return Waveform(head, item.data)


def _result(source: Path, target: Path) -> list[str]:
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        shutil.copytree(source, building, ignore=shutil.ignore_patterns(_RESULT, "summary.json"))
        with ImageFile(building / _RESULT) as file:
            for image in _timeless_images(read_images(source / _RESULT)):
                file.append(image)
        summary = source / "summary.json"
        if summary.is_file():
            content = json.loads(summary.read_text(encoding="utf-8"))
            content["input"] = "anonymised"
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
    return ["measurement_uid", "time of day", "name of the raw file"]


def _timeless_images(images: list[Image]) -> Iterator[Image]:
    for image in images:
        head: np.void = image.head.copy()
        head["measurement_uid"] = 0
        for name in _TIMES:
            head[name] = 0
        yield Image(head, image.attributes, image.data)
