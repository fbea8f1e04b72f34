"""Gadget `console_images`: maps as MRD images the scanner's console can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mrsi_gadgets.data import Maps
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.output.console import SPECTRA_CHOICES, maps_to_images
from mrsi_gadgets.output.scaling import DisplayScales, base_name
from mrsi_gadgets.physics.nucleus import nucleus_of
from mrsi_gadgets.quantification.assembly import PH
from mrsi_gadgets.stream.messages import Image

_UNKNOWN_LINE = "unknown_"


@dataclass(frozen=True)
class ConsoleImages(Gadget):
    """One series per map: uint16 in fixed units to look at, exact float values beside them, a few spectra with fits."""

    element: ClassVar[str] = "console_images"
    accepts: ClassVar[tuple[type, ...]] = (Maps,)
    produces: ClassVar[tuple[type, ...]] = (Image,)
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "quantitative": ("all", "shown", "none"),
        "spectra": SPECTRA_CHOICES,
    }

    maps: tuple[str, ...] = ()
    """Maps to show; none named: the reported sums of the nucleus (tNAA, tCr, tCho, Ins, Glx of 1H), and pH."""
    uncertainty: bool = True
    """Show the standard deviation of each of them too."""
    quantitative: str = "all"
    """Which exact float images go along: all, shown or none."""
    spectra: str | None = None
    """Which spectra go along with their fits: a few ``examples``, ``all`` fitted voxels, or ``none``; auto: examples,
    and all where `mrsi replay` runs in its own process."""

    def prepare(self, context: Context) -> None:
        """Refuse maps that the fit cannot give; `quantify`, before it in the chain, has told which it can.

        Raises
        ------
        ConfigError
            A map to show can never be there.
        """
        known = context.map_names
        if known is None:
            return
        for name in self.maps:
            # lines that no molecule explains are found only in the data
            if name not in known and not name.startswith(_UNKNOWN_LINE):
                sums = [group for group in nucleus_of(context.protocol).sums if group in known]
                singles = [n for n in known if n not in sums and base_name(n) == n][:3]
                ratios = {f"NAME_per_{n.partition('_per_')[2]}" for n in known if "_per_" in n}
                raise ConfigError(
                    f"<{self.element}> asks for the map '{name}', which the fit does not make; choose from the sums "
                    f"{', '.join(sums)}, single molecules such as {', '.join(singles)}, and "
                    f"{' and '.join(sorted(ratios, reverse=True))} of each"
                )

    @staticmethod
    def _sums(maps: Maps) -> tuple[str, ...]:
        """Return the reported sums that are there, and pH."""
        return tuple(name for name in (*nucleus_of(maps.protocol).sums, PH) if name in maps.maps)

    def process(self, items: Iterator[Any], context: Context) -> Iterator[Any]:
        """Yield the images of each frame."""
        scales = DisplayScales()
        for item in items:
            if not isinstance(item, Maps):
                yield item
                continue
            report = context.report
            with report.timed("console_images"):
                images = maps_to_images(
                    item,
                    reference_head=context.reference_heads.get(item.frame),
                    shown=self.maps or self._sums(item),
                    uncertainty=self.uncertainty,
                    quantitative=self.quantitative,
                    spectra=self.spectra or "examples",
                    warnings=report.warnings,
                    provenance=report.provenance,
                    scales=scales,
                    water=context.calibration.take_water_fids(),
                )
            context.frame = item.frame
            which = "" if item.echo is None else f", echo time {item.protocol.echo_times_s[0] * 1e3:g} ms,"
            context.progress(f"{len(images)} images of frame {item.frame}{which} are ready")
            yield from images
