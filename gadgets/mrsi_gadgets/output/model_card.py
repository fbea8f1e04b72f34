"""The picture of a trained signal model: how training went, what the model can represent, and what it does to noise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ModelError
from mrsi_gadgets.output import panels
from mrsi_gadgets.output.panels import BACKGROUND, DATA_COLOUR, FAINT, FIT_COLOUR, NUISANCE_COLOUR, PANEL, TEXT
from mrsi_gadgets.output.results import Spectrum

_SIZE = (13.0, 7.4)
_DPI = 150
_CROWDED, _GAP = 0.97, 0.12
"""Spectra of an example stand so far apart, in heights of the clean one, that only the highest lines of one reach into
the next."""
_CURVES = {"autoencoder": "squared error / variance", "projector": "squared error / linear estimate's"}
_ESTIMATES = {
    "data": ("data on the model's rows", FAINT), "linear": ("best linear estimate", NUISANCE_COLOUR),
    "projector": ("projector", FIT_COLOUR),
}  # fmt: skip
_LOST = {"linear": ("linear (principal axes)", NUISANCE_COLOUR), "nonlinear": ("nonlinear (autoencoder)", FIT_COLOUR)}


@dataclass(frozen=True, eq=False)
class ExampleFid:
    """One FID that the model was not trained on, complex (t,) each."""

    snr: float
    """Peak SNR of the noise that was added."""
    clean: np.ndarray
    noisy: np.ndarray
    projected: np.ndarray

    def error_of(self, fid: np.ndarray) -> float:
        """Return the relative l2 error of an estimate of the clean FID."""
        return float(np.linalg.norm(fid - self.clean) / np.linalg.norm(self.clean))


def draw_model(path: Path, card: Mapping[str, Any], protocol: Protocol, examples: Sequence[ExampleFid]) -> None:
    """Write one PNG of a model: training curves, error against size and SNR (its card's), spectra of examples.

    The file appears when it is complete.

    Raises
    ------
    ModelError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    upper = figure.add_gridspec(1, 4, left=0.055, right=0.985, top=0.86, bottom=0.53, wspace=0.3)
    for column, (stage, unit) in enumerate(_CURVES.items()):
        _draw_curve(figure.add_subplot(upper[0, column]), stage, card["curves"].get(stage, ()), unit)
    _draw_lines(
        figure.add_subplot(upper[0, 2]), card["representation"], "numbers", _LOST, "what the model cannot represent",
        "real numbers for one FID", ticks=[int(entry["numbers"]) for entry in card["representation"]],
    )  # fmt: skip
    _draw_lines(
        figure.add_subplot(upper[0, 3]), card["errors"], "snr", _ESTIMATES, "error against noise", "peak SNR",
        ticks=_round_values(card["errors"], "snr"),
    )  # fmt: skip
    lower = figure.add_gridspec(1, max(1, len(examples)), left=0.02, right=0.985, top=0.4, bottom=0.075, wspace=0.06)
    for column, example in enumerate(examples):
        _draw_example(figure.add_subplot(lower[0, column]), example, protocol)
    for column, (text, colour) in enumerate((("noisy", FAINT), ("projected", FIT_COLOUR), ("clean", DATA_COLOUR))):
        figure.text(0.02 + 0.06 * column, 0.442, text, color=colour, fontsize=8.5)
    figure.text(0.012, 0.975, _head(card), color=FAINT, fontsize=10, ha="left", va="top")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, dpi=_DPI, facecolor=BACKGROUND, format="png", metadata={"Software": "mrsi-gadgets"})
        part.replace(path)
    except OSError as problem:
        raise ModelError(f"{path} cannot be written ({problem.strerror}); choose another folder") from problem
    finally:
        part.unlink(missing_ok=True)


def _head(card: Mapping[str, Any]) -> str:
    sizes = card["sizes"]
    return (
        f"{card['title']}   {card['fingerprint']}\n"
        f"{sizes['rank']} rows, latent of {sizes['latent']} numbers   seed {card['seed']}   {card['created'][:10]}   "
        f"mrsi-gadgets {card['versions']['mrsi-gadgets']}"
    )


