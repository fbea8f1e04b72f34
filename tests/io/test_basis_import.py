from __future__ import annotations

import json

import numpy as np
import pytest
from basis_writers import file_fids, write_fsl, write_jmrui, write_lcmodel

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.io.basis_files import read_basis_file
from mrsi_gadgets.io.basis_import import import_basis
from mrsi_gadgets.io.learning import read_learning_protocol
from mrsi_gadgets.physics.basis import metabolite_basis
from mrsi_gadgets.physics.ensemble import Ensemble, sample
from mrsi_gadgets.physics.sequences import press

NAMES = ("NAA", "Cr", "Lac", "Glc")
MHZ, DWELL, N = 123.2, 1 / 4000, 2048
WRITERS = {
    "LCModel": lambda folder, *rest, **more: write_lcmodel(folder / "set.basis", *rest, **more),
    "FSL-MRS": lambda folder, *rest, **more: write_fsl(folder / "set", *rest, **more),
    "jMRUI": lambda folder, *rest, **more: write_jmrui(folder / "set.txt", *rest, **more),
}


@pytest.fixture(params=list(WRITERS))
def write(request):
    return WRITERS[request.param]


@pytest.fixture
def protocol(make_protocol):
    return make_protocol(n_times=301, acquisition_delay_s=0.0013)


def strongest_ppm(protocol, fid) -> float:
    spectrum = np.abs(np.fft.fft(fid * np.exp(-10 * protocol.times_s), 16384))
    hz = np.fft.fftfreq(16384, protocol.dwell_s)[np.argmax(spectrum)]
    return protocol.reference_ppm + hz / (protocol.transmit_frequency_hz * 1e-6)


def test_lines_lie_where_they_belong_on_both_sides_of_water(tmp_path, write, protocol):
    path = write(tmp_path, NAMES, file_fids(NAMES, MHZ, DWELL, N), DWELL, MHZ)
    basis = import_basis(path, protocol)
    assert set(basis.names) == set(NAMES)
    for name, ppm in (("NAA", 2.008), ("Cr", 3.027), ("Lac", 1.3142)):
        found = strongest_ppm(protocol, basis.subset([name]).fids[0])  # one line of a doublet is 3.5 Hz off
        assert found == pytest.approx(ppm, abs=0.035), name
    glucose = np.fft.fft(basis.subset(["Glc"]).fids[0] * np.exp(-10 * protocol.times_s), 16384)
    ppm = protocol.reference_ppm + np.fft.fftfreq(16384, protocol.dwell_s) / 123.25
    above = ppm > 4.9
    assert ppm[above][np.argmax(np.abs(glucose[above]))] == pytest.approx(5.216, abs=0.03)
    assert np.abs(glucose[above]).max() > 3 * np.abs(glucose[ppm > 5.6]).max()  # where a mirrored set has its lines


@pytest.mark.parametrize("width_hz", [1.0, 3.5])
def test_an_imported_basis_is_our_simulation_in_unit_phase_times_and_width(tmp_path, write, protocol, width_hz):
    fids = file_fids(NAMES, MHZ, DWELL, N, width_hz=width_hz, scale=37.0 * np.exp(0.7j))
    more = {"width_hz": width_hz} if write is WRITERS["FSL-MRS"] else {}
    basis = import_basis(write(tmp_path, NAMES, fids, DWELL, MHZ, **more), protocol).subset(NAMES)
    ours = metabolite_basis(protocol, NAMES).fids
    assert f"{width_hz:.2f} Hz of width taken out" in basis.source
    # between its samples a file is interpolated, and couplings do not scale with the field as shifts do
    error = np.linalg.norm(basis.fids - ours, axis=1) / np.linalg.norm(ours, axis=1)
    assert error.max() < 4e-3


def test_another_dwell_and_centre_are_resampled(tmp_path, write, protocol):
    dwell = 1 / 2500
    path = write(tmp_path, NAMES, file_fids(NAMES, 123.25, dwell, 1500, centre=3.0), dwell, 123.25)
    basis = import_basis(path, protocol, centre_ppm=3.0).subset(NAMES)
    ours = metabolite_basis(protocol, NAMES).fids
    assert np.linalg.norm(basis.fids - ours) < 5e-3 * np.linalg.norm(ours)
    with pytest.raises(
        ConfigError, match="strongest line of NAA in set.* lies at 3.66 ppm and not at 2.01; set centre"
    ):
        import_basis(path, protocol)


