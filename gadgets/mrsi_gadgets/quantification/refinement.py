"""Gauss-Newton refinement of the fit of many voxels at once, with exact derivatives.

Each step solves one bounded linear least-squares problem per voxel for the amplitudes AND the change of phase, shift
and widths (the separable problem of eq. 19 linearised in the lineshape only). At its solution the normal matrix is
the Fisher information, from which the standard deviations follow. Voxels leave the batch when they are done.

Amplitudes are real, so everything here is: a complex coordinate becomes two real ones, in the order real head,
imaginary head, real tail, imaginary tail (`stacked`), where the head is what the whitening touches. All columns of the
model of all voxels then come out of one real matrix product, ready for the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, device, like, namespace
from mrsi_gadgets.quantification.freedom import Freedom
from mrsi_gadgets.quantification.lineshape_search import LineshapeExpansion, LineshapeRange
from mrsi_gadgets.quantification.nonnegative import in_order, solve_nonnegative


@dataclass(frozen=True, eq=False)
class ShapedDictionary:
    """The linear model as a function of the lineshape, in the coordinates of the fit."""

    expansion: LineshapeExpansion
    allowed: LineshapeRange
    products: np.ndarray
    """(order * k, coordinate, column) complex64: function k of the expansion times each column of the design, and times
    each of its derivatives in time that a delay needs."""
    bounded: np.ndarray
    """(column,) bool."""
    n_dense: int
    """How many leading coordinates are whitened together."""
    freedom: Freedom
    """The lineshape's parameters."""

    @cached_property
    def columns_of(self) -> tuple[np.ndarray, ...]:
        """Columns of each group."""
        return tuple(self.freedom.columns_of(group, self.products.shape[2]) for group in range(self.freedom.n_groups))

    @cached_property
    def for_columns(self) -> tuple[np.ndarray, ...]:
        """Per group (2 k, 2 coordinate * (column + parameter)) float32: coefficients (Re, Im) -> stacked columns.

        Columns of other groups and those of the parameters are zero.
        """
        k, d, m = self.products.shape
        found = []
        for columns in self.columns_of:
            room = np.zeros((2, k, 2 * d, m + self.freedom.count), np.float32)
            for part, values in enumerate((self.products, 1j * self.products)):
                some = np.moveaxis(values[:, :, columns], 2, 1)
                room[part, ..., columns] = np.moveaxis(stacked(some, self.n_dense), 1, 0)
            found.append(room.reshape(2 * k, -1))
        return tuple(found)

    @cached_property
    def for_signal(self) -> tuple[np.ndarray, ...]:
        """Per group (column, 2 k * coordinate) float32: amplitudes -> both parts of the functions' signals."""
        both = np.moveaxis(np.stack([self.products.real, self.products.imag]), 3, 0)
        return tuple(np.ascontiguousarray(both[columns].reshape(len(columns), -1)) for columns in self.columns_of)

    def coefficients(self, shape: Array, given: Array) -> Array:
        """Expand lineshapes and their derivatives, (voxel, group, 1 + parameter, order * k) complex64."""
        return self.freedom.coefficients(self.expansion, shape, given)


def stacked(values: Array, n_dense: int) -> Array:
    """Return complex coordinates (..., coordinate) as real ones (..., 2 coordinate) in the order of this module."""
    xp = namespace(values)
    head, tail = values[..., :n_dense], values[..., n_dense:]
    return xp.concat([xp.real(head), xp.imag(head), xp.real(tail), xp.imag(tail)], axis=-1)


def unstacked(values: Array, n_dense: int) -> Array:
    """Undo `stacked`."""
    xp = namespace(values)
    head, tail = values[..., : 2 * n_dense], values[..., 2 * n_dense :]
    half = tail.shape[-1] // 2
    return xp.concat(
        [head[..., :n_dense] + 1j * head[..., n_dense:], tail[..., :half] + 1j * tail[..., half:]], axis=-1
    )


