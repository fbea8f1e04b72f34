"""B0, coil maps, mask and phase from the water signal.

The water FID of a voxel with the field distribution p(f) is s(t) = A exp(i phi) INT p(f) exp(i 2 pi f t) df. The slope
of its phase at t = 0 is the water-weighted mean of f, whatever the shape of p; a line through later times is not
(skewed distributions bend the phase). So the phase is fitted early, with an odd cubic term for the skewness, on the
matched combination of the channels. Eddy currents add one phase course psi(t) that all voxels share; it is found from
what is left of the phase after each voxel's own line, with the convention that it has died away at late times.

The reference's frequency is water's: a constant offset of water itself (temperature, an offset of the synthesiser)
cannot be told from B0 here and is part of `b0_hz`. Metabolite fits search one shift that all voxels share for this
reason.

Other nuclei than protons have no water reference. Their strongest line, phosphocreatine or the water that deuterium
shows, takes its place (`field_map_from_strongest_line`). It is weak: its phase in single samples is lost in noise, so
the frequency is the top of the matched-filter spectrum |SUM_t s(t) w(t) exp(-i 2 pi f t)|, w the usual decay, the
maximum-likelihood estimate of one damped line in white noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mrsi_gadgets.arrays import Array, ifftn, is_numpy, like, namespace, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.encoding import grid_times
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift
from mrsi_gadgets.reconstruction.coils import coil_maps_from_water, continue_smoothly, dominant_channels
from mrsi_gadgets.reconstruction.fourier import demodulate, image_noise_sd, matched_image
from mrsi_gadgets.reconstruction.gridding import alias_free, on_grid

FIT_WINDOW_S = 0.02
"""Phase and decay are fitted up to here [s]: long against the noise, short against intravoxel dephasing."""
_LINE_S, _LINE_NODES = 0.1, 40
"""Up to where lines of water are kept [s], and at how many times."""
EDDY_TIME_CONSTANTS_S = (0.002, 0.08)
"""Range of the shared phase course's time constant [s]: shorter is over before the first sample, longer is a field."""
WATER_BAND_PPM = 0.5
"""Half width of the band that residual water, or the strongest line of another nucleus, is taken from [ppm]."""
_FREQUENCY_STEP_HZ = 0.5
"""Largest step of a matched-filter spectrum; a parabola finds the rest."""
_CHANNEL_TIMES = 24
"""So many times of a weak line's life tell its channels."""
_LEAST_SNR = 5.0
"""A line's amplitude over its deviation from which on a voxel is trusted."""
_LEAST_SHARE = 0.3
"""Least part of the early signal that has to lie in that band."""


@dataclass(frozen=True, eq=False)
class WaterLine:
    """How each voxel's water goes on in time, its frequency and the eddy currents taken out."""

    times_s: np.ndarray
    """(node,) [s]: middles of the intervals over which it is averaged."""
    signal: np.ndarray
    """(x, y, z, node) complex64 in the unit of SpectralImage."""


@dataclass(frozen=True, eq=False)
class FieldMap:
    """What the water signal says about field, coils and anatomy."""

    b0_hz: np.ndarray
    """(x, y, z) float32 [Hz]: frequency of water, continued smoothly where there is none."""
    coil_maps: np.ndarray
    """(coil, x, y, z) complex64, sum of |S|^2 = 1, phase of the water at t = 0."""
    water: np.ndarray | None
    """(x, y, z) float32: water amplitude at t = 0 in the unit of SpectralImage; None without a water reference."""
    mask: np.ndarray
    """(x, y, z) bool: enough water to trust all this."""
    eddy_phase: np.ndarray
    """(t,) float64 [rad]: phase course that all voxels share, at `times_s`; zeros where not estimated."""
    times_s: np.ndarray
    """(t,) [s]: times of `eddy_phase`."""
    source: str
    """Where it came from: ``water reference``, ``residual water`` or ``line at ... ppm``."""
    line: WaterLine | None = None
    """The reference's lines; None without a water reference."""

    def eddy_phase_at(self, times_s: np.ndarray) -> np.ndarray:
        """Return the eddy-current phase [rad] at other times (linear between, constant beyond)."""
        return np.interp(times_s, self.times_s, self.eddy_phase)


