from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.reconstruction.edge_prior import edge_distances, edge_prior
from mrsi_gadgets.reconstruction.fourier import field_phase, reconstruct_fourier
from mrsi_gadgets.reconstruction.low_rank import noise_threshold, reconstruct_low_rank
from mrsi_gadgets.reconstruction.regularisation import (
    WEIGHTS,
    choose_pooled_weight,
    choose_weights,
    smooth,
    smoothed_noise,
)
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace


def arguments(m, kt=None):
    return (m.kt if kt is None else kt, m.coil_maps, m.b0_hz, m.mask, m.noise_sd)


def test_fourier_returns_the_fids_of_every_voxel_without_noise(xp, rng):
    m = synthetic.make_measurement(rng, noise=0.0)
    kt = m.kt.with_samples(xp.asarray(m.kt.samples))
    image = reconstruct_fourier(kt, xp.asarray(m.coil_maps), m.b0_hz, m.mask)
    np.testing.assert_allclose(to_numpy(image.fids()), m.rho, atol=2e-5)
    assert image.basis is None


def test_fourier_states_the_noise_of_its_fids(rng):
    m = synthetic.make_measurement(rng, noise=0.3)
    image = reconstruct_fourier(*arguments(m))
    left = (np.asarray(image.fids()) - m.rho)[m.mask]
    assert left.real.std() == pytest.approx(float(image.noise_sd[m.mask].mean()), rel=0.03)


def test_averaged_readouts_lower_the_stated_noise(rng):
    m = synthetic.make_measurement(rng)
    four = replace(m.kt, count=np.full_like(m.kt.count, 4))
    once, averaged = (reconstruct_fourier(*arguments(m, kt)).noise_sd for kt in (m.kt, four))
    np.testing.assert_allclose(averaged, once / 2, rtol=1e-6)


def test_samples_are_left_as_they_are(rng):
    m = synthetic.make_measurement(rng, matrix=(1, 1, 1))
    before = m.kt.samples.copy()
    reconstruct_fourier(*arguments(m))
    np.testing.assert_array_equal(m.kt.samples, before)


def test_stepped_phases_are_exact(xp):
    b0 = np.array([[[-31.7, 0.0, 12.3]]])
    times = 1.3e-3 + np.arange(101) / 1500
    phase = to_numpy(field_phase(xp.asarray(np.zeros((1, 1), np.complex64)), b0, times))
    np.testing.assert_allclose(phase, np.exp(2j * np.pi * b0[..., None] * times), atol=1e-5)


def test_calibration_of_another_shape_is_refused_by_name(rng):
    m = synthetic.make_measurement(rng)
    with pytest.raises(DataError, match="coil maps"):
        reconstruct_fourier(m.kt, m.coil_maps[:2], m.b0_hz, m.mask)
    with pytest.raises(DataError, match="b0_hz"):
        reconstruct_fourier(m.kt, m.coil_maps, m.b0_hz[:3], m.mask)
    with pytest.raises(DataError, match="standard deviation"):
        reconstruct_fourier(m.kt, m.coil_maps, m.b0_hz, m.mask, 0.0)


def test_low_rank_finds_the_rank_from_the_noise_and_lowers_the_error(xp, rng):
    m = synthetic.make_measurement(rng, noise=0.1)
    kt = m.kt.with_samples(xp.asarray(m.kt.samples))
    image = reconstruct_low_rank(kt, xp.asarray(m.coil_maps), m.b0_hz, m.mask, m.noise_sd)
    assert 3 <= image.provenance["rank"] <= 4
    fourier = synthetic.fid_error(reconstruct_fourier(*arguments(m)).fids(), m)
    assert synthetic.fid_error(to_numpy(image.fids()), m) < 0.4 * fourier


def test_pure_noise_stays_below_the_threshold(rng):
    noise = rng.standard_normal((300, 80)) + 1j * rng.standard_normal((300, 80))
    assert np.linalg.svd(noise, compute_uv=False)[0] < noise_threshold(300, 80, 1.0)


