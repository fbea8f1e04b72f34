from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.physics.ensemble import Ensemble, default_ensemble, sample
from mrsi_gadgets.physics.measured import MeasuredLineshapes, measured_amounts, water_lineshapes

NAMES = ("NAA", "Cr", "Glu")
MEAN = np.log([7.0, 4.0, 8.0])
COVARIANCE = np.array([[0.04, -0.02, 0.0], [-0.02, 0.09, 0.01], [0.0, 0.01, 0.02]])
PLAIN = Ensemble(altered_share=0.0)
QUIET = {
    "concentration_sd": 0.0, "altered_share": 0.0, "t2_star_sd": 0.0, "molecule_shift_ppm_sd": 0.0,
    "common_shift_hz_sd": 0.0, "broadening_ppm": (0.0, 0.0), "lorentzian_hz": (0.0, 0.0), "phase_rad_sd": 0.0,
}  # fmt: skip


@pytest.fixture
def fitted(rng) -> np.ndarray:
    return np.exp(rng.multivariate_normal(MEAN, COVARIANCE, size=900))


def logs(ensemble, protocol, n=4000):
    drawn = sample(protocol, n, 7, ensemble=ensemble)
    return np.log(drawn.concentrations_mm[:, [drawn.names.index(name) for name in NAMES]]), drawn


@pytest.mark.parametrize("again", [False, True])
def test_drawn_amounts_have_mean_and_covariance_of_the_fitted_ones(make_protocol, fitted, again):
    protocol = make_protocol(n_times=3)
    found, drawn = logs(PLAIN.with_measured(protocol, NAMES, fitted, to_mm=1.0, resample=again), protocol)
    np.testing.assert_allclose(found.mean(axis=0), MEAN, atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), COVARIANCE, atol=0.012)
    plain = sample(protocol, 4000, 7, ensemble=PLAIN)
    others = [i for i, name in enumerate(drawn.names) if name not in NAMES]
    np.testing.assert_array_equal(drawn.concentrations_mm[:, others], plain.concentrations_mm[:, others])
    np.testing.assert_array_equal(drawn.water, plain.water)


def test_resampling_keeps_two_kinds_of_tissue_and_a_normal_distribution_does_not(make_protocol, rng):
    protocol = make_protocol(n_times=3)
    kind = rng.random(600) < 0.5
    fitted = np.exp(np.where(kind[:, None], MEAN, MEAN + 1.2) + 0.1 * rng.standard_normal((600, 3)))
    between = []
    for again in (True, False):
        found, _ = logs(PLAIN.with_measured(protocol, NAMES, fitted, to_mm=1.0, resample=again), protocol)
        between.append(np.mean(np.abs(found[:, 0] - MEAN[0] - 0.6) < 0.15))
    assert between[0] < 0.5 * between[1]


def test_the_noise_of_the_fit_is_no_spread_of_brains(make_protocol, rng, fitted):
    protocol = make_protocol(n_times=3)
    sd = np.array([0.6, 0.3, 0.6]) * np.ones_like(fitted)
    noisy = fitted + sd * rng.standard_normal(fitted.shape)
    spread = [
        logs(PLAIN.with_measured(protocol, NAMES, noisy, to_mm=1.0, sd=given), protocol)[0].std(axis=0)
        for given in (None, sd)
    ]
    truth = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(spread[1] - truth) < 0.02)
    assert np.all(spread[0] - truth > 1.5 * np.abs(spread[1] - truth))


def test_maps_in_any_unit_get_the_scale_of_the_table_and_sums_keep_their_members_ratio(make_protocol, rng):
    protocol = make_protocol(n_times=3)
    fitted = 1e-7 * np.exp(np.log([6.0, 3.0]) + 0.1 * rng.standard_normal((200, 2)))
    drawn = sample(protocol, 3000, 5, ensemble=PLAIN.with_measured(protocol, ("tNAA", "tCr"), fitted))
    plain = sample(protocol, 3000, 5, ensemble=PLAIN)

    def amount(which, *names):
        return sum(which.concentrations_mm[:, which.names.index(name)] for name in names)

    total = amount(drawn, "NAA", "NAAG") + amount(drawn, "Cr", "PCr")
    assert np.median(total) == pytest.approx(10.0 + 6.6, rel=0.02)  # table: 10 and 10, 7.6 and 5.6 mM
    assert np.median(amount(drawn, "NAA", "NAAG") / amount(drawn, "Cr", "PCr")) == pytest.approx(2.0, rel=0.02)
    np.testing.assert_allclose(
        amount(drawn, "NAAG") / amount(drawn, "NAA"), amount(plain, "NAAG") / amount(plain, "NAA"), rtol=1e-6
    )


