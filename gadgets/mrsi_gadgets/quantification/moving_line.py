"""A molecule with a shift of its own in every voxel: inorganic phosphate, whose shift tells the pH.

Shift and phase of the fit are common to all molecules of a voxel. One molecule may move against them within a few
tenths of a ppm: its column is known at a row of places, a step of 1.5 Hz apart, and beside it stands its derivative by
the shift. A coarse search finds the place by likelihood, with a Gaussian prior; then the fit with the derivative is a
Gauss-Newton step for the shift as well: amplitude c and derivative d at place nu say nu + d / c, the next place is the
one nearest to that, and the Fisher information of all unknowns holds the shift too. Voxels of one place are fitted
together, so nothing else of the fit changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mrsi_gadgets.data import Protocol
    from mrsi_gadgets.quantification.coordinates import Coordinates
    from mrsi_gadgets.quantification.design import Design
    from mrsi_gadgets.quantification.lineshape_search import LineshapeExpansion
    from mrsi_gadgets.quantification.nucleus_fit import OwnShift
    from mrsi_gadgets.quantification.preparation import VarproModel

_STEP_HZ = 1.5
"""Half of it is the largest error of the linear derivative: a line of 50 ms loses 0.5 % of its height there."""
_COARSE = 4
"""Every so many places are tried in the coarse search: 6 Hz, half the width of a line."""
_LEAST_SIGNAL = 4.0
"""A line below so many standard deviations has no shift: at three, noise is taken for the line in one voxel of a
hundred, and the deviation that is stated, a bound for small errors, is then too small."""
SLOPE = ":shift"
"""Ending of the name of the derivative's column."""


@dataclass(frozen=True, eq=False)
class MovingLine:
    """One molecule's column and its derivative at every place it may have."""

    name: str
    ppm: float
    """Where the basis set has it."""
    column: int
    slope: int
    """Columns of the molecule and of its derivative in the design."""
    shifts_hz: np.ndarray
    """(place,) distance from where the basis set has it [Hz]."""
    sd_hz: float
    """SD of the prior of that distance [Hz]."""
    columns: np.ndarray
    """(place, t, 2) complex128: the molecule per unit amplitude, and its derivative [per Hz]."""
    products: np.ndarray
    """(place, k, coordinate, 2) complex64: the same times each function of the expansion, in the fit's coordinates."""

    @property
    def home(self) -> int:
        """The place nearest to where the basis set has it."""
        return int(np.argmin(np.abs(self.shifts_hz)))

    @property
    def coarse(self) -> np.ndarray:
        """Places of the coarse search."""
        return np.arange(self.home % _COARSE, len(self.shifts_hz), _COARSE)

    def penalty(self, place: int) -> float:
        """Return -2 log of the prior of a place."""
        return float((self.shifts_hz[place] / self.sd_hz) ** 2)

    def next_place(self, place: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
        """Return the place (voxel,) nearest to what amplitudes (voxel, column) say, at most a coarse step on.

        A line that is not there stays where it is.
        """
        size, slope = amplitudes[:, self.column], amplitudes[:, self.slope]
        most = _COARSE * _STEP_HZ
        step = np.divide(slope, size, out=np.zeros(len(size)), where=size > 0)
        wanted = self.shifts_hz[place] + np.clip(step, -most, most)
        return np.argmin(np.abs(wanted[:, None] - self.shifts_hz), axis=1)

    def shift_hz(
        self, place: np.ndarray, amplitudes: np.ndarray, covariance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance (voxel,) from where the basis set has the line [Hz] and its variance [Hz^2].

        Parameters
        ----------
        place
            (voxel,) of the fit.
        amplitudes, covariance
            (voxel, column) and (voxel, any, any) of the fit.

        Both are NaN where the line does not stand out of its noise.
        """
        c, d = self.column, self.slope
        size = amplitudes[:, c].astype(float)
        there = size > _LEAST_SIGNAL * np.sqrt(np.maximum(covariance[:, c, c], 0.0))
        inverse = np.divide(1.0, size, out=np.full(len(size), np.nan), where=there & (size > 0))
        step = amplitudes[:, d] * inverse
        spread = covariance[:, d, d] + step**2 * covariance[:, c, c] - 2 * step * covariance[:, c, d]
        return self.shifts_hz[place] + step, np.maximum(spread, 0.0) * inverse**2


def slope_columns(protocol: Protocol, column: np.ndarray, shifts_hz: np.ndarray) -> np.ndarray:
    """Return a column (t,) moved by each shift, and its derivative by the shift, (place, t, 2)."""
    turn = 2j * np.pi * protocol.times_s
    moved = column * np.exp(turn * shifts_hz[:, None])
    return np.stack([moved, turn * moved], axis=-1)


def places_hz(protocol: Protocol, own: OwnShift) -> np.ndarray:
    """Return the places (place,) that a molecule may have [Hz], zero in the middle."""
    count = int(np.floor(own.reach_ppm * protocol.transmit_frequency_hz * 1e-6 / _STEP_HZ))
    return _STEP_HZ * np.arange(-count, count + 1)


def with_slope(protocol: Protocol, design: Design, own: OwnShift) -> Design:
    """Return the design with the derivative of a molecule that may move as its last column."""
    index = design.names.index(own.name)
    slope = slope_columns(protocol, design.columns[:, index], np.zeros(1))[0, :, 1:]
    sd_hz = own.sd_ppm * protocol.transmit_frequency_hz * 1e-6
    return replace(
        design,
        names=(*design.names, own.name + SLOPE),
        columns=np.concatenate([design.columns, slope], axis=1),
        bounded=np.append(design.bounded, False),
        prior_sd=np.append(design.prior_sd, sd_hz * max(float(design.typical[index]), 1e-3)),
        typical=np.append(design.typical, 0.0),
    )


def prepare_moving_line(
    protocol: Protocol, design: Design, own: OwnShift, expansion: LineshapeExpansion, coordinates: Coordinates
) -> MovingLine:
    """Return the columns of a molecule at all its places, in the coordinates of the fit."""
    index, slope = design.names.index(own.name), design.names.index(own.name + SLOPE)
    shifts = places_hz(protocol, own)
    columns = slope_columns(protocol, design.columns[:, index], shifts)
    shaped = np.einsum("kt,ptm->tpkm", expansion.functions, columns)
    products = coordinates.columns(shaped.reshape(len(shaped), -1))
    products = products.reshape(-1, *shaped.shape[1:]).transpose(1, 2, 0, 3)
    return MovingLine(
        own.name,
        own.ppm,
        index,
        slope,
        shifts,
        own.sd_ppm * protocol.transmit_frequency_hz * 1e-6,
        columns,
        np.ascontiguousarray(products, dtype=np.complex64),
    )


def at_place(model: VarproModel, place: int) -> VarproModel:
    """Return the model with its moving molecule at one place; the model itself where nothing moves."""
    moving = model.moving
    if moving is None:
        return model
    which = [moving.column, moving.slope]
    columns = model.design.columns.copy()
    columns[:, which] = moving.columns[place]
    products = model.dictionary.products.copy()
    products[:, :, which] = moving.products[place]
    dictionary = replace(model.dictionary, products=products)
    return replace(model, design=replace(model.design, columns=columns), dictionary=dictionary)
