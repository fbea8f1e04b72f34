"""Cramer-Rao bound of the fit: how well amounts can be known, whatever the estimator."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.quantification.coordinates import whitener
from mrsi_gadgets.quantification.design import group_weights
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.refinement import Problem, information


def crlb(
    model: VarproModel,
    amplitudes: np.ndarray,
    noise_sd: np.ndarray,
    *,
    shape: np.ndarray | None = None,
    given: np.ndarray | None = None,
    nuisance_energy: np.ndarray | None = None,
    with_priors: bool = False,
) -> dict[str, np.ndarray]:
    """Return the Cramer-Rao lower bound of the standard deviation of each molecule and each sum.

    The inverse of the Fisher information of all amplitudes, phase, shift, Lorentz and Gauss rate of one voxel's FID in
    white noise (Cavassila et al., NMR Biomed 2001;14:278-283, DOI 10.1002/nbm.701). Molecules whose signs are
    constrained can be known slightly better than this where they are near zero.

    Parameters
    ----------
    model
        The model: its molecules, macromolecules and removed nuisance bands.
    amplitudes
        (voxel, column) true amplitudes, in the order of ``model.design.names``.
    noise_sd
        (voxel,) SD of the real part of the noise in one sample, in the unit of the amplitudes.
    shape
        (voxel, 4) phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2]; None: zeros.
    given
        (voxel, node) lineshape that the field map gives (`intravoxel.intravoxel_lineshape`); None: ones.
    nuisance_energy
        (voxel, band) energy of each modelled nuisance band over noise_sd^2; None: no such signals.
    with_priors
        Whether the priors of weak molecules and macromolecules count (a Bayesian bound).

    Returns
    -------
    dict
        Name -> (voxel,) standard deviation.

    Raises
    ------
    DataError
        Shapes do not fit, or a noise level is not positive.
    """
    amplitudes = np.asarray(amplitudes, np.float64)
    noise = np.broadcast_to(np.asarray(noise_sd, np.float64), amplitudes.shape[:1])
    n, m = amplitudes.shape
    names = model.design.names
    if m != len(names):
        raise DataError(f"{m} amplitudes per voxel were given; the model has {len(names)}: {', '.join(names)}")
    if not np.all(noise > 0):
        raise DataError("the noise level must be positive in every voxel; without noise there is no bound")
    relative = amplitudes / noise[:, None]
    bands = len(model.coordinates.factors)
    energy = np.zeros((n, bands)) if nuisance_energy is None else np.asarray(nuisance_energy)
    nodes = len(model.dictionary.expansion.node_times_s)
    freedom = model.dictionary.freedom
    precision = np.zeros((n, m + freedom.count))
    precision[:, m + N_SHAPE :] = freedom.prior[1, N_SHAPE:] ** -2.0
    scale = np.maximum(_amount(model, relative), 1e-3)
    # deviations of the macromolecules have no meaning without their prior
    counted = np.ones(m, bool) if with_priors else model.design.typical == 0
    precision[:, :m] = np.where(counted, model.design.prior_sd**-2.0, 0.0) / scale[:, None] ** 2
    problem = Problem.of(
        np.zeros((n, model.dictionary.products.shape[1]), np.complex64),
        whitener(energy.astype(np.float32), model.coordinates),
        (np.ones((n, nodes)) if given is None else np.asarray(given)).astype(np.complex64),
        np.zeros((n, m + freedom.count)),
        precision,
    )
    place = (np.zeros((n, freedom.count)) if shape is None else np.asarray(shape)).astype(np.float32)
    fisher = information(problem, model.dictionary, place, relative.astype(np.float32))
    diagonal = np.sqrt(np.diagonal(fisher, axis1=1, axis2=2))
    inverse = np.linalg.inv(fisher / diagonal[:, :, None] / diagonal[:, None, :])
    covariance = (inverse / diagonal[:, :, None] / diagonal[:, None, :])[:, :m, :m]
    weights = {name: np.eye(m)[i] for i, name in enumerate(names)}
    pad = np.zeros(m - model.design.n_metabolites)
    for group, members in group_weights(names[: model.design.n_metabolites], model.protocol.nucleus).items():
        weights[group] = np.concatenate([members, pad])
    return {name: np.sqrt(np.einsum("i,vij,j->v", w, covariance, w)) * noise for name, w in weights.items()}


def _amount(model: VarproModel, amplitudes: np.ndarray) -> np.ndarray:
    """Amplitude scale of each voxel: how much of normal brain its metabolites are."""
    typical = model.design.typical[: model.design.n_metabolites]
    return np.asarray(amplitudes[:, : model.design.n_metabolites] @ typical / (typical @ typical))
