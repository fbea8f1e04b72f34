"""Time of raiise against dae (eq. 8) on the same data, networks and spatial prior, and of an explicit Jacobian.

    python benchmarks/learned_speed.py [--models FOLDER] [--preset csi48] [--rounds 3] [--quick]

Both begin with the same least-squares image and the same prior, whose time is in both and stated alone (`subspace`).
raiise ends after one projection of complete data. dae is timed until its FID error stays within 2 % of the one it ends
with (errors are scored afterwards, from copies of its iterates). The explicit Jacobian is timed once, on some voxels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import calibrate, describe_machine, interleaved, learned_models, seconds_of, spread, table

from mrsi_gadgets.arrays import like, one_blas_thread, to_numpy
from mrsi_gadgets.data import SpectralImage
from mrsi_gadgets.io.model_store import find_model
from mrsi_gadgets.models.manifold_penalty import gradient_by_jacobian, penalty
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.scoring import fid_error
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.reconstruction.dae import convergence, reconstruct_dae
from mrsi_gadgets.reconstruction.raiise import ManifoldProjection
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

AT_MOST_S, TIMES_FASTER = 3.0, 5.0
SOME_VOXELS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="model store; none: train 1h_fid_3t first, once")
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    given = parser.parse_args()
    given.models = learned_models(given.models)
    rounds = 1 if given.quick else given.rounds
    rows: list[list[str]] = []
    for snr in (10.0, 20.0):
        rows += measure(given.preset, snr, given.models, rounds)
    print(describe_machine())
    print(f"{given.preset}, {rounds} rounds, medians (smallest to largest)")
    print(table(("SNR", "method", "seconds", "FID error", "within 2 % after, s", "iterations"), rows))
    print(jacobian(given.preset, given.models))
    return 0


def measure(preset: str, snr: float, models: Path, rounds: int) -> list[list[str]]:
    """Time the methods on one scan, in turn."""
    scan = simulate(replace(PRESETS[preset], drift_hz_per_minute=0.0), snr=snr, seed=50, noise_seed=200, nuisance=False)
    kt, context = calibrate(scan, compress=True)
    stored = find_model((models,), context.protocol)
    if stored is None:
        raise SystemExit(f"there is no model for {preset} in {models}; train one with mrsi learn")
    rows, water = stored.subspace.metabolites_only(), context.calibration.water
    call = (kt, *context.calibration.encoding())
    images: dict[str, SpectralImage] = {}
    iterates: list[tuple[float, Any]] = []

    def subspace() -> None:
        images["subspace"] = reconstruct_subspace(*call, model=rows, water=water)

    def raiise() -> None:
        projection = ManifoldProjection(stored.manifold, rows, stored.gate)
        images["raiise"] = reconstruct_subspace(*call, model=rows, water=water, refinement=projection)

    def dae() -> None:
        start = time.perf_counter()
        iterates.clear()

        def seen(_: int, u: Any) -> None:
            iterates.append((time.perf_counter() - start, to_numpy(u).copy()))

        images["dae"] = reconstruct_dae(*call, manifold=stored.manifold, subspace=rows, water=water, callback=seen)

    actions: dict[str, Callable[[], object]] = {"subspace": subspace, "raiise": raiise, "dae": dae}
    with one_blas_thread():
        seconds = interleaved(actions, rounds)
    errors = {name: fid_error(to_numpy(i.fids()), scan.truth, b0_hz=i.b0_hz) for name, i in images.items()}
    image = images["dae"]
    history = []
    for at, u in iterates:
        fids = u @ like(to_numpy(image.basis), u, u.dtype)
        history.append((at, fid_error(fids, scan.truth, b0_hz=image.b0_hz)))
    converged, reached = convergence(history)
    found = []
    for name in actions:
        within = {"raiise": statistics.median(seconds["raiise"]), "dae": reached}.get(name)
        told = "" if within is None else f"{within:.2f}"
        if name == "dae":
            told += f" ({reached / statistics.median(seconds['raiise']):.1f} times raiise; wanted {TIMES_FASTER:g})"
        if name == "raiise":
            told += f" (at most {AT_MOST_S:g})"
        iterations = str(image.provenance["iterations"]) if name == "dae" else ""
        found.append([f"{snr:g}", name, spread(seconds[name], ".2f"), f"{errors[name]:.4f}", told, iterations])
    assert np.isfinite(converged)
    return found


def jacobian(preset: str, models: Path) -> str:
    """Time the gradient of the penalty by one vector-Jacobian product and by explicit Jacobians, once."""
    stored = find_model((models,), PRESETS[preset].protocol)
    assert stored is not None
    rng = np.random.default_rng(0)
    shape = (SOME_VOXELS, stored.manifold.rank)
    x = (stored.manifold.mean * (1 + 0.1 * rng.standard_normal(shape))).astype(np.complex64)
    weights = np.ones(SOME_VOXELS, dtype=np.float32)
    penalty(stored.manifold, x, weights)
    product = min(seconds_of(lambda: penalty(stored.manifold, x, weights)) for _ in range(5))
    explicit = seconds_of(lambda: gradient_by_jacobian(stored.manifold, x, weights))
    return (
        f"gradient of the penalty of {SOME_VOXELS} voxels: {product * 1e3:.1f} ms by one vector-Jacobian product, "
        f"{explicit * 1e3:.0f} ms by explicit Jacobians ({explicit / product:.0f} times)"
    )


if __name__ == "__main__":
    sys.exit(main())
