"""A simulated scan is what its header, its truth and its options say."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.mrd_file import read_scan
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.roles import classify
from mrsi_gadgets.phantom.encode import image_from_kspace
from mrsi_gadgets.phantom.peak import naa_peak_snr
from mrsi_gadgets.phantom.presets import PRESETS, describe_presets, find_preset
from mrsi_gadgets.phantom.scoring import b0_rms, fid_error
from mrsi_gadgets.phantom.simulate import simulate, write_simulation
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.stream.messages import Flag


def matched_fids(k, truth, *, demodulate=True, shift_hz=0.0):
    """Fourier image with the true coils, B0 and eddy-current phase taken out; unit of the truth's FIDs."""
    image = np.moveaxis(image_from_kspace(np.moveaxis(k, 0, -1)), -1, 0)
    whitening = np.linalg.inv(truth.noise_covariance)
    maps = truth.coil_maps * truth.preset.receiver_gain
    weights = np.einsum("cxyz,cd->dxyz", maps.conj(), whitening)
    fids = np.einsum("dxyz,dxyzt->xyzt", weights, image) / np.sum(weights * maps, axis=0)[..., None]
    if demodulate:
        times = truth.protocol.times_s
        fids = fids * np.exp(-2j * np.pi * (truth.b0_hz[..., None] + shift_hz) * times - 1j * truth.preset.eddy_phase)
    return fids


def test_exact_coils_and_b0_give_back_the_true_fids(clean_scan):
    # What is left: 1.3 min of drift, and coil maps that vary within voxels of 14 mm.
    drift = clean_scan.truth.preset.drift_between_scans_hz
    assert drift == pytest.approx(0.1 * 256 * 0.3 / 60)
    fids = matched_fids(clean_scan.metabolites, clean_scan.truth, shift_hz=drift)
    mask = clean_scan.truth.brain_mask
    error = np.linalg.norm((fids - clean_scan.truth.fids)[mask]) / np.linalg.norm(clean_scan.truth.fids[mask])
    assert error < 0.03
    assert fid_error(fids, clean_scan.truth) < 0.03
    early = matched_fids(clean_scan.metabolites, clean_scan.truth)
    moved = np.sum((early * clean_scan.truth.fids.conj())[mask], axis=0)
    step = np.sum(moved[20:] * moved[:-20].conj())
    assert np.angle(step) / (2 * np.pi * 20 * clean_scan.protocol.dwell_s) == pytest.approx(drift, abs=0.02)


def test_water_reference_shows_the_true_b0_and_amount_of_water(clean_scan):
    truth, protocol = clean_scan.truth, clean_scan.protocol
    water = matched_fids(clean_scan.water, truth)
    mask = truth.brain_mask
    assert np.median(np.abs(water[mask][:, 0]) / truth.water[mask]) == pytest.approx(1.0, abs=0.03)
    step = np.sum(water[..., 1:40] * water[..., :39].conj(), axis=-1)
    left_over = np.angle(step) / (2 * np.pi * protocol.dwell_s)
    # Voxels of 14 mm: water's own dephasing moves the apparent frequency of steep voxels.
    assert b0_rms(truth.b0_hz + left_over, truth) < 0.5


def test_naa_lies_at_2_01_ppm_below_water(clean_scan):
    truth, protocol = clean_scan.truth, clean_scan.protocol
    mean = truth.fids[truth.brain_mask & (truth.lesion_total < 0.02)].mean(axis=0)
    # The first-order phase of the delay is taken out by starting the transform at the excitation.
    frequency = protocol.hz(np.linspace(0.5, 4.3, 1500))
    spectrum = np.abs(
        np.exp(-2j * np.pi * np.outer(frequency, protocol.times_s)) @ (mean * np.exp(-3 * protocol.times_s))
    )
    peak = np.linspace(0.5, 4.3, 1500)[np.argmax(spectrum)]
    assert peak == pytest.approx(2.01, abs=0.02)
    assert protocol.hz(2.01) < 0


