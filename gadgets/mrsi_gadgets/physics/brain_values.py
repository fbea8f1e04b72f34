"""What is in a brain: concentrations, relaxation times and reported sums, in one table.

Concentrations are rounded values of healthy adults within the ranges of [1-5]; `range_mm` is what learned models must
be able to represent, disease included. T2 and T1 are rounded values in line with [6-10, 16]; where a molecule was not
measured it has the value of one of similar size. Grey and white matter at 3 T of the weaker molecules are those of [8]
in the anterior cingulate (70 % grey) and in periventricular white matter. A molecule has one T2 (the CH2 of creatine
decays faster than its CH3; this is left out). T2* = 1 / (1 / T2 + R2'), with the microscopic R2' of the tissue from
water [11, 12, 14]; broadening by the field over a voxel comes on top.

References
----------
1. Pouwels, Frahm, NMR Biomed 1997;10:73-78 (NAA 8.0-10.1 mM, NAAG 0.6-1.5 mM in grey, 1.5-2.7 mM in white matter).
2. Pouwels, Frahm, Magn Reson Med 1998;39:53-60, doi:10.1002/mrm.1910390110.
3. Tkac et al., Magn Reson Med 2009;62:868-879, doi:10.1002/mrm.22086.
4. de Graaf, In Vivo NMR Spectroscopy, 3rd edition, Wiley 2019, chapter 2.
5. Govindaraju et al., NMR Biomed 2000;13:129-153.
6. Mlynarik et al., NMR Biomed 2001;14:325-331, doi:10.1002/nbm.713 (T1, T2 at 3 T).
7. Ganji et al., NMR Biomed 2012;25:523-529 (T2 at 3 T, coupled spins).
8. Wyss et al., Magn Reson Med 2018;80:452-461, doi:10.1002/mrm.27067 (T2 at 3 T, 17 metabolites).
9. Marjanska et al., NMR Biomed 2012;25:332-339, doi:10.1002/nbm.1754 (T2 at 7 T).
10. Xin et al., Magn Reson Med 2013;69:931-936 (T1 at 7 T: 0.9 to 2.1 s).
11. Peters et al., Magn Reson Imaging 2007;25:748-753, doi:10.1016/j.mri.2007.02.014 (T2* of water).
12. Wansapura et al., J Magn Reson Imaging 1999;9:531-538 (water at 3 T).
13. Rooney et al., Magn Reson Med 2007;57:308-318, doi:10.1002/mrm.21122 (T1 of water at 7 T).
14. Bartha et al., Magn Reson Med 2002;47:742-750 (T2 of water at 7 T).
15. Gasparovic et al., Magn Reson Med 2006;55:1219-1226, doi:10.1002/mrm.20901 (visible water).
16. Choi, Lee, NMR Biomed 2013, doi:10.1002/nbm.2815 (T1 of glutathione at 3 T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrsi_gadgets.errors import DataError

TISSUES: tuple[str, ...] = ("gm", "wm", "csf")

REPORTED_SUMS: Mapping[str, tuple[str, ...]] = {
    "tNAA": ("NAA", "NAAG"),
    "tCr": ("Cr", "PCr"),
    "tCho": ("GPC", "PCh"),
    "Ins": ("Ins",),
    "Glx": ("Glu", "Gln"),
}
"""What every report shows: name -> molecules that are added up."""


@dataclass(frozen=True)
class MoleculeValues:
    """One molecule in the healthy adult brain."""

    gm_mm: float
    """Concentration in grey matter [mM]."""
    wm_mm: float
    """Concentration in white matter [mM]."""
    range_mm: tuple[float, float]
    """Smallest and largest concentration [mM] that a voxel of a living brain, ill or well, may have."""
    t2_3t_ms: tuple[float, float]
    """T2 in grey and white matter at 3 T [ms]."""
    t2_7t_ms: tuple[float, float]
    """T2 in grey and white matter at 7 T [ms]."""
    t1_3t_ms: tuple[float, float]
    """T1 in grey and white matter at 3 T [ms]."""
    t1_7t_ms: tuple[float, float]
    """T1 in grey and white matter at 7 T [ms]."""
    csf_mm: float = 0.0
    """Concentration in cerebrospinal fluid [mM]."""


def _coupled(
    gm: float, wm: float, low: float, high: float, *, csf: float = 0.0, t2: tuple[float, float] = (120, 155)
) -> MoleculeValues:
    """Return values of a molecule whose relaxation is that of coupled spins of its size."""
    return MoleculeValues(gm, wm, (low, high), t2, (95, 95), (1200, 1150), (1600, 1550), csf)


BRAIN: Mapping[str, MoleculeValues] = {
    "NAA": MoleculeValues(9.0, 8.0, (0, 14), (250, 300), (140, 160), (1450, 1350), (1750, 1700)),
    "NAAG": MoleculeValues(1.0, 2.0, (0, 4), (130, 185), (120, 130), (1200, 1150), (1400, 1300)),
    "Cr": MoleculeValues(4.2, 3.1, (0, 8), (160, 175), (105, 115), (1450, 1250), (1750, 1700)),
    "PCr": MoleculeValues(3.4, 2.5, (0, 8), (160, 175), (105, 115), (1450, 1250), (1750, 1700)),
    "GPC": MoleculeValues(0.90, 1.20, (0, 4), (220, 225), (150, 150), (1300, 1150), (1500, 1450)),
    "PCh": MoleculeValues(0.35, 0.45, (0, 5), (220, 225), (150, 150), (1300, 1150), (1500, 1450)),
    "PE": _coupled(1.5, 1.2, 0, 3.5, t2=(119, 158)),
    "Ins": MoleculeValues(5.0, 4.0, (0, 12), (195, 195), (95, 95), (1150, 1050), (1300, 1250)),
    "sIns": MoleculeValues(0.30, 0.25, (0, 1.5), (125, 170), (110, 110), (1300, 1200), (1500, 1450)),
    "Glu": MoleculeValues(9.5, 6.2, (0, 15), (180, 185), (93, 95), (1250, 1200), (1650, 1600)),
    "Gln": _coupled(3.0, 1.8, 0, 9, csf=0.5, t2=(122, 168)),
    "GABA": MoleculeValues(1.4, 0.7, (0, 3.5), (90, 85), (65, 65), (1300, 1250), (1350, 1350)),
    "Asp": _coupled(2.0, 1.4, 0, 4, t2=(111, 148)),
    "GSH": MoleculeValues(1.3, 0.9, (0, 4), (100, 155), (80, 75), (400, 400), (1000, 950)),
    "Lac": MoleculeValues(0.8, 0.5, (0, 15), (110, 160), (100, 100), (1300, 1250), (1600, 1550), 1.5),
    "Tau": MoleculeValues(1.4, 1.0, (0, 5), (123, 150), (90, 90), (1300, 1250), (2100, 1900)),
    "Glc": _coupled(1.1, 0.9, 0, 8, csf=3.0),
    "Ala": _coupled(0.4, 0.3, 0, 4),
    "Gly": MoleculeValues(0.8, 0.4, (0, 6), (102, 152), (90, 90), (1200, 1150), (1500, 1450)),
    "Asc": _coupled(1.1, 0.7, 0, 2.5, t2=(125, 172)),
    "Ser": _coupled(0.4, 0.3, 0, 2),
    "2HG": _coupled(0.0, 0.0, 0, 10),
}

MACROMOLECULE_MM: Mapping[str, tuple[float, float]] = {
    name: (12.0 * area / 0.72, 10.0 * area / 0.72)
    for name, area in {
        "MM092": 0.72,
        "MM121": 0.28,
        "MM139": 0.38,
        "MM167": 0.15,
        "MM204": 0.81,
        "MM226": 0.36,
        "MM256": 0.09,
        "MM299": 0.20,
        "MM321": 0.19,
        "MM362": 0.64,
        "MM395": 1.07,
    }.items()
}
"""Signal of each macromolecule peak in grey and white matter [mM of protons]. Ratios: Birch et al.,
Magn Reson Med 2017;77:34-43. Scale: 5 to 20 mmol of protons per kg and peak, regions not significantly different, in
Snoussi et al., Magn Reson Med 2015;74, doi:10.1002/mrm.25468; that white matter has a sixth less is our choice."""

MACROMOLECULE_T1_S = 0.30
"""T1 of macromolecules [s], much shorter than that of metabolites (Cudalbu et al. 2021, doi:10.1002/nbm.4393)."""


MACROMOLECULE_T2_S = 0.03
"""T2 of macromolecules [s] for echo times: of the order of their line widths at 3 T (1 / (pi 15 Hz) = 21 ms) and of the
values collected by Cudalbu et al.; it only scales one amplitude that is fitted anyway."""


@dataclass(frozen=True)
class WaterValues:
    """Water of one tissue."""

    concentration_mm: float
    """MR-visible water [mM]; its signal is twice that."""
    t1_ms: tuple[float, float]
    """At 3 T and at 7 T [ms]."""
    t2_ms: tuple[float, float]
    t2_star_ms: tuple[float, float]


WATER: Mapping[str, WaterValues] = {
    "gm": WaterValues(43300.0, (1331, 2132), (110, 50), (66, 33)),
    "wm": WaterValues(35880.0, (832, 1220), (80, 55), (53, 27)),
    "csf": WaterValues(53840.0, (4160, 4425), (500, 350), (220, 120)),
}
"""References 11 to 15; relaxation of CSF is a rounded assumption."""


def values(name: str, table: Mapping[str, MoleculeValues] = BRAIN) -> MoleculeValues:
    """Return a table's entry of a molecule; DataError where there is none."""
    if name not in table:
        raise DataError(f"there are no brain values for '{name}'; there are for {', '.join(table)}")
    return table[name]


