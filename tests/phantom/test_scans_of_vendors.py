"""A simulated scan in a vendor's own form is sorted to the samples of the same scan in the form of the profile."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import vendor_forms
from mrsi_gadgets.data import Role
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.trajectories import trajectory_store
from mrsi_gadgets.mrd.adapters import adapted
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.phantom.encodings import Rings
from mrsi_gadgets.phantom.gradients import GradientLimits
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.stream.messages import Image, Text
from mrsi_gadgets.stream.session import Session
from mrsi_gadgets.stream.transport import Connection


class Silent:
    """Takes warnings and keeps them."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)


def small(name: str, **changes):
    return replace(PRESETS[name], subvoxels=(3, 3, 1), n_coils=2, n_times=32, **changes)


PHOSPHORUS = {
    "nucleus": "31P", "transmit_frequency_hz": 120.3e6, "reference_ppm": 0.0, "field_strength_t": 6.98,
    "dwell_s": 1 / 5000, "noise_dwell_s": 1 / 20000,
}  # fmt: skip
SLOW_RINGS = Rings(gradients=GradientLimits(0.02, 40.0), chunk_laps=4)
FORMS = {
    "siemens_fire_csi": (vendor_forms.siemens_fire_csi, small("csi16")),
    "siemens_twix": (vendor_forms.siemens_twix, small("csi16")),
    "siemens_twix of 31P": (vendor_forms.siemens_twix, replace(small("csi16"), **PHOSPHORUS)),
    "epsi_fire, flyback": (vendor_forms.epsi_fire, small("epsi16")),
    "epsi_fire, to and fro": (vendor_forms.epsi_fire, small("epsi16_bipolar")),
    "rings_crt": (vendor_forms.rings_crt, small("rings16")),
    "rings_crt in chunks and interleaves": (vendor_forms.rings_crt, small("rings16", encoding=SLOW_RINGS)),
    "spiral": (vendor_forms.spiral, small("spiral16")),
}


@lru_cache
def scan_of(name: str):
    return simulate(FORMS[name][1], seed=3)


def sort(xml: str, readouts, *, settings=None, store=None):
    report, settings = Silent(), settings or {}
    header = adapted(parse_header(xml), None, tell=report.warn)
    protocol = read_protocol(header, settings, warn=report.warn)
    found = sort_readouts(
        readouts, protocol, report, header, settings=settings, trajectories=trajectory_store(store)
    )  # fmt: skip
    return {kt.role: kt for kt in found if kt.role is not Role.NOISE}, report.warnings


@pytest.mark.parametrize("name", FORMS)
def test_a_vendors_stream_is_sorted_to_the_samples_of_the_profile(name, tmp_path):
    form, _ = FORMS[name]
    scan = scan_of(name)
    stream = form(scan, tmp_path) if form is vendor_forms.spiral else form(scan)
    assert "mrsi_" not in stream.header_xml
    settings = stream.settings | {"mrsi_water_ref": "set:1"} if stream.parameters else stream.settings
    found, told = sort(stream.header_xml, stream.readouts, settings=settings, store=tmp_path)
    assert f"the header was read with the sequence description {stream.sequence}" in told
    wanted, _ = sort(scan.header_xml, scan.acquisitions)
    assert found.keys() == wanted.keys()
    for role, kt in found.items():
        expected = wanted[role]
        for field in ("nucleus", "encoding", "n_times", "transmit_frequency_hz", "reference_ppm"):
            assert getattr(kt.protocol, field) == getattr(expected.protocol, field), field
        assert kt.protocol.dwell_s == pytest.approx(expected.protocol.dwell_s, rel=1e-9)
        np.testing.assert_allclose(kt.protocol.geometry.affine_lps(), expected.protocol.geometry.affine_lps())
        np.testing.assert_allclose(kt.k, expected.k, atol=1e-4)
        np.testing.assert_allclose(kt.t, expected.t, atol=1e-9)
        assert kt.sample_time_s == pytest.approx(expected.sample_time_s, rel=1e-6)
        np.testing.assert_array_equal(kt.count > 0, expected.count > 0)
        size = np.abs(expected.samples).max()
        np.testing.assert_allclose(kt.samples, expected.samples, atol=1e-5 * size)


def test_a_fire_stream_with_texts_that_end_with_nul_gives_the_maps_of_the_profile():
    scan = simulate(replace(PRESETS["csi16"], subvoxels=(3, 3, 1), n_coils=2, n_times=128), seed=3)
    stream = vendor_forms.siemens_fire_csi(scan)
    maps = {}
    for name, data in (("fire", stream.messages()), ("profile", profile_stream(scan))):
        images, texts = [], []

        def take(message, images=images, texts=texts):
            (images if isinstance(message, Image) else texts).append(message)

        connection = Connection((io.BytesIO(data), None), session=Session(config_optional=True), name="test")
        report = run_scan(iter(connection.messages()), take, ScanOptions(device="cpu"))
        maps[name] = gather(images)
        assert not any(isinstance(text, Text) and "not JSON" in text.text for text in texts)
        assert report.provenance["recipe"] == "fourier"
    inside = maps["profile"].mask[0] > 0
    assert np.array_equal(maps["fire"].mask[0] > 0, inside)
    assert inside.sum() > 50
    for name in ("tNAA", "tCr", "tCho"):
        ours, wanted = (maps[n].maps[name].value[inside] for n in ("fire", "profile"))
        np.testing.assert_allclose(ours, wanted, rtol=0.02, atol=0.02 * np.abs(wanted).max())


def profile_stream(scan) -> bytes:
    return vendor_forms.VendorStream("profile", scan.header_xml, tuple(scan.acquisitions)).messages()
