from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import k_points

from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import KtData, Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.physics.ensemble import sample
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.nuisance.lipids import (
    LipidSpace,
    band_amplitude,
    lipid_space,
    lipid_support,
    lipids_by_penalty,
)
from mrsi_gadgets.reconstruction.nuisance.removal import remove_nuisance
from mrsi_gadgets.reconstruction.nuisance.water import (
    decay_classes,
    metabolite_covariance,
    metabolite_strength,
    separate_water,
)

MATRIX = (16, 16, 1)
NOISE = 1.0
"""SD of the real part of a sample of k-space."""


class Head:
    """A disc of brain in a thin ring of fat whose places are not those of voxels; all known."""

    def __init__(self, protocol, *, water=0.0, lipid=0.0, seed=0) -> None:
        rng = np.random.default_rng(seed)
        times = protocol.times_s
        positions = (np.arange(16) - 8.0)[:, None], (np.arange(16) - 8.0)[None, :]
        x, y = np.broadcast_arrays(*positions)
        self.mask = (x**2 + y**2 < 6.2**2)[..., None]
        self.brain = (x**2 + y**2 < 5.9**2)[..., None]
        self.b0_hz = (0.8 * x + 0.05 * y**2)[..., None]
        drawn = sample(protocol, int(self.brain.sum()), seed)
        # NAA CH3 of about 6 times the noise of an FID's sample at t = 0
        scale = 6 * NOISE / 16 / 27
        fids = np.zeros((*MATRIX, len(times)), complex)
        fids[self.brain] = scale * drawn.metabolites
        self.naa = 27 * scale
        turn = np.exp(2j * np.pi * self.b0_hz[..., None] * times)
        line = np.exp((2j * np.pi * 1.5 - 25) * times) + 0.3j * np.exp((-2j * np.pi * 5 - 55) * times)
        size = self.brain[..., None] * (1 + 0.1 * rng.standard_normal((*MATRIX, 1))) * np.exp(0.1j * x[..., None, None])
        self.k = k_points(protocol)
        phase = np.exp(-2j * np.pi * (self.k @ np.stack(self._metres(protocol, x, y)).reshape(3, -1)))
        clean = phase @ (fids * turn).reshape(256, -1)
        residual = phase @ (water * self.naa * size * line * turn).reshape(256, -1)
        angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
        ring = 7.2 * np.cos(angles), 7.2 * np.sin(angles)
        fat = sample(protocol, 8, seed + 1).lipids
        fat = fat / np.abs(fat[:, :1])
        course = np.exp(2j * np.pi * (0.8 * ring[0] + 0.05 * ring[1] ** 2)[:, None] * times)
        weights = lipid * self.naa * 40 / 400 * (1.2 + 0.7 * np.cos(2 * angles))[:, None]
        at_ring = np.exp(-2j * np.pi * (self.k @ np.stack(self._metres(protocol, *ring))))
        leaking = at_ring @ (weights * fat[np.arange(400) * 8 // 400] * course)
        noise = NOISE * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))
        self.kt = self._data(protocol, clean + residual + leaking + noise)
        self.clean = self._data(protocol, clean + noise)
        self.coil_maps = np.ones((1, *MATRIX), np.complex64)

    @staticmethod
    def _metres(protocol, x, y):
        step = np.array(protocol.geometry.voxel_mm) * 1e-3
        return np.ravel(x) * step[0], np.ravel(y) * step[1], 0 * np.ravel(x)

    def _data(self, protocol, samples) -> KtData:
        return KtData(
            samples=samples[None].astype(np.complex64), k=self.k, t=np.broadcast_to(protocol.times_s, samples.shape),
            count=np.ones(256, int), role=Role.METABOLITE, protocol=protocol, grid=MATRIX,
            sample_time_s=protocol.dwell_s,
        )  # fmt: skip

    @property
    def known(self):
        return self.coil_maps, self.b0_hz, self.mask, NOISE

    def error(self, kt):
        """Root mean square of the difference to data without nuisance, by voxel of brain, over the noise."""
        difference = to_numpy(kt.samples) - self.clean.samples
        image = reconstruct_fourier(self.clean.with_samples(difference), *self.known)
        return np.sqrt(np.mean(np.abs(image.coefficients) ** 2, axis=-1) / 2)[self.brain] / (NOISE / 16)


@pytest.fixture(scope="module")
def measured_protocol():
    from synthetic import make_protocol

    return make_protocol(MATRIX, 256, "voxel")


@pytest.fixture(scope="module")
def model(measured_protocol):
    return learn_subspace(measured_protocol, n_samples=600)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("water", "lipid", "most"), [(20, 0, 0.4), (100, 0, 0.4), (20, 30, 0.8), (5, 100, 1.2)])
