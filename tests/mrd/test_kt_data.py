"""The form in which all encodings hand over their samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from csi_scans import csi_protocol

from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import DataError


def make(**changes) -> KtData:
    """2 coils, 3 x 4 x 5 points, 12 times."""
    protocol = csi_protocol()
    samples = np.arange(2 * 60 * 12).reshape(2, 60, 12).astype(np.complex64)
    t = np.broadcast_to(protocol.times_s, (60, 12))
    fields = {"samples": samples, "k": np.zeros((60, 3)), "t": t, "count": np.ones(60, int), "role": Role.METABOLITE,
              "protocol": protocol, "grid": (3, 4, 5)}  # fmt: skip
    return KtData(**(fields | changes))


def test_the_dense_view_has_the_axes_of_the_grid():
    kt = make()
    assert kt.dense.shape == (2, 3, 4, 5, 12)
    assert np.shares_memory(kt.dense, kt.samples)
    assert kt.dense[1, 2, 1, 3, 7] == kt.samples[1, (2 * 4 + 1) * 5 + 3, 7]
    with pytest.raises(DataError, match="not on a Cartesian grid"):
        _ = make(grid=None).dense


def test_counts_are_those_of_samples_whatever_their_shape():
    by_point = make(count=np.arange(60.0))
    assert by_point.counts.shape == (60, 12)
    assert by_point.counts[7].tolist() == [7.0] * 12
    assert not by_point.fully_sampled
    assert make().fully_sampled
    assert make(grid=None).fully_sampled
    by_time = np.ones((60, 12))
    by_time[3, 5] = 0
    assert np.array_equal(make(count=by_time).counts, by_time)
    assert not make(count=by_time).fully_sampled


def test_times_are_common_where_all_points_have_the_same():
    t = np.array(make().t)
    assert make().common_times
    assert make(t=t).common_times
    t[5, 3] += 2e-9
    assert not make(t=t).common_times


def test_an_echo_is_one_of_the_protocols():
    protocol = replace(csi_protocol(), echo_times_s=(0.01, 0.02))
    assert make(protocol=protocol, echo=1).echo == 1
    with pytest.raises(DataError, match="echo 2 is none of the 2 echo times"):
        make(protocol=protocol, echo=2)
    with pytest.raises(DataError, match="echo -1 is none"):
        make(echo=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {"k": np.zeros((60, 12, 3))},
        {"k": np.zeros((59, 3))},
        {"t": np.zeros((60, 11))},
        {"count": np.ones(59)},
        {"count": np.ones((60, 11))},
        {"density": np.ones((60, 12))},
    ],
)
def test_arrays_of_other_points_are_refused(changes):
    with pytest.raises(DataError, match="do not describe the same points"):
        make(**changes)


def test_a_grid_of_another_size_and_samples_without_a_time_axis_are_refused():
    with pytest.raises(DataError, match="does not hold 60 points"):
        make(grid=(3, 4, 4))
    with pytest.raises(DataError, match="have 2 axes"):
        make(samples=np.zeros((2, 60), np.complex64))
