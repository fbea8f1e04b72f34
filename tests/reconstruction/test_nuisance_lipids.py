from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import k_points, make_protocol

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.reconstruction.nuisance.lipids import LipidSpace, lipids_at_their_source

MATRIX = (5, 4, 1)
NOISE = 0.6


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_lipids_are_the_linear_estimate_of_least_error_beside_metabolites_that_vary_together(rng, library):
    """Against P C A^H (A C A^H + 2 sd^2)^-1 d with the encoding of the fine sources written out."""
    protocol = make_protocol(MATRIX, 12, "voxel")
    k = k_points(protocol)
    rows = np.linalg.qr(rng.standard_normal((12, 2, 2)) @ np.array([1, 1j]))[0].T.astype(np.complex64)
    support = np.zeros(MATRIX, bool)
    support[0], support[:, 3] = True, True
    brain = np.zeros(MATRIX, bool)
    brain[2:4, :3] = True
    energy = np.array([900.0, 100.0])
    mixing = rng.standard_normal((2, 2, 2)) @ np.array([1, 1j])
    metabolites = 20 * mixing @ mixing.conj().T
    samples = (rng.standard_normal((2, 20, 12, 2)) @ np.array([10, 10j])).astype(np.complex64)
    kt = KtData(
        samples=torch.from_numpy(samples) if library == "torch" else samples, k=k,
        t=np.broadcast_to(protocol.times_s, (20, 12)), count=np.ones(20, int), role=Role.METABOLITE, protocol=protocol,
        grid=MATRIX, sample_time_s=protocol.dwell_s,
    )  # fmt: skip
    space = LipidSpace(support, rows, energy)
    found, residual = lipids_at_their_source(kt, space, brain, metabolites, NOISE)
    assert type(found) is type(kt.samples)
    assert residual < 1e-3
    # a fine voxel belongs to the voxel nearest to it
    places = [(np.arange(2 * n) - n) / 2 for n in MATRIX[:2]]
    voxel = [np.clip(np.floor(p + 0.5).astype(int) + n // 2, 0, n - 1) for p, n in zip(places, MATRIX, strict=False)]
    lipid = support[np.ix_(*voxel, [0])].ravel()
    other = brain[np.ix_(*voxel, [0])].ravel()
    step = np.array(protocol.geometry.voxel_mm)[:2] * 1e-3
    x, y = (g.ravel() for g in np.meshgrid(places[0] * step[0], places[1] * step[1], indexing="ij"))
    encoding = np.exp(-2j * np.pi * (np.outer(k[:, 0], x) + np.outer(k[:, 1], y)))
    share = 1 / (4 * 2)
    of_lipids = np.kron(np.diag(lipid), np.diag(energy)) * share
    both = of_lipids + np.kron(np.diag(other), metabolites) * share
    matrix = np.kron(encoding, np.eye(2))
    data = (samples.astype(complex) @ rows.conj().T).reshape(2, -1)
    total = matrix @ both @ matrix.conj().T + 2 * NOISE**2 * np.eye(40)
    expected = (matrix @ of_lipids @ matrix.conj().T @ np.linalg.solve(total, data.T)).T.reshape(2, 20, 2) @ rows
    np.testing.assert_allclose(to_numpy(found), expected, atol=2e-3 * np.abs(expected).max())
