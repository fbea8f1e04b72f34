"""The gate of a learned manifold: what it finds, what hides inside the model, and what it does for lesions in a scan.

    python benchmarks/gate.py [--quick] [--picture docs/pictures/gate_roc.png]

A manifold is trained for csi48 with the ensemble of the shipped learning protocol `1h_fid_3t`, and its gate calibrated.
FIDs of the ensemble with noise are inside; the others are fresh FIDs of the ensemble with something added or changed:

* a singlet anywhere between 0.5 and 4.2 ppm (T2* 40 to 120 ms). Its matched-filter SNR is ||line|| over the SD of the
  real part of a sample. "outside of all rows": SNR of what no FID of the subspace, nuisance rows included, can explain
  of it; "outside of the manifold": of what is left by the nearest FID of the manifold, whatever its latent, scale and
  phase, and the nuisance rows; "whole": of the line itself, most of which may lie inside the model;
* lines wider than any of the ensemble, to twice as wide, and of these FIDs those whose part outside of the manifold has
  a matched-filter SNR of 5 or more; a field that is off by 20 Hz; half the lowest SNR of training;
* lactate x10 and choline x3 in normal brain: amounts that the ensemble has, so they should not be found;
* water and lipids in the nuisance rows, a hundred times NAA: they must not be found.

AUC: area under the ROC curve, of 1 minus ties. Found: at the working point, where the score is above -log10 0.05.

In scans: brains never used in training, water and lipids removed, least-squares images; lesions of `phantom.unseen` put
in; contrast recovery of FIDs (with less without) of the projector voxel by voxel, of the gate with the rows or the
Fourier image where it says outside, and of these alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from common import calibrate, describe_machine, prepare, table

from mrsi_gadgets.data import KtData, Protocol
from mrsi_gadgets.gadgets.remove_nuisance import RemoveNuisance
from mrsi_gadgets.io.learning import find_learning_protocol, read_learning_protocol
from mrsi_gadgets.models.gate import FALSE_ALARMS, judge, pooled
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.training import Trained, TrainingSettings, train
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.phantom.unseen import InjectedLesion, change, inject, kinds, place, recoveries
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr, sample
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier

SNRS = (10.0, 20.0, 40.0)
LEVELS = (5.0, 7.0, 10.0)
FEWEST = 20
ENSEMBLE = read_learning_protocol(find_learning_protocol("1h_fid_3t")).ensemble
SETTINGS = TrainingSettings(samples=12000, autoencoder_steps=400, projector_steps=1200, latent_sizes=(32,))
PPM, T2_STAR_S = (0.5, 4.2), (0.04, 0.12)
DRAWN = {"rows": "outside of all rows", "manifold": "outside of the manifold", "whole": "whole"}


class Bench:
    """A trained manifold, its gate, and FIDs to try it on."""

    def __init__(self, trained: Trained, n: int) -> None:
        self.manifold, self.gate, self.subspace = trained.manifold, trained.gate, trained.subspace
        self.rows = trained.subspace.basis
        self.protocol: Protocol = trained.manifold.protocol
        self.n, self.rng = n, np.random.default_rng(11)
        self.fids = sample(self.protocol, n, 501, ensemble=ENSEMBLE).metabolites
        ppm, t2_star = self.rng.uniform(*PPM, (n, 1)), self.rng.uniform(*T2_STAR_S, (n, 1))
        self.lines = np.exp((2j * np.pi * self.protocol.hz(ppm) - 1 / t2_star) * self.protocol.times_s)
        self.inside = {
            snr: self.score(sample(self.protocol, 2 * n, 502, ensemble=ENSEMBLE).metabolites, snr) for snr in SNRS
        }

    def score(self, fids: np.ndarray, snr: float) -> np.ndarray:
        """Scores of FIDs with fresh noise."""
        sd = noise_sd_at_snr(self.protocol, snr)
        noise = self.rng.standard_normal(fids.shape) + 1j * self.rng.standard_normal(fids.shape)
        return judge(self.gate, self.manifold, (fids + sd * noise).astype(np.complex64), sd)[0]

    def unit(self, fids: np.ndarray, sd: float) -> float:
        """Factor from the ensemble's unit to that of measured FIDs of the brain."""
        return self.subspace.metabolites_only().scale(fids, sd)

    def outside_rows(self) -> np.ndarray:
        """Norm of what no row holds of each line of amplitude 1."""
        return np.linalg.norm(self.lines - (self.lines @ self.rows.conj().T) @ self.rows, axis=1)

    def left(self, fids: np.ndarray) -> np.ndarray:
        """Norm of what the nearest FID of the manifold and the nuisance rows leave of each FID."""
        beyond = fids - (fids @ self.rows.conj().T) @ self.rows
        inside = off_manifold(self.manifold, self.manifold.coefficients(fids))
        return np.sqrt(np.sum(np.abs(inside) ** 2, axis=1) + np.sum(np.abs(beyond) ** 2, axis=1))

    def with_lines(self, level: float, snr: float, of: str) -> np.ndarray:
        """FIDs with a line whose part `of` what the model cannot explain has the SNR `level`."""
        sd = noise_sd_at_snr(self.protocol, snr)
        if of == "whole":
            amplitude = level * sd / np.linalg.norm(self.lines, axis=1)
        elif of == "rows":
            amplitude = level * sd / self.outside_rows()
        else:
            return self._outside_manifold(level * sd)
        return self.fids + amplitude[:, None] * self.lines

    def _outside_manifold(self, norm: float) -> np.ndarray:
        """FIDs of the manifold with lines whose distance from the manifold has this norm."""
        manifold = self.manifold
        clean = manifold.coefficients(self.fids)
        clean = clean - off_manifold(manifold, clean)
        lines, beyond = manifold.coefficients(self.lines), self.outside_rows()
        amplitude = 1.3 * norm / np.linalg.norm(self.lines, axis=1)
        for _ in range(8):
            rest = off_manifold(manifold, clean + amplitude[:, None] * lines)
            left = np.sqrt(np.sum(np.abs(rest) ** 2, axis=1) + (amplitude * beyond) ** 2)
            amplitude = amplitude * np.clip(norm / left, 0.5, 2) ** 0.8
        return manifold.synthesise(clean.astype(np.complex64)) + amplitude[:, None] * self.lines


