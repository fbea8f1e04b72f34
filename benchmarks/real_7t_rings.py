"""The real 7 T ring file: water, further lines, noise, and what the exact model changes, in figures and a picture.

    python benchmarks/real_7t_rings.py [crt_7t_siemens.dat] [--picture docs/pictures/real_7t_rings.png] [--seed 0]

Without a file it looks in the folder that MRSI_SHARED_DATA names, then in ../shared/data; where there is none it says
so and ends. The file is not part of the project (docs/explanation/real-7t-rings.md).

Noise is that of the real part of a sample. "Residual" is the mean square of (samples - A image) in units of the noise
scans' variance. Lines are looked for after HSVD has taken water out, in spectra weighted with the falling half of a
Hann window; "mirror" is the largest magnitude at the same distance on the other side of water.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from common import describe_machine, table
from scipy.ndimage import map_coordinates
from scipy.optimize import least_squares
from scipy.signal import welch

from mrsi_gadgets.data import KtData, Role, SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.twix import convert_twix
from mrsi_gadgets.models.between_samples import rows_between_samples
from mrsi_gadgets.models.subspace import Subspace, learn_subspace
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.operators.between_samples import continued, offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.gridding import alias_free, align_times, on_grid
from mrsi_gadgets.reconstruction.nuisance.hsvd import hsvd
from mrsi_gadgets.reconstruction.nuisance.removal import remove_nuisance
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = ("fourier", "low_rank", "locally_low_rank", "joint", "subspace")
LINES = {"lactate CH": 3.93, "unknown": 3.14, "acetate CH3": 1.73, "lactate CH3": 1.14, "unnamed": 0.96}
"""Lines [ppm, water at 4.65] that are tested; the names are those of the solution they fit."""
SHOWN = ("lactate CH", "acetate CH3", "lactate CH3", "unnamed")
REACH_PPM = 0.07
WATER_BAND_HZ = 170.0
EMPTY_PPM = (6.4, 8.0)
"""Where neither a line nor the spurious tone above 8 ppm is."""
ZERO_FILL = 16


@dataclass(eq=False)
class Scan:
    """The file, calibrated."""

    context: Context
    noise: KtData
    water: KtData
    imaging: KtData
    model: Subspace
    _methods: dict[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """Coil maps, B0, mask."""
        return self.context.calibration.encoding()

    @property
    def inside(self) -> np.ndarray:
        """(x, y) voxels of the mask."""
        return np.asarray(self.calibration[2])[:, :, 0]

    @property
    def ring(self) -> np.ndarray:
        """(point,) ring of each point."""
        radius = np.hypot(self.imaging.k[:, 0], self.imaging.k[:, 1]) * self.fov_mm * 1e-3
        return np.round(radius - 0.5).astype(int)

    @property
    def fov_mm(self) -> float:
        """Field of view [mm]."""
        return float(self.imaging.protocol.geometry.fov_mm[0])

    @property
    def dwell_s(self) -> float:
        """Spectral dwell [s]."""
        return float(self.imaging.protocol.dwell_s)

    def image(self, method: str, kt: KtData | None = None) -> SpectralImage:
        """Reconstruct with a method of the gadget."""
        gadget = Reconstruct(method=method)
        if method not in self._methods:
            prepared: Future[Any] = Future()
            prepared.set_result(gadget.prepare(self.context))
            self._methods[method] = prepared
        self.context.prepared[gadget] = self._methods[method]
        (image,) = gadget.process(iter([self.imaging if kt is None else kt]), self.context)
        return image

    def fids(self, kt: KtData) -> np.ndarray:
        """Fourier reconstruction, (x, y, t)."""
        return np.asarray(reconstruct_fourier(kt, *self.calibration).fids())[:, :, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, nargs="?", default=None)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    raw = given.raw or default_raw()
    if not raw.is_file():
        print(f"no measurement at {raw}: give the path of crt_7t_siemens.dat, or set MRSI_SHARED_DATA to its folder")
        return
    print(describe_machine(), end="\n\n")
    scan = read(raw, given.seed)
    fids, reference = scan.fids(scan.imaging), scan.fids(scan.water)
    report_object(scan)
    report_water(scan, fids, reference)
    aligned, lines = report_lines(scan, fids, reference)
    report_receiver(scan)
    report_noise(scan, given.seed)
    report_residual(scan)
    report_point_spread(scan, given.seed)
    report_nuisance(scan, aligned, reference)
    if given.picture is not None:
        draw(given.picture, scan, fids, reference, aligned, lines)


def default_raw() -> Path:
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("MRSI_SHARED_DATA", shared)) / "crt_7t_siemens.dat"


def read(raw: Path, seed: int) -> Scan:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        print(convert_twix(raw, path, sequence="crt_7t_siemens"), end="\n\n")
        file = read_scan(path)
        header = parse_header(file.header_xml)
        protocol = read_protocol(header)
        context = Context(protocol=protocol, seed=seed)
        sorted_data = {kt.role: kt for kt in sort_readouts(file.acquisitions, protocol, context.report, header=header)}
    white = {kt.role: kt for kt in Prewhiten().process(iter(sorted_data.values()), context)}
    (imaging,) = EstimateFieldMap().process(iter(white.values()), context)
    model = learn_subspace(protocol, seed=seed)
    return Scan(context, sorted_data[Role.NOISE], white[Role.WATER_REFERENCE], imaging, model)


def report_object(scan: Scan) -> None:
    for kt in (scan.water, scan.imaging):
        x, y, radius, scatter = circle(on_grid(kt))
        print(
            f"{kt.role.value}: circle of radius {radius:.1f} mm about ({x:+.1f}, {y:+.1f}) mm, scatter {scatter:.1f} mm"
        )
    print()


def circle(kt: KtData) -> tuple[float, float, float, float]:
    """Fit a circle to the outer half-height edge of the zero-filled image: centre, radius, scatter [mm]."""
    n, fine = kt.dense.shape[1], 128
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


def report_water(scan: Scan, fids: np.ndarray, reference: np.ndarray) -> None:
    inside = scan.inside
    b0 = scan.calibration[1][:, :, 0]
    mhz = scan.imaging.protocol.transmit_frequency_hz * 1e-6
    rows = []
    for name, one in (("reference", reference), ("imaging", fids)):
        place, width = peak_of(one, scan.dwell_s)
        limit = peak_of(np.ones((1, one.shape[-1])), scan.dwell_s)[1][0]
        rows.append([
            name, f"{4.65 + np.median(place[inside]) / mhz:.3f}", f"{np.std(place[inside]):.1f}",
            percentiles(place[inside]), f"{np.median(width[inside]):.0f} ({limit:.0f})",
        ])  # fmt: skip
    print(table(["water", "ppm", "SD Hz", "5, 50, 95 % Hz, B0 taken out", "width Hz (of no decay)"], rows))
    print(f"B0 in {inside.sum()} voxels, 5, 50, 95 %: {percentiles(b0[inside])} Hz")
    ratio = (fids[..., :5].mean(-1) / reference[..., :5].mean(-1))[inside]
    phase = np.degrees(np.angle(ratio)) % 360
    print(
        f"imaging water over reference: size {percentiles(np.abs(ratio), '.2f')}, "
        f"phase {percentiles(phase, '.0f')} deg\n"
    )


def percentiles(values: np.ndarray, form: str = "+.1f") -> str:
    return ", ".join(format(v, form) for v in np.percentile(values, (5, 50, 95)))


def peak_of(fids: np.ndarray, dwell_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return place and full width at half maximum [Hz] of the highest peak of the magnitude spectrum."""
    n = 64 * fids.shape[-1]
    size = np.abs(np.fft.fft(fids, n, axis=-1))
    best = size.argmax(-1)
    rolled = np.take_along_axis(size, (best[..., None] + np.arange(n)) % n, -1)
    half = rolled[..., :1] / 2
    width = np.argmax(rolled < half, axis=-1) + np.argmax(rolled[..., ::-1] < half, axis=-1)
    return np.fft.fftfreq(n, dwell_s)[best], width / (n * dwell_s)


