"""A whole simulated scan: the numerical brain measured by a preset, with its truth."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
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
from mrsi_gadgets.phantom.brain import make_brain, smooth_field
from mrsi_gadgets.phantom.encode import FineBox, encode, encode_maps, image_from_kspace
from mrsi_gadgets.phantom.field import b0_field
from mrsi_gadgets.phantom.lesions import place_lesions
from mrsi_gadgets.phantom.measure import add_noise, disturb, noise_scan, passes_of, scan_times, shots_of
from mrsi_gadgets.phantom.peak import naa_peak_snr
from mrsi_gadgets.phantom.presets import Preset, find_preset
from mrsi_gadgets.phantom.readouts import Pass, header_xml, stream
from mrsi_gadgets.phantom.receive import coil_sensitivities, noise_correlation
from mrsi_gadgets.phantom.sources import BRAIN_MASK, Head, Source
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.stream.messages import Acquisition

_LESION_RADIUS_MM = 11.0
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
    source = Source(chosen, head)
    truth = _truth(chosen, head, source)
    covariance, naa_snr = _noise_level(truth, chosen)
    groups = passes_of(chosen, head, source)
    rng = np.random.default_rng(noise_seed)
    noise = noise_scan(covariance, chosen, rng)
    middle = float(max(p.shots[-1] for p in groups[0])) / 2.0
    for of in (p for group in reversed(groups) for p in group):
        shots = shots_of(of, chosen)
        disturb(of, shots, chosen, middle)
        if np.isfinite(chosen.snr):
            add_noise(of, shots, covariance, chosen, rng)
    card: dict[str, Any] = {
        "version": __version__, "seed": seed, "noise_seed": noise_seed, "snr": str(chosen.snr), "nuisance": nuisance,
        "b0": b0, "median_naa_snr": str(round(float(np.median(naa_snr[truth.brain_mask])), 3)), **source.strengths,
        **scan_times(chosen, groups),
    }  # fmt: skip
    truth = replace(truth, noise_covariance=covariance, naa_snr=naa_snr.astype(np.float32), card=card)
    return SimulatedScan(header_xml(chosen), chosen.protocol, truth, noise, tuple(groups))


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
        preset = replace(preset, residual_water=0.0, lipid=0.0, water_suppressed=True)
    if not b0:
        preset = replace(
            preset, b0_sd_hz=0.0, b0_sinus_hz=0.0, drift_hz_per_minute=0.0, phase_drift_rad_per_minute=0.0,
            water_offset_hz=0.0, eddy_phase_rad=(), eddy_decay_s=(),
        )  # fmt: skip
    return preset


def _make_head(preset: Preset, seeds: np.random.SeedSequence) -> Head:
    pose, lesion_rng, molecules, field, water = (np.random.default_rng(s) for s in seeds.spawn(5))
    geometry = preset.geometry
    anatomy = make_anatomy(geometry, preset.subvoxels, isocentre_mni_mm=preset.isocentre_mni_mm, rng=pose)
    centres = fine_positions(geometry, (1, 1, 1))
    if not np.any(anatomy.voxel_mean(anatomy.brain) > BRAIN_MASK):
        raise DataError(f"the slab of preset {preset.name} does not cut through the brain; correct isocentre_mni_mm")
    radius = max(_LESION_RADIUS_MM, 0.95 * max(geometry.voxel_mm[:2]))
    lesions = place_lesions(anatomy, radius, lesion_rng, voxel_centres_mm=centres)
    nucleus = NUCLEI[preset.nucleus]
    brain = make_brain(
        anatomy, lesions, voxel_mm=geometry.voxel_mm, names=nucleus.usual, rng=molecules, nucleus=nucleus
    )
    box = FineBox.around(anatomy.brain + anatomy.scalp > 0, preset.matrix, preset.subvoxels)
    b0_hz, spread = _field(preset, geometry, anatomy, field)
    spacing = np.array(geometry.voxel_mm) / preset.subvoxels
    whole = anatomy.brain / anatomy.brain.sum()
    size, phase = (smooth_field(anatomy.brain.shape, 70.0, spacing, whole, water) for _ in range(2))
    flip = _flip_angle(preset, anatomy)
    phase_of_field = signals.FieldPhase(box.cut(b0_hz), box.cut(spread), preset.protocol.times_s)
    return Head(
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


def _truth(preset: Preset, head: Head, source: Source) -> Truth:
    """Everything that is known but for the noise; behind the first of several echoes."""
    anatomy, box, protocol = head.anatomy, head.box, preset.protocol_of(None)
    metabolites = source.metabolites(protocol)
    if preset.has_water_reference or preset.cycling:
        water = source.water(protocol)[0]
    else:
        water = signals.strongest_components(head.brain, box, head.excitation, protocol)
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
        brain_mask=anatomy.voxel_mean(anatomy.brain) > BRAIN_MASK,
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
