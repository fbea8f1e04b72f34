"""How a simulated scan walks through (k, t): csi, EPSI, concentric rings and spirals, with what their gradients do.

An encoding says where its samples lie (`points`), in which readouts they come (`readouts`) and how a header describes
them (`protocol_fields`, `keys`, `limits`). Everything else (signals, coils, noise, drift) is the same for all of them.
"""

from __future__ import annotations

from mrsi_gadgets.phantom.encodings.csi import Csi, random_mask
from mrsi_gadgets.phantom.encodings.encoding import Encoding, Readout
from mrsi_gadgets.phantom.encodings.epsi import Epsi
from mrsi_gadgets.phantom.encodings.laps import Rings, Spirals

__all__ = ["ENCODINGS", "Csi", "Encoding", "Epsi", "Readout", "Rings", "Spirals", "random_mask"]

ENCODINGS: dict[str, type[Encoding]] = {cls.kind: cls for cls in (Csi, Epsi, Rings, Spirals)}
"""Name -> encoding, as the card of a truth keeps them."""
