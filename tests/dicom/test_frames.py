import itertools
import struct

import numpy as np
import pydicom
import pytest

import jpeg_lossless_encoder
import rle_encoder
from dicom_writer import EXPLICIT, JPEG_LOSSLESS, RLE, encapsulated_file, item, noisy_slice
from lumbar.dicom import read_slice
from lumbar.dicom.pixels import CODECS, codec
from lumbar.errors import DicomError

SHAPE = (12, 10)
FRAMES = [noisy_slice(SHAPE, seed=seed) for seed in range(3)]
ENCODED = [rle_encoder.encode(frame) for frame in FRAMES]
ENCODED = [frame + b"\0" * (len(frame) % 2) for frame in ENCODED]


def read(folder, data):
    path = folder / "1.dcm"
    path.write_bytes(data)
    return read_slice(path).pixels


def offsets(parts):
    """Where each part's item begins, counted from the first."""
    return np.cumsum([0, *[len(part) + 8 for part in parts[:-1]]])


def cut(frame, *places):
    """A frame as fragments of even length."""
    ends = [0, *places, len(frame)]
    return [frame[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize(
    "table", [b"", struct.pack("<I", 0), struct.pack("<I", 999), struct.pack("<3I", 0, 8, 64), b"x"]
)
@pytest.mark.parametrize("places", [(), (64,), (2, 70, 100)])
def test_one_frame_whatever_the_table_and_the_fragments(tmp_path, table, places):
    data = encapsulated_file(cut(ENCODED[0], *places), SHAPE, RLE, table=table)
    assert np.array_equal(read(tmp_path, data), FRAMES[0])


@pytest.mark.parametrize("table", ["right", "empty", "wrong"])
def test_frames_of_one_fragment_need_no_table(tmp_path, table):
    raw = {"right": offsets(ENCODED), "empty": [], "wrong": [0, 1, 2]}[table]
    data = encapsulated_file(ENCODED, SHAPE, RLE, table=struct.pack(f"<{len(raw)}I", *raw), frames=3)
    assert np.array_equal(read(tmp_path, data), np.stack(FRAMES))


def test_frames_of_several_fragments_by_the_basic_table(tmp_path):
    parts = [cut(ENCODED[0], 64), cut(ENCODED[1]), cut(ENCODED[2], 10, 80)]
    flat = [part for group in parts for part in group]
    places = offsets(flat)[[0, 2, 3]]
    data = encapsulated_file(flat, SHAPE, RLE, table=struct.pack("<3I", *places), frames=3)
    result = read(tmp_path, data)
    assert np.array_equal(result, np.stack(FRAMES))
    assert np.array_equal(result, pydicom.dcmread(tmp_path / "1.dcm").pixel_array)


def test_frames_of_several_fragments_by_the_extended_table(tmp_path):
    flat = [*cut(ENCODED[0], 64), *cut(ENCODED[1], 64)]
    places = offsets(flat)[[0, 2]]
    extra = [
        (0x7FE00001, "OV", struct.pack("<2Q", *places)),
        (0x7FE00002, "OV", struct.pack("<2Q", len(ENCODED[0]), len(ENCODED[1]))),
    ]
    data = encapsulated_file(flat, SHAPE, RLE, frames=2, extra=extra)
    assert np.array_equal(read(tmp_path, data), np.stack(FRAMES[:2]))


@pytest.mark.parametrize("halves", [(b"\0" * 16, b"\0" * 8), (b"\0" * 15 + b" ", b""), (b"\xff" * 16, b"\xff" * 16)])
def test_an_extended_table_that_makes_no_sense_is_left_aside(tmp_path, halves):
    extra = [(0x7FE00001, "OV", halves[0]), (0x7FE00002, "OV", halves[1])]
    data = encapsulated_file(ENCODED, SHAPE, RLE, frames=3, extra=extra)
    assert np.array_equal(read(tmp_path, data), np.stack(FRAMES))


def test_frames_of_several_fragments_by_the_end_marks_of_jpeg(tmp_path):
    streams = [jpeg_lossless_encoder.encode(frame) for frame in FRAMES]
    flat = [part for stream in streams for part in cut(stream, 40, 90)]
    data = encapsulated_file(flat, SHAPE, JPEG_LOSSLESS, frames=3)
    assert np.array_equal(read(tmp_path, data), np.stack(FRAMES))


def test_a_missing_delimiter_is_no_harm(tmp_path):
    assert np.array_equal(read(tmp_path, encapsulated_file([ENCODED[0]], SHAPE, RLE, closed=False)), FRAMES[0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encapsulated_file([], SHAPE, RLE), "found 1 items"),
        (encapsulated_file(cut(ENCODED[0], 64), SHAPE, RLE, frames=3), "2 fragments without a usable offset table"),
        (encapsulated_file(ENCODED[:1], SHAPE, RLE)[:-20], "found a fragment of"),
        (encapsulated_file(ENCODED[:1], SHAPE, RLE).replace(b"\xfe\xff\0\xe0", b"\xfe\xff\1\xe0"), "found feff01e0 at"),
        (encapsulated_file(ENCODED[:1], SHAPE, RLE, frames=1 << 31), "2147483648 frames"),
        (encapsulated_file([], SHAPE, RLE).split(b"OB\0\0\xff\xff")[0] + b"OB\0\0\xff\xff\xff\xff", "found 0 items"),
        (encapsulated_file([b""], SHAPE, RLE), "RLE frame of 0 bytes"),
    ],
)
def test_fragments_that_make_no_frames_are_refused(tmp_path, data, reason):
    with pytest.raises(DicomError, match=rf"1\.dcm: .*{reason}.*expected"):
        read(tmp_path, data)


def of_defined_length(data):
    """The file with its pixel data's undefined length replaced by what it is."""
    start = data.rindex(b"OB\0\0\xff\xff\xff\xff") + 8
    return data[: start - 4] + struct.pack("<I", len(data) - start) + data[start:]


def test_fragments_in_pixel_data_of_defined_length_are_read_with_a_problem(tmp_path):
    path = tmp_path / "1.dcm"
    path.write_bytes(of_defined_length(encapsulated_file(ENCODED[:1], SHAPE, RLE)))
    result = read_slice(path)
    assert np.array_equal(result.pixels, FRAMES[0])
    assert np.array_equal(result.pixels, pydicom.dcmread(path).pixel_array)
    assert len(result.problems) == 1
    assert "expected an undefined length" in result.problems[0]


def test_compressed_pixels_of_defined_length_without_items_are_refused(tmp_path):
    data = of_defined_length(encapsulated_file(ENCODED[:1], SHAPE, RLE)).replace(b"\xfe\xff\0\xe0", b"\xfe\xff\1\xe0")
    with pytest.raises(DicomError, match=r"defined length .* RLE Lossless"):
        read(tmp_path, data)


@pytest.mark.parametrize("number", [201, 202, 203])
def test_high_throughput_jpeg_2000_is_refused_by_name(tmp_path, number):
    data = encapsulated_file([b"\xff\x4f\xff\x51"], SHAPE, f"1.2.840.10008.1.2.4.{number}")
    with pytest.raises(DicomError, match=rf"HTJ2K.*\(1\.2\.840\.10008\.1\.2\.4\.{number}\)"):
        read(tmp_path, data)


def test_an_unknown_syntax_is_refused_by_its_number(tmp_path):
    with pytest.raises(DicomError, match=r"unknown syntax \(1\.2\.3\.4\)"):
        read(tmp_path, encapsulated_file(ENCODED[:1], SHAPE, "1.2.3.4"))


def test_sizes_are_checked_before_pydicom_sees_the_file(tmp_path):
    data = encapsulated_file([b"1234"], (65535, 65535), "1.2.840.10008.1.2.4.201", frames=1000)
    with pytest.raises(DicomError, match="frame of 65535 x 65535 pixels, expected at most"):
        read(tmp_path, data)


def test_uncompressed_pixels_in_items_are_refused(tmp_path):
    data = encapsulated_file(ENCODED[:1], SHAPE, EXPLICIT)
    with pytest.raises(DicomError, match="undefined length"):
        read(tmp_path, data)


def test_every_truncation_of_a_compressed_file_is_refused_or_complete(tmp_path):
    data = encapsulated_file([ENCODED[0][:70], ENCODED[0][70:]], SHAPE, RLE)
    for size in range(len(data) - 9):
        with pytest.raises(DicomError, match="found"):
            read(tmp_path, data[:size])


def test_the_table_of_syntaxes_agrees_with_the_modules():
    for syntax, name in CODECS.items():
        module = codec(syntax)
        assert module.__name__ == f"lumbar.dicom.codecs.{name}"
        assert syntax in module.TRANSFER_SYNTAXES
        assert callable(module.decode_frame)
        assert callable(module.warm_up)
    assert codec("1.2.3") is None


def test_an_item_that_claims_more_than_the_file_is_refused(tmp_path):
    head = encapsulated_file([], SHAPE, RLE, closed=False)
    with pytest.raises(DicomError, match="a fragment of 4294967280 bytes"):
        read(tmp_path, head + item(b"1234", length=0xFFFFFFF0))
