"""Several methods on one data set as a folder: the table and one picture.

::

    FOLDER/
    ├── comparison.txt    the table as it is shown
    ├── comparison.csv    one row per method, every number
    ├── comparison.json   the same with what was left out, notes and provenance
    └── comparison.png    maps, errors where the truth is known, one voxel's spectrum, bars
"""

from __future__ import annotations

import io
import math
import textwrap
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.output import panels
from mrsi_gadgets.output.comparison_table import (
    Comparison,
    MethodResult,
    as_csv,
    as_json,
    errors_text,
    known,
    number_text,
    table,
)
from mrsi_gadgets.output.panels import BACKGROUND, DATA_COLOUR, FAINT, FIT_COLOUR, NUISANCE_COLOUR, PANEL, TEXT
from mrsi_gadgets.reconstruction.residual import BAND_PPM_1H

_FILES = ("comparison.txt", "comparison.csv", "comparison.json", "comparison.png")
_DPI = 150
_CELL, _SPECTRUM, _BARS = 1.75, 1.7, 0.6
"""Heights of a map, (with the line below it), of the spectra and of one row of bars [inch]."""
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = 0.55, 0.75, 0.58, 0.42, 0.25
_MARGIN = 2
_OVER = 2.5
"""Of the reference: longer bars are cut, their numbers stand in them."""
_INSIDE = 0.03
"""Of a spectrum's width: no tick is nearer to its ends."""
_TITLE_CHARACTERS, _LINE_CHARACTERS = 10, 13
"""Characters to an inch of the lines above the picture."""


def check_folder(folder: Path) -> None:
    """Refuse a place that cannot become the folder of a comparison, before anything is computed.

    Raises
    ------
    ConfigError
        It is a file, or lies in no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; name a folder")
    if not folder.resolve().parent.is_dir():
        raise ConfigError(f"output {folder} cannot be made because {folder.resolve().parent} is not a folder")


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write table and picture; each file of an earlier comparison is replaced when all new ones are complete.

    Raises
    ------
    ConfigError
        The folder cannot be one (see `check_folder`).
    DataError
        The disk refuses.
    """
    check_folder(folder)
    picture = io.BytesIO()
    draw_comparison(picture, comparison)
    contents = {
        "comparison.txt": f"{table(comparison)}\n".encode(),
        "comparison.csv": as_csv(comparison).encode(),
        "comparison.json": as_json(comparison).encode(),
        "comparison.png": picture.getvalue(),
    }
    parts = {name: folder / f".{name}.{uuid.uuid4().hex[:8]}.part" for name in _FILES}
    new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        for name, part in parts.items():
            part.write_bytes(contents[name])
        for name, part in parts.items():
            part.replace(folder / name)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise DataError(f"output {folder} cannot be written ({reason}); choose another place") from problem
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def draw_comparison(target: Any, comparison: Comparison) -> None:
    """Write one PNG to a path or binary file; see `comparison_figure`."""
    figure = comparison_figure(comparison)
    figure.savefig(target, dpi=_DPI, facecolor=BACKGROUND, format="png", metadata={"Software": "mrsi-gadgets"})


