"""Noise readouts: collected as they are, with the dwell that tells their bandwidth."""

from __future__ import annotations

from typing import Protocol as Interface

import numpy as np

from mrsi_gadgets.data import KtData, Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.layout import ReadoutHead
from mrsi_gadgets.stream.messages import Acquisition


class Reporter(Interface):
    """Takes the sentences that leave with the result."""

    def warn(self, sentence: str) -> None:
        """Keep a sentence."""


class NoiseReadouts:
    """The noise scan of one measurement.

    Its `KtData` has one point per readout (one for all where their lengths differ), k = 0, t from the first sample, and
    its own `sample_time_s`: the covariance of data with another dwell is this one's times dwell_noise / dwell_data.
    """

    def __init__(self, protocol: Protocol, report: Reporter) -> None:
        self.protocol, self.report = protocol, report
        self._readouts: list[np.ndarray] = []
        self._first: ReadoutHead | None = None

    def take(self, head: ReadoutHead, readout: Acquisition) -> None:
        """Keep one readout.

        Raises
        ------
        DataError
            Its channels or its dwell differ from those of the noise readouts before it.
        """
        first = self._first = self._first or head
        if (head.n_channels, head.sample_time_us) != (first.n_channels, first.sample_time_us):
            raise DataError(
                f"noise readout {head.scan_counter} has {head.n_channels} channels and sample_time_us "
                f"{head.sample_time_us:g}, the first one {first.n_channels} and {first.sample_time_us:g}; one noise "
                "scan needs one of each"
            )
        kept = readout.data[:, head.discard_pre : head.n_samples - head.discard_post]
        # conjugated like the data, so that the covariance is theirs
        self._readouts.append(np.conj(kept) if self.protocol.freq_sign < 0 else kept)

    def finish(self) -> list[KtData]:
        """Return the noise, where there is any.

        Raises
        ------
        DataError
            Its dwell is not known.
        """
        if self._first is None or not any(part.shape[1] for part in self._readouts):
            return []
        if len({part.shape[1] for part in self._readouts}) == 1:
            samples = np.stack(self._readouts, axis=1)
        else:
            samples = np.concatenate(self._readouts, axis=1)[:, None, :]
        _, readouts, length = samples.shape
        sample_time = self._first.sample_time_us * 1e-6
        if not sample_time and self.protocol.encoding != "csi":
            raise DataError(
                f"noise readouts have sample_time_us 0, and the dwell of {self.protocol.encoding} readouts does not "
                "tell theirs; state it"
            )
        if not sample_time:
            sample_time = self.protocol.dwell_s / self.protocol.readout_oversampling
            self.report.warn("noise readouts have sample_time_us 0; their dwell was taken to be that of the data")
        self._readouts = []
        noise = KtData(
            samples=samples.astype(np.complex64, copy=False),
            k=np.zeros((readouts, 3)),
            t=np.broadcast_to(np.arange(length) * sample_time, (readouts, length)),
            count=np.ones(readouts, dtype=np.int64),
            role=Role.NOISE,
            protocol=self.protocol,
            sample_time_s=sample_time,
        )
        return [noise]

    def compare(self, n_coils: int) -> None:
        """Warn where the noise scan has other channels than the data."""
        if self._first is not None and self._first.n_channels != n_coils:
            self.report.warn(
                f"the noise readouts have {self._first.n_channels} channels but the data {n_coils}; the noise "
                "covariance does not fit the data"
            )
