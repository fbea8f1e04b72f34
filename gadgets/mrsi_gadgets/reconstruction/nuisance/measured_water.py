"""Unsuppressed water by its own measurement: the water FIDs of a reference without its noise and its metabolites.

A reference shows the very water that lies over the metabolites: the same voxel, line shape, eddy currents and
sidebands. But its noise is as large as that of the data, and a measured one shows the metabolites too. Both lie all
over the spectrum, water does not:

* Its line is near its frequency: it is spanned by the exponentials of a narrow band, whatever their damping.
* Its sidebands come from vibrating gradients. The line is turned by exp(i phi(r, t)), phi = sum_j p_j(r) m_j(t) with
  p_j common to all places or linear in them and m_j real; m_j is found by least squares over all voxels, from what
  they have beyond the narrow band and metabolites do not explain, and is divided out.
* What phi does not describe (a product of place and signal is cut off with k-space) still has the times m_j(t) in it:
  it is spanned by m_j times the strongest shapes of the line. As m_j is real they have both sidebands, of which only
  one lies over metabolites: the coefficients of all rows follow by least squares weighted by the inverse covariance of
  metabolites and noise.
* In each direction of that span water is an image, which is smooth, or has what the cut leaves at the edge of k-space.
  So it is weighted with 1 - n / p in k-space, p the power there and n that of noise and metabolites.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from mrsi_gadgets.arrays import Array, centred_fftn, centred_ifftn, like, namespace, to_numpy
from mrsi_gadgets.reconstruction.nuisance.hsvd import principal_rows
from mrsi_gadgets.reconstruction.nuisance.reference import places
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient

HALF_BAND_PPM = 0.65
"""Half width of the band of water's line: sidebands closer than this are part of it."""
SHAPES, SHAPES_BESIDE = 12, 4
"""Shapes of the line that sidebands have, without and beside metabolites."""
_DAMPINGS = (0.0, 3.0, 8.0, 15.0, 25.0, 40.0, 60.0, 90.0, 130.0, 180.0)
"""Dampings [1/s] of the lines that span the narrow band."""
_LEAST_ROW = 1e-5
"""Rows count from this part of the strongest one's amplitude on: water is about 10,000 times the noise."""
_LEAST_LINE = 1e-2
"""The same for rows of sidebands, which are a hundred times weaker."""
_LEAST_AMPLITUDE = 0.05
"""Voxels with less than this part of the brain's water say nothing about sidebands."""
_LARGE_RAD = 0.02
"""SD of phi that is expected at most [rad]; it only bounds phi where water has decayed."""
_ROUNDS = 2
SAFE = 100.0
"""Metabolites count for so much more than they have energy where it is asked what water is: none may be taken."""
_RTOL, _MAX_ITERATIONS = 1e-3, 60


def line_rows(times_s: np.ndarray, half_band_hz: float) -> np.ndarray:
    """Return orthonormal rows (row, t) complex128 that span all damped lines within a band around 0 Hz."""
    since = times_s - times_s[0]
    frequency = np.linspace(-half_band_hz, half_band_hz, int(4 * half_band_hz * since[-1]) + 2)
    lines = np.exp((2j * np.pi * frequency[:, None, None] - np.array(_DAMPINGS)[:, None]) * since)
    return _orthonormal(lines.reshape(-1, len(since)), _LEAST_ROW)


