"""Removal of water and lipids from (k,t) data: the methods and the choice between them.

Every method estimates images of water and lipids and subtracts their samples, d - A(water) - A(lipids); noise and all
other signal stay as they were measured. `auto` tries the methods and takes the one that leaves least in the bands of
water and lipids and touches metabolites least, all in units of the noise.

    scan          data, image, calibration              unsuppressed   water at full strength: reference, sidebands
    separation    water and lipids in turn              joint          undersampled data: all parts at once
    remains       what is left, what was hurt           strength       whether anything needs to be removed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, one_blas_thread
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.reconstruction.nuisance.joint import is_aliased, without_nuisance_jointly
from mrsi_gadgets.reconstruction.nuisance.remains import Remains, metabolite_level, probe, remains
from mrsi_gadgets.reconstruction.nuisance.scan import Scan, scan_of
from mrsi_gadgets.reconstruction.nuisance.separation import without_nuisance

METHODS = ("auto", "hsvd", "union_of_subspaces", "l2")
_PASSES = 2
"""Passes over data whose Fourier image is not their exact inverse."""


@dataclass(frozen=True, eq=False)
class Removal:
    """Data without nuisance, and what is known about how well that went."""

    kt: KtData
    method: str
    """hsvd, union_of_subspaces, l2, or none where nothing had to be removed."""
    before: Remains
    after: Remains
    provenance: dict[str, Any] = field(default_factory=dict)


def remove_nuisance(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    mask: np.ndarray,
    noise_sd: float = 1.0,
    *,
    model: Subspace,
    method: str = "auto",
    water: np.ndarray | None = None,
    reference: SpectralImage | None = None,
    progress: Callable[[str], None] | None = None,
) -> Removal:
    """Remove water and lipids from metabolite data of any encoding.

    Parameters
    ----------
    kt, coil_maps, b0_hz, mask, noise_sd
        As for `reconstruct_fourier`.
    model
        Subspace of metabolites (and nuisance) learned for the protocol: what must not be touched.
    method
        ``hsvd``: water alone, voxel by voxel as damped exponentials. ``union_of_subspaces``: water by its own temporal
        subspace, lipids by sources in the scalp. ``l2``: water as before, lipids by the L2 penalty. ``auto``.
    water
        (x, y, z) amplitude of unsuppressed water at t = 0, or None: tells whether water was suppressed.
    reference
        Fourier image of the water reference with the same coil maps and field, or None: where water was not suppressed
        it is subtracted by its own measurement. It has to be of the same points and times as the data.
    progress
        Told a sentence at every stage.

    Raises
    ------
    ConfigError
        The method is unknown.
    DataError
        Data, calibration and model do not fit each other.
    """
    if method not in METHODS:
        raise ConfigError(f"method '{method}' is not known; use {', '.join(METHODS)}")
    if model.basis.shape[1] != int(kt.samples.shape[2]):
        raise DataError(
            f"the signal model has {model.basis.shape[1]} points and the data {int(kt.samples.shape[2])}; learn one "
            "for this protocol"
        )
    with one_blas_thread():
        return _chosen(scan_of(kt, coil_maps, b0_hz, mask, noise_sd, model, water, reference), method, progress)


def _chosen(scan: Scan, method: str, progress: Callable[[str], None] | None) -> Removal:
    """Try what may be tried and take the best."""
    kt = scan.kt
    before = remains(scan, scan.fids)
    if not scan.mask.any():
        return Removal(kt, "none", before, before, {"reason": "no voxel of the mask"})
    candidates: tuple[str, ...] = ("hsvd", "union_of_subspaces", "l2") if method == "auto" else (method,)
    if method == "auto" and not scan.support.any():
        candidates = ("hsvd", "union_of_subspaces")
    added = probe(scan) if method == "auto" else None
    tried: dict[str, tuple[KtData, Remains, dict[str, Any]]] = {}
    cost: dict[str, float] = {}
    for name in candidates:
        cleaned, notes = _cleaned(scan, name)
        tried[name] = cleaned, remains(scan, scan.image(cleaned.samples)), notes
        if added is not None:
            # the same with metabolites added: what comes out besides them is what the method does to metabolites
            both, _ = _cleaned(scan.with_samples(kt.samples + added), name)
            notes["touched"] = round(metabolite_level(scan, scan.image(both.samples - cleaned.samples - added)), 4)
            cost[name] = tried[name][1].excess + notes["touched"] ** 2
        if progress is not None:
            after = tried[name][1]
            progress(
                f"{name}: water {before.water:.1f} to {after.water:.2f} and lipids {before.lipids:.1f} to "
                f"{after.lipids:.2f} times the noise in the brain"
            )
    if added is not None:
        tried["none"], cost["none"] = (kt, before, {}), before.excess
    chosen = min(cost, key=lambda name: cost[name]) if cost else method
    cleaned, after, notes = tried[chosen]
    provenance = {
        "method": chosen,
        "asked": method,
        "lipid_support_voxels": int(scan.support.sum()),
        **notes,
        **_rounded("before", before),
        **_rounded("after", after),
        "water_expected": round(after.water_expected, 3),
        "lipids_expected": round(after.lipids_expected, 3),
        "cost": {name: round(value, 3) for name, value in cost.items()},
    }
    return Removal(cleaned, chosen, before, after, provenance)


def _cleaned(scan: Scan, method: str) -> tuple[KtData, dict[str, Any]]:
    """Return the data without what the method finds, and notes for the provenance."""
    if method == "union_of_subspaces" and is_aliased(scan):
        return without_nuisance_jointly(scan)
    kt, notes = without_nuisance(scan, method)
    exact = kt.grid is not None and kt.fully_sampled and kt.common_times
    for _ in range(0 if exact else _PASSES - 1):
        kt, _ = without_nuisance(scan.with_samples(kt.samples), method)
    return kt, notes


def _rounded(when: str, what: Remains) -> dict[str, float]:
    return {f"{when}_{name}": round(float(getattr(what, name)), 3) for name in ("water", "lipids")}
