"""Scans that are not what they should be: a result that states its limitation, or a refusal in one sentence.

One test for each row of docs/reference/degraded-scans.md that is about the data; aborted scans and dead processes are
in tests/server.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.meta import from_xml, values_of
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.replay import ReplayResult
from mrsi_gadgets.stream.messages import Acquisition
from small_scan import SmallScan, small_scan

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "degraded-scans.md"


@pytest.fixture
def scan() -> SmallScan:
    return small_scan()


@pytest.fixture(scope="module")
def whole() -> ReplayResult:
    return run(small_scan())


def run(scan: SmallScan, recipe: str = "fourier") -> ReplayResult:
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe=recipe, device="cpu"))


def naa(result: ReplayResult) -> np.ndarray:
    found = gather(result.images)
    return found.maps["tNAA"].frames[0][found.mask[0]]


def assert_stated(result: ReplayResult, *words: str, late: bool = False) -> None:
    """The limitation is in the summary and in each image that leaves, unless it came `late`, after the images."""
    warnings = [warning for warning in result.summary["warnings"] if all(word in warning for word in words)]
    assert len(warnings) == 1, result.summary["warnings"]
    for image in () if late else result.images:
        assert warnings[0] in values_of(from_xml(image.attributes), "mrsi_warnings")


@pytest.mark.parametrize("recipe", ["fourier", "subspace"])
def test_a_few_missing_readouts_are_stated_with_their_number(scan, recipe):
    kept = [r for i, r in enumerate(scan.metabolites) if i not in (3, 20, 44)]
    result = run(scan.with_readouts(scan.noise + scan.water + kept), recipe)
    assert_stated(result, "3 of 48 k-space samples of metabolite were not acquired and are zero")
    assert np.median(naa(result)) == pytest.approx(np.median(naa(run(scan, recipe))), rel=0.2)


def test_a_scan_of_which_too_little_came_is_refused(scan):
    with pytest.raises(DataError, match="only 3 of 48 k-space samples of metabolite frame 0 came, too few"):
        run(scan.with_readouts(scan.noise + scan.water + scan.metabolites[:3]))


def test_repeated_readouts_are_averaged_and_stated(scan, whole):
    result = run(scan.with_readouts([*scan.readouts[:-1], *scan.metabolites[5:8], scan.readouts[-1]]))
    assert_stated(result, "3 readouts of metabolite repeat samples with the same counters; they were averaged")
    np.testing.assert_allclose(naa(result), naa(whole), rtol=1e-3)  # the same readouts again change nothing


def test_readouts_behind_the_end_of_their_frame_are_not_used_and_stated(scan, whole):
    result = run(scan.with_readouts([*scan.readouts, *scan.metabolites[5:8]]))
    assert_stated(result, "(first: 55) came after their frame was complete and were not used", late=True)
    np.testing.assert_array_equal(naa(result), naa(whole))


def test_another_order_of_readouts_changes_nothing(scan, whole, rng):
    shuffled = [scan.metabolites[i] for i in rng.permutation(len(scan.metabolites) - 1)]
    result = run(scan.with_readouts([*scan.noise, *scan.water[::-1], *shuffled, scan.metabolites[-1]]))
    assert result.summary["warnings"] == []
    np.testing.assert_allclose(naa(result), naa(whole), rtol=1e-3)


def test_noise_behind_the_data_is_not_used_and_stated(scan):
    result = run(scan.with_readouts(scan.water + scan.metabolites + scan.noise))
    assert_stated(result, "noise readouts came after the first data and were not used; send them first", late=True)
    assert_stated(result, "no noise scan: the noise level was estimated")


def test_a_changed_number_of_channels_is_refused(scan):
    with pytest.raises(DataError, match="readout 70 has 2 channels but the ones before it have 3"):
        run(scan.changed(70, scan.readouts[70].data[:2]))


def test_a_noise_scan_of_other_coils_is_refused(scan):
    noise = [Acquisition(r.head.copy(), r.data[:2].copy()) for r in scan.noise]
    for readout in noise:
        readout.head["active_channels"] = 2
    with pytest.raises(DataError, match="the noise scan has 2 channels but the data have 3"):
        run(scan.with_readouts(noise + scan.water + scan.metabolites))


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, -np.inf)])
def test_values_that_are_not_finite_are_refused(scan, value):
    samples = scan.readouts[60].data.copy()
    samples[1, 5] = value
    with pytest.raises(DataError, match=r"readout 60 holds values that are not finite .* in channel 1"):
        run(scan.changed(60, samples))


def cut_off(readout: Acquisition, share: float) -> Acquisition:
    parts = readout.data.view(np.float32)
    level = share * np.abs(parts).max()
    return Acquisition(readout.head, np.clip(parts, -level, level).view(np.complex64))


def test_a_saturated_receiver_is_stated_by_role(scan, whole):
    water = [cut_off(r, 0.4) if i % 2 else r for i, r in enumerate(scan.water)]
    result = run(scan.with_readouts(scan.noise + water + scan.metabolites))
    assert_stated(result, "water reference readouts (first:", "are cut off at the receiver's largest value")
    assert not any("metabolite readouts" in warning for warning in result.summary["warnings"])
    assert whole.summary["warnings"] == []


def test_without_a_water_reference_there_are_no_maps_per_water(scan):
    result = run(scan.with_readouts(scan.noise + scan.metabolites))
    assert_stated(result, "no water reference")
    names = set(gather(result.images).maps)
    assert "tNAA" in names
    assert not {name for name in names if name.endswith("_per_water")}


def test_without_a_noise_scan_the_source_of_the_noise_level_is_stated(scan, whole):
    result = run(scan.with_readouts(scan.water + scan.metabolites))
    assert_stated(result, "no noise scan: the noise level was estimated from")
    # the scale is another one, since its unit is the noise
    shape = naa(result) / np.median(naa(result))
    np.testing.assert_allclose(shape, naa(whole) / np.median(naa(whole)), rtol=0.15)


def test_readouts_of_another_length_are_refused(scan):
    with pytest.raises(DataError, match="readout 55 .*100 .*mrsi_spectral_points.*128"):
        run(scan.changed(55, scan.readouts[55].data[:, :100]))


def test_another_number_of_channels_than_the_header_says_is_stated(scan):
    xml = scan.header_with("<receiverChannels>3</receiverChannels>", "<receiverChannels>4</receiverChannels>")
    assert_stated(run(xml), "the header announces 4 receiverChannels but the readouts have 3")


def test_every_row_of_the_documentation_names_a_test_that_is_there():
    """The table says where each rule is tested."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= 15
    tests = Path(__file__).resolve().parents[1]
    text = "\n".join(path.read_text() for path in tests.rglob("test_*.py"))
    for row in rows:
        for name in row.split("`")[1::2]:
            if name.startswith("test_"):
                assert f"def {name}(" in text, name
