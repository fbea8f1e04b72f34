"""Lesions put into measured data, to see what a reconstruction makes of signals that it was not made for.

Signals with a known place are sent through the scan's own encoding (its coils, field, trajectory and times) and added
to its samples, so that any scan, simulated or measured, can be reconstructed with and without them. What the
difference of the two results shows of the contrast that was put in is the contrast recovery: 1 is right, less was taken
for noise or for something else, more is wrong as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, to_numpy
from mrsi_gadgets.data import Geometry, KtData, Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples, offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range
from mrsi_gadgets.phantom.lesions import UNKNOWN_PPM
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.ensemble import default_ensemble, sample
from mrsi_gadgets.physics.lineshapes import gaussian_decay
from mrsi_gadgets.physics.nucleus import field_strength_t, nucleus_of
from mrsi_gadgets.physics.saturation import relaxation_weight

CORE, FREE = 0.7, 0.02
"""Fraction from which a voxel is of the lesion, and below which (all lesions together) it is free of any."""
WIDE, SINGLET = "wide lines", "unseen singlet"
_SINGLET_PPM = {"1H": UNKNOWN_PPM, "31P": -5.0, "2H": 3.1}
"""Where no molecule of the nucleus has a strong line."""
_SINGLET_SHARE = 2 / 3
"""Its signal over that of the strongest line of normal brain: 18 mM of protons, three mM of two methyl groups."""
_SINGLET_T2_STAR_S = 0.09
_AMOUNTS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "1H": {"lactate x10": {"Lac": 10.0}, "choline x3": {"GPC": 3.0, "PCh": 3.0}},
    "31P": {"phosphomonoesters x3": {"PE": 3.0, "PC": 3.0}, "phosphate x3": {"Pi": 3.0}},
    "2H": {"lactate x10": {"Lac": 10.0}, "glutamate x3": {"Glx": 3.0}},
}
"""Nucleus -> lesion -> molecule -> factor on its amount in normal brain."""
_DRAWN, _SEED = 400, 5
"""FIDs whose mean is the typical one."""
_TOLERANCE = 1e-4
_APART = 2.4
"""Least distance of two lesions in radii."""


@dataclass(frozen=True, eq=False)
class InjectedLesion:
    """One kind of signal and where it was put."""

    kind: str
    """One of `kinds`."""
    fraction: np.ndarray
    """(x, y, z) float32, 0 to 1."""


def kinds(protocol: Protocol) -> tuple[str, ...]:
    """Return the lesions of a protocol's nucleus: two with known molecules, an unseen singlet, lines twice as wide.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    return (*_AMOUNTS[nucleus_of(protocol).name], SINGLET, WIDE)


def change(protocol: Protocol, kind: str, *, singlet_ppm: float | None = None) -> np.ndarray:
    """Return what a lesion adds to normal brain, (t,) complex128 at `protocol.times_s` in the ensemble's unit.

    Wide lines are a typical FID, as the ensemble has it on average, seen through a field that is twice as wide as any
    of the ensemble, less that FID.

    Parameters
    ----------
    protocol : whose times, sequence and relaxation weights the signal has.
    kind : one of `kinds`.
    singlet_ppm : place of the singlet; None for one where no molecule has a strong line.

    Raises
    ------
    ConfigError
        There is no such kind.
    """
    nucleus, times = nucleus_of(protocol), protocol.times_s
    if kind == SINGLET:
        ppm = _SINGLET_PPM[nucleus.name] if singlet_ppm is None else singlet_ppm
        line = np.exp((2j * np.pi * float(protocol.hz(ppm)) - 1 / _SINGLET_T2_STAR_S) * times)
        return np.asarray(_SINGLET_SHARE * nucleus.strongest_signal * line)
    if kind == WIDE:
        widest = default_ensemble(protocol).broadening_ppm[1] * protocol.transmit_frequency_hz * 1e-6
        typical = sample(protocol, _DRAWN, _SEED).metabolites.mean(axis=0, dtype=np.complex128)
        return np.asarray(typical * (gaussian_decay(times, np.asarray(2 * widest)) - 1))
    factors = _AMOUNTS[nucleus.name].get(kind)
    if factors is None:
        raise ConfigError(f"there is no lesion '{kind}'; choose {', '.join(kinds(protocol))}")
    field_t = field_strength_t(protocol)
    signal = np.zeros(len(times), dtype=np.complex128)
    for name, fid in zip(factors, metabolite_basis(protocol, tuple(factors)).fids, strict=True):
        normal = np.mean([nucleus.concentration_mm(name, tissue) for tissue in ("gm", "wm")])
        decay = np.exp(-times / nucleus.t2_star_s(name, "gm", field_t))
        signal += (factors[name] - 1) * normal * relaxation_weight(protocol, name) * fid * decay
    return signal


