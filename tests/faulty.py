"""Faults for a live server, and what must hold after each: nothing that came is lost, nothing hangs, nothing is silent.

`tests/server/test_faults.py` takes a few of each kind, `benchmarks/faults.py` (``make faults``) all of them. Where a
fault is not about processes, the chain of a session runs in a thread of this process, everything else (server, relay,
spool, sockets) as ever; thousands of sessions then take minutes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from mrsi_gadgets.errors import MrsiError
from mrsi_gadgets.gadgets.composition import find_recipe
from mrsi_gadgets.gadgets.node import run_connection
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.io import spool as spool_module
from mrsi_gadgets.io import spool_log
from mrsi_gadgets.io.spool import Spool, SpoolOptions
from mrsi_gadgets.io.spool_archive import archive, find_session, list_sessions, open_session
from mrsi_gadgets.io.spool_files import spool_files
from mrsi_gadgets.io.spool_log import LogReader, State
from mrsi_gadgets.recover import recover
from mrsi_gadgets.server import process as process_module
from mrsi_gadgets.server import supervisor
from mrsi_gadgets.server.watchdog import ProcessLimits
from mrsi_gadgets.stream.messages import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    ErrorText,
    Header,
    Image,
    Message,
    Text,
)
from mrsi_gadgets.stream.session import Peer
from mrsi_gadgets.stream.transport import Connection, Outcome
from mrsi_gadgets.stream.wire import Decoder, encode
from served import NODE_CONFIG, serving
from small_scan import SmallScan, small_scan

HANG_S = 60.0
"""A session of a tiny scan that takes longer hangs."""
RESET = struct.pack("ii", 1, 0)
START_S = 300.0
"""Eight processes that start at once on a machine that is busy otherwise take their time."""
HANG_LIMIT_S = 1.0
MEMORY_LIMIT = 50 << 20
"""Less than a session process takes."""


# --- what is counted ------------------------------------------------------------------------------------------------


@dataclass
class Kind:
    """All faults of one kind and what came of them."""

    name: str
    faults: int = 0
    lost_readouts: int = 0
    kept_readouts: int = 0
    hangs: int = 0
    silent: int = 0
    wrong_results: int = 0
    """Images that came of a scan that was aborted or failed, or other images than a scan without fault gives."""
    sentences: Counter[str] = field(default_factory=Counter)
    """What the console heard, numbers left out."""
    details: list[str] = field(default_factory=list)
    """One line for each thing that must not be."""

    @property
    def good(self) -> bool:
        return not (self.lost_readouts or self.hangs or self.silent or self.wrong_results or self.details)

    def blame(self, what: str, where: object) -> None:
        self.details.append(f"{where}: {what}")


def same_words(sentence: str) -> str:
    """A sentence without its numbers, so that equal ones are counted together."""
    words = "".join("#" if c.isdigit() else c for c in sentence)
    while "##" in words:
        words = words.replace("##", "#")
    return words


# --- a server whose chains run in threads ---------------------------------------------------------------------------


class _ThreadAsProcess:
    """What the server asks of a process, for a thread."""

    def __init__(self, worker: ThreadWorker) -> None:
        self._worker = worker
        self.pid = os.getpid()
        self.returncode = 0

    def poll(self) -> int | None:
        return None

    def terminate(self) -> None:
        self._worker.cut()

    kill = terminate


class ThreadWorker:
    """A session process whose chain runs in a thread of this process."""

    def __init__(self, options: process_module.ServerOptions) -> None:
        self._options = options
        self.socket, self._theirs = socket.socketpair()
        self.process = _ThreadAsProcess(self)
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None
        self.alive = True

    def wait_ready(self, seconds: float) -> bool:
        return True

    def begin(self, number: int, told: object = None) -> None:
        self._thread = threading.Thread(target=self._run, args=(number,), daemon=True)
        self._thread.start()

    def _run(self, number: int) -> None:
        connection = Connection(self._theirs, peer=self._options.peer, name=str(number))
        self._outcome = run_connection(connection, self._options.scan)

    def failure(self) -> str | None:
        if self._thread is not None:
            self._thread.join(HANG_S)
        return self._outcome.failure if self._outcome is not None else "the thread did not end"

    def cause_of_end(self) -> str:
        return "its thread ended"

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.socket.close()
        if self._thread is not None:
            self._thread.join(HANG_S)
        self._theirs.close()


class LastLines(logging.Handler):
    """What the server says of its sessions: who began one, and the last line of each."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.ends: dict[str, str] = {}
        self.sessions: dict[str, str] = {}
        """Peer (host:port) -> number of its session, or nothing where no byte of it came."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "mrsi.server":
            return
        text = record.getMessage()
        if text.endswith("went away without a byte"):
            self.sessions[text.split()[0]] = ""
        elif ": peer " in text:
            self.sessions[text.rpartition(" ")[2]] = record.session
        elif hasattr(record, "session") and (hasattr(record, "received") or "refused" in text):
            self.ends[record.session] = text


@dataclass
class Place:
    """A server, its spool, and the lines it logs."""

    live: supervisor.Server
    folder: Path
    log: LastLines

    def session_of(self, heard: Heard) -> str | None:
        """Wait until the server is done with a client; return the number of its session, None where it hangs."""
        deadline = time.monotonic() + HANG_S
        while (heard.peer not in self.log.sessions or self.live._sessions) and time.monotonic() < deadline:
            time.sleep(0.001)
        return None if self.live._sessions else self.log.sessions.pop(heard.peer, None)

    def wait_idle(self, seconds: float = HANG_S) -> bool:
        deadline = time.monotonic() + seconds
        while self.live._sessions and time.monotonic() < deadline:
            time.sleep(0.001)
        return not self.live._sessions


@contextmanager
def place(folder: Path, *, threads: bool = True, **changes) -> Iterator[Place]:
    """A live server with a spool; conversion to .h5 is called for, not done by itself."""
    lines = LastLines()
    logger = logging.getLogger("mrsi")
    before = (logger.level, logger.propagate, list(logger.handlers))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers[:] = [lines]
    worker = mock.patch.object(supervisor, "SessionProcess", ThreadWorker) if threads else contextlib.nullcontext()
    try:
        with (
            worker,
            mock.patch.object(Spool, "_archive", return_value=None),
            serving(spool=SpoolOptions(folder, reserve_bytes=0), **changes) as live,
        ):
            yield Place(live, folder, lines)
    finally:
        logger.level, logger.propagate, logger.handlers[:] = before[0], before[1], before[2]


# --- clients --------------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a client got back."""

    messages: list[Message]
    peer: str = ""
    """Address of the client, as the server names it."""
    hung: bool = False
    reset: bool = False

    @property
    def images(self) -> list[Image]:
        return [m for m in self.messages if isinstance(m, Image)]

    @property
    def sentences(self) -> list[str]:
        """Errors, and warnings about raw data."""
        texts = [m.text for m in self.messages if isinstance(m, Text)]
        errors = [f"ERROR   {m.text}" for m in self.messages if isinstance(m, ErrorText)]
        return [text for text in texts if text.startswith("ERROR") or "raw data" in text] + errors

    @property
    def closed(self) -> bool:
        return bool(self.messages) and isinstance(self.messages[-1], Close)


