"""How strong a spatial prior should be, and what noise it leaves, from the noise alone.

The step v = f(u) of any prior has the estimated squared error (Stein 1981, doi:10.1214/aos/1176345632)

    SURE = ||f(u) - u||^2 - n s^2 + s^2 div f,   s^2 = E|noise|^2,

div f the mean derivative of real and imaginary parts to themselves. A random direction b of signs gives it from one
more step, <b, f(u + e b) - f(u)> / e (Ramani, Blu and Unser 2008, doi:10.1109/TIP.2008.2001404). Both steps are taken
at once, with as many iterations for one as for the other, so that the estimate is right for an iteration that has not
quite settled as well (Deledalle et al. 2014, doi:10.1137/140968045).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.reconstruction.regularisation import MIXTURES
from mrsi_gadgets.reconstruction.spatial_priors import SpatialPrior

_STEP = 0.1
"""Length of the finite difference in noise SDs: far above rounding, and small against the noise that is there."""
_SURELY_WORSE = 4.0
"""Standard errors by which the risk of a component is above its smallest when larger weights are no longer tried."""
_AT_ONCE = 4
"""Probes that share one step, and with it the step without a probe."""


@dataclass(frozen=True, eq=False)
class Regularised:
    """Components after the step of a prior."""

    value: Array
    """(x, y, z, component)."""
    weights: np.ndarray
    """(component,) as chosen."""
    errors: np.ndarray
    """(x, y, z, component) SD of the error in units of the noise's: noise that is left and, in quadrature, lost signal
    (one number for each component); 1 outside of the mask."""


def regularise(
    u: Array, leading: int, noise_power: float, prior: SpatialPrior, mask: np.ndarray, rng: np.random.Generator
) -> Regularised:
    """Take the step of a prior with weights from the noise.

    Parameters
    ----------
    u
        (x, y, z, component) complex with white noise of equal power in all components.
    leading
        The components that stand out of the noise come first; each of them gets its own weight, all others share one.
    noise_power, prior, mask, rng
        As for `choose_prox_weights`.
    """
    first, rest = u[..., :leading], u[..., leading:]
    groups = [(first, choose_prox_weights(first, noise_power, prior, mask, rng))]
    n_rest = int(rest.shape[-1])
    if n_rest:
        mixed = mixtures(rest, rng)
        groups.append((mixed, pooled_weights(mixed, noise_power, prior, mask, rng)))
    errors = []
    for image, weights in groups:
        left = left_noise(image, prior, weights, noise_power, mask, rng)
        risk = prox_risk(image, noise_power, prior, weights, mask, rng)
        lost = np.maximum(risk / noise_power - np.mean(left[mask] ** 2, axis=0), 0.0)
        errors.append(left**2 + np.where(mask[..., None], lost, 0.0))
    weights = groups[0][1]
    if n_rest:
        weights = np.concatenate([weights, np.full(n_rest, groups[1][1][0])])
        errors[1] = np.repeat(errors[1].mean(axis=-1, keepdims=True), n_rest, axis=-1)
    sd = np.sqrt(np.concatenate(errors, axis=-1)).astype(np.float32)
    return Regularised(prior.prox(u, weights), weights, sd)


def choose_prox_weights(
    u: Array, noise_power: float, prior: SpatialPrior, mask: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return for each component the candidate weight of the smallest estimated error, (component,).

    Parameters
    ----------
    u
        (x, y, z, component) complex with white noise of equal power in all components.
    noise_power
        E|noise|^2 of a coefficient.
    prior
        The prior.
    mask
        (x, y, z) bool: where the error counts.
    rng
        Draws the random directions; all candidates meet the same ones.
    """
    candidates, risks = _risks(u, noise_power, prior, mask, rng)
    return np.asarray(candidates[np.argmin(risks, axis=0)])


