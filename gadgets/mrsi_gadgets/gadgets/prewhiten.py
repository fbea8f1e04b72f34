"""Gadget `prewhiten`: channels of unit, uncorrelated noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mrsi_gadgets.arrays import to_device
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.device_memory import with_memory
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.reconstruction.noise import (
    apply_channel_matrix,
    covariance_from_noise_scan,
    noise_covariance_from_data,
    whitening_matrix,
)
from mrsi_gadgets.reconstruction.offsets import (
    Offset,
    offset_of_noise,
    offset_of_tail,
    shows_offset,
    without_offset,
)


@dataclass(frozen=True)
class Prewhiten(Gadget):
    """Whiten the channels by the noise scan, or by the tail of the data; take a constant offset out of them."""

    element: ClassVar[str] = "prewhiten"
    accepts: ClassVar[tuple[type, ...]] = (KtData,)
    produces: ClassVar[tuple[type, ...]] = (KtData,)
    provides: ClassVar[tuple[str, ...]] = ("noise_covariance",)

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Consume the noise scan, yield everything else whitened and on the session's device."""
        noise: KtData | None = None
        whitening: np.ndarray | None = None
        offset: Offset | None = None
        waiting: list[KtData] = []
        for item in items:
            if not isinstance(item, KtData):
                yield item
            elif item.role is Role.NOISE:
                noise, offset = item, offset_of_noise(item)
            else:
                waits = item.role is Role.NAVIGATOR if noise is not None else item.role is not Role.METABOLITE
                if whitening is None and waits:
                    # without a noise scan only the metabolite data can tell the noise, and navigators have an ADC dwell
                    # of their own: these wait
                    waiting.append(item)
                    continue
                if whitening is None:
                    whitening = self._learn(noise, item, context)
                if item.role is Role.METABOLITE:
                    item = self._without_offset(item, offset, noise is None, context)
                waiting.append(item)
                del item
                while waiting:
                    yield self._whitened(waiting.pop(0), whitening, context)

    @staticmethod
    def _without_offset(kt: KtData, offset: Offset | None, search: bool, context: Context) -> KtData:
        """Take a constant offset out of metabolite data, to which alone it matters, where the data show it."""
        if search:
            offset = offset_of_tail(kt)
        if offset is None:
            return kt
        told = {"source": offset.source, "largest_over_noise": round(offset.largest, 3)}
        if not shows_offset(kt, offset):
            context.report.provenance["dc_offset"] = told | {"taken_out": False}
            return kt
        context.report.provenance["dc_offset"] = told | {"taken_out": True}
        context.progress(
            f"{int(np.count_nonzero(offset.values))} channels have a constant offset of up to {offset.largest:.2g} "
            f"times the noise (from the {offset.source}); taken out"
        )
        return without_offset(kt, offset, overwrite=context.may_overwrite)

    def _whitened(self, kt: KtData, whitening: np.ndarray, context: Context) -> KtData:
        def whiten(item: KtData) -> KtData:
            samples = to_device(item.samples, context.device)
            return item.with_samples(apply_channel_matrix(whitening, samples, overwrite=context.may_overwrite))

        return with_memory(context, self.element, kt, whiten)

    @staticmethod
    def _learn(noise: KtData | None, data: KtData, context: Context) -> np.ndarray:
        if noise is not None:
            if noise.n_coils != data.n_coils:
                raise DataError(
                    f"the noise scan has {noise.n_coils} channels but the data have {data.n_coils}; record both with "
                    "the same coils, or leave the noise scan out"
                )
            covariance, source = covariance_from_noise_scan(noise, data.sample_time_s), "noise scan"
        else:
            covariance, source = noise_covariance_from_data(data)
            context.report.warn(f"no noise scan: the noise level was estimated from the {source}")
        context.calibration.noise_covariance = covariance
        context.calibration.source["noise_covariance"] = source
        context.report.provenance["noise"] = source
        return whitening_matrix(covariance)
