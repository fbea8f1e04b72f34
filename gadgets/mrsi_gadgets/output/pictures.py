"""Pictures of a result: the contact sheet of every run, and the comparison with the truth that the demo shows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.io.mrd_file import read_images
from mrsi_gadgets.output import panels
from mrsi_gadgets.output.panels import BACKGROUND, FAINT, TEXT
from mrsi_gadgets.output.results import ResultMap, Results, Spectrum, gather, shown_voxels
from mrsi_gadgets.output.scaling import display_unit, is_unknown, map_title
from mrsi_gadgets.stream.messages import Image

_USUAL = ("tNAA", "tCr", "tCho", "Ins", "Glx")
_MOST_MAPS = 8
_MOST_SPECTRA = 3
_MOST_LINES = 3
_MOST_WARNINGS = 4
_MOST_LINES_OF_ONE = 3
_LINE = 0.19
"""Height of a line of text [inch]."""
_DPI = 150
_ROW = 1.75
_MARGIN = 2
_SD_QUANTILE = 0.97
"""The rim of the mask has large standard deviations; the colours are for the rest."""
_ERROR_SHARE = 0.4
"""Ends of the error colours, as a share of the top of the value colours."""
_MISFIT_TOP = 3.0
"""Upper end of the misfit's colours, the same in every picture: 1 is noise."""
_NEGATIVE = 0.1
"""A map whose least value lies further below zero than this share of its largest has colours for both signs."""
_LONG_TITLE = 17


def contact_sheet(source: Results | Iterable[Image] | str | Path, path: str | Path) -> None:
    """Write one PNG of a result: maps with standard deviations, water, misfit, B0, mask and spectra with their fits.

    Lines that no molecule has stand beside the molecules, and the title says how large the misfit is: where it lies
    far above 1 the model does not apply, however good the maps look.

    Parameters
    ----------
    source
        Gathered results, the images themselves, or a result folder.
    path
        The PNG to write.

    Raises
    ------
    DataError
        There is no map to show.
    """
    results = _results(source)
    maps = _maps_to_show(results)
    if not maps or results.affine_ras is None:
        raise DataError("there is no map to draw; the images hold no quantified map")
    frame = min(maps[0].frames)
    mask = results.mask.get(frame, np.isfinite(maps[0].frames[frame]))
    maps += [item for item in _lines_to_show(results, frame, mask) if item not in maps]
    water, misfit = (results.maps.get(name, ResultMap(name, "")).frames.get(frame) for name in ("water", "residual"))
    spectra = results.spectra[:_MOST_SPECTRA]
    columns = len(maps) + 1 + (water is not None or misfit is not None)
    width = 1.75 * columns + 0.5
    view = _View(results.affine_ras, mask, panels.busiest_slice(mask))
    head = _sheet_title(results, view, frame, misfit)
    warnings = _warning_lines(results.warnings, width)
    above = 0.7 + _LINE * len(warnings)
    height = above + 4.7 + (3.0 if spectra else 0.0)
    figure = _figure(width, height)
    left, right, middle = 0.5 / width, 1 - 0.15 / width, 1 - (above + 4.6) / height
    grid = figure.add_gridspec(
        4, columns, left=left, right=right, top=1 - above / height, bottom=middle + 0.25 / height, wspace=0.08,
        hspace=0.1, height_ratios=(1, 0.045, 1, 0.045),
    )  # fmt: skip
    for column, item in enumerate(maps):
        _draw_map_column(figure, grid, column, item, frame, view, spectra if column == 0 else (), results)
    _draw_model_column(figure, grid, len(maps), water, misfit, view)
    _draw_field_column(figure, grid, columns - 1, results, frame, view)
    if spectra:
        lower = figure.add_gridspec(
            1, len(spectra), left=left, right=right, top=middle - 0.5 / height, bottom=0.42 / height, wspace=0.06
        )
        for column, spectrum in enumerate(spectra):
            panels.draw_spectrum(figure.add_subplot(lower[0, column]), spectrum, title=_voxel_title(column, spectrum))
        panels.write_legend(figure, left, middle - 0.24 / height)
    _head_line(figure, "\n".join([head, *warnings]), height)
    figure.savefig(path, dpi=_DPI, facecolor=BACKGROUND, metadata={"Software": "mrsi-gadgets"})


