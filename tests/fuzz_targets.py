"""Everything that reads bytes of others, as functions of bytes: only our own errors may come out of them."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mrsi_gadgets.errors import MrsiError
from mrsi_gadgets.gadgets.composition import find_recipe, recipe_folders, recipe_from_text
from mrsi_gadgets.gadgets.context import Report
from mrsi_gadgets.gadgets.scan import ScanOptions, _json_parameters
from mrsi_gadgets.io.learning import read_learning_protocol, shipped_learning_protocols
from mrsi_gadgets.io.model_store import load_model, save_model
from mrsi_gadgets.io.sequence import read_sequence, shipped_descriptions
from mrsi_gadgets.mrd.adapters import adapted, read_adapter
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.identity import without_identity
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.output.meta import from_xml
from mrsi_gadgets.stream.limits import Limits
from mrsi_gadgets.stream.messages import Close, ConfigFile, Header, Text
from mrsi_gadgets.stream.wire import Decoder, encode
from small_model import origin, small_model
from small_scan import small_scan

LIMITS = Limits(text_bytes=1 << 20, attribute_bytes=1 << 18, array_bytes=1 << 22, channels=64)
"""Of the codec under test: no message of the corpus is near them."""
ALLOWED = (1 << 22) + (1 << 21)
"""Bytes that the codec may take for one input beyond the input itself."""
_QUIET = dict.fromkeys(("warn",), lambda sentence: None)


def codec(data: bytes) -> None:
    """The wire, fed in two pieces."""
    decoder = Decoder(LIMITS)
    cut = len(data) // 3
    for piece in (data[:cut], data[cut:]):
        for _ in decoder.feed(piece):
            pass


def header(data: bytes) -> None:
    """An ISMRMRD header up to the protocol, and without identity."""
    text = data.decode("utf-8", "replace")
    without_identity(text)
    read_protocol(adapted(parse_header(text)), **_QUIET)


def config(data: bytes) -> None:
    """What a peer sends as its configuration."""
    recipe_from_text(data.decode("utf-8", "replace"))


def parameters(data: bytes) -> None:
    """JSON behind the header."""
    _json_parameters(data.decode("utf-8", "replace"), find_recipe("subspace"), {}, ScanOptions(), Report())


def meta(data: bytes) -> None:
    """Attributes of an image."""
    from_xml(data.decode("utf-8", "replace"))


def sequence(data: bytes) -> None:
    """A sequence description."""
    read_sequence(_scratch("sequence.toml", data))


def adapter(data: bytes) -> None:
    """A description of streams without the profile."""
    read_adapter(_scratch("adapter.toml", data))


def protocol(data: bytes) -> None:
    """A learning protocol."""
    read_learning_protocol(_scratch("protocol.toml", data))


def model(data: bytes) -> None:
    """A signal model: four bytes of the card's length, the card, the arrays. The hash is made to fit."""
    length = int.from_bytes(data[:4], "little") % (len(data) + 1)
    card, arrays = data[4 : 4 + length], data[4 + length :]
    try:
        table = json.loads(card)
        for key in ("sha256", "arrays_sha256"):
            if isinstance(table, dict) and key in table:
                table[key] = hashlib.sha256(arrays).hexdigest()
        card = json.dumps(table).encode()
    except (ValueError, RecursionError):
        pass
    _scratch("m.safetensors", arrays)
    load_model(_scratch("m.json", card))


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (codec, header, config, parameters, meta, sequence, adapter, protocol, model)
}


def check(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target: our own errors are what is to come."""
    sentence = "nothing was wrong"
    try:
        target(data)
    except MrsiError as error:
        sentence = str(error).strip()
    assert sentence
    assert "\n" not in sentence


@lru_cache
def corpus(name: str) -> tuple[bytes, ...]:
    """Valid inputs of a target: what mutation begins with."""
    scan = small_scan(matrix=(3, 4, 1), n_coils=2, n_times=128)
    if name == "codec":
        opening = [ConfigFile("fourier"), Header(scan.header_xml), Text('{"parameters": {}}')]
        messages = [*opening, *scan.readouts[:3], Close()]
        return (b"".join(encode(m) for m in messages), *(encode(m) for m in messages), struct.pack("<H", 1022))
    if name == "header":
        return (scan.header_xml.encode(),)
    if name == "config":
        files = [path.read_bytes() for folder in recipe_folders() for path in sorted(folder.glob("*.xml"))]
        return (*files, b"fourier", b"<chain><prewhiten/><property/></chain>")
    if name == "parameters":
        return (
            json.dumps({"parameters": {"config": "low_rank", "reconstructRank": "8", "mrsiDwellUs": "1"}}).encode(),
        )
    if name == "meta":
        return (b"<ismrmrdMeta><meta><name>mrsi_role</name><value>water_reference</value></meta></ismrmrdMeta>",)
    if name in ("sequence", "adapter"):
        kind = {"sequence": "twix", "adapter": "mrd"}[name]
        return tuple(path.read_bytes() for path in shipped_descriptions(kind).values())
    if name == "protocol":
        return tuple(path.read_bytes() for path in shipped_learning_protocols().values())
    with tempfile.TemporaryDirectory() as folder:
        card = save_model(small_model(), Path(folder), "m", origin())
        text, arrays = card.with_suffix(".json").read_bytes(), card.with_suffix(".safetensors").read_bytes()
        return (len(text).to_bytes(4, "little") + text + arrays,)


@lru_cache
def _folder() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))


def _scratch(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path
