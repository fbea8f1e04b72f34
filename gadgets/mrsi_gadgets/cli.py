"""The command ``mrsi``: scans in, maps out, models, files, and everything around them (`mrsi --help` lists all)."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mrsi_gadgets import __version__
from mrsi_gadgets.errors import ConfigError, MrsiError
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.logs import set_up_logging

if TYPE_CHECKING:
    from mrsi_gadgets.io.spool import SpoolOptions
    from mrsi_gadgets.output.dicom.write import DicomOptions

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error of the user's data or settings is one sentence on stderr and exit code 1."""
    parser = _parser()
    given = parser.parse_args(arguments)
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
        _say("interrupted", sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    common.add_argument("--log-level", choices=levels, help="default: INFO for serve and demo, else no log")
    common.add_argument("--log-format", default="text", choices=["text", "json"])
    parser = argparse.ArgumentParser(prog="mrsi", description="Streaming MRSI reconstruction: readouts in, maps out.")
    parser.add_argument("--version", action="version", version=f"mrsi-gadgets {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", parents=[common], help="wait for scanners, Gadgetrons and replays"))
    _add_recover(
        commands.add_parser("recover", parents=[common], help="list kept raw data of sessions, reconstruct one again")
    )
    _add_replay(commands.add_parser("replay", parents=[common], help="reconstruct a raw file, here or on a server"))
    _add_compare(commands.add_parser("compare", parents=[common], help="run all methods on one raw file"))
    _add_learn(commands.add_parser("learn", parents=[common], help="train the signal models of a protocol"))
    _add_simulate(commands.add_parser("simulate", parents=[common], help="write a numerical brain's scan and truth"))
    _add_check(commands.add_parser("check", parents=[common], help="say what a raw file holds, lacks and contradicts"))
    _add_convert(commands.add_parser("convert", parents=[common], help="turn a Siemens twix file into MRD"))
    report = commands.add_parser("report", parents=[common], help="one HTML page of a result: maps, spectra, origin")
    report.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    report.add_argument("--output", "-o", type=Path, metavar="FILE.html", help="default: report.html in the folder")
    report.set_defaults(run=_report)
    regions = commands.add_parser("regions", parents=[common], help="write a result's table of regions anew")
    regions.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    regions.add_argument("labels", type=Path, nargs="?", help="NIfTI volume of labels (names: a .tsv beside it)")
    regions.set_defaults(run=_regions)
    fsl_mrs = commands.add_parser("fsl-mrs", parents=[common], help="add the folder that FSL-MRS and FSLeyes read")
    fsl_mrs.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    fsl_mrs.set_defaults(run=_fsl_mrs)
    _add_dicom(commands.add_parser("dicom", parents=[common], help="write a result's maps and spectra as DICOM"))
    _add_send(commands.add_parser("send", parents=[common], help="store a result in a DICOM archive"))
    anonymous = commands.add_parser("anonymise", parents=[common], help="copy a raw file or result without identities")
    anonymous.add_argument("source", type=Path, help="MRD .h5 file, or result folder of `mrsi replay`")
    anonymous.add_argument("--output", "-o", type=Path, required=True, help="new file or folder")
    anonymous.add_argument(
        "--keep", type=_names, default=(), metavar="A,B", help="user parameters with texts that stay"
    )
    anonymous.set_defaults(run=_anonymise)
    openrecon = commands.add_parser("openrecon", parents=[common], help="the label of an Open Recon container")
    openrecon.add_argument("--gpu", action="store_true", help="the container can use a GPU")
    openrecon.add_argument("--memory-mib", type=_positive, default=8192, metavar="N", help="memory it needs")
    form = openrecon.add_mutually_exclusive_group()
    form.add_argument("--dockerfile", action="store_true", help="as the line of a Dockerfile instead of JSON")
    form.add_argument("--base64", action="store_true", help="as the image carries it")
    openrecon.set_defaults(run=_openrecon)
    recipe = commands.add_parser("recipe", parents=[common], help="list recipes, gadgets and their attributes")
    recipe.add_argument("name", nargs="?", help="show this recipe's chain")
    recipe.set_defaults(run=_recipe)
    demo = commands.add_parser("demo", parents=[common], help="simulate, serve, stream, reconstruct, show")
    demo.add_argument("--output", "-o", type=Path, default=Path("demo_output"))
    demo.add_argument("--preset", default="csi48")
    demo.set_defaults(run=_demo)
    return parser


