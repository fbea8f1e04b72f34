"""The files of a spool: their names, which tell the state of a session, and the lock of those that are written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.spool_log import State

_NAMES = {None, *(state.value for state in State)}
_NAME = re.compile(r"session-(\d{6,})(?:\.([a-z]+))?\.(log|h5)")
DRAFT = re.compile(r"\.{1,2}(session-\d{6,})\..*\.part")
"""What a conversion writes to; the HDF5 writer puts a name of its own before that."""


@dataclass(frozen=True)
class SpoolFile:
    """One file of the spool."""

    number: int
    state: State | None
    """As its name says; None: running or interrupted."""
    path: Path

    @property
    def is_log(self) -> bool:
        """Whether it is a log, not yet an MRD file."""
        return self.path.suffix == ".log"


def spool_files(folder: Path) -> list[SpoolFile]:
    """Return the sessions of a spool, oldest first; of a session that is there in two forms the .h5."""
    found: dict[int, SpoolFile] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None or match[2] not in _NAMES:
                continue
            number = int(match[1])
            if number not in found or match[3] == "h5":
                found[number] = SpoolFile(number, State(match[2]) if match[2] else None, path)
    return [found[number] for number in sorted(found)]


def find_file(folder: Path, number: int) -> SpoolFile:
    """Return the file of one session. Raises DataError where there is none."""
    for file in spool_files(folder):
        if file.number == number:
            return file
    raise DataError(f"the spool {folder} holds no session {number}; `mrsi recover` lists those it holds")


def forms_of(folder: Path, number: int) -> list[Path]:
    """Return every file of a session, of whatever state."""
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    return [path for path, match in found if match is not None and int(match[1]) == number]


def path_of(folder: Path, number: int, state: State | None, suffix: str) -> Path:
    """Return the name of a session's file."""
    middle = f".{state.value}" if state is not None else ""
    return folder / f"session-{number:06d}{middle}.{suffix}"


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names of a folder's files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locked(path: Path) -> bool:
    """Tell whether a running server writes the log."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock of a log; gives whether we have it, so that no server writes the log and nobody converts it."""
    try:
        file = path.open("rb")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
