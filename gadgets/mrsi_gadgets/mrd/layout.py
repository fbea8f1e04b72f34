"""What the sorter asks of an encoding: where does this readout go in (k, t), and what are its samples.

A new encoding is one file with a class that has the members of `ReadoutLayout`, and one line in `sorting.LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple, Protocol

import numpy as np

from mrsi_gadgets import data
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.trajectories import TrajectoryLookup
from mrsi_gadgets.mrd.header import MrdHeader
from mrsi_gadgets.stream.messages import Acquisition

COUNTERS = (
    "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
    "segment", "user_0", "user_1", "user_2", "user_3", "user_4", "user_5", "user_6", "user_7",
)  # fmt: skip
"""Names of the encoding counters in the order of the header."""
COUNTER_INDEX = {name: i for i, name in enumerate(COUNTERS)}

_FIELDS = Struct("<2xQ4xII12xHHH128xHHHHHf48s12x17H")


class ReadoutHead(NamedTuple):
    """The fields of an acquisition header that sorting needs, as Python numbers (one unpacking of 2 us)."""

    flags: int
    scan_counter: int
    time_stamp: int
    n_samples: int
    available_channels: int
    n_channels: int
    discard_pre: int
    discard_post: int
    center_sample: int
    encoding_space: int
    trajectory_dimensions: int
    sample_time_us: float
    geometry: bytes
    """position, read_dir, phase_dir, slice_dir: 12 float32, to compare as they are."""
    counters: tuple[int, ...]
    """In the order of `COUNTERS`."""


def read_head(head: np.void) -> ReadoutHead:
    """Unpack an ACQUISITION_HEADER scalar."""
    values = _FIELDS.unpack_from(head.tobytes())
    return ReadoutHead._make((*values[:13], values[13:]))


Place = int | slice | np.ndarray


class ReadoutLayout(Protocol):
    """Places the readouts of one role; made anew for each role, shared by the frames of that role.

    A slot is the piece of (k, t) that one readout fills: the FID of a point in csi, one time of a line of points in
    EPSI, some laps of a ring. Slots number from 0.
    """

    @property
    def n_slots(self) -> int:
        """How many readouts fill a frame."""

    @property
    def shape(self) -> tuple[int, int]:
        """(points, times) of the KtData to fill."""

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Where points are those of a Cartesian grid in C order, else None."""

    @property
    def sample_time_s(self) -> float:
        """ADC dwell that belongs to the noise of the prepared samples [s] (after removal of oversampling)."""

    @property
    def used_counters(self) -> frozenset[str]:
        """Counters that `slot` reads; all other standard counters must not vary."""

    def slot(self, head: ReadoutHead) -> int:
        """Return the slot of a readout.

        Raises
        ------
        DataError
            A counter lies outside the protocol's range (names counter, value and scan_counter).
        """

    def target(self, slot: int) -> tuple[Place, Place]:
        """Return (points, times) such that ``samples[:, points, times]`` is the place of the slot's samples."""

    def prepare(self, slot: int, head: ReadoutHead, readout: Acquisition) -> np.ndarray:
        """Return the slot's samples, complex64 of the shape of its place, in our conventions of sign, time and space.

        Raises
        ------
        DataError
            The readout is too short, or its dwell contradicts the protocol.
        """

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return k (point, 3) [1/m], t (point, t) [s] and density (point,) or None; see `KtData`.

        Asked when a frame is complete, so a layout may take k from the readouts it saw in `prepare`.
        """

    def counts(self, slots: np.ndarray) -> np.ndarray:
        """Return how often each sample came, (point,) or (point, t), from how often each slot came, (slot,).

        Any numbers of slots are handed on to their samples like this; those of integers are integers.
        """

    @property
    def shares(self) -> np.ndarray | None:
        """(point,) readouts of `sample_time_s` that one sample is worth (a slower ADC has less noise), None for 1."""


@dataclass(frozen=True)
class Surroundings:
    """What a layout may ask beside its protocol and readouts."""

    header: MrdHeader | None
    """None where only the protocol is known."""
    trajectories: TrajectoryLookup
    """The site's trajectory store."""
    warn: Callable[[str], None]
    """Takes sentences about what was assumed."""


LayoutBuilder = Callable[[data.Protocol, Surroundings, Acquisition], ReadoutLayout]
"""Makes a role's layout from its protocol, its surroundings and its first readout.

It may read the first readout's length and trajectory, but must not take the samples.
"""


def trajectory_scale(geometry: data.Geometry, units: str) -> np.ndarray:
    """Return the factors (x, y, z) that bring a trajectory in `units` to 1/m.

    Raises
    ------
    DataError
        The units are none of the profile's.
    """
    fov = np.array(geometry.fov_mm) * 1e-3
    scales = {"1/m": np.ones(3), "1/FOV": 1 / fov, "half": np.array(geometry.matrix) / fov}
    if units not in scales:
        raise DataError(f"mrsi_trajectory_units is '{units}'; it must be one of {', '.join(scales)}")
    return scales[units]
