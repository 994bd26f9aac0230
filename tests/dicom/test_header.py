import io
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest

from dicom_files import GEOMETRY, PIXELS, save
from dicom_writer import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    UNDEFINED,
    delimiter,
    element,
    item,
    meta,
    native_file,
)
from lumbar.dicom import Header, read_header, read_slice
from lumbar.dicom.header import parse
from lumbar.dicom.parsing import scan
from lumbar.errors import DicomError
from reference import elements_twin


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
def test_every_field_in_every_encoding(tmp_path, syntax):
    order = "big" if syntax == BIG else "little"
    padding = [(0x00280120, "US", (4095).to_bytes(2, order)), (0x00280121, "US", (4000).to_bytes(2, order))]
    header = read_header(save(tmp_path, native_file(PIXELS, syntax, extra=[*GEOMETRY, *padding], stored=12)))
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
    header = read_header(save(tmp_path, native_file(PIXELS, extra=extra, signed=signed)))
    assert (header.pixel_padding_value, header.pixel_padding_range_limit) == (expected, None)


def test_a_header_cannot_be_changed(tmp_path):
    header = read_header(save(tmp_path, native_file(PIXELS)))
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
    result = read_slice(save(tmp_path, data))
    assert np.array_equal(result.pixels, PIXELS)
    assert result.header.modality == "MR"


def test_sequences_in_big_endian_and_implicit_files(tmp_path):
    inner = element(0x00080100, "SH", b"A1", big=True) + delimiter(0xE00D, big=True)
    nested = item(inner, big=True, length=UNDEFINED) + delimiter(0xE0DD, big=True)
    before = element(0x00081140, "SQ", nested, big=True, length=UNDEFINED)
    assert np.array_equal(read_slice(save(tmp_path, native_file(PIXELS, BIG, before=before))).pixels, PIXELS)
    inner = element(0x00080100, "SH", b"A1", implicit=True) + delimiter(0xE00D)
    before = element(
        0x00081140, "SQ", item(inner, length=UNDEFINED) + delimiter(0xE0DD), implicit=True, length=UNDEFINED
    )
    assert np.array_equal(read_slice(save(tmp_path, native_file(PIXELS, IMPLICIT, before=before))).pixels, PIXELS)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_without_preamble_and_meta_as_pydicom_with_force(tmp_path, syntax):
    path = save(tmp_path, native_file(PIXELS, syntax, has_meta=False, before=b""))
    result = read_slice(path)
    assert result.header.transfer_syntax_uid == syntax
    assert np.array_equal(result.pixels, PIXELS)


def test_with_meta_but_without_preamble(tmp_path):
    result = read_slice(save(tmp_path, native_file(PIXELS)[132:]))
    assert result.header.transfer_syntax_uid == EXPLICIT
    assert np.array_equal(result.pixels, PIXELS)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.99", "1.2.840.113619.5.2", "9", "1.2.840.10008.1.2.9"])
def test_syntaxes_that_look_like_others_are_kept_as_they_are(tmp_path, syntax):
    data = meta(syntax) + native_file(PIXELS)[len(meta(EXPLICIT)) :]
    header = read_header(save(tmp_path, data))
    assert (header.transfer_syntax_uid, header.rows) == (syntax, 6)


def test_elements_out_of_order_and_twice(tmp_path):
    extra = element(0x00200013, "IS", b"3 ") + element(0x00080060, "CS", b"MR") + element(0x00200013, "IS", b"4 ")
    header = read_header(save(tmp_path, native_file(PIXELS, before=extra)))
    assert (header.modality, header.instance_number, header.rows) == ("MR", 4, 6)


def test_implicit_data_under_an_explicit_syntax_and_the_reverse(tmp_path):
    explicit, implicit = native_file(PIXELS), native_file(PIXELS, IMPLICIT)
    mixed = meta(EXPLICIT) + implicit[len(meta(IMPLICIT)) :]
    assert np.array_equal(read_slice(save(tmp_path, mixed)).pixels, PIXELS)
    mixed = meta(IMPLICIT) + explicit[len(meta(EXPLICIT)) :]
    assert np.array_equal(read_slice(save(tmp_path, mixed)).pixels, PIXELS)


def test_a_header_longer_than_the_first_read(tmp_path):
    before = element(0x00091001, "OB", bytes(200_000))
    header = read_header(save(tmp_path, native_file(PIXELS, before=before)))
    assert header.rows == 6


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
