"""A small head with brain-like spectra, measured readout by readout: what tests of the whole chain stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mrsi_gadgets.arrays import centred_fftn
from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.io.mrd_file import write_scan
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.keys import DEFAULT_AXES, DEFAULT_OTHER_AXES
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag

AMOUNTS_MM = {"NAA": 12.0, "Cr": 8.0, "PCh": 1.6, "Ins": 6.0, "Glu": 9.0}
WATER_SIGNAL = 2 * 40000.0
"""Protons of 40 mol/l water, in the unit of the metabolite signals."""
NOISE_SAMPLES = 512
NOISE_DWELL_US = 200.0


@dataclass(frozen=True, repr=False)
class SmallScan:
    """Header and readouts of one measurement; change what a test needs with `dataclasses.replace`."""

    protocol: Protocol
    header_xml: str
    readouts: tuple[Acquisition, ...]
    mean_amounts_mm: dict[str, float]
    """Molecule -> its mean over the voxels of the head [mM]."""

    @property
    def noise(self) -> list[Acquisition]:
        return [r for r in self.readouts if r.has(Flag.IS_NOISE_MEASUREMENT)]

    @property
    def water(self) -> list[Acquisition]:
        return [r for r in self.readouts if r.head["idx"]["set"] == 1]

    @property
    def metabolites(self) -> list[Acquisition]:
        return [r for r in self.readouts if not r.has(Flag.IS_NOISE_MEASUREMENT) and r.head["idx"]["set"] == 0]

    def with_readouts(self, readouts: list[Acquisition]) -> SmallScan:
        return replace(self, readouts=tuple(readouts))

    def scaled(self, factor: float) -> SmallScan:
        """The same measurement by a receiver of another gain."""
        return self.with_readouts([Acquisition(r.head, r.data * np.complex64(factor)) for r in self.readouts])

    def changed(self, number: int, samples: np.ndarray) -> SmallScan:
        """One readout with other samples; its header tells their size."""
        head = self.readouts[number].head.copy()
        head["active_channels"], head["number_of_samples"] = samples.shape
        readouts = list(self.readouts)
        readouts[number] = Acquisition(head, np.ascontiguousarray(samples, np.complex64))
        return self.with_readouts(readouts)

    def header_without(self, key: str) -> SmallScan:
        """The header lacks one profile key."""
        begin = self.header_xml.index(f"<name>{key}</name>")
        begin = self.header_xml.rindex("<userParameter", 0, begin)
        end = self.header_xml.index(">", self.header_xml.index("</userParameter", begin)) + 1
        return replace(self, header_xml=self.header_xml[:begin] + self.header_xml[end:])

    def header_with(self, old: str, new: str) -> SmallScan:
        """The header says something else."""
        assert old in self.header_xml
        return replace(self, header_xml=self.header_xml.replace(old, new))

    def write(self, path: Path) -> Path:
        write_scan(path, self.header_xml, self.readouts)
        return path


@lru_cache
def small_scan(
    matrix: tuple[int, int, int] = (8, 6, 1),
    *,
    frames: int = 1,
    n_coils: int = 3,
    n_times: int = 128,
    noise_sd: float = 12.0,
    gain: float = 1e-6,
    seed: int = 3,
) -> SmallScan:
    """Measure an ellipse of brain with a smooth B0 and smooth coils; `noise_sd` is that of one sample's real part."""
    rng = np.random.default_rng(seed)
    geometry = Geometry(matrix, (200.0, 180.0, 15.0 * matrix[2]), (3.0, -5.0, 12.0))
    protocol = Protocol(
        "1H", 123.25e6, 4.65, 1 / 1500, n_times, 1.3e-3, geometry, "csi", axes=DEFAULT_AXES["csi"] | DEFAULT_OTHER_AXES,
        k_centre={axis: n // 2 for axis, n in zip(("kx", "ky", "kz"), matrix, strict=True)}, water_reference="set:1",
        water_suppressed=True, echo_times_s=(1.3e-3,), repetition_time_s=0.005, field_strength_t=2.8948,
        measurement_id="small", protocol_name="small head",
    )  # fmt: skip
    places = np.stack(np.meshgrid(*((np.arange(n) - n // 2 + 0.25) / n for n in matrix), indexing="ij"), axis=-1)
    head = np.sum((places[..., :2] / (0.42, 0.45)) ** 2, axis=-1) < 1
    b0_hz = 8.0 * places[..., 0] - 5.0 * places[..., 1] + 3.0
    times = protocol.times_s
    basis = metabolite_basis(protocol, tuple(AMOUNTS_MM))
    contrast = np.stack([1 + 0.3 * np.cos(4 * places[..., 0] + i) for i in range(len(AMOUNTS_MM))], axis=-1)
    amounts = head[..., None] * contrast * np.array(list(AMOUNTS_MM.values()))
    turn = np.exp(2j * np.pi * b0_hz[..., None] * times)
    metabolites = (amounts @ basis.fids) * np.exp(-times / 0.12) * turn
    water = head[..., None] * WATER_SIGNAL * np.exp(-times / 0.06) * turn
    metabolites = metabolites + 1e-3 * water
    centres = rng.uniform(-0.6, 0.6, (n_coils, 3))
    distance = np.sum((places[None] - centres[:, None, None, None]) ** 2, axis=-1)
    coils = np.exp(-distance + 1j * rng.uniform(0, 2 * np.pi, (n_coils, 1, 1, 1)))
    mixing = gain * noise_sd * (np.eye(n_coils) + 0.2 * rng.standard_normal((n_coils, n_coils)))

    def noise(*shape: int) -> np.ndarray:
        white = rng.standard_normal((n_coils, *shape)) + 1j * rng.standard_normal((n_coils, *shape))
        return np.tensordot(mixing, white, axes=1)

    def measured(fids: np.ndarray) -> np.ndarray:
        k = gain * np.sqrt(np.prod(matrix)) * centred_fftn(coils[..., None] * fids, (1, 2, 3))
        return (k + noise(*matrix, n_times)).astype(np.complex64)

    # its readouts are faster than the data's, so that their noise is wider
    scale = np.sqrt(protocol.dwell_s / (NOISE_DWELL_US * 1e-6))
    parts = [("noise", scale * noise(2, NOISE_SAMPLES)), ("water", measured(water))]
    parts += [("metabolites", measured(metabolites)) for _ in range(frames)]
    xml = header_xml(protocol, receiver_channels=n_coils, frames=frames)
    means = dict(zip(AMOUNTS_MM, amounts[head].mean(axis=0).tolist(), strict=True))
    return SmallScan(protocol, xml, tuple(_readouts(protocol, parts)), means)


def _readouts(protocol: Protocol, parts: list[tuple[str, np.ndarray]]) -> Iterator[Acquisition]:
    number, frame = 0, 0
    for role, samples in parts:
        if role == "noise":
            for i in range(samples.shape[1]):
                flags = Flag.IS_NOISE_MEASUREMENT.mask
                yield _readout(protocol, number, samples[:, i], flags=flags, sample_time_us=NOISE_DWELL_US)
                number += 1
            continue
        shots = list(np.ndindex(samples.shape[1:4]))
        for shot in shots:
            last = role == "metabolites" and shot == shots[-1]
            flags = Flag.LAST_IN_REPETITION.mask if last else 0
            readout = _readout(protocol, number, samples[(slice(None), *shot)], flags=flags)
            index = readout.head["idx"]
            index["segment"], index["kspace_encode_step_1"], index["kspace_encode_step_2"] = shot
            index["set"], index["repetition"] = int(role == "water"), frame
            yield readout
            number += 1
        frame += role == "metabolites"


def _readout(protocol: Protocol, number: int, samples: np.ndarray, **fields: float) -> Acquisition:
    head = np.zeros(1, ACQUISITION_HEADER)[0]
    head["version"], head["measurement_uid"], head["scan_counter"] = 1, 42, number
    head["acquisition_time_stamp"] = 1000 + number
    head["active_channels"], head["number_of_samples"] = samples.shape
    head["available_channels"] = samples.shape[0]
    head["sample_time_us"] = protocol.dwell_s * 1e6
    geometry = protocol.geometry
    head["position"] = geometry.position_mm
    head["read_dir"], head["phase_dir"], head["slice_dir"] = geometry.read_dir, geometry.phase_dir, geometry.slice_dir
    for name, value in fields.items():
        head[name] = value
    return Acquisition(head, np.ascontiguousarray(samples, dtype=np.complex64))
