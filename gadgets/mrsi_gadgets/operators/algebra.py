"""The algebra of linear operators: what a map must provide, and how maps combine.

A concrete operator is a frozen dataclass that states `domain` and `range` (shapes) and implements `forward` and
`adjoint`. The mix-in gives it shape checks, ``op(x)``, ``op.H``, ``op.gram`` (A^H A), ``a @ b``, ``a + b`` and
``number * a``. The algebra is rewritten, not only chained: (A B).gram is B^H (A.gram) B, so a gram that is cheaper than
its two factors (diagonal, small matrix) survives every composition, and identities disappear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.errors import DataError

Shape = tuple[int, ...]


class LinearOperator(ABC):
    """A linear map between arrays of fixed shapes."""

    @property
    @abstractmethod
    def domain(self) -> Shape:
        """Shape of what the operator is applied to."""

    @property
    @abstractmethod
    def range(self) -> Shape:
        """Shape of what comes out."""

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Apply the map; the shape has been checked by the caller (use ``op(x)``)."""

    @abstractmethod
    def adjoint(self, y: Array) -> Array:
        """Apply the adjoint map; the shape has been checked by the caller (use ``op.H(y)``)."""

    def __call__(self, x: Array) -> Array:
        """Apply the operator.

        Raises
        ------
        DataError
            `x` does not have the shape of the domain.
        """
        if tuple(x.shape) != self.domain:
            raise DataError(
                f"{self} takes an array of shape {self.domain} but got {tuple(x.shape)}; bring it to that shape"
            )
        return self.forward(x)

    @property
    def H(self) -> LinearOperator:
        """The adjoint operator."""
        return Adjoint(self)

    @property
    def gram(self) -> LinearOperator:
        """A^H A, cheaper than the two applications where the operator knows how."""
        return Composition(self.H, self)

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """Compose: (a @ b)(x) = a(b(x))."""
        if not isinstance(inner, LinearOperator):
            return NotImplemented
        if isinstance(inner, Identity):
            _check_chain(self, inner)
            return self
        return Composition(self, inner)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Add two operators of the same domain and range."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return Sum(self, other)

    def __mul__(self, factor: complex) -> LinearOperator:
        """Multiply by a number."""
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self.domain} -> {self.range}>"


def _check_chain(outer: LinearOperator, inner: LinearOperator) -> None:
    if outer.domain != inner.range:
        raise DataError(f"{outer} cannot follow {inner}: the shapes {outer.domain} and {inner.range} must be equal")


@dataclass(frozen=True, eq=False)
class Identity(LinearOperator):
    """The neutral element of composition."""

    shape: Shape

    @property
    def domain(self) -> Shape:
        """Shape of the argument."""
        return self.shape

    @property
    def range(self) -> Shape:
        """Shape of the result."""
        return self.shape

    def forward(self, x: Array) -> Array:
        """Return the argument."""
        return x

    def adjoint(self, y: Array) -> Array:
        """Return the argument."""
        return y

    @property
    def H(self) -> LinearOperator:
        """The operator itself."""
        return self

    @property
    def gram(self) -> LinearOperator:
        """The operator itself."""
        return self

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """Return `inner`."""
        if not isinstance(inner, LinearOperator):
            return NotImplemented
        _check_chain(self, inner)
        return inner


@dataclass(frozen=True, eq=False)
class Adjoint(LinearOperator):
    """The adjoint of another operator."""

    of: LinearOperator

    @property
    def domain(self) -> Shape:
        """Range of the operator."""
        return self.of.range

    @property
    def range(self) -> Shape:
        """Domain of the operator."""
        return self.of.domain

    def forward(self, x: Array) -> Array:
        """Apply the adjoint."""
        return self.of.adjoint(x)

    def adjoint(self, y: Array) -> Array:
        """Apply the operator."""
        return self.of.forward(y)

    @property
    def H(self) -> LinearOperator:
        """The operator this is the adjoint of."""
        return self.of