def demo_sheet(
    path: str | Path,
    *,
    truth: Mapping[str, np.ndarray],
    estimates: Mapping[str, Mapping[str, np.ndarray]],
    mask: np.ndarray,
    affine_ras: np.ndarray,
    unit: str,
    spectra: Sequence[Spectrum] = (),
    notes: Mapping[str, Mapping[str, str]] | None = None,
    title: str = "",
) -> None:
    """Write one PNG that compares methods with the truth: maps on one colour scale per molecule, their errors, spectra.

    Parameters
    ----------
    path
        The PNG to write.
    truth
        Molecule -> (x, y, z) in `unit`; its order is that of the columns.
    estimates
        Method -> molecule -> map, already in the unit and on the scale of the truth.
    mask
        (x, y, z) bool: voxels to show.
    affine_ras
        Voxel index to RAS mm.
    unit
        Unit of all maps.
    spectra
        Up to three, drawn on the right.
    notes
        Method -> molecule -> short text written on its error map.
    title
        Line above the picture.

    Raises
    ------
    DataError
        A method lacks a molecule of the truth.
    """
    for method, maps in estimates.items():
        missing = [name for name in truth if name not in maps]
        if missing:
            raise DataError(f"method '{method}' has no map of {', '.join(missing)}; the comparison needs all of them")
    n_maps, n_rows = len(truth), 1 + len(estimates)
    view = _View(affine_ras, mask, panels.busiest_slice(mask))
    wide, map_width, height = (4.4 if spectra else 0.1), _ROW * view.shape_ratio, _ROW * (2 * n_rows - 1) + 1.75
    width = 0.45 + map_width * n_maps + wide + 0.2
    figure = _figure(width, height)
    ratios = [1.0] * n_rows + [0.045, 0.08] + [1.0] * (n_rows - 1) + [0.045]
    grid = figure.add_gridspec(
        len(ratios), n_maps, left=0.45 / width, right=(0.45 + map_width * n_maps) / width, top=1 - 0.75 / height,
        bottom=0.3 / height, wspace=0.06, hspace=0.07, height_ratios=ratios,
    )  # fmt: skip
    for column, name in enumerate(truth):
        marked = spectra[:_MOST_SPECTRA] if column == 0 else ()
        _draw_comparison_column(figure, grid, column, name, truth, estimates, view, unit, notes or {}, marked)
    if spectra:
        _draw_spectra_column(figure, spectra[:_MOST_SPECTRA], (width - wide + 0.1) / width, 1 - 0.2 / width, height)
    _head_line(figure, title, height)
    figure.savefig(path, dpi=_DPI, facecolor=BACKGROUND, metadata={"Software": "mrsi-gadgets"})


class _View:
    """The slice that is drawn, and the part of it the mask fills."""

    def __init__(self, affine_ras: np.ndarray, mask: np.ndarray, index: int) -> None:
        self.affine_ras, self.mask, self.index = affine_ras, mask, index
        inside = panels.radiological_slice(mask, affine_ras, index).values
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not rows.size:
            rows, columns = np.arange(inside.shape[0]), np.arange(inside.shape[1])
        self.box = (
            int(max(rows[0] - _MARGIN, 0)), int(min(rows[-1] + 1 + _MARGIN, inside.shape[0])),
            int(max(columns[0] - _MARGIN, 0)), int(min(columns[-1] + 1 + _MARGIN, inside.shape[1])),
        )  # fmt: skip

    @property
    def shape_ratio(self) -> float:
        """Width over height of what is shown, kept between 0.6 and 1.6."""
        aspect = panels.radiological_slice(self.mask, self.affine_ras, self.index).aspect
        top, bottom, left, right = self.box
        return float(np.clip((right - left) / ((bottom - top) * aspect), 0.6, 1.6))

    def mark(self, axes: Any, spectra: Sequence[Spectrum]) -> None:
        """Write the number of each spectrum where its voxel lies in this slice."""
        for number, spectrum in enumerate(spectra, start=1):
            place = np.zeros(self.mask.shape, dtype=bool)
            place[spectrum.voxel] = True
            for row, column in np.argwhere(panels.radiological_slice(place, self.affine_ras, self.index).values):
                panels.write(axes, float(column), float(row), str(number), data=True)

    def draw(
        self,
        axes: Any,
        volume: np.ndarray,
        colours: Any,
        low: float,
        high: float,
        *,
        labels: bool,
        everywhere: bool = False,
    ) -> Any:
        """Draw a volume inside the mask (or `everywhere`), NaN and everything outside as background."""
        masked = volume if everywhere else np.where(self.mask, volume, np.nan)
        picture = panels.radiological_slice(masked, self.affine_ras, self.index)
        return panels.draw_slice(axes, picture, colours=colours, low=low, high=high, labels=labels, box=self.box)


def _results(source: Results | Iterable[Image] | str | Path) -> Results:
    if isinstance(source, Results):
        return source
    if isinstance(source, str | Path):
        return gather(read_images(Path(source) / "images.h5"))
    return gather(source)


