import io
import struct
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest

from dicom_writer import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RLE,
    UNDEFINED,
    delimiter,
    element,
    item,
    meta,
    native_file,
    noisy_slice,
    text,
)
from lumbar.dicom import Header, read_header, read_slice
from lumbar.dicom.header import parse
from lumbar.dicom.parsing import numbers as _numbers
from lumbar.dicom.parsing import scan
from lumbar.errors import DicomError
from reference import elements_twin

PIXELS = noisy_slice((6, 5))
GEOMETRY = (
    (0x00080008, "CS", text("ORIGINAL\\PRIMARY\\M")),
    (0x00080060, "CS", b"MR"),
    (0x0008103E, "LO", text("T2 säg")),
    (0x00180050, "DS", b"4.0 "),
    (0x00180086, "IS", b"1\\2 "),
    (0x00180088, "DS", b""),
    (0x0020000E, "UI", b"1.2.3\0"),
    (0x00200011, "IS", b" 7"),
    (0x00200012, "IS", b"2 "),
    (0x00200013, "IS", b"12"),
    (0x00200032, "DS", text("-20.64528\\-109.5597\\201.9066")),
    (0x00200037, "DS", text("1\\0\\0\\0\\1\\-1.5e-17")),
    (0x00280030, "DS", text("0.68359375\\0.5")),
    (0x00200100, "IS", b"3 "),
    (0x00281050, "DS", text("918\\40")),
    (0x00281051, "DS", b"1616"),
    (0x00281052, "DS", b"-1024 "),
    (0x00281053, "DS", b"1 "),
)


