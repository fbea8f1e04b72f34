"""Density-matrix simulation of spin systems through sequences of ideal pulses (`physics.sequences`).

The Hamiltonian of a moiety in angular frequency is

    H = 2 pi [ sum_a nu_a I_az + sum_{a<b} J_ab I_a . I_b ],      nu_a = (ppm_a - ppm_ref) f0     (eq. 1)

with the full (strong) coupling between the observed nuclei. A group of n equivalent nuclei is replaced by the
irreducible spins n/2, n/2 - 1, ... with their multiplicities, which is exact because couplings inside a group do not
show. Unobserved partners are averaged over their projections m, each shifting group a by m J. H commutes with
F_z and is diagonalised block by block; between pulses rho evolves by phases in that eigenbasis, and pulses are exact
rotations. Gradients are applied to rho exactly: its elements between states of total projections M and M' have the
coherence order M - M', and those of unwanted orders are set to 0 (STEAM: +1 before, 0 during and -1 after TM, so that
zero-quantum coherences evolve through TM). Method: Ernst, Bodenhausen, Wokaun, Principles of Nuclear Magnetic Resonance
in One and Two Dimensions, Oxford 1987, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import comb, prod

import numpy as np
from scipy.linalg import expm

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.sequences import PulseSequence, pulse_acquire, spin_echo
from mrsi_gadgets.physics.spin_systems import Molecule, SpinSystem

_NEGLIGIBLE = 1e-7
"""Lines below this share of the strongest one are dropped (3,000 transitions of glucose would otherwise be summed)."""


@dataclass(frozen=True, eq=False)
class Lines:
    """A stick spectrum: the FID is sum_i amplitudes[i] exp(i 2 pi frequencies_hz[i] t)."""

    frequencies_hz: np.ndarray
    """(line,) relative to the reference [Hz]."""
    amplitudes: np.ndarray
    """(line,) complex; they add up to the number of observed nuclei (echoes: less, where couplings dephase; STEAM:
    half)."""

    def fid(self, times_s: np.ndarray) -> np.ndarray:
        """Return the decay-free signal at `times_s` [s] as complex128 of the same shape."""
        times = np.asarray(times_s, dtype=float)
        steps = np.diff(times)
        if times.ndim == 1 and times.size > 2 and np.allclose(steps, steps[0], rtol=1e-9, atol=0):
            return self._fid_on_regular_grid(times[0], float(steps[0]), times.size)
        return self.amplitudes @ np.exp(2j * np.pi * self.frequencies_hz[:, None] * times)

    def _fid_on_regular_grid(self, start: float, step: float, n: int) -> np.ndarray:
        # exp(i w (start + (j + m k) step)) = fine(j) coarse(k): two small exponentials and one product of matrices
        m = int(np.ceil(np.sqrt(n)))
        turns = 2j * np.pi * self.frequencies_hz
        fine = np.exp(np.outer(turns, step * np.arange(m)))
        coarse = np.exp(np.outer(turns, start + step * m * np.arange(-(-n // m)))) * self.amplitudes[:, None]
        return (coarse.T @ fine).ravel()[:n]


def pulse_acquire_lines(system: SpinSystem, frequency_mhz: float, reference_ppm: float) -> Lines:
    """Return the lines after an ideal 90 degree pulse; t = 0 is the centre of the pulse.

    Parameters
    ----------
    system : the moiety.
    frequency_mhz : transmit frequency [MHz].
    reference_ppm : chemical shift at 0 Hz [ppm].

    Raises
    ------
    DataError
        The frequency is not positive.
    """
    return sequence_lines(system, frequency_mhz, reference_ppm, pulse_acquire())


def spin_echo_lines(system: SpinSystem, frequency_mhz: float, reference_ppm: float, echo_time_s: float) -> Lines:
    """Return the lines of 90 - TE/2 - 180 - TE/2 with ideal pulses on the nuclei; t = 0 is the echo top.

    Chemical shifts and couplings with unobserved partners are refocused, couplings between nuclei are not.

    Raises
    ------
    DataError
        The frequency is not positive or the echo time is negative.
    """
    if echo_time_s < 0:
        raise DataError(f"the echo time is {echo_time_s * 1e3:g} ms; it must not be negative")
    return sequence_lines(system, frequency_mhz, reference_ppm, spin_echo(echo_time_s))


def molecule_fid(
    molecule: Molecule,
    times_s: np.ndarray,
    frequency_mhz: float,
    reference_ppm: float,
    sequence: PulseSequence | None = None,
) -> np.ndarray:
    """Return the decay-free signal of 1 mM of a molecule, (time,) complex128; one nucleus has amplitude 1.

    With `sequence` None the signal is a free induction decay. `times_s` count from the centre of the pulse or from the
    echo top.
    """
    fid = np.zeros(np.shape(times_s), dtype=np.complex128)
    for system in molecule.systems:
        lines = sequence_lines(system, frequency_mhz, reference_ppm, sequence or pulse_acquire())
        fid += system.fraction * lines.fid(times_s)
    return fid


def sequence_lines(system: SpinSystem, frequency_mhz: float, reference_ppm: float, sequence: PulseSequence) -> Lines:
    """Return the lines after a sequence of ideal pulses; t = 0 is the centre of the pulse or the echo top.

    Raises
    ------
    DataError
        The frequency is not positive.
    """
    if not (np.isfinite(frequency_mhz) and frequency_mhz > 0):
        raise DataError(f"the transmit frequency is {frequency_mhz:g} MHz; it must be positive")
    shifts_hz = (np.asarray(system.shifts_ppm) - reference_ppm) * frequency_mhz
    frequencies, amplitudes = [], []
    for offset_hz, weight in _partner_states(system):
        for spins, multiplicity in _irreducible_spins(system.nuclei):
            nu, a = _subspace_lines(spins, shifts_hz + offset_hz, system, sequence)
            frequencies.append(nu)
            amplitudes.append(weight * multiplicity * a)
    nu, a = np.concatenate(frequencies), np.concatenate(amplitudes)
    a = a / 2.0 ** (sum(system.nuclei) - 2)
    keep = np.abs(a) > _NEGLIGIBLE * np.max(np.abs(a), initial=0.0)
    return Lines(nu[keep], a[keep])


def _partner_states(system: SpinSystem) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the shift [Hz] of each group and the probability of every state of the unobserved partners."""
    projections = [np.arange(-p.spin, p.spin + 0.5) for p in system.partners]
    weight = 1.0 / prod(len(m) for m in projections)
    for state in product(*projections):
        offset = np.zeros(len(system.nuclei))
        for m, partner in zip(state, system.partners, strict=True):
            for group, coupling in partner.couplings_hz.items():
                offset[group] += m * coupling
        yield offset, weight