def place(mask: np.ndarray, geometry: Geometry, count: int, *, radius_mm: float, seed: int = 0) -> list[np.ndarray]:
    """Return the fractions (x, y, z) of `count` balls in a mask that do not touch, at random deep places.

    Parameters
    ----------
    mask : (x, y, z) bool.
    geometry : of the voxels.
    count : how many.
    radius_mm : of each; its border fades over a voxel.
    seed : of the places.

    Raises
    ------
    DataError
        The mask has no room for them.
    """
    index = np.moveaxis(np.indices(mask.shape), 0, -1) * np.array(geometry.voxel_mm)
    inside, outside = index[mask], index[~mask]
    order = np.random.default_rng(seed).permutation(len(inside))
    chosen: list[np.ndarray] = []
    for clearance in (1.0, 0.5, 0.0):
        for candidate in inside[order]:
            if len(chosen) == count:
                break
            deep = not len(outside) or np.min(np.linalg.norm(outside - candidate, axis=-1)) > clearance * radius_mm
            apart = all(np.linalg.norm(candidate - other) > _APART * radius_mm for other in chosen)
            if deep and apart:
                chosen.append(candidate)
    if len(chosen) < count:
        raise DataError(
            f"the mask of {len(inside)} voxels has room for {len(chosen)} of {count} lesions of {radius_mm:g} mm "
            "radius; make them smaller"
        )
    fade = float(np.median(geometry.voxel_mm[:2]))
    found = []
    for centre in chosen:
        distance = np.linalg.norm(index - centre, axis=-1)
        found.append((np.clip((radius_mm - distance) / fade + 0.5, 0, 1) * mask).astype(np.float32))
    return found


def inject(
    kt: KtData,
    coil_maps: Array,
    b0_hz: np.ndarray,
    lesions: Sequence[InjectedLesion],
    unit: float | np.ndarray = 1.0,
    *,
    singlet_ppm: float | None = None,
) -> KtData:
    """Return the data with the lesions' signals added, each sample at its own place, time and field.

    Parameters
    ----------
    kt, coil_maps, b0_hz : data and calibration as the reconstruction takes them.
    lesions : what to add where.
    unit : factor from the ensemble's unit (one nucleus of 1 mM) to that of the image (`Subspace.scale` finds it from
        FIDs of the brain), a number or (x, y, z).
    singlet_ppm : as for `change`.

    Raises
    ------
    DataError
        A fraction or the unit does not fit the matrix of the image.
    """
    grid = tuple(int(n) for n in kt.protocol.geometry.matrix)
    wrong = [lesion.fraction.shape for lesion in lesions if lesion.fraction.shape != grid]
    if wrong or not lesions:
        raise DataError(f"give at least one lesion, with fractions {grid} as the image; got {wrong or 'none'}")
    amounts = np.stack([lesion.fraction for lesion in lesions], axis=-1) * _of_grid(unit, grid)[..., None]

    def rows(tau_s: float) -> np.ndarray:
        moved = replace(
            kt.protocol, acquisition_delay_s=kt.protocol.acquisition_delay_s + tau_s, n_times=int(kt.t.shape[1])
        ).of_echo(kt.echo)
        return np.stack([change(moved, lesion.kind, singlet_ppm=singlet_ppm) for lesion in lesions])

    basis: np.ndarray | RowsBetweenSamples = rows(0.0)
    if not (kt.grid is not None and kt.common_times):
        nodes = offset_nodes(*offset_range(kt), kt.protocol.dwell_s)
        basis = RowsBetweenSamples(nodes, np.stack([rows(float(tau)) for tau in nodes]))
    operator = encoding_operator(kt, coil_maps, b0_hz, basis, tolerance=_TOLERANCE)
    image = like(amounts * np.sqrt(np.prod(grid)), kt.samples, kt.samples.dtype)
    return kt.with_samples(kt.samples + operator(image))


def amplitude(fids: Array, signal: np.ndarray) -> np.ndarray:
    """Return how much of a signal (t,) FIDs (..., t) have, (...): Re <fids, signal> / <signal, signal>."""
    match = np.conj(signal) / np.sum(np.abs(signal) ** 2)
    return np.asarray(np.real(to_numpy(fids @ like(match, fids, fids.dtype))))


def contrast_recovery(
    found: np.ndarray, lesion: InjectedLesion, lesions: Sequence[InjectedLesion], mask: np.ndarray
) -> float:
    """Return mean inside minus mean outside of `found` over that of the lesion's fraction.

    Parameters
    ----------
    found : (x, y, z) what a result has more with the lesions than without, 1 where the fraction is: amplitudes of
        `amplitude` over the unit, or a map over the amount that was added.
    lesion : that is looked at.
    lesions : all that were put in; voxels of others are left out.
    mask : (x, y, z) bool: voxels that count.

    Raises
    ------
    DataError
        No voxel of the mask is of the lesion, or none is free of all.
    """
    inside = mask & (lesion.fraction > CORE)
    outside = mask & (np.sum([other.fraction for other in lesions], axis=0) < FREE)
    if not inside.any() or not outside.any():
        raise DataError(
            f"lesion '{lesion.kind}' has {int(inside.sum())} voxels in the mask, {int(outside.sum())} are free of "
            "lesions; both are needed for a contrast"
        )
    seen, true = (float(np.mean(x[inside]) - np.mean(x[outside])) for x in (found, lesion.fraction))
    return seen / true


def recoveries(
    with_lesions: Array,
    without: Array,
    lesions: Sequence[InjectedLesion],
    mask: np.ndarray,
    protocol: Protocol,
    unit: float | np.ndarray = 1.0,
    *,
    singlet_ppm: float | None = None,
) -> dict[str, float]:
    """Return the contrast recovery of each lesion in FIDs (x, y, z, t) of the same data with and without them."""
    difference = with_lesions - without
    result = {}
    for lesion in lesions:
        found = amplitude(difference, change(protocol, lesion.kind, singlet_ppm=singlet_ppm))
        result[lesion.kind] = contrast_recovery(found / _of_grid(unit, found.shape), lesion, lesions, mask)
    return result


def _of_grid(unit: float | np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(unit, dtype=float)
    if values.ndim and values.shape != grid:
        raise DataError(f"the unit {values.shape} must be a number or fit the image {grid}")
    return np.broadcast_to(values, grid)
