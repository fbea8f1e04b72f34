"""Frequency and phase that drift over the scan: their course, and data as if there had been none.

Gradients heat the magnet's iron, and so the field moves by some Hz within minutes. Of a readout that was acquired at T
[s] after the start of the scan, the sample at t [s] after the excitation carries the phase 2 pi df(T) t + dphi(T). The
course of df and dphi is known from

* navigators: a water FID without encoding, again and again. Frequency and phase against the mean of all of them are
  the weighted line through the phase of z(t) = sum_c conj(m_c(t)) s_c(t), m the mean; weights |z(t)| are those of
  maximum likelihood, and the inverse of the weighted normal matrix is the estimate's covariance for noise of SD 1.
  The course is smoothed by second differences (Whittaker) as strongly as its own noise allows: until the residual is
  what the noise must leave (discrepancy principle);
* repetitions of the same readouts (a water reference that comes again, or the frames of a dynamic scan): the same line
  for the points that hold most of the signal, each repetition against the first;
* the data themselves: the frequency of residual water in the first metabolite frame against that of the water
  reference, voxel by voxel of a coarse image. Two such anchors are a straight line, which is all that is assumed.

Within one frame, data that hold each point of k-space once do not tell a drift (those that come back to the centre do,
`centre_drift`): over csi whose slow axis is ky, a linear drift of a Hz is the same as an image that moves along y by a
t voxels, and the edges of the head in the
outermost voxels are known only to the side lobes of the point spread (on the 32 x 32 numerical brain the energy outside
of the head is least at a drift that is wrong by up to 6 Hz, and for residual water at SNR 20 its noise alone is 3 Hz).

Only changes can be known: the course is zero at a reference time, that of the field map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg

from mrsi_gadgets.arrays import is_numpy, like, namespace, over_pieces, to_numpy
from mrsi_gadgets.data import KtData, Protocol
from mrsi_gadgets.operators.density import sampling_density

LEAST_SNR = 10.0
"""Signal of a navigator (root of its energy) over the noise: below, its phase is not known to a tenth of a radian."""
LEAST_COHERENCE = 0.5
"""Part of the median likeness to the mean below which a navigator is left out; also how alike in phase the times of
residual water's line have to be."""
WATER_BAND_PPM = 0.5
"""Half width of the band of residual water [ppm]."""
COARSE = 5
"""Points of k-space on either side of its centre that make the coarse image."""
MOST_POINTS = 64
"""Points with most signal that repetitions are compared at."""


