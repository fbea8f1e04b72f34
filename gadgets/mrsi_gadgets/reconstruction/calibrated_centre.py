"""The fully sampled centre of k-space: what undersampled data, or calibration readouts, tell of field and coils.

An image of every second point shows the head twice, one on the other, and residual water in it belongs to two places.
The centre of k-space that was sampled without gaps makes an image that is coarse but shows one head; field and coil
sensitivities are smooth, so that a coarse image is enough for them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.arrays import like
from mrsi_gadgets.data import KtData

LEAST_POINTS = 4
"""Points along each encoded axis from which on a centre tells anything of field and coils."""


def missing_share(kt: KtData) -> float:
    """Return the part of k-space that was not acquired, within the ellipse (ellipsoid) that touches its edges, 0 to 1.

    What lies outside of the ellipse may be missing without harm.
    """
    geometry = kt.protocol.geometry
    inside = _radius(kt) <= 1.0 + 1e-9 if any(n > 1 for n in geometry.matrix) else np.ones(len(kt.k), bool)
    return 1.0 - float(np.mean(np.mean(kt.counts[inside] > 0, axis=1))) if inside.any() else 0.0


def centre_box(kt: KtData) -> tuple[slice, slice, slice] | None:
    """Return the largest box around the centre of a Cartesian k-space in which every sample was acquired.

    None where the points are no grid, or the box has fewer than `LEAST_POINTS` points along an encoded axis.
    """
    if kt.grid is None:
        return None
    came = np.all(kt.counts > 0, axis=1).reshape(kt.grid)
    centre = [n // 2 for n in kt.grid]
    if not came[tuple(centre)]:
        return None
    box = [slice(c, c + 1) for c in centre]
    growing = {axis for axis, n in enumerate(kt.grid) if n > 1}
    while growing:
        for axis in sorted(growing):
            now, low, high = box[axis], box[axis].start - 1, box[axis].stop + 1
            for wider in (slice(low, high), slice(low, now.stop), slice(now.start, high)):
                tried = [*box[:axis], wider, *box[axis + 1 :]]
                if wider.start >= 0 and wider.stop <= kt.grid[axis] and came[tuple(tried)].all():
                    box = tried
                    break
            else:
                growing.discard(axis)
    for n, part in zip(kt.grid, box, strict=True):
        if part.stop - part.start < min(n, LEAST_POINTS):
            return None
    return box[0], box[1], box[2]


def calibrated_centre(kt: KtData) -> KtData | None:
    """Return the data with a Hann window over their fully sampled centre and nothing else; None where there is none.

    `count` is that of the windowed samples' noise, so that the noise of their images is right. A uniform object keeps
    its size: the window is 1 at the centre of k-space.
    """
    box = centre_box(kt)
    if box is None or kt.grid is None:
        return None
    window = np.ones(1)
    for n, part in zip(kt.grid, box, strict=True):
        index = np.arange(n)
        half = max(part.stop - n // 2, n // 2 - part.start + 1)
        values = np.where(
            (index >= part.start) & (index < part.stop), np.cos(np.pi * (index - n // 2) / half) / 2 + 0.5, 0
        )
        window = np.multiply.outer(window, values if n > 1 else np.ones(1))
    weights = window.reshape(-1)
    seen = weights > 1e-6
    count = np.zeros(len(weights))
    count[seen] = kt.counts[seen].min(axis=1) / weights[seen] ** 2
    samples = kt.samples * like((weights * seen)[None, :, None], kt.samples, kt.samples.dtype)
    return replace(kt, samples=samples, count=count, acquired_s=None)


def centre_size(kt: KtData) -> str:
    """Return the size of the fully sampled centre in words, such as ``8 x 8``."""
    box = centre_box(kt)
    if box is None or kt.grid is None:
        return "none"
    return " x ".join(str(part.stop - part.start) for n, part in zip(kt.grid, box, strict=True) if n > 1)


def _radius(kt: KtData) -> np.ndarray:
    """Return |k| of each point over the edge of k-space, (point,)."""
    geometry = kt.protocol.geometry
    edge = np.array(geometry.matrix) / (2e-3 * np.array(geometry.fov_mm))
    encoded = np.array(geometry.matrix) > 1
    return np.asarray(np.sqrt(np.sum(np.where(encoded, kt.k / edge, 0.0) ** 2, axis=1)))
