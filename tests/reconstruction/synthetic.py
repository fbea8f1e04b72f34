"""Small synthetic measurements with a known truth, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mrsi_gadgets.data import Geometry, KtData, Protocol, Role
from mrsi_gadgets.operators.fourier import Fourier, half_voxel_shift


@dataclass(frozen=True, eq=False)
class Basis:
    """The least that a reconstruction asks of a signal model, and the covariances it may have."""

    basis: np.ndarray
    metabolite_covariance: np.ndarray | None = None
    nuisance_covariance: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    kt: KtData
    rho: np.ndarray
    """(x, y, z, t) without B0."""
    coil_maps: np.ndarray
    b0_hz: np.ndarray
    mask: np.ndarray
    water: np.ndarray
    noise_sd: float
    model: Basis


def make_protocol(matrix=(14, 11, 1), n_times=96, center="edge") -> Protocol:
    geometry = Geometry(matrix, (220.0, 180.0, 10.0), grid_center=center)
    return Protocol("1H", 123.2e6, 4.65, 1 / 1500, n_times, 1.3e-3, geometry, "csi")


def coordinates(matrix):
    return np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in matrix], indexing="ij")


def make_coil_maps(matrix, n_coils=3):
    x, y, _ = coordinates(matrix)
    angles = 2 * np.pi * np.arange(n_coils) / n_coils + 0.3
    maps = [np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) / 2 + 1j * (a + x * np.sin(a))) for a in angles]
    stacked = np.stack(maps)
    return (stacked / np.sqrt(np.sum(np.abs(stacked) ** 2, axis=0))).astype(np.complex64)


def measure(rho, coil_maps, b0_hz, protocol, *, noise_sd=0.0, rng=None, role=Role.METABOLITE) -> KtData:
    """Sample FIDs (x, y, z, t): d = sqrt(N) A rho, plus white noise."""
    matrix, times = protocol.geometry.matrix, protocol.times_s[: rho.shape[-1]]
    images = coil_maps[..., None] * (rho * np.exp(2j * np.pi * b0_hz[..., None] * times))[None]
    images = images.astype(np.complex64)
    data = Fourier(images.shape, 1, half_voxel_shift(protocol.geometry))(images) * np.sqrt(np.prod(matrix))
    data = data.reshape(len(coil_maps), -1, rho.shape[-1]).astype(np.complex64)
    if noise_sd:
        noise = rng.standard_normal((*data.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        data = data + np.float32(noise_sd) * noise
    shots = data.shape[1]
    return KtData(
        samples=data,
        k=k_points(protocol),
        t=np.broadcast_to(times, (shots, len(times))),
        count=np.ones(shots, dtype=int),
        role=role,
        protocol=protocol,
        grid=tuple(matrix),
        sample_time_s=protocol.dwell_s,
    )


def k_points(protocol):
    matrix, fov = protocol.geometry.matrix, protocol.geometry.fov_mm
    axes = [(np.arange(n) - n // 2) / (f * 1e-3) for n, f in zip(matrix, fov, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def make_measurement(rng, *, noise=0.05, matrix=(14, 11, 1), n_times=96, b0=True) -> Measurement:
    """Four resonances with smooth maps, one of them changed in a lesion, in an elliptic head."""
    protocol = make_protocol(matrix, n_times)
    x, y, _ = coordinates(matrix)
    mask = x**2 + y**2 < 0.9
    times = protocol.times_s
    peaks = np.exp(times[None] * (2j * np.pi * protocol.hz([2.01, 3.03, 3.2, 3.56])[:, None] - 1 / 0.06))
    maps = []
    for _ in range(4):
        smooth = ndimage.gaussian_filter(rng.standard_normal(matrix), [2 if n > 1 else 0 for n in matrix])
        maps.append(mask * (1 + 0.2 * smooth / max(smooth.std(), 1e-3)))
    amplitudes = np.stack(maps, axis=-1) * np.array([1.0, 0.8, 0.3, 0.5])
    lesion = (x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.12
    amplitudes[lesion, 0] *= 0.5
    rho = amplitudes @ peaks
    b0_hz = (8 * x + 6 * y**2 if b0 else 0 * x).astype(np.float32)
    maps3 = make_coil_maps(matrix)
    noise_sd = noise * np.sqrt(np.prod(matrix))
    draws = rng.uniform(0.3, 1.5, (400, 4)) @ peaks * np.exp(2j * np.pi * rng.normal(size=(400, 1)) * times)
    basis = np.linalg.svd(draws, full_matrices=False)[2][:10].astype(np.complex64)
    coefficients = draws @ basis.conj().T
    covariance = coefficients.T @ coefficients.conj() / len(draws)
    kt = measure(rho, maps3, b0_hz, protocol, noise_sd=noise_sd, rng=rng)
    model = Basis(basis, covariance, 0 * covariance)
    return Measurement(kt, rho, maps3, b0_hz, mask, mask * 1.0, max(noise_sd, 1e-6), model)


def fid_error(fids, measurement) -> float:
    difference = (np.asarray(fids) - measurement.rho)[measurement.mask]
    return float(np.linalg.norm(difference) / np.linalg.norm(measurement.rho[measurement.mask]))
