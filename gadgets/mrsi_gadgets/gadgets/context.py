"""What the gadgets of one session share: protocol, calibration, device, and the report that leaves with the maps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrsi_gadgets.arrays import Array
from mrsi_gadgets.data import Protocol, SpectralImage
from mrsi_gadgets.errors import DataError, one_line
from mrsi_gadgets.io.model_store import StoredModel, find_model
from mrsi_gadgets.models.subspace import Subspace, learn_subspace
from mrsi_gadgets.reconstruction.field_map import WaterLine


@dataclass
class Calibration:
    """What the noise scan and the water reference taught us. Each field is None until its gadget has run.

    Coil axes are those of the samples as they leave `combine_coils` (whitened; compressed once that has run).
    """

    noise_covariance: np.ndarray | None = None
    """(coil, coil) complex: E[n n^H] of one raw metabolite sample, before whitening."""
    b0_hz: np.ndarray | None = None
    """(x, y, z) [Hz]."""
    coil_maps: Array | None = None
    """(coil, x, y, z) complex64; sum over coils of |S|^2 is 1 in the mask, phase that of the water at t = 0."""
    mask: np.ndarray | None = None
    """(x, y, z) bool: where there is enough water (or metabolite) signal."""
    water: np.ndarray | None = None
    """(x, y, z) float32: water amplitude at t = 0 in the unit of SpectralImage, or None without a water reference."""
    water_line: WaterLine | None = None
    """How each voxel's water goes on in time, or None without a water reference."""
    water_image: SpectralImage | None = None
    """FIDs of the water reference, B0 and eddy currents taken out; kept where the header does not say that water is
    suppressed in the metabolite data."""
    water_fids: SpectralImage | None = None
    """FIDs of the water reference, as `water_image`, for the result; kept where `Context.keep_water` says so."""
    water_protocol: Protocol | None = None
    """How `water` was measured: the protocol of the reference's own readouts and echo."""
    source: dict[str, str] = field(default_factory=dict)
    """Field name -> where it came from (``water reference``, ``residual water``, ``noise scan``, ...)."""

    def take_water_fids(self) -> SpectralImage | None:
        """Return `water_fids` once; afterwards they are not kept any longer."""
        taken, self.water_fids = self.water_fids, None
        return taken

    def encoding(self) -> tuple[Array, np.ndarray, np.ndarray]:
        """Return coil maps, B0 and mask.

        Raises
        ------
        DataError
            No gadget has filled them.
        """
        if self.coil_maps is None or self.b0_hz is None or self.mask is None:
            raise DataError("coil maps and B0 are not known yet; put <field_map/> before the reconstruction")
        return self.coil_maps, self.b0_hz, self.mask


@dataclass
class Report:
    """Times, warnings and provenance of one session; written to summary.json and to image comments."""

    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def warn(self, sentence: str) -> None:
        """Keep a warning for the result and log it (once), on one line whatever it quotes."""
        sentence = one_line(sentence)
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            logging.getLogger("mrsi").warning(sentence)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time the block takes to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class Context:
    """The state of one session that gadgets read and calibration gadgets fill."""

    protocol: Protocol
    calibration: Calibration = field(default_factory=Calibration)
    report: Report = field(default_factory=Report)
    device: tuple[str, Any] = ("numpy", "cpu")
    """As `arrays.select_device` returns it."""
    seed: int = 0
    models: tuple[Path, ...] = ()
    """Folders that learned signal models are looked for in."""
    tissue: tuple[Path, ...] = ()
    """Maps of tissue fractions that the operator gave, or their folder."""
    b1: Path | None = None
    """Map of the real flip angle over the nominal one that the operator gave."""
    keep_water: bool = False
    """Whether the FIDs of the water reference belong to the result."""
    reference_heads: dict[int, np.void] = field(default_factory=dict)
    """Frame -> ACQUISITION_HEADER of its first metabolite readout: geometry, stamps and uid for the images."""
    frame: int = 0
    """Frame whose images leave the chain now."""
    may_overwrite: bool = False
    """Whether gadgets may overwrite the samples of the items they take: nobody else looks at them."""
    prepared: dict[Any, Future[Any]] = field(default_factory=dict)
    """Gadget -> what its `prepare` returns, computed beside the arriving readouts."""
    map_names: tuple[str, ...] | None = None
    """Maps that the quantification can give, sums first; None until it is prepared, or where there is none."""
    calibrated: dict[Any, Future[Any]] = field(default_factory=dict)
    """Gadget -> what its `calibrated` returns, computed beside the arriving readouts; empty where nobody asked."""
    on_calibration: Callable[[], None] | None = None
    """Called when the field map is there."""
    left_device: bool = False
    """Whether the device's memory did not suffice and the processor has taken over."""
    on_progress: Callable[[str], None] | None = None
    """Told a sentence when a stage is reached."""

    _learned: dict[tuple[int, int | None], Subspace] = field(default_factory=dict, init=False, repr=False)
    _learning: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _stored: dict[int, StoredModel | None] = field(default_factory=dict, init=False, repr=False)
    _finding: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def subspace(self, echo: int = 0, rank: int | None = None) -> Subspace:
        """Return the subspace of an echo's protocol; gadgets that ask for the same one share it."""
        with self._learning:
            if (echo, rank) not in self._learned:
                with self.report.timed("learn subspace"):
                    protocol = self.protocol.of_echo(echo)
                    self._learned[echo, rank] = learn_subspace(protocol, rank=rank, seed=self.seed)
            return self._learned[echo, rank]

    def model(self, echo: int = 0) -> StoredModel | None:
        """Return the stored signal model that fits an echo's protocol, or None; it is looked for once.

        Provenance says which one it is, or why there is none. A model that is damaged is left out with a warning.
        """
        with self._finding:
            if echo not in self._stored:
                reasons: list[str] = []
                with self.report.timed("find signal model"):
                    found = find_model(
                        self.models, self.protocol.of_echo(echo), warn=self.report.warn, tell=reasons.append
                    )
                told = {"none": reasons[0]} if found is None else found.provenance()
                self.report.provenance["signal_model" if not echo else f"signal_model of echo {echo}"] = told
                self.progress(reasons[0] if found is None else f"learned signal model '{found.name}' fits this scan")
                self._stored[echo] = found
            return self._stored[echo]

    def progress(self, sentence: str) -> None:
        """Log a stage of the work and tell whoever listens (the console)."""
        logging.getLogger("mrsi").info(sentence)
        if self.on_progress is not None:
            self.on_progress(sentence)
