from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from mrsi_gadgets.data import Geometry, Map
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output import pictures
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.folder import write_results
from mrsi_gadgets.output.panels import (
    DATA_COLOUR,
    FIT_COLOUR,
    NUISANCE_COLOUR,
    curves_of,
    difference_map,
    draw_spectrum,
    nice_top,
    radiological_slice,
    spectrum_of,
    write_legend,
)
from mrsi_gadgets.output.pictures import _colours, contact_sheet, demo_sheet
from mrsi_gadgets.output.results import Spectrum, gather

# Images a scanner may send: directions of x, y, z in LPS, and what the edges of the picture must say.
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1), "RLAP"),
    "axial, read and phase swapped": ((0, 1, 0), (1, 0, 0), (0, 0, 1), "RLAP"),
    "axial, all flipped": ((-1, 0, 0), (0, -1, 0), (0, 0, 1), "RLAP"),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0), "RLSI"),
    "coronal, upside down": ((0, 0, 1), (-1, 0, 0), (0, 1, 0), "RLSI"),
    "sagittal": ((0, 1, 0), (0, 0, -1), (-1, 0, 0), "APSI"),
}


@pytest.mark.parametrize("case", ORIENTATIONS)
def test_left_is_on_the_right_and_the_labels_say_so(case):
    read, phase, normal, letters = ORIENTATIONS[case]
    geometry = Geometry((5, 4, 3), (50.0, 80.0, 30.0), (3.0, 4.0, 5.0), read, phase, normal)
    index = np.indices(geometry.matrix).reshape(3, -1)
    world = (geometry.affine_lps() @ np.vstack([index, np.ones(index.shape[1])]))[:3].reshape(3, *geometry.matrix)
    pictures = [radiological_slice(coordinate, geometry.affine_ras(), 1) for coordinate in world]
    shown = pictures[0]
    assert shown.left + shown.right + shown.top + shown.bottom == letters
    axis_of = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, -1), "S": (2, 1)}
    for letter, first, last in (
        (shown.right, np.s_[0, 0], np.s_[0, -1]),
        (shown.bottom, np.s_[0, 0], np.s_[-1, 0]),
    ):
        axis, sign = axis_of[letter]
        assert (pictures[axis].values[last] - pictures[axis].values[first]) * sign > 0
    rows, columns = shown.values.shape
    length_mm = {5: 50.0, 4: 80.0}
    assert shown.aspect * rows / columns == pytest.approx(length_mm[rows] / length_mm[columns])


def test_an_oblique_slice_is_labelled_with_two_letters(make_geometry):
    angle = np.deg2rad(40)
    geometry = Geometry(
        (5, 4, 3), (50, 40, 30), (0, 0, 0), (1, 0, 0), (0, np.cos(angle), -np.sin(angle)),
        (0, np.sin(angle), np.cos(angle)),
    )  # fmt: skip
    shown = radiological_slice(np.zeros((5, 4, 3)), geometry.affine_ras(), 0)
    assert (shown.left, shown.right, shown.top, shown.bottom) == ("R", "L", "AS", "PI")


@pytest.mark.parametrize("delay_s", [0.0, 1.3e-3])
def test_a_known_peak_stands_at_its_ppm_in_phase_and_ppm_falls(delay_s):
    times = delay_s + np.arange(512) / 1500
    fid = np.exp(2j * np.pi * (2.01 - 4.65) * 123.2 * times - times / 0.08).astype(np.complex64)
    ppm, values = spectrum_of(fid, Spectrum((0, 0, 0), fid, fid, 0 * fid, 1 / 1500, 123.2e6, 4.65, delay_s))
    assert np.all(np.diff(ppm) < 0)
    peak = int(np.argmax(np.abs(values)))
    # Half a bin of the zero-filled grid: 1500 Hz / 1024 / 2 / 123.2 MHz.
    assert ppm[peak] == pytest.approx(2.01, abs=0.006)
    assert abs(np.angle(values[peak])) < 0.35


def test_colour_ends_are_round_and_hold_nearly_everything():
    assert nice_top(np.array([0.0, 11.3, np.nan])) == 12.0
    assert nice_top(np.array([0.29])) == pytest.approx(0.3)
    assert nice_top(np.array([np.nan])) == 1.0


def test_the_difference_colours_grow_lighter_to_both_ends_and_are_dark_between():
    colours = difference_map()(np.linspace(0, 1, 257))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance[:129]) < 1e-9)
    assert np.all(np.diff(luminance[128:]) > -1e-9)