def shared_phases(fids: Array, place: np.ndarray, rows: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Return m_j(t) [rad], (function, t) float64: the phase of water that its line's rows do not hold.

    With w a voxel's part in the rows, x - i phi w is fitted to have nothing outside of the rows, weighted by the
    inverse covariance of what lies beside the water, over all voxels and times at once (Gauss-Newton).

    Parameters
    ----------
    fids
        (voxel, t) of voxels with water.
    place
        (voxel, function): p_j(r).
    rows
        (row, t), of `line_rows`.
    beside
        (t, t): covariance of noise, and of metabolites where there are any.
    """
    xp = namespace(fids)
    columns = like(place.astype(np.float32), fids)
    transposed = xp.matrix_transpose(columns)
    v = like(rows.astype(np.complex64), fids, fids.dtype)
    adjoint = xp.conj(xp.matrix_transpose(v))
    least = 1 / _LARGE_RAD**2
    # weights outside of the rows: what the rows can explain at their best counts nothing
    inverse = np.linalg.inv(beside)
    of_rows = inverse @ rows.T
    weights = inverse - of_rows @ np.linalg.solve(rows.conj() @ of_rows, of_rows.conj().T)
    outside = like(weights.T.astype(np.complex64), fids, fids.dtype)
    diagonal = like(np.diag(weights).real.astype(np.float32), fids)

    found = like(np.zeros((place.shape[1], int(fids.shape[1])), dtype=np.float32), fids)
    for _ in range(_ROUNDS):
        still = fids * _turn(-(columns @ found))
        by_phase = 1j * ((still @ adjoint) @ v)
        back = xp.conj(by_phase)
        size = (xp.matrix_transpose(columns**2) @ (xp.real(by_phase) ** 2 + xp.imag(by_phase) ** 2)) * diagonal + least

        def normal(m: Array, by_phase: Array = by_phase, back: Array = back) -> Array:
            change = (by_phase * xp.astype(columns @ m, fids.dtype)) @ outside
            return transposed @ xp.real(back * change) + least * m

        def precondition(m: Array, size: Array = size) -> Array:
            return m / size

        right = transposed @ xp.real(back * (still @ outside)) - least * found
        step = conjugate_gradient(
            normal, right, precondition=precondition, rtol=_RTOL, max_iterations=_MAX_ITERATIONS
        ).value
        found = found + step
    return to_numpy(found).astype(float)


def measured_water(
    reference: Array, shape: tuple[int, ...], brain: np.ndarray, times_s: np.ndarray, half_band_hz: float,
    noise_sd: np.ndarray, metabolites: np.ndarray, noise: np.ndarray,
) -> Array:  # fmt: skip
    """Return the water of a reference, (voxel, t) complex64.

    Parameters
    ----------
    reference
        (voxel, t), B0 taken out: water is at 0 Hz.
    shape
        Of the grid of voxels (x, y, z).
    brain
        (voxel,) bool: its amplitude tells which voxels have water.
    times_s
        (t,) [s].
    half_band_hz
        Half width of the band of the line [Hz].
    noise_sd
        (voxel,) SD of the real part of the noise of the reference's samples.
    metabolites
        (t, t): mean covariance of a voxel's metabolites in the reference.
    noise
        (t, t): covariance of its noise in a typical voxel of brain.
    """
    xp = namespace(reference)
    start = np.abs(to_numpy(reference[:, 0]))
    used = start > _LEAST_AMPLITUDE * np.median(start[brain])
    chosen = like(np.flatnonzero(used), reference)
    typical = float(np.median(noise_sd[brain]))
    place = places(shape)
    rows = line_rows(times_s, half_band_hz)
    phases = shared_phases(xp.take(reference, chosen, axis=0), place[used], rows, noise + SAFE * metabolites)
    turn = _turn(like((place @ phases).astype(np.float32), reference))
    still = reference * xp.conj(turn)
    shapes = SHAPES_BESIDE if np.any(metabolites) else SHAPES
    rows = np.concatenate([rows, _sideband_rows(xp.take(still, chosen, axis=0), phases, rows, shapes)])
    # coefficients by weighted least squares: what metabolites explain is theirs
    weights = rows.conj() @ np.linalg.inv(noise + metabolites)
    analysis = np.linalg.solve(weights @ rows.T, weights)
    # in units of the voxel's noise, along directions in which water is uncorrelated
    scale = like((typical / np.where(noise_sd > 0, noise_sd, np.inf)).astype(np.float32)[:, None], reference)
    whole = like(np.where(noise_sd > 0, noise_sd / typical, 0.0).astype(np.float32)[:, None], reference)
    weighed = (still * scale) @ like(analysis.T.astype(np.complex64), reference, reference.dtype)
    turned = principal_rows(xp.take(weighed, chosen, axis=0), len(rows))[1]
    rows, analysis = turned @ rows, turned.conj() @ analysis
    images = weighed @ like(turned.conj().T.astype(np.complex64), reference, reference.dtype)
    of_metabolites, of_noise = (
        np.einsum("rt,ts,rs->r", analysis, c, analysis.conj(), optimize=True).real for c in (metabolites, noise)
    )
    images = _without_noise(images, shape, of_metabolites, of_noise)
    return (images @ like(rows.astype(np.complex64), reference, reference.dtype)) * whole * turn


def _turn(phase: Array) -> Array:
    xp = namespace(phase)
    return xp.astype(xp.cos(phase), xp.complex64) + 1j * xp.astype(xp.sin(phase), xp.complex64)


def _orthonormal(lines: np.ndarray, least: float) -> np.ndarray:
    """Return orthonormal rows of lines that are scaled to equal energy, down to a part of the strongest amplitude."""
    size = np.linalg.norm(lines, axis=1, keepdims=True)
    _, strength, rows = np.linalg.svd(lines / np.where(size > 0, size, 1), full_matrices=False)
    return np.asarray(rows[strength > least * strength[0]])


def _sideband_rows(still: Array, phases: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return rows (row, t) orthonormal to the line's: products of the phases and the line's strongest shapes."""
    xp = namespace(still)
    near = still @ like(rows.conj().T.astype(np.complex64), still, still.dtype)
    size = xp.sqrt(xp.sum(xp.real(near) ** 2 + xp.imag(near) ** 2, axis=1, keepdims=True))
    shapes = principal_rows(near / size, count)[1] @ rows
    lines = (phases[:, None, :] * shapes).reshape(-1, rows.shape[1])
    lines = lines - (lines @ rows.conj().T) @ rows
    return _orthonormal(lines, _LEAST_LINE)


def _without_noise(images: Array, shape: tuple[int, ...], metabolites: np.ndarray, noise: np.ndarray) -> Array:
    """Return images (voxel, direction) weighted in k-space by the part of the power there that is water's.

    `metabolites` and `noise` are their energies in each direction; metabolites are taken to be where the water is.
    """
    xp = namespace(images)
    axes = tuple(axis for axis, n in enumerate(shape) if n > 1)
    k = centred_fftn(xp.reshape(images, (*shape, int(images.shape[1]))), axes)
    power = xp.clip(_smoothed(xp.real(k) ** 2 + xp.imag(k) ** 2, axes), min=float(np.finfo(np.float32).tiny))
    place_of_water = power[..., :1] / xp.mean(power[..., :1])
    metabolites, noise = (like(energy.astype(np.float32), power) for energy in (metabolites, noise))
    least = place_of_water * metabolites + noise
    k = k * xp.astype(xp.clip(1 - least / power, min=0.0), k.dtype)
    return xp.reshape(centred_ifftn(k, axes), tuple(int(n) for n in images.shape))


def _smoothed(power: Array, axes: tuple[int, ...]) -> Array:
    """Return the mean over a point and its neighbours along each axis."""
    xp = namespace(power)
    total = xp.zeros_like(power)
    for shifts in product((-1, 0, 1), repeat=len(axes)):
        total = total + xp.roll(power, shifts, axis=axes)
    return total / 3 ** len(axes)
