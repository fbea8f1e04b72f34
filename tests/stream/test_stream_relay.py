"""A supervisor between client and worker: everything passes, and it speaks for a worker that died."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading

import pytest

from mrsi_gadgets.stream.endpoints import STALL_S
from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, ConfigText, ErrorText, Header, Image, Text
from mrsi_gadgets.stream.relay import LOOKED_AT_BYTES, PeerWatch, Relay, report_failure
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection, serve
from mrsi_gadgets.stream.wire import Decoder, encode
from peers import (
    EXTERNAL_NODE_CONFIG,
    HEADER_XML,
    TIMEOUT_S,
    GadgetronSide,
    image,
    readout,
    receive_until_end,
    socket_pair,
)

pytestmark = pytest.mark.timeout(30)
SENTENCE = "The reconstruction process died (SIGKILL); see the server's log."
OPENING = encode(ConfigFile("fourier")) + encode(Header(HEADER_XML))


def passing(messages, send):
    for message in messages:
        if isinstance(message, Acquisition):
            send(image())


class Supervised(threading.Thread):
    """A relay between a client's socket and a worker that a function plays."""

    def __init__(self, client: socket.socket, worker) -> None:
        super().__init__(daemon=True)
        ours, theirs = socket_pair()
        self.relay = Relay(client, ours)
        self._worker = threading.Thread(target=worker, args=(theirs,), daemon=True)
        self.closed = None
        self._worker.start()
        self.start()

    def run(self) -> None:
        closed = self.relay.run()
        if closed:
            self.relay.close()
        else:
            self.relay.report_failure(SENTENCE)
        self.closed = closed

    def result(self) -> bool:
        self.join(TIMEOUT_S)
        assert self.closed is not None, "the relay did not end"
        return self.closed


def serving(sock):
    serve(Connection(sock), passing)


def dying_after(count: int, *, tail: bytes = b""):
    """A worker that takes some bytes, sends an image and the beginning of another message, and is gone."""

    def worker(sock):
        taken = 0
        while taken < count:
            taken += len(sock.recv(min(1 << 16, count - taken)))
        with contextlib.suppress(OSError):
            sock.sendall(encode(image()) + tail)
        sock.close()

    return worker


def test_a_session_passes_through_unchanged():
    client, far = socket_pair()
    session = Supervised(far, serving)
    client.sendall(OPENING + 20 * encode(readout(8, 3000)) + encode(Close()))
    messages = receive_until_end(client)
    assert client.recv(1) == b""
    client.close()
    assert [type(m) for m in messages] == [Image] * 20 + [Close]
    assert session.result()
    assert session.relay.peer is Peer.FIRE
    assert session.relay.received == 23


@pytest.mark.parametrize("cut", [0, 1, 150, 300])
def test_a_client_gets_text_after_whole_messages_only_when_the_worker_dies(cut):
    client, far = socket_pair()
    session = Supervised(far, dying_after(3000, tail=encode(image())[:cut]))
    sender = threading.Thread(
        target=lambda: client.sendall(OPENING + 200 * encode(readout(8, 3000)) + encode(Close())), daemon=True
    )
    sender.start()
    first, text, close = receive_until_end(client)
    sender.join(TIMEOUT_S)
    assert not sender.is_alive()
    client.close()
    assert isinstance(first, Image)
    assert text.text == f"ERROR   {SENTENCE}"
    assert isinstance(close, Close)
    assert not session.result()


def test_a_gadgetron_gets_error_and_close_when_the_worker_dies():
    theirs, far = socket_pair()
    gadgetron = GadgetronSide(theirs, [readout(8, 3000) for _ in range(100)])
    session = Supervised(far, dying_after(3000))
    record = gadgetron.result()
    assert session.relay.peer is Peer.GADGETRON
    assert record.errors == [SENTENCE]
    assert len(record.items) == 1
    assert record.closed
    assert not record.illegal
    session.result()


def test_a_worker_killed_by_the_system_is_reported():
    client, far = socket_pair()
    ours, theirs = socket.socketpair()
    child = os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)])
    theirs.close()
    relay = Relay(far, ours)
    client.sendall(OPENING + encode(readout()) + encode(Close()))
    threading.Timer(0.2, os.kill, (child, signal.SIGKILL)).start()
    assert not relay.run()
    os.waitpid(child, 0)
    threading.Thread(target=relay.report_failure, args=(SENTENCE,), daemon=True).start()
    text, close = receive_until_end(client)
    client.close()
    assert isinstance(text, Text)
    assert isinstance(close, Close)


