"""What a quality mask hides: dark in pictures and at the console, whole among the exact values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.data import DisplayMask, Map
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.meta import from_xml, value_of
from mrsi_gadgets.output.results import gather, shown_voxels

HIDDEN = (1, 2, 3)


def masked(maps):
    voxels = maps.mask.copy()
    voxels[HIDDEN] = False
    code = np.where(maps.mask, ~voxels * 2.0, np.nan).astype(np.float32)
    told = {"relative_sd": 0.0, "codes_that_hide": 15}
    return replace(
        maps,
        maps={**maps.maps, "quality": Map(code, "1")},
        display=DisplayMask(voxels, 0.0, "SNR at least 3"),
        provenance={**maps.provenance, "quality_mask": told},
    )


def images_of(maps, reference_head):
    return maps_to_images(maps, reference_head=reference_head, shown=("tNAA", "tCr"))


def find(images, kind, name, what=""):
    for image in images:
        meta = from_xml(image.attributes)
        found = (value_of(meta, "mrsi_kind"), value_of(meta, "mrsi_map"), value_of(meta, "mrsi_display"))
        if found == (kind, name, what):
            return image.data[0].transpose(2, 1, 0), value_of(meta, "ImageComments")
    raise AssertionError(f"no image {kind} {name} {what}")


def test_a_hidden_voxel_is_dark_at_the_console_and_whole_among_the_values(maps, reference_head):
    images = images_of(masked(maps), reference_head)
    plain, _ = find(images_of(maps, reference_head), "display", "tNAA_per_water", "value")
    shown, comment = find(images, "display", "tNAA_per_water", "value")
    assert plain[HIDDEN] > 0
    assert shown[HIDDEN] == 0
    shown[HIDDEN] = plain[HIDDEN]
    assert np.array_equal(shown, plain)
    assert "1 voxels hidden (SNR at least 3)" in comment
    exact, _ = find(images, "value", "tNAA_per_water")
    assert exact[HIDDEN] == maps.maps["tNAA_per_water"].value[HIDDEN]
    # the deviation stays: it says why
    sd, _ = find(images, "display", "tNAA_per_water", "sd")
    assert sd[HIDDEN] > 0


def test_the_contact_sheet_hides_the_same_voxels(maps, reference_head):
    results = gather(images_of(masked(maps), reference_head))
    shown = shown_voxels(results, results.maps["tNAA_per_water"], 0)
    assert not shown[HIDDEN]
    assert shown.sum() == shown.size - 1
    assert shown_voxels(gather(images_of(maps, reference_head)), results.maps["tNAA_per_water"], 0).all()
