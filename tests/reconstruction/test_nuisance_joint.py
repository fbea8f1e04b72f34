from __future__ import annotations

import numpy as np
from synthetic import k_points, make_protocol

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.nuisance.joint import parts_of_all_data

MATRIX = (6, 6, 1)


def test_parts_of_undersampled_data_are_the_linear_estimates_of_least_error(rng):
    """Against C_k A^H (A C A^H + 2 sd^2)^-1 d with the encoding matrix written out, half of k-space missing."""
    protocol = make_protocol(MATRIX, 20, "voxel")
    rank, n_coils, noise = 3, 4, 0.7
    rows = np.linalg.qr(rng.standard_normal((20, rank, 2)) @ np.array([1, 1j]))[0].T.astype(np.complex64)
    maps = rng.standard_normal((n_coils, *MATRIX, 2)) @ np.array([1, 1j])
    maps = (maps / np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))).astype(np.complex64)
    b0 = rng.normal(0, 5, MATRIX)
    count = (rng.permutation(36) < 18).astype(int)
    kt = KtData(
        samples=np.zeros((n_coils, 36, 20), np.complex64), k=k_points(protocol),
        t=np.broadcast_to(protocol.times_s, (36, 20)), count=count, role=Role.METABOLITE, protocol=protocol,
        grid=MATRIX, sample_time_s=protocol.dwell_s,
    )  # fmt: skip
    operator = encoding_operator(kt, maps, b0, rows)
    unit = np.eye(36 * rank).reshape(-1, *MATRIX, rank).astype(np.complex64)
    matrix = np.stack([6 * operator(u).ravel() for u in unit], axis=1).astype(complex)
    where = np.zeros(MATRIX, bool)
    where[2:4] = True
    covariances = []
    for _ in range(2):
        mixed = rng.standard_normal((2, rank, rank, 2)) @ np.array([1, 1j])
        covariances.append(mixed @ np.conj(np.swapaxes(mixed, 1, 2)))
    flags = where.ravel()
    prior = [np.kron(np.diag(flags), covariances[0][k]) + np.kron(np.diag(~flags), covariances[1][k]) for k in range(2)]
    draw = [np.linalg.cholesky(p) @ (rng.standard_normal((len(p), 2)) @ np.array([1, 1j])) / 2**0.5 for p in prior]
    acquired = np.broadcast_to((count > 0)[None, :, None], kt.samples.shape).ravel()
    data = matrix @ (draw[0] + draw[1])
    data = data + noise * acquired * (rng.standard_normal((len(data), 2)) @ np.array([1, 1j]))
    found = parts_of_all_data(
        kt.with_samples(data.reshape(kt.samples.shape).astype(np.complex64)), maps, b0, rows,
        [(where, covariances[0]), (~where, covariances[1])], noise,
    )  # fmt: skip
    seen, d = matrix[acquired], data[acquired]
    total = seen @ (prior[0] + prior[1]) @ seen.conj().T + 2 * noise**2 * np.eye(len(d))
    for k in range(2):
        expected = prior[k] @ seen.conj().T @ np.linalg.solve(total, d)
        error = np.linalg.norm(found[k].ravel() - expected) / np.linalg.norm(expected)
        assert error < 0.01
