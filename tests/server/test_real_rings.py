"""The real 7 T ring file: from Siemens twix through a live server to water image, B0 and spectra."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.demo import running_server
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.twix import convert_twix
from mrsi_gadgets.output.results import gather

LINES_PPM = (3.93, 1.74, 1.15)
"""Acetate and lactate of a phantom at room temperature, as they lie where water is at 4.65 ppm."""


@pytest.fixture(scope="module")
def results(shared_data, tmp_path_factory):
    raw = shared_data / "crt_7t_siemens.dat"
    if not raw.exists():
        pytest.skip("the real 7 T ring file is not among the data here")
    scan = tmp_path_factory.mktemp("rings") / "crt.h5"
    convert_twix(raw, scan, sequence="crt_7t_siemens")
    with running_server() as port:
        answer = replay.replay_to(replay.open_scan(str(scan)), f"127.0.0.1:{port}", ScanOptions(recipe="fourier"))
    return gather(answer.images)


def test_the_water_image_is_the_disc_that_lies_in_the_scanner(results):
    water = results.maps["water"].value[..., 0]
    bright = np.median(np.sort(water.ravel())[-30:])
    inside = water > 0.3 * bright
    radius_mm = np.sqrt(inside.sum() * (220 / 16) ** 2 / np.pi)
    assert radius_mm == pytest.approx(79, abs=12)
    assert water.shape == (16, 16)


def test_b0_inside_the_disc_spans_what_was_measured_independently(results):
    water, b0 = results.maps["water"].value[..., 0], results.b0[0][..., 0]
    inside = water > 0.3 * np.median(np.sort(water.ravel())[-30:])
    low, middle, high = np.percentile(b0[inside], [5, 50, 95])
    assert -25 < low < -4
    assert abs(middle) < 6
    assert 8 < high < 30


def test_the_spectra_hold_water_acetate_and_lactate_where_they_should_be(results):
    spectrum = max(results.spectra, key=lambda s: np.abs(s.data[0]))
    window = np.hanning(2 * len(spectrum.data))[len(spectrum.data) :]
    size = 4096
    magnitude = np.abs(np.fft.fftshift(np.fft.fft(spectrum.data * window, size)))
    hertz = np.fft.fftshift(np.fft.fftfreq(size, spectrum.dwell_s))
    ppm = spectrum.reference_ppm + hertz / (spectrum.transmit_frequency_hz * 1e-6)
    peaks = ppm[1:-1][(magnitude[1:-1] > magnitude[:-2]) & (magnitude[1:-1] > magnitude[2:])]
    assert ppm[np.argmax(magnitude)] == pytest.approx(4.65, abs=0.05)
    for line in LINES_PPM:
        assert np.min(np.abs(peaks - line)) < 0.05
        near = magnitude[np.abs(ppm - line) < 0.05].max()
        assert near > 0.04 * magnitude.max()
