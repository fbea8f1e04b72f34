"""One low-dimensional subspace of FIDs for each molecule, learned before the scan (eq. 20).

The FIDs one unit of a molecule may give, g_j(t) = phi(t) exp(-t / T2*_j + i 2 pi df_j t), are drawn from the ensemble
of what a voxel may hold (`physics.ensemble`): T2* of its tissues and its own small shift. The first vector of the
subspace is the FID of the usual decay; the principal axes of what the members depart from it are the others. All g_j
are alike at t = 0, so the first vector has the whole amount and every other vector none of it: the coefficient of the
first IS the amount, and it is not negative. What all molecules of a voxel share (phase, shift and width of the line)
is not in here: the fit finds it, and the subspaces are taken about that lineshape.

Lam et al., Magn Reson Med 2020;83:377-390, doi:10.1002/mrm.27980.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.ensemble import default_ensemble, sample
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.quantification.design import Design

VECTOR = ":subspace"
"""Ending of the names of the further vectors of a molecule's subspace, before their number."""
_MEMBERS = 300
_NOTHING = 1e-3
TOLERANCE = 0.1
"""A vector counts where its usual size is at least this part of the strongest molecule's signal: noise hides what is
less, and every unknown costs precision."""
WITHIN_A_SCAN = 0.5
"""Part of the ensemble's spread that is left between the voxels of one scan: the rest is between brains and tables."""


def learn_subspaces(
    protocol: Protocol, basis: BasisSet, rates: Mapping[str, float], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Learn the further vectors of the subspace of every molecule that the ensemble of the nucleus knows.

    Parameters
    ----------
    protocol
        Times, frequency and nucleus.
    basis
        Decay-free signals of one unit of each molecule.
    rates
        Name -> usual decay rate [1/s]; only molecules that are named get a subspace.
    seed
        Of the draws.

    Returns
    -------
    dict
        Name -> (t, k) complex128: vectors that are zero at t = 0, with the size of one standard deviation for one unit
        of the molecule. Names without amounts and relaxation times in the table of the nucleus are left out.
    """
    nucleus, ensemble = nucleus_of(protocol), default_ensemble(protocol)
    names = tuple(name for name in basis.names if name in nucleus.values and name in rates)
    if not names:
        return {}
    drawn = sample(protocol, _MEMBERS, seed, ensemble=replace(ensemble, names=names), basis=basis)
    rng = np.random.default_rng([seed, 2])
    mhz = protocol.transmit_frequency_hz * 1e-6
    found = {}
    for column, name in enumerate(names):
        sd_ppm = max(nucleus.shift_ppm_sd.get(name, 0.0), ensemble.molecule_shift_ppm_sd)
        exponents = 2j * np.pi * sd_ppm * mhz * rng.standard_normal(_MEMBERS) - 1.0 / drawn.t2_star_s[:, column]
        share = drawn.concentrations_mm[:, column] / drawn.concentrations_mm[:, column].sum()
        found[name] = _vectors(protocol.times_s, basis.fids[basis.index(name)], exponents, rates[name], share)
    return found


def _vectors(times_s: np.ndarray, fid: np.ndarray, exponents: np.ndarray, rate: float, share: np.ndarray) -> np.ndarray:
    """Return the principal axes (t, k) of members exp(exponent t) of a decay-free FID (t,); `share` adds up to 1."""
    away = fid * (np.exp(exponents[:, None] * times_s) - np.exp(-rate * times_s)) * np.sqrt(share)[:, None]
    # amounts are real, so the axes are those of a real space: decay and shift do not mix
    _, sizes, axes = np.linalg.svd(np.concatenate([away.real, away.imag], axis=1), full_matrices=False)
    keep = sizes > _NOTHING * np.linalg.norm(fid * np.exp(-rate * times_s))
    n = len(times_s)
    return np.asarray(((axes[keep, :n] + 1j * axes[keep, n:]) * sizes[keep, None]).T)


def with_subspaces(design: Design, subspaces: Mapping[str, np.ndarray], *, tolerance: float = TOLERANCE) -> Design:
    """Return the design with those vectors of the molecules' subspaces that count as new columns.

    Parameters
    ----------
    design
        Of the fit.
    subspaces
        Name -> (t, k), as `learn_subspaces` returns them.
    tolerance
        Usual size of a vector, relative to the signal of the strongest molecule, from which on it counts.
    """
    strongest = float(np.max(design.typical * np.linalg.norm(design.columns, axis=0)))
    names: list[str] = []
    columns: list[np.ndarray] = []
    sizes: list[float] = []
    for index in range(design.n_metabolites):
        name, usual = design.names[index], float(design.typical[index])
        for number, vector in enumerate(subspaces.get(name, np.zeros((0, 0))).T):
            if usual * np.linalg.norm(vector) > tolerance * strongest:
                names.append(f"{name}{VECTOR}{number + 1}")
                columns.append(vector)
                sizes.append(WITHIN_A_SCAN * usual)
    if not names:
        return design
    return replace(
        design,
        names=(*design.names, *names),
        columns=np.concatenate([design.columns, np.stack(columns, axis=1)], axis=1),
        bounded=np.append(design.bounded, np.zeros(len(names), bool)),
        prior_sd=np.append(design.prior_sd, sizes),
        typical=np.append(design.typical, np.zeros(len(names))),
    )
