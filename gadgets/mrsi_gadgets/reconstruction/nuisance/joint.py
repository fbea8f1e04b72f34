"""Water, lipids and metabolites of undersampled data at once: what folds onto a voxel is explained where it comes from.

All signal of a voxel is a on the learned rows, a the sum of independent parts (metabolites, water, lipids) with the
learned covariances C_k scaled to their energies in that group of voxels. From samples d = A a + n the linear estimate
of least mean-square error is a^ = argmin |d - A a|^2 / 2 sd^2 + a^H C^-1 a with C the sum of C_k, by conjugate
gradients, and that of one part is C_k C^-1 a^: no part is ever looked for in an aliased image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrsi_gadgets.arrays import Array, like
from mrsi_gadgets.data import KtData
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient

_RTOL, _MAX_ITERATIONS = 1e-3, 80
_LEAST = 1e-12


def parts_of_all_data(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, rows: np.ndarray,
    groups: Sequence[tuple[np.ndarray, np.ndarray]], noise_sd: float,
) -> list[Array]:  # fmt: skip
    """Return the coefficients (x, y, z, row) of each part of the signal.

    Parameters
    ----------
    kt, coil_maps, b0_hz
        Data of any sampling, and what encodes them.
    rows
        (row, t): temporal basis.
    groups
        Voxels (x, y, z) bool, which together are all voxels, and the covariances (part, row, row) of the parts there.
    noise_sd
        SD of the real part of the noise of one readout's sample.
    """
    samples = kt.samples
    scale = float(np.sqrt(np.prod(kt.protocol.geometry.matrix)))
    weights = np.sqrt(kt.count.astype(float))
    operator = encoding_operator(kt, coil_maps, b0_hz, rows, weights=weights)
    masks = [like(where[..., None].astype(np.float32), samples) for where, _ in groups]
    roots, splits = [], []
    for _, parts in groups:
        values, vectors = np.linalg.eigh(parts.sum(axis=0))
        values = np.maximum(values, _LEAST * values.max())
        roots.append((vectors * np.sqrt(values)) @ vectors.conj().T)
        inverse = (vectors / values) @ vectors.conj().T
        splits.append(parts @ inverse)

    def times(matrices: Sequence[np.ndarray], image: Array) -> Array:
        """Multiply each voxel's coefficients by the matrix of its group."""
        pieces = [
            (image @ like(m.T.astype(np.complex64), samples, samples.dtype)) * mask
            for m, mask in zip(matrices, masks, strict=True)
        ]
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total

    root = like(weights.astype(np.float32).reshape(1, weights.shape[0], -1), samples)
    gram = operator.gram

    def normal(u: Array) -> Array:
        return scale**2 * times(roots, gram(times(roots, u))) + 2 * noise_sd**2 * u

    # the roots are Hermitian
    right = scale * times(roots, operator.H(samples * root))
    found = times(roots, conjugate_gradient(normal, right, rtol=_RTOL, max_iterations=_MAX_ITERATIONS).value)
    return [times([split[k] for split in splits], found) for k in range(len(groups[0][1]))]
