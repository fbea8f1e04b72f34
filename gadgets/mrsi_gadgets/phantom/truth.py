"""What a simulated scan really contains, on the voxel grid, and how it is kept beside the file."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.phantom.encodings import ENCODINGS
from mrsi_gadgets.phantom.gradients import GradientLimits
from mrsi_gadgets.phantom.presets import Preset
from mrsi_gadgets.physics.nucleus import NUCLEI

_FORMAT = "mrsi-gadgets truth 1"


@dataclass(frozen=True, eq=False)
class Truth:
    """Truth of one simulated scan. Arrays are on the voxel grid (x, y, z)."""

    preset: Preset
    names: tuple[str, ...]
    """Molecules, macromolecule peaks (mM of protons) and the resonance that no model has seen."""
    contents: np.ndarray
    """(molecule, x, y, z) float32 [mM per voxel volume]: concentration times tissue fraction, as the acquired k-space
    resolves it (exact sum over the fine grid)."""
    contents_voxel: np.ndarray
    """The same as plain means over the voxels."""
    fractions: np.ndarray
    """(4, x, y, z) float32: grey matter, white matter, CSF, scalp; means over the voxels."""
    fractions_resolved: np.ndarray
    """(3, x, y, z) float32: grey matter, white matter, CSF as the acquired k-space resolves them."""
    brain_mask: np.ndarray
    """(x, y, z) bool: grey + white + CSF fraction above 0.95."""
    b0_hz: np.ndarray
    """(x, y, z) float32: mean over the voxel weighted with water, water's own offset included: B0 is what water has."""
    lesions: Mapping[str, np.ndarray]
    """Name -> fraction (x, y, z) float32."""
    fids: np.ndarray
    """(x, y, z, t) complex64: metabolites + macromolecules without noise and nuisance, as the acquired k-space resolves
    them with a uniform coil, `b0_hz` taken out; one proton at 1 mM that recovers fully is 1."""
    water: np.ndarray
    """(x, y, z) float32: water signal at t = 0 in the same unit."""
    coil_maps: np.ndarray
    """(coil, x, y, z) complex64: sensitivity, mean over the voxel."""
    noise_covariance: np.ndarray
    """(coil, coil) complex128: E[n n^H] of one sample of the metabolite data, in sample units."""
    naa_snr: np.ndarray
    """(x, y, z) float32: NAA peak SNR in the brain mask, NaN outside; infinite without noise."""
    card: Mapping[str, Any]
    """Seeds, options and achieved strengths."""

    @property
    def protocol(self) -> Protocol:
        """The measurement."""
        return self.preset.protocol

    def content(self, name: str, *, voxel_mean: bool = False) -> np.ndarray:
        """Return the map (x, y, z) of a molecule or of a sum that every report shows (1H: tNAA, tCr, tCho, Ins, Glx).

        Raises
        ------
        DataError
            There is no such molecule.
        """
        members = self.sums.get(name, {name: 1.0})
        if any(member not in self.names for member in members):
            raise DataError(f"the truth has no map of '{name}'; it has {', '.join((*self.sums, *self.names))}")
        values = self.contents_voxel if voxel_mean else self.contents
        parts = [values[self.names.index(member)] * np.float32(weight) for member, weight in members.items()]
        return np.asarray(sum(parts))

    def knows(self, name: str) -> bool:
        """Tell whether `content(name)` exists."""
        return name in self.sums or name in self.names

    @property
    def sums(self) -> Mapping[str, Mapping[str, float]]:
        """Sums that every report of this nucleus shows: name -> molecules and their weights."""
        return NUCLEI[self.preset.nucleus].sums

    @property
    def lesion_total(self) -> np.ndarray:
        """Fraction of any lesion (x, y, z)."""
        return np.asarray(sum(self.lesions.values()))

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write NAME.truth.npz and NAME.truth.json for a scan file NAME.h5 (or NAME itself); return both paths.

        Each file appears only when it is complete.
        """
        arrays_path, card_path = truth_paths(path)
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        arrays |= {f"lesion_{name}": fraction for name, fraction in self.lesions.items()}
        card = {
            "format": _FORMAT,
            "preset": asdict(self.preset)
            | {
                "snr": str(self.preset.snr),
                "encoding": {"kind": self.preset.encoding.kind, **asdict(self.preset.encoding)},
            },
            "names": self.names,
            **self.card,
        }
        partial = arrays_path.with_name(arrays_path.name + ".part")
        try:
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            partial.replace(arrays_path)
            partial = card_path.with_name(card_path.name + ".part")
            partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            partial.replace(card_path)
        except OSError as problem:
            partial.unlink(missing_ok=True)
            raise DataError(f"cannot write the truth beside {path}: {problem.strerror}; choose another place") from None
        return arrays_path, card_path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Truth:
        """Read what `save` wrote; `path` is the scan file or either truth file.

        Raises
        ------
        DataError
            A file is missing or is not a truth of this version.
        """
        arrays_path, card_path = truth_paths(path)
        try:
            card = json.loads(card_path.read_text(encoding="utf-8"))
            with np.load(arrays_path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile) as problem:
            raise DataError(f"cannot read the truth of {path} ({problem}); simulate the scan again") from None
        if card.get("format") != _FORMAT:
            raise DataError(f"{card_path.name} is not a '{_FORMAT}' card; simulate the scan again")
        lesions = {n.removeprefix("lesion_"): arrays.pop(n) for n in list(arrays) if n.startswith("lesion_")}
        numbers: Any = _as_tuples(card.pop("preset"))
        encoding = numbers.pop("encoding", {"kind": "csi"})  # cards of older versions are of csi scans
        if "gradients" in encoding:
            encoding["gradients"] = GradientLimits(**encoding["gradients"])
        numbers["encoding"] = ENCODINGS[encoding.pop("kind")](**encoding)
        numbers["snr"] = float(numbers["snr"])  # kept as text: JSON has no infinity
        preset = Preset(**numbers)
        names = tuple(card.pop("names"))
        card.pop("format")
        return cls(preset=preset, names=names, lesions=lesions, card=card, **arrays)


def _as_tuples(value: Any) -> Any:
    """JSON has lists where the dataclasses have tuples."""
    if isinstance(value, dict):
        return {key: _as_tuples(part) for key, part in value.items()}
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list) else value


def truth_paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return where the truth of a scan file lies: (NAME.truth.npz, NAME.truth.json)."""
    path = Path(path)
    stem = path.name
    for ending in (".truth.npz", ".truth.json", ".h5"):
        stem = stem.removesuffix(ending)
    return path.with_name(f"{stem}.truth.npz"), path.with_name(f"{stem}.truth.json")
