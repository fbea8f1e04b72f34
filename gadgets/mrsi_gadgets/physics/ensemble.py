"""Ensembles of synthetic FIDs: what a voxel's signal may look like before any scan was seen (eq. 5).

    rho(t) = h(t) exp(i (phase + 2 pi df t)) [ SUM_m c_m phi_m(t) exp(-t/T2*_m + i 2 pi df_m t) + SUM_k a_k mm_k(t) ]

with h the lineshape common to all molecules (field over the voxel), and residual water and lipids apart from it. FIDs
are as the reconstruction sees them: the voxel's mean B0 taken out up to a small error, in phase with the water
reference, sampled at the protocol's own times (so that the frequency-dependent phase of the acquisition delay is in
them). Where the protocol names repetition time and flip angle, molecules are weighed by their T1 relative to NAA
(short T1 makes macromolecules stand out). Other nuclei have no macromolecules, residual water or lipids; the water
that deuterium shows is one of the molecules. The approach is that of Lam et al., Magn Reson Med 2020;83:377-390,
doi:10.1002/mrm.27980.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.basis import BRAIN_METABOLITES, BasisSet, metabolite_basis
from mrsi_gadgets.physics.lineshapes import decaying_shift, gaussian_decay
from mrsi_gadgets.physics.macromolecules import LIPID_SHARES, LIPIDS, MACROMOLECULES, WATER_PPM, BroadPeak
from mrsi_gadgets.physics.measured import MeasuredAmounts, MeasuredLineshapes, measured_amounts, members_of
from mrsi_gadgets.physics.nucleus import PROTON, Nucleus, field_strength_t, nucleus_of
from mrsi_gadgets.physics.resampling import delayed
from mrsi_gadgets.physics.saturation import macromolecule_weight, relaxation_weight

NAA_CH3_SIGNAL = PROTON.strongest_signal
"""Signal of the NAA CH3 protons at t = 0 in normal brain (9 mM, 3 protons): the unit of nuisance strengths."""
_NAA_T2_STAR_S = 0.07
_POOL_SD = 0.1
"""Relative spread of what a scan shows of several nuclei of one molecule (Overhauser enhancement, excitation)."""


@dataclass(frozen=True)
class Ensemble:
    """Distributions of everything a voxel's FID depends on. `sample` draws from them.

    The defaults are those of protons; `default_ensemble` has those of each nucleus. Water and lipids are drawn for
    protons only.
    """

    names: tuple[str, ...] = BRAIN_METABOLITES
    concentration_sd: float = 0.35
    """Log-normal spread of each molecule about its tissue value (relative)."""
    altered_share: float = 0.1
    """Share of (voxel, molecule) pairs whose concentration is instead uniform over the molecule's plausible range."""
    csf_share: float = 0.3
    """Largest CSF fraction of a voxel."""
    t2_star_sd: float = 0.2
    """Log-normal spread of each molecule's T2* about its tissue value (relative)."""
    molecule_shift_ppm_sd: float = 0.003
    """Each molecule's own shift (temperature, pH) [ppm]; molecules with a spread of their own (`Nucleus.shift_ppm_sd`:
    phosphate, which tells pH) have that."""
    common_shift_hz_sd: float = 1.0
    """Error of the B0 that was taken out [Hz]."""
    broadening_ppm: tuple[float, float] = (0.0, 0.06)
    """Gaussian width of the field over the voxel [ppm, full width at half maximum]: to 7.5 Hz at 3 T, 18 Hz at 7 T."""
    lorentzian_hz: tuple[float, float] = (0.0, 3.0)
    """Further Lorentzian width common to all molecules [Hz]."""
    phase_rad_sd: float = 0.1
    """Error of the phase (a linear model with complex coefficients does not notice; networks do)."""
    macromolecule_sd: float = 0.3
    """Log-normal spread of the macromolecules' common amplitude (relative)."""
    macromolecule_peak_sd: float = 0.2
    """Log-normal spread of each peak's amplitude beside the common one (relative)."""
    macromolecule_width_sd: float = 0.12
    """Log-normal spread of each peak's width (relative)."""
    water_strength: tuple[float, float] = (1.0, 100.0)
    """Residual water at t = 0 in units of the NAA CH3 signal, log-uniform."""
    water_components: int = 5
    water_offset_hz_sd: float = 12.0
    """Offsets of the components of residual water from 4.65 ppm [Hz]."""
    water_t2_star_s: tuple[float, float] = (0.008, 0.08)
    lipid_strength: tuple[float, float] = (0.1, 30.0)
    """Lipids that reach a voxel of brain through the point spread function, units as water, log-uniform."""
    lipid_offset_hz_sd: float = 15.0
    """Field of the scalp relative to that of the voxel [Hz]."""
    lipid_width_sd: float = 0.3
    acquisition_delay_sd_s: float = 0.0
    """Error of the acquisition delay [s]: a first-order phase of the wanted signal."""
    amounts: MeasuredAmounts | None = None
    """Amounts (and T2*) as an earlier fit found them, in place of the table's for its names (`with_measured`).
    `altered_share` applies to them as to the others."""
    lineshapes: MeasuredLineshapes | None = None
    """Those of a water reference (`measured.water_lineshapes`), in place of `broadening_ppm` and `lorentzian_hz`."""
    lineshape_share: float = 1.0
    """Share of voxels that have a measured lineshape; the others have a Gaussian and Lorentzian one."""

    def __post_init__(self) -> None:
        for name in ("broadening_ppm", "lorentzian_hz"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"ensemble {name} = ({low:g}, {high:g}) needs 0 <= low <= high")
        for name in ("water_strength", "lipid_strength", "water_t2_star_s"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"ensemble {name} = ({low:g}, {high:g}) needs 0 < low <= high")
        if not self.names:
            raise ConfigError("an ensemble needs at least one molecule; give names")
        if self.water_components < 1:
            raise ConfigError(f"ensemble water_components is {self.water_components}; it must be at least 1")
        if not (0 <= self.lineshape_share <= 1 and self.acquisition_delay_sd_s >= 0):
            raise ConfigError("ensemble lineshape_share must be from 0 to 1 and acquisition_delay_sd_s at least 0")

    def sample(self, protocol: Protocol, n: int, seed: int, *, basis: BasisSet | None = None) -> EnsembleSample:
        """Draw `n` voxels; same arguments, same result. See `sample`."""
        return sample(protocol, n, seed, ensemble=self, basis=basis)

    def with_measured(
        self,
        protocol: Protocol,
        names: Sequence[str],
        concentrations: np.ndarray,
        t2_star_s: np.ndarray | None = None,
        *,
        sd: np.ndarray | None = None,
        to_mm: float | None = None,
        resample: bool = False,
    ) -> Ensemble:
        """Return this ensemble with amounts as fitted in earlier scans; see `measured.measured_amounts`."""
        more = {"sd": sd, "to_mm": to_mm, "resample": resample}
        return replace(self, amounts=measured_amounts(protocol, names, concentrations, t2_star_s, **more))  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """Return all fields as a model's card can hold them (JSON); of what was measured, names, means and sizes."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.describe() if hasattr(value, "describe") else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class EnsembleSample:
    """Drawn FIDs, complex64 (n, t), and what they were made of."""

    metabolites: np.ndarray
    """Metabolites and macromolecules: the wanted signal."""
    macromolecules: np.ndarray
    """The macromolecules' part of `metabolites`."""
    water: np.ndarray
    """Residual water."""
    lipids: np.ndarray
    """Lipids from the scalp."""
    names: tuple[str, ...]
    concentrations_mm: np.ndarray
    """(n, molecule) [mM]."""
    t2_star_s: np.ndarray
    """(n, molecule) [s], without the common broadening."""

    @property
    def nuisance(self) -> np.ndarray:
        """Water and lipids, (n, t)."""
        return self.water + self.lipids


