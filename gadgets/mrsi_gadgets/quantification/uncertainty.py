"""What the standard deviations must know beyond noise: the lineshape that a voxel has is not quite the one assumed.

The lineshape that the field gives to a voxel (`intravoxel`) is a sum over everything that the point spread lets in,

    h(t) = SUM_r' p(r - r') w(r') exp(i 2 pi (f(r') - f(r)) t) / SUM_r' p(r - r') w(r'),

and the weights w, how much of the molecules lies where, are taken to be those of an even object. They are not: tissue
and CSF alternate on a scale of a few millimetres. With w = 1 + a xi, xi independent from cell to cell and of unit
variance, the lineshape is off by

    dh(t) = a SUM_c xi_c p_c (exp(i 2 pi (f_c - f(r)) t) - 1),

which is zero at t = 0: what the acquired k-space resolves is right there, by definition. All voxels share `a`, which
nobody knows before the scan; but an error of the lineshape also leaves something that no molecule explains, in
proportion to the same a. So a is found from the residuals of all voxels together (moments, weighted as a likelihood
would), and what it does to the amounts follows from the fit's own linearisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mrsi_gadgets.arrays import Array, namespace
from mrsi_gadgets.quantification.refinement import Problem, ShapedDictionary, stacked, whitened_columns, whitened_modes

if TYPE_CHECKING:
    from mrsi_gadgets.quantification.assembly import FitResult
    from mrsi_gadgets.quantification.lineshape_search import LineshapeExpansion
    from mrsi_gadgets.quantification.refinement import Fit

CELLS = 2
"""Cells per voxel along each encoded axis: tissue changes over about half a voxel of usual size."""
MODES = 6
"""Patterns in time that are kept of a voxel's possible errors."""
_REACH = 3
"""Voxels to each side whose signal the point spread lets in."""
_MOST_CELLS = 128
"""Of these the most, strongest first."""
_PIECE = 512
_HIDDEN = 3.0
"""Variance of the amounts by errors of the lineshape over what the residuals let expect. Chosen on brains 0 to 2
(csi32, SNR 60) so that intervals cover: tissue and field vary within the cells too, as smoothly as amounts do."""
_ROUNDS = 8


def lineshape_doubt(
    b0_hz: np.ndarray, mask: np.ndarray, expansion: LineshapeExpansion, decay_rate: float
) -> np.ndarray:
    """Return the patterns that the error of each voxel's lineshape is made of, for a = 1.

    Parameters
    ----------
    b0_hz
        (x, y, z) field at the voxel centres [Hz].
    mask
        (x, y, z) bool: extent of the object.
    expansion
        Of the fit's lineshapes: its nodes are the times.
    decay_rate
        Of the molecules [1/s]: late errors count as little as the signal that is left by then.

    Returns
    -------
    ndarray
        (voxel of the mask, mode, node) complex64; the error is their sum with independent real factors of unit
        variance.
    """
    axes = [axis for axis, n in enumerate(mask.shape) if n > 1]
    steps = [np.arange(-_REACH * CELLS, (_REACH + 1) * CELLS) if a in axes else np.zeros(1, int) for a in range(3)]
    offsets = np.stack([s.ravel() for s in np.meshgrid(*steps, indexing="ij")], axis=1)
    spread = np.ones(len(offsets))
    for axis in axes:
        n = mask.shape[axis]
        x = (offsets[:, axis] + 0.5) / CELLS - 0.5
        spread *= np.sin(np.pi * x) / (n * np.sin(np.pi * x / n)) / CELLS
    order = np.argsort(-np.abs(spread))[:_MOST_CELLS]
    offsets, spread = offsets[order], spread[order]
    factors = [CELLS if axis in axes else 1 for axis in range(3)]
    places = np.meshgrid(
        *[(np.arange(n * f) + 0.5) / f - 0.5 for n, f in zip(mask.shape, factors, strict=True)], indexing="ij"
    )
    field = ndimage.map_coordinates(np.asarray(b0_hz, float), places, order=1, mode="nearest")
    extent = np.clip(ndimage.map_coordinates(mask.astype(float), places, order=1, mode="nearest"), 0, 1)
    margin = [(_REACH * CELLS, _REACH * CELLS) if axis in axes else (0, 0) for axis in range(3)]
    field, extent = np.pad(field, margin, mode="edge"), np.pad(extent, margin)
    times_s, from_nodes = expansion.node_times_s.astype(np.float32), expansion.from_nodes.astype(np.complex64)
    decay = np.exp(-decay_rate * (times_s - times_s[0]))
    voxels = np.argwhere(mask)
    start = voxels * factors + [before for before, _ in margin]
    centre = np.asarray(b0_hz, float)[mask]
    found = np.empty((len(voxels), MODES, len(times_s)), np.complex64)
    for first in range(0, len(voxels), _PIECE):
        rows = slice(first, min(first + _PIECE, len(voxels)))
        at = tuple((start[rows, None, :] + offsets[None, :, :]).transpose(2, 0, 1))
        hz = (field[at] - centre[rows, None]).astype(np.float32)
        weight = (spread[None, :] * extent[at]).astype(np.float32)
        angle = (2 * np.pi * hz)[:, :, None] * times_s
        off = (weight[:, :, None] * decay) * (np.cos(angle) - 1 + 1j * np.sin(angle))
        coefficients = off.astype(np.complex64) @ from_nodes
        both = np.concatenate([coefficients.real, coefficients.imag], axis=2)
        power, vectors = np.linalg.eigh(np.swapaxes(both, 1, 2) @ both)
        half = vectors.shape[1] // 2
        leading = (vectors * np.sqrt(np.maximum(power, 0))[:, None, :])[:, :, ::-1][:, :, :MODES]
        modes = (leading[:, :half] + 1j * leading[:, half:]).swapaxes(1, 2)
        found[rows] = (modes @ expansion.functions_at_nodes) / decay
    return found


