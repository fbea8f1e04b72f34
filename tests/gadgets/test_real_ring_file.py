"""The real 7 T ring file: what it holds, and the figures of docs/explanation/real-7t-rings.md."""

from __future__ import annotations

import numpy as np
import pytest

from mrsi_gadgets.data import Role, SpectralImage
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.io.twix import convert_twix
from mrsi_gadgets.models.subspace import learn_subspace
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.operators.between_samples import continued, offset_nodes
from mrsi_gadgets.operators.encoding import encoding_operator, offset_range
from mrsi_gadgets.reconstruction.fourier import reconstruct_fourier
from mrsi_gadgets.reconstruction.gridding import alias_free, align_times
from mrsi_gadgets.reconstruction.nuisance.hsvd import hsvd
from mrsi_gadgets.reconstruction.subspace import reconstruct_subspace
from mrsi_gadgets.stream.messages import Flag

DWELL_S, MHZ = 360e-6, 297.223354
PHANTOM_LINES_PPM = {"lactate CH": 3.93, "acetate CH3": 1.735, "lactate CH3": 1.14}
"""Acetate and lactate at room temperature, water at 4.65."""


class Scan:
    """Readouts through the first gadgets of the chain."""

    def __init__(self, header_xml, acquisitions) -> None:
        header = parse_header(header_xml)
        self.context = Context(protocol=read_protocol(header))
        items = list(sort_readouts(acquisitions, self.context.protocol, self.context.report, header=header))
        self.raw = {item.role: item for item in items}
        self.items = list(Prewhiten().process(iter(items), self.context))

    def reconstructed(self) -> SpectralImage:
        mapped = EstimateFieldMap().process(iter(self.items), self.context)
        (image,) = Reconstruct(method="fourier").process(mapped, self.context)
        return image


class Calibrated(Scan):
    """With both scans' FIDs, moved to the reference's water."""

    def __init__(self, header_xml, acquisitions) -> None:
        super().__init__(header_xml, acquisitions)
        self.white = {item.role: item for item in self.items}
        (self.imaging,) = EstimateFieldMap().process(iter(self.items), self.context)
        self.known = self.context.calibration.encoding()
        self.image = reconstruct_fourier(self.imaging, *self.known)
        reference = reconstruct_fourier(self.white[Role.WATER_REFERENCE], *self.known)
        self.inside = self.known[2][:, :, 0]
        both = [np.asarray(one.fids())[:, :, 0][self.inside] for one in (self.image, reference)]
        shift = highest_peak_hz(both[1])
        self.fids, self.reference = (moved(fids, shift) for fids in both)

    @property
    def ring(self) -> np.ndarray:
        return np.round(np.hypot(*self.imaging.k[:, :2].T) * 0.22 - 0.5).astype(int)


def highest_peak_hz(fids: np.ndarray) -> np.ndarray:
    n = 64 * fids.shape[-1]
    return np.fft.fftfreq(n, DWELL_S)[np.abs(np.fft.fft(fids, n)).argmax(-1)]


def moved(fids: np.ndarray, hertz: np.ndarray) -> np.ndarray:
    return fids * np.exp(-2j * np.pi * hertz[:, None] * DWELL_S * np.arange(fids.shape[-1]))


def pole(fid: np.ndarray, place_ppm: float) -> tuple[float, complex]:
    """Place [ppm] and amplitude of the strongest damped exponential within 0.07 ppm."""
    middle = (place_ppm - 4.65) * MHZ
    found = hsvd(fid[None], DWELL_S, (middle - 100, middle + 100), order=6)
    ppm = 4.65 + np.asarray(found.frequency_hz)[0] / MHZ
    amplitude = np.asarray(found.amplitude)[0]
    best = np.where(np.abs(ppm - place_ppm) < 0.07, np.abs(amplitude), 0).argmax()
    return float(ppm[best]), complex(amplitude[best])


def without_water(fids: np.ndarray) -> np.ndarray:
    return fids - np.asarray(hsvd(fids, DWELL_S, (-170, 170)).signal(fids.shape[-1]))


def spectra(fids: np.ndarray) -> np.ndarray:
    """Zero-filled spectra under the falling half of a Hann window."""
    n = fids.shape[-1]
    return np.fft.fftshift(np.fft.fft(fids * 0.5 * (1 + np.cos(np.pi * np.arange(n) / n)), 2304), axes=-1)