def default_ensemble(protocol: Protocol) -> Ensemble:
    """Return the distributions of a protocol's nucleus.

    Voxels of phosphorus and deuterium scans are two to three times as wide as those of proton scans, so the field
    varies two to three times as much over them; with few lines far apart, the wider ranges cost few rows. B0 comes from
    a line of the scan itself, phosphocreatine or water, and so is known less well than from unsuppressed water.

    Raises
    ------
    DataError
        The molecules of the nucleus are not known.
    """
    nucleus = nucleus_of(protocol)
    if nucleus.water_is_nuisance:
        return Ensemble()
    return Ensemble(
        names=nucleus.usual,
        molecule_shift_ppm_sd=0.01,
        common_shift_hz_sd=1.5,
        broadening_ppm=(0.0, 0.15),
        lorentzian_hz=(0.0, 5.0),
    )


def sample(
    protocol: Protocol, n: int, seed: int, *, ensemble: Ensemble | None = None, basis: BasisSet | None = None
) -> EnsembleSample:
    """Draw `n` FIDs at `protocol.times_s`; a unit of amplitude is one nucleus of 1 mM.

    Parameters
    ----------
    protocol : of a nucleus with known molecules; its field strength (else its frequency) selects relaxation times.
    n : number of voxels.
    seed : seed of all randomness.
    ensemble : the distributions; None for `default_ensemble`.
    basis : decay-free signals of the molecules at `protocol.times_s`, of another sequence or from a file; None for
        `metabolite_basis`.

    Raises
    ------
    ConfigError
        `n` is not positive.
    DataError
        The protocol's nucleus or field, or a molecule, is not known; the basis lacks one or has other times.
    """
    if n < 1:
        raise ConfigError(f"an ensemble of {n} voxels was asked for; ask for at least 1")
    nucleus = nucleus_of(protocol)
    ensemble = ensemble or default_ensemble(protocol)
    rng = np.random.default_rng(seed)
    more = np.random.default_rng([seed, 1])  # what is measured; without it all other draws are the same
    field_t = field_strength_t(protocol)
    tissue = _tissue_fractions(rng, n, ensemble.csf_share)
    measured = None if ensemble.amounts is None else ensemble.amounts.draw(more, n)
    concentrations = _concentrations(rng, ensemble, tissue, nucleus, None if measured is None else measured[0])
    t2_star = _t2_star(rng, ensemble, tissue, field_t, nucleus)
    if ensemble.amounts is not None and measured is not None and measured[1] is not None:
        for column, name in enumerate(ensemble.amounts.names):
            t2_star[:, _places(ensemble, nucleus, name)] = measured[1][:, column, None]
    weights = np.array([relaxation_weight(protocol, name) for name in ensemble.names])
    fids = _basis_signals(protocol, ensemble, basis)
    metabolites = _metabolite_signal(rng, protocol, ensemble, fids, concentrations * weights, t2_star)
    if not nucleus.water_is_nuisance:
        metabolites = _delayed(more, protocol, ensemble, metabolites)[0]
        metabolites *= _common_lineshape(rng, more, protocol, ensemble, n)
        nothing = np.zeros_like(metabolites)
        return EnsembleSample(metabolites, nothing, nothing, nothing, ensemble.names, concentrations, t2_star)
    macromolecules = _macromolecule_signal(rng, protocol, ensemble, tissue)
    common = _common_lineshape(rng, more, protocol, ensemble, n)
    metabolites += macromolecules
    metabolites, macromolecules = _delayed(more, protocol, ensemble, metabolites, macromolecules)
    metabolites *= common
    macromolecules *= common
    return EnsembleSample(
        metabolites,
        macromolecules,
        _water_signal(rng, protocol, ensemble, n),
        _lipid_signal(rng, protocol, ensemble, n),
        ensemble.names,
        concentrations,
        t2_star,
    )


