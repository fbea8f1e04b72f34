"""Samples that the ADC takes before and after the signal (discard_pre, discard_post) change nothing anywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from csi_scans import Warnings

from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.stream.messages import Acquisition


def with_leading_samples(readout: Acquisition, before: int, after: int, rng: np.random.Generator) -> Acquisition:
    """The same signal between samples of something else."""

    def padded(values: np.ndarray, axis: int) -> np.ndarray:
        shape = list(values.shape)
        parts = []
        for length in (before, after):
            shape[axis] = length
            parts.append(rng.standard_normal(shape).astype(values.dtype))
        return np.concatenate([parts[0], values, parts[1]], axis=axis)

    head = readout.head.copy()
    head["number_of_samples"] += before + after
    head["discard_pre"], head["discard_post"] = before, after
    if head["center_sample"]:
        head["center_sample"] += before
    trajectory = None if readout.trajectory is None else padded(readout.trajectory, 0)
    return Acquisition(head, padded(readout.data, 1), trajectory)


@pytest.mark.parametrize(
    "name", ["csi16", "epsi16", "epsi16_bipolar", "epsi16_ramp", "rings16", "spiral16"]
)  # fmt: skip
def test_what_is_to_be_discarded_is_no_signal(name):
    preset = replace(PRESETS[name], n_times=48, n_coils=1, subvoxels=(4, 4, 1), navigator_samples=16)
    scan = simulate(preset, seed=2)
    header = parse_header(scan.header_xml)
    protocol = read_protocol(header, warn=Warnings().warn)
    rng = np.random.default_rng(4)
    plain = list(sort_readouts(scan.acquisitions, protocol, Warnings(), header))
    changed = (with_leading_samples(readout, 5, 3, rng) for readout in scan.acquisitions)
    padded = list(sort_readouts(changed, protocol, Warnings(), header))
    assert len(plain) == len(padded) == 5
    for ours, theirs in zip(padded, plain, strict=True):
        assert ours.role is theirs.role
        np.testing.assert_array_equal(ours.samples, theirs.samples)
        np.testing.assert_array_equal(ours.k, theirs.k)
        np.testing.assert_array_equal(ours.t, theirs.t)
        np.testing.assert_array_equal(ours.count, theirs.count)