def to_file(folder, data, name="1.dcm"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
def test_every_field_in_every_encoding(tmp_path, syntax):
    order = "big" if syntax == BIG else "little"
    padding = [(0x00280120, "US", (4095).to_bytes(2, order)), (0x00280121, "US", (4000).to_bytes(2, order))]
    header = read_header(to_file(tmp_path, native_file(PIXELS, syntax, extra=[*GEOMETRY, *padding], stored=12)))
    assert header == Header(
        path=str(tmp_path / "1.dcm"),
        transfer_syntax_uid=syntax,
        rows=6,
        columns=5,
        bits_allocated=16,
        bits_stored=12,
        high_bit=11,
        pixel_representation=0,
        samples_per_pixel=1,
        planar_configuration=None,
        number_of_frames=None,
        photometric_interpretation="MONOCHROME2",
        image_position_patient=(-20.64528, -109.5597, 201.9066),
        image_orientation_patient=(1.0, 0.0, 0.0, 0.0, 1.0, -1.5e-17),
        pixel_spacing=(0.68359375, 0.5),
        slice_thickness=4.0,
        spacing_between_slices=None,
        rescale_slope=1.0,
        rescale_intercept=-1024.0,
        slice_location=None,
        magnetic_field_strength=None,
        repetition_time=None,
        echo_time=None,
        window_center=(918.0, 40.0),
        window_width=(1616.0,),
        instance_number=12,
        series_number=7,
        acquisition_number=2,
        echo_number=1,
        temporal_position_identifier=3,
        pixel_padding_value=4095,
        pixel_padding_range_limit=4000,
        image_type="ORIGINAL\\PRIMARY\\M",
        series_instance_uid="1.2.3",
        study_instance_uid=None,
        sop_class_uid=None,
        series_description="T2 säg",
        modality="MR",
        manufacturer=None,
    )


@pytest.mark.parametrize(("vr", "signed", "expected"), [("US", 0, 63536), ("SS", 1, -2000), ("US", 1, -2000)])
def test_padding_has_the_sign_of_the_pixels(tmp_path, vr, signed, expected):
    extra = [(0x00280120, vr, (63536).to_bytes(2, "little"))]
    header = read_header(to_file(tmp_path, native_file(PIXELS, extra=extra, signed=signed)))
    assert (header.pixel_padding_value, header.pixel_padding_range_limit) == (expected, None)


def test_a_header_cannot_be_changed(tmp_path):
    header = read_header(to_file(tmp_path, native_file(PIXELS)))
    with pytest.raises(AttributeError):
        header.rows = 3


def test_headers_equal_those_of_pydicom():
    """On the files that pydicom ships; a value that pydicom itself refuses says nothing."""
    compared = 0
    for name in sorted(Path(pydicom.data.__file__).parent.glob("test_files/*.dcm")):
        try:
            header = read_header(name)
        except DicomError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(name, force=True, stop_before_pixels=True)
            for field in fields(Header)[2:-2]:
                keyword = "".join(part.capitalize() for part in field.name.split("_")).replace("Uid", "UID")
                keyword = keyword.replace("Sop", "SOP").replace("EchoNumber", "EchoNumbers")
                try:
                    expected = dataset.get(keyword)
                except (ValueError, TypeError, OverflowError):
                    continue
                own = getattr(header, field.name)
                if expected is None and "SharedFunctionalGroupsSequence" in dataset:
                    continue  # pydicom does not look into functional groups
                if expected is None or expected == "":
                    assert own is None, (name, keyword)
                elif isinstance(own, tuple):
                    values = [expected] if not hasattr(expected, "__iter__") else expected
                    assert own == tuple(float(value) for value in values), (name, keyword)
                elif isinstance(own, int | float):
                    first = expected[0] if keyword == "EchoNumbers" and hasattr(expected, "__iter__") else expected
                    assert own == first, (name, keyword)
                    compared += 1
                elif own is not None:
                    words = [expected] if isinstance(expected, str) else expected
                    found_words = [part.strip() for part in own.split("\\")]
                    assert found_words == [str(word).strip() for word in words], (name, keyword)
                    compared += 1
    assert compared > 500


SEQUENCE = item(element(0x00080100, "SH", b"A1"))
NESTED = [
    element(0x00081140, "SQ", SEQUENCE),
    element(0x00081140, "SQ", SEQUENCE + delimiter(0xE0DD), length=UNDEFINED),
    element(
        0x00081140,
        "SQ",
        item(element(0x00080100, "SH", b"A1") + delimiter(0xE00D), length=UNDEFINED) + delimiter(0xE0DD),
        length=UNDEFINED,
    ),
    element(  # a sequence in an item of a sequence, all of undefined length
        0x00081140,
        "SQ",
        item(
            element(0x00081199, "SQ", item(b"", length=0) + delimiter(0xE0DD), length=UNDEFINED) + delimiter(0xE00D),
            length=UNDEFINED,
        )
        + delimiter(0xE0DD),
        length=UNDEFINED,
    ),
    element(  # private, unknown VR, its items implicit (PS3.5 section 6.2.2)
        0x00091001,
        "UN",
        item(element(0x00080100, "SH", b"A1", implicit=True) + delimiter(0xE00D), length=UNDEFINED) + delimiter(0xE0DD),
        length=UNDEFINED,
    ),
    element(  # an icon: encapsulated pixels inside
        0x00880200,
        "SQ",
        item(
            element(0x7FE00010, "OB", item(b"") + item(b"\xff\xd8\xff\xd9") + delimiter(0xE0DD), length=UNDEFINED)
            + delimiter(0xE00D),
            length=UNDEFINED,
        )
        + delimiter(0xE0DD),
        length=UNDEFINED,
    ),
    element(0x00091002, "UN", b"\xfe\xff\0\xe0" * 3),
]


@pytest.mark.parametrize("nested", NESTED, ids=range(len(NESTED)))
def test_sequences_before_the_pixels(tmp_path, nested):
    data = native_file(PIXELS, before=element(0x00080060, "CS", b"MR") + nested)
    result = read_slice(to_file(tmp_path, data))
    assert np.array_equal(result.pixels, PIXELS)
    assert result.header.modality == "MR"


def test_sequences_in_big_endian_and_implicit_files(tmp_path):
    inner = element(0x00080100, "SH", b"A1", big=True) + delimiter(0xE00D, big=True)
    nested = item(inner, big=True, length=UNDEFINED) + delimiter(0xE0DD, big=True)
    before = element(0x00081140, "SQ", nested, big=True, length=UNDEFINED)
    assert np.array_equal(read_slice(to_file(tmp_path, native_file(PIXELS, BIG, before=before))).pixels, PIXELS)
    inner = element(0x00080100, "SH", b"A1", implicit=True) + delimiter(0xE00D)
    before = element(
        0x00081140, "SQ", item(inner, length=UNDEFINED) + delimiter(0xE0DD), implicit=True, length=UNDEFINED
    )
    assert np.array_equal(read_slice(to_file(tmp_path, native_file(PIXELS, IMPLICIT, before=before))).pixels, PIXELS)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_without_preamble_and_meta_as_pydicom_with_force(tmp_path, syntax):
    path = to_file(tmp_path, native_file(PIXELS, syntax, has_meta=False, before=b""))
    result = read_slice(path)
    assert result.header.transfer_syntax_uid == syntax
    assert np.array_equal(result.pixels, PIXELS)


def test_with_meta_but_without_preamble(tmp_path):
    result = read_slice(to_file(tmp_path, native_file(PIXELS)[132:]))
    assert result.header.transfer_syntax_uid == EXPLICIT
    assert np.array_equal(result.pixels, PIXELS)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.99", "1.2.840.113619.5.2", "9", "1.2.840.10008.1.2.9"])
def test_syntaxes_that_look_like_others_are_kept_as_they_are(tmp_path, syntax):
    data = meta(syntax) + native_file(PIXELS)[len(meta(EXPLICIT)) :]
    header = read_header(to_file(tmp_path, data))
    assert (header.transfer_syntax_uid, header.rows) == (syntax, 6)


def test_elements_out_of_order_and_twice(tmp_path):
    extra = element(0x00200013, "IS", b"3 ") + element(0x00080060, "CS", b"MR") + element(0x00200013, "IS", b"4 ")
    header = read_header(to_file(tmp_path, native_file(PIXELS, before=extra)))
    assert (header.modality, header.instance_number, header.rows) == ("MR", 4, 6)


def test_implicit_data_under_an_explicit_syntax_and_the_reverse(tmp_path):
    explicit, implicit = native_file(PIXELS), native_file(PIXELS, IMPLICIT)
    mixed = meta(EXPLICIT) + implicit[len(meta(IMPLICIT)) :]
    assert np.array_equal(read_slice(to_file(tmp_path, mixed)).pixels, PIXELS)
    mixed = meta(IMPLICIT) + explicit[len(meta(EXPLICIT)) :]
    assert np.array_equal(read_slice(to_file(tmp_path, mixed)).pixels, PIXELS)


def test_a_header_longer_than_the_first_read(tmp_path):
    before = element(0x00091001, "OB", bytes(200_000))
    header = read_header(to_file(tmp_path, native_file(PIXELS, before=before)))
    assert header.rows == 6


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"1.5 ", 1.5),
        (b"+1.5", 1.5),
        (b" -.5e+2 ", -50.0),
        (b"5.", 5.0),
        (b"1e-300", 1e-300),
        (b"0.1234567890123456789", 0.1234567890123456789),
        (b"123456789012345678", 123456789012345678.0),
        (b"1.7976931348623157e308", 1.7976931348623157e308),
        (b"-0", 0.0),
        (b"3\\4", None),
        (b"", None),
        (b"  ", None),
        (b"abc", None),
        (b"1.2.3", None),
        (b"1e", None),
        (b"nan", None),
        (b"inf", None),
        (b"1e999", None),
        (b"--1", None),
        (b".", None),
        (b"\0\0", None),
    ],
)
def test_decimal_strings(value, expected):
    extra = [(0x00180050, "DS", value + b" " * (len(value) % 2))]
    source = np.frombuffer(native_file(PIXELS, extra=extra), np.uint8)
    thickness = parse("x.dcm", source).header.slice_thickness
    assert thickness == (3.0 if value == b"3\\4" else expected)


