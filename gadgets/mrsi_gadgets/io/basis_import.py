"""From a basis file to a basis set: a protocol's times, our names, decay-free, one nucleus of 1 mM has amplitude 1.

    phi(t) = a F(t') exp(+pi w t') exp(i 2 pi (c - ppm_ref) f0 t),      t' = t f0 / f_file

F is the file's FID (centre c [ppm], frequency f_file [MHz]), so that every line keeps its chemical shift although the
fields differ a little; w is the Lorentzian width that the file's lines have, taken out because an ensemble brings its
own T2*; the complex factor a is common to all molecules of the set. a, and w where nobody states it, come from the
strongest molecule (NAA, PCr, HDO), compared with our simulation of it, which also finds files whose frequencies run
the other way or whose centre is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from mrsi_gadgets.data import LEAST_ECHO_TIME_S, Protocol
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.io.basis_files import FileBasis, read_basis_file
from mrsi_gadgets.physics.basis import BasisSet, metabolite_basis
from mrsi_gadgets.physics.nucleus import Nucleus, nucleus_of
from mrsi_gadgets.physics.resampling import resample

ALIASES: Mapping[str, str] = {
    "mi": "Ins", "mins": "Ins", "m-ins": "Ins", "myo-ins": "Ins", "myoins": "Ins", "scyllo": "sIns", "si": "sIns",
    "scy": "sIns", "pcho": "PCh", "pc": "PCh", "phosphocholine": "PCh", "gpcho": "GPC", "cre": "Cr", "naag": "NAAG",
    "glucose": "Glc", "gluc": "Glc", "lactate": "Lac", "glycine": "Gly", "gln": "Gln", "2-hg": "2HG", "h2o": "HDO",
    "water": "HDO",
}  # fmt: skip
"""Other programmes' names, in small letters, of our molecules."""
_SAME_FIELD = 0.02
"""Largest relative difference of frequencies: within 2 % couplings and shifts keep their pattern (LCModel: 5 MHz)."""
_SAME_PLACE_PPM = 0.05
_FILTER_HZ = 6.0
"""Lorentzian filter under which spectra are compared [Hz]."""
_LINE_HZ = 20.0
"""Half the range of frequencies in which the strongest line is compared [Hz]."""
_DECAYED = 2e-3
"""A file whose FIDs have decayed so far may be shorter than the protocol."""


def import_basis(
    path: Path | str,
    protocol: Protocol,
    *,
    centre_ppm: float | None = None,
    conjugate: bool = False,
    linewidth_hz: float | None = None,
    first_sample_s: float | None = None,
    rename: Mapping[str, str] | None = None,
) -> BasisSet:
    """Read a basis set and bring it to a protocol's times, frequency, reference and unit.

    Parameters
    ----------
    path : file or folder (`read_basis_file`).
    protocol : of one echo time.
    centre_ppm : chemical shift at 0 Hz of the file [ppm]; None: 4.65 for 1H, 0 for 31P, 4.8 for 2H.
    conjugate : the file's frequencies run the other way than its format's usual one.
    linewidth_hz : Lorentzian width of the file's lines [Hz]; None: what the file says, else what the strongest
        molecule's line shows.
    first_sample_s : time of the file's first sample after the echo top or excitation [s]; None: what the file says,
        which is 0 unless jMRUI's BeginTime says otherwise.
    rename : name in the file -> our name, beside `ALIASES`.

    Raises
    ------
    ConfigError
        The file cannot be read or is not of this scan: nucleus, frequency, echo time, length; or its lines do not lie
        where they should.
    """
    given = read_basis_file(path)
    nucleus = nucleus_of(protocol)
    _check_scan(given, protocol)
    names = _names(given, nucleus, dict(rename or {}))
    centre = nucleus.calibration_ppm if centre_ppm is None else centre_ppm
    first_s = given.first_sample_s if first_sample_s is None else first_sample_s
    fids = np.conj(given.fids) if conjugate else given.fids
    reference = _reference_name(given, names, nucleus)
    model = _simulation(given, protocol, names, first_s, centre)
    _check_place(given, fids[names.index(reference)], model[reference], centre, reference)
    _check_direction(given, fids, model, names)
    fitted_hz, factor = _width_and_factor(given.dwell_s, fids[names.index(reference)], model[reference], first_s)
    width = next((w for w in (linewidth_hz, given.linewidth_hz) if w is not None), fitted_hz)
    if width != fitted_hz:
        _, factor = _width_and_factor(given.dwell_s, fids[names.index(reference)], model[reference], first_s, width)
    sampled = _at_protocol_times(given, fids, protocol, first_s, centre, width, _band(given, nucleus, centre))
    source = f"{given.kind} {given.path.name}: scaled to {reference}, {width:.2f} Hz of width taken out"
    return BasisSet(tuple(names), sampled / factor, protocol, source)


