"""What a preset can add to a scan: other water, sidebands, cycling, echoes, navigators, drift, other nuclei."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.cli import main
from mrsi_gadgets.data import Role
from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.roles import classify
from mrsi_gadgets.phantom.encode import image_from_kspace
from mrsi_gadgets.phantom.encodings import Csi
from mrsi_gadgets.phantom.presets import PRESETS
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import simulate
from mrsi_gadgets.phantom.truth import Truth
from mrsi_gadgets.physics.nucleus import PHOSPHORUS

SMALL = replace(PRESETS["csi16"], subvoxels=(3, 3, 1), n_coils=2, n_times=64)


def quiet(preset, **options):
    return simulate(preset, seed=3, snr=np.inf, b0=False, **options)


def close(a, b, rtol=1e-5):
    return np.linalg.norm(a - b) < rtol * np.linalg.norm(b)


@pytest.fixture(scope="module")
def plain():
    return quiet(replace(SMALL, residual_water=0.0))


def test_sum_of_a_cycled_scan_is_water_and_its_difference_metabolites(plain):
    scan = quiet(replace(SMALL, cycling=True))
    up, down = (p for p in scan.groups[0] if p.role is Role.METABOLITE)
    assert close((up.samples + down.samples) / 2, plain.water)
    # single precision beside water a thousand times as large
    assert close((up.samples - down.samples) / 2, plain.metabolites, rtol=1e-3)
    conditions = [int(r.head["idx"]["user"][0]) for r in scan.acquisitions][16:]
    assert conditions == [0, 1] * 256
    protocol = read_protocol(parse_header(scan.header_xml))
    assert (protocol.editing, protocol.axes["edit"], protocol.water_reference) == (
        "metabolite_cycling",
        "user_0",
        "none",
    )


def test_cycled_rings_count_their_conditions_beside_the_interleaves():
    scan = quiet(replace(PRESETS["rings16"], subvoxels=(3, 3, 1), n_coils=2, n_times=32, cycling=True))
    assert read_protocol(parse_header(scan.header_xml)).axes["edit"] == "user_1"
    assert [int(r.head["idx"]["user"][1]) for r in scan.acquisitions][16:] == [0, 1] * 8


def test_unsuppressed_water_is_all_of_it(plain):
    scan = quiet(replace(SMALL, water_suppressed=False))
    assert close(scan.metabolites - plain.metabolites, plain.water)
    assert read_protocol(parse_header(scan.header_xml)).water_suppressed is False
    truth = scan.truth
    assert 2000 < truth.card["unsuppressed_water_over_naa"] < 5000


def test_sidebands_are_antisymmetric_and_have_their_height(plain):
    level = 0.005
    scan = quiet(replace(SMALL, residual_water=0.0, water_sidebands=level))
    maps = scan.truth.coil_maps * scan.truth.preset.receiver_gain

    def water(k):
        image = np.moveaxis(image_from_kspace(np.moveaxis(k, 0, -1)), -1, 0)
        return np.sum(maps.conj()[..., None] * image, axis=0)

    mask = scan.truth.brain_mask & (scan.truth.fractions[2] < 0.1)
    turned = (water(scan.water) / water(plain.water) - 1.0)[mask]
    # a phase only: what it adds is perpendicular to the water
    assert np.abs(turned.real).max() < 0.1 * np.abs(turned.imag).max()
    times = scan.protocol.times_s
    design = np.stack([f(2 * np.pi * hz * times) for hz in (63.0, 118.0, 187.0) for f in (np.sin, np.cos)], axis=1)
    found = np.linalg.lstsq(design, turned.imag.T, rcond=None)[0].reshape(3, 2, -1)
    height = np.linalg.norm(found, axis=1) / 2
    voxels = np.stack(np.meshgrid(*[np.arange(16) - 8] * 2, indexing="ij"), axis=-1)[mask[..., 0]] * 220 / 16
    wanted = level / 90 * np.abs(voxels @ np.array([[0.8, 0.6], [-0.3, 0.9], [1.0, -0.2]]).T).T
    # voxels of 14 mm whose water is uneven: their own centre is a few mm beside the grid's
    assert np.abs(height - wanted).max() < level * 0.08
    assert height.max() > 0.7 * level


def test_strengths_scale_what_they_name(plain):
    none = quiet(replace(SMALL, residual_water=0.0, lipid=0.0))
    lipid = plain.metabolites - none.metabolites
    strong = quiet(replace(SMALL, residual_water=0.0, lipid=1000.0))
    assert close(strong.metabolites - none.metabolites, 100 * lipid, rtol=1e-4)
    weak, water = (quiet(replace(SMALL, residual_water=w, lipid=0.0)).metabolites for w in (5.0, 100.0))
    assert close(water - none.metabolites, 20 * (weak - none.metabolites), rtol=1e-4)


def test_later_echoes_decay_with_t2_and_are_contrasts():
    preset = replace(
        SMALL, echo_times_s=(0.144, 0.288), acquisition_delay_s=0.0, residual_water=0.0, lipid=0.0, n_times=256,
        repetition_time_s=0.6,
    )  # fmt: skip
    scan = quiet(preset)
    protocol = read_protocol(parse_header(scan.header_xml))
    assert protocol.echo_times_s == pytest.approx((0.144, 0.288))
    contrasts = [int(r.head["idx"]["contrast"]) for r in scan.acquisitions][16 + 256 :]
    assert contrasts == [0, 1] * 256
    first, second = (p.samples[0, 8, 8, 0] for p in scan.groups[1])
    times = protocol.times_s
    peak = np.exp(-2j * np.pi * protocol.hz(2.01) * times - 3 * times)
    ratio = abs(peak @ second) / abs(peak @ first)
    # T2 of NAA CH3: 250 ms in grey, 300 ms in white matter; NAAG, Glu and macromolecules lie beside it
    assert np.exp(-0.144 / 0.25) - 0.03 < ratio < np.exp(-0.144 / 0.30) + 0.03
    alone = quiet(replace(preset, echo_times_s=(0.288,)))
    assert close(scan.groups[1][1].samples, alone.metabolites)
    # water of the first echo over that of an FID: T2 of 70 to 110 ms in tissue, longer in CSF
    fid = quiet(replace(preset, echo_times_s=(), acquisition_delay_s=0.0))
    assert 0.1 < np.abs(scan.water[0, 8, 8, 0, 0]) / np.abs(fid.water[0, 8, 8, 0, 0]) < 0.45


def test_navigators_come_before_each_excitation_and_show_the_drift():
    preset = replace(SMALL, navigator_samples=32, drift_hz_per_minute=6.0, phase_drift_rad_per_minute=2.0)
    scan = simulate(preset, seed=3, snr=1000.0)
    roles = [classify(r.head, scan.protocol) for r in scan.acquisitions][16:]
    assert roles[::2] == [Role.NAVIGATOR] * 512
    assert set(roles[1::2]) == {Role.WATER_REFERENCE, Role.METABOLITE}
    navigators = [r for r in scan.acquisitions if classify(r.head, scan.protocol) is Role.NAVIGATOR]
    early, late = navigators[100].data, navigators[400].data
    times = scan.protocol.times_s[:32]
    minutes = 300 * preset.repetition_time_s / 60
    turned = np.unwrap(np.angle(np.sum(late * early.conj(), axis=0)))
    slope, offset = np.polyfit(times, turned, 1)
    assert slope / (2 * np.pi) == pytest.approx(6.0 * minutes, rel=0.01)
    assert offset == pytest.approx(2.0 * minutes, abs=0.02)
    data = [r for r in scan.acquisitions if classify(r.head, scan.protocol) is Role.METABOLITE]
    without = simulate(replace(preset, drift_hz_per_minute=0.0, phase_drift_rad_per_minute=0.0), seed=3, snr=np.inf)
    k = without.metabolites[0, 8, 8, 0]
    own = data[8 * 16 + 8].data[0]
    expected = (256 + 8 * 16 + 8 - 127.5) * preset.repetition_time_s / 60
    turned = np.unwrap(np.angle(own * k.conj()))[:32]
    assert np.polyfit(times, turned, 1)[0] / (2 * np.pi) == pytest.approx(6.0 * expected, rel=0.02)


def test_phosphorus_has_its_frequency_and_no_water():
    preset = replace(
        SMALL, nucleus="31P", transmit_frequency_hz=120.3e6, reference_ppm=0.0, field_strength_t=6.98,
        dwell_s=1 / 5000, n_times=512, noise_dwell_s=1 / 20000,
    )  # fmt: skip
    scan = quiet(preset)
    assert [p.role for group in scan.groups for p in group] == [Role.METABOLITE]
    header = parse_header(scan.header_xml)
    protocol = read_protocol(header)
    assert (protocol.nucleus, protocol.water_reference, protocol.water_suppressed) == ("31P", "none", None)
    assert f"{round(120.3e6 / PHOSPHORUS.frequency_ratio)}" in scan.header_xml
    fid = scan.metabolites[0, 8, 8, 0]
    ppm = np.linspace(-3, 3, 601)
    spectrum = np.exp(-2j * np.pi * np.outer(protocol.hz(ppm), protocol.times_s)) @ fid
    assert abs(ppm[np.argmax(np.abs(spectrum))]) < 0.05
    assert scan.truth.names == PHOSPHORUS.usual
    assert np.isfinite(scan.truth.fids).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nucleus": "19F"}, "nucleus 19F is not known"),
        ({"lipid": -1.0}, "at least 0"),
        ({"echo_times_s": (0.002,)}, "no spin echoes"),
        ({"echo_times_s": (0.28,)}, "shorter than the readout"),
        ({"cycling": True, "nucleus": "31P"}, "FIDs of 1H only"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (["--residual-water", "100"], {"residual_water": 100.0, "water_suppressed": True}),
        (["--residual-water", "unsuppressed", "--water-sidebands", "0.005"],
         {"water_suppressed": False, "water_sidebands": 0.005}),
        (["--lipid", "300", "--drift", "-2"], {"lipid": 300.0, "drift_hz_per_minute": -2.0, "residual_water": 5.0}),
    ],
)  # fmt: skip
def test_options_of_the_command_reach_the_scan(tmp_path, monkeypatch, option, found):
    monkeypatch.setitem(PRESETS, "small", replace(SMALL, name="small"))
    assert main(["simulate", "small", "-o", str(tmp_path / "a.h5"), *option]) == 0
    preset = Truth.load(tmp_path / "a.h5").preset
    assert {name: getattr(preset, name) for name in found} == found


@pytest.mark.parametrize("option", [["--lipid", "-1"], ["--water-sidebands", "much"], ["--residual-water", "inf"]])
def test_strengths_that_are_no_numbers_are_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        main(["simulate", "csi16", "-o", str(tmp_path / "a.h5"), *option])
    assert "is not a number of at least 0" in capsys.readouterr().err


def test_sums_and_scores_are_those_of_the_nucleus():
    scan = quiet(replace(PRESETS["csi16_31p"], n_coils=2))
    truth = scan.truth
    names = [n for n in truth.names if n.endswith("ATP")]
    np.testing.assert_allclose(truth.content("ATP"), sum(truth.content(n) for n in names) / 3, rtol=1e-5, atol=1e-4)
    scores = score({name: 3.0 * truth.content(name) for name in truth.sums}, truth, fids=truth.fids)
    assert set(scores.maps) == {"PCr", "ATP", "Pi", "PME", "PDE", "tNAD"}
    assert max(s.nrmse for s in scores.maps.values()) < 1e-3
    assert truth.preset.drift_between_scans_hz == 0.0


def test_drift_between_the_scans_counts_what_was_acquired():
    preset = replace(SMALL, encoding=Csi(undersampling=2.0, centre=4), drift_hz_per_minute=6.0)
    # 256 shots of water, then 128: from middle to middle 192
    assert preset.drift_between_scans_hz == pytest.approx(6.0 * 192 * 0.3 / 60, rel=1e-9)
    assert replace(preset, cycling=True).drift_between_scans_hz == 0.0