def concentration_mm(name: str, tissue: str, table: Mapping[str, MoleculeValues] = BRAIN) -> float:
    """Return the typical concentration of a molecule in ``gm``, ``wm`` or ``csf`` [mM]."""
    entry = values(name, table)
    return (entry.gm_mm, entry.wm_mm, entry.csf_mm)[_tissue_index(tissue)]


def t2_s(name: str, tissue: str, field_t: float, table: Mapping[str, MoleculeValues] = BRAIN) -> float:
    """Return T2 of a molecule at a field [s], linear in the field between and beyond the table's 3 T and 7 T."""
    entry = values(name, table)
    i = min(_tissue_index(tissue), 1)  # what little there is in CSF relaxes as in white matter
    return _at_field(1.0 / entry.t2_3t_ms[i], 1.0 / entry.t2_7t_ms[i], field_t, rate=True) * 1e-3


def t1_s(name: str, tissue: str, field_t: float, table: Mapping[str, MoleculeValues] = BRAIN) -> float:
    """Return T1 of a molecule at a field [s]."""
    entry = values(name, table)
    i = min(_tissue_index(tissue), 1)
    return _at_field(entry.t1_3t_ms[i], entry.t1_7t_ms[i], field_t) * 1e-3


def t2_star_s(name: str, tissue: str, field_t: float) -> float:
    """Return T2* of a molecule [s]: its T2 and the tissue's microscopic R2', without the field over the voxel."""
    return 1.0 / (1.0 / t2_s(name, tissue, field_t) + r2_prime_hz(tissue, field_t))


