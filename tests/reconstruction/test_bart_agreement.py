"""BART, an independent implementation, solves the same problem to the same answer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from synthetic import Basis, make_coil_maps, make_protocol, measure

from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

N_TIMES, RANK = 24, 4


def write_cfl(path: Path, values: np.ndarray) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, values.shape)) + "\n")
    values.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> np.ndarray:
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")


def pics(bart: str, folder: Path, kt, coil_maps, basis) -> np.ndarray:
    """Least squares by `bart pics -B`; dimensions x, y, z, coil, maps, time, coefficient."""
    write_cfl(folder / "kspace", np.moveaxis(kt.dense, 0, 3)[:, :, :, :, None, :])
    write_cfl(folder / "maps", np.moveaxis(coil_maps, 0, 3))
    write_cfl(folder / "basis", basis.T[None, None, None, None, None])
    command = [bart, "pics", "-S", "-i", "50", "-B", "basis", "kspace", "maps", "result"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    matrix = kt.protocol.geometry.matrix
    # BART's transform is unitary; ours is in the unit of one voxel's signal
    return read_cfl(folder / "result").reshape(*matrix, -1) / np.sqrt(np.prod(matrix))


@pytest.mark.parametrize("use_operator", [False, True])
def test_least_squares_on_a_basis_agree_with_bart_without_b0(bart, tmp_path, rng, use_operator) -> None:
    # BART folds the centring of its transform into signs, which is exact for multiples of 4 only
    matrix = (8, 12, 1)
    protocol = make_protocol(matrix, N_TIMES, center="voxel")
    draw = rng.standard_normal((2, N_TIMES, RANK))
    basis = np.linalg.qr(draw[0] + 1j * draw[1])[0].T.astype(np.complex64)
    coefficients = rng.standard_normal((2, *matrix, RANK))
    truth = coefficients[0] + 1j * coefficients[1]
    coil_maps, b0 = make_coil_maps(matrix), np.zeros(matrix)
    kt = measure(truth @ basis, coil_maps, b0, protocol, noise_sd=3.0, rng=rng)
    image = reconstruct_subspace(
        kt, coil_maps, b0, np.ones(matrix, dtype=bool), 3.0, model=Basis(basis), prior="none", adapt=False,
        use_operator=use_operator, rtol=1e-6,
    )  # fmt: skip
    theirs = pics(bart, tmp_path, kt, coil_maps, basis)
    # the same noise in both: what is compared is the solution, not the truth
    assert np.linalg.norm(image.coefficients - theirs) < 1e-4 * np.linalg.norm(theirs)
    assert 0.05 < np.linalg.norm(theirs - truth) / np.linalg.norm(truth) < 0.5
