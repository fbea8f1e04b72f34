from __future__ import annotations

import re
from dataclasses import replace

import pytest
from csi_scans import Warnings, csi_protocol

from mrsi_gadgets.errors import ConfigError, DataError
from mrsi_gadgets.mrd.header import Encoding, Limit, MrdHeader, Space, parse_header
from mrsi_gadgets.mrd.header_writer import header_xml
from mrsi_gadgets.mrd.profile import PROFILE_KEYS, read_protocol, read_water_protocol

USER = {
    "mrsi_profile": "1.0", "mrsi_nucleus": "1H", "mrsi_encoding": "csi", "mrsi_spectral_points": 512,
    "mrsi_dwell_us": 500.0, "mrsi_acq_delay_us": 1300.0,
}  # fmt: skip


def make_header(*, limits=None, matrix=(4, 4, 1), trajectory="cartesian", without=(), **changes) -> MrdHeader:
    space = Space(matrix, (200.0, 200.0, 10.0))
    user = {key: value for key, value in (USER | changes.pop("user", {})).items() if key not in without}
    header = MrdHeader(
        field_strength_t=2.8936, h1_frequency_hz=123.2e6, echo_times_ms=(1.3,), user=user,
        encodings=(Encoding(space, space, limits or {}, trajectory),),
    )  # fmt: skip
    return replace(header, **changes)


def test_every_missing_key_is_named_at_once():
    header = make_header(without=("mrsi_dwell_us", "mrsi_nucleus", "mrsi_acq_delay_us"))
    with pytest.raises(DataError, match=r"lacks mrsi_nucleus, mrsi_dwell_us, mrsi_acq_delay_us .*settings"):
        read_protocol(header)


def test_axes_of_other_encodings_must_be_given():
    header = make_header(user={"mrsi_encoding": "other"})
    with pytest.raises(DataError, match="mrsi_axis_kx, mrsi_axis_ky, mrsi_axis_kz, mrsi_axis_t"):
        read_protocol(header)


def test_settings_come_before_the_header_and_are_noted():
    protocol = read_protocol(make_header(), {"mrsi_dwell_us": "400", "mrsi_nucleus": "1H"})
    assert protocol.dwell_s == pytest.approx(400e-6)
    assert protocol.provenance["dwell_s"] == "setting mrsi_dwell_us"
    assert protocol.provenance["n_times"] == "header mrsi_spectral_points"
    assert protocol.provenance["reference_ppm"] == "default of 1H: 4.65 (mrsi_reference_ppm not given)"


def test_every_field_of_the_protocol_has_a_source():
    provenance = read_protocol(make_header()).provenance
    names = {
        "nucleus", "transmit_frequency_hz", "reference_ppm", "dwell_s", "n_times", "acquisition_delay_s", "geometry",
        "encoding", "freq_sign", "kspace_sign.x", "water_reference", "kspace_weighting", "readout_oversampling",
        "echo_times_s", "time_tick_ms", "axes.kx", "axes.dynamic", "k_centre.kx",
    }  # fmt: skip
    assert names <= {name for name, source in provenance.items() if source}


def test_a_key_of_an_encoding_space_overrides_the_general_one():
    space = make_header().encodings[0]
    header = make_header(encodings=(space, space), user={"mrsi_spectral_points_enc1": 64, "mrsi_dwell_us_enc1": 1000.0})
    assert read_protocol(header).n_times == 512
    assert read_water_protocol(header).n_times == 64
    assert read_protocol(header, space=1).dwell_s == pytest.approx(1e-3)
    assert read_water_protocol(header, {"mrsi_spectral_points": "100"}).n_times == 64
    assert read_water_protocol(header, {"mrsi_spectral_points_enc1": "32"}).n_times == 32


def test_the_water_protocol_is_that_of_the_metabolites_where_there_is_one_space():
    assert read_water_protocol(make_header()).n_times == 512


