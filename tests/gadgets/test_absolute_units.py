"""Millimoles per litre of a numerical brain through the whole chain, with what was given and what was not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from contracts import check_gadget, run_gadget
from mrsi_gadgets import replay
from mrsi_gadgets.data import Geometry, Map, Maps, Protocol
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.gadgets.absolute_units import AbsoluteUnits
from mrsi_gadgets.gadgets.context import Context
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.io.volumes import read_tissue
from mrsi_gadgets.output.results import Results, gather
from mrsi_gadgets.phantom.anatomy import make_anatomy
from mrsi_gadgets.phantom.simulate import SimulatedScan, simulate
from mrsi_gadgets.quantification.absolute import concentration_names
from mrsi_gadgets.quantification.assembly import AMOUNT
from mrsi_gadgets.stream.messages import ConfigText, Header, Text
from small_scan import SmallScan, small_scan

SUMS = ("tNAA", "tCr", "tCho", "Ins", "Glx")
SEED = 1


@dataclass(frozen=True)
class Head:
    scan: SimulatedScan
    tissue: tuple[Path, Path, Path]
    """Grey matter, white matter and CSF at a quarter of a voxel, on axes of their own."""
    b1: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Head:
    scan = simulate("csi16", seed=SEED, snr=np.inf)
    preset, folder = scan.truth.preset, tmp_path_factory.mktemp("anatomy")
    pose = np.random.default_rng(np.random.SeedSequence(SEED).spawn(5)[0])
    anatomy = make_anatomy(
        preset.geometry, preset.subvoxels, isocentre_mni_mm=preset.isocentre_mni_mm, rng=pose
    )  # fmt: skip
    grid, sub = preset.geometry.affine_ras(), np.array(preset.subvoxels)
    fine = grid @ np.diag([*1 / sub, 1.0])
    fine[:3, 3] = (grid @ np.append(0.5 / sub - 0.5, 1.0))[:3]
    flip = 1.0 - preset.transmit_variation * np.sum((anatomy.positions_mm / 90.0) ** 2, axis=-1)
    paths = []
    for name, values in {"gm": anatomy.grey, "wm": anatomy.white, "csf": anatomy.csf, "b1": flip}.items():
        # stored with another order and direction of the axes
        turned = nibabel.Nifti1Image(values.astype(np.float32), fine).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
        turned.set_sform(turned.affine, code=1)
        paths.append(folder / f"{name}.nii.gz")
        nibabel.save(turned, paths[-1])
    return Head(scan, tuple(paths[:3]), paths[3])


def run(head: Head, **options) -> tuple[Results, dict]:
    scan = head.scan
    result = replay.replay_here(
        replay.Scan(scan.header_xml, scan.acquisitions, None, "brain"),
        ScanOptions(recipe="fourier", device="cpu", **options),
    )
    return gather(result.images), result.summary


def errors(head: Head, results: Results) -> dict[str, tuple[float, float]]:
    """Ratio of the means and NRMSE of each sum, where at least six tenths are grey and white matter, no lesion."""
    truth = head.scan.truth
    solid = truth.fractions_resolved[0] + truth.fractions_resolved[1]
    found = {}
    for name in SUMS:
        value = results.maps[f"{name}_mM"].value
        where = truth.brain_mask & (solid > 0.6) & (truth.lesion_total < 0.02) & np.isfinite(value)
        assert where.sum() > 25
        true = truth.content(name)[where] / solid[where]
        spread = np.linalg.norm(value[where] - true) / np.linalg.norm(true)
        found[name] = value[where].mean() / true.mean(), spread
    return found


def test_concentrations_come_back_within_a_few_percent_with_the_true_tissue(head):
    results, summary = run(head, tissue=head.tissue, b1=head.b1)
    for name, (ratio, nrmse) in errors(head, results).items():
        assert 0.95 < ratio < 1.03, name
        assert nrmse < 0.12, name
    assert "fractions given" in summary["provenance"]["absolute_units"]["tissue"]
    assert "B1 map" in summary["provenance"]["absolute_units"]["flip_angle"]
    assert results.maps["tissue_csf"].value[head.scan.truth.brain_mask] == pytest.approx(
        head.scan.truth.fractions_resolved[2][head.scan.truth.brain_mask], abs=1e-4
    )


def test_usual_values_are_stated_and_cost_accuracy(head):
    results, summary = run(head)
    found = errors(head, results)
    for name, (ratio, _) in found.items():
        assert 0.9 < ratio < 1.1, name
    assert np.mean([nrmse for _, nrmse in found.values()]) == pytest.approx(0.14, abs=0.03)
    assert "not given" in summary["provenance"]["absolute_units"]["tissue"]
    assert "assumed" in results.maps["tNAA_mM"].unit
    item = results.maps["tNAA_mM"]
    assert item.sd is not None
    # the deviation is carried along with the value: both are the amount's times one factor a voxel
    amount = results.maps["tNAA"]
    known = np.isfinite(item.value) & (item.value > 0.1)
    assert known.sum() > 20
    found = item.sd[known] / item.value[known]
    np.testing.assert_allclose(found, amount.sd[known] / amount.value[known], rtol=1e-3)
    assert "tissue_gm" not in results.maps


def small(scan: SmallScan, **options) -> replay.ReplayResult:
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu", **options))


def test_without_a_flip_angle_there_is_no_map_and_the_reason_is_kept():
    result = small(small_scan())
    assert not [name for name in gather(result.images).maps if name.endswith("_mM")]
    reason = result.summary["provenance"]["absolute_units"]["none"]
    assert reason == (
        "no absolute concentrations: the header names no flip angle; give flipAngle_deg in sequenceParameters"
    )
    assert reason not in result.summary["warnings"]


def test_who_gives_tissue_fractions_in_vain_is_warned(head):
    result = small(small_scan(), tissue=head.tissue)
    assert any("names no flip angle" in sentence for sentence in result.summary["warnings"])


def test_the_console_shows_concentrations_where_they_are_known(head):
    results, _ = run(head)
    assert results.shown[: len(SUMS)] == [f"{name}_mM" for name in SUMS]


def test_fractions_are_found_in_a_folder(head):
    units = AbsoluteUnits(tissue=(str(head.tissue[0].parent),), units=("mM", "molal"))
    assert [volume.name for volume in read_tissue(units.tissue)] == ["gm.nii.gz", "wm.nii.gz", "csf.nii.gz"]


def test_wrong_files_are_refused_in_one_sentence(head, tmp_path):
    grey, white, _ = head.tissue
    scan = small_scan()
    with pytest.raises(ConfigError, match="tissue fractions are 2 files; give three"):
        small(scan, tissue=(grey, white))
    with pytest.raises(ConfigError, match=r"nowhere\.nii cannot be read"):
        small(scan, tissue=(grey, white, tmp_path / "nowhere.nii"))
    (tmp_path / "gm_old.nii").touch()
    (tmp_path / "gm_new.nii").touch()
    with pytest.raises(ConfigError, match="should hold one file for the fraction of grey matter but has gm_new"):
        small(scan, tissue=(tmp_path,))
    percent = nibabel.load(head.b1)
    path = tmp_path / "b1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(percent.get_fdata(dtype=np.float32) * 100, percent.affine), path)
    with pytest.raises(DataError, match=r"the B1 map b1\.nii\.gz has a median of"):
        run(head, b1=path)
    unplaced = nibabel.Nifti1Image(percent.get_fdata(dtype=np.float32), None)
    nibabel.save(unplaced, path)
    with pytest.raises(ConfigError, match="does not say where it lies"):
        small(scan, b1=path)
    with pytest.raises(ConfigError, match="units is 'mol'; it must be one of mM, molal"):
        AbsoluteUnits(units=("mol",))


@pytest.mark.parametrize("echo", [False, True], ids=["FID", "echo"])
def test_the_gadget_keeps_the_contract_with_files_and_without(head, echo, tmp_path):
    """Also with a header that lacks the flip angle of a spin echo: it is taken as usual, and said to be."""
    geometry = Geometry((3, 4, 5), (60.0, 90.0, 55.0), (11.0, -22.0, 33.0), (0.8, 0.6, 0.0), (-0.6, 0.8, 0.0))
    protocol = Protocol(
        "1H", 123.25e6, 4.65, 1 / 1500, 128, 1.3e-3, geometry, "csi", repetition_time_s=1.5,
        flip_angle_deg=None if echo else 60.0, echo_times_s=(0.035,) if echo else (),
    )  # fmt: skip
    paths = []
    for name, level in {"c1": 0.5, "c2": 0.3, "c3": 0.2, "b1": 0.9}.items():
        paths.append(tmp_path / f"{name}brain.nii")
        values = np.full(geometry.matrix, level, np.float32)
        nibabel.save(nibabel.Nifti1Image(values, geometry.affine_ras()), paths[-1])
    (tmp_path / "b1brain.nii").rename(tmp_path / "b1.nii")
    rng = np.random.default_rng(2)

    def scene():
        amounts = {n: Map(rng.uniform(1, 2, geometry.matrix).astype("f4"), AMOUNT) for n in ("NAA", "NAAG", "tNAA")}
        context = Context(protocol=protocol, map_names=tuple(amounts))
        context.calibration.water = np.full(geometry.matrix, 1e4, np.float32)
        return [Maps(amounts, np.ones(geometry.matrix, bool), np.zeros(geometry.matrix), protocol)], context

    for gadget in (
        AbsoluteUnits(),
        AbsoluteUnits(units=("molal", "mM"), tissue=tuple(str(p) for p in paths[:3]), b1=str(tmp_path / "b1.nii")),
        AbsoluteUnits(tissue=(str(tmp_path),)),
    ):
        items, context = scene()
        made = run_gadget(gadget, items, context)[0]
        assert set(made.maps) >= {f"{n}_{unit}" for unit in gadget.units for n in ("NAA", "NAAG", "tNAA")}
        assert set(concentration_names(("NAA", "NAAG", "tNAA"), gadget.units)) <= set(context.map_names)
        said = context.report.provenance["absolute_units"]
        assert ("usual for a spin echo" in said["flip_angle"]) == echo
        assert ("not given" in said["tissue"]) == (not gadget.tissue)
        fixed = scene()
        check_gadget(gadget, lambda fixed=fixed: fixed)


SENT = """<configuration><chain><prewhiten/><field_map/><combine_coils/><reconstruct method="fourier"/><quantify/>
<absolute_units tissue="{}"/><console_images/></chain></configuration>"""


def sent(text: str, site: Path | None, parameters: dict[str, str] | None = None) -> list[str]:
    """Run a scan whose configuration a peer sends; return its warnings."""
    scan = small_scan()
    first: list = [ConfigText(text), Header(scan.header_xml)]
    if parameters:
        first.append(Text(json.dumps({"parameters": parameters})))
    report = run_scan(iter([*first, *scan.readouts]), lambda message: None, ScanOptions(site=site, device="cpu"))
    return report.warnings


def test_a_configuration_that_was_sent_names_files_of_the_site_only(head, tmp_path):
    """Else a peer could ask for the fractions of any patient whose files the server can read."""
    outside = " ".join(str(path) for path in head.tissue)
    for site, text in [(None, outside), (tmp_path, outside), (tmp_path, "../a ../b ../c"), (None, "a b c")]:
        with pytest.raises(ConfigError, match="names a file outside of the site's folder"):
            sent(SENT.format(text), site)
    site = head.tissue[0].parent
    inside = " ".join(path.name for path in head.tissue)
    assert any("names no flip angle" in warning for warning in sent(SENT.format(inside), site))
    assert any("names no flip angle" in warning for warning in sent(SENT.format(outside), site))


def test_a_parameter_names_no_file(head):
    warnings = sent("fourier", None, {"absoluteUnitsTissue": str(head.tissue[0].parent)})
    assert "parameter 'absoluteUnitsTissue' was ignored: only a recipe may name files of the server" in warnings
