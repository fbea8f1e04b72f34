"""Columns of the model, nuisance bands, and coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import make_protocol, molecules

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.quantification.coordinates import band_energy, whitener
from mrsi_gadgets.quantification.design import Interval, NuisanceBand, build_design, group_weights
from mrsi_gadgets.quantification.preparation import brain_defaults


def design_for(protocol, **options):
    basis, macromolecules = molecules(protocol)
    rates, typical = brain_defaults(protocol, [*basis.names, *macromolecules.names])
    return build_design(protocol, basis, macromolecules, decay_rates=rates, typical=typical, **options)


def test_macromolecules_are_one_positive_profile_and_bounded_departures_from_it():
    design = design_for(make_protocol((3, 4, 5)), macromolecule_freedom=0.2)
    profile = design.names.index("MM")
    assert design.bounded[: profile + 1].all()
    assert not design.bounded[profile + 1 :].any()
    assert np.isinf(design.prior_sd[profile])
    assert (design.prior_sd[profile + 1 :] == 0.2).all()
    assert len(design.names) > profile + 4


def test_only_weak_molecules_have_a_prior():
    design = design_for(make_protocol((3, 4, 5)), metabolite_freedom=0.5)
    with_prior = {
        n for n, sd in zip(design.names[: design.n_metabolites], design.prior_sd, strict=False) if sd < np.inf
    }
    assert with_prior == {"GABA", "Tau"}


def test_columns_decay_with_the_molecules_own_time_constant():
    protocol = make_protocol((3, 4, 5))
    design = design_for(protocol)
    basis, _ = molecules(protocol)
    ratio = np.abs(design.columns[:, 0]) / np.abs(basis.fids[0])
    np.testing.assert_allclose(np.log(ratio), -design.rates[0] * protocol.times_s, rtol=1e-6)


def test_sums_name_their_members():
    weights = group_weights(("Cr", "NAA", "Glu", "NAAG"))
    assert list(weights) == ["tNAA", "tCr", "Glx"]
    assert weights["tNAA"].tolist() == [0, 1, 0, 1]


def test_basis_sets_that_do_not_fit_are_refused():
    protocol = make_protocol((3, 4, 5))
    basis, _ = molecules(make_protocol((3, 4, 5), n_times=100))
    with pytest.raises(DataError, match="100 points but the protocol has 256"):
        build_design(protocol, basis, None, decay_rates={}, typical={})
    good, _ = molecules(protocol)
    fids = good.fids.copy()
    fids[2, 5] = np.nan
    with pytest.raises(DataError, match="NaN or infinity in Cr"):
        build_design(protocol, replace(good, fids=fids), None, decay_rates={}, typical={})


def test_a_band_holds_the_signals_it_stands_for():
    protocol = make_protocol((3, 4, 5))
    factor = NuisanceBand("lipids", (Interval(1.1, 1.5),), (30.0, 90.0)).factor(protocol)
    assert np.sum(np.abs(factor) ** 2) == pytest.approx(1.0, rel=1e-3)
    frame = np.linalg.qr(factor)[0]
    inside = np.exp((2j * np.pi * protocol.hz(1.3) - 55.0) * protocol.times_s)
    outside = np.exp((2j * np.pi * protocol.hz(3.0) - 20.0) * protocol.times_s)
    assert np.linalg.norm(inside - frame @ (frame.conj().T @ inside)) < 1e-3 * np.linalg.norm(inside)
    assert np.linalg.norm(frame.conj().T @ outside) < 0.2 * np.linalg.norm(outside)


def test_coordinates_keep_white_noise_white_and_drop_water(rng, models):
    protocol = make_protocol((3, 4, 5))
    coordinates = models(protocol).coordinates
    frame = coordinates.project
    np.testing.assert_allclose(frame.conj().T @ frame, np.eye(frame.shape[1]), atol=1e-9)
    water = np.exp((2j * np.pi * protocol.hz(4.63) - 25.0) * protocol.times_s)
    assert np.linalg.norm(water @ frame) < 2e-3 * np.linalg.norm(water)
    fid = rng.standard_normal((protocol.n_times, 2)) @ np.array([1, 1j])
    projected = coordinates.columns(fid[:, None])[:, 0]
    np.testing.assert_allclose(projected, fid @ frame, atol=1e-9)


def test_whitening_brings_noise_and_nuisance_to_the_noise_alone(rng, models, xp):
    coordinates = models(make_protocol((3, 4, 5))).coordinates
    energy = np.array([[0.0, 0.0], [3e4, 10.0], [5.0, 2e3]], np.float32)
    found = to_numpy(whitener(xp.asarray(energy), coordinates))
    for row, w in zip(energy, found, strict=True):
        total = 2 * np.eye(coordinates.n_dense) + sum(
            e * f @ f.conj().T for e, f in zip(row, coordinates.factors, strict=True)
        )
        np.testing.assert_allclose(w @ total @ w.conj().T, 2 * np.eye(len(w)), atol=2e-3)


def test_energy_of_a_band_is_found_in_the_residual(rng, models):
    coordinates = models(make_protocol((3, 4, 5))).coordinates
    n = coordinates.project.shape[1]
    noise = rng.standard_normal((400, n, 2)) @ np.array([1, 1j])
    factor = coordinates.factors[0]
    amplitude = rng.standard_normal((400, factor.shape[1], 2)) @ np.array([1, 1j]) / 2**0.5
    signal = np.zeros((400, n), complex)
    signal[:, : coordinates.n_dense] = 100 * amplitude @ factor.T
    energy = band_energy((signal + noise).astype(np.complex64), coordinates)
    assert np.mean(energy[:, 0]) == pytest.approx(1e4, rel=0.15)
    assert np.median(band_energy(noise.astype(np.complex64), coordinates)[:, 0]) < 5
