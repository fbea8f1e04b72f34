"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.scan import ScanOptions

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line for the user at once."""
    out = stream or sys.stdout
    out.write(text + "\n")
    out.flush()


def add_scan_options(parser: argparse.ArgumentParser, *, recipe_help: str) -> None:
    """Declare what every command that reconstructs takes."""
    parser.add_argument("--config", metavar="RECIPE", help=f"recipe by name or path ({recipe_help})")
    parser.add_argument("--config-dir", type=Path, help="folder of the site's own recipes (also MRSI_CONFIG_DIR)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--threads", type=positive, help="threads for numeric libraries (also MRSI_THREADS)")
    add_header_options(parser)
    parser.add_argument(
        "--models", type=Path, metavar="DIR",
        help="folder of learned signal models (also MRSI_MODELS; default: the user's own and models in the site's)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole, default=0, help="seed of everything random (default: 0)")


def add_header_options(parser: argparse.ArgumentParser) -> None:
    """Declare what tells how a header is to be read."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="profile key over the header's")
    parser.add_argument("--sequence", help="sequence description of the header: a shipped name or a .toml path")
    parser.add_argument(
        "--trajectories", type=Path, metavar="DIR",
        help="trajectory store: folder of ID.npz files (default: trajectories in the site's folder)",
    )  # fmt: skip


def scan_options(given: argparse.Namespace) -> ScanOptions:
    """Return the options of a scan."""
    return ScanOptions(
        recipe=given.config, site=recipes_folder(given), device=given.device, settings=settings_of(given.set),
        seed=given.seed, sequence=given.sequence, trajectories=trajectories_folder(given), models=models_folder(given),
    )  # fmt: skip


def trajectories_folder(given: argparse.Namespace) -> Path | None:
    """Return the trajectory store that was named; ConfigError where it is no folder."""
    path: Path | None = given.trajectories
    if path is not None and not path.is_dir():
        raise ConfigError(f"--trajectories {path} is no folder; name the folder of the ID.npz files")
    return path


def models_folder(given: argparse.Namespace) -> Path | None:
    """Return the model store that was named; ConfigError where it is no folder."""
    path: Path | None = given.models
    if path is not None and not path.is_dir():
        raise ConfigError(f"--models {path} is no folder; name the one that `mrsi learn --output` has written to")
    return path


def recipes_folder(given: argparse.Namespace) -> Path | None:
    """Return the site's folder that was named; ConfigError where it is no folder."""
    path: Path | None = given.config_dir
    if path is not None and not path.is_dir():
        raise ConfigError(f"--config-dir {path} is no folder; name the one that holds the site's recipes")
    return path


def check_new_file(path: Path, *, example: str) -> None:
    """Refuse a file to write that is there, is a folder or lies in none: raw data are not overwritten by a slip."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the file to write with {path / example}")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{path} cannot be written because its folder does not exist; make it first")
    if path.exists():
        raise ConfigError(f"{path} exists and would be lost; name a new file, or remove it first")


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` texts; ConfigError where one is no profile key with a value of its kind."""
    from mrsi_gadgets.mrd.keys import check_settings

    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.startswith("mrsi_"):
            raise ConfigError(f"--set {pair} is not KEY=VALUE with a profile key such as mrsi_dwell_us=500")
        settings[key] = value
    check_settings(settings)
    return settings


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """Read a time above 0 [s]."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a time in seconds above 0")
    return value


def gibibytes(text: str) -> float:
    """Read a size above 0 [GiB]."""
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of GiB above 0") from None


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return value


def names(text: str) -> tuple[str, ...]:
    """Read names between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
