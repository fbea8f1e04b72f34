"""HDF5 underneath MRD files: open, write under a temporary name, convert headers, say in a sentence what HDF5 minds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mrsi_gadgets.errors import DataError


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever HDF5 finds wrong becomes a DataError with one cause."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; give an MRD .h5 file")
    if not path.is_file():
        raise DataError(f"{path} is not there; check the file's name")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as problem:
        text = str(problem)
        if "truncated" in text or "eof" in text.lower():
            raise DataError(f"{path} is truncated; copy it again or use what the scanner sent") from problem
        if "signature not found" in text:
            raise DataError(f"{path} is not an HDF5 file, whatever its name says; {_remedy(path)}") from problem
        raise DataError(f"{path} cannot be read ({_reason(problem)}); the file may be damaged") from problem
    except (RuntimeError, KeyError, ValueError, TypeError) as problem:
        # what h5py raises where the file's own structure is broken depends on where it is
        raise DataError(
            f"{path} is damaged inside ({_reason(problem)}); copy it again or use what the scanner sent"
        ) from problem


def _remedy(path: Path) -> str:
    """Say what to do with a file that is no HDF5, by what it is."""
    if path.suffix.lower() == ".dat":
        return "`mrsi convert` makes an MRD .h5 file of a Siemens twix file"
    return "give an MRD .h5 file"


class Output:
    """An HDF5 file under a temporary name beside its final one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.file = h5py.File(self.temporary, "w")
        except OSError as problem:
            raise DataError(f"{self.path} cannot be written ({_reason(problem)}); choose another place") from problem

    def finish(self) -> None:
        """Close the file and give it its name."""
        try:
            self.file.close()
            self.temporary.replace(self.path)
        except OSError as problem:
            self.temporary.unlink(missing_ok=True)
            raise DataError(f"{self.path} cannot be written ({_reason(problem)}); choose another place") from problem

    def discard(self) -> None:
        """Close the file and remove it."""
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def by_name(values: np.ndarray, wanted: np.dtype, path: Path) -> np.ndarray:
    """Bring headers to our layout by field name (writers order and pad them as they like)."""
    if values.dtype == wanted:
        return values
    result = np.zeros(values.shape, wanted)
    for name in wanted.names or ():
        if name not in (values.dtype.names or ()):
            raise DataError(f"headers in {path} have no field '{name}'; write the file with an MRD 1.x tool")
        inner = wanted[name]
        result[name] = by_name(values[name], inner, path) if inner.names else values[name]
    return result


def extend(table: h5py.Dataset, rows: np.ndarray) -> None:
    """Append rows to a table.

    Raises
    ------
    DataError
        They could not be written (the disk is full).
    """
    start = table.shape[0]
    try:
        table.resize(start + len(rows), axis=0)
        table[start:] = rows
    except OSError as problem:
        raise DataError(f"{table.file.filename} cannot be written ({_reason(problem)}); make room for it") from problem


def names_in(file: h5py.File) -> str:
    """List what a file holds, for messages."""
    return ", ".join(f"'{name}'" for name in file) or "nothing"


def text_of(value: Any) -> str:
    """Return a stored string as text, without trailing NUL."""
    text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
    return text.rstrip("\0")


def _reason(problem: Exception) -> str:
    """Shorten HDF5's report to what it is about."""
    system = re.search(r"error message = '([^']+)'", str(problem))
    if system:
        return system.group(1)
    return (getattr(problem, "strerror", None) or str(problem).strip("'\"").split("(")[-1].rstrip(")")).strip()
