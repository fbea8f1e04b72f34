"""A live server: the same images as in this process, many sessions, and the right words when something dies."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.meta import from_xml, values_of
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.server.supervisor import Server
from mrsi_gadgets.stream.messages import Close, ConfigFile, ConfigText, ErrorText, Header, Image, Message, Query, Text
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.wire import Decoder, encode
from peers import receive_until_end
from served import (
    NODE_CONFIG,
    OPTIONS,
    SESSION_S,
    assert_same_images,
    connected,
    error_of,
    images_of,
    opening,
    serving,
    session,
    session_in_thread,
    whole,
)
from small_scan import SmallScan, small_scan

pytestmark = pytest.mark.timeout(180)
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def server():
    with serving() as live:
        yield live


@pytest.fixture
def scan():
    return small_scan()


@pytest.fixture(scope="module")
def in_process():
    """Images of the scan by recipe `fourier`, computed here."""
    return images_here()


def images_here(recipe: str = "fourier", scan: SmallScan | None = None) -> list[Image]:
    here = scan or small_scan()
    given = replay.Scan(here.header_xml, here.readouts, len(here.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe=recipe, device="cpu")).images


def children(parent: int | None = None) -> set[int]:
    """Processes that this one (or `parent`) has started and that have not been waited for."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[1]) == (parent or os.getpid()):
            found.add(int(status.parent.name))
    return found


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fourier", "subspace"])
def test_a_live_scan_and_one_in_this_process_give_the_same_images_to_the_bit(server, scan, recipe):
    answer = session(server.port, whole(scan, recipe))
    assert isinstance(answer[-1], Close)
    assert_same_images(images_of(answer), images_here(recipe))


def test_spectra_of_all_voxels_come_the_same_to_the_bit_live_and_in_this_process(server, scan):
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    options = ScanOptions(recipe="subspace", device="cpu", spectra="all")
    here = replay.replay_here(given, options).images
    live = replay.replay_to(given, f"127.0.0.1:{server.port}", ScanOptions(recipe="subspace", spectra="all")).images
    assert_same_images(live, here)
    fitted = gather(live).fitted()
    assert len(fitted.voxels) == int(gather(live).mask[0].sum()) > 20
    usual = replay.replay_here(given, ScanOptions(recipe="subspace", device="cpu")).images
    assert gather(usual).fitted() is None


@pytest.mark.parametrize("key", ["consoleImagesSpectra"])
def test_a_peer_chooses_its_spectra_and_a_wrong_choice_is_refused(scan, key):
    config, header = opening(scan)

    def answer(choice: str) -> list[Message]:
        text = Text(json.dumps({"version": "1.1.0", "parameters": {key: choice}}))
        return session_in_thread([config, header, text, *scan.readouts, Close()])

    assert gather(images_of(answer("all"))).fitted() is not None
    assert gather(images_of(answer("none"))).spectra == []
    assert any("must be one of examples, all, none" in m.text for m in answer("some") if isinstance(m, Text))


def test_a_client_hears_of_the_progress_in_eight_columns_and_levels(scan):
    texts = [m.text for m in session_in_thread(whole(scan)) if isinstance(m, Text)]
    assert any("readouts received" in text for text in texts)
    assert {text[:8] for text in texts} == {"INFO    "}


def test_a_client_hears_the_warnings_of_its_scan(scan):
    answer = session_in_thread(whole(scan.with_readouts(scan.water + scan.metabolites)))
    (warning,) = [m.text for m in answer if isinstance(m, Text) and m.text.startswith("WARNING ")]
    assert "no noise scan" in warning
    assert "no noise scan" in images_of(answer)[0].attributes


@pytest.mark.parametrize("text", ["[" * 200_000, "no JSON", "[1, 2]"])
def test_a_text_after_the_header_that_is_no_json_of_parameters_is_ignored_with_a_warning(scan, text):
    config, header = opening(scan)
    answer = session_in_thread([config, header, Text(text), *scan.readouts, Close()])
    assert images_of(answer)
    texts = [m.text for m in answer if isinstance(m, Text)]
    assert any(t.startswith("WARNING ") and "is not JSON with 'parameters'" in t for t in texts)


