"""The course of frequency and phase within one frame whose readouts come back to the centre of k-space.

Spirals start each arm at k = 0. What is sampled there is an FID of the whole object, the same in every arm but for what
drifted between their excitations: each arm is its own navigator, of the water reference as of the metabolites with what
water and lipids are left in them. (Self-navigation: Glover and Lai, Magn Reson Med 1998, doi:10.1002/mrm.1910390305.)
Arms at other places of k-space see other parts of the object, whose fields differ; so only samples at the centre count.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.arrays import like, namespace
from mrsi_gadgets.data import KtData
from mrsi_gadgets.reconstruction.drift import Course, drift_from_navigators, reference_time

NEAR_CENTRE = 0.05
"""Largest distance from k = 0 in points of k-space: over the field of view the phase then differs by 0.16 rad."""
LEAST_VISITS = 4
"""A course needs so many visits to the centre, at different times."""

LEAST_HZ, LEAST_RAD = 0.1, 0.03
"""A course that moves by less over the frame, in frequency and in phase, does nothing to a map."""


def drift_from_centre(kt: KtData, *, noise_sd: float = 1.0) -> Course | None:
    """Return the course over a frame, zero at its `reference_time`; None where the data do not tell it or stand still.

    Parameters
    ----------
    kt
        Whitened data with times of acquisition.
    noise_sd
        SD of the real part of the noise of one sample.
    """
    if kt.acquired_s is None:
        return None
    cells = kt.k * (np.array(kt.protocol.geometry.fov_mm) * 1e-3)
    encoded = np.array(kt.protocol.geometry.matrix) > 1
    near = np.all(np.abs(np.where(encoded, cells, 0.0)) < NEAR_CENTRE, axis=1) & (kt.counts.min(axis=1) > 0)
    points = np.flatnonzero(near)
    if not len(points):
        return None
    # one FID is compared with the others at the same times
    late = np.asarray(kt.t[points, 0], dtype=float)
    first = float(late.min())
    points = points[late - first < 1e-3 * kt.protocol.dwell_s]
    # temporal interleaves of one arm follow each other: their mean is the arm's time
    acquired = kt.acquired_s[points] if kt.acquired_s.ndim == 1 else kt.acquired_s[points].mean(axis=1)
    if len(np.unique(acquired)) < LEAST_VISITS:
        return None
    samples = namespace(kt.samples).take(kt.samples, like(points, kt.samples, "int64"), axis=1)
    t = np.broadcast_to(kt.t[points[0]], (len(points), kt.t.shape[1]))
    visits = replace(
        kt, samples=samples, k=np.zeros((len(points), 3)), t=t, count=np.ones(len(points)), grid=None, density=None,
        acquired_s=acquired,
    )  # fmt: skip
    # averages lower the noise of a visit
    averages = float(np.mean(kt.counts[points]))
    found = drift_from_navigators(visits, noise_sd=noise_sd / np.sqrt(averages))
    if found is None:
        return None
    course = found[0]
    if course.range_hz(acquired) < LEAST_HZ and float(np.ptp(course.phase_rad)) < LEAST_RAD:
        return None
    return replace(course, source="centre of k-space").zero_at(reference_time(kt))
