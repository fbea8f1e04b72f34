"""The water reference goes along with the spectra of all voxels, and changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from nifti_mrs.nifti_mrs import NIFTI_MRS

from mrsi_gadgets import replay
from mrsi_gadgets.cli import main
from mrsi_gadgets.gadgets.scan import ScanOptions
from mrsi_gadgets.output.results import gather
from small_scan import small_scan


def run(spectra: str) -> replay.ReplayResult:
    scan = small_scan()
    given = replay.Scan(scan.header_xml, scan.readouts, len(scan.readouts), "small")
    return replay.replay_here(given, ScanOptions(recipe="fourier", device="cpu", spectra=spectra))


def test_water_comes_as_measured_without_its_field_and_changes_no_map():
    whole, few = (gather(run(spectra).images) for spectra in ("all", "examples"))
    assert set(whole.maps) == set(few.maps)
    for name, item in few.maps.items():
        np.testing.assert_array_equal(whole.maps[name].value, item.value)
    assert few.gathered == {}
    voxels, fids = whole.gathered[0].water()
    times = small_scan().protocol.times_s
    assert fids.shape == (int(whole.mask[0].sum()), times.size)
    amplitude = whole.maps["water"].value[tuple(voxels.T)]
    expected = amplitude[:, None] * np.exp(-times / 0.06)
    # what is left of the field within a voxel's point spread turns and damps it a little
    error = np.linalg.norm(fids - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(error) < 0.12
    assert np.median(np.abs(np.angle(fids[:, 0]))) < 0.05


@pytest.mark.parametrize("switch", [(), ("--fsl-mrs",)])
def test_a_replay_writes_the_files_that_other_programs_read(tmp_path, switch, capsys):
    path = small_scan().write(tmp_path / "scan.h5")
    assert main(["replay", str(path), "-o", str(tmp_path / "out"), "--config", "fourier", *switch]) == 0
    metab, wref = (NIFTI_MRS(tmp_path / "out" / f"{name}.nii.gz") for name in ("metab", "wref"))
    assert metab.shape == wref.shape == (8, 6, 1, 128)
    assert metab.hdr_ext["RepetitionTime"] == pytest.approx(small_scan().protocol.repetition_time_s)
    assert (tmp_path / "out/regions.csv").is_file()
    assert (tmp_path / "out/fsl_mrs/concs/raw/tNAA.nii.gz").is_file() == bool(switch)
    if not switch:
        assert main(["fsl-mrs", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out/fsl_mrs/fit/fit.nii.gz").is_file()
        assert main(["regions", str(tmp_path / "out")]) == 0
    # a result with all of this is still known as one, and replaced
    assert main(["replay", str(path), "-o", str(tmp_path / "out"), "--config", "fourier", "--spectra", "none"]) == 0
    assert not (tmp_path / "out/metab.nii.gz").exists()
    assert not (tmp_path / "out/fsl_mrs").exists()


def test_what_adds_to_the_folder_needs_one(tmp_path, capsys):
    path = small_scan().write(tmp_path / "scan.h5")
    assert main(["replay", str(path), "--stdout", "--fsl-mrs"]) == 1
    assert "name it with -o FOLDER" in capsys.readouterr().err
    assert main(["replay", str(path), "-o", str(tmp_path / "o"), "--fsl-mrs", "--spectra", "none"]) == 1
    assert "needs the spectra of all voxels" in capsys.readouterr().err
    assert main(["replay", str(path), "-o", str(tmp_path / "o"), "--regions", str(tmp_path / "no.nii")]) == 1
    assert "no.nii cannot be read" in capsys.readouterr().err
    assert main(["replay", str(path), "-o", str(tmp_path / "o"), "--to", "localhost:1", "--b1", "x.nii"]) == 1
    assert "are read where the chain runs" in capsys.readouterr().err
