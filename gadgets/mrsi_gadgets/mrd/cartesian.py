"""Chemical shift imaging: each readout is the FID of one point of a Cartesian grid of k-space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, ReadoutHead, Surroundings
from mrsi_gadgets.mrd.sizes import check_matrix
from mrsi_gadgets.stream.messages import Acquisition

_DWELL_TOLERANCE = 1e-3


class CsiLayout:
    """Places csi readouts: kx, ky, kz from counters, time along the readout (see `ReadoutLayout`).

    Parameters
    ----------
    protocol
        Encoding ``csi``; its axis map, centres, signs, dwell and oversampling are used.
    around
        Not needed: the protocol says everything.
    first
        First readout of the role; only its channels count.

    Raises
    ------
    DataError
        The axis map is not one of csi, or a frame does not fit into this machine's memory.
    """

    shares = None

    def __init__(self, protocol: Protocol, around: Surroundings, first: Acquisition) -> None:
        if protocol.axes["t"] != "readout":
            raise DataError(f"mrsi_axis_t is '{protocol.axes['t']}'; csi readouts are FIDs, so it must be readout")
        check_matrix(protocol.geometry.matrix, protocol.n_times, first.data.shape[0])
        self.protocol = protocol
        self.grid = protocol.geometry.matrix
        self.n_slots = int(np.prod(self.grid))
        self.shape = (self.n_slots, protocol.n_times)
        self._all_times = slice(0, protocol.n_times)
        self.sample_time_s = protocol.dwell_s
        self._sources = [protocol.axes[axis] for axis in ("kx", "ky", "kz")]
        for axis, source in zip(("kx", "ky", "kz"), self._sources, strict=True):
            if source not in COUNTER_INDEX and source != "none":
                raise DataError(f"mrsi_axis_{axis} is '{source}'; in csi it must be a counter or none")
        self.used_counters = frozenset(self._sources) - {"none"}
        self._counters = [COUNTER_INDEX.get(source, 0) for source in self._sources]
        # conjugation (freq_sign -1) turns k-space around as well
        self._signs = [sign * protocol.freq_sign for sign in protocol.kspace_sign]
        strides = (self.grid[1] * self.grid[2], self.grid[2], 1)
        self._offsets = [
            counter_offsets(n, stride, protocol.k_centre.get(axis, n // 2), sign, source)
            for n, stride, axis, sign, source in zip(
                self.grid, strides, ("kx", "ky", "kz"), self._signs, self._sources, strict=True
            )
        ]
        self._lowest = lowest_steps(protocol, ("kx", "ky", "kz"), self._counters, self._signs)
        self._n_needed = round(protocol.n_times * protocol.readout_oversampling)

    def slot(self, head: ReadoutHead) -> int:
        """Return the grid point of a readout in C order."""
        counters, (ix, iy, iz) = head.counters, self._counters
        x, y, z = self._offsets
        try:
            return x[counters[ix]] + y[counters[iy]] + z[counters[iz]]
        except KeyError:
            raise self._outside(head) from None

    def target(self, slot: int) -> tuple[int, slice]:
        """Return (point, times): a readout is the whole FID of one point of the grid."""
        return slot, self._all_times

    def prepare(self, slot: int, head: ReadoutHead, readout: Acquisition) -> np.ndarray:
        """Cut what is to be discarded, remove oversampling, bring the signs to our convention."""
        first = head.discard_pre
        if first < head.center_sample < head.n_samples:
            first = head.center_sample
        available = head.n_samples - head.discard_post - first
        if available < self._n_needed:
            raise DataError(self._too_short(head, max(available, 0)))
        self._check_dwell(head)
        samples = readout.data[:, first : first + self._n_needed]
        if self._n_needed != self.protocol.n_times:
            samples = remove_oversampling(samples, self.protocol.n_times)
        if self.protocol.freq_sign < 0:
            samples = samples.conj()
        return -samples if self._lowest and self._turned(head) else samples

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return k on the centred grid [1/m], t = delay + i dwell (a broadcast view), and no density."""
        return grid_points(self.protocol.geometry), np.broadcast_to(self.protocol.times_s, self.shape), None

    def counts(self, slots: np.ndarray) -> np.ndarray:
        """Return how often each point came: its slot has the same number."""
        return slots

    def _turned(self, head: ReadoutHead) -> bool:
        """Tell whether a readout's k = +n/2 is stored at -n/2 along an odd number of axes (see `lowest_steps`)."""
        return bool(sum(head.counters[index] == lowest for index, lowest in self._lowest) % 2)

    def _outside(self, head: ReadoutHead) -> DataError:
        texts = [
            f"{source} {head.counters[index]} ({n} steps of {axis} around {self.protocol.k_centre.get(axis, n // 2)})"
            for axis, n, source, index, offsets in zip(
                ("kx", "ky", "kz"), self.grid, self._sources, self._counters, self._offsets, strict=True
            )
            if source != "none" and head.counters[index] not in offsets
        ]
        return DataError(
            f"readout {head.scan_counter} has {' and '.join(texts)}, which is outside the matrix; correct the counter, "
            "matrixSize or the centre in encodingLimits"
        )

    def _check_dwell(self, head: ReadoutHead) -> None:
        expected = self.protocol.dwell_s * 1e6 / self.protocol.readout_oversampling
        if head.sample_time_us and abs(head.sample_time_us - expected) > _DWELL_TOLERANCE * expected:
            raise DataError(
                f"readout {head.scan_counter} has sample_time_us {head.sample_time_us:g} but mrsi_dwell_us "
                f"{self.protocol.dwell_s * 1e6:g} with mrsi_readout_oversampling "
                f"{self.protocol.readout_oversampling:g} means {expected:g}; correct one of them"
            )

    def _too_short(self, head: ReadoutHead, available: int) -> str:
        oversampling = ""
        if self.protocol.readout_oversampling != 1:
            oversampling = f" times mrsi_readout_oversampling {self.protocol.readout_oversampling:g}"
        return (
            f"readout {head.scan_counter} keeps {available} of its {head.n_samples} samples (discard_pre "
            f"{head.discard_pre}, discard_post {head.discard_post}, center_sample {head.center_sample}) but "
            f"mrsi_spectral_points {self.protocol.n_times}{oversampling} needs {self._n_needed}; correct one of them"
        )


