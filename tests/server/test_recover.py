"""Raw data first: whatever dies, what the server has received gives the same maps afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrsi_gadgets import recover, replay
from mrsi_gadgets.cli import main
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.mrd_file import read_images
from mrsi_gadgets.io.spool import Spool, SpoolOptions
from mrsi_gadgets.io.spool_archive import list_sessions
from mrsi_gadgets.io.spool_files import spool_files
from mrsi_gadgets.io.spool_log import State
from mrsi_gadgets.stream.messages import Close, Image, Text
from mrsi_gadgets.stream.wire import encode
from peers import receive_until_end
from served import (
    assert_same_images,
    connected,
    error_of,
    images_of,
    opening,
    serving,
    session,
    whole,
)
from small_scan import small_scan

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def scan():
    return small_scan()


@pytest.fixture(scope="module")
def expected() -> list[Image]:
    """What the scan gives in this process, by recipe `fourier` and the server's settings."""
    return images_here({"mrsi_reference_ppm": "4.66"})


def images_here(settings: dict[str, str]) -> list[Image]:
    here = small_scan()
    given = replay.Scan(here.header_xml, here.readouts, len(here.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu", settings=settings)).images


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A server with settings of its own, which the spool has to remember."""
    options = ScanOptions(device="cpu", settings={"mrsi_reference_ppm": "4.66"})
    with serving(spool=SpoolOptions(tmp_path_factory.mktemp("spool")), scan=options) as server:
        yield server


@pytest.fixture
def folder(live) -> Path:
    return live.options.spool.folder


def last(folder: Path, state: State, suffix: str = ".h5"):
    """The newest session, once it stands so; its number."""
    assert wait_until(lambda: (spool_files(folder) or [None])[-1] is not None)
    assert wait_until(lambda: spool_files(folder)[-1].state is state and spool_files(folder)[-1].path.suffix == suffix)
    return list_sessions(folder)[-1]


def wait_until(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def sent(messages) -> bytes:
    return b"".join(encode(message) for message in messages)


def test_a_scan_whose_process_was_killed_gives_the_same_maps_to_the_bit(live, folder, scan, expected):
    parameters = Text(json.dumps({"parameters": {"config": "fourier"}}))
    config, header = opening(scan, "openrecon")
    messages = [config, header, parameters, *scan.readouts, Close()]
    with connected(live.port) as sock:
        sock.sendall(sent(messages[:40]))
        assert wait_until(lambda: any(live._sessions.values()))
        (worker,) = [process for process in live._sessions.values() if process is not None]
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        sock.sendall(sent(messages[40:]))
        sentence = error_of(receive_until_end(sock))
    info = last(folder, State.FAILED)
    number = info.file.number
    assert f"session {number} died before its result was complete (ended by SIGKILL" in sentence
    assert f"`mrsi recover {number} -o RESULT` reconstructs them" in sentence
    assert (info.end.readouts, info.end.closed) == (len(scan.readouts), True)
    assert "ended by SIGKILL" in info.end.cause
    assert_same_images(recover.recover(folder, number, {}).images, expected)


def test_a_finished_scan_is_kept_too_and_gives_the_maps_the_console_got(live, folder, scan, expected, tmp_path, capsys):
    got = images_of(session(live.port, whole(scan)))
    assert_same_images(got, expected)
    number = last(folder, State.FINISHED).file.number
    assert_same_images(recover.recover(folder, number, {}).images, got)
    assert "setting mrsi_reference_ppm" in got[0].attributes
    at = ["--spool", str(folder)]
    assert main(["recover", f"{number}", *at, "--h5", str(tmp_path / "raw.h5")]) == 0
    assert main(["check", str(tmp_path / "raw.h5")]) == 0
    capsys.readouterr()
    for wrong, words in (
        (["recover", "--remove", *at], "say which session"),
        (["recover", f"{number}", *at], "say what to do with the session"),
        (["recover", "700", *at, "--remove"], "holds no session 700"),
        (["recover", "--spool", str(tmp_path / "none")], "there is no spool"),
    ):
        assert main(wrong) == 1
        assert words in capsys.readouterr().err
    assert main(["recover", f"{number}", *at, "--remove"]) == 0
    assert f"removed session {number} (finished)" in capsys.readouterr().out
    assert main(["recover", *at]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert f"{number}" not in {line.split()[0] for line in listed}


def test_a_scan_that_was_cut_off_is_reconstructed_only_on_request_and_says_so(live, folder, scan):
    with connected(live.port) as sock:
        sock.sendall(sent(whole(scan)[:-20]))
        sock.shutdown(socket.SHUT_WR)
        assert "without CLOSE" in error_of(receive_until_end(sock))
    number = last(folder, State.ABORTED).file.number
    count = len(scan.readouts) - 19
    with pytest.raises(DataError, match=f"was cut off after {count} readouts.*add --incomplete"):
        recover.recover(folder, number, {})
    result = recover.recover(folder, number, {"recipe": "fourier"}, incomplete=True)
    assert f"cut off after {count} readouts" in result.summary["warnings"][0]
    assert f"cut off after {count} readouts" in result.images[0].attributes


def test_a_session_that_no_process_could_be_started_for_is_kept(scan, expected, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    settings = {"mrsi_reference_ppm": "4.66"}
    with serving(spool=SpoolOptions(tmp_path), warm=0, scan=ScanOptions(device="cpu", settings=settings)) as live:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        assert "no session process could be started" in error_of(session(live.port, whole(scan)))
        assert last(tmp_path, State.FAILED, ".log").end.closed
        monkeypatch.undo()
    assert_same_images(recover.recover(tmp_path, 1, {}).images, expected)


def test_a_console_hears_that_its_raw_data_cannot_be_kept_and_gets_its_images(scan, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with serving(spool=SpoolOptions(tmp_path / "file" / "spool")) as live:
        answer = session(live.port, whole(scan))
    warnings = [m.text for m in answer if isinstance(m, Text) and m.text.startswith("WARNING ")]
    assert len(warnings) == 1
    assert "the raw data of session 1 are not kept" in warnings[0]
    assert "the reconstruction goes on" in warnings[0]
    assert_same_images(images_of(answer), images_here({}))


def test_a_server_that_was_killed_loses_nothing_it_had_received(scan, capsys, tmp_path):
    folder = tmp_path / "spool"
    command = [sys.executable, "-m", "mrsi_gadgets.cli", "serve", "--port", "0", "--device", "cpu", "--spool"]
    with subprocess.Popen([*command, str(folder)], stderr=subprocess.PIPE, text=True, process_group=0) as process:
        try:
            line = ""
            while "listening on" not in line:
                line = process.stderr.readline()
                assert line
            with connected(int(line.rpartition(":")[2])) as sock:
                sock.sendall(sent(whole(scan)[:-1]))
                count = len(scan.readouts)
                assert wait_until(lambda: [i.end.readouts for i in list_sessions(folder)] == [count])
                assert list_sessions(folder)[0].state is State.RUNNING
                process.kill()
        finally:
            process.kill()
        process.stderr.close()
    assert main(["recover", "--spool", str(folder)]) == 0
    listed = capsys.readouterr().out
    assert "interrupted" in listed
    assert "the server was killed or lost its power" in listed
    assert scan.protocol.protocol_name not in listed
    command = ["recover", "1", "--spool", str(folder), "--config", "fourier", "-o", str(tmp_path / "result")]
    assert main(command) == 1
    assert "add --incomplete" in capsys.readouterr().err
    assert main([*command, "--incomplete"]) == 0
    for ours, theirs in zip(read_images(tmp_path / "result" / "images.h5"), images_here({}), strict=True):
        assert ours.data.tobytes() == theirs.data.tobytes()
    spool = Spool(SpoolOptions(folder))  # as the next server does
    spool.start()
    assert last(folder, State.INTERRUPTED).end.readouts == count
    spool.stop()
