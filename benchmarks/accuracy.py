"""Map errors on the numerical brain: fourier, low_rank and subspace, at SNR 20, 100 and without noise.

``python benchmarks/accuracy.py [--preset csi48] [--brains 5] [--output accuracy.json]``: medians over brains (design of the
measures: docs/explanation/measures.md). Every row is the whole chain, from readouts to maps, as `mrsi replay` runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import describe_machine, table

from mrsi_gadgets.data import Maps, SpectralImage
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.scoring import Scores, score, unknown_recovery
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.stream.messages import ConfigFile, Header, Message

NAMES = ("tNAA", "tCr", "tCho", "Ins", "Glx")
METHODS = ("fourier", "low_rank", "subspace")


def run_chain(scan: SimulatedScan, recipe: str) -> tuple[Maps, SpectralImage]:
    """Run a recipe on a simulated scan; return its maps and its spectral image."""
    seen: list[Any] = []

    def messages() -> Iterator[Message]:
        yield ConfigFile(recipe)
        yield Header(scan.header_xml)
        yield from scan.acquisitions

    run_scan(messages(), lambda message: None, ScanOptions(device="cpu"), observe=seen.append)
    maps = next(item for item in seen if isinstance(item, Maps))
    image = next(item for item in seen if isinstance(item, SpectralImage))
    return maps, image


def score_chain(scan: SimulatedScan, recipe: str, *, fids: bool = True) -> tuple[Scores, float]:
    """Score a recipe's result; the second value is the contrast recovery of the unseen resonance in the FIDs."""
    maps, image = run_chain(scan, recipe)
    values = {name: maps.maps[name].value for name in NAMES}
    rho = np.asarray(image.fids()) if fids else None
    scores = score(values, scan.truth, b0_hz=image.b0_hz, fids=rho, fids_b0_hz=image.b0_hz)
    unseen = unknown_recovery(rho, scan.truth, b0_hz=image.b0_hz) if rho is not None else math.nan
    return scores, unseen


def median(values: list[float]) -> float:
    """Median of the finite values."""
    finite = [v for v in values if math.isfinite(v)]
    return statistics.median(finite) if finite else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--brains", type=int, default=5)
    parser.add_argument("--snr", type=float, nargs="*", default=[20.0, 100.0, math.inf])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    preset = find_preset(given.preset)
    print(describe_machine())
    results = []
    for snr in given.snr:
        for method in given.methods:
            runs = []
            for seed in range(given.brains):
                scan = simulate(replace(preset, snr=snr), seed=seed, noise_seed=100 + seed)
                runs.append(score_chain(scan, method))
                print(f"  snr {snr:g} {method} brain {seed} done", file=sys.stderr)
            results.append(summarise(snr, method, runs))
    report(results)
    if given.output:
        given.output.write_text(json.dumps(results, indent=1))
    return 0


def summarise(snr: float, method: str, runs: list[tuple[Scores, float]]) -> dict[str, Any]:
    """Medians over brains."""
    row: dict[str, Any] = {"snr": snr, "method": method, "fid": median([s.fid_error for s, _ in runs])}
    row["b0"] = median([s.b0_rms_hz for s, _ in runs])
    row["unseen"] = median([u for _, u in runs])
    for name in NAMES:
        row[name] = {
            "nrmse": median([s.maps[name].nrmse for s, _ in runs]),
            "detail": median([s.maps[name].detail for s, _ in runs]),
            "nrmse_unfiltered": median([s.maps[name].nrmse_unfiltered for s, _ in runs]),
            "bias": median([s.maps[name].bias for s, _ in runs]),
        }
    lesions: dict[str, dict[str, float]] = {}
    for lesion in runs[0][0].lesions:
        lesions[lesion] = {
            name: median([s.lesions[lesion][name].recovery for s, _ in runs if lesion in s.lesions]) for name in NAMES
        }
    row["lesions"] = lesions
    return row


def report(results: list[dict[str, Any]]) -> None:
    """Print the tables."""
    print("\nNRMSE / detail error at common resolution; FID error; B0 rms [Hz]")
    print(
        table(
            ["SNR", "method", *NAMES, "FID", "B0"],
            [
                [f"{r['snr']:g}", r["method"]]
                + [f"{r[n]['nrmse']:.3f} / {r[n]['detail']:.2f}" for n in NAMES]
                + [f"{r['fid']:.3f}", f"{r['b0']:.2f}"]
                for r in results
            ],
        )
    )
    print("\nLesion contrast recovery (estimate over truth; - where the truth has no contrast)")
    rows = []
    for r in results:
        for lesion, maps in r["lesions"].items():
            cells = ["-" if not math.isfinite(maps[n]) else f"{maps[n]:.2f}" for n in NAMES]
            rows.append([f"{r['snr']:g}", r["method"], lesion, *cells])
        rows.append(
            [f"{r['snr']:g}", r["method"], "unseen resonance in the FIDs", f"{r['unseen']:.2f}", "", "", "", ""]
        )
    print(table(["SNR", "method", "lesion", *NAMES], rows))


if __name__ == "__main__":
    sys.exit(main())
