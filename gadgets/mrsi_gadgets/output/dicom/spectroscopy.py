"""Spectra as MR Spectroscopy Storage (PS3.3 A.36.3): the FID of every voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.output.dicom.exam import Exam
from mrsi_gadgets.physics.nucleus import NUCLEI

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MR_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"


def spectroscopy(
    exam: Exam, what: str, fids: np.ndarray, *, dwell_s: float, reference_ppm: float, series: int, instance: int = 1
) -> Dataset:
    """Return FIDs as one MR Spectroscopy instance, a frame for each slice.

    Parameters
    ----------
    exam
        Patient, study, grid, and transmit frequency (which must be known).
    what
        What the FIDs are (``metabolites``, ``fit``), for descriptions and identifiers.
    fids
        (x, y, z, t) complex, evolving as exp(+i 2 pi f t) with f growing with chemical shift; zero where there is none.
    dwell_s
        Time from point to point [s].
    reference_ppm
        Chemical shift at 0 Hz.
    series, instance
        Numbers of series and instance.

    Raises
    ------
    DataError
        The FIDs do not fit the grid, or the transmit frequency is not known.
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    grid = exam.grid
    if fids.shape[:3] != grid.matrix:
        raise DataError(f"the FIDs {fids.shape[:3]} do not fit the grid {grid.matrix} of the result")
    if not exam.transmit_frequency_hz:
        raise DataError("the transmit frequency of the spectra is not known; DICOM needs it")
    ds = exam.dataset(MR_SPECTROSCOPY, what, instance)
    ds.ImageType = ["DERIVED", "PRIMARY", "SPECTROSCOPY", "NONE"]
    ds.SeriesInstanceUID, ds.SeriesNumber = exam.uid("series", MR_SPECTROSCOPY, what), series
    ds.SeriesDescription = f"MRSI spectra, {what}"[:64]
    ds.InstanceNumber, ds.AcquisitionNumber = instance, instance
    ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "VOLUME", "NONE"
    ds.ComplexImageComponent, ds.AcquisitionContrast = "COMPLEX", "UNKNOWN"
    ds.ContentQualification = "RESEARCH"
    ds.ResonantNucleus = exam.nucleus
    ds.ApplicableSafetyStandardAgency = "IEC"
    del ds.Laterality  # each frame says it
    ds.MagneticFieldStrength = _field_t(exam)
    ds.AcquisitionContextSequence = Sequence([])
    ds.VolumeLocalizationTechnique = "NONE"
    # the standard asks for these in originals alone, but without them nobody can read a frequency
    ds.TransmitterFrequency = exam.transmit_frequency_hz * 1e-6
    ds.SpectralWidth = 1.0 / dwell_s
    ds.ChemicalShiftReference = float(reference_ppm)
    ds.NumberOfFrames, ds.Rows, ds.Columns = grid.matrix[2], grid.matrix[1], grid.matrix[0]
    ds.DataPointRows, ds.DataPointColumns = 1, fids.shape[3]
    ds.DataRepresentation, ds.SignalDomainColumns = "COMPLEX", "TIME"
    shared = Dataset()
    measures = Dataset()
    measures.PixelSpacing = grid.spacing
    measures.SliceThickness = measures.SpacingBetweenSlices = float(f"{grid.voxel_mm[2]:.9g}")
    shared.PixelMeasuresSequence = Sequence([measures])
    plane = Dataset()
    plane.ImageOrientationPatient = grid.orientation
    shared.PlaneOrientationSequence = Sequence([plane])
    # the part of the body is not in an MRD header
    anatomy, region = Dataset(), Dataset()
    anatomy.FrameLaterality = "U"
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "38266002", "SCT", "Entire body"
    anatomy.AnatomicRegionSequence = Sequence([region])
    shared.FrameAnatomySequence = Sequence([anatomy])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([_frame(exam, z) for z in range(grid.matrix[2])])
    ds.DimensionOrganizationSequence = Sequence([Dataset()])
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = exam.uid("dimensions", what)
    index = Dataset()
    index.DimensionOrganizationUID = exam.uid("dimensions", what)
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00200032, 0x00209113
    ds.DimensionIndexSequence = Sequence([index])
    ordered = np.ascontiguousarray(fids.transpose(2, 1, 0, 3)).astype(np.complex64)
    ds.SpectroscopyData = ordered.view("<f4").tobytes()
    return ds


def read_spectroscopy(ds: Dataset) -> np.ndarray:
    """Return the FIDs of an instance of ours, (x, y, z, t) complex64."""
    values = np.frombuffer(ds.SpectroscopyData, "<f4").view(np.complex64)
    shape = (int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns), int(ds.DataPointColumns))
    return np.ascontiguousarray(values.reshape(shape).transpose(2, 1, 0, 3))


def _frame(exam: Exam, z: int) -> Dataset:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    frame, position, content = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = exam.grid.position(z)
    frame.PlanePositionSequence = Sequence([position])
    content.DimensionIndexValues = [z + 1]
    content.StackID, content.InStackPositionNumber = "1", z + 1
    frame.FrameContentSequence = Sequence([content])
    kind = Dataset()
    kind.FrameType = ["DERIVED", "PRIMARY", "SPECTROSCOPY", "NONE"]
    kind.VolumetricProperties, kind.VolumeBasedCalculationTechnique = "VOLUME", "NONE"
    kind.ComplexImageComponent, kind.AcquisitionContrast = "COMPLEX", "UNKNOWN"
    frame.MRSpectroscopyFrameTypeSequence = Sequence([kind])
    return frame


def _field_t(exam: Exam) -> float:
    """Field strength that the transmit frequency tells for the nucleus [T]; 0 where the nucleus is not known."""
    nucleus = NUCLEI.get(exam.nucleus)
    return round((exam.transmit_frequency_hz or 0.0) * 1e-6 / nucleus.gyromagnetic_mhz, 3) if nucleus else 0.0
