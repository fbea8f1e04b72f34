"""Low-rank filtering of a Fourier reconstruction: the comparison method of science.md (after eq. 7).

The B0-corrected Casorati matrix (voxels, times) of a spatiospectral image has low rank (eq. 6). Its singular value
decomposition is cut where the noise begins. Nguyen et al., IEEE TBME 2013, doi:10.1109/TBME.2012.2223466.
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.reconstruction.basis_adaptation import time_gram
from mrsi_gadgets.reconstruction.fourier import Progress, reconstruct_fourier


def noise_threshold(n_rows: int, n_columns: int, noise_sd: float) -> float:
    """Return the singular value below which a component of a noisy matrix is better left out.

    The optimal hard threshold for known noise, lambda(beta) sqrt(larger side) sigma, of Gavish and Donoho, IEEE Trans.
    Inf. Theory 2014, doi:10.1109/TIT.2014.2323359. It lies a little above the edge of the noise's own singular values.

    Parameters
    ----------
    n_rows, n_columns
        Sides of the matrix.
    noise_sd
        SD of the real part of the complex noise in one element.
    """
    beta = min(n_rows, n_columns) / max(n_rows, n_columns)
    factor = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    return float(factor * np.sqrt(max(n_rows, n_columns)) * np.sqrt(2) * noise_sd)


def principal_fids(fids: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values (descending) and right singular vectors, (t, t) rows, of FIDs (voxel, t).

    They come from the (t, t) Gram matrix in double precision: one product over all voxels, and singular values down to
    1e-7 of the largest are still right.
    """
    power, vectors = np.linalg.eigh(time_gram(to_numpy(fids).astype(np.complex128)).conj())
    return np.sqrt(np.maximum(power[::-1], 0)), vectors[:, ::-1].conj().T


def reconstruct_low_rank(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    rank: int | None = None,
    progress: Progress | None = None,
) -> SpectralImage:
    """Reconstruct by Fourier transform and a truncated singular value decomposition over the mask.

    Parameters
    ----------
    kt, coil_maps, b0_hz, mask, noise_sd
        As for `reconstruct_fourier`.
    rank
        Number of components; chosen from the noise level where None.
    progress
        Called with the share that is done.

    Returns
    -------
    SpectralImage
        Coefficients on the leading right singular vectors (orthonormal rows).

    Raises
    ------
    DataError
        Calibration and data do not fit each other, or the data are not on a grid.
    """
    fourier = reconstruct_fourier(kt, coil_maps, b0_hz, mask, noise_sd, progress=progress)
    rho = fourier.coefficients
    inside = fourier.mask if fourier.mask.any() else np.ones_like(fourier.mask)
    xp = namespace(rho)
    voxels = np.flatnonzero(inside.ravel())
    flat = xp.reshape(rho, (-1, rho.shape[-1]))
    selected = xp.take(flat, like(voxels, rho), axis=0)
    singular, vectors = principal_fids(selected)
    typical = float(np.sqrt(np.mean(fourier.noise_sd[inside] ** 2)))
    threshold = noise_threshold(len(voxels), rho.shape[-1], typical)
    kept = rank if rank is not None else max(1, int(np.sum(singular > threshold)))
    basis = vectors[: min(kept, vectors.shape[0])].astype(np.complex64)
    projection = like(np.ascontiguousarray(basis.conj().T), rho, rho.dtype)
    provenance = {
        "method": "low_rank",
        "rank": len(basis),
        "rank_from": "given" if rank is not None else "noise level (optimal hard threshold)",
    } | {key: value for key, value in fourier.provenance.items() if key != "method"}
    return SpectralImage(
        coefficients=rho @ projection,
        basis=like(basis, rho, rho.dtype),
        protocol=fourier.protocol,
        mask=fourier.mask,
        b0_hz=fourier.b0_hz,
        noise_sd=fourier.noise_sd,
        frame=fourier.frame,
        provenance=provenance,
    )
