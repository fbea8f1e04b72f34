"""Readouts whose receiver was saturated: their largest values stand still for several samples.

A converter that is driven beyond its range gives its largest number again and again. In what scanners send (filtered,
complex, floating point) this remains as a flat top: the same largest real or imaginary value in neighbouring samples of
one channel, which signal and noise of more than a few bits never show.
"""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import Role

_FLAT = 3
"""Neighbouring samples with the same largest value that make a flat top."""


def is_saturated(samples: np.ndarray) -> bool:
    """Tell whether a readout has a flat top.

    Parameters
    ----------
    samples
        (channel, sample) complex64.
    """
    flat = samples.reshape(-1).view(np.float32)
    if not flat.size:
        return False
    for place in (int(flat.argmax()), int(flat.argmin())):
        # real and imaginary parts take turns; nearly every readout is done with after this comparison
        if flat[place] == flat[min(place + 2, flat.size - 1)] != 0 and _is_flat(flat, place, samples.shape[-1]):
            return True
    return False


def _is_flat(flat: np.ndarray, place: int, length: int) -> bool:
    """Tell whether the value at `place` begins a flat top of its channel."""
    channel, within = divmod(place, 2 * length)
    part = flat[channel * 2 * length + within % 2 : (channel + 1) * 2 * length : 2]
    run = part[within // 2 : within // 2 + _FLAT]
    # a channel that never changes is switched off, or made up
    return len(run) == _FLAT and bool((run == flat[place]).all()) and not bool((part == flat[place]).all())


class Saturation:
    """Count the saturated readouts of a scan by their role."""

    def __init__(self) -> None:
        self._counts: dict[Role, int] = {}
        self._first: dict[Role, int] = {}
        self._told: set[Role] = set()

    def look(self, role: Role, scan_counter: int, samples: np.ndarray) -> None:
        """Take note of a readout."""
        if is_saturated(samples):
            self._counts[role] = self._counts.get(role, 0) + 1
            self._first.setdefault(role, scan_counter)

    def sentences(self) -> list[str]:
        """Say what a result has to say of those so far; once for each role."""
        new = [role for role in self._counts if role not in self._told]
        self._told.update(new)
        return [
            f"{self._counts[role]} {role.value.replace('_', ' ')} readouts (first: {self._first[role]}) are cut off at "
            "the receiver's largest value; amounts and lines that depend on them are not to be trusted, lower the "
            "receiver's gain"
            for role in new
        ]