def test_a_worker_that_writes_what_is_no_message_is_reported():
    def rubbish(sock):
        sock.recv(100)
        sock.sendall(struct.pack("<H", 4711) * 10)
        sock.close()

    client, far = socket_pair()
    session = Supervised(far, rubbish)
    client.sendall(OPENING + encode(Close()))
    text, _ = receive_until_end(client)
    client.close()
    assert text.text == f"ERROR   {SENTENCE}"
    assert not session.result()


def test_a_client_that_vanishes_is_an_aborted_scan_for_the_worker():
    outcomes = []
    client, far = socket_pair()
    session = Supervised(far, lambda sock: outcomes.append(serve(Connection(sock), passing)))
    client.sendall(OPENING + encode(readout()))
    client.close()
    session.result()
    assert session.relay.client_lost
    session._worker.join(TIMEOUT_S)
    assert outcomes[0].lost


@pytest.mark.parametrize(
    ("config", "kind"), [(ConfigFile("fourier"), Text), (ConfigText(EXTERNAL_NODE_CONFIG), ErrorText)]
)
def test_a_session_that_never_got_a_worker_is_refused_in_the_words_of_its_peer(config, kind):
    client, far = socket_pair()
    thread = threading.Thread(target=report_failure, args=(far, Peer.AUTO, "No process could be started."), daemon=True)
    thread.start()
    client.sendall(encode(config) + encode(Header(HEADER_XML)) + 5 * encode(readout()))
    if kind is ErrorText:  # a Gadgetron would lose it
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(TIMEOUT_S)
    client.sendall(encode(Close()))
    reason, close = receive_until_end(client)
    client.close()
    assert isinstance(reason, kind)
    assert "No process could be started." in reason.text
    assert isinstance(close, Close)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_a_failure_is_reported_after_silence_when_framing_is_lost():
    client, far = socket_pair()
    threading.Thread(target=report_failure, args=(far, Peer.FIRE, SENTENCE), daemon=True).start()
    client.sendall(struct.pack("<H", 4711) + bytes(5000))
    assert [type(m) for m in receive_until_end(client)] == [Text, Close]
    client.close()


def test_a_console_whose_session_is_refused_hears_it_while_its_scan_still_runs():
    near, far = socket_pair()
    threading.Thread(target=report_failure, args=(far, Peer.AUTO, SENTENCE), daemon=True).start()
    with near:
        near.sendall(OPENING)
        decoder, heard = Decoder(), []
        while not heard:
            heard.extend(decoder.feed(near.recv(1 << 16)))
        assert [m.text for m in heard] == [f"ERROR   {SENTENCE}"]
        near.sendall(encode(readout()) + encode(Close()))
        assert [type(m) for m in receive_until_end(near)] == [Close]


def test_a_silent_client_is_let_go_once_its_worker_has_ended_and_the_idle_timeout_has_passed():
    near, far = socket_pair()
    ours, theirs = socket_pair()
    relay = Relay(far, ours, idle_timeout_s=0.3)
    near.sendall(OPENING)

    def worker() -> None:
        theirs.recv(len(OPENING))
        theirs.sendall(encode(Close()))
        theirs.close()

    threading.Thread(target=worker, daemon=True).start()
    assert relay.run()
    closing = threading.Thread(target=relay.close, daemon=True)
    closing.start()
    with near:  # neither CLOSE nor the end of the stream comes from here
        assert [type(m) for m in receive_until_end(near)] == [Close]
        closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    assert relay.client_lost


def test_what_is_too_long_to_say_who_the_peer_is_is_not_collected_by_the_process_of_all_sessions():
    for size, peer in ((LOOKED_AT_BYTES, Peer.GADGETRON), (LOOKED_AT_BYTES + 1, Peer.AUTO)):
        text = "<configuration><chain/></configuration>".ljust(size)
        watch = PeerWatch(Peer.AUTO)
        watch.look(memoryview(encode(ConfigText(text))))
        assert watch.peer is peer


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no time limit for unread bytes")
@pytest.mark.parametrize(("idle", "wanted_ms"), [(3.0, 3000), (None, 1000 * STALL_S), (1e9, 1000 * STALL_S)])
def test_a_client_that_takes_no_bytes_is_given_up_after_the_idle_timeout(idle, wanted_ms):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as client,
    ):
        pair = socket.socketpair()
        Relay(client, pair[0], idle_timeout_s=idle)
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == wanted_ms
        for one in pair:
            one.close()
