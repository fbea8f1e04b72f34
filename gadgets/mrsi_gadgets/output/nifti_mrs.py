"""NIfTI-MRS: FIDs on their grid, with what is known of the acquisition as JSON in a header extension.

Standard v0.11 (https://github.com/wtclarke/mrs_nifti_standard, doi:10.1002/mrm.29418). On disk an FID evolves the other
way round than here (a higher ppm is a lower frequency), so it is conjugated; positions are RAS. Axes are x, y, z, t and
up to three more, each with a tag. Written with nibabel alone; tests open the files with the library `nifti-mrs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.data import LEAST_ECHO_TIME_S
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output.results import Results

_ECODE_MRS = 44
_INTENT = "mrs_v0_11"
_ALIGNED = 2
_FIRST_HIGHER, _MOST_HIGHER = 5, 3
DYNAMIC, ECHOES = "DIM_DYN", "DIM_INDIRECT_0"


@dataclass(frozen=True)
class Acquisition:
    """What a reader needs of the measurement."""

    nucleus: str
    transmit_frequency_hz: float
    reference_ppm: float
    dwell_s: float
    acquisition_delay_s: float
    echo_time_s: float | None = None
    """As the header names it; below 10 ms it is the delay of an FID."""
    repetition_time_s: float | None = None
    flip_angle_deg: float | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    """Further keys of the standard: ``Manufacturer``, ``PatientPosition``, ..."""


_TEXTS = {"Manufacturer": "vendor", "ManufacturersModelName": "model", "PatientPosition": "patient_position"}
"""Key of the standard -> what the images call it."""


@dataclass(frozen=True)
class Dimension:
    """One axis behind time."""

    tag: str
    """``DIM_DYN`` (frames), ``DIM_INDIRECT_0`` (echo times), ..."""
    info: str
    header: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What changes along it: key of the standard -> one value an entry."""


def acquisition_of(results: Results) -> Acquisition | None:
    """Return what the images of a scan say of its acquisition; None where no spectra came with them."""
    axis = results.axis
    if not axis:
        return None
    said = _said(results)
    times = said.get("echo_times_s") or [None]
    return Acquisition(
        axis["nucleus"], axis["transmit_frequency_hz"], axis["reference_ppm"], axis["dwell_s"],
        axis["acquisition_delay_s"], times[0], said.get("repetition_time_s"), said.get("flip_angle_deg"),
        {key: str(said[name]) for key, name in _TEXTS.items() if said.get(name)},
    )  # fmt: skip


def header_extension(
    acquisition: Acquisition,
    *,
    water_suppressed: bool | None,
    processing: Sequence[tuple[str, str]] = (),
    dimensions: Sequence[Dimension] = (),
) -> dict[str, Any]:
    """Return the header extension as JSON's types.

    The echo time is that of the standard: from the excitation to the start of an FID or to the echo top; the start of
    the acquisition counts from there.
    """
    a = acquisition
    is_echo = a.echo_time_s is not None and a.echo_time_s >= LEAST_ECHO_TIME_S
    content: dict[str, Any] = {
        "SpectrometerFrequency": [float(a.transmit_frequency_hz * 1e-6)],
        "ResonantNucleus": [a.nucleus],
        "SpectralWidth": float(1.0 / a.dwell_s),
        "SpecFreqChemShift": float(a.reference_ppm),
        "EchoTime": float(a.echo_time_s) if is_echo and a.echo_time_s is not None else float(a.acquisition_delay_s),
        "AcquisitionStartTime": float(a.acquisition_delay_s) if is_echo else 0.0,
        "kSpace": [False, False, False],
        "ConversionMethod": f"mrsi-gadgets {__version__}",
    }
    content |= a.texts
    if a.repetition_time_s:
        content["RepetitionTime"] = float(a.repetition_time_s)
    if a.flip_angle_deg:
        content["ExcitationFlipAngle"] = float(a.flip_angle_deg)
    if water_suppressed is not None:
        content["WaterSuppressed"] = water_suppressed
    if processing:
        # no time of day: the same images give the same bytes
        content["ProcessingApplied"] = [
            {"Program": "mrsi-gadgets", "Version": __version__, "Method": method, "Details": details}
            for method, details in processing
        ]
    for number, dimension in enumerate(dimensions, start=_FIRST_HIGHER):
        content[f"dim_{number}"] = dimension.tag
        content[f"dim_{number}_info"] = dimension.info
        if dimension.header:
            content[f"dim_{number}_header"] = {key: [float(v) for v in vs] for key, vs in dimension.header.items()}
            for key in dimension.header:
                content.pop(key, None)
    return content


