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
from mrsi_gadgets.quantification.freedom import delay_scale, time_derivatives

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
    """(voxel, parameter): phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2], and further ones."""
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
        moving, count = self.model.moving, len(self.model.design.names)
        exponents = self.model.dictionary.freedom.exponents(self.shape[rows].astype(float), count)
        if moving is None:
            return None if exponents is None else exponents.astype(np.complex64)
        exponents = np.zeros((len(rows), count), complex) if exponents is None else exponents
        own = 2j * np.pi * moving.shifts_hz[self.place[rows]]
        exponents[:, moving.column] = exponents[:, moving.slope] = own
        return exponents.astype(np.complex64)

    def _piece(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return data, fit, nuisance and lineshape, complex64 (voxel, t), with the fitted phase taken out."""
        coordinates = self.model.coordinates
        phase = self.shape[rows, :1].astype(float)
        common = self.model.dictionary.freedom.common(self.shape[rows].astype(float))
        expansion = self.model.dictionary.expansion
        xp = namespace(self.given)
        given = to_numpy(xp.take(self.given, like(rows, self.given, "int64"), axis=0))
        lineshape = ((given @ expansion.from_nodes) @ expansion.functions) * common
        molecules = self._through(self._molecules(rows, self.model.design.columns) * lineshape)
        data = self._data(rows) * np.exp(-1j * phase)
        # a phase of first order leaves the data with the fitted one, as that of order zero does
        data = data - self._through(self._delayed(rows) * lineshape)
        nuisance = self.nuisance[rows] @ coordinates.expand[: coordinates.n_dense] * np.exp(-1j * phase)
        removed = coordinates.removed
        left = data - molecules
        # what lies outside of the window was not fitted
        left = left - (left @ coordinates.outside.conj()) @ coordinates.outside.T
        nuisance = nuisance + (left @ removed.conj()) @ removed.T
        data, fit, nuisance, lineshape = (
            values.astype(np.complex64) for values in (data, molecules + nuisance, nuisance, lineshape)
        )
        return data, fit, nuisance, lineshape

    def _molecules(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the sum of columns (t, column) before the lineshape that they share, (voxel, t)."""
        amplitudes, exponents = self.amplitudes[rows], self._exponents(rows)
        if exponents is None:
            return np.asarray(amplitudes @ columns.T)
        apart = np.any(exponents != 0, axis=0)
        total = amplitudes[:, ~apart] @ columns.T[~apart]
        for i in np.flatnonzero(apart):
            own = np.exp(exponents[:, i, None].astype(complex) * self.image.protocol.times_s)
            total = total + amplitudes[:, i, None] * columns[:, i] * own
        return np.asarray(total)

    def _delayed(self, rows: np.ndarray) -> np.ndarray:
        """Return what a delay adds to the molecules (voxel, t); zeros where none is fitted."""
        freedom = self.model.dictionary.freedom
        if freedom.orders == 1:
            return np.zeros((len(rows), 1))
        columns, times = self.model.design.columns, self.image.protocol.times_s
        derived, _ = time_derivatives(
            times, columns, np.ones(columns.shape[1]), freedom.orders, self.model.middle_hz
        )  # fmt: skip
        delay = self.shape[rows, freedom.names.index("delay")].astype(float)
        parts = [
            delay_scale(1.0, order) * delay[:, None] ** order * self._molecules(rows, derived[order])
            for order in range(1, freedom.orders)
        ]
        return np.asarray(sum(parts))

    def _through(self, fids: np.ndarray) -> np.ndarray:
        """Return what the temporal basis of the image lets pass of FIDs (voxel, t)."""
        if self.image.basis is None:
            return fids
        basis = to_numpy(self.image.basis)
        return np.asarray((fids @ basis.conj().T) @ basis)

    def _data(self, rows: np.ndarray) -> np.ndarray:
        """Return the FIDs (voxel, t) that were fitted."""
        image = self.image
        xp = namespace(image.coefficients)
        flat = xp.reshape(image.coefficients, (-1, image.coefficients.shape[3]))
        data = to_numpy(xp.take(flat, like(self.inside[rows], flat, "int64"), axis=0))
        return data if image.basis is None else data @ to_numpy(image.basis)
