"""Files of what was measured, for ensembles: maps of an earlier fit, water FIDs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.physics.measured import MeasuredAmounts, MeasuredLineshapes, measured_amounts, water_lineshapes
from mrsi_gadgets.physics.nucleus import nucleus_of


def read_amounts(
    folders: Sequence[Path], protocol: Protocol, *, names: Sequence[str] = (), resample: bool = False
) -> MeasuredAmounts:
    """Learn amounts from the maps of earlier results (``maps/NAME.nii.gz`` with ``NAME_sd.nii.gz`` in each folder).

    `names` empty: the reported sums of the nucleus of which every folder has a map. Each scan is scaled to the same
    median total, since maps of different scans have no common unit.

    Raises
    ------
    ConfigError
        A map cannot be read or has another shape than the others.
    DataError
        See `measured_amounts`.
    """
    names = tuple(names) or tuple(
        name for name in nucleus_of(protocol).sums if all(_map_path(folder, name).is_file() for folder in folders)
    )
    if not folders or not names:
        raise ConfigError(f"{', '.join(map(str, folders)) or 'no folder'} has no maps of reported amounts")
    amounts, deviations = [], []
    for folder in folders:
        value = np.stack([_read_map(_map_path(folder, name)) for name in names], axis=1)
        sd = np.stack([_read_map(_map_path(folder, f"{name}_sd")) for name in names], axis=1)
        good = np.isfinite(value).all(axis=1) & np.isfinite(sd).all(axis=1) & (value.sum(axis=1) > 0)
        if not good.any():
            raise ConfigError(f"the maps in {folder} have no voxel with a value in all of {', '.join(names)}")
        unit = float(np.median(value[good].sum(axis=1)))
        amounts.append(value[good] / unit)
        deviations.append(sd[good] / unit)
    return measured_amounts(protocol, names, np.concatenate(amounts), sd=np.concatenate(deviations), resample=resample)


def read_lineshapes(path: Path, protocol: Protocol, *, noise_sd: float = 0.0) -> MeasuredLineshapes:
    """Learn lineshapes from a complex .npy array (voxel, t) of unsuppressed water at the protocol's times.

    Raises
    ------
    ConfigError
        It cannot be read.
    DataError
        See `water_lineshapes`.
    """
    try:
        fids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"the water FIDs {path} cannot be read as a .npy array ({problem})") from problem
    return water_lineshapes(protocol, fids, noise_sd=noise_sd)


def _map_path(folder: Path, name: str) -> Path:
    return folder / "maps" / f"{name}.nii.gz"


def _read_map(path: Path) -> np.ndarray:
    import nibabel

    try:
        image = nibabel.load(path)
        return np.asarray(image.get_fdata()).ravel()  # type: ignore[attr-defined]
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as problem:
        raise ConfigError(f"the map {path} cannot be read ({problem})") from problem
