"""The model store: folders of trained signal models, each ``NAME.safetensors`` (arrays) and ``NAME.json`` (its card).

The card says what the model is for, from what and how it was trained, and how good it is
(docs/reference/model-card.md); its hash ties it to the arrays. What is loaded is verified first, and never unpickled.
`find_model` looks for the model of a scan by tolerances, not by text: the frequency of a magnet differs from day to
day.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrsi_gadgets import __version__
from mrsi_gadgets.data import Geometry, Protocol
from mrsi_gadgets.errors import DataError, ModelError
from mrsi_gadgets.io.model_arrays import ModelSizes, model_of, packed, unpacked
from mrsi_gadgets.io.network_arrays import NetworkSizes, networks_of
from mrsi_gadgets.models.gate import FALSE_ALARMS, Gate
from mrsi_gadgets.models.manifold import Manifold
from mrsi_gadgets.models.spectrum_networks import SpectrumNetworks
from mrsi_gadgets.models.subspace import Subspace

if TYPE_CHECKING:
    from mrsi_gadgets.models.training import Trained

FORMAT, FORMAT_VERSION = "mrsi-gadgets signal model", 2

_SAME_DWELL = 1e-4
"""Relative: a scanner that rounds to a tenth of a microsecond. Moves a line 3 ppm from the reference by 0.0003 ppm."""
_SAME_DELAY_S = 5e-6
"""Turns a line 3 ppm from the reference by 0.7 degrees at 3 T, 1.6 degrees at 7 T."""
_SAME_ECHO_S = 1e-4
_SAME_FREQUENCY = 2e-3
"""Relative: moves a line 3 ppm from the reference by 0.006 ppm."""
_SAME_REFERENCE_PPM = 0.02

_LARGEST_CARD = 4 << 20
_LARGEST_ARRAYS = 512 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_NUMBERS = ("transmit_frequency_hz", "reference_ppm", "dwell_s", "acquisition_delay_s")
_OPTIONAL_NUMBERS = ("repetition_time_s", "flip_angle_deg", "field_strength_t")


@dataclass(frozen=True)
class Origin:
    """How a model came to be, as far as the trained model itself does not say it."""

    title: str
    ensemble: Mapping[str, Any]
    """As `Ensemble.describe` returns it."""
    basis: str
    """Sequence that was simulated, or name of the basis file."""
    training: Mapping[str, Any]
    """The training settings."""
    seed: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage -> wall time, with ``whole``."""
    threads: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    """Citations."""


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A verified model of the store."""

    name: str
    manifold: Manifold
    subspace: Subspace
    gate: Gate
    card: Mapping[str, Any]
    """docs/reference/model-card.md says what it holds."""
    networks: SpectrumNetworks | None = None
    """Networks that quantify spectra; None: the model was learned without."""

    @property
    def fingerprint(self) -> str:
        """Of the protocol that it was learned for."""
        return self.manifold.protocol.fingerprint()

    def provenance(self) -> dict[str, Any]:
        """Return what a result says of the model it was made with."""
        card = self.card
        return {
            "name": self.name, "sha256": card["arrays"]["sha256"], "fingerprint": self.fingerprint,
            "created": card["created"], "seed": card["seed"],
        }  # fmt: skip


def signal_protocol(protocol: Protocol) -> Protocol:
    """Return a protocol with what a signal model depends on alone: nothing of the patient, the scan or the image."""
    kept = {name: getattr(protocol, name) for name in ("nucleus", "n_times", *_NUMBERS, *_OPTIONAL_NUMBERS)}
    echoes = tuple(protocol.echo_times_s[:1])
    return Protocol(**kept, echo_times_s=echoes, geometry=Geometry((1, 1, 1), (10.0, 10.0, 10.0)), encoding="csi")


def model_stores(explicit: Path | None = None, site: Path | None = None) -> tuple[Path, ...]:
    """Return the folders that models are looked for in; they need not exist.

    Parameters
    ----------
    explicit : the one folder to use (else that of MRSI_MODELS); None: the user's own and the site's.
    site : folder of the site's recipes (else that of MRSI_CONFIG_DIR); its models lie in ``models``.
    """
    if explicit is None and os.environ.get("MRSI_MODELS"):
        explicit = Path(os.environ["MRSI_MODELS"])
    if explicit is not None:
        return (explicit,)
    if site is None and os.environ.get("MRSI_CONFIG_DIR"):
        site = Path(os.environ["MRSI_CONFIG_DIR"])
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    own: tuple[Path, ...] = ()
    with contextlib.suppress(RuntimeError):  # a service may run as somebody without a home
        # the XDG base directory specification: a relative path is to be ignored
        own = ((data if data.is_absolute() else Path("~/.local/share").expanduser()) / "mrsi-gadgets" / "models",)
    return own if site is None else (*own, site / "models")


def save_model(trained: Trained, folder: Path, name: str, origin: Origin) -> Path:
    """Write a trained model to a folder and return the path of its card; an older one of the same name is replaced.

    Both files are written whole under other names first. The card comes last: what has none is no model.

    Raises
    ------
    ModelError
        The model holds numbers that are not finite, the name is no file name, or the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ModelError(f"'{name}' is no name for a model; use letters, digits, _, - and .")
    data = packed(trained.manifold, trained.subspace, trained.gate, trained.networks)
    card = _card(trained, name, origin, data)
    try:
        text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (ValueError, TypeError) as problem:
        raise ModelError(
            f"the card of model '{name}' cannot be written ({problem}); training has diverged"
        ) from problem
    arrays, path = folder / f"{name}.safetensors", folder / f"{name}.json"
    parts = [target.with_name(f".{target.name}.{os.getpid()}.part") for target in (arrays, path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, content in zip(parts, (data, text.encode("utf-8")), strict=True):
            _write(part, content)
        path.unlink(missing_ok=True)
        parts[0].replace(arrays)
        parts[1].replace(path)
        _settle(folder)
    except OSError as problem:
        raise ModelError(f"{path} cannot be written ({problem.strerror}); choose another folder") from problem
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return path


def load_model(path: Path) -> StoredModel:
    """Load and verify a model.

    Parameters
    ----------
    path : its card or its arrays; the other file lies beside it.

    Raises
    ------
    ModelError
        A file is missing, damaged or altered, or of another version.
    """
    card_path = path.with_suffix(".json")
    card = read_card(card_path)
    protocol, sizes = _protocol_of(card, card_path.name), _sizes_of(card, card_path.name)
    if card.get("fingerprint") != protocol.fingerprint():
        raise ModelError(
            f"{card_path.name} is for {card.get('fingerprint')} but its protocol is {protocol.fingerprint()}; somebody "
            "has altered it, learn the model again"
        )
    arrays_path = card_path.with_suffix(".safetensors")
    data = _verified_bytes(arrays_path, card, card_path.name)
    more = _network_sizes_of(card, card_path.name)
    arrays = unpacked(data, sizes, arrays_path.name, more)
    parts = model_of(arrays, sizes, protocol, arrays_path.name)
    networks = None if more is None else networks_of(arrays, more, arrays_path.name)
    return StoredModel(card_path.stem, *parts, card, networks)


def read_card(path: Path) -> dict[str, Any]:
    """Read a card and check that it is one of this version.

    Raises
    ------
    ModelError
        It is missing, not readable, or the card of another version.
    """
    try:
        if path.stat().st_size > _LARGEST_CARD:
            raise ModelError(f"{path.name} is too large for a model's card; remove it from the model store")
        card = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as problem:
        raise ModelError(f"the model's card {path} cannot be read ({problem.strerror}); learn the model") from problem
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{path.name} is no valid JSON ({problem}); learn the model again") from problem
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ModelError(f"{path.name} is no card of a signal model; remove it from the model store")
    if card.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path.name} has format version {card.get('format_version')}, this version of mrsi-gadgets reads "
            f"{FORMAT_VERSION}; learn the model again"
        )
    return card


