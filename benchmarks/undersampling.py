"""Undersampled csi: one in R points of k-space (variable density), one in 2 x 2 (SENSE), against fully sampled scans.

    python benchmarks/undersampling.py [--brains 3] [--quick]

Noise per readout is equal (design: measures). Errors are NRMSE at the common resolution, medians over brains; in
brackets they are divided by those of the fully sampled scan of the same brain times the root of R: 1 is what the fewer
readouts cost alone. Wanted are at most 1.1 for R = 2 and 1.3 for R = 3. `fourier` fills with zeros, so that it shows
the aliases; `subspace, no prior` has the learned basis and the coils alone, so that the difference to `subspace` is
what the spatial prior wins. Sensitivities and field come from the water reference, which is fully sampled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass

from common import NAMES, calibrate, describe_machine, prepare, reconstruct, table

from mrsi_gadgets.arrays import one_blas_thread
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import simulate

CASES = {"csi48_random2": ("csi48", 2.0), "csi48_random3": ("csi48", 3.0), "csi32_sense": ("csi32", 4.0)}
"""Preset -> the fully sampled one and R."""
METHODS = {
    "fourier": {"method": "fourier"},
    "subspace, no prior": {"method": "subspace", "prior": "none"},
    "subspace": {"method": "subspace"},
}


@dataclass
class Outcome:
    """One scan by one method."""

    errors: dict[str, float]
    seconds: float
    iterations: int


def measure(preset: str, brain: int) -> dict[str, Outcome]:
    """Simulate a scan, reconstruct and fit it by every method, score."""
    scan = simulate(preset, seed=brain)
    kt, context = calibrate(scan, compress=True)
    quantify = Quantify()
    prepare(quantify, context)
    found = {}
    for name, parameters in METHODS.items():
        gadget = Reconstruct(**parameters)  # type: ignore[arg-type]
        prepare(gadget, context)
        before = context.report.seconds.get("reconstruct", 0.0)
        image = reconstruct(gadget, kt, context)
        with one_blas_thread():
            (maps,) = quantify.process(iter([image]), context)
        scores = score({n: maps.maps[n].value for n in NAMES}, scan.truth, b0_hz=maps.b0_hz)
        found[name] = Outcome(
            {n: scores.maps[n].nrmse for n in NAMES},
            context.report.seconds["reconstruct"] - before,
            int(image.provenance.get("iterations", 0)),
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brains", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one brain, SENSE only")
    given = parser.parse_args()
    cases = {"csi32_sense": CASES["csi32_sense"]} if given.quick else CASES
    brains = range(1 if given.quick else given.brains)
    full = {base: [measure(base, brain) for brain in brains] for base in {base for base, _ in cases.values()}}
    rows = []
    for preset, (base, r) in cases.items():
        scans = []
        for brain in brains:
            print(f"{preset} brain {brain}", file=sys.stderr, flush=True)
            scans.append(measure(preset, brain))
        for method in METHODS:
            cells = []
            for name in NAMES:
                error = statistics.median(s[method].errors[name] for s in scans)
                ratio = statistics.median(
                    s[method].errors[name] / f["subspace"].errors[name] / r**0.5
                    for s, f in zip(scans, full[base], strict=True)
                )
                cells.append(f"{error:.3f} ({ratio:.2f})")
            seconds = statistics.median(s[method].seconds for s in scans)
            rows.append([preset, f"{r:g}", method, *cells, f"{seconds:.1f}", str(scans[0][method].iterations or "")])
    for base, scans in full.items():
        cells = [f"{statistics.median(s['subspace'].errors[name] for s in scans):.3f}" for name in NAMES]
        rows.append([base, "1", "subspace", *cells, "", ""])
    print(describe_machine())
    print(f"{len(brains)} brains; NRMSE (over that of the fully sampled scan by subspace times the root of R)")
    print(table(("preset", "R", "method", *NAMES, "reconstruct, s", "iterations"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
