"""Limits of a session process, watched from outside: its memory, its last sign of work, its last word.

What the process does is read from the system (Linux: ``/proc``), so that it needs no help of a process that is stopped
or deadlocked. Where the system does not tell, only the last word is watched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import termios
import time
from dataclasses import dataclass
from pathlib import Path

GIBIBYTE = 1 << 30
CPU_S = 1.0
"""How often it is looked whether the process has used its processors."""
_AWAY_S = 5.0
"""If nobody has looked for so long (the client takes its results slowly), times begin anew."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def machine_memory() -> int | None:
    """Return the bytes of memory of this machine, or of the container it looks like; None where nobody tells."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * _PAGE)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(name).read_text()))
    return min(found, default=None)


@dataclass(frozen=True)
class ProcessLimits:
    """When a session process is ended."""

    memory_bytes: int | None = None
    """Resident memory; None: nine tenths of the machine's."""
    hang_s: float = 60.0
    """Neither a byte nor processor time for so long although there is something to do."""
    silence_s: float = 3600.0
    """Not a byte for so long after the scan has ended."""

    def memory(self) -> int | None:
        """Return the bound of the resident memory."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        whole = machine_memory()
        return None if whole is None else whole * 9 // 10


class Watchdog:
    """Looks at one session process and kills it beyond a limit.

    Parameters
    ----------
    process
        The session process.
    pair
        Our end of its socket pair; what it has not read yet is asked of the system.
    limits
        When it is ended.
    """

    def __init__(self, process: subprocess.Popen[bytes], pair: socket.socket, limits: ProcessLimits) -> None:
        self._process = process
        self._pair = pair
        self._limits = limits
        self._memory = limits.memory()
        self._now = self._active = self._spoke = self._cpu_looked = time.monotonic()
        self._cpu: int | None = None
        self._bytes = -1
        self.reason: str | None = None
        """Why the process was killed, for the sentence at the console."""

    def look(self, passed: int, scan_ended: bool) -> None:
        """Compare the process with its limits.

        Parameters
        ----------
        passed
            Bytes that it has sent so far.
        scan_ended
            Whether nothing more comes from the client.
        """
        if self.reason is not None:
            return
        now = time.monotonic()
        if now - self._now > _AWAY_S:
            self._active = self._spoke = now
        self._now = now
        if passed != self._bytes:
            self._bytes = passed
            self._active = self._spoke = now
        if not scan_ended:
            self._spoke = now
        if now - self._cpu_looked >= min(CPU_S, self._limits.hang_s / 4):
            self._cpu_looked = now
            cpu = _processor_ticks(self._process.pid)
            if cpu is None or cpu != self._cpu or not (scan_ended or self._unread()):
                self._cpu, self._active = cpu, now
        self._judge(now)

    def _judge(self, now: float) -> None:
        used = _resident_bytes(self._process.pid) if self._memory is not None else None
        if self._memory is not None and used is not None and used > self._memory:
            self._kill(f"it was ended because it had taken more memory than the {_size(self._memory)} it may")
        elif now - self._active > self._limits.hang_s:
            self._kill(f"it was ended because it hung: no sign of work for {self._limits.hang_s:g} s")
        elif now - self._spoke > self._limits.silence_s:
            self._kill(f"it was ended because it had said nothing for {self._limits.silence_s:g} s after the scan")

    def _kill(self, reason: str) -> None:
        self.reason = reason
        self._process.kill()

    def _unread(self) -> bool:
        """Whether the process has input that it has not read."""
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(self._pair, termios.TIOCOUTQ, bytes(4))
            return bool(struct.unpack("i", answer)[0])
        return False


def _size(count: int) -> str:
    return f"{count / GIBIBYTE:.3g} GiB"


def _resident_bytes(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return None


def _processor_ticks(pid: int) -> int | None:
    """Return the processor time of a process so far, in the system's ticks."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return None
