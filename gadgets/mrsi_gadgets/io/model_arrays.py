"""The arrays of a signal model as bytes of a safetensors file, and back, with every size and number checked.

Complex arrays are stored as pairs of real ones (a last axis of 2), so that any reader of the format can use them. Bytes
are looked at before anything is made of them: the header must lie inside of the file, and hold exactly the arrays,
types and shapes that the model's card announces. What the gate shares with manifold and subspace is stored once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import DataError, ModelError
from mrsi_gadgets.io.network_arrays import NetworkSizes, arrays_of
from mrsi_gadgets.models.gate import CONSTANTS, RATES, STATISTICS, TAILS, Gate
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.models.subspace import Subspace

_LARGEST_HEADER = 1 << 20
_TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "U8": np.uint8}
_COVARIANCES = ("metabolite_covariance", "water_covariance", "lipid_covariance")
_WEIGHTS = "manifold.weights."
_GATE = "gate."
_POSITIVE = ("levels", "power", "too_noisy")
"""Arrays of the gate."""
_LARGEST_TRANSFORM = 8
"""Times the points of an FID."""


@dataclass(frozen=True)
class ModelSizes:
    """The whole numbers of a model, from which all shapes follow."""

    n_times: int
    rank: int
    """Rows of the manifold."""
    latent: int
    hidden: int
    subspace_rank: int
    metabolite_rank: int
    seed: int
    """Of the subspace's draw."""
    gate_levels: int
    gate_lines: int

    @classmethod
    def of(cls, manifold: Manifold, subspace: Subspace, gate: Gate) -> ModelSizes:
        """Return those of a model in memory."""
        return cls(
            manifold.protocol.n_times, manifold.rank, manifold.latent, manifold.hidden, subspace.rank,
            subspace.metabolite_rank, subspace.seed, len(gate.levels), len(gate.frequencies),
        )  # fmt: skip

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return name -> (type, shape) of every array of the file."""
        rows, width, inputs = self.rank, self.hidden, 2 * self.rank
        shapes: dict[str, tuple[int, ...]] = {"variance": (rows,), "axes": (self.latent, inputs)}
        shapes |= {"spread": (self.latent,), "tube": (rows,)}
        networks = {
            "encoder": (inputs, self.latent), "decoder": (self.latent, inputs),
            "projector": (3 * rows, self.latent + rows),
        }  # fmt: skip
        for name, (first, last) in networks.items():
            for layer, (into, out) in {0: (first, width), 2: (width, width), 4: (width, last)}.items():
                shapes |= {f"{name}.{layer}.weight": (out, into), f"{name}.{layer}.bias": (out,)}
        square = (self.subspace_rank, self.subspace_rank, 2)
        levels, lines = self.gate_levels, (len(RATES), self.gate_lines)
        return {
            "manifold.basis": ("F32", (rows, self.n_times, 2)),
            "manifold.mean": ("F32", (rows, 2)),
            "manifold.numbers": ("F64", (3,)),
            "subspace.basis": ("F32", (self.subspace_rank, self.n_times, 2)),
            "subspace.numbers": ("F64", (4,)),
            **{f"subspace.{name}": ("F64", square) for name in _COVARIANCES},
            **{_WEIGHTS + name: ("F32", shape) for name, shape in shapes.items()},
            "gate.match": ("F32", (self.n_times, 2)),
            "gate.frequencies": ("I64", (self.gate_lines,)),
            "gate.held": ("U8", lines),
            "gate.levels": ("F64", (levels,)),
            "gate.power": ("F32", (levels, *lines)),
            "gate.whiteners": ("F32", (levels, rows, rows, 2)),
            "gate.quantiles": ("F32", (levels, len(STATISTICS) + 1, len(TAILS))),
            "gate.transform": ("I64", (1,)),
            "gate.too_noisy": ("F64", (1,)),
            "gate.constants": ("F64", (len(CONSTANTS),)),
        }


def packed(manifold: Manifold, subspace: Subspace, gate: Gate, networks: SpectrumNetworks | None = None) -> bytes:
    """Return the bytes of a model's file; equal models give equal bytes.

    Raises
    ------
    ModelError
        An array is not finite, or not of the type and shape that a model has; the gate is that of another model.
    """
    arrays = {
        "manifold.basis": _pairs(manifold.basis),
        "manifold.mean": _pairs(manifold.mean),
        "manifold.numbers": np.array([manifold.noise_at_snr_1, *manifold.snr_range]),
        "subspace.basis": _pairs(subspace.basis),
        "subspace.numbers": np.array([*subspace.nuisance_energy, subspace.metabolite_error, subspace.nuisance_error]),
        **{f"subspace.{name}": _pairs(getattr(subspace, name)) for name in _COVARIANCES},
        **{_WEIGHTS + name: np.ascontiguousarray(values) for name, values in manifold.weights.items()},
    }
    shared = _shared(manifold, subspace)
    for name, values in gate.arrays().items():
        if name not in shared:
            arrays[_GATE + name] = _plain(values)
        elif not np.array_equal(values, shared[name]):
            raise ModelError(f"the gate of the trained model has other {name} than the model; calibrate it again")
    arrays[_GATE + "constants"] = np.array(CONSTANTS)
    if networks is not None:
        arrays |= arrays_of(networks)
    found = {name: (_type_of(values), values.shape) for name, values in arrays.items()}
    more = None if networks is None else NetworkSizes.of(networks)
    check_layout(found, ModelSizes.of(manifold, subspace, gate), "the trained model", more)
    _check_numbers(arrays, "the trained model", "training has diverged; lower learning_rate")
    return save(arrays)


def unpacked(data: bytes, sizes: ModelSizes, name: str, networks: NetworkSizes | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a file's bytes.

    Parameters
    ----------
    data : the whole file.
    sizes : what its card says.
    name : the file, for messages.
    networks : sizes of the networks that quantify spectra, where the card has them.

    Raises
    ------
    ModelError
        The bytes are no safetensors file, hold other arrays than the card says, numbers that are not finite, or a gate
        of another version.
    """
    check_layout(_stored_layout(data, name), sizes, name, networks)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError) as problem:
        raise ModelError(f"{name} is no valid safetensors file ({problem}); learn the model again") from problem
    _check_numbers(arrays, name, "learn the model again")
    if arrays[_GATE + "constants"].tolist() != list(CONSTANTS):
        raise ModelError(f"the gate of {name} was calibrated by another version of mrsi-gadgets; learn the model again")
    return arrays


