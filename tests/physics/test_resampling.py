from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.physics.resampling import resample

STEP, START = 0.0004, 0.0013


def tone(times, turns_per_step):
    return np.exp(2j * np.pi * turns_per_step * times / STEP - 3.0 * times)


@pytest.mark.parametrize(("turns", "band", "start_error"), [(0.11, 0.25, 5e-4), (-0.3, 0.35, 4e-3)])
def test_signals_are_right_between_samples_and_just_before_the_first(turns, band, start_error):
    given = tone(START + STEP * np.arange(257), turns)
    middle = START + STEP * np.array([20.3, 100.5, 230.71])
    signals = np.stack([given, 2j * given])
    np.testing.assert_allclose(
        resample(signals, START, STEP, middle, band=band)[1], 2j * tone(middle, turns), atol=1e-4
    )
    early = START + STEP * np.array([-0.1, 0.2, 0.5])
    np.testing.assert_allclose(resample(given, START, STEP, early, band=band), tone(early, turns), atol=start_error)


def test_samples_themselves_are_kept_and_short_signals_work():
    given = tone(START + STEP * np.arange(9), 0.2)
    np.testing.assert_array_equal(resample(given, START, STEP, START + STEP * np.array([0, 3, 8])), given[[0, 3, 8]])
    between = START + STEP * np.array([3.5])
    np.testing.assert_allclose(resample(given, START, STEP, between), tone(between, 0.2), atol=0.02)
