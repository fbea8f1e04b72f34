"""Linear-combination fit of every voxel's FID by variable projection, all voxels at once (eq. 19).

Non-negative amplitudes, one phase, one shift and one lineshape per voxel (what the field map says of the field within
the voxel, times Lorentz and Gauss), macromolecules with a prior, nuisance bands with an energy estimated per voxel.
One molecule may have a shift of its own (`moving_line`: inorganic phosphate). All
that does not depend on the data is made by `prepare_varpro` before the scan ends; `fit_varpro` then needs a few matrix
products per voxel.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mrsi_gadgets.arrays import Array, is_numpy, like, n_threads, namespace, one_blas_thread, to_numpy
from mrsi_gadgets.data import Maps, Replicas, SpectralImage
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.quantification.assembly import FitResult, assemble_maps
from mrsi_gadgets.quantification.intravoxel import intravoxel_lineshape
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.passes import (
    FirstPass,
    Voxels,
    final_pass_of_places,
    first_pass_of_places,
    learn_shape_prior,
    pieces,
    with_unmodelled,
)
from mrsi_gadgets.quantification.preparation import VarproModel, prepare_varpro
from mrsi_gadgets.quantification.quality import Evidence
from mrsi_gadgets.quantification.uncertainty import lineshape_doubt
from mrsi_gadgets.quantification.unmodelled import UnmodelledLine, find_lines, with_lines

__all__ = ["VarproModel", "field_doubt", "field_lineshape", "fit_varpro", "prepare_varpro"]

_NOISE_FLOOR = 1e-2
"""No model is right to better than this part of the strongest coordinate that nuisance does not reach: smaller noise is
not believed."""
_COUNTED_NOISE = 0.1
"""Directions with less than this fraction of the largest noise SD do not count in the standard deviations."""


def fit_varpro(
    image: SpectralImage,
    model: VarproModel,
    *,
    water: np.ndarray | None = None,
    intravoxel: bool = True,
    lineshape: np.ndarray | None = None,
    doubt: np.ndarray | None = None,
    start: np.ndarray | None = None,
    progress: Callable[[float], None] | None = None,
) -> Maps:
    """Fit every voxel of the image's mask.

    All voxels are fitted with weak priors of the lineshape first; how phase, shift and widths are distributed over
    them is then the prior of the final fit (empirical Bayes), where there are enough of them.

    Parameters
    ----------
    image
        The FIDs or their coefficients, on any device.
    model
        What `prepare_varpro` made for this protocol.
    water
        (x, y, z) amplitude of water at t = 0 in the image's unit; None: no ``NAME_per_water`` maps.
    intravoxel
        Whether the image's field map tells the lineshape that the field within each voxel makes.
    lineshape
        (voxel, node) complex64: that lineshape, where `field_lineshape` has computed it already (and only it knows the
        field across the slice).
    start
        (voxel, 4) phase [rad], shift [Hz], Lorentz rate [1/s] and Gauss rate [1/s^2] of the voxels of the mask, from
        another method, to begin with instead of the search; beyond the allowed ranges they are put to their ends. Rows
        with NaN are searched. None: all are.
    progress
        Called with the fraction that is done.

    Returns
    -------
    Maps
        Single molecules, sums, ratios, and maps of the fit itself, with standard deviations.

    Raises
    ------
    DataError
        The model was made for another protocol, the image holds NaN or nothing at all, the mask is empty, or `start`
        does not fit it.
    """
    check_image(image, model, water)
    inside = np.flatnonzero(image.mask.ravel())
    with one_blas_thread():
        if not intravoxel:
            lineshape = np.ones((len(inside), len(model.dictionary.expansion.node_times_s)), np.complex64)
        elif lineshape is None:
            lineshape = field_lineshape(image.b0_hz, image.mask, model)
        voxels = voxels_of(image, inside, model, lineshape, start, doubt)
        basis = None if image.basis is None else to_numpy(image.basis)
        result, model, lines, evidence = _fit(voxels, model, image.mask, basis, progress or (lambda _: None))
    return assemble_maps(image, inside, result, model, voxels, water, lines, evidence=evidence)


def field_lineshape(
    b0_hz: np.ndarray, mask: np.ndarray, model: VarproModel, spread_hz: np.ndarray | None = None
) -> np.ndarray:
    """Return the lineshape that the field gives to each voxel of the mask, at the times the fit wants it.

    A shift that all voxels share does not change it, so it can be computed as soon as the field map is there.

    Parameters
    ----------
    b0_hz, mask
        (x, y, z) field [Hz] and where to fit.
    model
        What `prepare_varpro` made.
    spread_hz
        (x, y, z) difference of the field across the slice [Hz] (`slice_spread`); None: not known, none is assumed.

    Returns
    -------
    ndarray
        (voxel, node) complex64.
    """
    times = model.dictionary.expansion.node_times_s
    lineshape = intravoxel_lineshape(b0_hz, mask, times)
    if spread_hz is not None:
        lineshape *= np.sinc(spread_hz[mask][:, None] * times)
    return lineshape


def field_doubt(b0_hz: np.ndarray, mask: np.ndarray, model: VarproModel) -> np.ndarray:
    """Return the patterns that errors of `field_lineshape` are made of, (voxel, mode, node) complex64.

    See `uncertainty.lineshape_doubt`. It can be computed as soon as the field map is there, too.
    """
    return lineshape_doubt(b0_hz, mask, model.dictionary.expansion, float(np.median(model.design.rates)))


def voxels_of(
    image: SpectralImage, inside: np.ndarray, model: VarproModel, lineshape: np.ndarray, start: np.ndarray | None,
    doubt: np.ndarray | None = None,
) -> Voxels:  # fmt: skip
    """Bring the voxels of the mask into the coordinates of the fit, with their noise and known lineshape."""
    xp = namespace(image.coefficients)
    flat = xp.reshape(image.coefficients, (-1, image.coefficients.shape[3]))
    signal = xp.astype(xp.take(flat, like(inside, flat), axis=0), xp.complex64)
    project = model.coordinates.project
    if image.basis is not None:
        project = to_numpy(image.basis).astype(complex) @ project
    data = signal @ like(project, signal, "complex64")
    noise, spread, directions = _noise(image, inside, project, data[:, model.coordinates.n_dense :])
    if lineshape.shape[0] != len(inside):
        raise DataError(f"the lineshapes are those of {lineshape.shape[0]} voxels; the mask holds {len(inside)}")
    if start is not None and start.shape != (len(inside), N_SHAPE):
        raise DataError(
            f"the lineshapes to begin with are {start.shape}; give {N_SHAPE} of each of {len(inside)} voxels"
        )
    begin = None if start is None else like(start, signal, "float32")
    if doubt is None:
        doubt = field_doubt(image.b0_hz, image.mask, model)
    given = like(lineshape, signal, "complex64")
    changes = None if image.replicas is None else _changes(image.replicas, model)
    return Voxels(data, noise, given, spread, directions, begin, changes, like(doubt, signal, "complex64"))


def _changes(replicas: Replicas, model: VarproModel) -> Array:
    """Return replicas, what is left and its replicas in the coordinates of the fit, (voxel, change, coordinate)."""
    xp = namespace(replicas.noise)
    parts = [replicas.noise]
    if replicas.left is not None and replicas.left_noise is not None:
        parts += [replicas.left[None, :, :], replicas.left_noise]
    changes = xp.concat(parts, axis=0) @ like(model.coordinates.project, replicas.noise, "complex64")
    return xp.permute_dims(changes, (1, 0, 2))


def _noise(
    image: SpectralImage, inside: np.ndarray, project: np.ndarray, data: Array
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the SD of a voxel's noise in a coordinate, and where the noise really lies, if it is not even.

    Coefficients that a prior has smoothed hold less noise than samples do, but hardly less where the signal is: the fit
    weighs data against priors with the noise of the samples, and only the standard deviations count what is left.
    `data` are the coordinates that nuisance does not reach: where the noise is next to nothing, a small fraction of
    them takes its place.
    """
    xp = namespace(data)
    sd = np.asarray(image.noise_sd, np.float32).ravel()[inside]
    spread = directions = None
    if image.basis is not None:
        rank = project.shape[0]
        spread = np.repeat(sd[:, None], rank, axis=1)
        if image.coefficient_sd is not None:
            spread = np.asarray(image.coefficient_sd, np.float32).reshape(-1, rank)[inside]
        matter = np.median(spread**2, axis=0) > _COUNTED_NOISE**2 * np.max(np.median(spread**2, axis=0))
        spread, directions = spread[:, matter], project[matter].T
    peak = to_numpy(xp.max(xp.abs(data), axis=1)).astype(np.float32)
    floor = _NOISE_FLOOR * np.maximum(peak, np.median(peak))
    if not np.all(floor > 0):
        raise DataError("the spectroscopic image is zero everywhere; check that the metabolite readouts hold signal")
    sd = np.maximum(sd, floor)
    return sd, None if spread is None else spread / sd[:, None], directions


