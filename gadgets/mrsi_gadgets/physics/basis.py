"""Basis sets: the signal of one unit of each molecule, sampled as the protocol samples it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.nucleus import NUCLEI, PROTON, nucleus_of
from mrsi_gadgets.physics.sequences import PulseSequence, pulse_acquire, spin_echo
from mrsi_gadgets.physics.simulation import molecule_fid

BRAIN_METABOLITES: tuple[str, ...] = PROTON.usual
"""Molecules of a healthy brain's basis set of protons. Serine (hidden below creatine and others) and 2-hydroxyglutarate
(tumours with IDH mutation) are simulated only when they are asked for by name."""


@dataclass(frozen=True, eq=False)
class BasisSet:
    """Named signals on one time axis."""

    names: tuple[str, ...]
    fids: np.ndarray
    """complex128 (molecule, t): the signal of one unit of each; one nucleus of 1 mM has amplitude 1 at t = 0."""
    protocol: Protocol
    source: str = "simulated"
    """How the signals were made: the sequence, or the file they came from."""

    def __post_init__(self) -> None:
        if self.fids.shape != (len(self.names), self.protocol.n_times):
            raise DataError(
                f"basis signals {self.fids.shape} do not fit {len(self.names)} names and {self.protocol.n_times} points"
            )
        if len(set(self.names)) != len(self.names):
            raise DataError(f"the names {', '.join(self.names)} of a basis set must differ from each other")

    def index(self, name: str) -> int:
        """Return the row of the molecule called `name`; DataError where there is none."""
        if name not in self.names:
            raise DataError(f"the basis set has no '{name}'; it has {', '.join(self.names)}")
        return self.names.index(name)

    def subset(self, names: Sequence[str]) -> BasisSet:
        """Return the rows called `names`, in that order."""
        rows = [self.index(name) for name in names]
        return replace(self, names=tuple(names), fids=self.fids[rows])


def metabolite_basis(
    protocol: Protocol,
    names: Sequence[str] | None = None,
    *,
    echo_time_s: float | None = None,
    sequence: PulseSequence | None = None,
) -> BasisSet:
    """Return decay-free signals of 1 mM of each metabolite at `protocol.times_s` (phi_m of eq. 5).

    Parameters
    ----------
    protocol : of a nucleus whose molecules are known (`physics.nucleus`).
    names : molecules in the wanted order; None for the usual ones of the nucleus (`BRAIN_METABOLITES` of 1H).
    echo_time_s : TE of an ideal spin echo [s] (times count from its top); None: the protocol's own, which is none for
        pulse-acquire (times count from the pulse).
    sequence : ideal pulses of any other sequence; `echo_time_s` then says nothing. STEAM keeps half of the signal.

    Raises
    ------
    DataError
        The molecules of the nucleus, or a name, are not known.
    """
    nucleus = nucleus_of(protocol)
    names = nucleus.usual if names is None else tuple(names)
    echo_time_s = protocol.spin_echo_time_s if echo_time_s is None else echo_time_s
    if sequence is None:
        sequence = pulse_acquire() if echo_time_s is None else spin_echo(echo_time_s)
    fids = np.empty((len(names), protocol.n_times), dtype=np.complex128)
    for row, name in enumerate(names):
        fids[row] = _simulated(
            nucleus.name,
            nucleus.molecule(name).name,
            protocol.transmit_frequency_hz * 1e-6,
            protocol.reference_ppm,
            protocol.acquisition_delay_s,
            protocol.dwell_s,
            protocol.n_times,
            sequence,
        )
    return BasisSet(tuple(names), fids, protocol, f"simulated: {sequence}")


@lru_cache(maxsize=256)
def _simulated(
    nucleus: str,
    name: str,
    mhz: float,
    reference_ppm: float,
    delay_s: float,
    dwell_s: float,
    n: int,
    sequence: PulseSequence,
) -> np.ndarray:
    times = delay_s + dwell_s * np.arange(n)
    fid = molecule_fid(NUCLEI[nucleus].molecule(name), times, mhz, reference_ppm, sequence)
    fid.flags.writeable = False
    return fid
