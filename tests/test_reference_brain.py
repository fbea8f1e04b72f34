"""The stated measures on the brain they are stated for: a study of a quarter of a minute, not part of every run."""

from __future__ import annotations

import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import simulate

NAMES = ("tNAA", "tCr", "tCho", "Ins", "Glx")


@pytest.fixture(scope="module")
def scores():
    scan = simulate("csi48")
    found = {}
    for recipe in ("fourier", "subspace"):
        readouts = tuple(scan.acquisitions)
        result = replay.replay_here(
            replay.Scan(scan.header_xml, readouts, len(readouts), "simulated"), ScanOptions(recipe=recipe, device="cpu")
        )
        maps = gather(result.images)
        found[recipe] = score({n: maps.maps[n].value for n in NAMES}, scan.truth, b0_hz=maps.b0[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_maps_of_the_reference_brain_are_as_right_as_stated_and_not_worse_than_fouriers(scores, name):
    ours, fourier = scores["subspace"].maps[name], scores["fourier"].maps[name]
    assert ours.nrmse <= 0.06
    assert ours.detail <= 0.5
    # one brain and one noise: the measure of "not worse" is a ratio of 1.05
    assert ours.nrmse < 1.05 * fourier.nrmse
    assert ours.detail < 1.05 * fourier.detail


@pytest.mark.slow
def test_lesions_keep_their_contrast_and_the_field_is_right_to_half_a_hertz(scores):
    assert scores["subspace"].b0_rms_hz <= 0.5
    changed = [
        (lesion, name, entry.recovery)
        for lesion, by_map in scores["subspace"].lesions.items()
        for name, entry in by_map.items()
        if entry.changed
    ]
    assert len(changed) >= 6
    for lesion, name, recovery in changed:
        # one lesion of 20 voxels in one brain; the measure of 0.8 to 1.2 is the median over brains
        assert 0.7 <= recovery <= 1.35, (lesion, name)
