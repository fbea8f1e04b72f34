from __future__ import annotations

import dataclasses
import json

import ismrmrd
import numpy as np
import pytest

from mrsi_gadgets import __version__
from mrsi_gadgets.data import Map
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.meta import from_xml, value_of, values_of
from mrsi_gadgets.output.nifti import image_affine_lps, image_values
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.output.scaling import PIXEL_MAX, DisplayScales

SHOWN = ("tNAA", "tCho")


def image_title(image):
    return value_of(from_xml(image.attributes), "ImageComments").partition(" [")[0]


def by_title(images):
    return {image_title(image): image for image in images}


def test_header_fields_follow_the_recipe(maps, reference_head):
    image = by_title(maps_to_images(maps, reference_head=reference_head, shown=SHOWN))["tNAA"]
    head, geometry = image.head, maps.protocol.geometry
    assert head["version"] == 1
    assert head["data_type"] == 1
    assert head["image_type"] == 1
    assert head["channels"] == 1
    assert head["measurement_uid"] == 4711
    assert head["acquisition_time_stamp"] == 123456
    assert head["physiology_time_stamp"].tolist() == [7, 8, 9]
    assert [int(head[n]) for n in ("average", "slice", "contrast", "phase", "repetition", "set")] == [1, 2, 3, 4, 5, 6]
    assert head["matrix_size"].tolist() == [3, 4, 5]
    np.testing.assert_allclose(head["field_of_view"], geometry.fov_mm)
    np.testing.assert_allclose(head["patient_table_position"], [0, 0, -1234.5])
    np.testing.assert_allclose(head["read_dir"], geometry.read_dir, rtol=1e-6)
    assert head["attribute_string_len"] == len(image.attributes.encode())
    assert image.data.shape == (1, 5, 4, 3)
    assert image.data.flags["C_CONTIGUOUS"]


def test_the_ismrmrd_package_sees_the_same_header_bytes(maps, reference_head):
    image = maps_to_images(maps, reference_head=reference_head, shown=SHOWN)[0]
    head = ismrmrd.ImageHeader.from_buffer_copy(image.head.tobytes())
    assert list(head.matrix_size) == [3, 4, 5]
    assert head.measurement_uid == 4711
    assert head.image_series_index == 1
    assert head.attribute_string_len == len(image.attributes.encode())


@pytest.mark.parametrize("grid_center", ["voxel", "edge"])
@pytest.mark.parametrize("matrix", [(3, 4, 5), (4, 3, 2), (5, 7, 1)])
def test_position_is_the_centre_of_the_box_for_odd_and_even_sizes(matrix, grid_center, make_geometry, make_maps):
    geometry = make_geometry(matrix, grid_center)
    maps = dataclasses.replace(
        make_maps(), maps={}, mask=np.ones(matrix, bool), b0_hz=np.zeros(matrix, "f4"), examples=()
    )
    maps = dataclasses.replace(maps, protocol=dataclasses.replace(maps.protocol, geometry=geometry))
    image = maps_to_images(maps, reference_head=None, shown=())[0]
    axes = np.array([geometry.read_dir, geometry.phase_dir, geometry.slice_dir])
    half = np.array([0.5 if grid_center == "voxel" and n % 2 == 0 else 0.0 for n in matrix])
    expected = np.array(geometry.position_mm) - (half * geometry.voxel_mm) @ axes
    np.testing.assert_allclose(image.head["position"], expected, atol=1e-4)
    np.testing.assert_allclose(image_affine_lps(image), geometry.affine_lps(), atol=1e-4)


def title_of(image):
    return value_of(from_xml(image.attributes), "SeriesDescription")


