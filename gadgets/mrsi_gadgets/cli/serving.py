"""`mrsi serve` and `mrsi recover`: the server, and the raw data it keeps."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from mrsi_gadgets.cli.options import (
    EXIT_OK,
    add_scan_options,
    check_new_file,
    gibibytes,
    models_folder,
    positive,
    recipes_folder,
    say,
    scan_options,
    seconds,
    settings_of,
    trajectories_folder,
    whole,
)
from mrsi_gadgets.errors import ConfigError

if TYPE_CHECKING:
    from mrsi_gadgets.io.spool import SpoolOptions


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi serve` takes."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=9002, help="port for MRD clients (default: 9002)")
    parser.add_argument(
        "--allow", type=_networks, default=(), metavar="NETWORK,...",
        help="addresses or networks that may speak to the server besides this machine (default: all that reach it)",
    )  # fmt: skip
    parser.add_argument("--peer", default="auto", choices=["auto", "fire", "gadgetron"], help="dialect of the peers")
    parser.add_argument("--warm", type=whole, default=1, metavar="N", help="session processes kept warm (default: 1)")
    parser.add_argument("--max-sessions", type=positive, default=8, metavar="N", help="sessions at once (default: 8)")
    parser.add_argument(
        "--idle-timeout", type=seconds, metavar="SECONDS", help="give a silent peer up for lost (default: never)"
    )
    parser.add_argument("--max-message-mib", type=positive, metavar="N", help="refuse larger messages (default: 1024)")
    spool = parser.add_mutually_exclusive_group()
    spool.add_argument(
        "--spool", type=Path, metavar="DIR",
        help="folder for the raw data of every session (also MRSI_SPOOL; default: in the user's state directory)",
    )  # fmt: skip
    spool.add_argument("--no-spool", action="store_true", help="keep no raw data")
    parser.add_argument(
        "--spool-limit", type=gibibytes, metavar="GIB", help="keep at most so much of them (default: 50)", default=50.0
    )
    parser.add_argument(
        "--memory-limit", type=gibibytes, metavar="GIB",
        help="end a session process that takes more memory (default: nine tenths of the machine's)",
    )  # fmt: skip
    parser.add_argument(
        "--hang-limit", type=seconds, metavar="SECONDS", default=60.0,
        help="end a session process that has work and shows no sign of it for so long (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--silence-limit", type=seconds, metavar="SECONDS", default=3600.0,
        help="end a session process that has said nothing for so long after its scan (default: 3600)",
    )  # fmt: skip
    page = parser.add_mutually_exclusive_group()
    page.add_argument(
        "--web-port", type=positive, metavar="PORT", help="port of this machine for page, /health, /metrics (9080)"
    )
    page.add_argument("--no-page", action="store_true", help="serve neither page nor /health nor /metrics")
    add_scan_options(parser, recipe_help="default: the one that the peer asks for")
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
        host=given.host, port=given.port, peer=Peer(given.peer), scan=scan_options(given), warm=given.warm,
        log_level=given.log_level or "INFO", log_format=given.log_format, max_sessions=given.max_sessions,
        idle_timeout_s=given.idle_timeout, max_message_mib=given.max_message_mib, spool=_spool_options(given),
        limits=ProcessLimits(
            int(given.memory_limit * GIBIBYTE) if given.memory_limit else None, given.hang_limit, given.silence_limit
        ),
        web_port=_web_port(given), allowed=given.allow,
    )  # fmt: skip
    server = Server(options)
    # a service manager ends us with SIGTERM, a terminal with SIGINT, or SIGHUP where it is closed: all in order
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:  # started by nohup
            continue
        signal.signal(number, lambda *_: server.request_stop())
    try:
        server.start()
        server.serve_forever()
    finally:
        server.stop()
    return EXIT_OK


def add_recover(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi recover` takes."""
    parser.add_argument("session", type=positive, nargs="?", help="its number; without one all are listed")
    parser.add_argument("--output", "-o", type=Path, help="reconstruct it: folder for maps, images and pictures")
    parser.add_argument("--h5", type=Path, metavar="FILE", help="write its raw data to an MRD .h5 file")
    parser.add_argument("--remove", action="store_true", help="remove its raw data for good")
    parser.add_argument("--incomplete", action="store_true", help="reconstruct a scan that was cut off")
    parser.add_argument(
        "--spool", type=Path, metavar="DIR", help="folder that `mrsi serve` keeps raw data in (also MRSI_SPOOL)"
    )
    add_scan_options(parser, recipe_help="default: as the session asked for")
    parser.set_defaults(run=_recover, device=None, seed=None)


def _recover(given: argparse.Namespace) -> int:
    from mrsi_gadgets import recover
    from mrsi_gadgets.output.folder import check_target
    from mrsi_gadgets.replay import save

    wanted = (given.output, given.h5, given.remove or None)
    if given.session is None:
        if any(wanted):
            raise ConfigError("say which session: `mrsi recover` lists their numbers")
        say(recover.listing(recover.spool_folder(given.spool)))
        return EXIT_OK
    if sum(one is not None for one in wanted) != 1:
        raise ConfigError(
            "say what to do with the session: -o RESULT reconstructs it, --h5 FILE exports, --remove ends it"
        )
    folder = recover.spool_folder(given.spool)
    if given.remove:
        say(recover.remove(folder, [given.session]))
    elif given.h5 is not None:
        check_new_file(given.h5, example="scan.h5")
        say(recover.write_h5(folder, given.session, given.h5))
    else:
        check_target(given.output)
        here = {
            "recipe": given.config, "site": recipes_folder(given), "device": given.device, "seed": given.seed,
            "sequence": given.sequence, "trajectories": trajectories_folder(given), "models": models_folder(given),
            "settings": settings_of(given.set) or None,
        }  # fmt: skip
        changes = {name: value for name, value in here.items() if value is not None}
        result = recover.recover(
            folder, given.session, changes, incomplete=given.incomplete, progress=sys.stderr.isatty()
        )
        save(result, given.output)
        for warning in result.summary.get("warnings", []):
            say(f"warning: {warning}", sys.stderr)
        say(f"{len(result.images)} images -> {given.output}/ (maps/, contact.png, images.h5, summary.json)")
    return EXIT_OK
