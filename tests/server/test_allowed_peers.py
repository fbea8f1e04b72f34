"""Who may speak to the server."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from mrsi_gadgets.cli import main
from mrsi_gadgets.server.supervisor import is_allowed
from mrsi_gadgets.stream.messages import Close, ConfigFile
from served import connected, serving, session

NETWORKS = (ip_network("10.1.2.0/24"), ip_network("2001:db8::/64"))


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        ("192.0.2.7", (), True),
        ("127.0.0.1", NETWORKS, True),
        ("::1", NETWORKS, True),
        ("10.1.2.77", NETWORKS, True),
        ("::ffff:10.1.2.77", NETWORKS, True),
        ("10.1.3.1", NETWORKS, False),
        ("::ffff:10.1.3.1", NETWORKS, False),
        ("2001:db8::5", NETWORKS, True),
        ("2001:db8:1::5", NETWORKS, False),
        ("fe80::1%eth0", NETWORKS, False),
    ],
)
def test_networks_say_who_may_speak(address, networks, allowed):
    assert is_allowed(address, networks) is allowed


def test_this_machine_may_always_speak():
    with serving(allowed=NETWORKS) as live:
        assert isinstance(session(live.port, [ConfigFile("fourier"), Close()])[-1], Close)


def test_a_peer_that_may_not_speak_is_sent_away(monkeypatch, caplog):
    monkeypatch.setattr("mrsi_gadgets.server.supervisor.is_allowed", lambda address, networks: False)
    with serving() as live, connected(live.port) as sock:
        assert sock.recv(1) == b""
    assert "may not speak" in caplog.text


def test_what_is_no_network_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--allow", "10.0.0.0/24,console"])
    assert "is no list of addresses" in capsys.readouterr().err
