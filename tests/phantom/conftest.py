"""One small scan for all tests of this folder."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate


@pytest.fixture(scope="session")
def noisy_scan() -> SimulatedScan:
    return simulate("csi16", seed=3, noise_seed=5)


@pytest.fixture(scope="session")
def clean_scan() -> SimulatedScan:
    """The same brain without noise, nuisance and drift."""
    return simulate("csi16", seed=3, snr=np.inf, nuisance=False)
