"""Deuterium (2H) in the human brain after labelled glucose: lines, amounts, relaxation.

Four lines without resolved couplings: water (HDO), glucose labelled at C6, glutamate plus glutamine (Glx) labelled at
C4, and lactate labelled at C3, at 4.8, 3.8, 2.4 and 1.4 ppm (De Feyter et al. [1]). Each labelled group counts two
deuterons; what is lost of the label on the way is not corrected for. The nuclear spin is 1, but without resolved
quadrupolar splitting a line is a single exponential, as of spins 1/2.

Relaxation is quadrupolar. In the extreme narrowing of small molecules it does not depend on the field, and widths in
Hz were found nearly the same from 4 T to 11.7 T [2]; so one set of rounded values, in line with human brain at 4 T [1]
and with water and glucose of other organs at 7 T (T1 of water 218 to 324 ms, of glucose 60 to 85 ms, T2 28 to 39 ms
[3]), serves all fields. T2 of 30 ms is a line of 11 Hz.

The amount of HDO without any label is that of natural abundance: 0.0156 % of the hydrogen of the tissue's visible
water (`brain_values.WATER`). Glx one hour after 0.8 g/kg of glucose: 1.3 mM in grey and 1.1 mM in white matter [4];
glucose and lactate are rounded values of the order of those two hours after 75 g (3.0 mM and 1.6 mM at 3 T [5]).

References
----------
1. De Feyter et al., Sci Adv 2018;4:eaat7314, doi:10.1126/sciadv.aat7314.
2. de Graaf et al., NMR Biomed 2020;33:e4235, doi:10.1002/nbm.4235.
3. Bader et al., T1 and T2 of deuterated water and glucose in human liver and kidney at 7 T, Magn Reson Mater Phy.
4. Niess et al., NeuroImage 2023;277:120250 (7 T, beside label seen by protons at 3 T).
5. Repeatability of deuterium metabolic imaging at 3 T, Eur Radiol Exp 2024, doi:10.1186/s41747-024-00426-4.
"""

from __future__ import annotations

from collections.abc import Mapping

from mrsi_gadgets.physics.brain_values import WATER, MoleculeValues
from mrsi_gadgets.physics.spin_systems import Molecule, singlet

WATER_PPM = 4.8
NATURAL_ABUNDANCE = 1.56e-4
"""Deuterons per hydrogen nucleus of water without label (de Graaf, In Vivo NMR Spectroscopy, 3rd edition, 2019)."""

_SOURCE = "De Feyter et al. 2018, doi:10.1126/sciadv.aat7314"

MOLECULES: Mapping[str, Molecule] = {
    name: Molecule(name, full_name, (singlet(ppm, nuclei),), _SOURCE)
    for name, full_name, ppm, nuclei in (
        ("HDO", "water with one deuteron", WATER_PPM, 1),
        ("Glc", "glucose labelled at C6", 3.8, 2),
        ("Glx", "glutamate and glutamine labelled at C4", 2.4, 2),
        ("Lac", "lactate labelled at C3", 1.4, 2),
    )
}
"""Name -> molecule, in the order of the reports, the strongest line first."""


def _values(
    gm: float, wm: float, low: float, high: float, t1_ms: float, t2_ms: float, csf: float = 0.0
) -> MoleculeValues:
    """Return values with the same relaxation in all tissues and fields."""
    t1, t2 = (t1_ms, t1_ms), (t2_ms, t2_ms)
    return MoleculeValues(gm, wm, (low, high), t2, t2, t1, t1, csf)


def natural_hdo_mm(tissue: str) -> float:
    """Return the HDO of a tissue's visible water without any label [mM]."""
    return 2 * NATURAL_ABUNDANCE * WATER[tissue].concentration_mm


VALUES: Mapping[str, MoleculeValues] = {
    "HDO": _values(
        natural_hdo_mm("gm"), natural_hdo_mm("wm"), 5.0, 60.0, 350, 30, csf=natural_hdo_mm("csf")
    ),
    "Glc": _values(1.5, 1.2, 0.0, 6.0, 65, 40, csf=1.5),
    "Glx": _values(1.3, 1.1, 0.0, 5.0, 150, 40),
    "Lac": _values(0.30, 0.20, 0.0, 8.0, 300, 60, csf=0.3),
}  # fmt: skip
"""Amounts [mM of labelled molecules] and relaxation [ms] of each entry of `MOLECULES`."""

SUMS: Mapping[str, Mapping[str, float]] = {name: {name: 1.0} for name in MOLECULES}
"""What every report shows."""
