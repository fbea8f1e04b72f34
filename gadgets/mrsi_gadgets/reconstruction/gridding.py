"""Every encoding brought to a Cartesian grid with one time axis, as fully sampled csi would give it.

Each point's FID is moved to the common spectral times by its linear phase (every point of a lap has its own time);
where the points are no grid, the adjoint NUFFT, weighted by the area of k-space of each point, makes images whose
Fourier transform is k-space on a grid.

The linear phase interpolates between samples. Across the ends of an FID there is nothing to interpolate with, so each
is continued by linear prediction first; in the test's phantom the error is then 0.3 % of the signal over all times and
1.4 % in the first point (7 % and 45 % without). It approximates the exact model, in which each sample has its own t
(`operators.encoding`); `reconstruction.subspace` takes what is left out by that model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.arrays import Array, centred_fftn, fftn, ifftn, like, namespace, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.density import sampling_density
from mrsi_gadgets.operators.encoding import spectral_times
from mrsi_gadgets.operators.fourier import half_voxel_shift, shift_phase
from mrsi_gadgets.operators.nufft import nufft_for
from mrsi_gadgets.operators.points import shifted_grids

BATCH_BYTES = 64 << 20
"""Images made by one call of the NUFFT; more only costs memory."""
EXTENSION = 12
"""Predicted points on either side of an FID: the tails of the interpolation die away over them."""
PREDICTION_ORDER = 16
"""Samples a prediction looks back on; residual water, a few lines and their spread in the field need no more."""
PREDICTION_RIDGE = 1e-6
"""Of the samples' power: below it the prediction cannot tell lines from rounding."""


def on_grid(kt: KtData) -> KtData:
    """Return Cartesian data at common times for any encoding; such data are returned as they are.

    `count` of gridded data is the number of readouts of equal noise: the noise of their image is that of a Cartesian
    scan with this many readouts per k-space point.

    Raises
    ------
    DataError
        The samples of a point do not follow each other at the spectral dwell.
    """
    if kt.grid is not None and kt.common_times:
        return kt
    aligned = align_times(kt)
    return aligned if aligned.grid is not None else _gridded(aligned)


def _gridded(points: KtData) -> KtData:
    """Return the Cartesian k-space (all of it) that the adjoint NUFFT of points at common times makes."""
    points = with_density(points)
    images = coil_images(points)
    grid = tuple(int(n) for n in images.shape[1:4])
    axes = tuple(1 + a for a in range(3) if grid[a] > 1)
    n_voxels = int(np.prod(grid))
    k_space = (centred_fftn(images, axes) if axes else images) * float(np.sqrt(n_voxels))
    ramp = shift_phase(grid, half_voxel_shift(points.protocol.geometry))
    if ramp is not None:
        k_space = k_space * like(ramp[None, ..., None], k_space, k_space.dtype)
    xp = namespace(k_space)
    n_times = int(k_space.shape[-1])
    return replace(
        points,
        samples=xp.reshape(k_space, (points.n_coils, n_voxels, n_times)),
        k=_grid_points(points),
        t=np.broadcast_to(points.t[:1], (n_voxels, n_times)),
        count=np.full(n_voxels, n_voxels / _noise_power(points)),
        grid=grid,  # type: ignore[arg-type]
        density=None,
        acquired_s=None,
    )


def alias_free(kt: KtData) -> np.ndarray:
    """Return where an image of these samples is free of aliases, (x, y, z) bool.

    Rings and spirals leave a disc as wide as the field of view, a Cartesian grid the whole box.
    """
    geometry = kt.protocol.geometry
    if kt.protocol.encoding not in ("rings", "spiral"):
        return np.ones(geometry.matrix, bool)
    place = [
        (np.arange(n) - centre) * size
        for n, centre, size in zip(geometry.matrix, geometry.centre_index, geometry.voxel_mm, strict=True)
    ]
    inside = (place[0][:, None] / (geometry.fov_mm[0] / 2)) ** 2 + (place[1] / (geometry.fov_mm[1] / 2)) ** 2 <= 1
    return np.repeat(inside[:, :, None], geometry.matrix[2], axis=2)


def with_density(points: KtData) -> KtData:
    """Return the data with a density; where the layout knew none, or points are missing altogether, it is computed."""
    acquired = np.any(points.counts > 0, axis=1)
    if points.density is not None and acquired.all():
        return points
    density = np.zeros(len(points.k))
    density[acquired] = sampling_density(points.k[acquired], points.protocol.geometry)
    return replace(points, density=density)


