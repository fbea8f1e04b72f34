"""What a running server knows of its sessions, for people and machines that look from outside.

Session processes tell it what happens (`gadgets.watch`), the supervisor how they begin and end; the page and the
metrics read it. Only the last sessions are kept, and of their images what a console looks at. It knows no names: of a
peer the address, of a scan its recipe, times and counts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mrsi_gadgets import __version__

KEPT = 12
"""Sessions whose pictures are kept."""
MOST_PICTURES = 200
"""Pictures kept of one session; a dynamic scan's oldest go first."""
_LATENCY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0)
CAUSES = ("error", "died", "refused", "peer lost", "stopped")
"""Why sessions fail: the chain refused the data; the process died or was killed; too many sessions; no CLOSE came; the
server was stopped."""


@dataclass
class SessionState:
    """One session as the page shows it."""

    number: int
    peer: str
    began: float
    """Unix time [s]."""
    state: str = "connected"
    """connected, receiving, computing, finished, failed or empty (closed in order without a scan)."""
    ended: float | None = None
    failure: str = ""
    cause: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    readouts: dict[str, int] = field(default_factory=dict)
    filled: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    images: int = 0
    latency_s: float | None = None
    preview: dict[str, Any] | None = None
    maps: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    changed: int = 0

    def summary(self) -> dict[str, Any]:
        """Return what changes often and is small."""
        return {
            "number": self.number, "peer": self.peer, "began": self.began, "ended": self.ended, "state": self.state,
            "failure": self.failure, "cause": self.cause, "about": self.about, "readouts": self.readouts,
            "filled": self.filled, "warnings": self.warnings, "images": self.images, "latency_s": self.latency_s,
            "maps": len(self.maps), "spectra": len(self.spectra), "preview": self.preview is not None,
            "changed": self.changed,
        }  # fmt: skip

    def pictures(self) -> dict[str, Any]:
        """Return maps, preview and spectra."""
        return {"number": self.number, "preview": self.preview, "maps": list(self.maps.values()),
                "spectra": self.spectra}  # fmt: skip


