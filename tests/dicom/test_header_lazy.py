"""Fields that are made when they are asked for, and pixels that are handed out as they stand."""

import copy
import pickle
import threading
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from dicom_writer import BIG, DEFLATED, EXPLICIT, IMPLICIT, element, native_file, noisy_slice
from lumbar.dicom import Header, pixels
from lumbar.dicom.header import parse
from lumbar.errors import DicomError

PIXELS = noisy_slice((6, 5))  # some above 2047
EXTRA = ((0x00100010, "PN", b"DOE^JANE"), (0x0020000E, "UI", b"1.2.3\0"), (0x00281050, "DS", b"918\\40"))
NAMES = [field.name for field in fields(Header)]


def source(**options):
    return np.frombuffer(bytearray(native_file(PIXELS, stored=12, **options)), np.uint8)


@pytest.mark.parametrize("first", NAMES)
def test_fields_are_the_same_whichever_is_asked_for_first(first):
    expected = asdict(parse("x.dcm", source(extra=EXTRA)).header)
    header = parse("x.dcm", source(extra=EXTRA)).header
    assert getattr(header, first) == expected[first]
    assert header == Header(**expected)
    assert asdict(header) == expected


def test_names_that_no_header_has_are_no_attributes():
    header = parse("x.dcm", source()).header
    for _ in range(2):
        with pytest.raises(AttributeError, match="patient_name"):
            header.patient_name  # noqa: B018
        assert header.rows == 6
        assert header.modality is None


def test_copies_and_pickles_hold_fields_and_no_name():
    header = parse("x.dcm", source(extra=EXTRA)).header
    packed = pickle.dumps(header)
    assert b"DOE" not in packed
    assert pickle.loads(packed) == header
    assert copy.deepcopy(header) == header
    assert replace(header, rows=7).rows == 7
    assert "DOE" not in repr(header)


def test_threads_that_ask_at_once_all_get_an_answer():
    expected = asdict(parse("x.dcm", source(extra=EXTRA)).header)
    for _ in range(100):
        header = parse("x.dcm", source(extra=EXTRA)).header
        start, wrong = threading.Barrier(4), []

        def ask(name, header=header, start=start, wrong=wrong):
            start.wait()
            if getattr(header, name) != expected[name]:
                wrong.append(name)

        threads = [threading.Thread(target=ask, args=[name]) for name in ("rows", "series_instance_uid") * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def us(tag, value):
    return [(tag, "US", value.to_bytes(2, "little"))]


@pytest.mark.parametrize(
    ("options", "is_plain"),
    [
        ({}, True),
        ({"syntax": IMPLICIT}, True),
        ({"photometric": "MONOCHROME1"}, True),
        ({"extra": EXTRA}, True),
        ({"extra": us(0x00280101, 16)}, True),
        ({"extra": us(0x00280103, 1) + us(0x00280101, 16)}, True),
        ({"extra": us(0x00280103, 1)}, False),  # without copies of the sign above the twelfth bit
        ({"extra": [(0x00280008, "IS", b"1 ")]}, False),
        ({"extra": [(0x00280008, "IS", b"x ")]}, False),
        ({"extra": us(0x00280101, 7)}, False),
        ({"syntax": BIG}, False),
        ({"syntax": DEFLATED}, False),
        ({"photometric": "PALETTE COLOR"}, False),
        ({"before": element(0x00091001, "OB", b"abc")}, False),  # the pixels lie at an odd place
    ],
)
def test_plain_pixels_are_those_of_the_general_way(options, is_plain):
    options = dict(options)
    data = bytearray(native_file(PIXELS, options.pop("syntax", EXPLICIT), stored=12, **options))
    file = parse("x.dcm", np.frombuffer(data, np.uint8))
    assert (file.plain is not None) == is_plain
    if file.plain is not None:
        file.pixels_length = file.plain.nbytes
        plain, file.plain = file.plain, None
        general = pixels.decode(file)
        assert (plain.dtype, plain.shape) == (general.dtype, general.shape)
        assert np.array_equal(plain, general)
        assert np.shares_memory(plain, general)


def test_a_slice_cut_short_by_one_byte_is_not_plain():
    data = native_file(PIXELS, stored=12)
    file = parse("x.dcm", np.frombuffer(bytearray(data[:-1]), np.uint8))
    assert file.plain is None
    with pytest.raises(DicomError, match="found 59 bytes of pixel data, expected 60"):
        pixels.decode(file)


@pytest.mark.parametrize("field", [field.name for field in fields(Header)])
def test_any_field_may_be_asked_for_first(field):
    extra = [(0x00089208, "CS", b"PHASE "), (0x00280122, "FL", b"\0\0\x20\x41"), (0x00280125, "FD", bytes(8))]
    data = np.frombuffer(bytearray(native_file(PIXELS, extra=extra)), np.uint8)
    whole = asdict(parse("1.dcm", data).header)
    assert whole["complex_image_component"] == "PHASE"
    assert (whole["float_pixel_padding_value"], whole["double_float_pixel_padding_range_limit"]) == (10.0, 0.0)
    assert getattr(parse("1.dcm", data).header, field) == whole[field]
