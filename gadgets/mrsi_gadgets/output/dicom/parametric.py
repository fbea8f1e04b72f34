"""Maps as DICOM parametric maps: the exact float32 values with their unit (PS3.3 A.75)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.output.dicom.exam import Exam, unit_code

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"


def parametric_map(
    exam: Exam, name: str, unit: str, values: np.ndarray, series: int, *, instance: int = 1, source: Dataset
) -> Dataset:
    """Return one frame of a map as a parametric map; NaN stays NaN (PS3.5 section 8 allows it).

    Parameters
    ----------
    exam
        Patient, study and grid.
    name, unit
        Of the map.
    values
        (x, y, z).
    series, instance
        Numbers of series and instance.
    source
        A classic MR image of the same map: the object it refers to, with patient and study.
    """
    from highdicom import (
        PixelMeasuresSequence,
        PlaneOrientationSequence,
        PlanePositionSequence,
        VOILUTTransformation,
    )
    from highdicom.pm import DerivedPixelContrastValues, ImageFlavorValues, ParametricMap, RealWorldValueMapping

    grid = exam.grid
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    mapping = RealWorldValueMapping(
        lut_label=name[:16],
        lut_explanation=f"{name} [{unit}]"[:64],
        unit=unit_code(unit),
        value_range=(low, high if high > low else low + 1.0),
        slope=1.0,
        intercept=0.0,
    )
    centre, width = (
        (float(v) for v in (np.percentile(finite, 50), np.ptp(np.percentile(finite, [2, 98]))))
        if (finite.size)
        else (0.0, 1.0)
    )
    made: Dataset = ParametricMap(
        source_images=[source],
        pixel_array=np.ascontiguousarray(np.asarray(values, np.float32).transpose(2, 1, 0)),
        series_instance_uid=exam.uid("series", PARAMETRIC_MAP, name),
        series_number=series,
        sop_instance_uid=exam.uid("instance", PARAMETRIC_MAP, name, instance),
        instance_number=instance,
        manufacturer="mrsi-gadgets",
        manufacturer_model_name="mrsi-gadgets",
        software_versions=__version__,
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=centre, window_width=max(width, 1e-12))],
        content_description=f"{name} [{unit}]"[:64],
        content_label=re.sub(r"[^A-Z0-9]+", "_", name.upper())[:16].strip("_"),
        image_flavor=ImageFlavorValues.VOLUME,
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=grid.spacing, slice_thickness=grid.voxel_mm[2], spacing_between_slices=grid.voxel_mm[2]
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", grid.orientation),
        plane_positions=[PlanePositionSequence("PATIENT", grid.position(z)) for z in range(grid.matrix[2])],
    )
    made.SeriesDescription = f"MRSI {name} [{unit.partition(' (')[0]}] exact"[:64]
    made.ImageComments = source.ImageComments
    made.Laterality = ""
    return made
