"""RAIISE: the projection lowers the error of the prior's image, is trusted by the data's own noise, and is gated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic
from every_encoding import points_of

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.models.gate import calibrate_gate
from mrsi_gadgets.models.training import Trained, TrainingSettings, train
from mrsi_gadgets.operators.between_samples import continued, offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range
from mrsi_gadgets.physics.ensemble import sample
from mrsi_gadgets.reconstruction.raiise import ManifoldProjection
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

SETTINGS = TrainingSettings(
    rank=24, latent=20, hidden=96, samples=6000, autoencoder_steps=400, projector_steps=900, batch=512,
    latent_sizes=(20,), latent_steps=10,
)  # fmt: skip
MATRIX = (15, 12, 1)
PROTOCOL = synthetic.make_protocol(MATRIX, 160)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(PROTOCOL, settings=SETTINGS, seed=1)


def make_scan(rng, noise, *, strange=False, nuisance=0.0):
    """A scan of ensemble FIDs that change smoothly in place, with the FIDs that were put in."""
    x, y, _ = synthetic.coordinates(MATRIX)
    drawn = sample(PROTOCOL, 4, 987)
    mask = x**2 + y**2 < 0.9
    shares = np.stack(
        [np.exp(-((x - a) ** 2 + (y - b) ** 2)) for a, b in ((0.5, 0.3), (-0.6, 0.2), (0.1, -0.7), (0, 0))]
    )
    shares = shares / shares.sum(axis=0) * mask
    rho = np.einsum("nxyz,nt->xyzt", shares, drawn.metabolites)
    rho = rho / np.abs(rho[mask][:, 0]).mean()
    inside = np.zeros(MATRIX, dtype=bool)
    if strange:
        inside[6:10, 5:8] = True
        line = np.exp((2j * np.pi * PROTOCOL.hz(2.87) - 12.0) * PROTOCOL.times_s)
        rho = rho + 0.35 * inside[..., None] * line
    rho = rho.astype(np.complex64)
    water = np.einsum("nxyz,nt->xyzt", shares, drawn.water) * nuisance
    coil_maps = synthetic.make_coil_maps(MATRIX)
    b0_hz = 8.0 * x * y
    kt = synthetic.measure((rho + water).astype(np.complex64), coil_maps, b0_hz, PROTOCOL, noise_sd=noise, rng=rng)
    return (kt, coil_maps, b0_hz, mask, noise), rho, inside


def on_rings(call, rho, rng):
    """The same FIDs by concentric rings, each sample at its own time, with about the same noise in the image."""
    kt, coil_maps, b0_hz, mask, noise = call
    k, late, _, _ = points_of("rings", PROTOCOL.geometry, PROTOCOL.dwell_s)
    noise = noise * np.sqrt(len(k) / np.prod(MATRIX))
    t = PROTOCOL.times_s + late[:, None]
    empty = np.zeros((len(coil_maps), *t.shape), dtype=np.complex64)
    rings = KtData(
        samples=empty, k=k, t=t, count=np.ones(len(k)), role=kt.role, protocol=replace(PROTOCOL, encoding="rings"),
        sample_time_s=PROTOCOL.dwell_s,
    )  # fmt: skip
    u, s, rows = np.linalg.svd(rho[mask], full_matrices=False)
    some = s > 1e-5 * s[0]
    shares = np.zeros((*MATRIX, int(some.sum())), dtype=np.complex64)
    shares[mask] = u[:, some] * s[some]
    nodes = offset_nodes(*offset_range(rings), PROTOCOL.dwell_s)
    operator = encoding_operator(rings, coil_maps, b0_hz, continued(rows[some], PROTOCOL.times_s, nodes))
    samples = operator(shares) * np.sqrt(np.prod(MATRIX))
    drawn = rng.standard_normal((*samples.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return rings.with_samples((samples + np.float32(noise) * drawn).astype(np.complex64)), coil_maps, b0_hz, mask, noise


def error(image, rho, mask) -> float:
    return float(np.linalg.norm((to_numpy(image.fids()) - rho)[mask]) / np.linalg.norm(rho[mask]))


def metabolites(trained):
    return trained.subspace.metabolites_only()


def test_the_projection_lowers_the_error_of_the_prior_in_every_namespace(trained, rng, xp):
    call, rho, _ = make_scan(rng, 1.2)
    moved = (call[0].with_samples(xp.asarray(call[0].samples)), xp.asarray(call[1]), *call[2:])
    model = metabolites(trained)
    plain = reconstruct_subspace(*moved, model=model)
    image = reconstruct_subspace(*moved, model=model, refinement=ManifoldProjection(trained.manifold, model))
    assert error(image, rho, call[3]) < 0.92 * error(plain, rho, call[3])
    assert type(image.coefficients) is type(plain.coefficients)
    assert image.provenance["method"] == "raiise"
    basis = to_numpy(image.basis)
    np.testing.assert_allclose(basis @ basis.conj().T, np.eye(len(basis)), atol=1e-4)
    assert all(0 <= w <= 1 for w in image.provenance["trust"])


def test_the_stated_error_is_that_of_the_result(trained, rng):
    """Stein's estimate of prior and network together, against the truth, over a whole scan."""
    call, rho, _ = make_scan(rng, 1.2)
    model = metabolites(trained)
    image = reconstruct_subspace(*call, model=model, refinement=ManifoldProjection(trained.manifold, model))
    wrong = ((image.fids() - rho) @ image.basis.conj().T)[call[3]]
    stated = np.sqrt(2 * np.sum(image.coefficient_sd[call[3]] ** 2))
    assert stated == pytest.approx(np.linalg.norm(wrong), rel=0.25)


