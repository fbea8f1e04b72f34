"""Spatial priors of coefficient images (eq. 7 of science.md): what each makes of an image, its proximal step.

A prior R acts on each component by itself, and its step is

    prox(u, w) = argmin_v  1/2 ||v - u||^2 + sum_l w_l R(v_l),

so that iterations around any encoding operator (proximal gradient, ADMM) can use any of them, and complete data in the
direct mode need one step alone. Real and imaginary parts are one vector: the phase of the coefficients turns nothing.
Voxels outside of the mask come back as they are and reach no voxel inside.

* `Edges`: R = 1/2 ||L u||^2, L the Laplacian of `edge_prior`.
* `TotalVariation`: R = sum over voxels of sqrt(sum over axes of w |difference|^2), w the same edge weights (Rudin,
  Osher and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F). With all weights one it is the isotropic total variation.
* `wavelet_prior.WaveletL1`: the sum of magnitudes of Haar details.

How strong: `prior_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.polynomial import chebyshev

from mrsi_gadgets.arrays import Array, like, namespace, to_numpy
from mrsi_gadgets.errors import NumericalError
from mrsi_gadgets.reconstruction.edge_prior import EdgePrior
from mrsi_gadgets.reconstruction.regularisation import WEIGHTS, as_complex, as_real, response

_CHECK_EVERY = 10
"""Iterations between two looks at the duality gap: one costs as much as half an iteration."""
_EDGES_ERROR = 1e-3
"""Largest error of the polynomial that stands for the smoother of `Edges`."""


class SpatialPrior(Protocol):
    """What a reconstruction needs of a prior."""

    def prox(self, u: Array, weights: np.ndarray) -> Array:
        """Return argmin_v 1/2 ||v - u||^2 + sum_l w_l R(v_l).

        Parameters
        ----------
        u
            (x, y, z, component) complex.
        weights
            (component,) not negative; 0 leaves a component as it is.
        """
        ...

    def value(self, u: Array) -> np.ndarray:
        """Return R of each component, (component,) float64."""
        ...

    def candidates(self, noise_sd: float) -> np.ndarray:
        """Return rising weights worth trying where the noise of a real part has this SD; the first is 0."""
        ...


@dataclass(frozen=True, eq=False)
class Edges:
    """R = 1/2 ||L u||^2: the squared curvature along unbroken tissue. Its step is linear, (I + w L^2)^-1 u."""

    edges: EdgePrior

    def prox(self, u: Array, weights: np.ndarray) -> Array:
        """Return (I + w_l L^2)^-1 u_l, by one Chebyshev polynomial in L for each component."""
        bound = max(self.edges.bound, 1e-12)
        columns = as_real(u)
        coefficients = _smoother(np.asarray(weights, dtype=float), bound)
        gains = like(np.concatenate([coefficients, coefficients], axis=1).astype(np.float32), columns, columns.dtype)
        # T_k of 2 L / bound - 1
        older, old = columns, (2 / bound) * self.edges.laplacian(columns) - columns
        total = older * gains[0, :] + old * gains[1, :]
        for k in range(2, len(coefficients)):
            older, old = old, (4 / bound) * self.edges.laplacian(old) - 2 * old - older
            total += old * gains[k, :]
        return as_complex(total)

    def value(self, u: Array) -> np.ndarray:
        """Return 1/2 ||L u_l||^2."""
        return 0.5 * np.sum(np.abs(to_numpy(self.edges.laplacian(u))) ** 2, axis=(0, 1, 2), dtype=float)

    def candidates(self, noise_sd: float) -> np.ndarray:
        """Return the weights of `regularisation`: the step is linear, so that they do not depend on the noise."""
        return WEIGHTS


def _smoother(weights: np.ndarray, bound: float) -> np.ndarray:
    """Return Chebyshev coefficients (degree + 1, component) of 1 / (1 + w x^2) on [0, bound].

    The poles lie at +-i / sqrt(w): the Bernstein ellipse through them says how many terms the accuracy takes.
    """
    pole = -1 + 2j / max(np.sqrt(float(np.max(weights))) * bound, 1e-9)
    root = np.sqrt(pole**2 - 1)
    ratio = max(abs(pole + root), abs(pole - root))
    degree = int(np.clip(np.ceil(np.log(10 / _EDGES_ERROR) / np.log(ratio)), 4, 400))
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    values = response(0.5 * bound * (nodes[:, None] + 1), weights[None, :])
    coefficients = 2 / (degree + 1) * (chebyshev.chebvander(nodes, degree).T @ values)
    coefficients[0] /= 2
    return np.asarray(coefficients)


@dataclass(frozen=True, eq=False)
class TotalVariation:
    """Isotropic total variation, joint over real and imaginary part, weighed by edges where they are known.

    The step is solved in its dual: v = u - D^T p with |p| <= w in every voxel, D the weighed forward differences
    (Chambolle 2004, doi:10.1023/B:JMIV.0000011325.36760.1e), by accelerated projected gradients (Beck and Teboulle
    2009, doi:10.1109/TIP.2009.2028250) with restarts (O'Donoghue and Candes 2015, doi:10.1007/s10208-013-9150-3), all
    components at once.
    """

    edges: EdgePrior
    """Weights of squared differences: `edge_prior(mask, reference)` alone for plain total variation inside the mask."""
    rtol: float = 1e-3
    """The duality gap of every component, over the value of what is minimised, at which the step is done."""
    max_iterations: int = 2000

    @cached_property
    def roots(self) -> Array:
        """(axis, x, y, z, 1, 1): the roots of the edge weights, zero where a voxel has no next neighbour."""
        reference = self.edges.weights[0]
        xp = namespace(reference)
        found = []
        for axis in self.axes:
            w = self.edges.weights[axis]
            last = like(np.zeros([1 if a == axis else n for a, n in enumerate(w.shape)], dtype=np.float32), w)
            found.append(xp.sqrt(xp.concat([w, last], axis=axis)))
        return xp.stack(found, axis=0)[..., None]

    @cached_property
    def linked(self) -> Array:
        """(x, y, z, 1, 1): 1 where a voxel has a neighbour of any weight, else 0."""
        xp = namespace(self.roots)
        degree = xp.sum(self.roots, axis=0)
        for i, axis in enumerate(self.axes):
            degree = degree + xp.roll(self.roots[i, ...], 1, axis=axis)
        return xp.astype(degree > 0, self.roots.dtype)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which there are neighbours."""
        return tuple(axis for axis, n in enumerate(self.edges.grid) if n > 1)

    def gradient(self, v: Array) -> Array:
        """Return D v, (axis, x, y, z, part, component), for real v of shape (x, y, z, part, component)."""
        xp = namespace(v)
        return xp.stack([xp.roll(v, -1, axis=axis) - v for axis in self.axes], axis=0) * self.roots

    def adjoint(self, p: Array) -> Array:
        """Return D^T p, minus the weighed divergence."""
        xp = namespace(p)
        weighed = p * self.roots
        total = -xp.sum(weighed, axis=0)
        for i, axis in enumerate(self.axes):
            total += xp.roll(weighed[i, ...], 1, axis=axis)
        return total

    def prox(self, u: Array, weights: np.ndarray) -> Array:
        """Return the step.

        Raises
        ------
        NumericalError
            The gap did not close; the weights or the image are not finite.
        """
        if not self.axes or not self.edges.bound:
            return u
        xp = namespace(u)
        data = xp.stack([xp.real(u), xp.imag(u)], axis=-2)
        radius = like(np.asarray(weights), data, data.dtype)
        dual = self._dual(data, radius)
        v = data - self.adjoint(dual)
        return v[..., 0, :] + 1j * v[..., 1, :]

    def _dual(self, data: Array, radius: Array) -> Array:
        """Return p."""
        xp = namespace(data)
        step = 1 / self.edges.bound
        p = xp.zeros_like(self.gradient(data))
        ahead, momentum = p, xp.ones_like(radius)
        for k in range(1, self.max_iterations + 1):
            new = _into_ball(ahead + step * self.gradient(data - self.adjoint(ahead)), radius)
            moved = new - p
            # a component whose momentum leads uphill starts anew
            uphill = xp.sum((ahead - new) * moved, axis=(0, 1, 2, 3, 4)) > 0
            momentum = xp.where(uphill, xp.ones_like(radius), momentum)
            following = 0.5 + xp.sqrt(0.25 + momentum**2)
            ahead = new + ((momentum - 1) / following) * moved
            p, momentum = new, following
            if k % _CHECK_EVERY == 0 and self._closed(data, p, radius):
                return p
        raise NumericalError(
            f"the total variation step left a duality gap above {self.rtol:g} after {self.max_iterations} iterations; "
            "check the coefficients and the weights for values that are not finite or far too large"
        )

    def _closed(self, data: Array, p: Array, radius: Array) -> bool:
        """Tell whether the gap w R(v) - <D v, p> of every component is small; each voxel adds to it, none takes."""
        xp = namespace(data)
        moved = self.adjoint(p)
        slope = self.gradient(data - moved)
        rough = radius * _lengths(slope)
        gap = xp.sum(rough - xp.sum(slope * p, axis=(0, 4)), axis=(0, 1, 2))
        reached = 0.5 * xp.sum(moved**2, axis=(0, 1, 2, 3)) + xp.sum(rough, axis=(0, 1, 2))
        # where v is flat, nothing is left of its differences but the rounding of u and p
        terms = xp.sum(xp.abs(data) * self.linked, axis=(0, 1, 2, 3)) + xp.sum(xp.abs(p), axis=(0, 1, 2, 3, 4))
        rounding = 4 * float(xp.finfo(data.dtype).eps) * radius * terms
        return bool(xp.all(gap <= self.rtol * reached + rounding))

    def value(self, u: Array) -> np.ndarray:
        """Return the (weighed) total variation of each component."""
        if not self.axes:
            return np.zeros(u.shape[-1])
        xp = namespace(u)
        slope = self.gradient(xp.stack([xp.real(u), xp.imag(u)], axis=-2))
        return np.sum(to_numpy(_lengths(slope)), axis=(0, 1, 2), dtype=float)

    def candidates(self, noise_sd: float) -> np.ndarray:
        """Return 0, then 0.05 to 4 noise SDs: below nothing happens, from about 2 on pure noise is flat."""
        return noise_sd * np.concatenate([[0.0], np.geomspace(0.05, 4.0, 13)])


def _lengths(p: Array) -> Array:
    """Return |p| over axes and parts, (x, y, z, component)."""
    xp = namespace(p)
    return xp.sqrt(xp.sum(p**2, axis=(0, 4)))


def _into_ball(p: Array, radius: Array) -> Array:
    """Return p, shortened to `radius` where it is longer."""
    xp = namespace(p)
    tiny = float(np.finfo(np.float32).tiny)
    shrink = radius / xp.maximum(xp.maximum(_lengths(p), radius), like(tiny, p, p.dtype))
    return p * shrink[..., None, :]
