"""Fits of phosphorus and deuterium: amounts, deviations, shift of phosphate and pH, ratios, unknown lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from other_nuclei_voxels import Made, make_image, make_protocol

from mrsi_gadgets.data import Maps
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.physics.phosphorus import ph_of_shift
from mrsi_gadgets.quantification.assembly import map_names
from mrsi_gadgets.quantification.bounds import crlb
from mrsi_gadgets.quantification.design import group_weights
from mrsi_gadgets.quantification.moving_line import at_place
from mrsi_gadgets.quantification.varpro import VarproModel, fit_varpro, prepare_varpro


@pytest.fixture(scope="module")
def prepared() -> dict[str, VarproModel]:
    protocols = [make_protocol(nucleus) for nucleus in ("31P", "2H")]
    return {p.nucleus: prepare_varpro(p, metabolite_basis(p), None) for p in protocols}


def fitted(made: Made, model: VarproModel) -> Maps:
    return fit_varpro(made.image, model, intravoxel=False)


def error(maps: Maps, made: Made, name: str) -> np.ndarray:
    weights = NUCLEI[made.image.protocol.nucleus].sums.get(name, {name: 1.0})
    truth = made.amount(weights)
    return (maps.maps[name].value.ravel() - truth) / truth.mean()


def bounds(made: Made, model: VarproModel) -> dict[str, np.ndarray]:
    """Cramer-Rao bounds with phosphate where it is."""
    n = len(made.amounts)
    amplitudes = np.zeros((n, len(model.design.names)))
    amplitudes[:, : len(made.names)] = made.amounts
    moving = model.moving
    places = np.zeros(n, int)
    if moving is not None:
        places = np.argmin(np.abs(made.phosphate_hz[:, None] - moving.shifts_hz), axis=1)
    found: dict[str, np.ndarray] = {}
    for place in np.unique(places):
        rows = places == place
        here = crlb(
            at_place(model, int(place)), amplitudes[rows], np.full(rows.sum(), made.noise_sd), shape=made.shape[rows]
        )
        for name, values in here.items():
            found.setdefault(name, np.zeros(n))[rows] = values
    return found


@pytest.mark.parametrize(
    ("nucleus", "limits"),
    [
        ("31P", {"PCr": 0.002, "ATP": 0.002, "Pi": 0.01, "ePi": 0.01, "PME": 0.002, "PDE": 0.002, "tNAD": 0.03}),
        ("2H", {"HDO": 0.002, "Glc": 0.002, "Glx": 0.002, "Lac": 0.002}),
    ],
)
def test_without_noise_amounts_are_right_whatever_phase_shift_width_and_ph(rng, prepared, nucleus, limits):
    made = make_image(rng, nucleus)
    maps = fitted(made, prepared[nucleus])
    for name, limit in limits.items():
        assert np.sqrt(np.mean(error(maps, made, name) ** 2)) < limit, name
    assert np.abs(maps.maps["shift"].value.ravel() - made.shape[:, 1]).max() < 0.1
    for what in ("ATP", "PCr") if nucleus == "31P" else ("HDO",):
        name = "PME" if nucleus == "31P" else "Glx"
        np.testing.assert_allclose(
            maps.maps[f"{name}_per_{what}"].value.ravel(),
            made.amount(NUCLEI[nucleus].sums[name]) / made.amount(NUCLEI[nucleus].sums[what]),
            rtol=0.01,
        )


@pytest.mark.parametrize(
    ("nucleus", "names"),
    [("31P", ("PCr", "gamma-ATP", "alpha-ATP", "beta-ATP", "ATP", "Pi", "PE", "PME", "GPC", "PDE")),
     ("2H", ("HDO", "Glc", "Glx", "Lac"))],
)  # fmt: skip
def test_with_noise_errors_meet_the_cramer_rao_bound_and_the_stated_deviation(rng, prepared, nucleus, names):
    made = make_image(rng, nucleus, (16, 16, 2), snr=100.0, spread=0.1)
    maps, bound = fitted(made, prepared[nucleus]), bounds(made, prepared[nucleus])
    for name in names:
        weights = NUCLEI[nucleus].sums.get(name, {name: 1.0})
        off = maps.maps[name].value.ravel() - made.amount(weights)
        # the widths learned from all voxels know more than the bound assumes
        assert 0.75 < np.sqrt(np.mean(off**2) / np.mean(bound[name] ** 2)) < 1.15, name
        assert 0.85 < np.std(off / maps.maps[name].sd.ravel()) < 1.15, name


@pytest.mark.parametrize(
    ("nucleus", "limits"),
    [("31P", {"PCr": 0.11, "ATP": 0.14, "PME": 0.25, "PDE": 0.32}), ("2H", {"HDO": 0.06, "Glc": 0.2, "Glx": 0.22})],
)
def test_at_an_snr_of_20_strong_molecules_are_known_to_a_tenth_or_two_without_bias(rng, prepared, nucleus, limits):
    made = make_image(rng, nucleus, (16, 16, 1), snr=20.0, spread=0.1)
    maps = fitted(made, prepared[nucleus])
    for name, limit in limits.items():
        off = error(maps, made, name)
        assert np.sqrt(np.mean(off**2)) < limit, name
        assert abs(off.mean()) < 0.04, name
    assert np.median(maps.maps["residual"].value) == pytest.approx(1.0, abs=0.06)


def test_ph_is_that_of_the_shift_of_phosphate_with_an_honest_deviation(rng, prepared):
    made = make_image(rng, "31P", (16, 16, 2), snr=60.0, phosphate_ppm_sd=0.1)
    maps = fitted(made, prepared["31P"])
    shift, ph = maps.maps["Pi_shift"], maps.maps["pH"]
    truth = 4.84 + made.phosphate_hz / 120.3
    assert np.ptp(truth) > 0.4
    known = np.isfinite(ph.value.ravel())
    assert known.mean() > 0.98
    off = (shift.value.ravel() - truth)[known]
    assert np.sqrt(np.mean(off**2)) < 0.01
    off_ph = (ph.value.ravel() - ph_of_shift(truth))[known]
    assert abs(off_ph.mean()) < 0.002
    assert np.std(off_ph / ph.sd.ravel()[known]) == pytest.approx(1.0, abs=0.15)


def test_phosphate_that_noise_hides_has_no_ph(rng, prepared):
    made = make_image(rng, "31P", (8, 8, 1), snr=5.0)
    ph = fitted(made, prepared["31P"]).maps["pH"].value
    assert np.isnan(ph).mean() > 0.9


def test_phosphate_keeps_its_amount_wherever_it_lies(rng, prepared):
    made = make_image(rng, "31P", (16, 16, 1), snr=200.0, phosphate_ppm_sd=0.2)
    off = error(fitted(made, prepared["31P"]), made, "Pi")
    far = np.abs(made.phosphate_hz) > 20
    assert far.sum() > 60
    assert abs(off[far].mean()) < 0.015
    assert np.sqrt(np.mean(off**2)) < 0.06


def test_every_array_library_gives_the_same_maps(rng, prepared, xp):
    made = make_image(rng, "31P", (3, 2, 1), snr=50.0)
    there = replace(made, image=replace(made.image, coefficients=xp.asarray(made.image.coefficients)))
    a, b = fitted(made, prepared["31P"]), fitted(there, prepared["31P"])
    for name in ("PCr", "ATP", "Pi", "pH"):
        np.testing.assert_allclose(b.maps[name].value, a.maps[name].value, rtol=1e-2)


@pytest.mark.parametrize("nucleus", ["31P", "2H"])
def test_coefficients_on_a_learned_basis_are_fitted_like_fids(rng, prepared, nucleus):
    made = make_image(rng, nucleus, (8, 8, 1), snr=150.0)
    basis = learn_subspace(made.image.protocol, snr=1000.0).basis
    coefficients = (made.image.coefficients @ basis.conj().T).astype(np.complex64)
    on_basis = replace(made, image=replace(made.image, coefficients=coefficients, basis=basis))
    a, b = fitted(made, prepared[nucleus]), fitted(on_basis, prepared[nucleus])
    for name in ("PCr", "ATP", "PDE", "Pi") if nucleus == "31P" else ("HDO", "Glc", "Glx"):
        np.testing.assert_allclose(b.maps[name].value, a.maps[name].value, rtol=0.1)
        assert abs(np.mean(b.maps[name].value / a.maps[name].value) - 1) < 0.02


def test_a_line_that_no_molecule_has_is_found_where_it_is_although_phosphate_moves(rng, prepared):
    made = make_image(rng, "31P", (12, 12, 1), snr=60.0)
    protocol = made.image.protocol
    fids = made.image.coefficients.copy()
    line = 2.5 * np.exp((2j * np.pi * protocol.hz(2.2) - 20.0) * protocol.times_s)
    phase = np.exp(1j * made.shape[:, 0] + 2j * np.pi * made.shape[:, 1] * protocol.times_s[:, None])
    fids[:3, :4] += (line[:, None] * phase).T.reshape(12, 12, 1, -1)[:3, :4].astype(np.complex64)
    maps = fitted(replace(made, image=replace(made.image, coefficients=fids)), prepared["31P"])
    (name,) = [n for n in maps.maps if n.startswith("unknown_")]
    assert float(name.removeprefix("unknown_").removesuffix("ppm")) == pytest.approx(2.2, abs=0.05)
    assert np.mean(maps.maps[name].value[:3, :4] > 1.5) == 1.0
    assert not maps.maps[name].value[6:].any()
    assert "phosphorus nuclei per voxel" in maps.maps[name].unit
    assert np.abs(error(maps, made, "PCr")).max() < 0.2


def test_maps_have_the_names_and_units_of_their_nucleus_and_none_of_protons(rng, prepared):
    for nucleus, some in (("31P", {"ATP", "beta-ATP", "PCr_per_ATP", "ATP_per_PCr", "pH", "Pi_shift", "tNAD"}),
                          ("2H", {"HDO", "Glx", "Glx_per_HDO"})):  # fmt: skip
        made = make_image(rng, nucleus, (4, 4, 1), snr=50.0)
        maps = fitted(made, prepared[nucleus])
        assert some <= set(maps.maps) == set(map_names(prepared[nucleus]))
        assert not any(
            name.endswith(("_per_water", "_per_tCr", ":shift")) or name.startswith("MM") for name in maps.maps
        )
        first = prepared[nucleus].design.names[0]
        assert f"{first}_per_{first}" not in maps.maps
        example = maps.examples[0]
        rest = np.linalg.norm(example.data - example.fit) / np.sqrt(2 * len(example.data)) / made.noise_sd
        assert rest == pytest.approx(1.0, abs=0.15)
        assert not example.nuisance.any()
        # the parts add up to the fit, a molecule with a shift of its own included
        whole = maps.spectra()
        total = sum(whole.component(name) for name in whole.molecules)
        assert np.abs(total - whole.fit).max() < 2e-5 * np.abs(whole.fit).max()
        assert (whole.exponents is not None) == (nucleus == "31P")


def test_atp_is_the_mean_of_its_phosphates_and_needs_all_of_them():
    weights = group_weights(("PCr", "gamma-ATP", "alpha-ATP", "beta-ATP", "PE"), "31P")
    np.testing.assert_allclose(weights["ATP"], [0, 1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_array_equal(weights["PME"], [0, 0, 0, 0, 1])
    assert "ATP" not in group_weights(("PCr", "gamma-ATP"), "31P")
    assert set(weights) == {"PCr", "ATP", "PME"}


def test_a_nucleus_without_molecules_is_refused():
    known = make_protocol("31P")
    protocol, basis = replace(known, nucleus="23Na"), metabolite_basis(known)
    with pytest.raises(DataError, match="protocol's nucleus is 23Na"):
        prepare_varpro(protocol, basis, None)
