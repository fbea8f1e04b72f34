"""The step of a spatial prior on the coefficient images of a scan, its weights found from the scan's own noise.

Priors work on components: coefficients in units of their noise, rotated to the principal axes of the scan (noise stays
white, signal gathers in few of them), inside the bounding box of the mask. Components that stand out of the noise come
first and have weights of their own; the others share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.reconstruction.basis_adaptation import principal_rotation
from mrsi_gadgets.reconstruction.edge_prior import EdgePrior, edge_distances, edge_prior
from mrsi_gadgets.reconstruction.prior_weights import regularise
from mrsi_gadgets.reconstruction.regularisation import (
    WeightChoice,
    choose_pooled_weight,
    choose_weights,
    smooth,
    smoothed_noise,
)
from mrsi_gadgets.reconstruction.spatial_priors import TotalVariation
from mrsi_gadgets.reconstruction.wavelet_prior import wavelet_prior

PRIORS = ("edges", "tv", "wavelet", "none")
NOISE_POWER = 2.0
"""E|noise|^2 of a component: its real and imaginary parts have SD 1."""


@dataclass(frozen=True, eq=False)
class Components:
    """How coefficient images become components, and back."""

    rotation: np.ndarray
    """(coefficient, component) unitary."""
    noise: np.ndarray
    """(coefficient,) SD of the real part of each coefficient's noise."""
    leading: int
    """Components that stand out of the noise."""
    mask: np.ndarray
    """(x, y, z) bool, whole grid."""
    box: tuple[slice, slice, slice]
    """Bounding box of the mask."""

    @property
    def mask_in_box(self) -> np.ndarray:
        """The mask within its box."""
        return np.asarray(self.mask[self.box])

    def of(self, image: Array) -> Array:
        """Return the components (x, y, z, component) of coefficients on the whole grid."""
        flat = like((1 / self.noise).astype(np.float32), image, image.dtype)
        return (image * flat) @ like(self.rotation, image, image.dtype)

    def inside(self, z: Array) -> Array:
        """Return components within the box, zero outside of the mask."""
        return z[(*self.box, slice(None))] * like(self.mask_in_box[..., None].astype(np.float32), z, z.dtype)

    def replaced(self, z: Array, inside: Array) -> Array:
        """Return components of the whole grid with those inside of the mask replaced; `z` is overwritten."""
        place = (*self.box, slice(None))
        z[place] = namespace(z).where(like(self.mask_in_box[..., None], z), inside, z[place])
        return z

    def with_more(self, z: Array, more: Array) -> tuple[Array, np.ndarray]:
        """Return components of the whole grid followed by more of them, given in the box, and the SD of their errors.

        Where the new ones are zero nothing was looked for, and there is no error.
        """
        xp = namespace(z)
        count = int(more.shape[-1])
        full = xp.concat([z, xp.zeros_like(z[..., :count])], axis=-1)
        full[(*self.box, slice(-count, None))] = more
        errors = np.zeros((*self.mask.shape, count), dtype=np.float32)
        errors[self.box] = to_numpy(more) != 0
        return full, errors


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """A prior with its weights for one scan."""

    step: Callable[[Array], Array]
    """Components in the box (zero outside of the mask) -> the same with the prior's step taken."""
    weights: np.ndarray
    """(component,)."""
    errors: np.ndarray
    """(x, y, z, component) in the box: SD of the error in units of the noise, noise that is left and lost signal."""
    noise_left: np.ndarray
    """(x, y, z, component) in the box: its noise alone, in the same units (`errors` where it is not known apart)."""
    edges: EdgePrior | None
    """Weights between neighbours in the box, where the prior has them."""
    choice: WeightChoice | None
    """Prior edges: the weights as `regularisation` takes them."""
    provenance: dict[str, Any]


def components_of(image: Array, noise: np.ndarray, mask: np.ndarray) -> Components:
    """Return the components of least-squares coefficients (x, y, z, coefficient) with noise SD (coefficient,)."""
    # noise of equal power in all coefficients first: the rotation then keeps it white
    flat = like((1 / noise).astype(np.float32), image, image.dtype)
    rotation, leading = principal_rotation(voxels_in(image, mask) * flat)
    return Components(rotation, noise, leading, mask, bounding_box(mask))


