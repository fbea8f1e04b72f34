"""Gadget `combine_coils`: fewer virtual channels before the work begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from mrsi_gadgets.arrays import like, to_numpy
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.device_memory import with_memory
from mrsi_gadgets.gadgets.gadget import Gadget, handed_on
from mrsi_gadgets.reconstruction.coils import compression_matrix
from mrsi_gadgets.reconstruction.noise import apply_channel_matrix


@dataclass(frozen=True)
class CombineCoils(Gadget):
    """Compress whitened channels (SVD); the matched combination S^H itself is part of the encoding."""

    element: ClassVar[str] = "combine_coils"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (KtData,)
    requires: ClassVar[tuple[str, ...]] = ("coil_maps",)

    lost_energy: float = 1e-3
    """Share of the signal's energy that compression may lose; 0 keeps every channel."""

    def __post_init__(self) -> None:
        if not 0 <= self.lost_energy < 1:
            raise ConfigError(f"lost_energy is {self.lost_energy}; it must be at least 0 and below 1")

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Yield metabolite data on virtual channels; the calibration's coil maps follow."""
        matrix: np.ndarray | None = None
        for item in items:
            if not (isinstance(item, KtData) and item.role is Role.METABOLITE) or self.lost_energy == 0:
                yield item
                continue
            if matrix is None:
                matrix = self._compress(item, context)
            if matrix.shape[0] != matrix.shape[1]:
                compressing = partial(_compressed, matrix, overwrite=context.may_overwrite)
                ready = [with_memory(context, self.element, item, compressing)]
            else:
                ready = [item]
            del item
            yield from handed_on(ready)

    def _compress(self, data: KtData, context: Context) -> np.ndarray:
        calibration = context.calibration
        maps = to_numpy(calibration.coil_maps)
        if data.n_coils != maps.shape[0]:
            raise DataError(
                f"the metabolite data have {data.n_coils} channels but the water reference had {maps.shape[0]}; "
                "record both with the same coils"
            )
        # the signal of every voxel as the coils see it, free of noise: what compression has to keep
        weight = calibration.water if calibration.water is not None else calibration.mask
        assert weight is not None
        signals = maps * weight.astype(np.float32)
        matrix = compression_matrix(signals, lost_energy=self.lost_energy, noise_sd=0.0)
        if matrix.shape[0] < maps.shape[0]:
            compressed = np.tensordot(matrix, maps, axes=1)
            # keep sum |S|^2 = 1: what compression loses of a voxel is at most `lost_energy` on average
            length = np.sqrt(np.sum(np.abs(compressed) ** 2, axis=0))
            maps = (compressed / np.where(length > 0, length, 1)).astype(np.complex64)
        calibration.coil_maps = like(np.ascontiguousarray(maps), data.samples)
        context.report.provenance["channels"] = f"{matrix.shape[1]} received, {matrix.shape[0]} after compression"
        return matrix


def _compressed(matrix: np.ndarray, item: KtData, *, overwrite: bool) -> KtData:
    return item.with_samples(apply_channel_matrix(matrix, item.samples, overwrite=overwrite))
