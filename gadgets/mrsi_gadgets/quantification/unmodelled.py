"""Lines that no molecule of the model has: found in what the first pass leaves, then fitted with columns of their own.

A resonance that nobody foresaw (a drug, a rare tumour metabolite, an artefact) is otherwise explained by the molecules
beside it, whose maps are then wrong without any sign of it. For every frequency the generalised likelihood ratio of
one complex line in the residual is computed, with what the molecules could explain of the line taken off. A line counts
where it stands far above the noise AND explains a good part of what the model leaves over, in several voxels at one
frequency: an error of the lineshape does neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mrsi_gadgets.arrays import like, namespace, to_numpy
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics.nucleus import PROTON, nucleus_of
from mrsi_gadgets.quantification.quality import Evidence
from mrsi_gadgets.quantification.refinement import stacked, whitened_columns

if TYPE_CHECKING:
    from mrsi_gadgets.quantification.passes import FirstPass
    from mrsi_gadgets.quantification.preparation import VarproModel

MOST_LINES = 3
FREEDOM = 30.0
"""SD of a line's amplitude where it is allowed [mM of protons in normal brain]: wide, the data decide."""
FORBIDDEN = 1e-4
"""The same where it is not."""
_FALSE_ALARMS = 0.01
"""How many lines pure noise may show in a whole scan."""
_NEIGHBOUR = 9.2
"""Likelihood ratio from which a neighbour of a sure voxel has the line too: one voxel in a hundred has by chance."""
_RETAINED = 0.65
"""Least part of a line's energy that the molecules must be unable to explain."""
_REACHED = 0.5
"""Least part of a line's energy that must lie in the coordinates of the fit."""
_EXPLAINED, _EXPLAINED_IN_ALL = 0.5, 0.6
"""Least part of the misfit beyond the usual that the line must explain in a voxel, and in all its voxels together."""
_SMALLEST = 4.0
"""Least amplitude [mM of protons in normal brain; of other nuclei in proportion to their strongest line]: where noise
is low, smaller errors of the model look like lines."""
_ENOUGH_VOXELS = 3


@dataclass(frozen=True, eq=False)
class UnmodelledLine:
    """A resonance that no molecule of the model has."""

    ppm: float
    voxels: np.ndarray
    """(voxel,) bool: the fitted voxels that have it."""

    @property
    def name(self) -> str:
        """Name of its map."""
        return f"unknown_{self.ppm:.2f}ppm"


def find_lines(
    passes: Sequence[FirstPass], model: VarproModel, mask: np.ndarray, through: np.ndarray | None
) -> tuple[list[UnmodelledLine], Evidence]:
    """Return the lines that the residuals of the first pass show, strongest first, and how much stands out of each.

    Parameters
    ----------
    passes
        First pass of all voxels, in the order of the mask.
    model
        The model that was fitted.
    mask
        (x, y, z) bool: where the fitted voxels lie.
    through
        (rank, t) orthonormal rows: temporal basis of the images, or None where they are full FIDs.
    """
    misfit = np.concatenate([one.misfit for one in passes])
    if len(misfit) < _ENOUGH_VOXELS:
        return [], Evidence(np.zeros(len(misfit)), 0)
    shapes = np.concatenate([to_numpy(one.fit.shape) for one in passes])
    ppm, atoms, reached = _atoms(model, np.median(shapes, axis=0), through)
    left, part = _left_by_molecules(passes, model, misfit, atoms)
    ratio = np.concatenate([_match(one, atoms, model.coordinates.n_dense) for one in passes]) / left
    # the line lies where the voxel's own shift has moved it
    offset = np.round(shapes[:, 1] * (3 * model.protocol.n_times * model.protocol.dwell_s)).astype(int)
    moved = np.clip(np.arange(len(ppm)) + offset[:, None], 0, len(ppm) - 1)
    usable = reached & (part > _RETAINED)
    if not usable.any():
        return [], Evidence(np.zeros(len(misfit)), 0)
    ppm, left, ratio = ppm[usable], left[usable], np.take_along_axis(ratio, moved, axis=1)[:, usable]
    evidence = Evidence(ratio.max(axis=1), ratio.shape[1])
    # images that a prior has smoothed leave less than the noise of the samples
    usual = min(1.0, float(np.median(misfit)) ** 2)
    excess = np.maximum(misfit**2 - usual, 0.0) * 2 * len(atoms)
    alarm = 2 * np.log(ratio.size / _FALSE_ALARMS)
    scale = np.concatenate([to_numpy(one.scale) for one in passes])
    amplitude = np.sqrt(ratio / left) / scale[:, None]
    smallest = _SMALLEST * (nucleus_of(model.protocol).strongest_signal / PROTON.strongest_signal)
    sure = (ratio > alarm) & (ratio > _EXPLAINED * excess[:, None]) & (amplitude > smallest)
    explained = np.sum(ratio * sure, axis=0)
    sure &= explained > _EXPLAINED_IN_ALL * np.sum(excess[:, None] * sure, axis=0)
    lines: list[UnmodelledLine] = []
    while len(lines) < MOST_LINES:
        best = int(np.argmax(np.sum(ratio * sure, axis=0)))
        if np.sum(sure[:, best]) < _ENOUGH_VOXELS:
            break
        place = ppm[best] + _top(np.sum(ratio[sure[:, best]], axis=0), ppm, best)
        lines.append(UnmodelledLine(float(place), _with_neighbours(sure[:, best], ratio[:, best], mask)))
        # the same line shows at the frequencies beside its own
        sure[sure[:, best]] = False
    return lines, evidence


