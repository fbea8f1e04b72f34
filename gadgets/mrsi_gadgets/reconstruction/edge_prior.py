"""The edge weights of the prior of eq. 7 and their Laplacian L: u^H L u = sum over neighbours w_ij |u_i - u_j|^2.

Weights are small where neighbours are known to differ: across edges of the water image, and across edges that the
scan's own coefficients show above their noise. The second kind keeps lesions that the water image does not know. Both
distances are measured in units of their own median, w = 1 / (1 + d / median d), so that no scale has to be given.
(Anatomical weights: Haldar et al., MRM 2008, doi:10.1002/mrm.21536; re-estimated weights: Perona and Malik 1990,
doi:10.1109/34.56205.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.errors import DataError


@dataclass(frozen=True, eq=False)
class EdgePrior:
    """Weights between neighbouring voxels along x, y and z."""

    weights: tuple[Array, Array, Array]
    """(x - 1, y, z, 1), (x, y - 1, z, 1), (x, y, z - 1, 1): real, between 0 and 1."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        x, y, z = self.weights
        return int(x.shape[0]) + 1, int(y.shape[1]) + 1, int(z.shape[2]) + 1

    @cached_property
    def bound(self) -> float:
        """Upper bound of the eigenvalues of `laplacian` (Gershgorin: twice the largest sum of weights at a voxel)."""
        x = self.weights[0]
        xp = namespace(x)
        degree = like(np.zeros((*self.grid, 1), dtype=np.float32), x)
        for axis, w in enumerate(self.weights):
            if w.shape[axis]:
                degree = degree + _pad(w, axis, before=True) + _pad(w, axis, before=False)
        return 2 * float(xp.max(degree))

    @cached_property
    def matrix(self) -> sparse.dia_array:
        """`laplacian` as a sparse matrix over the voxels of the grid, on the host; its main diagonal comes first.

        One sparse product reads each neighbour once from cache, where the differences above pass over the whole image
        a dozen times: the recursions of `regularisation` take a third of the time.
        """
        grid = self.grid
        degree = np.zeros(grid, dtype=np.float32)
        diagonals, offsets = [degree], [0]
        for axis, w in enumerate(self.weights):
            if not w.shape[axis]:
                continue
            after, before = _part(axis, 1, None)[:3], _part(axis, 0, -1)[:3]
            # a diagonal lies in the columns of its entries
            right, left = np.zeros(grid, dtype=np.float32), np.zeros(grid, dtype=np.float32)
            right[after] = left[before] = -to_numpy(w)[..., 0]
            degree -= right + left
            step = int(np.prod(grid[axis + 1 :]))
            diagonals += [right, left]
            offsets += [step, -step]
        return sparse.dia_array((np.stack(diagonals).reshape(len(offsets), -1), offsets), shape=(degree.size,) * 2)

    def laplacian(self, u: Array) -> Array:
        """Return D^T W D u for u of shape (x, y, z, any), half the gradient of R."""
        result: Array | None = None
        for axis, w in enumerate(self.weights):
            if not w.shape[axis]:
                continue
            flow = (u[_part(axis, 1, None)] - u[_part(axis, 0, -1)]) * w
            if result is None:
                result = namespace(u).zeros_like(u)
            result[_part(axis, 1, None)] += flow
            result[_part(axis, 0, -1)] -= flow
        return namespace(u).zeros_like(u) if result is None else result


def _part(axis: int, start: int, stop: int | None) -> tuple[slice, ...]:
    parts = [slice(None)] * 4
    parts[axis] = slice(start, stop)
    return tuple(parts)


def _pad(w: Array, axis: int, *, before: bool) -> Array:
    xp = namespace(w)
    shape = list(w.shape)
    shape[axis] = 1
    zero = like(np.zeros(shape, dtype=np.float32), w)
    return xp.concat([zero, w] if before else [w, zero], axis=axis)


def edge_prior(mask: np.ndarray, reference: Array, distances: tuple[tuple[Array, ...], ...] = ()) -> EdgePrior:
    """Return weights 1 / (1 + sum of distances over their medians) inside the mask and 0 across its border.

    Parameters
    ----------
    mask
        (x, y, z) bool.
    reference
        Array whose namespace, device and real precision the weights take.
    distances
        Any number of triples of squared differences along x, y, z, as `edge_distances` returns them.

    Raises
    ------
    DataError
        The mask is empty.
    """
    if not mask.any():
        raise DataError("the mask is empty, so there is nothing to regularise; check the water reference or the mask")
    weights = []
    pairs = [mask[_part(a, 1, None)[:3]] & mask[_part(a, 0, -1)[:3]] for a in range(3)]
    penalties = [like(np.ones((*p.shape, 1), dtype=np.float32), reference) for p in pairs]
    for triple in distances:
        scale = _median([d for d, p in zip(triple, pairs, strict=True) if p.any()], [p for p in pairs if p.any()])
        if scale > 0:
            penalties = [p + d / scale for p, d in zip(penalties, triple, strict=True)]
    for pair, penalty in zip(pairs, penalties, strict=True):
        weights.append(like(pair[..., None].astype(np.float32), reference) / penalty)
    return EdgePrior((weights[0], weights[1], weights[2]))


def edge_distances(u: Array, noise_power: Array | float = 0.0) -> tuple[Array, ...]:
    """Return squared differences of neighbours along x, y and z, each (..., 1), summed over components.

    Each component counts in units of its own mean squared difference plus that of its noise (a Mahalanobis distance
    with a diagonal covariance). So a strong nuisance that varies everywhere does not hide the edge of a weak
    metabolite.

    Parameters
    ----------
    u
        (x, y, z, component) real or complex; zero outside the mask.
    noise_power
        Mean squared difference of noise, per component or one number.
    """
    xp = namespace(u)
    squared = []
    for axis in range(3):
        difference = u[_part(axis, 1, None)] - u[_part(axis, 0, -1)]
        squared.append(xp.abs(difference) ** 2)
    total = sum(xp.sum(s, axis=(0, 1, 2)) for s in squared)
    count = max(1, sum(int(np.prod(s.shape[:3])) for s in squared))
    scale = total / count + noise_power
    tiny = float(np.finfo(np.float32).tiny)
    inverse = 1 / (scale + tiny)
    return tuple(xp.sum(s * inverse, axis=-1, keepdims=True) for s in squared)


def _median(distances: list[Array], pairs: list[np.ndarray]) -> float:
    """Median over all neighbours inside the mask."""
    values = [to_numpy(d)[..., 0][p] for d, p in zip(distances, pairs, strict=True)]
    return float(np.median(np.concatenate(values))) if values else 0.0
