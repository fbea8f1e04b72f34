"""Lipids of the scalp: where they are, and how much of them the point spread function brings into the brain.

Their support is found from the data: voxels of high energy in the lipid band of an image with a Hamming window, whose
side lobes are low. Their temporal rows are those of the support's own FIDs. Two ways to take them out of the brain:

* `lipids_at_their_source` (union of subspaces): sources on a grid twice as fine as the image, within the support alone,
  are fitted to the (k,t) data together with signals of brain. A source between two voxels has side lobes all over the
  image because k-space is truncated; they follow from the source, so that what leaks is explained by the scalp (Ma,
  Lam, Johnson, Liang, Magn Reson Med 2016, doi:10.1002/mrm.25635).
* `lipids_by_penalty` (L2): each voxel's projection on the scalp's own spectra is penalised, in closed form (Bilgic et
  al., J Magn Reson Imaging 2014, doi:10.1002/jmri.24274).

Both work with FIDs that have their field: lipids in a voxel of brain come with the field of the scalp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.nuisance.hsvd import principal_rows
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient

BAND_PPM = (0.7, 1.7)
FINENESS = 2
"""Fine voxels per voxel and axis."""
_LEAST_OF_STRONG = 0.15
"""A voxel belongs to the support from this part of the amplitude of strong voxels on."""
_LEAST_OVER_BRAIN = 3.0
"""... and from this factor over the median of the head on: a brain without lipids has no support."""
_STRONG_PERCENTILE = 97
_MOST_ROWS = 40
_LEAK = 0.05
"""Amplitude of a strong leak from the support to a voxel of the brain."""
_OVER_EDGE = 1.2
"""A row counts where its energy is above that of the strongest row of noise alone by this factor."""
_RTOL, _MAX_ITERATIONS = 1e-4, 150


@dataclass(frozen=True, eq=False)
class LipidSpace:
    """Where lipids are and what their FIDs look like."""

    support: np.ndarray
    """(x, y, z) bool."""
    rows: np.ndarray
    """(row, t) complex64, orthonormal, field included."""
    energy: np.ndarray
    """(row,) mean of |coefficient|^2 over the support."""


def band_amplitude(fids: Array, ppm: np.ndarray, band_ppm: tuple[float, float]) -> np.ndarray:
    """Return the root mean square of the unitary spectrum within a band, (...), of FIDs (..., t)."""
    xp = namespace(fids)
    part = fids @ like(band_kernel(ppm, band_ppm).astype(np.complex64), fids, fids.dtype)
    return np.sqrt(to_numpy(xp.sum(xp.real(part) ** 2 + xp.imag(part) ** 2, axis=-1)).astype(float))


def band_kernel(ppm: np.ndarray, band_ppm: tuple[float, float]) -> np.ndarray:
    """Return the transform to the frequencies of a band alone, (t, frequency): |fid @ kernel|^2 is their mean power."""
    n = len(ppm)
    inside = np.flatnonzero((np.fft.ifftshift(ppm) > band_ppm[0]) & (np.fft.ifftshift(ppm) < band_ppm[1]))
    return np.asarray(np.exp(-2j * np.pi * np.outer(np.arange(n), inside) / n) / np.sqrt(n * max(len(inside), 1)))


def hamming(kt: KtData) -> KtData:
    """Return the data under a Hamming window over the extent of k-space, separable along the axes."""
    reach = np.abs(kt.k).max(axis=0)
    window = 0.54 + 0.46 * np.cos(np.pi * kt.k / np.where(reach > 0, reach, 1))
    weights = like(np.prod(window, axis=-1)[None, :, None].astype(np.float32), kt.samples)
    return kt.with_samples(kt.samples * weights)


def lipid_support(amplitude: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return where lipids come from, (x, y, z) bool, by the amplitude of the lipid band in a windowed image."""
    strong = float(np.percentile(amplitude, _STRONG_PERCENTILE))
    typical = float(np.median(amplitude[mask])) if mask.any() else 0.0
    return amplitude > max(_LEAST_OF_STRONG * strong, _LEAST_OVER_BRAIN * typical)


