"""Phosphorus (31P) in the human brain: spin systems, amounts, relaxation, and pH from the shift of inorganic phosphate.

Shifts are in ppm relative to phosphocreatine at 0 ppm, those of brain at pH 7 [1]. The couplings of 31P with 31P are
those of brain [1]; where protons three bonds away split a line (phosphomonoesters and phosphodiesters), they are
partners with the couplings that proton spectra of the same molecules show [2], for spectra acquired without proton
decoupling. The three phosphates of ATP are three entries, each with the lines of its own nucleus in the coupled
system: their T1, Overhauser enhancement and excitation differ, so a scan need not show them alike.

Extracellular phosphate lies where the equation of `ph_of_shift` puts a pH of 7.4 [3]. The two phosphates of NAD+ form
an AB quartet about -8.31 ppm [1, 4]; 0.3 ppm apart and coupled by 20 Hz are rounded values. Those of NADH are not
resolved [1]. UDP-glucose has two doublets, one below NAD and one near -9.8 ppm [3, 5]; UDP-bound sugars of similar
shifts [5] are counted as UDP-glucose.

T1 and T2 at 7 T: phosphocreatine and ATP as measured [6]; T1 of intracellular phosphate 40 % below that of
extracellular phosphate, those of NAD and UDP-glucose between ATP and the monophosphates [3]. T2 of phosphate, esters
and diesters are rounded values in line with 7 T [7] and above those at 9.4 T (phosphate 25 to 50 ms, esters and
diesters about 130 ms, NAD below 20 ms [8]). Values at other fields are those at 7 T: little is known, and linewidths
are fitted anyway. Concentrations are rounded (ATP 3 mM is the field's usual reference [8], total NAD about 0.4 mM
[4, 9]); `range_mm` is our choice.

References
----------
1. Deelchand et al., NMR Biomed 2015;28:633-641, doi:10.1002/nbm.3291 (shifts, couplings of ATP).
2. Govind, Young, Maudsley, NMR Biomed 2015;28:923-924, doi:10.1002/nbm.3336 (couplings of 31P with protons).
3. Ren, Sherry, Malloy, NMR Biomed 2015;28:1455-1462, doi:10.1002/nbm.3384.
4. Zhu et al., Proc Natl Acad Sci 2015;112:2876-2881, doi:10.1073/pnas.1417921112.
5. Ren, Malloy, Sherry, Magn Reson Med 2020;84:2338-2351, doi:10.1002/mrm.28306.
6. Lei et al., Magn Reson Med 2003;49:199-205 (PCr T1 3.37 s, T2 132 ms; ATP T1 1.02 to 1.27 s, T2 25 to 26 ms).
7. van der Kemp, Klomp, Wijnen, Magn Reson Med 2018;80:29-35.
8. Dorst et al., NMR Biomed 2022;35:e4776, doi:10.1002/nbm.4776.
9. Guo et al., Front Neurosci 2024;18:1389111, doi:10.3389/fnins.2024.1389111.
10. Moon, Richards, J Biol Chem 1973;248:7276-7278 (pH from the shift of phosphate).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mrsi_gadgets.physics.brain_values import MoleculeValues
from mrsi_gadgets.physics.spin_systems import Molecule, Partner, SpinSystem, singlet

_DEELCHAND = "Deelchand et al. 2015, doi:10.1002/nbm.3291"
_PK, _ACID_PPM, _BASE_PPM = 6.75, 3.27, 5.63

PHOSPHATE_PPM = 4.84
"""Shift of intracellular inorganic phosphate at pH 7.05 [ppm]; it moves with pH."""
PHOSPHATE_REACH_PPM = 0.3
"""How far from there it is looked for: pH 6.8 to 7.4."""
EXTRACELLULAR_PH = 7.4


def ph_of_shift(ppm: np.ndarray | float) -> np.ndarray:
    """Return the pH at which inorganic phosphate lies `ppm` from phosphocreatine (Moon and Richards 1973).

    pH = 6.75 + log10((d - 3.27) / (5.63 - d)). NaN where d is not between 3.27 and 5.63 ppm: no pH makes such a shift.
    """
    d = np.asarray(ppm, float)
    possible = (d > _ACID_PPM) & (d < _BASE_PPM)
    inside = np.where(possible, d, PHOSPHATE_PPM)
    return np.where(possible, _PK + np.log10((inside - _ACID_PPM) / (_BASE_PPM - inside)), np.nan)


def ph_slope(ppm: np.ndarray | float) -> np.ndarray:
    """Return the derivative of `ph_of_shift` by the shift [1/ppm]; NaN where that is NaN."""
    d = np.asarray(ppm, float)
    possible = (d > _ACID_PPM) & (d < _BASE_PPM)
    inside = np.where(possible, d, PHOSPHATE_PPM)
    slope = (1 / (inside - _ACID_PPM) + 1 / (_BASE_PPM - inside)) / np.log(10)
    return np.where(possible, slope, np.nan)


def shift_of_ph(ph: float) -> float:
    """Return the shift of inorganic phosphate from phosphocreatine at a pH [ppm], the inverse of `ph_of_shift`."""
    ratio = 10.0 ** (ph - _PK)
    return (_ACID_PPM + _BASE_PPM * ratio) / (1 + ratio)


def _protons(*couplings_hz: float) -> tuple[Partner, ...]:
    """Return protons three bonds away, one partner each."""
    return tuple(Partner("1H", 0.5, {0: coupling}) for coupling in couplings_hz)


_ATP_PPM = (-2.53, -7.56, -16.18)
_ATP_HZ = {(1, 2): 16.3, (0, 2): 15.4}


def _atp(name: str, observed: int) -> Molecule:
    system = SpinSystem(_ATP_PPM, (1, 1, 1), _ATP_HZ, observed=(observed,))
    return Molecule(name, f"adenosine triphosphate, {name.partition('-')[0]} phosphate", (system,), _DEELCHAND)


def _line(name: str, full_name: str, ppm: float, partners: tuple[Partner, ...] = (), source: str = "") -> Molecule:
    return Molecule(name, full_name, (singlet(ppm, 1, partners),), source or _DEELCHAND)


_ALL = (
    _line("PCr", "phosphocreatine", 0.0),
    _atp("gamma-ATP", 0),
    _atp("alpha-ATP", 1),
    _atp("beta-ATP", 2),
    _line("Pi", "inorganic phosphate within cells", PHOSPHATE_PPM),
    _line(
        "ePi", "inorganic phosphate outside cells", shift_of_ph(EXTRACELLULAR_PH), source="pH 7.4, Ren et al. 2015",
    ),
    _line("PE", "phosphoethanolamine", 6.77, _protons(7.288, 7.088)),
    _line("PC", "phosphocholine", 6.23, _protons(6.298, 6.249)),
    _line("GPE", "glycerophosphoethanolamine", 3.49, _protons(6.03, 6.03, 6.03, 6.03)),
    _line("GPC", "glycerophosphocholine", 2.94, _protons(6.03, 6.03, 6.03, 6.03)),
    Molecule(
        "NAD+",
        "nicotinamide adenine dinucleotide, oxidised",
        (SpinSystem((-8.16, -8.46), (1, 1), {(0, 1): 20.0}),),
        f"centre {_DEELCHAND}; distance and coupling rounded",
    ),
    Molecule("NADH", "nicotinamide adenine dinucleotide, reduced", (singlet(-8.13, 2),), _DEELCHAND),
    Molecule(
        "UDPG",
        "uridine diphosphate glucose and similar sugars",
        (SpinSystem((-8.23, -9.83), (1, 1), {(0, 1): 20.0}),),
        "Ren et al. 2015, doi:10.1002/nbm.3384; Ren et al. 2020, doi:10.1002/mrm.28306",
    ),
)  # fmt: skip

MOLECULES: Mapping[str, Molecule] = {molecule.name: molecule for molecule in _ALL}
"""Name -> molecule, in the order of the reports, the strongest line first."""


def _values(gm: float, wm: float, most: float, t1_ms: float, t2_ms: float) -> MoleculeValues:
    """Return values with the same relaxation in all tissues and fields."""
    t1, t2 = (t1_ms, t1_ms), (t2_ms, t2_ms)
    return MoleculeValues(gm, wm, (0.0, most), t2, t2, t1, t1)


VALUES: Mapping[str, MoleculeValues] = {
    "PCr": _values(4.6, 4.2, 9.0, 3370, 132),
    "gamma-ATP": _values(3.0, 3.0, 6.0, 1270, 26),
    "alpha-ATP": _values(3.0, 3.0, 6.0, 1270, 26),
    "beta-ATP": _values(3.0, 3.0, 6.0, 1020, 25),
    "Pi": _values(1.0, 0.9, 4.0, 3600, 85),
    "ePi": _values(0.35, 0.30, 2.0, 6000, 85),
    "PE": _values(2.2, 1.9, 6.0, 5000, 200),
    "PC": _values(0.45, 0.55, 4.0, 4500, 130),
    "GPE": _values(0.7, 0.9, 3.0, 6000, 200),
    "GPC": _values(1.1, 1.5, 5.0, 5500, 200),
    "NAD+": _values(0.32, 0.30, 1.0, 2100, 25),
    "NADH": _values(0.08, 0.07, 0.5, 2100, 25),
    "UDPG": _values(0.10, 0.09, 0.6, 2600, 30),
}
"""Amounts [mM of molecules] and relaxation [ms] of each entry of `MOLECULES`; CSF holds none that is seen."""

SUMS: Mapping[str, Mapping[str, float]] = {
    "PCr": {"PCr": 1.0},
    "ATP": {"gamma-ATP": 1 / 3, "alpha-ATP": 1 / 3, "beta-ATP": 1 / 3},
    "Pi": {"Pi": 1.0},
    "PME": {"PE": 1.0, "PC": 1.0},
    "PDE": {"GPE": 1.0, "GPC": 1.0},
    "tNAD": {"NAD+": 1.0, "NADH": 1.0},
}
"""What every report shows: name -> entries and their weights; ATP is the mean of its three phosphates."""

POOLS: tuple[tuple[str, ...], ...] = (("gamma-ATP", "alpha-ATP", "beta-ATP"),)
"""Entries that are one and the same molecule: they vary together."""

SHIFT_PPM_SD: Mapping[str, float] = {"Pi": 0.12, "ePi": 0.05, "gamma-ATP": 0.02, "beta-ATP": 0.03}
"""Spread of shifts over brains, pH and magnesium [ppm], where it is more than that of the other entries. That of
phosphate is 0.1 of pH."""