def test_median_snr_is_the_presets_and_is_found_again_in_the_noise(noisy_scan):
    truth = noisy_scan.truth
    mask = truth.brain_mask
    assert np.median(truth.naa_snr[mask]) == pytest.approx(truth.preset.snr, rel=1e-4)
    quiet = simulate("csi16", seed=3, snr=np.inf)
    noise = matched_fids(noisy_scan.metabolites - quiet.metabolites, truth)
    sd = noise[mask].real.std(axis=-1)
    found = naa_peak_snr(truth.fids[mask], sd, truth.protocol)
    # 256 samples give each voxel's SD to 4.4 %, the median of 90 voxels to 0.6 %.
    assert np.median(found / truth.naa_snr[mask]) == pytest.approx(1.0, rel=0.02)


def test_noise_scan_is_wider_by_its_bandwidth_and_has_the_true_covariance(noisy_scan):
    preset, truth = noisy_scan.truth.preset, noisy_scan.truth
    samples = noisy_scan.noise.reshape(preset.n_coils, -1)
    found = samples @ samples.conj().T / samples.shape[1] * (preset.noise_dwell_s / preset.dwell_s)
    assert np.linalg.norm(found - truth.noise_covariance) < 0.03 * np.linalg.norm(truth.noise_covariance)


def test_noise_seed_changes_the_noise_and_not_the_brain(noisy_scan):
    other = simulate("csi16", seed=3, noise_seed=6)
    assert np.array_equal(other.truth.contents, noisy_scan.truth.contents)
    assert not np.array_equal(other.metabolites, noisy_scan.metabolites)


def test_another_seed_is_another_brain(noisy_scan):
    other = simulate("csi16", seed=4, snr=np.inf)
    assert not np.allclose(other.truth.contents, noisy_scan.truth.contents, rtol=0.05)
    assert not np.allclose(other.truth.b0_hz, noisy_scan.truth.b0_hz, atol=1.0)


def test_nuisance_has_the_stated_strength_at_the_start_of_the_fid(clean_scan):
    preset = replace(PRESETS["csi16"], lipid=0.0)
    with_water = simulate(preset, seed=3, snr=np.inf)
    truth = with_water.truth
    extra = matched_fids(with_water.metabolites - clean_scan.metabolites, clean_scan.truth)
    normal = truth.brain_mask & (truth.lesion_total < 0.02)
    strength = np.mean(np.abs(extra[normal][:, 0])) / truth.card["naa_ch3_signal"]
    # The residual decays from t = 0 to the first sample and voxels near the edge are diluted.
    assert strength == pytest.approx(5.0, rel=0.2)
    assert 2000 < truth.card["unsuppressed_water_over_naa"] < 5000


def test_without_b0_nothing_is_off_resonance():
    scan = simulate("csi16", seed=3, snr=np.inf, nuisance=False, b0=False)
    assert not np.any(scan.truth.b0_hz)
    fids = matched_fids(scan.metabolites, scan.truth, demodulate=False)
    mask = scan.truth.brain_mask
    assert np.linalg.norm((fids - scan.truth.fids)[mask]) < 0.015 * np.linalg.norm(scan.truth.fids[mask])


def test_header_reads_back_as_the_presets_protocol(noisy_scan):
    found, wanted = read_protocol(parse_header(noisy_scan.header_xml)), noisy_scan.truth.preset.protocol
    for entry in fields(wanted):
        if entry.name == "provenance":
            continue
        value, expected = getattr(found, entry.name), getattr(wanted, entry.name)
        if isinstance(expected, float) or (isinstance(expected, tuple) and expected and isinstance(expected[0], float)):
            assert value == pytest.approx(expected, rel=1e-9), entry.name
        elif entry.name == "axes":
            assert {k: value[k] for k in ("kx", "ky", "kz", "t")} == {k: expected[k] for k in ("kx", "ky", "kz", "t")}
        else:
            assert value == expected, entry.name


