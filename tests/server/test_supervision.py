"""Session processes beyond a limit: ended from outside, and one sentence says why and where the raw data are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from mrsi_gadgets.io.spool import SpoolOptions
from mrsi_gadgets.io.spool_archive import list_sessions
from mrsi_gadgets.io.spool_files import spool_files
from mrsi_gadgets.io.spool_log import State
from mrsi_gadgets.server.watchdog import ProcessLimits, Watchdog, machine_memory
from mrsi_gadgets.stream.messages import Close, ConfigFile, ConfigText, ErrorText
from mrsi_gadgets.stream.wire import encode
from peers import receive_until_end
from served import NODE_CONFIG, connected, error_of, images_of, serving, whole
from small_scan import small_scan

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has"),
]


def wait_until(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture
def process():
    """Start a Python program; it is gone after the test."""
    started = []

    def start(program: str) -> tuple[subprocess.Popen, socket.socket]:
        ours, theirs = socket.socketpair()
        one = subprocess.Popen([sys.executable, "-c", program], stdin=theirs, stdout=subprocess.DEVNULL)
        started.append((one, ours))
        theirs.close()
        return started[-1]

    yield start
    for one, pair in started:
        one.kill()
        one.wait()
        pair.close()


def watch(dog: Watchdog, seconds: float, *, ended: bool = False, passed=lambda: 0) -> str | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and dog.reason is None:
        dog.look(passed(), ended)
        time.sleep(0.02)
    return dog.reason


QUICK = ProcessLimits(hang_s=0.5, silence_s=30.0)


def test_a_process_that_waits_for_a_pausing_scan_is_left_alone(process):
    sleeper, pair = process("import sys; sys.stdin.read()")
    time.sleep(0.3)
    assert watch(Watchdog(sleeper, pair, QUICK), 1.5) is None
    assert sleeper.poll() is None


def test_a_process_that_leaves_its_input_unread_is_ended(process):
    sleeper, pair = process("import time; time.sleep(60)")
    pair.sendall(b"readouts")
    assert "it hung: no sign of work for 0.5 s" in watch(Watchdog(sleeper, pair, QUICK), 10)
    assert sleeper.wait() == -signal.SIGKILL


def test_a_stopped_process_is_ended_after_the_scan(process):
    worker, pair = process("while True: pass")
    assert watch(Watchdog(worker, pair, QUICK), 1.5, ended=True) is None
    os.kill(worker.pid, signal.SIGSTOP)
    assert "it hung" in watch(Watchdog(worker, pair, QUICK), 10, ended=True)
    assert worker.wait() == -signal.SIGKILL


def test_a_process_that_computes_for_ever_is_ended_and_one_that_talks_is_not(process):
    worker, pair = process("while True: pass")
    limits = ProcessLimits(hang_s=60.0, silence_s=0.6)
    ticks = iter(range(10**6))
    assert watch(Watchdog(worker, pair, limits), 1.2, ended=True, passed=lambda: next(ticks)) is None
    assert watch(Watchdog(worker, pair, limits), 1.2, ended=False) is None
    assert "said nothing for 0.6 s after the scan" in watch(Watchdog(worker, pair, limits), 10, ended=True)


def test_time_in_which_nobody_looked_does_not_count(process, monkeypatch):
    worker, pair = process("import time; time.sleep(60)")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    dog = Watchdog(worker, pair, ProcessLimits(hang_s=60.0, silence_s=100.0))
    for moment in (1.0, 500.0, 501.0):  # the client was slow to take an image
        now[0] = moment
        dog.look(0, scan_ended=True)
    assert dog.reason is None


def test_a_process_that_takes_more_memory_than_it_may_is_ended(process):
    worker, pair = process("x = bytearray(200 << 20); import time; time.sleep(60)")
    dog = Watchdog(worker, pair, ProcessLimits(memory_bytes=100 << 20, hang_s=60.0))
    assert "it had taken more memory than the 0.0977 GiB it may" in watch(dog, 20)
    assert 0 < ProcessLimits().memory() < machine_memory()


def test_a_session_process_that_was_stopped_is_ended_and_its_raw_data_stay(tmp_path):
    scan = small_scan()
    with serving(spool=SpoolOptions(tmp_path), limits=ProcessLimits(hang_s=1.0)) as live, connected(live.port) as sock:
        messages = whole(scan)
        sock.sendall(b"".join(encode(m) for m in messages[:40]))
        assert wait_until(lambda: any(live._sessions.values()))
        (worker,) = [one for one in live._sessions.values() if one is not None]
        os.kill(worker.process.pid, signal.SIGSTOP)
        sock.sendall(b"".join(encode(m) for m in messages[40:]))
        answer = receive_until_end(sock)
        assert wait_until(lambda: [f.state for f in spool_files(tmp_path)] == [State.FAILED])
    assert not images_of(answer)
    assert "(it was ended because it hung: no sign of work for 1 s); its raw data are kept" in error_of(answer)
    assert list_sessions(tmp_path)[0].end.readouts == len(scan.readouts)


def test_a_death_is_told_at_once_and_a_stop_does_not_wait_for_the_rest_of_the_scan(tmp_path, caplog):
    messages = whole(small_scan())
    with serving(spool=SpoolOptions(tmp_path), web_port=0) as live, connected(live.port) as sock:
        sock.sendall(b"".join(encode(m) for m in messages[:40]))
        assert wait_until(lambda: any(live._sessions.values()))
        (worker,) = [one for one in live._sessions.values() if one is not None]
        os.kill(worker.process.pid, signal.SIGKILL)
        # the peer is silent, as a scanner between two readouts; nothing is over for it
        assert wait_until(lambda: "session 1: the reconstruction process of session 1 died" in caplog.text, 10)
        assert wait_until(lambda: live._monitor.summaries()[0]["state"] == "failed", 10)
        (shown,) = live._monitor.summaries()
        assert "died before its result was complete (ended by SIGKILL" in shown["failure"]
        assert shown["ended"] is None
        begin = time.monotonic()
        live.stop()
        assert time.monotonic() - begin < 10
        answer = receive_until_end(sock)
    assert "died before its result was complete (ended by SIGKILL" in error_of(answer)
    assert isinstance(answer[-1], Close)
    assert [f.state for f in spool_files(tmp_path)] == [State.FAILED]


def test_a_refusal_is_shown_at_once_too():
    messages = whole(small_scan(), ConfigFile("nothing"))
    with serving(web_port=0) as live, connected(live.port) as sock:
        sock.sendall(b"".join(encode(m) for m in messages[:40]))
        assert wait_until(lambda: live._monitor.summaries() and live._monitor.summaries()[0]["state"] == "failed", 20)
        (shown,) = live._monitor.summaries()
        assert "nothing" in shown["failure"]
        assert shown["ended"] is None
        sock.sendall(b"".join(encode(m) for m in messages[40:]))
        assert "nothing" in error_of(receive_until_end(sock))
        assert wait_until(lambda: live._monitor.summaries()[0]["ended"] is not None)


def test_a_gadgetron_is_told_of_a_session_process_that_took_too_much_memory():
    with serving(limits=ProcessLimits(memory_bytes=50 << 20)) as live, connected(live.port) as sock:
        sock.sendall(b"".join(encode(m) for m in whole(small_scan(), ConfigText(NODE_CONFIG))))
        error, close = receive_until_end(sock)
    assert isinstance(error, ErrorText)
    assert "it had taken more memory than the 0.0488 GiB it may" in error.text
    assert isinstance(close, Close)
