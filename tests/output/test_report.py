"""The report's page: what is in it, and what a browser makes of it."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
from all_spectra import build_spectra

from mrsi_gadgets.data import Map
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import ImageFile
from mrsi_gadgets.output import report_data
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.panels import spectrum_of
from mrsi_gadgets.output.report import report_html, write_report
from mrsi_gadgets.output.results import Spectrum, gather
from mrsi_gadgets.output.scaling import display_unit
from mrsi_gadgets.quantification.display_mask import Limits, with_quality

pytestmark = pytest.mark.timeout(120)
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'>"
ACQUIRED = {
    "nucleus": "1H", "field_strength_t": 3.0, "vendor": "ACME", "receiver_channels": 8, "encoding": "csi",
    "matrix": [3, 4, 5], "fov_mm": [30.0, 60.0, 55.0], "repetition_time_s": 1.5, "echo_times_s": [0.0013],
    "spectral_width_hz": 1500.0, "spectral_points": 128, "water_suppressed": True, "transmit_frequency_hz": 123.2e6,
}  # fmt: skip


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page from a file; nothing may be written to the console's log, then or later in the test."""

    def opened(text: str):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    yield opened
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def images_of(maps, *, spectra="all", fitted=None, **options):
    fitted = fitted or build_spectra(maps)
    provenance = {"acquisition": ACQUIRED, "version": "9", "recipe": "test"} | options.pop("provenance", {})
    return maps_to_images(
        dataclasses.replace(maps, spectra=lambda: fitted), reference_head=None, shown=("tNAA", "tCr"), spectra=spectra,
        provenance=provenance, **options,
    )  # fmt: skip


def content_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.S)[1])


