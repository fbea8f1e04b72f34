"""The same scans on the processor and on a GPU in one run: seconds of each stage, ratio, difference of the maps.

    python benchmarks/device.py [--device cuda:0] [--presets csi48 rings48] [--recipes fourier low_rank subspace raiise]
                                [--quantify varpro] [--repeats 3] [--pause 4] [--models FOLDER]

Each chain runs in this process from readouts in memory, first once without being measured (plans, compiled kernels,
networks), then `repeats` times; medians are shown. The last readout comes `pause` seconds after the others, so that
what a real scan prepares beside the readouts is done, and no stage waits for it. Difference: norm of the difference
of the tNAA, tCr and Glx maps over the norm of the processor's, the largest of the three. Recipe raiise needs a model
that fits (``mrsi learn``).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import describe_device, describe_machine, table

from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import Results, gather
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.replay import Scan, open_scan, replay_here
from mrsi_gadgets.stream.messages import ConfigText, Message

CONFIG = Path(__file__).parents[1] / "config"
STAGES = ("prewhiten", "field map", "remove nuisance", "reconstruct", "noise replicas", "quantify")
NAMES = ("tNAA", "tCr", "Glx")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--presets", nargs="*", default=["csi48", "rings48"])
    parser.add_argument("--recipes", nargs="*", default=["fourier", "low_rank", "subspace"])
    parser.add_argument("--quantify", default="varpro", help="method of <quantify>")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pause", type=float, default=4.0, help="before the last readout [s]")
    parser.add_argument("--models", type=Path)
    given = parser.parse_args()
    logging.getLogger("mrsi").setLevel(logging.ERROR)
    print(describe_machine())
    print(describe_device(given.device))
    with tempfile.TemporaryDirectory() as folder:
        for preset in given.presets:
            path = Path(folder) / f"{preset}.h5"
            write_simulation(preset, path)
            for recipe in given.recipes:
                print(f"\n{preset}, recipe {recipe}, <quantify method='{given.quantify}'/>, {given.repeats} repeats")
                print(compared(in_memory(path, recipe, given.quantify, given.pause), given), flush=True)
    return 0


def in_memory(path: Path, recipe: str, quantify: str, pause: float = 0.0) -> Scan:
    """Return the scan with its readouts in memory, and the recipe with another <quantify>."""
    scan = open_scan(str(path))
    text = (CONFIG / f"{recipe}.xml").read_text(encoding="utf-8")
    text = text.replace('<quantify method="varpro"/>', f'<quantify method="{quantify}"/>')
    readouts = Paused(tuple(scan.readouts), pause)
    return Scan(scan.header_xml, readouts, scan.length, scan.name, ConfigText(text))


@dataclass(frozen=True)
class Paused:
    """Readouts of which the last one comes late."""

    readouts: tuple[Message, ...]
    seconds: float

    def __iter__(self) -> Iterator[Message]:
        *first, last = self.readouts
        yield from first
        time.sleep(self.seconds)
        yield last


def compared(scan: Scan, given: argparse.Namespace) -> str:
    """Return the table of stages on both."""
    on_host, host_maps = measured(scan, ScanOptions(device="cpu", models=given.models), given.repeats)
    on_device, device_maps = measured(scan, ScanOptions(device=given.device, models=given.models), given.repeats)
    rows = [
        [name, f"{on_host[name]:.3f}", f"{on_device[name]:.3f}", f"{on_host[name] / max(on_device[name], 1e-9):.2f}"]
        for name in on_host
        if on_host[name] >= 0.01 or name in STAGES
    ]
    shown = table(["stage", "processor, s", "GPU, s", "processor / GPU"], rows)
    return f"{shown}\nlargest difference of a map: {difference(device_maps, host_maps):.1e}"


def measured(scan: Scan, options: ScanOptions, repeats: int) -> tuple[dict[str, float], Results]:
    """Return the median seconds of each stage, and the maps."""
    results = [replay_here(scan, options) for _ in range(repeats + 1)]
    if told := [w for w in results[-1].summary["warnings"] if "no trained model" in w]:
        raise SystemExit(told[0])
    seconds = [result.summary["seconds"] for result in results[1:]]
    medians = {name: statistics.median(one.get(name, 0.0) for one in seconds) for name in seconds[0]}
    return medians, gather(results[-1].images)


def difference(found: Results, expected: Results) -> float:
    """Largest relative difference of the maps."""
    mask = expected.mask[0]
    pairs = [(found.maps[name].value[mask], expected.maps[name].value[mask]) for name in NAMES]
    return max(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)) for ours, theirs in pairs)


if __name__ == "__main__":
    sys.exit(main())