def coil_images(points: KtData) -> Array:
    """Return the density-weighted adjoint transform, (coil, x, y, z, t) in the unit of one voxel.

    Raises
    ------
    DataError
        There is no density.
    """
    xp = namespace(points.samples)
    geometry = points.protocol.geometry
    n_voxels = int(np.prod(geometry.matrix))
    weights = like((_density(points) / np.sqrt(n_voxels))[None, :], points.samples, points.samples.dtype)
    grids = shifted_grids(points.k, geometry)
    if grids is not None:
        return xp.stack(
            [grids.from_points(points.samples[coil, ...] * weights[0, :, None]) for coil in range(points.n_coils)],
            axis=0,
        )
    n_times = int(points.samples.shape[-1])
    step = max(1, min(n_times, BATCH_BYTES // (8 * n_voxels)))
    operators = {size: nufft_for(points.k, geometry, size) for size in {step, n_times % step} - {0}}
    channels = []
    for coil in range(points.n_coils):
        blocks = []
        for start in range(0, n_times, step):
            stop = min(start + step, n_times)
            block = xp.permute_dims(points.samples[coil, :, start:stop], (1, 0)) * weights
            blocks.append(operators[stop - start].H(block))
        image = blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=0)
        channels.append(xp.permute_dims(image, (1, 2, 3, 0)))
    return xp.stack(channels, axis=0)


def align_times(points: KtData) -> KtData:
    """Return FIDs at the spectral times that all points share, t = delay + i dwell.

    A delay tau of a point's FID is taken out by exp(-i 2 pi f tau) on its spectrum (linear phase along the lap).

    Raises
    ------
    DataError
        A point's samples do not follow each other at the spectral dwell.
    """
    protocol = points.protocol
    times = spectral_times(points)
    late = points.t[:, :1] - times[0]
    if np.abs(points.t - late - times).max() > 1e-3 * protocol.dwell_s:
        raise DataError(
            f"samples of one k-space point do not follow each other at the spectral dwell of "
            f"{protocol.dwell_s * 1e6:g} us; correct mrsi_dwell_us, mrsi_samples_per_lap or mrsi_temporal_interleaves"
        )
    if np.abs(late).max() < 1e-9:
        return points
    xp = namespace(points.samples)
    margin = min(EXTENSION, max(1, len(times) // 4))
    extended = _continued(points.samples, margin)
    frequency = np.fft.fftfreq(int(extended.shape[-1]), protocol.dwell_s)
    phase = np.exp(-2j * np.pi * frequency * late)
    spectra = fftn(extended, (2,)) * like(phase[None], extended, extended.dtype)
    samples = ifftn(spectra, (2,))[..., margin : margin + len(times)]
    # a copy frees the margins and gives later transforms contiguous memory
    samples = xp.asarray(samples, copy=True)
    return replace(points, samples=samples, t=np.broadcast_to(times, points.t.shape))


def _continued(samples: Array, margin: int) -> Array:
    """Return FIDs with `margin` predicted points before and after them, faded out to zero at both ends.

    Without them the linear phase would wrap the end of a truncated FID around to its start. All FIDs share their lines,
    so that one linear prediction (backward and forward) serves them all; its coefficients shrink with noise.
    """
    xp = namespace(samples)
    n_times = int(samples.shape[-1])
    order = min(PREDICTION_ORDER, n_times // 3)
    if order < 1:
        return samples
    fade = 0.5 * (1 + np.cos(np.pi * (np.arange(margin) + 1) / (margin + 1)))
    shape = (*(int(n) for n in samples.shape[:2]), n_times)
    parts = [samples]
    for backward in (False, True):
        known = xp.flip(samples, axis=2) if backward else samples
        coefficients = like(_prediction(known, order), samples, samples.dtype)
        window = known[..., n_times - order :]
        grown = []
        for _ in range(margin):
            following = xp.reshape(window, (-1, order)) @ coefficients
            following = xp.reshape(following, (*shape[:2], 1))
            grown.append(following)
            window = xp.concat([window[..., 1:], following], axis=2)
        tail = xp.concat(grown, axis=2) * like(fade, samples, samples.dtype)
        parts = [xp.flip(tail, axis=2), *parts] if backward else [*parts, tail]
    return xp.concat(parts, axis=2)


def _prediction(samples: Array, order: int) -> np.ndarray:
    """Return the coefficients (order,) that predict a sample from those before it, least squares over all FIDs."""
    n_times = int(samples.shape[-1])
    n_fids = int(samples.shape[0] * samples.shape[1])
    # some thousand equations per coefficient determine them as well as all would
    step = max(1, n_fids * (n_times - order) // 20_000)
    fids = to_numpy(namespace(samples).reshape(samples, (n_fids, n_times))[::step, ...]).astype(np.complex128)
    windows = np.lib.stride_tricks.sliding_window_view(fids, order + 1, axis=1).reshape(-1, order + 1)
    past, present = windows[:, :order], windows[:, order]
    normal = past.conj().T @ past
    ridge = PREDICTION_RIDGE * float(np.trace(normal).real) / order + np.finfo(np.float64).tiny
    return np.linalg.solve(normal + ridge * np.eye(order), past.conj().T @ present)


def _noise_power(points: KtData) -> float:
    """Return the variance of N times a voxel's noise over that of one sample: sum of density^2 / count."""
    weights, counts = _density(points), points.counts
    # a sample that is missing is zero and has no noise
    spread = np.where(counts > 0, 1.0 / np.maximum(counts, 1e-12), 0.0)
    return float(np.sum(weights**2 * np.mean(spread, axis=1)))


def _density(points: KtData) -> np.ndarray:
    if points.density is None:
        raise DataError("these samples have no k-space density; compute it with `with_density`")
    return points.density


def _grid_points(kt: KtData) -> np.ndarray:
    """Return the points (voxel, 3) [1/m] of the grid in C order."""
    geometry = kt.protocol.geometry
    axes = [(np.arange(n) - n // 2) / (f * 1e-3) for n, f in zip(geometry.matrix, geometry.fov_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