def test_one_series_per_map_and_numbers_that_do_not_change_between_frames(reference_head, make_maps):
    first, second = (
        maps_to_images(make_maps(frame=frame, seed=frame), reference_head=reference_head, shown=SHOWN)
        for frame in (0, 1)
    )
    values = [i for i, image in enumerate(first) if title_of(image) == "MRSI values"]
    assert len(values) > len(SHOWN)
    alone = [i for i in range(len(first)) if i not in values]
    series = [int(image.head["image_series_index"]) for image in first]
    assert len({series[i] for i in alone}) == len(alone)
    assert len({series[i] for i in values}) == 1
    assert series == sorted(series)
    assert {int(first[i].head["image_index"]) for i in alone} == {1}
    assert {int(second[i].head["image_index"]) for i in alone} == {2}
    assert [int(frame[i].head["image_index"]) for frame in (first, second) for i in values] == list(
        range(1, 2 * len(values) + 1)
    )
    titles = [[image_title(image) for image in frame] for frame in (first, second)]
    assert titles[0] == titles[1]
    assert len(set(titles[0])) == len(titles[0])


def test_pixels_rescale_to_the_value_within_half_a_unit(maps, reference_head):
    images = by_title(maps_to_images(maps, reference_head=reference_head, shown=("tNAA", "tCr", "tCho_per_tCr")))
    for title, source, values in [
        ("tNAA", "tNAA_per_water", maps.maps["tNAA_per_water"].value),
        ("tNAA SD", "tNAA_per_water", maps.maps["tNAA_per_water"].sd),
        ("tCho_per_tCr", "tCho_per_tCr", maps.maps["tCho_per_tCr"].value),
        ("B0", "b0", maps.b0_hz),
    ]:
        image = images[title]
        meta = from_xml(image.attributes)
        assert image.data.dtype == np.uint16
        assert value_of(meta, "mrsi_map") == source
        step = float(value_of(meta, "RescaleSlope"))
        error = np.abs(image_values(image) - values)
        assert np.nanmax(error) <= step / 2 * (1 + 1e-6)
    assert value_of(from_xml(images["tNAA"].attributes), "RescaleSlope") == "0.01"
    assert value_of(from_xml(images["B0"].attributes), "RescaleIntercept") == "-204.8"


def test_gadgetron_names_say_the_same_in_pixels(maps):
    for image in maps_to_images(maps, reference_head=None, shown=SHOWN):
        meta = from_xml(image.attributes)
        assert value_of(meta, "GADGETRON_SeqDescription") == value_of(meta, "SeriesDescription")
        assert value_of(meta, "GADGETRON_ImageComment") == value_of(meta, "ImageComments")
        assert values_of(meta, "ImageProcessingHistory") == ["PYTHON", "MRSI"]
        assert value_of(meta, "Keep_image_geometry") == "1"
        assert value_of(meta, "EchoTime") == "1.3"
        if "RescaleSlope" in meta:
            slope, intercept, centre = (
                float(value_of(meta, n)) for n in ("RescaleSlope", "RescaleIntercept", "WindowCenter")
            )
            ratio, offset = (
                float(value_of(meta, "GADGETRON_ScaleRatio")),
                float(value_of(meta, "GADGETRON_ScaleOffset")),
            )
            np.testing.assert_allclose((100 - offset) / ratio, slope * 100 + intercept)
            assert abs(float(value_of(meta, "GADGETRON_WindowCenter")) - (centre * ratio + offset)) <= 0.5


def test_directions_are_written_with_eighteen_digits(maps):
    meta = from_xml(maps_to_images(maps, reference_head=None, shown=SHOWN)[0].attributes)
    row = values_of(meta, "ImageRowDir")
    assert len(row) == 3
    assert all(len(text.partition(".")[2]) == 18 for text in row)
    np.testing.assert_allclose([float(v) for v in values_of(meta, "ImageColumnDir")], maps.protocol.geometry.phase_dir)


def test_nan_is_zero_on_the_display_and_the_mask_says_where(maps):
    images = by_title(maps_to_images(maps, reference_head=None, shown=SHOWN))
    assert images["tNAA"].data[0, 0, 0, 0] == 0
    np.testing.assert_array_equal(images["mask"].data[0].transpose(2, 1, 0), maps.mask)


