"""The real 7 T ring file through the chain: figures and a picture of what it shows.

Run it as ``python benchmarks/real_7t_rings.py crt_7t_siemens.dat docs/pictures/real_7t_rings.png``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.ndimage import label, map_coordinates
from scipy.optimize import least_squares

from mrsi_gadgets.data import KtData, Role, SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.grid import Grid
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.twix import convert_twix
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOWS = {"lactate CH": (3.7, 4.2), "acetate CH3": (1.55, 1.95), "lactate CH3": (0.95, 1.4)}
"""Where to look for lines [ppm, water at 4.65]; the names are those of the solution they fit."""
ZERO_FILL = 16


def main(raw: str, picture: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        print(convert_twix(Path(raw), path))
        context, gridded, image = reconstruct(path)
    calibration = context.calibration
    water = np.asarray(calibration.water)[:, :, 0]
    objects, _ = label(water > 0.2 * np.percentile(water, 97))
    inside = objects == objects[tuple(n // 2 for n in objects.shape)]
    fids = np.asarray(image.fids())[:, :, 0]
    for role, kt in gridded.items():
        x, y, radius, scatter = circle(kt)
        print(f"{role.value}: circle of radius {radius:.1f} mm about ({x:+.1f}, {y:+.1f}) mm, scatter {scatter:.1f} mm")
    b0 = np.asarray(calibration.b0_hz)[:, :, 0]
    left = water_frequency(image, fids)
    low, middle, high = np.percentile((b0 + left)[inside], (5, 50, 95))
    print(f"B0 in {inside.sum()} voxels: 5, 50, 95 %: {low:+.1f}, {middle:+.1f}, {high:+.1f} Hz")
    known = calibration.mask[:, :, 0]
    print(f"field map: {known.sum()} voxels, imaging water within {np.abs(left[known]).max():.1f} Hz of it")
    ratio = np.abs(fids[inside][:, 0]) / water[inside]
    print(f"water of the imaging scan over that of the reference: {np.median(ratio):.2f}")
    ppm, spectrum = mean_spectrum(image, fids, inside)
    lines = {name: peak(ppm, spectrum, window) for name, window in WINDOWS.items()}
    print(f"water {peak(ppm, spectrum, (4.3, 5.0))[0]:.3f} ppm")
    for name, (place, height) in lines.items():
        print(f"{name}: {place:.3f} ppm, {height / np.abs(spectrum).max():.3f} of water's peak")
    report_noise(image, fids, inside)
    draw(picture, image, water, np.where(inside, b0 + left, np.nan), ppm, spectrum, lines, fids)


def reconstruct(path: Path) -> tuple[Context, dict[Role, KtData], SpectralImage]:
    scan = read_scan(path)
    header = parse_header(scan.header_xml)
    protocol = read_protocol(header)
    context = Context(protocol=protocol)
    gridded: dict[Role, KtData] = {}

    def keep(items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            gridded[item.role] = item
            yield item

    items = sort_readouts(scan.acquisitions, protocol, context.report, header=header)
    items = keep(Grid().process(Prewhiten().process(items, context), context))
    *_, image = Reconstruct(method="fourier").process(EstimateFieldMap().process(items, context), context)
    return context, gridded, image


def circle(kt: KtData) -> tuple[float, float, float, float]:
    """Fit a circle to the outer half-height edge of the zero-filled image: centre, radius, scatter [mm]."""
    n, fine = kt.grid[0], 128
    k = np.zeros((fine, fine, kt.samples.shape[-1]), complex)
    first = fine // 2 - n // 2
    k[first : first + n, first : first + n] = kt.dense[0, :, :, 0]
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k, axes=(0, 1)), axes=(0, 1)), axes=(0, 1))
    energy = np.sqrt(np.mean(np.abs(images) ** 2, axis=-1))
    pixel = kt.protocol.geometry.fov_mm[0] / fine
    centre, edge, fit = np.zeros(2), np.zeros((0, 2)), None
    for _ in range(3):
        edges = []
        for angle in np.linspace(0, 2 * np.pi, 72, endpoint=False):
            ray = centre[:, None] + np.arange(30, 105, 0.5) * np.array([[np.cos(angle)], [np.sin(angle)]])
            profile = map_coordinates(energy, ray / pixel + fine // 2, order=1)
            beyond = profile.argmax() + np.flatnonzero(profile[profile.argmax() :] < profile.max() / 2)
            if beyond.size:
                edges.append(ray[:, beyond[0]])
        edge = np.array(edges)
        fit = least_squares(lambda q, e=edge: np.hypot(*(e - q[:2]).T) - q[2], [*centre, 75.0], loss="soft_l1")
        centre = fit.x[:2]
    return (*fit.x, float(np.std(fit.fun)))


def water_frequency(image: SpectralImage, fids: np.ndarray) -> np.ndarray:
    """Return where each voxel's highest peak lies [Hz]: what the field map left of the water's offset."""
    n = 64 * fids.shape[-1]
    frequency = np.fft.fftfreq(n, image.protocol.dwell_s)
    decay = np.exp(-10 * (image.protocol.times_s - image.protocol.times_s[0]))
    return frequency[np.abs(np.fft.fft(fids * decay, n)).argmax(-1)]


def mean_spectrum(image: SpectralImage, fids: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the voxels' spectra after each was phased by its water and moved to 4.65 ppm."""
    times = image.protocol.times_s - image.protocol.times_s[0]
    n = ZERO_FILL * len(times)
    voxels = fids[inside] * np.exp(-2j * np.pi * water_frequency(image, fids)[inside][:, None] * times)
    mean = (voxels * np.exp(-1j * np.angle(voxels[:, :20].mean(-1)))[:, None]).mean(0)
    return image.protocol.ppm_axis(n), np.fft.fftshift(np.fft.fft(mean * window(len(times)), n))


