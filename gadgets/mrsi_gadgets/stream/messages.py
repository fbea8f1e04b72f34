"""The messages of an MRD session as plain values: what `wire` parses and writes.

Fixed headers are NumPy structured scalars whose types mirror the MRD 1.x layout byte for byte (packed,
little-endian; only the waveform header has alignment gaps), so that a header is a view of the bytes that came.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

INDEX = np.dtype(
    [
        (name, "<u2")
        for name in (
            "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition",
            "set", "segment",
        )
    ]
    + [("user", "<u2", (8,))]
)  # fmt: skip

ACQUISITION_HEADER = np.dtype(
    [
        ("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", (3,)), ("number_of_samples", "<u2"),
        ("available_channels", "<u2"), ("active_channels", "<u2"), ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"), ("discard_post", "<u2"), ("center_sample", "<u2"), ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"), ("sample_time_us", "<f4"), ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)), ("phase_dir", "<f4", (3,)), ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)), ("idx", INDEX), ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)  # fmt: skip

IMAGE_HEADER = np.dtype(
    [
        ("version", "<u2"), ("data_type", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", (3,)), ("field_of_view", "<f4", (3,)), ("channels", "<u2"), ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)), ("phase_dir", "<f4", (3,)), ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)), ("average", "<u2"), ("slice", "<u2"), ("contrast", "<u2"),
        ("phase", "<u2"), ("repetition", "<u2"), ("set", "<u2"), ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)), ("image_type", "<u2"), ("image_index", "<u2"),
        ("image_series_index", "<u2"), ("user_int", "<i4", (8,)), ("user_float", "<f4", (8,)),
        ("attribute_string_len", "<u4"),
    ]
)  # fmt: skip

WAVEFORM_HEADER = np.dtype(
    {
        "names": ["version", "flags", "measurement_uid", "scan_counter", "time_stamp", "number_of_samples", "channels",
                  "sample_time_us", "waveform_id"],
        "formats": ["<u2", "<u8", "<u4", "<u4", "<u4", "<u2", "<u2", "<f4", "<u2"],
        "offsets": [0, 8, 16, 20, 24, 28, 30, 32, 36],
        "itemsize": 40,
    }
)  # fmt: skip

PIXEL_TYPES: dict[int, np.dtype] = {
    1: np.dtype("<u2"), 2: np.dtype("<i2"), 3: np.dtype("<u4"), 4: np.dtype("<i4"), 5: np.dtype("<f4"),
    6: np.dtype("<f8"), 7: np.dtype("<c8"), 8: np.dtype("<c16"),
}  # fmt: skip
"""MRD data_type of an image -> NumPy type of its pixels."""


class Flag(IntEnum):
    """Bit numbers, counted from 1 as MRD does, of the acquisition flags we use."""

    FIRST_IN_REPETITION = 13
    LAST_IN_REPETITION = 14
    IS_NOISE_MEASUREMENT = 19
    IS_PARALLEL_CALIBRATION = 20
    IS_PARALLEL_CALIBRATION_AND_IMAGING = 21
    IS_REVERSE = 22
    IS_NAVIGATION_DATA = 23
    IS_PHASECORR_DATA = 24
    LAST_IN_MEASUREMENT = 25
    IS_HPFEEDBACK_DATA = 26
    IS_DUMMYSCAN_DATA = 27
    IS_RTFEEDBACK_DATA = 28
    COMPRESSION1 = 53
    COMPRESSION4 = 56
    USER1 = 57

    @property
    def mask(self) -> int:
        """The flag as a bit mask."""
        return 1 << (self.value - 1)


@dataclass(slots=True, eq=False)
class ConfigFile:
    """CONFIG_FILE (1): the name of a configuration the receiver has."""

    name: str


@dataclass(slots=True, eq=False)
class ConfigText:
    """CONFIG (2): the configuration itself."""

    text: str


@dataclass(slots=True, eq=False)
class Header:
    """HEADER (3): the ISMRMRD header as XML."""

    xml: str


@dataclass(slots=True, eq=False)
class Close:
    """CLOSE (4): nothing more comes from this side."""


@dataclass(slots=True, eq=False)
class Text:
    """TEXT (5): console text, or JSON parameters right after the header (FIRE, Open Recon)."""

    text: str


@dataclass(slots=True, eq=False)
class Query:
    """QUERY (6)."""

    correlation: int
    text: str
    reserved: int = 0


@dataclass(slots=True, eq=False)
class Response:
    """RESPONSE (7)."""

    correlation: int
    text: str


@dataclass(slots=True, eq=False)
class ErrorText:
    """ERROR (8): only from an external node to its Gadgetron."""

    text: str


@dataclass(slots=True, eq=False)
class Acquisition:
    """ISMRMRD_ACQUISITION (1008): one readout."""

    head: np.void
    """ACQUISITION_HEADER scalar."""
    data: np.ndarray
    """complex64 (channel, sample), writable."""
    trajectory: np.ndarray | None = None
    """float32 (sample, dimension), or None."""

    def has(self, flag: Flag) -> bool:
        """Tell whether `flag` is set."""
        return bool(int(self.head["flags"]) & flag.mask)


@dataclass(slots=True, eq=False)
class Waveform:
    """ISMRMRD_WAVEFORM (1026)."""

    head: np.void
    data: np.ndarray
    """uint32 (channel, sample)."""


@dataclass(slots=True, eq=False)
class Image:
    """ISMRMRD_IMAGE (1022)."""

    head: np.void
    """IMAGE_HEADER scalar."""
    attributes: str
    """ISMRMRD meta XML, without trailing NUL."""
    data: np.ndarray
    """(channel, z, y, x), type by data_type; x fastest in memory."""


Message = (
    ConfigFile | ConfigText | Header | Close | Text | Query | Response | ErrorText | Acquisition | Waveform | Image
)
