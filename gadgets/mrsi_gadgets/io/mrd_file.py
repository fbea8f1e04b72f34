"""MRD files (.h5, MRD 1.x): read and write whole scans in slabs, collect images.

A file holds one group (usually ``dataset``) with ``xml`` (one string), ``data`` (one compound row per readout: head,
trajectory, samples) and ``waveforms``; images are kept per series in ``<group>/<series>/{header,data,attributes}``.
Rows are read and written many at a time: one call per readout costs HDF5 far more than the samples themselves.
Everything is written under a temporary name and renamed when it is complete, so a file that exists is a whole file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

import h5py
import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.hdf5 import Output, by_name, extend, names_in, open_file, text_of
from mrsi_gadgets.stream.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    PIXEL_TYPES,
    WAVEFORM_HEADER,
    Acquisition,
    Image,
    Waveform,
)

GROUP = "dataset"
SLAB_BYTES = 16 << 20
"""Samples held at once while reading or writing."""
_CHUNK_ROWS = 256
_HEAD_ROWS = 64

_VLEN_F4 = h5py.vlen_dtype(np.dtype("<f4"))
_READOUT_ROW = np.dtype([("head", ACQUISITION_HEADER), ("traj", _VLEN_F4), ("data", _VLEN_F4)])
_WAVEFORM_ROW = np.dtype([("head", WAVEFORM_HEADER), ("data", h5py.vlen_dtype(np.dtype("<u4")))])
_EMPTY = np.zeros(0, dtype="<f4")

Item = TypeVar("Item", Acquisition, Waveform)


class _Rows(Sequence[Item], Generic[Item]):
    """The rows of one compound table, read in slabs: iterate over it, or index single ones."""

    def __init__(self, path: Path, group: str, table: str, heads: np.ndarray) -> None:
        self.path, self.group, self.table = path, group, table
        self.heads = heads
        """Fixed headers of all rows, without their samples."""

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Item]:
        with open_file(self.path) as file:
            if self.heads.size:
                rows = file[f"{self.group}/{self.table}"]
                for start, stop in self._slabs():
                    yield from self._convert(rows[start:stop], start, stop)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        with open_file(self.path) as file:
            return next(self._convert(file[f"{self.group}/{self.table}"][at : at + 1], at, at + 1))

    def _slabs(self) -> Iterator[tuple[int, int]]:
        """Split the rows where the samples of a slab pass SLAB_BYTES."""
        ends = np.cumsum(self._row_bytes())
        start = 0
        while start < len(ends):
            limit = (ends[start - 1] if start else 0) + SLAB_BYTES
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            yield start, stop
            start = stop

    def _row_bytes(self) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} does not say how large its rows are")

    def _convert(self, rows: np.ndarray, start: int, stop: int) -> Iterator[Item]:
        raise TypeError(f"{type(self).__name__} does not say what its rows are")

    def _check_lengths(self, values: np.ndarray, expected: np.ndarray, start: int, what: str) -> None:
        lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        wrong = np.flatnonzero(lengths != expected)
        if wrong.size:
            i = int(wrong[0])
            raise DataError(
                f"{what} {start + i} of {self.path} holds {lengths[i]} values where its header announces "
                f"{expected[i]}; the file is damaged, write it again"
            )


class Readouts(_Rows[Acquisition]):
    """The readouts of a file in the order of acquisition."""

    def _row_bytes(self) -> np.ndarray:
        return 8 * self.heads["active_channels"].astype(np.int64) * self.heads["number_of_samples"] + 512

    def _convert(self, rows: np.ndarray, start: int, stop: int) -> Iterator[Acquisition]:
        heads, data, trajectories = self.heads[start:stop], rows["data"], rows["traj"]
        channels = heads["active_channels"].astype(np.int64)
        samples = heads["number_of_samples"].astype(np.int64)
        dimensions = heads["trajectory_dimensions"].astype(np.int64)
        self._check_lengths(data, 2 * channels * samples, start, "readout")
        self._check_lengths(trajectories, dimensions * samples, start, "the trajectory of readout")
        for head, values, path, c, s, d in zip(
            heads, data, trajectories, channels.tolist(), samples.tolist(), dimensions.tolist(), strict=True
        ):
            # each row comes as an array of its own, writable, so a view is enough
            yield Acquisition(head, values.view("<c8").reshape(c, s), path.reshape(s, d) if d else None)


class Waveforms(_Rows[Waveform]):
    """The waveforms (ECG, pilot tone, ...) of a file."""

    def _row_bytes(self) -> np.ndarray:
        return 4 * self.heads["channels"].astype(np.int64) * self.heads["number_of_samples"] + 128

    def _convert(self, rows: np.ndarray, start: int, stop: int) -> Iterator[Waveform]:
        heads = self.heads[start:stop]
        channels = heads["channels"].astype(np.int64)
        samples = heads["number_of_samples"].astype(np.int64)
        self._check_lengths(rows["data"], channels * samples, start, "waveform")
        for head, values, c, s in zip(heads, rows["data"], channels.tolist(), samples.tolist(), strict=True):
            yield Waveform(head, values.reshape(c, s))


@dataclass(frozen=True)
class Scan:
    """A measurement in a file: its header at once, its readouts when they are asked for."""

    header_xml: str
    acquisitions: Readouts
    waveforms: Waveforms


def read_scan(path: str | os.PathLike[str], group: str | None = None) -> Scan:
    """Open an MRD file for reading.

    Parameters
    ----------
    path
        The .h5 file.
    group
        Its group; without one ``dataset``, or the only group that holds a scan.

    Returns
    -------
        Header and readouts. Iterating reads slabs of `SLAB_BYTES`; the readouts' arrays are writable.

    Raises
    ------
    DataError
        There is no such file, it is no HDF5 file, it is truncated, or it holds no scan.
    """
    path = Path(path)
    with open_file(path) as file:
        name = group or _find_group(file, path)
        if name not in file or not {"xml", "data"} <= set(file[name]):
            inside = file[name] if name in file and isinstance(file[name], h5py.Group) else file
            if any(held.startswith("image_") for held in inside):
                raise DataError(f"{path} holds images of a result, not readouts; give the raw file of the scan")
            raise DataError(f"{path} has no group '{name}' with a header and readouts; it holds {names_in(file)}")
        scan = file[name]
        xml = text_of(scan["xml"][()] if scan["xml"].shape == () else scan["xml"][0])
        heads = _heads(scan["data"], ACQUISITION_HEADER, path)
        waves = np.zeros(0, WAVEFORM_HEADER)
        if "waveforms" in scan:
            waves = _heads(scan["waveforms"], WAVEFORM_HEADER, path)
    return Scan(xml, Readouts(path, name, "data", heads), Waveforms(path, name, "waveforms", waves))


class ScanWriter:
    """Write a scan as it comes; the file appears under its name when it is closed.

    Use it as a context manager (an exception inside discards the file), or call `close` or `discard`.

    Parameters
    ----------
    path
        The .h5 file to make.
    header_xml
        ISMRMRD header.
    group
        Name of the group in the file.
    """

    def __init__(self, path: str | os.PathLike[str], header_xml: str, group: str = GROUP) -> None:
        self._output = Output(path)
        scan = self._output.file.create_group(group)
        _write_header(scan, header_xml)
        self._scan = scan
        self._readouts = self._table("data", _READOUT_ROW)
        self._pending: list[Acquisition] = []
        self._waves: list[Waveform] = []
        self._bytes = 0

    def append(self, item: Acquisition | Waveform) -> None:
        """Add a readout or a waveform.

        Raises
        ------
        DataError
            Its samples do not have the size its header announces.
        """
        _check_sizes(item)
        if isinstance(item, Waveform):
            self._waves.append(item)
        else:
            self._pending.append(item)
        self._bytes += item.data.nbytes + 512
        if self._bytes >= SLAB_BYTES:
            self._flush()

    def note(self, group: str, name: str, text: str) -> None:
        """Keep a text beside the scan, in a group of its own, which readers of MRD files do not look at."""
        self._output.file.require_group(group).create_dataset(name, data=text, dtype=h5py.string_dtype())

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._flush()
        self._output.finish()

    def discard(self) -> None:
        """Remove what was written."""
        self._output.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _table(self, name: str, row: np.dtype) -> Any:
        return self._scan.create_dataset(name, (0,), maxshape=(None,), chunks=(_CHUNK_ROWS,), dtype=row)

    def _flush(self) -> None:
        if self._pending:
            rows = np.zeros(len(self._pending), _READOUT_ROW)
            for i, item in enumerate(self._pending):
                rows["head"][i] = item.head
                rows["data"][i] = np.ascontiguousarray(item.data, dtype="<c8").reshape(-1).view("<f4")
                path = item.trajectory
                rows["traj"][i] = _EMPTY if path is None else np.ascontiguousarray(path, dtype="<f4").reshape(-1)
            extend(self._readouts, rows)
        if self._waves:
            table = self._scan["waveforms"] if "waveforms" in self._scan else self._table("waveforms", _WAVEFORM_ROW)
            rows = np.zeros(len(self._waves), _WAVEFORM_ROW)
            for i, wave in enumerate(self._waves):
                rows["head"][i] = wave.head
                rows["data"][i] = np.ascontiguousarray(wave.data, dtype="<u4").reshape(-1)
            extend(table, rows)
        self._pending, self._waves, self._bytes = [], [], 0


def write_scan(
    path: str | os.PathLike[str], header_xml: str, items: Iterable[Acquisition | Waveform], group: str = GROUP
) -> None:
    """Write a scan to an MRD file that the ismrmrd package and ISMRMRD's C++ tools read.

    Parameters
    ----------
    path
        The .h5 file to make; it appears when all of `items` is written.
    header_xml
        ISMRMRD header.
    items
        Readouts and waveforms in their order; consumed once.
    group
        Name of the group in the file.

    Raises
    ------
    DataError
        The file cannot be written, or samples do not have the size their header announces.
    """
    with ScanWriter(path, header_xml, group) as writer:
        for item in items:
            writer.append(item)


def read_note(path: str | os.PathLike[str], group: str, name: str) -> str | None:
    """Read a text that `ScanWriter.note` has kept; None where there is none.

    Raises
    ------
    DataError
        There is no such file, it is no HDF5 file, or it is truncated.
    """
    with open_file(Path(path)) as file:
        found = file.get(f"{group}/{name}")
        return None if found is None else text_of(found[()])


class ImageFile:
    """Collect images in a file, series by series, as ``ismrmrd.Dataset.read_image`` expects them.

    The series of an image is called ``image_<image_series_index>``. The file appears when it is closed.

    Parameters
    ----------
    path
        The .h5 file to make.
    header_xml
        ISMRMRD header to keep with the images, or None.
    """

    def __init__(self, path: str | os.PathLike[str], header_xml: str | None = None) -> None:
        self._output = Output(path)
        self._group = self._output.file.create_group(GROUP)
        if header_xml is not None:
            _write_header(self._group, header_xml)

    def append(self, image: Image, series: str | None = None) -> None:
        """Add an image to its series.

        Complex images of another shape than those before them get a series of their own: how many voxels and columns
        spectra have differs from frame to frame.

        Raises
        ------
        DataError
            Its shape or pixel type differs from the images before it in the series, or from its own header.
        """
        code = int(image.head["data_type"])
        shape = (int(image.head["channels"]), *(int(n) for n in image.head["matrix_size"][::-1]))
        if code not in PIXEL_TYPES or image.data.shape != shape or image.data.dtype != PIXEL_TYPES[code]:
            raise DataError(
                f"an image of shape {image.data.shape} and type {image.data.dtype} does not fit its header "
                f"(shape {shape}, data_type {code}); correct the header"
            )
        name = series or f"image_{int(image.head['image_series_index'])}"
        pixels = np.ascontiguousarray(image.data).view(_stored(PIXEL_TYPES[code]))
        if name in self._group and image.data.dtype.kind == "c" and self._group[name]["data"].shape[1:] != shape:
            name += "_" + "x".join(str(n) for n in shape)
        if name not in self._group:
            self._create(name, shape, pixels.dtype)
        kept = self._group[name]
        if kept["data"].shape[1:] != shape or kept["data"].dtype != pixels.dtype:
            raise DataError(
                f"series {name} holds images of shape {kept['data'].shape[1:]} and type {kept['data'].dtype}, this one "
                f"is {shape}, {pixels.dtype}; give it another image_series_index"
            )
        head = np.array([image.head], dtype=IMAGE_HEADER)
        head["attribute_string_len"] = len(image.attributes.encode())
        extend(kept["header"], head)
        extend(kept["attributes"], np.array([image.attributes], dtype=object))
        extend(kept["data"], pixels[None])

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._output.finish()

    def discard(self) -> None:
        """Remove what was written."""
        self._output.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _create(self, name: str, shape: tuple[int, ...], pixel: np.dtype) -> None:
        group = self._group.create_group(name)
        group.create_dataset("header", (0,), maxshape=(None,), chunks=(16,), dtype=IMAGE_HEADER)
        group.create_dataset("attributes", (0,), maxshape=(None,), chunks=(16,), dtype=h5py.string_dtype())
        group.create_dataset("data", (0, *shape), maxshape=(None, *shape), chunks=(1, *shape), dtype=pixel)


def read_images(path: str | os.PathLike[str]) -> list[Image]:
    """Read every image of a file, ordered by series and then as they were appended.

    Raises
    ------
    DataError
        There is no such file, it is no HDF5 file, or it is truncated.
    """
    path = Path(path)
    found: list[Image] = []
    with open_file(path) as file:
        for group in file.values():
            for series in group.values() if isinstance(group, h5py.Group) else ():
                if isinstance(series, h5py.Group) and {"header", "data", "attributes"} <= set(series):
                    found += _read_series(series, path)
    return sorted(found, key=lambda image: int(image.head["image_series_index"]))


def _read_series(series: h5py.Group, path: Path) -> Iterator[Image]:
    heads = by_name(series["header"][()], IMAGE_HEADER, path)
    for head, attributes, pixels in zip(heads, series["attributes"][()], series["data"][()], strict=True):
        plain = PIXEL_TYPES.get(int(head["data_type"]))
        if plain is None:
            raise DataError(f"an image in {path}, {series.name}, has the unknown data_type {int(head['data_type'])}")
        yield Image(head, text_of(attributes), pixels if pixels.dtype == plain else pixels.view(plain))


def _find_group(file: h5py.File, path: Path) -> str:
    if GROUP in file:
        return GROUP
    found = [name for name, g in file.items() if isinstance(g, h5py.Group) and {"xml", "data"} <= set(g)]
    if len(found) != 1:
        raise DataError(f"{path} has no group '{GROUP}' with an MRD scan; it holds {names_in(file)}")
    return found[0]


def _heads(table: h5py.Dataset, wanted: np.dtype, path: Path) -> np.ndarray:
    if not table.dtype.names or "head" not in table.dtype.names:
        raise DataError(f"{table.name} in {path} is not a table of MRD rows; write the file with an MRD 1.x tool")
    # Asked for one field, HDF5 leaves the samples of all rows in memory that is never used again; whole rows, a few at
    # once, take half the time.
    if len(table.shape) != 1 or not table.shape[0]:
        return by_name(table.fields("head")[()].reshape(-1), wanted, path)
    steps = range(0, table.shape[0], _HEAD_ROWS)
    return by_name(np.concatenate([table[i : i + _HEAD_ROWS]["head"] for i in steps]), wanted, path)


def _write_header(group: h5py.Group, header_xml: str) -> None:
    group.create_dataset("xml", (1,), maxshape=(None,), dtype=h5py.string_dtype())[0] = header_xml


def _check_sizes(item: Acquisition | Waveform) -> None:
    channels = int(item.head["active_channels" if isinstance(item, Acquisition) else "channels"])
    expected = (channels, int(item.head["number_of_samples"]))
    if item.data.shape != expected:
        raise DataError(
            f"readout {int(item.head['scan_counter'])} has samples {item.data.shape} where its header announces "
            f"{expected} (channels, samples); correct the header"
        )


def _stored(pixel: np.dtype) -> np.dtype:
    """Pixel type in the file: complex numbers are pairs named real and imag."""
    if pixel.kind != "c":
        return pixel
    part = np.dtype(f"<f{pixel.itemsize // 2}")
    return np.dtype([("real", part), ("imag", part)])