def test_water_and_lipids_fall_below_the_noise_and_noise_stays(measured_protocol, model, water, lipid, most, library):
    head = Head(measured_protocol, water=water, lipid=lipid)
    kt = head.kt
    if library == "torch":
        kt = kt.with_samples(torch.from_numpy(kt.samples))
    done = remove_nuisance(kt, *head.known, model=model, method="union_of_subspaces")
    assert type(done.kt.samples) is type(kt.samples)
    assert np.median(head.error(done.kt)) < min(most, np.median(head.error(head.kt)) / 15)
    assert (done.provenance["lipid_support_voxels"] > 0) == (lipid > 0)
    # most of what differs now lies in the band of water; the rest of the spectrum keeps its noise
    difference = head.kt.with_samples(to_numpy(done.kt.samples) - head.clean.samples)
    image = reconstruct_fourier(difference, *head.known).coefficients
    ppm = measured_protocol.ppm_axis(256)
    for band in ((2.9, 3.35), (5.5, 8.0)):
        left = band_amplitude(image, ppm, band)[head.brain] / (np.sqrt(2) * NOISE / 16)
        assert np.median(left) < most


def test_lipids_are_left_by_hsvd_and_metabolites_are_hurt_by_the_penalty(measured_protocol, model):
    head = Head(measured_protocol, water=5.0, lipid=100.0)
    errors = {
        method: np.median(head.error(remove_nuisance(head.kt, *head.known, model=model, method=method).kt))
        for method in ("hsvd", "union_of_subspaces", "l2")
    }
    assert errors["union_of_subspaces"] < 0.7 * errors["l2"]
    assert errors["l2"] < 0.5 * errors["hsvd"]


def test_auto_takes_the_union_where_there_are_lipids_and_nothing_where_nothing_is(measured_protocol, model):
    words: list[str] = []
    head = Head(measured_protocol, water=20.0, lipid=30.0)
    done = remove_nuisance(head.kt, *head.known, model=model, progress=words.append)
    assert done.method == done.provenance["method"] == "union_of_subspaces"
    cost = done.provenance["cost"]
    assert set(cost) == {"hsvd", "union_of_subspaces", "l2", "none"}
    assert min(cost, key=cost.get) == "union_of_subspaces"
    assert 0 < done.provenance["touched"] < 1.5
    assert [word.split(":")[0] for word in words] == ["hsvd", "union_of_subspaces", "l2"]
    clean = Head(measured_protocol)
    untouched = remove_nuisance(clean.kt, *clean.known, model=model)
    assert np.median(clean.error(untouched.kt)) < 0.1


def test_unsuppressed_water_is_taken_with_its_sidebands(measured_protocol, model):
    head = Head(measured_protocol, water=1000.0)
    plain = head.kt.samples - head.clean.samples
    times = measured_protocol.times_s
    shake = 0.002 * np.exp(-times / 0.1) * np.sin(2 * np.pi * 140 * times + 0.4)
    kt = head.kt.with_samples((head.clean.samples + plain * np.exp(1j * shake)).astype(np.complex64))
    water = np.where(head.brain, 1000 * head.naa, 0).astype(np.float32)
    done = remove_nuisance(kt, *head.known, model=model, method="union_of_subspaces", water=water)
    assert done.provenance["water"] == "not suppressed"
    assert np.median(head.error(kt)) > 300
    assert np.median(head.error(done.kt)) < 1.0
    suppressed = remove_nuisance(head.kt, *head.known, model=model, method="hsvd", water=10 * water)
    assert suppressed.provenance["water"] == "suppressed"


def test_what_does_not_fit_is_refused(measured_protocol, model):
    head = Head(measured_protocol)
    with pytest.raises(ConfigError, match="method 'magic' is not known"):
        remove_nuisance(head.kt, *head.known, model=model, method="magic")
    short = replace(head.kt, samples=head.kt.samples[:, :, :200], t=head.kt.t[:, :200])
    with pytest.raises(DataError, match="256 points and the data 200"):
        remove_nuisance(short, *head.known, model=model)


