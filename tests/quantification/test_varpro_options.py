"""Options of the fit: window, lineshape, groups with a shift of their own, first-order phase."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import SUMS, make_image, make_protocol, molecules

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.quantification.freedom import FitOptions, time_derivatives
from mrsi_gadgets.quantification.preparation import brain_defaults, prepare_varpro
from mrsi_gadgets.quantification.varpro import fit_varpro

ALL = FitOptions(lineshape="free", groups=(("Ins",), ("Glu", "Gln")), delay_ms=0.2)
_MODELS: dict[FitOptions, object] = {}


def model_with(options):
    protocol = make_protocol((5, 4, 3))
    if options not in _MODELS:
        _MODELS[options] = prepare_varpro(protocol, *molecules(protocol), options=options)
    return _MODELS[options]


def rms_errors(maps, made):
    found = {}
    for group in SUMS:
        truth = made.total(group)
        found[group] = np.sqrt(np.mean(((maps.maps[group].value.ravel() - truth) / truth.mean()) ** 2))
    return found


def remade(made, factor, molecules_of=None):
    """The same voxels with all molecules, or some, times a factor (voxel, t) or (t,)."""
    protocol = made.image.protocol
    t = protocol.times_s
    basis, macromolecules = molecules(protocol)
    rates, _ = brain_defaults(protocol, [*basis.names, *macromolecules.names])
    phase, shift, lorentz, gauss = (made.shape[:, i : i + 1] for i in range(4))
    shape = np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    change = 0
    for name, fid in zip(basis.names, basis.fids, strict=True):
        if molecules_of is None or name in molecules_of:
            change = change + made.amounts[name][:, None] * fid * np.exp(-t * rates[name]) * shape * (factor - 1)
    fids = made.image.coefficients.reshape(len(made.shape), -1)
    if molecules_of is None:
        change = fids * (factor - 1)
    return replace(made.image, coefficients=(fids + change).reshape(made.image.coefficients.shape).astype(np.complex64))


def test_derivatives_of_every_parameter_are_those_of_the_model(rng):
    model = model_with(ALL)
    freedom, dictionary = model.dictionary.freedom, model.dictionary
    assert freedom.count == 4 + 8 + 4 + 1
    shape = freedom.prior[0] + 0.5 * np.where(
        np.isfinite(freedom.prior[1]), freedom.prior[1], 1.0
    ) * rng.standard_normal(freedom.count)
    shape[1:4] = [2.0, 5.0, 80.0]
    given = np.exp(-3 * dictionary.expansion.node_times_s)[None].astype(np.complex64)
    found = freedom.coefficients(dictionary.expansion, shape[None], given)[0].astype(complex)
    for i in range(freedom.count):
        step = np.zeros(freedom.count)
        step[i] = 3e-3 * max(1.0, abs(shape[i]))
        up, down = (
            freedom.coefficients(dictionary.expansion, (shape + s)[None], given)[0, :, 0].astype(complex)
            for s in (step, -step)
        )
        numeric = (up - down) / (2 * step[i])
        assert np.linalg.norm(numeric - found[:, 1 + i]) < 0.02 * np.linalg.norm(found[:, 1 + i]), freedom.names[i]


def test_a_delay_is_a_series_of_derivatives(rng):
    protocol = make_protocol((1, 1, 1))
    basis, _ = molecules(protocol)
    late = molecules(replace(protocol, acquisition_delay_s=protocol.acquisition_delay_s + 3e-4))[0]
    decay = np.exp(-20 * protocol.times_s)[:, None]
    derived, middle = time_derivatives(protocol.times_s, basis.fids.T * decay, np.ones(len(basis.names)), 5)
    series = sum(0.3**j / np.prod(range(1, j + 1)) * part for j, part in enumerate(derived))
    wanted = late.fids.T * decay * np.exp(-20 * 3e-4) * np.exp(-2j * np.pi * middle * 3e-4)
    near = [basis.names.index(name) for name in ("Cr", "NAA", "Ins", "Glu")]
    # NH of NAA and creatine lies 500 Hz away and more
    assert np.linalg.norm((series - wanted)[:, near]) < 0.03 * np.linalg.norm(wanted[:, near])
    assert -350 < middle < -150


@pytest.mark.parametrize("lineshape", ["gauss", "lorentz"])
def test_a_pure_lineshape_leaves_the_other_rate_at_zero(rng, lineshape):
    made = make_image(rng, (5, 4, 3), snr=60.0)
    shape = fit_varpro(made.image, model_with(FitOptions(lineshape=lineshape)), intravoxel=False)
    errors = rms_errors(shape, made)
    assert errors["tNAA"] < 0.2
    free = fit_varpro(made.image, model_with(FitOptions()), intravoxel=False)
    assert rms_errors(free, made)["tNAA"] < errors["tNAA"]


def test_a_free_lineshape_follows_what_a_voigt_line_cannot(rng):
    made = make_image(rng, (7, 8, 1))
    t = made.image.protocol.times_s
    # two compartments 9 Hz apart: a line of two tops
    split = 0.6 * np.exp(2j * np.pi * 3.6 * t) + 0.4 * np.exp(-2j * np.pi * 5.4 * t)
    image = remade(made, split)
    plain = rms_errors(fit_varpro(image, model_with(FitOptions()), intravoxel=False), made)
    free = rms_errors(fit_varpro(image, model_with(FitOptions(lineshape="free")), intravoxel=False), made)
    for group in ("tNAA", "tCr", "tCho", "Glx"):
        assert free[group] < 0.6 * plain[group], (group, free, plain)


def test_a_group_finds_its_own_shift(rng):
    made = make_image(rng, (7, 8, 1), snr=200.0)
    t = made.image.protocol.times_s
    image = remade(made, np.exp(2j * np.pi * 1.0 * t - 2.0 * t), ("Ins",))
    options = FitOptions(groups=(("Ins",), ("Glu", "Gln")))
    maps = fit_varpro(image, model_with(options), intravoxel=False)
    assert np.median(maps.maps["shift_Ins"].value) == pytest.approx(1.0, abs=0.15)
    assert np.median(maps.maps["shift_Glu"].value) == pytest.approx(0.0, abs=0.15)
    assert maps.maps["shift_Ins"].unit.startswith("Hz")
    plain = rms_errors(fit_varpro(image, model_with(FitOptions()), intravoxel=False), made)
    assert rms_errors(maps, made)["Ins"] < 0.5 * plain["Ins"]
    spectra = maps.spectra()
    parts = sum(spectra.component(name) for name in spectra.molecules)
    rest = np.linalg.norm(spectra.fit - spectra.nuisance - parts) / np.linalg.norm(parts)
    assert rest < 1e-3


def test_a_phase_of_first_order_is_found_and_taken_out(rng):
    made = make_image(rng, (7, 8, 1), snr=200.0)
    protocol = made.image.protocol
    late = replace(protocol, acquisition_delay_s=protocol.acquisition_delay_s + 2e-4)
    shifted = replace(made.image, protocol=late)
    # the header says 0.2 ms more than it was
    model = prepare_varpro(late, *molecules(late), options=FitOptions(delay_ms=0.2))
    maps = fit_varpro(shifted, model, intravoxel=False)
    assert np.median(maps.maps["delay"].value) == pytest.approx(-0.2, abs=0.03)
    plain = fit_varpro(shifted, prepare_varpro(late, *molecules(late)), intravoxel=False)
    wrong, right = rms_errors(plain, made), rms_errors(maps, made)
    for group in ("tCr", "Ins", "Glx"):
        assert right[group] < 0.7 * wrong[group], (group, right, wrong)
    spectra = maps.spectra()
    parts = sum(spectra.component(name) for name in spectra.molecules)
    assert np.linalg.norm(spectra.fit - spectra.nuisance - parts) / np.linalg.norm(parts) < 1e-3
    assert np.linalg.norm(spectra.data - spectra.fit) < 0.1 * np.linalg.norm(spectra.data)


def test_what_lies_outside_of_the_window_does_not_matter(rng):
    made = make_image(rng, (5, 4, 3), snr=60.0)
    protocol = made.image.protocol
    line = 400 * np.exp((2j * np.pi * protocol.hz(6.0) - 15) * protocol.times_s)
    image = replace(made.image, coefficients=(made.image.coefficients + line).astype(np.complex64))
    model = model_with(FitOptions(window_ppm=(0.5, 4.2)))
    inside = np.abs(model.coordinates.columns(line[:, None])).max()
    assert inside < 0.35 * np.abs(model_with(FitOptions()).coordinates.columns(line[:, None])).max()
    frame = np.concatenate([model.coordinates.expand.T, model.coordinates.removed, model.coordinates.outside], axis=1)
    assert np.abs(frame.conj().T @ frame - np.eye(frame.shape[1])).max() < 1e-8
    for group, error in rms_errors(fit_varpro(image, model, intravoxel=False), made).items():
        assert error < 0.12, group


def test_all_options_at_once_keep_the_amounts(rng, xp):
    made = make_image(rng, (3, 5, 3), snr=100.0)
    image = replace(made.image, coefficients=xp.asarray(made.image.coefficients))
    maps = fit_varpro(image, model_with(replace(ALL, window_ppm=(0.3, 4.4))), intravoxel=False)
    for group, error in rms_errors(maps, made).items():
        assert error < 0.1, group
    assert all(np.all(np.isfinite(maps.maps[name].crlb)) for name in ("tNAA", "Ins", "delay"))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"window_ppm": "4.2 0.5"}, "give its lower end first"),
        ({"window_ppm": "wide"}, 'such as "0.5 4.2"'),
        ({"lineshape": "square"}, "lineshape"),
        ({"delay_ms": "3"}, "beyond what can be fitted"),
        ({"own_shift_hz": "-1"}, "must be positive"),
    ],
)
def test_options_that_cannot_be_are_refused_by_the_recipe(attributes, reason):
    with pytest.raises(ConfigError, match=reason):
        Quantify.from_attributes(attributes)


def test_the_recipe_says_the_options_and_a_molecule_without_a_basis_is_refused():
    gadget = Quantify.from_attributes({"window_ppm": "0.5 4.2", "own_shifts": "Ins Glu+Gln", "delay_ms": "0.1"})
    assert gadget.options() == FitOptions((0.5, 4.2), "voigt", (("Ins",), ("Glu", "Gln")), 0.5, 2.0, 0.1)
    with pytest.raises(ConfigError, match="has no 'Xyz'"):
        model_with(FitOptions(groups=(("Xyz",),)))
    with pytest.raises(ConfigError, match="is in two groups"):
        model_with(FitOptions(groups=(("Ins",), ("Ins", "Glu"))))
    with pytest.raises(ConfigError, match="points of the spectrum"):
        model_with(FitOptions(window_ppm=(2.0, 2.1)))
