"""All reconstruction methods on one data set: the same preparation, the same fit, the same measures.

The recipe's stages before the reconstruction run once. Then each method makes its spectral image of the same samples,
and the recipe's fit its maps. What a method leaves of the data is looked at in every voxel; where the truth of a
simulated scan lies beside the file, errors are added; and on demand signals that no model was made for are put into
the samples, to see what becomes of their contrast.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from mrsi_gadgets import __version__
from mrsi_gadgets.arrays import describe_device, like, namespace, one_blas_thread, to_numpy
from mrsi_gadgets.data import KtData, Maps, Protocol, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError, MrsiError
from mrsi_gadgets.gadgets.context import Context, Report
from mrsi_gadgets.gadgets.prepared import Preparation, begin, make_ready
from mrsi_gadgets.gadgets.reconstruct import METHODS, TRAINED, Reconstruct
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output import panels
from mrsi_gadgets.output.comparison_table import Comparison, MethodResult
from mrsi_gadgets.output.results import Spectrum
from mrsi_gadgets.output.scaling import display_unit
from mrsi_gadgets.phantom.peak import FILTER_HZ, NAA_PPM, peak_heights, spectrum_noise
from mrsi_gadgets.phantom.scoring import Scores, score
from mrsi_gadgets.phantom.truth import Truth, truth_paths
from mrsi_gadgets.phantom.unseen import InjectedLesion, inject, kinds, place, recoveries
from mrsi_gadgets.physics.ensemble import sample
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.hamming import hamming_windowed
from mrsi_gadgets.reconstruction.residual import (
    energy_over_noise,
    in_band,
    line_in_noise,
    residual_image,
    strongest_line,
)
from mrsi_gadgets.replay import open_scan

HAMMING = "fourier_hamming"
ALL_METHODS = tuple(n for m in METHODS for n in ((m, HAMMING) if m == "fourier" else (m,)))
"""Every method of the gadget, and Fourier under a Hamming window over k-space."""
TITLES = {
    "fourier": "Fourier", HAMMING: "Fourier + Hamming", "low_rank": "low rank", "locally_low_rank": "locally low rank",
    "joint": "joint", "subspace": "learned subspace", "dae": "DAE", "raiise": "RAIISE",
}  # fmt: skip
_PEAK_VOXELS = 1500
"""Voxels, spread over the mask, whose peaks are fitted."""
_LESION_RADII_MM = (20.0, 15.0, 11.0)
"""The largest of which four have room is taken."""
_LEAST_RADIUS = 1.2
"""Of a lesion, in voxels: smaller ones fill none."""
_TYPICAL = 200
"""FIDs of the ensemble whose median peak is that of normal brain."""
_DRAWN_PEAKS = (0.6, 0.9)
"""Quantiles of the peaks in the slice between which the voxel has its own whose spectrum is drawn."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how."""

    scan: ScanOptions = field(default_factory=ScanOptions)
    """Recipe of the preparation and the fit, header, device, models, seed."""
    methods: tuple[str, ...] = ()
    """Of `ALL_METHODS`; empty: all that can be run."""
    maps: tuple[str, ...] = ()
    """Maps to draw; empty: those every report of the nucleus shows."""
    self_test: bool = False
    """Also put unseen signals into the data."""


