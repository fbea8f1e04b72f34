"""Loopback ingest: readouts received, parsed and sorted, against a plain socket copy of the same bytes.

Run with ``python benchmarks/ingest.py`` (options: ``--help``). The sender is another process that sends bytes it has
encoded before the clock starts; the clock runs from the first byte to CLOSE (and, for the last row, to the last sorted
frame). All ways are measured in turn in one run, so that they meet the same machine.
"""

from __future__ import annotations

import argparse
import logging
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.stream.messages import (
    ACQUISITION_HEADER,
    Acquisition,
    Close,
    ConfigFile,
    Flag,
    Header,
    Message,
)
from mrsi_gadgets.stream.transport import Connection
from mrsi_gadgets.stream.wire import Decoder, encode

CHUNK_BYTES = 1 << 20
HEADER_XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<measurementInformation><patientPosition>HFS</patientPosition></measurementInformation>
<acquisitionSystemInformation><systemFieldStrength_T>2.894723</systemFieldStrength_T>
<receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>123250000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>{n}</x><y>{n}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>220</x><y>220</y><z>15</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{n}</x><y>{n}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>220</x><y>220</y><z>15</z></fieldOfView_mm></reconSpace><encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center></kspace_encoding_step_1>
<set><minimum>0</minimum><maximum>1</maximum><center>0</center></set>
<segment><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center></segment></encodingLimits>
<trajectory>cartesian</trajectory></encoding>
<sequenceParameters><TR>600</TR><TE>0.0</TE><flipAngle_deg>35</flipAngle_deg></sequenceParameters>
<userParameters>
<userParameterLong><name>mrsi_spectral_points</name><value>{points}</value></userParameterLong>
<userParameterDouble><name>mrsi_dwell_us</name><value>714.2857142857143</value></userParameterDouble>
<userParameterDouble><name>mrsi_acq_delay_us</name><value>1300.0</value></userParameterDouble>
<userParameterString><name>mrsi_profile</name><value>1.0</value></userParameterString>
<userParameterString><name>mrsi_nucleus</name><value>1H</value></userParameterString>
<userParameterString><name>mrsi_encoding</name><value>csi</value></userParameterString>
<userParameterString><name>mrsi_water_ref</name><value>set:1</value></userParameterString>
<userParameterString><name>mrsi_grid_center</name><value>edge</value></userParameterString>
</userParameters></ismrmrdHeader>"""


def readouts(matrix: int, points: int, coils: int) -> Iterator[Acquisition]:
    """Two noise readouts, a water reference and one metabolite frame of a fully sampled csi scan."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((coils, points, 2), np.float32).view(np.complex64)[..., 0]
    head = np.zeros(1, ACQUISITION_HEADER)
    head["version"], head["number_of_samples"], head["sample_time_us"] = 1, points, 714.2857
    head["active_channels"] = head["available_channels"] = coils
    head["read_dir"], head["phase_dir"], head["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    head["flags"] = Flag.IS_NOISE_MEASUREMENT.mask
    yield from [Acquisition(head[0], samples)] * 2
    head["flags"] = 0
    for role in (1, 0):  # water first
        for line in range(matrix * matrix):
            head["idx"]["set"] = role
            head["idx"]["kspace_encode_step_1"], head["idx"]["segment"] = divmod(line, matrix)
            yield Acquisition(head[0], samples)


def scan_bytes(matrix: int, points: int, coils: int) -> bytes:
    """Encode the whole session."""
    header = HEADER_XML.format(n=matrix, last=matrix - 1, center=matrix // 2, points=points, coils=coils)
    parts = [encode(ConfigFile("subspace")), encode(Header(header))]
    parts.extend(encode(item) for item in readouts(matrix, points, coils))
    parts.append(encode(Close()))
    return b"".join(parts)


def send(port: int, repeats: int, sizes: tuple[int, int, int]) -> None:
    """Body of the sending process: the same bytes over as many connections as asked for."""
    data = memoryview(scan_bytes(*sizes))
    for _ in range(repeats):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            for start in range(0, len(data), CHUNK_BYTES):
                sock.sendall(data[start : start + CHUNK_BYTES])
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)  # until the receiver has taken everything


def plain(sock: socket.socket) -> int:
    """Receive into one buffer again and again: the fastest there is in this process."""
    space, total = memoryview(bytearray(CHUNK_BYTES)), 0
    while count := sock.recv_into(space):
        total += count
    return total


def stored(sock: socket.socket) -> int:
    """Receive and keep every byte."""
    space, kept, total = memoryview(bytearray(CHUNK_BYTES)), [], 0
    while count := sock.recv_into(space):
        kept.append(bytes(space[:count]))
        total += count
    return total


def decoded(sock: socket.socket) -> int:
    """Parse in the receiving thread."""
    decoder = Decoder()
    while not decoder.closed:
        for _ in decoder.commit(sock.recv_into(decoder.buffer())):
            pass
    return decoder.offset


def parsed(sock: socket.socket) -> int:
    """Parse in a `Connection`: reader thread and bounded queue."""
    connection = Connection(sock)
    for _ in connection.messages():
        pass
    return connection._decoder.offset


class _Silent:
    """Takes warnings of the sorting."""

    def warn(self, sentence: str) -> None:
        raise SystemExit(f"the benchmark's own scan is wrong: {sentence}")


def parsed_and_sorted(sock: socket.socket) -> int:
    """Parse in a `Connection` and sort into k-t data."""
    connection = Connection(sock)
    messages: Iterator[Message] = connection.messages()
    next(messages)
    header_message = next(messages)
    assert isinstance(header_message, Header)
    header = parse_header(header_message.xml)
    frames = list(sort_readouts(messages, read_protocol(header), _Silent(), header))
    if len(frames) != 3:
        raise SystemExit(f"sorting gave {len(frames)} frames instead of noise, water and metabolites")
    return connection._decoder.offset


WAYS: dict[str, Callable[[socket.socket], int]] = {
    "plain socket copy": plain,
    "plain copy, bytes kept": stored,
    "decoded": decoded,
    "decoded in a Connection": parsed,
    "decoded and sorted": parsed_and_sorted,
}


def measure(repeats: int, sizes: tuple[int, int, int]) -> tuple[dict[str, list[float]], int]:
    """Receive the scan in every way in turn; seconds of each, and the number of bytes."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    total = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, __file__, "--send-to", str(listener.getsockname()[1]), "--repeats", str(repeats)]
        for name, value in zip(("--matrix", "--points", "--coils"), sizes, strict=True):
            command += [name, str(value)]
        with subprocess.Popen(command) as sender:
            for _ in range(repeats):
                for name, way in WAYS.items():
                    sock, _ = listener.accept()
                    with sock:
                        sock.recv(1, socket.MSG_PEEK)
                        start = time.perf_counter()
                        total = max(total, way(sock))
                        seconds[name].append(time.perf_counter() - start)
            sender.wait(60)
    return seconds, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrix", type=int, default=48)
    parser.add_argument("--points", type=int, default=384)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--send-to", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.matrix, options.points, options.coils
    if options.send_to:
        send(options.send_to, options.repeats * len(WAYS), sizes)
        return
    logging.getLogger("mrsi").setLevel(logging.ERROR)
    seconds, total = measure(options.repeats, sizes)
    count = 2 * options.matrix**2 + 2
    print(f"{count} readouts of {8 * options.points * options.coils / 1024:.0f} KiB, {total / 1e6:.0f} MB; "
          f"medians of {options.repeats}; Python {platform.python_version()}, NumPy {np.__version__}, "
          f"{platform.machine()}; {Path(__file__).name}")  # fmt: skip
    reference = statistics.median(seconds["plain socket copy"])
    print(f"{'way':<26}{'MB/s':>8}{'us/readout':>12}{'of plain copy':>15}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<26}{total / median / 1e6:8.0f}{1e6 * median / count:12.1f}{reference / median:15.0%}")


if __name__ == "__main__":
    main()
