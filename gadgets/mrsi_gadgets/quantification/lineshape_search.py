"""The lineshape all molecules of a voxel share, and a first estimate of it.

h(t) = exp(i phase + i 2 pi shift t - lorentz t - gauss t^2), eq. 19's common lineshape together with shift and phase.
Seen over all parameters that are allowed, h is a curve in a space of about a dozen dimensions. It is therefore written
as a short sum h(t) = sum_k s_k e_k(t), and every product of h with a column of the model is a sum of products that
are known before the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mrsi_gadgets.arrays import Array, device, like, namespace

_TRACE = 1e-6
"""Part of the trace that keeps the templates' normal matrices positive definite."""
N_SHAPE = 4
"""Parameters of the lineshape: phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2]."""


@dataclass(frozen=True)
class LineshapeRange:
    """What shifts and widths the search may reach."""

    shift_hz: float = 10.0
    """Largest shift to either side [Hz]."""
    margin_hz: float = 5.0
    """What the field within a voxel may add to the shifts [Hz]."""
    lorentz: tuple[float, float] = (-6.0, 40.0)
    """Decay rate beyond the molecule's own [1/s]; negative where a tissue's T2* is longer than the model's."""
    gauss: tuple[float, float] = (0.0, 900.0)
    """Factor of t^2 in the exponent [1/s^2]; 900 is 16 Hz full width at half maximum."""

    def lower(self) -> np.ndarray:
        """Lower bounds of (phase, shift, lorentz, gauss); the phase has none."""
        return np.array([-np.inf, -self.shift_hz, self.lorentz[0], self.gauss[0]])

    def upper(self) -> np.ndarray:
        """Upper bounds of (phase, shift, lorentz, gauss)."""
        return np.array([np.inf, self.shift_hz, self.lorentz[1], self.gauss[1]])


@dataclass(frozen=True, eq=False)
class LineshapeExpansion:
    """Basis e_k(t) of all allowed lineshapes, and how to find a lineshape's coefficients from a few of its times."""

    functions: np.ndarray
    """(k, t) complex128, orthonormal."""
    node_times_s: np.ndarray
    """(node,) times at which h is evaluated [s]."""
    from_nodes: np.ndarray
    """(node, k): values at the nodes -> coefficients."""
    functions_at_nodes: np.ndarray
    """(k, node): coefficients -> values at the nodes."""
    nodes: np.ndarray
    """(node,) int: which times they are."""

    @property
    def rank(self) -> int:
        """Number of functions."""
        return int(self.functions.shape[0])

    def coefficients(self, shape: Array, given: Array) -> Array:
        """Expand lineshapes and their derivatives.

        Parameters
        ----------
        shape
            (voxel, 4): phase [rad], shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2].
        given
            (voxel or 1, node) complex64: known lineshape at the nodes that multiplies the sought one; ones: none.

        Returns
        -------
        Array
            (voxel, 5, k) complex64: h and its derivatives by the four parameters.
        """
        xp = namespace(shape)
        time = like(self.node_times_s, shape, "float32")[None, :]
        h = self.values_at_nodes(shape, given)
        stack = xp.stack([h, 1j * h, (2j * np.pi) * time * h, -time * h, -(time**2) * h], axis=1)
        return xp.matmul(xp.astype(stack, xp.complex64), like(self.from_nodes, shape, "complex64"))

    def values_at_nodes(self, shape: Array, given: Array) -> Array:
        """Return h at the nodes, (voxel, node) complex64; parameters as for `coefficients`."""
        xp = namespace(shape)
        time = like(self.node_times_s, shape, "float32")[None, :]
        p = [xp.astype(shape[:, i : i + 1], xp.float32) for i in range(N_SHAPE)]
        size = xp.exp(-p[2] * time - p[3] * time**2)
        angle = p[0] + 2 * np.pi * p[1] * time
        return size * (xp.cos(angle) + 1j * xp.sin(angle)) * given


