"""Coverage of the stated 95 % intervals over noise realisations: fourier, subspace and raiise, beside the bare bound.

    python benchmarks/coverage.py [--preset csi32] [--snr 20 60] [--brains 3] [--realisations 50] [--output FILE]
    python benchmarks/coverage.py --methods subspace --quantify union_of_subspaces cnn cnn_spectrum

`--quantify` names the methods of <quantify> that follow each reconstruction (varpro alone by default); those of
networks take them from the same store as raiise.

One brain is simulated without noise; each realisation then has fresh noise in noise scan, water reference and
metabolites (bit for bit what `simulate` makes of that noise seed) and goes through the whole chain. An interval is
value +- 1.96 SD. It covers where it holds

    g(r) times the content of the molecule in the voxel as the acquired k-space resolves it,

g the receive shading of docs/explanation/measures.md, fitted once per method to the mean of all realisations, so that
no noise enters it. Every voxel of the brain mask counts (brain fraction above 0.95); a voxel without a finite value
or SD does not cover. The truth of one voxel is the same in all realisations: what a method does wrong in all of them
is not averaged out, and the lowest tenth of the voxels shows it.

    pooled    share of all voxels and realisations that is covered (wanted: 90 to 98 %)
    p10       10th percentile over the voxels of the share of realisations that is covered (wanted: 80 % or more)
    lesions   pooled over the voxels that lesions fill by more than half
    width     mean full width of the intervals over the mean of the map
    z         root mean square of error over SD;  noise: scatter over the realisations over SD, root mean square

The same for the bare Cramer-Rao bound of the fit that each map carries along.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from common import NAMES, describe_machine, learned_models, table

from mrsi_gadgets.arrays import one_blas_thread
from mrsi_gadgets.data import Maps
from mrsi_gadgets.gadgets.composition import Chain, find_recipe
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.measure import add_noise, noise_scan, shots_of
from mrsi_gadgets.phantom.scoring import fit_shading
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate

METHODS = ("fourier", "subspace", "raiise")
Z95 = 1.959964
POOLED, LOWEST = (0.90, 0.98), 0.80
_LESION = 0.5


@dataclass(frozen=True)
class Task:
    """One noise realisation of one brain through one method."""

    preset: str
    snr: float
    brain: int
    method: str
    """Recipe, or recipe+METHOD of its <quantify> where that is not its own."""
    noise: int
    models: str


@lru_cache(maxsize=2)
def scene(preset: str, snr: float, brain: int) -> tuple[SimulatedScan, np.ndarray]:
    """Return the scan without noise, and the covariance of the noise that gives the SNR."""
    clean = simulate(preset, snr=math.inf, seed=brain)
    return clean, simulate(preset, snr=snr, seed=brain).truth.noise_covariance


def measured_again(preset: str, snr: float, brain: int, noise_seed: int) -> SimulatedScan:
    """Return the scan with fresh noise: bit for bit that of ``simulate`` with this SNR, brain and noise seed."""
    clean, covariance = scene(preset, snr, brain)
    settings = clean.truth.preset
    rng = np.random.default_rng(noise_seed)
    noise = noise_scan(covariance, settings, rng)
    groups = [tuple(replace(p, samples=p.samples.copy()) for p in group) for group in clean.groups]
    for one in (p for group in reversed(groups) for p in group):
        add_noise(one, shots_of(one, settings), covariance, settings, rng)
    return replace(clean, noise=noise, groups=tuple(groups))


@lru_cache(maxsize=8)
def prepared(preset: str, snr: float, brain: int, method: str, models: str) -> tuple[Chain, Context]:
    """Return a chain and what its gadgets prepare before the data are there: the same for all realisations."""
    header = parse_header(scene(preset, snr, brain)[0].header_xml)
    recipe, _, fit = method.partition("+")
    chain = find_recipe(recipe)
    if fit:
        chain = chain.with_attributes("quantify", {"method": fit})
    context = Context(protocol=read_protocol(header), models=(Path(models),))
    for gadget in chain.gadgets:
        done: Future[Any] = Future()
        done.set_result(gadget.prepare(context))
        context.prepared[gadget] = done
    return chain, context


def run_task(task: Task) -> dict[str, np.ndarray]:
    """Return of one realisation the maps with their SDs and bounds, each (brain voxel,)."""
    with one_blas_thread():
        scan = measured_again(task.preset, task.snr, task.brain, task.noise)
        chain, before = prepared(task.preset, task.snr, task.brain, task.method, task.models)
        header = parse_header(scan.header_xml)
        context = Context(protocol=before.protocol, models=before.models, prepared=before.prepared)
        found: list[Maps] = []

        def observe(item: Any) -> None:
            if isinstance(item, Maps):
                found.append(item)

        items: Iterator[Any] = sort_readouts(scan.acquisitions, context.protocol, context.report, header)
        for _ in chain.run(items, context, observe):
            pass
    mask = scan.truth.brain_mask
    kept: dict[str, np.ndarray] = {}
    for name in NAMES:
        one = found[0].maps[name]
        kept[name] = one.value[mask]
        assert one.sd is not None
        kept[f"{name} sd"] = one.sd[mask]
        bound = getattr(one, "crlb", None)
        if bound is not None:
            kept[f"{name} crlb"] = bound[mask]
    for name in ("shift", "linewidth", "phase", "residual"):
        kept[name] = found[0].maps[name].value[mask]
    return kept


def collected(tasks: list[Task], results: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack the realisations of one brain and method, (realisation, voxel), with the shaded truth of each map."""
    first = tasks[0]
    truth = scene(first.preset, first.snr, first.brain)[0].truth
    mask = truth.brain_mask
    stacked = {key: np.stack([result[key] for result in results]) for key in results[0]}
    mean = {name: np.zeros(mask.shape) for name in NAMES}
    for name in NAMES:
        mean[name][mask] = np.nan_to_num(stacked[name]).mean(axis=0)
    shading = fit_shading(mean, {name: truth.content(name) for name in NAMES}, mask)
    for name in NAMES:
        stacked[f"{name} truth"] = (shading * truth.content(name))[mask]
    stacked["lesion"] = truth.lesion_total[mask]
    for name, where in truth.lesions.items():
        stacked[f"lesion {name}"] = where[mask]
    stacked["mask"] = mask
    return stacked