def talk(port: int, data: bytes, end: str = "open", *, portion: int = 1 << 20, patience_s: float = HANG_S) -> Heard:
    """Send bytes, end as told (``open``: wait for the answer; ``fin``; ``rst``), and listen to the end."""
    decoder, heard = Decoder(), Heard([])
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as sock:
        heard.peer = "{}:{}".format(*sock.getsockname())
        sender = threading.Thread(target=_send, args=(sock, data, end, portion), daemon=True)
        if len(data) > 100_000:
            sender.start()
        else:
            _send(sock, data, end, portion)
        try:
            while end != "rst" and not decoder.closed and (got := sock.recv(1 << 16)):
                heard.messages.extend(decoder.feed(got))
        except TimeoutError:
            heard.hung = True
        except (OSError, MrsiError):
            heard.reset = True
        if sender.ident is not None:
            sender.join(HANG_S)
    return heard


def _send(sock: socket.socket, data: bytes, end: str, portion: int) -> None:
    with contextlib.suppress(OSError):
        for at in range(0, len(data), portion):
            sock.sendall(data[at : at + portion])
        if end == "fin":
            sock.shutdown(socket.SHUT_WR)
        elif end == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()


def stream(scan: SmallScan, config: ConfigFile | ConfigText | None = None) -> list[bytes]:
    """A whole session, message by message."""
    first = config or ConfigText("fourier")
    return [encode(m) for m in (first, Header(scan.header_xml), *scan.readouts, Close())]


