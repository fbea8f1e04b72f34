"""What the lineshape of a voxel may do beyond phase, shift, Lorentz and Gauss rate, and what is expected of it.

All molecules of group g have, after the lineshape h_0 that the field map gives, the factor

    h_g(t) = h_0(t) exp(SUM_p theta_p b_gp(t))

with real parameters theta of a voxel. The first four belong to every fit and act on all molecules: b = i, 2 pi i t, -t,
-t^2. Further ones: a shift and a width of a group's own (2 pi i t and -t, on its columns alone), and the smooth
functions of a free lineshape. Their derivatives by theta are b h, exact. One more parameter may be a delay tau, a phase
of first order: signals are taken at t + tau. With D the derivative in time about the middle of the spectrum,
phi(t + tau) = SUM_j tau^j / j! D^j phi(t), so it needs columns D^j phi and no more (`time_derivatives`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mrsi_gadgets.arrays import Array, like, namespace
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.quantification.lineshape_search import N_SHAPE, LineshapeExpansion, LineshapeRange

LINESHAPES = ("voigt", "gauss", "lorentz", "free")
_PINNED = 1e-3
"""SD of a rate that is held at zero, in its unit."""
_FREE_PAIRS = 4
_FREE_SD = 0.3
"""SD of the first amplitude and phase of a free lineshape [1, rad]; those of the n-th are n^2 times smaller."""
_FREE_SCALE_S = 0.05
_DELAY_ORDERS = 5
"""Powers of the delay: at 0.5 ms and 250 Hz from the middle the sixth would be 3e-4."""
_MOST_DELAY_MS = 0.5
_LEAST_LINE = 0.1
_BAND_MARGIN, _BAND_MOST = 0.06, 0.45
"""Of the sampling frequency: what is added to the band of the molecules on either side, and its ends."""


@dataclass(frozen=True)
class FitOptions:
    """How free the fit is; each field is an attribute of the recipe's `quantify`."""

    window_ppm: tuple[float, float] | None = None
    """Part of the spectrum that is fitted [ppm]; None: all of it."""
    lineshape: str = "voigt"
    """One of `LINESHAPES`."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Molecules with a small shift and width of their own, several per group."""
    group_shift_hz: float = 0.5
    """SD of the prior of a group's shift [Hz]."""
    group_width: float = 2.0
    """SD of the prior of a group's further Lorentz rate [1/s]."""
    delay_ms: float = 0.0
    """SD of the prior of an error of the acquisition delay [ms], which is a phase of first order; 0: none is fitted."""

    def __post_init__(self) -> None:
        if self.lineshape not in LINESHAPES:
            raise ConfigError(f"there is no lineshape '{self.lineshape}'; choose one of {', '.join(LINESHAPES)}")
        if not 0 <= self.delay_ms <= _MOST_DELAY_MS:
            raise ConfigError(
                f"a deviation of {self.delay_ms:g} ms of the delay is beyond what can be fitted; give 0 to "
                f"{_MOST_DELAY_MS:g}, and correct mrsi_acquisition_delay_us where it is further off"
            )
        if self.group_shift_hz <= 0 or self.group_width <= 0:
            raise ConfigError("the deviations of a group's shift and width must be positive")
        if self.window_ppm is not None and not self.window_ppm[0] < self.window_ppm[1]:
            raise ConfigError(
                f"the fit window {self.window_ppm[0]:g} to {self.window_ppm[1]:g} ppm is empty; give its lower end "
                "first"
            )


