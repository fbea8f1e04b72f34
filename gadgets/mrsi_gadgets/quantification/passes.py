"""The two passes of the fit over a batch of voxels, and what the first teaches the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, device, like, namespace, to_numpy
from mrsi_gadgets.quantification.assembly import FitResult
from mrsi_gadgets.quantification.coordinates import Coordinates, band_energy, whitener
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.refinement import Fit, Prior, covariance, model_at, refine

if TYPE_CHECKING:
    from mrsi_gadgets.quantification.varpro import PreparedFit

_FIRST_STEPS, _FINAL_STEPS = 4, 20
_ENOUGH_VOXELS = 30
_ROWS_FOR_VARIANCE = 256
_SMALLEST_SPREAD = np.array([0.02, 0.2, 0.7, 8.0])
"""SD of phase [rad], shift [Hz], Lorentz rate [1/s] and Gauss rate [1/s^2] that are never assumed smaller."""
WEAK_PRIOR = np.array([[0.0, 0.0, 3.0, 0.0], [np.inf, 8.0, 20.0, 2000.0]])
"""Mean and SD of the lineshape parameters before anything is known."""


class FirstPass(NamedTuple):
    """A batch of voxels after the first pass, on its device."""

    data: Array
    noise: Array | None
    scale: Array
    fit: Fit


def first_pass(
    signal: Array, noise_sd: np.ndarray, prepared: PreparedFit, spread: np.ndarray | None
) -> FirstPass:
    """Search the lineshape, estimate the nuisance, refine with weak priors. Arguments as of `varpro.fit_fids`."""
    xp = namespace(signal)
    coordinates, dictionary, templates = prepared.coordinates, prepared.dictionary, prepared.templates
    data = xp.astype(signal, xp.complex64) @ like(coordinates.project, signal, "complex64")
    data = data / like(noise_sd, signal, "float32")[:, None]
    noise = None if spread is None else _rotated_noise(coordinates, spread, signal)
    n = coordinates.n_skipped
    first = prepared.grid.search(xp.concat([xp.zeros_like(data[:, :n]), data[:, n:]], axis=1))
    positive = xp.where(first.amplitudes > 0, first.amplitudes, xp.zeros_like(first.amplitudes))
    strength = positive @ like(prepared.grid.positive, data, "float32")
    # an empty voxel still needs a scale for its priors: the noise
    scale = xp.where(strength > 1e-3, strength, xp.full_like(strength, 1e-3))
    residual = data - model_at(dictionary, first.shape, positive @ like(templates, data, "float32"))
    whiten = whitener(band_energy(residual, coordinates), coordinates, noise)
    prior = _prior(prepared, scale, WEAK_PRIOR)
    fit = refine(data, dictionary, whiten, prior, first.shape, max_steps=_FIRST_STEPS)
    return FirstPass(data, noise, scale, fit)


def final_pass(first: FirstPass, noise_sd: np.ndarray, prepared: PreparedFit, shape_prior: np.ndarray) -> FitResult:
    """Estimate the nuisance again, refine to the end, and bring everything to the host in the signal's unit."""
    xp = namespace(first.data)
    coordinates = prepared.coordinates
    whiten = whitener(band_energy(first.fit.residual, coordinates), coordinates, first.noise)
    fit = refine(
        first.data,
        prepared.dictionary,
        whiten,
        _prior(prepared, first.scale, shape_prior),
        first.fit.shape,
        first.fit.amplitudes,
        first.fit.free,
        max_steps=_FINAL_STEPS,
    )
    cov, variance = covariance(fit.normal, fit.free)
    head = fit.residual[:, : coordinates.n_dense, None]
    # expectation of the nuisance, (C - 2 I) C^-1 r in white noise, with C^-1 = W^H W / 2
    nuisance = head - xp.matmul(xp.matrix_transpose(xp.conj(whiten)), xp.matmul(whiten, head))
    unit = np.concatenate(
        [np.repeat(noise_sd[:, None], len(prepared.design.names), axis=1), np.ones((len(noise_sd), N_SHAPE))], axis=1
    )
    return FitResult(
        to_numpy(fit.amplitudes) * noise_sd[:, None],
        to_numpy(cov) * unit[:, :, None] * unit[:, None, :],
        to_numpy(variance) * unit**2,
        to_numpy(fit.shape),
        np.sqrt(to_numpy(fit.cost) / (2 * first.data.shape[1])),
        to_numpy(nuisance[:, :, 0]) * noise_sd[:, None],
    )


def learn_shape_prior(passes: Sequence[FirstPass]) -> np.ndarray:
    """Return mean and SD (2, 4) of the lineshape parameters over the voxels: median, and spread beyond their own errors.

    Few voxels teach nothing: then the weak prior stays.
    """
    shapes = np.concatenate([to_numpy(one.fit.shape) for one in passes]).astype(float)
    if len(shapes) < _ENOUGH_VOXELS:
        return WEAK_PRIOR
    xp = namespace(passes[0].data)
    step = -(-len(shapes) // _ROWS_FOR_VARIANCE)
    variances = []
    for one in passes:
        rows = xp.arange(0, one.data.shape[0], step, device=device(one.data))
        _, variance = covariance(xp.take(one.fit.normal, rows, axis=0), xp.take(one.fit.free, rows, axis=0))
        variances.append(to_numpy(variance[:, -N_SHAPE:]))
    phase = np.angle(np.mean(np.exp(1j * shapes[:, 0])))
    shapes[:, 0] = phase + np.angle(np.exp(1j * (shapes[:, 0] - phase)))
    centre = np.median(shapes, axis=0)
    total = 1.4826 * np.median(np.abs(shapes - centre), axis=0)
    own = np.median(np.concatenate(variances), axis=0)
    spread = np.sqrt(np.maximum(total**2 - own, _SMALLEST_SPREAD**2))
    return np.stack([centre, np.maximum(1.25 * spread, _SMALLEST_SPREAD)])


def _prior(prepared: PreparedFit, scale: Array, shape_prior: np.ndarray) -> Prior:
    """Priors of amplitudes (in proportion to the voxel's scale) and of the lineshape."""
    xp = namespace(scale)
    design = prepared.design
    scale = xp.astype(scale, xp.float64)[:, None]
    ones = xp.ones_like(scale)
    mean = like(np.where(np.isfinite(design.prior_sd), design.typical, 0.0), scale, "float64")[None, :] * scale
    precision = like(design.prior_sd**-2.0, scale, "float64")[None, :] / scale**2
    shape_mean = like(shape_prior[0], scale, "float64")[None, :] * ones
    shape_precision = like(shape_prior[1] ** -2.0, scale, "float64")[None, :] * ones
    return Prior(
        xp.concat([mean, shape_mean], axis=1),
        xp.concat([precision, shape_precision], axis=1),
    )


def _rotated_noise(coordinates: Coordinates, spread: np.ndarray, reference: Array) -> Array:
    """Covariance of the coefficients' noise in the coordinates of the fit, in units of the voxel's noise."""
    rotation = coordinates.project.T
    noise = 2 * (rotation[None] * spread[:, None, :].astype(float) ** 2) @ rotation.conj().T
    return like(noise, reference, "complex128")
