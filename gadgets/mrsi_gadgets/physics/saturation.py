"""Weighting by relaxation: what a short repetition time and an echo leave of each molecule's signal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.nucleus import field_strength_t, nucleus_of


def saturation(protocol: Protocol, t1_s: float) -> float:
    """Return the steady-state signal of a spin of a given T1 over that of the strongest molecule in grey matter.

    That is NAA for 1H, PCr for 31P and HDO for 2H (`physics.nucleus`). Ernst and Anderson 1966:
    sin(a) (1 - E1) / (1 - cos(a) E1), E1 = exp(-TR / T1), for both; 1 where the protocol lacks repetition time or flip
    angle.
    """
    if not protocol.repetition_time_s or not protocol.flip_angle_deg:
        return 1.0
    cos = np.cos(np.deg2rad(protocol.flip_angle_deg))
    nucleus = nucleus_of(protocol)
    reference_t1_s = nucleus.t1_s(nucleus.strongest, "gm", field_strength_t(protocol))
    e1 = np.exp(-protocol.repetition_time_s / np.array([t1_s, reference_t1_s]))
    steady = (1 - e1) / (1 - cos * e1)
    return float(steady[0] / steady[1])


def echo_weight(protocol: Protocol, t2_s: float) -> float:
    """Return exp(-TE / T2) of a spin over the strongest molecule's in grey matter; 1 for pulse-acquire."""
    te = protocol.spin_echo_time_s
    if te is None:
        return 1.0
    nucleus = nucleus_of(protocol)
    return float(np.exp(te / nucleus.t2_s(nucleus.strongest, "gm", field_strength_t(protocol)) - te / t2_s))


def relaxation_weight(protocol: Protocol, name: str) -> float:
    """Return what steady state and echo leave of a molecule, relative to the strongest one in grey matter.

    The mean over grey and white matter: a fit that does not know the tissue is then off to either side alike.
    """
    nucleus, field_t = nucleus_of(protocol), field_strength_t(protocol)
    weights = [
        saturation(protocol, nucleus.t1_s(name, tissue, field_t))
        * echo_weight(protocol, nucleus.t2_s(name, tissue, field_t))
        for tissue in ("gm", "wm")
    ]
    return sum(weights) / 2


def macromolecule_weight(protocol: Protocol) -> float:
    """Return what steady state and echo leave of macromolecules, relative to NAA."""
    return saturation(protocol, brain_values.MACROMOLECULE_T1_S) * echo_weight(
        protocol, brain_values.MACROMOLECULE_T2_S
    )


def relaxed(basis: BasisSet, weight: float | None = None) -> BasisSet:
    """Return the basis with each molecule's weight by relaxation, so that fitted amplitudes are amounts.

    `weight` replaces the molecules' own for every row (macromolecules).
    """
    weights = [relaxation_weight(basis.protocol, name) if weight is None else weight for name in basis.names]
    return replace(basis, fids=basis.fids * np.array(weights)[:, None])
