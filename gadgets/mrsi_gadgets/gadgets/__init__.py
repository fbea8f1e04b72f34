"""The chain: thin stages between the stream and the mathematics, and the entry a Gadgetron calls.

``python -m gadgetron PORT mrsi_gadgets.gadgets chain`` runs `chain` as an external node.
"""

from mrsi_gadgets.gadgets.node import chain

__all__ = ["chain"]
