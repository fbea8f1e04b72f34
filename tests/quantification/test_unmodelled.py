"""Lines that no molecule of the model has are found, fitted and told; nothing is found where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import SUMS

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.quantification.varpro import fit_varpro

PPM, PROTONS_MM = 2.87, 18.0


def with_line(made, where):
    """The image with a singlet that is in no basis in some voxels, under their own lineshape."""
    protocol = made.image.protocol
    t = protocol.times_s
    phase, shift, lorentz, gauss = (made.shape[:, i : i + 1] for i in range(4))
    line = PROTONS_MM * np.exp(
        1j * phase + (2j * np.pi * (protocol.hz(PPM) + shift) - 11.0 - lorentz) * t - gauss * t**2
    )
    fids = made.image.coefficients.reshape(len(where), -1) + where[:, None] * line
    return replace(made.image, coefficients=fids.reshape(made.image.coefficients.shape).astype(np.complex64))


@pytest.fixture
def made(rng, make_voxels):
    return make_voxels(rng, (16, 15, 1), snr=40.0, lorentz=np.full(240, 3.0))


def test_a_line_no_molecule_has_is_found_where_it_is_and_spares_its_neighbours(made, models, xp):
    volume = np.zeros((16, 15, 1), bool)
    volume[3:7, 9:13] = True
    where = volume.ravel()
    image = with_line(made, where)
    image = replace(image, coefficients=xp.asarray(image.coefficients))
    maps = fit_varpro(image, models(made.image.protocol), intravoxel=False)
    (name,) = maps.provenance["unmodelled_lines"]
    assert name.startswith("unknown_")
    assert float(name.removeprefix("unknown_").removesuffix("ppm")) == pytest.approx(PPM, abs=0.02)
    value = maps.maps[name].value.ravel()
    assert np.median(value[where]) == pytest.approx(PROTONS_MM, rel=0.15)
    assert np.sum(value[~where] != 0) <= 3
    sd = maps.maps[name].sd.ravel()
    assert np.all(sd[where] > 0)
    np.testing.assert_array_equal(np.isfinite(sd), value != 0)
    for group in SUMS:
        errors = (maps.maps[group].value.ravel() - made.total(group))[where] / made.total(group)[where]
        assert abs(np.median(errors)) < 0.08, group
    # as the model knows the line, it leaves no more there than elsewhere
    residual = maps.maps["residual"].value.ravel()
    assert np.median(residual[where]) < 1.15 * np.median(residual[~where])


def test_without_its_own_columns_the_line_would_spoil_the_maps_beside_it(made, models, monkeypatch):
    where = np.arange(240) % 5 == 0
    monkeypatch.setattr("mrsi_gadgets.quantification.varpro.find_lines", lambda *args: ([], None))
    maps = fit_varpro(with_line(made, where), models(made.image.protocol), intravoxel=False)
    worst = max(
        abs(np.median((maps.maps[g].value.ravel() - made.total(g))[where] / made.total(g)[where])) for g in SUMS
    )
    assert worst > 0.1


def test_where_the_model_is_right_no_line_is_found(made, models):
    maps = fit_varpro(made.image, models(made.image.protocol), intravoxel=False)
    assert maps.provenance["unmodelled_lines"] == {}
    assert not any(name.startswith("unknown_") for name in maps.maps)


def test_images_on_a_temporal_basis_show_the_line_too(made, models):
    where = np.zeros((16, 15, 1), bool)
    where[3:7, 9:13] = True
    image = with_line(made, where.ravel())
    _, _, rows = np.linalg.svd(to_numpy(image.coefficients).reshape(240, -1), full_matrices=False)
    basis = rows[:40].astype(np.complex64)
    coefficients = (image.coefficients @ basis.conj().T).astype(np.complex64)
    maps = fit_varpro(replace(image, coefficients=coefficients, basis=basis), models(image.protocol), intravoxel=False)
    (name,) = maps.provenance["unmodelled_lines"]
    value = maps.maps[name].value
    assert np.median(value[where]) == pytest.approx(PROTONS_MM, rel=0.2)
    example = maps.examples[0]
    assert np.linalg.norm(example.fit) < 1.2 * np.linalg.norm(example.data)


@pytest.mark.parametrize("rank", [1, 2])
def test_images_of_a_basis_that_lets_hardly_any_line_pass_are_fitted_all_the_same(made, models, rank):
    fids = made.image.coefficients.reshape(240, -1)
    basis = np.linalg.svd(fids, full_matrices=False)[2][:rank].astype(np.complex64)
    coefficients = (fids @ basis.conj().T).reshape(16, 15, 1, rank)
    maps = fit_varpro(
        replace(made.image, coefficients=coefficients, basis=basis), models(made.image.protocol), intravoxel=False
    )
    assert not maps.provenance.get("unmodelled_lines")
    assert np.isfinite(maps.maps["tNAA"].value).any()
