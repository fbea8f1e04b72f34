"""Training of the networks of `cnn` on the ensemble, before any scan (eq. 22 and the line below it).

FIDs of the ensemble get residual water and lipids of any strength, noise of any SNR of the range that the model is for,
and any shift that the fit allows. The regressor's lineshape, with the amounts that were drawn, resynthesises the
metabolites' signal by the physical model of the fit; the loss is the distance to the clean one in standard deviations
of the noise. The extractor's loss is the distance to the clean, undistorted spectrum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.spectrum_layers import Batch, Curve, constant, descend
from mrsi_gadgets.models.spectrum_networks import Name, SpectrumNetworks
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.ensemble import Ensemble, default_ensemble, noise_sd_at_snr, sample
from mrsi_gadgets.quantification.coordinates import Coordinates, whitener
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.refinement import model_at
from mrsi_gadgets.quantification.spectrum_input import clean_spectra, new_networks, scaled_inputs, window_matrix
from mrsi_gadgets.quantification.trained_range import LEAST_SHIFT_HZ

_PIECE = 1000
_BATCH = 256
_LEARNING_RATE = 2e-3
_HELD_OUT = 500
"""FIDs beside those of training, for the curves."""
_WIDE_EVERY, _WIDER = 3, 2.0
"""In every third part of the FIDs the field over a voxel may vary twice as much as the ensemble says."""
_CLEAN_SHARE = 0.25
"""Share of the voxels without water and lipids."""
_LESS_NOISE = (0.3, 0.5)
"""What reconstruction leaves of the noise that is stated, at least, and in which share of the voxels."""
_LEVELS = 12
"""Energies of nuisance for which residuals are whitened."""
_EXPECTED = 4.0
"""Squared distance that noise alone makes: one for each parameter."""
_FLOOR = 1e-4
"""Squared relative error of a clean spectrum that is good enough."""

Progress = Callable[[str, int, int, float], None]


class Drawn(NamedTuple):
    """FIDs of the ensemble as the networks and the losses see them."""

    spectra: np.ndarray
    """(n, point) metabolites and macromolecules."""
    scale: np.ndarray
    """(n,) their match."""
    coordinates: np.ndarray
    """(n, coordinate) metabolites alone, in the coordinates of the fit."""
    amounts: np.ndarray
    """(n, column) of the design; zero for macromolecules."""
    nuisance: np.ndarray
    """(n, point) water and lipids."""
    nuisance_scale: np.ndarray
    noise: np.ndarray
    """(n, point) noise of unit SD in the real part of a sample."""
    noise_scale: np.ndarray


_Source = Callable[[np.random.Generator, range, int], Batch]


@dataclass(frozen=True, eq=False)
class _Rest:
    """What the losses want to know of a batch."""

    rows: np.ndarray
    scale: np.ndarray
    noise: np.ndarray
    whiten: np.ndarray


def train_spectrum_networks(
    model: VarproModel,
    *,
    ensemble: Ensemble | None = None,
    basis: BasisSet | None = None,
    snr: tuple[float, float] = (3.0, 300.0),
    samples: int = 16000,
    steps: int = 1200,
    hidden: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SpectrumNetworks, dict[str, Curve]]:
    """Train both networks for the physical model of a fit.

    Parameters
    ----------
    model
        `prepare_varpro` of the protocol.
    ensemble, basis
        As for `physics.ensemble.sample`.
    snr
        Range of the peak SNR.
    samples, steps, hidden
        FIDs, training steps of each network, width of the hidden layers.
    seed
        Of all randomness.
    progress
        Told stage, steps done, steps in all, loss.

    Returns
    -------
    networks
        Trained.
    curves
        Stage -> (step, training loss, loss on FIDs that are not trained on) of every 100 steps.

    Raises
    ------
    DataError
        The ensemble and the model have no molecule in common, or training diverged.
    """
    networks = new_networks(model, hidden=hidden, seed=seed)
    drawn = draw(model, networks, ensemble, basis, samples + _HELD_OUT, seed + 11)
    clean = clean_spectra(model, networks.window_ppm, networks.points) @ networks.axes.T
    targets = (drawn.amounts[:, : len(clean)] @ clean) / np.abs(drawn.scale)[:, None]
    networks = replace(
        networks,
        typical=targets.mean(axis=0).astype(np.float32),
        spread=np.maximum(targets.std(axis=0), 1e-6).astype(np.float32),
    )
    levels = _whiteners(model.coordinates, snr, seed)

    def regression(shape: Array, rest: Any) -> Array:
        return _misfit(shape, rest, drawn, model).mean()

    def extraction(coefficients: Array, rest: Any) -> Array:
        wanted = (drawn.amounts[rest.rows, : len(clean)] @ clean) / np.abs(rest.scale)[:, None]
        target = constant(wanted.astype(np.float32), coefficients)
        xp = namespace(coefficients)
        error = xp.sum((coefficients - target) ** 2, axis=1) / xp.sum(target**2, axis=1)
        return xp.mean(xp.log(error + _FLOOR))

    curves: dict[str, Curve] = {}
    stages: tuple[tuple[Name, Callable[[Array, Any], Array]], ...] = (
        ("regressor", regression),
        ("extractor", extraction),
    )
    for stage, (name, loss) in enumerate(stages):
        rng = np.random.default_rng([seed, stage])

        def told(done: int, value: float, name: str = name) -> None:
            if progress is not None:
                progress(name, done, steps, value)

        source = partial(_batch, drawn, networks, model, snr, levels)
        held_out = source(np.random.default_rng([seed, 7]), range(samples, samples + _HELD_OUT), _HELD_OUT)

        def batches(step: int, rng: np.random.Generator = rng, source: _Source = source) -> Batch:
            return source(rng, range(samples), _BATCH)

        networks, curves[name] = descend(
            networks, name, batches, loss, steps=steps, learning_rate=_LEARNING_RATE, check=held_out, progress=told
        )
    return networks, curves


def draw(
    model: VarproModel, networks: SpectrumNetworks, ensemble: Ensemble | None, basis: BasisSet | None, count: int,
    seed: int,
) -> Drawn:  # fmt: skip
    """Draw FIDs of the ensemble and bring them to spectra, scales and coordinates."""
    protocol = model.protocol
    ensemble = ensemble or default_ensemble(protocol)
    ensemble = replace(ensemble, common_shift_hz_sd=max(ensemble.common_shift_hz_sd, LEAST_SHIFT_HZ))
    names = model.design.names[: model.design.n_metabolites]
    shared = [name for name in names if name in ensemble.names]
    if not shared:
        raise DataError("the ensemble has none of the molecules of the fit, so its networks cannot be trained")
    matrix = window_matrix(model, networks.window_ppm, networks.points)
    both = np.concatenate([matrix, networks.match[:, None]], axis=1)
    parts: list[Drawn] = []
    for start in range(0, count, _PIECE):
        n, own = min(_PIECE, count - start), seed + 1000 * (start // _PIECE)
        low, high = ensemble.broadening_ppm
        wide = start // _PIECE % _WIDE_EVERY == _WIDE_EVERY - 1
        lines = replace(ensemble, broadening_ppm=(low, (_WIDER if wide else 1.0) * high))
        fids = sample(protocol, n, own, ensemble=lines, basis=basis)
        amounts = np.zeros((n, len(model.design.names)), np.float32)
        for name in shared:
            amounts[:, names.index(name)] = fids.concentrations_mm[:, fids.names.index(name)]
        rng = np.random.default_rng([own, 2])
        noise = rng.standard_normal((n, protocol.n_times, 2)).astype(np.float32) @ np.array([1, 1j], np.complex64)
        wanted, other, hiss = (x @ both for x in (fids.metabolites, fids.nuisance, noise))
        alone = (fids.metabolites - fids.macromolecules) @ model.coordinates.project.astype(np.complex64)
        parts.append(
            Drawn(wanted[:, :-1], wanted[:, -1], alone, amounts, other[:, :-1], other[:, -1], hiss[:, :-1], hiss[:, -1])
        )
    return Drawn(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _batch(
    drawn: Drawn, networks: SpectrumNetworks, model: VarproModel, snr: tuple[float, float], levels: np.ndarray,
    rng: np.random.Generator, which: range, size: int,
) -> tuple[np.ndarray, np.ndarray, _Rest]:  # fmt: skip
    """Return a batch of FIDs `which`: every one meets other nuisance and other noise each time."""
    sd = (noise_sd_at_snr(model.protocol, 1.0) / np.exp(rng.uniform(np.log(snr[0]), np.log(snr[1]), size))).astype(
        np.float32
    )
    rows, others, hisses = rng.integers(which.start, which.stop, (3, size))
    least = float(np.linalg.norm(networks.match))

    def turns() -> np.ndarray:
        return np.exp(2j * np.pi * rng.random(size)).astype(np.complex64)

    actual = sd * np.where(rng.random(size) < _LESS_NOISE[1], rng.uniform(_LESS_NOISE[0], 1.0, size), 1.0)
    nuisance = turns() * (rng.random(size) >= _CLEAN_SHARE)
    hiss = turns() * actual.astype(np.float32)
    spectra = drawn.spectra[rows] + nuisance[:, None] * drawn.nuisance[others] + hiss[:, None] * drawn.noise[hisses]
    scale = drawn.scale[rows] + nuisance * drawn.nuisance_scale[others] + hiss * drawn.noise_scale[hisses]
    inputs = scaled_inputs(spectra, scale, sd, least * sd, networks.size)
    return inputs.spectra, inputs.told, _Rest(rows, inputs.scale, sd, levels[int(rng.integers(len(levels)))])


def _whiteners(coordinates: Coordinates, snr: tuple[float, float], seed: int) -> np.ndarray:
    """Return (level, n_dense, n_dense) complex64: whitenings for nuisance from none to a thousand times the noise."""
    energies = np.concatenate([[0.0], np.geomspace(1.0, (10 * snr[1]) ** 2, _LEVELS - 1)]).astype(np.float32)
    rows = np.repeat(energies[:, None], len(coordinates.factors), axis=1)
    return np.asarray(whitener(np.random.default_rng(seed).permuted(rows, axis=0), coordinates))


def _misfit(shape: Array, rest: _Rest, drawn: Drawn, model: VarproModel) -> Array:
    """Return how far the resynthesised metabolites are from the clean ones, (n,) on a logarithmic scale."""
    xp = namespace(shape)
    turn = constant(np.angle(rest.scale).astype(np.float32), shape)
    shape = xp.concat([shape[:, :1] + turn[:, None], shape[:, 1:]], axis=1)
    amounts = like(drawn.amounts[rest.rows], shape, "float32")
    nodes = len(model.dictionary.expansion.node_times_s)
    given = like(np.ones((1, nodes), np.complex64), shape, "complex64")
    away = model_at(model.dictionary, shape, amounts, given) - constant(drawn.coordinates[rest.rows], shape)
    return xp.log1p(whitened_power(away, rest) / _EXPECTED)


def whitened_power(away: Array, rest: _Rest) -> Array:
    """Return the squared residual (n,) in standard deviations of noise and nuisance, of coordinates (n, d)."""
    xp = namespace(away)
    n = rest.whiten.shape[0]
    away = away / constant(rest.noise, xp.real(away))[:, None]
    head = away[:, :n] @ constant(np.ascontiguousarray(rest.whiten.T), xp.real(away))
    rest_of = away[:, n:]
    return (
        xp.sum(xp.real(head) ** 2, axis=1) + xp.sum(xp.imag(head) ** 2, axis=1)
        + xp.sum(xp.real(rest_of) ** 2, axis=1) + xp.sum(xp.imag(rest_of) ** 2, axis=1)
    )  # fmt: skip
