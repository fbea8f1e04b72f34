"""What is left of water and lipids in the brain, and what a method does to metabolites, both over the noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.reconstruction.nuisance.lipids import band_amplitude, band_kernel
from mrsi_gadgets.reconstruction.nuisance.scan import Scan
from mrsi_gadgets.reconstruction.nuisance.water import metabolite_covariance

WATER_PPM = (4.5, 4.8)
LIPID_PPM = (0.9, 1.6)
METABOLITE_PPM = ((1.9, 2.15), (2.9, 3.35))
"""Where NAA, creatine and choline are."""
_PROBE_SEED = 0


@dataclass(frozen=True)
class Remains:
    """What is left in the brain after a removal, as root mean square of the unitary spectrum over the noise's SD.

    1 is noise alone. Medians over the voxels of the brain.
    """

    water: float
    """In the band of water."""
    lipids: float
    """In the band of lipids; macromolecules and lactate are in it too."""
    water_expected: float
    """What noise and the metabolites and macromolecules of the model have in the band of water."""
    lipids_expected: float
    """The same in the band of lipids."""

    @property
    def excess(self) -> float:
        """Energy that is left too much, or that was taken from metabolites, over that of the noise."""
        # noise that went with the water is no loss: nothing is measured there
        more = max(self.water**2 - self.water_expected**2, 0.0)
        less = max(self.water_expected**2 - 1 - self.water**2, 0.0)
        return more + less + abs(self.lipids**2 - self.lipids_expected**2)


def remains(scan: Scan, fids: Array) -> Remains:
    """Measure FIDs (x, y, z, t) of a scan."""
    brain = scan.brain
    if not brain.any():
        return Remains(0.0, 0.0, 1.0, 1.0)
    flat = namespace(fids).reshape(fids, (-1, scan.n_times))
    wanted = scan.strength(flat) * metabolite_covariance(scan.model)
    sd = np.sqrt(2) * scan.sd[brain]

    def level(band: tuple[float, float]) -> float:
        return float(np.median(band_amplitude(fids, scan.ppm, band)[brain] / sd))

    def expected(band: tuple[float, float]) -> float:
        kernel = band_kernel(scan.ppm, band)
        energy = float(np.einsum("ti,ts,si->", kernel, wanted, kernel.conj(), optimize=True).real)
        return float(np.sqrt(1 + max(energy, 0.0) / (2 * scan.typical_sd**2)))

    return Remains(level(WATER_PPM), level(LIPID_PPM), expected(WATER_PPM), expected(LIPID_PPM))


def probe(scan: Scan) -> Array:
    """Return the samples of metabolites drawn from the model, of the strength of the scan's own, in the brain."""
    flat = scan.flat
    strength = scan.strength(flat - scan.hsvd(flat))
    rank = scan.model.metabolite_rank
    values, vectors = np.linalg.eigh(scan.model.metabolite_covariance[:rank, :rank])
    rng = np.random.default_rng(_PROBE_SEED)
    normal = rng.standard_normal((*scan.mask.shape, rank, 2)) @ np.array([1, 1j]) * np.sqrt(0.5)
    drawn = normal @ (vectors * np.sqrt(np.maximum(values, 0) * strength)).T * scan.brain[..., None]
    return scan.samples_of(like(drawn.astype(np.complex64), scan.fids), scan.model.basis[:rank])


def metabolite_level(scan: Scan, fids: Array) -> float:
    """Return the root mean square of FIDs over the brain in the bands of metabolites, over that of the noise."""
    inside = scan.brain
    levels = [band_amplitude(fids, scan.ppm, band)[inside] / (np.sqrt(2) * scan.sd[inside]) for band in METABOLITE_PPM]
    return float(np.sqrt(np.mean(np.square(levels))))
