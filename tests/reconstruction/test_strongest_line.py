"""Field, coils and phase from the strongest line of a scan without water."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import coordinates, make_coil_maps, measure

from mrsi_gadgets.data import Geometry, KtData, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics.ensemble import default_ensemble, noise_sd_at_snr, sample
from mrsi_gadgets.physics.nucleus import calibration_line
from mrsi_gadgets.reconstruction.field_map import field_map_from_strongest_line

MATRIX = (14, 14, 1)
PROTOCOLS = {
    "31P": Protocol("31P", 120.3e6, 0.0, 1 / 5000, 512, 0.5e-3, Geometry(MATRIX, (220.0, 220.0, 20.0)), "csi",
                    field_strength_t=7.0),
    "2H": Protocol("2H", 45.6e6, 4.8, 1 / 1000, 256, 0.5e-3, Geometry(MATRIX, (220.0, 220.0, 20.0)), "csi",
                   field_strength_t=7.0),
}  # fmt: skip


def scan(nucleus: str, snr: float, rng: np.random.Generator) -> tuple[KtData, np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of an ensemble of sharp lines, without its own errors of B0, within a disc."""
    protocol = PROTOCOLS[nucleus]
    x, y, _ = coordinates(MATRIX)
    mask = np.hypot(x, y) < 0.75
    known = replace(
        default_ensemble(protocol), common_shift_hz_sd=0.0, phase_rad_sd=0.0, molecule_shift_ppm_sd=0.0,
        altered_share=0.0, concentration_sd=0.2, broadening_ppm=(0.0, 0.05),
    )  # fmt: skip
    fids = sample(protocol, mask.size, 5, ensemble=known).metabolites.reshape(*MATRIX, -1) * mask[..., None]
    b0 = (20 * x - 15 * y + 12 * x * y) * protocol.transmit_frequency_hz / 120.3e6
    coils = make_coil_maps(MATRIX, 4)
    sd = noise_sd_at_snr(protocol, snr) * np.sqrt(mask.size)
    kt = measure(fids, coils, b0, protocol, noise_sd=sd, rng=rng)
    return replace(kt, samples=(kt.samples / np.float32(sd)).astype(np.complex64)), coils, b0, mask


@pytest.mark.parametrize(("nucleus", "hz"), [("31P", 1.6), ("2H", 1.2)])
def test_field_coils_and_phase_are_right_at_an_snr_of_20(rng, nucleus, hz):
    kt, coils, b0, mask = scan(nucleus, 20.0, rng)
    ppm, t2_star = calibration_line(kt.protocol)
    found = field_map_from_strongest_line(kt, ppm, t2_star_s=t2_star)
    assert np.mean(found.mask[mask]) > 0.95
    assert np.mean(found.mask[~mask]) < 0.05
    assert np.sqrt(np.mean((found.b0_hz - b0)[mask] ** 2)) < hz
    likeness = np.sum(found.coil_maps.conj() * coils, axis=0)[mask]
    assert np.mean(np.abs(likeness)) > 0.95
    assert abs(np.angle(np.mean(likeness))) < 0.05
    assert found.water is None
    assert found.source == f"line at {ppm:g} ppm"


def test_noise_alone_has_no_line(rng):
    kt, *_ = scan("31P", 20.0, rng)
    noise = (rng.standard_normal((*kt.samples.shape, 2)) @ np.array([1, 1j])).astype(np.complex64)
    with pytest.raises(DataError, match="line at 0 ppm does not stand out"):
        field_map_from_strongest_line(kt.with_samples(noise), 0.0, t2_star_s=0.025)
