"""Gauss-Newton refinement of the fit of many voxels at once, with exact derivatives.

Each step solves one bounded linear least-squares problem per voxel for the amplitudes AND the change of phase, shift
and widths (the separable problem of eq. 19 linearised in the lineshape only). At its solution the normal matrix is
the Fisher information, from which the standard deviations follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, device, like, namespace
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE, LineshapeExpansion, LineshapeRange
from mrsi_gadgets.quantification.nonnegative import solve_nonnegative


@dataclass(frozen=True, eq=False)
class ShapedDictionary:
    """The linear model as a function of the lineshape, in the coordinates of the fit."""

    expansion: LineshapeExpansion
    allowed: LineshapeRange
    products: np.ndarray
    """(k, coordinate, column) complex64: function k of the expansion times each column of the design."""
    bounded: np.ndarray
    """(column,) bool."""
    prior_sd: np.ndarray
    """(column,) relative to the voxel's amplitude scale; inf: none."""
    shape_prior: np.ndarray
    """(2, 4): mean and SD of a weak Gaussian prior of the lineshape parameters; SD inf: none."""


class Fit(NamedTuple):
    """State of the fit of a batch of voxels; amplitudes are in units of the voxel's noise."""

    shape: Array
    """(voxel, 4) float32."""
    amplitudes: Array
    """(voxel, column) float32."""
    free: Array
    """(voxel, column + 4) bool: not held at a bound."""
    normal: Array
    """(voxel, column + 4, column + 4) float64 normal matrix, priors included."""
    cost: Array
    """(voxel,) float32: whitened squared residual and prior."""
    residual: Array
    """(voxel, coordinate) complex64: data minus molecules, not whitened."""


class _Linearised(NamedTuple):
    """Model and derivatives at one place."""

    gram: Array
    rhs: Array
    model: Array
    cost: Array


def refine(
    data: Array,
    dictionary: ShapedDictionary,
    whiten: Array,
    shape: Array,
    scale: Array,
    *,
    amplitudes: Array | None = None,
    free: Array | None = None,
    steps: int = 4,
) -> Fit:
    """Improve lineshapes and amplitudes by `steps` Gauss-Newton steps; a step that makes a voxel worse is halved.

    Parameters
    ----------
    data
        (voxel, coordinate) complex64 in units of the noise (real part 1).
    dictionary
        The model.
    whiten
        (voxel, n_dense, n_dense) for the leading coordinates.
    shape
        (voxel, 4) start.
    scale
        (voxel,) amplitude scale for the priors.
    amplitudes, free
        Start, or None: amplitudes are fitted at the given lineshape first.
    steps
        Number of steps.

    Returns
    -------
    Fit
        The best state found, linearised there.
    """
    xp = namespace(data)
    if amplitudes is None:
        amplitudes, free = _amplitudes_only(data, dictionary, whiten, shape, scale)
    best_shape, best_amplitudes = shape, amplitudes
    best_cost = xp.full((data.shape[0],), float("inf"), dtype=xp.float32, device=device(data))
    for _ in range(steps):
        here = _linearise(data, dictionary, whiten, shape, amplitudes, scale)
        accept = here.cost <= best_cost
        best_shape = xp.where(accept[:, None], shape, best_shape)
        best_amplitudes = xp.where(accept[:, None], amplitudes, best_amplitudes)
        best_cost = xp.where(accept, here.cost, best_cost)
        new_shape, new_amplitudes, free = _step(here, dictionary, shape, free)
        shape = xp.where(accept[:, None], new_shape, (best_shape + shape) / 2)
        amplitudes = xp.where(accept[:, None], new_amplitudes, (best_amplitudes + amplitudes) / 2)
    here = _linearise(data, dictionary, whiten, shape, amplitudes, scale)
    accept = here.cost <= best_cost
    if not bool(xp.all(accept)):
        shape = xp.where(accept[:, None], shape, best_shape)
        amplitudes = xp.where(accept[:, None], amplitudes, best_amplitudes)
        here = _linearise(data, dictionary, whiten, shape, amplitudes, scale)
    free = _free_at(dictionary, shape, amplitudes)
    return Fit(shape, amplitudes, free, here.gram, here.cost, data - here.model)


