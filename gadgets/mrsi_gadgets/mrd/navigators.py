"""Navigators: water FIDs without encoding that are read again and again to follow frequency and phase."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import KtData, Protocol, Role
from mrsi_gadgets.mrd.layout import ReadoutHead
from mrsi_gadgets.mrd.noise import Reporter
from mrsi_gadgets.stream.messages import Acquisition, Flag

LEAST_SAMPLES = 8
"""A shorter FID has no frequency worth the name."""
_OF_OTHER_USE = (
    Flag.IS_PHASECORR_DATA.mask | Flag.IS_HPFEEDBACK_DATA.mask | Flag.IS_RTFEEDBACK_DATA.mask
)  # fmt: skip


class Navigators:
    """The navigators (flag 23) that have come since the last frame left.

    Their `KtData` has one point per navigator, k = 0, t from the acquisition delay on at their own dwell. What cannot
    be read as such (phase correction and feedback, other lengths, other channels) is counted and told.
    """

    def __init__(self, protocol: Protocol, report: Reporter) -> None:
        self.protocol, self.report = protocol, report
        self._first: ReadoutHead | None = None
        self._waiting: list[np.ndarray] = []
        self._times: list[float] = []
        self.unused = 0

    def take(self, head: ReadoutHead, readout: Acquisition, time_s: float) -> None:
        """Keep one navigator that was acquired at `time_s` [s] since the scan's first readout."""
        kept = readout.data[:, head.discard_pre : max(head.n_samples - head.discard_post, 0)]
        first = self._first or head
        fits = (head.n_channels, head.n_samples, head.discard_pre, head.discard_post, head.sample_time_us) == (
            first.n_channels, first.n_samples, first.discard_pre, first.discard_post, first.sample_time_us,
        )  # fmt: skip
        if head.flags & _OF_OTHER_USE or kept.shape[1] < LEAST_SAMPLES or not fits:
            self.unused += 1
            return
        self._first = first
        # a copy: the samples may be a view of the receive buffer
        self._waiting.append(np.conj(kept) if self.protocol.freq_sign < 0 else np.array(kept))
        self._times.append(time_s)

    def hand_over(self, n_coils: int, *, stamped: bool) -> list[KtData]:
        """Return the navigators that wait as one item, or nothing; `stamped`: whether the time stamps mean anything."""
        if not self._waiting or self._first is None:
            return []
        samples, times = self._waiting, self._times
        self._waiting, self._times = [], []
        if self._first.n_channels != n_coils or not stamped:
            self.unused += len(samples)
            return []
        sample_time = self._first.sample_time_us * 1e-6 or self.protocol.dwell_s
        n_samples = samples[0].shape[1]
        times_s = self.protocol.acquisition_delay_s + sample_time * np.arange(n_samples)
        found = KtData(
            samples=np.stack(samples, axis=1).astype(np.complex64, copy=False),
            k=np.zeros((len(samples), 3)),
            t=np.broadcast_to(times_s, (len(samples), n_samples)),
            count=np.ones(len(samples), dtype=np.int64),
            role=Role.NAVIGATOR,
            protocol=self.protocol,
            sample_time_s=sample_time,
            acquired_s=np.array(times),
        )
        return [found]
