from __future__ import annotations

import numpy as np
import pytest
from csi_scans import CsiScan, csi_protocol, noise_readouts

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.io.mrd_file import write_scan
from mrsi_gadgets.mrd.check import check_file
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.stream.messages import Flag


@pytest.fixture
def scan_file(tmp_path):
    protocol = csi_protocol(water_reference="set:1")
    scan = CsiScan(protocol)
    readouts = noise_readouts() + scan.readouts(set=1, flags=(Flag.USER1,), start=2) + scan.readouts(start=62)
    write_scan(tmp_path / "scan.h5", header_xml(protocol, receiver_channels=2), readouts)
    return tmp_path / "scan.h5"


def test_a_good_file_is_usable_and_its_report_says_where_values_come_from(scan_file):
    report = check_file(scan_file)
    assert report.ok
    text = report.text()
    for line in (
        f"{scan_file}: usable",
        "122 readouts, 0 waveforms",
        "csi, 3 x 4 x 5 voxels, 210 x 200 x 150 mm",
        "1H at 123.250000 MHz, 0 Hz is 4.65 ppm",
        "12 points at 500 us (2000.0 Hz), first at 1300 us",
        "2 noise readouts",
        "60 water_reference readouts",
        "60 metabolite readouts",
        "72.0 s of TR for the data readouts",
        "water_reference: 2 coils, 60 k-space points of 12 samples at 500 us",
        "metabolite frame 0: 2 coils, 60 k-space points of 12 samples at 500 us",
        "dwell_s: header mrsi_dwell_us",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("changes", "water", "said"),
    [
        ({"flip_angle_deg": 60.0}, True, "maps in mM are possible: water reference, TR and flip angle are there"),
        ({"flip_angle_deg": 60.0}, False, "no absolute concentrations: there is no water reference; acquire one"),
        ({"flip_angle_deg": None}, True, "no absolute concentrations: the header names no flip angle"),
    ],
)
def test_it_is_said_whether_maps_in_millimolar_can_be_made_of_the_scan(tmp_path, changes, water, said):
    protocol = csi_protocol(water_reference="set:1", **changes)
    scan = CsiScan(protocol)
    readouts = noise_readouts() + (scan.readouts(set=1, flags=(Flag.USER1,), start=2) if water else [])
    write_scan(tmp_path / "x.h5", header_xml(protocol, receiver_channels=2), readouts + scan.readouts(start=62))
    assert said in check_file(tmp_path / "x.h5").text()


def test_missing_and_repeated_samples_are_reported(tmp_path):
    protocol = csi_protocol(water_reference="none")
    scan = CsiScan(protocol)
    readouts = scan.readouts(skip={(0, 0, 0)})
    readouts.insert(-1, readouts[0])
    write_scan(tmp_path / "a.h5", header_xml(protocol, receiver_channels=2), readouts)
    report = check_file(tmp_path / "a.h5")
    assert report.ok
    assert "1 of 60 k-space samples of metabolite were not acquired and are zero" in report.warnings
    assert any("repeat samples" in text for text in report.warnings)
    assert any("1 missing" in fact for fact in report.facts)
    assert any("scan_counter does not rise" in text for text in report.warnings)


def test_what_is_missing_is_an_error_of_the_report(tmp_path):
    xml = header_xml(csi_protocol(), receiver_channels=2).replace("mrsi_dwell_us", "nothing")
    write_scan(tmp_path / "a.h5", xml, CsiScan(csi_protocol()).readouts())
    report = check_file(tmp_path / "a.h5")
    assert not report.ok
    assert "lacks mrsi_dwell_us" in report.text()
    assert check_file(tmp_path / "a.h5", {"mrsi_dwell_us": "500"}).ok


def test_contradicting_readouts_are_an_error_of_the_report(scan_file):
    report = check_file(scan_file, {"mrsi_dwell_us": "400"})
    assert report.errors == [
        "readout 2 has sample_time_us 500 but mrsi_dwell_us 400 with mrsi_readout_oversampling 1 means 400; correct "
        "one of them"
    ]


def test_a_file_that_is_none_is_an_error_of_the_report(tmp_path):
    (tmp_path / "a.h5").write_text("text")
    assert "not an HDF5 file" in check_file(tmp_path / "a.h5").text()
    assert "is not there" in check_file(tmp_path / "b.h5").text()


def test_an_unknown_setting_is_refused(scan_file):
    with pytest.raises(ConfigError, match="mrsi_dwel"):
        check_file(scan_file, {"mrsi_dwel": "1"})


def test_a_file_without_readouts_has_no_metabolites(tmp_path):
    write_scan(tmp_path / "a.h5", header_xml(csi_protocol(), receiver_channels=2), [])
    report = check_file(tmp_path / "a.h5")
    assert "no metabolite readouts came" in report.errors[0]


def test_the_shared_scan_is_usable(shared_data):
    report = check_file(shared_data / "csi_8x8.h5")
    assert report.ok
    assert report.warnings == []
    assert np.isin(["2 noise readouts", "64 water_reference readouts", "64 metabolite readouts"], report.facts).all()


def test_a_nucleus_without_known_molecules_is_told_before_it_is_refused(tmp_path):
    protocol = csi_protocol(
        nucleus="13C", transmit_frequency_hz=30.99e6, reference_ppm=0.0, water_reference="none", field_strength_t=2.8948
    )
    write_scan(tmp_path / "a.h5", header_xml(protocol, receiver_channels=2), CsiScan(protocol).readouts())
    report = check_file(tmp_path / "a.h5")
    assert any("known for 1H, 31P, 2H only" in text and "refuses 13C" in text for text in report.warnings)
