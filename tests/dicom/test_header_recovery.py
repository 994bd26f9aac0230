"""Files with one malformed element: read where the pixels are beyond doubt, with a line that says so; else refused."""

import struct
import zlib

import numpy as np
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
    encapsulated_file,
    item,
    meta,
    native_file,
    noisy_slice,
)
from lumbar.dicom import read_header, read_series, read_slice
from lumbar.errors import DicomError
from rle_encoder import encode

PIXELS = noisy_slice((40, 30))
AFTER = [(0x00280030, "DS", b"0.5\\0.5 "), (0x00200013, "IS", b"7 "), (0x00281053, "DS", b"2 ")]


def raw_element(tag, vr, value, big=False):
    """An element with a VR of any two bytes and a length of two."""
    return (
        struct.pack(">HH" if big else "<HH", tag >> 16, tag & 0xFFFF)
        + vr
        + struct.pack(">H" if big else "<H", len(value))
        + value
    )


def inserted(data, tag, malformed, big=False):
    """``malformed`` in front of the element with ``tag``."""
    at = data.index(struct.pack(">HH" if big else "<HH", tag >> 16, tag & 0xFFFF), 132)
    return data[:at] + malformed + data[at:]


def assert_recovered(folder, data, n_problems=1):
    (folder / "1.dcm").write_bytes(data)
    result = read_slice(folder / "1.dcm")
    assert np.array_equal(result.pixels, PIXELS)
    header = result.header
    assert (header.pixel_spacing, header.instance_number, header.rescale_slope) == ((0.5, 0.5), 7, 2.0)
    assert len(header.problems) == n_problems
    for line in header.problems:
        assert line.startswith(f"{folder / '1.dcm'}: found ")
        assert ", expected " in line
    assert read_header(folder / "1.dcm").problems == header.problems
    assert np.allclose(read_series(folder).stacks[0].volume[0], 2.0 * PIXELS)


@pytest.mark.parametrize("vr", [b"  ", b"??", b"\0\0", b"us", b"--", b"\xff\xff", b"O ", b" S"])
@pytest.mark.parametrize("value", [b"", b"\0\0", b"abcd", b"\x20" * 18])
@pytest.mark.parametrize("before", [0x00281053, 0x7FE00010, 0x00200013])
def test_an_element_with_a_vr_that_is_none(tmp_path, vr, value, before):
    tag = {0x00281053: 0x00281040, 0x7FE00010: 0x00291010, 0x00200013: 0x00191020}[before]
    data = native_file(PIXELS, stored=12, extra=AFTER)
    assert_recovered(tmp_path, inserted(data, before, raw_element(tag, vr, value)))


@pytest.mark.parametrize("vr", [b"  ", b"??", b"\0\0", b"ow"])
def test_pixel_data_with_a_vr_that_is_none(tmp_path, vr):
    data = native_file(PIXELS, stored=12, extra=AFTER)
    assert_recovered(tmp_path, data.replace(struct.pack("<HH2s", 0x7FE0, 0x10, b"OW"), b"\xe0\x7f\x10\0" + vr))
    data = encapsulated_file([encode(PIXELS)], PIXELS.shape, RLE, stored=12, extra=AFTER)
    assert_recovered(tmp_path, data.replace(struct.pack("<HH2s", 0x7FE0, 0x10, b"OB"), b"\xe0\x7f\x10\0" + vr))


@pytest.mark.parametrize("vr", [b"  ", b"??", b"\0\0"])
def test_the_same_in_big_endian_deflated_and_compressed_files(tmp_path, vr):
    odd = raw_element(0x00281040, vr, b"\0\0", big=True)
    # In big endian nothing is out of order for AFTER: texts have no byte order
    assert_recovered(tmp_path, inserted(native_file(PIXELS, BIG, stored=12, extra=AFTER), 0x00281053, odd, big=True))
    plain = inserted(native_file(PIXELS, stored=12, extra=AFTER), 0x00281053, raw_element(0x00281040, vr, b"\0\0"))
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = deflater.compress(plain[len(meta(EXPLICIT)) :]) + deflater.flush()
    assert_recovered(tmp_path, meta(DEFLATED) + body)
    data = encapsulated_file([encode(PIXELS)], PIXELS.shape, RLE, stored=12, extra=AFTER)
    assert_recovered(tmp_path, inserted(data, 0x00281053, raw_element(0x00281040, vr, b"\0\0")))


@pytest.mark.parametrize(
    "malformed",
    [
        element(0x00281040, "LO", b"abc", length=11),
        element(0x00281040, "LO", b"abcdefghij", length=2),
        element(0x00281040, "LO", b"abcdefgh", length=60_000),
        element(0x00281040, "UN", b"abcdefgh", length=2),
        element(0x00281040, "UN", b"abcdefgh", length=1 << 30),
        element(0x00281040, "UN", b"abcdefgh", length=UNDEFINED),
        raw_element(0x00281040, b"UN", b"abcdefgh"),  # two bytes of length where four belong
        element(0x00281040, "SH", b"", implicit=True),
        element(0x00281040, "SH", b"four", implicit=True),
        delimiter(0xE00D),
        delimiter(0xE0DD),
        item(b"abcd"),
    ],
)
def test_an_element_with_a_length_that_does_not_fit(tmp_path, malformed):
    assert_recovered(tmp_path, inserted(native_file(PIXELS, stored=12, extra=AFTER), 0x00281053, malformed))


