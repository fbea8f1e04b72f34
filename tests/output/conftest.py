from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Map, Maps, Protocol
from mrsi_gadgets.fitted import FitExample
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER

READ = (0.9, 0.3, np.sqrt(1 - 0.9**2 - 0.3**2))


def oblique_axes() -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    read = np.array(READ)
    phase = np.cross([0.1, -0.2, 1.0], read)
    phase /= np.linalg.norm(phase)
    return tuple(read.tolist()), tuple(phase.tolist()), tuple(np.cross(read, phase).tolist())


def build_geometry(matrix=(3, 4, 5), grid_center="voxel", oblique=True) -> Geometry:
    read, phase, normal = oblique_axes() if oblique else ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))
    return Geometry(matrix, (30.0, 60.0, 55.0), (11.0, -22.0, 33.0), read, phase, normal, grid_center)


def make_protocol(geometry: Geometry, **changes) -> Protocol:
    settings = {
        "nucleus": "1H", "transmit_frequency_hz": 123.2e6, "reference_ppm": 4.65, "dwell_s": 1 / 1500, "n_times": 128,
        "acquisition_delay_s": 1.3e-3, "geometry": geometry, "encoding": "csi", "echo_times_s": (0.0013,),
    } | changes  # fmt: skip
    return Protocol(**settings)


def build_maps(geometry: Geometry | None = None, *, frame: int = 0, water: bool = True, seed: int = 5) -> Maps:
    rng = np.random.default_rng(seed)
    geometry = geometry or build_geometry()
    protocol = make_protocol(geometry)
    mask = np.ones(geometry.matrix, dtype=bool)
    mask[0, 0, 0] = mask[2, 3, 1] = False

    def volume(top: float) -> np.ndarray:
        return np.where(mask, rng.uniform(0, top, geometry.matrix), np.nan).astype(np.float32)

    maps = {}
    for name, top in {"tNAA": 15.0, "tCr": 11.0, "tCho": 3.0}.items():
        amounts, sd = volume(top), volume(top / 10)
        maps[name] = Map(amounts * 4e5, "arbitrary", sd * 4e5)
        maps[f"{name}_per_tCr"] = Map(amounts / 8, "1", None)
        if water:
            maps[f"{name}_per_water"] = Map(amounts, "mM", sd)
    times = protocol.times_s
    fid = 30 * np.exp(2j * np.pi * (2.01 - 4.65) * 123.2 * times - times / 0.06)
    nuisance = 100 * np.exp(-times / 0.03)
    noise = rng.standard_normal(times.size) + 1j * rng.standard_normal(times.size)
    examples = tuple(
        FitExample(voxel, (fid + nuisance + noise).astype("c8"), (fid + nuisance).astype("c8"), nuisance.astype("c8"))
        for voxel in ((1, 2, 3), (2, 1, 0))
    )
    b0 = rng.uniform(-40, 40, geometry.matrix).astype(np.float32)
    return Maps(maps, mask, b0, protocol, examples, frame, {"method": "test", "rank": 16})


@pytest.fixture
def make_geometry():
    return build_geometry


@pytest.fixture
def make_maps():
    return build_maps


@pytest.fixture
def maps() -> Maps:
    return build_maps()


@pytest.fixture
def reference_head() -> np.void:
    head = np.zeros(1, dtype=ACQUISITION_HEADER)[0]
    head["measurement_uid"] = 4711
    head["acquisition_time_stamp"] = 123456
    head["physiology_time_stamp"] = (7, 8, 9)
    head["patient_table_position"] = (0.0, 0.0, -1234.5)
    for number, name in enumerate(("average", "slice", "contrast", "phase", "repetition", "set"), start=1):
        head["idx"][name] = number
    head["user_int"] = np.arange(8)
    head["user_float"] = np.arange(8) / 4
    return head