def test_decimal_strings_equal_float_to_the_last_bit():
    rng = np.random.default_rng(0)
    numbers = np.zeros(1)
    plan = np.array([[0, _numbers.DECIMAL, 1, 0]])
    for _ in range(3000):
        value = rng.normal() * 10.0 ** rng.integers(-8, 9)
        raw = (f"{value:.{rng.integers(1, 15)}g}" if rng.random() < 0.5 else f"{value:.{rng.integers(0, 9)}f}").encode()
        left = _numbers.parse_numbers(np.frombuffer(raw, np.uint8), np.array([0, len(raw), -1, 0]), plan, numbers)
        assert left or numbers[0] == float(raw), raw
        assert not left or len(raw) > 15, raw


@pytest.mark.parametrize(
    ("tag", "vr", "value", "field"),
    [
        (0x00200032, "DS", b"1\\2 ", "image_position_patient"),
        (0x00200032, "DS", b"1\\2\\x ", "image_position_patient"),
        (0x00200037, "DS", b"1\\0\\0\\0\\1 ", "image_orientation_patient"),
        (0x00280030, "DS", b"0\\1 ", "pixel_spacing"),
        (0x00280030, "DS", b"-1\\1", "pixel_spacing"),
        (0x00200013, "IS", b"x ", "instance_number"),
        (0x00280008, "IS", b"", "number_of_frames"),
        (0x00280106, "US", b"\1", "rescale_slope"),
    ],
)
def test_values_that_are_not_what_their_type_allows_count_as_absent(tmp_path, tag, vr, value, field):
    header = read_header(to_file(tmp_path, native_file(PIXELS, extra=[(tag, vr, value)])))
    assert getattr(header, field) is None