INNER = element(0x00180080, "DS", b"5 ") + element(0x00189243, "CS", b"") + element(0x00280010, "US", b"\1\0")
INNER += element(0x00409210, "SH", b"Philips ")
TOO_SHORT = [
    element(0x2005140F, "SQ", item(INNER), length=20),
    element(0x2005140F, "SQ", item(INNER), length=8 + 10),
    element(0x2005140F, "SQ", item(INNER) * 3, length=8 + len(INNER) + 12),
    element(0x2005140F, "SQ", item(INNER + delimiter(0xE00D), length=UNDEFINED), length=30),
    element(0x2005140F, "SQ", item(INNER) + delimiter(0xE0DD), length=16),
    element(0x2005140F, "SQ", INNER, length=UNDEFINED),
]


@pytest.mark.parametrize("sequence", TOO_SHORT)
def test_a_private_sequence_that_declares_too_few_bytes(tmp_path, sequence):
    data = inserted(native_file(PIXELS, stored=12, extra=AFTER), 0x7FE00010, sequence)
    (tmp_path / "1.dcm").write_bytes(data)
    result = read_slice(tmp_path / "1.dcm")
    assert np.array_equal(result.pixels, PIXELS)
    assert (result.header.rows, result.header.repetition_time) == (40, None)
    assert result.header.problems


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("length", [None, UNDEFINED, 20, 256])
def test_an_implicit_file_whose_private_sequence_holds_explicit_elements(tmp_path, is_closed, length):
    content = item(INNER + delimiter(0xE00D), length=UNDEFINED) if is_closed else item(INNER)
    closing = delimiter(0xE0DD) if length == UNDEFINED else b""
    sequence = element(0x2005140F, "SQ", content + closing, implicit=True, length=length)
    data = native_file(PIXELS, IMPLICIT, stored=12, extra=AFTER)
    at = data.index(b"\xe0\x7f\x10\x00")
    (tmp_path / "1.dcm").write_bytes(data[:at] + sequence + data[at:])
    result = read_slice(tmp_path / "1.dcm")
    assert np.array_equal(result.pixels, PIXELS)
    assert (result.header.rows, result.header.repetition_time) == (40, None)


@pytest.mark.parametrize("cut", [2, 40, 2000])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_pixels_that_are_not_all_there_stay_refused(tmp_path, syntax, cut):
    odd = element(0x00281040, "LO", b"abc", implicit=syntax == IMPLICIT, length=11)
    data = inserted(native_file(PIXELS, syntax, stored=12, extra=AFTER), 0x00281053, odd)
    (tmp_path / "1.dcm").write_bytes(data[:-cut])
    with pytest.raises(DicomError, match=r"found .*, expected "):
        read_slice(tmp_path / "1.dcm")


def test_sizes_that_disagree_with_the_pixels_stay_refused(tmp_path):
    data = inserted(native_file(PIXELS, stored=12, extra=AFTER), 0x00281053, raw_element(0x00281040, b"??", b"\0\0"))
    at = data.index(b"\x28\x00\x10\x00US\x02\x00") + 8
    (tmp_path / "1.dcm").write_bytes(data[:at] + b"\x27\0" + data[at + 2 :])
    with pytest.raises(DicomError, match="element without a VR"):
        read_slice(tmp_path / "1.dcm")


def test_two_places_that_may_be_the_pixels_stay_refused(tmp_path):
    pixel_data = element(0x7FE00010, "OW", PIXELS.tobytes())
    data = native_file(PIXELS, stored=12, extra=AFTER)
    at = data.index(b"\xe0\x7f\x10\x00")
    broken = element(0x00300010, "LO", b"\xff" * 200, length=9) + b"\xff" * 70_000
    (tmp_path / "1.dcm").write_bytes(data[:at] + broken + pixel_data)
    assert np.array_equal(read_slice(tmp_path / "1.dcm").pixels, PIXELS)
    (tmp_path / "1.dcm").write_bytes(data[:at] + broken + pixel_data + b"\xff" * 10 + pixel_data)
    with pytest.raises(DicomError, match=r"found .*, expected "):
        read_slice(tmp_path / "1.dcm")


def test_an_icon_is_not_taken_for_the_pixels(tmp_path):
    icon = item(element(0x00280010, "US", b"\4\0") + element(0x7FE00010, "OW", bytes(32)))
    data = native_file(PIXELS, stored=12, extra=[*AFTER, (0x00880200, "SQ", icon)])
    at = data.rindex(b"\xe0\x7f\x10\x00")
    (tmp_path / "1.dcm").write_bytes(data[:at] + element(0x7FDF0010, "LO", b"ab", length=9))
    with pytest.raises(DicomError, match=r"found .*, expected "):
        read_slice(tmp_path / "1.dcm")


def test_a_large_file_of_nothing_but_malformed_elements_is_given_up(tmp_path):
    head = native_file(PIXELS, stored=12)
    data = head[: head.index(b"\xe0\x7f\x10\x00")]
    for filling in (b"\x29\0\1\0??\2\0ab", b"\xe0\x7f\x10\0OW\0\0\2\0\0\0ab", b"\xfe\xff\0\xe0\0\0\0\0", b"USLO"):
        (tmp_path / "1.dcm").write_bytes(data + filling * (3_000_000 // len(filling)))
        with pytest.raises(DicomError, match=r"found .*, expected "):
            read_slice(tmp_path / "1.dcm")
