"""Gadget `quantify`: from spectra to amounts with their standard deviations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mrsi_gadgets.data import Maps, SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget, choice
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.macromolecules import macromolecule_basis
from mrsi_gadgets.quantification.varpro import VarproModel, fit_varpro, prepare_varpro


@dataclass(frozen=True)
class Quantify(Gadget):
    """Linear-combination fit of every voxel: non-negative amounts, common phase, shared lineshape and shift."""

    element: ClassVar[str] = "quantify"
    accepts: ClassVar[tuple[type, ...]] = (SpectralImage,)
    produces: ClassVar[tuple[type, ...]] = (Maps,)

    method: str = "varpro"

    def __post_init__(self) -> None:
        choice("method", self.method, ("varpro",))

    def prepare(self, context: Context) -> VarproModel:
        """Simulate the basis and build the dictionaries of this protocol before its data are there."""
        with context.report.timed("prepare fit"):
            model = prepare_varpro(
                context.protocol,
                metabolite_basis(context.protocol),
                macromolecule_basis(context.protocol),
            )
        return model

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Turn spectral images into maps."""
        for item in items:
            if not isinstance(item, SpectralImage):
                yield item
                continue
            model = context.prepared[self].result()
            with context.report.timed("quantify"):
                maps = fit_varpro(item, model, water=context.calibration.water)
            context.progress(f"frame {item.frame} quantified: {int(maps.mask.sum())} voxels")
            yield maps
