"""Samples at their own times: the operator against sums over voxels, one exponential at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import contracts
from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, KtData, Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples, continued, offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range
from mrsi_gadgets.operators.nufft import nufft_for
from mrsi_gadgets.operators.points import shifted_grids

GRID = (5, 4, 3)
N_TIMES, DWELL_S = 24, 1.0 / 1500
LINES = np.array([-310.0, -40.0, 0.0, 120.0, 260.0])
RATES = np.array([12.0, 9.0, 30.0, 5.0, 20.0])
N_COILS = 2


def make_data(xp, rng, kind, count=None):
    """Points on a grid with an offset along x (lobes), or anywhere with offsets over a whole dwell (laps)."""
    geometry = Geometry(GRID, (200.0, 210.0, 90.0), grid_center="edge")
    protocol = Protocol("1H", 123e6, 4.65, DWELL_S, N_TIMES, 1.3e-3, geometry, "other")
    fov = np.array(geometry.fov_mm) * 1e-3
    if kind == "lobes":
        axes = np.meshgrid(*[np.arange(n) - n // 2 for n in GRID], indexing="ij")
        k = np.stack(axes, axis=-1).reshape(-1, 3) / fov
        late = (axes[0].ravel()) * 0.13 * DWELL_S
    else:
        k = (rng.random((70, 3)) - 0.5) * np.array(GRID) / fov
        late = (np.arange(70) % 7) / 7 * DWELL_S
    t = protocol.times_s + late[:, None]
    shape = (len(k), N_TIMES)
    return KtData(
        samples=xp.asarray(np.zeros((N_COILS, *shape), dtype=np.complex64)), k=k, t=t,
        count=np.ones(len(k)) if count is None else count(shape), role=Role.METABOLITE, protocol=protocol,
        grid=GRID if kind == "lobes" else None,
    )  # fmt: skip


def exact_rows(kt):
    """Damped exponentials, known at any time."""
    nodes = offset_nodes(*offset_range(kt), DWELL_S)
    times = kt.protocol.times_s + nodes[:, None]
    return RowsBetweenSamples(nodes, np.exp((2j * np.pi * LINES - RATES)[None, :, None] * times[:, None, :]))


def slow_sum(kt, maps, b0, x):
    """Return the samples by eq. 2, voxel by voxel."""
    geometry = kt.protocol.geometry
    voxel = np.array(geometry.voxel_mm) * 1e-3
    place = [(np.arange(n) - c) * v for n, c, v in zip(GRID, geometry.centre_index, voxel, strict=True)]
    samples = np.zeros((N_COILS, *kt.t.shape), dtype=complex)
    for index in np.ndindex(*GRID):
        r = np.array([place[a][i] for a, i in enumerate(index)])
        rates = 2j * np.pi * (LINES + b0[index]) - RATES
        fid = np.tensordot(x[index], np.exp(rates[:, None, None] * kt.t), axes=1)
        samples += maps[(slice(None), *index)][:, None, None] * fid * np.exp(-2j * np.pi * kt.k @ r)[:, None]
    return samples / np.sqrt(np.prod(GRID))


@pytest.mark.parametrize("kind", ["lobes", "laps"])
def test_each_sample_is_encoded_at_its_own_place_and_time(nufft_xp, rng, kind):
    kt = make_data(nufft_xp, rng, kind)
    maps = contracts.random_array(nufft_xp, (N_COILS, *GRID), rng)
    b0 = 25 * rng.standard_normal(GRID)
    x = contracts.random_array(nufft_xp, (*GRID, len(LINES)), rng)
    operator = encoding_operator(kt, maps, b0, exact_rows(kt), tolerance=1e-6)
    expected = slow_sum(kt, to_numpy(maps), b0, to_numpy(x))
    found = to_numpy(operator(x))
    assert np.linalg.norm(found - expected) <= 2e-5 * np.linalg.norm(expected)
    # the usual tolerance costs no more than it says
    usual = to_numpy(encoding_operator(kt, maps, b0, exact_rows(kt))(x))
    assert np.linalg.norm(usual - expected) <= 1e-3 * np.linalg.norm(expected)


def with_gaps(shape):
    return (np.arange(shape[0]) % 4 > 0).astype(float) * 2


def with_gaps_over_time(shape):
    return (np.random.default_rng(4).random(shape) > 0.4).astype(int)


@pytest.mark.parametrize("count", [None, with_gaps, with_gaps_over_time])
@pytest.mark.parametrize("kind", ["lobes", "laps"])
def test_the_operator_keeps_the_contract(nufft_xp, rng, kind, count):
    kt = make_data(nufft_xp, rng, kind, count)
    maps = contracts.random_array(nufft_xp, (N_COILS, *GRID), rng)
    operator = encoding_operator(kt, maps, 25 * rng.standard_normal(GRID), exact_rows(kt))
    contracts.check_operator(operator, nufft_xp, rng)
    samples = to_numpy(operator(contracts.random_array(nufft_xp, operator.domain, rng)))
    assert not np.any(samples[:, kt.counts == 0])


def test_fids_without_a_basis_are_continued_between_their_samples(rng):
    kt = make_data(np, rng, "laps")
    maps = contracts.random_array(np, (N_COILS, *GRID), rng)
    b0 = 5 * rng.standard_normal(GRID)
    x = contracts.random_array(np, (*GRID, len(LINES)), rng)
    fids = (x @ np.exp((2j * np.pi * LINES - RATES)[:, None] * kt.protocol.times_s)).astype(np.complex64)
    expected = slow_sum(kt, maps, b0, x)
    found = encoding_operator(kt, maps, b0)(fids)
    inner = slice(4, -4)
    assert np.linalg.norm((found - expected)[..., inner]) <= 0.1 * np.linalg.norm(expected[..., inner])


def test_rows_alone_are_continued_well_inside_their_band(rng):
    times = 1.3e-3 + DWELL_S * np.arange(200)
    nodes = offset_nodes(-0.5 * DWELL_S, 0.5 * DWELL_S, DWELL_S)
    between = continued(np.exp((2j * np.pi * LINES - 20.0)[:, None] * times), times, nodes)
    for tau in (-0.4 * DWELL_S, 0.17 * DWELL_S):
        found = between.at(np.array([tau]))[0]
        expected = np.exp((2j * np.pi * LINES - 20.0)[:, None] * (times + tau))
        np.testing.assert_allclose(found[:, 20:-20], expected[:, 20:-20], atol=2e-3)


def test_offsets_interpolate_the_highest_frequency_of_the_band():
    times = DWELL_S * np.arange(4)
    nodes = offset_nodes(0.0, DWELL_S, DWELL_S)
    top = 0.5 / DWELL_S
    rows = RowsBetweenSamples(nodes, np.exp(2j * np.pi * top * (times + nodes[:, None]))[:, None, :])
    tau = np.linspace(0, DWELL_S, 11)
    np.testing.assert_allclose(rows.at(tau)[:, 0], np.exp(2j * np.pi * top * (times + tau[:, None])), atol=1e-6)
    assert len(nodes) < 14


def test_points_that_do_not_follow_the_dwell_are_refused(rng):
    kt = make_data(np, rng, "laps")
    t = kt.t.copy()
    t[3, 5] += 0.01 * DWELL_S
    maps = contracts.random_array(np, (N_COILS, *GRID), rng)
    with pytest.raises(DataError, match="do not follow each other at the spectral dwell"):
        encoding_operator(replace(kt, t=t), maps, np.zeros(GRID), exact_rows(kt))


@pytest.mark.parametrize("center", ["voxel", "edge"])
def test_grids_that_are_shifted_or_lie_a_width_beside_are_recognised_and_exact(xp, rng, center):
    geometry = Geometry((6, 4, 3), (200.0, 210.0, 90.0), grid_center=center)
    fov = np.array(geometry.fov_mm) * 1e-3
    axes = np.meshgrid(*[np.arange(n) - n // 2 for n in geometry.matrix], indexing="ij")
    grid = np.stack(axes, axis=-1).reshape(-1, 3) / fov
    back = grid.copy()
    # a lobe that runs back samples +3, not -3
    back[grid[:, 0] * fov[0] < -2.5, 0] = 3 / fov[0]
    shift = np.array([0.2 / fov[0], 0, 0])
    k = np.concatenate([grid + shift, back - shift])
    found = shifted_grids(k, geometry)
    np.testing.assert_allclose(found.shifts[:, 0] * fov[0], [0.2, -0.2], atol=1e-9)
    image = contracts.random_array(xp, (6, 4, 3, 5), rng)
    nufft = nufft_for(k, geometry, 5)
    moved = np.moveaxis(to_numpy(image), -1, 0)
    np.testing.assert_allclose(to_numpy(found.to_points(image)).T, nufft(moved), atol=3e-6)
    values = contracts.random_array(xp, (len(k), 5), rng)
    expected = np.moveaxis(nufft.H(np.ascontiguousarray(to_numpy(values).T)), 0, -1)
    np.testing.assert_allclose(to_numpy(found.from_points(values)), expected, atol=3e-5)
    assert shifted_grids(k + 0.01 * rng.standard_normal(k.shape) / fov, geometry) is None
    assert shifted_grids(k[:-1], geometry) is None
