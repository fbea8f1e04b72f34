from __future__ import annotations

import pytest

from mrsi_gadgets.errors import DataError
from mrsi_gadgets.physics import brain_values
from mrsi_gadgets.physics.spin_systems import MOLECULES


def test_every_simulated_molecule_has_brain_values_within_its_range():
    assert set(brain_values.BRAIN) == set(MOLECULES)
    for name, entry in brain_values.BRAIN.items():
        low, high = entry.range_mm
        assert low <= min(entry.gm_mm, entry.wm_mm, entry.csf_mm), name
        assert max(entry.gm_mm, entry.wm_mm, entry.csf_mm) <= high, name


def test_reported_sums_name_known_molecules():
    for parts in brain_values.REPORTED_SUMS.values():
        assert set(parts) <= set(MOLECULES)
    assert list(brain_values.REPORTED_SUMS) == ["tNAA", "tCr", "tCho", "Ins", "Glx"]


@pytest.mark.parametrize("name", list(brain_values.BRAIN))
@pytest.mark.parametrize("tissue", ["gm", "wm"])
def test_t2_star_is_shorter_than_t2_and_shorter_at_higher_field(name, tissue):
    at_3t, at_7t = (brain_values.t2_star_s(name, tissue, field) for field in (3.0, 7.0))
    assert 0.02 < at_7t < at_3t < brain_values.t2_s(name, tissue, 3.0) <= 0.3
    assert brain_values.t1_s(name, tissue, 3.0) < 2.5


def test_white_matter_differs_from_grey_as_published():
    def ratio(name):
        return brain_values.concentration_mm(name, "wm") / brain_values.concentration_mm(name, "gm")

    assert ratio("NAAG") > 1.2
    assert ratio("GPC") > 1.2
    assert ratio("Cr") < 0.9
    assert ratio("Glu") < 0.8


def test_water_relaxation_is_interpolated_between_the_fields():
    assert brain_values.water_s("t2_star", "gm", 3.0) == pytest.approx(0.066)
    assert brain_values.water_s("t2_star", "gm", 7.0) == pytest.approx(0.033)
    assert 0.033 < brain_values.water_s("t2_star", "gm", 4.7) < 0.066
    assert brain_values.water_s("t1", "wm", 5.0) == pytest.approx((0.832 + 1.220) / 2)


def test_unknown_names_tissues_and_fields_are_refused():
    with pytest.raises(DataError, match="no brain values for 'Cho'"):
        brain_values.values("Cho")
    with pytest.raises(DataError, match="tissue 'GM' is not known; use gm, wm, csf"):
        brain_values.concentration_mm("NAA", "GM")
    with pytest.raises(DataError, match=r"14\.1 T is outside"):
        brain_values.t2_s("NAA", "gm", 14.1)
    with pytest.raises(DataError, match="not 'T9'"):
        brain_values.water_s("T9", "gm", 3.0)
