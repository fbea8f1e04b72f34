"""The trajectory store: a folder of ``ID.npz`` files with the k-space paths that a sequence does not send.

Each file holds ``k`` (readout, sample, 2 or 3), ``units`` (a text as in mrsi_trajectory_units) and ``sample_time_us``
(one number, or one per readout). The readout index is that of the ring or spiral arm (kspace_encode_step_1).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrsi_gadgets.errors import DataError

UNITS = ("1/m", "1/FOV", "half")
_FIELDS = ("k", "units", "sample_time_us")


@dataclass(frozen=True, eq=False)
class StoredTrajectory:
    """One entry of the store."""

    name: str
    k: np.ndarray
    """(readout, sample, 2 or 3), float64, in `units`, along read, phase (and slice)."""
    units: str
    """``1/m``, ``1/FOV`` or ``half``."""
    sample_time_us: np.ndarray
    """(readout,) ADC dwell [us]."""


TrajectoryLookup = Callable[[str], StoredTrajectory]
"""Returns the entry of an identifier, or raises DataError."""


def site_trajectories(site: Path | None = None) -> Path | None:
    """Return the site's own store: ``trajectories`` in `site` or in MRSI_CONFIG_DIR; None where there is neither."""
    chosen = site or (Path(os.environ["MRSI_CONFIG_DIR"]) if os.environ.get("MRSI_CONFIG_DIR") else None)
    return chosen / "trajectories" if chosen is not None else None


def trajectory_store(folder: Path | None) -> TrajectoryLookup:
    """Return what looks identifiers up in a folder; nothing is read before it is asked for.

    Parameters
    ----------
    folder
        Where the ``ID.npz`` files lie; None: there is no store, every identifier is refused.

    Returns
    -------
        The lookup. It raises DataError where the identifier is no plain file name, the store or the entry is missing,
        or the file is not as described above.
    """

    def look_up(identifier: str) -> StoredTrajectory:
        if not identifier or Path(identifier).name != identifier or identifier.startswith("."):
            raise DataError(f"mrsi_trajectory_id '{identifier}' is no file name; name an entry of the trajectory store")
        if folder is None:
            raise DataError(
                f"mrsi_trajectory_id '{identifier}' names an entry of a trajectory store, but there is none; give its "
                "folder with --trajectories"
            )
        path = folder / f"{identifier}.npz"
        if not path.is_file():
            raise DataError(
                f"the trajectory store {folder} has no entry '{identifier}'; add {identifier}.npz with "
                f"{', '.join(_FIELDS)}, or correct mrsi_trajectory_id"
            )
        return read_trajectory(path)

    return look_up


def read_trajectory(path: Path) -> StoredTrajectory:
    """Read one entry of the store.

    Raises
    ------
    DataError
        The file cannot be read, lacks an array, or an array is not of the shape and kind described above.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _FIELDS if name not in file.files]
            found = {name: file[name] for name in _FIELDS if name not in missing}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as problem:
        raise DataError(f"the trajectory {path.name} cannot be read ({problem}); write it again") from problem
    if missing:
        raise DataError(f"the trajectory {path.name} lacks {', '.join(missing)}; add what is missing")
    k, units = found["k"], str(found["units"])
    if k.ndim != 3 or k.shape[2] not in (2, 3) or 0 in k.shape or k.dtype.kind not in "fiu":
        raise DataError(f"k of the trajectory {path.name} is {k.dtype} {k.shape}; it must be (readout, sample, 2 or 3)")
    if not np.isfinite(k).all():
        raise DataError(f"k of the trajectory {path.name} holds values that are not finite; write it again")
    if units not in UNITS:
        raise DataError(f"units of the trajectory {path.name} is '{units}'; it must be one of {', '.join(UNITS)}")
    dwell = found["sample_time_us"]
    if dwell.dtype.kind not in "fiu" or dwell.shape not in ((), (1,), (k.shape[0],)) or not (dwell > 0).all():
        raise DataError(
            f"sample_time_us of the trajectory {path.name} is {dwell.dtype} {dwell.shape}; it must be a positive "
            f"number, or one for each of its {k.shape[0]} readouts"
        )
    dwells = np.broadcast_to(dwell.astype(float).reshape(-1), (k.shape[0],))
    return StoredTrajectory(path.stem, k.astype(float), units, dwells)
