"""The real 7 T ring file: from Siemens twix through a live server to water image, B0 and spectra."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.demo import running_server
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.twix import convert_twix
from mrsi_gadgets.output.results import gather

WATER_KEPT = """<configuration><chain>
  <prewhiten/><field_map/><combine_coils/><reconstruct method="fourier"/><quantify/><console_images/>
</chain></configuration>"""
LINES_PPM = (3.93, 1.74, 1.15)
"""Acetate and lactate of a phantom at room temperature, as they lie where water is at 4.65 ppm."""


@pytest.fixture(scope="module")
def scan(shared_data, tmp_path_factory):
    raw = shared_data / "crt_7t_siemens.dat"
    if not raw.exists():
        pytest.skip("the real 7 T ring file is not among the data here")
    path = tmp_path_factory.mktemp("rings") / "crt.h5"
    convert_twix(raw, path, sequence="crt_7t_siemens")
    return path


@pytest.fixture(scope="module")
def results(scan, tmp_path_factory):
    """What a server makes of it without the removal of water, which is there to be looked at."""
    recipe = tmp_path_factory.mktemp("recipe") / "water_kept.xml"
    recipe.write_text(WATER_KEPT)
    with running_server() as port:
        options = ScanOptions(recipe=str(recipe))
        answer = replay.replay_to(replay.open_scan(str(scan)), f"127.0.0.1:{port}", options)
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
    ppm, size = magnitude(spectrum)
    peaks = ppm[1:-1][(size[1:-1] > size[:-2]) & (size[1:-1] > size[2:])]
    assert ppm[np.argmax(size)] == pytest.approx(4.65, abs=0.05)
    for line in LINES_PPM:
        assert np.min(np.abs(peaks - line)) < 0.05
        near = size[np.abs(ppm - line) < 0.05].max()
        assert near > 0.04 * size.max()


def test_the_maps_of_a_phantom_say_that_they_are_not_to_be_used(results):
    # neither lactate nor acetate at room temperature is what a brain's fit looks for
    assert any("does not describe these spectra" in sentence for sentence in results.warnings)


def test_the_shipped_recipe_keeps_the_lines_of_the_phantom(results, scan):
    shipped = gather(replay.replay_here(replay.open_scan(str(scan)), ScanOptions(recipe="fourier")).images)
    before = {spectrum.voxel: spectrum for spectrum in results.spectra}
    shared = [spectrum for spectrum in shipped.spectra if spectrum.voxel in before]
    assert shared
    for spectrum in shared:
        ppm, after = magnitude(spectrum)
        _, plain = magnitude(before[spectrum.voxel])
        for line in LINES_PPM[1:]:
            near = np.abs(ppm - line) < 0.05
            assert after[near].max() == pytest.approx(plain[near].max(), rel=0.35)


def magnitude(spectrum):
    window = np.hanning(2 * len(spectrum.data))[len(spectrum.data) :]
    size = 4096
    hertz = np.fft.fftshift(np.fft.fftfreq(size, spectrum.dwell_s))
    ppm = spectrum.reference_ppm + hertz / (spectrum.transmit_frequency_hz * 1e-6)
    return ppm, np.abs(np.fft.fftshift(np.fft.fft(spectrum.data * window, size)))