def short_session() -> list[bytes]:
    """Some readouts of the smallest scan there is."""
    scan = small_scan((2, 2, 1), n_coils=2, n_times=8)
    return stream(scan.with_readouts(scan.water[:2] + scan.metabolites[:2]))


def whole_readouts(data: bytes) -> int:
    """Whole readouts in bytes, up to what is no message."""
    count, decoder = 0, Decoder()
    with contextlib.suppress(MrsiError):
        for message in decoder.feed(data):
            count += isinstance(message, Acquisition)
    return count


# --- after each fault -----------------------------------------------------------------------------------------------


def check_raw(
    kind: Kind, at: Place, sent: bytes, where: object, *, exact: bool = True, prefix: bytes | None = None
) -> None:
    """Compare the spool's newest session with what was sent, and remove it.

    `exact`: all of it must be there; else (a reset destroys what the system had not handed out) whatever is there must
    be the beginning of it. `prefix`: what must be there of a session that could not be kept to its end.
    """
    wanted = whole_readouts(sent if prefix is None else prefix)
    files = spool_files(at.folder)
    if not files:
        if exact and wanted:
            kind.lost_readouts += wanted
            kind.blame(f"{wanted} readouts are not in the spool", where)
        return
    if len(files) > 1:
        kind.blame(f"{len(files)} sessions in the spool", where)
    file = files[-1]
    log = LogReader(file.path)
    kept = b"".join(log.chunks())
    got = whole_readouts(kept)
    kind.kept_readouts += got
    info = find_session(at.folder, file.number)
    complete = kept == sent or (prefix is not None and sent.startswith(kept) and len(kept) >= len(prefix))
    if exact and not complete and got < wanted:
        kind.lost_readouts += wanted - got
        kind.blame(f"{wanted - got} of {wanted} readouts lost", where)
    if not sent.startswith(kept):
        kind.blame("the spool holds other bytes than were sent", where)
    if prefix is None and info.end.readouts != got:
        kind.blame(f"the spool says {info.end.readouts} readouts and holds {got}", where)
    if info.state is State.RUNNING:
        kind.blame("the session is still said to run", where)
    for one in files:
        one.path.unlink()


def check_end(kind: Kind, at: Place, heard: Heard, where: object, *, failed: bool, can_hear: bool = True) -> None:
    """A failed session was told to whoever could hear it, and the log has its end; a finished one was not."""
    kind.faults += 1
    number = at.session_of(heard)
    if heard.hung or number is None:
        kind.hangs += 1
        kind.blame("hung", where)
    if failed and heard.images:
        kind.wrong_results += 1
        kind.blame(f"{len(heard.images)} images of a scan that did not end in order", where)
    if number == "" and not can_hear:
        kind.sentences["(a reset destroyed everything before the server saw a byte)"] += 1
        return
    for sentence in heard.sentences or (["(a client that cannot hear)"] if not can_hear else []):
        kind.sentences[same_words(sentence)] += 1
    last = at.log.ends.pop(number or "", "")
    if not last:
        kind.silent += 1
        kind.blame("the log does not say how it ended", where)
    if can_hear and failed and not (heard.sentences and heard.closed):
        kind.silent += 1
        kind.blame(f"the client heard {heard.messages}", where)
    if failed and "closed in order" in last:
        kind.silent += 1
        kind.blame("the log says that a failed session closed in order", where)
    if not failed and ("closed in order" not in last or not heard.closed):
        kind.blame(f"should have closed in order: {last}, {heard.sentences}", where)


def same(found: list[Image], expected: list[Image]) -> bool:
    return len(found) == len(expected) > 0 and all(
        ours.head.tobytes() == theirs.head.tobytes()
        and ours.attributes == theirs.attributes
        and ours.data.tobytes() == theirs.data.tobytes()
        for ours, theirs in zip(found, expected, strict=True)
    )


