"""How strongly to regularise: the weight of each component from the noise, by Stein's unbiased risk estimate (SURE).

The smoother of one component is h(L) = (I + lambda L^2)^-1, L the Laplacian of the edge prior: the penalty is
||L u||^2, the squared curvature along unbroken tissue. It leaves alone what varies over several voxels and cuts what
varies from voxel to voxel; the first-order penalty u^H L u takes a share of both, and lesions then keep less of their
contrast at the same noise. For noise of known power the mean squared error is estimated without the truth (Stein 1981,
doi:10.1214/aos/1176345632):

    SURE(lambda) = ||z - h z||^2 - n s^2 + 2 s^2 trace h,   s^2 = E|noise|^2.

Both terms are polynomial moments: z^H p(L) z and trace p(L). A Chebyshev recursion gives all moments at once, so every
lambda costs a few multiplications, and one more recursion applies each component's own smoother. The trace and the
smoother's noise are estimated with random signs (Hutchinson 1990, doi:10.1080/03610919008812866).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import sparse

from mrsi_gadgets.arrays import Array, is_numpy, like, namespace, to_numpy
from mrsi_gadgets.reconstruction.edge_prior import EdgePrior

WEIGHTS = np.concatenate([[0.0], np.geomspace(0.005, 20.0, 21)])
"""The lambdas that are tried: 0 leaves the data as they are, the largest averages over some 300 voxels of a plane. The
range bounds the search; SURE chooses within it."""
MOMENT_DEGREE = 20
"""Applications of the Laplacian for the moments (twice as many moments come out)."""
FILTER_ERROR = 3e-3
"""Largest error of the polynomial that applies a smoother; those of weaker weights are met far better."""
PROBES = 32
MIXTURES = 8
"""Random mixtures that stand for all components without signal."""


@dataclass(frozen=True, eq=False)
class WeightChoice:
    """The weights SURE chose."""

    index: np.ndarray
    """(component,) index into `WEIGHTS`."""
    risk: np.ndarray
    """(component,) estimated squared error |u - truth|^2, mean over the voxels."""
    noise: np.ndarray
    """(component,) the part of it that is noise: noise power times the mean of the smoother's squared rows."""

    def with_more(self, other: WeightChoice) -> WeightChoice:
        """Return the choice for these components and then for those of `other`."""
        pairs = ((self.index, other.index), (self.risk, other.risk), (self.noise, other.noise))
        return WeightChoice(*(np.concatenate(pair) for pair in pairs))

    def weaker(self, steps: int) -> WeightChoice:
        """Return the choice of weights so many places lower in `WEIGHTS` (1.5 times smaller each)."""
        return replace(self, index=np.maximum(self.index - steps, np.minimum(self.index, 1)))

    @property
    def bias_power(self) -> np.ndarray:
        """(component,) the part that is lost signal, not negative."""
        return np.maximum(self.risk - self.noise, 0.0)

    @property
    def weights(self) -> np.ndarray:
        """(component,) lambda."""
        return WEIGHTS[self.index]


