"""What in an ISMRMRD header tells who was measured, where and when; and a header without it.

What stays is named here (the physics, the encoding, the profile's keys), everything else goes: a field that nobody has
thought of must not stay by accident.
"""

from __future__ import annotations

from collections.abc import Collection
from xml.etree.ElementTree import Element, ParseError, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mrsi_gadgets.errors import DataError

_KEPT = {
    "measurementInformation": {"patientPosition", "relativeTablePosition"},
    "acquisitionSystemInformation": {
        "systemVendor", "systemModel", "systemFieldStrength_T", "relativeReceiverNoiseBandwidth", "receiverChannels",
        "coilLabel",
    },
    "experimentalConditions": None, "encoding": None, "sequenceParameters": None,
}  # fmt: skip
"""Element of the header -> children that stay; None: all."""
_FREE_TEXT = ("userParameterString", "userParameterBase64")


def without_identity(xml: str, keep: Collection[str] = ()) -> tuple[str, list[str]]:
    """Return a header without what tells who was measured, where and when, and the names of what was taken out.

    Parameters
    ----------
    xml
        ISMRMRD header.
    keep
        Names of user parameters with texts that stay besides ``mrsi_*``. Numbers among the user parameters stay.

    Raises
    ------
    DataError
        It is no ISMRMRD header.
    """
    try:
        root = fromstring(xml.rstrip("\0").strip())
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise DataError(f"the ISMRMRD header is not usable XML ({problem}); nothing was anonymised") from problem
    space, _, tag = root.tag.rpartition("}")
    if tag != "ismrmrdHeader":
        raise DataError(f"the header's root element is '{tag}'; it must be ismrmrdHeader")
    removed: list[str] = []
    for part in list(root):
        name = _plain(part)
        if name == "userParameters":
            _reduce_user_parameters(part, keep, removed)
        elif name == "version":
            continue
        elif name not in _KEPT:
            removed.append(name)
            root.remove(part)
        else:
            kept = _KEPT[name]
            for child in list(part):
                if kept is not None and _plain(child) not in kept:
                    removed.append(f"{name}/{_plain(child)}")
                    part.remove(child)
    text = tostring(root, encoding="unicode", default_namespace=space.removeprefix("{") or None)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + text, removed


def _reduce_user_parameters(parent: Element, keep: Collection[str], removed: list[str]) -> None:
    for parameter in list(parent):
        name = next(((c.text or "").strip() for c in parameter if _plain(c) == "name"), "")
        if _plain(parameter) in _FREE_TEXT and not name.startswith("mrsi_") and name not in keep:
            removed.append(f"userParameters/{name}")
            parent.remove(parameter)


def _plain(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