def write_nifti_mrs(
    path: str | Path,
    fids: np.ndarray,
    affine_ras: np.ndarray,
    acquisition: Acquisition,
    *,
    water_suppressed: bool | None = None,
    processing: Sequence[tuple[str, str]] = (),
    dimensions: Sequence[Dimension] = (),
) -> None:
    """Write FIDs as NIfTI-MRS (NIfTI-2, complex64); a name ending in .gz is compressed.

    Parameters
    ----------
    path
        File to write; the same arguments give the same bytes.
    fids
        (x, y, z, t, ...) complex: exp(+i 2 pi f t) as everywhere in this package.
    affine_ras
        4 x 4, voxel index to RAS mm.
    acquisition
        What was measured.
    water_suppressed
        Whether the water was suppressed, None where that is not known.
    processing
        (method, details) of what was done to the signals.
    dimensions
        One for each axis behind time.

    Raises
    ------
    DataError
        The axes and `dimensions` do not fit, or there are too many.
    """
    import nibabel

    if fids.ndim != 4 + len(dimensions) or len(dimensions) > _MOST_HIGHER:
        raise DataError(
            f"FIDs of shape {fids.shape} have {fids.ndim - 4} axes behind time, and {len(dimensions)} are described; "
            f"NIfTI-MRS takes up to {_MOST_HIGHER}, each with its tag"
        )
    for size, dimension in zip(fids.shape[4:], dimensions, strict=True):
        if any(len(values) != size for values in dimension.header.values()):
            raise DataError(f"{dimension.tag} has {size} entries but its header names another number; give one each")
    content = header_extension(
        acquisition, water_suppressed=water_suppressed, processing=processing, dimensions=dimensions
    )
    image = nibabel.Nifti2Image(np.conj(fids).astype(np.complex64), affine_ras)
    header = image.header
    header["pixdim"][4] = acquisition.dwell_s
    header["pixdim"][5 : 5 + len(dimensions)] = 1.0
    header.set_xyzt_units("mm", "sec")
    header["intent_name"] = _INTENT.encode()
    image.set_qform(affine_ras, code=_ALIGNED)
    image.set_sform(affine_ras, code=_ALIGNED)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    header.extensions.append(nibabel.nifti1.Nifti1Extension(_ECODE_MRS, text.encode("utf-8")))
    nibabel.save(image, path)


def on_grid(matrix: Sequence[int], voxels: np.ndarray, fids: np.ndarray) -> np.ndarray:
    """Return FIDs (voxel, t) on the grid, (x, y, z, t) complex64; zero where there are none."""
    grid = np.zeros((*matrix, fids.shape[-1]), np.complex64)
    grid[tuple(voxels.T)] = fids
    return grid


METABOLITES, WATER = "metab.nii.gz", "wref.nii.gz"
"""Names of the files in a result."""
_PROCESSING = (
    ("RF coil combination", "matched to the coil maps of the water"),
    (
        "Frequency and phase correction",
        "B0 of each voxel taken out, and eddy currents where there is a water reference",
    ),
)
_PHASE = ("Phasing", "zero-order phase of each voxel's fit taken out")


def write_spectra(folder: Path, results: Results) -> list[str]:
    """Write ``metab.nii.gz`` and, where the water came too, ``wref.nii.gz``; return the names of what was written.

    Frames lie along a fifth axis (DIM_DYN); several echo times along the next (DIM_INDIRECT_0, `EchoTime` in its
    header). Voxels that were not fitted are zero. Nothing is written where the spectra of all voxels did not come.

    Raises
    ------
    DataError
        The spectra of frames or echo times have different lengths.
    """
    parts = list(results.echoes.values()) or [results]
    acquisition, affine = acquisition_of(results), results.affine_ras
    frames = sorted(set.intersection(*(set(part.gathered) for part in parts)))
    if acquisition is None or affine is None or not frames:
        return []
    blocks = [[_metabolites(part, frame) for part in parts] for frame in frames]
    if len({block.shape for row in blocks for block in row}) > 1:
        raise DataError(
            "the spectra of frames or echo times have different lengths, so they cannot be one file; run the scan again"
        )
    fids = np.stack([np.stack(row, axis=-1) for row in blocks], axis=-2)  # x, y, z, t, frame, echo
    dimensions = []
    if len(frames) > 1:
        dimensions.append(Dimension(DYNAMIC, "frames of the scan"))
    if len(parts) > 1:
        times = _said(results).get("echo_times_s", ())
        dimensions.append(Dimension(ECHOES, "echo times", {"EchoTime": times} if len(times) == len(parts) else {}))
    proton = acquisition.nucleus == "1H"
    write_nifti_mrs(
        folder / METABOLITES, fids.reshape(*fids.shape[:4], *(n for n in fids.shape[4:] if n > 1)), affine, acquisition,
        water_suppressed=_said(results).get("water_suppressed") if proton else None, dimensions=dimensions,
        processing=(*_PROCESSING, *_reconstruction(results), _PHASE),
    )  # fmt: skip
    water = _water(parts[0])
    if water is None:
        return [METABOLITES]
    write_nifti_mrs(
        folder / WATER, water, affine, acquisition, water_suppressed=False, processing=_PROCESSING
    )  # fmt: skip
    return [METABOLITES, WATER]


def _metabolites(part: Results, frame: int) -> np.ndarray:
    """Return the FIDs of a frame on the grid."""
    fitted = part.gathered[frame].spectra()
    return on_grid(part.matrix, fitted.voxels, fitted.data)


def _water(part: Results) -> np.ndarray | None:
    """Return the FIDs of the water reference on the grid, None where they did not come."""
    for frame in sorted(part.gathered):
        found = part.gathered[frame].water()
        if found is not None:
            return on_grid(part.matrix, *found)
    return None


def _reconstruction(results: Results) -> list[tuple[str, str]]:
    """Return how the image was reconstructed, as far as the chain tells."""
    chain = results.provenance.get("chain", ())
    return [("MRSI reconstruction", str(step)) for step in chain if str(step).startswith("Reconstruct(")]


def _said(results: Results) -> Mapping[str, Any]:
    """Return the measurement's parameters as the images carry them."""
    said = results.provenance.get("acquisition", {})
    return said if isinstance(said, dict) else {}