class Problem(NamedTuple):
    """What is given for a batch of voxels."""

    data: Array
    """(voxel, 2 coordinate) float32 in units of the noise (each part 1), `stacked`."""
    whiten: Array
    """(voxel, 2 n_dense, 2 n_dense) float32 for the leading coordinates, real and imaginary parts."""
    given: Array
    """(voxel, node) complex64: known lineshape at the nodes of the expansion."""
    mean: Array
    """(voxel, unknown) float64: mean of the Gaussian priors of amplitudes, phase, shift, Lorentz and Gauss rate."""
    precision: Array
    """(voxel, unknown) float64: their precision; 0: none."""
    tails: Array
    """(voxel, unknown) float64: 1 / nu of a Student t prior with that mean and precision; 0: Gaussian."""

    @classmethod
    def of(
        cls, data: Array, whiten: Array, given: Array, mean: Array, precision: Array, tails: Array | None = None
    ) -> Problem:
        """Make a problem of complex data (voxel, coordinate) and a complex whitening (voxel, n_dense, n_dense)."""
        xp = namespace(data)
        real, imaginary = xp.real(whiten), xp.imag(whiten)
        rows = [xp.concat([real, -imaginary], axis=2), xp.concat([imaginary, real], axis=2)]
        tails = xp.zeros_like(precision) if tails is None else tails
        return cls(stacked(data, whiten.shape[1]), xp.concat(rows, axis=1), given, mean, precision, tails)

    def take(self, rows: Array) -> Problem:
        """Keep only some voxels."""
        xp = namespace(self.data)
        return Problem(*(xp.take(array, rows, axis=0) for array in self))


class Fit(NamedTuple):
    """State of the fit of a batch of voxels; amplitudes are in units of the voxel's noise."""

    shape: Array
    """(voxel, parameter) float32."""
    amplitudes: Array
    """(voxel, column) float32."""
    free: Array
    """(voxel, unknown) bool: not held at a bound."""
    normal: Array
    """(voxel, unknown, unknown) float64 normal matrix, priors included."""
    precision: Array
    """(voxel, unknown) float64: the part of its diagonal that is the priors'."""
    cost: Array
    """(voxel,) float32: whitened squared residual and prior."""
    residual: Array
    """(voxel, coordinate) complex64: data minus molecules, not whitened."""


class _Batch(NamedTuple):
    """Voxels still being fitted."""

    problem: Problem
    index: Array
    shape: Array
    amplitudes: Array
    free: Array
    best_cost: Array
    best_shape: Array
    best_amplitudes: Array

    def take(self, rows: Array) -> _Batch:
        """Keep only some voxels."""
        xp = namespace(self.shape)
        return _Batch(self.problem.take(rows), *(xp.take(array, rows, axis=0) for array in self[1:]))


class _Linearised(NamedTuple):
    """Normal equations for the unknowns themselves (not their changes) at one place, and the place's quality."""

    gram: Array
    precision: Array
    rhs: Array
    model: Array
    cost: Array


