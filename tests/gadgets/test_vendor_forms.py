"""One measurement in the form of a vendor gives the maps of the same measurement in the form of the profile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets import replay
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.stream.messages import Acquisition, Flag
from small_scan import SmallScan, small_scan

SHOWN = ("tNAA", "tCr", "tCho")
LEADING = 3
"""Samples the ADC takes before the first one that counts."""


def as_fire_sends_it(scan: SmallScan) -> SmallScan:
    """Twofold oversampled, with samples to discard, the vector length in x, and none of the profile's parameters."""
    protocol = scan.protocol
    head, _, rest = scan.header_xml.partition("<userParameters>")
    tail = rest.partition("</userParameters>")[2]
    user = (
        f"<userParameterLong><name>SpecVectorSize</name><value>{protocol.n_times}</value></userParameterLong>"
        f"<userParameterDouble><name>SpectralWidth</name><value>{1 / protocol.dwell_s}</value></userParameterDouble>"
        "<userParameterDouble><name>ReadoutOSFactor</name><value>2</value></userParameterDouble>"
    )
    n = protocol.geometry.matrix[0]
    head = head.replace(f"<x>{n}</x>", f"<x>{2 * protocol.n_times}</x>", 1)
    assert f"<TE>{protocol.acquisition_delay_s * 1e3:g}</TE>" in head
    readouts = [r if r.has(Flag.IS_NOISE_MEASUREMENT) else oversampled(r) for r in scan.readouts]
    return replace(
        scan, header_xml=head + "<userParameters>" + user + "</userParameters>" + tail, readouts=tuple(readouts)
    )


def oversampled(readout: Acquisition) -> Acquisition:
    n = readout.data.shape[1]
    spectrum = np.zeros((len(readout.data), 2 * n), np.complex64)
    spectrum[:, n // 2 : n // 2 + n] = np.fft.fftshift(np.fft.fft(readout.data, axis=1), axes=1)
    fine = 2 * np.fft.ifft(np.fft.ifftshift(spectrum, axes=1), axis=1)
    data = np.concatenate([np.full((len(fine), LEADING), 7 - 3j), fine], axis=1).astype(np.complex64)
    head = readout.head.copy()
    head["number_of_samples"], head["discard_pre"] = data.shape[1], LEADING
    head["sample_time_us"] /= 2
    head["center_sample"] = 0
    return Acquisition(head, data)


def test_a_fire_csi_scan_without_a_profile_gives_the_maps_of_the_profile():
    scan = small_scan()
    options = {
        "settings": {
            "mrsi_water_ref": scan.protocol.water_reference,
            "mrsi_grid_center": scan.protocol.geometry.grid_center,
        }
    }
    ours = run(as_fire_sends_it(scan), **options)
    wanted = run(scan)
    assert ours.summary["provenance"]["protocol"]["n_times"] == "header SpecVectorSize"
    maps, expected = gather(ours.images), gather(wanted.images)
    np.testing.assert_array_equal(maps.mask[0], expected.mask[0])
    inside = expected.mask[0] > 0
    for name in SHOWN:
        np.testing.assert_allclose(
            maps.maps[f"{name}_per_water"].value[inside], expected.maps[f"{name}_per_water"].value[inside], rtol=0.03
        )


def run(scan: SmallScan, **options):
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu", **options))
