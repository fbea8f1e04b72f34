"""Concentrations by tissue water: the equations against signals that are made from known concentrations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrsi_gadgets.data import Geometry, Map, Maps, Protocol
from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.nucleus import PROTON
from mrsi_gadgets.physics.saturation import relaxation_weight
from mrsi_gadgets.quantification.absolute import TISSUE_WATER, assumptions, why_not, with_concentrations
from mrsi_gadgets.quantification.assembly import AMOUNT
from mrsi_gadgets.quantification.tissue import ASSUMED, Tissue, Volume, on_grid_of, tissue_on_grid

MATRIX = (3, 4, 5)
CONCENTRATIONS = {"NAA": 9.5, "NAAG": 1.5, "Cr": 4.0, "PCr": 3.5, "Ins": 5.5}
SUMS = {"tNAA": ("NAA", "NAAG"), "tCr": ("Cr", "PCr")}


def protocol_of(**changes) -> Protocol:
    settings = {
        "nucleus": "1H", "transmit_frequency_hz": 123.25e6, "reference_ppm": 4.65, "dwell_s": 1 / 1500, "n_times": 128,
        "acquisition_delay_s": 1.3e-3, "geometry": Geometry(MATRIX, (30.0, 60.0, 55.0)), "encoding": "csi",
        "repetition_time_s": 0.8, "flip_angle_deg": 50.0, "field_strength_t": 3.0,
    } | changes  # fmt: skip
    return Protocol(**settings)


ECHO = protocol_of(echo_times_s=(0.035,), repetition_time_s=1.5, flip_angle_deg=90.0)


def steady(protocol: Protocol, t1_s: float, t2_s: float, b1: np.ndarray) -> np.ndarray:
    """Bloch equations of a spoiled train, iterated to their steady state; T2 over the echo."""
    flip = np.deg2rad(protocol.flip_angle_deg) * b1
    along = np.ones_like(b1)
    for _ in range(400):
        along = 1.0 - (1.0 - along * np.cos(flip)) * np.exp(-protocol.repetition_time_s / t1_s)
    return along * np.sin(flip) * np.exp(-(protocol.spin_echo_time_s or 0.0) / t2_s)


def measured(protocol: Protocol, tissue: Tissue, b1: np.ndarray, gain: np.ndarray) -> tuple[Maps, np.ndarray]:
    """Maps of amounts and a water image as a perfect fit would give them."""
    field_t = protocol.field_strength_t
    water = np.zeros(MATRIX)
    for where, fraction in zip(("gm", "wm", "csf"), tissue.fractions, strict=True):
        t1, t2 = (brain_values.water_s(what, where, field_t) for what in ("t1", "t2"))
        amount = fraction * brain_values.WATER[where].concentration_mm
        water += 2.0 * amount * steady(protocol, t1, t2, b1)
    amounts = {}
    for name, c in CONCENTRATIONS.items():
        signal = np.zeros(MATRIX)
        for where, fraction in zip(("gm", "wm"), tissue.fractions[:2], strict=True):
            t1, t2 = PROTON.t1_s(name, where, field_t), PROTON.t2_s(name, where, field_t)
            signal += c * fraction * steady(protocol, t1, t2, b1)
        amounts[name] = gain * signal / relaxation_weight(protocol, name)
    for name, members in SUMS.items():
        amounts[name] = sum(amounts[m] for m in members)
    maps = {n: Map(a.astype(np.float32), AMOUNT, (0.1 * a).astype("f4"), (0.05 * a).astype("f4"))
            for n, a in amounts.items()}  # fmt: skip
    maps["MM"] = Map(np.ones(MATRIX, np.float32), AMOUNT)
    maps["residual"] = Map(np.ones(MATRIX, np.float32), "1")
    return Maps(maps, np.ones(MATRIX, bool), np.zeros(MATRIX), protocol), gain * water


def tissue_of(seed: int) -> Tissue:
    parts = np.random.default_rng(seed).dirichlet((3, 3, 1, 0.5), MATRIX)
    return Tissue(parts[..., 0], parts[..., 1], parts[..., 2], known=True)


@pytest.mark.parametrize("protocol", [protocol_of(), ECHO], ids=["FID", "echo"])
def test_known_concentrations_come_back_with_tissue_relaxation_and_b1(protocol):
    tissue, b1 = tissue_of(1), np.linspace(0.8, 1.2, 60).reshape(MATRIX)
    maps, water = measured(protocol, tissue, b1, gain=np.full(MATRIX, 7e-5))
    found = with_concentrations(maps, water, tissue=tissue, b1=b1, units=("mM", "molal")).maps
    solid = tissue.grey + tissue.white
    litre = (tissue.grey * 43300.0 + tissue.white * 35880.0) / (solid * 55508.0)
    stated = solid > 0.25
    assert stated.sum() > 40
    for name, c in CONCENTRATIONS.items() | {n: sum(CONCENTRATIONS[m] for m in ms) for n, ms in SUMS.items()}.items():
        got = found[f"{name}_mM"]
        np.testing.assert_allclose(got.value[stated], c, rtol=2e-4)
        np.testing.assert_allclose(got.sd[stated], 0.1 * c, rtol=2e-4)
        np.testing.assert_allclose(got.crlb[stated], 0.05 * c, rtol=2e-4)
        assert np.isnan(got.value[~stated]).all()
        assert got.unit.startswith("mM (per litre of grey and white matter; tissue fractions given")
        np.testing.assert_allclose(found[f"{name}_molal"].value[stated], c / litre[stated], rtol=2e-4)
        assert found[f"{name}_molal"].unit.startswith("mmol/kg (")
    np.testing.assert_allclose(found[TISSUE_WATER].value[stated], litre[stated], rtol=1e-5)
    assert "MM_mM" not in found
    assert found["tissue_csf"].value == pytest.approx(tissue.csf)


def test_water_of_another_echo_time_and_repetition_counts_with_its_own():
    tissue, b1 = tissue_of(2), np.ones(MATRIX)
    maps, _ = measured(ECHO, tissue, b1, np.ones(MATRIX))
    own = replace(ECHO, echo_times_s=(0.03,), repetition_time_s=5.0)
    _, water = measured(own, tissue, b1, np.ones(MATRIX))
    right = with_concentrations(maps, water, own, tissue=tissue).maps["tNAA_mM"].value
    wrong = with_concentrations(maps, water, tissue=tissue).maps["tNAA_mM"].value
    assert np.nanmax(np.abs(right / 11.0 - 1)) < 3e-4
    assert np.nanmedian(wrong) < 9.0


def test_b1_that_is_left_out_is_a_small_error_of_one_sign():
    tissue, b1 = tissue_of(3), np.full(MATRIX, 0.85)
    maps, water = measured(protocol_of(), tissue, b1, np.ones(MATRIX))
    value = with_concentrations(maps, water, tissue=tissue).maps["Ins_mM"].value
    # both signals lose alike; what remains is the difference of their T1
    assert 0.005 < abs(np.nanmedian(value) / 5.5 - 1) < 0.05


def test_without_fractions_brain_is_taken_as_usual_and_said_to_be():
    pure = Tissue(np.full(MATRIX, 0.6), np.full(MATRIX, 0.4), np.zeros(MATRIX), known=True)
    maps, water = measured(protocol_of(), pure, np.ones(MATRIX), np.ones(MATRIX))
    found = with_concentrations(maps, water).maps
    np.testing.assert_allclose(found["tCr_mM"].value, 7.5, rtol=2e-4)
    assert "assumed" in found["tCr_mM"].unit
    assert "tissue_gm" not in found
    told = assumptions(protocol_of(), protocol_of(), ASSUMED, None)
    assert "not given" in told["tissue"]
    assert "nominal" in told["flip_angle"]


def test_csf_does_not_dilute_where_it_is_known():
    half = Tissue(np.full(MATRIX, 0.3), np.full(MATRIX, 0.2), np.full(MATRIX, 0.5), known=True)
    maps, water = measured(protocol_of(), half, np.ones(MATRIX), np.ones(MATRIX))
    np.testing.assert_allclose(with_concentrations(maps, water, tissue=half).maps["Ins_mM"].value, 5.5, rtol=2e-4)
    assert np.nanmedian(with_concentrations(maps, water).maps["Ins_mM"].value) < 4.0


def test_water_of_the_scalp_does_not_reach_the_brain_beside_it():
    parts = np.zeros((3, *MATRIX))
    parts[0, :, :2], parts[1, :, :2] = 0.6, 0.4
    tissue = Tissue(*parts, known=True)
    maps, water = measured(protocol_of(), tissue, np.ones(MATRIX), np.ones(MATRIX))
    water = np.where(parts[0] > 0, water, 1.5 * water.max())
    value = with_concentrations(maps, water, tissue=tissue).maps["Ins_mM"].value
    np.testing.assert_allclose(value[:, :2], 5.5, rtol=2e-4)
    assert np.isnan(value[:, 2:]).all()


@pytest.mark.parametrize(
    ("protocol", "has_water", "reason"),
    [
        (protocol_of(), True, ""),
        (ECHO, True, ""),
        (protocol_of(echo_times_s=(0.035,), flip_angle_deg=None), True, ""),
        (protocol_of(), False, "there is no water reference"),
        (protocol_of(repetition_time_s=None), True, "names no repetition time"),
        (protocol_of(flip_angle_deg=None), True, "names no flip angle"),
        (protocol_of(nucleus="31P", transmit_frequency_hz=49.9e6, reference_ppm=0.0), True, "concentrations of 31P"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(protocol, has_water, reason):
    said = why_not(protocol, has_water=has_water)
    assert reason in said
    assert bool(said) == bool(reason)


def volume(values: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(values, affine, "gm.nii.gz")


def oblique() -> Geometry:
    read = np.array([0.8, 0.6, 0.0])
    phase = np.array([-0.6, 0.8, 0.0])
    return Geometry(MATRIX, (30.0, 60.0, 55.0), (11.0, -22.0, 33.0), tuple(read), tuple(phase), (0.0, 0.0, -1.0))


@pytest.mark.parametrize("resolve", [True, False])
def test_a_ramp_of_an_oblique_mirrored_grid_comes_back_at_its_places(resolve):
    """The volume's own axes are neither those of the grid nor of the same handedness."""
    protocol = protocol_of(geometry=oblique())
    affine = np.array([[-2.0, 0, 0, 80.0], [0, 0, 2.5, -60.0], [0, 3.0, 0, -80.0], [0, 0, 0, 1]])
    shape = (80, 60, 60)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    weights = np.array([0.002, -0.003, 0.004])
    found = on_grid_of(volume(0.5 + ras @ weights, affine), protocol, resolve=False)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in MATRIX), indexing="ij"), axis=-1)
    to = protocol.geometry.affine_ras()
    expected = 0.5 + (grid @ to[:3, :3].T + to[:3, 3]) @ weights
    np.testing.assert_allclose(found, expected, atol=2e-6)
    if resolve:
        # a wave that the k-space of the grid holds is seen as it is, one beyond it not at all
        along = (np.linalg.inv(to) @ np.append(ras, np.ones((*shape, 1)), axis=-1)[..., None])[..., 1, 0]
        for cycles, size in ((1, 1.0), (3, 0.0)):
            wave = 0.5 + 0.5 * np.cos(2 * np.pi * cycles * along / MATRIX[1])
            seen = on_grid_of(volume(wave, affine), protocol)
            want = 0.5 + 0.5 * size * np.cos(2 * np.pi * cycles * grid[..., 1] / MATRIX[1])
            np.testing.assert_allclose(seen, want, atol=0.02)