def refine(
    problem: Problem,
    dictionary: ShapedDictionary,
    shape: Array,
    amplitudes: Array | None = None,
    free: Array | None = None,
    *,
    max_steps: int = 20,
    settled_at: float = 0.02,
) -> Fit:
    """Improve lineshapes and amplitudes until they settle; a step that makes a voxel worse is halved.

    Parameters
    ----------
    problem
        Data, whitening, known lineshapes and priors.
    dictionary
        The model.
    shape
        (voxel, 4) start.
    amplitudes, free
        Start, or None: amplitudes are fitted at the given lineshape first.
    max_steps
        Voxels that have not settled after so many steps keep the best state that was found.
    settled_at
        A voxel is done when the squared length of its step, in standard deviations, is below this: the next step would
        be shorter by orders of magnitude.

    Returns
    -------
    Fit
        The state of every voxel, in their order.
    """
    xp = namespace(shape)
    if amplitudes is None or free is None:
        amplitudes, free = _amplitudes_only(problem, dictionary, shape)
    n = shape.shape[0]
    never = xp.full((n,), float("inf"), dtype=xp.float32, device=device(shape))
    index = xp.arange(n, device=device(shape))
    batch = _Batch(problem, index, shape, amplitudes, free, never, shape, amplitudes)
    done: list[tuple[Array, ...]] = []
    for step in range(max_steps + 1):
        here = _linearise(batch.problem, batch.shape, batch.amplitudes, dictionary)
        batch, new_shape, new_amplitudes, length, accept = _advance(batch, here, dictionary)
        last = step == max_steps
        settled = (accept & (length < settled_at)) | last
        rows = xp.nonzero(settled)[0]
        if rows.shape[0]:
            ends = (batch.best_shape, batch.best_amplitudes) if last else (new_shape, new_amplitudes)
            done.append(_finished(batch, here, rows, *ends, n_dense=dictionary.n_dense))
        if rows.shape[0] == batch.shape.shape[0]:
            break
        batch = batch._replace(shape=new_shape, amplitudes=new_amplitudes)
        if rows.shape[0]:
            batch = batch.take(xp.nonzero(~settled)[0])
    return Fit(*in_order(done))


def linear_fit(problem: Problem, dictionary: ShapedDictionary, shape: Array) -> Fit:
    """Fit the amplitudes alone, at lineshapes (voxel, 4) that are taken as they are."""
    xp = namespace(shape)
    amplitudes, free = _amplitudes_only(problem, dictionary, shape)
    here = _linearise(problem, shape, amplitudes, dictionary)
    residual = unstacked(problem.data - here.model, dictionary.n_dense)
    return Fit(xp.astype(shape, xp.float32), amplitudes, free, here.gram, here.precision, here.cost, residual)


def model_at(dictionary: ShapedDictionary, shape: Array, amplitudes: Array, given: Array) -> Array:
    """Return the molecules' signal (voxel, coordinate) for lineshapes (voxel, 4), amplitudes and known lineshapes."""
    parts = _signal(dictionary, dictionary.coefficients(shape, given)[:, :, :1, :], amplitudes)
    return unstacked(parts[:, 0, :], dictionary.n_dense)


def whitened_columns(problem: Problem, dictionary: ShapedDictionary, shape: Array, amplitudes: Array) -> Array:
    """Return the derivatives of the whitened model by all unknowns, (voxel, 2 coordinate, unknown), `stacked`."""
    coefficients = dictionary.coefficients(shape, problem.given)
    parts = _signal(dictionary, coefficients, amplitudes)
    return _whiten(_columns(dictionary, coefficients, parts), problem.whiten)


def whitened_modes(
    problem: Problem, dictionary: ShapedDictionary, shape: Array, amplitudes: Array, modes: Array
) -> Array:
    """Return what lineshapes `modes` (voxel, mode, node), times the fitted one, make of the model's whitened signal.

    (voxel, 2 coordinate, mode), `stacked`.
    """
    xp = namespace(shape)
    count = modes.shape[1]
    if dictionary.freedom.plain:
        ones = xp.ones_like(modes[:, 0, :])
        plain = xp.astype(dictionary.expansion.values_at_nodes(shape, ones)[:, None, :] * modes, xp.complex64)
        coefficients = xp.matmul(plain, like(dictionary.expansion.from_nodes, shape, "complex64"))
    else:
        of_modes = [dictionary.coefficients(shape, modes[:, i, :])[:, :, :1, :] for i in range(count)]
        coefficients = xp.concat(of_modes, axis=2)
    parts = _signal(dictionary, coefficients, amplitudes)[:, :count, :]
    return _whiten(xp.asarray(xp.matrix_transpose(parts), copy=True), problem.whiten)