def test_the_data_curve_is_what_was_measured_also_where_nuisance_cancels_the_fit():
    times = np.arange(512) / 1500

    def line(ppm: float, height: float) -> np.ndarray:
        return height * np.exp(2j * np.pi * (ppm - 4.65) * 123.2 * times - times / 0.06)

    real, invented = line(2.01, 1.0), line(1.35, 0.8)
    curves = curves_of(Spectrum((0, 0, 0), real, real, -invented, 1 / 1500, 123.2e6, 4.65))
    at = np.abs(curves.ppm - 1.35) < 0.03
    ppm, measured = spectrum_of(real, Spectrum((0, 0, 0), real, real, real, 1 / 1500, 123.2e6, 4.65))
    measured = measured.real[np.isin(ppm, curves.ppm)]
    np.testing.assert_allclose(curves.data / curves.data.max(), measured / measured.max(), atol=1e-9)
    assert np.abs(curves.data[at]).max() < 0.02
    assert np.abs(curves.fit[at]).max() < 0.02
    assert curves.nuisance[at].min() < -0.45


@pytest.mark.parametrize("foreign", [1.3, 4.65])
def test_lipids_or_water_a_hundred_times_as_high_leave_the_metabolites_visible(foreign):
    times = np.arange(1024) / 1500
    naa = np.exp(2j * np.pi * (2.01 - 4.65) * 123.2 * times - times / 0.06)
    high = 100 * np.exp(2j * np.pi * (foreign - 4.65) * 123.2 * times - times / 0.06 - (times / 0.05) ** 2)
    curves = curves_of(Spectrum((0, 0, 0), naa + high, naa + high, high, 1 / 1500, 123.2e6, 4.65))
    near = np.abs(curves.ppm - 2.01) < 0.03
    peak = curves.data[near].max() - curves.nuisance[near].min()
    assert peak > 0.15 * (curves.high - curves.low)
    assert curves.high - curves.low <= 2.5 + 1e-9


def test_data_fit_nuisance_and_residual_have_colours_of_their_own_and_a_legend():
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rng = np.random.default_rng(3)
    data, fit, nuisance = (rng.standard_normal((3, 128)) + 1j * rng.standard_normal((3, 128))).astype("c8")
    spectrum = Spectrum((1, 2, 3), data, fit, nuisance, 1 / 1500, 123.2e6, 4.65)
    draw_spectrum(axes, spectrum)
    write_legend(figure, 0.1, 0.95)
    curves = curves_of(spectrum)
    lines = {line.get_color(): line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) > 2}
    assert len(lines) == 4
    for colour, values in [
        (DATA_COLOUR, curves.data), (FIT_COLOUR, curves.fit), (NUISANCE_COLOUR, curves.nuisance),
    ]:  # fmt: skip
        np.testing.assert_array_equal(lines[colour], values)
    words = {text.get_color(): text.get_text() for text in figure.findobj(Text) if text.get_text()}
    assert words[DATA_COLOUR] == "data"
    assert words[FIT_COLOUR] == "total fit"
    assert words[NUISANCE_COLOUR] == "nuisance (baseline, water, lipids)"


def words_of(monkeypatch, source, path) -> set[str]:
    """All texts of a contact sheet."""
    made, build = [], pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *size: made.append(build(*size)) or made[0])
    contact_sheet(source, path)
    return {text.get_text() for text in made[0].findobj(Text)}


def test_a_contact_sheet_says_units_water_misfit_and_lines_of_no_molecule(tmp_path, maps, monkeypatch):
    ratio = maps.maps["tNAA_per_water"].value / 55508
    line = np.where(maps.mask, 0.0, np.nan).astype("f4")
    line[1, 2, 2] = 3.0
    misfit = np.where(maps.mask, 2.5, np.nan).astype("f4")
    more = {
        "tNAA_per_water": Map(ratio, "1 (molecules per water molecule)", ratio / 10),
        "water": Map(np.ones((3, 4, 5), "f4"), "a.u. (water signal at t = 0)"),
        "residual": Map(misfit, "1 (root mean square over noise)"),
        "unknown_2.87ppm": Map(line, "a.u. (protons per voxel)", np.abs(line)),
        "unknown_1.20ppm": Map(0 * line, "a.u. (protons per voxel)", np.abs(line)),
    }
    maps = dataclasses.replace(maps, maps=dict(maps.maps) | more)
    images = maps_to_images(maps, reference_head=None, shown=("tNAA",), warnings=["far " * 200])
    words = words_of(monkeypatch, images, tmp_path / "sheet.png")
    assert {"tNAA [mmol/kg water]", "water [a.u.]", "misfit (1 = noise)", "unknown 2.87 ppm [a.u.]", "≥ 3"} <= words
    # a line that no voxel of the frame has needs no picture
    assert not any("1.20" in word for word in words)
    head = next(word for word in words if word.startswith("mrsi-gadgets"))
    assert "median misfit 2.5 (1 = noise)" in head
    assert head.splitlines()[1].startswith("! far far")
    assert [len(line) < 150 for line in head.splitlines()[1:]] == [True, True, True]


