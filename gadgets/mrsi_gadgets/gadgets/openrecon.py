"""Open Recon's side of a recipe: the parameters that a scanner shows and sends, and the label of its container.

A scanner knows parameters by ids of letters and digits only: `reconstructMethod` is attribute ``method`` of
``<reconstruct>``, `mrsiDwellUs` the profile key ``mrsi_dwell_us``. The label is a JSON document that the container
image carries in base64; its rules are those of the published label schema 1.1.0 (protocol 3.3).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.composition import ALIASES, recipe_names
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.mrd.keys import PROFILE_KEYS, base_key

LABEL_NAME = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
MOST_PARAMETERS = 14
OFFERED = (
    ("reconstruct", "method"), ("reconstruct", "prior"), ("remove_nuisance", "method"), ("quantify", "method"),
    ("console_images", "uncertainty"),
)  # fmt: skip
"""Attributes of gadgets that the scanner's card shows: what a physicist changes from scan to scan."""
OFFERED_KEYS = {
    "mrsi_nucleus": "Nucleus such as 1H, 31P, 2H; empty: as the header says",
    "mrsi_encoding": "csi, epsi, rings or spiral; empty: as the header says",
    "mrsi_spectral_points": "Points of an FID; empty: as the header says",
    "mrsi_dwell_us": "Spectral dwell [us]; empty: as the header says",
    "mrsi_acq_delay_us": "Excitation to first point [us]; empty: as the header says",
    "mrsi_reference_ppm": "Chemical shift at 0 Hz [ppm]; empty: as the header says",
    "mrsi_water_ref": "Water reference rule such as set:1; empty: as the header says",
}
"""Profile keys that the card shows, as texts: an empty one leaves the header's value."""
_ID = re.compile(r"[A-Za-z0-9]+")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_REGULATORY = (
    "device_trade_name", "production_identifier", "manufacturer_address", "made_in", "manufacture_date",
    "material_number", "gtin", "udi", "safety_advices", "special_operating_instructions",
    "additional_relevant_information",
)  # fmt: skip
_NEEDED = {
    "boolean": {"type", "id", "label", "default"},
    "string": {"type", "id", "label"},
    "choice": {"type", "id", "label", "default", "values"},
    "int": {"type", "id", "label", "minimum", "maximum", "default"},
    "double": {"type", "id", "label", "minimum", "maximum", "default"},
}
_ALLOWED = {
    "boolean": {"information"}, "string": {"information", "default", "isLargeText"}, "choice": {"information"},
    "int": {"information", "unit"}, "double": {"information", "unit"},
}  # fmt: skip


def parameter_id(*names: str) -> str:
    """Return names with underscores as one id of letters and digits: (console_images, maps) -> consoleImagesMaps."""
    words = "_".join(names).split("_")
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])


def gadget_parameter(key: str) -> tuple[str, str] | None:
    """Return gadget and attribute that a parameter id means, or None; upper and lower case count alike."""
    return _BY_ID.get(key.replace("_", "").lower())


def profile_key(key: str) -> str | None:
    """Return the profile key that a parameter id means: mrsiDwellUs -> mrsi_dwell_us; None: it means none."""
    return key if base_key(key) in PROFILE_KEYS else _KEY_BY_ID.get(key.replace("_", "").lower())


_BY_ID = {
    parameter_id(element, field.name).lower(): (element, field.name)
    for element, gadget in GADGETS.items()
    for field in fields(gadget)
}
_KEY_BY_ID = {name.replace("_", "").lower(): name for name in PROFILE_KEYS}


