"""The first five minutes: simulate a brain, serve, stream it, and show truth, maps and errors in one picture."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mrsi_gadgets import replay
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io.spool import SpoolOptions
from mrsi_gadgets.output.pictures import demo_sheet
from mrsi_gadgets.output.report import REPORT, write_report
from mrsi_gadgets.output.results import Results, gather
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.scoring import Scores, score
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.server.process import ServerOptions
from mrsi_gadgets.server.supervisor import Server

log = logging.getLogger("mrsi.demo")

NAMES = ("tNAA", "tCr", "tCho", "Ins", "Glx")
METHODS = ("fourier", "subspace")
TITLES = {"fourier": "Fourier", "subspace": "learned subspace"}


def run_demo(folder: Path, *, preset: str = "csi48") -> str:
    """Run the whole way once per method and write everything below `folder`; return a table of errors and times."""
    begin = time.perf_counter()
    find_preset(preset)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"output {folder} cannot be made ({problem.strerror}); choose another place") from problem
    scan_file = folder / "brain.h5"
    log.info("simulating preset %s", preset)
    simulated = write_simulation(preset, scan_file)
    truth = Truth.load(scan_file)
    scores: dict[str, Scores] = {}
    results: dict[str, Results] = {}
    rows = []
    with running_server() as port:
        for method in METHODS:
            answer = replay.replay_to(
                replay.open_scan(str(scan_file)), f"127.0.0.1:{port}", ScanOptions(recipe=method, spectra="all")
            )
            replay.save(answer, folder / method)
            write_report(folder / method)
            results[method] = gather(answer.images)
            scores[method] = score_results(results[method], truth)
            rows.append(_row(method, scores[method], answer.summary["seconds"]["last readout sent to last image"]))
            log.info("%s: maps, console images and pictures in %s", TITLES[method], folder / method)
    picture = folder / "contact.png"
    _draw(picture, truth, results, scores, preset)
    head = "method            " + "".join(f"{name:>14}" for name in NAMES) + "      B0 rms   latency"
    return "\n".join(
        [
            "",
            simulated,
            "",
            "NRMSE / detail error of the maps at common resolution (detail 1: no better than a tissue atlas)",
            head,
            *rows,
            "latency: last readout sent to last image received. The scan is sent at once, so learning the basis and",
            "preparing the fit are in it; in a real scan they are done before its end (benchmarks/latency.py). The",
            "spectra of all voxels are in it too, for the reports; a scanner gets a few.",
            "",
            f"report -> {folder}/subspace/{REPORT} (open it in a browser)",
            f"picture -> {picture}   maps -> {folder}/subspace/maps   console images -> {folder}/subspace/images.h5",
            f"whole demo {time.perf_counter() - begin:.0f} s",
        ]
    )


@contextmanager
def running_server(spool: SpoolOptions | None = None, device: str = "cpu") -> Iterator[int]:
    """Run a server on a free port of this machine, by default without keeping raw data; yields the port."""
    server = Server(ServerOptions(port=0, scan=ScanOptions(device=device), log_level="WARNING", spool=spool))
    server.start()
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="server")
    thread.start()
    try:
        yield server.port
    finally:
        server.stop()
        thread.join(timeout=30)


def score_results(results: Results, truth: Truth) -> Scores:
    """Compare maps that came back as images with the truth of the simulation."""
    maps = {name: results.maps[name].value for name in NAMES}
    return score(maps, truth, b0_hz=results.b0[0])


def _row(method: str, scores: Scores, latency_s: float) -> str:
    cells = "".join(f"  {scores.maps[n].nrmse:5.3f} / {scores.maps[n].detail:4.2f}" for n in NAMES)
    return f"{TITLES[method]:<18}{cells}   {scores.b0_rms_hz:6.2f} Hz  {latency_s:5.2f} s"


def _draw(path: Path, truth: Truth, results: dict[str, Results], scores: dict[str, Scores], preset: str) -> None:
    """Bring every method's maps to the truth's scale (receive shading divided out) and draw them beside it."""
    estimates = {}
    for method, found in results.items():
        shading = scores[method].shading
        estimates[TITLES[method]] = {
            name: found.maps[name].value / np.where(shading > 0, shading, np.nan) for name in NAMES
        }
    best = results["subspace"]
    assert best.affine_ras is not None
    demo_sheet(
        path,
        truth={name: truth.content(name) for name in NAMES},
        estimates=estimates,
        mask=truth.brain_mask,
        affine_ras=best.affine_ras,
        unit="mM",
        spectra=best.spectra,
        notes={
            TITLES[m]: {n: f"NRMSE {s.maps[n].nrmse:.3f}, detail {s.maps[n].detail:.2f}" for n in NAMES}
            for m, s in scores.items()
        },
        title=f"{truth.preset.description}, NAA peak SNR {truth.preset.snr:g}, streamed through the server",
    )
