from __future__ import annotations

import ismrmrd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output.meta import from_xml, to_xml, value_of, values_of

META = {
    "DataRole": "Image",
    "ImageProcessingHistory": ["PYTHON", "MRSI"],
    "ImageComments": 'tNAA [mM]; 5 < 6 & "größer"\nsecond line, µ',
}


def test_meta_comes_back_as_it_was():
    assert from_xml(to_xml(META)) == META


def test_the_ismrmrd_package_reads_the_same_values():
    assert dict(ismrmrd.Meta.deserialize(to_xml(META))) == META


def test_what_the_ismrmrd_package_writes_is_read():
    assert from_xml(ismrmrd.Meta(META).serialize()) == META


def test_order_of_the_keys_is_kept_and_the_text_is_the_same_every_time():
    xml = to_xml(META)
    assert list(from_xml(xml)) == list(META)
    assert xml == to_xml(dict(META))


def test_a_trailing_nul_of_a_cpp_peer_is_ignored():
    assert from_xml(to_xml(META) + "\0") == META
    assert from_xml("\0") == {}
    assert from_xml("") == {}


def test_a_name_that_occurs_twice_gives_a_list():
    entries = "".join(f"<meta><name>a</name><value>{value}</value></meta>" for value in "12")
    assert from_xml(f"<ismrmrdMeta>{entries}</ismrmrdMeta>") == {"a": ["1", "2"]}


def test_control_characters_become_the_replacement_character():
    assert from_xml(to_xml({"protocol": "mrsi\x00\x1b[0m"})) == {"protocol": "mrsi\ufffd\ufffd[0m"}


@given(st.dictionaries(st.text("abcXYZ_", min_size=1), st.lists(st.text(), min_size=2, max_size=4)))
def test_any_unicode_text_that_xml_can_hold_survives(meta):
    kept = from_xml(to_xml(meta))
    again = from_xml(to_xml(kept))
    assert kept == again
    assert {name: len(values) for name, values in kept.items()} == {name: len(values) for name, values in meta.items()}


def test_missing_values_have_defaults():
    assert value_of({}, "mrsi_kind", "none") == "none"
    assert values_of({"a": "1"}, "a") == ["1"]
    assert values_of({}, "a") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<ismrmrdMeta><meta>", "not readable XML"),
        ("plain words", "not readable XML"),
        ("<other/>", "expected <ismrmrdMeta>"),
        ("<ismrmrdMeta><meta><value>1</value></meta></ismrmrdMeta>", "without exactly one <name>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><ismrmrdMeta>&a;</ismrmrdMeta>', "not readable XML"),
    ],
)
def test_damaged_attributes_are_refused_in_one_sentence(text, sentence):
    with pytest.raises(DataError, match=sentence):
        from_xml(text)