def comparison_figure(comparison: Comparison) -> Any:
    """Return the picture as a matplotlib Figure.

    Columns are the truth, where it is known, and the methods. Rows are the maps on one scale each, the error of all
    scored maps together, the spectrum of one voxel, and bars.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    view = _View(comparison.affine_ras, comparison.mask)
    titles = [*(["truth"] if comparison.truth else []), *(m.title for m in comparison.methods.values())]
    bars = _bars(comparison)
    n_maps = len(comparison.units) + bool(comparison.truth)
    cell = max(_CELL * view.shape_ratio, 1.25)
    width = _LEFT + cell * len(titles) + _RIGHT
    title = textwrap.wrap(comparison.title, int(width * _TITLE_CHARACTERS))
    notes = [part for line in _remarks(comparison) for part in textwrap.wrap(line, int(width * _LINE_CHARACTERS))]
    above = _TOP + 0.22 * len(title) + 0.17 * len(notes)
    height = above + _CELL * n_maps + _GAP + _SPECTRUM + 1.6 * _GAP + (_BARS + 0.3) * len(bars) + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    across = {"left": _LEFT / width, "right": 1 - _RIGHT / width, "wspace": 0.05}
    bottom = height - above - _CELL * n_maps
    upper = figure.add_gridspec(
        n_maps, len(titles), top=1 - above / height, bottom=bottom / height, hspace=0.13, **across
    )
    _draw_maps(figure, upper, comparison, view, titles)
    top = bottom - _GAP
    middle = figure.add_gridspec(1, len(titles), top=top / height, bottom=(top - _SPECTRUM) / height, **across)
    _draw_spectra(figure, middle, comparison)
    top -= _SPECTRUM + 1.6 * _GAP
    lower = figure.add_gridspec(
        len(bars), len(titles), top=top / height, bottom=_BOTTOM / height, hspace=0.45, **across
    )
    for row, bar in enumerate(bars):
        _draw_bars(figure.add_subplot(lower[row, len(titles) - len(comparison.methods) :]), bar)
    _write_head(figure, title, notes, width, height)
    return figure


class _View:
    """The slice that is drawn, and the part of it the mask fills."""

    def __init__(self, affine_ras: np.ndarray, mask: np.ndarray) -> None:
        self.affine_ras, self.mask, self.index = affine_ras, mask, panels.busiest_slice(mask)
        inside = self.cut(mask)
        rows, columns = (np.flatnonzero(inside.values.any(axis=axis)) for axis in (1, 0))
        ends = [
            (int(max(found[0] - _MARGIN, 0)), int(min(found[-1] + 1 + _MARGIN, size)))
            for found, size in zip((rows, columns), inside.values.shape, strict=True)
        ]
        self.box = (*ends[0], *ends[1])
        (top, bottom), (left, right) = ends
        self.shape_ratio = float(np.clip((right - left) / ((bottom - top) * inside.aspect), 0.6, 1.6))

    def cut(self, volume: np.ndarray) -> panels.Slice:
        return panels.radiological_slice(volume, self.affine_ras, self.index)

    def draw(self, axes: Any, volume: np.ndarray, colours: Any, high: float, *, labels: bool = False) -> Any:
        picture = self.cut(np.where(self.mask, volume, np.nan))
        return panels.draw_slice(axes, picture, colours=colours, low=0.0, high=high, labels=labels, box=self.box)

    def place(self, voxel: tuple[int, int, int]) -> tuple[float, float] | None:
        """Return (column, row) of a voxel in this slice."""
        marked = np.zeros(self.mask.shape, dtype=bool)
        marked[voxel] = True
        found = np.argwhere(self.cut(marked).values)
        return (float(found[0, 1]), float(found[0, 0])) if len(found) else None


def _draw_maps(figure: Any, grid: Any, comparison: Comparison, view: _View, titles: Sequence[str]) -> None:
    methods = list(comparison.methods.values())
    for row, (name, unit) in enumerate(comparison.units.items()):
        volumes = [m.maps[name] for m in methods]
        truth = comparison.truth.get(name)
        scale = truth if truth is not None else np.stack(volumes)[:, view.mask]
        high = panels.nice_top(scale[view.mask] if truth is not None else scale, 0.99)
        drawn = (
            volumes
            if not comparison.truth
            else [truth if truth is not None else np.full_like(volumes[0], np.nan), *volumes]
        )
        for column, volume in enumerate(drawn):
            axes = figure.add_subplot(grid[row, column])
            artist = view.draw(axes, volume, panels.AMOUNT, high, labels=row == column == 0)
            if row == 0:
                axes.set_title(titles[column], color=TEXT, fontsize=9.5, pad=4)
            if column == 0:
                _row_name(axes, f"{name} [{unit}]" if unit else name)
                place = view.place(comparison.example.voxel)
                if place is not None and row == 0:
                    _encircle(axes, place)
            behind = column - (len(drawn) - len(methods))
            if behind >= 0 and f"{name}_nrmse" in methods[behind].numbers:
                _write_below(axes, errors_text(methods[behind], name))
        _colour_bar(figure, artist, axes)
    if comparison.truth:
        _draw_errors(figure, grid, comparison, view)


def _draw_errors(figure: Any, grid: Any, comparison: Comparison, view: _View) -> None:
    """Draw the root mean square over the scored maps of estimate less truth, each over its truth's mean [%]."""
    errors = [_relative_error(m, comparison) for m in comparison.methods.values()]
    high = panels.nice_top(np.stack(errors)[:, view.mask], 0.97)
    row = len(comparison.units)
    for column, (error, method) in enumerate(zip(errors, comparison.methods.values(), strict=True), start=1):
        axes = figure.add_subplot(grid[row, column])
        artist = view.draw(axes, error, panels.DEVIATION, high)
        if column == 1:
            _row_name(axes, "error of all [%]")
        detail = [method.numbers.get(f"{name}_detail", math.nan) for name in comparison.sums]
        _write_below(axes, f"mean detail {np.mean(detail):.2f}")
    _colour_bar(figure, artist, axes)


