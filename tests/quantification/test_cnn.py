"""Quantification by networks: what they must not depend on, what adaptation brings, and what leaves as maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import other_nuclei_voxels
import pytest
from fit_voxels import SUMS, make_protocol
from test_unmodelled import PPM, PROTONS_MM, with_line

from mrsi_gadgets.data import SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.ensemble import Ensemble
from mrsi_gadgets.physics.phosphorus import PHOSPHATE_PPM
from mrsi_gadgets.quantification import cnn
from mrsi_gadgets.quantification.cnn import fit_cnn, lineshapes_of_cnn
from mrsi_gadgets.quantification.cnn_physics import nonnegative_amounts, shape_spread
from mrsi_gadgets.quantification.cnn_training import train_spectrum_networks
from mrsi_gadgets.quantification.passes import WEAK_PRIOR
from mrsi_gadgets.quantification.preparation import usual_model
from mrsi_gadgets.quantification.spectrum_input import clean_spectra, new_networks
from mrsi_gadgets.quantification.varpro import fit_varpro

STEPS = 130


@pytest.fixture(scope="module")
def trained(models):
    told: list[tuple[str, int, int]] = []
    model = models(make_protocol((5, 4, 3)))
    networks, curves = train_spectrum_networks(
        model,
        ensemble=Ensemble(names=model.design.names[: model.design.n_metabolites]),
        snr=(10.0, 100.0),
        samples=600,
        steps=STEPS,
        hidden=32,
        seed=5,
        progress=lambda name, done, total, loss: told.append((name, done, total)),
    )
    assert told == [(name, done, STEPS) for name in ("regressor", "extractor") for done in (100, STEPS)]
    return networks, curves


def errors_of(maps, made, group):
    truth = made.total(group)
    return maps.maps[group].value.ravel() / truth - 1


def typical_error(maps, made):
    return float(np.mean([np.sqrt(np.mean(errors_of(maps, made, group) ** 2)) for group in ("tNAA", "tCr", "tCho")]))


def test_training_has_a_curve_of_what_it_does_not_see(trained):
    for name in ("regressor", "extractor"):
        steps, training, unseen = zip(*trained[1][name], strict=True)
        assert steps == (100, STEPS)
        # the mean over the first steps is above what is left at the end
        assert unseen[-1] < training[0]


@pytest.mark.parametrize("spectrum", [False, True])
def test_amounts_come_near_the_truth_without_any_search(rng, make_voxels, models, trained, spectrum):
    made = make_voxels(rng, (9, 7, 3), snr=60.0, spread=0.2)
    maps = fit_cnn(made.image, models(made.image.protocol), trained[0], spectrum=spectrum)
    # amounts vary by 0.2; after a hundred steps of training
    assert typical_error(maps, made) < 0.18
    assert abs(np.median(errors_of(maps, made, "tNAA"))) < 0.08


@pytest.mark.parametrize("spectrum", [False, True])
def test_scale_and_phase_of_the_data_do_not_matter(rng, make_voxels, models, trained, spectrum):
    made = make_voxels(rng, (5, 4, 3), snr=40.0)
    model, factor = models(made.image.protocol), 3e5 * np.exp(2.1j)
    turned = replace(
        made.image,
        coefficients=(made.image.coefficients * factor).astype(np.complex64),
        noise_sd=made.image.noise_sd * np.float32(abs(factor)),
    )
    plain = fit_cnn(made.image, model, trained[0], spectrum=spectrum)
    scaled = fit_cnn(turned, model, trained[0], spectrum=spectrum)
    for group in SUMS:
        np.testing.assert_allclose(scaled.maps[group].value / abs(factor), plain.maps[group].value, rtol=1e-3)
        # where rounding lets a weak molecule leave its bound, or not, the step to the optimum is another one
        away = np.abs(scaled.maps[group].sd / abs(factor) / plain.maps[group].sd - 1)
        assert np.quantile(away, 0.9) < 1e-2
        assert away.max() < 0.4
    turn = np.exp(1j * (scaled.maps["phase"].value - plain.maps["phase"].value - 2.1))
    np.testing.assert_allclose(turn, 1.0, atol=1e-3)
    np.testing.assert_allclose(scaled.maps["shift"].value, plain.maps["shift"].value, atol=1e-2)


def test_adaptation_lowers_misfit_and_error_of_a_scan_unlike_the_ensemble(rng, make_voxels, models, trained):
    made = make_voxels(rng, (7, 5, 1), snr=60.0, spread=0.2)
    model = models(made.image.protocol)
    told: list[float] = []
    before = fit_cnn(made.image, model, trained[0])
    after = fit_cnn(made.image, model, trained[0], adapt_steps=50, progress=told.append)
    assert np.median(after.maps["residual"].value) < np.median(before.maps["residual"].value)
    assert typical_error(after, made) < 0.9 * typical_error(before, made)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert after.provenance["adapt_steps"] == 50
    first, second = (fit_cnn(made.image, model, trained[0], adapt_steps=2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.maps["tNAA"].value, second.maps["tNAA"].value)


@pytest.mark.parametrize("spectrum", [False, True])
def test_every_array_library_gives_the_same_maps(rng, make_voxels, models, trained, spectrum, xp):
    made = make_voxels(rng, (3, 2, 1), snr=30.0)
    image = replace(made.image, coefficients=xp.asarray(made.image.coefficients))
    model = models(image.protocol)
    here = fit_cnn(made.image, model, trained[0], spectrum=spectrum)
    there = fit_cnn(image, model, trained[0], spectrum=spectrum)
    for group in SUMS:
        np.testing.assert_allclose(there.maps[group].value, here.maps[group].value, rtol=1e-2)


def test_coefficients_on_a_temporal_basis_are_as_good_as_the_fids_they_stand_for(rng, make_voxels, models, trained):
    made = make_voxels(rng, (7, 5, 1), snr=60.0)
    fids = made.image.coefficients.reshape(35, -1)
    basis = np.linalg.svd(fids, full_matrices=False)[2].astype(np.complex64)
    on_basis = replace(made.image, coefficients=made.image.coefficients @ basis.conj().T, basis=basis)
    model = models(made.image.protocol)
    here, there = fit_cnn(made.image, model, trained[0]), fit_cnn(on_basis, model, trained[0])
    for group in SUMS:
        np.testing.assert_allclose(there.maps[group].value, here.maps[group].value, rtol=2e-2)


def test_maps_have_the_names_units_and_deviations_of_varpro(rng, make_voxels, models, trained):
    made = make_voxels(rng, (5, 4, 3), snr=40.0)
    model, water = models(made.image.protocol), np.full((5, 4, 3), 80000.0, np.float32)
    fitted = fit_varpro(made.image, model, water=water)
    for spectrum, name in ((False, "cnn"), (True, "cnn_spectrum")):
        maps = fit_cnn(made.image, model, trained[0], water=water, spectrum=spectrum)
        assert {k: v.unit for k, v in maps.maps.items()} == {k: v.unit for k, v in fitted.maps.items()}
        assert maps.provenance["quantification"] == name
        np.testing.assert_allclose(maps.maps["tNAA"].value, maps.maps["NAA"].value + maps.maps["NAAG"].value, rtol=1e-4)
        for group in ("tNAA", "tCr", "tCho"):
            assert (maps.maps[group].value >= 0).all()
            assert 0.8 < np.median(maps.maps[group].sd / fitted.maps[group].sd) < 3.0
        assert len(maps.examples) in (2, 3)


@pytest.mark.parametrize("spectrum", [False, True])
def test_deviations_know_the_networks_own_errors(rng, make_voxels, models, trained, spectrum):
    """After a hundred steps of training these are as large as the noise's."""
    made = make_voxels(rng, (9, 7, 3), snr=40.0)
    model = models(made.image.protocol)
    fitted, maps = fit_varpro(made.image, model), fit_cnn(made.image, model, trained[0], spectrum=spectrum)
    off = np.array([maps.maps[group].value.ravel() - made.total(group) for group in SUMS])
    sd, without = (np.array([one.maps[group].sd.ravel() for group in SUMS]) for one in (maps, fitted))
    assert np.mean(np.abs(off) < 1.96 * sd) > 0.78
    assert np.mean(np.abs(off) < 1.96 * without) < 0.7


