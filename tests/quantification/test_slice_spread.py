"""The field across a slice, found from the line of water."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.quantification.intravoxel import intravoxel_lineshape
from mrsi_gadgets.quantification.slice_spread import slice_spread
from mrsi_gadgets.reconstruction.field_map import WaterLine


def water_line(rng, b0, mask, spread, width_hz=1.5):
    """Lines of water of 40 to 80 ms T2* with a Gaussian part of their own, and a little noise."""
    times = np.linspace(2e-3, 0.1, 37)
    rates = rng.uniform(12, 25, mask.sum())[:, None]
    decay = np.exp(-rates * times - 2 * (np.pi * width_hz * times) ** 2)
    signal = np.zeros((*mask.shape, len(times)), complex)
    signal[mask] = intravoxel_lineshape(b0, mask, times) * np.sinc(spread[mask][:, None] * times) * decay
    signal[mask] *= 1e4 * np.exp(2j * np.pi * rng.random((mask.sum(), 1)))
    noise = rng.standard_normal((*signal.shape, 2)) @ np.array([1, 1j])
    return WaterLine(times, (signal + 20 * noise).astype(np.complex64))


@pytest.mark.parametrize("shape", [(11, 9, 1), (1, 9, 11)])
def test_a_strong_spread_is_found_and_the_own_width_of_water_is_none(rng, shape):
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    b0 = (0.8 * x + 0.3 * y**2 - z).astype(np.float32)
    mask = np.ones(shape, bool)
    mask[..., -1] = shape[-1] == 1
    spread = np.where(y > 6, 12.0 * (y - 6), 0.5)
    found = slice_spread(water_line(rng, b0, mask, spread), b0, mask)
    assert np.abs(found - spread)[mask & (spread > 10)].max() < 1.5
    assert np.median(found[mask & (spread < 1)]) < 1.0
    assert not found[~mask].any()


def test_where_every_direction_is_encoded_there_is_no_spread(rng):
    mask = np.ones((5, 4, 3), bool)
    b0 = np.zeros(mask.shape, np.float32)
    assert not slice_spread(water_line(rng, b0, mask, np.full(mask.shape, 20.0)), b0, mask).any()
