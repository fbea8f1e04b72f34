"""Results as DICOM: values, units, geometry and identifiers survive; an archive gives them back."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from all_spectra import build_spectra

from mrsi_gadgets.cli import main
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.dicom import pacs
from mrsi_gadgets.output.dicom.classic import to_pixels
from mrsi_gadgets.output.dicom.exam import Grid, check_finite_grid, unit_code
from mrsi_gadgets.output.dicom.pacs import Node, send
from mrsi_gadgets.output.dicom.spectroscopy import read_spectroscopy
from mrsi_gadgets.output.dicom.write import DicomOptions, write_dicom
from mrsi_gadgets.output.folder import write_results

pydicom = pytest.importorskip("pydicom")
SHOWN = ("tNAA", "tCr")


@pytest.fixture
def result(tmp_path, maps, reference_head):
    write_results(tmp_path / "res", images_of(maps, reference_head), summary={})
    return tmp_path / "res"


def images_of(maps, head, **options):
    return maps_to_images(maps, reference_head=head, shown=SHOWN, **options)


def place_of(ds, column, row):
    """LPS mm of a pixel by the formula of PS3.3 C.7.6.2.1.1."""
    across, down = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    rows_apart, columns_apart = (float(v) for v in ds.PixelSpacing)
    return np.array(ds.ImagePositionPatient, float) + across * columns_apart * column + down * rows_apart * row


def test_classic_images_hold_values_and_places_of_the_map(tmp_path, result, maps):
    write_dicom(result, tmp_path / "dcm")
    truth = maps.maps["tNAA_per_water"].value
    files = sorted((tmp_path / "dcm/classic/tNAA_per_water").iterdir())
    assert len(files) == 5
    affine = maps.protocol.geometry.affine_lps()
    step = np.nanmax(truth) / 65533
    for z, path in enumerate(files):
        ds = pydicom.dcmread(path)
        assert (ds.Rows, ds.Columns) == (4, 3)
        pixels = ds.pixel_array.T
        values = np.where(pixels == ds.PixelPaddingValue, np.nan, pixels * ds.RescaleSlope + ds.RescaleIntercept)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(truth[:, :, z]))
        np.testing.assert_allclose(values, truth[:, :, z], atol=0.51 * step, rtol=1e-6)
        for x, y in ((0, 0), (2, 1), (1, 3)):
            np.testing.assert_allclose(place_of(ds, x, y), (affine @ [x, y, z, 1])[:3], atol=1e-4)
        mapping = ds.RealWorldValueMappingSequence[0]
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "mmol/L"
        assert mapping.RealWorldValueSlope == pytest.approx(float(ds.RescaleSlope))


def test_parametric_maps_hold_the_exact_values(tmp_path, result, maps):
    pytest.importorskip("highdicom")
    write_dicom(result, tmp_path / "dcm")
    ds = pydicom.dcmread(tmp_path / "dcm/parametric/tCr_per_water.dcm")
    values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(5, 4, 3).transpose(0, 2, 1)
    affine = maps.protocol.geometry.affine_lps()
    found = set()
    for slice_values, frame in zip(values, ds.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        index = np.linalg.solve(affine, np.append(position, 1.0))[:3]
        np.testing.assert_allclose(index, [0, 0, round(index[2])], atol=1e-4)
        np.testing.assert_array_equal(slice_values, maps.maps["tCr_per_water"].value[:, :, round(index[2])])
        found.add(round(index[2]))
    assert found == set(range(5))


def test_spectra_of_all_voxels_come_back_with_their_line_at_its_shift(tmp_path, maps, reference_head):
    write_results(tmp_path / "res", images_of(with_spectra(maps), reference_head, spectra="all"), summary={})
    write_dicom(tmp_path / "res", tmp_path / "dcm", DicomOptions(kinds=("spectra",)))
    ds = pydicom.dcmread(tmp_path / "dcm/spectra/metabolites.dcm")
    fids = read_spectroscopy(ds)
    fitted = spectra_of(maps)
    np.testing.assert_array_equal(fids[tuple(fitted.voxels.T)], fitted.data)
    assert not fids[~maps.mask].any()
    assert (ds.Rows, ds.Columns, ds.NumberOfFrames, ds.DataPointColumns) == (4, 3, 5, 128)
    assert ds.SpectralWidth == pytest.approx(1500)
    spectrum = np.abs(np.fft.fft(fids[1, 2, 3], 4096))
    hz = np.fft.fftfreq(4096, 1 / ds.SpectralWidth)[np.argmax(spectrum)]
    assert ds.ChemicalShiftReference + hz / ds.TransmitterFrequency == pytest.approx(2.01, abs=0.01)
    assert pydicom.dcmread(tmp_path / "dcm/spectra/fit.dcm").ResonantNucleus == "1H"


def spectra_of(maps):
    """A line at 2.01 ppm in every voxel, of its own height."""
    times = maps.protocol.times_s
    line = np.exp(2j * np.pi * (2.01 - 4.65) * 123.2 * times - times / 0.2)
    heights = np.linspace(1, 9, int(maps.mask.sum()))
    return replace(build_spectra(maps), data=(heights[:, None] * line).astype(np.complex64))


def with_spectra(maps):
    return replace(maps, spectra=lambda: spectra_of(maps))


def test_three_example_spectra_are_no_spectroscopic_image(tmp_path, result):
    write_dicom(result, tmp_path / "dcm")
    assert not (tmp_path / "dcm/spectra").exists()


def test_frames_share_one_scale_and_are_told_apart(tmp_path, make_maps, reference_head):
    frames = [make_maps(frame=frame, seed=frame) for frame in range(2)]
    images = [image for maps in frames for image in images_of(maps, reference_head)]
    write_results(tmp_path / "res", images, summary={})
    write_dicom(tmp_path / "res", tmp_path / "dcm", DicomOptions(maps=("tCr",)))
    read = [pydicom.dcmread(path) for path in sorted((tmp_path / "dcm/classic/tCr").iterdir())]
    assert [int(ds.InstanceNumber) for ds in read] == list(range(1, 11))
    assert {int(ds.TemporalPositionIdentifier) for ds in read} == {1, 2}
    assert len({(str(ds.RescaleSlope), str(ds.RescaleIntercept)) for ds in read}) == 1
    assert len(list((tmp_path / "dcm/parametric").glob("tCr_0*.dcm"))) == 2


def test_the_same_result_gives_the_same_identifiers(tmp_path, result):
    def identifiers(folder):
        return [pydicom.dcmread(path).SOPInstanceUID for path in write_dicom(result, folder)]

    first, second = identifiers(tmp_path / "a"), identifiers(tmp_path / "b")
    assert first == second
    assert len(set(first)) == len(first)
    assert all(len(uid) <= 64 for uid in first)


def test_patient_and_study_come_from_the_reference(tmp_path, result):
    made = write_dicom(result, tmp_path / "a", DicomOptions(kinds=("classic",)))
    reference = pydicom.dcmread(made[0])
    reference.PatientID, reference.StudyInstanceUID, reference.FrameOfReferenceUID = "X7", "1.2.3", "1.2.3.4"
    reference.save_as(tmp_path / "t1.dcm")
    files = write_dicom(result, tmp_path / "b", DicomOptions(reference=tmp_path / "t1.dcm"))
    for path in files:
        ds = pydicom.dcmread(path)
        assert (ds.PatientID, ds.StudyInstanceUID, ds.FrameOfReferenceUID) == ("X7", "1.2.3", "1.2.3.4")
        assert "Not for diagnosis" in ds.ImageComments


def test_pixels_leave_zero_for_what_was_not_fitted():
    values = np.array([np.nan, -3.0, 0.0, 9.0, 9.0001])
    pixels, slope, intercept = to_pixels(values)
    assert pixels[0] == 0
    assert pixels[1:].min() == 1
    np.testing.assert_allclose(pixels[1:] * slope + intercept, values[1:], atol=0.51 * 12.0001 / 65533)


@pytest.mark.parametrize(
    ("unit", "code"), [("Hz", "Hz"), ("1 (ratio to tCr)", "1"), ("a.u. (amount)", "[arb'U]"), ("ppm", "[ppm]")]
)
def test_units_have_their_code(unit, code):
    assert unit_code(unit).value == code


@pytest.mark.parametrize("text", ["ORTHANC", "A@b", "A@b:0", "A@b:70000", "much_too_long_title@b:1", "A@:1"])
def test_a_wrong_archive_is_refused(text):
    with pytest.raises(ConfigError, match="AET@HOST:PORT"):
        Node.of(text)


def test_what_cannot_be_written_is_refused(tmp_path, result):
    with pytest.raises(ConfigError, match="no map 'Xyz'"):
        write_dicom(result, tmp_path / "a", DicomOptions(maps=("Xyz",)))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="not empty"):
        write_dicom(result, result)
    with pytest.raises(ConfigError, match="no images.h5"):
        write_dicom(tmp_path, tmp_path / "a")
    with pytest.raises(DataError, match="does not|cannot"):
        check_finite_grid(Grid((1, 1, 1), np.diag([1.0, 0.0, 1.0, 1.0])))


def test_an_archive_that_is_not_there_is_told(tmp_path, result, capsys):
    port = free_port()
    assert main(["send", str(result), "--pacs", f"NOBODY@127.0.0.1:{port}"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


@pytest.fixture
def archive():
    """Starts an archive in this process that treats stored objects as told."""
    pynetdicom = pytest.importorskip("pynetdicom")
    servers = []

    def start(store):
        entity = pynetdicom.AE(ae_title="X")
        entity.supported_contexts = pynetdicom.AllStoragePresentationContexts
        servers.append(
            entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, store)])
        )
        return servers[-1].server_address[1]

    yield start
    for server in servers:
        server.shutdown()


def test_an_archive_that_goes_away_between_two_objects_is_told(tmp_path, result, archive):
    files = write_dicom(result, tmp_path / "dcm", DicomOptions(kinds=("classic",)))
    links = []

    def store(event):
        links.append(event.assoc)
        return 0

    def stored(count):
        links[0].abort()
        time.sleep(0.3)

    with pytest.raises(DataError, match=f"went away. after 1 of {len(files)} objects"):
        send(files, Node("X", "127.0.0.1", archive(store)), progress=stored)


def test_an_archive_that_takes_no_bytes_is_given_up(tmp_path, archive, monkeypatch):
    monkeypatch.setattr(pacs, "_TIMEOUT_S", 1.0)
    port = archive(lambda event: 0)
    file = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
    file.Rows = file.Columns = 4000
    file.PixelData = bytes(2 * 4000 * 4000)
    file.save_as(tmp_path / "large.dcm")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def pass_association_on():
            listener.accept()[0].close()  # who only looks whether it listens
            client, real = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
            kept.extend((client, real))
            real.sendall(client.recv(1 << 16))
            client.sendall(real.recv(1 << 16))

        thread = threading.Thread(target=pass_association_on, daemon=True)
        thread.start()
        with pytest.raises(DataError, match="did not answer, or went away"):
            send([tmp_path / "large.dcm"], Node("X", "127.0.0.1", listener.getsockname()[1]))
        thread.join(5)
        for sock in kept:
            sock.close()


def test_what_is_no_dicom_is_named_before_anything_is_sent(tmp_path, capsys):
    (tmp_path / "a.dcm").write_text("text")
    assert main(["send", str(tmp_path), "--pacs", f"NOBODY@127.0.0.1:{free_port()}"]) == 1
    said = capsys.readouterr().err
    assert "a.dcm cannot be read as DICOM" in said
    assert "nothing was sent" in said


def test_options_that_would_change_nothing_are_refused(tmp_path, result, capsys):
    write_dicom(result, tmp_path / "dcm", DicomOptions(kinds=("classic",)))
    assert main(["send", str(tmp_path / "dcm"), "--pacs", "A@127.0.0.1:4242", "--patient-id", "7"]) == 1
    assert "sent as they are" in capsys.readouterr().err


def system_program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("MRSI_REQUIRE_SYSTEM_PACKAGES"):
        pytest.fail(f"{name} is not installed although system packages are required")
    if found is None:
        pytest.skip(f"needs {name} (Debian package {package})")
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path):
    program = system_program("Orthanc", "orthanc")
    dicom, http = free_port(), free_port()
    settings = {
        "Name": "test", "StorageDirectory": str(tmp_path / "store"), "IndexDirectory": str(tmp_path / "store"),
        "DicomAet": "ORTHANC", "DicomPort": dicom, "HttpPort": http, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True, "Plugins": [],
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    server = subprocess.Popen(
        [program, str(tmp_path / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                get(http, "/system")
                break
            except OSError:
                time.sleep(0.1)
        yield dicom, http
    finally:
        server.terminate()
        server.wait(20)


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return bytes(answer.read())


def test_an_archive_gives_back_what_was_sent(tmp_path, result, maps, orthanc, capsys):
    dicom, http = orthanc
    files = write_dicom(result, tmp_path / "dcm")
    assert main(["send", str(result), "--pacs", f"ORTHANC@127.0.0.1:{dicom}"]) == 0
    assert f"{len(files)} objects stored" in capsys.readouterr().out
    sent = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, files)}
    back = 0
    for number in json.loads(get(http, "/instances")):
        (tmp_path / "one.dcm").write_bytes(get(http, f"/instances/{number}/file"))
        ds = pydicom.dcmread(tmp_path / "one.dcm")
        original = sent[ds.SOPInstanceUID]
        for keyword in ("PixelData", "FloatPixelData", "ImagePositionPatient", "ImageOrientationPatient",
                        "PixelSpacing", "RescaleSlope", "RescaleIntercept", "SeriesDescription"):  # fmt: skip
            assert ds.get(keyword) == original.get(keyword), keyword
        units = [m.MeasurementUnitsCodeSequence[0].CodeValue for m in ds.get("RealWorldValueMappingSequence", [])]
        assert all(unit in ("mmol/L", "Hz", "[arb'U]") for unit in units)
        back += 1
    assert back == len(files)
    # again: identifiers are the same, so nothing is stored twice
    send(files, Node("ORTHANC", "127.0.0.1", dicom))
    assert len(json.loads(get(http, "/instances"))) == len(files)


def test_a_validator_finds_no_error(tmp_path, maps, reference_head):
    system_program("dciodvfy", "dicom3tools")
    images = images_of(with_spectra(maps), reference_head, spectra="all")
    write_results(tmp_path / "res", images, summary={})
    for path in write_dicom(tmp_path / "res", tmp_path / "dcm", DicomOptions(maps=("tNAA_per_water",))):
        told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
        errors = [line for line in told.splitlines() if line.startswith("Error")]
        if "spectra" in path.parts:
            # without these nobody can read a frequency, although the standard asks for them in originals alone
            needed = (
                "<ChemicalShiftReference>",
                "<VolumeLocalizationTechnique>",
                "<SpectralWidth>",
                "<TransmitterFrequency>",
            )
            errors = [line for line in errors if not any(element in line for element in needed)]
        assert not errors, (path.name, errors)
