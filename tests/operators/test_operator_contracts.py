from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import contracts
from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, KtData, Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators import algebra, coils, field_evolution, fourier
from mrsi_gadgets.operators.algebra import Diagonal, Identity, LastAxisMatrix, Reshape
from mrsi_gadgets.operators.coils import Coils
from mrsi_gadgets.operators.encoding import encoding_operator, grid_times
from mrsi_gadgets.operators.field_evolution import FieldPhase, exact_terms, histogram_terms
from mrsi_gadgets.operators.fourier import Fourier

GRID = (3, 4, 5)


def make_kt(xp, n_coils=2, matrix=GRID, n_times=7, center="edge", count=None, dwell=1e-3):
    geometry = Geometry(matrix, (200.0, 210.0, 90.0), grid_center=center)
    protocol = Protocol("1H", 123e6, 4.65, dwell, n_times, 1.3e-3, geometry, "csi")
    shots = int(np.prod(matrix))
    return KtData(
        samples=xp.asarray(np.zeros((n_coils, shots, n_times), dtype=np.complex64)),
        k=np.zeros((shots, 3)),
        t=np.broadcast_to(protocol.times_s, (shots, n_times)),
        count=np.ones(shots, dtype=int) if count is None else count,
        role=Role.METABOLITE,
        protocol=protocol,
        grid=matrix,
    )


def make_field(rng, matrix=GRID):
    return 20 * rng.standard_normal(matrix)


def make_encoding(xp, rng, *, basis=True, missing=False, timed=False):
    count = rng.integers(0, 3, int(np.prod(GRID))) if missing else None
    kt = make_kt(xp, count=count)
    maps = contracts.random_array(xp, (2, *GRID), rng)
    rows = np.linalg.qr(rng.standard_normal((7, 3)) + 1j * rng.standard_normal((7, 3)))[0].conj().T if basis else None
    weights = (rng.random((60, 7)) > 0.4).astype(float) if timed else None
    return encoding_operator(kt, maps, make_field(rng), rows, weights=weights)


