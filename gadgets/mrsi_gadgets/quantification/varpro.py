"""Linear-combination fit of every voxel's FID by variable projection, all voxels at once (eq. 19).

Non-negative amplitudes, one phase, one shift and one lineshape (Lorentz and Gauss) per voxel, macromolecules with
a prior, nuisance bands with an energy estimated per voxel. All that does not depend on the data is made by
`prepare_varpro` before the scan ends; `fit_varpro` then needs a few matrix products per voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.arrays import Array, is_numpy, like, n_threads, namespace, to_numpy
from mrsi_gadgets.data import Maps, Protocol, SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.quantification.assembly import FitResult, assemble_maps
from mrsi_gadgets.quantification.coordinates import Coordinates, coefficient_coordinates, fid_coordinates
from mrsi_gadgets.quantification.design import GROUPS, PROTON_NUISANCE, Design, NuisanceBand, build_design
from mrsi_gadgets.quantification.lineshape_search import (
    LineshapeExpansion,
    LineshapeGrid,
    LineshapeRange,
    build_grid,
    expand_lineshapes,
)
from mrsi_gadgets.quantification.passes import FirstPass, final_pass, first_pass, learn_shape_prior
from mrsi_gadgets.quantification.refinement import ShapedDictionary

if TYPE_CHECKING:
    from mrsi_gadgets.physics.basis import BasisSet

_CHUNK = 96
_NOISE_FLOOR = 1e-4
_PROTON_MHZ_PER_T = 42.577


@dataclass(frozen=True, eq=False)
class VarproModel:
    """Everything of the fit that is known before the data."""

    protocol: Protocol
    design: Design
    expansion: LineshapeExpansion
    allowed: LineshapeRange
    nuisance: tuple[NuisanceBand, ...]
    prepared: PreparedFit
    """For full FIDs, or for the temporal basis that was given."""

    def for_basis(self, basis: np.ndarray | None) -> PreparedFit:
        """Return the dictionaries for images on `basis` (rank, t), or of full FIDs (None); made anew if they differ."""
        known = self.prepared.basis
        if basis is None and known is None:
            return self.prepared
        if basis is not None and known is not None and known.shape == basis.shape and np.array_equal(known, basis):
            return self.prepared
        return _prepare_fit(self.protocol, self.design, self.expansion, self.allowed, self.nuisance, basis)


@dataclass(frozen=True, eq=False)
class PreparedFit:
    """Dictionaries for one kind of image."""

    design: Design
    coordinates: Coordinates
    dictionary: ShapedDictionary
    grid: LineshapeGrid
    templates: np.ndarray
    """(template, column): amplitudes that make up each composite spectrum of the first search."""
    basis: np.ndarray | None
    """(rank, t) temporal basis of the images; None: full FIDs."""


def prepare_varpro(
    protocol: Protocol,
    model_basis: np.ndarray | None,
    basis: BasisSet,
    macromolecules: BasisSet | None,
    *,
    decay_rates: Mapping[str, float] | None = None,
    typical: Mapping[str, float] | None = None,
    nuisance: Sequence[NuisanceBand] = PROTON_NUISANCE,
    lineshapes: LineshapeRange | None = None,
    macromolecule_freedom: float = 0.25,
    metabolite_freedom: float = 0.5,
) -> VarproModel:
    """Make the dictionaries of `fit_varpro`.

    Parameters
    ----------
    protocol
        Times and frequency of the FIDs.
    model_basis
        (rank, t) temporal basis of images given as coefficients, where it is known before the scan; None for images of
        full FIDs. Dictionaries for another basis are made when the image comes (tens of milliseconds).
    basis
        Metabolites, one unit of amplitude each, free of decay.
    macromolecules
        Macromolecule components, or None.
    decay_rates
        Metabolite -> 1/T2* [1/s]; None: mean values of the brain at this field (`physics.brain_values`).
    typical
        Molecule -> amplitude in normal brain, for the first search, the macromolecule profile and the priors; None:
        values of `physics.brain_values`.
    nuisance
        Bands that absorb water, lipids and baseline.
    lineshapes
        Allowed shifts and widths.
    macromolecule_freedom
        SD of each macromolecule's amplitude about its share of the profile, as a fraction of that share.
    metabolite_freedom
        SD of weak metabolites about their usual ratio to the others (`design.build_design`); inf: no prior.

    Returns
    -------
    VarproModel
        Ready for any number of images of this protocol.

    Raises
    ------
    DataError
        A basis does not fit the protocol.
    """
    allowed = lineshapes or LineshapeRange()
    known_rates, known_amplitudes = brain_defaults(protocol, [*basis.names, *(macromolecules or basis).names])
    design = build_design(
        protocol,
        basis,
        macromolecules,
        decay_rates=known_rates if decay_rates is None else decay_rates,
        typical=known_amplitudes if typical is None else typical,
        macromolecule_freedom=macromolecule_freedom,
        metabolite_freedom=metabolite_freedom,
    )
    expansion = expand_lineshapes(protocol.times_s, allowed)
    model_basis = None if model_basis is None else to_numpy(model_basis)
    bands = tuple(nuisance)
    prepared = _prepare_fit(protocol, design, expansion, allowed, bands, model_basis)
    return VarproModel(protocol, design, expansion, allowed, bands, prepared)


def _prepare_fit(
    protocol: Protocol,
    design: Design,
    expansion: LineshapeExpansion,
    allowed: LineshapeRange,
    nuisance: tuple[NuisanceBand, ...],
    basis: np.ndarray | None,
) -> PreparedFit:
    """Bring the design into the coordinates of one kind of image."""
    shaped = (expansion.functions.T[:, :, None] * design.columns[:, None, :]).reshape(protocol.n_times, -1)
    if basis is None:
        weight = np.tile(np.where(design.typical > 0, design.typical, design.prior_sd), expansion.rank)
        coordinates = fid_coordinates(protocol, nuisance, shaped, weight)
    else:
        coordinates = coefficient_coordinates(protocol, nuisance, basis)
    products = coordinates.columns(shaped).reshape(-1, expansion.rank, len(design.names)).transpose(1, 0, 2)
    dictionary = ShapedDictionary(
        expansion, allowed, np.ascontiguousarray(products, dtype=np.complex64), design.bounded
    )
    templates = _templates(design)
    composites = products @ templates.T
    composites[:, : coordinates.n_skipped] = 0
    energy = np.linalg.norm(composites, axis=(0, 1))
    grid = build_grid(composites, expansion, allowed, energy / energy.sum())
    return PreparedFit(design, coordinates, dictionary, grid, templates, basis)


def fit_varpro(
    image: SpectralImage,
    model: VarproModel,
    *,
    water: np.ndarray | None = None,
    progress: Callable[[float], None] | None = None,
) -> Maps:
    """Fit every voxel of the image's mask.

    Parameters
    ----------
    image
        The FIDs or their coefficients, on any device.
    model
        What `prepare_varpro` made for this protocol.
    water
        (x, y, z) amplitude of water at t = 0 in the image's unit; None: no ``NAME_per_water`` maps.
    progress
        Called with the fraction that is done.

    Returns
    -------
    Maps
        Single molecules, sums, ratios, and maps of the fit itself, with standard deviations.

    Raises
    ------
    DataError
        The model was made for another protocol, the image holds NaN or nothing at all, or the mask is empty.
    """
    _check(image, model, water)
    xp = namespace(image.coefficients)
    prepared = model.for_basis(None if image.basis is None else to_numpy(image.basis))
    inside = np.flatnonzero(image.mask.ravel())
    flat = xp.reshape(image.coefficients, (-1, image.coefficients.shape[3]))
    signal = xp.take(flat, like(inside, image.coefficients), axis=0)
    noise, spread = _noise_level(image, inside, signal)
    result = fit_fids(signal, noise, prepared, spread=spread, progress=progress)
    return assemble_maps(image, inside, result, prepared, signal, water)


def fit_fids(
    signal: Array,
    noise_sd: np.ndarray,
    prepared: PreparedFit,
    *,
    spread: np.ndarray | None = None,
    progress: Callable[[float], None] | None = None,
) -> FitResult:
    """Fit a list of FIDs (or of coefficients on the temporal basis).

    All voxels are fitted with weak priors of the lineshape first; how phase, shift and widths are distributed over
    them is then the prior of the final fit (empirical Bayes), where there are enough of them.

    Parameters
    ----------
    signal
        (voxel, t or rank) complex.
    noise_sd
        (voxel,) SD of the real part of the noise in one sample or coefficient.
    prepared
        The prepared model.
    spread
        (voxel, rank) SD of each coefficient relative to `noise_sd`, where they differ; None: all alike.
    progress
        Called with the fraction that is done.

    Returns
    -------
    FitResult
        Amplitudes in the unit of the signal, their covariance, lineshapes and the state of the fit.
    """
    n = signal.shape[0]
    pieces = [slice(i, min(i + _CHUNK, n)) for i in range(0, n, _CHUNK)]
    tell = progress or (lambda _: None)

    def first(piece: slice) -> FirstPass:
        return first_pass(signal[piece, :], noise_sd[piece], prepared, None if spread is None else spread[piece])

    def final(work: tuple[slice, FirstPass]) -> FitResult:
        return final_pass(work[1], noise_sd[work[0]], prepared, prior)

    passes, results = [], []
    with ThreadPoolExecutor(n_threads() if is_numpy(signal) and len(pieces) > 1 else 1) as pool:
        for piece, one in zip(pieces, pool.map(first, pieces), strict=True):
            passes.append((piece, one))
            tell(0.6 * piece.stop / n)
        prior = learn_shape_prior([one for _, one in passes])
        for (piece, _), result in zip(passes, pool.map(final, passes), strict=True):
            results.append(result)
            tell(0.6 + 0.4 * piece.stop / n)
    return FitResult.concatenate(results)


def _noise_level(image: SpectralImage, inside: np.ndarray, signal: Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Noise of each voxel, and the SD of its coefficients relative to it where they differ.

    Where the noise is zero (noise-free data) a small fraction of the signal takes its place.
    """
    xp = namespace(signal)
    noise = np.asarray(image.noise_sd, np.float32).ravel()[inside]
    spread = None
    if image.coefficient_sd is not None and image.basis is not None:
        sd = np.asarray(image.coefficient_sd, np.float32).reshape(image.mask.size, -1)[inside]
        noise = np.sqrt(np.mean(sd**2, axis=1))
        spread = np.maximum(sd / np.maximum(noise, np.finfo(np.float32).tiny)[:, None], 1e-3)
    peak = to_numpy(xp.max(xp.abs(signal), axis=1)).astype(np.float32)
    floor = _NOISE_FLOOR * np.maximum(peak, np.median(peak))
    if not np.all(floor > 0):
        raise DataError("the spectroscopic image is zero everywhere; check that the metabolite readouts hold signal")
    return np.maximum(noise, floor), spread