# --- the kinds ------------------------------------------------------------------------------------------------------


def cut_everywhere(folder: Path, *, step: int = 1) -> Kind:
    """The connection of a short session ends after every number of bytes, in order (FIN) and without (RST) in turn."""
    kind = Kind("connection cut at every byte of a short session" if step == 1 else f"... at every {step}th byte")
    messages = short_session()
    data = b"".join(messages)
    with place(folder) as at:
        for turn, size in enumerate(range(1, len(data) - len(messages[-1]) + 2, step)):
            end = ("fin", "rst")[turn % 2]
            heard = talk(at.live.port, data[:size], end)
            check_end(kind, at, heard, size, failed=True, can_hear=end == "fin")
            check_raw(kind, at, data[:size], size, exact=end == "fin")
    return kind


def cut_long(folder: Path, *, count: int = 200, seed: int = 1) -> Kind:
    """The connection of a longer scan ends at random places."""
    kind = Kind("connection cut at random places of a scan")
    data = b"".join(stream(small_scan()))
    rng = random.Random(seed)
    with place(folder) as at:
        for turn in range(count):
            size = rng.randrange(1, len(data) - 2)
            end = ("fin", "rst")[turn % 2]
            heard = talk(at.live.port, data[:size], end, portion=rng.choice((4096, 100_000, 1 << 20)))
            check_end(kind, at, heard, size, failed=True, can_hear=end == "fin")
            check_raw(kind, at, data[:size], size, exact=end == "fin")
    return kind


def garbage(folder: Path, *, step: int = 1, seed: int = 2) -> Kind:
    """Random bytes come where a message should begin, for every message; the rest of the scan follows."""
    kind = Kind("garbage at each message")
    messages = stream(small_scan())
    rng = random.Random(seed)
    with place(folder) as at:
        for index in range(0, len(messages), step):
            # an id that nobody knows; what follows must not matter
            junk = b"\xff\xfe" + rng.randbytes(rng.randrange(1, 2000))
            before = b"".join(messages[:index])
            heard = talk(at.live.port, before + junk + b"".join(messages[index:]), "fin")
            check_end(kind, at, heard, index, failed=True)
            check_raw(kind, at, before + junk + b"".join(messages[index:]), index, prefix=before)
    return kind


def disk_full(folder: Path, expected: list[Image], *, count: int = 100, seed: int = 3) -> Kind:
    """The disk is full from a random write on, or a record fits in part; the scan goes on and gives its images."""
    kind = Kind("disk full while raw data are written")
    data = b"".join(stream(small_scan()))
    rng = random.Random(seed)
    with place(folder) as at:
        for turn in range(count):
            room = rng.randrange(0, len(data))
            heard, sent = _with_full_disk(at, data, room, rng.choice((1000, 20_000, 100_000)))
            check_end(kind, at, heard, turn, failed=False)
            if not heard.sentences:
                kind.silent += 1
                kind.blame("the console was not told", turn)
            if not same(heard.images, expected):
                kind.wrong_results += 1
                kind.blame("other images than without fault", turn)
            check_raw(kind, at, data, turn, prefix=data[: sent[0]])
    return kind


