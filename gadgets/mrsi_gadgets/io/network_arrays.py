"""The arrays of the networks that quantify spectra, as part of a signal model's file; models without them have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mrsi_gadgets.errors import DataError, ModelError
from mrsi_gadgets.models.spectrum_networks import N_PARAMETERS, SpectrumNetworks, shapes_of_layers

PREFIX = "quantification."
_WEIGHTS = ("regressor", "extractor")


@dataclass(frozen=True)
class NetworkSizes:
    """The whole numbers from which the shapes of both networks follow; the table `quantification` of a card."""

    points: int
    hidden: int
    axes: int

    @classmethod
    def of(cls, networks: SpectrumNetworks) -> NetworkSizes:
        """Return those of networks in memory."""
        return cls(networks.points, networks.hidden, len(networks.axes))

    def layout(self, n_times: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return name -> (type, shape) of every array."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "match": ("F32", (n_times, 2)),
            "window": ("F64", (2,)),
            "size": ("F64", (1,)),
            "ranges": ("F32", (3, N_PARAMETERS)),
            "axes": ("F32", (self.axes, self.points)),
            "outputs": ("F32", (2, self.axes)),
        }
        for name, outputs in zip(_WEIGHTS, (N_PARAMETERS, self.axes), strict=True):
            layers = shapes_of_layers(self.points, self.hidden, outputs)
            found |= {f"{name}.{key}": ("F32", shape) for key, shape in layers.items()}
        return {PREFIX + name: entry for name, entry in found.items()}


def arrays_of(networks: SpectrumNetworks) -> dict[str, np.ndarray]:
    """Return all arrays of the networks by name."""
    match = np.ascontiguousarray(networks.match)
    found: dict[str, np.ndarray] = {
        "match": match.view(np.float32).reshape(-1, 2),
        "window": np.array(networks.window_ppm, np.float64),
        "size": np.array([networks.size], np.float64),
        "ranges": np.stack([networks.lower, networks.upper, networks.centre]),
        "axes": np.ascontiguousarray(networks.axes),
        "outputs": np.stack([networks.spread, networks.typical]),
    }
    for name, weights in (("regressor", networks.regressor), ("extractor", networks.extractor)):
        found |= {f"{name}.{key}": np.ascontiguousarray(value) for key, value in weights.items()}
    return {PREFIX + name: values for name, values in found.items()}


def networks_of(arrays: Mapping[str, np.ndarray], sizes: NetworkSizes, name: str) -> SpectrumNetworks:
    """Return the networks of checked arrays; ModelError where they cannot be."""
    own = {key.removeprefix(PREFIX): values for key, values in arrays.items() if key.startswith(PREFIX)}
    low, high = own["window"].tolist()
    ranges = own["ranges"]
    if not ((ranges[0] < ranges[2]) & (ranges[2] < ranges[1])).all() or not (own["outputs"][0] > 0).all():
        raise ModelError(f"the networks of {name} have ranges that cannot be; learn the model again")
    try:
        return SpectrumNetworks(
            (low, high), sizes.points, sizes.hidden,
            np.ascontiguousarray(own["match"]).view(np.complex64)[:, 0], float(own["size"][0]),
            ranges[0], ranges[1], ranges[2], own["axes"], own["outputs"][0], own["outputs"][1],
            *({key.removeprefix(f"{w}."): v for key, v in own.items() if key.startswith(f"{w}.")} for w in _WEIGHTS),
        )  # fmt: skip
    except DataError as problem:
        raise ModelError(f"{name} contradicts its card ({problem}); learn the model again") from problem
