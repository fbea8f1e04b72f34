from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic

import contracts
from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import DataError, NumericalError
from mrsi_gadgets.reconstruction.coils import compression_matrix
from mrsi_gadgets.reconstruction.noise import (
    apply_channel_matrix,
    covariance_from_noise_scan,
    noise_covariance,
    noise_covariance_from_data,
    whitening_matrix,
)
from mrsi_gadgets.reconstruction.solvers import Status, conjugate_gradient


def correlated_noise(rng, shape, n_coils=4):
    root = rng.standard_normal((n_coils, n_coils)) + 1j * rng.standard_normal((n_coils, n_coils))
    white = rng.standard_normal((n_coils, *shape)) + 1j * rng.standard_normal((n_coils, *shape))
    return np.tensordot(root, white, axes=1).astype(np.complex64), 2 * root @ root.conj().T


def test_whitened_noise_has_unit_variance_in_real_and_imaginary_part(xp, rng):
    noise, _ = correlated_noise(rng, (20, 500))
    matrix = whitening_matrix(noise_covariance(xp.asarray(noise)))
    white = to_numpy(apply_channel_matrix(matrix, xp.asarray(noise))).reshape(4, -1)
    # the covariance was learned from these samples, so only rounding is left
    np.testing.assert_allclose(white @ white.conj().T / white.shape[1], 2 * np.eye(4), atol=2e-3)
    assert np.std(white.real) == pytest.approx(1, abs=0.02)


def test_noise_of_another_dwell_is_scaled_by_the_ratio_of_the_bandwidths(rng):
    protocol = synthetic.make_protocol((8, 8, 1), 64)
    zero = np.zeros((8, 8, 1, 64))
    maps = synthetic.make_coil_maps((8, 8, 1))
    scan = synthetic.measure(zero, maps, zero[..., 0], protocol, noise_sd=2.0, rng=rng, role=Role.NOISE)
    same = covariance_from_noise_scan(scan, scan.sample_time_s)
    fine = covariance_from_noise_scan(replace(scan, sample_time_s=scan.sample_time_s / 4), scan.sample_time_s)
    # where the filter passes four fifths of the noise scan's bandwidth, the rest holds none of its power
    filtered = replace(scan, protocol=replace(scan.protocol, receiver_noise_bandwidth=0.8))
    np.testing.assert_allclose(covariance_from_noise_scan(filtered, scan.sample_time_s), same / 0.8, rtol=1e-6)
    # four times the bandwidth of the data: four times their noise power
    np.testing.assert_allclose(fine * 4, same)
    assert np.real(np.diag(same)).mean() == pytest.approx(8.0, rel=0.05)


def test_too_few_noise_samples_are_refused_with_the_number_that_is_needed(rng):
    noise, _ = correlated_noise(rng, (39,))
    with pytest.raises(DataError, match="39 samples for 4 channels; at least 40"):
        noise_covariance(noise)


def test_noise_that_is_not_a_number_is_refused(rng):
    noise, _ = correlated_noise(rng, (100,))
    noise[1, 3] = np.nan
    with pytest.raises(DataError, match="not numbers"):
        noise_covariance(noise)


def test_a_silent_channel_is_named(rng):
    _, covariance = correlated_noise(rng, (1,))
    covariance[2] = covariance[:, 2] = 0
    with pytest.raises(DataError, match=r"channel\(s\) \[2\] carry no noise"):
        whitening_matrix(covariance)


def test_two_copies_of_one_channel_are_refused(rng):
    noise, _ = correlated_noise(rng, (500,))
    noise[3] = noise[1]
    with pytest.raises(DataError, match="identical"):
        whitening_matrix(noise_covariance(noise))


def test_without_a_noise_scan_the_tail_of_the_data_tells_the_noise_and_says_so(rng):
    measurement = synthetic.make_measurement(rng, noise=0.05, n_times=256)
    covariance, source = noise_covariance_from_data(measurement.kt)
    wanted = 2 * measurement.noise_sd**2
    # signal that is left in the tail makes the estimate too large, by little
    assert 0.95 * wanted < np.real(np.diag(covariance)).mean() < 1.2 * wanted
    assert "no noise scan" in source


