"""Reconstruction with a manifold as a penalty (eq. 8): better than least squares, one minimum whatever the way."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from every_encoding import measured
from synthetic import Basis, Measurement, fid_error, make_coil_maps, make_protocol, measure

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.between_samples import rows_between_samples
from mrsi_gadgets.models.split import split_nuisance
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.models.training import TrainingSettings, train
from mrsi_gadgets.operators.between_samples import offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr, sample
from mrsi_gadgets.reconstruction.dae import convergence, reconstruct_dae
from mrsi_gadgets.reconstruction.lbfgs import End
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

SETTINGS = TrainingSettings(
    rank=20, latent=14, hidden=48, samples=4000, autoencoder_steps=500, projector_steps=20, batch=512,
    latent_sizes=(14,),
)  # fmt: skip
PROTOCOL = make_protocol((13, 10, 1), 128)


@pytest.fixture(scope="module")
def trained():
    """Without the tiny variance of the axis along the mean, whose feature is rounding."""
    found = train(PROTOCOL, settings=SETTINGS, seed=2)
    variance = np.maximum(found.manifold.variance, 1e-5 * found.manifold.variance.max())
    weights = {**found.manifold.weights, "variance": variance}
    return replace(found, manifold=replace(found.manifold, weights=weights))


@pytest.fixture(scope="module")
def scan():
    """FIDs of the ensemble, one for each of 15 patches of an ellipse, at peak SNR 20."""
    return make_scan(np.random.default_rng(8))


def make_scan(rng) -> Measurement:
    matrix = PROTOCOL.geometry.matrix
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in matrix[:2]], indexing="ij")
    patch = (3 * np.clip((x + 1) // 0.41, 0, 4) + np.clip((y + 1) // 0.67, 0, 2)).astype(int)
    fids = sample(PROTOCOL, 15, 40).metabolites
    mask = (x**2 + y**2 < 1)[..., None]
    rho = fids[patch][:, :, None, :] * (mask * (1 + 0.1 * x[..., None]))[..., None]
    noise_sd = noise_sd_at_snr(PROTOCOL, 20) * np.sqrt(np.prod(matrix))
    coil_maps = make_coil_maps(matrix)
    b0_hz = (6 * x - 3 * y**2).astype(np.float32)[..., None]
    kt = measure(rho, coil_maps, b0_hz, PROTOCOL, noise_sd=noise_sd, rng=rng)
    return Measurement(kt, rho, coil_maps, b0_hz, mask, 1.0 * mask, noise_sd, Basis(np.zeros((1, 1))))


def given(scan: Measurement, factor: complex = 1.0):
    kt = scan.kt.with_samples((scan.kt.samples * factor).astype(np.complex64))
    return kt, scan.coil_maps, scan.b0_hz, scan.mask, scan.noise_sd * abs(factor)


@pytest.fixture(scope="module")
def rebuild(trained, scan):
    wide = trained.subspace.metabolites_only()
    return partial(reconstruct_dae, *given(scan), manifold=trained.manifold, subspace=wide, adapt=False)


@pytest.fixture(scope="module")
def wanted(rebuild):
    """The minimum, as near as single precision gets to it."""
    return rebuild(rtol=2e-3, max_iterations=400)


def distance(image, other) -> float:
    """Relative l2 distance of FIDs inside the mask."""
    a, b = (to_numpy(i.fids())[i.mask] for i in (image, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_manifold_lowers_the_error_of_fids_with_and_without_edges(trained, scan, rebuild, wanted):
    wide = trained.subspace.metabolites_only()
    without = reconstruct_subspace(*given(scan), model=wide, prior="none", adapt=False)
    edges = reconstruct_subspace(*given(scan), model=wide, adapt=False)
    alone = rebuild(prior="none")
    errors = [fid_error(image.fids(), scan) for image in (without, alone, edges, wanted)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[3] < 0.93 * errors[2]
    assert errors[3] < errors[1]


def test_both_solvers_find_the_same_minimum(rebuild, wanted):
    other = rebuild(solver="admm", rtol=4e-3, max_iterations=150)
    assert other.provenance["status"] == wanted.provenance["status"] == End.CONVERGED.value
    assert distance(other, wanted) < 0.005
    assert other.provenance["objective"][-1] == pytest.approx(wanted.provenance["objective"][-1], rel=1e-3)
    assert np.all(np.diff(wanted.provenance["objective"]) <= 0)


def test_the_operator_gives_what_complete_data_give_without_transforms(rebuild, wanted):
    general = rebuild(use_operator=True, rtol=4e-3, max_iterations=200)
    assert distance(general, wanted) < 0.005
    np.testing.assert_allclose(
        np.sum(general.coefficient_sd**2, axis=-1), np.sum(wanted.coefficient_sd**2, axis=-1), rtol=0.05
    )


def test_the_result_follows_scale_and_phase(trained, scan, rebuild, wanted):
    factor = 2e-4 * np.exp(2.2j)
    turned = reconstruct_dae(
        *given(scan, factor), manifold=trained.manifold, subspace=trained.subspace.metabolites_only(), adapt=False,
        rtol=2e-3, max_iterations=400,
    )  # fmt: skip
    assert distance(replace(turned, coefficients=turned.coefficients / factor), wanted) < 0.005


def test_no_weight_is_the_linear_solution_and_all_weight_the_manifold(trained, scan, rebuild):
    edges = reconstruct_subspace(*given(scan), model=trained.subspace.metabolites_only(), adapt=False)
    assert distance(rebuild(weight=0.0), edges) < 0.01
    near = rebuild(weight=300.0, prior="none", max_iterations=300)
    inside = trained.manifold.coefficients(to_numpy(near.fids())[near.mask])
    off = np.linalg.norm(trained.manifold.autoencode(inside) - inside) / np.linalg.norm(inside)
    assert off < 0.02
    assert near.provenance["manifold_weight"]["median"] == 300


def test_a_fid_that_no_model_has_seen_keeps_its_line(trained, scan):
    """A line at 2.6 ppm in one patch: the weight of its voxels falls, so that it stays; a common weight takes it."""
    times = PROTOCOL.times_s
    line = 0.6 * np.abs(scan.rho[..., 0]).max() * np.exp((2j * np.pi * PROTOCOL.hz(2.6) - 20) * times)
    place = np.zeros(scan.mask.shape, bool)
    place[4:8, 3:6] = True
    rho = scan.rho + place[..., None] * line
    kt = measure(
        rho, scan.coil_maps, scan.b0_hz, PROTOCOL, noise_sd=scan.noise_sd, rng=np.random.default_rng(3)
    )  # fmt: skip
    wide = trained.subspace.metabolites_only()
    seen = wide.synthesise(wide.coefficients(line[None]))[0]
    kept = {}
    for weight in (None, 12.0):
        image = reconstruct_dae(
            kt, *given(scan)[1:], manifold=trained.manifold, subspace=wide, adapt=False, weight=weight
        )
        extra = (image.fids() - scan.rho)[place].mean(axis=0)
        kept[weight] = float(np.vdot(seen, extra).real / np.vdot(seen, seen).real)
    assert kept[None] > 0.8
    assert kept[12.0] < kept[None] - 0.1


def test_a_scan_that_the_manifold_does_not_know_keeps_its_linear_solution(trained, scan):
    """FIDs of four lines in every voxel: none is unusual among them, and all are strangers to the manifold."""
    lines = np.exp(PROTOCOL.times_s[None] * (2j * np.pi * PROTOCOL.hz([2.4, 2.7, 3.4, 3.8])[:, None] - 30))
    rho = np.abs(scan.rho[..., :1]) * lines.sum(axis=0)
    kt = measure(rho, scan.coil_maps, scan.b0_hz, PROTOCOL, noise_sd=scan.noise_sd, rng=np.random.default_rng(2))
    wide = trained.subspace.metabolites_only()
    linear = reconstruct_subspace(kt, *given(scan)[1:], model=wide)
    image = reconstruct_dae(kt, *given(scan)[1:], manifold=trained.manifold, subspace=wide)
    assert image.provenance["manifold_weight"]["median"] < 0.1
    other = replace(scan, rho=rho)
    assert fid_error(image.fids(), other) < 1.03 * fid_error(linear.fids(), other)


def test_strong_nuisance_is_free_and_absent_nuisance_costs_little(trained, scan, wanted):
    subspace = trained.subspace
    extra = subspace.basis[subspace.metabolite_rank]
    rho = scan.rho + 30 * np.abs(scan.rho).max() * scan.mask[..., None] * extra
    kt = measure(rho, scan.coil_maps, scan.b0_hz, PROTOCOL, noise_sd=scan.noise_sd, rng=np.random.default_rng(5))
    arguments = (kt, *given(scan)[1:])
    free = reconstruct_dae(*arguments, manifold=trained.manifold, subspace=subspace, adapt=False, prior="none")
    plain = reconstruct_subspace(*arguments, model=subspace, adapt=False, prior="none")
    a, b = (to_numpy(i.fids())[scan.mask] @ extra.conj() for i in (free, plain))
    np.testing.assert_allclose(a, b, rtol=2e-4)
    # without any nuisance its rows hold little of the noise they would let through
    held = reconstruct_dae(*given(scan), manifold=trained.manifold, subspace=subspace, adapt=False)
    edges = reconstruct_subspace(*given(scan), model=subspace, adapt=False)
    errors = [fid_error(image.fids(), scan) for image in (wanted, held, edges)]
    assert errors[1] < 0.85 * errors[2]
    assert errors[1] < 1.1 * errors[0]


def test_water_and_lipids_of_some_voxels_do_not_reach_the_metabolites(trained, scan):
    """Residual water 2 x and lipids 3 x the metabolites in the left half; the right half has none."""
    drawn = sample(PROTOCOL, scan.mask.size, 60)
    strength = np.linalg.norm(scan.rho[scan.mask], axis=-1).mean()
    nuisance = np.zeros_like(scan.rho)
    for part, times in ((drawn.water, 2.0), (drawn.lipids, 3.0)):
        unit = part / np.linalg.norm(part, axis=-1, keepdims=True)
        nuisance += times * strength * unit.reshape(scan.rho.shape)
    nuisance[7:] = 0
    rho = scan.rho + nuisance * scan.mask[..., None]
    kt = measure(rho, scan.coil_maps, scan.b0_hz, PROTOCOL, noise_sd=scan.noise_sd, rng=np.random.default_rng(5))
    subspace, errors = trained.subspace, []
    for image in (
        reconstruct_subspace(kt, *given(scan)[1:], model=subspace, adapt=False),
        reconstruct_dae(kt, *given(scan)[1:], manifold=trained.manifold, subspace=subspace, adapt=False),
    ):
        sd = float(np.median(image.coefficient_sd[scan.mask]))
        wanted = split_nuisance(subspace, image.fids()[scan.mask], sd).wanted
        errors.append(np.linalg.norm(wanted - scan.rho[scan.mask]) / np.linalg.norm(scan.rho[scan.mask]))
    assert errors[1] < 0.94 * errors[0]


@pytest.mark.parametrize("complete", [True, False])
def test_samples_at_their_own_times_gain_too(trained, scan, complete):
    """EPSI: the times of the samples differ from point to point, and some of the points may be missing."""
    rng = np.random.default_rng(6)
    wide = trained.subspace.metabolites_only()
    kt = measured("epsi", rng, matrix=PROTOCOL.geometry.matrix, n_times=PROTOCOL.n_times).kt
    between = rows_between_samples(wide, offset_nodes(*offset_range(kt), PROTOCOL.dwell_s))
    operator = encoding_operator(kt, scan.coil_maps, scan.b0_hz, between)
    samples = operator((wide.coefficients(scan.rho) * np.sqrt(scan.mask.size)).astype(np.complex64))
    samples = samples + scan.noise_sd * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
    count = kt.count * (complete or rng.random(kt.count.shape) < 0.6)
    kt = replace(kt, samples=(samples * (count > 0)[:, None]).astype(np.complex64), count=count)
    linear = reconstruct_subspace(kt, *given(scan)[1:], model=wide, between=between)
    image = reconstruct_dae(kt, *given(scan)[1:], manifold=trained.manifold, subspace=wide, between=between)
    assert fid_error(image.fids(), scan) < 0.95 * fid_error(linear.fids(), scan)
    np.testing.assert_array_equal(
        reconstruct_dae(kt, *given(scan)[1:], manifold=trained.manifold, subspace=wide).fids(), image.fids()
    )


def test_missing_points_are_filled_better_than_without_the_manifold(trained, scan):
    chosen = np.random.default_rng(1).random(scan.kt.count.shape) < 0.6
    kt = replace(scan.kt, samples=scan.kt.samples * chosen[None, :, None], count=scan.kt.count * chosen)
    wide = trained.subspace.metabolites_only()
    linear = reconstruct_subspace(kt, *given(scan)[1:], model=wide)
    image = reconstruct_dae(kt, *given(scan)[1:], manifold=trained.manifold, subspace=wide)
    assert fid_error(image.fids(), scan) < 0.97 * fid_error(linear.fids(), scan)


def test_every_namespace_gives_the_same(trained, scan, xp, wanted):
    kt, coil_maps, *rest = given(scan)
    image = reconstruct_dae(
        kt.with_samples(xp.asarray(kt.samples)), xp.asarray(coil_maps), *rest, manifold=trained.manifold,
        subspace=trained.subspace.metabolites_only(), adapt=False, rtol=1e-2,
    )  # fmt: skip
    assert type(image.coefficients) is type(xp.asarray(kt.samples))
    assert distance(image, wanted) < 0.01


def test_iterates_can_be_watched_and_stopped(rebuild, wanted):
    seen, shares = [], []
    image = rebuild(
        callback=lambda i, u: seen.append((i, u)) or i == 3, rtol=1e-6, progress=lambda share, _: shares.append(share)
    )
    assert [i for i, _ in seen] == [1, 2, 3]
    np.testing.assert_array_equal(seen[-1][1], image.coefficients)
    assert image.provenance["status"] == End.STOPPED.value
    assert image.provenance["iterations"] == 3
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert rebuild(max_iterations=2, rtol=1e-6).provenance["status"] == End.MAX_ITERATIONS.value


def test_convergence_is_when_the_error_stays():
    history = [(1.0, 0.4), (2.0, 0.101), (3.0, 0.2), (4.0, 0.1015), (5.0, 0.1)]
    assert convergence(history) == (0.1, 4.0)
    assert convergence(history, within=0.01) == (0.1, 5.0)
    assert convergence([(2.0, 0.3)]) == (0.3, 2.0)
    with pytest.raises(DataError, match="no iterate"):
        convergence([])


def test_an_empty_mask_leaves_the_linear_image(trained, scan):
    kt, coil_maps, b0_hz, mask, noise_sd = given(scan)
    image = reconstruct_dae(
        kt, coil_maps, b0_hz, ~(mask | True), noise_sd, manifold=trained.manifold,
        subspace=trained.subspace.metabolites_only(),
    )  # fmt: skip
    assert image.provenance["method"] == "dae"
    assert np.isfinite(image.coefficients).all()


def test_what_does_not_fit_is_refused(trained, scan, rebuild):
    with pytest.raises(ConfigError, match="prior 'tv'"):
        rebuild(prior="tv")
    with pytest.raises(ConfigError, match="solver 'newton'"):
        rebuild(solver="newton")
    with pytest.raises(ConfigError, match="must not be negative"):
        rebuild(weight=-1.0)
    stranger = learn_subspace(PROTOCOL, rank=5, nuisance=False, n_samples=200)
    with pytest.raises(DataError, match="holds only"):
        rebuild(subspace=stranger)
