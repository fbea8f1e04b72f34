"""Locally low-rank reconstruction: the comparison method of science.md (after eq. 7) that adapts from place to place.

The FIDs of a small patch of voxels have a lower rank than those of the whole head (Trzasko and Manduca, Asilomar 2011,
doi:10.1109/ACSSC.2011.6190024, for image series; Nguyen et al., IEEE TBME 2013, doi:10.1109/TBME.2012.2223466, for
spectra). Overlapping patches are cut at the rank that the noise level supports and averaged. Incomplete data go through
proximal gradient steps: towards the data by the encoding operator, then through the same patches.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, norm, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.operators.algebra import LinearOperator
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.fourier import Progress, reconstruct_fourier
from mrsi_gadgets.reconstruction.low_rank import noise_threshold

PATCH = 7
"""Voxels along each side of a patch: 49 FIDs in a slice."""
ITERATIONS = 40
_STEP_RTOL = 2e-3


def reconstruct_locally_low_rank(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    patch: int = PATCH,
    rank: int | None = None,
    iterations: int = ITERATIONS,
    progress: Progress | None = None,
) -> SpectralImage:
    """Reconstruct by Fourier transform and truncated singular value decompositions of overlapping patches.

    Parameters
    ----------
    kt, coil_maps, b0_hz, mask, noise_sd
        As for `reconstruct_fourier`.
    patch
        Voxels along each side of a patch (fewer along short axes); patches overlap by half.
    rank
        Components of each patch; chosen from the noise level where None.
    iterations
        Most proximal steps for incomplete data.
    progress
        Called with the share that is done.

    Returns
    -------
    SpectralImage
        FIDs (x, y, z, t). `noise_sd` is that of the data before the patches were cut.

    Raises
    ------
    ConfigError
        Patch, rank or iterations is not positive.
    DataError
        Calibration and data do not fit each other.
    """
    for name, value in (("patch", patch), ("rank", 1 if rank is None else rank), ("iterations", iterations)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    fourier = reconstruct_fourier(kt, coil_maps, b0_hz, mask, noise_sd, progress=progress)
    provenance: dict[str, Any] = dict(fourier.provenance) | {"method": "locally_low_rank", "patch": patch}
    rho = fourier.coefficients
    typical = float(np.sqrt(np.mean(fourier.noise_sd[fourier.mask] ** 2))) if fourier.mask.any() else 0.0
    typical = typical or float(np.mean(fourier.noise_sd))
    if kt.fully_sampled:
        rho, mean_rank = cut_patches(rho, typical, patch, rank)
    else:
        operator = encoding_operator(kt, coil_maps, b0_hz)
        rho, mean_rank, changes = _proximal(operator, kt, rho, typical, patch, rank, iterations)
        provenance |= {"iterations": len(changes), "relative_change": changes[-1]}
    provenance["rank"] = round(mean_rank, 2)
    provenance["rank_from"] = "given" if rank is not None else "noise level (optimal hard threshold), mean of patches"
    return replace(fourier, coefficients=rho, provenance=provenance)


def _proximal(
    operator: LinearOperator,
    kt: KtData,
    rho: Array,
    sd: float,
    patch: int,
    rank: int | None,
    iterations: int,
) -> tuple[Array, float, list[float]]:
    """Return the fixed point of x <- patches(x - A^H (A x - d) / ||A||^2), its mean rank and the relative changes."""
    scale = float(np.sqrt(np.prod(rho.shape[:3])))
    step = 1.0 / _squared_norm(operator, rho)
    weights = like((kt.counts > 0).astype(np.float32)[None], kt.samples)
    target = operator.H(kt.samples * weights)
    gram = operator.gram
    x, mean_rank = rho * scale, 0.0
    changes: list[float] = []
    while len(changes) < iterations and (not changes or changes[-1] > _STEP_RTOL):
        moved = x + step * (target - gram(x))
        # the threshold shrinks with the step, so that the fixed point is that of the data's own noise
        following, mean_rank = cut_patches(moved, sd * scale, patch, rank)
        size = norm(following)
        changes.append(norm(following - x) / size if size else 0.0)
        x = following
    return x / scale, mean_rank, changes


def cut_patches(rho: Array, noise_sd: float, patch: int, rank: int | None) -> tuple[Array, float]:
    """Return FIDs (x, y, z, t) after cutting each patch's singular values, averaged over patches, and the mean rank.

    Patches are tiles of `patch` voxels along every axis, shifted by half a patch (two tilings per axis that is longer
    than a patch), so that each voxel is seen from several sides.
    """
    grid = tuple(int(n) for n in rho.shape[:3])
    host = to_numpy(rho)
    total = np.zeros(host.shape, dtype=host.dtype)
    sides = [min(patch, n) for n in grid]
    tilings = [(0,) if side == n else (0, -(side // 2)) for side, n in zip(sides, grid, strict=True)]
    ranks: list[int] = []
    for origin in product(*tilings):
        starts = [range(o, n, side) for o, n, side in zip(origin, grid, sides, strict=True)]
        for corner in product(*starts):
            place = tuple(slice(max(c, 0), min(c + side, n)) for c, side, n in zip(corner, sides, grid, strict=True))
            block = host[place]
            fids = block.reshape(-1, host.shape[-1])
            if not fids.any():
                continue
            kept, count = _cut(fids, noise_sd, rank)
            total[place] += kept.reshape(block.shape)
            ranks.append(count)
    total /= np.float32(len(list(product(*tilings))))
    return like(total, rho, rho.dtype), float(np.mean(ranks)) if ranks else 0.0


def _cut(fids: np.ndarray, noise_sd: float, rank: int | None) -> tuple[np.ndarray, int]:
    """Return FIDs (voxel, t) with their leading components alone, and how many these are."""
    # the Gram matrix of the shorter side: a patch has fewer voxels than times
    power, vectors = np.linalg.eigh((fids @ fids.conj().T).astype(np.complex128))
    singular = np.sqrt(np.maximum(power[::-1], 0))
    if rank is None:
        rank = int(np.sum(singular > noise_threshold(fids.shape[0], fids.shape[1], noise_sd)))
    leading = vectors[:, ::-1][:, : min(rank, len(singular))].astype(fids.dtype)
    return leading @ (leading.conj().T @ fids), leading.shape[1]


def _squared_norm(operator: LinearOperator, like_this: Array) -> float:
    """Return the largest eigenvalue of A^H A by power iteration from a fixed start."""
    rng = np.random.default_rng(0)
    shape = operator.domain
    x = like((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64), like_this)
    value = 1.0
    for _ in range(6):
        x = x / norm(x)
        x = operator.gram(x)
        value = norm(x)
    # power iteration approaches from below
    return 1.1 * value
