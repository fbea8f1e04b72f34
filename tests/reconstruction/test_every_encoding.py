"""One object through every encoding and every method; it is measured by sums over voxels at each sample's own time."""

from __future__ import annotations

import numpy as np
import pytest
from every_encoding import measured
from synthetic import fid_error

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.joint import reconstruct_joint
from mrsi_gadgets.reconstruction.locally_low_rank import cut_patches, reconstruct_locally_low_rank
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

CARTESIAN = ("csi", "epsi", "bipolar")
NOISE = 0.03


def calibrated(m):
    return m.kt, m.coil_maps, m.b0_hz, m.mask, m.noise_sd


# rings and spirals leave out the corners of k-space, which the object has: that is their error without noise
@pytest.mark.parametrize(
    ("kind", "fourier", "subspace"),
    [
        ("csi", 0.065, 0.013), ("epsi", 0.065, 0.013), ("bipolar", 0.047, 0.011), ("rings", 0.06, 0.02),
        ("spiral", 0.08, 0.045),
    ],
)  # fmt: skip
def test_every_encoding_goes_through_fourier_and_subspace(kind, fourier, subspace, rng):
    m = measured(kind, rng, noise=NOISE)
    assert fid_error(reconstruct_fourier(*calibrated(m)).fids(), m) < fourier
    image = reconstruct_subspace(*calibrated(m), model=m.model, water=m.water)
    assert fid_error(image.fids(), m) < subspace
    if kind != "csi":
        assert image.provenance["corrections"][-1] < 0.01


@pytest.mark.parametrize("kind", ["epsi", "bipolar", "rings", "spiral"])
def test_the_correction_takes_out_what_gridding_approximates(kind, rng):
    m = measured(kind, rng, noise=0.001)
    corrected = reconstruct_subspace(*calibrated(m), model=m.model, prior="none", adapt=False)
    gridded = reconstruct_fourier(*calibrated(m)).fids()
    projected = (gridded @ m.model.basis.conj().T) @ m.model.basis
    assert fid_error(corrected.fids(), m) < (0.7 if kind in CARTESIAN else 0.8) * max(fid_error(projected, m), 0.004)


@pytest.mark.parametrize("kind", ["csi", "epsi", "bipolar", "rings"])
def test_low_rank_methods_lower_the_noise_of_every_encoding(kind, rng):
    m = measured(kind, rng, noise=0.06)
    fourier = fid_error(reconstruct_fourier(*calibrated(m)).fids(), m)
    for reconstruct in (reconstruct_low_rank, reconstruct_locally_low_rank, reconstruct_joint):
        assert fid_error(reconstruct(*calibrated(m)).fids(), m) < (0.55 if kind in CARTESIAN else 0.75) * fourier


def half_of_the_points(shape):
    keep = np.random.default_rng(8).random(shape[0]) > 0.4
    keep[shape[0] // 2 - 30 : shape[0] // 2 + 30] = True
    return keep.astype(float)


def another_half_at_every_time(shape):
    return (np.random.default_rng(8).random(shape) > 0.4).astype(float)


@pytest.mark.parametrize("mask", [half_of_the_points, another_half_at_every_time])
@pytest.mark.parametrize("kind", ["csi", "epsi", "bipolar", "rings"])
def test_missing_samples_are_bridged_by_coils_basis_and_prior(kind, mask, rng):
    m = measured(kind, rng, noise=NOISE, mask=mask)
    zero_filled = fid_error(reconstruct_fourier(*calibrated(m)).fids(), m)
    error = fid_error(reconstruct_subspace(*calibrated(m), model=m.model, water=m.water).fids(), m)
    assert error < (0.25 if kind in CARTESIAN else 0.4) * zero_filled
    assert error < 0.12


@pytest.mark.parametrize("mask", [half_of_the_points, another_half_at_every_time])
def test_comparison_methods_bridge_missing_samples_too(mask, rng):
    m = measured("csi", rng, noise=NOISE, mask=mask)
    zero_filled = fid_error(reconstruct_fourier(*calibrated(m)).fids(), m)
    local = reconstruct_locally_low_rank(*calibrated(m))
    joint = reconstruct_joint(*calibrated(m), rank=4)
    assert fid_error(local.fids(), m) < 0.6 * zero_filled
    assert fid_error(joint.fids(), m) < 0.6 * zero_filled
    assert joint.provenance["relative_residuals"][-1] <= joint.provenance["relative_residuals"][0]


@pytest.mark.parametrize("kind", ["epsi", "bipolar", "rings", "spiral"])
def test_coefficients_and_fids_are_encoded_alike(kind, rng):
    """The expansion of the field agrees with the phase at every time, to its tolerance, for a mask constant in t."""
    m = measured(kind, rng)
    u = rng.standard_normal((*m.b0_hz.shape, 10)) + 1j * rng.standard_normal((*m.b0_hz.shape, 10))
    u = (u * m.mask[..., None]).astype(np.complex64)
    exact = encoding_operator(m.kt, m.coil_maps, m.b0_hz, m.model.basis, tolerance=1e-6)(u)
    usual = encoding_operator(m.kt, m.coil_maps, m.b0_hz, m.model.basis)(u)
    assert np.linalg.norm(usual - exact) < 1e-3 * np.linalg.norm(exact)


def test_patches_keep_a_local_change_and_average_where_they_overlap(rng):
    rho = np.zeros((10, 9, 2, 40), dtype=np.complex64)
    line = np.exp(2j * np.pi * 0.1 * np.arange(40))
    rho += line.astype(np.complex64)
    rho[2:5, 3:6] += 2 * np.exp(2j * np.pi * 0.31 * np.arange(40)).astype(np.complex64)
    noise = rng.standard_normal(rho.shape) + 1j * rng.standard_normal(rho.shape)
    found, rank = cut_patches((rho + 0.2 * noise).astype(np.complex64), 0.2, 5, None)
    assert 1.0 <= rank <= 2.0
    assert np.linalg.norm(found - rho) < 0.4 * np.linalg.norm(0.2 * noise)
    m = measured("csi", rng)
    with pytest.raises(ConfigError, match="patch is 0"):
        reconstruct_locally_low_rank(*calibrated(m), patch=0)