def _check_scan(given: FileBasis, protocol: Protocol) -> None:
    name = given.path.name
    if given.nucleus is not None and given.nucleus != protocol.nucleus:
        raise ConfigError(f"the basis set {name} is of {given.nucleus} and the protocol of {protocol.nucleus}")
    ratio = protocol.transmit_frequency_hz / given.transmit_frequency_hz
    if abs(ratio - 1) > _SAME_FIELD:
        raise ConfigError(
            f"the basis set {name} was made for {given.transmit_frequency_hz * 1e-6:.2f} MHz and the protocol has "
            f"{protocol.transmit_frequency_hz * 1e-6:.2f} MHz; make one for this field"
        )
    ours = protocol.spin_echo_time_s or 0.0
    theirs = given.echo_time_s or 0.0
    if given.echo_time_s is not None and abs(ours - theirs) > 1e-3 and max(ours, theirs) >= LEAST_ECHO_TIME_S:
        raise ConfigError(f"the basis set {name} has TE {theirs * 1e3:g} ms and the protocol {ours * 1e3:g} ms")


def _names(given: FileBasis, nucleus: Nucleus, rename: dict[str, str]) -> list[str]:
    unknown = [name for name in rename if name not in given.names]
    if unknown:
        raise ConfigError(f"{given.path.name} has no {', '.join(unknown)} to rename; it has {', '.join(given.names)}")
    ours = {name.lower(): name for name in nucleus.molecules}
    names = [
        rename.get(name) or ours.get(name.lower()) or ours.get(ALIASES.get(name.lower(), "").lower()) or name
        for name in given.names
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{given.path.name} has {', '.join(twice)} twice ({', '.join(given.names)}); rename one")
    return names


def _reference_name(given: FileBasis, names: list[str], nucleus: Nucleus) -> str:
    for name in (nucleus.strongest, *nucleus.usual):
        if name in names:
            return name
    raise ConfigError(
        f"{given.path.name} has no molecule that is known ({', '.join(given.names)}); say with rename which is which"
    )


def _simulation(
    given: FileBasis, protocol: Protocol, names: list[str], first_s: float, centre: float
) -> dict[str, np.ndarray]:
    """Return our signals of the known molecules at the file's times, frequency and centre."""
    there = replace(
        protocol,
        transmit_frequency_hz=given.transmit_frequency_hz,
        reference_ppm=centre,
        dwell_s=given.dwell_s,
        n_times=given.fids.shape[1],
        acquisition_delay_s=first_s,
    )
    known = [name for name in names if name in nucleus_of(protocol).molecules]
    return dict(zip(known, metabolite_basis(there, known).fids, strict=True))


def _check_place(given: FileBasis, fid: np.ndarray, model: np.ndarray, centre: float, name: str) -> None:
    mhz = given.transmit_frequency_hz * 1e-6
    theirs, ours = (_strongest_hz(x, given.dwell_s) / mhz for x in (fid, model))
    if abs(theirs - ours) <= _SAME_PLACE_PPM:
        return
    if abs(theirs + ours) <= _SAME_PLACE_PPM:
        raise ConfigError(_mirrored(given))
    raise ConfigError(
        f"the strongest line of {name} in {given.path.name} lies at {centre + theirs:.2f} ppm and not at "
        f"{centre + ours:.2f}; set centre_ppm to the file's chemical shift at 0 Hz"
    )


def _check_direction(given: FileBasis, fids: np.ndarray, model: Mapping[str, np.ndarray], names: list[str]) -> None:
    """Compare all spectra with our own, as they are and mirrored: the strongest line may lie at 0 Hz (PCr, HDO)."""
    right = wrong = 0.0
    for name, ours in model.items():
        theirs = np.abs(_spectrum(fids[names.index(name)], given.dwell_s))
        own = np.abs(_spectrum(ours, given.dwell_s))
        size = np.linalg.norm(theirs) * np.linalg.norm(own) or 1.0
        right += float(theirs @ own / size)
        wrong += float(np.roll(theirs[::-1], 1) @ own / size)
    if wrong > right:
        raise ConfigError(_mirrored(given))


def _mirrored(given: FileBasis) -> str:
    return f"the frequencies in {given.path.name} run the other way (its spectra are mirrored); set conjugate = true"


def _spectrum(fid: np.ndarray, dwell_s: float) -> np.ndarray:
    times = dwell_s * np.arange(fid.shape[-1])
    return np.asarray(np.fft.fft(fid * np.exp(-np.pi * _FILTER_HZ * times), 4 * fid.shape[-1]))


def _strongest_hz(fid: np.ndarray, dwell_s: float) -> float:
    spectrum = np.abs(_spectrum(fid, dwell_s))
    return float(np.fft.fftfreq(len(spectrum), dwell_s)[np.argmax(spectrum)])


def _width_and_factor(
    dwell_s: float, fid: np.ndarray, model: np.ndarray, first_s: float, width_hz: float | None = None
) -> tuple[float, complex]:
    """Return w and a of fid = a model exp(-pi w t + i 2 pi df t), fitted to the strongest line alone.

    df is no more than a few hundredths of a ppm. The other lines depend on the pulse sequence; what their wings add
    is a quadratic over the range.
    """
    times = first_s + dwell_s * np.arange(len(fid))
    away = np.fft.fftfreq(4 * len(fid), dwell_s) - _strongest_hz(model, dwell_s)
    near = np.abs(away) < _LINE_HZ
    theirs = _spectrum(fid, dwell_s)[near]
    wings = np.stack([(away[near] / _LINE_HZ) ** power for power in range(3)])

    def fit(parameters: np.ndarray) -> tuple[float, complex]:
        w = parameters[0] if width_hz is None else width_hz
        line = _spectrum(model * np.exp((-np.pi * w + 2j * np.pi * parameters[1]) * times), dwell_s)[near]
        columns = np.concatenate([line[None, :], wings * np.abs(line).max()]).T
        found = np.linalg.lstsq(columns, theirs, rcond=None)[0]
        return float(np.linalg.norm(columns @ found - theirs) / np.linalg.norm(theirs)), complex(found[0])

    start = np.array([1.5, 0.0])
    best = minimize(lambda x: fit(x)[0] ** 2, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-12}).x
    width = max(float(best[0]), 0.0) if width_hz is None else width_hz
    return width, fit(best)[1]


