"""`mrsi learn`: a protocol becomes models that scans find; same seed, same bytes; nothing is half-written."""

from __future__ import annotations

import getpass
import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mrsi_gadgets import learn
from mrsi_gadgets.cli import main
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ModelError
from mrsi_gadgets.io.learning import find_learning_protocol, read_learning_protocol
from mrsi_gadgets.io.model_store import find_model, load_model, signal_protocol
from mrsi_gadgets.models import training
from mrsi_gadgets.output.model_card import draw_model
from mrsi_gadgets.physics.ensemble import default_ensemble

TOML = """
name = "deuterium, small"
[protocol]
nucleus = "2H"
transmit_frequency_hz = 45.62e6
dwell_us = 1000
n_times = 71
acquisition_delay_us = 1300
{more}
[training]
rank = 9
latent = 5
hidden = 14
samples = 400
autoencoder_steps = 20
projector_steps = 20
latent_sizes = [2]
latent_steps = 10
batch = 64
gate_samples = 500
quantification_steps = 20
quantification_samples = 200
[sources]
1 = "somebody, 1999"
"""


@pytest.fixture
def toml(tmp_path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TOML.format(more=""), encoding="utf-8")
    return path


def protocol_of(path: Path) -> Protocol:
    return read_learning_protocol(path).protocol


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_protocol_becomes_three_files_that_repeat_bit_for_bit(run, toml, tmp_path):
    code, out, err = run("learn", toml, "-o", tmp_path / "a", "--threads", 1, "--seed", 7)
    assert code == 0
    assert files(tmp_path / "a") == ["mine.json", "mine.png", "mine.safetensors"]
    assert str(tmp_path / "a" / "mine.safetensors") in out
    rows = {line[:34].strip(): line[34:].split() for line in out.splitlines()}
    assert rows["real numbers for one FID"] == ["2", "5"]
    assert float(rows["peak SNR"][0]) == 3.0
    assert float(rows["error of projector"][0]) < 0.6 * float(rows["error of data"][0])
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "ensemble", "ensemble", "autoencoder", "projector", "latent 2", "gate", "regressor", "extractor",
    ]  # fmt: skip
    assert "autoencoder: 20 of 20 steps, loss 0." in err
    for folder, seed in (("b", 7), ("c", 8)):
        assert run("learn", toml, "-o", tmp_path / folder, "--threads", 1, "--seed", seed)[0] == 0
    data = {name: (tmp_path / name / "mine.safetensors").read_bytes() for name in "abc"}
    assert data["a"] == data["b"] != data["c"]
    cards = {name: json.loads((tmp_path / name / "mine.json").read_text(encoding="utf-8")) for name in "abc"}
    for card in cards.values():
        assert all(card.pop("seconds").values())
        card.pop("created")
    assert cards["a"] == cards["b"]
    assert cards["a"]["seed"] == 7
    assert cards["a"]["title"] == "deuterium, small"
    assert cards["a"]["sources"] == {"1": "somebody, 1999"}
    assert cards["a"]["training"]["batch"] == 64
    assert cards["a"]["quantification"]["hidden"] == 128
    assert cards["a"]["gate"] == {"false_alarms": 0.05, "fids": 500}
    assert cards["a"]["basis"] == "simulated: pulse-acquire"


def test_a_card_names_no_path_no_host_and_no_user(run, toml, tmp_path):
    assert run("learn", toml, "-o", tmp_path / "store", "--threads", 1)[0] == 0
    text = (tmp_path / "store" / "mine.json").read_text(encoding="utf-8")
    for name in (str(tmp_path), str(Path.home()), socket.gethostname(), f'"{getpass.getuser()}'):
        assert name not in text
    for data in (text.encode(), (tmp_path / "store" / "mine.png").read_bytes()):
        assert str(tmp_path).encode() not in data


def test_scans_find_what_was_learned_without_naming_a_folder(run, toml, tmp_path, monkeypatch):
    monkeypatch.setenv("MRSI_MODELS", str(tmp_path / "store"))
    assert run("learn", toml, "--threads", 1)[0] == 0
    scan = replace(protocol_of(toml), transmit_frequency_hz=45.65e6)
    model = find_model([tmp_path / "store"], scan, warn=pytest.fail, tell=pytest.fail)
    assert model is not None
    assert model.card["title"] == "deuterium, small"


def test_each_echo_time_has_a_model_of_its_own(run, tmp_path):
    path = tmp_path / "echoes.toml"
    more = 'echo_times_ms = [30.5, 80.0]\n[basis]\nsequence = "spin_echo"\n'
    text = TOML.format(more=more).replace("acquisition_delay_us = 1300", "acquisition_delay_us = 0")
    path.write_text(text.replace("2H", "1H").replace("45.62e6", "123.25e6"), encoding="utf-8")
    code, out, err = run("learn", path, "-o", tmp_path / "store", "--threads", 1)
    assert code == 0
    assert [name for name in files(tmp_path / "store") if name.endswith(".json")] == [
        "echoes_te30.5.json", "echoes_te80.json",
    ]  # fmt: skip
    assert err.startswith("echo time 30.5 ms: model echoes_te30.5\n")
    whole = protocol_of(path)
    found = [find_model([tmp_path / "store"], whole.of_echo(echo), tell=pytest.fail) for echo in (0, 1)]
    assert [model.name for model in found if model] == ["echoes_te30.5", "echoes_te80"]
    assert found[1].card["basis"] == "simulated: spin_echo 40 - 40 ms"
    first, second = (model.manifold.basis for model in found)
    assert np.linalg.norm(first - second) > 0.1
    assert out.count("-> ") == 2


