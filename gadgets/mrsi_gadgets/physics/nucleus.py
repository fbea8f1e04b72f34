"""What depends on the nucleus: its molecules, their amounts and relaxation, and the line a scan is calibrated on.

Everything that simulates, learns or fits asks `nucleus_of` with the protocol and so works alike for protons,
phosphorus and deuterium.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics import brain_values, deuterium, phosphorus, spin_systems
from mrsi_gadgets.physics.brain_values import MoleculeValues
from mrsi_gadgets.physics.spin_systems import Molecule

PROTON_GYROMAGNETIC_MHZ = 42.577
"""Resonance frequency of protons [MHz/T]."""
_VOXEL_HZ = 10.0
"""Usual width of the field over a voxel [Hz]."""


@dataclass(frozen=True, eq=False)
class Nucleus:
    """One nucleus whose molecules in the brain are known."""

    name: str
    """As `Protocol.nucleus` has it."""
    frequency_ratio: float
    """Resonance frequency over that of protons (IUPAC, doi:10.1351/pac200173111795)."""
    molecules: Mapping[str, Molecule]
    """All that can be simulated, by name."""
    usual: tuple[str, ...]
    """Those that a healthy brain's scan is modelled with, in the order of the reports."""
    values: Mapping[str, MoleculeValues]
    """Their amounts and relaxation."""
    sums: Mapping[str, Mapping[str, float]]
    """What every report shows: name -> molecules and their weights."""
    strongest: str
    """The molecule that weights by relaxation are relative to, and whose line states the SNR of a scan."""
    strongest_signal: float
    """Its signal at t = 0 in normal brain, in the line that is meant [mM of nuclei]."""
    calibration_ppm: float
    """Line from which field, coil maps and phase are found [ppm]: water's, or where there is none the strongest."""
    water_is_nuisance: bool
    """Whether residual water, lipids and macromolecules lie over the molecules (protons only)."""
    shift_ppm_sd: Mapping[str, float] = field(default_factory=dict)
    """Spread of a molecule's shift over brains [ppm] where it is more than that of the others."""
    pools: tuple[tuple[str, ...], ...] = ()
    """Names that stand for one and the same molecule: their amounts are equal."""

    @property
    def gyromagnetic_mhz(self) -> float:
        """Resonance frequency [MHz/T]."""
        return PROTON_GYROMAGNETIC_MHZ * self.frequency_ratio

    def molecule(self, name: str) -> Molecule:
        """Return the molecule called `name`; DataError where there is none."""
        if name not in self.molecules:
            raise DataError(f"molecule '{name}' is not known for {self.name}; known are {', '.join(self.molecules)}")
        return self.molecules[name]

    def concentration_mm(self, name: str, tissue: str) -> float:
        """Return the typical amount of a molecule in ``gm``, ``wm`` or ``csf`` [mM]."""
        return brain_values.concentration_mm(name, tissue, self.values)

    def range_mm(self, name: str) -> tuple[float, float]:
        """Return the smallest and largest amount a voxel of a living brain may have [mM]."""
        return brain_values.values(name, self.values).range_mm

    def t1_s(self, name: str, tissue: str, field_t: float) -> float:
        """Return T1 of a molecule at a field [s]."""
        return brain_values.t1_s(name, tissue, field_t, self.values)

    def t2_s(self, name: str, tissue: str, field_t: float) -> float:
        """Return T2 of a molecule at a field [s]."""
        return brain_values.t2_s(name, tissue, field_t, self.values)

    def t2_star_s(self, name: str, tissue: str, field_t: float) -> float:
        """Return T2* of a molecule [s]: its T2 and the tissue's microscopic R2', without the field over the voxel.

        R2' comes from differences of the field, so that of protons counts in proportion to the frequency.
        """
        rate = 1.0 / self.t2_s(name, tissue, field_t)
        return 1.0 / (rate + self.frequency_ratio * brain_values.r2_prime_hz(tissue, field_t))


PROTON = Nucleus(
    name="1H",
    frequency_ratio=1.0,
    molecules=spin_systems.MOLECULES,
    usual=tuple(name for name in spin_systems.MOLECULES if name not in ("Ser", "2HG")),
    values=brain_values.BRAIN,
    sums={name: dict.fromkeys(members, 1.0) for name, members in brain_values.REPORTED_SUMS.items()},
    strongest="NAA",
    strongest_signal=27.0,
    calibration_ppm=4.65,
    water_is_nuisance=True,
)
"""Serine (hidden below creatine and others) and 2-hydroxyglutarate (tumours with IDH mutation) are simulated only when
they are asked for by name. The strongest signal is that of the CH3 protons of NAA: 9 mM, 3 protons."""

PHOSPHORUS = Nucleus(
    name="31P",
    frequency_ratio=0.40480742,
    molecules=phosphorus.MOLECULES,
    usual=tuple(phosphorus.MOLECULES),
    values=phosphorus.VALUES,
    sums=phosphorus.SUMS,
    strongest="PCr",
    strongest_signal=phosphorus.VALUES["PCr"].gm_mm,
    calibration_ppm=0.0,
    water_is_nuisance=False,
    shift_ppm_sd=phosphorus.SHIFT_PPM_SD,
    pools=phosphorus.POOLS,
)

DEUTERIUM = Nucleus(
    name="2H",
    frequency_ratio=0.15350609,
    molecules=deuterium.MOLECULES,
    usual=tuple(deuterium.MOLECULES),
    values=deuterium.VALUES,
    sums=deuterium.SUMS,
    strongest="HDO",
    strongest_signal=deuterium.VALUES["HDO"].gm_mm,
    calibration_ppm=deuterium.WATER_PPM,
    water_is_nuisance=False,
)

NUCLEI: Mapping[str, Nucleus] = {nucleus.name: nucleus for nucleus in (PROTON, PHOSPHORUS, DEUTERIUM)}
"""Name -> nucleus: those whose scans can be learned and fitted."""


def nucleus_of(protocol: Protocol) -> Nucleus:
    """Return the nucleus of a protocol.

    Raises
    ------
    DataError
        Its molecules are not known.
    """
    if protocol.nucleus not in NUCLEI:
        raise DataError(
            f"molecules are known for {', '.join(NUCLEI)} only, the protocol's nucleus is {protocol.nucleus}; correct "
            "mrsi_nucleus if that is wrong, else this version cannot quantify the scan"
        )
    return NUCLEI[protocol.nucleus]


def calibration_line(protocol: Protocol) -> tuple[float, float]:
    """Return shift [ppm] and T2* [s] of the line that a scan without a water reference is calibrated on.

    T2* is that of a voxel of grey matter with 10 Hz of the field over it: how much of an FID the line lasts.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    nucleus = nucleus_of(protocol)
    if nucleus.water_is_nuisance:
        own_s = brain_values.water_s("t2_star", "gm", field_strength_t(protocol))
    else:
        own_s = nucleus.t2_star_s(nucleus.strongest, "gm", field_strength_t(protocol))
    return nucleus.calibration_ppm, 1.0 / (1.0 / own_s + math.pi * _VOXEL_HZ)


def field_strength_t(protocol: Protocol) -> float:
    """Return the protocol's field strength, or the one its transmit frequency implies [T]."""
    if protocol.field_strength_t:
        return protocol.field_strength_t
    return protocol.transmit_frequency_hz * 1e-6 / nucleus_of(protocol).gyromagnetic_mhz
