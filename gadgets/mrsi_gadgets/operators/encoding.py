"""The encoding of an MRSI measurement: A = sampling . time . Fourier . coils . field (eq. 2 and 7 of science.md).

Operators are unitary where they can be: the transform divides by the square root of the number of voxels N, so that
samples = sqrt(N) * A(rho) for rho in the unit of `SpectralImage` (the signal of one voxel).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import Diagonal, Identity, LastAxisMatrix, LinearOperator, Reshape
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples, continued, offset_nodes
from mrsi_gadgets.operators.coils import Coils
from mrsi_gadgets.operators.field_evolution import (
    FieldEvolution,
    FieldPhase,
    at_other_times,
    field_evolution,
    histogram_terms,
)
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift
from mrsi_gadgets.operators.points import PointSampling, offsets_of, shifted_grids

_NODES_THAT_SPAN = 4


@dataclass(frozen=True, eq=False)
class EvolvedBasis:
    """A temporal basis evolving in a field, known at any time: what takes longest to make of an encoding operator.

    It depends on the model and the field alone, so that it can be made while readouts arrive.
    """

    image_model: FieldEvolution
    """From coefficients on the basis to coefficients on the evolved rows."""
    rows: RowsBetweenSamples
    """The evolved rows."""
    times_s: np.ndarray
    """(t,) spectral times [s]."""

    def shifted(self, frequency_hz: float) -> EvolvedBasis:
        """Return it for a field that is higher by so much everywhere."""
        return replace(self, rows=self.rows.shifted(frequency_hz, self.times_s))


def evolved_basis(
    basis: RowsBetweenSamples, b0_hz: np.ndarray, times_s: np.ndarray, reference: Array, *, tolerance: float = 1e-3
) -> EvolvedBasis:
    """Return a basis that is known between samples, evolving in a field.

    Parameters
    ----------
    basis
        Rows at the spectral times and offsets from them.
    b0_hz
        (x, y, z) [Hz].
    times_s
        (t,) spectral times [s].
    reference
        Array whose namespace, device and precision the operator takes.
    tolerance
        Relative error of the expansion.
    """
    n_nodes, rank, n_times = basis.values.shape
    # one basis for all nodes at once; a few of them span what happens within a dwell
    some = np.unique(np.linspace(0, n_nodes - 1, min(n_nodes, _NODES_THAT_SPAN)).round().astype(int))
    times = (times_s + basis.nodes_s[some, None]).ravel()
    terms = histogram_terms(b0_hz, times, tolerance=tolerance)
    flat = np.moveaxis(basis.values, 0, 1)
    image_model, temporal = field_evolution(terms, flat[:, some].reshape(rank, -1), reference, tolerance=tolerance)
    if len(some) < n_nodes:
        all_times = (times_s + basis.nodes_s[:, None]).ravel()
        temporal = at_other_times(terms, image_model, b0_hz, times, all_times, flat.reshape(rank, -1))
    rows = RowsBetweenSamples(basis.nodes_s, np.moveaxis(temporal.reshape(-1, n_nodes, n_times), 1, 0))
    return EvolvedBasis(image_model, rows, times_s)


def encoding_operator(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    basis: np.ndarray | RowsBetweenSamples | EvolvedBasis | None = None,
    *,
    weights: np.ndarray | None = None,
    tolerance: float = 1e-3,
) -> LinearOperator:
    """Return the operator from images to samples (coil, point, t) of any encoding, each sample at its own time.

    With a mask that is the same for all times, A^H A needs two transforms of as many images as the evolution's temporal
    basis has rows (rank times a few), never one per time.

    Parameters
    ----------
    kt
        Data whose points, times and counts are encoded.
    coil_maps
        (coil, x, y, z).
    b0_hz
        (x, y, z) [Hz].
    basis
        (rank, t) temporal basis: the domain is (x, y, z, rank); None: the domain is (x, y, z, t). Where points have
        offsets from the spectral times, rows that are known between samples (`RowsBetweenSamples`, over the offsets of
        `offset_range`) are exact there; an array is continued by its own spectrum. An `EvolvedBasis` has the field in
        it already.
    weights
        (point,) or (point, t) real factors on the samples; by default 1 where a readout was acquired and 0 elsewhere.
    tolerance
        Relative error of the field evolution's expansion.

    Raises
    ------
    DataError
        A shape does not fit, or a point's samples do not follow each other at the spectral dwell.
    """
    grid = tuple(int(n) for n in kt.protocol.geometry.matrix)
    if kt.grid is not None and tuple(kt.grid) != grid:
        raise DataError(f"the k-space grid {kt.grid} is not the image matrix {grid}; crop or fill k-space first")
    if tuple(coil_maps.shape[1:]) != grid or tuple(b0_hz.shape) != grid:
        raise DataError(f"coil maps {tuple(coil_maps.shape)} and field {tuple(b0_hz.shape)} do not fit the grid {grid}")
    n_points, n_times = kt.t.shape
    given = (kt.count > 0) if weights is None else np.asarray(weights)
    if given.shape not in ((n_points,), (n_points, n_times)):
        raise DataError(f"sampling weights {given.shape} do not fit {n_points} points of {n_times} samples")
    if kt.grid is not None and kt.common_times and not isinstance(basis, EvolvedBasis):
        rows = basis.at(np.zeros(1))[0] if isinstance(basis, RowsBetweenSamples) else basis
        return _at_common_times(kt, coil_maps, b0_hz, rows, given, tolerance)
    return _at_own_times(kt, coil_maps, b0_hz, basis, given, tolerance)


def _at_common_times(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, basis: np.ndarray | None, given: np.ndarray, tolerance: float
) -> LinearOperator:
    """Return the operator of a Cartesian grid all of whose points are sampled at the same times."""
    grid = tuple(int(n) for n in kt.protocol.geometry.matrix)
    times = grid_times(kt)
    n_times, n_coils = len(times), int(coil_maps.shape[0])
    samples = kt.samples
    if basis is None:
        phase = np.exp(2j * np.pi * np.asarray(b0_hz, dtype=float)[..., None] * times)
        image_model: LinearOperator = FieldPhase(like(phase, samples, samples.dtype))
        to_times: LinearOperator = Identity((n_coils, *grid, n_times))
    else:
        terms = histogram_terms(b0_hz, times, tolerance=tolerance)
        image_model, temporal = field_evolution(terms, to_numpy(basis), samples, tolerance=tolerance)
        to_times = LastAxisMatrix(like(temporal, samples, samples.dtype), (n_coils, *grid), orthonormal=True)
    coils = Coils(like(coil_maps, samples, samples.dtype), image_model.range[3:])
    fourier = Fourier(coils.range, first_axis=1, shift=half_voxel_shift(kt.protocol.geometry))
    mask = like(given.astype(np.float32).reshape(1, *grid, -1), samples)
    spatial = fourier @ coils @ image_model
    # a mask that is constant in time acts before the temporal basis, which then drops out of A^H A
    if given.ndim == 1:
        sampled = to_times @ (Diagonal(mask, spatial.range) @ spatial)
    else:
        sampled = Diagonal(mask, to_times.range) @ (to_times @ spatial)
    return Reshape(sampled.range, (n_coils, kt.k.shape[0], n_times)) @ sampled


def _at_own_times(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    basis: np.ndarray | RowsBetweenSamples | EvolvedBasis | None,
    given: np.ndarray,
    tolerance: float,
) -> LinearOperator:
    """Return the operator of points that have their own offsets from the spectral times, on a grid or not."""
    times = spectral_times(kt)
    n_times = len(times)
    offsets = offsets_of(kt.t, times, kt.protocol.dwell_s)
    samples = kt.samples
    if isinstance(basis, EvolvedBasis):
        image_model: LinearOperator = basis.image_model
        evolved = basis.rows
    elif basis is None:
        # the field at the spectral times; what it adds within an offset is continued with the FIDs themselves
        phase = np.exp(2j * np.pi * np.asarray(b0_hz, dtype=float)[..., None] * times)
        image_model = FieldPhase(like(phase, samples, samples.dtype))
        evolved = continued(np.eye(n_times), times, offset_nodes(*offset_range(kt), kt.protocol.dwell_s))
    else:
        if not isinstance(basis, RowsBetweenSamples):
            basis = continued(to_numpy(basis), times, offset_nodes(*offset_range(kt), kt.protocol.dwell_s))
        made = evolved_basis(basis, b0_hz, times, samples, tolerance=tolerance)
        image_model, evolved = made.image_model, made.rows
    rows_of_group = tuple(like(rows, samples, samples.dtype) for rows in evolved.at(offsets.values_s))
    coils = Coils(like(coil_maps, samples, samples.dtype), image_model.range[3:])
    sampling = PointSampling(
        k=kt.k,
        geometry=kt.protocol.geometry,
        offsets=offsets,
        rows=rows_of_group,
        weights=given,
        n_coils=int(coil_maps.shape[0]),
        grids=shifted_grids(kt.k, kt.protocol.geometry),
    )
    return sampling @ (coils @ image_model)


def offset_range(kt: KtData) -> tuple[float, float]:
    """Return the smallest and the largest offset [s] of the data's points from the spectral times."""
    late = kt.t[:, 0] - spectral_times(kt)[0]
    return float(late.min()), float(late.max())


def spectral_times(kt: KtData) -> np.ndarray:
    """Return the times (t,) [s] that the offsets of the points count from."""
    return np.asarray(kt.protocol.times_s[: kt.t.shape[1]])


def grid_times(kt: KtData) -> np.ndarray:
    """Return the sample times (t,) [s] that all points share.

    Raises
    ------
    DataError
        The points were sampled at different times.
    """
    if not kt.common_times:
        raise DataError("these points were sampled at different times; bring them to a grid, or use the operator")
    return np.asarray(kt.t[0], dtype=float)
