"""Lobes that run to and fro: what the hardware makes different between them.

Gradient delays and eddy currents shift the two directions of alternating lobes against each other along kx, and give
them different phases. Both directions see the same object, so that their images differ by exp(i (phi_0 + phi_1 x)): a
constant phase, and a shift of kx that is a slope along x. Water, or what is strongest in the data, shows it. The phase
is taken out of the reversed lobes' samples; the shift is written into the points' own k, where the encoding needs no
further correction of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import like, namespace, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift
from mrsi_gadgets.reconstruction.gridding import on_grid

_EARLY_S = 0.012
_FEW_TIMES = 48
"""The first times alone tell the difference; moving FIDs to common times needs some more of them than are looked at."""
_LEAST_COHERENCE = 0.3
"""Coherence of the two directions' images below which they do not show the same object."""


@dataclass(frozen=True)
class OddEven:
    """Difference of the reversed lobes from the forward ones."""

    phase_rad: float
    """Constant phase."""
    shift_per_m: float
    """Shift of kx of the reversed lobes against the forward ones [1/m]."""
    coherence: float
    """How well a phase and a shift explain the difference, 0 to 1."""


def is_alternating(kt: KtData) -> bool:
    """Tell whether the data are lobes of both directions: forward points first, then as many reversed ones."""
    return kt.protocol.encoding == "epsi" and kt.protocol.readout_polarity == "alternating"


def find_odd_even(kt: KtData) -> OddEven:
    """Return phase and shift between the two directions of alternating lobes.

    Parameters
    ----------
    kt
        Lobes of both directions with a strong signal (water reference, or residual water), whitened.

    Raises
    ------
    DataError
        The images of the two directions do not show the same object: a lobe counter is off by one, or the flag of the
        reversed lobes is on the wrong parity.
    """
    forward, backward = (_early_images(half) for half in _halves(kt))
    product = np.sum(np.conj(forward) * backward, axis=(0, 2, 3, 4))  # per x
    size = np.sum(np.abs(forward * backward), axis=(0, 2, 3, 4))
    n = len(product)
    geometry = kt.protocol.geometry
    # a slope of 2 pi per voxel would be a shift of the whole width of k-space: search all of them, then refine
    x = np.arange(n) - geometry.centre_index[0]
    slopes = np.linspace(-np.pi, np.pi, 16 * n, endpoint=False)
    score = np.abs(np.exp(-1j * slopes[:, None] * x) @ product)
    slope = float(slopes[score.argmax()])
    for _ in range(3):
        flat = product * np.exp(-1j * slope * x)
        mean = np.sum(flat)
        weight = np.abs(flat)
        angle = np.angle(flat * np.conj(mean))
        centre = np.sum(weight * x) / np.sum(weight)
        slope += float(np.sum(weight * (x - centre) * angle) / max(float(np.sum(weight * (x - centre) ** 2)), 1e-30))
    total = np.sum(product * np.exp(-1j * slope * x))
    coherence = float(np.abs(total) / max(float(np.sum(size)), np.finfo(float).tiny))
    if not coherence > _LEAST_COHERENCE:
        raise DataError(
            f"the images of odd and even lobes do not show the same object (coherence {coherence:.2f}); check the lobe "
            "counter, the flag of the reversed lobes and mrsi_readout_polarity"
        )
    # an image times exp(i s x) has its k-space at k + s / (2 pi)
    shift = slope / (2 * np.pi) / (geometry.voxel_mm[0] * 1e-3)
    return OddEven(float(np.angle(total)), shift, coherence)


def correct_odd_even(kt: KtData, found: OddEven) -> KtData:
    """Return the data with the reversed lobes' phase taken out and both directions' points where they really are.

    A gradient delay moves the two directions by half the shift each, one forth and one back.
    """
    half = kt.k.shape[0] // 2
    phase = np.ones(kt.k.shape[0], dtype=np.complex64)
    phase[half:] = np.exp(-1j * found.phase_rad)
    k = np.array(kt.k, dtype=float)
    # the reversed lobes' samples belong to k - shift, if those of the forward ones are where they should be
    k[:half, 0] += 0.5 * found.shift_per_m
    k[half:, 0] -= 0.5 * found.shift_per_m
    return replace(kt, samples=kt.samples * like(phase[None, :, None], kt.samples, kt.samples.dtype), k=k)


def _halves(kt: KtData) -> list[KtData]:
    """Return forward and reversed lobes as data of their own."""
    half = kt.k.shape[0] // 2
    if 2 * half != kt.k.shape[0]:
        raise DataError(f"{kt.k.shape[0]} points are not two directions of alternating lobes; send both")
    n = min(_FEW_TIMES, kt.t.shape[1])
    kt = replace(
        kt, samples=kt.samples[..., :n], t=kt.t[:, :n], count=kt.count if kt.count.ndim == 1 else kt.count[:, :n]
    )
    parts = []
    for place in (slice(0, half), slice(half, None)):
        density = None if kt.density is None else 2 * kt.density[place]
        parts.append(
            replace(
                kt,
                samples=kt.samples[:, place, :],
                k=kt.k[place],
                t=kt.t[place],
                count=kt.count[place],
                density=density,
                acquired_s=None,
                grid=None,
            )
        )
    return parts


def _early_images(kt: KtData) -> np.ndarray:
    """Return (coil, x, y, z, few times) at the start, where the signal is strongest."""
    gridded = on_grid(kt)
    count = max(1, int(np.sum(gridded.t[0] - gridded.t[0, 0] < _EARLY_S)))
    few = gridded.dense[..., :count]
    fourier = Fourier(tuple(int(n) for n in few.shape), 1, half_voxel_shift(kt.protocol.geometry))
    return to_numpy(fourier.H(namespace(few).asarray(few, copy=True)))
