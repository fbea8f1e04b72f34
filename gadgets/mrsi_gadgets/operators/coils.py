"""Coil sensitivities: one image becomes one image per receive channel (eq. 2 of science.md, rho -> S_c rho)."""

from __future__ import annotations

from dataclasses import dataclass

from mrsi_gadgets.arrays import Array, namespace
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.operators.algebra import Diagonal, LinearOperator, Shape


@dataclass(frozen=True, eq=False)
class Coils(LinearOperator):
    """y_c(r, ...) = S_c(r) x(r, ...). The adjoint is the matched combination sum_c conj(S_c) y_c."""

    maps: Array
    """(coil, x, y, z) complex."""
    trailing: Shape = ()
    """Axes of the image after z (coefficients or times)."""

    def __post_init__(self) -> None:
        if self.maps.ndim != 4:
            raise DataError(f"coil maps have {self.maps.ndim} axes; expected (coil, x, y, z)")

    @property
    def domain(self) -> Shape:
        """(x, y, z, *trailing)."""
        return (*(int(n) for n in self.maps.shape[1:]), *self.trailing)

    @property
    def range(self) -> Shape:
        """(coil, x, y, z, *trailing)."""
        return (int(self.maps.shape[0]), *self.domain)

    def _expanded(self) -> Array:
        return namespace(self.maps).reshape(self.maps, (*self.maps.shape, *(1 for _ in self.trailing)))

    def forward(self, x: Array) -> Array:
        """Multiply by each coil's sensitivity."""
        return self._expanded() * x[None, ...]

    def adjoint(self, y: Array) -> Array:
        """Add up the channels, each multiplied by its conjugate sensitivity."""
        xp = namespace(y)
        return xp.sum(xp.conj(self._expanded()) * y, axis=0)

    @property
    def gram(self) -> LinearOperator:
        """Multiplication by sum_c |S_c|^2."""
        xp = namespace(self.maps)
        power = xp.sum(xp.real(self.maps) ** 2 + xp.imag(self.maps) ** 2, axis=0)
        return Diagonal(xp.reshape(power, (*power.shape, *(1 for _ in self.trailing))), self.domain)
