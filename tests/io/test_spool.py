"""Raw data on disk: what a log keeps through crashes, what is removed to make room, what the .h5 of it holds."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io import spool_archive
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.spool import CHECK_BYTES, Spool, SpoolOptions, default_folder
from mrsi_gadgets.io.spool_archive import SessionInfo, archive, export, find_session, list_sessions, open_session
from mrsi_gadgets.io.spool_files import held, spool_files
from mrsi_gadgets.io.spool_log import MAGIC, End, LogReader, LogWriter, State
from mrsi_gadgets.recover import remove
from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, Header, Text, Waveform
from mrsi_gadgets.stream.wire import encode
from peers import HEADER_XML, image, readout, waveform

HEADER = HEADER_XML.replace("/>", "><encoding/></ismrmrdHeader>")


def session_bytes(readouts: int = 7, *, close: bool = True) -> bytes:
    """A session with everything that a console may send."""
    items = [readout(3, 5, counter=i, dimensions=i % 3) for i in range(readouts)]
    items[2:2] = [waveform(), Text('{"parameters": {}}')]
    messages = [ConfigFile("fourier"), Header(HEADER), *items, *([Close()] if close else [])]
    return b"".join(encode(message) for message in messages)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder):
    made = Spool(SpoolOptions(folder, reserve_bytes=0))
    yield made
    made.stop()


def keep(spool: Spool, data: bytes, state: State = State.FINISHED, *, readouts: int = 7, portion: int = 100) -> int:
    """A whole session; the number it got."""
    session = spool.open({"scan": {}})
    for at in range(0, len(data), portion):
        session.keep(memoryview(data)[at : at + portion])
    session.end(state, "" if state is State.FINISHED else "it failed", readouts=readouts, closed=True)
    return session.number


def test_a_log_gives_back_every_byte_in_its_portions(tmp_path):
    path = tmp_path / "session-000001.log"
    writer = LogWriter(path, {"number": 1})
    portions = [bytes([i]) * (i * i) for i in range(1, 40)]
    for portion in portions:
        writer.append(memoryview(portion))
    writer.end(End(State.FAILED, "µ" * 5000, 3, closed=True))
    writer.close()
    log = LogReader(path)
    assert list(log.chunks()) == portions
    assert log.whole
    assert log.begin == {"number": 1}
    assert (log.end.state, log.end.readouts, log.end.closed) == (State.FAILED, 3, True)
    assert set(log.end.cause) == {"µ"}


def test_a_log_cut_off_anywhere_gives_every_record_before_the_cut(tmp_path):
    path, cut = tmp_path / "whole.log", tmp_path / "cut.log"
    writer = LogWriter(path, {})
    start = writer.size
    ends = []
    for i in range(1, 6):
        writer.append(bytes([i]) * 7 * i)
        ends.append(writer.size)
    writer.close()
    data = path.read_bytes()
    for size in range(start, len(data) + 1):
        cut.write_bytes(data[:size])
        log = LogReader(cut)
        assert len(list(log.chunks())) == sum(end <= size for end in ends)
        assert log.whole == (size == start or size in ends)
        assert log.end is None
    cut.write_bytes(MAGIC)
    with pytest.raises(DataError, match="no raw log of a session"):
        LogReader(cut)


def test_a_flipped_bit_ends_what_is_read_and_is_told(tmp_path):
    path = tmp_path / "flipped.log"
    writer = LogWriter(path, {})
    for i in range(4):
        writer.append(bytes([i]) * 50)
    size = writer.size
    writer.close()
    data = bytearray(path.read_bytes())
    data[size - 80] ^= 4  # within the third record
    path.write_bytes(data)
    log = LogReader(path)
    assert list(log.chunks()) == [bytes([i]) * 50 for i in range(2)]
    assert not log.whole


def test_what_was_kept_survives_a_server_that_is_killed(folder):
    """The bytes are in the system's hands when `keep` returns; the lock goes with the process."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from mrsi_gadgets.io.spool import CHECK_BYTES, Spool, SpoolOptions\n"
        f"session = Spool(SpoolOptions(Path({str(folder)!r}), reserve_bytes=0)).open({{}})\n"
        "session.keep(sys.stdin.buffer.read())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    data = session_bytes(close=False)
    done = subprocess.run([sys.executable, "-c", program], input=data + data[:200], check=False, timeout=60)
    assert done.returncode == -9
    (info,) = list_sessions(folder)
    assert (info.state, info.end.readouts, info.end.closed) == (State.INTERRUPTED, 7, False)
    assert "killed or lost its power" in info.end.cause
    again = Spool(SpoolOptions(folder, reserve_bytes=0))
    again.start()
    again.stop()
    assert keep(again, session_bytes()) == 2