def _maps_to_show(results: Results) -> list[ResultMap]:
    shown = [name for name in results.shown if not is_unknown(name)]
    names = shown or [n for n in _USUAL if n in results.maps] or list(results.maps)
    return [results.maps[name] for name in names[:_MOST_MAPS] if name in results.maps and results.maps[name].frames]


def _lines_to_show(results: Results, frame: int, mask: np.ndarray) -> list[ResultMap]:
    """Return the maps of lines that no molecule has, where this frame has the line."""
    found = [item for name, item in results.maps.items() if is_unknown(name) and frame in item.frames]
    seen = [item for item in found if np.any(np.nan_to_num(item.frames[frame][mask]) != 0)]
    return seen[:_MOST_LINES]


def _draw_map_column(
    figure: Any, grid: Any, column: int, item: ResultMap, frame: int, view: _View, marked: Sequence[Spectrum],
    results: Results,
) -> None:  # fmt: skip
    first = column == 0
    title = (
        map_title(item.name)
        .replace("_per_water", "")
        .removesuffix("_mM")
        .replace("_per_", " / ")
        .replace("unknown line", "unknown")
    )
    factor, unit = display_unit(item.name, item.unit)
    value = np.where(shown_voxels(results, item, frame), item.frames[frame] * factor, np.nan)
    axes = figure.add_subplot(grid[0, column])
    colours, low, high = _colours(value[view.mask], both_signs=is_unknown(item.name))
    artist = view.draw(axes, value, colours, low, high, labels=first)
    _title(axes, title, unit)
    view.mark(axes, marked)
    bar = figure.add_subplot(grid[1, column])
    if np.isfinite(value[view.mask]).any():
        panels.draw_colour_bar(figure, artist, bar)
    else:
        # colours of nothing would look like a measured zero
        bar.axis("off")
        why = "hidden by the\nquality mask" if np.isfinite(item.frames[frame][view.mask]).any() else "no value"
        axes.text(0.5, 0.22, why, transform=axes.transAxes, color=FAINT, fontsize=9, ha="center", va="center")
    if first:
        _row_name(axes, "value")
    sd = item.sd_frames.get(frame)
    if sd is None:
        return
    sd = sd * factor
    axes = figure.add_subplot(grid[2, column])
    artist = view.draw(axes, sd, panels.DEVIATION, 0.0, panels.nice_top(sd[view.mask], _SD_QUANTILE), labels=False)
    panels.draw_colour_bar(figure, artist, figure.add_subplot(grid[3, column]))
    if first:
        _row_name(axes, "standard deviation")


def _colours(values: np.ndarray, *, both_signs: bool) -> tuple[Any, float, float]:
    """Return colour map and ends for values: from zero, or about zero where negative ones may mean something."""
    present = values[np.isfinite(values) & (values != 0)] if both_signs else values
    top = panels.nice_top(present)
    if not both_signs or not present.size or float(present.min()) > -_NEGATIVE * float(np.abs(present).max()):
        return panels.AMOUNT, 0.0, top
    top = panels.nice_top(np.abs(present))
    return panels.difference_map(), -top, top


def _draw_model_column(
    figure: Any, grid: Any, column: int, water: np.ndarray | None, misfit: np.ndarray | None, view: _View
) -> None:
    """Draw water, everywhere, and where the model does not apply."""
    if water is not None:
        axes = figure.add_subplot(grid[0, column])
        top = panels.nice_top(water[view.mask] if view.mask.any() else water)
        artist = view.draw(axes, water, "gray", 0.0, top, labels=False, everywhere=True)
        _title(axes, "water", "a.u.")
        panels.draw_colour_bar(figure, artist, figure.add_subplot(grid[1, column]))
    if misfit is not None:
        axes = figure.add_subplot(grid[2, column])
        artist = view.draw(axes, misfit, panels.AMOUNT, 0.0, _MISFIT_TOP, labels=False)
        bar = figure.add_subplot(grid[3, column])
        panels.draw_colour_bar(figure, artist, bar, open_end=True)
        bar.set_xlabel("misfit (1 = noise)", color=TEXT, fontsize=9, labelpad=1)


def _draw_field_column(figure: Any, grid: Any, column: int, results: Results, frame: int, view: _View) -> None:
    field = results.b0.get(frame)
    if field is not None:
        axes = figure.add_subplot(grid[0, column])
        top = panels.nice_top(np.abs(field[view.mask]))
        artist = view.draw(axes, field, panels.difference_map(), -top, top, labels=False)
        _title(axes, "B0", "Hz")
        panels.draw_colour_bar(figure, artist, figure.add_subplot(grid[1, column]))
    axes = figure.add_subplot(grid[2, column])
    view.draw(axes, np.ones(view.mask.shape), "Greys_r", 0.0, 1.4, labels=False)
    axes.set_title("mask", color=TEXT, fontsize=9, pad=2, y=-0.12)


