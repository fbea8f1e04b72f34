"""Siemens raw files (twix) read with twixtools: the header and the readouts of the last measurement."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import DataError, MissingPackageError

_NO_READOUT = ("ACQEND", "SYNCDATA")
_ENTRY_BYTES = 152
"""Size of an entry in the table of contents of VD and VE files."""


@dataclass(frozen=True)
class Measurement:
    """One measurement of a twix file: its header, and its readouts as twixtools gives them."""

    header: Mapping[str, Any]
    blocks: Sequence[Any]

    def value(self, path: str, default: Any = None) -> Any:
        """Return a header field by its path (``MeasYaps.alTE.0``), or the default."""
        found: Any = self.header
        for part in path.split("."):
            try:
                found = found[int(part)] if isinstance(found, (list, tuple)) else found[part]
            except (KeyError, IndexError, ValueError, TypeError):
                return default
        return default if found == "" else found

    @property
    def sequence_file(self) -> str:
        """Name of the sequence that measured."""
        return str(self.value("MeasYaps.tSequenceFileName", ""))


def read_measurement(path: Path) -> Measurement:
    """Read the last measurement of a twix file (earlier ones are the adjustments before it).

    Raises
    ------
    DataError
        The file cannot be read, is no twix file, is cut off, or holds no readouts.
    MissingPackageError
        The package twixtools is not installed.
    """
    try:
        import twixtools
    except ImportError as problem:
        raise MissingPackageError(
            "reading Siemens raw files needs the package twixtools; install it with pip install 'mrsi-gadgets[twix]'"
        ) from problem
    _check_file(path)
    try:
        # the library reports on stdout, which belongs to the command's own result
        with contextlib.redirect_stdout(io.StringIO()) as said:
            scans = twixtools.read_twix(str(path), include_scans=[-1], parse_pmu=False, verbose=False)
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        OSError,
        UnicodeError,
        struct.error,
    ) as problem:
        raise DataError(f"{path} cannot be read as a Siemens twix file ({problem}); export it again") from problem
    if "encountered an error" in said.getvalue():
        raise DataError(f"{path} is damaged: a readout header in it cannot be read; export it again")
    scan = scans[-1]
    blocks = [block for block in scan["mdb"] if not any(block.is_flag_set(flag) for flag in _NO_READOUT)]
    if not blocks:
        raise DataError(f"the last measurement of {path} holds no readouts; export the raw data again")
    return Measurement(scan["hdr"], blocks)


def _check_file(path: Path) -> None:
    """Refuse what is no twix file or is shorter than its own table of contents says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
            if len(start) < 16:
                raise DataError(
                    f"{path} is no Siemens twix file: it has {size} bytes; give the .dat file of the raw data export"
                )
            first, count = struct.unpack("<II", start[:8])
            if first < 10000 and 1 <= count <= 64:
                for entry in range(count):
                    file.seek(8 + entry * _ENTRY_BYTES + 8)
                    offset, length = struct.unpack("<QQ", file.read(16))
                    if offset + length > size:
                        raise DataError(
                            f"{path} is cut off: measurement {entry} needs {offset + length} bytes but the file has "
                            f"{size}; copy it again"
                        )
                return
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror}); check the name and the rights") from problem
    except struct.error:
        raise DataError(f"{path} is cut off inside its table of contents; copy it again") from None
    # before VD a file starts with the length of its header, which holds a few named protocols
    if not (count < 32 and 10000 <= first < size):
        raise DataError(f"{path} is no Siemens twix file; give the .dat file that the raw data export (twix) wrote")
