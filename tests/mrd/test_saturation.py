"""A receiver driven beyond its range is noticed, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import Role
from mrsi_gadgets.mrd.saturation import Saturation, is_saturated


def fids(rng, *, channels: int = 5, samples: int = 96) -> np.ndarray:
    """Decaying water some 30 Hz off, in noise; every channel with its own phase."""
    t = np.arange(samples) / 1500
    phase = np.exp(2j * np.pi * rng.uniform(size=(channels, 1)))
    signal = 100 * phase * np.exp((2j * np.pi * 30 - 8) * t)
    noise = rng.standard_normal((2, channels, samples))
    return (signal + noise[0] + 1j * noise[1]).astype(np.complex64)


def clipped(x: np.ndarray, level: float) -> np.ndarray:
    return (np.clip(x.real, -level, level) + 1j * np.clip(x.imag, -level, level)).astype(np.complex64)


@pytest.mark.parametrize("level", [20.0, 60.0, 80.0])
def test_a_flat_top_is_found_whichever_part_and_sign_it_has(rng, level):
    assert sum(is_saturated(clipped(fids(rng), level)) for _ in range(50)) == 50
    one = np.zeros((4, 64), np.complex64) + fids(rng, channels=4, samples=64)
    for channel, sign in ((0, 1), (3, -1)):
        for part in (1, 1j):
            x = one.copy()
            x[channel, 20:24] += sign * part * 1e4
            x[channel, 20:24] = (sign * 5e3 if part == 1 else x[channel, 20:24].real) + 1j * (
                sign * 5e3 if part == 1j else x[channel, 20:24].imag
            )
            assert is_saturated(x)


def test_signal_noise_coarse_numbers_and_empty_channels_are_not_taken_for_it(rng):
    for _ in range(200):
        assert not is_saturated(fids(rng))
        assert not is_saturated((20 * fids(rng)).round().astype(np.complex64))  # twelve bits
    for value in (0, 3 + 2j):
        assert not is_saturated(np.full((3, 40), value, np.complex64))
    assert not is_saturated(np.zeros((0, 0), np.complex64))
    assert not is_saturated(np.ones((2, 1), np.complex64))
    # two channels whose largest values meet at the seam are no flat top
    x = fids(rng, channels=2, samples=8)
    x[0, -1], x[1, 0], x[1, 1] = 900, 900, 900
    assert not is_saturated(x)


def test_saturated_readouts_are_counted_by_role_with_the_first_of_each(rng):
    seen = Saturation()
    for counter in range(6):
        x = fids(rng)
        seen.look(Role.WATER_REFERENCE, counter, clipped(x, 50) if counter in (2, 5) else x)
        seen.look(Role.METABOLITE, 10 + counter, x)
    (sentence,) = seen.sentences()
    assert sentence.startswith("2 water reference readouts (first: 2) are cut off")
