"""From contents to FIDs: each component is a map of amplitudes times one decaying signal; B0 acts on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.phantom.brain import Brain
from mrsi_gadgets.phantom.encode import FineBox
from mrsi_gadgets.phantom.lesions import UNKNOWN, UNKNOWN_PPM
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.brain_values import MACROMOLECULE_MM, MACROMOLECULE_T1_S, TISSUES, water_s
from mrsi_gadgets.physics.macromolecules import LIPID_SHARES, lipid_basis, macromolecule_basis
from mrsi_gadgets.physics.nucleus import Nucleus, nucleus_of

_WATER_PROTONS = 2.0
_UNKNOWN_PROTONS = 6.0
_UNKNOWN_RELAXATION_S = (1.2, 0.09)
"""T1 and T2* of the resonance that no model has seen."""
_SCALP_WATER_S = (1.2, 0.020)
"""T1 and T2* of muscle and skin."""
_LIPID_T1_S = 0.35
_WATER_GAUSS_HZ = 1.5
"""Gaussian part of the water lines [Hz, standard deviation]: water's lineshape is not that of the metabolites."""


@dataclass(frozen=True, eq=False)
class Components:
    """Sum over components of amplitude(point) * fid(t)."""

    amplitudes: np.ndarray
    """(point, component) float32 or complex64."""
    fids: np.ndarray
    """(component, t) complex64."""

    def __add__(self, other: Components) -> Components:
        """Both together."""
        return Components(
            np.concatenate([self.amplitudes, other.amplitudes], axis=1), np.concatenate([self.fids, other.fids])
        )

    def at(self, times: slice) -> np.ndarray:
        """Signal (point, t) complex64 at a range of time points."""
        fids = np.ascontiguousarray(self.fids[:, times])
        if np.iscomplexobj(self.amplitudes):
            return self.amplitudes @ fids
        return (self.amplitudes @ fids.view(np.float32)).view(np.complex64)


@dataclass(frozen=True, eq=False)
class FieldPhase:
    """Phase that B0 gives to every signal of a point, and the dephasing across its thickness."""

    b0_hz: np.ndarray
    """(point,) [Hz]."""
    spread_hz: np.ndarray
    """(point,) B0 difference from one face of the point to the other along the slice [Hz]."""
    times_s: np.ndarray

    def at(self, times: slice) -> np.ndarray:
        """Factor (point, t) complex64."""
        t = self.times_s[times].astype(np.float32)
        phase = np.outer((2.0 * np.pi * self.b0_hz).astype(np.float32), t)
        turned = np.empty(phase.shape, np.complex64)
        np.cos(phase, out=turned.real)
        np.sin(phase, out=turned.imag)
        if np.any(self.spread_hz):
            turned *= np.sinc(np.outer(self.spread_hz.astype(np.float32), t))
        return turned


@dataclass(frozen=True, eq=False)
class Excitation:
    """How strongly each point is excited."""

    flip_rad: np.ndarray
    """(point,) flip angle."""
    repetition_time_s: float
    field_t: float

    def weight(self, t1: float) -> np.ndarray:
        """Steady state of a spoiled pulse-acquire train per M0 (point,): sin(a) (1 - E1) / (1 - cos(a) E1)."""
        e1 = np.exp(-self.repetition_time_s / t1)
        return np.asarray(np.sin(self.flip_rad) * (1.0 - e1) / (1.0 - np.cos(self.flip_rad) * e1))


def metabolite_components(brain: Brain, box: FineBox, excitation: Excitation, protocol: Protocol) -> Components:
    """Metabolites, macromolecules and the unseen resonance; the unit is that of one nucleus at 1 mM filling a voxel.

    The nucleus is the protocol's; only protons have macromolecules.
    """
    signals = _molecule_signals(brain.names, protocol)
    return _components(brain, box, excitation, protocol, signals)


def strongest_components(brain: Brain, box: FineBox, excitation: Excitation, protocol: Protocol) -> Components:
    """Return the molecule alone whose line calibrates a scan without a water reference.

    That is PCr for 31P and HDO for 2H: what a map of B0 made from the line is weighted with.
    """
    name = nucleus_of(protocol).strongest
    signals = _molecule_signals((name,), protocol)
    return _components(brain, box, excitation, protocol, signals)


def _molecule_signals(names: Sequence[str], protocol: Protocol) -> dict[str, np.ndarray]:
    """Return the decay-free FID (t,) of each name that the nucleus has."""
    if not nucleus_of(protocol).water_is_nuisance:
        return dict(zip(names, metabolite_basis(protocol, names).fids, strict=True))
    metabolites = tuple(n for n in names if n not in MACROMOLECULE_MM and n != UNKNOWN)
    signals = dict(zip(metabolites, metabolite_basis(protocol, metabolites).fids, strict=True))
    macromolecules = macromolecule_basis(protocol)
    signals |= dict(zip(macromolecules.names, macromolecules.fids, strict=True))
    signals[UNKNOWN] = _UNKNOWN_PROTONS * np.exp(2j * np.pi * protocol.hz(UNKNOWN_PPM) * protocol.times_s)
    return signals


