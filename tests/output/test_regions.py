"""The table of regions: numbers of known maps, labels on a grid of their own."""

from __future__ import annotations

import csv
import dataclasses

import nibabel
import numpy as np
import pytest

from mrsi_gadgets.data import Map
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.folder import rewrite_regions, write_results
from mrsi_gadgets.output.regions import COLUMNS, read_labels


def table(path) -> dict[tuple[str, str, str, str], dict[str, str]]:
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert tuple(rows[0]) == COLUMNS
    return {(row["echo"], row["frame"], row["region"], row["map"]): row for row in rows if row["voxels"] == "all"}


def usable(path, region: str = "whole mask") -> dict[str, dict[str, str]]:
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return {row["map"]: row for row in rows if row["voxels"] == "usable" and row["region"] == region}


def with_tissue(maps):
    """Maps with fractions: grey matter where x = 0, white matter where x = 1, CSF where x = 2."""
    added = dict(maps.maps)
    for i, name in enumerate(("tissue_gm", "tissue_wm", "tissue_csf")):
        share = np.zeros(maps.mask.shape, np.float32)
        share[i] = 0.9
        added[name] = Map(np.where(maps.mask, share, np.nan).astype(np.float32), "1 (fraction of the voxel)")
    return dataclasses.replace(maps, maps=added)


def write(folder, maps, **options):
    return write_results(folder, maps_to_images(maps, reference_head=None, shown=("tNAA",)), summary={}, **options)


