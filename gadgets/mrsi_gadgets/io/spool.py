"""The spool: a folder in which the raw data of every session are kept before they are processed.

Whoever holds the peer's socket appends what it receives to the session's log (`spool_log`) and only then passes it on,
so a chain that crashes, hangs or is killed loses nothing, nor does a server that is killed. When a session has ended
and none runs, its log becomes an MRD .h5 (`spool_archive`). Names tell the state, so that nothing has to be opened to
find what may go::

    session-000012.log              running, or interrupted: nobody has the log locked any more
    session-000011.failed.log       ended; not yet, or not completely, to be had as .h5
    session-000010.finished.h5

Disk use is bounded. Room is made by removing finished sessions, oldest first; all others stay until somebody removes
them. Where there is no room the session is told and goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.io.spool_files import DRAFT, SpoolFile, held, locked, path_of, spool_files, sync_folder
from mrsi_gadgets.io.spool_log import End, LogWriter, State

LOG = logging.getLogger("mrsi.spool")
GIBIBYTE = 1 << 30
OFF = "off"
"""What MRSI_SPOOL says where nothing is to be kept."""
SYNC_S = 1.0
"""How often the disk is told to keep what was written: a loss of power loses what came since."""
CHECK_BYTES = 16 << 20
"""After so many bytes of a session room is looked for again."""
ARCHIVE_S = 1800.0
"""How long the conversion of one log may take."""


def default_folder() -> Path | None:
    """Return the folder of this user: that of MRSI_SPOOL, else in XDG's state directory.

    None where MRSI_SPOOL is ``off``, or without a home.
    """
    if os.environ.get("MRSI_SPOOL") == OFF:
        return None
    if os.environ.get("MRSI_SPOOL"):
        return Path(os.environ["MRSI_SPOOL"])
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    # the XDG base directory specification: a relative path is to be ignored
    with contextlib.suppress(RuntimeError):  # a service may run as somebody without a home
        return (state if state.is_absolute() else Path("~/.local/state").expanduser()) / "mrsi-gadgets" / "spool"
    return None


@dataclass(frozen=True)
class SpoolOptions:
    """Where raw data are kept and how much."""

    folder: Path
    limit_bytes: int = 50 * GIBIBYTE
    reserve_bytes: int = GIBIBYTE
    """So much of the disk stays free."""


class SessionSpool:
    """The raw data of one session on their way to the disk. Nothing here raises: reconstruction goes on."""

    def __init__(self, spool: Spool, number: int, writer: LogWriter | None, problem: str = "") -> None:
        self.number = number
        self._spool = spool
        self._writer = writer
        self._unchecked = 0
        self._dirty = writer is not None
        self._named = False
        """Whether the disk knows the log's name."""
        self._lock = threading.Lock()
        self.problem = problem
        """Why not everything is kept, one sentence; empty while it is."""
        self.on_problem: Callable[[str], None] = lambda sentence: None
        """Told when something is kept no longer."""

    @property
    def folder(self) -> Path:
        """Where the log lies."""
        return self._spool.folder

    @property
    def kept(self) -> bool:
        """Whether there is a log."""
        return self._writer is not None

    @property
    def whole(self) -> bool:
        """Whether everything that came is in it."""
        return self._writer is not None and not self.problem and not self._writer.gone

    def keep(self, chunk: bytes | memoryview) -> None:
        """Append bytes that came from the peer; they are safe from a killed process when this returns."""
        if self._writer is None or self.problem:
            return
        self._unchecked += len(chunk)
        if self._unchecked >= CHECK_BYTES:
            self._unchecked = 0
            reason = self._spool.make_room(CHECK_BYTES)
            if reason:
                self._give_up(reason)
                return
        try:
            if self._writer.gone:
                self._give_up(f"somebody has removed {self._writer.path.name} from {self._spool.folder}")
                return
            self._writer.append(chunk)
        except OSError as problem:
            self._give_up(f"{self._spool.folder} cannot be written ({problem.strerror})")
            return
        self._dirty = True

    def _give_up(self, reason: str) -> None:
        self.problem = (
            f"the raw data of session {self.number} are not kept from here on: {reason}; the reconstruction goes on"
        )
        self.on_problem(self.problem)

    def sync(self) -> None:
        """Have the disk keep what was appended."""
        with self._lock:
            if self._writer is not None and self._dirty and self._writer.descriptor >= 0:
                self._dirty = False
                with contextlib.suppress(OSError):  # the next write tells
                    self._writer.sync()
                    if not self._named:  # a file whose name is lost is lost
                        sync_folder(self._writer.path.parent)
                        self._named = True

    def end(self, state: State, cause: str = "", *, readouts: int, closed: bool) -> None:
        """Say how the session has ended; without readouts nothing of it is kept."""
        with self._lock:
            if self._writer is not None:
                self._finish(self._writer, state, cause, readouts, closed)
        self._spool.ended(self)

    def _finish(self, writer: LogWriter, state: State, cause: str, readouts: int, closed: bool) -> None:
        if not readouts:
            writer.path.unlink(missing_ok=True)
        else:
            end = End(state, cause, readouts, closed, not self.problem, datetime.now(UTC).isoformat(timespec="seconds"))
            try:
                writer.end(end)
                writer.sync()
                writer.path.rename(path_of(writer.path.parent, self.number, state, "log"))
            except OSError as problem:
                LOG.error(
                    "session %d: how it ended could not be written to %s (%s)", self.number, writer.path,
                    problem.strerror, extra={"session": str(self.number)},
                )  # fmt: skip
        writer.close()


