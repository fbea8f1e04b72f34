"""Files for other programs, opened again with the library that defines them."""

from __future__ import annotations

import dataclasses
import json

import nibabel
import numpy as np
import pytest
from nifti_mrs import validator
from nifti_mrs.axes import Axes
from nifti_mrs.create_nmrs import gen_nifti_mrs
from nifti_mrs.nifti_mrs import NIFTI_MRS

from mrsi_gadgets.data import Map, SpectralImage
from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.fitted import FittedSpectra
from mrsi_gadgets.output.console import maps_to_images
from mrsi_gadgets.output.folder import add_fsl_mrs, check_target, write_results
from mrsi_gadgets.output.nifti_mrs import Acquisition, Dimension, write_nifti_mrs
from mrsi_gadgets.quantification.assembly import AMOUNT

NAA_PPM = 2.01
DELAY_S = 1.3e-3
ACQUISITION = Acquisition("1H", 123.2e6, 4.65, 1 / 1500, DELAY_S, DELAY_S, 0.6, 55.0)
SAID = {"echo_times_s": [DELAY_S], "repetition_time_s": 0.6, "flip_angle_deg": 55.0, "water_suppressed": True}


def line(ppm: float, times: np.ndarray, rate: float = 12.0) -> np.ndarray:
    return np.exp(2j * np.pi * (ppm - 4.65) * 123.2 * times - rate * times).astype(np.complex64)


def mirrored(geometry):
    """The same grid seen from behind: a left-handed set of axes."""
    return dataclasses.replace(geometry, slice_dir=tuple(-x for x in geometry.slice_dir))


def peak_ppm(image: NIFTI_MRS, fid: np.ndarray) -> float:
    """Where the library sees the highest line of an FID."""
    axes = Axes(8 * len(fid), image.nucleus[0], image.spectrometer_frequency[0], image.dwelltime,
                SpecFreqChemShift=image.hdr_ext["SpecFreqChemShift"])  # fmt: skip
    spectrum = np.fft.fftshift(np.fft.fft(fid, 8 * len(fid)))
    return float(axes.ppmAxisShift[np.abs(spectrum).argmax()])


@pytest.mark.parametrize("turn", [lambda g: g, mirrored], ids=["oblique", "mirrored"])
def test_a_line_comes_back_at_its_ppm_and_its_place(tmp_path, make_geometry, turn):
    geometry = turn(make_geometry())
    assert geometry.matrix == (3, 4, 5)
    times = DELAY_S + np.arange(128) / 1500
    fids = np.zeros((3, 4, 5, 128), np.complex64)
    fids[1, 2, 3], fids[2, 0, 4] = 3.0 * line(NAA_PPM, times), 2.0 * line(5.4, times)
    write_nifti_mrs(tmp_path / "x.nii.gz", fids, geometry.affine_ras(), ACQUISITION, water_suppressed=True)
    image = NIFTI_MRS(tmp_path / "x.nii.gz")
    assert image.shape == (3, 4, 5, 128)
    np.testing.assert_allclose(image.getAffine("voxel", "world"), geometry.affine_ras(), atol=1e-4)
    np.testing.assert_allclose(image[:], fids, atol=1e-6)
    assert peak_ppm(image, image[1, 2, 3]) == pytest.approx(NAA_PPM, abs=0.01)
    assert peak_ppm(image, image[2, 0, 4]) == pytest.approx(5.4, abs=0.01)
    # on disk it is the other way round: a program that does not know the convention sees 7.29 ppm
    disk = np.asarray(nibabel.load(tmp_path / "x.nii.gz").dataobj)
    assert peak_ppm(image, disk[1, 2, 3]) == pytest.approx(2 * 4.65 - NAA_PPM, abs=0.01)
    assert (image.dwelltime, image.nucleus) == (pytest.approx(1 / 1500), ["1H"])
    assert image.spectrometer_frequency == pytest.approx([123.2])
    assert image.nifti_mrs_version == "0.11"
    header = nibabel.load(tmp_path / "x.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (2, 2)
    assert header.get_xyzt_units() == ("mm", "sec")
    qform = nibabel.load(tmp_path / "x.nii.gz").get_qform()
    np.testing.assert_allclose(qform, geometry.affine_ras(), atol=1e-4)
    validator.validate_nifti_mrs(image)


def test_the_library_writes_the_same_data_for_the_same_fids(tmp_path, make_geometry):
    rng, affine = np.random.default_rng(1), make_geometry().affine_ras()
    fids = (rng.standard_normal((3, 4, 5, 64)) + 1j * rng.standard_normal((3, 4, 5, 64))).astype(np.complex64)
    theirs = gen_nifti_mrs(fids, 1 / 1500, 123.2, nucleus="1H", affine=affine, dim_tags=[None, None, None])
    theirs.save(tmp_path / "theirs.nii.gz")
    write_nifti_mrs(tmp_path / "ours.nii.gz", fids, affine, ACQUISITION)
    one, two = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("ours", "theirs"))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-4)
    for key in ("dim", "xyzt_units", "intent_name", "qform_code", "sform_code"):
        np.testing.assert_array_equal(one.header[key], two.header[key])
    assert float(one.header["pixdim"][4]) == pytest.approx(float(two.header["pixdim"][4]))
    mine, other = (json.loads(i.header.extensions[0].get_content()) for i in (one, two))
    assert mine["SpectrometerFrequency"] == pytest.approx(other["SpectrometerFrequency"])
    assert mine["ResonantNucleus"] == other["ResonantNucleus"]


