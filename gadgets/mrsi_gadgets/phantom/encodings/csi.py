"""Phase-encoded csi: every point of a grid once, several times, or some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.phantom.encode import GridPoints
from mrsi_gadgets.phantom.encodings.encoding import Encoding, Readout, cartesian_axis, central

if TYPE_CHECKING:
    from mrsi_gadgets.phantom.presets import Preset


@dataclass(frozen=True)
class Csi(Encoding):
    """Phase encoding along all axes: each readout is the FID of one point of k-space."""

    kind: ClassVar[str] = "csi"
    trajectory_name: ClassVar[str] = "cartesian"
    elliptical: bool = False
    """Only points within the ellipse (ellipsoid) that touches the edges of k-space."""
    averages_at_centre: int = 1
    """Acquisition weighting: averages of a point fall from this number in the centre to 1 at the edge as a Hann window
    does."""
    undersampling: float = 1.0
    """Random mask with one of so many points, dense in the centre, the same for all times."""
    centre: int = 0
    """Points along each axis of a centre that is always sampled (random mask), or sent again for calibration."""
    regular: tuple[int, int, int] = (1, 1, 1)
    """Every so many-th point along x, y, z, counted from the centre; the full `centre` comes before as calibration."""
    water_undersampled: bool = False
    """Whether the water reference has the mask of the metabolites; else it has all points."""
    mask_seed: int = 0

    def __post_init__(self) -> None:
        if self.undersampling < 1 or self.averages_at_centre < 1 or min(self.regular) < 1:
            raise ConfigError("undersampling, averages_at_centre and regular of a csi encoding must be at least 1")

    def points(self, preset: Preset) -> GridPoints:
        """Return the Cartesian grid; all samples lie at the spectral points."""
        kx, ky, kz = (cartesian_axis(n, fov) for n, fov in zip(preset.matrix, preset.fov_mm, strict=True))
        return GridPoints(kx, ky, kz, np.zeros(preset.matrix[0]))

    def averages(self, matrix: tuple[int, int, int]) -> np.ndarray:
        """Return how often each point of the grid is acquired (x, y, z); 0 = never."""
        radius = _relative_radius(matrix)
        averages = np.ones(matrix, int)
        if self.averages_at_centre > 1:
            window = 0.5 * (1.0 + np.cos(np.pi * np.minimum(radius, 1.0)))
            averages = np.maximum(np.rint(self.averages_at_centre * window), 1).astype(int)
        if self.elliptical:
            averages[radius > 1.0] = 0
        if self.undersampling > 1:
            averages = averages * random_mask(averages > 0, self.undersampling, self.centre, self.mask_seed)
        for axis, step in enumerate(self.regular):
            index = np.arange(matrix[axis]) - matrix[axis] // 2
            averages = averages * np.moveaxis((index % step == 0)[:, None, None], 0, axis)
        return averages

    def readouts(self, preset: Preset, *, water: bool) -> Iterator[Readout]:
        """Yield points with kx running fastest; averages of a point follow each other."""
        whole = water and not self.water_undersampled
        complete = Csi(self.elliptical, self.averages_at_centre) if whole else self
        averages = complete.averages(preset.matrix)
        nx, ny, nz = preset.matrix
        shot = 0
        if max(complete.regular) > 1 and self.centre > 1:
            ranges = [central(n, self.centre) for n in preset.matrix]
            for kz, ky, kx in np.ndindex(*(len(r) for r in reversed(ranges))):
                place = (ranges[0][kx], ranges[1][ky], ranges[2][kz])
                yield self._readout(preset, place, 0, shot, calibration=True)
                shot += 1
        # The reversed loop order makes kx the fastest counter.
        for kz, ky, kx in np.ndindex(nz, ny, nx):
            for average in range(int(averages[kx, ky, kz])):
                yield self._readout(preset, (kx, ky, kz), average, shot)
                shot += 1

    @staticmethod
    def _readout(
        preset: Preset, place: tuple[int, int, int], average: int, shot: int, *, calibration: bool = False
    ) -> Readout:
        counters = {
            "segment": place[0], "kspace_encode_step_1": place[1], "kspace_encode_step_2": place[2], "average": average,
        }  # fmt: skip
        return Readout(place, counters, shot, preset.dwell_s, calibration=calibration)

    def sample_times_s(self, preset: Preset) -> np.ndarray:
        """Return the spectral dwell."""
        return np.full(preset.matrix[0], preset.dwell_s)

    def density_factor(self, preset: Preset) -> float:
        """Noise over that of even averages where each point counts once, whatever its averages."""
        averages = Csi(self.elliptical, self.averages_at_centre).averages(preset.matrix)
        averages = averages[averages > 0]
        return float(np.sqrt(np.sum(1.0 / averages) * np.sum(averages)) / len(averages))

    def scan_facts(self, preset: Preset) -> tuple[int, float]:
        """Return one excitation per point of the grid."""
        shots = int(np.prod(preset.matrix))
        return shots, shots * preset.n_times * preset.dwell_s

    def protocol_fields(self, preset: Preset) -> dict[str, Any]:
        """Return the weighting."""
        return {"kspace_weighting": "acquisition_weighted"} if self.averages_at_centre > 1 else {}

    def keys(self, preset: Preset) -> dict[str, int | float | str]:
        """Return the weighting."""
        return {"mrsi_kspace_weighting": "acquisition_weighted"} if self.averages_at_centre > 1 else {}

    def limits(self, preset: Preset) -> dict[str, tuple[int, int]]:
        """Return kx = segment, ky and kz."""
        nx, ny, nz = preset.matrix
        return {
            "kspace_encoding_step_1": (ny - 1, ny // 2), "kspace_encoding_step_2": (nz - 1, nz // 2),
            "average": (self.averages_at_centre - 1, 0), "segment": (nx - 1, nx // 2),
        }  # fmt: skip


def random_mask(allowed: np.ndarray, undersampling: float, centre: int, seed: int) -> np.ndarray:
    """Choose one in `undersampling` of the allowed points of a grid, (x, y, z) bool.

    The middle `centre` points along each encoded axis are always among them; the others are drawn with a density that
    falls with the square of one minus the distance from the centre (Lustig, Donoho and Pauly 2007,
    doi:10.1002/mrm.21391).

    Raises
    ------
    ConfigError
        The centre alone has more points than the mask may have.
    """
    rng = np.random.default_rng(seed)
    full = np.ones(allowed.shape, bool) if centre else np.zeros(allowed.shape, bool)
    for axis, n in enumerate(allowed.shape):
        if centre and n > 1:
            inside = np.isin(np.arange(n), central(n, centre))
            full &= np.moveaxis(inside[:, None, None], 0, axis)
    full &= allowed
    wanted = round(int(allowed.sum()) / undersampling)
    rest = wanted - int(full.sum())
    if rest < 0:
        raise ConfigError(
            f"a mask with undersampling {undersampling:g} has {wanted} points, fewer than the {int(full.sum())} of its "
            "full centre; make the centre smaller"
        )
    density = (1.0 - np.minimum(_relative_radius(allowed.shape) / np.sqrt(2.0), 0.95)) ** 2
    # the largest of log(density) + Gumbel noise are a draw without replacement with these weights
    score = np.log(density) + rng.gumbel(size=allowed.shape)
    score[full | ~allowed] = -np.inf
    chosen = full.reshape(-1).copy()
    chosen[np.argsort(score.reshape(-1))[::-1][:rest]] = True
    return chosen.reshape(allowed.shape)


def _relative_radius(matrix: tuple[int, ...]) -> np.ndarray:
    """Distance of each point of a grid from k = 0, in units of the half axes of k-space."""
    squares = np.zeros(matrix)
    for axis, n in enumerate(matrix):
        index = (np.arange(n) - n // 2) / max(n / 2, 1.0)
        squares = squares + np.moveaxis((index**2)[:, None, None], 0, axis)
    return np.asarray(np.sqrt(squares))