def test_averages_are_counted_back_to_one_readout(rng):
    measurement = synthetic.make_measurement(rng, noise=0.05, n_times=256)
    averaged = replace(measurement.kt, count=np.full_like(measurement.kt.count, 4))
    one, _ = noise_covariance_from_data(measurement.kt)
    four, _ = noise_covariance_from_data(averaged)
    np.testing.assert_allclose(four, 4 * one)


def test_compression_keeps_the_stated_energy_and_white_noise_white(rng):
    signal = rng.standard_normal((8, 2)) @ (rng.standard_normal((2, 3000)) * np.array([[50.0], [20.0]]))
    noise = rng.standard_normal((8, 3000)) + 1j * rng.standard_normal((8, 3000))
    matrix = compression_matrix((signal + noise).astype(np.complex64), lost_energy=1e-3)
    assert matrix.shape[0] == 2
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(2), atol=1e-5)
    assert np.linalg.norm(matrix @ signal) ** 2 > (1 - 1e-3) * np.linalg.norm(signal) ** 2


def test_conjugate_gradients_satisfy_the_solver_contract(xp, rng):
    contracts.check_solver(lambda a, b: conjugate_gradient(a, b, rtol=1e-6, max_iterations=200), xp, rng)


def test_a_start_at_the_solution_needs_no_iteration(rng):
    truth = contracts.random_array(np, (9,), rng)
    solution = conjugate_gradient(lambda x: 3 * x, 3 * truth, x0=truth)
    assert solution.status is Status.CONVERGED
    assert len(solution.residuals) == 1


def test_an_indefinite_operator_is_a_breakdown_and_not_a_result():
    solution = conjugate_gradient(lambda x: -x, np.ones(3, np.float32))
    assert solution.status is Status.BREAKDOWN
    with pytest.raises(NumericalError, match="not positive definite"):
        solution.checked()


def test_running_out_of_iterations_is_said_with_the_residual(rng):
    diagonal = np.geomspace(1, 1e6, 50).astype(np.float32)
    solution = conjugate_gradient(lambda x: diagonal * x, np.ones(50, np.float32), max_iterations=3)
    assert solution.status is Status.MAX_ITERATIONS
    assert len(solution.residuals) == 4
    with pytest.raises(NumericalError, match="relative residual"):
        solution.checked()


def test_a_callback_can_stop_and_zero_data_give_zeros(rng):
    diagonal = np.geomspace(1, 1e3, 50).astype(np.float32)
    solution = conjugate_gradient(lambda x: diagonal * x, np.ones(50, np.float32), callback=lambda i, _: i == 2)
    assert solution.status is Status.STOPPED
    assert len(solution.residuals) == 3
    assert not conjugate_gradient(lambda x: x, np.zeros(4, np.complex64)).checked().any()


def test_infinite_data_are_refused():
    with pytest.raises(NumericalError, match="not finite"):
        conjugate_gradient(lambda x: x, np.array([1.0, np.inf]))


@pytest.mark.parametrize("n_new", [2, 4])
def test_a_channel_matrix_may_overwrite_the_samples_it_takes(rng, n_new):
    samples = (rng.standard_normal((4, 3, 5)) + 1j * rng.standard_normal((4, 3, 5))).astype(np.complex64)
    matrix = (rng.standard_normal((n_new, 4)) + 1j * rng.standard_normal((n_new, 4))).astype(np.complex64)
    wanted = np.einsum("nc,cst->nst", matrix, samples)
    kept = samples.copy()
    np.testing.assert_allclose(apply_channel_matrix(matrix, samples), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(samples, kept)
    result = apply_channel_matrix(matrix, samples, overwrite=True)
    assert np.shares_memory(result, samples)
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
