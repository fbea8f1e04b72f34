"""One iteration off the grid: the Toeplitz normal operator against the pair of non-uniform transforms.

    python benchmarks/noncartesian.py [--quick]

A^H A of rings and of spirals, with a temporal basis of `--rank` rows known at each sample's own time, for one channel.
`pair` goes to the samples and back (two NUFFTs and, per offset of a lap, two products with the basis); `pair on
coefficients` skips the samples (two NUFFTs and one small matrix per offset); `Toeplitz` needs two FFTs on a doubled
grid and a few small matrices. Ratios are medians over rounds in which all take their turn.
"""

from __future__ import annotations

import argparse
import sys
import tracemalloc

import numpy as np
from common import describe_machine, interleaved, spread, table

from mrsi_gadgets.arrays import Array, one_blas_thread
from mrsi_gadgets.data import Geometry
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples, offset_nodes
from mrsi_gadgets.operators.points import GridGram, PointSampling, offsets_of, toeplitz_gram

DWELL_S, DELAY_S = 1 / 1500, 1.3e-3


def trajectory(kind: str, n: int, fov_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Return k (point, 3) [1/m] and offsets (point,) [s] of a 2D scan with `n` voxels across."""
    if kind == "rings":
        lap = 4 * int(np.ceil(np.pi * n / 4))
        radius = (np.arange(n // 2) + 0.5) / fov_m
        plane = (radius[:, None] * np.exp(2j * np.pi * np.arange(lap) / lap)).ravel()
        late = np.tile(np.arange(lap) / lap * DWELL_S, len(radius))
    else:
        arms, used = n // 2, 4 * n
        turn = np.linspace(0, 1, used, endpoint=False)
        arm = turn * 0.5 * n / fov_m * np.exp(2j * np.pi * turn)
        plane = (np.exp(2j * np.pi * np.arange(arms) / arms)[:, None] * arm).ravel()
        late = np.tile(turn * 0.8 * DWELL_S, arms)
    return np.stack([plane.real, plane.imag, 0 * plane.real], axis=1), late


def sampling(kind: str, n: int, rank: int, n_times: int) -> PointSampling:
    """Return the operator of one channel."""
    geometry = Geometry((n, n, 1), (220.0, 220.0, 10.0))
    k, late = trajectory(kind, n, 0.22)
    times = DELAY_S + DWELL_S * np.arange(n_times)
    offsets = offsets_of(times + late[:, None], times, DWELL_S)
    rng = np.random.default_rng(0)
    rates = 2j * np.pi * rng.uniform(-500, 300, rank) - rng.uniform(10, 40, rank)
    nodes = offset_nodes(float(late.min()), float(late.max()), DWELL_S)
    rows = RowsBetweenSamples(nodes, np.exp(rates[None, :, None] * (times + nodes[:, None])[:, None, :]) / n_times**0.5)
    return PointSampling(
        k, geometry, offsets, tuple(r.astype(np.complex64) for r in rows.at(offsets.values_s)), np.ones(len(k)), 1,
        grids=None,
    )  # fmt: skip


def peak_mb(action: object) -> float:
    """Return the most memory that an action's arrays took at once [MB]."""
    tracemalloc.start()
    action()  # type: ignore[operator]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rank", type=int, default=60, help="rows of the temporal basis (after the field's evolution)")
    parser.add_argument("--times", type=int, default=384)
    given = parser.parse_args()
    rows = []
    for kind, n in (("rings", 48), ("spiral", 48), ("rings", 64)):
        op = sampling(kind, n, given.rank, given.times)
        x: Array = (
            np.random.default_rng(1).standard_normal((*op.domain, 2)).astype(np.float32).view(np.complex64)[..., 0]
        )
        gram = toeplitz_gram(op)
        short = GridGram(op)
        actions = {
            "pair": lambda op=op, x=x: op.adjoint(op.forward(x)),
            "pair on coefficients": lambda short=short, x=x: short.forward(x),
            "Toeplitz": lambda gram=gram, x=x: gram.forward(x),
        }
        with one_blas_thread():
            exact = actions["pair"]()
            error = np.linalg.norm(actions["Toeplitz"]() - exact) / np.linalg.norm(exact)
            times = interleaved(actions, 3 if given.quick else 7)
            memory = {name: peak_mb(action) for name, action in actions.items()}
        for name, seconds in times.items():
            ratio = [a / b for a, b in zip(seconds, times["Toeplitz"], strict=True)]
            rows.append([
                f"{kind} {n} x {n}", f"{len(op.k)}", f"{len(op.offsets.members)}",
                f"{len(gram.matrices)}" if name == "Toeplitz" else "", name, spread([1e3 * s for s in seconds], ".0f"),
                spread(ratio, ".2f"), f"{memory[name]:.0f}", f"{error:.1e}" if name == "Toeplitz" else "",
            ])  # fmt: skip
    print(describe_machine())
    print(f"one channel, {given.rank} coefficient images, {given.times} times, complex64")
    head = ("scan", "points", "offsets", "kernels", "A^H A by", "ms", "over Toeplitz", "peak MB", "error")
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
