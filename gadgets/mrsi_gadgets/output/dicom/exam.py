"""What all DICOM objects of one result share: patient, study, equipment, identifiers, and the place of the grid."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import ConfigError, DataError, MissingPackageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FIRST_SERIES = 9000
"""Series of ours are numbered from here on, behind those of the scanner."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COPIED = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "InstitutionName", "StationName",
    "PatientPosition",
)  # fmt: skip
_COMMENT_LENGTH = 10240
_NOT_A_DEVICE = "Research use only. Not for diagnosis."


def need(what: str = "pydicom") -> None:
    """Make sure that the DICOM packages are there.

    Raises
    ------
    MissingPackageError
        They are not installed.
    """
    import importlib.util

    if importlib.util.find_spec(what) is None:
        raise MissingPackageError(f"DICOM needs the package {what}; install it with pip install 'mrsi-gadgets[dicom]'")


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a result lie, as DICOM says it: patient LPS in mm, x along a row, y down the columns."""

    matrix: tuple[int, int, int]
    affine_lps: np.ndarray
    """(4, 4): voxel index (x, y, z) to LPS mm."""

    @staticmethod
    def of_ras(affine_ras: np.ndarray, matrix: Sequence[int]) -> Grid:
        """Return the grid of a NIfTI-like affine."""
        return Grid((int(matrix[0]), int(matrix[1]), int(matrix[2])), _LPS_TO_RAS @ np.asarray(affine_ras, float))

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z."""
        size = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(size[0]), float(size[1]), float(size[2])

    @property
    def orientation(self) -> list[float]:
        """ImageOrientationPatient: direction along a row (x grows), then down a column (y grows)."""
        axes = self.affine_lps[:3, :2] / np.array(self.voxel_mm[:2])
        return [_decimal(v) for v in (*axes[:, 0], *axes[:, 1])]

    def position(self, z: int) -> list[float]:
        """ImagePositionPatient: centre of voxel (0, 0, z) [mm]."""
        return [_decimal(v) for v in self.affine_lps[:3] @ np.array([0.0, 0.0, z, 1.0])]

    @property
    def spacing(self) -> list[float]:
        """PixelSpacing: between rows (along y), then between columns (along x) [mm]."""
        return [_decimal(self.voxel_mm[1]), _decimal(self.voxel_mm[0])]


@dataclass(frozen=True, eq=False)
class Exam:
    """Patient and study that a result belongs to, and the seed of the identifiers of its objects."""

    seed: str
    """Digest of the images the objects are made from: the same result gives the same identifiers."""
    grid: Grid
    reference: Any = None
    """Dataset of another image of the same exam: patient, study and frame of reference are copied from it."""
    patient_id: str = ""
    patient_name: str = ""
    comments: tuple[str, ...] = ()
    transmit_frequency_hz: float | None = None
    nucleus: str = "1H"
    echo_time_ms: float | None = None
    repetition_time_ms: float | None = None
    when: datetime.datetime = field(default_factory=datetime.datetime.now)

    def uid(self, *parts: object) -> str:
        """Return an identifier that depends on the result and `parts` alone (2.25: a UUID as a number, PS3.5 B.2)."""
        digest = hashlib.sha256("\0".join([self.seed, *map(str, parts)]).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"

    def of_reference(self, keyword: str, default: Any) -> Any:
        """Return an element of the reference image, or `default`."""
        return default if self.reference is None else self.reference.get(keyword, default)

    @property
    def study_uid(self) -> str:
        """Identifier of the study: the reference's, or one of our own."""
        return str(self.of_reference("StudyInstanceUID", self.uid("study")))

    def dataset(self, sop_class: str, *parts: object) -> Dataset:
        """Return a new dataset with patient, study, equipment and SOP modules; `parts` tell the instance apart."""
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import UID, ExplicitVRLittleEndian

        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID = UID(sop_class)
        ds.SOPInstanceUID = UID(self.uid("instance", sop_class, *parts))
        ds.PatientName, ds.PatientID = self.patient_name, self.patient_id
        ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ""
        ds.ReferringPhysicianName = ""
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = self.study_uid, self.uid("frame of reference")
        ds.PositionReferenceIndicator = ""
        ds.PatientPosition = "HFS"
        if self.reference is not None:
            for keyword in _COPIED:
                if keyword in self.reference:
                    setattr(ds, keyword, self.reference.get(keyword))
        ds.Modality = "MR"
        ds.Laterality = ""
        ds.Manufacturer = "mrsi-gadgets"
        ds.ManufacturerModelName = "mrsi-gadgets"
        ds.DeviceSerialNumber = "0"
        ds.SoftwareVersions = __version__
        ds.ContentDate, ds.ContentTime = self.when.strftime("%Y%m%d"), self.when.strftime("%H%M%S")
        ds.ImageComments = "; ".join([_NOT_A_DEVICE, f"mrsi-gadgets {__version__}", *self.comments])[:_COMMENT_LENGTH]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta = meta
        return ds


def read_reference(path: str | Path) -> Dataset:
    """Read the header of a DICOM image of the same exam.

    Raises
    ------
    ConfigError
        It cannot be read, or names no study.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
    except (OSError, InvalidDicomError) as error:
        raise ConfigError(
            f"the reference {path} cannot be read as DICOM ({error}); name an image of the exam"
        ) from error
    if "StudyInstanceUID" not in ds:
        raise ConfigError(f"the reference {path} names no study; name an image of the exam")
    return ds


def check_finite_grid(grid: Grid) -> None:
    """Refuse a grid that DICOM cannot describe.

    Raises
    ------
    DataError
        Axes are not orthogonal, or voxels have no size.
    """
    axes = grid.affine_lps[:3, :3]
    size = np.linalg.norm(axes, axis=0)
    if not (np.all(np.isfinite(grid.affine_lps)) and np.all(size > 0)):
        raise DataError("the grid of the result has voxels without a size; DICOM cannot place it")
    unit = axes / size
    if not np.allclose(unit.T @ unit, np.eye(3), atol=1e-3):
        raise DataError("the axes of the result's grid are not orthogonal; DICOM cannot place it")


def unit_code(unit: str) -> Any:
    """Return the UCUM code of a map's unit such as ``Hz`` or ``1 (ratio to tCr)``.

    What stands in brackets behind a unit is its explanation. Units that UCUM does not have are arbitrary ones.
    """
    from pydicom.sr.coding import Code

    short = unit.partition(" (")[0].strip()
    value, meaning = _UCUM.get(short, ("[arb'U]", "arbitrary unit"))
    return Code(value, "UCUM", meaning)


_UCUM = {
    "1": ("1", "no units"),
    "Hz": ("Hz", "hertz"),
    "rad": ("rad", "radian"),
    "ppm": ("[ppm]", "parts per million"),
    "mM": ("mmol/L", "millimole per liter"),
    "mmol/L": ("mmol/L", "millimole per liter"),
    "mmol/kg": ("mmol/kg", "millimole per kilogram"),
    "ms": ("ms", "millisecond"),
    "s": ("s", "second"),
    "%": ("%", "percent"),
}


def _decimal(value: float) -> float:
    """Round to what a DICOM decimal string of 16 characters holds."""
    return float(f"{float(value) + 0.0:.9g}")