def _relative_error(method: MethodResult, comparison: Comparison) -> np.ndarray:
    parts = []
    for name in comparison.sums:
        truth = comparison.truth[name]
        parts.append((np.nan_to_num(method.maps[name]) - truth) / float(np.mean(truth[comparison.mask])))
    return np.asarray(100 * np.sqrt(np.mean(np.square(parts), axis=0)))


def _draw_spectra(figure: Any, grid: Any, comparison: Comparison) -> None:
    """Draw the voxel's spectrum of each method over that of the data; ppm falls from left to right."""
    example = comparison.example
    ppm, data = panels.spectrum_of(example.data, example)
    shown = panels.shown_ppm(ppm, example.nucleus)
    fids = [*([example.fit] if comparison.truth else []), *(m.fid for m in comparison.methods.values())]
    curves = [panels.spectrum_of(fid, example)[1].real for fid in fids]
    low, high = BAND_PPM_1H if example.nucleus == "1H" else (ppm.min(), ppm.max())
    band = (ppm >= low) & (ppm <= high)
    everything = np.concatenate([curve[band] for curve in [*curves, data.real]])
    bottom, top = float(everything.min()), float(everything.max())
    pad = 0.06 * max(top - bottom, 1e-30)
    for column, curve in enumerate(curves):
        axes = figure.add_subplot(grid[0, column])
        axes.axhline(0.0, color=FAINT, lw=0.4, alpha=0.5)
        axes.plot(ppm[shown], data.real[shown], color=FAINT, lw=0.6, alpha=0.7)
        axes.plot(ppm[shown], curve[shown], color=FIT_COLOUR, lw=1.1)
        axes.set(xlim=(ppm[shown][0], ppm[shown][-1]), ylim=(bottom - pad, top + pad), yticks=[], facecolor=PANEL)
        axes.set_xticks(_few_ticks(*axes.get_xlim()))
        _dress(axes)
        if column == 0:
            _row_name(axes, "spectrum at o")
            axes.set_xlabel("chemical shift [ppm]", color=FAINT, fontsize=7.5, labelpad=1)


@dataclass(frozen=True)
class _Bar:
    """One row of bars."""

    title: str
    values: Sequence[float]
    form: str
    line: float | None = None
    """Where a reference stands; bars beyond `_OVER` times it are cut."""
    logarithmic: bool = False


def _bars(comparison: Comparison) -> list[_Bar]:
    def of(key: str) -> list[float]:
        return [m.numbers.get(key, math.nan) for m in comparison.methods.values()]

    found = [
        _Bar("time of the reconstruction [s], logarithmic", of("reconstruct_s"), ".2f", logarithmic=True),
        _Bar("energy of the residual over noise (line: white)", of("residual_energy"), ".2f", 1.0),
        _Bar("strongest line in the residual [SD of noise] (line: white)", of("strongest_line"), ".1f",
             comparison.white_line),
    ]  # fmt: skip
    if known(comparison.methods, "fid_error"):
        found.append(_Bar("FID error", of("fid_error"), ".3f"))
    return found


