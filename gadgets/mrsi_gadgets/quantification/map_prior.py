"""Spatial priors of the molecules' maps, with weights from their own noise (the second term of eq. 21).

A voxel's fit gives amounts x with a covariance C that differs between molecules by orders of magnitude and ties them
to each other (what Cr gains, PCr loses). So the prior does not act on the maps as they are, but on the combinations of
molecules that noise and signal single out: x in units of the usual noise (C averaged over voxels), rotated to the
principal axes of the scan. Each axis, strong ones first, has a weight of its own for the squared curvature along
unbroken tissue, found by Stein's unbiased risk estimate; edges are those of the water image and of the axes
themselves (`reconstruction.prior_step`). An axis with much signal, such as a lesion's, is hardly smoothed, one that is
mostly noise is smoothed a lot. Nothing is smoothed whose noise is not there.

Back in molecules, what the smoothing of x_S changes is carried to everything that was fitted beside it,

    x' = x + K (x_S' - x_S),    C' = C + K (C_S' - C_S) K^T,    K = C_(.S) C_S^-1,

and amounts that must not be negative are brought to their bound in the metric of C'. C_S' holds the noise that is left
and the signal that smoothing is estimated to have lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.quantification.nonnegative import solve_nonnegative
from mrsi_gadgets.quantification.refinement import covariance as covariance_of
from mrsi_gadgets.reconstruction.prior_step import NOISE_POWER, Components, bounding_box, fit_prior

_LEAST_VOXELS = 60
"""Fewer than these say nothing of a map's smoothness."""
_TYPICAL_SHARE = 0.9
"""The usual noise is that of this share of the voxels, those of least noise."""
_MARGIN = 0.2
_LOST = 4.0
"""How often the estimate of lost signal counts in the deviations. The weight with the smallest estimate is the one that
was taken, and losses gather where signal is; chosen on two brains so that errors over deviations are about one."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """What was fitted in a list of voxels without bounds, in the unit of the signal."""

    value: np.ndarray
    """(voxel, unknown) float64."""
    covariance: np.ndarray
    """(voxel, unknown, unknown) float64, positive definite."""


def smooth_maps(
    found: Estimates, columns: np.ndarray, mask: np.ndarray, water: np.ndarray | None, rng: np.random.Generator
) -> tuple[Estimates, dict[str, Any]]:
    """Take the step of the spatial prior.

    Parameters
    ----------
    found
        In the order of the mask's voxels.
    columns
        (column,) int: the unknowns that are amounts of molecules.
    mask
        (x, y, z) bool: the voxels.
    water
        (x, y, z) water image, whose edges are trusted where that lowers the risk, or None.
    rng
        Draws the signs of the risk estimate.

    Returns
    -------
    Estimates
        The same voxels after the step; the very same where they are too few.
    dict
        What was chosen, for the provenance.
    """
    n, m = len(found.value), len(columns)
    if n < max(_LEAST_VOXELS, 2 * m):
        return found, {"spatial_prior": f"none: {n} voxels are too few"}
    x = found.value[:, columns]
    own = found.covariance[:, columns[:, None], columns[None, :]]
    level = np.trace(np.linalg.solve(np.median(own, axis=0), own), axis1=1, axis2=2)
    quiet = level <= np.quantile(level, _TYPICAL_SHARE)
    root = np.linalg.cholesky(np.mean(own[quiet], axis=0))
    whitened = np.linalg.solve(root, x.T).T
    power, axes = np.linalg.eigh(whitened[quiet].T @ whitened[quiet] / int(quiet.sum()))
    power, axes = power[::-1], axes[:, ::-1]
    leading = max(int(np.sum(power > (1 + np.sqrt(m / n)) ** 2 + _MARGIN)), 1)
    # real components as complex ones whose real part has the noise of one part, and nothing in the imaginary part
    scale = np.sqrt(NOISE_POWER)
    image = np.zeros((*mask.shape, m), np.complex64)
    image[mask] = scale * (whitened @ axes)
    parts = Components(np.eye(m), np.ones(m), leading, mask, bounding_box(mask))
    inside = parts.inside(image)
    prior = fit_prior("edges", parts, inside, water, rng)
    smoothed = np.real(parts.replaced(image.copy(), prior.step(inside))[mask]) / scale
    back = root @ axes
    noise_left = prior.noise_left[parts.mask_in_box] ** 2
    errors = noise_left + _LOST * np.maximum(prior.errors[parts.mask_in_box] ** 2 - noise_left, 0.0)
    # a voxel noisier than usual keeps its own share of it
    forward = np.linalg.solve(back, np.eye(m))
    rotated = forward @ own @ forward.T
    left = np.sqrt(errors)[:, :, None] * rotated * np.sqrt(errors)[:, None, :]
    change = smoothed @ back.T - x
    gain = np.swapaxes(np.linalg.solve(own, found.covariance[:, columns, :]), 1, 2)
    value = found.value + (gain @ change[:, :, None])[:, :, 0]
    less = back @ left @ back.T - own
    total = found.covariance + gain @ less @ np.swapaxes(gain, 1, 2)
    facts = {"spatial_prior": "edges", "spatial_prior_weights": prior.provenance["weights"],
             "spatial_prior_edges": prior.provenance["edges_from"]}  # fmt: skip
    return Estimates(value, 0.5 * (total + np.swapaxes(total, 1, 2))), facts


def bounded_estimates(found: Estimates, bounded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring what must not be negative to its bound, everything else to what is then most likely.

    Parameters
    ----------
    found
        Without bounds.
    bounded
        (unknown,) bool.

    Returns
    -------
    value
        (voxel, unknown).
    covariance, variance
        As `refinement.covariance` has them: of the unknowns that are free, and each one's own.
    """
    size = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    even = found.covariance / size[:, :, None] / size[:, None, :]
    # rounding must not make an eigenvalue negative
    normal = np.linalg.inv(even + 1e-9 * np.eye(even.shape[1]))
    start = found.value / size
    solution = solve_nonnegative(normal, (normal @ start[:, :, None])[:, :, 0], bounded)
    spread, variance = covariance_of(normal, solution.free)
    return solution.x * size, spread * size[:, :, None] * size[:, None, :], variance * size**2