def test_a_contact_sheet_says_warnings_whole_how_many_are_left_out_and_what_is_hidden(tmp_path, maps, monkeypatch):
    hidden = {"quality": Map(np.where(maps.mask, 2.0, np.nan).astype("f4"), "1")}
    told = {"quality_mask": {"relative_sd": 0.0, "codes_that_hide": 15}}
    maps = dataclasses.replace(maps, maps={**maps.maps, **hidden}, provenance={**maps.provenance, **told})
    warnings = [f"warning {n} has more to say than one line across a picture of a few maps can hold" for n in range(6)]
    images = maps_to_images(maps, reference_head=None, shown=("tNAA",), warnings=warnings)
    words = words_of(monkeypatch, images, tmp_path / "sheet.png")
    head = next(word for word in words if word.startswith("mrsi-gadgets"))
    assert " ".join(head.split()).count("than one line across a picture of a few maps can hold") == 4
    assert head.endswith("! and 2 more, in summary.json")
    # a bar of colours over nothing looks like a measured zero
    assert "hidden by the\nquality mask" in words


def test_a_line_that_points_down_has_colours_of_both_signs():
    values = np.zeros(50)
    values[:3] = -4.0, 1.0, 2.0
    colours, low, high = _colours(values, both_signs=True)
    assert (low, high) == (-4.0, 4.0)
    assert colours.name == "difference"
    assert _colours(np.abs(values), both_signs=True) == ("inferno", 0.0, 4.0)
    assert _colours(values, both_signs=False)[:2] == ("inferno", 0.0)


def png_size(path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_a_contact_sheet_is_the_same_from_images_and_from_the_folder(tmp_path, maps):
    images = maps_to_images(maps, reference_head=None, shown=("tNAA", "tCr", "tCho"))
    contact_sheet(images, tmp_path / "one.png")
    write_results(tmp_path / "out", images, summary={})
    contact_sheet(tmp_path / "out", tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert min(png_size(tmp_path / "one.png")) > 700


def test_a_contact_sheet_needs_no_spectra_and_no_deviations(tmp_path, maps):
    images = maps_to_images(maps, reference_head=None, shown=("tCr",), uncertainty=False, quantitative="none")
    contact_sheet([image for image in images if image.head["data_type"] == 1], tmp_path / "sheet.png")
    assert png_size(tmp_path / "sheet.png")[1] > 700


def test_a_contact_sheet_without_any_map_is_refused(tmp_path):
    with pytest.raises(DataError, match="no map to draw"):
        contact_sheet([], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_a_mask_without_voxels_still_gives_a_picture(tmp_path, maps):
    images = maps_to_images(maps, reference_head=None, shown=("tNAA",))
    for image in images:
        if "<value>mask</value>" in image.attributes:
            image.data[:] = 0
    contact_sheet(images, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()


def test_the_demo_sheet_compares_methods_with_the_truth(tmp_path, maps):
    spectra = gather(maps_to_images(maps, reference_head=None, shown=("tNAA",))).spectra
    truth = {name: maps.maps[f"{name}_per_water"].value for name in ("tNAA", "tCr")}
    options = {"mask": maps.mask, "affine_ras": maps.protocol.geometry.affine_ras(), "unit": "mM"}
    demo_sheet(
        tmp_path / "demo.png", truth=truth, estimates={"Fourier": truth, "subspace": truth}, spectra=spectra,
        notes={"Fourier": {"tNAA": "NRMSE 0"}}, title="demo", **options,
    )  # fmt: skip
    assert min(png_size(tmp_path / "demo.png")) > 800
    with pytest.raises(DataError, match="method 'Fourier' has no map of tCr"):
        demo_sheet(tmp_path / "x.png", truth=truth, estimates={"Fourier": {"tNAA": truth["tNAA"]}}, **options)


def test_matplotlib_is_loaded_only_to_draw_and_never_its_pyplot_state(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "import mrsi_gadgets.output.folder, mrsi_gadgets.output.console\n"
        "assert 'matplotlib' not in sys.modules and 'nibabel' not in sys.modules\n"
        "from mrsi_gadgets.output.pictures import demo_sheet\n"
        "m = np.ones((5, 4, 1))\n"
        f"demo_sheet(r'{tmp_path / 'a.png'}', truth={{'tCr': m}}, estimates={{'Fourier': {{'tCr': m}}}}, "
        "mask=m > 0, affine_ras=np.eye(4), unit='mM')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
