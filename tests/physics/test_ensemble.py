from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.ensemble import NAA_CH3_SIGNAL, Ensemble, noise_sd_at_snr, sample
from mrsi_gadgets.physics.saturation import macromolecule_weight, relaxation_weight, saturation

QUIET = {
    "concentration_sd": 0.0,
    "altered_share": 0.0,
    "t2_star_sd": 0.0,
    "molecule_shift_ppm_sd": 0.0,
    "common_shift_hz_sd": 0.0,
    "broadening_ppm": (0.0, 0.0),
    "lorentzian_hz": (0.0, 0.0),
    "phase_rad_sd": 0.0,
}


def test_a_seed_gives_the_same_voxels_and_another_seed_others(protocol):
    first, again, other = (sample(protocol, 5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.metabolites, again.metabolites)
    np.testing.assert_array_equal(first.nuisance, again.nuisance)
    assert not np.allclose(first.metabolites, other.metabolites)


def test_without_spread_the_signal_is_equation_5(make_protocol):
    protocol = make_protocol(n_times=37, acquisition_delay_s=0.0013)
    ensemble = Ensemble(names=("NAA", "Glu"), **QUIET)
    drawn = ensemble.sample(protocol, 4, 1)
    phi = metabolite_basis(protocol, ("NAA", "Glu")).fids
    decay = np.exp(-protocol.times_s / drawn.t2_star_s[:, :, None])
    expected = np.einsum("nm,mt,nmt->nt", drawn.concentrations_mm, phi, decay)
    np.testing.assert_allclose(drawn.metabolites - drawn.macromolecules, expected, rtol=0, atol=2e-3)
    assert np.all((drawn.concentrations_mm[:, 0] > 5.6) & (drawn.concentrations_mm[:, 0] < 9.0))


def test_typical_values_lie_where_brain_values_say(protocol):
    drawn = sample(protocol, 1000, 0)
    assert drawn.metabolites.shape == (1000, 384)
    assert drawn.metabolites.dtype == np.complex64
    naa = drawn.concentrations_mm[:, drawn.names.index("NAA")]
    assert 6.5 < np.median(naa) < 9
    assert 0.03 < np.quantile(drawn.t2_star_s, 0.02) < np.quantile(drawn.t2_star_s, 0.98) < 0.2
    assert drawn.concentrations_mm.min() >= 0


def test_nuisance_strength_is_stated_relative_to_naa(make_protocol):
    ensemble = Ensemble(water_strength=(20.0, 20.0), lipid_strength=(0.5, 0.5))
    drawn = sample(make_protocol(n_times=16), 4000, 0, ensemble=ensemble)
    water = np.sqrt(np.mean(np.abs(drawn.water[:, 0]) ** 2)) / NAA_CH3_SIGNAL
    assert water == pytest.approx(20, rel=0.05)
    assert np.mean(np.abs(drawn.lipids[:, 0])) / NAA_CH3_SIGNAL == pytest.approx(0.5, rel=0.05)


def test_relaxation_follows_the_field(make_protocol):
    at_3t = sample(make_protocol(), 200, 0).t2_star_s.mean()
    at_7t = sample(make_protocol(transmit_frequency_hz=297.2e6), 200, 0).t2_star_s.mean()
    assert at_7t < 0.7 * at_3t


def test_short_t1_stands_out_where_repetition_is_fast(make_protocol):
    fast = make_protocol(repetition_time_s=0.6, flip_angle_deg=45.0)
    e1 = np.exp(-0.6 / np.array([0.3, 1.45]))
    steady = (1 - e1) / (1 - e1 * np.cos(np.pi / 4))
    assert saturation(fast, 0.3) == pytest.approx(steady[0] / steady[1], rel=1e-2)
    assert saturation(make_protocol(), 0.3) == 1.0
    share = [
        np.linalg.norm(d.macromolecules) / np.linalg.norm(d.metabolites)
        for d in (sample(fast, 300, 0), sample(make_protocol(), 300, 0))
    ]
    assert share[0] > 1.3 * share[1]


def test_an_echo_weighs_molecules_by_their_t2(make_protocol):
    echo = make_protocol(echo_times_s=(0.144,))
    expected = np.mean([np.exp(0.144 / 0.25 - 0.144 / t2_s) for t2_s in (0.160, 0.175)])
    assert relaxation_weight(echo, "Cr") == pytest.approx(expected, rel=0.02)
    assert relaxation_weight(make_protocol(), "Cr") == 1.0
    assert macromolecule_weight(echo) < 0.02


def test_noise_level_gives_the_naa_peak_snr_it_names(protocol, rng):
    sd = noise_sd_at_snr(protocol, 20.0)
    filter_ = np.exp(-3 * protocol.times_s)
    signal = NAA_CH3_SIGNAL * np.exp(-protocol.times_s / 0.07) * filter_
    noise = sd * (rng.standard_normal((500, 384)) + 1j * rng.standard_normal((500, 384))) * filter_
    measured = np.fft.fft(signal)[0].real / np.std(np.fft.fft(noise).real)
    assert measured == pytest.approx(20, rel=0.02)


def test_impossible_distributions_are_refused(protocol):
    with pytest.raises(ConfigError, match="0 voxels"):
        sample(protocol, 0, 0)
    with pytest.raises(ConfigError, match="broadening_ppm"):
        Ensemble(broadening_ppm=(0.1, 0.0))
    with pytest.raises(ConfigError, match="water_strength"):
        Ensemble(water_strength=(0.0, 1.0))
    with pytest.raises(ConfigError, match="at least one molecule"):
        Ensemble(names=())
    with pytest.raises(ConfigError, match="water_components is 0"):
        Ensemble(water_components=0)
    with pytest.raises(ConfigError, match="SNR of 0"):
        noise_sd_at_snr(protocol, 0.0)
    with pytest.raises(DataError, match="no brain values for 'Xyz'"):
        sample(protocol, 2, 0, ensemble=Ensemble(names=("Xyz",)))
