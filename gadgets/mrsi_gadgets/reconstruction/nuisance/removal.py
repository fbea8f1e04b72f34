"""Removal of water and lipids from (k,t) data: the methods, how they are measured, and the choice between them.

Every method estimates images of water and lipids and subtracts their samples, d - A(water) - A(lipids); noise and all
other signal stay as they were measured. `auto` tries the methods and takes the one that leaves least in the bands of
water and lipids and touches metabolites least, all in units of the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, one_blas_thread, to_numpy
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.calibrated_centre import missing_share
from mrsi_gadgets.reconstruction.fourier import field_phase, reconstruct_fourier
from mrsi_gadgets.reconstruction.nuisance import modulation as sidebands
from mrsi_gadgets.reconstruction.nuisance.hsvd import principal_rows
from mrsi_gadgets.reconstruction.nuisance.joint import parts_of_all_data
from mrsi_gadgets.reconstruction.nuisance.lipids import (
    BAND_PPM,
    LipidSpace,
    band_amplitude,
    hamming,
    leak_of,
    lipid_space,
    lipid_support,
    lipids_at_their_source,
    lipids_by_penalty,
)
from mrsi_gadgets.reconstruction.nuisance.reference import match_of, quadratics, water_by_reference
from mrsi_gadgets.reconstruction.nuisance.water import (
    MOST_CLASSES,
    decay_classes,
    metabolite_covariance,
    metabolite_strength,
    separate_water,
    water_by_hsvd,
)

METHODS = ("auto", "hsvd", "union_of_subspaces", "l2")
WATER_PPM = (4.5, 4.8)
LIPID_PPM = (0.9, 1.6)
METABOLITE_PPM = ((1.9, 2.15), (2.9, 3.35))
"""Where NAA, creatine and choline are."""
_STRENGTH_PPM = ((4.3, 5.0), (0.8, 1.7), (1.9, 3.4))
"""Bands of water, lipids and the metabolites they are compared with."""
_WEAK_WATER, _WEAK_LIPIDS = 12.0, 0.8
UNSUPPRESSED = 0.2
"""Water counts as unsuppressed from this part of the reference's amplitude on."""
_UNSUPPRESSED_OVER_NAA = 500.0
"""... and without a reference from this factor over the NAA CH3 signal on."""
_NAA_SIGNAL = 27.0
"""NAA CH3 signal in the ensemble's unit (9 mM, three protons)."""
_WATER_OVER_NAA = 3000.0
"""Unsuppressed water over the NAA CH3 signal, in order of magnitude."""
_REFERENCE_ROUNDS = 3
"""How often the strength of metabolites beside the reference's water is found."""
_LEAST_OF_EXPECTED = 0.2
"""Metabolites weaker than this part of what water lets expect, in the difference to the reference, are in it too."""
_WATER_ROUNDS = 3
"""How often the water's covariance is learned, first from HSVD and then from its own result."""
_SIDEBANDS = 1.6
"""There are sidebands from this root mean square downfield of water on, over the noise."""
_ALIASED = 0.1
"""Part of k-space, within the ellipse, from which on it is missed."""
_LIPIDS_INSIDE = 1e-2
"""Energy of lipids in the mask, which holds a part of the scalp, over that outside of it."""
_LIPID_ROUNDS = 2
"""How often lipids are looked for, each time beside better water."""
_STRENGTH_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_FIELD_ERROR = 0.05
"""Largest error of the field in the subtracted samples, over the noise."""
_ROW_ERROR = 0.01
"""Energy of a row of water that is left out, over that of the noise, in the mean over voxels."""
_PROBE_SEED = 0
_PASSES = 2
"""Passes over data whose Fourier image is not their exact inverse."""


