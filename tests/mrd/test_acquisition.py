from __future__ import annotations

import json

import pytest

from mrsi_gadgets.mrd.acquisition import describe_acquisition
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.identity import without_identity
from mrsi_gadgets.mrd.profile import read_protocol
from small_scan import small_scan


def test_facts_of_the_header_are_told_in_si_units_and_what_is_missing_is_left_out():
    xml = small_scan().header_xml
    place = xml.index("<systemFieldStrength_T>")
    xml = xml[:place] + "<systemVendor>ACME</systemVendor><systemModel>One</systemModel>" + xml[place:]
    xml = xml.replace("<sequenceParameters>", "<sequenceParameters><TR>1500</TR>", 1)
    header = parse_header(xml)
    facts = describe_acquisition(header, read_protocol(header, {}))
    assert (facts["vendor"], facts["model"], facts["receiver_channels"]) == ("ACME", "One", header.receiver_channels)
    assert facts["repetition_time_s"] == 1.5
    assert facts["spectral_width_hz"] == pytest.approx(1 / small_scan().protocol.dwell_s)
    assert facts["spectral_points"] == small_scan().protocol.n_times
    assert facts["matrix"] == list(small_scan().protocol.geometry.matrix)
    assert "inversion_times_s" not in facts
    assert "flip_angle_deg" not in facts
    assert json.loads(json.dumps(facts)) == facts


def test_an_anonymous_header_tells_the_same_so_no_fact_is_about_a_person():
    xml = small_scan().header_xml
    xml = xml.replace("<measurementInformation>", "<studyInformation><studyID>X</studyID></studyInformation>"
                      "<measurementInformation>", 1)  # fmt: skip
    facts = []
    for text in (xml, without_identity(xml)[0]):
        header = parse_header(text)
        facts.append(describe_acquisition(header, read_protocol(header, {})))
    assert facts[0] == facts[1]
