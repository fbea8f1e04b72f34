"""When readouts were acquired, and the readouts that help the others: navigators and calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from csi_scans import CsiScan, Warnings, csi_protocol, make_readout, noise_readouts

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Flag
from ring_phantom import RingScan, Source

TICK_S = 2.5e-3
CALIBRATION = (Flag.IS_PARALLEL_CALIBRATION,)


def run(readouts, protocol):
    warnings = Warnings()
    return list(sort_readouts(readouts, protocol, warnings)), warnings.said


def stamped(readouts, stamps):
    for readout, stamp in zip(readouts, stamps, strict=True):
        readout.head["acquisition_time_stamp"] = stamp
    return readouts


def navigators(count, n_samples=9, **fields):
    value = np.arange(n_samples) + 1j
    return [make_readout(np.stack([value, value * (i + 1)]), flags=(Flag.IS_NAVIGATION_DATA,), **fields)
            for i in range(count)]  # fmt: skip


def test_each_point_knows_when_it_was_acquired():
    scan = CsiScan(csi_protocol())
    stamps = 7000 + np.random.default_rng(2).permutation(60) * 120
    (kt,), _ = run(stamped(scan.readouts(), stamps), scan.protocol)
    np.testing.assert_allclose(kt.acquired_s, (stamps - stamps[0]) * TICK_S)


def test_time_counts_from_the_first_readout_whatever_its_role_and_in_the_ticks_of_the_header():
    protocol = csi_protocol(time_tick_ms=1.0)
    noise = stamped(noise_readouts(count=2), [500, 510])
    items, _ = run(noise + stamped(CsiScan(protocol).readouts(), range(1000, 1060)), protocol)
    np.testing.assert_allclose(items[-1].acquired_s, 0.5 + 1e-3 * np.arange(60))


def test_averages_have_their_mean_time_and_missing_points_that_of_the_others():
    scan = CsiScan(csi_protocol())
    first = stamped(scan.readouts(average=0, skip=[(0, 0, 0)]), range(1000, 1059))
    second = stamped(scan.readouts(average=1, skip=[(0, 0, 0)]), range(3000, 3059))
    (kt,), _ = run(first + second, scan.protocol)
    each = (1000 + np.arange(59)) * TICK_S
    np.testing.assert_allclose(kt.acquired_s[1:], each - each[0] + 1000 * TICK_S)
    assert kt.acquired_s[0] == pytest.approx(np.mean(kt.acquired_s[1:]))


@pytest.mark.parametrize("stamp", [0, 4711])
def test_stamps_that_are_all_alike_say_nothing(stamp):
    scan = CsiScan(csi_protocol())
    (kt,), _ = run(stamped(scan.readouts(), [stamp] * 60), scan.protocol)
    assert kt.acquired_s is None


def test_a_scan_over_midnight_goes_on_in_time():
    scan = CsiScan(csi_protocol())
    day = round(86_400 / TICK_S)
    stamps = (day - 300 + np.arange(60) * 10) % day
    (kt,), _ = run(stamped(scan.readouts(), stamps), scan.protocol)
    np.testing.assert_allclose(kt.acquired_s, np.arange(60) * 10 * TICK_S)


def test_conditions_of_metabolite_cycling_share_their_mean_time():
    protocol = csi_protocol(editing="metabolite_cycling", water_reference="none", axes={"edit": "user_0"})
    scan = CsiScan(protocol)
    turns = [r for pair in zip(scan.readouts(user_0=0), scan.readouts(user_0=1), strict=True) for r in pair]
    (water, metabolites), _ = run(stamped(turns, range(100, 220)), protocol)
    for kt in (water, metabolites):
        np.testing.assert_allclose(kt.acquired_s, (0.5 + 2 * np.arange(60)) * TICK_S)


@pytest.mark.parametrize(("interleaves", "per_time"), [(1, False), (2, True)])
def test_only_fids_of_several_excitations_have_a_time_for_each_sample(interleaves, per_time):
    scan = RingScan([Source((9, 3), 2.01)], interleaves=(interleaves,) * 6, chunk=10_000)
    header = parse_header(scan.header())
    protocol = read_protocol(header, warn=Warnings().warn)
    readouts = scan.readouts()
    stamped(readouts, 400 * np.arange(len(readouts)))
    kt = next(k for k in sort_readouts(readouts, protocol, Warnings(), header=header) if k.role is Role.METABOLITE)
    if not per_time:
        assert kt.acquired_s.shape == (kt.k.shape[0],)
        return
    assert kt.acquired_s.shape == kt.t.shape
    # times of one interleaf are every second one, a second after those of the other
    np.testing.assert_allclose(kt.acquired_s[:, 1::2] - kt.acquired_s[:, ::2], 1.0, atol=1e-4)


def test_navigators_leave_before_the_frame_they_came_with():
    protocol = csi_protocol(water_reference="set:1", freq_sign=-1, kspace_sign=(-1, -1, -1))
    scan = CsiScan(protocol)
    water, metabolites = scan.readouts(set=1), scan.readouts()
    found = navigators(4, sample_time_us=100.0, discard_pre=1)
    order = [found[0], *water[:30], found[1], *water[30:], found[2], *metabolites[:50], found[3], *metabolites[50:]]
    items, warnings = run(stamped(order, np.arange(len(order)) * 40), protocol)
    assert warnings == []
    before_water, water_kt, before_metabolites, kt = items
    assert [i.role for i in items] == [
        Role.NAVIGATOR, Role.WATER_REFERENCE, Role.NAVIGATOR, Role.METABOLITE
    ]  # fmt: skip
    # the water reference is known to be complete only when metabolites follow
    assert before_water.samples.shape == (2, 3, 8)
    # conjugated like the data; the first sample was to be discarded
    expected = np.conj(np.stack([np.arange(1, 9) + 1j, 2 * (np.arange(1, 9) + 1j)]))
    np.testing.assert_allclose(before_water.samples[:, 1], expected)
    np.testing.assert_allclose(before_water.acquired_s, [0, 3.1, 6.2])
    np.testing.assert_allclose(before_metabolites.acquired_s, [11.3])
    np.testing.assert_allclose(before_water.t[0], protocol.acquisition_delay_s + 1e-4 * np.arange(8))
    assert before_water.sample_time_s == pytest.approx(1e-4)
    assert water_kt.fully_sampled
    assert kt.fully_sampled


@pytest.mark.parametrize(
    "unusable",
    [
        navigators(3, n_samples=7),
        [make_readout(np.ones((1, 20)), flags=(Flag.IS_NAVIGATION_DATA,)) for _ in range(3)],
        [make_readout(np.ones((2, 20)), flags=(Flag.IS_PHASECORR_DATA,)) for _ in range(3)],
        [make_readout(np.ones((2, 20)), flags=(Flag.IS_NAVIGATION_DATA, Flag.IS_RTFEEDBACK_DATA)) for _ in range(3)],
    ],
    ids=["too short", "other channels", "phase correction", "feedback"],
)
def test_navigators_that_are_no_fids_are_counted_and_left_out(unusable):
    scan = CsiScan(csi_protocol())
    (kt,), (warning,) = run([*unusable, *scan.readouts()], scan.protocol)
    assert kt.role is Role.METABOLITE
    assert warning == "3 navigator or feedback readouts were not used"


def test_navigators_with_values_that_are_not_finite_are_refused():
    bad = navigators(1)
    bad[0].data[1, 2] = np.nan
    scan = CsiScan(csi_protocol())
    with pytest.raises(DataError, match="holds values that are not finite .* channel 1"):
        run(bad + scan.readouts(), scan.protocol)


def inner(index):
    return all(n // 2 - 1 <= i <= n // 2 + 1 for i, n in zip(index, (3, 4, 5), strict=True))


def test_calibration_readouts_lie_where_metabolites_with_their_counters_do():
    protocol = csi_protocol(water_reference="set:1")
    scan = CsiScan(protocol)
    skip = [i for i in np.ndindex(3, 4, 5) if not inner(i)]
    readouts = [*scan.readouts(set=1), *scan.readouts(skip=skip, flags=CALIBRATION), *scan.readouts()]
    (water, calibration, kt), warnings = run(readouts, protocol)
    assert (water.role, calibration.role, kt.role) == (Role.WATER_REFERENCE, Role.CALIBRATION, Role.METABOLITE)
    assert calibration.grid == (3, 4, 5)
    came = np.array([inner(i) for i in np.ndindex(3, 4, 5)])
    np.testing.assert_array_equal(calibration.count > 0, came)
    wanted = scan.k_space().reshape(2, 60, -1)
    np.testing.assert_allclose(calibration.samples[:, came], wanted[:, came], atol=1e-4)
    assert not calibration.samples[:, ~came].any()
    assert warnings == []


def test_calibration_readouts_that_are_images_too_are_metabolites():
    scan = CsiScan(csi_protocol())
    flags = (Flag.IS_PARALLEL_CALIBRATION, Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
    items, warnings = run(scan.readouts(flags=flags), scan.protocol)
    assert [i.role for i in items] == [Role.METABOLITE]
    assert items[0].fully_sampled
    assert warnings == []


@pytest.mark.parametrize(
    ("readouts", "reason"),
    [
        ([make_readout(np.ones((2, 7)), flags=CALIBRATION)], r"keeps 7 of its 7 samples"),
        ([make_readout(np.ones((2, 12)), segment=9, flags=CALIBRATION)], "has segment 9"),
        ([make_readout(np.ones((2, 12)), encoding_space_ref=1, flags=CALIBRATION)], "is of encoding space 1"),
    ],
)
def test_calibration_readouts_that_fit_nowhere_are_left_out_and_the_reason_is_told(readouts, reason):
    scan = CsiScan(csi_protocol())
    (kt,), (warning,) = run([*readouts, *readouts, *scan.readouts()], scan.protocol)
    assert kt.fully_sampled
    assert warning.startswith("2 calibration readouts were not used, since they do not fit the metabolites'")
    assert reason in warning


def test_calibration_of_the_water_reference_is_not_mixed_with_that_of_the_metabolites():
    protocol = csi_protocol(water_reference="set:1")
    scan = CsiScan(protocol)
    readouts = [*scan.readouts(set=1, flags=CALIBRATION), *scan.readouts()]
    items, warnings = run(readouts, protocol)
    assert [i.role for i in items] == [Role.METABOLITE]
    assert warnings == ["60 calibration readouts were not used"]


def test_times_of_another_shape_are_refused():
    scan = CsiScan(csi_protocol())
    (kt,), _ = run(scan.readouts(), scan.protocol)
    assert isinstance(kt, KtData)
    with pytest.raises(DataError, match=r"acquired_s \(5,\) do not describe the same points"):
        replace(kt, acquired_s=np.zeros(5))
