"""Absolute concentrations by the water of the same voxels: mmol per litre of tissue, and per kilogram of its water.

A voxel's fitted amount A of a molecule and its water signal W at t = 0 are

    A w = k c (g + h) R,    W = 2 k SUM_i f_i d_i R_i,

c its concentration in tissue, f_i the fractions of grey matter (g), white matter (h) and CSF, d_i their visible water
[mmol/l], R what steady state and echo leave of a signal, w the weight that the fit's basis had already
(`physics.saturation.relaxation_weight`), and k the gain, the same for both. CSF holds next to none of the molecules, so
that

    c = A / k  w / (R (g + h)),    k = smooth(W X) / (2 smooth(X^2)),    X = SUM_i f_i d_i R_i.

The gain varies slowly (coils), so it is the least-squares fit over a neighbourhood: noise, ringing and wrong fractions
of single voxels do not reach the maps, and water that is not of the brain (scalp) does not count. R of a molecule is
the mean of its values in grey and white matter, weighed by the fractions: its concentration in both is taken as equal
for this.

Gasparovic et al., Magn Reson Med 2006;55:1219-1226, doi:10.1002/mrm.20901 (molal, equations 4 to 6); Near et al., NMR
Biomed 2021;34:e4257, doi:10.1002/nbm.4257 (consensus: name the unit, the tissue and every correction). Water and
relaxation times: `physics.brain_values`, healthy adults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.data import Map, Maps, Protocol
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.nucleus import field_strength_t, nucleus_of
from mrsi_gadgets.physics.saturation import relaxation_weight
from mrsi_gadgets.quantification.assembly import AMOUNT
from mrsi_gadgets.quantification.smoothing import smooth_in_mask
from mrsi_gadgets.quantification.tissue import ASSUMED, Tissue

MOLAR, MOLAL = "mM", "molal"
"""Endings of the names of the maps: mmol per litre of tissue, mmol per kilogram of the tissue's water."""
UNITS = (MOLAR, MOLAL)
TISSUE_WATER = "tissue_water"
"""Name of the map of visible water in tissue without CSF [kg/l]: NAME_mM over it is NAME_molal."""
FRACTION_MAPS = ("tissue_gm", "tissue_wm", "tissue_csf")
LEAST_TISSUE = 0.25
"""Grey and white matter of a voxel below which no concentration of tissue is stated."""
GAIN_FWHM_VOXELS = 2.0
"""The gain is smoothed with this full width at half maximum."""
ECHO_FLIP_DEG = 90.0
"""Excitation of a spin echo whose header names none."""
_WATER_PROTONS = 2.0
_WATER_MMOL_PER_KG = 55508.0


