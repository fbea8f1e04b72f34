"""One scan from its messages to its images: what a session process, an external node and a replay all run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.arrays import describe_device, one_blas_thread, select_device
from mrsi_gadgets.data import Protocol, Role
from mrsi_gadgets.errors import ConfigError, DataError, visible
from mrsi_gadgets.gadgets.absolute_units import AbsoluteUnits
from mrsi_gadgets.gadgets.composition import DEFAULT_RECIPE, Chain, find_recipe, recipe_from_text
from mrsi_gadgets.gadgets.console_images import ConsoleImages
from mrsi_gadgets.gadgets.context import Context, Report
from mrsi_gadgets.gadgets.openrecon import AS_RECIPE, gadget_parameter, profile_key
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.gadgets.watch import ScanWatch
from mrsi_gadgets.io.model_store import model_stores
from mrsi_gadgets.io.trajectories import TrajectoryLookup, site_trajectories, trajectory_store
from mrsi_gadgets.mrd.acquisition import describe_acquisition
from mrsi_gadgets.mrd.adapters import adapted
from mrsi_gadgets.mrd.header import MrdHeader, parse_header
from mrsi_gadgets.mrd.images import readouts_of_images
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.roles import classify
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.output.spectra_images import bytes_of_spectra
from mrsi_gadgets.stream.messages import Acquisition, ConfigFile, ConfigText, Header, Image, Message, Text, Waveform

log = logging.getLogger("mrsi.scan")

MOST_SPECTRA_BYTES = 512 << 20
"""More than this nobody gets without having asked."""
PROGRESS_S = 10.0
"""How often the peer hears how many readouts have come."""


@dataclass(frozen=True)
class ScanOptions:
    """What the operator of the server or the command line decided, as opposed to what the peer sends."""

    recipe: str | None = None
    """Name or path of a recipe that replaces whatever the peer asks for."""
    site: Path | None = None
    """Folder of the site's own recipes."""
    device: str = "auto"
    settings: Mapping[str, str] = field(default_factory=dict)
    """Profile keys (``mrsi_...``) that override the header's."""
    seed: int = 0
    sequence: str | None = None
    """Name or path of a sequence description; None: the one that knows the header, where there is one."""
    trajectories: Path | None = None
    """Folder of the trajectory store; None: ``trajectories`` in the site's folder, where there is one."""

    models: Path | None = None
    """Folder of learned signal models; None: the user's own and ``models`` in the site's folder."""
    spectra: str | None = None
    """Which spectra go along with the maps, whatever peer and recipe say: examples, all or none."""
    usual_spectra: str = "examples"
    """The same where nobody says anything."""

    tissue: tuple[Path, ...] = ()
    """Maps of the fractions of grey matter, white matter and CSF, or the folder that holds them."""
    b1: Path | None = None
    """Map of the real flip angle over the nominal one."""

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Where learned signal models are looked for."""
        return model_stores(self.models, self.site)

    @property
    def trajectory_folder(self) -> Path | None:
        """Where the trajectory store lies."""
        return self.trajectories or site_trajectories(self.site)


def run_scan(
    messages: Iterator[Message],
    send: Callable[[Message], None],
    options: ScanOptions,
    *,
    observe: Callable[[Any], None] | None = None,
    tell: Callable[[str], None] | None = None,
    limitations: Iterable[str] = (),
    watch: ScanWatch | None = None,
) -> Report | None:
    """Run one scan.

    Parameters
    ----------
    messages
        Configuration, header, optional JSON text, readouts; ends at CLOSE. Raises where the peer is lost.
    send
        Takes the images of a frame once the scan has gone on beyond it, or has ended in order; those of a frame that
        was the newest when the peer was lost never.
    options
        The operator's decisions.
    observe
        Sees every item between two gadgets (KtData, SpectralImage, Maps).
    tell
        Takes progress sentences for the console.
    limitations
        What is known to be wrong with the scan beforehand; the result says it as one of its warnings.
    watch
        Is told what happens, for whoever looks at the server from outside.

    Returns
    -------
    Report or None
        Times, warnings, provenance; None where the peer closed without sending a header (a legal empty session).

    Raises
    ------
    MrsiError
        One sentence for the peer.
    """
    chain = _configuration(messages, options)
    if (options.tissue or options.b1) and not any(isinstance(gadget, AbsoluteUnits) for gadget in chain.gadgets):
        raise ConfigError(
            f"recipe {chain.name} has no <{AbsoluteUnits.element}/>, so tissue fractions and a B1 map change nothing; "
            f"put it behind <quantify/>, or leave them out"
        )
    header_xml = _next_of(messages, Header, "header")
    if header_xml is None:
        log.info("the peer closed without a header; nothing to do")
        return None
    # before the next message is waited for, which may take minutes: a header that cannot be used is refused at once
    header = adapted(parse_header(header_xml.xml), options.sequence)
    following = next(messages, None)
    settings = dict(options.settings)
    report = Report()
    for sentence in limitations:
        report.warn(sentence)
    if isinstance(following, Text):
        chain, settings = _json_parameters(following.text, chain, settings, options, report)
        following = next(messages, None)
    if isinstance(following, Image):
        header, settings, messages = readouts_of_images(following, messages, header, settings)
        report.provenance["input"] = "spectroscopic images of another reconstruction"
        following = next(messages, None)
    protocol = read_protocol(header, settings, warn=report.warn)
    chain = _with_spectra(chain, protocol, header, options, report)
    context = Context(
        protocol=protocol,
        report=report,
        device=select_device(options.device),
        seed=options.seed,
        models=options.model_folders,
        tissue=options.tissue,
        b1=options.b1,
        keep_water=any(isinstance(g, ConsoleImages) and g.spectra == "all" for g in chain.gadgets),
        may_overwrite=observe is None,
        on_progress=tell,
    )
    _first_provenance(context, chain, header)
    with one_blas_thread():
        executor = chain.start(context)
        if watch is not None:
            send = _watched(watch, context, header, chain.name, send)
        try:
            source = _Source(following, messages, header, settings, trajectory_store(options.trajectory_folder))
            _run(chain, source, context, send, observe, watch)
        finally:
            # what is being prepared ends inside this block: outside of it, it would take more threads than it may
            executor.shutdown(wait=True, cancel_futures=True)
    return report


def _watched(
    watch: ScanWatch, context: Context, header: MrdHeader, recipe: str, send: Callable[[Message], None]
) -> Callable[[Message], None]:
    """Have the watch told what is measured, what calibration gave and what is sent; return the `send` that does so."""
    watch.begins(context.protocol, header, recipe)
    calibrate = context.on_calibration

    def calibrated() -> None:
        if calibrate is not None:
            calibrate()
        watch.calibrated(context.calibration)

    def watched(message: Message) -> None:
        send(message)
        if isinstance(message, Image):
            watch.warned(context.report.warnings)
            watch.image(message)

    context.on_calibration = calibrated
    return watched


@dataclass(frozen=True)
class _Source:
    """Where the readouts come from."""

    first: Message | None
    others: Iterator[Message]
    header: MrdHeader
    settings: Mapping[str, str]
    trajectories: TrajectoryLookup


def _run(
    chain: Chain,
    source: _Source,
    context: Context,
    send: Callable[[Message], None],
    observe: Callable[[Any], None] | None,
    watch: ScanWatch | None,
) -> None:
    """Pull the readouts through sorting and gadgets; compute at once, send what the scan can no longer take back."""
    clock = _Clock()
    outgoing = _Outgoing(send)
    readouts = _readouts(source.first, source.others, context, clock, outgoing, watch)
    data = sort_readouts(
        readouts, context.protocol, context.report, source.header, settings=source.settings,
        trajectories=source.trajectories,
    )  # fmt: skip
    for item in chain.run(data, context, observe):
        if isinstance(item, Image):
            outgoing.take(item, context.frame)
    latency = time.perf_counter() - clock.last_readout
    context.report.seconds["last readout to last image"] = latency
    if watch is not None:
        watch.warned(context.report.warnings)
        watch.finished(latency)


class _Outgoing:
    """Images on their way to the peer.

    A scan that is aborted must not have delivered a result (protocol 1.4). Images of the newest frame are therefore
    held until the messages have ended in order, or until a readout or an image of another frame shows that the scan
    went on beyond it. Where the peer is lost nobody releases them.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._held: list[Image] = []
        self._frame = 0
        self._ended = False

    @property
    def holding(self) -> bool:
        """Whether images wait."""
        return bool(self._held)

    def take(self, image: Image, frame: int) -> None:
        """Hold an image, or send it where all input has come."""
        self.went_on(frame)
        self._held.append(image)
        if self._ended:
            self._release()

    def went_on(self, frame: int) -> None:
        """Take note that something of `frame` has come: what is held of another one is complete."""
        if frame != self._frame:
            self._release()
        self._frame = frame

    def ended_in_order(self) -> None:
        """Release everything from now on: the peer has said CLOSE."""
        self._ended = True
        self._release()

    def _release(self) -> None:
        for image in self._held:
            self._send(image)
        self._held.clear()