def test_quantitative_images_hold_the_exact_values(maps):
    images = by_title(maps_to_images(maps, reference_head=None, shown=SHOWN))
    for name, item in maps.maps.items():
        image = images[f"{name} values"]
        assert value_of(from_xml(image.attributes), "DataRole") == "Quantitative"
        assert image.head["data_type"] == 5
        np.testing.assert_array_equal(image.data[0].transpose(2, 1, 0), item.value)
    np.testing.assert_array_equal(images["B0 values"].data[0].transpose(2, 1, 0), maps.b0_hz)


def test_quantitative_can_be_limited_or_left_out(maps):
    shown = by_title(maps_to_images(maps, reference_head=None, shown=("tNAA",), quantitative="shown"))
    assert {t for t in shown if t.endswith(" values")} == {
        "tNAA values", "tNAA SD values", "tNAA_per_water values", "tNAA_per_water SD values", "tNAA_per_tCr values",
        "B0 values",
    }  # fmt: skip
    without = by_title(maps_to_images(maps, reference_head=None, shown=SHOWN, quantitative="none", spectra="none"))
    assert list(without) == ["tNAA", "tNAA SD", "tCho", "tCho SD", "B0", "mask"]
    plain = by_title(maps_to_images(maps, reference_head=None, shown=SHOWN, uncertainty=False, quantitative="none"))
    assert list(plain) == ["tNAA", "tCho", "B0", "mask", "spectra"]


def test_spectra_travel_with_everything_a_reader_needs(maps):
    image = by_title(maps_to_images(maps, reference_head=None, shown=SHOWN))["spectra"]
    meta = from_xml(image.attributes)
    assert image.head["data_type"] == 7
    assert image.head["image_type"] == 5
    assert image.head["matrix_size"].tolist() == [128, 3, 2]
    assert values_of(meta, "mrsi_voxels") == ["1 2 3", "2 1 0"]
    assert value_of(meta, "DataRole") == "Spectroscopy"
    assert float(value_of(meta, "mrsi_acquisition_delay_s")) == 1.3e-3
    np.testing.assert_array_equal(image.data[0, 1, 0], maps.examples[1].data)
    np.testing.assert_array_equal(image.data[0, 0, 2], maps.examples[0].nuisance)


def test_warnings_reach_the_console_in_every_comment(maps):
    warning = "no water reference: amounts are on an arbitrary scale"
    for image in maps_to_images(maps, reference_head=None, shown=SHOWN, warnings=[warning], comments=["scan 12"]):
        meta = from_xml(image.attributes)
        assert warning in value_of(meta, "ImageComments")
        assert "scan 12" in value_of(meta, "ImageComment")
        assert values_of(meta, "mrsi_warnings") == [warning]


def test_provenance_is_json_in_a_fixed_order(maps):
    image = maps_to_images(maps, reference_head=None, shown=SHOWN, provenance={"a_seed": 3})[0]
    text = value_of(from_xml(image.attributes), "mrsi_provenance")
    assert json.loads(text) == {"a_seed": 3, "method": "test", "rank": 16}
    assert text.index("a_seed") < text.index("method")


def test_only_the_first_image_of_a_frame_carries_the_whole_provenance(make_maps):
    long = {"recipe": "subspace", "weights": list(range(1000))}
    for frame in (0, 1):
        maps = make_maps(frame=frame)
        first, *others = maps_to_images(maps, reference_head=None, shown=SHOWN, provenance=long)
        whole = value_of(from_xml(first.attributes), "mrsi_provenance")
        assert json.loads(whole) == long | {"method": "test", "rank": 16}
        for image in (first, *others):
            meta = from_xml(image.attributes)
            assert value_of(meta, "mrsi_version") == __version__
            assert value_of(meta, "mrsi_recipe") == "subspace"
            assert value_of(meta, "mrsi_protocol") == maps.protocol.fingerprint()
        assert not any("mrsi_provenance" in from_xml(image.attributes) for image in others)
        assert max(len(image.attributes) for image in others) < len(whole)
        assert gather([*others, first]).provenance["rank"] == 16
        assert gather(others).provenance == {
            "recipe": "subspace", "version": __version__, "protocol_fingerprint": maps.protocol.fingerprint(),
        }  # fmt: skip