def model_at(dictionary: ShapedDictionary, shape: Array, amplitudes: Array) -> Array:
    """Return the molecules' signal (voxel, coordinate) for given lineshapes (voxel, 4) and amplitudes."""
    return _derivatives(dictionary, dictionary.expansion.coefficients(shape), amplitudes)[:, 0, :]


def _columns_at(dictionary: ShapedDictionary, coefficients: Array) -> Array:
    """Columns of the model at each voxel's lineshape, (voxel, coordinate, column)."""
    xp = namespace(coefficients)
    k, d, m = dictionary.products.shape
    products = like(dictionary.products, coefficients, "complex64")
    return xp.reshape(coefficients[:, 0, :] @ xp.reshape(products, (k, d * m)), (-1, d, m))


def _derivatives(dictionary: ShapedDictionary, coefficients: Array, amplitudes: Array) -> Array:
    """Model and its derivatives by the lineshape parameters, (voxel, 5, coordinate)."""
    xp = namespace(coefficients)
    k, d, m = dictionary.products.shape
    products = xp.reshape(like(dictionary.products, coefficients, "complex64"), (k * d, m))
    summed = xp.astype(amplitudes, xp.complex64) @ xp.matrix_transpose(products)
    return xp.matmul(coefficients, xp.reshape(summed, (-1, k, d)))


def _whitened(columns: Array, whiten: Array) -> Array:
    """Apply the whitening of the leading coordinates and stack real and imaginary parts, (voxel, 2 coordinate, m)."""
    xp = namespace(columns)
    n = whiten.shape[1]
    head = xp.matmul(whiten, columns[:, :n, :])
    tail = columns[:, n:, :]
    return xp.concat([xp.real(head), xp.real(tail), xp.imag(head), xp.imag(tail)], axis=1)


def _prior_precision(dictionary: ShapedDictionary, scale: Array) -> Array:
    """Precision of the Gaussian priors, (voxel, column + 4) float64."""
    xp = namespace(scale)
    relative = like(dictionary.prior_sd**-2.0, scale, "float64")
    amplitude = relative[None, :] / xp.astype(scale, xp.float64)[:, None] ** 2
    shape = like(dictionary.shape_prior[1] ** -2.0, scale, "float64")[None, :]
    return xp.concat([amplitude, shape + xp.zeros((scale.shape[0], 1), dtype=xp.float64, device=device(scale))], axis=1)


def _amplitudes_only(
    data: Array, dictionary: ShapedDictionary, whiten: Array, shape: Array, scale: Array
) -> tuple[Array, Array]:
    """Fit the amplitudes at a fixed lineshape."""
    xp = namespace(data)
    columns = _whitened(_columns_at(dictionary, dictionary.expansion.coefficients(shape)), whiten)
    y = _whitened(data[:, :, None], whiten)
    gram, rhs = _normal(columns, y)
    n_columns = rhs.shape[1]
    gram = _with_diagonal(gram, _prior_precision(dictionary, scale)[:, :n_columns])
    x, free = solve_nonnegative(gram, rhs, like(dictionary.bounded, data))
    every = xp.ones((data.shape[0], N_SHAPE), dtype=xp.bool, device=device(data))
    return xp.astype(x, xp.float32), xp.concat([free, every], axis=1)


def _normal(columns: Array, y: Array) -> tuple[Array, Array]:
    """Normal matrix and right-hand side in float64."""
    xp = namespace(columns)
    transposed = xp.matrix_transpose(columns)
    gram = xp.astype(xp.matmul(transposed, columns), xp.float64)
    return gram, xp.astype(xp.matmul(transposed, y)[:, :, 0], xp.float64)


def _with_diagonal(gram: Array, precision: Array) -> Array:
    """Add the precision of priors, and a trace of the matrix's own diagonal that keeps it positive definite."""
    xp = namespace(gram)
    diagonal = precision + 1e-6 * xp.linalg.diagonal(gram)
    return gram + diagonal[:, :, None] * xp.eye(gram.shape[1], dtype=xp.float64, device=device(gram))[None, :, :]


