"""Functional groups of enhanced objects: fields of single-frame files, and of each frame of others."""

import io
import pickle
import struct
from dataclasses import replace

import numpy as np
import pydicom
import pytest

import fuzz_header
from dicom_writer import BIG, EXPLICIT, IMPLICIT, UNDEFINED, element, item, native_file, noisy_slice, text
from lumbar.dicom import read_header, read_series, read_slice
from lumbar.dicom.header import parse
from lumbar.errors import DicomError

EXPECTED = {
    "image_orientation_patient": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "pixel_spacing": (0.5, 0.75),
    "slice_thickness": 4.0,
    "spacing_between_slices": 4.4,
    "repetition_time": 3500.0,
}
OF_A_FRAME = {
    "image_position_patient": lambda k: (pytest.approx(4.4 * k - 10), -100.0, 100.0),
    "rescale_slope": lambda k: k + 1.0,
    "rescale_intercept": lambda k: float(-k),
    "echo_time": lambda k: 90.5 + k,
    "window_center": lambda k: (400.0 + k, 300.0),
    "window_width": lambda k: (800.0, 600.0),
    "temporal_position_identifier": lambda k: k + 1,
    "acquisition_number": lambda k: k + 2,
    "image_type": lambda k: "ORIGINAL\\PRIMARY\\M\\NONE",
}


def header_of(data):
    return parse("x.dcm", np.frombuffer(bytearray(data), np.uint8)).header


def fields_of(header, names):
    return {name: getattr(header, name) for name in names}


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("is_undefined", [False, True])
def test_a_single_frame_has_what_its_groups_say(syntax, is_undefined):
    header = header_of(fuzz_header.enhanced(syntax, is_undefined=is_undefined))
    assert fields_of(header, EXPECTED) == EXPECTED
    assert fields_of(header, OF_A_FRAME) == {field: value(0) for field, value in OF_A_FRAME.items()}
    assert header.of_frame(0) == header
    assert header.problems == ()
    assert (header.instance_number, header.pixel_padding_value) == (5, 4095)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("is_undefined", [False, True])
def test_each_frame_has_what_its_own_groups_say(syntax, is_undefined):
    header = header_of(fuzz_header.enhanced(syntax, frames=4, is_undefined=is_undefined))
    assert header.number_of_frames == 4
    assert fields_of(header, EXPECTED) == EXPECTED
    assert header.image_position_patient is None
    for k in range(4):
        frame = header.of_frame(k)
        assert frame.number_of_frames == 1
        assert fields_of(frame, EXPECTED) == EXPECTED
        assert fields_of(frame, OF_A_FRAME) == {field: value(k) for field, value in OF_A_FRAME.items()}
        assert (frame.rows, frame.modality, frame.path) == (header.rows, header.modality, header.path)


@pytest.mark.parametrize("index", [-1, 4, 100])
def test_a_frame_that_is_not_there_is_refused(index):
    header = header_of(fuzz_header.enhanced(EXPLICIT, frames=4))
    with pytest.raises(DicomError, match=rf"x.dcm: found frame {index}, expected 0 to 3"):
        header.of_frame(index)


def test_every_pixel_of_a_multi_frame_object_stays(tmp_path):
    (tmp_path / "1.dcm").write_bytes(fuzz_header.enhanced(EXPLICIT, frames=3))
    result = read_slice(tmp_path / "1.dcm")
    assert np.array_equal(result.pixels, pydicom.dcmread(tmp_path / "1.dcm").pixel_array)


def test_a_series_of_single_frame_enhanced_files_is_placed(tmp_path):
    for number in range(3):
        dataset = pydicom.dcmread(io.BytesIO(fuzz_header.enhanced(EXPLICIT)))
        groups = dataset.PerFrameFunctionalGroupsSequence[0]
        groups.PlanePositionSequence[0].ImagePositionPatient = [-5 * number, 0, 0]
        dataset.save_as(tmp_path / f"{number + 1}.dcm")
    series = read_series(tmp_path)
    assert series.problems == []
    assert np.allclose(series.stacks[0].spacing_mm, (0.5, 0.75))
    assert np.allclose(np.diff(series.stacks[0].positions_mm), 5)


