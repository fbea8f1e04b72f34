"""Metabolite cycling: two conditions whose sum is water and whose difference is metabolites (profile 2.6.3).

An inversion pulse turns the metabolites upside down in every other readout and leaves the water alone. With equal
amplitudes of both conditions, water = (up + down) / 2 and metabolites = (up - down) / 2 at every sample.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mrsi_gadgets.data import KtData, Role


def separate(up: KtData, down: KtData) -> tuple[KtData, KtData]:
    """Return water reference and metabolites of one frame.

    Parameters
    ----------
    up, down
        The two conditions, means of their averages; of one layout and one protocol.

    Returns
    -------
        Water and metabolites. A sample counts as 4 / (1 / up + 1 / down) readouts, twice those of each condition where
        both came equally often; where one of them never came both are zero with count 0.
    """
    first, second = np.asarray(up.count, dtype=float), np.asarray(down.count, dtype=float)
    if first.ndim != second.ndim:
        first, second = np.array(up.counts, dtype=float), np.array(down.counts, dtype=float)
    both = first + second
    count = 4 * first * second / np.where(both > 0, both, 1.0)
    lacking = count == 0 if count.ndim == 2 else (count == 0)[:, None]
    halves = []
    for sign in (1, -1):
        samples = up.samples + down.samples if sign > 0 else up.samples - down.samples
        samples *= np.float32(0.5)
        if lacking.any():
            samples *= ~lacking
        halves.append(samples)
    acquired = None
    if up.acquired_s is not None and down.acquired_s is not None:
        acquired = (up.acquired_s + down.acquired_s) / 2 if up.acquired_s.shape == down.acquired_s.shape else None
    both_ways = replace(up, samples=halves[1], count=count, acquired_s=acquired)
    return replace(both_ways, samples=halves[0], role=Role.WATER_REFERENCE), both_ways
