"""What the head is made of: concentration of every molecule and water content at each fine point, tissue by tissue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrsi_gadgets.phantom.anatomy import Anatomy
from mrsi_gadgets.phantom.lesions import LESION_KINDS, UNKNOWN
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.nucleus import PROTON, Nucleus

SCALP_WATER_MM = 27_500.0
"""Water of muscle and skin beside the fat of the scalp, half that of pure water: a round number."""
_TISSUE_SPREAD = 0.12
"""Standard deviation of the logarithm of each molecule's tissue ratio between brains."""


@dataclass(frozen=True, eq=False)
class Brain:
    """Contents of a head on the fine grid."""

    names: tuple[str, ...]
    """Molecules; of protons also macromolecule peaks (mM of protons) and the resonance that no model has seen."""
    contents: np.ndarray
    """(molecule, tissue, x, y, z) float32: amount per volume of the point [mM], tissue fraction and lesions included;
    tissues are grey, white, CSF."""
    water: np.ndarray
    """(tissue, x, y, z) float32: water [mM] per volume of the point; tissues are grey, white, CSF, scalp."""
    scalp: np.ndarray
    """(x, y, z) float32: scalp fraction times a smooth variation of its fat."""

    @property
    def totals(self) -> np.ndarray:
        """(molecule, x, y, z): amount per volume, all tissues."""
        return self.contents.sum(axis=1)


def make_brain(
    anatomy: Anatomy,
    lesions: Mapping[str, np.ndarray],
    *,
    voxel_mm: tuple[float, float, float],
    names: tuple[str, ...],
    rng: np.random.Generator,
    nucleus: Nucleus = PROTON,
) -> Brain:
    """Fill the anatomy with molecules of a nucleus.

    Each molecule has its tissue concentrations times a random ratio between grey and white matter, times its own smooth
    field of 15 to 25 % standard deviation and 3 to 5 voxels full width at half maximum that knows nothing of tissue.
    Names that stand for one molecule (the phosphates of ATP) have the same amount everywhere. Macromolecules and the
    resonance that no model has seen belong to protons.
    """
    fractions = np.stack([anatomy.grey, anatomy.white, anatomy.csf])
    spacing = np.array(voxel_mm) / anatomy.subvoxels
    weights = anatomy.brain / max(float(anatomy.brain.sum()), 1e-12)
    everything = (*names, *brain_values.MACROMOLECULE_MM, UNKNOWN) if nucleus.water_is_nuisance else names
    contents = np.zeros((len(everything), *fractions.shape), np.float32)
    shared: np.ndarray | None = None
    for row, name in enumerate(everything):
        if shared is None or name not in brain_values.MACROMOLECULE_MM:
            field = smooth_field(fractions.shape[1:], rng.uniform(3.0, 5.0) * voxel_mm[0], spacing, weights, rng)
            variation = np.maximum(1.0 + rng.uniform(0.15, 0.25) * field, 0.2)
        if name in brain_values.MACROMOLECULE_MM:
            # Peaks of one pool of proteins vary together; only their ratios differ from brain to brain.
            shared = variation
        twin = _twin(name, everything[:row], nucleus)
        if twin is not None:
            contents[row] = contents[twin]
            continue
        values = _tissue_mm(name, nucleus) * np.exp(_TISSUE_SPREAD * rng.standard_normal(3))
        changed, added = _lesion_change(name, lesions, fractions.shape[1:])
        contents[row] = values[:, None, None, None] * fractions * (variation * changed)
        contents[row, 0] += added
    scalp = anatomy.scalp / max(float(anatomy.scalp.sum()), 1e-12)
    texture = smooth_field(fractions.shape[1:], 25.0, spacing, scalp, rng)
    fat = anatomy.scalp * np.maximum(1.0 + 0.3 * texture, 0.2)
    return Brain(everything, contents, _water(anatomy, lesions), fat.astype(np.float32))


def _twin(name: str, earlier: tuple[str, ...], nucleus: Nucleus) -> int | None:
    """Return the row of a name that stands for the same molecule, if there is one already."""
    rows = [row for row, other in enumerate(earlier) if any({name, other} <= set(pool) for pool in nucleus.pools)]
    return rows[0] if rows else None


def _tissue_mm(name: str, nucleus: Nucleus) -> np.ndarray:
    """Typical amount in grey matter, white matter and CSF."""
    if name == UNKNOWN:
        return np.zeros(3)
    if nucleus.water_is_nuisance and name in brain_values.MACROMOLECULE_MM:
        return np.array([*brain_values.MACROMOLECULE_MM[name], 0.0])
    return np.array([nucleus.concentration_mm(name, tissue) for tissue in brain_values.TISSUES])


def _lesion_change(
    name: str, lesions: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Factor on a molecule and amount added [mM] by all lesions."""
    changed, added = np.ones(shape), np.zeros(shape)
    for kind in LESION_KINDS:
        changed *= 1.0 + (kind.factors.get(name, 1.0) - 1.0) * lesions[kind.name]
        added += kind.added_mm.get(name, 0.0) * lesions[kind.name]
    return changed, added


def _water(anatomy: Anatomy, lesions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Water [mM] of grey matter, white matter, CSF and scalp, (tissue, x, y, z)."""
    amounts = [brain_values.WATER[tissue].concentration_mm for tissue in brain_values.TISSUES]
    fractions = np.stack([anatomy.grey, anatomy.white, anatomy.csf, anatomy.scalp])
    water = fractions * np.array([*amounts, SCALP_WATER_MM])[:, None, None, None]
    for kind in LESION_KINDS:
        water *= 1.0 + (kind.water - 1.0) * lesions[kind.name]
    return water.astype(np.float32)


def smooth_field(
    shape: tuple[int, ...], fwhm_mm: float, spacing_mm: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian random field: white noise smoothed to `fwhm_mm`, mean 0 and standard deviation 1 under `weights`."""
    sigma = fwhm_mm / np.sqrt(8.0 * np.log(2.0)) / spacing_mm
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3.0)
    field = field - np.sum(weights * field)
    return np.asarray(field / max(float(np.sqrt(np.sum(weights * field**2))), 1e-12))