@dataclass(frozen=True, eq=False)
class Freedom:
    """Parameters of the lineshape, in the order of the fit's unknowns."""

    names: tuple[str, ...]
    functions: np.ndarray
    """(parameter, t) complex128: b_p(t); zeros for a delay."""
    acts: np.ndarray
    """(group, parameter) bool: on which groups of columns each acts."""
    group: np.ndarray
    """(column,) int: group of each column of the design; columns that come later are of group 0."""
    prior: np.ndarray
    """(2, parameter): mean and SD before anything is known."""
    least: np.ndarray
    """(parameter,) SD that is never assumed smaller."""
    tails: np.ndarray
    """(parameter,) 1 / nu of the Student t prior over the voxels; 0: Gaussian."""
    learned: np.ndarray
    """(parameter,) bool: whether the voxels' values teach the final prior."""
    lower: np.ndarray
    upper: np.ndarray
    """(parameter,) bounds."""
    orders: int = 1
    """1 + highest power of the delay."""

    @property
    def count(self) -> int:
        """Number of parameters."""
        return len(self.names)

    @property
    def plain(self) -> bool:
        """Whether there is no more than phase, shift and two rates."""
        return self.count == N_SHAPE and self.orders == 1

    @property
    def n_groups(self) -> int:
        """Groups of columns, the common one first."""
        return int(self.acts.shape[0])

    def padded(self, shape: Array) -> Array:
        """Return lineshapes (voxel, 4) with the further parameters at their means."""
        xp = namespace(shape)
        more = like(self.prior[0, N_SHAPE:], shape, "float32")[None, :] + xp.zeros_like(shape[:, :1])
        return shape if self.count == N_SHAPE else xp.concat([shape, more], axis=1)

    def columns_of(self, group: int, count: int) -> np.ndarray:
        """Return the indices of the columns of a group, among `count`."""
        where = np.zeros(count, int)
        where[: len(self.group)] = self.group
        return np.flatnonzero(where == group)

    def coefficients(self, expansion: LineshapeExpansion, shape: Array, given: Array) -> Array:
        """Expand lineshapes and their derivatives, (voxel, group, 1 + parameter, order * k) complex64.

        Parameters
        ----------
        expansion
            The functions.
        shape
            (voxel, parameter).
        given
            (voxel or 1, node) complex64: known lineshape at the nodes that multiplies the sought one.
        """
        xp = namespace(shape)
        if self.plain:
            return expansion.coefficients(shape, given)[:, None, :, :]
        functions = self.functions[:, expansion.nodes]
        parts = []
        for acts in self.acts:
            own = like(functions * acts[:, None], shape, "complex64")
            exponent = xp.astype(shape, xp.complex64) @ own
            h = xp.exp(exponent) * given
            stack = xp.concat([h[:, None, :], own[None, :, :] * h[:, None, :]], axis=1)
            parts.append(xp.matmul(stack, like(expansion.from_nodes, shape, "complex64")))
        found = xp.stack(parts, axis=1)
        if self.orders == 1:
            return found
        delay = shape[:, self.names.index("delay")][:, None, None, None]
        powers = [xp.ones_like(delay)]
        for order in range(1, self.orders):
            powers.append(powers[-1] * delay / order)
        row = np.arange(1 + self.count) == 1 + self.names.index("delay")
        at_delay = like(row, shape, "bool")[None, None, :, None]
        terms = []
        for order in range(self.orders):
            slope = powers[order - 1] * found[:, :, :1, :] if order else xp.zeros_like(found[:, :, :1, :])
            terms.append(xp.where(at_delay, slope, powers[order] * found))
        return xp.astype(xp.concat(terms, axis=3), xp.complex64)

    def common(self, shape: np.ndarray) -> np.ndarray:
        """Return what all molecules share beside the known lineshape and the phase, (voxel, t) complex128."""
        some = np.all(self.acts, axis=0) & (np.arange(self.count) != 0)
        return np.asarray(np.exp(shape[:, some] @ self.functions[some]))

    def exponents(self, shape: np.ndarray, count: int) -> np.ndarray | None:
        """Return 2 pi i times the own shift less the own rate of each of `count` columns, (voxel, column) [1/s].

        None where no group has one.
        """
        if self.n_groups == 1:
            return None
        found = np.zeros((len(shape), count), complex)
        for group in range(1, self.n_groups):
            shift, width = (shape[:, i] for i in np.flatnonzero(self.acts[group] & ~self.acts[0]))
            found[:, self.columns_of(group, count)] = (2j * np.pi * shift - width)[:, None]
        return found


def base_functions(times_s: np.ndarray) -> np.ndarray:
    """Return b of phase, shift, Lorentz and Gauss rate, (4, t)."""
    t = np.asarray(times_s, float)
    return np.stack([1j * np.ones(len(t)), 2j * np.pi * t, -t + 0j, -(t**2) + 0j])


