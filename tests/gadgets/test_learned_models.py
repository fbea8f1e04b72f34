"""A session finds the learned model of its scan, once for all gadgets, and says in its result which one it was."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mrsi_gadgets.cli import main
from mrsi_gadgets.gadgets import context as context_module
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.model_store import find_model, save_model
from mrsi_gadgets.server.worker import options_from_text, options_to_text
from small_model import PROTOCOL, origin, small_model


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return save_model(small_model(), tmp_path_factory.mktemp("store"), "small", origin()).parent


def test_gadgets_on_several_threads_share_one_search(store, monkeypatch):
    searches = []

    def counted(*arguments, **listeners):
        searches.append(arguments)
        return find_model(*arguments, **listeners)

    monkeypatch.setattr(context_module, "find_model", counted)
    said: list[str] = []
    context = Context(replace(PROTOCOL, transmit_frequency_hz=123.3e6), models=(store,), on_progress=said.append)
    found = []
    threads = [threading.Thread(target=lambda: found.append(context.model())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(searches) == 1
    assert len({id(model) for model in found}) == 1
    assert found[0].manifold.rank == 10
    card = json.loads((store / "small.json").read_text())
    assert context.report.provenance["signal_model"] == {
        "name": "small", "sha256": card["arrays"]["sha256"], "fingerprint": PROTOCOL.fingerprint(),
        "created": card["created"], "seed": 3,
    }  # fmt: skip
    assert said == ["learned signal model 'small' fits this scan"]


def test_each_echo_has_its_own_model_or_the_reason_why_there_is_none(store):
    protocol = replace(PROTOCOL, echo_times_s=(0.03, 0.08), axes={"te": "contrast"})
    context = Context(protocol, models=(store,))
    assert (context.model(0), context.model(1)) == (None, None)
    told = context.report.provenance
    assert told["signal_model"]["none"].endswith("'small' is for FIDs, the scan has echoes of TE 30 ms")
    assert told["signal_model of echo 1"]["none"].endswith("the scan has echoes of TE 80 ms")
    assert context.report.warnings == []


def test_a_damaged_model_is_a_warning_of_the_scan(store, tmp_path):
    (tmp_path / "torn.json").write_bytes((store / "small.json").read_bytes()[:100])
    context = Context(PROTOCOL, models=(tmp_path,))
    assert context.model() is None
    (warning,) = context.report.warnings
    assert warning.startswith("torn.json is no valid JSON")


def test_a_session_process_is_told_every_folder(tmp_path):
    options = ScanOptions(site=tmp_path / "site", trajectories=tmp_path / "paths", models=tmp_path / "models", seed=4)
    assert options_from_text(options_to_text(options)) == options
    assert options_from_text(options_to_text(ScanOptions())) == ScanOptions()
    assert options.model_folders == (tmp_path / "models",)


def test_the_folder_of_models_is_checked_before_a_scan_is_read(tmp_path, capsys):
    for command in (["serve", "--port", "1"], ["replay", "scan.h5", "-o", str(tmp_path / "out")]):
        assert main([*command, "--models", str(tmp_path / "nowhere")]) == 1
        assert "nowhere is no folder; name the one that `mrsi learn --output` has written to" in capsys.readouterr().err
    target = ["replay", "scan.h5", "-o", str(tmp_path / "out"), "--to", "127.0.0.1:1", "--models", str(tmp_path)]
    assert main(target) == 1
    assert "--models and --trajectories are decisions of the server" in capsys.readouterr().err
