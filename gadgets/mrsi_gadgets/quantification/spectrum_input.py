"""What the networks of `cnn` see of an FID: its spectrum in a window, over the voxel's own complex scale.

The band of residual water is projected out as in the fit. The scale is how much a voxel is like the typical spectrum,
by a matched filter that lipids and baseline do not reach; it also is a first estimate of the phase.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE
from mrsi_gadgets.quantification.nucleus_fit import fit_of
from mrsi_gadgets.quantification.preparation import VarproModel

_MARGIN_PPM = 0.35
_MOST_POINTS, _LEAST_POINTS = 512, 32
_SPACING = 0.5
"""Distance of the points in units of the inverse of the FID's duration."""
_USUAL_SHAPE = (0.0, 0.0, 4.0, 30.0)
"""Phase, shift, Lorentz and Gauss rate of the typical FID, from which the regressor starts."""
_PHASE_RANGE = 2.5
_EDGE = 0.02
"""Share of the largest power of the typical spectrum down to which the window reaches."""
_MATCH_SNR = 20.0
_AXIS_TOLERANCE = 1e-3
_LEAST_LINE = 0.25
"""Where a known lineshape has decayed below this, dividing by it would make more noise than signal."""
_LEAST_SCALE = 1.0
"""A scale within the noise of its own estimate is raised to this many standard deviations: nothing is divided by
nothing."""


class Inputs(NamedTuple):
    """What the networks are given for a batch of voxels."""

    spectra: Array
    """(voxel, point) complex64, over `scale` and the networks' `size`."""
    told: Array
    """(voxel,) float32: log(|scale| / noise)."""
    scale: Array
    """(voxel,) complex64 in the unit of the data over that of the model."""


def inputs_of(
    data: Array,
    basis: np.ndarray | None,
    noise_sd: np.ndarray,
    given: Array,
    networks: SpectrumNetworks,
    model: VarproModel,
) -> Inputs:
    """Return the networks' inputs.

    Parameters
    ----------
    data
        (voxel, t) FIDs, or (voxel, row) their coefficients on `basis`.
    basis
        (row, t) or None.
    noise_sd
        (voxel,) SD of the real part of the noise in a sample.
    given
        (voxel, node) complex64 lineshape that the field within each voxel makes. It is divided out as far as that does
        not drown the FID in noise.
    networks, model
        Of the same protocol.
    """
    xp = namespace(data)
    if basis is not None:
        data = data @ like(basis, data, "complex64")
    expansion = model.dictionary.expansion
    line = given @ like(expansion.from_nodes @ expansion.functions, data, "complex64")
    size = xp.real(line) ** 2 + xp.imag(line) ** 2
    undo = xp.conj(line) / xp.maximum(size, xp.full_like(size, _LEAST_LINE**2))
    matrix = window_matrix(model, networks.window_ppm, networks.points)
    both = (data * undo) @ like(np.concatenate([matrix, networks.match[:, None]], axis=1), data, "complex64")
    weight = like(np.abs(networks.match) ** 2 / np.sum(np.abs(networks.match) ** 2), size, "float32")
    louder = xp.sqrt((xp.real(undo) ** 2 + xp.imag(undo) ** 2) @ weight)
    noise = like(noise_sd, size, "float32") * louder
    least = _LEAST_SCALE * noise * float(np.linalg.norm(networks.match))
    return scaled_inputs(both[:, :-1], both[:, -1], noise, xp.maximum(least, xp.full_like(least, 1e-30)), networks.size)


def scaled_inputs(spectra: Array, scale: Array, noise: Array, least: Array, size: float) -> Inputs:
    """Divide spectra (n, point) by their scale (n,) and size; a scale below `least` (n,) becomes as large as that."""
    xp = namespace(spectra)
    strength = xp.abs(scale)
    one = xp.ones_like(strength)
    direction = scale / xp.where(strength > 0, strength, one)
    direction = xp.where(strength > 0, direction, xp.ones_like(scale))
    strength = xp.maximum(strength, least)
    scale = direction * strength
    told = xp.log(strength / xp.maximum(noise, 1e-6 * strength))
    spectra = spectra / (scale * size)[:, None]
    return Inputs(xp.astype(spectra, xp.complex64), xp.astype(told, xp.float32), xp.astype(scale, xp.complex64))


def window_matrix(model: VarproModel, window_ppm: tuple[float, float], points: int) -> np.ndarray:
    """Return P (t, point) complex64: FID @ P is its spectrum in the window, without the removed band."""
    transform = _transform(model.protocol, window_ppm, points)
    removed = model.coordinates.removed
    return (transform - removed.conj() @ (removed.T @ transform)).astype(np.complex64)


