"""Gadget `quantify`: from spectra to amounts with their standard deviations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mrsi_gadgets.data import Map, Maps, Protocol, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.context import Calibration, Context
from mrsi_gadgets.gadgets.device_memory import with_memory
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.gadgets.reconstruct import TRAINED
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.quantification.assembly import map_names
from mrsi_gadgets.quantification.cnn import fit_cnn, lineshapes_of_cnn
from mrsi_gadgets.quantification.freedom import LINESHAPES, FitOptions
from mrsi_gadgets.quantification.preparation import VarproModel, usual_model
from mrsi_gadgets.quantification.quality import FLAG
from mrsi_gadgets.quantification.slice_spread import slice_spread
from mrsi_gadgets.quantification.trained_range import LEAST_SHIFT_HZ, TrainedRange, compare, whole_widths
from mrsi_gadgets.quantification.union_of_subspaces import METHOD as UNION
from mrsi_gadgets.quantification.union_of_subspaces import (
    SPATIAL,
    UnionModel,
    fit_union_of_subspaces,
    usual_union_model,
)
from mrsi_gadgets.quantification.varpro import field_doubt, field_lineshape, fit_varpro

LARGE_MISFIT = 3.0
"""Root mean square of the residual over the noise from which on the maps are doubted as a whole."""
LEAST_POINTS = 32
ENOUGH_STEPS = 200
"""Of adaptation, from which on networks know the scan's own lines."""
MANY_AT_BOUND = 0.1
"""Share of voxels at the end of the searched frequencies from which on it is told."""


class FieldLines(NamedTuple):
    """What the field does to the lines of each voxel."""

    lineshape: np.ndarray
    """(voxel, node) complex64."""
    doubt: np.ndarray
    """(voxel, mode, node) complex64: what the lineshape may be off by."""


