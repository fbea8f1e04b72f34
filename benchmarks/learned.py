"""Learned models against everything simpler: FID and map errors, bias and scatter, lesions, over SNR.

    python benchmarks/learned.py [--models FOLDER] [--preset csi48] [--snr 10 20 40 100] [--brains 4]
                                 [--realisations 10] [--methods ...] [--nuisance 5 10] [--quick]

Brains (seeds from 50 on) and noise were never seen in training: models are trained on ensembles of FIDs and no brain at
all. All methods get the same data of the same calibration. There are no water, lipids and drift in them, since the
truth of FIDs holds metabolites and macromolecules alone (`accuracy.py` has the whole chain); so the subspaces are those
of the metabolites, for every method. Low rank and plain subspace get the rank of the least FID error, which only an
oracle knows. Maps are those of the same fit. Numbers are medians over brains and noise realisations; the ratio is the
median over scans of raiise over the best method without a network on the same scan. Bias and scatter: maps of the first
brain over its noise realisations, mean of them against the truth and standard deviation, both over the norm of the
truth. Point spread, measures and the atlas: docs/explanation/measures.md.

--nuisance WATER LIPIDS puts residual water and scalp lipids (times NAA) and drift into the data and runs the whole
chain: drift corrected, both removed (`remove_nuisance always="true"`), each method as the recipes have it, with rows
for what is left of water and lipids. The truth of FIDs is the same, so what is left counts as error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import NAMES, calibrate, describe_machine, learned_models, prepare, table

from mrsi_gadgets.arrays import centred_fftn, centred_ifftn, one_blas_thread, to_numpy
from mrsi_gadgets.data import KtData, Role, SpectralImage
from mrsi_gadgets.gadgets.combine_coils import CombineCoils
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.correct_drift import CorrectDrift
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.remove_nuisance import RemoveNuisance
from mrsi_gadgets.io.model_store import StoredModel, find_model
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.scoring import common_resolution, fid_error, score, unknown_recovery
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.reconstruction.dae import reconstruct_dae
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.locally_low_rank import reconstruct_locally_low_rank
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.raiise import ManifoldProjection
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

FIRST_BRAIN = 50
WANTED, NOT_WORSE = 0.9, 1.05
RANKS = (4, 6, 8, 10, 12, 16, 20, 26)
LINEAR = (
    "fourier",
    "fourier, Hamming",
    "low rank, oracle",
    "locally low rank",
    "subspace, best rank",
    "subspace, edges",
    "low rank",
)
NETWORKS = ("dae", "raiise")
CHAIN = {"fourier": "fourier", "low rank": "low_rank", "subspace, edges": "subspace", "raiise": "raiise"}
"""What the gadget calls these methods."""
WITH_NUISANCE = ("fourier", "fourier, Hamming", "low rank", "subspace, edges", "raiise")
Known = tuple[KtData, Context, StoredModel]


@dataclass(frozen=True)
class Task:
    """One scan."""

    preset: str
    snr: float
    brain: int
    noise: int
    methods: tuple[str, ...]
    store: str
    nuisance: tuple[float, float] | None = None
    """Residual water and lipids over NAA, and drift: the whole chain; None: none of them in the data."""


@dataclass
class Outcome:
    """What became of it: method -> numbers."""

    task: Task
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    maps: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Method -> name -> map without shading at the common resolution, in the mask."""
    truth: dict[str, np.ndarray] = field(default_factory=dict)


