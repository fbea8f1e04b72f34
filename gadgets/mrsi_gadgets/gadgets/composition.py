"""A recipe becomes a chain: finding the XML, reading it, refusing what does not fit, running it.

A recipe is a Gadgetron version-2 stream configuration whose external node holds ``<chain>``; the bare
``<configuration><chain>`` that a Gadgetron sends to its external node is read the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException, ElementTree

from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import ConfigError, visible
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.stream.messages import Image

DEFAULT_RECIPE = "subspace"
ALIASES = {"mrsi_subspace": "subspace", "mrsi_fourier": "fourier", "mrsi_low_rank": "low_rank", "openrecon": "subspace"}
"""Names that peers send -> recipe. Open Recon always sends ``openrecon`` (its JSON parameters may name another)."""

_DECLARATION = re.compile(r"<\?xml[^>]*\?>\s*")
_LONGEST_NAME = 100
_PLAIN_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}")
"""Longer names are no file's: a file system refuses them in its own words."""


@dataclass(frozen=True)
class Chain:
    """Gadgets in the order of the data."""

    gadgets: tuple[Gadget, ...]
    name: str = ""

    def __post_init__(self) -> None:
        flowing: set[type] = {KtData}
        provided: set[str] = set()
        before = "the sorted readouts"
        for gadget in self.gadgets:
            if not flowing & set(gadget.accepts):
                wanted = " or ".join(t.__name__ for t in gadget.accepts)
                have = ", ".join(sorted(t.__name__ for t in flowing))
                raise ConfigError(
                    f"<{gadget.element}> takes {wanted} but {before} hands on {have}; change the order of the chain"
                )
            for need in gadget.requires:
                if need not in provided:
                    source = next((g.element for g in GADGETS.values() if need in g.provides), need)
                    raise ConfigError(f"<{gadget.element}> needs {need}; put <{source}/> before it in the chain")
            provided |= set(gadget.provides)
            flowing = (flowing - set(gadget.accepts)) | set(gadget.produces)
            before = f"<{gadget.element}>"
        if Image not in flowing:
            raise ConfigError("the chain makes no images; end it with <console_images/>")

    def with_attributes(self, element: str, attributes: Mapping[str, str]) -> Chain:
        """Return the chain with attributes of one gadget as texts say.

        Raises
        ------
        ConfigError
            As `chain_from_xml`.
        """
        changed = [g.with_attributes(attributes) if g.element == element else g for g in self.gadgets]
        return replace(self, gadgets=tuple(changed))

    def of_peer(self, site: Path | None) -> Chain:
        """Return the chain as a peer may ask for it (`Gadget.of_peer`)."""
        return replace(self, gadgets=tuple(gadget.of_peer(site) for gadget in self.gadgets))

    def start(self, context: Context) -> ThreadPoolExecutor:
        """Begin every gadget's `prepare` beside the arriving readouts; shut the executor down after the run.

        Their `calibrated` follows when the field map is there.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")

        def calibrate() -> None:
            for gadget in self.gadgets:
                context.calibrated[gadget] = executor.submit(gadget.calibrated, context)

        for gadget in self.gadgets:
            context.prepared[gadget] = executor.submit(gadget.prepare, context)
        context.on_calibration = calibrate
        return executor

    def run(
        self, items: Iterable[Any], context: Context, observe: Callable[[Any], None] | None = None
    ) -> Iterator[Any]:
        """Yield what leaves the last gadget; `observe` sees every item between two gadgets."""
        if not context.prepared:
            for gadget in self.gadgets:
                done: Future[Any] = Future()
                done.set_result(gadget.prepare(context))
                context.prepared[gadget] = done
        flow: Iterator[Any] = iter(items)
        for gadget in self.gadgets:
            if observe is not None:
                flow = observed(flow, observe)
            flow = gadget.process(flow, context)
        return flow


def observed(items: Iterator[Any], observe: Callable[[Any], None]) -> Iterator[Any]:
    """Pass `items` on, showing each to `observe` first."""
    for item in items:
        observe(item)
        yield item


def chain_from_xml(text: str, name: str = "") -> Chain:
    """Read a recipe.

    Raises
    ------
    ConfigError
        Not XML, no ``<chain>``, an unknown gadget or attribute, or gadgets that do not fit each other.
    """
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ConfigError(
            f"the recipe {name or 'that was sent'} is not well-formed XML ({visible(str(error))})"
        ) from None
    return Chain(tuple(_gadget(element) for element in _chain_element(root)), name=name or "sent by the peer")


def _chain_element(root: Element) -> Element:
    found = root if root.tag == "chain" else root.find(".//chain")
    if found is None:
        raise ConfigError(
            "the configuration holds no <chain>; put <chain><prewhiten/>...</chain> into the external node's "
            "<configuration> (see config/subspace.xml)"
        )
    return found


def _gadget(element: Element) -> Gadget:
    gadget = GADGETS.get(element.tag)
    if gadget is None:
        raise ConfigError(f"unknown gadget <{element.tag}> in the chain; known are {', '.join(sorted(GADGETS))}")
    attributes = dict(element.attrib)
    for child in element:
        if child.tag != "property" or "name" not in child.attrib:
            raise ConfigError(
                f"<{element.tag}> holds <{child.tag}>; parameters are attributes, or "
                '<property name="..." value="..."/> elements'
            )
        attributes[child.attrib["name"]] = child.attrib.get("value", "")
    return gadget.from_attributes(attributes)


def recipe_folders(site: Path | None = None) -> list[Path]:
    """Return the folders recipes are looked up in: the site's, then the packaged one (wheel or checkout)."""
    folders = []
    chosen = site or (Path(os.environ["MRSI_CONFIG_DIR"]) if os.environ.get("MRSI_CONFIG_DIR") else None)
    if chosen is not None:
        folders.append(chosen)
    packaged = Path(str(resources.files("mrsi_gadgets"))) / "config"
    checkout = Path(str(resources.files("mrsi_gadgets"))).parents[1] / "config"
    folders.append(packaged if packaged.is_dir() else checkout)
    return folders