def with_lines(model: VarproModel, lines: Sequence[UnmodelledLine], through: np.ndarray | None) -> VarproModel:
    """Return the model with two real columns for each line: in phase with the molecules, and a quarter turn ahead."""
    design, expansion = model.design, model.dictionary.expansion
    fids = np.stack([c * _line(model.protocol, line.ppm, model) for line in lines for c in (1, 1j)], axis=1)
    orders = [fids]
    for _ in range(1, model.dictionary.freedom.orders):
        # a line far narrower than the band: its derivative about the middle is its frequency times itself
        orders.append(orders[-1] * np.repeat([_turning(line.ppm, model) for line in lines], 2))
    shaped = np.concatenate([expansion.functions.T[:, :, None] * of[:, None, :] for of in orders], axis=1)
    shaped = _through(shaped.reshape(len(fids), -1), through)
    products = (
        model.coordinates.columns(shaped)
        .reshape(-1, shaped.shape[1] // fids.shape[1], fids.shape[1])
        .transpose(1, 0, 2)
    )
    more = fids.shape[1]
    return replace(
        model,
        design=replace(
            design,
            names=(*design.names, *(f"{line.name}{part}" for line in lines for part in ("", ":quadrature"))),
            columns=np.concatenate([design.columns, fids], axis=1),
            bounded=np.append(design.bounded, [False] * more),
            prior_sd=np.append(design.prior_sd, [FREEDOM] * more),
            typical=np.append(design.typical, [0.0] * more),
        ),
        dictionary=replace(
            model.dictionary,
            products=np.concatenate([model.dictionary.products, products.astype(np.complex64)], axis=2),
            bounded=np.append(model.dictionary.bounded, [False] * more),
        ),
        templates=np.pad(model.templates, ((0, 0), (0, more))),
    )


def _turning(ppm: float, model: VarproModel) -> complex:
    """Return D of a line over the line itself [1/ms], `freedom.time_derivatives`."""
    rate = float(np.median(model.design.rates))
    return (2j * np.pi * (float(model.protocol.hz(ppm)) - model.middle_hz) - rate) * 1e-3


def _line(protocol: Protocol, ppm: float, model: VarproModel) -> np.ndarray:
    """Return a line of one mM of protons that decays as the molecules of the model do on average, (t,)."""
    rate = float(np.median(model.design.rates))
    return np.asarray(np.exp((2j * np.pi * float(protocol.hz(ppm)) - rate) * protocol.times_s))


def _through(fids: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """Return what a temporal basis lets pass of FIDs (t, any)."""
    return fids if basis is None else basis.T @ (basis.conj() @ fids)


def _atoms(
    model: VarproModel, shape: np.ndarray, through: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return chemical shifts (line,), lines (coordinate, line) with the usual lineshape, and which the fit can reach.

    There are three per element of resolution, from a little below those that can be reached to a little above.
    """
    protocol = model.protocol
    times = protocol.times_s
    step = 1 / (3 * protocol.n_times * protocol.dwell_s)
    hz = np.arange(-0.5 / protocol.dwell_s, 0.5 / protocol.dwell_s, step)
    ppm = protocol.reference_ppm + hz / (protocol.transmit_frequency_hz * 1e-6)
    usual = np.exp(-shape[2] * times - shape[3] * times**2)
    rate = float(np.median(model.design.rates))
    fids = np.exp(times[:, None] * (2j * np.pi * protocol.hz(ppm) - rate)) * usual[:, None]
    atoms = model.coordinates.columns(_through(fids, through))
    energy = np.linalg.norm(fids, axis=0) ** 2
    # what lies among the nuisance bands is theirs
    nuisance = np.linalg.norm(atoms[: model.coordinates.n_dense], axis=0) ** 2 > (1 - _REACHED) * energy
    reached = (np.linalg.norm(atoms, axis=0) ** 2 > _REACHED * energy) & ~nuisance
    margin = int(np.ceil(model.dictionary.allowed.shift_hz / step))
    # a temporal basis of a few rows may let hardly any line pass
    places = np.flatnonzero(reached) if reached.any() else np.array([0])
    first, last = int(places[0]), int(places[-1])
    within = slice(max(0, first - margin), last + margin + 1)
    return ppm[within], atoms[:, within], reached[within]


def _left_by_molecules(
    passes: Sequence[FirstPass], model: VarproModel, misfit: np.ndarray, atoms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the whitened energy of each line that a typical voxel's molecules cannot explain, and its share."""
    row = int(np.argsort(misfit)[len(misfit) // 2])
    for one in passes:
        if row < len(one.misfit):
            break
        row -= len(one.misfit)
    xp = namespace(one.scale)
    which = like(np.array([row]), one.scale)
    fit = [xp.take(a, which, axis=0) for a in (one.fit.shape, one.fit.amplitudes, one.fit.normal, one.fit.free)]
    problem = one.problem.take(which)
    columns = to_numpy(whitened_columns(problem, model.dictionary, fit[0], fit[1]))[0].astype(float)
    free = to_numpy(fit[3])[0]
    normal = to_numpy(fit[2])[0][np.ix_(free, free)]
    whiten = to_numpy(problem.whiten)[0]
    n = len(whiten)
    energy, explained = np.zeros(atoms.shape[1]), np.zeros(atoms.shape[1])
    for turned in (atoms, 1j * atoms):
        real = stacked(turned.T, model.coordinates.n_dense)
        real[:, :n] = real[:, :n] @ whiten.T
        seen = real @ columns[:, free]
        energy += np.sum(real**2, axis=1) / 2
        explained += np.sum(seen * np.linalg.solve(normal, seen.T).T, axis=1) / 2
    left = np.maximum(energy - explained, 1e-12)
    return left, left / energy


def _match(one: FirstPass, atoms: np.ndarray, n_dense: int) -> np.ndarray:
    """Return |q^H W^H W r|^2 of every voxel's residual r and every line q, (voxel, line)."""
    residual = to_numpy(stacked(one.fit.residual, n_dense))
    whiten = to_numpy(one.problem.whiten)
    n = whiten.shape[1]
    head = np.matmul(whiten, residual[:, :n, None])
    residual[:, :n] = np.matmul(np.swapaxes(whiten, 1, 2), head)[:, :, 0]
    sides = [stacked(turned.T, n_dense).T.astype(np.float32) for turned in (atoms, 1j * atoms)]
    return np.asarray(sum((residual @ side) ** 2 for side in sides))


def _top(total: np.ndarray, ppm: np.ndarray, best: int) -> float:
    """Return how far the top of a parabola through three values lies from the middle one [ppm]."""
    if not 0 < best < len(ppm) - 1:
        return 0.0
    left, top, right = total[best - 1 : best + 2]
    curvature = left - 2 * top + right
    step = min(ppm[best] - ppm[best - 1], ppm[best + 1] - ppm[best])
    return float(np.clip(0.5 * (left - right) / curvature, -0.5, 0.5) * step) if curvature < 0 else 0.0


def _with_neighbours(sure: np.ndarray, ratio: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the sure voxels and those beside them that probably have the line too."""
    volume = np.zeros(mask.shape, bool)
    volume[mask] = sure
    beside = ndimage.binary_dilation(volume, ndimage.generate_binary_structure(3, 3))[mask]
    return sure | (beside & (ratio > _NEIGHBOUR))
