"""What is known of FIDs before a scan: the interface that all learned models share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from mrsi_gadgets.arrays import Array


@runtime_checkable
class SignalModel(Protocol):
    """A set of plausible FIDs and the way onto it.

    Subspaces (eq. 6), denoising autoencoders (eq. 8) and RAIISE projectors (eq. 9, 10) are interchangeable wherever
    only this is used. A model belongs to one protocol: its FIDs are sampled at that protocol's times.
    """

    @property
    def rank(self) -> int:
        """Number of complex degrees of freedom of one FID."""
        ...

    def project(self, fids: Array, noise_sd: float | None = None) -> Array:
        """Return the model's nearest FIDs.

        Parameters
        ----------
        fids : (..., t) complex, B0 taken out, any array namespace; the result has its shape, namespace and device.
        noise_sd : standard deviation of the noise in the real part of one sample; None for noise-free FIDs. A model may
            use it to pull noisy FIDs towards likely ones.
        """
        ...