def click_voxel(driver, panel: int, voxel: tuple[int, int, int]) -> None:
    """Click a map where it shows a voxel of the slice that is shown."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    canvas = driver.find_elements(By.CSS_SELECTOR, ".panel > canvas")[panel]
    x, y = driver.execute_script("return window.report.place(...arguments)", *voxel)
    width, height = canvas.size["width"], canvas.size["height"]
    ActionChains(driver).move_to_element_with_offset(
        canvas, round((x - 0.5) * width), round((y - 0.5) * height)
    ).click().perform()


def expected_curve(fid: np.ndarray, axis: dict) -> np.ndarray:
    """The real part over rising ppm, zero-filled four times as on the page."""
    spectrum = Spectrum((0, 0, 0), fid, fid, fid, **axis)
    return spectrum_of(fid, spectrum, zero_filling=4)[1].real[::-1]


# --- in the browser -------------------------------------------------------------------------------------------------


def test_a_click_shows_the_spectrum_of_the_voxel_with_fit_baseline_and_parts(opened, maps):
    fitted = build_spectra(maps, basis=True)
    results = gather(images_of(maps, fitted=fitted))
    driver = opened(report_html(results))
    slice_ = driver.execute_script("return window.report.slice()")
    seen = []
    for voxel in ((1, 2, slice_), (2, 0, slice_)):
        click_voxel(driver, 0, voxel)
        assert tuple(driver.execute_script("return window.report.voxel()")) == voxel
        row = np.flatnonzero((fitted.voxels == voxel).all(axis=1))[0]
        curves = driver.execute_script(
            "const c = window.report.curves(); return {data: [...c.data], fit: [...c.fit], nuisance: [...c.nuisance]}"
        )
        for name in ("data", "fit", "nuisance"):
            wanted = expected_curve(getattr(fitted, name)[row], results.axis)
            np.testing.assert_allclose(curves[name], wanted, atol=4e-3 * np.abs(wanted).max())
        seen.append(curves["data"])
        if len(seen) == 1:  # kept in the picture while others are looked at
            driver.execute_script("document.getElementById('hold').click()")
    assert driver.execute_script("return document.getElementById('hold').textContent") == f"drop voxel 1, 2, {slice_}"
    assert np.abs(np.subtract(*seen)).max() > 1
    # a part of the fit appears when its molecule is switched on
    assert driver.execute_script("return window.report.curves().parts.length") == 0
    driver.execute_script("document.querySelector('[data-molecule=Pi]').click()")
    (part,) = driver.execute_script("return window.report.curves().parts.map(p => [p.name, [...p.values]])")
    wanted = expected_curve(fitted.component("Pi")[row], results.axis)
    np.testing.assert_allclose(part[1], wanted, atol=4e-3 * np.abs(wanted).max())
    # what stands beside the map is the voxel's value
    value = results.maps["tNAA_per_water"].frames[0][voxel]
    read = driver.execute_script("return document.querySelector('[data-map=tNAA_per_water] .read').textContent")
    assert float(read.split(" ± ")[0]) == pytest.approx(value, rel=6e-3)


def test_markup_in_header_warning_and_table_stays_text(opened, maps):
    images = images_of(maps, warnings=[EVIL], provenance={"acquisition": ACQUIRED | {"vendor": EVIL}, EVIL: [EVIL]})
    driver = opened(report_html(gather(images), {"machine": EVIL}, regions=[["region", EVIL], [EVIL, "1.5"]]))
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert EVIL in driver.execute_script("return document.getElementById('warnings').textContent")
    assert EVIL in driver.execute_script("return document.getElementById('checklist').textContent")
    assert EVIL in driver.execute_script("return document.getElementById('regions').textContent")


def test_slices_frames_and_echo_times_have_their_own_maps_and_spectra(opened, make_maps):
    images, spectra = [], {}
    for echo, te in enumerate((0.02, 0.05)):
        for frame in (0, 1):
            maps = make_maps(frame=frame, seed=3 + frame + 2 * echo)
            protocol = dataclasses.replace(maps.protocol, echo_times_s=(te,))
            maps = dataclasses.replace(maps, echo=echo, protocol=protocol)
            spectra[echo, frame] = build_spectra(maps, seed=frame + 2 * echo)
            images += images_of(maps, fitted=spectra[echo, frame])
    results = gather(images)
    driver = opened(report_html(results))

    def move(label: str, value: int) -> None:
        driver.execute_script(
            "const s = document.querySelector(`input[aria-label=${arguments[0]}]`); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input'))", label, value,
        )  # fmt: skip

    def shown() -> tuple[list[float], float]:
        read = driver.execute_script("return document.querySelector('[data-map=tNAA_per_water] .read').textContent")
        return driver.execute_script("return [...window.report.curves().data]"), float(read.split(" ± ")[0])

    def compare(echo: int, frame: int, voxel: tuple[int, int, int]) -> None:
        fitted, part = spectra[echo, frame], list(results.echoes.values())[echo]
        data, value = shown()
        row = np.flatnonzero((fitted.voxels == voxel).all(axis=1))[0]
        wanted = expected_curve(fitted.data[row], part.axis)
        np.testing.assert_allclose(data, wanted, atol=4e-3 * np.abs(wanted).max())
        assert value == pytest.approx(part.maps["tNAA_per_water"].frames[frame][voxel], rel=6e-3)

    click_voxel(driver, 0, (1, 1, driver.execute_script("return window.report.slice()")))
    move("slice", 4)
    assert driver.execute_script("return window.report.voxel()") == [1, 1, 4]
    compare(0, 0, (1, 1, 4))
    move("frame", 1)
    compare(0, 1, (1, 1, 4))
    driver.execute_script(
        "const s = document.querySelector('#controls select'); s.value = 1; s.dispatchEvent(new Event('change'))"
    )
    compare(1, 1, (1, 1, 4))
    assert driver.execute_script("return document.querySelector('#controls select').textContent") == "te20mste50ms"


def test_deviation_window_theme_and_zoom_can_be_changed(opened, maps):
    driver = opened(report_html(gather(images_of(maps))))
    picture = "return document.querySelector('.panel > canvas').toDataURL()"
    first = driver.execute_script(picture)
    driver.execute_script("document.querySelector('[data-choice=sd]').click()")
    second = driver.execute_script(picture)
    driver.execute_script(
        "const i = document.querySelectorAll('.panel input')[1]; i.value = 0.2; i.dispatchEvent(new Event('change'))"
    )
    third = driver.execute_script(picture)
    assert len({first, second, third}) == 3
    theme = "return document.documentElement.dataset.theme"
    before = driver.execute_script(theme)
    driver.execute_script("document.getElementById('theme').click()")
    assert driver.execute_script(theme) != before
    assert driver.execute_script("return document.querySelector('[data-choice=crlb]').disabled") is True


def test_the_bare_bound_is_shown_where_the_result_has_it(opened, maps):
    bound = dataclasses.replace(maps.maps["tNAA_per_water"], crlb=0.01 * maps.maps["tNAA_per_water"].value)
    results = gather(images_of(dataclasses.replace(maps, maps={**maps.maps, "tNAA_per_water": bound})))
    np.testing.assert_array_equal(results.maps["tNAA_per_water"].crlb, bound.crlb)
    assert results.maps["tCr_per_water"].crlb is None
    driver = opened(report_html(results))
    driver.execute_script("document.querySelector('[data-choice=crlb]').click()")
    read = driver.execute_script("return document.querySelector('[data-map=tNAA_per_water] .read').textContent")
    voxel = tuple(driver.execute_script("return window.report.voxel()"))
    assert float(read.split()[0]) == pytest.approx(bound.crlb[voxel], rel=6e-3)


def test_a_result_with_a_few_spectra_shows_those_and_says_how_to_get_all(opened, maps):
    results = gather(images_of(maps, spectra="examples"))
    driver = opened(report_html(results))
    assert driver.execute_script("return window.report.voxel()") == [1, 2, 3]
    wanted = expected_curve(maps.examples[0].fit, results.axis)
    np.testing.assert_allclose(
        driver.execute_script("return [...window.report.curves().fit]"), wanted, atol=4e-3 * np.abs(wanted).max()
    )
    assert "--spectra all" in driver.execute_script("return document.getElementById('spectrumhint').textContent")
    click_voxel(driver, 0, (0, 1, 3))
    assert driver.execute_script("return window.report.curves()") is None


def test_a_result_of_pictures_alone_has_its_maps_and_no_spectrum(opened, maps):
    results = gather(images_of(maps, spectra="none", quantitative="none"))
    driver = opened(report_html(results))
    click_voxel(driver, 0, (1, 2, driver.execute_script("return window.report.slice()")))
    assert driver.execute_script("return window.report.curves()") is None
    panels = driver.execute_script("return window.report.panels()")
    assert panels[:2] == ["tNAA_per_water", "tCr_per_water"]
    voxel = tuple(driver.execute_script("return window.report.voxel()"))
    read = driver.execute_script("return document.querySelector('.panel .read').textContent")
    item = results.maps["tNAA_per_water"]
    assert float(read.split(" ± ")[0]) == pytest.approx(
        item.frames[0][voxel] * display_unit(item.name, item.unit)[0], rel=6e-3
    )


@pytest.mark.parametrize("name", ["outside_model", "fit_flag"])
def test_voxels_that_a_model_does_not_describe_can_be_hidden(opened, maps, name):
    outside = np.where(maps.mask, 0.0, np.nan).astype(np.float32)
    outside[1, 2, 3] = 1.0
    value = maps.maps["tNAA"]
    maps = dataclasses.replace(
        maps, maps={**maps.maps, name: dataclasses.replace(value, value=outside, sd=None, unit="1")}
    )
    from selenium.webdriver.support.wait import WebDriverWait

    driver = opened(report_html(gather(images_of(maps))))
    count = "return Number(document.querySelector('#medians tbody tr td:last-child')?.textContent ?? 0)"
    inside = int(maps.mask.sum())
    WebDriverWait(driver, 20).until(lambda d: d.execute_script(count) == inside)
    driver.execute_script("document.getElementById('flagged').click()")
    WebDriverWait(driver, 20).until(lambda d: d.execute_script(count) == inside - 1)


def test_the_quality_mask_hides_what_pictures_hide_and_can_be_taken_off(opened, maps):
    from selenium.webdriver.support.wait import WebDriverWait

    maps = with_quality(maps_with_quality(maps), Limits(snr=5.0, relative_sd=0.1), ("tNAA", "tCr"))
    results = gather(images_of(maps))
    item = maps.maps["tNAA_per_water"]
    shown = int((maps.display.keeps(item) & maps.mask).sum())
    assert 0 < shown < int(maps.display.voxels.sum()) < int(maps.mask.sum())
    driver = opened(report_html(results))
    count = "return Number(document.querySelector('#medians tbody tr td:last-child')?.textContent ?? 0)"
    WebDriverWait(driver, 20).until(lambda d: d.execute_script(count) == shown)
    # a pure number has no unit: "1" behind it reads like a second number
    unit = "return document.querySelector('.panel[data-map=\"%s\"] .unit').textContent"
    assert driver.execute_script(unit % "snr") == ""
    assert driver.execute_script(unit % "B0") == "Hz"
    driver.execute_script("document.getElementById('masked').click()")
    WebDriverWait(driver, 20).until(lambda d: d.execute_script(count) == int(maps.mask.sum()))


def maps_with_quality(maps):
    """Maps with an SNR that rises along z."""
    snr = np.broadcast_to(2.0 + 2 * np.arange(maps.mask.shape[2]), maps.mask.shape)
    snr = np.where(maps.mask, snr, np.nan).astype(np.float32)
    return dataclasses.replace(maps, maps={**maps.maps, "snr": Map(snr, "1")})


# --- without a browser ----------------------------------------------------------------------------------------------


def test_the_checklist_says_what_header_and_result_know_and_that_the_rest_is_not_in_the_header(maps):
    rows = {row["item"]: row["value"] for row in content_of(report_html(gather(images_of(maps))))["checklist"]}
    assert rows["Field strength"] == "3 T (1H at 123.2 MHz)"
    assert rows["Manufacturer"] == "ACME"
    assert rows["Model, software version"] is None
    assert rows["TR, TE"] == "TR 1500 ms, TE 1.3 ms"
    assert rows["Nominal voxel size"].startswith("10 x 15 x 11 mm (1.65 ml)")
    assert "matrix 3 x 4 x 5" in rows["MRSI: dimensions, field of view, matrix, acceleration, sampling"]
    assert "method not in the header" in rows["Water suppression"]
    assert "tNAA 1" in rows["Quality of the fit"] or "tNAA" in rows["Quality of the fit"]
    nothing = gather(images_of(maps, provenance={"acquisition": {}}))
    bare = {row["item"]: row["value"] for row in content_of(report_html(nothing))["checklist"]}
    assert bare["Field strength"] is bare["TR, TE"] is bare["Pulse sequence"] is None


def test_no_path_of_a_raw_file_is_in_the_page(maps, tmp_path):
    folder = tmp_path / "result"
    folder.mkdir()
    with ImageFile(folder / "images.h5") as file:
        for image in images_of(maps):
            file.append(image)
    summary = {
        "input": "/exams/DOE_JANE/scan.h5", "mode": "through JANES-SERVER", "seconds": {"fit": 0.5},
        "warnings": ["late"],
        "provenance": {"readouts": 4711, "texts": ["INFO JANE"]},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "regions.csv").write_text("region,tNAA\nleft,7.25\n")
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    assert "JANE" not in text
    content = content_of(text)
    assert content["warnings"] == ["late"]
    assert content["regions"] == [["region", "tNAA"], ["left", "7.25"]]
    assert content["provenance"]["readouts"] == 4711
    assert "http://" not in text
    assert "https://" not in text
    assert text == report_html(gather(images_of(maps)), summary, regions=content["regions"])


def test_what_cannot_be_reported_is_told_in_one_sentence(maps, tmp_path):
    with pytest.raises(ConfigError, match="holds no images.h5"):
        write_report(tmp_path)
    with ImageFile(tmp_path / "images.h5") as file:
        for image in images_of(maps):
            file.append(image)
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "none" / "page.html"):
        with pytest.raises(ConfigError, match="cannot be written as a file"):
            write_report(tmp_path, place)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json cannot be read"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no quantified map"):
        report_html(gather([]))


def unpacked(packed) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["data"]), np.dtype(f"<{packed['type']}")).reshape(packed["shape"])
    return values.astype(float) * packed.get("scale", 1.0)


def rows_of(packed) -> np.ndarray:
    parts = unpacked(packed) * unpacked(packed["scales"])[:, None, None]
    return parts[..., 0] + 1j * parts[..., 1]


@pytest.mark.parametrize(("rank", "patterns"), [(4, True), (30, False)])
def test_signals_are_stored_by_their_patterns_where_these_are_few(rng, rank, patterns):
    strengths = 10.0 ** rng.uniform(-3, 3, (50, 1))
    values = (rng.standard_normal((50, rank)) + 1j) @ (rng.standard_normal((rank, 32)) + 0.5j) * strengths
    packed = report_data.pack_signals(values.astype(np.complex64))
    assert ("patterns" in packed) == patterns
    found = rows_of(packed["rows"])
    if patterns:
        found = found @ rows_of(packed["patterns"])
    # every voxel, strong or weak, to a thousandth of itself
    assert (np.linalg.norm(found - values, axis=1) / np.linalg.norm(values, axis=1)).max() < 2e-3


def test_maps_keep_three_digits_and_gaps(rng):
    values = np.concatenate([10.0 ** rng.uniform(-4, 6, 40), [np.nan, np.inf, 0.0]])
    found = unpacked(report_data.pack_half(values))
    large = slice(0, 40)
    np.testing.assert_allclose(found[large], values[large], rtol=1e-3, atol=1e-6 * values[large].max())
    assert np.isnan(found[40:42]).all()
    assert found[42] == 0
