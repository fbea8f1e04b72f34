"""Phosphorus and deuterium: lines where they were published, amounts, relaxation, pH, ensembles."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.subspace import learn_subspace, representation_error
from mrsi_gadgets.physics import brain_values, deuterium, phosphorus
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.ensemble import default_ensemble, noise_sd_at_snr, sample
from mrsi_gadgets.physics.nucleus import DEUTERIUM, NUCLEI, PHOSPHORUS, calibration_line, field_strength_t, nucleus_of
from mrsi_gadgets.physics.saturation import relaxation_weight
from mrsi_gadgets.physics.simulation import pulse_acquire_lines
from mrsi_gadgets.physics.spin_systems import SpinSystem

GEOMETRY = Geometry((8, 8, 8), (200.0, 200.0, 200.0))


def protocol_31p(**fields) -> Protocol:
    return Protocol(
        **{
            "nucleus": "31P", "transmit_frequency_hz": 120.3e6, "reference_ppm": 0.0, "dwell_s": 1 / 5000,
            "n_times": 512, "acquisition_delay_s": 0.0005, "geometry": GEOMETRY, "encoding": "csi",
            "field_strength_t": 7.0, **fields,
        }
    )  # fmt: skip


def protocol_2h(**fields) -> Protocol:
    return Protocol(
        **{
            "nucleus": "2H", "transmit_frequency_hz": 45.6e6, "reference_ppm": 4.8, "dwell_s": 1 / 1000,
            "n_times": 256, "acquisition_delay_s": 0.0005, "geometry": GEOMETRY, "encoding": "csi",
            "field_strength_t": 7.0, **fields,
        }
    )  # fmt: skip


def peaks(protocol: Protocol, name: str, rate: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Shifts [ppm] and areas of the resolved lines of one molecule, from its spectrum."""
    fid = metabolite_basis(protocol, [name]).fids[0] * np.exp(-rate * protocol.times_s)
    n = 16 * protocol.n_times
    start = np.exp(-2j * np.pi * np.fft.fftshift(np.fft.fftfreq(n, protocol.dwell_s)) * protocol.acquisition_delay_s)
    spectrum = np.real(np.fft.fftshift(np.fft.fft(fid, n)) * start)
    top = [
        i
        for i in range(1, n - 1)
        if spectrum[i - 1] < spectrum[i] >= spectrum[i + 1] and spectrum[i] > 0.15 * spectrum.max()
    ]
    return protocol.ppm_axis(n)[top], spectrum[top]


@pytest.mark.parametrize(
    ("name", "ppm", "hz"),
    [("gamma-ATP", -2.5, (15.4,)), ("alpha-ATP", -7.5, (16.3,)), ("beta-ATP", -16.2, (15.8, 15.8))],
)
def test_atp_is_a_doublet_at_minus_2_5_a_doublet_at_minus_7_5_and_a_triplet_at_minus_16_2_ppm(name, ppm, hz):
    protocol = protocol_31p(n_times=4096)
    place, _ = peaks(protocol, name)
    assert len(place) == len(hz) + 1
    assert np.mean(place) == pytest.approx(ppm, abs=0.08)
    assert np.diff(place) * 120.3 == pytest.approx(hz, abs=0.8)


def test_the_beta_triplet_is_one_to_two_to_one_and_leans_towards_its_partners():
    lines = pulse_acquire_lines(PHOSPHORUS.molecule("beta-ATP").systems[0], 120.3, 0.0)
    offset = lines.frequencies_hz + 16.18 * 120.3
    areas = [np.sum(lines.amplitudes[np.abs(offset - place) < 3].real) for place in (-15.85, 0.0, 15.85)]
    assert areas == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    assert areas[2] > areas[0]


@pytest.mark.parametrize(
    ("name", "ppm"),
    [("PCr", 0.0), ("Pi", 4.84), ("ePi", 5.2), ("PE", 6.77), ("PC", 6.23), ("GPE", 3.49), ("GPC", 2.94),
     ("NAD+", -8.31), ("NADH", -8.13), ("UDPG", -9.03)],
)  # fmt: skip
def test_phosphorus_lines_are_centred_where_they_were_published(name, ppm):
    protocol = protocol_31p(n_times=4096)
    fid = metabolite_basis(protocol, [name]).fids[0]
    # the mean frequency of a spectrum is the slope of its FID's phase at t = 0
    early = metabolite_basis(protocol_31p(n_times=2, dwell_s=1e-7, acquisition_delay_s=0.0), [name]).fids[0]
    assert np.angle(early[1] / early[0]) / (2 * np.pi * 1e-7) / 120.3 == pytest.approx(ppm, abs=0.01)
    assert early[0].real == pytest.approx(2.0 if name in ("NAD+", "NADH", "UDPG") else 1.0, rel=1e-6)
    assert np.abs(fid).max() <= 2.001


