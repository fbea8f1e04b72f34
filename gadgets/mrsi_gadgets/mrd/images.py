"""Spectroscopic images that another reconstruction made, as the readouts they could come from.

A chain may stand behind somebody else's reconstruction (protocol 1.5: complex images in, maps out). An image's discrete
Fourier transform is a complete csi scan of one channel, so everything behind it (field map, nuisance, subspace, fit)
is what it is for readouts. The grid, the frame and the water reference are the images' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mrsi_gadgets.arrays import centred_fftn
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.header import Encoding, MrdHeader, Space, Value
from mrsi_gadgets.mrd.keys import DEFAULT_AXES, DEFAULT_OTHER_AXES
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition, Flag, Image, Message

ROLE_KEY, WATER_ROLE = "mrsi_role", "water_reference"
"""Meta attribute of an image, and what it says of a water reference."""
_COPIED = ("measurement_uid", "patient_table_position", "acquisition_time_stamp", "physiology_time_stamp",
           "read_dir", "phase_dir", "slice_dir")  # fmt: skip
_COUNTERS = ("average", "contrast", "phase", "repetition", "set")
_SETTINGS = {
    "mrsi_encoding": "csi", "mrsi_readout_oversampling": "1", "mrsi_kspace_sign": "1", "mrsi_grid_center": "voxel",
    "mrsi_water_ref": "flag:USER1", "mrsi_kspace_weighting": "none", "mrsi_edit": "none",
    **{f"mrsi_axis_{name}": source for name, source in {**DEFAULT_AXES["csi"], **DEFAULT_OTHER_AXES}.items()},
}  # fmt: skip


def readouts_of_images(
    first: Image, others: Iterator[Message], header: MrdHeader, settings: Mapping[str, str]
) -> tuple[MrdHeader, dict[str, str], Iterator[Message]]:
    """Return header, settings and messages of the csi scan that a stream of spectroscopic images stands for.

    Parameters
    ----------
    first, others
        Complex images with a channel for each point of the FIDs. Meta attribute ``mrsi_role`` = ``water_reference``
        marks the images of the water reference.
    header
        Of the scan they come from: nucleus, dwell, delay, transmit frequency count, its encoding does not.
    settings
        Explicit ones; they win over those that images bring.

    Raises
    ------
    DataError
        An image is not complex, has another number of spectral points or another grid than the others, or something
        else than images comes.
    """
    wanted = dict(settings)
    n_times = int(wanted.get("mrsi_spectral_points", header.user.get("mrsi_spectral_points", 0)) or 0)
    dwell_us = float(wanted.get("mrsi_dwell_us", header.user.get("mrsi_dwell_us", 0.0)) or 0.0)
    matrix = _fids(first, n_times).shape[:3]
    fov = [float(length) for length in first.head["field_of_view"]]
    space = Space((matrix[0], matrix[1], matrix[2]), (fov[0], fov[1], fov[2]))
    known = header.encodings[0] if header.encodings else Encoding(space, space)
    encoding = replace(known, encoded=space, recon=space, limits={}, trajectory="cartesian", trajectory_id="")
    keys = {name: value for name, value in header.user.items() if not _of_encoding(name)}
    described = replace(
        header, encodings=(encoding,), receiver_channels=1, user=keys, adapted=_without_encoding(header.adapted),
        geometry_source="the header of the images",
    )  # fmt: skip
    return described, {**_SETTINGS, **wanted}, _readouts(first, others, n_times, matrix, dwell_us)


def _readouts(
    first: Image, others: Iterator[Message], n_times: int, matrix: tuple[int, ...], dwell_us: float
) -> Iterator[Message]:
    counter = 0
    message: Message | None = first
    while message is not None:
        if isinstance(message, Acquisition):
            raise DataError("a readout came among spectroscopic images; send one or the other")
        if not isinstance(message, Image):
            yield message
        else:
            fids = _fids(message, n_times)
            if fids.shape[:3] != matrix:
                raise DataError(
                    f"a spectroscopic image has {fids.shape[:3]} voxels and the first {matrix}; send one grid"
                )
            for readout in _of_image(message, fids, counter, dwell_us):
                counter += 1
                yield readout
        message = next(others, None)


def _of_image(image: Image, fids: np.ndarray, counter: int, dwell_us: float) -> Iterator[Acquisition]:
    """Yield the readouts of one image: the FID at each point of k-space."""
    # rho summed over voxels is the centre of k-space
    k_space = centred_fftn(fids.astype(np.complex64), (0, 1, 2)) * np.float32(np.prod(fids.shape[:3]) ** 0.5)
    water = _role(image) == WATER_ROLE
    position = _centre_voxel_mm(image, fids.shape[:3])
    for x, y, z in np.ndindex(*fids.shape[:3]):
        head = np.zeros(1, ACQUISITION_HEADER)[0]
        for name in _COPIED:
            head[name] = image.head[name]
        head["position"], head["sample_time_us"] = position, dwell_us
        for name in _COUNTERS:
            head["idx"][name] = image.head[name]
        head["idx"]["segment"], head["idx"]["kspace_encode_step_1"], head["idx"]["kspace_encode_step_2"] = x, y, z
        head["version"], head["scan_counter"] = 1, counter & 0xFFFFFFFF
        head["number_of_samples"], head["active_channels"], head["available_channels"] = fids.shape[3], 1, 1
        head["channel_mask"][0] = 1
        head["flags"] = Flag.USER1.mask if water else 0
        counter += 1
        yield Acquisition(head, np.ascontiguousarray(k_space[x, y, z][None]))


def _fids(image: Image, n_times: int) -> np.ndarray:
    """Return the FIDs of an image, (x, y, z, t)."""
    data = image.data
    if data.dtype.kind != "c":
        raise DataError(
            "an image that is not complex came where spectra are expected; send complex images (type CXFLOAT)"
        )
    if not n_times:
        raise DataError("mrsi_spectral_points is not given, so the spectral axis of the images is not known; add it")
    if data.shape[0] != n_times:
        raise DataError(
            f"a spectroscopic image has {data.shape[0]} channels but mrsi_spectral_points is {n_times}; its channels "
            "must be the points of the FIDs"
        )
    return np.ascontiguousarray(data.transpose(3, 2, 1, 0))


def _centre_voxel_mm(image: Image, matrix: tuple[int, ...]) -> np.ndarray:
    """Return the place of voxel n // 2: an image header gives the centre of the box of voxels (protocol 3.1)."""
    axes = np.array([image.head[name] for name in ("read_dir", "phase_dir", "slice_dir")], dtype=float)
    size = np.array(image.head["field_of_view"], dtype=float) / matrix
    beyond = np.array([n // 2 - (n - 1) / 2 for n in matrix])
    return np.array(image.head["position"], dtype=float) + (beyond * size) @ axes


def _role(image: Image) -> str:
    """Return what meta attribute mrsi_role says, or an empty text."""
    text = image.attributes.strip("\0 \r\n\t")
    if ROLE_KEY not in text:
        return ""
    try:
        root = fromstring(text.encode())
    except (ParseError, DefusedXmlException, ValueError) as problem:
        raise DataError(f"the attributes of an image are not readable XML ({problem})") from problem
    for entry in root:
        parts = [(child.tag.rpartition("}")[2], (child.text or "").strip()) for child in entry]
        if ("name", ROLE_KEY) in parts:
            return next((text for tag, text in parts if tag == "value"), "")
    return ""


def _of_encoding(name: str) -> bool:
    """Tell whether a key describes how the readouts were encoded, which no longer counts."""
    encoded = ("mrsi_axis_", "mrsi_samples_", "mrsi_temporal_", "mrsi_trajectory_", "mrsi_readout_", "mrsi_kspace_")
    return name.startswith(encoded) or (name.partition("_enc")[0] in _SETTINGS and name not in ("mrsi_encoding",))


def _without_encoding(adapted: Mapping[str, tuple[Value, str]]) -> dict[str, tuple[Value, str]]:
    return {name: value for name, value in adapted.items() if not _of_encoding(name)}
