"""The chain as a Gadgetron's external node: started by it, or as a server that it connects to."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.gadgets.node import chain, run_connection
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.spool_archive import list_sessions
from mrsi_gadgets.io.spool_log import State
from mrsi_gadgets.recover import recover
from mrsi_gadgets.stream.messages import Close, ConfigText, ErrorText, Image
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection
from mrsi_gadgets.stream.wire import encode
from peers import GadgetronRecord, GadgetronSide, receive_until_end
from served import NODE_CONFIG, OPTIONS, SESSION_S, assert_same_images, connected, serving, session_in_thread, whole
from small_scan import SmallScan, small_scan

pytestmark = pytest.mark.timeout(180)
NODE = ("-m", "gadgetron", "{port}", "mrsi_gadgets.gadgets", "chain")


@pytest.fixture(scope="module")
def in_process() -> list[Image]:
    scan = small_scan()
    given = replay.Scan(scan.header_xml, scan.readouts, None, "small", ConfigText(NODE_CONFIG))
    return replay.replay_here(given, ScanOptions(device="cpu")).images


@contextmanager
def external_node() -> Iterator[tuple[socket.socket, subprocess.Popen]]:
    """What a Gadgetron does for ``<execute>``: a listening port, and the module as a child without standard input."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SESSION_S)
        command = [sys.executable, *(part.format(port=listener.getsockname()[1]) for part in NODE)]
        closed_stdin = ["/bin/sh", "-c", f"exec {shlex.join(command)} <&-"]
        environment = os.environ | {"MRSI_DEVICE": "cpu", "GADGETRON_EXTERNAL_LOG_LEVEL": "INFO"}
        process = subprocess.Popen(closed_stdin, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            sock, _ = listener.accept()
            sock.settimeout(SESSION_S)
            yield sock, process
        finally:
            process.kill()
            process.communicate(timeout=SESSION_S)


def through_node(scan: SmallScan, config: str = NODE_CONFIG) -> tuple[GadgetronRecord, int, str]:
    """Run a scan through the module as a Gadgetron starts it; what it recorded, the exit code, the module's log."""
    with external_node() as (sock, process):
        record = GadgetronSide(sock, scan.readouts, header_xml=scan.header_xml, config=config).result(SESSION_S)
        _, errors = process.communicate(timeout=SESSION_S)
        return record, process.returncode, errors


def through_server(scan: SmallScan, peer: Peer) -> GadgetronRecord:
    with serving(peer=peer, warm=0) as server:
        sock = connected(server.port)
        return GadgetronSide(sock, scan.readouts, header_xml=scan.header_xml, config=NODE_CONFIG).result(SESSION_S)


def with_nan(scan: SmallScan) -> SmallScan:
    samples = scan.readouts[60].data.copy()
    samples[2, 7] = np.nan
    return scan.changed(60, samples)


def test_the_module_a_gadgetron_starts_returns_the_images_of_this_process_and_answers_close(in_process):
    record, code, log = through_node(small_scan())
    assert_same_images(record.items, in_process)
    assert (record.errors, record.illegal, record.closed) == ([], [], True)
    assert code == 0, log
    assert "Traceback" not in log


def test_the_module_keeps_raw_data_before_it_processes_them(in_process, tmp_path, monkeypatch):
    monkeypatch.setenv("MRSI_SPOOL", str(tmp_path / "spool"))
    through_node(with_nan(small_scan()))
    through_node(small_scan())
    failed, finished = list_sessions(tmp_path / "spool")
    assert (failed.state, failed.end.closed) == (State.FAILED, True)
    assert "not finite" in failed.end.cause
    assert (finished.state, finished.end.readouts) == (State.FINISHED, len(small_scan().readouts))
    assert_same_images(recover(tmp_path / "spool", finished.file.number, {"device": "cpu"}).images, in_process)
    monkeypatch.setenv("MRSI_SPOOL", "off")
    record, _, _ = through_node(small_scan())
    assert_same_images(record.items, in_process)
    assert len(list_sessions(tmp_path / "spool")) == 2


@pytest.mark.parametrize("peer", [Peer.GADGETRON, Peer.AUTO])
def test_a_server_that_a_gadgetron_connects_to_returns_the_same_images(peer, in_process):
    record = through_server(small_scan(), peer)
    assert_same_images(record.items, in_process)
    assert (record.errors, record.illegal, record.closed) == ([], [], True)


def test_a_failure_in_the_module_reaches_the_gadgetron_as_one_error_then_close():
    record, code, log = through_node(with_nan(small_scan()))
    assert record.items == []
    (sentence,) = record.errors
    assert "readout 60 holds values that are not finite (NaN or infinite) in channel 2" in sentence
    assert (record.illegal, record.closed) == ([], True)
    assert code == 0, log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("config", "header"), [(b"<configuration>\xff", b"<a/>"), (NODE_CONFIG.encode(), b"<a>\xfc</a>")]
)
def test_what_gadgetron_python_read_and_cannot_be_decoded_is_told_to_the_gadgetron(config, header):
    theirs, ours = socket.socketpair()
    ours.settimeout(SESSION_S)
    held = SimpleNamespace(socket=theirs)
    connection = SimpleNamespace(socket=held, raw_bytes=SimpleNamespace(config=config, header=header))
    node = threading.Thread(target=chain, args=(connection,), daemon=True)
    node.start()
    with ours:
        ours.sendall(b"".join(encode(m) for m in [*small_scan().readouts[:3], Close()]))
        error, close = receive_until_end(ours)
    node.join(SESSION_S)
    assert isinstance(error, ErrorText)
    assert re.fullmatch(r"the (configuration|ISMRMRD header) is not valid UTF-8 at its byte \d+; .*", error.text)
    assert isinstance(close, Close)


def test_an_external_node_without_a_configuration_is_told_what_to_write_there():
    record, code, log = through_node(small_scan(), config='<?xml version="1.0"?>\n')
    assert ["<chain>" in sentence for sentence in record.errors] == [True]
    assert (record.items, record.illegal, record.closed) == ([], [], True)
    assert code == 0, log


@pytest.mark.parametrize("damage", [None, with_nan, lambda scan: scan.with_readouts(scan.water + scan.metabolites)])
def test_a_gadgetron_never_gets_a_text(damage):
    scan = damage(small_scan()) if damage else small_scan()
    answer = session_in_thread(whole(scan, ConfigText(NODE_CONFIG)), peer=Peer.GADGETRON)
    assert {type(message) for message in answer} <= {Image, ErrorText, Close}
    assert isinstance(answer[-1], Close)


def test_a_gadgetron_hears_of_a_failure_only_after_its_close():
    scan = with_nan(small_scan())
    messages = whole(scan, ConfigText(NODE_CONFIG))
    theirs, ours = socket.socketpair()
    connection = Connection(theirs, peer=Peer.GADGETRON)
    session = threading.Thread(target=run_connection, args=(connection, OPTIONS.scan), daemon=True)
    session.start()
    with ours:
        ours.sendall(b"".join(encode(message) for message in messages[:-1]))
        ours.settimeout(1.0)  # the damage was met long ago
        with pytest.raises(TimeoutError):
            ours.recv(1)
        ours.settimeout(SESSION_S)
        ours.sendall(encode(messages[-1]))
        error, close = receive_until_end(ours)
    session.join(SESSION_S)
    assert isinstance(error, ErrorText)
    assert isinstance(close, Close)
