"""From fitted amplitudes to maps: sums, ratios, standard deviations, and maps of the fit itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mrsi_gadgets.data import Map, Maps, SpectralImage
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.physics.phosphorus import ph_of_shift, ph_slope
from mrsi_gadgets.quantification.design import PROFILE, group_weights
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.nucleus_fit import fit_of
from mrsi_gadgets.quantification.quality import FLAG, QUALITY, Evidence, judge
from mrsi_gadgets.quantification.replica_noise import with_replicas
from mrsi_gadgets.quantification.resynthesis import Resynthesis
from mrsi_gadgets.quantification.signal_quality import LIPIDS, NOISE, SNR, signal_maps
from mrsi_gadgets.quantification.smoothing import smooth_in_mask
from mrsi_gadgets.quantification.uncertainty import with_doubt

if TYPE_CHECKING:
    from mrsi_gadgets.quantification.passes import Voxels
    from mrsi_gadgets.quantification.preparation import VarproModel
    from mrsi_gadgets.quantification.unmodelled import UnmodelledLine

AMOUNT = "a.u. (amount per voxel, one scale for all)"
UNKNOWN_AMOUNT = "a.u. ({} per voxel on the scale of the amounts, in phase with the molecules)"
PER_WATER = "1 (molecules per water molecule, not corrected for relaxation)"
RATIO = "1 (ratio to {})"
FURTHER = {
    "shift": "Hz (of its group, beside the common shift)",
    "width": "1/s (Lorentz rate of its group, beside the common one)",
    "delay": "ms (error of the acquisition delay, a phase of first order)",
}
"""Units of the lineshape's further parameters that have maps."""
PH = "pH"
"""Name of the map of pH within cells."""
_WATER_PROTONS = 2.0


