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
from mrsi_gadgets.quantification.coordinates import (
    Coordinates,
    band_energy,
    coefficient_coordinates,
    fid_coordinates,
    whitener,
)
from mrsi_gadgets.quantification.design import GROUPS, PROTON_NUISANCE, Design, NuisanceBand, build_design
from mrsi_gadgets.quantification.lineshape_search import (
    LineshapeGrid,
    LineshapeRange,
    build_grid,
    expand_lineshapes,
)
from mrsi_gadgets.quantification.refinement import Fit, ShapedDictionary, covariance, model_at, refine

if TYPE_CHECKING:
    from mrsi_gadgets.physics.basis import BasisSet

_CHUNK = 192
_NOISE_FLOOR = 1e-4
_STEPS = (2, 4)
_PROTON_MHZ_PER_T = 42.577


@dataclass(frozen=True, eq=False)
class VarproModel:
    """Everything of the fit that is known before the data."""

    protocol: Protocol
    design: Design
    coordinates: Coordinates
    dictionary: ShapedDictionary
    grid: LineshapeGrid
    templates: np.ndarray
    """(template, column): amplitudes that make up each composite spectrum of the first search."""
    basis: np.ndarray | None
    """(rank, t) temporal basis of the images this model fits; None: full FIDs."""
    bands: tuple[str, ...]
    """Names of the nuisance bands."""
    singlet_rate: float
    """1/T2* [1/s] of the first metabolite, the line whose width is reported."""


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
) -> VarproModel:
    """Make the dictionaries of `fit_varpro`.

    Parameters
    ----------
    protocol
        Times and frequency of the FIDs.
    model_basis
        (rank, t) temporal basis of images given as coefficients; None for images of full FIDs.
    basis
        Metabolites, one unit of amplitude each, free of decay.
    macromolecules
        Macromolecule components, or None.
    decay_rates
        Metabolite -> 1/T2* [1/s]; None: mean values of the brain at this field (`physics.brain_values`).
    typical
        Molecule -> amplitude in normal brain, for the first search and for the macromolecule profile; None: values of
        `physics.brain_values`.
    nuisance
        Bands that absorb water, lipids and baseline.
    lineshapes
        Allowed shifts and widths.
    macromolecule_freedom
        SD of each macromolecule's amplitude about its share of the profile, as a fraction of that share.

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
    decay_rates = known_rates if decay_rates is None else decay_rates
    typical = known_amplitudes if typical is None else typical
    design = build_design(
        protocol,
        basis,
        macromolecules,
        decay_rates=decay_rates,
        typical=typical,
        macromolecule_freedom=macromolecule_freedom,
    )
    expansion = expand_lineshapes(protocol.times_s, allowed)
    shaped = expansion.functions.T[:, :, None] * design.columns[:, None, :]
    if model_basis is None:
        weight = np.tile(np.where(design.typical > 0, design.typical, design.prior_sd), expansion.rank)
        coordinates = fid_coordinates(protocol, nuisance, shaped.reshape(protocol.n_times, -1), weight)
    else:
        model_basis = to_numpy(model_basis)
        coordinates = coefficient_coordinates(protocol, nuisance, model_basis)
    products = coordinates.columns(shaped.reshape(protocol.n_times, -1))
    products = products.reshape(-1, expansion.rank, len(design.names)).transpose(1, 0, 2)
    prior = np.array([[0.0, 0.0, 3.0, 0.0], [np.inf, 8.0, 20.0, 2000.0]])
    dictionary = ShapedDictionary(
        expansion, allowed, products.astype(np.complex64), design.bounded, design.prior_sd, prior
    )
    templates = _templates(design)
    composites = products @ templates.T
    composites[:, : coordinates.n_skipped] = 0
    positive = np.array([np.linalg.norm(composites[:, :, i]) for i in range(len(templates))])
    grid = build_grid(composites, expansion, allowed, positive / positive.sum())
    bands = tuple(b.name for b in nuisance)
    return VarproModel(protocol, design, coordinates, dictionary, grid, templates, model_basis, bands, design.rates[0])


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
        What `prepare_varpro` made for this protocol (and for the image's temporal basis).
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
        The model was made for another basis or protocol, the image holds NaN, or the mask is empty.
    """
    _check(image, model, water)
    xp = namespace(image.coefficients)
    inside = np.flatnonzero(image.mask.ravel())
    flat = xp.reshape(image.coefficients, (-1, image.coefficients.shape[3]))
    signal = xp.take(flat, like(inside, image.coefficients), axis=0)
    noise = _noise_level(image, inside, signal)
    pieces = [slice(i, min(i + _CHUNK, len(inside))) for i in range(0, len(inside), _CHUNK)]

    def one(piece: slice) -> FitResult:
        spread = None if image.coefficient_sd is None else _spread(image, inside[piece], noise[piece])
        return fit_fids(signal[piece, :], noise[piece], model, spread)

    results = []
    workers = n_threads() if is_numpy(signal) and len(pieces) > 1 else 1
    with ThreadPoolExecutor(workers) as pool:
        for i, result in enumerate(pool.map(one, pieces) if workers > 1 else map(one, pieces)):
            results.append(result)
            if progress is not None:
                progress((i + 1) / len(pieces))
    return assemble_maps(image, inside, FitResult.concatenate(results), model, signal, water)