def test_the_estimate_of_water_is_the_linear_one_of_least_error(measured_protocol, model, rng):
    """Against the formula g C (g C + s^2 C_m + 2 sd^2)^-1 x with matrices written out."""
    times = measured_protocol.times_s
    rates = 2j * np.pi * rng.normal(0, 8, (40, 3)) - rng.uniform(15, 60, (40, 3))
    water = np.sum(rng.standard_normal((40, 3, 1)) * np.exp(rates[..., None] * times), axis=1)
    x = (30 * water + rng.standard_normal(water.shape)).astype(np.complex64)
    estimate = (30 * water).astype(np.complex64)
    metabolites = 0.01 * metabolite_covariance(model)
    found = separate_water(x, estimate, np.ones(40, bool), metabolites, 1.0)
    unit = estimate / np.linalg.norm(estimate, axis=1, keepdims=True)
    covariance = unit.T.astype(complex) @ unit.conj() / 40
    for row in (0, 7):
        energy = np.linalg.norm(estimate[row]) ** 2
        total = energy * covariance + metabolites + 2 * np.eye(256)
        expected = energy * covariance @ np.linalg.solve(total, x[row].astype(complex))
        np.testing.assert_allclose(found[row], expected, atol=2e-3 * np.abs(expected).max())
    assert not separate_water(x, 0 * estimate, np.ones(40, bool), metabolites, 1.0).any()


def test_classes_hold_equally_many_and_sort_by_decay(rng):
    times = np.arange(128) / 1500
    rates = rng.permutation(np.linspace(10, 100, 600))
    water = np.exp(-rates[:, None] * times).astype(np.complex64)
    classes = decay_classes(water, times, np.ones(600, bool))
    assert np.bincount(classes).tolist() == [100] * 6
    assert rates[classes == 0].min() > rates[classes == 5].max()
    assert not decay_classes(water, times, np.arange(600) < 150).any()


def test_strength_of_metabolites_is_found(measured_protocol, model, rng):
    drawn = sample(measured_protocol, 200, 3).metabolites
    noise = rng.standard_normal(drawn.shape) + 1j * rng.standard_normal(drawn.shape)
    found = metabolite_strength((4 * drawn + noise).astype(np.complex64), model, 1.0)
    assert found == pytest.approx(16, rel=0.15)


def test_penalty_is_the_closed_form(rng):
    rows = np.linalg.qr(rng.standard_normal((64, 6)) + 1j * rng.standard_normal((64, 6)))[0].T
    space = LipidSpace(np.ones((2, 2, 1), bool), rows.astype(np.complex64), np.linspace(500, 20, 6))
    x = (rng.standard_normal((2, 2, 1, 64)) + 1j * rng.standard_normal((2, 2, 1, 64))).astype(np.complex64)
    left = x - lipids_by_penalty(x, space, 0.02, 1.5) @ space.rows
    spectra = rows.T * np.sqrt(space.energy)
    matrix = np.linalg.inv(np.eye(64) + 0.02 / (2 * 1.5**2) * spectra @ spectra.conj().T)
    np.testing.assert_allclose(left, np.einsum("st,xyzt->xyzs", matrix, x), atol=1e-5)


def test_support_and_rows_of_lipids(rng):
    amplitude = np.ones((20, 20, 1))
    amplitude[2, 3:17] = 30.0
    amplitude[3, 3:17] = 6.0
    mask = np.ones_like(amplitude, bool)
    assert lipid_support(amplitude, mask).sum() == 28
    assert not lipid_support(rng.uniform(0.8, 1.2, (20, 20, 1)), mask).any()
    rows = np.linalg.qr(rng.standard_normal((64, 3)) + 1j * rng.standard_normal((64, 3)))[0].T
    weights = (rng.standard_normal((20, 20, 1, 3)) + 0j) * [1000.0, 200.0, 0.01]
    noise = rng.standard_normal((20, 20, 1, 64)) + 1j * rng.standard_normal((20, 20, 1, 64))
    space = lipid_space((weights @ rows + noise).astype(np.complex64), mask, 1.0)
    assert len(space.rows) == 2
    np.testing.assert_allclose(space.energy, [1e6, 4e4], rtol=0.2)
    np.testing.assert_allclose(np.linalg.norm(space.rows.conj() @ rows.T, axis=1), 1, atol=1e-3)


def test_amplitude_of_a_band_is_that_of_white_noise_everywhere(measured_protocol, rng):
    noise = 3 * (rng.standard_normal((500, 256)) + 1j * rng.standard_normal((500, 256)))
    ppm = measured_protocol.ppm_axis(256)
    for band in ((0.9, 1.6), (4.4, 4.9)):
        assert np.sqrt(np.mean(band_amplitude(noise, ppm, band) ** 2)) == pytest.approx(3 * np.sqrt(2), rel=0.05)
    line = np.exp(2j * np.pi * measured_protocol.hz(1.3) * measured_protocol.times_s)
    inside, outside = (band_amplitude(line, ppm, band) for band in ((1.1, 1.5), (2.1, 2.5)))
    assert inside > 20 * outside
