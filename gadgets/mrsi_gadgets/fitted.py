"""Spectra with their fits: of a few voxels for pictures, and of all of them for files and reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.errors import DataError


@dataclass(frozen=True, eq=False)
class FitExample:
    """One voxel's spectrum with its fit, for pictures."""

    voxel: tuple[int, int, int]
    data: np.ndarray
    """complex64 (t,): the FID that was fitted, phased as the fit saw it."""
    fit: np.ndarray
    """complex64 (t,): metabolites + macromolecules + nuisance."""
    nuisance: np.ndarray
    """complex64 (t,): the nuisance part of `fit`."""


@dataclass(frozen=True, eq=False)
class FittedSpectra:
    """FIDs of many voxels, the fit of each, and the parts that make up the fit.

    ``fit - nuisance`` is the sum over the columns m of ``amplitudes[:, m] * columns[m] * exp(exponents[:, m] * times_s)
    * lineshape``, brought onto `basis` where the image had one (to float32).
    """

    voxels: np.ndarray
    """(voxel, 3) int: index (x, y, z)."""
    data: np.ndarray
    """complex64 (voxel, t): the FIDs that were fitted, with the fitted phase taken out."""
    fit: np.ndarray
    """complex64 (voxel, t): everything the fit explains."""
    nuisance: np.ndarray
    """complex64 (voxel, t): the part of `fit` that is no molecule: baseline, residual water, lipids."""
    names: tuple[str, ...]
    """Molecule of each column; with a colon (``MM:0.91``, ``Pi:shift``) it is a part of the molecule named before it.
    """
    columns: np.ndarray
    """complex64 (column, t): FID of each column per unit of amplitude."""
    amplitudes: np.ndarray
    """complex64 (voxel, column)."""
    lineshape: np.ndarray
    """complex64 (voxel, t): shift and decay that all molecules of a voxel share."""
    times_s: np.ndarray
    """(t,) [s] since the excitation centre or the echo top."""
    exponents: np.ndarray | None = None
    """complex64 (voxel, column) [1/s]: 2 pi i times a shift of the column's own, less a decay rate of its own, or None.
    """
    basis: np.ndarray | None = None
    """complex64 (rank, t): orthonormal rows onto which the image was reconstructed, or None."""

    @property
    def molecules(self) -> tuple[str, ...]:
        """Names of the parts that `component` knows, in the order of the columns."""
        return tuple(dict.fromkeys(name.partition(":")[0] for name in self.names))

    def component(self, molecule: str) -> np.ndarray:
        """Return one molecule's part of the fit, complex64 (voxel, t).

        Raises
        ------
        DataError
            The fit has no such molecule.
        """
        which = [i for i, name in enumerate(self.names) if name.partition(":")[0] == molecule]
        if not which:
            raise DataError(f"the fit has no molecule '{molecule}'; it has {', '.join(self.molecules)}")
        total = self.amplitudes[:, which] @ self.columns[which]
        if self.exponents is not None and np.any(self.exponents[:, which]):
            total = np.zeros_like(self.lineshape)
            for i in which:
                own = np.exp(self.exponents[:, i, None] * self.times_s)
                total = total + self.amplitudes[:, i, None] * self.columns[i] * own
        total = total * self.lineshape
        if self.basis is not None:
            total = (total @ self.basis.conj().T) @ self.basis
        return np.asarray(total, dtype=np.complex64)
