"""What sequence descriptions make of headers that were not written for the profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.mrd.adapters import adapted, read_adapter
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol

FIRE = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<measurementInformation><patientPosition>HFS</patientPosition><protocolName>fid_csi</protocolName></measurementInformation>
<acquisitionSystemInformation><systemFieldStrength_T>{field}</systemFieldStrength_T>
<receiverChannels>4</receiverChannels></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>{frequency}</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>1024</x><y>7</y><z>1</z></matrixSize>
<fieldOfView_mm><x>220</x><y>200</y><z>15</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>512</x><y>7</y><z>1</z></matrixSize>
<fieldOfView_mm><x>220</x><y>200</y><z>15</z></fieldOfView_mm></reconSpace><encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>6</maximum><center>3</center></kspace_encoding_step_1>
<segment><minimum>0</minimum><maximum>4</maximum><center>2</center></segment></encodingLimits>
<trajectory>cartesian</trajectory></encoding>
<sequenceParameters><TR>600</TR><TE>{te}</TE><flipAngle_deg>35</flipAngle_deg></sequenceParameters>
<userParameters><userParameterLong><name>SpecVectorSize</name><value>512</value></userParameterLong>
{user}</userParameters></ismrmrdHeader>"""
WIDTH = "<userParameterDouble><name>SpectralWidth</name><value>2000</value></userParameterDouble>"
DWELL = "<userParameterDouble><name>DwellTime_0</name><value>250</value></userParameterDouble>"
OVERSAMPLED = "<userParameterDouble><name>ReadoutOSFactor</name><value>2</value></userParameterDouble>"


def fire(user: str = WIDTH, *, field: float = 2.89362, frequency: int = 123_200_000, te: float = 1.3) -> str:
    # FIRE ends its texts with NUL
    return FIRE.format(user=user, field=field, frequency=frequency, te=te) + "\0"


def test_a_fire_csi_header_becomes_a_protocol_with_every_source_named():
    told: list[str] = []
    protocol = read_protocol(adapted(parse_header(fire()), tell=told.append))
    assert told == ["the header was read with the sequence description siemens_fire_csi"]
    # the vector length that stood in x is gone
    assert protocol.geometry.matrix == (5, 7, 1)
    assert (protocol.nucleus, protocol.encoding, protocol.n_times) == ("1H", "csi", 512)
    assert protocol.dwell_s == pytest.approx(500e-6)
    assert protocol.acquisition_delay_s == pytest.approx(1.3e-3)
    assert protocol.readout_oversampling == 2
    assert protocol.time_tick_ms == 2.5
    assert (protocol.axes["kx"], protocol.axes["ky"]) == ("segment", "kspace_encode_step_1")
    assert protocol.provenance["n_times"] == "header SpecVectorSize"
    assert protocol.provenance["dwell_s"] == "1e+06 over header SpectralWidth"
    assert protocol.provenance["nucleus"] == "derived: H1resonanceFrequency_Hz is that of 1H at 2.89362 T"


def test_without_a_spectral_width_the_adc_dwell_and_its_oversampling_count():
    protocol = read_protocol(adapted(parse_header(fire(DWELL + OVERSAMPLED))))
    assert protocol.dwell_s == pytest.approx(500e-6)
    assert protocol.provenance["dwell_s"] == "header DwellTime_0 times mrsi_readout_oversampling"


def test_the_frequency_of_an_x_nucleus_in_the_field_of_the_proton_tells_the_nucleus():
    protocol = read_protocol(adapted(parse_header(fire(frequency=120_319_000, field=6.98))))
    assert protocol.nucleus == "31P"
    assert protocol.transmit_frequency_hz == 120_319_000


def test_an_echo_time_is_no_delay_and_an_unsuppressed_scan_is_a_water_reference():
    off = "<userParameterString><name>WaterSaturation</name><value>{}</value></userParameterString>"
    protocol = read_protocol(adapted(parse_header(fire(WIDTH + off.format("WATER_SUPPRESSION_RF_OFF"), te=30.0))))
    assert protocol.acquisition_delay_s == 0
    assert protocol.water_reference == "measurement"
    suppressed = adapted(parse_header(fire(WIDTH + off.format("WATER_SATURATION"))))
    assert read_protocol(suppressed).water_reference == "none"


def test_settings_and_profile_keys_come_before_what_is_derived():
    header = adapted(parse_header(fire()))
    assert read_protocol(header, {"mrsi_acq_delay_us": "900"}).acquisition_delay_s == pytest.approx(0.9e-3)
    own = replace(header, user={**header.user, "mrsi_acq_delay_us": 800.0})
    assert read_protocol(own).acquisition_delay_s == pytest.approx(0.8e-3)


def test_a_header_with_the_profile_or_that_nobody_knows_stays_as_it_is():
    header = parse_header(fire())
    profile = replace(header, user={**header.user, "mrsi_profile": "1.0"})
    assert adapted(profile) is profile
    unknown = replace(header, user={})
    assert adapted(unknown) is unknown
    with pytest.raises(DataError, match=r"lacks mrsi_profile, mrsi_nucleus.*--sequence"):
        read_protocol(unknown)


def test_what_the_header_cannot_tell_is_asked_for_by_name():
    with pytest.raises(DataError, match="lacks mrsi_dwell_us"):
        read_protocol(adapted(parse_header(fire(user=""))))
    # 3.0 T is nominal: 123.2 MHz lies within the tolerance of both 1H and 19F
    with pytest.raises(DataError, match="lacks mrsi_nucleus"):
        read_protocol(adapted(parse_header(fire(field=3.0))))
    zero = WIDTH.replace("2000", "0")
    with pytest.raises(DataError, match="header SpectralWidth is 0"):
        adapted(parse_header(fire(zero)))


def test_a_description_is_refused_with_the_reason(tmp_path):
    def written(text: str):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    with pytest.raises(ConfigError, match="mrsi_dwel is no key"):
        read_adapter(written('input = "mrd"\n[profile]\nmrsi_dwel = 1\n'))
    with pytest.raises(ConfigError, match="describes raw files"):
        read_adapter(written('name = "x"\n'))
    with pytest.raises(ConfigError, match=r"\[detect\] user_parameter is not known"):
        read_adapter(written('input = "mrd"\n[detect]\nuser_parameter = ["a"]\n'))
    with pytest.raises(ConfigError, match="there is no sequence description 'nobody'"):
        adapted(parse_header(fire()), "nobody")
    mine = written(
        'input = "mrd"\n[profile]\nmrsi_nucleus = { user_parameter = "SpecVectorSize", times = "mrsi_voi" }\n'
    )
    with pytest.raises(DataError, match="needs mrsi_voi"):
        adapted(parse_header(fire()), str(mine))
