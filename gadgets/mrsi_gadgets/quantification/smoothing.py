"""Smoothing of maps within a mask."""

from __future__ import annotations

import numpy as np


def smooth_in_mask(values: np.ndarray, mask: np.ndarray, fwhm_voxels: float) -> np.ndarray:
    """Smooth with a Gaussian, counting only voxels of the mask (normalised convolution)."""
    sigma = fwhm_voxels / (8 * np.log(2)) ** 0.5
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weighted, weight = np.where(mask, values, 0.0).astype(float), mask.astype(float)
    for axis, size in enumerate(mask.shape):
        if size > 1:
            band = kernel[np.clip(np.arange(size)[:, None] - np.arange(size)[None, :] + reach, 0, 2 * reach)]
            band = band * (np.abs(np.arange(size)[:, None] - np.arange(size)[None, :]) <= reach)
            weighted = np.moveaxis(np.tensordot(band, weighted, (1, axis)), 0, axis)
            weight = np.moveaxis(np.tensordot(band, weight, (1, axis)), 0, axis)
    return np.divide(weighted, weight, out=np.zeros_like(weighted), where=weight > 0)
