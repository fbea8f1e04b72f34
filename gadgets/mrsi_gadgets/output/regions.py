"""A table of every map by region: the whole mask, tissue classes, and the labels of a volume that the user gave."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.volumes import read_volume
from mrsi_gadgets.output.results import ResultMap, Results, shown_voxels
from mrsi_gadgets.quantification.absolute import FRACTION_MAPS
from mrsi_gadgets.quantification.display_mask import QUALITY_MASK
from mrsi_gadgets.quantification.quality import FLAG

WHOLE = "whole mask"
ALL, USABLE = "all", "usable"
"""Which voxels of a region a line is about."""
LEAST_SHARE = 0.5
"""Part of a voxel that belongs to a label from which on the voxel belongs to its region."""
TISSUE_SHARE = 0.6
"""Part of a voxel that is one tissue from which on it stands for the tissue."""
_SUBVOXELS = 5
_MOST_LABELS = 1000
_TISSUE_NAMES = ("grey matter", "white matter", "CSF")
COLUMNS = (
    "echo", "frame", "region", "voxels", "map", "unit", "n", "mean", "sd", "median", "weighted_mean",
    "weighted_mean_sd",
)  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """Regions that a volume names, on the grid of the maps."""

    masks: Mapping[str, np.ndarray]
    """Name -> (x, y, z) bool."""
    source: str


def read_labels(path: str | Path, affine_ras: np.ndarray, matrix: tuple[int, ...]) -> Labels:
    """Read a NIfTI volume of whole numbers, 0 being no region, and bring it onto the grid of the maps.

    A voxel belongs to the label that fills at least half of it. Names come from a table beside the volume
    (``NAME.tsv``, columns ``index`` and ``name``, as BIDS has it for segmentations); without one a region is called
    ``label 7``.

    Raises
    ------
    ConfigError
        The volume or its table cannot be read, or holds no whole numbers.
    DataError
        No voxel of the maps belongs to any label.
    """
    volume = read_volume(path)
    if not np.all(volume.values == np.rint(volume.values)) or float(volume.values.min()) < 0:
        raise ConfigError(f"the volume {path} holds numbers that are no labels; give whole numbers, 0 for no region")
    numbers = [int(n) for n in np.unique(volume.values) if n != 0]
    if len(numbers) > _MOST_LABELS:
        raise ConfigError(
            f"the volume {path} holds {len(numbers)} labels, more than {_MOST_LABELS}; is it a segmentation?"
        )
    seen = _labels_at(volume.values, np.linalg.inv(volume.affine_ras) @ affine_ras, matrix)
    names, masks = _names_beside(Path(path)), {}
    for number in numbers:
        mask = np.mean(seen == number, axis=-1) >= LEAST_SHARE
        masks[names.get(number, f"label {number}")] = mask
    if not any(mask.any() for mask in masks.values()):
        raise DataError(
            f"no voxel of the maps belongs to a label of {Path(path).name}; check that it is of this subject and "
            "session and in the coordinates of the scanner"
        )
    return Labels(masks, Path(path).name)


def _labels_at(values: np.ndarray, to_volume: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """Return the label at several points of each voxel, (x, y, z, point); 0 where the volume does not reach."""
    offsets = (np.arange(_SUBVOXELS) + 0.5) / _SUBVOXELS - 0.5
    points = np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in matrix), indexing="ij"), axis=-1)
    seen = np.empty((*matrix, len(points)), dtype=np.int32)
    for i, point in enumerate(points):
        index = (grid + point) @ to_volume[:3, :3].T + to_volume[:3, 3]
        seen[..., i] = ndimage.map_coordinates(values, np.moveaxis(index, -1, 0), order=0, mode="constant", cval=0.0)
    return seen


def _names_beside(path: Path) -> dict[int, str]:
    table = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
    if not table.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")), delimiter="\t"))
        found = {int(row["index"]): str(row["name"]).strip() for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise ConfigError(
            f"the table {table} cannot be read ({problem}); give columns index and name, separated by tabs"
        ) from problem
    if len(set(found.values())) < len(found):
        raise ConfigError(f"the table {table} gives one name to several labels; give each its own")
    return found


def region_table(results: Results, labels: Labels | None = None) -> str:
    """Return the table as CSV text: one line for each region, map, frame and echo time; two where voxels are judged.

    `voxels` says which ones a line is about: ``all`` of the region, or the ``usable`` ones, which the quality mask
    shows in a picture of this map and whose spectra the fit describes (`fit_flag` is not 1). Nothing else is left out:
    the difference of `n` is how many voxels were unusable. A result without both maps has no such lines.

    `mean`, `sd` and `median` are those of the voxels; `weighted_mean` weighs each by 1 / SD^2, and `weighted_mean_sd`
    would be its deviation if the errors of voxels were independent: neighbours share some, so it is a lower bound.
    Empty where there is no deviation. Voxels without a value do not count (`n`).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for echo, part in results.echoes.items() or (("", results),):
        for frame in sorted(part.mask):
            regions = {WHOLE: part.mask[frame], **_tissues(part, frame), **(labels.masks if labels else {})}
            for region, mask in regions.items():
                for item in part.maps.values():
                    if frame not in item.frames or item.name in FRACTION_MAPS:
                        continue
                    usable = _usable(part, item, frame)
                    for voxels, kept in ((ALL, mask), *(() if usable is None else ((USABLE, mask & usable),))):
                        numbers = _numbers(item, frame, kept)
                        writer.writerow([echo, frame, region, voxels, item.name, item.unit, *numbers])
    return text.getvalue()


def _usable(part: Results, item: ResultMap, frame: int) -> np.ndarray | None:
    """Return the voxels of a map that neither the quality mask nor the fit rejects, None where nobody judged."""
    judged = [name for name in (QUALITY_MASK, FLAG) if name in part.maps and frame in part.maps[name].frames]
    if not judged:
        return None
    usable = shown_voxels(part, item, frame)
    if FLAG in judged:
        usable = usable & ~(np.nan_to_num(part.maps[FLAG].frames[frame]) > 0)
    return usable


def _tissues(part: Results, frame: int) -> dict[str, np.ndarray]:
    """Return the voxels that stand for a tissue, where fractions were given."""
    found = {}
    for name, source in zip(_TISSUE_NAMES, FRACTION_MAPS, strict=True):
        if source in part.maps and frame in part.maps[source].frames:
            share = np.nan_to_num(part.maps[source].frames[frame])
            found[f"{name} (at least {TISSUE_SHARE:.0%})"] = share >= TISSUE_SHARE
    return found


def _numbers(item: ResultMap, frame: int, mask: np.ndarray) -> list[str]:
    value = item.frames[frame]
    inside = mask & np.isfinite(value)
    values = value[inside].astype(float)
    if not values.size:
        return ["0", *[""] * 5]
    spread = float(values.std(ddof=1)) if values.size > 1 else math.nan
    numbers = [float(values.mean()), spread, float(np.median(values))]
    sd = item.sd_frames.get(frame)
    weighted, weighted_sd = math.nan, math.nan
    if sd is not None:
        known = np.isfinite(sd[inside]) & (sd[inside] > 0)
        if known.any():
            weights = 1.0 / sd[inside][known].astype(float) ** 2
            weighted = float(np.sum(weights * values[known]) / weights.sum())
            weighted_sd = float(1.0 / np.sqrt(weights.sum()))
    return [str(values.size), *(_text(number) for number in (*numbers, weighted, weighted_sd))]


def _text(number: float) -> str:
    return f"{number:.6g}" if math.isfinite(number) else ""
