"""Gadget `reconstruct`: from calibrated k-t samples to one FID per voxel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mrsi_gadgets.data import KtData, Role, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget, choice
from mrsi_gadgets.models.subspace import Subspace, learn_subspace
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

METHODS = ("fourier", "low_rank", "subspace")
LARGE_RESIDUAL = 0.01
"""Relative residual of an iterative solve from which on it is told."""


@dataclass(frozen=True)
class Reconstruct(Gadget):
    """Spectral image by Fourier transform, low rank, or a learned subspace with B0, coils and edges in the model."""

    element: ClassVar[str] = "reconstruct"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (SpectralImage,)
    requires: ClassVar[tuple[str, ...]] = ("coil_maps",)

    method: str = "subspace"
    """fourier, low_rank or subspace."""
    rank: int | None = None
    """Rank of the temporal basis (low_rank, subspace); auto: from the noise level, or the model's own error."""
    prior: str = "edges"
    """Spatial prior of method subspace: edges (differences of neighbours, weighed by the water image) or none."""

    def __post_init__(self) -> None:
        choice("method", self.method, METHODS)
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; it must be at least 1, or auto")
        if self.method == "fourier" and self.rank is not None:
            raise ConfigError("method fourier has no rank; leave the attribute out")
        choice("prior", self.prior, ("edges", "none"))
        if self.method != "subspace" and self.prior != "edges":
            raise ConfigError(f"method {self.method} has no spatial prior; leave the attribute out")

    def prepare(self, context: Context) -> Subspace | None:
        """Learn the temporal basis of this protocol before its data are there."""
        if self.method != "subspace":
            return None
        with context.report.timed("learn subspace"):
            model = learn_subspace(context.protocol, rank=self.rank, seed=context.seed)
        context.report.provenance["signal_model"] = {
            "rank": model.rank,
            "metabolite_rank": model.metabolite_rank,
            "metabolite_error": round(float(model.metabolite_error), 5),
            "seed": context.seed,
        }
        context.progress(f"temporal basis of rank {model.rank} learned for this protocol")
        return model

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Turn metabolite data into spectral images."""
        for item in items:
            if isinstance(item, KtData) and item.role is Role.METABOLITE:
                with context.report.timed("reconstruct"):
                    image = self._image(item, context)
                del item
                residual = float(image.provenance.get("relative_residual", 0.0))
                if residual > LARGE_RESIDUAL:
                    context.report.warn(
                        f"the reconstruction of incomplete data stopped at a relative residual of {residual:.2g}: too "
                        "little of k-space came to settle it, so fine detail of the maps is not to be trusted; acquire "
                        "more of it"
                    )
                context.progress(f"frame {image.frame} reconstructed ({self.method})")
                yield image
            elif not isinstance(item, KtData):
                yield item

    def _image(self, kt: KtData, context: Context) -> SpectralImage:
        known = context.calibration.encoding()
        if self.method == "fourier":
            return reconstruct_fourier(kt, *known)
        if self.method == "low_rank":
            return reconstruct_low_rank(kt, *known, rank=self.rank)
        model = context.prepared[self].result()
        water = context.calibration.water
        return reconstruct_subspace(kt, *known, model=model, water=water, prior=self.prior, seed=context.seed)
