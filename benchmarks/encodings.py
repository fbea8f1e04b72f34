"""The same brain by every encoding, at equal ADC time and equal noise per second of it.

    python benchmarks/encodings.py [--brains 3] [--snr 20] [--quick]

Each brain is measured by csi, flyback and bipolar EPSI, rings and spirals of the same matrix, with the same total ADC
time (the simulator averages the fast encodings accordingly) and the same noise in each second of it, and goes through
the shipped recipes. Errors are those of docs/explanation/measures.md, medians over brains, with the ratio to the csi
scan of the same brain with the same recipe, wanted at most 1.2. Rings and spirals sample the middle of k-space more
densely than its edge; `density` is what that alone costs in noise, the root of mean(w^2) / mean(w)^2 over the points.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from common import METHODS, NAMES, describe_machine, table

from mrsi_gadgets.data import KtData, Maps, Role, SpectralImage
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.reconstruction.gridding import with_density
from mrsi_gadgets.stream.messages import ConfigFile, Header

PRESETS = ("csi48", "epsi48", "epsi48_bipolar", "rings48", "spiral48")
NAA_PPM = 2.008
SMALL = ("csi16", "epsi16", "epsi16_bipolar", "rings16", "spiral16")


@dataclass
class Outcome:
    """One scan through one recipe."""

    errors: dict[str, tuple[float, float]]
    """Map -> NRMSE, detail error."""
    b0_hz: float
    naa_ppm: float
    seconds: float
    misfit: float


@dataclass
class Scanned:
    """One brain by one encoding."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    density: float = 1.0
    scan_s: float = 0.0
    adc_s: float = 0.0


def naa_position(maps: Maps, taken_out_hz: np.ndarray, scan: SimulatedScan) -> float:
    """Return where NAA's CH3 line is found, median over the brain [ppm]; the truth is 2.008.

    The fit says where the molecules lie against the field that was taken out; the simulator knows that field, and by
    how much the metabolites moved against it (water's own offset, which a water reference cannot tell from the field,
    and the drift between the scans).
    """
    truth, preset = scan.truth, scan.truth.preset
    true_hz = truth.b0_hz - preset.water_offset_hz + preset.drift_between_scans_hz
    found_hz = taken_out_hz + maps.maps["shift"].value
    error = np.nanmedian((found_hz - true_hz)[truth.brain_mask])
    return NAA_PPM + float(error) / (truth.protocol.transmit_frequency_hz * 1e-6)


def run(scan: SimulatedScan, recipe: str, scanned: Scanned) -> None:
    """Send a scan through a recipe and score its maps."""
    seen: dict[type, Any] = {}

    def observe(item: Any) -> None:
        if isinstance(item, KtData) and item.role is Role.METABOLITE and item.grid is None:
            weights = with_density(item).density
            assert weights is not None
            scanned.density = float(np.sqrt(np.mean(weights**2)) / np.mean(weights))
        seen[type(item)] = item

    messages = iter([ConfigFile(recipe), Header(scan.header_xml), *scan.acquisitions])
    report = run_scan(messages, lambda message: None, ScanOptions(device="cpu"), observe=observe)
    assert report is not None
    maps: Maps = seen[Maps]
    scores = score({name: maps.maps[name].value for name in NAMES}, scan.truth, b0_hz=maps.b0_hz)
    scanned.outcomes[recipe] = Outcome(
        {name: (scores.maps[name].nrmse, scores.maps[name].detail) for name in NAMES},
        scores.b0_rms_hz or float("nan"),
        naa_position(maps, seen[SpectralImage].b0_hz, scan),
        report.seconds["reconstruct"],
        float(report.provenance["median_misfit"]),
    )


def measure(preset: str, brain: int, snr: float | None) -> Scanned:
    """Simulate one brain by one encoding and run every recipe on it."""
    chosen = find_preset(preset)
    scan = simulate(chosen if snr is None else replace(chosen, snr=snr), seed=brain)
    scanned = Scanned()
    times = scan.truth.card.get("metabolites", {})
    scanned.scan_s, scanned.adc_s = float(times.get("scan_s", 0)), float(times.get("adc_s", 0))
    for recipe in METHODS:
        run(scan, recipe, scanned)
    return scanned


def rows_of(found: dict[str, list[Scanned]]) -> list[list[str]]:
    """Return one row per encoding and recipe."""
    reference = next(iter(found))
    rows = []
    for recipe in METHODS:
        base = [s.outcomes[recipe] for s in found[reference]]
        for preset, scans in found.items():
            outcomes = [s.outcomes[recipe] for s in scans]
            cells = []
            for name in NAMES:
                error, detail = (statistics.median(o.errors[name][i] for o in outcomes) for i in (0, 1))
                ratio = statistics.median(
                    o.errors[name][0] / b.errors[name][0] for o, b in zip(outcomes, base, strict=True)
                )
                cells.append(f"{error:.3f}/{detail:.2f} ({ratio:.2f})")
            rows.append([
                recipe, preset, *cells, f"{statistics.median(o.b0_hz for o in outcomes):.2f}",
                " to ".join(f"{f(o.naa_ppm for o in outcomes):.3f}" for f in (min, max)),
                f"{statistics.median(s.density for s in scans):.2f}",
                f"{statistics.median(o.seconds for o in outcomes):.1f}",
            ])  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brains", type=int, default=3)
    parser.add_argument("--snr", type=float, help="NAA peak SNR of the csi scan (default: the presets')")
    parser.add_argument("--presets", nargs="*")
    parser.add_argument("--quick", action="store_true", help="16 x 16, one brain")
    given = parser.parse_args()
    presets = given.presets or (SMALL if given.quick else PRESETS)
    brains = 1 if given.quick else given.brains
    found: dict[str, list[Scanned]] = {}
    for preset in presets:
        for brain in range(brains):
            print(f"{preset} brain {brain}", file=sys.stderr, flush=True)
            found.setdefault(preset, []).append(measure(preset, brain, given.snr))
    print(describe_machine())
    print(
        f"{brains} brains; NRMSE/detail (NRMSE over that of the first encoding, same brain and recipe; wanted <= 1.2)"
    )
    head = ("recipe", "preset", *NAMES, "B0, Hz", "NAA, ppm", "density", "reconstruct, s")
    print(table(head, rows_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
