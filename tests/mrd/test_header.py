from __future__ import annotations

from dataclasses import replace

import ismrmrd
import pytest
from csi_scans import csi_protocol

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.mrd.header import Limit, parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.keys import DEFAULT_LAP_AXES
from mrsi_gadgets.mrd.profile import read_protocol, read_water_protocol

FULL = """<?xml version="1.0"?>
<m:ismrmrdHeader xmlns:m="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <m:measurementInformation><m:measurementID>meas_7</m:measurementID><m:patientPosition>FFP</m:patientPosition>
    <m:protocolName>a &amp; b</m:protocolName></m:measurementInformation>
  <m:acquisitionSystemInformation><m:systemVendor>V</m:systemVendor>
    <m:systemFieldStrength_T>2.8936</m:systemFieldStrength_T><m:receiverChannels>32</m:receiverChannels>
    <m:coilLabel><m:coilNumber>3</m:coilNumber><m:coilName>HE3</m:coilName></m:coilLabel>
  </m:acquisitionSystemInformation>
  <m:experimentalConditions><m:H1resonanceFrequency_Hz>123200000</m:H1resonanceFrequency_Hz></m:experimentalConditions>
  <m:encoding>
    <m:encodedSpace><m:matrixSize><m:x>32</m:x><m:y>30</m:y><m:z>1</m:z></m:matrixSize>
      <m:fieldOfView_mm><m:x>220.5</m:x><m:y>210</m:y><m:z>15</m:z></m:fieldOfView_mm></m:encodedSpace>
    <m:encodingLimits>
      <m:kspace_encoding_step_1><m:minimum>1</m:minimum><m:maximum>30</m:maximum><m:center>16</m:center>
      </m:kspace_encoding_step_1></m:encodingLimits>
    <m:trajectory>propellor</m:trajectory>
  </m:encoding>
  <m:sequenceParameters><m:TR>600</m:TR><m:TE>1.3</m:TE><m:TE>30</m:TE><m:TI>200</m:TI>
    <m:flipAngle_deg>35</m:flipAngle_deg></m:sequenceParameters>
  <m:userParameters>
    <m:userParameterLong><m:name>n</m:name><m:value>5</m:value></m:userParameterLong>
    <m:userParameterDouble><m:name>d</m:name><m:value>2.5e2</m:value></m:userParameterDouble>
    <m:userParameterString><m:name>s</m:name><m:value>text</m:value></m:userParameterString>
    <m:userParameterBase64><m:name>b</m:name><m:value>QUJD</m:value></m:userParameterBase64>
  </m:userParameters>
</m:ismrmrdHeader>\0"""


def test_a_header_is_read_whatever_its_prefix():
    header = parse_header(FULL)
    assert header.measurement_id == "meas_7"
    assert header.patient_position == "FFP"
    assert header.protocol_name == "a & b"
    assert header.field_strength_t == 2.8936
    assert header.receiver_channels == 32
    assert header.coil_labels == {3: "HE3"}
    assert header.h1_frequency_hz == 123200000
    assert header.echo_times_ms == (1.3, 30.0)
    assert header.inversion_times_ms == (200.0,)
    assert header.user == {"n": 5, "d": 250.0, "s": "text", "b": b"ABC"}
    encoding = header.encodings[0]
    assert encoding.encoded.matrix == (32, 30, 1)
    assert encoding.encoded.fov_mm == (220.5, 210.0, 15.0)
    assert encoding.recon == encoding.encoded
    assert encoding.limits == {"kspace_encode_step_1": Limit(1, 30, 16)}
    assert encoding.trajectory == "propellor"


def test_a_header_without_namespace_or_measurement_is_read():
    assert parse_header("<ismrmrdHeader/>").encodings == ()


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("no xml", "not usable XML"),
        ("", "not usable XML"),
        ("<a/>", "root element is 'a'"),
        ("<!DOCTYPE x [<!ENTITY e 'boom'>]><ismrmrdHeader>&e;</ismrmrdHeader>", "not usable XML"),
        (FULL.replace("123200000", "fast"), "H1resonanceFrequency_Hz in the header is 'fast'"),
        (FULL.replace("<m:x>32</m:x>", "<m:x>3.5</m:x>"), "matrixSize/x in the header is '3.5'"),
        (FULL.replace("<m:x>32</m:x>", ""), r"encoding\[0\]/encodedSpace of the header needs x, y and z"),
        (FULL.replace("encodedSpace", "space"), r"encoding\[0\] of the header has no encodedSpace"),
        (FULL.replace("QUJD", "!"), "userParameterBase64 b in the header is '!'"),
    ],
)
def test_a_wrong_header_is_refused_in_one_sentence(xml, message):
    with pytest.raises(DataError, match=message):
        parse_header(xml)


@pytest.mark.parametrize("number", ["inf", "-Infinity", "nan", "9" * 400, "1.5"])
def test_a_count_that_is_no_whole_number_is_refused_in_one_sentence(number):
    with pytest.raises(DataError, match="matrixSize/x in the header is .* which is not a number"):
        parse_header(FULL.replace("<m:x>32</m:x>", f"<m:x>{number}</m:x>", 1))


def test_a_profile_key_given_twice_with_two_values_is_refused():
    double = "<userParameterDouble><name>mrsi_dwell_us</name><value>{}</value></userParameterDouble>"
    xml = f"<ismrmrdHeader><userParameters>{double.format(5)}{double.format(6)}</userParameters></ismrmrdHeader>"
    with pytest.raises(DataError, match=r"mrsi_dwell_us is given twice in the header, as 5.0 and 6.0"):
        parse_header(xml)