def _with_full_disk(at: Place, data: bytes, room: int, portion: int) -> tuple[Heard, list[int]]:
    """Run a session while at most `room` bytes can be written; what was written of the peer's bytes before."""
    real, left, written = os.writev, [room], [0]

    def writev(descriptor: int, parts: list[bytes]) -> int:
        wanted = sum(len(part) for part in parts)
        if len(parts) == 2 and parts[0][:1] == bytes([spool_log.Kind.BYTES]):
            if wanted > left[0]:
                done = b"".join(parts)[: max(0, left[0])]
                left[0] = 0
                if not done:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return os.write(descriptor, done)
            left[0] -= wanted
            written[0] += len(parts[1])
        return real(descriptor, parts)

    def write(descriptor: int, rest: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with mock.patch.object(spool_log, "os", _Replaced(os, writev=writev, write=write)):
        return talk(at.live.port, data, "open", portion=portion), written


class _Replaced:
    """A module with some functions replaced."""

    def __init__(self, module: object, **others: object) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def spool_refused(folder: Path, expected: list[Image], *, count: int = 10) -> Kind:
    """The folder of raw data cannot be used at all."""
    kind = Kind("raw data folder cannot be used")
    data = b"".join(stream(small_scan()))
    folder.mkdir(parents=True)
    blocked = folder / "file"
    blocked.write_text("in the way")
    with place(blocked / "spool") as at:
        for turn in range(count):
            heard = talk(at.live.port, data)
            check_end(kind, at, heard, turn, failed=False)
            if not heard.sentences:
                kind.silent += 1
            if not same(heard.images, expected):
                kind.wrong_results += 1
    return kind


def recipe_elements(recipe: str = "fourier") -> list[str]:
    return [gadget.element for gadget in find_recipe(recipe).gadgets]


def memory_refused(folder: Path, *, recipes: tuple[str, ...] = ("fourier",)) -> Kind:
    """Each gadget is refused memory, and so is the start of a session process."""
    kind = Kind("memory refused")
    messages = {peer: b"".join(stream(small_scan(), config)) for peer, config in _peers().items()}
    with place(folder) as at:
        for recipe in recipes:
            for element in recipe_elements(recipe):
                for peer, data in messages.items():
                    if f"<{element}" not in NODE_CONFIG and peer is Peer.GADGETRON:
                        continue
                    with mock.patch.object(GADGETS[element], "process", _refusing):
                        heard = talk(at.live.port, data)
                    check_end(kind, at, heard, (element, peer.value), failed=True)
                    check_raw(kind, at, data, (element, peer.value))
        with mock.patch.object(supervisor, "SessionProcess", side_effect=OSError(12, "Cannot allocate memory")):
            while at.live._warm:
                at.live._warm.pop().end()
            for peer, data in messages.items():
                heard = talk(at.live.port, data)
                check_end(kind, at, heard, peer.value, failed=True)
                check_raw(kind, at, data, peer.value)
    return kind


def _peers() -> dict[Peer, ConfigFile | ConfigText]:
    return {Peer.FIRE: ConfigFile("fourier"), Peer.GADGETRON: ConfigText(NODE_CONFIG)}


def _refusing(self: object, items: Iterator[object], context: object) -> Iterator[object]:
    next(iter(items), None)
    raise MemoryError("refused")
    yield


def clock_jumps(folder: Path, expected: list[Image], *, count: int = 20, seed: int = 5) -> Kind:
    """The machine's clock jumps by up to ten years either way, between sessions and within them."""
    kind = Kind("clock jumps")
    data = b"".join(stream(small_scan()))
    rng = random.Random(seed)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz or UTC) + timedelta(days=rng.randrange(-3650, 3650))

    real = time.time
    with (
        place(folder) as at,
        mock.patch.object(spool_module, "datetime", Jumping),
        mock.patch.object(time, "time", side_effect=lambda: real() + rng.uniform(-3e8, 3e8)),
    ):
        for turn in range(count):
            heard = talk(at.live.port, data)
            check_end(kind, at, heard, turn, failed=False)
            if not same(heard.images, expected):
                kind.wrong_results += 1
                kind.blame("other images than without fault", turn)
            check_raw(kind, at, data, turn)
    return kind


def in_a_row(folder: Path, expected: list[Image], *, count: int = 200) -> Kind:
    """Sessions one after another on one server; the spool is bounded and converts some of them."""
    kind = Kind(f"{count} sessions in a row")
    data = b"".join(stream(small_scan()))
    with place(folder) as at:
        threads = None
        for turn in range(count):
            heard = talk(at.live.port, data)
            check_end(kind, at, heard, turn, failed=False)
            if not same(heard.images, expected):
                kind.wrong_results += 1
                kind.blame("other images than without fault", turn)
            if turn % 20 == 0:
                _check_archive(kind, at, turn)
                for file in spool_files(at.folder):
                    file.path.unlink()
            else:
                check_raw(kind, at, data, turn)
            threads = threads or threading.active_count()
        if threading.active_count() > (threads or 0) + 2:
            kind.blame(f"{threading.active_count()} threads after {threads}", "at the end")
    return kind


