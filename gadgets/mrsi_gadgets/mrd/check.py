"""Is this file a usable MRSI scan: what its header says, lacks or contradicts, and what its readouts are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from mrsi_gadgets.data import KtData, Protocol, Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import Scan, read_scan
from mrsi_gadgets.io.trajectories import site_trajectories, trajectory_store
from mrsi_gadgets.mrd.adapters import adapted
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.layout import read_head
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.roles import RoleRule
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.quantification.absolute import why_not

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass
class CheckReport:
    """What `check_file` found."""

    path: str
    errors: list[str] = field(default_factory=list)
    """What is missing or contradictory; the scan cannot be reconstructed."""
    warnings: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    """The protocol and what the readouts are."""
    sources: dict[str, str] = field(default_factory=dict)
    """Protocol field -> where its value came from."""

    @property
    def ok(self) -> bool:
        """Whether the scan can be reconstructed."""
        return not self.errors

    def warn(self, sentence: str) -> None:
        """Keep a warning (once)."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def text(self) -> str:
        """Return the report as lines for a terminal."""
        lines = [f"{self.path}: {'usable' if self.ok else 'not usable'}"]
        for title, entries in (
            ("errors", self.errors),
            ("warnings", self.warnings),
            ("scan", self.facts),
            ("where each value came from", [f"{name}: {source}" for name, source in self.sources.items()]),
        ):
            if entries:
                lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


def check_file(
    path: str | os.PathLike[str],
    settings: Mapping[str, str] = _NOTHING,
    *,
    sequence: str | None = None,
    trajectories: Path | None = None,
) -> CheckReport:
    """Check an MRD file against the MRSI profile, by sorting it as a reconstruction would.

    Parameters
    ----------
    path
        The .h5 file.
    settings
        Explicit profile values.
    sequence
        Sequence description for the header, by name or path; None: the one that knows it.
    trajectories
        Folder of the trajectory store; None: the site's own, where there is one.

    Returns
    -------
        Errors, warnings, facts and sources. Damaged files and wrong headers are errors of the report.

    Raises
    ------
    ConfigError
        A setting is no key of the profile or has a wrong value, or there is no such sequence description.
    """
    report = CheckReport(os.fspath(path))
    try:
        scan = read_scan(path)
        header = adapted(parse_header(scan.header_xml), sequence, tell=report.facts.append)
    except DataError as problem:
        report.errors.append(str(problem))
        return report
    _describe_readouts(scan, report)
    try:
        protocol = read_protocol(header, settings, warn=report.warn)
    except ConfigError:
        raise
    except DataError as problem:
        report.errors.append(str(problem))
        return report
    report.sources = dict(protocol.provenance)
    _describe_protocol(protocol, report)
    _describe_roles(scan, protocol, report)
    lookup = trajectory_store(trajectories or site_trajectories())
    try:
        items = sort_readouts(scan.acquisitions, protocol, report, header, settings=settings, trajectories=lookup)
        report.facts += [_describe(item) for item in items]
    except DataError as problem:
        report.errors.append(str(problem))
    return report


def _describe_readouts(scan: Scan, report: CheckReport) -> None:
    heads = scan.acquisitions.heads
    report.facts.append(f"{len(heads)} readouts, {len(scan.waveforms)} waveforms")
    if not heads.size:
        return
    counters = heads["scan_counter"].astype(np.int64)
    if np.any(np.diff(counters) <= 0) and np.any(counters != 0):
        report.warn("scan_counter does not rise from readout to readout; its numbers do not name one readout each")
    size = 8 * int((heads["active_channels"].astype(np.int64) * heads["number_of_samples"]).sum())
    report.facts.append(f"{size / 1e6:.1f} MB of samples")


def _describe_protocol(protocol: Protocol, report: CheckReport) -> None:
    geometry = protocol.geometry
    matrix = " x ".join(map(str, geometry.matrix))
    fov = " x ".join(f"{length:g}" for length in geometry.fov_mm)
    report.facts += [
        f"{protocol.encoding}, {matrix} voxels, {fov} mm",
        f"{protocol.nucleus} at {protocol.transmit_frequency_hz / 1e6:.6f} MHz, 0 Hz is {protocol.reference_ppm:g} ppm",
        f"{protocol.n_times} points at {protocol.dwell_s * 1e6:g} us ({1 / protocol.dwell_s:.1f} Hz), first at "
        f"{protocol.acquisition_delay_s * 1e6:g} us",
        "axes: " + ", ".join(f"{axis} = {source}" for axis, source in protocol.axes.items()),
    ]

    if protocol.nucleus not in NUCLEI:
        report.warn(
            f"the scan is described, but molecules are known for {', '.join(NUCLEI)} only: every shipped recipe "
            f"refuses {protocol.nucleus} when its fit is prepared"
        )


def _describe_roles(scan: Scan, protocol: Protocol, report: CheckReport) -> None:
    heads = scan.acquisitions.heads
    counts: Counter[Role] = Counter()
    try:
        rule = RoleRule(protocol)
        for head in heads:
            counts[rule.role(read_head(head))] += 1
    except DataError:
        # sorting, which follows, says it
        return
    report.facts += [f"{counts[role]} {role.value} readouts" for role in Role if counts[role]]
    if protocol.nucleus in NUCLEI:
        reason = why_not(protocol, has_water=counts[Role.WATER_REFERENCE] > 0 or protocol.editing != "none")
        report.facts.append(reason or "maps in mM are possible: water reference, TR and flip angle are there")
    stamps = heads["acquisition_time_stamp"].astype(np.int64)
    if stamps.size > 1 and stamps.max() > stamps.min():
        seconds = float(stamps.max() - stamps.min()) * protocol.time_tick_ms * 1e-3
        report.facts.append(f"{seconds:.1f} s between the first and the last time stamp")
    # elsewhere a readout is a lobe or a chunk of laps, and several of them belong to one excitation
    if protocol.repetition_time_s and protocol.encoding == "csi":
        data = counts[Role.METABOLITE] + counts[Role.WATER_REFERENCE]
        report.facts.append(f"{data * protocol.repetition_time_s:.1f} s of TR for the data readouts")


def _describe(item: KtData) -> str:
    coils, points, length = item.samples.shape
    name = item.role.value if item.role is not Role.METABOLITE else f"{item.role.value} frame {item.frame}"
    if len(item.protocol.echo_times_s) > 1 and item.role is not Role.NOISE:
        name += f" echo {item.echo}"
    unit = "readouts" if item.role is Role.NOISE else "k-space points"
    text = f"{name}: {coils} coils, {points} {unit} of {length} samples at {item.sample_time_s * 1e6:g} us"
    missing = int(np.count_nonzero(item.count == 0))
    # counts that are not whole tell the noise of different dwells
    averages = item.count.max(initial=0) if item.count.dtype.kind == "i" else 1
    if averages > 1:
        text += f", up to {averages} averages"
    if not missing:
        return text
    return text + (f", {missing} missing" if item.count.ndim == 1 else f", {missing} samples missing")
