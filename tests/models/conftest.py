from __future__ import annotations

from collections.abc import Callable

import pytest

from mrsi_gadgets.data import Geometry, Protocol


@pytest.fixture
def make_protocol() -> Callable[..., Protocol]:
    """Return a factory of small 1H protocols; keywords replace fields."""

    def make(**fields) -> Protocol:
        defaults = {
            "nucleus": "1H",
            "transmit_frequency_hz": 123.25e6,
            "reference_ppm": 4.65,
            "dwell_s": 1 / 1500,
            "n_times": 384,
            "acquisition_delay_s": 0.0,
            "geometry": Geometry((3, 4, 5), (60.0, 80.0, 100.0)),
            "encoding": "csi",
        }
        return Protocol(**{**defaults, **fields})

    return make


@pytest.fixture
def protocol(make_protocol) -> Protocol:
    return make_protocol()