def _add_scan_options(parser: argparse.ArgumentParser, *, recipe_help: str) -> None:
    parser.add_argument("--config", metavar="RECIPE", help=f"recipe by name or path ({recipe_help})")
    parser.add_argument("--config-dir", type=Path, help="folder of the site's own recipes (also MRSI_CONFIG_DIR)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--threads", type=_positive, help="threads for numeric libraries (also MRSI_THREADS)")
    _add_header_options(parser)
    parser.add_argument(
        "--models", type=Path, metavar="DIR",
        help="folder of learned signal models (also MRSI_MODELS; default: the user's own and models in the site's)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_whole, default=0)


def _add_header_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="profile key over the header's")
    parser.add_argument("--sequence", help="sequence description of the header: a shipped name or a .toml path")
    parser.add_argument(
        "--trajectories", type=Path, metavar="DIR",
        help="trajectory store: folder of ID.npz files (default: trajectories in the site's folder)",
    )  # fmt: skip


def _scan_options(given: argparse.Namespace) -> ScanOptions:
    return ScanOptions(
        recipe=given.config, site=given.config_dir, device=given.device, settings=_settings(given.set), seed=given.seed,
        sequence=given.sequence, trajectories=_trajectories(given), models=_models(given),
    )  # fmt: skip


def _trajectories(given: argparse.Namespace) -> Path | None:
    path: Path | None = given.trajectories
    if path is not None and not path.is_dir():
        raise ConfigError(f"--trajectories {path} is no folder; name the folder of the ID.npz files")
    return path


def _models(given: argparse.Namespace) -> Path | None:
    path: Path | None = given.models
    if path is not None and not path.is_dir():
        raise ConfigError(f"--models {path} is no folder; name the one that `mrsi learn --output` has written to")
    return path


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    from mrsi_gadgets.mrd.keys import check_settings

    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.startswith("mrsi_"):
            raise ConfigError(f"--set {pair} is not KEY=VALUE with a profile key such as mrsi_dwell_us=500")
        settings[key] = value
    check_settings(settings)
    return settings


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a time in seconds above 0")
    return value


def _gibibytes(text: str) -> float:
    try:
        return _seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of GiB above 0") from None


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=9002)
    parser.add_argument(
        "--allow", type=_networks, default=(), metavar="NETWORK,...",
        help="addresses or networks that may speak to the server besides this machine (default: all that reach it)",
    )  # fmt: skip
    parser.add_argument("--peer", default="auto", choices=["auto", "fire", "gadgetron"], help="dialect of the peers")
    parser.add_argument("--warm", type=int, default=1, help="session processes kept warm")
    parser.add_argument("--max-sessions", type=_positive, default=8, metavar="N", help="sessions at once (default: 8)")
    parser.add_argument(
        "--idle-timeout", type=_seconds, metavar="SECONDS", help="give a silent peer up for lost (default: never)"
    )
    parser.add_argument("--max-message-mib", type=_positive, metavar="N", help="refuse larger messages (default: 1024)")
    spool = parser.add_mutually_exclusive_group()
    spool.add_argument(
        "--spool", type=Path, metavar="DIR",
        help="folder for the raw data of every session (also MRSI_SPOOL; default: in the user's state directory)",
    )  # fmt: skip
    spool.add_argument("--no-spool", action="store_true", help="keep no raw data")
    parser.add_argument(
        "--spool-limit", type=_gibibytes, metavar="GIB", help="keep at most so much of them (default: 50)", default=50.0
    )
    parser.add_argument(
        "--memory-limit", type=_gibibytes, metavar="GIB",
        help="end a session process that takes more memory (default: nine tenths of the machine's)",
    )  # fmt: skip
    parser.add_argument(
        "--hang-limit", type=_seconds, metavar="SECONDS", default=60.0,
        help="end a session process that has work and shows no sign of it for so long (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--silence-limit", type=_seconds, metavar="SECONDS", default=3600.0,
        help="end a session process that has said nothing for so long after its scan (default: 3600)",
    )  # fmt: skip
    page = parser.add_mutually_exclusive_group()
    page.add_argument(
        "--web-port", type=_positive, metavar="PORT", help="port of this machine for page, /health, /metrics (9080)"
    )
    page.add_argument("--no-page", action="store_true", help="serve neither page nor /health nor /metrics")
    _add_scan_options(parser, recipe_help="default: the one that the peer asks for")
    parser.set_defaults(run=_serve)


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of addresses or networks ({problem})") from None


