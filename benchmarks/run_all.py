"""Run every benchmark, one after the other, and keep what they print in benchmarks/RESULTS.md.

    python benchmarks/run_all.py [--quick] [--only NAME ...] [--output benchmarks/RESULTS.md]

The results of the scripts that were not run this time stay as they are in the file. Leave the machine alone meanwhile:
times are medians and ratios are taken within one run, but latency has no reference to be divided by.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS: dict[str, tuple[str, list[str]]] = {
    "reconstruction_speed": ("Reconstruction step over one FFT pass", ["--quick"]),
    "latency": ("Latency from the last readout to the last image", ["--quick"]),
    "memory": ("Memory of a session", ["--quick"]),
    "ingest": ("Ingest over a socket", ["--repeats", "3"]),
    "read_h5": ("Reading .h5 files", ["--readouts", "6000", "--sample", "300", "--repeats", "1"]),
    "accuracy": ("Accuracy of the maps", ["--quick"]),
    "crlb": ("Cramer-Rao bound", ["--quick"]),
    "quantification": ("Quantification", ["--quick"]),
    "coverage": ("Coverage of the stated intervals", ["--quick"]),
    "encodings": ("The same brain by every encoding", ["--quick"]),
    "undersampling": ("Undersampled csi", ["--quick"]),
    "noncartesian": ("Normal operator of rings and spirals", ["--quick"]),
    "learned": ("Learned models against everything simpler", ["--quick"]),
    "learned_speed": ("Time of raiise and dae", ["--quick"]),
    "gate": ("The gate of a learned manifold", ["--quick"]),
    "nuisance": ("Removal of water and lipids", ["--quick"]),
    "real_7t_rings": ("The real 7 T rings", []),
    "fuzz": ("Mutated inputs", ["--quick"]),
    "bart_pics": ("BART on the same data and basis", ["--quick"]),
}
"""Script -> title, and what makes it quick."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller problems")
    parser.add_argument("--only", nargs="*", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    given = parser.parse_args()
    sections = known(given.output)
    failed = []
    for name in given.only:
        title, quick = SCRIPTS[name]
        command = [sys.executable, str(FOLDER / f"{name}.py"), *(quick if given.quick else [])]
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout)
        if done.returncode:
            failed.append(name)
            continue
        when = f"{datetime.now(UTC):%Y-%m-%d}, {time.perf_counter() - start:.0f} s" + (", quick" if given.quick else "")
        line = " ".join([f"benchmarks/{name}.py", *command[2:]])
        sections[title] = f"`python {line}` ({when})\n\n```text\n{done.stdout.rstrip()}\n```\n"
        write(given.output, sections)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def known(path: Path) -> dict[str, str]:
    """Return title -> text of the sections a file of results has."""
    if not path.exists():
        return {}
    _, *parts = re.split(r"^## (.*)\n+", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], (text.rstrip() + "\n" for text in parts[1::2]), strict=True))


def write(path: Path, sections: dict[str, str]) -> None:
    """Write the sections in the order of the scripts, others (what was run by hand) behind them."""
    order = [title for title, _ in SCRIPTS.values() if title in sections]
    order += [title for title in sections if title not in order]
    head = (
        "# Benchmarks\n\nWritten by `python benchmarks/run_all.py`. What the measures mean: "
        "[docs/explanation/measures.md](../docs/explanation/measures.md). All brains are simulated; the rings at 7 T "
        "are real.\n"
    )
    path.write_text("\n".join([head, *(f"## {title}\n\n{sections[title]}" for title in order)]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
