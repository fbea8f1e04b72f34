"""A recipe's stages up to the reconstruction, run once: several reconstructions can follow on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mrsi_gadgets.arrays import select_device
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.composition import DEFAULT_RECIPE, find_recipe
from mrsi_gadgets.gadgets.context import Context, Report
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.trajectories import TrajectoryLookup, trajectory_store
from mrsi_gadgets.mrd.adapters import adapted
from mrsi_gadgets.mrd.header import MrdHeader, parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Message


@dataclass(frozen=True, eq=False)
class Preparation:
    """A recipe cut at its reconstruction, with what the header of a scan says; its readouts have not come yet."""

    context: Context
    before: tuple[Gadget, ...]
    """Stages before the reconstruction."""
    reconstruct: Reconstruct
    quantify: Quantify
    header: MrdHeader
    settings: Mapping[str, str]
    trajectories: TrajectoryLookup

    def run(self, readouts: Iterable[Message]) -> tuple[KtData, int]:
        """Return the metabolite data of the first frame and echo, and how many more frames and echoes there are.

        Afterwards the context has the calibration, and the fit is ready.

        Raises
        ------
        DataError
            There are no metabolites, or the data are damaged.
        """
        context = self.context
        for gadget in self.before:
            make_ready(gadget, context)
        context.may_overwrite = True
        first = _First()
        items: Iterator[Any] = first.of(
            sort_readouts(
                readouts, context.protocol, context.report, self.header, settings=self.settings,
                trajectories=self.trajectories,
            )
        )  # fmt: skip
        for gadget in self.before:
            items = gadget.process(items, context)
        found = [item for item in items if isinstance(item, KtData) and item.role is Role.METABOLITE]
        if not found:
            raise DataError("the scan holds no metabolite readouts, so there is nothing to reconstruct")
        # from now on several methods look at the same samples
        context.may_overwrite = False
        make_ready(self.quantify, context, calibrated=True)
        return found[0], first.others


def begin(header_xml: str, options: ScanOptions) -> Preparation:
    """Read header and recipe, and prepare the fit: what is wrong with them is told before the readouts are read.

    Raises
    ------
    ConfigError
        The recipe does not exist or has no reconstruction.
    DataError
        The header does not describe a scan.
    """
    header = adapted(parse_header(header_xml), options.sequence)
    report = Report()
    context = Context(
        protocol=read_protocol(header, options.settings, warn=report.warn), report=report,
        device=select_device(options.device), seed=options.seed, models=options.model_folders,
    )  # fmt: skip
    chain = find_recipe(options.recipe or DEFAULT_RECIPE, site=options.site, allow_path=True)
    place = next((i for i, gadget in enumerate(chain.gadgets) if isinstance(gadget, Reconstruct)), None)
    if place is None:
        raise ConfigError(f"recipe '{chain.name}' has no <reconstruct>; name one that has, such as {DEFAULT_RECIPE}")
    reconstruct = chain.gadgets[place]
    assert isinstance(reconstruct, Reconstruct)
    quantify = next((gadget for gadget in chain.gadgets if isinstance(gadget, Quantify)), Quantify())
    make_ready(quantify, context)
    return Preparation(
        context, chain.gadgets[:place], reconstruct, quantify, header, options.settings,
        trajectory_store(options.trajectory_folder),
    )  # fmt: skip


def make_ready(gadget: Gadget, context: Context, *, calibrated: bool = False) -> None:
    """Do what a gadget does before its data are there; with `calibrated` also what it does once the field is known."""
    if gadget not in context.prepared:
        context.prepared[gadget] = _done(gadget.prepare(context))
    if calibrated:
        context.calibrated[gadget] = _done(gadget.calibrated(context))


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class _First:
    """Lets data pass up to the first metabolites, and counts those that follow."""

    def __init__(self) -> None:
        self.others = 0

    def of(self, items: Iterable[KtData]) -> Iterator[KtData]:
        seen = False
        for item in items:
            if not seen:
                seen = item.role is Role.METABOLITE
                yield item
            elif item.role is Role.METABOLITE:
                self.others += 1
