"""The physical model at lineshapes that a network has found: what `cnn` and its adaptation share."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, device, like, namespace
from mrsi_gadgets.quantification.nonnegative import solve_nonnegative
from mrsi_gadgets.quantification.passes import WEAK_PRIOR, priors_of
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.refinement import Problem, model_at

_HELD = 1e-3
"""SD of amounts that the extractor has given, over the scale of the voxel, in the solve for the others."""
_TRACE = 1e-4
"""Part of the diagonal that keeps the least squares on clean spectra well posed."""
_ENOUGH_VOXELS = 30
_SMALLEST_SPREAD = np.array([0.02, 0.2, 0.7, 8.0])
"""SD of phase, shift, Lorentz and Gauss rate that are never assumed smaller, as in `passes`."""


def turned(shape: Array, turn: Array) -> Array:
    """Return lineshapes (voxel, 4) from the regressor with the phase `turn` (voxel,) of the scale added."""
    return namespace(shape).concat([shape[:, :1] + turn[:, None], shape[:, 1:]], axis=1)


def nonnegative_amounts(clean: Array, members: np.ndarray) -> Array:
    """Return the non-negative amounts (voxel, metabolite) of members (metabolite, axis) in clean spectra (voxel, axis).

    One normal matrix serves all voxels.
    """
    xp = namespace(clean)
    gram = members @ members.T
    gram = gram + _TRACE * np.diag(np.diag(gram))
    right = clean @ like(members.T, clean, "float32")
    grams = like(gram, clean, "float64")[None, :, :] + xp.zeros(
        (clean.shape[0], 1, 1), dtype=xp.float64, device=device(clean)
    )
    bounded = like(np.ones(len(members), bool), clean)
    return xp.astype(solve_nonnegative(grams, xp.astype(right, xp.float64), bounded).x, xp.float32)


def shape_spread(shapes: np.ndarray, left: np.ndarray | None = None) -> np.ndarray:
    """Return centre and spread (2, 4) of the lineshapes (voxel, 4) over the voxels, as a prior; few: the weak one.

    Parameters
    ----------
    shapes
        What was found.
    left
        (4,) variance that is left of a typical voxel's lineshape once data and prior are known: estimates that lean on
        a prior scatter less than what they estimate (expectation maximisation). None: they lean on nothing, and the
        spread is taken a quarter wider than what it is.
    """
    if len(shapes) < _ENOUGH_VOXELS:
        return WEAK_PRIOR
    shapes = shapes.astype(float)
    phase = np.angle(np.mean(np.exp(1j * shapes[:, 0])))
    shapes[:, 0] = phase + np.angle(np.exp(1j * (shapes[:, 0] - phase)))
    centre = np.median(shapes, axis=0)
    spread = 1.4826 * np.median(np.abs(shapes - centre), axis=0)
    spread = 1.25 * spread if left is None else np.sqrt(spread**2 + left)
    return np.stack([centre, np.maximum(spread, _SMALLEST_SPREAD)])


def composite_signal(data: Array, shape: Array, given: Array, model: VarproModel) -> tuple[Array, Array]:
    """Return what a few composite spectra explain of the data at known lineshapes, and the voxels' scale (voxel,)."""
    xp = namespace(data)
    n = model.coordinates.n_skipped
    clear = xp.concat([xp.zeros_like(data[:, :n]), data[:, n:]], axis=1)
    amounts = model.grid.at(shape, clear, given)
    positive = xp.where(amounts > 0, amounts, xp.zeros_like(amounts))
    strength = positive @ like(model.grid.positive, data, "float32")
    scale = xp.where(strength > 1e-3, strength, xp.full_like(strength, 1e-3))
    signal = model_at(model.dictionary, shape, positive @ like(model.templates, data, "float32"), given)
    return signal, scale


def problem_of(
    data: Array,
    whiten: Array,
    given: Array,
    scale: Array,
    held: Array | None,
    model: VarproModel,
    prior: np.ndarray,
    lines: np.ndarray | None = None,
) -> Problem:
    """Return the problem of the fit in units of the noise.

    Parameters
    ----------
    data, whiten, given, scale
        Of every voxel, as in `passes.first_pass`.
    held
        (voxel, metabolite) amounts that have next to no freedom; None: all are free.
    model
        The model.
    prior
        (2, 4) mean and SD of the lineshape.
    lines
        (voxel, line) bool: which lines that no molecule has a voxel may have; None: the model has none.
    """
    xp = namespace(data)
    allowed = np.zeros((data.shape[0], 0), bool) if lines is None else lines
    mean, precision = priors_of(model, scale, prior, allowed)
    if held is not None:
        n = held.shape[1]
        tight = (_HELD * xp.astype(scale, xp.float64)) ** -2.0
        mean = xp.concat([xp.astype(held, xp.float64), mean[:, n:]], axis=1)
        precision = xp.concat([xp.zeros_like(precision[:, :n]) + tight[:, None], precision[:, n:]], axis=1)
    return Problem.of(data, whiten, given, mean, precision)