def _draw_bars(axes: Any, bar: _Bar) -> None:
    values = np.array(bar.values, dtype=float)
    seen = np.where(np.isfinite(values), values, 0.0)
    top = max(float(seen.max(initial=0.0)), bar.line or 0.0, 1e-12)
    base = 0.0
    if bar.logarithmic:
        base = float(seen[seen > 0].min(initial=top)) / 3
        axes.set_yscale("log")
    if bar.line is not None:
        axes.axhline(bar.line, color=FIT_COLOUR, lw=1.0)
        top = min(top, _OVER * bar.line)
    axes.bar(np.arange(len(values)), np.clip(seen, base, top) - base, 0.5, bottom=base, color=NUISANCE_COLOUR)
    for place, value in enumerate(values):
        x = (place + 0.5) / len(values)
        panels.write(axes, x, 0.05, number_text(value, bar.form), above="bottom")
    high = top * (top / base) ** 0.05 if bar.logarithmic else 1.05 * top
    axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(base, high), xticks=[], yticks=[], facecolor=BACKGROUND)
    axes.yaxis.set_minor_locator(_no_ticks())
    axes.set_title(bar.title, color=DATA_COLOUR, fontsize=8, loc="left", pad=3)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", color=FAINT, linewidth=0.5)


def _few_ticks(first: float, last: float) -> list[float]:
    """Return round numbers well inside a range, so that they do not run into those of the next panel."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted((first, last))
    inner = _INSIDE * (high - low)
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low + inner <= tick <= high - inner]


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _dress(axes: Any) -> None:
    axes.tick_params(colors=FAINT, labelsize=7, length=2.5, width=0.5)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", color=FAINT, linewidth=0.5)


def _colour_bar(figure: Any, artist: Any, axes: Any) -> None:
    """Draw the scale of a row to the right of its last map."""
    box = axes.get_position()
    place = figure.add_axes((box.x1 + 0.008, box.y0 + 0.1 * box.height, 0.008, 0.8 * box.height))
    bar = figure.colorbar(artist, cax=place)
    low, high = artist.get_clim()
    bar.set_ticks([low, (low + high) / 2, high], labels=[f"{v:.4g}" for v in (low, (low + high) / 2, high)])
    bar.ax.tick_params(colors=FAINT, labelsize=7, length=2, width=0.5, pad=1.5)
    bar.outline.set_visible(False)


def _encircle(axes: Any, place: tuple[float, float]) -> None:
    for colour, width in ((BACKGROUND, 2.6), (TEXT, 1.2)):
        axes.plot(*place, "o", mfc="none", mec=colour, ms=7, mew=width)


def _write_below(axes: Any, text: str) -> None:
    axes.text(0.5, -0.02, text, transform=axes.transAxes, color=TEXT, fontsize=7.5, ha="center", va="top")


def _row_name(axes: Any, text: str) -> None:
    axes.text(-0.1, 0.5, text, transform=axes.transAxes, color=TEXT, fontsize=9, rotation=90, ha="right", va="center")


def _remarks(comparison: Comparison) -> list[str]:
    lines = ["spectra: grey is the data's least-squares FID of one voxel (o), orange the method's"]
    if comparison.truth:
        lines[0] = f"on the maps: NRMSE / detail error at common resolution; {lines[0]}"
    return lines + [f"{name} was left out: {reason}" for name, reason in comparison.left_out.items()]


def _write_head(figure: Any, title: Sequence[str], notes: Sequence[str], width: float, height: float) -> None:
    for lines, above, colour, size in ((title, 0.15, TEXT, 11), (notes, 0.23 + 0.22 * len(title), FAINT, 8.5)):
        figure.text(
            0.15 / width, 1 - above / height, "\n".join(lines), color=colour, fontsize=size, ha="left", va="top",
            linespacing=1.35,
        )  # fmt: skip
