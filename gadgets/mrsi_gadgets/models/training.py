"""Training a manifold from an ensemble: subspace, autoencoder, projector (eq. 5, 6 and 10), gate, before any scan.

Projector: clean FIDs x of the ensemble get noise at a peak SNR drawn log-uniformly from the range the model is for, of
equal power in all coordinates as in a least-squares image, or falling as a spatial prior leaves it. The loss is

    w |E(x) - P(x~)|^2 / latent + |x - Proj(x~)|^2 / (error of the linear estimate at that noise)      (eq. 10)

so that every SNR counts alike; 1 in the second term is no better than the best linear estimate. Steps, draws and noise
follow from the seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.models.gate import Gate, calibrate_gate
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.networks import ManifoldNetworks, weights_of
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.models.subspace import Subspace, learn_subspace
from mrsi_gadgets.physics.basis import BasisSet
from mrsi_gadgets.physics.ensemble import Ensemble, noise_sd_at_snr, sample

Progress = Callable[[str, int, int, float], None]
"""Told name of the stage, steps done, steps in all, loss."""

_VALIDATION = 2000
_CHECK_EVERY = 100
_LEAST_GAIN = 0.002
_ROUNDS = 20
_LEAST_VARIANCE = 1e-5
"""Of a coordinate, over the largest: along the mean there is none, and rounding must not look like signal."""
_LATENT_WEIGHT = 0.01
"""Weight of the first term of the projector's loss."""
_PIECE = 4000
"""FIDs that are synthesised at once."""
_LEAST_GATE_SAMPLES = 500
"""Half of them tell how often one FID in 125 is reached."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a manifold is trained; the table [training] of a learning protocol."""

    rank: int = 48
    """Rows of the subspace that carries the coordinates (fewer where the FIDs have fewer points)."""
    latent: int = 32
    """Real numbers in the latent."""
    hidden: int = 256
    """Width of the two hidden layers of each network."""
    samples: int = 24000
    """FIDs of the ensemble."""
    autoencoder_steps: int = 800
    projector_steps: int = 3500
    batch: int = 1024
    learning_rate: float = 0.002
    snr: tuple[float, float] = (3.0, 300.0)
    """Peak SNR of a voxel that the projector is for."""
    patience: int = 12
    """Checks (one every 100 steps) without an improvement of 0.2 % after which training stops."""
    latent_sizes: tuple[int, ...] = (4, 8, 16, 24, 32, 48)
    """Latents whose representation error the card compares with that of linear models of as many numbers."""
    latent_steps: int = 400
    """Training steps of each of them."""
    gate_samples: int = 4000
    """FIDs of the ensemble that calibrate the gate."""
    quantification_steps: int = 1200
    """Training steps of each of the two networks that quantify spectra; 0: the model is learned without them."""
    quantification_samples: int = 16000
    """FIDs they are trained with."""

    def __post_init__(self) -> None:
        for name in ("rank", "latent", "hidden", "samples", "autoencoder_steps", "projector_steps", "batch",
                     "patience", "latent_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"[training] {name} is {getattr(self, name)}; it must be at least 1")
        if self.quantification_steps < 0 or self.quantification_samples < 1:
            raise ConfigError(
                "[training] quantification_steps must be at least 0 and quantification_samples at least 1; correct them"
            )
        if self.gate_samples < _LEAST_GATE_SAMPLES:
            raise ConfigError(
                f"[training] gate_samples is {self.gate_samples}; rare FIDs are counted, so it must be at least "
                f"{_LEAST_GATE_SAMPLES}"
            )
        if not 0 < self.snr[0] < self.snr[1]:
            raise ConfigError(f"[training] snr = {list(self.snr)} needs 0 < low < high")
        if not self.learning_rate > 0:
            raise ConfigError(f"[training] learning_rate is {self.learning_rate:g}; it must be positive")

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> TrainingSettings:
        """Return the settings of a table; ConfigError where a key is unknown or of the wrong kind."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for key, value in table.items():
            if key not in fields:
                raise ConfigError(f"[training] has no key '{key}'; known are {', '.join(fields)}")
            default: Any = fields[key].default
            if isinstance(default, tuple):
                kind = type(default[0])
                if not isinstance(value, list) or not value or not all(_is_number(v, kind) for v in value):
                    raise ConfigError(f"[training] {key} must be a list of numbers like {list(default)}")
                if key == "snr" and len(value) != len(default):
                    raise ConfigError("[training] snr must be two numbers, the lowest and the highest SNR")
                given[key] = tuple(kind(v) for v in value)
            elif not _is_number(value, type(default)):
                raise ConfigError(f"[training] {key} must be a number like {default}")
            else:
                given[key] = type(default)(value)
        return cls(**given)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained manifold and what is known of it: the contents of a model's card."""

    manifold: Manifold
    subspace: Subspace
    """Rows whose metabolite part spans the manifold's coordinates, and nuisance rows beside them (1H)."""
    gate: Gate
    """Tells FIDs that the manifold was trained for from others."""
    curves: Mapping[str, tuple[tuple[int, float, float], ...]]
    """Stage -> (step, training loss, validation loss)."""
    representation: tuple[Mapping[str, float], ...]
    """For each number of reals: relative l2 error over fresh FIDs, `linear` (principal axes) and `nonlinear`."""
    errors: tuple[Mapping[str, float], ...]
    """For each SNR: relative l2 error over fresh FIDs of the data on the rows, best linear estimate, projector."""
    networks: SpectrumNetworks | None = None
    """Networks that quantify spectra (`quantification.cnn_training`), where they were trained too."""


def train(
    protocol: Protocol,
    *,
    ensemble: Ensemble | None = None,
    basis: BasisSet | None = None,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Train subspace, autoencoder and projector for a protocol, and calibrate the gate.

    Parameters
    ----------
    protocol : where FIDs are sampled.
    ensemble : the distributions; None for the defaults of the protocol's nucleus.
    basis : signals of the molecules; None for those that are simulated for the protocol.
    settings : None for the defaults.
    seed : of all randomness.
    progress : told every few steps; of FIDs instead of steps where the loss is NaN.

    Raises
    ------
    ConfigError
        A setting is out of range.
    DataError
        Nucleus or molecules are not known.
    """
    settings = settings or TrainingSettings()
    rank = min(settings.rank, protocol.n_times)
    latent = min(settings.latent, 2 * rank)
    subspace = learn_subspace(protocol, ensemble=ensemble, rank=rank, seed=seed, basis=basis)
    wide = subspace.metabolites_only()

    def draw(count: int, own_seed: int) -> np.ndarray:
        return _drawn(wide, ensemble, basis, count, own_seed, progress)

    space = _coordinates(wide, draw(settings.samples, seed + 2))
    fresh = space.of(draw(_VALIDATION, seed + 3))
    generator = torch.Generator().manual_seed(seed)
    # weights are drawn from the seed, whatever was drawn before; torch's own state is left as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = space.networks(latent, settings.hidden)
        curves = {"autoencoder": _train_autoencoder(networks, space, fresh, settings, generator, progress)}
        curves["projector"] = _train_projector(networks, space, fresh, settings, generator, progress)
        representation = _representation(space, fresh, settings, latent, networks, generator, progress)
    manifold = Manifold(
        space.basis, space.mean, latent, settings.hidden, weights_of(networks), protocol, settings.snr,
        space.noise_at_snr_1,
    )  # fmt: skip

    def calibrated(done: int, total: int) -> None:
        if progress is not None:
            progress("gate", done, total, math.nan)

    gate = calibrate_gate(
        manifold, subspace, ensemble=ensemble, basis=basis, samples=settings.gate_samples, seed=seed,
        progress=calibrated,
    )  # fmt: skip
    errors = _errors(manifold, space, fresh, settings, seed + 4)
    return Trained(manifold, subspace, gate, curves, representation, errors)


@dataclass(frozen=True, eq=False)
class _Space:
    """The coordinates: rows along the principal axes of scaled FIDs about their mean."""

    basis: np.ndarray
    turn: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    x: torch.Tensor
    """(n, rank) coordinates of the drawn FIDs."""
    noise_at_snr_1: float

    def of(self, coefficients: np.ndarray) -> torch.Tensor:
        """Return the coordinates of coefficients on the subspace's own rows."""
        a = coefficients @ self.turn
        scale = (a @ self.mean.conj()) / np.sum(np.abs(self.mean) ** 2)
        return torch.from_numpy((a / scale[:, None] - self.mean).astype(np.complex64))

    def networks(self, latent: int, hidden: int) -> ManifoldNetworks:
        """Return untrained networks whose linear parts are the principal axes of the coordinates."""
        networks = ManifoldNetworks(len(self.mean), latent, hidden)
        x = torch.cat([self.x.real, self.x.imag], dim=-1).numpy().astype(float)
        power, vectors = np.linalg.eigh(x.T @ x / len(x))
        networks.set_linear(self.variance, vectors[:, ::-1][:, :latent].T, np.sqrt(power[::-1][:latent]))
        return networks


def _coordinates(subspace: Subspace, coefficients: np.ndarray) -> _Space:
    # the scale is the match with the mean of what is scaled: both settle in a few rounds, and training must see the
    # coordinates that `Manifold` will find
    mean = coefficients.mean(axis=0)
    for _ in range(_ROUNDS):
        scale = (coefficients @ mean.conj()) / np.sum(np.abs(mean) ** 2)
        scaled = coefficients / scale[:, None]
        mean = scaled.mean(axis=0)
    about = scaled - mean
    power, vectors = np.linalg.eigh(about.T @ about.conj() / len(about))
    # columns of `turn` take coefficients (rows) to coordinates, strongest first
    turn = vectors[:, ::-1].conj()
    basis = (turn.conj().T @ subspace.basis).astype(np.complex64)
    sd = noise_sd_at_snr(subspace.protocol, 1.0) / float(np.mean(np.abs(scale)))
    variance = np.maximum(power[::-1], _LEAST_VARIANCE * power[-1])
    return _Space(
        basis, turn, (mean @ turn).astype(np.complex64), variance,
        torch.from_numpy((about @ turn).astype(np.complex64)), sd,
    )  # fmt: skip


def _drawn(
    subspace: Subspace, ensemble: Ensemble | None, basis: BasisSet | None, count: int, seed: int,
    progress: Progress | None,
) -> np.ndarray:  # fmt: skip
    """Return coefficients (count, rank) of FIDs of the ensemble, synthesised in pieces."""
    parts = []
    for start in range(0, count, _PIECE):
        n, own_seed = min(_PIECE, count - start), seed + 1000 * (start // _PIECE)
        fids = sample(subspace.protocol, n, own_seed, ensemble=ensemble, basis=basis)
        parts.append(fids.metabolites.astype(np.complex128) @ subspace.basis.conj().T)
        if progress is not None:
            progress("ensemble", min(start + _PIECE, count), count, math.nan)
    return np.concatenate(parts)


def _train_autoencoder(
    networks: ManifoldNetworks, space: _Space, fresh: torch.Tensor, settings: TrainingSettings,
    generator: torch.Generator, progress: Progress | None, *, steps: int | None = None, name: str = "autoencoder",
) -> tuple[tuple[int, float, float], ...]:  # fmt: skip
    """Train E and D: D(E(x)) = x in the l2 norm of the FIDs."""
    whole = float(torch.as_tensor(space.variance).sum())
    parameters = [*networks.encoder.parameters(), *networks.decoder.parameters()]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return _power(networks.decode(networks.encode(x)) - x).mean() / whole

    def batches() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(space.x), (settings.batch,), generator=generator)
            yield loss(space.x[chosen])

    return _descend(
        parameters, batches(), lambda: float(loss(fresh)), steps or settings.autoencoder_steps, settings, name, progress
    )


def _train_projector(
    networks: ManifoldNetworks, space: _Space, fresh: torch.Tensor, settings: TrainingSettings,
    generator: torch.Generator, progress: Progress | None,
) -> tuple[tuple[int, float, float], ...]:  # fmt: skip
    """Train P and the tube on pairs of clean and noisy coordinates; E and D stay as they are (eq. 10)."""
    for parameter in [*networks.encoder.parameters(), *networks.decoder.parameters()]:
        parameter.requires_grad_(False)
    variance = networks.variance

    def loss(x: torch.Tensor, noise: torch.Tensor, draws: torch.Generator, weight: float = 1.0) -> torch.Tensor:
        y = x + torch.sqrt(noise / 2) * _normal(x.shape, draws)
        scale, y, relative = _rescaled(y, noise, space.mean)
        found, z = networks.project(y, relative)
        found = (found + torch.as_tensor(space.mean)) * scale - torch.as_tensor(space.mean)
        linear = (variance * noise / (variance + noise)).sum(-1)
        error = (_power(found - x) / linear).mean()
        return error + weight * (networks.encode(x) - z).square().mean() if weight else error

    def batches() -> Iterator[torch.Tensor]:
        while True:
            chosen = torch.randint(len(space.x), (settings.batch,), generator=generator)
            noise = _noise(settings.batch, space, settings.snr, variance, generator)
            yield loss(space.x[chosen], noise, generator, _LATENT_WEIGHT)

    fixed = torch.Generator().manual_seed(7)
    check = _noise(len(fresh), space, settings.snr, variance, fixed)
    return _descend(
        [*networks.projector.parameters(), networks.tube], batches(),
        lambda: float(loss(fresh, check, torch.Generator().manual_seed(8), 0.0)),
        settings.projector_steps, settings, "projector", progress,
    )  # fmt: skip


def _rescaled(
    y: torch.Tensor, noise: torch.Tensor, mean: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scale (n, 1), coordinates and noise of noisy coordinates, as `Manifold` finds them in data."""
    typical = torch.as_tensor(mean)
    a = y + typical
    scale = (a @ typical.conj() / _power(typical))[:, None]
    return scale, a / scale - typical, noise / (scale.real**2 + scale.imag**2)


def _noise(
    count: int, space: _Space, snr: tuple[float, float], variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw E|noise|^2 (count, rank): the same in all coordinates, or lower where a spatial prior smooths weak ones."""

    def uniform() -> torch.Tensor:
        return torch.rand(count, 1, generator=generator)

    level = torch.exp(math.log(snr[0]) + uniform() * math.log(snr[1] / snr[0]))
    white = 2 * (space.noise_at_snr_1 / level) ** 2 * torch.ones(1, len(variance))
    left = (variance / white / (0.3 + 30 * uniform())).clamp(max=1.0) ** (0.7 * uniform())
    return torch.where(uniform() < 0.6, white * left.clamp(min=0.02), white)


def _descend(
    parameters: Sequence[torch.Tensor], losses: Iterator[torch.Tensor], validate: Callable[[], float], steps: int,
    settings: TrainingSettings, name: str, progress: Progress | None,
) -> tuple[tuple[int, float, float], ...]:  # fmt: skip
    """Minimise by Adam with a cosine schedule; keep the parameters of the best validation; stop early."""
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=settings.learning_rate / 100)
    best, kept, waited, recent = math.inf, [p.detach().clone() for p in parameters], 0, 0.0
    curve: list[tuple[int, float, float]] = []
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss = next(losses)
        loss.backward()
        optimiser.step()
        schedule.step()
        recent += float(loss.detach())
        if step % _CHECK_EVERY and step != steps:
            continue
        with torch.no_grad():
            value = validate()
        curve.append((step, recent / (step % _CHECK_EVERY or _CHECK_EVERY), value))
        recent = 0.0
        if progress is not None:
            progress(name, step, steps, value)
        waited = 0 if value < best * (1 - _LEAST_GAIN) else waited + 1
        if value < best:
            best, kept = value, [p.detach().clone() for p in parameters]
        if waited >= settings.patience:
            break
    with torch.no_grad():
        for parameter, values in zip(parameters, kept, strict=True):
            parameter.copy_(values)
    return tuple(curve)


def _representation(
    space: _Space, fresh: torch.Tensor, settings: TrainingSettings, latent: int, networks: ManifoldNetworks,
    generator: torch.Generator, progress: Progress | None,
) -> tuple[dict[str, float], ...]:  # fmt: skip
    """Return what is lost of fresh FIDs by so many real numbers, linear and nonlinear (review, Figure 3)."""
    whole = float(_power(fresh + torch.as_tensor(space.mean)).sum())
    found = []
    for size in sorted({*(s for s in settings.latent_sizes if s <= 2 * len(space.mean)), latent}):
        trial = networks
        if size != latent:
            trial = space.networks(size, settings.hidden)
            _train_autoencoder(
                trial, space, fresh, settings, generator, progress, steps=settings.latent_steps, name=f"latent {size}"
            )
        with torch.no_grad():
            x = torch.cat([fresh.real, fresh.imag], dim=-1)
            linear = float((x - x @ trial.axes.T @ trial.axes).square().sum())
            nonlinear = float(_power(trial.decode(trial.encode(fresh)) - fresh).sum())
        found.append({
            "numbers": size, "linear": math.sqrt(linear / whole), "nonlinear": math.sqrt(nonlinear / whole),
        })  # fmt: skip
    return tuple(found)


def _errors(
    manifold: Manifold, space: _Space, fresh: torch.Tensor, settings: TrainingSettings, seed: int
) -> tuple[dict[str, float], ...]:
    """Return errors over fresh FIDs against SNR, white noise."""
    rng = np.random.default_rng(seed)
    clean = (fresh.numpy() + space.mean).astype(np.complex64)
    low, high = settings.snr
    found = []
    for snr in np.geomspace(low, high, 7):
        sd = space.noise_at_snr_1 / snr
        noise = sd * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))
        data = (clean + noise).astype(np.complex64)
        scale = manifold.scale(data)[:, None]
        about = space.variance / (space.variance + 2 * sd**2 / np.abs(scale) ** 2)
        linear = (space.mean + about * (data / scale - space.mean)) * scale
        projected = manifold.project_coefficients(data, 2 * sd**2)
        errors = {
            name: float(np.linalg.norm(values - clean) / np.linalg.norm(clean))
            for name, values in (("data", data), ("linear", linear), ("projector", projected))
        }
        found.append({"snr": float(snr), **errors})
    return tuple(found)


def _power(x: torch.Tensor) -> torch.Tensor:
    return (x.real.square() + x.imag.square()).sum(-1)


def _normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.complex(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