@dataclass(frozen=True)
class Excitation:
    """What decides how much of M0 a scan sees."""

    repetition_time_s: float
    flip_angle_deg: float
    echo_time_s: float
    """Zero for an FID, whose amplitudes count at the excitation."""
    field_t: float

    def weight(self, t1_s: float, t2_s: float, b1: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the signal of one unit of M0; `b1` is the real flip angle over the nominal one.

        Steady state of a spoiled train (Ernst and Anderson 1966), times exp(-TE / T2).
        """
        angle = np.deg2rad(self.flip_angle_deg) * np.asarray(b1)
        e1 = np.exp(-self.repetition_time_s / t1_s)
        steady = np.sin(angle) * (1.0 - e1) / (1.0 - np.cos(angle) * e1)
        return np.asarray(steady * np.exp(-self.echo_time_s / t2_s))


def excitation_of(protocol: Protocol) -> Excitation:
    """Return the excitation of a protocol that `why_not` has nothing against."""
    assert protocol.repetition_time_s
    return Excitation(
        protocol.repetition_time_s, protocol.flip_angle_deg or ECHO_FLIP_DEG, protocol.spin_echo_time_s or 0.0,
        field_strength_t(protocol),
    )  # fmt: skip


def why_not(protocol: Protocol, *, has_water: bool = True) -> str:
    """Return in one sentence why there can be no absolute concentrations, or an empty text where there can."""
    if not nucleus_of(protocol).water_is_nuisance:
        return f"no absolute concentrations of {protocol.nucleus}: they need a water reference of protons"
    if not has_water:
        return "no absolute concentrations: there is no water reference; acquire one"
    if not protocol.repetition_time_s:
        return "no absolute concentrations: the header names no repetition time; give TR in sequenceParameters"
    if not protocol.flip_angle_deg and protocol.spin_echo_time_s is None:
        return "no absolute concentrations: the header names no flip angle; give flipAngle_deg in sequenceParameters"
    return ""


def assumptions(protocol: Protocol, water: Protocol, tissue: Tissue, b1: np.ndarray | None) -> dict[str, str]:
    """Return what the concentrations rest on, for the provenance: what was given and what was taken as usual."""
    said = excitation_of(protocol)
    of_water = excitation_of(water)
    return {
        "unit": "mM: mmol per litre of grey and white matter; molal: mmol per kg of its visible water",
        "tissue": (
            "fractions given, as the acquired k-space resolves them; molecules in CSF count as none"
            if tissue.known
            else f"not given: every voxel is taken as {float(ASSUMED.grey):.0%} grey and {float(ASSUMED.white):.0%} "
            "white matter without CSF (mM of a voxel with CSF are then too low)"
        ),
        "water": "visible 43.3 mol/l in grey, 35.9 in white matter, 53.8 in CSF (Gasparovic 2006)",
        "relaxation": f"T1 and T2 of healthy adults at {said.field_t:.3g} T; TR {said.repetition_time_s * 1e3:g} ms, "
        + (f"TE {said.echo_time_s * 1e3:g} ms" if said.echo_time_s else "no echo")
        + f"; water: TR {of_water.repetition_time_s * 1e3:g} ms, "
        + (f"TE {of_water.echo_time_s * 1e3:g} ms" if of_water.echo_time_s else "no echo"),
        "flip_angle": f"{said.flip_angle_deg:g} degrees"
        + ("" if protocol.flip_angle_deg else " (not named: usual for a spin echo)")
        + (", times the B1 map" if b1 is not None else ", nominal everywhere (no B1 map given)"),
        "deviation": "that of the fit; errors of water, tissue and relaxation are not in it",
    }  # fmt: skip


def with_concentrations(
    maps: Maps,
    water: np.ndarray,
    water_protocol: Protocol | None = None,
    *,
    tissue: Tissue = ASSUMED,
    b1: np.ndarray | None = None,
    units: tuple[str, ...] = (MOLAR,),
    gain_fwhm_voxels: float = GAIN_FWHM_VOXELS,
) -> Maps:
    """Return the maps with absolute concentrations beside the amounts.

    Parameters
    ----------
    maps
        Amounts with their standard deviations, as any method of `quantify` gives them.
    water
        (x, y, z) water signal at t = 0 in the unit of the spectra.
    water_protocol
        How the water was measured; None: as the metabolites.
    tissue
        Fractions on the grid.
    b1
        (x, y, z) real flip angle over the nominal one, or None: 1 everywhere.
    units
        ``mM``, ``molal`` or both: the maps NAME_mM, NAME_molal.
    gain_fwhm_voxels
        Smoothing of the gain.

    Notes
    -----
    NaN where nothing was fitted, and where the voxel holds less than `LEAST_TISSUE` of grey and white matter. Sums are
    those of their molecules; their deviation relative to the value is that of the sum of the amounts.
    """
    protocol = maps.protocol
    said = excitation_of(protocol)
    of_water = said if water_protocol is None else excitation_of(water_protocol)
    flips = 1.0 if b1 is None else b1
    shape = maps.mask.shape
    expected = np.zeros(shape)
    for name, fraction in zip(brain_values.TISSUES, tissue.fractions, strict=True):
        t1, t2 = (brain_values.water_s(what, name, of_water.field_t) for what in ("t1", "t2"))
        expected = expected + fraction * brain_values.WATER[name].concentration_mm * of_water.weight(t1, t2, flips)
    inside = maps.mask & (water > 0)
    solid = np.broadcast_to(tissue.grey + tissue.white, shape)
    stated = maps.mask & (solid >= LEAST_TISSUE)
    gain = _ratio(
        smooth_in_mask(water * expected, inside, gain_fwhm_voxels) / _WATER_PROTONS,
        smooth_in_mask(expected**2, inside, gain_fwhm_voxels),
        stated,
    )
    visible = [brain_values.WATER[name].concentration_mm for name in ("gm", "wm")]
    kilograms = _ratio(tissue.grey * visible[0] + tissue.white * visible[1], solid * _WATER_MMOL_PER_KG, stated)
    factors = _factors(maps.maps, said, protocol, tissue, flips)
    remark = "tissue fractions given" if tissue.known else "60 % grey, 40 % white matter assumed"
    titles = {
        MOLAR: ("mM", f"per litre of grey and white matter; {remark}"),
        MOLAL: ("mmol/kg", f"per kg of water of grey and white matter; {remark}"),
    }
    found: dict[str, Map] = {}
    for name, factor in factors.items():
        molar = _ratio(factor, gain * solid, stated)
        for unit in units:
            to_unit = molar if unit == MOLAR else _ratio(molar, kilograms, stated)
            short, remarks = titles[unit]
            found[f"{name}_{unit}"] = _scaled(maps.maps[name], to_unit, f"{short} ({remarks})")
    found[TISSUE_WATER] = Map(kilograms.astype(np.float32), f"kg/l (visible water of tissue without CSF; {remark})")
    if tissue.known:
        for name, fraction in zip(FRACTION_MAPS, tissue.fractions, strict=True):
            found[name] = Map(np.where(maps.mask, fraction, np.nan).astype(np.float32), "1 (fraction of the voxel)")
    return replace(maps, maps={**maps.maps, **found})


def concentration_names(names: tuple[str, ...], units: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the maps that are added to amounts of these names: sums and molecules of protons."""
    known = {*brain_values.BRAIN, *brain_values.REPORTED_SUMS}
    return (*(f"{name}_{unit}" for unit in units for name in names if name in known), TISSUE_WATER)


def _factors(
    maps: Mapping[str, Map], said: Excitation, protocol: Protocol, tissue: Tissue, b1: np.ndarray | float
) -> dict[str, np.ndarray]:
    """Name of an amount -> (x, y, z) what the fit's weight has to be replaced by: w / R."""
    nucleus = nucleus_of(protocol)
    grey, white = np.maximum(tissue.grey, 0.0), np.maximum(tissue.white, 0.0)
    share = np.divide(grey, grey + white, out=np.full(np.shape(grey), 0.5), where=grey + white > 0)
    single: dict[str, np.ndarray] = {}
    for name in maps:
        if name not in nucleus.values or maps[name].unit != AMOUNT:
            continue
        in_grey, in_white = (
            said.weight(nucleus.t1_s(name, where, said.field_t), nucleus.t2_s(name, where, said.field_t), b1)
            for where in ("gm", "wm")
        )
        single[name] = relaxation_weight(protocol, name) / (share * in_grey + (1.0 - share) * in_white)
    found = {}
    for name, members in nucleus.sums.items():
        if name not in maps or maps[name].unit != AMOUNT or any(member not in single for member in members):
            continue
        parts = {m: weight * np.nan_to_num(maps[m].value) for m, weight in members.items()}
        total = np.asarray(sum(parts.values()))
        plain = np.mean([np.broadcast_to(single[m], total.shape) for m in members], axis=0)
        weighted = np.asarray(sum(single[m] * part for m, part in parts.items()))
        found[name] = np.divide(weighted, total, out=plain, where=total > 0)
    return found | {name: factor for name, factor in single.items() if name not in found}


def _scaled(item: Map, factor: np.ndarray, unit: str) -> Map:
    """Return a map and its deviations times a factor, in another unit."""
    value, sd, crlb = (
        None if part is None else (part * factor).astype(np.float32) for part in (item.value, item.sd, item.crlb)
    )
    assert value is not None
    return replace(item, value=value, unit=unit, sd=sd, crlb=crlb)


def _ratio(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where it is not wanted or not defined."""
    above, below = (np.broadcast_to(part, where.shape) for part in (above, below))
    return np.divide(above, below, out=np.full(where.shape, np.nan), where=where & (below > 0))