def _irreducible_spins(nuclei: tuple[int, ...]) -> Iterator[tuple[tuple[float, ...], int]]:
    """Yield the total spins of the groups and how often each combination occurs (Clebsch-Gordan series)."""
    choices = [[(n / 2 - k, comb(n, k) - (comb(n, k - 1) if k else 0)) for k in range(n // 2 + 1)] for n in nuclei]
    for combination in product(*choices):
        yield tuple(spin for spin, _ in combination), prod(times for _, times in combination)


def _spin_matrices(spins: tuple[float, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return I_z (as diagonals) and I_+ of each group in the product basis, ordered by decreasing m."""
    dimensions = [round(2 * s + 1) for s in spins]
    z_all, plus_all = [], []
    for a, spin in enumerate(spins):
        m = np.arange(spin, -spin - 0.5, -1.0)
        plus = np.diag(np.sqrt(spin * (spin + 1) - m[1:] * m[:-1]), k=1)
        before, after = prod(dimensions[:a]), prod(dimensions[a + 1 :])
        z_all.append(np.kron(np.kron(np.ones(before), m), np.ones(after)))
        plus_all.append(np.kron(np.kron(np.eye(before), plus), np.eye(after)))
    return z_all, plus_all


def _subspace_lines(
    spins: tuple[float, ...], shifts_hz: np.ndarray, system: SpinSystem, sequence: PulseSequence
) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies [Hz] and amplitudes Tr(F_+ rho) of one combination of total spins."""
    z, plus = _spin_matrices(spins)
    hamiltonian = np.diag(np.sum([nu * iz for nu, iz in zip(shifts_hz, z, strict=True)], axis=0))
    for (a, b), coupling in system.couplings_hz.items():
        flip = plus[a] @ plus[b].T
        hamiltonian += coupling * (np.diag(z[a] * z[b]) + 0.5 * (flip + flip.T))
    f_plus = np.sum(plus, axis=0)
    f_z = np.sum(z, axis=0)
    energies, states = _diagonalise(hamiltonian, f_z)
    detected = states.T @ f_plus @ states
    rho = 0.5 * (detected + detected.T)  # F_x: what an ideal 90 degree pulse makes of F_z
    if sequence.kind == "steam":
        rho = _stimulate(rho, energies, states, f_z, spins, sequence)
    elif sequence.intervals_s:
        rho = _refocus(rho, energies, states, sequence)
    if system.observed is not None:
        detected = states.T @ np.sum([plus[group] for group in system.observed], axis=0) @ states
    row, column = np.nonzero(np.abs(detected) > 1e-12)
    return energies[row] - energies[column], detected[row, column] * rho[column, row]


def _diagonalise(hamiltonian: np.ndarray, f_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues [Hz] and eigenvectors (columns), block by block of equal total projection."""
    energies = np.empty(len(f_z))
    states = np.zeros_like(hamiltonian)
    for m in np.unique(np.round(f_z, 3)):
        block = np.flatnonzero(np.abs(f_z - m) < 1e-6)
        energies[block], vectors = np.linalg.eigh(hamiltonian[np.ix_(block, block)])
        states[np.ix_(block, block)] = vectors
    return energies, states


def _evolve(rho: np.ndarray, energies: np.ndarray, time_s: float) -> np.ndarray:
    phases = np.exp(-2j * np.pi * energies * time_s)
    return phases[:, None] * rho * phases.conj()[None, :]


def _refocus(rho: np.ndarray, energies: np.ndarray, states: np.ndarray, sequence: PulseSequence) -> np.ndarray:
    """Return rho (eigenbasis) after the intervals of a sequence with a pulse 180_x between each two of them.

    A rotation by pi about x maps |m> to exp(-i pi I)|-m>: in the product basis it reverses the order of the states up
    to a phase common to all of them, which cancels in P rho P^H.
    """
    reverse = states.T @ states[::-1]
    rho = _evolve(rho, energies, sequence.intervals_s[0])
    for interval in sequence.intervals_s[1:]:
        rho = _evolve(reverse @ rho @ reverse.T, energies, interval)
    return rho


def _stimulate(
    rho: np.ndarray,
    energies: np.ndarray,
    states: np.ndarray,
    f_z: np.ndarray,
    spins: tuple[float, ...],
    sequence: PulseSequence,
) -> np.ndarray:
    """Return rho (eigenbasis) after TE/2 - 90_y - TM - 90_-y - TE/2 with the coherence orders +1, 0, -1.

    The sign of the last pulse makes the echo of a single line positive.
    """
    order = np.round(f_z[:, None] - f_z[None, :]).astype(int)
    pulse = states.T @ _quarter_turn(spins) @ states
    before, after = sequence.intervals_s
    rho = _evolve(np.where(order == 1, rho, 0), energies, before)
    rho = _evolve(np.where(order == 0, pulse @ rho @ pulse.T, 0), energies, sequence.mixing_time_s)
    return _evolve(np.where(order == -1, pulse.T @ rho @ pulse, 0), energies, after)


def _quarter_turn(spins: tuple[float, ...]) -> np.ndarray:
    """Return exp(-i pi/2 F_y) of spins in the product basis, a real matrix."""
    turn = np.ones((1, 1))
    for spin in spins:
        (plus,) = _spin_matrices((spin,))[1]
        turn = np.kron(turn, expm(-np.pi / 4 * (plus - plus.T)))
    return turn
