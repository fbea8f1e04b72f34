from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.combine_coils import CombineCoils
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.gadgets.remove_nuisance import RemoveNuisance
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.nuisance.strength import nuisance_strength


def measured(*, water: float | None, lipid: float) -> tuple[KtData, Context, np.ndarray]:
    """Return data, context and brain; water None: it is not suppressed and has sidebands."""
    unsuppressed = {"water_suppressed": False, "water_sidebands": 0.005}
    own = unsuppressed if water is None else {"residual_water": water}
    preset = replace(find_preset("csi16"), lipid=lipid, **own)
    scan = simulate(preset, seed=1, noise_seed=2)
    header = parse_header(scan.header_xml)
    context = Context(protocol=read_protocol(header))
    items = sort_readouts(scan.acquisitions, context.protocol, context.report, header)
    for gadget in (Prewhiten(), EstimateFieldMap(), CombineCoils()):
        items = gadget.process(items, context)
    (kt,) = [item for item in items if isinstance(item, KtData) and item.role is Role.METABOLITE]
    return kt, context, scan.truth.brain_mask


def prepared(context: Context, **attributes) -> RemoveNuisance:
    gadget = RemoveNuisance(**attributes)
    done: Future = Future()
    done.set_result(gadget.prepare(context))
    context.prepared[gadget] = done
    return gadget


@pytest.fixture(scope="module")
def clean():
    return measured(water=0.0, lipid=0.0)[0]


@pytest.mark.parametrize(("water", "lipid"), [(20.0, 10.0), (5.0, 100.0)])
def test_the_brain_is_free_of_water_and_lipids_by_the_method_that_auto_took(clean, water, lipid):
    kt, context, brain = measured(water=water, lipid=lipid)
    said: list[str] = []
    context.on_progress = said.append
    gadget = prepared(context, always=True)
    (done,) = gadget.process(iter([kt]), context)
    assert done.role is Role.METABOLITE
    known = context.calibration.encoding()
    sd = reconstruct_fourier(clean, *known).noise_sd[brain]

    def error(data):
        image = reconstruct_fourier(data.with_samples(data.samples - clean.samples), *known)
        return np.median(np.sqrt(np.mean(np.abs(image.coefficients[brain]) ** 2, axis=-1) / 2) / sd)

    assert error(done) < 1
    assert error(done) < 0.15 * error(kt)
    chosen = context.report.provenance["nuisance"]["method"]
    # weak lipids can be left to any method; strong ones only the sources in the scalp explain without harm
    assert chosen == "union_of_subspaces" or lipid < 100
    (sentence,) = said
    assert sentence.startswith(f"nuisance removed ({chosen}): water")


@pytest.mark.parametrize(
    ("water", "lipid", "weak"),
    [(0.0, 0.0, True), (20.0, 10.0, True), (20.0, 30.0, True), (100.0, 10.0, False), (5.0, 100.0, False)],
)
def test_weak_water_and_lipids_are_left_to_the_fit_and_strong_ones_removed(water, lipid, weak):
    kt, context, _ = measured(water=water, lipid=lipid)
    assert nuisance_strength(kt, *context.calibration.encoding()).weak == weak
    gadget = prepared(context, method="union_of_subspaces")
    (done,) = gadget.process(iter([kt]), context)
    assert (done is kt) == weak
    told = context.report.provenance["nuisance"]
    assert told["method"] == ("none" if weak else "union_of_subspaces")
    assert told["asked"] == "union_of_subspaces"


def test_unsuppressed_water_with_sidebands_is_taken_by_the_water_reference(clean):
    kt, context, brain = measured(water=None, lipid=0.0)
    gadget = prepared(context, method="union_of_subspaces")
    (done,) = gadget.process(iter([kt]), context)
    known = context.calibration.encoding()
    told = context.report.provenance["nuisance"]
    assert told["water"] == "not suppressed, taken by the water reference"
    sd = reconstruct_fourier(clean, *known).noise_sd[brain]

    def error(data):
        image = reconstruct_fourier(data.with_samples(data.samples - clean.samples), *known)
        return np.median(np.sqrt(np.mean(np.abs(image.coefficients[brain]) ** 2, axis=-1) / 2) / sd)

    assert error(kt) > 1000
    assert error(done) < 1.0
    # suppressed by what the header says: the reference is not kept
    assert measured(water=5.0, lipid=0.0)[1].calibration.water_image is None


@pytest.mark.parametrize("part", [0.5, 1.0, None])
def test_metabolites_that_the_reference_shows_too_are_not_taken_with_the_water(clean, part):
    """By a reference that has a part of the metabolites in it, and without any reference."""
    kt, context, brain = measured(water=None, lipid=0.0)
    known = context.calibration.encoding()
    image = context.calibration.water_image
    wanted = reconstruct_fourier(clean, *known).coefficients
    if part is None:
        context.calibration.water_image = None
    else:
        context.calibration.water_image = replace(image, coefficients=image.coefficients + part * wanted)
    gadget = prepared(context, method="union_of_subspaces")
    (done,) = gadget.process(iter([kt]), context)
    told = context.report.provenance["nuisance"]["water"]
    assert told == "not suppressed" + ("" if part is None else ", taken by the water reference")
    left = reconstruct_fourier(done, *known).coefficients
    n = left.shape[-1]
    ppm = np.fft.ifftshift(kt.protocol.ppm_axis(n))
    spectra = [np.fft.fft(x[brain], axis=-1) for x in (left, wanted)]
    for low, high, least in ((1.9, 2.15, 0.98), (2.9, 3.35, 0.95)):
        band = (ppm > low) & (ppm < high)
        found, true = (s[:, band] for s in spectra)
        kept = np.sum(found * true.conj()).real / np.sum(np.abs(true) ** 2)
        assert least < kept < 1.03


def test_other_items_and_other_nuclei_pass(clean):
    context = Context(protocol=clean.protocol)
    gadget = prepared(context, method="hsvd")
    reference = replace(clean, role=Role.WATER_REFERENCE)
    assert list(gadget.process(iter([reference, "text"]), context)) == [reference, "text"]
    phosphorus = Context(protocol=replace(clean.protocol, nucleus="31P"))
    gadget = prepared(phosphorus)
    assert list(gadget.process(iter([clean]), phosphorus)) == [clean]


def test_a_recipe_can_name_it_and_its_method():
    assert GADGETS["remove_nuisance"] is RemoveNuisance
    assert RemoveNuisance.from_attributes({"method": "l2"}).method == "l2"
    with pytest.raises(ConfigError, match="<remove_nuisance>: method is 'magic'; it must be one of auto, hsvd"):
        RemoveNuisance.from_attributes({"method": "magic"})


def test_the_subspace_is_learned_once_for_all_gadgets(clean):
    context = Context(protocol=clean.protocol)
    gadget = prepared(context)
    (model,) = context.prepared[gadget].result()
    assert context.subspace() is model
    assert context.subspace(rank=8).metabolite_rank == 8
    assert context.subspace() is model