def correct_eddy_currents(kt: KtData, field_map: FieldMap, *, overwrite: bool = False) -> KtData:
    """Return the data without the phase course of the eddy currents, which all voxels and so all of k-space share.

    Each sample is turned by the phase at its own time.

    With `overwrite` NumPy samples are changed in place.
    """
    times = kt.t[:1] if kt.common_times else kt.t
    phase = like(np.exp(-1j * field_map.eddy_phase_at(times)), kt.samples, kt.samples.dtype)
    if overwrite and is_numpy(kt.samples):
        return kt.with_samples(np.multiply(kt.samples, phase, out=kt.samples))
    return kt.with_samples(kt.samples * phase)


def field_map_from_water(kt: KtData, *, eddy_currents: bool = True, noise_sd: float = 1.0) -> FieldMap:
    """Return the field map of an unsuppressed water reference.

    Parameters
    ----------
    kt
        Whitened water reference of any encoding, on the image grid of the metabolites.
    eddy_currents
        Whether to look for a phase course that all voxels share.
    noise_sd
        SD of the real part of the noise of one sample (1 for whitened data).

    Raises
    ------
    DataError
        The centre of k-space was not acquired, or the reference has fewer than four times or holds no water.

    Notes
    -----
    Readouts that were not acquired (an elliptical k-space) count as zeros.
    """
    _check_centre(kt)
    kt = on_grid(kt)
    times = grid_times(kt)
    if len(times) < 4:
        raise DataError(f"the water reference has {len(times)} time points; at least 4 are needed for a field map")
    early = _early_images(kt, times)
    channels = dominant_channels(early)
    fids = to_numpy(matched_image(kt, channels)).astype(np.complex64)
    mask = _water_mask(fids, image_noise_sd(kt, channels, noise_sd), alias_free(kt))
    b0, eddy = _frequency_and_eddy_phase(fids, times, mask, eddy_currents=eddy_currents)
    fids = fids * np.exp(-1j * eddy).astype(np.complex64)
    amplitude, phase = _value_at_zero(fids, times, b0)
    at_zero = channels * (amplitude * np.exp(1j * phase))[None]
    quality = np.where(mask, amplitude**2, 0)
    return FieldMap(
        b0_hz=_continue_field(b0, quality, mask),
        coil_maps=coil_maps_from_water(at_zero, mask),
        water=amplitude.astype(np.float32),
        mask=mask,
        eddy_phase=eddy,
        times_s=times,
        source="water reference",
        line=_water_line(fids, times, b0),
    )


def field_map_from_residual_water(kt: KtData, *, noise_sd: float = 1.0) -> FieldMap:
    """Return a field map from the water that suppression left in metabolite data.

    The FIDs are filtered to within 0.5 ppm of water. Channels are the dominant singular vector of each voxel. Residual
    water is distorted by its suppression: its phase at t = 0 need not be the metabolites', and there is no water
    amplitude.

    Parameters
    ----------
    kt
        Whitened metabolite data of any encoding.
    noise_sd
        SD of the real part of the noise of one sample (1 for whitened data).

    Raises
    ------
    DataError
        There are too few times, or no signal near the water frequency.
    """
    kt = on_grid(kt)
    times = grid_times(kt)
    if len(times) < 16:
        raise DataError(f"the data have {len(times)} time points; at least 16 are needed to find residual water")
    all_times = times
    half_width = WATER_BAND_PPM * kt.protocol.transmit_frequency_hz * 1e-6
    filtered = _without_start(
        kt.with_samples(_low_pass(kt.samples, float(times[1] - times[0]), half_width)), half_width
    )
    times = grid_times(filtered)
    early = _early_images(filtered, times)
    channels = dominant_channels(early)
    fids = to_numpy(matched_image(filtered, channels)).astype(np.complex64)
    mask = _water_mask(fids, image_noise_sd(filtered, channels, noise_sd), alias_free(kt))
    _check_residual_water(kt, filtered, channels, fids, mask)
    b0, _ = _frequency_and_eddy_phase(fids, times, mask, eddy_currents=False)
    amplitude, phase = _value_at_zero(fids, times, b0)
    return FieldMap(
        b0_hz=_continue_field(b0, np.where(mask, amplitude**2, 0), mask),
        coil_maps=coil_maps_from_water(channels * (amplitude * np.exp(1j * phase))[None], mask),
        water=None,
        mask=mask,
        eddy_phase=np.zeros(len(all_times)),
        times_s=all_times,
        source="residual water",
    )


