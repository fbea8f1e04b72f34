"""Evolution in the B0 field as a short sum: exp(i 2 pi df(r) t) ~ sum_p b_p(r) c_p(t) (eq. 2 of science.md).

`FieldEvolution` holds the spatial factors b and the temporal factors c; what chooses them is a separate function: exact
(one term per time), or the singular vectors of the histogram of df (Fessler et al., IEEE TSP 2005,
doi:10.1109/TSP.2005.853152), which need 6 to 12 terms for an error of 1e-3 over usual fields and readouts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import Identity, LinearOperator, Shape

HISTOGRAM_BINS = 512
_FIRST_DIRECTIONS = 128


@dataclass(frozen=True, eq=False)
class FieldTerms:
    """The factors of the sum."""

    spatial: np.ndarray
    """(x, y, z, p) complex: b_p(r)."""
    temporal: np.ndarray
    """(p, t) complex: c_p(t)."""

    def __post_init__(self) -> None:
        if self.spatial.ndim != 4 or self.temporal.ndim != 2 or self.spatial.shape[-1] != self.temporal.shape[0]:
            raise DataError(
                f"field factors {self.spatial.shape} and {self.temporal.shape} do not fit; give (x, y, z, p) and (p, t)"
            )

    @property
    def n_terms(self) -> int:
        """Number of terms."""
        return int(self.temporal.shape[0])


def exact_terms(b0_hz: np.ndarray, times_s: np.ndarray) -> FieldTerms:
    """Return one term per time: c_p(t) is 1 at its own time and 0 elsewhere."""
    phase = np.exp(2j * np.pi * np.asarray(b0_hz, dtype=float)[..., None] * times_s)
    return FieldTerms(phase, np.eye(len(times_s), dtype=complex))


def histogram_terms(b0_hz: np.ndarray, times_s: np.ndarray, *, tolerance: float = 1e-3) -> FieldTerms:
    """Return as few terms as keep the relative error, root mean square over voxels and times, below `tolerance`.

    The singular value decomposition of exp(i 2 pi f t) over a weighted grid of the occurring frequencies gives the
    temporal factors; each voxel's spatial factors are the projection of its own exact evolution on them.

    Parameters
    ----------
    b0_hz
        (x, y, z) [Hz].
    times_s
        (t,) [s].
    tolerance
        Relative error.

    Raises
    ------
    DataError
        The field is not finite, or the tolerance not positive.
    """
    b0 = np.asarray(b0_hz, dtype=float)
    if not np.all(np.isfinite(b0)):
        raise DataError("the field map holds values that are not numbers; calibrate again")
    if not tolerance > 0:
        raise DataError(f"the tolerance of the field evolution is {tolerance}; it must be positive")
    times = np.asarray(times_s, dtype=float)
    values, counts = _histogram(b0)
    rows = np.sqrt(counts / counts.sum())[:, None] * np.exp(2j * np.pi * values[:, None] * times)
    temporal = _principal_rows(rows, tolerance)
    n_terms = len(temporal)
    spatial = np.empty((*b0.shape, n_terms), dtype=complex)
    flat, out = b0.ravel(), spatial.reshape(-1, n_terms)
    for start in range(0, flat.size, 4096):
        part = slice(start, start + 4096)
        out[part] = np.exp(2j * np.pi * flat[part, None] * times) @ temporal.conj().T
    return FieldTerms(spatial, temporal)


def _principal_rows(rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Return as few right singular vectors (rows) of a matrix (n, t) as leave less than half the tolerance outside.

    They come from the Gram matrix of the shorter side. A large one is searched in a random subspace that grows until
    what it leaves out is known to be small enough (Halko, Martinsson, Tropp, SIAM Rev. 2011, doi:10.1137/090771806):
    some hundred of thousand directions matter here.
    """
    wide = rows.shape[0] < rows.shape[1]
    gram = rows @ rows.conj().T if wide else rows.conj().T @ rows
    total, limit = float(np.trace(gram).real), (0.5 * tolerance) ** 2
    n = len(gram)
    rng = np.random.default_rng(0)
    size = _FIRST_DIRECTIONS
    while True:
        if 2 * size < n:
            start = rng.standard_normal((n, size)) + 1j * rng.standard_normal((n, size))
            inner = np.linalg.qr(gram @ (gram @ start))[0]
            power, turn = np.linalg.eigh(inner.conj().T @ (gram @ inner))
            vectors = inner @ turn
        else:
            power, vectors = np.linalg.eigh(gram)
        power, vectors = np.maximum(power[::-1], 0.0), vectors[:, ::-1]
        outside = max(total - float(power.sum()), 0.0)
        if 2 * size >= n or outside < 0.1 * limit * total:
            break
        size *= 2
    lost = (np.cumsum(power[::-1])[::-1] + outside) / total
    # squares below 1e-14 of the largest are rounding
    kept = max(1, int(np.sum((lost > limit) & (power > 1e-14 * power[0]))))
    if not wide:
        return vectors[:, :kept].conj().T
    return (vectors[:, :kept].conj().T @ rows) / np.sqrt(power[:kept])[:, None]


