"""Where the signals of a head come from, at the time points of any protocol and behind any echo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.phantom import signals
from mrsi_gadgets.phantom.anatomy import Anatomy
from mrsi_gadgets.phantom.brain import Brain
from mrsi_gadgets.phantom.encode import FineBox
from mrsi_gadgets.phantom.lesions import UNKNOWN
from mrsi_gadgets.phantom.presets import Preset
from mrsi_gadgets.physics.brain_values import MACROMOLECULE_MM, MACROMOLECULE_T2_S, TISSUES, water_s
from mrsi_gadgets.physics.nucleus import nucleus_of

BRAIN_MASK = 0.95
"""Voxels (and points) with more grey matter, white matter and CSF than this are brain."""
_UNKNOWN_T2_S, _SCALP_WATER_T2_S, _LIPID_T2_S = 0.15, 0.035, 0.06
"""T2 of what has no value in `brain_values`: orders of magnitude; they only weight echoes."""
_SIDEBANDS_HZ = (63.0, 118.0, 187.0)
"""Vibrations of a gradient coil that an acquisition excites: anywhere between 60 and 200 Hz."""
_SIDEBAND_DIRECTIONS = np.array([[0.8, 0.6, 0.0], [-0.3, 0.9, 0.3], [1.0, -0.2, 0.0]])
_SIDEBAND_PHASES_RAD = (0.4, 2.1, 4.0)
_HEAD_MM = 90.0

Parts = Callable[[Protocol], list[signals.Components]]
"""Gives the components of a signal at the time points of a protocol; its first echo time is that of the echo."""


@dataclass(frozen=True, eq=False)
class Head:
    """One head in the scanner: everything that signal comes from, on the fine grid."""

    anatomy: Anatomy
    lesions: Mapping[str, np.ndarray]
    brain: Brain
    box: FineBox
    coil_maps: np.ndarray
    """(coil, x, y, z) complex64."""
    b0_hz: np.ndarray
    """(x, y, z)."""
    field: signals.FieldPhase
    excitation: signals.Excitation
    suppression: np.ndarray
    """(point,) complex: what water suppression leaves, mean size about 1."""


class Source:
    """Signals of a head in the measurement of a preset."""

    def __init__(self, preset: Preset, head: Head) -> None:
        self.preset, self.head = preset, head
        self._scales, self.strengths = _strengths(preset, head, self._water(preset.protocol))

    def metabolites(self, protocol: Protocol) -> signals.Components:
        """Metabolites, macromolecules and the unseen resonance."""
        head = self.head
        if protocol.spin_echo_time_s is None:
            return signals.metabolite_components(head.brain, head.box, head.excitation, protocol)
        return _echo_components(head, protocol)

    def water(self, protocol: Protocol) -> list[signals.Components]:
        """Unsuppressed water with its sidebands."""
        water = self._water(protocol)
        return [water, *self._sidebands(water, protocol)]

    def all_but_water(self, protocol: Protocol) -> list[signals.Components]:
        """Metabolites and lipids."""
        return [self.metabolites(protocol), *self._lipids(protocol)]

    def _lipids(self, protocol: Protocol) -> list[signals.Components]:
        parts = []
        if self.preset.lipid > 0:
            head, scale = self.head, self._scales["lipid"]
            if protocol.spin_echo_time_s is not None:
                scale *= float(np.exp(-protocol.spin_echo_time_s / _LIPID_T2_S))
            parts.append(signals.lipid_components(head.brain, head.box, head.excitation, protocol, scale))
        return parts

    def suppressed(self, protocol: Protocol) -> list[signals.Components]:
        """Return what the metabolite scan receives: metabolites, lipids and the water that is left (or all of it)."""
        parts = [self.metabolites(protocol)]
        if self.preset.nucleus != "1H":
            return parts
        if not self.preset.water_suppressed:
            parts += self.water(protocol)
        elif self.preset.residual_water > 0:
            water, scale = self._water(protocol), self._scales["water"]
            left = signals.residual_water_components(
                water, self.head.suppression, scale, protocol, self.preset.water_offset_hz
            )
            parts += [left, *self._sidebands(left, protocol)]
        return [*parts, *self._lipids(protocol)]

    def _water(self, protocol: Protocol) -> signals.Components:
        head = self.head
        water = signals.water_components(
            head.brain, head.box, head.excitation, protocol, self.preset.water_offset_hz
        )  # fmt: skip
        if protocol.spin_echo_time_s is None:
            return water
        t2 = [*(water_s("t2", tissue, head.excitation.field_t) for tissue in TISSUES), _SCALP_WATER_T2_S]
        weights = np.exp(-protocol.spin_echo_time_s / np.array(t2)).astype(np.float32)
        return replace(water, amplitudes=water.amplitudes * weights)

    def _sidebands(self, water: signals.Components, protocol: Protocol) -> list[signals.Components]:
        """Antisymmetric pairs of sidebands that a vibrating gradient gives to water.

        A gradient that vibrates as sin(w t) turns the phase by a small angle b sin(w t) that grows along its direction:
        exp(i b sin w t) is about 1 + b/2 (exp(i w t) - exp(-i w t)).
        """
        if not self.preset.water_sidebands:
            return []
        places = self.head.box.cut(self.head.anatomy.positions_mm) / _HEAD_MM
        pairs = []
        for frequency, direction, phase in zip(_SIDEBANDS_HZ, _SIDEBAND_DIRECTIONS, _SIDEBAND_PHASES_RAD, strict=True):
            size = (self.preset.water_sidebands * (places @ direction)).astype(np.float32)
            vibration = 2j * np.sin(2.0 * np.pi * frequency * protocol.times_s + phase)
            pairs.append(
                signals.Components(water.amplitudes * size[:, None], (water.fids * vibration).astype(np.complex64))
            )
        return pairs


def _echo_components(head: Head, protocol: Protocol) -> signals.Components:
    """Metabolites behind a spin echo: couplings by the basis, T2 of each molecule and tissue over the echo time."""
    nucleus, te = nucleus_of(protocol), protocol.spin_echo_time_s or 0.0
    amplitudes, fids = [], []
    for row, name in enumerate(head.brain.names):
        for column, tissue in enumerate(TISSUES):
            if not np.any(head.brain.contents[row, column]):
                continue
            contents = np.zeros_like(head.brain.contents[row : row + 1])
            contents[0, column] = head.brain.contents[row, column]
            alone = replace(head.brain, names=(name,), contents=contents)
            part = signals.metabolite_components(alone, head.box, head.excitation, protocol)
            if name in MACROMOLECULE_MM and nucleus.water_is_nuisance:
                t2 = MACROMOLECULE_T2_S
            else:
                t2 = _UNKNOWN_T2_S if name == UNKNOWN else nucleus.t2_s(name, tissue, head.excitation.field_t)
            amplitudes.append(part.amplitudes * np.float32(np.exp(-te / t2)))
            fids.append(part.fids)
    return signals.Components(np.concatenate(amplitudes, axis=1), np.concatenate(fids))


def _strengths(
    preset: Preset, head: Head, water: signals.Components
) -> tuple[dict[str, float], dict[str, float]]:  # fmt: skip
    """Scales that give residual water and lipids their strength against the NAA CH3 signal of normal brain at t = 0.

    Returns
    -------
        Scales for `signals.residual_water_components` and `signals.lipid_components`, and what the card says.
    """
    box = head.box
    normal = (box.cut(head.anatomy.brain) > BRAIN_MASK) & (box.cut(np.sum(list(head.lesions.values()), axis=0)) < 0.02)
    nucleus = nucleus_of(preset.protocol)
    row = head.brain.names.index(nucleus.strongest)
    t1 = nucleus.t1_s(nucleus.strongest, "gm", preset.field_strength_t)
    amount = box.cut(head.brain.contents[row].sum(axis=0)) * head.excitation.weight(t1)
    nuclei = nucleus.strongest_signal / nucleus.concentration_mm(nucleus.strongest, "gm")
    strongest = nuclei * float(np.mean(amount[normal])) if normal.any() else 1.0
    if not nucleus.water_is_nuisance:
        return {}, {f"{nucleus.strongest.lower()}_signal": strongest}
    whole_water = water.amplitudes.sum(axis=1) * box.points_per_voxel
    size = float(np.mean(np.abs(whole_water * head.suppression)[normal]))
    scales = {"water": preset.residual_water * strongest / size, "lipid": preset.lipid * strongest}
    over = float(np.mean(whole_water[normal])) / strongest
    return scales, {"unsuppressed_water_over_naa": over, "naa_ch3_signal": strongest}