@pytest.mark.parametrize(
    ("acquisition", "echo_time", "start"),
    [
        (ACQUISITION, DELAY_S, 0.0),
        (dataclasses.replace(ACQUISITION, echo_time_s=0.035, acquisition_delay_s=0.0004), 0.035, 0.0004),
        (dataclasses.replace(ACQUISITION, echo_time_s=None), DELAY_S, 0.0),
    ],
)
def test_the_echo_time_counts_as_the_standard_has_it(tmp_path, acquisition, echo_time, start):
    write_nifti_mrs(tmp_path / "x.nii.gz", np.ones((1, 1, 1, 32), np.complex64), np.eye(4), acquisition)
    said = NIFTI_MRS(tmp_path / "x.nii.gz").hdr_ext
    assert said["EchoTime"] == pytest.approx(echo_time)
    assert said["AcquisitionStartTime"] == pytest.approx(start)
    assert (said["RepetitionTime"], said["ExcitationFlipAngle"]) == (0.6, 55.0)


def test_further_axes_have_tags_and_their_values(tmp_path):
    fids = np.random.default_rng(2).standard_normal((3, 4, 5, 32, 2, 3)).astype(np.complex64)
    times = [0.035, 0.07, 0.144]
    dimensions = [Dimension("DIM_DYN", "frames"), Dimension("DIM_INDIRECT_0", "echo times", {"EchoTime": times})]
    write_nifti_mrs(tmp_path / "x.nii.gz", fids, np.eye(4), ACQUISITION, dimensions=dimensions)
    image = NIFTI_MRS(tmp_path / "x.nii.gz")
    assert image.shape == (3, 4, 5, 32, 2, 3)
    assert image.dim_tags == ["DIM_DYN", "DIM_INDIRECT_0", None]
    assert image.hdr_ext["dim_6_header"] == {"EchoTime": times}
    assert "EchoTime" not in {key for key in image.hdr_ext if not key.startswith("dim_")}
    with pytest.raises(DataError, match="1 axes behind time, and 0 are described"):
        write_nifti_mrs(tmp_path / "y.nii.gz", fids[..., 0], np.eye(4), ACQUISITION)
    bad = [dimensions[0], Dimension("DIM_INDIRECT_0", "echo times", {"EchoTime": times[:2]})]
    with pytest.raises(DataError, match="DIM_INDIRECT_0 has 3 entries but its header names another number"):
        write_nifti_mrs(tmp_path / "y.nii.gz", fids, np.eye(4), ACQUISITION, dimensions=bad)


# --- from the images of a scan --------------------------------------------------------------------------------------


def spectra_of(maps, scale: float) -> FittedSpectra:
    """NAA and creatine in every voxel of the mask, more of them the further along the list, and some baseline."""
    voxels, times = np.argwhere(maps.mask), maps.protocol.times_s
    amounts = scale * np.arange(1, 2 * len(voxels) + 1).reshape(-1, 2).astype(np.complex64)
    columns = np.stack([3 * line(NAA_PPM, times, 0.0), 3 * line(3.03, times, 0.0)])
    shape = np.broadcast_to(np.exp(-9.0 * times), (len(voxels), times.size)).astype(np.complex64)
    nuisance = 0.2 * shape
    fit = (amounts @ columns) * shape + nuisance
    return FittedSpectra(voxels, fit + np.complex64(0.01), fit, nuisance, ("NAA", "Cr"), columns, amounts, shape, times)


