"""The spectra of all voxels as complex images, and back again.

Series, each an MRD image (x, y, z): ``fitted`` (time, [data, fit, nuisance, lineshape], voxel), ``amplitudes``
(column, [amplitude, exponent], voxel), ``columns`` (time, column, 1), where the image was reconstructed onto one
``basis`` (time, row, 1), and with the first frame where there was a water reference ``water_fids`` (time, [water],
voxel). Those of voxels come in blocks, so that no message is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.fitted import FittedSpectra
from mrsi_gadgets.output.meta import MetaValue, value_of, values_of
from mrsi_gadgets.stream.messages import Image

FITTED, AMPLITUDES, COLUMNS, BASIS, WATER = "fitted", "amplitudes", "columns", "basis", "water_fids"
"""What meta key ``mrsi_kind`` says of an image."""
KINDS = (FITTED, AMPLITUDES, COLUMNS, BASIS, WATER)
_FITTED_ROWS = ("data", "fit", "nuisance", "lineshape")
_AMPLITUDE_ROWS = ("amplitude", "exponent")
_WATER_ROWS = ("water",)
_BLOCK_BYTES = 16 << 20
"""No message is much larger than this."""


@dataclass(frozen=True, eq=False)
class Part:
    """One image to be."""

    kind: str
    title: str
    unit: str
    note: str
    values: np.ndarray
    """complex64 (z, y, x)."""
    meta: dict[str, Any]


def parts_of(fitted: FittedSpectra) -> tuple[list[Part], ...]:
    """Return the images of each series (see above)."""
    signals = np.stack([fitted.data, fitted.fit, fitted.nuisance, fitted.lineshape], axis=1)
    n_voxels, _, n_times = signals.shape
    block = max(1, _BLOCK_BYTES // bytes_of_spectra(1, n_times))
    exponents = np.zeros_like(fitted.amplitudes) if fitted.exponents is None else fitted.exponents
    amounts = np.stack([fitted.amplitudes, exponents], axis=1)
    blocks = [slice(i, min(i + block, n_voxels)) for i in range(0, n_voxels, block)]
    names = {"mrsi_columns": list(fitted.names)}
    series = [
        [
            Part(
                FITTED, "all spectra", "signal", "x time, y data, fit, nuisance and lineshape, z voxel", signals[rows],
                {"mrsi_rows": list(_FITTED_ROWS), "mrsi_voxels": voxel_texts(fitted.voxels[rows])},
            )
            for rows in blocks
        ],
        [
            Part(
                AMPLITUDES, "all amplitudes", "signal", "x column of the fit, y amplitude and exponent, z voxel",
                amounts[rows],
                {"mrsi_rows": list(_AMPLITUDE_ROWS), "mrsi_voxels": voxel_texts(fitted.voxels[rows])} | names,
            )
            for rows in blocks
        ],
        [Part(COLUMNS, "columns of the fit", "1", "x time, y column of the fit", fitted.columns[None], names)],
    ]  # fmt: skip
    if fitted.basis is not None:
        series.append([Part(BASIS, "temporal basis", "1", "x time, y row of the basis", fitted.basis[None], {})])
    return tuple(series)


def parts_of_water(voxels: np.ndarray, fids: np.ndarray) -> list[Part]:
    """Return the images of a water reference's FIDs (voxel, t)."""
    block = max(1, _BLOCK_BYTES // max(8 * fids.shape[-1], 1))
    return [
        Part(
            WATER, "water FIDs", "signal", "x time, y water, z voxel", fids[i : i + block, None],
            {"mrsi_rows": list(_WATER_ROWS), "mrsi_voxels": voxel_texts(voxels[i : i + block])},
        )
        for i in range(0, len(voxels), block)
    ]  # fmt: skip


def bytes_of_spectra(n_voxels: int, n_times: int) -> int:
    """Return how large the spectra of so many voxels are [bytes]."""
    return n_voxels * len(_FITTED_ROWS) * n_times * 8


def voxel_texts(voxels: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
    """Return ``x y z`` of each voxel."""
    return [" ".join(str(int(i)) for i in voxel) for voxel in voxels]


def voxels_of(meta: Mapping[str, MetaValue]) -> np.ndarray:
    """Return the voxels (voxel, 3) that an image names.

    Raises
    ------
    DataError
        The key is damaged.
    """
    texts = values_of(meta, "mrsi_voxels")
    try:
        found = np.array([[int(i) for i in text.split()] for text in texts], dtype=int).reshape(-1, 3)
    except ValueError as problem:
        raise DataError(f"mrsi_voxels of a spectra image is damaged ({problem}); send the image again") from problem
    return found


@dataclass
class Gathered:
    """The images of one frame's spectra as they come, in any order of their series."""

    blocks: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    """Kind -> place in its series -> pixels (voxel, row, x) or (1, row, x), and voxels (voxel, 3), of each image."""
    names: tuple[str, ...] = ()
    times: tuple[int, float, float] = (0, 0.0, 0.0)
    """Number of points, dwell [s], delay [s]."""

    def add(self, kind: str, image: Image, meta: Mapping[str, MetaValue]) -> None:
        """Take an image.

        Raises
        ------
        DataError
            Shape and description contradict each other.
        """
        pixels, rows = image.data[0], tuple(values_of(meta, "mrsi_rows"))
        expected = {FITTED: _FITTED_ROWS, AMPLITUDES: _AMPLITUDE_ROWS, WATER: _WATER_ROWS}.get(kind)
        voxels = voxels_of(meta)
        if expected is not None and (rows != expected or pixels.shape[:2] != (len(voxels), len(expected))):
            raise DataError(
                f"the image '{kind}' has shape {image.data.shape} and rows {list(rows)} for {len(voxels)} voxels; "
                f"expected {', '.join(expected)} of each"
            )
        self.blocks.setdefault(kind, {})[int(image.head["image_index"])] = pixels, voxels
        if kind == FITTED:
            dwell_s, delay_s = (float(value_of(meta, f"mrsi_{name}")) for name in ("dwell_s", "acquisition_delay_s"))
            self.times = pixels.shape[2], dwell_s, delay_s
        self.names = self.names or tuple(values_of(meta, "mrsi_columns"))

    def spectra(self) -> FittedSpectra:
        """Return them as what they were.

        Raises
        ------
        DataError
            A series is missing, or they contradict each other.
        """
        missing = [kind for kind in (FITTED, AMPLITUDES, COLUMNS) if kind not in self.blocks]
        if missing:
            raise DataError(f"the images of all spectra lack '{missing[0]}'; run the scan again")
        (signals, voxels), (amounts, same) = self._joined(FITTED), self._joined(AMPLITUDES)
        columns, basis = self._joined(COLUMNS)[0][0], self.blocks.get(BASIS)
        n_times, dwell_s, delay_s = self.times
        shapes_fit = amounts.shape[2] == len(columns) == len(self.names) and columns.shape[1] == n_times
        if not np.array_equal(voxels, same) or not shapes_fit:
            raise DataError("the images of all spectra do not belong to one fit; run the scan again")
        return FittedSpectra(
            voxels, signals[:, 0], signals[:, 1], signals[:, 2], self.names, columns, amounts[:, 0], signals[:, 3],
            delay_s + dwell_s * np.arange(n_times), amounts[:, 1] if np.any(amounts[:, 1]) else None,
            None if basis is None else self._joined(BASIS)[0][0],
        )  # fmt: skip

    def water(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return voxels (voxel, 3) and FIDs (voxel, t) of the water reference, None where they did not come."""
        if WATER not in self.blocks:
            return None
        fids, voxels = self._joined(WATER)
        return voxels, fids[:, 0]

    def _joined(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels and voxels of a series, its images in their order."""
        blocks = [self.blocks[kind][i] for i in sorted(self.blocks[kind])]
        return np.concatenate([pixels for pixels, _ in blocks]), np.concatenate([voxels for _, voxels in blocks])
