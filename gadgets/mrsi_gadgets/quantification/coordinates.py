"""The few coordinates in which FIDs are fitted, and the covariance of noise and nuisance in them.

A voxel's FID has hundreds of points, but the model reaches only a part of that space. Full FIDs are projected onto
[U, Q]: U spans the nuisance bands that are modelled (after the band that is removed has been projected out), Q the rest
of what molecules can reach at any allowed lineshape. Both are orthonormal, so white noise stays white, and only the
first `n_dense` coordinates, those of U, know nuisance. Images that come as coefficients on a temporal basis are
brought to the same coordinates: what their basis leaves out says something about the FID too, that it is zero there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, device, like, namespace
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.quantification.design import NuisanceBand

_DENSE_TOLERANCE = 1e-4
_SIGNAL_TOLERANCE = 1e-2
_SEARCH_FRACTION = 0.03
_NOTHING = 1e-10
"""Directions with less than this fraction of the strongest one's energy are rounding errors."""
_LEAST_POINTS = 16


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A linear map from FIDs to the coordinates of the fit."""

    project: np.ndarray
    """(t, coordinate) complex128: FID @ project = coordinates."""
    expand: np.ndarray
    """(coordinate, t) complex128: coordinates @ expand = FID."""
    removed: np.ndarray
    """(t, k) orthonormal basis of the bands that are projected out."""
    outside: np.ndarray
    """(t, k) orthonormal basis of what lies outside of the window that is fitted; orthogonal to `removed`."""
    n_dense: int
    """Leading coordinates that nuisance reaches."""
    factors: tuple[np.ndarray, ...]
    """Per modelled band (n_dense, k): factor of the covariance of its signals, unit mean energy."""
    bands: tuple[str, ...]
    """Names of the bands of `factors`."""
    n_skipped: int
    """Leading coordinates that the first search ignores because nuisance dominates them."""

    def columns(self, fids: np.ndarray) -> np.ndarray:
        """Return FIDs (t, m) in these coordinates, (coordinate, m)."""
        return self.expand.conj() @ _without(_without(fids, self.outside), self.removed)


def fid_coordinates(
    protocol: Protocol,
    bands: Sequence[NuisanceBand],
    dictionary: np.ndarray,
    weights: np.ndarray,
    window_ppm: tuple[float, float] | None = None,
) -> Coordinates:
    """Choose coordinates for full FIDs.

    A window of the spectrum is the span of the discrete frequencies within it: data and molecules are projected onto it
    alike, which is a fit of these points of the spectrum, and white noise stays white.

    Parameters
    ----------
    protocol
        Times and frequency.
    bands
        Nuisance bands.
    dictionary
        (t, m): everything molecules can reach.
    weights
        (m,) amplitude each member of the dictionary may have, which decides what may be left out.
    window_ppm
        Part of the spectrum that is fitted [ppm]; None: all of it.

    Raises
    ------
    ConfigError
        The window holds fewer than 16 points of the spectrum.
    """
    outside = _outside(protocol, window_ppm)
    removed = _span([_without(b.factor(protocol), outside) for b in bands if b.removed], protocol.n_times, 0.0)
    dictionary = _without(dictionary, outside)
    modelled = [b for b in bands if not b.removed]
    factors = [_without(_without(b.factor(protocol), outside), removed) for b in modelled]
    dense = _span(factors, protocol.n_times, _DENSE_TOLERANCE)
    rest = _without(_without(dictionary * weights, removed), dense)
    u, s, _ = np.linalg.svd(rest, full_matrices=False)
    frame = np.concatenate([dense, u[:, s > _SIGNAL_TOLERANCE * s[0]]], axis=1)
    dense_factors = tuple(dense.conj().T @ f for f in factors)
    names = tuple(b.name for b in modelled)
    return Coordinates(
        frame.conj(), frame.T, removed, outside, dense.shape[1], dense_factors, names, _n_dominated(dense_factors)
    )


def _outside(protocol: Protocol, window_ppm: tuple[float, float] | None) -> np.ndarray:
    """Return the discrete frequencies (t, k) outside of a window, orthonormal."""
    n = protocol.n_times
    if window_ppm is None:
        return np.zeros((n, 0), complex)
    hz = np.fft.fftfreq(n, protocol.dwell_s)
    low, high = protocol.hz(np.array(window_ppm))
    within = (hz >= low) & (hz <= high)
    if within.sum() < _LEAST_POINTS:
        raise ConfigError(
            f"the window of {window_ppm[0]:g} to {window_ppm[1]:g} ppm holds {int(within.sum())} points of the "
            f"spectrum; at least {_LEAST_POINTS} are needed, so widen it"
        )
    turns = 2j * np.pi * np.outer(np.arange(n) * protocol.dwell_s, hz[~within])
    return np.exp(turns) / n**0.5


def _span(factors: list[np.ndarray], n_times: int, tolerance: float) -> np.ndarray:
    """Orthonormal basis of the leading directions of several covariances, strongest first."""
    if not factors:
        return np.zeros((n_times, 0), complex)
    u, s, _ = np.linalg.svd(np.concatenate(factors, axis=1), full_matrices=False)
    return u[:, s**2 > max(tolerance, _NOTHING) * s[0] ** 2]


def _without(columns: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Project `columns` onto the complement of the orthonormal `frame`."""
    return columns - frame @ (frame.conj().T @ columns)


