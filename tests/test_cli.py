"""The command line: every command once, and each bad input as one sentence with exit code 1 and nothing written."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrsi_gadgets import __version__, replay
from mrsi_gadgets.cli import main
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.mrd_file import read_images, read_scan
from mrsi_gadgets.stream.messages import Close, ConfigFile, ConfigText, Header, Message
from mrsi_gadgets.stream.wire import encode
from served import NODE_CONFIG, SESSION_S, assert_same_images, serving
from small_scan import SmallScan, small_scan

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def same_logging(monkeypatch):
    """A command sets up logging and threads for its process; the tests after this one have their own."""
    log = logging.getLogger("mrsi")
    before = (list(log.handlers), log.level, log.propagate)
    monkeypatch.delenv("MRSI_THREADS", raising=False)
    monkeypatch.delenv("MRSI_CONFIG_DIR", raising=False)
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing costs more than all the rest; one test sees that it is done."""
    monkeypatch.setattr("mrsi_gadgets.output.folder.contact_sheet", lambda results, path: path.touch())


@pytest.fixture
def scan() -> SmallScan:
    return small_scan()


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory) -> Path:
    return small_scan().write(tmp_path_factory.mktemp("scan") / "scan.h5")


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Run a command that must fail: one sentence on stderr, exit code 1, no file more or less than before."""

    def refused(*arguments: object) -> str:
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith(f"mrsi {arguments[0]}: ")
        assert err.count("\n") == 1, err
        assert "internal error" not in err
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        return err

    return refused


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def images_here(scan: SmallScan, config: Message | None = None, **options):
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small", config)
    return replay.replay_here(given, ScanOptions(device="cpu", **options)).images


def stream_of(scan: SmallScan, *before: Message) -> bytes:
    return b"".join(encode(m) for m in [*before, Header(scan.header_xml), *scan.readouts, Close()])


@pytest.fixture
def on_stdin(monkeypatch):
    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


# --- replay ---------------------------------------------------------------------------------------------------------


def test_replay_writes_maps_images_picture_and_summary(run, scan, scan_file, tmp_path):
    folder = tmp_path / "result"
    code, out, err = run("replay", scan_file, "-o", folder, "--config", "fourier", "--device", "cpu")
    assert (code, err) == (0, "")
    assert str(folder) in out
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"b0.nii.gz", "mask.nii.gz", "images.h5", "contact.png", "summary.json"} <= names
    for name in ("tNAA", "tCr", "tCho", "Ins", "Glx", "NAA"):
        assert {f"maps/{name}.nii.gz", f"maps/{name}_sd.nii.gz", f"maps/{name}_per_water.nii.gz"} <= names
    assert_same_images(read_images(folder / "images.h5"), images_here(scan, recipe="fourier"))
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
def test_replay_to_a_server_gives_the_folder_of_a_replay_here(run, scan_file, tmp_path):
    options = ("--config", "fourier", "--set", "mrsi_reference_ppm=4.66")
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
        "replay", scan_file, "-o", tmp_path / "result", "--config", "fourier", "--device", "cpu", "--realtime"
    )
    assert code == 0
    ticks = len(scan.readouts) - 1
    assert summary_of(tmp_path / "result")["seconds"]["whole scan"] >= ticks * 2.5e-3
    assert_same_images(read_images(tmp_path / "result" / "images.h5"), images_here(scan, recipe="fourier"))


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
    assert_same_images(read_images(tmp_path / "result" / "images.h5"), images_here(scan, recipe="fourier"))
    cut = subprocess.run(
        [*command[:-1], str(tmp_path / "cut"), *options], input=stream_of(scan)[:-2], capture_output=True,
        timeout=SESSION_S,
    )  # fmt: skip
    assert cut.returncode == 1
    assert cut.stderr.startswith(b"mrsi replay: The stream ended without CLOSE")
    assert cut.stderr.count(b"\n") == 1
    assert not (tmp_path / "cut").exists()


# --- bad input ------------------------------------------------------------------------------------------------------


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


BAD_FILES = {
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--config", "fouriier"), "there is no recipe 'fouriier'; known are .*fourier"),
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
        assert "choose another with --port" in refused("serve", "--port", server.port)


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
    assert sentence in refused("serve", "--port", "0", *options)


# --- the other commands ---------------------------------------------------------------------------------------------


def test_the_presets_are_listed_and_an_unknown_one_is_refused(run, refused, tmp_path):
    code, out, _ = run("simulate", "list")
    assert code == 0
    assert {"csi16", "csi48"} <= {line.split()[0] for line in out.splitlines()}
    assert "there is no preset 'csi17'; known are csi16" in refused("simulate", "csi17", "-o", tmp_path / "a.h5")
    assert "-o FILE.h5" in refused("simulate", "csi16")
    assert "snr" in refused("simulate", "csi16", "-o", tmp_path / "a.h5", "--snr", "0")
    assert "folder does not exist" in refused("simulate", "csi16", "-o", tmp_path / "no" / "such" / "a.h5")


def test_a_simulated_file_passes_the_check(run, tmp_path):
    file = tmp_path / "brain.h5"
    code, out, _ = run("simulate", "csi16", "-o", file, "--snr", "30", "--seed", "2")
    assert code == 0
    assert "truth" in out
    assert len(read_scan(file).acquisitions) == 16 + 2 * 256
    code, out, _ = run("check", file)
    assert code == 0
    assert "brain.h5: usable" in out


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


@pytest.mark.parametrize("arguments", ["", "fly", "replay scan.h5", "replay scan.h5 -o folder --threads 0"])
def test_a_command_line_that_cannot_be_read_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert "usage: mrsi" in capsys.readouterr().err