def _web_port(given: argparse.Namespace) -> int | None:
    from mrsi_gadgets.server.web import USUAL_PORT, is_free

    if given.no_page or given.web_port:
        return given.web_port or None
    if is_free(USUAL_PORT):
        return USUAL_PORT
    logging.getLogger("mrsi.server").warning(
        "port %d is taken, so there is no page, /health or /metrics; choose another port with --web-port", USUAL_PORT
    )
    return None


def _spool_options(given: argparse.Namespace) -> SpoolOptions | None:
    from mrsi_gadgets.io.spool import GIBIBYTE, OFF, SpoolOptions, check_folder, default_folder

    folder = given.spool or default_folder()
    if given.no_spool or (given.spool is None and os.environ.get("MRSI_SPOOL") == OFF):
        return None
    if folder is None:
        raise ConfigError(
            "there is no home folder to keep raw data in; name a folder with --spool, or keep none with --no-spool"
        )
    check_folder(folder)
    return SpoolOptions(folder, int(given.spool_limit * GIBIBYTE))


def _serve(given: argparse.Namespace) -> int:
    from mrsi_gadgets.server.process import ServerOptions
    from mrsi_gadgets.server.supervisor import Server
    from mrsi_gadgets.server.watchdog import GIBIBYTE, ProcessLimits
    from mrsi_gadgets.stream.session import Peer

    options = ServerOptions(
        host=given.host, port=given.port, peer=Peer(given.peer), scan=_scan_options(given), warm=given.warm,
        log_level=given.log_level or "INFO", log_format=given.log_format, max_sessions=given.max_sessions,
        idle_timeout_s=given.idle_timeout, max_message_mib=given.max_message_mib, spool=_spool_options(given),
        limits=ProcessLimits(
            int(given.memory_limit * GIBIBYTE) if given.memory_limit else None, given.hang_limit, given.silence_limit
        ),
        web_port=_web_port(given), allowed=given.allow,
    )  # fmt: skip
    server = Server(options)
    # a service manager ends us with SIGTERM, a terminal with SIGINT: both in order
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.request_stop())
    try:
        server.start()
        server.serve_forever()
    finally:
        server.stop()
    return EXIT_OK


def _add_recover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", type=_positive, nargs="?", help="its number; without one all are listed")
    parser.add_argument("--output", "-o", type=Path, help="reconstruct it: folder for maps, images and pictures")
    parser.add_argument("--h5", type=Path, metavar="FILE", help="write its raw data to an MRD .h5 file")
    parser.add_argument("--remove", action="store_true", help="remove its raw data for good")
    parser.add_argument("--incomplete", action="store_true", help="reconstruct a scan that was cut off")
    parser.add_argument(
        "--spool", type=Path, metavar="DIR", help="folder that `mrsi serve` keeps raw data in (also MRSI_SPOOL)"
    )
    _add_scan_options(parser, recipe_help="default: as the session asked for")
    parser.set_defaults(run=_recover, device=None, seed=None)


