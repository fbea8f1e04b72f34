"""The model store: what was saved comes back bit for bit, what was altered is refused, a scan finds its model."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from mrsi_gadgets.cli import main
from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import ModelError
from mrsi_gadgets.io import model_store
from mrsi_gadgets.io.model_arrays import ModelSizes
from mrsi_gadgets.io.model_store import find_model, load_model, model_stores, save_model
from mrsi_gadgets.models.gate import judge
from mrsi_gadgets.models.networks import ManifoldNetworks, weights_of
from mrsi_gadgets.models.training import Trained
from mrsi_gadgets.physics.ensemble import sample
from mrsi_gadgets.quantification.preparation import usual_model
from mrsi_gadgets.quantification.spectrum_input import new_networks
from small_model import PROTOCOL, origin, small_model


@pytest.fixture(scope="module")
def trained() -> Trained:
    return small_model()


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    return save_model(trained, tmp_path_factory.mktemp("store"), "small", origin())


@pytest.fixture
def card_path(saved, tmp_path):
    """A copy that a test may spoil."""
    for file in saved.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / saved.name


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_a_model_comes_back_bit_for_bit_with_its_card(trained, saved):
    model = load_model(saved)
    for name in ("basis", "mean"):
        assert same(getattr(model.manifold, name), getattr(trained.manifold, name))
    assert set(model.manifold.weights) == set(trained.manifold.weights)
    for name, values in trained.manifold.weights.items():
        assert same(model.manifold.weights[name], values), name
    for name in ("basis", "metabolite_covariance", "water_covariance", "lipid_covariance"):
        assert same(getattr(model.subspace, name), getattr(trained.subspace, name)), name
    for name in ("metabolite_rank", "nuisance_energy", "metabolite_error", "nuisance_error", "seed"):
        assert getattr(model.subspace, name) == getattr(trained.subspace, name), name
    for name in ("latent", "hidden", "snr_range", "noise_at_snr_1"):
        assert getattr(model.manifold, name) == getattr(trained.manifold, name), name
    fids = sample(PROTOCOL, 5, 9).metabolites
    assert same(model.manifold.project(fids, 3.0), trained.manifold.project(fids, 3.0))
    assert model.card["gate"] == {"false_alarms": 0.05, "fids": 600}
    card = model.card
    assert card["protocol"]["flip_angle_deg"] == 35.0
    assert model.fingerprint == PROTOCOL.fingerprint() == card["fingerprint"]
    assert card["arrays"]["sha256"] == hashlib.sha256(saved.with_suffix(".safetensors").read_bytes()).hexdigest()
    assert card["valid"]["peak_snr"] == [4.0, 90.0]
    assert [entry["numbers"] for entry in card["representation"]] == [3, 7]
    assert set(card["curves"]) == {"autoencoder", "projector"}
    assert card["ensemble"]["broadening_ppm"] == [0.0, 0.06]
    assert {"torch", "numpy", "mrsi-gadgets"} == set(card["versions"])


def test_a_gate_comes_back_bit_for_bit_and_judges_alike(trained, saved, rng):
    model = load_model(saved)
    found, wanted = model.gate.arrays(), trained.gate.arrays()
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert same(found[name], values), name
    assert len(model.gate.nuisance) == trained.subspace.rank - 10 > 0
    assert model.gate.held.any()
    noise = rng.standard_normal((40, 97)) + 1j * rng.standard_normal((40, 97))
    fids = (sample(PROTOCOL, 40, 9).metabolites + np.geomspace(0.1, 100.0, 40)[:, None] * noise).astype(np.complex64)
    scores, _ = judge(model.gate, model.manifold, fids, np.geomspace(0.1, 100.0, 40))
    assert same(scores, judge(trained.gate, trained.manifold, fids, np.geomspace(0.1, 100.0, 40))[0])
    assert np.ptp(scores) > 0.5


def test_a_gate_of_another_model_is_not_written(trained, tmp_path):
    for name in ("rows", "nuisance"):
        gate = replace(trained.gate, **{name: getattr(trained.gate, name)[::-1].copy()})
        with pytest.raises(ModelError, match=f"has other {name} than the model; calibrate it again"):
            save_model(replace(trained, gate=gate), tmp_path, "x", origin())
    power = trained.gate.power.copy()
    power[2, 1, 3] = np.nan
    with pytest.raises(ModelError, match=r"gate\.power of the trained model .* not finite; training has diverged"):
        save_model(replace(trained, gate=replace(trained.gate, power=power)), tmp_path, "x", origin())
    assert list(tmp_path.iterdir()) == []


def test_a_card_knows_neither_patient_nor_scan_nor_machine(saved):
    text = saved.read_text(encoding="utf-8")
    assert "somebody's brain" not in text
    assert "/" not in text.replace("echo/", "")  # no path
    model = load_model(saved)
    assert model.manifold.protocol.geometry.matrix == (1, 1, 1)
    assert model.manifold.protocol.measurement_id == ""


def test_equal_models_give_equal_bytes_and_nothing_else_is_left_in_the_folder(trained, saved, tmp_path):
    save_model(trained, tmp_path / "new" / "folder", "small", origin())
    again = tmp_path / "new" / "folder" / "small.safetensors"
    assert again.read_bytes() == saved.with_suffix(".safetensors").read_bytes()
    assert sorted(file.name for file in again.parent.iterdir()) == ["small.json", "small.safetensors"]


def test_the_layout_of_the_file_is_that_of_the_networks():
    weights = weights_of(ManifoldNetworks(5, 4, 9))
    layout = ModelSizes(11, 5, 4, 9, 8, 6, 0, 3, 7).layout()
    stored = {name.removeprefix("manifold.weights."): shape for name, (_, shape) in layout.items() if "weights" in name}
    assert stored == {name: values.shape for name, values in weights.items()}


def rewrite(card_path, change, *, in_card=True) -> None:
    """Change the arrays, and bring size and hash of the card after them: a file that was made so on purpose."""
    path = card_path.with_suffix(".safetensors")
    data = change(path.read_bytes())
    path.write_bytes(data)
    if in_card:
        edit(card_path, lambda c: c["arrays"].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)))


def edit(card_path, change) -> None:
    card = json.loads(card_path.read_text())
    change(card)
    card_path.write_text(json.dumps(card))


def with_arrays(**changes):
    def change(data: bytes) -> bytes:
        arrays = load(data)
        for name, make in changes.items():
            key = name.replace("__", ".")
            arrays[key] = make(arrays.get(key))
            if arrays[key] is None:
                del arrays[key]
        return save(arrays)

    return change


def spoilt(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[-1, -2, 0] = np.nan
    return values


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


BAD_ARRAYS = {
    r"small\.safetensors is not what its card says \(SHA-256 differs\)": (flipped, False),
    r"has \d+ bytes but its card says \d+; copy it again": (lambda data: data[:-40], False),
    r"small\.safetensors is no safetensors file: it begins with a header of \d{10,} bytes": (
        lambda data: pickle.dumps({"weights": list(range(300))}), True,
    ),
    r"header of \d+ bytes": (lambda data: b"\xff" * 7 + b"\x7f" + data[8:], True),
    r"its header cannot be read": (lambda data: data[:8] + b"[" + data[9:], True),
    r"subspace\.basis of small\.safetensors holds values that are not finite; learn": (
        with_arrays(subspace__basis=spoilt), True,
    ),
    r"manifold\.mean of small\.safetensors is F32 \[9, 2\] but has to be F32 \[10, 2\]": (
        with_arrays(manifold__mean=lambda a: a[1:].copy()), True,
    ),
    r"manifold\.basis of small\.safetensors is F64 \[10, 97, 2\] but has to be F32": (
        with_arrays(manifold__basis=lambda a: a.astype(float)), True,
    ),
    r"lacks the array subspace\.numbers": (with_arrays(subspace__numbers=lambda a: None), True),
    r"holds an array extra that no model has": (with_arrays(extra=lambda a: np.zeros(3)), True),
    r"weights\.variance of small\.safetensors holds values that are not positive": (
        with_arrays(manifold__weights__variance=lambda a: -a), True,
    ),
    r"gate\.levels of small\.safetensors holds values that are not positive": (
        with_arrays(gate__levels=lambda a: a - a[0]), True,
    ),
    r"gate\.held of small\.safetensors is F32 \[3, \d+\] but has to be U8": (
        with_arrays(gate__held=lambda a: a.astype(np.float32)), True,
    ),
    r"the gate of small\.safetensors has frequencies, levels or flags that cannot be; learn": (
        with_arrays(gate__frequencies=lambda a: a - 1000), True,
    ),
    r"frequencies, levels or flags": (with_arrays(gate__transform=lambda a: a * 1000), True),
    r"frequencies, levels or flags that": (with_arrays(gate__levels=lambda a: a[::-1].copy()), True),
    r"frequencies, levels or flags that cannot": (with_arrays(gate__held=lambda a: a + np.uint8(2)), True),
    r"the gate of small\.safetensors was calibrated by another version of mrsi-gadgets; learn": (
        with_arrays(gate__constants=lambda a: a * (1 + 1e-9)), True,
    ),
    r"lacks the array gate\.match": (with_arrays(gate__match=lambda a: None), True),
}  # fmt: skip


@pytest.mark.parametrize("sentence", BAD_ARRAYS)
def test_arrays_that_are_not_those_of_the_card_are_refused(card_path, sentence):
    change, in_card = BAD_ARRAYS[sentence]
    rewrite(card_path, change, in_card=in_card)
    with pytest.raises(ModelError, match=sentence) as refused:
        load_model(card_path)
    assert "\n" not in str(refused.value)


def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_anything_is_allocated(card_path):
    """The shapes follow the card; the offsets of a made-up header do not lie in the file."""

    def stretched(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["manifold.mean"]["data_offsets"] = [0, 1 << 50]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    rewrite(card_path, stretched)
    with pytest.raises(ModelError, match="no valid safetensors file"):
        load_model(card_path)


BAD_CARDS = {
    r"small\.json is for .*192x.* but its protocol is .*97x": lambda c: c.update(
        fingerprint=c["fingerprint"].replace("97x", "192x")
    ),
    r"somebody has altered it": lambda c: c["protocol"].update(n_times=98),
    r"small\.json has format version 1, this version of mrsi-gadgets reads 2": lambda c: c.update(format_version=1),
    r"small\.json is no card of a signal model": lambda c: c.update(format="other"),
    r"small\.json lacks 'arrays'": lambda c: c.pop("arrays"),
    r"protocol\.dwell_s of small\.json is 'short' and no number": lambda c: c["protocol"].update(dwell_s="short"),
    r"protocol\.reference_ppm of small\.json is nan and no number": lambda c: c["protocol"].update(
        reference_ppm=float("nan")
    ),
    r"sizes\.rank of small\.json is -3 and no whole number": lambda c: c["sizes"].update(rank=-3),
    r"sizes\.latent of small\.json is True and no whole number": lambda c: c["sizes"].update(latent=True),
    r"manifold\.basis of small\.safetensors is F32 \[10, 97, 2\] but has to be F32 \[1000000000, 97, 2\]": lambda c: c[
        "sizes"
    ].update(rank=10**9),
    r"gate\.levels of small\.safetensors is F64 \[13\] but has to be F64 \[12\]": lambda c: c["sizes"].update(
        gate_levels=12
    ),
    r"contradicts its card .*metabolite rows": lambda c: c["sizes"].update(metabolite_rank=500),
    r"the protocol of small\.json is impossible .*dwell": lambda c: c["protocol"].update(dwell_s=-1.0),
    r"protocol\.echo_times_s of small\.json is no list": lambda c: c["protocol"].update(echo_times_s=[None]),
}


@pytest.mark.parametrize("sentence", BAD_CARDS)
def test_cards_that_were_altered_are_refused(card_path, sentence):
    edit(card_path, BAD_CARDS[sentence])
    with pytest.raises(ModelError, match=sentence):
        load_model(card_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(b"{", "no valid JSON"), (b"\xff\xfe", "no valid JSON"), (b"[" * 100_000, "no valid JSON"), (b"[]", "no card")],
)
def test_files_that_are_no_cards_are_refused(card_path, text, sentence):
    card_path.write_bytes(text)
    with pytest.raises(ModelError, match=rf"small\.json is {sentence}"):
        load_model(card_path)


def test_missing_files_are_named(card_path, tmp_path):
    card_path.with_suffix(".safetensors").unlink()
    with pytest.raises(ModelError, match=r"arrays .*small\.safetensors cannot be read \(No such file"):
        load_model(card_path)
    with pytest.raises(ModelError, match=r"card .*other\.json cannot be read"):
        load_model(tmp_path / "other.safetensors")


def test_a_card_of_megabytes_is_not_read(card_path, monkeypatch):
    monkeypatch.setattr(model_store, "_LARGEST_CARD", 1000)
    with pytest.raises(ModelError, match="too large for a model's card"):
        load_model(card_path)


def test_a_model_whose_training_diverged_is_not_written(trained, tmp_path):
    weights = {**trained.manifold.weights, "tube": trained.manifold.weights["tube"] * np.nan}
    with pytest.raises(ModelError, match=r"weights\.tube of the trained model .* not finite; training has diverged"):
        save_model(replace(trained, manifold=replace(trained.manifold, weights=weights)), tmp_path, "x", origin())
    with pytest.raises(ModelError, match="training has diverged"):
        save_model(replace(trained, errors=({"snr": 3.0, "data": float("nan")},)), tmp_path, "x", origin())
    for name in ("../x", "", ".x", "a b", "x" * 200):
        with pytest.raises(ModelError, match="no name for a model"):
            save_model(trained, tmp_path, name, origin())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(trained, tmp_path / "file", "x", origin())


def test_an_interrupted_write_leaves_the_older_model_or_none(trained, card_path, monkeypatch):
    before = {file.name: file.read_bytes() for file in card_path.parent.iterdir()}

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_store.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(trained, card_path.parent, "small", origin(title="newer"))
    assert {file.name: file.read_bytes() for file in card_path.parent.iterdir()} == before


FITS = {
    "the same": {},
    "another day's frequency": {"transmit_frequency_hz": 123.25e6 * 1.0019},
    "a rounded dwell": {"dwell_s": 666.7e-6},
    "a delay 4 us longer": {"acquisition_delay_s": 1.304e-3, "echo_times_s": (1.304e-3,)},
    "no TE in the header": {"echo_times_s": ()},
    "water at 4.66 ppm": {"reference_ppm": 4.66},
    "another TR": {"repetition_time_s": 1.5},
    "another image": {"geometry": Geometry((9, 9, 1), (200.0, 200.0, 10.0)), "encoding": "rings"},
}
DIFFERS = {
    r"'small' is for 1H, the scan is of 31P": {"nucleus": "31P"},
    r"'small' has 97 points, the scan has 96$": {"n_times": 96},
    r"'small' has a dwell of 666\.6667 us, the scan has 666\.8$": {"dwell_s": 666.8e-6},
    r"'small' has a delay of 1300 us, the scan has 1306$": {"acquisition_delay_s": 1.306e-3},
    r"'small' is for FIDs, the scan has echoes of TE 30 ms": {"echo_times_s": (0.03,)},
    r"'small' is for 123\.250 MHz, the scan has 123\.521": {"transmit_frequency_hz": 123.25e6 * 1.0022},
    r"'small' has 0 Hz at 4\.65 ppm, the scan at 4\.68": {"reference_ppm": 4.68},
    r"'small' has 97 points, the scan has 96 and has a delay": {"n_times": 96, "acquisition_delay_s": 0.0},
}


@pytest.mark.parametrize("fields", FITS.values(), ids=FITS)
def test_a_scan_finds_the_model_it_fits(saved, fields):
    model = find_model([saved.parent], replace(PROTOCOL, **fields), warn=pytest.fail, tell=pytest.fail)
    assert model is not None
    assert model.name == "small"


@pytest.mark.parametrize("sentence", DIFFERS)
def test_a_scan_that_no_model_fits_hears_in_what_the_nearest_differs(saved, sentence):
    told: list[str] = []
    assert find_model([saved.parent], replace(PROTOCOL, **DIFFERS[sentence]), tell=told.append) is None
    (reason,) = told
    assert reason.startswith("no learned signal model fits this scan: ")
    assert re.search(sentence, reason), reason


def test_echo_times_are_told_apart_by_a_tenth_of_a_millisecond():
    echo = replace(PROTOCOL, echo_times_s=(0.030,), acquisition_delay_s=0.0)
    assert model_store.differences_of(echo, replace(echo, echo_times_s=(0.03009,))) == []
    (difference,) = model_store.differences_of(echo, replace(echo, echo_times_s=(0.0302,)))
    assert difference == "is for echoes of TE 30 ms, the scan has echoes of TE 30.2 ms"


def test_the_newest_of_several_is_taken_and_a_damaged_one_left_out_with_its_name(card_path, tmp_path):
    other = tmp_path / "second" / "newer.json"
    other.parent.mkdir()
    for suffix in (".json", ".safetensors"):
        shutil.copy(card_path.with_suffix(suffix), other.with_suffix(suffix))
    edit(card_path, lambda c: c.update(created="2026-01-02T00:00:00+00:00"))
    edit(other, lambda c: c.update(created="2026-01-03T00:00:00+00:00"))
    stores = [tmp_path / "nowhere", tmp_path, other.parent]
    found = find_model(stores, PROTOCOL)
    assert found is not None
    assert found.name == "newer"
    other.with_suffix(".safetensors").write_bytes(b"damaged")
    (tmp_path / "torn.json").write_text("{")
    warned: list[str] = []
    found = find_model(stores, PROTOCOL, warn=warned.append)
    assert found is not None
    assert found.name == "small"
    assert [sentence.partition(" ")[0] for sentence in warned] == ["torn.json", "newer.safetensors"]
    assert all(sentence.endswith("(the model is left out)") for sentence in warned)
    card_path.with_suffix(".safetensors").unlink()
    told: list[str] = []
    assert find_model(stores, PROTOCOL, warn=warned.append, tell=told.append) is None
    assert told == ["the learned signal models that fit this scan are damaged"]


def test_an_empty_store_is_told_by_its_place(tmp_path):
    told: list[str] = []
    assert find_model([tmp_path / "models"], PROTOCOL, tell=told.append) is None
    assert told == [f"there is no learned signal model in {tmp_path / 'models'}"]


def no_home(self):
    raise RuntimeError("Could not determine home directory.")


def test_the_stores_are_the_named_one_or_the_users_and_the_sites(tmp_path, monkeypatch):
    for name in ("MRSI_MODELS", "MRSI_CONFIG_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".local" / "share" / "mrsi-gadgets" / "models"
    assert model_stores() == (usual,)
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert model_stores() == (usual,)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("MRSI_CONFIG_DIR", str(tmp_path / "site"))
    own = tmp_path / "data" / "mrsi-gadgets" / "models"
    assert model_stores() == (own, tmp_path / "site" / "models")
    assert model_stores(site=tmp_path / "other") == (own, tmp_path / "other" / "models")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setattr(model_store.Path, "expanduser", no_home)
    assert model_stores() == (tmp_path / "site" / "models",)
    monkeypatch.delenv("MRSI_CONFIG_DIR")
    assert model_stores() == ()
    assert main(["learn", "2h_fid_7t"]) == 1
    monkeypatch.setenv("MRSI_MODELS", str(tmp_path / "here"))
    assert model_stores() == (tmp_path / "here",)
    assert model_stores(tmp_path / "given") == (tmp_path / "given",)


@pytest.fixture(scope="module")
def with_networks(trained):
    networks = new_networks(usual_model(PROTOCOL), hidden=6, seed=2)
    curves = {"regressor": ((20, 3.0, 3.1),), "extractor": ((20, -1.0, -0.9),)}
    return replace(trained, networks=networks, curves={**trained.curves, **curves})


def test_networks_that_quantify_come_back_bit_for_bit(with_networks, tmp_path):
    path = save_model(with_networks, tmp_path, "both", origin())
    model, made = load_model(path), with_networks.networks
    assert model.networks is not None
    for name in ("match", "axes", "spread", "typical", "lower", "upper", "centre"):
        assert same(getattr(model.networks, name), getattr(made, name)), name
    assert (model.networks.window_ppm, model.networks.size) == (made.window_ppm, made.size)
    for name in ("regressor", "extractor"):
        read, written = getattr(model.networks, name), getattr(made, name)
        assert set(read) == set(written)
        assert all(same(read[key], values) for key, values in written.items())
    assert model.card["quantification"] == {"points": made.points, "hidden": 6, "axes": len(made.axes)}
    assert model.card["curves"]["extractor"] == [[20, -1.0, -0.9]]


def test_a_model_without_networks_is_a_model_still(saved):
    model = load_model(saved)
    assert model.networks is None
    assert "quantification" not in model.card


def test_networks_that_their_card_does_not_announce_or_that_cannot_be_are_refused(with_networks, tmp_path):
    path = save_model(with_networks, tmp_path, "both", origin())
    arrays = load(path.with_suffix(".safetensors").read_bytes())
    card = json.loads(path.read_text(encoding="utf-8"))

    def refused(arrays, **changed):
        data = save(arrays)
        own = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        path.with_suffix(".safetensors").write_bytes(data)
        text = {**card, **changed, "arrays": {**card["arrays"], **own}}
        path.write_text(json.dumps({k: v for k, v in text.items() if v is not None}), encoding="utf-8")
        with pytest.raises(ModelError) as told:
            load_model(path)
        return str(told.value)

    assert "holds an array quantification" in refused(arrays, quantification=None)
    assert "quantification.axes of both.safetensors is F32" in refused(
        arrays, quantification={**card["quantification"], "axes": 3}
    )
    assert "quantification.hidden of both.json is 'many' and no whole number" in refused(
        arrays, quantification={**card["quantification"], "hidden": "many"}
    )
    ranges = arrays["quantification.ranges"].copy()
    ranges[1] = ranges[0] - 1
    assert "ranges that cannot be" in refused({**arrays, "quantification.ranges": ranges})
    lost = {key: values for key, values in arrays.items() if key != "quantification.regressor.last.bias"}
    assert "lacks the array quantification.regressor.last.bias" in refused(lost)
    window = arrays["quantification.window"][::-1].copy()
    assert "contradicts its card (the networks' window or size is impossible)" in refused(
        {**arrays, "quantification.window": window}
    )