def _histogram(b0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return occurring frequencies and how many voxels have them (the frequencies themselves where they are few)."""
    values, counts = np.unique(b0, return_counts=True)
    if len(values) <= HISTOGRAM_BINS:
        return values, counts
    counts, edges = np.histogram(b0, bins=HISTOGRAM_BINS)
    sums, _ = np.histogram(b0, bins=edges, weights=b0)
    used = counts > 0
    return sums[used] / counts[used], counts[used]


@dataclass(frozen=True, eq=False)
class FieldEvolution(LinearOperator):
    """Images on a temporal basis, evolving in B0, as images on the evolution's own orthonormal temporal basis.

    rho(r, t) = sum_l x_l(r) v_l(t) exp(i 2 pi df(r) t) is written as sum_k y_k(r) e_k(t), with e an orthonormal basis
    of the span of all products c_p v_l. Then y_k(r) = sum_p b_p(r) sum_l x_l(r) m[p, l, k]: everything after this
    operator (coils, Fourier transform, a mask that is the same for all t) acts on few images y_k, and the last factor,
    e, is an isometry that drops out of A^H A.
    """

    spatial: Array
    """(x, y, z, p): b."""
    mixing: Array
    """(p, l, k): coordinates of c_p v_l on e."""

    @property
    def domain(self) -> Shape:
        """(x, y, z, l)."""
        return (*(int(n) for n in self.spatial.shape[:3]), int(self.mixing.shape[1]))

    @property
    def range(self) -> Shape:
        """(x, y, z, k)."""
        return (*self.domain[:3], int(self.mixing.shape[2]))

    def forward(self, x: Array) -> Array:
        """Evolve."""
        xp = namespace(x)
        # one matrix of voxels: with short z axes a product per (x, y) would be many tiny ones
        flat, spatial = self._flat(x)
        total = spatial[:, 0, None] * (flat @ self.mixing[0, ...])
        for p in range(1, self.mixing.shape[0]):
            part = flat @ self.mixing[p, ...]
            part *= spatial[:, p, None]
            total += part
        return xp.reshape(total, self.range)

    def adjoint(self, y: Array) -> Array:
        """Demodulate and project on the temporal basis."""
        xp = namespace(y)
        flat, spatial = self._flat(y)
        spatial = xp.conj(spatial)
        total = (spatial[:, 0, None] * flat) @ xp.conj(self.mixing[0, ...].T)
        for p in range(1, self.mixing.shape[0]):
            total += (spatial[:, p, None] * flat) @ xp.conj(self.mixing[p, ...].T)
        return xp.reshape(total, self.domain)

    def _flat(self, x: Array) -> tuple[Array, Array]:
        """Return images and spatial factors with one axis of voxels."""
        xp = namespace(x)
        return xp.reshape(x, (-1, x.shape[-1])), xp.reshape(self.spatial, (-1, self.spatial.shape[-1]))


def field_evolution(
    terms: FieldTerms, basis: np.ndarray, reference: Array, *, tolerance: float = 1e-3
) -> tuple[FieldEvolution, np.ndarray]:
    """Return the evolution operator of coefficient images, and the temporal basis e, (k, t), it leads to.

    Parameters
    ----------
    terms
        Factors of the field evolution.
    basis
        (l, t) temporal basis v.
    reference
        Array whose namespace, device and precision the operator's arrays take.
    tolerance
        Relative error allowed by leaving out weak directions of the span.
    """
    products = (terms.temporal[:, None, :] * basis[None, :, :]).reshape(-1, basis.shape[1])
    # products are weighted by how strongly their spatial factor occurs, so that what no voxel needs is left out
    strength = np.sqrt(np.mean(np.abs(terms.spatial) ** 2, axis=(0, 1, 2)))
    weights = np.repeat(strength, basis.shape[0])
    directions = _principal_rows(weights[:, None] * products, tolerance)
    # rounding leaves the weakest of them not quite orthogonal: once more
    directions = np.linalg.qr(directions.conj().T)[0].conj().T
    mixing = (products @ directions.conj().T).reshape(terms.n_terms, basis.shape[0], len(directions))
    dtype = reference.dtype
    return FieldEvolution(like(terms.spatial, reference, dtype), like(mixing, reference, dtype)), directions


def at_other_times(
    terms: FieldTerms, evolution: FieldEvolution, b0_hz: np.ndarray, times_s: np.ndarray, other_times_s: np.ndarray,
    other_basis: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the temporal basis e of an evolution, (k, t), at other times than those it was made for.

    Spatial factors and mixing do not depend on time; the temporal functions that go with them follow by least squares.

    Parameters
    ----------
    terms, evolution
        As `histogram_terms` and `field_evolution` made them.
    b0_hz
        (x, y, z) [Hz].
    times_s
        (t,) [s] they were made for.
    other_times_s
        (t',) [s].
    other_basis
        (l, t') the temporal basis v at those times.
    """
    values, counts = _histogram(np.asarray(b0_hz, dtype=float))
    weights = np.sqrt(counts)[:, None]
    spatial = np.exp(2j * np.pi * values[:, None] * times_s) @ terms.temporal.conj().T
    exact = np.exp(2j * np.pi * values[:, None] * other_times_s)
    temporal = np.linalg.lstsq(weights * spatial, weights * exact, rcond=1e-9)[0]
    strength = np.sqrt(np.mean(np.abs(terms.spatial) ** 2, axis=(0, 1, 2)))
    mixing = to_numpy(evolution.mixing).astype(np.complex128)
    weighted = (strength[:, None, None] * mixing).reshape(-1, mixing.shape[-1])
    normal = weighted.conj().T @ weighted
    # products c_p v_l are taken term by term: all of them at all times would be the largest array of all
    right = np.zeros((mixing.shape[-1], len(other_times_s)), dtype=np.complex128)
    for p in range(terms.n_terms):
        right += (strength[p] ** 2 * mixing[p].conj().T) @ (temporal[p] * other_basis)
    return np.linalg.solve(normal, right)


@dataclass(frozen=True, eq=False)
class FieldPhase(LinearOperator):
    """FIDs multiplied by exp(i 2 pi df(r) t), exactly; unitary."""

    phase: Array
    """(x, y, z, t) complex of modulus 1."""

    @property
    def domain(self) -> Shape:
        """(x, y, z, t)."""
        return tuple(int(n) for n in self.phase.shape)

    @property
    def range(self) -> Shape:
        """(x, y, z, t)."""
        return self.domain

    def forward(self, x: Array) -> Array:
        """Evolve."""
        return x * self.phase

    def adjoint(self, y: Array) -> Array:
        """Demodulate."""
        return y * namespace(y).conj(self.phase)

    @property
    def gram(self) -> LinearOperator:
        """The identity."""
        return Identity(self.domain)