@pytest.mark.parametrize(
    ("name", "ppm", "nuclei"), [("HDO", 4.8, 1), ("Glc", 3.8, 2), ("Glx", 2.4, 2), ("Lac", 1.4, 2)]
)
def test_deuterium_lines_are_single_and_where_they_were_published(name, ppm, nuclei):
    protocol = protocol_2h(n_times=2048)
    place, _ = peaks(protocol, name)
    assert place == pytest.approx([ppm], abs=0.01)
    delay = np.exp(-2j * np.pi * protocol.hz(ppm) * protocol.acquisition_delay_s)
    assert metabolite_basis(protocol, [name]).fids[0, 0] * delay == pytest.approx(nuclei)


def test_the_lines_of_single_nuclei_add_up_to_those_of_the_coupled_system():
    """Strongly coupled, so that lines cannot be told by their place."""
    shifts, couplings = (-2.5, -2.8, -3.0), {(0, 2): 15.0, (1, 2): 16.0, (0, 1): 9.0}
    times = 0.0005 + np.arange(300) / 2000
    whole = pulse_acquire_lines(SpinSystem(shifts, (1, 1, 1), couplings), 51.0, 0.0).fid(times)
    parts = [
        pulse_acquire_lines(SpinSystem(shifts, (1, 1, 1), couplings, observed=(i,)), 51.0, 0.0).fid(times)
        for i in range(3)
    ]
    np.testing.assert_allclose(sum(parts), whole, atol=1e-9)
    at_zero = [
        pulse_acquire_lines(SpinSystem(shifts, (1, 1, 1), couplings, observed=(i,)), 51.0, 0.0).fid(np.zeros(1))[0]
        for i in range(3)
    ]
    assert at_zero == pytest.approx([1, 1, 1])
    with pytest.raises(DataError, match="observed groups"):
        SpinSystem(shifts, (1, 1, 1), couplings, observed=(3,))


def test_ph_of_a_known_shift_and_back():
    # 6.75 + log10((4.84 - 3.27) / (5.63 - 4.84)) worked out by hand
    assert phosphorus.ph_of_shift(4.84) == pytest.approx(7.0483, abs=1e-4)
    assert phosphorus.ph_of_shift(4.45) == pytest.approx(6.75)
    for ph in (6.6, 7.0, 7.4):
        shift = phosphorus.shift_of_ph(ph)
        assert phosphorus.ph_of_shift(shift) == pytest.approx(ph)
        step = phosphorus.ph_of_shift(shift + 1e-5) - phosphorus.ph_of_shift(shift - 1e-5)
        assert phosphorus.ph_slope(shift) == pytest.approx(step / 2e-5, rel=1e-4)
    assert np.isnan(phosphorus.ph_of_shift(np.array([3.0, 5.7]))).all()
    assert np.isnan(phosphorus.ph_slope(5.7))


@pytest.mark.parametrize("nucleus", [PHOSPHORUS, DEUTERIUM])
def test_every_molecule_has_values_within_its_range_and_every_sum_known_members(nucleus):
    assert set(nucleus.values) == set(nucleus.molecules) == set(nucleus.usual)
    for name in nucleus.usual:
        low, high = nucleus.range_mm(name)
        for tissue in brain_values.TISSUES[:2]:
            assert low <= nucleus.concentration_mm(name, tissue) <= high
            assert (
                0.005
                < nucleus.t2_star_s(name, tissue, 7.0)
                < nucleus.t2_s(name, tissue, 7.0)
                < nucleus.t1_s(name, tissue, 7.0)
            )
    for members in nucleus.sums.values():
        assert set(members) <= set(nucleus.usual)
    strongest = max(nucleus.usual, key=lambda name: nucleus.concentration_mm(name, "gm"))
    assert nucleus.strongest == nucleus.usual[0] == strongest


def test_relaxation_at_7_t_is_as_measured():
    assert PHOSPHORUS.t1_s("PCr", "gm", 7.0) == pytest.approx(3.37)
    assert PHOSPHORUS.t2_s("PCr", "gm", 7.0) == pytest.approx(0.132)
    assert PHOSPHORUS.t1_s("Pi", "gm", 7.0) / PHOSPHORUS.t1_s("ePi", "gm", 7.0) == pytest.approx(0.6)
    # the field of the tissue dephases in proportion to the frequency
    rate = 1 / PHOSPHORUS.t2_star_s("PCr", "gm", 7.0) - 1 / 0.132
    assert rate == pytest.approx(0.4048 * brain_values.r2_prime_hz("gm", 7.0), rel=1e-3)
    assert 1 / (np.pi * DEUTERIUM.t2_s("HDO", "wm", 4.0)) == pytest.approx(10.6, abs=0.1)