def field_map_from_strongest_line(kt: KtData, ppm: float, *, t2_star_s: float, noise_sd: float = 1.0) -> FieldMap:
    """Return a field map from one line of metabolite data that hold no water signal of their own.

    Parameters
    ----------
    kt
        Whitened metabolite data of any encoding.
    ppm
        Shift of the line (`physics.nucleus.Nucleus.calibration_ppm`): phosphocreatine of 31P, water of 2H.
    t2_star_s
        Its usual T2* [s], lineshape included (`physics.nucleus.calibration_line` has both): how much of the FID counts.
    noise_sd
        SD of the real part of the noise of one sample (1 for whitened data).

    Raises
    ------
    DataError
        There are too few times, or the line does not stand out of the noise.
    """
    kt = on_grid(kt)
    all_times = grid_times(kt)
    if len(all_times) < 16:
        raise DataError(f"the data have {len(all_times)} time points; at least 16 are needed to find a line")
    dwell = float(all_times[1] - all_times[0])
    half_width = WATER_BAND_PPM * kt.protocol.transmit_frequency_hz * 1e-6
    turn = np.exp(-2j * np.pi * float(kt.protocol.hz(ppm)) * np.asarray(kt.t))
    centred = kt.with_samples(kt.samples * like(turn, kt.samples, kt.samples.dtype))
    band = _without_start(centred.with_samples(_low_pass(centred.samples, dwell, half_width)), half_width)
    times = grid_times(band)
    weight = np.exp(-times / t2_star_s)
    channels = dominant_channels(_weighted_images(band, times, weight, t2_star_s))
    fids = to_numpy(matched_image(band, channels)).astype(np.complex64)
    b0 = _matched_frequency(fids, times, weight, half_width)
    flat = np.sum(fids * np.exp(-2j * np.pi * b0[..., None] * times) * weight, axis=-1) / np.sum(weight**2)
    # noise of the band's samples is correlated, but the sum weighs a band far narrower, where it is that of the samples
    sd = image_noise_sd(kt, channels, noise_sd) / np.sqrt(np.sum(weight**2))
    size = np.abs(flat)
    possible = alias_free(kt)
    bright = float(np.percentile(size[possible], 95))
    mask = possible & (size > np.maximum(0.1 * bright, _LEAST_SNR * sd))
    if not mask.any():
        raise DataError(
            f"the line at {ppm:g} ppm does not stand out of the noise, so field and coils cannot be known; check "
            "mrsi_reference_ppm, or acquire more averages"
        )
    mask = np.asarray(_without_specks(mask))
    return FieldMap(
        b0_hz=_continue_field(b0, np.where(mask, size**2, 0), mask),
        coil_maps=coil_maps_from_water(channels * flat[None], mask),
        water=None,
        mask=mask,
        eddy_phase=np.zeros(len(all_times)),
        times_s=all_times,
        source=f"line at {ppm:g} ppm",
    )


