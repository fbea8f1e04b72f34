"""What a header may make us allocate: a measurement is compared with this machine before memory is taken."""

from __future__ import annotations

import os
from math import prod

from mrsi_gadgets.errors import DataError

MOST_SLOTS = 1 << 24
"""Readouts of one frame; a scan of that many takes days at any repetition time."""
MOST_SPECTRAL_POINTS = 16384
"""The temporal basis is learned from a matrix of points x points (2 GB at this size) before any data are there."""
_SAMPLE_BYTES = 8


def physical_memory() -> int | None:
    """Return the bytes of memory this machine has, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_matrix(matrix: tuple[int, ...], n_times: int, n_coils: int) -> None:
    """Refuse a grid that does not fit into this machine (DataError); see `check_size`."""
    if n_times > MOST_SPECTRAL_POINTS:
        raise DataError(
            f"mrsi_spectral_points is {n_times}, more than the {MOST_SPECTRAL_POINTS} for which a temporal basis "
            "can be learned; correct it"
        )
    check_size(matrix, prod(matrix), n_times, n_coils)


def check_size(matrix: tuple[int, ...], n_slots: int, n_samples: int, n_coils: int, *, beside: int = 0) -> None:
    """Refuse a measurement whose samples do not fit into this machine.

    Parameters
    ----------
    matrix
        For the message: what the header says in matrixSize.
    n_slots
        Readouts (or pieces of k-space) of one frame.
    n_samples
        Samples of each of them and of each coil.
    n_coils
        Channels.
    beside
        Numbers of 8 bytes that are kept beside each sample, whatever the number of coils.

    Raises
    ------
    DataError
        More slots than any scan has, or more bytes than the machine's memory.
    """
    size = (n_coils + beside) * n_slots * n_samples * _SAMPLE_BYTES
    memory = physical_memory()
    if n_slots <= MOST_SLOTS and (memory is None or size <= memory):
        return
    limit = f", more than this machine's memory of {memory / 1e9:.0f} GB" if memory is not None else ""
    if n_slots > MOST_SLOTS:
        limit = f", more than {MOST_SLOTS} readouts"
    raise DataError(
        f"a frame of matrixSize {' x '.join(map(str, matrix))} has {n_slots} readouts of {n_samples} samples in "
        f"{n_coils} channels, {size / 1e9:.1f} GB{limit}; correct matrixSize in the header"
        + ("" if n_slots > MOST_SLOTS else ", or use a machine with more memory")
    )
