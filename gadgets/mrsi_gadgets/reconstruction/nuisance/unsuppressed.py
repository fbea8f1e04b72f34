"""Water that was not suppressed: told from residual water, and taken by its reference or by itself.

The best model of unsuppressed water is the water reference: `measured_water` frees it of noise and of metabolites.
Gain, phase and frequency drift between the scans and are found by `match_of`. Then the metabolite data are a second
measurement of the same water wherever they have no metabolites: both measurements are brought together, each weighted
by the inverse covariance of what lies beside the water in it, and freed of noise again. Without a reference the data
are their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.reconstruction.nuisance.lipids import BAND_PPM, band_amplitude, hamming, lipid_support
from mrsi_gadgets.reconstruction.nuisance.measured_water import HALF_BAND_PPM, SAFE, measured_water
from mrsi_gadgets.reconstruction.nuisance.reference import match_of, quadratics
from mrsi_gadgets.reconstruction.nuisance.remains import remains
from mrsi_gadgets.reconstruction.nuisance.scan import NAA_SIGNAL, Scan
from mrsi_gadgets.reconstruction.nuisance.water import metabolite_covariance, metabolite_strength

UNSUPPRESSED = 0.2
"""Water counts as unsuppressed from this part of the reference's amplitude on."""
_UNSUPPRESSED_OVER_NAA = 500.0
"""... and without a reference from this factor over the NAA CH3 signal on."""
_WATER_OVER_NAA = 3000.0
"""Unsuppressed water over the NAA CH3 signal, in order of magnitude."""
_LEAST_OF_EXPECTED = 0.03
"""A reference shows metabolites from this part on of the amplitude that its water lets expect."""
_ROUNDS = 2
"""How often the estimate is repeated, with a better match and a better strength of metabolites."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A water reference, and what was found in it."""

    fids: Array
    """(voxel, t)."""
    sd: np.ndarray
    """(voxel,)."""
    metabolites: np.ndarray
    """(t, t): covariance of the metabolites that it shows."""
    water: Array
    """(voxel, t): its water, without noise and metabolites."""


def is_unsuppressed(scan: Scan, water: Array) -> bool:
    """Tell whether water (voxel, t) is there at its full strength.

    Unsuppressed water has the phase of the reference (that of the coil maps, so that it is real and positive here).
    What suppression left may be inverted, and as large as a reference that was excited less.
    """
    inside = scan.brain
    first = to_numpy(water[:, 0]).reshape(inside.shape)[inside]
    if scan.water is not None:
        in_phase = first.real / np.maximum(scan.water[inside], np.finfo(np.float32).tiny)
        return bool(np.median(in_phase) > UNSUPPRESSED)
    naa = NAA_SIGNAL * float(np.sqrt(scan.strength(scan.flat - water)))
    return bool(np.median(np.abs(first)) > _UNSUPPRESSED_OVER_NAA * naa)


def reference_of(scan: Scan) -> Reference | None:
    """Return the scan's water reference with what is found in it, None where there is none.

    Whether it shows metabolites is told by what is left beside the water, as if there were some: they have the phase of
    water, and nearly one spectrum in all voxels; sidebands, which are left where metabolites are kept, have neither.
    """
    if scan.reference is None:
        return None
    flat = scan.flat
    fids = like(namespace(flat).reshape(scan.reference.coefficients, tuple(flat.shape)), flat, flat.dtype)
    sd = scan.reference.noise_sd.ravel()
    covariance = metabolite_covariance(scan.model)
    expected = _expected_strength(scan, fids)
    left = scan.of_brain(fids - _measured(scan, fids, sd, expected * covariance, _white(scan, sd)))
    energy, shapes = np.linalg.eigh(covariance)
    seen = to_numpy(left @ like(shapes[:, -1:].conj().astype(np.complex64), flat)).astype(complex)
    amplitude = float(np.hypot(np.median(seen.real), np.median(seen.imag)))
    strength = 0.0
    if amplitude > _LEAST_OF_EXPECTED * np.sqrt(expected * energy[-1]):
        strength = metabolite_strength(left, scan.model, _typical(scan, sd))
    metabolites = strength * covariance
    return Reference(fids, sd, metabolites, _measured(scan, fids, sd, metabolites, _white(scan, sd)))


def water_by_reference(scan: Scan, flat: Array, reference: Reference) -> Array:
    """Return the water of FIDs (voxel, t)."""
    place, brain = quadratics(scan.mask.shape), scan.brain.ravel()
    covariance = metabolite_covariance(scan.model)
    of_reference = _white(scan, reference.sd)
    of_data = 2 * scan.typical_sd**2 * np.eye(scan.n_times)
    strength = _expected_strength(scan, reference.fids)
    clean, water = reference.water, flat
    for number in range(_ROUNDS + 1):
        match = match_of(flat, clean, place, brain, scan.times_s, strength * covariance, scan.typical_sd)
        factor = like(match.factor(scan.times_s), flat, flat.dtype)
        if number:
            beside = of_data + SAFE * strength * covariance
            share = np.linalg.solve(of_reference + beside, of_reference)
            both = reference.fids + (flat / factor - reference.fids) @ like(share.T.astype(np.complex64), flat)
            clean = _measured(scan, both, reference.sd, reference.metabolites, beside @ share)
        water = clean * factor
        strength = scan.strength(flat - water)
    return water


def water_by_itself(scan: Scan, flat: Array) -> Array:
    """Return the water of FIDs (voxel, t) that no reference shows: the data are their own, with all metabolites."""
    covariance = metabolite_covariance(scan.model)
    sd = scan.sd.ravel()
    strength, water = _expected_strength(scan, flat), flat
    for _ in range(_ROUNDS):
        water = _measured(scan, flat, sd, strength * covariance, _white(scan, sd))
        strength = scan.strength(flat - water)
    return water


def without_false_lipids(scan: Scan, water: Array) -> Scan:
    """Return the scan with the support of lipids as it is seen without unsuppressed water (voxel, t).

    Where no more is left in the brain than metabolites explain there is none: what remains of the scalp's water would
    be taken for lipids.
    """
    xp = namespace(scan.fids)
    after = remains(scan, scan.fids - xp.reshape(water, tuple(scan.fids.shape)))
    if after.lipids**2 - after.lipids_expected**2 < 1:
        return replace(scan, support=np.zeros_like(scan.support))
    dry = scan.kt.with_samples(scan.kt.samples - scan.samples_of_fids(water))
    windowed = scan.image(hamming(dry).samples)
    return replace(scan, support=lipid_support(band_amplitude(windowed, scan.ppm, BAND_PPM), scan.mask))


def _measured(scan: Scan, fids: Array, sd: np.ndarray, metabolites: np.ndarray, noise: np.ndarray) -> Array:
    half_band_hz = HALF_BAND_PPM * scan.hz_per_ppm
    return measured_water(
        fids, scan.mask.shape, scan.brain.ravel(), scan.times_s, half_band_hz, sd, metabolites, noise
    )  # fmt: skip


def _white(scan: Scan, sd: np.ndarray) -> np.ndarray:
    return 2 * _typical(scan, sd) ** 2 * np.eye(scan.n_times)


def _typical(scan: Scan, sd: np.ndarray) -> float:
    return float(np.median(sd[scan.brain.ravel()]))


def _expected_strength(scan: Scan, reference: Array) -> float:
    """Return the strength of metabolites that the water's amplitude lets expect."""
    start = np.abs(to_numpy(reference[:, 0])).reshape(scan.mask.shape)[scan.brain]
    return float((np.median(start) / (_WATER_OVER_NAA * NAA_SIGNAL)) ** 2)