def _draw_curve(axes: Any, stage: str, points: Sequence[Sequence[float]], unit: str) -> None:
    if points:
        steps, training, validation = np.array(points, dtype=float).T
        axes.plot(steps, training, color=NUISANCE_COLOUR, lw=1.2, label="training")
        axes.plot(steps, validation, color=FIT_COLOUR, lw=1.5, label="fresh FIDs")
        axes.plot(steps[validation.argmin()], validation.min(), "o", color=FIT_COLOUR, ms=4)
        _scale(axes, np.concatenate([training, validation]))
    _dress(axes, f"training the {stage}", "step", unit, legend="upper right")


def _draw_lines(
    axes: Any, entries: Sequence[Mapping[str, float]], over: str, lines: Mapping[str, tuple[str, str]], title: str,
    label: str, *, ticks: Sequence[float],
) -> None:  # fmt: skip
    across = [entry[over] for entry in entries]
    everything = []
    for name, (text, colour) in lines.items():
        values = [entry[name] for entry in entries]
        axes.plot(across, values, "o-", color=colour, lw=1.4, ms=3.5, label=text)
        everything += values
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _scale(axes, np.array(everything))
    _dress(axes, title, label, "relative error", legend="lower left")


def _round_values(entries: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """Return 1, 3, 10, 30, ... within the range of a column."""
    values = [entry[name] for entry in entries]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    ladder = [m * 10.0**power for power in range(-6, 7) for m in (1, 3)]
    return [value for value in ladder if low * 0.999 <= value <= high * 1.001]


def _scale(axes: Any, values: np.ndarray) -> None:
    """Make the upright axis logarithmic where values differ by more than 3, with a few round numbers at it."""
    low, high = float(values[values > 0].min(initial=np.inf)), float(values.max(initial=0.0))
    if not 3 * low < high:
        return
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ladder = [m * 10.0**power for power in range(-8, 9) for m in steps]
        inside = [value for value in ladder if low * 0.97 <= value <= high * 1.03]
        if len(inside) >= 3:
            break
    axes.set_yscale("log")
    axes.set_yticks(inside, [f"{value:g}" for value in inside])
    axes.yaxis.minorticks_off()


def _dress(axes: Any, title: str, across: str, along: str, *, legend: str) -> None:
    axes.set(facecolor=PANEL)
    axes.set_title(title, color=TEXT, fontsize=9.5, loc="left", pad=4)
    axes.set_xlabel(across, color=FAINT, fontsize=8, labelpad=2)
    axes.set_ylabel(along, color=FAINT, fontsize=8, labelpad=2)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=2.5, width=0.5)
    axes.grid(color=FAINT, lw=0.3, alpha=0.25)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color=FAINT, linewidth=0.5)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, fontsize=7.5, facecolor=PANEL, edgecolor="none", labelcolor=TEXT, loc=legend)


def _draw_example(axes: Any, example: ExampleFid, protocol: Protocol) -> None:
    """Draw the three real spectra over falling ppm, one above the other."""
    spectrum = Spectrum(
        (0, 0, 0), example.noisy, example.projected, np.zeros_like(example.clean), protocol.dwell_s,
        protocol.transmit_frequency_hz, protocol.reference_ppm, protocol.acquisition_delay_s, protocol.nucleus,
    )  # fmt: skip
    drawn = [panels.spectrum_of(fid, spectrum) for fid in (example.noisy, example.projected, example.clean)]
    ppm = drawn[0][0]
    shown = panels.shown_ppm(ppm, protocol.nucleus)
    height = float(np.ptp(drawn[2][1].real[shown]))
    above = 0.0
    for (_, values), colour, width in zip(drawn, (FAINT, FIT_COLOUR, DATA_COLOUR), (0.7, 1.2, 1.0), strict=True):
        curve = values.real[shown] / height
        above -= float(curve.min()) if above else 0.0
        axes.plot(ppm[shown], curve + above, color=colour, lw=width)
        above += float(np.quantile(curve, _CROWDED)) + _GAP
    axes.set(xlim=(ppm[shown][0], ppm[shown][-1]), yticks=[], facecolor=PANEL)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=2.5, width=0.5)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", color=FAINT, linewidth=0.5)
    axes.set_xlabel("chemical shift [ppm]", color=FAINT, fontsize=8, labelpad=2)
    errors = (example.error_of(fid) for fid in (example.noisy, example.projected))
    axes.set_title(
        "peak SNR {:.0f}: error {:.2f}, projected {:.2f}".format(example.snr, *errors), color=TEXT, fontsize=9, pad=3,
        loc="right",
    )  # fmt: skip