def _components(
    brain: Brain, box: FineBox, excitation: Excitation, protocol: Protocol, signals: Mapping[str, np.ndarray]
) -> Components:
    """Give each signal its amounts, saturation and decay in each tissue."""
    nucleus, times = nucleus_of(protocol), protocol.times_s
    amplitudes, fids = [], []
    for row, name in enumerate(brain.names):
        if name not in signals:
            continue
        for column, tissue in enumerate(TISSUES):
            amount = box.cut(brain.contents[row, column])
            if not np.any(amount):
                continue
            t1, decay = _relaxation(name, tissue, excitation.field_t, times, nucleus)
            amplitudes.append(amount * excitation.weight(t1) / box.points_per_voxel)
            fids.append(signals[name] * decay)
    return Components(np.stack(amplitudes, axis=1).astype(np.float32), np.stack(fids).astype(np.complex64))


def _relaxation(
    name: str, tissue: str, field_t: float, times: np.ndarray, nucleus: Nucleus
) -> tuple[float, np.ndarray]:
    """T1 [s] and decay over time; macromolecule peaks have their width in the basis already."""
    if nucleus.water_is_nuisance and name in MACROMOLECULE_MM:
        return MACROMOLECULE_T1_S, np.ones_like(times)
    if name == UNKNOWN:
        return _UNKNOWN_RELAXATION_S[0], np.exp(-times / _UNKNOWN_RELAXATION_S[1])
    return nucleus.t1_s(name, tissue, field_t), np.exp(-times / nucleus.t2_star_s(name, tissue, field_t))


def water_components(
    brain: Brain, box: FineBox, excitation: Excitation, protocol: Protocol, offset_hz: float
) -> Components:
    """Unsuppressed water of every tissue, at its own offset and with its own lineshape."""
    times, field_t = protocol.times_s, excitation.field_t
    t1 = [*(water_s("t1", tissue, field_t) for tissue in TISSUES), _SCALP_WATER_S[0]]
    t2s = np.array([*(water_s("t2_star", tissue, field_t) for tissue in TISSUES), _SCALP_WATER_S[1]])
    gauss = np.exp(-2.0 * (np.pi * _WATER_GAUSS_HZ * times) ** 2)
    amplitudes = [
        _WATER_PROTONS / box.points_per_voxel * box.cut(amount) * excitation.weight(t1[i])
        for i, amount in enumerate(brain.water)
    ]
    fids = np.exp(2j * np.pi * offset_hz * times) * gauss * np.exp(-times / t2s[:, None])
    return Components(np.stack(amplitudes, axis=1).astype(np.float32), fids.astype(np.complex64))


def residual_water_components(
    water: Components, suppression: np.ndarray, strength: float, protocol: Protocol, offset_hz: float
) -> Components:
    """Water that suppression left: a smooth complex fraction of each point's water, with a line of two parts.

    Parameters
    ----------
    water : unsuppressed water.
    suppression : (point,) complex field of mean size about 1, smooth over the head.
    strength : its scale.
    protocol, offset_hz : as for the water itself.
    """
    times = protocol.times_s
    amount = (water.amplitudes.sum(axis=1) * suppression * strength).astype(np.complex64)
    shares = np.array([0.75, 0.25 * np.exp(0.8j)])
    rates = 2j * np.pi * (offset_hz + np.array([2.0, -6.0])) - 1 / np.array([0.035, 0.018])
    fid = shares @ np.exp(rates[:, None] * times) / abs(shares.sum())
    return Components(amount[:, None], fid[None].astype(np.complex64))


def lipid_components(
    brain: Brain, box: FineBox, excitation: Excitation, protocol: Protocol, strength: float
) -> Components:
    """Scalp fat; `strength` is the signal at t = 0 of a voxel full of scalp."""
    fid = np.array(LIPID_SHARES) @ lipid_basis(protocol).fids
    weight = excitation.weight(_LIPID_T1_S)
    amount = box.cut(brain.scalp) * weight * (strength / float(np.mean(weight)) / box.points_per_voxel)
    return Components(amount[:, None].astype(np.float32), fid[None].astype(np.complex64))


def total(parts: Sequence[Components], field: FieldPhase, times: slice) -> np.ndarray:
    """Signal (point, t) of all parts under B0."""
    result = parts[0].at(times)
    for part in parts[1:]:
        result = result + part.at(times)
    return result * field.at(times)