@dataclass(frozen=True)
class Quantify(Gadget):
    """Linear-combination fit of every voxel: non-negative amounts, common phase, shared lineshape and shift."""

    element: ClassVar[str] = "quantify"
    accepts: ClassVar[tuple[type, ...]] = (SpectralImage,)
    produces: ClassVar[tuple[type, ...]] = (Maps,)
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "method": ("varpro", UNION, "cnn", "cnn_spectrum"),
        "spatial_prior": SPATIAL,
        "lineshape": LINESHAPES,
        "start": ("search", "cnn"),
    }

    method: str = "varpro"
    """varpro, union_of_subspaces, cnn or cnn_spectrum. Both cnn take their networks from the store (`mrsi learn`);
    where there are none for the scan they say so and do what varpro does."""
    window_ppm: tuple[str, ...] = ()
    """Lower and upper end of the part of the spectrum that is fitted [ppm], such as "0.5 4.2"; empty: all of it."""
    lineshape: str = "voigt"
    """voigt, gauss or lorentz, on top of each molecule's own decay; free: Voigt times a smooth function."""
    own_shifts: tuple[str, ...] = ()
    """Groups of molecules with a small shift and width of their own, such as "Ins Glu+Gln"."""
    own_shift_hz: float = 0.5
    """SD of the prior of such a shift [Hz]."""
    own_width: float = 2.0
    """SD of the prior of such a group's further Lorentz rate [1/s]."""
    delay_ms: float = 0.0
    """SD of the prior of an error of the acquisition delay [ms], a phase of first order; 0: none is fitted."""
    spatial_prior: str = "auto"
    """Of the maps of union_of_subspaces: edges, none, or auto (edges, unless a reconstruction has smoothed already)."""
    start: str = "search"
    """Where varpro begins: search of lineshapes, or those of cnn."""
    adapt_steps: int = 0
    """Steps by which the regressor of cnn is adapted to the scan first; 300 are enough."""

    def __post_init__(self) -> None:
        super().__post_init__()
        options = self.options()
        usual = FitOptions(window_ppm=options.window_ppm)
        by_networks = self.method in ("cnn", "cnn_spectrum")
        learned = by_networks or self.start != "search"
        if self.spatial_prior != "auto" and self.method != UNION:
            raise ConfigError(f"spatial_prior is for method union_of_subspaces, not for {self.method}; leave it out")
        if self.adapt_steps < 0:
            raise ConfigError(f"adapt_steps is {self.adapt_steps}; it must be at least 0")
        if self.adapt_steps and (not learned or self.method == "cnn_spectrum"):
            raise ConfigError("adapt_steps is for method cnn, or for varpro with start cnn; leave it out")
        if self.start != "search" and self.method != "varpro":
            raise ConfigError(f"start is for method varpro, not for {self.method}; leave it out")
        if options != usual and (by_networks or self.adapt_steps):
            raise ConfigError(
                "networks know phase, shift and a Voigt line that all molecules share; leave out lineshape, own_shifts "
                "and delay_ms, or take method varpro without adapt_steps"
            )

    def options(self) -> FitOptions:
        """Return what the attributes say.

        Raises
        ------
        ConfigError
            They say what cannot be.
        """
        try:
            window = tuple(float(end) for end in self.window_ppm)
        except ValueError:
            window = (math.nan,)
        if len(window) not in (0, 2) or not all(map(math.isfinite, window)):
            raise ConfigError(f'window_ppm is "{" ".join(self.window_ppm)}"; give two numbers, such as "0.5 4.2"')
        groups = tuple(tuple(group.split("+")) for group in self.own_shifts)
        ends = None if not window else (window[0], window[1])
        return FitOptions(ends, self.lineshape, groups, self.own_shift_hz, self.own_width, self.delay_ms)

    def prepare(self, context: Context) -> tuple[VarproModel, ...]:
        """Simulate the basis and build the dictionaries of this protocol, for each echo time, before its data come."""
        protocol = context.protocol
        if protocol.n_times < LEAST_POINTS:
            raise DataError(
                f"the FIDs have {protocol.n_times} points, too few to tell molecules apart (at least {LEAST_POINTS}); "
                "correct mrsi_spectral_points, or use a recipe without <quantify>"
            )
        with context.report.timed("prepare fit"):
            nucleus = nucleus_of(protocol)
            models = tuple(self._model(protocol.of_echo(echo)) for echo in range(protocol.n_echoes))
        for echo in range(protocol.n_echoes):
            self._networks(context, echo)
        context.map_names = map_names(models[0])
        context.report.provenance["t1_weights"] = (
            f"steady state from TR and flip angle, relative to {nucleus.strongest}"
            if protocol.repetition_time_s and protocol.flip_angle_deg
            else "none: the header names no TR and flip angle"
        )
        echoes = [protocol.of_echo(echo).spin_echo_time_s for echo in range(protocol.n_echoes)]
        listed = " and ".join(f"{(te or 0.0) * 1e3:g}" for te in echoes)
        context.report.provenance["echo"] = (
            "none: the header's TE is that of a pulse-acquire sequence"
            if echoes[0] is None
            else f"ideal spin echo of {listed} ms, T2 weights relative to {nucleus.strongest}"
        )
        return models

    def _model(self, protocol: Protocol) -> VarproModel:
        """Return what the method knows of one echo time before the data."""
        if self.method == UNION:
            return usual_union_model(protocol, self.options(), self.spatial_prior)
        return usual_model(protocol, self.options())

    def calibrated(self, context: Context) -> tuple[FieldLines, ...]:
        """Compute the lineshape that the field gives to each voxel, for each echo time."""
        _, b0_hz, mask = context.calibration.encoding()
        return self._lineshapes(b0_hz, mask, context)

    def _lineshapes(self, b0_hz: np.ndarray, mask: np.ndarray, context: Context) -> tuple[FieldLines, ...]:
        """Return the lineshapes of the field within the voxels of a mask, for each echo time."""
        line = context.calibration.water_line
        with context.report.timed("lineshapes of the field"):
            spread = None if line is None else slice_spread(line, b0_hz, mask)
            return tuple(
                FieldLines(field_lineshape(b0_hz, mask, model, spread), field_doubt(b0_hz, mask, model))
                for model in context.prepared[self].result()
            )

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Turn spectral images into maps."""
        for item in items:
            if not isinstance(item, SpectralImage):
                yield item
                continue
            model = context.prepared[self].result()[item.echo or 0]
            with context.report.timed("quantify"):
                # what calibrates other nuclei than protons is a line of the same spectrum, and has its own map
                water = context.calibration.water if nucleus_of(item.protocol).water_is_nuisance else None
                maps = with_memory(context, self.element, item, partial(self._fit, model, water, context))
                maps = replace(self._with_field(maps, context.calibration, water), echo=item.echo)
                if item.outside_model is not None and item.model_score is not None:
                    maps = replace(maps, maps={**maps.maps, **_judged(item)})
            self._tell_untrained(item, maps, model, context)
            misfit = float(np.nanmedian(maps.maps["residual"].value[maps.mask]))
            context.report.provenance["median_misfit"] = round(misfit, 2)
            if misfit > LARGE_MISFIT:
                context.report.warn(
                    f"the fit leaves {misfit:.1f} times the noise (median over the voxels), so the model does not "
                    "describe these spectra and the maps are not to be used; check nucleus, echo time, reference ppm, "
                    "field map, and that this is a brain"
                )
            limit = model.dictionary.allowed.shift_hz
            share = float(np.mean(np.abs(maps.maps["shift"].value[maps.mask]) > 0.99 * limit))
            if share > MANY_AT_BOUND:
                context.report.warn(
                    f"in {share:.0%} of the voxels the frequency lies at the end of the searched range (+-{limit:g} "
                    "Hz), so their fit may be wrong; check mrsi_reference_ppm and the field map"
                )
            for name, count in maps.provenance.get("unmodelled_lines", {}).items():
                context.report.warn(
                    f"{count} voxels hold signal that no molecule of the model explains; it was fitted as a line, "
                    f"{name}: look at its map and at spectra there before you trust the maps of molecules beside it"
                )
            flagged = maps.provenance.get("flagged_voxels", {"any": 0})
            if flagged["any"]:
                told = ", ".join(f"{reason} in {n}" for reason, n in flagged.items() if n and reason != "any")
                context.report.warn(
                    f"{flagged['any']} voxels are flagged in the map {FLAG}: {told}; the model does not describe their "
                    "spectra, so leave them out or look at them"
                )
            context.progress(f"frame {item.frame} quantified: {int(maps.mask.sum())} voxels")
            yield maps

    def _tell_untrained(self, image: SpectralImage, maps: Maps, model: VarproModel, context: Context) -> None:
        """Say where this scan's lines, SNR or shifts lie beyond what learned parts of the chain were trained for."""
        echo = image.echo or 0
        by_networks = maps.provenance.get("quantification") in ("cnn", "cnn_spectrum")
        on_manifold = image.provenance.get("method") in TRAINED
        stored = context.model(echo) if by_networks or on_manifold else None
        if stored is None or not maps.mask.any():
            return
        found: dict[str, Any] = {"model": stored.name}
        widths = maps.maps["linewidth"].value[maps.mask].astype(float)
        sentences = []
        if on_manifold:
            field = self._field(image, context)
            found["manifold"], sentence = compare(
                maps,
                TrainedRange.of(stored.card, model),
                whole_widths(widths, field.lineshape, model),
                judged=image.outside_model is not None,
                what=f"the manifold and projector of model '{stored.name}'",
                remedy="their spectra are drawn to what the model knows; take a recipe with method subspace, or "
                "learn a model with a wider ensemble",
            )
            sentences.append(sentence)
        if by_networks:
            found["networks"], sentence = compare(
                maps,
                TrainedRange.of(stored.card, model, least_shift_hz=LEAST_SHIFT_HZ),
                widths,
                what=f"the networks of model '{stored.name}'",
                remedy="their amounts are not to be trusted; take method varpro or adapt_steps 300 (method cnn), or "
                "learn a model with a wider ensemble",
            )
            sentences.append(sentence if maps.provenance.get("adapt_steps", 0) < ENOUGH_STEPS else "")
        for sentence in filter(None, sentences):
            context.report.warn(sentence)
        key = f"scan_against_training of echo {echo}" if echo else "scan_against_training"
        context.report.provenance[key] = found

    def _networks(self, context: Context, echo: int) -> SpectrumNetworks | None:
        """Return the networks of the store that the method needs; None, and a warning, where there are none."""
        if self.method in ("varpro", UNION) and self.start == "search":
            return None
        stored = context.model(echo)
        if stored is not None and stored.networks is not None:
            return stored.networks
        why = (
            "there is no learned model for this scan"
            if stored is None
            else f"the model '{stored.name}' was learned without them"
        )
        wanted = "start cnn" if self.method == "varpro" else f"method {self.method}"
        context.report.warn(
            f"{wanted} of <quantify> needs trained networks and {why}: the result is that of method varpro; train them "
            "with `mrsi learn`"
        )
        return None

    def _fit(self, model: VarproModel, water: np.ndarray | None, context: Context, image: SpectralImage) -> Maps:
        """Return the maps with the lineshapes that the field gives, computed beside the readouts where they were."""
        return self._fitted(image, model, water, self._field(image, context), context)

    def _field(self, image: SpectralImage, context: Context) -> FieldLines:
        """Return the lineshapes that the field gives to the voxels of an image."""
        ahead = context.calibrated.get(self)
        known = self._lineshapes(image.b0_hz, image.mask, context) if ahead is None else ahead.result()
        return known[image.echo or 0]

    def _fitted(
        self, image: SpectralImage, model: VarproModel, water: np.ndarray | None, field: FieldLines, context: Context
    ) -> Maps:
        """Return the maps by the method that was asked for, or by varpro where its networks are missing."""
        networks = self._networks(context, image.echo or 0)
        known = field._asdict()
        if isinstance(model, UnionModel):
            return fit_union_of_subspaces(image, model, water=water, seed=context.seed, **known)
        if networks is None:
            return fit_varpro(image, model, water=water, **known)
        steps, seed = self.adapt_steps, context.seed
        if self.method == "varpro":
            begin = lineshapes_of_cnn(image, model, networks, lineshape=field.lineshape, adapt_steps=steps, seed=seed)
            maps = fit_varpro(image, model, water=water, start=begin, **known)
            return replace(maps, provenance={**maps.provenance, "start": "cnn", "adapt_steps": steps})
        spectrum = self.method == "cnn_spectrum"
        return fit_cnn(
            image, model, networks, spectrum=spectrum, water=water, adapt_steps=steps, seed=seed, **known
        )  # fmt: skip

    @staticmethod
    def _with_field(maps: Maps, calibration: Calibration, water: np.ndarray | None) -> Maps:
        """Return the maps with the field map as measured (a reconstruction may have shifted it) and the water."""
        if calibration.b0_hz is not None:
            maps = replace(maps, b0_hz=calibration.b0_hz)
        if water is None:
            return maps
        return replace(maps, maps={**maps.maps, "water": Map(water, "a.u. (water signal at t = 0)")})


def _judged(image: SpectralImage) -> dict[str, Map]:
    """Return what a learned model says of the voxels, as maps."""
    assert image.outside_model is not None
    assert image.model_score is not None
    inside = image.mask
    return {
        "outside_model": Map(
            np.where(inside, image.outside_model, np.nan).astype(np.float32), "1 (outside of the model)"
        ),
        "model_score": Map(np.where(inside, image.model_score, np.nan).astype(np.float32), "1 (-log10 of the p-value)"),
    }
