"""Memory of a session: peak of its process beyond the idle, warm process, over the bytes of all samples.

    python benchmarks/memory.py [--preset csi48] [--repeats 3]

The peak is VmHWM of the session process (the kernel's own high-water mark), read while it runs and when the last
image has come; idle is VmRSS of the same process, warm, before the client connects. All samples: noise, water
reference and metabolites. The scan is sent by a process of its own, paced so that it lasts `--seconds`, and once as
fast as it goes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import METHODS, describe_machine, sample_bytes, spread, table
from latency import run_client

from mrsi_gadgets.demo import running_server
from mrsi_gadgets.io.mrd_file import write_scan
from mrsi_gadgets.phantom.simulate import simulate

WANTED = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one repeat")
    given = parser.parse_args()
    repeats = 1 if given.quick else given.repeats
    logging.getLogger("mrsi").setLevel(logging.ERROR)
    print(describe_machine())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        scan = simulate(given.preset)
        write_scan(path, scan.header_xml, scan.acquisitions)
        size = sample_bytes(scan)
        del scan
        print(
            f"{given.preset}: {size / 1e6:.0f} MB of samples, {repeats} repeats; paced: the scan lasts "
            f"{given.seconds:g} s"
        )
        for method in given.methods:
            for pace in (given.seconds, 0.0):
                found = [measure(path, method, pace) for _ in range(repeats)]
                ratios = [(peak - idle) / size for idle, peak in found]
                idle, peak = (statistics.median(values) / 1e6 for values in zip(*found, strict=True))
                verdict = "yes" if statistics.median(ratios) <= WANTED else "NO"
                rows.append(
                    [
                        method,
                        f"{pace:g} s" if pace else "none",
                        f"{idle:.0f}",
                        f"{peak:.0f}",
                        spread(ratios, ".2f"),
                        verdict,
                    ]
                )
    print(table(["recipe", "pace", "idle, MB", "peak, MB", "(peak - idle) / samples", f"at most {WANTED:g}"], rows))
    return 0


def measure(path: Path, method: str, pace: float) -> tuple[int, int]:
    """Idle and peak resident bytes of one session process."""
    with running_server() as port:
        (process,) = workers()
        idle, watch = status(process, "VmRSS"), Watch(process)
        run_client(path, method, pace, port)
        return idle, watch.end()


def workers() -> list[int]:
    """Process ids of our session processes."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"mrsi_gadgets.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def status(process: int, name: str) -> int:
    """Return a size [bytes] from the kernel's status of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {process} has ended")


class Watch:
    """Follows the high-water mark of a process until it ends."""

    def __init__(self, process: int) -> None:
        self._process, self._peak, self._stopped = process, 0, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                self._peak = max(self._peak, status(self._process, "VmHWM"))
            except (ProcessLookupError, FileNotFoundError):
                return
            time.sleep(0.005)

    def end(self) -> int:
        """Return the last mark that was seen."""
        self._stopped.set()
        self._thread.join()
        return self._peak


if __name__ == "__main__":
    sys.exit(main())
