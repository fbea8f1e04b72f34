"""NAA peak SNR."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.phantom.peak import NAA_PPM, naa_peak_snr, peak_heights, spectrum_noise
from mrsi_gadgets.phantom.presets import PRESETS

PROTOCOL = PRESETS["csi48"].protocol


def singlet(amplitude, ppm=NAA_PPM, rate=12.0):
    t = PROTOCOL.times_s
    return amplitude * np.exp((2j * np.pi * PROTOCOL.hz(ppm) - rate) * t)


@pytest.mark.parametrize("phase", [0.0, 1.1])
def test_height_of_a_lone_line_is_the_sum_of_its_filtered_fid(phase):
    n = np.arange(PROTOCOL.n_times) * PROTOCOL.dwell_s
    expected = 5.0 * np.exp(-12.0 * PROTOCOL.acquisition_delay_s) * np.sum(np.exp(-15.0 * n))
    # The grid of widths and shifts is finite.
    assert peak_heights(singlet(5.0 * np.exp(1j * phase)), PROTOCOL) == pytest.approx(expected, rel=0.02)
    assert peak_heights(singlet(5.0 * np.exp(1j * phase), ppm=NAA_PPM + 0.013), PROTOCOL) == pytest.approx(
        expected, rel=0.03
    )


def test_noise_of_the_spectrum_is_what_a_transform_of_noise_has(rng):
    noise = rng.standard_normal((400, PROTOCOL.n_times, 2)) @ [1, 1j] * 0.7
    damping = np.exp(-3.0 * PROTOCOL.dwell_s * np.arange(PROTOCOL.n_times))
    found = np.fft.fft(noise * damping, axis=-1).real.std()
    assert spectrum_noise(0.7, PROTOCOL) == pytest.approx(found, rel=0.01)


def test_snr_is_scale_invariant_and_keeps_the_voxel_shape(rng):
    fids = np.stack([singlet(a) for a in (1.0, 2.0, 3.0)]).reshape(3, 1, -1)
    snr = naa_peak_snr(fids, np.ones((3, 1)), PROTOCOL)
    assert snr.shape == (3, 1)
    assert np.allclose(snr[:, 0] / snr[0, 0], [1, 2, 3], rtol=1e-6)
    assert np.allclose(naa_peak_snr(1e-7 * fids, 1e-7, PROTOCOL), snr, rtol=1e-6)


def test_noise_leaves_the_fitted_height_unbiased(rng):
    clean = singlet(1.0)
    sd = float(peak_heights(clean, PROTOCOL) / spectrum_noise(1.0, PROTOCOL) / 20.0)
    noisy = clean + sd * (rng.standard_normal((200, PROTOCOL.n_times, 2)) @ [1, 1j])
    assert np.median(naa_peak_snr(noisy, sd, PROTOCOL)) == pytest.approx(20.0, rel=0.06)