def _band(given: FileBasis, nucleus: Nucleus, centre: float) -> float:
    """Return how much of the file's band the molecules fill, with 1 ppm beside them and room for NH at 8.5 ppm."""
    ppm = [p for m in nucleus.molecules.values() for system in m.systems for p in system.shifts_ppm]
    top = max(max(ppm), 8.5 if nucleus.name == "1H" else max(ppm))
    reach = max(abs(p - centre) for p in (min(ppm) - 1, top + 1)) * given.transmit_frequency_hz * 1e-6
    return float(np.clip(reach * given.dwell_s, 0.2, 0.45))


def _at_protocol_times(
    given: FileBasis,
    fids: np.ndarray,
    protocol: Protocol,
    first_s: float,
    centre: float,
    width_hz: float,
    band: float,
) -> np.ndarray:
    times = protocol.times_s * (protocol.transmit_frequency_hz / given.transmit_frequency_hz)
    last_s = first_s + given.dwell_s * (fids.shape[1] - 1)
    if times[0] < first_s - 0.5 * given.dwell_s:
        raise ConfigError(
            f"{given.path.name} begins at {first_s * 1e3:g} ms and the protocol at {times[0] * 1e3:g} ms; set "
            "first_sample_ms to the time of its first sample"
        )
    beyond = times > last_s
    if np.any(beyond) and np.abs(fids[:, -1]).max() > _DECAYED * np.abs(fids).max():
        raise ConfigError(
            f"{given.path.name} lasts {last_s * 1e3:.0f} ms and the protocol {times[-1] * 1e3:.0f} ms; make a longer "
            "basis set, or learn fewer points"
        )
    values = resample(fids, first_s, given.dwell_s, np.minimum(times, last_s), band=band)
    turn = (centre - protocol.reference_ppm) * protocol.transmit_frequency_hz * 1e-6
    values = values * np.exp(np.pi * width_hz * times + 2j * np.pi * turn * protocol.times_s)
    return np.asarray(np.where(beyond, 0.0, values))