def test_without_noise_worth_the_name_nothing_is_lost(trained, rng):
    call, rho, _ = make_scan(rng, 0.01)
    model = metabolites(trained)
    plain = reconstruct_subspace(*call, model=model)
    image = reconstruct_subspace(*call, model=model, refinement=ManifoldProjection(trained.manifold, model))
    assert error(image, rho, call[3]) <= 1.02 * error(plain, rho, call[3])


def test_the_result_follows_the_scale_of_the_data(trained, rng):
    call, _, _ = make_scan(rng, 0.8)
    model = metabolites(trained)
    refinement = ManifoldProjection(trained.manifold, model)
    first = reconstruct_subspace(*call, model=model, refinement=refinement)
    factor = np.complex64(3e-6 * np.exp(0.7j))
    small = (call[0].with_samples(call[0].samples * factor), *call[1:4], call[4] * abs(factor))
    second = reconstruct_subspace(*small, model=model, refinement=refinement)
    expected = first.fids()
    np.testing.assert_allclose(second.fids() / factor, expected, atol=2e-3 * np.abs(expected).max())


def test_voxels_with_a_resonance_nobody_has_seen_are_told_and_keep_it(trained, rng):
    call, rho, inside = make_scan(rng, 0.5, strange=True)
    model = metabolites(trained)
    gate = calibrate_gate(trained.manifold, trained.subspace, samples=1500)
    open_ = reconstruct_subspace(*call, model=model, refinement=ManifoldProjection(trained.manifold, model))
    gated = reconstruct_subspace(*call, model=model, refinement=ManifoldProjection(trained.manifold, model, gate))
    assert open_.outside_model is None
    core = inside & call[3]
    assert gated.outside_model[core].mean() > 0.9
    assert gated.outside_model[call[3] & ~inside].mean() < 0.35
    assert gated.model_score[core].min() > gated.model_score[call[3] & ~inside].mean()
    probe = np.exp((-2j * np.pi * PROTOCOL.hz(2.87) - 20.0) * PROTOCOL.times_s)
    free = call[3] & ~inside

    def contrast(fids):
        return (fids[core].mean(axis=0) - fids[free].mean(axis=0)) @ probe

    wanted = contrast(rho)
    recovered = [(contrast(to_numpy(i.fids())) / wanted).real for i in (open_, gated)]
    assert recovered[1] > 0.7
    assert recovered[1] > recovered[0] - 0.02
    assert error(gated, rho, core) < 1.02 * error(open_, rho, core)