def noise_sd_at_snr(protocol: Protocol, snr: float) -> float:
    """Return the noise (SD of the real part of an FID sample, unit of the ensemble) at a given peak SNR.

    Peak SNR as the project defines it: height of the NAA CH3 line of normal brain (T2* 70 ms) over the standard
    deviation of the real part of the spectrum, both with an exponential filter of 3 1/s. For other nuclei that of the
    strongest line (`Nucleus.strongest`) with its T2* in grey matter.

    Raises
    ------
    ConfigError
        The SNR is not positive.
    DataError
        The molecules of the nucleus are not known.
    """
    if not snr > 0:
        raise ConfigError(f"an SNR of {snr:g} was asked for; it must be positive")
    nucleus = nucleus_of(protocol)
    t2_star = _NAA_T2_STAR_S
    if nucleus is not PROTON:
        t2_star = nucleus.t2_star_s(nucleus.strongest, "gm", field_strength_t(protocol))
    times = protocol.times_s
    filter_ = np.exp(-3.0 * times)
    height = nucleus.strongest_signal * np.sum(np.exp(-times / t2_star) * filter_)
    return float(height / np.linalg.norm(filter_) / snr)


def _tissue_fractions(rng: np.random.Generator, n: int, csf_share: float) -> np.ndarray:
    """Return (n, 3) fractions of grey matter, white matter and CSF."""
    csf = csf_share * rng.random(n) ** 2
    grey = rng.random(n)
    return np.stack([(1 - csf) * grey, (1 - csf) * (1 - grey), csf], axis=1)


def _places(ensemble: Ensemble, nucleus: Nucleus, name: str) -> list[int]:
    """Return the columns of a molecule, or of the members of a reported sum, in the ensemble."""
    return [ensemble.names.index(member) for member in members_of(nucleus, name) if member in ensemble.names]