def response(x: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Return what the smoother of this weight leaves of an eigenvector of L with eigenvalue `x`."""
    return np.asarray(1 / (1 + weight * x**2))


def as_real(u: Array) -> Array:
    """Return real and imaginary parts side by side on the last axis: a real smoother treats both alike."""
    xp = namespace(u)
    return xp.concat([xp.real(u), xp.imag(u)], axis=-1)


def as_complex(u: Array) -> Array:
    """Undo `as_real`."""
    half = u.shape[-1] // 2
    return u[..., :half] + 1j * u[..., half:]


def choose_weights(
    z: Array, noise_power: float, prior: EdgePrior, mask: np.ndarray, rng: np.random.Generator
) -> WeightChoice:
    """Return for each component the smallest lambda whose SURE is the smallest within its own standard error.

    The estimate itself is uncertain by the scatter of ||noise||^2, s^2 sqrt(n) over n voxels. Among lambdas it cannot
    tell apart, the one that takes least from the data is right (the one-standard-error rule of Breiman et al.,
    Classification and Regression Trees, 1984): smoothing too much hides lesions, smoothing too little shows noise.

    Parameters
    ----------
    z
        (x, y, z, component) complex, zero outside the mask; white noise of equal power in all components.
    noise_power
        E|noise|^2 of a coefficient.
    prior
        The edges.
    mask
        (x, y, z) bool.
    rng
        Draws the random signs.
    """
    risk, of_trace = _risks(z, noise_power, prior, mask, rng)
    index = np.argmax(risk <= risk.min(axis=0) + noise_power * np.sqrt(mask.sum()), axis=0)
    return _choice(index, risk[index, np.arange(len(index))], noise_power, of_trace, prior, mask)


def choose_pooled_weight(
    z: Array, noise_power: float, prior: EdgePrior, mask: np.ndarray, rng: np.random.Generator
) -> WeightChoice:
    """Return one lambda for components that hold no more than noise, chosen by their mean risk.

    The risk estimate of one of them alone is itself mostly noise. Their sum is estimated from a few mixtures with
    random signs, whose moments are those of the sum on average.

    Parameters
    ----------
    z, noise_power, prior, mask, rng
        As for `choose_weights`.
    """
    n = int(z.shape[-1])
    mixtures = z
    if n > MIXTURES:
        signs = (rng.integers(0, 2, (n, MIXTURES)) * 2 - 1) / np.sqrt(n)
        mixtures = z @ like(signs.astype(np.float32), z, z.dtype)
    risk, of_trace = _risks(mixtures, noise_power, prior, mask, rng)
    pooled = risk.mean(axis=1)
    index = np.full(n, int(np.argmin(pooled)))
    return _choice(index, np.full(n, pooled.min()), noise_power, of_trace, prior, mask)


def _risks(
    z: Array, noise_power: float, prior: EdgePrior, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return SURE (weight, component), summed over the voxels, and the moments of the trace."""
    n_components = int(z.shape[-1])
    columns = namespace(z).concat([as_real(z), _signs(mask, z, 16, rng)], axis=-1)
    moments = chebyshev_moments(columns, prior)
    of_data = moments[:, :n_components] + moments[:, n_components : 2 * n_components]
    of_trace = moments[:, 2 * n_components :].mean(axis=1)
    n_voxels = int(mask.sum())
    lost, error = _polynomials(lambda x, w: (1 - response(x, w)) ** 2, WEIGHTS, prior.bound, len(moments))
    kept, _ = _polynomials(response, WEIGHTS, prior.bound, len(moments))
    risk = lost.T @ of_data - n_voxels * noise_power + 2 * noise_power * (of_trace @ kept)[:, None]
    # strong components allow only weights whose polynomial is exact to well below their noise
    risk[error[:, None] * of_data[0] > 0.02 * n_voxels * noise_power] = np.inf
    return risk, of_trace


def _choice(
    index: np.ndarray, risk: np.ndarray, noise_power: float, of_trace: np.ndarray, prior: EdgePrior, mask: np.ndarray
) -> WeightChoice:
    squared, _ = _polynomials(lambda x, w: response(x, w) ** 2, WEIGHTS, prior.bound, len(of_trace))
    n_voxels = int(mask.sum())
    return WeightChoice(index, risk / n_voxels, noise_power * (of_trace @ squared)[index] / n_voxels)


def smooth(z: Array, prior: EdgePrior, choice: WeightChoice) -> Array:
    """Return (I + lambda_l L^2)^-1 z_l for each component l.

    Components are done in two groups, since the strongest weight in a group decides its number of steps.
    """
    xp = namespace(z)
    strong = int(np.sum(np.logical_and.accumulate(choice.weights < np.max(choice.weights))))
    groups = [slice(0, strong), slice(strong, z.shape[-1])]
    done = [_smooth_group(z[..., g], prior, choice.index[g]) for g in groups if g.stop > g.start]
    return done[0] if len(done) == 1 else xp.concat(done, axis=-1)


def _smooth_group(z: Array, prior: EdgePrior, index: np.ndarray) -> Array:
    coefficients = _filter_coefficients(prior.bound, WEIGHTS[index])
    columns = as_real(z)
    gains = like(np.concatenate([coefficients, coefficients], axis=1).astype(np.float32), columns)
    total = namespace(columns).zeros_like(columns)
    for degree, term in enumerate(_chebyshev(columns, prior, len(coefficients) - 1)):
        total += term * gains[degree, :]
    return as_complex(total)


def smoothed_noise(
    prior: EdgePrior, choice: WeightChoice, mask: np.ndarray, reference: Array, rng: np.random.Generator
) -> np.ndarray:
    """Return by which factor each smoother lowers the noise's SD, (x, y, z, component): the root of sum_m h_nm^2.

    The expectation over random signs p of (h p)_n^2 is exactly that sum; 32 probes leave a scatter of about 12 %.
    """
    used = np.unique(choice.index)
    coefficients = _filter_coefficients(prior.bound, WEIGHTS[used])
    signs = _signs(mask, reference, PROBES, rng)
    xp = namespace(signs)
    terms = xp.stack(list(_chebyshev(signs, prior, len(coefficients) - 1)))
    # every weight's smoother at once: (weight, degree) times (degree, voxel and probe)
    smoothed = like(coefficients.T.astype(np.float32), terms) @ xp.reshape(terms, (len(coefficients), -1))
    power = np.mean(to_numpy(smoothed).reshape(len(used), *mask.shape, -1) ** 2, axis=-1)
    gains = np.moveaxis(np.sqrt(power), 0, -1)
    gains[~mask] = 1.0
    return gains[..., np.searchsorted(used, choice.index)].astype(np.float32)


def chebyshev_moments(columns: Array, prior: EdgePrior) -> np.ndarray:
    """Return u^T T_k(L') u for k = 0 .. 2 MOMENT_DEGREE and every column u, (moment, column) float64.

    L' is the Laplacian mapped to [-1, 1]. T_2k = 2 T_k T_k - 1 and T_2k+1 = 2 T_k+1 T_k - T_1 give two moments per
    step.
    """
    moments = np.empty((2 * MOMENT_DEGREE + 1, columns.shape[-1]))
    previous: Array | None = None
    for k, term in enumerate(_chebyshev(columns, prior, MOMENT_DEGREE)):
        even = _dots(term, term)
        if previous is None:
            moments[0] = even
        else:
            odd = _dots(term, previous)
            moments[2 * k - 1] = odd if k == 1 else 2 * odd - moments[1]
            moments[2 * k] = 2 * even - moments[0]
        previous = term
    return moments


def _dots(a: Array, b: Array) -> np.ndarray:
    """Return the sum of a * b over the grid for each column, in float64 (on the host within rows of y and z only)."""
    if is_numpy(a):
        return np.asarray(np.sum(np.einsum("xyzc,xyzc->xc", a, b), axis=0, dtype=np.float64))
    xp = namespace(a)
    return to_numpy(xp.sum(a * b, axis=(0, 1, 2), dtype=xp.float64))


def _chebyshev(columns: Array, prior: EdgePrior, degree: int) -> Iterator[Array]:
    """Yield T_k(L') u for k = 0 .. degree, L' = 2 L / bound - 1."""
    scale = 2 / max(prior.bound, 1e-12)
    if is_numpy(columns):
        yield from _chebyshev_sparse(columns, prior, degree, scale)
        return
    older, old = columns, scale * prior.laplacian(columns) - columns
    yield older
    yield old
    for _ in range(2, degree + 1):
        new = prior.laplacian(old)
        new *= 2 * scale
        new -= 2 * old
        new -= older
        older, old = old, new
        yield new


def _chebyshev_sparse(columns: np.ndarray, prior: EdgePrior, degree: int, scale: float) -> Iterator[np.ndarray]:
    """`_chebyshev` with one sparse product a step."""
    shape = columns.shape
    older = columns.reshape(-1, shape[-1])
    diagonals = (2 * scale * prior.matrix.data).astype(columns.dtype)
    diagonals[0] -= 2
    double = sparse.dia_array((diagonals, prior.matrix.offsets), shape=prior.matrix.shape)
    old = 0.5 * (double @ older)
    yield columns
    yield old.reshape(shape)
    for _ in range(2, degree + 1):
        new = double @ old
        new -= older
        older, old = old, new
        yield new.reshape(shape)


def _polynomials(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], weights: np.ndarray, bound: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return Chebyshev coefficients (count, weight) of function(x, weight) on [0, bound], and each largest error."""
    terms = _chebyshev_table(count)
    n = terms.shape[1]
    place = 0.5 * bound * (terms[1] + 1)
    values = function(place[:, None], weights[None, :])
    result = 2 / n * (terms @ values)
    result[0] *= 0.5
    return result, np.max(np.abs(terms.T @ result - values), axis=0)


@cache
def _chebyshev_table(count: int) -> np.ndarray:
    """Return T_k, k below `count` (at least 2), at the Chebyshev nodes of [-1, 1], (k, node)."""
    n = max(4 * count, 128)
    return np.asarray(np.cos(np.arange(count)[:, None] * np.pi * (np.arange(n) + 0.5) / n))


def _filter_coefficients(bound: float, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients of smoothers `response` on [0, bound], (degree + 1, weight).

    The poles at +-i / sqrt(lambda) set how fast they fall (Bernstein ellipse), and so the degree that `FILTER_ERROR`
    needs.
    """
    pole = -1 + 2j / max(np.sqrt(float(np.max(weights))) * bound, 1e-9)
    root = np.sqrt(pole**2 - 1)
    ratio = max(abs(pole + root), abs(pole - root))
    degree = int(np.clip(np.ceil(np.log(1 / FILTER_ERROR) / np.log(ratio)), 8, 60))
    return _polynomials(response, weights, bound, degree + 1)[0]


def _signs(mask: np.ndarray, reference: Array, count: int, rng: np.random.Generator) -> Array:
    signs = rng.integers(0, 2, (*mask.shape, count)).astype(np.float32) * 2 - 1
    return like(signs * mask[..., None], reference, "float32")