def pooled_weights(
    u: Array, noise_power: float, prior: SpatialPrior, mask: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return one weight for all components, (component,): the least one of smallest mean error within its scatter.

    For components that hold no more than noise, whose own estimates are mostly noise themselves. From some weight on
    nearly nothing is left of them, and more would only take longer and hide what they hold after all. Parameters as for
    `choose_prox_weights`.
    """
    candidates, risks = _risks(u, noise_power, prior, mask, rng, drop=False)
    mean = risks.mean(axis=1)
    scatter = noise_power / np.sqrt(max(int(mask.sum()), 1) * int(u.shape[-1]))
    return np.full(u.shape[-1], candidates[np.argmax(mean <= mean.min() + scatter)])


def mixtures(u: Array, rng: np.random.Generator) -> Array:
    """Return a few mixtures, of random signs, that stand for many components of noise; u itself where they are few."""
    n = int(u.shape[-1])
    if n <= MIXTURES:
        return u
    signs = (rng.integers(0, 2, (n, MIXTURES)) * 2 - 1) / np.sqrt(n)
    return u @ like(signs.astype(np.float32), u, u.dtype)


def _risks(
    u: Array, noise_power: float, prior: SpatialPrior, mask: np.ndarray, rng: np.random.Generator, *, drop: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates and their risks, (candidate, component); infinite where a component was dropped."""
    candidates = prior.candidates(float(np.sqrt(noise_power / 2)))
    direction = _directions(u, mask, rng)
    risks = np.full((len(candidates), u.shape[-1]), np.inf)
    limit = _SURELY_WORSE * noise_power / np.sqrt(max(int(mask.sum()), 1))
    for i, weight in enumerate(candidates):
        worse = risks[i - 1] > risks.min(axis=0) + limit if i and drop else np.zeros(u.shape[-1], dtype=bool)
        going = np.flatnonzero(~worse & (np.isfinite(risks[i - 1]) | (i == 0)))
        if not len(going):
            break
        image, way = (_components(x, going) for x in (u, direction))
        risks[i, going] = _risk(image, way, noise_power, prior, np.full(len(going), weight), mask)
    return candidates, risks


def _components(u: Array, index: np.ndarray) -> Array:
    return u if len(index) == u.shape[-1] else namespace(u).take(u, like(index, u), axis=-1)


def prox_risk(
    u: Array, noise_power: float, prior: SpatialPrior, weights: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the estimated squared error of the step, mean over the voxels of the mask, (component,).

    Parameters
    ----------
    u, noise_power, prior, mask, rng
        As for `choose_prox_weights`.
    weights
        (component,).
    """
    return _risk(u, _directions(u, mask, rng), noise_power, prior, weights, mask)


def _risk(
    u: Array, direction: Array, noise_power: float, prior: SpatialPrior, weights: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    step = _STEP * float(np.sqrt(noise_power / 2))
    value, (moved,) = _steps(u, [u + step * direction], prior, weights)
    change = to_numpy(value - u)[mask]
    slope = np.conj(to_numpy(direction))[mask] * to_numpy(moved - value)[mask]
    lost = np.mean(np.abs(change) ** 2, axis=0, dtype=float)
    return np.asarray(lost + noise_power * (np.mean(slope.real, axis=0, dtype=float) / step - 1))


def left_noise(
    u: Array,
    prior: SpatialPrior,
    weights: np.ndarray,
    noise_power: float,
    mask: np.ndarray,
    rng: np.random.Generator,
    probes: int = 16,
) -> np.ndarray:
    """Return by which factor the step lowers the SD of the noise, (x, y, z, component); 1 outside of the mask.

    The step is followed in random directions around u: the mean square of its change is the sum over voxels of its
    squared derivatives. 16 probes leave a scatter of about 12 %.
    """
    step = _STEP * float(np.sqrt(noise_power / 2))
    power = np.zeros(u.shape)
    for start in range(0, probes, _AT_ONCE):
        moved = [u + step * _directions(u, mask, rng) for _ in range(min(_AT_ONCE, probes - start))]
        value, found = _steps(u, moved, prior, weights)
        power += sum(np.abs(to_numpy(after - value)) ** 2 for after in found)
    factor = np.sqrt(power / (2 * probes)) / step
    return np.where(mask[..., None], factor, 1.0).astype(np.float32)


def _steps(u: Array, moved: list[Array], prior: SpatialPrior, weights: np.ndarray) -> tuple[Array, list[Array]]:
    """Return the steps from u and from the others, taken as one image of several times the components."""
    n = int(u.shape[-1])
    count = 1 + len(moved)
    v = prior.prox(namespace(u).concat([u, *moved], axis=-1), np.tile(weights, count))
    images = [v[..., i * n : (i + 1) * n] for i in range(count)]
    return images[0], images[1:]


def _directions(u: Array, mask: np.ndarray, rng: np.random.Generator) -> Array:
    """Return random signs for real and imaginary parts inside the mask."""
    signs = rng.integers(0, 2, (2, *u.shape)).astype(np.float32) * 2 - 1
    return like(((signs[0] + 1j * signs[1]) * mask[..., None]).astype(np.complex64), u, u.dtype)
