"""Drift within one frame of spirals, which come back to the centre of k-space, against a course that was put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from every_encoding import measured

from mrsi_gadgets.data import Role
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.correct_drift import CorrectDrift
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.presets import find_preset
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.reconstruction.centre_drift import drift_from_centre
from mrsi_gadgets.reconstruction.drift import correct_drift, reference_time

ARMS, MINUTE = 10, 60.0


def drifting(m, *, hz_per_arm, phase_per_arm=0.0, per_sample=False):
    """Return the data as a magnet makes them that drifts from arm to arm, and the course (arm,) [Hz]."""
    arm = np.arange(m.kt.k.shape[0]) // (m.kt.k.shape[0] // ARMS)
    turn = np.exp(1j * (2 * np.pi * hz_per_arm * arm[:, None] * m.kt.t + phase_per_arm * arm[:, None]))
    acquired = MINUTE * arm
    if per_sample:
        acquired = np.broadcast_to(acquired[:, None], m.kt.t.shape)
    samples = (m.kt.samples * turn).astype(np.complex64)
    return replace(m.kt, samples=samples, acquired_s=acquired.astype(float))


@pytest.mark.parametrize("per_sample", [False, True])
def test_each_arm_of_a_spiral_is_its_own_navigator(per_sample, rng):
    m = measured("spiral", rng, noise=0.01)
    kt = drifting(m, hz_per_arm=0.5, phase_per_arm=-0.04, per_sample=per_sample)
    course = drift_from_centre(kt, noise_sd=m.noise_sd)
    hz, phase = course.at(MINUTE * np.arange(ARMS))
    zero = reference_time(kt) / MINUTE
    np.testing.assert_allclose(hz, 0.5 * (np.arange(ARMS) - zero), atol=0.15)
    np.testing.assert_allclose(phase, -0.04 * (np.arange(ARMS) - zero), atol=0.02)
    before, after = (np.linalg.norm(d.samples - m.kt.samples) for d in (kt, correct_drift(kt, course.zero_at(0.0))))
    assert after < 0.1 * before


def test_a_small_drift_is_told_and_none_is_invented(rng):
    m = measured("spiral", rng, noise=0.01)
    assert drift_from_centre(drifting(m, hz_per_arm=0.0), noise_sd=m.noise_sd) is None
    course = drift_from_centre(drifting(m, hz_per_arm=0.04), noise_sd=m.noise_sd)
    assert course.source == "centre of k-space"
    assert course.range_hz(MINUTE * np.arange(ARMS)) == pytest.approx(0.36, abs=0.15)


def test_data_that_do_not_come_back_to_the_centre_tell_nothing(rng):
    rings, csi = (measured(kind, rng) for kind in ("rings", "csi"))
    for m in (rings, csi):
        kt = replace(m.kt, acquired_s=np.arange(float(m.kt.k.shape[0])))
        assert drift_from_centre(kt) is None
    spiral = measured("spiral", rng)
    assert drift_from_centre(spiral.kt) is None
    at_once = replace(drifting(spiral, hz_per_arm=1.0), acquired_s=np.zeros(spiral.kt.k.shape[0]))
    assert drift_from_centre(at_once) is None


def test_noise_alone_is_no_course(rng):
    m = measured("spiral", rng)
    noise = rng.standard_normal((*m.kt.samples.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    kt = replace(drifting(m, hz_per_arm=0.0), samples=noise)
    assert drift_from_centre(kt) is None


def test_the_chain_takes_the_drift_out_of_water_and_metabolites_of_a_spiral_scan():
    still = replace(find_preset("spiral16"), n_times=64, drift_hz_per_minute=0.0)
    moved = replace(still, drift_hz_per_minute=2.0)
    found = {}
    for name, preset, source in (("still", still, "none"), ("moved", moved, "none"), ("taken out", moved, "auto")):
        scan = simulate(preset, seed=3, snr=np.inf)
        header = parse_header(scan.header_xml)
        context = Context(protocol=read_protocol(header))
        items = Prewhiten().process(
            sort_readouts(scan.acquisitions, context.protocol, context.report, header), context
        )  # fmt: skip
        found[name] = {item.role: item for item in CorrectDrift(source=source).process(items, context)}
    told = context.report.provenance["drift"]
    assert told["source"] == "centre of k-space"
    # from the first to the last of six arms
    minutes = 5 * moved.averaged * moved.repetition_time_s / 60
    assert told["frames"]["0"]["moved_hz"] == pytest.approx(2.0 * minutes, rel=0.02)
    for role in (Role.WATER_REFERENCE, Role.METABOLITE):
        wanted, before, after = (found[name][role].samples for name in ("still", "moved", "taken out"))
        # a frequency that both have is not drift within the frame: field map and shared shift find it
        shared = np.exp(-2j * np.pi * np.linspace(-12, 12, 241)[:, None, None] * found["still"][role].t[:8])
        left, there = (
            min(np.linalg.norm(samples[:, ::40] * turn[:1] - wanted[:, ::40]) for turn in shared)
            for samples in (after, before)
        )
        assert left < 0.15 * there