def find_model(
    stores: Sequence[Path],
    protocol: Protocol,
    *,
    warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> StoredModel | None:
    """Return the model that fits a scan, the newest where several do, or None.

    Parameters
    ----------
    stores : folders to look in (`model_stores`).
    protocol : the scan, of one echo time (`Protocol.of_echo`).
    warn : takes a sentence for each model that is damaged; it is left out.
    tell : takes a sentence that says why nothing was found.
    """
    fitting: list[tuple[str, Path]] = []
    nearest: list[tuple[int, str]] = []
    for path in [path for store in stores for path in sorted(store.glob("*.json"))]:
        try:
            card = read_card(path)
            differences = differences_of(_protocol_of(card, path.name), protocol)
        except ModelError as problem:
            _say(warn, f"{problem} (the model is left out)")
            continue
        if differences:
            nearest.append((len(differences), f"model '{path.stem}' {' and '.join(differences)}"))
        else:
            fitting.append((str(card.get("created", "")), path))
    for _, path in sorted(fitting, reverse=True):
        try:
            return load_model(path)
        except ModelError as problem:
            _say(warn, f"{problem} (the model is left out)")
    _say(tell, _why_none(stores, nearest, damaged=bool(fitting)))
    return None


def differences_of(model: Protocol, scan: Protocol) -> list[str]:
    """Return in what a model's protocol differs from a scan's by more than its FIDs allow; empty: it fits."""
    found = []
    if model.nucleus != scan.nucleus:
        found.append(f"is for {model.nucleus}, the scan is of {scan.nucleus}")
    if model.n_times != scan.n_times:
        found.append(f"has {model.n_times} points, the scan has {scan.n_times}")
    if abs(model.dwell_s / scan.dwell_s - 1) > _SAME_DWELL:
        found.append(f"has a dwell of {model.dwell_s * 1e6:.7g} us, the scan has {scan.dwell_s * 1e6:.7g}")
    if abs(model.acquisition_delay_s - scan.acquisition_delay_s) > _SAME_DELAY_S:
        delays = (f"{p.acquisition_delay_s * 1e6:g}" for p in (model, scan))
        found.append("has a delay of {} us, the scan has {}".format(*delays))
    echoes = [p.spin_echo_time_s for p in (model, scan)]
    if (echoes[0] is None) != (echoes[1] is None) or abs((echoes[0] or 0.0) - (echoes[1] or 0.0)) > _SAME_ECHO_S:
        kinds = ("FIDs" if te is None else f"echoes of TE {te * 1e3:g} ms" for te in echoes)
        found.append("is for {}, the scan has {}".format(*kinds))
    if abs(model.transmit_frequency_hz / scan.transmit_frequency_hz - 1) > _SAME_FREQUENCY:
        mhz = (f"{p.transmit_frequency_hz / 1e6:.3f}" for p in (model, scan))
        found.append("is for {} MHz, the scan has {}".format(*mhz))
    if abs(model.reference_ppm - scan.reference_ppm) > _SAME_REFERENCE_PPM:
        found.append(f"has 0 Hz at {model.reference_ppm:g} ppm, the scan at {scan.reference_ppm:g}")
    return found


def _why_none(stores: Sequence[Path], nearest: list[tuple[int, str]], *, damaged: bool) -> str:
    if damaged:
        return "the learned signal models that fit this scan are damaged"
    if nearest:
        return f"no learned signal model fits this scan: {min(nearest)[1]}"
    return f"there is no learned signal model in {' or '.join(map(str, stores)) or 'any folder'}"


def _say(listener: Callable[[str], None] | None, sentence: str) -> None:
    if listener is not None:
        listener(sentence)


def _card(trained: Trained, name: str, origin: Origin, data: bytes) -> dict[str, Any]:
    manifold, subspace = trained.manifold, trained.subspace
    protocol = signal_protocol(manifold.protocol)
    sizes = asdict(ModelSizes.of(manifold, subspace, trained.gate))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "title": origin.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": protocol.fingerprint(),
        "protocol": {
            "nucleus": protocol.nucleus, "n_times": protocol.n_times,
            **{key: getattr(protocol, key) for key in (*_NUMBERS, *_OPTIONAL_NUMBERS)},
            "echo_times_s": list(protocol.echo_times_s),
        },
        "signal": "FID" if protocol.spin_echo_time_s is None else "spin echo",
        "arrays": {
            "file": f"{name}.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
        },
        "sizes": sizes,
        "valid": {
            "peak_snr": list(manifold.snr_range),
            "noise_sd_at_peak_snr_1": manifold.noise_at_snr_1,
            "transmit_frequency_hz": [protocol.transmit_frequency_hz * (1 + s * _SAME_FREQUENCY) for s in (-1, 1)],
            "reference_ppm": [protocol.reference_ppm + s * _SAME_REFERENCE_PPM for s in (-1, 1)],
        },
        "ensemble": dict(origin.ensemble),
        "basis": origin.basis,
        "training": dict(origin.training),
        "seed": origin.seed,
        "errors": [dict(entry) for entry in trained.errors],
        "representation": [dict(entry) for entry in trained.representation],
        "subspace": {
            "metabolite_error": subspace.metabolite_error, "nuisance_error": subspace.nuisance_error,
            "nuisance_energy": list(subspace.nuisance_energy),
        },
        "gate": {"false_alarms": FALSE_ALARMS, "fids": origin.training["gate_samples"]},
        "curves": {stage: [list(point) for point in curve] for stage, curve in trained.curves.items()},
        "seconds": {stage: round(value, 2) for stage, value in origin.seconds.items()},
        "threads": origin.threads,
        "versions": {"mrsi-gadgets": __version__, "torch": version("torch"), "numpy": version("numpy")},
        "sources": dict(origin.sources),
        **({} if trained.networks is None else {"quantification": asdict(NetworkSizes.of(trained.networks))}),
    }  # fmt: skip


