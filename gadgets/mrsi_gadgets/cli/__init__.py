"""The command ``mrsi``: scans in, maps out, models, files, and everything around them (`mrsi --help` lists all)."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mrsi_gadgets import __version__
from mrsi_gadgets.cli import files, results, scans, serving
from mrsi_gadgets.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, names, positive, say
from mrsi_gadgets.errors import MrsiError
from mrsi_gadgets.logs import set_up_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error of the user's data or settings is one sentence on stderr and exit code 1."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        parser.exit(EXIT_USAGE)
    given, strange = parser.parse_known_args(arguments)
    if strange:
        given.parser.error(f"unknown option or argument {strange[0]}; the options are listed above")
    # a service tells what it does; a command that answers with a result or one sentence says nothing else
    set_up_logging(given.log_level or ("INFO" if given.command in ("serve", "demo") else "CRITICAL"), given.log_format)
    if getattr(given, "threads", None):
        os.environ["MRSI_THREADS"] = str(given.threads)
    command: Callable[[argparse.Namespace], int] = given.run
    try:
        return command(given)
    except MrsiError as error:
        if given.debug:
            raise
        _say_failure(given, f"{error}")
        return EXIT_FAILED
    except BrokenPipeError:
        return EXIT_FAILED
    except Exception as error:  # outermost: a user sees a sentence, --debug the traceback
        if given.debug:
            raise
        _say_failure(
            given, f"internal error ({type(error).__name__}: {error}); run again with --debug and report what it shows"
        )
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    common.add_argument("--log-level", choices=levels, help="default: INFO for serve and demo, else no log")
    common.add_argument("--log-format", default="text", choices=["text", "json"], help="json: a record a line")
    parser = argparse.ArgumentParser(prog="mrsi", description="Streaming MRSI reconstruction: readouts in, maps out.")
    parser.add_argument("--version", action="version", version=f"mrsi-gadgets {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=about, description=f"{about[0].upper()}{about[1:]}.")
        made.set_defaults(parser=made)
        return made

    serving.add_serve(command("serve", "wait for scanners, Gadgetrons and replays"))
    serving.add_recover(command("recover", "list kept raw data of sessions, reconstruct one again"))
    scans.add_replay(command("replay", "reconstruct a raw file, here or on a server"))
    scans.add_compare(command("compare", "run all methods on one raw file"))
    scans.add_learn(command("learn", "train the signal models of a protocol"))
    files.add_simulate(command("simulate", "write a numerical brain's scan and truth"))
    files.add_check(command("check", "say what a raw file holds, lacks and contradicts"))
    files.add_convert(command("convert", "turn a Siemens twix file into MRD"))
    report = command("report", "one HTML page of a result: maps, spectra, origin")
    report.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    report.add_argument("--output", "-o", type=Path, metavar="FILE.html", help="default: report.html in the folder")
    report.set_defaults(run=results.report)
    regions = command("regions", "write a result's table of regions anew")
    regions.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    regions.add_argument("labels", type=Path, nargs="?", help="NIfTI volume of labels (names: a .tsv beside it)")
    regions.set_defaults(run=results.regions)
    fsl_mrs = command("fsl-mrs", "add the folder that FSL-MRS and FSLeyes read")
    fsl_mrs.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    fsl_mrs.set_defaults(run=results.fsl_mrs)
    results.add_dicom(command("dicom", "write a result's maps and spectra as DICOM"))
    results.add_send(command("send", "store a result in a DICOM archive"))
    anonymous = command("anonymise", "copy a raw file or result without identities")
    anonymous.add_argument("source", type=Path, help="MRD .h5 file, or result folder of `mrsi replay`")
    anonymous.add_argument("--output", "-o", type=Path, required=True, help="new file or folder")
    anonymous.add_argument("--keep", type=names, default=(), metavar="A,B", help="user parameters with texts that stay")
    anonymous.set_defaults(run=files.anonymise)
    openrecon = command("openrecon", "the label of an Open Recon container")
    openrecon.add_argument("--gpu", action="store_true", help="the container can use a GPU")
    openrecon.add_argument("--memory-mib", type=positive, default=8192, metavar="N", help="memory it needs")
    form = openrecon.add_mutually_exclusive_group()
    form.add_argument("--dockerfile", action="store_true", help="as the line of a Dockerfile instead of JSON")
    form.add_argument("--base64", action="store_true", help="as the image carries it")
    openrecon.set_defaults(run=_openrecon)
    recipe = command("recipe", "list recipes, gadgets and their attributes")
    recipe.add_argument("name", nargs="?", help="show this recipe's chain")
    recipe.set_defaults(run=_recipe)
    demo = command("demo", "simulate, serve, stream, reconstruct, show")
    demo.add_argument("--output", "-o", type=Path, default=Path("demo_output"), help="folder (default: demo_output)")
    demo.add_argument("--preset", default="csi48", help="numerical brain (`mrsi simulate list`; default: csi48)")
    demo.set_defaults(run=_demo)
    return parser


def _recipe(given: argparse.Namespace) -> int:
    from mrsi_gadgets.gadgets.composition import describe_gadgets, find_recipe, recipe_names

    if given.name:
        for gadget in find_recipe(given.name, allow_path=True).gadgets:
            say(f"{gadget}")
        return EXIT_OK
    say(f"recipes: {', '.join(recipe_names())}\n\n{describe_gadgets()}")
    return EXIT_OK


def _openrecon(given: argparse.Namespace) -> int:
    import json

    from mrsi_gadgets.gadgets.openrecon import label, label_base64, label_line

    made = label(gpu=given.gpu, memory_mib=given.memory_mib)
    plain = json.dumps(made, indent=2, ensure_ascii=False)
    say(label_line(made) if given.dockerfile else label_base64(made) if given.base64 else plain)
    return EXIT_OK


def _demo(given: argparse.Namespace) -> int:
    from mrsi_gadgets.demo import run_demo

    say(run_demo(given.output, preset=given.preset))
    return EXIT_OK


def _say_failure(given: argparse.Namespace, sentence: str) -> None:
    """Say why a command failed: a sentence for people, or one record where the log is for machines."""
    text = f"mrsi {given.command}: {sentence}"
    if given.log_format == "json":
        log = logging.getLogger("mrsi.cli")
        log.setLevel(logging.ERROR)  # whatever else the command leaves out of its log
        log.error("%s", text, extra={"failure": sentence})
    else:
        say(text, sys.stderr)
