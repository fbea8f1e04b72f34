"""Water, lipids and metabolites of undersampled data at once: what folds onto a voxel is explained where it comes from.

All signal of a voxel is a on the learned rows, a the sum of independent parts (metabolites, water, lipids) with the
learned covariances C_k scaled to their energies in that group of voxels. From samples d = A a + n the linear estimate
of least mean-square error is a^ = argmin |d - A a|^2 / 2 sd^2 + a^H C^-1 a with C the sum of C_k, by conjugate
gradients, and that of one part is C_k C^-1 a^: no part is ever looked for in an aliased image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.data import KtData
from mrsi_gadgets.operators.encoding import encoding_operator
from mrsi_gadgets.reconstruction.calibrated_centre import missing_share
from mrsi_gadgets.reconstruction.nuisance.lipids import BAND_PPM, band_amplitude
from mrsi_gadgets.reconstruction.nuisance.scan import Scan
from mrsi_gadgets.reconstruction.nuisance.unsuppressed import is_unsuppressed
from mrsi_gadgets.reconstruction.solvers import conjugate_gradient

_RTOL, _MAX_ITERATIONS = 1e-3, 80
_LEAST = 1e-12
_ALIASED = 0.1
"""Part of k-space, within the ellipse, from which on it is missed."""
_LIPIDS_INSIDE = 1e-2
"""Energy of lipids in the mask, which holds a part of the scalp, over that outside of it."""


def is_aliased(scan: Scan) -> bool:
    """Tell whether suppressed water and lipids fold onto other voxels of a Cartesian image."""
    if scan.kt.grid is None or missing_share(scan.kt) < _ALIASED or scan.model.rank == scan.model.metabolite_rank:
        return False
    return not is_unsuppressed(scan, scan.hsvd(scan.flat))


def without_nuisance_jointly(scan: Scan) -> tuple[KtData, dict[str, Any]]:
    """Return incomplete Cartesian data without water and lipids, estimated beside metabolites from all samples."""
    kt, model, flat, inside = scan.kt, scan.model, scan.flat, scan.mask
    xp = namespace(flat)
    rough = scan.hsvd(flat)
    rest = flat - rough
    # an image of incomplete data holds so much of each voxel's energy where it belongs
    share = float(np.mean(kt.count > 0))
    rank = model.metabolite_rank
    metabolites = np.zeros_like(model.metabolite_covariance)
    metabolites[:rank, :rank] = model.metabolite_covariance[:rank, :rank]
    metabolites = metabolites * scan.strength(rest) / share
    power = to_numpy(xp.sum(xp.abs(rough) ** 2, axis=1)).astype(float).reshape(inside.shape) / share
    water = model.water_covariance * float(np.mean(power[inside]))
    ppm = scan.ppm
    band = band_amplitude(rest, ppm, BAND_PPM) ** 2
    in_band = int(np.sum((ppm > BAND_PPM[0]) & (ppm < BAND_PPM[1])))
    lipid = model.lipid_covariance * float(np.percentile(band, 95)) * in_band / share
    groups = [
        (inside, np.stack([metabolites, water, _LIPIDS_INSIDE * lipid])),
        (~inside, np.stack([metabolites, water, lipid])),
    ]
    parts = parts_of_all_data(kt, scan.coil_maps, scan.b0_hz, model.basis, groups, scan.noise_sd)
    nuisance = scan.samples_of(parts[1] + parts[2], model.basis)
    notes = {"water": "suppressed", "solved": "all parts at once"}
    return kt.with_samples(kt.samples - nuisance), notes


def parts_of_all_data(
    kt: KtData, coil_maps: Array, b0_hz: np.ndarray, rows: np.ndarray,
    groups: Sequence[tuple[np.ndarray, np.ndarray]], noise_sd: float,
) -> list[Array]:  # fmt: skip
    """Return the coefficients (x, y, z, row) of each part of the signal.

    Parameters
    ----------
    kt, coil_maps, b0_hz
        Data of any sampling, and what encodes them.
    rows
        (row, t): temporal basis.
    groups
        Voxels (x, y, z) bool, which together are all voxels, and the covariances (part, row, row) of the parts there.
    noise_sd
        SD of the real part of the noise of one readout's sample.
    """
    samples = kt.samples
    scale = float(np.sqrt(np.prod(kt.protocol.geometry.matrix)))
    weights = np.sqrt(kt.count.astype(float))
    operator = encoding_operator(kt, coil_maps, b0_hz, rows, weights=weights)
    masks = [like(where[..., None].astype(np.float32), samples) for where, _ in groups]
    roots, splits = [], []
    for _, parts in groups:
        values, vectors = np.linalg.eigh(parts.sum(axis=0))
        values = np.maximum(values, _LEAST * values.max())
        roots.append((vectors * np.sqrt(values)) @ vectors.conj().T)
        inverse = (vectors / values) @ vectors.conj().T
        splits.append(parts @ inverse)

    def times(matrices: Sequence[np.ndarray], image: Array) -> Array:
        """Multiply each voxel's coefficients by the matrix of its group."""
        pieces = [
            (image @ like(m.T.astype(np.complex64), samples, samples.dtype)) * mask
            for m, mask in zip(matrices, masks, strict=True)
        ]
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total

    root = like(weights.astype(np.float32).reshape(1, weights.shape[0], -1), samples)
    gram = operator.gram

    def normal(u: Array) -> Array:
        return scale**2 * times(roots, gram(times(roots, u))) + 2 * noise_sd**2 * u

    # the roots are Hermitian
    right = scale * times(roots, operator.H(samples * root))
    found = times(roots, conjugate_gradient(normal, right, rtol=_RTOL, max_iterations=_MAX_ITERATIONS).value)
    return [times([split[k] for split in splits], found) for k in range(len(groups[0][1]))]
