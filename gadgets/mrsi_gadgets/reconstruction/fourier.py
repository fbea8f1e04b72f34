"""Fourier reconstruction with matched coil combination: the data themselves, no prior (eq. 2 inverted, science.md)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, device, ifftn, is_numpy, like, namespace, over_parts, over_pieces, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.encoding import grid_times
from mrsi_gadgets.operators.fourier import half_voxel_shift, shift_phase
from mrsi_gadgets.reconstruction.gridding import on_grid

Progress = Callable[[float, str], None]
"""Called with the share that is done (0 to 1) and a few words."""


def check_calibration(kt: KtData, coil_maps: Array, b0_hz: np.ndarray, mask: np.ndarray, noise_sd: float) -> None:
    """Refuse calibration that does not fit the data.

    Raises
    ------
    DataError
        A shape differs from the protocol's matrix, the number of coils from the data's, or the noise is not positive.
    """
    grid = tuple(kt.protocol.geometry.matrix)
    if tuple(coil_maps.shape) != (kt.n_coils, *grid):
        raise DataError(
            f"coil maps {tuple(coil_maps.shape)} do not fit {kt.n_coils} channels on the grid {grid}; calibrate again"
        )
    for name, value in (("b0_hz", b0_hz), ("mask", mask)):
        if tuple(value.shape) != grid:
            raise DataError(f"{name} {tuple(value.shape)} does not fit the grid {grid}; calibrate again")
    if not (np.isfinite(noise_sd) and noise_sd > 0):
        raise DataError(f"the noise standard deviation is {noise_sd:g}; it must be positive (1 for whitened data)")
    if not (kt.count > 0).any():
        raise DataError("this frame has no acquired readout; send metabolite readouts")


def matched_image(kt: KtData, coil_maps: Array, *, progress: Progress | None = None) -> Array:
    """Return sum_c conj(S_c) F^H d_c, (x, y, z, t): transform and matched combination.

    Division by the square root of the number of voxels is included, so this is rho wherever sum_c |S_c|^2 = 1 and
    k-space is complete. No second array of the data's size is made. k-space and image shifts are phases
    and index rolls that are folded into the coil maps: the data are touched once by the transform and once by the sum.

    Parameters
    ----------
    kt
        Data on a Cartesian grid; readouts that were not acquired count as zeros.
    coil_maps
        (coil, x, y, z).
    progress
        Called after each piece, by any of our threads.
    """
    dense = kt.dense
    grid = tuple(int(n) for n in dense.shape[1:4])
    if grid != tuple(kt.protocol.geometry.matrix):
        raise DataError(
            f"the k-space grid {grid} is not the image matrix {kt.protocol.geometry.matrix}; use the general operator"
        )
    weights, ramp = _shifted_weights(kt, coil_maps, grid)
    if not is_numpy(dense):
        shift = tuple(n // 2 for n in grid)
        return namespace(dense).roll(_combined_image(dense, weights, ramp, progress), shift, axis=(0, 1, 2))
    # FFT order to image order: each axis in two pieces
    pieces = [[(slice(n // 2, n), slice(0, n - n // 2)), (slice(0, n // 2), slice(n - n // 2, n))] for n in grid]
    # a few times at once, so that transform, combination and sum happen within a core's cache
    result = np.empty(dense.shape[1:], dtype=dense.dtype)
    done: list[int] = []

    def combine(times: slice) -> None:
        image = _combined_image(dense[..., times], weights, ramp)
        for place in product(*pieces):
            result[(*(to for to, _ in place), times)] = image[tuple(source for _, source in place)]
        done.append(times.stop - times.start)
        if progress is not None:
            progress(sum(done) / result.shape[-1], "Fourier transform and coil combination")

    over_pieces(combine, result.shape[-1], int(np.prod(grid)) * result.itemsize)
    return result


def _combined_image(dense: Array, weights: Array, ramp: Array | None, progress: Progress | None = None) -> Array:
    """Return sum_c weight_c IFFT(d_c ramp), (x, y, z, t) in FFT order."""
    xp = namespace(dense)
    grid = tuple(int(n) for n in dense.shape[1:4])
    axes = tuple(a for a in range(3) if grid[a] > 1)
    total = xp.zeros(dense.shape[1:], dtype=dense.dtype, device=device(dense))
    space = np.empty(dense.shape[1:], dtype=dense.dtype) if is_numpy(dense) else None
    for coil in range(dense.shape[0]):
        channel = dense[coil, ...] if ramp is None else dense[coil, ...] * ramp
        weight = weights[coil, ..., None]
        if axes:
            image = ifftn(channel, axes, unitary=False, into=space)
            image *= weight  # the transform's own array; the samples are never written to
            total += image
        else:
            total += channel * weight
        if progress is not None:
            progress((coil + 1) / dense.shape[0], "Fourier transform and coil combination")
    return total


def _shifted_weights(kt: KtData, coil_maps: Array, grid: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Return conj(S) / N in FFT order with the phase of the k-space shift, and the half-voxel ramp of k-space."""
    samples = kt.samples
    xp = namespace(samples)
    phase = np.ones(grid, dtype=complex)
    for axis, n in enumerate(grid):
        ramp = np.exp(-2j * np.pi * np.arange(n) * (n // 2) / n)
        phase = phase * ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    maps = like(coil_maps, samples, samples.dtype)
    maps = xp.roll(maps, tuple(-(n // 2) for n in grid), axis=(1, 2, 3))
    weights = xp.conj(maps) * like(phase / np.prod(grid), samples, samples.dtype)
    shift = shift_phase(grid, half_voxel_shift(kt.protocol.geometry))
    return weights, None if shift is None else like(np.conj(shift)[..., None], samples, samples.dtype)


def demodulate(rho: Array, b0_hz: Array, times_s: np.ndarray, *, overwrite: bool = False) -> Array:
    """Return rho(r, t) exp(-i 2 pi b0(r) t): FIDs without their voxel's mean shift; `overwrite` uses rho's memory."""
    times = -np.asarray(times_s)
    if not is_numpy(rho):
        return rho * field_phase(rho, b0_hz, times)
    result = rho if overwrite else np.empty_like(rho)

    def turn(rows: slice) -> None:
        np.multiply(rho[rows], field_phase(rho, b0_hz[rows], times), out=result[rows])

    over_parts(turn, rho.shape[0], 4)
    return result


def field_phase(reference: Array, b0_hz: Array, times_s: np.ndarray) -> Array:
    """Return exp(+i 2 pi b0(r) t), (x, y, z, t), in `reference`'s namespace and precision.

    Uniform times are stepped in two levels (coarse times fine), which needs far fewer exponentials than one per
    element.
    """
    xp = namespace(reference)
    b0 = like(np.asarray(b0_hz, dtype=np.float64), reference)
    n_times = len(times_s)
    step = float(times_s[1] - times_s[0]) if n_times > 1 else 0.0
    if n_times < 16 or not np.allclose(np.diff(times_s), step, rtol=1e-6, atol=0):
        return _unit_phase(xp, b0[..., None] * like(np.asarray(times_s, dtype=np.float64), reference), reference.dtype)
    fine = int(np.ceil(np.sqrt(n_times)))
    coarse = -(-n_times // fine)
    slow = _unit_phase(
        xp, b0[..., None] * like(times_s[0] + step * fine * np.arange(coarse), reference), reference.dtype
    )
    quick = _unit_phase(xp, b0[..., None] * like(step * np.arange(fine, dtype=np.float64), reference), reference.dtype)
    product = slow[..., :, None] * quick[..., None, :]
    return xp.reshape(product, (*b0.shape, coarse * fine))[..., :n_times]


def _unit_phase(xp: Any, cycles: Array, dtype: Any) -> Array:
    # reduced in double precision, then as precise as the result
    real = xp.float32 if dtype == xp.complex64 else xp.float64
    angle = xp.astype(2 * np.pi * (cycles - xp.floor(cycles)), real)
    return xp.astype(xp.cos(angle) + 1j * xp.sin(angle), dtype)


def reconstruct_fourier(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    progress: Progress | None = None,
) -> SpectralImage:
    """Reconstruct one FID per voxel by Fourier transform and matched coil combination, demodulated by B0.

    Parameters
    ----------
    kt
        Whitened metabolite data of any encoding (`gridding.on_grid` brings them to a grid). What was not acquired
        counts as zeros.
    coil_maps
        (coil, x, y, z), sum over coils of |S|^2 = 1.
    b0_hz
        (x, y, z) [Hz], taken out of the FIDs.
    mask
        (x, y, z) bool: voxels worth quantifying; passed on.
    noise_sd
        SD of the real part of the noise of one readout's sample (1 for whitened data).
    progress
        Called with the share that is done.

    Returns
    -------
    SpectralImage
        FIDs (x, y, z, t) and their noise.

    Raises
    ------
    DataError
        Calibration and data do not fit each other.
    """
    check_calibration(kt, coil_maps, b0_hz, mask, noise_sd)
    provenance: dict[str, Any] = {"method": "fourier"} | how_sampled(kt)
    kt = on_grid(kt)
    rho = demodulate(matched_image(kt, coil_maps, progress=progress), b0_hz, grid_times(kt), overwrite=True)
    return SpectralImage(
        coefficients=rho,
        basis=None,
        protocol=kt.protocol,
        mask=np.asarray(mask, dtype=bool),
        b0_hz=np.asarray(b0_hz, dtype=np.float32),
        noise_sd=image_noise_sd(kt, coil_maps, noise_sd),
        frame=kt.frame,
        provenance=provenance,
    )


def how_sampled(kt: KtData) -> dict[str, Any]:
    """Return for the provenance how many points (or single samples) are missing, and how data came to a grid."""
    told: dict[str, Any] = {"readouts_missing": int(np.sum(kt.count == 0))}
    if kt.grid is None:
        told["gridding"] = "in-lap linear phase, density of the points, adjoint NUFFT"
    elif not kt.common_times:
        told["gridding"] = "linear phase of each point's own time"
    return told


def image_noise_sd(kt: KtData, coil_maps: Array, noise_sd: float) -> np.ndarray:
    """Return the SD of the real part of a matched image's noise, (x, y, z) float32.

    Each readout contributes noise_sd^2 / count; the transform spreads the sum evenly over all voxels.
    """
    counts = kt.count if kt.count.ndim == 1 else kt.counts
    # where the mask differs from time to time, the mean over time
    spread = np.sum(np.where(counts > 0, 1.0 / np.maximum(counts, 1e-12), 0.0)) / (counts.size / len(counts))
    n_voxels = int(np.prod(kt.protocol.geometry.matrix))
    power = np.sum(np.abs(to_numpy(coil_maps)) ** 2, axis=0)
    return (noise_sd * np.sqrt(power * spread) / n_voxels).astype(np.float32)
