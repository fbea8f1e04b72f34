"""What a reconstruction leaves of the data: white noise has energy 1, and a line that was left is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import SpectralImage
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.hamming import hamming_windowed
from mrsi_gadgets.reconstruction.residual import energy_over_noise, line_in_noise, residual_image, strongest_line


def true_image(m, xp=np) -> SpectralImage:
    return SpectralImage(
        xp.asarray(m.rho.astype(np.complex64)), None, m.kt.protocol, m.mask, m.b0_hz, np.ones(m.mask.shape, np.float32)
    )


def white(rng, sd, n_times) -> np.ndarray:
    noise = rng.standard_normal((2, len(sd), n_times))
    return (sd[:, None] * (noise[0] + 1j * noise[1])).astype(np.complex64)


@pytest.mark.parametrize("missing", [False, True])
def test_the_truth_leaves_noise_of_the_stated_size(xp, rng, missing):
    m = synthetic.make_measurement(rng, noise=0.3)
    kt = m.kt
    if missing:
        kept = rng.random(len(kt.k)) < 0.6
        kt = replace(kt, samples=kt.samples * kept[None, :, None], count=kept.astype(int))
    kt = kt.with_samples(xp.asarray(kt.samples))
    # samples of the test have the noise `noise_sd`, the residual's is stated for 1
    image = true_image(m, xp)
    if missing:  # four lines, so four rows hold everything
        rows = np.linalg.svd(m.rho.reshape(-1, m.rho.shape[-1]), full_matrices=False)[2][:4].astype(np.complex64)
        coefficients = (m.rho @ rows.conj().T).astype(np.complex64)
        image = replace(image, coefficients=xp.asarray(coefficients), basis=xp.asarray(rows))
    left = residual_image(kt, xp.asarray(m.coil_maps), image)
    fids = to_numpy(left.coefficients)[m.mask] / m.noise_sd
    sd = left.noise_sd[m.mask]
    energy = energy_over_noise(xp.asarray(fids), xp.asarray(sd), m.kt.protocol)
    assert np.median(to_numpy(energy)) == pytest.approx(1, abs=0.06)
    line = to_numpy(strongest_line(xp.asarray(fids), xp.asarray(sd), m.kt.protocol))
    assert np.median(line) == pytest.approx(line_in_noise(m.kt.protocol), rel=0.1)


def test_complete_data_leave_the_difference_to_the_fourier_image(rng):
    m = synthetic.make_measurement(rng, noise=0.1)
    fourier = reconstruct_fourier(m.kt, m.coil_maps, m.b0_hz, m.mask)
    left = residual_image(m.kt, m.coil_maps, true_image(m))
    np.testing.assert_allclose(left.coefficients, fourier.coefficients - m.rho, atol=1e-4)
    nothing = residual_image(m.kt, m.coil_maps, fourier)
    assert not nothing.coefficients.any()


def test_a_line_that_is_left_is_found_at_its_strength_and_lipids_are_none(make_protocol, rng):
    protocol = make_protocol(n_times=200)
    sd = np.linspace(0.5, 2, 40)
    noise = white(rng, sd, 200)
    times = protocol.times_s
    for ppm, inside in ((2.9, True), (1.3, False)):
        line = np.exp((2j * np.pi * protocol.hz(ppm) - 20) * times)
        strong = noise + 30 * sd[:, None] * line / np.linalg.norm(line)
        found = np.median(strongest_line(strong.astype(np.complex64), sd, protocol))
        energy = np.median(energy_over_noise(strong.astype(np.complex64), sd, protocol))
        if inside:
            assert 26 < found < 32
            # the line's energy, 900, over that of 2 in each of the band's points
            assert energy == pytest.approx(1 + 900 / (2 * 200 * (4.1 - 1.85) * 123.25 / 1500), rel=0.15)
        else:
            assert found < 8
            assert energy < 1.3


def test_other_nuclei_have_their_whole_band(make_protocol, rng):
    protocol = make_protocol(nucleus="31P", n_times=150)
    line = np.exp((2j * np.pi * -600 - 20) * protocol.times_s)
    strong = white(rng, np.ones(10), 150) + 25 * line / np.linalg.norm(line)
    assert np.median(strongest_line(strong.astype(np.complex64), np.ones(10), protocol)) > 20


def test_a_window_over_k_space_keeps_amounts_and_states_its_noise(rng):
    m = synthetic.make_measurement(rng, noise=0.3, b0=False)
    clean = synthetic.measure(m.rho, m.coil_maps, m.b0_hz, m.kt.protocol)
    image, filtered = (
        reconstruct_fourier(hamming_windowed(kt), m.coil_maps, m.b0_hz, m.mask, m.noise_sd) for kt in (m.kt, clean)
    )
    noise = (image.coefficients - filtered.coefficients)[m.mask]
    assert noise.real.std() == pytest.approx(float(image.noise_sd[m.mask].mean()), rel=0.05)
    plain = reconstruct_fourier(m.kt, m.coil_maps, m.b0_hz, m.mask, m.noise_sd)
    # mean of the squared window: 0.54^2 + 0.46^2 / 2 along each of two axes
    assert image.noise_sd[7, 5, 0] == pytest.approx(float(plain.noise_sd[7, 5, 0]) * 0.3974, rel=1e-3)
    assert clean.samples[:, 82] == pytest.approx(hamming_windowed(clean).samples[:, 82])
    assert np.argmax(np.abs(clean.k).sum(axis=1) == 0) == 82
