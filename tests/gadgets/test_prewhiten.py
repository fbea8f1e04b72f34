"""Whitening is that of the data, whatever comes before them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.data import Role
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.stream.messages import Flag


class Silent:
    def warn(self, sentence: str) -> None:
        pass


def covariance(factor: float) -> np.ndarray:
    """Noise covariance of a scan whose navigators have an ADC dwell that is shorter by `factor`."""
    preset = replace(PRESETS["csi16"], navigator_samples=16, n_times=32, subvoxels=(1, 1, 1), n_coils=2)
    scan = simulate(preset, seed=1)
    readouts = []
    for readout in scan.acquisitions:
        head = readout.head.copy()
        if readout.has(Flag.IS_NAVIGATION_DATA):
            head["sample_time_us"] /= factor
        readouts.append(replace(readout, head=head))
    header = parse_header(scan.header_xml)
    protocol = read_protocol(header)
    context = Context(protocol)
    items = list(Prewhiten().process(sort_readouts(readouts, protocol, Silent(), header), context))
    assert [item.role for item in items][:2] == [Role.NAVIGATOR, Role.WATER_REFERENCE]
    return context.calibration.noise_covariance


def test_navigators_with_a_dwell_of_their_own_do_not_scale_the_noise_of_the_data():
    assert covariance(4.0) == pytest.approx(covariance(1.0), rel=1e-5)
