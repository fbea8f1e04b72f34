"""`mrsi report`, `mrsi regions`, `mrsi fsl-mrs`, `mrsi dicom` and `mrsi send`: what becomes of a result."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mrsi_gadgets.cli.options import EXIT_OK, names, say
from mrsi_gadgets.errors import ConfigError

if TYPE_CHECKING:
    from mrsi_gadgets.output.dicom.write import DicomOptions


def report(given: argparse.Namespace) -> int:
    """Run `mrsi report`."""
    from mrsi_gadgets.output.report import write_report

    path = write_report(given.result, given.output)
    say(f"report -> {path} ({path.stat().st_size / 1e6:.1f} MB; open it in a browser)")
    return EXIT_OK


def regions(given: argparse.Namespace) -> int:
    """Run `mrsi regions`."""
    from mrsi_gadgets.output.folder import rewrite_regions

    say(f"regions -> {rewrite_regions(given.result, given.labels)}")
    return EXIT_OK


def fsl_mrs(given: argparse.Namespace) -> int:
    """Run `mrsi fsl-mrs`."""
    from mrsi_gadgets.output.folder import add_fsl_mrs

    for folder in add_fsl_mrs(given.result):
        say(f"FSL-MRS results -> {folder}")
    return EXIT_OK


def add_dicom(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi dicom` takes."""
    parser.add_argument("result", type=Path, help="result folder of `mrsi replay`")
    parser.add_argument("--output", "-o", type=Path, required=True, help="new folder for the DICOM files")
    _add_dicom_options(parser)
    parser.set_defaults(run=_dicom)


def _add_dicom_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--maps", type=names, default=(), metavar="A,B", help="maps, or all (default: those shown)")
    parser.add_argument(
        "--kinds", type=names, default=("classic", "parametric", "spectra"), metavar="A,B",
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
    say(f"{len(files)} DICOM files -> {given.output}/")
    return EXIT_OK


def _dicom_options(given: argparse.Namespace) -> DicomOptions:
    from mrsi_gadgets.output.dicom.write import DicomOptions

    return DicomOptions(given.maps, given.kinds, given.reference, given.patient_id, given.patient_name)


def add_send(parser: argparse.ArgumentParser) -> None:
    """Declare what `mrsi send` takes."""
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
        if files and (given.maps or given.reference or given.patient_id or given.patient_name):
            raise ConfigError(
                f"{given.source} holds DICOM files, which are sent as they are; give --maps, --reference and the "
                "patient to `mrsi dicom`, or send the result folder"
            )
        if not files:
            files = write_dicom(given.source, Path(scratch) / "dicom", _dicom_options(given))
        count = send(files, node, calling=given.calling_aet)
    say(f"{count} objects stored in {node.title} at {node.host}:{node.port}")
    return EXIT_OK
