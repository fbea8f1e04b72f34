from __future__ import annotations

import dataclasses
import json

import nibabel
import numpy as np
import pytest

from mrsi_gadgets.errors import ConfigError, DataError, PeerLost
from mrsi_gadgets.io.mrd_file import read_images
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.folder import check_target, file_name, write_results

SHOWN = ("tNAA", "tCr", "tCho")
SUMMARY = {"seconds": {"total": np.float32(1.5)}, "warnings": ["late"], "provenance": {"host": "console"}}
WARNING = "no water reference: amounts are on an arbitrary scale"


@pytest.fixture
def images(maps, reference_head):
    return maps_to_images(
        maps, reference_head=reference_head, shown=("tNAA",), quantitative="shown", spectra="none", warnings=[WARNING]
    )


def test_a_folder_holds_every_map_and_the_images_as_they_came(tmp_path, maps, reference_head):
    images = maps_to_images(maps, reference_head=reference_head, shown=SHOWN, warnings=[WARNING])
    write_results(tmp_path / "out", iter(images), summary={"seconds": {"total": 1.5}})
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    expected = ["b0.nii.gz", "contact.png", "images.h5", "mask.nii.gz", "regions.csv", "summary.json"]
    for name, item in maps.maps.items():
        expected += [f"maps/{name}.nii.gz"] + ([f"maps/{name}_sd.nii.gz"] if item.sd is not None else [])
    assert names == sorted(expected)
    for name, item in maps.maps.items():
        read = nibabel.load(tmp_path / "out/maps" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(read.dataobj), item.value)
        np.testing.assert_allclose(read.affine, maps.protocol.geometry.affine_ras(), atol=2e-4)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out/b0.nii.gz").dataobj), maps.b0_hz)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out/mask.nii.gz").dataobj), maps.mask)
    for one, two in zip(images, read_images(tmp_path / "out/images.h5"), strict=True):
        assert one.head.tobytes() == two.head.tobytes()
        assert one.attributes == two.attributes
        np.testing.assert_array_equal(one.data, two.data)


def test_the_summary_tells_times_warnings_provenance_and_medians(tmp_path, maps, images):
    write_results(tmp_path / "out", images, summary=SUMMARY)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["seconds"] == {"total": 1.5}
    assert summary["warnings"] == [WARNING, "late"]
    assert summary["provenance"] == {"method": "test", "rank": 16, "host": "console"}
    assert summary["maps"]["tNAA_per_water"]["unit"] == "mM"
    median = float(np.nanmedian(maps.maps["tNAA_per_water"].value))
    assert summary["maps"]["tNAA_per_water"]["median"] == pytest.approx(median)


def test_a_number_that_json_does_not_know_becomes_null(tmp_path, images):
    write_results(tmp_path / "out", images, summary={"snr": float("nan"), "path": tmp_path, "set": {2, 1}})
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["snr"] is None
    assert summary["set"] == [1, 2]


def test_two_runs_write_the_same_bytes(tmp_path, images):
    for name in ("a", "b"):
        write_results(tmp_path / name, images, summary={})
    for path in (tmp_path / "a").rglob("*.*"):
        if path.suffix != ".h5" and path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


def test_frames_of_a_dynamic_scan_become_one_file(tmp_path, make_maps):
    frames = [make_maps(frame=frame, seed=frame) for frame in (1, 0)]
    images = [image for maps in frames for image in maps_to_images(maps, reference_head=None, shown=SHOWN)]
    write_results(tmp_path / "out", images, summary={})
    read = np.asarray(nibabel.load(tmp_path / "out/maps/tNAA_per_water.nii.gz").dataobj)
    assert read.shape == (3, 4, 5, 2)
    for maps in frames:
        np.testing.assert_array_equal(read[..., maps.frame], maps.maps["tNAA_per_water"].value)


def test_without_exact_images_the_pictures_give_the_maps(tmp_path, maps):
    images = maps_to_images(maps, reference_head=None, shown=SHOWN, quantitative="none")
    results = write_results(tmp_path / "out", images, summary={})
    assert sorted(results.maps) == ["tCho_per_water", "tCr_per_water", "tNAA_per_water"]
    read = np.asarray(nibabel.load(tmp_path / "out/maps/tNAA_per_water.nii.gz").dataobj)
    np.testing.assert_array_equal(np.isnan(read), ~maps.mask)
    np.testing.assert_allclose(read[maps.mask], maps.maps["tNAA_per_water"].value[maps.mask], atol=0.00501)
    assert json.loads((tmp_path / "out/summary.json").read_text())["maps"]["tNAA_per_water"]["exact"] is False


