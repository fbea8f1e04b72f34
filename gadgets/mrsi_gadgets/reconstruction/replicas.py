"""Noise replicas: what a reconstruction makes of noise, found by trying it (pseudo replicas).

A method that follows the data (rank, rows, weights, a network's trust) has no noise in closed form. So white noise with
a seed is added to the whitened samples and the whole method runs again; the difference to its result, over the size of
what was added, is one draw of the noise in the result (Robson et al., MRM 2008;60:895-907, doi:10.1002/mrm.21728). Few
are enough, because the fit pools what they do to its amounts over the voxels (`quantification.replica_noise`).

The same replicas tell the noise in what a method leaves of the data, their Fourier image less its result. What is left
beyond that noise was smoothed away: a bias.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mrsi_gadgets.arrays import Array, is_numpy, like, namespace, over_parts
from mrsi_gadgets.data import KtData, Replicas, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.prior_step import voxels_in

STEP = 0.5
"""Added noise over the noise of the data: less would make jumps (another rank, another weight) count many times over,
more would be another, noisier scan. With this one the data's noise grows by an eighth."""


def replicate(
    kt: KtData,
    coil_maps: Array,
    image: SpectralImage,
    reconstruct: Callable[[KtData], SpectralImage],
    *,
    count: int,
    seed: int,
    noise_sd: float = 1.0,
    overwrite: bool = False,
) -> Replicas:
    """Reconstruct data again with further noise.

    Parameters
    ----------
    kt
        Whitened data that `image` was reconstructed from.
    coil_maps
        (coil, x, y, z), as `reconstruct` has them.
    image
        Its result.
    reconstruct
        The method: data -> image, deterministic.
    count
        Replicas, at least 1.
    seed
        Of the noise.
    noise_sd
        SD of the real part of the noise of one readout's sample.
    overwrite
        Whether the samples may be overwritten: no second array of their size is made then (NumPy only).

    Raises
    ------
    ConfigError
        The count is not positive.
    """
    if count < 1:
        raise ConfigError(f"{count} noise replicas tell nothing; ask for at least 1, or leave them out")
    xp = namespace(kt.samples)
    fourier = reconstruct_fourier(kt, coil_maps, image.b0_hz, image.mask, noise_sd) if kt.fully_sampled else None
    base = _fids(image)
    left = None if fourier is None else _fids(fourier) - base
    noise, left_noise = [], []
    samples = kt.samples if overwrite and is_numpy(kt.samples) else xp.asarray(kt.samples, copy=True)
    for number in range(count):
        # the noise of the replica before goes out again: no other copy of the data is kept
        steps = [(number, STEP * noise_sd)] + ([(number - 1, -STEP * noise_sd)] if number else [])
        for which, size in steps:
            samples = _with_noise(samples, kt, np.random.SeedSequence([seed, which]), size)
        noisy = kt.with_samples(samples)
        again = reconstruct(noisy)
        noise.append((_fids(again) - base) * (1 / STEP))
        if left is not None:
            one = reconstruct_fourier(noisy, coil_maps, again.b0_hz, image.mask, noise_sd)
            left_noise.append((_fids(one) - _fids(again) - left) * (1 / STEP))
    return Replicas(noise=xp.stack(noise), left=left, left_noise=xp.stack(left_noise) if left_noise else None)


def _with_noise(samples: Array, kt: KtData, seeds: np.random.SeedSequence, size: float) -> Array:
    """Return samples with white noise of SD `size` over the root of the number of readouts; in place with NumPy."""
    weight = np.where(kt.counts > 0, size / np.sqrt(np.maximum(kt.counts, 1e-12)), 0.0).astype(np.float32)
    generators = [np.random.Generator(np.random.SFC64(seed)) for seed in seeds.spawn(kt.n_coils)]

    def drawn(coil: int) -> np.ndarray:
        pair = generators[coil].standard_normal((*weight.shape, 2), dtype=np.float32)
        return np.asarray(pair.view(np.complex64)[..., 0] * weight)

    if is_numpy(samples):

        def add(coils: slice) -> None:
            for coil in range(coils.start, coils.stop):
                samples[coil] += drawn(coil)

        over_parts(add, kt.n_coils, kt.n_coils)
        return samples
    xp = namespace(samples)
    return samples + xp.stack([like(drawn(coil), samples, samples.dtype) for coil in range(kt.n_coils)])


def _fids(image: SpectralImage) -> Array:
    """Return the FIDs of the voxels of the mask, (voxel, t)."""
    inside = voxels_in(image.coefficients, image.mask)
    return inside if image.basis is None else inside @ like(image.basis, inside, inside.dtype)
