"""Parts of a picture: a slice in radiological orientation, a colour bar, a spectrum with its fit.

Only matplotlib's object interface is used (no pyplot, no global state), and it is imported when a picture is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.output.results import Spectrum

BACKGROUND, PANEL, TEXT, FAINT = "#0e1116", "#171b22", "#e6e9ee", "#8b94a3"
DATA_COLOUR, FIT_COLOUR, NUISANCE_COLOUR, RESIDUAL_COLOUR = "#d5dbe5", "#ff9f43", "#4aa8e8", "#6f7a8a"
"""Orange and blue are told apart by every kind of colour vision."""

AMOUNT, DEVIATION = "inferno", "viridis"
"""Perceptually uniform colour maps of values and of standard deviations."""
_DIFFERENCE_STOPS = ("#c3e0ff", "#5f9fe0", "#2a68ab", "#173a61", "#12161c", "#54290f", "#9a4d17", "#dd8030", "#ffd6a6")

_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
"""LPS axis -> letters of its negative and positive end."""
_SCREEN = {
    2: (np.array([1.0, 0, 0]), np.array([0, 1.0, 0])),
    1: (np.array([1.0, 0, 0]), np.array([0, 0, -1.0])),
    0: (np.array([0, 1.0, 0]), np.array([0, 0, -1.0])),
}
"""Main direction of the slice's normal -> LPS directions that point right and down on the screen (radiological)."""
_OBLIQUE = 0.35
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_LEGEND = (
    ("data", DATA_COLOUR), ("total fit", FIT_COLOUR), ("nuisance (baseline, water, lipids)", NUISANCE_COLOUR),
    ("residual", FAINT),
)  # fmt: skip
_PPM_RANGE_1H = (0.6, 4.2)
_METABOLITES_1H = (1.85, 4.1)
"""Where neither lipids nor the foot of water set the height of what is drawn."""
_ABOVE, _BELOW = 1.0, 0.5
"""How far curves may reach beyond the metabolites, as a share of the metabolites' own range."""
_PEAKS_1H = {"NAA": 2.01, "Glx": 2.35, "tCr": 3.03, "tCho": 3.21, "Ins": 3.56, "Cr": 3.92}


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice as it is drawn: rows go down the screen, columns to the right."""

    values: np.ndarray
    aspect: float
    """Height over width of a pixel."""
    left: str
    right: str
    top: str
    bottom: str
    """Where the edges of the picture lie in the patient."""


def radiological_slice(volume: np.ndarray, affine_ras: np.ndarray, index: int) -> Slice:
    """Return slice `index` (third axis) as a radiologist looks at it: from the feet, from the front, from the left.

    Parameters
    ----------
    volume
        (x, y, z).
    affine_ras
        Voxel index to RAS mm; orientation and labels come from it alone.
    index
        Slice along z.
    """
    axes = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(affine_ras, dtype=float)[:3, :3]
    size = np.linalg.norm(axes, axis=0)
    unit = axes / size
    right, down = _SCREEN[int(np.argmax(np.abs(np.cross(unit[:, 0], unit[:, 1]))))]
    column = 0 if abs(unit[:, 0] @ right) >= abs(unit[:, 1] @ right) else 1
    row = 1 - column
    picture = volume[:, :, index] if column == 1 else volume[:, :, index].T
    across, along = unit[:, column], unit[:, row]
    if across @ right < 0:
        picture, across = picture[:, ::-1], -across
    if along @ down < 0:
        picture, along = picture[::-1], -along
    return Slice(
        values=picture,
        aspect=float(size[row] / size[column]),
        left=direction_letters(-across),
        right=direction_letters(across),
        top=direction_letters(-along),
        bottom=direction_letters(along),
    )


def direction_letters(lps: np.ndarray) -> str:
    """Return the anatomical letters of a direction, the strongest first (``L``, ``PS``); small parts are left out."""
    order = np.argsort(-np.abs(lps), kind="stable")
    letters = [_LETTERS[axis][int(lps[axis] > 0)] for axis in order if abs(lps[axis]) > _OBLIQUE]
    return "".join(letters[:2])


def nice_top(values: np.ndarray, quantile: float = 0.995) -> float:
    """Return a round number (a step of `_ROUND` times a power of ten) above nearly all finite values."""
    finite = values[np.isfinite(values)]
    wanted = float(np.quantile(finite, quantile)) if finite.size else 0.0
    if wanted <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(wanted))
    return float(next(m * power for m in _ROUND if m * power >= wanted * (1 - 1e-9)))


def busiest_slice(mask: np.ndarray) -> int:
    """Return the slice (third axis) with the most voxels, the first of equals."""
    return int(np.argmax(mask.sum(axis=(0, 1))))


def difference_map() -> Any:
    """Return a diverging colour map whose middle is the background: no difference, no light."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("difference", list(_DIFFERENCE_STOPS))


