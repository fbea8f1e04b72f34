"""All methods on one data set: one preparation, one table, one picture, errors where the truth is known."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_results import stream_of

from mrsi_gadgets.compare import ALL_METHODS, CompareOptions, compare
from mrsi_gadgets.data import Maps, SpectralImage
from mrsi_gadgets.errors import NumericalError
from mrsi_gadgets.gadgets import reconstruct
from mrsi_gadgets.gadgets.reconstruct import TRAINED
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.model_store import save_model
from mrsi_gadgets.output import comparison as pictures
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.replay import open_scan, replay_here
from small_model import origin, small_model
from small_scan import small_scan

pytestmark = pytest.mark.timeout(240)

FILES = ["comparison.csv", "comparison.json", "comparison.png", "comparison.txt"]
SUMS = ("tNAA", "tCr", "tCho", "Ins", "Glx")


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> Path:
    """A numerical brain without nuisance, its truth beside it."""
    path = tmp_path_factory.mktemp("brain") / "brain.h5"
    write_simulation("csi16", path, seed=6, nuisance=False)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Drawing costs as much as computing; two tests look at the picture."""
    monkeypatch.setattr(pictures, "draw_comparison", lambda target, comparison: target.write(b"picture"))


def result(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text(encoding="utf-8"))


def test_a_simulated_scan_gets_its_table_and_its_picture(run, brain, tmp_path):
    folder = tmp_path / "out"
    names = "low_rank,fourier,fourier_hamming"
    code, out, err = run("compare", brain, "-o", folder, "--methods", names, "--device", "cpu", "--self-test")
    assert code == 0
    assert [line.partition(":")[0] for line in err.splitlines()] == ["Fourier", "Fourier + Hamming", "low rank"]
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert (folder / "comparison.txt").read_text(encoding="utf-8") in out
    assert (folder / "comparison.png").read_bytes()[1:4] == b"PNG"
    found = result(folder)
    numbers = {name: method["numbers"] for name, method in found["methods"].items()}
    assert list(numbers) == ["fourier", "fourier_hamming", "low_rank"]
    # nothing is left by Fourier; low rank leaves noise, with the noise of its few rows kept
    assert numbers["fourier"]["residual_energy"] == 0
    assert 0.8 < numbers["low_rank"]["residual_energy"] < 1.15
    assert numbers["low_rank"]["strongest_line"] == pytest.approx(found["strongest_line_of_white_noise"], rel=0.15)
    # blur leaves the signal of small structures
    assert numbers["fourier_hamming"]["residual_energy"] > 2
    assert numbers["fourier"]["peak_snr"] == pytest.approx(40, rel=0.12)
    assert numbers["fourier_hamming"]["peak_snr"] > 1.5 * numbers["fourier"]["peak_snr"]
    assert numbers["fourier"]["rank"] is None
    assert numbers["low_rank"]["rank"] == found["methods"]["low_rank"]["provenance"]["rank"]
    assert numbers["low_rank"]["fid_error"] < 0.75 * numbers["fourier"]["fid_error"]
    kinds = ("lactate x10", "choline x3", "unseen singlet", "wide lines")
    for kind in kinds:
        assert numbers["fourier"][f"self_test_{kind}"] == pytest.approx(1, abs=0.02)
        assert numbers["fourier_hamming"][f"self_test_{kind}"] < 0.9
        assert f"  {kind}" in out
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == list(numbers)
    for row in rows:
        for key, value in numbers[row["method"]].items():
            assert row[key] == "" if value is None else math.isclose(float(row[key]), value, rel_tol=1e-5)


