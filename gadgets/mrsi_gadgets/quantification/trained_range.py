"""Whether a scan looks like what a learned model was trained on: widths of its lines, its SNR, its shifts.

A network answers whatever it is shown, and a manifold draws what lies beside it to itself. Neither says so, and the
residual shows it late: a wide line is fitted by less of it. But the card of a model says what its ensemble was, so that
the scan's own numbers can be compared with it once the fit is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrsi_gadgets.data import Maps
from mrsi_gadgets.quantification.preparation import VarproModel
from mrsi_gadgets.quantification.signal_quality import LIPIDS, SNR

FEWEST_VOXELS = 10
"""Voxels below which nothing is said of a scan."""
LEAST_SHIFT_HZ = 2.0
"""SD of the common shift that networks are trained with, where the ensemble's is smaller: without a water reference the
field is known less well."""
_DEVIATIONS = 2.0
"""Of what the ensemble draws from a distribution without an end, this many count as trained."""
_SHIFT_DEVIATIONS = 3.0
_MOST_LIPIDS = 1.0
_SPAN_HZ, _STEP_HZ = 80.0, 0.25


@dataclass(frozen=True)
class TrainedRange:
    """What a model was trained for; None where its card does not say it."""

    widest_hz: float | None
    """Full width at half maximum of the strongest molecule's line in the widest field."""
    snr: tuple[float, float] | None
    """Lowest and highest peak SNR."""
    shift_hz: float | None
    """Largest shift."""

    @classmethod
    def of(cls, card: Mapping[str, Any], model: VarproModel, *, least_shift_hz: float = 0.0) -> TrainedRange:
        """Read it from a model's card.

        Parameters
        ----------
        card
            `StoredModel.card`.
        model
            Of the fit: the strongest molecule's own decay, and the frequency.
        least_shift_hz
            SD of the shift that training took where the ensemble's is smaller [Hz].
        """
        ensemble, valid = (_table(card.get(key)) for key in ("ensemble", "valid"))
        gauss, lorentz = (_range(ensemble.get(key)) for key in ("broadening_ppm", "lorentzian_hz"))
        widest = None
        # measured lineshapes have no end that the card could name
        if gauss is not None and lorentz is not None and ensemble.get("lineshapes") is None:
            spread = _number(ensemble.get("t2_star_sd")) or 0.0
            own = float(model.design.rates[0]) / math.pi * math.exp(_DEVIATIONS * spread)
            mhz = model.protocol.transmit_frequency_hz * 1e-6
            widest = voigt_width(own + lorentz[1], gauss[1] * mhz)
        shift = _number(ensemble.get("common_shift_hz_sd"))
        return cls(
            widest,
            _range(valid.get("peak_snr")),
            None if shift is None else _SHIFT_DEVIATIONS * max(shift, least_shift_hz),
        )


def voigt_width(lorentz_hz: float, gauss_hz: float) -> float:
    """Return the full width of a Voigt line (Olivero and Longbothum 1977, DOI 10.1016/0022-4073(77)90161-3)."""
    return 0.5346 * lorentz_hz + math.sqrt(0.2166 * lorentz_hz**2 + gauss_hz**2)


def whole_widths(linewidth_hz: np.ndarray, lineshape: np.ndarray, model: VarproModel) -> np.ndarray:
    """Return the width of each voxel's line with what the field does within the voxel, (voxel,) [Hz].

    The fit divides the known field out, so that the map `linewidth` is what is left; a manifold sees both.

    Parameters
    ----------
    linewidth_hz
        (voxel,) that map.
    lineshape
        (voxel, node) complex: the field's (`varpro.field_lineshape`).
    model
        Of the fit.
    """
    expansion, times = model.dictionary.expansion, model.protocol.times_s
    hz = np.arange(-_SPAN_HZ, _SPAN_HZ + _STEP_HZ / 2, _STEP_HZ)
    kernel = np.exp(-2j * np.pi * times[:, None] * hz).astype(np.complex64)
    decay = np.exp(-np.pi * linewidth_hz[:, None] * times).astype(np.complex64)

    def measured(lines: np.ndarray) -> np.ndarray:
        spectra = (lines @ kernel).real
        return np.asarray(_STEP_HZ * np.sum(spectra > 0.5 * spectra.max(axis=1, keepdims=True), axis=1))

    field = ((lineshape @ expansion.from_nodes) @ expansion.functions).astype(np.complex64)
    # what the field adds: the end of a short FID widens both alike
    return linewidth_hz + measured(field * decay) - measured(decay)


