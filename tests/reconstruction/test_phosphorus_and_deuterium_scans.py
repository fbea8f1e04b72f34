"""From k-space of a phosphorus or deuterium scan to maps, by every reconstruction, with field and coils known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from synthetic import coordinates, make_coil_maps, measure

from mrsi_gadgets.data import Geometry, KtData, Maps, Protocol, SpectralImage
from mrsi_gadgets.models.subspace import Subspace, learn_subspace
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.ensemble import noise_sd_at_snr
from mrsi_gadgets.physics.nucleus import NUCLEI
from mrsi_gadgets.physics.phosphorus import ph_of_shift
from mrsi_gadgets.quantification.varpro import VarproModel, fit_varpro, prepare_varpro
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.low_rank import reconstruct_low_rank
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

MATRIX = (14, 14, 1)
MOVED_PPM = 0.12
"""Shift of phosphate in the lesion."""


@dataclass(frozen=True)
class Scanned:
    kt: KtData
    coil_maps: np.ndarray
    b0_hz: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    contents: dict[str, np.ndarray]
    noise_sd: float
    model: Subspace
    fit: VarproModel


def protocol_of(nucleus: str) -> Protocol:
    values = {"31P": (120.3e6, 0.0, 1 / 5000, 512), "2H": (45.6e6, 4.8, 1 / 1000, 256)}[nucleus]
    frequency, ppm, dwell, n_times = values
    geometry = Geometry(MATRIX, (220.0, 220.0, 20.0))
    return Protocol(nucleus, frequency, ppm, dwell, n_times, 0.5e-3, geometry, "csi", field_strength_t=7.0)


def scanned(nucleus: str, snr: float, rng: np.random.Generator) -> Scanned:
    """Two tissues, amounts that vary smoothly and on their own, a lesion with other amounts and pH."""
    protocol, table = protocol_of(nucleus), NUCLEI[nucleus]
    x, y, _ = coordinates(MATRIX)
    mask, lesion = np.hypot(x, y) < 0.75, np.hypot(x - 0.3, y + 0.2) < 0.25
    grey = np.sin(4 * x + 1) * np.cos(3 * y) > 0
    times = protocol.times_s
    rho = np.zeros((*MATRIX, len(times)), complex)
    contents: dict[str, np.ndarray] = {}
    basis = metabolite_basis(protocol)
    for name, fid in zip(basis.names, basis.fids, strict=True):
        twins = [other for pool in table.pools if name in pool for other in pool if other in contents]
        a = rng.uniform(-1, 1, 3)
        amount = np.where(grey, table.concentration_mm(name, "gm"), table.concentration_mm(name, "wm"))
        amount = amount * (1 + 0.2 * np.sin(3 * x * a[0] + 4 * y * a[1] + 3 * a[2])) * mask
        if name in ("PE", "PC", "Lac", "Glx"):
            amount = amount * np.where(lesion, 2.0, 1.0)
        contents[name] = contents[twins[0]] if twins else amount
        rate = np.where(grey, 1 / table.t2_star_s(name, "gm", 7.0), 1 / table.t2_star_s(name, "wm", 7.0))
        moved = np.where(lesion, MOVED_PPM, 0.0) * 120.3 if name == "Pi" else 0 * x
        rho += contents[name][..., None] * fid * np.exp((2j * np.pi * moved[..., None] - rate[..., None]) * times)
    rho *= np.exp(-((np.pi * 4) ** 2) / (4 * np.log(2)) * times**2)
    b0_hz = (8 * x - 6 * y + 10 * x * y) * protocol.transmit_frequency_hz / 120.3e6
    coil_maps = make_coil_maps(MATRIX, 4)
    sd = noise_sd_at_snr(protocol, snr) * np.sqrt(np.prod(MATRIX))
    kt = measure(rho.astype(np.complex64), coil_maps, b0_hz, protocol, noise_sd=sd, rng=rng)
    kt = replace(kt, samples=(kt.samples / np.float32(sd)).astype(np.complex64))
    model, fit = learn_subspace(protocol), prepare_varpro(protocol, basis, None)
    return Scanned(kt, coil_maps, b0_hz, mask, lesion & mask, contents, float(sd), model, fit)


@pytest.fixture(scope="module")
def scans() -> dict[str, Scanned]:
    return {nucleus: scanned(nucleus, 40.0, np.random.default_rng(7)) for nucleus in ("31P", "2H")}


def reconstructed(scan: Scanned, method: str) -> SpectralImage:
    known = (scan.kt, scan.coil_maps, scan.b0_hz, scan.mask)
    methods: dict[str, Callable[[], SpectralImage]] = {
        "fourier": lambda: reconstruct_fourier(*known),
        "low_rank": lambda: reconstruct_low_rank(*known),
        "subspace": lambda: reconstruct_subspace(*known, model=scan.model),
    }
    return methods[method]()


def errors(scan: Scanned, maps: Maps) -> dict[str, float]:
    found = {}
    for name, members in NUCLEI[scan.kt.protocol.nucleus].sums.items():
        truth = sum(weight * scan.contents[member] for member, weight in members.items())[scan.mask]
        off = maps.maps[name].value[scan.mask] * scan.noise_sd - truth
        found[name] = float(np.linalg.norm(off) / np.linalg.norm(truth))
    return found


@pytest.mark.parametrize(
    ("nucleus", "method", "limits"),
    [
        ("31P", "fourier", {"PCr": 0.06, "ATP": 0.08, "Pi": 0.22, "PME": 0.10, "PDE": 0.15}),
        ("31P", "low_rank", {"PCr": 0.08, "ATP": 0.15, "PME": 0.20, "PDE": 0.30}),
        ("31P", "subspace", {"PCr": 0.05, "ATP": 0.06, "Pi": 0.12, "PME": 0.08, "PDE": 0.10}),
        ("2H", "fourier", {"HDO": 0.03, "Glc": 0.10, "Glx": 0.12}),
        ("2H", "low_rank", {"HDO": 0.04, "Glc": 0.15, "Glx": 0.20}),
        ("2H", "subspace", {"HDO": 0.03, "Glc": 0.08, "Glx": 0.09}),
    ],
)
def test_every_reconstruction_and_the_fit_give_the_amounts(scans, nucleus, method, limits):
    scan = scans[nucleus]
    found = errors(scan, fit_varpro(reconstructed(scan, method), scan.fit))
    for name, limit in limits.items():
        assert found[name] < limit, (name, found)


def test_the_learned_subspace_beats_the_fourier_transform(scans):
    for scan, names in ((scans["31P"], ("ATP", "Pi", "PME", "PDE")), (scans["2H"], ("Glc", "Glx", "Lac"))):
        plain = errors(scan, fit_varpro(reconstructed(scan, "fourier"), scan.fit))
        learned = errors(scan, fit_varpro(reconstructed(scan, "subspace"), scan.fit))
        for name in names:
            assert learned[name] < 0.9 * plain[name], name


@pytest.mark.parametrize("method", ["fourier", "subspace"])
def test_the_lesion_has_the_ph_of_its_phosphate(scans, method):
    scan = scans["31P"]
    ph = fit_varpro(reconstructed(scan, method), scan.fit).maps["pH"].value
    core, healthy = scan.lesion, scan.mask & ~scan.lesion
    assert np.nanmedian(ph[core]) == pytest.approx(float(ph_of_shift(4.84 + MOVED_PPM)), abs=0.02)
    assert np.nanmedian(ph[healthy]) == pytest.approx(float(ph_of_shift(4.84)), abs=0.01)