def hamming(kt: KtData, context: Context) -> SpectralImage:
    """Fourier with a Hamming window over the acquired k-space, and the noise that it leaves."""
    image = reconstruct_fourier(kt, *context.calibration.encoding())
    axes = tuple(axis for axis in range(3) if image.coefficients.shape[axis] > 1)
    window = np.ones((1, 1, 1))
    for axis in axes:
        n = image.coefficients.shape[axis]
        values = 0.54 + 0.46 * np.cos(2 * np.pi * (np.arange(n) - n // 2) / n)
        window = window * values.reshape([-1 if a == axis else 1 for a in range(3)])
    # B0 was taken out voxel by voxel; the window belongs to the data
    times = kt.protocol.times_s
    phase = np.exp(2j * np.pi * image.b0_hz[..., None] * times)
    k_space = centred_fftn((image.fids() * phase).astype(np.complex64), axes) * window[..., None]
    filtered = centred_ifftn(k_space.astype(np.complex64), axes) / phase
    left = float(np.sqrt(np.mean(window**2)))
    return replace(image, coefficients=filtered.astype(np.complex64), noise_sd=image.noise_sd * left)


def least(error: Callable[[SpectralImage], float], images: Sequence[Callable[[], SpectralImage]]) -> SpectralImage:
    """Return the image of the least error: an oracle's choice."""
    return min((make() for make in images), key=error)


def reconstruct(method: str, known: Known, error: Callable[[SpectralImage], float]) -> SpectralImage:
    """Run one method."""
    kt, context, stored = known
    call = (kt, *context.calibration.encoding())
    rows = stored.subspace.metabolites_only()
    water = context.calibration.water
    if method == "fourier":
        return reconstruct_fourier(*call)
    if method == "fourier, Hamming":
        return hamming(kt, context)
    if method == "low rank, oracle":
        return least(error, [lambda r=r: reconstruct_low_rank(*call, rank=r) for r in RANKS])
    if method == "locally low rank":
        return reconstruct_locally_low_rank(*call)
    if method == "subspace, best rank":
        ranks = [r for r in RANKS if r <= rows.rank]
        return least(
            error,
            [lambda r=r: reconstruct_subspace(*call, model=rows.metabolites_only(r), prior="none") for r in ranks],
        )
    if method == "subspace, edges":
        return reconstruct_subspace(*call, model=rows, water=water)
    if method == "dae":
        return reconstruct_dae(*call, manifold=stored.manifold, subspace=rows, water=water)
    if method == "raiise":
        projection = ManifoldProjection(stored.manifold, rows, stored.gate)
        return reconstruct_subspace(*call, model=rows, water=water, refinement=projection)
    raise ValueError(method)


def without_nuisance(scan: SimulatedScan, store: Path) -> tuple[KtData, Context]:
    """Bring a scan to the reconstruction step through all gadgets of the recipes, water and lipids removed."""
    header = parse_header(scan.header_xml)
    context = Context(protocol=read_protocol(header), models=(store,))
    items: Iterator[Any] = sort_readouts(scan.acquisitions, context.protocol, context.report, header)
    remove = RemoveNuisance(method="union_of_subspaces", always=True)
    prepare(remove, context)
    for gadget in (Prewhiten(), CorrectDrift(), EstimateFieldMap(), CombineCoils(), remove):
        items = gadget.process(items, context)
    with one_blas_thread():
        found = [item for item in items if isinstance(item, KtData) and item.role is Role.METABOLITE]
    return found[0], context


def as_in_the_chain(method: str, kt: KtData, context: Context) -> SpectralImage:
    """Run one method as the recipes have it."""
    gadget = Reconstruct(method=method)
    prepare(gadget, context)
    (image,) = gadget.process(iter([kt]), context)
    return image


def run_task(task: Task) -> Outcome:
    """Simulate a scan, run every method on it, score."""
    preset = PRESETS[task.preset]
    if task.nuisance is None:
        preset = replace(preset, drift_hz_per_minute=0.0)
        scan = simulate(preset, snr=task.snr, seed=task.brain, noise_seed=task.noise, nuisance=False)
        kt, context = calibrate(scan, compress=True)
    else:
        water, lipid = task.nuisance
        preset = replace(preset, residual_water=water, lipid=lipid)
        scan = simulate(preset, snr=task.snr, seed=task.brain, noise_seed=task.noise)
        kt, context = without_nuisance(scan, Path(task.store))
    stored = find_model((Path(task.store),), context.protocol)
    if stored is None:
        raise SystemExit(f"there is no model for {task.preset} in {task.store}; train one with mrsi learn")
    quantify = Quantify()
    prepare(quantify, context)
    outcome = Outcome(task)
    mask = scan.truth.brain_mask
    outcome.truth = {n: common_resolution(scan.truth.content(n), mask)[mask] for n in NAMES}

    def error(image: SpectralImage) -> float:
        return fid_error(to_numpy(image.fids()), scan.truth, b0_hz=image.b0_hz)

    for method in task.methods:
        start = time.perf_counter()
        with one_blas_thread():
            if task.nuisance is not None and method in CHAIN:
                image = as_in_the_chain(CHAIN[method], kt, context)
            else:
                image = reconstruct(method, (kt, context, stored), error)
        seconds = time.perf_counter() - start
        outcome.numbers[method] = measure(image, scan, quantify, context, outcome, method) | {
            "fid": error(image), "seconds": seconds,
        }  # fmt: skip
    return outcome


def measure(
    image: SpectralImage, scan: SimulatedScan, quantify: Quantify, context: Context, outcome: Outcome, method: str
) -> dict[str, float]:
    """Fit and score one image."""
    with one_blas_thread():
        (maps,) = quantify.process(iter([image]), context)
    mask = scan.truth.brain_mask
    scores = score({n: maps.maps[n].value for n in NAMES}, scan.truth, b0_hz=maps.b0_hz)
    even = {n: np.where(mask, np.nan_to_num(maps.maps[n].value) / scores.shading, 0.0) for n in NAMES}
    outcome.maps[method] = {n: common_resolution(even[n], mask)[mask] for n in NAMES}
    numbers = {f"nrmse {n}": scores.maps[n].nrmse for n in NAMES} | {
        f"detail {n}": scores.maps[n].detail for n in NAMES
    }
    numbers["unseen"] = unknown_recovery(to_numpy(image.fids()), scan.truth, b0_hz=image.b0_hz)
    for lesion, by_map in scores.lesions.items():
        for name, value in by_map.items():
            if np.isfinite(value.recovery) and value.changed:
                numbers[f"{lesion} {name}"] = value.recovery
    if image.outside_model is not None:
        numbers["outside"] = float(image.outside_model[mask].mean())
        free = mask & (scan.truth.lesion_total < 0.02)
        numbers["outside, no lesion"] = float(image.outside_model[free].mean())
        core = mask & (scan.truth.lesions["unseen"] > 0.7)
        numbers["outside, unseen"] = float(image.outside_model[core].mean()) if core.any() else float("nan")
    return numbers


def median(values: Sequence[float]) -> float:
    """Median of the finite values."""
    finite = [v for v in values if np.isfinite(v)]
    return statistics.median(finite) if finite else float("nan")


def report(outcomes: Sequence[Outcome], methods: Sequence[str], snrs: Sequence[float]) -> dict[str, Any]:
    """Print the tables; return what they hold."""
    found: dict[str, Any] = {"errors": [], "bias": [], "lesions": [], "ratios": []}
    for snr in snrs:
        here = [o for o in outcomes if o.task.snr == snr]
        for method in methods:
            runs = [o.numbers[method] for o in here if method in o.numbers]
            if not runs:
                continue
            names = ["fid", *(f"nrmse {n}" for n in NAMES), *(f"detail {n}" for n in NAMES)]
            row = [f"{median([r[n] for r in runs]):.3f}" for n in names]
            found["errors"].append(
                [f"{snr:g}", method, str(len(runs)), *row, f"{median([r['seconds'] for r in runs]):.2f}"]
            )
            found["lesions"].append(lesion_row(snr, method, runs))
            found["bias"].append([f"{snr:g}", method, *bias_row(here, method)])
        if "raiise" in methods:
            found["ratios"].append([f"{snr:g}", *ratio_row(here, methods)])
    names = ("FID", *NAMES, *(f"detail {n}" for n in NAMES))
    print("\nFID error, NRMSE and detail error of the maps (medians)")
    print(table(("SNR", "method", "scans", *names, "seconds"), found["errors"]))
    print("\nBias / scatter of the maps over noise realisations of one brain, over the norm of the truth")
    print(table(("SNR", "method", "realisations", *NAMES), found["bias"]))
    print("\nContrast of lesions over the truth (medians); share of voxels outside of the model")
    print(table(("SNR", "method", *LESIONS, "outside, no lesion", "outside, unseen"), found["lesions"]))
    print(f"\nraiise over the best method without a network, scan by scan (wanted {WANTED} at SNR 10 and 20)")
    print(table(("SNR", "FID", *NAMES, *(f"detail {n}" for n in NAMES), "FID / edges", "FID / Fourier", "FID / dae"),
                found["ratios"]))  # fmt: skip
    return found


LESIONS = ("tumour tNAA", "tumour tCho", "hidden tNAA", "hidden Ins", "hidden Glx", "unseen tNAA", "unseen")


def lesion_row(snr: float, method: str, runs: Sequence[dict[str, float]]) -> list[str]:
    """Return medians of contrast recoveries and of what the gate says."""
    names = (*LESIONS, "outside, no lesion", "outside, unseen")
    return [f"{snr:g}", method, *(f"{median([r.get(n, float('nan')) for r in runs]):.2f}" for n in names)]


def bias_row(outcomes: Sequence[Outcome], method: str) -> list[str]:
    """Return number of realisations, bias and scatter of each map for the brain that was measured most often."""
    brains = [o.task.brain for o in outcomes if method in o.maps]
    brain = max(set(brains), key=brains.count)
    runs = [o for o in outcomes if o.task.brain == brain and method in o.maps]
    cells = []
    for name in NAMES:
        maps, truth = np.stack([o.maps[method][name] for o in runs]), runs[0].truth[name]
        size = float(np.linalg.norm(truth))
        bias = float(np.linalg.norm(maps.mean(axis=0) - truth)) / size
        scatter = float(np.sqrt(np.sum(maps.var(axis=0, ddof=1)))) / size if len(runs) > 1 else float("nan")
        cells.append(f"{bias:.3f} / {scatter:.3f}")
    return [str(len(runs)), *cells]


def ratio_row(outcomes: Sequence[Outcome], methods: Sequence[str]) -> list[str]:
    """Return medians over scans of raiise over the best linear method, over edges, over Fourier and over dae."""

    def ratios(key: str, others: Sequence[str]) -> str:
        found = [
            o.numbers["raiise"][key] / min(o.numbers[m][key] for m in others if m in o.numbers)
            for o in outcomes
            if "raiise" in o.numbers and any(m in o.numbers for m in others)
        ]
        return f"{median(found):.2f}"

    linear = [m for m in methods if m in LINEAR]
    names = ("fid", *(f"nrmse {n}" for n in NAMES), *(f"detail {n}" for n in NAMES))
    return [
        *(ratios(name, linear) for name in names), ratios("fid", ["subspace, edges"]), ratios("fid", ["fourier"]),
        ratios("fid", ["dae"]),
    ]  # fmt: skip


def tasks_of(given: argparse.Namespace) -> list[Task]:
    """Return the scans: one brain with all realisations, the others once; dae on three of them and at low SNR only."""
    tasks = []
    for snr in given.snr:
        scans = [(FIRST_BRAIN, 200 + r) for r in range(given.realisations)]
        scans += [(FIRST_BRAIN + b, 300 + b) for b in range(1, given.brains)]
        for number, (brain, noise) in enumerate(scans):
            # three scans of dae, one of them of another brain
            slow = snr <= 20 and number in (0, 1, given.realisations)
            methods = tuple(m for m in given.methods if m != "dae" or slow)
            nuisance = None if given.nuisance is None else tuple(given.nuisance)
            tasks.append(Task(given.preset, snr, brain, noise, methods, str(given.models), nuisance))
    return tasks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="model store; none: train 1h_fid_3t first, once")
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 20.0, 40.0, 100.0])
    parser.add_argument("--brains", type=int, default=4)
    parser.add_argument("--realisations", type=int, default=10)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument(
        "--nuisance", type=float, nargs=2, metavar=("WATER", "LIPIDS"), help="the whole chain, see above"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="one brain, two realisations, SNR 20, no dae")
    given = parser.parse_args()
    if given.methods is None:
        given.methods = [*LINEAR[:-1], *NETWORKS] if given.nuisance is None else list(WITH_NUISANCE)
    if given.quick:
        given.snr, given.brains, given.realisations = [20.0], 1, 2
        given.methods = [m for m in given.methods if m != "dae"]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MRSI_THREADS="1")
    given.models = learned_models(given.models)
    print(describe_machine())
    start, tasks = time.perf_counter(), tasks_of(given)
    outcomes = []
    with ProcessPoolExecutor(given.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_task, task) for task in tasks]):
            outcomes.append(future.result())
            print(f"  {len(outcomes)} of {len(tasks)} scans done", file=sys.stderr, flush=True)
    outcomes.sort(key=lambda o: (o.task.snr, o.task.brain, o.task.noise))
    strengths = (
        ""
        if given.nuisance is None
        else " with residual water {:g} and lipids {:g} times NAA removed".format(*given.nuisance)
    )
    print(f"{given.preset}{strengths}, {len(tasks)} scans in {time.perf_counter() - start:.0f} s")
    found = report(outcomes, given.methods, given.snr)
    if given.output:
        given.output.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