def scene(maps, *, scale: float = 1.0, water: bool = True, said=SAID):
    """Images with the spectra of all voxels, and what was put into them."""
    fitted = spectra_of(maps, scale)
    where = tuple(fitted.voxels.T)

    def volume(values):
        grid = np.full(maps.mask.shape, np.nan, np.float32)
        grid[where] = values
        return grid

    naa = volume(fitted.amplitudes[:, 0].real)
    added = {
        "NAA": Map(naa, AMOUNT, 0.1 * naa), "Cr": Map(2 * naa, AMOUNT, volume(np.nan)),
        "tCr": Map(2 * naa, AMOUNT, 0.05 * naa), "NAA_per_tCr": Map(0 * naa + 0.5, "1 (ratio to tCr)", 0.01 * naa),
        "NAA_mM": Map(3 * naa, "mM (per litre of grey and white matter)", naa),
        "tissue_water": Map(0 * naa + 0.75, "kg/l"), "shift": Map(0 * naa + 12.32, "Hz", naa),
        "phase": Map(0 * naa + 0.3, "rad", naa), "linewidth": Map(0 * naa + 4.0, "Hz", naa),
    }  # fmt: skip
    protocol = dataclasses.replace(maps.protocol, repetition_time_s=0.6, flip_angle_deg=55.0)
    maps = dataclasses.replace(maps, maps=added, protocol=protocol, spectra=lambda: fitted)
    reference = None
    if water:
        fids = np.zeros((*maps.mask.shape, protocol.n_times), np.complex64)
        fids[where] = 1e4 * fitted.amplitudes[:, :1] * line(4.65, protocol.times_s)
        zero = np.zeros(maps.mask.shape)
        reference = SpectralImage(fids, None, protocol, maps.mask, zero, zero)
    images = maps_to_images(
        maps, reference_head=None, shown=("NAA",), spectra="all", water=reference, provenance={"acquisition": said}
    )
    return images, fitted


def test_a_result_has_metabolites_and_water_as_the_library_reads_them(tmp_path, maps):
    images, fitted = scene(maps)
    write_results(tmp_path / "out", images, summary={})
    metab, wref = (NIFTI_MRS(tmp_path / "out" / f"{name}.nii.gz") for name in ("metab", "wref"))
    assert metab.shape == wref.shape == (3, 4, 5, 128)
    mask = nibabel.load(tmp_path / "out/mask.nii.gz")
    np.testing.assert_allclose(metab.getAffine("voxel", "world"), mask.affine, atol=2e-4)
    for voxel, data in zip(fitted.voxels, fitted.data, strict=True):
        np.testing.assert_allclose(metab[tuple(voxel)], data, rtol=1e-5, atol=1e-4)
        assert peak_ppm(wref, wref[tuple(voxel)]) == pytest.approx(4.65, abs=0.01)
    assert not np.any(metab[:][~maps.mask])
    strongest = metab[tuple(fitted.voxels[-1])] - fitted.nuisance[-1]
    naa = strongest - fitted.component("Cr")[-1]
    assert peak_ppm(metab, naa) == pytest.approx(NAA_PPM, abs=0.01)
    assert metab.hdr_ext["WaterSuppressed"] is True
    assert wref.hdr_ext["WaterSuppressed"] is False
    assert metab.hdr_ext["RepetitionTime"] == 0.6
    assert [step["Method"] for step in metab.hdr_ext["ProcessingApplied"]][-1] == "Phasing"
    check_target(tmp_path / "out")


def test_without_a_water_reference_or_spectra_nothing_is_made_up(tmp_path, maps):
    write_results(tmp_path / "a", scene(maps, water=False)[0], summary={})
    assert (tmp_path / "a/metab.nii.gz").is_file()
    assert not (tmp_path / "a/wref.nii.gz").exists()
    write_results(tmp_path / "b", maps_to_images(maps, reference_head=None, shown=("tNAA",)), summary={})
    assert not (tmp_path / "b/metab.nii.gz").exists()


