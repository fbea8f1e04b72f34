"""The edge prior against the noise that samples off the grid really have.

Rings and spirals sample the middle of k-space more densely than its edge, so that an image of them has noise of a
colour of its own: little in what is smooth, more in detail; and where their samples hardly say anything (between the
last ring and the edge, corners) a least-squares image only gathers noise. A smoother that takes the noise for white
does neither justice. Here the samples themselves stand against the prior, each with its own noise (eq. 7):

    z = argmin || W (d - A z) ||^2 / sd^2 + sum_l lambda_l || L z_l ||^2,

from the smoothed gridded image by few preconditioned conjugate gradients. Only components that stand out of the noise
take part; the others stay where the smoother left them.
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.arrays import Array, like, norm
from mrsi_gadgets.data import KtData
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.edge_prior import EdgePrior
from mrsi_gadgets.reconstruction.gridding import alias_free
from mrsi_gadgets.reconstruction.prior_step import Components, in_full
from mrsi_gadgets.reconstruction.regularisation import WeightChoice, smooth
from mrsi_gadgets.reconstruction.solvers import Solution, conjugate_gradient

ENOUGH, MOST_ITERATIONS = 0.25, 20
"""The solve goes on until its residual is below this part of what noise puts there, or so often."""
_FLOOR = 0.01
"""Part of a component that the preconditioner leaves as it is: its polynomial errs by less."""


def against_own_noise(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, rows: RowsBetweenSamples, start: Array, *,
    left: Array, components: Components, edges: EdgePrior, choice: WeightChoice, noise_sd: float,
) -> tuple[Array, Solution]:  # fmt: skip
    """Return the components (x, y, z, component) that the samples themselves and the prior agree on.

    Parameters
    ----------
    kt
        Data as measured, each acquired point at all of its times.
    coil_maps, b0_hz
        Of the encoding.
    rows
        Temporal basis of the coefficients, known at the samples' own times.
    start
        (x, y, z, component) smoothed components; what lies outside of the mask may change too, without a prior.
    left
        (coil, point, t) the samples without what `start` explains.
    components
        How coefficients became components; their noise is the same in all coefficients.
    edges, choice
        Weights between neighbours in the mask's box, and of the components.
    noise_sd
        SD of the real part of the noise of a sample of one readout.
    """
    leading = components.leading
    some = WeightChoice(choice.index[:leading], choice.risk[:leading], choice.noise[:leading])
    turned = rows.mixed(components.rotation.conj().T[:leading])
    counts = kt.counts[:, 0].astype(float)
    operator = encoding_operator(kt, coil_maps, b0_hz, turned, weights=np.sqrt(counts))
    # components are in units of their noise, samples in units of theirs
    ratio = float(components.noise[0]) / noise_sd
    inside = alias_free(kt)
    support = like(inside[..., None].astype(np.float32), start)
    weights = like(np.sqrt(counts).astype(np.float32)[None, :, None], left)
    lambdas = like(some.weights.astype(np.float32), start, start.dtype)
    full = in_full(edges, components)

    def penalty(z: Array) -> Array:
        return full.laplacian(full.laplacian(z)) * lambdas

    def normal(z: Array) -> Array:
        return operator.H(operator(z * support)) * support * ratio**2 + penalty(z)

    def smoothed(z: Array) -> Array:
        within = components.inside(z)
        within = (1 - _FLOOR) * smooth(within, edges, some) + _FLOOR * within
        return components.replaced(z * 1.0, within)

    begin = start[..., :leading]
    rhs = operator.H(left * weights) * support * (ratio / noise_sd) - penalty(begin)
    # what noise of SD 1 puts into A^H d: the operator's columns are all as long
    column = ratio**2 * float(np.sum(counts)) / inside.size
    of_noise = float(np.sqrt(2 * leading * np.sum(inside) * column))
    size = norm(rhs)
    solution = conjugate_gradient(
        normal, rhs, precondition=smoothed, max_iterations=MOST_ITERATIONS,
        rtol=min(1.0, ENOUGH * of_noise / size) if size else 1.0,
    )  # fmt: skip
    result = start * 1.0
    result[..., :leading] += solution.value
    return result, solution
