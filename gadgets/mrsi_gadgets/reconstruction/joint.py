"""Joint update of spatial coefficients and temporal basis (a variant of eq. 7 named by the review), for comparison.

    argmin_{U, V} || d - Omega{F B (U V)} ||^2,  V with as many rows as the noise level supports

by alternating least squares: U for given V through the encoding operator on V's coefficients, V for given U through the
operator on FIDs. The start is the low-rank approximation of the Fourier image. On complete (gridded) data that start is
the minimum already; where data are missing, the alternation fits what was really measured
(Haldar and Liang, IEEE ISBI 2010, doi:10.1109/ISBI.2010.5490156, for the idea of a fixed rank).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, norm, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.fourier import Progress
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient

ALTERNATIONS = 4
_U_ITERATIONS, _V_ITERATIONS = 8, 6


def reconstruct_joint(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    rank: int | None = None,
    alternations: int = ALTERNATIONS,
    progress: Progress | None = None,
) -> SpectralImage:
    """Reconstruct a low-rank spatiospectral image by alternating updates of U and V.

    Parameters
    ----------
    kt, coil_maps, b0_hz, mask, noise_sd
        As for `reconstruct_fourier`.
    rank
        Number of rows of V; chosen from the noise level where None.
    alternations
        How often U and V are updated (each by a few conjugate gradients: going on only fits noise).
    progress
        Called with the share that is done.

    Returns
    -------
    SpectralImage
        Coefficients on orthonormal rows.

    Raises
    ------
    ConfigError
        The number of alternations is negative.
    DataError
        Calibration and data do not fit each other.
    """
    if alternations < 0:
        raise ConfigError(f"alternations is {alternations}; it must be at least 0")
    start = reconstruct_low_rank(kt, coil_maps, b0_hz, mask, noise_sd, rank=rank, progress=progress)
    provenance: dict[str, Any] = dict(start.provenance) | {"method": "joint"}
    if kt.fully_sampled:
        return replace(start, provenance=provenance | {"alternations": 0})
    weights = np.sqrt(kt.count.astype(float))
    spread = like((weights[None, :, None] if weights.ndim == 1 else weights[None]).astype(np.float32), kt.samples)
    data = kt.samples * spread
    on_fids = encoding_operator(kt, coil_maps, b0_hz, weights=weights)
    scale = float(np.sqrt(start.mask.size))
    assert start.basis is not None
    u, v = start.coefficients * scale, start.basis
    residuals = []
    for alternation in range(alternations):
        on_u = encoding_operator(kt, coil_maps, b0_hz, to_numpy(v), weights=weights)
        u = conjugate_gradient(on_u.gram, on_u.H(data), x0=u, max_iterations=_U_ITERATIONS, rtol=1e-4).value
        v = _updated_rows(on_fids, data, u, v)
        u, v = _orthonormal(u, v)
        rest = data - on_fids(u @ v)
        residuals.append(round(norm(rest) / norm(data), 6))
        if progress is not None:
            progress((alternation + 1) / alternations, "joint update of coefficients and basis")
    provenance |= {"alternations": alternations, "relative_residuals": residuals}
    return replace(start, coefficients=u / scale, basis=v, provenance=provenance)


def _updated_rows(on_fids: Any, data: Array, u: Array, v: Array) -> Array:
    """Return the rows V that fit the data best for given U: (U^H A^H A U) V = U^H A^H d."""
    xp = namespace(u)
    flat = xp.reshape(u, (-1, u.shape[-1]))
    adjoint = xp.conj(flat.T)

    def normal(rows: Array) -> Array:
        image = xp.reshape(flat @ rows, on_fids.domain)
        return adjoint @ xp.reshape(on_fids.gram(image), (flat.shape[0], rows.shape[-1]))

    rhs = adjoint @ xp.reshape(on_fids.H(data), (flat.shape[0], v.shape[-1]))
    # coefficients of very different energy: equal them out first
    power = to_numpy(xp.sum(xp.real(flat) ** 2 + xp.imag(flat) ** 2, axis=0))
    even = like((1 / np.maximum(power, 1e-12 * power.max()))[:, None].astype(np.float32), v)
    return conjugate_gradient(
        normal, rhs, x0=v, precondition=lambda r: r * even, max_iterations=_V_ITERATIONS, rtol=1e-4
    ).value


def _orthonormal(u: Array, v: Array) -> tuple[Array, Array]:
    """Return the same product with orthonormal rows, components by falling energy."""
    flat = to_numpy(u).reshape(-1, u.shape[-1]).astype(np.complex128)
    q, r = np.linalg.qr(to_numpy(v).astype(np.complex128).conj().T)
    mixed = flat @ r.conj().T
    power, vectors = np.linalg.eigh(mixed.conj().T @ mixed)
    turn = vectors[:, np.argsort(power)[::-1]]
    rows = turn.conj().T @ q.conj().T
    coefficients = (mixed @ turn).reshape(u.shape)
    return like(coefficients.astype(np.complex64), u, u.dtype), like(rows.astype(np.complex64), v, v.dtype)
