"""A Hamming window over k-space: the filter that most Fourier images of spectra are made with, as a comparison.

It lowers the side lobes of the point spread function from 22 % to 1 % of its height and the noise with them, and makes
it about 1.8 times as wide along each axis (Harris, Proc IEEE 1978;66:51-83).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.arrays import like
from mrsi_gadgets.data import KtData
from mrsi_gadgets.reconstruction.gridding import on_grid


def hamming_windowed(kt: KtData) -> KtData:
    """Return data on a grid, multiplied by 0.54 + 0.46 cos(2 pi k / n) along each axis with n > 1 points.

    The centre of k-space keeps its weight, so that amounts stay as they are; what the window makes of the noise is in
    `count`, and so in the noise of an image that is made of the result.

    Parameters
    ----------
    kt : whitened data of any encoding.
    """
    kt = on_grid(kt)
    geometry = kt.protocol.geometry
    window = np.ones(len(kt.k))
    for axis, (n, fov_mm) in enumerate(zip(geometry.matrix, geometry.fov_mm, strict=True)):
        if n > 1:
            window = window * (0.54 + 0.46 * np.cos(2 * np.pi * kt.k[:, axis] * fov_mm * 1e-3 / n))
    weights = like(window[None, :, None], kt.samples, kt.samples.dtype)
    counts = kt.count / (window if kt.count.ndim == 1 else window[:, None]) ** 2
    return replace(kt, samples=kt.samples * weights, count=counts)