@dataclass(frozen=True)
class Remains:
    """What is left in the brain after a removal, as root mean square of the unitary spectrum over the noise's SD.

    1 is noise alone. Medians over the voxels of the brain.
    """

    water: float
    """In the band of water."""
    lipids: float
    """In the band of lipids; macromolecules and lactate are in it too."""
    water_expected: float
    """What noise and the metabolites and macromolecules of the model have in the band of water."""
    lipids_expected: float
    """The same in the band of lipids."""

    @property
    def excess(self) -> float:
        """Energy that is left too much, or that was taken from metabolites, over that of the noise."""
        # noise that went with the water is no loss: nothing is measured there
        more = max(self.water**2 - self.water_expected**2, 0.0)
        less = max(self.water_expected**2 - 1 - self.water**2, 0.0)
        return more + less + abs(self.lipids**2 - self.lipids_expected**2)


@dataclass(frozen=True, eq=False)
class Removal:
    """Data without nuisance, and what is known about how well that went."""

    kt: KtData
    method: str
    """hsvd, union_of_subspaces, l2, or none where nothing had to be removed."""
    before: Remains
    after: Remains
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _Scan:
    """What all methods share."""

    kt: KtData
    coil_maps: Array
    b0_hz: np.ndarray
    mask: np.ndarray
    noise_sd: float
    model: Subspace
    water: np.ndarray | None
    fids: Array
    """(x, y, z, t), B0 taken out."""
    sd: np.ndarray
    """(x, y, z)."""
    support: np.ndarray
    """(x, y, z) bool: where lipids come from."""
    reference: SpectralImage | None = None
    """FIDs of the water reference, where it was measured as these data were; B0 taken out."""

    @property
    def brain(self) -> np.ndarray:
        """Voxels of the mask that are not scalp."""
        brain = self.mask & ~self.support
        return brain if brain.any() else self.mask

    @property
    def typical_sd(self) -> float:
        """Noise of a typical voxel of the mask."""
        return float(np.median(self.sd[self.mask]))

    @property
    def hz_per_ppm(self) -> float:
        """Hertz per ppm."""
        return self.kt.protocol.transmit_frequency_hz * 1e-6

    def image(self, samples: Array) -> Array:
        """Return the Fourier image of other samples."""
        known = (self.coil_maps, self.b0_hz, self.mask, self.noise_sd)
        return reconstruct_fourier(self.kt.with_samples(samples), *known).coefficients

    def with_samples(self, samples: Array) -> _Scan:
        """Return the scan with other samples."""
        return replace(self, kt=self.kt.with_samples(samples), fids=self.image(samples))

    def with_field(self, fids: Array) -> Array:
        """Return FIDs with B0 in them."""
        return fids * field_phase(fids, self.b0_hz, self.kt.protocol.times_s[: int(fids.shape[-1])])

    def samples_of(self, coefficients: Array, rows: np.ndarray, *, field_in_rows: bool = False) -> Array:
        """Return the samples of an image: coefficients (x, y, z, row) on rows (row, t)."""
        b0 = np.zeros_like(self.b0_hz) if field_in_rows else self.b0_hz
        # the operator's expansion of the field errs relative to the signal, which may be thousands of times the noise
        xp = namespace(coefficients)
        size = float(xp.max(xp.sum(xp.real(coefficients) ** 2 + xp.imag(coefficients) ** 2, axis=-1))) ** 0.5
        noise = self.typical_sd * float(np.sqrt(2 * rows.shape[1]))
        tolerance = float(np.clip(_FIELD_ERROR * noise / max(size, noise), 1e-7, 1e-3))
        operator = encoding_operator(self.kt, self.coil_maps, b0, rows, tolerance=tolerance)
        return operator(coefficients) * float(np.sqrt(self.mask.size))


@dataclass(frozen=True)
class NuisanceStrength:
    """How strong water and lipids are against the metabolites: medians over the mask of ratios of band amplitudes."""

    water: float
    lipids: float

    @property
    def weak(self) -> bool:
        """Whether the learned basis and the fit take them as they are.

        On numerical brains maps lose nothing by residual water up to 20 times and scalp lipids up to 30 times the NAA
        CH3 signal (ratios up to 9 and 0.75); at 100 and 100 (16 and 0.85) they do (docs/explanation/nuisance.md).
        """
        return self.water < _WEAK_WATER and self.lipids < _WEAK_LIPIDS


