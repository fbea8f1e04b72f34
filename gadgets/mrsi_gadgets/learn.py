"""Signal models before the scan: a protocol becomes trained models in the store, each with its card and picture.

A protocol is a learning protocol (a TOML file, or a shipped one by name) or a raw MRD file: whoever has one scan of a
sequence needs to write nothing down.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import threadpoolctl
from tqdm import tqdm

from mrsi_gadgets.arrays import n_threads
from mrsi_gadgets.data import Protocol
from mrsi_gadgets.errors import ConfigError, ModelError
from mrsi_gadgets.io.learning import LearningProtocol, find_learning_protocol, read_learning_protocol
from mrsi_gadgets.io.model_store import Origin, load_model, save_model, signal_protocol
from mrsi_gadgets.output.model_card import ExampleFid, draw_model
from mrsi_gadgets.physics.basis import BasisSet, metabolite_basis
from mrsi_gadgets.physics.ensemble import Ensemble, default_ensemble, noise_sd_at_snr, sample

if TYPE_CHECKING:
    from mrsi_gadgets.models.manifold import Manifold
    from mrsi_gadgets.models.training import Trained, TrainingSettings

_RAW_SUFFIXES = (".h5", ".hdf5", ".mrd")
_NOTHING: Mapping[str, str] = MappingProxyType({})
_EXAMPLE_SEED = 5
"""Added to the model's seed: FIDs that training has not seen."""

Tell = Callable[[str], None]


def read_target(
    wanted: str, settings: Mapping[str, str] = _NOTHING, *, sequence: str | None = None, warn: Tell | None = None
) -> LearningProtocol:
    """Return what is to be learned: a shipped learning protocol, a TOML file, or the protocol of a raw file.

    Parameters
    ----------
    wanted
        Name or path.
    settings, sequence
        Profile keys over a raw file's header, and its sequence description, as `mrsi check` takes them.
    warn
        Takes what is odd about the header.

    Raises
    ------
    ConfigError
        There is no such file, or it says something that cannot be.
    DataError
        The raw file is damaged, or its header does not describe a scan.
    """
    path = Path(wanted)
    if path.suffix.lower() == ".dat":
        raise ConfigError(f"{path.name} is a Siemens twix file; convert it first (mrsi convert {path.name} -o scan.h5)")
    if path.suffix.lower() not in _RAW_SUFFIXES:
        if settings or sequence:
            raise ConfigError("--set and --sequence say how the header of a raw file is read; leave them out")
        return read_learning_protocol(find_learning_protocol(wanted))
    protocol = _protocol_of_scan(path, settings, sequence, warn or (lambda sentence: None))
    echoes = tuple(protocol.of_echo(echo) for echo in range(protocol.n_echoes))
    return LearningProtocol(
        name=f"protocol of {path.name}", protocol=protocol, protocols=echoes, ensemble=default_ensemble(protocol),
        bases=(None,) * len(echoes), training={}, sources={}, path=path,
    )  # fmt: skip


def _protocol_of_scan(path: Path, settings: Mapping[str, str], sequence: str | None, warn: Tell) -> Protocol:
    from mrsi_gadgets.io.mrd_file import read_scan
    from mrsi_gadgets.mrd.adapters import adapted
    from mrsi_gadgets.mrd.header import parse_header
    from mrsi_gadgets.mrd.profile import read_protocol

    return read_protocol(adapted(parse_header(read_scan(path).header_xml), sequence), settings, warn=warn)


def learn(target: LearningProtocol, folder: Path, *, seed: int = 0, bar: bool = False, tell: Tell) -> list[Path]:
    """Train the models of a protocol, one for each echo time, and write each with its card and picture.

    Parameters
    ----------
    target
        What to learn.
    folder
        The model store.
    seed
        Same seed, same model (to the bit on the same number of threads).
    bar
        Show bars on stderr.
    tell
        Takes a line when a stage has ended.

    Returns
    -------
        The cards. Whatever interrupts it, what lies in the folder is whole.

    Raises
    ------
    ConfigError
        [training] is wrong.
    ModelError
        The folder cannot be written, or training has diverged.
    """
    from mrsi_gadgets.models.training import TrainingSettings

    settings = TrainingSettings.read(target.training)
    _check_folder(folder)
    names = model_names(target)
    cards = []
    for name, protocol, basis in zip(names, target.protocols, target.bases, strict=True):
        if len(names) > 1:
            tell(f"echo time {protocol.echo_times_s[0] * 1e3:g} ms: model {name}")
        cards.append(_learn_one(target, name, signal_protocol(protocol), basis, settings, folder, seed, bar, tell))
    return cards


def model_names(target: LearningProtocol) -> list[str]:
    """Return the names of a protocol's models: that of its file, with the echo time where there are several."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", target.path.stem).lstrip(".-")[:80] or "model"
    if len(target.protocols) == 1:
        return [stem]
    return [f"{stem}_te{protocol.echo_times_s[0] * 1e3:g}" for protocol in target.protocols]


def describe_model(card: Mapping[str, Any]) -> str:
    """Return a model's errors as a small table."""
    whole = card["seconds"].get("whole", math.nan)
    rows = [
        f"{card['name']}: {card['fingerprint']}, {card['sizes']['latent']} numbers on {card['sizes']['rank']} rows, "
        f"trained in {whole:.0f} s",
        _row("  peak SNR", [f"{entry['snr']:.3g}" for entry in card["errors"]]),
    ]
    for key, text in (("data", "data"), ("linear", "best linear estimate"), ("projector", "projector")):
        rows.append(_row(f"    error of {text}", [f"{entry[key]:.3f}" for entry in card["errors"]]))
    rows.append(_row("  real numbers for one FID", [f"{entry['numbers']:.0f}" for entry in card["representation"]]))
    for key in ("linear", "nonlinear"):
        rows.append(_row(f"    error of {key} models", [f"{entry[key]:.3f}" for entry in card["representation"]]))
    return "\n".join(rows)


