"""Errors of the lineshape that nobody knows: how large they are comes from the residuals, and the deviations tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import SUMS, make_protocol, noise_sd_for

from mrsi_gadgets.quantification import cnn
from mrsi_gadgets.quantification.spectrum_input import new_networks
from mrsi_gadgets.quantification.uncertainty import lineshape_doubt, weights_variance
from mrsi_gadgets.quantification.varpro import field_doubt, field_lineshape, fit_varpro

MATRIX = (14, 13, 1)


def field(matrix=MATRIX):
    """Return a field [Hz] that grows with the square of the distance from a corner."""
    x, y, z = np.meshgrid(*[np.arange(n) for n in matrix], indexing="ij")
    return (0.8 * x**2 + 2.0 * y + 3.0 * z).astype(np.float32)


def test_patterns_are_nothing_at_the_start_and_nothing_where_the_field_is_even(models):
    expansion = models(make_protocol((5, 4, 3))).dictionary.expansion
    mask = np.ones((5, 4, 3), bool)
    assert np.abs(lineshape_doubt(np.full(mask.shape, 7.0), mask, expansion, 12.0)).max() < 1e-6
    patterns = lineshape_doubt(field((5, 4, 3)), mask, expansion, 12.0)
    size = np.sqrt(np.sum(np.abs(patterns) ** 2, axis=1))
    assert size[:, 0].max() < 0.05 * size.max()


def test_patterns_have_the_power_of_independent_weights_of_the_cells(models):
    """A field that is linear along x in a single row of voxels: the sum over the cells can be written down."""
    expansion = models(make_protocol((15, 1, 1))).dictionary.expansion
    mask, slope = np.ones((15, 1, 1), bool), 3.0
    patterns = lineshape_doubt(slope * np.arange(15.0)[:, None, None], mask, expansion, 12.0)
    x = np.arange(-3.25, 3.5, 0.5)
    point_spread = np.sinc(x) / np.sinc(x / 15) / 2
    off = point_spread * (np.exp(2j * np.pi * slope * x * expansion.node_times_s[:, None]) - 1)
    power = np.sum(np.abs(off) ** 2, axis=1)
    middle = np.sum(np.abs(patterns[7]) ** 2, axis=0)
    # as the signal counts that is left by then
    left = np.exp(-24.0 * expansion.node_times_s)
    assert np.linalg.norm((middle - power) * left) / np.linalg.norm(power * left) < 0.02


@pytest.mark.parametrize("weights_sd", [0.0, 0.5])
def test_the_spread_of_the_weights_is_found_and_the_deviations_cover(rng, make_voxels, models, weights_sd):
    made = make_voxels(rng, MATRIX, spread=0.1)
    model = models(made.image.protocol)
    expansion, b0_hz, mask = model.dictionary.expansion, field(), made.image.mask
    lines = field_lineshape(b0_hz, mask, model)
    patterns = field_doubt(b0_hz, mask, model)
    lines = lines + weights_sd * np.sum(rng.standard_normal((*patterns.shape[:2], 1)) * patterns, axis=1)
    sd = noise_sd_for(150.0, made.image.protocol.times_s, 10.0)
    shaped = made.image.fids() * ((lines @ expansion.from_nodes) @ expansion.functions).reshape(*MATRIX, -1)
    noise = rng.standard_normal((*shaped.shape, 2)) @ np.array([1, 1j])
    image = replace(
        made.image, coefficients=(shaped + sd * noise).astype(np.complex64), b0_hz=b0_hz,
        noise_sd=np.full(MATRIX, sd, np.float32),
    )  # fmt: skip
    maps = fit_varpro(image, model)
    assert abs(maps.provenance["lineshape_weights_sd"] - weights_sd) < 0.15
    off = {n: (maps.maps[n].value.ravel() - made.total(n)) / maps.maps[n].sd.ravel() for n in SUMS}
    for name in ("tNAA", "tCr", "tCho"):
        assert 0.88 < np.mean(np.abs(off[name]) < 1.96) <= 1.0
        if weights_sd:
            # without the doubt they would not
            plain = fit_varpro(image, model, doubt=np.zeros_like(patterns)).maps[name]
            assert np.mean(np.abs(plain.value.ravel() - made.total(name)) < 1.96 * plain.sd.ravel()) < 0.9


def test_a_fit_that_stops_early_does_not_take_its_own_rest_for_wrong_lineshapes(rng, make_voxels, models, monkeypatch):
    made = make_voxels(rng, (9, 7, 1), snr=100.0)
    model = models(made.image.protocol)
    patterns = field_doubt(np.linspace(-30, 60, 63).reshape(9, 7, 1) ** 2 / 60, made.image.mask, model)
    even = np.ones((63, patterns.shape[2]), np.complex64)
    # widths that a fit has not settled
    shape = (made.shape + np.array([0.0, 0.0, 3.0, 0.0])).astype(np.float32)
    monkeypatch.setattr(cnn, "_found", lambda *given, **more: cnn._Found(shape, None))
    networks = new_networks(model, hidden=8, seed=0)
    maps = cnn.fit_cnn(made.image, model, networks, lineshape=even, doubt=patterns)
    assert maps.provenance["lineshape_weights_sd"] < 0.1


def test_residuals_of_noise_alone_show_no_doubt():
    evidence = np.stack([np.full(50, 6.0), np.full(50, 6.5), np.full(50, 20.0)], axis=1)
    assert weights_variance(evidence) == 0.0
    evidence[:, 0] += 0.25 * evidence[:, 2]
    assert weights_variance(evidence) == pytest.approx(0.225, abs=0.01)