def nuisance_strength(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, mask: np.ndarray, noise_sd: float = 1.0
) -> NuisanceStrength:
    """Return the strength of water and lipids in metabolite data of any encoding, by one Fourier image of them."""
    if not np.any(mask):
        return NuisanceStrength(0.0, 0.0)
    image = reconstruct_fourier(kt, coil_maps, b0_hz, mask, noise_sd).coefficients
    n = int(image.shape[-1])
    ppm = kt.protocol.ppm_axis(n)
    # without a window the tails of water would be everywhere
    window = like((0.5 * (1 + np.cos(np.pi * np.arange(n) / n))).astype(np.float32), image)
    xp = namespace(image)
    inside = like(np.flatnonzero(np.asarray(mask).ravel()), image)
    fids = xp.take(xp.reshape(image, (-1, n)), inside, axis=0) * window
    water, lipids, others = (band_amplitude(fids, ppm, band) for band in _STRENGTH_PPM)
    others = np.maximum(others, np.finfo(np.float32).tiny)
    return NuisanceStrength(float(np.median(water / others)), float(np.median(lipids / others)))


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
        scan = _scan(kt, coil_maps, b0_hz, mask, noise_sd, model, water)
        if reference is not None and tuple(reference.coefficients.shape) == tuple(scan.fids.shape):
            scan = replace(scan, reference=reference)
        return _removed(scan, method, progress)


def _removed(scan: _Scan, method: str, progress: Callable[[str], None] | None) -> Removal:
    """Try what may be tried and take the best."""
    kt = scan.kt
    before = _remains(scan, scan.fids)
    if not scan.mask.any():
        return Removal(kt, "none", before, before, {"reason": "no voxel of the mask"})
    candidates: tuple[str, ...] = ("hsvd", "union_of_subspaces", "l2") if method == "auto" else (method,)
    if method == "auto" and not scan.support.any():
        candidates = ("hsvd", "union_of_subspaces")
    probe = _probe(scan) if method == "auto" else None
    tried: dict[str, tuple[KtData, Remains, dict[str, Any]]] = {}
    cost: dict[str, float] = {}
    for name in candidates:
        cleaned, notes = _cleaned(scan, name)
        tried[name] = cleaned, _remains(scan, scan.image(cleaned.samples)), notes
        if probe is not None:
            # the same with metabolites added: what comes out besides them is what the method does to metabolites
            both, _ = _cleaned(scan.with_samples(kt.samples + probe), name)
            notes["touched"] = round(_level(scan, scan.image(both.samples - cleaned.samples - probe)), 4)
            cost[name] = tried[name][1].excess + notes["touched"] ** 2
        if progress is not None:
            after = tried[name][1]
            progress(
                f"{name}: water {before.water:.1f} to {after.water:.2f} and lipids {before.lipids:.1f} to "
                f"{after.lipids:.2f} times the noise in the brain"
            )
    if probe is not None:
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


def _probe(scan: _Scan) -> Array:
    """Return the samples of metabolites drawn from the model, of the strength of the scan's own, in the brain."""
    rough = namespace(scan.fids).reshape(scan.fids, (-1, int(scan.fids.shape[-1])))
    strength = _strength(scan, rough - _hsvd(scan, rough))
    rank = scan.model.metabolite_rank
    values, vectors = np.linalg.eigh(scan.model.metabolite_covariance[:rank, :rank])
    rng = np.random.default_rng(_PROBE_SEED)
    normal = rng.standard_normal((*scan.mask.shape, rank, 2)) @ np.array([1, 1j]) * np.sqrt(0.5)
    drawn = normal @ (vectors * np.sqrt(np.maximum(values, 0) * strength)).T * scan.brain[..., None]
    return scan.samples_of(like(drawn.astype(np.complex64), scan.fids), scan.model.basis[:rank])