def _row(label: str, values: list[str]) -> str:
    return f"{label:<34}" + "".join(f"{value:>8}" for value in values)


def _learn_one(
    target: LearningProtocol, name: str, protocol: Protocol, basis: BasisSet | None, settings: TrainingSettings,
    folder: Path, seed: int, bar: bool, tell: Tell,
) -> Path:  # fmt: skip
    from mrsi_gadgets.models.training import train

    begin = time.perf_counter()
    stages = _Stages(settings.patience, bar, tell)
    source = basis or metabolite_basis(protocol, target.ensemble.names)
    with _threads(n_threads()), stages:
        trained = train(
            protocol, ensemble=target.ensemble, basis=basis, settings=settings, seed=seed, progress=stages.progress
        )
        if settings.quantification_steps:
            trained = _with_networks(trained, target.ensemble, basis, settings, seed, stages)
    origin = Origin(
        target.name, target.ensemble.describe(), source.source, asdict(settings), seed,
        stages.seconds | {"whole": time.perf_counter() - begin}, n_threads(), target.sources,
    )  # fmt: skip
    path = save_model(trained, folder, name, origin)
    card = load_model(path).card  # what was written can be read, or nobody is told that it is there
    examples = _examples(trained.manifold, target.ensemble, basis, seed + _EXAMPLE_SEED)
    draw_model(path.with_suffix(".png"), card, protocol, examples)
    return path


def _with_networks(
    trained: Trained, ensemble: Ensemble, basis: BasisSet | None, settings: TrainingSettings, seed: int, stages: _Stages
) -> Trained:
    """Train the networks that quantify spectra, for the physical model of the fit."""
    from mrsi_gadgets.quantification.cnn_training import train_spectrum_networks
    from mrsi_gadgets.quantification.preparation import usual_model

    protocol = trained.manifold.protocol
    networks, curves = train_spectrum_networks(
        usual_model(protocol), ensemble=ensemble, basis=basis, snr=settings.snr,
        samples=settings.quantification_samples, steps=settings.quantification_steps, seed=seed,
        progress=stages.progress,
    )  # fmt: skip
    return replace(trained, networks=networks, curves={**trained.curves, **curves})


def _examples(manifold: Manifold, ensemble: Ensemble, basis: BasisSet | None, seed: int) -> list[ExampleFid]:
    """Return three fresh FIDs, at peak SNRs inside the range of the model."""
    protocol = manifold.protocol
    rng = np.random.default_rng(seed)
    clean = sample(protocol, 3, seed, ensemble=ensemble, basis=basis).metabolites
    found = []
    for fid, snr in zip(clean, np.geomspace(*manifold.snr_range, 7)[1::2], strict=True):
        sd = noise_sd_at_snr(protocol, float(snr))
        noise = sd * (rng.standard_normal(fid.shape) + 1j * rng.standard_normal(fid.shape))
        noisy = (fid + noise).astype(np.complex64)
        found.append(ExampleFid(float(snr), fid, noisy, manifold.project(noisy[None], sd)[0]))
    return found


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written before minutes of training, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise ModelError(
            f"models cannot be written to {folder} ({problem.strerror}); name another folder with --output"
        ) from problem


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Bound the threads of torch and BLAS."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpoolctl.threadpool_limits(limits=count):
            yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Stages:
    """Follows the stages of a training: a bar for each, a line when it has ended, and its seconds."""

    patience: int
    bar: bool
    tell: Tell
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> wall time."""
    _name: str = ""
    _done: int = 0
    _total: int = 0
    _loss: float = math.nan
    _line: Any = None
    _since: float = field(default_factory=time.perf_counter)
    _latest: float = field(default_factory=time.perf_counter)

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(told=kind is None)

    def progress(self, name: str, done: int, total: int, loss: float) -> None:
        """Take note of steps; see `training.Progress`."""
        if (name, total) != (self._name, self._total) or done <= self._done:
            self._end()
            self._name, self._total = name, total
            unit = " FIDs" if math.isnan(loss) else " steps"
            self._line = tqdm(total=total, desc=name, unit=unit, disable=not self.bar, leave=False, file=sys.stderr)
        self._line.update(done - self._done)
        if not math.isnan(loss):
            self._line.set_postfix_str(f"loss {loss:.4g}")
        self._done, self._loss, self._latest = done, loss, time.perf_counter()

    def _end(self, *, told: bool = True) -> None:
        if self._line is None:
            return
        self._line.close()
        spent = self._latest - self._since
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent
        if told:
            what = f"{self._done} FIDs" if math.isnan(self._loss) else f"{self._done} of {self._total} steps"
            if self._done < self._total:
                what += f" (stopped early: no gain in {self.patience} checks)"
            loss = "" if math.isnan(self._loss) else f", loss {self._loss:.4g}"
            self.tell(f"{self._name}: {what}{loss}, {spent:.1f} s")
        self._line, self._done, self._since = None, 0, self._latest