def measures(runs: list[dict[str, np.ndarray]], name: str, which: str) -> dict[str, float]:
    """Return the measures of one map over several brains; `which` is ``sd`` or ``crlb``."""
    covered, share, lesion, width, z, scatter = [], [], [], [], [], []
    for run in runs:
        value, sd, truth = run[name], run[f"{name} {which}"], run[f"{name} truth"]
        off = (value - truth) / sd
        usable = np.isfinite(off)
        inside = usable & (np.abs(np.where(usable, off, np.inf)) <= Z95)
        covered.append(inside.mean())
        share.append(inside.mean(axis=0))
        lesion.append(inside[:, run["lesion"] > _LESION].mean())
        width.append(float(2 * Z95 * np.nanmean(sd) / truth.mean()))
        z.append(np.nanmean(off**2))
        scatter.append(np.nanmean((value - np.nanmean(value, axis=0)) ** 2 / sd**2) * len(value) / (len(value) - 1))
    return {
        "pooled": float(np.mean(covered)),
        "p10": float(np.percentile(np.concatenate(share), 10)),
        "lesions": float(np.mean(lesion)),
        "width": float(np.mean(width)),
        "z": float(np.sqrt(np.mean(z))),
        "noise": float(np.sqrt(np.mean(scatter))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi32")
    parser.add_argument("--snr", type=float, nargs="*", default=[20.0, 60.0])
    parser.add_argument("--brains", type=int, nargs="*", default=[10])
    parser.add_argument("--realisations", type=int, default=50)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--quantify", nargs="*", default=["varpro"], help="methods of <quantify> after each of them")
    parser.add_argument("--models", type=Path, help="folder of learned models; none: trained beside the benchmarks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON with the measures")
    parser.add_argument("--picture", type=Path, help="PNG of pooled coverage and lowest tenth")
    parser.add_argument("--keep", type=Path, help="folder for all values (.npz), to look into")
    parser.add_argument("--quick", action="store_true", help="8 realisations")
    given = parser.parse_args()
    if given.quick:
        given.realisations = 8
    print(describe_machine())
    learned = "raiise" in given.methods or any(fit.startswith("cnn") for fit in given.quantify)
    models = str(learned_models(given.models)) if learned else ""
    given.methods = [one if fit == "varpro" else f"{one}+{fit}" for one in given.methods for fit in given.quantify]
    # read by the libraries when the fresh processes load them
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MRSI_THREADS="1")
    start = time.perf_counter()
    rows, found = [], []
    with ProcessPoolExecutor(given.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for snr in given.snr:
            runs: dict[str, list[dict[str, np.ndarray]]] = {method: [] for method in given.methods}
            for brain in given.brains:
                tasks = [
                    Task(given.preset, snr, brain, method, 1000 + noise, models)
                    for method in given.methods
                    for noise in range(given.realisations)
                ]
                results = list(pool.map(run_task, tasks))
                for i, method in enumerate(given.methods):
                    part = slice(i * given.realisations, (i + 1) * given.realisations)
                    runs[method].append(collected(tasks[part], results[part]))
                    if given.keep:
                        given.keep.mkdir(parents=True, exist_ok=True)
                        np.savez(given.keep / f"{method}_{snr:g}_{brain}.npz", **runs[method][-1])
                print(f"  SNR {snr:g}, brain {brain} done after {time.perf_counter() - start:.0f} s", file=sys.stderr)
            for method in given.methods:
                for which in ("sd", "crlb"):
                    if f"{NAMES[0]} {which}" not in runs[method][0]:
                        continue
                    by_map = {name: measures(runs[method], name, which) for name in NAMES}
                    found.append({"snr": snr, "method": method, "which": which, "maps": by_map})
                    rows.append([f"{snr:g}", method, which, *(_cell(by_map[name]) for name in NAMES)])
    print(
        f"{given.preset}, brain(s) {given.brains}, {given.realisations} noise realisations each, "
        f"{time.perf_counter() - start:.0f} s"
    )
    print("\npooled p10 lesions, width; z, noise")
    print(table(["SNR", "method", "SD", *NAMES], rows))
    stated = [(f["snr"], f["method"], n, m) for f in found if f["which"] == "sd" for n, m in f["maps"].items()]
    failed = [x for x in stated if not (POOLED[0] <= x[3]["pooled"] <= POOLED[1] and x[3]["p10"] >= LOWEST)]
    print(f"\nwithin pooled 90 to 98 % and p10 at least 80 %: {len(stated) - len(failed)} of {len(stated)} maps")
    for snr, method, name, m in failed:
        print(f"  not: SNR {snr:g} {method} {name}: pooled {m['pooled']:.1%}, p10 {m['p10']:.0%}")
    if given.output:
        given.output.write_text(json.dumps(found, indent=1))
    if given.picture:
        draw(found, given.picture)
    return 0


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw pooled coverage (dot) and that of the lowest tenth of the voxels (end of the line), SD beside bound."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((f["snr"], f["method"]) for f in found))
    figure = Figure(figsize=(2.1 * len(cases) + 0.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, (snr, method) in zip(panels, cases, strict=True):
        axes.axhspan(100 * POOLED[0], 100 * POOLED[1], color="0.9", lw=0)
        axes.axhline(100 * LOWEST, color="0.6", lw=0.8, ls=":")
        for which, colour, shift in (("sd", "#1f6fb4", -0.14), ("crlb", "#c05a1c", 0.14)):
            for one in (f for f in found if (f["snr"], f["method"], f["which"]) == (snr, method, which)):
                for i, name in enumerate(NAMES):
                    m = one["maps"][name]
                    axes.plot([i + shift] * 2, [100 * m["p10"], 100 * m["pooled"]], color=colour, lw=1.5)
                    axes.plot(i + shift, 100 * m["pooled"], "o", color=colour, ms=4)
        axes.set_title(f"{method}, SNR {snr:g}", fontsize=9)
        axes.set_xticks(range(len(NAMES)), NAMES, fontsize=7)
        axes.set_ylim(min(60.0, 95 * min(m["p10"] for f in found for m in f["maps"].values())), 102)
        axes.tick_params(axis="y", labelsize=7)
    panels[0].set_ylabel("covered by 95 % intervals [%]", fontsize=8)
    words = (
        "dot: all voxels, all realisations (grey: 90 to 98 %); end of the line: lowest tenth of voxels (dotted: 80 %); "
        "blue: stated SD, orange: bound"
    )
    figure.supxlabel(words, fontsize=7)
    figure.savefig(path, dpi=110)


def _cell(m: dict[str, float]) -> str:
    return f"{m['pooled']:.0%} {m['p10']:.0%} {m['lesions']:.0%}, {m['width']:.2f}; {m['z']:.2f}, {m['noise']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