@dataclass(frozen=True, eq=False)
class FitResult:
    """What was fitted in a list of voxels, on the host."""

    amplitudes: np.ndarray
    """(voxel, column) in the unit of the signal."""
    covariance: np.ndarray
    """(voxel, column + 4, column + 4); zero for unknowns at a bound."""
    variance: np.ndarray
    """(voxel, column + 4), also of unknowns at a bound."""
    crlb: np.ndarray
    """(voxel, column + 4, column + 4): inverse of the Fisher information of the data alone (`passes.bare_bound`)."""
    shape: np.ndarray
    """(voxel, parameter): phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2]."""
    misfit: np.ndarray
    """(voxel,) root mean square of the whitened residual; 1 is noise."""
    nuisance: np.ndarray
    """(voxel, n_dense) expected nuisance signal in the leading coordinates."""
    place: np.ndarray
    """(voxel,) int: place of the molecule that has a shift of its own (`moving_line`); any number where none has."""
    doubt: np.ndarray
    """(voxel, column + 4, mode): what a doubtful lineshape adds, for weights of unit variance (`uncertainty`)."""
    evidence: np.ndarray
    """(voxel, 3): what the residuals say of that variance (`uncertainty.Doubt`)."""
    noise: np.ndarray
    """(voxel, column + 4, column + 4): the part of the covariance that is noise, in closed form; (voxel, 0, 0) where
    there are no replicas of it."""
    perturbed: np.ndarray
    """(voxel, column + 4, change): what replicas of the noise do to the unknowns (`replica_noise`)."""

    @staticmethod
    def concatenate(parts: Sequence[FitResult]) -> FitResult:
        """Join the results of several batches."""
        return FitResult(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(FitResult)))

    def rows(self, which: np.ndarray) -> FitResult:
        """Return some voxels, in the order of `which`."""
        return FitResult(*(getattr(self, f.name)[which] for f in fields(FitResult)))

    def with_crlb(self) -> FitResult:
        """Return the same with the bare bound in the place of covariance and variance."""
        return replace(self, covariance=self.crlb, variance=np.diagonal(self.crlb, axis1=1, axis2=2))

    def overwrite(self, where: np.ndarray, other: FitResult) -> None:
        """Put the voxels of another result at the rows `where`."""
        for f in fields(FitResult):
            getattr(self, f.name)[where] = getattr(other, f.name)

    def weighted(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return value and variance of a weighted sum of the amplitudes; `weights` is (column,)."""
        columns = np.flatnonzero(weights)
        if len(columns) == 1:
            i = columns[0]
            return self.amplitudes[:, i] * weights[i], self.variance[:, i] * weights[i] ** 2
        value = self.amplitudes[:, columns] @ weights[columns]
        variance = self.covariance_of(weights, weights)
        # a sum whose members all lie at the bound is as uncertain as the best determined of them
        alone = np.min(self.variance[:, columns], axis=1)
        return value, np.where(variance > 0, variance, alone)

    def covariance_of(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the covariance of two weighted sums of the amplitudes."""
        rows, columns = np.flatnonzero(first), np.flatnonzero(second)
        part = self.covariance[:, rows[:, None], columns[None, :]]
        return np.asarray((part @ second[columns]) @ first[rows])


def assemble_maps(
    image: SpectralImage,
    inside: np.ndarray,
    result: FitResult,
    model: VarproModel,
    voxels: Voxels,
    water: np.ndarray | None,
    lines: Sequence[UnmodelledLine] = (),
    *,
    water_fwhm_voxels: float = 1.5,
    method: str = "varpro",
    evidence: Evidence | None = None,
) -> Maps:
    """Arrange the result of the fit as maps.

    Beside every value that was fitted stand two deviations (`data.Map`): `sd`, what is known of its error (the fit's
    Jacobian with all priors, the noise as reconstruction left it, misfit beyond noise, errors of the lineshape), and
    `crlb`, what the noise of the samples alone would allow an unbiased fit.

    Parameters
    ----------
    image
        What was fitted.
    inside
        Flat indices of the fitted voxels.
    result
        Amplitudes and the rest, in the order of `inside`.
    model
        The model that was fitted.
    voxels
        What was fitted: the lineshape that the field map gave is part of the fit.
    water
        (x, y, z) amplitude of water at t = 0, or None.
    lines
        What the model has beyond its molecules; each becomes a map.
    water_fwhm_voxels
        The water image is smoothed within the mask with this full width at half maximum before it divides, so that its
        noise and ringing do not enter the maps.
    method
        What the provenance calls the method.
    evidence
        What stands out of the residuals; None: not looked for.
    """
    replicas = 0 if image.replicas is None else int(image.replicas.noise.shape[0])
    result, doubt = with_doubt(with_replicas(result, image.mask, model.design.n_metabolites, replicas))
    divisor = None
    if water is not None:
        smooth = smooth_in_mask(water, image.mask & (water > 0), water_fwhm_voxels).ravel()[inside] / _WATER_PROTONS
        divisor = np.divide(1.0, smooth, out=np.full(len(inside), np.nan), where=smooth > 0)
    bounds = _fitted(result.with_crlb(), model, divisor, lines)
    maps = {
        name: Map(
            _volume(image, inside, value),
            unit,
            _volume(image, inside, np.sqrt(variance)),
            _volume(image, inside, np.sqrt(bounds[name][1])),
        )
        for name, (value, variance, unit) in _fitted(result, model, divisor, lines).items()
    }
    maps["residual"] = Map(_volume(image, inside, result.misfit), "1 (root mean square over noise)")
    quality = judge(result.misfit, result.shape, model.dictionary.freedom, image.mask, lines, evidence)
    maps |= quality.maps(image.mask.shape, inside)
    whole = Resynthesis(
        image, inside, result.amplitudes, result.shape, result.nuisance, result.place, model, voxels.given
    )
    maps |= signal_maps(whole)
    examples = whole.examples(_example_voxels(image, inside, result))
    provenance: dict[str, Any] = {
        **image.provenance,
        "quantification": method,
        "columns": list(model.design.names),
        "nuisance": list(model.coordinates.bands),
        "voxels": len(inside),
        "unmodelled_lines": {line.name: int(line.voxels.sum()) for line in lines},
        "lineshape_weights_sd": round(doubt, 3),
        "flagged_voxels": {"any": int(quality.flagged.sum()), **quality.counts()},
        "noise_replicas": replicas,
    }
    return Maps(
        maps, image.mask, image.b0_hz, image.protocol, examples, image.frame, provenance, spectra=whole.all_voxels
    )


def _fitted(
    result: FitResult, model: VarproModel, divisor: np.ndarray | None, lines: Sequence[UnmodelledLine]
) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Return name -> value, variance and unit of everything that was fitted; `divisor` is one over water."""
    sums = _quantities(model)
    assumed = fit_of(model.protocol)
    columns: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    for name, weights in sums.items():
        value, variance = result.weighted(weights)
        columns[name] = (value, variance, AMOUNT)
        if divisor is not None:
            columns[f"{name}_per_water"] = (value * divisor, variance * divisor**2, PER_WATER)
        for what in assumed.ratio_to:
            if what in sums and name != what:
                columns[f"{name}_per_{what}"] = (*_ratio(result, weights, sums[what]), RATIO.format(what))
    unknown_unit = UNKNOWN_AMOUNT.format(assumed.counted)
    for line in lines:
        value, variance = result.weighted(np.array([float(name == line.name) for name in model.design.names]))
        # elsewhere it was not looked for: none is shown, and no deviation stated
        columns[line.name] = (
            np.where(line.voxels, value, 0.0), np.where(line.voxels, variance, np.nan), unknown_unit
        )  # fmt: skip
    return columns | _shape_maps(result, model) | _moving_maps(result, model)


def _quantities(model: VarproModel) -> dict[str, np.ndarray]:
    """Name -> weights over the columns: sums first, then single molecules, then macromolecules."""
    names = model.design.names
    found = group_weights(names[: model.design.n_metabolites], model.protocol.nucleus)
    pad = len(names) - model.design.n_metabolites
    weights = {name: np.concatenate([w, np.zeros(pad)]) for name, w in found.items()}
    for i, name in enumerate(names[: model.design.n_metabolites]):
        weights.setdefault(name, np.eye(len(names))[i])
    if PROFILE in names:
        weights[PROFILE] = np.eye(len(names))[names.index(PROFILE)]
    return weights


def map_names(model: VarproModel) -> tuple[str, ...]:
    """Return the names of all maps that a fit of this model can give, known before its data are there: sums first.

    Only protons have a water reference apart from their spectra.
    """
    names = list(_quantities(model))
    water = ("water",) if nucleus_of(model.protocol).water_is_nuisance else ()
    ratios = [
        f"{name}_per_{what}" for what in (*water, *fit_of(model.protocol).ratio_to) for name in names if name != what
    ]
    moving = () if model.moving is None else (f"{model.moving.name}_shift", PH)
    further = [n for n in model.dictionary.freedom.names[N_SHAPE:] if n.partition("_")[0] in FURTHER]
    lipids = (LIPIDS,) if LIPIDS in model.coordinates.bands else ()
    of_fit = ("shift", "linewidth", "phase", "residual", QUALITY, FLAG, SNR, NOISE, *lipids)
    return (*names, *ratios, *moving, *further, *of_fit, *water)


def _ratio(result: FitResult, weights: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and first-order variance of the ratio of two sums; NaN where the denominator is within its noise."""
    value, variance = result.weighted(weights)
    below, below_variance = result.weighted(reference)
    usable = below > np.sqrt(below_variance)
    inverse = np.divide(1.0, below, out=np.full(len(below), np.nan), where=usable)
    ratio = value * inverse
    mixed = result.covariance_of(weights, reference)
    spread = inverse**2 * (variance + ratio**2 * below_variance - 2 * ratio * mixed)
    return ratio, np.maximum(spread, 0.0)


def _moving_maps(result: FitResult, model: VarproModel) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Shift of the molecule that has its own, from phosphocreatine [ppm], and the pH that it tells."""
    moving = model.moving
    if moving is None:
        return {}
    mhz = model.protocol.transmit_frequency_hz * 1e-6
    hz, variance = moving.shift_hz(result.place, result.amplitudes, result.covariance)
    ppm, spread = moving.ppm + hz / mhz, variance / mhz**2
    return {
        f"{moving.name}_shift": (ppm, spread, "ppm"),
        PH: (ph_of_shift(ppm), ph_slope(ppm) ** 2 * spread, "1 (pH, Moon and Richards 1973)"),
    }


def _shape_maps(result: FitResult, model: VarproModel) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Shift and width of the fitted line; the width is that of the strongest molecule's own decay and the lineshape."""
    n = len(model.design.names)
    own = model.design.rates[0]
    lorentz = np.maximum(result.shape[:, 2] + own, 0.0) / np.pi
    gauss = np.sqrt(4 * np.log(2) * np.maximum(result.shape[:, 3], 0.0)) / np.pi
    # width of a Voigt line (Olivero and Longbothum 1977, DOI 10.1016/0022-4073(77)90161-3)
    root = np.sqrt(0.2166 * lorentz**2 + gauss**2)
    width = 0.5346 * lorentz + root
    by_lorentz = (0.5346 + 0.2166 * lorentz / np.maximum(root, 1e-6)) / np.pi
    by_gauss = 2 * np.log(2) / (np.pi**2 * np.maximum(root, 1e-6))
    cov = result.covariance[:, n + 2 :, n + 2 :]
    spread = by_lorentz**2 * cov[:, 0, 0] + by_gauss**2 * cov[:, 1, 1] + 2 * by_lorentz * by_gauss * cov[:, 0, 1]
    own = result.shape[:, N_SHAPE:], result.variance[:, n + N_SHAPE :]
    further = {
        name: (own[0][:, i], own[1][:, i], FURTHER[name.partition("_")[0]])
        for i, name in enumerate(model.dictionary.freedom.names[N_SHAPE:])
        if name.partition("_")[0] in FURTHER
    }
    return further | {
        "shift": (result.shape[:, 1], result.variance[:, n + 1], "Hz"),
        # a width that ended at its limit has no variance: how far it is from the truth is not known
        "linewidth": (width, np.where(spread > 0, spread, np.nan), "Hz"),
        "phase": (result.shape[:, 0], result.variance[:, n], "rad"),
    }


def _volume(image: SpectralImage, inside: np.ndarray, values: np.ndarray) -> np.ndarray:
    volume = np.full(image.mask.size, np.nan, np.float32)
    volume[inside] = values
    return volume.reshape(image.mask.shape)


def _example_voxels(image: SpectralImage, inside: np.ndarray, result: FitResult) -> list[int]:
    """Rows of three voxels: the strongest against noise, the one nearest the mask's centre, and the median misfit."""
    noise = np.sqrt(np.maximum(result.variance[:, 0], 1e-30))
    strongest = int(np.argmax(result.amplitudes.sum(axis=1) / noise))
    place = np.array(np.unravel_index(inside, image.mask.shape)).T
    central = int(np.argmin(np.sum((place - place.mean(axis=0)) ** 2, axis=1)))
    typical = int(np.argsort(result.misfit)[len(inside) // 2])
    return list(dict.fromkeys([strongest, central, typical]))
