"""Hours of sessions against one server: its memory, descriptors, threads and children, and the latency, over time.

    python benchmarks/soak.py [--hours 2] [--preset csi16] [--pause 2] [--every 60]

One session after another (every tenth is cut off in the middle, every twentieth asks for a recipe that there is not);
the supervisor's resident memory and open descriptors are read once a minute. Flat means: the slope of a line through
the second half of the readings is less than a tenth of the reading an hour. The spool is on, bounded to 0.05 GiB.
Latency includes whatever else the machine does meanwhile.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from common import describe_machine

from mrsi_gadgets.errors import MrsiError
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.stream.client import send_scan
from mrsi_gadgets.stream.messages import ConfigFile, Header
from mrsi_gadgets.stream.serialisation import encode

FLAT = 0.1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reading(pid: int) -> dict[str, float]:
    """Resident memory [MiB], descriptors, threads and children of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"MiB": int(status["VmRSS"].split()[0]) / 1024, "descriptors": descriptors,
            "threads": int(status["Threads"]), "children": children}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--preset", default="csi16")
    parser.add_argument("--pause", type=float, default=2.0, help="between sessions [s]")
    parser.add_argument("--every", type=float, default=60.0, help="between readings [s]")
    given = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        write_simulation(given.preset, Path(scratch) / "scan.h5", snr=None, seed=0, noise_seed=1, progress=False)
        scan = read_scan(Path(scratch) / "scan.h5")
        readouts = list(scan.acquisitions)
        port, web = free_port(), free_port()
        server = subprocess.Popen(
            [sys.executable, "-c", "import sys; from mrsi_gadgets.cli import main; sys.exit(main())", "serve",
             "--port", str(port), "--web-port", str(web), "--spool", f"{scratch}/spool", "--spool-limit", "0.05",
             "--log-level", "ERROR", "--device", "cpu"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return soak(given, server, port, web, scan.header_xml, readouts)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def soak(given: argparse.Namespace, server: subprocess.Popen, port: int, web: int, header: str, readouts: list) -> int:
    wait_for(web)
    start = last = time.monotonic()
    number, latencies, readings, hours, failed = 0, [], [], [], 0
    while time.monotonic() - start < given.hours * 3600:
        number += 1
        if number % 10 == 0:
            cut_off(port, header, readouts[: len(readouts) // 2])
        else:
            wanted = "nothing" if number % 20 == 5 else "fourier"
            try:
                sent = send_scan("127.0.0.1", port, config_name=wanted, header_xml=header, items=readouts)
                latencies.append(sent.latency_s)
            except MrsiError:
                failed += 1
        if time.monotonic() - last >= given.every:
            last = time.monotonic()
            hours.append((last - start) / 3600)
            readings.append(reading(server.pid))
            print(f"{hours[-1]:5.2f} h  {number:6d} sessions  " + "  ".join(
                f"{value:.0f} {name}" for name, value in readings[-1].items()), flush=True)  # fmt: skip
        time.sleep(given.pause)
    expected = sum(n % 20 == 5 and n % 10 != 0 for n in range(1, number + 1))
    print(f"{number} sessions, {failed} failed ({expected} were to), latency median {np.median(latencies):.2f} s, "
          f"95 % {np.percentile(latencies, 95):.2f} s, 99 % {np.percentile(latencies, 99):.2f} s")  # fmt: skip
    bad = failed != expected
    half = len(readings) // 2
    for name in readings[0] if len(readings) >= 6 else ():
        values = np.array([one[name] for one in readings[half:]])
        slope = np.polyfit(hours[half:], values, 1)[0]
        flat = abs(slope) < FLAT * max(values.mean(), 10.0)
        bad |= not flat
        print(f"{name}: {values.mean():.1f}, {slope:+.2f} an hour: {'flat' if flat else 'NOT FLAT'}")
    return int(bad)


def wait_for(web: int) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{web}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def cut_off(port: int, header: str, readouts: list) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        for message in (ConfigFile("fourier"), Header(header), *readouts):
            sock.sendall(encode(message))


if __name__ == "__main__":
    sys.exit(main())
