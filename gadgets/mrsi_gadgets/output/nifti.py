"""MRD images as NIfTI: world coordinates from the image header alone, RAS, float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output.meta import from_xml, value_of
from mrsi_gadgets.stream.messages import Image

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER_COORDINATES = 1


def image_affine_lps(image: Image) -> np.ndarray:
    """Return the 4x4 matrix from voxel index (x, y, z) to LPS mm.

    An MRD image header gives the centre of the box of voxels, so index (n - 1) / 2 lies at ``position`` (protocol 3.1).

    Raises
    ------
    DataError
        The directions are not orthogonal unit vectors, or the field of view is not positive.
    """
    head = image.head
    axes = np.array([head["read_dir"], head["phase_dir"], head["slice_dir"]], dtype=float).T
    size = np.array(head["matrix_size"], dtype=float)
    fov = np.array(head["field_of_view"], dtype=float)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise DataError(f"the directions of an image, {axes.T.tolist()}, are not orthogonal unit vectors")
    if not (np.all(np.isfinite(fov)) and np.all(fov > 0) and np.all(size >= 1)):
        raise DataError(f"an image of {size.tolist()} voxels and {fov.tolist()} mm has no extent; correct its header")
    affine = np.eye(4)
    affine[:3, :3] = axes * (fov / size)
    affine[:3, 3] = np.array(head["position"], dtype=float) - affine[:3, :3] @ ((size - 1) / 2)
    return affine


def image_affine_ras(image: Image) -> np.ndarray:
    """Return the 4x4 matrix from voxel index (x, y, z) to RAS mm."""
    return _LPS_TO_RAS @ image_affine_lps(image)


def image_values(image: Image) -> np.ndarray:
    """Return the values of a one-channel image as (x, y, z), rescaled by RescaleSlope and RescaleIntercept if given.

    Raises
    ------
    DataError
        The image has several channels, or its rescale is not a number.
    """
    if image.data.shape[0] != 1:
        raise DataError(f"an image has {image.data.shape[0]} channels; a map has one")
    values = image.data[0].transpose(2, 1, 0)
    meta = from_xml(image.attributes)
    if "RescaleSlope" not in meta:
        return np.ascontiguousarray(values)
    try:
        slope, intercept = float(value_of(meta, "RescaleSlope")), float(value_of(meta, "RescaleIntercept", "0"))
    except ValueError as error:
        raise DataError(f"RescaleSlope or RescaleIntercept of an image is not a number ({error})") from error
    return np.ascontiguousarray(values * slope + intercept)


def write_nifti(path: str | Path, values: np.ndarray, affine_ras: np.ndarray, *, description: str = "") -> None:
    """Write real `values` (x, y, z[, frame]) as float32 NIfTI-1; a name ending in .gz is compressed.

    The bytes depend on the arguments alone (no time stamp), so equal maps give equal files.
    """
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), affine_ras)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine_ras, code=_SCANNER_COORDINATES)
    image.set_qform(affine_ras, code=_SCANNER_COORDINATES)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    nibabel.save(image, path)
