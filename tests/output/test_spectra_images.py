from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from all_spectra import build_spectra

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.fitted import FittedSpectra
from mrsi_gadgets.output import spectra_images
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.results import gather


@pytest.mark.parametrize("basis", [False, True])
@pytest.mark.parametrize("moving", [False, True])
def test_all_spectra_come_back_from_their_images_in_blocks(maps, monkeypatch, basis, moving):
    monkeypatch.setattr(spectra_images, "_BLOCK_BYTES", 7 * 4 * 128 * 8)
    fitted = build_spectra(maps, basis=basis, moving=moving)
    images = maps_to_images(
        dataclasses.replace(maps, spectra=lambda: fitted), reference_head=None, shown=("tNAA",), spectra="all"
    )
    assert max(image.data.shape[1] for image in images if image.data.dtype.kind == "c") == 7
    found = gather(images[::-1]).fitted()
    for field in dataclasses.fields(FittedSpectra):
        was, is_ = getattr(fitted, field.name), getattr(found, field.name)
        if field.name == "times_s":
            np.testing.assert_allclose(is_, was, rtol=1e-10)
        else:
            np.testing.assert_array_equal(is_, was)
    total = sum(found.component(name) for name in found.molecules)
    np.testing.assert_allclose(total, found.fit - found.nuisance, atol=2e-5)
    assert found.molecules == ("NAA", "Cr", "MM", "Pi")


def test_nothing_is_computed_and_no_other_image_changes_where_nobody_asks(maps):
    def never() -> FittedSpectra:
        raise AssertionError("spectra were computed")

    plain = maps_to_images(dataclasses.replace(maps, spectra=never), reference_head=None, shown=("tNAA",))
    fitted = build_spectra(maps)
    more = maps_to_images(
        dataclasses.replace(maps, spectra=lambda: fitted), reference_head=None, shown=("tNAA",), spectra="all"
    )
    for one, other in zip(plain, more, strict=False):
        assert one.attributes == other.attributes
        assert one.head.tobytes() == other.head.tobytes()
        np.testing.assert_array_equal(one.data, other.data)
    added = more[len(plain) :]
    assert [int(image.head["image_series_index"]) for image in added] == [190, 191, 192]
    assert gather(plain).fitted() is None
    assert len(gather(more).spectra) == 2


def test_a_quantification_without_spectra_says_so_where_they_are_asked_for(maps):
    images = maps_to_images(maps, reference_head=None, shown=("tNAA",), spectra="all", warnings=["other"])
    results = gather(images)
    assert results.warnings == ["other", "the spectra of all voxels were asked for, but this quantification keeps none"]
    assert results.fitted() is None
    assert len(results.spectra) == 2


def test_each_frame_and_echo_has_its_own_spectra(make_maps):
    images = []
    for frame, echo in ((0, 0), (1, 0), (0, 1)):
        maps = make_maps(frame=frame)
        protocol = dataclasses.replace(maps.protocol, echo_times_s=(0.02 + 0.03 * echo,))
        maps = dataclasses.replace(maps, echo=echo, protocol=protocol)
        fitted = build_spectra(maps, seed=10 * frame + echo)
        images += maps_to_images(
            dataclasses.replace(maps, spectra=lambda fitted=fitted: fitted),
            reference_head=None, shown=("tNAA",), spectra="all",
        )  # fmt: skip
    results = gather(images)
    for echo, part in enumerate(results.echoes.values()):
        for frame in sorted(part.gathered):
            expected = build_spectra(maps, seed=10 * frame + echo)
            np.testing.assert_array_equal(part.fitted(frame).data, expected.data)
    assert [sorted(part.gathered) for part in results.echoes.values()] == [[0, 1], [0]]
    np.testing.assert_array_equal(results.fitted(1).data, build_spectra(maps, seed=10).data)
    assert results.axis["transmit_frequency_hz"] == 123.2e6


def test_spectra_that_lack_a_series_or_do_not_belong_together_are_refused(maps):
    fitted = build_spectra(maps)
    images = maps_to_images(
        dataclasses.replace(maps, spectra=lambda: fitted), reference_head=None, shown=("tNAA",), spectra="all"
    )
    with pytest.raises(DataError, match="lack 'columns'"):
        gather(images[:-1]).fitted()
    other = maps_to_images(
        dataclasses.replace(maps, spectra=lambda: build_spectra(maps)), reference_head=None, shown=("tNAA",),
        spectra="all",
    )  # fmt: skip
    other[-2].attributes = other[-2].attributes.replace("<value>1 2 3</value>", "<value>1 2 2</value>", 1)
    with pytest.raises(DataError, match="do not belong to one fit"):
        gather(other).fitted()


def test_a_molecule_that_is_not_there_and_an_unknown_choice_are_told(maps):
    with pytest.raises(DataError, match="no molecule 'GABA'; it has NAA, Cr, MM, Pi"):
        build_spectra(maps).component("GABA")
    with pytest.raises(ConfigError, match="use examples, all, none"):
        maps_to_images(maps, reference_head=None, shown=("tNAA",), spectra="true")