def fit_prior(
    prior: str, components: Components, z: Array, water: np.ndarray | None, rng: np.random.Generator
) -> FittedPrior:
    """Choose a prior's edges and weights from the components of a scan.

    Parameters
    ----------
    prior
        ``edges``, ``tv`` or ``wavelet``.
    components
        As `components_of` returns them.
    z
        Components of the least-squares image inside the mask (`Components.inside`).
    water
        (x, y, z) water image, whole grid, whose edges are trusted where that lowers the risk; None for the scan's own.
    rng
        Draws the random signs of the risk estimate.
    """
    mask, leading = components.mask_in_box, components.leading
    n_components = int(z.shape[-1])
    edges: EdgePrior | None = None
    facts: dict[str, Any] = {"weights_from": "Stein's unbiased risk estimate"}
    choice: WeightChoice | None = None
    if prior != "wavelet":
        near = None if water is None else water[components.box]
        edges, choice, used_water = _choose_edges(z[..., :leading], near, mask, rng)
        facts["edges_from"] = "scan and water image" if used_water else "scan"
    if prior == "edges":
        assert edges is not None
        assert choice is not None
        if leading < n_components:
            choice = choice.with_more(choose_pooled_weight(z[..., leading:], NOISE_POWER, edges, mask, rng))
        # what is left of the noise, and what the risk estimate says of lost signal beside it
        left = smoothed_noise(edges, choice, mask, z, rng)
        errors = np.where(mask[..., None], np.sqrt(left**2 + choice.bias_power / NOISE_POWER), 1.0)
        known_edges, known_choice = edges, choice
        fitted = FittedPrior(
            lambda u: smooth(u, known_edges, known_choice), choice.weights, errors, left, edges, choice, facts
        )
    else:
        step = wavelet_prior(mask, namespace(z).real(z)) if edges is None else TotalVariation(edges)
        done = regularise(z, leading, NOISE_POWER, step, mask, rng)
        fitted = FittedPrior(
            lambda u: step.prox(u, done.weights), done.weights, done.errors, done.errors, edges, None, facts
        )
    facts["weights"] = [float(w) for w in fitted.weights[:leading]]
    facts["weight_of_noise_components"] = float(fitted.weights[-1]) if leading < n_components else None
    return fitted


def voxels_in(image: Array, mask: np.ndarray) -> Array:
    """Return the voxels inside the mask, (voxel, any)."""
    xp = namespace(image)
    flat = xp.reshape(image, (-1, image.shape[-1]))
    return xp.take(flat, like(np.flatnonzero(mask.ravel()), image), axis=0)


def in_full(edges: EdgePrior, components: Components) -> EdgePrior:
    """Return the weights of the box on the whole grid, zero outside."""
    box, shape = components.box, components.mask.shape
    full = []
    for axis, w in enumerate(edges.weights):
        size = [n - (a == axis) for a, n in enumerate(shape)]
        weights = np.zeros((*size, 1), dtype=np.float32)
        place = tuple(slice(b.start, b.start + w.shape[a]) for a, b in enumerate(box))
        weights[place] = to_numpy(w)
        full.append(like(weights, w))
    return EdgePrior((full[0], full[1], full[2]))


def _choose_edges(
    z: Array, water: np.ndarray | None, mask: np.ndarray, rng: np.random.Generator
) -> tuple[EdgePrior, WeightChoice, bool]:
    """Return the edge weights, from the scan's smoothed leading components and with the water's where the risk falls.

    The weights SURE chose with them come along, and whether the water's edges were taken.
    """
    reference = namespace(z).real(z)
    edges = edge_prior(mask, reference)
    # one smoothed image shows the edges; a second round found no better ones
    pilot = smooth(z, edges, choose_weights(z, NOISE_POWER, edges, mask, rng))
    own = edge_distances(pilot, 4.0)
    edges = edge_prior(mask, reference, (own,))
    # the same random signs for both, so that only the edges differ
    seed = int(rng.integers(2**32))
    found = [edges]
    if water is not None:
        image = like(np.where(mask, water, 0)[..., None].astype(np.float32), reference)
        found.append(edge_prior(mask, reference, (own, edge_distances(image))))

    def chosen(prior: EdgePrior) -> WeightChoice:
        return choose_weights(z, NOISE_POWER, prior, mask, np.random.default_rng(seed))

    choices = [chosen(prior) for prior in found]
    best = int(np.argmin([choice.risk.sum() for choice in choices]))
    return found[best], choices[best], best == 1


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the smallest box that holds the mask."""
    found = [np.flatnonzero(mask.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
    return tuple(slice(int(f[0]), int(f[-1]) + 1) for f in found)  # type: ignore[return-value]
