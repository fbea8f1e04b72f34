"""What a gadget is: a thin stage that moves items of the stream through one pure function."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from mrsi_gadgets.errors import ConfigError, visible
from mrsi_gadgets.gadgets.context import Context


@dataclass(frozen=True)
class Gadget:
    """A stage of the chain. A subclass's fields are its parameters: documentation, XML schema and validation in one.

    Items whose type is not in `accepts` travel past untouched; state lives in the local variables of `process`.
    """

    element: ClassVar[str] = ""
    """Name of the XML element."""
    accepts: ClassVar[tuple[type, ...]] = ()
    produces: ClassVar[tuple[type, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    """Fields of `Calibration` that must have been provided before."""
    provides: ClassVar[tuple[str, ...]] = ()
    """Fields of `Calibration` this gadget fills."""
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Parameter -> the texts it may be, where these are few."""
    files: ClassVar[tuple[str, ...]] = ()
    """Parameters that name files of this machine: a peer may name those in the site's folder only."""

    def __post_init__(self) -> None:
        """Refuse what is none of the `choices`; what else a subclass checks comes after this.

        Raises
        ------
        ConfigError
            A parameter has a value that it may not have.
        """
        for name, valid in self.choices.items():
            value = getattr(self, name)
            if value is not None:  # auto
                choice(name, value, valid)

    def prepare(self, context: Context) -> Any:
        """Compute what needs no data (models, dictionaries); runs while readouts arrive. Default: nothing."""
        return None

    def calibrated(self, context: Context) -> Any:
        """Compute what needs field map and mask but no metabolite data; runs while those arrive. Default: nothing."""
        return None

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Yield what becomes of `items`."""
        raise TypeError(f"{type(self).__name__} does not define process")

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> Gadget:
        """Build the gadget from XML attributes.

        Raises
        ------
        ConfigError
            An attribute is unknown or its text cannot be read as the parameter's type.
        """
        values = cls._values(attributes)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"<{cls.element}>: {error}") from None

    def with_attributes(self, attributes: Mapping[str, str]) -> Self:
        """Return the gadget with some parameters as texts say.

        Raises
        ------
        ConfigError
            As `from_attributes`.
        """
        values = self._values(attributes)
        try:
            return replace(self, **values)
        except ConfigError as error:
            raise ConfigError(f"<{self.element}>: {error}") from None

    def of_peer(self, site: Path | None) -> Self:
        """Return the gadget as a peer may ask for it: files that it names lie in the site's folder.

        Their paths count from there.

        Raises
        ------
        ConfigError
            A file lies elsewhere, or there is no such folder.
        """
        changed: dict[str, Any] = {}
        for name in self.files:
            value = getattr(self, name)
            if isinstance(value, str):
                changed[name] = self._in_site(name, value, site) if value else value
            else:
                changed[name] = tuple(self._in_site(name, part, site) for part in value)
        return replace(self, **changed) if changed else self

    def _in_site(self, name: str, text: str, site: Path | None) -> str:
        if site is not None:
            path = (site / text).resolve()
            if path.is_relative_to(site.resolve()):
                return str(path)
        raise ConfigError(
            f"<{self.element} {name}='{text}'> names a file outside of the site's folder, which a configuration that "
            "was sent may not; put it into the folder that the server was given as --config-dir"
        )

    @classmethod
    def _values(cls, attributes: Mapping[str, str]) -> dict[str, Any]:
        """Read the texts as the parameters' types; refuse parameters that are not there."""
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(attributes) - set(known))
        if unknown:
            valid = ", ".join(known) if known else "none"
            raise ConfigError(
                f"<{cls.element}> has no attribute '{visible(unknown[0])}'; correct the recipe (valid attributes: "
                f"{valid})"
            )
        hints = get_type_hints(cls)
        return {name: _read_value(cls.element, known[name], hints[name], text) for name, text in attributes.items()}

    @classmethod
    def describe(cls) -> list[tuple[str, str, str]]:
        """Return (attribute, type, default) of each parameter."""
        hints = get_type_hints(cls)
        return [
            (f.name, _type_name(hints[f.name]), "required" if f.default is MISSING else _default_text(f.default))
            for f in fields(cls)
        ]


def handed_on(items: list[Any]) -> Iterator[Any]:
    """Yield the items of a list without keeping them.

    A generator that waits at its ``yield`` keeps what its names refer to. A gadget therefore deletes the name of the
    samples it took and hands on what it made through this, or a chain would hold the samples of every stage until the
    last is done.
    """
    while items:
        yield items.pop(0)


def choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Refuse a `value` of parameter `name` that is not one of `valid` (ConfigError)."""
    if value not in valid:
        raise ConfigError(f"{name} is '{visible(value)}'; it must be one of {', '.join(valid)}")


def _read_value(element: str, parameter: Field[Any], hint: Any, text: str) -> Any:
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if optional:
        if text == "auto":
            return None
        hint = next(a for a in get_args(hint) if a is not type(None))
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.strip().lower()]
        if hint in (int, float, str):
            return hint(text.strip())
        return tuple(text.split())
    except (KeyError, ValueError):
        wanted = _type_name(hint) + (" or auto" if optional else "")
        raise ConfigError(
            f"<{element} {parameter.name}='{visible(text)}'> cannot be read as {wanted}; correct the recipe"
        ) from None


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("auto" if a is type(None) else _type_name(a) for a in get_args(hint))
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(hint, "list of names")


def _default_text(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value)