def test_an_unknown_key_in_the_header_is_warned_about():
    warnings = Warnings()
    read_protocol(make_header(user={"mrsi_dwel_us": 3.0, "other": 1}), warn=warnings.warn)
    assert warnings.said == ["header parameter mrsi_dwel_us is no key of MRSI profile 1.0 and was ignored"]


def test_an_unknown_setting_is_refused_with_the_nearest_key():
    with pytest.raises(ConfigError, match=r"'mrsi_dwel_us' is no key .* did you mean mrsi_dwell_us"):
        read_protocol(make_header(), {"mrsi_dwel_us": "3"})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("mrsi_profile", "2.0", "1.0"),
        ("mrsi_nucleus", "H1", "NIfTI-MRS name"),
        ("mrsi_encoding", "cart", "one of csi, epsi"),
        ("mrsi_dwell_us", "fast", "a finite number"),
        ("mrsi_dwell_us", "nan", "a finite number"),
        ("mrsi_spectral_points", "12.5", "a whole number"),
        ("mrsi_freq_sign", "0", "+1 or -1"),
        ("mrsi_kspace_sign_y", "2", "+1 or -1"),
        ("mrsi_water_suppressed", "2", "0 or 1"),
        ("mrsi_axis_kx", "line", "one of readout"),
        ("mrsi_water_ref", "set:x", "such as set:1"),
        ("mrsi_grid_center", "corner", "one of voxel, edge"),
        ("mrsi_samples_per_lap", "0", "positive"),
        ("mrsi_voi", "{", "JSON"),
        ("mrsi_readout_polarity", "bipolar", "one of monopolar, alternating"),
        ("mrsi_samples_used", "-3", "positive"),
        ("mrsi_edit", "mega", "one of none, metabolite_cycling"),
        ("mrsi_water_ref", "flag:USER2", "flag:IS_PARALLEL_CALIBRATION or a counter"),
        ("mrsi_axis_chunk", "lap", "one of readout"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_place(key, value, wanted):
    message = f"{key} \\(setting\\) is '{re.escape(value)}'; it must be .*{re.escape(wanted)}"
    with pytest.raises(ConfigError, match=message):
        read_protocol(make_header(), {key: value})
    with pytest.raises(DataError, match=f"{key} \\(header\\)"):
        read_protocol(make_header(user={key: value}))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"h1_frequency_hz": 63e6}, ("H1resonanceFrequency_Hz", "systemFieldStrength_T")),
        ({"user": {"mrsi_transmit_frequency_Hz": 63e6}}, ("mrsi_transmit_frequency_Hz", "systemFieldStrength_T")),
        (
            {"user": {"mrsi_transmit_frequency_Hz": 297e6}, "field_strength_t": None},
            ("mrsi_transmit_frequency_Hz", "H1resonanceFrequency_Hz"),
        ),
        ({"trajectory": "spiral"}, ("mrsi_encoding", "trajectory 'spiral'")),
        ({"user": {"mrsi_axis_kx": "kspace_encode_step_1"}}, ("mrsi_axis_kx", "mrsi_axis_ky")),
        ({"user": {"mrsi_axis_ky": "none"}}, ("mrsi_axis_ky", "matrixSize.y")),
        ({"user": {"mrsi_water_ref": "segment:1"}}, ("mrsi_water_ref", "mrsi_axis_kx")),
        ({"limits": {"segment": Limit(0, 7, 4)}}, ("encodingLimits.segment", "matrixSize.x")),
        ({"limits": {"segment": Limit(0, 0, 0)}}, ("encodingLimits.segment", "matrixSize.x")),
        ({"limits": {"segment": Limit(0, 3, 0)}}, ("encodingLimits.segment", "matrixSize.x")),
        ({"limits": {"kspace_encode_step_1": Limit(0, 3, 9)}}, ("kspace_encoding_step_1", "matrixSize.y")),
    ],
)
def test_contradictions_are_refused_with_both_names_and_a_remedy(changes, names):
    with pytest.raises(DataError) as caught:
        read_protocol(make_header(**changes))
    text = str(caught.value)
    assert all(name in text for name in names), text
    assert ";" in text