def _water_line(fids: np.ndarray, times: np.ndarray, b0: np.ndarray) -> WaterLine:
    """Return lines at a few nodes, each the mean over an interval of the signal with its frequency taken out."""
    used = max(1, int(np.sum(times <= _LINE_S)))
    step = -(-used // _LINE_NODES)
    nodes = used // step
    flat = demodulate(fids[..., : nodes * step], b0, times[: nodes * step])
    means = flat.reshape(*fids.shape[:3], nodes, step).mean(axis=-1)
    return WaterLine(times[: nodes * step].reshape(nodes, step).mean(axis=1), means.astype(np.complex64))


def _early_images(kt: KtData, times: np.ndarray) -> np.ndarray:
    """Return (coil, x, y, z, few times) around the start, where the water is strongest."""
    n_early = max(1, min(int(np.sum(times - times[0] < 0.005)), 8))
    few = kt.dense[..., :n_early]
    shape = tuple(int(n) for n in few.shape)
    fourier = Fourier(shape, first_axis=1, shift=half_voxel_shift(kt.protocol.geometry))
    return to_numpy(fourier.H(few)) / np.sqrt(np.prod(shape[1:4]))


def _check_centre(kt: KtData) -> None:
    """Refuse a reference without the readout that holds most of its signal: what is left is no image."""
    centre = int(np.argmin(np.sum(kt.k**2, axis=1)))
    if not kt.counts[centre].any():
        raise DataError(
            "the water reference lacks the centre of k-space; acquire it again, or leave it out so that residual water "
            "serves"
        )


def _check_residual_water(
    kt: KtData, filtered: KtData, channels: np.ndarray, fids: np.ndarray, mask: np.ndarray
) -> None:
    """Refuse what the filter let pass where that is only a small part of the signal: then it is no water."""
    start = grid_times(kt).searchsorted(grid_times(filtered)[0])
    whole = _part_of_times(kt, slice(start, None))
    count = max(2, fids.shape[-1] // 32)
    few = [_part_of_times(d, slice(0, count)) for d in (whole, filtered)]
    everything, near_water = (np.abs(to_numpy(matched_image(d, channels)))[mask].mean() for d in few)
    if near_water < _LEAST_SHARE * everything:
        raise DataError(
            "no residual water stands out of the other signals and there is no water reference, so field and coils "
            "cannot be known; acquire a water reference"
        )


def _water_mask(fids: np.ndarray, noise_sd: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Return where the early signal stands out of the noise and is at least a tenth of the bright voxels'."""
    n_early = max(2, fids.shape[-1] // 32)
    size = np.sqrt(np.mean(np.abs(fids[..., :n_early]) ** 2, axis=-1))
    bright = float(np.percentile(size, 95))
    # twice the real part's SD squared is the noise's power in |fid|^2; the mean of a few points exceeds it by little
    mask = _without_specks(possible & (size > np.maximum(0.1 * bright, 4 * np.sqrt(2) * noise_sd)))
    if not mask.any() or not bright > 0:
        raise DataError(
            "no water signal stands out of the noise, so no field map can be made; check the water reference"
        )
    return np.asarray(mask)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Drop pieces smaller than a quarter of the largest: side lobes of the point spread in the corners, not anatomy."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= max(1.0, sizes.max() / 4))[labels])


def _frequency_and_eddy_phase(
    fids: np.ndarray, times: np.ndarray, mask: np.ndarray, *, eddy_currents: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return each voxel's frequency (x, y, z) [Hz] and the shared phase course (t,) [rad]."""
    frequency = _fit_frequency(fids, times)
    eddy = np.zeros(len(times))
    if not eddy_currents or len(times) < 32:
        return frequency, eddy
    for _ in range(3):
        residual = demodulate(fids, frequency, times) * np.exp(-1j * eddy).astype(np.complex64)
        # each voxel's own phase goes out by its early value, weighted by its own power there
        anchor = np.mean(residual[..., : max(2, int(np.sum(times - times[0] < 0.005)))], axis=-1, keepdims=True)
        shared = np.sum((residual * np.conj(anchor))[mask], axis=0)
        eddy = eddy + _decaying_phase(shared, times)
        frequency = _fit_frequency(fids * np.exp(-1j * eddy).astype(np.complex64), times)
    return frequency, eddy


def _decaying_phase(shared: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Fit the phase of `shared` by a + b t + c exp(-t / tau); return the exponential, zero at t = infinity.

    tau is searched; two exponentials beside a line would trade against each other and against the field.
    """
    weight = np.abs(shared) / np.abs(shared).max()
    used = np.logical_and.accumulate(weight > 0.03)
    if used.sum() < 16:
        return np.zeros(len(times))
    phase = np.unwrap(np.angle(shared[used]))
    w, t = weight[used], times[used]
    best, course = np.inf, np.zeros(len(times))
    for tau in np.geomspace(*EDDY_TIME_CONSTANTS_S, 40):
        decay = np.exp(-times / tau)
        columns = np.stack([np.ones(len(t)), t / t[-1], decay[used]], axis=1) * w[:, None]
        solution, *_ = np.linalg.lstsq(columns, phase * w, rcond=1e-6)
        misfit = float(np.sum((columns @ solution - phase * w) ** 2))
        if misfit < best:
            best, course = misfit, decay * solution[2]
    return course


def _fit_frequency(fids: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the slope of the phase at t = 0 over 2 pi, (x, y, z) [Hz]."""
    window = max(4, int(np.sum(times - times[0] < FIT_WINDOW_S)))
    early, t = fids[..., :window], times[:window]
    dwell = float(t[1] - t[0])
    power = np.abs(early) ** 2
    first = np.angle(np.sum(early[..., 1:] * np.conj(early[..., :-1]), axis=-1)) / (2 * np.pi * dwell)
    flat = demodulate(early, first, t)
    # noise and weak late points have little weight, so that unwrapping errors there do not count
    phase = np.unwrap(np.angle(flat), axis=-1)
    weight = power / np.maximum(power.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    scaled = t / t[-1]
    columns = np.stack([np.ones(window), scaled, scaled**3], axis=1)
    slope = _weighted_fit(columns, weight, phase)[..., 1]
    return np.asarray(first + slope / (2 * np.pi * t[-1]))


def _weighted_fit(columns: np.ndarray, weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Solve min_a sum_t w(r,t) |values(r,t) - columns(t,:) a(r)|^2 in every voxel, (..., column)."""
    normal = np.einsum("...t,ti,tj->...ij", weight, columns, columns)
    right = np.einsum("...t,ti->...i", weight * values, columns)
    ridge = 1e-9 * np.trace(normal, axis1=-2, axis2=-1)[..., None, None] + np.finfo(np.float64).tiny
    return np.linalg.solve(normal + ridge * np.eye(columns.shape[1]), right[..., None])[..., 0]


def _value_at_zero(fids: np.ndarray, times: np.ndarray, b0_hz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return amplitude and phase of each voxel's signal extrapolated to t = 0, each (x, y, z)."""
    window = max(4, int(np.sum(times - times[0] < FIT_WINDOW_S)))
    t = times[:window]
    flat = demodulate(fids[..., :window], b0_hz, t)
    start = flat[..., :1]
    phase = np.angle(flat * np.conj(start))
    weight = np.abs(flat) ** 2
    weight = weight / np.maximum(weight.max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    scaled = t / t[-1]
    # the cubic is the skewness the frequency fit allowed for; log |s| of a symmetric line falls with t and t^2
    offset = _weighted_fit(np.stack([np.ones(window), scaled**3], axis=1), weight, phase)[..., 0]
    size = np.log(np.maximum(np.abs(flat), np.finfo(np.float32).tiny))
    top = _weighted_fit(np.stack([np.ones(window), scaled, scaled**2], axis=1), weight, size)[..., 0]
    return np.exp(top), np.angle(start[..., 0]) + offset


def _continue_field(b0: np.ndarray, quality: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Keep the field inside the mask and continue it smoothly beyond; weak voxels lean on their neighbours."""
    weight = np.minimum(quality / np.median(quality[mask]), 1.0)
    smooth = continue_smoothly(np.where(mask, b0, 0.0), weight, width=0.7)
    # a voxel with a tenth of the median amplitude is still fitted to well below 1 Hz; below that smoothing helps
    trust = np.where(mask, weight / (weight + 1e-3), 0.0)
    return (trust * b0 + (1 - trust) * smooth).astype(np.float32)


def _weighted_images(kt: KtData, times: np.ndarray, weight: np.ndarray, t2_star_s: float) -> np.ndarray:
    """Return (coil, x, y, z, few times) over the life of the line, weighted with its decay."""
    last = max(2, int(np.sum(times - times[0] < t2_star_s)))
    step = max(1, last // _CHANNEL_TIMES)
    some = slice(0, last, step)
    few = kt.dense[..., some]
    fourier = Fourier(tuple(int(n) for n in few.shape), first_axis=1, shift=half_voxel_shift(kt.protocol.geometry))
    return to_numpy(fourier.H(few)) * weight[some] / np.sqrt(np.prod(few.shape[1:4]))


def _matched_frequency(fids: np.ndarray, times: np.ndarray, weight: np.ndarray, reach_hz: float) -> np.ndarray:
    """Return the top of each voxel's matched-filter spectrum within `reach_hz` of 0, (x, y, z) [Hz]."""
    dwell = float(times[1] - times[0])
    n = 1 << int(np.ceil(np.log2(1 / (dwell * _FREQUENCY_STEP_HZ))))
    power = np.abs(np.fft.fft(fids * weight, max(n, len(times)), axis=-1)) ** 2
    hz = np.fft.fftfreq(power.shape[-1], dwell)
    order = np.argsort(hz)
    within = order[np.abs(hz[order]) <= reach_hz]
    power, hz = power[..., within], hz[within]
    best = np.clip(np.argmax(power, axis=-1), 1, len(hz) - 2)
    left, top, right = (np.take_along_axis(power, (best + d)[..., None], -1)[..., 0] for d in (-1, 0, 1))
    curved = left - 2 * top + right
    offset = np.where(curved < 0, 0.5 * (left - right) / np.where(curved < 0, curved, 1), 0)
    return hz[best] + np.clip(offset, -0.5, 0.5) * (hz[1] - hz[0])


def _without_start(kt: KtData, half_width_hz: float) -> KtData:
    """Leave out the first samples, which the filter has mixed with the nothing before the FID.

    The filter's response in time is a Gaussian of SD 1.5 / (2 pi half width); two of them are left out.
    """
    times = grid_times(kt)
    start = min(int(np.sum(times - times[0] < 3 / (2 * np.pi * half_width_hz))), len(times) // 4)
    return _part_of_times(kt, slice(start, None))


def _part_of_times(kt: KtData, times: slice) -> KtData:
    count = kt.count if kt.count.ndim == 1 else kt.count[:, times]
    return replace(kt, samples=kt.samples[:, :, times], t=kt.t[:, times], count=count, acquired_s=None)


def _low_pass(samples: Array, dwell_s: float, half_width_hz: float) -> Array:
    """Return the samples' part within `half_width_hz` of 0 Hz, with a Gaussian edge."""
    xp = namespace(samples)
    n = int(samples.shape[-1])
    # mirrored continuation would be wrong for FIDs; zero filling to twice the length keeps the end from the start
    padded = xp.concat([samples, xp.zeros_like(samples)], axis=-1)
    spectrum = xp.fft.fft(padded, axis=-1)
    gain = np.exp(-0.5 * (np.fft.fftfreq(2 * n, dwell_s) / (half_width_hz / 1.5)) ** 2)
    spectrum = spectrum * like(gain, spectrum, spectrum.dtype)
    return ifftn(spectrum, (spectrum.ndim - 1,))[..., :n] * (1 / np.sqrt(2 * n))