CASES = {
    "identity": lambda xp, rng: Identity((3, 4)),
    "diagonal": lambda xp, rng: Diagonal(contracts.random_array(xp, (4, 1), rng), (3, 4, 5)),
    "real diagonal": lambda xp, rng: Diagonal(xp.asarray(rng.random((3, 1)).astype(np.float32)), (3, 4)),
    "last axis matrix": lambda xp, rng: LastAxisMatrix(contracts.random_array(xp, (3, 7), rng), (2, 5)),
    "reshape": lambda xp, rng: Reshape((3, 4, 5), (12, 5)),
    "fourier": lambda xp, rng: Fourier((2, 3, 4, 5, 7), first_axis=1),
    "fourier half voxel": lambda xp, rng: Fourier((2, 3, 4, 1, 7), first_axis=1, shift=(0.0, 0.5, 0.0)),
    "coils": lambda xp, rng: Coils(contracts.random_array(xp, (2, *GRID), rng), (7,)),
    "field phase": lambda xp, rng: FieldPhase(xp.asarray(np.exp(1j * rng.random((3, 4, 5, 2))).astype(np.complex64))),
    "sum": lambda xp, rng: Fourier((3, 4, 5)) + Diagonal(contracts.random_array(xp, (5,), rng), (3, 4, 5)),
    "scaled": lambda xp, rng: (0.5 - 2j) * Fourier((3, 4, 5)),
    "adjoint": lambda xp, rng: Coils(contracts.random_array(xp, (2, *GRID), rng)).H,
    "encoding of coefficients": lambda xp, rng: make_encoding(xp, rng),
    "encoding of FIDs": lambda xp, rng: make_encoding(xp, rng, basis=False),
    "encoding with missing shots": lambda xp, rng: make_encoding(xp, rng, missing=True),
    "encoding with a mask over time": lambda xp, rng: make_encoding(xp, rng, timed=True),
    "encoding of FIDs with missing shots": lambda xp, rng: make_encoding(xp, rng, basis=False, missing=True),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_operator_satisfies_the_contract(make, xp, rng):
    contracts.check_operator(make(xp, rng), xp, rng)


def test_every_operator_of_these_modules_is_in_the_table(rng):
    import array_api_compat.numpy as numpy_namespace

    def parts(operator):
        yield type(operator).__name__
        for name in ("outer", "inner", "of", "first", "second"):
            if hasattr(operator, name):
                yield from parts(getattr(operator, name))

    covered = {name for make in CASES.values() for name in parts(make(numpy_namespace, rng))}
    public = {
        name
        for module in (algebra, coils, field_evolution, fourier)
        for name, item in vars(module).items()
        if isinstance(item, type) and issubclass(item, algebra.LinearOperator) and item is not algebra.LinearOperator
    }
    assert public <= covered


def test_encoding_equals_the_dense_matrix_of_the_signal_equation(rng):
    import array_api_compat.numpy as numpy_namespace

    kt = make_kt(numpy_namespace, matrix=(3, 4, 1), n_times=5)
    maps = contracts.random_array(numpy_namespace, (2, 3, 4, 1), rng)
    b0 = make_field(rng, (3, 4, 1))
    operator = encoding_operator(kt, maps, b0)
    times = kt.protocol.times_s
    # written out: d_c(k, t) = N^-1/2 sum_r S_c(r) rho(r, t) exp(i 2 pi b0 t) exp(-i 2 pi k.r), origin on a voxel edge
    # of y
    wanted = np.zeros((2, 12, 5, 12, 5), dtype=complex)
    for shot, (kx, ky) in enumerate(np.ndindex(3, 4)):
        for voxel, (x, y) in enumerate(np.ndindex(3, 4)):
            plane = np.exp(-2j * np.pi * ((kx - 1) * (x - 1) / 3 + (ky - 2) * (y - 1.5) / 4))
            for t in range(5):
                value = plane * np.exp(2j * np.pi * b0[x, y, 0] * times[t]) / np.sqrt(12)
                wanted[:, shot, t, voxel, t] = value * maps[:, x, y, 0]
    matrix = contracts.dense_matrix(operator, kt.samples).reshape(wanted.shape)
    np.testing.assert_allclose(matrix, wanted, atol=2e-6)


@pytest.mark.parametrize("strength", [5.0, 40.0])
def test_few_field_terms_stay_within_the_tolerance_and_are_far_fewer_than_times(strength, rng):
    x, y = np.meshgrid(np.linspace(-1, 1, 12), np.linspace(-1, 1, 11), indexing="ij")
    b0 = (strength * (x + y**2 + 0.5 * x * y))[..., None]
    times = 1.3e-3 + np.arange(200) / 1500
    exact, few = exact_terms(b0, times), histogram_terms(b0, times, tolerance=1e-3)
    truth = exact.spatial @ exact.temporal
    assert np.linalg.norm(few.spatial @ few.temporal - truth) / np.linalg.norm(truth) < 1e-3
    # time-bandwidth product of the field (peak-to-peak times duration) plus a few
    assert few.n_terms <= np.ptp(b0) * times[-1] * 1.5 + 8


def test_encoding_on_a_basis_agrees_with_encoding_of_its_fids(rng):
    import array_api_compat.numpy as numpy_namespace

    kt = make_kt(numpy_namespace, matrix=(6, 5, 1), n_times=64, dwell=1 / 1500)
    maps = contracts.random_array(numpy_namespace, (3, 6, 5, 1), rng)
    b0 = 2 * make_field(rng, (6, 5, 1))
    basis = np.linalg.qr(rng.standard_normal((64, 4)) + 1j * rng.standard_normal((64, 4)))[0].conj().T
    on_basis, on_fids = encoding_operator(kt, maps, b0, basis), encoding_operator(kt, maps, b0)
    x = contracts.random_array(numpy_namespace, on_basis.domain, rng)
    wanted = on_fids((x @ basis).astype(np.complex64))
    # two truncations of 1e-3 / 2 each
    assert np.linalg.norm(on_basis(x) - wanted) / np.linalg.norm(wanted) < 1.5e-3


def test_time_leaves_the_gram_of_a_mask_that_is_constant_in_time(rng):
    import array_api_compat.numpy as numpy_namespace

    seen = []
    kt = make_kt(numpy_namespace, n_times=61, count=rng.integers(0, 2, 60))
    basis = np.linalg.qr(rng.standard_normal((61, 2)))[0].T
    operator = encoding_operator(kt, np.ones((2, *GRID), np.complex64), 0.1 * make_field(rng), basis)

    def walk(part):
        seen.append(part.range)
        for name in ("outer", "inner", "of"):
            if hasattr(part, name):
                walk(getattr(part, name))

    walk(operator.gram)
    assert max(shape[-1] for shape in seen) < 20, "an array with all times is formed"


def test_unshifted_and_half_voxel_transforms_differ_by_the_ramp_of_k(rng):
    shape = (4, 3, 6)
    x = contracts.random_array(np, shape, rng)
    centred, shifted = Fourier(shape)(x), Fourier(shape, shift=(0.5, 0.0, 0.5))(x)
    k = np.meshgrid(*[(np.arange(n) - n // 2) / n for n in shape], indexing="ij")
    np.testing.assert_allclose(shifted, centred * np.exp(-1j * np.pi * (k[0] + k[2])), atol=1e-5)


def test_a_single_voxel_off_centre_is_a_plane_wave_of_the_right_sign():
    x = np.zeros((5, 4, 1), dtype=np.complex64)
    x[3, 2, 0] = 1  # one voxel to the right of the centre (2, 2)
    k = np.arange(5) - 2
    np.testing.assert_allclose(Fourier((5, 4, 1))(x)[:, 2, 0], np.exp(-2j * np.pi * k / 5) / np.sqrt(20), atol=1e-6)


def test_mismatched_operators_are_refused_by_name():
    with pytest.raises(DataError, match="cannot follow"):
        Identity((3, 4)) @ Fourier((3, 4, 5))
    with pytest.raises(DataError, match="cannot be added"):
        Identity((3, 4)) + Identity((4, 3))
    with pytest.raises(DataError, match="cannot be broadcast"):
        Diagonal(np.ones((2, 3)), (3, 4))
    with pytest.raises(DataError, match="sizes differ"):
        Reshape((3, 4), (5, 2))


def test_points_sampled_at_different_times_have_no_common_times():
    kt = make_kt(np)
    times = np.array(kt.t)
    times[3] += 1e-4
    with pytest.raises(DataError, match="different times"):
        grid_times(replace(kt, t=times))


def test_identity_disappears_and_scalars_reach_the_gram(rng):
    op = Fourier((3, 4, 5))
    assert (op @ Identity((3, 4, 5))) is op
    assert (Identity((3, 4, 5)) @ op) is op
    x = contracts.random_array(np, (3, 4, 5), rng)
    np.testing.assert_allclose(to_numpy((3j * op).gram(x)), 9 * x, rtol=1e-6)
