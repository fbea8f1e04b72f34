"""Readouts of one frame that are told apart: metabolite cycling and several echo times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from csi_scans import CsiScan, Warnings, csi_protocol
from epsi_scans import EpsiScan, Line

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Flag

CYCLING = {"editing": "metabolite_cycling", "water_reference": "none", "axes": {"edit": "user_0"}}


def run(readouts, protocol, **header):
    warnings = Warnings()
    parsed = parse_header(header_xml(protocol, receiver_channels=2, **header)) if header else None
    return list(sort_readouts(readouts, protocol, warnings, parsed)), warnings.said


def conditions(protocol, seed: int = 1, **fields):
    """Up and down readouts, taking turns, with their water and metabolites on the centred grid."""
    water, metabolites = CsiScan(protocol, seed=seed), CsiScan(protocol, seed=seed + 100)
    up, down = replace(water), replace(water)
    up.fids, down.fids = water.fids + metabolites.fids, water.fids - metabolites.fids
    turns = zip(up.readouts(user_0=0, **fields), down.readouts(user_0=1, **fields), strict=True)
    return [readout for both in turns for readout in both], water.k_space(), metabolites.k_space()


def test_water_is_half_the_sum_and_metabolites_half_the_difference():
    protocol = csi_protocol(**CYCLING)
    readouts, water, metabolites = conditions(protocol)
    (first, second), warnings = run(readouts, protocol)
    assert (first.role, second.role) == (Role.WATER_REFERENCE, Role.METABOLITE)
    np.testing.assert_allclose(first.dense, water, atol=2e-4)
    np.testing.assert_allclose(second.dense, metabolites, atol=2e-4)
    # each is the mean of two readouts
    assert set(first.count) == set(second.count) == {2.0}
    assert warnings == []


def test_each_frame_gives_its_own_pair_as_soon_as_it_is_complete():
    protocol = csi_protocol(**CYCLING)
    first, water0, metabolites0 = conditions(protocol, seed=1, repetition=0)
    second, water1, metabolites1 = conditions(protocol, seed=7, repetition=1)
    first[-1].head["flags"] |= np.uint64(Flag.LAST_IN_REPETITION.mask)
    seen = []

    def watched():
        for readout in [*first, *second]:
            seen.append(int(readout.head["idx"]["repetition"]))
            yield readout

    found = []
    for kt in sort_readouts(watched(), protocol, Warnings()):
        found.append((kt.role, kt.frame, len(seen)))
        truth = {0: (water0, metabolites0), 1: (water1, metabolites1)}[kt.frame][kt.role is Role.METABOLITE]
        np.testing.assert_allclose(kt.dense, truth, atol=2e-4)
    assert found == [
        (Role.WATER_REFERENCE, 0, 120), (Role.METABOLITE, 0, 120),
        (Role.WATER_REFERENCE, 1, 240), (Role.METABOLITE, 1, 240),
    ]  # fmt: skip


def test_unequal_averages_of_the_conditions_count_by_their_noise():
    protocol = csi_protocol(**CYCLING)
    readouts, water, metabolites = conditions(protocol)
    again, _, _ = conditions(protocol, average=1)
    more = [r for r in again if r.head["idx"]["user"][0] == 0]
    (first, second), _ = run([*readouts, *more], protocol, averages=2)
    np.testing.assert_allclose(first.dense, water, atol=2e-4)
    np.testing.assert_allclose(second.dense, metabolites, atol=2e-4)
    # variance of half the sum of a mean of two and a single one: (1/2 + 1) / 4 = 1 / count
    np.testing.assert_allclose(second.count, 8 / 3)


def test_a_sample_of_which_one_condition_is_missing_is_missing_in_both():
    protocol = csi_protocol(**CYCLING)
    readouts, water, _ = conditions(protocol)
    (first, second), warnings = run(readouts[1:], protocol)
    assert np.flatnonzero(first.count == 0).tolist() == np.flatnonzero(second.count == 0).tolist() == [0]
    assert not first.samples[:, 0].any()
    assert not second.samples[:, 0].any()
    np.testing.assert_allclose(first.dense.reshape(2, 60, 12)[:, 1:], water.reshape(2, 60, 12)[:, 1:], atol=2e-4)
    assert warnings == ["1 of 60 k-space samples of metabolite were not acquired and are zero"]


def test_acquisition_weighted_conditions_keep_their_weights():
    protocol = csi_protocol(kspace_weighting="acquisition_weighted", **CYCLING)
    readouts, water, metabolites = conditions(protocol)
    again, _, _ = conditions(protocol, average=1)
    twice = again[:2]
    (first, second), _ = run([*readouts, *twice], protocol, averages=2)
    weight = np.full(60, 0.5)
    weight[0] = 1.0
    # the largest number is 4 (both conditions twice): half of the mean of 2 has the noise of 8
    np.testing.assert_allclose(second.count, np.where(weight < 1, 8.0, 4.0))
    for kt, truth in ((first, water), (second, metabolites)):
        np.testing.assert_allclose(kt.samples, truth.reshape(2, 60, 12) * weight[:, None], rtol=1e-4, atol=1e-3)


def test_cycled_lobes_of_epsi_are_separated_too():
    water, metabolites = EpsiScan([Line((1, 2, 0), 0.0, 5.0)]), EpsiScan([Line((3, 0, 1), -210.0)])
    header = water.header(editing="metabolite_cycling")
    protocol = read_protocol(header, {"mrsi_axis_edit": "user_0"}, warn=lambda _: None)
    up, down = water.readouts(user_0=0), water.readouts(user_0=1)
    for plus, minus, part in zip(up, down, metabolites.readouts(), strict=True):
        plus.data, minus.data = plus.data + part.data, minus.data - part.data
    dropped = [r for r in up if (int(r.head["idx"]["segment"]), int(r.head["idx"]["kspace_encode_step_1"])) != (3, 1)]
    first, second = sort_readouts([*dropped, *down], protocol, Warnings(), header)
    assert second.count.shape == (24, 6)
    came = second.count > 0
    assert int((~came).sum()) == 8
    k = np.broadcast_to(second.k[:, None, :], (24, 6, 3)).reshape(-1, 3)
    for kt, scan in ((first, water), (second, metabolites)):
        truth = scan.signal(k, kt.t.reshape(-1)).reshape(24, 6)
        np.testing.assert_allclose(kt.samples[0], truth * came, atol=3e-6)


def test_what_contradicts_metabolite_cycling_is_refused():
    protocol = csi_protocol(**CYCLING)
    readouts, _, _ = conditions(protocol)
    with pytest.raises(DataError, match=r"only condition 0 of metabolite cycling came \(user_0 0 is up, 1 is down\)"):
        run([r for r in readouts if not r.head["idx"]["user"][0]], protocol)
    readouts[9].head["idx"]["user"][0] = 2
    with pytest.raises(DataError, match="readout 4 has user_0 2 but metabolite cycling has the conditions 0"):
        run(readouts, protocol)
    readouts[8].head["flags"] |= np.uint64(Flag.USER1.mask)
    with pytest.raises(DataError, match="carries the water flag USER1 but mrsi_water_ref 'none'"):
        run(readouts, protocol)
    header = parse_header(header_xml(protocol, receiver_channels=2))
    with pytest.raises(DataError, match="gives the water itself, but mrsi_water_ref 'set:1' names another"):
        read_protocol(header, {"mrsi_water_ref": "set:1"})
    with pytest.raises(DataError, match="mrsi_edit is 'metabolite_cycling' but mrsi_axis_edit is none"):
        read_protocol(header, {"mrsi_axis_edit": "none"})
    plain = csi_protocol(axes={"edit": "user_0"}, water_reference="none")
    readouts, _, _ = conditions(plain)
    with pytest.raises(DataError, match="has user_0 1 .* mrsi_edit does not say what these conditions are"):
        run(readouts, plain)


def test_the_water_rule_of_metabolite_cycling_is_none_by_itself():
    header = parse_header(header_xml(csi_protocol(**CYCLING), receiver_channels=2))
    header = replace(header, user={key: value for key, value in header.user.items() if key != "mrsi_water_ref"})
    protocol = read_protocol(header)
    assert (protocol.editing, protocol.water_reference) == ("metabolite_cycling", "none")
    assert protocol.provenance["water_reference"].startswith("metabolite cycling gives the water itself")


def test_a_last_frame_with_one_condition_is_left_out_with_a_warning():
    protocol = csi_protocol(**CYCLING)
    first, _, _ = conditions(protocol, repetition=0)
    second, _, _ = conditions(protocol, repetition=1)
    found, warnings = run([*first, *[r for r in second if r.head["idx"]["user"][0]]], protocol)
    assert [kt.frame for kt in found] == [0, 0]
    assert warnings == ["of metabolite frame 1 only condition 1 of metabolite cycling came; it was not used"]


ECHOES = {"echo_times_s": (0.0013, 0.03, 0.07)}


def test_each_echo_time_is_a_data_set_of_its_own():
    protocol = csi_protocol(water_reference="none", **ECHOES)
    scans = [CsiScan(protocol, seed=seed) for seed in (1, 2, 3)]
    order = [scan.readouts(contrast=echo) for echo, scan in enumerate(scans)]
    found, warnings = run([readout for shot in zip(*order, strict=True) for readout in shot], protocol)
    assert [(kt.role, kt.echo, kt.frame) for kt in found] == [(Role.METABOLITE, echo, 0) for echo in range(3)]
    for kt, scan in zip(found, scans, strict=True):
        np.testing.assert_allclose(kt.dense, scan.k_space(), atol=2e-4)
    assert warnings == []


def test_echoes_and_frames_are_complete_one_by_one():
    protocol = csi_protocol(water_reference="none", **ECHOES)
    scan = CsiScan(protocol)
    readouts = []
    for repetition in range(2):
        shots = zip(*(scan.readouts(contrast=e, repetition=repetition) for e in range(3)), strict=True)
        readouts += [readout for shot in shots for readout in shot]
        readouts[-1].head["flags"] |= np.uint64(Flag.LAST_IN_REPETITION.mask)
    # a sample that is missing in every echo must not keep the frame from ending
    readouts = [r for i, r in enumerate(readouts) if i % 180 not in (0, 1, 2)]
    seen, found = [], []

    def watched():
        for number, readout in enumerate(readouts):
            seen.append(number)
            yield readout

    for kt in sort_readouts(watched(), protocol, Warnings(), parse_header(header_xml(protocol, receiver_channels=2,
                                                                                   frames=2))):  # fmt: skip
        found.append((kt.frame, kt.echo, len(seen)))
    assert found == [(0, 0, 177), (0, 1, 177), (0, 2, 177), (1, 0, 354), (1, 1, 354), (1, 2, 354)]


def test_a_contrast_that_is_the_water_reference_is_no_echo():
    protocol = csi_protocol(water_reference="contrast:1", echo_times_s=(0.0013, 0.0017))
    metabolites, water = CsiScan(protocol), CsiScan(protocol, seed=4)
    found, _ = run([*water.readouts(contrast=1), *metabolites.readouts()], protocol)
    assert [(kt.role, kt.echo) for kt in found] == [(Role.WATER_REFERENCE, 0), (Role.METABOLITE, 0)]


def test_water_of_each_echo_time_comes_before_the_metabolites():
    protocol = csi_protocol(water_reference="set:1", **ECHOES)
    scan = CsiScan(protocol)
    water = [r for e in range(3) for r in scan.readouts(contrast=e, set=1, flags=(Flag.USER1,))]
    metabolites = [r for e in range(3) for r in scan.readouts(contrast=e)]
    found, _ = run([*water, *metabolites], protocol)
    assert [(kt.role, kt.echo) for kt in found] == [
        *((Role.WATER_REFERENCE, e) for e in range(3)), *((Role.METABOLITE, e) for e in range(3))
    ]  # fmt: skip


def test_more_contrasts_than_echo_times_are_refused():
    protocol = csi_protocol(water_reference="none", **ECHOES)
    with pytest.raises(DataError, match="has contrast 3 but TE of the header lists 3 echo times"):
        run(CsiScan(protocol).readouts(contrast=3), protocol)
