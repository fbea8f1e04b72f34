"""Connections and the end of a session: acceptance points 3, 5 to 7, 9 and 11, and the measured failure rules."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError, PeerLost, ProtocolError
from mrsi_gadgets.stream.endpoints import SocketEndpoint
from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, ErrorText, Header, Image, Query, Response, Text
from mrsi_gadgets.stream.session import Peer, Session
from mrsi_gadgets.stream.transport import Connection, serve
from mrsi_gadgets.stream.wire import Decoder, encode
from peers import (
    HEADER_XML,
    TIMEOUT_S,
    GadgetronSide,
    image,
    readout,
    receive_until_end,
    socket_pair,
)

pytestmark = pytest.mark.timeout(30)
OPENING = encode(ConfigFile("fourier")) + encode(Header(HEADER_XML))
CLOSE = encode(Close())


def passing(messages, send):
    """A handler that answers every readout with an image."""
    for message in messages:
        if isinstance(message, Acquisition):
            send(image())


def failing(messages, send):
    """A handler that fails in the middle of the scan."""
    for message in messages:
        if isinstance(message, Acquisition):
            send(image())
            raise DataError("The readout has NaN samples; check the receiver.")


class Serving(threading.Thread):
    """`serve` over one end of a socket pair."""

    def __init__(self, handler, **options) -> None:
        super().__init__(daemon=True)
        ours, self.peer = socket_pair()
        self.connection = Connection(ours, **options)
        self._handler = handler
        self.outcome = None
        self.start()

    def run(self) -> None:
        self.outcome = serve(self.connection, self._handler)

    def result(self):
        self.join(TIMEOUT_S)
        assert self.outcome is not None, "the session did not end"
        return self.outcome

    def received(self) -> list:
        """What the peer gets until CLOSE or the end; the peer then closes."""
        with self.peer:
            return receive_until_end(self.peer)


def kinds(messages) -> list[type]:
    return [type(message) for message in messages]


def test_a_finished_scan_is_answered_by_its_results_and_close():
    session = Serving(passing)
    session.peer.sendall(OPENING + 3 * encode(readout()) + CLOSE)
    assert kinds(session.received()) == [Image, Image, Image, Close]
    outcome = session.result()
    assert (outcome.failure, outcome.lost, outcome.received, outcome.sent) == (None, False, 5, 4)
    assert outcome.peer is Peer.FIRE


@pytest.mark.parametrize("opening", [b"", encode(ConfigFile("fourier")), OPENING])
def test_close_without_data_or_header_is_answered_by_close_quietly(opening):
    seen = []
    session = Serving(lambda messages, send: seen.extend(messages))
    session.peer.sendall(opening + CLOSE)
    assert kinds(session.received()) == [Close]
    assert session.result().failure is None
    assert len(seen) == opening.count(b"fourier") + opening.count(b"ismrmrdHeader")


def test_a_failing_handler_reaches_a_client_as_text_after_what_was_sent_then_close():
    session = Serving(failing)
    session.peer.sendall(OPENING + 2 * encode(readout()) + CLOSE)
    first, text, close = session.received()
    assert isinstance(first, Image)
    assert text.text == "ERROR   The readout has NaN samples; check the receiver."
    assert isinstance(close, Close)
    assert session.result().failure == "The readout has NaN samples; check the receiver."


def test_a_failing_handler_says_nothing_before_the_input_has_been_drained():
    session = Serving(failing, peer=Peer.GADGETRON)
    session.peer.sendall(OPENING + encode(readout()))
    received = Decoder()
    assert kinds(received.feed(session.peer.recv(1 << 16))) == [Image]
    for _ in range(50):
        session.peer.sendall(encode(readout(8, 4000)))
    session.peer.settimeout(0.2)
    with pytest.raises(TimeoutError):
        session.peer.recv(1)
    session.peer.settimeout(TIMEOUT_S)
    session.peer.sendall(CLOSE)
    assert kinds(session.received()) == [ErrorText, Close]
    assert session.result().received == 53


def test_an_unforeseen_error_becomes_one_sentence_and_a_logged_traceback(caplog):
    def broken(messages, send):
        list(messages)
        raise KeyError("no such\nthing")

    with caplog.at_level(logging.ERROR, "mrsi.stream"):
        session = Serving(broken)
        session.peer.sendall(OPENING + CLOSE)
        text, _ = session.received()
        session.result()
    assert text.text.startswith("ERROR   The reconstruction failed with an internal error (KeyError: ")
    assert "\n" not in text.text
    assert "Traceback" in caplog.text


def test_running_out_of_memory_is_said_in_plain_words():
    def hungry(messages, send):
        raise MemoryError

    session = Serving(hungry)
    session.peer.sendall(OPENING + CLOSE)
    assert "ran out of memory; use fewer coils" in session.received()[0].text


def test_an_unknown_message_is_reported_after_the_peer_is_silent():
    session = Serving(passing)
    session.peer.sendall(OPENING + struct.pack("<H", 4711) + bytes(100_000))
    start = time.monotonic()
    text, close = session.received()
    assert time.monotonic() - start > 1.5
    assert f"Message number 4711 at byte {len(OPENING)} of the stream is unknown" in text.text
    assert isinstance(close, Close)
    assert isinstance(session.connection.input_error, ProtocolError)
    session.result()


def test_an_unknown_message_is_reported_at_once_when_the_peer_has_ended_its_output():
    session = Serving(passing, peer=Peer.GADGETRON)
    session.peer.sendall(OPENING + encode(readout()) + struct.pack("<H", 1050))
    session.peer.shutdown(socket.SHUT_WR)
    assert kinds(session.received()) == [Image, ErrorText, Close]
    session.result()


def test_a_message_in_the_wrong_order_is_reported_after_the_input_has_been_drained():
    session = Serving(passing)
    session.peer.sendall(OPENING + encode(Header(HEADER_XML)) + encode(readout()) + CLOSE)
    text, _ = session.received()
    assert "A second HEADER (3)" in text.text
    session.result()


def test_a_header_that_is_not_utf8_is_reported_after_the_input_has_been_drained():
    session = Serving(passing)
    session.peer.sendall(
        encode(ConfigFile("fourier")) + struct.pack("<HI", 3, 2) + b"<\xff" + encode(readout()) + CLOSE
    )
    text, _ = session.received()
    assert "ISMRMRD header is not valid UTF-8" in text.text
    session.result()


@pytest.mark.parametrize("rest", [b"", encode(readout())[:-1], encode(readout())[:7]])
def test_a_stream_that_ends_without_close_is_an_aborted_scan_for_the_handler(rest):
    seen = []

    def handler(messages, send):
        try:
            seen.extend(messages)
        except PeerLost:
            seen.append("lost")
            raise

    session = Serving(handler)
    session.peer.sendall(OPENING + encode(readout()) + rest)
    session.peer.shutdown(socket.SHUT_WR)
    text, _ = session.received()
    assert kinds(seen[:-1]) == [ConfigFile, Header, Acquisition]
    assert seen[-1] == "lost"
    assert text.text.startswith("ERROR   The stream ended")
    assert session.result().lost


def test_a_handler_that_ignores_the_loss_of_its_peer_sends_no_result():
    def stubborn(messages, send):
        with contextlib.suppress(PeerLost):
            list(messages)
        send(image())

    session = Serving(stubborn)
    session.peer.sendall(OPENING + encode(readout()))
    session.peer.shutdown(socket.SHUT_WR)
    messages = session.received()
    assert Image not in kinds(messages)
    assert isinstance(messages[0], Text)
    assert session.result().failure.startswith("The stream ended without CLOSE")


def test_a_session_cut_at_any_byte_ends_and_is_never_a_finished_one():
    stream = OPENING + encode(readout(1, 2)) + CLOSE
    for cut in (*range(0, 12), *range(1020, 1040), *range(len(OPENING) - 2, len(OPENING) + 12), len(stream) - 1):
        session = Serving(passing)
        session.peer.sendall(stream[:cut])
        session.peer.shutdown(socket.SHUT_WR)
        assert kinds(session.received())[-2:] == [Text, Close]
        assert session.result().lost


def test_a_peer_that_vanishes_does_not_stop_the_server():
    session = Serving(passing)
    session.peer.sendall(OPENING + 20 * encode(readout()))
    session.peer.close()
    assert session.result().lost


def test_a_header_that_never_comes_is_an_idle_timeout_when_one_is_set(caplog):
    with caplog.at_level(logging.INFO, "mrsi.stream"):
        session = Serving(passing, idle_timeout_s=0.3, heartbeat_s=0.1)
        session.peer.sendall(encode(ConfigFile("fourier")))
        text, _ = session.received()
        assert session.result().lost
    assert "The peer sent nothing for 0.3 s (idle timeout)" in text.text
    assert "waiting for 0.1 s, 1 messages so far" in caplog.text


def test_without_an_idle_timeout_a_pause_is_no_error():
    session = Serving(passing, heartbeat_s=0.05)
    session.peer.sendall(OPENING)
    time.sleep(0.3)
    session.peer.sendall(encode(readout()) + CLOSE)
    assert kinds(session.received()) == [Image, Close]


def test_text_between_readouts_is_passed_on():
    seen = []
    session = Serving(lambda messages, send: seen.extend(messages))
    session.peer.sendall(OPENING + encode(Text('{"parameters": {}}')) + encode(readout()) + encode(Text("x")) + CLOSE)
    session.received()
    session.result()
    assert kinds(seen) == [ConfigFile, Header, Text, Acquisition, Text]


def test_a_noise_scan_may_have_another_channel_count():
    seen = []
    session = Serving(lambda messages, send: seen.extend(messages))
    session.peer.sendall(OPENING + encode(readout(5, 7, noise=True)) + encode(readout(3, 4)) + CLOSE)
    session.received()
    assert session.result().failure is None
    assert [m.data.shape for m in seen[2:]] == [(5, 7), (3, 4)]


def test_a_query_is_answered_while_the_handler_is_busy():
    release = threading.Event()

    def busy(messages, send):
        release.wait(TIMEOUT_S)
        list(messages)

    session = Serving(busy, session=Session(answers={"ismrmrd::version": "1.15"}))
    session.peer.sendall(OPENING + encode(Query(3, "ismrmrd::version")))
    (response,) = Decoder().feed(session.peer.recv(1 << 16))
    assert isinstance(response, Response)
    assert (response.correlation, response.text) == (3, "1.15")
    release.set()
    session.peer.sendall(CLOSE)
    session.received()
    assert session.result().received == 2


def test_a_peer_that_reads_only_after_it_has_sent_everything_gets_everything():
    session = Serving(passing)
    count = 400
    session.peer.sendall(OPENING)
    for _ in range(count):
        session.peer.sendall(encode(readout(8, 1000)))
    session.peer.sendall(CLOSE)
    assert kinds(session.received()).count(Image) == count
    session.result()


def test_a_slow_handler_holds_the_peer_back_instead_of_filling_memory():
    release = threading.Event()

    def slow(messages, send):
        release.wait(TIMEOUT_S)
        assert len(list(messages)) == 202

    bound = 1_000_000
    session = Serving(slow, queue_bytes=bound)
    session.peer.sendall(OPENING)
    taken = threading.Event()

    def push():
        for _ in range(200):
            session.peer.sendall(encode(readout(8, 2000)))
        session.peer.sendall(CLOSE)
        taken.set()

    threading.Thread(target=push, daemon=True).start()
    assert not taken.wait(0.5)
    assert session.connection._incoming.waiting_bytes <= bound
    release.set()
    assert taken.wait(TIMEOUT_S)
    assert kinds(session.received()) == [Close]
    assert session.result().failure is None


def test_a_slow_reader_gets_every_message_whole():
    session = Serving(passing, queue_bytes=100_000)
    session.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    threading.Thread(
        target=lambda: session.peer.sendall(OPENING + 300 * encode(readout()) + CLOSE), daemon=True
    ).start()
    decoder, messages = Decoder(), []
    while not decoder.closed:
        messages.extend(decoder.feed(session.peer.recv(700)))
    session.peer.close()
    assert kinds(messages) == [Image] * 300 + [Close]
    assert session.result().failure is None


def test_a_message_that_cannot_be_serialised_sends_nothing_of_itself():
    def handler(messages, send):
        list(messages)
        bad = image()
        bad.data = bad.data[:1]
        send(bad)

    session = Serving(handler)
    session.peer.sendall(OPENING + CLOSE)
    text, close = session.received()
    assert "pixels of the image" in text.text
    assert isinstance(close, Close)


def test_what_is_sent_may_be_changed_at_once_by_the_handler():
    def handler(messages, send):
        list(messages)
        reused = image()
        for value in range(50):
            reused.data[:] = value
            send(reused)

    session = Serving(handler)
    session.peer.sendall(OPENING + CLOSE)
    images = session.received()[:-1]
    assert [np.unique(m.data).tolist() for m in images] == [[value] for value in range(50)]


def test_messages_of_several_threads_never_mix():
    def handler(messages, send):
        list(messages)
        threads = [threading.Thread(target=lambda: [send(image()) for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    session = Serving(handler)
    session.peer.sendall(OPENING + CLOSE)
    messages = session.received()
    assert kinds(messages) == [Image] * 200 + [Close]
    assert len({encode(m) for m in messages[:-1]}) == 1


def test_a_handler_may_end_the_session_before_its_peer_does():
    def brief(messages, send):
        next(messages)
        send(image())

    session = Serving(brief)
    session.peer.sendall(OPENING)
    decoder = Decoder()
    messages = []
    while not decoder.closed:
        messages.extend(decoder.feed(session.peer.recv(1 << 16)))
    assert kinds(messages) == [Image, Close]
    for _ in range(100):
        session.peer.sendall(encode(readout(8, 2000)))  # drained, so no reset
    session.peer.sendall(CLOSE)
    assert session.peer.recv(1) == b""
    session.peer.close()
    assert session.result().failure is None


def test_results_for_a_peer_that_left_after_its_close_are_given_up():
    gone = threading.Event()

    def handler(messages, send):
        list(messages)
        gone.wait(TIMEOUT_S)
        for _ in range(1000):
            send(image((1, 1, 64, 64)))
            time.sleep(0.001)

    session = Serving(handler)
    session.peer.sendall(OPENING + CLOSE)
    session.peer.close()
    gone.set()
    outcome = session.result()
    assert outcome.lost
    assert "no longer takes results" in outcome.failure
    assert outcome.sent < 1000


# --- a Gadgetron at the other end ---------------------------------------------------------------------------


def gadgetron_session(handler, items, **options):
    ours, theirs = socket_pair()
    gadgetron = GadgetronSide(theirs, items, **options)
    outcome = serve(Connection(ours), handler)
    return outcome, gadgetron.result()


def test_a_gadgetron_gets_all_items_and_its_close_answered():
    outcome, record = gadgetron_session(passing, [readout(counter=n) for n in range(20)])
    assert outcome.peer is Peer.GADGETRON
    assert outcome.failure is None
    assert len(record.items) == 20
    assert record.closed
    assert not record.errors
    assert not record.illegal


def test_a_gadgetron_gets_what_was_sent_then_error_then_close():
    def handler(messages, send):
        for count, message in enumerate(messages):
            if isinstance(message, Acquisition):
                send(image())
            if count == 9:
                raise DataError("Phase encoding step 3 is missing; repeat the scan.")

    for _ in range(8):
        _, record = gadgetron_session(handler, [readout(8, 3000) for _ in range(100)])
        assert len(record.items) == 8
        assert record.errors == ["Phase encoding step 3 is missing; repeat the scan."]
        assert record.closed


def test_a_gadgetron_never_gets_text():
    def chatty(messages, send):
        for _ in messages:
            send(Text("INFO    working"))
        send(image())

    _, record = gadgetron_session(chatty, [readout()])
    assert len(record.items) == 1
    assert not record.illegal
    assert record.closed


def test_a_gadgetron_whose_node_has_no_configuration_is_recognised():
    outcome, record = gadgetron_session(failing, [readout()], config='<?xml version="1.0"?>\n')
    assert outcome.peer is Peer.GADGETRON
    assert record.errors


# --- pipes and files ----------------------------------------------------------------------------------------


def test_a_pipe_that_begins_with_its_header_is_served_to_another_pipe():
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    with os.fdopen(theirs_out, "wb") as feed:
        feed.write(encode(Header(HEADER_XML)) + encode(readout()) + CLOSE)
    medium = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
    connection = Connection(medium, session=Session(config_optional=True))
    outcome = serve(connection, passing)
    assert outcome.received == 2
    with os.fdopen(theirs_in, "rb") as result:
        assert kinds(Decoder().feed(result.read())) == [Image, Close]
    assert outcome.failure is None


def test_a_slow_pipe_is_read_as_it_comes():
    ours_in, theirs_out = os.pipe()
    with Connection((os.fdopen(ours_in, "rb"), None)) as connection, os.fdopen(theirs_out, "wb", buffering=0) as feed:
        messages = connection.messages()
        feed.write(encode(ConfigFile("fourier")))
        assert isinstance(next(messages), ConfigFile)
        feed.write(encode(Header(HEADER_XML)))
        assert isinstance(next(messages), Header)
        feed.write(CLOSE)
        assert list(messages) == []


def test_a_file_on_disk_is_a_session_too(tmp_path):
    path = tmp_path / "scan.bin"
    path.write_bytes(OPENING + 3 * encode(readout(8, 5000)) + CLOSE)
    with Connection((path.open("rb"), None)) as connection:
        assert kinds(connection.messages()) == [ConfigFile, Header] + [Acquisition] * 3


def test_bytes_in_memory_are_a_session_too():
    out = io.BytesIO()
    out.close = lambda: None
    outcome = serve(Connection((io.BytesIO(OPENING + encode(readout()) + CLOSE), out)), passing)
    assert outcome.failure is None
    assert kinds(Decoder().feed(out.getvalue())) == [Image, Close]


def test_a_truncated_file_is_an_aborted_scan(tmp_path):
    path = tmp_path / "scan.bin"
    path.write_bytes(OPENING + encode(readout()))
    with Connection((path.open("rb"), None)) as connection, pytest.raises(PeerLost, match="without CLOSE"):
        list(connection.messages())


def test_sockets_are_kept_alive():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), TIMEOUT_S) as client,
    ):
        server, _ = listener.accept()
        with Connection(server):
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.recv(1) == b""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs TCP_USER_TIMEOUT (Linux)")
def test_a_peer_that_reads_no_more_is_given_up_for_lost_by_the_system(monkeypatch):
    monkeypatch.setattr("mrsi_gadgets.stream.endpoints.STALL_S", 1)
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as deaf:
        ours, _ = listener.accept()
        endpoint = SocketEndpoint(ours)
        start = time.monotonic()
        with pytest.raises(OSError):
            endpoint.write(bytes(1 << 28))
        assert time.monotonic() - start < 60
        endpoint.close()
        assert deaf.fileno() >= 0
