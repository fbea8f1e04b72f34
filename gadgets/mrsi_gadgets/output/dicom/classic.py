"""Maps as classic MR images: every viewer opens them, values come back by slope and intercept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output.dicom.exam import Exam, unit_code

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_STEPS = 65534
"""Steps of a pixel: 0 is padding (nothing was fitted there), 1 to 65535 are values."""
_DIGITS = 9


def classic_images(exam: Exam, name: str, unit: str, values: np.ndarray, series: int) -> Iterator[Dataset]:
    """Yield one map as MR Image Storage instances, a slice and frame each.

    Parameters
    ----------
    exam
        Patient, study and grid.
    name, unit
        Of the map; a standard deviation has its own name.
    values
        (x, y, z) or (x, y, z, frame); NaN where nothing was fitted.
    series
        Number of the series.

    Raises
    ------
    DataError
        The map does not fit the grid.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    volume = np.asarray(values, np.float64)
    volume = volume[..., None] if volume.ndim == 3 else volume
    if volume.shape[:3] != exam.grid.matrix:
        raise DataError(f"map {name} {volume.shape[:3]} does not fit the grid {exam.grid.matrix} of the result")
    pixels, slope, intercept = to_pixels(volume)
    finite = volume[np.isfinite(volume)]
    low, high = np.percentile(finite, [2, 98]) if finite.size else (0.0, 1.0)
    count = volume.shape[2]
    for frame in range(volume.shape[3]):
        for z in range(count):
            ds = exam.dataset(MR_IMAGE, name, frame, z)
            ds.ImageType = ["DERIVED", "PRIMARY", "OTHER", "METABOLITE_MAP"]
            ds.SeriesInstanceUID, ds.SeriesNumber = exam.uid("series", MR_IMAGE, name), series
            ds.SeriesDescription = f"MRSI {name} [{unit.partition(' (')[0]}]"[:64]
            ds.InstanceNumber = frame * count + z + 1
            ds.AcquisitionNumber = frame + 1
            ds.TemporalPositionIdentifier, ds.NumberOfTemporalPositions = frame + 1, volume.shape[3]
            ds.ImagePositionPatient, ds.ImageOrientationPatient = exam.grid.position(z), exam.grid.orientation
            ds.PixelSpacing = exam.grid.spacing
            ds.SliceThickness = ds.SpacingBetweenSlices = float(f"{exam.grid.voxel_mm[2]:.9g}")
            ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "RM", "NONE", ""
            ds.MRAcquisitionType = "3D" if count > 1 else "2D"
            ds.EchoTime = "" if exam.echo_time_ms is None else float(f"{exam.echo_time_ms:.9g}")
            ds.RepetitionTime = "" if exam.repetition_time_ms is None else float(f"{exam.repetition_time_ms:.9g}")
            ds.EchoTrainLength = ""
            ds.ImagedNucleus = exam.nucleus
            if exam.transmit_frequency_hz:
                ds.ImagingFrequency = float(f"{exam.transmit_frequency_hz * 1e-6:.9g}")
            ds.Rows, ds.Columns = volume.shape[1], volume.shape[0]
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            ds.BitsAllocated = ds.BitsStored = 16
            ds.HighBit, ds.PixelRepresentation = 15, 0
            ds.PixelPaddingValue = 0
            ds.LossyImageCompression = "00"
            ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "US"
            ds.WindowCenter, ds.WindowWidth = float(f"{(low + high) / 2:.6g}"), float(f"{max(high - low, 1e-12):.6g}")
            mapping = Dataset()
            mapping.LUTLabel, mapping.LUTExplanation = name[:16], f"{name} [{unit}]"[:64]
            mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 1, _STEPS + 1
            mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, intercept
            code = unit_code(unit)
            item = Dataset()
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, "UCUM", code.meaning
            mapping.MeasurementUnitsCodeSequence = Sequence([item])
            ds.RealWorldValueMappingSequence = Sequence([mapping])
            ds.PixelData = np.ascontiguousarray(pixels[:, :, z, frame].T).tobytes()
            ds["PixelData"].VR = "OW"
            yield ds


def to_pixels(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return uint16 pixels, slope and intercept so that value = slope * pixel + intercept; NaN becomes pixel 0.

    All frames of a map share one scale, so that they can be compared. A value is right to half a step: 1 / 131,068 of
    the map's range.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low = min(low, 0.0) if low < 0 or low < 0.5 * high else low
    slope = _round_up((high - low) / (_STEPS - 1)) if high > low else 1.0
    intercept = float(f"{low - slope:.{_DIGITS}g}")
    steps = np.rint((np.nan_to_num(values, nan=low, posinf=high, neginf=low) - intercept) / slope)
    pixels = np.where(np.isfinite(values), np.clip(steps, 1, _STEPS + 1), 0)
    return pixels.astype("<u2"), slope, intercept


def _round_up(value: float) -> float:
    """Round up to what a DICOM decimal string holds."""
    text = float(f"{value:.{_DIGITS}g}")
    return text if text >= value else float(f"{value * (1 + 2 * 10.0 ** (1 - _DIGITS)):.{_DIGITS}g}")
