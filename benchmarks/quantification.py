"""Quantification by `varpro`: maps against the bound, another simulation's spectra, and time.

    python benchmarks/quantification.py [maps|independent|time ...] [--preset csi48] [--seeds 3 4 5] [--snr 30 15 inf]

maps         the whole chain on brains that no constant was chosen on (seeds from 3), with residual water and lipids:
             errors at common resolution beside the voxel-wise Cramer-Rao bound of the same brains (crlb.py), without
             noise too; GABA by bias and by the ratio of grey to white matter; contrast of the lesions.
independent  noise-free voxels made of spin signals that were simulated another way (independent_spins.py), sampled
             finer, written as an LCModel basis file and imported; fitted with our own basis.
time         milliseconds per voxel of 2,000 voxels, 512 points, 15 metabolites and macromolecules, on two cores.

Wanted: NRMSE of tNAA, tCr, tCho, Ins and Glx at most 0.7 of the bound's, or of the error without noise where that is
larger, with a bias of at most 3 %; NRMSE 0.06 / 0.07 and detail error 0.5 / 0.6 at SNR 30 / 15; lesions 0.8 to 1.2;
bias of the imported spectra at most 2 %; 1 ms per voxel.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import run_chain
from common import NAMES, describe_machine, learned_models, table
from crlb import bounds
from independent_spins import molecule_fid

from mrsi_gadgets.data import Geometry, Protocol, SpectralImage
from mrsi_gadgets.io.basis_import import import_basis
from mrsi_gadgets.phantom.scoring import Scores, common_resolution, score
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.physics.basis import BasisSet, metabolite_basis
from mrsi_gadgets.physics.macromolecules import macromolecule_basis
from mrsi_gadgets.physics.nucleus import PROTON
from mrsi_gadgets.quantification.cnn import fit_cnn
from mrsi_gadgets.quantification.freedom import FitOptions
from mrsi_gadgets.quantification.preparation import brain_defaults, prepare_varpro
from mrsi_gadgets.quantification.spectrum_input import new_networks
from mrsi_gadgets.quantification.union_of_subspaces import fit_union_of_subspaces, prepare_union_of_subspaces
from mrsi_gadgets.quantification.varpro import fit_varpro

SHARE, BIAS, NRMSE, DETAIL = 0.7, 0.03, {30.0: 0.06, 15.0: 0.07}, {30.0: 0.5, 15.0: 0.6}
FIFTEEN = ("NAA", "NAAG", "Cr", "PCr", "GPC", "PCh", "PE", "Ins", "Glu", "Gln", "GABA", "GSH", "Lac", "Tau", "Asp")
SUMS = {"tNAA": ("NAA", "NAAG"), "tCr": ("Cr", "PCr"), "tCho": ("GPC", "PCh"), "Ins": ("Ins",), "Glx": ("Glu", "Gln")}


def maps_of_brains(
    preset: str, seeds: Sequence[int], snrs: Sequence[float], methods: Sequence[str], models: Path | None
) -> None:
    """Print errors, bound, verdict, GABA and lesions."""
    runs: dict[tuple[float, str], list[tuple[Scores, tuple[float, float]]]] = {}
    bound: dict[float, list[dict[str, dict[str, float]]]] = {}
    for seed in seeds:
        for snr in snrs:
            scan = simulate(preset, snr=snr, seed=seed, noise_seed=100 + seed)
            for method in methods:
                maps = run_chain(scan, method, models)
                values = {n: maps.maps[n].value for n in (*NAMES, "GABA")}
                found = score(values, scan.truth)
                ratio = tissue_ratio(values["GABA"] / found.shading, scan.truth)
                runs.setdefault((snr, method), []).append((found, ratio))
            if math.isfinite(snr):
                bound.setdefault(snr, []).append(bounds(scan.truth)["bound, all free"])
            print(f"  seed {seed}, SNR {snr:g} done", file=sys.stderr)
    floor = {m: [s for s, _ in runs[math.inf, m]] for m in methods} if math.inf in snrs else {}
    rows, lesions = [], []
    for (snr, method), found in runs.items():
        scores = [s for s, _ in found]
        cells = [
            "{:.3f} / {:.2f} ({:+.3f})".format(*(_median(scores, n, what) for what in ("nrmse", "detail", "bias")))
            for n in NAMES
        ]
        gaba = f"{_median(scores, 'GABA', 'bias'):+.2f}, {statistics.median(r for _, (r, _) in found):.2f} of "
        gaba += f"{statistics.median(r for _, (_, r) in found):.2f}"
        rows.append([f"{snr:g}", method, *cells, gaba])
        if snr in bound:
            said = [verdict(n, snr, scores, bound[snr], floor.get(method, [])) for n in NAMES]
            rows.append(["", "  wanted: reached?", *said, ""])
        for lesion in scores[0].lesions:
            shown = []
            for n in NAMES:
                values = [s.lesions[lesion][n].recovery for s in scores if s.lesions[lesion][n].changed]
                finite = [v for v in values if math.isfinite(v)]
                shown.append(f"{statistics.median(finite):.2f}" if finite else "-")
            if any(cell != "-" for cell in shown):
                lesions.append([f"{snr:g}", method, lesion, *shown])
    for snr, one in bound.items():
        cells = [f"{_bound(one, n, 'nrmse'):.3f} / {_bound(one, n, 'detail'):.2f}" for n in NAMES]
        rows.append([f"{snr:g}", "bound, voxel by voxel", *cells, ""])
    print(
        f"\n{preset}, seeds {' '.join(map(str, seeds))}: NRMSE / detail error (bias); GABA: bias, GM/WM and the truth's"
    )
    print(table(["SNR", "method", *NAMES, "GABA"], rows))
    print("\ncontrast of lesions in the molecules that they change, estimate over truth")
    print(table(["SNR", "method", "lesion", *NAMES], lesions))


def tissue_ratio(values: np.ndarray, truth: Truth) -> tuple[float, float]:
    """Return the ratio of a map's content of grey to that of white matter, by regression, and the truth's."""
    mask = truth.brain_mask
    tissues = np.stack([common_resolution(f, mask)[mask] for f in truth.fractions_resolved], axis=1)
    both = [np.nan_to_num(values), truth.content("GABA")]
    grey_white = [np.linalg.lstsq(tissues, common_resolution(v, mask)[mask], rcond=None)[0][:2] for v in both]
    return tuple(float(g / w) for g, w in grey_white)  # type: ignore[return-value]


def _median(scores: Sequence[Scores], name: str, what: str) -> float:
    return statistics.median(getattr(s.maps[name], what) for s in scores)


def _bound(found: Sequence[dict[str, dict[str, float]]], name: str, what: str) -> float:
    return statistics.median(one[name][what] for one in found)


def verdict(
    name: str,
    snr: float,
    scores: Sequence[Scores],
    bound: Sequence[dict[str, dict[str, float]]],
    floor: Sequence[Scores],
) -> str:
    """Say what is reached of what is wanted of a map."""
    limit = SHARE * _bound(bound, name, "nrmse")
    which = "0.7 bound"
    if floor and _median(floor, name, "nrmse") > limit:
        limit, which = _median(floor, name, "nrmse"), "floor"
    reached = {
        f"{limit:.3f} ({which})": _median(scores, name, "nrmse") <= limit,
        "bias": abs(_median(scores, name, "bias")) <= BIAS,
        "absolute": _median(scores, name, "nrmse") <= NRMSE.get(snr, math.inf)
        and _median(scores, name, "detail") <= DETAIL.get(snr, math.inf),
    }
    return ", ".join(f"{what} {'yes' if ok else 'NO'}" for what, ok in reached.items())


def protocol_of(matrix: tuple[int, int, int], n_times: int) -> Protocol:
    """Return a 3 T protocol of FIDs."""
    return Protocol(
        nucleus="1H", transmit_frequency_hz=123.25e6, reference_ppm=4.65, dwell_s=1 / 1500, n_times=n_times,
        acquisition_delay_s=1.3e-3, geometry=Geometry(matrix, tuple(8.0 * n for n in matrix)),  # type: ignore[arg-type]
        encoding="csi", field_strength_t=2.8948,
    )  # fmt: skip


def voxels_of(
    protocol: Protocol, basis: BasisSet, rng: np.random.Generator, noise: float = 0.0
) -> tuple[SpectralImage, dict[str, np.ndarray]]:
    """Return voxels of random amounts and lineshapes, with macromolecules, and the amounts."""
    t, matrix = protocol.times_s, protocol.geometry.matrix
    n = int(np.prod(matrix))
    macromolecules = macromolecule_basis(protocol)
    rates, typical = brain_defaults(protocol, [*basis.names, *macromolecules.names])
    amounts = {name: typical[name] * np.exp(0.3 * rng.standard_normal(n)) for name in basis.names}
    fids = sum(
        amounts[name][:, None] * fid * np.exp(-t * rates[name])
        for name, fid in zip(basis.names, basis.fids, strict=True)
    )
    profile = np.array([typical[name] for name in macromolecules.names]) @ macromolecules.fids
    fids = fids + np.exp(0.2 * rng.standard_normal((n, 1))) * profile
    phase, shift, lorentz = rng.uniform(-0.5, 0.5, (n, 1)), rng.uniform(-5, 5, (n, 1)), rng.uniform(0, 12, (n, 1))
    gauss = (np.pi * rng.uniform(0, 8, (n, 1))) ** 2 / (4 * np.log(2))
    fids = fids * np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    fids = fids + noise * (rng.standard_normal((*fids.shape, 2)) @ np.array([1, 1j]))
    image = SpectralImage(
        fids.reshape(*matrix, -1).astype(np.complex64), None, protocol, np.ones(matrix, bool),
        np.zeros(matrix, np.float32), np.full(matrix, noise, np.float32),
    )  # fmt: skip
    return image, amounts


def independent() -> None:
    """Print bias and scatter of spectra that another simulation made."""
    sys.path.append(str(Path(__file__).parent.parent / "tests" / "io"))
    from basis_writers import write_lcmodel  # the format as LCModel writes it

    protocol, names = protocol_of((10, 20, 1), 512), tuple(PROTON.usual)
    dwell, times, mhz = 1 / 4000, 4096, 123.25
    decay = np.exp(-np.pi * 1.0 * dwell * np.arange(times))
    fids = np.array([molecule_fid(name, times, dwell, mhz, 4.65) * decay for name in names])
    with tempfile.TemporaryDirectory() as folder:
        file = write_lcmodel(Path(folder) / "independent.basis", names, 37.0 * fids, dwell, mhz)
        basis = import_basis(file, protocol)
    ours = metabolite_basis(protocol, names)
    apart = np.linalg.norm(basis.fids - ours.fids, axis=1) / np.linalg.norm(ours.fids, axis=1)
    print(
        f"\nindependent simulation, {times} points of {1e3 * dwell:g} ms, through an LCModel file: {basis.source}; "
        f"signals differ from ours by {apart.max():.1e} ({names[int(np.argmax(apart))]}) at most"
    )
    image, amounts = voxels_of(protocol, basis, np.random.default_rng(0))
    maps = fit_varpro(image, prepare_varpro(protocol, ours, macromolecule_basis(protocol)), intravoxel=False)
    rows = []
    for group, members in SUMS.items():
        truth = np.sum([amounts[name] for name in members], axis=0)
        error = (maps.maps[group].value.ravel() - truth) / truth.mean()
        bias = float(error.mean())
        rows.append([group, f"{bias:+.4f}", f"{np.sqrt(np.mean(error**2)):.4f}", "yes" if abs(bias) <= 0.02 else "NO"])
    print(table(["map", "bias", "NRMSE", "bias at most 2 %"], rows))


def timing(repeats: int) -> None:
    """Print milliseconds per voxel of every method, field and lineshapes within voxels left out."""
    protocol = protocol_of((40, 50, 1), 512)
    basis, macromolecules = metabolite_basis(protocol, FIFTEEN), macromolecule_basis(protocol)
    image, _ = voxels_of(protocol, basis, np.random.default_rng(0), noise=12.0)
    even = np.ones((int(image.mask.sum()), 1), np.complex64)
    rows = []
    for label, options in {
        "varpro": FitOptions(),
        "varpro, free lineshape": FitOptions(lineshape="free"),
        "varpro, two groups": FitOptions(groups=(("Ins",), ("Glu", "Gln"))),
        "varpro, first-order phase": FitOptions(delay_ms=0.1),
        "varpro, window 0.5 to 4.2 ppm": FitOptions(window_ppm=(0.5, 4.2)),
    }.items():
        start = time.perf_counter()
        model = prepare_varpro(protocol, basis, macromolecules, options=options)
        prepared = time.perf_counter() - start
        taken = _fastest(partial(fit_varpro, image, model, intravoxel=False), image, repeats)
        rows.append([label, f"{taken:.2f}", f"{prepared:.1f}"])
    for spatial in ("auto", "none"):
        start = time.perf_counter()
        union = prepare_union_of_subspaces(protocol, basis, macromolecules, spatial=spatial)
        prepared = time.perf_counter() - start
        known = np.repeat(even, len(union.dictionary.expansion.node_times_s), axis=1)
        taken = _fastest(partial(fit_union_of_subspaces, image, union, lineshape=known), image, repeats)
        rows.append([f"union_of_subspaces, spatial prior {spatial}", f"{taken:.2f}", f"{prepared:.1f}"])
    model = prepare_varpro(protocol, basis, macromolecules)
    networks = new_networks(model, hidden=128, seed=0)
    known = np.repeat(even, len(model.dictionary.expansion.node_times_s), axis=1)
    for label, spectrum in (("cnn", False), ("cnn_spectrum", True)):
        fit = partial(fit_cnn, image, model, networks, spectrum=spectrum, lineshape=known)
        rows.append([f"{label} (untrained weights, no adaptation)", f"{_fastest(fit, image, repeats):.2f}", "-"])
    print(f"\n2,000 voxels, 512 points, 15 metabolites; load {os.getloadavg()[0]:.1f}; fastest of {repeats}")
    print(table(["method", "ms per voxel", "preparation [s]"], rows))


def _fastest(fit: Callable[[], object], image: SpectralImage, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        fit()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds) / image.mask.sum()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["maps", "independent", "time"])
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 4, 5])
    parser.add_argument("--snr", type=float, nargs="*", default=[30.0, 15.0, math.inf])
    parser.add_argument("--methods", nargs="*", default=["fourier", "subspace", "raiise"])
    parser.add_argument(
        "--models", type=Path, help="store with the trained manifold; None: trained beside the benchmarks"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one brain, no trained manifold")
    given: Any = parser.parse_args()
    if given.quick:
        given.seeds, given.methods = given.seeds[:1], [m for m in given.methods if m != "raiise"]
    print(describe_machine())
    if "maps" in given.parts:
        models = learned_models(given.models) if "raiise" in given.methods else None
        maps_of_brains(given.preset, given.seeds, given.snr, given.methods, models)
    if "independent" in given.parts:
        independent()
    if "time" in given.parts:
        timing(given.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