def test_a_line_that_no_molecule_has_is_found_and_told(rng, make_voxels, models, trained, monkeypatch):
    made = make_voxels(rng, (12, 11, 1), snr=40.0, lorentz=np.full(132, 3.0))
    where = np.zeros((12, 11, 1), bool)
    where[3:7, 5:9] = True
    image = with_line(made, where.ravel())
    # lineshapes as a network would find them that was trained for minutes
    monkeypatch.setattr(cnn, "_found", lambda *given, **more: cnn._Found(made.shape.astype(np.float32), None))
    maps = fit_cnn(image, models(image.protocol), trained[0])
    (name,) = maps.provenance["unmodelled_lines"]
    assert float(name.removeprefix("unknown_").removesuffix("ppm")) == pytest.approx(PPM, abs=0.02)
    assert np.median(maps.maps[name].value[where]) == pytest.approx(PROTONS_MM, rel=0.15)
    assert abs(np.median(errors_of(maps, made, "tCr")[where.ravel()])) < 0.05


def test_varpro_that_starts_from_the_network_ends_where_its_own_search_leads(rng, make_voxels, models, trained):
    made = make_voxels(rng, (9, 7, 1), snr=60.0)
    model = models(made.image.protocol)
    start = lineshapes_of_cnn(made.image, model, trained[0])
    assert start.shape == (63, 4)
    assert np.std(start[:, 1] - made.shape[:, 1]) < np.std(made.shape[:, 1])
    searched, started = fit_varpro(made.image, model), fit_varpro(made.image, model, start=start)
    for group in SUMS:
        np.testing.assert_allclose(started.maps[group].value, searched.maps[group].value, rtol=0.1)


