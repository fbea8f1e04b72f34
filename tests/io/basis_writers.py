"""Writers of the basis formats: FIDs of known lines, written as the other programmes write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mrsi_gadgets.physics.simulation import molecule_fid
from mrsi_gadgets.physics.spin_systems import molecule


def file_fids(names, mhz, dwell_s, n, *, centre=4.65, width_hz=1.0, first_s=0.0, scale=37.0, sequence=None):
    """FIDs exp(+i 2 pi f t) of molecules at a file's own sampling, in the file's own unit."""
    times = first_s + dwell_s * np.arange(n)
    decay = scale * np.exp(-np.pi * width_hz * times)
    return np.array([molecule_fid(molecule(name), times, mhz, centre, sequence) * decay for name in names])


def write_lcmodel(path: Path, names, fids, dwell_s, mhz, *, echo_ms=0.0, shift=0, sign=1) -> Path:
    """Spectra of the conjugated FIDs, filled with zeros to twice their length."""
    n = 2 * fids.shape[1]
    lines = [
        " $SEQPAR", " FWHMBA = 0.0130,", f" HZPPPM = {mhz:.6f},", f" ECHOT = {echo_ms:.2f},", " SEQ = 'PRESS'", " $END",
        " $BASIS1", " IDBASI = 'made by a test, 3 T',", " FMTBAS = '(6E13.5)',", f" BADELT = {sign * dwell_s:.8E},",
        f" NDATAB = {n}", " $END",
    ]  # fmt: skip
    for name, fid in zip(names, fids, strict=True):
        spectrum = np.roll(np.fft.fft(np.conj(fid), n), shift)
        numbers = np.stack([spectrum.real, spectrum.imag], axis=-1).ravel()
        lines += [
            " $NMUSED", f" FILERAW = '/data/{name}.RAW',", " METABO_CONTAM = 'NOTHING',", " PPMBAS(1) = 1.D0,", " $END",
            " $BASIS", f" ID = '{name}',", f" METABO = '{name}',", " CONC = 1., TRAMP = 1.,", " VOLUME = 1.,",
            f" ISHIFT = {shift}", " $END",
        ]  # fmt: skip
        lines += ["".join(f"{x:13.5E}" for x in numbers[i : i + 6]) for i in range(0, len(numbers), 6)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_fsl(folder: Path, names, fids, dwell_s, mhz, *, width_hz=1.0, nucleus="1H") -> Path:
    folder.mkdir()
    for name, fid in zip(names, fids, strict=True):
        basis = {
            "basis_re": fid.real.tolist(), "basis_im": (-fid.imag).tolist(), "basis_dwell": dwell_s,
            "basis_centre": mhz, "basis_width": width_hz, "basis_name": name, "basis_nucleus": nucleus,
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps({"basis": basis, "meta": {"SimVersion": "test"}}))
    return folder


def write_jmrui(path: Path, names, fids, dwell_s, mhz, *, begin_ms=0.0) -> Path:
    lines = [
        "jMRUI Data Textfile", "", f"Filename: {path.name}", "", f"PointsInDataset: {fids.shape[1]}",
        f"DatasetsInFile: {len(fids)}", f"SamplingInterval: {dwell_s * 1e3:.8E}", "ZeroOrderPhase: 0E0",
        f"BeginTime: {begin_ms}", f"TransmitterFrequency: {mhz * 1e6:.6E}", "MagneticField: 2.89E0",
        "TypeOfNucleus: 0E0", "NameOfPatient: ", "DateOfExperiment: ", "Spectrometer: ", "AdditionalInfo: ",
        "SignalNames: " + "".join(f"{name};" for name in names), "", "", "Signal and FFT",
        "sig(real)\tsig(imag)\tfft(real)\tfft(imag)",
    ]  # fmt: skip
    for i, fid in enumerate(fids):
        spectrum = np.fft.fftshift(np.fft.fft(np.conj(fid)))
        lines += [f"Signal {i + 1} out of {len(fids)} in file"]
        lines += [
            f"{a.real:.5E}\t{-a.imag:.5E}\t{b.real:.4E}\t{b.imag:.4E}" for a, b in zip(fid, spectrum, strict=True)
        ]
        lines += [""]
    path.write_text("\n".join(lines))
    return path
