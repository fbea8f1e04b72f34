"""The folder of the trajectory store, from the command line to the sorting."""

from __future__ import annotations

import pytest
from test_spirals import SpiralScan

from mrsi_gadgets.cli import main
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.mrd_file import write_scan

SCAN = SpiralScan(identifier="arms", matrix=(10, 8, 1))


@pytest.fixture
def spiral_file(tmp_path):
    write_scan(tmp_path / "spiral.h5", SCAN.xml(), SCAN.readouts())
    return str(tmp_path / "spiral.h5")


def test_check_takes_the_store_that_is_named(spiral_file, tmp_path, capsys):
    assert main(["check", spiral_file]) == 1
    assert "give its folder with --trajectories" in capsys.readouterr().out
    (tmp_path / "store").mkdir()
    assert main(["check", spiral_file, "--trajectories", str(tmp_path / "store")]) == 1
    assert "has no entry 'arms'; add arms.npz" in capsys.readouterr().out
    SCAN.store(tmp_path / "store")
    assert main(["check", spiral_file, "--trajectories", str(tmp_path / "store")]) == 0
    assert "88 k-space points of 12 samples" in capsys.readouterr().out


def test_a_store_that_is_no_folder_is_refused(spiral_file, tmp_path, capsys):
    assert main(["check", spiral_file, "--trajectories", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is no folder; name the folder of the ID.npz files" in capsys.readouterr().err


def test_the_store_is_a_decision_of_the_server(spiral_file, tmp_path, capsys):
    target = str(tmp_path / "out")
    assert main(["replay", spiral_file, "-o", target, "--to", "127.0.0.1:1", "--trajectories", str(tmp_path)]) == 1
    assert "--trajectories are decisions of the server" in capsys.readouterr().err


def test_without_a_name_the_sites_own_store_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("MRSI_CONFIG_DIR", raising=False)
    assert ScanOptions().trajectory_folder is None
    assert ScanOptions(site=tmp_path).trajectory_folder == tmp_path / "trajectories"
    assert ScanOptions(site=tmp_path, trajectories=tmp_path / "x").trajectory_folder == tmp_path / "x"
    monkeypatch.setenv("MRSI_CONFIG_DIR", str(tmp_path / "site"))
    assert ScanOptions().trajectory_folder == tmp_path / "site" / "trajectories"