class Spool:
    """The folder, for the one process that holds the sockets.

    Parameters
    ----------
    options
        Where and how much.
    """

    def __init__(self, options: SpoolOptions) -> None:
        self.options = options
        self.folder = options.folder
        self._last = 0
        self._open: set[SessionSpool] = set()
        self._to_archive: deque[Path] = deque()
        self._changed = threading.Condition()
        self._room = threading.Lock()
        self._stopped = False
        self._archiver: subprocess.Popen[str] | None = None
        self._keeper = threading.Thread(target=self._keep, name="spool", daemon=True)

    def start(self, *, tidy: bool = True) -> None:
        """Look at the folder, take up what a server that was killed has left, and say in the log what is wrong.

        Nothing raises: a server whose raw data cannot be kept still serves. Without `tidy` what others have left is
        left to a server.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if tidy:
                self._tidy()
        except OSError as problem:
            LOG.error("raw data cannot be kept: %s cannot be used (%s)", self.folder, problem.strerror)
        else:
            if self.folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                LOG.warning("others may write to %s, and so remove raw data: chmod go-w", self.folder)
            reason = self.make_room(CHECK_BYTES)
            if reason:
                LOG.error("raw data cannot be kept: %s", reason)
            else:
                LOG.info("raw data of every session are kept in %s", self.folder)
        self._keeper.start()

    def _tidy(self) -> None:
        """Bring names in order, drop what nothing was received of, and queue what may become .h5."""
        for path in self.folder.iterdir():
            draft = DRAFT.fullmatch(path.name)
            # one whose log is locked is being written for another server
            if draft is not None and not any(locked(log) for log in self.folder.glob(f"{draft[1]}*.log")):
                path.unlink(missing_ok=True)
        # those of a server that was killed: import here, since only this needs to parse
        from mrsi_gadgets.io.spool_archive import settle

        for file in spool_files(self.folder):
            self._last = max(self._last, file.number)
            if not file.is_log:
                continue
            with held(file.path) as ours:  # another server may just be making it
                settled = settle(file) if ours else None
            if settled is not None:
                self._to_archive.append(settled)

    def stop(self) -> None:
        """Let go of everything; open sessions have been ended before."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if self._archiver is not None:  # it may take half an hour; the next start takes it up again
                self._archiver.terminate()
        if self._keeper.ident is not None:
            self._keeper.join()

    def open(self, about: dict[str, Any]) -> SessionSpool:
        """Begin a session; its number is one that no session of the folder has.

        Parameters
        ----------
        about
            What BEGIN says beside the time.
        """
        begin = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **about}
        with self._changed:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                files = spool_files(self.folder)
                newest = files[-1].number if files else 0
                reason = self.make_room(CHECK_BYTES)
            except OSError as problem:
                newest, reason = 0, f"{self.folder} cannot be used ({problem.strerror})"
            session: SessionSpool | None = None
            self._last = max(self._last, newest)
            while session is None:
                self._last += 1
                session = self._begin(self._last, begin, reason)
            self._open.add(session)
            self._changed.notify_all()
        if session.problem:
            LOG.error("%s", session.problem, extra={"session": str(session.number)})
        return session

    def _begin(self, number: int, begin: dict[str, Any], reason: str) -> SessionSpool | None:
        """Open one log; None where another server has just taken the number."""
        writer: LogWriter | None = None
        if not reason:
            try:
                writer = LogWriter(path_of(self.folder, number, None, "log"), {"number": number, **begin})
                # who lists sessions, and a server that starts, hold a log for a moment; the latter takes a log that
                # nobody has locked yet for one that a killed server has left, and removes it
                fcntl.flock(writer.descriptor, fcntl.LOCK_EX)
                if writer.gone:
                    writer.close()
                    return None
            except FileExistsError:
                return None
            except OSError as problem:
                reason = f"{self.folder} cannot be written ({problem.strerror})"
                if writer is not None:  # a file system without locks
                    writer.close()
                    writer.path.unlink(missing_ok=True)
                    writer = None
        problem_text = ""
        if reason:
            problem_text = f"the raw data of session {number} are not kept: {reason}; the reconstruction goes on"
        return SessionSpool(self, number, writer, problem_text)

    def ended(self, session: SessionSpool) -> None:
        """Take note that a session has ended."""
        with self._changed:
            self._open.discard(session)
            for file in spool_files(self.folder) if session.kept else ():
                if file.number == session.number and file.is_log:
                    self._to_archive.append(file.path)
            self._changed.notify_all()

    def make_room(self, wanted: int) -> str:
        """Remove finished sessions, oldest first, until `wanted` bytes fit; return why they do not, or nothing."""
        with self._room:
            try:
                used, free = self._used(), self._free()
                finished = [file for file in spool_files(self.folder) if file.state is State.FINISHED]
                while True:
                    over = used + wanted > self.options.limit_bytes
                    if not over and free - wanted >= self.options.reserve_bytes:
                        return ""
                    if not finished:
                        break
                    self._remove(finished.pop(0))
                    used, free = self._used(), self._free()
            except OSError as problem:
                return f"{self.folder} cannot be used ({problem.strerror})"
        remedy = "replay or remove failed sessions (mrsi recover)"
        if over:
            return (
                f"{self.folder} holds as much as it may ({self.options.limit_bytes / GIBIBYTE:.3g} GiB) and no "
                f"finished session is left to remove; {remedy} or raise --spool-limit"
            )
        return (
            f"the disk of {self.folder} has only {free / GIBIBYTE:.3g} GiB free and no finished session is left to "
            f"remove; make room, or {remedy}"
        )

    def _remove(self, file: SpoolFile) -> None:
        LOG.info("the raw data of session %d, which has finished, are removed to make room", file.number)
        for suffix in ("log", "h5"):
            path_of(self.folder, file.number, file.state, suffix).unlink(missing_ok=True)

    def _used(self) -> int:
        used = 0
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                used += entry.stat(follow_symlinks=False).st_size
        return used

    def _free(self) -> int:
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def _keep(self) -> None:
        """Body of the keeper thread: sync running sessions, archive ended ones while none runs."""
        while True:
            with self._changed:
                while not (self._stopped or self._open or self._to_archive):
                    self._changed.wait()
                if self._stopped:
                    return
                running = list(self._open)
                ready = None if running else self._to_archive.popleft()
                if ready is None:
                    self._changed.wait(SYNC_S)
            for session in running:
                session.sync()
            if ready is not None:
                self._archive(ready)

    def _archive(self, path: Path) -> None:
        """Have another process turn a log into an MRD file: HDF5 must not be able to end this one."""
        command = [sys.executable, "-m", "mrsi_gadgets.io.spool_archive", str(path)]
        try:
            # for a while there are both; a session that comes meanwhile must find room
            size = path.stat().st_size + CHECK_BYTES
            if self._used() + size > self.options.limit_bytes or self._free() - size < self.options.reserve_bytes:
                LOG.info("%s stays a log: there is no room for an MRD file beside it", path.name)
                return
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0, text=True
            ) as process:
                with self._changed:
                    self._archiver = process
                    if self._stopped:
                        process.terminate()
                try:
                    _, said = process.communicate(timeout=ARCHIVE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    _, said = process.communicate()
            with self._changed:
                self._archiver = None
            if process.returncode and not self._stopped:
                lines = said.strip().splitlines() or [f"exit code {process.returncode}"]
                LOG.warning("%s stays as it is: %s", path.name, lines[-1])
        except FileNotFoundError:
            return  # removed to make room in the meantime
        except OSError as problem:
            LOG.warning("%s stays as it is: no process could be started (%s)", path.name, problem.strerror)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be one.

    Raises
    ------
    ConfigError
        It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--spool {folder} is no folder; name a folder for raw data")