def _check_archive(kind: Kind, at: Place, where: object) -> None:
    """The .h5 of a session holds the readouts of its log."""
    info = list_sessions(at.folder)[-1]
    before = [m.data.tobytes() for m in open_session(info).items if isinstance(m, Acquisition)]
    archive(info.file.path)
    now = open_session(list_sessions(at.folder)[-1])
    after = [m.data.tobytes() for m in now.items if isinstance(m, Acquisition)]
    kind.kept_readouts += len(after)
    if before != after:
        kind.lost_readouts += len(before)
        kind.blame("the .h5 holds other readouts than the log", where)


# --- kinds that need processes --------------------------------------------------------------------------------------

FAULTY_WORKER = """
import os, sys
from pathlib import Path
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.server import worker

def wrap(element, real):
    def process(self, items, context):
        wanted = Path(os.environ["MRSI_FAULT_FILE"]).read_text().split() if "MRSI_SESSION" in os.environ else []
        def passing():
            for item in items:
                if wanted and wanted[0] == element:
                    os.kill(os.getpid(), int(wanted[1]))
                yield item
        yield from real(self, passing(), context)
    return process

for element, gadget in GADGETS.items():
    gadget.process = wrap(element, gadget.process)
sys.exit(worker.main())
"""


@contextmanager
def faulty_processes(folder: Path, **changes) -> Iterator[tuple[Place, Callable[[str, int], None]]]:
    """A server whose session processes kill themselves where a file says; the function writes that file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faulty_worker.py").write_text(FAULTY_WORKER)
    wanted = folder / "wanted"
    wanted.write_text("")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        mock.patch.dict(os.environ, MRSI_FAULT_FILE=str(wanted), PYTHONPATH=path),
        mock.patch.object(process_module.SessionProcess, "module", "faulty_worker"),
        place(folder / "spool", threads=False, **changes) as at,
    ):
        yield at, lambda element, number: (wanted.write_text(f"{element} {number}"), None)[1]


def killed_at_gadgets(
    folder: Path, *, elements: list[str] | None = None, peers: tuple[Peer, ...] = tuple(_peers())
) -> Kind:
    """The session's process is killed, or stopped for good, as each gadget takes its first item."""
    kind = Kind("session process killed or stopped at each gadget")
    configs = _peers()
    limits = ProcessLimits(hang_s=HANG_LIMIT_S)
    expected = None
    with faulty_processes(folder, limits=limits) as (at, want):
        for element in elements or recipe_elements():
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
                for peer in peers:
                    if peer is Peer.GADGETRON and (f"<{element}" not in NODE_CONFIG or number is signal.SIGSEGV):
                        continue
                    want(element, number)
                    data = b"".join(stream(small_scan(), configs[peer]))
                    heard = talk(at.live.port, data)
                    where = (element, number.name, peer.value)
                    check_end(kind, at, heard, where, failed=True)
                    if not any("`mrsi recover" in sentence for sentence in heard.sentences):
                        kind.blame(f"does not say where the raw data are: {heard.sentences}", where)
                    if expected is None:  # one of them all the way
                        want("none", 0)
                        expected = recover(at.folder, spool_files(at.folder)[-1].number, {}).images
                        again = talk(at.live.port, data)
                        at.wait_idle()
                        at.log.ends.clear()
                        spool_files(at.folder)[-1].path.unlink()
                        if not same(again.images, expected):
                            kind.wrong_results += 1
                            kind.blame("recovered maps are not those of the scan", where)
                    check_raw(kind, at, data, where)
    return kind


def too_much_memory(folder: Path) -> Kind:
    """The session's process takes more memory than it may."""
    kind = Kind("session process beyond its memory limit")
    with place(folder, threads=False, limits=ProcessLimits(memory_bytes=MEMORY_LIMIT)) as at:
        for peer, config in _peers().items():
            data = b"".join(stream(small_scan(), config))
            heard = talk(at.live.port, data)
            check_end(kind, at, heard, peer.value, failed=True)
            check_raw(kind, at, data, peer.value)
    return kind


