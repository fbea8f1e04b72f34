from __future__ import annotations

import gc

import h5py
import ismrmrd
import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io import mrd_file
from mrsi_gadgets.io.mrd_file import ImageFile, ScanWriter, read_images, read_scan, write_scan
from mrsi_gadgets.stream.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    PIXEL_TYPES,
    WAVEFORM_HEADER,
    Acquisition,
    Image,
    Waveform,
)

XML = "<ismrmrdHeader><studyInformation>µ</studyInformation></ismrmrdHeader>"


META = "<ismrmrdMeta><meta><name>unit</name><value>µ</value></meta></ismrmrdMeta>"


def random_head(rng, dtype) -> np.void:
    return np.frombuffer(rng.bytes(dtype.itemsize), dtype)[0].copy()


def random_readout(rng, channels=3, samples=5, dimensions=0) -> Acquisition:
    head = random_head(rng, ACQUISITION_HEADER)
    head["active_channels"], head["number_of_samples"], head["trajectory_dimensions"] = channels, samples, dimensions
    data = rng.standard_normal((channels, samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    path = rng.standard_normal((samples, dimensions)).astype(np.float32) if dimensions else None
    return Acquisition(head, data, path)


def random_waveform(rng, channels=2, samples=7) -> Waveform:
    head = np.zeros((), WAVEFORM_HEADER)[()]
    head["channels"], head["number_of_samples"], head["waveform_id"], head["sample_time_us"] = channels, samples, 3, 2.5
    return Waveform(head, rng.integers(0, 2**32, (channels, samples), dtype=np.uint32))


def random_image(rng, code, series=4, shape=(2, 3, 4, 5)) -> Image:
    head = random_head(rng, IMAGE_HEADER)
    head["data_type"], head["image_series_index"], head["channels"] = code, series, shape[0]
    head["matrix_size"] = shape[:0:-1]
    data = (100 * rng.random(shape)).astype(PIXEL_TYPES[code])
    if data.dtype.kind == "c":
        data = data * data.dtype.type(1 - 2j)
    head["attribute_string_len"] = len(META.encode())
    return Image(head, META, data)


def assert_same(one: Acquisition, other: Acquisition) -> None:
    assert one.head.tobytes() == other.head.tobytes()
    assert np.array_equal(one.data, other.data)
    assert one.data.dtype == np.complex64
    assert (one.trajectory is None) == (other.trajectory is None)
    assert one.trajectory is None or np.array_equal(one.trajectory, other.trajectory)


@pytest.fixture
def mixed(rng):
    return [
        random_readout(rng, 3, 5), random_readout(rng, 1, 9), random_readout(rng, 2, 4, 3), random_readout(rng, 3, 0),
        random_readout(rng, 4, 7, 1),
    ]  # fmt: skip


def test_a_scan_reads_back_as_it_was_written(tmp_path, mixed):
    write_scan(tmp_path / "a.h5", XML, mixed)
    scan = read_scan(tmp_path / "a.h5")
    assert scan.header_xml == XML
    assert len(scan.acquisitions) == 5
    for one, other in zip(scan.acquisitions, mixed, strict=True):
        assert_same(one, other)
        assert one.data.flags.writeable


def test_readouts_can_be_indexed_and_iterated_again(tmp_path, mixed):
    write_scan(tmp_path / "a.h5", XML, mixed)
    readouts = read_scan(tmp_path / "a.h5").acquisitions
    assert_same(readouts[2], mixed[2])
    assert_same(readouts[-1], mixed[4])
    assert [r.data.shape for r in readouts[1:3]] == [(1, 9), (2, 4)]
    assert len(list(readouts)) == len(list(readouts)) == 5
    with pytest.raises(IndexError):
        readouts[5]
    assert readouts.heads["number_of_samples"].tolist() == [5, 9, 4, 0, 7]


def test_slabs_do_not_change_what_is_read_or_written(tmp_path, rng, monkeypatch):
    readouts = [random_readout(rng, 2, 11) for _ in range(23)]
    write_scan(tmp_path / "whole.h5", XML, readouts)
    monkeypatch.setattr(mrd_file, "SLAB_BYTES", 3000)
    write_scan(tmp_path / "slabs.h5", XML, readouts)
    for name in ("whole.h5", "slabs.h5"):
        for one, other in zip(read_scan(tmp_path / name).acquisitions, readouts, strict=True):
            assert_same(one, other)


def test_waveforms_are_kept_beside_the_readouts(tmp_path, rng, mixed):
    waves = [random_waveform(rng), random_waveform(rng, 1, 3)]
    write_scan(tmp_path / "a.h5", XML, [mixed[0], waves[0], *mixed[1:], waves[1]])
    scan = read_scan(tmp_path / "a.h5")
    assert len(scan.acquisitions) == 5
    for one, other in zip(scan.waveforms, waves, strict=True):
        assert np.array_equal(one.data, other.data)
        assert one.head["waveform_id"] == 3
    dataset = ismrmrd.Dataset(tmp_path / "a.h5", "dataset", mode="r")
    assert np.array_equal(dataset.read_waveform(1).data, waves[1].data)
    dataset.close()


def test_ismrmrd_reads_what_we_write(tmp_path, rng, mixed):
    readouts = [r for r in mixed if r.data.size]
    write_scan(tmp_path / "a.h5", XML, readouts)
    dataset = ismrmrd.Dataset(tmp_path / "a.h5", "dataset", mode="r")
    assert dataset.read_xml_header().decode() == XML
    assert dataset.number_of_acquisitions() == len(readouts)
    for i, readout in enumerate(readouts):
        theirs = dataset.read_acquisition(i)
        assert bytes(theirs.getHead()) == readout.head.tobytes()
        assert np.array_equal(theirs.data, readout.data)
        if readout.trajectory is not None:
            assert np.array_equal(theirs.traj, readout.trajectory)
    dataset.close()


def test_we_read_what_ismrmrd_writes(tmp_path, mixed):
    dataset = ismrmrd.Dataset(tmp_path / "a.h5", "dataset")
    dataset.write_xml_header(XML.encode())
    readouts = [r for r in mixed if r.data.size]
    for readout in readouts:
        theirs = ismrmrd.Acquisition(readout.head.tobytes())
        theirs.data[:] = readout.data
        if readout.trajectory is not None:
            theirs.traj[:] = readout.trajectory
        dataset.append_acquisition(theirs)
    dataset.close()
    scan = read_scan(tmp_path / "a.h5")
    assert scan.header_xml == XML
    for one, other in zip(scan.acquisitions, readouts, strict=True):
        assert_same(one, other)


def test_the_shared_scan_equals_what_ismrmrd_reads(shared_data):
    path = shared_data / "csi_8x8.h5"
    readouts = read_scan(path).acquisitions
    assert len(readouts) == 130
    dataset = ismrmrd.Dataset(path, "dataset", mode="r")
    for i, readout in enumerate(readouts):
        theirs = dataset.read_acquisition(i)
        assert bytes(theirs.getHead()) == readout.head.tobytes()
        assert np.array_equal(theirs.data, readout.data)
    dataset.close()


def test_headers_with_padding_or_another_order_are_read_by_name(tmp_path, rng):
    readout = random_readout(rng)
    names = list(reversed(ACQUISITION_HEADER.names))
    head = np.zeros(1, np.dtype([(n, ACQUISITION_HEADER[n]) for n in names], align=True))
    for name in names:
        head[name] = readout.head[name]
    floats = h5py.vlen_dtype(np.float32)
    rows = np.zeros(1, np.dtype([("head", head.dtype), ("traj", floats), ("data", floats)]))
    rows["head"], rows["traj"][0], rows["data"][0] = head, np.zeros(0, "f4"), readout.data.reshape(-1).view("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dataset/xml"] = XML
        file["dataset/data"] = rows
    assert_same(read_scan(tmp_path / "a.h5").acquisitions[0], readout)


def test_a_group_of_another_name_is_found_where_it_is_the_only_one(tmp_path, mixed):
    write_scan(tmp_path / "a.h5", XML, mixed, group="scan_7")
    assert len(read_scan(tmp_path / "a.h5").acquisitions) == 5
    assert len(read_scan(tmp_path / "a.h5", "scan_7").acquisitions) == 5
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.copy("scan_7", "scan_8")
    with pytest.raises(DataError, match="no group 'dataset' with an MRD scan; it holds 'scan_7', 'scan_8'"):
        read_scan(tmp_path / "a.h5")
    assert len(read_scan(tmp_path / "a.h5", "scan_8").acquisitions) == 5
    with pytest.raises(DataError, match="no group 'scan_9'"):
        read_scan(tmp_path / "a.h5", "scan_9")


def test_a_missing_file_a_text_and_a_folder_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "text.h5").write_text("this is no HDF5 file\n" * 100)
    (tmp_path / "empty.h5").touch()
    for name, message in (
        ("none.h5", "none.h5 is not there"),
        ("text.h5", "text.h5 is not an HDF5 file"),
        ("empty.h5", "empty.h5 is not an HDF5 file|empty.h5 is truncated"),
        (".", "is a folder"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_scan(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=message):
            read_images(tmp_path / name)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path, rng, fraction):
    write_scan(tmp_path / "a.h5", XML, [random_readout(rng, 4, 50) for _ in range(40)])
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(DataError, match=r"cut.h5 is truncated"):
        list(read_scan(tmp_path / "cut.h5").acquisitions)


def test_a_file_that_is_no_scan_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dataset/xml"] = XML
    with pytest.raises(DataError, match="no group 'dataset' with a header and readouts"):
        read_scan(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["dataset/xml"] = XML
        file["dataset/data"] = np.zeros(3)
    with pytest.raises(DataError, match=r"/dataset/data in .* is not a table of MRD rows"):
        read_scan(tmp_path / "b.h5")


def test_a_row_that_contradicts_its_header_is_refused(tmp_path, rng):
    readouts = [random_readout(rng) for _ in range(3)]
    write_scan(tmp_path / "a.h5", XML, readouts)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        row = file["dataset/data"][1]
        row["head"]["number_of_samples"] = 6
        file["dataset/data"][1] = row
    with pytest.raises(DataError, match=r"readout 1 of .* holds 30 values where its header announces 36"):
        list(read_scan(tmp_path / "a.h5").acquisitions)


def test_writing_a_readout_that_contradicts_its_header_leaves_no_file(tmp_path, rng):
    wrong = random_readout(rng)
    wrong.head["active_channels"] = 9
    with pytest.raises(DataError, match=r"\(3, 5\) where its header announces \(9, 5\)"):
        write_scan(tmp_path / "a.h5", XML, [random_readout(rng), wrong])
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_stays_or_replaces_a_file(tmp_path, mixed):
    write_scan(tmp_path / "a.h5", XML, mixed)

    def broken():
        yield mixed[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scan(tmp_path / "a.h5", XML, broken())
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    assert len(read_scan(tmp_path / "a.h5").acquisitions) == 5


def test_the_file_appears_when_it_is_closed(tmp_path, mixed):
    writer = ScanWriter(tmp_path / "a.h5", XML)
    for item in mixed:
        writer.append(item)
    assert not (tmp_path / "a.h5").exists()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.h5 cannot be written"):
        write_scan(tmp_path / "none" / "a.h5", XML, [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder cannot be written"):
        write_scan(tmp_path / "folder", XML, [])
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("code", PIXEL_TYPES)
def test_images_of_every_pixel_type_read_back_here_and_with_ismrmrd(tmp_path, rng, code):
    images = [random_image(rng, code), random_image(rng, code)]
    with ImageFile(tmp_path / "a.h5", XML) as file:
        for image in images:
            file.append(image)
    back = read_images(tmp_path / "a.h5")
    dataset = ismrmrd.Dataset(tmp_path / "a.h5", "dataset", mode="r")
    assert dataset.number_of_images("image_4") == 2
    for i, (one, other) in enumerate(zip(back, images, strict=True)):
        assert one.head.tobytes() == other.head.tobytes()
        assert one.attributes == other.attributes
        assert one.data.dtype == other.data.dtype
        assert np.array_equal(one.data, other.data)
        theirs = dataset.read_image("image_4", i)
        assert np.array_equal(theirs.data, other.data)
        # without the attributes' length, which ismrmrd counts anew
        assert bytes(theirs.getHead())[:194] == other.head.tobytes()[:194]
        assert theirs.meta["unit"] == "µ"
    dataset.close()


def test_series_are_kept_apart_and_sorted(tmp_path, rng):
    with ImageFile(tmp_path / "a.h5") as file:
        for series, shape in ((12, (1, 1, 2, 3)), (3, (1, 2, 2, 2)), (12, (1, 1, 2, 3))):
            file.append(random_image(rng, 5, series, shape))
        file.append(random_image(rng, 1, 5), series="pictures")
    found = read_images(tmp_path / "a.h5")
    assert [int(image.head["image_series_index"]) for image in found] == [3, 5, 12, 12]


def test_spectra_of_another_number_of_voxels_get_a_series_of_their_own(tmp_path, rng):
    shapes = [(1, 1, 2, 3), (1, 2, 2, 3), (1, 1, 2, 3)]
    with ImageFile(tmp_path / "a.h5") as file:
        for shape in shapes:
            file.append(random_image(rng, 7, 4, shape))
    assert sorted(image.data.shape for image in read_images(tmp_path / "a.h5")) == sorted(shapes)


def test_images_of_another_shape_in_a_series_are_refused(tmp_path, rng):
    file = ImageFile(tmp_path / "a.h5")
    file.append(random_image(rng, 5))
    with pytest.raises(DataError, match="series image_4 holds images of shape"):
        file.append(random_image(rng, 5, shape=(1, 1, 1, 1)))
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_contradicts_its_header_is_refused(tmp_path, rng):
    image = random_image(rng, 5)
    image.head["data_type"] = 7
    with pytest.raises(DataError, match="does not fit its header"), ImageFile(tmp_path / "a.h5") as file:
        file.append(image)


def test_reading_stops_cleanly_in_the_middle(tmp_path, rng):
    write_scan(tmp_path / "a.h5", XML, [random_readout(rng) for _ in range(4)])
    reader = iter(read_scan(tmp_path / "a.h5").acquisitions)
    next(reader)
    reader.close()
    gc.collect()
    write_scan(tmp_path / "a.h5", XML, [])
    assert len(read_scan(tmp_path / "a.h5").acquisitions) == 0
