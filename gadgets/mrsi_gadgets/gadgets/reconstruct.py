"""Gadget `reconstruct`: from calibrated k-t samples to one FID per voxel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from mrsi_gadgets.arrays import to_device
from mrsi_gadgets.data import KtData, Protocol, Role, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.device_memory import here, with_memory
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.models.between_samples import rows_between_samples
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.between_samples import RowsBetweenSamples, offset_nodes
from mrsi_gadgets.operators.encoding import EvolvedBasis, evolved_basis
from mrsi_gadgets.reconstruction.dae import reconstruct_dae
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.joint import reconstruct_joint
from mrsi_gadgets.reconstruction.locally_low_rank import reconstruct_locally_low_rank
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.prior_step import PRIORS
from mrsi_gadgets.reconstruction.raiise import ManifoldProjection
from mrsi_gadgets.reconstruction.replicas import replicate
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

METHODS = ("fourier", "low_rank", "locally_low_rank", "joint", "subspace", "dae", "raiise")
TRAINED = ("dae", "raiise")
"""Methods that draw spectra to a learned manifold, and need a trained model of the protocol."""
_LEARNED = ("subspace", *TRAINED)
_DATA_DRIVEN = ("low_rank", "locally_low_rank")
MANY_ROWS = 8
"""Rows that a scan adds to the learned basis from which on its noise is no longer that of the learned rows."""
LOBE_OFFSETS = (-0.75, 1.0)
"""Offsets of EPSI's samples from the spectral times, in dwells, for which the basis is ready before the data come."""
MOST_MISSING = 0.1
"""Share of the inner half of k-space that may be missing before images filled with zeros mislead."""
LARGE_RESIDUAL = 0.01
"""Relative residual of an iterative solve from which on it is told."""


MANY_OUTSIDE = 0.5
"""Share of the voxels outside of the learned model from which on it is told."""


def expected_offsets(protocol: Protocol) -> tuple[float, float]:
    """Return between which offsets from the spectral times samples are to be expected, in dwells.

    A lap lasts as many dwells as there are temporal interleaves. Data that go beyond find their basis later.
    """
    if protocol.samples_per_lap:
        return 0.0, float(max(protocol.temporal_interleaves, default=1))
    return LOBE_OFFSETS


@dataclass(frozen=True)
class LearnedBasis:
    """What is known of the signal before the scan."""

    model: Subspace
    between: RowsBetweenSamples | None
    """Its rows between the spectral times, for encodings that sample there."""
    projection: ManifoldProjection | None = None
    """Methods dae and raiise: the trained model."""