def test_t2_star_is_drawn_with_the_amounts(make_protocol, rng, fitted):
    protocol = make_protocol(n_times=3)
    t2_star = 0.05 * (fitted / np.exp(MEAN)) ** 0.5
    drawn = logs(PLAIN.with_measured(protocol, NAMES, fitted, t2_star, to_mm=1.0), protocol)[1]
    column = drawn.names.index("Cr")
    assert np.median(drawn.t2_star_s[:, column]) == pytest.approx(0.05, rel=0.02)
    joint = np.corrcoef(np.log(drawn.t2_star_s[:, column]), np.log(drawn.concentrations_mm[:, column]))[0, 1]
    assert joint > 0.98


def test_phosphates_of_one_molecule_stay_together_unless_they_were_measured(make_protocol, rng):
    protocol = make_protocol(nucleus="31P", transmit_frequency_hz=120.3e6, reference_ppm=0.0, n_times=3)
    base = replace(default_ensemble(protocol), altered_share=0.0)
    fitted = np.exp(np.log([4.0, 1.0]) + 0.1 * rng.standard_normal((100, 2)))
    drawn = sample(protocol, 500, 5, ensemble=base.with_measured(protocol, ("PCr", "beta-ATP"), fitted, to_mm=1.0))
    beta, alpha = (drawn.concentrations_mm[:, drawn.names.index(name)] for name in ("beta-ATP", "alpha-ATP"))
    assert np.median(beta) == pytest.approx(1.0, rel=0.05)
    assert np.median(alpha) == pytest.approx(3.0, rel=0.3)


def test_measured_lineshapes_replace_the_gaussian_and_lorentzian(make_protocol, rng):
    protocol = make_protocol(n_times=67, acquisition_delay_s=0.0013)
    since = protocol.times_s - 0.0013
    hz = rng.normal(0, 30, (40, 1))
    truth = np.exp(-((since * rng.uniform(10, 25, (40, 1))) ** 2) + 0.3j * np.sin(70 * since))
    water = 900 * truth * np.exp(2j * np.pi * hz * since - since / 0.06 + 1j * rng.uniform(-3, 3, (40, 1)))
    shapes = water_lineshapes(protocol, water, t2_star_s=0.06)
    names = ("NAA", "Glu")
    base = Ensemble(names=names, **QUIET)
    drawn = sample(protocol, 200, 2, ensemble=replace(base, lineshapes=shapes))
    flat = sample(protocol, 200, 2, ensemble=base)
    ratio = drawn.metabolites / flat.metabolites
    misfit = np.linalg.norm(ratio[:, None] - shapes.shapes[None], axis=2).min(axis=1) / np.linalg.norm(ratio, axis=1)
    assert misfit.max() < 1e-3
    fast = np.abs(np.angle(np.sum(shapes.shapes[:, 1:] * shapes.shapes[:, :-1].conj(), axis=1)))
    assert fast.max() < 2 * np.pi * 1.0 / 1500  # no more than 1 Hz of 30 is left
    np.testing.assert_allclose(np.abs(shapes.shapes), np.abs(truth), rtol=1e-4)
    half = sample(protocol, 400, 2, ensemble=replace(base, lineshapes=shapes, lineshape_share=0.25))
    flat = sample(protocol, 400, 2, ensemble=base)
    unchanged = np.abs(half.metabolites / flat.metabolites - 1).max(axis=1) < 1e-3
    assert np.mean(unchanged) == pytest.approx(0.75, abs=0.06)