def expand_lineshapes(
    times_s: np.ndarray,
    allowed: LineshapeRange,
    *,
    tolerance: float = 1e-4,
    n_nodes: int = 44,
    factors: np.ndarray | None = None,
) -> LineshapeExpansion:
    """Build the basis of all lineshapes within `allowed`.

    Parameters
    ----------
    times_s
        (t,) sampling times [s].
    allowed
        Range of the parameters.
    tolerance
        Singular values below this fraction of the largest are left out.
    n_nodes
        Times at which lineshapes will be evaluated.
    factors
        (t, any): factors that some of them may have beside; None: none.
    """
    reach = allowed.shift_hz + allowed.margin_hz
    shifts = np.linspace(-reach, reach, 25)
    lorentz = np.linspace(*allowed.lorentz, 5)
    gauss = np.linspace(allowed.gauss[0] ** 0.5, allowed.gauss[1] ** 0.5, 5) ** 2
    f, a, g = (x.ravel()[None, :] for x in np.meshgrid(shifts, lorentz, gauss, indexing="ij"))
    t = np.asarray(times_s, float)[:, None]
    members = np.exp((2j * np.pi * f - a) * t - g * t**2)
    if factors is not None:
        some = members[:, np.linspace(0, members.shape[1] - 1, factors.shape[1]).astype(int)]
        members = np.concatenate([members, some * factors], axis=1)
    u, s, _ = np.linalg.svd(members, full_matrices=False)
    functions = u[:, s > tolerance * s[0]].T
    # Nodes crowd at both ends, where a fit of smooth functions from few of their values is most delicate.
    n_nodes = min(n_nodes, len(times_s))
    place = 0.5 - 0.5 * np.cos(np.pi * (np.arange(n_nodes) + 0.5) / n_nodes)
    nodes = np.unique(np.round(place * (len(times_s) - 1)).astype(int))
    return LineshapeExpansion(
        functions, np.asarray(times_s)[nodes], np.linalg.pinv(functions[:, nodes]), functions[:, nodes], nodes
    )


class FirstEstimate(NamedTuple):
    """Where the refinement starts."""

    shape: Array
    """(voxel, 4) float32, as `LineshapeExpansion.coefficients` takes it."""
    amplitudes: Array
    """(voxel, template) float32: signed amplitudes of the composite templates."""
    best: Array
    """(voxel,) int: index of the grid point."""


