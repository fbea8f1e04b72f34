"""What the tests of the command line compare with."""

from __future__ import annotations

import json
from pathlib import Path

from mrsi_gadgets import replay
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.stream.messages import Close, Header, Message
from mrsi_gadgets.stream.wire import encode
from small_scan import SmallScan


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def images_here(scan: SmallScan, config: Message | None = None, **options):
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small", config)
    return replay.replay_here(given, ScanOptions(device="cpu", **options)).images


def stream_of(scan: SmallScan, *before: Message) -> bytes:
    return b"".join(encode(m) for m in [*before, Header(scan.header_xml), *scan.readouts, Close()])