def test_gadgetrons_control_names_keep_pixels_and_geometry_as_they_are(maps):
    for image in maps_to_images(maps, reference_head=None, shown=SHOWN):
        meta = from_xml(image.attributes)
        assert value_of(meta, "GADGETRON_ImageCategory") == values_of(meta, "ImageType")[-1]
        assert value_of(meta, "Use_dedicated_scaling_factor") == "1"
        assert value_of(meta, "Gadgetron_ImageDirectSend") == "1"
        # readers ask whether this name is there, not what it says
        assert "Correct_image_orientation" not in meta


def shown_grey(pixel: float, centre: float, width: float) -> float:
    """Grey from 0 to 1 by DICOM PS3.3 C.11.2.1.2, the linear window."""
    if width == 1:
        return float(pixel > centre - 0.5)
    return float(np.clip((pixel - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))


@pytest.mark.parametrize("dialect", ["", "GADGETRON_"])
def test_the_mask_is_black_and_white_also_for_readers_of_whole_numbers(maps, dialect):
    meta = from_xml(by_title(maps_to_images(maps, reference_head=None, shown=SHOWN))["mask"].attributes)
    centre, width = (value_of(meta, f"{dialect}Window{part}") for part in ("Center", "Width"))
    assert [shown_grey(pixel, int(centre), int(width)) for pixel in (0, 1)] == [0.0, 1.0]


def test_exact_values_have_the_window_of_their_picture_in_their_own_unit(maps):
    ratio = dataclasses.replace(
        maps.maps["tNAA_per_water"], value=maps.maps["tNAA_per_water"].value / 55508, unit="1 (molecules per water)"
    )
    maps = dataclasses.replace(maps, maps=dict(maps.maps) | {"tNAA_per_water": ratio})
    images = by_title(maps_to_images(maps, reference_head=None, shown=SHOWN))
    for title, centre, width in [
        ("tNAA_per_water values", 8 / 55508, 16 / 55508), ("tNAA_per_water SD values", 2 / 55508, 4 / 55508),
        ("tCho_per_tCr values", 0.25, 0.5), ("B0 values", 0.0, 60.0),
    ]:  # fmt: skip
        meta = from_xml(images[title].attributes)
        for dialect in ("", "GADGETRON_"):
            found = [float(value_of(meta, f"{dialect}Window{part}")) for part in ("Center", "Width")]
            np.testing.assert_allclose(found, (centre, width), rtol=1e-9)
    for title, image in images.items():
        assert ("WindowCenter" in from_xml(image.attributes)) == (title != "spectra")


def with_lines(maps, *names):
    value = np.zeros((3, 4, 5), "f4")
    value[1, 2, 3], value[1, 1, 2] = 3e6, 2e6
    item = Map(value, "a.u. (protons per voxel on the scale of the amounts)", np.full_like(value, 1e5))
    return dataclasses.replace(maps, maps=dict(maps.maps) | dict.fromkeys(names, item))


def test_a_line_that_no_molecule_has_is_shown_without_being_named(maps):
    images = by_title(maps_to_images(with_lines(maps, "unknown_2.87ppm"), reference_head=None, shown=("tNAA",)))
    image = images["unknown line 2.87 ppm"]
    meta = from_xml(image.attributes)
    assert value_of(meta, "SeriesDescription") == value_of(meta, "GADGETRON_SeqDescription") == "unknown line 2.87 ppm"
    assert value_of(meta, "mrsi_map") == "unknown_2.87ppm"
    assert value_of(meta, "mrsi_unit") == "a.u."
    assert image.data.dtype == np.uint16
    assert np.count_nonzero(image.data) == 2
    np.testing.assert_allclose(image_values(image)[1, 2, 3], 3e6, rtol=1e-3)
    # the window is that of the two voxels which have it, not of the many that do not
    assert 3e6 <= float(value_of(meta, "WindowWidth")) <= 6e6
    assert "unknown line 2.87 ppm SD" in images
    assert "unknown_2.87ppm values" in images
    few = maps_to_images(
        with_lines(maps, "unknown_2.87ppm"), reference_head=None, shown=("tNAA",), quantitative="shown"
    )
    assert "unknown_2.87ppm values" in by_title(few)
    assert gather(images.values()).shown == ["tNAA_per_water", "unknown_2.87ppm"]


@pytest.mark.parametrize("n_voxels", [1, 2])
def test_a_line_is_seen_beside_the_water_whose_signal_has_the_same_unit(maps, n_voxels):
    """Water in arbitrary units is thousands of times an amount; with its step the console's picture was black."""
    value = np.zeros((30, 40, 5), "f4")
    value[1, 2, 3], value[1, 1, 2] = 0.12, 0.08 * (n_voxels - 1)
    amount = Map(value, "a.u. (protons per voxel on the scale of the amounts)", np.full_like(value, 0.01))
    water = Map(np.full_like(value, 650), "a.u. (water signal at t = 0)")
    scales = DisplayScales()
    scales.learn({"unknown_2.87ppm": amount, "water": water})
    for name, item in (("unknown_2.87ppm", amount), ("water", water)):
        scale = scales.of(name, item.unit)
        assert scale.n_clipped(item.value) == 0
        assert 200 <= scale.pixels(item.value).max() <= 4095


@pytest.mark.parametrize("uncertainty", [True, False])
def test_lines_that_come_and_go_between_frames_keep_their_series(make_maps, uncertainty):
    scales = DisplayScales()
    number: dict[str, set[int]] = {}
    frames = []
    for frame, names in enumerate(
        [["unknown_2.87ppm"], ["unknown_1.86ppm", "unknown_2.87ppm"], [], ["unknown_1.86ppm"]]
    ):
        maps = with_lines(make_maps(frame=frame), *names)
        maps = dataclasses.replace(maps, examples=() if frame == 1 else maps.examples)
        images = maps_to_images(maps, reference_head=None, shown=SHOWN, scales=scales, uncertainty=uncertainty)
        frames += images
        for image in images:
            number.setdefault(title_of(image), set()).add(int(image.head["image_series_index"]))
    assert {len(found) for found in number.values()} == {1}
    assert len(set().union(*number.values())) == len(number)
    line = gather(frames).maps["unknown_1.86ppm"]
    assert line.value.shape == line.sd.shape == (3, 4, 5, 4)
    assert np.isnan(line.value[..., [0, 2]]).all()
    assert line.value[1, 2, 3, [1, 3]].tolist() == [3e6, 3e6]


def test_equal_maps_give_equal_bytes(maps, reference_head):
    pairs = zip(
        maps_to_images(maps, reference_head=reference_head, shown=SHOWN),
        maps_to_images(maps, reference_head=reference_head, shown=SHOWN),
        strict=True,
    )
    for one, two in pairs:
        assert one.head.tobytes() == two.head.tobytes()
        assert one.attributes == two.attributes
        assert one.data.tobytes() == two.data.tobytes()


def test_without_water_amounts_share_one_power_of_ten_for_the_whole_session(make_maps):
    scales = DisplayScales()
    first = make_maps(water=False)
    brighter = dataclasses.replace(
        first, frame=1, maps={n: dataclasses.replace(m, value=m.value * 1.8) for n, m in first.maps.items()}
    )
    slopes = []
    for maps in (first, brighter):
        images = by_title(maps_to_images(maps, reference_head=None, shown=("tNAA", "tCho"), scales=scales))
        slopes += [value_of(from_xml(images[n].attributes), "RescaleSlope") for n in ("tNAA", "tCho")]
        assert images["tNAA"].data.max() < PIXEL_MAX
    assert len(set(slopes)) == 1
    assert np.log10(float(slopes[0])) == round(np.log10(float(slopes[0])))
    assert 400 < by_title(maps_to_images(first, reference_head=None, shown=["tNAA"]))["tNAA"].data.max() < PIXEL_MAX


def test_a_ratio_to_water_is_shown_as_millimoles_per_kilogram_of_water(maps):
    ratio = maps.maps["tNAA_per_water"].value / 55508.0
    item = Map(ratio, "1 (molecules per water molecule, not corrected for relaxation)", ratio / 10)
    changed = dataclasses.replace(maps, maps={"tNAA": maps.maps["tNAA"], "tNAA_per_water": item})
    images = maps_to_images(changed, reference_head=None, shown=("tNAA",), quantitative="none")
    meta = from_xml(images[0].attributes)
    assert value_of(meta, "mrsi_unit") == "mmol/kg water"
    assert value_of(meta, "RescaleSlope") == "0.01"
    assert "molecules per water molecule, not corrected for relaxation" in value_of(meta, "ImageComments")
    assert np.nanmax(np.abs(image_values(images[0]) - maps.maps["tNAA_per_water"].value)) < 0.00501
    result = gather(images).maps["tNAA_per_water"]
    assert result.unit == item.unit
    np.testing.assert_allclose(result.value, ratio, atol=0.00501 / 55508)


def test_values_of_both_signs_have_their_zero_in_the_middle(maps):
    phase = np.linspace(-3.2, 3.2, 60, dtype=np.float32).reshape(3, 4, 5)
    changed = dataclasses.replace(maps, maps={"phase": Map(phase, "rad")})
    image = maps_to_images(changed, reference_head=None, shown=("phase",))[0]
    np.testing.assert_allclose(image_values(image), phase, atol=0.00101)


def test_values_beyond_the_pixel_range_are_clipped_and_counted(maps):
    value = maps.maps["tNAA_per_water"].value.copy()
    value[1, 1, 1:3] = 55.0, -3.0
    changed = dict(maps.maps) | {"tNAA_per_water": dataclasses.replace(maps.maps["tNAA_per_water"], value=value)}
    image = by_title(maps_to_images(dataclasses.replace(maps, maps=changed), reference_head=None, shown=SHOWN))["tNAA"]
    assert image.data[0, 1:3, 1, 1].tolist() == [PIXEL_MAX, 0]
    assert "2 voxels lie beyond the pixel range" in value_of(from_xml(image.attributes), "ImageComments")


def test_a_map_of_nothing_but_nan_or_zero_is_black(maps):
    empty = {
        "tNAA": dataclasses.replace(maps.maps["tNAA"], value=np.full((3, 4, 5), np.nan, "f4"), sd=None),
        "tCho": dataclasses.replace(maps.maps["tCho"], value=np.zeros((3, 4, 5), "f4"), sd=None),
    }
    images = by_title(maps_to_images(dataclasses.replace(maps, maps=empty), reference_head=None, shown=SHOWN))
    assert not images["tNAA"].data.any()
    assert not images["tCho"].data.any()


def test_an_unknown_map_is_refused_by_name(maps):
    with pytest.raises(ConfigError, match=r"shows map 'tNA', which was not quantified; choose from tNAA, .*tCho"):
        maps_to_images(maps, reference_head=None, shown=("tNA",))


def test_an_unknown_choice_of_quantitative_images_is_refused(maps):
    with pytest.raises(ConfigError, match="use all, shown or none"):
        maps_to_images(maps, reference_head=None, shown=SHOWN, quantitative="some")