def label(*, gpu: bool = False, memory_mib: int = 8192, port: int = 9002) -> dict[str, Any]:
    """Return the label of a container that runs ``mrsi serve``.

    Parameters
    ----------
    gpu
        Whether the container can use a GPU.
    memory_mib
        Memory it needs [MiB].
    port
        Where it listens.
    """
    recipes = [name for name in recipe_names() if name not in ALIASES]
    parameters = [
        _choice("config", "Recipe", recipes, ALIASES["openrecon"], "Chain of gadgets that reconstructs the scan"),
        *(_offered(element, name) for element, name in OFFERED),
        *(
            {"id": parameter_id(key), "label": _en(key.removeprefix("mrsi_").replace("_", " ")), "type": "string",
             "default": "", "information": _en(text)}
            for key, text in OFFERED_KEYS.items()
        ),
    ]  # fmt: skip
    version = _VERSION.match(__version__)
    made: dict[str, Any] = {
        "general": {
            "name": _en("MRSI gadgets"),
            "version": version.group() if version else "0.0.0",
            "vendor": "mrsi-gadgets",
            "information": _en("Learned reconstruction and quantification of MR spectroscopic imaging. Research only."),
            "id": "mrsigadgets",
            "regulatory_information": dict.fromkeys(_REGULATORY, "")
            | {
                "device_trade_name": "mrsi-gadgets",
                "production_identifier": __version__,
                "material_number": f"mrsi-gadgets_{__version__}",
                "safety_advices": "Research software, not a medical device. Not for diagnosis.",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": port,
            "emitter": "raw",
            "injector": "compleximage",
            "can_process_adjustment_data": True,
            "can_use_gpu": gpu,
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 0,
            "min_required_memory": memory_mib,
            "min_count_required_cpu_cores": 2,
            "content_qualification_type": "RESEARCH",
            "require_readout_filter_off": True,
            "channel_compression": {"require_state": "off"},
        },
        "parameters": parameters,
    }
    check_label(made)
    return made


def label_base64(made: Mapping[str, Any]) -> str:
    """Return a label as the text that an image carries."""
    return base64.b64encode(json.dumps(made, ensure_ascii=False).encode()).decode()


def label_line(made: Mapping[str, Any]) -> str:
    """Return the Dockerfile instruction that puts a label into an image."""
    return f'LABEL "{LABEL_NAME}"="{label_base64(made)}"'


def check_label(made: Mapping[str, Any]) -> None:
    """Check a label against the rules of the label schema 1.1.0.

    Raises
    ------
    ConfigError
        What breaks a rule, by its place.
    """

    def refuse(where: str, what: str) -> None:
        raise ConfigError(f"the Open Recon label is wrong at {where}: {what}")

    if set(made) != {"general", "reconstruction", "parameters"}:
        refuse("its top", "it must hold general, reconstruction and parameters")
    general, recon, parameters = made["general"], made["reconstruction"], made["parameters"]
    if set(general) - {"license_string"} != {
        "name",
        "version",
        "vendor",
        "information",
        "id",
        "regulatory_information",
    }:
        refuse("general", f"it holds {', '.join(sorted(general))}")
    if not _VERSION.match(general["version"]):
        refuse("general.version", f"'{general['version']}' is no semantic version")
    if set(general["regulatory_information"]) != set(_REGULATORY):
        refuse("general.regulatory_information", f"it must hold {', '.join(_REGULATORY)}")
    if recon["emitter"] not in ("raw", "image") or recon["injector"] not in ("image", "compleximage"):
        refuse("reconstruction", "emitter is raw or image, injector image or compleximage")
    if recon["transfer_protocol"] != {"protocol": "ISMRMRD", "version": "1.4.1"}:
        refuse("reconstruction.transfer_protocol", "it is ISMRMRD 1.4.1")
    if recon.get("content_qualification_type", "RESEARCH") not in ("PRODUCT", "SERVICE", "RESEARCH"):
        refuse("reconstruction.content_qualification_type", "PRODUCT, SERVICE or RESEARCH")
    for name in ("port", "min_required_memory", "min_count_required_cpu_cores"):
        if not isinstance(recon.get(name), int) or recon[name] < 1:
            refuse(f"reconstruction.{name}", "it must be a whole number of at least 1")
    if len(parameters) > MOST_PARAMETERS:
        refuse("parameters", f"there are {len(parameters)}; at most {MOST_PARAMETERS} are shown")
    if len({p["id"] for p in parameters}) != len(parameters):
        refuse("parameters", "two have the same id")
    for one in parameters:
        where, kind = f"parameter {one.get('id')}", one.get("type")
        if kind not in _NEEDED or not _NEEDED[kind] <= set(one) <= _NEEDED[kind] | _ALLOWED[kind]:
            refuse(where, f"a {kind} has {', '.join(sorted(_NEEDED.get(str(kind), ())))}")
        if not _ID.fullmatch(one["id"]):
            refuse(where, "ids are of letters and digits")
        if "unit" in one and not 1 <= len(one["unit"]["en"]) <= 3:
            refuse(where, "a unit has 1 to 3 characters")
        if kind == "choice" and one["default"] not in [value["id"] for value in one["values"]]:
            refuse(where, f"the default '{one['default']}' is none of its values")
        if kind in ("int", "double") and not one["minimum"] <= one["default"] <= one["maximum"]:
            refuse(where, "the default lies outside of the range")


def _offered(element: str, name: str) -> dict[str, Any]:
    """Return what the scanner's card shows for an attribute of a gadget.

    The first choice of a list is always to leave it as the recipe has it: a card's default must not change a recipe.
    """
    gadget = GADGETS[element]
    identity, title = parameter_id(element, name), f"{element.replace('_', ' ')}: {name.replace('_', ' ')}"
    about = f"Attribute {name} of <{element}>; as_recipe: what the recipe says"
    values = gadget.choices.get(name, ("true", "false") if get_type_hints(gadget)[name] is bool else ())
    if not values:
        raise ConfigError(f"attribute {name} of <{element}> is no list of choices; it cannot be offered on a card")
    return _choice(identity, title, [AS_RECIPE, *values], AS_RECIPE, about)


AS_RECIPE = "as_recipe"
"""Value of a list that leaves a recipe's attribute alone."""


def _choice(identity: str, title: str, values: list[str], default: str, information: str) -> dict[str, Any]:
    return {
        "id": identity, "label": _en(title), "type": "choice",
        "values": [{"id": value, "name": _en(value.replace("_", " "))} for value in values],
        "default": default, "information": _en(information),
    }  # fmt: skip


def _en(text: str) -> dict[str, str]:
    return {"en": text}
