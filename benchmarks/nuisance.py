"""Removal of water and lipids: HSVD against its peer, and what is left of maps and spectra at every strength.

    python benchmarks/nuisance.py [--preset csi32] [--brains 3] [--first-brain 0] [--fids 2000] [--methods auto l2 hsvd]
                                  [--cases 100,10 3000,10]

HSVD: FIDs of 512 points (three water lines, four metabolite lines, white noise) at once on all cores, and the first
of them one by one by hlsvdpropy (pure Python and SciPy, order 25), the residual being the root mean square of the
spectrum within 60 Hz of water over that of the noise; beside it what it is when the true water is taken: less than
that is noise and metabolites taken for water. Maps: residual water and scalp lipids in units of the NAA CH3 signal at
t = 0; water of 3,000 is the unsuppressed water of the brain itself, with three pairs of sidebands that grow to 0.5 %
of the line 90 mm from the centre; the water reference has them too, and is taken away in the lines "alone". Weak
water and lipids are removed here too, which the gadget leaves alone unless it is told `always`. Errors are means of
NRMSE over tNAA, tCr, tCho, Ins, Glx and medians over brains; "x" is the error over that of the same brain and noise
without nuisance. "Left" is what differs from that scan in the brain after the removal, root mean square in a band of
the spectrum over the noise: medians over voxels.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import NAMES, calibrate, describe_machine, prepare, table

from mrsi_gadgets.arrays import one_blas_thread
from mrsi_gadgets.data import KtData, Maps
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.remove_nuisance import RemoveNuisance
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.nuisance.hsvd import ORDER, hsvd
from mrsi_gadgets.reconstruction.nuisance.lipids import band_amplitude

UNSUPPRESSED = 3000.0
STRENGTHS = ((5.0, 10.0), (20.0, 10.0), (100.0, 10.0), (UNSUPPRESSED, 10.0), (5.0, 300.0), (100.0, 300.0))
"""(water, lipids) over the NAA CH3 signal."""
RECONSTRUCTIONS = ("fourier", "subspace")
SIDEBANDS = 0.005
"""Of unsuppressed water, over its line at the edge of the head."""
BANDS = {"water": (4.4, 4.9), "lipids": (0.9, 1.6), "Cr, Cho": (2.9, 3.35)}
DWELL, POINTS, HALF_BAND_HZ = 1 / 1500, 512, 60.0


@dataclass(frozen=True, eq=False)
class Scan:
    """Calibrated data of one brain."""

    simulated: SimulatedScan
    kt: KtData
    context: Context


def peer() -> Any:
    """Return the module hlsvdpropy.hlsvd, None where it is not installed.

    It is loaded from its file: the package's own start needs a part of setuptools that newer ones lack.
    """
    found = importlib.util.find_spec("hlsvdpropy")
    if found is None or found.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("hlsvdpropy_hlsvd", Path(found.origin).with_name("hlsvd.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def band_level(fids: np.ndarray) -> float:
    """Root mean square of the unitary spectrum within the water band over sqrt(2): 1 is noise of unit SD."""
    spectrum = np.fft.fft(fids, axis=-1) / np.sqrt(fids.shape[-1])
    inside = np.abs(np.fft.fftfreq(fids.shape[-1], DWELL)) < HALF_BAND_HZ
    return float(np.sqrt(np.mean(np.abs(spectrum[..., inside]) ** 2) / 2))


def compare_hsvd(count: int, of_peer: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = DWELL * np.arange(POINTS)
    frequency = np.array([-8.0, 1.5, 12.0, -321.0, -200.0, -178.0, -110.0])
    frequency = frequency + rng.normal(0, 2, (count, 7))
    damping = np.array([25.0, 12.0, 35.0, 14.0, 14.0, 15.0, 20.0]) * rng.lognormal(0, 0.2, (count, 7))
    amplitude = np.array([60.0, 100.0, 30.0, 6.0, 5.0, 4.0, 3.0]) * np.exp(2j * np.pi * rng.uniform(size=(count, 7)))
    lines = amplitude[..., None] * np.exp((2j * np.pi * frequency - damping)[..., None] * times)
    water = lines[:, :3].sum(axis=1)
    noise = rng.standard_normal((count, POINTS)) + 1j * rng.standard_normal((count, POINTS))
    fids = (lines.sum(axis=1) + noise).astype(np.complex64)
    band = (-HALF_BAND_HZ, HALF_BAND_HZ)
    rows = [
        ("before", "", f"{band_level(fids[:of_peer]):.3f}", ""),
        ("true water taken", "", f"{band_level(fids[:of_peer] - water[:of_peer]):.3f}", "0.000"),
    ]

    def row(name: str, found: np.ndarray, milliseconds: float) -> None:
        n = len(found)
        rows.append(
            (name, f"{milliseconds:.3f}", f"{band_level(fids[:n] - found):.3f}", f"{band_level(found - water[:n]):.3f}")
        )

    for name, sd in (("hsvd, noise known", 1.0), (f"hsvd, order {ORDER}", None)):
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            found = hsvd(fids, DWELL, band, noise_sd=sd).signal(POINTS)
            seconds.append(time.perf_counter() - start)
        row(name, found[:of_peer], 1e3 * statistics.median(seconds[1:]) / count)
    module = peer()
    if module is None:
        rows.append(("hlsvdpropy", "not installed", "", ""))
    else:
        start = time.perf_counter()
        found = np.stack([by_peer(module, fid, times) for fid in fids[:of_peer].astype(complex)])
        row("hlsvdpropy, order 25", found, 1e3 * (time.perf_counter() - start) / of_peer)
    print(f"HSVD: {count} FIDs of {POINTS} points at once; residuals of the first {of_peer}, in the water band")
    print(table(("", "ms per FID", "residual / noise", "error of water / noise"), rows))


def by_peer(module: Any, fid: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the water band's components by hlsvdpropy."""
    found = module.convert_hlsvd_result(module.hlsvdpro(fid, 25), DWELL * 1e3)
    frequency, damping = np.array(found[2]) * 1e3, np.array(found[3]) * 1e-3
    amplitude = np.array(found[4]) * np.exp(1j * np.deg2rad(found[5]))
    used = np.abs(frequency) < HALF_BAND_HZ
    return np.exp((2j * np.pi * frequency[used] + 1 / damping[used]) * times[:, None]) @ amplitude[used]


