"""The images of a scan, gathered again into maps, B0, mask and spectra: what NIfTI files and pictures are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrsi_gadgets.data import DisplayMask, Map
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.fitted import FittedSpectra
from mrsi_gadgets.output import console
from mrsi_gadgets.output.meta import MetaValue, from_xml, value_of, values_of
from mrsi_gadgets.output.nifti import image_affine_ras, image_values
from mrsi_gadgets.output.spectra_images import KINDS, Gathered, voxels_of
from mrsi_gadgets.stream.messages import Image

_ORIGIN = {"version": "version", "recipe": "recipe", "protocol_fingerprint": "protocol"}
"""Key of the provenance -> the same in the short form that every image carries."""
_CONSTANTS = ("dwell_s", "transmit_frequency_hz", "reference_ppm", "acquisition_delay_s")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One voxel's FID with its fit, and what turns it into a spectrum over ppm."""

    voxel: tuple[int, int, int]
    data: np.ndarray
    """complex64 (t,)."""
    fit: np.ndarray
    """complex64 (t,): everything the fit explains."""
    nuisance: np.ndarray
    """complex64 (t,): the part of `fit` that is no molecule of interest."""
    dwell_s: float
    transmit_frequency_hz: float
    reference_ppm: float
    acquisition_delay_s: float = 0.0
    nucleus: str = "1H"


@dataclass
class ResultMap:
    """One map over all frames."""

    name: str
    unit: str
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    """Frame -> (x, y, z)."""
    sd_frames: dict[int, np.ndarray] = field(default_factory=dict)
    crlb_frames: dict[int, np.ndarray] = field(default_factory=dict)
    """The bare bound of the noise (`data.Map`)."""
    exact: bool = True
    """False where only the console's 12-bit picture came, rounded to its step."""

    @property
    def value(self) -> np.ndarray:
        """(x, y, z), or (x, y, z, frame) where there are several."""
        return stack_frames(self.frames)

    @property
    def sd(self) -> np.ndarray | None:
        """Like `value`, or None."""
        return stack_frames(self.sd_frames) if self.sd_frames else None

    @property
    def crlb(self) -> np.ndarray | None:
        """Like `value`, or None."""
        return stack_frames(self.crlb_frames) if self.crlb_frames else None


