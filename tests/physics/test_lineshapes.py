from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.physics.lineshapes import (
    decaying_shift,
    exponential_decay,
    frequency_shift,
    gaussian_decay,
    lorentzian_decay,
)

TIMES = np.arange(8192) / 4000


def half_width(fid):
    """Full width at half maximum of the real spectrum [Hz]."""
    fid = np.concatenate([fid[:1] / 2, fid[1:]])
    spectrum = np.fft.fft(fid, 2**17).real
    return np.count_nonzero(spectrum > spectrum.max() / 2) * 4000 / 2**17


def test_widths_are_full_widths_at_half_maximum():
    assert half_width(gaussian_decay(TIMES, np.array(13.0))) == pytest.approx(13, abs=0.1)
    assert half_width(lorentzian_decay(TIMES, np.array(7.0))) == pytest.approx(7, abs=0.1)
    assert half_width(exponential_decay(TIMES, np.array(0.05))) == pytest.approx(1 / (np.pi * 0.05), abs=0.1)


def test_lineshapes_are_batched_on_every_array_library(xp):
    times = xp.asarray(np.arange(7) / 1500)
    parameters = xp.asarray(np.linspace(0.02, 3.0, 12).reshape(3, 4))
    for function in (exponential_decay, lorentzian_decay, gaussian_decay, frequency_shift):
        result = function(times, parameters)
        assert result.shape == (3, 4, 7)
        expected = function(to_numpy(times), to_numpy(parameters))
        np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 49, 50])
def test_fast_decaying_shift_is_the_product_of_decay_and_shift(xp, n):
    t2 = xp.asarray(np.array([0.03, 0.2, 0.08]))
    hz = xp.asarray(np.array([-325.0, 4.0, 700.0]))
    times = 0.0013 + np.arange(n) / 1500
    fast = to_numpy(decaying_shift(0.0013, 1 / 1500, n, t2, hz))
    expected = exponential_decay(times, to_numpy(t2)) * frequency_shift(times, to_numpy(hz))
    np.testing.assert_allclose(fast, expected, rtol=1e-10)


def test_a_positive_shift_turns_counter_clockwise():
    assert frequency_shift(np.array([0.25]), np.array(1.0))[0] == pytest.approx(1j)
