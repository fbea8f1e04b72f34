"""Whole scans of the numerical brain whose drift, gaps and offsets the chain has to find and take out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mrsi_gadgets import replay
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.correct_drift import CorrectDrift
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.prewhiten import Prewhiten
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.output.folder import write_results
from mrsi_gadgets.output.meta import from_xml, values_of
from mrsi_gadgets.output.results import gather
from mrsi_gadgets.phantom.encodings import Csi
from mrsi_gadgets.phantom.presets import PRESETS, Preset
from mrsi_gadgets.phantom.scoring import score
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.physics.brain_values import concentration_mm, t2_s
from mrsi_gadgets.stream.messages import Acquisition, Flag
from small_scan import small_scan

pytestmark = pytest.mark.timeout(300)
NAMES = ("tNAA", "tCr", "tCho", "Ins", "Glx")
CSI16_MINUTES = 256 * 0.3 / 60
RECIPE = """<configuration><chain><prewhiten/>{drift}<field_map/><combine_coils/><reconstruct method="subspace"/>
<quantify/><console_images/></chain></configuration>"""


@lru_cache(maxsize=24)
def simulated(preset: Preset, snr: float | None = None) -> SimulatedScan:
    return simulate(preset, seed=1, snr=snr)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("recipes")

    def write(source: str) -> str:
        path = folder / f"{source}.xml"
        path.write_text(RECIPE.format(drift=f'<correct_drift source="{source}"/>'), encoding="utf-8")
        return str(path)

    return write


def replayed(
    scan: SimulatedScan, keep: Callable[[Acquisition], bool] | None = None, recipe: str = "subspace", **settings: str
) -> Any:
    readouts = [r for r in scan.acquisitions if keep is None or keep(r)]
    given = replay.Scan(scan.header_xml, readouts, len(readouts), "simulated")
    return replay.replay_here(given, ScanOptions(recipe=recipe, device="cpu", settings=settings))


def error_of(scan: SimulatedScan, result: Any) -> float:
    """Mean of the five maps' NRMSE."""
    maps = gather(result.images).maps
    scores = score({name: maps[name].value for name in NAMES}, scan.truth)
    return float(np.mean([scores.maps[name].nrmse for name in NAMES]))


def drifting(total_hz: float, *, navigators: int = 0, phase_rad: float = 0.0) -> Preset:
    """csi16 whose frequency moves by so much over the metabolite scan (and as much over the water reference)."""
    return replace(
        PRESETS["csi16"], drift_hz_per_minute=total_hz / CSI16_MINUTES, navigator_samples=navigators,
        phase_drift_rad_per_minute=phase_rad / CSI16_MINUTES,
    )  # fmt: skip


# --- drift ----------------------------------------------------------------------------------------------------------


def test_navigators_take_ten_hertz_and_three_radians_out_of_the_maps(recipe):
    still = simulated(drifting(0.0))
    without_drift = error_of(still, replayed(still))
    scan = simulated(drifting(10.0, navigators=64, phase_rad=3.0))
    result = replayed(scan)
    drift = result.summary["provenance"]["drift"]
    assert drift["source"] == "navigators"
    # the last readout comes one repetition before the scan has drifted by all of it
    assert drift["frames"]["0"]["moved_hz"] == pytest.approx(10 * 255 / 256, abs=0.05)
    assert drift["frames"]["0"]["moved_phase_rad"] == pytest.approx(3 * 255 / 256, abs=0.02)
    assert error_of(scan, result) < 1.2 * without_drift
    assert error_of(scan, replayed(scan, recipe=recipe("none"))) > 2 * without_drift
    assert any("the frequency moved 10.0 Hz within a frame" in warning for warning in result.summary["warnings"])


