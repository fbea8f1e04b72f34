from __future__ import annotations

import dataclasses

import nibabel
import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.nifti import image_affine_ras, image_values, write_nifti


def images_on(geometry, maps):
    values = np.arange(np.prod(geometry.matrix), dtype=np.float32).reshape(geometry.matrix)
    item = dataclasses.replace(maps.maps["tNAA_per_water"], value=values, sd=None)
    protocol = dataclasses.replace(maps.protocol, geometry=geometry)
    changed = dataclasses.replace(
        maps, maps={"tNAA": item}, protocol=protocol, mask=values >= 0, b0_hz=np.zeros_like(values), examples=()
    )
    return values, maps_to_images(changed, reference_head=None, shown=("tNAA",))


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("grid_center", ["voxel", "edge"])
@pytest.mark.parametrize("matrix", [(3, 4, 5), (4, 5, 1)])
def test_a_map_lies_in_the_world_where_its_geometry_says(tmp_path, maps, make_geometry, matrix, grid_center, oblique):
    geometry = make_geometry(matrix, grid_center, oblique)
    values, images = images_on(geometry, maps)
    image = next(image for image in images if image.head["data_type"] == 5)
    write_nifti(tmp_path / "map.nii.gz", image_values(image), image_affine_ras(image), description="tNAA [mM]")
    read = nibabel.load(tmp_path / "map.nii.gz")
    assert read.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(read.dataobj), values)
    # The header of an image holds float32: 1e-4 mm at 100 mm.
    for affine in (read.affine, read.get_qform(), read.get_sform()):
        np.testing.assert_allclose(affine, geometry.affine_ras(), atol=2e-4)
    assert read.header.get_xyzt_units()[0] == "mm"
    assert bytes(read.header["descrip"]).rstrip(b"\0") == b"tNAA [mM]"


def test_the_patients_left_stays_left(tmp_path, maps, make_geometry):
    geometry = make_geometry((5, 4, 3), "voxel", False)
    _, images = images_on(geometry, maps)
    values = np.zeros((5, 4, 3), np.float32)
    values[4, 1, 1] = 1.0  # x runs along +x of LPS: index 4 is the patient's left
    write_nifti(tmp_path / "map.nii", values, image_affine_ras(images[0]))
    read = nibabel.load(tmp_path / "map.nii")
    left, others = (read.affine @ [4, 1, 1, 1])[0], (read.affine @ [0, 1, 1, 1])[0]
    assert left < others
    assert nibabel.aff2axcodes(read.affine) == ("L", "P", "S")
    np.testing.assert_allclose((read.affine @ [2, 2, 1, 1])[:3], [-11.0, 22.0, 33.0], atol=1e-4)


def test_a_displayed_map_comes_back_in_its_unit(maps):
    image = maps_to_images(maps, reference_head=None, shown=("tNAA",))[0]
    expected = maps.maps["tNAA_per_water"].value
    error = np.abs(image_values(image) - expected)
    assert np.nanmax(error) <= 0.005 + 1e-6


def test_equal_maps_give_equal_files(tmp_path, maps):
    affine = maps.protocol.geometry.affine_ras()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / "map.nii.gz", maps.b0_hz, affine)
    assert (tmp_path / "a/map.nii.gz").read_bytes() == (tmp_path / "b/map.nii.gz").read_bytes()


def test_frames_lie_along_the_fourth_axis(tmp_path, maps):
    values = np.random.default_rng(3).standard_normal((3, 4, 5, 2)).astype(np.float32)
    write_nifti(tmp_path / "map.nii.gz", values, maps.protocol.geometry.affine_ras())
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "map.nii.gz").dataobj), values)


def test_an_image_without_directions_or_extent_is_refused(maps):
    image = maps_to_images(maps, reference_head=None, shown=("tNAA",))[0]
    image.head["read_dir"] = 0
    with pytest.raises(DataError, match="not orthogonal unit vectors"):
        image_affine_ras(image)
    image = maps_to_images(maps, reference_head=None, shown=("tNAA",))[0]
    image.head["field_of_view"][1] = 0
    with pytest.raises(DataError, match="no extent"):
        image_affine_ras(image)
