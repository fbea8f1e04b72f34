"""Streams as vendors write them, with the shipped sequence descriptions, from header to sorted samples."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from csi_scans import CsiScan, Warnings, csi_protocol
from epsi_scans import EpsiScan, Line
from test_spirals import SpiralScan, check_every_sample

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import write_scan
from mrsi_gadgets.io.trajectories import trajectory_store
from mrsi_gadgets.mrd.adapters import adapted, read_adapter, shipped_adapters
from mrsi_gadgets.mrd.check import check_file
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import Flag


def vendor_xml(xml: str, users: dict, **changes: str) -> str:
    """A header without its profile: `users` instead, and other texts in elements; ends with NUL as FIRE does."""
    xml = re.sub(r"<userParameter(\w+)><name>mrsi_.*?</userParameter\1>", "", xml)
    kinds = {int: "Long", float: "Double", str: "String"}
    text = "".join(
        f"<userParameter{kinds[type(v)]}><name>{k}</name><value>{v}</value></userParameter{kinds[type(v)]}>"
        for k, v in users.items()
    )
    xml = xml.replace("<userParameters>", f"<userParameters>{text}")
    for element, content in changes.items():
        xml = re.sub(rf"(<{element}>).*?(</{element}>)", rf"\g<1>{content}\g<2>", xml, count=1)
    return xml + "\0"


def sort(xml: str, readouts, *, sequence=None, settings=None, store=None):
    warnings, told = Warnings(), []
    header = adapted(parse_header(xml), sequence, tell=told.append)
    protocol = read_protocol(header, settings or {}, warn=warnings.warn)
    lookup = trajectory_store(store)
    found = list(sort_readouts(readouts, protocol, warnings, header, settings=settings or {}, trajectories=lookup))
    return found, protocol, told


def space(n: tuple[int, int, int], fov: tuple[float, float, float]) -> str:
    sizes = "".join(f"<{a}>{v}</{a}>" for a, v in zip("xyz", n, strict=True))
    lengths = "".join(f"<{a}>{v}</{a}>" for a, v in zip("xyz", fov, strict=True))
    return f"<matrixSize>{sizes}</matrixSize><fieldOfView_mm>{lengths}</fieldOfView_mm>"


EPSI = EpsiScan(
    [Line((3, 2, 0), 0.0, decay_hz=0.0)], matrix=(6, 3, 2), oversampling=2.0, sample_time_us=25.0, n_lobes=8,
    polarity="alternating", centre=6, centre_backwards=5,
)  # fmt: skip


def epsi_xml(scan: EpsiScan, users: dict, *, echo_spacing: bool = True) -> str:
    """What FIRE says of EPSI: oversampled x in encodedSpace, the base resolution in the limits of segment."""
    xml = scan.xml(echo_times_s=(0.0013, 0.0017)).replace(
        "<segment><minimum>0</minimum><maximum>7</maximum>", "<segment><minimum>0</minimum><maximum>5</maximum>"
    )
    if echo_spacing:
        xml = xml.replace("</sequence_type>", f"</sequence_type><echo_spacing>{scan.spacing_us / 1e3}</echo_spacing>")
    (nx, ny, nz), (fx, fy, fz) = scan.matrix, scan.fov_mm
    return vendor_xml(xml, users, encodedSpace=space((2 * nx, ny, nz), (2 * fx, fy, fz)))


def test_epsi_of_fire_is_read_from_its_header():
    water = replace(EPSI, lines=[Line((2, 1, 1), 0.0, decay_hz=0.0)])
    xml = epsi_xml(EPSI, {"SpecVectorSize": 8, "EpsiWip_IceSelect": 1})
    found, protocol, told = sort(xml, [*water.readouts(contrast=1), *EPSI.readouts()])
    assert told == ["the header was read with the sequence description epsi_fire"]
    assert (protocol.encoding, protocol.nucleus, protocol.geometry.matrix) == ("epsi", "1H", (6, 3, 2))
    assert protocol.geometry.fov_mm == (210.0, 200.0, 150.0)
    assert (protocol.n_times, protocol.dwell_s) == (4, pytest.approx(1.4e-3))
    assert protocol.acquisition_delay_s == pytest.approx(1.3e-3)
    assert protocol.water_reference == "contrast:1"
    assert protocol.provenance["geometry"] == (
        "epsi_fire: header reconSpace matrixSize, header reconSpace fieldOfView_mm"
    )
    assert protocol.provenance["dwell_s"] == (
        "header echo_spacing[0] times 1000, doubled: alternating lobes of one polarity form one FID"
    )
    assert protocol.provenance["readout_polarity"] == "sequence description epsi_fire"
    assert [kt.role for kt in found] == [Role.WATER_REFERENCE, Role.METABOLITE]
    for kt, scan in zip(found, (water, EPSI), strict=True):
        k = np.broadcast_to(kt.k[:, None, :], (*kt.t.shape, 3)).reshape(-1, 3)
        truth = scan.signal(k, kt.t.reshape(-1)).reshape(kt.t.shape)
        assert kt.samples.shape == (2, 72, 4)
        # oversampling along x is removed to a few per cent
        np.testing.assert_allclose(kt.samples[0], truth, atol=0.06)


def test_epsi_of_fire_tells_flyback_and_a_spectral_width():
    users = {"SpecVectorSize": 8, "EpsiWip_Flyback": 1, "SpectralWidth": 1e6 / 700, "ReadoutOSFactor": 2.0}
    flyback = replace(EPSI, polarity="monopolar", centre_backwards=None)
    (kt,), protocol, _ = sort(epsi_xml(flyback, users, echo_spacing=False), flyback.readouts())
    assert (protocol.readout_polarity, protocol.n_times) == ("monopolar", 8)
    assert protocol.dwell_s == pytest.approx(700e-6)
    assert protocol.provenance["readout_polarity"] == "header EpsiWip_Flyback '1'"
    assert kt.grid == (6, 3, 2)
    with pytest.raises(DataError, match="header EpsiWip_Flyback is '7', which epsi_fire"):
        sort(epsi_xml(EPSI, users | {"EpsiWip_Flyback": 7}), EPSI.readouts())


def twix_xml(protocol, **changes) -> str:
    """What siemens_to_ismrmrd says of CSI: nothing of the spectroscopy, oversampled samples in x, segment 0 to 0."""
    xml = header_xml(protocol, receiver_channels=2, vendor="SIEMENS", model="Prisma")
    xml = re.sub(r"<segment>.*?</segment>", "<segment><minimum>0</minimum><maximum>0</maximum><center>0</center>"
                 "</segment>", xml)  # fmt: skip
    nx, ny, nz = protocol.geometry.matrix
    fov = protocol.geometry.fov_mm
    users = {"sWipMemBlock.alFree[0]": 3, "sWipMemBlock.adFree[1]": 0.5}
    return vendor_xml(xml, users, encodedSpace=space((2 * nx * 12, ny, nz), fov), **changes)


TWIX_SETTINGS = {"mrsi_spectral_points": "12", "mrsi_dwell_us": "500"}


def oversampled(scan: CsiScan, *, before: int = 0, after: int = 0):
    """The readouts of a csi scan with twice the samples (band-limited), and samples around them to be discarded."""
    found = scan.readouts(sample_time_us=250.0, discard_pre=before, discard_post=after)
    for readout in found:
        spectrum = np.fft.fft(readout.data, axis=1)
        n = readout.data.shape[1]
        wide = np.concatenate([spectrum[:, : n // 2], np.zeros_like(spectrum), spectrum[:, n // 2 :]], axis=1)
        fine = (2 * np.fft.ifft(wide, axis=1)).astype(np.complex64)
        readout.data = np.pad(fine, ((0, 0), (before, after)), constant_values=77)
        readout.head["number_of_samples"] = readout.data.shape[1]
    return found


def test_converted_twix_needs_vector_length_and_dwell_and_no_more():
    scan = CsiScan(csi_protocol(water_reference="none"))
    readouts = oversampled(scan, before=16, after=16)
    with pytest.raises(DataError, match="lacks mrsi_spectral_points, mrsi_dwell_us .*give them as settings"):
        sort(twix_xml(scan.protocol), readouts)
    (kt,), protocol, told = sort(twix_xml(scan.protocol), readouts, settings=TWIX_SETTINGS)
    assert told == ["the header was read with the sequence description siemens_twix"]
    assert protocol.geometry.matrix == (3, 4, 5)
    assert protocol.time_tick_ms == 2.5
    assert protocol.k_centre == {"kx": 1, "ky": 2, "kz": 2}
    np.testing.assert_allclose(kt.dense, scan.k_space(), atol=2e-4)


def test_the_x_frequency_in_the_protons_field_names_the_nucleus():
    protocol = csi_protocol(nucleus="31P", reference_ppm=0.0, transmit_frequency_hz=49.89e6, water_reference="none")
    xml = twix_xml(protocol, H1resonanceFrequency_Hz="49870000")
    _, read, _ = sort(xml, oversampled(CsiScan(protocol)), settings=TWIX_SETTINGS)
    assert (read.nucleus, read.transmit_frequency_hz, read.reference_ppm) == ("31P", 49.87e6, 0.0)
    assert (
        read.provenance["transmit_frequency_hz"] == "header H1resonanceFrequency_Hz, which is that of 31P at 2.8936 T"
    )


def test_a_spiral_finds_its_laps_in_the_header_and_its_trajectory_in_the_store(tmp_path):
    scan = SpiralScan(identifier="vds", laps=(40, 40, 40), used=(30, 30, 30), interleaves=(1, 1, 1), dwell_us=960.0)
    scan.store(tmp_path)
    described = (
        "<trajectoryDescription><identifier>vds</identifier><userParameterLong><name>samples_per_lap</name>"
        "<value>40</value></userParameterLong><userParameterLong><name>samples_used</name><value>30</value>"
        "</userParameterLong><userParameterLong><name>spectral_points</name><value>12</value></userParameterLong>"
        "<userParameterDouble><name>spectral_dwell_us</name><value>960.0</value></userParameterDouble>"
        "</trajectoryDescription>"
    )
    xml = vendor_xml(scan.xml(echo_times_s=(0.0009,)), {"other": 1}).replace(
        "</trajectory>", f"</trajectory>{described}"
    )
    (kt,), protocol, told = sort(xml, scan.readouts(), store=tmp_path)
    assert told == ["the header was read with the sequence description spiral"]
    assert protocol.provenance["samples_used"] == "header trajectoryDescription samples_used"
    assert protocol.trajectory_id == "vds"
    kt = replace(kt, count=kt.count)
    check_every_sample(scan, kt)
    with pytest.raises(DataError, match=r"there is none; give its folder with --trajectories"):
        sort(xml, scan.readouts())


@pytest.mark.parametrize("sent", [True, False])
def test_rings_of_the_research_sequence_bring_their_counters_water_and_trajectory(tmp_path, sent):
    """Chunks in user_0, interleaves in user_1, water flagged as calibration, k of the gradients' own sign."""
    scan = SpiralScan(
        laps=(40,), used=(40,), interleaves=(2,), dwell_us=480.0, sign=-1, chunk=80, matrix=(10, 8, 1),
    )  # fmt: skip
    readouts = scan.readouts()
    if not sent:
        replace(scan, identifier="rings_7t").store(tmp_path)
    for readout in readouts:
        index = readout.head["idx"]
        index["user"][1], index["user"][0], index["segment"] = index["user"][0], index["segment"], 0
        if not sent:
            readout.trajectory = None
    water = [replace_flags(r, Flag.IS_PARALLEL_CALIBRATION) for r in readouts]
    xml = scan.xml(protocol_name="head_crt_2d", echo_times_s=(0.0009,)).replace("spiral</traj", "other</traj")
    xml = re.sub(r"<segment>.*?</segment>", "", xml)
    users = {"SpecVectorSize": 12, "SpectralWidth": 1e6 / 480, "sWipMemBlock_alFree_1": 40, "sWipMemBlock_alFree_2": 2}
    found, protocol, told = sort(
        vendor_xml(xml, users if sent else users | {"sWipMemBlock_tFree": "rings_7t"}), [*water, *readouts],
        store=tmp_path,
    )  # fmt: skip
    assert told == ["the header was read with the sequence description rings_crt"]
    assert (protocol.axes["chunk"], protocol.axes["interleaf"]) == ("user_0", "user_1")
    assert protocol.water_reference == "flag:IS_PARALLEL_CALIBRATION"
    assert [kt.role for kt in found] == [Role.WATER_REFERENCE, Role.METABOLITE]
    for kt in found:
        assert kt.fully_sampled
        np.testing.assert_allclose(kt.k[:40, :2], -scan.arm(0), atol=3e-6)
        np.testing.assert_allclose(kt.samples[0], scan.signal(kt.k[:, None], kt.t), atol=2e-6)