def _concentrations(
    rng: np.random.Generator, ensemble: Ensemble, tissue: np.ndarray, nucleus: Nucleus, measured: np.ndarray | None
) -> np.ndarray:
    n, m = len(tissue), len(ensemble.names)
    typical = np.array([[nucleus.concentration_mm(name, t) for name in ensemble.names] for t in brain_values.TISSUES])
    healthy = (tissue @ typical) * np.exp(ensemble.concentration_sd * rng.standard_normal((n, m)))
    fixed: set[int] = set()
    if ensemble.amounts is not None and measured is not None:
        for name, amount in zip(ensemble.amounts.names, measured.T, strict=True):
            places = _places(ensemble, nucleus, name)
            weights = np.array([members_of(nucleus, name)[ensemble.names[m]] for m in places])
            if places:
                healthy[:, places] *= (amount / (healthy[:, places] @ weights))[:, None]
            fixed.update(places)
    low, high = np.array([nucleus.range_mm(name) for name in ensemble.names]).T
    anything = low + (high - low) * rng.random((n, m))
    amounts = np.where(rng.random((n, m)) < ensemble.altered_share, anything, healthy)
    for pool in nucleus.pools:
        first, *others = [ensemble.names.index(name) for name in pool if name in ensemble.names] or [0]
        for other in others:
            same = amounts[:, first] * np.exp(_POOL_SD * rng.standard_normal(n))
            amounts[:, other] = amounts[:, other] if other in fixed else same
    return amounts


def _t2_star(
    rng: np.random.Generator, ensemble: Ensemble, tissue: np.ndarray, field_t: float, nucleus: Nucleus
) -> np.ndarray:
    rates = np.array([[1 / nucleus.t2_star_s(name, t, field_t) for name in ensemble.names] for t in ("gm", "wm")])
    solid = tissue[:, :2] / tissue[:, :2].sum(axis=1, keepdims=True)
    spread = np.exp(ensemble.t2_star_sd * rng.standard_normal((len(tissue), len(ensemble.names))))
    return spread / (solid @ rates)


def _basis_signals(protocol: Protocol, ensemble: Ensemble, basis: BasisSet | None) -> np.ndarray:
    """Return complex64 (molecule, t) in the order of the ensemble's names."""
    if basis is None:
        return metabolite_basis(protocol, ensemble.names).fids.astype(np.complex64)
    facts = ("n_times", "dwell_s", "acquisition_delay_s", "transmit_frequency_hz", "reference_ppm")
    if not all(np.isclose(getattr(protocol, f), getattr(basis.protocol, f), rtol=1e-6, atol=1e-9) for f in facts):
        raise DataError(
            f"the basis set was made for {basis.protocol.fingerprint()} and the scan is {protocol.fingerprint()}; make "
            "the basis set with the scan's protocol"
        )
    return basis.subset(ensemble.names).fids.astype(np.complex64)


def _metabolite_signal(
    rng: np.random.Generator,
    protocol: Protocol,
    ensemble: Ensemble,
    basis: np.ndarray,
    concentrations: np.ndarray,
    t2_star: np.ndarray,
) -> np.ndarray:
    own_sd = nucleus_of(protocol).shift_ppm_sd
    spread = np.array([max(own_sd.get(name, 0.0), ensemble.molecule_shift_ppm_sd) for name in ensemble.names])
    shifts_hz = rng.standard_normal(concentrations.shape) * (spread * protocol.transmit_frequency_hz * 1e-6)
    signal = np.zeros((len(concentrations), protocol.n_times), dtype=np.complex64)
    for m in range(len(ensemble.names)):
        evolution = _evolution(protocol, t2_star[:, m], shifts_hz[:, m])
        evolution *= basis[m]
        evolution *= concentrations[:, m, None].astype(np.float32)
        signal += evolution
    return signal


def _macromolecule_signal(
    rng: np.random.Generator, protocol: Protocol, ensemble: Ensemble, tissue: np.ndarray
) -> np.ndarray:
    n = len(tissue)
    common = np.exp(ensemble.macromolecule_sd * rng.standard_normal(n))
    common *= macromolecule_weight(protocol)
    signal = np.zeros((n, protocol.n_times), dtype=np.complex64)
    for peak in MACROMOLECULES:
        amplitude = common * (tissue[:, :2] @ np.array(brain_values.MACROMOLECULE_MM[peak.name]))
        amplitude *= np.exp(ensemble.macromolecule_peak_sd * rng.standard_normal(n))
        width = np.exp(ensemble.macromolecule_width_sd * rng.standard_normal(n))
        signal += _broad_signal(protocol, peak, width) * amplitude[:, None].astype(np.float32)
    return signal


