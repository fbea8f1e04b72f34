"""From fitted numbers back to FIDs: data, fit, nuisance and the parts of the molecules, voxel by voxel.

Only what is small is kept until somebody asks: amplitudes, lineshape parameters, and the image that was fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.data import SpectralImage
from mrsi_gadgets.fitted import FitExample, FittedSpectra

if TYPE_CHECKING:
    from mrsi_gadgets.quantification.preparation import VarproModel

_PIECE = 1000
"""Voxels that are computed at once, so that intermediate results stay small beside what is returned."""


@dataclass(frozen=True, eq=False)
class Resynthesis:
    """What is needed to compute the spectra of any fitted voxels."""

    image: SpectralImage
    inside: np.ndarray
    """(voxel,) flat indices of the fitted voxels."""
    amplitudes: np.ndarray
    """(voxel, column)."""
    shape: np.ndarray
    """(voxel, 4): phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2]."""
    nuisance: np.ndarray
    """(voxel, n_dense) expected nuisance signal in the leading coordinates."""
    place: np.ndarray
    """(voxel,) int: place of the molecule that has a shift of its own."""
    model: VarproModel
    given: Array
    """(voxel, node): lineshape that the field map gives."""

    def all_voxels(self) -> FittedSpectra:
        """Return every fitted voxel, in the order of `inside`."""
        return self.of(np.arange(len(self.inside)))

    def examples(self, rows: Sequence[int]) -> tuple[FitExample, ...]:
        """Return a few voxels, by their rows."""
        some = self.of(np.asarray(rows, int))
        places = [(int(x), int(y), int(z)) for x, y, z in some.voxels]
        return tuple(FitExample(*parts) for parts in zip(places, some.data, some.fit, some.nuisance, strict=True))

    def of(self, rows: np.ndarray) -> FittedSpectra:
        """Return voxels by their rows (voxel,) in `inside`."""
        parts = [self._piece(rows[i : i + _PIECE]) for i in range(0, len(rows), _PIECE)]
        data, fit, nuisance, lineshape = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        design, basis = self.model.design, self.image.basis
        return FittedSpectra(
            voxels=np.stack(np.unravel_index(self.inside[rows], self.image.mask.shape), axis=1),
            data=data,
            fit=fit,
            nuisance=nuisance,
            names=design.names,
            columns=design.columns.T.astype(np.complex64),
            amplitudes=self.amplitudes[rows].astype(np.complex64),
            lineshape=lineshape,
            times_s=self.image.protocol.times_s,
            exponents=self._exponents(rows),
            basis=None if basis is None else to_numpy(basis).astype(np.complex64),
        )

    def _exponents(self, rows: np.ndarray) -> np.ndarray | None:
        """Return 2 pi i times the own shift of each column, (voxel, column); None where no molecule has one."""
        moving = self.model.moving
        if moving is None:
            return None
        exponents = np.zeros((len(rows), len(self.model.design.names)), np.complex64)
        own = 2j * np.pi * moving.shifts_hz[self.place[rows]]
        exponents[:, moving.column] = exponents[:, moving.slope] = own
        return exponents

    def _piece(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return data, fit, nuisance and lineshape, complex64 (voxel, t), with the fitted phase taken out."""
        times, coordinates = self.image.protocol.times_s, self.model.coordinates
        phase, shift, lorentz, gauss = self.shape[rows].astype(float).T[:, :, None]
        expansion = self.model.dictionary.expansion
        xp = namespace(self.given)
        given = to_numpy(xp.take(self.given, like(rows, self.given, "int64"), axis=0))
        lineshape = ((given @ expansion.from_nodes) @ expansion.functions) * np.exp(
            (2j * np.pi * shift - lorentz) * times - gauss * times**2
        )
        molecules = self._molecules(rows, times) * lineshape
        data = self._data(rows) * np.exp(-1j * phase)
        if self.image.basis is not None:
            basis = to_numpy(self.image.basis)
            molecules = (molecules @ basis.conj().T) @ basis
        nuisance = self.nuisance[rows] @ coordinates.expand[: coordinates.n_dense] * np.exp(-1j * phase)
        removed = coordinates.removed
        nuisance = nuisance + ((data - molecules) @ removed.conj()) @ removed.T
        data, fit, nuisance, lineshape = (
            values.astype(np.complex64) for values in (data, molecules + nuisance, nuisance, lineshape)
        )
        return data, fit, nuisance, lineshape

    def _molecules(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return the sum of the columns (voxel, t) before the lineshape."""
        columns, amplitudes = self.model.design.columns.T, self.amplitudes[rows]
        moving = self.model.moving
        if moving is None:
            return np.asarray(amplitudes @ columns)
        which = [moving.column, moving.slope]
        rest = amplitudes.copy()
        rest[:, which] = 0
        own = np.exp(2j * np.pi * moving.shifts_hz[self.place[rows], None] * times)
        return np.asarray(rest @ columns + (amplitudes[:, which] @ columns[which]) * own)

    def _data(self, rows: np.ndarray) -> np.ndarray:
        """Return the FIDs (voxel, t) that were fitted."""
        image = self.image
        xp = namespace(image.coefficients)
        flat = xp.reshape(image.coefficients, (-1, image.coefficients.shape[3]))
        data = to_numpy(xp.take(flat, like(self.inside[rows], flat, "int64"), axis=0))
        return data if image.basis is None else data @ to_numpy(image.basis)
