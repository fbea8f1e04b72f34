from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.twix import convert_twix
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Flag


class Scan:
    """Readouts through the first gadgets of the chain."""

    def __init__(self, header_xml, acquisitions) -> None:
        header = parse_header(header_xml)
        self.context = Context(protocol=read_protocol(header))
        items = sort_readouts(acquisitions, self.context.protocol, self.context.report, header=header)
        whitened = Prewhiten().process(iter(items), self.context)
        self.items = list(whitened)

    def reconstructed(self) -> SpectralImage:
        mapped = EstimateFieldMap().process(iter(self.items), self.context)
        (image,) = Reconstruct(method="fourier").process(mapped, self.context)
        return image


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    raw = shared_data / "crt_7t_siemens.dat"
    if not raw.is_file():
        pytest.skip("the real 7 T ring file crt_7t_siemens.dat is not in the shared data")
    path = tmp_path_factory.mktemp("real") / "crt.h5"
    convert_twix(raw, path, sequence="crt_7t_siemens")
    return read_scan(path)


def test_the_real_file_holds_the_readouts_its_description_says(real):
    heads = list(real.acquisitions)
    roles = [
        "noise" if r.has(Flag.IS_NOISE_MEASUREMENT) else "water" if r.has(Flag.USER1) else "imaging" for r in heads
    ]
    assert {role: roles.count(role) for role in set(roles)} == {"imaging": 96, "water": 48, "noise": 33}
    noise = np.concatenate([r.data[0] for r, role in zip(heads, roles, strict=True) if role == "noise"])
    assert noise.real.std() == pytest.approx(8.53e-6, rel=0.02)
    assert noise.imag.std() == pytest.approx(8.54e-6, rel=0.02)


def test_the_real_water_image_is_a_disc_about_the_prescribed_centre(real):
    scan = Scan(real.header_xml, real.acquisitions)
    scan.reconstructed()
    water = scan.context.calibration.water[:, :, 0]
    at = (np.arange(16) - 8) * 13.75
    near = np.hypot(at[:, None], at[None, :]) < 100
    disc = near & (water > 0.2 * np.percentile(water, 97))
    assert disc.sum() * 13.75**2 == pytest.approx(np.pi * 79**2, rel=0.1)
    # position (10, 4) mm: every other assignment of the axes would put the centre 8 mm or more away
    assert abs((disc.sum(1) @ at) / disc.sum()) < 4
    assert abs((disc.sum(0) @ at) / disc.sum()) < 4


def test_the_real_spectra_have_water_and_the_three_lines_of_the_phantom(real):
    image = Scan(real.header_xml, real.acquisitions).reconstructed()
    assert image.coefficients.shape == (16, 16, 1, 144)
    fids = np.asarray(image.fids())[:, :, 0]
    n = 16 * 144
    ppm = image.protocol.ppm_axis(n)
    window = 0.5 * (1 + np.cos(np.pi * np.arange(144) / 144))
    spectra = np.abs(np.fft.fftshift(np.fft.fft(fids * window, n), axes=-1))
    energy = np.sum(spectra**2, axis=-1)
    bright = spectra[energy > 0.2 * energy.max()]
    assert len(bright) > 40
    water = ppm[bright.argmax(-1)]
    assert np.abs(water - 4.65).max() < 0.1
    for place, window_ppm in ((3.93, (3.7, 4.2)), (1.74, (1.55, 1.95)), (1.145, (0.95, 1.4))):
        here = (ppm > window_ppm[0]) & (ppm < window_ppm[1])
        offset = ppm[here][bright[:, here].argmax(-1)] - water + 4.65
        assert np.median(offset) == pytest.approx(place, abs=0.03)


def test_without_noise_scan_and_water_the_real_file_still_makes_an_image(real):
    some = [r for r in real.acquisitions if not r.has(Flag.IS_NOISE_MEASUREMENT) and not r.has(Flag.USER1)]
    scan = Scan(real.header_xml, some)
    assert scan.reconstructed().coefficients.shape == (16, 16, 1, 144)
    assert any("no noise scan" in warning for warning in scan.context.report.warnings)