def eight_at_once(folder: Path, expected: list[Image]) -> Kind:
    """Eight scans at once in eight processes; one of their processes is killed, one client goes away."""
    kind = Kind("eight sessions at once, one killed, one cut")
    messages = stream(small_scan())
    data = b"".join(messages)
    heard: list[Heard | None] = [None] * 8
    with place(folder, threads=False, max_sessions=8) as at:

        def client(i: int) -> None:
            sent, end = (data[:-10], "fin") if i == 7 else (data, "open")
            heard[i] = talk(at.live.port, sent, end, portion=20_000, patience_s=START_S)

        threads = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + HANG_S
        victim = None
        while victim is None and time.monotonic() < deadline:
            with at.live._lock:
                victim = next((one for one in at.live._sessions.values() if one is not None), None)
        if victim is not None:
            victim.process.kill()
        for thread in threads:
            thread.join(START_S)
        if not at.wait_idle() or any(one is None or one.hung for one in heard):
            kind.hangs += 1
            kind.blame("hung", "eight")
        kind.faults += 8
        answers = [one for one in heard if one is not None]
        good = [one for one in answers if same(one.images, expected)]
        told = [one for one in answers if one.sentences and not one.images]
        for one in told:
            kind.sentences.update(same_words(sentence) for sentence in one.sentences)
        if len(good) + len(told) != 8 or len(told) < 2:
            kind.silent += 8 - len(good) - len(told)
            kind.blame(f"{len(good)} finished, {len(told)} told of a failure", "eight")
        if len(at.log.ends) != 8:
            kind.silent += 1
            kind.blame(f"the log has the ends of {len(at.log.ends)} sessions", "eight")
        for info in list_sessions(at.folder):
            kept = b"".join(LogReader(info.file.path).chunks())
            kind.kept_readouts += whole_readouts(kept)
            if kept not in (data, data[:-10]):
                kind.lost_readouts += whole_readouts(data) - whole_readouts(kept)
                kind.blame("not all that was sent is in the spool", info.file.path.name)
    return kind


def server_killed(folder: Path, *, count: int = 5, seed: int = 7) -> Kind:
    """The server itself is killed in the middle of a scan; what it had taken from the network is there."""
    kind = Kind("server killed in the middle of a scan")
    messages = stream(small_scan())
    rng = random.Random(seed)
    expected_bytes = b"".join(messages)
    for turn in range(count):
        own = folder / str(turn)
        command = [sys.executable, "-m", "mrsi_gadgets.cli", "serve", "--port", "0", "--device", "cpu", "--warm", "1"]
        size = sum(map(len, messages[: rng.randrange(4, len(messages) - 1)])) + rng.randrange(300)
        with subprocess.Popen([*command, "--spool", str(own)], stderr=subprocess.PIPE, text=True) as process:
            try:
                line = " "
                while line and "listening on" not in line:
                    line = process.stderr.readline()
                with socket.create_connection(("127.0.0.1", int(line.rpartition(":")[2])), timeout=HANG_S) as sock:
                    sock.sendall(expected_bytes[:size])
                    # a stated moment: what was sent a second ago
                    time.sleep(1.0)
                    process.kill()
            finally:
                process.kill()
            process.stderr.close()
        kind.faults += 1
        kept = b"".join(LogReader(spool_files(own)[0].path).chunks()) if spool_files(own) else b""
        kind.kept_readouts += whole_readouts(kept)
        if kept != expected_bytes[:size]:
            kind.lost_readouts += whole_readouts(expected_bytes[:size]) - whole_readouts(kept)
            kind.blame(f"{len(kept)} of {size} bytes are in the spool", turn)
        (info,) = list_sessions(own)
        if info.state is not State.INTERRUPTED:
            kind.silent += 1
        kind.sentences[f"(mrsi recover) {info.end.cause}"] += 1
    return kind


def expected_images() -> list[Image]:
    """What the scan of these faults gives where nothing goes wrong, computed in this process."""
    from mrsi_gadgets import replay

    scan = small_scan()
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small", ConfigText("fourier"))
    return replay.replay_here(given, replace(ScanOptions(), device="cpu")).images
