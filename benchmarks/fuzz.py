"""A million mutated inputs through everything that reads bytes of others: coverage-guided, with an address-space limit.

    pip install 'mrsi-gadgets[fuzz]'
    python benchmarks/fuzz.py [--runs 1000000] [--seed 1] [--targets codec header ...]

Each target of tests/fuzz_targets.py (wire codec, ISMRMRD header, configuration, JSON parameters, image attributes,
sequence descriptions, learning protocols, signal models) runs in a process of its own under atheris (libFuzzer), begins
with valid inputs, and may raise our own errors only. A process may take 1 GiB more than it needs to start: more is a
crash. A crash keeps the input that made it.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARES = {"codec": 0.40, "header": 0.13, "config": 0.15, "parameters": 0.10, "meta": 0.10, "sequence": 0.03,
          "adapter": 0.03, "protocol": 0.02, "model": 0.04}  # fmt: skip
"""Part of the runs that each target gets: fast ones more."""
MORE_MEMORY = 1 << 30
TESTS = Path(__file__).resolve().parents[1] / "tests"


def run_target(name: str, runs: int, seed: int, folder: Path) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["mrsi_gadgets.stream", "mrsi_gadgets.mrd", "mrsi_gadgets.io",
                                             "mrsi_gadgets.output.meta", "mrsi_gadgets.gadgets"]):  # fmt: skip
        sys.path.insert(0, str(TESTS))
        from fuzz_targets import TARGETS, check, corpus
    for i, data in enumerate(corpus(name)):
        (folder / f"valid-{i}").write_bytes(data)
    with Path("/proc/self/statm").open() as status:
        taken = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MORE_MEMORY, taken + MORE_MEMORY))
    longest = 4 * max(map(len, corpus(name)))
    atheris.Setup(
        [sys.argv[0], f"-runs={runs}", f"-seed={seed}", f"-max_len={longest}", "-timeout=20", "-rss_limit_mb=0",
         f"-artifact_prefix={folder}/crash-", str(folder)],
        lambda data: check(TARGETS[name], data),
    )  # fmt: skip
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="*", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--one", choices=list(SHARES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the runs")
    given = parser.parse_args()
    if given.one:
        run_target(given.one, given.runs, given.seed, given.folder)
        return 0
    runs = given.runs // 100 if given.quick else given.runs
    total, failed = 0, 0
    whole = sum(SHARES[name] for name in given.targets)
    print(f"{'target':12s} {'inputs':>10s} {'seconds':>8s} {'coverage':>9s}  result")
    for name in given.targets:
        count = round(runs * SHARES[name] / whole)
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        command = [sys.executable, __file__, "--one", name, "--runs", str(count), "--seed", str(given.seed)]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--folder", str(folder)], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, errors="replace",
        )  # fmt: skip
        made = [int(n) for n in re.findall(r"^#(\d+)\s", done.stdout, re.MULTILINE)]
        cover = re.findall(r"cov: (\d+)", done.stdout)
        ok = done.returncode == 0
        failed += not ok
        total += max(made, default=0)
        seconds, reached = time.perf_counter() - start, cover[-1] if cover else "-"
        result = "no crash" if ok else f"CRASH, see {folder}"
        print(f"{name:12s} {max(made, default=0):10d} {seconds:8.0f} {reached:>9s}  {result}", flush=True)
        if not ok:
            print("\n".join(done.stdout.splitlines()[-25:]))
    print(f"{total} inputs, {failed} of {len(given.targets)} targets crashed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