def _protocol_of(card: Mapping[str, Any], name: str) -> Protocol:
    """Return the protocol of a card; ModelError where a number is missing or none."""
    table = _table(card, "protocol", name)
    echoes = table.get("echo_times_s")
    if not isinstance(echoes, list) or not all(_is_number(te) for te in echoes):
        raise ModelError(f"protocol.echo_times_s of {name} is no list of numbers; learn the model again")
    values: dict[str, Any] = {key: _number(table, key, f"protocol.{key}", name) for key in _NUMBERS}
    for key in _OPTIONAL_NUMBERS:
        values[key] = None if table.get(key) is None else _number(table, key, f"protocol.{key}", name)
    try:
        return Protocol(
            nucleus=str(table.get("nucleus")), n_times=_whole(table, "n_times", "protocol.n_times", name),
            echo_times_s=tuple(float(te) for te in echoes), geometry=Geometry((1, 1, 1), (10.0, 10.0, 10.0)),
            encoding="csi", **values,
        )  # fmt: skip
    except DataError as problem:
        raise ModelError(f"the protocol of {name} is impossible ({problem}); learn the model again") from problem


def _sizes_of(card: Mapping[str, Any], name: str) -> ModelSizes:
    table = _table(card, "sizes", name)
    return ModelSizes(**{key: _whole(table, key, f"sizes.{key}", name) for key in ModelSizes.__dataclass_fields__})


