"""The synthetic object of this folder measured by every encoding, each sample at its own place and time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic import Measurement, make_measurement

from mrsi_gadgets.data import KtData

PPM, DECAY_S = (2.01, 3.03, 3.2, 3.56), 0.06


def points_of(kind: str, geometry, dwell_s: float):
    """Return k (point, 3), offset (point,) [s], density, grid and count of an encoding."""
    fov = np.array(geometry.fov_mm) * 1e-3
    matrix = geometry.matrix
    grid_k = k_points_of(geometry)
    x = np.round(grid_k[:, 0] * fov[0])
    if kind == "csi":
        return grid_k, np.zeros(len(grid_k)), None, matrix
    if kind == "epsi":
        return grid_k, x * 0.8 * dwell_s / matrix[0], None, matrix
    if kind == "bipolar":
        late = x * 0.45 * dwell_s / matrix[0]
        both = np.concatenate([late, 0.5 * dwell_s - late])
        return np.concatenate([grid_k, grid_k]), both, np.full(2 * len(grid_k), 0.5), None
    if kind == "rings":
        n_rings, lap = max(matrix), 2 * int(np.ceil(np.pi * max(matrix)))
        radius = (np.arange(n_rings // 2 + 1) + 0.5) / fov.max()
        angle = 2 * np.pi * np.arange(lap) / lap
        k = radius[:, None] * np.exp(1j * angle)
        k, late = k.ravel(), np.tile(np.arange(lap) / lap * dwell_s, len(radius))
        return np.stack([k.real, k.imag, 0 * k.real], axis=1), late, None, None
    if kind == "spiral":
        interleaves, used = 10, 90
        turn = np.linspace(0, 1, used)
        spiral = turn * 0.5 * max(matrix) / fov.max() * np.exp(2j * np.pi * 1.3 * turn)
        k = (spiral[None] * np.exp(2j * np.pi * np.arange(interleaves) / interleaves)[:, None]).ravel()
        return np.stack([k.real, k.imag, 0 * k.real], axis=1), np.tile(turn * 0.8 * dwell_s, interleaves), None, None
    raise ValueError(kind)


def k_points_of(geometry):
    axes = [(np.arange(n) - n // 2) / (f * 1e-3) for n, f in zip(geometry.matrix, geometry.fov_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def measured(kind: str, rng, *, noise=0.0, mask=None, matrix=(14, 11, 1), n_times=96, shift_per_m=0.0) -> Measurement:
    """Return the object's samples by direct sums over voxels; `mask` makes the count (point, t) of the points.

    `shift_per_m`: the two halves of the points lie half of it to either side of where the result says they are.
    """
    made = make_measurement(rng, noise=0.0, matrix=matrix, n_times=n_times)
    protocol = made.kt.protocol
    geometry = protocol.geometry
    k, late, density, grid = points_of(kind, geometry, protocol.dwell_s)
    t = protocol.times_s + late[:, None]
    voxel = np.array(geometry.voxel_mm) * 1e-3
    axes = [(np.arange(n) - c) * v for n, c, v in zip(matrix, geometry.centre_index, voxel, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    actual = k + np.outer(np.where(np.arange(len(k)) < len(k) // 2, 0.5, -0.5), [shift_per_m, 0, 0])
    plane = np.exp(-2j * np.pi * (actual @ place.T))  # (point, voxel)
    peaks = np.exp(protocol.times_s[None] * (2j * np.pi * protocol.hz(PPM)[:, None] - 1 / DECAY_S))
    parts = np.linalg.lstsq(peaks.T, made.rho.reshape(-1, n_times).T, rcond=None)[0].T  # (voxel, peak)
    samples = np.zeros((len(made.coil_maps), *t.shape), dtype=complex)
    flat_b0 = made.b0_hz.ravel()
    for value in np.unique(late):
        members = np.flatnonzero(late == value)
        times = protocol.times_s + value
        lines = np.exp(times[None] * (2j * np.pi * protocol.hz(PPM)[:, None] - 1 / DECAY_S))
        fids = (parts @ lines) * np.exp(2j * np.pi * flat_b0[:, None] * times)
        for coil, sensitivity in enumerate(made.coil_maps):
            samples[coil, members] = plane[members] @ (sensitivity.ravel()[:, None] * fids)
    count = np.ones(len(k)) if mask is None else mask(t.shape)
    acquired = count > 0 if count.ndim == 2 else (count > 0)[:, None]
    noise_sd = noise * np.sqrt(np.prod(matrix))
    if noise_sd:
        samples += noise_sd * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
    kt = KtData(
        samples=(samples * acquired).astype(np.complex64), k=k, t=t, count=count, role=made.kt.role,
        protocol=replace(protocol, encoding="csi" if grid else "rings"), grid=grid, density=density,
        sample_time_s=protocol.dwell_s,
    )  # fmt: skip
    return replace(made, kt=kt, noise_sd=max(noise_sd, 1e-6))
