"""The networks of a learned manifold: encoder E, decoder D and noise-conditioned projector P (eq. 8 to 10).

They work on coordinates: the coefficients of an FID on the rows of a subspace, divided by the FID's own complex scale,
so that scale and phase never reach a network. Each network is a linear part, set from the principal axes of the
ensemble, and a perceptron that corrects it and starts at zero; training starts at the best linear model.

This is the one module of the mathematics that names torch. Arrays of any namespace come in; torch and CuPy arrays are
shared on their device (DLPack), NumPy arrays without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.utils.dlpack
from torch import nn

from mrsi_gadgets.arrays import Array, batch_size, is_numpy, like, to_numpy

MOST_FIDS = 1 << 14
"""FIDs that pass through the networks at once."""
_LOG_RANGE = (-8.0, 12.0)
"""Range of log(signal variance / noise variance) that the projector is told apart."""


class ManifoldNetworks(nn.Module):
    """Encoder, decoder and projector over `rank` complex coordinates with zero mean and known variance.

    Parameters
    ----------
    rank : number of coordinates.
    latent : real numbers that the encoder leaves of a FID.
    hidden : width of the two hidden layers of each network.
    """

    variance: torch.Tensor
    axes: torch.Tensor
    spread: torch.Tensor

    def __init__(self, rank: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.rank, self.latent = rank, latent
        self.encoder = _perceptron(2 * rank, hidden, latent)
        self.decoder = _perceptron(latent, hidden, 2 * rank)
        self.projector = _perceptron(3 * rank, hidden, latent + rank)
        self.register_buffer("variance", torch.ones(rank))
        self.register_buffer("axes", torch.eye(latent, 2 * rank))
        self.register_buffer("spread", torch.ones(latent))
        self.tube = nn.Parameter(torch.zeros(rank))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latent (n, latent) of clean coordinates (n, rank)."""
        return _real(x) @ self.axes.T / self.spread + self.encoder(self._features(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the coordinates (n, rank) of a latent (n, latent)."""
        return _complex((z * self.spread) @ self.axes) + _complex(self.decoder(z)) * torch.sqrt(self.variance)

    def project(self, y: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the likely coordinates of noisy ones, and their latent.

        The FID is D(P(y)) and a tube about it: what the manifold leaves of the data counts with the gain w / (w + v),
        w the variance about the manifold that the network expects and v that of the noise. So the result is the
        manifold's where noise is strong, and the data's where there is none.

        Parameters
        ----------
        y : (n, rank) complex coordinates.
        noise : (n, rank) E|noise|^2 of each.
        """
        gain = self.variance / (self.variance + noise)
        linear = gain * y
        told = torch.log(self.variance / noise).clamp(*_LOG_RANGE) / 4
        out = self.projector(torch.cat([self._features(linear), told], dim=-1))
        z = _real(linear) @ self.axes.T / self.spread + out[:, : self.latent]
        on_manifold = self.decode(z)
        about = self.variance * torch.exp((self.tube + out[:, self.latent :]).clamp(-20.0, 5.0))
        return on_manifold + about / (about + noise) * (y - on_manifold), z

    def set_linear(self, variance: np.ndarray, axes: np.ndarray, spread: np.ndarray) -> None:
        """Set the linear parts: variance (rank,), principal axes (latent, 2 rank) and the SD along them (latent,)."""
        for buffer, values in ((self.variance, variance), (self.axes, axes), (self.spread, spread)):
            buffer.copy_(torch.as_tensor(np.array(values), dtype=torch.float32))

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """Return coordinates as the perceptrons see them: in units of their SD, what is far out drawn in."""
        return torch.asinh(_real(x / torch.sqrt(self.variance)))


def build(rank: int, latent: int, hidden: int, weights: Mapping[str, np.ndarray]) -> ManifoldNetworks:
    """Return networks with these weights, ready for use.

    Raises
    ------
    RuntimeError
        Names or shapes of the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away; nobody else's draws may change
        networks = ManifoldNetworks(rank, latent, hidden)
    networks.load_state_dict({name: torch.as_tensor(np.array(value)) for name, value in weights.items()})
    return networks.eval().requires_grad_(False)


def weights_of(networks: ManifoldNetworks) -> dict[str, np.ndarray]:
    """Return all parameters and buffers by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in networks.state_dict().items()}


def as_torch(x: Array) -> torch.Tensor:
    """Return `x` as a torch tensor: the same memory where it is NumPy, torch or CuPy.

    Of another library, or CuPy's where this torch cannot use the device, it is a copy on the host.
    """
    if isinstance(x, torch.Tensor):
        return x.resolve_conj()
    if is_numpy(x):
        return torch.from_numpy(np.require(x, requirements=("C", "W")))
    if hasattr(x, "__cuda_array_interface__") and torch.cuda.is_available():
        return torch.utils.dlpack.from_dlpack(x)
    return torch.from_numpy(np.array(to_numpy(x)))


def from_torch(x: torch.Tensor, reference: Array) -> Array:
    """Return a tensor as an array of `reference`'s namespace, on its device."""
    if isinstance(reference, torch.Tensor):
        return x
    if hasattr(reference, "__cuda_array_interface__") and x.is_cuda:
        from array_api_compat import array_namespace

        return array_namespace(reference).from_dlpack(x)
    return x.numpy() if is_numpy(reference) else like(x.numpy(), reference)


def in_batches(function: Callable[..., torch.Tensor], first: Array, *others: Array) -> Array:
    """Return `function` of rows of the arrays, at most `MOST_FIDS` at a time, in the namespace of `first`."""
    tensors = [as_torch(x) for x in (first, *others)]
    most = batch_size(MOST_FIDS)
    with torch.inference_mode():
        parts = [
            function(*(tensor[start : start + most] for tensor in tensors))
            for start in range(0, max(1, len(tensors[0])), most)
        ]
        return from_torch(torch.cat(parts).clone(), first)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)


def _real(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.real, x.imag], dim=-1)


def _complex(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.complex(x[..., :half], x[..., half:])