def test_a_lost_peer_leaves_nothing_behind(tmp_path, images):
    def broken():
        yield from images[:3]
        raise PeerLost("the server is gone")

    with pytest.raises(PeerLost):
        write_results(tmp_path / "out", broken(), summary={})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_earlier_result_as_it_was(tmp_path, images):
    write_results(tmp_path / "out", images, summary={"run": 1})
    with pytest.raises(DataError, match="no image came back"):
        write_results(tmp_path / "out", [], summary={"run": 2})
    assert json.loads((tmp_path / "out/summary.json").read_text())["run"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_earlier_result_is_replaced_whole(tmp_path, maps, images):
    write_results(tmp_path / "out", images, summary={"run": 1})
    other = maps_to_images(maps, reference_head=None, shown=("tCho",), quantitative="shown", spectra="none")
    write_results(tmp_path / "out", other, summary={"run": 2})
    assert not (tmp_path / "out/maps/tNAA.nii.gz").exists()
    assert (tmp_path / "out/maps/tCho.nii.gz").exists()
    assert json.loads((tmp_path / "out/summary.json").read_text())["run"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_refused_as_target(tmp_path, images):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        write_results(tmp_path / "out", images, summary={})
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_other_files_is_never_replaced(tmp_path, images):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 'thesis.tex', which would be lost"):
        check_target(tmp_path / "home")
    write_results(tmp_path / "out", images, summary={})
    (tmp_path / "out/maps/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 'maps/notes.txt'"):
        write_results(tmp_path / "out", images, summary={})
    (tmp_path / "maps_of_others/maps").mkdir(parents=True)
    (tmp_path / "maps_of_others/maps/t1.nii.gz").write_text("mine")
    with pytest.raises(ConfigError, match="files of another program"):
        check_target(tmp_path / "maps_of_others")


def test_an_empty_folder_is_taken_and_a_missing_parent_is_not(tmp_path, images):
    (tmp_path / "out").mkdir()
    write_results(tmp_path / "out", images, summary={})
    assert (tmp_path / "out/summary.json").is_file()
    with pytest.raises(ConfigError, match="is not a folder"):
        check_target(tmp_path / "nowhere/out")


def test_images_of_another_program_are_kept_and_said(tmp_path, images):
    images[0].attributes = ""
    results = write_results(tmp_path / "out", images, summary={})
    assert results.n_foreign == 1
    warnings = json.loads((tmp_path / "out/summary.json").read_text())["warnings"]
    assert any("kept in images.h5 only" in sentence for sentence in warnings)
    assert len(read_images(tmp_path / "out/images.h5")) == len(images)


def test_images_on_different_grids_are_refused(tmp_path, images):
    images[2].head["position"][0] += 5
    with pytest.raises(DataError, match="different grids"):
        write_results(tmp_path / "out", images, summary={})


def test_a_map_name_cannot_leave_the_folder(tmp_path, images):
    images[0].attributes = images[0].attributes.replace("tNAA_per_water", "../../evil")
    with pytest.raises(DataError, match="cannot be a file name"):
        write_results(tmp_path / "out", images[:1], summary={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "a.b", "2.", "../evil", "a/b", "a:b", "tNAA ", "Größe", "con", "LPT1"])
def test_a_map_name_that_some_system_cannot_store_is_refused(name):
    with pytest.raises(DataError, match="cannot be a file name"):
        file_name(name)


def test_a_decimal_point_in_a_map_name_never_looks_like_an_ending(tmp_path, maps):
    line = maps.maps["tNAA"]
    more = dataclasses.replace(maps, maps=dict(maps.maps) | {"unknown_2.87ppm": line})
    write_results(tmp_path / "out", maps_to_images(more, reference_head=None, shown=SHOWN), summary={})
    read = nibabel.load(tmp_path / "out/maps/unknown_2p87ppm.nii.gz")
    np.testing.assert_array_equal(np.asarray(read.dataobj), line.value)
    assert (tmp_path / "out/maps/unknown_2p87ppm_sd.nii.gz").is_file()
    assert "unknown_2.87ppm" in json.loads((tmp_path / "out/summary.json").read_text())["maps"]
    assert file_name("unknown_-0.30ppm") == "unknown_-0p30ppm"


def test_maps_whose_files_some_systems_could_not_tell_apart_are_refused(tmp_path, maps):
    more = dataclasses.replace(maps, maps={"tCr": maps.maps["tCr"], "TCR": maps.maps["tCr"]})
    with pytest.raises(DataError, match="'tCr' and 'TCR' would share one file"):
        write_results(tmp_path / "out", maps_to_images(more, reference_head=None, shown=("tCr",)), summary={})
    assert list(tmp_path.iterdir()) == []
