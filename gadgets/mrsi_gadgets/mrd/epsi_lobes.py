"""Where the samples of one EPSI lobe lie along kx: oversampled under a flat gradient, or on its ramps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.layout import Surroundings

LOBE_PARAMETERS = (
    "rampUpTime", "rampDownTime", "flatTopTime", "echoSpacing", "numSamples", "acqDelayTime", "dwellTime",
)  # fmt: skip
"""Parameters of trajectoryDescription "ConventionalEPI", all but numSamples in us."""
SAME_DWELL = 1e-3
"""Relative: dwells and spacings that differ by less are one."""
_ASSUMED_NOISE = 0.1
"""Noise of a sample over the signal of the field of view (variances) for which oversampling is removed best."""


def oversampling_removal(geometry: Geometry, samples: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the matrix (point, sample) that takes oversampled samples of a lobe to points of the matrix.

    Cutting the Fourier transform of a finite lobe to the field of view would leave out what leaks beyond its edges: for
    an object of evenly random signal that is 11 % of its rms, and half of it at the outermost kx (48 points, twofold
    oversampling). Instead each point is the linear estimate of least mean square error (Wiener) from all samples, for
    such an object anywhere within the field of view and half a voxel around it, whose covariance in k is the field of
    view's sinc, with noise of `_ASSUMED_NOISE`; its gain is brought to 1. That leaves 1.7 % of the rms (6 % at the
    outermost kx) for 5 % more variance of the noise. Without oversampling, samples are taken as they are.

    Parameters
    ----------
    geometry
        Matrix and where the voxels lie.
    samples, points
        k along x in units of 1/FOV, (sample,) and (point,).
    """
    n_x = geometry.matrix[0]
    if samples.size == n_x:
        # +n/2 and -n/2 are one point of the grid, with the sign of the half voxel between its origin and a voxel
        apart = (points[:, None] - samples) / n_x
        here = np.abs(apart - np.round(apart)) < 1e-6
        return here * np.exp(2j * np.pi * np.round(apart) * geometry.centre_index[0])
    width, centre = (n_x + 1) / n_x, ((n_x - 1) / 2 - geometry.centre_index[0]) / n_x

    def covariance(apart: np.ndarray, width: float) -> np.ndarray:
        return np.asarray(np.sinc(width * apart) * np.exp(-2j * np.pi * centre * apart))

    noisy = covariance(samples[:, None] - samples, width) + _ASSUMED_NOISE * np.eye(samples.size)
    way = np.linalg.solve(noisy.T, covariance(points[:, None] - samples, width).T).T
    gain = np.einsum("ps,sp->p", way, covariance(samples[:, None] - points, 1.0)).real
    return np.asarray(way / gain[:, None])


def conventional_epi(parameters: Mapping[str, Any], n_samples: int, geometry: Geometry) -> np.ndarray:
    """Return kx (sample,) [1/m] of a forward lobe under a trapezoidal gradient.

    The convention is that of ISMRMRD's trajectoryDescription "ConventionalEPI" as Gadgetron's EPI reconstruction reads
    it (its EPIReconXObjectTrapezoid): the ADC starts acqDelayTime after the gradient, a sample counts at the end of its
    dwell, k = 0 is half of the lobe's area, and the area under the ADC is that of all encoded points.

    Parameters
    ----------
    parameters
        `LOBE_PARAMETERS` [us].
    n_samples
        Samples of the lobe.
    geometry
        Matrix and field of view along x.

    Raises
    ------
    DataError
        The ADC does not fit into the lobe.
    """
    up, down, flat, delay, dwell = (
        float(parameters[name]) for name in ("rampUpTime", "rampDownTime", "flatTopTime", "acqDelayTime", "dwellTime")
    )
    total = up + flat + down
    if min(up, down, flat, delay) < 0 or dwell <= 0 or delay + n_samples * dwell > total * (1 + SAME_DWELL):
        raise DataError(
            f"the header's ConventionalEPI has {n_samples} samples of {dwell:g} us from {delay:g} us on, but the lobe "
            f"(ramps {up:g} and {down:g} us, flat top {flat:g} us) ends after {total:g} us; correct it"
        )

    def area(t: np.ndarray) -> np.ndarray:
        rising = np.clip(t, 0, up) ** 2 / (2 * up) if up else np.zeros_like(t)
        falling = (down**2 - np.clip(total - t, 0, down) ** 2) / (2 * down) if down else np.zeros_like(t)
        return rising + np.clip(t - up, 0, flat) + falling

    ends = delay + dwell * np.arange(n_samples + 1)
    areas = area(ends)
    read = float(areas[-1] - areas[0])
    half = float(area(np.array([total]))[0]) / 2
    cell = 1 / (geometry.fov_mm[0] * 1e-3)
    return np.asarray((areas[1:] - half) * geometry.matrix[0] / read * cell)


def lobe_parameters(protocol: Protocol, around: Surroundings, space: int) -> Mapping[str, Any] | None:
    """Return the header's description of ramp-sampled lobes (`LOBE_PARAMETERS`), None where there is none.

    Raises
    ------
    DataError
        The trajectory is another one, or a parameter is missing.
    """
    if not protocol.trajectory_id:
        return None
    if protocol.trajectory_id != "ConventionalEPI":
        raise DataError(
            f"the trajectory of epsi lobes is '{protocol.trajectory_id}'; it must be ConventionalEPI, or be sent with "
            "each lobe"
        )
    encodings = around.header.encodings if around.header is not None else ()
    found = encodings[space].trajectory_parameters if space < len(encodings) else {}
    missing = [name for name in LOBE_PARAMETERS if name not in found]
    if missing:
        raise DataError(
            f"trajectoryDescription ConventionalEPI of the header lacks {', '.join(missing)}; add them, or send kx "
            "with each lobe"
        )
    return found
