"""What the benchmarks share: the machine, tables, medians, a scan brought to the reconstruction step."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from mrsi_gadgets.arrays import one_blas_thread
from mrsi_gadgets.data import KtData, Role, SpectralImage
from mrsi_gadgets.gadgets.combine_coils import CombineCoils
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.phantom.simulate import SimulatedScan

METHODS = ("fourier", "low_rank", "subspace")
NAMES = ("tNAA", "tCr", "tCho", "Ins", "Glx")


def describe_machine() -> str:
    """One line: processor, cores we may use, load, and the versions that matter."""
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "pyfftw", "h5py", "ismrmrd"))
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, mrsi-gadgets {metadata.version('mrsi-gadgets')} ({_commit()}), {versions}"
    )


def describe_device(name: str) -> str:
    """One line: the GPU, and the versions that matter."""
    import cupy
    import torch

    found = cupy.cuda.runtime.getDeviceProperties(int(name.partition(":")[2] or 0))
    card = found["name"].decode()
    return f"{card}, CuPy {cupy.__version__}, torch {torch.__version__}"


def _commit() -> str:
    """Commit of the checkout, or a word where there is none."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned text table."""
    cells = [list(map(str, head)), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def seconds_of(action: Callable[[], object]) -> float:
    """Run `action` once and return the time it took [s]."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Median with smallest and largest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def sample_bytes(scan: SimulatedScan) -> int:
    """Bytes of all samples of a scan: noise, water reference, metabolites."""
    return int(scan.noise.nbytes + scan.water.nbytes + scan.metabolites.nbytes)


def calibrate(scan: SimulatedScan, *, compress: bool) -> tuple[KtData, Context]:
    """Bring a scan to where the reconstruction step begins, through the chain's own gadgets.

    Returns the metabolite data (sorted, whitened, channels compressed where asked) and the context with calibration.
    """
    header = parse_header(scan.header_xml)
    context = Context(protocol=read_protocol(header))
    items: Iterator[Any] = sort_readouts(scan.acquisitions, context.protocol, context.report, header)
    gadgets: list[Gadget] = [
        Prewhiten(),
        EstimateFieldMap(),
        CombineCoils(**({} if compress else {"lost_energy": 0.0})),
    ]
    for gadget in gadgets:
        items = gadget.process(items, context)
    found = [item for item in items if isinstance(item, KtData) and item.role is Role.METABOLITE]
    return found[0], context


def learned_models(folder: Path | None, protocol: str = "1h_fid_3t") -> Path:
    """Return the model store to use: `folder`, or one beside the benchmarks, trained here where it lacks the model."""
    if folder is not None:
        return folder
    folder = Path(__file__).parent / "models"
    if not (folder / f"{protocol}.json").exists():
        learn = [sys.executable, "-m", "mrsi_gadgets.cli", "learn", protocol, "--output", str(folder)]
        subprocess.run(learn, check=True, stdout=sys.stderr)
    return folder


def prepare(gadget: Gadget, context: Context) -> None:
    """Do what a gadget does before its data are there."""
    done: Future[Any] = Future()
    with one_blas_thread():
        done.set_result(gadget.prepare(context))
    context.prepared[gadget] = done


def reconstruct(gadget: Reconstruct, kt: KtData, context: Context) -> SpectralImage:
    """Run a prepared reconstruction gadget on data, as the chain does."""
    with one_blas_thread():
        (image,) = gadget.process(iter([kt]), context)
    return image


def interleaved(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time several actions in turn, `repeats` times after one round that does not count; seconds of each.

    Taking turns lets whatever else the machine does fall on all of them alike, so that ratios within a round are fair.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for name, action in chain.from_iterable([actions.items()] * (repeats + 1)):
        seconds[name].append(seconds_of(action))
    return {name: values[1:] for name, values in seconds.items()}