def replace_flags(readout, flag: Flag):
    copy = replace(readout, head=readout.head.copy())
    copy.head["flags"] |= np.uint64(flag.mask)
    return copy


def test_the_profile_takes_nothing_from_a_vendors_fields():
    scan = CsiScan(csi_protocol(water_reference="none"))
    xml = twix_xml(scan.protocol)
    with pytest.raises(DataError, match=r"lacks mrsi_profile, mrsi_nucleus, mrsi_encoding, mrsi_spectral_points"):
        sort(xml, [], sequence="profile")
    header = adapted(parse_header(xml), "profile")
    assert not header.adapted
    assert header.encodings[0].encoded.matrix == (72, 4, 5)


def test_a_header_that_no_description_knows_names_every_key_to_supply():
    xml = twix_xml(csi_protocol(), systemVendor="Another")
    sentence = r"lacks mrsi_profile, mrsi_nucleus, .*mrsi_acq_delay_us.*describe the sequence in a file \(--sequence\)"
    with pytest.raises(DataError, match=sentence):
        sort(xml, [])


def test_each_shipped_description_has_its_own_headers():
    assert {adapter.name for adapter in shipped_adapters()} == {
        "profile", "siemens_fire_csi", "siemens_twix", "epsi_fire", "rings_crt", "spiral"
    }  # fmt: skip
    nothing = parse_header(vendor_xml(header_xml(csi_protocol(), receiver_channels=2), {}))
    assert [adapter.name for adapter in shipped_adapters() if adapter.knows(nothing)] == []


