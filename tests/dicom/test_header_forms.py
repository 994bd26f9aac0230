"""Every field in the forms in which it arrives in practice, and in those that nobody can use."""

import struct
from dataclasses import asdict

import numpy as np
import pydicom
import pytest
from pydicom import charset

from dicom_writer import BIG, EXPLICIT, IMPLICIT, element, image_elements, meta, native_file, noisy_slice, text
from lumbar.dicom import read_header, read_slice
from lumbar.dicom.header import parse

PIXELS = noisy_slice((32, 32))
ROWS, COLUMNS, STORED, SAMPLES, SIGN = 0x00280010, 0x00280011, 0x00280101, 0x00280002, 0x00280103
FRAMES, NUMBER, SPACING = 0x00280008, 0x00200013, 0x00280030
POSITION, ORIENTATION, THICKNESS = 0x00200032, 0x00200037, 0x00180050
SLOPE, CENTER, WIDTH, PADDING, PHOTOMETRIC = 0x00281053, 0x00281050, 0x00281051, 0x00280120, 0x00280004


def header_with(tag, vr, value, **options):
    data = native_file(PIXELS, extra=[(tag, vr, value)], **options)
    return parse("x.dcm", np.frombuffer(bytearray(data), np.uint8)).header


FORMS = [
    (NUMBER, "IS", b"3.0 ", "instance_number", 3),
    (NUMBER, "IS", b"+3", "instance_number", 3),
    (NUMBER, "IS", b"  3 ", "instance_number", 3),
    (NUMBER, "IS", b"3\0\0\0", "instance_number", 3),
    (NUMBER, "IS", b"003 ", "instance_number", 3),
    (NUMBER, "IS", b"3\\4 ", "instance_number", 3),
    (NUMBER, "IS", b"3\r\n ", "instance_number", 3),
    (NUMBER, "US", struct.pack("<H", 7), "instance_number", 7),
    (NUMBER, "SL", struct.pack("<i", -7), "instance_number", -7),
    (NUMBER, "UL", struct.pack("<I", 70000), "instance_number", 70000),
    (NUMBER, "FD", struct.pack("<d", 7.0), "instance_number", 7),
    (NUMBER, "LO", b"12", "instance_number", 12),
    (NUMBER, "UN", b"12", "instance_number", 12),
    (NUMBER, "IS", b"", "instance_number", None),
    (NUMBER, "IS", b"NaN ", "instance_number", None),
    (NUMBER, "IS", b"inf ", "instance_number", None),
    (NUMBER, "IS", b"1e40", "instance_number", None),
    (NUMBER, "IS", b"1_0 ", "instance_number", None),
    (NUMBER, "IS", b"1e 5", "instance_number", None),
    (NUMBER, "IS", b"1 2 ", "instance_number", None),
    (NUMBER, "IS", b"0x10", "instance_number", None),
    (NUMBER, "SQ", b"", "instance_number", None),
    (FRAMES, "IS", b"0 ", "number_of_frames", 0),
    (FRAMES, "IS", b"-1", "number_of_frames", -1),
    (FRAMES, "IS", b"1.0 ", "number_of_frames", 1),
    (FRAMES, "US", b"\1\0", "number_of_frames", 1),
    (SPACING, "DS", b"0,5\\0,5 ", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "DS", b"0.5,0.5 ", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "DS", b"0.5 ", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "DS", b"0,5 ", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "DS", b"0.5\\0.5\\", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "DS", b"5.0e-1\\5E-01", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "DS", b"0.50000000000000000001\\0.5", "pixel_spacing", (0.5, 0.5)),
    (SPACING, "UT", b"0.5\\0.25", "pixel_spacing", (0.5, 0.25)),
    (SPACING, "UN", b"0.5\\0.25", "pixel_spacing", (0.5, 0.25)),
    (SPACING, "LO", b"0.5\\0.25", "pixel_spacing", (0.5, 0.25)),
    (SPACING, "FD", struct.pack("<2d", 0.5, 0.25), "pixel_spacing", (0.5, 0.25)),
    (SPACING, "FL", struct.pack("<2f", 0.5, 0.25), "pixel_spacing", (0.5, 0.25)),
    (SPACING, "IS", b"1\\2 ", "pixel_spacing", (1.0, 2.0)),
    (SPACING, "DS", b"0\\0 ", "pixel_spacing", None),
    (SPACING, "DS", b"0 ", "pixel_spacing", None),
    (SPACING, "DS", b"-1\\1", "pixel_spacing", None),
    (SPACING, "DS", b"1\\1\\1 ", "pixel_spacing", None),
    (SPACING, "DS", b"nan\\nan ", "pixel_spacing", None),
    (SPACING, "FD", struct.pack("<2d", float("nan"), 1), "pixel_spacing", None),
    (SPACING, "FL", struct.pack("<2f", float("inf"), 1), "pixel_spacing", None),
    (POSITION, "DS", b"-20,5\\3\\4,25", "image_position_patient", (-20.5, 3.0, 4.25)),
    (POSITION, "FD", struct.pack("<3d", 1, 2, 3), "image_position_patient", (1.0, 2.0, 3.0)),
    (POSITION, "DS", b"1.234,5\\1\\2 ", "image_position_patient", None),
    (POSITION, "DS", b"1\\2 ", "image_position_patient", None),
    (POSITION, "DS", b"1\\\\3 ", "image_position_patient", None),
    (ORIENTATION, "FL", struct.pack("<6f", 0, 1, 0, 0, 0, -1), "image_orientation_patient", (0, 1, 0, 0, 0, -1)),
    (ORIENTATION, "DS", b"1\\0\\0\\0\\1 ", "image_orientation_patient", None),
    (THICKNESS, "DS", b"4,5 ", "slice_thickness", 4.5),
    (THICKNESS, "US", b"\4\0", "slice_thickness", 4.0),
    (THICKNESS, "FD", struct.pack("<d", 4.5), "slice_thickness", 4.5),
    (THICKNESS, "FD", b"\0\0\0", "slice_thickness", None),
    (THICKNESS, "SH", b"4.5 ", "slice_thickness", 4.5),
    (THICKNESS, "DS", b"four", "slice_thickness", None),
    (SLOPE, "DS", b"0 ", "rescale_slope", 0.0),  # refused by who rescales
    (SLOPE, "FL", struct.pack("<f", 2), "rescale_slope", 2.0),
    (CENTER, "DS", b"400\\300\\200 ", "window_center", (400.0, 300.0, 200.0)),
    (WIDTH, "DS", b"800,5 ", "window_width", (800.5,)),
    (WIDTH, "SS", struct.pack("<2h", 5, -6), "window_width", (5.0, -6.0)),
    (ROWS, "IS", b"32", "rows", 32),
    (ROWS, "UL", struct.pack("<I", 32), "rows", 32),
    (ROWS, "SS", struct.pack("<h", 32), "rows", 32),
    (ROWS, "SL", struct.pack("<i", 32), "rows", 32),
    (ROWS, "DS", b"32.0", "rows", 32),
    (ROWS, "LO", b" 32 ", "rows", 32),
    (ROWS, "FD", struct.pack("<d", 32), "rows", 32),
    (ROWS, "UN", struct.pack("<H", 32), "rows", 32),
    (ROWS, "US", b"", "rows", None),
    (ROWS, "UL", b"\0\0\0\x80", "rows", 1 << 31),
    (ROWS, "IS", b"no", "rows", None),
    (STORED, "IS", b"12", "bits_stored", 12),
    (SAMPLES, "IS", b"1 ", "samples_per_pixel", 1),
    (SIGN, "IS", b"0 ", "pixel_representation", 0),
    (PADDING, "IS", b"4095", "pixel_padding_value", 4095),
    (PADDING, "SS", struct.pack("<h", -1), "pixel_padding_value", 65535),  # of unsigned pixels
    (PADDING, "SL", struct.pack("<i", -2000), "pixel_padding_value", -2000),
    (PHOTOMETRIC, "CS", b"monochrome2 ", "photometric_interpretation", "MONOCHROME2"),
    (PHOTOMETRIC, "CS", b"MONOCHROME2\0\0\0", "photometric_interpretation", "MONOCHROME2"),
    (PHOTOMETRIC, "LO", b" MONOCHROME1", "photometric_interpretation", "MONOCHROME1"),
    (0x0020000E, "UI", b"1.2.3 ", "series_instance_uid", "1.2.3"),
    (0x0020000E, "UI", b"\0\0", "series_instance_uid", None),
    (0x0008103E, "LO", b"T2\r\n\tSAG\x1b[31m", "series_description", "T2   SAG [31m"),
    (0x00080008, "CS", b"ORIGINAL\\PRIMARY", "image_type", "ORIGINAL\\PRIMARY"),
]