def _network_sizes_of(card: Mapping[str, Any], name: str) -> NetworkSizes | None:
    """Return the sizes of the networks that quantify spectra, or None where the model has none."""
    if "quantification" not in card:
        return None
    table = _table(card, "quantification", name)
    label = "quantification.{}"
    return NetworkSizes(**{k: _whole(table, k, label.format(k), name) for k in NetworkSizes.__dataclass_fields__})


def _verified_bytes(path: Path, card: Mapping[str, Any], card_name: str) -> bytes:
    """Return the whole file of arrays, if it has the size and the hash that the card says."""
    table = _table(card, "arrays", card_name)
    size = _whole(table, "bytes", "arrays.bytes", card_name)
    try:
        found = path.stat().st_size
        if found != size or found > _LARGEST_ARRAYS:
            raise ModelError(
                f"{path.name} has {found} bytes but its card says {size}; copy it again or learn the model again"
            )
        data = path.read_bytes()
    except OSError as problem:
        raise ModelError(f"the model's arrays {path} cannot be read ({problem.strerror}); copy them again") from problem
    if hashlib.sha256(data).hexdigest() != table.get("sha256"):
        raise ModelError(
            f"{path.name} is not what its card says (SHA-256 differs): it was altered or belongs to another card; copy "
            "both again or learn the model again"
        )
    return data


def _table(card: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    found = card.get(key)
    if not isinstance(found, dict):
        raise ModelError(f"{name} lacks '{key}'; learn the model again")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _number(table: Mapping[str, Any], key: str, label: str, name: str) -> float:
    if not _is_number(table.get(key)):
        raise ModelError(f"{label} of {name} is {table.get(key)!r} and no number; learn the model again")
    return float(table[key])


def _whole(table: Mapping[str, Any], key: str, label: str, name: str) -> int:
    value = table.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ModelError(f"{label} of {name} is {value!r} and no whole number; learn the model again")
    return value


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _settle(folder: Path) -> None:
    """Have the names of a folder's files on the disk too, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
