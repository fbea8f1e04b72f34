"""Fixtures of the fit: images with known contents, and models that are prepared once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fit_voxels import Made, make_image, molecules

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.quantification.varpro import VarproModel, prepare_varpro


@pytest.fixture(scope="session")
def make_voxels() -> Callable[..., Made]:
    return make_image


@pytest.fixture(scope="session")
def models() -> Callable[..., VarproModel]:
    """Prepare the model of a protocol, once."""
    cache: dict[tuple[object, ...], VarproModel] = {}

    def prepared(protocol: Protocol, **options: float) -> VarproModel:
        key = (protocol.fingerprint(), *sorted(options.items()))
        if key not in cache:
            cache[key] = prepare_varpro(protocol, *molecules(protocol), **options)
        return cache[key]

    return prepared