def free_functions(times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the functions of a free lineshape (function, t), zero at t = 0, and the SD of each one's parameter.

    1 - cos(pi n u) is a change of size and i sin(pi n u) one of phase, in a time u = t / (t + 50 ms) that passes ever
    more slowly, as lines do.
    """
    t = np.asarray(times_s, float)
    u = t / (t + _FREE_SCALE_S)
    n = np.arange(1, _FREE_PAIRS + 1)
    angle = np.pi * n[:, None] * u
    sd = _FREE_SD / n**2
    return np.concatenate([np.cos(angle) - 1 + 0j, 1j * np.sin(angle)]), np.concatenate([sd, sd])


def make_freedom(
    options: FitOptions,
    names: Sequence[str],
    times_s: np.ndarray,
    allowed: LineshapeRange,
    weak: np.ndarray,
    least: np.ndarray,
    tails: np.ndarray,
) -> Freedom:
    """Return the parameters that a fit has.

    Parameters
    ----------
    options
        What the recipe wants.
    names
        Columns of the design.
    times_s
        (t,).
    allowed
        Range of shift and rates.
    weak, least, tails
        Prior (2, 4), smallest SD (4,) and tails (4,) of phase, shift and rates.

    Raises
    ------
    ConfigError
        A group names a molecule that is not in the basis, or one twice.
    """
    known = ["phase", "shift", "lorentz", "gauss"]
    functions = [*base_functions(times_s)]
    mean, sd, small, tail = ([*row] for row in (weak[0], weak[1], least, tails))
    learned = [True] * N_SHAPE
    lower, upper = [*allowed.lower()], [*allowed.upper()]
    for name, pinned in (("lorentz", "gauss"), ("gauss", "lorentz")):
        if options.lineshape == pinned:
            i = known.index(name)
            mean[i], sd[i], learned[i] = 0.0, _PINNED, False
    owner: list[int] = [-1] * N_SHAPE  # -1: acts on all groups

    def add(name: str, function: np.ndarray, deviation: float, of: int, smallest: float, *, teach: bool) -> None:
        known.append(name)
        functions.append(function)
        owner.append(of)
        mean.append(0.0)
        sd.append(deviation)
        small.append(smallest)
        tail.append(1 / 3 if teach else 0.0)
        learned.append(teach)
        lower.append(-6 * deviation)
        upper.append(6 * deviation)

    if options.lineshape == "free":
        free, deviations = free_functions(times_s)
        for i, (function, deviation) in enumerate(zip(free, deviations, strict=True)):
            add(f"free{i}", function, float(deviation), -1, 0.1 * float(deviation), teach=True)
    group = _groups(options.groups, names)
    turn, decay = base_functions(times_s)[1:3]
    for i, members in enumerate(options.groups, start=1):
        add(f"shift_{members[0]}", turn, options.group_shift_hz, i, 0.1, teach=False)
        add(f"width_{members[0]}", decay, options.group_width, i, 0.5, teach=False)
    orders = 1
    if options.delay_ms > 0:
        add("delay", np.zeros(len(times_s), complex), options.delay_ms, -1, 0.02 * options.delay_ms, teach=True)
        lower[-1], upper[-1] = -_MOST_DELAY_MS, _MOST_DELAY_MS
        orders = _DELAY_ORDERS
    acts = np.array([[of in (-1, g) for of in owner] for g in range(len(options.groups) + 1)])
    return Freedom(
        tuple(known), np.array(functions), acts, group, np.array([mean, sd]), np.array(small), np.array(tail),
        np.array(learned), np.array(lower), np.array(upper), orders,
    )  # fmt: skip


def _groups(groups: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """Return the group (column,) of each column; 0 is common to those that are not named."""
    group = np.zeros(len(names), int)
    for i, members in enumerate(groups, start=1):
        for member in members:
            if member not in names:
                raise ConfigError(f"the basis has no '{member}' to give a shift of its own; it has {', '.join(names)}")
            if group[names.index(member)]:
                raise ConfigError(f"'{member}' is in two groups of molecules with a shift of their own; name it once")
            group[names.index(member)] = i
    return group


def with_more_columns(freedom: Freedom, count: int) -> Freedom:
    """Return the same for a design with further columns, which are of the common group."""
    return replace(freedom, group=np.concatenate([freedom.group, np.zeros(count - len(freedom.group), int)]))


def time_derivatives(
    times_s: np.ndarray, columns: np.ndarray, weights: np.ndarray, orders: int, middle_hz: float | None = None
) -> tuple[np.ndarray, float]:
    """Return D^j of FIDs (t, column) for j = 0 ... orders - 1, (order, t, column) in 1/ms^j, and their middle [Hz].

    D is the derivative in time less 2 pi i times the middle, whose phase is that of order zero: the mean frequency of
    the FIDs with the given weights (column,), unless it is given. It is the derivative of damped exponentials that are
    fitted to the FIDs, dense over their band: beyond it they would only make the ends uncertain.
    """
    if orders == 1:
        return columns[None], 0.0
    t = np.asarray(times_s, float)
    dwell, length = t[1] - t[0], t[-1] - t[0]
    hz = np.arange(*_band_hz(dwell, columns), 0.5 / length)
    exponents = 2j * np.pi * hz - 8.0
    members = np.exp((t - t[0])[:, None] * exponents)
    inverse = np.linalg.pinv(members, rcond=1e-6)
    slope = members @ (exponents[:, None] * (inverse @ columns))
    power = np.sum(np.abs(columns) ** 2, axis=0) * weights**2
    turning = np.sum(np.conj(columns) * slope, axis=0) * weights**2
    mean = float(np.sum(turning.imag) / max(float(np.sum(power)), 1e-30))
    middle = mean if middle_hz is None else 2 * np.pi * middle_hz
    found, coefficients = [columns], inverse @ columns
    for _ in range(1, orders):
        coefficients = (exponents[:, None] - 1j * middle) * coefficients * 1e-3
        found.append(members @ coefficients)
    return np.stack(found), middle / (2 * np.pi)


def _band_hz(dwell_s: float, columns: np.ndarray) -> tuple[float, float]:
    """Return the range of frequencies that FIDs (t, column) have, with some margin [Hz]."""
    window = 0.5 + 0.5 * np.cos(np.pi * np.arange(len(columns)) / len(columns))
    size = np.abs(np.fft.fftshift(np.fft.fft(columns * window[:, None], axis=0), axes=0))
    hz = np.fft.fftshift(np.fft.fftfreq(len(columns), dwell_s))
    there = hz[np.any(size > _LEAST_LINE * size.max(axis=0), axis=1)]
    margin, most = _BAND_MARGIN / dwell_s, _BAND_MOST / dwell_s
    return max(float(there[0]) - margin, -most), min(float(there[-1]) + margin, most)


def delay_scale(delay_ms: float, order: int) -> float:
    """Return the usual size of the j-th term of the delay's series."""
    return delay_ms**order / math.factorial(order)
