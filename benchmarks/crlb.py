"""What the noise alone allows: the Cramer-Rao bound of the brain's maps, as NRMSE and detail error.

    python benchmarks/crlb.py [--preset csi48] [--snr 20] [--brains 5]

The bound of each voxel's amounts in the fit's own model (all molecules, one phase, shift and lineshape free), at
the true amounts, the true field within the voxel and the noise that the simulation adds, without any nuisance. The
voxels' errors are independent; drawn and brought to the common resolution they give the smallest errors of an
unbiased fit voxel by voxel. With the fit's priors of weak molecules and macromolecules it is a Bayesian bound. Only
a spatial prior goes below, at the price of bias, which accuracy.py shows beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import numpy as np
from common import NAMES, describe_machine, prepare, table

from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.phantom.scoring import common_resolution
from mrsi_gadgets.phantom.signals import Excitation
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.quantification.bounds import crlb
from mrsi_gadgets.quantification.intravoxel import intravoxel_lineshape

KINDS = {"bound, all free": False, "bound, priors of the fit": True}
_DRAWS = 40


def bounds(truth: Truth, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Kind of bound -> map -> errors as in `scoring.MapScore` (nrmse, detail, nrmse_unfiltered)."""
    context = Context(protocol=truth.protocol)
    gadget = Quantify()
    prepare(gadget, context)
    model = context.prepared[gadget].result()[0]
    times = model.dictionary.expansion.node_times_s
    given = intravoxel_lineshape(truth.b0_hz, truth.brain_mask, times)
    found = {}
    for kind, with_priors in KINDS.items():
        sd = crlb(
            model,
            amounts(truth, model),
            noise_of_amounts(truth)[truth.brain_mask],
            given=given,
            with_priors=with_priors,
        )
        found[kind] = {name: errors(sd[name], truth, name, np.random.default_rng(seed)) for name in NAMES}
    return found


def amounts(truth: Truth, model: Any) -> np.ndarray:
    """Return the true amplitudes (voxel, column) [mM] of the brain mask."""
    mask, design = truth.brain_mask, model.design
    peaks = [name for name in truth.names if name in brain_values.MACROMOLECULE_MM]
    usual = sum(float(np.mean(brain_values.MACROMOLECULE_MM[name])) for name in peaks)
    profile = np.sum([truth.content(name)[mask] for name in peaks], axis=0) / usual
    columns = [
        truth.content(name)[mask] if truth.knows(name) else (profile if name == "MM" else np.zeros(mask.sum()))
        for name in design.names
    ]
    return np.maximum(np.stack(columns, axis=1), 0.0)


def noise_of_amounts(truth: Truth) -> np.ndarray:
    """Return the SD (x, y, z) of the real part of a voxel's combined FID, in mM of a proton excited like NAA's."""
    preset = truth.preset
    maps = truth.coil_maps * preset.receiver_gain
    inverse = np.linalg.inv(truth.noise_covariance / 2.0)
    power = np.einsum("cxyz,cd,dxyz->xyz", maps.conj(), inverse, maps).real * np.prod(preset.matrix)
    flip = np.full(1, np.deg2rad(preset.flip_angle_deg))
    excitation = Excitation(flip, preset.repetition_time_s, preset.field_strength_t)
    naa = float(excitation.weight(brain_values.t1_s("NAA", "gm", preset.field_strength_t))[0])
    return np.asarray(1.0 / np.sqrt(power) / naa)


def errors(sd: np.ndarray, truth: Truth, name: str, rng: np.random.Generator) -> dict[str, float]:
    """Return the errors of a map whose voxels are off by independent Gaussian errors of the given SD."""
    mask = truth.brain_mask
    wanted = common_resolution(truth.content(name), mask)
    atlas = np.stack([common_resolution(f, mask)[mask] for f in truth.fractions_resolved], axis=1)
    rest = wanted[mask] - atlas @ np.linalg.lstsq(atlas, wanted[mask], rcond=None)[0]
    error, energy = np.zeros(mask.shape), []
    for _ in range(_DRAWS):
        error[mask] = sd * rng.standard_normal(len(sd))
        energy.append(float(np.sum(common_resolution(error, mask)[mask] ** 2)))
    size = float(np.sqrt(np.mean(energy)))
    return {
        "nrmse": size / float(np.linalg.norm(wanted[mask])),
        "detail": size / float(np.linalg.norm(rest)),
        "nrmse_unfiltered": float(np.linalg.norm(sd) / np.linalg.norm(truth.content(name, voxel_mean=True)[mask])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--snr", type=float, nargs="*", default=[20.0, 100.0])
    parser.add_argument("--brains", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one brain")
    given = parser.parse_args()
    brains = 1 if given.quick else given.brains
    print(describe_machine())
    print(f"{given.preset}, medians of {brains} brain(s): NRMSE / detail error at common resolution (NRMSE unfiltered)")
    rows = []
    for snr in given.snr:
        found = [bounds(simulate(given.preset, seed=seed, snr=snr).truth) for seed in range(brains)]
        for kind in KINDS:
            cells = []
            for name in NAMES:
                nrmse, detail, plain = (
                    statistics.median(one[kind][name][key] for one in found)
                    for key in ("nrmse", "detail", "nrmse_unfiltered")
                )
                cells.append(f"{nrmse:.3f} / {detail:.2f} ({plain:.3f})")
            rows.append([f"{snr:g}", kind, *cells])
    print(table(["SNR", "bound", *NAMES], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
