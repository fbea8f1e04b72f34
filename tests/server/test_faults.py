"""A few faults of every kind that `make faults` injects by the thousand."""

from __future__ import annotations

import pytest

import faulty
from mrsi_gadgets.stream.session import Peer

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def expected():
    return faulty.expected_images()


def assert_good(kind: faulty.Kind, faults: int) -> None:
    assert kind.faults == faults
    assert not kind.details
    assert kind.good


def test_a_connection_cut_anywhere_is_an_aborted_scan_and_loses_nothing(tmp_path):
    kind = faulty.cut_everywhere(tmp_path / "spool", step=149)
    assert_good(kind, 40)
    assert kind.kept_readouts > 10
    assert any("stream ended inside a message" in sentence for sentence in kind.sentences)


def test_a_longer_scan_cut_at_random_places_loses_nothing(tmp_path):
    kind = faulty.cut_long(tmp_path / "spool", count=6)
    assert_good(kind, 6)
    assert kind.kept_readouts > 100


def test_garbage_between_messages_ends_a_session_and_keeps_what_came_before(tmp_path):
    assert_good(faulty.garbage(tmp_path / "spool", step=30), 4)


def test_a_full_disk_costs_raw_data_from_then_on_and_no_image(tmp_path, expected):
    kind = faulty.disk_full(tmp_path / "spool", expected, count=3)
    assert_good(kind, 3)
    assert all("No space left on device" in sentence for sentence in kind.sentences)


def test_a_folder_that_cannot_be_used_costs_no_image(tmp_path, expected):
    assert_good(faulty.spool_refused(tmp_path / "spool", expected, count=1), 1)


def test_refused_memory_is_told_to_both_peers(tmp_path):
    kind = faulty.memory_refused(tmp_path / "spool")
    assert kind.faults >= 15
    assert_good(kind, kind.faults)


def test_a_jumping_clock_changes_nothing(tmp_path, expected):
    assert_good(faulty.clock_jumps(tmp_path / "spool", expected, count=2), 2)


def test_sessions_in_a_row_give_the_same_images(tmp_path, expected):
    assert_good(faulty.in_a_row(tmp_path / "spool", expected, count=4), 4)


def test_a_process_that_dies_or_stops_at_a_gadget_is_told_and_its_scan_recovered(tmp_path):
    kind = faulty.killed_at_gadgets(tmp_path / "spool", elements=["reconstruct"], peers=(Peer.FIRE,))
    assert_good(kind, 3)
    assert any("ended by SIGSEGV" in sentence for sentence in kind.sentences)
    assert any("it hung" in sentence for sentence in kind.sentences)


def test_the_check_notices_a_readout_that_is_not_there(tmp_path, monkeypatch):
    """A spool that drops what came last must not pass."""
    real = faulty.spool_module.SessionSpool.keep
    monkeypatch.setattr(faulty.spool_module.SessionSpool, "keep", lambda self, chunk: real(self, chunk[:-1000]))
    kind = faulty.cut_long(tmp_path / "spool", count=4)
    assert kind.lost_readouts
    assert not kind.good