def draw_slice(
    axes: Any,
    picture: Slice,
    *,
    colours: Any,
    low: float,
    high: float,
    labels: bool = False,
    box: tuple[int, int, int, int] | None = None,
) -> Any:
    """Draw a slice, NaN as background, and return the artist a colour bar needs.

    Parameters
    ----------
    axes
        matplotlib Axes.
    picture
        What to draw.
    colours
        Colour map or its name.
    low, high
        Values of its ends.
    labels
        Write the patient's directions at the edges.
    box
        (first row, end row, first column, end column) to show, or None for everything.
    """
    artist = axes.imshow(
        np.ma.masked_invalid(picture.values), cmap=colours, vmin=low, vmax=high, aspect=picture.aspect,
        interpolation="nearest",
    )  # fmt: skip
    axes.set(xticks=[], yticks=[], facecolor=BACKGROUND)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if box is not None:
        axes.set(xlim=(box[2] - 0.5, box[3] - 0.5), ylim=(box[1] - 0.5, box[0] - 0.5))
    if labels:
        write(axes, 0.01, 0.5, picture.left, align="left")
        write(axes, 0.99, 0.5, picture.right, align="right")
        write(axes, 0.5, 0.985, picture.top, above="top")
        write(axes, 0.5, 0.015, picture.bottom, above="bottom")
    return artist


def write(
    axes: Any, x: float, y: float, text: str, *, align: str = "center", above: str = "center", data: bool = False
) -> None:
    """Write a small text with a dark rim, readable on any colour, at a place in axes (or data) coordinates."""
    from matplotlib.patheffects import withStroke

    axes.text(
        x, y, text, transform=axes.transData if data else axes.transAxes, color=TEXT, fontsize=7.5, ha=align, va=above,
        path_effects=[withStroke(linewidth=1.8, foreground=BACKGROUND)],
    )  # fmt: skip


def draw_colour_bar(figure: Any, artist: Any, axes: Any, *, open_end: bool = False) -> None:
    """Draw a horizontal colour bar into `axes` with three ticks; `open_end` says that values beyond it look like it."""
    bar = figure.colorbar(artist, cax=axes, orientation="horizontal")
    low, high = artist.get_clim()
    labels = [f"{v:.4g}" for v in (low, (low + high) / 2, high)]
    bar.set_ticks([low, (low + high) / 2, high], labels=[*labels[:2], f"≥ {labels[2]}" if open_end else labels[2]])
    bar.ax.tick_params(colors=FAINT, labelsize=7, length=2, width=0.5, pad=1.5)
    for text, align in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        text.set_ha(align)
    bar.outline.set_visible(False)