@pytest.mark.usefixtures("quick")
def test_the_errors_are_those_of_the_chain(brain):
    """The preparation that all methods share is that of a replay, and so are the maps."""
    truth = Truth.load(brain)
    options = ScanOptions(device="cpu", recipe="subspace")
    found = compare(str(brain), CompareOptions(options, methods=("fourier", "subspace"))).methods["subspace"]
    observed = replay_here(open_scan(str(brain)), options, keep=True).observed
    maps = next(item for item in observed if isinstance(item, Maps))
    image = next(item for item in observed if isinstance(item, SpectralImage))
    wanted = score(
        {name: maps.maps[name].value for name in SUMS}, truth, b0_hz=maps.b0_hz, fids=np.asarray(image.fids()),
        fids_b0_hz=image.b0_hz,
    )  # fmt: skip
    for name in SUMS:
        assert found.numbers[f"{name}_nrmse"] == pytest.approx(wanted.maps[name].nrmse, rel=1e-3)
        assert found.numbers[f"{name}_detail"] == pytest.approx(wanted.maps[name].detail, rel=1e-3)
    assert found.numbers["fid_error"] == pytest.approx(wanted.fid_error, rel=1e-3)
    shown = found.maps["tNAA"][truth.brain_mask]
    np.testing.assert_allclose(shown.mean(), truth.content("tNAA")[truth.brain_mask].mean(), rtol=0.1)


@pytest.mark.usefixtures("quick")
def test_fid_errors_of_data_with_nuisance_are_left_out_aloud(run, tmp_path):
    write_simulation("csi16", tmp_path / "b.h5", seed=6)
    code, out, _ = run("compare", tmp_path / "b.h5", "-o", tmp_path / "out", "--methods", "fourier", "--device", "cpu")
    assert code == 0
    numbers = result(tmp_path / "out")["methods"]["fourier"]["numbers"]
    assert (numbers["fid_error"], numbers["unknown_recovery"]) == (None, None)
    assert numbers["tNAA_nrmse"] < 0.1
    assert "FID errors are left out: these data hold water and lipids" in out
    assert "FID error  " not in out


@pytest.mark.usefixtures("quick")
def test_without_truth_and_model_every_other_method_runs(run, scan, scan_file, on_stdin, tmp_path):
    code, out, _ = run("compare", scan_file, "-o", tmp_path / "file", "--device", "cpu")
    assert code == 0
    found = result(tmp_path / "file")
    assert list(found["methods"]) == [name for name in ALL_METHODS if name not in TRAINED]
    assert set(found["left_out"]) == {name for name in ALL_METHODS if name in TRAINED}
    assert "raiise was left out: there is no learned signal model in " in out
    assert found["truth"] is False
    assert "NRMSE" not in out
    assert found["units"]["tNAA"] == "mmol/kg water"
    on_stdin(stream_of(scan))
    assert run("compare", "-", "-o", tmp_path / "pipe", "--device", "cpu", "--methods", "joint")[0] == 0
    again = result(tmp_path / "pipe")["methods"]["joint"]["numbers"]
    assert again["peak_snr"] == found["methods"]["joint"]["numbers"]["peak_snr"]


@pytest.mark.usefixtures("quick")
def test_a_trained_model_brings_its_method_in(run, tmp_path):
    store = save_model(small_model(), tmp_path / "store", "small", origin()).parent
    file = small_scan((9, 7, 1), n_times=97).write(tmp_path / "scan.h5")
    code, out, _ = run("compare", file, "-o", tmp_path / "out", "--device", "cpu", "--models", store)
    assert code == 0
    found = result(tmp_path / "out")
    assert set(TRAINED) & set(ALL_METHODS) <= set(found["methods"])
    assert 0 <= found["methods"]["raiise"]["numbers"]["outside_model"] <= 1
    assert found["left_out"] == {}
    assert found["provenance"]["preparation"]["signal_model"]["name"] == "small"
    assert "outside    share of the voxels" in out


@pytest.mark.usefixtures("quick")
def test_of_several_frames_the_first_is_compared(run, tmp_path):
    files = {n: small_scan((8, 6, 1), frames=n).write(tmp_path / f"{n}.h5") for n in (1, 3)}
    for n, file in files.items():
        assert run("compare", file, "-o", tmp_path / f"out{n}", "--device", "cpu", "--methods", "fourier")[0] == 0
    once, several = (result(tmp_path / f"out{n}") for n in (1, 3))
    assert not any("frames" in note for note in once["notes"])
    assert "the scan has 3 frames or echo times; the first is compared" in several["notes"]
    assert several["methods"]["fourier"]["numbers"]["peak_snr"] == pytest.approx(
        once["methods"]["fourier"]["numbers"]["peak_snr"], rel=0.3
    )