def _fit(
    voxels: Voxels, model: VarproModel, mask: np.ndarray, basis: np.ndarray | None, progress: Callable[[float], None]
) -> tuple[FitResult, VarproModel, list[UnmodelledLine], Evidence]:
    """Run the two passes over pieces of the list of voxels that fit into the processor's cache.

    Lines that no molecule has join the model between the passes; the model that was fitted in the end comes back.
    """
    parts = [voxels.take(rows) for rows in pieces(voxels)]

    def first(piece: Voxels) -> tuple[FirstPass, np.ndarray]:
        return first_pass_of_places(piece, model)

    passes: list[FirstPass] = []
    results: list[FitResult] = []
    places = [np.zeros(len(piece.noise_sd), int) for piece in parts]
    with ThreadPoolExecutor(n_threads() if is_numpy(voxels.data) and len(parts) > 1 else 1) as pool:
        for one, place in pool.map(first, parts):
            places[len(passes)] = place
            passes.append(one)
            progress(0.6 * len(passes) / len(parts))
        lines, evidence = find_lines(passes, model, mask, basis)
        if lines:
            model = with_lines(model, lines, basis)
            allowed = np.split(
                np.stack([line.voxels for line in lines], axis=1), np.cumsum([len(p.misfit) for p in passes])[:-1]
            )
            passes = list(pool.map(with_unmodelled, passes, [model] * len(passes), allowed, places))
        prior = learn_shape_prior(passes, model)

        def final(work: tuple[FirstPass, Voxels, np.ndarray]) -> FitResult:
            return final_pass_of_places(*work, model, prior)

        for result in pool.map(final, zip(passes, parts, places, strict=True)):
            results.append(result)
            progress(0.6 + 0.4 * len(results) / len(parts))
    return FitResult.concatenate(results), model, lines, evidence


def check_image(image: SpectralImage, model: VarproModel, water: np.ndarray | None) -> None:
    """Refuse an image that a fit with this model cannot be made of (DataError)."""
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