def edited(edit, **options):
    dataset = pydicom.dcmread(io.BytesIO(fuzz_header.enhanced(EXPLICIT, **options)))
    edit(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    return header_of(out.getvalue())


def test_values_outside_of_the_groups_win_where_they_are_usable():
    def edit(dataset):
        dataset.PixelSpacing, dataset.EchoTime, dataset.SliceThickness = [2, 3], 12, None
        dataset.ImageType = ["DERIVED"]

    header = edited(edit)
    assert (header.pixel_spacing, header.echo_time, header.image_type) == ((2.0, 3.0), 12.0, "DERIVED")
    assert header.slice_thickness == 4.0


def test_a_position_of_the_whole_object_does_not_hide_those_of_its_frames():
    def edit(dataset):
        dataset.ImagePositionPatient = [0, 0, 0]

    header = edited(edit, frames=3)
    assert [header.of_frame(k).image_position_patient[0] for k in range(3)] == pytest.approx([-10, -5.6, -1.2])


def test_positions_among_the_shared_groups_hold_for_every_frame():
    def edit(dataset):
        shared = dataset.SharedFunctionalGroupsSequence[0]
        shared.PlanePositionSequence = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence

    header = edited(edit, frames=2)
    assert header.of_frame(1).image_position_patient == header.image_position_patient == (-10.0, -100.0, 100.0)


def test_attributes_of_converted_objects_are_read():
    def edit(dataset):
        frame = dataset.PerFrameFunctionalGroupsSequence[1]
        del frame.MREchoSequence
        converted = pydicom.Dataset()
        converted.EchoTime, converted.EchoNumbers = "17", "2"
        frame.UnassignedPerFrameConvertedAttributesSequence = [converted]

    frame = edited(edit, frames=2).of_frame(1)
    assert (frame.echo_time, frame.echo_number) == (17.0, 2)


def test_fewer_groups_than_frames_leave_the_others_without():
    def edit(dataset):
        del dataset.PerFrameFunctionalGroupsSequence[1:]

    header = edited(edit, frames=3)
    assert header.of_frame(0).image_position_patient is not None
    assert header.of_frame(2).image_position_patient is None
    assert header.of_frame(2).pixel_spacing == (0.5, 0.75)


def test_a_competition_file_is_not_touched_by_the_class_named_in_its_meta(tmp_path):
    extra = [(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.4.1\0"), (0x00280030, "DS", b"0.5\\0.5 ")]
    (tmp_path / "1.dcm").write_bytes(native_file(noisy_slice((6, 5)), extra=extra))
    header = read_header(tmp_path / "1.dcm")
    assert header.pixel_spacing == (0.5, 0.5)
    assert header.of_frame(0) == replace(header, number_of_frames=1)


def groups(tag, content):
    return element(tag, "SQ", item(content))


GOOD = element(0x00289110, "SQ", item(element(0x00280030, "DS", b"0.5\\0.5 ")))
BAD = [
    element(0x00289110, "SQ", item(element(0x00280030, "DS", b"0.5\\0.5 ", length=500))),
    element(0x00289110, "SQ", item(element(0x00280030, "DS", b"0\\0 "))),
    element(0x00289110, "SQ", item(element(0x00280030, "DS", b"x\\y "))),
    element(0x00289110, "SQ", b""),
    element(0x00289110, "SQ", item(b"")),
    element(0x00289110, "UN", b"1234"),
    element(0x00289110, "SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\xff"),
    b"\x28\x00\x10",
]


@pytest.mark.parametrize("bad", BAD)
def test_groups_that_cannot_be_read_count_as_absent_and_spare_the_others(bad):
    other = element(0x00209116, "SQ", item(element(0x00200037, "DS", text("1\\0\\0\\0\\1\\0"))))
    data = native_file(noisy_slice((6, 5)), extra=[(0x52009229, "SQ", item(other + bad))])
    header = header_of(data)
    assert header.pixel_spacing is None
    if len(bad) > 3:
        assert header.image_orientation_patient == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def test_deeply_nested_or_endless_groups_are_given_up():
    level = element(0x00081140, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED), length=UNDEFINED)
    for content in (level * 500, GOOD * 3 + item(b"") * 200_000):
        header = header_of(native_file(noisy_slice((6, 5)), extra=[(0x52009230, "SQ", item(content))]))
        assert header.image_position_patient is None


def test_a_pickled_header_keeps_its_fields():
    header = header_of(fuzz_header.enhanced(EXPLICIT, frames=2))
    again = pickle.loads(pickle.dumps(header))
    assert again == header
    assert again.of_frame(1) == replace(header, number_of_frames=1)