def _templates(design: Design) -> np.ndarray:
    """Composite spectra of the first search: the sums of `GROUPS`, all other metabolites, the macromolecules."""
    names = np.array(design.names)
    rows = []
    rest = np.arange(len(names)) < design.n_metabolites
    for members in GROUPS.values():
        row = np.isin(names, members) & rest
        rows.append(row * design.typical)
        rest = rest & ~row
    rows.append(rest * design.typical)
    rows.append((np.arange(len(names)) >= design.n_metabolites) * design.typical)
    return np.array([row for row in rows if row.any()])


def _check(image: SpectralImage, model: VarproModel, water: np.ndarray | None) -> None:
    if image.protocol.fingerprint() != model.protocol.fingerprint():
        raise DataError(
            f"the fit was prepared for {model.protocol.fingerprint()} but the image is "
            f"{image.protocol.fingerprint()}; prepare it for the image's protocol"
        )
    if not image.mask.any():
        raise DataError("the mask of the spectroscopic image is empty; there is no voxel to quantify")
    if water is not None and water.shape != image.mask.shape:
        raise DataError(f"the water image {water.shape} does not fit the spectroscopic image {image.mask.shape}")
    xp = namespace(image.coefficients)
    if not bool(xp.all(xp.isfinite(xp.sum(xp.abs(image.coefficients), axis=3)))):
        raise DataError("the spectroscopic image holds NaN or infinity; the reconstruction before the fit failed")


def brain_defaults(protocol: Protocol, names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return 1/T2* [1/s] and typical amplitude [mM] of molecules in a mixture of grey and white matter.

    Names without an entry in the table are left out; for other nuclei than 1H there are no entries.
    """
    if protocol.nucleus != "1H":
        return {}, {}
    field_t = protocol.field_strength_t or protocol.transmit_frequency_hz * 1e-6 / _PROTON_MHZ_PER_T
    rates, typical = {}, {}
    for name in names:
        if name in brain_values.BRAIN:
            rates[name] = float(np.mean([1 / brain_values.t2_star_s(name, tissue, field_t) for tissue in ("gm", "wm")]))
            typical[name] = float(np.mean([brain_values.concentration_mm(name, tissue) for tissue in ("gm", "wm")]))
        elif name in brain_values.MACROMOLECULE_MM:
            typical[name] = float(np.mean(brain_values.MACROMOLECULE_MM[name]))
    return rates, typical