def window(n: int) -> np.ndarray:
    """Falling half of a Hann window: it takes away the ripples that the end of the FID makes around water."""
    return 0.5 * (1 + np.cos(np.pi * np.arange(n) / n))


def peak(ppm: np.ndarray, spectrum: np.ndarray, window: tuple[float, float]) -> tuple[float, float]:
    here = (ppm > window[0]) & (ppm < window[1])
    at = np.abs(spectrum[here]).argmax()
    return float(ppm[here][at]), float(np.abs(spectrum[here][at]))


def report_noise(image: SpectralImage, fids: np.ndarray, inside: np.ndarray) -> None:
    """Compare the noise of the image with the noise scan's prediction, where no line is expected."""
    spectra = np.fft.fftshift(np.fft.fft(fids, axis=-1), axes=-1) / np.sqrt(fids.shape[-1])
    empty = (image.protocol.ppm_axis() > 7.2) & (image.protocol.ppm_axis() < 8.7)
    rest = np.diff(spectra[..., empty].real, n=4, axis=-1)[inside] / np.sqrt(70)
    print(f"noise per FID sample: {image.noise_sd[:, :, 0][inside].mean():.4f} predicted from the noise scan, "
          f"{rest.std():.4f} in the spectra at 7.2 to 8.7 ppm")  # fmt: skip


def draw(picture: str, image: SpectralImage, water: np.ndarray, b0: np.ndarray, ppm: np.ndarray, spectrum: np.ndarray,
         lines: dict[str, tuple[float, float]], fids: np.ndarray) -> None:  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.6), layout="constrained")
    box = (-110 - 6.875, 110 - 6.875, 110 - 6.875, -110 - 6.875)
    for axis, values, colours, title in (
        (axes[0, 0], water, "gray", "water reference (amplitude at t = 0)"),
        (axes[0, 1], b0, "RdBu_r", "B0 [Hz]"),
    ):
        shown = axis.imshow(values.T, cmap=colours, extent=box, interpolation="nearest")
        figure.colorbar(shown, ax=axis, shrink=0.85)
        axis.set(title=title, xlabel="read [mm]", ylabel="phase [mm]")
    full, zoom = axes[1]
    full.semilogy(ppm, np.abs(spectrum) / np.abs(spectrum).max(), lw=0.8, color="black")
    full.set(title="all voxels, aligned to water", xlim=(9.3, 0.1), ylim=(3e-3, 2), xlabel="ppm (water at 4.65)")
    for name, (place, height) in lines.items():
        sideways = {"acetate CH3": -16, "lactate CH3": 18}.get(name, 0)
        full.annotate(f"{name}\n{place:.2f}", (place, height / np.abs(spectrum).max()), xytext=(sideways, 10),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    n = ZERO_FILL * fids.shape[-1]
    for offset, voxel in enumerate([(8, 8), (8, 12), (12, 7)]):
        one = np.abs(np.fft.fftshift(np.fft.fft(fids[voxel] * window(fids.shape[-1]), n)))
        zoom.plot(image.protocol.ppm_axis(n), one / one.max() + 0.15 * offset, lw=0.9, label=f"voxel {voxel}")
    zoom.set(title="single voxels, over their own water", xlim=(4.3, 0.6), ylim=(0, 0.62), xlabel="ppm (water at 4.65)")
    zoom.legend(fontsize=8)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
