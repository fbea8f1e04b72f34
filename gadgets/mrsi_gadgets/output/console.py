"""Maps become MRD images for a scanner's console: pixels in fixed units, geometry, and both sets of meta names.

Three kinds of series leave: uint16 pictures to look at, float images with the exact values (DataRole Quantitative), and
one complex image with a few spectra and their fits (DataRole Spectroscopy). Where it is asked for, the spectra of all
voxels and what their fits are made of follow as complex images (`output.spectra_images`). Everything `output.folder`
writes is read from these images again, so a result is the same wherever the chain ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrsi_gadgets import __version__
from mrsi_gadgets.arrays import to_numpy
from mrsi_gadgets.data import Geometry, Map, Maps, Protocol, SpectralImage
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.fitted import FitExample, FittedSpectra
from mrsi_gadgets.output.meta import to_xml
from mrsi_gadgets.output.scaling import (
    CONCENTRATIONS,
    DisplayScales,
    Scale,
    base_name,
    display_unit,
    is_unknown,
    map_title,
    mask_scale,
    signed_scale,
)
from mrsi_gadgets.output.spectra_images import KINDS, WATER, parts_of, parts_of_water, voxel_texts
from mrsi_gadgets.stream.messages import IMAGE_HEADER, Image

DISPLAY, VALUE, SD, CRLB, B0, MASK, SPECTRA = "display", "value", "sd", "crlb", "b0", "mask", "spectra"
"""What meta key ``mrsi_kind`` says of an image."""

_IMAGE_TYPE = ("DERIVED", "PRIMARY", "METABOLITE_MAP")

_VALUES = "MRSI values"
"""Description of the series that holds the exact values."""

SERIES_PER_ECHO = 200
"""Series numbers of each echo time: more than one echo time ever has series."""
FITTED_SERIES = 190
"""First number of the series of all voxels' spectra: behind all others, whose numbers do not depend on them."""
_QUANTITATIVE_CHOICES = ("all", "shown", "none")
SPECTRA_CHOICES = ("examples", "all", "none")
_DATA_TYPE = {"uint16": 1, "float32": 5, "complex64": 7}
_MAGNITUDE, _COMPLEX = 1, 5


