"""Sequences of ideal pulses against analytic results and against averages over explicit gradients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.sequences import PulseSequence, press, pulse_acquire, semi_laser, spin_echo, steam
from mrsi_gadgets.physics.simulation import molecule_fid, sequence_lines
from mrsi_gadgets.physics.spin_systems import SpinSystem, molecule, singlet

MHZ, REFERENCE = 123.25, 4.65
J = 7.0
WEAK = SpinSystem((1.0, 8.0), (1, 1), {(0, 1): J})
ALL = [spin_echo(0.035), press(0.035), press(0.144, 0.014), steam(0.02, 0.012), semi_laser(0.03)]
X, Y, Z = (np.array(m) / 2 for m in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]))


def spread(matrix, k, n):
    return np.kron(np.kron(np.eye(2**k), matrix), np.eye(2 ** (n - k - 1)))


def explicit(system, sequence, times, turns=8):
    """Signal of single spins 1/2 by matrix exponentials; gradients are turns about z, averaged over all angles."""
    n = len(system.shifts_ppm)
    x, y, z = ([spread(m, k, n) for k in range(n)] for m in (X, Y, Z))
    h = sum(2 * np.pi * (ppm - REFERENCE) * MHZ * iz for ppm, iz in zip(system.shifts_ppm, z, strict=True)).astype(
        complex
    )
    for (a, b), j in system.couplings_hz.items():
        h += 2 * np.pi * j * sum(m[a] @ m[b] for m in (x, y, z))
    fx, fy, fz = sum(x), sum(y), sum(z)

    def apply(u, rho):
        return u @ rho @ u.conj().T

    def evolve(rho, t):
        return apply(expm(-1j * h * t), rho)

    total = np.zeros((2**n, 2**n), complex)
    angles = 2 * np.pi * np.arange(turns) / turns
    if sequence.kind == "steam":
        quarter = expm(-0.5j * np.pi * fy)
        for a in angles:
            for b in angles:
                dephase, crush = expm(-1j * a * fz), expm(-1j * b * fz)
                rho = apply(dephase, evolve(fx.astype(complex), sequence.intervals_s[0]))
                rho = apply(crush, evolve(apply(quarter, rho), sequence.mixing_time_s))
                rho = apply(quarter.conj().T, rho)
                total += evolve(apply(dephase, rho), sequence.intervals_s[1]) / turns**2
    else:
        rho = evolve(fx.astype(complex), sequence.intervals_s[0])
        for interval in sequence.intervals_s[1:]:
            rho = evolve(apply(expm(-1j * np.pi * fx), rho), interval)
        total = rho
    plus = fx + 1j * fy
    return np.array([np.trace(plus @ evolve(total, t)) for t in times]) / 2 ** (n - 2)


@pytest.mark.parametrize("sequence", ALL, ids=str)
def test_a_singlet_keeps_its_amplitude_and_half_of_it_in_a_stimulated_echo(sequence):
    lines = sequence_lines(singlet(2.008, 3), MHZ, REFERENCE, sequence)
    assert lines.amplitudes.sum() == pytest.approx(1.5 if sequence.kind == "steam" else 3.0, abs=1e-9)
    assert np.ptp(lines.frequencies_hz) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("sequence", ALL, ids=str)
@pytest.mark.parametrize("name", ["Asp", "Ser"])
def test_every_sequence_agrees_with_explicit_pulses_and_gradients(name, sequence):
    system = molecule(name).systems[0]
    times = np.array([0.0, 0.0123, 0.1])
    expected = explicit(system, sequence, times)
    np.testing.assert_allclose(molecule_fid(molecule(name), times, MHZ, REFERENCE, sequence), expected, atol=1e-5)


@pytest.mark.parametrize("te1_s", [None, 0.014])
def test_press_equals_a_spin_echo_where_coupling_is_weak_and_not_where_it_is_strong(te1_s):
    times = np.linspace(0, 0.2, 9)
    system, te = SpinSystem((1.0, 80.0), (1, 1), {(0, 1): J}), 0.1
    difference = [
        np.abs(
            sequence_lines(s, MHZ, REFERENCE, press(te, te1_s)).fid(times)
            - sequence_lines(s, MHZ, REFERENCE, spin_echo(te)).fid(times)
        ).max()
        for s in (system, SpinSystem((3.8, 4.0), (1, 1), {(0, 1): 12.0}))
    ]
    assert difference[0] < 5e-3
    assert difference[1] > 0.2


@pytest.mark.parametrize("make", [spin_echo, press, lambda te: press(te, 0.014), semi_laser])
def test_lactate_is_upside_down_at_144_ms_and_upright_at_288_ms(make):
    for te, sign in ((0.144, -1), (0.288, 1)):
        lines = sequence_lines(molecule("Lac").systems[0], 297.2, REFERENCE, make(te))
        methyl = lines.amplitudes[np.abs(lines.frequencies_hz / 297.2 + REFERENCE - 1.3142) < 0.2]
        assert methyl.sum() / 3 == pytest.approx(sign, abs=0.06)


@pytest.mark.parametrize("tm_s", [0.0, 0.007, 0.0305])
def test_a_weakly_coupled_doublet_in_steam_follows_its_formula(tm_s):
    """In-phase part of spin I: 1/2 [cos^2 a - 1/2 sin^2 a cos(d TM) (1 - exp(i d TE/2))], a = pi J TE/2, d = w_I - w_S.

    By product operators: the first term is longitudinal magnetisation through TM. The second is zero-quantum coherence
    that the second pulse makes of the antiphase magnetisation of both spins, whose shifts interfere.
    """
    te = 0.06
    a = np.pi * J * te / 2
    lines = sequence_lines(WEAK, 10 * MHZ, REFERENCE, steam(te, tm_s))
    for side in (-1, 1):  # WEAK has one spin below and one above the reference, 7 ppm apart
        d = side * 2 * np.pi * 7.0 * 10 * MHZ
        expected = 0.5 * (np.cos(a) ** 2 - 0.5 * np.sin(a) ** 2 * np.cos(d * tm_s) * (1 - np.exp(1j * d * te / 2)))
        one = lines.amplitudes[np.sign(lines.frequencies_hz) == side].sum()
        assert one == pytest.approx(expected, abs=0.01)


def test_steam_of_no_duration_is_half_an_fid():
    times = np.linspace(0, 0.2, 7)
    half = molecule_fid(molecule("Ala"), times, MHZ, REFERENCE, steam(0.0, 0.0))
    np.testing.assert_allclose(half, 0.5 * molecule_fid(molecule("Ala"), times, MHZ, REFERENCE), atol=1e-6)


def test_the_basis_takes_a_sequence_and_says_which(make_protocol):
    echo = make_protocol(echo_times_s=(0.035,), n_times=31)
    default, same, other = (
        metabolite_basis(echo, ["Glu"], **more)
        for more in ({}, {"sequence": spin_echo(0.035)}, {"sequence": steam(0.035, 0.01)})
    )
    np.testing.assert_array_equal(default.fids, same.fids)
    assert np.linalg.norm(other.fids - 0.5 * default.fids) > 0.1 * np.linalg.norm(default.fids)
    assert other.source == "simulated: steam 17.5 - 17.5 ms, TM 10 ms"
    assert other.subset(["Glu"]).source == other.source


def test_impossible_timings_are_refused():
    assert pulse_acquire().echo_time_s == 0
    assert semi_laser(0.03).echo_time_s == pytest.approx(0.03)
    with pytest.raises(ConfigError, match="'laser' is not known; choose pulse_acquire"):
        PulseSequence("laser")
    with pytest.raises(ConfigError, match="press has 3 intervals, got 2"):
        PulseSequence("press", (0.01, 0.01))
    with pytest.raises(ConfigError, match="negative"):
        press(0.03, 0.04)
    with pytest.raises(ConfigError, match="negative"):
        steam(0.02, -0.01)
    with pytest.raises(ConfigError, match="spin_echo has no mixing time"):
        PulseSequence("spin_echo", (0.01, 0.01), 0.01)
    with pytest.raises(ConfigError, match="no echo there"):
        PulseSequence("spin_echo", (0.01, 0.02))
    with pytest.raises(ConfigError, match="add up to 32 ms, TE is 30"):
        semi_laser(0.03, (0.004, 0.008, 0.008, 0.008, 0.004))
