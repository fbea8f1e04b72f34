"""Reconstruction on a learned manifold: RAIISE (eq. 9), its projection one pass through a trained projector.

    argmin over rho near the manifold of || d - Omega{F B rho} ||^2 + lambda R(rho)

by projected gradient steps: a step towards the data with the spatial prior, then Proj(.) = D(P(.)) of every voxel at
once, told the noise that is left in it. The learned basis (rows that span the manifold, water, lipids, and what the
scan itself adds) carries the image; the projection acts on its metabolites, with the expected water and lipids taken
out before and put back after.

Complete data: A^H A = 1, so the gradient step of length 1 from anywhere ends at the least-squares image, and one
projection of its smoothed version is the fixed point. Where k-space is sampled unevenly (rings, spirals), what is
projected is the image on which the samples, each with its own noise, and the prior agree. Incomplete data: the step is
a solve with the operator, the prior and a pull to the last projection (ADMM, the pull set by the operator), until
projection and image agree.

A network is trusted as far as the data bear it out. Per principal component of the scan the result is

    x_l = s_l + w_l (Proj(s)_l - s_l),   0 <= w_l <= 1,

s the image of data and spatial prior alone, w_l the weight of the smallest risk by Stein's unbiased estimate over all
voxels, divergence by random probes through prior and network together (Stein 1981, doi:10.1214/aos/1176345632; Ramani,
Blu and Unser 2008, doi:10.1109/TIP.2008.2001404; combinations of estimators: Blu and Luisier 2007,
doi:10.1109/TIP.2007.906002). The same estimate is the error that the result states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from mrsi_gadgets.arrays import Array, device, like, namespace, norm, to_numpy
from mrsi_gadgets.models.gate import Gate, judge, pooled
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.separation import NuisanceFilter, fit_nuisance_filter
from mrsi_gadgets.models.strange_lines import strange_lines
from mrsi_gadgets.models.subspace import Subspace
from mrsi_gadgets.reconstruction.prior_step import NOISE_POWER, Components, voxels_in
from mrsi_gadgets.reconstruction.subspace import Incomplete, LeastSquares, Refined

_PROBES = 4
_STEP = 0.1
"""Length of the finite difference in noise SDs."""
_LEAST_GAIN = 0.2
"""Part of the prior's squared error that is stated at least."""
_PULL = 1.0
"""Strength of the pull to the projection, in units of the data's own weight. Of 0.3, 1, 3 and 10 it gives the least
errors with one in two points of k-space."""
_MOST_SOLVES, _AGREED = 6, 0.003
"""Solves, and the relative change from which on image and projection agree."""
_LEAST_GROUP, _MOST_GROUPS = 4, 12
"""Neighbouring voxels outside of the model that are looked at together, and how many such groups."""
_LEAST_PART = 0.02
"""Of a line's length, outside of all components, that gets a row."""
_POOL = 8
"""Components without signal share the weight of their group of so many."""


