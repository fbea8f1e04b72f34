"""Which voxels are flagged because the model does not describe them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import make_image, make_protocol, molecules

from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.quantification.preparation import prepare_varpro
from mrsi_gadgets.quantification.quality import judge
from mrsi_gadgets.quantification.varpro import fit_varpro


@pytest.fixture(scope="module")
def model():
    protocol = make_protocol((9, 11, 1))
    return prepare_varpro(protocol, *molecules(protocol))


def with_more(made, name, amount, where):
    """The voxels `where` (voxel,) bool with an amount [mM] of a molecule that the basis lacks."""
    protocol = made.image.protocol
    t = protocol.times_s
    fid = metabolite_basis(protocol, (name,)).fids[0] * np.exp(-12 * t)
    phase, shift, lorentz, gauss = (made.shape[:, i : i + 1] for i in range(4))
    signal = amount * fid * np.exp(1j * phase + (2j * np.pi * shift - lorentz) * t - gauss * t**2)
    more = (where[:, None] * signal).reshape(made.image.coefficients.shape)
    return replace(made.image, coefficients=(made.image.coefficients + more).astype(np.complex64))


@pytest.mark.parametrize(
    ("name", "amount", "snr"), [("2HG", 10.0, 80.0), ("Glc", 12.0, 40.0), ("Gly", 8.0, 60.0), ("Asp", 12.0, 40.0)]
)
def test_a_metabolite_that_the_basis_lacks_flags_its_voxels(rng, model, name, amount, snr):
    made = make_image(rng, (9, 11, 1), snr=snr)
    where = np.zeros((9, 11), bool)
    where[2:5, 3:8] = True
    maps = fit_varpro(with_more(made, name, amount, where.ravel()), model, intravoxel=False)
    flag = maps.maps["fit_flag"].value[..., 0] > 0
    assert flag[where].mean() >= 0.8
    assert flag[~where].mean() <= 0.1
    assert maps.maps["fit_quality"].value[..., 0][where].mean() < maps.maps["fit_quality"].value[..., 0][~where].mean()
    assert maps.provenance["flagged_voxels"]["any"] == flag.sum()


@pytest.mark.parametrize("snr", [15.0, 60.0])
def test_where_the_model_is_right_hardly_a_voxel_is_flagged(rng, model, snr):
    made = make_image(rng, (9, 11, 1), snr=snr, water=3.0, lipids=0.3)
    maps = fit_varpro(made.image, model, intravoxel=False)
    assert np.nanmean(maps.maps["fit_flag"].value) <= 0.01
    quality = maps.maps["fit_quality"].value
    assert quality.max() <= 1.0
    assert np.median(quality) > 0.9


def test_a_lineshape_at_the_end_of_its_range_is_flagged(model):
    freedom = model.dictionary.freedom
    shape = np.tile([0.0, 1.0, 3.0, 0.0], (8, 1))
    shape[2, 1], shape[5, 3] = freedom.lower[1], freedom.upper[3]
    found = judge(np.ones(8), shape, freedom, np.ones((2, 4, 1), bool))
    assert found.flagged.tolist() == [i in (2, 5) for i in range(8)]
    assert found.counts()["lineshape at its limit"] == 2