def compare(
    source: str, options: CompareOptions, *, bar: bool = False, tell: Tell = lambda sentence: None
) -> Comparison:
    """Run all methods on the first frame of a raw file.

    Parameters
    ----------
    source : MRD .h5 file, or ``-`` for an MRD stream on stdin. The truth of a simulated scan is found beside it.
    options : what is compared.
    bar : show bars of readouts and steps on stderr.
    tell : takes a sentence for each method that is done.

    Raises
    ------
    ConfigError
        A method, map or recipe does not exist, or a method that was asked for lacks its model.
    DataError
        The file is damaged, or no method gave a result.
    """
    _check_names("method", options.methods, ALL_METHODS)
    truth = _truth_of(source)
    with one_blas_thread():
        scan = open_scan(source)
        prepared = begin(scan.header_xml, options.scan)
        context = prepared.context
        _check_names("map", options.maps, context.map_names or ())
        if truth is not None and truth.fids.shape[:3] != tuple(context.protocol.geometry.matrix):
            raise DataError(
                f"the truth beside {source} has {' x '.join(map(str, truth.fids.shape[:3]))} voxels, the scan has not: "
                "it is of another scan; simulate it again or move the truth away"
            )
        methods, left_out = _methods(options.methods, context)
        with _bar(scan.readouts, scan.length, " readouts", bar) as readouts:
            kt, others = prepared.run(readouts)
        run = _Run(source, prepared, kt, truth, options)
        if others:
            run.notes.append(f"the scan has {others + 1} frames or echo times; the first is compared")
        found: dict[str, MethodResult] = {}
        with _bar(methods, len(methods), " methods", bar) as names:
            for name in names:
                names.set_description(TITLES.get(name, name))
                try:
                    found[name] = run.one(name)
                except MrsiError as problem:
                    left_out[name] = str(problem)
                    continue
                numbers = found[name].numbers
                with names.external_write_mode(file=sys.stderr):
                    tell(
                        f"{found[name].title}: reconstructed in {numbers['reconstruct_s']:.2f} s, fitted in "
                        f"{numbers['fit_s']:.2f} s"
                    )
        if not found:
            raise DataError("no method gave a result: " + "; ".join(f"{n}: {why}" for n, why in left_out.items()))
        return run.comparison(found, left_out)


def _bar(items: Iterable[Any], total: int | None, unit: str, show: bool) -> Any:
    return tqdm(items, total=total, unit=unit, disable=not show, file=sys.stderr, leave=False)


def _methods(wanted: Sequence[str], context: Context) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the methods to run, and why others are left out.

    Raises
    ------
    ConfigError
        One that was asked for lacks its model.
    """
    methods = tuple(name for name in ALL_METHODS if not wanted or name in wanted)
    if not any(name in TRAINED for name in methods) or context.model() is not None:
        return methods, {}
    reason = f"{context.report.provenance['signal_model']['none']} (`mrsi learn` trains one)"
    asked = [name for name in methods if name in TRAINED and wanted]
    if asked:
        raise ConfigError(f"method {asked[0]} needs a trained model: {reason}")
    return tuple(n for n in methods if n not in TRAINED), {n: reason for n in methods if n in TRAINED}


def _check_names(what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError(f"there is no {what} '{name}'; choose from {', '.join(known)}")


def _truth_of(source: str) -> Truth | None:
    """Return the truth beside a simulated file, or None where there is no trace of one."""
    if source == "-" or not any(path.exists() for path in truth_paths(source)):
        return None
    return Truth.load(source)


def _without_nuisance(truth: Truth) -> bool:
    """Tell whether the data hold what the truth's FIDs hold: metabolites and macromolecules alone."""
    preset = truth.preset
    if preset.nucleus != "1H":
        return True
    return not (preset.residual_water or preset.lipid or preset.cycling or not preset.water_suppressed)


