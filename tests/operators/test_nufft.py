from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.fourier import Fourier
from mrsi_gadgets.operators.nufft import Nufft, cycles_per_voxel, nufft_for

CASES = {
    "2D 5x4": ((5, 4, 1), (0.0, 0.0, 0.0)),
    "2D 4x1x3": ((4, 1, 3), (0.0, 0.0, 0.0)),
    "3D 3x4x5": ((3, 4, 5), (0.0, 0.0, 0.0)),
    "1D 1x6x1": ((1, 6, 1), (0.0, 0.0, 0.0)),
    "3D with half-voxel shift": ((4, 3, 6), (0.5, 0.0, 0.5)),
    "one voxel": ((1, 1, 1), (0.0, 0.0, 0.0)),
}


def complex_normal(rng, shape, dtype=np.complex64):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)


def dense_matrix(points: np.ndarray, matrix, shift) -> np.ndarray:
    """The transform written out: (point, voxel)."""
    axes = [np.arange(n) - n // 2 + s for n, s in zip(matrix, shift, strict=True)]
    r = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    active = np.array([n > 1 for n in matrix])
    return np.exp(-2j * np.pi * (points * active) @ r.T) / np.sqrt(np.prod(matrix))


@pytest.mark.parametrize(("matrix", "shift"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("batch", [1, 3])
def test_both_directions_are_the_dense_transform_and_each_others_adjoint(nufft_xp, rng, matrix, shift, batch):
    points = rng.uniform(-0.5, 0.5, (17, 3))
    op = Nufft(points, matrix, batch=batch, shift=shift)
    dense = dense_matrix(points, matrix, shift)
    x, y = complex_normal(rng, op.domain), complex_normal(rng, op.range)
    forward, adjoint = to_numpy(op(nufft_xp.asarray(x))), to_numpy(op.H(nufft_xp.asarray(y)))
    assert forward.dtype == adjoint.dtype == np.complex64
    expected = (dense @ x.reshape(batch, -1).T).T
    np.testing.assert_allclose(forward, expected, atol=1e-5 * np.abs(expected).max())
    expected = (dense.conj().T @ y.T).T.reshape(op.domain)
    np.testing.assert_allclose(adjoint, expected, atol=1e-5 * np.abs(expected).max())
    assert abs(np.vdot(y, forward) - np.vdot(adjoint, x)) < 1e-5 * np.linalg.norm(x) * np.linalg.norm(y)


def test_double_precision_is_kept(rng):
    op = Nufft(rng.uniform(-0.5, 0.5, (11, 3)), (5, 4, 3))
    x = complex_normal(rng, op.domain, np.complex128)
    expected = dense_matrix(op.points, op.matrix, op.shift) @ x.ravel()
    assert op(x).dtype == np.complex128
    np.testing.assert_allclose(op(x)[0], expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.0)])
def test_on_a_cartesian_grid_it_is_the_fourier_operator(rng, shift):
    matrix = (5, 4, 3)
    grids = np.meshgrid(*[(np.arange(n) - n // 2) / n for n in matrix], indexing="ij")
    op = Nufft(np.stack(grids, axis=-1).reshape(-1, 3), matrix, shift=shift)
    x = complex_normal(rng, op.domain)
    fourier = Fourier(matrix, shift=shift)
    np.testing.assert_allclose(op(x)[0], fourier(x[0]).ravel(), atol=3e-5)
    np.testing.assert_allclose(op.H(op(x)), x, atol=3e-5)


def test_points_beyond_the_grid_wrap_around_as_the_sum_does(rng):
    points = rng.uniform(-3, 3, (9, 3))
    op = Nufft(points, (4, 5, 1))
    x = complex_normal(rng, op.domain)
    np.testing.assert_allclose(op(x)[0], dense_matrix(points, op.matrix, op.shift) @ x.ravel(), atol=3e-5)


def test_k_in_1_per_m_becomes_cycles_per_voxel():
    geometry = Geometry((16, 8, 1), (220.0, 160.0, 50.0))
    edge = np.array([8 / 0.22, -4 / 0.16, 0.0])
    np.testing.assert_allclose(cycles_per_voxel(edge, geometry), [0.5, -0.5, 0.0])
    assert nufft_for(edge[None], geometry, batch=2).domain == (2, 16, 8, 1)


def test_wrong_points_are_refused():
    with pytest.raises(DataError, match=r"give \(point, 3\)"):
        Nufft(np.zeros((4, 2)), (3, 3, 1))
    with pytest.raises(DataError, match="not finite"):
        Nufft(np.array([[0.0, np.nan, 0.0]]), (3, 3, 1))


def test_a_wrong_shape_is_refused(rng):
    op = Nufft(np.zeros((4, 3)), (3, 3, 1))
    with pytest.raises(DataError, match="takes an array of shape"):
        op(complex_normal(rng, (3, 3, 1)))


@pytest.mark.gpu
def test_the_gpu_gives_what_the_processor_gives(rng):
    import cupy

    op = Nufft(rng.uniform(-0.5, 0.5, (17, 3)), (5, 4, 3), batch=2, shift=(0.0, 0.5, 0.0))
    x, y = complex_normal(rng, op.domain), complex_normal(rng, op.range)
    np.testing.assert_allclose(cupy.asnumpy(op(cupy.asarray(x))), op(x), atol=3e-5)
    np.testing.assert_allclose(cupy.asnumpy(op.H(cupy.asarray(y))), op.H(y), atol=3e-5)
