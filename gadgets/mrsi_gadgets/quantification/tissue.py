"""Volumes of other scans on the grid of the spectra: tissue fractions and B1, as the acquired k-space resolves them.

A voxel of a spectral image sees a sinc-like neighbourhood, not a box: at 16 x 16 a tenth of its signal comes from
beyond its edges. A fraction is therefore sampled finely on the axes of the grid, taken to the k-space that the encoding
covers, and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError

TISSUES = ("grey matter", "white matter", "CSF")
_MOST_SUBVOXELS = 16
_SUM_TOLERANCE = 0.05
"""How far fractions of a volume may lie outside of 0 to 1, and their sum above 1: rounding and interpolation."""
_ROUND_ENCODINGS = ("rings", "spiral")
_LEAST_COVERED = 0.5
"""Tissue of a voxel from which on it counts as covered."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar volume in scanner coordinates."""

    values: np.ndarray
    """(i, j, k)."""
    affine_ras: np.ndarray
    """4 x 4, voxel index to RAS mm (voxel centres), as NIfTI has it."""
    name: str
    """Where it came from, for messages."""


@dataclass(frozen=True, eq=False)
class Tissue:
    """How much of each voxel is which tissue; their sum may be below 1 (skull, air)."""

    grey: np.ndarray
    """(x, y, z), or a scalar array where it is assumed to be the same everywhere."""
    white: np.ndarray
    csf: np.ndarray
    known: bool
    """Whether it was measured; else it is an assumption."""

    @property
    def fractions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Grey matter, white matter, CSF."""
        return self.grey, self.white, self.csf


ASSUMED = Tissue(np.array(0.6), np.array(0.4), np.array(0.0), known=False)
"""What a voxel of brain is taken for where nobody has said: a round number for the cerebrum."""


def tissue_on_grid(volumes: tuple[Volume, Volume, Volume], protocol: Protocol) -> Tissue:
    """Return the fractions of grey matter, white matter and CSF on the grid of the spectra.

    Raises
    ------
    DataError
        Values are no fractions, or the volumes do not lie where the spectra were measured.
    """
    total = np.zeros(volumes[0].values.shape)
    for tissue, volume in zip(TISSUES, volumes, strict=True):
        low, high = float(np.min(volume.values)), float(np.max(volume.values))
        if low < -_SUM_TOLERANCE or high > 1.0 + _SUM_TOLERANCE:
            raise DataError(
                f"{volume.name} holds values from {low:.3g} to {high:.3g}, so it is no map of the fraction of {tissue}"
                "; give fractions between 0 and 1"
            )
        if volume.values.shape != total.shape or not np.allclose(volume.affine_ras, volumes[0].affine_ras, atol=1e-3):
            raise DataError(
                f"{volume.name} lies on another grid than {volumes[0].name}; give three fractions of one segmentation"
            )
        total = total + volume.values
    if float(total.max()) > 1.0 + 2 * _SUM_TOLERANCE:
        raise DataError(
            f"the tissue fractions {', '.join(v.name for v in volumes)} add up to {float(total.max()):.2f} somewhere; "
            "give grey matter, white matter and CSF of one segmentation, in this order"
        )
    grey, white, csf = (on_grid_of(volume, protocol) for volume in volumes)
    if float((grey + white + csf).max()) < _LEAST_COVERED:
        raise DataError(
            f"{volumes[0].name} and the others hold no tissue where the spectra were measured; check that they belong "
            "to this subject and session, and that their orientation (sform or qform) is the scanner's"
        )
    return Tissue(grey, white, csf, known=True)


def on_grid_of(volume: Volume, protocol: Protocol, *, resolve: bool = True) -> np.ndarray:
    """Return a volume on the grid of the spectra, (x, y, z) float32; zero where it does not reach.

    Parameters
    ----------
    volume
        In the coordinates of the scanner.
    protocol
        Grid (`Protocol.geometry`) and encoding: rings and spirals see a disc of k-space, all others a box.
    resolve
        With the point spread of the acquired k-space; False: plain means over the voxels (B1, which is smooth).
    """
    geometry = protocol.geometry
    fine, subvoxels = _sampled(volume, geometry)
    matrix = geometry.matrix
    if not resolve:
        shape = tuple(part for n, s in zip(matrix, subvoxels, strict=True) for part in (n, s))
        return np.asarray(fine.reshape(shape).mean(axis=(1, 3, 5)), dtype=np.float32)
    k_axes = [np.arange(n) - n // 2 for n in matrix]
    k = fine.astype(np.complex64)
    for axis in range(3):
        n, s = matrix[axis], subvoxels[axis]
        places = (np.arange(n * s) + 0.5) / s - 0.5 - n // 2
        kernel = np.exp(-2j * np.pi * np.outer(k_axes[axis], places) / n).astype(np.complex64) / s
        k = np.moveaxis(np.tensordot(kernel, k, (1, axis)), 0, axis)
    if protocol.encoding in _ROUND_ENCODINGS:
        along = [2.0 * a / n for a, n in zip(k_axes[:2], matrix[:2], strict=True)]
        k = k * (along[0][:, None] ** 2 + along[1] ** 2 <= 1.0)[:, :, None]
    axes = (0, 1, 2)
    image = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(k, axes=axes), axes=axes), axes=axes)
    return np.asarray(image.real, dtype=np.float32)


def _sampled(volume: Volume, geometry: Geometry) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Sample a volume on the axes of the grid, several points a voxel; return it and how many points along each axis.

    Points are at most as far apart as the volume's own voxels, so that none of them is skipped.
    """
    spacing = float(np.min(np.linalg.norm(volume.affine_ras[:3, :3], axis=0)))
    sub = tuple(int(np.clip(np.ceil(mm / spacing - 1e-3), 1, _MOST_SUBVOXELS)) for mm in geometry.voxel_mm)
    to_volume = np.linalg.inv(volume.affine_ras) @ geometry.affine_ras()
    x, y, z = ((np.arange(n * s) + 0.5) / s - 0.5 for n, s in zip(geometry.matrix, sub, strict=True))
    fine = np.empty((len(x), len(y), len(z)), np.float32)
    values = np.asarray(volume.values, np.float32)
    for i, place in enumerate(x):
        index = (
            to_volume[:3, 0, None, None] * place
            + to_volume[:3, 1, None, None] * y[:, None]
            + to_volume[:3, 2, None, None] * z
            + to_volume[:3, 3, None, None]
        )
        # a voxel has its value up to its faces, also the outermost ones: a segmentation may end with the slab
        size = np.array(values.shape)[:, None, None]
        reached = np.all((index > -0.5 - 1e-6) & (index < size - 0.5 + 1e-6), axis=0)
        fine[i] = reached * ndimage.map_coordinates(values, np.clip(index, 0, size - 1), order=1)
    return fine, sub  # type: ignore[return-value]