def test_one_hertz_at_snr_twenty_is_seen_by_navigators():
    scan = simulated(drifting(1.0, navigators=64), 20.0)
    result = replayed(scan)
    assert result.summary["provenance"]["drift"]["frames"]["0"]["moved_hz"] == pytest.approx(1.0, abs=0.02)
    assert not any("the frequency moved" in warning for warning in result.summary["warnings"])


def test_where_nothing_drifts_nothing_is_taken_out():
    scan = simulated(drifting(0.0, navigators=64), 20.0)
    frame = replayed(scan).summary["provenance"]["drift"]["frames"]["0"]
    assert abs(frame["mean_hz"]) < 0.02
    assert frame["moved_hz"] < 0.02
    quiet = simulated(drifting(0.0), 20.0)
    assert replayed(quiet).summary["provenance"]["drift"]["source"] == "none"


def test_without_navigators_residual_water_tells_a_large_drift_and_is_not_asked_for_a_small_one(recipe):
    still = simulated(drifting(0.0))
    without_drift = error_of(still, replayed(still))
    scan = simulated(drifting(10.0))
    result = replayed(scan)
    drift = result.summary["provenance"]["drift"]
    assert drift["source"] == "data"
    assert drift["frames"]["0"]["moved_hz"] == pytest.approx(10.0, abs=1.5)
    assert error_of(scan, result) < 1.2 * without_drift
    assert error_of(scan, replayed(scan, recipe=recipe("none"))) > 1.3 * without_drift
    small = replayed(simulated(drifting(1.0), 20.0)).summary
    assert small["provenance"]["drift"] == {
        "source": "none", "why": "no change of the frequency stands out of what the data alone can tell"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["epsi16_bipolar", "rings16", "spiral16"])
@pytest.mark.parametrize("total_hz", [0.0, 10.0])
def test_residual_water_tells_the_drift_of_other_encodings_too(name, total_hz):
    preset = replace(PRESETS[name], n_coils=4, phase_drift_rad_per_minute=0.0)
    excitations = preset.encoding.scan_facts(preset)[0]
    minutes = excitations * preset.averaged * preset.repetition_time_s / 60
    scan = simulated(replace(preset, drift_hz_per_minute=total_hz / minutes))
    header = parse_header(scan.header_xml)
    context = Context(protocol=read_protocol(header))
    items = sort_readouts(scan.acquisitions, context.protocol, context.report, header)
    done = list(CorrectDrift().process(Prewhiten().process(items, context), context))
    assert len(done) == 2
    drift = context.report.provenance["drift"]
    if not total_hz:
        assert drift["source"] == "none"
        return
    # spirals tell the course within the frame by themselves
    assert drift["source"] == ("centre of k-space and data" if name == "spiral16" else "data")
    # the last excitation comes one before the end; residual water has a line of its own
    assert drift["frames"]["0"]["moved_hz"] == pytest.approx(total_hz * (1 - 1 / excitations), abs=1.5)


def test_without_residual_water_nothing_is_taken_for_its_drift():
    scan = simulate(drifting(0.0), seed=1, nuisance=False)
    assert replayed(scan).summary["provenance"]["drift"]["source"] == "none"


def turned(readout: Acquisition, hz: float, dwell_s: float, delay_s: float) -> Acquisition:
    times = delay_s + dwell_s * np.arange(readout.data.shape[1])
    return Acquisition(readout.head, (readout.data * np.exp(2j * np.pi * hz * times)).astype(np.complex64))


def repeated(rate_hz_per_s: float, roles: Sequence[str]) -> list[Acquisition]:
    """A small scan: its noise, then water and metabolites in turn, each a repetition of its own, drifting all along."""
    scan = small_scan()
    tick = scan.protocol.time_tick_ms * 1e-3
    start = int(scan.readouts[0].head["acquisition_time_stamp"])
    readouts, number = list(scan.noise), len(scan.noise)
    seen: dict[str, int] = {}
    for role in roles:
        for readout in getattr(scan, role):
            head = readout.head.copy()
            head["scan_counter"], head["acquisition_time_stamp"] = number, start + 100 * number
            head["idx"]["repetition"] = seen.get(role, 0)
            hz = rate_hz_per_s * 100 * number * tick
            readouts.append(
                turned(Acquisition(head, readout.data), hz, scan.protocol.dwell_s, scan.protocol.acquisition_delay_s)
            )
            number += 1
        seen[role] = seen.get(role, 0) + 1
    return readouts