def test_frames_and_echo_times_become_axes(tmp_path, make_maps):
    images, fitted = [], {}
    times = (0.02, 0.05, 0.08)
    said = SAID | {"echo_times_s": list(times)}
    for frame in (0, 1):
        for echo in range(3):
            maps = make_maps(frame=frame)
            protocol = dataclasses.replace(maps.protocol, echo_times_s=(times[echo],))
            maps = dataclasses.replace(maps, echo=echo, protocol=protocol)
            made, fitted[frame, echo] = scene(maps, scale=1 + frame + 10 * echo, water=echo == frame == 0, said=said)
            images += made
    write_results(tmp_path / "out", images, summary={"provenance": {}})
    image = NIFTI_MRS(tmp_path / "out/metab.nii.gz")
    assert image.shape == (3, 4, 5, 128, 2, 3)
    assert image.dim_tags == ["DIM_DYN", "DIM_INDIRECT_0", None]
    assert image.hdr_ext["dim_6_header"]["EchoTime"] == pytest.approx(times)
    for (frame, echo), spectra in fitted.items():
        x, y, z = spectra.voxels[5]
        np.testing.assert_allclose(image[x, y, z, :, frame, echo], spectra.data[5], rtol=1e-5)
    assert NIFTI_MRS(tmp_path / "out/wref.nii.gz").shape == (3, 4, 5, 128)
    assert [path.name for path in add_fsl_mrs(tmp_path / "out")] == ["fsl_mrs_frame1", "fsl_mrs_frame2"] * 3
    assert (tmp_path / "out/te50ms/fsl_mrs_frame2/concs/raw/NAA.nii.gz").is_file()
    check_target(tmp_path / "out")


def test_the_folder_of_fsl_mrs_has_its_names_units_and_zeros(tmp_path, maps):
    images, fitted = scene(maps)
    write_results(tmp_path / "out", images, summary={})
    assert add_fsl_mrs(tmp_path / "out") == [tmp_path / "out/fsl_mrs"]
    tree = tmp_path / "out/fsl_mrs"
    where = tuple(fitted.voxels.T)

    def read(path):
        values = np.asarray(nibabel.load(tree / f"{path}.nii.gz").dataobj)
        assert not np.any(values[~maps.mask])
        return values[where]

    naa = fitted.amplitudes[:, 0].real
    np.testing.assert_allclose(read("concs/raw/NAA"), naa)
    np.testing.assert_allclose(read("concs/internal/NAA"), 0.5)
    np.testing.assert_allclose(read("concs/internal/tCr"), 1.0)
    np.testing.assert_allclose(read("concs/molarity/NAA"), 3 * naa)
    np.testing.assert_allclose(read("concs/molality/NAA"), 4 * naa)
    np.testing.assert_allclose(read("uncertainties/NAA_sd"), 10.0, rtol=1e-5)
    np.testing.assert_allclose(read("uncertainties/tCr_sd"), 2.5, rtol=1e-5)
    np.testing.assert_allclose(read("uncertainties/Cr_sd"), 999.0)
    np.testing.assert_allclose(read("qc/NAA_snr"), 10.0, rtol=1e-5)
    # a Lorentzian of 9 1/s, seen for 85 ms
    np.testing.assert_allclose(read("qc/NAA_fwhm"), 7.3, atol=1.0)
    np.testing.assert_allclose(read("nuisance/shift_group0"), 0.1, rtol=1e-5)
    np.testing.assert_allclose(read("nuisance/combined_lw_group0"), 4.0)
    assert not (tree / "concs/molarity/Cr.nii.gz").exists()
    parts = {name: NIFTI_MRS(tree / f"fit/{name}.nii.gz")[:][where] for name in ("fit", "baseline", "residual")}
    np.testing.assert_allclose(parts["fit"], fitted.fit, rtol=1e-6)
    np.testing.assert_allclose(parts["baseline"], fitted.nuisance, rtol=1e-6)
    np.testing.assert_allclose(parts["fit"] + parts["residual"], fitted.data, atol=1e-3)
    assert json.loads((tree / "misc/metabolite_groups.json").read_text())["0"] == ["NAA", "Cr", "tCr"]
    assert json.loads((tree / "misc/mrs_fit_parameters.json").read_text())["metabolites"] == ["NAA", "Cr", "tCr"]
    assert add_fsl_mrs(tmp_path / "out") == [tree]
    check_target(tmp_path / "out")


def test_a_result_without_all_spectra_has_no_folder_of_fsl_mrs(tmp_path, maps):
    write_results(tmp_path / "out", maps_to_images(maps, reference_head=None, shown=("tNAA",)), summary={})
    with pytest.raises(DataError, match="no spectra of all voxels of frame 0"):
        add_fsl_mrs(tmp_path / "out")
    assert not (tmp_path / "out/fsl_mrs").exists()
    with pytest.raises(ConfigError, match="is no result folder"):
        add_fsl_mrs(tmp_path)