def compare(
    maps: Maps, trained: TrainedRange, widths_hz: np.ndarray, *, judged: bool = False, what: str, remedy: str
) -> tuple[dict[str, Any], str]:
    """Compare a scan with what a model was trained for.

    Widths and shifts count in voxels whose SNR is at least the lowest of training, and whose lipids are no higher than
    the strongest peak: elsewhere (noise, scalp) they mean nothing. Wider, or further shifted: the 95th percentile of
    these voxels lies beyond the trained range; the median, where voxels are judged one by one. SNR: the median of all.

    Parameters
    ----------
    maps
        The fit's, with `snr` and `shift`, and `lipids` where the fit knows any.
    trained
        The range.
    widths_hz
        (voxel,) of the mask's voxels.
    judged
        Whether a gate marks single voxels beyond the model, so that a few of them are no news.
    what
        Of what the sentence speaks, such as ``the networks of model 'x'``.
    remedy
        What to do.

    Returns
    -------
    told
        For the provenance: quantity -> median, 95th percentile and the limit of training.
    sentence
        A warning, empty where the scan lies within.
    """
    snr = maps.maps[SNR].value[maps.mask].astype(float)
    shift = np.abs(maps.maps["shift"].value[maps.mask].astype(float))
    told: dict[str, Any] = {}
    beyond: list[str] = []
    clear = np.isfinite(snr) & (snr >= (trained.snr[0] if trained.snr else 0.0))
    if LIPIDS in maps.maps:
        clear &= maps.maps[LIPIDS].value[maps.mask] <= _MOST_LIPIDS
    if int(np.sum(~np.isnan(snr))) >= FEWEST_VOXELS and trained.snr is not None:
        low, high = trained.snr
        median, top = _quantiles(snr[~np.isnan(snr)])
        told["snr"] = {"median": _rounded(median), "p95": _rounded(top), "trained": [low, high]}
        if median < low:
            beyond.append(
                f"its SNR is {median:.1f} (median; 95th percentile {top:.1f}) and training went down to {low:g}"
            )
        elif median > high:
            beyond.append(
                f"its SNR is {median:.0f} (median; 95th percentile {top:.0f}) and training went up to {high:g}"
            )
    for name, unit_of, values, limit, verb in (
        ("linewidth_hz", "lines are", widths_hz, trained.widest_hz, "wide"),
        ("shift_hz", "lines lie", shift, trained.shift_hz, "off"),
    ):
        usable = clear & np.isfinite(values)
        if limit is None or int(usable.sum()) < FEWEST_VOXELS:
            continue
        median, top = _quantiles(values[usable])
        told[name] = {"median": _rounded(median), "p95": _rounded(top), "trained_to": _rounded(limit)}
        if (median if judged else top) > limit:
            beyond.append(
                f"its {unit_of} {median:.1f} Hz {verb} (median; 95th percentile {top:.1f}) and training went up to "
                f"{limit:.1f} Hz"
            )
    if not beyond:
        return told, ""
    return told, f"this scan is not like those that {what} know: {'; '.join(beyond)}; {remedy}"


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    median, top = np.quantile(values, [0.5, 0.95], method="lower")
    return float(median), float(top)


def _rounded(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _range(value: Any) -> tuple[float, float] | None:
    ends = [_number(end) for end in value] if isinstance(value, (list, tuple)) and len(value) == 2 else [None]
    return None if ends[0] is None or ends[-1] is None else (ends[0], ends[-1])
