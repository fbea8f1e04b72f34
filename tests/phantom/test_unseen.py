"""Lesions put into data: they come back whole from any encoding, at their place, and contrast is what was put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, KtData, Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.context import Report
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.phantom.unseen import (
    SINGLET,
    WIDE,
    InjectedLesion,
    amplitude,
    change,
    contrast_recovery,
    inject,
    kinds,
    place,
    recoveries,
)  # fmt: skip
from mrsi_gadgets.physics.ensemble import sample
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier


def csi_data(rng, matrix=(7, 5, 3), n_times=96, coils=2):
    """Empty samples of a Cartesian grid with smooth coils and field."""
    geometry = Geometry(matrix, tuple(12.0 * n for n in matrix))
    protocol = replace(PRESETS["csi48"].protocol, geometry=geometry, n_times=n_times)
    places = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in matrix), indexing="ij"), axis=-1)
    k = (places / np.array(geometry.fov_mm) * 1e3).reshape(-1, 3)
    points = len(k)
    t = np.broadcast_to(protocol.times_s, (points, n_times))
    samples = np.zeros((coils, points, n_times), np.complex64)
    kt = KtData(samples, k, t, np.ones(points), Role.METABOLITE, protocol, matrix)
    phase = rng.uniform(0, 6, coils)
    maps = np.exp(0.1 * places[..., 0] * np.arange(coils)[:, None, None, None] + 1j * phase[:, None, None, None])
    maps /= np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    b0 = 3.0 * places[..., 0] - 5.0 * places[..., 1] + 2.0 * places[..., 2]
    return kt, maps.astype(np.complex64), b0


def test_what_is_added_is_exactly_the_encoded_signal(rng):
    kt, maps, b0 = csi_data(rng)
    fractions = rng.random((2, 7, 5, 3)).astype(np.float32)
    lesions = [InjectedLesion("lactate x10", fractions[0]), InjectedLesion(WIDE, fractions[1])]
    unit = 0.5 + rng.random((7, 5, 3))
    added = inject(kt, maps, b0, lesions, unit)
    image = sum(
        (unit * lesion.fraction)[..., None] * change(kt.protocol, lesion.kind) for lesion in lesions
    )  # fmt: skip
    wanted = encoding_operator(kt, maps, b0)(image.astype(np.complex64)) * np.sqrt(7 * 5 * 3)
    assert np.linalg.norm(added.samples - wanted) < 1e-3 * np.linalg.norm(wanted)
    twice = inject(added, maps, b0, lesions, unit)
    np.testing.assert_allclose(twice.samples, 2 * added.samples, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_signals_are_what_their_names_say():
    protocol = PRESETS["csi48"].protocol
    assert kinds(protocol) == ("lactate x10", "choline x3", SINGLET, WIDE)
    spectra = {kind: np.fft.fftshift(np.fft.fft(change(protocol, kind))) for kind in kinds(protocol)}
    ppm = protocol.ppm_axis()
    for kind, where in (("lactate x10", 1.31), ("choline x3", 3.21), (SINGLET, 2.87)):
        assert ppm[np.argmax(np.abs(spectra[kind]))] == pytest.approx(where, abs=0.05)
    moved = np.fft.fftshift(np.fft.fft(change(protocol, SINGLET, singlet_ppm=1.0)))
    assert ppm[np.argmax(np.abs(moved))] == pytest.approx(1.0, abs=0.05)
    # nine times the lactate of normal brain, 0.65 mM with three protons at 1.3 ppm and one at 4.1
    at_once = replace(protocol, acquisition_delay_s=0.0)
    assert change(at_once, "lactate x10")[0] == pytest.approx(9 * 0.65 * 4, rel=0.2)
    # typical lines with what is added: the same area, a lower and wider NAA line
    typical = sample(protocol, 400, 5).metabolites.mean(axis=0)
    wide = typical + change(protocol, WIDE)
    assert abs(wide[0] / typical[0] - 1) < 0.01
    lines = [np.abs(np.fft.fftshift(np.fft.fft(x * np.exp(-3 * protocol.times_s), 4096))) for x in (typical, wide)]
    axis = protocol.ppm_axis(4096)
    near = np.abs(axis - 2.01) < 0.15
    widths = [np.sum(line[near] > line[near].max() / 2) for line in lines]
    assert 1.6 < widths[1] / widths[0] < 3.0


@pytest.mark.parametrize("preset", ["csi16_31p", "csi16_2h"])
def test_other_nuclei_have_their_own_lesions(preset):
    protocol = PRESETS[preset].protocol
    names = kinds(protocol)
    assert len(names) == 4
    assert all(np.linalg.norm(change(protocol, kind)) > 0 for kind in names)


def test_places_are_deep_apart_and_filled(rng):
    geometry = Geometry((24, 20, 3), (240.0, 200.0, 30.0))
    mask = np.zeros((24, 20, 3), bool)
    mask[3:21, 3:17] = True
    found = place(mask, geometry, 3, radius_mm=22.0, seed=4)
    centres = [np.argwhere(f > 0.99).mean(axis=0) for f in found]
    for i, fraction in enumerate(found):
        assert fraction.max() == 1
        assert (fraction[~mask] == 0).all()
        assert np.sum(fraction > 0.7) >= 15
        for other in centres[:i]:
            assert np.linalg.norm((centres[i] - other) * 10) > 40
    again = place(mask, geometry, 3, radius_mm=22.0, seed=4)
    np.testing.assert_array_equal(found, again)
    with pytest.raises(DataError, match="has room for 1 of 2"):
        place(mask, geometry, 2, radius_mm=120.0)


def test_contrast_leaves_out_other_lesions(rng):
    mask = np.ones((9, 8, 1), bool)
    mask[0] = False
    fractions = np.zeros((2, 9, 8, 1), np.float32)
    fractions[0, 2:4, 2:4], fractions[1, 6:8, 5:7] = 1, 1
    fractions[0, 4, 2:4] = 0.4
    lesions = [InjectedLesion("a", fractions[0]), InjectedLesion("b", fractions[1])]
    found = 0.8 * fractions[0] + 5 * fractions[1] + 0.3
    found[0] = np.nan
    assert contrast_recovery(found, lesions[0], lesions, mask) == pytest.approx(0.8)
    with pytest.raises(DataError, match="'a' has 0 voxels"):
        contrast_recovery(found, lesions[0], lesions, mask & (fractions[0] < 0.7))


def measured(preset):
    """Metabolite data of a simulated scan without noise and nuisance, and its true coils, of unit energy."""
    scan = simulate(preset, seed=3, snr=np.inf, nuisance=False)
    header = parse_header(scan.header_xml)
    found = sort_readouts(scan.acquisitions, read_protocol(header), Report(), header)
    maps = scan.truth.coil_maps / np.sqrt(np.sum(np.abs(scan.truth.coil_maps) ** 2, axis=0) + 1e-12)
    return next(d for d in found if d.role is Role.METABOLITE), maps, scan.truth


@pytest.mark.parametrize("preset", ["csi16", "epsi16_bipolar", "rings16"])
def test_each_sample_gets_what_the_lesions_emit_at_its_own_time(preset, rng):
    """Against the sum over all voxels (eq. 2), at points drawn from all of k-space."""
    kt, maps, truth = measured(preset)
    geometry = kt.protocol.geometry
    lesions = [InjectedLesion(kind, rng.random(geometry.matrix).astype(np.float32)) for kind in kinds(kt.protocol)]
    added = inject(kt, maps, truth.b0_hz, lesions, 2e-7).samples - kt.samples
    places = np.stack(np.indices(geometry.matrix), axis=-1) - np.array(geometry.matrix) // 2
    places = places.reshape(-1, 3) * np.array(geometry.voxel_mm) * 1e-3
    error = whole = 0.0
    for point in rng.choice(len(kt.k), 12, replace=False):
        late = kt.t[point, 0] - kt.protocol.times_s[0]
        moved = replace(kt.protocol, acquisition_delay_s=kt.protocol.acquisition_delay_s + late)
        image = sum(2e-7 * lesion.fraction[..., None] * change(moved, lesion.kind) for lesion in lesions)
        image = image * np.exp(2j * np.pi * truth.b0_hz[..., None] * kt.t[point])
        kernel = np.exp(-2j * np.pi * places @ kt.k[point])
        wanted = np.einsum("cv,vt,v->ct", maps.reshape(len(maps), -1), image.reshape(len(kernel), -1), kernel)
        error += np.sum(np.abs(added[:, point] - wanted) ** 2)
        whole += np.sum(np.abs(wanted) ** 2)
    assert error**0.5 < 3e-3 * whole**0.5


def test_fourier_gives_all_contrast_back():
    kt, maps, truth = measured("csi16")
    mask, protocol = truth.brain_mask, kt.protocol
    fractions = place(mask, protocol.geometry, 4, radius_mm=20.0, seed=1)
    lesions = [InjectedLesion(kind, f) for kind, f in zip(kinds(protocol), fractions, strict=True)]
    more = inject(kt, maps, truth.b0_hz, lesions, 3e-7)
    images = [reconstruct_fourier(data, maps, truth.b0_hz, mask).fids() for data in (more, kt)]
    found = recoveries(*images, lesions, mask, protocol, 3e-7)
    assert tuple(found) == kinds(protocol)
    assert all(value == pytest.approx(1, abs=0.01) for value in found.values()), found
    seen = amplitude(images[0] - images[1], change(protocol, SINGLET)) / 3e-7
    assert lesions[2].fraction[np.unravel_index(np.argmax(seen), seen.shape)] > 0.95


def test_what_does_not_fit_is_refused(rng):
    kt, maps, b0 = csi_data(rng)
    lesion = InjectedLesion(SINGLET, np.ones((7, 5, 3), np.float32))
    with pytest.raises(DataError, match="unit"):
        inject(kt, maps, b0, [lesion], np.ones((5, 7, 3)))
    with pytest.raises(DataError, match="fractions"):
        inject(kt, maps, b0, [InjectedLesion(SINGLET, np.ones((5, 7, 3), np.float32))])
    with pytest.raises(ConfigError, match="choose lactate x10"):
        change(kt.protocol, "scar")