def test_frequencies_that_run_the_other_way_are_found_and_turned_on_request(tmp_path, write, protocol):
    path = write(tmp_path, NAMES, np.conj(file_fids(NAMES, MHZ, DWELL, N)), DWELL, MHZ)
    with pytest.raises(ConfigError, match="run the other way .* set conjugate = true"):
        import_basis(path, protocol)
    basis = import_basis(path, protocol, conjugate=True)
    assert strongest_ppm(protocol, basis.subset(["NAA"]).fids[0]) == pytest.approx(2.008, abs=0.01)


def test_a_shift_in_points_and_a_begin_time_are_taken_back(tmp_path, protocol):
    fids = file_fids(NAMES, MHZ, DWELL, N)
    shifted = import_basis(write_lcmodel(tmp_path / "a.basis", NAMES, fids, DWELL, MHZ, shift=3), protocol)
    plain = import_basis(write_lcmodel(tmp_path / "b.basis", NAMES, fids, DWELL, MHZ), protocol)
    np.testing.assert_allclose(shifted.fids, plain.fids, atol=2e-3)
    late = file_fids(NAMES, MHZ, DWELL, N, first_s=1e-3)
    begun = import_basis(write_jmrui(tmp_path / "a.txt", NAMES, late, DWELL, MHZ, begin_ms=1.0), protocol)
    np.testing.assert_allclose(begun.fids, plain.fids, atol=2e-2)
    told = import_basis(write_jmrui(tmp_path / "b.txt", NAMES, late, DWELL, MHZ), protocol, first_sample_s=1e-3)
    np.testing.assert_allclose(told.fids, begun.fids, atol=1e-9)


def test_other_programmes_names_are_ours_and_unknown_ones_stay(tmp_path, write, protocol):
    theirs = ("NAA", "mI", "Scyllo", "PCho", "Mac")
    fids = file_fids(("NAA", "Ins", "sIns", "PCh", "Gly"), MHZ, DWELL, N)
    path = write(tmp_path, theirs, fids, DWELL, MHZ)
    assert set(import_basis(path, protocol).names) == {"NAA", "Ins", "sIns", "PCh", "Mac"}
    assert "Gly" in import_basis(path, protocol, rename={"Mac": "Gly"}).names
    with pytest.raises(ConfigError, match="has Ins twice"):
        import_basis(path, protocol, rename={"Mac": "Ins"})
    with pytest.raises(ConfigError, match="has no X to rename"):
        import_basis(path, protocol, rename={"X": "Ins"})


def test_an_ensemble_uses_an_imported_basis(tmp_path, protocol):
    path = write_fsl(tmp_path / "set", NAMES, file_fids(NAMES, MHZ, DWELL, N), DWELL, MHZ)
    basis = import_basis(path, protocol)
    ensemble = Ensemble(names=("Cr", "NAA"))
    ours, theirs = (sample(protocol, 6, 3, ensemble=ensemble, basis=b).metabolites for b in (None, basis))
    assert np.linalg.norm(ours - theirs) < 3e-3 * np.linalg.norm(ours)
    with pytest.raises(DataError, match="has no 'GABA'"):
        sample(protocol, 2, 3, ensemble=Ensemble(names=("GABA",)), basis=basis)


def test_a_basis_of_other_times_is_refused(tmp_path, protocol, make_protocol):
    path = write_fsl(tmp_path / "set", NAMES, file_fids(NAMES, MHZ, DWELL, N), DWELL, MHZ)
    basis = import_basis(path, protocol)
    with pytest.raises(DataError, match="make the basis set with the scan's protocol"):
        sample(make_protocol(n_times=301), 2, 3, ensemble=Ensemble(names=("NAA",)), basis=basis)