def spectrum_of(fid: np.ndarray, spectrum: Spectrum, *, zero_filling: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return (ppm falling, complex spectrum): the FID's transform with the phase of its delay taken out.

    A sample of frequency f at index i carries exp(i 2 pi f (delay + i dwell)); the transform over i leaves the phase of
    the delay, which is linear in f. The first sample counts half where it lies at t = 0.
    """
    fid = np.array(fid, dtype=np.complex128)
    if spectrum.acquisition_delay_s < spectrum.dwell_s / 2:
        fid[0] /= 2
    length = zero_filling * fid.size
    frequency = np.fft.fftshift(np.fft.fftfreq(length, spectrum.dwell_s))
    values = np.fft.fftshift(np.fft.fft(fid, length))
    values *= np.exp(-2j * np.pi * frequency * spectrum.acquisition_delay_s)
    ppm = spectrum.reference_ppm + frequency / (spectrum.transmit_frequency_hz * 1e-6)
    return ppm[::-1], values[::-1]


def shown_ppm(ppm: np.ndarray, nucleus: str) -> np.ndarray:
    """Return which points of a spectrum are drawn, (n,) bool: where the metabolites of protons lie, else all."""
    first, last = _PPM_RANGE_1H if nucleus == "1H" else (float(ppm.min()), float(ppm.max()))
    return np.asarray((ppm >= first) & (ppm <= last))


@dataclass(frozen=True, eq=False)
class Curves:
    """What is drawn of a spectrum: real parts over falling ppm, in units of the metabolites' range."""

    ppm: np.ndarray
    data: np.ndarray
    """As measured: nothing is taken off."""
    fit: np.ndarray
    """Molecules and nuisance."""
    nuisance: np.ndarray
    low: float
    high: float
    """Ends of what is shown; curves beyond them are cut."""


def curves_of(spectrum: Spectrum) -> Curves | None:
    """Return the curves of a spectrum, or None where it has no point in the range that is shown.

    The range is that of data and fit among the metabolites, and as much more as all curves need, up to once it above
    and half of it below: residual water and lipids a hundred times as high leave the metabolites visible.
    """
    ppm, measured = spectrum_of(spectrum.data, spectrum)
    parts = [measured, *(spectrum_of(fid, spectrum)[1] for fid in (spectrum.fit, spectrum.nuisance))]
    proton = spectrum.nucleus == "1H"
    inside = shown_ppm(ppm, spectrum.nucleus)
    if not inside.any():
        return None
    data, fit, nuisance = (values.real[inside] for values in parts)
    ppm = ppm[inside]
    central = (ppm >= _METABOLITES_1H[0]) & (ppm <= _METABOLITES_1H[1])
    central = central if proton and central.any() else np.ones(ppm.shape, dtype=bool)
    near = np.concatenate([data[central], fit[central]])
    low, high = float(near.min()), float(near.max())
    height = max(high - low, 1e-30)
    everything = np.concatenate([data, fit, nuisance])
    bottom = max(float(everything.min()), low - _BELOW * height)
    top = min(float(everything.max()), high + _ABOVE * height)
    return Curves(ppm, data / height, fit / height, nuisance / height, bottom / height, top / height)


def draw_spectrum(axes: Any, spectrum: Spectrum, *, title: str = "", last: bool = True) -> None:
    """Draw the measured data, the whole fit and its nuisance part, and the residual above them; ppm falls to the right.

    Nothing is subtracted from the data: a nuisance part that cancels the molecules is seen to do so.
    """
    from matplotlib.patches import Rectangle

    curves = curves_of(spectrum)
    if curves is None:
        return
    ppm, height = curves.ppm, curves.high - curves.low
    right, left = float(ppm[-1]), float(ppm[0])
    residual = curves.data - curves.fit
    half = float(np.clip(np.max(np.abs(residual)), 0.04 * height, 0.2 * height))
    offset = curves.high + 0.12 * height + half
    axes.axhline(offset, color=FAINT, lw=0.4, alpha=0.6)
    axes.axhline(0.0, color=FAINT, lw=0.4, alpha=0.4)
    window = Rectangle((right, curves.low), left - right, height, transform=axes.transData)
    strip = Rectangle((right, offset - half), left - right, 2 * half, transform=axes.transData)
    for values, colour, width, clip in (
        (residual + offset, RESIDUAL_COLOUR, 0.8, strip), (curves.nuisance, NUISANCE_COLOUR, 1.1, window),
        (curves.data, DATA_COLOUR, 1.0, window), (curves.fit, FIT_COLOUR, 1.3, window),
    ):  # fmt: skip
        axes.plot(ppm, values, color=colour, lw=width, alpha=0.95)[0].set_clip_path(clip)
    axes.set(
        xlim=(left, right), ylim=(curves.low - 0.04 * height, offset + half + 0.04 * height), yticks=[], facecolor=PANEL
    )
    axes.tick_params(colors=FAINT, labelsize=7.5, length=2.5, width=0.5, labelbottom=last)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", color=FAINT, linewidth=0.5)
    if last:
        axes.set_xlabel("chemical shift [ppm]", color=FAINT, fontsize=8, labelpad=2)
    if title:
        axes.set_title(title, color=TEXT, fontsize=8.5, loc="left", pad=3)
    if spectrum.nucleus == "1H":
        _name_peaks(axes, ppm, np.minimum(np.maximum(curves.data, curves.fit), curves.high), 0.03 * height)


def write_legend(figure: Any, x: float, y: float) -> None:
    """Write the names of a spectrum's curves in their colours, beginning at a place in figure coordinates."""
    before: Any = None
    for text, colour in _LEGEND:
        place: dict[str, Any] = {"xy": (x, y), "xycoords": "figure fraction"}
        if before is not None:
            place = {"xy": (1, 0), "xycoords": before, "xytext": (9, 0), "textcoords": "offset points"}
        before = figure.add_artist(_annotation(text, colour, **place))


def _annotation(text: str, colour: str, **place: Any) -> Any:
    from matplotlib.text import Annotation

    return Annotation(text, color=colour, fontsize=8, ha="left", va="bottom", annotation_clip=False, **place)


def _name_peaks(axes: Any, ppm: np.ndarray, curve: np.ndarray, gap: float) -> None:
    for name, at in _PEAKS_1H.items():
        near = curve[np.abs(ppm - at) < 0.05]
        if near.size:
            axes.text(at, float(near.max()) + gap, name, color=FAINT, fontsize=7, ha="center", va="bottom")