@pytest.mark.parametrize(("tag", "vr", "value", "field", "expected"), FORMS)
def test_forms_in_which_fields_arrive(tag, vr, value, field, expected):
    parsed = getattr(header_with(tag, vr, value), field)
    assert parsed == expected
    assert type(parsed) is type(expected) or isinstance(expected, tuple)


@pytest.mark.parametrize(
    ("tag", "vr", "value", "field"), [row[:4] for row in FORMS if row[0] in (ROWS, STORED, SAMPLES)]
)
def test_pixels_are_read_by_the_values_found_or_refused(tmp_path, tag, vr, value, field):
    header = header_with(tag, vr, value, stored=12)
    (tmp_path / "1.dcm").write_bytes(native_file(PIXELS, stored=12, extra=[(tag, vr, value)]))
    if getattr(header, field) in (1, 12, 32):
        assert np.array_equal(read_slice(tmp_path / "1.dcm").pixels, PIXELS)
    else:
        with pytest.raises(Exception, match=r"found .*, expected"):
            read_slice(tmp_path / "1.dcm")


@pytest.mark.parametrize("form", ["{} ", "{}\0", "{}\0\0", " {}", "{}\0garbage", "{}\r\n", "{}  \0"])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_syntaxes_with_something_behind_them(tmp_path, syntax, form):
    raw = form.format(syntax).encode()
    raw += b"\0" * (len(raw) % 2)
    body = element(0x00020010, "UI", raw)
    head = b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(body))) + body
    (tmp_path / "1.dcm").write_bytes(head + native_file(PIXELS, syntax, stored=12)[len(meta(syntax)) :])
    result = read_slice(tmp_path / "1.dcm")
    assert result.header.transfer_syntax_uid == syntax
    assert np.array_equal(result.pixels, PIXELS)


