"""What the networks that quantify spectra need: window, scale, ranges, axes and weights (eq. 22 and the line below it).

Both networks see the spectrum of one voxel within a window of chemical shifts, divided by the voxel's own complex scale
(how much it is like the typical spectrum), and how far that scale stands above the noise. Scale and phase of the data
therefore never reach a network: multiplied by any complex number, the data give the same lineshape with another phase,
and the same amounts times its size.

- The regressor returns phase, shift, Lorentz and Gauss rate: the nonlinear parameters of the physical model, whose
  amplitudes follow by variable projection. It is trained, and adapted to a scan, through the resynthesised spectrum.
- The extractor returns the spectrum of the metabolites alone, in phase, at their usual decay rates, without
  macromolecules, lipids and the voxel's lineshape, on the principal axes of such spectra.

Nothing here imports torch until a network is used (`spectrum_layers`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from mrsi_gadgets.arrays import Array
from mrsi_gadgets.errors import DataError

if TYPE_CHECKING:
    from mrsi_gadgets.models.spectrum_layers import SpectrumNetwork

N_PARAMETERS = 4
"""Phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2]."""
KERNELS: tuple[tuple[int, int], ...] = ((16, 9), (32, 5), (32, 5))
"""Channels and width of the convolutions; each halves the number of points."""
Name = Literal["regressor", "extractor"]


def left_of(points: int) -> int:
    """Return how many points the convolutions leave of so many."""
    for _ in KERNELS:
        points = math.ceil(points / 2)
    return points


def shapes_of_layers(points: int, hidden: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every weight of a `SpectrumNetwork`."""
    found: dict[str, tuple[int, ...]] = {}
    channels = 2
    for i, (width, kernel) in enumerate(KERNELS):
        found |= {f"convolutions.{2 * i}.weight": (width, channels, kernel), f"convolutions.{2 * i}.bias": (width,)}
        channels = width
    flat = channels * left_of(points) + 1
    for name, (into, out) in {"first": (flat, hidden), "second": (hidden, hidden), "last": (hidden, outputs)}.items():
        found |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return found


@dataclass(frozen=True, eq=False)
class SpectrumNetworks:
    """Both networks with all that leads from FIDs to their inputs."""

    window_ppm: tuple[float, float]
    """Chemical shifts that the networks see, both ends included."""
    points: int
    hidden: int
    match: np.ndarray
    """(t,) complex64: an FID times this is its complex scale; 1 for the typical FID."""
    size: float
    """Root mean square of the typical spectrum over the window: spectra are divided by it too."""
    lower: np.ndarray
    upper: np.ndarray
    """(4,) float32: range of phase (about that of the scale), shift, Lorentz and Gauss rate."""
    centre: np.ndarray
    """(4,) float32: what the regressor begins with."""
    axes: np.ndarray
    """(axis, points) float32: rows that span the real spectra of metabolites in the window."""
    spread: np.ndarray
    """(axis,) float32: size of the extractor's outputs."""
    typical: np.ndarray
    """(axis,) float32: coefficients of the mean clean spectrum over the scale."""
    regressor: Mapping[str, np.ndarray]
    extractor: Mapping[str, np.ndarray]
    _built: dict[tuple[str, str], SpectrumNetwork] = field(default_factory=dict, init=False, repr=False)
    """Networks by name and device; empty until they are used."""

    def __post_init__(self) -> None:
        for name, outputs in (("regressor", N_PARAMETERS), ("extractor", len(self.axes))):
            wanted = shapes_of_layers(self.points, self.hidden, outputs)
            found = {key: tuple(value.shape) for key, value in getattr(self, name).items()}
            if found != wanted:
                raise DataError(f"the weights of the {name} do not fit {self.points} points and {self.hidden} units")
        if not self.window_ppm[0] < self.window_ppm[1] or not self.size > 0:
            raise DataError("the networks' window or size is impossible")

    def outputs(self, name: Name) -> int:
        """Return the number of outputs of a network."""
        return N_PARAMETERS if name == "regressor" else len(self.axes)

    def lineshapes(self, spectra: Array, told: Array) -> Array:
        """Return (n, 4) float32: phase beyond that of the scale, shift, Lorentz and Gauss rate.

        Parameters
        ----------
        spectra : (n, points) complex64 over scale and `size`.
        told : (n,) float32 log(|scale| / noise).
        """
        return self._run("regressor", spectra, told)

    def clean(self, spectra: Array, told: Array) -> Array:
        """Return (n, axis) float32: coefficients on `axes` of the clean spectra over the scale; see `lineshapes`."""
        return self._run("extractor", spectra, told)

    def _run(self, name: Name, spectra: Array, told: Array) -> Array:
        from mrsi_gadgets.models.networks import as_torch, in_batches
        from mrsi_gadgets.models.spectrum_layers import build_network, in_units

        where = as_torch(spectra[:0, ...]).device
        place = name, str(where)
        if place not in self._built:
            self._built[place] = build_network(self.points, self.hidden, self.outputs(name), getattr(self, name)).to(
                where
            )
        network = self._built[place]
        return in_batches(lambda x, level: in_units(self, name, network(x, level)), spectra, told)
