"""Tissue of a head on a fine grid: the MNI tissue maps, sharpened, with skull and scalp grown around them.

The maps are the ICBM 152 2009a symmetric averages that the nilearn wheel carries (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033). An average of 152 brains is blurred; its probabilities are raised to a power
and normalised again, which gives back sulci of the width single brains have.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import MissingPackageError

_SHARPENING = 1.5
_SLICE_SAMPLES = 5
_DURA_MM, _SKULL_MM, _SCALP_MM = 1.0, 6.0, 5.0
_MARGIN_MM = 16.0


@dataclass(frozen=True, eq=False)
class MniVolumes:
    """Tissue maps of the template, RAS order."""

    grey: np.ndarray
    """(i, j, k) float32 probability."""
    white: np.ndarray
    csf: np.ndarray
    affine_ras: np.ndarray
    """4x4, index -> MNI mm (RAS)."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Tissue fractions on the fine grid, each (x, y, z) float32; they sum to at most 1, the rest is air and bone."""

    grey: np.ndarray
    white: np.ndarray
    csf: np.ndarray
    skull: np.ndarray
    scalp: np.ndarray
    positions_mm: np.ndarray
    """(x, y, z, 3) LPS [mm] of the fine points."""
    subvoxels: tuple[int, int, int]

    @property
    def brain(self) -> np.ndarray:
        """Fraction of grey matter, white matter and CSF within the brain's envelope."""
        return self.grey + self.white + self.csf

    def voxel_mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of a fine map (x, y, z, ...) over each voxel."""
        return block_mean(values, self.subvoxels)


def block_mean(values: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Mean over blocks of `factors` points along the first three axes."""
    shape = [m for n, f in zip(values.shape[:3], factors, strict=True) for m in (n // f, f)]
    return values.reshape(*shape, *values.shape[3:]).mean(axis=(1, 3, 5))


@lru_cache(maxsize=1)
def load_mni() -> MniVolumes:
    """Read the template's tissue maps from the installed nilearn package (which is located, not imported).

    Raises
    ------
    MissingPackageError
        nilearn or nibabel is not installed, or this nilearn has no such files.
    """
    found = importlib.util.find_spec("nilearn")
    remedy = "install them with: pip install 'mrsi-gadgets[phantom]'"
    if found is None or found.origin is None or importlib.util.find_spec("nibabel") is None:
        raise MissingPackageError(f"the numerical brain needs the packages nilearn and nibabel; {remedy}")
    folder = Path(found.origin).parent / "datasets" / "data"
    import nibabel

    maps: dict[str, np.ndarray] = {}

    affine = np.eye(4)
    for name in ("gm", "wm", "t1"):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.is_file():
            raise MissingPackageError(f"the installed nilearn has no file {path.name}; {remedy}")
        image: Any = nibabel.load(path)
        maps[name] = np.asarray(image.dataobj, dtype=np.float32) / 255.0
        affine = np.asarray(image.affine, dtype=np.float64)
    inside = maps["t1"] > 0
    return MniVolumes(maps["gm"], maps["wm"], np.clip(inside - maps["gm"] - maps["wm"], 0.0, 1.0), affine)


def fine_positions(geometry: Geometry, subvoxels: tuple[int, int, int]) -> np.ndarray:
    """LPS position [mm] of every point of the grid that divides each voxel into `subvoxels`, shape (x, y, z, 3)."""
    axes = [(np.arange(n * f) + 0.5) / f - 0.5 for n, f in zip(geometry.matrix, subvoxels, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    affine = geometry.affine_lps()
    return index @ affine[:3, :3].T + affine[:3, 3]


def make_anatomy(
    geometry: Geometry,
    subvoxels: tuple[int, int, int],
    *,
    isocentre_mni_mm: tuple[float, float, float],
    rng: np.random.Generator | None = None,
    volumes: MniVolumes | None = None,
) -> Anatomy:
    """Sample the head on the fine grid of `geometry`.

    Patient left (+x in LPS) is the template's left (-x in RAS). A generator turns the head by up to 4 degrees, moves it
    by up to 3 mm and scales it by up to 3 %, so that each seed is another head.
    """
    volumes = volumes if volumes is not None else load_mni()
    positions = fine_positions(geometry, subvoxels)
    thickness = geometry.voxel_mm[2] / subvoxels[2]
    offsets = thickness * ((np.arange(_SLICE_SAMPLES) + 0.5) / _SLICE_SAMPLES - 0.5)
    pose, shift = _random_pose(rng)
    through_slice = positions[..., None, :] + offsets[:, None] * np.array(geometry.slice_dir)
    ras = through_slice * (-1.0, -1.0, 1.0) @ pose.T + shift + isocentre_mni_mm
    grey, white, csf, skull, scalp = _sample(volumes, ras).mean(axis=-1).astype(np.float32)
    return Anatomy(grey, white, csf, skull, scalp, positions, subvoxels)


def _random_pose(rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and shift [mm] from head to template coordinates."""
    if rng is None:
        return np.eye(3), np.zeros(3)
    a, b, c = np.deg2rad(rng.uniform(-4.0, 4.0, 3))
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    return about_z @ about_x @ about_y * (1.0 + rng.uniform(-0.03, 0.03)), rng.uniform(-3.0, 3.0, 3)


def _sample(volumes: MniVolumes, ras_mm: np.ndarray) -> np.ndarray:
    """Grey, white, CSF, skull and scalp at template positions (..., 3), shape (5, ...)."""
    inverse = np.linalg.inv(volumes.affine_ras)
    index = np.moveaxis(ras_mm @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    size_mm = np.linalg.norm(volumes.affine_ras[:3, :3], axis=0)
    margin = np.ceil(_MARGIN_MM / size_mm).astype(int)
    flat = index.reshape(3, -1)
    low = np.clip(np.floor(flat.min(axis=1)).astype(int) - margin, 0, np.array(volumes.grey.shape) - 1)
    high = np.clip(np.ceil(flat.max(axis=1)).astype(int) + margin + 1, low + 1, volumes.grey.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    tissues = np.stack([v[box] for v in (volumes.grey, volumes.white, volumes.csf)]).astype(np.float32)
    distance = ndimage.distance_transform_edt(tissues.sum(axis=0) <= 0.5, sampling=size_mm)
    index = index - low.reshape(3, *[1] * (index.ndim - 1))
    grey, white, csf = (ndimage.map_coordinates(v, index, order=1, mode="constant") for v in tissues)
    # Outside the block the distance keeps the value at its border, which is far outside the head by the margin.
    away = ndimage.map_coordinates(distance.astype(np.float32), index, order=1, mode="nearest")
    inside = np.clip(grey + white + csf, 0.0, 1.0)
    sharp = np.stack([grey, white, csf]).clip(0.0) ** _SHARPENING
    sharp *= inside / np.maximum(sharp.sum(axis=0), 1e-6)
    skull_from, scalp_from = _DURA_MM, _DURA_MM + _SKULL_MM
    # The dura and the space below it hold CSF; what the brain's blurred edge leaves free there is filled with it.
    sharp[2] += np.clip(_ramp(away, -1.0, skull_from) - inside, 0.0, 1.0)
    skull = np.clip(_ramp(away, skull_from, scalp_from) - sharp.sum(axis=0), 0.0, 1.0)
    scalp = _ramp(away, scalp_from, scalp_from + _SCALP_MM)
    return np.concatenate([sharp, skull[None], scalp[None]])


def _ramp(distance: np.ndarray, start: float, stop: float) -> np.ndarray:
    """1 between two distances [mm], with edges 1 mm wide."""
    return np.clip(distance - start + 0.5, 0.0, 1.0) * np.clip(stop - distance + 0.5, 0.0, 1.0)
