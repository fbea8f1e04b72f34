"""ISMRMRD meta attributes: the XML text that travels with every image, as a dict and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import ParseError
from xml.sax.saxutils import escape

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from mrsi_gadgets.errors import DataError

MetaValue = str | list[str]
"""One value, or several in their order."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_xml(meta: Mapping[str, str | Sequence[str]]) -> str:
    """Write `meta` as an ``ismrmrdMeta`` document, keys in the order of the mapping.

    Characters that XML 1.0 cannot hold (control characters out of a scanner's free text) become U+FFFD: a stray byte in
    a comment must not cost the map.
    """
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n<ismrmrdMeta>']
    for name, value in meta.items():
        values = [value] if isinstance(value, str) else value
        parts.append(f"<meta><name>{_text(name)}</name>")
        parts += [f"<value>{_text(item)}</value>" for item in values]
        parts.append("</meta>")
    parts.append("</ismrmrdMeta>\n")
    return "".join(parts)


def from_xml(xml: str) -> dict[str, MetaValue]:
    """Read an ``ismrmrdMeta`` document; names that occur twice are joined, an empty text gives an empty dict.

    Trailing NULs (C++ peers send one) are ignored. A list of one comes back as its string; `values_of` hides that.

    Raises
    ------
    DataError
        The text is not an ``ismrmrdMeta`` document.
    """
    xml = xml.rstrip("\0 \r\n\t")
    if not xml:
        return {}
    try:
        root = ElementTree.fromstring(xml.encode())
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise DataError(
            f"the attributes of an image are not readable XML ({error}); look at the program that wrote it"
        ) from error
    if _local(root.tag) != "ismrmrdMeta":
        raise DataError(f"the attributes of an image begin with <{root.tag}>; expected <ismrmrdMeta>")
    found: dict[str, list[str]] = {}
    for entry in root:
        if _local(entry.tag) != "meta":
            continue
        names = [child.text or "" for child in entry if _local(child.tag) == "name"]
        if len(names) != 1 or not names[0]:
            raise DataError("the attributes of an image hold a <meta> without exactly one <name>")
        values = [child.text or "" for child in entry if _local(child.tag) == "value"]
        found.setdefault(names[0], []).extend(values)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def values_of(meta: Mapping[str, MetaValue], name: str) -> list[str]:
    """Return all values of `name` as a list, empty where there are none."""
    value = meta.get(name, [])
    return [value] if isinstance(value, str) else list(value)


def value_of(meta: Mapping[str, MetaValue], name: str, default: str = "") -> str:
    """Return the first value of `name`, or `default`."""
    values = values_of(meta, name)
    return values[0] if values else default


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", value), {"\r": "&#13;"})


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
