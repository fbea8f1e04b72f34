"""Every command of the command line once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_results import images_here, stream_of, summary_of
from tqdm import tqdm

from mrsi_gadgets import __version__, replay
from mrsi_gadgets.cli import main
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.mrd_file import read_images, read_scan
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.stream.messages import Close, ConfigFile, ConfigText
from mrsi_gadgets.stream.wire import Decoder
from served import NODE_CONFIG, SESSION_S, assert_same_images, serving

pytestmark = pytest.mark.timeout(180)


# --- replay ---------------------------------------------------------------------------------------------------------


def test_replay_writes_maps_images_picture_and_summary(run, scan, scan_file, tmp_path):
    folder = tmp_path / "result"
    code, out, err = run("replay", scan_file, "-o", folder, "--config", "fourier", "--device", "cpu")
    assert (code, err) == (0, "")
    assert str(folder) in out
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"b0.nii.gz", "mask.nii.gz", "images.h5", "contact.png", "summary.json"} <= names
    for name in ("tNAA", "tCr", "tCho", "Ins", "Glx", "NAA"):
        assert {
            f"maps/{name}.nii.gz",
            f"maps/{name}_sd.nii.gz",
            f"maps/{name}_crlb.nii.gz",
            f"maps/{name}_per_water.nii.gz",
        } <= names
    assert_same_images(read_images(folder / "images.h5"), images_here(scan, recipe="fourier", spectra="all"))
    summary = summary_of(folder)
    assert summary["warnings"] == []
    assert summary["provenance"]["recipe"] == "fourier"
    assert summary["provenance"]["readouts"] == len(scan.readouts)
    assert {"reconstruct", "quantify", "last readout to last image", "whole scan"} <= set(summary["seconds"])


@pytest.mark.usefixtures("no_picture")
def test_without_a_recipe_a_file_is_reconstructed_with_the_subspace(run, scan_file, tmp_path):
    assert run("replay", scan_file, "-o", tmp_path / "result", "--device", "cpu")[0] == 0
    assert summary_of(tmp_path / "result")["provenance"]["recipe"] == "subspace"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("before", "options", "recipe"),
    [
        ((), ("--config", "fourier"), "fourier"),
        ((ConfigFile("fourier"),), (), "fourier"),
        ((ConfigText(NODE_CONFIG),), (), "sent by the peer"),
        ((ConfigFile("subspace"),), ("--config", "fourier"), "fourier"),
    ],
)
def test_a_stream_on_stdin_is_a_scan_and_its_configuration_counts_unless_one_is_given(
    run, on_stdin, scan, tmp_path, before, options, recipe
):
    on_stdin(stream_of(scan, *before))
    assert run("replay", "-", "-o", tmp_path / "result", "--device", "cpu", *options)[0] == 0
    assert summary_of(tmp_path / "result")["provenance"]["recipe"] == recipe


def test_a_pipe_takes_a_stream_and_gives_one_back(scan, tmp_path):
    """What a cluster runs: an MRD stream in, header and images out, CLOSE at the end, no other byte on stdout."""
    command = [sys.executable, "-c", "import sys; from mrsi_gadgets.cli import main; sys.exit(main())",
               "replay", "-", "--stdout", "--device", "cpu"]  # fmt: skip
    done = subprocess.run(command, input=stream_of(scan, ConfigFile("fourier")), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    messages = list(Decoder().feed(done.stdout))
    assert messages[0].xml == scan.header_xml
    assert isinstance(messages[-1], Close)
    assert_same_images(messages[1:-1], images_here(scan, recipe="fourier"))
    broken = subprocess.run(command, input=stream_of(scan, ConfigFile("nothing")), capture_output=True, check=False)
    assert (broken.returncode, broken.stdout) == (1, b"")
    assert b"there is no recipe" in broken.stderr


@pytest.mark.usefixtures("no_picture")
def test_a_recipe_may_be_a_file_and_a_site_has_its_own(run, scan_file, tmp_path):
    (tmp_path / "site").mkdir()
    recipe = tmp_path / "site" / "ours.xml"
    recipe.write_text(NODE_CONFIG.replace("<console_images/>", '<console_images quantitative="shown"/>'))
    for folder, options in (("a", ("--config", recipe)), ("b", ("--config", "ours", "--config-dir", recipe.parent))):
        code, _, _ = run("replay", scan_file, "-o", tmp_path / folder, "--device", "cpu", *options)
        assert code == 0
        assert summary_of(tmp_path / folder)["provenance"]["recipe"] == "ours"
    assert_same_images(*(read_images(tmp_path / folder / "images.h5") for folder in "ab"))


@pytest.mark.usefixtures("no_picture")
def test_a_replay_here_keeps_all_spectra_unless_recipe_or_option_say_something_else(run, scan_file, tmp_path):
    recipe = tmp_path / "ours.xml"
    recipe.write_text(NODE_CONFIG.replace("<console_images/>", '<console_images spectra="none"/>'))
    found = {}
    for name, options in (
        ("usual", ("--config", "fourier")), ("few", ("--config", "fourier", "--spectra", "examples")),
        ("recipe", ("--config", recipe)), ("both", ("--config", recipe, "--spectra", "all")),
    ):  # fmt: skip
        assert run("replay", scan_file, "-o", tmp_path / name, "--device", "cpu", *options)[0] == 0
        results = gather(read_images(tmp_path / name / "images.h5"))
        found[name] = (results.fitted() is not None, bool(results.spectra))
    assert found == {"usual": (True, True), "few": (False, True), "recipe": (False, False), "both": (True, True)}


@pytest.mark.usefixtures("no_picture")
def test_spectra_that_would_be_very_large_are_kept_only_where_they_are_asked_for(run, scan_file, tmp_path, monkeypatch):
    monkeypatch.setattr("mrsi_gadgets.gadgets.scan.MOST_SPECTRA_BYTES", 1000)
    options = ("-o", tmp_path / "result", "--config", "fourier", "--device", "cpu")
    _, _, err = run("replay", scan_file, *options)
    assert "only a few spectra are kept" in err
    assert "--spectra all" in err
    assert gather(read_images(tmp_path / "result" / "images.h5")).fitted() is None
    assert run("replay", scan_file, *options, "--spectra", "all")[2] == ""
    results = gather(read_images(tmp_path / "result" / "images.h5"))
    assert len(results.fitted().voxels) == results.mask[0].sum()


@pytest.mark.usefixtures("no_picture")
def test_replay_to_a_server_gives_the_folder_of_a_replay_here(run, scan_file, tmp_path):
    options = ("--config", "fourier", "--set", "mrsi_reference_ppm=4.66", "--spectra", "all")
    with serving(warm=0) as server:
        address = f"127.0.0.1:{server.port}"
        code, _, err = run("replay", scan_file, "-o", tmp_path / "there", "--to", address, *options)
    assert (code, err) == (0, "")
    assert run("replay", scan_file, "-o", tmp_path / "here", "--device", "cpu", *options)[0] == 0
    there, here = (read_images(tmp_path / name / "images.h5") for name in ("there", "here"))
    assert_same_images(there, here)
    assert "setting mrsi_reference_ppm" in here[0].attributes
    files = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("there", "here")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("no_picture")
def test_realtime_keeps_the_pace_of_the_time_stamps_and_changes_no_result(run, scan, scan_file, tmp_path):
    code, _, _ = run(
        "replay", scan_file, "-o", tmp_path / "result", "--config", "fourier", "--device", "cpu", "--realtime",
        "--spectra", "examples",
    )  # fmt: skip
    assert code == 0
    ticks = len(scan.readouts) - 1
    assert summary_of(tmp_path / "result")["seconds"]["whole scan"] >= ticks * 2.5e-3
    assert_same_images(read_images(tmp_path / "result" / "images.h5"), images_here(scan, recipe="fourier"))


def test_a_bar_is_gone_before_the_sentence_of_an_error_is_said(scan):
    bad = scan.with_readouts(scan.readouts[:20])
    given = replay.Scan(bad.header_xml, bad.readouts, len(bad.readouts), "bad")
    with pytest.raises(DataError) as refused:
        replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu"), progress=True)
    assert refused.traceback  # whoever holds the error holds everything that was open when it came
    assert not tqdm._instances


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda s: s.with_readouts(s.noise + s.metabolites), "no water reference"),
        (lambda s: s.with_readouts(s.water + s.metabolites), "no noise scan"),
    ],
)
def test_a_scan_that_lacks_a_calibration_works_and_says_what_it_did_instead(run, scan, tmp_path, change, warning):
    file = change(scan).write(tmp_path / "scan.h5")
    code, _, err = run("replay", file, "-o", tmp_path / "result", "--config", "fourier", "--device", "cpu")
    assert code == 0
    lines = [line for line in err.splitlines() if warning in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    assert any(warning in sentence for sentence in summary_of(tmp_path / "result")["warnings"])


def test_a_replay_that_has_no_place_for_its_result_is_refused(refused, scan_file):
    assert "name a folder for the result with -o FOLDER" in refused("replay", scan_file)


@pytest.mark.usefixtures("no_picture")
def test_a_result_is_replaced_by_the_next_one(run, scan_file, tmp_path):
    for seed in (1, 2):
        options = ("--config", "fourier", "--device", "cpu", "--seed", seed)
        assert run("replay", scan_file, "-o", tmp_path / "result", *options)[0] == 0
    assert summary_of(tmp_path / "result")["provenance"]["seed"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"result"}


def test_the_installed_command_reads_a_pipe_and_answers_with_files_and_an_exit_code(scan, tmp_path):
    command = [str(Path(sys.executable).with_name("mrsi")), "replay", "-", "-o", str(tmp_path / "result")]
    options = ["--config", "fourier", "--device", "cpu", "--threads", "1"]
    done = subprocess.run([*command, *options], input=stream_of(scan), capture_output=True, timeout=SESSION_S)
    assert (done.returncode, done.stderr) == (0, b"")
    assert_same_images(
        read_images(tmp_path / "result" / "images.h5"), images_here(scan, recipe="fourier", spectra="all")
    )
    cut = subprocess.run(
        [*command[:-1], str(tmp_path / "cut"), *options], input=stream_of(scan)[:-2], capture_output=True,
        timeout=SESSION_S,
    )  # fmt: skip
    assert cut.returncode == 1
    assert cut.stderr.startswith(b"mrsi replay: The stream ended without CLOSE")
    assert cut.stderr.count(b"\n") == 1
    assert not (tmp_path / "cut").exists()


# --- the other commands ---------------------------------------------------------------------------------------------


def test_the_presets_are_listed_and_an_unknown_one_is_refused(run, refused, tmp_path):
    code, out, _ = run("simulate", "list")
    assert code == 0
    assert {"csi16", "csi48"} <= {line.split()[0] for line in out.splitlines()}
    assert "there is no preset 'csi17'; known are csi16" in refused("simulate", "csi17", "-o", tmp_path / "a.h5")
    assert "-o FILE.h5" in refused("simulate", "csi16")
    assert "snr" in refused("simulate", "csi16", "-o", tmp_path / "a.h5", "--snr", "0")
    assert "folder does not exist" in refused("simulate", "csi16", "-o", tmp_path / "no" / "such" / "a.h5")
    assert "is a folder; name the file to write" in refused("simulate", "csi16", "-o", tmp_path)


def test_a_simulated_file_passes_the_check(run, tmp_path):
    file = tmp_path / "brain.h5"
    code, out, _ = run("simulate", "csi16", "-o", file, "--snr", "30", "--seed", "2")
    assert code == 0
    assert "truth" in out
    assert len(read_scan(file).acquisitions) == 16 + 2 * 256
    code, out, _ = run("check", file)
    assert code == 0
    assert "brain.h5: usable" in out
    assert run("simulate", "csi16", "-o", file, "--snr", "inf")[0] == 0, "a simulation may be made anew"


def test_check_says_what_a_scan_is_and_where_each_value_came_from(run, scan_file):
    code, out, err = run("check", scan_file, "--set", "mrsi_reference_ppm=4.7")
    assert (code, err) == (0, "")
    for text in ("usable", "8 x 6 x 1 voxels", "48 metabolite readouts", "reference_ppm: setting mrsi_reference_ppm"):
        assert text in out


def test_check_names_everything_that_is_missing(run, refused, scan, tmp_path):
    file = scan.header_without("mrsi_dwell_us").header_without("mrsi_nucleus").write(tmp_path / "bad.h5")
    code, out, _ = run("check", file)
    assert code == 1
    assert "not usable" in out
    assert "mrsi_dwell_us" in out
    assert "mrsi_nucleus" in out
    assert "did you mean" in refused("check", file, "--set", "mrsi_nucleuss=1H")


def test_recipes_and_gadgets_are_described(run, refused):
    code, out, _ = run("recipe")
    assert code == 0
    assert {"fourier", "low_rank", "subspace"} <= set(out.splitlines()[0].removeprefix("recipes: ").split(", "))
    assert "<reconstruct>" in out
    code, out, _ = run("recipe", "fourier")
    assert code == 0
    assert "method='fourier'" in out
    assert "known are" in refused("recipe", "fouriier")


def test_what_is_no_twix_file_is_refused_by_name(refused, scan_file, tmp_path):
    (tmp_path / "meas.dat").write_bytes(b"no twix" * 100)
    assert "meas.dat" in refused("convert", tmp_path / "meas.dat", "-o", tmp_path / "out.h5")
    assert "missing.dat" in refused("convert", tmp_path / "missing.dat", "-o", tmp_path / "out.h5")
    assert "scan.h5" in refused("convert", scan_file, "-o", tmp_path / "out.h5")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mrsi-gadgets {__version__}\n"


def test_serve_listens_on_this_machine_only_unless_told_otherwise_and_hands_its_limits_on(run, monkeypatch):
    given = []

    class Fake:
        def __init__(self, options) -> None:
            given.append(options)

        start = serve_forever = stop = request_stop = lambda self: None

    monkeypatch.setattr("mrsi_gadgets.server.supervisor.Server", Fake)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert run("serve")[0] == 0
        options = ("--host", "0.0.0.0", "--idle-timeout", "90", "--max-message-mib", "16", "--max-sessions", "2")
        assert run("serve", *options)[0] == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    usual, other = given
    assert (usual.host, usual.port, usual.max_sessions) == ("127.0.0.1", 9002, 8)
    assert (usual.idle_timeout_s, usual.max_message_mib) == (None, None)
    assert (other.host, other.idle_timeout_s, other.max_message_mib, other.max_sessions) == ("0.0.0.0", 90.0, 16, 2)


@pytest.mark.parametrize("arguments", ["", "fly", "replay", "replay scan.h5 -o folder --threads 0",
                                       "serve --idle-timeout 0", "serve --idle-timeout soon", "serve --max-sessions 0",
                                       "serve --max-message-mib -1", "serve --seed -1", "simulate csi16 --seed -1",
                                       "replay scan.h5 -o folder --seed -1"])  # fmt: skip
def test_a_command_line_that_cannot_be_read_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert "usage: mrsi" in capsys.readouterr().err


# --- report ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_picture")
def test_a_replay_and_then_a_report_give_a_page_with_the_spectra_of_all_voxels(run, refused, scan_file, tmp_path):
    folder = tmp_path / "result"
    assert run("replay", scan_file, "-o", folder, "--config", "fourier", "--device", "cpu")[0] == 0
    code, out, err = run("report", folder)
    assert (code, err) == (0, "")
    assert str(folder / "report.html") in out
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert '"molecules":["NAA"' in text
    assert str(scan_file) not in text
    # the page belongs to the result: the next one replaces both
    assert run("replay", scan_file, "-o", folder, "--config", "fourier", "--device", "cpu")[0] == 0
    assert not (folder / "report.html").exists()
    assert "holds no images.h5" in refused("report", tmp_path)


@pytest.mark.usefixtures("no_picture")
def test_many_frames_count_where_all_spectra_may_be_kept_unasked(run, scan, tmp_path, monkeypatch):
    size = 8 * 6 * scan.protocol.n_times * 4 * 8
    monkeypatch.setattr("mrsi_gadgets.gadgets.scan.MOST_SPECTRA_BYTES", size)
    limit = "<repetition><minimum>0</minimum><maximum>{}</maximum><center>0</center></repetition>"
    for last, kept in ((0, True), (1, False)):
        xml = re.sub(r"<repetition>.*?</repetition>", limit.format(last), scan.header_xml, flags=re.S)
        file = replace(scan, header_xml=xml).write(tmp_path / f"{last}.h5")
        err = run("replay", file, "-o", tmp_path / "result", "--config", "fourier", "--device", "cpu")[2]
        assert ("only a few spectra are kept" not in err) == kept
