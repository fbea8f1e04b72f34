"""Spectroscopic images of another reconstruction go through the chain as the readouts they stand for do."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import centred_ifftn
from mrsi_gadgets.errors import DataError, MrsiError
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.output.meta import to_xml
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.stream.messages import IMAGE_HEADER, ConfigFile, Header, Image
from small_scan import small_scan


@pytest.fixture(scope="module")
def scan():
    one = small_scan(matrix=(5, 6, 1), n_coils=1)
    return one.with_readouts([r for r in one.readouts if r not in one.noise])


def as_images(scan, frames=1):
    """Water and metabolites, reconstructed by a plain Fourier transform."""
    geometry = scan.protocol.geometry
    for readouts, role, frame in (
        (scan.water, "water_reference", 0),
        *((scan.metabolites[f * 30 : (f + 1) * 30], "", f) for f in range(frames)),
    ):
        k_space = np.zeros((*geometry.matrix, scan.protocol.n_times), np.complex64)
        for readout in readouts:
            index = readout.head["idx"]
            k_space[index["segment"], index["kspace_encode_step_1"], 0] = readout.data[0]
        fids = centred_ifftn(k_space, (0, 1, 2)) / np.sqrt(np.prod(geometry.matrix))
        head = np.zeros(1, IMAGE_HEADER)[0]
        head["version"], head["data_type"], head["channels"], head["image_type"] = 1, 7, fids.shape[3], 5
        head["matrix_size"], head["field_of_view"], head["repetition"] = geometry.matrix, geometry.fov_mm, frame
        head["position"] = geometry.box_centre_mm
        head["read_dir"], head["phase_dir"], head["slice_dir"] = (
            geometry.read_dir, geometry.phase_dir, geometry.slice_dir
        )  # fmt: skip
        attributes = to_xml({"mrsi_role": role}) if role else ""
        yield Image(head, attributes, np.ascontiguousarray(fids.astype(np.complex64).transpose(3, 2, 1, 0)))


def run(header_xml, items, recipe="fourier"):
    images = []
    messages = iter([ConfigFile(recipe), Header(header_xml), *items])
    report = run_scan(messages, lambda m: images.append(m) if isinstance(m, Image) else None, ScanOptions(device="cpu"))
    return gather(images), report


def test_images_give_the_maps_that_their_readouts_give(scan):
    direct, _ = run(scan.header_xml, scan.readouts)
    staged, report = run(scan.header_xml, as_images(scan))
    np.testing.assert_allclose(staged.affine_ras, direct.affine_ras, atol=1e-4)
    for name in ("tNAA", "tCr", "tNAA_per_water"):
        np.testing.assert_allclose(staged.maps[name].value, direct.maps[name].value, rtol=2e-3)
    assert report.provenance["input"] == "spectroscopic images of another reconstruction"
    assert report.provenance["protocol"]["geometry"] == "the header of the images"


def test_what_the_header_says_of_the_encoding_does_not_count_for_images(scan):
    xml = scan.header_xml.replace(">csi<", ">epsi<")
    assert xml != scan.header_xml
    staged, _ = run(xml, as_images(scan))
    direct, _ = run(scan.header_xml, scan.readouts)
    np.testing.assert_allclose(staged.maps["tCr"].value, direct.maps["tCr"].value, rtol=2e-3)


def test_frames_stay_frames():
    scan = small_scan(matrix=(5, 6, 1), n_coils=1, frames=2)
    staged, _ = run(scan.header_xml, as_images(scan, frames=2))
    assert staged.maps["tNAA"].value.shape == (5, 6, 1, 2)


def broken(scan, change):
    images = list(as_images(scan))
    images[1] = change(images[1])
    return images


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i: Image(i.head, "", np.abs(i.data)), "not complex"),
        (lambda i: Image(i.head, "", i.data[:100].copy()), "100 channels but mrsi_spectral_points is 128"),
        (lambda i: Image(i.head, "", np.ascontiguousarray(i.data[:, :, :4])), "send one grid"),
    ],
)
def test_images_that_do_not_fit_are_refused(scan, change, sentence):
    with pytest.raises(DataError, match=sentence):
        run(scan.header_xml, broken(scan, change))


def test_readouts_and_images_do_not_mix(scan):
    with pytest.raises(DataError, match="one or the other"):
        run(scan.header_xml, [*as_images(scan), scan.readouts[0]])
    with pytest.raises(MrsiError, match="either readouts or spectroscopic images"):
        run(scan.header_xml, [scan.readouts[0], *as_images(scan)])
