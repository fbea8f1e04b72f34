"""The codec: acceptance points 1, 2, 4, 5, 10 and 11 of the protocol."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsi_gadgets.errors import ConfigError, DataError, PeerLost, ProtocolError
from mrsi_gadgets.stream.framing import FrameScanner
from mrsi_gadgets.stream.limits import Limits
from mrsi_gadgets.stream.messages import (
    ACQUISITION_HEADER,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    Flag,
    Header,
    Image,
    Text,
)
from mrsi_gadgets.stream.wire import BUFFER_BYTES, DIRECT_BYTES, Decoder, encode
from peers import image, one_of_each, readout, short_session

SESSION = [encode(message) for message in one_of_each()]
STREAM = b"".join(SESSION)


def decode(stream: bytes, limits: Limits | None = None) -> list:
    decoder = Decoder(limits)
    messages = list(decoder.feed(stream))
    if decoder.closed:
        decoder.finish()
    return messages


def test_every_message_survives_encoding_and_decoding():
    decoded = decode(STREAM)
    assert [type(m) for m in decoded] == [type(m) for m in one_of_each()]
    assert [encode(m) for m in decoded] == SESSION


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, len(STREAM)), max_size=40))
def test_decoding_does_not_depend_on_where_the_stream_is_cut(cuts):
    edges = sorted({0, len(STREAM), *cuts})
    decoder, messages = Decoder(), []
    for start, stop in pairwise(edges):
        messages.extend(encode(m) for m in decoder.feed(STREAM[start:stop]))
    decoder.finish()
    assert messages == SESSION


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, len(STREAM)), max_size=40))
def test_receiving_into_the_buffer_gives_the_same_as_feeding(cuts):
    edges = sorted({0, len(STREAM), *cuts})
    decoder, messages = Decoder(), []
    for start, stop in pairwise(edges):
        piece = STREAM[start:stop]
        decoder.buffer()[: len(piece)] = piece
        messages.extend(encode(m) for m in decoder.commit(len(piece)))
    assert messages == SESSION


def test_one_byte_at_a_time_is_enough():
    decoder, messages = Decoder(), []
    for position in range(len(STREAM)):
        messages.extend(encode(m) for m in decoder.feed(STREAM[position : position + 1]))
    assert messages == SESSION


def test_a_session_cut_at_any_byte_is_lost_and_never_complete():
    parts = [encode(m) for m in short_session()]
    stream = b"".join(parts)
    whole = {sum(len(p) for p in parts[:n]): n for n in range(len(parts) + 1)}
    for cut in range(len(stream)):
        decoder = Decoder()
        messages = list(decoder.feed(stream[:cut]))
        assert len(messages) == max(n for end, n in whole.items() if end <= cut)
        words = "without CLOSE" if cut in whole else "inside a message"
        with pytest.raises(PeerLost, match=words):
            decoder.finish()
    assert len(decode(stream)) == len(parts)


@pytest.mark.parametrize("number", [0, 9, 999, 1009, 4711, 65535])
def test_an_unknown_number_is_refused_with_number_and_byte_offset(number):
    start = len(SESSION[0])
    decoder = Decoder()
    messages = decoder.feed(SESSION[0] + struct.pack("<H", number) + bytes(2000))
    assert isinstance(next(messages), ConfigFile)
    with pytest.raises(ProtocolError, match=rf"number {number} at byte {start} of the stream is unknown"):
        next(messages)


@pytest.mark.parametrize(("number", "name"), [(1023, "RECONDATA"), (1024, "IMAGE_ARRAY"), (1019, "DEPENDENCY_QUERY")])
def test_a_number_of_another_program_is_refused_by_its_name(number, name):
    with pytest.raises(ProtocolError, match=rf"Message {number} \({name}\) at byte 0 .* send plain readouts"):
        decode(struct.pack("<H", number))


def head_of(kind: np.dtype, **fields) -> bytes:
    head = np.zeros(1, kind)
    for name, value in fields.items():
        head[name] = value
    return head.tobytes()


HUGE = {
    "configuration": struct.pack("<HI", 2, 64 * 2**20 + 1),
    "header": struct.pack("<HI", 3, 2**32 - 1),
    "text": struct.pack("<HI", 5, 2**31),
    "query": struct.pack("<HQQQ", 6, 0, 1, 2**63),
    "response": struct.pack("<HQQ", 7, 1, 2**40),
    "error": struct.pack("<HQ", 8, 2**64 - 1),
    "attributes": struct.pack("<H", 1022) + head_of(IMAGE_HEADER, data_type=5) + struct.pack("<Q", 16 * 2**20 + 1),
    "pixels": struct.pack("<H", 1022)
    + head_of(IMAGE_HEADER, data_type=8, channels=4, matrix_size=(65535, 65535, 4))
    + bytes(8),
    "channels": struct.pack("<H", 1008) + head_of(ACQUISITION_HEADER, active_channels=1025, number_of_samples=1),
    "trajectory": struct.pack("<H", 1008) + head_of(ACQUISITION_HEADER, trajectory_dimensions=9, number_of_samples=1),
    "waveform": struct.pack("<H", 1026) + head_of(WAVEFORM_HEADER, channels=60000, number_of_samples=60000),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_length_above_its_limit_is_refused_before_memory_is_taken(name):
    decoder = Decoder()
    tracemalloc.start()
    with pytest.raises(ProtocolError, match=r"byte 0 of the stream announces \d+ .* more than the limit of \d+"):
        list(decoder.feed(HUGE[name]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_the_limit_on_array_bytes_is_configurable():
    stream = encode(readout(4, 100))
    assert len(decode(stream, Limits(array_bytes=3200))) == 1
    with pytest.raises(ProtocolError, match="announces 3200 bytes of samples, more than the limit of 3199"):
        decode(stream, Limits(array_bytes=3199))


def test_an_image_of_unknown_pixel_type_is_refused():
    with pytest.raises(ProtocolError, match="data_type 9"):
        decode(struct.pack("<H", 1022) + head_of(IMAGE_HEADER, data_type=9) + bytes(8))


@pytest.mark.parametrize("flag", [53, 54, 55, 56])
def test_compressed_readouts_are_refused_clearly(flag):
    message = readout()
    message.head["flags"] = 1 << (flag - 1)
    with pytest.raises(ProtocolError, match=r"readout at byte 0 .* is compressed \(flags 53 to 56\)"):
        decode(encode(message))


@pytest.mark.parametrize("flag", [52, 57])
def test_flags_beside_those_of_compression_are_let_through(flag):
    message = readout()
    message.head["flags"] = 1 << (flag - 1)
    assert decode(encode(message))[0].has(Flag.USER1) == (flag == 57)


@pytest.mark.parametrize("nul", [b"", b"\0", b"\0\0\0"])
def test_texts_lose_trailing_nuls_and_nothing_else(nul):
    body = "<a>µ</a>\n".encode() + nul
    for number, kind in ((2, ConfigText), (3, Header), (5, Text)):
        (message,) = decode(struct.pack("<HI", number, len(body)) + body)
        assert isinstance(message, kind)
        assert (message.xml if kind is Header else message.text) == "<a>µ</a>\n"


def test_the_attributes_of_a_gadgetron_image_lose_their_nul():
    sent = image(attributes="<ismrmrdMeta/>")
    plain = encode(sent)
    position = 2 + 198
    counted = plain[:position] + struct.pack("<Q", 15) + b"<ismrmrdMeta/>\0" + plain[position + 8 + 14 :]
    (message,) = decode(counted)
    assert message.attributes == "<ismrmrdMeta/>"
    np.testing.assert_array_equal(message.data, sent.data)


def test_both_forms_of_a_configuration_are_read():
    name, text = decode(encode(ConfigFile("mrsi_subspace")) + encode(ConfigText("<configuration/>")))
    assert name.name == "mrsi_subspace"
    assert text.text == "<configuration/>"


def test_a_name_followed_by_rubbish_after_its_nul_is_read_up_to_the_nul():
    (message,) = decode(struct.pack("<H", 1) + b"openrecon\0junk".ljust(1024, b"\xff"))
    assert message.name == "openrecon"


def test_xml_that_is_not_utf8_is_an_error_after_which_the_stream_can_be_read():
    bad = struct.pack("<HI", 3, 4) + b"<\xff/>"
    decoder = Decoder()
    with pytest.raises(DataError, match="ISMRMRD header is not valid UTF-8 at its byte 1"):
        list(decoder.feed(bad))
    assert isinstance(*decoder.feed(encode(Close())), Close)
    decoder.finish()


def test_console_text_that_is_not_utf8_is_shown_with_replacements():
    (message,) = decode(struct.pack("<HI", 5, 3) + b"a\xffb")
    assert message.text == "a\ufffdb"


def test_headers_and_arrays_are_own_writable_memory():
    decoder = Decoder()
    first, second = decoder.feed(encode(readout(2, 3, dimensions=2)) * 2)
    first.head["scan_counter"], first.data[:], first.trajectory[:] = 9, 0, -1
    again = readout(2, 3, dimensions=2)
    assert second.head["scan_counter"] == 0
    np.testing.assert_array_equal(second.data, again.data)
    np.testing.assert_array_equal(second.trajectory, again.trajectory)
    assert second.data.dtype == np.complex64
    assert second.trajectory.shape == (3, 2)


@pytest.mark.parametrize("chunk", [1000, 65536, 3_000_001])
def test_readouts_larger_than_the_buffer_are_received_into_their_own_memory(chunk):
    sent = [readout(64, 4001, dimensions=3, counter=1), image((3, 1, 200, 301), data_type=7), readout(2, 3), Close()]
    stream = b"".join(encode(m) for m in sent)
    assert sent[0].data.nbytes > DIRECT_BYTES
    decoder, messages = Decoder(), []
    for start in range(0, len(stream), chunk):
        messages.extend(decoder.feed(stream[start : start + chunk]))
    decoder.finish()
    assert [encode(m) for m in messages] == [encode(m) for m in sent]
    assert messages[0].data.flags.writeable


def test_a_large_message_that_is_cut_is_lost():
    stream = encode(readout(64, 4001))
    decoder = Decoder()
    assert not list(decoder.feed(stream[:-1]))
    with pytest.raises(PeerLost, match=f"{len(stream) - 1} bytes after its beginning at byte 0"):
        decoder.finish()


def test_a_text_larger_than_the_buffer_is_read_and_the_buffer_shrinks_again():
    text = "x" * (3 * BUFFER_BYTES)
    decoder = Decoder()
    (message,) = decoder.feed(encode(ConfigText(text)))
    assert message.text == text
    list(decoder.feed(encode(Close())))
    assert len(decoder.buffer()) <= BUFFER_BYTES


def test_the_layouts_are_those_of_the_ismrmrd_package():
    ismrmrd = pytest.importorskip("ismrmrd")
    theirs = ismrmrd.Acquisition.from_array(np.arange(10, dtype=np.complex64).reshape(2, 5))
    theirs.idx.kspace_encode_step_2, theirs.idx.user[7] = 11, 12
    theirs.user_float[7], theirs.center_sample, theirs.scan_counter = 2.5, 3, 77
    theirs.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    stream = struct.pack("<H", 1008) + bytes(theirs.getHead()) + theirs.data.tobytes()
    (message,) = decode(stream)
    assert isinstance(message, Acquisition)
    assert message.head["idx"]["kspace_encode_step_2"] == 11
    assert message.head["idx"]["user"][7] == 12
    assert message.head["user_float"][7] == 2.5
    assert message.head["scan_counter"] == 77
    assert message.has(Flag.IS_NOISE_MEASUREMENT)
    np.testing.assert_array_equal(message.data, theirs.data)
    assert encode(message) == stream


def test_pixels_are_x_fastest_in_an_image_of_unequal_sizes():
    sent = image((2, 3, 4, 5))
    assert tuple(sent.head["matrix_size"]) == (5, 4, 3)
    (received,) = decode(encode(sent))
    assert isinstance(received, Image)
    assert received.data.shape == (2, 3, 4, 5)
    assert received.data[0, 0, 0, 1] - received.data[0, 0, 0, 0] == 1
    assert received.data[0, 0, 1, 0] - received.data[0, 0, 0, 0] == 5


def test_a_readout_that_contradicts_its_header_is_not_encoded():
    message = readout(2, 3)
    message.head["number_of_samples"] = 4
    with pytest.raises(DataError, match=r"samples of the readout are complex64 \(2, 3\), .* says complex64 \(2, 4\)"):
        encode(message)
    message = readout(2, 3)
    message.data = message.data.astype(np.complex128)
    with pytest.raises(DataError, match="complex128"):
        encode(message)
    message = readout(2, 3, dimensions=2)
    message.trajectory = None
    with pytest.raises(DataError, match="announces 2 trajectory dimensions, but there is none"):
        encode(message)


def test_a_configuration_name_that_does_not_fit_is_refused():
    assert len(encode(ConfigFile("x" * 1023))) == 1026
    with pytest.raises(ConfigError, match="has 1024 bytes; CONFIG_FILE carries at most 1023"):
        encode(ConfigFile("x" * 1024))


def test_arrays_that_are_not_contiguous_are_sent_in_order():
    sent = readout(3, 5)
    sent.data = np.asfortranarray(sent.data)
    np.testing.assert_array_equal(decode(encode(sent))[0].data, sent.data)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, len(STREAM)), max_size=40))
def test_the_scanner_finds_the_same_boundaries_in_any_portions(cuts):
    ends = np.cumsum([len(part) for part in SESSION])
    edges = sorted({0, len(STREAM), *cuts})
    scanner = FrameScanner()
    for start, stop in pairwise(edges):
        boundary = scanner.advance(STREAM[start:stop])
        last = max([end for end in ends if end <= stop], default=0)
        assert boundary == max(last - start, 0)
        assert scanner.messages == np.count_nonzero(ends <= stop)
        assert scanner.at_boundary == (stop in ends)
    assert scanner.closed
    assert scanner.offset == len(STREAM)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(STREAM) - 1), st.binary(min_size=1, max_size=12))
def test_damaged_bytes_only_ever_raise_errors_of_the_wire(position, damage):
    stream = STREAM[:position] + damage + STREAM[position + len(damage) :]
    decoder = Decoder(Limits(array_bytes=2**20, text_bytes=2**20, attribute_bytes=2**20))
    try:
        list(decoder.feed(stream))
        decoder.finish()
    except (ProtocolError, DataError) as problem:
        assert str(problem).endswith(".")  # noqa: PT017 - most damage hits samples and raises nothing


def test_the_scanner_remembers_that_framing_is_lost():
    scanner = FrameScanner()
    with pytest.raises(ProtocolError, match="number 4711 at byte 2"):
        scanner.advance(encode(Close()) + struct.pack("<H", 4711))
    assert scanner.framing_lost
    assert not scanner.at_boundary
