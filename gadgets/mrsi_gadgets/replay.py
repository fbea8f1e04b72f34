"""Replay of a raw file: through the chain in this process, or through any MRD server, to one folder of results."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.composition import DEFAULT_RECIPE, is_recipe_path, read_recipe
from mrsi_gadgets.gadgets.openrecon import parameter_id
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.mrd.adapters import adapted
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.output.folder import write_results
from mrsi_gadgets.stream.client import paced, send_scan
from mrsi_gadgets.stream.messages import Close, ConfigFile, ConfigText, Header, Image, Message
from mrsi_gadgets.stream.serialisation import encode
from mrsi_gadgets.stream.session import Session
from mrsi_gadgets.stream.transport import Connection

log = logging.getLogger("mrsi.replay")

_SPECTRA = parameter_id("console_images", "spectra")
"""JSON parameter that asks a server for spectra."""


@dataclass
class ReplayResult:
    """What came back of one scan."""

    images: list[Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    observed: list[Any] = field(default_factory=list)
    """Items seen inside the chain (in-process replay only)."""


@dataclass(frozen=True)
class Scan:
    """A scan to replay: header, readouts, and how many there are (None for a pipe)."""

    header_xml: str
    readouts: Iterable[Message]
    length: int | None
    name: str
    config: ConfigFile | ConfigText | None = None
    """What the scan itself says about its recipe (an MRD stream may)."""
    limitations: tuple[str, ...] = ()
    """What the result has to say about the scan: that it was cut off, for instance."""


def open_scan(source: str) -> Scan:
    """Open an MRD .h5 file, or ``-`` for an MRD stream on stdin (an optional CONFIG, a HEADER, readouts, CLOSE)."""
    if source != "-":
        scan = read_scan(Path(source))
        return Scan(scan.header_xml, scan.acquisitions, len(scan.acquisitions), source)
    messages = Connection((_stdin(), None), session=Session(config_optional=True), name="stdin").messages()
    config: ConfigFile | ConfigText | None = None
    for message in messages:
        if isinstance(message, Header):
            return Scan(message.xml, messages, None, "stdin", config)
        if isinstance(message, ConfigFile | ConfigText):
            config = message
    raise DataError("the stream on stdin holds no header; pipe an MRD stream into it")


def in_real_time(scan: Scan, options: ScanOptions, *, tell: Callable[[str], None] = log.warning) -> Scan:
    """Return the scan with readouts that come at the times their stamps say, relative to the first.

    `tell` takes a sentence where that is not quite what is done.
    """
    header = adapted(parse_header(scan.header_xml), options.sequence)
    tick_s = read_protocol(header, options.settings).time_tick_ms * 1e-3
    return replace(scan, readouts=paced(scan.readouts, tick_s, tell=tell))


def replay_here(scan: Scan, options: ScanOptions, *, progress: bool = False, keep: bool = False) -> ReplayResult:
    """Run the scan's chain in this process. Raises MrsiError."""
    result = ReplayResult()
    start = time.perf_counter()

    def messages(readouts: Iterable[Message]) -> Iterator[Message]:
        yield scan.config or ConfigFile(DEFAULT_RECIPE)
        yield Header(scan.header_xml)
        yield from readouts

    with _bar(scan, progress) as readouts:
        report = run_scan(
            messages(readouts), _collector(result.images), options, limitations=scan.limitations,
            observe=result.observed.append if keep else None,
        )  # fmt: skip
    if report is not None:
        result.summary = {
            "input": scan.name,
            "mode": "in process",
            "seconds": {**report.seconds, "whole scan": time.perf_counter() - start},
            "warnings": report.warnings,
            "provenance": report.provenance,
        }
    result.summary["machine"] = machine_description()
    return result


def replay_to(scan: Scan, address: str, options: ScanOptions, *, progress: bool = False) -> ReplayResult:
    """Send the scan to an MRD server and collect what it returns. Raises MrsiError, also for the server's errors.

    Profile settings, and which spectra are wanted where that was said, go along as JSON parameters behind the header,
    as FIRE sends its own.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"address '{address}' is not HOST:PORT; for example --to 127.0.0.1:9002")
    config = configuration_message(options, scan.config)
    parameters = dict(options.settings) | ({_SPECTRA: options.spectra} if options.spectra else {})
    result = ReplayResult()
    start = time.perf_counter()
    with _bar(scan, progress) as readouts:
        sent = send_scan(
            host,
            int(port),
            config_name=config.name if isinstance(config, ConfigFile) else None,
            config_text=config.text if isinstance(config, ConfigText) else None,
            parameters=parameters or None,
            header_xml=scan.header_xml,
            items=readouts,
        )
    result.images.extend(sent.images)
    result.texts.extend(sent.texts)
    result.summary = {
        "input": scan.name,
        "mode": f"through {address}",
        "seconds": {"last readout sent to last image": sent.latency_s, "whole scan": time.perf_counter() - start},
        "warnings": [text.removeprefix("WARNING").strip() for text in sent.texts if text.startswith("WARNING")],
        "provenance": {"version": __version__, "texts": sent.texts},
        "machine": machine_description(),
    }
    return result


def configuration_message(
    options: ScanOptions, config: ConfigFile | ConfigText | None = None
) -> ConfigFile | ConfigText:
    """Return how a server is told the recipe: by name where it is one, else as text.

    `config` is what the scan itself says; an operator's recipe comes before it.

    Raises
    ------
    ConfigError
        The recipe is a path where there is no file, or no text.
    """
    if options.recipe is None and config is not None:
        return config
    recipe = options.recipe or DEFAULT_RECIPE
    if is_recipe_path(recipe):
        return ConfigText(read_recipe(Path(recipe), options.site))
    site_file = options.site / f"{recipe}.xml" if options.site is not None else None
    if site_file is not None and site_file.is_file():
        return ConfigText(read_recipe(site_file, options.site))
    return ConfigFile(recipe)


class ImagePipe:
    """The standard output as an MRD stream: the scan's header, images, CLOSE.

    Whatever else writes to the standard output from now on (a library's greeting) is sent to stderr instead. A scan
    that failed writes nothing: its reader sees an end without CLOSE.
    """

    def __init__(self) -> None:
        if sys.stdout is None or sys.stdout.isatty():
            raise ConfigError("--stdout writes an MRD stream; pipe it into a program or a file")
        self._file = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write(self, header_xml: str, images: Iterable[Image]) -> None:
        """Write a whole result."""
        with self._file as file:
            messages: list[Message] = [Header(header_xml), *images, Close()]
            for message in messages:
                file.write(encode(message))


def save(result: ReplayResult, folder: Path, *, regions: Path | None = None) -> None:
    """Write the folder of results, with the regions of a volume of labels in its table."""
    write_results(folder, result.images, summary=result.summary, regions=regions)


def machine_description() -> str:
    """Short name of this machine's kind, for reports."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _collector(images: list[Image]) -> Callable[[Message], None]:
    def collect(message: Message) -> None:
        if isinstance(message, Image):
            images.append(message)

    return collect


@contextmanager
def _bar(scan: Scan, show: bool) -> Iterator[Iterable[Message]]:
    """Give the readouts with a bar that is gone when the block is left, so that no sentence is written behind it."""
    with tqdm(
        scan.readouts, total=scan.length, unit=" readouts", disable=not show, file=sys.stderr, leave=False
    ) as bar:
        yield bar


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigError("there is no standard input to read an MRD stream from; name a file instead")
    return sys.stdin.buffer