def _draw_comparison_column(
    figure: Any,
    grid: Any,
    column: int,
    name: str,
    truth: Mapping[str, np.ndarray],
    estimates: Mapping[str, Mapping[str, np.ndarray]],
    view: _View,
    unit: str,
    notes: Mapping[str, Mapping[str, str]],
    marked: Sequence[Spectrum],
) -> None:
    top = panels.nice_top(truth[name][view.mask])
    rows = {"truth": truth[name]} | {method: maps[name] for method, maps in estimates.items()}
    for row, (method, values) in enumerate(rows.items()):
        axes = figure.add_subplot(grid[row, column])
        artist = view.draw(axes, values, panels.AMOUNT, 0.0, top, labels=row == 0 and column == 0)
        if row == 0:
            _title(axes, name, unit)
            view.mark(axes, marked)
        if column == 0:
            _row_name(axes, method)
    panels.draw_colour_bar(figure, artist, figure.add_subplot(grid[len(rows), column]))
    end = _ERROR_SHARE * top
    for row, (method, maps) in enumerate(estimates.items(), start=len(rows) + 2):
        axes = figure.add_subplot(grid[row, column])
        artist = view.draw(axes, maps[name] - truth[name], panels.difference_map(), -end, end, labels=False)
        note = notes.get(method, {}).get(name, "")
        axes.text(0.5, -0.01, note, transform=axes.transAxes, color=TEXT, fontsize=7.5, ha="center", va="top")
        if column == 0:
            _row_name(axes, f"{method} − truth")
    panels.draw_colour_bar(figure, artist, figure.add_subplot(grid[-1, column]))


def _draw_spectra_column(figure: Any, spectra: Sequence[Spectrum], left: float, right: float, height: float) -> None:
    grid = figure.add_gridspec(
        len(spectra), 1, left=left, right=right, top=1 - 0.75 / height, bottom=0.42 / height, hspace=0.14
    )
    for row, spectrum in enumerate(spectra):
        axes = figure.add_subplot(grid[row, 0])
        last = row == len(spectra) - 1
        panels.draw_spectrum(axes, spectrum, title=_voxel_title(row, spectrum), last=last)
    panels.write_legend(figure, left, 1 - 0.5 / height)


def _voxel_title(index: int, spectrum: Spectrum) -> str:
    return f"{index + 1}   voxel {', '.join(str(i) for i in spectrum.voxel)}"


def _title(axes: Any, name: str, unit: str) -> None:
    text = name if unit in ("", "1") else f"{name} [{unit}]"
    axes.set_title(text, color=TEXT, fontsize=10.5 * min(1.0, _LONG_TITLE / len(text)), pad=4)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def _row_name(axes: Any, text: str) -> None:
    axes.text(-0.06, 0.5, text, transform=axes.transAxes, color=TEXT, fontsize=9, rotation=90, ha="right", va="center")


def _head_line(figure: Any, text: str, height: float) -> None:
    figure.text(0.012, 1 - 0.14 / height, text, color=FAINT, fontsize=10, ha="left", va="top")


def _sheet_title(results: Results, view: _View, frame: int, misfit: np.ndarray | None) -> str:
    parts = ["mrsi-gadgets"]
    method = results.provenance.get("reconstruct") or results.provenance.get("method")
    if isinstance(method, str):
        parts.append(method)
    parts.append(f"{' x '.join(str(n) for n in view.mask.shape)}, {int(view.mask.sum())} voxels fitted")
    if view.mask.shape[2] > 1:
        parts.append(f"slice {view.index + 1} of {view.mask.shape[2]}")
    if len(results.mask) > 1:
        parts.append(f"frame {frame + 1} of {len(results.mask)}")
    inside = np.array([]) if misfit is None else misfit[view.mask & np.isfinite(misfit)]
    if inside.size:
        parts.append(f"median misfit {np.median(inside):.2g} (1 = noise)")
    return "   ".join(parts)


def _warning_lines(sentences: Sequence[str], width: float) -> list[str]:
    """Return sentences in lines that fit across a picture of `width` inch; the last says how many are left out."""
    lines: list[str] = []
    for sentence in sentences[:_MOST_WARNINGS]:
        lines += textwrap.wrap(
            f"! {sentence}", int(width * 12), subsequent_indent="   ", max_lines=_MOST_LINES_OF_ONE, placeholder=" …"
        )
    left_out = len(sentences) - _MOST_WARNINGS
    return lines + [f"! and {left_out} more, in summary.json"] * (left_out > 0)