class Monitor:
    """Collects what sessions tell; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._sessions: OrderedDict[int, SessionState] = OrderedDict()
        self._changes = itertools.count(1)
        self._version = 0
        self._queues: dict[int, int] = {}
        self._began = time.monotonic()
        self.closed = False
        """Whether the server stops: nothing more will be told."""
        self.registry = CollectorRegistry()
        self._running = Gauge("mrsi_sessions_running", "Sessions that have begun and not ended", registry=self.registry)
        self._done = Counter(
            "mrsi_sessions", "Sessions that have ended, by outcome", ["outcome"], registry=self.registry
        )
        self._failures = Counter("mrsi_failures", "Failed sessions by cause", ["cause"], registry=self.registry)
        self._readouts = Counter("mrsi_readouts", "Readouts received", registry=self.registry)
        self._images = Counter("mrsi_images", "Images of scans that ended in order", registry=self.registry)
        self._latency = Histogram(
            "mrsi_latency_seconds", "Last readout to last image", buckets=_LATENCY_S, registry=self.registry
        )
        self._queue = Gauge("mrsi_queue_bytes", "Bytes that wait in front of session processes", registry=self.registry)
        info = Gauge("mrsi_build_info", "Version of the server", ["version"], registry=self.registry)
        info.labels(__version__).set(1)
        for cause in CAUSES:
            self._failures.labels(cause)
        for outcome in ("finished", "failed", "empty"):
            self._done.labels(outcome)

    def begins(self, number: int, peer: str) -> None:
        """Note that a session has sent its first byte."""
        with self._lock:
            self._sessions[number] = SessionState(number, peer, time.time())
            self._running.inc()
            ended = [n for n, s in self._sessions.items() if s.ended is not None]
            for old in ended[: max(0, len(self._sessions) - KEPT)]:
                del self._sessions[old]
            self._changed(number)

    def told(self, number: int, what: dict[str, Any]) -> None:
        """Take what a session process says; what is not understood is left out."""
        with self._lock:
            session = self._sessions.get(number)
            if session is None or session.ended is not None:
                return
            self._take(session, what)
            self._changed(number)

    def _take(self, session: SessionState, what: dict[str, Any]) -> None:
        kind = what.get("kind")
        if kind == "begins":
            session.about, session.state = what, "receiving"
        elif kind == "progress":
            before = sum(session.readouts.values())
            session.readouts = dict(what.get("readouts", {}))
            session.filled = dict(what.get("filled", {}))
            self._readouts.inc(max(0, sum(session.readouts.values()) - before))
        elif kind == "computing":
            session.state = "computing"
        elif kind == "preview":
            session.preview = what
        elif kind == "map":
            session.maps[f"{what.get('frame')} {what.get('title')}"] = what
            while len(session.maps) > MOST_PICTURES:
                session.maps.popitem(last=False)
        elif kind == "spectrum":
            session.spectra = [*session.spectra, what][-3:]
        elif kind == "latency":
            session.latency_s, session.images = float(what["seconds"]), int(what["images"])
        elif kind == "warnings":
            session.warnings = [str(sentence) for sentence in what.get("warnings", ())]
        elif kind == "failure":
            # there will be no result, while the peer may send for long yet; `ends` follows
            session.state, session.failure = "failed", str(what.get("sentence"))
            session.maps.clear()
            session.spectra = []

    def queue(self, number: int, n_bytes: int) -> None:
        """Note how many bytes wait in front of a session's process."""
        with self._lock:
            self._queues[number] = n_bytes
            self._queue.set(sum(self._queues.values()))

    def ends(self, number: int, *, failure: str = "", cause: str = "") -> None:
        """Note how a session ended; without a failure it finished in order."""
        with self._lock:
            session = self._sessions.get(number)
            if session is None or session.ended is not None:
                return
            self._running.dec()
            self._queues.pop(number, None)
            self._queue.set(sum(self._queues.values()))
            session.ended, session.failure = time.time(), failure
            session.cause = cause if failure else ""
            session.state = "failed" if failure else ("finished" if session.about else "empty")
            if failure:
                # a scan that failed has no result, whatever pictures came before
                session.maps.clear()
                session.spectra = []
                self._failures.labels(cause).inc()
            self._done.labels(session.state).inc()
            if session.latency_s is not None and not failure:
                self._images.inc(session.images)
                self._latency.observe(session.latency_s)
            self._changed(number)

    def close(self) -> None:
        """Say that nothing more will be told."""
        with self._lock:
            self.closed = True
            self._lock.notify_all()

    def health(self) -> dict[str, Any]:
        """Return whether the server lives and what it does."""
        with self._lock:
            running = [s.number for s in self._sessions.values() if s.ended is None]
        return {"status": "ok", "version": __version__, "uptime_s": round(time.monotonic() - self._began, 1),
                "sessions_running": len(running)}  # fmt: skip

    def summaries(self) -> list[dict[str, Any]]:
        """Return all kept sessions, newest first."""
        with self._lock:
            return [session.summary() for session in reversed(self._sessions.values())]

    def pictures(self, number: int) -> dict[str, Any] | None:
        """Return a session's pictures, or None where it is not kept."""
        with self._lock:
            session = self._sessions.get(number)
            return None if session is None else session.pictures()

    def changes(self, since: int, timeout_s: float) -> int:
        """Wait until something has changed since version `since`, at most `timeout_s`; return the version."""
        with self._lock:
            self._lock.wait_for(lambda: self._version > since, timeout_s)
            return self._version

    def sessions_changed(self, since: int) -> Iterator[dict[str, Any]]:
        """Yield the summaries of sessions that have changed since version `since`."""
        with self._lock:
            found = [s.summary() for s in self._sessions.values() if s.changed > since]
        yield from found

    def _changed(self, number: int) -> None:
        self._version = next(self._changes)
        self._sessions[number].changed = self._version
        self._lock.notify_all()