def fit_fids(signal: Array, noise_sd: np.ndarray, model: VarproModel, spread: np.ndarray | None = None) -> FitResult:
    """Fit a batch of FIDs (or of coefficients on the model's temporal basis).

    Parameters
    ----------
    signal
        (voxel, t or rank) complex.
    noise_sd
        (voxel,) SD of the real part of the noise in one sample or coefficient.
    model
        The prepared model.
    spread
        (voxel, rank) SD of each coefficient relative to `noise_sd`, where they differ; None: all alike.

    Returns
    -------
    FitResult
        Amplitudes in the unit of the signal, their covariance, lineshapes and the state of the fit.
    """
    xp = namespace(signal)
    sd = like(noise_sd, signal, "float32")
    data = xp.astype(signal, xp.complex64) @ like(model.coordinates.project, signal, "complex64")
    data = data / sd[:, None]
    noise = None if spread is None else _rotated_noise(model.coordinates, spread, signal)
    fit, nuisance = _fit(data, model, noise)
    cov, variance = covariance(fit)
    return FitResult(
        to_numpy(fit.amplitudes) * noise_sd[:, None],
        to_numpy(cov) * noise_sd[:, None, None] ** 2,
        to_numpy(variance) * noise_sd[:, None] ** 2,
        to_numpy(fit.shape),
        to_numpy(xp.sqrt(fit.cost / (2 * data.shape[1]))),
        to_numpy(nuisance) * noise_sd[:, None],
    )


def _fit(data: Array, model: VarproModel, noise: Array | None) -> tuple[Fit, Array]:
    """First search, energy of the nuisance bands, refinement; returns also the nuisance signal's coordinates."""
    xp = namespace(data)
    coordinates, dictionary = model.coordinates, model.dictionary
    searched = xp.concat([xp.zeros_like(data[:, : coordinates.n_skipped]), data[:, coordinates.n_skipped :]], axis=1)
    first = model.grid.search(searched)
    strength = xp.clip(first.amplitudes, 0.0, None) @ like(model.grid.positive, data, "float32")
    # an empty voxel still needs a scale for its priors: the noise
    scale = xp.where(strength > 1e-3, strength, xp.full_like(strength, 1e-3))
    amplitudes = xp.clip(first.amplitudes, 0.0, None) @ like(model.templates, data, "float32")
    residual = data - model_at(dictionary, first.shape, amplitudes)
    whiten = whitener(band_energy(residual, coordinates), coordinates, noise)
    fit = refine(data, dictionary, whiten, first.shape, scale, steps=_STEPS[0])
    whiten = whitener(band_energy(fit.residual, coordinates), coordinates, noise)
    fit = refine(
        data, dictionary, whiten, fit.shape, scale, amplitudes=fit.amplitudes, free=fit.free, steps=_STEPS[1]
    )
    head = fit.residual[:, : coordinates.n_dense, None]
    expected = head - xp.matmul(xp.matrix_transpose(xp.conj(whiten)), xp.matmul(whiten, head))
    return fit, expected[:, :, 0]


def _rotated_noise(coordinates: Coordinates, spread: np.ndarray, reference: Array) -> Array:
    """Covariance of the coefficients' noise in the coordinates of the fit, in units of the voxel's noise."""
    rotation = coordinates.project.T
    noise = 2 * (rotation[None] * spread[:, None, :] ** 2) @ rotation.conj().T
    return like(noise, reference, "complex128")


def _noise_level(image: SpectralImage, inside: np.ndarray, signal: Array) -> np.ndarray:
    """Noise of each voxel; where it is zero (noise-free data) a small fraction of the signal takes its place."""
    xp = namespace(signal)
    noise = np.asarray(image.noise_sd, np.float32).ravel()[inside]
    if image.coefficient_sd is not None:
        sd = np.asarray(image.coefficient_sd, np.float32).reshape(-1, image.coefficient_sd.shape[-1])[inside]
        noise = np.sqrt(np.mean(sd**2, axis=1))
    peak = to_numpy(xp.max(xp.abs(signal), axis=1)).astype(np.float32)
    floor = _NOISE_FLOOR * np.maximum(peak, np.median(peak))
    if not np.all(floor > 0):
        raise DataError("the spectroscopic image is zero everywhere; check that the metabolite readouts hold signal")
    return np.maximum(noise, floor)


def _spread(image: SpectralImage, voxels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """SD of each coefficient relative to the voxel's noise level, kept above a thousandth of it."""
    sd = np.asarray(image.coefficient_sd, float)
    return np.maximum(sd.reshape(-1, sd.shape[-1])[voxels] / noise[:, None], 1e-3)


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
    if (image.basis is None) != (model.basis is None):
        raise DataError("the fit was prepared for another kind of image; give prepare_varpro the image's basis")
    if model.basis is not None and image.basis is not None:
        basis = to_numpy(image.basis)
        if basis.shape != model.basis.shape or not np.allclose(basis, model.basis, atol=1e-4):
            raise DataError("the fit was prepared for another temporal basis; give prepare_varpro the image's basis")
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
