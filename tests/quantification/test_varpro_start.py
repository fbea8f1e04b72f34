"""Lineshapes that another method gives the fit to begin with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_voxels import SUMS

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.quantification.varpro import fit_varpro


def test_a_fit_that_is_told_where_to_begin_needs_no_search(rng, make_voxels, models, xp):
    made = make_voxels(rng, (3, 5, 2), snr=60.0)
    model = models(made.image.protocol)
    blind = replace(model, grid=replace(model.grid, projector=np.zeros_like(model.grid.projector)))
    searched = fit_varpro(made.image, model, intravoxel=False)
    image = replace(made.image, coefficients=xp.asarray(made.image.coefficients))
    start = made.shape + rng.normal(0, [0.2, 0.5, 2.0, 20.0], made.shape.shape)
    told = fit_varpro(image, blind, intravoxel=False, start=start)
    for group in SUMS:
        change = (told.maps[group].value - searched.maps[group].value) / searched.maps[group].sd
        assert np.sqrt(np.mean(change**2)) < 0.5
    assert np.abs(told.maps["shift"].value.ravel() - made.shape[:, 1]).max() < 0.5


def test_voxels_without_a_given_lineshape_are_searched(rng, make_voxels, models):
    made = make_voxels(rng, (3, 5, 1), snr=60.0)
    model = models(made.image.protocol)
    start = made.shape.copy()
    start[[2, 11]] = np.nan
    start[5, 2:] = [1e4, -50.0]  # beyond what is allowed: put to the ends
    maps = fit_varpro(made.image, model, intravoxel=False, start=start)
    assert np.abs(maps.maps["shift"].value.ravel() - made.shape[:, 1]).max() < 0.5
    with pytest.raises(DataError, match=r"give 4 of each of 15 voxels"):
        fit_varpro(made.image, model, start=made.shape[:-1])
