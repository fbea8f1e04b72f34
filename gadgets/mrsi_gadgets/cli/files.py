"""`mrsi simulate`, `mrsi check`, `mrsi convert` and `mrsi anonymise`: raw files made, looked at, turned into others."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mrsi_gadgets.cli.options import (
    EXIT_FAILED,
    EXIT_OK,
    add_header_options,
    check_new_file,
    not_negative,
    number,
    say,
    settings_of,
    trajectories_folder,
    whole,
)
from mrsi_gadgets.errors import ConfigError

_UNSUPPRESSED = "unsuppressed"


def _residual_water(text: str) -> float | str:
    return text if text == _UNSUPPRESSED else not_negative(text)


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi simulate` takes."""
    parser.add_argument("preset", help="name of a preset; 'list' shows them")
    parser.add_argument("--output", "-o", type=Path, help="MRD .h5 file; the truth is written beside it")
    parser.add_argument("--snr", type=float, help="NAA peak SNR (inf: no noise)")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the brain")
    parser.add_argument("--noise-seed", type=whole, default=1, help="seed of its noise")
    parser.add_argument(
        "--residual-water", type=_residual_water, metavar="TIMES_NAA",
        help="mean residual water over NAA CH3 at t = 0, or 'unsuppressed': all of the water",
    )  # fmt: skip
    parser.add_argument("--lipid", type=not_negative, metavar="TIMES_NAA", help="scalp lipids over NAA CH3 at t = 0")
    parser.add_argument(
        "--water-sidebands", type=not_negative, metavar="FRACTION",
        help="sidebands of the water over its line at the edge of the head, such as 0.005",
    )  # fmt: skip
    parser.add_argument("--drift", type=number, metavar="HZ_PER_MINUTE", help="drift of the frequency")
    parser.set_defaults(run=_simulate)


def _simulate(given: argparse.Namespace) -> int:
    from mrsi_gadgets.phantom.presets import PRESETS, describe_presets, find_preset
    from mrsi_gadgets.phantom.simulate import write_simulation
    from mrsi_gadgets.phantom.truth import truth_paths

    if given.preset == "list":
        say(describe_presets())
        return EXIT_OK
    if given.preset not in PRESETS:
        raise ConfigError(f"there is no preset '{given.preset}'; known are {', '.join(PRESETS)}")
    if given.output is None:
        raise ConfigError("name the file to write with -o FILE.h5")
    if not truth_paths(given.output)[0].exists():
        # a simulation may be made anew; anything else that is there was measured
        check_new_file(given.output, example="brain.h5")
    wanted = {
        "lipid": given.lipid, "water_sidebands": given.water_sidebands, "drift_hz_per_minute": given.drift,
    }  # fmt: skip
    if given.residual_water is not None:
        unsuppressed = given.residual_water == _UNSUPPRESSED
        wanted |= {"water_suppressed": False} if unsuppressed else {"residual_water": given.residual_water}
    preset = replace(find_preset(given.preset), **{name: value for name, value in wanted.items() if value is not None})
    lines = write_simulation(
        preset, given.output, snr=given.snr, seed=given.seed, noise_seed=given.noise_seed,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    say(lines)
    return EXIT_OK


def add_check(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi check` takes."""
    parser.add_argument("file", type=Path, help="MRD .h5 file")
    add_header_options(parser)
    parser.set_defaults(run=_check)


def _check(given: argparse.Namespace) -> int:
    from mrsi_gadgets.mrd.check import check_file

    report = check_file(
        given.file, settings_of(given.set), sequence=given.sequence, trajectories=trajectories_folder(given)
    )
    say(report.text())
    return EXIT_OK if report.ok else EXIT_FAILED


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi convert` takes."""
    parser.add_argument("file", type=Path, help="Siemens twix .dat")
    parser.add_argument("--sequence", help="sequence description: a shipped name or a .toml path")
    parser.add_argument("--output", "-o", type=Path, required=True, help="MRD .h5 file to write")
    parser.set_defaults(run=_convert)


def _convert(given: argparse.Namespace) -> int:
    from mrsi_gadgets.io.twix import convert_twix

    check_new_file(given.output, example="scan.h5")
    say(convert_twix(given.file, given.output, sequence=given.sequence))
    return EXIT_OK


def anonymise(given: argparse.Namespace) -> int:
    """Run `mrsi anonymise`."""
    from mrsi_gadgets.anonymise import anonymise

    removed = anonymise(given.source, given.output, given.keep)
    say(f"-> {given.output}; taken out: {', '.join(removed)}")
    return EXIT_OK