def _recover(given: argparse.Namespace) -> int:
    from mrsi_gadgets import recover
    from mrsi_gadgets.output.folder import check_target
    from mrsi_gadgets.replay import save

    wanted = (given.output, given.h5, given.remove or None)
    if given.session is None:
        if any(wanted):
            raise ConfigError("say which session: `mrsi recover` lists their numbers")
        _say(recover.listing(recover.spool_folder(given.spool)))
        return EXIT_OK
    if sum(one is not None for one in wanted) != 1:
        raise ConfigError(
            "say what to do with the session: -o RESULT reconstructs it, --h5 FILE exports, --remove ends it"
        )
    folder = recover.spool_folder(given.spool)
    if given.remove:
        _say(recover.remove(folder, [given.session]))
    elif given.h5 is not None:
        _say(recover.write_h5(folder, given.session, given.h5))
    else:
        check_target(given.output)
        here = {
            "recipe": given.config, "site": given.config_dir, "device": given.device, "seed": given.seed,
            "sequence": given.sequence, "trajectories": _trajectories(given), "models": _models(given),
            "settings": _settings(given.set) or None,
        }  # fmt: skip
        changes = {name: value for name, value in here.items() if value is not None}
        result = recover.recover(
            folder, given.session, changes, incomplete=given.incomplete, progress=sys.stderr.isatty()
        )
        save(result, given.output)
        for warning in result.summary.get("warnings", []):
            _say(f"warning: {warning}", sys.stderr)
        _say(f"{len(result.images)} images -> {given.output}/ (maps/, contact.png, images.h5, summary.json)")
    return EXIT_OK


def _add_replay(parser: argparse.ArgumentParser) -> None:
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
    _add_scan_options(parser, recipe_help="default: the one an MRD stream on stdin names, else subspace")
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
        _scan_options(given), spectra=spectra, usual_spectra=usual, tissue=tuple(given.tissue), b1=given.b1
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
        scan = replay.in_real_time(scan, options, tell=lambda sentence: _say(f"warning: {sentence}", sys.stderr))
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
        _say(f"warning: {warning}", sys.stderr)
    where = "stdout" if given.output is None else f"{given.output}/ (maps/, contact.png, images.h5, summary.json)"
    _say(f"{len(result.images)} images -> {where}", sys.stderr if given.stdout else None)
    return EXIT_OK


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="MRD .h5 file, or - for an MRD stream on stdin; a simulated one's truth is used")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder for table and picture")
    parser.add_argument("--methods", type=_names, default=(), metavar="A,B", help="default: all that can be run")
    parser.add_argument("--maps", type=_names, default=(), metavar="A,B", help="maps to draw (default: the usual ones)")
    parser.add_argument("--self-test", action="store_true", help="put unseen signals into the data, measure contrast")
    _add_scan_options(parser, recipe_help="preparation and fit; default: subspace")
    parser.set_defaults(run=_compare)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _compare(given: argparse.Namespace) -> int:
    from mrsi_gadgets.compare import CompareOptions, compare
    from mrsi_gadgets.output.comparison import check_folder, write_comparison
    from mrsi_gadgets.output.comparison_table import table

    check_folder(given.output)
    options = CompareOptions(_scan_options(given), given.methods, given.maps, self_test=given.self_test)
    found = compare(given.file, options, bar=sys.stderr.isatty(), tell=lambda line: _say(line, sys.stderr))
    write_comparison(given.output, found)
    _say(table(found))
    _say(f"\npicture -> {given.output / 'comparison.png'}   table -> {given.output}/comparison.txt, .csv, .json")
    return EXIT_OK


