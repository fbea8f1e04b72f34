"""The Open Recon label is made from the gadgets, obeys its schema, and what a scanner sends back changes the chain."""

from __future__ import annotations

import base64
import json

import pytest

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.composition import chain_from_xml, find_recipe
from mrsi_gadgets.gadgets.context import Report
from mrsi_gadgets.gadgets.openrecon import (
    LABEL_NAME,
    OFFERED,
    check_label,
    gadget_parameter,
    label,
    label_line,
    parameter_id,
    profile_key,
)
from mrsi_gadgets.gadgets.reconstruct import METHODS
from mrsi_gadgets.gadgets.scan import ScanOptions, _json_parameters


def send(parameters, *, recipe_of_operator=None, recipe_text=None):
    report = Report()
    text = json.dumps({"version": "1.1.0", "parameters": parameters})
    before = chain_from_xml(recipe_text) if recipe_text else find_recipe("subspace")
    chain, settings = _json_parameters(text, before, {}, ScanOptions(recipe=recipe_of_operator), report)
    return {g.element: g for g in chain.gadgets}, settings, report.warnings


def test_the_label_offers_every_method_of_reconstruction():
    by_id = {p["id"]: p for p in label()["parameters"]}
    assert [v["id"] for v in by_id["reconstructMethod"]["values"]] == ["as_recipe", *METHODS]
    assert by_id["config"]["default"] == "subspace"
    assert len(by_id) <= 14
    assert label()["reconstruction"]["require_readout_filter_off"] is True


def test_the_label_travels_in_base64():
    line = label_line(label(gpu=True))
    name, _, text = line.removeprefix("LABEL ").partition("=")
    assert json.loads(name) == LABEL_NAME
    assert json.loads(base64.b64decode(json.loads(text)))["reconstruction"]["can_use_gpu"] is True


def test_an_untouched_card_leaves_the_recipe_as_it_is():
    card = {p["id"]: p["default"] for p in label()["parameters"]}
    gadgets, settings, warnings = send(card)
    assert list(gadgets.values()) == list(find_recipe("subspace").gadgets)
    assert settings == {}
    assert warnings == []


def test_what_a_scanner_sends_changes_gadgets_and_settings():
    gadgets, settings, warnings = send(
        {"reconstructMethod": "low_rank", "consoleImagesUncertainty": "false", "mrsiDwellUs": "666.7"}
    )
    assert gadgets["reconstruct"].method == "low_rank"
    assert gadgets["console_images"].uncertainty is False
    assert settings == {"mrsi_dwell_us": "666.7"}
    assert warnings == []


def test_a_value_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ConfigError, match="<reconstruct>: method is 'magic'"):
        send({"reconstructMethod": "magic"})


def test_what_is_ignored_is_told():
    assert "not known" in send({"colour": "red"})[2][0]
    gadgets, _, warnings = send({"reconstructMethod": "fourier"}, recipe_of_operator="subspace")
    assert gadgets["reconstruct"].method == "subspace"
    assert "operator" in warnings[0]
    warnings = send(
        {"correctDriftSource": "centre"},
        recipe_text="<chain><prewhiten/><field_map/><combine_coils/>"
        '<reconstruct method="fourier"/><quantify/><console_images/></chain>',
    )[2]
    assert "has no <correct_drift>" in warnings[0]


def test_ids_and_names_belong_together():
    for element, name in OFFERED:
        assert gadget_parameter(parameter_id(element, name)) == (element, name)
    assert profile_key("mrsiReferencePpm") == "mrsi_reference_ppm"
    assert profile_key("mrsi_reference_ppm_enc1") == "mrsi_reference_ppm_enc1"
    assert profile_key("colour") is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m["parameters"][0].update(id="a_b"), "letters and digits"),
        (lambda m: m["parameters"][0].update(default="none"), "none of its values"),
        (lambda m: m["parameters"][1].update(colour="red"), "a choice has"),
        (lambda m: m["parameters"].append(m["parameters"][0]), "same id"),
        (lambda m: m["parameters"].extend({**m["parameters"][0], "id": f"x{i}"} for i in range(9)), "at most 14"),
        (lambda m: m["general"].update(version="one"), "semantic version"),
        (lambda m: m["reconstruction"].update(emitter="both"), "raw or image"),
        (lambda m: m["general"]["regulatory_information"].pop("gtin"), "regulatory_information"),
    ],
)
def test_a_label_that_breaks_a_rule_is_refused(change, sentence):
    made = label()
    change(made)
    with pytest.raises(ConfigError, match=sentence):
        check_label(made)
