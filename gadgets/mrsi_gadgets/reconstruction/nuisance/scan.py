"""What all methods of removal share: the data with their calibration, their image, and the way back to samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.data import KtData, SpectralImage
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.fourier import field_phase, reconstruct_fourier
from mrsi_gadgets.reconstruction.nuisance.hsvd import principal_rows
from mrsi_gadgets.reconstruction.nuisance.lipids import BAND_PPM, band_amplitude, hamming, lipid_support
from mrsi_gadgets.reconstruction.nuisance.water import metabolite_strength, water_by_hsvd

NAA_SIGNAL = 27.0
"""NAA CH3 signal in the ensemble's unit (9 mM, three protons)."""
_FIELD_ERROR = 0.05
"""Largest error of the field in the subtracted samples, over the noise."""
_ROW_ERROR = 0.01
"""Energy of a row of water that is left out, over that of the noise, in the mean over voxels."""


@dataclass(eq=False)
class Scan:
    """Metabolite data with all that is known of them."""

    kt: KtData
    coil_maps: Array
    b0_hz: np.ndarray
    mask: np.ndarray
    noise_sd: float
    model: Subspace
    water: np.ndarray | None
    """(x, y, z) amplitude of unsuppressed water."""
    fids: Array
    """(x, y, z, t), B0 taken out."""
    sd: np.ndarray
    """(x, y, z)."""
    support: np.ndarray
    """(x, y, z) bool: where lipids come from."""
    reference: SpectralImage | None = None
    """FIDs of the water reference, where it was measured as these data were; B0 taken out."""

    @property
    def flat(self) -> Array:
        """The FIDs as (voxel, t)."""
        return namespace(self.fids).reshape(self.fids, (-1, self.n_times))

    @property
    def n_times(self) -> int:
        """Points of an FID."""
        return int(self.fids.shape[-1])

    @property
    def times_s(self) -> np.ndarray:
        """Times of the FIDs' points [s]."""
        return self.kt.protocol.times_s[: self.n_times]

    @property
    def ppm(self) -> np.ndarray:
        """Axis of the spectrum."""
        return self.kt.protocol.ppm_axis(self.n_times)

    @property
    def brain(self) -> np.ndarray:
        """Voxels of the mask that are not scalp."""
        brain = self.mask & ~self.support
        return brain if brain.any() else self.mask

    @property
    def typical_sd(self) -> float:
        """Noise of a typical voxel of the mask."""
        return float(np.median(self.sd[self.mask]))

    @property
    def hz_per_ppm(self) -> float:
        """Hertz per ppm."""
        return self.kt.protocol.transmit_frequency_hz * 1e-6

    def image(self, samples: Array) -> Array:
        """Return the Fourier image of other samples."""
        known = (self.coil_maps, self.b0_hz, self.mask, self.noise_sd)
        return reconstruct_fourier(self.kt.with_samples(samples), *known).coefficients

    def with_samples(self, samples: Array) -> Scan:
        """Return the scan with other samples."""
        return replace(self, kt=self.kt.with_samples(samples), fids=self.image(samples))

    def with_field(self, fids: Array) -> Array:
        """Return FIDs with B0 in them."""
        return fids * field_phase(fids, self.b0_hz, self.kt.protocol.times_s[: int(fids.shape[-1])])

    def of_brain(self, flat: Array) -> Array:
        """Return the FIDs of brain among all (voxel, t)."""
        return namespace(flat).take(flat, like(np.flatnonzero(self.brain.ravel()), flat), axis=0)

    def hsvd(self, flat: Array) -> Array:
        """Return the water of all FIDs (voxel, t), voxel by voxel."""
        return water_by_hsvd(flat, self.kt.protocol.dwell_s, self.hz_per_ppm, self.sd.ravel())

    def strength(self, flat: Array) -> float:
        """Return the strength of metabolites in FIDs (voxel, t) without water, over that of the ensemble."""
        return metabolite_strength(self.of_brain(flat), self.model, self.typical_sd)

    def samples_of(self, coefficients: Array, rows: np.ndarray, *, field_in_rows: bool = False) -> Array:
        """Return the samples of an image: coefficients (x, y, z, row) on rows (row, t)."""
        b0 = np.zeros_like(self.b0_hz) if field_in_rows else self.b0_hz
        # the operator's expansion of the field errs relative to the signal, which may be thousands of times the noise
        xp = namespace(coefficients)
        size = float(xp.max(xp.sum(xp.real(coefficients) ** 2 + xp.imag(coefficients) ** 2, axis=-1))) ** 0.5
        noise = self.typical_sd * float(np.sqrt(2 * rows.shape[1]))
        tolerance = float(np.clip(_FIELD_ERROR * noise / max(size, noise), 1e-7, 1e-3))
        operator = encoding_operator(self.kt, self.coil_maps, b0, rows, tolerance=tolerance)
        return operator(coefficients) * float(np.sqrt(self.mask.size))

    def samples_of_fids(self, flat: Array) -> Array:
        """Return the samples of FIDs (voxel, t), written on as few rows as the noise allows."""
        power, rows = principal_rows(flat, self.n_times)
        level = _ROW_ERROR * 2 * self.typical_sd**2 * self.mask.size
        rows = rows[: max(1, int(np.sum(power > level)))].astype(np.complex64)
        coefficients = flat @ like(rows.conj().T, flat, flat.dtype)
        return self.samples_of(namespace(flat).reshape(coefficients, (*self.mask.shape, len(rows))), rows)


def scan_of(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, mask: np.ndarray, noise_sd: float, model: Subspace,
    water: np.ndarray | None, reference: SpectralImage | None,
) -> Scan:  # fmt: skip
    """Image the data and find where lipids come from."""
    image = reconstruct_fourier(kt, coil_maps, b0_hz, mask, noise_sd)
    windowed = reconstruct_fourier(hamming(kt), coil_maps, b0_hz, mask, noise_sd).coefficients
    inside = np.asarray(mask, dtype=bool)
    if reference is not None and tuple(reference.coefficients.shape) != tuple(image.coefficients.shape):
        reference = None
    scan = Scan(
        kt, coil_maps, np.asarray(b0_hz, dtype=float), inside, noise_sd, model, water, image.coefficients,
        image.noise_sd, np.zeros_like(inside), reference,
    )  # fmt: skip
    # tails of strong water would fill the lipid band
    flat = namespace(windowed).reshape(windowed, (-1, scan.n_times))
    flat = flat - scan.hsvd(flat)
    return replace(scan, support=lipid_support(band_amplitude(flat, scan.ppm, BAND_PPM).reshape(inside.shape), inside))
