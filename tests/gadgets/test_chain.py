"""The chain from readouts to images: what each gadget must satisfy, and what must not change the maps."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from contracts import attributes_of, check_gadget, run_gadget
from mrsi_gadgets import replay
from mrsi_gadgets.errors import ConfigError, DataError, PeerLost
from mrsi_gadgets.gadgets.combine_coils import CombineCoils
from mrsi_gadgets.gadgets.composition import Chain, find_recipe
from mrsi_gadgets.gadgets.console_images import ConsoleImages
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.correct_drift import CorrectDrift
from mrsi_gadgets.gadgets.field_map import EstimateFieldMap
from mrsi_gadgets.gadgets.gadget import Gadget
from mrsi_gadgets.gadgets.quality_mask import QualityMask
from mrsi_gadgets.gadgets.quantify import Quantify
from mrsi_gadgets.gadgets.reconstruct import Reconstruct
from mrsi_gadgets.gadgets.registry import GADGETS
from mrsi_gadgets.gadgets.remove_nuisance import RemoveNuisance
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.mrd.sorting import sort_readouts
from mrsi_gadgets.output.meta import from_xml, values_of
from mrsi_gadgets.output.results import Results, gather
from mrsi_gadgets.stream.messages import Acquisition, ConfigFile, ConfigText, Header, Image, Message
from served import assert_same_images
from small_scan import WATER_SIGNAL, SmallScan, small_scan

pytestmark = pytest.mark.timeout(120)
METHODS = ["fourier", "low_rank", "subspace"]
SHOWN = ("tNAA", "tCr", "tCho", "Ins", "Glx")
OTHERS = [
    RemoveNuisance(method="hsvd", always=True),
    CorrectDrift(source="none"), EstimateFieldMap(eddy_currents=False), CombineCoils(lost_energy=0.0),
    CombineCoils(lost_energy=0.2),
    Reconstruct(method="fourier"), Reconstruct(method="low_rank", replicas=0), Reconstruct(prior="none", replicas=2),
    Reconstruct(method="subspace", rank=12), Reconstruct(prior="tv"), Reconstruct(prior="wavelet"),
    Quantify(window_ppm=("0.4", "4.3"), lineshape="free", own_shifts=("Ins", "Glu+Gln"), own_shift_hz=0.3,
             own_width=1.0, delay_ms=0.1), Quantify(start="cnn", adapt_steps=1),
    Quantify(method="union_of_subspaces", spatial_prior="none"),
    QualityMask(snr=8.0, linewidth_ppm=0.1, relative_sd=0.2, lipids=0.5, flagged=True),
    ConsoleImages(maps=("Ins",), uncertainty=False, quantitative="none", spectra="none"),
]  # fmt: skip
"""Gadgets with parameters other than their defaults."""


def run(scan: SmallScan, recipe: str = "fourier", **options: Any) -> replay.ReplayResult:
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe=recipe, device="cpu", **options))


def maps_of(scan: SmallScan, recipe: str = "fourier") -> Results:
    return gather(run(scan, recipe).images)


# --- every gadget ---------------------------------------------------------------------------------------------------


def scene_of(gadget: Gadget, chain: Chain) -> tuple[list[Any], Context]:
    """What reaches a gadget of this kind in a chain, and the context there."""
    scan = small_scan()
    header = parse_header(scan.header_xml)
    context = Context(protocol=read_protocol(header))
    context.reference_heads[0] = scan.metabolites[0].head
    items: list[Any] = list(sort_readouts(scan.readouts, context.protocol, context.report, header))
    for earlier in chain.gadgets:
        if type(earlier) is type(gadget):
            return items, context
        items = run_gadget(earlier, items, context)
    raise AssertionError(f"the chain has no <{gadget.element}>")


@pytest.mark.parametrize("gadget", [*(kind() for kind in GADGETS.values()), *OTHERS], ids=repr)
def test_a_gadget_keeps_the_contract(gadget):
    check_gadget(gadget, lambda: scene_of(gadget, find_recipe("fourier")))


def test_every_parameter_of_every_gadget_has_been_another_one_in_these_tests():
    changed = {
        (gadget.element, name)
        for gadget in OTHERS
        for name, text in attributes_of(gadget).items()
        if text != attributes_of(type(gadget)())[name]
    }
    # test_quantify_networks has trained networks, test_absolute_units files to name, quantification/ the spatial prior
    elsewhere = {
        *(("quantify", name) for name in ("method", "start", "adapt_steps", "spatial_prior")),
        *(("absolute_units", name) for name in ("units", "tissue", "b1")),
    }
    assert changed | elsewhere == {
        (element, name) for element, kind in GADGETS.items() for name, _, _ in kind.describe()
    }


# --- what must not change the maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_the_gain_of_the_receiver_does_not_change_the_maps(method, factor):
    original, scaled = maps_of(small_scan(), method), maps_of(small_scan().scaled(factor), method)
    assert set(scaled.maps) == set(original.maps)
    np.testing.assert_array_equal(scaled.mask[0], original.mask[0])
    for name in SHOWN:
        ours, theirs = scaled.maps[f"{name}_per_water"], original.maps[f"{name}_per_water"]
        limit = 1e-3 * np.nanmax(theirs.value)
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-3, atol=limit)
        np.testing.assert_allclose(ours.sd, theirs.sd, rtol=1e-3, atol=limit)


@pytest.mark.parametrize("method", METHODS)
def test_a_repeated_run_gives_the_same_images_to_the_bit(method):
    assert_same_images(run(small_scan(), method).images, run(small_scan(), method).images)


def test_the_order_of_the_readouts_does_not_change_the_maps():
    scan = small_scan()
    shuffled = scan.metabolites[:-1]
    np.random.default_rng(1).shuffle(shuffled)
    images = run(scan.with_readouts([*scan.noise, *scan.water[::-1], *shuffled, scan.metabolites[-1]])).images
    for ours, theirs in zip(images, run(scan).images, strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)


# --- what the maps are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_amounts_are_those_of_the_head_within_ten_percent(method):
    results = maps_of(small_scan(), method)
    mask = results.mask[0]
    for name, molecule in {"tNAA": "NAA", "tCr": "Cr", "tCho": "PCh", "Ins": "Ins", "Glx": "Glu"}.items():
        amount = results.maps[name].value[mask].sum() / results.maps["tCr"].value[mask].sum()
        head = TRUE_MEANS[molecule] / TRUE_MEANS["Cr"]
        assert amount == pytest.approx(head, rel=0.1), name
    per_water = results.maps["tNAA_per_water"].value[mask]
    assert np.median(per_water) == pytest.approx(TRUE_MEANS["NAA"] / (WATER_SIGNAL / 2), rel=0.15)


TRUE_MEANS = small_scan().mean_amounts_mm


def test_a_volume_of_unequal_sides_comes_back_in_its_own_shape_and_place():
    scan = small_scan((5, 4, 3))
    images = run(scan).images
    results = gather(images)
    assert results.maps["tNAA"].value.shape == (5, 4, 3)
    assert results.mask[0].any()
    for image in images:
        if "mrsi_rows" not in image.attributes:
            assert image.head["matrix_size"].tolist() == [5, 4, 3]
            assert image.data.shape == (1, 3, 4, 5)
    np.testing.assert_allclose(results.affine_ras, scan.protocol.geometry.affine_ras(), atol=1e-4)


def test_each_frame_of_a_dynamic_scan_has_its_images_before_the_next_one_is_complete():
    scan = small_scan(frames=2)
    taken = 0
    seen: list[tuple[int, int]] = []

    def messages() -> Iterator[Message]:
        nonlocal taken
        yield ConfigFile("fourier")
        yield Header(scan.header_xml)
        for readout in scan.readouts:
            taken += isinstance(readout, Acquisition)
            yield readout

    images: list[Image] = []

    def send(message: Message) -> None:
        assert isinstance(message, Image)
        images.append(message)
        (frame,) = values_of(from_xml(message.attributes), "mrsi_frame")
        seen.append((int(frame), taken))

    run_scan(messages(), send, ScanOptions(device="cpu"))
    shots = int(np.prod(scan.protocol.geometry.matrix))
    first = {count for frame, count in seen if frame == 0}
    assert max(first) <= len(scan.readouts) - shots + 1
    assert [frame for frame, _ in seen] == sorted(frame for frame, _ in seen)
    # each frame carries the counters and the time of its own first readout
    for frame in (0, 1):
        (shot,) = (r for r in scan.metabolites if r.head["idx"]["repetition"] == frame and not r.head["idx"]["segment"]
                   and not r.head["idx"]["kspace_encode_step_1"])  # fmt: skip
        mine = [i for i in images if values_of(from_xml(i.attributes), "mrsi_frame") == [str(frame)]]
        assert {int(i.head["repetition"]) for i in mine} == {frame}
        assert {int(i.head["acquisition_time_stamp"]) for i in mine} == {int(shot.head["acquisition_time_stamp"])}
    results = gather(images)
    assert set(results.maps["tNAA"].frames) == {0, 1}
    assert results.maps["tNAA"].value.shape == (*scan.protocol.geometry.matrix, 2)
    # the head did not change, its noise did
    first_frame, second_frame = (results.maps["tNAA"].frames[n][results.mask[0]] for n in (0, 1))
    assert not np.array_equal(first_frame, second_frame)
    assert np.median(second_frame / first_frame) == pytest.approx(1.0, abs=0.05)


# --- what is said of them -------------------------------------------------------------------------------------------


def test_a_missing_noise_scan_is_said_in_the_summary_and_in_every_image():
    scan = small_scan()
    result = run(scan.with_readouts(scan.water + scan.metabolites))
    (warning,) = result.summary["warnings"]
    assert "no noise scan" in warning
    for image in result.images:
        assert values_of(from_xml(image.attributes), "mrsi_warnings") == [warning]
    assert result.summary["provenance"]["noise"] != "noise scan"


def test_without_a_water_reference_there_are_maps_but_none_in_units_of_water():
    scan = small_scan()
    result = run(scan.with_readouts(scan.noise + scan.metabolites))
    assert any("no water reference" in warning for warning in result.summary["warnings"])
    names = set(gather(result.images).maps)
    assert "tNAA" in names
    assert not {name for name in names if name.endswith("_per_water")}


def test_a_model_that_does_not_describe_the_spectra_is_said_so():
    scan = small_scan()
    result = run(scan.header_with("<TE>1.3</TE>", "<TE>144.0</TE>"))
    assert any("the model does not describe these spectra" in warning for warning in result.summary["warnings"])
    assert result.summary["provenance"]["median_misfit"] > 3
    assert "144 ms" in result.summary["provenance"]["echo"]
    assert run(scan).summary["provenance"]["median_misfit"] < 1.5


def test_frequencies_at_the_end_of_the_search_are_told():
    scan = small_scan().header_with("<value>4.65</value>", "<value>4.8</value>")
    assert any("end of the searched range" in warning for warning in run(scan).summary["warnings"])


def test_incomplete_data_that_do_not_settle_are_told(monkeypatch):
    scan = small_scan()
    half = [r for i, r in enumerate(scan.metabolites) if i % 2 == 0 or i in (27, 28, 29)]
    undersampled = scan.with_readouts(scan.noise + scan.water + half)
    told = "stopped at a relative residual"
    assert not any(told in warning for warning in run(undersampled, recipe="subspace").summary["warnings"])
    monkeypatch.setattr("mrsi_gadgets.reconstruction.subspace._INCOMPLETE_ITERATIONS", 1)
    assert any(told in warning for warning in run(undersampled, recipe="subspace").summary["warnings"])


def test_fids_too_short_to_tell_molecules_apart_are_refused():
    with pytest.raises(DataError, match="20 points, too few"):
        run(small_scan(n_times=20))


def test_a_complete_scan_has_nothing_to_warn_of():
    assert run(small_scan()).summary["warnings"] == []


def test_a_device_that_is_not_there_is_refused_before_any_readout_is_taken():
    def messages() -> Iterator[Message]:
        yield ConfigFile("fourier")
        yield Header(small_scan().header_xml)
        yield small_scan().readouts[0]
        raise AssertionError("a second readout was taken")

    with pytest.raises(ConfigError, match="cuda:99"):
        run_scan(messages(), lambda message: None, ScanOptions(device="cuda:99"))


@pytest.mark.parametrize(
    ("element", "sentence"),
    [
        (
            '<console_images maps="tNAA Foo"/>',
            r"<console_images> asks for the map 'Foo', .* sums tNAA, .*single molecules",
        ),
        ('<console_images maps="tCr_per_tCr"/>', "asks for the map 'tCr_per_tCr'"),
        ('<reconstruct method="subspace" rank="100000"/>', "rank 100000 must lie between 1 and the 128"),
    ],
)
def test_what_cannot_work_is_refused_while_the_readouts_still_arrive(element, sentence):
    recipe = "<configuration><chain><prewhiten/><field_map/><combine_coils/><reconstruct method='fourier'/><quantify/>"
    recipe += "<console_images/></chain></configuration>"
    name = element.partition(" ")[0]
    recipe = re.sub(f"{name}[^>]*/>", element, recipe)
    with pytest.raises(ConfigError, match=sentence) as refused:
        run_scan(endless(small_scan(), ConfigText(recipe)), lambda message: None, ScanOptions(device="cpu"))
    assert len(str(refused.value)) < 400


def test_a_nucleus_that_the_fit_does_not_know_is_refused_while_the_readouts_still_arrive():
    scan = small_scan().header_without("mrsi_nucleus").header_without("mrsi_transmit_frequency_Hz")
    settings = {"mrsi_nucleus": "23Na", "mrsi_transmit_frequency_Hz": "32.6e6"}
    with pytest.raises(DataError, match="for 1H, 31P, 2H only, the protocol's nucleus is 23Na"):
        run_scan(
            endless(scan, ConfigFile("fourier")), lambda message: None, ScanOptions(device="cpu", settings=settings)
        )


def endless(scan: SmallScan, config: ConfigFile | ConfigText) -> Iterator[Message]:
    """A scan that never comes to an end: its first readout again and again, until somebody refuses it."""
    yield config
    yield Header(scan.header_xml)
    for _ in range(2000):
        yield scan.readouts[0]
        time.sleep(0.01)
    raise AssertionError("all readouts were taken")


def test_a_map_of_a_line_that_no_molecule_has_may_be_asked_for():
    context = Context(protocol=small_scan().protocol, map_names=("tNAA",))
    ConsoleImages(maps=("tNAA", "unknown_2.87ppm")).prepare(context)
    with pytest.raises(ConfigError, match="asks for the map 'tCr'"):
        ConsoleImages(maps=("tCr",)).prepare(context)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("<ismrmrdHeader><encoding>", "not usable XML"),
        (
            small_scan().header_xml.replace(
                "</userParameters>",
                "<userParameterString><name>mrsi_nucleus</name><value>31P</value></userParameterString></userParameters>",
            ),
            "mrsi_nucleus is given twice",
        ),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_before_the_next_message_is_waited_for(header, sentence):
    def messages() -> Iterator[Message]:
        yield ConfigFile("fourier")
        yield Header(header)
        raise AssertionError("a message after the header was waited for")

    with pytest.raises(DataError, match=sentence):
        run_scan(messages(), lambda message: None, ScanOptions(device="cpu"))


def test_the_peer_hears_how_far_the_scan_is_and_of_its_end_before_the_images_go_out(monkeypatch):
    monkeypatch.setattr("mrsi_gadgets.gadgets.scan.PROGRESS_S", 0.0)
    scan = small_scan()
    said: list[str] = []
    messages = [ConfigFile("fourier"), Header(scan.header_xml), *scan.readouts]
    run_scan(iter(messages), lambda image: said.append("image"), ScanOptions(device="cpu"), tell=said.append)
    counts = [sentence for sentence in said if re.fullmatch(r"\d+ readouts received", sentence)]
    assert counts == [f"{n} readouts received" for n in range(1, len(scan.readouts) + 1)]
    end = said.index(f"the scan has ended: {len(scan.readouts)} readouts received")
    assert said.index(counts[-1]) < end < said.index("image")
    assert set(said[end + 1 :]) == {"image"}


def test_nothing_is_prepared_any_more_when_a_scan_has_failed(monkeypatch):
    running = threading.Event()
    ended = threading.Event()

    def slow(self, context):
        running.set()
        time.sleep(0.3)
        ended.set()

    monkeypatch.setattr(Quantify, "prepare", slow)

    def messages() -> Iterator[Message]:
        yield ConfigFile("fourier")
        yield Header(small_scan().header_xml)
        yield small_scan().readouts[0]
        assert running.wait(30)
        raise PeerLost("gone")

    with pytest.raises(PeerLost):
        run_scan(messages(), lambda message: None, ScanOptions(device="cpu"))
    assert ended.is_set()


def test_the_images_say_by_what_they_were_made():
    result = run(small_scan(), "subspace", seed=5)
    text = values_of(from_xml(result.images[0].attributes), "mrsi_provenance")[0]
    parts = ['"recipe": "subspace"', '"seed": 5', '"device": "numpy:cpu"', '"noise": "noise scan"', "mrsi_dwell_us"]
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize(("method", "told"), [("fourier", True), ("low_rank", True), ("subspace", False)])
def test_methods_that_fill_the_middle_of_k_space_with_zeros_say_what_that_does(method, told):
    scan = small_scan()
    half = [r for i, r in enumerate(scan.metabolites) if i % 2 == 0 or i in (27, 28, 29)]
    warnings = run(scan.with_readouts(scan.noise + scan.water + half), method).summary["warnings"]
    assert any("aliased and too small" in warning for warning in warnings) == told