def test_noise_at_the_end_of_the_water_is_damped(make_protocol, rng):
    protocol = make_protocol(n_times=300)
    water = np.exp(-protocol.times_s / 0.04) * np.ones((30, 1))
    noise = 0.01 * (rng.standard_normal((30, 300)) + 1j * rng.standard_normal((30, 300)))
    shapes = water_lineshapes(protocol, water + noise, noise_sd=0.01, t2_star_s=0.06).shapes
    end = np.sqrt(np.mean(np.abs(shapes[:, 250:]) ** 2))
    raw = np.sqrt(np.mean(np.abs((water + noise) * np.exp(protocol.times_s / 0.06))[:, 250:] ** 2))
    assert end < 0.5 * raw
    np.testing.assert_allclose(
        shapes[:, :20].mean(axis=0), np.exp(-protocol.times_s[:20] * (1 / 0.04 - 1 / 0.06)), atol=0.01
    )


def test_an_error_of_the_delay_is_a_first_order_phase(make_protocol):
    protocol = make_protocol(n_times=257, acquisition_delay_s=0.0013)
    ensemble = Ensemble(names=("NAA",), **QUIET, acquisition_delay_sd_s=20e-6)
    drawn = sample(protocol, 300, 4, ensemble=ensemble)
    still = sample(protocol, 300, 4, ensemble=replace(ensemble, acquisition_delay_sd_s=0.0))
    wanted, without = (d.metabolites - d.macromolecules for d in (drawn, still))
    methyl = np.exp(-2j * np.pi * protocol.hz(2.008) * protocol.times_s)
    phase = np.angle((wanted @ methyl) / (without @ methyl))
    assert phase.std() == pytest.approx(2 * np.pi * abs(float(protocol.hz(2.008))) * 20e-6, rel=0.12)
    np.testing.assert_array_equal(drawn.water, still.water)


def test_a_card_can_hold_what_an_ensemble_is(make_protocol, fitted):
    protocol = make_protocol(n_times=31)
    shapes = MeasuredLineshapes(np.ones((4, 31), np.complex64), 0.0, 1 / 1500)
    ensemble = replace(PLAIN.with_measured(protocol, NAMES, fitted, to_mm=1.0), lineshapes=shapes)
    told = json.loads(json.dumps(ensemble.describe()))
    assert told["amounts"]["median_mm"] == pytest.approx(np.exp(MEAN), rel=0.05)
    assert told["lineshapes"]["voxels"] == 4
    assert told["altered_share"] == 0.0


def test_what_cannot_be_learned_from_is_refused(make_protocol, fitted):
    protocol = make_protocol(n_times=31)
    with pytest.raises(DataError, match="amounts of 'Xyz' cannot be used"):
        measured_amounts(protocol, ("NAA", "Cr", "Xyz"), fitted)
    with pytest.raises(DataError, match="Cr stands in more than one"):
        measured_amounts(protocol, ("tCr", "Cr", "Glu"), fitted)
    with pytest.raises(DataError, match=r"must be \(voxel, 2\)"):
        measured_amounts(protocol, ("NAA", "Cr"), fitted)
    with pytest.raises(DataError, match="29 voxels with finite amounts are too few"):
        measured_amounts(protocol, NAMES, fitted[:29])
    with pytest.raises(DataError, match="amount of Cr is zero in most voxels"):
        measured_amounts(protocol, NAMES, fitted * [1, 0, 1])
    with pytest.raises(DataError, match="must be positive"):
        measured_amounts(protocol, NAMES, fitted, to_mm=0.0)
    with pytest.raises(DataError, match=r"water FIDs \(4, 30\) must be \(voxel, 31\)"):
        water_lineshapes(protocol, np.ones((4, 30)))
    with pytest.raises(DataError, match="no voxel of the water reference has signal"):
        water_lineshapes(protocol, np.ones((4, 31)), noise_sd=1.0)
    other = water_lineshapes(make_protocol(n_times=31, dwell_s=1e-3), np.ones((4, 31)))
    with pytest.raises(DataError, match="31 points of 1000 us after 0 us, the protocol has 31 of 666.667 us"):
        sample(protocol, 2, 0, ensemble=replace(PLAIN, lineshapes=other))
    with pytest.raises(ConfigError, match="lineshape_share must be from 0 to 1"):
        replace(PLAIN, lineshape_share=2.0)