def test_files_are_for_their_owner_only_and_numbers_are_never_used_twice(spool, folder):
    assert [keep(spool, session_bytes()) for _ in range(3)] == [1, 2, 3]
    other = Spool(SpoolOptions(folder, reserve_bytes=0))  # a second server on the same folder
    assert keep(other, session_bytes()) == 4
    assert keep(spool, session_bytes()) == 5
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.path.stat().st_mode) for file in spool_files(folder)} == {0o600}


def test_a_session_without_a_readout_leaves_nothing(spool, folder):
    keep(spool, encode(ConfigFile("fourier")) + encode(Close()), readouts=0)
    assert spool_files(folder) == []


def test_room_is_made_by_the_oldest_finished_sessions_and_never_by_others(folder, tmp_path):
    keep(Spool(SpoolOptions(tmp_path / "one", reserve_bytes=0)), session_bytes())
    size = spool_files(tmp_path / "one")[0].path.stat().st_size
    # room for five and a half beside what a session that begins is given in advance
    spool = Spool(SpoolOptions(folder, limit_bytes=CHECK_BYTES + 5 * size + size // 2, reserve_bytes=0))
    for state in (State.FINISHED, State.FAILED, State.FINISHED, State.ABORTED, State.FINISHED):
        keep(spool, session_bytes(), state)
    running = spool.open({})
    running.keep(session_bytes())
    assert [file.number for file in spool_files(folder)] == [1, 2, 3, 4, 5, 6]
    for _ in range(3):
        keep(spool, session_bytes(), State.FAILED)
    assert [file.number for file in spool_files(folder)] == [2, 4, 6, 7, 8, 9]
    full = spool.open({})
    assert not full.kept
    assert "no finished session is left to remove" in full.problem
    assert "raise --spool-limit" in full.problem
    full.keep(b"something")
    full.end(State.FINISHED, readouts=1, closed=True)
    assert [file.number for file in spool_files(folder)] == [2, 4, 6, 7, 8, 9]
    running.end(State.FINISHED, readouts=7, closed=True)


def test_a_disk_that_is_nearly_full_is_left_alone(folder):
    spool = Spool(SpoolOptions(folder, reserve_bytes=1 << 60))
    session = spool.open({})
    assert "has only" in session.problem
    assert "make room" in session.problem
    assert not session.kept


def test_a_write_that_fails_is_told_once_and_what_was_kept_before_stays(spool, folder, monkeypatch):
    told = []
    session = spool.open({})
    session.on_problem = told.append
    data = session_bytes(20, close=False)
    session.keep(data)
    real = os.writev

    def full(descriptor, parts):
        real(descriptor, [parts[0]])  # a part of the record still fits
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    for _ in range(3):
        session.keep(encode(readout()))
    monkeypatch.undo()
    session.end(State.FINISHED, readouts=23, closed=True)
    (sentence,) = told
    assert "are not kept from here on" in sentence
    assert "No space left on device" in sentence
    assert sentence.endswith("the reconstruction goes on")
    (info,) = list_sessions(folder)
    assert not info.end.complete
    assert list(LogReader(info.file.path).chunks()) == [data]


def test_a_real_limit_of_file_size_is_met_as_an_error_and_not_as_a_signal(folder):
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from mrsi_gadgets.io.spool import CHECK_BYTES, Spool, SpoolOptions\n"
        "from mrsi_gadgets.io.spool_log import State\n"
        f"session = Spool(SpoolOptions(Path({str(folder)!r}), reserve_bytes=0)).open({{}})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "for _ in range(100):\n"
        "    session.keep(b'x' * 997)\n"
        "session.end(State.FAILED, readouts=1, closed=True)\n"
        "print(session.problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "File too large" in done.stdout
    (file,) = spool_files(folder)
    log = LogReader(file.path)
    assert {bytes(chunk) for chunk in log.chunks()} == {b"x" * 997}
    assert log.whole
    assert 15000 < file.path.stat().st_size <= 20000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20000


@pytest.mark.parametrize(("mode", "told"), [(0o700, False), (0o755, False), (0o770, True), (0o1777, True)])
def test_a_folder_that_others_may_write_to_is_warned_of(folder, caplog, mode, told):
    folder.mkdir()
    folder.chmod(mode)
    made = Spool(SpoolOptions(folder, reserve_bytes=0))
    made.start()
    made.stop()
    assert ("others may write to" in caplog.text) is told


def test_a_folder_that_cannot_be_made_is_told_and_nothing_raises(tmp_path):
    (tmp_path / "file").write_text("in the way")
    spool = Spool(SpoolOptions(tmp_path / "file" / "spool"))
    session = spool.open({})
    session.keep(b"something")
    session.end(State.FINISHED, readouts=1, closed=True)
    assert "are not kept" in session.problem
    assert "Not a directory" in session.problem


def assert_same(found, expected) -> None:
    assert found.head.tobytes() == expected.head.tobytes()
    np.testing.assert_array_equal(found.data, expected.data)
    if getattr(expected, "trajectory", None) is None:
        assert getattr(found, "trajectory", None) is None
    else:
        np.testing.assert_array_equal(found.trajectory, expected.trajectory)


@pytest.mark.parametrize("form", ["log", "h5"])
def test_a_session_reads_back_with_everything_its_peer_sent(spool, folder, form):
    number = keep(spool, session_bytes(), portion=97)
    if form == "h5":
        assert archive(spool_files(folder)[0].path).name == f"session-{number:06d}.finished.h5"
    info = find_session(folder, number)
    assert info.file.path.suffix == f".{form}"
    assert (info.state, info.end.readouts, info.end.closed) == (State.FINISHED, 7, True)
    kept = open_session(info)
    items = list(kept.items)
    assert kept.config.name == "fourier"
    assert kept.header_xml == HEADER
    readouts = [item for item in items if isinstance(item, Acquisition)]
    for i, found in enumerate(readouts):
        assert_same(found, readout(3, 5, counter=i, dimensions=i % 3))
    at = next(i for i, item in enumerate(items) if isinstance(item, Text))
    assert sum(isinstance(item, Acquisition) for item in items[:at]) == 2
    (wave,) = [item for item in items if isinstance(item, Waveform)]
    assert_same(wave, waveform())


def test_the_h5_is_read_by_mrsi_and_by_ismrmrd(spool, folder):
    keep(spool, session_bytes())
    path = archive(spool_files(folder)[0].path)
    assert [file.path for file in spool_files(folder)] == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_scan(path).acquisitions) == 7
    with ismrmrd.File(path, "r") as file:
        found = file["dataset"].acquisitions[3]
        np.testing.assert_array_equal(found.data, readout(3, 5, counter=3).data)
        assert found.scan_counter == 3


def test_an_interrupted_session_becomes_an_h5_without_its_last_half_readout(spool, folder):
    session = spool.open({})
    session.keep(session_bytes(close=False) + encode(readout(2, 50))[:300])
    session._writer.close()  # as the system does for a killed server
    path = archive(spool_files(folder)[0].path)
    assert path.name == "session-000001.interrupted.h5"
    info = find_session(folder, 1)
    assert (info.state, info.end.readouts, info.end.closed) == (State.INTERRUPTED, 7, False)


@pytest.mark.parametrize("odd", [b"\xff\xff garbage", encode(image())], ids=["garbage", "image"])
def test_a_log_that_an_h5_cannot_hold_stays_a_log(spool, folder, odd):
    keep(spool, session_bytes(close=False) + odd, State.FAILED)
    path = spool_files(folder)[0].path
    with pytest.raises(DataError):
        archive(path)
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    assert find_session(folder, 1).end.readouts == 7


def test_the_disk_is_told_to_keep_a_running_session_and_its_name(spool, folder, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append("data"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append("name"), real(descriptor))[1])
    session = spool.open({})
    session.sync()
    session.sync()  # nothing has come since
    session.keep(b"something")
    session.sync()
    assert synced == ["data", "name", "data"]
    monkeypatch.undo()
    session.end(State.FAILED, readouts=1, closed=False)


def test_a_running_server_syncs_by_itself(folder, monkeypatch):
    monkeypatch.setattr("mrsi_gadgets.io.spool.SYNC_S", 0.02)
    spool = Spool(SpoolOptions(folder, reserve_bytes=0))
    spool.start()
    session = spool.open({})
    session.keep(session_bytes())
    deadline = time.monotonic() + 20
    while session._dirty and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not session._dirty
    session.end(State.FAILED, readouts=0, closed=False)
    spool.stop()


def test_a_session_that_still_runs_is_not_touched(spool, folder):
    session = spool.open({})
    session.keep(session_bytes())
    (info,) = list_sessions(folder)
    assert info.state is State.RUNNING
    assert archive(info.file.path) is None
    session.end(State.FINISHED, readouts=7, closed=True)
    assert find_session(folder, 1).state is State.FINISHED


def test_export_writes_what_any_tool_reads(spool, folder, tmp_path):
    keep(spool, session_bytes(), State.FAILED)
    assert export(find_session(folder, 1), tmp_path / "out.h5") == 7
    assert len(read_scan(tmp_path / "out.h5").acquisitions) == 7
    assert len(read_scan(tmp_path / "out.h5").waveforms) == 1


def test_the_folder_follows_the_xdg_convention(monkeypatch, tmp_path):
    monkeypatch.delenv("MRSI_SPOOL")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "mrsi-gadgets" / "spool"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".local" / "state" / "mrsi-gadgets" / "spool"
    monkeypatch.setenv("MRSI_SPOOL", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"


@pytest.mark.parametrize("who", ["a server that starts", "who lists sessions"])
def test_a_log_that_is_just_being_made_is_not_lost_to_others(folder, monkeypatch, who):
    others = Spool(SpoolOptions(folder, reserve_bytes=0))

    class Watched(LogWriter):
        def __init__(self, path: Path, begin: dict) -> None:
            super().__init__(path, begin)
            if who == "a server that starts":
                others._tidy()
            else:
                file = path.open("rb")
                fcntl.flock(file, fcntl.LOCK_SH)
                threading.Timer(0.2, file.close).start()
            monkeypatch.setattr("mrsi_gadgets.io.spool.LogWriter", LogWriter)

    monkeypatch.setattr("mrsi_gadgets.io.spool.LogWriter", Watched)
    made = Spool(SpoolOptions(folder, reserve_bytes=0))
    session = made.open({"scan": {}})
    assert session.problem == ""
    session.keep(session_bytes())
    others._tidy()
    session.end(State.FINISHED, readouts=7, closed=True)
    (info,) = list_sessions(folder)
    assert (info.state, info.end.readouts) == (State.FINISHED, 7)


def test_a_log_that_somebody_removes_is_told_at_once(spool, folder):
    told: list[str] = []
    session = spool.open({"scan": {}})
    session.on_problem = told.append
    session.keep(session_bytes())
    assert session.whole
    shutil.rmtree(folder)
    assert not session.whole
    for _ in range(3):
        session.keep(session_bytes())
    (sentence,) = told
    assert "not kept from here on: somebody has removed session-000001.log" in sentence
    session.end(State.FINISHED, readouts=7, closed=True)
    keep(spool, session_bytes())
    assert [info.state for info in list_sessions(folder)] == [State.FINISHED]


def test_drafts_of_conversions_that_were_killed_go_and_those_of_others_stay(spool, folder):
    number = keep(spool, session_bytes(), State.FAILED)
    drafts = [
        folder / f"{dots}session-{number:06d}.failed.h5.draft.part{end}" for dots, end in ((".", ""), ("..", ".7.part"))
    ]
    for draft in drafts:
        draft.write_bytes(b"raw")
    with held(find_session(folder, number).file.path) as ours:
        assert ours
        Spool(SpoolOptions(folder))._tidy()
        assert all(draft.exists() for draft in drafts)
    Spool(SpoolOptions(folder))._tidy()
    assert not any(draft.exists() for draft in drafts)


@pytest.mark.parametrize("narrow", ["limit", "disk"])
def test_a_conversion_does_not_take_the_room_of_sessions_to_come(folder, monkeypatch, narrow):
    monkeypatch.setattr("mrsi_gadgets.io.spool.CHECK_BYTES", 1000)
    size = len(session_bytes())
    limit = 2 * size if narrow == "limit" else 1 << 30
    made = Spool(SpoolOptions(folder, limit, reserve_bytes=0))
    number = keep(made, session_bytes(), State.FAILED)
    if narrow == "disk":
        monkeypatch.setattr(made, "_free", lambda: size)
    path = find_session(folder, number).file.path
    made._archive(path)
    assert [p.name for p in folder.iterdir()] == [path.name]
    roomy = Spool(SpoolOptions(folder, 1 << 30, reserve_bytes=0))
    roomy._archive(path)
    assert [p.suffix for p in folder.iterdir()] == [".h5"]


def test_a_server_that_stops_does_not_wait_for_a_conversion(spool, folder, tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\necho began > began\nexec sleep 60\n")
    slow.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(slow))
    spool.start()
    number = keep(spool, session_bytes(), State.FAILED)
    deadline = time.monotonic() + 20
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    start = time.monotonic()
    spool.stop()
    assert time.monotonic() - start < 10
    assert find_session(folder, number).file.is_log


def test_a_session_removed_while_it_is_converted_does_not_come_back(spool, folder, monkeypatch):
    number = keep(spool, session_bytes(), State.FAILED)
    path = find_session(folder, number).file.path
    real = spool_archive._convert

    def convert(info: SessionInfo, draft: Path) -> None:
        real(info, draft)
        with pytest.raises(DataError, match="just being turned into an MRD file"):
            remove(folder, [number])
        path.unlink()

    monkeypatch.setattr(spool_archive, "_convert", convert)
    assert archive(path) is None
    assert list(folder.iterdir()) == []


def test_what_cannot_be_read_can_be_removed(folder):
    folder.mkdir()
    for name, content in (
        ("session-000001.log", b""),
        ("session-000002.failed.h5", b"x" * 100),
        ("session-000003.log", MAGIC),
    ):
        (folder / name).write_bytes(content)
    assert len(list_sessions(folder)) == 3
    assert remove(folder, [1, 2]) == "removed session 1 (interrupted), session 2 (failed)"
    assert [path.name for path in folder.iterdir()] == ["session-000003.log"]
    with pytest.raises(DataError, match="holds no session 2"):
        remove(folder, [2])
