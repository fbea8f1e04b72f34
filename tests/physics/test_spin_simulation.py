from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.sequences import spin_echo
from mrsi_gadgets.physics.simulation import Lines, molecule_fid, pulse_acquire_lines, spin_echo_lines
from mrsi_gadgets.physics.spin_systems import MOLECULES, Partner, SpinSystem, molecule, singlet

MHZ, REFERENCE = 123.25, 4.65


def merged(lines: Lines, width_hz: float = 0.01) -> list[tuple[float, complex]]:
    """Lines that coincide, added up, by rising frequency."""
    result: list[tuple[float, complex]] = []
    for i in np.argsort(lines.frequencies_hz):
        nu, a = lines.frequencies_hz[i], lines.amplitudes[i]
        if result and nu - result[-1][0] < width_hz:
            result[-1] = (result[-1][0], result[-1][1] + a)
        else:
            result.append((nu, a))
    return result


def brute_force_fid(shifts_hz, couplings, times, echo_time_s=None):
    """Signal of spins 1/2 by matrix exponentials of the whole space: nothing shared with the code under test."""
    from scipy.linalg import expm

    x = np.array([[0, 1], [1, 0]]) / 2
    y = np.array([[0, -1j], [1j, 0]]) / 2
    z = np.diag([0.5, -0.5])
    n = len(shifts_hz)

    def op(matrix, k):
        return np.kron(np.kron(np.eye(2**k), matrix), np.eye(2 ** (n - k - 1)))

    h = sum(2 * np.pi * f * op(z, k) for k, f in enumerate(shifts_hz)).astype(complex)
    for (a, b), j in couplings.items():
        h += 2 * np.pi * j * sum(op(m, a) @ op(m, b) for m in (x, y, z))
    rho = sum(op(x, k) for k in range(n)).astype(complex)
    plus = sum(op(x, k) + 1j * op(y, k) for k in range(n))
    if echo_time_s is not None:
        pulse = expm(-1j * np.pi * sum(op(x, k) for k in range(n)))
        half = expm(-1j * h * echo_time_s / 2)
        u = half @ pulse @ half
        rho = u @ rho @ u.conj().T
    fid = []
    for t in times:
        u = expm(-1j * h * t)
        fid.append(np.trace(plus @ u @ rho @ u.conj().T))
    return np.array(fid) / 2 ** (n - 2)


@pytest.mark.parametrize("name", list(MOLECULES))
def test_signal_at_time_zero_is_the_number_of_protons(name):
    fid = molecule_fid(molecule(name), np.zeros(1), MHZ, REFERENCE)
    assert fid[0] == pytest.approx(molecule(name).n_nuclei, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "protons"),
    [("NAA", 6), ("NAAG", 11), ("Cr", 5), ("GPC", 18), ("PCh", 13), ("Ins", 6), ("GSH", 10), ("Glc", 7), ("Lac", 4)],
)
def test_molecules_have_all_their_carbon_bound_protons(name, protons):
    assert molecule(name).n_nuclei == pytest.approx(protons)


@pytest.mark.parametrize("mhz", [63.87, 123.25, 297.2])
def test_strongly_coupled_pair_agrees_with_the_analytic_ab_quartet(mhz):
    delta_ppm, j = 0.06, 12.0
    system = SpinSystem((REFERENCE - delta_ppm / 2, REFERENCE + delta_ppm / 2), (1, 1), {(0, 1): j})
    lines = merged(pulse_acquire_lines(system, mhz, REFERENCE))
    delta = delta_ppm * mhz
    c = np.hypot(delta, j)
    expected = [
        (-(c + j) / 2, 1 - j / c),
        (-(c - j) / 2, 1 + j / c),
        ((c - j) / 2, 1 + j / c),
        ((c + j) / 2, 1 - j / c),
    ]
    assert [nu for nu, _ in lines] == pytest.approx([nu for nu, _ in expected], abs=1e-9)
    assert [a.real for _, a in lines] == pytest.approx([a / 2 for _, a in expected], rel=1e-9)


def test_lactate_is_a_doublet_and_a_quartet():
    lines = merged(pulse_acquire_lines(molecule("Lac").systems[0], 400.0, REFERENCE), width_hz=0.5)
    strong = [(nu, a.real) for nu, a in lines if a.real > 0.05]
    doublet = [(nu, a) for nu, a in strong if nu / 400.0 + REFERENCE < 2]
    quartet = [a for nu, a in strong if nu / 400.0 + REFERENCE > 3]
    assert doublet[-1][0] - doublet[0][0] == pytest.approx(6.933, abs=0.05)
    assert np.mean([nu for nu, _ in doublet]) / 400.0 + REFERENCE == pytest.approx(1.3142, abs=1e-3)
    assert sum(a for _, a in doublet) == pytest.approx(3, rel=0.02)
    assert quartet == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8], rel=0.15)


