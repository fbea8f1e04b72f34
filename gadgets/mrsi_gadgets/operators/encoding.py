"""The encoding of an MRSI measurement: A = sampling . time . Fourier . coils . field (eq. 2 and 7 of science.md).

Operators are unitary where they can be: the transform divides by the square root of the number of voxels N, so that
samples = sqrt(N) * A(rho) for rho in the unit of `SpectralImage` (the signal of one voxel).
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, like
from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import Diagonal, Identity, LastAxisMatrix, LinearOperator, Reshape
from mrsi_gadgets.operators.coils import Coils
from mrsi_gadgets.operators.field_evolution import FieldPhase, field_evolution, histogram_terms
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift


def encoding_operator(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    basis: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    tolerance: float = 1e-3,
) -> LinearOperator:
    """Return the operator from images to samples (coil, shot, sample) on a Cartesian grid.

    With a mask that is the same for all times, A^H A needs two transforms of as many images as the evolution's temporal
    basis has rows (rank times a few), never one per time.

    Parameters
    ----------
    kt
        Data whose grid, times and counts are encoded.
    coil_maps
        (coil, x, y, z).
    b0_hz
        (x, y, z) [Hz].
    basis
        (rank, t) temporal basis: the domain is (x, y, z, rank); None: the domain is (x, y, z, t).
    weights
        (shot,) or (shot, sample) real factors on the samples; by default 1 where a readout was acquired and 0
        elsewhere.
    tolerance
        Relative error of the field evolution's expansion.

    Raises
    ------
    DataError
        A shape does not fit, or the data are not on a grid.
    """
    if kt.grid is None:
        raise DataError("these samples are not on a Cartesian grid; use the non-uniform encoding operator")
    grid = tuple(int(n) for n in kt.protocol.geometry.matrix)
    if tuple(kt.grid) != grid:
        raise DataError(f"the k-space grid {kt.grid} is not the image matrix {grid}; crop or fill k-space first")
    if tuple(coil_maps.shape[1:]) != grid or tuple(b0_hz.shape) != grid:
        raise DataError(f"coil maps {tuple(coil_maps.shape)} and field {tuple(b0_hz.shape)} do not fit the grid {grid}")
    times = grid_times(kt)
    n_times, n_coils = len(times), int(coil_maps.shape[0])
    given = (kt.count > 0) if weights is None else np.asarray(weights)
    if given.shape not in ((kt.k.shape[0],), (kt.k.shape[0], n_times)):
        raise DataError(f"sampling weights {given.shape} do not fit {kt.k.shape[0]} shots of {n_times} samples")
    samples = kt.samples
    if basis is None:
        phase = np.exp(2j * np.pi * np.asarray(b0_hz, dtype=float)[..., None] * times)
        image_model: LinearOperator = FieldPhase(like(phase, samples, samples.dtype))
        to_times: LinearOperator = Identity((n_coils, *grid, n_times))
    else:
        terms = histogram_terms(b0_hz, times, tolerance=tolerance)
        image_model, temporal = field_evolution(terms, np.asarray(basis), samples, tolerance=tolerance)
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


def grid_times(kt: KtData) -> np.ndarray:
    """Return the sample times (t,) [s] that all shots of a Cartesian grid share.

    Raises
    ------
    DataError
        The shots of this grid were sampled at different times.
    """
    times = np.asarray(kt.t[0], dtype=float)
    if kt.t.strides[0] != 0 and not np.allclose(kt.t, times[None, :], rtol=0, atol=1e-9):
        raise DataError(
            "the shots of this grid were sampled at different times; describe them without a grid (k and t per sample)"
        )
    return times
