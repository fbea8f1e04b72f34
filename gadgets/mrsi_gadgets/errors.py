"""The errors a user can meet, one tree.

::

    MrsiError
    ├── ConfigError          a recipe, a setting or a command line is wrong
    ├── MissingPackageError  an optional package or system package is not installed
    ├── ProtocolError        a peer broke the rules of the wire
    │   └── PeerLost         the stream ended without CLOSE
    ├── DataError            headers or readouts are missing, contradictory or damaged
    ├── ModelError           a stored signal model is damaged, foreign, or cannot be written
    └── NumericalError       a solver did not reach a usable result

Every message is one sentence: what is wrong, where, and what to do about it. It is shown as it stands at the
console, in the log and on the command line.
"""

from __future__ import annotations

LONGEST_SENTENCE = 2000
"""Characters; only what quotes something of others is longer."""


class MrsiError(Exception):
    """Base of every error this package raises on purpose.

    Its message is on one line whatever it quotes, and no longer than a console or a log can bear: what cannot be
    printed is shown as its escape, what is too long loses its middle.
    """

    def __init__(self, sentence: str = "") -> None:
        if len(sentence) > LONGEST_SENTENCE:
            half = LONGEST_SENTENCE // 2
            sentence = f"{sentence[:half]} ... {sentence[-half:]}"
        super().__init__(one_line(sentence))


class ConfigError(MrsiError):
    """A recipe, a setting or a command line is wrong."""


class MissingPackageError(ConfigError):
    """An optional package is not installed; the message names it and the command that installs it."""


class ProtocolError(MrsiError):
    """A peer broke the rules of the wire (unknown message, wrong order, length above the limit)."""


class PeerLost(ProtocolError):
    """The stream ended without CLOSE: an aborted scan, never a finished one."""


class DataError(MrsiError):
    """Headers or readouts are missing, contradictory or damaged."""


class ModelError(MrsiError):
    """A stored signal model is damaged, of another format, or cannot be written."""


class NumericalError(MrsiError):
    """A solver did not reach a usable result."""


def one_line(text: str) -> str:
    """Return a text without what would break a line of the log: that is shown as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)


def visible(text: str, most: int = 100) -> str:
    """Return a text of others as a sentence can quote it: on one line, no longer than it can bear."""
    return one_line(text[:most]) + ("" if len(text) <= most else "...")
