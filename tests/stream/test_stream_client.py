"""Sending a scan: what comes back, what is raised, and the pace."""

from __future__ import annotations

import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from mrsi_gadgets.errors import ConfigError, DataError, PeerLost
from mrsi_gadgets.stream.client import ServerError, paced, send_scan
from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, ConfigText, Header, Image, Text
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection, serve
from mrsi_gadgets.stream.wire import encode
from peers import HEADER_XML, TIMEOUT_S, image, readout, receive_until_end

pytestmark = pytest.mark.timeout(30)


class Server:
    """One session on a port of its own, in a thread."""

    def __init__(self, run) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.port = self._listener.getsockname()[1]
        self.seen = []
        self.outcome = None
        self._run = run
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT_S)
        with self._listener:
            self.outcome = self._run(self, sock)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not end"


def serving(handler):
    """A server that runs a handler and keeps what came."""

    def run(server, sock):
        def keep(messages, send):
            handler(server, messages, send)

        return serve(Connection(sock), keep)

    return Server(run)


def answering(server, messages, send):
    for message in messages:
        server.seen.append(message)
        if isinstance(message, Acquisition):
            send(image())
    send(Text("INFO    done"))


def scan(port: int, count: int = 3, **options):
    options.setdefault("items", [readout(counter=n) for n in range(count)])
    options.setdefault("config_name", "fourier")
    return send_scan("127.0.0.1", port, header_xml=HEADER_XML, **options)


def stamped(*stamps: int):
    return [readout(counter=i, stamp=stamp) for i, stamp in enumerate(stamps)]


def test_time_stamps_that_begin_again_at_2_to_the_32_keep_the_pace(monkeypatch):
    monkeypatch.setattr("mrsi_gadgets.stream.client.time", SimpleNamespace(perf_counter=lambda: 0.0))
    due, said = [], []
    items = stamped((1 << 32) - 400, (1 << 32) - 200, 0, 200)
    assert list(paced(items, 2.5e-3, wait=due.append, tell=said.append)) == items
    assert due == pytest.approx([0.5, 1.0, 1.5])
    assert said == []


def test_a_long_pause_in_the_time_stamps_is_cut_and_said_once(monkeypatch):
    monkeypatch.setattr("mrsi_gadgets.stream.client.time", SimpleNamespace(perf_counter=lambda: 0.0))
    due, said = [], []
    # a scan of a day before, a readout that is late, a count that begins again
    items = stamped(0, 34_560_000, 69_120_000, 69_119_999, 69_120_400, 10, 410)
    assert list(paced(items, 2.5e-3, wait=due.append, tell=said.append)) == items
    assert due == pytest.approx([60.0, 120.0, 120.0, 121.0, 121.0, 122.0])
    (sentence,) = said
    assert "a pause of 86400 s before readout 1; pauses longer than 60 s are cut" in sentence


def test_a_scan_is_sent_in_order_and_its_results_come_back():
    heard, counted = [], []
    with serving(answering) as server:
        result = scan(server.port, on_message=heard.append, progress=counted.append)
    assert [type(m) for m in server.seen] == [ConfigFile, Header] + [Acquisition] * 3
    assert [int(m.head["scan_counter"]) for m in server.seen[2:]] == [0, 1, 2]
    assert len(result.images) == result.sent == 3
    assert result.texts == ["INFO    done"]
    assert [type(m) for m in heard] == [Image] * 3 + [Text]
    assert counted == [1, 2, 3]
    assert abs(result.latency_s) < 5
    assert server.outcome.failure is None


def test_a_recipe_may_be_sent_whole_and_parameters_follow_the_header():
    with serving(answering) as server:
        scan(server.port, config_name=None, config_text="<configuration/>", parameters={"rank": "8"})
    config, header, text, *_ = server.seen
    assert isinstance(config, ConfigText)
    assert isinstance(header, Header)
    assert json.loads(text.text)["parameters"] == {"rank": "8"}


@pytest.mark.parametrize("options", [{"config_name": None}, {"config_text": "<configuration/>"}])
def test_exactly_one_configuration_is_needed(options):
    with pytest.raises(ConfigError, match="give exactly one of them"):
        scan(1, **options)


def test_the_sentence_of_a_failing_server_is_raised_as_it_stands():
    def failing(server, messages, send):
        next(messages)
        raise DataError("The header lacks mrsi_dwell_s; add it.")

    with serving(failing) as server, pytest.raises(ServerError, match=r"^The header lacks mrsi_dwell_s; add it\.$"):
        scan(server.port, count=50)


def test_the_error_text_of_a_gadgetron_is_recognised():
    def run(server, sock):
        with sock:
            receive_until_end(sock)
            sock.sendall(
                encode(Text("[Connection Main Thread/Stream/external] ERROR: No such recipe.")) + encode(Close())
            )

    with Server(run) as server, pytest.raises(ServerError, match=r"^No such recipe\.$"):
        scan(server.port)


def test_a_console_text_about_errors_is_no_error():
    def handler(server, messages, send):
        list(messages)
        send(Text("INFO    0 ERROR texts"))
        send(Text("WARNING no water reference"))

    with serving(handler) as server:
        assert len(scan(server.port).texts) == 2


def test_a_server_that_goes_away_without_close_is_an_error():
    def run(server, sock):
        with sock:
            sock.recv(100)

    with Server(run) as server, pytest.raises(PeerLost, match=r"127\.0\.0\.1:\d+ ended the connection without CLOSE"):
        scan(server.port, count=200)


def test_nobody_listening_is_said_with_address_and_remedy():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"No server answers at 127.0.0.1:{port} .*`mrsi serve --port {port}`"):
        scan(port)


def test_a_damaged_input_aborts_the_scan_at_both_ends():
    def damaged():
        yield readout()
        raise DataError("The file ends inside readout 1; copy it again.")

    with serving(answering) as server, pytest.raises(DataError, match="ends inside readout 1"):
        scan(server.port, items=damaged())
    assert server.outcome.lost


def test_a_server_may_close_first():
    def brief(server, messages, send):
        next(messages)
        send(image())

    with serving(brief) as server:
        result = scan(server.port, items=(readout(8, 3000) for _ in range(2000)))
    assert len(result.images) == 1
    assert server.outcome.failure is None


def test_sending_and_receiving_go_on_at_the_same_time():
    with serving(answering) as server:
        result = scan(server.port, items=(readout(8, 3000) for _ in range(500)))
    assert len(result.images) == 500


def test_a_realtime_scan_keeps_the_pace_of_its_time_stamps():
    stamps = [100, 120, 110, 140]
    times = []
    with serving(answering) as server:
        start = time.perf_counter()
        scan(
            server.port,
            items=[readout(stamp=stamp) for stamp in stamps],
            realtime_tick_s=0.01,
            progress=lambda _: times.append(time.perf_counter() - start),
        )
    assert times[1] - times[0] > 0.15
    assert times[3] - times[0] > 0.35


def test_a_paused_scan_ends_at_once_when_the_server_has_ended():
    def failing(server, messages, send):
        next(messages)
        raise DataError("no")

    def run(server, sock):
        return serve(Connection(sock, peer=Peer.FIRE, idle_timeout_s=0.3), lambda m, s: failing(server, m, s))

    start = time.perf_counter()
    with Server(run) as server, pytest.raises(ServerError):
        scan(server.port, items=[readout(), readout(stamp=10**6)], realtime_tick_s=1.0)
    assert time.perf_counter() - start < 10
