"""A whole simulated scan: the numerical brain measured by a preset, with its truth."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from mrsi_gadgets import __version__
from mrsi_gadgets.data import Geometry, Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.mrd_file import write_scan
from mrsi_gadgets.phantom import signals
from mrsi_gadgets.phantom.anatomy import Anatomy, fine_positions, make_anatomy
from mrsi_gadgets.phantom.brain import Brain, make_brain, smooth_field
from mrsi_gadgets.phantom.encode import FineBox, encode, encode_maps, encode_points, image_from_kspace
from mrsi_gadgets.phantom.encodings import Csi, Readout
from mrsi_gadgets.phantom.field import b0_field
from mrsi_gadgets.phantom.lesions import place_lesions
from mrsi_gadgets.phantom.peak import naa_peak_snr
from mrsi_gadgets.phantom.presets import Preset, find_preset
from mrsi_gadgets.phantom.readouts import Pass, header_xml, stream
from mrsi_gadgets.phantom.receive import coil_sensitivities, correlated_noise, noise_correlation
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.physics.basis import BRAIN_METABOLITES
from mrsi_gadgets.physics.brain_values import t1_s
from mrsi_gadgets.stream.messages import Acquisition

_BRAIN_MASK = 0.95
_LESION_RADIUS_MM = 11.0
_NAA_PROTONS = 3.0
_SNR_OF_NOISE_SCAN = 1e6
_HARDWARE_SEED = 20260


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """Readouts and truth of one simulated measurement."""

    header_xml: str
    protocol: Protocol
    truth: Truth
    noise: np.ndarray
    """(coil, readout, sample) complex64."""
    groups: tuple[tuple[Pass, ...], ...]
    """Passes through k-space one after another; those of one group take turns shot by shot."""

    @property
    def water(self) -> np.ndarray:
        """Samples of the (first pass of the) water reference.

        complex64 (coil, kx, ky, kz, t) for csi; (coil, row, ky, kz, t) for EPSI, the rows being the samples of a
        forward lobe, then of one that runs back, in the order of acquisition; (coil, sample of any arm, kz, t) for
        rings and spirals. Zero where nothing was acquired.
        """
        return self.of(Role.WATER_REFERENCE).samples

    @property
    def metabolites(self) -> np.ndarray:
        """Samples of the (first pass of the) metabolite data, in the same form."""
        return self.of(Role.METABOLITE).samples

    def of(self, role: Role) -> Pass:
        """Return the first pass with a role.

        Raises
        ------
        DataError
            There is none.
        """
        found = [p for group in self.groups for p in group if p.role is role]
        if not found:
            raise DataError(f"this simulated scan has no {role.value} pass; choose a preset that has one")
        return found[0]

    @property
    def n_readouts(self) -> int:
        """How many readouts `acquisitions` yields."""
        return self.noise.shape[1] + sum(len(p.readouts) for group in self.groups for p in group)

    @property
    def acquisitions(self) -> Iterator[Acquisition]:
        """A fresh iterator over all readouts in the order a console sends them."""
        return stream(self.truth.preset, self.noise, self.groups)


@dataclass(frozen=True, eq=False)
class _Head:
    """One head in the scanner: everything that signal comes from, on the fine grid."""

    anatomy: Anatomy
    lesions: Mapping[str, np.ndarray]
    brain: Brain
    box: FineBox
    coil_maps: np.ndarray
    b0_hz: np.ndarray
    field: signals.FieldPhase
    excitation: signals.Excitation
    suppression: np.ndarray


def simulate(
    preset: str | Preset,
    *,
    seed: int = 0,
    noise_seed: int = 1,
    snr: float | None = None,
    nuisance: bool = True,
    b0: bool = True,
) -> SimulatedScan:
    """Simulate a scan of the numerical brain.

    Each sample is taken at its own place in k-space and its own time: B0, chemical shifts and decay go on within a
    readout.

    Parameters
    ----------
    preset : name of a preset, or a preset of one's own.
    seed : of the brain: pose, molecules, lesions, B0.
    noise_seed : of the noise alone; the same brain can be measured again.
    snr : median NAA peak SNR in the brain mask; None for the preset's. Infinity: no noise in the data, and a noise scan
        of a millionth of the NAA peak, so that it can still be whitened.
    nuisance : whether there are residual water and scalp lipids.
    b0 : whether frequencies are off at all: B0, drift, eddy-current phase and water's own offset.

    Raises
    ------
    ConfigError
        The preset is unknown or the SNR is not positive.
    MissingPackageError
        The package with the anatomy is not installed.
    DataError
        The slab of a preset of one's own holds too little brain.
    """
    chosen = _with_options(find_preset(preset) if isinstance(preset, str) else preset, snr, nuisance=nuisance, b0=b0)
    head = _make_head(chosen, np.random.SeedSequence(seed))
    protocol = chosen.protocol
    source = _Source(chosen, head)
    truth = _truth(chosen, head, source.metabolites(protocol), source.water(protocol)[0])
    covariance, naa_snr = _noise_level(truth, chosen)
    groups: list[tuple[Pass, ...]] = []
    for role, parts in ((Role.WATER_REFERENCE, source.water), (Role.METABOLITE, source.suppressed)):
        before = int(max((p.shots[-1] + 1 for group in groups for p in group), default=0))
        groups.append(_measure(chosen, head, parts, role=role, first_shot=before))
    rng = np.random.default_rng(noise_seed)
    noise = _noise_scan(covariance, chosen, rng)
    middle = float(groups[0][-1].shots[-1]) / 2.0
    for of in (p for group in reversed(groups) for p in group):
        shots = _shots(of, chosen)
        _imperfect(of, shots, chosen, middle)
        if np.isfinite(chosen.snr):
            _add_noise(of, shots, covariance, chosen, rng)
    card: dict[str, Any] = {
        "version": __version__, "seed": seed, "noise_seed": noise_seed, "snr": str(chosen.snr), "nuisance": nuisance,
        "b0": b0, "median_naa_snr": str(round(float(np.median(naa_snr[truth.brain_mask])), 3)), **source.strengths,
        **_times(chosen, groups),
    }  # fmt: skip
    truth = replace(truth, noise_covariance=covariance, naa_snr=naa_snr.astype(np.float32), card=card)
    return SimulatedScan(header_xml(chosen), protocol, truth, noise, tuple(groups))


def write_simulation(
    preset: str | Preset,
    path: str | os.PathLike[str],
    *,
    snr: float | None = None,
    seed: int = 0,
    noise_seed: int = 1,
    nuisance: bool = True,
    b0: bool = True,
    progress: bool = False,
) -> str:
    """Simulate a scan, write it to `path` (MRD .h5) with its truth beside it, and return what was written as text."""
    scan = simulate(preset, seed=seed, noise_seed=noise_seed, snr=snr, nuisance=nuisance, b0=b0)
    count = scan.n_readouts
    items = tqdm(scan.acquisitions, total=count, unit=" readouts", disable=not progress, file=sys.stderr, leave=False)
    write_scan(path, scan.header_xml, items)
    arrays, card = scan.truth.save(path)
    return (
        f"{count} readouts, {scan.noise.shape[0]} coils, median NAA peak SNR "
        f"{scan.truth.card['median_naa_snr']} -> {os.fspath(path)}\ntruth -> {arrays.name}, {card.name}"
    )


def _with_options(preset: Preset, snr: float | None, *, nuisance: bool, b0: bool) -> Preset:
    if snr is not None:
        preset = replace(preset, snr=float(snr))
    if not nuisance:
        preset = replace(preset, residual_water=0.0, lipid=0.0)
    if not b0:
        preset = replace(
            preset, b0_sd_hz=0.0, b0_sinus_hz=0.0, drift_hz_per_minute=0.0, water_offset_hz=0.0, eddy_phase_rad=(),
            eddy_decay_s=(),
        )  # fmt: skip
    return preset


Parts = Callable[[Protocol], list[signals.Components]]


class _Source:
    """Where the signals of a head come from: components at the time points of any protocol of the preset."""

    def __init__(self, preset: Preset, head: _Head) -> None:
        self.preset, self.head = preset, head
        self._scales, self.strengths = _strengths(preset, head, self.water(preset.protocol)[0])

    def metabolites(self, protocol: Protocol) -> signals.Components:
        """Metabolites, macromolecules and the unseen resonance."""
        return signals.metabolite_components(self.head.brain, self.head.box, self.head.excitation, protocol)

    def water(self, protocol: Protocol) -> list[signals.Components]:
        """Unsuppressed water."""
        head = self.head
        return [signals.water_components(head.brain, head.box, head.excitation, protocol, self.preset.water_offset_hz)]

    def suppressed(self, protocol: Protocol) -> list[signals.Components]:
        """Return what the metabolite scan receives: metabolites, residual water and lipids."""
        head, offset = self.head, self.preset.water_offset_hz
        parts = [self.metabolites(protocol)]
        if self.preset.residual_water > 0:
            (water,) = self.water(protocol)
            scale = self._scales["water"]
            parts.append(signals.residual_water_components(water, head.suppression, scale, protocol, offset))
        if self.preset.lipid > 0:
            scale = self._scales["lipid"]
            parts.append(signals.lipid_components(head.brain, head.box, head.excitation, protocol, scale))
        return parts


def _measure(preset: Preset, head: _Head, parts: Parts, *, role: Role, first_shot: int) -> tuple[Pass, ...]:
    """Receive signals with every coil and with the imperfections of the hardware, without noise.

    Averages of one point and calibration readouts are passes of their own.
    """
    maps = head.box.cut(np.moveaxis(head.coil_maps, 0, -1)).T
    maps = np.ascontiguousarray(maps) * np.complex64(preset.receiver_gain)
    protocol, encoding = preset.protocol, preset.encoding
    fields = head.field

    def signal(tau_s: float) -> Callable[[slice], np.ndarray]:
        later = replace(protocol, acquisition_delay_s=protocol.acquisition_delay_s + tau_s)
        there = parts(later)
        field = replace(fields, times_s=later.times_s)
        return lambda times: signals.total(there, field, times)

    if isinstance(encoding, Csi):
        k = encode(head.box, signal(0.0), maps, preset.n_times)
    else:
        # Everything lies within the spectral width, B0 included, or it would be aliased.
        half_band = 0.5 / preset.dwell_s if role is not Role.WATER_REFERENCE else _water_band_hz(preset, head)
        points = encoding.points(preset)
        k = encode_points(
            head.box, preset.geometry.voxel_mm, signal, maps, points, preset.n_times, half_band
        )  # fmt: skip
    kinds: dict[tuple[bool, int], list[Readout]] = {}
    for readout in encoding.readouts(preset, water=role is Role.WATER_REFERENCE):
        kinds.setdefault((not readout.calibration, readout.counters.get("average", 0)), []).append(readout)
    passes = []
    for number, ((signal_of_its_own, _), found) in enumerate(sorted(kinds.items(), key=lambda item: item[0])):
        shots = np.array([readout.shot for readout in found]) + first_shot
        kind = role if signal_of_its_own else Role.CALIBRATION
        counters = {"set": int(role is Role.WATER_REFERENCE)}
        last = number == len(kinds) - 1
        passes.append(Pass(kind, k if last else k.copy(), tuple(found), shots, counters))
    return tuple(passes)


def _water_band_hz(preset: Preset, head: _Head) -> float:
    """Largest |frequency| of water: B0, its offset and the width of its lines (60 Hz at 10^-6 of its height)."""
    b0 = float(np.max(np.abs(head.field.b0_hz)) + np.max(np.abs(head.field.spread_hz))) + abs(preset.water_offset_hz)
    return min(b0 + 60.0, 0.5 / preset.dwell_s)


def _make_head(preset: Preset, seeds: np.random.SeedSequence) -> _Head:
    pose, lesion_rng, molecules, field, water = (np.random.default_rng(s) for s in seeds.spawn(5))
    geometry = preset.geometry
    anatomy = make_anatomy(geometry, preset.subvoxels, isocentre_mni_mm=preset.isocentre_mni_mm, rng=pose)
    centres = fine_positions(geometry, (1, 1, 1))
    if not np.any(anatomy.voxel_mean(anatomy.brain) > _BRAIN_MASK):
        raise DataError(f"the slab of preset {preset.name} does not cut through the brain; correct isocentre_mni_mm")
    radius = max(_LESION_RADIUS_MM, 0.95 * max(geometry.voxel_mm[:2]))
    lesions = place_lesions(anatomy, radius, lesion_rng, voxel_centres_mm=centres)
    brain = make_brain(anatomy, lesions, voxel_mm=geometry.voxel_mm, names=BRAIN_METABOLITES, rng=molecules)
    box = FineBox.around(anatomy.brain + anatomy.scalp > 0, preset.matrix, preset.subvoxels)
    b0_hz, spread = _field(preset, geometry, anatomy, field)
    spacing = np.array(geometry.voxel_mm) / preset.subvoxels
    whole = anatomy.brain / anatomy.brain.sum()
    size, phase = (smooth_field(anatomy.brain.shape, 70.0, spacing, whole, water) for _ in range(2))
    flip = _flip_angle(preset, anatomy)
    phase_of_field = signals.FieldPhase(box.cut(b0_hz), box.cut(spread), preset.protocol.times_s)
    return _Head(
        anatomy, lesions, brain, box, coil_sensitivities(anatomy.positions_mm, preset.n_coils), b0_hz, phase_of_field,
        signals.Excitation(box.cut(flip), preset.repetition_time_s, preset.field_strength_t),
        box.cut(np.exp(0.4 * size + 1j * phase)),
    )  # fmt: skip


def _field(
    preset: Preset, geometry: Geometry, anatomy: Anatomy, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """B0 on the fine grid and its change across the thickness of a fine point [Hz]."""
    half = 0.5 * geometry.voxel_mm[2] / preset.subvoxels[2] * np.array(geometry.slice_dir)
    stacked = np.stack([anatomy.positions_mm + step * half for step in (-1.0, 0.0, 1.0)], axis=-2)
    weights = np.stack([np.zeros_like(anatomy.brain), anatomy.brain, np.zeros_like(anatomy.brain)], axis=-1)
    b0 = b0_field(stacked, weights, smooth_sd_hz=preset.b0_sd_hz, sinus_hz=preset.b0_sinus_hz, rng=rng)
    return b0[..., 1], b0[..., 2] - b0[..., 0]


def _flip_angle(preset: Preset, anatomy: Anatomy) -> np.ndarray:
    """Flip angle [rad], largest in the middle of the head."""
    radius = np.linalg.norm(anatomy.positions_mm / 90.0, axis=-1)
    return np.asarray(np.deg2rad(preset.flip_angle_deg) * (1.0 - preset.transmit_variation * radius**2))


def _strengths(preset: Preset, head: _Head, water: signals.Components) -> tuple[dict[str, float], dict[str, float]]:
    """Scales that give residual water and lipids their strength against the NAA CH3 signal of normal brain at t = 0.

    Returns
    -------
        Scales for `signals.residual_water_components` and `signals.lipid_components`, and what the card says.
    """
    box = head.box
    normal = (box.cut(head.anatomy.brain) > _BRAIN_MASK) & (box.cut(np.sum(list(head.lesions.values()), axis=0)) < 0.02)
    row = head.brain.names.index("NAA")
    naa_t1 = t1_s("NAA", "gm", preset.field_strength_t)
    amount = box.cut(head.brain.contents[row].sum(axis=0)) * head.excitation.weight(naa_t1)
    naa = _NAA_PROTONS * float(np.mean(amount[normal])) if normal.any() else 1.0
    whole_water = water.amplitudes.sum(axis=1) * box.points_per_voxel
    size = float(np.mean(np.abs(whole_water * head.suppression)[normal]))
    scales = {"water": preset.residual_water * naa / size, "lipid": preset.lipid * naa}
    return scales, {"unsuppressed_water_over_naa": float(np.mean(whole_water[normal])) / naa, "naa_ch3_signal": naa}


def _truth(preset: Preset, head: _Head, metabolites: signals.Components, water: signals.Components) -> Truth:
    """Everything that is known but for the noise."""
    anatomy, box, protocol = head.anatomy, head.box, preset.protocol
    uniform = np.ones((1, int(np.prod(box.shape))), np.complex64)
    k = encode(box, lambda t: signals.total([metabolites], head.field, t), uniform, protocol.n_times)[0]
    weight = np.zeros(anatomy.brain.shape)
    # Proton density alone would do; the signal at t = 0 is what a field map is really weighted with.
    weight[tuple(slice(s, s + n) for s, n in zip(box.start, box.shape, strict=True))] = water.amplitudes.sum(
        axis=1
    ).reshape(box.shape)
    signal = anatomy.voxel_mean(weight)
    b0_hz = np.where(signal > 0, anatomy.voxel_mean(weight * head.b0_hz) / np.where(signal > 0, signal, 1.0), 0.0)
    b0_hz = np.where(signal > 0, b0_hz + preset.water_offset_hz, 0.0)
    fids = image_from_kspace(k) * np.exp(-2j * np.pi * b0_hz[..., None] * protocol.times_s)
    contents = head.brain.totals
    tissues = np.stack([anatomy.grey, anatomy.white, anatomy.csf, anatomy.scalp])
    return Truth(
        preset=preset,
        names=head.brain.names,
        contents=encode_maps(box, box.cut(np.moveaxis(contents, 0, -1)).T).astype(np.float32),
        contents_voxel=np.stack([anatomy.voxel_mean(m) for m in contents]).astype(np.float32),
        fractions=np.stack([anatomy.voxel_mean(f) for f in tissues]).astype(np.float32),
        fractions_resolved=encode_maps(box, box.cut(np.moveaxis(tissues[:3], 0, -1)).T).astype(np.float32),
        brain_mask=anatomy.voxel_mean(anatomy.brain) > _BRAIN_MASK,
        b0_hz=b0_hz.astype(np.float32),
        lesions={name: anatomy.voxel_mean(f).astype(np.float32) for name, f in head.lesions.items()},
        fids=fids.astype(np.complex64),
        water=(signal * box.points_per_voxel).astype(np.float32),
        coil_maps=np.stack([anatomy.voxel_mean(m) for m in head.coil_maps]).astype(np.complex64),
        noise_covariance=np.zeros((preset.n_coils, preset.n_coils), complex),
        naa_snr=np.full(preset.matrix, np.nan, np.float32),
        card={},
    )


def _noise_level(truth: Truth, preset: Preset) -> tuple[np.ndarray, np.ndarray]:
    """Covariance E[n n^H] of one metabolite sample that gives the preset's median SNR, and the SNR map.

    With the matched combination S^H W m / (S^H W S), W the inverse covariance of the real part, the noise SD of a
    voxel's FID is 1 / sqrt(N S^H W S), N the number of k-space points.
    """
    shape = noise_correlation(preset.n_coils, np.random.default_rng(_HARDWARE_SEED))
    mask = truth.brain_mask
    maps = truth.coil_maps[:, mask] * preset.receiver_gain
    power = np.einsum("cv,cd,dv->v", maps.conj(), np.linalg.inv(shape), maps).real * np.prod(preset.matrix)
    unit = naa_peak_snr(truth.fids[mask], 1.0 / np.sqrt(power), truth.protocol)
    naa_snr = np.full(mask.shape, np.nan)
    sd = float(np.median(unit)) / min(preset.snr, _SNR_OF_NOISE_SCAN)
    naa_snr[mask] = np.inf if np.isinf(preset.snr) else unit / sd
    return 2.0 * sd**2 * shape, naa_snr


def _shots(of: Pass, preset: Preset) -> np.ndarray:
    """Excitation of each sample of a pass (*point axes, t or 1); -1 where nothing was acquired."""
    shape = (*preset.encoding.points(preset).shape, preset.n_times)
    varies = any(len(readout.index) == len(shape) for readout in of.readouts)
    shots = np.full(shape if varies else (*shape[:-1], 1), -1.0)
    for readout, shot in zip(of.readouts, of.shots, strict=True):
        shots[readout.index] = shot
    return shots


def _imperfect(of: Pass, shots: np.ndarray, preset: Preset, middle: float) -> None:
    """Turn the samples of a pass in place by the phases of hardware and drift; what was not acquired becomes zero.

    `middle` is the shot in the middle of the water reference, where the drift is zero.
    """
    minutes = (shots - middle) * (preset.averaged * preset.repetition_time_s) / 60.0
    receiver = preset.encoding.row_phase_rad(preset)
    times = preset.protocol.times_s
    for row, tau in enumerate(preset.encoding.points(preset).tau_s):
        own = times + tau
        phase = 2.0 * np.pi * preset.drift_hz_per_minute * minutes[row] * own + preset.eddy_phase_at(own)
        if receiver is not None:
            phase = phase + receiver[row]
        of.samples[:, row] *= np.exp(1j * phase).astype(np.complex64)
        if np.any(shots[row] < 0):
            of.samples[:, row] *= shots[row] >= 0


def _noise_scan(covariance: np.ndarray, preset: Preset, rng: np.random.Generator) -> np.ndarray:
    """Noise scan (coil, readout, sample).

    `covariance` is that of one csi sample, which lasts a spectral dwell; other samples have it in inverse proportion to
    their dwell and to the averages in them. The noise scan has as many averages, so that the ratio of the dwells alone
    tells what the noise of the data is.
    """
    shape = (preset.noise_readouts, preset.noise_samples)
    factor = preset.dwell_s / (preset.noise_dwell_s * preset.averaged)
    return correlated_noise(covariance / 2.0 * factor, shape, rng)


def _add_noise(of: Pass, shots: np.ndarray, covariance: np.ndarray, preset: Preset, rng: np.random.Generator) -> None:
    """Add noise to the acquired samples of a pass in place."""
    factors = preset.dwell_s / (preset.encoding.sample_times_s(preset) * preset.averaged)
    for row, factor in enumerate(factors):
        noise = correlated_noise(covariance / 2.0 * factor, of.samples.shape[2:], rng)
        of.samples[:, row] += noise if np.all(shots[row] >= 0) else noise * (shots[row] >= 0)


def _times(preset: Preset, groups: Sequence[Sequence[Pass]]) -> dict[str, Any]:
    """Return the excitations, the ADC time of the samples that count and the duration of both scans, for the card."""
    facts: dict[str, Any] = {"averages_per_readout": preset.averaged}
    for role in (Role.WATER_REFERENCE, Role.METABOLITE):
        passes = [p for group in groups for p in group if p.role is role]
        shots = len(np.unique(np.concatenate([p.shots for p in passes])))
        adc = sum(p.samples[(0, *r.index)].size * r.sample_time_s for p in passes for r in p.readouts)
        facts[role.value] = {
            "excitations": shots * preset.averaged, "adc_s": adc * preset.averaged,
            "duration_s": shots * preset.averaged * preset.repetition_time_s,
        }  # fmt: skip
    return facts