def test_water_without_label_holds_the_deuterium_of_nature():
    # 55.5 mol/l, two hydrogens, 0.0156 %: 17.3 mM in pure water
    assert deuterium.natural_hdo_mm("csf") / brain_values.WATER["csf"].concentration_mm * 55.5e3 == pytest.approx(
        17.3, abs=0.05
    )
    assert DEUTERIUM.concentration_mm("HDO", "gm") == pytest.approx(13.5, abs=0.1)


@pytest.mark.parametrize(("protocol", "field"), [(protocol_31p(field_strength_t=None), 6.98),
                                                 (protocol_2h(field_strength_t=None), 6.98)])  # fmt: skip
def test_the_frequency_tells_the_field(protocol, field):
    assert field_strength_t(protocol) == pytest.approx(field, abs=0.01)


def test_short_t1_stands_out_where_repetition_is_fast():
    fast = protocol_31p(repetition_time_s=0.5, flip_angle_deg=40.0)
    assert relaxation_weight(fast, "PCr") == pytest.approx(1.0)
    e1 = np.exp(-0.5 / np.array([1.02, 3.37]))
    steady = (1 - e1) / (1 - e1 * np.cos(np.deg2rad(40)))
    assert relaxation_weight(fast, "beta-ATP") == pytest.approx(steady[0] / steady[1])
    assert relaxation_weight(fast, "ePi") < relaxation_weight(fast, "Pi") < 1


@pytest.mark.parametrize("protocol", [protocol_31p(), protocol_2h()])
def test_ensembles_hold_no_water_lipids_or_macromolecules(protocol):
    drawn = sample(protocol, 200, 3)
    assert drawn.names == nucleus_of(protocol).usual == default_ensemble(protocol).names
    for nothing in (drawn.water, drawn.lipids, drawn.macromolecules):
        assert not nothing.any()
        assert nothing.shape == (200, protocol.n_times)
    strongest = drawn.concentrations_mm[:, 0]
    assert np.median(strongest) == pytest.approx(nucleus_of(protocol).concentration_mm(drawn.names[0], "gm"), rel=0.2)
    np.testing.assert_array_equal(sample(protocol, 5, 4).metabolites, sample(protocol, 5, 4).metabolites)


def test_the_phosphates_of_atp_vary_together_and_inorganic_phosphate_moves():
    drawn = sample(protocol_31p(), 2000, 5)
    gamma, alpha, beta = (drawn.concentrations_mm[:, drawn.names.index(f"{n}-ATP")] for n in ("gamma", "alpha", "beta"))
    for other in (alpha, beta):
        assert np.corrcoef(gamma, other)[0, 1] > 0.85
        assert np.std(np.log(other / np.maximum(gamma, 1e-9))) == pytest.approx(0.1, abs=0.01)
    moving = default_ensemble(protocol_31p())
    assert phosphorus.SHIFT_PPM_SD["Pi"] > 10 * moving.molecule_shift_ppm_sd


@pytest.mark.parametrize(("protocol", "error"), [(protocol_31p(), 0.05), (protocol_2h(), 0.02)])
def test_a_learned_subspace_represents_fresh_fids_and_has_no_nuisance_rows(protocol, error):
    model = learn_subspace(protocol)
    assert model.rank == model.metabolite_rank < 40
    assert model.nuisance_energy == (0.0, 0.0)
    fresh = sample(protocol, 400, 77).metabolites
    assert representation_error(model.basis, fresh) < error
    assert representation_error(model.basis, fresh) == pytest.approx(model.metabolite_error, rel=0.3)
    # the strongest line needs more rows than noise of a poor scan is worth
    assert model.best_rank(noise_sd_at_snr(protocol, 20.0)) < model.rank


@pytest.mark.parametrize("protocol", [protocol_31p(), protocol_2h()])
def test_the_noise_level_is_that_of_the_strongest_line(protocol, rng):
    nucleus = NUCLEI[protocol.nucleus]
    sd = noise_sd_at_snr(protocol, 20.0)
    t2_star = nucleus.t2_star_s(nucleus.strongest, "gm", 7.0)
    filter_ = np.exp(-3 * protocol.times_s)
    height = np.sum(nucleus.concentration_mm(nucleus.strongest, "gm") * np.exp(-protocol.times_s / t2_star) * filter_)
    noise = rng.standard_normal((500, protocol.n_times, 2)) @ np.array([1, 1j]) * sd * filter_
    assert height / np.std(np.fft.fft(noise).real) == pytest.approx(20, rel=0.02)


def test_each_nucleus_names_the_line_it_is_calibrated_on(make_protocol):
    for protocol, ppm, shortest, longest in (
        (make_protocol(), 4.65, 0.015, 0.03), (protocol_31p(), 0.0, 0.02, 0.03), (protocol_2h(), 4.8, 0.012, 0.02),
    ):  # fmt: skip
        place, t2_star = calibration_line(protocol)
        assert place == ppm
        assert shortest < t2_star < longest
        # zero frequency of the received data is that line
        assert abs(protocol.hz(place)) < 1e-9
