"""`mrsi replay`, `mrsi compare` and `mrsi learn`: raw files through the chain, and models for them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mrsi_gadgets.cli.options import EXIT_OK, add_scan_options, names, positive, say, scan_options, settings_of, whole
from mrsi_gadgets.errors import ConfigError


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi replay` takes."""
    parser.add_argument("file", help="MRD .h5 file, or - for an MRD stream on stdin")
    parser.add_argument("--output", "-o", type=Path, help="folder for maps, images and pictures")
    parser.add_argument("--stdout", action="store_true", help="write header and images to stdout as an MRD stream")
    parser.add_argument("--to", metavar="HOST:PORT", help="send to this MRD server instead of computing here")
    parser.add_argument("--realtime", action="store_true", help="pace the readouts by their time stamps")
    parser.add_argument(
        "--spectra", choices=["examples", "all", "none"],
        help="spectra that are kept with the maps (default: what the recipe says, else all; with --to what the server "
        "sends, with --stdout examples)",
    )  # fmt: skip
    parser.add_argument(
        "--tissue", type=Path, nargs="+", default=[], metavar="NIFTI",
        help="fractions of grey matter, white matter and CSF (three files in this order, or their folder), for mM",
    )  # fmt: skip
    parser.add_argument("--b1", type=Path, metavar="NIFTI", help="real flip angle over the nominal one, for maps in mM")
    parser.add_argument(
        "--regions", type=Path, metavar="NIFTI", help="labels whose regions join regions.csv (names: a .tsv beside it)"
    )
    parser.add_argument("--fsl-mrs", action="store_true", help="also write the folder that FSL-MRS and FSLeyes read")
    add_scan_options(parser, recipe_help="default: the one an MRD stream on stdin names, else subspace")
    parser.set_defaults(run=_replay)


def _replay(given: argparse.Namespace) -> int:
    from mrsi_gadgets import replay
    from mrsi_gadgets.io.volumes import read_volume
    from mrsi_gadgets.output.folder import add_fsl_mrs, check_target

    if given.output is None and not given.stdout:
        raise ConfigError("name a folder for the result with -o FOLDER, or --stdout for an MRD stream")
    if given.output is not None:
        check_target(given.output)
    elif given.regions or given.fsl_mrs:
        raise ConfigError("--regions and --fsl-mrs add to the result folder; name it with -o FOLDER")
    if given.regions:
        read_volume(given.regions)  # a file that cannot be read is refused before the scan is computed
    pipe = replay.ImagePipe() if given.stdout else None
    usual = "examples" if given.output is None else "all"
    if given.fsl_mrs and given.spectra not in (None, "all"):
        raise ConfigError(f"--fsl-mrs needs the spectra of all voxels; leave --spectra {given.spectra} out")
    spectra = "all" if given.fsl_mrs else given.spectra
    options = replace(
        scan_options(given), spectra=spectra, usual_spectra=usual, tissue=tuple(given.tissue), b1=given.b1
    )
    if given.to and (given.tissue or given.b1):
        raise ConfigError(
            "--tissue and --b1 are read where the chain runs; with --to, name the files in the server's recipe "
            '(<absolute_units tissue="GM WM CSF"/>) and leave them out here'
        )
    if given.to and (given.device != "auto" or given.seed):
        raise ConfigError("--device and --seed are decisions of the server; leave them out with --to")
    if given.to and (given.threads or given.trajectories or given.models or (given.sequence and not given.realtime)):
        raise ConfigError(
            "--threads, --sequence, --models and --trajectories are decisions of the server; start it with them and "
            "leave them out with --to"
        )
    scan = replay.open_scan(given.file)
    bar = sys.stderr.isatty()
    if given.realtime:
        scan = replay.in_real_time(scan, options, tell=lambda sentence: say(f"warning: {sentence}", sys.stderr))
    if given.to:
        result = replay.replay_to(scan, given.to, options, progress=bar)
    else:
        result = replay.replay_here(scan, options, progress=bar)
    if pipe is not None:
        pipe.write(scan.header_xml, result.images)
    if given.output is not None:
        replay.save(result, given.output, regions=given.regions)
        if given.fsl_mrs:
            add_fsl_mrs(given.output)
    for warning in result.summary.get("warnings", []):
        say(f"warning: {warning}", sys.stderr)
    where = "stdout" if given.output is None else f"{given.output}/ (maps/, contact.png, images.h5, summary.json)"
    say(f"{len(result.images)} images -> {where}", sys.stderr if given.stdout else None)
    return EXIT_OK


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi compare` takes."""
    parser.add_argument("file", help="MRD .h5 file, or - for an MRD stream on stdin; a simulated one's truth is used")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder for table and picture")
    parser.add_argument("--methods", type=names, default=(), metavar="A,B", help="default: all that can be run")
    parser.add_argument("--maps", type=names, default=(), metavar="A,B", help="maps to draw (default: the usual ones)")
    parser.add_argument("--self-test", action="store_true", help="put unseen signals into the data, measure contrast")
    add_scan_options(parser, recipe_help="preparation and fit; default: subspace")
    parser.set_defaults(run=_compare)


def _compare(given: argparse.Namespace) -> int:
    from mrsi_gadgets.compare import CompareOptions, compare
    from mrsi_gadgets.output.comparison import check_folder, write_comparison
    from mrsi_gadgets.output.comparison_table import table

    check_folder(given.output)
    options = CompareOptions(scan_options(given), given.methods, given.maps, self_test=given.self_test)
    found = compare(given.file, options, bar=sys.stderr.isatty(), tell=lambda line: say(line, sys.stderr))
    write_comparison(given.output, found)
    say(table(found))
    say(f"\npicture -> {given.output / 'comparison.png'}   table -> {given.output}/comparison.txt, .csv, .json")
    return EXIT_OK


def add_learn(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi learn` takes."""
    parser.add_argument(
        "protocol", help="shipped learning protocol ('list' shows them), .toml file, or raw .h5 file of such a scan"
    )
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="model store (default: where scans look)")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--threads", type=positive, help="threads for numeric libraries (also MRSI_THREADS)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="profile key over the header's")
    parser.add_argument("--sequence", help="sequence description of the header: a shipped name or a .toml path")
    parser.set_defaults(run=_learn)


def _learn(given: argparse.Namespace) -> int:
    import tomllib

    from mrsi_gadgets import learn
    from mrsi_gadgets.io.learning import shipped_learning_protocols
    from mrsi_gadgets.io.model_store import model_stores, read_card

    if given.protocol == "list":
        found = shipped_learning_protocols()
        widest = max(map(len, found), default=0)
        for name, path in found.items():
            say(f"{name:<{widest}}  {tomllib.loads(path.read_text(encoding='utf-8')).get('name', '')}".rstrip())
        return EXIT_OK
    target = learn.read_target(
        given.protocol, settings_of(given.set), sequence=given.sequence,
        warn=lambda sentence: say(f"warning: {sentence}", sys.stderr),
    )  # fmt: skip
    folder = given.output or next(iter(model_stores()), None)
    if folder is None:
        raise ConfigError("there is no home folder to keep models in; name a folder with --output")
    cards = learn.learn(
        target, folder, seed=given.seed, bar=sys.stderr.isatty(), tell=lambda line: say(line, sys.stderr)
    )
    for card in cards:
        say(learn.describe_model(read_card(card)))
        say(f"-> {card.with_suffix('.safetensors')} ({card.name}, {card.with_suffix('.png').name})")
    return EXIT_OK