def test_the_picture_has_a_column_per_method_and_spectra_over_falling_ppm(brain):
    found = compare(
        str(brain), CompareOptions(ScanOptions(device="cpu"), methods=("fourier", "low_rank"), maps=("tNAA", "Lac"))
    )  # fmt: skip
    figure = pictures.comparison_figure(found)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["truth", "Fourier", "low rank"]
    labels = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"tNAA [mM]", "Lac [mM]", "error of all [%]", "spectrum at o"} <= labels
    numbers = found.methods["fourier"].numbers
    assert f"{numbers['tNAA_nrmse']:.3f} / {numbers['tNAA_detail']:.2f}" in labels
    spectra = [axes for axes in figure.axes if axes.get_xlim()[0] > axes.get_xlim()[1]]
    assert len(spectra) == 3
    assert len({axes.get_ylim() for axes in spectra}) == 1
    for axes in spectra:
        (ppm, curve) = axes.lines[-1].get_data()
        assert (np.diff(ppm) < 0).all()
        assert abs(ppm[np.argmax(curve)] - 2.01) < 0.05
    # maps of one molecule share their colours
    ends = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    assert ends[0] == ends[1] == ends[2]
    assert ends[3] == ends[4] == ends[5] != ends[0]


REFUSED = {
    r"there is no method 'magic'; choose from fourier, fourier_hamming, low_rank": ("--methods", "fourier,magic"),
    r"there is no map 'gold'; choose from tNAA": ("--maps", "gold"),
    r"method raiise needs a trained model: there is no learned signal model": ("--methods", "raiise"),
    r"there is no recipe 'none'; known are": ("--config", "none"),
    r"--models .* is no folder": ("--models", "nowhere"),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(refused, scan_file, tmp_path, sentence):
    error = refused("compare", scan_file, "-o", tmp_path / "out", "--device", "cpu", *REFUSED[sentence])
    assert re.search(sentence, error)


def test_files_that_cannot_be_compared_are_refused(refused, brain, scan, scan_file, tmp_path):
    target = tmp_path / "out"
    taken = tmp_path / "taken"
    taken.write_text("somebody's")
    assert "is a file; name a folder" in refused("compare", scan_file, "-o", taken)
    assert "is not a folder" in refused("compare", scan_file, "-o", tmp_path / "a" / "b")
    assert "is not there; check" in refused("compare", tmp_path / "missing.h5", "-o", target)
    only_water = scan.with_readouts(scan.noise + scan.water).write(tmp_path / "water.h5")
    assert "no metabolite readouts came" in refused("compare", only_water, "-o", target)
    torn = shutil.copy(scan_file, tmp_path / "torn.h5")
    (tmp_path / "torn.truth.json").write_text("{")
    assert "cannot read the truth" in refused("compare", torn, "-o", target)
    for path in brain.parent.glob("brain.truth.*"):
        shutil.copy(path, tmp_path / path.name.replace("brain", "other"))
    other = shutil.copy(scan_file, tmp_path / "other.h5")
    assert "it is of another scan" in refused("compare", other, "-o", target)


def test_whoever_interrupts_keeps_what_was_there(run, scan_file, tmp_path, monkeypatch):
    def stopped(target, comparison):
        raise KeyboardInterrupt

    arguments = ("compare", scan_file, "-o", tmp_path / "out", "--device", "cpu", "--methods", "fourier")
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw_comparison", stopped)
        assert run(*arguments)[0] == 130
        assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw_comparison", lambda target, comparison: target.write(b"picture"))
        assert run(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "json" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        code, _, err = run(*arguments)
    assert code == 1
    assert "cannot be written (No space left on device); choose another place" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_method_that_fails_is_left_out_with_its_reason(scan_file, monkeypatch):
    def fails(*_, **__):
        raise NumericalError("the solve did not settle; acquire more of k-space")

    monkeypatch.setattr(reconstruct, "reconstruct_joint", fails)
    found = compare(str(scan_file), CompareOptions(ScanOptions(device="cpu"), methods=("fourier", "joint")))
    assert list(found.methods) == ["fourier"]
    assert found.left_out == {"joint": "the solve did not settle; acquire more of k-space"}
