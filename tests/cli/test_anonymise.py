"""Anonymous copies hold the physics and nothing else; names of patients never reach a log or a result."""

from __future__ import annotations

import logging

import h5py
import numpy as np
import pytest

from mrsi_gadgets.io.mrd_file import read_images, read_scan, write_scan
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.identity import without_identity

SECRETS = ("DOE^JANE", "19700131", "HOSPITAL-9", "1.2.840.99", "SN4711", "secret note", "20260102")
PERSON = (
    "<subjectInformation><patientName>DOE^JANE</patientName><patientID>77</patientID>"
    "<patientBirthdate>19700131</patientBirthdate></subjectInformation>"
    "<studyInformation><studyDate>20260102</studyDate><studyInstanceUID>1.2.840.99</studyInstanceUID>"
    "</studyInformation>"
)


@pytest.fixture
def named(scan):
    """The small scan of a person with a name."""
    xml = scan.header_xml
    start = xml.index("<measurementInformation>")
    xml = xml[:start] + PERSON + xml[start:]
    xml = xml.replace("<measurementID>small", "<measurementID>1.2.840.99.1")
    xml = xml.replace(
        "</userParameters>",
        "<userParameterString><name>note</name><value>secret note</value></userParameterString></userParameters>",
    )
    place = xml.index("<systemFieldStrength_T>")
    xml = xml[:place] + "<institutionName>HOSPITAL-9</institutionName><deviceID>SN4711</deviceID>" + xml[place:]
    return xml


def everything_in(path):
    return path.read_bytes()


def test_a_raw_file_loses_the_person_and_keeps_the_physics(run, scan, named, tmp_path):
    write_scan(tmp_path / "named.h5", named, scan.readouts)
    code, out, _ = run("anonymise", tmp_path / "named.h5", "-o", tmp_path / "a.h5")
    assert code == 0
    assert "subjectInformation" in out
    assert "userParameters/note" in out
    data = everything_in(tmp_path / "a.h5")
    assert not [secret for secret in SECRETS if secret.encode() in data]
    before, after = parse_header(scan.header_xml), parse_header(read_scan(tmp_path / "a.h5").header_xml)
    for name in ("encodings", "user", "field_strength_t", "repetition_times_ms", "vendor", "patient_position"):
        assert getattr(after, name) == getattr(before, name), name
    copies = read_scan(tmp_path / "a.h5").acquisitions
    assert len(copies) == len(scan.readouts)
    first = int(scan.readouts[0].head["acquisition_time_stamp"])
    for one, two in zip(scan.readouts, copies, strict=True):
        np.testing.assert_array_equal(one.data, two.data)
        assert two.head["measurement_uid"] == 0
        assert int(two.head["acquisition_time_stamp"]) == int(one.head["acquisition_time_stamp"]) - first
        assert one.head["idx"] == two.head["idx"]


@pytest.mark.usefixtures("no_picture")
def test_an_anonymous_file_gives_the_same_maps(run, scan, named, tmp_path):
    write_scan(tmp_path / "named.h5", named, scan.readouts)
    assert run("anonymise", tmp_path / "named.h5", "-o", tmp_path / "a.h5")[0] == 0
    for file in ("named", "a"):
        options = ("--config", "fourier", "--device", "cpu")
        assert run("replay", tmp_path / f"{file}.h5", "-o", tmp_path / file, *options)[0] == 0
    pairs = zip(read_images(tmp_path / "named/images.h5"), read_images(tmp_path / "a/images.h5"), strict=True)
    assert all(np.array_equal(one.data, two.data, equal_nan=one.data.dtype.kind in "fc") for one, two in pairs)


@pytest.mark.usefixtures("no_picture")
def test_no_name_reaches_a_log_or_a_result(run, scan, named, tmp_path, caplog):
    write_scan(tmp_path / "named.h5", named, scan.readouts)
    with caplog.at_level(logging.DEBUG):
        code, out, err = run(
            "replay", tmp_path / "named.h5", "-o", tmp_path / "r", "--config", "fourier", "--log-level", "DEBUG"
        )
    assert code == 0
    told = (out + err + caplog.text).encode()
    files = [everything_in(path) for path in (tmp_path / "r").rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert secret.encode() not in told
        assert not any(secret.encode() in data for data in files), secret


@pytest.mark.usefixtures("no_picture")
def test_a_result_loses_number_time_and_the_name_of_its_file(run, scan, tmp_path):
    scan.write(tmp_path / "jane.h5")
    run("replay", tmp_path / "jane.h5", "-o", tmp_path / "r", "--config", "fourier", "--device", "cpu")
    assert run("anonymise", tmp_path / "r", "-o", tmp_path / "a")[0] == 0
    assert "jane" not in (tmp_path / "a/summary.json").read_text()
    images = read_images(tmp_path / "a/images.h5")
    assert {int(image.head["acquisition_time_stamp"]) for image in images} == {0}
    for one, two in zip(read_images(tmp_path / "r/images.h5"), images, strict=True):
        assert one.data.tobytes() == two.data.tobytes()
        assert one.attributes == two.attributes
    assert {p.relative_to(tmp_path / "r") for p in (tmp_path / "r").rglob("*")} == {
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*")
    }


def test_what_is_to_stay_can_be_named(named):
    xml, removed = without_identity(named, keep=("note",))
    assert "secret note" in xml
    assert "userParameters/note" not in removed
    assert "<institutionName>" not in xml


def test_nothing_is_overwritten_and_foreign_things_are_refused(refused, scan_file, tmp_path):
    (tmp_path / "there").mkdir()
    assert "exists" in refused("anonymise", scan_file, "-o", tmp_path / "there")
    assert "holds no images.h5" in refused("anonymise", tmp_path / "there", "-o", tmp_path / "new")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    assert "no group" in refused("anonymise", tmp_path / "other.h5", "-o", tmp_path / "new.h5")
