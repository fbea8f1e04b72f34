"""A tiny made-up scan that a session process runs before its real one, so that nothing is done for the first time then.

First calls are slow: imports that wait for their first use, FFT plans, memory that the system has yet to hand out. The
rehearsal takes the whole way from readouts to images with the default recipe; its images are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mrsi_gadgets.arrays import centred_fftn, free_device_memory
from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.keys import DEFAULT_AXES, DEFAULT_OTHER_AXES
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, ConfigFile, Flag, Header, Message

_MATRIX = (8, 8, 1)
_COILS = 2
_NAA_HZ = -325.0
"""NAA's line against water at 3 T."""


def rehearse(device: str) -> None:
    """Run the default recipe on the made-up scan, where the real one will run (`arrays.select_device`).

    What a device keeps of its memory for later is given back; other processes wait on the same device.

    Raises
    ------
    MrsiError
        What the chain raises; such a process must not serve.
    """
    run_scan(_messages(), lambda message: None, ScanOptions(device=device))
    free_device_memory()


def _messages() -> Iterator[Message]:
    axes = DEFAULT_AXES["csi"] | DEFAULT_OTHER_AXES
    protocol = Protocol(
        "1H", 123.25e6, 4.65, 1 / 1500, 96, 1.3e-3, Geometry(_MATRIX, (220.0, 220.0, 10.0)), "csi", axes=axes,
        k_centre={"kx": 4, "ky": 4, "kz": 0}, water_reference="set:1", echo_times_s=(1.3e-3,), field_strength_t=2.8948,
        measurement_id="rehearsal", protocol_name="rehearsal",
    )  # fmt: skip
    yield ConfigFile("subspace")
    yield Header(header_xml(protocol, receiver_channels=_COILS))
    rng = np.random.default_rng(0)
    times = protocol.times_s
    place = np.stack(np.meshgrid(np.arange(8) - 3.5, np.arange(8) - 3.5, indexing="ij"), axis=-1)[:, :, None]
    head = (np.sum(place**2, axis=-1) < 10)[..., None]
    turn = np.exp(2j * np.pi * 0.5 * place[..., :1] * times)
    water = 2000.0 * head * turn * np.exp(-times / 0.05)
    naa = 30.0 * head * turn * np.exp((2j * np.pi * _NAA_HZ - 15.0) * times)
    coils = np.stack([np.exp(0.1 * place[..., 0]), 1j * np.exp(0.1 * place[..., 1])])[..., None]
    for i in range(4):
        yield _readout(i, _noise(rng, 256), Flag.IS_NOISE_MEASUREMENT.mask)
    for number, fids in enumerate((naa + 0.02 * water, water)):
        samples = centred_fftn(coils * fids, (1, 2)) + _noise(rng, *_MATRIX, protocol.n_times)
        for x, y in np.ndindex(8, 8):
            yield _readout(10, samples[:, x, y, 0], Flag.USER1.mask * number, (x, y, number))


def _noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal((_COILS, *shape)) + 1j * rng.standard_normal((_COILS, *shape))


def _readout(number: int, samples: np.ndarray, flags: int, place: tuple[int, int, int] = (0, 0, 0)) -> Acquisition:
    head = np.zeros(1, ACQUISITION_HEADER)[0]
    head["version"], head["flags"], head["scan_counter"] = 1, flags, number
    head["available_channels"] = head["active_channels"] = _COILS
    head["number_of_samples"], head["sample_time_us"] = samples.shape[1], 1e6 / 1500
    head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
    head["idx"]["segment"], head["idx"]["kspace_encode_step_1"], head["idx"]["set"] = place
    return Acquisition(head, np.ascontiguousarray(samples, np.complex64))
