"""Wavelet prior: the magnitudes of Haar details inside a mask of any shape, shifted to every place.

Haar's pairs know the mask: a block stands for as many voxels as it has inside, and joining blocks of m and n voxels
with coefficients a and b is the rotation

    mean   (sqrt(m) a + sqrt(n) b) / sqrt(m + n),      detail   (sqrt(n) a - sqrt(m) b) / sqrt(m + n)

(unbalanced Haar wavelets: Girardi and Sweldens 1997, doi:10.1007/BF02649107). So the transform is orthogonal on
exactly the voxels of the mask, whatever its shape and whatever the size of the grid: nothing has to be invented outside
of the mask or beyond the grid, noise stays white, and a constant has no details at its border. Longer filters
(Daubechies) would need values outside.

Averaging over all shifts of the blocks (cycle spinning: Coifman and Donoho 1995, doi:10.1007/978-1-4612-2544-7_9) is
done by the undecimated transform: a block depends on where it begins alone, so that all shifts together cost no more
than some steps of total variation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy


@dataclass(frozen=True, eq=False)
class _Split:
    """Pairs along one axis become means and details."""

    axis: int
    step: int
    """Voxels from a block to its partner in the undecimated transform; 0: pairs of neighbours, half as many blocks."""
    own: Array
    """(band, x, y, z, 1): sqrt(m / (m + n)), m the weight of the first block of each pair."""
    other: Array
    """(band, x, y, z, 1): sqrt(n / (m + n))."""

    def forward(self, bands: Array) -> Array:
        """Return means, then details, (2 band, x, y, z, component)."""
        xp = namespace(bands)
        first, second = _pairs(bands, self.axis + 1, self.step)
        return xp.concat(
            [self.own * first + self.other * second, self.other * first - self.own * second], axis=0
        )  # fmt: skip

    def back(self, bands: Array) -> Array:
        """Undo `forward`; of the two pairs that each block is in, the mean."""
        xp = namespace(bands)
        half = bands.shape[0] // 2
        mean, detail = bands[:half, ...], bands[half:, ...]
        first, second = self.own * mean + self.other * detail, self.other * mean - self.own * detail
        if self.step:
            return 0.5 * (first + xp.roll(second, self.step, axis=self.axis + 1))
        shape = [n * (1 + (i == self.axis + 1)) for i, n in enumerate(first.shape)]
        return xp.reshape(xp.stack([first, second], axis=self.axis + 2), tuple(shape))


def _pairs(bands: Array, axis: int, step: int) -> tuple[Array, Array]:
    if step:
        return bands, namespace(bands).roll(bands, -step, axis=axis)
    place = [slice(None)] * 5
    odd = list(place)
    place[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    return bands[tuple(place)], bands[tuple(odd)]


@dataclass(frozen=True, eq=False)
class WaveletL1:
    """R(v) = sum over details of |detail|, averaged over all shifts of the blocks (or of one shift).

    With one shift the transform is orthogonal and the step exactly the minimum. The mean of the steps of all shifts is
    itself the step of a convex function close to R (the proximal average: Bauschke, Goebel, Lucet and Wang 2008,
    doi:10.1137/070687542).
    """

    mask: Array
    """(x, y, z, 1): 1 inside, 0 outside."""
    before: tuple[int, int, int]
    """Empty voxels put before the grid: the shift."""
    size: tuple[int, int, int]
    """Voxels of the grid with empty ones before and behind."""
    levels: tuple[tuple[_Split, ...], ...]
    """Of each level the splits along its axes."""

    def prox(self, u: Array, weights: np.ndarray) -> Array:
        """Return the image with its details shortened by the weight of their component; means stay."""
        xp = namespace(u)
        threshold = like(np.asarray(weights, dtype=np.float32), xp.real(u))
        details, mean = self.analyse(u)
        return self.synthesise([_shorter(d, threshold) for d in details], mean) + u * (1 - self.mask)

    def analyse(self, u: Array) -> tuple[list[Array], Array]:
        """Return the details of each level, finest first, (band, x, y, z, component), and the means that are left."""
        xp = namespace(u)
        mean = self._padded(u * self.mask)[None, ...]
        details = []
        for level in self.levels:
            for split in level:
                mean = split.forward(mean)
            details.append(mean[1:, ...])
            mean = mean[:1, ...]
        return details, xp.squeeze(mean, axis=0)

    def synthesise(self, details: list[Array], mean: Array) -> Array:
        """Undo `analyse` (zero outside of the mask)."""
        xp = namespace(mean)
        bands = mean[None, ...]
        for level, detail in zip(reversed(self.levels), reversed(details), strict=True):
            bands = xp.concat([bands, detail], axis=0)
            for split in reversed(level):
                bands = split.back(bands)
        x, y, z = (slice(b, b + n) for b, n in zip(self.before, self.mask.shape, strict=False))
        return bands[0, x, y, z, :]

    def value(self, u: Array) -> np.ndarray:
        """Return the sum of the magnitudes of all details of each component, the mean over the shifts."""
        total = np.zeros(u.shape[-1])
        share = 1.0
        for level, detail in zip(self.levels, self.analyse(u)[0], strict=True):
            share /= 2.0 ** sum(split.step > 0 for split in level)
            total += share * np.sum(np.abs(to_numpy(detail)), axis=(0, 1, 2, 3), dtype=float)
        return total

    def candidates(self, noise_sd: float) -> np.ndarray:
        """Return 0, then 0.2 to 6 noise SDs: noise has magnitudes of 1.25 on average and rarely more than 4."""
        return noise_sd * np.concatenate([[0.0], np.geomspace(0.2, 6.0, 12)])

    def _padded(self, u: Array) -> Array:
        xp = namespace(u)
        for axis, (first, n) in enumerate(zip(self.before, self.size, strict=True)):
            shape = list(u.shape)
            ends = []
            for count in (first, n - first - shape[axis]):
                shape[axis] = count
                ends.append(like(np.zeros(shape, dtype=np.complex64), u, u.dtype))
            u = xp.concat([ends[0], u, ends[1]], axis=axis)
        return u


def _shorter(detail: Array, threshold: Array) -> Array:
    """Return complex numbers whose magnitudes are less by `threshold`, not below zero; phases stay."""
    xp = namespace(detail)
    size = xp.abs(detail)
    tiny = like(float(np.finfo(np.float32).tiny), size, size.dtype)
    return detail * (1 - threshold / xp.maximum(xp.maximum(size, threshold), tiny))


def wavelet_prior(
    mask: np.ndarray, reference: Array, *, levels: int = 3, shift: tuple[int, int, int] | None = None
) -> WaveletL1:
    """Return the prior of a mask.

    Parameters
    ----------
    mask
        (x, y, z) bool.
    reference
        Array whose namespace and device the prior takes.
    levels
        The largest blocks have 2^levels voxels along each axis, less where the grid has fewer.
    shift
        Voxels by which the blocks are shifted along each axis (one orthogonal transform); None for all shifts at once.
    """
    own_levels = [min(levels, int(np.ceil(np.log2(n)))) for n in mask.shape]
    before = (0, 0, 0) if shift is None else shift
    size = []
    for n, count, first in zip(mask.shape, own_levels, before, strict=True):
        block = 2**count
        # on the ring of the undecimated transform, no block may reach from the last voxel to the first
        size.append(n + block - 1 if shift is None else -(-(n + first) // block) * block)
    counts = np.zeros(size)
    place = tuple(slice(first, first + n) for n, first in zip(mask.shape, before, strict=True))
    counts[place] = mask
    weights = counts[None, ..., None]
    found = []
    for level in range(levels):
        splits = []
        for axis in (a for a in range(3) if own_levels[a] > level):
            step = 0 if shift is not None else 2**level
            m, n = _pairs(weights, axis + 1, step)
            whole = m + n
            safe = np.where(whole > 0, whole, 1.0)
            own = np.where(whole > 0, np.sqrt(m / safe), 1.0)
            parts = [like(part.astype(np.float32), reference, "float32") for part in (own, np.sqrt(n / safe))]
            splits.append(_Split(axis, step, parts[0], parts[1]))
            # details of m and n voxels have what a slope gives them as weight, so that a plane has no mixed details
            weights = np.concatenate([whole, m * n / safe], axis=0)
        found.append(tuple(splits))
        weights = weights[:1]
    inside = like(mask[..., None].astype(np.float32), reference, "float32")
    return WaveletL1(inside, before, (size[0], size[1], size[2]), tuple(s for s in found if s))