@dataclass(frozen=True)
class Reconstruct(Gadget):
    """Spectral image by Fourier transform, low rank, or a learned subspace with B0, coils and edges in the model."""

    element: ClassVar[str] = "reconstruct"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (SpectralImage,)
    requires: ClassVar[tuple[str, ...]] = ("coil_maps",)
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"method": METHODS, "prior": PRIORS}

    method: str = "subspace"
    """fourier, low_rank, locally_low_rank, joint, subspace, dae or raiise. dae and raiise take their trained model from
    the store (`mrsi learn`); where there is none for the scan they say so and do what subspace does."""
    rank: int | None = None
    """Rank of the temporal basis (not fourier, dae, raiise); auto: from the noise level, or the model's own error."""
    prior: str = "edges"
    """Spatial prior of methods subspace, dae and raiise: edges (differences of neighbours, weighed by the water image),
    tv (total variation weighed likewise), wavelet, or none; tv and wavelet need complete data."""

    replicas: int | None = None
    """Times the data are reconstructed again with more noise, to find what the method does to noise and what it smooths
    away; 0: what is known in closed form; auto: 1 where data are complete and the basis follows them, so that there is
    no closed form (low_rank, locally_low_rank; on a grid subspace and raiise that have added many rows), else 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replicas is not None and self.replicas < 0:
            raise ConfigError(f"replicas is {self.replicas}; it must be at least 0, or auto")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; it must be at least 1, or auto")
        if self.method == "fourier" and self.rank is not None:
            raise ConfigError("method fourier has no rank; leave the attribute out")
        if self.method in TRAINED and self.rank is not None:
            raise ConfigError(f"method {self.method} has the rank of its trained model; leave the attribute out")
        if self.method not in _LEARNED and self.prior != "edges":
            raise ConfigError(f"method {self.method} has no spatial prior; leave the attribute out")
        if self.method == "raiise" and self.prior == "none":
            raise ConfigError("method raiise projects the image of a spatial prior; choose edges, tv or wavelet")
        if self.method == "dae" and self.prior not in ("edges", "none"):
            raise ConfigError(f"method dae cannot take prior {self.prior}; choose edges or none")

    def prepare(self, context: Context) -> tuple[LearnedBasis, ...]:
        """Learn or find the signal model of this protocol, one for each echo time, before its data are there."""
        if self.method not in _LEARNED:
            return ()
        return tuple(self._learned(context, echo) for echo in range(context.protocol.n_echoes))

    def _learned(self, context: Context, echo: int) -> LearnedBasis:
        protocol = context.protocol.of_echo(echo)
        projection = self._trained(context, echo) if self.method in TRAINED else None
        if projection is not None:
            model = projection.subspace
        else:
            model = context.subspace(echo, self.rank)
            told = {
                "rank": model.rank,
                "metabolite_rank": model.metabolite_rank,
                "metabolite_error": round(float(model.metabolite_error), 5),
                "seed": context.seed,
            }
            # dae and raiise have said there why they found no model
            key = "signal_model" if self.method == "subspace" else "subspace"
            context.report.provenance[key if not echo else f"{key} of echo {echo}"] = told
            context.progress(f"temporal basis of rank {model.rank} learned for this protocol")
        if protocol.encoding == "csi":
            return LearnedBasis(model, None, projection)
        dwell = protocol.dwell_s
        with context.report.timed("basis between samples"):
            low, high = expected_offsets(protocol)
            between = rows_between_samples(model, offset_nodes(low * dwell, high * dwell, dwell))
        return LearnedBasis(model, between, projection)

    def _trained(self, context: Context, echo: int) -> ManifoldProjection | None:
        """Return the projection of the stored model that fits the scan, or None and say what is done instead."""
        stored = context.model(echo)
        if stored is None:
            context.report.warn(
                f"no trained model fits this scan, so method {self.method} did what subspace does; run `mrsi learn` "
                "on a raw file of this protocol"
            )
            return None
        with context.report.timed("warm up networks"):
            nothing = to_device(np.ones((1, stored.manifold.rank), dtype=np.complex64), context.device)
            stored.manifold.project_coefficients(nothing, 1.0)
        return ManifoldProjection(stored.manifold, stored.subspace, stored.gate)

    def calibrated(self, context: Context) -> tuple[EvolvedBasis | None, ...]:
        """Let the basis evolve in the field, for encodings that sample between the spectral times."""
        if self.method not in _LEARNED:
            return ()
        _, b0_hz, _ = context.calibration.encoding()
        reference = to_device(np.zeros(1, dtype=np.complex64), context.device)
        evolved: list[EvolvedBasis | None] = []
        for learned in context.prepared[self].result():
            if learned.between is None:
                evolved.append(None)
                continue
            with context.report.timed("basis in the field"):
                evolved.append(evolved_basis(learned.between, b0_hz, learned.model.protocol.times_s, reference))
        return tuple(evolved)

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Turn metabolite data into spectral images."""
        for item in items:
            if isinstance(item, KtData) and item.role is Role.METABOLITE:
                item = here(context, item)
                self._tell_aliases(item, context)
                with context.report.timed("reconstruct"):
                    image = with_memory(context, self.element, item, partial(self._image, context=context))
                with context.report.timed("noise replicas"):
                    replicate_it = partial(self._replicated, context=context)
                    image = with_memory(context, self.element, here(context, (item, image)), replicate_it)
                    if item.protocol.n_echoes > 1:
                        image = replace(image, protocol=item.protocol.of_echo(item.echo), echo=item.echo)
                del item
                residual = float(image.provenance.get("relative_residual", 0.0))
                if residual > LARGE_RESIDUAL:
                    context.report.warn(
                        f"the reconstruction of incomplete data stopped at a relative residual of {residual:.2g}: too "
                        "little of k-space came to settle it, so fine detail of the maps is not to be trusted; acquire "
                        "more of it"
                    )
                self._tell_strangers(image, context)
                context.progress(f"frame {image.frame} reconstructed ({self.method})")
                yield image
            elif not isinstance(item, KtData):
                yield item

    def _replicated(self, made: tuple[KtData, SpectralImage], context: Context) -> SpectralImage:
        """Return the image that was made of data with replicas of its noise, where there are to be any."""
        kt, image = made
        rows = int(image.provenance.get("rows_added", 0))
        quick = kt.fully_sampled and (self.method in _DATA_DRIVEN or kt.grid is not None)
        count = self.replicas
        if count is None:
            count = int(quick and (self.method in _DATA_DRIVEN or rows >= MANY_ROWS))
            if rows >= MANY_ROWS and not quick:
                context.report.warn(
                    f"the scan added {rows} rows to the temporal basis, whose noise the stated standard deviations do "
                    "not know in full (they may be half of what they should be); a recipe with <reconstruct "
                    'replicas="1"/> finds it'
                )
        if not count or not image.mask.any():
            return image
        found = replicate(
            kt, context.calibration.encoding()[0], image, lambda noisy: self._image(noisy, context), count=count,
            seed=context.seed, overwrite=context.may_overwrite,
        )  # fmt: skip
        return replace(image, replicas=found)

    @staticmethod
    def _tell_strangers(image: SpectralImage, context: Context) -> None:
        """Say where the learned model does not know the scan."""
        if image.outside_model is None or not image.mask.any():
            return
        share = float(np.mean(image.outside_model[image.mask]))
        context.report.provenance["voxels_outside_model"] = int(image.outside_model.sum())
        if share > MANY_OUTSIDE:
            context.report.warn(
                f"{share:.0%} of the voxels lie outside of what the model was trained on; they have the result of the "
                "spatial prior alone (map outside_model); check the field map and what the model was "
                "trained for; recipe subspace needs no model"
            )

    def _tell_aliases(self, kt: KtData, context: Context) -> None:
        """Say what a method that fills missing k-space with zeros makes of it."""
        if self.method not in ("fourier", "low_rank") or kt.fully_sampled:
            return
        # an ellipse that is left out lies at the edge and costs resolution alone
        extent = np.abs(kt.k).max(axis=0)
        inner = np.sum((kt.k / np.where(extent > 0, extent, 1.0)) ** 2, axis=1) < 0.25
        missing = float(np.mean(kt.counts[inner] == 0)) if inner.any() else 0.0
        if missing > MOST_MISSING:
            context.report.warn(
                f"method {self.method} fills what was not acquired with zeros, {missing:.0%} of the inner half of "
                "k-space: its maps are aliased and too small, also those in units of water; use method subspace"
            )

    def _image(self, kt: KtData, context: Context) -> SpectralImage:
        known = context.calibration.encoding()
        if self.method == "fourier":
            return reconstruct_fourier(kt, *known)
        if self.method == "low_rank":
            return reconstruct_low_rank(kt, *known, rank=self.rank)
        if self.method == "locally_low_rank":
            return reconstruct_locally_low_rank(kt, *known, rank=self.rank)
        if self.method == "joint":
            return reconstruct_joint(kt, *known, rank=self.rank)
        learned: LearnedBasis = context.prepared[self].result()[kt.echo]
        ahead = context.calibrated.get(self)
        evolved = None if ahead is None else ahead.result()[kt.echo]
        given: dict[str, Any] = {"between": learned.between, "evolved": evolved, "water": context.calibration.water}
        if self.method == "dae" and learned.projection is not None:
            return reconstruct_dae(
                kt, *known, manifold=learned.projection.manifold, subspace=learned.model, prior=self.prior,
                seed=context.seed, **given,
            )  # fmt: skip
        return reconstruct_subspace(
            kt, *known, model=learned.model, prior=self.prior, refinement=learned.projection,
            seed=context.seed, **given,
        )  # fmt: skip