def off_manifold(manifold: Manifold, coefficients: np.ndarray, steps: int = 200) -> np.ndarray:
    """Return what the nearest FID of the manifold leaves of coefficients (n, rank): over all latents and scales."""
    y = torch.from_numpy(coefficients.astype(np.complex64))
    mean = torch.from_numpy(manifold.mean)
    networks = manifold.networks(coefficients.astype(np.complex64))
    scale = ((y @ mean.conj()) / mean.abs().square().sum())[:, None]
    latent = networks.encode(y / scale - mean).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([latent], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, left = torch.full((len(y),), torch.inf), y
    for _ in range(steps):
        optimiser.zero_grad()
        fid = networks.decode(latent) + mean
        own = (fid.conj() * y).sum(-1, keepdim=True) / fid.abs().square().sum(-1, keepdim=True)
        rest = y - own * fid
        power = rest.abs().square().sum(-1)
        (power.sum() / y.abs().square().sum(-1).mean()).backward()
        optimiser.step()
        schedule.step()
        nearer = power.detach() < best
        best, left = torch.where(nearer, power.detach(), best), torch.where(nearer[:, None], rest.detach(), left)
    return left.numpy()


def area(inside: np.ndarray, outside: np.ndarray) -> float:
    """Area under the ROC curve."""
    place_of = [np.searchsorted(np.sort(inside), outside, side=side) for side in ("left", "right")]
    return float(np.mean(place_of)) / len(inside)


def cell(bench: Bench, snr: float, scores: np.ndarray) -> str:
    """Area and share found, and how many FIDs they are of where not all."""
    if len(scores) < FEWEST:
        return f"only {len(scores)} FIDs"
    share = "" if len(scores) == bench.n else f" ({len(scores) / bench.n:.0%})"
    return f"{area(bench.inside[snr], scores):.3f} / {np.mean(bench.gate.outside(scores)):.2f}{share}"


def cases(bench: Bench, snr: float) -> dict[str, np.ndarray]:
    """Name -> scores at one SNR."""
    protocol, times = bench.protocol, bench.protocol.times_s
    found = {
        f"singlet, {name} {level:g}": bench.score(bench.with_lines(level, snr, of), snr)
        for of, name in DRAWN.items()
        for level in LEVELS
    }
    for name, low in (("lines wider, to twice", 0.5), ("lines twice as wide", 1.0)):
        gauss, lorentz = 2 * ENSEMBLE.broadening_ppm[1], 2 * ENSEMBLE.lorentzian_hz[1]
        wider = replace(ENSEMBLE, broadening_ppm=(low * gauss, gauss), lorentzian_hz=(low * lorentz, lorentz))
        wide = sample(protocol, bench.n, 503, ensemble=wider).metabolites
        found[name] = bench.score(wide, snr)
        clear = bench.left(wide) > LEVELS[0] * noise_sd_at_snr(protocol, snr)
        found[f"{name}, outside 5 or more"] = found[name][clear]
    found["field off by 20 Hz"] = bench.score(bench.fids * np.exp(2j * np.pi * 20 * times), snr)
    found["SNR half that of training"] = bench.score(bench.fids, bench.manifold.snr_range[0] / 2)
    for kind in kinds(protocol)[:2]:
        found[kind] = bench.score(bench.fids + change(protocol, kind), snr)
    rows = bench.gate.nuisance
    strong = bench.rng.standard_normal((bench.n, len(rows))) @ rows * (100 * 27.0)
    found["water, lipids in their rows"] = bench.score(bench.fids + strong, snr)
    return found


def scan_data(preset: str, snr: float, brain: int) -> tuple[Any, KtData, Any]:
    """Return a simulated scan, its metabolite data without water and lipids, and its context."""
    scan = simulate(preset, seed=brain, noise_seed=200 + brain, snr=snr)
    kt, context = calibrate(scan, compress=True)
    gadget = RemoveNuisance(method="union_of_subspaces", always=True)
    prepare(gadget, context)
    (kt,) = gadget.process(iter([kt]), context)
    return scan, kt, context


def gradient_of(b0_hz: np.ndarray) -> np.ndarray:
    """How much the field changes from voxel to voxel [Hz]."""
    axes = [axis for axis in range(3) if b0_hz.shape[axis] > 1]
    field = np.where(b0_hz != 0, b0_hz, np.nan)
    return np.nan_to_num(np.sqrt(sum(np.gradient(field, axis=axis) ** 2 for axis in axes)), nan=np.inf)


def in_scan(bench: Bench, preset: str, snr: float, brain: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return false alarms and detections in a scan, and contrast recovery: way -> lesion -> recovery."""
    scan, kt, context = scan_data(preset, snr, brain)
    coil_maps, b0_hz, inside = context.calibration.encoding()
    truth, manifold = scan.truth, bench.manifold
    mask = truth.brain_mask & inside
    names = kinds(kt.protocol)
    fractions = place(mask, kt.protocol.geometry, len(names), radius_mm=14.0, seed=brain)
    lesions = [InjectedLesion(kind, fraction) for kind, fraction in zip(names, fractions, strict=True)]

    def ways(data: KtData) -> tuple[dict[str, np.ndarray], np.ndarray]:
        image = reconstruct_fourier(data, coil_maps, b0_hz, inside)
        fids = image.fids()
        score = np.zeros(mask.shape, np.float32)
        projected = np.zeros_like(fids)
        score[mask], projected[mask] = judge(bench.gate, manifold, fids[mask], image.noise_sd[mask])
        rows = manifold.synthesise(manifold.coefficients(fids)).astype(fids.dtype)
        outside = bench.gate.outside(score)[..., None]
        near = bench.gate.outside(pooled(score, mask))[..., None]
        made = {
            "projector alone": projected, "gate, else rows": np.where(outside, rows, projected),
            "gate, else Fourier": np.where(outside, fids, projected),
            "gate with neighbours, else Fourier": np.where(near, fids, projected), "rows alone": rows,
        }  # fmt: skip
        return made, score

    plain, score = ways(kt)
    image = reconstruct_fourier(kt, coil_maps, b0_hz, inside)
    scale = bench.unit(image.fids()[mask], float(np.median(image.noise_sd[mask])))
    filled, score_with = ways(inject(kt, coil_maps, b0_hz, lesions, scale))
    free = mask & (truth.lesion_total < 0.02)
    even = free & (gradient_of(truth.b0_hz) < 4)
    facts = {
        "false alarms": np.mean(bench.gate.outside(score)[free]),
        "where the field is even": np.mean(bench.gate.outside(score)[even]),
        "with neighbours": np.mean(bench.gate.outside(pooled(score, mask))[free]),
        "unseen lesion": np.mean(bench.gate.outside(score)[mask & (truth.lesions["unseen"] > 0.7)]),
    }
    for lesion in lesions:
        facts[f"found: {lesion.kind}"] = np.mean(bench.gate.outside(score_with)[mask & (lesion.fraction > 0.7)])
    found = {
        way: recoveries(filled[way], plain[way], lesions, mask, kt.protocol, scale) for way in plain
    }  # fmt: skip
    return {name: float(value) for name, value in facts.items()}, found


def picture(path: Path, bench: Bench, scores: dict[float, dict[str, np.ndarray]]) -> None:
    """ROC curves, and how much of a line the rows leave outside."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = {
        f"singlet, {DRAWN['rows']} 5": "tab:blue", f"singlet, {DRAWN['manifold']} 5": "tab:red",
        f"singlet, {DRAWN['whole']} 5": "tab:orange", "lines twice as wide": "tab:green",
        "field off by 20 Hz": "black",
    }  # fmt: skip
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.1), layout="constrained")
    share = np.linspace(0, 1, 400)
    for axis, snr in zip(axes, SNRS, strict=False):
        for name, colour in shown.items():
            limits = np.quantile(bench.inside[snr], 1 - share)
            found = np.mean(scores[snr][name][:, None] > limits, axis=0)
            label = f"{name}: {area(bench.inside[snr], scores[snr][name]):.3f}"
            axis.plot(share, found, color=colour, label=label)
        axis.axvline(FALSE_ALARMS, color="0.6", linewidth=0.8, linestyle="--")
        axis.set(title=f"SNR {snr:g}", xlabel="false alarms", ylabel="found", xlim=(-0.01, 0.5), ylim=(0, 1.02))
        axis.legend(loc="lower right", fontsize=7, title="area under the curve", title_fontsize=7)
    protocol, ppm = bench.protocol, np.linspace(0.3, 4.4, 300)
    for t2_star, style in ((0.04, ":"), (0.08, "-"), (0.12, "--")):
        lines = np.exp((2j * np.pi * protocol.hz(ppm)[:, None] - 1 / t2_star) * protocol.times_s)
        rest = lines - (lines @ bench.rows.conj().T) @ bench.rows
        outside = np.sum(np.abs(rest) ** 2, axis=1) / np.sum(np.abs(lines) ** 2, axis=1)
        axes[3].plot(ppm, outside, style, color="tab:blue", label=f"T2* {t2_star * 1e3:.0f} ms")
    axes[3].set(
        title="what the rows leave of a line", xlabel="chemical shift [ppm]", ylabel="share of energy outside",
        xlim=(4.4, 0.3), ylim=(0, 0.8),
    )  # fmt: skip
    axes[3].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer FIDs, one scan")
    parser.add_argument("--part", choices=("fids", "scans"), help="only FIDs of the ensemble, or only scans")
    parser.add_argument("--picture", type=Path, help="where to write the ROC curves")
    given = parser.parse_args()
    started = time.perf_counter()
    trained = train(PRESETS["csi48"].protocol, ensemble=ENSEMBLE, settings=SETTINGS, seed=1)
    print(f"trained in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    gate = trained.gate
    bench = Bench(trained, 400 if given.quick else 800)
    print(describe_machine())
    size = sum(values.nbytes for values in gate.arrays().values())
    print(f"rank {trained.manifold.rank} and {len(gate.nuisance)} nuisance rows; gate {size / 1e6:.2f} MB")
    if given.part != "scans":
        on_fids(bench, given.picture)
    if given.part != "fids":
        on_scans(bench, quick=given.quick)
    return 0


def on_fids(bench: Bench, path: Path | None) -> None:
    """Print what is found among FIDs of the ensemble, and draw it."""
    scores = {}
    for snr in SNRS:
        scores[snr] = cases(bench, snr)
        print(f"SNR {snr:g} done", file=sys.stderr, flush=True)
    if path:
        picture(path, bench, scores)
    rows = [["false alarms", *(f"{np.mean(bench.gate.outside(bench.inside[snr])):.3f}" for snr in SNRS)]]
    rows += [[name, *(cell(bench, snr, scores[snr][name]) for snr in SNRS)] for name in scores[SNRS[0]]]
    print(table(["AUC / found", *(f"SNR {snr:g}" for snr in SNRS)], rows))
    share = (bench.outside_rows() / np.linalg.norm(bench.lines, axis=1)) ** 2
    print(
        "share of a singlet's energy outside of all rows: "
        + ", ".join(f"{q}th percentile {np.percentile(share, q):.3f}" for q in (10, 50, 90))
        + f"; below 0.02 (hidden) for {np.mean(share < 0.02):.0%} of places and widths"
    )


def on_scans(bench: Bench, *, quick: bool) -> None:
    """Print false alarms, detection and contrast recovery in simulated scans."""
    scans = [("csi32", 20.0)] if quick else [("csi32", 20.0), ("csi48", 20.0), ("csi32", 40.0)]
    for preset, snr in scans:
        found = [in_scan(bench, preset, snr, brain) for brain in range(20, 21 if quick else 23)]
        print(f"\n{preset}, SNR {snr:g}, {len(found)} brains, medians")
        print(", ".join(f"{k} {statistics.median(f[k] for f, _ in found):.2f}" for k in found[0][0]))
        lines = [
            [way, *(f"{statistics.median(r[way][kind] for _, r in found):.2f}" for kind in by_kind)]
            for way, by_kind in found[0][1].items()
        ]
        print(table(["contrast recovery", *kinds(bench.protocol)], lines), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
