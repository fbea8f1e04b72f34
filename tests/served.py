"""A live server for tests, and clients that speak to it with raw messages."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from mrsi_gadgets.gadgets.node import run_connection
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.server.process import ServerOptions
from mrsi_gadgets.server.supervisor import Server
from mrsi_gadgets.stream.messages import Close, ConfigFile, ConfigText, ErrorText, Header, Image, Message, Text
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection
from mrsi_gadgets.stream.wire import encode
from peers import receive_until_end
from small_scan import SmallScan

SESSION_S = 60.0
"""No session of a test takes longer, even where many programs share the processors."""
OPTIONS = ServerOptions(port=0, scan=ScanOptions(device="cpu"), log_level="ERROR")
NODE_CONFIG = (
    "<configuration><chain><prewhiten/><field_map/><combine_coils/><reconstruct method='fourier'/><quantify/>"
    "<console_images/></chain></configuration>"
)
"""What a Gadgetron sends to its external node; as recipe ``fourier``, but without gridding."""


@contextmanager
def serving(**changes) -> Iterator[Server]:
    """A server on a free port of this machine, in a thread."""
    server = Server(replace(OPTIONS, **changes))
    try:
        server.start()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
    except BaseException:
        server.stop()
        raise
    try:
        yield server
    finally:
        server.stop()
        thread.join(SESSION_S)
    assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SESSION_S)


def opening(scan: SmallScan, config: ConfigFile | ConfigText | str = "fourier") -> list[Message]:
    return [ConfigFile(config) if isinstance(config, str) else config, Header(scan.header_xml)]


def session(port: int, messages: Iterable[Message]) -> list[Message]:
    """Send everything, then read what comes back up to its end, CLOSE included."""
    with connected(port) as sock:
        sock.sendall(b"".join(encode(message) for message in messages))
        return receive_until_end(sock)


def session_in_thread(messages: Iterable[Message], *, peer: Peer = Peer.AUTO) -> list[Message]:
    """As `session`, but what a session process does runs in a thread of this one: no process has to start."""
    theirs, ours = socket.socketpair()
    ours.settimeout(SESSION_S)
    thread = threading.Thread(target=run_connection, args=(Connection(theirs, peer=peer), OPTIONS.scan), daemon=True)
    thread.start()
    with ours:
        sender = threading.Thread(target=ours.sendall, args=(b"".join(encode(m) for m in messages),), daemon=True)
        sender.start()
        answer = receive_until_end(ours)
        sender.join(SESSION_S)
    thread.join(SESSION_S)
    assert not thread.is_alive(), "the session did not end"
    return answer


def whole(scan: SmallScan, config: ConfigFile | ConfigText | str = "fourier") -> list[Message]:
    return [*opening(scan, config), *scan.readouts, Close()]


def images_of(messages: Iterable[Message]) -> list[Image]:
    return [message for message in messages if isinstance(message, Image)]


def error_of(messages: list[Message]) -> str:
    """The one sentence of a failed session in the dialect of a client, after which only CLOSE may come."""
    sentences = [m.text for m in messages if isinstance(m, Text) and m.text.startswith("ERROR")]
    assert isinstance(messages[-1], Close)
    assert not any(isinstance(m, ErrorText) for m in messages), "ERROR (8) is a Gadgetron's word"
    assert len(sentences) == 1
    assert sentences[0].startswith("ERROR   ")
    assert "\n" not in sentences[0]
    return sentences[0].removeprefix("ERROR   ")


def assert_same_images(found: list[Image], expected: list[Image]) -> None:
    """Bit for bit: header, attributes, pixels."""
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.head.tobytes() == theirs.head.tobytes()
        assert ours.attributes == theirs.attributes
        assert ours.data.dtype == theirs.data.dtype
        np.testing.assert_array_equal(ours.data, theirs.data)