@dataclass(frozen=True, eq=False)
class Doubt:
    """What errors of the lineshape do in a batch of voxels, for a = 1; signals in units of the voxel's noise."""

    response: Array
    """(voxel, unknown, mode): what each pattern adds to the unknowns."""
    evidence: Array
    """(voxel, 3): squared projections of the residual on the signals of the patterns; what noise alone makes of them;
    what the patterns alone do."""


def doubt_of(
    problem: Problem, dictionary: ShapedDictionary, fit: Fit, covariance: Array, patterns: Array, level: Array,
    directions: Array | None = None, spread: Array | None = None,
) -> Doubt:  # fmt: skip
    """Return what the patterns of `lineshape_doubt` do to a fit, and what of them its residual shows.

    Parameters
    ----------
    problem, dictionary, fit
        The fit.
    covariance
        (voxel, unknown, unknown) inverse normal matrix; zero for unknowns at a bound.
    patterns
        (voxel, mode, node) complex64.
    level
        (voxel,) SD of the noise in the problem's unit.
    directions, spread
        Noise that is not even, as for `refinement.propagated`; `level` does not count then.
    """
    xp = namespace(fit.shape)
    columns = whitened_columns(problem, dictionary, fit.shape, fit.amplitudes)
    signals = whitened_modes(problem, dictionary, fit.shape, fit.amplitudes, patterns)
    response = xp.matmul(xp.astype(covariance, xp.float32), xp.matmul(xp.matrix_transpose(columns), signals))
    left = signals - xp.matmul(columns, response)
    residual = stacked(fit.residual, dictionary.n_dense)[:, :, None]
    n = problem.whiten.shape[1]
    residual = xp.concat([xp.matmul(problem.whiten, residual[:, :n, :]), residual[:, n:, :]], axis=1)
    # what a further step of the fit would explain is no evidence of wrong lineshapes (varpro: nothing at its end)
    unknowns = xp.concat([xp.astype(fit.amplitudes, xp.float64), xp.astype(fit.shape, xp.float64)], axis=1)
    pull = (fit.precision * (problem.mean - unknowns))[:, :, None]
    slope = xp.matmul(xp.matrix_transpose(columns), residual) + xp.astype(pull, columns.dtype)
    residual = residual - xp.matmul(columns, xp.matmul(xp.astype(covariance, columns.dtype), slope))
    seen = xp.matmul(xp.matrix_transpose(signals), residual)[:, :, 0]
    # nuisance as the whitening takes it, and then the noise that there really is in the place of 1
    plain = xp.concat([xp.matmul(xp.matrix_transpose(problem.whiten), left[:, :n, :]), left[:, n:, :]], axis=1)
    assumed = xp.sum(plain**2, axis=(1, 2))
    if directions is None or spread is None:
        actual = level**2 * assumed
    else:
        across = xp.matrix_transpose(directions)
        sides = xp.concat([stacked(across, dictionary.n_dense), stacked(-1j * across, dictionary.n_dense)], axis=0)
        actual = xp.sum((xp.concat([spread, spread], axis=1)[:, :, None] * xp.matmul(sides, plain)) ** 2, axis=(1, 2))
    by_noise = xp.sum(left**2, axis=(1, 2)) - assumed + actual
    overlap = xp.matmul(xp.matrix_transpose(left), signals)
    found = xp.stack([xp.sum(seen**2, axis=1), by_noise, xp.sum(overlap**2, axis=(1, 2))], axis=1)
    return Doubt(response, found)


def weights_variance(evidence: np.ndarray) -> float:
    """Return a^2, the variance of the weights, from the residuals of all voxels (see the top of this module).

    The moment equation SUM_v w_v (found - by noise - a^2 by doubt) = 0 with w = by doubt over the squared expectation:
    what a likelihood would weigh, so that neither the strongest voxels nor those without signal decide.

    Parameters
    ----------
    evidence
        (voxel, 3), as in `Doubt`.
    """
    found, by_noise, by_doubt = evidence[evidence[:, 2] > 0].T.astype(float)
    power = 0.0
    for _ in range(_ROUNDS if len(found) else 0):
        weight = by_doubt / (by_noise + power * by_doubt) ** 2
        power = max(float(np.sum(weight * (found - by_noise)) / np.sum(weight * by_doubt)), 0.0)
    return power


def with_doubt(result: FitResult) -> tuple[FitResult, float]:
    """Return the result with the doubt about lineshapes in its covariances, and a, the SD of the weights."""
    if not result.doubt.shape[2]:
        return result, 0.0
    power = weights_variance(result.evidence)
    more = _HIDDEN * power * (result.doubt @ np.swapaxes(result.doubt, 1, 2))
    own = np.diagonal(more, axis1=1, axis2=2)
    wider = replace(result, covariance=result.covariance + more, variance=result.variance + own)
    return wider, float(np.sqrt(power))
