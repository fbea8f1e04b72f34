"""Union-of-subspaces fit: subspaces, amounts, the maps' prior and what it must not do, uncertainty, other nuclei."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import SUMS, make_protocol, molecules
from other_nuclei_voxels import make_image as make_other

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.quantification.map_prior import Estimates, bounded_estimates, smooth_maps
from mrsi_gadgets.quantification.molecule_subspaces import learn_subspaces
from mrsi_gadgets.quantification.preparation import brain_defaults, usual_basis, usual_model
from mrsi_gadgets.quantification.scan_priors import scan_ratios
from mrsi_gadgets.quantification.union_of_subspaces import (
    UnionModel,
    fit_union_of_subspaces,
    prepare_union_of_subspaces,
    usual_union_model,
)
from mrsi_gadgets.quantification.varpro import fit_varpro


@pytest.fixture(scope="module")
def model() -> UnionModel:
    protocol = make_protocol((9, 7, 3))
    return prepare_union_of_subspaces(protocol, *molecules(protocol))


def relative(maps, made, group):
    truth = made.total(group)
    return (maps.maps[group].value.ravel() - truth) / truth.mean()


def test_subspaces_begin_at_zero_and_hold_what_decay_and_shift_can_do():
    protocol = make_protocol((3, 2, 1))
    basis = molecules(protocol)[0]
    rates, _ = brain_defaults(protocol, basis.names)
    vectors = learn_subspaces(protocol, basis, rates)["NAA"]
    fid = basis.fids[basis.index("NAA")]
    at_zero = vectors / np.exp(-rates["NAA"] * protocol.times_s)[:, None]
    assert np.abs(at_zero[0]).max() < 0.05 * np.abs(at_zero).max()
    # a voxel with another decay and a shift: what one FID leaves, the subspace explains
    other = fid * np.exp((-1.15 * rates["NAA"] + 0.5j) * protocol.times_s)
    left = other - fid * np.exp(-rates["NAA"] * protocol.times_s)
    real = np.concatenate([vectors.real, vectors.imag])
    target = np.concatenate([left.real, left.imag])
    rest = target - real @ np.linalg.lstsq(real, target, rcond=None)[0]
    assert np.linalg.norm(rest) < 0.02 * np.linalg.norm(target)
    again = learn_subspaces(protocol, basis, rates)["NAA"]
    np.testing.assert_array_equal(vectors, again)


def test_without_noise_the_five_sums_are_right(rng, make_voxels, model):
    made = make_voxels(rng, (9, 7, 3))
    maps = fit_union_of_subspaces(made.image, model)
    for group in SUMS:
        assert np.sqrt(np.mean(relative(maps, made, group) ** 2)) < 0.02
    assert maps.provenance["quantification"] == "union_of_subspaces"


def test_names_units_and_ratios_are_those_of_varpro(rng, make_voxels, model, models):
    made = make_voxels(rng, (9, 7, 3), snr=30.0)
    water = np.full((9, 7, 3), 80000.0)
    ours = fit_union_of_subspaces(made.image, model, water=water).maps
    theirs = fit_varpro(made.image, models(made.image.protocol), water=water).maps
    assert set(ours) == set(theirs)
    assert {name: m.unit for name, m in ours.items()} == {name: m.unit for name, m in theirs.items()}
    assert all((m.sd is None) == (theirs[name].sd is None) for name, m in ours.items())
    np.testing.assert_allclose(ours["tNAA"].value, ours["NAA"].value + ours["NAAG"].value, rtol=1e-4)
    np.testing.assert_allclose(ours["Ins_per_water"].value, ours["Ins"].value / 40000.0, rtol=1e-4)


def smooth_voxels(rng, make_voxels, snr):
    """Return voxels whose amounts are even but for a lesion of half the NAA, 16 x 15."""
    made = make_voxels(rng, (16, 15, 1), spread=0.0)
    lesion = np.zeros((16, 15, 1), bool)
    lesion[4:8, 5:9] = True
    protocol = made.image.protocol
    basis = molecules(protocol)[0]
    rates, _ = brain_defaults(protocol, basis.names)
    phase, shift, lorentz, gauss = (made.shape[:, i : i + 1] for i in range(4))
    t = protocol.times_s
    shape = np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    naa = basis.fids[basis.index("NAA")] * np.exp(-rates["NAA"] * t) * shape
    lost = 0.5 * made.amounts["NAA"][:, None] * naa * lesion.reshape(-1, 1)
    fids = made.image.coefficients - lost.reshape(made.image.coefficients.shape)
    sd = 27.0 / snr
    noise = rng.standard_normal((*fids.shape, 2)) @ np.array([1, 1j]) * sd
    image = replace(
        made.image, coefficients=(fids + noise).astype(np.complex64), noise_sd=np.full((16, 15, 1), sd, np.float32)
    )
    amounts = dict(made.amounts)
    amounts["NAA"] = amounts["NAA"] * (1 - 0.5 * lesion.ravel())
    return replace(made, image=image, amounts=amounts, noise_sd=sd), lesion


def test_the_prior_lowers_errors_and_keeps_a_lesion_that_no_other_image_shows(rng, make_voxels, model):
    made, lesion = smooth_voxels(rng, make_voxels, 4.0)
    alone = fit_union_of_subspaces(made.image, replace(model, spatial="none"))
    together = fit_union_of_subspaces(made.image, model)
    assert together.provenance["spatial_prior"] == "edges"
    inner = lesion.copy()
    inner[[4, 7], :] = inner[:, [5, 8]] = False
    for group in ("tNAA", "tCr", "tCho", "Ins", "Glx"):
        single, joint = relative(alone, made, group), relative(together, made, group)
        assert np.sqrt(np.mean(joint**2)) < 0.9 * np.sqrt(np.mean(single**2))
    truth = made.total("tNAA").reshape(lesion.shape)
    seen = together.maps["tNAA"].value
    recovery = (seen[inner].mean() - seen[~lesion].mean()) / (truth[inner].mean() - truth[~lesion].mean())
    assert 0.8 < recovery < 1.2


def test_the_stated_deviation_covers_the_error_with_and_without_the_prior(rng, make_voxels, model):
    made, _ = smooth_voxels(rng, make_voxels, 8.0)
    for spatial in ("none", "edges"):
        maps = fit_union_of_subspaces(made.image, replace(model, spatial=spatial))
        for group in ("tNAA", "tCr", "Glx"):
            z = (maps.maps[group].value.ravel() - made.total(group)) / maps.maps[group].sd.ravel()
            assert 0.6 < np.sqrt(np.mean(z**2)) < 1.3


def test_coefficients_that_a_prior_has_smoothed_are_not_smoothed_again(rng, make_voxels, model):
    made = make_voxels(rng, (9, 7, 3), snr=20.0)
    basis = np.linalg.svd(made.image.coefficients.reshape(189, -1), full_matrices=False)[2][:20].astype(np.complex64)
    coefficients = made.image.coefficients @ basis.conj().T
    image = replace(made.image, coefficients=coefficients, basis=basis)
    spread = np.full(coefficients.shape, made.noise_sd / 2, np.float32)
    assert fit_union_of_subspaces(image, model).provenance["spatial_prior"] == "edges"
    smoothed = fit_union_of_subspaces(replace(image, coefficient_sd=spread), model)
    assert smoothed.provenance["spatial_prior"] == "none"


def test_every_array_library_gives_the_same_maps(rng, make_voxels, model, xp):
    made = make_voxels(rng, (3, 2, 1), snr=30.0)
    image = replace(made.image, coefficients=xp.asarray(made.image.coefficients))
    here, there = fit_union_of_subspaces(made.image, model), fit_union_of_subspaces(image, model)
    for group in SUMS:
        np.testing.assert_allclose(there.maps[group].value, here.maps[group].value, rtol=1e-2)


def test_ratios_of_a_scan_are_found_from_all_its_voxels(rng):
    n, true = 300, np.array([0.4, -0.2])
    scale = rng.uniform(0.5, 2.0, n)
    sd = np.array([0.5, 0.3])
    x = np.concatenate([rng.uniform(5, 9, (n, 1)), scale[:, None] * (true + 0.1 * rng.standard_normal((n, 2)))], axis=1)
    design = rng.standard_normal((n, 6, 3))
    y = (design @ x[:, :, None])[:, :, 0] + rng.standard_normal((n, 6))
    usual = np.array([1.0, 0.0])
    precision = np.concatenate([np.zeros((n, 1)), (sd * scale[:, None]) ** -2.0], axis=1)
    normal = np.swapaxes(design, 1, 2) @ design + precision[:, :, None] * np.eye(3)
    rhs = (np.swapaxes(design, 1, 2) @ y[:, :, None])[:, :, 0]
    rhs[:, 1:] += precision[:, 1:] * usual * scale[:, None]
    found = scan_ratios(normal, rhs, scale, np.array([1, 2]), sd, usual)
    np.testing.assert_allclose(found, true, atol=0.06)


def test_the_scans_own_macromolecules_take_bias_away(rng, make_voxels):
    """Of a brain whose macromolecules are not the usual ones."""
    protocol = make_protocol((13, 11, 1))
    made = make_voxels(rng, (13, 11, 1), snr=15.0, spread=0.05)
    basis, peaks = molecules(protocol)
    phase, shift, lorentz, gauss = (made.shape[:, i : i + 1] for i in range(4))
    t = protocol.times_s
    shape = np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    _, typical = brain_defaults(protocol, peaks.names)
    more = 0.5 * typical["MM204"] * peaks.fids[peaks.index("MM204")] * shape
    image = replace(
        made.image, coefficients=(made.image.coefficients + more.reshape(13, 11, 1, -1)).astype(np.complex64)
    )
    bias = {}
    for learn in (False, True):
        model = prepare_union_of_subspaces(protocol, basis, peaks, learn_ratios=learn, spatial="none")
        bias[learn] = float(np.mean(relative(fit_union_of_subspaces(image, model), made, "tNAA")))
    assert abs(bias[True]) < 0.6 * abs(bias[False])


def test_smoothing_carries_over_to_what_was_fitted_beside(rng):
    """Estimates tied to each other by their errors move together; nothing happens where voxels are few."""
    mask = np.ones((12, 11, 1), bool)
    n = mask.sum()
    own = np.array([[1.0, 0.9, 0.8], [0.9, 1.0, 0.7], [0.8, 0.7, 1.0]])
    noise = rng.standard_normal((n, 3)) @ np.linalg.cholesky(own).T
    found = Estimates(5.0 + noise, np.broadcast_to(own, (n, 3, 3)).copy())
    smoothed, facts = smooth_maps(found, np.array([0, 1]), mask, None, np.random.default_rng(0))
    before, after = np.std(found.value, axis=0), np.std(smoothed.value, axis=0)
    assert np.all(after < 0.8 * before)  # also the third, which was not smoothed itself
    assert np.all(np.mean(np.diagonal(smoothed.covariance, axis1=1, axis2=2), axis=0) < 0.6)
    assert facts["spatial_prior"] == "edges"
    few = Estimates(found.value[:5], found.covariance[:5])
    same, facts = smooth_maps(few, np.array([0, 1]), np.ones((5, 1, 1), bool), None, np.random.default_rng(0))
    assert same is few
    assert "too few" in facts["spatial_prior"]


def test_bounds_move_what_is_tied_to_them():
    covariance = np.array([[[1.0, -0.8], [-0.8, 1.0]]])
    value, spread, variance = bounded_estimates(Estimates(np.array([[-1.0, 5.0]]), covariance), np.array([True, True]))
    # given the first at zero, the second is 5 - 0.8 * 1
    np.testing.assert_allclose(value, [[0.0, 4.2]], atol=1e-6)
    assert spread[0, 0, 0] == 0
    assert variance[0, 0] > 0


@pytest.mark.parametrize("nucleus", ["31P", "2H"])
def test_other_nuclei_without_water_nuisance(rng, nucleus):
    made = make_other(rng, nucleus, (5, 4, 3), snr=30.0)
    model = usual_union_model(made.image.protocol)
    ours = fit_union_of_subspaces(made.image, model)
    theirs = fit_varpro(made.image, usual_model(made.image.protocol))
    assert set(ours.maps) == set(theirs.maps)
    name = {"31P": "PCr", "2H": "HDO"}[nucleus]
    close = np.abs(ours.maps[name].value - theirs.maps[name].value) / theirs.maps[name].sd
    assert np.nanmedian(close) < 1.0


def test_what_cannot_be_is_refused(rng, make_voxels, model):
    protocol = make_protocol((3, 2, 1))
    with pytest.raises(ConfigError, match="spatial prior 'tv' is not known"):
        prepare_union_of_subspaces(protocol, *usual_basis(protocol), spatial="tv")
    made = make_voxels(rng, (3, 2, 1))
    with pytest.raises(DataError, match="mask of the spectroscopic image is empty"):
        fit_union_of_subspaces(replace(made.image, mask=np.zeros((3, 2, 1), bool)), model)
