from __future__ import annotations

import numpy as np
import pytest
from csi_scans import csi_protocol, make_readout

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.roles import classify
from mrsi_gadgets.stream.messages import Flag


def head(*flags, **counters):
    return make_readout(np.zeros((1, 4)), number=17, flags=flags, **counters).head


@pytest.mark.parametrize(
    ("flags", "role"),
    [
        ((Flag.IS_NOISE_MEASUREMENT,), Role.NOISE),
        ((Flag.IS_DUMMYSCAN_DATA,), Role.DUMMY),
        ((Flag.IS_NAVIGATION_DATA,), Role.NAVIGATOR),
        ((Flag.IS_PHASECORR_DATA,), Role.NAVIGATOR),
        ((Flag.IS_HPFEEDBACK_DATA,), Role.NAVIGATOR),
        ((Flag.IS_RTFEEDBACK_DATA,), Role.NAVIGATOR),
        ((Flag.IS_PARALLEL_CALIBRATION,), Role.CALIBRATION),
        ((Flag.IS_PARALLEL_CALIBRATION, Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING), Role.METABOLITE),
        ((Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING,), Role.METABOLITE),
        ((Flag.LAST_IN_MEASUREMENT, Flag.LAST_IN_REPETITION), Role.METABOLITE),
        ((Flag.USER1,), Role.WATER_REFERENCE),
        ((), Role.METABOLITE),
        # the first match wins
        ((Flag.IS_NOISE_MEASUREMENT, Flag.IS_DUMMYSCAN_DATA), Role.NOISE),
        ((Flag.IS_NAVIGATION_DATA, Flag.IS_DUMMYSCAN_DATA, Flag.USER1), Role.DUMMY),
        ((Flag.IS_NAVIGATION_DATA, Flag.IS_PARALLEL_CALIBRATION), Role.NAVIGATOR),
        ((Flag.IS_PARALLEL_CALIBRATION, Flag.USER1), Role.CALIBRATION),
    ],
)
def test_flags_decide_and_the_first_match_wins(flags, role):
    assert classify(head(*flags), csi_protocol(water_reference="flag:USER1")) is role


@pytest.mark.parametrize("counter", ["set", "contrast", "repetition", "phase", "segment", "slice", "user_0", "user_7"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_counter_can_mark_the_water_reference(counter, value):
    protocol = csi_protocol(water_reference=f"{counter}:{value}")
    assert classify(head(**{counter: value}), protocol) is Role.WATER_REFERENCE
    assert classify(head(Flag.USER1, **{counter: value}), protocol) is Role.WATER_REFERENCE
    assert classify(head(**{counter: 1 - value}), protocol) is Role.METABOLITE


@pytest.mark.parametrize("rule", ["none", "set:1", "repetition:1"])
def test_a_water_flag_against_the_rule_is_refused(rule):
    with pytest.raises(DataError, match=f"readout 17 carries the water flag USER1 but mrsi_water_ref '{rule}' says"):
        classify(head(Flag.USER1), csi_protocol(water_reference=rule))


def test_a_whole_measurement_can_be_the_water_reference():
    protocol = csi_protocol(water_reference="measurement")
    assert classify(head(), protocol) is Role.WATER_REFERENCE
    assert classify(head(Flag.IS_NOISE_MEASUREMENT), protocol) is Role.NOISE


def test_without_a_water_reference_everything_is_metabolite():
    assert classify(head(set=1), csi_protocol(water_reference="none")) is Role.METABOLITE


def test_an_unknown_rule_is_refused():
    with pytest.raises(DataError, match="mrsi_water_ref is 'line:1'"):
        classify(head(), csi_protocol(water_reference="line:1"))


def test_calibration_readouts_can_be_the_water_reference():
    protocol = csi_protocol(water_reference="flag:IS_PARALLEL_CALIBRATION")
    assert classify(head(Flag.IS_PARALLEL_CALIBRATION), protocol) is Role.WATER_REFERENCE
    assert classify(head(Flag.IS_PARALLEL_CALIBRATION, Flag.IS_NAVIGATION_DATA), protocol) is Role.NAVIGATOR
    assert classify(head(), protocol) is Role.METABOLITE
    with pytest.raises(DataError, match="carries the water flag USER1 but"):
        classify(head(Flag.USER1), protocol)