@dataclass(frozen=True, eq=False)
class ManifoldProjection:
    """The `Refinement` of `reconstruct_subspace` that makes it RAIISE."""

    manifold: Manifold
    subspace: Subspace
    """Trained together; the model of the reconstruction."""
    gate: Gate | None = None
    """Tells voxels that the manifold does not know; None: all are taken for known."""
    method: str = "raiise"

    def complete(self, image: LeastSquares, rng: np.random.Generator, provenance: dict[str, Any]) -> Refined:
        """Return projected components; voxels outside of the model keep those of the prior; see `project_complete`."""
        components = image.components
        best = voxels_in(image.best, components.mask_in_box)
        left = NOISE_POWER * image.fitted.noise_left[components.mask_in_box] ** 2
        power = left @ np.abs(components.rotation.T) ** 2
        step = _step_of(self.manifold, self.subspace, components, power, best)
        value, errors = project_complete(step, image, rng, provenance)
        refined = Refined(value, errors, np.zeros((0, image.basis.shape[1]), dtype=np.complex64), value[..., :0])
        if self.gate is None:
            return refined
        nuisance = step.expected_nuisance(best)
        known = image.fids - nuisance @ like(image.basis[: self.subspace.rank], nuisance, nuisance.dtype)
        return self._gated(self.gate, image, known, refined, provenance)

    def _gated(
        self, gate: Gate, image: LeastSquares, fids: Array, refined: Refined, provenance: dict[str, Any]
    ) -> Refined:
        """Return the result with the prior's own image where the gate does not know the FIDs.

        `fids` (voxel, t) are those of the least-squares image without their expected water and lipids. Lines that the
        prior's image leaves of strange ones are put back as they were measured (`models.strange_lines`).
        """
        xp = namespace(image.z)
        mask = image.components.mask_in_box
        score, outside = self._judged(gate, fids, mask)
        provenance["voxels_outside_model"] = int(outside.sum())
        if not outside.any():
            return replace(refined, outside=outside, score=score)
        value = xp.where(like(outside[..., None], image.z), image.best, refined.value)
        errors = np.where(outside[..., None], image.fitted.errors, refined.errors)
        basis = image.components.rotation.conj().T @ image.basis
        value, more, rows = _with_strange_lines(gate, image.fids, basis, value, mask, outside)
        provenance["rows_for_them"] = len(rows)
        return Refined(value, errors, rows, more, outside, score)

    def incomplete(self, image: Incomplete, provenance: dict[str, Any]) -> Refined:
        """Return the image on which data, prior and projection agree; see `project_incomplete`."""
        mask = image.components.mask
        step = step_of_incomplete(self.manifold, self.subspace, image)
        score: np.ndarray | None = None
        outside: np.ndarray | None = None
        if self.gate is not None:
            # in units of the noise of the FIDs
            known = image.measured(image.image)
            nuisance = step.expected_nuisance(voxels_in(step.components.of(image.image), mask))
            nuisance = nuisance * (float(step.components.noise[0]) / image.unit)
            known = known - nuisance @ like(image.basis[: self.subspace.rank], nuisance, nuisance.dtype)
            score, outside = self._judged(self.gate, known, mask)
            provenance["voxels_outside_model"] = int(outside.sum())
        value = project_incomplete(step, image, outside, provenance)
        none = Refined(value, image.errors, image.basis[:0], value[..., :0], outside, score)
        if self.gate is None or outside is None or not outside.any():
            return none
        fids = image.measured(value)
        value, more, rows = _with_strange_lines(self.gate, fids, image.basis, value / image.unit, mask, outside)
        provenance["rows_for_them"] = len(rows)
        return replace(none, value=value * image.unit, rows=rows, more=more)

    def _judged(self, gate: Gate, fids: Array, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores of FIDs (voxel, t) of the mask, neighbours counted, and which voxels are outside."""
        score = np.zeros(mask.shape, dtype=np.float32)
        score[mask] = to_numpy(judge(gate, self.manifold, fids, 1.0)[0])
        score = to_numpy(pooled(like(score, fids, "float32"), like(mask, fids)))
        return score, np.asarray(gate.outside(score)) & mask


@dataclass(frozen=True, eq=False)
class ManifoldStep:
    """The projection of the metabolites in components of a scan."""

    manifold: Manifold
    subspace: Subspace
    """Rows of the coefficients; its metabolite rows span the manifold's."""
    components: Components
    nuisance: NuisanceFilter
    turn: np.ndarray
    """(metabolite row, manifold row) unitary."""
    noise_power: np.ndarray
    """(voxel, metabolite row) E|noise|^2 that is left in each coefficient, nuisance not known included."""

    def expected_nuisance(self, z: Array) -> Array:
        """Return the expected water and lipids (voxel, row of the subspace) of voxels (voxel, component)."""
        a = z @ like(self.components.rotation.conj().T, z, dtype=z.dtype)
        return self.nuisance.expected(a[:, : self.subspace.rank])

    def __call__(self, z: Array) -> Array:
        """Return voxels (voxel, component) with their metabolites projected."""
        rank, wanted = self.subspace.rank, self.subspace.metabolite_rank
        a = z @ like(self.components.rotation.conj().T, z, dtype=z.dtype)
        expected = self.nuisance.expected(a[:, :rank])
        power = like((self.noise_power @ np.abs(self.turn) ** 2).astype(np.float32), a)
        metabolites = (a[:, :wanted] - expected[:, :wanted]) @ like(self.turn, z, dtype=z.dtype)
        clean = self.manifold.project_coefficients(metabolites, power) @ like(self.turn.conj().T, z, dtype=z.dtype)
        # rows that the scan added stay as they are
        known = _padded(clean, expected) + expected
        change = _padded(known - a[:, :rank], a)
        return z + change @ like(self.components.rotation, z, dtype=z.dtype)


def _with_strange_lines(
    gate: Gate, fids: Array, basis: np.ndarray, value: Array, mask: np.ndarray, outside: np.ndarray
) -> tuple[Array, Array, np.ndarray]:
    """Return coefficients on a basis and on more rows, with lines that neighbours outside have in common put back.

    What a prior smooths away of a resonance that few voxels have is in what their image leaves of the measured FIDs
    (voxel of the mask, t). Only the amplitudes of the lines that stand out there are taken from it, voxel by voxel, so
    that little of the noise comes back with them.
    """
    xp = namespace(value)
    labels, _ = ndimage.label(outside)
    sizes = np.bincount(labels.ravel())
    found: list[tuple[np.ndarray, np.ndarray, Array]] = []
    for label in np.argsort(sizes[1:])[::-1][:_MOST_GROUPS] + 1:
        if sizes[label] < _LEAST_GROUP:
            break
        group = labels == label
        strange = xp.take(fids, like(np.flatnonzero(group[mask]), fids), axis=0)
        residual = strange - voxels_in(value, group) @ like(basis, value, value.dtype)
        lines = strange_lines(gate, residual)
        if len(lines):
            found.append((group, lines, residual @ like(lines.conj().T, residual, residual.dtype)))
    lines = np.concatenate([lines for _, lines, _ in found]) if found else np.zeros((0, basis.shape[1]))
    # the lines' parts that no component holds get rows of their own
    beyond = lines - (lines @ basis.conj().T) @ basis
    _, sizes_of_rows, rows = np.linalg.svd(beyond, full_matrices=False)
    rows = rows[sizes_of_rows > _LEAST_PART].astype(np.complex64)
    more = xp.zeros((*mask.shape, len(rows)), dtype=value.dtype, device=device(value))
    for group, own, amplitudes in found:
        known = amplitudes @ like(own @ basis.conj().T, amplitudes, amplitudes.dtype)
        value = value + _placed(known, value, group)
        if len(rows):
            more = more + _placed(amplitudes @ like(own @ rows.conj().T, amplitudes, amplitudes.dtype), more, group)
    return value, more, rows


def _step_of(
    manifold: Manifold, subspace: Subspace, components: Components, power: np.ndarray, image: Array
) -> ManifoldStep:
    """Return the projection for the image of a spatial prior.

    Parameters
    ----------
    manifold, subspace
        Trained together.
    components
        Of the scan.
    power
        (voxel, coefficient) E|noise|^2 that is left, in units where `components.of` makes that of the data 2.
    image
        (voxel, component): the image of the prior, from which the strengths of water and lipids are taken.
    """
    rank, wanted = subspace.rank, subspace.metabolite_rank
    a = image @ like(components.rotation.conj().T, image, dtype=image.dtype)
    nuisance = fit_nuisance_filter(subspace, a[:, :rank], power[:, :rank].mean(axis=0))
    turn = subspace.basis[:wanted] @ manifold.basis.conj().T
    return ManifoldStep(
        manifold, subspace, components, nuisance, turn, power[:, :wanted] + nuisance.variance[:, :wanted]
    )


def project_complete(
    step: ManifoldStep, image: LeastSquares, rng: np.random.Generator, provenance: dict[str, Any]
) -> tuple[Array, np.ndarray]:
    """Return the best components in the box, projected, and the SD of their errors in units of the noise.

    Parameters
    ----------
    step
        The projection.
    image
        The least-squares image, its prior, and what they want.
    rng
        Draws the probes.
    provenance
        Takes what was done.
    """
    z, fitted = image.z, image.fitted
    xp = namespace(z)
    mask = step.components.mask_in_box
    n_components, leading = int(z.shape[-1]), step.components.leading
    data, best = voxels_in(z, mask), voxels_in(image.best, mask)
    change = step(best) - best
    trace_smooth, trace_change = np.zeros(n_components), np.zeros(n_components)
    for _ in range(_PROBES):
        signs = rng.integers(0, 2, (2, *z.shape)).astype(np.float32) * 2 - 1
        probe = like((signs[0] + 1j * signs[1]).astype(np.complex64) * mask[..., None], z, dtype=z.dtype)
        direction = voxels_in(probe, mask)
        # how the image answers to a change of the data is taken from the smoother, also where samples have noise of
        # their own: weights from probes of real noise, each with a solve, lowered the error by less than 1 %
        moved = voxels_in(fitted.step(z + _STEP * probe) - image.smoothed, mask)
        slope_change = (step(best + moved) - best - moved - change) / _STEP
        trace_smooth += to_numpy(xp.sum(xp.real(xp.conj(direction) * moved), axis=0)) / (_STEP * _PROBES)
        trace_change += to_numpy(xp.sum(xp.real(xp.conj(direction) * slope_change), axis=0)) / _PROBES
    groups = _groups(n_components, leading)
    weights, risks = _trusted(data, best, change, trace_smooth, trace_change, groups)
    value = best + change * like(weights, change, dtype=change.dtype)
    provenance |= {
        "trust": [round(float(w), 3) for w in weights[:leading]],
        "voxels_with_nuisance": round(step.nuisance.share, 4),
        "iterations": 1,
        "stopped": "complete data: the projection of the smoothed image is the fixed point",
    }
    errors = fitted.errors.copy()
    # each risk is uncertain, their sums are not: what the projection gains of all components that hold signal, and of
    # all that hold none
    for part in (slice(0, leading), slice(leading, n_components)):
        before, after = risks[0, part].sum(), risks[1, part].sum()
        if before > 0:
            errors[mask, part] *= float(np.sqrt(np.clip(after / before, _LEAST_GAIN, 1.0)))
    return _placed(value, z, mask), errors


def step_of_incomplete(manifold: Manifold, subspace: Subspace, image: Incomplete) -> ManifoldStep:
    """Return the projection for the image of incomplete data.

    Its coefficients have noise of their own each; the projection takes them as they are, in units of one noise.
    """
    components = image.components
    mask, mean = components.mask, float(np.mean(components.noise))
    even = replace(components, noise=np.full(len(components.noise), mean))
    power = NOISE_POWER * (image.errors[mask] * (components.noise / mean)) ** 2
    return _step_of(manifold, subspace, even, power, voxels_in(even.of(image.image), mask))


def project_incomplete(
    step: ManifoldStep, image: Incomplete, outside: np.ndarray | None, provenance: dict[str, Any]
) -> Array:
    """Alternate between projection and a solve with data, prior and a pull to the projection, until they agree.

    Parameters
    ----------
    step
        The projection.
    image
        Image of data and prior, and the solve.
    outside
        (x, y, z) bool: voxels that are not projected; None: all are.
    provenance
        Takes what was done.
    """
    components, value = step.components, image.image
    mask = components.mask
    pull = np.full(len(components.noise), _PULL)
    changes: list[float] = []
    keep = like(mask[..., None].astype(np.float32), value)
    moved = mask if outside is None else mask & ~outside
    pulled = like(moved[..., None].astype(np.float32), value)
    back = like(components.rotation.conj().T * components.noise, value, dtype=value.dtype)
    while len(changes) < _MOST_SOLVES and (not changes or changes[-1] > _AGREED):
        projected = _placed(step(voxels_in(components.of(value), mask)) @ back, value, mask)
        # to be pulled to itself is not to be pulled in the end
        found = image.solve(projected * pulled + value * (1 - pulled), pull, value)
        changes.append(norm((found - value) * keep) / max(norm(value * keep), 1e-30))
        value = found
    provenance |= {
        "outer_changes": [round(c, 5) for c in changes], "outer_settled": changes[-1] <= _AGREED,
        "voxels_with_nuisance": step.nuisance.share,
    }  # fmt: skip
    return value


def _trusted(
    data: Array, smoothed: Array, change: Array, trace_smooth: np.ndarray, trace_change: np.ndarray,
    groups: list[slice],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the weight of the change that minimises SURE and the risks without and with it (2, component).

    Risks are in units of the noise's power.

    SURE(w) = ||s + w c - d||^2 - n P + P (tr ds + w tr dc), P = `NOISE_POWER` for both real parts together (each trace
    is over real and imaginary parts, whose noise power is P / 2).
    """
    xp = namespace(data)
    n = int(data.shape[0])

    def total(x: Array, y: Array) -> np.ndarray:
        return np.asarray(to_numpy(xp.sum(xp.real(xp.conj(x) * y), axis=0)), dtype=float)

    off = smoothed - data
    quadratic, linear, constant = total(change, change), total(change, off), total(off, off)
    weights, risks = np.zeros(len(quadratic)), np.zeros((2, len(quadratic)))
    for group in groups:
        q, b = quadratic[group].sum(), linear[group].sum() + NOISE_POWER / 2 * trace_change[group].sum()
        w = float(np.clip(-b / q, 0.0, 1.0)) if q > 0 else 0.0
        c = constant[group].sum() + NOISE_POWER * (trace_smooth[group].sum() - n * (group.stop - group.start))
        weights[group] = w
        count = n * (group.stop - group.start) * NOISE_POWER
        risks[:, group] = np.array([[c], [c + 2 * w * b + w**2 * q]]) / count
    return weights, risks


def _groups(count: int, leading: int) -> list[slice]:
    """Return slices of components that share a weight: each that stands out of the noise has its own."""
    return [slice(i, i + 1) for i in range(leading)] + [
        slice(start, min(start + _POOL, count)) for start in range(leading, count, _POOL)
    ]


def _placed(values: Array, z: Array, mask: np.ndarray) -> Array:
    """Return voxels of the mask (voxel, component) at their places in an image like `z`, zero elsewhere."""
    xp = namespace(z)
    place = np.cumsum(mask.ravel()) - 1
    flat = xp.take(values, like(np.where(mask.ravel(), place, 0), z), axis=0)
    return xp.reshape(flat, z.shape) * like(mask[..., None].astype(np.float32), z, z.dtype)


def _padded(values: Array, a: Array) -> Array:
    """Return coefficients (voxel, few) followed by zeros, shaped like `a`."""
    missing = int(a.shape[-1]) - int(values.shape[-1])
    if not missing:
        return values
    xp = namespace(a)
    return xp.concat([values, xp.zeros_like(a[:, :missing])], axis=-1)
