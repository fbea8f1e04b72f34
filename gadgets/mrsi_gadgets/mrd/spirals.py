"""Spirals: laps (see `laps`) on arms from the centre of k-space outwards and back."""

from __future__ import annotations

from mrsi_gadgets.mrd.laps import LapLayout


class SpiralLayout(LapLayout):
    """Places spiral readouts; see `LapLayout`.

    The samples of a lap beyond mrsi_samples_used are the way back to the start and no data. The density of the points
    is left to the reconstruction.
    """

    path_name = "spiral arm"
