"""From the signals of a head to what the receiver gets: encoding, coils, imperfections of the hardware, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mrsi_gadgets.data import Protocol, Role
from mrsi_gadgets.phantom import signals
from mrsi_gadgets.phantom.encode import Signal, encode, encode_points
from mrsi_gadgets.phantom.encodings import Csi, Readout
from mrsi_gadgets.phantom.presets import Preset
from mrsi_gadgets.phantom.readouts import Pass
from mrsi_gadgets.phantom.receive import correlated_noise
from mrsi_gadgets.phantom.sources import Head, Parts, Source


def passes_of(preset: Preset, head: Head, source: Source) -> list[tuple[Pass, ...]]:
    """Return all passes of a scan without noise and imperfections; those of one group take turns shot by shot."""
    receive = _Receiver(preset, head)
    groups: list[tuple[Pass, ...]] = []
    if preset.cycling:
        water = receive(source.water)
        others = receive(source.all_but_water)
        counter = preset.encoding.edit_counter
        conditions = [(water + others, {counter: 0}), (water - others, {counter: 1})]
        groups.append(_group(preset, conditions, Role.METABOLITE, 0))
    else:
        if preset.has_water_reference:
            k = receive(source.water)
            groups.append(_group(preset, [(k, {"set": 1})], Role.WATER_REFERENCE, 0))
        echoes = preset.echo_times_s or (None,)
        measured = [
            (receive(source.suppressed, echo_time_s=te), {"contrast": number}) for number, te in enumerate(echoes)
        ]
        groups.append(_group(preset, measured, Role.METABOLITE, _shots_before(groups)))
    if preset.navigator_samples:
        fid = receive.navigator(source.water)
        groups = [(_navigators(preset, fid, group), *group) for group in groups]
    return groups


class _Receiver:
    """All coils of a preset around a head."""

    def __init__(self, preset: Preset, head: Head) -> None:
        self.preset, self.head = preset, head
        maps = head.box.cut(np.moveaxis(head.coil_maps, 0, -1)).T
        self.maps = np.ascontiguousarray(maps) * np.complex64(preset.receiver_gain)

    def __call__(self, parts: Parts, *, echo_time_s: float | None = None) -> np.ndarray:
        """Return the samples (coil, *point axes, t) of signals as every coil sees them."""
        preset, box = self.preset, self.head.box
        signal = self._signal(parts, preset.protocol_of(echo_time_s))
        if isinstance(preset.encoding, Csi):
            return encode(box, signal(0.0, preset.dwell_s, preset.n_times), self.maps, preset.n_times)
        points, voxel_mm = preset.encoding.points(preset), preset.geometry.voxel_mm
        return encode_points(box, voxel_mm, signal, self.maps, points, preset.dwell_s, preset.n_times)

    def navigator(self, parts: Parts) -> np.ndarray:
        """Return the first FID samples of everything together (coil, sample): k = 0 without encoding."""
        preset = self.preset
        signal = self._signal(parts, preset.protocol_of(None))(0.0, preset.dwell_s, preset.navigator_samples)
        return np.asarray(self.maps @ signal(slice(None)))

    def _signal(self, parts: Parts, protocol: Protocol) -> Signal:
        def at(start_s: float, step_s: float, count: int) -> Callable[[slice], np.ndarray]:
            delay = protocol.acquisition_delay_s + start_s
            sampled = replace(protocol, acquisition_delay_s=delay, dwell_s=step_s, n_times=count)
            there, field = parts(sampled), replace(self.head.field, times_s=sampled.times_s)
            return lambda times: signals.total(there, field, times)

        return at


def _shots_before(groups: Sequence[Sequence[Pass]]) -> int:
    return int(max((p.shots[-1] + 1 for group in groups for p in group), default=0))


def _group(
    preset: Preset, conditions: Sequence[tuple[np.ndarray, dict[str, int]]], role: Role, first_shot: int
) -> tuple[Pass, ...]:
    """Make the passes of samples that differ in a counter; excitation by excitation they take turns.

    Averages of one point and calibration readouts are passes of their own.
    """
    kinds: dict[tuple[bool, int], list[Readout]] = {}
    for readout in preset.encoding.readouts(preset, water=role is Role.WATER_REFERENCE):
        kinds.setdefault((not readout.calibration, readout.counters.get("average", 0)), []).append(readout)
    passes = []
    for turn, (k, counters) in enumerate(conditions):
        for number, (kind, found) in enumerate(sorted(kinds.items(), key=lambda item: item[0])):
            shots = np.array([readout.shot for readout in found]) * len(conditions) + turn + first_shot
            samples = k if number == len(kinds) - 1 else k.copy()
            passes.append(Pass(role if kind[0] else Role.CALIBRATION, samples, tuple(found), shots, counters))
    return tuple(passes)


def _navigators(preset: Preset, fid: np.ndarray, group: Sequence[Pass]) -> Pass:
    """One readout before each excitation of a group."""
    shots = np.unique(np.concatenate([p.shots for p in group]))
    samples = np.repeat(fid[:, None], len(shots), axis=1)
    readouts = tuple(Readout((i,), {}, i, preset.dwell_s) for i in range(len(shots)))
    return Pass(Role.NAVIGATOR, samples, readouts, shots, {})


def shots_of(of: Pass, preset: Preset) -> np.ndarray:
    """Excitation of each sample of a pass (*point axes, t or 1); -1 where nothing was acquired."""
    shape = of.samples.shape[1:]
    varies = any(len(readout.index) == len(shape) for readout in of.readouts)
    shots = np.full(shape if varies else (*shape[:-1], 1), -1.0)
    for readout, shot in zip(of.readouts, of.shots, strict=True):
        shots[readout.index] = shot
    return shots


def _row_times(of: Pass, preset: Preset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each row of a pass its time after the spectral points, its ADC dwell and its receiver phase."""
    rows = of.samples.shape[1]
    if of.role is Role.NAVIGATOR:
        return np.zeros(rows), np.full(rows, preset.dwell_s), np.zeros(rows)
    phase = preset.encoding.row_phase_rad(preset)
    tau, dwell = preset.encoding.points(preset).tau_s, preset.encoding.sample_times_s(preset)
    return tau, dwell, np.zeros(rows) if phase is None else phase


