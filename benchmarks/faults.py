"""Faults by the thousand against a live server: no readout lost, no hang, no silent failure.

    python benchmarks/faults.py [--kinds cut_everywhere,garbage]

A tiny scan (8 x 6 voxels, 3 coils, 128 points; recipe fourier) is sent to a server while one thing goes wrong; see
``tests/faulty.py`` for each kind and for what is checked after it. Every fault has to leave: each whole readout that
reached the server in the spool, bytes as sent; a session that ended within a minute; one sentence at the console, where
it can hear one, and a line in the log; and images only of scans that were closed in order, the same as without fault to
the bit. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import describe_machine, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import faulty

NEED_EXPECTED = ("disk_full", "spool_refused", "clock_jumps", "in_a_row", "eight_at_once")
KINDS = (
    "cut_everywhere", "cut_long", "garbage", "disk_full", "spool_refused", "memory_refused", "clock_jumps", "in_a_row",
    "killed_at_gadgets", "too_much_memory", "eight_at_once", "server_killed",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="A,B", help=f"default: all ({', '.join(KINDS)})")
    given = parser.parse_args()
    print(describe_machine())
    expected = faulty.expected_images()
    rows, sentences, bad = [], [], []
    for name in given.kinds.split(","):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            more = {"expected": expected} if name in NEED_EXPECTED else {}
            kind = getattr(faulty, name)(Path(folder) / "spool", **more)
        seconds = time.perf_counter() - start
        rows.append([*counts(kind), f"{seconds:.0f}"])
        sentences += [f"\n{kind.name}"] + [f"  {count:5d} x {text}" for text, count in kind.sentences.most_common()]
        bad += [f"{kind.name}, {detail}" for detail in kind.details]
        print(f"{kind.name}: {kind.faults} faults, {'as it should be' if kind.good else 'NOT GOOD'}", flush=True)
    total = ["all", *(str(sum(int(row[i]) for row in rows)) for i in range(1, 7)), ""]
    head = ["fault", "injected", "readouts lost", "readouts kept", "hangs", "silent", "wrong results", "s"]
    print()
    print(table(head, [*rows, total]))
    print("\nWhat the console got (# stands for numbers; brackets: no console could hear)")
    print("\n".join(sentences))
    if bad:
        print("\nWhat must not be\n" + "\n".join(bad))
    return 1 if bad else 0


def counts(kind: faulty.Kind) -> list[str]:
    numbers = (kind.faults, kind.lost_readouts, kind.kept_readouts, kind.hangs, kind.silent, kind.wrong_results)
    return [kind.name, *map(str, numbers)]


if __name__ == "__main__":
    sys.exit(main())