def _n_dominated(factors: tuple[np.ndarray, ...]) -> int:
    """Leading coordinates in which the sum of the covariances is more than a few per cent of its largest value."""
    if not factors:
        return 0
    power = sum(np.sum(np.abs(f) ** 2, axis=1) for f in factors)
    return int(np.sum(power > _SEARCH_FRACTION * power.max()))


def band_energy(residual: Array, coordinates: Coordinates) -> Array:
    """Estimate the energy of each band's signal in a voxel from what the molecules leave over.

    Parameters
    ----------
    residual
        (voxel, coordinate) complex64 in units of the noise (real part 1).
    coordinates
        Their coordinates.

    Returns
    -------
    Array
        (voxel, band) float32: energy within the leading directions of the band beyond that of noise, not negative.
    """
    xp = namespace(residual)
    energies = []
    for factor in coordinates.factors:
        u, s, _ = np.linalg.svd(factor, full_matrices=False)
        u = u[:, s > 0.1 * s[0]]
        inside = residual[:, : coordinates.n_dense] @ like(u.conj(), residual, "complex64")
        energy = xp.sum(xp.real(inside) ** 2 + xp.imag(inside) ** 2, axis=1) - 2.0 * u.shape[1]
        energies.append(xp.where(energy > 0, energy, xp.zeros_like(energy)))
    if not energies:
        return xp.zeros((residual.shape[0], 0), dtype=xp.float32, device=device(residual))
    return xp.stack(energies, axis=1)


def whitener(energy: Array, coordinates: Coordinates) -> Array:
    """Return W (voxel, n_dense, n_dense) with W C W^H = 2 I, C the covariance of noise and nuisance.

    Parameters
    ----------
    energy
        (voxel, band) energy of each band in units of the noise.
    coordinates
        Their coordinates.
    """
    xp = namespace(energy)
    n = coordinates.n_dense
    # complex128: water or lipids a thousand times above the noise make condition numbers of 1e6 and more
    eye = xp.eye(n, dtype=xp.complex128, device=device(energy))[None, :, :]
    covariance = xp.zeros((energy.shape[0], 1, 1), dtype=xp.complex128, device=device(energy))
    covariance = covariance + 2 * eye
    for i, factor in enumerate(coordinates.factors):
        outer = like(factor @ factor.conj().T, energy, "complex128")[None, :, :]
        covariance = covariance + xp.astype(energy[:, i], xp.float64)[:, None, None] * outer
    # the factor's condition number is the root of the covariance's, which single precision bears
    factor = xp.astype(xp.linalg.cholesky(covariance), xp.complex64)
    return _inverse_of_lower(factor) * 2**0.5


def _inverse_of_lower(matrices: Array) -> Array:
    """Return the inverses of lower triangular matrices (any, n, n) in blocks, a sixth of a general inverse."""
    xp = namespace(matrices)
    n = int(matrices.shape[1])
    if n <= 8:
        return xp.linalg.inv(matrices)
    half = n // 2
    first, last = _inverse_of_lower(matrices[:, :half, :half]), _inverse_of_lower(matrices[:, half:, half:])
    corner = -xp.matmul(last, xp.matmul(matrices[:, half:, :half], first))
    above = xp.zeros_like(matrices[:, :half, half:])
    return xp.concat([xp.concat([first, above], axis=2), xp.concat([corner, last], axis=2)], axis=1)
