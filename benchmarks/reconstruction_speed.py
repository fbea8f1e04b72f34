"""The reconstruction step over one FFT pass, and the fit per voxel, on fully sampled data.

    python benchmarks/reconstruction_speed.py [--preset csi48] [--repeats 7]

The step begins with sorted, whitened data and ends with the spectral image; it is what `<reconstruct>` does.
Learning the subspace and preparing the fit need no data and run while the scan is measured, so they are listed
apart. One FFT pass is the spatial transform of all raw samples (all coils and times) as they lie in memory, pyFFTW
with two threads, planned (FFTW_MEASURE) before the clock starts, in the same process. All ratios are medians of
ratios within one round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import numpy as np
import pyfftw
from common import METHODS, calibrate, describe_machine, interleaved, prepare, reconstruct, seconds_of, spread, table

from mrsi_gadgets.arrays import one_blas_thread
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.phantom.simulate import simulate

WANTED = 5.0


def fft_pass(kt: KtData, *, in_place: bool = False) -> Callable[[], object]:
    """Return the planned spatial transform of all samples of `kt`."""
    dense = kt.dense
    source = pyfftw.empty_aligned(dense.shape, dense.dtype)
    target = source if in_place else pyfftw.empty_aligned(dense.shape, dense.dtype)
    axes = tuple(a for a in (1, 2, 3) if dense.shape[a] > 1)
    plan = pyfftw.FFTW(source, target, axes=axes, direction="FFTW_BACKWARD", flags=("FFTW_MEASURE",), threads=2)
    source[:] = dense
    return plan.execute


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    given = parser.parse_args()
    repeats = 3 if given.quick else given.repeats
    scan = simulate(given.preset)
    print(describe_machine())
    raw, raw_context = calibrate(scan, compress=False)
    few, few_context = calibrate(scan, compress=True)
    print(
        f"{given.preset}: {raw.n_coils} channels ({few.n_coils} after compression) x {raw.samples.shape[1]} k-space "
        f"points x {raw.samples.shape[2]} times = {raw.samples.nbytes / 1e6:.0f} MB of metabolite data; {repeats} "
        "rounds, median (smallest to largest)"
    )
    report(time_steps({"off": (raw, raw_context), "on": (few, few_context)}, raw, repeats))
    print()
    fit_times(few, few_context, repeats)
    return 0


def time_steps(kinds: dict[str, tuple[KtData, Context]], raw: KtData, repeats: int) -> dict[str, list[float]]:
    """Seconds of one FFT pass and of each method on each kind of data, taken in turn."""
    actions: dict[str, Callable[[], object]] = {
        "FFT pass": fft_pass(raw),
        "FFT pass, in place": fft_pass(raw, in_place=True),
    }
    for method in METHODS:
        for compression, (kt, context) in kinds.items():
            gadget = Reconstruct(method=method)
            prepare(gadget, context)
            actions[f"{method}/{compression}"] = lambda g=gadget, k=kt, c=context: reconstruct(g, k, c)
    return interleaved(actions, repeats)


def report(seconds: dict[str, list[float]]) -> None:
    """Print times and ratios to the FFT pass of the same round."""
    reference = seconds["FFT pass"]
    rows = []
    for name, values in seconds.items():
        method, _, compression = name.partition("/")
        ratio = statistics.median(v / r for v, r in zip(values, reference, strict=True))
        verdict = "" if not compression else "yes" if ratio <= WANTED else "NO"
        rows.append([method, compression, spread([1e3 * v for v in values], ".0f"), f"{ratio:.2f}", verdict])
    print(table(["step", "coil compression", "ms", "over one FFT pass", f"at most {WANTED:g}"], rows))


def fit_times(kt: KtData, context: Context, repeats: int) -> None:
    """Print what the fit costs per voxel, and what is prepared before the data come."""
    rows = []
    for method in METHODS:
        # each method's fit is prepared for the images it makes, as in a session
        context.signal_model = None
        gadget, fit = Reconstruct(method=method), Quantify()
        learning = seconds_of(lambda g=gadget: prepare(g, context))
        preparing = seconds_of(lambda f=fit: prepare(f, context))
        image = reconstruct(gadget, kt, context)
        values = [seconds_of(lambda f=fit, i=image: quantify(f, i, context)) for _ in range(min(repeats, 5))]
        voxels = int(image.mask.sum())
        rows.append(
            [method, str(voxels), spread([1e3 * v / voxels for v in values], ".3f"), f"{statistics.median(values):.2f}",
             f"{learning:.2f}", f"{preparing:.2f}"]
        )  # fmt: skip
    print(
        table(
            ["images of", "voxels", "fit, ms per voxel", "fit, s", "learn, s (before)", "prepare fit, s (before)"], rows
        )
    )


def quantify(gadget: Quantify, image: SpectralImage, context: Context) -> None:
    with one_blas_thread():
        for maps in gadget.process(iter([image]), context):
            assert np.isfinite(maps.maps["tNAA"].value[image.mask]).any()


if __name__ == "__main__":
    sys.exit(main())