def test_integer_strings_with_a_fraction_are_cut():
    source = np.frombuffer(native_file(PIXELS, extra=[(0x00200013, "IS", b"3.0 ")]), np.uint8)
    assert parse("x.dcm", source).header.instance_number == 3
    source = np.frombuffer(native_file(PIXELS, extra=[(0x00200013, "IS", b"3.5 ")]), np.uint8)
    assert parse("x.dcm", source).header.instance_number == 3


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_the_walk_equals_its_twin(syntax):
    before = {
        IMPLICIT: element(0x00081140, "SQ", item(b"") + delimiter(0xE0DD), implicit=True, length=UNDEFINED),
        EXPLICIT: b"".join(NESTED),
        BIG: element(0x00081140, "SQ", item(b"", big=True), big=True),
    }[syntax]
    data = native_file(PIXELS, syntax, extra=GEOMETRY, before=before)
    workspace, numbers = scan.WORKSPACE.copy(), scan.NO_NUMBERS.copy()
    source = np.frombuffer(data, np.uint8)
    code = scan.read_elements(source, False, workspace, numbers)
    assert code == (scan.NEEDS_SYNTAX if syntax == BIG else scan.PIXELS)
    if syntax == BIG:
        workspace[scan.IS_BIG] = 1
        assert scan.read_elements(source, True, workspace, numbers) == scan.PIXELS
    expected_values, end = elements_twin.read_elements(data, len(meta(syntax)), syntax != IMPLICIT, syntax == BIG)
    assert workspace[scan.END_AT] == end
    for tag in [tag for tag, _, _ in scan.NUMBERS.values()] + list(scan.TEXTS.values()):
        span = scan.span_of(tag)
        assert tuple(workspace[span : span + 2]) == expected_values.get(tag, (-1, 0)), hex(tag)


def refusal(call, *arguments):
    with pytest.raises(DicomError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "found" in text
    assert "expected" in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "data", [b"", b"x", b"This is no image at all, but a text that is long enough.\n" * 9, bytes(500)]
)
def test_files_that_are_not_dicom_are_refused(tmp_path, data):
    path = to_file(tmp_path, data)
    for call in (read_header, read_slice):
        assert str(path) in refusal(call, path)


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refusal(read_header, tmp_path / "absent.dcm")
    assert "directory" in refusal(read_slice, tmp_path)
    assert "null" in refusal(read_header, "a\0b")


def test_an_element_beyond_the_end_is_refused_with_its_offset(tmp_path):
    broken = element(0x00091001, "OB", b"1234", length=1 << 20)
    data = meta(EXPLICIT) + broken
    text = refusal(read_header, to_file(tmp_path, data))
    assert f"offset {len(meta(EXPLICIT))} of {len(data)}" in text


def test_something_else_than_an_item_in_a_sequence_is_refused_without_pixels_that_fit(tmp_path):
    broken = element(0x00081140, "SQ", element(0x00080100, "SH", b"A1"), length=UNDEFINED)
    data = native_file(PIXELS, before=broken)
    assert "inside a sequence" in refusal(read_header, to_file(tmp_path, data[:-2]))


def test_deeply_nested_sequences_end(tmp_path):
    level = element(0x00081140, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED), length=UNDEFINED)
    refusal(read_header, to_file(tmp_path, meta(EXPLICIT) + level * 20_000))


def test_a_damaged_deflate_stream_is_refused(tmp_path):
    data = native_file(PIXELS, DEFLATED)
    refusal(read_slice, to_file(tmp_path, data[:-20]))
    refusal(read_slice, to_file(tmp_path, data[:-40] + b"\xff" * 40))


def test_a_deflated_file_that_grows_beyond_reason_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lumbar.dicom.header.MIN_INFLATED_BYTES", 1 << 16)
    data = native_file(np.zeros((400, 400), np.uint16), DEFLATED)
    assert "deflate" in refusal(read_slice, to_file(tmp_path, data))


@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED, IMPLICIT, BIG])
def test_every_truncation_is_read_or_refused(syntax):
    data = native_file(PIXELS, syntax, extra=GEOMETRY)
    refusals = []
    for size in range(len(data)):
        try:
            parse("x.dcm", np.frombuffer(data[:size], np.uint8))
        except DicomError as error:
            refusals.append(str(error))
    assert refusals
    assert all(line.startswith("x.dcm: found") for line in refusals)


def test_a_header_without_an_image(tmp_path):
    header = read_header(to_file(tmp_path, meta(RLE) + element(0x00080060, "CS", b"MR")))
    assert (header.transfer_syntax_uid, header.modality, header.rows) == (RLE, "MR", None)
    assert "no pixel data" in refusal(read_slice, tmp_path / "1.dcm")


def test_files_written_by_pydicom(tmp_path):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    dataset.ImagePositionPatient = [1, 2.5, -3]
    dataset.InstanceNumber = 9
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=False)
    header = parse("x", np.frombuffer(buffer.getvalue(), np.uint8)).header
    assert (header.image_position_patient, header.instance_number) == ((1.0, 2.5, -3.0), 9)
