"""Rings and spirals: the samples themselves against the prior, each with its own noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from every_encoding import DECAY_S, measured
from synthetic import fid_error

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.operators.between_samples import continued, offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range, spectral_times
from mrsi_gadgets.reconstruction import least_squares, uneven_noise
from mrsi_gadgets.reconstruction.gridding import alias_free, with_density
from mrsi_gadgets.reconstruction.prior_step import components_of, fit_prior, in_full
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

NOISE = 0.3


def calibrated(m):
    return m.kt, m.coil_maps, m.b0_hz, m.mask, m.noise_sd


@pytest.mark.parametrize("kind", ["rings", "spiral"])
def test_the_noise_of_each_part_of_k_space_lowers_the_error(kind, monkeypatch):
    errors = []
    for seed in range(4):
        m = measured(kind, np.random.default_rng(seed), noise=NOISE)
        own = reconstruct_subspace(*calibrated(m), model=m.model, water=m.water)
        assert own.provenance["against_own_noise"]["settled"]
        with monkeypatch.context() as patched:
            patched.setattr(least_squares, "_UNEVEN", np.inf)
            white = reconstruct_subspace(*calibrated(m), model=m.model, water=m.water)
        assert "against_own_noise" not in white.provenance
        errors.append([fid_error(to_numpy(image.fids()), m) for image in (own, white)])
    own, white = np.mean(errors, axis=0)
    assert own < 0.98 * white


def test_the_solution_is_the_least_of_misfit_and_penalty(rng, monkeypatch):
    monkeypatch.setattr(uneven_noise, "ENOUGH", 1e-4)
    monkeypatch.setattr(uneven_noise, "MOST_ITERATIONS", 400)
    m = measured("rings", rng, noise=0.2, matrix=(9, 7, 1), n_times=48)
    kt = with_density(replace(m.kt, count=np.where(np.arange(len(m.kt.k)) % 3, 1.0, 2.0)))
    times = spectral_times(kt)
    rows = continued(m.model.basis[:5], times, offset_nodes(*offset_range(kt), kt.protocol.dwell_s))
    operator = encoding_operator(kt, m.coil_maps, m.b0_hz, rows)
    image = operator.H(kt.samples * kt.density[:, None].astype(np.float32))
    noise = np.full(5, 1.3 * m.noise_sd)
    components = components_of(image, noise, m.mask)
    z = components.of(image)
    fitted = fit_prior("edges", components, components.inside(z), None, rng)
    start = components.replaced(z, fitted.step(components.inside(z)))
    back = (components.rotation.conj().T * noise).astype(np.complex64)
    found, solution = uneven_noise.against_own_noise(
        kt, m.coil_maps, m.b0_hz, rows, start * 1.0, left=kt.samples - operator(start @ back), components=components,
        edges=fitted.edges, choice=fitted.choice, noise_sd=m.noise_sd,
    )  # fmt: skip
    assert solution.residuals[-1] < solution.residuals[0]
    edges, lambdas = in_full(fitted.edges, components), fitted.choice.weights
    weights = np.sqrt(kt.counts[:, 0])[None, :, None]

    def cost(u):
        misfit = weights * (kt.samples - operator((u @ back).astype(np.complex64))) / m.noise_sd
        return float(np.sum(np.abs(misfit) ** 2) + np.sum(lambdas * np.abs(edges.laplacian(u)) ** 2))

    assert cost(found) < cost(start)
    inside = alias_free(kt)[..., None]
    for _ in range(3):
        step = rng.standard_normal((*found.shape, 2)).view(complex)[..., 0] * inside
        step[..., components.leading :] = 0
        up, here, down = (cost((found + s * step).astype(np.complex64)) for s in (0.3, 0.0, -0.3))
        # a quadratic function: its slope over its curvature is how far off the least value is along this step
        assert abs(up - down) / (up - 2 * here + down) < 0.05


def test_a_resonance_no_model_has_seen_is_found_off_the_grid_and_none_where_there_is_none(rng):
    m = measured("rings", rng, noise=0.02)
    assert reconstruct_subspace(*calibrated(m), model=m.model).provenance["rows_added"] == 0
    # a fifth resonance as the model's own: 1 ppm, all over the head
    protocol = m.kt.protocol
    unseen = measured("rings", np.random.default_rng(5))
    hz = float(protocol.hz(1.0) - protocol.hz(2.01))
    shifted = unseen.kt.samples * np.exp(2j * np.pi * hz * unseen.kt.t)
    kt = m.kt.with_samples((m.kt.samples + 0.5 * shifted).astype(np.complex64))
    found = reconstruct_subspace(kt, m.coil_maps, m.b0_hz, m.mask, m.noise_sd, model=m.model)
    assert found.provenance["rows_added"] >= 1
    back = np.exp(2j * np.pi * found.provenance["shared_shift_hz"] * protocol.times_s)
    probe = np.exp(protocol.times_s * (2j * np.pi * protocol.hz(1.0) - 1 / DECAY_S)).conj()
    seen = ((to_numpy(found.fids()) * back - m.rho) @ probe)[m.mask].real.mean()
    wanted = 0.5 * (unseen.rho * np.exp(2j * np.pi * hz * protocol.times_s) @ probe)[m.mask].real.mean()
    assert seen == pytest.approx(wanted, rel=0.15)


def test_torch_arrays_stay_torch_and_give_the_same(rng):
    torch = pytest.importorskip("torch")
    m = measured("rings", rng, noise=0.1, matrix=(9, 7, 1), n_times=48)
    wanted = reconstruct_subspace(*calibrated(m), model=m.model, water=m.water)
    kt = m.kt.with_samples(torch.asarray(m.kt.samples))
    found = reconstruct_subspace(
        kt, torch.asarray(m.coil_maps), m.b0_hz, m.mask, m.noise_sd, model=m.model, water=m.water
    )  # fmt: skip
    assert isinstance(found.coefficients, torch.Tensor)
    assert found.provenance["against_own_noise"] == wanted.provenance["against_own_noise"]
    largest = np.abs(to_numpy(wanted.fids())).max()
    np.testing.assert_allclose(to_numpy(found.fids()), to_numpy(wanted.fids()), atol=2e-3 * largest)
