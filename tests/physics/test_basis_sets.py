from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.basis import BRAIN_METABOLITES, BasisSet, metabolite_basis
from mrsi_gadgets.physics.brain_values import BRAIN, MACROMOLECULE_MM
from mrsi_gadgets.physics.macromolecules import LIPID_SHARES, LIPIDS, MACROMOLECULES, lipid_basis, macromolecule_basis


def peak_ppm(protocol, fid, low, high, zero_fill=16384):
    """Position of the highest point of the real spectrum between two shifts."""
    spectrum = np.fft.fftshift(np.fft.fft(fid * np.exp(-5 * protocol.times_s), zero_fill)).real
    ppm = protocol.ppm_axis(zero_fill)
    inside = (ppm > low) & (ppm < high)
    return ppm[inside][np.argmax(spectrum[inside])]


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("NAA", 1.8, 2.2, 2.008),
        ("NAAG", 1.8, 2.2, 2.042),
        ("Cr", 2.8, 3.2, 3.027),
        ("Cr", 3.7, 4.1, 3.913),
        ("PCr", 2.8, 3.2, 3.029),
        ("PCr", 3.7, 4.1, 3.930),
        ("PCh", 3.0, 3.4, 3.208),
        ("GPC", 3.0, 3.4, 3.212),
        ("sIns", 3.0, 3.6, 3.340),
        ("Gly", 3.3, 3.8, 3.548),
    ],
)
def test_singlets_are_where_they_were_published(protocol, name, low, high, expected):
    fid = metabolite_basis(protocol, [name]).fids[0]
    assert peak_ppm(protocol, fid, low, high) == pytest.approx(expected, abs=2e-3)


def test_naa_is_below_water_on_the_negative_side_of_the_frequency_axis(protocol):
    fid = metabolite_basis(protocol, ["NAA"]).fids[0]
    spectrum = np.fft.fft(fid * np.exp(-5 * protocol.times_s), 4096)
    assert np.fft.fftfreq(4096, protocol.dwell_s)[np.argmax(spectrum.real)] == pytest.approx(-325.6, abs=0.5)


def test_lactate_doublet_is_split_by_its_coupling(make_protocol):
    protocol = make_protocol(n_times=4096)
    fid = metabolite_basis(protocol, ["Lac"]).fids[0]
    upper = peak_ppm(protocol, fid, 1.3142, 1.45, 65536)
    lower = peak_ppm(protocol, fid, 1.2, 1.3142, 65536)
    assert (upper - lower) * 123.25 == pytest.approx(6.933, abs=0.05)
    assert (upper + lower) / 2 == pytest.approx(1.3142, abs=1e-3)


def test_default_basis_has_at_least_sixteen_metabolites_with_brain_values(protocol):
    basis = metabolite_basis(protocol)
    assert len(basis.names) >= 16
    assert basis.names == BRAIN_METABOLITES
    assert basis.fids.shape == (len(basis.names), 384)
    assert set(basis.names) <= set(BRAIN)
    assert {"NAAG", "GPC", "PE", "sIns", "Asp", "GSH", "Asc", "GABA", "Glc"} <= set(basis.names)


def test_acquisition_delay_shifts_the_sampling_times(make_protocol):
    late = metabolite_basis(make_protocol(acquisition_delay_s=2 / 1500, n_times=50)).fids
    early = metabolite_basis(make_protocol(n_times=52)).fids
    np.testing.assert_allclose(late, early[:, 2:], atol=1e-9)


def test_echo_of_no_length_is_the_free_induction_decay(protocol):
    names = ["NAA", "PCh", "Glc"]
    np.testing.assert_allclose(
        metabolite_basis(protocol, names).fids, metabolite_basis(protocol, names, echo_time_s=0.0).fids, atol=1e-8
    )


def test_basis_rows_are_found_by_name_and_unknown_names_are_refused(protocol):
    basis = metabolite_basis(protocol, ["Cr", "NAA", "Ins"])
    assert basis.subset(["Ins", "Cr"]).names == ("Ins", "Cr")
    np.testing.assert_array_equal(basis.subset(["Ins"]).fids[0], basis.fids[2])
    with pytest.raises(DataError, match="no 'GABA'; it has Cr, NAA, Ins"):
        basis.subset(["GABA"])
    with pytest.raises(DataError, match="molecule 'X' is not known"):
        metabolite_basis(protocol, ["X"])
    with pytest.raises(DataError, match="must differ"):
        BasisSet(("NAA", "NAA"), np.zeros((2, 384), dtype=complex), protocol)
    with pytest.raises(DataError, match="do not fit 1 names"):
        BasisSet(("NAA",), np.zeros((2, 384), dtype=complex), protocol)


def test_nuclei_without_known_molecules_are_refused(make_protocol):
    with pytest.raises(DataError, match="known for 1H, 31P, 2H only, the protocol's nucleus is 23Na"):
        metabolite_basis(make_protocol(nucleus="23Na"))


def test_macromolecule_rows_start_at_one_and_peak_where_they_are_listed(protocol):
    basis = macromolecule_basis(protocol)
    assert set(basis.names) == set(MACROMOLECULE_MM)
    assert len(basis.names) >= 10
    np.testing.assert_allclose(basis.fids[:, 0], 1, atol=1e-12)
    for peak, fid in zip(MACROMOLECULES, basis.fids, strict=True):
        strongest = max(peak.lines, key=lambda line: line.share / line.width_ppm)
        assert peak_ppm(protocol, fid, 0, 4.6) == pytest.approx(strongest.ppm, abs=0.06)


@pytest.mark.parametrize("mhz", [123.25, 297.2])
def test_macromolecule_at_0_92_ppm_has_the_width_measured_at_both_fields(make_protocol, mhz):
    protocol = make_protocol(transmit_frequency_hz=mhz * 1e6, dwell_s=1 / 4000, n_times=1024)
    fid = macromolecule_basis(protocol).fids[0]
    fid[0] /= 2
    spectrum = np.fft.fft(fid, 16384).real
    width = np.count_nonzero(spectrum > spectrum.max() / 2) * 4000 / 16384
    assert width == pytest.approx({123.25: 20.0, 297.2: 45.6}[mhz], rel=0.15)


def test_lipids_peak_at_1_3_ppm_and_their_shares_add_up_to_fat(protocol):
    fat = np.array(LIPID_SHARES) @ lipid_basis(protocol).fids
    assert sum(LIPID_SHARES) == pytest.approx(1, abs=2e-3)
    assert len(LIPIDS) == len(LIPID_SHARES)
    assert peak_ppm(protocol, fat, 0, 6) == pytest.approx(1.30, abs=0.02)


def test_an_echo_time_of_the_protocol_makes_the_basis_that_of_a_spin_echo(make_protocol):
    echo = make_protocol(echo_times_s=(0.144,))
    np.testing.assert_array_equal(
        metabolite_basis(echo, ["Lac"]).fids, metabolite_basis(make_protocol(), ["Lac"], echo_time_s=0.144).fids
    )
    # the doublet of lactate, J = 6.93 Hz, is upside down after 1 / J
    probe = np.exp((-2j * np.pi * echo.hz(1.3142 + 0.028) - 10) * echo.times_s)
    early, late = (metabolite_basis(p, ["Lac"]).fids[0] @ probe for p in (make_protocol(), echo))
    assert early.real > 0
    assert late.real < -0.8 * early.real
    # what a pulse-acquire sequence writes into TE is its delay
    assert make_protocol(echo_times_s=(0.0013,)).spin_echo_time_s is None
