"""What it costs to keep raw data before they are processed: with a spool over without, in one run.

    python benchmarks/spooling.py [--preset csi48] [--seconds 10] [--repeats 7]

Two servers run, one with a spool and one without; the same scan goes to them in turn, at a pace so that it lasts
`--seconds`. Latency: last readout handed to the network to last image received. Beside it the relay alone: how fast a
scan's bytes pass from a client to a worker that drops them, and the processor time of the process that relays.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import describe_machine, spread, table

from mrsi_gadgets.demo import running_server
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.spool import Spool, SpoolOptions
from mrsi_gadgets.io.spool_log import State
from mrsi_gadgets.phantom.simulate import write_simulation
from mrsi_gadgets.stream.messages import Close, ConfigFile, Header
from mrsi_gadgets.stream.relay import Relay
from mrsi_gadgets.stream.wire import encode

LATENCY = Path(__file__).with_name("latency.py")
WANTED = 1.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="csi48")
    parser.add_argument("--recipe", default="fourier")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the relay alone, three repeats")
    given = parser.parse_args()
    logging.getLogger("mrsi").setLevel(logging.ERROR)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        write_simulation(given.preset, path)
        scan = read_scan(path)
        messages = [ConfigFile(given.recipe), Header(scan.header_xml), *scan.acquisitions, Close()]
        data = b"".join(encode(message) for message in messages)
        print(f"{given.preset}, {len(data) / 1e6:.0f} MB")
        relayed(data, Path(folder) / "relay", 3 if given.quick else given.repeats)
        if not given.quick:
            latencies(path, given.recipe, given.seconds, given.repeats, Path(folder) / "spool")
    return 0


def latencies(path: Path, recipe: str, seconds: float, repeats: int, folder: Path) -> None:
    """Print the latency of scans that take turns at two servers."""
    found: dict[bool, list[float]] = {True: [], False: []}
    with running_server() as without, running_server(SpoolOptions(folder)) as kept:
        for turn in range(repeats):
            for spooled in (turn % 2 == 0, turn % 2 == 1):  # neither is always the first
                time.sleep(4.0)  # the server has just begun to warm its next process
                port = kept if spooled else without
                command = [sys.executable, str(LATENCY), "--send", str(path), recipe, str(seconds), str(port)]
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                found[spooled].append(json.loads(answer.stdout)["latency_s"])
    ratios = [a / b for a, b in zip(found[True], found[False], strict=True)]
    rows = [
        ["latency with spool, s", spread(found[True], ".3f")],
        ["latency without, s", spread(found[False], ".3f")],
        ["ratio of pairs", spread(ratios, ".3f")],
        [f"median at most {WANTED}", "yes" if statistics.median(ratios) <= WANTED else "NO"],
    ]
    print(table([f"recipe {recipe}, scan of {seconds:g} s, {repeats} pairs", ""], rows))


def relayed(data: bytes, folder: Path, repeats: int) -> None:
    """Print how fast bytes pass the relay and what processor time it takes."""
    spool = Spool(SpoolOptions(folder / "spool", reserve_bytes=0))
    folder.mkdir()
    source = folder / "session.bin"
    source.write_bytes(data)
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(repeats):
        for spooled in (turn % 2 == 0, turn % 2 == 1):
            found[spooled].append(one_relay(source, len(data), spool if spooled else None))
    rows = [
        [
            "with spool" if spooled else "without",
            spread([len(data) / 1e6 / wall for wall, _ in found[spooled]], ".0f"),
            spread([1e3 * cpu / (len(data) / 1e6) for _, cpu in found[spooled]], ".2f"),
        ]
        for spooled in (True, False)
    ]
    print(table(["relay alone", "MB/s", "processor time, ms/MB"], rows))


def one_relay(source: Path, length: int, spool: Spool | None) -> tuple[float, float]:
    """Pass a session's bytes once; seconds by the clock and of the processor in this process."""
    near, far = socket.socketpair()
    ours, theirs = socket.socketpair()
    session = spool.open({}) if spool is not None else None
    relay = Relay(far, ours, keep=session.keep if session is not None else None)
    client = subprocess.Popen(
        [sys.executable, "-c", "import socket, sys; s = socket.socket(fileno=0); s.sendall(sys.argv[1].encode())\n"
         "d = open(sys.argv[2], 'rb').read(); s.recv(1); s.sendall(d)", "r", str(source)],
        stdin=near,
    )  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-c", "import socket; s = socket.socket(fileno=0); s.send(b'r'); b = bytearray(1 << 20)\n"
         f"n = 0\nwhile n < {length}: n += s.recv_into(b)\ns.sendall(b'\\4\\0')"],
        stdin=theirs,
    )  # fmt: skip
    assert far.recv(1) == b"r"  # both are there
    assert ours.recv(1) == b"r"
    near.close()
    theirs.close()
    thread = threading.Thread(target=relay.run)
    start, cpu = time.perf_counter(), time.process_time()
    far.sendall(b"g")
    thread.start()
    thread.join()
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    client.wait()
    worker.wait()
    relay.close()
    if session is not None:
        session.end(State.FINISHED, readouts=relay.readouts, closed=True)
    return wall, used


if __name__ == "__main__":
    sys.exit(main())
