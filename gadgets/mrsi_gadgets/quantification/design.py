"""What a voxel's FID is made of: metabolite and macromolecule columns, and nuisance signals known only by their band.

Metabolites and one macromolecule profile have non-negative amplitudes (eq. 19). Each macromolecule component may also
depart from the profile by a signed amount with a zero-mean Gaussian prior, so that the macromolecules bend but cannot
swallow a metabolite. Residual water, scalp lipids and the baseline are circular complex Gaussian processes: their
covariance is that of damped components spread over a band of shifts and decay rates, with phases of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.nucleus import NUCLEI

if TYPE_CHECKING:
    from mrsi_gadgets.physics.basis import BasisSet

GROUPS: dict[str, tuple[str, ...]] = {
    "tNAA": ("NAA", "NAAG"),
    "tCr": ("Cr", "PCr"),
    "tCho": ("GPC", "PCh", "PCho", "Cho"),
    "Ins": ("Ins", "mI"),
    "Glx": ("Glu", "Gln"),
}
"""Sums that are well determined, and the molecules they add up: those of protons, with the names of other basis sets.
Those of other nuclei are in `physics.nucleus`."""

_LIFETIMES = 4.0
_STRONG_SHARE = 0.2
"""Macromolecule components below this part of the largest follow the profile: noise hides their departures from it."""
PROFILE = "MM"
"""Name of the column that holds the macromolecule profile."""


@dataclass(frozen=True, eq=False)
class Design:
    """Columns of the linear model of one voxel, before the lineshape that all of them share."""

    names: tuple[str, ...]
    """Metabolites, then the macromolecule profile, then its deviations (``MM:NAME``)."""
    columns: np.ndarray
    """(t, column) complex128: FID per unit amplitude, with the column's own decay."""
    bounded: np.ndarray
    """(column,) bool: amplitude is not negative."""
    prior_sd: np.ndarray
    """(column,) SD of a Gaussian prior about `typical`, relative to the amplitude scale of the voxel; inf: none."""
    typical: np.ndarray
    """(column,) amplitudes of normal brain relative to the amplitude scale (0 for deviations)."""
    rates: np.ndarray
    """(metabolite,) decay rate each metabolite's column has [1/s]."""
    scan_mean: np.ndarray | None = None
    """(leading column,) means of the priors as a scan's own voxels tell them (`scan_priors`); None: `typical`."""

    @property
    def n_metabolites(self) -> int:
        """Number of leading columns that are metabolites."""
        return len(self.rates)

    @property
    def prior_mean(self) -> np.ndarray:
        """(column,) mean of each prior, relative to the amplitude scale of the voxel."""
        if self.scan_mean is None:
            return self.typical
        return np.concatenate([self.scan_mean, self.typical[len(self.scan_mean) :]])


@dataclass(frozen=True)
class Interval:
    """A range of chemical shifts with signals of one strength."""

    low_ppm: float
    high_ppm: float
    strength: float = 1.0
    """Relative SD of the amplitude of what lies here."""


@dataclass(frozen=True)
class NuisanceBand:
    """Signals that are no molecule of the model: components of any amplitude and phase within some intervals."""

    name: str
    intervals: tuple[Interval, ...]
    decay_rates: tuple[float, float]
    """Smallest and largest decay rate [1/s]."""
    removed: bool = False
    """Project the band out of the data completely (only where no wanted signal lies in it)."""
    tolerance: float = 1e-6
    """Directions with less than this fraction of the energy of the strongest are left out."""

    def factor(self, protocol: Protocol) -> np.ndarray:
        """Return F (t, k) so that F F^H is the covariance of the band's signals, with unit mean energy."""
        parts = [self._members(protocol, interval) for interval in self.intervals]
        total = sum(interval.strength**2 for interval in self.intervals)
        weighted = [part * (i.strength / total**0.5) for part, i in zip(parts, self.intervals, strict=True)]
        u, s, _ = np.linalg.svd(np.concatenate(weighted, axis=1), full_matrices=False)
        keep = s**2 > self.tolerance * s[0] ** 2
        return u[:, keep] * s[keep]

    def _members(self, protocol: Protocol, interval: Interval) -> np.ndarray:
        """Damped components that fill one interval, (t, n), together of unit energy."""
        low, high = protocol.hz(np.array([interval.low_ppm, interval.high_ppm]))
        # a component that has decayed resolves no finer than its own width, however long one listens
        length = min(protocol.times_s[-1] - protocol.times_s[0], _LIFETIMES / self.decay_rates[0])
        # Four frequencies per resolution element are dense enough for the integral over the band.
        frequencies = np.linspace(low, high, max(9, int(4 * (high - low) * length)))
        rates = np.linspace(*self.decay_rates, 5)
        exponents = (2j * np.pi * frequencies[:, None] - rates[None, :]).ravel()
        members = np.exp(protocol.times_s[:, None] * exponents[None, :])
        return np.asarray(members / np.linalg.norm(members, axis=0) / members.shape[1] ** 0.5)


PROTON_NUISANCE: tuple[NuisanceBand, ...] = (
    NuisanceBand("water", (Interval(4.42, 4.88),), (5.0, 60.0), removed=True, tolerance=1e-5),
    NuisanceBand(
        "lipids",
        (
            Interval(0.75, 1.05, 0.13),
            Interval(1.1, 1.5, 0.7),
            Interval(1.5, 1.75, 0.05),
            Interval(1.9, 2.35, 0.12),
            Interval(5.2, 5.4, 0.05),
        ),
        (30.0, 90.0),
    ),
    NuisanceBand("baseline", (Interval(0.5, 4.2),), (150.0, 500.0)),
)
"""Residual water; weak scalp lipids in the ratios of subcutaneous fat (Hamilton et al. 2011, DOI 10.1002/nbm.1622)
with a field of their own; broad baseline. For proton spectra of the brain."""