def model_of(
    arrays: Mapping[str, np.ndarray], sizes: ModelSizes, protocol: Protocol, name: str
) -> tuple[Manifold, Subspace, Gate]:
    """Return manifold, subspace and gate of checked arrays (`unpacked`); ModelError where they contradict the card."""
    noise, low, high = arrays["manifold.numbers"].tolist()
    water, lipids, metabolite_error, nuisance_error = arrays["subspace.numbers"].tolist()
    weights = {key.removeprefix(_WEIGHTS): arrays[key] for key in arrays if key.startswith(_WEIGHTS)}
    metabolites, water_covariance, lipid_covariance = (_complex(arrays[f"subspace.{key}"]) for key in _COVARIANCES)
    try:
        manifold = Manifold(
            _complex(arrays["manifold.basis"]), _complex(arrays["manifold.mean"]), sizes.latent, sizes.hidden, weights,
            protocol, (low, high), noise,
        )  # fmt: skip
        subspace = Subspace(
            _complex(arrays["subspace.basis"]), sizes.metabolite_rank, metabolites, water_covariance, lipid_covariance,
            (water, lipids), protocol, metabolite_error, nuisance_error, sizes.seed,
        )  # fmt: skip
        gate = Gate.of_arrays(protocol, _gate_arrays(arrays) | _shared(manifold, subspace))
    except DataError as problem:
        raise ModelError(f"{name} contradicts its card ({problem}); learn the model again") from problem
    return manifold, subspace, gate


