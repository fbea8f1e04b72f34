"""Four lesions with known truth: where they lie, and what they change in metabolites and in the water image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.phantom.anatomy import Anatomy

UNKNOWN = "unknown"
"""Name of the resonance that is in no basis set."""
UNKNOWN_PPM = 2.87
"""Its chemical shift (a singlet, as of methyl groups on nitrogen); of the basis, aspartate has weak lines nearby."""


@dataclass(frozen=True)
class LesionKind:
    """What a lesion changes where its fraction is 1."""

    name: str
    factors: Mapping[str, float] = field(default_factory=dict)
    """Molecule -> factor on its concentration."""
    added_mm: Mapping[str, float] = field(default_factory=dict)
    """Molecule -> concentration that is added [mM]."""
    water: float = 1.0
    """Factor on the water signal."""
    sharp: bool = False
    """Whether its border follows the fine grid instead of fading over a few millimetres."""


LESION_KINDS: tuple[LesionKind, ...] = (
    LesionKind("tumour", {"NAA": 0.35, "NAAG": 0.35, "GPC": 2.0, "PCh": 2.0, "Cr": 0.8, "PCr": 0.8},
               {"Lac": 4.0}, water=1.15),
    LesionKind("hidden", {"NAA": 0.5, "NAAG": 0.5, "Ins": 1.6, "Glu": 0.7}),
    LesionKind("unseen", {"NAA": 0.7, "NAAG": 0.7}, {UNKNOWN: 3.0}, water=1.1),
    LesionKind("water_edge", water=0.7, sharp=True),
)  # fmt: skip
"""Known molecules changed; invisible in the water image; a resonance no model has seen; an edge of the water only."""


def place_lesions(
    anatomy: Anatomy, radius_mm: float, rng: np.random.Generator, *, voxel_centres_mm: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the fraction (x, y, z) of each kind of lesion on the fine grid, at places that do not overlap.

    Each lesion is an ellipsoid of mean radius `radius_mm` around the centre of a voxel (x, y, z, 3 positions) that lies
    deep enough in the brain, so that some voxels are filled by it.

    Raises
    ------
    DataError
        The slab holds too little brain for four lesions.
    """
    brain = anatomy.voxel_mean(anatomy.grey + anatomy.white)
    solid = anatomy.voxel_mean(anatomy.brain) > 0.98
    places = voxel_centres_mm[solid & (brain > 0.85)]
    outside = voxel_centres_mm[~solid]
    rng.shuffle(places)
    chosen: list[np.ndarray] = []
    for clearance in (1.0, 0.7, 0.4, 0.0):
        for place in places:
            apart = all(np.linalg.norm(place - other) > 2.4 * radius_mm for other in chosen)
            if apart and _distance(place, outside) > clearance * radius_mm and len(chosen) < len(LESION_KINDS):
                chosen.append(place)
    if len(chosen) < len(LESION_KINDS):
        raise DataError(
            f"the slab has room for {len(chosen)} of {len(LESION_KINDS)} lesions of {radius_mm:.0f} mm radius; choose "
            "a preset whose slab cuts through more brain"
        )
    inside = anatomy.brain
    return {
        kind.name: (_ellipsoid(anatomy.positions_mm, place, radius_mm, kind.sharp, rng) * inside).astype(np.float32)
        for kind, place in zip(LESION_KINDS, chosen, strict=True)
    }


def _distance(place: np.ndarray, others: np.ndarray) -> float:
    return float(np.min(np.linalg.norm(others - place, axis=-1))) if len(others) else np.inf


def _ellipsoid(
    positions_mm: np.ndarray, centre: np.ndarray, radius_mm: float, sharp: bool, rng: np.random.Generator
) -> np.ndarray:
    """Fraction 1 inside, 0 outside an ellipsoid in a random plane orientation; its border fades over 3 mm or not."""
    angle = rng.uniform(0.0, np.pi)
    stretch = np.array([rng.uniform(1.0, 1.2), rng.uniform(0.95, 1.05), 1.2])
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    reach = np.linalg.norm((positions_mm - centre) @ turn.T / stretch, axis=-1)
    if sharp:
        return (reach <= radius_mm).astype(float)
    return np.clip((radius_mm - reach) / 3.0 + 0.5, 0.0, 1.0)
