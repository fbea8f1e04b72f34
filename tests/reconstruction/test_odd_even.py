from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from every_encoding import measured
from synthetic import fid_error

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.odd_even import correct_odd_even, find_odd_even, is_alternating

PHASE_RAD = 0.4


def disturbed(rng, shift_per_m, noise=0.0):
    """Alternating lobes whose reversed ones lie elsewhere in k than the layout says, and have a phase of their own."""
    displaced = measured("bipolar", rng, noise=noise, shift_per_m=shift_per_m)
    half = displaced.kt.k.shape[0] // 2
    samples = displaced.kt.samples.copy()
    samples[:, half:] *= np.exp(1j * PHASE_RAD)
    protocol = replace(displaced.kt.protocol, encoding="epsi", readout_polarity="alternating")
    return replace(displaced, kt=replace(displaced.kt, samples=samples, protocol=protocol))


@pytest.mark.parametrize("shift_cells", [0.0, 0.3, -1.7])
def test_phase_and_shift_between_the_directions_are_found_and_taken_out(shift_cells, rng):
    shift = shift_cells / 0.22
    m = disturbed(rng, shift, noise=0.03)
    assert is_alternating(m.kt)
    found = find_odd_even(m.kt)
    assert found.phase_rad == pytest.approx(PHASE_RAD, abs=0.01)
    assert found.shift_per_m == pytest.approx(shift, abs=0.01 / 0.22)
    assert found.coherence > 0.9
    known = m.coil_maps, m.b0_hz, m.mask, m.noise_sd
    before = fid_error(reconstruct_fourier(m.kt, *known).fids(), m)
    after = fid_error(reconstruct_fourier(correct_odd_even(m.kt, found), *known).fids(), m)
    undisturbed = measured("bipolar", np.random.default_rng(3), noise=0.03)
    least = fid_error(reconstruct_fourier(undisturbed.kt, *known).fids(), undisturbed)
    assert before > 0.15
    # points off the grid leave the corners of k-space a little to one side
    assert after < 1.5 * least + 0.02 * abs(shift_cells)


def test_directions_that_show_different_objects_are_refused(rng):
    m = disturbed(rng, 0.0)
    half = m.kt.k.shape[0] // 2
    samples = m.kt.samples.copy()
    samples[:, half:] = rng.standard_normal(samples[:, half:].shape) + 1j
    with pytest.raises(DataError, match="odd and even lobes do not show the same object"):
        find_odd_even(m.kt.with_samples(samples))


def test_other_data_are_not_alternating(rng):
    assert not is_alternating(measured("epsi", rng).kt)
