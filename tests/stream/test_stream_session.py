"""The order of messages, telling peers apart, and the words for a failure."""

from __future__ import annotations

import logging
import time

import pytest

from mrsi_gadgets.errors import ProtocolError
from mrsi_gadgets.stream.messages import (
    Close,
    ConfigFile,
    ConfigText,
    ErrorText,
    Header,
    Query,
    Response,
    Text,
)
from mrsi_gadgets.stream.session import MOST_QUERIES, Peer, Session, Side, State, detect_peer, failure_messages
from peers import EXTERNAL_NODE_CONFIG, HEADER_XML, image, readout, waveform

STREAM_CONFIG = (
    "<configuration><stream><external><configuration><chain/></configuration></external></stream></configuration>"
)
MESSAGES = {
    "config_file": ConfigFile("fourier"),
    "config": ConfigText(STREAM_CONFIG),
    "header": Header(HEADER_XML),
    "close": Close(),
    "text": Text("INFO    x"),
    "query": Query(1, "ismrmrd::version"),
    "response": Response(1, "x"),
    "error": ErrorText("x"),
    "acquisition": readout(),
    "image": image(),
    "waveform": waveform(),
}
NUMBERS = dict(zip(MESSAGES, (1, 2, 3, 4, 5, 6, 7, 8, 1008, 1022, 1026), strict=True))
DATA = ("text", "acquisition", "image", "waveform")
LEGAL = {
    State.CONFIG: {"config_file": State.HEADER, "config": State.HEADER, "query": State.CONFIG, "close": State.CLOSED},
    State.HEADER: {"header": State.STREAM, "query": State.HEADER, "close": State.CLOSED},
    State.STREAM: {**dict.fromkeys(DATA, State.STREAM), "query": State.STREAM, "close": State.CLOSED},
    State.CLOSED: {},
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_in_each_state_is_either_taken_or_refused_with_its_name(state, name):
    session = Session(state=state)
    after = LEGAL[state].get(name)
    if after is None:
        with pytest.raises(ProtocolError, match=rf"\({NUMBERS[name]}\)"):
            session.receive(MESSAGES[name])
        assert session.state is state
    else:
        session.receive(MESSAGES[name])
        assert session.state is after


def test_a_second_configuration_and_a_second_header_are_named_as_such():
    session = Session()
    session.receive(ConfigFile("fourier"))
    with pytest.raises(ProtocolError, match="A second configuration"):
        session.receive(ConfigText(STREAM_CONFIG))
    session.receive(Header(HEADER_XML))
    with pytest.raises(ProtocolError, match=r"A second HEADER \(3\)"):
        session.receive(Header(HEADER_XML))
    with pytest.raises(ProtocolError, match="A second configuration"):
        session.receive(ConfigFile("fourier"))


def test_a_pipe_may_begin_with_the_header():
    session = Session(config_optional=True)
    session.receive(Header(HEADER_XML))
    assert session.state is State.STREAM
    with pytest.raises(ProtocolError, match="expected was one of CONFIG_FILE"):
        Session().receive(Header(HEADER_XML))


@pytest.mark.parametrize(
    ("config", "peer"),
    [
        (ConfigFile("mrsi_subspace"), Peer.FIRE),
        (ConfigFile("openrecon"), Peer.FIRE),
        (ConfigText(EXTERNAL_NODE_CONFIG), Peer.GADGETRON),
        (ConfigText("<configuration><chain><prewhiten/></chain></configuration>"), Peer.GADGETRON),
        (ConfigText('<?xml version="1.0"?>\n'), Peer.GADGETRON),
        (ConfigText(STREAM_CONFIG), Peer.FIRE),
        (ConfigText("<configuration><!-- <stream/> --><chain/></configuration>"), Peer.GADGETRON),
        (ConfigText("<configuration><!-- <chain/> --></configuration>"), Peer.FIRE),
        (ConfigText('{"chain": 1}'), Peer.FIRE),
        (ConfigText(""), Peer.FIRE),
    ],
)
def test_the_peer_is_told_from_its_configuration(config, peer):
    assert detect_peer(config) is peer
    session = Session()
    session.receive(config)
    assert session.peer is peer


@pytest.mark.parametrize("begin", ["", "<configuration><chain/>"])
@pytest.mark.parametrize("part", ["<!--", "<![CDATA[", "<", "<a", "<!---->", "<?xml", "<a.", "<a:"])
def test_whoever_sends_it_cannot_make_a_configuration_long_to_look_at(part, begin):
    took = []
    for length in (60_000, 240_000):
        start = time.process_time()
        detect_peer(ConfigText(begin + part * (length // len(part))))
        took.append(time.process_time() - start)
    assert took[1] < 10 * took[0] + 0.05, "four times the length may not take sixteen times as long"


@pytest.mark.parametrize("peer", [Peer.FIRE, Peer.GADGETRON])
def test_a_peer_that_was_named_is_not_detected(peer):
    session = Session(peer)
    session.receive(ConfigText(EXTERNAL_NODE_CONFIG))
    assert session.peer is peer


def test_a_query_of_a_client_is_answered_in_every_state_before_close():
    session = Session(answers={"ismrmrd::version": "1.15"})
    for opening in (None, ConfigFile("fourier"), Header(HEADER_XML), readout()):
        if opening is not None:
            session.receive(opening)
        reply = session.receive(Query(12, "ismrmrd::version"))
        assert isinstance(reply, Response)
        assert (reply.correlation, reply.text) == (12, "1.15")
    assert "known are: ismrmrd::version" in session.receive(Query(1, "gadgetron::info")).text


def test_a_peer_cannot_fill_memory_with_answers_it_does_not_read():
    session = Session()
    for _ in range(MOST_QUERIES):
        assert session.receive(Query(1, "x")) is not None
    with pytest.raises(ProtocolError, match="More than 1000 queries"):
        session.receive(Query(1, "x"))


def test_a_query_of_a_gadgetron_is_never_answered():
    assert Session(Peer.GADGETRON, answers={"a": "b"}).receive(Query(1, "a")) is None


def test_a_failure_is_text_to_a_client_and_error_to_a_gadgetron():
    text, close = failure_messages(Peer.FIRE, "no water\nreference")
    assert text.text == "ERROR   no water reference"
    assert isinstance(close, Close)
    error, close = failure_messages(Peer.GADGETRON, "no water reference")
    assert isinstance(error, ErrorText)
    assert error.text == "no water reference"
    assert isinstance(close, Close)
    assert isinstance(failure_messages(Peer.AUTO, "x")[0], Text)


def test_text_is_never_sent_to_a_gadgetron():
    gadgetron, fire = Session(Peer.GADGETRON), Session(Peer.FIRE)
    assert not gadgetron.may_send(Text("INFO    x"))
    assert not gadgetron.may_send(Response(1, "x"))
    assert gadgetron.may_send(image())
    assert fire.may_send(Text("INFO    x"))
    with pytest.raises(ProtocolError, match="only sent to a Gadgetron"):
        fire.may_send(ErrorText("x"))
    with pytest.raises(ProtocolError, match="never sent by a server"):
        fire.may_send(Header(HEADER_XML))


def test_a_client_takes_results_and_errors_but_no_configuration():
    session = Session(Peer.FIRE, side=Side.CLIENT)
    for message in (Text("x"), image(), ErrorText("x"), Response(1, "x")):
        session.receive(message)
    with pytest.raises(ProtocolError, match=r"HEADER \(3\) came"):
        session.receive(Header(HEADER_XML))
    session.receive(Close())
    assert session.state is State.CLOSED


def test_another_channel_count_is_normal_for_noise_and_a_warning_within_a_kind(caplog):
    session = Session(state=State.STREAM)
    with caplog.at_level(logging.WARNING, "mrsi.stream"):
        for message in (readout(4, noise=True), readout(3), readout(4, noise=True), readout(3)):
            session.receive(message)
        assert not caplog.records
        session.receive(readout(2, counter=17))
    assert "readout 17 has 2 channels, those of its kind before it had 3" in caplog.text