@pytest.mark.parametrize(
    ("roles", "source"),
    [
        (("water", "metabolites", "water", "metabolites"), "water"),
        (("metabolites", "metabolites", "metabolites"), "data"),
    ],
)
def test_repetitions_tell_how_the_frequency_moved(roles, source):
    scan = small_scan(frames=3)
    rate = 0.5 / 12.0  # half a hertz while one of them lasts
    context = Context(protocol=scan.protocol)
    items = list(sort_readouts(repeated(rate, roles), scan.protocol, context.report, parse_header(scan.header_xml)))
    whitened = [item.with_samples(item.samples / np.float32(12e-6)) for item in items[1:]]
    done = list(CorrectDrift().process(iter(whitened), context))
    drift = context.report.provenance["drift"]
    assert drift["source"] == source
    last = max(drift["frames"])
    steps = roles.index("metabolites") if source == "data" else 0
    rest = 12.0 * (len(roles) - 1 - steps)
    assert drift["frames"][last]["mean_hz"] == pytest.approx(rate * rest, abs=0.1)
    assert drift["frames"][last]["moved_hz"] == pytest.approx(rate * 11.75, abs=0.1)
    assert all(item.acquired_s is None for item in done)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("navigators", "no navigators came"),
        ("water", "no change of the frequency stands out"),
        ("data", "no change of the frequency stands out"),
    ],
)
def test_a_source_that_was_asked_for_and_cannot_tell_is_told(recipe, source, why):
    scan = small_scan()
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    summary = replay.replay_here(given, ScanOptions(recipe=recipe(source), device="cpu")).summary
    (warning,) = summary["warnings"]
    assert warning.startswith(f"drift was not corrected (<correct_drift source='{source}'>): {why}")


def test_readouts_without_time_stamps_cannot_be_corrected_and_it_is_said():
    scan = small_scan()
    for readout in (readouts := [Acquisition(r.head.copy(), r.data) for r in scan.readouts]):
        readout.head["acquisition_time_stamp"] = 0
    given = replay.Scan(scan.header_xml, readouts, len(readouts), "small")
    summary = replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu")).summary
    assert summary["provenance"]["drift"] == {"source": "none", "why": "the readouts carry no time stamps"}
    assert summary["warnings"] == []


def test_an_unknown_source_is_refused():
    with pytest.raises(ConfigError, match="source"):
        CorrectDrift(source="magic")


# --- undersampled data without, or with a broken, water reference ---------------------------------------------------


def is_water(readout: Acquisition) -> bool:
    return bool(readout.head["idx"]["set"] == 1)


def is_calibration(readout: Acquisition) -> bool:
    return readout.has(Flag.IS_PARALLEL_CALIBRATION)


def test_acceleration_two_by_two_reconstructs_with_the_water_reference():
    whole = simulated(replace(PRESETS["csi32_sense"], encoding=Csi()))
    full = error_of(whole, replayed(whole))
    scan = simulated(PRESETS["csi32_sense"])
    # a quarter of the readouts have twice the noise
    assert error_of(scan, replayed(scan)) < 2.0 * full