FREE_METABOLITES = frozenset({"Lac", "2HG", *(name for members in GROUPS.values() for name in members)})
"""Metabolites whose amplitude has no prior: what is reported, and what disease brings forth."""


def build_design(
    protocol: Protocol,
    basis: BasisSet,
    macromolecules: BasisSet | None,
    *,
    decay_rates: Mapping[str, float],
    typical: Mapping[str, float],
    macromolecule_freedom: float = 0.25,
    metabolite_freedom: float = 0.5,
    free: Collection[str] = FREE_METABOLITES,
) -> Design:
    """Arrange metabolites and macromolecules as the columns of the linear model.

    Parameters
    ----------
    protocol
        Sets the times; both basis sets must be sampled there.
    basis
        Metabolites, free of decay.
    macromolecules
        Macromolecule components, with their own widths; None: no macromolecules.
    decay_rates
        Name -> decay rate 1/T2* [1/s]; a metabolite that is not named gets the median of those that are.
    typical
        Name -> amplitude in normal brain; 1 for names it does not hold.
    macromolecule_freedom
        SD of each strong macromolecule component about its share of the profile, as a fraction of that share.
    metabolite_freedom
        SD of a metabolite that is not in `free` about its usual ratio to the others, as a fraction; inf: no prior. Such
        weak molecules hide below strong ones (glycine below Ins, PE below tCho).
    free
        Metabolites without a prior.

    Returns
    -------
    Design
        The columns.

    Raises
    ------
    DataError
        A basis set is empty, not finite, or sampled at other times.
    """
    times = protocol.times_s
    check_basis(basis, protocol, "metabolite basis")
    usual = float(np.median(list(decay_rates.values()))) if decay_rates else 0.0
    rates = np.array([decay_rates.get(name, usual) for name in basis.names])
    columns = [np.asarray(basis.fids).T * np.exp(-times[:, None] * rates)]
    names = list(basis.names)
    amplitudes = [float(typical.get(name, 1.0)) for name in basis.names]
    bounded = [True] * len(names)
    prior = [
        metabolite_freedom * amplitude if name in typical and name not in free else np.inf
        for name, amplitude in zip(names, amplitudes, strict=True)
    ]
    if macromolecules is not None and len(macromolecules.names):
        check_basis(macromolecules, protocol, "macromolecule basis")
        shares = np.array([float(typical.get(name, 1.0)) for name in macromolecules.names])
        parts = np.asarray(macromolecules.fids).T * shares
        columns += [parts.sum(axis=1, keepdims=True)]
        names, bounded, prior, amplitudes = [*names, PROFILE], [*bounded, True], [*prior, np.inf], [*amplitudes, 1.0]
        strong = np.flatnonzero(shares > _STRONG_SHARE * shares.max())
        if macromolecule_freedom > 0 and len(shares) > 1:
            columns += [parts[:, strong]]
            names += [f"{PROFILE}:{macromolecules.names[i]}" for i in strong]
            bounded += [False] * len(strong)
            prior += [macromolecule_freedom] * len(strong)
            amplitudes += [0.0] * len(strong)
    return Design(
        tuple(names),
        np.concatenate(columns, axis=1),
        np.array(bounded),
        np.array(prior),
        np.array(amplitudes),
        rates,
    )


def check_basis(basis: BasisSet, protocol: Protocol, what: str) -> None:
    """Refuse a basis set that does not fit the protocol.

    Raises
    ------
    DataError
        It is empty, holds NaN or infinity, or has another number of points than the protocol.
    """
    fids = np.asarray(basis.fids)
    if fids.ndim != 2 or fids.shape[0] != len(basis.names) or not len(basis.names):
        raise DataError(f"the {what} holds {len(basis.names)} names and an array {fids.shape}; expected (names, times)")
    if fids.shape[1] != protocol.n_times:
        raise DataError(
            f"the {what} has {fids.shape[1]} points but the protocol has {protocol.n_times}; make it for this protocol"
        )
    if not np.all(np.isfinite(fids)):
        bad = [name for name, fid in zip(basis.names, fids, strict=True) if not np.all(np.isfinite(fid))]
        raise DataError(f"the {what} holds NaN or infinity in {', '.join(bad)}; make the basis set again")


def group_weights(names: Sequence[str], nucleus: str = "1H") -> dict[str, np.ndarray]:
    """Return for each reported sum of a nucleus with a member in `names` its weights over `names`.

    Those of protons are `GROUPS`, those of others `Nucleus.sums`. A sum with weights other than 1 (ATP, the mean of its
    phosphates) needs all its members.
    """
    if nucleus == "1H":
        found = {group: np.array([name in members for name in names], float) for group, members in GROUPS.items()}
        return {group: weights for group, weights in found.items() if weights.any()}
    found = {}
    for group, members in NUCLEI[nucleus].sums.items():
        present = [name for name in members if name in names]
        if present and (len(present) == len(members) or all(members[name] == 1.0 for name in present)):
            found[group] = np.array([members.get(name, 0.0) for name in names])
    return found