def half_of(kt, rng):
    """The same data with half of their points missing, but not in the middle of k-space."""
    kept = rng.random(len(kt.count)) < 0.5
    kept |= np.linalg.norm(kt.k, axis=1) < 0.2 * np.linalg.norm(kt.k, axis=1).max()
    samples = kt.samples * kept[None, :, None]
    return replace(kt, samples=samples.astype(np.complex64), count=kept.astype(float))


def test_incomplete_data_are_completed_by_the_manifold(trained, rng):
    """Half of the points are missing: image and projection come to agree, and the error falls."""
    call, rho, _ = make_scan(rng, 0.5)
    kt = half_of(call[0], rng)
    model = metabolites(trained)
    plain = reconstruct_subspace(kt, *call[1:], model=model)
    image = reconstruct_subspace(kt, *call[1:], model=model, refinement=ManifoldProjection(trained.manifold, model))
    assert error(image, rho, call[3]) < 0.93 * error(plain, rho, call[3])
    changes = image.provenance["outer_changes"]
    assert changes[-1] < 0.5 * changes[0]


def test_incomplete_data_are_judged_too_and_keep_a_resonance_nobody_has_seen(trained, rng):
    model = metabolites(trained)
    gate = calibrate_gate(trained.manifold, trained.subspace, samples=1500)

    def found(strange, gate):
        call, rho, inside = make_scan(np.random.default_rng(0), 1.2, strange=strange)
        kt = half_of(call[0], np.random.default_rng(1))
        refinement = ManifoldProjection(trained.manifold, model, gate)
        image = reconstruct_subspace(kt, *call[1:], model=model, refinement=refinement)
        return image, rho, call[3], inside & call[3]

    usual, _, mask, _ = found(False, gate)
    assert usual.outside_model[mask].mean() < 0.3
    (gated, rho, _, core), (open_, *_) = found(True, gate), found(True, None)
    assert gated.outside_model[core].mean() > 0.9
    assert error(gated, rho, core) < 0.8 * error(open_, rho, core)
    assert error(gated, rho, mask) < error(open_, rho, mask)
    basis = to_numpy(gated.basis)
    np.testing.assert_allclose(basis @ basis.conj().T, np.eye(len(basis)), atol=1e-4)
    assert gated.coefficient_sd.shape == gated.coefficients.shape


def test_water_is_kept_out_of_the_projection(trained, rng):
    """With residual water the metabolite part of the result is as good as that of the prior with its water known."""
    call, _, _ = make_scan(rng, 0.8, nuisance=0.02)
    image = reconstruct_subspace(
        *call, model=trained.subspace, refinement=ManifoldProjection(trained.manifold, trained.subspace)
    )
    plain = reconstruct_subspace(*call, model=trained.subspace)
    assert image.provenance["voxels_with_nuisance"] > 0.9
    truth, noisy = make_scan(rng, 0.0, nuisance=0.02)[0][0], call[3]
    whole = reconstruct_subspace(truth, *call[1:4], 1e-6, model=trained.subspace, prior="none", adapt=False)
    wanted = to_numpy(whole.fids()) * np.exp(0j)
    errors = [np.linalg.norm((to_numpy(i.fids()) - wanted)[noisy]) for i in (image, plain)]
    assert errors[0] < 0.95 * errors[1]


def test_on_rings_the_image_of_each_samples_own_noise_is_projected_and_judged(trained, rng):
    call, rho, inside = make_scan(rng, 1.2, strange=True)
    model = metabolites(trained)
    rings = on_rings(call, rho, rng)
    gate = calibrate_gate(trained.manifold, trained.subspace, samples=1500)
    plain = reconstruct_subspace(*rings, model=model)
    image = reconstruct_subspace(*rings, model=model, refinement=ManifoldProjection(trained.manifold, model, gate))
    assert image.provenance["method"] == "raiise"
    assert image.provenance["against_own_noise"] == plain.provenance["against_own_noise"]
    mask = rings[3]
    assert error(image, rho, mask & ~inside) < 0.95 * error(plain, rho, mask & ~inside)
    assert image.outside_model[mask & inside].mean() > 0.9
    # what gridding approximates does not count as strange
    assert image.outside_model[mask & ~inside].mean() < 0.25
