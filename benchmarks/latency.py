"""From the last byte of the last readout to the last byte of the last image, through the server.

    python benchmarks/latency.py [--preset csi48] [--seconds 10] [--repeats 5] [--device cuda:0]

A server is started and its session process is warm. The scan is sent live over TCP by a process of its own, at an
even pace so that it lasts `--seconds` (a real scan of this size takes 23 minutes: what is prepared beside the
readouts has far more time there), and once more as fast as it goes. The latency is the client's: from the last
readout handed to the network to the last image received; unpaced, up to 4 MiB of readouts still wait in the client
then. Stages come from the same chain run in this process at the same pace.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import METHODS, describe_device, describe_machine, spread, table

from mrsi_gadgets.demo import running_server
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.stream.client import send_scan
from mrsi_gadgets.stream.messages import Acquisition, ConfigFile, Header, Message

WANTED_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--send", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        send(*given.send)
        return 0
    repeats = 1 if given.quick else given.repeats
    logging.getLogger("mrsi").setLevel(logging.ERROR)
    print(describe_machine())
    if given.device != "cpu":
        print(describe_device(given.device))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        write_simulation(given.preset, path)
        print(f"{given.preset}, {repeats} repeats; paced: the scan lasts {given.seconds:g} s")
        measure_server(path, given.methods, given.seconds, repeats, given.device)
        print()
        measure_stages(path, given.methods, given.seconds, given.device)
    return 0


def measure_server(path: Path, methods: list[str], seconds: float, repeats: int, device: str) -> None:
    """Print latencies through the server, paced and not."""
    rows = []
    with running_server(device=device) as port:
        for method in methods:
            for pace in (seconds, 0.0):
                found = [run_client(path, method, pace, port) for _ in range(repeats)]
                latency = [one["latency_s"] for one in found]
                median = statistics.median(latency)
                rows.append(
                    [method, f"{pace:g} s" if pace else "none", spread(latency, ".2f"),
                     f"{statistics.median(one['whole_s'] for one in found):.2f}", str(found[0]["images"]),
                     ("yes" if median <= WANTED_S else "NO") if pace else ""]
                )  # fmt: skip
    print(table(["recipe", "pace", "latency, s", "whole scan, s", "images", f"at most {WANTED_S:g} s"], rows))


def run_client(path: Path, method: str, pace: float, port: int) -> dict[str, float]:
    """Send the scan from a process of its own, as a scanner would; what it measured."""
    # the server has just begun to warm the successor of its last session process: let it finish
    time.sleep(4.0)
    command = [sys.executable, __file__, "--send", str(path), method, str(pace), str(port)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(answer.stdout))


def send(path: str, method: str, pace: str, port: str) -> None:
    """Be the scanner: everything is in memory before the first byte is sent."""
    scan = read_scan(Path(path))
    readouts = list(scan.acquisitions)
    start = time.perf_counter()
    result = send_scan(
        "127.0.0.1", int(port), header_xml=scan.header_xml, items=readouts, config_name=method,
        realtime_tick_s=tick(readouts, float(pace)),
    )  # fmt: skip
    whole = time.perf_counter() - start
    print(json.dumps({"latency_s": result.latency_s, "whole_s": whole, "images": len(result.images)}))


def tick(readouts: list[Acquisition], seconds: float) -> float | None:
    """Length of a time-stamp tick [s] with which the scan lasts `seconds`; None for no pace."""
    stamps = [int(readout.head["acquisition_time_stamp"]) for readout in readouts]
    forward = all(later >= earlier for earlier, later in pairwise(stamps))
    if seconds == 0:
        return None
    if not forward or stamps[-1] == stamps[0]:
        raise SystemExit("the readouts' time stamps do not grow, so the scan cannot be paced")
    return seconds / (stamps[-1] - stamps[0])


def measure_stages(path: Path, methods: list[str], seconds: float, device: str) -> None:
    """Print the seconds of each stage of the chain, run in this process at the same pace."""
    found = {method: stages(path, method, seconds, device) for method in methods}
    names = list(dict.fromkeys(name for times in found.values() for name in times))
    rows = [[name, *(f"{found[m][name]:.3f}" if name in found[m] else "-" for m in methods)] for name in names]
    print("Stages in one process at the same pace, s (what is prepared runs beside the arriving readouts)")
    print(table(["stage", *methods], rows))


def stages(path: Path, method: str, seconds: float, device: str) -> dict[str, float]:
    """Run the chain here; the report's seconds."""
    scan = read_scan(path)
    readouts = list(scan.acquisitions)
    each = tick(readouts, seconds) or 0.0
    first = int(readouts[0].head["acquisition_time_stamp"])

    def messages() -> Iterator[Message]:
        yield ConfigFile(method)
        yield Header(scan.header_xml)
        start = time.perf_counter()
        for readout in readouts:
            due = start + (int(readout.head["acquisition_time_stamp"]) - first) * each
            time.sleep(max(0.0, due - time.perf_counter()))
            yield readout

    nothing: list[Any] = []
    report = run_scan(messages(), nothing.append, ScanOptions(device=device))
    assert report is not None
    return dict(report.seconds)


if __name__ == "__main__":
    sys.exit(main())
