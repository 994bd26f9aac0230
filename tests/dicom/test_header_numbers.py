"""Numbers in headers: decimal and integer strings, and values that are none."""

import numpy as np
import pytest

from dicom_files import PIXELS, save
from dicom_writer import (
    native_file,
)
from lumbar.dicom import read_header
from lumbar.dicom.header import parse
from lumbar.dicom.parsing import numbers as _numbers


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
    header = read_header(save(tmp_path, native_file(PIXELS, extra=[(tag, vr, value)])))
    assert getattr(header, field) is None


def test_integer_strings_with_a_fraction_are_cut():
    source = np.frombuffer(native_file(PIXELS, extra=[(0x00200013, "IS", b"3.0 ")]), np.uint8)
    assert parse("x.dcm", source).header.instance_number == 3
    source = np.frombuffer(native_file(PIXELS, extra=[(0x00200013, "IS", b"3.5 ")]), np.uint8)
    assert parse("x.dcm", source).header.instance_number == 3