def information(problem: Problem, dictionary: ShapedDictionary, shape: Array, amplitudes: Array) -> Array:
    """Return the Fisher information (voxel, unknown, unknown) of all unknowns at given values, priors included."""
    return _linearise(problem, shape, amplitudes, dictionary).gram


def normal_equations(
    problem: Problem, dictionary: ShapedDictionary, shape: Array, amplitudes: Array
) -> tuple[Array, Array]:
    """Return N (voxel, unknown, unknown) and b (voxel, unknown) of the problem linearised at given values.

    N x = b has the unknowns themselves as its solution, where none of them is bounded; priors are included.
    """
    here = _linearise(problem, shape, amplitudes, dictionary)
    return here.gram, here.rhs


def propagated(
    problem: Problem,
    dictionary: ShapedDictionary,
    shape: Array,
    amplitudes: Array,
    normal: Array,
    directions: Array | None,
    spread: Array | None,
) -> tuple[Array, Array]:
    """Return M so that N^-1 M N^-1 is the covariance under noise other than the white noise that was assumed.

    And, second, the part of it that is noise: the rest are priors and nuisance.

    The estimate is N^-1 (J^H W^H W y + prior) with the normal matrix N. With noise of covariance 2 S instead of 2 I
    and nuisance and priors as assumed, M = N + Re J^H W^H W (S - I) W^H W J.

    Parameters
    ----------
    problem, dictionary, shape, amplitudes
        As for `refine`, at the solution.
    normal
        (voxel, unknown, unknown) float64: N there.
    directions
        (coordinate, k) complex64: directions of the noise, the same in all voxels; None: the assumed white noise.
    spread
        (voxel, k) float32: its SD in each of them; S = D diag(spread^2) D^H.
    """
    xp = namespace(shape)
    coefficients = dictionary.coefficients(shape, problem.given)
    columns = _columns(dictionary, coefficients, _signal(dictionary, coefficients, amplitudes))
    n = problem.whiten.shape[1]
    once = xp.matmul(problem.whiten, columns[:, :n, :])
    columns[:, :n, :] = xp.matmul(xp.matrix_transpose(problem.whiten), once)
    adjoint = xp.matrix_transpose(columns)
    assumed = xp.astype(xp.matmul(adjoint, columns), xp.float64)
    if directions is None or spread is None:
        return normal, assumed
    # A^H D of complex A and D in real numbers: real parts beside imaginary parts
    across = xp.matrix_transpose(directions)
    sides = xp.matrix_transpose(
        xp.concat([stacked(across, dictionary.n_dense), stacked(-1j * across, dictionary.n_dense)], axis=0)
    )
    # one product for all voxels; a voxel's own spread comes after
    response = xp.reshape(xp.reshape(adjoint, (-1, adjoint.shape[2])) @ sides, (*adjoint.shape[:2], sides.shape[1]))
    response = response * xp.concat([spread, spread], axis=1)[:, None, :]
    actual = xp.astype(xp.matmul(response, xp.matrix_transpose(response)), xp.float64)
    return normal + actual - assumed, actual


def response_to(problem: Problem, dictionary: ShapedDictionary, fit: Fit, covariance: Array, changes: Array) -> Array:
    """Return what changes of the data do to the unknowns, (voxel, unknown, change), by the fit's linearisation.

    Parameters
    ----------
    problem, dictionary, fit
        The fit.
    covariance
        (voxel, unknown, unknown) inverse normal matrix; zero for unknowns at a bound.
    changes
        (voxel, change, coordinate) complex64 in the unit of the problem.
    """
    xp = namespace(changes)
    columns = whitened_columns(problem, dictionary, fit.shape, fit.amplitudes)
    real = _whiten(xp.asarray(xp.matrix_transpose(stacked(changes, dictionary.n_dense)), copy=True), problem.whiten)
    return xp.matmul(covariance, xp.astype(xp.matmul(xp.matrix_transpose(columns), real), xp.float64))