def grid_points(geometry: Geometry) -> np.ndarray:
    """Return k of the points of a Cartesian grid in C order, (point, 3) [1/m], centred at index n // 2."""
    axes = [(np.arange(n) - n // 2) / (f * 1e-3) for n, f in zip(geometry.matrix, geometry.fov_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def remove_oversampling(samples: np.ndarray, n_times: int) -> np.ndarray:
    """Keep the central part of the spectrum of each FID.

    The first sample stays the first: t = 0 does not move, and amplitudes stay what they are.

    Parameters
    ----------
    samples
        complex64 (coil, sample), oversampled.
    n_times
        Points to keep.

    Returns
    -------
        complex64 (coil, n_times).
    """
    n_samples = samples.shape[1]
    spectrum = scipy.fft.fft(samples, axis=1)
    upper = (n_times + 1) // 2
    kept = np.concatenate([spectrum[:, :upper], spectrum[:, n_samples - n_times // 2 :]], axis=1)
    kept *= np.float32(n_times / n_samples)
    return np.asarray(scipy.fft.ifft(kept, axis=1, overwrite_x=True))


def counter_offsets(n: int, stride: int, centre: int, sign: int, source: str) -> dict[int, int]:
    """Return counter value -> offset into the grid along one axis.

    Parameters
    ----------
    n, stride
        Points along this axis, and how far apart they are in the grid.
    centre
        Counter value of k = 0.
    sign
        +1: k rises with the counter.
    source
        Counter that drives the axis; ``none``: nothing does, every readout is at offset 0.
    """
    if source == "none":
        return _Always()
    offsets = {}
    for step in range(-(n // 2), n // 2 + 1):
        index = n // 2 + sign * step
        # for even n, +n/2 and -n/2 are one point of the grid; see lowest_steps for its sign
        if index == n and n % 2 == 0:
            index = 0
        if 0 <= index < n and centre + step >= 0 and not (sign > 0 and step == n // 2 and n % 2 == 0):
            offsets[centre + step] = index * stride
    return offsets


class _Always(dict[int, int]):
    """Offsets of an axis that no counter drives: 0 for whatever the counter says."""

    def __missing__(self, key: int) -> int:
        return 0


def lowest_steps(
    protocol: Protocol, axes: Sequence[str], counters: Sequence[int], signs: Sequence[int]
) -> list[tuple[int, int]]:
    """Return (index of the counter, its value) of each axis whose k = +n/2 is stored at -n/2 with the other sign.

    On a grid whose origin lies between two voxels, exp(-i 2 pi k.r) at the voxel centres changes its sign from
    k = -n/2 to +n/2; where the origin is a voxel both are the same.
    """
    sizes = dict(zip(("kx", "ky", "kz"), protocol.geometry.matrix, strict=True))
    if protocol.geometry.grid_center != "edge":
        return []
    return [
        (index, protocol.k_centre.get(axis, sizes[axis] // 2) - sizes[axis] // 2)
        for axis, index, sign in zip(axes, counters, signs, strict=True)
        if sign < 0 and sizes[axis] % 2 == 0 and protocol.axes[axis] != "none"
    ]