def _add_learn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "protocol", help="shipped learning protocol ('list' shows them), .toml file, or raw .h5 file of such a scan"
    )
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="model store (default: where scans look)")
    parser.add_argument("--seed", type=_whole, default=0)
    parser.add_argument("--threads", type=_positive, help="threads for numeric libraries (also MRSI_THREADS)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="profile key over the header's")
    parser.add_argument("--sequence", help="sequence description of the header: a shipped name or a .toml path")
    parser.set_defaults(run=_learn)


def _learn(given: argparse.Namespace) -> int:
    from mrsi_gadgets import learn
    from mrsi_gadgets.io.learning import shipped_learning_protocols
    from mrsi_gadgets.io.model_store import model_stores, read_card

    if given.protocol == "list":
        _say("\n".join(shipped_learning_protocols()))
        return EXIT_OK
    target = learn.read_target(
        given.protocol, _settings(given.set), sequence=given.sequence,
        warn=lambda sentence: _say(f"warning: {sentence}", sys.stderr),
    )  # fmt: skip
    folder = given.output or next(iter(model_stores()), None)
    if folder is None:
        raise ConfigError("there is no home folder to keep models in; name a folder with --output")
    cards = learn.learn(
        target, folder, seed=given.seed, bar=sys.stderr.isatty(), tell=lambda line: _say(line, sys.stderr)
    )
    for card in cards:
        _say(learn.describe_model(read_card(card)))
        _say(f"-> {card.with_suffix('.safetensors')} ({card.name}, {card.with_suffix('.png').name})")
    return EXIT_OK


_UNSUPPRESSED = "unsuppressed"


def _residual_water(text: str) -> float | str:
    return text if text == _UNSUPPRESSED else _not_negative(text)


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="name of a preset; 'list' shows them")
    parser.add_argument("--output", "-o", type=Path, help="MRD .h5 file; the truth is written beside it")
    parser.add_argument("--snr", type=float, help="NAA peak SNR (inf: no noise)")
    parser.add_argument("--seed", type=_whole, default=0, help="seed of the brain")
    parser.add_argument("--noise-seed", type=_whole, default=1)
    parser.add_argument(
        "--residual-water", type=_residual_water, metavar="TIMES_NAA",
        help="mean residual water over NAA CH3 at t = 0, or 'unsuppressed': all of the water",
    )  # fmt: skip
    parser.add_argument("--lipid", type=_not_negative, metavar="TIMES_NAA", help="scalp lipids over NAA CH3 at t = 0")
    parser.add_argument(
        "--water-sidebands", type=_not_negative, metavar="FRACTION",
        help="sidebands of the water over its line at the edge of the head, such as 0.005",
    )  # fmt: skip
    parser.add_argument("--drift", type=float, metavar="HZ_PER_MINUTE", help="drift of the frequency")
    parser.set_defaults(run=_simulate)


def _simulate(given: argparse.Namespace) -> int:
    from mrsi_gadgets.phantom.presets import PRESETS, describe_presets, find_preset
    from mrsi_gadgets.phantom.simulate import write_simulation

    if given.preset == "list":
        _say(describe_presets())
        return EXIT_OK
    if given.preset not in PRESETS:
        raise ConfigError(f"there is no preset '{given.preset}'; known are {', '.join(PRESETS)}")
    if given.output is None:
        raise ConfigError("name the file to write with -o FILE.h5")
    if given.output.is_dir():
        raise ConfigError(f"{given.output} is a folder; name the file to write with -o {given.output / 'brain.h5'}")
    if not given.output.resolve().parent.is_dir():
        raise ConfigError(f"{given.output} cannot be written because its folder does not exist; make it first")
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
    _say(lines)
    return EXIT_OK


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    _add_header_options(parser)
    parser.set_defaults(run=_check)


def _check(given: argparse.Namespace) -> int:
    from mrsi_gadgets.mrd.check import check_file

    report = check_file(given.file, _settings(given.set), sequence=given.sequence, trajectories=_trajectories(given))
    _say(report.text())
    return EXIT_OK if report.ok else EXIT_FAILED


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="Siemens twix .dat")
    parser.add_argument("--sequence", help="sequence description: a shipped name or a .toml path")
    parser.add_argument("--output", "-o", type=Path, required=True, help="MRD .h5 file to write")
    parser.set_defaults(run=_convert)


def _convert(given: argparse.Namespace) -> int:
    from mrsi_gadgets.io.twix import convert_twix

    _say(convert_twix(given.file, given.output, sequence=given.sequence))
    return EXIT_OK


def _report(given: argparse.Namespace) -> int:
    from mrsi_gadgets.output.report import write_report

    path = write_report(given.result, given.output)
    _say(f"report -> {path} ({path.stat().st_size / 1e6:.1f} MB; open it in a browser)")
    return EXIT_OK


def _regions(given: argparse.Namespace) -> int:
    from mrsi_gadgets.output.folder import rewrite_regions

    _say(f"regions -> {rewrite_regions(given.result, given.labels)}")
    return EXIT_OK


def _fsl_mrs(given: argparse.Namespace) -> int:
    from mrsi_gadgets.output.folder import add_fsl_mrs

    for folder in add_fsl_mrs(given.result):
        _say(f"FSL-MRS results -> {folder}")
    return EXIT_OK


def _add_dicom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    parser.add_argument("--output", "-o", type=Path, required=True, help="new folder for the DICOM files")
    _add_dicom_options(parser)
    parser.set_defaults(run=_dicom)


