"""Each bad input of the command line: one sentence with the remedy, exit code 1, nothing written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from command_results import stream_of

from mrsi_gadgets import replay
from mrsi_gadgets.cli import main
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.stream.messages import Close, ConfigFile
from mrsi_gadgets.stream.wire import encode
from served import serving
from small_scan import SmallScan, small_scan

pytestmark = pytest.mark.timeout(180)


def with_nan(scan: SmallScan) -> SmallScan:
    samples = scan.readouts[70].data.copy()
    samples[0, 3] = np.inf
    return scan.changed(70, samples)


BAD_SCANS = {
    r"lacks mrsi_spectral_points, mrsi_dwell_us .*add them": lambda s: s.header_without("mrsi_dwell_us").header_without(
        "mrsi_spectral_points"
    ),
    r"mrsi_encoding 'csi' contradicts .*trajectory 'spiral'; correct": lambda s: s.header_with(
        "<trajectory>cartesian", "<trajectory>spiral"
    ),
    r"readout 2 .*mrsi_dwell_us 500 .*correct one": lambda s: s.header_with(
        f"<name>mrsi_dwell_us</name><value>{s.protocol.dwell_s * 1e6!r}<", "<name>mrsi_dwell_us</name><value>500.0<"
    ),
    r"mrsi_freq_sign \(header\) is '3'; it must be": lambda s: s.header_with(
        "<name>mrsi_freq_sign</name><value>1<", "<name>mrsi_freq_sign</name><value>3<"
    ),
    r"readout 60 has 2 channels but .* 3; all data readouts need the same coils": lambda s: s.changed(
        60, s.readouts[60].data[:2]
    ),
    r"noise readout 1 has 2 channels": lambda s: s.changed(1, s.readouts[1].data[:2]),
    r"readout 60 .* 100 .*mrsi_spectral_points.*128": lambda s: s.changed(60, s.readouts[60].data[:, :100]),
    r"readout 70 holds values that are not finite .* channel 0; acquire": with_nan,
    r"no metabolite readouts came .*check": lambda s: s.with_readouts(s.noise + s.water),
    r"no metabolite readouts came .*none at all": lambda s: s.with_readouts([]),
    r"the noise scan has 2 channels but the data have 3; record": lambda s: s.changed(
        0, s.readouts[0].data[:2]
    ).changed(1, s.readouts[1].data[:2]),
}


@pytest.mark.parametrize("sentence", BAD_SCANS)
def test_a_bad_scan_is_refused_in_one_sentence_and_nothing_is_written(refused, scan, tmp_path, sentence):
    file = BAD_SCANS[sentence](scan).write(tmp_path / "scan.h5")
    said = refused("replay", file, "-o", tmp_path / "result", "--config", "fourier", "--device", "cpu")
    assert re.search(sentence, said), said


def truncated(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[:-1000])


def damaged_inside(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    at = data.index(b"HEAP")
    data[at : at + 4] = b"HEAR"
    bad.write_bytes(data)


BAD_FILES = {
    "is damaged inside .*copy it again": damaged_inside,
    "is not there; check": lambda good, bad: None,
    "truncated|damaged": truncated,
    "is not an HDF5 file": lambda good, bad: bad.write_text("patient=1\n"),
    "is a folder; give": lambda good, bad: bad.mkdir(),
    "not an HDF5 file, whatever": lambda good, bad: bad.touch(),
}


@pytest.mark.parametrize("command", ["replay", "check"])
@pytest.mark.parametrize("sentence", BAD_FILES)
def test_a_file_that_is_no_scan_is_refused_by_name(run, refused, scan_file, tmp_path, command, sentence):
    file = tmp_path / "bad.h5"
    BAD_FILES[sentence](scan_file, file)
    if command == "check":
        code, out, err = run("check", file)
        assert (code, err) == (1, "")
        said = out
        assert "Traceback" not in out
    else:
        said = refused("replay", file, "-o", tmp_path / "result")
    assert "bad.h5" in said
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("<chain><prewhitten/></chain>", "unknown gadget <prewhitten> in the chain; known are .*prewhiten"),
        ('<chain><reconstruct metod="fourier"/></chain>', "<reconstruct> has no attribute 'metod'; .*method"),
        ("<chain><reconstruct", "not well-formed XML"),
        ("<configuration/>", "holds no <chain>; put"),
        ("", "empty|not well-formed"),
    ],
)
def test_a_bad_recipe_is_refused_with_the_name_that_is_wrong(refused, scan_file, tmp_path, recipe, sentence):
    (tmp_path / "ours.xml").write_text(recipe)
    said = refused("replay", scan_file, "-o", tmp_path / "result", "--config", tmp_path / "ours.xml")
    assert re.search(sentence, said), said


@pytest.mark.parametrize("to", [(), ("--to", "127.0.0.1:1")])
def test_a_recipe_that_is_no_utf_8_is_refused(refused, scan_file, tmp_path, to):
    (tmp_path / "ours.xml").write_bytes(b"<chain><!-- f\xfcr uns --></chain>")
    said = refused("replay", scan_file, "-o", tmp_path / "result", "--config", tmp_path / "ours.xml", *to)
    assert "ours.xml is not valid UTF-8 at its byte 13; save it as UTF-8" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--config", "fouriier"), "there is no recipe 'fouriier'; known are .*fourier"),
        (("--config", "f" * 1000), "there is no recipe 'f{100}...'; known are"),
        (("--config", "f" * 1000 + ".xml"), "recipe file f{100}... cannot be read .File name too long"),
        (("--config", "no/such.xml"), "recipe file no/such.xml does not exist"),
        (("--config", "no/such.xml", "--to", "127.0.0.1:9"), "recipe file no/such.xml does not exist"),
        (("--set", "mrsi_dwel_us=500"), "'mrsi_dwel_us' is no key .*did you mean mrsi_dwell_us"),
        (("--set", "mrsi_dwell_us=fast"), r"mrsi_dwell_us \(setting\) is 'fast'; it must be"),
        (("--set", "mrsi_dwell_us"), "is not KEY=VALUE"),
        (("--device", "gpu"), "device 'gpu' is not understood; use auto, cpu or cuda:N"),
        (("--device", "cuda:99"), r"device 'cuda:99' .*use --device cpu"),
        (("--to", "scanner"), "address 'scanner' is not HOST:PORT"),
        (("--to", "127.0.0.1:1"), "No server answers at 127.0.0.1:1 .*mrsi serve"),
        (("--to", "127.0.0.1:1", "--device", "cpu"), "decisions of the server"),
        (("--to", "127.0.0.1:1", "--seed", "3"), "decisions of the server"),
        (("--to", "127.0.0.1:1", "--threads", "2"), "decisions of the server; start it with them"),
        (("--to", "127.0.0.1:1", "--sequence", "fire_csi"), "decisions of the server; start it with them"),
    ],
)
def test_a_bad_option_is_refused_with_its_remedy(refused, scan_file, tmp_path, options, sentence):
    said = refused("replay", scan_file, "-o", tmp_path / "result", *options)
    assert re.search(sentence, said), said


def test_an_output_that_would_destroy_something_is_refused_before_the_scan_is_read(refused, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert "holds 'chapter.tex'" in refused("replay", "missing.h5", "-o", tmp_path / "thesis")
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in refused("replay", "missing.h5", "-o", tmp_path / "file")
    assert "cannot be made" in refused("replay", "missing.h5", "-o", tmp_path / "no" / "such" / "place")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "without CLOSE|no header"),
        (encode(ConfigFile("fourier")) + encode(Close()), "holds no header; pipe an MRD stream"),
        (b"not a stream at all", "Message number .* unknown"),
        (stream_of(small_scan())[:5000], "The stream ended inside a message"),
    ],
)
def test_a_stream_that_is_no_scan_is_refused(refused, on_stdin, tmp_path, data, sentence):
    on_stdin(data)
    assert re.search(sentence, refused("replay", "-", "-o", tmp_path / "result", "--config", "fourier"))


def test_a_closed_stdin_is_refused(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    assert "there is no standard input" in refused("replay", "-", "-o", tmp_path / "result")


def test_a_failing_server_is_quoted(refused, scan, tmp_path):
    file = with_nan(scan).write(tmp_path / "scan.h5")
    with serving(warm=0) as server:
        said = refused("replay", file, "-o", tmp_path / "result", "--to", f"127.0.0.1:{server.port}")
    assert "readout 70 holds values that are not finite" in said


def test_a_failure_is_one_record_where_the_log_is_for_machines(run, scan, tmp_path):
    file = with_nan(scan).write(tmp_path / "scan.h5")
    options = ("--config", "fourier", "--device", "cpu", "--log-format", "json")
    code, out, err = run("replay", file, "-o", tmp_path / "result", *options)
    assert (code, out) == (1, "")
    (record,) = [json.loads(line) for line in err.splitlines()]
    assert record["message"].startswith("mrsi replay: readout 70 holds values that are not finite")
    assert record["failure"] == record["message"].removeprefix("mrsi replay: ")
    assert record["level"] == "ERROR"


def test_debug_shows_the_traceback(scan, tmp_path):
    file = with_nan(scan).write(tmp_path / "scan.h5")
    with pytest.raises(DataError, match="not finite"):
        main(["replay", str(file), "-o", str(tmp_path / "result"), "--config", "fourier", "--debug"])


def test_an_error_nobody_foresaw_is_one_sentence_too(run, scan_file, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(replay, "replay_here", fail)
    code, _, err = run("replay", scan_file, "-o", tmp_path / "result")
    assert code == 1
    assert err.count("\n") == 1
    assert "internal error (ZeroDivisionError: of all things); run again with --debug" in err


def test_a_port_in_use_is_refused_with_the_remedy(refused):
    with serving(warm=0) as server:
        assert "choose another with --port" in refused("serve", "--no-page", "--port", server.port)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--config", "fouriier"), "there is no recipe 'fouriier'"),
        (("--set", "mrsi_dwel_us=500"), "did you mean mrsi_dwell_us"),
        (("--device", "cuda:99"), "use --device cpu"),
        (("--port", "70000"), "cannot listen on 127.0.0.1:70000"),
    ],
)
def test_a_server_that_could_serve_nobody_does_not_start(refused, options, sentence):
    assert sentence in refused("serve", "--no-page", "--port", "0", *options)


def test_nothing_that_was_measured_is_overwritten_by_a_slip(refused, run, scan_file, tmp_path):
    measured = tmp_path / "measured.h5"
    measured.write_bytes(scan_file.read_bytes())
    result = tmp_path / "result"
    assert run("replay", measured, "-o", result, "--config", "fourier", "--device", "cpu")[0] == 0
    for command in (
        ("simulate", "csi16", "-o", measured),
        ("convert", tmp_path / "meas.dat", "-o", measured),
        ("anonymise", scan_file, "-o", measured),
        ("report", result, "-o", measured),
    ):
        assert "measured.h5 exists" in refused(*command)
    (tmp_path / "meas.dat").write_bytes(bytes(64))
    assert "make it first" in refused("convert", tmp_path / "meas.dat", "-o", tmp_path / "no" / "scan.h5")


def test_the_wrong_kind_of_file_is_told_what_it_is(refused, run, scan_file, tmp_path):
    (tmp_path / "meas.dat").write_bytes(bytes(64))
    assert "`mrsi convert` makes" in refused("replay", tmp_path / "meas.dat", "-o", tmp_path / "x")
    result = tmp_path / "result"
    assert run("replay", scan_file, "-o", result, "--config", "fourier", "--device", "cpu")[0] == 0
    said = refused("replay", result / "images.h5", "-o", tmp_path / "x")
    assert "images of a result, not readouts; give the raw file" in said


def test_a_folder_of_recipes_that_is_not_there_is_refused(refused, scan_file, tmp_path):
    for command in (("replay", scan_file, "-o", tmp_path / "x"), ("serve", "--port", "0", "--no-page", "--no-spool")):
        assert "--config-dir" in refused(*command, "--config-dir", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("replay", "scan.h5", "--methd", "x"), "usage: mrsi replay .*unknown option or argument --methd"),
        (("simulate", "csi16", "--drift", "nan"), "'nan' is not a number"),
    ],
)
def test_a_wrong_option_is_answered_with_the_options_of_its_command(capsys, command, sentence):
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    assert ended.value.code == 2
    assert re.search(sentence, capsys.readouterr().err, re.DOTALL)


def test_a_place_that_cannot_be_written_is_told_without_what_hdf5_says_of_itself(
    refused, monkeypatch, scan_file, tmp_path
):
    def full(*_, **__):
        raise OSError(
            "Unable to synchronously create file (unable to open file: name = '.x.part', errno = 28, "
            "error message = 'No space left on device', flags = 13, o_flags = 242)"
        )

    monkeypatch.setattr("mrsi_gadgets.io.hdf5.h5py.File", full)
    assert "a.h5 cannot be written (No space left on device); choose another place" in refused(
        "simulate", "csi16", "-o", tmp_path / "a.h5"
    )


def test_no_command_at_all_is_answered_with_all_of_them(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "run all methods on one raw file" in said
    assert "Traceback" not in said


def test_before_anything_was_kept_there_is_nothing_to_recover(refused, monkeypatch, tmp_path):
    monkeypatch.delenv("MRSI_SPOOL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert "nothing has been kept yet in" in refused("recover")