def density(streams: np.ndarray, sample_time_s: float, low_hz: float, high_hz: float) -> float:
    """Power per Hz between two distances from the centre frequency, Welch's method, Blackman windows."""
    n = 1200
    window = np.blackman(n)
    pieces = np.concatenate([streams[:, start : start + n] for start in range(0, streams.shape[1] - n + 1, n // 2)])
    power = np.mean(np.abs(np.fft.fft(pieces * window)) ** 2, axis=0) * sample_time_s / np.sum(window**2)
    hz = np.abs(np.fft.fftfreq(n, sample_time_s))
    return float(power[(hz >= low_hz) & (hz < high_hz)].mean())


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    raw = shared_data / "crt_7t_siemens.dat"
    if not raw.is_file():
        pytest.skip("the real 7 T ring file crt_7t_siemens.dat is not in the shared data")
    path = tmp_path_factory.mktemp("real") / "crt.h5"
    convert_twix(raw, path, sequence="crt_7t_siemens")
    return read_scan(path)


@pytest.fixture(scope="module")
def calibrated(real):
    return Calibrated(real.header_xml, real.acquisitions)


def test_the_real_file_holds_the_readouts_its_description_says(real):
    heads = list(real.acquisitions)
    roles = [
        "noise" if r.has(Flag.IS_NOISE_MEASUREMENT) else "water" if r.has(Flag.USER1) else "imaging" for r in heads
    ]
    assert {role: roles.count(role) for role in set(roles)} == {"imaging": 96, "water": 48, "noise": 33}
    noise = np.concatenate([r.data[0] for r, role in zip(heads, roles, strict=True) if role == "noise"])
    assert noise.real.std() == pytest.approx(8.53e-6, rel=0.02)
    assert noise.imag.std() == pytest.approx(8.54e-6, rel=0.02)


def test_the_real_water_image_is_a_disc_about_the_prescribed_centre(calibrated):
    water = calibrated.context.calibration.water[:, :, 0]
    at = (np.arange(16) - 8) * 13.75
    near = np.hypot(at[:, None], at[None, :]) < 100
    disc = near & (water > 0.2 * np.percentile(water, 97))
    assert disc.sum() * 13.75**2 == pytest.approx(np.pi * 79**2, rel=0.1)
    # position (10, 4) mm: every other assignment of the axes would put the centre 8 mm or more away
    assert abs((disc.sum(1) @ at) / disc.sum()) < 4
    assert abs((disc.sum(0) @ at) / disc.sum()) < 4


def test_the_real_water_was_suppressed_and_inverted_in_the_imaging_scan(calibrated):
    ratio = calibrated.fids[:, :5].mean(1) / calibrated.reference[:, :5].mean(1)
    assert np.median(np.abs(ratio)) == pytest.approx(0.69, abs=0.05)
    assert np.median(np.degrees(np.angle(ratio)) % 360) == pytest.approx(194, abs=8)
    # FIDs of equal length, so that both scans' lines are told from their neighbours equally well
    imaging, reference = (
        spectra(without_water(fids[:, :72]).mean(0)) for fids in (calibrated.fids, calibrated.reference)
    )
    ppm = calibrated.imaging.protocol.ppm_axis(len(imaging))
    for place in (PHANTOM_LINES_PPM["acetate CH3"], PHANTOM_LINES_PPM["lactate CH3"]):
        near = np.abs(ppm - place) < 0.07
        assert np.abs(imaging[near]).max() / np.abs(reference[near]).max() == pytest.approx(8.2, abs=0.8)
        assert abs(np.degrees(np.angle(np.vdot(reference[near], imaging[near])))) < 30


def test_the_real_spectra_have_water_and_the_three_lines_of_the_phantom(calibrated):
    assert calibrated.image.coefficients.shape == (16, 16, 1, 144)
    assert np.abs(highest_peak_hz(calibrated.fids)).max() < 0.1 * MHZ
    mean = calibrated.fids.mean(0)
    for place in PHANTOM_LINES_PPM.values():
        assert pole(mean, place)[0] == pytest.approx(place, abs=0.02)
    # one proton against three, all else equal
    ratio = abs(pole(mean, 3.93)[1] / pole(mean, 1.14)[1])
    assert 0.2 < ratio < 0.45


def test_the_unnamed_line_is_at_the_same_place_and_size_in_scans_of_other_excitation_and_length(calibrated):
    mean, reference = calibrated.fids.mean(0), calibrated.reference.mean(0)
    places, shares = [], []
    for fid in (mean, mean[:72], reference):
        place, amplitude = pole(fid, 0.96)
        places.append(place)
        shares.append(abs(amplitude / pole(fid, 1.14)[1]))
    assert places == pytest.approx([0.975] * 3, abs=0.015)
    assert shares == pytest.approx([0.27] * 3, abs=0.07)


def test_no_line_of_the_phantom_has_a_mirror_on_the_other_side_of_water(calibrated):
    clean = without_water(calibrated.fids)
    sizes = np.abs(spectra(clean))
    ppm = calibrated.imaging.protocol.ppm_axis(sizes.shape[-1])

    def top(place):
        return sizes[:, np.abs(ppm - place) < 0.07].max(-1)

    for place in (1.735, 1.14):
        assert np.mean(top(place) > 5 * top(9.3 - place)) > 0.97
    assert np.mean(top(3.93) > 5 * top(9.3 - 3.93)) > 0.65
    # what was dropped as a sideband of water has one
    assert np.mean(top(3.14) > 5 * top(9.3 - 3.14)) < 0.1


def test_the_noise_of_the_laps_is_that_of_the_noise_readouts_in_the_receivers_passband(calibrated):
    noise = calibrated.raw[Role.NOISE]
    passed = density(np.asarray(noise.samples[0]), noise.sample_time_s, 0, 25e3)
    mean = float(np.mean(np.abs(noise.samples[0]) ** 2)) * noise.sample_time_s
    # the receiver's filter: 0.79 of the bandwidth
    assert mean / passed == pytest.approx(0.79, abs=0.015)
    laps = calibrated.raw[Role.METABOLITE]
    streams = np.stack([np.asarray(laps.samples[0])[calibrated.ring == q].T.ravel() for q in range(3)])
    # at 45 kHz and more no object reaches into the inner rings
    assert density(streams, laps.sample_time_s, 45e3, 75e3) / passed == pytest.approx(0.96, abs=0.08)


def test_the_noise_of_the_real_spectra_is_what_the_noise_scan_and_the_receivers_filter_predict(calibrated):
    fids = np.asarray(calibrated.image.fids())[:, :, 0][calibrated.inside]
    unitary = np.fft.fftshift(np.fft.fft(fids), axes=-1) / 12
    ppm = calibrated.imaging.protocol.ppm_axis()
    empty = (ppm > 6.4) & (ppm < 8.0)
    # the tail of water is smooth; fourth differences leave noise, 70 times its variance
    measured = np.sqrt(np.mean(np.abs(np.diff(unitary[:, empty], n=4)) ** 2) / 2 / 70)
    predicted = np.sqrt(np.mean(calibrated.image.noise_sd[:, :, 0][calibrated.inside] ** 2))
    # 1.13 where the filter's 0.79 of the noise readouts' bandwidth is not told
    assert measured / predicted == pytest.approx(1.0, abs=0.06)


def test_an_image_of_finer_voxels_explains_the_real_samples_to_within_the_noise(calibrated):
    kt = calibrated.imaging
    axis = (np.arange(32) - 16) * 0.22 / 32
    place = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    # the object's radius is 79 mm
    place = place[np.hypot(*place.T) < 0.09]
    encoding = np.exp(-2j * np.pi * (kt.k[:, :2] @ place.T))
    weighted = (encoding * kt.count[:, None]).conj().T
    ridged = weighted @ encoding + 1e-3 * np.eye(len(place))
    used = np.trace(np.linalg.solve(ridged, weighted @ encoding)).real
    assert used < 0.25 * len(kt.k)

    def left(samples):
        residual = samples - encoding @ np.linalg.solve(ridged, weighted @ samples)
        # the first time is extrapolated by the linear phase
        return np.mean(np.abs(residual[:, 1:]) ** 2 * kt.count[:, None] / 2) / (1 - used / len(samples))

    raw, aligned = (np.asarray(data.samples[0])[:, ::6] for data in (kt, align_times(kt)))
    # noise in the laps has 0.96 of the density that the noise readouts have in the filter's passband
    assert left(aligned) == pytest.approx(0.95, abs=0.15)
    # what this would see: samples of a lap taken to be simultaneous, a ring of the wrong sign
    assert left(raw) > 8
    assert left(aligned * np.where(calibrated.ring == 3, -1, 1)[:, None]) > 4


def test_the_exact_operator_explains_far_more_of_the_real_samples_than_gridding(calibrated):
    kt = calibrated.imaging
    coil_maps, b0, mask = calibrated.known
    model = learn_subspace(kt.protocol, seed=0)
    image = reconstruct_subspace(kt, coil_maps, b0, mask, model=model, prior="none")
    gridded = np.asarray(reconstruct_fourier(kt, coil_maps, image.b0_hz.astype(float), mask).fids())
    basis = np.asarray(image.basis)
    times = kt.protocol.times_s
    rows = continued(basis, times, offset_nodes(*offset_range(kt), DWELL_S))
    operator = encoding_operator(kt, coil_maps, image.b0_hz.astype(float), rows)
    disc = alias_free(kt)[..., None]

    def left(fids):
        coefficients = (16 * fids * disc @ basis.conj().T).astype(np.complex64)
        residual = np.asarray(kt.samples[0]) - np.asarray(operator(coefficients))[0]
        # the last times are extrapolated here: what the rows are between samples is not known from themselves
        return np.mean(np.abs(residual[:, :128]) ** 2 * kt.count[:, None] / 2)

    assert left(np.asarray(image.fids())) < 20
    # 300 where the innermost ring stood for the whole disc that it encloses
    assert 40 < left(gridded) < 150


def test_without_noise_scan_and_water_the_real_file_still_makes_an_image(real):
    some = [r for r in real.acquisitions if not r.has(Flag.IS_NOISE_MEASUREMENT) and not r.has(Flag.USER1)]
    scan = Scan(real.header_xml, some)
    assert scan.reconstructed().coefficients.shape == (16, 16, 1, 144)
    assert any("no noise scan" in warning for warning in scan.context.report.warnings)
