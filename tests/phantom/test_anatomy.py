"""The head lies in the scanner as it should."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import MissingPackageError
from mrsi_gadgets.phantom import anatomy
from mrsi_gadgets.phantom.presets import PRESETS

BLOB_RAS_MM = np.array([-30.0, 20.0, 10.0])
"""A mark on the left (RAS x < 0), in front of and above the middle."""


def marked_head() -> anatomy.MniVolumes:
    """Return a ball of grey matter with a ball of white matter in it, off the middle in all three directions."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -100.0
    index = np.stack(np.meshgrid(*[np.arange(101)] * 3, indexing="ij"), axis=-1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    white = (np.linalg.norm(ras - BLOB_RAS_MM, axis=-1) < 15).astype(np.float32)
    head = (np.linalg.norm(ras, axis=-1) < 70).astype(np.float32)
    return anatomy.MniVolumes(head - white, white, np.zeros_like(head), affine)


@pytest.mark.parametrize(
    "directions",
    [
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
        ((0.8, 0.6, 0.0), (-0.6, 0.8, 0.0), (0.0, 0.0, 1.0)),
    ],
)
def test_left_stays_left_front_stays_front_and_up_stays_up(directions):
    geometry = Geometry((22, 20, 18), (220.0, 220.0, 200.0), (3.0, -2.0, 5.0), *directions)
    made = anatomy.make_anatomy(geometry, (2, 2, 2), isocentre_mni_mm=(0.0, 0.0, 0.0), volumes=marked_head())
    white = made.voxel_mean(made.white)
    centre_index = [float(np.sum(white * grid) / white.sum()) for grid in np.indices(white.shape)]
    place = geometry.affine_ras() @ np.array([*centre_index, 1.0])
    # A third of a millimetre: linear interpolation of the mark's edge and the template's 2 mm grid.
    assert np.allclose(place[:3], BLOB_RAS_MM, atol=0.35)


def test_fractions_never_exceed_one_and_scalp_lies_outside_the_skull():
    preset = PRESETS["csi16"]
    made = anatomy.make_anatomy(preset.geometry, preset.subvoxels, isocentre_mni_mm=preset.isocentre_mni_mm)
    total = made.brain + made.skull + made.scalp
    assert total.max() <= 1.0 + 1e-5
    assert min(part.min() for part in (made.grey, made.white, made.csf, made.skull, made.scalp)) >= 0.0
    radius = np.linalg.norm(made.positions_mm, axis=-1)
    mean_radius = [float(np.average(radius, weights=part)) for part in (made.brain, made.skull, made.scalp)]
    assert mean_radius == sorted(mean_radius)
    assert np.all(made.scalp[made.brain > 0.9] == 0.0)


def test_front_of_the_head_points_to_negative_y_in_lps():
    preset = PRESETS["csi16"]
    made = anatomy.make_anatomy(preset.geometry, preset.subvoxels, isocentre_mni_mm=preset.isocentre_mni_mm)
    ventricles = made.csf * (np.linalg.norm(made.positions_mm, axis=-1) < 45) * (made.csf > 0.8)
    y = float(np.average(made.positions_mm[..., 1], weights=ventricles))
    x = float(np.average(made.positions_mm[..., 0], weights=ventricles))
    assert abs(x) < 3.0
    # 20 mm above the commissures the lateral ventricles reach from y = +25 to -40 in MNI; the isocentre is at -18.
    assert -20.0 < y < 10.0
    white_front = made.white[made.positions_mm[..., 1] < -60].sum()
    white_back = made.white[made.positions_mm[..., 1] > 60].sum()
    assert white_front > 0
    assert white_back > 0


def test_random_pose_is_set_by_the_generator():
    preset = PRESETS["csi16"]
    heads = [
        anatomy.make_anatomy(
            preset.geometry, (2, 2, 1), isocentre_mni_mm=preset.isocentre_mni_mm, rng=np.random.default_rng(seed)
        ).grey
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(heads[0], heads[1])
    assert not np.allclose(heads[0], heads[2], atol=0.05)


def test_missing_nilearn_is_named_with_the_command_that_installs_it(monkeypatch):
    anatomy.load_mni.cache_clear()
    monkeypatch.setattr(anatomy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"nilearn.*pip install 'mrsi-gadgets\[phantom\]'"):
        anatomy.load_mni()


def test_a_nilearn_without_the_template_is_refused_by_the_file_name(monkeypatch, tmp_path):
    anatomy.load_mni.cache_clear()
    (tmp_path / "__init__.py").touch()

    class Found:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(anatomy.importlib.util, "find_spec", lambda name: Found())
    with pytest.raises(MissingPackageError, match="mni_icbm152_gm"):
        anatomy.load_mni()
