"""Sessions of the spool as messages and as MRD files; run as a program it turns one log into an .h5.

The program is started by the server at the lowest priority, never in the process that holds the sockets. The .h5 holds
the header, readouts and waveforms as every MRD tool reads them, and in the group ``session`` what else the peer has
sent (configuration, texts) and how the session began and ended, so that it replays to the same maps. It is read back
and compared before the log is removed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.errors import DataError, MrsiError
from mrsi_gadgets.io.mrd_file import Scan, ScanWriter, read_note, read_scan
from mrsi_gadgets.io.spool_files import SpoolFile, find_file, locked, path_of, spool_files, sync_folder
from mrsi_gadgets.io.spool_log import End, LogReader, State, read_end
from mrsi_gadgets.stream.messages import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Message,
    Text,
    Waveform,
)
from mrsi_gadgets.stream.wire import Decoder

LOG = logging.getLogger("mrsi.spool")
NOTES = "session"
_KINDS: dict[str, type] = {"CONFIG_FILE": ConfigFile, "CONFIG": ConfigText, "TEXT": Text}


@dataclass(frozen=True)
class SessionInfo:
    """A session of the spool, as `mrsi recover` lists it."""

    file: SpoolFile
    state: State
    started: str
    """UTC, ISO 8601."""
    end: End
    """How it ended; counted from the log where the session has not."""
    options: dict[str, Any]
    """The server's options for the scan."""
    size: int
    """Bytes of its file."""


@dataclass(frozen=True)
class KeptSession:
    """The messages of a session."""

    info: SessionInfo
    config: ConfigFile | ConfigText | None
    header_xml: str
    items: Iterator[Message]
    """Everything after the header, CLOSE left out."""
    log: _LogMessages | None = None
    """Where they come from; None: an .h5."""

    @property
    def problem(self) -> str:
        """Why no more items came, where that was not the end of what is kept; known when they have been read."""
        return self.log.problem if self.log is not None else ""


def list_sessions(folder: Path) -> list[SessionInfo]:
    """Describe every session of a spool, oldest first; one whose file cannot be read is listed with the reason."""
    found = []
    for file in spool_files(folder):
        try:
            found.append(read_info(file))
        except FileNotFoundError:
            continue  # removed, or renamed by its end, while we looked
        except DataError as problem:
            end = End(file.state or State.INTERRUPTED, f"{problem}", complete=False)
            found.append(SessionInfo(file, end.state, "", end, {}, 0))
    return found


def find_session(folder: Path, number: int) -> SessionInfo:
    """Return one session.

    Raises
    ------
    DataError
        There is none of this number, or its file is damaged.
    """
    return read_info(find_file(folder, number))


def read_info(file: SpoolFile) -> SessionInfo:
    """Read how a session began and ended. Raises DataError, and FileNotFoundError where it has just gone."""
    size = file.path.stat().st_size
    if not file.is_log:
        record = json.loads(read_note(file.path, NOTES, "record") or "{}")
        if "end" not in record:
            raise DataError(f"{file.path} does not say which session it holds; give it another name")
        end = End(**record["end"] | {"state": State(record["end"]["state"])})
        return SessionInfo(file, end.state, record["begin"]["started"], end, record["begin"].get("scan", {}), size)
    log = LogReader(file.path)
    end_of_log = log.end
    if end_of_log is None:
        state = State.RUNNING if locked(file.path) else State.INTERRUPTED
        cause = "" if state is State.RUNNING else "the server was killed or lost its power"
        readouts, closed = _count(log)
        end_of_log = End(state, cause, readouts, closed)
    return SessionInfo(
        file, end_of_log.state, log.begin.get("started", ""), end_of_log, log.begin.get("scan", {}), size
    )


def _count(log: LogReader) -> tuple[int, bool]:
    """Count the whole readouts (and images) of a log and tell whether its CLOSE came."""
    readouts = 0
    messages = _LogMessages(log)
    for message in messages:
        readouts += isinstance(message, Acquisition | Image)
    return readouts, messages.closed


class _LogMessages:
    """The whole messages of a log, CLOSE left out; `problem` says why there are no more, where that is no end."""

    def __init__(self, log: LogReader) -> None:
        self._log = log
        self.problem = ""
        self.closed = False

    def __iter__(self) -> Iterator[Message]:
        decoder = Decoder()
        try:
            for chunk in self._log.chunks():
                for message in decoder.feed(chunk):
                    if not isinstance(message, Close):
                        yield message
                if decoder.closed:
                    break
        except MrsiError as problem:
            self.problem = f"{problem}"
        self.closed = decoder.closed


def whole_messages(info: SessionInfo) -> str:
    """Read a log to its end and say what of it cannot be read; nothing where all can, but for a message cut off."""
    log = LogReader(info.file.path)
    messages = _LogMessages(log)
    for _ in messages:
        pass
    if messages.problem:
        return messages.problem
    return "" if log.whole else "the log is damaged behind it"


def open_session(info: SessionInfo) -> KeptSession:
    """Open a session for a replay.

    Raises
    ------
    DataError
        It holds no header, or its file is damaged.
    """
    if not info.file.is_log:
        scan = read_scan(info.file.path)
        control = json.loads(read_note(info.file.path, NOTES, "control") or "[]")
        config = next((_message(kind, text) for _, kind, text in control if kind != "TEXT"), None)
        texts = [(at, Text(text)) for at, kind, text in control if kind == "TEXT"]
        assert config is None or isinstance(config, ConfigFile | ConfigText)
        return KeptSession(info, config, scan.header_xml, _merged(scan, texts))
    log = _LogMessages(LogReader(info.file.path))
    messages = iter(log)
    config = None
    for message in messages:
        if isinstance(message, Header):
            return KeptSession(info, config, message.xml, messages, log)
        if isinstance(message, ConfigFile | ConfigText):
            config = message
    raise DataError(f"session {info.file.number} holds no header; {log.problem or 'its peer had not sent one'}")


