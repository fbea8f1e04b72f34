"""Reading an MRD file in slabs against ismrmrd.Dataset.read_acquisition in a loop, both in this process.

    python benchmarks/read_h5.py --readouts 30000

Both visit every sample (a running sum of squares); `--sample` readouts are timed with ismrmrd and scaled up, because
the loop over all of them takes minutes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ismrmrd

from mrsi_gadgets.io.mrd_file import read_scan, write_scan
from mrsi_gadgets.stream.messages import ACQUISITION_HEADER, Acquisition


def readouts(count: int, coils: int, points: int):
    rng = np.random.default_rng(0)
    head = np.zeros((), ACQUISITION_HEADER)[()]
    head["version"], head["active_channels"], head["number_of_samples"] = 1, coils, points
    samples = rng.standard_normal((coils, 2 * points), dtype=np.float32).view(np.complex64)
    for number in range(count):
        this = head.copy()
        this["scan_counter"] = number
        yield Acquisition(this, samples)


def energy(data: np.ndarray) -> float:
    flat = data.reshape(-1)
    return float(np.vdot(flat, flat).real)


def ours(path: Path) -> float:
    start = time.perf_counter()
    for readout in read_scan(path).acquisitions:
        energy(readout.data)
    return time.perf_counter() - start


def theirs(path: Path, sample: int) -> float:
    start = time.perf_counter()
    dataset = ismrmrd.Dataset(path, "dataset", mode="r")
    for number in range(sample):
        energy(dataset.read_acquisition(number).data)
    dataset.close()
    return time.perf_counter() - start


def written_by_ismrmrd(path: Path, count: int, coils: int, points: int) -> None:
    """Make a file with ismrmrd's own writer: one chunk per readout."""
    dataset = ismrmrd.Dataset(path, "dataset")
    dataset.write_xml_header(b"<ismrmrdHeader/>")
    for readout in readouts(count, coils, points):
        acquisition = ismrmrd.Acquisition(readout.head.tobytes())
        acquisition.data[:] = readout.data
        dataset.append_acquisition(acquisition)
    dataset.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readouts", type=int, default=30000)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--points", type=int, default=384)
    parser.add_argument("--sample", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--their-file", action="store_true", help="read a file written by ismrmrd (slow to make)")
    given = parser.parse_args()
    sample = min(given.sample, given.readouts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        start = time.perf_counter()
        if given.their_file:
            written_by_ismrmrd(path, given.readouts, given.coils, given.points)
        else:
            write_scan(path, "<ismrmrdHeader/>", readouts(given.readouts, given.coils, given.points))
        print(f"{platform.processor() or platform.machine()}, h5py {h5py.__version__}, ismrmrd {ismrmrd.__version__}")
        print(f"{given.readouts} readouts of {given.coils} x {given.points}: {path.stat().st_size / 1e6:.0f} MB, "
              f"written in {time.perf_counter() - start:.2f} s")  # fmt: skip
        fast = statistics.median(ours(path) for _ in range(given.repeats)) / given.readouts
        slow = statistics.median(theirs(path, sample) for _ in range(given.repeats)) / sample
    print(f"slabs           {fast * 1e6:9.1f} us per readout, {fast * given.readouts:7.2f} s for all")
    print(f"read_acquisition{slow * 1e6:9.1f} us per readout, {slow * given.readouts:7.2f} s for all (from {sample})")
    print(f"ratio           {slow / fast:9.1f}")


if __name__ == "__main__":
    main()
