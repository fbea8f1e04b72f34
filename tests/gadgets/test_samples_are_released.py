from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.gadgets.combine_coils import CombineCoils
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.simulate import simulate


def test_a_working_stage_holds_its_own_samples_and_none_of_the_stages_before_it() -> None:
    scan = simulate(replace(find_preset("csi16"), subvoxels=(4, 4, 1), n_times=48, n_coils=3))
    header = parse_header(scan.header_xml)
    context = Context(protocol=read_protocol(header))
    made: list[tuple[str, weakref.ref]] = []

    def noted(stage: str, items: Iterator[KtData]) -> Iterator[KtData]:
        def note(item: KtData) -> KtData:
            made.append((f"{stage}, {item.role.value}", weakref.ref(item.samples)))
            return item

        # map keeps no item while it waits
        return map(note, items)

    items = noted("sorted", sort_readouts(scan.acquisitions, context.protocol, context.report, header))
    for gadget in (Prewhiten(), EstimateFieldMap(), CombineCoils(lost_energy=0.2)):
        items = noted(gadget.element, gadget.process(items, context))
    data = next(item for item in items if item.role is Role.METABOLITE)
    alive = [stage for stage, samples in made if samples() is not None and samples() is not data.samples]
    assert alive == [stage for stage in alive if stage.endswith(", noise")]
    assert len({stage for stage, _ in made}) >= 6
