from __future__ import annotations

import pytest

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.composition import (
    chain_from_xml,
    describe_gadgets,
    find_recipe,
    recipe_from_text,
    recipe_names,
)
from mrsi_gadgets.gadgets.registry import GADGETS

WHOLE = (
    "<configuration><chain><prewhiten/><field_map/><combine_coils/>{reconstruct}<quantify/><console_images/></chain>"
    "</configuration>"
)


def named(chain, element="reconstruct"):
    return next(gadget for gadget in chain.gadgets if gadget.element == element)


def chain_with(reconstruct: str):
    return chain_from_xml(WHOLE.format(reconstruct=reconstruct))


def test_the_shipped_recipes_are_found_by_name():
    assert {"fourier", "low_rank", "subspace"} <= set(recipe_names())


@pytest.mark.parametrize("name", ["fourier", "low_rank", "subspace"])
def test_a_shipped_recipe_reconstructs_with_the_method_it_is_named_after(name):
    chain = find_recipe(name)
    assert [g.element for g in chain.gadgets] == [
        "prewhiten", "correct_drift", "field_map", "combine_coils", "remove_nuisance", "reconstruct", "quantify",
        "absolute_units", "quality_mask", "console_images",
    ]  # fmt: skip
    assert named(chain).method == name


def test_the_name_peers_send_is_an_alias_of_the_subspace_recipe():
    assert find_recipe("mrsi_subspace").gadgets == find_recipe("subspace").gadgets


def test_attributes_and_gadgetron_properties_set_the_same_parameter():
    by_attribute = chain_with('<reconstruct method="subspace" rank="16"/>')
    by_property = chain_with(
        '<reconstruct><property name="method" value="subspace"/><property name="rank" value="16"/></reconstruct>'
    )
    assert by_attribute.gadgets == by_property.gadgets
    assert named(by_attribute).rank == 16


@pytest.mark.parametrize(
    ("reconstruct", "sentence"),
    [
        ("<reconstuct/>", "unknown gadget <reconstuct>.*known are.*reconstruct"),
        ('<reconstruct metod="fourier"/>', "<reconstruct> has no attribute 'metod'.*method"),
        ('<reconstruct method="magic"/>', "method is 'magic'; it must be one of"),
        ('<reconstruct rank="many"/>', "rank='many'.*whole number"),
        ("<reconstruct><b0/></reconstruct>", "holds <b0>"),
    ],
)
def test_what_a_recipe_gets_wrong_is_named(reconstruct, sentence):
    with pytest.raises(ConfigError, match=sentence):
        chain_with(reconstruct)


def test_gadgets_in_the_wrong_order_are_refused_by_element_name():
    with pytest.raises(ConfigError, match="<quantify> takes SpectralImage but .* hands on KtData"):
        chain_from_xml("<chain><prewhiten/><quantify/><reconstruct/><console_images/></chain>")


def test_a_reconstruction_without_a_field_map_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="<reconstruct> needs .*; put <field_map/> before it"):
        chain_from_xml("<chain><prewhiten/><reconstruct/><quantify/><console_images/></chain>")


def test_a_chain_without_images_is_refused():
    with pytest.raises(ConfigError, match="makes no images"):
        chain_from_xml("<chain><prewhiten/><field_map/><combine_coils/><reconstruct/></chain>")


def test_a_configuration_without_a_chain_is_refused():
    with pytest.raises(ConfigError, match="holds no <chain>"):
        recipe_from_text("<configuration/>")


def test_a_peer_cannot_name_a_path():
    with pytest.raises(ConfigError, match="there is no recipe"):
        find_recipe("../config/subspace")


def test_external_entities_in_a_recipe_are_refused():
    bomb = '<!DOCTYPE x [<!ENTITY a "b">]><chain>&a;</chain>'
    with pytest.raises(ConfigError, match="not well-formed"):
        chain_from_xml(bomb)


def test_a_site_folder_comes_before_the_packaged_recipes(tmp_path):
    (tmp_path / "subspace.xml").write_text(WHOLE.format(reconstruct='<reconstruct method="fourier"/>'))
    assert named(find_recipe("subspace", site=tmp_path)).method == "fourier"


def test_every_gadget_and_attribute_is_described():
    text = describe_gadgets()
    for element, gadget in GADGETS.items():
        assert f"<{element}>" in text
        for name, _, _ in gadget.describe():
            assert name in text
