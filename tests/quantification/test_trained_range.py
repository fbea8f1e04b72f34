"""A scan is compared with what a learned model was trained for: widths, SNR, shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Map, Maps
from mrsi_gadgets.quantification.preparation import usual_model
from mrsi_gadgets.quantification.trained_range import TrainedRange, compare, voigt_width, whole_widths
from small_model import PROTOCOL

CARD = {
    "ensemble": {
        "broadening_ppm": [0.0, 0.08], "lorentzian_hz": [0.0, 2.0], "common_shift_hz_sd": 1.0, "t2_star_sd": 0.2,
        "lineshapes": None,
    },
    "valid": {"peak_snr": [4.0, 90.0]},
}  # fmt: skip
SAID = {"what": "the networks of model 'x'", "remedy": "take varpro"}


@pytest.fixture(scope="module")
def model():
    return usual_model(replace(PROTOCOL, geometry=Geometry((3, 4, 5), (30.0, 40.0, 50.0))))


def scan(model, *, width: float, snr: float = 20.0, shift: float = 0.3, lipids: float = 0.1):
    """Maps of a scan whose values scatter by a tenth about these, and the widths of its voxels."""
    mask = np.ones((3, 4, 5), bool)
    mask[0, 0, 0] = False
    scatter = 1 + 0.1 * np.random.default_rng(4).standard_normal((4, 3, 4, 5))
    values = {"linewidth": width, "snr": snr, "shift": shift, "lipids": lipids}
    maps = {
        name: Map(np.where(mask, value * s, np.nan).astype(np.float32), "")
        for (name, value), s in zip(values.items(), scatter, strict=True)
    }
    found = Maps(maps, mask, np.zeros(mask.shape, np.float32), model.protocol)
    return found, maps["linewidth"].value[mask].astype(float)


def test_the_widest_line_of_training_follows_from_the_card(model):
    trained = TrainedRange.of(CARD, model)
    own = model.design.rates[0] / np.pi * np.exp(0.4)
    gauss = 0.08 * 123.25
    assert trained.widest_hz == pytest.approx(voigt_width(own + 2.0, gauss))
    assert gauss < trained.widest_hz < gauss + own + 2.0
    assert (trained.snr, trained.shift_hz) == ((4.0, 90.0), 3.0)
    assert TrainedRange.of(CARD, model, least_shift_hz=2.0).shift_hz == 6.0
    measured = {**CARD, "ensemble": {**CARD["ensemble"], "lineshapes": {"voxels": 7}}}
    assert TrainedRange.of(measured, model).widest_hz is None
    assert TrainedRange.of({"ensemble": 5, "valid": {"peak_snr": ["a", None]}}, model) == TrainedRange(None, None, None)


def test_a_scan_within_is_not_told_but_kept(model):
    maps, widths = scan(model, width=5.0)
    told, sentence = compare(maps, TrainedRange.of(CARD, model), widths, **SAID)
    assert sentence == ""
    assert told["linewidth_hz"]["median"] == pytest.approx(5.0, abs=0.3)
    assert told["linewidth_hz"]["p95"] == pytest.approx(5.8, abs=0.5)
    assert told["snr"]["trained"] == [4.0, 90.0]
    assert told["shift_hz"]["trained_to"] == 3.0


def test_lines_twice_as_wide_as_trained_are_told_with_numbers_and_what_to_do(model):
    trained = TrainedRange.of(CARD, model)
    maps, widths = scan(model, width=2 * trained.widest_hz)
    told, sentence = compare(maps, trained, widths, **SAID)
    assert told["linewidth_hz"]["median"] > 1.9 * trained.widest_hz
    assert sentence.startswith("this scan is not like those that the networks of model 'x' know: its lines are ")
    assert f"{told['linewidth_hz']['median']:.1f} Hz wide" in sentence
    assert f"training went up to {trained.widest_hz:.1f} Hz" in sentence
    assert sentence.endswith("; take varpro")


def test_a_few_wide_lines_are_no_news_where_a_gate_marks_them_but_most_are(model):
    trained = TrainedRange.of(CARD, model)
    maps, widths = scan(model, width=5.0)
    widths[:6] = trained.widest_hz + 2
    found = [bool(compare(maps, trained, widths, judged=judged, **SAID)[1]) for judged in (False, True)]
    assert found == [True, False]
    widths[:40] = trained.widest_hz + 2
    assert compare(maps, trained, widths, judged=True, **SAID)[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"snr": 2.0}, "its SNR is 2.0 (median; 95th percentile 2."),
        ({"snr": 300.0}, "and training went up to 90"),
        ({"shift": 9.0}, "its lines lie 9."),
    ],
)
def test_other_snr_and_shifts_are_told(model, changes, told):
    maps, widths = scan(model, width=5.0, **changes)
    assert told in compare(maps, TrainedRange.of(CARD, model), widths, **SAID)[1]


def test_scalp_noise_and_a_few_voxels_do_not_make_an_alarm(model):
    trained = TrainedRange.of(CARD, model)
    maps, widths = scan(model, width=5.0)
    # a third of the voxels is scalp, another third noise, whose lines may have any width
    wild = np.arange(len(widths)) % 3 > 0
    for name, value, third in (("lipids", 7.0, 1), ("snr", 1.0, 2)):
        there = np.zeros(maps.mask.shape, bool)
        there[maps.mask] = np.arange(len(widths)) % 3 == third
        maps.maps[name].value[there] = value
    widths[wild] = 60.0
    assert compare(maps, trained, widths, **SAID)[1] == ""
    inside = np.flatnonzero(~wild)
    widths[inside[:2]] = 60.0
    assert compare(maps, trained, widths, **SAID)[1] != ""


def test_the_width_of_the_field_counts_for_a_manifold():
    model = usual_model(replace(PROTOCOL, n_times=384))
    times = model.dictionary.expansion.node_times_s
    # a Gaussian field of 12 Hz full width
    field = np.exp(-((np.pi * 12.0 * times) ** 2) / (4 * np.log(2)))[None, :].astype(np.complex64)
    narrow, wide = (whole_widths(np.array([5.0]), f, model)[0] for f in (np.ones_like(field), field))
    assert narrow == pytest.approx(5.0)
    assert wide == pytest.approx(voigt_width(5.0, 12.0), rel=0.06)
