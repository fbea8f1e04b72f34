"""What `mrsi recover` does: list the sessions of the spool, replay one, export one, remove one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.spool import default_folder
from mrsi_gadgets.io.spool_archive import (
    SessionInfo,
    export,
    find_session,
    list_sessions,
    open_session,
    whole_messages,
)
from mrsi_gadgets.io.spool_files import find_file, forms_of, locked
from mrsi_gadgets.io.spool_log import State
from mrsi_gadgets.replay import ReplayResult, Scan, replay_here
from mrsi_gadgets.server.worker import options_from_text

_MIB = 1 << 20


def spool_folder(given: Path | None) -> Path:
    """Return the spool to look into.

    Raises
    ------
    ConfigError
        There is no such folder.
    """
    folder = given or default_folder()
    if folder is None:
        raise ConfigError("there is no home folder that raw data could be kept in; name the spool with --spool DIR")
    if given is None and not folder.exists():
        raise ConfigError(
            f"nothing has been kept yet in {folder}; `mrsi serve` does, or name another spool with --spool"
        )
    if not folder.is_dir():
        raise ConfigError(
            f"there is no spool {folder}; name the folder that `mrsi serve` keeps raw data in with --spool"
        )
    return folder


def listing(folder: Path) -> str:
    """Return the table of all sessions. It holds numbers, times and causes, nothing of a header."""
    rows = [("session", "started (UTC)", "state", "readouts", "MiB", "form", "cause")]
    for info in list_sessions(folder):
        started = info.started.partition("+")[0].replace("T", " ")
        state = info.state.value + ("" if info.end.complete else ", in part")
        size = f"{info.size / _MIB:.1f}"
        readouts = f"{info.end.readouts}"
        rows.append((f"{info.file.number}", started, state, readouts, size, info.file.path.suffix[1:], info.end.cause))
    if len(rows) == 1:
        return f"the spool {folder} holds no session"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    left = (1, 2, 5)
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def recover(
    folder: Path, number: int, changes: dict[str, Any], *, incomplete: bool = False, progress: bool = False
) -> ReplayResult:
    """Reconstruct a session as its server would have, here.

    Parameters
    ----------
    folder, number
        The spool and the session.
    changes
        Fields of `ScanOptions` to replace those of the server with.
    incomplete
        Whether a scan that is not complete may be reconstructed; the result says so.
    progress
        Show a bar.

    Raises
    ------
    MrsiError
        There is no such session, it still runs, it is not complete, or what its chain raises.
    """
    info = find_session(folder, number)
    _refuse_running(info)
    limitation = _limitation(info)
    if limitation and not incomplete:
        raise DataError(f"{limitation}; add --incomplete to reconstruct what there is")
    kept = open_session(info)
    limitations = (f"{limitation}; the result is of what there is",) if limitation else ()
    scan = Scan(kept.header_xml, kept.items, info.end.readouts or None, f"session {number}", kept.config, limitations)
    return replay_here(scan, _options(info, changes), progress=progress)


def write_h5(folder: Path, number: int, target: Path) -> str:
    """Export a session to an MRD file; return a line that says what it holds. Raises MrsiError."""
    info = find_session(folder, number)
    _refuse_running(info)
    count = export(info, target)
    limitation = _limitation(info)
    return f"{count} readouts -> {target}" + (f" ({limitation})" if limitation else "")


def remove(folder: Path, numbers: Sequence[int]) -> str:
    """Remove sessions for good; return a line that says so. Raises MrsiError."""
    # nothing is read: what is damaged has to go too
    found = [find_file(folder, number) for number in numbers]
    for file in found:
        if file.is_log and locked(file.path):
            raise DataError(
                f"session {file.number} still runs, or is just being turned into an MRD file; wait for its end"
            )
    for file in found:
        for path in forms_of(folder, file.number):
            try:
                path.unlink(missing_ok=True)
            except OSError as problem:
                raise DataError(f"{path} cannot be removed ({problem.strerror}); check its folder") from problem
    states = (f"session {file.number} ({(file.state or State.INTERRUPTED).value})" for file in found)
    return f"removed {', '.join(states)}"


def _refuse_running(info: SessionInfo) -> None:
    if info.state is State.RUNNING:
        raise DataError(f"session {info.file.number} still runs; wait for its end")


def _limitation(info: SessionInfo) -> str:
    """Say in what way a session is not complete; nothing where it is."""
    number, count = info.file.number, info.end.readouts
    problem = whole_messages(info) if info.file.is_log else ""
    if problem:
        return f"the raw data of session {number} end early ({problem})"
    if not info.end.complete:
        return f"of the raw data of session {number} only the first {count} readouts could be kept"
    if not info.end.closed:
        return f"the scan of session {number} was cut off after {count} readouts, before its CLOSE"
    return ""


def _options(info: SessionInfo, changes: dict[str, Any]) -> ScanOptions:
    """Return the server's options for the scan, with changes."""
    server = options_from_text(json.dumps(info.options)) if info.options else ScanOptions()
    settings = {**server.settings, **changes.get("settings", {})}
    return replace(server, **{**changes, "settings": settings})