@dataclass(frozen=True, eq=False)
class Composition(LinearOperator):
    """``outer`` after ``inner``."""

    outer: LinearOperator
    inner: LinearOperator

    def __post_init__(self) -> None:
        _check_chain(self.outer, self.inner)

    @property
    def domain(self) -> Shape:
        """Domain of the inner operator."""
        return self.inner.domain

    @property
    def range(self) -> Shape:
        """Range of the outer operator."""
        return self.outer.range

    def forward(self, x: Array) -> Array:
        """Apply inner, then outer."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Array) -> Array:
        """Apply the adjoint of outer, then that of inner."""
        return self.inner.adjoint(self.outer.adjoint(y))

    @property
    def H(self) -> LinearOperator:
        """Adjoints in reverse order."""
        return self.inner.H @ self.outer.H

    @property
    def gram(self) -> LinearOperator:
        """inner^H (outer.gram) inner."""
        middle = self.outer.gram
        if isinstance(middle, Identity):
            return self.inner.gram
        return self.inner.H @ (middle @ self.inner)


@dataclass(frozen=True, eq=False)
class Sum(LinearOperator):
    """Sum of two operators."""

    first: LinearOperator
    second: LinearOperator

    def __post_init__(self) -> None:
        if self.first.domain != self.second.domain or self.first.range != self.second.range:
            raise DataError(f"{self.first} and {self.second} cannot be added: domain and range must be equal")

    @property
    def domain(self) -> Shape:
        """Common domain."""
        return self.first.domain

    @property
    def range(self) -> Shape:
        """Common range."""
        return self.first.range

    def forward(self, x: Array) -> Array:
        """Add both results."""
        return self.first.forward(x) + self.second.forward(x)

    def adjoint(self, y: Array) -> Array:
        """Add both adjoint results."""
        return self.first.adjoint(y) + self.second.adjoint(y)

    @property
    def H(self) -> LinearOperator:
        """Sum of the adjoints."""
        return Sum(self.first.H, self.second.H)


@dataclass(frozen=True, eq=False)
class Scaled(LinearOperator):
    """An operator times a number."""

    of: LinearOperator
    factor: complex

    @property
    def domain(self) -> Shape:
        """Domain of the operator."""
        return self.of.domain

    @property
    def range(self) -> Shape:
        """Range of the operator."""
        return self.of.range

    def forward(self, x: Array) -> Array:
        """Apply the operator and scale."""
        return self.factor * self.of.forward(x)

    def adjoint(self, y: Array) -> Array:
        """Apply the adjoint and scale by the conjugate."""
        return complex(self.factor).conjugate() * self.of.adjoint(y)

    @property
    def gram(self) -> LinearOperator:
        """|factor|^2 times the operator's gram."""
        return Scaled(self.of.gram, abs(self.factor) ** 2)


@dataclass(frozen=True, eq=False)
class Diagonal(LinearOperator):
    """Multiplication by `weights`, broadcast over `shape` (a sampling mask, a phase, a density)."""

    weights: Array
    shape: Shape

    def __post_init__(self) -> None:
        given = tuple(self.weights.shape)
        padded = (1,) * (len(self.shape) - len(given)) + given
        if len(given) > len(self.shape) or any(w not in (1, n) for w, n in zip(padded, self.shape, strict=True)):
            raise DataError(
                f"weights of shape {given} cannot be broadcast to {self.shape}; give one axis per axis or 1"
            )

    @property
    def domain(self) -> Shape:
        """Shape of the argument."""
        return self.shape

    @property
    def range(self) -> Shape:
        """Shape of the result."""
        return self.shape

    def forward(self, x: Array) -> Array:
        """Multiply by the weights."""
        return x * self.weights

    def adjoint(self, y: Array) -> Array:
        """Multiply by the conjugate weights."""
        return y * _conjugate(self.weights)

    @property
    def gram(self) -> LinearOperator:
        """Multiplication by |weights|^2."""
        return Diagonal(like(abs(self.weights) ** 2, self.weights, self.weights.dtype), self.shape)


@dataclass(frozen=True, eq=False)
class LastAxisMatrix(LinearOperator):
    """Matrix product along the last axis, y[..., j] = sum_i x[..., i] matrix[i, j]: a temporal basis, a Gram matrix."""

    matrix: Array
    """(i, j)."""
    leading: Shape
    """All axes but the last."""
    orthonormal: bool = False
    """Whether the rows of the matrix are known to be orthonormal: then A^H A is the identity."""

    @property
    def domain(self) -> Shape:
        """(*leading, i)."""
        return (*self.leading, int(self.matrix.shape[0]))

    @property
    def range(self) -> Shape:
        """(*leading, j)."""
        return (*self.leading, int(self.matrix.shape[1]))

    def forward(self, x: Array) -> Array:
        """Multiply by the matrix."""
        return x @ self.matrix

    def adjoint(self, y: Array) -> Array:
        """Multiply by the conjugate transpose."""
        return y @ _conjugate(self.matrix.T)

    @property
    def gram(self) -> LinearOperator:
        """The precomputed (i, i) matrix: no axis of length j is formed."""
        if self.orthonormal:
            return Identity(self.domain)
        return LastAxisMatrix(self.matrix @ _conjugate(self.matrix.T), self.leading)


@dataclass(frozen=True, eq=False)
class Reshape(LinearOperator):
    """Another shape for the same elements (C order)."""

    before: Shape
    after: Shape

    def __post_init__(self) -> None:
        if _size(self.before) != _size(self.after):
            raise DataError(f"an array of shape {self.before} cannot be seen as {self.after}: the sizes differ")

    @property
    def domain(self) -> Shape:
        """Shape of the argument."""
        return self.before

    @property
    def range(self) -> Shape:
        """Shape of the result."""
        return self.after

    def forward(self, x: Array) -> Array:
        """Reshape."""
        return namespace(x).reshape(x, self.after)

    def adjoint(self, y: Array) -> Array:
        """Reshape back."""
        return namespace(y).reshape(y, self.before)

    @property
    def gram(self) -> LinearOperator:
        """The identity."""
        return Identity(self.before)


def _conjugate(x: Array) -> Array:
    xp = namespace(x)
    return xp.conj(x) if xp.isdtype(x.dtype, "complex floating") else x


def _size(shape: Shape) -> int:
    size = 1
    for n in shape:
        size *= int(n)
    return size