def test_check_says_where_each_derived_value_came_from(tmp_path):
    xml = epsi_xml(EPSI, {"SpecVectorSize": 8, "EpsiWip_IceSelect": 1}).rstrip("\0")
    write_scan(tmp_path / "epsi.h5", xml, EPSI.readouts())
    report = check_file(tmp_path / "epsi.h5")
    assert report.ok, report.errors
    text = report.text()
    for line in (
        "the header was read with the sequence description epsi_fire",
        "epsi, 6 x 3 x 2 voxels, 210 x 200 x 150 mm",
        "4 points at 1400 us",
        "metabolite frame 0 echo 0: 2 coils, 72 k-space points of 4 samples at 3",
        "n_times: header SpecVectorSize, halved: alternating lobes of one polarity form one FID",
        "water_reference: header encodingLimits of contrast '2'",
        "axes.t: sequence description epsi_fire",
    ):
        assert line in text, text


def test_a_store_is_found_by_check(tmp_path, monkeypatch):
    scan = SpiralScan(identifier="three")
    write_scan(tmp_path / "spiral.h5", scan.xml(), scan.readouts())
    assert any("there is none" in error for error in check_file(tmp_path / "spiral.h5").errors)
    (tmp_path / "trajectories").mkdir()
    scan.store(tmp_path / "trajectories")
    assert check_file(tmp_path / "spiral.h5", trajectories=tmp_path / "trajectories").ok
    monkeypatch.setenv("MRSI_CONFIG_DIR", str(tmp_path))
    assert check_file(tmp_path / "spiral.h5").ok


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[geometry]\nfov_mm = [1, 2]\n', r"\[geometry\] fov_mm needs three entries"),
        ('[geometry]\nmatrix = [{ recon_matrix = "w" }, 1, 1]\n', "needs x, y or z in recon_matrix"),
        ('[geometry]\nignore_limits = ["line"]\n', "ignore_limits names line, which is no counter of MRD"),
        ('[detect]\ntrajectory = ["epi"]\n', r"\[detect\] trajectory is not known; known are counters"),
        ('[detect]\nuser_parameters = "SpecVectorSize"\n', "user_parameters must be a list of texts"),
        ('[detect]\ncounters = ["segmnt"]\n', "counters names segmnt, which is no counter of MRD; they are"),
        ('[geometry]\nmatrix = [{ counter = "segmnt" }, 1, 1]\n', "matrix names segmnt, which is no counter of MRD"),
        ('[profile]\nmrsi_encodin = "csi"\n', "no key of the MRSI profile; did you mean mrsi_encoding"),
        ('[profile]\nmrsi_nucleus = { from = "field" }\n', "from = 'field' is not known; it can be 'frequency'"),
        ('[profile]\nmrsi_dwell_us = { user_parameter = "a", times = "b" }\n', "times must be a number or a key"),
        ('[profile]\nmrsi_dwell_us = { user_parameter = "a", over = "b" }\n', "over must be a number"),
        ('[profile]\nmrsi_dwell_us = { echo_time_ms = "0" }\n', "echo_time_ms must be the place in the header's list"),
        ('[profile]\nmrsi_dwell_us = { user_parameter = "a", map = "b" }\n', "map must be a table"),
        ('profile = 3\n', "profile must be a table; write"),
    ],
)  # fmt: skip
def test_a_description_that_says_something_unknown_is_refused(tmp_path, text, sentence):
    path = tmp_path / "mine.toml"
    path.write_text(f'input = "mrd"\n{text}')
    with pytest.raises(ConfigError, match=sentence):
        read_adapter(path)
    path.write_text('input = "mrdd"\n')
    with pytest.raises(ConfigError, match="input is 'mrdd'; it must be"):
        read_adapter(path)