def test_two_sessions_at_once_get_their_own_results(server, scan, in_process):
    other = small_scan(seed=4)
    with connected(server.port) as first, connected(server.port) as second:
        # both are open and half sent before either is complete
        for sock, one in ((first, scan), (second, other)):
            sock.sendall(b"".join(encode(m) for m in [*opening(one), *one.readouts[:60]]))
        for sock, one in ((second, other), (first, scan)):
            sock.sendall(b"".join(encode(m) for m in [*one.readouts[60:], Close()]))
        answers = [receive_until_end(first), receive_until_end(second)]
    assert_same_images(images_of(answers[0]), in_process)
    assert_same_images(images_of(answers[1]), images_here(scan=other))


def test_what_a_peer_says_does_not_reach_the_log(scan, caplog):
    name = "DOE^JANE"
    with caplog.at_level(logging.DEBUG):
        answer = session_in_thread([*opening(scan), Text("{}"), Text(name), *scan.readouts, Text(name), Close()])
        node = [ConfigText(NODE_CONFIG), Query(1, name), Header(scan.header_xml), Close()]
        session_in_thread(node)
    assert images_of(answer)
    assert "a text of 8 characters came from the peer" in caplog.text
    assert name not in caplog.text


def test_parameters_after_the_header_choose_the_recipe_and_override_the_header(scan):
    named = Text(json.dumps({"version": "1.1.0", "parameters": {"config": "fourier", "mrsiReferencePpm": "4.7"}}))
    config, header = opening(scan, "openrecon")
    answer = session_in_thread([config, header, named, *scan.readouts, Close()])
    provenance = images_of(answer)[0].attributes
    assert "setting mrsi_reference_ppm" in provenance
    assert '"recipe": "fourier"' in provenance.replace("&quot;", '"')


def test_ten_sessions_one_after_another_leave_no_process_and_no_descriptor_behind(scan):
    before_children, before_descriptors = children(), open_descriptors()
    with serving() as live:
        for number in range(10):
            # the short way through everything, and a whole scan now and then
            messages = whole(scan) if number == 4 else [ConfigFile("fourier"), Close()]
            assert isinstance(session(live.port, messages)[-1], Close)
        # all that is left is the listening socket and one waiting process with our two ends to it
        assert wait_until(lambda: len(children() - before_children) == 1)
        assert wait_until(lambda: open_descriptors() <= before_descriptors + 3)
    assert wait_until(lambda: children() <= before_children)
    assert wait_until(lambda: open_descriptors() <= before_descriptors)


# --- peers that go away, workers that die ---------------------------------------------------------------------------


def test_a_client_that_goes_away_before_close_gets_no_result_and_the_next_one_is_served(server, scan, in_process):
    lost = connected(server.port)
    lost.sendall(b"".join(encode(m) for m in whole(scan)[:-1]))
    lost.shutdown(socket.SHUT_WR)
    answer = receive_until_end(lost)
    lost.close()
    assert not images_of(answer)
    assert "without CLOSE" in error_of(answer)
    assert_same_images(images_of(session(server.port, whole(scan))), in_process)