def _level(scan: _Scan, image: Array) -> float:
    """Return the root mean square over the brain in the bands of metabolites, over that of the noise."""
    ppm = scan.kt.protocol.ppm_axis(int(image.shape[-1]))
    inside = scan.brain
    levels = [band_amplitude(image, ppm, band)[inside] / (np.sqrt(2) * scan.sd[inside]) for band in METABOLITE_PPM]
    return float(np.sqrt(np.mean(np.square(levels))))


def _rounded(when: str, what: Remains) -> dict[str, float]:
    return {f"{when}_{name}": round(float(getattr(what, name)), 3) for name in ("water", "lipids")}


def _scan(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, mask: np.ndarray, noise_sd: float, model: Subspace,
    water: np.ndarray | None,
) -> _Scan:  # fmt: skip
    image = reconstruct_fourier(kt, coil_maps, b0_hz, mask, noise_sd)
    windowed = reconstruct_fourier(hamming(kt), coil_maps, b0_hz, mask, noise_sd).coefficients
    ppm = kt.protocol.ppm_axis(int(kt.samples.shape[2]))
    inside = np.asarray(mask, dtype=bool)
    # tails of strong water would fill the lipid band
    flat = namespace(windowed).reshape(windowed, (-1, int(windowed.shape[-1])))
    hz_per_ppm = kt.protocol.transmit_frequency_hz * 1e-6
    flat = flat - water_by_hsvd(flat, kt.protocol.dwell_s, hz_per_ppm, image.noise_sd.ravel())
    support = lipid_support(band_amplitude(flat, ppm, BAND_PPM).reshape(inside.shape), inside)
    return _Scan(
        kt, coil_maps, np.asarray(b0_hz, dtype=float), inside, noise_sd, model, water, image.coefficients,
        image.noise_sd, support,
    )  # fmt: skip


def _cleaned(scan: _Scan, method: str) -> tuple[KtData, dict[str, Any]]:
    """Return the data without what the method finds, and notes for the provenance."""
    if method == "union_of_subspaces" and _is_aliased(scan):
        return _cleaned_jointly(scan)
    kt, notes = _pass(scan, method)
    exact = kt.grid is not None and kt.fully_sampled and kt.common_times
    for _ in range(0 if exact else _PASSES - 1):
        kt, _ = _pass(scan.with_samples(kt.samples), method)
    return kt, notes


def _is_aliased(scan: _Scan) -> bool:
    """Tell whether suppressed water and lipids fold onto other voxels of a Cartesian image."""
    if scan.kt.grid is None or missing_share(scan.kt) < _ALIASED or scan.model.rank == scan.model.metabolite_rank:
        return False
    flat = namespace(scan.fids).reshape(scan.fids, (-1, int(scan.fids.shape[-1])))
    return not _unsuppressed(scan, flat, _hsvd(scan, flat))


def _cleaned_jointly(scan: _Scan) -> tuple[KtData, dict[str, Any]]:
    """Return incomplete Cartesian data without water and lipids, estimated beside metabolites from all samples."""
    kt, model = scan.kt, scan.model
    xp = namespace(scan.fids)
    flat = xp.reshape(scan.fids, (-1, int(scan.fids.shape[-1])))
    rough = _hsvd(scan, flat)
    # an image of incomplete data holds so much of each voxel's energy where it belongs
    share = float(np.mean(kt.count > 0))
    rank = model.metabolite_rank
    metabolites = np.zeros_like(model.metabolite_covariance)
    metabolites[:rank, :rank] = model.metabolite_covariance[:rank, :rank]
    metabolites = metabolites * _strength(scan, flat - rough) / share
    inside = scan.mask
    power = to_numpy(xp.sum(xp.abs(rough) ** 2, axis=1)).astype(float).reshape(inside.shape) / share
    rest = flat - rough
    ppm = kt.protocol.ppm_axis(int(flat.shape[1]))
    water = model.water_covariance * float(np.mean(power[inside]))
    band = band_amplitude(rest, ppm, BAND_PPM).reshape(inside.shape) ** 2
    lipid = model.lipid_covariance * float(np.percentile(band, 95)) * _band_points(ppm) / share
    groups = [
        (inside, np.stack([metabolites, water, _LIPIDS_INSIDE * lipid])),
        (~inside, np.stack([metabolites, water, lipid])),
    ]
    parts = parts_of_all_data(kt, scan.coil_maps, scan.b0_hz, model.basis, groups, scan.noise_sd)
    nuisance = scan.samples_of(parts[1] + parts[2], model.basis)
    notes = {"water": "suppressed", "solved": "all parts at once"}
    return kt.with_samples(kt.samples - nuisance), notes


