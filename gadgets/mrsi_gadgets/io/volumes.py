"""NIfTI volumes of other scans that the quantification uses: tissue fractions and B1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.quantification.tissue import TISSUES, Volume

_ENDINGS = (".nii", ".nii.gz")
_NAMES = (
    r"(^|[_.-])gm([_.-]|$)|pve_1$|^[cp]1|label-gm",
    r"(^|[_.-])wm([_.-]|$)|pve_2$|^[cp]2|label-wm",
    r"(^|[_.-])csf([_.-]|$)|pve_0$|^[cp]3|label-csf",
)
"""How the file of each tissue is told in a folder: gm, wm and csf as a part of the name, the pve_1, pve_2, pve_0 of
FSL FAST, the c1, c2, c3 of SPM and p1, p2, p3 of CAT12."""


def read_volume(path: str | Path) -> Volume:
    """Read a scalar NIfTI volume; a single volume of a fourth axis is taken as it is, and NaN as zero.

    Raises
    ------
    ConfigError
        It cannot be read, is no single scalar volume, or does not say where it lies in the scanner.
    """
    import nibabel

    path = Path(path)
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
            raise ConfigError(f"the volume {path} is no NIfTI file; convert it to .nii.gz")
        values = np.asarray(image.dataobj)
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise ConfigError(f"the volume {path} cannot be read ({reason}); give a NIfTI file") from problem
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or values.dtype.kind not in "biuf":
        raise ConfigError(
            f"the volume {path} holds {values.dtype.name} of shape {values.shape}; give one scalar volume of three axes"
        )
    if not int(image.header["sform_code"]) and not int(image.header["qform_code"]):
        raise ConfigError(
            f"the volume {path} does not say where it lies (sform and qform code are 0); give one in the coordinates "
            "of the scanner"
        )
    values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    return Volume(values, np.asarray(image.affine, dtype=float), path.name)


def read_tissue(given: Sequence[str | Path]) -> tuple[Volume, Volume, Volume]:
    """Read the fractions of grey matter, white matter and CSF: three files in this order, or one folder with them.

    Raises
    ------
    ConfigError
        There are not three files, a folder does not tell which is which, or a file cannot be read.
    """
    paths = [Path(p) for p in given]
    if len(paths) == 1 and paths[0].is_dir():
        paths = _in_folder(paths[0])
    if len(paths) != len(TISSUES):
        raise ConfigError(
            f"tissue fractions are {len(paths)} file{'s' * (len(paths) != 1)}; give three, those of grey matter, white "
            "matter and CSF in this order, or one folder that holds them"
        )
    grey, white, csf = (read_volume(path) for path in paths)
    return grey, white, csf


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS))
    found = []
    for tissue, pattern in zip(TISSUES, _NAMES, strict=True):
        named = [path for path in files if re.search(pattern, _stem(path).lower())]
        if len(named) != 1:
            which = ", ".join(path.name for path in named) or "none"
            raise ConfigError(
                f"the folder {folder} should hold one file for the fraction of {tissue} but has {which}; name the "
                "three files one by one (grey matter, white matter, CSF)"
            )
        found += named
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
