"""Concentrations in mM against those of the numerical brain, with what was given and what was not.

    python benchmarks/absolute_units.py [--preset csi32] [--brains 2] [--first-brain 0] [--recipe subspace] [--snr 20]

Ratio of the means and NRMSE over voxels with at least six tenths of grey and white matter, without lesions; nothing is
filtered and no shading is divided out. Fractions and B1 are those of the brain's own fine grid; T1, T2 and water of the
tissues are those that the brain was made with, so what is tested is the way to concentrations, not these tables.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import NAMES, describe_machine, table

from mrsi_gadgets import replay
from mrsi_gadgets.data import Maps
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.phantom.anatomy import make_anatomy
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.quantification.absolute import with_concentrations
from mrsi_gadgets.quantification.tissue import ASSUMED, Tissue, Volume, on_grid_of, tissue_on_grid

LEAST_SOLID = 0.6


def measured(scan: SimulatedScan, recipe: str) -> Maps:
    """Return the maps of a replay."""
    given = replay.Scan(scan.header_xml, scan.acquisitions, None, "brain")
    result = replay.replay_here(given, ScanOptions(recipe=recipe), keep=True)
    return next(item for item in result.observed[::-1] if isinstance(item, Maps))


def given_beside(scan: SimulatedScan, seed: int) -> tuple[Tissue, np.ndarray]:
    """Return tissue fractions and B1 from the brain's fine grid."""
    preset = scan.truth.preset
    pose = np.random.default_rng(np.random.SeedSequence(seed).spawn(5)[0])
    anatomy = make_anatomy(preset.geometry, preset.subvoxels, isocentre_mni_mm=preset.isocentre_mni_mm, rng=pose)
    grid, sub = preset.geometry.affine_ras(), np.array(preset.subvoxels)
    fine = grid @ np.diag([*1 / sub, 1.0])
    fine[:3, 3] = (grid @ np.append(0.5 / sub - 0.5, 1.0))[:3]
    flip = 1.0 - preset.transmit_variation * np.sum((anatomy.positions_mm / 90.0) ** 2, axis=-1)
    grey, white, csf = (
        Volume(v, fine, n) for v, n in zip((anatomy.grey, anatomy.white, anatomy.csf), "gwc", strict=True)
    )
    protocol = scan.truth.protocol
    return tissue_on_grid((grey, white, csf), protocol), on_grid_of(Volume(flip, fine, "b1"), protocol, resolve=False)


def errors(scan: SimulatedScan, maps: Maps) -> list[tuple[float, float]]:
    """Return ratio of the means and NRMSE of each sum."""
    truth = scan.truth
    solid = truth.fractions_resolved[0] + truth.fractions_resolved[1]
    found = []
    for name in NAMES:
        value = maps.maps[f"{name}_mM"].value
        where = truth.brain_mask & (solid > LEAST_SOLID) & (truth.lesion_total < 0.02) & np.isfinite(value)
        true = truth.content(name)[where] / solid[where]
        spread = np.linalg.norm(value[where] - true) / np.linalg.norm(true)
        found.append((float(value[where].mean() / true.mean()), float(spread)))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi32")
    parser.add_argument("--brains", type=int, default=2)
    parser.add_argument("--first-brain", type=int, default=0)
    parser.add_argument("--recipe", default="subspace")
    parser.add_argument("--snr", type=float, default=20.0)
    given = parser.parse_args()
    results: dict[str, list[list[tuple[float, float]]]] = {}
    for seed in range(given.first_brain, given.first_brain + given.brains):
        scan = simulate(given.preset, seed=seed, snr=given.snr)
        maps = measured(scan, given.recipe)
        water = maps.maps["water"].value
        tissue, b1 = given_beside(scan, seed)
        parts = scan.truth.fractions
        for name, options in {
            "fractions and B1": {"tissue": tissue, "b1": b1},
            "fractions": {"tissue": tissue},
            "fractions as plain means": {"tissue": Tissue(parts[0], parts[1], parts[2], known=True), "b1": b1},
            "nothing": {"tissue": ASSUMED},
        }.items():
            results.setdefault(name, []).append(errors(scan, with_concentrations(maps, water, **options)))
    rows = []
    for name, brains in results.items():
        cells = []
        for column in range(len(NAMES)):
            ratios = ", ".join(f"{brain[column][0]:.2f}" for brain in brains)
            cells.append(f"{ratios} / {np.mean([brain[column][1] for brain in brains]):.2f}")
        rows.append([name, *cells])
    print(describe_machine())
    print(
        f"{given.preset}, SNR {given.snr:g}, {given.recipe}, brains {given.first_brain} and on: ratio of means / NRMSE"
    )
    print(table(["given", *NAMES], rows))


if __name__ == "__main__":
    main()
