"""BART's subspace reconstruction on the same data, coil maps and temporal basis.

    python benchmarks/bart_pics.py [--preset csi48] [--iterations 30] [--repeats 3]

`bart pics -B basis` (Debian package bart) and ours get the same whitened, compressed, fully sampled k-space, the
same coil maps and the same basis: the learned metabolite rows, on data without residual water and lipids. BART
solves

* least squares by conjugate gradients (it stops by itself when it has converged), and
* with an l1-wavelet prior by FISTA, exactly `--iterations` of them; its weight is chosen by the TRUE error, in
  BART's favour,
* with `--total-variation` also with a joint total-variation prior (ADMM, a third of the iterations; minutes),
  likewise,

ours per voxel, without and with its own edge prior and weights. BART knows no B0, so the problem is also posed
without any. FID errors are taken in the frame of each result: BART's keep the voxel's frequency, ours have it
removed, and the truth is turned to the same. Maps come from the same fit; BART's FIDs are demodulated by our B0 map
for it. BART's time is that of the process less `bart copy` of the same k-space and result (start and file I/O);
ours is the step alone. Simulated data.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import NAMES, calibrate, describe_machine, prepare, seconds_of, table

from mrsi_gadgets.arrays import one_blas_thread, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.phantom.scoring import Scores, score
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.reconstruction.fourier import image_noise_sd
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

PRIORS = {"l1-wavelet": ("W:3:0", (0.1, 0.2, 0.4)), "total variation": ("T:3:64", (0.05, 0.1, 0.2))}
"""BART's spatial priors and the weights that are tried, in BART's own scaling of the data."""
_TRIAL_ITERATIONS = 5


@dataclass
class Problem:
    """One scan before the reconstruction step, and what is compared."""

    scan: SimulatedScan
    kt: KtData
    context: Context
    basis: np.ndarray
    model: Any

    @property
    def known(self) -> tuple[Any, ...]:
        """What our reconstruction takes."""
        found = self.context.calibration
        return self.kt, found.coil_maps, found.b0_hz, found.mask


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--total-variation", action="store_true", help="try that prior of BART's too (minutes)")
    parser.add_argument("--quick", action="store_true", help="preset csi16, one repeat")
    given = parser.parse_args()
    if shutil.which("bart") is None:
        print("BART is not installed (Debian package 'bart'), so there is nothing to compare with.")
        return 0
    print(describe_machine())
    version = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True).stdout.strip()
    preset, repeats = ("csi16", 1) if given.quick else (given.preset, given.repeats)
    rows, times = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for b0 in (False, True):
            problem = pose(preset, b0=b0)
            bart = Bart(Path(folder), problem)
            found = compare(problem, bart, given.iterations, 0 if b0 else repeats, times)
            if given.total_variation:
                found |= total_variation(problem, bart, given.iterations)
            for name, result in found.items():
                cells = [f"{result.maps[n].nrmse:.3f} / {result.maps[n].detail:.2f}" for n in NAMES]
                rows.append(["yes" if b0 else "no", name, f"{result.fid_error:.3f}", *cells])
            print(f"{preset}, B0 {'on' if b0 else 'off'}: {problem.kt.n_coils} channels, basis {problem.basis.shape}, "
                  f"BART {version}")  # fmt: skip
    print("\nFID error; NRMSE / detail error of the maps at common resolution (same fit for all)")
    print(table(["B0", "method", "FID", *NAMES], rows))
    print("\nTime without file I/O, medians (B0 off)")
    report_times(times, given.iterations)
    return 0


def pose(preset: str, *, b0: bool) -> Problem:
    """Simulate a scan without residual water and lipids and bring it to the reconstruction step."""
    scan = simulate(preset, b0=b0, nuisance=False)
    kt, context = calibrate(scan, compress=True)
    model = learn_subspace(context.protocol).metabolites_only()
    context.signal_model = model
    return Problem(scan, kt, context, model.basis, model)


class Bart:
    """`bart pics` on one problem. Dimensions: x, y, z, coil, maps, time (TE), coefficient."""

    def __init__(self, folder: Path, problem: Problem) -> None:
        self._folder, self._voxels = folder, problem.scan.truth.brain_mask.shape
        dense = np.moveaxis(to_numpy(problem.kt.dense), 0, 3)
        self._write("kspace", dense[:, :, :, :, None, :])
        self._write("maps", np.moveaxis(to_numpy(problem.context.calibration.coil_maps), 0, 3))
        self._write("basis", problem.basis.T[None, None, None, None, None])

    def pics(self, *options: str) -> np.ndarray:
        """Return coefficient images (x, y, z, rank) in the unit of `SpectralImage`."""
        self._run("pics", "-S", *options, "-B", "basis", "kspace", "maps", "result")
        dims = [int(n) for n in (self._folder / "result.hdr").read_text().splitlines()[1].split()]
        values = np.fromfile(self._folder / "result.cfl", np.complex64).reshape(dims, order="F")
        return values.reshape(*self._voxels, -1) / np.complex64(np.sqrt(np.prod(self._voxels)))

    def seconds(self, *options: str) -> float:
        """Time of `pics` less that of reading the k-space and writing as much again."""
        whole = seconds_of(lambda: self._run("pics", "-S", *options, "-B", "basis", "kspace", "maps", "result"))
        return whole - seconds_of(lambda: self._run("copy", "kspace", "copied"))

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(["bart", *arguments], capture_output=True, text=True, cwd=self._folder, check=False)
        if done.returncode:
            raise SystemExit(f"bart {' '.join(arguments)} failed: {(done.stdout + done.stderr)[-400:]}")

    def _write(self, name: str, values: np.ndarray) -> None:
        (self._folder / f"{name}.hdr").write_text("# Dimensions\n" + " ".join(map(str, values.shape)) + "\n")
        values.astype(np.complex64).ravel(order="F").tofile(self._folder / f"{name}.cfl")


def compare(
    problem: Problem, bart: Bart, iterations: int, repeats: int, times: dict[str, list[float]]
) -> dict[str, Scores]:
    """Scores of every method; `times` gets the seconds of each, where there are repeats."""
    fit = Quantify()
    prepare(fit, problem.context)
    found = {}
    for name, prior in (("ours, least squares", "none"), ("ours, edge prior", "edges")):
        image = ours(problem, prior)
        found[name] = judge(problem, image, fit)
        times.setdefault(name, []).extend(seconds_of(lambda p=prior: ours(problem, p)) for _ in range(repeats))
    squares = ("-i", str(iterations))
    found["BART, least squares"] = judge(problem, as_image(problem, bart.pics(*squares)), fit)
    kind, weight = best_weight(problem, bart, "l1-wavelet", _TRIAL_ITERATIONS)
    wavelets = ("-R", f"{kind}:{weight:g}", "-i")
    found[f"BART, l1-wavelet {weight:g}"] = judge(
        problem, as_image(problem, bart.pics(*wavelets, str(iterations))), fit
    )
    for name, options in (
        ("least squares", squares),
        ("l1-wavelet", (*wavelets, str(iterations))),
        ("one iteration", (*wavelets, "1")),
    ):
        times.setdefault(f"BART, {name}", []).extend(bart.seconds(*options) for _ in range(repeats))
    return found


def total_variation(problem: Problem, bart: Bart, iterations: int) -> dict[str, Scores]:
    """Scores with BART's joint total-variation prior."""
    fit = Quantify()
    prepare(fit, problem.context)
    kind, weight = best_weight(problem, bart, "total variation", _TRIAL_ITERATIONS, "-C", "3")
    result = bart.pics("-R", f"{kind}:{weight:g}", "-C", "3", "-i", str(max(1, iterations // 3)))
    return {f"BART, total variation {weight:g}": judge(problem, as_image(problem, result), fit)}


def best_weight(problem: Problem, bart: Bart, prior: str, iterations: int, *options: str) -> tuple[str, float]:
    """Return BART's name of a prior and the weight with which the FID error is smallest after a few iterations."""
    kind, weights = PRIORS[prior]
    errors = {
        w: fid_error_of(problem, bart.pics("-R", f"{kind}:{w:g}", "-i", str(iterations), *options)) for w in weights
    }
    return kind, min(errors, key=lambda w: errors[w])


def ours(problem: Problem, prior: str) -> SpectralImage:
    """Reconstruct with the given basis as it is (`adapt` would add to it what BART does not get)."""
    with one_blas_thread():
        return reconstruct_subspace(
            *problem.known, model=problem.model, water=problem.context.calibration.water, prior=prior, adapt=False
        )


def as_image(problem: Problem, coefficients: np.ndarray) -> SpectralImage:
    """BART's result, demodulated by our B0 map, as an image of FIDs."""
    kt, maps, b0, mask = problem.known
    turn = np.exp(-2j * np.pi * b0[..., None] * problem.scan.protocol.times_s)
    return SpectralImage(
        coefficients=((coefficients @ problem.basis) * turn).astype(np.complex64), basis=None, protocol=kt.protocol,
        mask=mask, b0_hz=b0, noise_sd=image_noise_sd(kt, maps, 1.0),
    )  # fmt: skip


def fid_error_of(problem: Problem, coefficients: np.ndarray) -> float:
    """FID error of coefficients that BART made."""
    image = as_image(problem, coefficients)
    nothing = {name: np.ones(image.mask.shape) for name in NAMES}
    return score(nothing, problem.scan.truth, fids=to_numpy(image.fids()), fids_b0_hz=image.b0_hz).fid_error


def judge(problem: Problem, image: SpectralImage, fit: Quantify) -> Scores:
    """Fit an image and score maps and FIDs."""
    with one_blas_thread():
        (maps,) = fit.process(iter([image]), problem.context)
    values = {name: maps.maps[name].value for name in NAMES}
    return score(values, problem.scan.truth, b0_hz=image.b0_hz, fids=to_numpy(image.fids()))


def report_times(times: dict[str, list[float]], iterations: int) -> None:
    """Print seconds and their ratios to ours."""
    median = {name: statistics.median(values) for name, values in times.items()}
    fast, full = median["ours, least squares"], median["ours, edge prior"]
    rows = [[name, f"{s:.2f}", f"{s / fast:.0f}", f"{s / full:.0f}"] for name, s in median.items()]
    alone = (median["BART, l1-wavelet"] - median["BART, one iteration"]) * iterations / max(iterations - 1, 1)
    rows.append(
        [f"BART, {iterations} iterations without set-up", f"{alone:.2f}", f"{alone / fast:.0f}", f"{alone / full:.0f}"]
    )
    print(table(["", "s", "over ours, least squares", "over ours, edge prior"], rows))


if __name__ == "__main__":
    sys.exit(main())
