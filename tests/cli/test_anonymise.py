"""Anonymous copies hold the physics and nothing else; names of patients never reach a log or a result."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from mrsi_gadgets.io.mrd_file import read_images, read_scan, write_scan
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.identity import without_identity
from mrsi_gadgets.stream.messages import Acquisition

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


HIDDEN = ("SMITH^ANN", "a comment on DOE", "DOE attribute", "DOE between", "77007700", "61.25", "DOE^JANE")


def with_hidden_names(xml):
    """Names at places where a header that stays has room for them."""
    at = xml.index("</trajectory>") + len("</trajectory>")
    described = (
        "<trajectoryDescription><identifier>way</identifier><userParameterDouble><name>rampTime</name><value>120.5"
        "</value></userParameterDouble><userParameterString><name>operator</name><value>SMITH^ANN</value>"
        "</userParameterString><comment>a comment on DOE</comment></trajectoryDescription>"
    )
    xml = xml[:at] + described + xml[at:]
    numbers = (
        "<userParameterLong><name>PatientID</name><value>77007700</value></userParameterLong>"
        "<userParameterDouble><name>weight_kg</name><value>61.25</value></userParameterDouble>"
        "<userParameterDouble><name>averageWeighting</name><value>0.75</value></userParameterDouble>"
    )
    xml = xml.replace("<userParameters>", "<userParameters>" + numbers)
    xml = xml.replace("<sequenceParameters>", "<sequenceParameters><who>DOE^JANE</who>")
    return xml.replace("<encoding>", '<encoding note="DOE attribute"> DOE between ')


@pytest.mark.parametrize("prefix", ["", "mrd:"])
def test_nothing_of_a_person_hides_in_what_stays(scan, prefix):
    assert all(secret in with_hidden_names(scan.header_xml) for secret in HIDDEN)
    xml = with_hidden_names(scan.header_xml)
    if prefix:  # only the root and its namespace have one
        xml = xml.replace("ismrmrdHeader", "mrd:ismrmrdHeader").replace("xmlns=", "xmlns:mrd=")
    found, removed = without_identity(xml)
    assert not [secret for secret in HIDDEN if secret in found]
    assert {"trajectoryDescription/comment", "trajectoryDescription/operator", "userParameters/PatientID"} <= {*removed}
    after, before = parse_header(found), parse_header(scan.header_xml)
    assert dict(after.user) == dict(before.user) | {"averageWeighting": 0.75}
    assert after.encodings[0].trajectory_id == "way"
    assert dict(after.encodings[0].trajectory_parameters) == {"rampTime": 120.5}
    assert after.encodings[0].encoded == before.encodings[0].encoded
    assert 'xmlns="http://www.ismrm.org/ISMRMRD"' in found or prefix


@pytest.mark.parametrize("beats", [False, True])
def test_times_between_readouts_stay_over_midnight(run, scan, tmp_path, beats):
    day, readouts = round(86400 / 2.5e-3), []
    for i, readout in enumerate(scan.readouts):
        head = readout.head.copy()
        head["acquisition_time_stamp"] = (day - 40 + 3 * i) % day
        head["physiology_time_stamp"] = (17 * i % 350 if beats else (day - 30 + 3 * i) % day, 0, 5)
        readouts.append(Acquisition(head, readout.data, readout.trajectory))
    write_scan(tmp_path / "late.h5", scan.header_xml, readouts)
    assert run("anonymise", tmp_path / "late.h5", "-o", tmp_path / "a.h5")[0] == 0
    heads = read_scan(tmp_path / "a.h5").acquisitions.heads
    np.testing.assert_array_equal(heads["acquisition_time_stamp"], 3 * np.arange(len(readouts)))
    since_beat = [17 * i % 350 for i in range(len(readouts))]
    np.testing.assert_array_equal(
        heads["physiology_time_stamp"][:, 0], since_beat if beats else 3 * np.arange(len(readouts))
    )


@pytest.mark.usefixtures("no_picture")
def test_an_anonymous_result_holds_nothing_but_what_this_program_wrote(run, scan, tmp_path):
    scan.write(tmp_path / "scan.h5")
    run("replay", tmp_path / "scan.h5", "-o", tmp_path / "r", "--config", "fourier", "--device", "cpu", "--fsl-mrs")
    ours = {p.relative_to(tmp_path / "r") for p in (tmp_path / "r").rglob("*")}
    run("dicom", tmp_path / "r", "-o", tmp_path / "r/for_archive", "--patient-name", "DOE^JANE", "--kinds", "classic")
    (tmp_path / "r/maps/note.txt").write_text("DOE^JANE")
    (tmp_path / "r/scan.nii.gz").symlink_to(tmp_path / "scan.h5")
    (tmp_path / "r/wref.nii.gz").unlink()
    (tmp_path / "r/wref.nii.gz").symlink_to(tmp_path / "scan.h5")
    code, out, _ = run("anonymise", tmp_path / "r", "-o", tmp_path / "a")
    assert code == 0
    assert {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*")} == ours - {Path("wref.nii.gz")}
    assert all(left in out for left in ("for_archive", "maps/note.txt", "scan.nii.gz", "wref.nii.gz"))


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