def r2_prime_hz(tissue: str, field_t: float) -> float:
    """Return the tissue's microscopic R2' = 1 / T2* - 1 / T2 of water protons [1/s]."""
    return 1.0 / water_s("t2_star", tissue, field_t) - 1.0 / water_s("t2", tissue, field_t)


def water_s(quantity: str, tissue: str, field_t: float) -> float:
    """Return ``t1``, ``t2`` or ``t2_star`` of water of a tissue at a field [s]."""
    entry = WATER[TISSUES[_tissue_index(tissue)]]
    if quantity == "t1":
        return _at_field(*entry.t1_ms, field_t) * 1e-3
    if quantity not in ("t2", "t2_star"):
        raise DataError(f"water has t1, t2 and t2_star, not '{quantity}'")
    at_3t, at_7t = entry.t2_ms if quantity == "t2" else entry.t2_star_ms
    return _at_field(1.0 / at_3t, 1.0 / at_7t, field_t, rate=True) * 1e-3


def _tissue_index(tissue: str) -> int:
    if tissue not in TISSUES:
        raise DataError(f"tissue '{tissue}' is not known; use {', '.join(TISSUES)}")
    return TISSUES.index(tissue)


def _at_field(at_3t: float, at_7t: float, field_t: float, *, rate: bool = False) -> float:
    """Interpolate linearly in the field; transverse rates instead of times, so that they stay positive up to 11.7 T."""
    if not 1.0 <= field_t <= 12.0:
        raise DataError(f"brain values are known near 3 T and 7 T; {field_t:g} T is outside 1 to 12 T")
    value = at_3t + (at_7t - at_3t) * (field_t - 3.0) / 4.0
    return 1.0 / value if rate else value
