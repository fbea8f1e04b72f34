"""When a device's memory does not suffice: smaller batches, then the processor, and the result says so.

Only NumPy arrays are ever overwritten, so what a stage was given on a device is whole after it has failed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from mrsi_gadgets.arrays import free_device_memory, is_device_array, out_of_memory, smaller_batches, to_numpy
from mrsi_gadgets.gadgets.context import Context

Item = TypeVar("Item")
Result = TypeVar("Result")
DIVISORS = (4, 16)
"""By how much batches become smaller, try by try."""


def with_memory(context: Context, stage: str, item: Item, work: Callable[[Item], Result]) -> Result:
    """Return ``work(item)``; where a device has too little memory for it, in smaller batches, else on the processor.

    Once a stage went over to the processor the rest of the session stays there.

    Parameters
    ----------
    context
        Of the session; its device and calibration move along.
    stage
        Element of the gadget, for the sentences.
    item
        What the stage works on.
    work
        The stage; must not change what it is given on a device, and may be called again.

    Raises
    ------
    Exception
        What `work` raises on the processor, or for another reason than the device's memory.
    """
    if context.left_device:
        return work(on_host(item))
    if (result := _tried(work, item, 1)) is not None:
        return result[0]
    for divisor in DIVISORS:
        free_device_memory()
        if (result := _tried(work, item, divisor)) is not None:
            context.report.warn(
                f"the device had too little memory for <{stage}/>, which went on in batches of 1/{divisor} of the "
                "usual size"
            )
            return result[0]
    free_device_memory()
    _leave_device(context)
    context.report.provenance["device"] = (
        f"{context.report.provenance.get('device', 'device')}, numpy:cpu from <{stage}/> on"
    )
    context.report.warn(
        f"the device had too little memory for <{stage}/>, so that the processor computed from there on; close other "
        "programs that use the device, or choose one with more memory"
    )
    return work(on_host(item))


def _leave_device(context: Context) -> None:
    """Go over to the processor for the rest of the session, with all that is calibrated."""
    context.device, context.left_device = ("numpy", "cpu"), True
    calibration = context.calibration
    calibration.coil_maps = on_host(calibration.coil_maps)
    calibration.water_image = on_host(calibration.water_image)
    context.calibrated.clear()  # lies on the device; gadgets compute again what they find no longer


def here(context: Context, item: Item) -> Item:
    """Return the item where the session computes now."""
    return on_host(item) if context.left_device else item


def _tried(work: Callable[[Item], Result], item: Item, divisor: int) -> tuple[Result] | None:
    """Return the result in a tuple, None where the device's memory did not suffice."""
    try:
        with smaller_batches(divisor):
            return (work(item),)
    except Exception as problem:
        if not out_of_memory(problem):
            raise
    # only here are the arrays free that the error's frames held
    return None


def on_host(value: Any) -> Any:
    """Return a value, a tuple, or a dataclass with its fields, with all device arrays copied to NumPy."""
    if is_device_array(value):
        return to_numpy(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        now = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        moved = {name: on_host(one) for name, one in now.items()}
        changed = {name: one for name, one in moved.items() if one is not now[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(on_host(one) for one in value)
    return value