def test_a_missing_sign_means_unsigned(tmp_path):
    body = image_elements((32, 32), stored=12, extra=[])
    body = body.replace(element(SIGN, "US", b"\0\0"), b"")
    (tmp_path / "1.dcm").write_bytes(meta(EXPLICIT) + body + element(0x7FE00010, "OW", PIXELS.tobytes()))
    result = read_slice(tmp_path / "1.dcm")
    assert result.header.pixel_representation is None
    assert result.pixels.dtype == np.uint16


SETS = [
    ("GB18030", "腰椎 T2"),
    ("GBK", "腰椎"),
    ("ISO_IR 144", "Поясничный"),
    ("ISO_IR 101", "kręgosłup"),
    ("ISO_IR 126", "οσφυϊκή"),
    ("ISO_IR 127", "العمود"),
    ("ISO_IR 138", "עמוד"),
    ("ISO_IR 148", "omurgası"),
    ("ISO_IR 166", "กระดูกสันหลัง"),
    ("ISO_IR 13", "ｺｼ"),
    ("ISO_IR 192", "腰椎 säg"),
    ("ISO_IR 100", "Wirbelsäule"),
    (r"\ISO 2022 IR 87", "腰椎"),
    (r"ISO 2022 IR 13\ISO 2022 IR 87", "ｺｼ 腰椎"),
    (r"\ISO 2022 IR 149", "요추"),
    (r"ISO 2022 IR 100\ISO 2022 IR 144", "säule Поясничный"),
]


@pytest.mark.parametrize(("terms", "words"), SETS)
def test_texts_are_decoded_as_pydicom_decodes_them(tmp_path, terms, words):
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = terms.split("\\")
    dataset.SeriesDescription = words
    dataset.Manufacturer = words
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    dataset.save_as(tmp_path / "1.dcm", enforce_file_format=False)
    header = read_header(tmp_path / "1.dcm")
    expected = pydicom.dcmread(tmp_path / "1.dcm", force=True).SeriesDescription
    assert header.series_description == header.manufacturer == expected == words


@pytest.mark.parametrize(
    ("terms", "raw", "expected"),
    [
        ("ISO-IR 100", "säule".encode("latin-1"), "säule"),
        ("iso_ir 100", "säule".encode("latin-1"), "säule"),
        ("ISO 8859-5", "Поясничный".encode("iso8859_5"), "Поясничный"),
        ("ISO8859-2", "kręgosłup".encode("iso8859_2"), "kręgosłup"),
        ("GB2312", "腰椎".encode("gb2312"), "腰椎"),
        ("ISO 2022 IR 6\\ISO-2022-IR 87", b"\x1b$B9x\x1b(B", "腰"),
        ("\\ISO 2022 IR 58", b"\x1b$)A" + "腰椎".encode("gb2312"), "腰椎"),
        ("UTF-8", "säule".encode(), "säule"),
        ("", "säule".encode(), "säule"),
        ("", "säule".encode("latin-1"), "säule"),
        ("unknown", "säule".encode(), "säule"),
        ("rot13", b"s\xc3\xa4ule", "säule"),
        ("ISO_IR 192", b"s\xe4ule", "s\ufffdule"),
        ("ISO_IR 100", b"a\x1b%Gb", "a %Gb"),
        ("GB18030\\ISO 2022 IR 87", "腰".encode("gb18030"), "腰"),
        ("\\" * 40, b"\xff\xfe", "ÿþ"),
    ],
)
def test_character_sets_that_are_misspelt_unknown_or_wrong(terms, raw, expected):
    data = native_file(PIXELS, extra=[(0x0008103E, "LO", text(raw)), (0x00080005, "CS", text(terms))])
    description = parse("x.dcm", np.frombuffer(data, np.uint8)).header.series_description
    assert description == expected


@pytest.mark.parametrize("terms", [*charset.python_encoding, "undefined", "idna", "unicode_escape"])
def test_no_bytes_leave_a_control_character_in_a_text(terms):
    rng = np.random.default_rng(0)
    for _ in range(30):
        raw = rng.integers(0, 256, 24).astype(np.uint8).tobytes() + b"\x1b$)C\x1b(J\x9b"
        extra = [(tag, "LO", raw + b" ") for tag in (0x0008103E, 0x00080070, 0x00080008, PHOTOMETRIC)]
        data = native_file(PIXELS, extra=[*extra, (0x00080005, "CS", text(terms))])
        for field, value in asdict(parse("x.dcm", np.frombuffer(data, np.uint8)).header).items():
            assert not isinstance(value, str) or value.isprintable(), field