def test_a_raw_file_is_protocol_enough(scan, scan_file):
    target = learn.read_target(str(scan_file), {"mrsi_acq_delay_us": "1700"})
    (protocol,) = target.protocols
    assert protocol.acquisition_delay_s == pytest.approx(1.7e-3)
    assert signal_protocol(protocol).fingerprint() == protocol.fingerprint()
    assert replace(protocol, acquisition_delay_s=scan.protocol.acquisition_delay_s).n_times == scan.protocol.n_times
    assert target.ensemble == default_ensemble(scan.protocol)
    assert learn.model_names(target) == ["scan"]


def test_names_of_files_become_names_of_models(toml):
    target = read_learning_protocol(toml)
    for stem, name in (("meas MID01 (rings)", "meas_MID01_rings_"), ("..", "model"), ("ä.b", "_.b")):
        assert learn.model_names(replace(target, path=Path(f"{stem}.toml"))) == [name]


@pytest.mark.parametrize("moment", ["_train_projector", "_representation", "calibrate_gate", "_errors"])
def test_an_interrupted_training_leaves_nothing(run, toml, tmp_path, monkeypatch, moment):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, moment, interrupted)
    code, out, err = run("learn", toml, "-o", tmp_path / "store", "--threads", 1)
    assert (code, out) == (130, "")
    assert err.endswith("interrupted\n")
    assert files(tmp_path / "store") == []


def test_what_interrupts_the_picture_leaves_the_model_whole(run, toml, tmp_path, monkeypatch):
    def interrupted(self, path, **more):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    assert run("learn", toml, "-o", tmp_path / "store", "--threads", 1)[0] == 130
    assert files(tmp_path / "store") == ["mine.json", "mine.safetensors"]
    assert load_model(tmp_path / "store" / "mine.json").manifold.rank == 9


def test_the_picture_of_a_model_without_curves_or_examples_is_drawn_or_refused_in_a_sentence(toml, tmp_path):
    card = {
        "title": "t", "fingerprint": "f", "sizes": {"rank": 2, "latent": 1}, "seed": 0, "created": "2026-01-01T00",
        "versions": {"mrsi-gadgets": "0"}, "curves": {}, "representation": [], "errors": [],
    }  # fmt: skip
    draw_model(tmp_path / "x.png", card, protocol_of(toml), [])
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ModelError, match=r"x\.png cannot be written"):
        draw_model(tmp_path / "nowhere" / "x.png", card, protocol_of(toml), [])
    assert files(tmp_path) == ["mine.toml", "x.png"]


def test_the_end_of_each_stage_is_told_and_so_is_an_early_stop():
    told: list[str] = []
    stages = learn._Stages(3, False, told.append)
    with stages:
        for done in (4000, 8000, 9000):
            stages.progress("ensemble", done, 9000, float("nan"))
        stages.progress("ensemble", 2000, 2000, float("nan"))
        for step in (100, 200, 300):
            stages.progress("projector", step, 900, 1 / step)
    assert [line.rpartition(", ")[0] for line in told] == [
        "ensemble: 9000 FIDs", "ensemble: 2000 FIDs",
        "projector: 300 of 900 steps (stopped early: no gain in 3 checks), loss 0.003333",
    ]  # fmt: skip
    assert set(stages.seconds) == {"ensemble", "projector"}


def test_shipped_protocols_are_listed(run):
    code, out, _ = run("learn", "list")
    assert "1H PRESS, TE 144 ms, 3 T" in out
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["1h_fid_3t", "1h_multi_te_3t", "1h_te144_3t", "2h_fid_7t", "31p_fid_7t"]
    assert learn.model_names(read_learning_protocol(find_learning_protocol("1h_multi_te_3t"))) == [
        "1h_multi_te_3t_te30", "1h_multi_te_3t_te80", "1h_multi_te_3t_te144",
    ]  # fmt: skip


def test_what_cannot_be_learned_is_refused_before_any_training(refused, toml, scan_file, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", pytest.fail)
    store = ("-o", tmp_path / "store")
    assert "no learning protocol 'nothing'; shipped are 1h_fid_3t" in refused("learn", "nothing", *store)
    assert "convert it first" in refused("learn", "meas.dat", *store)
    assert "scan.h5 is not there" in refused("learn", tmp_path / "scan.h5", *store)
    assert "leave them out" in refused("learn", toml, "--set", "mrsi_dwell_us=500", *store)
    carbon = ("--set", "mrsi_nucleus=13C", "--set", "mrsi_transmit_frequency_Hz=31e6")
    assert "molecules are known for 1H, 31P, 2H only" in refused("learn", scan_file, *carbon, *store)
    (tmp_path / "odd.toml").write_text(toml.read_text().replace("batch = 64", "bath = 64"))
    assert "[training] has no key 'bath'" in refused("learn", tmp_path / "odd.toml", *store)
    assert "models cannot be written to" in refused("learn", toml, "-o", toml / "store")


def test_threads_are_given_back_after_a_training(toml, tmp_path):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["learn", str(toml), "-o", str(tmp_path / "store"), "--threads", "1"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert load_model(tmp_path / "store" / "mine.json").card["threads"] == 1