def window(n: int) -> np.ndarray:
    """Falling half of a Hann window: it takes away the ripples that the end of the FID makes around water."""
    return 0.5 * (1 + np.cos(np.pi * np.arange(n) / n))


def spectra(fids: np.ndarray, n: int) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft(fids * window(fids.shape[-1]), n), axes=-1)


def without_water(fids: np.ndarray, dwell_s: float) -> np.ndarray:
    flat = fids.reshape(-1, fids.shape[-1])
    water = np.asarray(hsvd(flat, dwell_s, (-WATER_BAND_HZ, WATER_BAND_HZ)).signal(fids.shape[-1]))
    return fids - water.reshape(fids.shape)


def turned(fids: np.ndarray, hertz: np.ndarray, dwell_s: float) -> np.ndarray:
    """Move each voxel's spectrum down by `hertz`."""
    return fids * np.exp(-2j * np.pi * hertz[..., None] * dwell_s * np.arange(fids.shape[-1]))


def report_lines(scan: Scan, fids: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Report each line; return FIDs that were moved to the reference's water, and the lines' maps."""
    inside, dwell = scan.inside, scan.dwell_s
    shift, _ = peak_of(reference, dwell)
    long = turned(fids, shift, dwell)
    short, ref = long[..., : reference.shape[-1]], turned(reference, shift, dwell)
    without_outer = scan.imaging.with_samples(scan.imaging.samples * (scan.ring < 6)[None, :, None])
    inner = turned(scan.fids(without_outer), shift, dwell)
    exact = turned(np.asarray(scan.image("subspace").fids())[:, :, 0], shift, dwell)
    n = ZERO_FILL * fids.shape[-1]
    ppm, mhz = scan.imaging.protocol.ppm_axis(n), scan.imaging.protocol.transmit_frequency_hz * 1e-6
    clean = {name: without_water(x, dwell) for name, x in
             (("long", long), ("short", short), ("ref", ref), ("inner", inner), ("exact", exact))}  # fmt: skip
    complex_mean = {name: spectra(x[inside].mean(0), n) for name, x in clean.items()}
    mean = {name: np.abs(x) for name, x in complex_mean.items()}
    voxels = np.abs(spectra(clean["long"], n))
    water = np.abs(spectra(long, n))[inside][:, np.abs(ppm - 4.65) < 0.3].max(-1)
    sd = float(np.median(reconstruct_fourier(scan.imaging, *scan.calibration).noise_sd[:, :, 0][inside]))
    sd *= float(np.linalg.norm(window(fids.shape[-1])))
    maps = {name: np.where(inside, voxels[..., np.abs(ppm - place) < REACH_PPM].max(-1), np.nan)
            for name, place in LINES.items()}  # fmt: skip
    rows = []
    for name, place in LINES.items():
        here = np.abs(ppm - place) < REACH_PPM
        mirror = np.abs(ppm - (9.3 - place)) < REACH_PPM
        top = {key: value[here].max() for key, value in mean.items()}
        poles = [strongest_pole(clean[key][inside].mean(0), dwell, mhz, place) for key in ("long", "short", "ref")]
        turn = np.degrees(np.angle(np.vdot(complex_mean["ref"][here], complex_mean["short"][here])))
        single = maps[name][inside]
        rows.append([
            name, " / ".join(f"{pole[0]:.3f}" for pole in poles), f"{np.median(single / water):.3f}",
            f"{np.median(single) / sd:.0f}",
            f"{(voxels[inside][:, here].max(-1) > 5 * voxels[inside][:, mirror].max(-1)).sum()}/{inside.sum()}",
            f"{mean['long'][mirror].max() / top['long']:.2f}",
            f"{top['short'] / top['ref']:.1f} at {turn:+.0f}, {poles[1][2] / poles[2][2]:.1f}",
            f"{top['inner'] / mean['inner'][np.abs(ppm - 1.73) < REACH_PPM].max():.2f} / "
            f"{top['long'] / mean['long'][np.abs(ppm - 1.73) < REACH_PPM].max():.2f}",
            f"{top['exact'] / top['long']:.3f}",
            f"{np.corrcoef(single, maps['acetate CH3'][inside])[0, 1]:.2f}",
        ])  # fmt: skip
    print(table(["line", "ppm of poles", "of water", "SNR", "> 5 mirror", "mirror", "imag/ref", "rings 0-5/all",
                 "subspace", "with acetate"], rows))  # fmt: skip
    print(
        "ppm: strongest HSVD pole of the mean FID, imaging / its first 72 points / reference; of water, SNR: median\n"
        "voxel; > 5 mirror: voxels where the line is five times its mirror; mirror: mean spectrum, over the line;\n"
        "imag/ref: imaging scan over reference, both 72 points: heights, their phase [deg], and poles; rings 0-5/all:\n"
        "over acetate, without and with the rings that have interleaves; subspace: height over that of method\n"
        "fourier; with acetate: correlation of the maps\n"
    )

    def height(key: str, place: float) -> float:
        return float(mean[key][np.abs(ppm - place) < 0.03].max())

    below = 49 / mhz
    shoulders = [height("long", place - below) / height("long", place) for place in (1.73, 1.14)]
    print(f"magnitude 49 Hz below acetate {shoulders[0]:.2f} of it, below lactate CH3 {shoulders[1]:.2f} of it")
    ends = [height(key, 0.07) / height(key, 1.14) for key in ("long", "inner")]
    print(f"end of the band (0.07 ppm) over lactate CH3: {ends[0]:.3f}, rings 0 to 5 alone {ends[1]:.3f}\n")
    return clean["long"], maps


def strongest_pole(fid: np.ndarray, dwell_s: float, mhz: float, place_ppm: float) -> tuple[float, float, float]:
    """Return place [ppm], width [Hz] and size of the strongest damped exponential near a place."""
    middle = (place_ppm - 4.65) * mhz
    found = hsvd(fid[None], dwell_s, (middle - 100.0, middle + 100.0), order=6)
    ppm = 4.65 + np.asarray(found.frequency_hz)[0] / mhz
    size = np.where(np.abs(ppm - place_ppm) < REACH_PPM, np.abs(np.asarray(found.amplitude)[0]), 0)
    best = int(size.argmax())
    return float(ppm[best]), float(np.asarray(found.damping)[0, best] / np.pi), float(size[best])


def report_receiver(scan: Scan) -> None:
    """Compare the noise's density in the noise readouts with that in the laps, at frequencies no object reaches."""
    noise = np.asarray(scan.noise.samples[0])
    power = np.mean(np.abs(noise) ** 2, axis=1)
    relative = np.sqrt(power / np.median(power[-20:]))
    early, late = relative[1:12], relative[-20:]
    print(
        f"noise readouts, SD over the median of the last 20: first {relative[0]:.2f}, 2 to 12 {early.min():.2f} to "
        f"{early.max():.2f}, last 20 {late.min():.2f} to {late.max():.2f}"
    )
    mean_density = float(power.mean() * scan.noise.sample_time_s)
    bands: dict[str, float] = {"all": density(noise, scan.noise.sample_time_s, 0, 25e3),
                               "last 20": density(noise[-20:], scan.noise.sample_time_s, 0, 25e3)}  # fmt: skip
    print(f"their density within 25 kHz over the mean of all 100 kHz: {bands['all'] / mean_density:.3f} "
          f"(noise bandwidth {mean_density / bands['all']:.3f} of 1/dwell)")  # fmt: skip
    unwhite = float(np.sqrt(scan.context.calibration.noise_covariance[0, 0].real / 2))
    laps = np.stack([np.asarray(scan.imaging.samples[0])[scan.ring == q].T.ravel() for q in range(3)]) * unwhite
    measured = density(laps, scan.imaging.sample_time_s, 45e3, 75e3)
    print(f"density of the laps of rings 0 to 2 at 45 to 75 kHz: {measured / bands['all']:.2f} of all noise readouts, "
          f"{measured / bands['last 20']:.2f} of the last 20")  # fmt: skip
    told = []
    for khz in (28.9, 37.2, 45.55):
        ratio = [tone(scan, kt, khz * 1e3) for kt in (scan.water, scan.imaging)]
        told.append(f"{khz} kHz {ratio[0]:.0f} / {ratio[1]:.0f}")
    print(f"tones, power over noise, median of rings 0 to 5, reference / imaging: {', '.join(told)}")
    predicted = np.sqrt(bands["all"] / mean_density), np.sqrt(measured / mean_density)
    print(
        f"so in the passband SD is {predicted[0]:.2f} (noise readouts), {predicted[1]:.2f} (laps) of what the "
        "samples are whitened by\n"
    )


def tone(scan: Scan, kt: KtData, hertz: float) -> float:
    """Return the power of a tone in the laps over the samples' variance, median over rings 0 to 5."""
    powers = []
    for q in range(6):
        stream = np.asarray(kt.samples[0])[scan.ring == q].T.ravel()
        weight = np.blackman(len(stream))
        power = np.abs(np.fft.fft(stream * weight)) ** 2 / (2 * np.sum(weight**2))
        hz = np.fft.fftfreq(len(stream), kt.sample_time_s)
        powers.append(float(power[np.abs(hz - hertz) < 60].max()))
    return float(np.median(powers))


def density(streams: np.ndarray, sample_time_s: float, low_hz: float, high_hz: float) -> float:
    """Return the power per Hz of (stream, sample) between two distances from the centre frequency."""
    hz, power = welch(streams, fs=1 / sample_time_s, window="blackmanharris", nperseg=1200, return_onesided=False,
                      detrend=False, axis=-1)  # fmt: skip
    return float(power[..., (np.abs(hz) >= low_hz) & (np.abs(hz) < high_hz)].mean())


def report_noise(scan: Scan, seed: int) -> None:
    """Compare the noise of each method's spectra with what the noise scan predicts through the same reconstruction."""
    rng = np.random.default_rng(seed)
    kt, inside = scan.imaging, scan.inside
    root = np.sqrt(kt.counts)[None].astype(np.float32)
    rows = []
    for method in METHODS:
        image = scan.image(method)
        fids = np.asarray(image.fids())
        measured = empty_band_sd(scan, fids)
        bands, whole = [], []
        for _ in range(4):
            noise = rng.standard_normal((*kt.samples.shape, 2)).astype(np.float32).view(np.complex64)[..., 0] / root
            more = np.asarray(scan.image(method, kt.with_samples(kt.samples + 0.3 * noise)).fids()) - fids
            bands.append(empty_band_sd(scan, more) / 0.3)
            whole.append(float(np.sqrt(np.mean(np.abs(more[:, :, 0][inside]) ** 2) / 2)) / 0.3)
        sd = np.mean(image.noise_sd[:, :, 0][inside] ** 2)
        if image.basis is not None:
            each = image.coefficient_sd if image.coefficient_sd is not None else None
            rank, n_times = image.basis.shape
            sd = sd * rank / n_times if each is None else np.mean(np.sum(each[:, :, 0][inside] ** 2, -1)) / n_times
        error = np.hypot(np.std(bands, ddof=1) / np.mean(bands) / 2, 1 / np.sqrt(2 * effective_samples(scan)))
        ratio = measured / np.mean(bands)
        rows.append([method, f"{np.sqrt(sd):.4f}", f"{np.mean(whole):.4f}", f"{np.mean(bands):.4f}", f"{measured:.4f}",
                     f"{ratio:.2f} +- {ratio * error:.2f}"])  # fmt: skip
    print(table(["method", "stated", "added noise", "... empty band", "measured there", "measured/added"], rows))
    print(
        "per FID sample in the mask; stated: what the image says of itself; added noise: change by noise of the noise\n"
        f"scan's variance (0.3 of its SD, four draws); empty band: {EMPTY_PPM[0]} to {EMPTY_PPM[1]} ppm, fourth\n"
        "differences\n"
    )


def empty_band_sd(scan: Scan, fids: np.ndarray) -> float:
    """Noise per FID sample from fourth differences of the spectra, which water's tail does not reach."""
    n_times = fids.shape[-1]
    spectrum = np.fft.fftshift(np.fft.fft(fids[:, :, 0], axis=-1), axes=-1)[scan.inside] / np.sqrt(n_times)
    ppm = scan.imaging.protocol.ppm_axis(n_times)
    rest = np.diff(spectrum[:, (ppm > EMPTY_PPM[0]) & (ppm < EMPTY_PPM[1])], n=4, axis=-1)
    # binomial coefficients of the fourth difference: 1 + 16 + 36 + 16 + 1
    return float(np.sqrt(np.mean(np.abs(rest) ** 2) / 2 / 70))


def effective_samples(scan: Scan) -> float:
    """Return how many independent values `empty_band_sd` has: rings cover pi/4 of the square, differences overlap."""
    ppm = scan.imaging.protocol.ppm_axis()
    n = int(((ppm > EMPTY_PPM[0]) & (ppm < EMPTY_PPM[1])).sum()) - 4
    overlap = 1 + 2 * (56**2 + 28**2 + 8**2 + 1) / 70**2
    return float(2 * scan.inside.sum() * np.pi / 4 * n / overlap)


def report_residual(scan: Scan) -> None:
    """Report samples minus model: gridding, the exact operator, and images that are free at every time."""
    kt = scan.imaging
    coil_maps, b0, mask = scan.calibration
    ring, root = scan.ring, np.sqrt(kt.counts)
    grown = (("t = 0 to 6 ms", slice(0, 16)), ("23 to 35 ms", slice(64, 96)), ("46 to 52 ms", slice(128, 144)))
    rows = []

    def add(name: str, residual: np.ndarray, root: np.ndarray, share: float = 1.0) -> None:
        power = np.abs(residual * root) ** 2 / 2
        parts = [power[:, part].mean() for _, part in grown]
        rings = [power[ring == q].mean() for q in range(8)]
        rows.append([name, *(f"{v / share:.1f}" for v in (power.mean(), *parts)), " ".join(f"{v:.1f}" for v in rings)])

    samples = np.asarray(kt.samples[0])
    add("the samples themselves", samples, root)
    image = reconstruct_subspace(kt, coil_maps, b0, mask, model=scan.model, prior="none", seed=scan.context.seed)
    edges = reconstruct_subspace(kt, coil_maps, b0, mask, model=scan.model, water=scan.context.calibration.water,
                                 seed=scan.context.seed)  # fmt: skip
    gridded = np.asarray(reconstruct_fourier(kt, coil_maps, image.b0_hz.astype(float), mask).fids())
    times, dwell = kt.protocol.times_s, scan.dwell_s
    nodes = offset_nodes(*offset_range(kt), dwell)
    model = np.asarray(scan.model.basis)
    between = rows_between_samples(scan.model, nodes)
    n_voxels = gridded[..., 0].size
    for name, x, given, disc in (
        ("gridded, projected", gridded, image, False),
        ("gridded, projected, disc of 220 mm", gridded, image, True),
        ("exact operator, no prior", np.asarray(image.fids()), image, True),
        ("exact operator, edges", np.asarray(edges.fids()), edges, True),
    ):
        basis = np.asarray(given.basis)
        inner = basis @ model.conj().T
        rest = basis - inner @ model
        # what the scan added to the model's rows is not known between samples but by its own spectrum
        _, size, added = np.linalg.svd(rest, full_matrices=False)
        added = added[size > 1e-3]
        all_rows = between.with_more(continued(added, times, nodes)) if len(added) else between
        rows_here = np.concatenate([model, added])
        coefficients = (x @ rows_here.conj().T * np.sqrt(n_voxels)).astype(np.complex64)
        if disc:
            coefficients = coefficients * alias_free(kt)[..., None]
        operator = encoding_operator(kt, coil_maps, given.b0_hz.astype(float), all_rows)
        add(name, samples - np.asarray(operator(coefficients))[0], root)
    aligned = np.asarray(align_times(kt).samples[0])
    # the same gridded image seen by the model of gridding itself: all times of a lap moved to one
    plain = gridded[:, :, 0] * np.exp(2j * np.pi * image.b0_hz[:, :, 0, None] * times) * coil_maps[0, :, :, 0, None]
    axis = (np.arange(16) - 8) * scan.fov_mm / 16 * 1e-3
    waves = [np.exp(-2j * np.pi * np.outer(kt.k[:, a], axis)) for a in (0, 1)]
    seen = np.einsum("px,py,xyt->pt", *waves, plain * alias_free(kt)[:, :, 0, None], optimize=True)
    add("gridded, disc of 220 mm, times of a lap moved", aligned - seen, root)
    for name, size, radius in (("any image, 16 x 16, disc of 220 mm", 16, 110.0), ("any image, 16 x 16", 16, 1e3),
                               ("any image, 32 x 32, disc of 170 mm", 32, 85.0),
                               ("any image, 32 x 32, disc of 180 mm", 32, 90.0),
                               ("any image, 32 x 32, disc of 220 mm", 32, 110.0)):  # fmt: skip
        residual, share = free_fit(kt, aligned, size, radius, scan.fov_mm)
        add(name, residual, root, share)
    sign = np.where(ring == 3, -1, 1)[:, None]
    turned_laps = np.roll(aligned.reshape(8, 120, -1), 3, axis=1).reshape(aligned.shape)
    for name, changed in (
        ("... times of a lap not moved", samples),
        ("... ring 3 with the wrong sign", aligned * sign),
        ("... rings 6 and 7 turned by 9 degrees", np.where((ring >= 6)[:, None], turned_laps, aligned)),
    ):
        residual, share = free_fit(kt, changed, 32, 90.0, scan.fov_mm)
        add(name, residual, root, share)
    print(table(["residual in units of the noise", "all", *(name for name, _ in grown), "rings 0 to 7"], rows))
    print(
        "any image: least squares at every time alone (times of a lap moved by the linear phase), divided by the\n"
        "share of samples that are not used up (columns 'all' and times); ...: 32 x 32, disc of 180 mm\n"
    )
    print(f"corrections of the exact operator, relative: {image.provenance['corrections']}; rows added by the scan: "
          f"{image.provenance['rows_added']}")  # fmt: skip
    object_ = np.asarray(mask)
    change = np.asarray(image.fids()) - gridded
    print(f"exact against gridded in the mask: {norm(change[object_]) / norm(gridded[object_]):.3f} of the FIDs, first "
          f"point {norm(change[object_][:, 0]) / norm(gridded[object_][:, 0]):.3f}, later points "
          f"{norm(change[object_][:, 1:]) / norm(gridded[object_][:, 1:]):.3f}\n")  # fmt: skip


def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def free_fit(kt: KtData, samples: np.ndarray, size: int, radius_mm: float, fov_mm: float) -> tuple[np.ndarray, float]:
    """Return what the best image of each time leaves of (point, t), and the share of samples that are not used up."""
    axis = (np.arange(size) - size // 2) * fov_mm / size
    place = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    place = place[np.hypot(*place.T) <= radius_mm] * 1e-3
    encoding = np.exp(-2j * np.pi * (kt.k[:, :2] @ place.T))
    weighted = (encoding * kt.count[:, None]).conj().T
    normal = weighted @ encoding
    ridged = normal + 1e-3 * np.eye(len(place))
    used = float(np.trace(np.linalg.solve(ridged, normal)).real)
    return samples - encoding @ np.linalg.solve(ridged, weighted @ samples), 1 - used / len(samples)


def report_point_spread(scan: Scan, seed: int) -> None:
    """Report the image of one voxel's signal at two frequencies that the basis holds, gridded and exact."""
    kt = scan.imaging
    coil_maps, b0, mask = scan.calibration
    ones, flat, everywhere = np.ones_like(coil_maps), np.zeros_like(b0), np.ones_like(mask)
    rows = []
    for name, hertz in (("2.01 ppm", -784.7), ("3.03 ppm", -481.5)):
        for at in ((8, 8), (12, 6)):
            r = (np.array(at) - 8) * scan.fov_mm / 16 * 1e-3
            t = kt.t
            fid = np.exp((2j * np.pi * hertz - np.pi * 7.0) * t)
            noise = np.random.default_rng(seed).standard_normal((*kt.samples.shape, 2)) @ [1, 1j]
            samples = 1e4 * fid * np.exp(-2j * np.pi * (kt.k[:, :2] @ r))[:, None]
            point = kt.with_samples((samples[None] + noise).astype(np.complex64))
            gridded = reconstruct_fourier(point, ones, flat, everywhere)
            exact = reconstruct_subspace(point, ones, flat, everywhere, model=scan.model, prior="none", seed=seed)
            truth = 1e4 * np.exp((2j * np.pi * hertz - np.pi * 7.0) * kt.protocol.times_s)
            for method, image in (("gridded", gridded), ("exact", exact)):
                psf = np.abs(np.asarray(image.fids())[:, :, 0] @ truth.conj()) / norm(truth) ** 2
                first = np.abs(np.asarray(image.fids())[at[0], at[1], 0, 0]) / 1e4
                near = (np.abs(np.arange(16) - at[0]) <= 1)[:, None] & (np.abs(np.arange(16) - at[1]) <= 1)
                far = np.where(near, 0, psf)
                rows.append([name, str(at), method, f"{psf[at]:.3f}", f"{first:.3f}", f"{norm(far) / norm(psf):.3f}",
                             f"{far.max() / psf.max():.3f}"])  # fmt: skip
    print(
        table(
            ["point", "voxel", "method", "height", "... first point", "root energy beyond 3 x 3", "largest there"], rows
        )
    )
    print()


def report_nuisance(scan: Scan, aligned: np.ndarray, reference: np.ndarray) -> None:
    inside, dwell = scan.inside, scan.dwell_s
    shift, _ = peak_of(reference, dwell)
    n = ZERO_FILL * aligned.shape[-1]
    ppm = scan.imaging.protocol.ppm_axis(n)
    before = np.abs(spectra(aligned, n))[inside]
    water_before = np.abs(spectra(turned(scan.fids(scan.imaging), shift, dwell), n))[inside]
    rows = []
    water = scan.context.calibration.water
    for method, known, words in (
        ("auto", water, "with the reference's size"),
        ("union_of_subspaces", water, "with the reference's size"),
        ("auto", None, "without"),
        ("union_of_subspaces", None, "without"),
    ):
        done = remove_nuisance(scan.imaging, *scan.calibration, model=scan.model, method=method, water=known)
        after = turned(scan.fids(done.kt), shift, dwell)
        left_over = np.abs(spectra(after, n))[inside]
        core = np.abs(ppm - 4.65) < 0.2
        left = np.median(left_over[:, core].max(-1) / water_before[:, core].max(-1))
        kept = [
            percentiles(left_over[:, np.abs(ppm - LINES[name]) < REACH_PPM].max(-1)
                        / before[:, np.abs(ppm - LINES[name]) < REACH_PPM].max(-1), ".2f")
            for name in ("acetate CH3", "lactate CH3")
        ]  # fmt: skip
        taken_for = str(done.provenance["water"])
        rows.append([f"{method} ({done.method}), {words}", taken_for, f"{left:.3f}", *kept])
    print(
        table(
            ["remove_nuisance", "water taken for", "water left", "acetate after/before", "lactate CH3 after/before"],
            rows,
        )
    )
    print("medians, and 5, 50, 95 % over the voxels; before: water taken out by HSVD within 170 Hz")


def draw(path: Path, scan: Scan, fids: np.ndarray, reference: np.ndarray, aligned: np.ndarray,
         maps: dict[str, np.ndarray]) -> None:  # fmt: skip
    figure, axes = plt.subplots(3, 3, figsize=(11, 10), layout="constrained")
    half = scan.fov_mm / 2 + scan.fov_mm / 32
    box = (-half, scan.fov_mm - half, scan.fov_mm - half, -half)
    inside = scan.inside
    b0 = np.where(inside, scan.calibration[1][:, :, 0], np.nan)
    phase = np.where(inside, np.degrees(np.angle(fids[..., :5].mean(-1) / reference[..., :5].mean(-1))) % 360, np.nan)
    water = np.asarray(scan.context.calibration.water)[:, :, 0]
    shown: list[tuple[np.ndarray, str, str, dict[str, float]]] = [
        (water, "gray", "water, reference (at t = 0)", {}),
        (b0, "RdBu_r", "B0 [Hz]", {"vmin": -25, "vmax": 25}),
        (phase, "twilight_shifted", "imaging water against reference [deg]", {"vmin": 0, "vmax": 360}),
    ]
    top = float(np.nanpercentile(maps["lactate CH3"], 98))
    for name in SHOWN[:3]:
        limits = {"vmin": 0.0} | ({"vmax": top} if "CH3" in name else {})
        shown.append((maps[name], "viridis", f"{name}, {LINES[name]:.2f} ppm", limits))
    for axis, (values, colours, title, limits) in zip(axes.ravel(), shown, strict=False):
        drawn = axis.imshow(values.T, cmap=colours, extent=box, interpolation="nearest", **limits)  # type: ignore[arg-type]
        figure.colorbar(drawn, ax=axis, shrink=0.8)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="read [mm]", ylabel="phase [mm]")
    n = ZERO_FILL * fids.shape[-1]
    ppm = scan.imaging.protocol.ppm_axis(n)
    shift, _ = peak_of(reference, scan.dwell_s)
    left, middle, right = axes[2]
    water_full = np.abs(spectra(turned(fids, shift, scan.dwell_s)[inside].mean(0), n))
    clean = np.abs(spectra(aligned[inside].mean(0), n))
    left.semilogy(ppm, water_full / water_full.max(), lw=0.9, color="black", label="as reconstructed")
    left.semilogy(ppm, clean / water_full.max(), lw=0.9, color="tab:blue", label="water taken out")
    left.set(title="mean spectrum", xlim=(9.3, 0.0), ylim=(3e-4, 2), xlabel="ppm (water at 4.65)")
    left.legend(fontsize=7)
    middle.plot(ppm, clean / clean.max(), lw=0.9, color="tab:blue", label="upfield")
    middle.plot(9.3 - ppm, clean / clean.max(), lw=0.9, color="tab:orange", label="mirrored about water")
    middle.set(title="lines and their mirror", xlim=(4.4, 0.2), ylim=(0, 1.1), xlabel="ppm (water at 4.65)")
    middle.legend(fontsize=7)
    for offset, voxel in enumerate([(8, 8), (8, 12), (12, 7)]):
        one = np.abs(spectra(aligned[voxel], n))
        right.plot(ppm, one / one.max() + 0.5 * offset, lw=0.9, label=f"voxel {voxel}")
    right.set(title="single voxels", xlim=(4.4, 0.2), xlabel="ppm (water at 4.65)")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