def test_without_a_water_reference_calibration_readouts_tell_coils_and_field():
    whole = simulated(replace(PRESETS["csi32_sense"], encoding=Csi()))
    full = error_of(whole, replayed(whole, keep=lambda r: not is_water(r)))
    scan = simulated(PRESETS["csi32_sense"])
    result = replayed(scan, keep=lambda r: not is_water(r))
    # 0.13 against 0.07 of all of k-space, and 0.42 of the aliased image alone
    error = error_of(scan, result)
    assert error < 2.2 * full
    assert result.summary["provenance"]["field_map"] == "residual water of the calibration readouts (8 x 8 points)"
    assert any("residual water of the calibration readouts (8 x 8" in w for w in result.summary["warnings"])
    aliased = replayed(scan, keep=lambda r: not is_water(r) and not is_calibration(r))
    assert error_of(scan, aliased) > 2 * error
    assert any("75% of k-space is missing, there is no water reference" in w for w in aliased.summary["warnings"])


def field_map_context(readouts: Sequence[Acquisition]) -> tuple[list[Any], Context]:
    scan = small_scan((12, 12, 1))
    context = Context(protocol=read_protocol(parse_header(scan.header_xml)))
    items = list(sort_readouts(readouts, context.protocol, context.report, parse_header(scan.header_xml)))
    return [item.with_samples(item.samples / np.float32(12e-6)) for item in items[1:]], context


def water_without(missing: Callable[[int, int], bool]) -> list[Acquisition]:
    scan = small_scan((12, 12, 1))
    kept = [
        r for r in scan.water if not missing(int(r.head["idx"]["segment"]), int(r.head["idx"]["kspace_encode_step_1"]))
    ]
    return [*scan.noise, *kept, *scan.metabolites]


def test_a_water_reference_that_is_aliased_is_refused():
    items, context = field_map_context(water_without(lambda x, y: bool(x % 2 or y % 2)))
    with pytest.raises(DataError, match=r"7\d% of the water reference's k-space is missing and its centre has gaps"):
        list(EstimateFieldMap().process(iter(items), context))


def test_the_centre_of_a_water_reference_serves_where_the_rest_is_undersampled():
    centre = range(2, 10)
    items, context = field_map_context(
        water_without(lambda x, y: bool((x % 2 or y % 2) and not (x in centre and y in centre)))
    )
    list(EstimateFieldMap().process(iter(items), context))
    (warning,) = [w for w in context.report.warnings if "water reference's" in w]
    assert "fully sampled centre of 8 x 8 points" in warning
    whole, reference = field_map_context(water_without(lambda x, y: False))
    list(EstimateFieldMap().process(iter(whole), reference))
    both = context.calibration.mask & reference.calibration.mask
    assert both.sum() > 0.8 * reference.calibration.mask.sum()
    difference = (context.calibration.b0_hz - reference.calibration.b0_hz)[both]
    assert np.sqrt(np.mean(difference**2)) < 1.0
    likeness = np.abs(np.sum(np.conj(context.calibration.coil_maps) * reference.calibration.coil_maps, axis=0))
    assert likeness[both].mean() > 0.98


def test_a_few_missing_readouts_of_the_water_reference_are_told_with_numbers_and_corners_are_not():
    items, context = field_map_context(water_without(lambda x, y: x == 3))
    list(EstimateFieldMap().process(iter(items), context))
    assert any("of the water reference's k-space is missing; field, coils" in w for w in context.report.warnings)
    items, context = field_map_context(water_without(lambda x, y: (x - 6) ** 2 + (y - 6) ** 2 > 36))
    list(EstimateFieldMap().process(iter(items), context))
    assert not any("water reference's" in w for w in context.report.warnings)


# --- constant offsets -----------------------------------------------------------------------------------------------


def with_offset(scan: SimulatedScan, *, noise_too: bool) -> SimulatedScan:
    """Two channels add three times the data's noise to every sample."""
    sd = np.sqrt(np.diag(scan.truth.noise_covariance).real / 2)
    value = 3 * sd * np.exp(1j * np.arange(len(sd))) * (np.arange(len(sd)) < 2)
    groups = tuple(
        tuple(replace(p, samples=(p.samples.T + value).T.astype(np.complex64)) for p in group) for group in scan.groups
    )
    noise = (scan.noise.T + value).T.astype(np.complex64) if noise_too else scan.noise
    return replace(scan, groups=groups, noise=noise)


