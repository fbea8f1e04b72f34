"""What in an ISMRMRD header tells who was measured, where and when; and a header without it.

What stays is named here (the physics, the encoding, the profile's keys), everything else goes: a field that nobody has
thought of must not stay by accident.
"""

from __future__ import annotations

import re
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
    "experimentalConditions": {"H1resonanceFrequency_Hz"},
    "encoding": {
        "encodedSpace", "reconSpace", "encodingLimits", "trajectory", "trajectoryDescription", "parallelImaging",
        "echoTrainLength", "multiband",
    },
    "sequenceParameters": {
        "TR", "TE", "TI", "flipAngle_deg", "sequence_type", "echo_spacing", "diffusionDimension", "diffusion",
        "diffusionScheme",
    },
}  # fmt: skip
"""Element of the header -> children that stay."""
_FREE_TEXT = ("userParameterString", "userParameterBase64")
_PARAMETERS = (*_FREE_TEXT, "userParameterLong", "userParameterDouble")
_OF_A_PERSON = re.compile(
    r"patient|subject|person|birth|gender|body|(?<![a-z])(age|sex|name|date|weight|height)(?![a-z])"
    r"|study|accession|operator|physician|hospital|institution|serial", re.IGNORECASE
)  # fmt: skip
"""Names of numbers among the user parameters that tell of a person or a place, not of physics."""


def without_identity(xml: str, keep: Collection[str] = ()) -> tuple[str, list[str]]:
    """Return a header without what tells who was measured, where and when, and the names of what was taken out.

    Parameters
    ----------
    xml
        ISMRMRD header.
    keep
        Names of user parameters that stay besides ``mrsi_*`` and numbers. Texts go, and numbers whose name speaks of
        a person, a date or a place.

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
    _bare(root)
    if tag != "ismrmrdHeader":
        raise DataError(f"the header's root element is '{tag}'; it must be ismrmrdHeader")
    removed: list[str] = []
    for part in list(root):
        name = part.tag
        if name == "userParameters":
            _reduce_user_parameters(part, "userParameters", _PARAMETERS, keep, removed)
        elif name == "version":
            continue
        elif name not in _KEPT:
            removed.append(name)
            root.remove(part)
        else:
            for child in list(part):
                if child.tag not in _KEPT[name]:
                    removed.append(f"{name}/{child.tag}")
                    part.remove(child)
                elif child.tag == "trajectoryDescription":
                    known = (*_PARAMETERS, "identifier")
                    _reduce_user_parameters(child, "trajectoryDescription", known, keep, removed)
    if space:
        root.set("xmlns", space.removeprefix("{"))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode"), removed


def _bare(root: Element) -> None:
    """Leave names and values of elements only: no prefixes, no attributes, no text between elements."""
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
        element.attrib.clear()
        element.tail = None
        if len(element):
            element.text = None


def _reduce_user_parameters(
    parent: Element, where: str, known: Collection[str], keep: Collection[str], removed: list[str]
) -> None:
    for parameter in list(parent):
        name = (parameter.findtext("name") or "").strip()
        stays = parameter.tag in known
        if parameter.tag in _PARAMETERS and not name.startswith("mrsi_") and name not in keep:
            stays = parameter.tag not in _FREE_TEXT and not _OF_A_PERSON.search(name)
        if not stays:
            removed.append(f"{where}/{name or parameter.tag}")
            parent.remove(parameter)
