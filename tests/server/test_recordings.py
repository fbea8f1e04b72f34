"""What real peers sent, byte for byte, through a live server and in this process."""

from __future__ import annotations

import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, ConfigText, Header, Message, Text
from mrsi_gadgets.stream.session import Peer, detect_peer
from mrsi_gadgets.stream.wire import Decoder
from peers import receive_until_end
from served import assert_same_images, connected, images_of, serving

pytestmark = pytest.mark.timeout(180)
RECORDINGS = ["recorded_gadgetron_to_external_node.bin", "recorded_gadgetron_client.bin", "recorded_fire_client.bin"]


@pytest.fixture(scope="module")
def server():
    with serving() as live:
        yield live


def parsed(recording: bytes) -> tuple[ConfigFile | ConfigText, Header, list[Message]]:
    decoder = Decoder()
    config, header, *readouts, close = decoder.feed(recording)
    decoder.finish()
    assert isinstance(config, ConfigFile | ConfigText)
    assert isinstance(header, Header)
    assert isinstance(close, Close)
    return config, header, readouts


def here(config: ConfigFile | ConfigText | None, header_xml: str, readouts, recipe: str | None = None):
    scan = replay.Scan(header_xml, readouts, None, "recording", config)
    return replay.replay_here(scan, ScanOptions(recipe=recipe, device="cpu")).images


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recorded_session_runs_unchanged_through_a_live_server_and_in_this_process(name, server, shared_data):
    recording = (shared_data / name).read_bytes()
    with connected(server.port) as sock:
        sock.sendall(recording)
        answer = receive_until_end(sock)
    assert isinstance(answer[-1], Close)
    config, header, readouts = parsed(recording)
    assert sum(isinstance(message, Acquisition) for message in readouts) == 130
    texts = [message for message in answer if isinstance(message, Text)]
    # only a client takes texts
    assert bool(texts) == (detect_peer(config) is Peer.FIRE)
    assert not [text for text in texts if text.text.startswith("ERROR")]
    images = images_of(answer)
    assert_same_images(images, here(config, header.xml, readouts))
    assert {"tNAA", "tCr", "tCho", "Ins", "Glx"} <= set(gather(images).maps)


def test_the_name_a_real_client_sends_is_the_recipe_subspace(shared_data):
    config, header, readouts = parsed((shared_data / "recorded_fire_client.bin").read_bytes())
    assert isinstance(config, ConfigFile)
    assert config.name == "mrsi_subspace"
    assert_same_images(here(config, header.xml, readouts), here(None, header.xml, readouts, recipe="subspace"))


def test_a_recording_and_the_file_it_was_made_from_give_the_same_images(shared_data):
    config, header, readouts = parsed((shared_data / "recorded_fire_client.bin").read_bytes())
    scan = replay.open_scan(str(shared_data / "csi_8x8.h5"))
    from_file = replay.replay_here(scan, ScanOptions(recipe="mrsi_subspace", device="cpu")).images
    assert_same_images(here(config, header.xml, readouts), from_file)
