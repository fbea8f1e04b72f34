"""What real peers put on the wire is what the file holds, readout by readout."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from mrsi_gadgets.stream.messages import Acquisition, Close, ConfigFile, ConfigText, Header
from mrsi_gadgets.stream.session import Peer, Session, State
from mrsi_gadgets.stream.wire import Decoder

RECORDINGS = {
    "recorded_gadgetron_to_external_node.bin": (ConfigText, Peer.GADGETRON),
    "recorded_gadgetron_client.bin": (ConfigText, Peer.FIRE),
    "recorded_fire_client.bin": (ConfigFile, Peer.FIRE),
}


def flat_head(head: np.void) -> list:
    """Every number of a header, whatever the exact layout of its type."""
    return [
        value
        for name in head.dtype.names
        for value in (flat_head(head[name]) if head[name].dtype.names else np.ravel(head[name]).tolist())
    ]


@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_recorded_session_holds_exactly_the_readouts_of_the_file(recording, shared_data):
    kind, peer = RECORDINGS[recording]
    decoder, session = Decoder(), Session()
    messages = list(decoder.feed((shared_data / recording).read_bytes()))
    decoder.finish()
    for message in messages:
        assert session.receive(message) is None
    assert session.state is State.CLOSED
    assert session.peer is peer
    config, header, *readouts, close = messages
    assert isinstance(config, kind)
    assert isinstance(header, Header)
    assert isinstance(close, Close)
    assert "mrsi_dwell" in header.xml
    assert not header.xml.endswith("\0")
    with h5py.File(shared_data / "csi_8x8.h5") as file:
        rows = file["dataset/data"][:]
    assert len(readouts) == len(rows) == 130
    for message, row in zip(readouts, rows, strict=True):
        assert isinstance(message, Acquisition)
        assert flat_head(message.head) == flat_head(row["head"])
        np.testing.assert_array_equal(message.data.ravel().view(np.float32), row["data"])
        assert message.trajectory is None
        assert len(row["traj"]) == 0


def test_the_recorded_client_of_fire_names_its_recipe(shared_data):
    first = next(Decoder().feed((shared_data / "recorded_fire_client.bin").read_bytes()))
    assert isinstance(first, ConfigFile)
    assert first.name == "mrsi_subspace"