@pytest.mark.parametrize(
    ("nucleus", "h1", "field", "expected"),
    [
        ("31P", 123.2e6, 2.8936, 123.2e6 * 0.40480742),  # the proton frequency: the nucleus' own follows
        ("31P", 49.87e6, 2.8936, 49.87e6),  # a converter wrote the X frequency into the proton's field
        ("2H", 297.2e6, 7.0, 297.2e6 * 0.15350609),
        ("31P", 123.2e6, 3.0, 123.2e6 * 0.40480742),  # "3 T" is 2.89 T
        ("31P", 90e6, 2.8936, None),  # neither
        ("31P", 123.2e6, None, None),  # the field is not known
        ("19F", 119.5e6, 2.8936, None),  # both would fit
        ("21Ne", 123.2e6, 2.8936, None),  # no ratio known
    ],
)
def test_the_frequency_of_another_nucleus_is_derived_only_where_one_reading_fits(nucleus, h1, field, expected):
    user = {"mrsi_nucleus": nucleus, "mrsi_reference_ppm": 0.0}
    header = make_header(user=user, h1_frequency_hz=h1, field_strength_t=field)
    if expected is None:
        with pytest.raises(DataError, match="lacks mrsi_transmit_frequency_Hz"):
            read_protocol(header)
    else:
        protocol = read_protocol(header)
        assert protocol.transmit_frequency_hz == pytest.approx(expected)
        assert "H1resonanceFrequency_Hz" in protocol.provenance["transmit_frequency_hz"]


@pytest.mark.parametrize(("nucleus", "ppm"), [("1H", 4.65), ("2H", 4.8), ("31P", 0.0), ("13C", 0.0)])
def test_the_reference_shift_has_a_default_for_common_nuclei(nucleus, ppm):
    assert read_protocol(make_header(user={"mrsi_nucleus": nucleus})).reference_ppm == ppm


def test_the_reference_shift_of_other_nuclei_must_be_given():
    with pytest.raises(DataError, match="lacks mrsi_reference_ppm"):
        read_protocol(make_header(user={"mrsi_nucleus": "23Na"}))


def test_water_is_flagged_by_default_for_protons_only():
    assert read_protocol(make_header()).water_reference == "flag:USER1"
    assert read_protocol(make_header(user={"mrsi_nucleus": "31P"})).water_reference == "none"


def test_a_spin_echo_starts_at_the_echo_top_with_a_warning():
    warnings = Warnings()
    header = make_header(without=("mrsi_acq_delay_us",), echo_times_ms=(30.0,))
    protocol = read_protocol(header, warn=warnings.warn)
    assert protocol.acquisition_delay_s == 0
    assert "TE 30 ms" in warnings.said[0]
    assert "default 0" in protocol.provenance["acquisition_delay_s"]


def test_a_counter_taken_by_an_axis_is_no_longer_the_default_of_another():
    protocol = read_protocol(make_header(user={"mrsi_axis_kx": "repetition"}))
    assert (protocol.axes["kx"], protocol.axes["dynamic"]) == ("repetition", "none")


@pytest.mark.parametrize(("kind", "kx"), [("csi", "segment"), ("epsi", "readout"), ("spiral", "trajectory")])
def test_each_encoding_has_its_default_axis_map(kind, kx):
    header = make_header(user={"mrsi_encoding": kind, "mrsi_samples_per_lap": "40"}, trajectory="other")
    assert read_protocol(header).axes["kx"] == kx


def test_the_centre_of_k_space_comes_from_the_limits_or_is_half_the_matrix():
    protocol = read_protocol(make_header(limits={"segment": Limit(1, 4, 3)}))
    assert protocol.k_centre == {"kx": 3, "ky": 2, "kz": 0}
    assert "encodingLimits.segment.center" in protocol.provenance["k_centre.kx"]
    assert protocol.provenance["k_centre.ky"].startswith("default")


