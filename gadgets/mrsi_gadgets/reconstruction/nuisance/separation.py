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
from mrsi_gadgets.reconstruction.nuisance.scan import Scan
from mrsi_gadgets.reconstruction.nuisance.unsuppressed import (
    is_unsuppressed,
    reference_of,
    water_by_itself,
    water_by_reference,
    without_false_lipids,
)
from mrsi_gadgets.reconstruction.nuisance.water import (
    decay_classes,
    metabolite_covariance,
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
    water = scan.hsvd(scan.flat)
    if not is_unsuppressed(scan, water):
        notes: Notes = {"water": "suppressed"}
        if method == "hsvd":
            return _without_water(scan, scan.kt, water), notes
        return _in_turn(scan, method, water, lambda fids, earlier: _separated(scan, fids, earlier), notes)
    reference = reference_of(scan)
    notes = {"water": "not suppressed" + (", taken by the water reference" if reference is not None else "")}

    def water_of(fids: Array, _: Array) -> Array:
        return water_by_itself(scan, fids) if reference is None else water_by_reference(scan, fids, reference)

    water = water_of(scan.flat, water)
    if method == "hsvd":
        return _without_water(scan, scan.kt, water), notes
    dry = without_false_lipids(scan, water)
    if not dry.support.any():
        return _without_water(scan, scan.kt, water), notes | {"lipids": "none found"}
    return _in_turn(dry, method, water, water_of, notes)


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


def _separated(scan: Scan, fids: Array, estimate: Array) -> Array:
    """Return the residual water of FIDs (voxel, t) by the covariance of each class of decay.

    Covariances are learned in the brain: the scalp would teach them the lipids near water.
    """
    xp = namespace(fids)
    brain = scan.brain.ravel()
    labels = decay_classes(estimate, scan.times_s, brain)
    members = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    back = like(np.argsort(np.concatenate(members)), fids)
    for _ in range(_WATER_ROUNDS):
        metabolites = scan.strength(fids - estimate) * metabolite_covariance(scan.model)
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