def _band_points(ppm: np.ndarray) -> int:
    return int(np.sum((ppm > BAND_PPM[0]) & (ppm < BAND_PPM[1])))


def _pass(scan: _Scan, method: str) -> tuple[KtData, dict[str, Any]]:
    shape = tuple(int(n) for n in scan.fids.shape)
    xp = namespace(scan.fids)
    flat = xp.reshape(scan.fids, (-1, shape[-1]))
    rough = _hsvd(scan, flat)
    notes: dict[str, Any] = {}
    place = sidebands.places(shape[:3])
    modulation: np.ndarray | None = None
    plain = flat
    unsuppressed = _unsuppressed(scan, flat, rough)
    notes["water"] = "not suppressed" if unsuppressed else "suppressed"
    if unsuppressed:
        measured = _by_reference(scan, flat)
        if measured is not None:
            notes["water"] = "not suppressed, taken by the water reference"
            return _pass_by_reference(scan, measured, method, notes)
        modulation = _modulation(scan, flat, place)
    if modulation is not None:
        plain = sidebands.without_modulation(flat, place, modulation)
        rough = _hsvd(scan, plain)
        notes["largest_modulation_rad"] = round(float(np.abs(place @ modulation).max()), 5)
    if method == "hsvd":
        found = rough if modulation is None else sidebands.with_modulation(rough, place, modulation)
        return _without(scan, scan.kt, _on_rows(found, scan, shape)), notes
    # with sidebands one class: what is left of them would be learned as the shape of a small class
    classes = MOST_CLASSES if modulation is None else 1
    known, brain = scan.mask.ravel(), scan.brain.ravel()
    if unsuppressed:
        # lipids are looked for beside what is left of water, which HSVD leaves above the noise
        rough = _separated(scan, plain, rough, known, brain, rounds=1, classes=classes)
    first = rough if modulation is None else sidebands.with_modulation(rough, place, modulation)
    if unsuppressed:
        scan = _without_false_lipids(scan, xp.reshape(first, shape))
    original, kt = flat, scan.kt
    # the second time lipids are looked for beside the better water
    for _ in range(_LIPID_ROUNDS):
        lipids, lipid_notes = _lipids(scan, xp.reshape(original - first, shape), method)
        notes |= lipid_notes
        if lipids is not None:
            kt = scan.kt.with_samples(scan.kt.samples - lipids)
            flat = xp.reshape(scan.image(kt.samples), (-1, shape[-1]))
            plain = flat if modulation is None else sidebands.without_modulation(flat, place, modulation)
        rough = _separated(scan, plain, rough, known, brain, rounds=_WATER_ROUNDS, classes=classes)
        first = rough if modulation is None else sidebands.with_modulation(rough, place, modulation)
        if lipids is None:
            break
    return _without(scan, kt, _on_rows(first, scan, shape)), notes