def test_subspace_with_the_prior_beats_the_projection_and_fourier(xp, rng):
    m = synthetic.make_measurement(rng, noise=0.2)
    moved = m.kt.with_samples(xp.asarray(m.kt.samples))
    call = (moved, xp.asarray(m.coil_maps), m.b0_hz, m.mask, m.noise_sd)
    plain = reconstruct_subspace(*call, model=m.model, prior="none")
    edges = reconstruct_subspace(*call, model=m.model, water=m.water)
    fourier = synthetic.fid_error(reconstruct_fourier(*arguments(m)).fids(), m)
    assert synthetic.fid_error(to_numpy(plain.fids()), m) < 0.45 * fourier
    assert synthetic.fid_error(to_numpy(edges.fids()), m) < 0.25 * fourier
    basis = to_numpy(edges.basis)
    np.testing.assert_allclose(basis @ basis.conj().T, np.eye(len(basis)), atol=1e-4)


@pytest.mark.parametrize("prior", ["tv", "wavelet"])
def test_other_priors_lower_the_error_as_well_and_state_it(prior, xp, rng):
    m = synthetic.make_measurement(rng, noise=0.2)
    moved = m.kt.with_samples(xp.asarray(m.kt.samples))
    call = (moved, xp.asarray(m.coil_maps), m.b0_hz, m.mask, m.noise_sd)
    plain = reconstruct_subspace(*call, model=m.model, prior="none")
    image = reconstruct_subspace(*call, model=m.model, water=m.water, prior=prior)
    left = synthetic.fid_error(to_numpy(image.fids()), m) / synthetic.fid_error(to_numpy(plain.fids()), m)
    assert left < 0.7
    stated = np.sqrt(np.mean(np.sum(image.coefficient_sd**2, axis=-1)[m.mask]))
    stated_plain = np.sqrt(np.mean(np.sum(plain.coefficient_sd**2, axis=-1)[m.mask]))
    assert stated / stated_plain == pytest.approx(left, rel=0.3)
    assert image.provenance["weights"][0] < image.provenance["weight_of_noise_components"]


def test_priors_of_one_step_are_refused_for_missing_readouts(rng):
    m = synthetic.make_measurement(rng)
    count = m.kt.count.copy()
    count[3] = 0
    with pytest.raises(ConfigError, match="prior 'tv' is one step from complete data; use edges"):
        reconstruct_subspace(*arguments(m, replace(m.kt, count=count)), model=m.model, prior="tv")


def test_at_high_snr_the_prior_does_no_harm(rng):
    m = synthetic.make_measurement(rng, noise=0.002)
    plain = reconstruct_subspace(*arguments(m), model=m.model, prior="none")
    for prior in ("edges", "tv", "wavelet"):
        smooth = reconstruct_subspace(*arguments(m), model=m.model, prior=prior)
        assert synthetic.fid_error(smooth.fids(), m) <= 1.02 * synthetic.fid_error(plain.fids(), m), prior


@pytest.mark.parametrize("prior", ["none", "edges"])
def test_per_voxel_and_general_solution_agree_on_complete_data(prior, rng):
    m = synthetic.make_measurement(rng, noise=0.1)
    images = [
        reconstruct_subspace(*arguments(m), model=m.model, prior=prior, rtol=1e-6, use_operator=general)
        for general in (False, True)
    ]
    assert [i.provenance["solver"] for i in images] == ["per voxel", "conjugate gradients"]
    direct, general = (np.asarray(i.fids())[m.mask] for i in images)
    assert np.linalg.norm(general - direct) / np.linalg.norm(direct) < 1e-3


def test_missing_readouts_are_bridged_by_coils_and_prior(rng):
    m = synthetic.make_measurement(rng, noise=0.02, matrix=(18, 16, 1))
    count = np.ones((18, 16), dtype=int)
    count[1::2, ::2] = 0
    count[7:11, 6:10] = 1
    samples = m.kt.samples * (count.reshape(-1) > 0)[None, :, None]
    kt = replace(m.kt, samples=samples.astype(np.complex64), count=count.reshape(-1))
    zero_filled = synthetic.fid_error(reconstruct_fourier(*arguments(m, kt)).fids(), m)
    image = reconstruct_subspace(*arguments(m, kt), model=m.model, water=m.water)
    assert synthetic.fid_error(image.fids(), m) < 0.35 * zero_filled
    assert image.provenance["readouts_missing"] == int(np.sum(count == 0))


