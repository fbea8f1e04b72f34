"""Deviations from replicas: scatter of the amounts as replicas show it, and what a reconstruction smoothed away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fit_voxels import SUMS

from mrsi_gadgets.data import Replicas
from mrsi_gadgets.quantification.varpro import fit_varpro

MATRIX = (12, 11, 1)


def white(rng, sd, count, image):
    shape = (count, int(image.mask.sum()), image.protocol.n_times, 2)
    return (sd * rng.standard_normal(shape) @ np.array([1, 1j])).astype(np.complex64)


def test_replicas_of_the_noise_that_is_known_change_no_deviation(rng, make_voxels, models):
    made = make_voxels(rng, MATRIX, snr=40.0)
    model = models(made.image.protocol)
    plain = fit_varpro(made.image, model)
    found = fit_varpro(replace(made.image, replicas=Replicas(white(rng, made.noise_sd, 2, made.image))), model)
    assert found.provenance["noise_replicas"] == 2
    for name in SUMS:
        assert np.array_equal(plain.maps[name].value, found.maps[name].value)
        ratio = found.maps[name].sd / plain.maps[name].sd
        assert abs(np.mean(ratio) - 1) < 0.08
        assert np.std(ratio) < 0.2


def test_twice_the_noise_in_half_of_the_voxels_shows_there(rng, make_voxels, models):
    made = make_voxels(rng, (24, 11, 1), snr=40.0)
    noise = white(rng, made.noise_sd, 3, made.image)
    right = np.arange(24 * 11) // 11 >= 12
    noise[:, right] *= 2
    model = models(made.image.protocol)
    plain = fit_varpro(made.image, model).maps["tNAA"].sd.ravel()
    found = fit_varpro(replace(made.image, replicas=Replicas(noise)), model).maps["tNAA"].sd.ravel()
    edge = np.abs(np.arange(24 * 11) // 11 - 11.5) < 3
    assert 1.5 < np.median((found / plain)[right & ~edge]) < 2.1
    assert 0.9 < np.median((found / plain)[~right & ~edge]) < 1.15


def test_what_was_smoothed_away_of_one_molecule_widens_its_map_where_it_was(rng, make_voxels, models):
    made = make_voxels(rng, (24, 11, 1), snr=40.0)
    model = models(made.image.protocol)
    index = model.design.names.index("NAA")
    shape = made.shape[:, :, None]
    t = made.image.protocol.times_s
    line = model.design.columns[:, index] * np.exp(
        1j * shape[:, 0] + (2j * np.pi * shape[:, 1] - shape[:, 2]) * t - shape[:, 3] * t**2
    )
    there = (np.arange(24 * 11) // 11 >= 16).astype(float)
    sign = np.where(np.arange(24 * 11) % 2, 1.0, -1.0)
    sd = 0.5 * made.noise_sd
    left = (3.0 * there * sign)[:, None] * line + white(rng, sd, 1, made.image)[0]
    replicas = Replicas(
        white(rng, made.noise_sd, 1, made.image), left.astype(np.complex64), white(rng, sd, 1, made.image)
    )
    plain = fit_varpro(made.image, model).maps
    found = fit_varpro(replace(made.image, replicas=replicas), model).maps
    extra = np.sqrt(np.maximum(found["tNAA"].sd ** 2 - plain["tNAA"].sd ** 2, 0)).ravel()
    assert 1.8 < np.median(extra[np.arange(24 * 11) // 11 >= 19]) < 3.6
    assert np.median(extra[np.arange(24 * 11) // 11 < 12]) < 0.8
    assert np.median(found["tCho"].sd / plain["tCho"].sd) < 1.3