PROTOCOLS = {
    "csi": csi_protocol(),
    "names": csi_protocol(axes={"kx": "user_3", "ky": "phase"}, protocol_name="a < b & c", measurement_id=""),
    "signs": csi_protocol(freq_sign=-1, kspace_sign=(1, -1, 1), grid_center="edge", water_suppressed=True),
    "odd dwell": csi_protocol(
        dwell_s=1 / 1400, acquisition_delay_s=1.234567e-3, transmit_frequency_hz=297223354.25, field_strength_t=6.98
    ),
    "phosphorus": csi_protocol(nucleus="31P", reference_ppm=0.0, transmit_frequency_hz=49.89e6, water_reference="none"),
    "neon": csi_protocol(nucleus="21Ne", reference_ppm=1.0, transmit_frequency_hz=9.7e6, water_reference="none"),
    "rings": csi_protocol(
        encoding="rings",
        axes={"kx": "trajectory", "ky": "trajectory", "kz": "none"},
        matrix=(4, 4, 1),
        k_centre={},
        samples_per_lap=(12, 24),
        temporal_interleaves=(1, 2),
        trajectory_units="1/m",
        trajectory_columns=("kx", "ky"),
    ),
    "alternating": csi_protocol(
        encoding="epsi",
        axes={"kx": "readout", "t": "segment"},
        k_centre={"ky": 2, "kz": 2},
        readout_polarity="alternating",
        readout_oversampling=2.0,
    ),
    "spiral": csi_protocol(
        encoding="spiral",
        axes={"kx": "trajectory", "ky": "trajectory", "chunk": "user_3", "path": "user_4", "interleaf": "none"},
        k_centre={"kz": 2},
        samples_per_lap=(24,),
        samples_used=(20,),
        temporal_interleaves=(2,),
        trajectory_id="arms",
    ),
    "cycling": csi_protocol(editing="metabolite_cycling", water_reference="none", axes={"edit": "user_0"}),
    "weights": csi_protocol(kspace_weighting="acquisition_weighted", readout_oversampling=2.0, water_reference="set:1"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_written_header_reads_back_as_the_same_protocol(name):
    protocol = PROTOCOLS[name]
    back = read_protocol(parse_header(header_xml(protocol, receiver_channels=2, averages=2, frames=3)))
    assert back.dwell_s == pytest.approx(protocol.dwell_s, rel=1e-15)
    assert back.acquisition_delay_s == pytest.approx(protocol.acquisition_delay_s, rel=1e-15)
    assert back.echo_times_s == pytest.approx(protocol.echo_times_s, rel=1e-15)
    same = {key: getattr(back, key) for key in ("dwell_s", "acquisition_delay_s", "echo_times_s", "provenance")}
    if name == "rings":
        same["axes"] = protocol.axes | DEFAULT_LAP_AXES
    assert replace(protocol, **same) == back


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_strict_parser_of_ismrmrd_takes_written_headers(name):
    xml = header_xml(PROTOCOLS[name], receiver_channels=2, water=PROTOCOLS["csi"], vendor="a", model="b", user={"x": 1})
    strict = ismrmrd.xsd.CreateFromDocument(xml)
    assert strict.encoding[0].encodedSpace.matrixSize.x == PROTOCOLS[name].geometry.matrix[0]
    assert len(strict.encoding) == 2
    assert strict.version is None


def test_the_water_reference_keeps_its_own_values_in_encoding_one():
    water = csi_protocol(matrix=(2, 3, 1), n_times=5, dwell_s=1e-3)
    header = parse_header(header_xml(csi_protocol(), receiver_channels=2, water=water))
    assert header.user["mrsi_spectral_points_enc1"] == 5
    back = read_water_protocol(header)
    assert (back.n_times, back.dwell_s, back.geometry.matrix) == (5, 1e-3, (2, 3, 1))
    assert back.provenance["n_times"] == "header mrsi_spectral_points_enc1"
    assert read_protocol(header).n_times == 12


def test_the_shared_header_is_read(shared_data):
    protocol = read_protocol(parse_header(read_scan(shared_data / "csi_8x8.h5").header_xml))
    assert protocol.geometry.matrix == (8, 8, 1)
    assert protocol.geometry.grid_center == "edge"
    assert (protocol.n_times, protocol.transmit_frequency_hz) == (96, 123250000)
    assert protocol.dwell_s == pytest.approx(1 / 1400)
    assert protocol.water_reference == "set:1"
    assert protocol.k_centre == {"kx": 4, "ky": 4, "kz": 0}


def test_the_description_of_a_ramp_sampled_lobe_is_written_and_read():
    lobe = {"rampUpTime": 100, "rampDownTime": 90, "flatTopTime": 400, "echoSpacing": 700, "numSamples": 10,
            "acqDelayTime": 0, "dwellTime": 55.5}  # fmt: skip
    xml = header_xml(PROTOCOLS["alternating"], receiver_channels=2, lobe=lobe)
    encoding = parse_header(xml).encodings[0]
    assert (encoding.trajectory, encoding.trajectory_id) == ("epi", "ConventionalEPI")
    assert encoding.trajectory_parameters == lobe
    strict = ismrmrd.xsd.CreateFromDocument(xml).encoding[0].trajectoryDescription
    assert strict.identifier == "ConventionalEPI"
    assert read_protocol(parse_header(xml)).trajectory_id == "ConventionalEPI"