def check_layout(
    found: Mapping[str, tuple[str, tuple[int, ...]]], sizes: ModelSizes, name: str, networks: NetworkSizes | None = None
) -> None:
    """Refuse arrays that are not exactly those of a model of these sizes."""
    wanted = sizes.layout() | ({} if networks is None else networks.layout(sizes.n_times))
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ModelError(f"{name} lacks the array {missing[0]}; learn the model again")
    extra = [key for key in found if key not in wanted]
    if extra:
        raise ModelError(f"{name} holds an array {extra[0]} that no model has; learn the model again")
    for key, (want_kind, want_shape) in wanted.items():
        kind, shape = found[key]
        if (kind, tuple(shape)) != (want_kind, want_shape):
            raise ModelError(
                f"{key} of {name} is {kind} {list(shape)} but has to be {want_kind} {list(want_shape)}; learn the "
                "model again"
            )


def _stored_layout(data: bytes, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return name -> (type, shape) from the header: 8 bytes of its length, then JSON."""
    wrong = f"{name} is no safetensors file"
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LARGEST_HEADER):
        raise ModelError(f"{wrong}: it begins with a header of {length} bytes; learn the model again")
    try:
        header = json.loads(data[8 : 8 + length])
        entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        return {key: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for key, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ModelError(f"{wrong}: its header cannot be read; learn the model again") from problem


def _check_numbers(arrays: Mapping[str, np.ndarray], name: str, remedy: str) -> None:
    for key, values in arrays.items():
        if not np.isfinite(values).all():
            raise ModelError(f"{key} of {name} holds values that are not finite; {remedy}")
    for key in (*(_WEIGHTS + k for k in ("variance", "spread")), "manifold.numbers", *(_GATE + k for k in _POSITIVE)):
        if not (arrays[key] > 0).all():
            raise ModelError(f"{key} of {name} holds values that are not positive; {remedy}")
    transform, n_times = int(arrays["gate.transform"][0]), len(arrays["gate.match"])
    places, levels = arrays["gate.frequencies"], arrays["gate.levels"]
    within = n_times <= transform <= _LARGEST_TRANSFORM * n_times and ((places >= 0) & (places < transform)).all()
    if not within or len(levels) < 2 or not (np.diff(levels) > 0).all() or arrays["gate.held"].max(initial=0) > 1:
        raise ModelError(f"the gate of {name} has frequencies, levels or flags that cannot be; {remedy}")


def _shared(manifold: Manifold, subspace: Subspace) -> dict[str, np.ndarray]:
    """Return the arrays of the gate that manifold and subspace have already."""
    return {"rows": manifold.basis, "nuisance": subspace.basis[subspace.metabolite_rank :]}


def _gate_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the stored arrays of a gate as `Gate.arrays` has them."""
    own = {key.removeprefix(_GATE): values for key, values in arrays.items() if key.startswith(_GATE)}
    for key in ("match", "whiteners"):
        own[key] = _complex(own[key])
    for key in ("transform", "too_noisy"):
        own[key] = own[key][0]
    return own | {"held": own["held"].astype(bool)}


def _plain(values: np.ndarray) -> np.ndarray:
    """Return an array of the gate in a stored type: complex as pairs, truth values as 0 and 1, a number as one."""
    if np.iscomplexobj(values):
        return _pairs(values)
    return np.atleast_1d(np.ascontiguousarray(values.astype(np.uint8) if values.dtype == bool else values))


def _type_of(values: np.ndarray) -> str:
    return next((kind for kind, dtype in _TYPES.items() if values.dtype == dtype), str(values.dtype))


def _pairs(values: np.ndarray) -> np.ndarray:
    """Return complex values as a last axis of real and imaginary part."""
    values = np.ascontiguousarray(values)
    return values.view(values.real.dtype).reshape(*values.shape, 2)


def _complex(pairs: np.ndarray) -> np.ndarray:
    kind = np.complex64 if pairs.dtype == np.float32 else np.complex128
    return np.ascontiguousarray(pairs).view(kind)[..., 0]
