"""A simulated scan as a vendor streams it: its header, counters, samples and texts, and no word of the profile.

Each form says the same measurement as the scan it is made from, so that what is sorted from both can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mrsi_gadgets.data import Role
from mrsi_gadgets.mrd.roles import classify
from mrsi_gadgets.phantom.simulate import SimulatedScan
from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, Flag, Header, Text
from mrsi_gadgets.stream.serialisation import encode

LEADING = 32
"""Samples that some Siemens sequences receive before the first one that counts."""


@dataclass(frozen=True, repr=False)
class VendorStream:
    """What one vendor sends, and what a user has to add."""

    sequence: str
    """Name of the sequence description that knows it."""
    header_xml: str
    readouts: tuple[Acquisition, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    """Sent as JSON in a TEXT after the header."""
    settings: dict[str, str] = field(default_factory=dict)
    """Profile keys that nothing in the stream tells."""

    def messages(self, recipe: str = "fourier") -> bytes:
        """The whole stream; texts end with NUL."""
        parts = [ConfigFile(recipe), Header(self.header_xml + "\0")]
        if self.parameters:
            parts.append(Text(json.dumps({"version": "1.2.0", "parameters": self.parameters})))
        return b"".join(encode(part) for part in (*parts, *self.readouts, Close()))


def siemens_fire_csi(scan: SimulatedScan) -> VendorStream:
    """Twofold oversampled FIDs, the vector length in x, segment = kx, and the role of water in JSON parameters."""
    preset = scan.truth.preset
    _, ny, nz = preset.matrix
    users = {
        "SpecVectorSize": preset.n_times, "SpecRemoveOversampling": 0, "SpectralWidth": 1 / preset.dwell_s,
        "DwellTime_0": preset.dwell_s / 2 * 1e6, "ReadoutOSFactor": 2.0, "SoftwareVersions": "syngo MR XA",
    }  # fmt: skip
    xml = without_profile(scan.header_xml, users)
    xml = with_space(xml, (2 * preset.n_times, ny, nz), preset.fov_mm)
    parameters = {"mrsiWaterRef": "set:1", "mrsiGridCenter": "voxel", "config": ""}
    return VendorStream("siemens_fire_csi", xml, changed(scan, oversampled_fid), parameters)


def siemens_twix(scan: SimulatedScan) -> VendorStream:
    """What the converter makes of a raw file: leading samples, the X frequency as the proton's, no vector length."""
    preset = scan.truth.preset
    _, ny, nz = preset.matrix
    xml = without_profile(scan.header_xml, {"sWipMemBlock.alFree[0]": 7})
    xml = with_space(xml, (2 * preset.n_times, ny, nz), preset.fov_mm)
    xml = with_text(xml, "systemVendor", "SIEMENS")
    xml = with_text(xml, "H1resonanceFrequency_Hz", str(round(preset.transmit_frequency_hz)))
    xml = with_limit(xml, "segment", 0, 0)
    settings = {
        "mrsi_spectral_points": str(preset.n_times), "mrsi_dwell_us": repr(preset.dwell_s * 1e6),
        "mrsi_water_ref": scan.protocol.water_reference,
    }  # fmt: skip
    readouts = changed(scan, lambda r: with_leading_samples(oversampled_fid(r)))
    return VendorStream("siemens_twix", xml, readouts, settings=settings)