class Listener:
    """Reads what a server says, up to a moment that a test waits for, then the rest."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.decoder, self.heard = sock, Decoder(), []

    def until(self, condition) -> list[Message]:
        while not any(condition(message) for message in self.heard):
            data = self.sock.recv(1 << 16)
            assert data, f"the server ended first: {[m for m in self.heard if isinstance(m, Text)]}"
            self.heard.extend(self.decoder.feed(data))
        return self.heard

    def rest(self) -> list[Message]:
        while not self.decoder.closed and (data := self.sock.recv(1 << 16)):
            self.heard.extend(self.decoder.feed(data))
        return self.heard


def frames_of(messages) -> set[str]:
    return {value for image in images_of(messages) for value in values_of(from_xml(image.attributes), "mrsi_frame")}


def test_a_scan_that_was_computed_but_never_closed_delivers_no_image(server, scan):
    with connected(server.port) as lost:
        listener = Listener(lost)
        lost.sendall(b"".join(encode(m) for m in whole(scan)[:-1]))
        before = listener.until(lambda m: isinstance(m, Text) and "images of frame 0" in m.text)
        assert not images_of(before)
        lost.shutdown(socket.SHUT_WR)
        answer = listener.rest()
    assert not images_of(answer)
    assert "without CLOSE" in error_of(answer)


def test_a_dynamic_scan_that_is_aborted_in_its_second_frame_delivers_the_first_only(server):
    dynamic = small_scan(frames=2)
    with connected(server.port) as lost:
        listener = Listener(lost)
        lost.sendall(b"".join(encode(m) for m in whole(dynamic)[:-2]))  # the second frame lacks its last readout
        listener.until(lambda m: isinstance(m, Image))
        lost.shutdown(socket.SHUT_WR)
        answer = listener.rest()
    assert "without CLOSE" in error_of(answer)
    assert frames_of(answer) == {"0"}
    with connected(server.port) as lost:  # the second frame is complete and computed, but nobody said that it is all
        listener = Listener(lost)
        lost.sendall(b"".join(encode(m) for m in whole(dynamic)[:-1]))
        listener.until(lambda m: isinstance(m, Text) and "images of frame 1" in m.text)
        lost.shutdown(socket.SHUT_WR)
        answer = listener.rest()
    assert frames_of(answer) == {"0"}
    assert frames_of(session(server.port, whole(dynamic))) == {"0", "1"}


def test_a_client_that_is_reset_in_mid_scan_does_no_harm(server, scan, in_process):
    with connected(server.port) as lost:
        lost.sendall(b"".join(encode(m) for m in whole(scan)[:50]))
        lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert_same_images(images_of(session(server.port, whole(scan))), in_process)


def kill_the_worker_of(live: Server, before: set[int]) -> None:
    """SIGKILL the process of the only running session."""
    assert wait_until(lambda: any(live._sessions.values()))
    (worker,) = [process for process in live._sessions.values() if process is not None]
    assert worker.process.pid in children() - before
    os.kill(worker.process.pid, signal.SIGKILL)


def test_a_client_hears_at_once_that_its_session_was_killed_and_then_gets_close(scan):
    before = children()
    with serving(warm=1) as live, connected(live.port) as sock:
        messages = whole(scan)
        sock.sendall(b"".join(encode(m) for m in messages[:40]))
        kill_the_worker_of(live, before)
        heard = sock.recv(1 << 16)  # the scan still runs
        sock.sendall(b"".join(encode(m) for m in messages[40:]))
        rest = receive_after(heard, sock)
    assert "died before its result was complete (ended by SIGKILL" in error_of(rest)
    assert not images_of(rest)


def receive_after(begun: bytes, sock: socket.socket):
    """Messages of a stream whose first bytes have been read already."""

    class Joined:
        def __init__(self) -> None:
            self.first = begun

        def recv(self, size: int) -> bytes:
            data, self.first = self.first, b""
            return data or sock.recv(size)

    return receive_until_end(Joined())


def test_a_gadgetron_hears_error_after_its_close_that_its_session_was_killed(scan):
    before = children()
    with serving(warm=1) as live, connected(live.port) as sock:
        messages = whole(scan, ConfigText(NODE_CONFIG))
        sock.sendall(b"".join(encode(m) for m in messages[:40]))
        kill_the_worker_of(live, before)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(SESSION_S)
        sock.sendall(b"".join(encode(m) for m in messages[40:]))
        error, close = receive_until_end(sock)
    assert isinstance(error, ErrorText)
    assert "ended by SIGKILL" in error.text
    assert "send the scan again, or replay it from the scanner's own raw data" in error.text
    assert isinstance(close, Close)


def test_a_waiting_process_that_died_is_replaced_before_a_session_gets_it(scan, in_process):
    before = children()
    with serving() as live:
        (waiting,) = children() - before
        os.kill(waiting, signal.SIGKILL)
        assert wait_until(lambda: not live._warm[0].alive)
        assert_same_images(images_of(session(live.port, whole(scan))), in_process)


def test_a_peer_is_told_when_no_session_process_can_be_started(scan, monkeypatch):
    with serving(warm=0) as live:

        def refuse(*_, **__):
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        answer = session(live.port, whole(scan))
        monkeypatch.undo()
    assert "no session process could be started (Cannot allocate memory)" in error_of(answer)


def test_a_server_that_stops_tells_the_peers_of_running_sessions(scan):
    with serving() as live:
        sock = connected(live.port)
        sock.sendall(b"".join(encode(m) for m in whole(scan)[:40]))
        assert wait_until(lambda: any(live._sessions.values()))
        heard = []
        reader = threading.Thread(target=lambda: heard.extend(receive_until_end(sock)))
        reader.start()
        stopping = threading.Thread(target=live.stop)
        stopping.start()
        assert wait_until(lambda: not any(p and p.alive for p in list(live._sessions.values())))
        sock.sendall(encode(Close()))
        reader.join(SESSION_S)
        stopping.join(SESSION_S)
        sock.close()
    assert "the server was stopped before the result was complete" in error_of(heard)


@pytest.mark.parametrize("number", [signal.SIGSTOP, None], ids=["stopped", "ignores SIGTERM"])
def test_a_server_that_stops_speaks_for_a_process_that_does_not(scan, number, tmp_path, monkeypatch):
    if number is None:  # a library that handles SIGTERM in its own way
        deaf = "import signal\nfrom mrsi_gadgets.server.worker import main\n"
        (tmp_path / "deaf_worker.py").write_text(deaf + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmain()\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.setattr("mrsi_gadgets.server.process.SessionProcess.module", "deaf_worker")
    with serving() as live:
        sock = connected(live.port)
        sock.sendall(b"".join(encode(m) for m in whole(scan)[:40]))
        assert wait_until(lambda: any(live._sessions.values()))
        (running,) = [process for process in live._sessions.values() if process is not None]
        if number is not None:
            os.kill(running.process.pid, number)
        heard = []
        hearing = threading.Thread(target=lambda: heard.extend(receive_until_end(sock)), daemon=True)
        hearing.start()
        sock.sendall(b"".join(encode(m) for m in whole(scan)[40:-1]))
        threading.Timer(3.5, lambda: sock.sendall(encode(Close()))).start()
        live.stop()
        hearing.join(SESSION_S)
        sock.close()
    assert "the server was stopped before the result was complete" in error_of(heard)
    assert not running.alive


def test_whoever_only_looks_whether_the_port_is_open_costs_no_process():
    before = children()
    with serving() as live:
        (waiting,) = children() - before
        for _ in range(3):
            connected(live.port).close()
        with connected(live.port):
            assert wait_until(lambda: len(live._idle) == 1)
            assert wait_until(lambda: len(live._sessions) == 1)
            assert children() - before == {waiting}
        assert wait_until(lambda: not live._sessions)
        assert [process.process.pid for process in live._warm] == [waiting]


def test_a_server_that_stops_lets_go_of_clients_that_have_said_nothing():
    with serving(warm=0) as live:
        sock = connected(live.port)
        assert wait_until(lambda: bool(live._idle))
    assert not live._sessions
    assert sock.recv(1) == b""
    sock.close()


def test_many_connections_that_say_nothing_or_are_refused_keep_no_scanner_out(scan, in_process, monkeypatch):
    monkeypatch.setattr(Server, "most_idle", 5)
    with serving(max_sessions=1) as live:
        mute = [connected(live.port) for _ in range(12)]
        assert wait_until(lambda: len(live._idle) == 5 == len(live._sessions))
        assert mute[0].recv(1) == b"", "the oldest had to go"
        assert_same_images(images_of(session(live.port, whole(scan))), in_process)
        assert wait_until(lambda: not any(live._sessions.values()))
        with connected(live.port) as first:
            first.sendall(encode(ConfigFile("fourier")))
            assert wait_until(lambda: any(live._sessions.values()))
            refused = [connected(live.port) for _ in range(12)]
            for sock in refused:
                sock.sendall(encode(ConfigFile("fourier")))
            assert wait_until(lambda: len(live._idle) == 5 and len(live._sessions) == 6)
        for sock in (*mute, *refused):
            sock.close()


def test_the_next_scan_is_not_refused_while_the_one_before_still_ends(scan, in_process):
    with serving(max_sessions=1) as live:
        for _ in range(3):
            assert_same_images(images_of(session(live.port, whole(scan))), in_process)


@pytest.mark.parametrize(("config", "peer"), [("fourier", Peer.FIRE), (ConfigText(NODE_CONFIG), Peer.GADGETRON)])
def test_one_session_more_than_may_run_is_refused_in_the_words_of_its_peer(scan, config, peer):
    with serving(max_sessions=1) as live, connected(live.port) as first:
        first.sendall(b"".join(encode(m) for m in whole(scan)[:40]))
        assert wait_until(lambda: any(live._sessions.values()))
        answer = session(live.port, whole(scan, config))
        said, close = answer
        assert isinstance(said, Text if peer is Peer.FIRE else ErrorText)
        assert "runs as many sessions as it may (1); send the scan again when one of them has ended" in said.text
        assert isinstance(close, Close)
        first.sendall(b"".join(encode(m) for m in whole(scan)[40:]))
        assert images_of(receive_until_end(first))
        assert wait_until(lambda: not live._sessions)
        assert images_of(session(live.port, whole(scan)))


def test_a_silent_peer_is_given_up_after_the_idle_timeout(scan):
    with serving(idle_timeout_s=0.5) as live, connected(live.port) as sock, connected(live.port) as mute:
        sock.sendall(b"".join(encode(m) for m in whole(scan)[:40]))
        assert "The peer sent nothing for 0.5 s (idle timeout)" in error_of(receive_until_end(sock))
        assert mute.recv(1) == b""
        assert wait_until(lambda: not live._sessions)


def test_a_message_larger_than_the_server_takes_is_refused(scan):
    with serving(max_message_mib=1) as live:
        long = scan.changed(50, np.zeros((4, 60000), np.complex64))
        assert "1920000 bytes of samples, more than the limit of 1048576" in error_of(session(live.port, whole(long)))
        assert images_of(session(live.port, whole(scan)))


# --- what a peer does wrong -----------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_refused_with_those_there_are(server, scan):
    sentence = error_of(session(server.port, whole(scan, "fouriier")))
    assert sentence.startswith("there is no recipe 'fouriier'; known are")
    assert "subspace" in sentence


@pytest.mark.parametrize("name", ["../config/fourier", "/etc/passwd", "config/fourier.xml", "", "f" * 1023, "f" * 300])
def test_a_recipe_name_is_never_a_path(scan, name):
    sentence = error_of(session_in_thread(whole(scan, name)))
    assert sentence.startswith("there is no recipe")
    assert len(sentence) < 300
    assert "/mrsi_gadgets" not in sentence


def test_a_gadget_nobody_knows_is_named(scan):
    config = ConfigText("<configuration><stream/><chain><magic/></chain></configuration>")
    assert "unknown gadget <magic>" in error_of(session_in_thread(whole(scan, config)))


def nan_in(scan):
    samples = scan.readouts[60].data.copy()
    samples[1, 5] = np.nan
    return scan.changed(60, samples)


def absurd(scan):
    return scan.changed(60, scan.readouts[60].data * np.float32(1e25))


DAMAGE = {
    "readout 60 holds a value of .*e.21, not plausible": absurd,
    "readout 60 holds values that are not finite .* in channel 1": nan_in,
    "readout 70 has 2 channels but the ones before it have 3": lambda s: s.changed(70, s.readouts[70].data[:2]),
    "readout 55 .*100 .*mrsi_spectral_points.*128": lambda s: s.changed(55, s.readouts[55].data[:, :100]),
    "lacks mrsi_dwell_us": lambda s: s.header_without("mrsi_dwell_us"),
    "no metabolite readouts came": lambda s: s.with_readouts(s.noise + s.water),
    "no data|no metabolite readouts came.*none at all": lambda s: s.with_readouts([]),
    "matrixSize 60000 x 60000 x 1 .* GB": lambda s: s.header_with("<x>8</x><y>6</y>", "<x>60000</x><y>60000</y>"),
    "header.*XML|XML.*header": lambda s: replace(s, header_xml="<ismrmrdHeader><encoding>"),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_damaged_scan_is_refused_in_one_sentence_that_names_what_is_wrong(scan, sentence):
    answer = session_in_thread(whole(DAMAGE[sentence](scan)))
    assert not images_of(answer)
    assert re.search(sentence, error_of(answer))


def test_a_session_of_nothing_is_closed_quietly():
    assert [type(m) for m in session_in_thread([Close()])] == [Close]
    assert [type(m) for m in session_in_thread([ConfigFile("fourier"), Close()])] == [Close]


# --- the server as a program ----------------------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_the_remedy(server):
    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{server.port}.*choose another with --port"):
        Server(replace(OPTIONS, port=server.port))


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_is_refused(host, port):
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}"):
        Server(replace(OPTIONS, host=host, port=port))


def test_a_recipe_the_operator_fixed_comes_before_what_a_peer_asks_for(scan):
    with serving(scan=ScanOptions(recipe="fourier", device="cpu"), warm=0) as live:
        answer = session(live.port, whole(scan, "subspace"))
    assert '"recipe": "fourier"' in images_of(answer)[0].attributes.replace("&quot;", '"')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_address_that_everybody_reaches_is_warned_of(caplog):
    server = Server(replace(OPTIONS, host="0.0.0.0", warm=0))
    try:
        server.start()
    finally:
        server.stop()
    assert "listening on 0.0.0.0: anyone who reaches this port can run a reconstruction" in caplog.text


def test_a_failed_and_a_finished_session_are_told_apart_by_fields_of_the_log(scan):
    port = free_port()
    command = [sys.executable, "-m", "mrsi_gadgets.cli", "serve", "--port", str(port), "--device", "cpu"]
    # without a spool sessions are numbered from 1
    with subprocess.Popen(
        [*command, "--no-spool", "--log-format", "json"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            first = [process.stderr.readline()]
            while "listening on" not in first[-1]:
                assert first[-1], "the server ended: " + "".join(first)
                first.append(process.stderr.readline())
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
            reader.start()
            assert images_of(session(port, whole(scan)))
            assert "not finite" in error_of(session(port, whole(nan_in(scan))))
            assert wait_until(lambda: any("ended with an error" in line for line in list(lines)))
            process.send_signal(signal.SIGTERM)
            reader.join(SESSION_S)
            process.wait(SESSION_S)
        finally:
            process.kill()
    records = [json.loads(line) for line in first + lines]
    of = {number: [r for r in records if r.get("session") == number] for number in ("1", "2")}
    assert not any("failure" in record for record in of["1"])
    assert any("not finite" in record.get("failure", "") for record in of["2"])
    for number, words in (("1", "closed in order"), ("2", "ended with an error: readout 60 holds")):
        assert len({record["process"] for record in of[number]}) == 2  # the supervisor's lines and the worker's
        (last,) = [r for r in of[number] if r["logger"] == "mrsi.server" and "received" in r]
        assert f"session {number}: {words}" in last["message"]
        assert last["peer"] == "fire"
        assert last["received"] == len(whole(scan))
    assert {record.get("session") for record in records} == {None, "1", "2"}


def test_a_stop_whose_signal_woke_nobody_is_noticed_all_the_same():
    server = Server(replace(OPTIONS, warm=0))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    # what is left of `request_stop` where the signal came just before `accept`: the flag, but no wake-up
    server._stopped.set()
    thread.join(SESSION_S)
    assert not thread.is_alive()
    server.stop()


AS_FROM_A_TERMINAL = (
    "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "from mrsi_gadgets.cli import main; sys.exit(main())"
)
"""Tests that were started by nohup ignore SIGHUP, and so would a server of theirs, as it should."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_in_order_and_leaves_no_process(scan, number):
    port = free_port()
    command = [sys.executable, "-c", AS_FROM_A_TERMINAL, "serve", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stderr.readline()]
            while "listening on" not in lines[-1]:
                assert lines[-1], "the server ended: " + "".join(lines)
                lines.append(process.stderr.readline())
            sock = connected(port)  # a session is running
            sock.sendall(b"".join(encode(m) for m in whole(scan)[:30]))
            workers = children(process.pid)
            assert workers
            assert wait_until(lambda: len(children(process.pid)) > 1)
            workers |= children(process.pid)
            process.send_signal(number)
            sock.shutdown(socket.SHUT_WR)
            receive_until_end(sock)
            sock.close()
            _, errors = process.communicate(timeout=SESSION_S)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