def _advance(
    batch: _Batch, here: _Linearised, dictionary: ShapedDictionary
) -> tuple[_Batch, Array, Array, Array, Array]:
    """Accept or refuse where the batch stands, and say where each voxel goes next.

    Returns the batch with its best states, the next lineshapes and amplitudes, the squared step in standard
    deviations, and which voxels were accepted.
    """
    xp = namespace(batch.shape)
    # float32 cannot tell apart costs that differ by less
    accept = here.cost <= batch.best_cost * (1 + 1e-4) + 1e-3
    column = accept[:, None]
    best_shape = xp.where(column, batch.shape, batch.best_shape)
    best_amplitudes = xp.where(column, batch.amplitudes, batch.best_amplitudes)
    shape, amplitudes, free, length = _step(batch, here, dictionary)
    batch = batch._replace(
        best_cost=xp.where(accept, here.cost, batch.best_cost),
        best_shape=best_shape,
        best_amplitudes=best_amplitudes,
        free=free,
    )
    shape = xp.where(column, shape, (best_shape + batch.shape) / 2)
    amplitudes = xp.where(column, amplitudes, (best_amplitudes + batch.amplitudes) / 2)
    return batch, shape, amplitudes, length, accept


def _finished(
    batch: _Batch, here: _Linearised, rows: Array, shape: Array, amplitudes: Array, *, n_dense: int
) -> tuple[Array, ...]:
    """Return of some voxels the place in the whole, then the fields of `Fit`."""
    xp = namespace(shape)
    fields = (
        batch.index,
        shape,
        amplitudes,
        batch.free,
        here.gram,
        here.precision,
        here.cost,
        batch.problem.data - here.model,
    )
    *kept, residual = (xp.take(array, rows, axis=0) for array in fields)
    return (*kept, unstacked(residual, n_dense))


def _columns(dictionary: ShapedDictionary, coefficients: Array, parts: Array | None = None) -> Array:
    """Columns at each voxel's lineshape and, last, the derivatives in `parts`, (voxel, 2 coordinate, any)."""
    xp = namespace(coefficients)
    n_coordinates, m = dictionary.products.shape[1:]
    columns = None
    for group, one in enumerate(dictionary.for_columns):
        at_zero = coefficients[:, group, 0, :]
        both = xp.concat([xp.real(at_zero), xp.imag(at_zero)], axis=1) @ like(one, coefficients, "float32")
        columns = both if columns is None else columns + both
    assert columns is not None
    columns = xp.reshape(columns, (-1, 2 * n_coordinates, m + dictionary.freedom.count))
    if parts is None:
        return columns[:, :, :m]
    columns[:, :, m:] = xp.matrix_transpose(parts[:, 1:, :])
    return columns


def _signal(dictionary: ShapedDictionary, coefficients: Array, amplitudes: Array) -> Array:
    """Model and its derivatives by the lineshape parameters, (voxel, any, 2 coordinate).

    `coefficients` are (voxel, group, any, k), or (voxel, any, k) where all groups share them.
    """
    if coefficients.ndim == 3:
        coefficients = coefficients[:, None, :, :]
    xp = namespace(coefficients)
    found = None
    for group, columns in enumerate(dictionary.columns_of):
        if not len(columns):
            continue
        of = group if coefficients.shape[1] > 1 else 0
        some = (
            amplitudes
            if len(columns) == amplitudes.shape[1]
            else xp.take(amplitudes, like(columns, amplitudes, "int64"), axis=1)
        )
        part = _signal_of(dictionary, group, coefficients[:, of, :, :], some)
        found = part if found is None else found + part
    assert found is not None
    n = dictionary.n_dense
    real, imaginary = found[0, ...], found[1, ...]
    return xp.concat([real[..., :n], imaginary[..., :n], real[..., n:], imaginary[..., n:]], axis=2)


