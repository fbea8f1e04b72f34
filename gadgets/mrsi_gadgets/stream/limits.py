"""What a peer may ask us to allocate: every length on the wire is compared with these before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of what one message may hold.

    The defaults admit everything MRD 1.x can express in a readout (65535 samples of 1024 channels are 512 MiB) and
    refuse what only a damaged or hostile length field would say.
    """

    text_bytes: int = 64 * MEBIBYTE
    """Configuration, header, console text, query, response and error [bytes]."""
    attribute_bytes: int = 16 * MEBIBYTE
    """Meta XML of one image [bytes]."""
    array_bytes: int = 1024 * MEBIBYTE
    """Samples and trajectory of one readout, pixels of one image, values of one waveform [bytes]."""
    trajectory_dimensions: int = 8
    channels: int = 1024