def test_a_learning_protocol_names_a_file_for_each_echo(tmp_path):
    for te in (35, 144):
        fids = file_fids(NAMES, MHZ, DWELL, N, sequence=press(te * 1e-3))
        write_lcmodel(tmp_path / f"te{te}.basis", NAMES, fids, DWELL, MHZ, echo_ms=te)
    text = """
[protocol]
nucleus = "1H"
transmit_frequency_hz = 123.25e6
spectral_width_hz = 1500
n_times = 256
acquisition_delay_us = 0
echo_times_ms = [35, 144]
[ensemble]
names = ["NAA", "Lac"]
[basis]
file = ["te35.basis", "te144.basis"]
"""
    (tmp_path / "mine.toml").write_text(text)
    read = read_learning_protocol(tmp_path / "mine.toml")
    for protocol, basis in zip(read.protocols, read.bases, strict=True):
        ours = metabolite_basis(protocol, NAMES, sequence=press(protocol.spin_echo_time_s)).fids
        assert np.linalg.norm(basis.fids - ours) < 5e-3 * np.linalg.norm(ours)
    (tmp_path / "mine.toml").write_text(text.replace('"te35.basis", "te144.basis"', '"te144.basis", "te35.basis"'))
    with pytest.raises(ConfigError, match="mine.toml: the basis set te144.basis has TE 144 ms and the protocol 35 ms"):
        read_learning_protocol(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text(text.replace('names = ["NAA", "Lac"]', 'names = ["NAA", "GABA"]'))
    with pytest.raises(ConfigError, match=r"te35.basis lacks GABA \(it has NAA, Cr, Lac, Glc\)"):
        read_learning_protocol(tmp_path / "mine.toml")


def test_sets_of_another_scan_are_refused(tmp_path, protocol, make_protocol):
    fids = file_fids(("NAA",), MHZ, DWELL, 400, width_hz=1.0)
    with pytest.raises(ConfigError, match="lasts 100 ms and the protocol 201 ms; make a longer basis set"):
        import_basis(write_fsl(tmp_path / "short", ("NAA",), fids, DWELL, MHZ), protocol)
    with pytest.raises(ConfigError, match="made for 123.20 MHz and the protocol has 297.20 MHz"):
        import_basis(tmp_path / "short", make_protocol(transmit_frequency_hz=297.2e6))
    phosphorus = write_fsl(tmp_path / "other", ("NAA",), fids, DWELL, MHZ, nucleus="31P")
    with pytest.raises(ConfigError, match="other is of 31P and the protocol of 1H"):
        import_basis(phosphorus, protocol)
    late = write_jmrui(tmp_path / "late.txt", ("NAA",), file_fids(("NAA",), MHZ, DWELL, N), DWELL, MHZ, begin_ms=2.0)
    with pytest.raises(ConfigError, match="begins at 2 ms and the protocol at 1.3"):
        import_basis(late, protocol)
    unknown = write_fsl(tmp_path / "unknown", ("X",), fids, DWELL, MHZ)
    with pytest.raises(ConfigError, match="no molecule that is known"):
        import_basis(unknown, protocol)


def test_damaged_files_are_refused_in_one_sentence(tmp_path, protocol):
    fids = file_fids(("NAA",), MHZ, DWELL, 64)
    basis = write_lcmodel(tmp_path / "a.basis", ("NAA",), fids, DWELL, MHZ, sign=-1)
    with pytest.raises(ConfigError, match="a.basis is encrypted"):
        read_basis_file(basis)
    basis.write_text(basis.read_text().replace("NDATAB = 128", "NDATAB = 130"))
    with pytest.raises(ConfigError, match="NAA in a.basis has 256 numbers and not 2 x NDATAB = 260"):
        read_basis_file(basis)
    basis.write_text(" $SEQPAR\n HZPPPM = 123.2\n $END\n")
    with pytest.raises(ConfigError, match=r"no \$BASIS entry"):
        read_basis_file(basis)
    text = write_jmrui(tmp_path / "a.txt", ("NAA",), fids, DWELL, MHZ)
    text.write_text(text.read_text().replace("PointsInDataset: 64", "PointsInDataset: 65"))
    with pytest.raises(ConfigError, match="has 64 rows and not PointsInDataset = 65"):
        read_basis_file(text)
    text.write_text("hello")
    with pytest.raises(ConfigError, match="no jMRUI text file"):
        read_basis_file(text)
    folder = write_fsl(tmp_path / "set", ("NAA", "Cr"), file_fids(("NAA", "Cr"), MHZ, DWELL, 64), DWELL, MHZ)
    content = json.loads((folder / "Cr.json").read_text())
    content["basis"]["basis_dwell"] = 1e-3
    (folder / "Cr.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="NAA in set has another dwell"):
        read_basis_file(folder)
    (folder / "Cr.json").write_text("{}")
    with pytest.raises(ConfigError, match="Cr.json in set is no FSL-MRS basis file"):
        read_basis_file(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither \.json"):
        read_basis_file(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no basis set this version reads"):
        read_basis_file(tmp_path / "a.raw")