def _frame_of(head: np.void, counter: str) -> int:
    """Return the frame of a readout from the counter of axis `dynamic`."""
    if counter == "none":
        return 0
    index = head["idx"]
    return int(index["user"][int(counter[-1])] if counter.startswith("user_") else index[counter])


@dataclass
class _Clock:
    last_readout: float = field(default_factory=time.perf_counter)


def _configuration(messages: Iterator[Message], options: ScanOptions) -> Chain:
    first = next(messages, None)
    if options.recipe is not None:
        return find_recipe(options.recipe, site=options.site, allow_path=True)
    if isinstance(first, ConfigFile):
        return find_recipe(first.name, site=options.site)
    if isinstance(first, ConfigText):
        return recipe_from_text(first.text, site=options.site)
    return find_recipe(DEFAULT_RECIPE, site=options.site)


def _next_of(messages: Iterator[Message], kind: type[Header], what: str) -> Header | None:
    message = next(messages, None)
    if message is None:
        return None
    if not isinstance(message, kind):
        raise DataError(f"expected the {what} but got {type(message).__name__}; send configuration, header, readouts")
    return message


def _json_parameters(
    text: str, chain: Chain, settings: dict[str, str], options: ScanOptions, report: Report
) -> tuple[Chain, dict[str, str]]:
    """Read the JSON parameters that FIRE and Open Recon send after the header (protocol 1.6).

    They may name a recipe, profile keys, and attributes of gadgets (`gadgets.openrecon`).
    """
    try:
        parameters = json.loads(text)["parameters"]
        items = {str(key): str(value) for key, value in parameters.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        report.warn("a text after the header is not JSON with 'parameters' and was ignored")
        return chain, settings
    wanted = items.pop("customconfig", "") or items.pop("config", "")
    items.pop("config", None)
    if wanted and options.recipe is None:
        chain = find_recipe(wanted, site=options.site)
    for key, value in items.items():
        name, attribute = profile_key(key), gadget_parameter(key)
        if value in ("", AS_RECIPE):
            continue
        if name is not None:
            settings.setdefault(name, value)
        elif attribute is None:
            report.warn(f"parameter '{visible(key)}' is not known and was ignored")
        elif options.recipe is not None:
            report.warn(f"parameter '{visible(key)}' was ignored: the server's operator has chosen the recipe")
        elif not any(gadget.element == attribute[0] for gadget in chain.gadgets):
            report.warn(f"parameter '{visible(key)}' was ignored: recipe {chain.name} has no <{attribute[0]}>")
        elif attribute[1] in GADGETS[attribute[0]].files:
            report.warn(f"parameter '{visible(key)}' was ignored: only a recipe may name files of the server")
        else:
            chain = chain.with_attributes(attribute[0], {attribute[1]: value})
    return chain, settings


def _with_spectra(chain: Chain, protocol: Protocol, header: MrdHeader, options: ScanOptions, report: Report) -> Chain:
    """Return the chain with the spectra that are to go along with the maps.

    All of them are sent without having been asked for only where they are not very large.
    """
    if options.spectra is not None:
        return chain.with_attributes(ConsoleImages.element, {"spectra": options.spectra})
    if all(gadget.spectra is not None for gadget in chain.gadgets if isinstance(gadget, ConsoleImages)):
        return chain
    usual = options.usual_spectra
    limits = header.encodings[0].limits if header.encodings else {}
    dynamic = limits.get(protocol.axes.get("dynamic", "none"))
    n_frames = 1 if dynamic is None else dynamic.maximum - dynamic.minimum + 1
    n_voxels = int(np.prod(protocol.geometry.matrix)) * protocol.n_echoes * n_frames
    size = bytes_of_spectra(n_voxels, protocol.n_times)
    if usual == "all" and size > MOST_SPECTRA_BYTES:
        report.warn(
            f"only a few spectra are kept with the maps, because those of all voxels take up to {size / 1e6:.0f} MB; "
            "ask for them with --spectra all"
        )
        usual = "examples"
    return chain.with_attributes(ConsoleImages.element, {"spectra": usual})


def _first_provenance(context: Context, chain: Chain, header: MrdHeader) -> None:
    context.report.provenance.update(
        version=__version__,
        recipe=chain.name,
        chain=[f"{gadget}" for gadget in chain.gadgets],
        device=describe_device(context.device),
        seed=context.seed,
        acquisition=describe_acquisition(header, context.protocol),
        protocol=dict(context.protocol.provenance),
        protocol_fingerprint=context.protocol.fingerprint(),
    )


def _readouts(
    first: Message | None,
    messages: Iterator[Message],
    context: Context,
    clock: _Clock,
    outgoing: _Outgoing,
    watch: ScanWatch | None,
) -> Iterator[Acquisition]:
    count = 0
    dynamic = context.protocol.axes.get("dynamic", "none")
    preparing = list(context.prepared.values())
    said = time.perf_counter()
    message = first
    while message is not None:
        preparing = _still_preparing(preparing)
        if isinstance(message, Acquisition):
            count += 1
            if watch is not None:
                watch.readout(message)
            frame = _frame_of(message.head, dynamic)
            known = frame in context.reference_heads
            if (outgoing.holding or not known) and classify(message.head, context.protocol) is Role.METABOLITE:
                if not known:
                    context.reference_heads[frame] = message.head.copy()
                if outgoing.holding:
                    outgoing.went_on(frame)
            clock.last_readout = time.perf_counter()
            if clock.last_readout - said >= PROGRESS_S:
                said = clock.last_readout
                context.progress(f"{count} readouts received")
            yield message
        elif isinstance(message, Text):
            # what it says may name a person, and nobody here reads it
            log.info("a text of %d characters came from the peer", len(message.text))
        elif isinstance(message, Waveform):
            log.debug("waveform %d ignored", int(message.head["waveform_id"]))
        elif isinstance(message, Image):
            raise ConfigError("an image came among readouts; send either readouts or spectroscopic images")
        message = next(messages, None)
    context.report.provenance["readouts"] = count
    context.progress(f"the scan has ended: {count} readouts received")
    if watch is not None:
        watch.ended()
    outgoing.ended_in_order()


def _still_preparing(futures: list[Future[Any]]) -> list[Future[Any]]:
    """Return those that have not ended; raise what one of them has failed with.

    What cannot work (a nucleus without basis, a map that nobody makes) is refused while the scan runs, not after it.
    """
    if not futures:
        return futures
    for future in futures:
        if future.done():
            future.result()
    return [future for future in futures if not future.done()]