@dataclass
class Results:
    """Everything the images of one scan say."""

    maps: dict[str, ResultMap] = field(default_factory=dict)
    b0: dict[int, np.ndarray] = field(default_factory=dict)
    mask: dict[int, np.ndarray] = field(default_factory=dict)
    spectra: list[Spectrum] = field(default_factory=list)
    """A few examples."""
    gathered: dict[int, Gathered] = field(default_factory=dict)
    """Frame -> the images of all its voxels' spectra; `fitted` reads them."""
    axis: dict[str, Any] = field(default_factory=dict)
    """What turns FIDs into spectra: the constants of `Spectrum`; empty where no spectra came."""
    shown: list[str] = field(default_factory=list)
    """Maps the console shows, in its order."""
    affine_ras: np.ndarray | None = None
    """Voxel index to RAS mm, equal for all maps."""
    matrix: tuple[int, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    n_images: int = 0
    n_foreign: int = 0
    """Images without our ``mrsi_kind``: another program's."""
    echoes: dict[str, Results] = field(default_factory=dict)
    """Where the scan has several echo times, the results of each by its name, such as ``te35ms``; what is here besides
    are then those of the first."""
    _origin: dict[str, str] = field(default_factory=dict)
    """The short provenance that every image has."""
    _pictures: dict[tuple[str, str, str, int], np.ndarray] = field(default_factory=dict)

    def add(self, image: Image) -> None:
        """Take one image in.

        Raises
        ------
        DataError
            Images of one scan lie on different grids, or their attributes are damaged.
        """
        self.n_images += 1
        meta = from_xml(image.attributes)
        kind = value_of(meta, "mrsi_kind")
        if not kind:
            self.n_foreign += 1
            return
        for sentence in values_of(meta, "mrsi_warnings"):
            if sentence not in self.warnings:
                self.warnings.append(sentence)
        self.provenance = self.provenance or _json_object(value_of(meta, "mrsi_provenance", "{}"))
        self._origin = self._origin or {
            key: value_of(meta, f"mrsi_{name}") for key, name in _ORIGIN.items() if value_of(meta, f"mrsi_{name}")
        }
        own = self._of_echo(meta)
        if own is not None:
            own.add_part(image, meta, kind)
            if kind != console.SPECTRA and kind not in KINDS:
                self._check_grid(image)
            return
        self.add_part(image, meta, kind)

    def add_part(self, image: Image, meta: dict[str, MetaValue], kind: str) -> None:
        """Take in what an image of ours shows."""
        if kind == console.SPECTRA or kind in KINDS:
            self.axis = self.axis or _axis(meta)
            if kind == console.SPECTRA:
                self.spectra = self.spectra or _spectra(image, meta, self.axis)
            else:
                frame = int(value_of(meta, "mrsi_frame", "0"))
                self.gathered.setdefault(frame, Gathered()).add(kind, image, meta)
            return
        self._check_grid(image)
        self._add_map(image, meta, kind)

    def fitted(self, frame: int = 0) -> FittedSpectra | None:
        """Return the spectra of all fitted voxels of a frame, None where they did not come.

        Raises
        ------
        DataError
            Their images are not complete or contradict each other.
        """
        gathered = self.gathered.get(frame)
        return None if gathered is None else gathered.spectra()

    def _of_echo(self, meta: dict[str, MetaValue]) -> Results | None:
        """Return the results of the image's own echo time, or None where the scan has one."""
        if not value_of(meta, "mrsi_echo"):
            return None
        name = f"te{value_of(meta, 'EchoTime').replace('.', 'p')}ms"
        return self.echoes.setdefault(name, Results())

    def finish(self) -> Results:
        """Fill what came only as a 12-bit picture in from there (NaN outside the mask), and return the results.

        A map that some frames lack is NaN there: all maps have the same frames.
        """
        self.provenance = self.provenance or dict(self._origin)
        for echo in self.echoes.values():
            echo.finish()
            echo.provenance, echo.warnings = self.provenance, self.warnings
        for first in list(self.echoes.values())[:1]:
            self.maps, self.b0, self.mask = first.maps, first.b0, first.mask
            self.spectra, self.shown = first.spectra, first.shown
            self.gathered, self.axis = first.gathered, first.axis
        for (name, unit, what, frame), values in self._pictures.items():
            if name == console.B0:
                self.b0.setdefault(frame, values)
                continue
            item = self.maps.setdefault(name, ResultMap(name, unit, exact=False))
            frames = item.frames if what == console.VALUE else item.sd_frames
            if frame not in frames:
                frames[frame] = np.where(self.mask[frame], values, np.nan) if frame in self.mask else values
        everywhere = set(self.mask).union(*(item.frames for item in self.maps.values()))
        for item in self.maps.values():
            for frames in (item.frames, item.sd_frames, item.crlb_frames):
                for frame in everywhere.difference(frames) if frames else ():
                    frames[frame] = np.full(self.matrix, np.nan, dtype=np.float32)
        return self

    def _add_map(self, image: Image, meta: dict[str, MetaValue], kind: str) -> None:
        name, unit = value_of(meta, "mrsi_map"), value_of(meta, "mrsi_unit")
        frame, values = int(value_of(meta, "mrsi_frame", "0")), image_values(image)
        if kind == console.DISPLAY:
            what = value_of(meta, "mrsi_display")
            factor, unit = float(value_of(meta, "mrsi_display_factor", "1")), value_of(meta, "mrsi_map_unit", unit)
            self._pictures[name, unit, what, frame] = values / factor
            if what == console.VALUE and name not in self.shown:
                self.shown.append(name)
        elif kind == console.B0:
            self.b0[frame] = values
        elif kind == console.MASK:
            self.mask[frame] = values > 0
        elif kind in (console.VALUE, console.SD, console.CRLB):
            item = self.maps.setdefault(name, ResultMap(name, unit))
            of = {console.VALUE: item.frames, console.SD: item.sd_frames, console.CRLB: item.crlb_frames}
            of[kind][frame] = values
        else:
            raise DataError(f"an image says mrsi_kind '{kind}', which this version does not know; update mrsi-gadgets")

    def _check_grid(self, image: Image) -> None:
        affine, matrix = image_affine_ras(image), tuple(image.head["matrix_size"].tolist())
        if self.affine_ras is None:
            self.affine_ras, self.matrix = affine, matrix
        elif matrix != self.matrix or not np.allclose(affine, self.affine_ras, atol=1e-3):
            raise DataError("the images of this scan lie on different grids; they cannot be one result")


def gather(images: Iterable[Image]) -> Results:
    """Return what `images` say (see `Results.add`)."""
    results = Results()
    for image in images:
        results.add(image)
    return results.finish()


def shown_voxels(results: Results, item: ResultMap, frame: int) -> np.ndarray:
    """Return where a map is shown, (x, y, z) bool: what a quality mask hides at the console is hidden here too."""
    told, quality = results.provenance.get("quality_mask"), results.maps.get("quality")
    if not isinstance(told, dict) or quality is None or frame not in quality.frames:
        return np.ones(item.frames[frame].shape, bool)
    codes = np.nan_to_num(quality.frames[frame]).astype(int)
    mask = DisplayMask((codes & int(told["codes_that_hide"])) == 0, float(told["relative_sd"]), "")
    return mask.keeps(Map(item.frames[frame], item.unit, item.sd_frames.get(frame)))


def stack_frames(frames: dict[int, np.ndarray]) -> np.ndarray:
    """Return one frame as it is, several along a new last axis in their order."""
    ordered = [frames[number] for number in sorted(frames)]
    return ordered[0] if len(ordered) == 1 else np.stack(ordered, axis=-1)


def _axis(meta: dict[str, MetaValue]) -> dict[str, Any]:
    constants: dict[str, Any] = {name: float(value_of(meta, f"mrsi_{name}")) for name in _CONSTANTS}
    return constants | {"nucleus": value_of(meta, "mrsi_nucleus", "1H")}


def _spectra(image: Image, meta: dict[str, MetaValue], axis: dict[str, Any]) -> list[Spectrum]:
    rows = values_of(meta, "mrsi_rows")
    voxels = voxels_of(meta).tolist()
    if rows != ["data", "fit", "nuisance"] or image.data.shape[:3] != (1, len(voxels), 3):
        raise DataError(f"the spectra image has shape {image.data.shape} and rows {rows}; expected data, fit, nuisance")
    found = []
    for (x, y, z), (data, fit, nuisance) in zip(voxels, image.data[0], strict=True):
        found.append(Spectrum((x, y, z), data, fit, nuisance, **axis))
    return found


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"mrsi_provenance of an image is not JSON ({error})") from error
    return found if isinstance(found, dict) else {}