@dataclass(frozen=True, eq=False)
class Course:
    """Frequency and phase over the scan, linear between the times and constant beyond them."""

    times_s: np.ndarray
    """(n,) [s] since the scan's first readout, ascending."""
    hz: np.ndarray
    """(n,) [Hz]."""
    phase_rad: np.ndarray
    """(n,) [rad] at t = 0."""
    source: str
    """What it was learned from: ``navigators``, ``water`` or ``data``."""
    hz_sd: float = 0.0
    """Median SD of one value of `hz` from noise."""

    def zero_at(self, time_s: float) -> Course:
        """Return the course with frequency and phase zero at `time_s` [s]."""
        hz, phase = (float(np.interp(time_s, self.times_s, values)) for values in (self.hz, self.phase_rad))
        return replace(self, hz=self.hz - hz, phase_rad=self.phase_rad - phase)

    def at(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return frequency [Hz] and phase [rad] at times [s since the scan's first readout], of their shape."""
        return np.interp(times_s, self.times_s, self.hz), np.interp(times_s, self.times_s, self.phase_rad)

    def range_hz(self, times_s: np.ndarray) -> float:
        """Return by how much the frequency moves over the given times [Hz]."""
        hz, _ = self.at(np.asarray(times_s))
        return float(np.ptp(hz)) if hz.size else 0.0


def drift_from_navigators(
    navigators: KtData, reference: np.ndarray | None = None, *, noise_sd: float = 1.0
) -> tuple[Course, np.ndarray] | None:
    """Return the course and the mean navigator (coil, t), or None where the navigators do not tell it.

    Parameters
    ----------
    navigators
        Whitened data of role navigator.
    reference
        Mean navigator of an earlier call, so that both courses have one zero; None: the mean of these.
    noise_sd
        SD of the real part of the noise of one sample.
    """
    samples = to_numpy(navigators.samples).astype(np.complex128)
    if navigators.acquired_s is None or samples.shape[1] < 2:
        return None
    times = np.asarray(navigators.t[0], dtype=float)
    mean = samples[:, 0] if reference is None else reference
    hz, phase = np.zeros(samples.shape[1]), np.zeros(samples.shape[1])
    for _ in range(3 if reference is None else 1):
        hz, phase = _lines(np.einsum("ct,cnt->nt", mean.conj(), samples), times)
        aligned = samples * np.exp(-1j * (2 * np.pi * hz[:, None] * times + phase[:, None]))
        if reference is None:
            mean = np.mean(aligned, axis=1)
    energy = float(np.sum(np.abs(mean) ** 2))
    if energy < (2 * mean.size / samples.shape[1] + LEAST_SNR**2) * noise_sd**2:
        return None
    likeness = np.abs(np.einsum("ct,cnt->n", mean.conj(), aligned)) / np.sqrt(np.sum(np.abs(aligned) ** 2, axis=(0, 2)))
    good = likeness > LEAST_COHERENCE * np.median(likeness)
    order = np.argsort(navigators.acquired_s[good], kind="stable")
    when, hz, phase = (values[good][order] for values in (navigators.acquired_s, hz, phase))
    if len(when) < 2:
        return None
    weight = np.sum(np.abs(mean) ** 2, axis=0) / noise_sd**2
    # frequency and the phase at the centre of the signal have independent errors
    centre = float(np.sum(weight * times) / np.sum(weight))
    spread = float(np.sum(weight * (times - centre) ** 2))
    hz_variance, phase_variance = 1 / ((2 * np.pi) ** 2 * spread), 1 / float(np.sum(weight))
    middle = np.unwrap(phase + 2 * np.pi * hz * centre)
    hz = smoothed_course(when, hz, hz_variance)
    middle = smoothed_course(when, middle, phase_variance)
    course = Course(when, hz, middle - 2 * np.pi * hz * centre, "navigators", float(np.sqrt(hz_variance)))
    return course, mean


@dataclass(frozen=True, eq=False)
class Traces:
    """What is kept of data to compare others with: a coarse image, and the points with most signal."""

    time_s: float
    """When the readouts that hold most of the signal were acquired [s]."""
    coarse: np.ndarray | None
    """(coil, voxel, t) image of the centre of k-space; None where that was not acquired."""
    coarse_noise: float
    """Noise power of the real part of one of its samples."""
    points: np.ndarray
    """Indices of the strongest points."""
    samples: np.ndarray
    """(coil, point, t) of them."""
    times_s: np.ndarray
    """(t,) [s]: spectral times."""
    protocol: Protocol


def traces_of(kt: KtData) -> Traces | None:
    """Return what later data are compared with, or None where the data carry no time stamps or no signal."""
    if kt.acquired_s is None:
        return None
    strength = np.where(kt.counts.min(axis=1) > 0, _point_energy(kt), 0.0)
    points = np.argsort(-strength, kind="stable")[:MOST_POINTS]
    points = np.sort(points[strength[points] > 0])
    if not len(points):
        return None
    coarse, noise = _coarse_image(kt)
    times = np.asarray(kt.protocol.times_s[: kt.samples.shape[2]])
    return Traces(reference_time(kt), coarse, noise, points, _points(kt, points), times, kt.protocol)


def change_between(first: Traces, kt: KtData) -> tuple[float, float] | None:
    """Return by how much a repetition's frequency is above the first's [Hz], and its SD; None where it is not known.

    Their phase is known to whole turns only and is left alone: one phase for all of a frame changes no map.

    Parameters
    ----------
    first
        Of the first repetition.
    kt
        A later one, whitened, of the same layout.
    """
    if first.points.max() >= kt.samples.shape[1] or kt.n_coils != first.samples.shape[0]:
        return None
    if kt.samples.shape[2] != first.samples.shape[2]:
        return None
    came = kt.counts[first.points].min(axis=1) > 0
    before, after = first.samples[:, came], _points(kt, first.points[came])
    products = np.einsum("cpt,cpt->t", before.conj(), after)
    # both carry noise of SD 1 in the real part, divided by the root of the averages
    spread = np.sum(np.abs(before) ** 2 + np.abs(after) ** 2, axis=(0, 1)) / max(float(np.mean(kt.counts)), 1e-12)
    hz, sd, _ = _line(products, first.times_s, np.sqrt(spread))
    return (hz, sd) if np.isfinite(sd) else None


def shift_of_residual_water(water: Traces, metabolites: Traces) -> tuple[float, float] | None:
    """Return how much higher residual water's frequency is than the reference's [Hz], and its SD; None if unknown.

    The products z(r, t) = sum_c conj(w_c) m_c of each voxel of the coarse images, free of the voxel's own phase, share
    one line. Suppression leaves a line of another shape than the reference's: on the numerical brain this alone is a
    shift of 0.9 to 1.4 Hz.
    """
    dwell = metabolites.protocol.dwell_s
    band_hz = WATER_BAND_PPM * metabolites.protocol.transmit_frequency_hz * 1e-6
    n_times = min(len(water.times_s), len(metabolites.times_s))
    before, after = water.coarse, metabolites.coarse
    if before is None or after is None or before.shape[:2] != after.shape[:2] or n_times * dwell * band_hz < 2:
        return None
    if abs(water.protocol.dwell_s - dwell) > 1e-6 * dwell:
        return None
    # the band leaves metabolites out; its response mixes the first samples with the nothing before them
    start = min(int(np.ceil(3 / (2 * np.pi * band_hz * dwell))), n_times // 4)
    before = before[:, :, start:n_times]
    products = np.sum(np.conj(before) * _near_zero(after[:, :, :n_times], dwell, band_hz)[:, :, start:], axis=0)
    times = metabolites.times_s[start:n_times]
    spread = np.sqrt(np.sum(np.abs(before) ** 2, axis=(0, 1)) * metabolites.coarse_noise)
    hz, step, sd, shared = 0.0, 0.0, np.inf, np.ones(len(times), complex)
    for _ in range(3):
        flat = products * np.exp(-2j * np.pi * hz * times)
        own = np.sum(flat[:, : max(2, len(times) // 8)], axis=1, keepdims=True)
        shared = np.sum(flat * np.conj(own) / np.maximum(np.abs(own), np.finfo(float).tiny), axis=0)
        step, sd, _ = _line(shared, times, spread)
        hz += step
    # one line has one phase at all times: else it is several, or none of water
    together = float(np.abs(np.sum(shared * np.exp(-2j * np.pi * step * times)))) / float(np.sum(np.abs(shared)))
    return (hz, sd) if np.isfinite(sd) and together > LEAST_COHERENCE else None


def course_through(anchors: Sequence[tuple[float, float]], times_s: np.ndarray, source: str) -> Course:
    """Return the course of the frequency through anchors (time [s], frequency [Hz]); its phase is zero.

    Beyond them it goes on as straight as between the two at that end, as far as `times_s` reach, but not further than
    these two lie apart.
    """
    ordered = sorted(anchors)
    points = np.array(ordered, dtype=float)
    low, high = (float(f(times_s)) for f in (np.min, np.max))
    rows = [row for row in points]
    if len(points) > 1:
        for beyond, near, far in ((low, 0, 1), (high, -1, -2)):
            gap = points[near, 0] - points[far, 0]
            if beyond < points[0, 0] or beyond > points[-1, 0]:
                beyond = float(np.clip(beyond, points[near, 0] - abs(gap), points[near, 0] + abs(gap)))
                rows.append(points[near] + (points[near] - points[far]) * (beyond - points[near, 0]) / gap)
    course = np.array(sorted(tuple(row) for row in rows))
    return Course(course[:, 0], course[:, 1], np.zeros(len(course)), source)


def reference_time(kt: KtData) -> float:
    """Return when the readouts that hold most of the signal were acquired, weighted by their energy [s]."""
    if kt.acquired_s is None:
        return 0.0
    energy = _point_energy(kt)
    return float(np.sum(energy * _point_times(kt)) / max(float(np.sum(energy)), np.finfo(float).tiny))


def correct_drift(kt: KtData, course: Course, *, overwrite: bool = False) -> KtData:
    """Return the data without drift: each sample times exp(-i (2 pi df(T) t + dphi(T))), T its own time of acquisition.

    The result has no `acquired_s`, so that nothing is corrected twice. With `overwrite` NumPy samples are changed in
    place.
    """
    if kt.acquired_s is None:
        return kt
    samples, t = kt.samples, np.asarray(kt.t)
    acquired = kt.acquired_s if kt.acquired_s.ndim == 2 else kt.acquired_s[:, None]
    if not is_numpy(samples):
        hz, phase = course.at(acquired)
        turn = np.exp(-1j * (2 * np.pi * hz * t + phase))
        return replace(kt, samples=samples * like(turn, samples, samples.dtype)[None, ...], acquired_s=None)
    result = samples if overwrite else np.empty_like(samples)

    def turn_points(points: slice) -> None:
        hz, phase = course.at(acquired[points])
        turn = np.exp(-1j * (2 * np.pi * hz * t[points] + phase)).astype(samples.dtype)
        np.multiply(samples[:, points], turn, out=result[:, points])

    over_pieces(turn_points, samples.shape[1], 24 * samples.shape[2])
    return replace(kt, samples=result, acquired_s=None)


def smoothed_course(times_s: np.ndarray, values: np.ndarray, variance: float) -> np.ndarray:
    """Return values (n,) smoothed by second differences as strongly as their noise variance allows.

    The strongest smoothing is taken whose residual's mean square is not above the variance; none where even the
    weakest leaves more than noise.
    """
    n = len(values)
    if n < 4:
        return values
    steps = np.maximum(np.diff(times_s), 1e-6 * max(float(np.ptp(times_s)), 1e-9))
    rows = np.zeros((n - 2, 3))
    rows[:, 0], rows[:, 2] = 1 / steps[:-1], 1 / steps[1:]
    rows[:, 1] = -rows[:, 0] - rows[:, 2]
    rows *= float(np.median(steps))
    bands = np.zeros((3, n))
    for i in range(3):
        bands[2, i : n - 2 + i] += rows[:, i] ** 2
    bands[1, 1 : n - 1] += rows[:, 0] * rows[:, 1]
    bands[1, 2:] += rows[:, 1] * rows[:, 2]
    bands[0, 2:] += rows[:, 0] * rows[:, 2]
    for strength in np.geomspace(float(n) ** 4, 1e-2, 40):
        system = strength * bands
        system[2] += 1.0
        smooth = linalg.solveh_banded(system, values)
        if np.mean((values - smooth) ** 2) <= variance:
            return np.asarray(smooth)
    return values


def _lines(products: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frequency (n,) [Hz] and phase at t = 0 (n,) [rad] of z (n, t).

    They make |sum_t z exp(-i (2 pi f t + phi))| largest: the line through the phase of z that is most likely where the
    noise of z goes with the root of its size. Newton steps from the top of the spectrum.
    """
    n = 4 * len(times)
    spectrum = np.fft.fft(products, n, axis=1)
    hz = np.fft.fftfreq(n, float(times[1] - times[0]))[np.argmax(np.abs(spectrum), axis=1)]
    middle = np.zeros(len(hz))
    for _ in range(5):
        flat = products * np.exp(-2j * np.pi * hz[:, None] * times)
        middle = np.angle(np.sum(flat, axis=1))
        flat = flat * np.exp(-1j * middle[:, None])
        along = np.real(flat)
        centre = (along @ times) / np.maximum(np.sum(along, axis=1), np.finfo(float).tiny)
        around = times - centre[:, None]
        spread = np.maximum(np.sum(along * around**2, axis=1), np.finfo(float).tiny)
        step = np.sum(np.imag(flat) * around, axis=1) / spread / (2 * np.pi)
        # noise alone has no top worth climbing
        hz = hz + np.clip(step, -1 / (n * float(times[1] - times[0])), 1 / (n * float(times[1] - times[0])))
    flat = products * np.exp(-2j * np.pi * hz[:, None] * times)
    return hz, np.angle(np.sum(flat, axis=1))


def _line(products: np.ndarray, times: np.ndarray, noise: np.ndarray) -> tuple[float, float, float]:
    """Return frequency [Hz], its SD (infinite where noise hides it) and the phase at t = 0 of one z (t,).

    `noise` is the SD of the imaginary part of z at each time.
    """
    hz, phase = _lines(products[None], times)
    along = np.real(products * np.exp(-1j * (2 * np.pi * hz[0] * times + phase[0])))
    if np.sum(along) < LEAST_SNR * float(np.sqrt(np.sum(noise**2))):
        return 0.0, np.inf, 0.0
    around = times - float(np.sum(along * times) / np.sum(along))
    spread = float(np.sum(along * around**2))
    sd = float(np.sqrt(np.sum((around * noise) ** 2)) / spread / (2 * np.pi)) if spread > 0 else np.inf
    return float(hz[0]), sd, float(phase[0])


def _coarse_image(kt: KtData) -> tuple[np.ndarray | None, float]:
    """Return (coil, voxel, t) of the centre of k-space, and the noise power of one sample (real part); None if absent.

    The points are weighted by a Hann window and their share of k-space. That they are sampled at slightly different
    times is left alone: to a voxel it is mostly a constant phase.
    """
    geometry = kt.protocol.geometry
    steps = kt.k * (np.array(geometry.fov_mm) * 1e-3)
    encoded = np.array(geometry.matrix) > 1
    radius = np.sqrt(np.sum(np.where(encoded, steps, 0.0) ** 2, axis=1))
    points = np.flatnonzero((radius < COARSE) & (kt.counts.min(axis=1) > 0))
    if len(points) < 3:
        return None, 0.0
    # a centre that weighs too much would show the whole head in each voxel, whose field is not that of its water
    if kt.grid is not None:
        density = np.ones(len(points))
    elif kt.density is not None:
        density = kt.density[points]
    else:
        density = sampling_density(kt.k[points], geometry)
    weight = density * (1 + np.cos(np.pi * radius[points] / COARSE)) / 2
    axes = [(np.arange(2 * COARSE) - COARSE) / (2 * COARSE) if n > 1 else np.zeros(1) for n in geometry.matrix]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    kernel = np.exp(2j * np.pi * places @ steps[points].T) * weight
    noise = float(np.sum(weight**2 / np.maximum(kt.counts[points].mean(axis=1), 1e-12)))
    return np.asarray(kernel @ _points(kt, points)), noise


def _near_zero(samples: np.ndarray, dwell_s: float, half_width_hz: float) -> np.ndarray:
    n = samples.shape[-1]
    spectrum = np.fft.fft(samples, 2 * n, axis=-1)
    gain = np.exp(-0.5 * (np.fft.fftfreq(2 * n, dwell_s) / (half_width_hz / 1.5)) ** 2)
    return np.asarray(np.fft.ifft(spectrum * gain, axis=-1)[..., :n])


def _point_energy(kt: KtData) -> np.ndarray:
    """Return the energy of the first samples of each point, (point,)."""
    few = to_numpy(kt.samples[:, :, : max(1, min(16, int(kt.samples.shape[2])))])
    return np.asarray(np.sum(np.abs(few) ** 2, axis=(0, 2)))


def _point_times(kt: KtData) -> np.ndarray:
    assert kt.acquired_s is not None
    return np.asarray(kt.acquired_s if kt.acquired_s.ndim == 1 else kt.acquired_s.mean(axis=1), dtype=float)


def _points(kt: KtData, points: np.ndarray) -> np.ndarray:
    xp = namespace(kt.samples)
    return to_numpy(xp.take(kt.samples, like(points, kt.samples, "int64"), axis=1)).astype(np.complex128)