def measured(preset: str, water: float, lipid: float, brain: int) -> Scan:
    """Simulate and calibrate one scan."""
    unsuppressed = {"water_suppressed": False, "water_sidebands": SIDEBANDS}
    own = unsuppressed if water >= UNSUPPRESSED else {"residual_water": water}
    scan = simulate(replace(find_preset(preset), lipid=lipid, **own), seed=brain, noise_seed=100 + brain)
    kt, context = calibrate(scan, compress=True)
    return Scan(scan, kt, context)


def errors(scan: Scan, kt: KtData) -> dict[str, float]:
    """Reconstruct and quantify; return each reconstruction's mean error of the maps."""
    context = Context(protocol=kt.protocol, calibration=scan.context.calibration)
    quantify = Quantify()
    prepare(quantify, context)
    found = {}
    for method in RECONSTRUCTIONS:
        gadget = Reconstruct(method=method)
        prepare(gadget, context)
        with one_blas_thread():
            (maps,) = quantify.process(gadget.process(iter([kt]), context), context)
        assert isinstance(maps, Maps)
        scored = score({name: maps.maps[name].value for name in NAMES}, scan.simulated.truth)
        found[method] = float(np.mean([scored.maps[name].nrmse for name in NAMES]))
    return found


def left(scan: Scan, kt: KtData, clean: KtData) -> dict[str, float]:
    """Return what differs from the scan without nuisance in the brain, by band, over the noise."""
    known = scan.context.calibration.encoding()
    brain = scan.simulated.truth.brain_mask
    image = reconstruct_fourier(kt.with_samples(kt.samples - clean.samples), *known)
    ppm = kt.protocol.ppm_axis(kt.samples.shape[2])
    sd = np.sqrt(2) * image.noise_sd[brain]
    levels = {name: band_amplitude(image.coefficients, ppm, band)[brain] / sd for name, band in BANDS.items()}
    return {name: float(np.median(level)) for name, level in levels.items()}


