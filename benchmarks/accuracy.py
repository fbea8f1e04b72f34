"""Map errors on the numerical brain: fourier, low_rank and subspace, at SNR 20, 100 and without noise.

    python benchmarks/accuracy.py [--preset csi48] [--brains 5] [--realisations 10] [--output accuracy.json]

Medians over brains (what the measures mean: docs/explanation/measures.md). Maps, lesions and B0 come from the whole
chain, as `mrsi replay` runs it, on data with residual water and scalp lipids. The FID error does not: its truth
holds metabolites and macromolecules alone, so it is that of the reconstruction step on the same brain and noise
simulated WITHOUT nuisance. The Cramer-Rao bound of the same brains stands beside the errors (crlb.py). "Not worse"
at the highest finite SNR is the median over noise realisations of the paired ratio of errors, subspace over
Fourier. Scans run in `--processes` processes of one thread each.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import METHODS, NAMES, calibrate, describe_machine, prepare, reconstruct, table
from crlb import KINDS, bounds

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Maps, SpectralImage
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.phantom.scoring import Scores, fid_error, score, unknown_recovery
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.stream.messages import ConfigFile, Header, Message

NOT_WORSE = 1.05
NRMSE_WANTED, DETAIL_WANTED, FID_WANTED, B0_WANTED = 0.10, 0.8, 0.35, 0.5


@dataclass(frozen=True)
class Task:
    """One scan to simulate and what to do with it."""

    preset: str
    snr: float
    brain: int
    noise: int
    methods: tuple[str, ...]
    everything: bool = True
    """Also FID errors and the bound; False: the maps alone, for the paired ratios."""


@dataclass
class Outcome:
    """What became of one scan."""

    task: Task
    scores: dict[str, Scores] = field(default_factory=dict)
    fid: dict[str, float] = field(default_factory=dict)
    unseen: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    calibration: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """Method -> map -> typical size of error over stated SD (1 is right), share of errors above two SD (0.05)."""


def run_chain(scan: SimulatedScan, recipe: str, models: Path | None = None) -> Maps:
    """Run a recipe on a simulated scan; return its maps. `models`: where trained manifolds are."""
    seen: list[Any] = []

    def messages() -> Iterator[Message]:
        yield ConfigFile(recipe)
        yield Header(scan.header_xml)
        yield from scan.acquisitions

    def observe(item: Any) -> None:
        if isinstance(item, Maps):
            seen.append(item)

    run_scan(messages(), lambda message: None, ScanOptions(device="cpu", models=models), observe=observe)
    return seen[0]


def run_task(task: Task) -> Outcome:
    """Simulate a scan, run every method on it, score."""
    scan = simulate(task.preset, snr=task.snr, seed=task.brain, noise_seed=task.noise)
    outcome = Outcome(task)
    for method in task.methods:
        maps = run_chain(scan, method)
        values = {name: maps.maps[name].value for name in NAMES}
        outcome.scores[method] = score(values, scan.truth, b0_hz=maps.b0_hz)
        outcome.calibration[method] = calibration(maps, outcome.scores[method], scan)
    if task.everything:
        if math.isfinite(task.snr):
            outcome.bounds = bounds(scan.truth)
        for method, image in clean_images(task).items():
            fids = to_numpy(image.fids())
            outcome.fid[method] = fid_error(fids, scan.truth, b0_hz=image.b0_hz)
            outcome.unseen[method] = unknown_recovery(fids, scan.truth, b0_hz=image.b0_hz)
    return outcome


def calibration(maps: Maps, scores: Scores, scan: SimulatedScan) -> dict[str, tuple[float, float]]:
    """Compare errors against the truth (at the acquired resolution, shading divided out) with the stated SD."""
    mask = scan.truth.brain_mask
    found = {}
    for name in NAMES:
        sd = maps.maps[name].sd
        assert sd is not None
        error = maps.maps[name].value - scores.shading * scan.truth.content(name)
        z = np.abs(error / sd)[mask & np.isfinite(sd)]
        found[name] = (float(np.median(z) / 0.6745), float(np.mean(z > 2)))
    return found


def clean_images(task: Task) -> dict[str, SpectralImage]:
    """Reconstruct the same brain with the same noise but without residual water and lipids."""
    clean = simulate(task.preset, snr=task.snr, seed=task.brain, noise_seed=task.noise, nuisance=False)
    kt, context = calibrate(clean, compress=True)
    images = {}
    for method in task.methods:
        gadget = Reconstruct(method=method)
        prepare(gadget, context)
        images[method] = reconstruct(gadget, kt, context)
    return images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--brains", type=int, default=5)
    parser.add_argument("--snr", type=float, nargs="*", default=[20.0, 100.0, math.inf])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--realisations", type=int, default=10, help="of the noise, for the paired ratios; 0: none")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="one brain, two noise realisations")
    given = parser.parse_args()
    if given.quick:
        given.brains, given.realisations = 1, min(given.realisations, 2)
    print(describe_machine())
    start = time.perf_counter()
    tasks = [
        Task(given.preset, snr, brain, 100 + brain, tuple(given.methods))
        for snr in given.snr
        for brain in range(given.brains)
    ]
    high = max((snr for snr in given.snr if math.isfinite(snr)), default=None)
    if high is not None and {"fourier", "subspace"} <= set(given.methods):
        tasks += [
            Task(given.preset, high, r % given.brains, 100 + r, ("fourier", "subspace"), everything=False)
            for r in range(given.brains, given.realisations)
        ]
    outcomes = run_all(tasks, given.processes)
    print(f"{given.preset}, {given.brains} brain(s), {len(tasks)} scans in {time.perf_counter() - start:.0f} s")
    results = [
        summarise(snr, method, [o for o in outcomes if o.task.everything and o.task.snr == snr])
        for snr in given.snr
        for method in given.methods
    ]
    report_errors(results, outcomes)
    report_lesions(results)
    report_calibration(results)
    paired = {} if high is None else ratios([o for o in outcomes if o.task.snr == high], given.realisations)
    report_ratios(paired, high)
    if given.output:
        given.output.write_text(json.dumps({"results": results, "paired": paired}, indent=1))
    return 0


def run_all(tasks: Sequence[Task], processes: int) -> list[Outcome]:
    """Run the tasks in processes of one thread each; outcomes in the order of the tasks."""
    # read by the libraries when the fresh processes load them
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MRSI_THREADS="1")
    outcomes: dict[Task, Outcome] = {}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_task, task) for task in tasks]):
            outcome = future.result()
            outcomes[outcome.task] = outcome
            print(f"  {len(outcomes)} of {len(tasks)} scans done", file=sys.stderr)
    return [outcomes[task] for task in tasks]


def median(values: Sequence[float]) -> float:
    """Median of the finite values."""
    finite = [v for v in values if math.isfinite(v)]
    return statistics.median(finite) if finite else math.nan


def summarise(snr: float, method: str, runs: Sequence[Outcome]) -> dict[str, Any]:
    """Medians over brains."""
    scores = [run.scores[method] for run in runs]
    row: dict[str, Any] = {"snr": snr, "method": method, "b0": median([s.b0_rms_hz for s in scores])}
    row["fid"] = median([run.fid[method] for run in runs])
    row["unseen"] = median([run.unseen[method] for run in runs])
    for name in NAMES:
        row[name] = {
            key: median([getattr(s.maps[name], key) for s in scores])
            for key in ("nrmse", "detail", "nrmse_unfiltered", "bias")
        }
    row["lesions"] = {
        lesion: {
            name: median([s.lesions[lesion][name].recovery for s in scores if lesion in s.lesions]) for name in NAMES
        }
        for lesion in scores[0].lesions
    }
    row["calibration"] = {
        name: [median([run.calibration[method][name][i] for run in runs]) for i in range(2)] for name in NAMES
    }
    row["changed"] = {
        lesion: [name for name in NAMES if scores[0].lesions[lesion][name].changed] for lesion in scores[0].lesions
    }
    row["false_edge"] = median(
        [abs(x.false_contrast) for s in scores for x in s.lesions.get("water_edge", {}).values()]
    )
    return row


def report_errors(results: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> None:
    """Print errors of maps, FIDs and B0, with the bound of the same scans."""
    print("\nNRMSE / detail error at common resolution (NRMSE unfiltered); FID error without nuisance; B0 rms [Hz]")
    fourier = {r["snr"]: r["fid"] for r in results if r["method"] == "fourier"}
    rows = []
    for snr in dict.fromkeys(r["snr"] for r in results):
        for r in (r for r in results if r["snr"] == snr):
            share = (
                f" ({r['fid'] / fourier[snr]:.2f} of Fourier's)" if snr in fourier and r["method"] != "fourier" else ""
            )
            rows.append(
                [f"{snr:g}", r["method"], *(_errors(r[n]) for n in NAMES), f"{r['fid']:.3f}{share}", f"{r['b0']:.2f}"]
            )
        found = [o.bounds for o in outcomes if o.task.snr == snr and o.bounds]
        for kind in KINDS if found else ():
            cells = [{k: median([one[kind][n][k] for one in found]) for k in found[0][kind][n]} for n in NAMES]
            rows.append([f"{snr:g}", kind, *(_errors(c) for c in cells), "", ""])
    print(table(["SNR", "method", *NAMES, "FID", "B0"], rows))
    for r in results:
        if r["method"] == "subspace" and r["snr"] == results[0]["snr"]:
            print(f"wanted at SNR {r['snr']:g} with subspace: " + verdict(r, fourier.get(r["snr"], math.nan)))


def _errors(one: dict[str, float]) -> str:
    return f"{one['nrmse']:.3f} / {one['detail']:.2f} ({one['nrmse_unfiltered']:.3f})"


def verdict(row: dict[str, Any], fourier_fid: float) -> str:
    """Say what is reached of what is wanted."""
    nrmse, detail = (max(row[n][key] for n in NAMES) for key in ("nrmse", "detail"))
    lesions = [
        v
        for lesion, by_map in row["lesions"].items()
        for name, v in by_map.items()
        if name in row["changed"][lesion] and math.isfinite(v)
    ]
    recovery = f"{min(lesions):.2f} to {max(lesions):.2f}" if lesions else "-"
    return (
        f"NRMSE <= {NRMSE_WANTED}: largest {nrmse:.3f}; detail <= {DETAIL_WANTED}: largest {detail:.2f}; "
        f"lesion recovery 0.8 to 1.2: {recovery}; FID <= {FID_WANTED} of Fourier's: {row['fid'] / fourier_fid:.2f}; "
        f"B0 <= {B0_WANTED} Hz: {row['b0']:.2f}"
    )


def report_lesions(results: Sequence[dict[str, Any]]) -> None:
    """Print contrast recoveries."""
    print(
        "\nLesion contrast recovery, estimate over truth (in brackets: the lesion does not change these molecules, "
        "their contrast is that of the tissues there; - where the truth has none)"
    )
    rows = []
    for r in results:
        for lesion, maps in r["lesions"].items():
            cells = ["-" if not math.isfinite(maps[n]) else f"{maps[n]:.2f}" for n in NAMES]
            changed = r["changed"][lesion]
            cells = [c if n in changed or c == "-" else f"({c})" for n, c in zip(NAMES, cells, strict=True)]
            if any(c != "-" for c in cells):
                rows.append([f"{r['snr']:g}", r["method"], lesion, *cells])
        rows.append([f"{r['snr']:g}", r["method"], "unseen resonance, in the FIDs", f"{r['unseen']:.2f}"] + [""] * 4)
        rows.append([f"{r['snr']:g}", r["method"], "water edge, false contrast", f"{r['false_edge']:.3f}"] + [""] * 4)
    print(table(["SNR", "method", "lesion", *NAMES], rows))


def report_calibration(results: Sequence[dict[str, Any]]) -> None:
    """Print whether the stated standard deviations cover the errors."""
    print("\nError over stated SD: typical size (1 is right, below 1 the SD is too large) and share above 2 SD (5 %)")
    rows = [
        [f"{r['snr']:g}", r["method"], *(f"{r['calibration'][n][0]:.2f}, {r['calibration'][n][1]:.0%}" for n in NAMES)]
        for r in results
        if math.isfinite(r["snr"])
    ]
    print(table(["SNR", "method", *NAMES], rows))


def ratios(outcomes: Sequence[Outcome], wanted: int) -> dict[str, list[float]]:
    """Map -> paired ratios of NRMSE (and so of detail error), subspace over Fourier, one per noise realisation."""
    both = [o for o in outcomes if {"fourier", "subspace"} <= set(o.scores)][:wanted]
    return {
        name: [o.scores["subspace"].maps[name].nrmse / o.scores["fourier"].maps[name].nrmse for o in both]
        for name in NAMES
    }


def report_ratios(paired: dict[str, list[float]], snr: float | None) -> None:
    """Print whether subspace is worse than Fourier anywhere at high SNR."""
    if not paired or not paired[NAMES[0]]:
        return
    count = len(paired[NAMES[0]])
    print(
        f"\nSNR {snr:g}: error of subspace over that of Fourier, {count} noise realisations "
        f"(not worse: median <= {NOT_WORSE})"
    )
    rows = [
        [name, f"{statistics.median(v):.3f}", f"{min(v):.3f} to {max(v):.3f}",
         f"{np.mean(np.array(v) <= NOT_WORSE):.0%}",
         "yes" if statistics.median(v) <= NOT_WORSE else "NO"]
        for name, v in paired.items()
    ]  # fmt: skip
    print(table(["map", "median", "range", "at most 1.05 in", "not worse"], rows))


if __name__ == "__main__":
    sys.exit(main())
