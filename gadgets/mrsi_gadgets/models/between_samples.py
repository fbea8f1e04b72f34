"""A learned subspace between its samples: the ensemble it was learned from is known at all times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples
from mrsi_gadgets.physics.ensemble import Ensemble, sample

_RIDGE = 1e-9
_SAMPLES = 2000


def rows_between_samples(
    subspace: Subspace, nodes_s: np.ndarray, *, ensemble: Ensemble | None = None, n_samples: int = _SAMPLES
) -> RowsBetweenSamples:
    """Return the subspace's rows at times_s + tau for every offset tau of `nodes_s`.

    The rows at t + tau are those that give, from the coefficients that FIDs of the ensemble have on the rows at t, the
    same FIDs tau later with the least squared error. Metabolites, water and lipids count alike, whatever their
    strength. The error over fresh FIDs is that of the subspace itself, at the first and last sample as well.

    Parameters
    ----------
    subspace : as learned.
    nodes_s : (node,) offsets [s].
    ensemble : the distributions it was learned from; None for the defaults.
    n_samples : drawn FIDs.
    """
    drawn = _unit_signals(subspace, 0.0, ensemble, n_samples)
    scales = [np.linalg.norm(part, axis=1, keepdims=True) for part in drawn]
    basis = subspace.basis.astype(np.complex128)
    parts = [(part / scale) @ basis.conj().T for part, scale in zip(drawn, scales, strict=True)]
    a = np.concatenate(parts)
    normal = a.conj().T @ a
    normal += _RIDGE * float(np.trace(normal).real) / len(normal) * np.eye(len(normal))
    values = []
    for tau in np.asarray(nodes_s, dtype=float):
        later = _unit_signals(subspace, float(tau), ensemble, n_samples)
        target = np.concatenate([part / scale for part, scale in zip(later, scales, strict=True)])
        values.append(np.linalg.solve(normal, a.conj().T @ target))
    return RowsBetweenSamples(np.asarray(nodes_s, dtype=float), np.stack(values))


def _unit_signals(subspace: Subspace, tau_s: float, ensemble: Ensemble | None, n_samples: int) -> list[np.ndarray]:
    """Return the drawn metabolites, and water and lipids where the subspace has rows for them, `tau_s` later."""
    protocol = subspace.protocol
    moved = replace(protocol, acquisition_delay_s=protocol.acquisition_delay_s + tau_s)
    drawn = sample(moved, n_samples, subspace.seed, ensemble=ensemble)
    if subspace.rank == subspace.metabolite_rank:
        return [drawn.metabolites]
    return [drawn.metabolites, drawn.water, drawn.lipids]
