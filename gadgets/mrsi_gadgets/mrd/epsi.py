"""Echo-planar spectroscopic imaging: a train of readout lobes walks the line along kx again and again.

Each readout is one lobe; it fills one time index of the points of its line (ky, kz). Lobes number from 0 along the
train (counter of axis t); they follow each other at the spacing T, and sample i of lobe n was taken at

    t = delay + n T + (i - center_sample) sample_time,        i in the order of acquisition,

so that the k-space centre of each lobe lies on the grid of T. With alternating polarity the lobes of one parity run
backwards (flag IS_REVERSE); those of one polarity form one FID of dwell 2 T, and all points exist twice, forward ones
first. A lobe that never comes leaves count 0 at its time: nothing more is needed for random (k, t) undersampling.

Uniform lobes are brought to the matrix' own points along kx, whatever their spatial oversampling (see
`oversampling_removal`). Ramp-sampled lobes
(a trajectory comes with each of them, or the header describes the gradient) keep every sample as a point of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.cartesian import counter_offsets, grid_points, lowest_steps
from mrsi_gadgets.mrd.epsi_lobes import SAME_DWELL, conventional_epi, lobe_parameters, oversampling_removal
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, ReadoutHead, Surroundings, trajectory_scale
from mrsi_gadgets.mrd.sizes import check_size
from mrsi_gadgets.stream.messages import Acquisition, Flag

_REVERSE = Flag.IS_REVERSE.mask
_SAME_PLACE = 1e-3


@dataclass(frozen=True, eq=False)
class _Lobe:
    """How the samples of the lobes of one polarity become points along kx."""

    first: Acquisition
    centre: int
    """Number of the sample at the centre of k-space, after what is discarded."""
    k: np.ndarray
    """(point,) [1/m] along x of the image."""
    late: np.ndarray
    """(point,) [s] after the centre of the lobe."""
    matrix: np.ndarray | None
    """(sample, point) complex64 from samples to points; None: every sample is a point, in the order of acquisition."""


class EpsiLayout:
    """Places epsi readouts (see `ReadoutLayout`).

    Parameters
    ----------
    protocol
        Encoding ``epsi``: its axis map, centres, signs, polarity, oversampling and trajectory are used.
    around
        The header describes ramp-sampled lobes where no trajectory is sent.
    first
        First readout of the role: its length and polarity are those of all.

    Raises
    ------
    DataError
        The axis map is not one of epsi, the readout does not fit the matrix, its ADC dwell is not known, or a frame
        does not fit into this machine's memory.
    """

    shares = None

    def __init__(self, protocol: Protocol, around: Surroundings, first: Acquisition) -> None:
        self.protocol, self._warn = protocol, around.warn
        geometry = protocol.geometry
        self._sources = [protocol.axes[axis] for axis in ("ky", "kz")]
        self._lobe_counter = COUNTER_INDEX.get(protocol.axes["t"], -1)
        if protocol.axes["kx"] != "readout" or self._lobe_counter < 0:
            raise DataError(
                f"mrsi_axis_kx is '{protocol.axes['kx']}' and mrsi_axis_t '{protocol.axes['t']}'; in epsi kx runs "
                "along the readout and t is the counter of the lobes"
            )
        self.used_counters = frozenset([*self._sources, protocol.axes["t"]]) - {"none"}
        self._set_up_lines()
        self.alternating = protocol.readout_polarity == "alternating"
        self.n_lobes = protocol.n_times * (2 if self.alternating else 1)
        self.spacing_s = protocol.dwell_s / (2 if self.alternating else 1)
        self.n_slots = self.n_lines * self.n_lobes
        self._parameters = lobe_parameters(protocol, around, int(first.head["encoding_space_ref"]))
        self.ramps = first.trajectory is not None or self._parameters is not None
        if first.trajectory is not None and (
            len(protocol.trajectory_columns) != first.trajectory.shape[1] or "kx" not in protocol.trajectory_columns
        ):
            raise DataError(
                f"mrsi_trajectory_columns is '{','.join(protocol.trajectory_columns)}' but the lobes send "
                f"{first.trajectory.shape[1]} columns; name each of them, kx among them"
            )
        self._kept = _kept(first.head)
        self._n_samples = self._kept.stop - self._kept.start
        self._check_length()
        self.sample_time_us = self._sample_time_us(first)
        self.n_x = self._n_samples if self.ramps else geometry.matrix[0]
        self.sample_time_s = self.sample_time_us * 1e-6 / (1.0 if self.ramps else self._noise_left())
        self._half = self.n_x * self.n_lines
        self.shape = (self._half * (2 if self.alternating else 1), protocol.n_times)
        self.grid = geometry.matrix if not self.ramps and not self.alternating else None
        check_size(geometry.matrix, self.shape[0], protocol.n_times, first.data.shape[0], beside=1)
        check_size(geometry.matrix, self.n_slots, 1, 1)
        # lobes number from 0, so the first one's number and flag tell which parity runs backwards
        number = self._number(first.head)
        reverse = bool(int(first.head["flags"]) & _REVERSE)
        if reverse and not self.alternating:
            raise DataError(
                f"readout {int(first.head['scan_counter'])} carries the flag IS_REVERSE but mrsi_readout_polarity is "
                "'monopolar'; set it to alternating, or correct the flag"
            )
        self._reverse_parity = (number % 2 if reverse else (number + 1) % 2) if self.alternating else -1
        self._lobes: dict[bool, _Lobe] = {}

    def _set_up_lines(self) -> None:
        """Prepare the way from counters to lines (ky, kz)."""
        protocol = self.protocol
        sizes = protocol.geometry.matrix[1:]
        self.n_lines = sizes[0] * sizes[1]
        for axis, source in zip(("ky", "kz"), self._sources, strict=True):
            if source not in COUNTER_INDEX and source != "none":
                raise DataError(f"mrsi_axis_{axis} is '{source}'; in epsi it must be a counter or none")
        self._counters = [COUNTER_INDEX.get(source, 0) for source in self._sources]
        # conjugation (freq_sign -1) turns k-space around as well
        signs = [sign * protocol.freq_sign for sign in protocol.kspace_sign]
        self._sign_x = signs[0]
        self._offsets = [
            counter_offsets(n, stride, protocol.k_centre.get(axis, n // 2), sign, source)
            for n, stride, axis, sign, source in zip(
                sizes, (sizes[1], 1), ("ky", "kz"), signs[1:], self._sources, strict=True
            )
        ]
        self._lowest = lowest_steps(protocol, ("ky", "kz"), self._counters, signs[1:])

    @property
    def reverse_parity(self) -> int:
        """0 where even lobes run back, 1 where odd ones do, -1 where none does."""
        return self._reverse_parity

    def _number(self, head: np.void) -> int:
        name = self.protocol.axes["t"]
        index = head["idx"]
        return int(index["user"][int(name[-1])] if name.startswith("user_") else index[name])

    def _check_length(self) -> None:
        """Refuse lobes whose samples are not those of the matrix."""
        n_x, n = self.protocol.geometry.matrix[0], self._n_samples
        if n < 1:
            raise DataError("the first epsi readout has no samples left after discard_pre and discard_post")
        factor = self.protocol.readout_oversampling
        if self.ramps:
            if n < max(n_x, 2):
                raise DataError(
                    f"ramp-sampled lobes have {n} samples, fewer than the {n_x} voxels; correct matrixSize.x"
                )
        elif abs(n - n_x * factor) > 0.5:
            raise DataError(
                f"lobes keep {n} samples but matrixSize.x {n_x} times mrsi_readout_oversampling {factor:g} is "
                f"{n_x * factor:g}; correct one of them (or send the trajectory of ramp-sampled lobes)"
            )

    def _sample_time_us(self, first: Acquisition) -> float:
        """Return the ADC dwell [us], compared with the header's description and the spacing of the lobes."""
        dwell = float(first.head["sample_time_us"])
        if self._parameters is not None:
            stated = float(self._parameters["dwellTime"])
            if dwell and abs(dwell - stated) > SAME_DWELL * stated:
                raise DataError(
                    f"epsi readouts have sample_time_us {dwell:g} but dwellTime of the header's ConventionalEPI is "
                    f"{stated:g}; correct one of them"
                )
            dwell = dwell or stated
        if not dwell:
            raise DataError("epsi readouts have sample_time_us 0, so the times within a lobe are not known; state it")
        if dwell * self._n_samples > self.spacing_s * 1e6 * (1 + SAME_DWELL):
            raise DataError(
                f"{self._n_samples} samples of {dwell:g} us take {dwell * self._n_samples:g} us, longer than the lobe "
                f"spacing (mrsi_dwell_us) of {self.spacing_s * 1e6:g} us; correct one of them"
            )
        return dwell

    def _noise_left(self) -> float:
        """Return the variance of a point's noise over that of a sample's, the mean along kx."""
        n_x, n = self.protocol.geometry.matrix[0], self._n_samples
        steps = (np.arange(n) - n // 2) * (n_x / n)
        way = oversampling_removal(self.protocol.geometry, steps, np.arange(n_x) - float(n_x // 2))
        return float(np.mean(np.sum(np.abs(way) ** 2, axis=1)))

    def slot(self, head: ReadoutHead) -> int:
        """Return line * n_lobes + lobe; see `ReadoutLayout`."""
        counters, (iy, iz) = head.counters, self._counters
        lobe = counters[self._lobe_counter]
        if lobe >= self.n_lobes:
            raise DataError(
                f"readout {head.scan_counter} is lobe {lobe} but mrsi_spectral_points counts {self.n_lobes} of them; "
                f"correct mrsi_spectral_points or counter {self.protocol.axes['t']}"
            )
        y, z = self._offsets
        try:
            return (y[counters[iy]] + z[counters[iz]]) * self.n_lobes + lobe
        except KeyError:
            raise self._outside(head) from None

    def _outside(self, head: ReadoutHead) -> DataError:
        texts = [
            f"{source} {head.counters[index]} ({n} steps of {axis} around {self.protocol.k_centre.get(axis, n // 2)})"
            for axis, n, source, index, offsets in zip(
                ("ky", "kz"), self.protocol.geometry.matrix[1:], self._sources, self._counters, self._offsets,
                strict=True,
            )
            if source != "none" and head.counters[index] not in offsets
        ]  # fmt: skip
        return DataError(
            f"readout {head.scan_counter} has {' and '.join(texts)}, which is outside the matrix; correct the counter, "
            "matrixSize or the centre in encodingLimits"
        )

    def target(self, slot: int) -> tuple[slice, int]:
        """Return (points, time): a lobe is one time of the points of its line."""
        line, lobe = divmod(slot, self.n_lobes)
        if not self.alternating:
            return slice(line, None, self.n_lines), lobe
        first = self._half if lobe % 2 == self._reverse_parity else 0
        return slice(first + line, first + self._half, self.n_lines), lobe // 2

    def prepare(self, slot: int, head: ReadoutHead, readout: Acquisition) -> np.ndarray:
        """Return the lobe's samples at its points; see `ReadoutLayout`."""
        reverse = bool(head.flags & _REVERSE)
        lobe_number = slot % self.n_lobes
        if reverse != (lobe_number % 2 == self._reverse_parity):
            raise self._wrong_polarity(head, lobe_number, reverse)
        length = head.n_samples - head.discard_post - head.discard_pre
        if length != self._n_samples:
            raise DataError(
                f"readout {head.scan_counter} keeps {max(length, 0)} samples but the epsi readouts before "
                f"it {self._n_samples}; send lobes of one length"
            )
        if head.sample_time_us and abs(head.sample_time_us - self.sample_time_us) > SAME_DWELL * self.sample_time_us:
            raise DataError(
                f"readout {head.scan_counter} has sample_time_us {head.sample_time_us:g} but the epsi readouts before "
                f"it {self.sample_time_us:g}; send lobes of one dwell"
            )
        lobe = self._lobes.get(reverse)
        if lobe is None:
            lobe = self._lobes[reverse] = self._learn(readout, head, reverse)
        else:
            self._compare(lobe, readout, head)
        samples = readout.data[:, head.discard_pre : head.discard_pre + self._n_samples]
        if self.protocol.freq_sign < 0:
            samples = samples.conj()
        if lobe.matrix is not None:
            samples = samples @ lobe.matrix
        turned = sum(head.counters[index] == lowest for index, lowest in self._lowest) % 2 if self._lowest else 0
        return -samples if turned else samples

    def _wrong_polarity(self, head: ReadoutHead, lobe: int, reverse: bool) -> DataError:
        flag = "carries" if reverse else "lacks"
        if not self.alternating:
            return DataError(
                f"readout {head.scan_counter} carries the flag IS_REVERSE but mrsi_readout_polarity is 'monopolar'; "
                "set it to alternating, or correct the flag"
            )
        kind = "odd" if self._reverse_parity else "even"
        return DataError(
            f"readout {head.scan_counter} (lobe {lobe}) {flag} the flag IS_REVERSE, but by the first readout the "
            f"{kind} lobes run backwards; correct the flags, or mrsi_readout_polarity if all lobes run the same way"
        )

    def _learn(self, readout: Acquisition, head: ReadoutHead, reverse: bool) -> _Lobe:
        """Work out where and when the samples of a polarity's lobes lie, from the first of them."""
        n = self._n_samples
        centre = head.center_sample - head.discard_pre if 0 < head.center_sample < head.n_samples else -1
        if self.ramps:
            k = self._ramp(readout, head, reverse)
            nearest = int(np.argmin(np.abs(k)))
            if centre < 0:
                centre = nearest
                self._say_centre(centre)
            if not 0 <= centre < n or abs(centre - nearest) > 1:
                raise DataError(
                    f"readout {head.scan_counter} has center_sample {head.center_sample} but its trajectory passes k = "
                    f"0 at sample {nearest + head.discard_pre}; correct one of them"
                )
            late = (np.arange(n) - centre) * self.sample_time_us * 1e-6
            return _Lobe(readout, centre, k, late, None)
        if centre < 0:
            centre = n // 2
            self._say_centre(centre)
        return self._uniform(readout, head, centre, reverse)

    def _say_centre(self, centre: int) -> None:
        self._warn(f"epsi readouts have no center_sample; sample {centre} was taken to be the centre of k-space")

    def _uniform(self, readout: Acquisition, head: ReadoutHead, centre: int, reverse: bool) -> _Lobe:
        """Return the way from uniform samples to the points of the matrix along kx."""
        geometry, n = self.protocol.geometry, self._n_samples
        n_x, fov_m = geometry.matrix[0], geometry.fov_mm[0] * 1e-3
        factor = n / n_x
        direction = -self._sign_x if reverse else self._sign_x
        steps = direction * (np.arange(n) - centre) / factor
        if abs(centre - (n - 1) / 2) > 0.5:
            raise DataError(
                f"readout {head.scan_counter} has center_sample {head.center_sample} of {n} kept samples (from "
                f"{head.discard_pre}), but uniform lobes need their centre in the middle; correct center_sample, or "
                "send a trajectory"
            )
        # k of the points in units of 1/FOV: where their number is even, from -n/2 or up to +n/2, as the lobe reaches
        ranges = [np.arange(n_x) + start for start in {-(n_x // 2), -((n_x - 1) // 2)}]
        reached = min(ranges, key=lambda k: max(steps.min() - k[0], 0.0) + max(k[-1] - steps.max(), 0.0))
        index = (reached + n_x // 2) % n_x
        k = np.empty(n_x)
        k[index] = reached
        late = direction * k * factor * self.sample_time_us * 1e-6
        # each point is estimated where the lobe reaches: half a cell beyond it would be a guess
        way = oversampling_removal(geometry, steps, k)
        if self.grid is not None:
            # +n/2 and -n/2 are one point of the grid, with the sign of the half voxel between its origin and a voxel
            on_grid = np.arange(n_x, dtype=float) - n_x // 2
            way = way * np.exp(2j * np.pi * (on_grid - k) / n_x * geometry.centre_index[0])[:, None]
            k = on_grid
        matrix = way.T.astype(np.complex64)
        return _Lobe(readout, centre, k / fov_m, late, np.ascontiguousarray(matrix))

    def _ramp(self, readout: Acquisition, head: ReadoutHead, reverse: bool) -> np.ndarray:
        """Return k (sample,) [1/m] along x of the image, in the order of acquisition."""
        geometry = self.protocol.geometry
        if self._parameters is not None and readout.trajectory is None:
            k = conventional_epi(self._parameters, self._n_samples, geometry) * (-1 if reverse else 1)
        else:
            k = self._sent(readout, head)
        change = np.diff(k)
        if not (np.all(change > 0) or np.all(change < 0)):
            raise DataError(f"the trajectory of readout {head.scan_counter} does not run one way along kx; correct it")
        if (change[0] < 0) != reverse:
            raise DataError(
                f"the trajectory of readout {head.scan_counter} runs {'backwards' if change[0] < 0 else 'forwards'} "
                f"along kx but the readout {'carries' if reverse else 'lacks'} the flag IS_REVERSE; correct one of them"
            )
        nominal = geometry.matrix[0] / (2e-3 * geometry.fov_mm[0])
        reached = float(np.abs(k).max())
        if not 0.4 * nominal <= reached <= 2 * nominal:
            raise DataError(
                f"the trajectory of readout {head.scan_counter} reaches {reached:.4g}/m but {geometry.matrix[0]} "
                f"voxels need {nominal:.4g}/m; correct mrsi_trajectory_units, or matrixSize and fieldOfView_mm"
            )
        return np.asarray(k * self._sign_x)

    def _sent(self, readout: Acquisition, head: ReadoutHead) -> np.ndarray:
        """Return kx (sample,) [1/m] as it was sent."""
        if readout.trajectory is None:
            raise DataError(
                f"readout {head.scan_counter} came without a trajectory although others have one; send kx with each "
                "lobe"
            )
        if len(readout.trajectory) != head.n_samples:
            raise DataError(
                f"the trajectory of readout {head.scan_counter} has {len(readout.trajectory)} entries for "
                f"{head.n_samples} samples; send one for each sample"
            )
        column = self.protocol.trajectory_columns.index("kx")
        sent = np.asarray(readout.trajectory, dtype=float)[:, column]
        k = sent[head.discard_pre : head.discard_pre + self._n_samples]
        if not np.isfinite(k).all():
            raise DataError(f"the trajectory of readout {head.scan_counter} holds values that are not finite")
        return k * trajectory_scale(self.protocol.geometry, self.protocol.trajectory_units)[0]

    def _compare(self, lobe: _Lobe, readout: Acquisition, head: ReadoutHead) -> None:
        """Refuse lobes of one polarity that differ."""
        if head.center_sample != int(lobe.first.head["center_sample"]):
            raise DataError(
                f"readout {head.scan_counter} has center_sample {head.center_sample} but the lobes of its polarity "
                f"before it {int(lobe.first.head['center_sample'])}; correct it"
            )
        first, this = lobe.first.trajectory, readout.trajectory
        if first is None and this is None:
            return
        if this is None or first is None or this.shape != first.shape:
            raise DataError(
                f"readout {head.scan_counter} does not have a trajectory like that of the lobes before it; send one "
                "with each lobe"
            )
        # where nobody listens the gradients may do as they like
        before = first[int(lobe.first.head["discard_pre"]) :][: self._n_samples]
        now = this[head.discard_pre :][: self._n_samples]
        if np.abs(now - before).max() > _SAME_PLACE * np.abs(before).max():
            raise DataError(
                f"the trajectory of readout {head.scan_counter} differs from that of the lobes of its polarity before "
                "it; correct it"
            )

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return k [1/m], t [s] and density; see `ReadoutLayout`. A polarity that never came has k = 0 and t = 0."""
        geometry = self.protocol.geometry
        lines = grid_points(Geometry((1, *geometry.matrix[1:]), geometry.fov_mm))
        parts = []
        for reverse in (False, True) if self.alternating else (False,):
            late_lobe = (
                self.spacing_s * (1 if (self._reverse_parity == 1) == reverse else 0) if self.alternating else 0.0
            )
            parts.append(self._of_polarity(reverse, lines, late_lobe))
        k, t, density = (np.concatenate(part) for part in zip(*parts, strict=True))
        return k, t, None if self.grid is not None else density

    def _of_polarity(
        self, reverse: bool, lines: np.ndarray, late_lobe: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return k, t and density of the points of one polarity."""
        lobe = self._lobes.get(reverse)
        kx, late = (np.zeros(self.n_x), np.zeros(self.n_x)) if lobe is None else (lobe.k, lobe.late)
        k = np.repeat(kx[:, None, None], self.n_lines, axis=1) * np.array([1.0, 0.0, 0.0]) + lines
        times = self.protocol.times_s + late_lobe + late[:, None]
        t = np.repeat(times[:, None, :], self.n_lines, axis=1)
        share = np.abs(np.gradient(kx)) * self.protocol.geometry.fov_mm[0] * 1e-3 if self.ramps else np.ones(self.n_x)
        density = np.repeat(share / (2 if self.alternating else 1), self.n_lines)
        return k.reshape(-1, 3), t.reshape(-1, self.shape[1]), density

    def counts(self, slots: np.ndarray) -> np.ndarray:
        """Return how often each sample came, (point, t), or (point,) where that is the same for all lobes of a line."""
        lines = slots.reshape(self.n_lines, self.n_lobes)
        parts = [lines]
        if self.alternating:
            forward = 1 - self._reverse_parity
            parts = [lines[:, forward::2], lines[:, 1 - forward :: 2]]
        if all((part == part[:, :1]).all() for part in parts):
            return np.concatenate([np.tile(part[:, 0], self.n_x) for part in parts])
        return np.concatenate([np.tile(part, (self.n_x, 1)) for part in parts])


def _kept(head: np.void) -> slice:
    return slice(int(head["discard_pre"]), int(head["number_of_samples"]) - int(head["discard_post"]))