def test_readouts_come_as_noise_then_water_then_metabolites(noisy_scan):
    protocol = noisy_scan.protocol
    items = list(noisy_scan.acquisitions)
    roles = [classify(item.head, protocol) for item in items]
    assert roles == [Role.NOISE] * 16 + [Role.WATER_REFERENCE] * 256 + [Role.METABOLITE] * 256
    counters = [int(item.head["scan_counter"]) for item in items]
    assert counters == list(range(len(items)))
    stamps = np.array([int(item.head["acquisition_time_stamp"]) for item in items])
    assert np.all(np.diff(stamps) == 120)  # 300 ms in ticks of 2.5 ms
    assert items[-1].has(Flag.LAST_IN_REPETITION)
    assert items[-1].has(Flag.LAST_IN_MEASUREMENT)
    place = items[16 + 256 + 16 * 5 + 3]
    assert (int(place.head["idx"]["segment"]), int(place.head["idx"]["kspace_encode_step_1"])) == (3, 5)
    assert np.array_equal(place.data, noisy_scan.metabolites[:, 3, 5, 0])


def test_file_and_truth_are_written_and_read_back(tmp_path, noisy_scan):
    path = tmp_path / "brain.h5"
    text = write_simulation("csi16", path, seed=3, noise_seed=5)
    assert "brain.truth.npz" in text
    assert "528 readouts" in text
    scan = read_scan(path)
    assert scan.header_xml == noisy_scan.header_xml
    last = scan.acquisitions[-1]
    assert np.array_equal(last.data, noisy_scan.metabolites[:, -1, -1, 0])
    truth = Truth.load(path)
    assert truth.preset == noisy_scan.truth.preset
    assert truth.names == noisy_scan.truth.names
    assert set(truth.lesions) == set(noisy_scan.truth.lesions)
    for name in ("contents", "fids", "b0_hz", "brain_mask", "coil_maps", "noise_covariance", "naa_snr", "water"):
        assert np.array_equal(getattr(truth, name), getattr(noisy_scan.truth, name), equal_nan=True), name
    assert truth.card["noise_seed"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brain.h5", "brain.truth.json", "brain.truth.npz"]


def test_truth_of_a_noiseless_scan_keeps_its_infinite_snr(tmp_path, clean_scan):
    clean_scan.truth.save(tmp_path / "a.h5")
    assert Truth.load(tmp_path / "a.truth.json").preset.snr == np.inf


def test_missing_truth_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the truth of .*absent.h5"):
        Truth.load(tmp_path / "absent.h5")


def test_unknown_preset_lists_those_that_exist():
    with pytest.raises(ConfigError, match=r"no preset 'csi17'; choose one of csi16, csi32, csi48"):
        find_preset("csi17")
    assert all(name in describe_presets() for name in PRESETS)


@pytest.mark.parametrize("snr", [0.0, -3.0, np.nan])
def test_an_snr_that_is_not_positive_is_refused(snr):
    with pytest.raises(ConfigError, match="snr is"):
        simulate("csi16", snr=snr)


def test_a_readout_longer_than_the_repetition_time_is_refused():
    with pytest.raises(ConfigError, match="shorter than the readout"):
        replace(PRESETS["csi48"], n_times=4096)


def test_a_slab_beside_the_brain_is_refused():
    with pytest.raises(DataError, match="does not cut through the brain"):
        simulate(replace(PRESETS["csi16"], isocentre_mni_mm=(0.0, -18.0, 150.0)))


def test_three_dimensions_work():
    preset = replace(
        PRESETS["csi16"],
        name="small3d",
        matrix=(14, 15, 3),
        fov_mm=(210.0, 225.0, 36.0),
        subvoxels=(3, 3, 2),
        n_times=64,
    )
    scan = simulate(preset, seed=1, snr=np.inf, nuisance=False)
    fids = matched_fids(scan.metabolites, scan.truth)
    mask = scan.truth.brain_mask
    assert mask.any(axis=(0, 1)).all()
    assert np.linalg.norm((fids - scan.truth.fids)[mask]) < 0.05 * np.linalg.norm(scan.truth.fids[mask])
