"""Adapting the regressor of `cnn` to a scan through the scan's own spectra (eq. 22): no truth is needed.

    argmin_theta SUM_n  d log || W (rho_n - f(C(rho_n; theta), c_n)) ||^2 + pull of C(rho_n; theta)

with the network C, the physical model f at its lineshapes, the non-negative amplitudes c_n that fit best there (solved
anew in every step: at the minimum over the amplitudes the gradient by the lineshape is that with the amplitudes held),
nuisance marginalised by W, d the number of data of a voxel (the likelihood of noise whose size is not known), and how
the lineshapes are distributed over the voxels as a prior. Computed on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.models.spectrum_layers import Batch, constant, descend
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.quantification.cnn_physics import composite_signal, problem_of, shape_spread, turned
from mrsi_gadgets.quantification.coordinates import band_energy, whitener
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.passes import WEAK_PRIOR, Voxels
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.refinement import Fit, covariance, linear_fit, model_at, stacked
from mrsi_gadgets.quantification.spectrum_input import Inputs

_BATCH = 128
_LEARNING_RATE = 4e-3
_ALONE = 0.4
"""Share of the steps in which every voxel stands alone: only then does what they have in common become a prior, or
voxels of bad shim, which the network has not learned to tell yet, are pulled to the others for good."""
_NEW_PRIOR = 10
"""Steps after which the distribution over the voxels is estimated anew."""
_TAIL = 1 / 3
"""1 / nu of the Student t distribution of lineshapes over the voxels, as in the fit."""


def adapted(
    networks: SpectrumNetworks,
    inputs: Inputs,
    voxels: Voxels,
    model: VarproModel,
    *,
    steps: int,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> SpectrumNetworks:
    """Return the networks with the regressor adapted to these voxels.

    Parameters
    ----------
    networks
        Where to start.
    inputs, voxels
        Of all voxels, in the same order.
    model
        The physical model.
    steps
        Of at most 128 voxels each.
    seed
        Of their order.
    progress
        Told the fraction that is done.
    """
    rng = np.random.default_rng(seed)
    spectra, told, scale = (to_numpy(x) for x in inputs)
    turn = np.angle(scale).astype(np.float32)
    data = (to_numpy(voxels.data) / voxels.noise_sd[:, None]).astype(np.complex64)
    field = to_numpy(voxels.given)
    shapes = turned(networks.lineshapes(spectra, told), turn)
    prior = WEAK_PRIOR
    queue: list[int] = []
    steps_done = 0

    def batch(step: int) -> Batch:
        if len(queue) < min(_BATCH, len(data)):
            queue.extend(rng.permutation(len(data)).tolist())
        rows = np.array([queue.pop() for _ in range(min(_BATCH, len(data)))])
        return spectra[rows], told[rows], rows

    def loss(out: Array, rows: Any) -> Array:
        nonlocal prior, steps_done
        shape = turned(out, constant(turn[rows], out))
        at = to_numpy(shape)
        shapes[rows] = at
        some, lines = data[rows], field[rows]
        composites, strength = composite_signal(some, at, lines, model)
        whiten = whitener(band_energy(some - composites, model.coordinates), model.coordinates)
        problem = problem_of(some, whiten, lines, strength, None, model, prior)
        fit = linear_fit(problem, model.dictionary, at)
        if steps_done >= _ALONE * steps and steps_done % _NEW_PRIOR == 0:
            prior = shape_spread(shapes, _left(fit))
        steps_done += 1
        signal = model_at(model.dictionary, shape, constant(fit.amplitudes, out), constant(lines, out))
        away = signal - constant(some, out)
        return _likelihood(away, problem.whiten, shape, prior, out)

    def tell(done: int, value: float) -> None:
        if progress is not None:
            progress(done / steps)

    return descend(
        networks, "regressor", batch, loss, steps=steps, learning_rate=_LEARNING_RATE, progress=tell, check_every=10
    )[0]


def _left(fit: Fit) -> np.ndarray:
    """Return the variance (4,) that is left of the lineshape of a typical voxel."""
    _, variance = covariance(fit.normal, fit.free)
    return np.asarray(np.median(variance[:, -N_SHAPE:], axis=0))


def _likelihood(away: Array, whiten: np.ndarray, shape: Array, prior: np.ndarray, out: Array) -> Array:
    """Return the mean of the negative logarithm of the posterior, over the number of data."""
    xp = namespace(shape)
    n = whiten.shape[1]
    parts = stacked(away, n // 2)
    head = xp.matmul(constant(whiten, out), parts[:, :n, None])[:, :, 0]
    power = xp.sum(head**2, axis=1) + xp.sum(parts[:, n:] ** 2, axis=1)
    centre, spread = (like(x[1:], shape, "float32")[None, :] for x in prior)
    squared = ((shape[:, 1:] - centre) / spread) ** 2
    pull = (1 + _TAIL) / _TAIL * xp.sum(xp.log1p(_TAIL * squared), axis=1)
    return xp.mean(xp.log(power) + pull / parts.shape[1])
