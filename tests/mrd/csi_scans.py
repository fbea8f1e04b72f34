"""Small csi scans for tests: a known object is sampled exactly, readout by readout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.mrd.keys import DEFAULT_AXES, DEFAULT_OTHER_AXES
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag

F0 = 123.25e6


def csi_protocol(**changes) -> Protocol:
    """3 x 4 x 5 voxels, 12 points of 0.5 ms after 1.3 ms, and whatever is asked for instead."""
    matrix = changes.pop("matrix", (3, 4, 5))
    grid_center = changes.pop("grid_center", "voxel")
    geometry = Geometry(matrix, (210.0, 200.0, 150.0), grid_center=grid_center)
    axes = DEFAULT_AXES["csi"] | DEFAULT_OTHER_AXES | changes.pop("axes", {})
    centre = {axis: n // 2 for axis, n in zip(("kx", "ky", "kz"), matrix, strict=True) if axes[axis] != "none"}
    protocol = Protocol(
        "1H", F0, 4.65, 5e-4, 12, 1.3e-3, geometry, "csi", axes=axes, k_centre=centre, echo_times_s=(1.3e-3,),
        repetition_time_s=0.6, flip_angle_deg=35.0, field_strength_t=2.8936, measurement_id="m1", protocol_name="csi",
    )  # fmt: skip
    return replace(protocol, **changes)


class Warnings:
    """Collects what a report would."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)


def set_counter(head: np.void, name: str, value: int) -> None:
    if name.startswith("user_"):
        head["idx"]["user"][int(name[-1])] = value
    else:
        head["idx"][name] = value


def make_readout(samples: np.ndarray, number: int = 0, **fields) -> Acquisition:
    """One readout; `fields` are header fields, counters (idx) or flags."""
    head = np.zeros((), ACQUISITION_HEADER)[()]
    head["version"], head["scan_counter"], head["acquisition_time_stamp"] = 1, number, 240 * number
    head["active_channels"], head["number_of_samples"] = samples.shape
    head["available_channels"] = samples.shape[0]
    head["sample_time_us"] = 500.0
    head["position"] = (4.0, -7.0, 20.0)
    head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
    for flag in fields.pop("flags", ()):
        head["flags"] |= np.uint64(flag.mask)
    for name, value in fields.items():
        if name in ACQUISITION_HEADER.names:
            head[name] = value
        else:
            set_counter(head, name, value)
    return Acquisition(head, np.ascontiguousarray(samples, dtype=np.complex64))


@dataclass
class CsiScan:
    """An object with one FID per voxel, acquired as a protocol says."""

    protocol: Protocol
    n_coils: int = 2
    seed: int = 1
    fids: np.ndarray = field(init=False)
    """(coil, x, y, z, t), the truth in our conventions."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (self.n_coils, *self.protocol.geometry.matrix, self.protocol.n_times)
        self.fids = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    def k_space(self) -> np.ndarray:
        """(coil, kx, ky, kz, t) on the centred grid, from the definition."""
        data = self.fids
        for axis, n in enumerate(self.protocol.geometry.matrix, start=1):
            data = np.moveaxis(np.tensordot(self.dft(axis - 1, np.arange(n) - n // 2), data, (1, axis)), 0, axis)
        return data

    def dft(self, axis: int, steps: np.ndarray) -> np.ndarray:
        """exp(-i 2 pi k.r) with r measured from where the geometry puts its origin."""
        n = self.protocol.geometry.matrix[axis]
        r = (np.arange(n) - self.protocol.geometry.centre_index[axis]) / n
        return np.exp(-2j * np.pi * np.outer(steps, r))

    def sample(self, steps: tuple[int, int, int]) -> np.ndarray:
        """(coil, t): what the scanner measures at counters `steps` away from the centre, with its signs of k and f."""
        p = self.protocol
        signs = p.kspace_sign
        data = np.conj(self.fids) if p.freq_sign < 0 else self.fids
        for axis in (2, 1, 0):
            # a conjugated object needs the same k as the scanner means: the sign is the scanner's own
            row = self.dft(axis, np.array([signs[axis] * steps[axis]]))
            data = np.tensordot(data, row[0], (axis + 1, 0))
        return data

    def readouts(self, *, start: int = 0, skip=(), **fields) -> list[Acquisition]:
        """All readouts in the order of the grid; points in `skip` are left out."""
        p = self.protocol
        found = []
        for index in np.ndindex(*p.geometry.matrix):
            if index in skip:
                continue
            steps = tuple(i - n // 2 for i, n in zip(index, p.geometry.matrix, strict=True))
            readout = make_readout(self.sample(steps), start + len(found), **fields)
            for axis, step in zip(("kx", "ky", "kz"), steps, strict=True):
                if p.axes[axis] != "none":
                    set_counter(readout.head, p.axes[axis], p.k_centre[axis] + step)
            found.append(readout)
        return found


def noise_readouts(n_coils: int = 2, n_samples: int = 32, count: int = 2, seed: int = 5, **fields) -> list[Acquisition]:
    rng = np.random.default_rng(seed)
    return [
        make_readout(
            rng.standard_normal((n_coils, n_samples)) + 1j * rng.standard_normal((n_coils, n_samples)),
            flags=(Flag.IS_NOISE_MEASUREMENT,),
            **fields,
        )
        for _ in range(count)
    ]
