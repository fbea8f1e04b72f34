"""DICOM objects on their way to an archive (C-STORE)."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.output.dicom.exam import need

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NODE = re.compile(r"(?P<title>[^@\\\s]{1,16})@(?P<host>[^@\s]+):(?P<port>[0-9]{1,5})")
_TIMEOUT_S = 30.0
_MOST_CONTEXTS = 128


@dataclass(frozen=True)
class Node:
    """An archive: application entity title, host and port."""

    title: str
    host: str
    port: int

    @staticmethod
    def of(text: str) -> Node:
        """Read ``AET@HOST:PORT``.

        Raises
        ------
        ConfigError
            The text has another form.
        """
        found = _NODE.fullmatch(text)
        if not found or not 0 < int(found["port"]) < 65536:
            raise ConfigError(f"--pacs {text} is not AET@HOST:PORT, such as ORTHANC@127.0.0.1:4242")
        return Node(found["title"], found["host"].strip("[]"), int(found["port"]))


def send(
    files: Sequence[Path], node: Node, *, calling: str = "MRSIGADGETS", progress: Callable[[int], None] | None = None
) -> int:
    """Store DICOM files in an archive; return how many it took.

    Parameters
    ----------
    files
        DICOM files.
    node
        The archive.
    calling
        Our own application entity title.
    progress
        Called with the number of files stored so far.

    Raises
    ------
    ConfigError
        A package is missing, or nothing is to be sent.
    DataError
        A file is no DICOM object, or the archive cannot be reached, does not take a kind of object, refuses one, does
        not answer or goes away: with its status, and how many objects it had taken before.
    """
    need("pynetdicom")
    import pydicom
    from pynetdicom import AE

    if not files:
        raise ConfigError("there is no DICOM file to send")
    datasets = [_read(path) for path in files]
    wanted = sorted({(str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)) for ds in datasets})
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _TIMEOUT_S
    for sop_class, syntax in wanted[:_MOST_CONTEXTS]:
        entity.add_requested_context(sop_class, syntax)
    _check_listening(node)
    link = entity.associate(node.host, node.port, ae_title=node.title)
    if not link.is_established:
        why = "it rejected the association" if link.is_rejected else "no association came about"
        raise DataError(
            f"the archive {node.title} at {node.host}:{node.port} cannot be reached: {why}; check its title"
        )
    _bound_writes(link)
    try:
        taken = {(context.abstract_syntax, context.transfer_syntax[0]) for context in link.accepted_contexts}
        refused = [pydicom.uid.UID(one[0]).name for one in wanted if one not in taken]
        if refused:
            raise DataError(
                f"the archive {node.title} does not take {' and '.join(refused)}; nothing was sent: leave these out "
                "with --kinds"
            )
        for i, dataset in enumerate(datasets):
            code = _store(link, dataset)
            if code is None or (code != 0 and not 0xB000 <= code <= 0xBFFF):
                reason = "it did not answer, or went away" if code is None else f"status 0x{code:04X}"
                raise DataError(
                    f"the archive {node.title} refused {files[i].name} ({reason}) after {i} of {len(files)} objects; "
                    "send again when it can take them: identifiers stay the same"
                )
            if progress is not None:
                progress(i + 1)
    finally:
        if link.is_established:
            link.release()
    return len(datasets)


def _read(path: Path) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path)
    except (OSError, InvalidDicomError) as problem:
        raise DataError(f"{path} cannot be read as DICOM ({problem}); nothing was sent") from problem
    missing = [name for name in ("SOPClassUID", "SOPInstanceUID") if not dataset.get(name)]
    if missing or "TransferSyntaxUID" not in dataset.file_meta:
        raise DataError(f"{path} has no {missing[0] if missing else 'TransferSyntaxUID'}; nothing was sent")
    return dataset


def _bound_writes(link: Any) -> None:
    """Give an archive that takes no bytes any more up; pynetdicom's own timeouts are for answers only."""
    link.dul.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_TIMEOUT_S), 0))


def _store(link: Any, dataset: Dataset) -> int | None:
    """Store one object; return the status, None where no answer came."""
    try:
        code = link.send_c_store(dataset).get("Status")
    except RuntimeError:  # the archive has ended the association meanwhile
        return None
    return None if code is None else int(code)


def _check_listening(node: Node) -> None:
    """Tell an archive that is off from one that refuses us."""
    try:
        socket.create_connection((node.host, node.port), timeout=_TIMEOUT_S).close()
    except OSError as problem:
        raise DataError(
            f"the archive {node.title} at {node.host}:{node.port} cannot be reached ({problem.strerror or problem}); "
            "check that it runs, and its port"
        ) from problem
