"""Molecules, lesions and water are where and as strong as they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.phantom.anatomy import fine_positions, make_anatomy
from mrsi_gadgets.phantom.brain import make_brain, smooth_field
from mrsi_gadgets.phantom.lesions import LESION_KINDS, UNKNOWN, UNKNOWN_PPM, place_lesions
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.physics.basis import BRAIN_METABOLITES, metabolite_basis
from mrsi_gadgets.physics.brain_values import MACROMOLECULE_MM

PRESET = PRESETS["csi32"]


@pytest.fixture(scope="module")
def anatomy():
    return make_anatomy(PRESET.geometry, PRESET.subvoxels, isocentre_mni_mm=PRESET.isocentre_mni_mm)


@pytest.fixture(scope="module")
def lesions(anatomy):
    centres = fine_positions(PRESET.geometry, (1, 1, 1))
    return place_lesions(anatomy, 11.0, np.random.default_rng(4), voxel_centres_mm=centres)


def brain_of(anatomy, lesions, seed=4):
    return make_brain(
        anatomy, lesions, voxel_mm=PRESET.geometry.voxel_mm, names=BRAIN_METABOLITES, rng=np.random.default_rng(seed)
    )


@pytest.fixture(scope="module")
def brain(anatomy, lesions):
    return brain_of(anatomy, lesions)


@pytest.fixture(scope="module")
def healthy(anatomy, lesions):
    return brain_of(anatomy, {name: np.zeros_like(f) for name, f in lesions.items()})


def test_there_are_sixteen_metabolites_or_more_and_macromolecules(brain):
    assert len(set(brain.names) - set(MACROMOLECULE_MM) - {UNKNOWN}) >= 16
    assert set(MACROMOLECULE_MM) <= set(brain.names)


def test_each_lesion_fills_some_voxels_and_none_touches_another(anatomy, lesions):
    assert set(lesions) == {kind.name for kind in LESION_KINDS}
    for fraction in lesions.values():
        assert np.sum(anatomy.voxel_mean(fraction) > 0.7) >= 4
    total = sum(lesions.values())
    assert total.max() <= 1.0 + 1e-6


def test_no_room_for_lesions_is_said(anatomy):
    centres = fine_positions(PRESET.geometry, (1, 1, 1))
    with pytest.raises(DataError, match=r"room for .* of 4 lesions"):
        place_lesions(anatomy, 60.0, np.random.default_rng(4), voxel_centres_mm=centres)


def test_hidden_lesion_changes_metabolites_but_not_water(brain, healthy, lesions):
    core = lesions["hidden"] > 0.99
    assert np.array_equal(brain.water[:, core], healthy.water[:, core])
    row = brain.names.index("NAA")
    assert np.allclose(brain.totals[row][core], 0.5 * healthy.totals[row][core], rtol=1e-4)


def test_water_edge_changes_water_but_no_molecule(brain, healthy, lesions):
    core = lesions["water_edge"] > 0
    assert np.array_equal(brain.contents[..., core], healthy.contents[..., core])
    inside = lesions["water_edge"] > 0.99
    assert np.allclose(brain.water[:, inside], 0.7 * healthy.water[:, inside], rtol=1e-3)


def test_unseen_resonance_is_only_in_its_lesion_and_no_basis_signal_lies_there(brain, lesions):
    amount = brain.totals[brain.names.index(UNKNOWN)]
    assert np.all(amount[lesions["unseen"] == 0] == 0)
    assert amount.max() == pytest.approx(3.0, rel=1e-3)
    protocol = PRESET.protocol
    decay = np.exp(-protocol.times_s / 0.08)
    line = np.exp(2j * np.pi * protocol.hz(UNKNOWN_PPM) * protocol.times_s) * decay
    basis = metabolite_basis(protocol).fids * decay
    overlap = np.abs(basis @ line.conj()) / np.linalg.norm(basis, axis=1) / np.linalg.norm(line)
    assert overlap.max() < 0.5


def test_each_molecule_varies_by_15_to_25_percent_on_its_own(anatomy, healthy):
    inside = anatomy.brain > 0.999
    variations = []
    for name in ("NAA", "Cr", "GPC", "Ins", "Glu", "Gln", "PCr"):
        per_tissue = healthy.contents[healthy.names.index(name), :2, inside]
        fractions = np.stack([anatomy.grey, anatomy.white], axis=-1)[inside]
        values = per_tissue.sum(axis=-1)
        # Dividing out what the tissues explain leaves the molecule's own field.
        explained = fractions @ np.linalg.lstsq(fractions, values, rcond=None)[0]
        variations.append(values[explained > 2e-1 * explained.max()] / explained[explained > 2e-1 * explained.max()])
    spread = [float(np.std(v)) for v in variations]
    assert all(0.1 < s < 0.32 for s in spread)
    shortest = min(len(v) for v in variations)
    correlations = np.corrcoef([v[:shortest] for v in variations])
    assert np.median(np.abs(correlations[np.triu_indices(7, 1)])) < 0.3


def test_smooth_field_has_the_width_it_was_asked_for(rng):
    weights = np.full((200, 200, 1), 1.0 / 40_000)
    field = smooth_field((200, 200, 1), 20.0, np.array([1.0, 1.0, 10.0]), weights, rng)[..., 0]
    assert abs(field.std() - 1.0) < 1e-3
    spectrum = np.abs(np.fft.fft(field, axis=0)) ** 2
    autocorrelation = np.fft.ifft(spectrum, axis=0).real.mean(axis=1)
    half = int(np.argmax(autocorrelation < 0.5 * autocorrelation[0]))
    # Smoothing of 20 mm full width correlates white noise over sqrt(2) times 20 mm.
    assert abs(2 * half - 20 * np.sqrt(2)) < 5
