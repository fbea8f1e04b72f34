"""Nuclei the profile knows: resonance frequencies relative to the proton, and the shift at 0 Hz where none is given."""

from __future__ import annotations

PROTON_HZ_PER_T = 42.577478518e6
"""Gyromagnetic ratio of the proton over 2 pi [Hz/T] (CODATA 2018)."""

FREQUENCY_RATIO = {
    "1H": 1.0,
    "2H": 0.15350609,
    "3He": 0.76179437,
    "7Li": 0.38863797,
    "13C": 0.25145020,
    "19F": 0.94094011,
    "23Na": 0.26451900,
    "31P": 0.40480742,
    "129Xe": 0.27810186,
}
"""Resonance frequency over that of the protons of TMS in the same field (IUPAC, doi:10.1351/pac200173111795)."""

DEFAULT_REFERENCE_PPM = {"1H": 4.65, "2H": 4.8, "31P": 0.0, "13C": 0.0}
"""Chemical shift at 0 Hz of the received data where the profile does not say (profile 2.6.1)."""

FIELD_TOLERANCE = 0.06
"""Relative deviation a nominal field strength may have ("3 T" is often 2.89 T)."""