@dataclass
class _Series:
    """What all images of one call share, and the running series number."""

    maps: Maps
    reference_head: np.void | None
    warnings: Sequence[str]
    comments: Sequence[str]
    provenance: Mapping[str, Any]
    images: list[Image] = field(default_factory=list)
    count: int = 0
    """Series so far."""

    def add(
        self,
        pixels: np.ndarray,
        title: str,
        unit: str,
        meta: dict[str, Any],
        notes: Sequence[str] = (),
        *,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        """Append an image; `pixels` are (x, y, z), `meta` its own keys.

        `place` is the image's place (i, n) in a series of n images a frame; a series begins with i = 0.
        """
        self.count += place[0] == 0
        title += self.of_echo
        head = _head(self.maps, self.reference_head, pixels, self.count + SERIES_PER_ECHO * (self.maps.echo or 0))
        head["image_index"] = self.maps.frame * place[1] + place[0] + 1
        parts = [f"{title} [{unit}]", *notes, f"mrsi-gadgets {__version__}", *self.comments, *self.warnings]
        comment = "; ".join(parts)
        attributes = to_xml(self._common(title, comment) | meta | {"mrsi_unit": unit} | self._origin())
        head["attribute_string_len"] = len(attributes.encode())
        data = np.ascontiguousarray(pixels.transpose(2, 1, 0))[np.newaxis]
        self.images.append(Image(head=head, attributes=attributes, data=data))

    @property
    def of_echo(self) -> str:
        """What is added to titles where the scan has several echo times."""
        return "" if self.maps.echo is None else f" TE {self.maps.protocol.echo_times_s[0] * 1e3:g} ms"

    def _origin(self) -> dict[str, Any]:
        """How the image came about: in short, and in full with the first one of a frame (it is the same for all)."""
        meta = {
            "mrsi_version": __version__,
            "mrsi_recipe": str(self.provenance.get("recipe", "")),
            "mrsi_protocol": self.maps.protocol.fingerprint(),
        }
        if not self.images:
            text = json.dumps(self.provenance, sort_keys=True, default=str, ensure_ascii=False)
            meta["mrsi_provenance"] = text
        return meta

    def _common(self, title: str, comment: str) -> dict[str, Any]:
        geometry, protocol, frame = self.maps.protocol.geometry, self.maps.protocol, self.maps.frame
        meta: dict[str, Any] = {
            "ImageProcessingHistory": ["PYTHON", "MRSI"],
            "ImageType": list(_IMAGE_TYPE),
            "SeriesDescription": title,
            "SequenceDescriptionAdditional": "mrsi",
            "ImageComments": comment,
            "ImageComment": comment,
            "Keep_image_geometry": "1",
            "ImageRowDir": _direction(geometry.read_dir),
            "ImageColumnDir": _direction(geometry.phase_dir),
            "ImageSliceNormDir": _direction(geometry.slice_dir),
            "GADGETRON_ImageCategory": _IMAGE_TYPE[-1],
            "GADGETRON_ImageNumber": str(frame + 1),
            "GADGETRON_ImageComment": comment,
            "GADGETRON_ImageProcessingHistory": ["PYTHON", "MRSI"],
            "GADGETRON_SeqDescription": title,
            "Skip_processing_after_recon": "1",
            # A pixel is worth a fixed step: never scaled together with other images, straight into the archive.
            "Use_dedicated_scaling_factor": "1",
            "Gadgetron_ImageDirectSend": "1",
            "mrsi_frame": str(frame),
        }
        if protocol.echo_times_s:
            echo = _number(protocol.echo_times_s[0] * 1e3)
            meta |= {"EchoTime": echo, "GADGETRON_TE": echo}
        if self.maps.echo is not None:
            meta["mrsi_echo"] = str(self.maps.echo)
        if self.warnings:
            meta["mrsi_warnings"] = list(self.warnings)
        return meta


def maps_to_images(
    maps: Maps,
    *,
    reference_head: np.void | None,
    shown: Sequence[str],
    uncertainty: bool = True,
    quantitative: str = "all",
    spectra: str = "examples",
    comments: Sequence[str] = (),
    warnings: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    scales: DisplayScales | None = None,
    water: SpectralImage | None = None,
) -> list[Image]:
    """Return the images of one frame, one series per shown map, then all exact values as one series.

    Parameters
    ----------
    maps
        Result of the quantification.
    reference_head
        ACQUISITION_HEADER of a readout of this frame: uid, time stamps, counters and table position are copied from
        it; without one they are zero.
    shown
        Maps to look at. A name NAME is shown as NAME_mM (or NAME_molal) where that exists, else as NAME_per_water
        (units that mean the same in every scan), else as NAME itself. Lines that no molecule of the model has are shown
        whether they are named or not.
    uncertainty
        Show the standard deviations too.
    quantitative
        Which exact float images go along: ``all`` maps, only the ``shown`` ones (with their ratios), or ``none``.
    spectra
        Which spectra go along with their fits: a few ``examples``, those and ``all`` fitted voxels, or ``none``.
    comments, warnings
        Sentences for the image comments; `warnings` also go into the key ``mrsi_warnings``.
    provenance
        Added to ``maps.provenance`` in the key ``mrsi_provenance``; nothing that differs from run to run belongs here.
    scales
        Display scales of the session; give the same object for every frame of a dynamic scan.
    water
        FIDs of the water reference; go along with ``all`` spectra.

    Raises
    ------
    ConfigError
        A shown map does not exist, or `quantitative` or `spectra` is unknown.
    """
    if spectra not in SPECTRA_CHOICES:
        raise ConfigError(f"console_images spectra='{spectra}' is unknown; use {', '.join(SPECTRA_CHOICES)}")
    if quantitative not in _QUANTITATIVE_CHOICES:
        raise ConfigError(f"console_images quantitative='{quantitative}' is unknown; use all, shown or none")
    sources = {name: displayed_map(name, maps.maps) for name in shown}
    scales = scales if scales is not None else DisplayScales()
    scales.learn(maps.maps)
    lines = [name for name in maps.maps if is_unknown(name) and name not in sources.values()]
    everything = dict(maps.provenance) | dict(provenance or {})
    warnings = list(warnings)
    if spectra == "all" and maps.spectra is None:
        warnings.append("the spectra of all voxels were asked for, but this quantification keeps none")
    series = _Series(maps, reference_head, tuple(warnings), tuple(comments), everything)
    _add_displays(series, sources, scales, uncertainty=uncertainty)
    if quantitative != "none":
        bases = {base_name(name) for name in (*sources, *lines)}
        wanted = [name for name in maps.maps if quantitative == "all" or base_name(name) in bases]
        _add_quantitative(series, wanted, scales)
    if spectra != "none":
        _add_spectra(series, maps.examples)
    _add_lines(series, lines, scales, uncertainty=uncertainty)
    if spectra == "all" and maps.spectra is not None:
        _add_fitted(series, maps.spectra())
        if water is not None:
            _add_water(series, water)
    return series.images


def displayed_map(name: str, maps: Mapping[str, Map]) -> str:
    """Return the name of the map that is shown for `name`.

    Raises
    ------
    ConfigError
        Nothing of that name was quantified.
    """
    for candidate in (*(f"{name}{unit}" for unit in CONCENTRATIONS), f"{name}_per_water", name):
        if candidate in maps:
            return candidate
    raise ConfigError(f"console_images shows map '{name}', which was not quantified; choose from {', '.join(maps)}")


def _add_displays(series: _Series, sources: Mapping[str, str], scales: DisplayScales, *, uncertainty: bool) -> None:
    maps = series.maps
    for name, source in sources.items():
        _add_shown(series, name, source, scales, uncertainty=uncertainty)
    _add_display(series, maps.b0_hz, "B0", "b0", "Hz", signed_scale("Hz"), B0)
    mask = mask_scale().pixels(maps.mask)
    meta = _roles("Quantitative", MASK, "mask") | _rescale(mask_scale())
    series.add(mask, "mask", "1", meta, ["1 where the spectrum was fitted"])


def _add_lines(series: _Series, names: Sequence[str], scales: DisplayScales, *, uncertainty: bool) -> None:
    """Append the lines that no molecule has, last: which ones there are differs from frame to frame."""
    first = series.count
    for name in names:
        series.count = first + scales.place_of_line(name) * (2 if uncertainty else 1)
        _add_shown(series, name, name, scales, uncertainty=uncertainty)


def _add_shown(series: _Series, name: str, source: str, scales: DisplayScales, *, uncertainty: bool) -> None:
    item, title = series.maps.maps[source], map_title(name)
    scale = scales.of(source, item.unit)
    value, notes = item.value, []
    display = series.maps.display
    if display is not None:
        keeps = display.keeps(item)
        hidden = int(np.sum(series.maps.mask & ~keeps))
        value = np.where(keeps, value, np.nan)
        notes = [f"{hidden} voxels hidden ({display.rule})"] if hidden else []
    _add_display(series, value, title, source, item.unit, scale, VALUE, notes)
    if uncertainty and item.sd is not None:
        _add_display(series, item.sd, f"{title} SD", source, item.unit, scale.for_sd(), SD)


def _add_display(
    series: _Series, values: np.ndarray, title: str, source: str, unit: str, scale: Scale, what: str,
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    factor, shown_unit = display_unit(source, unit)
    values = np.asarray(values, dtype=np.float64) * factor
    notes = [] if source in (title, title.removesuffix(" SD"), "b0") else [f"from {source}"]
    notes += [unit.partition(" (")[2].removesuffix(")")] if "(" in unit else []
    if scale.n_clipped(values):
        notes.append(f"{scale.n_clipped(values)} voxels lie beyond the pixel range")
    notes += more
    meta = _roles("Image", DISPLAY, source) | _rescale(scale) | {
        "mrsi_display": what, "mrsi_display_factor": _number(factor), "mrsi_map_unit": unit,
    }  # fmt: skip
    series.add(scale.pixels(values), title, shown_unit, meta, notes)


def _add_quantitative(series: _Series, names: Sequence[str], scales: DisplayScales) -> None:
    """Append every exact map as one image of a single series: a console lists one entry, not a hundred."""
    values: list[tuple[np.ndarray, str, str, str, str, Scale]] = []
    for name in names:
        item = series.maps.maps[name]
        scale = scales.of(name, item.unit)
        values.append((item.value, f"{name} values", item.unit, VALUE, name, scale))
        if item.sd is not None:
            values.append((item.sd, f"{name} SD values", item.unit, SD, name, scale.for_sd()))
        if item.crlb is not None:
            values.append((item.crlb, f"{name} CRLB values", item.unit, CRLB, name, scale.for_sd()))
    values.append((series.maps.b0_hz, "B0 values", "Hz", B0, "b0", signed_scale("Hz")))
    for i, (pixels, title, unit, kind, name, scale) in enumerate(values):
        meta = _roles("Quantitative", kind, name) | _window(scale, display_unit(name, unit)[0])
        meta |= dict.fromkeys(("SeriesDescription", "GADGETRON_SeqDescription"), f"{_VALUES}{series.of_echo}")
        series.add(_float(pixels), title, unit, meta, place=(i, len(values)))


def _add_spectra(series: _Series, examples: Sequence[FitExample]) -> None:
    if not examples:
        # a frame without spectra keeps their number free, so that later series have the same one in all frames
        series.count += 1
        return
    pixels = np.stack([np.stack([e.data, e.fit, e.nuisance]) for e in examples])
    meta = _roles("Spectroscopy", SPECTRA, "spectra") | {
        "mrsi_rows": ["data", "fit", "nuisance"],
        "mrsi_voxels": voxel_texts(e.voxel for e in examples),
    }
    meta |= _axis(series.maps.protocol)
    series.add(_complex(pixels), "spectra", "signal", meta, ["x time, y data, fit and nuisance, z voxel"])


def _add_fitted(series: _Series, fitted: FittedSpectra) -> None:
    """Append the spectra of all voxels; their series have numbers of their own."""
    if series.count >= FITTED_SERIES:
        raise ConfigError(
            f"console_images shows maps in {series.count} series, too many to number those of all spectra; name fewer "
            "maps, or leave spectra at examples"
        )
    axis = _axis(series.maps.protocol)
    for number, parts in enumerate(parts_of(fitted)):
        series.count = FITTED_SERIES + number - 1
        for i, part in enumerate(parts):
            meta = _roles("Spectroscopy", part.kind, part.kind) | part.meta | axis
            series.add(_complex(part.values), part.title, part.unit, meta, [part.note], place=(i, len(parts)))


def _add_water(series: _Series, water: SpectralImage) -> None:
    """Append the FIDs of the water reference in the fitted voxels, behind all other spectra."""
    voxels = np.argwhere(series.maps.mask)
    fids = to_numpy(water.fids())[series.maps.mask]
    series.count = FITTED_SERIES + KINDS.index(WATER) - 1
    parts = parts_of_water(voxels, fids)
    axis = _axis(water.protocol)
    for i, part in enumerate(parts):
        meta = _roles("Spectroscopy", part.kind, part.kind) | part.meta | axis
        series.add(_complex(part.values), part.title, part.unit, meta, [part.note], place=(i, len(parts)))


def _complex(values: np.ndarray) -> np.ndarray:
    """Return (z, y, x) values as the pixels of a complex image."""
    return values.astype(np.complex64).transpose(2, 1, 0)


def _axis(protocol: Protocol) -> dict[str, Any]:
    """Return what turns an FID into a spectrum over ppm."""
    return {
        "mrsi_nucleus": protocol.nucleus,
        "mrsi_dwell_s": _number(protocol.dwell_s),
        "mrsi_transmit_frequency_hz": _number(protocol.transmit_frequency_hz),
        "mrsi_reference_ppm": _number(protocol.reference_ppm),
        "mrsi_acquisition_delay_s": _number(protocol.acquisition_delay_s),
    }


def _head(maps: Maps, reference: np.void | None, pixels: np.ndarray, series_index: int) -> np.void:
    geometry: Geometry = maps.protocol.geometry
    head: np.void = np.zeros((1,), dtype=IMAGE_HEADER)[0]
    if reference is not None:
        for name in ("measurement_uid", "patient_table_position", "acquisition_time_stamp", "physiology_time_stamp",
                     "user_int", "user_float"):  # fmt: skip
            head[name] = reference[name]
        for name in ("average", "slice", "contrast", "phase", "repetition", "set"):
            head[name] = reference["idx"][name]
    if maps.echo is not None:
        head["contrast"] = maps.echo
    head["version"] = 1
    head["data_type"] = _DATA_TYPE[pixels.dtype.name]
    head["matrix_size"] = pixels.shape
    head["field_of_view"] = geometry.fov_mm
    head["channels"] = 1
    head["position"] = geometry.box_centre_mm
    head["read_dir"], head["phase_dir"], head["slice_dir"] = geometry.read_dir, geometry.phase_dir, geometry.slice_dir
    head["image_type"] = _COMPLEX if pixels.dtype.kind == "c" else _MAGNITUDE
    head["image_series_index"] = series_index
    return head


def _roles(data_role: str, kind: str, name: str) -> dict[str, Any]:
    # Gadgetron has no role of its own for exact values; GADGETRON_Image is its plain image.
    return {
        "DataRole": data_role,
        "GADGETRON_DataRole": "GADGETRON_Image" if data_role == "Image" else data_role,
        "mrsi_kind": kind,
        "mrsi_map": name,
    }


def _rescale(scale: Scale) -> dict[str, Any]:
    """Rescale and window in both dialects.

    FIRE speaks in values (value = slope * pixel + intercept), Gadgetron in pixels (pixel = ratio * value + offset).
    """
    centre, width = (scale.window_centre - scale.intercept) / scale.slope, scale.window_width / scale.slope
    return {
        "RescaleSlope": _number(scale.slope),
        "RescaleIntercept": _number(scale.intercept),
        "WindowCenter": _number(scale.window_centre),
        "WindowWidth": _number(scale.window_width),
        "GADGETRON_ScaleRatio": _number(1 / scale.slope),
        "GADGETRON_ScaleOffset": _number(-scale.intercept / scale.slope),
        "GADGETRON_WindowCenter": _number(np.rint(centre)),
        "GADGETRON_WindowWidth": _number(np.rint(max(width, 1.0))),
    }


def _window(scale: Scale, factor: float) -> dict[str, Any]:
    """Window of exact values: their pixels are the values themselves, the display's divided by its factor."""
    centre, width = _number(scale.window_centre / factor), _number(scale.window_width / factor)
    return {
        "WindowCenter": centre,
        "WindowWidth": width,
        "GADGETRON_WindowCenter": centre,
        "GADGETRON_WindowWidth": width,
    }


def _float(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def _direction(vector: Sequence[float]) -> list[str]:
    return [f"{component:.18f}" for component in vector]


def _number(value: float) -> str:
    """Shortest text that reads back as the same number to 12 digits (0.1 * 3 stays 0.3, -0 becomes 0)."""
    return f"{float(value) + 0.0:.12g}"
