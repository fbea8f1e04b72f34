"""Spin signals by another way than `physics.simulation`: every nucleus on its own, propagated step by step.

`physics.simulation` replaces equivalent nuclei by composite spins, averages over unobserved partners, diagonalises
blocks and adds up lines. Here the Hilbert space is the product of all single nuclei, partners included, the Hamiltonian
one matrix, and the density matrix is turned by exp(-i H dt) from sample to sample. What the two have in common is the
table of published shifts and couplings.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.linalg import expm

from mrsi_gadgets.physics.spin_systems import SpinSystem, molecule

_MOST = 3
"""Larger groups of equivalent nuclei are one nucleus, as often as there are nuclei."""


def molecule_fid(name: str, times: int, dwell_s: float, mhz: float, centre_ppm: float) -> np.ndarray:
    """Return the signal of one mM after an ideal 90 degree pulse at t = 0, dwell, ...; exp(+i 2 pi f t)."""
    return np.sum([_system_fid(one, times, dwell_s, mhz, centre_ppm) for one in molecule(name).systems], axis=0)


def _system_fid(system: SpinSystem, times: int, dwell_s: float, mhz: float, centre_ppm: float) -> np.ndarray:
    # nuclei of a methyl group of nine couple with partners alone: each of them gives the same
    alone = [n > _MOST and not any(g in pair for pair in system.couplings_hz) for g, n in enumerate(system.nuclei)]
    group = [g for g, n in enumerate(system.nuclei) for _ in range(1 if alone[g] else n)]
    weight = [system.nuclei[g] if alone[g] else 1 for g in group]
    spins = [0.5] * len(group) + [partner.spin for partner in system.partners]
    dims = [round(2 * spin + 1) for spin in spins]
    lower = [_at(_lowering(spin), i, dims) for i, spin in enumerate(spins)]
    z = [_at(np.diag(np.arange(spin, -spin - 1, -1)), i, dims) for i, spin in enumerate(spins)]
    hamiltonian = sum((system.shifts_ppm[g] - centre_ppm) * mhz * z[i] for i, g in enumerate(group))
    for a, b in combinations(range(len(group)), 2):
        key = (group[a], group[b])
        coupling = system.couplings_hz.get(key, system.couplings_hz.get(key[::-1], 0.0))
        if coupling:
            flip = lower[a].T @ lower[b]
            hamiltonian = hamiltonian + coupling * (z[a] @ z[b] + (flip + flip.T) / 2)
    for p, partner in enumerate(system.partners):
        for i, g in enumerate(group):
            hamiltonian = hamiltonian + partner.couplings_hz.get(g, 0.0) * (z[i] @ z[len(group) + p])
    seen = [i for i, g in enumerate(group) if system.observed is None or g in system.observed]
    start = sum(lower[i].T + lower[i] for i in range(len(group)))
    detect = sum(weight[i] * lower[i] for i in seen)
    step = expm(-2j * np.pi * dwell_s * hamiltonian)
    back = step.conj().T
    rho, fid = start.astype(complex), np.empty(times, complex)
    for i in range(times):
        fid[i] = np.sum(detect.T * rho)
        rho = step @ rho @ back
    # tr(I- (I+ + I-)) of one nucleus is half of the dimension
    return system.fraction * np.conj(fid) * (2 / np.prod(dims))


def _lowering(spin: float) -> np.ndarray:
    m = np.arange(spin, -spin, -1)
    return np.diag(np.sqrt(spin * (spin + 1) - m * (m - 1)), -1)


def _at(operator: np.ndarray, place: int, dims: list[int]) -> np.ndarray:
    """Return an operator of one nucleus in the product space."""
    before, after = int(np.prod(dims[:place])), int(np.prod(dims[place + 1 :]))
    return np.kron(np.kron(np.eye(before), operator), np.eye(after))