def fine_labels(path, maps, *, factor: int = 3, number: int = 7) -> np.ndarray:
    """A label volume at a third of a voxel, with axes in another order: label 7 where y >= 2, label 4 in 1/3 of y = 1.

    Returns which voxels (x, y, z) belong to label 7.
    """
    size = np.array(maps.mask.shape) * factor
    values = np.zeros(size, np.int16)
    values[:, 2 * factor :], values[:, factor : factor + 1] = number, 4
    grid = maps.protocol.geometry.affine_ras()
    fine = grid @ np.diag([*(1 / factor,) * 3, 1.0])
    fine[:3, 3] = (grid @ np.append(np.full(3, 0.5 / factor - 0.5), 1.0))[:3]
    turned = nibabel.Nifti1Image(values, fine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    turned.set_sform(turned.affine, code=1)
    nibabel.save(turned, path)
    inside = np.zeros(maps.mask.shape, bool)
    inside[:, 2:] = True
    return inside


def test_the_whole_mask_and_the_tissues_are_in_the_table_by_default(tmp_path, maps):
    maps = with_tissue(maps)
    write(tmp_path / "out", maps)
    rows = table(tmp_path / "out/regions.csv")
    assert {key[2] for key in rows} == {
        "whole mask", "grey matter (at least 60%)", "white matter (at least 60%)", "CSF (at least 60%)",
    }  # fmt: skip
    item = maps.maps["tNAA_per_water"]
    for region, inside in {"whole mask": slice(None), "white matter (at least 60%)": slice(1, 2)}.items():
        row = rows["", "0", region, "tNAA_per_water"]
        value, sd = (part[inside][maps.mask[inside]].astype(float) for part in (item.value, item.sd))
        assert int(row["n"]) == value.size
        assert float(row["mean"]) == pytest.approx(value.mean(), rel=1e-5)
        assert float(row["sd"]) == pytest.approx(value.std(ddof=1), rel=1e-5)
        assert float(row["median"]) == pytest.approx(np.median(value), rel=1e-5)
        weights = 1 / sd**2
        assert float(row["weighted_mean"]) == pytest.approx((weights * value).sum() / weights.sum(), rel=1e-5)
        assert float(row["weighted_mean_sd"]) == pytest.approx(weights.sum() ** -0.5, rel=1e-5)
        assert row["unit"] == "mM"
    assert rows["", "0", "whole mask", "tCr_per_tCr"]["weighted_mean"] == ""
    assert not [key for key in rows if key[3].startswith("tissue_gm")]


def with_judgement(maps, *, bad: tuple[int, ...], flagged: tuple[int, ...], uncertain: tuple[int, ...]):
    """Maps with a wild value in three voxels: hidden by the quality mask, flagged by the fit, and an uncertain tNAA."""
    code, flag = (np.where(maps.mask, 0, np.nan).astype(np.float32) for _ in range(2))
    code[bad], code[flagged], flag[flagged] = 2, 16, 1
    wild = {}
    for name in ("tNAA", "tCr"):
        value, sd = maps.maps[name].value.copy(), maps.maps[name].sd * 0.1
        value[bad] = value[flagged] = value[uncertain] = 1e9
        if name == "tNAA":
            sd[uncertain] = 1e9
        wild[name] = dataclasses.replace(maps.maps[name], value=value, sd=sd)
    judged = {"quality": Map(code, "1"), "fit_flag": Map(flag, "1")}
    told = {"relative_sd": 0.5, "codes_that_hide": 15}
    return dataclasses.replace(maps, maps={**maps.maps, **wild, **judged}, provenance={"quality_mask": told})


def test_voxels_that_are_called_unusable_do_not_count_among_the_usable_ones(tmp_path, maps):
    bad, flagged, uncertain = (1, 2, 3), (2, 0, 4), (0, 3, 2)
    maps = with_judgement(with_tissue(maps), bad=bad, flagged=flagged, uncertain=uncertain)
    write(tmp_path / "out", maps)
    every, some = table(tmp_path / "out/regions.csv"), usable(tmp_path / "out/regions.csv")
    for name, left_out in (("tNAA", [bad, flagged, uncertain]), ("tCr", [bad, flagged])):
        kept = maps.mask.copy()
        for voxel in left_out:
            kept[voxel] = False
        value = maps.maps[name].value.astype(float)
        assert int(every["", "0", "whole mask", name]["n"]) == maps.mask.sum() == 58
        assert int(some[name]["n"]) == 58 - len(left_out)
        assert float(every["", "0", "whole mask", name]["mean"]) == pytest.approx(value[maps.mask].mean(), rel=1e-5)
        assert float(some[name]["mean"]) == pytest.approx(value[kept].mean(), rel=1e-5)
        assert float(some[name]["median"]) == pytest.approx(np.median(value[kept]), rel=1e-5)
    # the tissue whose voxels are x = 1 holds one of the three
    assert int(usable(tmp_path / "out/regions.csv", "white matter (at least 60%)")["tNAA"]["n"]) == 19


def test_without_a_quality_mask_the_fit_alone_judges_and_without_both_nobody_does(tmp_path, maps):
    write(tmp_path / "plain", maps)
    assert not usable(tmp_path / "plain/regions.csv")
    flag = np.where(maps.mask, 0, np.nan).astype(np.float32)
    flag[1, 1, 1] = 1
    write(tmp_path / "out", dataclasses.replace(maps, maps={**maps.maps, "fit_flag": Map(flag, "1")}))
    assert int(usable(tmp_path / "out/regions.csv")["tCho"]["n"]) == 57


def test_labels_of_a_finer_grid_with_other_axes_are_regions_and_have_their_names(tmp_path, maps):
    inside = fine_labels(tmp_path / "atlas.nii.gz", maps)
    (tmp_path / "atlas.tsv").write_text("index\tname\n7\tputamen\n4\tthin\n", encoding="utf-8")
    write(tmp_path / "out", maps, regions=tmp_path / "atlas.nii.gz")
    rows = table(tmp_path / "out/regions.csv")
    row = rows["", "0", "putamen", "tNAA"]
    value = maps.maps["tNAA"].value[inside & maps.mask]
    assert int(row["n"]) == value.size == 29
    assert float(row["mean"]) == pytest.approx(value.mean(), rel=1e-5)
    # a third of a voxel is no region
    assert rows["", "0", "thin", "tNAA"]["n"] == "0"
    assert rows["", "0", "thin", "tNAA"]["mean"] == ""


def test_the_table_of_a_result_can_be_written_anew(tmp_path, maps):
    write(tmp_path / "out", maps)
    before = (tmp_path / "out/regions.csv").read_text()
    fine_labels(tmp_path / "atlas.nii", maps)
    rewrite_regions(tmp_path / "out", tmp_path / "atlas.nii")
    rows = table(tmp_path / "out/regions.csv")
    assert {key[2] for key in rows} == {"whole mask", "label 4", "label 7"}
    rewrite_regions(tmp_path / "out", None)
    assert (tmp_path / "out/regions.csv").read_text() == before


def test_every_frame_has_its_lines(tmp_path, make_maps):
    frames = [make_maps(frame=frame, seed=frame) for frame in (0, 1)]
    images = [image for maps in frames for image in maps_to_images(maps, reference_head=None, shown=("tNAA",))]
    write_results(tmp_path / "out", images, summary={})
    rows = table(tmp_path / "out/regions.csv")
    for frame, maps in enumerate(frames):
        mean = float(rows["", str(frame), "whole mask", "tCho"]["mean"])
        assert mean == pytest.approx(np.nanmean(maps.maps["tCho"].value, dtype=float), rel=1e-5)


def test_labels_that_do_not_fit_are_told_and_do_not_cost_the_result(tmp_path, maps):
    far = np.eye(4)
    far[:3, 3] = 900
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.int16), far), tmp_path / "far.nii")
    results = write(tmp_path / "out", maps, regions=tmp_path / "far.nii")
    assert any("no voxel of the maps belongs to a label of far.nii" in warning for warning in results.warnings)
    assert {key[2] for key in table(tmp_path / "out/regions.csv")} == {"whole mask"}
    with pytest.raises(DataError, match="no voxel of the maps"):
        rewrite_regions(tmp_path / "out", tmp_path / "far.nii")


def test_what_is_no_label_is_refused(tmp_path):
    path = tmp_path / "x.nii"

    def saved(values):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        return path

    with pytest.raises(ConfigError, match="numbers that are no labels"):
        read_labels(saved(np.full((2, 2, 2), 0.5, np.float32)), np.eye(4), (2, 2, 2))
    with pytest.raises(ConfigError, match="1199 labels, more than 1000"):
        read_labels(saved(np.arange(1200, dtype=np.int16).reshape(10, 10, 12)), np.eye(4), (2, 2, 2))
    (tmp_path / "x.tsv").write_text("index\tname\n1\ta\n2\ta\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="gives one name to several labels"):
        read_labels(saved(np.ones((2, 2, 2), np.int16)), np.eye(4), (2, 2, 2))
    (tmp_path / "x.tsv").write_text("number,name\n1,a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="give columns index and name"):
        read_labels(path, np.eye(4), (2, 2, 2))