def test_stated_errors_are_those_over_noise_realisations(rng):
    m = synthetic.make_measurement(rng, noise=0.2)
    images = []
    for seed in range(12):
        kt = synthetic.measure(
            m.rho, m.coil_maps, m.b0_hz, m.kt.protocol, noise_sd=m.noise_sd, rng=np.random.default_rng(seed)
        )
        images.append(reconstruct_subspace(*arguments(m, kt), model=m.model, adapt=False))
    errors = np.sqrt(np.mean([np.abs(np.asarray(i.fids()) - m.rho)[m.mask] ** 2 for i in images]))
    # energy of a voxel's FID error is the sum of its coefficients' (orthonormal rows), two parts each
    stated = np.sqrt(np.mean([2 * np.sum(i.coefficient_sd[m.mask] ** 2, axis=-1) for i in images]) / m.rho.shape[-1])
    assert stated == pytest.approx(errors, rel=0.15)


def test_a_resonance_no_model_has_seen_is_added_to_the_basis(rng):
    m = synthetic.make_measurement(rng, noise=0.02)
    x, y, _ = synthetic.coordinates((14, 11, 1))
    lesion = ((x + 0.3) ** 2 + (y - 0.2) ** 2 < 0.15).astype(float)
    times = m.kt.protocol.times_s
    unseen = lesion[..., None] * np.exp(times * (2j * np.pi * m.kt.protocol.hz(1.0) - 15))
    kt = synthetic.measure(m.rho + unseen, m.coil_maps, m.b0_hz, m.kt.protocol, noise_sd=m.noise_sd, rng=rng)
    found, blind = (reconstruct_subspace(*arguments(m, kt), model=m.model, adapt=adapt) for adapt in (True, False))
    probe = unseen[lesion > 0][0].conj()
    contrast = []
    for image in (found, blind):
        back = np.exp(2j * np.pi * image.provenance.get("shared_shift_hz", 0.0) * times)
        added = (np.asarray(image.fids()) * back - m.rho)[lesion > 0] @ probe
        contrast.append(added.real.mean() / np.sum(np.abs(probe) ** 2))
    assert found.provenance["rows_added"] >= 1
    assert contrast[0] == pytest.approx(1, abs=0.15)
    assert contrast[1] < 0.5


@pytest.mark.parametrize("knows_covariance", [True, False])
def test_a_shift_that_all_voxels_share_is_found(knows_covariance, rng):
    m = synthetic.make_measurement(rng, noise=0.05)
    m = m if knows_covariance else replace(m, model=synthetic.Basis(m.model.basis))
    kt = synthetic.measure(m.rho, m.coil_maps, m.b0_hz + 4.0, m.kt.protocol, noise_sd=m.noise_sd, rng=rng)
    image = reconstruct_subspace(*arguments(m, kt), model=m.model)
    assert image.provenance["shared_shift_hz"] == pytest.approx(4.0, abs=0.5)
    np.testing.assert_allclose(image.b0_hz, m.b0_hz + image.provenance["shared_shift_hz"], atol=1e-4)