def test_amounts_in_a_clean_spectrum_are_found_again_and_never_negative(models):
    model = models(make_protocol((5, 4, 3)))
    networks = new_networks(model, hidden=8, seed=0)
    members = clean_spectra(model, networks.window_ppm, networks.points) @ networks.axes.T
    amounts = np.abs(np.random.default_rng(3).standard_normal((7, len(members)))) * 5
    amounts[2, 4] = 0.0
    clean = (amounts @ members).astype(np.float32)
    found = nonnegative_amounts(clean, members)
    naa, cr = model.design.names.index("NAA"), model.design.names.index("Cr")
    np.testing.assert_allclose(found[:, naa], amounts[:, naa], rtol=0.02, atol=0.05)
    # creatine and phosphocreatine share what the ridge cannot tell apart
    np.testing.assert_allclose(found[:, cr : cr + 2].sum(axis=1), amounts[:, cr : cr + 2].sum(axis=1), rtol=0.05)
    assert (nonnegative_amounts(-clean, members) >= 0).all()


def test_the_spread_over_the_voxels_counts_what_is_left_of_each():
    shapes = np.array([0.1, -2.0, 3.0, 40.0]) + np.random.default_rng(1).standard_normal((900, 4)) * [0.2, 2, 4, 50]
    prior = shape_spread(shapes, np.array([0.0, 0.0, 9.0, 0.0]))
    np.testing.assert_allclose(prior[0], [0.1, -2.0, 3.0, 40.0], rtol=0.15, atol=0.2)
    np.testing.assert_allclose(prior[1], [0.2, 2.0, 5.0, 50.0], rtol=0.1)
    np.testing.assert_allclose(shape_spread(shapes)[1], 1.25 * np.array([0.2, 2.0, 4.0, 50.0]), rtol=0.1)
    assert shape_spread(shapes[:5]) is WEAK_PRIOR


def test_networks_of_other_fids_are_refused(rng, make_voxels, models, trained):
    protocol = make_protocol((3, 2, 1), n_times=200)
    made = make_voxels(rng, (3, 2, 1))
    image = SpectralImage(
        made.image.coefficients[..., :200], None, protocol, made.image.mask, made.image.b0_hz, made.image.noise_sd + 1
    )
    with pytest.raises(DataError, match="trained for FIDs of 256 points; these have 200"):
        fit_cnn(image, models(protocol), trained[0])


def test_phosphate_has_its_own_place_in_every_voxel(rng, monkeypatch):
    made = other_nuclei_voxels.make_image(rng, "31P", (6, 5, 1), snr=80.0)
    model = usual_model(made.image.protocol)
    monkeypatch.setattr(cnn, "_found", lambda *given, **more: cnn._Found(made.shape.astype(np.float32), None))
    maps = fit_cnn(made.image, model, new_networks(model, hidden=4, seed=0))
    moved = (maps.maps["Pi_shift"].value.ravel() - PHOSPHATE_PPM) * made.image.protocol.transmit_frequency_hz * 1e-6
    assert np.std(moved - made.phosphate_hz) < 1.5
    assert np.std(made.phosphate_hz) > 8.0
    np.testing.assert_allclose(maps.maps["PCr"].value.ravel(), made.amount({"PCr": 1.0}), rtol=0.05)