def _signal_of(dictionary: ShapedDictionary, group: int, coefficients: Array, amplitudes: Array) -> Array:
    """Real and imaginary parts (2, voxel, any, coordinate) of the signal of one group of columns."""
    xp = namespace(coefficients)
    k, d, _ = dictionary.products.shape
    count = coefficients.shape[1]
    functions = xp.astype(amplitudes, xp.float32) @ like(dictionary.for_signal[group], coefficients, "float32")
    real, imaginary = xp.real(coefficients), xp.imag(coefficients)
    rows = [xp.concat([real, -imaginary], axis=2), xp.concat([imaginary, real], axis=2)]
    both = xp.matmul(xp.concat(rows, axis=1), xp.reshape(functions, (-1, 2 * k, d)))
    return xp.stack([both[:, :count, :], both[:, count:, :]])


def _whiten(values: Array, whiten: Array) -> Array:
    """Whiten the leading rows of (voxel, 2 coordinate, any) in place."""
    n = whiten.shape[1]
    values[:, :n, :] = namespace(values).matmul(whiten, values[:, :n, :])
    return values


def _amplitudes_only(problem: Problem, dictionary: ShapedDictionary, shape: Array) -> tuple[Array, Array]:
    """Fit the amplitudes at a fixed lineshape."""
    xp = namespace(shape)
    columns = _columns(dictionary, dictionary.coefficients(shape, problem.given))
    data = xp.asarray(problem.data[:, :, None], copy=True)
    gram, rhs = _normal(_whiten(columns, problem.whiten), _whiten(data, problem.whiten))
    m = rhs.shape[1]
    precision = problem.precision[:, :m]
    x, free = solve_nonnegative(
        _with_diagonal(gram, precision), rhs + precision * problem.mean[:, :m], like(dictionary.bounded, shape)
    )
    every = xp.ones((shape.shape[0], dictionary.freedom.count), dtype=xp.bool, device=device(shape))
    return xp.astype(x, xp.float32), xp.concat([free, every], axis=1)


def _normal(columns: Array, y: Array) -> tuple[Array, Array]:
    """Return normal matrix and right-hand side in float64."""
    xp = namespace(columns)
    transposed = xp.matrix_transpose(columns)
    gram = xp.astype(xp.matmul(transposed, columns), xp.float64)
    return gram, xp.astype(xp.matmul(transposed, y)[:, :, 0], xp.float64)


def _with_diagonal(gram: Array, precision: Array) -> Array:
    """Add the precision of priors, and a trace of the matrix's own diagonal that keeps it positive definite."""
    xp = namespace(gram)
    diagonal = precision + 1e-6 * xp.linalg.diagonal(gram)
    return gram + diagonal[:, :, None] * xp.eye(gram.shape[1], dtype=xp.float64, device=device(gram))[None, :, :]


def _linearise(problem: Problem, shape: Array, amplitudes: Array, dictionary: ShapedDictionary) -> _Linearised:
    """Return the normal equations of the problem linearised in the lineshape."""
    xp = namespace(shape)
    coefficients = dictionary.coefficients(shape, problem.given)
    parts = _signal(dictionary, coefficients, amplitudes)
    columns = _whiten(_columns(dictionary, coefficients, parts), problem.whiten)
    residual = _whiten((problem.data - parts[:, 0, :])[:, :, None], problem.whiten)
    gram, slope = _normal(columns, residual)
    place = xp.astype(xp.concat([amplitudes, shape], axis=1), xp.float64)
    away = problem.mean - place
    precision, penalty = _prior_at(problem, away)
    pull = precision * away
    cost = xp.sum(residual[:, :, 0] ** 2, axis=1) + xp.astype(xp.sum(penalty, axis=1), xp.float32)
    gram = _with_diagonal(gram, precision)
    rhs = xp.matmul(gram, place[:, :, None])[:, :, 0] + slope + pull
    return _Linearised(gram, precision, rhs, parts[:, 0, :], cost)