def test_a_segmentation_on_the_grid_itself_stays_as_it_is():
    protocol = protocol_of(geometry=oblique())
    parts = np.random.default_rng(4).dirichlet((1, 1, 1), MATRIX)
    volumes = tuple(volume(parts[..., i], protocol.geometry.affine_ras()) for i in range(3))
    # voxels of 10 x 15 x 11 mm are sampled every 10 mm or finer: the point spread blurs, sums and means stay
    tissue = tissue_on_grid(volumes, protocol)
    np.testing.assert_allclose(sum(tissue.fractions), 1.0, atol=1e-5)
    np.testing.assert_allclose([f.mean() for f in tissue.fractions], parts.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(on_grid_of(volumes[0], protocol, resolve=False), parts[..., 0], atol=0.26)


def test_rings_see_less_of_a_corner_of_k_space_than_a_box():
    protocol = protocol_of(geometry=Geometry((8, 8, 1), (80.0, 80.0, 10.0)))
    wave = np.cos(2 * np.pi * 3 * np.arange(80) / 80)
    diagonal = 0.5 + 0.5 * np.outer(wave, wave)
    affine = protocol.geometry.affine_ras() @ np.diag([0.1, 0.1, 1, 1])
    affine[:3, 3] = (protocol.geometry.affine_ras() @ [-0.45, -0.45, 0, 1])[:3]
    assert on_grid_of(volume(diagonal[..., None], affine), protocol).std() > 0.2
    rings = replace(protocol, encoding="rings")
    assert on_grid_of(volume(diagonal[..., None], affine), rings).std() < 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: [v[0] * 100, *v[1:]], "no map of the fraction of grey matter"),
        (lambda v: [v[0], v[0] + 0.5, v[2]], "add up to"),
        (lambda v: [v[0][:2], *v[1:]], "lies on another grid"),
        (lambda v: [p * 0 for p in v], "hold no tissue where the spectra were measured"),
    ],
)
def test_volumes_that_are_no_fractions_are_refused(change, sentence):
    protocol = protocol_of(geometry=oblique())
    parts = [np.full(MATRIX, 0.5), np.full(MATRIX, 0.3), np.full(MATRIX, 0.2)]
    volumes = tuple(volume(p, protocol.geometry.affine_ras()) for p in change(parts))
    with pytest.raises(DataError, match=sentence):
        tissue_on_grid(volumes, protocol)
