"""Structured logging to stderr: text for people, JSON lines for machines. Patient fields are never logged.

A record is one line whatever it quotes, so that nobody who sends us a text can forge another one; a traceback follows
its record indented.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from mrsi_gadgets.errors import one_line

EXTRAS = ("peer", "failure", "received")
"""What records of a session may carry beside their sentence: who the peer is, why it failed, how many messages came."""


class TextFormatter(logging.Formatter):
    """Time, level, logger, process and message on one line; a traceback below it, each of its lines indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return one_line(super().formatMessage(record))

    def formatException(self, exc_info: Any) -> str:
        """Return the lines of a traceback."""
        return "\n".join(f"    {one_line(line)}" for line in super().formatException(exc_info).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, process, session, message, and those of `EXTRAS` there are."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "session": getattr(record, "session", None) or os.environ.get("MRSI_SESSION"),
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name, None) for name in EXTRAS}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in entry.items() if value is not None})


def set_up_logging(level: str = "INFO", form: str = "text") -> None:
    """Send log records of this package to stderr, as ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger("mrsi")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
