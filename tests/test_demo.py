"""The first five minutes, with a brain small enough for a test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.demo import METHODS, NAMES, TITLES, run_demo
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.io.mrd_file import read_images
from mrsi_gadgets.output.meta import from_xml, value_of
from mrsi_gadgets.phantom.presets import PRESETS

pytestmark = pytest.mark.timeout(180)


def test_the_demo_simulates_serves_streams_and_shows(tmp_path, monkeypatch):
    small = replace(PRESETS["csi16"], name="small", subvoxels=(4, 4, 1), n_coils=3, n_times=128)
    monkeypatch.setitem(PRESETS, "small", small)
    text = run_demo(tmp_path / "demo", preset="small")
    written = {path.relative_to(tmp_path / "demo").as_posix() for path in (tmp_path / "demo").rglob("*")}
    assert {"brain.h5", "brain.truth.npz", "contact.png"} <= written
    for method in METHODS:
        assert {f"{method}/maps/{name}.nii.gz" for name in NAMES} <= written
        assert {f"{method}/images.h5", f"{method}/contact.png", f"{method}/summary.json"} <= written
        assert f"{method}/report.html" in written
        row = next(line for line in text.splitlines() if line.startswith(TITLES[method]))
        nrmse = [float(cell.split()[-1]) for cell in row.split(" / ")[: len(NAMES)]]
        assert len(nrmse) == len(NAMES)
        assert max(nrmse) < 0.15
        shown = [
            image for image in read_images(tmp_path / "demo" / method / "images.h5") if image.data.dtype.kind == "u"
        ]
        assert len(shown) > 2 * len(NAMES)
        for image in shown:
            title = value_of(from_xml(image.attributes), "SeriesDescription")
            assert len(np.unique(image.data)) > 1, f"{title} would be black on a console"
    assert str(tmp_path / "demo" / "contact.png") in text


def test_an_unknown_preset_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="there is no preset 'csi17'"):
        run_demo(tmp_path / "demo", preset="csi17")
    assert list(tmp_path.iterdir()) == []