def lipid_space(fids: Array, support: np.ndarray, noise_sd: float) -> LipidSpace:
    """Return the temporal rows of the support's FIDs, as many as reach the brain above a tenth of the noise.

    Parameters
    ----------
    fids
        (x, y, z, t) with the field in them and without water.
    support
        (x, y, z) bool, not empty.
    noise_sd
        SD of the real part of a sample's noise.
    """
    xp = namespace(fids)
    flat = xp.reshape(fids, (-1, int(fids.shape[-1])))
    power, rows = principal_rows(xp.take(flat, like(np.flatnonzero(support.ravel()), flat), axis=0), _MOST_ROWS)
    noise = 2 * noise_sd**2
    power = power / support.sum()
    # the largest eigenvalue of white noise (Marchenko and Pastur 1967)
    edge = noise * (1 + np.sqrt(flat.shape[1] / support.sum())) ** 2
    keep = max(1, int(np.sum((power > _OVER_EDGE * edge) & (power * _LEAK**2 > 0.01 * noise))))
    power = np.maximum(power - noise, 0.0)
    return LipidSpace(support, rows[:keep].astype(np.complex64), np.maximum(power[:keep], 1e-6 * power[0]))


def lipids_at_their_source(
    kt: KtData, space: LipidSpace, brain: np.ndarray, metabolites: np.ndarray, noise_sd: float
) -> tuple[Array, float]:
    """Return the samples (coil, point, t) of the lipids in the support, and the solve's relative residual.

    Each channel has sources of its own, so that no sensitivity has to be known in the scalp. The estimate is the one of
    least mean-square error for independent sources: `space.energy` in the support, `metabolites` in the brain. How the
    rows vary together tells metabolites of the brain next to the scalp from lipids.

    Parameters
    ----------
    kt
        Data without water.
    space
        Support and rows.
    brain
        (x, y, z) bool: where other signal comes from; the support is left out of it.
    metabolites
        (row, row): covariance of the signal of a voxel of brain in the rows.
    noise_sd
        SD of the real part of the noise of one readout's sample.
    """
    samples = kt.samples
    xp = namespace(samples)
    n_coils, n_points, _ = (int(n) for n in samples.shape)
    rank = len(space.rows)
    factors = tuple(FINENESS if n > 1 else 1 for n in kt.protocol.geometry.matrix)
    nx, ny, nz = (n * f for n, f in zip(kt.protocol.geometry.matrix, factors, strict=True))
    fine = (nx, ny, nz)
    share = 1 / (np.prod(factors) * n_coils)
    scale = float(np.sqrt(np.prod(fine) * share))
    values, vectors = np.linalg.eigh(metabolites)
    root = scale * (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.conj().T
    of_brain = like(root.T.astype(np.complex64), samples, samples.dtype)
    in_brain = like(_finer(brain & ~space.support, factors)[..., None].astype(np.float32), samples)
    of_lipids = scale * np.sqrt(space.energy) * _finer(space.support, factors)[..., None]
    size = like(of_lipids.astype(np.float32), samples)

    def sized(sources: Array) -> Array:
        """Multiply by the Hermitian root of the sources' covariance."""
        return size * sources + in_brain * (sources @ of_brain)

    # described anew: what else is known of the points does not concern the sources
    described = KtData(
        samples=samples[:1, ...],
        k=kt.k,
        t=kt.t,
        count=kt.count,
        role=kt.role,
        protocol=replace(kt.protocol, geometry=replace(kt.protocol.geometry, matrix=fine)),
        sample_time_s=kt.sample_time_s,
    )
    separable = kt.common_times and kt.count.ndim == 1
    index: np.ndarray | None = None
    if separable:
        # rows and places do not mix: project in time once, and let the operator see the rows as times
        described = replace(
            described, samples=samples[:1, :, :rank], t=np.broadcast_to(kt.t[:1, :rank], (n_points, rank))
        )
        if kt.grid is not None:
            described, index = _filled(described, kt.grid, fine)
    basis = np.eye(rank) if separable else space.rows
    weights = np.sqrt(described.count.astype(float))
    ones = xp.ones((1, *fine), dtype=samples.dtype, device=getattr(samples, "device", None))
    still = np.zeros(fine)
    weighted = encoding_operator(described, ones, still, basis, weights=weights)
    plain = encoding_operator(described, ones, still, basis, weights=np.ones_like(weights))
    rows = like(space.rows, samples, samples.dtype)
    weight = like(np.sqrt(kt.count.astype(float)).astype(np.float32).reshape(n_points, -1), samples)
    whole = like(index, samples) if index is not None else None
    gram = weighted.gram
    found, residual = [], 0.0
    for coil in range(n_coils):
        data = samples[coil : coil + 1, ...]
        if separable:
            data = data @ xp.conj(xp.matrix_transpose(rows))
        data = data * weight
        if index is not None:
            filled = np.zeros((1, int(np.prod(fine)), rank), dtype=np.complex64)
            filled[:, index, :] = to_numpy(data)
            data = like(filled, samples)
        right = sized(weighted.H(data))

        def normal(v: Array) -> Array:
            return sized(gram(sized(v))) + 2 * noise_sd**2 * v

        solution = conjugate_gradient(normal, right, rtol=_RTOL, max_iterations=_MAX_ITERATIONS)
        residual = max(residual, solution.residuals[-1])
        lost = plain(size * solution.value)
        if whole is not None:
            lost = xp.take(lost, whole, axis=1)
        found.append(lost @ rows if separable else lost)
    return xp.concat(found, axis=0), residual


def _filled(kt: KtData, grid: tuple[int, int, int], fine: tuple[int, int, int]) -> tuple[KtData, np.ndarray]:
    """Return points of a Cartesian grid as part of a larger one (the rest not acquired), and where they lie in it."""
    axes = [f // 2 - n // 2 + np.arange(n) for n, f in zip(grid, fine, strict=True)]
    index = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), fine).ravel()
    count = np.zeros(int(np.prod(fine)), dtype=kt.count.dtype)
    count[index] = kt.count
    fov = np.array(kt.protocol.geometry.fov_mm) * 1e-3
    steps = [(np.arange(f) - f // 2) / length for f, length in zip(fine, fov, strict=True)]
    k = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    samples = namespace(kt.samples).zeros_like(kt.samples[:, :1, :])
    samples = namespace(samples).broadcast_to(samples, (1, len(count), int(samples.shape[2])))
    t = np.broadcast_to(kt.t[:1], (len(count), kt.t.shape[1]))
    return replace(kt, samples=samples, k=k, t=t, count=count, grid=fine), index


def _finer(values: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Return values on a grid whose index n f // 2 lies where index n // 2 was, each from the nearest voxel."""
    for axis, f in enumerate(factors):
        n = values.shape[axis]
        place = (np.arange(n * f) - (n * f) // 2) / f + n // 2
        values = np.take(values, np.clip(np.floor(place + 0.5), 0, n - 1).astype(int), axis=axis)
    return values


def lipids_by_penalty(fids: Array, space: LipidSpace, leak: float, noise_sd: float) -> Array:
    """Return coefficients (..., row) of the lipids that the L2 penalty takes out of FIDs.

    With B the scalp's spectra, (1 + beta B B^H)^-1 x leaves out beta B B^H (1 + beta B B^H)^-1 x; in the orthonormal
    rows this is a factor per row. beta is the leak's energy over that of the noise, so that lipids are taken to the
    noise and not below.

    Parameters
    ----------
    fids
        (..., t) with the field in them.
    space
        Rows and their energy in the support.
    leak
        Energy of lipids in a voxel of brain over that in the support.
    noise_sd
        SD of the real part of a sample's noise.
    """
    gain = leak * space.energy / (leak * space.energy + 2 * noise_sd**2)
    analysis = (space.rows.conj() * gain[:, None]).T
    return fids @ like(analysis.astype(np.complex64), fids, fids.dtype)


def leak_of(fids: Array, space: LipidSpace, brain: np.ndarray) -> float:
    """Return the median energy of brain voxels in the strongest three rows over that of the support."""
    rows = space.rows[:3]
    coefficients = to_numpy(fids @ like(rows.conj().T, fids, fids.dtype))
    inside = brain & ~space.support
    if not inside.any():
        return 0.0
    return float(np.median(np.sum(np.abs(coefficients[inside]) ** 2, axis=-1)) / np.sum(space.energy[:3]))
