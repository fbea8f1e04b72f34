"""Broad signals: macromolecules of the brain, lipids of the scalp, residual water.

Macromolecule peaks are named as in Cudalbu et al., NMR Biomed 2021;34:e4393, doi:10.1002/nbm.4393. Positions, areas and
widths follow the 3 T fit of metabolite-nulled spectra by Birch et al., Magn Reson Med 2017;77:34-43, neighbours that no
spectrum resolves at 3 T taken together in one entry. Widths are in vivo widths of a well shimmed voxel and so contain
T2*; on top of them only further broadening (intravoxel B0) applies. They scale with the field (0.92 ppm: 20 Hz at 3 T,
43 Hz at 7 T, Snoussi et al., Magn Reson Med 2015;74, doi:10.1002/mrm.25468).

Lipid areas follow Hamilton et al., NMR Biomed 2011;24:784-790, doi:10.1002/nbm.1622 (triglycerides); positions are in
the scale in which water is at 4.65 ppm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.lineshapes import exponential_decay, frequency_shift, gaussian_decay

WATER_PPM = 4.65


@dataclass(frozen=True)
class BroadLine:
    """One line of a broad signal."""

    ppm: float
    share: float
    """Part of the entry's signal at t = 0."""
    width_ppm: float
    """Full width at half maximum [ppm]."""


@dataclass(frozen=True)
class BroadPeak:
    """A named group of broad lines with fixed ratios; shares add up to 1."""

    name: str
    lines: tuple[BroadLine, ...]


def _peak(name: str, *lines: tuple[float, float, float], reference_mhz: float = 128.0) -> BroadPeak:
    """Build an entry from (ppm, area in any unit, width in Hz at `reference_mhz`)."""
    total = sum(area for _, area, _ in lines)
    return BroadPeak(name, tuple(BroadLine(ppm, area / total, hz / reference_mhz) for ppm, area, hz in lines))


MACROMOLECULES: tuple[BroadPeak, ...] = (
    _peak("MM092", (0.90, 0.72, 21.2)),
    _peak("MM121", (1.21, 0.28, 19.2)),
    _peak("MM139", (1.38, 0.38, 15.9)),
    _peak("MM167", (1.63, 0.05, 7.5), (1.67, 0.10, 20.0)),
    _peak("MM204", (2.01, 0.45, 29.0), (2.09, 0.36, 20.5)),
    _peak("MM226", (2.25, 0.36, 17.9)),
    _peak("MM256", (2.61, 0.04, 5.3), (2.70, 0.05, 20.0)),
    _peak("MM299", (2.96, 0.20, 14.0)),
    _peak("MM321", (3.11, 0.11, 17.9), (3.21, 0.08, 17.9)),
    _peak("MM362", (3.67, 0.64, 33.5)),
    _peak("MM395", (3.80, 0.07, 11.9), (3.96, 1.00, 37.5)),
)
"""The second lines of MM167, MM256 and MM321 (1.67, 2.70, 3.21 ppm) are listed by Cudalbu et al. but were not fitted by
Birch et al.; their small areas and widths are our choice."""

LIPIDS: tuple[BroadPeak, ...] = (
    _peak("Lip09", (0.90, 8.8, 20.0)),
    _peak("Lip13", (1.30, 70.0, 25.0)),
    _peak("Lip20", (2.02, 6.2, 25.0), (2.24, 5.8, 25.0)),
    _peak("Lip28", (2.75, 0.6, 20.0)),
    _peak("Lip42", (4.20, 3.9, 30.0)),
    _peak("Lip53", (5.30, 4.7, 25.0)),
)
LIPID_SHARES: tuple[float, ...] = (0.088, 0.700, 0.120, 0.006, 0.039, 0.047)
"""Share of each entry of `LIPIDS` in the protons of subcutaneous fat."""


def broad_basis(
    protocol: Protocol,
    peaks: tuple[BroadPeak, ...],
    *,
    width_factor: float = 1.0,
    gaussian: bool = True,
) -> BasisSet:
    """Return the signals of broad peaks at `protocol.times_s`; each is 1 at t = 0.

    Parameters
    ----------
    protocol : gives times and frequency.
    peaks : entries, one row each.
    width_factor : multiplies all widths.
    gaussian : Gaussian lines, else Lorentzian lines.
    """
    times = protocol.times_s
    fids = np.zeros((len(peaks), protocol.n_times), dtype=np.complex128)
    for row, peak in enumerate(peaks):
        hz = np.array([float(protocol.hz(line.ppm)) for line in peak.lines])
        width = np.array([line.width_ppm for line in peak.lines]) * protocol.transmit_frequency_hz * 1e-6 * width_factor
        decay = gaussian_decay(times, width) if gaussian else exponential_decay(times, 1 / (np.pi * width))
        fids[row] = np.array([line.share for line in peak.lines]) @ (decay * frequency_shift(times, hz))
    return BasisSet(tuple(peak.name for peak in peaks), fids, protocol)


def macromolecule_basis(protocol: Protocol) -> BasisSet:
    """Return the signals of the macromolecule peaks, one row each, 1 per mM of protons at t = 0.

    Typical amplitudes [mM of protons] are in `brain_values.MACROMOLECULE_MM`. The lines have their in vivo widths; do
    not apply a metabolite's T2* to them.
    """
    return broad_basis(protocol, MACROMOLECULES)


def lipid_basis(protocol: Protocol) -> BasisSet:
    """Return the signals of the lipid peaks of the scalp, one row each, 1 per mM of protons at t = 0."""
    return broad_basis(protocol, LIPIDS)