def clean_spectra(model: VarproModel, window_ppm: tuple[float, float], points: int) -> np.ndarray:
    """Return (metabolite, point) float64: the real spectrum of one unit of each, in phase and at its usual width."""
    columns = model.design.columns[:, : model.design.n_metabolites]
    return np.asarray((columns.T @ _transform(model.protocol, window_ppm, points)).real)


def _transform(protocol: Protocol, window_ppm: tuple[float, float], points: int) -> np.ndarray:
    hz = protocol.hz(np.linspace(*window_ppm, points))
    return np.exp(-2j * np.pi * protocol.times_s[:, None] * hz) / protocol.n_times**0.5


def new_networks(model: VarproModel, *, hidden: int, seed: int) -> SpectrumNetworks:
    """Return untrained networks for a model: window, scale, ranges and axes of the clean spectra.

    Spread and mean of the extractor's outputs are those of the typical spectrum until training knows better.
    """
    from mrsi_gadgets.models.spectrum_layers import new_weights

    protocol = model.protocol
    times = protocol.times_s
    shape = np.exp(-_USUAL_SHAPE[2] * times - _USUAL_SHAPE[3] * times**2)
    typical = (model.design.columns @ model.design.typical) * shape
    window = _window(protocol, typical)
    spacing_hz = _SPACING / (protocol.n_times * protocol.dwell_s)
    width_hz = (window[1] - window[0]) * protocol.transmit_frequency_hz * 1e-6
    points = int(np.clip(np.ceil(width_hz / spacing_hz) + 1, _LEAST_POINTS, _MOST_POINTS))
    spectrum = typical @ window_matrix(model, window, points)
    clean = clean_spectra(model, window, points)
    amounts = model.design.typical[: model.design.n_metabolites]
    _, s, axes = np.linalg.svd(clean * np.maximum(amounts, 1e-3)[:, None], full_matrices=False)
    axes = axes[s > _AXIS_TOLERANCE * s[0]]
    usual = (amounts @ clean) @ axes.T
    allowed = model.dictionary.allowed
    lower, upper = allowed.lower(), allowed.upper()
    lower[0], upper[0] = -_PHASE_RANGE, _PHASE_RANGE
    return SpectrumNetworks(
        window, points, hidden, _match(model, typical), float(np.sqrt(np.mean(np.abs(spectrum) ** 2))),
        lower.astype(np.float32), upper.astype(np.float32), np.array(_USUAL_SHAPE, np.float32),
        axes.astype(np.float32), np.maximum(0.1 * np.abs(usual), 1e-6).astype(np.float32), usual.astype(np.float32),
        new_weights(points, hidden, N_SHAPE, seed), new_weights(points, hidden, len(axes), seed + 1),
    )  # fmt: skip


def _window(protocol: Protocol, typical: np.ndarray) -> tuple[float, float]:
    """Return the range [ppm] that the networks see: from the lowest nuisance to water, or all lines of the typical."""
    bands = fit_of(protocol).nuisance
    removed = [i.low_ppm for band in bands if band.removed for i in band.intervals]
    modelled = [i.low_ppm for band in bands if not band.removed for i in band.intervals]
    if removed and modelled:
        return min(modelled), min(removed)
    n = 4 * protocol.n_times
    power = np.abs(np.fft.fft(typical, n)) ** 2
    per_ppm = protocol.transmit_frequency_hz * 1e-6
    ppm = protocol.reference_ppm + np.fft.fftfreq(n, protocol.dwell_s) / per_ppm
    there = ppm[power > _EDGE * power.max()]
    half = 0.5 / protocol.dwell_s / per_ppm
    low, high = protocol.reference_ppm - half, protocol.reference_ppm + half
    return float(max(there.min() - _MARGIN_PPM, low)), float(min(there.max() + _MARGIN_PPM, high))


def _match(model: VarproModel, typical: np.ndarray) -> np.ndarray:
    """Return the matched filter (t,) of the typical FID in noise and as much lipid and baseline as signal."""
    coordinates = model.coordinates
    wanted = coordinates.columns(typical[:, None])[:, 0]
    covariance = noise_sd_at_snr(model.protocol, _MATCH_SNR) ** 2 * np.eye(len(wanted), dtype=complex)
    energy = float(np.sum(np.abs(wanted) ** 2))
    n = coordinates.n_dense
    for factor in coordinates.factors:
        covariance[:n, :n] += energy * factor @ factor.conj().T
    weight = np.linalg.solve(covariance, wanted)
    weight = weight / np.vdot(wanted, weight)
    return (coordinates.project @ weight.conj()).astype(np.complex64)