def _by_reference(scan: _Scan, flat: Array) -> Array | None:
    """Return the water of FIDs (voxel, t) by the water reference; None where there is none or it cannot be used.

    A reference that shows metabolites as strong as the data's would take them with the water: the difference of the two
    then has none.
    """
    if scan.reference is None:
        return None
    shape = tuple(int(n) for n in flat.shape)
    reference = like(
        namespace(scan.reference.coefficients).reshape(scan.reference.coefficients, shape), flat, flat.dtype
    )
    times = scan.kt.protocol.times_s[: shape[1]]
    reference_sd = float(np.median(scan.reference.noise_sd[scan.mask]))
    brain = scan.brain.ravel()
    place = quadratics(scan.mask.shape)
    xp = namespace(flat)
    chosen = like(np.flatnonzero(brain), flat)
    both = float(np.hypot(scan.typical_sd, reference_sd))
    strength = _strength_of_naa(scan, reference)
    water = flat
    for number in range(_REFERENCE_ROUNDS):
        metabolites = strength * metabolite_covariance(scan.model)
        match = match_of(flat, reference, place, brain, times, metabolites, scan.typical_sd)
        if number == 0:
            plain = reference * like(match.factor(times), flat, flat.dtype)
            found = metabolite_strength(xp.take(flat - plain, chosen, axis=0), scan.model, both)
            if found < _LEAST_OF_EXPECTED**2 * strength:
                return None
            strength = found
            continue
        water = water_by_reference(flat, reference, match, brain, times, metabolites, scan.typical_sd, reference_sd)
        strength = metabolite_strength(xp.take(flat - water, chosen, axis=0), scan.model, scan.typical_sd)
    return water


def _strength_of_naa(scan: _Scan, reference: Array) -> float:
    """Return the strength of metabolites that the water's amplitude lets expect."""
    start = np.abs(to_numpy(reference[:, 0])).reshape(scan.mask.shape)[scan.brain]
    return float((np.median(start) / (_WATER_OVER_NAA * _NAA_SIGNAL)) ** 2)


def _pass_by_reference(scan: _Scan, water: Array, method: str, notes: dict[str, Any]) -> tuple[KtData, dict[str, Any]]:
    shape = tuple(int(n) for n in scan.fids.shape)
    if method == "hsvd":
        return _without(scan, scan.kt, _on_rows(water, scan, shape)), notes
    xp = namespace(scan.fids)
    scan = _without_false_lipids(scan, xp.reshape(water, shape))
    original, kt = scan.fids, scan.kt
    for _ in range(_LIPID_ROUNDS):
        lipids, lipid_notes = _lipids(scan, original - xp.reshape(water, shape), method)
        notes |= lipid_notes
        if lipids is None:
            break
        kt = scan.kt.with_samples(scan.kt.samples - lipids)
        better = _by_reference(scan, xp.reshape(scan.image(kt.samples), (-1, shape[-1])))
        water = water if better is None else better
    return _without(scan, kt, _on_rows(water, scan, shape)), notes


def _without_false_lipids(scan: _Scan, water: Array) -> _Scan:
    """Return the scan with the support of lipids as it is seen without unsuppressed water.

    Where no more is left in the brain than metabolites explain there is none: what remains of the scalp's water would
    be taken for lipids.
    """
    after = _remains(scan, scan.fids - water)
    if after.lipids**2 - after.lipids_expected**2 < 1:
        return replace(scan, support=np.zeros_like(scan.support))
    dry = scan.kt.with_samples(scan.kt.samples - _samples_of_image(scan, water))
    windowed = scan.image(hamming(dry).samples)
    ppm = scan.kt.protocol.ppm_axis(int(windowed.shape[-1]))
    return replace(scan, support=lipid_support(band_amplitude(windowed, ppm, BAND_PPM), scan.mask))


def _hsvd(scan: _Scan, flat: Array) -> Array:
    return water_by_hsvd(flat, scan.kt.protocol.dwell_s, scan.hz_per_ppm, scan.sd.ravel())