def _prior_at(problem: Problem, away: Array) -> tuple[Array, Array]:
    """Return the precision of the Gaussian that touches each prior at this distance from its mean, and -2 log of it.

    A Student t prior pulls with (nu + 1) / (nu + z^2) of the Gaussian's force at z standard deviations: iteratively
    reweighted least squares (Lange, Little, Taylor 1989, doi:10.1080/01621459.1989.10478852).
    """
    xp = namespace(away)
    squared = problem.precision * away**2
    tails = problem.tails
    precision = problem.precision * (1 + tails) / (1 + tails * squared)
    some = tails > 0
    divisor = xp.where(some, tails, xp.ones_like(tails))
    return precision, xp.where(some, (1 + tails) / divisor * xp.log1p(tails * squared), squared)


def _step(batch: _Batch, here: _Linearised, dictionary: ShapedDictionary) -> tuple[Array, Array, Array, Array]:
    """Solve the linearised problem with its bounds; keep the lineshape within what is allowed."""
    xp = namespace(batch.shape)
    m = dictionary.bounded.shape[0]
    lower, upper = dictionary.freedom.lower, dictionary.freedom.upper
    rates = np.isin(np.arange(dictionary.freedom.count), (2, 3))
    has_bound = np.concatenate([dictionary.bounded, rates])
    offset = like(np.concatenate([np.zeros(m), np.where(rates, lower, 0.0)]), here.rhs)
    rhs = here.rhs - xp.matmul(here.gram, offset[:, None])[:, :, 0]
    x, free = solve_nonnegative(here.gram, rhs, like(has_bound, batch.shape), batch.free)
    x = x + offset[None, :]
    change = x - xp.astype(xp.concat([batch.amplitudes, batch.shape], axis=1), xp.float64)
    length = xp.sum(change * xp.matmul(here.gram, change[:, :, None])[:, :, 0], axis=1)
    phase = x[:, m : m + 1]
    # a phase beyond half a turn is the same phase
    phase = phase - 2 * np.pi * xp.round(phase / (2 * np.pi))
    rest = x[:, m + 1 :]
    rest = xp.minimum(xp.maximum(rest, like(lower[1:], rest)[None, :]), like(upper[1:], rest)[None, :])
    shape = xp.astype(xp.concat([phase, rest], axis=1), xp.float32)
    return shape, xp.astype(x[:, :m], xp.float32), free, length


def covariance(normal: Array, free: Array) -> tuple[Array, Array]:
    """Return the covariance of the unknowns that are free, and for each unknown its own variance.

    An unknown that lies at its bound has no covariance with others; its variance is the one it would have if it
    alone were released.

    Parameters
    ----------
    normal
        (voxel, unknown, unknown) float64 normal matrix.
    free
        (voxel, unknown) bool.

    Returns
    -------
    covariance
        (voxel, unknown, unknown) float64, zero in rows and columns of unknowns at a bound.
    variance
        (voxel, unknown) float64.
    """
    xp = namespace(normal)
    weight = xp.astype(free, xp.float64)
    scale = 1 / xp.sqrt(xp.linalg.diagonal(normal))
    normal = normal * scale[:, :, None] * scale[:, None, :]
    both = weight[:, :, None] * weight[:, None, :]
    eye = xp.eye(normal.shape[1], dtype=xp.float64, device=device(normal))[None, :, :]
    inverse = xp.linalg.inv(normal * both + eye * (1 - weight)[:, :, None]) * both
    explained = xp.sum(xp.matmul(normal, inverse) * normal, axis=2)
    released = 1 / xp.clip(1 - explained, 1e-9, 1.0)
    variance = xp.where(free, xp.linalg.diagonal(inverse), released)
    return inverse * scale[:, :, None] * scale[:, None, :], variance * scale**2