@dataclass(frozen=True, eq=False)
class LineshapeGrid:
    """Dictionary of a few composite spectra at every point of a grid of shifts and widths.

    At each point the templates are made orthonormal in the real inner product; then max over the phase of the energy
    a voxel's data y have in their real span is (|z|^2 + |z^T z|) / 2 with z = Q^H y, at phase = angle(z^T z) / 2.
    """

    shapes: np.ndarray
    """(point, 3): shift [Hz], Lorentz rate [1/s], Gauss rate [1/s^2]."""
    projector: np.ndarray
    """(coordinate, point * template) complex64: conjugated orthonormal templates."""
    unmix: np.ndarray
    """(point, template, template) float64: components in the orthonormal templates -> amplitudes."""
    positive: np.ndarray
    """(template,) how much each template counts when the sign of the whole is decided."""
    expansion: LineshapeExpansion
    spectra: np.ndarray
    """(k, coordinate, template) complex64: the templates times each function of the expansion."""

    def at(self, shape: Array, data: Array, given: Array) -> Array:
        """Return the signed amplitudes (voxel, template) of the templates at lineshapes that are already known.

        Parameters
        ----------
        shape
            (voxel, 4) lineshapes.
        data
            (voxel, coordinate) complex64.
        given
            (voxel, node) complex64: known lineshape that multiplies them.
        """
        xp = namespace(data)
        k, d, n = self.spectra.shape
        coefficients = self.expansion.coefficients(shape, given)[:, 0, :]
        spectra = coefficients @ xp.reshape(like(self.spectra, data, "complex64"), (k, d * n))
        spectra = xp.reshape(spectra, (-1, d, n))
        adjoint = xp.conj(xp.matrix_transpose(spectra))
        gram = xp.astype(xp.real(xp.matmul(adjoint, spectra)), xp.float64)
        rhs = xp.astype(xp.real(xp.matmul(adjoint, data[:, :, None])), xp.float64)
        trace = xp.sum(xp.linalg.diagonal(gram), axis=1)[:, None, None]
        eye = xp.eye(n, dtype=xp.float64, device=device(data))[None, :, :]
        solved = xp.linalg.solve(gram + (_TRACE / n) * trace * eye, rhs)
        return xp.astype(solved[:, :, 0], xp.float32)

    def search(self, data: Array) -> FirstEstimate:
        """Find for each voxel the grid point and phase that explain most of its energy.

        Parameters
        ----------
        data
            (voxel, coordinate) complex64.
        """
        xp = namespace(data)
        n_points, n_templates = self.unmix.shape[:2]
        z = xp.reshape(data @ like(self.projector, data, "complex64"), (-1, n_points, n_templates))
        square = xp.sum(z * z, axis=2)
        energy = xp.sum(xp.real(z) ** 2 + xp.imag(z) ** 2, axis=2) + xp.abs(square)
        best = xp.argmax(energy, axis=1)
        at_best = best + n_points * xp.arange(best.shape[0], device=best.device)
        square = xp.take(xp.reshape(square, (-1,)), at_best)
        components = xp.take(xp.reshape(z, (-1, n_templates)), at_best, axis=0)
        phase = xp.atan2(xp.imag(square), xp.real(square)) / 2
        rotated = xp.real(components) * xp.cos(phase)[:, None] + xp.imag(components) * xp.sin(phase)[:, None]
        unmix = xp.take(like(self.unmix, data, "float32"), best, axis=0)
        amplitudes = xp.matmul(unmix, rotated[:, :, None])[:, :, 0]
        # phase is known up to pi; amplitudes of strong molecules are positive
        sign = xp.sum(amplitudes * like(self.positive, data, "float32")[None, :], axis=1)
        flip = sign < 0
        amplitudes = xp.where(flip[:, None], -amplitudes, amplitudes)
        phase = xp.where(flip, phase + np.pi, phase)
        phase = xp.where(phase > np.pi, phase - 2 * np.pi, phase)
        shapes = xp.take(like(self.shapes, data, "float32"), best, axis=0)
        return FirstEstimate(xp.concat([phase[:, None], shapes], axis=1), amplitudes, best)


def build_grid(
    templates: np.ndarray,
    expansion: LineshapeExpansion,
    allowed: LineshapeRange,
    positive: np.ndarray,
    *,
    shift_step_hz: float = 1.25,
) -> LineshapeGrid:
    """Make the dictionary of the first search.

    Parameters
    ----------
    templates
        (k, coordinate, template): composite spectra times each function of the expansion, in coordinates of the data.
    expansion
        The functions.
    allowed
        Range of the grid.
    positive
        (template,) weight of each template in the decision about the sign.
    shift_step_hz
        Spacing of the shifts [Hz].
    """
    n_shifts = 2 * int(np.ceil(allowed.shift_hz / shift_step_hz)) + 1
    shifts = np.linspace(-allowed.shift_hz, allowed.shift_hz, n_shifts)
    widths = [(0.0, 0.0), (3.0, 0.0), (8.0, 0.0), (16.0, 0.0), (30.0, 0.0), (2.0, 60.0), (2.0, 200.0), (4.0, 500.0)]
    shapes = np.array([(f, a, g) for a, g in widths for f in shifts])
    plain = np.ones((1, len(expansion.node_times_s)), np.complex64)
    coefficients = expansion.coefficients(np.column_stack([np.zeros(len(shapes)), shapes]), plain)[:, 0, :]
    spectra = np.einsum("pk,kdm->pdm", coefficients.astype(complex), templates)
    gram = np.real(np.conj(np.swapaxes(spectra, 1, 2)) @ spectra)
    gram += _TRACE * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1]) / gram.shape[1]
    unmix = np.swapaxes(np.linalg.inv(np.linalg.cholesky(gram)), 1, 2)
    orthonormal = spectra @ unmix
    projector = np.conj(orthonormal).transpose(1, 0, 2).reshape(spectra.shape[1], -1)
    return LineshapeGrid(
        shapes,
        projector.astype(np.complex64),
        unmix,
        np.asarray(positive, float),
        expansion,
        templates.astype(np.complex64),
    )