def recipe_names(site: Path | None = None) -> list[str]:
    """Names of all recipes that can be asked for."""
    return sorted({path.stem for folder in recipe_folders(site) for path in folder.glob("*.xml")})


def is_recipe_path(name: str) -> bool:
    """Tell whether an operator's `name` of a recipe means a file (a peer's never does)."""
    return name.endswith(".xml") or "/" in name


def find_recipe(name: str, *, site: Path | None = None, allow_path: bool = False) -> Chain:
    """Return the chain of a recipe by name, or by path where `allow_path` (command line only, never a peer).

    Raises
    ------
    ConfigError
        No such recipe; the message lists those there are.
    """
    if allow_path and is_recipe_path(name):
        return chain_from_xml(read_recipe(Path(name), site), name=Path(name).stem)
    plain = ALIASES.get(name.removesuffix(".xml"), name.removesuffix(".xml"))
    if _PLAIN_NAME.fullmatch(plain):
        for folder in recipe_folders(site):
            path = folder / f"{plain}.xml"
            if path.is_file():
                return chain_from_xml(read_recipe(path, site), name=plain)
    raise ConfigError(f"there is no recipe '{visible(name)}'; known are {', '.join(recipe_names(site))}")


def read_recipe(path: Path, site: Path | None = None) -> str:
    """Return the text of a recipe file.

    Raises
    ------
    ConfigError
        It is not there, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"recipe file {visible(str(path))} does not exist; recipes by name: {', '.join(recipe_names(site))}"
        ) from None
    except OSError as error:
        raise ConfigError(f"recipe file {visible(str(path))} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"recipe file {path} is not valid UTF-8 at its byte {error.start}; save it as UTF-8"
        ) from None


def recipe_from_text(text: str, *, site: Path | None = None) -> Chain:
    """Return the chain a peer's CONFIG text asks for: XML, or (FIRE) the plain name of a recipe."""
    stripped = text.strip()
    if not stripped or _DECLARATION.fullmatch(stripped):
        raise ConfigError(
            "the configuration that was sent is empty; put <configuration><chain>...</chain></configuration> into the "
            "external node (see config/subspace.xml), or send the name of a recipe"
        )
    if not stripped.startswith("<"):
        return find_recipe(stripped, site=site)
    return chain_from_xml(stripped).of_peer(site)


def describe_gadgets(gadgets: Mapping[str, type[Gadget]] = GADGETS) -> str:
    """Return a table of every element and its attributes, for `mrsi recipe`."""
    lines = []
    for element, gadget in gadgets.items():
        lines.append(f"<{element}>  {(gadget.__doc__ or '').splitlines()[0]}")
        lines += [f"    {name:<14} {kind:<28} default {default}" for name, kind, default in gadget.describe()]
    return "\n".join(lines)