def test_one_sign_serves_all_axes_and_single_ones_override_it():
    protocol = read_protocol(make_header(user={"mrsi_kspace_sign": -1, "mrsi_kspace_sign_y": 1}))
    assert protocol.kspace_sign == (-1, 1, -1)


def test_rings_take_one_number_or_one_per_ring():
    user = {"mrsi_encoding": "rings", "mrsi_axis_kz": "none", "mrsi_samples_per_lap": 120,
            "mrsi_temporal_interleaves": "1 1, 2"}  # fmt: skip
    protocol = read_protocol(make_header(user=user, trajectory="other"))
    assert protocol.samples_per_lap == (120,)
    assert protocol.temporal_interleaves == (1, 1, 2)


def test_a_missing_encoding_space_is_refused():
    with pytest.raises(DataError, match=r"encoding\[0\] is needed"):
        read_protocol(make_header(encodings=()))


def test_the_keys_of_the_profile_are_complete():
    assert {"mrsi_profile", "mrsi_voi", "mrsi_axis_cycle", "mrsi_kspace_sign_z"} <= set(PROFILE_KEYS)
    written = parse_header(header_xml(csi_protocol(water_suppressed=False), receiver_channels=1)).user
    assert set(written) <= set(PROFILE_KEYS)


@pytest.mark.parametrize(
    ("matrix", "coils", "points", "sentence"),
    [
        ((60000, 60000, 1), 8, 512, r"matrixSize 60000 x 60000 x 1 has 3600000000 readouts .*GB, more than 16777216"),
        ((10**9, 1, 1), 1, 1, "more than 16777216 readouts; correct matrixSize"),
        (
            (4000, 4000, 1),
            1000,
            16384,
            r"1000 channels, 2097152.0 GB, more than this machine's memory of \d+ GB; correct",
        ),
        ((4, 4, 1), 1, 10**9, "mrsi_spectral_points is 1000000000, more than the 16384 for which"),
    ],
)
def test_a_header_that_asks_for_more_than_the_machine_has_is_refused_before_anything_is_allocated(
    matrix, coils, points, sentence
):
    header = make_header(matrix=matrix, receiver_channels=coils, user={"mrsi_spectral_points": points})
    with pytest.raises(DataError, match=sentence):
        read_protocol(header)


@pytest.mark.parametrize(("where", "error"), [("header", DataError), ("setting", ConfigError)])
def test_a_first_sample_before_the_excitation_is_refused(where, error):
    user = {"mrsi_acq_delay_us": -20.0} if where == "header" else {}
    settings = {"mrsi_acq_delay_us": "-20"} if where == "setting" else {}
    with pytest.raises(error, match=rf"mrsi_acq_delay_us \({where}\) is '-20.*must be a finite number of at least 0"):
        read_protocol(make_header(user=user), settings)


def test_a_reference_far_from_the_usual_one_is_warned_of():
    for ppm, warned in ((4.7, False), (5.6, False), (0.0, True), (2.0, True)):
        warnings = Warnings()
        read_protocol(make_header(user={"mrsi_reference_ppm": ppm}), warn=warnings.warn)
        said = any(f"mrsi_reference_ppm is {ppm:g} but 0 Hz of 1H is usually near 4.65 ppm" in w for w in warnings.said)
        assert said == warned


def test_the_bandwidth_of_the_receivers_noise_is_that_of_the_header_and_plausible():
    assert read_protocol(make_header()).receiver_noise_bandwidth == 1.0
    read = read_protocol(make_header(receiver_noise_bandwidth=0.79))
    assert read.receiver_noise_bandwidth == 0.79
    assert read.provenance["receiver_noise_bandwidth"] == "header relativeReceiverNoiseBandwidth"
    text = header_xml(replace(csi_protocol(), receiver_noise_bandwidth=0.79), receiver_channels=2)
    assert parse_header(text).receiver_noise_bandwidth == 0.79
    for wrong in (0.0, 7.9, float("nan")):
        with pytest.raises(DataError, match="relativeReceiverNoiseBandwidth is .* between 0.1 and 1"):
            read_protocol(make_header(receiver_noise_bandwidth=wrong))