def removed(scan: Scan, method: str, *, alone: bool = False) -> tuple[KtData, float]:
    """Return the data without nuisance and the seconds it took; `alone`: without help of the water reference."""
    calibration = replace(scan.context.calibration, water_image=None) if alone else scan.context.calibration
    context = Context(protocol=scan.context.protocol, calibration=calibration)
    gadget = RemoveNuisance(method=method, always=True)
    prepare(gadget, context)
    start = time.perf_counter()
    (kt,) = gadget.process(iter([scan.kt]), context)
    seconds = time.perf_counter() - start
    if method == "auto":
        print(f"  {context.report.provenance['nuisance']}", file=sys.stderr)
    return kt, seconds


def compare_methods(preset: str, brains: range, methods: list[str], cases: list[tuple[float, float]]) -> None:
    clean = {brain: measured(preset, 0.0, 0.0, brain) for brain in brains}
    reference = {brain: errors(scan, scan.kt) for brain, scan in clean.items()}
    head = (
        "water",
        "lipids",
        "method",
        *(f"{r}: NRMSE (x)" for r in RECONSTRUCTIONS),
        *(f"left: {b}" for b in BANDS),
        "s",
    )
    rows = [line("0", "0", "none", [(r, r, {}, 0.0) for r in reference.values()])]
    for water, lipid in cases:
        alone = methods if water >= UNSUPPRESSED else []
        results: dict[str, list[Any]] = {}
        for brain in brains:
            scan = measured(preset, water, lipid, brain)
            done = {"none": (scan.kt, 0.0)}
            done |= {method: removed(scan, method) for method in methods}
            done |= {f"{method}, alone": removed(scan, method, alone=True) for method in alone}
            for name, (kt, seconds) in done.items():
                outcome = (errors(scan, kt), reference[brain], left(scan, kt, clean[brain].kt), seconds)
                results.setdefault(name, []).append(outcome)
        rows += [line(f"{water:g}", f"{lipid:g}", name, outcomes) for name, outcomes in results.items()]
    print(f"\n{preset}, {len(brains)} brain(s) from {brains.start}: medians")
    print(table(head, rows))


def line(water: str, lipid: str, name: str, outcomes: list[Any]) -> tuple[str, ...]:
    """Return one line of the table: medians over brains."""

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    maps = [
        f"{middle([e[r] for e, *_ in outcomes]):.3f} ({middle([e[r] / c[r] for e, c, *_ in outcomes]):.2f})"
        for r in RECONSTRUCTIONS
    ]
    bands = [f"{middle([k[b] for _, _, k, _ in outcomes]):.2f}" if outcomes[0][2] else "" for b in BANDS]
    return (water, lipid, name, *maps, *bands, f"{middle([s for *_, s in outcomes]):.1f}")


def case(text: str) -> tuple[float, float]:
    """Read WATER,LIPIDS."""
    water, lipids = (float(part) for part in text.split(","))
    return water, lipids


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi32")
    parser.add_argument("--brains", type=int, default=3)
    parser.add_argument("--first-brain", type=int, default=0)
    parser.add_argument("--fids", type=int, default=2000)
    parser.add_argument("--peer-fids", type=int, default=24)
    parser.add_argument("--methods", nargs="*", default=["auto", "union_of_subspaces", "l2", "hsvd"])
    parser.add_argument("--cases", nargs="*", type=case, default=STRENGTHS, help="WATER,LIPIDS over NAA CH3")
    parser.add_argument("--quick", action="store_true", help="one brain, auto alone")
    given = parser.parse_args()
    if given.quick:
        given.brains, given.methods = 1, ["auto"]
    logging.disable(logging.WARNING)
    print(describe_machine())
    compare_hsvd(given.fids, given.peer_fids, seed=0)
    brains = range(given.first_brain, given.first_brain + given.brains)
    compare_methods(given.preset, brains, given.methods, given.cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