def test_an_offset_of_the_receiver_leaves_the_maps_alone():
    scan = simulated(PRESETS["csi16"])
    clean = replayed(scan)
    assert "dc_offset" not in clean.summary["provenance"]
    result = replayed(with_offset(scan, noise_too=True))
    told = result.summary["provenance"]["dc_offset"]
    assert told["source"] == "noise scan"
    assert told["taken_out"]
    unseen = replayed(with_offset(scan, noise_too=False))
    assert "dc_offset" not in unseen.summary["provenance"]
    wanted, ours, theirs = (gather(r.images).maps["residual"].value[8, 8, 0] for r in (clean, result, unseen))
    # a line at 0 Hz that does not decay, in the voxel at the centre
    assert ours == pytest.approx(wanted, rel=0.1)
    assert theirs > 1.5 * wanted


def test_without_a_noise_scan_the_tails_tell_the_offset():
    def no_noise(readout: Acquisition) -> bool:
        return not readout.has(Flag.IS_NOISE_MEASUREMENT)

    clean = simulated(PRESETS["csi16"])
    assert "dc_offset" not in replayed(clean, keep=no_noise).summary["provenance"]
    result = replayed(with_offset(clean, noise_too=False), keep=no_noise)
    told = result.summary["provenance"]["dc_offset"]
    assert told == {"source": "tail of the FIDs", "largest_over_noise": pytest.approx(3.0, rel=0.2), "taken_out": True}


# --- acquisition delay ----------------------------------------------------------------------------------------------


def test_a_delay_that_is_wrong_by_tens_of_microseconds_is_covered_by_the_common_phase_and_hundreds_are_not():
    scan = simulated(PRESETS["csi16"])
    right, late, early, far = (
        error_of(scan, replayed(scan, mrsi_acq_delay_us=f"{1300 + off}")) for off in (0, 30, -30, -300)
    )
    assert max(late, early) < 1.2 * right
    assert far > 1.5 * right


# --- metabolite cycling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift_hz_per_minute", [0.0, 0.1])
def test_metabolite_cycling_gives_maps_as_good_as_water_suppression_in_the_same_time(drift_hz_per_minute):
    suppressed = replace(PRESETS["csi16"], drift_hz_per_minute=drift_hz_per_minute)
    # both conditions together take as long as the suppressed scan
    cycled = replace(suppressed, cycling=True, averages=0.5)
    errors = [error_of(scan, replayed(scan)) for scan in (simulated(suppressed), simulated(cycled))]
    assert errors[1] < 1.2 * errors[0]
    # water and metabolites came at the same time: nothing tells a drift, and nothing may be invented
    summary = replayed(simulated(cycled)).summary
    assert summary["provenance"]["drift"]["source"] == "none"
    assert summary["provenance"]["field_map"] == "water reference"


# --- several echo times ---------------------------------------------------------------------------------------------

ECHOES_S = (0.035, 0.144)


@pytest.fixture(scope="module")
def echoes() -> tuple[SimulatedScan, Any]:
    preset = replace(
        PRESETS["csi16"], echo_times_s=ECHOES_S, acquisition_delay_s=0.0, repetition_time_s=1.5, flip_angle_deg=90.0
    )
    scan = simulated(preset)
    return scan, replayed(scan)