def epsi_fire(scan: SimulatedScan) -> VendorStream:
    """Lobes numbered by segment with oversampled x in encodedSpace, contrast 1 = water, a TE for each contrast."""
    preset = scan.truth.preset
    nx, ny, nz = preset.matrix
    spacing_ms = preset.encoding.lobe_spacing_s(preset) * 1e3
    alternating = preset.encoding.alternating
    lobes = preset.n_times * (2 if alternating else 1)
    users = {"SpecVectorSize": lobes, "EpsiWip_IceSelect": 1, "EpsiWip_Flyback": int(not alternating)}
    xml = without_profile(scan.header_xml, users)
    fov = (2 * preset.fov_mm[0], *preset.fov_mm[1:])
    xml = with_space(xml, (2 * nx, ny, nz), fov)
    xml = with_limit(xml, "segment", nx - 1, nx // 2)
    te = preset.acquisition_delay_s * 1e3
    xml = re.sub(r"<TE>.*</TE>", f"<TE>{te!r}</TE><TE>{te!r}</TE>", xml)
    xml = xml.replace("</sequence_type>", f"</sequence_type><echo_spacing>{spacing_ms!r}</echo_spacing>")
    xml = xml.replace("<repetition>", f"<contrast>{limit(1, 0)}</contrast><repetition>", 1)
    xml = with_limit(xml, "set", 0, 0)

    def own(readout: Acquisition) -> Acquisition:
        head, index = readout.head, readout.head["idx"]
        index["contrast"], index["set"] = index["set"], 0
        # what the sequence tells its own reconstruction: last lobe of a train, last line of a slab
        head["user_int"][1] = int(index["segment"]) == lobes - 1
        head["user_int"][3] = int(index["kspace_encode_step_1"]) == ny - 1
        return readout

    return VendorStream("epsi_fire", xml, changed(scan, own))


def rings_crt(scan: SimulatedScan) -> VendorStream:
    """Chunk in user_0, interleaf in user_1, water flagged as reference scan, k as the moment of the gradients."""
    preset = scan.truth.preset
    arms = preset.encoding.arms(preset)
    users = {
        "SpecVectorSize": preset.n_times, "SpectralWidth": 1 / preset.dwell_s,
        "sWipMemBlock_alFree_1": len(arms[0].k),
    }  # fmt: skip
    xml = with_text(without_profile(scan.header_xml, users), "protocolName", "head_crt_2d")
    for name in ("segment", "user_0", "set"):
        xml = re.sub(rf"<{name}>.*?</{name}>", "", xml)

    def own(readout: Acquisition) -> Acquisition:
        head, index = readout.head, readout.head["idx"]
        index["user"][1], index["user"][0], index["segment"] = index["user"][0], index["segment"], 0
        index["set"] = 0
        if readout.has(Flag.USER1):
            head["flags"] = (int(head["flags"]) & ~Flag.USER1.mask) | Flag.IS_PARALLEL_CALIBRATION.mask
        return Acquisition(head, readout.data, -readout.trajectory)

    interleaves = [arm.interleaves for arm in arms]
    settings = {"mrsi_temporal_interleaves": " ".join(map(str, interleaves))} if max(interleaves) > 1 else {}
    return VendorStream("rings_crt", xml, changed(scan, own), settings=settings)


def spiral(scan: SimulatedScan, store: Path, identifier: str = "spiral_head") -> VendorStream:
    """No trajectory in the stream: it is written to a store under an identifier, and the header describes the laps."""
    preset = scan.truth.preset
    arms = preset.encoding.arms(preset)
    lap = len(arms[0].k)
    own_us = arms[0].interleaves * preset.dwell_s / lap * 1e6
    np.savez(store / f"{identifier}.npz", k=np.stack([arm.k for arm in arms]), units="1/m", sample_time_us=own_us)
    values = {
        "samples_per_lap": lap, "samples_used": arms[0].used, "temporal_interleaves": arms[0].interleaves,
        "spectral_points": preset.n_times, "spectral_dwell_us": preset.dwell_s * 1e6,
    }  # fmt: skip
    described = f"<trajectoryDescription><identifier>{identifier}</identifier>{parameters_xml(values)}"
    xml = without_profile(scan.header_xml, {"sequence": "research"})
    xml = xml.replace("</trajectory>", f"</trajectory>{described}</trajectoryDescription>")

    def own(readout: Acquisition) -> Acquisition:
        readout.head["trajectory_dimensions"] = 0
        readout.head["idx"]["set"] = 0
        return Acquisition(readout.head, readout.data)

    return VendorStream("spiral", with_limit(xml, "set", 0, 0), changed(scan, own))


def changed(scan: SimulatedScan, change: Callable[[Acquisition], Acquisition]) -> tuple[Acquisition, ...]:
    """Readouts of signal changed, those of noise as they are."""
    return tuple(
        r if classify(r.head, scan.protocol) is Role.NOISE else change(Acquisition(r.head.copy(), r.data, r.trajectory))
        for r in scan.acquisitions
    )


def oversampled_fid(readout: Acquisition) -> Acquisition:
    """Twice the samples in half the dwell: the spectrum between bands that hold nothing."""
    n = readout.data.shape[1]
    spectrum = np.zeros((len(readout.data), 2 * n), np.complex128)
    spectrum[:, n // 2 : n // 2 + n] = np.fft.fftshift(np.fft.fft(readout.data, axis=1), axes=1)
    data = (2 * np.fft.ifft(np.fft.ifftshift(spectrum, axes=1), axis=1)).astype(np.complex64)
    readout.head["number_of_samples"] = 2 * n
    readout.head["sample_time_us"] /= 2
    return Acquisition(readout.head, data)


def with_leading_samples(readout: Acquisition) -> Acquisition:
    """Samples of the filter's rise before the FID, marked to be discarded."""
    rise = np.linspace(0.0, 3.0, LEADING) * readout.data[:, :1]
    data = np.concatenate([rise, readout.data], axis=1).astype(np.complex64)
    readout.head["number_of_samples"], readout.head["discard_pre"] = data.shape[1], LEADING
    return Acquisition(readout.head, data)


def without_profile(xml: str, users: dict[str, int | float | str]) -> str:
    """A header with a vendor's user parameters instead of the profile's."""
    assert "mrsi_profile" in xml
    return re.sub(
        r"<userParameters>.*</userParameters>", f"<userParameters>{parameters_xml(users)}</userParameters>", xml
    )


def parameters_xml(values: dict[str, int | float | str]) -> str:
    """User parameters in the order of the schema: all Long, then Double, then String."""
    return "".join(
        f"<userParameter{tag}><name>{name}</name><value>{value}</value></userParameter{tag}>"
        for kind, tag in ((int, "Long"), (float, "Double"), (str, "String"))
        for name, value in values.items()
        if type(value) is kind
    )


def with_space(xml: str, matrix: tuple[int, ...], fov_mm: tuple[float, ...]) -> str:
    """A header whose encodedSpace has other sizes."""
    space = "".join(
        f"<{name}>" + "".join(f"<{a}>{v}</{a}>" for a, v in zip("xyz", values, strict=True)) + f"</{name}>"
        for name, values in (("matrixSize", matrix), ("fieldOfView_mm", fov_mm))
    )
    return re.sub(r"<encodedSpace>.*?</encodedSpace>", f"<encodedSpace>{space}</encodedSpace>", xml)


def with_limit(xml: str, counter: str, maximum: int, centre: int) -> str:
    """A header with another range of a counter."""
    assert f"<{counter}>" in xml
    return re.sub(rf"<{counter}>.*?</{counter}>", f"<{counter}>{limit(maximum, centre)}</{counter}>", xml)


def limit(maximum: int, centre: int) -> str:
    return f"<minimum>0</minimum><maximum>{maximum}</maximum><center>{centre}</center>"


def with_text(xml: str, element: str, text: str) -> str:
    """A header with another text in an element."""
    assert f"<{element}>" in xml
    return re.sub(rf"<{element}>.*?</{element}>", f"<{element}>{text}</{element}>", xml)
