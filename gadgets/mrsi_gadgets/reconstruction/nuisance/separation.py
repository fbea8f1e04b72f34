"""Water and lipids in turn: each is found in the data without the other, and both are subtracted from the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import KtData
from mrsi_gadgets.reconstruction.nuisance.lipids import (
    LipidSpace,
    leak_of,
    lipid_space,
    lipids_at_their_source,
    lipids_by_penalty,
)
from mrsi_gadgets.reconstruction.nuisance.modulation import places, with_modulation, without_modulation
from mrsi_gadgets.reconstruction.nuisance.scan import Scan
from mrsi_gadgets.reconstruction.nuisance.unsuppressed import (
    is_unsuppressed,
    modulation_of,
    reference_of,
    water_by_reference,
    without_false_lipids,
)
from mrsi_gadgets.reconstruction.nuisance.water import (
    MOST_CLASSES,
    decay_classes,
    metabolite_covariance,
    metabolite_strength,
    separate_water,
)

_WATER_ROUNDS = 3
"""How often the water's covariance is learned, first from HSVD and then from its own result."""
_LIPID_ROUNDS = 3
"""How often lipids are looked for, each time beside better water."""
_FIELD_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)

Notes = dict[str, Any]
WaterOf = Callable[[Array, Array], Array]
"""Returns the water of FIDs (voxel, t) by an earlier estimate."""


def without_nuisance(scan: Scan, method: str) -> tuple[KtData, Notes]:
    """Return the data without water (and lipids) by one of the methods, and notes for the provenance."""
    rough = scan.hsvd(scan.flat)
    if not is_unsuppressed(scan, rough):
        notes: Notes = {"water": "suppressed"}
        if method == "hsvd":
            return _without_water(scan, scan.kt, rough), notes
        return _in_turn(scan, method, rough, _by_covariance(scan, rounds=_WATER_ROUNDS), notes)
    reference = reference_of(scan)
    if reference is not None:
        notes = {"water": "not suppressed, taken by the water reference"}
        water = water_by_reference(scan, scan.flat, reference)
        if method == "hsvd":
            return _without_water(scan, scan.kt, water), notes
        scan = without_false_lipids(scan, water)
        if not scan.support.any():
            return _without_water(scan, scan.kt, water), notes | {"lipids": "none found"}
        return _in_turn(scan, method, water, lambda fids, _: water_by_reference(scan, fids, reference), notes)
    return _without_reference(scan, method, rough)


def _without_reference(scan: Scan, method: str, rough: Array) -> tuple[KtData, Notes]:
    """Remove unsuppressed water that no reference shows, with its sidebands."""
    notes: Notes = {"water": "not suppressed"}
    place = places(scan.mask.shape)
    everywhere = np.ones(int(scan.brain.sum()), dtype=bool)

    def of_brain(fids: Array, estimate: Array) -> Array:
        # one class: small ones would learn sidebands as shapes of water
        return _separated(scan, fids, estimate, everywhere, rounds=1, classes=1)

    modulation = modulation_of(scan, place, of_brain)
    if modulation is None:
        water_of, first = _by_covariance(scan, rounds=_WATER_ROUNDS), _by_covariance(scan, rounds=1)
    else:
        notes["largest_modulation_rad"] = round(float(np.abs(place @ modulation).max()), 5)
        plain = without_modulation(scan.flat, place, modulation)
        rough = with_modulation(scan.hsvd(plain), place, modulation)
        water_of, first = (
            _modulated(_by_covariance(scan, rounds=rounds, classes=1), place, modulation)
            for rounds in (_WATER_ROUNDS, 1)
        )
    if method == "hsvd":
        return _without_water(scan, scan.kt, rough), notes
    # lipids are looked for beside what is left of water, which HSVD leaves above the noise
    water = first(scan.flat, rough)
    return _in_turn(without_false_lipids(scan, water), method, water, water_of, notes)


def _in_turn(scan: Scan, method: str, water: Array, water_of: WaterOf, notes: Notes) -> tuple[KtData, Notes]:
    """Find lipids beside the water and water beside the lipids, several times."""
    kt, flat = scan.kt, scan.flat
    for _ in range(_LIPID_ROUNDS):
        lipids, found = _lipids(scan, scan.flat - water, method)
        notes = notes | found
        if lipids is not None:
            kt = scan.kt.with_samples(scan.kt.samples - lipids)
            flat = namespace(flat).reshape(scan.image(kt.samples), tuple(flat.shape))
        water = water_of(flat, water)
        if lipids is None:
            break
    return _without_water(scan, kt, water), notes


