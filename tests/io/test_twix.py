from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.sequence import find_sequence, read_sequence
from mrsi_gadgets.io.twix import Conversion, convert_twix
from mrsi_gadgets.io.twix_file import Measurement, read_measurement
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol, read_water_protocol
from mrsi_gadgets.stream.messages import Flag

COUNTERS = ("Lin", "Ave", "Sli", "Par", "Eco", "Phs", "Rep", "Set", "Seg", "Ida", "Idb", "Idc", "Idd", "Ide")


def block(samples, *, flags=(), ice=(), stamp=0, number=0, quaternion=(2**-0.5, 0, 0, 2**-0.5), cut=(0, 0), **counters):
    """A readout as twixtools would give it."""
    mdh = SimpleNamespace(
        Counter=SimpleNamespace(**{name: counters.get(name, 0) for name in COUNTERS}),
        IceProgramPara=[int(p) & 0xFFFF for p in ice] + [0] * (24 - len(ice)),
        CutOff=SimpleNamespace(Pre=cut[0], Post=cut[1]),
        SliceData=SimpleNamespace(SlicePos=SimpleNamespace(Sag=10.0, Cor=4.0, Tra=17.0), Quaternion=list(quaternion)),
        SamplesInScan=samples.shape[1], UsedChannels=samples.shape[0], TimeStamp=stamp, ScanCounter=number, MeasUID=44,
        PMUTimeStamp=0, PTABPosX=0, PTABPosY=0, PTABPosZ=0, CenterCol=0, CenterLin=counters.get("CenterLin", 0),
        CenterPar=0, TimeSinceLastRF=0,
    )  # fmt: skip
    return SimpleNamespace(mdh=mdh, data=samples, is_flag_set=lambda name: name in flags)


def header(**changes):
    yaps = {
        "tSequenceFileName": "%SiemensSeq%\\csi_fid",
        "tProtocolName": "csi",
        "sTXSPEC": {"asNucleusInfo": [{"tNucleus": "1H", "lFrequency": 123200000}]},
        "sRXSPEC": {"alDwellTime": [250000]},
        "alTE": [2300], "alTR": [1500000], "adFlipAngleDegree": [60.0],
        "sSpecPara": {"lVectorSize": 8, "sVoI": {"dThickness": 20.0}},
        "sKSpace": {"lBaseResolution": 4, "lPhaseEncodingLines": 3, "lPartitions": 1},
        "sSliceArray": {"asSlice": [{"dReadoutFOV": 200.0, "dPhaseFOV": 150.0, "dThickness": 20.0}]},
        "sProtConsistencyInfo": {"flNominalB0": 2.893},
    }  # fmt: skip
    return {"MeasYaps": yaps | changes, "Dicom": {"flReadoutOSFactor": 2.0}, "Meas": {"tPatientPosition": "HFS"}}


def test_a_description_of_streams_is_not_taken_for_one_of_raw_files():
    with pytest.raises(
        ConfigError, match="'siemens_fire_csi' describes streams, not raw files; those of raw files are"
    ):
        find_sequence("siemens_fire_csi", "any")


def test_a_csi_measurement_becomes_profile_1_0(rng):
    blocks, number = [], 0
    for line in range(3):
        for segment in range(4):
            number += 1
            samples = rng.standard_normal((2, 20)) + 1j * rng.standard_normal((2, 20))
            blocks.append(block(samples, Lin=line, Seg=segment, CenterLin=1, number=number, cut=(2, 2)))
    noise = block(np.ones((2, 30), complex), flags=("NOISEADJSCAN",), quaternion=(0, 0, 0, 0))
    conversion = Conversion(Measurement(header(), [noise, *blocks]), find_sequence(None, "%SiemensSeq%\\csi_fid"))
    protocol = read_protocol(parse_header(conversion.header_xml()))
    assert (protocol.encoding, protocol.nucleus, protocol.n_times) == ("csi", "1H", 8)
    assert protocol.dwell_s == pytest.approx(500e-6)
    assert protocol.acquisition_delay_s == pytest.approx(2.3e-3)
    assert protocol.geometry.matrix == (4, 3, 1)
    assert protocol.k_centre == {"kx": 2, "ky": 1, "kz": 0}
    assert protocol.repetition_time_s == pytest.approx(1.5)
    readouts = list(conversion.acquisitions())
    assert len(readouts) == 12
    assert any("left out: 1 noise readouts" in note for note in conversion.notes)
    last = readouts[-1]
    assert (last.head["idx"]["kspace_encode_step_1"], last.head["idx"]["segment"]) == (2, 3)
    assert (last.head["discard_pre"], last.head["discard_post"]) == (2, 2)
    assert last.head["sample_time_us"] == 250
    np.testing.assert_array_equal(last.data, blocks[-1].data.astype(np.complex64))