class _Run:
    """One comparison: what all methods share, and each of them in turn."""

    def __init__(
        self, source: str, prepared: Preparation, kt: KtData, truth: Truth | None, options: CompareOptions
    ) -> None:
        self.source, self.prepared, self.kt, self.truth, self.options = source, prepared, kt, truth, options
        self.context = prepared.context
        self.report = self.context.report
        coil_maps, b0_hz, mask = self.context.calibration.encoding()
        self.coil_maps = coil_maps
        self.protocol: Protocol = self.kt.protocol.of_echo(self.kt.echo)
        self.mask = mask if truth is None else mask & truth.brain_mask
        if not self.mask.any():
            raise DataError("the mask is empty, so there is nothing to compare; check the water reference")
        self.voxels = np.flatnonzero(self.mask.ravel())
        self.some = self.voxels[:: -(-len(self.voxels) // _PEAK_VOXELS)]
        least_squares = reconstruct_fourier(self.kt, coil_maps, b0_hz, mask)
        fids = to_numpy(self._rows(least_squares.fids(), self.some))
        self.heights = peak_heights(fids, self.protocol)
        self.voxel = self._typical_voxel()
        self.data_fid = to_numpy(least_squares.fids()[self.voxel])
        self.lesions: list[InjectedLesion] = []
        self.unit = 1.0
        self.with_lesions = self.kt
        self.units: dict[str, str] = {}
        self.b0_rms_hz = float("nan")
        self.notes = list(self.report.warnings)
        self.warned: dict[str, list[str]] = {}
        if options.self_test:
            self._put_lesions_in()

    def one(self, name: str) -> MethodResult:
        """Reconstruct, fit and measure one method."""
        context = self.context
        context.report = Report()
        gadget = self._gadget("fourier" if name == HAMMING else name)
        make_ready(gadget, context, calibrated=True)
        image, seconds = self._image(name, gadget, self.kt)
        begin = time.perf_counter()
        (maps,) = self.prepared.quantify.process(iter([image]), context)
        fitted = time.perf_counter() - begin
        title = TITLES.get(name, name)
        for warning in context.report.warnings:
            self.warned.setdefault(warning, []).append(title)
        numbers = {"reconstruct_s": seconds, "fit_s": fitted, "rank": float(image.provenance.get("rank", np.nan))}
        numbers |= self._measures(image)
        shown, errors = self._against_truth(image, maps)
        numbers |= errors
        if self.lesions:
            more, _ = self._image(name, gadget, self.with_lesions)
            kept = recoveries(more.fids(), image.fids(), self.lesions, self.mask, self.protocol, self.unit)
            numbers |= {f"self_test_{kind}": value for kind, value in kept.items()}
        return MethodResult(title, numbers, shown, to_numpy(image.fids()[self.voxel]), dict(image.provenance))

    def _gadget(self, method: str) -> Reconstruct:
        """Return the recipe's gadget where it is of this method, else one with the recipe's spatial prior, if any."""
        of_recipe = self.prepared.reconstruct
        if of_recipe.method == method:
            return of_recipe
        return Reconstruct(method=method, prior=of_recipe.prior if method in ("subspace", *TRAINED) else "edges")

    def _image(self, name: str, gadget: Reconstruct, kt: KtData) -> tuple[SpectralImage, float]:
        begin = time.perf_counter()
        taken = hamming_windowed(kt) if name == HAMMING else kt
        (image,) = gadget.process(iter([taken]), self.context)
        to_numpy(image.coefficients[:1, :1, :1, :1])  # a device has done its work when the result can be read
        return image, time.perf_counter() - begin

    def _rows(self, fids: Any, voxels: np.ndarray) -> Any:
        """Return FIDs of some voxels, (voxel, t)."""
        xp = namespace(fids)
        return xp.take(xp.reshape(fids, (-1, fids.shape[-1])), like(voxels, fids), axis=0)

    def _measures(self, image: SpectralImage) -> dict[str, float]:
        """Return peak SNR, what is left of the data, and the share of voxels outside of the model."""
        heights = peak_heights(to_numpy(self._rows(image.fids(), self.some)), self.protocol)
        left = residual_image(self.kt, self.coil_maps, image)
        residual = self._rows(left.coefficients, self.voxels)
        sd = like(left.noise_sd.ravel()[self.voxels], residual, "float32")
        outside = image.outside_model
        return {
            "peak_snr": float(np.median(heights / noise_at_peak(image).ravel()[self.some])),
            "residual_energy": float(np.median(to_numpy(energy_over_noise(residual, sd, self.protocol)))),
            "strongest_line": float(np.median(to_numpy(strongest_line(residual, sd, self.protocol)))),
            "outside_model": float("nan") if outside is None else float(np.mean(outside[self.mask])),
        }

    def _against_truth(self, image: SpectralImage, maps: Maps) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return the maps that are shown, on the truth's scale where it is known, and their errors."""
        values = {name: item.value for name, item in maps.maps.items()}
        self.units = self._units(maps)
        if self.truth is None:
            return {n: display_unit(own, maps.maps[own].unit)[0] * values[own] for n, own in self._names(maps)}, {}
        truth = self.truth
        fids = to_numpy(image.fids()) if _without_nuisance(truth) else None
        scores = score(
            {name: values[name] for name in values if truth.knows(name)}, truth,
            b0_hz=self.context.calibration.b0_hz, fids=fids, fids_b0_hz=image.b0_hz,
        )  # fmt: skip
        names = dict.fromkeys([*(name for name, _ in self._names(maps)), *truth.sums])
        even = {name: values[name] / scores.shading if truth.knows(name) else values[name] for name in names}
        self.b0_rms_hz = scores.b0_rms_hz
        return even, _numbers_of(scores, tuple(truth.sums))

    def _units(self, maps: Maps) -> dict[str, str]:
        """Return the unit of each map that is shown."""
        known = self.truth.knows if self.truth is not None else lambda name: False
        return {n: "mM" if known(n) else display_unit(own, maps.maps[own].unit)[1] for n, own in self._names(maps)}

    def _names(self, maps: Maps) -> list[tuple[str, str]]:
        """Return (name, map that is shown for it): amounts per water where there is water and no truth."""
        wanted = self.options.maps or tuple(nucleus_of(self.protocol).sums)
        missing = [name for name in wanted if name not in maps.maps]
        if missing:
            raise DataError(f"the fit gave no map of {', '.join(missing)}")
        per_water = self.truth is None and not self.options.maps
        return [(n, f"{n}_per_water" if per_water and f"{n}_per_water" in maps.maps else n) for n in wanted]

    def _typical_voxel(self) -> tuple[int, int, int]:
        """Return a voxel with a clear signal, deep in the slice that is drawn."""
        index = np.array(np.unravel_index(self.some, self.mask.shape))
        there = np.flatnonzero(index[2] == panels.busiest_slice(self.mask))
        there = there if len(there) else np.arange(len(self.some))
        order = there[np.argsort(self.heights[there], kind="stable")]
        low, high = (int(share * (len(order) - 1)) for share in _DRAWN_PEAKS)
        candidates = index[:, order[low : high + 1]]
        padded = np.pad(self.mask, ((1, 1), (1, 1), (0, 0)))
        depth = np.stack([ndimage.distance_transform_edt(padded[..., z]) for z in range(padded.shape[2])], axis=-1)
        x, y, z = candidates[:, int(np.argmax(depth[candidates[0] + 1, candidates[1] + 1, candidates[2]]))]
        return int(x), int(y), int(z)

    def _put_lesions_in(self) -> None:
        """Add signals that no model was made for to the samples, in units of this brain's peaks."""
        normal = peak_heights(sample(self.protocol, _TYPICAL, self.context.seed).metabolites, self.protocol)
        self.unit = float(np.median(self.heights) / np.median(normal))
        names, geometry = kinds(self.protocol), self.protocol.geometry
        least = _LEAST_RADIUS * max(geometry.voxel_mm[:2])
        for radius in [*(r for r in _LESION_RADII_MM if r > least), least]:
            try:
                places = place(self.mask, geometry, len(names), radius_mm=radius, seed=self.context.seed)
            except DataError:
                if radius == least:
                    raise
                continue
            break
        self.lesions = [InjectedLesion(name, fraction) for name, fraction in zip(names, places, strict=True)]
        _, b0_hz, _ = self.context.calibration.encoding()
        self.with_lesions = inject(self.kt, self.coil_maps, b0_hz, self.lesions, self.unit)
        self.notes.append(
            f"self-test: balls of {radius:.0f} mm radius with signals of {', '.join(names)} were added to the samples, "
            "after nuisance removal; contrast is that of results with and without them"
        )

    def comparison(self, found: dict[str, MethodResult], left_out: dict[str, str]) -> Comparison:
        """Put the results together."""
        protocol, truth = self.protocol, self.truth
        title = (
            f"{Path(self.source).name}: {protocol.nucleus} {protocol.encoding}, "
            f"{' x '.join(map(str, protocol.geometry.matrix))} voxels, {protocol.n_times} points"
        )
        shown: dict[str, np.ndarray] = {}
        reference = np.zeros_like(self.data_fid)
        if truth is not None:
            title += f"; numerical brain, seed {truth.card['seed']}, peak SNR {truth.preset.snr:g}"
            shown = {n: truth.content(n) for n in dict.fromkeys([*self.units, *truth.sums]) if truth.knows(n)}
            reference = _scaled_to(truth.fids[self.voxel], next(reversed(found.values())).fid, protocol)
            self.notes.append(f"B0 is right to {self.b0_rms_hz:.2f} Hz rms")
            if not _without_nuisance(truth):
                self.notes.append(
                    "FID errors are left out: these data hold water and lipids, the truth holds metabolites alone "
                    "(simulate with --residual-water 0 --lipid 0)"
                )
        warned = [f"{', '.join(titles)}: {warning}" for warning, titles in self.warned.items()]
        example = Spectrum(
            self.voxel, self.data_fid, reference, np.zeros_like(self.data_fid), protocol.dwell_s,
            protocol.transmit_frequency_hz, protocol.reference_ppm, protocol.acquisition_delay_s, protocol.nucleus,
        )  # fmt: skip
        return Comparison(
            title, found, left_out, (*self.notes, *warned), self.units,
            () if truth is None else tuple(truth.sums), self.mask, protocol.geometry.affine_ras(), example,
            line_in_noise(protocol), shown, self._provenance(),
        )  # fmt: skip

    def _provenance(self) -> dict[str, Any]:
        return {
            "version": __version__, "input": self.source, "seed": self.context.seed,
            "device": describe_device(self.context.device),
            "protocol_fingerprint": self.protocol.fingerprint(), "preparation": self.report.provenance,
        }  # fmt: skip


def noise_at_peak(image: SpectralImage) -> np.ndarray:
    """Return the SD of the real part of the spectrum's noise at the strongest line, (x, y, z), as the image states it.

    The spectrum is that of `phantom.peak` (3 s^-1 exponential filter, no zero filling).
    """
    protocol = image.protocol
    if image.basis is None:
        return spectrum_noise(image.noise_sd, protocol)
    ppm = NAA_PPM if protocol.nucleus == "1H" else nucleus_of(protocol).calibration_ppm
    times = protocol.dwell_s * np.arange(protocol.n_times)
    seen = np.abs(to_numpy(image.basis) @ np.exp((-2j * np.pi * float(protocol.hz(ppm)) - FILTER_HZ) * times))
    sd = image.noise_sd[..., None] if image.coefficient_sd is None else image.coefficient_sd
    return np.asarray(np.sqrt(np.sum((sd * seen) ** 2, axis=-1)))


def _scaled_to(fid: np.ndarray, other: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Return an FID with the complex factor that brings its metabolites nearest to those of another one."""
    mine, wanted = (np.fft.fft(x)[in_band(protocol, len(x))] for x in (fid, other))
    return np.asarray(fid * (np.vdot(mine, wanted) / max(np.vdot(mine, mine).real, 1e-30)))


def _numbers_of(scores: Scores, sums: Sequence[str]) -> dict[str, float]:
    """Return errors by the keys of the table."""
    numbers = {"fid_error": scores.fid_error, "unknown_recovery": scores.unknown_recovery}
    for name in sums:
        numbers |= {f"{name}_{key}": getattr(scores.maps[name], key) for key in ("nrmse", "detail", "bias")}
    for lesion, by_map in scores.lesions.items():
        numbers |= {
            f"lesion_{lesion}_{name}": by_map[name].recovery for name in sums
            if by_map[name].changed and np.isfinite(by_map[name].recovery)
        }  # fmt: skip
    return numbers