def _modulation(scan: _Scan, flat: Array, place: np.ndarray) -> np.ndarray | None:
    """Return the modulation (function, t) that gives water its sidebands; None where there are none."""
    xp = namespace(flat)
    inside = scan.brain.ravel()
    protocol = scan.kt.protocol

    def water(fids: Array) -> Array:
        rough = water_by_hsvd(fids, protocol.dwell_s, scan.hz_per_ppm, scan.sd.ravel()[inside])
        everywhere = inside[inside]
        # one class: small ones would learn sidebands as shapes of water
        return _separated(scan, fids, rough, everywhere, everywhere, rounds=1, classes=1)

    chosen = xp.take(flat, like(np.flatnonzero(inside), flat), axis=0)
    ppm = protocol.ppm_axis(int(flat.shape[1]))
    centre = ppm[len(ppm) // 2]
    downfield = (centre + 2 * sidebands.LEAST_PPM, centre + 0.9 * (ppm[-1] - centre))
    left = band_amplitude(chosen - water(chosen), ppm, downfield) / (np.sqrt(2) * scan.sd.ravel()[inside])
    if float(np.median(left)) < _SIDEBANDS:
        return None
    return sidebands.shared_modulation(chosen, place[inside], protocol.dwell_s, scan.hz_per_ppm, water)


def _separated(
    scan: _Scan, fids: Array, estimate: Array, known: np.ndarray, brain: np.ndarray, *, rounds: int,
    classes: int = MOST_CLASSES,
) -> Array:  # fmt: skip
    """Return the water of FIDs (voxel, t) by the covariance of each class of decay.

    Covariances are learned from the `known` voxels, the strength of metabolites from those of `brain`.
    """
    xp = namespace(fids)
    chosen = like(np.flatnonzero(brain), fids)
    labels = decay_classes(estimate, scan.kt.protocol.times_s[: int(fids.shape[1])], known, most=classes)
    members = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    back = like(np.argsort(np.concatenate(members)), fids)
    for _ in range(rounds):
        strength = metabolite_strength(xp.take(fids - estimate, chosen, axis=0), scan.model, scan.typical_sd)
        metabolites = strength * metabolite_covariance(scan.model)
        parts = []
        for member in members:
            index = like(member, fids)
            own, first = xp.take(fids, index, axis=0), xp.take(estimate, index, axis=0)
            parts.append(separate_water(own, first, known[member], metabolites, scan.typical_sd))
        estimate = xp.take(xp.concat(parts, axis=0), back, axis=0)
    return estimate


def _strength(scan: _Scan, flat: Array) -> float:
    inside = namespace(flat).take(flat, like(np.flatnonzero(scan.brain.ravel()), flat), axis=0)
    return metabolite_strength(inside, scan.model, scan.typical_sd)


def _unsuppressed(scan: _Scan, flat: Array, water: Array) -> bool:
    """Tell whether water is there at its full strength.

    Unsuppressed water has the phase of the reference (that of the coil maps, so that it is real and positive here).
    What suppression left may be inverted, and as large as a reference that was excited less.
    """
    inside = scan.brain
    first = to_numpy(water[:, 0]).reshape(inside.shape)[inside]
    start = np.abs(first)
    if scan.water is not None:
        in_phase = first.real / np.maximum(scan.water[inside], np.finfo(np.float32).tiny)
        return bool(np.median(in_phase) > UNSUPPRESSED)
    naa = _NAA_SIGNAL * float(np.sqrt(_strength(scan, flat - water)))
    return bool(np.median(start) > _UNSUPPRESSED_OVER_NAA * naa)


def _lipids(scan: _Scan, fids: Array, method: str) -> tuple[Array | None, dict[str, Any]]:
    """Return the samples of lipids, None where there are none, by the FIDs without water (x, y, z, t)."""
    if not scan.support.any():
        return None, {"lipids": "none found"}
    turned = scan.with_field(fids)
    space = lipid_space(turned, scan.support, scan.typical_sd)
    brain = scan.mask & ~scan.support
    notes: dict[str, Any] = {"lipid_rows": len(space.rows)}
    if method == "l2":
        leak = leak_of(turned, space, scan.brain)
        coefficients = lipids_by_penalty(turned, space, leak, scan.typical_sd)
        coefficients = coefficients * like(scan.mask[..., None].astype(np.float32), coefficients, coefficients.dtype)
        return scan.samples_of(coefficients, space.rows, field_in_rows=True), notes | {"lipid_leak": round(leak, 6)}
    without_water = scan.kt.samples - _samples_of_image(scan, scan.fids - fids)
    samples, residual = lipids_at_their_source(
        scan.kt.with_samples(without_water), space, brain, _energy_in(scan, space, fids), scan.noise_sd
    )
    return samples, notes | {"lipid_residual": round(residual, 6)}


def _energy_in(scan: _Scan, space: LipidSpace, fids: Array) -> np.ndarray:
    """Return the mean energy of a voxel's metabolites in the rows of lipids, whose field is their own."""
    flat = namespace(fids).reshape(fids, (-1, int(fids.shape[-1])))
    strength = _strength(scan, flat)
    rank = scan.model.metabolite_rank
    covariance = scan.model.metabolite_covariance[:rank, :rank]
    rows = scan.model.basis[:rank].astype(np.complex128)
    times = scan.kt.protocol.times_s[: rows.shape[1]]
    energy = np.zeros(len(space.rows))
    for shift in np.quantile(scan.b0_hz[scan.brain], _STRENGTH_QUANTILES):
        part = (rows * np.exp(2j * np.pi * shift * times)) @ space.rows.conj().T
        energy += np.einsum("ij,ir,jr->r", covariance, part, part.conj()).real
    return np.maximum(strength * energy / len(_STRENGTH_QUANTILES), 0.0)


def _samples_of_image(scan: _Scan, image: Array) -> Array:
    shape = tuple(int(n) for n in image.shape)
    flat = namespace(image).reshape(image, (-1, shape[-1]))
    return scan.samples_of(*_on_rows(flat, scan, shape))


def _on_rows(flat: Array, scan: _Scan, shape: tuple[int, ...]) -> tuple[Array, np.ndarray]:
    """Return FIDs (voxel, t) as coefficients (x, y, z, row) on as few rows as the noise allows."""
    power, rows = principal_rows(flat, shape[-1])
    rows = rows[: _rows_needed(power, scan, shape)].astype(np.complex64)
    coefficients = flat @ like(rows.conj().T, flat, flat.dtype)
    return namespace(flat).reshape(coefficients, (*shape[:3], len(rows))), rows


def _rows_needed(power: np.ndarray, scan: _Scan, shape: tuple[int, ...]) -> int:
    level = _ROW_ERROR * 2 * scan.typical_sd**2 * float(np.prod(shape[:3]))
    return max(1, int(np.sum(power > level)))


def _without(scan: _Scan, kt: KtData, water: tuple[Array, np.ndarray]) -> KtData:
    return kt.with_samples(kt.samples - scan.samples_of(*water))


def _remains(scan: _Scan, fids: Array) -> Remains:
    ppm = scan.kt.protocol.ppm_axis(int(fids.shape[-1]))
    brain = scan.brain
    if not brain.any():
        return Remains(0.0, 0.0, 1.0, 1.0)
    sd = np.sqrt(2) * scan.sd[brain]

    def level(image: Array, band: tuple[float, float]) -> float:
        return float(np.median(band_amplitude(image, ppm, band)[brain] / sd))

    flat = namespace(fids).reshape(fids, (-1, int(fids.shape[-1])))
    wanted = _strength(scan, flat) * metabolite_covariance(scan.model)

    def expected(band: tuple[float, float]) -> float:
        kernel = _kernel(ppm, band)
        energy = float(np.einsum("ti,ts,si->", kernel, wanted, kernel.conj(), optimize=True).real)
        return float(np.sqrt(1 + max(energy, 0.0) / (2 * scan.typical_sd**2)))

    return Remains(level(fids, WATER_PPM), level(fids, LIPID_PPM), expected(WATER_PPM), expected(LIPID_PPM))


def _kernel(ppm: np.ndarray, band_ppm: tuple[float, float]) -> np.ndarray:
    n = len(ppm)
    inside = np.flatnonzero((np.fft.ifftshift(ppm) > band_ppm[0]) & (np.fft.ifftshift(ppm) < band_ppm[1]))
    return np.asarray(np.exp(-2j * np.pi * np.outer(np.arange(n), inside) / n) / np.sqrt(n * max(len(inside), 1)))