def test_the_maps_of_two_echo_times_differ_by_t2(echoes):
    scan, result = echoes
    first, second = (gather(result.images).echoes[name] for name in ("te35ms", "te144ms"))
    mask = first.mask[0] & scan.truth.brain_mask
    # the fit knows T2 against that of NAA, so that all maps fall as NAA does
    amounts = {tissue: concentration_mm("NAA", tissue) * scan.truth.fractions[i][mask].sum()
               for i, tissue in enumerate(("gm", "wm"))}  # fmt: skip
    field_t = scan.protocol.field_strength_t
    left = [sum(amounts[tissue] * np.exp(-te / t2_s("NAA", tissue, field_t)) for tissue in amounts) for te in ECHOES_S]
    for name in NAMES:
        ratio = second.maps[name].value[mask].sum() / first.maps[name].value[mask].sum()
        assert ratio == pytest.approx(left[1] / left[0], rel=0.08), name
    for maps, limit in ((first.maps, 0.06), (second.maps, 0.09)):
        scores = score({name: maps[name].value for name in NAMES}, scan.truth)
        assert np.mean([scores.maps[name].nrmse for name in NAMES]) < limit
    assert "ideal spin echo of 35 and 144 ms" in result.summary["provenance"]["echo"]


def test_series_of_two_echo_times_can_be_told_apart(echoes):
    _, result = echoes
    titles: dict[int, set[str]] = {0: set(), 1: set()}
    series: dict[int, set[int]] = {0: set(), 1: set()}
    for image in result.images:
        meta = from_xml(image.attributes)
        (number,) = values_of(meta, "mrsi_echo")
        echo = int(number)
        assert int(image.head["contrast"]) == echo
        assert values_of(meta, "EchoTime") == [f"{ECHOES_S[echo] * 1e3:g}"]
        assert values_of(meta, "GADGETRON_TE") == [f"{ECHOES_S[echo] * 1e3:g}"]
        titles[echo] |= set(values_of(meta, "SeriesDescription"))
        series[echo].add(int(image.head["image_series_index"]))
    assert {"tNAA TE 35 ms", "tNAA SD TE 35 ms", "MRSI values TE 35 ms"} <= titles[0]
    assert {"tNAA TE 144 ms", "tNAA SD TE 144 ms", "MRSI values TE 144 ms"} <= titles[1]
    assert not titles[0] & titles[1]
    assert not series[0] & series[1]


def test_the_results_of_two_echo_times_lie_in_two_folders(echoes, tmp_path):
    _, result = echoes
    folder = tmp_path / "result"
    write_results(folder, result.images, summary={})
    assert {entry.name for entry in folder.iterdir()} == {
        "images.h5", "summary.json", "regions.csv", "te35ms", "te144ms"
    }  # fmt: skip
    for name in ("te35ms", "te144ms"):
        kept = gather(result.images).echoes[name]
        found = nib.load(folder / name / "maps" / "tNAA.nii.gz").get_fdata()
        np.testing.assert_allclose(found, kept.maps["tNAA"].value, rtol=1e-6)
        assert {"maps", "b0.nii.gz", "mask.nii.gz", "contact.png"} == {e.name for e in (folder / name).iterdir()}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    ratio = [summary["echo_times"][name]["tNAA"]["median"] for name in ("te35ms", "te144ms")]
    assert ratio[1] < ratio[0]
    # it is a result of ours and may be replaced; with anything else in it, it may not
    write_results(folder, result.images, summary={})
    (folder / "te35ms" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds 'te35ms/notes\.txt', which would be lost"):
        write_results(folder, result.images, summary={})


def test_protocols_tell_how_many_echoes_they_have(make_protocol):
    several = make_protocol(echo_times_s=ECHOES_S, axes={"te": "contrast"})
    assert several.n_echoes == 2
    assert several.of_echo(1).echo_times_s == (0.144,)
    with pytest.raises(DataError, match="echo 2 is none of the 2 echo times"):
        several.of_echo(2)
    # a water reference under the second contrast is no echo, nor is a list that no counter runs through
    for alone in (
        replace(several, water_reference="contrast:1"), replace(several, axes={"te": "none"}),
        replace(several, axes={"te": "contrast", "kx": "contrast"}),
    ):  # fmt: skip
        assert alone.n_echoes == 1
        assert alone.of_echo(0) is alone
