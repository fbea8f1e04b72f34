"""The layers of the networks that quantify spectra, and their training: convolutions, then two hidden layers.

This names torch, as `networks` does; `spectrum_networks` says what goes in and comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mrsi_gadgets.arrays import Array
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.models.networks import as_torch
from mrsi_gadgets.models.spectrum_networks import KERNELS, Name, SpectrumNetworks, left_of

_STEP = 0.3
"""Share of a parameter's range that an output of one spans."""
_TOLD = (-6.0, 4.0)
"""Range of log(scale / noise) that is told apart."""


class SpectrumNetwork(nn.Module):
    """Convolutions, then two hidden layers; the last layer starts at zero.

    Parameters
    ----------
    points : of the spectrum.
    hidden : width of the hidden layers.
    outputs : real numbers.
    """

    def __init__(self, points: int, hidden: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 2
        for width, kernel in KERNELS:
            layers += [nn.Conv1d(channels, width, kernel, stride=2, padding=kernel // 2), nn.SiLU()]
            channels = width
        self.convolutions = nn.Sequential(*layers)
        self.first = nn.Linear(channels * left_of(points) + 1, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, spectra: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Return (n, outputs) for complex spectra (n, points) over their scale, and log(scale / noise) (n,)."""
        x = torch.asinh(torch.stack([spectra.real, spectra.imag], dim=1))
        x = self.convolutions(x).flatten(1)
        level = told.clamp(*_TOLD)[:, None] / 2
        x = nn.functional.silu(self.first(torch.cat([x, level], dim=1)))
        return self.last(nn.functional.silu(self.second(x)) + x)


def in_units(networks: SpectrumNetworks, name: Name, out: torch.Tensor) -> torch.Tensor:
    """Return what the outputs of a network stand for: parameters within their range, or coefficients on the axes."""

    def constant(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, device=out.device)

    if name == "extractor":
        return constant(networks.typical) + out * constant(networks.spread)
    lower, upper, centre = map(constant, (networks.lower, networks.upper, networks.centre))
    return lower + (upper - lower) * torch.sigmoid(torch.logit((centre - lower) / (upper - lower)) + _STEP * out)


def build_network(points: int, hidden: int, outputs: int, weights: Mapping[str, np.ndarray]) -> SpectrumNetwork:
    """Return a network with these weights, ready for use."""
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away; nobody else's draws may change
        network = SpectrumNetwork(points, hidden, outputs)
    network.load_state_dict({name: torch.as_tensor(np.array(value)) for name, value in weights.items()})
    return network.eval().requires_grad_(False)


def new_weights(points: int, hidden: int, outputs: int, seed: int) -> dict[str, np.ndarray]:
    """Return the weights of an untrained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _weights_of(SpectrumNetwork(points, hidden, outputs))


Batch = tuple[np.ndarray, np.ndarray, Any]
"""Spectra (n, points) complex64 and log(scale / noise) (n,) for the network, and whatever the loss wants to know."""
Loss = Callable[[Array, Any], Array]
"""From what the network returns (an array of torch, to be differentiated through) and the rest of the batch: one
number."""
Curve = tuple[tuple[int, float, float], ...]
"""(step, training loss since the last, loss on what training does not see)."""


def descend(
    networks: SpectrumNetworks, name: Name, batches: Callable[[int], Batch], loss: Loss, *, steps: int,
    learning_rate: float, check: Batch | None = None, progress: Callable[[int, float], None] | None = None,
    check_every: int = 100,
) -> tuple[SpectrumNetworks, Curve]:  # fmt: skip
    """Train one of the networks by Adam with a cosine schedule; return them, and how the loss fell.

    Parameters
    ----------
    networks : where to start.
    name : ``regressor`` or ``extractor``.
    batches : the batch of step 0, 1, ...
    loss : of the parameters within their range, or of the coefficients on the axes.
    steps, learning_rate, check_every : of the optimiser; `check_every` steps are a stretch.
    check : what training does not see; None: there is none, and the training loss stands in its place.
    progress : told steps done and the loss of the check.
    """
    start = getattr(networks, name)
    network = build_network(networks.points, networks.hidden, networks.outputs(name), start).requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps), eta_min=learning_rate / 50)
    curve: list[tuple[int, float, float]] = []
    recent, since = 0.0, 0

    def value_of(batch: Batch) -> torch.Tensor:
        spectra, level, rest = batch
        return loss(in_units(networks, name, network(as_torch(spectra), as_torch(level))), rest)

    for step in range(steps):
        optimiser.zero_grad()
        value = value_of(batches(step))
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        recent, since = recent + float(value.detach()), since + 1
        if since == check_every or step == steps - 1:
            with torch.no_grad():
                unseen = recent / since if check is None else float(value_of(check))
            curve.append((step + 1, recent / since, unseen))
            recent, since = 0.0, 0
            if progress is not None:
                progress(step + 1, unseen)
    if not all(math.isfinite(value) for point in curve for value in point):
        raise DataError(f"training of the {name} has diverged; lower learning_rate")
    changed = _weights_of(network)
    if name == "regressor":
        return replace(networks, regressor=changed), tuple(curve)
    return replace(networks, extractor=changed), tuple(curve)


def constant(values: Array, reference: Array) -> Array:
    """Return constants as arrays of torch beside `reference`, for a loss."""
    return as_torch(values).to(reference.device)


def _weights_of(network: SpectrumNetwork) -> dict[str, np.ndarray]:
    return {key: value.detach().cpu().numpy().copy() for key, value in network.state_dict().items()}