def test_a_lesion_that_the_water_image_does_not_show_keeps_its_contrast(rng):
    m = synthetic.make_measurement(rng, noise=0.08, matrix=(24, 22, 1))
    image = reconstruct_subspace(*arguments(m), model=m.model, water=m.water)
    x, y, _ = synthetic.coordinates((24, 22, 1))
    lesion = ((x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.12) & m.mask
    probe = np.exp(-2j * np.pi * m.kt.protocol.hz(2.01) * m.kt.protocol.times_s - 10 * m.kt.protocol.times_s)
    truth, estimate = ((f @ probe).real for f in (m.rho, np.asarray(image.fids())))
    contrast = [f[lesion].mean() - f[m.mask & ~lesion].mean() for f in (truth, estimate)]
    assert contrast[1] / contrast[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_results_scale_with_the_data(scale, rng):
    m = synthetic.make_measurement(rng, noise=0.1)
    one = np.asarray(reconstruct_subspace(*arguments(m), model=m.model, water=m.water).fids())
    kt = m.kt.with_samples((m.kt.samples * scale).astype(np.complex64))
    other = reconstruct_subspace(kt, m.coil_maps, m.b0_hz, m.mask, m.noise_sd * scale, model=m.model, water=m.water)
    np.testing.assert_allclose(np.asarray(other.fids()) / scale, one, atol=2e-3 * np.abs(one).max())


def test_one_seed_gives_one_result_bit_by_bit(rng):
    m = synthetic.make_measurement(rng, noise=0.1)
    first, second = (reconstruct_subspace(*arguments(m), model=m.model, water=m.water, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.coefficients, second.coefficients)


def test_progress_ends_at_one_and_an_empty_mask_is_no_failure(rng):
    m = synthetic.make_measurement(rng, noise=0.1)
    seen = []
    reconstruct_subspace(*arguments(m), model=m.model, progress=lambda share, words: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    reconstruct_subspace(m.kt, m.coil_maps, m.b0_hz, np.zeros_like(m.mask), m.noise_sd, model=m.model)


def test_a_model_of_another_protocol_and_an_unknown_prior_are_refused(rng):
    m = synthetic.make_measurement(rng)
    with pytest.raises(DataError, match="95 points and the data 96"):
        reconstruct_subspace(*arguments(m), model=synthetic.Basis(m.model.basis[:, 1:]))
    with pytest.raises(ConfigError, match="prior 'total_variation'"):
        reconstruct_subspace(*arguments(m), model=m.model, prior="total_variation")


def make_smoothing_problem(rng, xp=np):
    mask = np.ones((13, 11, 1), dtype=bool)
    mask[:2, :3] = False
    x, y, _ = synthetic.coordinates((13, 11, 1))
    truth = np.stack([np.sin(3 * x) * y, 5 * (x > 0), 0 * x], axis=-1) * mask[..., None]
    noise = (rng.standard_normal(truth.shape) + 1j * rng.standard_normal(truth.shape)) * mask[..., None]
    prior = edge_prior(mask, xp.asarray(np.zeros(1, np.float32)))
    return truth, xp.asarray((truth + noise).astype(np.complex64)), mask, prior


def dense_laplacian(prior, mask):
    n = mask.size
    identity = np.eye(n, dtype=np.float32).reshape(*mask.shape, n)
    return np.asarray(prior.laplacian(identity)).reshape(n, n).astype(float)


def test_the_smoother_is_the_inverse_of_one_plus_lambda_times_the_squared_laplacian(xp, rng):
    _, z, mask, prior = make_smoothing_problem(rng, xp)
    choice = choose_weights(z, 2.0, prior, mask, rng)
    smoothed = to_numpy(smooth(z, prior, choice)).reshape(mask.size, -1)
    laplacian = dense_laplacian(make_smoothing_problem(rng)[3], mask)
    flat = to_numpy(z).reshape(mask.size, -1)
    for i, weight in enumerate(choice.weights):
        wanted = np.linalg.solve(np.eye(mask.size) + weight * laplacian @ laplacian, flat[:, i])
        assert np.linalg.norm(smoothed[:, i] - wanted) < 0.01 * np.linalg.norm(wanted) + 0.01 * np.linalg.norm(
            flat[:, i]
        )


def test_the_risk_estimate_is_the_error_on_average_and_its_choice_nearly_the_best(rng):
    risks, errors, best = [], [], []
    for _ in range(30):
        truth, z, mask, prior = make_smoothing_problem(rng)
        choice = choose_weights(z, 2.0, prior, mask, rng)
        chosen = smooth(z, prior, choice)
        risks.append(choice.risk)
        errors.append(np.sum(np.abs(chosen - truth) ** 2, axis=(0, 1, 2)) / mask.sum())
        fixed = [smooth(z, prior, replace(choice, index=np.full(3, i))) for i in range(0, len(WEIGHTS), 4)]
        best.append(np.min([np.sum(np.abs(f - truth) ** 2, axis=(0, 1, 2)) for f in fixed], axis=0) / mask.sum())
    # the smallest of many estimates is a little optimistic; 130 voxels leave a scatter of 2 sqrt(2 / 130)
    np.testing.assert_allclose(np.mean(risks, axis=0), np.mean(errors, axis=0), atol=0.25)
    np.testing.assert_array_less(np.mean(errors, axis=0), np.mean(best, axis=0) + 0.25)


def test_components_without_signal_share_a_weight_whose_risk_is_that_of_their_mean(rng):
    """60 components of noise and one weak wave that all share: each alone is below the noise, their mean is not."""
    _, _, mask, prior = make_smoothing_problem(rng)
    x, _, _ = synthetic.coordinates((13, 11, 1))
    wave = 0.5 * np.cos(2 * x)[..., None] * mask[..., None]
    noise = (rng.standard_normal((13, 11, 1, 60)) + 1j * rng.standard_normal((13, 11, 1, 60))) * mask[..., None]
    both = (noise + wave).astype(np.complex64)
    pooled = [choose_pooled_weight(both, 2.0, prior, mask, np.random.default_rng(i)) for i in range(20)]
    alone = choose_weights(both, 2.0, prior, mask, rng)
    assert all(len(p.index) == 60 and len(set(p.index)) == 1 for p in pooled)
    at = [replace(alone, index=p.index) for p in pooled]
    errors = [np.mean(np.abs(smooth(both, prior, c) - wave)[mask] ** 2) for c in at]
    assert np.mean([p.risk[0] for p in pooled]) == pytest.approx(np.mean(errors), abs=0.1)
    everything = [
        np.mean(np.abs(smooth(both, prior, replace(alone, index=np.full(60, i))) - wave)[mask] ** 2)
        for i in range(len(WEIGHTS))
    ]
    assert np.mean(errors) < 1.3 * min(everything)


def test_the_noise_left_by_a_smoother_is_the_norm_of_its_rows(rng):
    _, z, mask, prior = make_smoothing_problem(rng)
    choice = replace(choose_weights(z, 2.0, prior, mask, rng), index=np.array([0, 10, 20]))
    gains = np.sqrt(np.mean([smoothed_noise(prior, choice, mask, z, rng) ** 2 for _ in range(20)], axis=0))
    gains = gains.reshape(mask.size, 3)
    laplacian = dense_laplacian(prior, mask)
    for i, weight in enumerate(choice.weights):
        rows = np.linalg.norm(np.linalg.inv(np.eye(mask.size) + weight * laplacian @ laplacian), axis=1)[mask.ravel()]
        ratio = gains[mask.ravel(), i] / rows
        assert ratio.mean() == pytest.approx(1, abs=0.03)
        assert ratio.std() < 0.06


def test_weights_are_small_across_edges_and_zero_across_the_border_of_the_mask(xp, rng):
    mask = np.ones((8, 6, 1), dtype=bool)
    mask[0] = False
    step = np.zeros((8, 6, 1, 1), dtype=np.float32)
    step[4:] = 1
    image = xp.asarray(step + 0.01 * rng.standard_normal(step.shape).astype(np.float32))
    prior = edge_prior(mask, image, (edge_distances(image),))
    along_x = to_numpy(prior.weights[0])[..., 0, 0]
    assert (along_x[0] == 0).all()
    assert along_x[3].max() < 0.05
    assert np.median(along_x[5]) > 0.3
    eigenvalues = np.linalg.eigvalsh(dense_laplacian(_numpy_prior(prior), mask))
    assert eigenvalues[0] > -1e-5
    assert eigenvalues[-1] <= prior.bound + 1e-5


def _numpy_prior(prior):
    return replace(prior, weights=tuple(to_numpy(w) for w in prior.weights))