def _without_water(scan: Scan, kt: KtData, water: Array) -> KtData:
    return kt.with_samples(kt.samples - scan.samples_of_fids(water))


def _by_covariance(scan: Scan, *, rounds: int, classes: int = MOST_CLASSES) -> WaterOf:
    """Return the separation of all voxels' water, its covariances learned in the brain.

    The scalp would teach it the lipids near water.
    """
    return lambda fids, estimate: _separated(
        scan, fids, estimate, scan.brain.ravel(), rounds=rounds, classes=classes
    )  # fmt: skip


def _modulated(water_of: WaterOf, place: np.ndarray, modulation: np.ndarray) -> WaterOf:
    """Return a separation of water with sidebands from one of water without."""

    def of(fids: Array, estimate: Array) -> Array:
        plain, first = (without_modulation(x, place, modulation) for x in (fids, estimate))
        return with_modulation(water_of(plain, first), place, modulation)

    return of


def _separated(
    scan: Scan, fids: Array, estimate: Array, brain: np.ndarray, *, rounds: int, classes: int
) -> Array:  # fmt: skip
    """Return the water of FIDs (voxel, t) by the covariance of each class of decay.

    Covariances and the strength of metabolites are learned from the voxels of `brain`.
    """
    xp = namespace(fids)
    chosen = like(np.flatnonzero(brain), fids)
    labels = decay_classes(estimate, scan.times_s, brain, most=classes)
    members = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    back = like(np.argsort(np.concatenate(members)), fids)
    for _ in range(rounds):
        strength = metabolite_strength(xp.take(fids - estimate, chosen, axis=0), scan.model, scan.typical_sd)
        metabolites = strength * metabolite_covariance(scan.model)
        parts = []
        for member in members:
            index = like(member, fids)
            own, first = xp.take(fids, index, axis=0), xp.take(estimate, index, axis=0)
            parts.append(separate_water(own, first, brain[member], metabolites, scan.typical_sd))
        estimate = xp.take(xp.concat(parts, axis=0), back, axis=0)
    return estimate


def _lipids(scan: Scan, flat: Array, method: str) -> tuple[Array | None, Notes]:
    """Return the samples of lipids, None where there are none, by the FIDs without water (voxel, t)."""
    if not scan.support.any():
        return None, {"lipids": "none found"}
    turned = scan.with_field(namespace(flat).reshape(flat, tuple(scan.fids.shape)))
    space = lipid_space(turned, scan.support, scan.typical_sd)
    notes: Notes = {"lipid_rows": len(space.rows)}
    if method == "l2":
        leak = leak_of(turned, space, scan.brain)
        coefficients = lipids_by_penalty(turned, space, leak, scan.typical_sd)
        coefficients = coefficients * like(scan.mask[..., None].astype(np.float32), coefficients, coefficients.dtype)
        return scan.samples_of(coefficients, space.rows, field_in_rows=True), notes | {"lipid_leak": round(leak, 6)}
    without_water = scan.kt.samples - scan.samples_of_fids(scan.flat - flat)
    samples, residual = lipids_at_their_source(
        scan.kt.with_samples(without_water), space, scan.mask & ~scan.support, _metabolites_in(scan, space, flat),
        scan.noise_sd,
    )  # fmt: skip
    return samples, notes | {"lipid_residual": round(residual, 6)}


def _metabolites_in(scan: Scan, space: LipidSpace, flat: Array) -> np.ndarray:
    """Return the covariance (row, row) of a voxel's metabolites in the rows of lipids, whose field is their own."""
    shifts = np.quantile(scan.b0_hz[scan.brain], _FIELD_QUANTILES)
    turn = np.exp(2j * np.pi * shifts[:, None] * scan.times_s)
    spread = metabolite_covariance(scan.model) * (turn.T @ turn.conj() / len(shifts))
    rows = space.rows.astype(np.complex128)
    return np.asarray(scan.strength(flat) * (rows.conj() @ spread @ rows.T))