def test_composite_spin_of_a_methyl_group_agrees_with_three_single_protons():
    times = np.linspace(0, 0.3, 11)
    composite = pulse_acquire_lines(SpinSystem((4.1, 3.9), (1, 3), {(0, 1): 7.0}), MHZ, REFERENCE)
    single = pulse_acquire_lines(
        SpinSystem((4.1, 3.9, 3.9, 3.9), (1,) * 4, {(0, 1): 7.0, (0, 2): 7.0, (0, 3): 7.0}), MHZ, REFERENCE
    )
    np.testing.assert_allclose(composite.fid(times), single.fid(times), atol=1e-5)


@pytest.mark.parametrize("echo_time_s", [None, 0.0, 0.03, 0.144])
@pytest.mark.parametrize("name", ["Glu", "Asp", "Tau"])
def test_signals_agree_with_matrix_exponentials_of_the_whole_space(name, echo_time_s):
    system = molecule(name).systems[0]
    times = np.array([0.0, 0.0123, 0.1, 0.21])
    shifts = [(ppm - REFERENCE) * MHZ for ppm in system.shifts_ppm]
    expected = brute_force_fid(shifts, system.couplings_hz, times, echo_time_s)
    sequence = None if echo_time_s is None else spin_echo(echo_time_s)
    assert not system.partners
    np.testing.assert_allclose(
        molecule_fid(molecule(name), times, MHZ, REFERENCE, sequence), expected, atol=2e-6 * system.n_nuclei
    )


def test_weak_coupling_gives_first_order_patterns():
    lines = merged(pulse_acquire_lines(SpinSystem((1.0, 8.0), (1, 2), {(0, 1): 7.0}), 1000.0, REFERENCE))
    assert [a.real for _, a in lines] == pytest.approx([0.25, 0.5, 0.25, 1, 1], rel=0.01)
    assert np.diff([nu for nu, _ in lines])[[0, 1, 3]] == pytest.approx([7.0, 7.0, 7.0], abs=0.02)


def test_a_partner_splits_the_lines_but_is_not_seen():
    nitrogen = Partner("14N", 1.0, {0: 2.7})
    lines = merged(pulse_acquire_lines(singlet(3.2, 9, (nitrogen,)), MHZ, REFERENCE))
    assert [a.real for _, a in lines] == pytest.approx([3, 3, 3])
    assert np.diff([nu for nu, _ in lines]) == pytest.approx([2.7, 2.7])


def test_spin_echo_refocuses_shifts_and_partners_but_inverts_the_lactate_doublet_at_one_over_j():
    j = 6.933
    lactate = spin_echo_lines(molecule("Lac").systems[0], 400.0, REFERENCE, 1 / j)
    methyl = lactate.amplitudes[lactate.frequencies_hz < -1000]
    assert methyl.sum().real == pytest.approx(-3, rel=0.02)
    partner = Partner("31P", 0.5, {0: 7.0})
    echo = spin_echo_lines(singlet(3.2, 2, (partner,)), MHZ, REFERENCE, 0.05)
    assert echo.amplitudes.sum() == pytest.approx(2)


def test_lines_move_with_the_field_and_couplings_do_not():
    doublets = []
    for mhz in (123.25, 297.2):
        lines = merged(pulse_acquire_lines(molecule("Lac").systems[0], mhz, REFERENCE), width_hz=0.5)
        doublets.append([nu for nu, a in lines if a.real > 1])
    assert np.mean(doublets[1]) / np.mean(doublets[0]) == pytest.approx(297.2 / 123.25, rel=1e-3)
    assert np.diff(doublets).ravel() == pytest.approx([6.933, 6.933], abs=0.1)


def test_regular_and_irregular_times_give_the_same_fid():
    lines = pulse_acquire_lines(molecule("Ins").systems[0], MHZ, REFERENCE)
    times = 0.0013 + np.arange(37) / 1500
    shuffled = np.random.default_rng(1).permutation(37)
    np.testing.assert_allclose(lines.fid(times)[shuffled], lines.fid(times[shuffled]), atol=1e-9)


def test_bad_arguments_are_refused():
    with pytest.raises(DataError, match="transmit frequency is 0 MHz"):
        pulse_acquire_lines(singlet(2.0, 3), 0.0, REFERENCE)
    with pytest.raises(DataError, match="echo time is -1 ms"):
        spin_echo_lines(singlet(2.0, 3), MHZ, REFERENCE, -1e-3)
    with pytest.raises(DataError, match="molecule 'Cho' is not known; known are NAA"):
        molecule("Cho")
    with pytest.raises(DataError, match=r"coupling \(0, 5\)"):
        SpinSystem((1.0, 2.0), (1, 1), {(0, 5): 7.0})
    with pytest.raises(DataError, match="needs 2 positive numbers of nuclei"):
        SpinSystem((1.0, 2.0), (1,))
    with pytest.raises(DataError, match="partner 31P couples"):
        SpinSystem((1.0,), (1,), partners=(Partner("31P", 0.5, {1: 6.0}),))
