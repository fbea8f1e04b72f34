"""Lines that neighbouring voxels outside of a learned model have in common, found in what an image leaves of them.

A resonance that no model has seen lies in few voxels, too few to stand out of the noise of a whole scan, and too weak
in each. Neighbours that the gate does not know are looked at together: a line has the phase that those of the molecules
have, so that its amplitudes add up and the noise averages. The strongest line is taken out, and the search goes on with
what is left (matching pursuit; Mallat and Zhang 1993, doi:10.1109/78.258082).
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.models.gate import RATES, Gate

MOST_LINES = 3
_CLEAR = 6.0
"""Sum of the amplitudes over its noise's SD from which on a line is there; about a thousand lines are looked at."""
_SAME_LINE = 0.1
"""A line with less of its length outside of those that were found is one of them."""


def strange_lines(gate: Gate, residual: Array) -> np.ndarray:
    """Return orthonormal rows (any, t) that span the lines that stand out of some residuals.

    Parameters
    ----------
    gate : its frequencies and widths are looked at, but not those of water and lipids.
    residual : (voxel, t) what an image leaves of FIDs in phase, noise of SD 1 (or less) in the real parts.
    """
    xp = namespace(residual)
    n = int(residual.shape[0])
    rows = np.zeros((0, int(residual.shape[-1])), dtype=np.complex128)
    while n and len(rows) < MOST_LINES:
        sums = to_numpy(xp.sum(xp.real(gate.matched(residual)), axis=0)).astype(float)
        total = np.where(gate.held, 0.0, sums) / np.sqrt(n)
        width, place = np.unravel_index(int(np.argmax(total)), total.shape)
        if total[width, place] < _CLEAR:
            break
        row = _line(gate, RATES[width], float(gate.hz[place]))
        for _ in range(2):
            row = row - (row @ rows.conj().T) @ rows
        if np.linalg.norm(row) < _SAME_LINE:
            break
        rows = np.concatenate([rows, row[None] / np.linalg.norm(row)])
        residual = _without(residual, rows[-1:])
    return rows.astype(np.complex64)


def _line(gate: Gate, rate: float, hz: float) -> np.ndarray:
    times = gate.protocol.times_s - gate.protocol.times_s[0]
    line = np.exp((2j * np.pi * hz - rate) * times)
    return np.asarray(line / np.linalg.norm(line))


def _without(fids: Array, rows: np.ndarray) -> Array:
    """Return FIDs without what lies in orthonormal rows."""
    analysis, synthesis = like(rows.conj().T, fids, fids.dtype), like(rows, fids, fids.dtype)
    return fids - (fids @ analysis) @ synthesis
