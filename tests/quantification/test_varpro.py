"""The fit of an image: accuracy, uncertainty, robustness, and what it hands on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fit_voxels import SUMS, make_protocol

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.quantification.assembly import _shape_maps
from mrsi_gadgets.quantification.bounds import crlb
from mrsi_gadgets.quantification.varpro import fit_varpro


def relative_errors(maps, made, group):
    truth = made.total(group)
    return (maps.maps[group].value.ravel() - truth) / truth.mean()


def test_without_noise_the_five_sums_are_right_whatever_shift_width_and_phase(rng, make_voxels, models):
    made = make_voxels(rng, (9, 7, 3))
    maps = fit_varpro(made.image, models(made.image.protocol))
    for group in SUMS:
        errors = relative_errors(maps, made, group)
        assert abs(errors.mean()) < 0.002
        assert np.sqrt(np.mean(errors**2)) < 0.01
    assert np.abs(maps.maps["shift"].value.ravel() - made.shape[:, 1]).max() < 0.1
    assert np.abs(maps.maps["phase"].value.ravel() - made.shape[:, 0]).max() < 0.05


def test_with_noise_scatter_meets_the_cramer_rao_bound_and_the_stated_deviation(rng, make_voxels, models):
    made = make_voxels(rng, (16, 15, 2), snr=100.0, spread=0.05)
    model = models(made.image.protocol, metabolite_freedom=np.inf)
    maps = fit_varpro(made.image, model, intravoxel=False)
    amplitudes = np.zeros((len(made.shape), len(model.design.names)))
    amplitudes[:, : model.design.n_metabolites] = np.stack(
        [made.amounts[name] for name in model.design.names[: model.design.n_metabolites]], axis=1
    )
    amplitudes[:, model.design.n_metabolites] = 1.0
    bound = crlb(model, amplitudes, np.array(made.noise_sd), shape=made.shape)
    for group in SUMS:
        error = maps.maps[group].value.ravel() - made.total(group)
        # amounts that may not be negative and widths learned from all voxels know a little more than the bound assumes
        assert 0.85 < np.sqrt(np.mean(error**2) / np.mean(bound[group] ** 2)) < 1.15
        assert 0.85 < np.std(error / maps.maps[group].sd.ravel()) < 1.15


def test_a_few_voxels_with_far_broader_lines_keep_their_amounts(rng, make_voxels, models):
    """Above the sinuses lines are broad; what most voxels have must not be forced on them."""
    n = 16 * 15
    broad = np.arange(n) % 12 == 0
    made = make_voxels(rng, (16, 15, 1), snr=20.0, lorentz=np.where(broad, 28.0, rng.normal(3.0, 0.4, n)))
    maps = fit_varpro(made.image, models(made.image.protocol), intravoxel=False)
    for group in ("tNAA", "tCr", "tCho"):
        errors = relative_errors(maps, made, group)
        assert abs(errors[broad].mean()) < 0.2  # a Gaussian prior takes half of them away
        assert abs(errors[~broad].mean()) < 0.04


def test_residual_water_and_weak_lipids_are_absorbed_by_nuisance_terms(rng, make_voxels, models):
    made = make_voxels(rng, (9, 7, 3), water=5.0, lipids=0.5)
    maps = fit_varpro(made.image, models(made.image.protocol))
    for group in SUMS:
        assert np.sqrt(np.mean(relative_errors(maps, made, group) ** 2)) < 0.04


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_data_does_not_matter(rng, make_voxels, models, scale):
    made = make_voxels(rng, (4, 3, 1), snr=30.0)
    image = replace(
        made.image,
        coefficients=made.image.coefficients * np.float32(scale),
        noise_sd=made.image.noise_sd * np.float32(scale),
    )
    model = models(image.protocol)
    plain, scaled = fit_varpro(made.image, model), fit_varpro(image, model)
    for group in SUMS:
        np.testing.assert_allclose(scaled.maps[group].value / scale, plain.maps[group].value, rtol=2e-2)
        np.testing.assert_allclose(scaled.maps[group].sd / scale, plain.maps[group].sd, rtol=2e-2)


def test_every_array_library_gives_the_same_maps(rng, make_voxels, models, xp):
    made = make_voxels(rng, (3, 2, 1), snr=30.0)
    image = replace(made.image, coefficients=xp.asarray(made.image.coefficients))
    model = models(image.protocol)
    here, there = fit_varpro(made.image, model), fit_varpro(image, model)
    for group in SUMS:
        np.testing.assert_allclose(there.maps[group].value, here.maps[group].value, rtol=1e-2)


def test_coefficients_on_a_temporal_basis_are_fitted_like_the_fids_they_stand_for(rng, make_voxels, models, xp):
    made = make_voxels(rng, (7, 5, 1))
    fids = made.image.coefficients.reshape(35, -1)
    basis = np.linalg.svd(fids, full_matrices=False)[2].astype(np.complex64)
    on_basis = as_coefficients(made.image, basis)
    on_basis = replace(on_basis, coefficients=xp.asarray(on_basis.coefficients), basis=xp.asarray(basis))
    model = models(made.image.protocol)
    here, there = fit_varpro(made.image, model), fit_varpro(on_basis, model)
    for group in SUMS:
        np.testing.assert_allclose(there.maps[group].value, here.maps[group].value, rtol=2e-2)


def test_the_stated_deviation_knows_where_the_noise_of_coefficients_lies(rng, make_voxels, models):
    clean = make_voxels(rng, (16, 15, 1))
    fids = clean.image.coefficients.reshape(240, -1)
    basis = np.linalg.svd(fids, full_matrices=False)[2][:24].astype(np.complex64)
    image = as_coefficients(clean.image, basis)
    sd = np.concatenate([np.full(8, 18.0), np.full(16, 1.8)]).astype(np.float32)
    noise = rng.standard_normal((*image.coefficients.shape, 2)) @ np.array([1, 1j]) * sd
    spread = np.broadcast_to(sd, image.coefficients.shape)
    noisy = replace(image, coefficients=(image.coefficients + noise).astype(np.complex64), coefficient_sd=spread)
    model = models(image.protocol)
    quiet, loud = fit_varpro(image, model), fit_varpro(noisy, model)
    for group in ("tNAA", "tCr", "tCho"):
        change = (loud.maps[group].value - quiet.maps[group].value) / loud.maps[group].sd
        assert 0.8 < np.std(change) < 1.2


def test_priors_count_in_the_deviation_of_coefficients_as_they_do_in_that_of_fids(rng, make_voxels, models):
    """White noise on a complete basis is the white noise of the FIDs, so every stated deviation must be the same."""
    image = make_voxels(rng, (6, 5, 1)).image
    image = replace(image, noise_sd=np.full((6, 5, 1), 0.9, np.float32))
    n_times = image.protocol.n_times
    basis = np.fft.fft(np.eye(n_times), norm="ortho").astype(np.complex64)
    spread = np.repeat(image.noise_sd[..., None], n_times, axis=3)
    on_basis = replace(as_coefficients(image, basis), coefficient_sd=spread)
    model = models(image.protocol)
    fids, coefficients = fit_varpro(image, model), fit_varpro(on_basis, model)
    for name in ("tNAA", "tCho", "Ins", "GABA"):
        ratio = coefficients.maps[name].sd / fids.maps[name].sd
        assert np.median(ratio) == pytest.approx(1, abs=0.03)


def as_coefficients(image: SpectralImage, basis: np.ndarray) -> SpectralImage:
    return replace(image, coefficients=image.coefficients @ basis.conj().T, basis=basis)


def test_maps_carry_sums_ratios_units_and_examples(rng, make_voxels, models):
    made = make_voxels(rng, (5, 4, 3), snr=40.0)
    mask = np.ones((5, 4, 3), bool)
    mask[0, 0, 0] = False
    water = np.full((5, 4, 3), 80000.0, np.float32)
    maps = fit_varpro(replace(made.image, mask=mask), models(made.image.protocol), water=water)
    inside = mask.ravel()
    assert np.isnan(maps.maps["tNAA"].value[0, 0, 0])
    np.testing.assert_allclose(
        maps.maps["tNAA"].value.ravel()[inside],
        (maps.maps["NAA"].value + maps.maps["NAAG"].value).ravel()[inside],
        rtol=1e-5,
    )
    # 40,000 molecules of two protons each
    np.testing.assert_allclose(maps.maps["Ins_per_water"].value, maps.maps["Ins"].value / 40000.0, rtol=1e-4)
    np.testing.assert_allclose(
        maps.maps["Glx_per_tCr"].value, maps.maps["Glx"].value / maps.maps["tCr"].value, rtol=1e-4
    )
    assert "tCr_per_tCr" not in maps.maps
    assert maps.maps["shift"].unit == maps.maps["linewidth"].unit == "Hz"
    assert 0.8 < np.nanmedian(maps.maps["residual"].value) < 1.2
    # Cr and PCr differ little: their errors are of opposite sign and the sum is known better than the parts
    assert np.nanmedian(maps.maps["tCr"].sd) < 0.5 * np.nanmedian(maps.maps["Cr"].sd)
    places = [example.voxel for example in maps.examples]
    assert len(places) == len(set(places)) == 3
    assert all(mask[place] for place in places)
    for example in maps.examples:
        rest = np.linalg.norm(example.data - example.fit) / np.sqrt(2 * len(example.data)) / made.noise_sd
        assert rest < 1.15


@pytest.mark.parametrize("rank", [None, 40])
def test_spectra_of_all_voxels_show_data_fit_and_the_parts_of_the_fit(rng, make_voxels, models, monkeypatch, rank):
    monkeypatch.setattr("mrsi_gadgets.quantification.resynthesis._PIECE", 7)
    made = make_voxels(rng, (5, 4, 3), snr=40.0)
    mask = np.ones((5, 4, 3), bool)
    mask[2, 1, 0] = False
    image = replace(made.image, mask=mask)
    if rank is not None:
        _, _, rows = np.linalg.svd(to_numpy(image.coefficients).reshape(60, -1), full_matrices=False)
        basis = rows[:rank].astype(np.complex64)
        image = replace(image, basis=basis, coefficients=(image.coefficients @ basis.conj().T).astype(np.complex64))
    maps = fit_varpro(image, models(image.protocol))
    whole = maps.spectra()
    np.testing.assert_array_equal(whole.voxels, np.argwhere(mask))
    x, y, z = whole.voxels.T
    turned = whole.data * np.exp(1j * maps.maps["phase"].value[x, y, z])[:, None]
    np.testing.assert_allclose(turned, to_numpy(image.fids())[x, y, z], atol=1e-5 * np.abs(turned).max())
    total = sum(whole.component(name) for name in whole.molecules)
    assert np.abs(total + whole.nuisance - whole.fit).max() < 2e-5 * np.abs(whole.fit).max()
    # a part holds the molecule's amount: the column at its lineshape, times the map
    naa = whole.component("NAA")
    alone = whole.columns[whole.names.index("NAA")] * whole.lineshape
    if rank is None:
        np.testing.assert_allclose(naa, maps.maps["NAA"].value[x, y, z, None] * alone, atol=1e-5 * np.abs(naa).max())
    rest = np.linalg.norm(whole.data - whole.fit) / np.sqrt(2 * whole.data.size) / made.noise_sd
    assert rest < 1.15
    for example in maps.examples:
        row = np.flatnonzero((whole.voxels == example.voxel).all(axis=1))[0]
        np.testing.assert_allclose(example.fit, whole.fit[row], atol=1e-5 * np.abs(example.fit).max())


def test_progress_ends_at_one(rng, make_voxels, models):
    made = make_voxels(rng, (9, 7, 3), snr=30.0)
    told: list[float] = []
    fit_varpro(made.image, models(made.image.protocol), progress=told.append)
    assert told[-1] == pytest.approx(1.0)
    assert told == sorted(told)


def test_bad_images_are_refused_with_a_reason(rng, make_voxels, models):
    made = make_voxels(rng, (3, 2, 1))
    model = models(made.image.protocol)
    broken = made.image.coefficients.copy()
    broken[0, 0, 0, 3] = np.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        fit_varpro(replace(made.image, coefficients=broken), model)
    with pytest.raises(DataError, match="mask of the spectroscopic image is empty"):
        fit_varpro(replace(made.image, mask=np.zeros((3, 2, 1), bool)), model)
    with pytest.raises(DataError, match="zero everywhere"):
        fit_varpro(replace(made.image, coefficients=0 * made.image.coefficients), model)
    with pytest.raises(DataError, match="water image"):
        fit_varpro(made.image, model, water=np.ones((2, 2, 1)))
    with pytest.raises(DataError, match="prepare it for the image's protocol"):
        fit_varpro(made.image, models(make_protocol((3, 2, 1), n_times=200)))


def test_a_bound_needs_noise_and_all_amplitudes(models):
    model = models(make_protocol((3, 2, 1)))
    amplitudes = np.ones((1, len(model.design.names)))
    with pytest.raises(DataError, match="without noise there is no bound"):
        crlb(model, amplitudes, np.zeros(1))
    with pytest.raises(DataError, match="amplitudes per voxel"):
        crlb(model, amplitudes[:, 1:], np.ones(1))


def test_the_bare_bound_of_every_map_is_that_of_the_data_alone(rng, make_voxels, models):
    made = make_voxels(rng, (5, 4, 3), snr=100.0, spread=0.05)
    model = models(made.image.protocol)
    maps = fit_varpro(made.image, model, intravoxel=False, water=np.full((5, 4, 3), 9e4, np.float32))
    amplitudes = np.zeros((60, len(model.design.names)))
    n = model.design.n_metabolites
    amplitudes[:, :n] = np.stack([made.amounts[name] for name in model.design.names[:n]], axis=1)
    amplitudes[:, n] = 1.0
    bound = crlb(model, amplitudes, np.array(made.noise_sd), shape=made.shape)
    for name in (*SUMS, "GABA", "Glu"):
        assert np.median(maps.maps[name].crlb.ravel() / bound[name]) == pytest.approx(1, abs=0.05)
    # a prior of weak molecules narrows what is known of them, and only that
    assert np.median(maps.maps["Tau"].sd / maps.maps["Tau"].crlb) < 0.97
    ratio, plain = maps.maps["tNAA_per_water"], maps.maps["tNAA"]
    np.testing.assert_allclose(ratio.crlb / ratio.value, plain.crlb / plain.value, rtol=1e-4)
    # what judges the fit is no fitted value
    fitted = {name for name, one in maps.maps.items() if one.crlb is not None}
    assert {*SUMS, "MM", "Glx_per_tCr", "shift", "linewidth", "phase"} <= fitted
    assert not fitted & {"residual", "fit_quality", "fit_flag"}


def test_a_width_that_ended_at_its_limit_has_no_deviation_of_zero():
    covariance = np.zeros((2, 5, 5))
    covariance[0, 3, 3] = covariance[0, 4, 4] = 4.0
    fit = SimpleNamespace(
        shape=np.array([[0.0, 0.0, 9.0, 30.0], [0.0, 0.0, 9.0, 30.0]]), covariance=covariance, variance=np.ones((2, 5))
    )
    freedom = SimpleNamespace(names=["phase", "shift", "lorentz", "gauss"])
    model = SimpleNamespace(
        design=SimpleNamespace(names=["NAA"], rates=[3.0]), dictionary=SimpleNamespace(freedom=freedom)
    )
    width, variance, _ = _shape_maps(fit, model)["linewidth"]
    assert width[0] == width[1] > 3.0
    assert 0 < variance[0] < 4.0
    assert np.isnan(variance[1])