def _linearise(
    data: Array, dictionary: ShapedDictionary, whiten: Array, shape: Array, amplitudes: Array, scale: Array
) -> _Linearised:
    """Normal equations for amplitudes and change of the lineshape at one place.

    The unknowns are the amplitudes themselves and the lineshape parameters themselves, not their changes, so that
    bounds and priors need no shift.
    """
    xp = namespace(data)
    coefficients = dictionary.expansion.coefficients(shape)
    parts = _derivatives(dictionary, coefficients, amplitudes)
    columns = xp.concat([_columns_at(dictionary, coefficients), xp.matrix_transpose(parts[:, 1:, :])], axis=2)
    columns = _whitened(columns, whiten)
    residual = _whitened((data - parts[:, 0, :])[:, :, None], whiten)
    gram, slope = _normal(columns, residual)
    place = xp.astype(xp.concat([amplitudes, shape], axis=1), xp.float64)
    precision = _prior_precision(dictionary, scale)
    mean = xp.concat([xp.zeros_like(amplitudes[0, :]), like(dictionary.shape_prior[0], data, "float32")])
    away = xp.astype(mean, xp.float64)[None, :] - place
    cost = xp.sum(residual[:, :, 0] ** 2, axis=1) + xp.astype(xp.sum(precision * away**2, axis=1), xp.float32)
    gram = _with_diagonal(gram, precision)
    rhs = xp.matmul(gram, place[:, :, None])[:, :, 0] + slope + precision * away
    return _Linearised(gram, rhs, parts[:, 0, :], cost)


def _step(here: _Linearised, dictionary: ShapedDictionary, shape: Array, free: Array) -> tuple[Array, Array, Array]:
    """Solve the linearised problem with its bounds; keep the lineshape within what is allowed."""
    xp = namespace(shape)
    n_columns = dictionary.bounded.shape[0]
    lower = dictionary.allowed.lower()
    has_bound = np.concatenate([dictionary.bounded, [False, False, True, True]])
    offset = like(np.concatenate([np.zeros(n_columns), [0.0, 0.0, lower[2], lower[3]]]), here.rhs)
    rhs = here.rhs - xp.matmul(here.gram, offset[:, None])[:, :, 0]
    x, free = solve_nonnegative(here.gram, rhs, like(has_bound, shape), free)
    x = x + offset[None, :]
    new_shape = xp.astype(x[:, n_columns:], xp.float32)
    new_shape = xp.clip(
        new_shape, like(lower, shape, "float32")[None, :], like(dictionary.allowed.upper(), shape, "float32")[None, :]
    )
    # a phase beyond half a turn is the same phase
    turn = 2 * np.pi * xp.round(new_shape[:, :1] / (2 * np.pi))
    return xp.concat([new_shape[:, :1] - turn, new_shape[:, 1:]], axis=1), xp.astype(x[:, :n_columns], xp.float32), free


def _free_at(dictionary: ShapedDictionary, shape: Array, amplitudes: Array) -> Array:
    """Which unknowns are away from their bounds."""
    xp = namespace(shape)
    bounded = like(dictionary.bounded, shape)[None, :]
    lower = like(dictionary.allowed.lower(), shape, "float32")[None, :]
    upper = like(dictionary.allowed.upper(), shape, "float32")[None, :]
    return xp.concat([~bounded | (amplitudes > 0), (shape > lower) & (shape < upper)], axis=1)


def covariance(fit: Fit) -> tuple[Array, Array]:
    """Return the covariance of the unknowns that are free, and for each unknown its own variance.

    An unknown that lies at its bound has no covariance with others; its variance is the one it would have if it
    alone were released.

    Returns
    -------
    covariance
        (voxel, unknown, unknown) float64, zero in rows and columns of unknowns at a bound.
    variance
        (voxel, unknown) float64.
    """
    xp = namespace(fit.normal)
    weight = xp.astype(fit.free, xp.float64)
    diagonal = xp.linalg.diagonal(fit.normal)
    scale = 1 / xp.sqrt(diagonal)
    normal = fit.normal * scale[:, :, None] * scale[:, None, :]
    both = weight[:, :, None] * weight[:, None, :]
    eye = xp.eye(normal.shape[1], dtype=xp.float64, device=device(normal))[None, :, :]
    inverse = xp.linalg.inv(normal * both + eye * (1 - weight)[:, :, None]) * both
    explained = xp.sum(xp.matmul(normal, inverse) * normal, axis=2)
    released = 1 / xp.clip(1 - explained, 1e-9, 1.0)
    variance = xp.where(fit.free, xp.linalg.diagonal(inverse), released)
    return inverse * scale[:, :, None] * scale[:, None, :], variance * scale**2