def _broad_signal(protocol: Protocol, peak: BroadPeak, width_factor: np.ndarray) -> np.ndarray:
    """Return Gaussian lines of a broad peak, (n, t), with each voxel's own width."""
    times = protocol.times_s.astype(np.float32)
    mhz = protocol.transmit_frequency_hz * 1e-6
    signal = np.zeros((len(width_factor), len(times)), dtype=np.complex64)
    for line in peak.lines:
        decay = gaussian_decay(times, (width_factor * line.width_ppm * mhz).astype(np.float32))
        oscillation = np.exp(2j * np.pi * float(protocol.hz(line.ppm)) * protocol.times_s)
        signal += decay * (line.share * oscillation).astype(np.complex64)
    return signal


def _delayed(
    rng: np.random.Generator, protocol: Protocol, ensemble: Ensemble, *signals: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the signals (n, t) with each voxel's own error of the delay, within three deviations."""
    if not ensemble.acquisition_delay_sd_s:
        return signals
    late = ensemble.acquisition_delay_sd_s * np.clip(rng.standard_normal(len(signals[0])), -3, 3)
    return tuple(delayed(signal, protocol.dwell_s, late) for signal in signals)


def _common_lineshape(
    rng: np.random.Generator, more: np.random.Generator, protocol: Protocol, ensemble: Ensemble, n: int
) -> np.ndarray:
    times = protocol.times_s.astype(np.float32)
    gauss = (rng.uniform(*ensemble.broadening_ppm, n) * protocol.transmit_frequency_hz * 1e-6).astype(np.float32)
    lorentz = np.maximum(rng.uniform(*ensemble.lorentzian_hz, n), 1e-6)
    shift = ensemble.common_shift_hz_sd * rng.standard_normal(n)
    phase = np.exp(1j * ensemble.phase_rad_sd * rng.standard_normal(n)).astype(np.complex64)
    if ensemble.lineshapes is None:
        shape = _evolution(protocol, 1 / (np.pi * lorentz), shift)
        shape *= gaussian_decay(times, gauss)
    else:
        taken = more.random(n) < ensemble.lineshape_share
        shape = _evolution(protocol, np.where(taken, 1e3, 1 / (np.pi * lorentz)), shift)
        own = gaussian_decay(times, gauss)
        shape *= np.where(taken[:, None], ensemble.lineshapes.draw(more, protocol, n), own)
    shape *= phase[:, None]
    return shape


def _water_signal(rng: np.random.Generator, protocol: Protocol, ensemble: Ensemble, n: int) -> np.ndarray:
    """Return residual water: components of both signs, so that what is left has the odd shapes suppression leaves."""
    strength = NAA_CH3_SIGNAL * _log_uniform(rng, ensemble.water_strength, n)
    parts = ensemble.water_components
    weight = (rng.standard_normal((n, parts)) + 1j * rng.standard_normal((n, parts))) / np.sqrt(2 * parts)
    water_hz = float(protocol.hz(WATER_PPM))
    signal = np.zeros((n, protocol.n_times), dtype=np.complex64)
    for part in range(parts):
        t2_star = _log_uniform(rng, ensemble.water_t2_star_s, n)
        offset = water_hz + ensemble.water_offset_hz_sd * rng.standard_normal(n)
        signal += _evolution(protocol, t2_star, offset) * (strength * weight[:, part])[:, None].astype(np.complex64)
    return signal


def _lipid_signal(rng: np.random.Generator, protocol: Protocol, ensemble: Ensemble, n: int) -> np.ndarray:
    """Return lipids that leak in from the scalp: any phase, their own field and width, ratios about those of fat."""
    strength = NAA_CH3_SIGNAL * _log_uniform(rng, ensemble.lipid_strength, n) * np.exp(2j * np.pi * rng.random(n))
    signal = np.zeros((n, protocol.n_times), dtype=np.complex64)
    for peak, share in zip(LIPIDS, LIPID_SHARES, strict=True):
        amplitude = strength * share * np.exp(0.2 * rng.standard_normal(n))
        width = np.exp(ensemble.lipid_width_sd * rng.standard_normal(n))
        signal += _broad_signal(protocol, peak, width) * amplitude[:, None].astype(np.complex64)
    signal *= _evolution(protocol, np.full(n, 1e3), ensemble.lipid_offset_hz_sd * rng.standard_normal(n))
    return signal


def _evolution(protocol: Protocol, t2_s: np.ndarray, hz: np.ndarray) -> np.ndarray:
    """Return exp(-t/T2 + i 2 pi f t), (n, t) complex64."""
    evolution = decaying_shift(
        protocol.acquisition_delay_s,
        protocol.dwell_s,
        protocol.n_times,
        t2_s.astype(np.float32),
        hz.astype(np.float32),
    )
    return np.asarray(evolution)


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float], n: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]), n))