def disturb(of: Pass, shots: np.ndarray, preset: Preset, middle: float) -> None:
    """Turn the samples of a pass in place by the phases of hardware and drift; what was not acquired becomes zero.

    Parameters
    ----------
    of : the pass.
    shots : as `shots_of` gives them.
    preset : of the scan.
    middle : shot where the drift is zero: the middle of the first group of passes.
    """
    minutes = (shots - middle) * (preset.averaged * preset.repetition_time_s) / 60.0
    times = preset.protocol.times_s[: of.samples.shape[-1]]
    tau_s, _, receiver = _row_times(of, preset)
    for row, tau in enumerate(tau_s):
        own = times + tau
        phase = 2.0 * np.pi * preset.drift_hz_per_minute * minutes[row] * own + preset.eddy_phase_at(own)
        if receiver[row]:
            phase = phase + receiver[row]
        if preset.phase_drift_rad_per_minute:
            phase = phase + preset.phase_drift_rad_per_minute * minutes[row]
        of.samples[:, row] *= np.exp(1j * phase).astype(np.complex64)
        if np.any(shots[row] < 0):
            of.samples[:, row] *= shots[row] >= 0


def noise_scan(covariance: np.ndarray, preset: Preset, rng: np.random.Generator) -> np.ndarray:
    """Noise scan (coil, readout, sample).

    `covariance` is that of one csi sample, which lasts a spectral dwell; other samples have it in inverse proportion to
    their dwell and to the averages in them. The noise scan has as many averages, so that the ratio of the dwells alone
    tells what the noise of the data is.
    """
    shape = (preset.noise_readouts, preset.noise_samples)
    factor = preset.dwell_s / (preset.noise_dwell_s * preset.averaged)
    return correlated_noise(covariance / 2.0 * factor, shape, rng)


def add_noise(of: Pass, shots: np.ndarray, covariance: np.ndarray, preset: Preset, rng: np.random.Generator) -> None:
    """Add noise to the acquired samples of a pass in place; `covariance` as for `noise_scan`."""
    _, dwell, _ = _row_times(of, preset)
    for row, factor in enumerate(preset.dwell_s / (dwell * preset.averaged)):
        noise = correlated_noise(covariance / 2.0 * factor, of.samples.shape[2:], rng)
        of.samples[:, row] += noise if np.all(shots[row] >= 0) else noise * (shots[row] >= 0)


def scan_times(preset: Preset, groups: Sequence[Sequence[Pass]]) -> dict[str, object]:
    """Return excitations, ADC time of the samples that count and duration of each scan, and more for the card."""
    facts: dict[str, object] = {
        "averages_per_readout": preset.averaged, "density_factor": preset.encoding.density_factor(preset),
    }  # fmt: skip
    for role in (Role.WATER_REFERENCE, Role.METABOLITE):
        passes = [p for group in groups for p in group if p.role is role]
        if not passes:
            continue
        shots = len(np.unique(np.concatenate([p.shots for p in passes])))
        adc = sum(p.samples[(0, *r.index)].size * r.sample_time_s for p in passes for r in p.readouts)
        facts[role.value] = {
            "excitations": shots * preset.averaged, "adc_s": adc * preset.averaged,
            "duration_s": shots * preset.averaged * preset.repetition_time_s,
        }  # fmt: skip
    return facts