def _add_dicom_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--maps", type=_names, default=(), metavar="A,B", help="maps, or all (default: those shown)")
    parser.add_argument(
        "--kinds", type=_names, default=("classic", "parametric", "spectra"), metavar="A,B",
        help="classic (MR images), parametric (exact maps), spectra; default: all three",
    )  # fmt: skip
    parser.add_argument(
        "--reference", type=Path, metavar="FILE.dcm",
        help="DICOM image of the same exam: patient, study and frame of reference are copied from it",
    )  # fmt: skip
    parser.add_argument("--patient-id", default="", help="without --reference")
    parser.add_argument("--patient-name", default="", help="without --reference")


def _dicom(given: argparse.Namespace) -> int:
    from mrsi_gadgets.output.dicom.write import write_dicom

    files = write_dicom(given.result, given.output, _dicom_options(given))
    _say(f"{len(files)} DICOM files -> {given.output}/")
    return EXIT_OK


def _dicom_options(given: argparse.Namespace) -> DicomOptions:
    from mrsi_gadgets.output.dicom.write import DicomOptions

    return DicomOptions(given.maps, given.kinds, given.reference, given.patient_id, given.patient_name)


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="result folder of `mrsi replay`, or folder of DICOM files")
    parser.add_argument("--pacs", required=True, metavar="AET@HOST:PORT", help="the archive")
    parser.add_argument("--calling-aet", default="MRSIGADGETS", help="our own title (default: MRSIGADGETS)")
    _add_dicom_options(parser)
    parser.set_defaults(run=_send)


def _send(given: argparse.Namespace) -> int:
    import tempfile

    from mrsi_gadgets.output.dicom.pacs import Node, send
    from mrsi_gadgets.output.dicom.write import write_dicom

    node = Node.of(given.pacs)
    with tempfile.TemporaryDirectory() as scratch:
        files = sorted(given.source.rglob("*.dcm")) if given.source.is_dir() else []
        if not files:
            files = write_dicom(given.source, Path(scratch) / "dicom", _dicom_options(given))
        count = send(files, node, calling=given.calling_aet)
    _say(f"{count} objects stored in {node.title} at {node.host}:{node.port}")
    return EXIT_OK


def _recipe(given: argparse.Namespace) -> int:
    from mrsi_gadgets.gadgets.composition import describe_gadgets, find_recipe, recipe_names

    if given.name:
        for gadget in find_recipe(given.name, allow_path=True).gadgets:
            _say(f"{gadget}")
        return EXIT_OK
    _say(f"recipes: {', '.join(recipe_names())}\n\n{describe_gadgets()}")
    return EXIT_OK


def _anonymise(given: argparse.Namespace) -> int:
    from mrsi_gadgets.anonymise import anonymise

    removed = anonymise(given.source, given.output, given.keep)
    _say(f"-> {given.output}; taken out: {', '.join(removed)}")
    return EXIT_OK


def _openrecon(given: argparse.Namespace) -> int:
    import json

    from mrsi_gadgets.gadgets.openrecon import label, label_base64, label_line

    made = label(gpu=given.gpu, memory_mib=given.memory_mib)
    plain = json.dumps(made, indent=2, ensure_ascii=False)
    _say(label_line(made) if given.dockerfile else label_base64(made) if given.base64 else plain)
    return EXIT_OK


def _demo(given: argparse.Namespace) -> int:
    from mrsi_gadgets.demo import run_demo

    _say(run_demo(given.output, preset=given.preset))
    return EXIT_OK


def _say_failure(given: argparse.Namespace, sentence: str) -> None:
    """Say why a command failed: a sentence for people, or one record where the log is for machines."""
    text = f"mrsi {given.command}: {sentence}"
    if given.log_format == "json":
        log = logging.getLogger("mrsi.cli")
        log.setLevel(logging.ERROR)  # whatever else the command leaves out of its log
        log.error("%s", text, extra={"failure": sentence})
    else:
        _say(text, sys.stderr)


def _say(text: str, stream: TextIO | None = None) -> None:
    out = stream or sys.stdout
    out.write(text + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