def _message(kind: str, text: str) -> Message:
    made: Message = _KINDS[kind](text)
    return made


def _merged(scan: Scan, texts: list[tuple[int, Text]]) -> Iterator[Message]:
    """Yield readouts with the texts between them, then the waveforms."""
    waiting = list(texts)
    for at, readout in enumerate(scan.acquisitions):
        while waiting and waiting[0][0] <= at:
            yield waiting.pop(0)[1]
        yield readout
    yield from (text for _, text in waiting)
    yield from scan.waveforms


def settle(file: SpoolFile) -> Path | None:
    """Give the log of a session that nobody runs any more its final name; what holds no readout goes.

    Returns
    -------
        The log where it may become an .h5.
    """
    if path_of(file.path.parent, file.number, file.state, "h5").exists():
        file.path.unlink(missing_ok=True)  # its conversion was complete but for this
        return None
    try:
        end = read_end(file.path)
        if end is None:
            # one is enough to know: the log may be long
            if not any(isinstance(message, Acquisition | Image) for message in _LogMessages(LogReader(file.path))):
                file.path.unlink(missing_ok=True)
                return None
            return file.path
    except DataError as problem:
        LOG.warning("%s stays as it is: %s", file.path.name, problem)
        return None
    path = path_of(file.path.parent, file.number, end.state, "log")
    file.path.rename(path)
    return path


def export(info: SessionInfo, target: Path) -> int:
    """Write a session to an MRD file that any MRD tool reads; return the number of its readouts.

    Raises
    ------
    DataError
        It holds no header, or something that such a file cannot hold, or the file cannot be written.
    """
    return _write(open_session(info), target)[0]


def _write(kept: KeptSession, target: Path) -> tuple[int, int]:
    """Write a file; return the number of readouts and their checksum."""
    info, config = kept.info, kept.config
    control: list[tuple[int, str, str]] = []
    if isinstance(config, ConfigFile):
        control.append((0, "CONFIG_FILE", config.name))
    elif config is not None:
        control.append((0, "CONFIG", config.text))
    count, checksum = 0, 0
    with ScanWriter(target, kept.header_xml) as writer:
        for item in kept.items:
            if isinstance(item, Acquisition):
                writer.append(item)
                count, checksum = count + 1, _sum(item, checksum)
            elif isinstance(item, Waveform):
                writer.append(item)
            elif isinstance(item, Text):
                control.append((count, "TEXT", item.text))
            else:
                raise DataError(
                    f"session {info.file.number} holds {type(item).__name__.lower()} messages, which an MRD file of "
                    "readouts cannot hold; replay it with -o instead"
                )
        begin = {"number": info.file.number, "started": info.started, "scan": info.options}
        end = asdict(info.end) | {"state": info.state.value, "readouts": count}
        writer.note(NOTES, "record", json.dumps({"begin": begin, "end": end}))
        writer.note(NOTES, "control", json.dumps(control))
    return count, checksum


def _sum(readout: Acquisition, checksum: int) -> int:
    checksum = zlib.crc32(np.ascontiguousarray(readout.data).data, zlib.crc32(readout.head.tobytes(), checksum))
    return (
        checksum if readout.trajectory is None else zlib.crc32(np.ascontiguousarray(readout.trajectory).data, checksum)
    )


def archive(log_path: Path) -> Path | None:
    """Turn the log of a session that has ended into an .h5 beside it, compare, and remove the log.

    Returns
    -------
        The .h5; None where the session still runs or another process converts it.

    Raises
    ------
    DataError
        The log holds what an .h5 cannot hold, or the .h5 cannot be written; the log stays.
    """
    with log_path.open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        file = next((f for f in spool_files(log_path.parent) if f.path == log_path), None)
        if file is None:
            return None
        info = read_info(file)
        if info.end.state is State.RUNNING:  # we hold the lock ourselves
            info = replace(info, state=State.INTERRUPTED, end=_interrupted(info.end))
        target = path_of(log_path.parent, file.number, info.state, "h5")
        draft = target.with_name(f".{target.name}.draft.part")
        try:
            _convert(info, draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        if os.fstat(log.fileno()).st_nlink == 0:  # removed meanwhile, and for good
            target.unlink(missing_ok=True)
            return None
        sync_folder(log_path.parent)
        log_path.unlink()
    return target


def _interrupted(end: End) -> End:
    return replace(end, state=State.INTERRUPTED, cause="the server was killed or lost its power")


def _convert(info: SessionInfo, draft: Path) -> None:
    """Write the .h5 of a log and read it back."""
    kept = open_session(info)
    count, checksum = _write(kept, draft)
    if kept.problem:
        raise DataError(kept.problem)
    found, read_sum = 0, 0
    for readout in read_scan(draft).acquisitions:
        found, read_sum = found + 1, _sum(readout, read_sum)
    if (found, read_sum) != (count, checksum):
        raise DataError(f"{draft} does not hold what was written; check the disk")
    draft.chmod(0o600)
    with draft.open("rb") as file:
        os.fsync(file.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Convert one log, giving way to everything else on the machine."""
    parser = argparse.ArgumentParser(prog="python -m mrsi_gadgets.io.spool_archive")
    parser.add_argument("log", type=Path)
    given = parser.parse_args(arguments)
    os.umask(0o077)
    os.nice(19)
    try:
        archive(given.log)
    except FileNotFoundError:
        return 0  # removed to make room in the meantime
    except MrsiError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
