"""What a readout is for (profile 2.6.2): its flags decide, for water also a rule of the protocol."""

from __future__ import annotations

import numpy as np

from mrsi_gadgets.data import Protocol, Role
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.mrd.keys import WATER_RULES
from mrsi_gadgets.mrd.layout import COUNTER_INDEX, ReadoutHead, read_head
from mrsi_gadgets.stream.messages import Flag

_NOISE = Flag.IS_NOISE_MEASUREMENT.mask
_DUMMY = Flag.IS_DUMMYSCAN_DATA.mask
_NAVIGATOR = (
    Flag.IS_NAVIGATION_DATA.mask
    | Flag.IS_PHASECORR_DATA.mask
    | Flag.IS_HPFEEDBACK_DATA.mask
    | Flag.IS_RTFEEDBACK_DATA.mask
)
_CALIBRATION = Flag.IS_PARALLEL_CALIBRATION.mask
_ALSO_IMAGING = Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING.mask
_WATER = Flag.USER1.mask
_NOT_SIGNAL = _NOISE | _DUMMY | _NAVIGATOR | _CALIBRATION


class RoleRule:
    """The rule of one protocol, ready to be asked for every readout.

    Parameters
    ----------
    protocol
        Its `water_reference` is the rule for water: ``none``, ``flag:USER1``, ``flag:IS_PARALLEL_CALIBRATION`` (its
        readouts are then no calibration), ``measurement`` or ``counter:value``.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.text = protocol.water_reference
        counter, _, value = self.text.partition(":")
        self.counter = counter if counter in COUNTER_INDEX else None
        self._index = COUNTER_INDEX.get(counter, -1)
        self._value = int(value) if self.counter else -1
        self._calibration_is_water = self.text == "flag:IS_PARALLEL_CALIBRATION"
        if self.counter is None and self.text not in WATER_RULES:
            raise DataError(
                f"mrsi_water_ref is '{self.text}'; it must be one of {', '.join(WATER_RULES)} or a counter with its "
                "value, such as set:1"
            )

    def role(self, head: ReadoutHead) -> Role:
        """Return the role of a readout.

        Raises
        ------
        DataError
            The readout is flagged as water reference (USER1) where the rule says that it is none.
        """
        flags = head.flags
        if flags & _NOT_SIGNAL:
            if flags & _NOISE:
                return Role.NOISE
            if flags & _DUMMY:
                return Role.DUMMY
            if flags & _NAVIGATOR:
                return Role.NAVIGATOR
            if self._calibration_is_water:
                return Role.WATER_REFERENCE
            if not flags & _ALSO_IMAGING:
                return Role.CALIBRATION
        flagged, water = bool(flags & _WATER), self.is_water(head)
        if flagged and not water:
            raise DataError(
                f"readout {head.scan_counter} carries the water flag USER1 but mrsi_water_ref '{self.text}' says "
                "that it is no water reference; correct the flag or the rule"
            )
        return Role.WATER_REFERENCE if water else Role.METABOLITE

    def is_water(self, head: ReadoutHead) -> bool:
        """Return whether the rule alone, whatever other flags say, makes a readout water."""
        if self.counter is not None:
            return head.counters[self._index] == self._value
        return self.text == "measurement" or (self.text == "flag:USER1" and bool(head.flags & _WATER))


def classify(head: np.void, protocol: Protocol) -> Role:
    """Return the role of a readout by the first rule that matches (profile 2.6.2).

    Noise, dummy, navigator (also phase correction and feedback), calibration, water reference, else metabolite.

    Parameters
    ----------
    head
        ACQUISITION_HEADER scalar.
    protocol
        Gives the rule for water.

    Raises
    ------
    DataError
        Water flag and water rule disagree.
    """
    return RoleRule(protocol).role(read_head(head))
