from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.io.learning import find_learning_protocol, read_learning_protocol, shipped_learning_protocols
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.physics.ensemble import Ensemble, default_ensemble

HEAD = """
[protocol]
nucleus = "1H"
transmit_frequency_hz = 123.25e6
dwell_us = 500
n_times = 37
acquisition_delay_us = 0
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "preset"), [("1h_fid_3t", "csi48"), ("31p_fid_7t", "csi16_31p"), ("2h_fid_7t", "csi16_2h")]
)
def test_a_shipped_protocol_is_that_of_the_simulated_scan(name, preset):
    read = read_learning_protocol(find_learning_protocol(name))
    simulated = PRESETS[preset].protocol
    assert read.protocol.fingerprint() == simulated.fingerprint()
    for field in ("reference_ppm", "field_strength_t", "repetition_time_s", "flip_angle_deg", "dwell_s"):
        assert getattr(read.protocol, field) == pytest.approx(getattr(simulated, field)), field
    # networks and their gate are trained with the fields above the sinuses too; a subspace made on the spot is not
    wider = {"broadening_ppm": (0.0, 0.12)} if name == "1h_fid_3t" else {}
    assert read.ensemble == dataclasses.replace(default_ensemble(simulated), **wider)
    assert read.basis is None


@pytest.mark.parametrize("path", shipped_learning_protocols().values(), ids=lambda path: path.stem)
def test_every_shipped_protocol_can_be_sampled(path):
    read = read_learning_protocol(path)
    assert read.sources
    for protocol, basis in zip(read.protocols, read.bases, strict=True):
        drawn = read.ensemble.sample(protocol, 3, 1, basis=basis)
        assert drawn.metabolites.shape == (3, protocol.n_times)


def test_several_echo_times_give_a_protocol_and_a_basis_each():
    read = read_learning_protocol(find_learning_protocol("1h_multi_te_3t"))
    assert [te for p in read.protocols for te in p.echo_times_s] == pytest.approx([0.03, 0.08, 0.144])
    lactate = [basis.subset(["Lac"]).fids[0] for basis in read.bases]
    methyl = np.exp(-2j * np.pi * read.protocol.hz(1.3142) * read.protocol.times_s - read.protocol.times_s / 0.05)
    assert [np.sign(fid @ methyl).real for fid in lactate] == pytest.approx([1, -1, -1], abs=0.3)
    assert read.bases[2].source == "simulated: spin_echo 72 - 72 ms"


def test_the_timing_of_press_steam_and_semi_laser_is_read(tmp_path):
    echo = HEAD + "echo_times_ms = [35.0, 70.0]\n[basis]\n"
    steam = read_learning_protocol(written(tmp_path, echo + 'sequence = "steam"\ntm_ms = 12'))
    assert [basis.source for basis in steam.bases] == [
        "simulated: steam 17.5 - 17.5 ms, TM 12 ms", "simulated: steam 35 - 35 ms, TM 12 ms",
    ]  # fmt: skip
    press = read_learning_protocol(written(tmp_path, echo + 'sequence = "press"\nte1_ms = 14'))
    assert [basis.source for basis in press.bases] == [
        "simulated: press 7 - 17.5 - 10.5 ms", "simulated: press 7 - 35 - 28 ms",
    ]  # fmt: skip
    intervals = "[[4, 8, 9.5, 9.5, 4], [8, 16, 18, 19, 9]]"
    laser = read_learning_protocol(written(tmp_path, echo + f'sequence = "semi_laser"\nintervals_ms = {intervals}'))
    assert laser.bases[0].source == "simulated: semi_laser 4 - 8 - 9.5 - 9.5 - 4 ms"


def test_tables_are_read_and_the_trainer_gets_its_own_as_it_stands(tmp_path):
    text = HEAD + '[ensemble]\nnames = ["NAA", "Cr"]\nwater_components = 3\nbroadening_ppm = [0, 0.1]\n'
    read = read_learning_protocol(written(tmp_path, text + '[training]\nepochs = 7\n[sources]\na = "b"'))
    expected = dataclasses.replace(Ensemble(), names=("NAA", "Cr"), water_components=3, broadening_ppm=(0.0, 0.1))
    assert read.ensemble == expected
    assert (read.training, read.sources, read.name) == ({"epochs": 7}, {"a": "b"}, "mine")
    assert read.protocol.reference_ppm == 4.65
    assert read.protocol.echo_times_s == (0.0,)
    assert read.protocols == (read.protocol,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"mine.toml: x is not known; there are name, \[protocol\]"),
        ("[protocol", "no valid TOML"),
        ("[protocol]", "lacks nucleus, transmit_frequency_hz, n_times, acquisition_delay_us"),
        (HEAD + "spectral_width_hz = 2000", "one of dwell_us and spectral_width_hz"),
        (HEAD + "echo_time_ms = [30]", r"\[protocol\] echo_time_ms is not known; known are acquisition_delay_us"),
        (HEAD + "echo_times_ms = [3.0]", "no echo"),
        (HEAD + "echo_times_ms = [30, 30]", "twice"),
        (HEAD + "echo_times_ms = 30", "must be a list of some numbers"),
        (HEAD + 'flip_angle_deg = "35"', "flip_angle_deg is '35'; it must be a number"),
        (HEAD + "repetition_time_ms = 0", "repetition_time_ms is 0; it must be positive"),
        (HEAD.replace("37", "37.5"), "n_times is 37.5; it must be a whole number"),
        (HEAD.replace("1H", "23Na"), "nucleus is '23Na'; molecules are known for 1H, 31P, 2H"),
        (HEAD + "[ensemble]\nt2_sd = 1", r"\[ensemble\] t2_sd is not known; known are acquisition_delay_sd_s, altered"),
        (HEAD + '[ensemble]\nnames = ["NAA", "Xyz"]', "names has 'Xyz'; for 1H there are NAA"),
        (HEAD + '[ensemble]\nnames = ["NAA", "NAA"]', "twice"),
        (HEAD + "[ensemble]\nbroadening_ppm = [0.1]", "list of 2 numbers"),
        (HEAD + "[ensemble]\nbroadening_ppm = [0.1, 0.0]", "needs 0 <= low <= high"),
        (HEAD + "[ensemble]\nt2_star_sd = -1", "it must be at least 0"),
        (HEAD + "[ensemble]\nwater_components = 2.5", "whole number"),
        (HEAD + "[basis]\nsequence = 'laser'", "choose pulse_acquire, spin_echo, press, steam, semi_laser, or"),
        (HEAD + "[basis]\nsequence = 'press'", "press does not fit a protocol without echo_times_ms"),
        (HEAD + "[basis]\nsequence = 'pulse_acquire'\ntm_ms = 3", r"\[basis\] tm_ms is not known"),
        (HEAD + "echo_times_ms = [30]\n[basis]\nsequence = 'pulse_acquire'", "does not fit echo_times_ms 30"),
        (HEAD + "echo_times_ms = [30]\n[basis]\nsequence = 'steam'", "needs tm_ms"),
        (HEAD + "echo_times_ms = [30]\n[basis]\nsequence = 'press'\nte1_ms = 40", "negative; correct the timing"),
        (HEAD + "echo_times_ms = [30]\n[basis]\nsequence = 'semi_laser'\nintervals_ms = [6,6,6,6,6]", "no echo there"),
        (
            HEAD + "echo_times_ms = [30]\n[basis]\nsequence = 'semi_laser'\nintervals_ms = [4,8,8,8,4]",
            "add up to 32 ms",
        ),
        (
            HEAD + "[basis]\nfile = 'a.basis'\nsequence = 'press'",
            r"\[basis\] sequence is not known; known are centre_ppm",
        ),
        (HEAD + "[basis]\nfile = ['a.basis', 'b.basis']", "one file for each echo time"),
        (HEAD + "[basis]\nfile = 'a.basis'", "a.basis cannot be read"),
        (HEAD + "[basis]\nfile = 'a.basis'\nconjugate = 1", "true or false"),
        (HEAD + "[basis]\nfile = 'a.basis'\nrename = 'Ins'", "must be a table"),
        (HEAD + "[sources]\na = 1", r"\[sources\] a must be text"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_learning_protocol(written(tmp_path, text))


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(ConfigError, match="no learning protocol 'mine'; shipped are 1h_fid_3t, 1h_multi_te_3t"):
        find_learning_protocol("mine")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_learning_protocol(tmp_path / "none.toml")


def test_maps_and_water_of_earlier_scans_take_the_place_of_the_table(tmp_path):
    rng = np.random.default_rng(3)
    shape = (7, 5, 3)
    for scan, unit in (("one", 1e-6), ("two", 4e-6)):
        (tmp_path / scan / "maps").mkdir(parents=True)
        for name, amount in (("tNAA", 12.0), ("tCr", 4.0)):
            value = unit * amount * np.exp(0.2 * rng.standard_normal(shape))
            value[0, 0] = np.nan
            for file, values in ((name, value), (f"{name}_sd", 0.02 * value)):
                image = nibabel.Nifti1Image(values.astype(np.float32), np.eye(4))
                nibabel.save(image, tmp_path / scan / "maps" / f"{file}.nii.gz")
    np.save(tmp_path / "water.npy", np.exp(-np.arange(37) * 0.01) * np.ones((6, 1), np.complex64))
    text = HEAD + '[measured]\nmaps = ["one", "two"]\nwater = "water.npy"\n'
    read = read_learning_protocol(written(tmp_path, text))
    assert read.ensemble.amounts.names == ("tNAA", "tCr")
    assert read.ensemble.amounts.describe()["log_sd"] == pytest.approx([0.2, 0.2], abs=0.03)
    ratio = np.divide(*read.ensemble.amounts.describe()["median_mm"])
    assert ratio == pytest.approx(3.0, rel=0.06)
    assert read.ensemble.sample(read.protocol, 3, 1).metabolites.shape == (3, 37)
    for bad, message in (
        ('[measured]\nmaps = "three"', "has no maps of reported amounts"),
        ('[measured]\nmaps = "one"\nnames = ["Ins"]', "cannot be read"),
        ('[measured]\nwater = "none.npy"', "water FIDs .* cannot be read"),
        ("[measured]\nlines = 1", r"\[measured\] lines is not known; known are maps, names, resample, water"),
        ('[measured]\nmaps = "one"\nresample = 1', "true or false"),
        ("[ensemble]\namounts = 1", r"\[ensemble\] amounts is not known"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_learning_protocol(written(tmp_path, HEAD + bad))