def test_the_quaternion_gives_phase_read_and_slice_directions(rng):
    blocks = [block(np.ones((1, 20), complex))]
    conversion = Conversion(Measurement(header(), blocks), find_sequence("siemens_csi_fid", ""))
    (readout,) = conversion.acquisitions()
    np.testing.assert_allclose(readout.head["read_dir"], [-1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(readout.head["phase_dir"], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(readout.head["slice_dir"], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(readout.head["position"], [10, 4, 17])


RING_HEADER = {
    "tSequenceFileName": "%CustomerSeq%\\xx_csi_fid_crt_yy",
    "sRXSPEC": {"alDwellTime": [200000]},
    "sKSpace": {"lBaseResolution": 4, "lPhaseEncodingLines": 4, "lPartitions": 1},
}


def ring_blocks(*, laps=(8, 8), interleaves=(1, 2), times=12, chunk=24, water_times=6, stamp_error=0):
    """Two rings in the sequence's own form: first point in ICE parameters, chunks in Ida, interleaves in Idb."""
    out, number, clock = [], 0, 0.0
    for ring, (lap, t) in enumerate(zip(laps, interleaves, strict=True)):
        ice = [53 + 106 * ring, 1500, -1 if ring else 0, 0, 0, lap // 2, 0, 0, t]
        for role, n in ((("PATREFSCAN",), water_times), ((), times)):
            for interleaf in range(t):
                walk = lap * n // t
                for part, first in enumerate(range(0, walk, chunk)):
                    number += 1
                    length = min(chunk, walk - first)
                    samples = np.full((1, length), number, complex)
                    out.append(block(samples, flags=role, ice=ice, Lin=ring, Ida=part, Idb=interleaf, number=number,
                                     stamp=int(clock / 2.5e-3) + stamp_error * part))  # fmt: skip
                    clock += length * 400e-6 * t / lap
    return out


def ring_conversion(blocks):
    return Conversion(Measurement(header(**RING_HEADER), blocks), find_sequence(None, RING_HEADER["tSequenceFileName"]))


def test_ring_readouts_carry_their_role_counters_dwell_and_trajectory():
    conversion = ring_conversion(ring_blocks())
    mrd = parse_header(conversion.header_xml())
    protocol, water = read_protocol(mrd), read_water_protocol(mrd)
    assert (protocol.n_times, water.n_times) == (12, 6)
    assert protocol.samples_per_lap == (8, 8)
    assert protocol.temporal_interleaves == (1, 2)
    assert protocol.kspace_sign == (-1, -1, -1)
    readouts = list(conversion.acquisitions())
    is_water = [r.has(Flag.USER1) for r in readouts]
    assert all(
        bool(r.head["idx"]["set"]) == w == bool(r.head["encoding_space_ref"])
        for r, w in zip(readouts, is_water, strict=True)
    )
    assert not any(r.has(Flag.IS_PARALLEL_CALIBRATION) for r in readouts)
    slow = [r for r in readouts if r.head["idx"]["kspace_encode_step_1"] == 1]
    assert {float(r.head["sample_time_us"]) for r in slow} == {100.0}
    assert {int(r.head["idx"]["user"][0]) for r in slow} == {0, 1}
    first = slow[0].trajectory[:2].astype(float)
    k0 = np.array([159.15, -1.0]) * 42.577478518e-3
    np.testing.assert_allclose(first[0], k0, rtol=1e-6)
    # counter-clockwise from read towards phase
    turn = np.array([[np.cos(np.pi / 4), -np.sin(np.pi / 4)], [np.sin(np.pi / 4), np.cos(np.pi / 4)]])
    np.testing.assert_allclose(first[1], turn @ k0, rtol=1e-5)


def test_a_later_chunk_goes_on_where_the_one_before_stopped():
    blocks = ring_blocks(chunk=20)
    readouts = list(ring_conversion(blocks).acquisitions())
    second = next(r for r in readouts if r.head["idx"]["segment"] == 1)
    first = readouts[[r is second for r in readouts].index(True) - 1]
    whole = np.concatenate([first.trajectory, second.trajectory])
    np.testing.assert_allclose(whole[8:], whole[:-8], atol=1e-5)


def test_the_origin_moves_from_the_isocentre_to_the_field_of_view():
    blocks = ring_blocks()
    for readout, source in zip(ring_conversion(blocks).acquisitions(), blocks, strict=True):
        k = readout.trajectory.astype(float)
        # read runs along -x, phase along +y; a source at the centre of the field of view must have no phase left
        place = np.array([-10.0, 4.0]) * 1e-3
        there = np.exp(2j * np.pi * (k @ place))
        np.testing.assert_allclose(readout.data[0] * there / source.data[0], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (lambda: [b for b in ring_blocks() if b.mdh.Counter.Idb != 1], "lacks temporal interleaf 1 of ring 1"),
        (lambda: [b for b in ring_blocks() if b.mdh.Counter.Lin == 1], r"rings found are \[1\]"),
        (lambda: [b for b in ring_blocks() if b.mdh.Counter.Ida != 1], "one is missing or came twice"),
        (lambda: ring_blocks(stamp_error=9), "by its time stamps"),
        (lambda: [b for b in ring_blocks() if b.is_flag_set("PATREFSCAN")], "no imaging readouts"),
    ],
    ids=["interleaf", "ring", "chunk", "clock", "imaging"],
)
def test_an_incomplete_or_contradictory_ring_scan_is_refused(blocks, message):
    with pytest.raises(DataError, match=message):
        ring_conversion(blocks())


def test_an_unknown_sequence_is_refused_with_the_keys_to_supply():
    with pytest.raises(ConfigError, match=r"no shipped sequence description knows 'svs_se'.*mrsi_dwell_us"):
        find_sequence(None, "svs_se")
    with pytest.raises(ConfigError, match="there is no sequence description 'nothing'; shipped are crt_7t_siemens"):
        find_sequence("nothing", "")


GOOD = """
[profile]
mrsi_nucleus = "1H"
mrsi_encoding = "csi"
mrsi_dwell_us = 500.0
mrsi_acq_delay_us = 1300
[geometry]
matrix = [4, 4, 1]
fov_mm = [200, 200, 20]
origin = "position"
[counters]
segment = "Seg"
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mrsi_dwell_us = 500.0\n", ""), "lacks mrsi_dwell_us"),
        (("segment =", "segmnt ="), "segmnt is no MRD counter"),
        (('origin = "position"', 'origin = "centre"'), "must be position or isocentre"),
        (("[counters]", "[loops]"), "loops is not known"),
        (("matrix = [4, 4, 1]", "matrix = [4, 4]"), "needs three values"),
        (('"csi"', '"rings"'), "go together"),
        (("[profile]", "[profile"), "no valid TOML"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_faulty_sequence_description_is_refused(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert read_sequence(path).name == "mine"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigError, match=message):
        read_sequence(path)


def test_a_header_field_that_is_not_there_is_named():
    conversion_header = header()
    del conversion_header["MeasYaps"]["alTE"]
    with pytest.raises(DataError, match=r"has no MeasYaps\.alTE\.0"):
        Conversion(
            Measurement(conversion_header, [block(np.ones((1, 20), complex))]), find_sequence("siemens_csi_fid", "")
        )


@pytest.mark.parametrize("content", [b"", b"hello, this is a text file\n" * 10, bytes(range(256)) * 8])
def test_a_file_that_is_no_twix_file_is_refused_and_nothing_is_written(tmp_path, content):
    path = tmp_path / "scan.dat"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no Siemens twix file"):
        convert_twix(path, tmp_path / "scan.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.dat"]


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_measurement(tmp_path / "absent.dat")


def real_file(shared_data: Path) -> Path:
    path = shared_data / "crt_7t_siemens.dat"
    if not path.is_file():
        pytest.skip("the real 7 T ring file crt_7t_siemens.dat is not in the shared data")
    return path


def test_a_real_file_that_was_cut_off_is_refused(shared_data, tmp_path):
    whole = real_file(shared_data).read_bytes()
    for size in (12, 5000, 200_000, len(whole) - 1000):
        path = tmp_path / "cut.dat"
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut off|no Siemens twix file"):
            read_measurement(path)


def test_the_real_7t_rings_become_profile_1_0(shared_data, tmp_path):
    path = tmp_path / "crt.h5"
    said = convert_twix(real_file(shared_data), path, sequence="crt_7t_siemens")
    assert "177 readouts (33 noise scan, 48 water reference, 96 imaging scan)" in said
    scan = read_scan(path)
    mrd = parse_header(scan.header_xml)
    protocol, water = read_protocol(mrd), read_water_protocol(mrd)
    assert (protocol.n_times, water.n_times) == (144, 72)
    assert protocol.dwell_s == pytest.approx(360e-6)
    assert protocol.acquisition_delay_s == pytest.approx(1.3e-3)
    assert protocol.transmit_frequency_hz == 297223354
    assert protocol.geometry.matrix == (16, 16, 1)
    assert protocol.geometry.fov_mm == (220, 220, 50)
    assert protocol.samples_per_lap == (120,) * 8
    assert protocol.temporal_interleaves == (1, 1, 1, 1, 1, 1, 2, 2)
    dwells = {(int(r.head["idx"]["kspace_encode_step_1"]) > 5, float(r.head["sample_time_us"]))
              for r in scan.acquisitions if not r.has(Flag.IS_NOISE_MEASUREMENT)}  # fmt: skip
    assert dwells == {(False, 3.0), (True, 6.0)}
    # ring n has the radius (n + 1/2) / FOV
    for readout in scan.acquisitions:
        if readout.trajectory is not None:
            radius = np.hypot(*readout.trajectory.T.astype(float)) * 0.22
            np.testing.assert_allclose(radius, readout.head["idx"]["kspace_encode_step_1"] + 0.5, atol=0.03)
